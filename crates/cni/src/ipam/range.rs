//! The `ipam` block of a netconf, with the keys and rules of host-local: from JSON to a valid [`IpamConfig`].
//!
//! Pure: no I/O. Behind [`IpamConfig::from_json`] nothing checks a range again. A set's addresses have one cyclic order
//! without the reserved ones, and everything here costs the same for a /24 and a /64.
//! Surprising: a gateway may lie outside its subnet, as on an on-link route, but no range may hand out another's gateway.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use podspan_kernel::{Invalid, Prefix};
use serde::Deserialize;
use serde_json::Value;

/// A valid `ipam` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpamConfig {
    /// One address is allocated from each; never empty, no two overlap.
    pub range_sets: Vec<RangeSet>,
    /// Routes for the pod, passed on in the result.
    pub routes: Vec<IpamRoute>,
    /// The file that the result's `dns` is read from.
    pub resolv_conf: Option<PathBuf>,
    /// The directory that has one directory per network.
    pub data_dir: PathBuf,
}

/// Ranges of one family that together serve one address of an attachment; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(pub Vec<Range>);

/// Addresses that may be handed out, inside one subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The subnet; an allocation has its prefix length.
    pub subnet: Prefix,
    /// The first address.
    pub start: IpAddr,
    /// The last address.
    pub end: IpAddr,
    /// The gateway, never handed out.
    pub gateway: IpAddr,
}

/// A route of the `ipam` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpamRoute {
    /// The destination.
    pub dst: Prefix,
    /// The next hop; absent means the allocation's gateway.
    pub gw: Option<IpAddr>,
    /// Path MTU.
    pub mtu: Option<u32>,
    /// Advertised maximal segment size.
    pub advmss: Option<u32>,
    /// Metric.
    pub priority: Option<u32>,
    /// Routing table.
    pub table: Option<u32>,
    /// Scope.
    pub scope: Option<u8>,
}

/// The block as it stands in JSON. Addresses are strings, so that a bad one is refused by its key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Block {
    #[serde(flatten)]
    legacy: RawRange,
    ranges: Option<Vec<Vec<RawRange>>>,
    routes: Option<Vec<RawRoute>>,
    resolv_conf: Option<String>,
    data_dir: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRange {
    subnet: Option<String>,
    range_start: Option<String>,
    range_end: Option<String>,
    gateway: Option<String>,
}

#[derive(Deserialize)]
struct RawRoute {
    dst: String,
    gw: Option<String>,
    mtu: Option<u32>,
    advmss: Option<u32>,
    priority: Option<u32>,
    table: Option<u32>,
    scope: Option<u8>,
}

/// The data directory that an `ipam` block names, however broken the rest of it is: DEL frees with a bad range too.
pub fn data_dir(ipam: &Value, default: &str) -> PathBuf {
    let dir = ipam.get("dataDir").and_then(Value::as_str);
    PathBuf::from(present(dir).unwrap_or(default))
}

impl IpamConfig {
    /// Reads the value of the netconf's `ipam` key; unknown keys are accepted. `default_data_dir` is where allocations are
    /// kept unless `dataDir` says otherwise.
    ///
    /// # Errors
    /// When it breaks a rule of host-local; says which key, which value and what would be right.
    pub fn from_json(ipam: &Value, default_data_dir: &str) -> Result<Self, Invalid> {
        let block = Block::deserialize(ipam).map_err(|err| Invalid(format!("ipam: {err}")))?;
        let data_dir = present(block.data_dir.as_deref()).unwrap_or(default_data_dir);
        let data_dir = PathBuf::from(data_dir);
        if !data_dir.is_absolute() {
            return Err(fault(
                "ipam.dataDir",
                &data_dir.display(),
                "is not absolute",
            ));
        }
        let mut named = Vec::new();
        if present(block.legacy.subnet.as_deref()).is_some() {
            named.push(("ipam".to_owned(), block.legacy.validate("ipam")?));
        }
        let mut range_sets: Vec<RangeSet> = named
            .iter()
            .map(|(_, range)| RangeSet(vec![*range]))
            .collect();
        for (i, raw_set) in block.ranges.unwrap_or_default().iter().enumerate() {
            let mut set = Vec::new();
            for (j, raw) in raw_set.iter().enumerate() {
                let key = format!("ipam.ranges[{i}][{j}]");
                let range = raw.validate(&key)?;
                set.push(range);
                named.push((key, range));
            }
            range_sets.push(RangeSet::validate(set, &format!("ipam.ranges[{i}]"))?);
        }
        if range_sets.is_empty() {
            return Err(Invalid(
                "ipam.ranges: there is no range; give one, such as [[{\"subnet\": \"10.244.1.0/24\"}]]".to_owned(),
            ));
        }
        refuse_conflicts(&named)?;
        let routes = block.routes.unwrap_or_default();
        let routes = routes.iter().enumerate().map(|(i, raw)| raw.validate(i));
        Ok(Self {
            range_sets,
            routes: routes.collect::<Result<_, _>>()?,
            resolv_conf: present(block.resolv_conf.as_deref()).map(PathBuf::from),
            data_dir,
        })
    }
}

/// `ipam.ranges[0][1].rangeStart: 10.1.2.3 is not in subnet 10.244.1.0/24`.
fn fault(key: &str, value: &dyn fmt::Display, what: &str) -> Invalid {
    Invalid(format!("{key}: {value} {what}"))
}

/// An empty string is an absent key, as it is for host-local.
fn present(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

/// The address in `text`, if there is one. `::ffff:10.0.0.1` is 10.0.0.1, as it is for host-local.
fn address(key: &str, text: Option<&str>) -> Result<Option<IpAddr>, Invalid> {
    let Some(text) = present(text) else {
        return Ok(None);
    };
    let parsed: Result<IpAddr, _> = text.parse();
    parsed.map(|ip| Some(ip.to_canonical())).map_err(|_| {
        fault(
            key,
            &format!("{text:?}"),
            "is not an IP address, such as 10.244.1.7",
        )
    })
}

/// No address may be served by two ranges, and nobody's gateway may be served at all.
fn refuse_conflicts(named: &[(String, Range)]) -> Result<(), Invalid> {
    for (i, (key, range)) in named.iter().enumerate() {
        for (other_key, other) in named.iter().take(i) {
            if range.start <= other.end && other.start <= range.end {
                let what = format!("overlaps {other_key} ({})", other.bounds());
                return Err(fault(key, &range.bounds(), &what));
            }
        }
        if let Some((other_key, _)) = named
            .iter()
            .find(|(_, other)| other.hands_out(range.gateway))
        {
            let what = format!("is handed out by {other_key}; leave it out of that range");
            return Err(fault(&format!("{key}.gateway"), &range.gateway, &what));
        }
    }
    Ok(())
}

impl RawRange {
    fn validate(&self, key: &str) -> Result<Range, Invalid> {
        let subnet_key = format!("{key}.subnet");
        let text = present(self.subnet.as_deref()).ok_or_else(|| {
            Invalid(format!(
                "{subnet_key}: is absent; give one, such as 10.244.1.0/24"
            ))
        })?;
        let subnet: Prefix = text
            .parse()
            .map_err(|Invalid(why)| Invalid(format!("{subnet_key}: {why}")))?;
        let (net, widest) = (subnet.net(), subnet.net().max_prefix_len() - 2);
        let first = subnet.first_host().filter(|_| subnet.length() <= widest);
        let first = first.ok_or_else(|| {
            fault(
                &subnet_key,
                &net,
                &format!("is too small; /{widest} is the smallest with addresses to give"),
            )
        })?;
        let last = last_host(subnet);
        let bound = |name: &str, text: Option<&str>, default: IpAddr| -> Result<IpAddr, Invalid> {
            let key = format!("{key}.{name}");
            match address(&key, text)? {
                Some(ip) if !subnet.holds(ip) => {
                    Err(fault(&key, &ip, &format!("is not in subnet {net}")))
                }
                given => Ok(given.unwrap_or(default)),
            }
        };
        let start = bound("rangeStart", self.range_start.as_deref(), first)?;
        let end = bound("rangeEnd", self.range_end.as_deref(), last)?;
        if end < start {
            let what = format!("is before the start of the range, {start}");
            return Err(fault(&format!("{key}.rangeEnd"), &end, &what));
        }
        let gateway_key = format!("{key}.gateway");
        let gateway = address(&gateway_key, self.gateway.as_deref())?.unwrap_or(first);
        if gateway.is_ipv4() != subnet.is_ipv4() {
            return Err(fault(
                &gateway_key,
                &gateway,
                &format!("is not of the family of subnet {net}"),
            ));
        }
        let range = Range {
            subnet,
            start,
            end,
            gateway,
        };
        if range.first_from(start).is_none() {
            return Err(fault(
                key,
                &range.bounds(),
                "has only reserved addresses; widen it",
            ));
        }
        Ok(range)
    }
}

impl RawRoute {
    fn validate(&self, index: usize) -> Result<IpamRoute, Invalid> {
        let key = format!("ipam.routes[{index}]");
        let dst: Prefix = self
            .dst
            .parse()
            .map_err(|Invalid(why)| Invalid(format!("{key}.dst: {why}")))?;
        let gw_key = format!("{key}.gw");
        let gw = address(&gw_key, self.gw.as_deref())?;
        if let Some(gw) = gw.filter(|gw| gw.is_ipv4() != dst.is_ipv4()) {
            return Err(fault(
                &gw_key,
                &gw,
                &format!("is not of the family of {}", dst.net()),
            ));
        }
        Ok(IpamRoute {
            dst,
            gw,
            mtu: self.mtu,
            advmss: self.advmss,
            priority: self.priority,
            table: self.table,
            scope: self.scope,
        })
    }
}

impl Range {
    /// True for an address that this range may give to an attachment: inside, and not reserved.
    pub fn hands_out(&self, ip: IpAddr) -> bool {
        self.start <= ip && ip <= self.end && self.reserved().all(|reserved| reserved != ip)
    }

    /// The network's address, its broadcast address (IPv4 only) and the gateway, each once.
    fn reserved(&self) -> impl Iterator<Item = IpAddr> {
        let network = self.subnet.addr();
        let broadcast = Some(self.subnet.net().broadcast()).filter(IpAddr::is_ipv4);
        let gateway =
            Some(self.gateway).filter(|&gateway| gateway != network && Some(gateway) != broadcast);
        std::iter::once(network).chain(broadcast).chain(gateway)
    }

    /// The first address at or after `ip` that is handed out. At most three steps: so many are reserved.
    fn first_from(&self, ip: IpAddr) -> Option<IpAddr> {
        let mut candidate = Some(ip).filter(|&ip| ip <= self.end);
        while let Some(ip) = candidate {
            if self.hands_out(ip) {
                return Some(ip);
            }
            candidate = successor(ip).filter(|&next| next <= self.end);
        }
        None
    }

    /// How many addresses are handed out below `ip`, which lies inside.
    fn count_below(&self, ip: IpAddr) -> u128 {
        let reserved = self.reserved().filter(|&r| self.start <= r && r < ip);
        (bits(ip) - bits(self.start)).saturating_sub(reserved.count() as u128)
    }

    fn total(&self) -> u128 {
        self.count_below(self.end)
            .saturating_add(u128::from(self.hands_out(self.end)))
    }

    fn bounds(&self) -> String {
        format!("{}-{}", self.start, self.end)
    }
}

/// `10.244.1.0/24 10.244.1.1-10.244.1.254 gateway 10.244.1.1`: everything that decides what is handed out.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} gateway {}",
            self.subnet.net(),
            self.bounds(),
            self.gateway
        )
    }
}

impl RangeSet {
    fn validate(ranges: Vec<Range>, key: &str) -> Result<Self, Invalid> {
        let Some(first) = ranges.first() else {
            return Err(Invalid(format!(
                "{key}: the set is empty; give a range, such as {{\"subnet\": \"10.244.1.0/24\"}}"
            )));
        };
        let stranger = ranges
            .iter()
            .position(|range| range.subnet.is_ipv4() != first.subnet.is_ipv4());
        match stranger.and_then(|j| ranges.get(j).map(|range| (j, range))) {
            None => Ok(Self(ranges)),
            Some((j, range)) => {
                let what = format!(
                    "is not of the family of {}; give each family a set of its own",
                    first.subnet.net()
                );
                Err(fault(
                    &format!("{key}[{j}].subnet"),
                    &range.subnet.net(),
                    &what,
                ))
            }
        }
    }

    /// The range that hands out `ip`.
    pub fn range_of(&self, ip: IpAddr) -> Option<&Range> {
        self.0.iter().find(|range| range.hands_out(ip))
    }

    /// How many addresses the set hands out.
    pub fn total(&self) -> u128 {
        self.0
            .iter()
            .fold(0, |sum, range| sum.saturating_add(range.total()))
    }

    /// The first address of the order.
    pub(super) fn first(&self) -> Option<IpAddr> {
        self.0
            .iter()
            .find_map(|range| range.first_from(range.start))
    }

    /// The address after `ip`, and after the last one the first. None when `ip` lies in no range of the set.
    pub(super) fn after(&self, ip: IpAddr) -> Option<IpAddr> {
        let inside = |range: &Range| range.start <= ip && ip <= range.end;
        let mut rest = self.0.iter().skip_while(|range| !inside(range));
        let here = rest.next()?;
        let following = || rest.find_map(|range| range.first_from(range.start));
        successor(ip)
            .and_then(|next| here.first_from(next))
            .or_else(following)
            .or_else(|| self.first())
    }
}

/// `10.244.1.1-10.244.1.254, 10.244.3.10-10.244.3.20`.
impl fmt::Display for RangeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds: Vec<String> = self.0.iter().map(Range::bounds).collect();
        f.write_str(&bounds.join(", "))
    }
}

/// The last address that is not the broadcast address; IPv6 has none of those.
fn last_host(subnet: Prefix) -> IpAddr {
    match subnet.net().broadcast() {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().saturating_sub(1)).into(),
        ip @ IpAddr::V6(_) => ip,
    }
}

/// The address as a number; meaningful only within one family.
fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address after `ip`; none after the last of the family.
fn successor(ip: IpAddr) -> Option<IpAddr> {
    Some(match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().checked_add(1)?).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().checked_add(1)?).into(),
    })
}

#[cfg(test)]
mod tests;
