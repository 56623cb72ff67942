//! Routes of the main table, or of another, by the protocol number that says who installed them.
//!
//! Add never replaces, replace never adds beside: a route of somebody else for the same destination is met as *exists*
//! and left alone. That is why there is no `ensure_route` here: whether the route there is ours, the caller has observed.
//! Inside a pod, where several networks may each bring a default route, `add_route_beside_others` is meant.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope,
    RouteType,
};

use crate::error::Result;
use crate::link::family;
use crate::names::Prefix;
use crate::netlink::{Message, Netlink};

/// Who installed a route (`rtm_protocol`; names in `/etc/iproute2/rt_protos` and `rt_protos.d`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteProtocol(pub u8);

impl RouteProtocol {
    /// Ours: the mark of every route that the agent and the router keep.
    pub const PODSPAN: Self = Self(112);
    /// `boot`: what `ip route add` gives a route, and what we give those inside a pod.
    pub const BOOT: Self = Self(3);
    /// `kernel`: follows from an address.
    pub const KERNEL: Self = Self(2);
}

/// A unicast route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads.
    pub dst: Prefix,
    /// Through which neighbour; none when the destination is on the link.
    pub next_hop: Option<IpAddr>,
    /// Through which link, by index; none lets the kernel find it from the next hop.
    pub link: Option<u32>,
    /// Who installed it.
    pub protocol: RouteProtocol,
    /// Everything that is seldom set.
    pub options: RouteOptions,
}

/// What is seldom set on a route; the default is what `ip route add` does.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteOptions {
    /// The metric (`priority`), lower first; IPv6 takes 1024 where it is none.
    pub metric: Option<u32>,
    /// The path's MTU in bytes.
    pub mtu: Option<u32>,
    /// The TCP segment size to announce, in bytes.
    pub advmss: Option<u32>,
    /// The routing table; none is `main` (254).
    pub table: Option<u32>,
    /// The scope (`rt_scopes`); none is `link` without a next hop and `global` with one.
    pub scope: Option<u8>,
    /// The next hop is taken to be on the link, whatever its address (`RTNH_F_ONLINK`); IPv6 has that for link-local ones.
    pub onlink: bool,
    /// The address from which this machine itself sends by it.
    pub source: Option<IpAddr>,
}

/// The metric that IPv6 routes have when none is given (`IP6_RT_PRIO_USER`).
const IPV6_METRIC: u32 = 1024;
/// `RT_TABLE_MAIN`.
const MAIN_TABLE: u32 = 254;

impl fmt::Display for Route {
    /// As one writes it behind `ip route add`, without the link, whose name is not known here.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dst)?;
        if let Some(next_hop) = self.next_hop {
            write!(f, " via {next_hop}")?;
        }
        let RouteOptions {
            metric,
            mtu,
            advmss,
            table,
            onlink,
            source,
            ..
        } = self.options;
        if onlink {
            f.write_str(" onlink")?;
        }
        if let Some(source) = source {
            write!(f, " src {source}")?;
        }
        for (word, value) in [
            ("metric", metric),
            ("mtu", mtu),
            ("advmss", advmss),
            ("table", table),
        ] {
            if let Some(value) = value {
                write!(f, " {word} {value}")?;
            }
        }
        match self.protocol {
            RouteProtocol::BOOT => Ok(()),
            RouteProtocol(number) => write!(f, " proto {number}"),
        }
    }
}

impl Netlink {
    /// All unicast routes of the main table, of both families: those that a protocol installed, or with `None` all.
    /// A route with several next hops is listed as one for each.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn list_routes(
        &mut self,
        protocol: impl Into<Option<RouteProtocol>>,
    ) -> Result<Vec<Route>> {
        let protocol = protocol.into();
        let mut routes = Vec::new();
        for any in [IpAddr::from([0; 4]), IpAddr::from([0; 16])] {
            let mut message = RouteMessage::default();
            message.header.address_family = family(any);
            // The kernel filters by these (strict checking); an older one gives all, hence the second look below.
            message.header.protocol = protocol.map_or(0, |wanted| wanted.0).into();
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            let listed = self.dump(Message::GetRoute(message), "list routes", |message| {
                let Message::NewRoute(message) = message else {
                    return None;
                };
                let route = read_route(&message)?;
                let wanted = protocol.is_none_or(|wanted| route.protocol == wanted);
                (wanted && route.options.table.is_none()).then(|| by_next_hop(route, &message))
            })?;
            routes.extend(listed.into_iter().flatten());
        }
        Ok(routes)
    }

    /// The route that a packet from here to `ip` takes: the next hop and the link.
    ///
    /// # Errors
    /// Unreachable, or what the kernel answered.
    pub fn route_to(&mut self, ip: IpAddr) -> Result<Route> {
        let action = || format!("find route to {ip}");
        let answer = self.query(Message::GetRoute(route_query(ip)), action)?;
        let route = match &answer {
            Message::NewRoute(route) => read_route(route),
            _ => None,
        };
        route.ok_or_else(|| crate::Error::new(action(), rustix::io::Errno::NETUNREACH))
    }

    /// True when packets to `ip` are taken in here.
    ///
    /// # Errors
    /// What the kernel answered, other than that there is no route.
    pub(crate) fn is_local(&mut self, ip: IpAddr) -> Result<bool> {
        match self.query(Message::GetRoute(route_query(ip)), || {
            format!("find route to {ip}")
        }) {
            Ok(Message::NewRoute(route)) => Ok(route.header.kind == RouteType::Local),
            Ok(_) => Ok(false),
            Err(error) if error.errno() == rustix::io::Errno::NETUNREACH => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds a route.
    ///
    /// # Errors
    /// Exists: there is a route of that destination, table and metric, whosever it is. Or what the kernel answered.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let message = Message::NewRoute(route_message(route));
        self.change(message, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add route {route}")
        })
    }

    /// Adds a route, also where there is one of that destination, table and metric: of IPv4 routes the newest is taken,
    /// those of IPv6 become next hops of one.
    ///
    /// # Errors
    /// Exists: there is that very route. Or what the kernel answered.
    pub fn add_route_beside_others(&mut self, route: &Route) -> Result<()> {
        let message = Message::NewRoute(route_message(route));
        self.change(message, NLM_F_CREATE, || format!("add route {route}"))
    }

    /// Puts a route in the place of the one with the same destination, table and metric, in one step.
    ///
    /// To be called only when that one is known to be ours.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn replace_route(&mut self, route: &Route) -> Result<()> {
        let message = Message::NewRoute(route_message(route));
        self.change(message, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("replace route {route}")
        })
    }

    /// Removes the route that agrees in all that is given; that it is not there is fine.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove_route(&mut self, route: &Route) -> Result<()> {
        let message = Message::DelRoute(route_message(route));
        match self.change(message, 0, || format!("remove route {route}")) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn route_query(ip: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
    message
        .attributes
        .push(RouteAttribute::Destination(route_address(ip)));
    message
}

fn route_message(route: &Route) -> RouteMessage {
    let options = &route.options;
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.dst.addr());
    header.destination_prefix_length = route.dst.length();
    header.protocol = route.protocol.0.into();
    header.kind = RouteType::Unicast;
    header.scope = match (options.scope, route.next_hop) {
        (Some(scope), _) => scope.into(),
        (None, None) if route.dst.is_ipv4() => RouteScope::Link,
        (None, _) => RouteScope::Universe,
    };
    let table = options.table.unwrap_or(MAIN_TABLE);
    header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    header.flags.set(RouteFlags::Onlink, options.onlink);

    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(table));
    if !route.dst.is_default() {
        attributes.push(RouteAttribute::Destination(route_address(route.dst.addr())));
    }
    attributes.extend(
        route
            .next_hop
            .map(|ip| RouteAttribute::Gateway(route_address(ip))),
    );
    attributes.extend(route.link.map(RouteAttribute::Oif));
    attributes.extend(options.metric.map(RouteAttribute::Priority));
    attributes.extend(
        options
            .source
            .map(|ip| RouteAttribute::PrefSource(route_address(ip))),
    );
    let metrics: Vec<_> = options
        .mtu
        .map(RouteMetric::Mtu)
        .into_iter()
        .chain(options.advmss.map(RouteMetric::Advmss))
        .collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    message
}

/// None for what is no unicast route, or a clone that the kernel made of one.
fn read_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    let any: IpAddr = match header.address_family {
        netlink_packet_route::AddressFamily::Inet => [0; 4].into(),
        netlink_packet_route::AddressFamily::Inet6 => [0; 16].into(),
        _ => return None,
    };
    let mut dst = any;
    let mut route = Route {
        dst: Prefix::default_route(any),
        next_hop: None,
        link: None,
        protocol: RouteProtocol(header.protocol.into()),
        options: RouteOptions {
            onlink: header.flags.contains(RouteFlags::Onlink),
            ..RouteOptions::default()
        },
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::PrefSource(address) => route.options.source = ip(address),
            RouteAttribute::Destination(address) => dst = ip(address)?,
            RouteAttribute::Gateway(address) => route.next_hop = ip(address),
            RouteAttribute::Oif(index) => route.link = Some(*index),
            RouteAttribute::Priority(metric) => route.options.metric = Some(*metric),
            RouteAttribute::Table(table) => route.options.table = Some(*table),
            RouteAttribute::Metrics(metrics) => metrics.iter().for_each(|metric| match metric {
                RouteMetric::Mtu(mtu) => route.options.mtu = Some(*mtu),
                RouteMetric::Advmss(advmss) => route.options.advmss = Some(*advmss),
                _ => {}
            }),
            _ => {}
        }
    }
    // What the kernel says of a route that we gave no metric and no table must compare equal to it.
    route.options.metric = route
        .options
        .metric
        .filter(|metric| dst.is_ipv4() || *metric != IPV6_METRIC);
    route.options.table = route.options.table.filter(|table| *table != MAIN_TABLE);
    let cloned = header.flags.contains(RouteFlags::Cloned);
    let length = if cloned && dst.is_ipv4() {
        32
    } else {
        header.destination_prefix_length
    };
    route.dst = Prefix::containing(IpNet::new(dst, length).ok()?);
    Some(route)
}

/// The route, or that route through each of its next hops.
fn by_next_hop(route: Route, message: &RouteMessage) -> Vec<Route> {
    let hops = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::MultiPath(hops) => Some(hops),
            _ => None,
        });
    let Some(hops) = hops else {
        return vec![route];
    };
    hops.iter()
        .map(|hop| Route {
            next_hop: hop.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Gateway(address) => ip(address),
                _ => None,
            }),
            link: Some(hop.interface_index),
            ..route.clone()
        })
        .collect()
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNs;

    fn ours(dst: &str, next_hop: &str) -> Route {
        Route {
            dst: dst.parse().unwrap(),
            next_hop: Some(next_hop.parse().unwrap()),
            link: None,
            protocol: RouteProtocol::PODSPAN,
            options: RouteOptions::default(),
        }
    }

    fn underlay() -> (TestNs, Netlink) {
        let ns = TestNs::new();
        ns.ip("link add up0 up type bridge");
        ns.ip("addr add 192.168.1.11/24 dev up0");
        ns.ip("addr add fd00:192::11/64 dev up0 nodad");
        (ns, Netlink::open().unwrap())
    }

    #[test]
    fn what_was_added_is_read_back_equal_in_both_families() {
        let (_ns, mut netlink) = underlay();
        let link = netlink.link(&"up0".parse().unwrap()).unwrap().index;
        let mut all = vec![];
        for (dst, next_hop) in [
            ("10.244.2.0/24", "192.168.1.12"),
            ("fd00:10:244:2::/64", "fd00:192::12"),
        ] {
            let mut route = Route {
                link: Some(link),
                ..ours(dst, next_hop)
            };
            netlink.add_route(&route).unwrap();
            all.push(route.clone());
            route.options = RouteOptions {
                metric: Some(7),
                mtu: Some(1400),
                ..route.options
            };
            netlink.add_route(&route).unwrap();
            all.push(route);
        }
        let mut seen = netlink.list_routes(RouteProtocol::PODSPAN).unwrap();
        seen.sort();
        all.sort();
        assert_eq!(seen, all);
        for route in all.iter().chain(&all) {
            netlink.remove_route(route).unwrap();
        }
        assert_eq!(netlink.list_routes(RouteProtocol::PODSPAN).unwrap(), []);
    }

    #[test]
    fn only_routes_of_the_protocol_are_listed() {
        let (ns, mut netlink) = underlay();
        ns.ip("route add 10.9.0.0/16 via 192.168.1.99 proto static");
        ns.ip("route add 10.8.0.0/16 via 192.168.1.99 proto 112 table 100");
        ns.ip("-6 route add fd09::/64 via fd00:192::99 proto bgp");
        assert_eq!(netlink.list_routes(RouteProtocol::PODSPAN).unwrap(), []);
        let of_kernel = netlink.list_routes(RouteProtocol::KERNEL).unwrap();
        assert!(
            of_kernel
                .iter()
                .any(|route| route.dst.to_string() == "192.168.1.0/24")
        );
    }

    #[test]
    fn adding_never_replaces_a_foreign_route_and_replacing_is_one_step() {
        let (ns, mut netlink) = underlay();
        ns.ip("route add 10.244.2.0/24 via 192.168.1.99 proto static");
        ns.ip("-6 route add fd00:10:244:2::/64 via fd00:192::99 proto static");
        for (dst, next_hop) in [
            ("10.244.2.0/24", "192.168.1.12"),
            ("fd00:10:244:2::/64", "fd00:192::12"),
        ] {
            let error = netlink.add_route(&ours(dst, next_hop)).unwrap_err();
            assert!(error.is_exists(), "{error}");
        }
        netlink
            .add_route(&ours("10.244.3.0/24", "192.168.1.13"))
            .unwrap();
        netlink
            .replace_route(&ours("10.244.3.0/24", "192.168.1.14"))
            .unwrap();
        netlink
            .add_route(&ours("fd00:10:244:3::/64", "fd00:192::13"))
            .unwrap();
        netlink
            .replace_route(&ours("fd00:10:244:3::/64", "fd00:192::14"))
            .unwrap();
        let hops: Vec<_> = netlink
            .list_routes(RouteProtocol::PODSPAN)
            .unwrap()
            .into_iter()
            .filter_map(|route| route.next_hop)
            .collect();
        assert_eq!(
            hops,
            [
                "192.168.1.14".parse::<IpAddr>().unwrap(),
                "fd00:192::14".parse().unwrap()
            ]
        );
        assert_eq!(
            ns.ip("route show proto static")[0]["gateway"],
            "192.168.1.99"
        );
    }

    #[test]
    fn beside_others_means_the_newest_of_ipv4_and_a_further_next_hop_of_ipv6() {
        let (_ns, mut netlink) = underlay();
        for (dst, next_hop) in [
            ("10.244.2.0/24", "192.168.1.12"),
            ("10.244.2.0/24", "192.168.1.13"),
            ("fd00:10:244:2::/64", "fd00:192::12"),
            ("fd00:10:244:2::/64", "fd00:192::13"),
        ] {
            let route = ours(dst, next_hop);
            netlink.add_route_beside_others(&route).unwrap();
            let error = netlink.add_route_beside_others(&route).unwrap_err();
            assert!(error.is_exists(), "{error}");
        }
        let hops: Vec<_> = netlink
            .list_routes(RouteProtocol::PODSPAN)
            .unwrap()
            .into_iter()
            .filter_map(|route| route.next_hop)
            .map(|next_hop| next_hop.to_string())
            .collect();
        let expected = [
            "192.168.1.13",
            "192.168.1.12",
            "fd00:192::12",
            "fd00:192::13",
        ];
        assert_eq!(hops, expected);
        let taken = netlink.route_to("10.244.2.7".parse().unwrap()).unwrap();
        assert_eq!(taken.next_hop, Some("192.168.1.13".parse().unwrap()));
    }

    #[test]
    fn the_kernel_s_own_words_are_told() {
        let (_ns, mut netlink) = underlay();
        let error = netlink
            .add_route(&ours("10.244.2.0/24", "203.0.113.1"))
            .unwrap_err();
        let text = "add route 10.244.2.0/24 via 203.0.113.1 proto 112: \
                    network is unreachable (ENETUNREACH): Nexthop has invalid gateway";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn the_route_to_an_address_is_that_of_its_packets() {
        let (_ns, mut netlink) = underlay();
        netlink
            .add_route(&ours("10.244.2.0/24", "192.168.1.12"))
            .unwrap();
        let route = netlink.route_to("10.244.2.7".parse().unwrap()).unwrap();
        assert_eq!(route.next_hop, Some("192.168.1.12".parse().unwrap()));
        assert!(netlink.route_to("203.0.113.1".parse().unwrap()).is_err());
    }
}
