//! The guard: a pod sends as itself only (`antiSpoof`; `macspoofchk` for the MAC address alone).
//!
//! On the host's end of the veth, before anything else of the bridge sees a frame: MAC address, IPv4, ARP, IPv6 and neighbour
//! discovery. No pod is a router: its advertisements are dropped. What a pod needs for its link-local address passes: the
//! detection of duplicates of its own addresses and the reports of its multicast groups, which are sent from `::`.
//! Surprises: a bridge takes frames to link-local groups (01:80:c2:00:00:0x) past its first hook, some past every hook; they
//! go nowhere, but it would learn from them, which bridges that we make do not. A pod without addresses of ours may have any,
//! and is held to its MAC address.

use std::net::{IpAddr, Ipv6Addr};

use podspan_kernel::nft::{
    Base, Batch, Chain, Element, Field, Hook, Rule, Set, Type, Value, Verdict, priority,
};
use podspan_kernel::{Errno, Mac};

use super::{BRIDGE, Part, Plan, Wanted};
use crate::error::Error;

/// Ports whose senders must be who they say, and those of them that may have any address behind their own MAC address.
const GUARDED: Set<'static> = Set::of(BRIDGE, "guarded", &[Type::IfName]);
const ANY_IP: Set<'static> = Set::of(BRIDGE, "any_ip", &[Type::IfName]);
/// What is whose: the port's MAC address, and its MAC address with each of its addresses.
const PORT_MAC: Set<'static> = Set::of(BRIDGE, "port_mac", &[Type::IfName, Type::Mac]);
const PORT_IP4: Set<'static> = Set::of(
    BRIDGE,
    "port_mac_ip4",
    &[Type::IfName, Type::Mac, Type::Ipv4],
);
const PORT_IP6: Set<'static> = Set::of(
    BRIDGE,
    "port_mac_ip6",
    &[Type::IfName, Type::Mac, Type::Ipv6],
);
const RULES: Set<'static> = Set::of(BRIDGE, "rules_guard_3", &[Type::Mark]);

/// All sets that a record may name.
pub(super) static SETS: [Set<'static>; 5] = [GUARDED, ANY_IP, PORT_MAC, PORT_IP4, PORT_IP6];

/// Before the first of the usual chains.
const FIRST: i32 = priority::BRIDGE_DSTNAT - 10;
const PREROUTING: Chain<'static> =
    Chain::hooked(BRIDGE, "prerouting", Base::filter(Hook::Prerouting, FIRST));
const MACS: Chain<'static> = Chain::plain(BRIDGE, "macs");
const IPS: Chain<'static> = Chain::plain(BRIDGE, "ips");

/// `IPPROTO_ICMPV6` (linux/in6.h).
const IPPROTO_ICMPV6: u8 = 58;
/// Messages of neighbour discovery (RFC 4861, section 4).
const ROUTER_SOLICIT: u8 = 133;
const ROUTER_ADVERT: u8 = 134;
const NEIGHBOUR_SOLICIT: u8 = 135;
const NEIGHBOUR_ADVERT: u8 = 136;
/// Reports and departures of multicast listeners (RFC 2710, RFC 3810).
const LISTENER_REPORTS: [u8; 3] = [131, 132, 143];

/// What a pod may send as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Its MAC address.
    pub mac: Mac,
    /// Its addresses; none where they are anybody's guess.
    pub addresses: Option<Vec<IpAddr>>,
}

/// What the guard needs.
pub(super) fn plan(wanted: &Wanted, plan: &mut Plan) {
    let (Some(guard), Some(link)) = (&wanted.guard, &wanted.link) else {
        return;
    };
    plan.parts.push(Part { rules: RULES, lay });
    let port = || Value::from(link);
    plan.own.push((&GUARDED, Element::new([port()])));
    plan.own
        .push((&PORT_MAC, Element::new([port(), guard.mac.into()])));
    let Some(addresses) = &guard.addresses else {
        plan.own.push((&ANY_IP, Element::new([port()])));
        return;
    };
    let link_local = IpAddr::V6(guard.mac.link_local());
    for ip in addresses.iter().chain([&link_local]) {
        let set = if ip.is_ipv4() { &PORT_IP4 } else { &PORT_IP6 };
        let element = Element::new([port(), guard.mac.into(), (*ip).into()]);
        plan.own.push((set, element));
    }
}

fn lay(batch: &mut Batch) {
    for set in &SETS {
        batch.add_set(set);
    }
    for chain in [MACS, IPS, PREROUTING] {
        batch.add_chain(chain);
        batch.flush_chain(chain);
    }
    for rule in entrance().into_iter().chain(long_way()) {
        batch.add_rule(&rule);
    }
}

fn port(fields: &[Field]) -> Vec<Field> {
    [&[Field::IIFNAME], fields].concat()
}

fn sender(address: Field) -> Vec<Field> {
    port(&[Field::ETHER_SADDR, address])
}

/// The first two rules let nearly every frame through by one look into one set: what comes behind them costs a pod a tenth of
/// its requests a second. ICMPv6 goes the long way, for what it says of neighbours; `l4proto` finds it behind other headers.
fn entrance() -> [Rule<'static>; 3] {
    [
        Rule::of(PREROUTING)
            .is_in(&sender(Field::IP_SADDR), &PORT_IP4)
            .verdict(&Verdict::Accept),
        Rule::of(PREROUTING)
            .is_not(Field::L4PROTO, Value::Protocol(IPPROTO_ICMPV6))
            .is_in(&sender(Field::IP6_SADDR), &PORT_IP6)
            .verdict(&Verdict::Accept),
        Rule::of(PREROUTING)
            .is_in(&[Field::IIFNAME], &GUARDED)
            .verdict(&Verdict::jump(&MACS)),
    ]
}

/// What is of a guarded port and was not let through: not its own address, or nothing of IP.
fn long_way() -> Vec<Rule<'static>> {
    let drop_unless = |chain, fields: &[Field], set: &Set<'_>| {
        let rule = Rule::of(chain).is_not_in(fields, set);
        rule.verdict(&Verdict::Drop)
    };
    let from_nowhere = || Rule::of(IPS).is(Field::IP6_SADDR, Ipv6Addr::UNSPECIFIED);
    let rules = [
        drop_unless(MACS, &port(&[Field::ETHER_SADDR]), &PORT_MAC),
        Rule::of(MACS)
            .is_not_in(&[Field::IIFNAME], &ANY_IP)
            .verdict(&Verdict::goto(&IPS)),
        drop_unless(IPS, &sender(Field::IP_SADDR), &PORT_IP4),
        drop_unless(IPS, &port(&[Field::ARP_SADDR_ETHER]), &PORT_MAC),
        // A probe for an address that one would like to have (RFC 5227) tells nobody anything.
        Rule::of(IPS)
            .is(Field::ARP_SADDR_IP, std::net::Ipv4Addr::UNSPECIFIED)
            .verdict(&Verdict::Return),
        drop_unless(
            IPS,
            &port(&[Field::ARP_SADDR_ETHER, Field::ARP_SADDR_IP]),
            &PORT_IP4,
        ),
        Rule::of(IPS)
            .is(Field::ICMPV6_TYPE, Value::Icmp6Type(ROUTER_ADVERT))
            .verdict(&Verdict::Drop),
        Rule::of(IPS)
            .is(Field::ICMPV6_TYPE, Value::Icmp6Type(NEIGHBOUR_ADVERT))
            .is_not_in(&sender(Field::ICMPV6_TADDR), &PORT_IP6)
            .verdict(&Verdict::Drop),
        from_nowhere()
            .is(Field::ICMPV6_TYPE, Value::Icmp6Type(NEIGHBOUR_SOLICIT))
            .is_in(&sender(Field::ICMPV6_TADDR), &PORT_IP6)
            .verdict(&Verdict::Return),
    ];
    let harmless = LISTENER_REPORTS.into_iter().chain([ROUTER_SOLICIT]);
    let harmless = harmless.map(|kind| {
        from_nowhere()
            .is(Field::ICMPV6_TYPE, Value::Icmp6Type(kind))
            .verdict(&Verdict::Return)
    });
    let last = drop_unless(IPS, &sender(Field::IP6_SADDR), &PORT_IP6);
    rules.into_iter().chain(harmless).chain([last]).collect()
}

/// Names the key, where the kernel cannot guard what crosses a bridge.
pub(super) fn explain(wanted: &Wanted, error: podspan_kernel::Error) -> Error {
    let unable = matches!(
        error.errno(),
        Errno::NOENT | Errno::OPNOTSUPP | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT | Errno::INVAL
    );
    if wanted.guard.is_none() || !unable {
        return error.into();
    }
    Error::UnsupportedField(format!(
        "antiSpoof: true (or macspoofchk) needs a kernel with nftables for bridges (CONFIG_NF_TABLES_BRIDGE): {error}; \
         \"antiSpoof\": false goes without"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_guard_is_told_with_the_key() {
        let wanted = |guard| Wanted {
            record: "pod0".parse().unwrap(),
            owner: String::new(),
            link: None,
            towards: None,
            masquerade: Vec::new(),
            ports: super::super::HostPorts::default(),
            guard,
            policy: None,
        };
        let guard = Guard {
            mac: Mac([2, 0, 0, 0, 0, 1]),
            addresses: None,
        };
        let error =
            |errno| podspan_kernel::Error::new("add chain bridge podspan prerouting", errno);
        let told = explain(&wanted(Some(guard.clone())), error(Errno::NOENT));
        assert_eq!(told.code(), 2);
        assert!(
            told.to_string()
                .contains("add chain bridge podspan prerouting")
        );
        assert!(
            told.to_string()
                .ends_with("\"antiSpoof\": false goes without")
        );
        assert_eq!(explain(&wanted(None), error(Errno::NOENT)).code(), 100);
        assert_eq!(
            explain(&wanted(Some(guard)), error(Errno::PERM)).code(),
            100
        );
    }
}
