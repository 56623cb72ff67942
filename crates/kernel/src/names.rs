//! Names and numbers that can only be built valid: [`IfName`], [`Mac`], [`Prefix`].
//!
//! Everything that enters the program is parsed into one of these at the edge, so that no room behind it checks again.
//! `Display` prints what `ip` would print. An interface's own address with its prefix length (10.244.1.1/24) is an
//! [`ipnet::IpNet`]; a [`Prefix`] is a destination and never has host bits.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// A value that is not what its type allows; says what it is and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid(pub String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// The name of a network interface: 1 to 15 bytes, not `.` or `..`, no `/`, `:` or white space
/// (`dev_valid_name` in the kernel's `net/core/dev.c`; CNI rule T4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IfName {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        let forbidden = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
        let fault = match name {
            "" => "is empty",
            "." | ".." => "is a directory",
            _ if name.len() > 15 => "is longer than 15 bytes",
            _ if name.contains(forbidden) => "holds '/', ':' or white space",
            _ => return Ok(Self(name.to_owned())),
        };
        Err(Invalid(format!("interface name {name:?} {fault}")))
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The MAC address that belongs to `ip` and to nothing else on its bridge.
    ///
    /// An address handed out again therefore comes with the same MAC, and no stale neighbour entry can exist for it.
    /// IPv4: `0a:58` and the four bytes. IPv6: `0a:59` and the low 32 bits, mixed with the bits above them; inside one
    /// /96 no two addresses share one. Both prefixes are locally administered unicast (IEEE 802, U/L bit).
    pub fn of_ip(ip: IpAddr) -> Self {
        let (family, tail) = match ip {
            IpAddr::V4(ip) => (0x58, ip.to_bits()),
            IpAddr::V6(ip) => {
                let bits = ip.to_bits();
                let above = (bits >> 32) as u64 ^ (bits >> 96) as u64;
                (
                    0x59,
                    bits as u32 ^ (above.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32,
                )
            }
        };
        let [a, b, c, d] = tail.to_be_bytes();
        Self([0x0a, family, a, b, c, d])
    }

    /// A MAC address for what has no IP address: `0a:5a` and 32 bits of a hash of the texts.
    pub fn of_text(parts: &[&str]) -> Self {
        let [_, _, _, _, a, b, c, d] = hash(parts).to_be_bytes();
        Self([0x0a, 0x5a, a, b, c, d])
    }

    /// The link-local address that the kernel gives a link of that MAC address by itself: fe80::/64 and the MAC address as
    /// an interface identifier (RFC 4291, appendix A).
    pub fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let [high, low] = [[a ^ 2, b, c, 0xff], [0xfe, d, e, f]].map(u32::from_be_bytes);
        Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(high) << 32 | u128::from(low))
    }
}

/// A hash of the texts one behind the other: 64-bit FNV-1a (RFC 9923). The same on every machine and in every version.
pub fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl FromStr for Mac {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let invalid = || {
            Invalid(format!(
                "MAC address {text:?} is not six hexadecimal bytes, such as 0a:58:0a:f4:01:02"
            ))
        };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2)
                .ok_or_else(invalid)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() {
            Err(invalid())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A destination: a network address and its length, without host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

impl Prefix {
    /// The prefix that `address` with its length lies in: 10.244.1.7/24 gives 10.244.1.0/24.
    pub fn containing(address: IpNet) -> Self {
        Self(address.trunc())
    }

    /// `0.0.0.0/0` or `::/0`, of the family of `like`.
    pub fn default_route(like: IpAddr) -> Self {
        let any: IpAddr = match like {
            IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        Self(IpNet::new_assert(any, 0))
    }

    /// As a network type with all its arithmetic.
    pub fn net(self) -> IpNet {
        self.0
    }

    /// The network's address.
    pub fn addr(self) -> IpAddr {
        self.0.addr()
    }

    /// The length in bits.
    pub fn length(self) -> u8 {
        self.0.prefix_len()
    }

    /// True for `0.0.0.0/0` and `::/0`, which hold every address of their family.
    pub fn is_default(self) -> bool {
        self.length() == 0
    }

    /// True for IPv4.
    pub fn is_ipv4(self) -> bool {
        self.addr().is_ipv4()
    }

    /// True when `ip` lies in it.
    pub fn holds(self, ip: IpAddr) -> bool {
        self.0.contains(&ip)
    }

    /// True when some address lies in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.0.contains(&other.addr()) || other.0.contains(&self.addr())
    }

    /// The first address after the network's own: 10.244.1.0/24 gives 10.244.1.1. None where there is none (/32, /128).
    pub fn first_host(self) -> Option<IpAddr> {
        let first: IpAddr = match self.addr() {
            IpAddr::V4(ip) => ip
                .to_bits()
                .checked_add(1)
                .map(std::net::Ipv4Addr::from_bits)?
                .into(),
            IpAddr::V6(ip) => ip
                .to_bits()
                .checked_add(1)
                .map(std::net::Ipv6Addr::from_bits)?
                .into(),
        };
        self.holds(first).then_some(first)
    }
}

impl FromStr for Prefix {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let net: IpNet = text.parse().map_err(|_| {
            Invalid(format!(
                "{text:?} is not a prefix, such as 10.244.1.0/24 or fd00:10:244:1::/64"
            ))
        })?;
        if net != net.trunc() {
            return Err(Invalid(format!(
                "prefix {text} has host bits set; its network is {}",
                net.trunc()
            )));
        }
        Ok(Self(net))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_default() && self.is_ipv4() {
            return f.write_str("default");
        }
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_is_the_kernel_s() {
        let mac = Mac([0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x02]);
        assert_eq!(mac.link_local().to_string(), "fe80::858:aff:fef4:102");
    }

    #[test]
    fn interface_names_are_those_of_the_kernel() {
        for good in ["eth0", "a", "fifteen-bytes-x", "pod0123456789ab"] {
            assert_eq!(
                good.parse::<IfName>().map(|n| n.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in [
            "",
            ".",
            "..",
            "sixteen-bytes-xx",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
        ] {
            assert!(bad.parse::<IfName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn mac_follows_the_address() {
        assert_eq!(
            Mac::of_ip("10.244.1.2".parse().unwrap()).to_string(),
            "0a:58:0a:f4:01:02"
        );
        let v6: Vec<Mac> = (2..500u128)
            .map(|i| Mac::of_ip(IpAddr::from((0xfd00_u128 << 112 | i).to_be_bytes())))
            .collect();
        let distinct: std::collections::BTreeSet<_> = v6.iter().collect();
        assert_eq!(distinct.len(), v6.len());
        assert!(
            v6.iter().all(|mac| mac.0[0] & 3 == 2),
            "locally administered, unicast"
        );
        let text = v6[7].to_string();
        assert_eq!(text.parse(), Ok(v6[7]));
        assert!("0a:58:0a:f4:01".parse::<Mac>().is_err());
    }

    #[test]
    fn prefix_refuses_host_bits_and_says_what_would_be_right() {
        assert_eq!(
            "10.244.1.1/24".parse::<Prefix>().unwrap_err().to_string(),
            "prefix 10.244.1.1/24 has host bits set; its network is 10.244.1.0/24"
        );
        let prefix: Prefix = "fd00:10:244:1::/64".parse().unwrap();
        assert_eq!(
            prefix.first_host(),
            Some("fd00:10:244:1::1".parse().unwrap())
        );
        assert_eq!("192.0.2.1/32".parse::<Prefix>().unwrap().first_host(), None);
        assert!(prefix.overlaps("fd00:10:244::/48".parse().unwrap()));
        assert!(!prefix.overlaps("fd00:10:244:2::/64".parse().unwrap()));
    }
}
