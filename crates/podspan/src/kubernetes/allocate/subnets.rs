//! Which subnet a node asks for. Pure.
//!
//! From a place that follows from the node's name, so that many at once ask for different ones, and a node that comes again
//! asks for what it had.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;

use ipnet::IpNet;
use podspan_kernel::Prefix;

use crate::registry::gathered::{family, pod_cidr};

/// The most subnets of a range are two to this: Kubernetes's own allocation has the same limit.
const MOST_BITS: u8 = 16;

/// The cluster's ranges, each with the length of a node's subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranges(Vec<(Prefix, u8)>);

impl Ranges {
    /// `lengths` are the subnets' lengths, one for each range; none is /24 and /64.
    ///
    /// # Errors
    /// What would be right.
    pub fn new(cluster_cidrs: &[Prefix], lengths: Option<&[u8]>) -> Result<Self, String> {
        if let Some(lengths) = lengths
            && lengths.len() != cluster_cidrs.len()
        {
            return Err(
                "must have a length for each of cluster_cidrs, such as [24, 64]".to_owned(),
            );
        }
        let mut ranges = Vec::new();
        for (index, cidr) in cluster_cidrs.iter().enumerate() {
            let usual = if cidr.is_ipv4() { 24 } else { 64 };
            let length = lengths
                .and_then(|lengths| lengths.get(index))
                .copied()
                .unwrap_or(usual);
            let (least, most) = (cidr.length(), cidr.length().saturating_add(MOST_BITS));
            let first = IpNet::new(cidr.addr(), length).map(|net| net.to_string());
            let is_pod_cidr = first.is_ok_and(|net| pod_cidr(&toml::Value::String(net)).is_ok());
            if !(least..=most).contains(&length) || !is_pod_cidr {
                let longest = if cidr.is_ipv4() { 30 } else { 126 };
                return Err(format!(
                    "/{length} does not divide {}; lengths from /{least} to /{} do",
                    cidr.net(),
                    most.min(longest)
                ));
            }
            ranges.push((*cidr, length));
        }
        Ok(Self(ranges))
    }

    /// The families that a node gets a subnet of, in the order of the ranges; true is IPv4.
    pub fn families(&self) -> Vec<bool> {
        let mut families: Vec<bool> = Vec::new();
        for (cidr, _) in &self.0 {
            if !families.contains(&cidr.is_ipv4()) {
                families.push(cidr.is_ipv4());
            }
        }
        families
    }

    /// True for a subnet that a node can be given.
    pub fn has(&self, subnet: Prefix) -> bool {
        let mut ranges = self.0.iter();
        ranges.any(|(cidr, length)| subnet.length() == *length && cidr.holds(subnet.addr()))
    }

    /// A subnet of that family that is not taken: the first behind the node's own place, in the first range that has one.
    pub fn choose(&self, is_ipv4: bool, node: &str, taken: &Taken) -> Option<Prefix> {
        let of_family = self.0.iter().filter(|(cidr, _)| cidr.is_ipv4() == is_ipv4);
        of_family.into_iter().find_map(|(cidr, length)| {
            let count = 1_u64 << length.saturating_sub(cidr.length());
            let mut hasher = DefaultHasher::new();
            node.hash(&mut hasher);
            let begin = hasher.finish() % count;
            let places = (begin..count).chain(0..begin);
            let mut subnets = places.filter_map(|place| nth(*cidr, *length, place));
            subnets.find(|subnet| !taken.overlaps(*subnet))
        })
    }

    /// That there is no subnet left, in words.
    pub fn full(&self, is_ipv4: bool) -> String {
        let of_family = self.0.iter().filter(|(cidr, _)| cidr.is_ipv4() == is_ipv4);
        let ranges: Vec<_> = of_family
            .map(|(cidr, length)| format!("{} (/{length} each)", cidr.net()))
            .collect();
        format!(
            "no free {} subnet in {}; add a range to cluster_cidrs of all agents, or remove Nodes that are gone",
            family(is_ipv4),
            ranges.join(" and ")
        )
    }
}

/// The subnet at that place of the range.
fn nth(cidr: Prefix, length: u8, place: u64) -> Option<Prefix> {
    let (bits, addr) = match cidr.addr() {
        IpAddr::V4(ip) => (32_u8, u128::from(ip.to_bits())),
        IpAddr::V6(ip) => (128, ip.to_bits()),
    };
    let shift = u32::from(bits.checked_sub(length)?);
    let addr = addr | u128::from(place).checked_shl(shift)?;
    let addr: IpAddr = match cidr.addr() {
        IpAddr::V4(_) => std::net::Ipv4Addr::from_bits(u32::try_from(addr).ok()?).into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::from_bits(addr).into(),
    };
    Some(Prefix::containing(IpNet::new(addr, length).ok()?))
}

/// What the Lease of a subnet is named: one name a subnet, whatever way it is written.
pub fn lease_name(subnet: Prefix) -> String {
    let words = match subnet.addr() {
        IpAddr::V4(ip) => ip.octets().map(|octet| octet.to_string()).join("-"),
        IpAddr::V6(ip) => ip
            .segments()
            .map(|segment| format!("{segment:x}"))
            .join("-"),
    };
    format!("podspan-{words}-{}", subnet.length())
}

/// Prefixes that are in use: of those that lie in one another, the widest.
#[derive(Debug)]
pub struct Taken(Vec<Prefix>);

impl Taken {
    /// Of these.
    pub fn new(prefixes: impl Iterator<Item = Prefix>) -> Self {
        let mut sorted: Vec<_> = prefixes.collect();
        // The wider one of the same address first.
        sorted.sort_by_key(|prefix| (prefix.addr(), prefix.length()));
        sorted.dedup_by(|inner, outer| outer.overlaps(*inner));
        Self(sorted)
    }

    /// None of them overlaps another, so only the last one before and the first one behind can overlap this.
    pub fn overlaps(&self, prefix: Prefix) -> bool {
        let behind = self
            .0
            .partition_point(|other| other.addr() <= prefix.addr());
        let before = behind.checked_sub(1).and_then(|index| self.0.get(index));
        let mut near = before.into_iter().chain(self.0.get(behind));
        near.any(|other| other.overlaps(prefix))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn taken(prefixes: &[&str]) -> Taken {
        Taken::new(prefixes.iter().map(|text| prefix(text)))
    }

    #[test]
    fn a_node_asks_for_the_same_subnet_each_time_and_for_the_next_when_it_is_taken() {
        let ranges =
            Ranges::new(&[prefix("10.244.0.0/16"), prefix("fd00:10:244::/48")], None).unwrap();
        assert_eq!(ranges.families(), [true, false]);
        for is_ipv4 in [true, false] {
            let first = ranges.choose(is_ipv4, "node1", &taken(&[])).unwrap();
            assert_eq!(ranges.choose(is_ipv4, "node1", &taken(&[])), Some(first));
            assert_ne!(ranges.choose(is_ipv4, "node2", &taken(&[])), Some(first));
            assert!(ranges.has(first));
            let next = ranges
                .choose(is_ipv4, "node1", &Taken(vec![first]))
                .unwrap();
            assert!(!next.overlaps(first));
        }
    }

    #[test]
    fn all_of_a_range_is_given_and_then_the_next_range() {
        let ranges = Ranges::new(
            &[prefix("10.244.0.0/22"), prefix("10.245.0.0/24")],
            Some(&[24, 26]),
        );
        let ranges = ranges.unwrap();
        let mut given = Vec::new();
        while let Some(subnet) = ranges.choose(true, "n", &Taken::new(given.iter().copied())) {
            assert!(given.iter().all(|other: &Prefix| !other.overlaps(subnet)));
            given.push(subnet);
        }
        assert_eq!(given.len(), 4 + 4);
        assert_eq!(
            ranges.full(true),
            "no free IPv4 subnet in 10.244.0.0/22 (/24 each) and 10.245.0.0/24 (/26 each); add a range to cluster_cidrs of \
             all agents, or remove Nodes that are gone"
        );
    }

    #[test]
    fn lengths_that_do_not_divide_a_range_are_refused() {
        for (cidr, length, fix) in [
            (
                "10.244.0.0/16",
                15,
                "/15 does not divide 10.244.0.0/16; lengths from /16 to /30 do",
            ),
            (
                "10.244.0.0/16",
                31,
                "/31 does not divide 10.244.0.0/16; lengths from /16 to /30 do",
            ),
            (
                "10.0.0.0/8",
                25,
                "/25 does not divide 10.0.0.0/8; lengths from /8 to /24 do",
            ),
            (
                "fd00::/48",
                128,
                "/128 does not divide fd00::/48; lengths from /48 to /64 do",
            ),
        ] {
            assert_eq!(
                Ranges::new(&[prefix(cidr)], Some(&[length])),
                Err(fix.to_owned())
            );
        }
        assert!(Ranges::new(&[prefix("10.244.0.0/16")], Some(&[])).is_err());
    }

    #[test]
    fn a_lease_is_named_after_its_subnet() {
        assert_eq!(lease_name(prefix("10.244.1.0/24")), "podspan-10-244-1-0-24");
        assert_eq!(
            lease_name(prefix("fd00:10:244:1::/64")),
            "podspan-fd00-10-244-1-0-0-0-0-64"
        );
    }

    proptest! {
        #[test]
        fn taken_says_what_asking_each_would(
            nets in prop::collection::vec((0_u32..1 << 12, 20_u8..=32), 0..40), asked in (0_u32..1 << 12, 20_u8..=32),
        ) {
            let net = |(low, length): (u32, u8)| {
                let addr = std::net::Ipv4Addr::from_bits(0x0a00_0000 | low);
                Prefix::containing(IpNet::new(addr.into(), length).unwrap())
            };
            let all: Vec<_> = nets.into_iter().map(net).collect();
            let asked = net(asked);
            let expected = all.iter().any(|other| other.overlaps(asked));
            prop_assert_eq!(Taken::new(all.into_iter()).overlaps(asked), expected);
        }
    }
}
