//! Routes of the main table, or of another, by the protocol number that says who installed them.
//!
//! Add never replaces, replace never adds beside: a route of somebody else for the same destination is met as *exists*
//! and left alone. That is why there is no `ensure_route` here: whether the route there is ours, the caller has observed.
//! Inside a pod, where several networks may each bring a default route, `add_route_beside_others` is meant.

use std::fmt;
use std::net::IpAddr;

use crate::encode::{Attributes, Encoder, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, ip, native32};
use crate::error::Result;
use crate::link::{AF_INET, AF_INET6, family};
use crate::names::Prefix;
use crate::netlink::{Netlink, message, u16_at, u32_at};
use ipnet::IpNet;

/// Attributes (linux/rtnetlink.h).
const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
/// Inside of `RTA_METRICS`.
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
/// `rtm_type`.
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
/// `rtm_scope`.
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
/// `rtm_flags`.
const RTNH_F_ONLINK: u32 = 0x4;
const RTM_F_CLONED: u32 = 0x200;
/// `sizeof(struct rtnexthop)`, and where it has its length and its link.
const NEXT_HOP_HEADER: usize = 8;
const NEXT_HOP_LINK_AT: usize = 4;

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
const MAIN_TABLE: u8 = 254;

/// What matters of `struct rtmsg`, which is before the attributes.
#[derive(Debug, Clone, Copy, Default)]
struct Header {
    family: u8,
    /// The length of the destination's prefix.
    length: u8,
    /// The length of the source's prefix.
    source_length: u8,
    table: u8,
    protocol: u8,
    scope: u8,
    kind: u8,
    flags: u32,
}

impl Header {
    /// A request that begins with it.
    fn request(self, kind: u16) -> Encoder {
        let mut request = Encoder::request(kind);
        request.plain(&[self.family, self.length, self.source_length, 0]);
        request.plain(&[self.table, self.protocol, self.scope, self.kind]);
        request.plain(&self.flags.to_ne_bytes());
        request
    }

    /// Reads it, and gives the attributes behind it.
    fn read(message: &[u8]) -> Option<(Self, Attributes<'_>)> {
        let (header, attributes) = message.split_first_chunk::<12>()?;
        let [
            family,
            length,
            source_length,
            _,
            table,
            protocol,
            scope,
            kind,
            flags @ ..,
        ] = *header;
        let header = Self {
            family,
            length,
            source_length,
            table,
            protocol,
            scope,
            kind,
            flags: u32::from_ne_bytes(flags),
        };
        Some((header, Attributes(attributes)))
    }
}

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
            // The kernel filters by these (strict checking); an older one gives all, hence the second look below.
            let header = Header {
                family: family(any),
                table: MAIN_TABLE,
                protocol: protocol.map_or(0, |wanted| wanted.0),
                ..Header::default()
            };
            let request = header.request(message::GET_ROUTE);
            let wanted = |message: &[u8]| of_main_table(message, (any, protocol));
            let listed = self.dump(request, "list routes", wanted)?;
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
        let route = self.query(route_query(ip), |route| Some(read_route(route)), action)?;
        route.ok_or_else(|| crate::Error::new(action(), rustix::io::Errno::NETUNREACH))
    }

    /// The route that a packet of `from`, which comes in on that link, takes to `ip`, rules of routing policy included.
    ///
    /// # Errors
    /// Unreachable, not let in there (`rp_filter`) or sent nowhere by a rule, or what the kernel answered.
    pub fn route_from(&mut self, (from, link): (IpAddr, u32), ip: IpAddr) -> Result<Route> {
        let action = || format!("find route to {ip} from {from}");
        let header = query_header(ip);
        let mut request = Header {
            source_length: header.length,
            ..header
        }
        .request(message::GET_ROUTE);
        request.ip(RTA_DST, ip);
        request.ip(RTA_SRC, from);
        request.native32(RTA_IIF, link);
        let route = self.query(request, |route| Some(read_route(route)), action)?;
        route.ok_or_else(|| crate::Error::new(action(), rustix::io::Errno::NETUNREACH))
    }

    /// True when packets to `ip` are taken in here.
    ///
    /// # Errors
    /// What the kernel answered, other than that there is no route.
    pub(crate) fn is_local(&mut self, ip: IpAddr) -> Result<bool> {
        let is_local = |route: &[u8]| Some(Header::read(route)?.0.kind == RTN_LOCAL);
        match self.query(route_query(ip), is_local, || format!("find route to {ip}")) {
            Err(error) if error.errno() == rustix::io::Errno::NETUNREACH => Ok(false),
            outcome => outcome,
        }
    }

    /// Adds a route.
    ///
    /// # Errors
    /// Exists: there is a route of that destination, table and metric, whosever it is. Or what the kernel answered.
    pub fn add_route(&mut self, route: &Route) -> Result<()> {
        let request = about(message::NEW_ROUTE, route);
        self.change(request, NLM_F_CREATE | NLM_F_EXCL, || {
            format!("add route {route}")
        })
    }

    /// Adds a route, also where there is one of that destination, table and metric: of IPv4 routes the newest is taken,
    /// those of IPv6 become next hops of one.
    ///
    /// # Errors
    /// Exists: there is that very route. Or what the kernel answered.
    pub fn add_route_beside_others(&mut self, route: &Route) -> Result<()> {
        let request = about(message::NEW_ROUTE, route);
        self.change(request, NLM_F_CREATE, || format!("add route {route}"))
    }

    /// Puts a route in the place of the one with the same destination, table and metric, in one step.
    ///
    /// To be called only when that one is known to be ours.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn replace_route(&mut self, route: &Route) -> Result<()> {
        let request = about(message::NEW_ROUTE, route);
        self.change(request, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("replace route {route}")
        })
    }

    /// Removes the route that agrees in all that is given; that it is not there is fine.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove_route(&mut self, route: &Route) -> Result<()> {
        let request = about(message::DELETE_ROUTE, route);
        match self.change(request, 0, || format!("remove route {route}")) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn route_query(ip: IpAddr) -> Encoder {
    let mut request = query_header(ip).request(message::GET_ROUTE);
    request.ip(RTA_DST, ip);
    request
}

fn query_header(ip: IpAddr) -> Header {
    Header {
        family: family(ip),
        length: if ip.is_ipv4() { 32 } else { 128 },
        ..Header::default()
    }
}

fn about(kind: u16, route: &Route) -> Encoder {
    let options = &route.options;
    let table = options.table.unwrap_or(MAIN_TABLE.into());
    let header = Header {
        family: family(route.dst.addr()),
        length: route.dst.length(),
        source_length: 0,
        // 0 is none; the attribute has it.
        table: u8::try_from(table).unwrap_or(0),
        protocol: route.protocol.0,
        scope: match (options.scope, route.next_hop) {
            (Some(scope), _) => scope,
            (None, None) if route.dst.is_ipv4() => RT_SCOPE_LINK,
            (None, _) => RT_SCOPE_UNIVERSE,
        },
        kind: RTN_UNICAST,
        flags: if options.onlink { RTNH_F_ONLINK } else { 0 },
    };
    let mut request = header.request(kind);
    request.native32(RTA_TABLE, table);
    let dst = Some(route.dst.addr()).filter(|_| !route.dst.is_default());
    let [gateway, source] = [(RTA_GATEWAY, route.next_hop), (RTA_PREFSRC, options.source)];
    for (kind, value) in [(RTA_DST, dst), gateway, source] {
        if let Some(ip) = value {
            request.ip(kind, ip);
        }
    }
    write_numbers(
        &mut request,
        [(RTA_OIF, route.link), (RTA_PRIORITY, options.metric)],
    );
    if options.mtu.is_some() || options.advmss.is_some() {
        request.list(RTA_METRICS, |metrics| {
            write_numbers(
                metrics,
                [(RTAX_MTU, options.mtu), (RTAX_ADVMSS, options.advmss)],
            );
        });
    }
    request
}

/// The routes of a message that are of the family of `any`, of the protocol and in the main table. Asked for IPv6, a kernel
/// without it tells of all families (`rtnl_dump_all`).
fn of_main_table(
    message: &[u8],
    (any, protocol): (IpAddr, Option<RouteProtocol>),
) -> Option<Vec<Route>> {
    let route = read_route(message)?;
    let wanted = protocol.is_none_or(|wanted| route.protocol == wanted)
        && route.dst.is_ipv4() == any.is_ipv4()
        && route.options.table.is_none();
    wanted.then(|| by_next_hop(route, message))
}

fn write_numbers(to: &mut Encoder, numbers: [(u16, Option<u32>); 2]) {
    for (kind, value) in numbers {
        if let Some(number) = value {
            to.native32(kind, number);
        }
    }
}

/// None for what is no unicast route, or cannot be read.
pub(crate) fn read_route(message: &[u8]) -> Option<Route> {
    let (header, attributes) = Header::read(message)?;
    if header.kind != RTN_UNICAST {
        return None;
    }
    let any: IpAddr = match header.family {
        AF_INET => [0; 4].into(),
        AF_INET6 => [0; 16].into(),
        _ => return None,
    };
    let mut dst = any;
    let mut route = Route {
        dst: Prefix::default_route(any),
        next_hop: None,
        link: None,
        protocol: RouteProtocol(header.protocol),
        options: RouteOptions {
            onlink: header.flags & RTNH_F_ONLINK != 0,
            ..RouteOptions::default()
        },
    };
    let options = &mut route.options;
    for (kind, payload) in attributes {
        match kind {
            RTA_PREFSRC => options.source = Some(ip(payload)?),
            RTA_DST => dst = ip(payload)?,
            RTA_GATEWAY => route.next_hop = Some(ip(payload)?),
            RTA_OIF => route.link = Some(native32(payload)?),
            RTA_PRIORITY => options.metric = Some(native32(payload)?),
            RTA_TABLE => options.table = Some(native32(payload)?),
            RTA_METRICS => {
                for (kind, payload) in Attributes(payload) {
                    match kind {
                        RTAX_MTU => options.mtu = Some(native32(payload)?),
                        RTAX_ADVMSS => options.advmss = Some(native32(payload)?),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // What the kernel says of a route that we gave no metric and no table must compare equal to it.
    options.metric = { options.metric }.filter(|metric| dst.is_ipv4() || *metric != IPV6_METRIC);
    options.table = { options.table }.filter(|table| *table != u32::from(MAIN_TABLE));
    // A clone that the kernel made of a route.
    let cloned = header.flags & RTM_F_CLONED != 0;
    let length = match cloned && dst.is_ipv4() {
        true => 32,
        false => header.length,
    };
    route.dst = Prefix::containing(IpNet::new(dst, length).ok()?);
    Some(route)
}

/// The route, or that route through each of its next hops.
pub(crate) fn by_next_hop(route: Route, message: &[u8]) -> Vec<Route> {
    let hops = Header::read(message).and_then(|(_, attributes)| attributes.find(RTA_MULTIPATH));
    let Some(mut rest) = hops else {
        return vec![route];
    };
    let mut routes = Vec::new();
    while let Some((next_hop, link)) = split_next_hop(&mut rest) {
        routes.push(Route {
            next_hop,
            link: Some(link),
            ..route.clone()
        });
    }
    routes
}

/// Splits the first next hop off (`struct rtnexthop` and its attributes): its gateway and its link. None at the end.
fn split_next_hop(rest: &mut &[u8]) -> Option<(Option<IpAddr>, u32)> {
    let length = usize::from(u16_at(rest, 0)?);
    let link = u32_at(rest, NEXT_HOP_LINK_AT)?;
    let attributes = Attributes(rest.get(NEXT_HOP_HEADER..length)?);
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((attributes.find(RTA_GATEWAY).and_then(ip), link))
}

#[cfg(test)]
mod tests;
