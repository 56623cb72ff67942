//! Sets of address ranges, in thousands: packed when they are written, compact when they are read.
//!
//! A surprise: the kernel refuses a range that overlaps another one of the set, and does not join neighbours. Of a set that
//! holds something else, [`Nft::list_ranges`] says so and gives nothing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rustix::io::Errno;

use super::Nft;
use super::element::{Element, read_keys};
use super::set::Set;
use crate::encode::Attributes;
use crate::error::Result;
use crate::names::Prefix;
use crate::netlink::{DUMP_TRIES, Refusal};

/// Addresses of one family, from the first to the last, which belongs to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// The first address.
    pub fn first(self) -> IpAddr {
        self.first
    }

    /// The last address.
    pub fn last(self) -> IpAddr {
        self.last
    }

    /// True for IPv4.
    pub fn is_ipv4(self) -> bool {
        self.first.is_ipv4()
    }

    /// True when some address lies in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    /// True when all of `other` lies in it.
    pub fn covers(self, other: Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.first && other.last <= self.last
    }

    pub(super) fn element(self) -> Element {
        Element::new([self.first.into()]).through([self.last.into()])
    }

    /// The length of the prefix that it is, if it is one.
    fn prefix_length(self) -> Option<u8> {
        let (first, last, bits) = (bits(self.first), bits(self.last), width(self.first));
        let hosts = first ^ last;
        let is_prefix = hosts & hosts.wrapping_add(1) == 0 && first & hosts == 0;
        let length = bits.checked_sub(u128::BITS - hosts.leading_zeros())?;
        is_prefix.then_some(u8::try_from(length).ok()?)
    }
}

impl From<Prefix> for AddressRange {
    fn from(prefix: Prefix) -> Self {
        let net = prefix.net();
        Self {
            first: net.network(),
            last: net.broadcast(),
        }
    }
}

impl From<IpAddr> for AddressRange {
    fn from(ip: IpAddr) -> Self {
        Self {
            first: ip,
            last: ip,
        }
    }
}

impl fmt::Display for AddressRange {
    /// As `nft` writes it: an address, a prefix, or the first address and the last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        let net = self
            .prefix_length()
            .and_then(|length| IpNet::new(*first, length).ok());
        match net {
            _ if first == last => first.fmt(f),
            Some(net) => net.fmt(f),
            None => write!(f, "{first}-{last}"),
        }
    }
}

impl Nft {
    /// All ranges of a set of addresses that may be ranges, sorted; those of a set that is not there are none.
    ///
    /// # Errors
    /// EBADMSG when the keys of the set are no addresses; EINTR when commits never let a dump finish; what the kernel
    /// answered.
    pub fn list_ranges(&mut self, set: &Set<'_>) -> Result<Vec<AddressRange>> {
        let error = |refusal: Refusal| refusal.into_error(format!("list ranges of {set}"));
        let read = |attributes: Attributes<'_>| {
            let keys = read_keys(attributes);
            keys.map(|key| key.and_then(Edge::read)).collect()
        };
        for _ in 0..DUMP_TRIES {
            let stored = match self.walk(set, read) {
                Ok(stored) => stored,
                Err(refusal) if refusal.errno == Errno::NOENT => return Ok(Vec::new()),
                Err(refusal) => return Err(error(refusal)),
            };
            let mut stored = stored.ok_or_else(|| error(Errno::BADMSG.into()))?;
            stored.sort_unstable();
            let len = stored.len();
            stored.dedup();
            // The tree was walked again from its beginning; see [`Self::list_elements`].
            if stored.len() == len {
                return Ok(join(&stored));
            }
        }
        Err(error(Errno::INTR.into()))
    }
}

/// An element as the kernel stores it. Where one range ends and the next begins, the end comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    ip: IpAddr,
    begins: bool,
}

impl Edge {
    fn read((key, ends): (&[u8], bool)) -> Option<Self> {
        let ip = match key.len() {
            4 => IpAddr::from(<[u8; 4]>::try_from(key).ok()?),
            16 => IpAddr::from(<[u8; 16]>::try_from(key).ok()?),
            _ => return None,
        };
        Some(Self { ip, begins: !ends })
    }
}

/// Ranges out of their sorted edges. One without an end goes to the last address of all.
fn join(edges: &[Edge]) -> Vec<AddressRange> {
    let mut ranges: Vec<AddressRange> = Vec::with_capacity(edges.len() / 2 + 1);
    for edge in edges {
        match (edge.begins, ranges.last_mut()) {
            (true, _) => ranges.push(AddressRange {
                first: edge.ip,
                last: address(edge.ip, u128::MAX),
            }),
            (false, Some(open)) => open.last = address(edge.ip, bits(edge.ip).wrapping_sub(1)),
            (false, None) => {}
        }
    }
    ranges
}

fn width(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address of the family of `like` with these bits, the lowest of them.
fn address(like: IpAddr, bits: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from_bits(bits).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Family, Set, Table, Type};
    use super::*;
    use crate::testing::TestNs;

    const TABLE: Table<'static> = Table {
        family: Family::Inet,
        name: "ranges",
    };
    const SETS: [Set<'static>; 2] = [
        Set::of(TABLE, "r4", &[Type::Ipv4]).with_intervals(),
        Set::of(TABLE, "r6", &[Type::Ipv6]).with_intervals(),
    ];

    fn range(text: &str) -> AddressRange {
        match text.split_once('-') {
            Some((first, last)) => AddressRange {
                first: first.parse().unwrap(),
                last: last.parse().unwrap(),
            },
            None => match text.parse::<IpAddr>() {
                Ok(ip) => ip.into(),
                Err(_) => text.parse::<Prefix>().unwrap().into(),
            },
        }
    }

    fn listed(set: &Set<'_>) -> Vec<String> {
        let ranges = Nft::open().unwrap().list_ranges(set).unwrap();
        ranges.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_range_is_printed_as_nft_writes_it() {
        for text in [
            "10.0.0.1",
            "10.0.0.0/24",
            "0.0.0.0/0",
            "::/0",
            "fd00::/64",
            "10.0.0.1-10.0.0.9",
            "10.0.0.1-10.0.0.2",
            "fd00::1-fd00::2",
            "255.255.255.255",
        ] {
            assert_eq!(range(text).to_string(), text);
        }
        assert!(range("10.0.0.0/8").overlaps(range("10.9.9.9-11.0.0.0")));
        assert!(range("10.0.0.0/8").covers(range("10.9.9.9")));
        assert!(!range("0.0.0.0/0").covers(range("::")));
        assert!(!range("10.0.0.0/24").overlaps(range("10.0.1.0/24")));
    }

    #[test]
    fn what_is_added_is_listed_neighbours_and_the_last_address_included() {
        let _ns = TestNs::new();
        let mut nft = Nft::open().unwrap();
        assert_eq!(nft.list_ranges(&SETS[0]).unwrap(), [], "no table at all");
        let expected: [&[&str]; 2] = [
            &[
                "10.0.0.0/24",
                "10.0.1.0/24",
                "10.0.2.7",
                "10.9.0.1-10.9.0.9",
                "224.0.0.0/3",
            ],
            &["fd00::/64", "fd00:0:0:1::/64", "ff00::/8"],
        ];
        let mut batch = Batch::new();
        batch.add_table(TABLE);
        for (set, ranges) in SETS.iter().zip(expected) {
            batch.add_set(set);
            let ranges: Vec<_> = ranges.iter().map(|text| range(text)).collect();
            batch.add_ranges(set, &ranges);
        }
        nft.commit(batch).unwrap();
        for (set, ranges) in SETS.iter().zip(expected) {
            assert_eq!(listed(set), ranges);
        }
        let mut batch = Batch::new();
        batch.delete_ranges(&SETS[0], &[range("10.0.0.0/24"), range("224.0.0.0/3")]);
        // A wider one in its place, and the other way round, in one transaction.
        batch.delete_ranges(&SETS[0], &[range("10.9.0.1-10.9.0.9")]);
        batch.add_ranges(&SETS[0], &[range("10.9.0.0/16")]);
        nft.commit(batch).unwrap();
        assert_eq!(listed(&SETS[0]), ["10.0.1.0/24", "10.0.2.7", "10.9.0.0/16"]);
        let mut batch = Batch::new();
        batch.delete_ranges(&SETS[0], &[range("10.9.0.0/16")]);
        batch.add_ranges(&SETS[0], &[range("10.9.1.0/24"), range("10.9.3.0/24")]);
        nft.commit(batch).unwrap();
        assert_eq!(
            listed(&SETS[0]),
            ["10.0.1.0/24", "10.0.2.7", "10.9.1.0/24", "10.9.3.0/24"]
        );
        let mut batch = Batch::new();
        batch.add_ranges(&SETS[0], &[range("10.8.0.0/24"), range("10.9.0.0/16")]);
        let error = nft.commit(batch).unwrap_err().to_string();
        assert!(
            error.starts_with("add element 10.8.0.0-10.8.0.255 to set inet ranges r4 and 1 more: "),
            "{error}"
        );
        assert_eq!(listed(&SETS[0]).len(), 4, "all or nothing");
    }

    #[test]
    fn ten_thousand_ranges_are_one_transaction() {
        let _ns = TestNs::new();
        let ranges: Vec<AddressRange> = (0..10_000_u32)
            .map(|n| range(&format!("10.{}.{}.0/24", n >> 8, n & 255)))
            .collect();
        let mut batch = Batch::new();
        batch.add_table(TABLE);
        batch.add_set(&SETS[0]);
        batch.add_ranges(&SETS[0], &ranges);
        let mut nft = Nft::open().unwrap();
        nft.commit(batch).unwrap();
        assert_eq!(nft.list_ranges(&SETS[0]).unwrap(), ranges);
    }
}
