//! Host ports: a port of the node leads to a pod (capability `portMappings`).
//!
//! A map leads from protocol and port, or from address, protocol and port, to the pod; the one with the address outweighs.
//! Who comes from elsewhere keeps its address. It is masqueraded where the pod's answer would not come back through the node:
//! from a pod of the same bridge, from the pod itself, and from the node's own 127.0.0.0/8, which needs `route_localnet` on
//! the link to the pods; what they send to 127.0.0.0/8 themselves is dropped, therefore, before anything else.
//! Surprises: with `bridge-nf-call-iptables` a bridge translates what passes from pod to pod, knows no incoming link behind
//! that, and brings the answers back by itself; only the pod that calls itself is left to the set of addresses. `::1` cannot
//! be served: IPv6 has no `route_localnet`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use podspan_kernel::conntrack::Conntrack;
use podspan_kernel::nft::{
    Base, Batch, Chain, Element, Field, Hook, Nat, NatFlag, Rule, Set, Type, Value, Verdict,
    priority,
};
use podspan_kernel::{IfName, Netlink, sysctl};

use super::{Entry, INET, Part, Plan, Wanted, has_no_nftables};
use crate::error::Error;
use crate::port_mapping::{HostAddress, PortMapping, Protocol};

const PORT: &[Type] = &[Type::Protocol, Type::Port];
const IP4_PORT: &[Type] = &[Type::Ipv4, Type::Protocol, Type::Port];
const IP6_PORT: &[Type] = &[Type::Ipv6, Type::Protocol, Type::Port];
const TO4: &[Type] = &[Type::Ipv4, Type::Port];
const TO6: &[Type] = &[Type::Ipv6, Type::Port];
/// Ports of all of the node's addresses, and of one.
const ALL4: Set<'static> = Set::map(INET, "host_ports4", (PORT, TO4));
const ALL6: Set<'static> = Set::map(INET, "host_ports6", (PORT, TO6));
const ONE4: Set<'static> = Set::map(INET, "host_ip_ports4", (IP4_PORT, TO4));
const ONE6: Set<'static> = Set::map(INET, "host_ip_ports6", (IP6_PORT, TO6));
/// A pod and itself.
const HAIRPIN4: Set<'static> = Set::of(INET, "hairpin4", &[Type::Ipv4, Type::Ipv4]);
const HAIRPIN6: Set<'static> = Set::of(INET, "hairpin6", &[Type::Ipv6, Type::Ipv6]);
/// A link that leads to pods with host ports, and such a link and itself.
const LINKS: Set<'static> = Set::of(INET, "host_port_links", &[Type::IfName]);
const HAIRPIN_LINKS: Set<'static> = Set::of(INET, "hairpin_links", &[Type::IfName, Type::IfName]);
/// Pods that see nobody's own address through their host ports (`masqAll`).
const MASKED4: Set<'static> = Set::of(INET, "masquerade_to4", &[Type::Ipv4]);
const MASKED6: Set<'static> = Set::of(INET, "masquerade_to6", &[Type::Ipv6]);
const RULES: Set<'static> = Set::of(INET, "rules_host_ports_1", &[Type::Mark]);

/// All sets that a record may name.
pub(super) static SETS: [Set<'static>; 10] = [
    ALL4,
    ALL6,
    ONE4,
    ONE6,
    HAIRPIN4,
    HAIRPIN6,
    LINKS,
    HAIRPIN_LINKS,
    MASKED4,
    MASKED6,
];

const PREROUTING: Chain<'static> = Chain::hooked(
    INET,
    "prerouting",
    Base::nat(Hook::Prerouting, priority::DSTNAT),
);
const OUTPUT: Chain<'static> =
    Chain::hooked(INET, "output", Base::nat(Hook::Output, priority::DSTNAT));
const HAIRPIN: Chain<'static> = Chain::hooked(
    INET,
    "hairpin",
    Base::nat(Hook::Postrouting, priority::SRCNAT),
);
/// Before connections are followed: the answers that go back to 127.0.0.0/8 still bear the node's address there.
const LOCALNET: Chain<'static> = Chain::hooked(
    INET,
    "localnet",
    Base::filter(Hook::Prerouting, priority::RAW),
);
/// 127.0.0.0/8: mask and address.
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(255, 0, 0, 0)),
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 0)),
];

/// The host ports of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPorts {
    /// Each of one family.
    pub list: Vec<HostPort>,
    /// Callers whose answers would not come back are masqueraded (`snat`).
    pub snat: bool,
    /// All callers are (`masqAll`).
    pub masquerade_all: bool,
}

/// A port of the node and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The address that has the port; none is all of the family.
    pub host_ip: Option<IpAddr>,
    /// The port.
    pub host_port: u16,
    /// The pod.
    pub to: SocketAddr,
}

impl Default for HostPorts {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            snat: true,
            masquerade_all: false,
        }
    }
}

/// Leads the mappings to a pod: to its first address of each family.
///
/// # Errors
/// [`Error::Config`] for a mapping of a family that the pod has no address of, and for one port that is to lead to two.
pub fn lead_to(mappings: &[PortMapping], pod: &[IpAddr]) -> Result<Vec<HostPort>, Error> {
    let wrong = |mapping: &PortMapping, what: String| {
        Error::Config(format!("runtimeConfig.portMappings: {mapping} {what}"))
    };
    let mut ports: Vec<HostPort> = Vec::new();
    for mapping in mappings {
        let (host_ip, families): (_, &[bool]) = match mapping.host {
            HostAddress::All => (None, &[true, false]),
            HostAddress::AllIpv4 => (None, &[true]),
            HostAddress::AllIpv6 => (None, &[false]),
            HostAddress::One(ip @ IpAddr::V4(_)) => (Some(ip), &[true]),
            HostAddress::One(ip @ IpAddr::V6(_)) => (Some(ip), &[false]),
        };
        let leads = families.iter().filter_map(|is_ipv4| {
            let ip = pod.iter().find(|ip| ip.is_ipv4() == *is_ipv4)?;
            Some(HostPort {
                protocol: mapping.protocol,
                host_ip,
                host_port: mapping.host_port,
                to: SocketAddr::new(*ip, mapping.container_port),
            })
        });
        let leads: Vec<_> = leads.collect();
        if leads.is_empty() {
            let has: Vec<_> = pod.iter().map(ToString::to_string).collect();
            let has = if has.is_empty() {
                "none".into()
            } else {
                has.join(", ")
            };
            return Err(wrong(
                mapping,
                format!("needs an address of the pod of its family; it has {has}"),
            ));
        }
        for lead in leads {
            match ports.iter().find(|known| known.key() == lead.key()) {
                Some(known) if known.to != lead.to => {
                    let to = known.to.port();
                    return Err(wrong(
                        mapping,
                        format!("is to lead to {} and to {to}", mapping.container_port),
                    ));
                }
                Some(_) => {}
                None => ports.push(lead),
            }
        }
    }
    Ok(ports)
}

impl HostPort {
    /// What only one can have.
    fn key(&self) -> (Protocol, Option<IpAddr>, u16, bool) {
        (
            self.protocol,
            self.host_ip,
            self.host_port,
            self.to.is_ipv4(),
        )
    }

    fn entry(&self) -> Entry {
        let mut key = vec![
            Value::Protocol(self.protocol as u8),
            Value::Port(self.host_port),
        ];
        if let Some(ip) = self.host_ip {
            key.insert(0, ip.into());
        }
        let set = match (self.host_ip, self.to) {
            (None, SocketAddr::V4(_)) => &ALL4,
            (None, SocketAddr::V6(_)) => &ALL6,
            (Some(_), SocketAddr::V4(_)) => &ONE4,
            (Some(_), SocketAddr::V6(_)) => &ONE6,
        };
        let to = [self.to.ip().into(), Value::Port(self.to.port())];
        (set, Element::new(key).to(to))
    }
}

/// What host ports need.
pub(super) fn plan(wanted: &Wanted, plan: &mut Plan) {
    let ports = &wanted.ports;
    if ports.list.is_empty() {
        return;
    }
    plan.parts.push(Part { rules: RULES, lay });
    plan.own.extend(ports.list.iter().map(HostPort::entry));
    let mut pods: Vec<IpAddr> = ports.list.iter().map(|port| port.to.ip()).collect();
    pods.sort();
    pods.dedup();
    for ip in pods {
        let (hairpin, masked) = match ip {
            IpAddr::V4(_) => (&HAIRPIN4, &MASKED4),
            IpAddr::V6(_) => (&HAIRPIN6, &MASKED6),
        };
        if ports.snat {
            plan.own
                .push((hairpin, Element::new([ip.into(), ip.into()])));
        }
        if ports.snat && ports.masquerade_all {
            plan.own.push((masked, Element::new([ip.into()])));
        }
    }
    if let Some(link) = wanted.towards.as_ref().filter(|_| ports.snat) {
        plan.add_link(wanted, (&LINKS, Element::new([link.into()])));
        let twice = Element::new([link.into(), link.into()]);
        plan.add_link(wanted, (&HAIRPIN_LINKS, twice));
    }
}

fn lay(batch: &mut Batch) {
    for set in &SETS {
        batch.add_set(set);
    }
    for chain in [LOCALNET, PREROUTING, OUTPUT, HAIRPIN] {
        batch.add_chain(chain);
        batch.flush_chain(chain);
    }
    let [mask, loopback] = LOOPBACK.map(Value::from);
    batch.add_rule(
        &Rule::of(LOCALNET)
            .masked(Field::IP_DADDR, mask.clone(), loopback.clone())
            .is_in(&[Field::IIFNAME], &LINKS)
            .verdict(&Verdict::Drop),
    );
    batch.add_rule(
        &Rule::of(OUTPUT)
            .is(Field::IP6_DADDR, Ipv6Addr::LOCALHOST)
            .verdict(&Verdict::Return),
    );
    for chain in [PREROUTING, OUTPUT] {
        for (daddr, map) in [(Field::IP_DADDR, ONE4), (Field::IP6_DADDR, ONE6)] {
            let fields = [daddr, Field::L4PROTO, Field::DPORT];
            batch.add_rule(&Rule::of(chain).nat_by(Nat::Destination, &fields, &map));
        }
        for map in [ALL4, ALL6] {
            let fields = [Field::L4PROTO, Field::DPORT];
            let local = Rule::of(chain).daddr_is_local();
            batch.add_rule(&local.nat_by(Nat::Destination, &fields, &map));
        }
    }
    let translated = || Rule::of(HAIRPIN).is_dnat();
    let rules = [
        translated().is_in(&[Field::IIFNAME, Field::OIFNAME], &HAIRPIN_LINKS),
        translated().is_in(&[Field::IP_SADDR, Field::IP_DADDR], &HAIRPIN4),
        translated().is_in(&[Field::IP6_SADDR, Field::IP6_DADDR], &HAIRPIN6),
        translated()
            .masked(Field::IP_SADDR, mask, loopback)
            .is_in(&[Field::OIFNAME], &LINKS),
        translated().is_in(&[Field::IP_DADDR], &MASKED4),
        translated().is_in(&[Field::IP6_DADDR], &MASKED6),
    ];
    for rule in rules {
        batch.add_rule(&rule.masquerade(&[NatFlag::FullyRandom]));
    }
}

/// The link on which addresses of 127.0.0.0/8 are taken for routable, as callers from there need it.
fn localnet(wanted: &Wanted) -> Option<String> {
    let ipv4 = wanted.ports.list.iter().any(|port| port.to.is_ipv4());
    let link: &IfName = wanted
        .towards
        .as_ref()
        .filter(|_| ipv4 && wanted.ports.snat)?;
    Some(format!("net/ipv4/conf/{link}/route_localnet"))
}

/// What is not nftables'. The rules are in force before: they keep others from the node's 127.0.0.0/8.
pub(super) fn complete(wanted: &Wanted) -> Result<(), Error> {
    match localnet(wanted) {
        Some(key) => Ok(sysctl::ensure(&key, "1")?),
        None => Ok(()),
    }
}

/// The same, for CHECK.
pub(super) fn missing(wanted: &Wanted) -> Result<Vec<String>, Error> {
    let Some(key) = localnet(wanted) else {
        return Ok(Vec::new());
    };
    Ok(match sysctl::read(&key) {
        Ok(value) if value == "1" => Vec::new(),
        Ok(value) => vec![format!("sysctl {key} is {value}, not 1")],
        // The link is gone, which is told already.
        Err(error) if error.is_not_found() => Vec::new(),
        Err(error) => return Err(error.into()),
    })
}

/// A host port in words; none for an element of another set.
pub(super) fn describe(set: &Set<'_>, element: &Element) -> Option<String> {
    match (
        [ALL4, ALL6, ONE4, ONE6].contains(set),
        element.key.as_slice(),
    ) {
        (true, [protocol, port]) => Some(format!("host port {protocol} {port}")),
        (true, [ip, protocol, port]) => Some(format!("host port {protocol} {port} of {ip}")),
        _ => None,
    }
}

/// A host port for datagrams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Datagrams {
    is_ipv4: bool,
    host_ip: Option<IpAddr>,
    port: u16,
}

/// None for everything else.
pub(super) fn datagrams((set, element): &Entry) -> Option<Datagrams> {
    let maps = [ALL4, ALL6, ONE4, ONE6];
    let is_ipv4 = [ALL4, ONE4].contains(*set);
    let (host_ip, rest) = match element.key.as_slice() {
        [Value::Ipv4(ip), rest @ ..] => (Some(IpAddr::from(*ip)), rest),
        [Value::Ipv6(ip), rest @ ..] => (Some(IpAddr::from(*ip)), rest),
        rest => (None, rest),
    };
    match rest {
        [protocol, Value::Port(port)] if maps.contains(*set) && *protocol == Value::UDP => {
            Some(Datagrams {
                is_ipv4,
                host_ip,
                port: *port,
            })
        }
        _ => None,
    }
}

/// Forgets the connections to a host port; the next datagram of each goes where it leads now.
pub(super) fn forget(
    conntrack: &mut Conntrack,
    host: &mut Netlink,
    of: Datagrams,
) -> Result<(), Error> {
    let mut connections = match conntrack.list(Protocol::Udp as u8, of.port) {
        // It follows connections and does not tell of them (CONFIG_NF_CT_NETLINK): they end by themselves.
        Err(error) if has_no_nftables(&error) => return Ok(()),
        listed => listed?,
    };
    connections.retain(|connection| connection.destination.is_ipv4() == of.is_ipv4);
    if connections.is_empty() {
        return Ok(());
    }
    let own: Vec<IpAddr> = match of.host_ip {
        Some(ip) => vec![ip],
        None => host
            .list_addresses()?
            .iter()
            .map(|address| address.net.addr())
            .collect(),
    };
    for connection in connections {
        let ip = connection.destination.ip();
        // What goes elsewhere to a port of that number is none of ours.
        if own.contains(&ip) || (of.host_ip.is_none() && ip.is_loopback()) {
            conntrack.remove(&connection)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lead(mapping: serde_json::Value, pod: &[&str]) -> Result<Vec<String>, String> {
        let mappings = PortMapping::parse_all(&mapping).unwrap();
        let pod: Vec<IpAddr> = pod.iter().map(|ip| ip.parse().unwrap()).collect();
        let text = |port: &HostPort| {
            let (set, element) = port.entry();
            format!("{}: {element}", set.name)
        };
        match lead_to(&mappings, &pod) {
            Ok(ports) => Ok(ports.iter().map(text).collect()),
            Err(error) => Err(format!("{} {error}", error.code())),
        }
    }

    #[test]
    fn a_mapping_leads_to_the_first_address_of_each_family_that_it_is_for() {
        let web =
            |host_ip: &str| json!([{"hostPort": 80, "containerPort": 8080, "hostIP": host_ip}]);
        let dual = ["10.0.0.2", "fd00::2", "10.0.0.3"];
        let four = "host_ports4: tcp . 80 : 10.0.0.2 . 8080".to_owned();
        let six = "host_ports6: tcp . 80 : fd00::2 . 8080".to_owned();
        assert_eq!(lead(web(""), &dual), Ok(vec![four.clone(), six.clone()]));
        assert_eq!(lead(web("0.0.0.0"), &dual), Ok(vec![four]));
        assert_eq!(lead(web("::"), &dual), Ok(vec![six.clone()]));
        assert_eq!(lead(web(""), &dual[1..2]), Ok(vec![six]));
        let one = vec!["host_ip_ports4: 192.0.2.1 . tcp . 80 : 10.0.0.2 . 8080".to_owned()];
        assert_eq!(lead(web("192.0.2.1"), &dual), Ok(one));
        let told = "7 runtimeConfig.portMappings: tcp 80 of 0.0.0.0 needs an address of the pod of its family; it has fd00::2";
        assert_eq!(lead(web("0.0.0.0"), &dual[1..2]), Err(told.into()));
        assert!(lead(web(""), &[]).unwrap_err().ends_with("it has none"));
    }

    #[test]
    fn one_port_that_is_to_lead_to_two_is_told_and_two_protocols_are_two_ports() {
        let both = json!([
            {"hostPort": 53, "containerPort": 53}, {"hostPort": 53, "containerPort": 54}]);
        let told = "7 runtimeConfig.portMappings: tcp 53 is to lead to 54 and to 53";
        assert_eq!(lead(both, &["10.0.0.2"]), Err(told.into()));
        let two = json!([
            {"hostPort": 53, "containerPort": 53}, {"hostPort": 53, "containerPort": 54, "protocol": "udp"}]);
        assert_eq!(lead(two, &["10.0.0.2"]).unwrap().len(), 2);
    }
}
