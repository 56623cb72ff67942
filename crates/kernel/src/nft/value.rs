//! Values and their types: what the fields of keys and of packets are, and how a concatenation lies in registers.
//!
//! A concatenation pads each of its fields to 32 bits; a single field is not padded. The type numbers are for `nft` only:
//! the kernel knows lengths, and takes a value of a wrong type with the right length.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::names::IfName;

/// `TYPE_BITS` of `nft`: how far the number of a concatenation's type is moved for each further field.
const TYPE_BITS: u32 = 6;
/// `NFT_REG32_SIZE` (linux/netfilter/nf_tables.h): bytes of a register.
pub(super) const REGISTER: usize = 4;

/// What a field of a key, or of a map's data, is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// `ipv4_addr`.
    Ipv4,
    /// `ipv6_addr`.
    Ipv6,
    /// `ether_type`.
    EtherType,
    /// `inet_proto`: a transport protocol.
    Protocol,
    /// `inet_service`: a port.
    Port,
    /// `icmpv6_type`.
    Icmp6Type,
    /// `mark`.
    Mark,
    /// `iface_index`.
    IfIndex,
    /// `ifname`.
    IfName,
}

impl Type {
    /// The number that `nft` knows it by (its `enum datatypes`), and the length in bytes.
    fn number_and_length(self) -> (u32, usize) {
        match self {
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
            Self::EtherType => (10, 2),
            Self::Protocol => (12, 1),
            Self::Port => (13, 2),
            Self::Icmp6Type => (29, 1),
            Self::Mark => (19, 4),
            Self::IfIndex => (20, 4),
            Self::IfName => (41, 16),
        }
    }

    /// Its length in bytes.
    pub(super) fn length(self) -> usize {
        self.number_and_length().1
    }

    /// `BYTEORDER_HOST_ENDIAN` or `BYTEORDER_BIG_ENDIAN` of `nft`.
    pub(super) fn byte_order(self) -> u32 {
        match self {
            Self::Mark | Self::IfIndex | Self::IfName => 1,
            _ => 2,
        }
    }

    /// A value of this type out of its text, as [`Value`] prints it, with or without quotes; none for the text of something
    /// else.
    pub fn parse(self, text: &str) -> Option<Value> {
        Some(match self {
            Self::Ipv4 => Value::Ipv4(text.parse().ok()?),
            Self::Ipv6 => Value::Ipv6(text.parse().ok()?),
            Self::EtherType => Value::EtherType(text.parse().ok()?),
            Self::Protocol => match text {
                "tcp" => Value::TCP,
                "udp" => Value::UDP,
                "sctp" => Value::SCTP,
                number => Value::Protocol(number.parse().ok()?),
            },
            Self::Port => Value::Port(text.parse().ok()?),
            Self::Icmp6Type => Value::Icmp6Type(text.parse().ok()?),
            Self::Mark => {
                let digits = text.strip_prefix("0x")?;
                Value::Mark(u32::from_str_radix(digits, 16).ok()?)
            }
            Self::IfIndex => Value::IfIndex(text.parse().ok()?),
            Self::IfName => Value::IfName(text.trim_matches('"').parse().ok()?),
        })
    }

    fn read(self, bytes: &[u8]) -> Option<Value> {
        Some(match self {
            Self::Ipv4 => Value::Ipv4(<[u8; 4]>::try_from(bytes).ok()?.into()),
            Self::Ipv6 => Value::Ipv6(<[u8; 16]>::try_from(bytes).ok()?.into()),
            Self::EtherType => Value::EtherType(u16::from_be_bytes(bytes.try_into().ok()?)),
            Self::Protocol => Value::Protocol(*bytes.first()?),
            Self::Port => Value::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
            Self::Icmp6Type => Value::Icmp6Type(*bytes.first()?),
            Self::Mark => Value::Mark(u32::from_ne_bytes(bytes.try_into().ok()?)),
            Self::IfIndex => Value::IfIndex(u32::from_ne_bytes(bytes.try_into().ok()?)),
            Self::IfName => {
                let name = bytes.split(|byte| *byte == 0).next()?;
                Value::IfName(std::str::from_utf8(name).ok()?.parse().ok()?)
            }
        })
    }
}

/// A value of one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// An IPv4 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6(Ipv6Addr),
    /// An Ethernet protocol (`ETH_P_*`, linux/if_ether.h).
    EtherType(u16),
    /// A transport protocol (`IPPROTO_*`, linux/in.h).
    Protocol(u8),
    /// A port.
    Port(u16),
    /// A type of an ICMPv6 message.
    Icmp6Type(u8),
    /// A packet's mark.
    Mark(u32),
    /// The number of an interface.
    IfIndex(u32),
    /// The name of an interface.
    IfName(IfName),
}

impl Value {
    /// Transport protocol TCP.
    pub const TCP: Self = Self::Protocol(6);
    /// Transport protocol UDP.
    pub const UDP: Self = Self::Protocol(17);
    /// Transport protocol SCTP.
    pub const SCTP: Self = Self::Protocol(132);

    /// As a packet or a register holds it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Ipv4(ip) => ip.octets().to_vec(),
            Self::Ipv6(ip) => ip.octets().to_vec(),
            Self::EtherType(number) | Self::Port(number) => number.to_be_bytes().to_vec(),
            Self::Protocol(number) | Self::Icmp6Type(number) => vec![*number],
            Self::Mark(number) | Self::IfIndex(number) => number.to_ne_bytes().to_vec(),
            Self::IfName(name) => {
                let mut bytes = name.as_str().as_bytes().to_vec();
                bytes.resize(Type::IfName.length(), 0);
                bytes
            }
        }
    }
}

impl From<IpAddr> for Value {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::Ipv4(ip),
            IpAddr::V6(ip) => Self::Ipv6(ip),
        }
    }
}

impl From<Ipv4Addr> for Value {
    fn from(ip: Ipv4Addr) -> Self {
        Self::Ipv4(ip)
    }
}

impl From<Ipv6Addr> for Value {
    fn from(ip: Ipv6Addr) -> Self {
        Self::Ipv6(ip)
    }
}

impl From<&IfName> for Value {
    fn from(name: &IfName) -> Self {
        Self::IfName(name.clone())
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4(ip) => ip.fmt(f),
            Self::Ipv6(ip) => ip.fmt(f),
            Self::EtherType(number) | Self::Port(number) => number.fmt(f),
            Self::Protocol(6) => f.write_str("tcp"),
            Self::Protocol(17) => f.write_str("udp"),
            Self::Protocol(132) => f.write_str("sctp"),
            Self::Protocol(number) | Self::Icmp6Type(number) => number.fmt(f),
            Self::Mark(number) => write!(f, "{number:#x}"),
            Self::IfIndex(number) => number.fmt(f),
            Self::IfName(name) => write!(f, "\"{name}\""),
        }
    }
}

/// The number of a type, or of a concatenation of types, as `nft` counts them.
pub(super) fn type_number(types: &[Type]) -> u32 {
    types.iter().fold(0, |number, field| {
        number << TYPE_BITS | field.number_and_length().0
    })
}

/// The length in bytes of a value of these types.
pub(super) fn total_length(types: &[Type]) -> usize {
    match types {
        [only] => only.length(),
        fields => fields.iter().map(|field| padded(field.length())).sum(),
    }
}

/// Values as one key, or as the data of a map.
pub(super) fn concatenate(values: &[Value]) -> Vec<u8> {
    let [only] = values else {
        let mut bytes = Vec::new();
        for value in values {
            bytes.extend(value.bytes());
            bytes.resize(padded(bytes.len()), 0);
        }
        return bytes;
    };
    only.bytes()
}

/// The values of these types that `bytes` hold; none when they are something else.
pub(super) fn read_values(types: &[Type], mut bytes: &[u8]) -> Option<Vec<Value>> {
    types
        .iter()
        .map(|field| {
            let value = field.read(bytes.get(..field.length())?)?;
            bytes = bytes.get(padded(field.length())..).unwrap_or_default();
            Some(value)
        })
        .collect()
}

/// A length as it fills registers.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(REGISTER)
}

/// Values as `nft` writes a concatenation: `tcp . 8080`.
pub(super) fn text(values: &[Value]) -> String {
    let texts: Vec<_> = values.iter().map(Value::to_string).collect();
    texts.join(" . ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_concatenation_fills_registers_and_a_single_field_does_not() {
        assert_eq!(concatenate(&[Value::Port(80)]), [0, 80]);
        let values = [Value::TCP, Value::Port(8080)];
        assert_eq!(concatenate(&values), [6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        let name = Value::IfName("pod0".parse().unwrap());
        let values = [name, Value::Port(80)];
        let types = [Type::IfName, Type::Port];
        assert_eq!(concatenate(&values).len(), total_length(&types));
        assert_eq!(
            read_values(&types, &concatenate(&values)),
            Some(values.to_vec())
        );
        assert_eq!(text(&values), "\"pod0\" . 80");
        for (field, value) in types.iter().zip(&values) {
            assert_eq!(field.parse(&value.to_string()).as_ref(), Some(value));
        }
        for (field, value) in [
            (Type::Ipv4, Value::Ipv4([10, 0, 0, 1].into())),
            (Type::Ipv6, Value::Ipv6(1.into())),
            (Type::Protocol, Value::SCTP),
            (Type::Protocol, Value::Protocol(1)),
            (Type::Port, Value::Port(80)),
            (Type::Mark, Value::Mark(16)),
            (Type::IfIndex, Value::IfIndex(7)),
        ] {
            assert_eq!(field.parse(&value.to_string()), Some(value));
            assert_eq!(field.parse("nonsense"), None);
        }
        assert_eq!(read_values(&types, &[0; 8]), None);
    }
}
