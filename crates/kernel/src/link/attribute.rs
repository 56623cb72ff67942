//! Messages about links as the kernel numbers their parts: what is before the attributes, and the attributes that are written
//! or read here (linux/if_link.h).

use crate::encode::{Attributes, Encoder};

pub(crate) const IFLA_ADDRESS: u16 = 1;
pub(crate) const IFLA_IFNAME: u16 = 3;
pub(crate) const IFLA_MTU: u16 = 4;
pub(super) const IFLA_LINK: u16 = 5;
pub(super) const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_PROTINFO: u16 = 12;
pub(super) const IFLA_TXQLEN: u16 = 13;
pub(crate) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_IFALIAS: u16 = 20;
pub(crate) const IFLA_AF_SPEC: u16 = 26;
pub(super) const IFLA_GROUP: u16 = 27;
pub(super) const IFLA_NET_NS_FD: u16 = 28;
pub(crate) const IFLA_EXT_MASK: u16 = 29;
pub(crate) const IFLA_NUM_TX_QUEUES: u16 = 31;
pub(crate) const IFLA_NUM_RX_QUEUES: u16 = 32;

/// Inside of `IFLA_LINKINFO`: what a link is, and as the port of what.
pub(crate) const IFLA_INFO_KIND: u16 = 1;
pub(crate) const IFLA_INFO_DATA: u16 = 2;
pub(super) const IFLA_INFO_SLAVE_KIND: u16 = 4;
pub(super) const IFLA_INFO_SLAVE_DATA: u16 = 5;

/// Inside of a veth's `IFLA_INFO_DATA` (linux/veth.h): a message of its own about the other end.
pub(super) const VETH_INFO_PEER: u16 = 1;

/// Inside of a bridge's `IFLA_INFO_DATA`.
pub(crate) const IFLA_BR_VLAN_FILTERING: u16 = 7;
pub(super) const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
pub(super) const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;
pub(super) const IFLA_BR_VLAN_DEFAULT_PVID: u16 = 39;

/// Inside of a bridge port's `IFLA_INFO_SLAVE_DATA`, or `IFLA_PROTINFO`.
pub(super) const IFLA_BRPORT_STATE: u16 = 1;
pub(super) const IFLA_BRPORT_MODE: u16 = 4;
pub(super) const IFLA_BRPORT_LEARNING: u16 = 8;
pub(super) const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
pub(super) const IFLA_BRPORT_ISOLATED: u16 = 33;

/// Inside of `IFLA_AF_SPEC`, behind the family; and `IN6_ADDR_GEN_MODE_NONE`.
pub(super) const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
pub(super) const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

/// Flags of links (linux/if.h).
pub(crate) const IFF_UP: u32 = 0x1;
pub(super) const IFF_PROMISC: u32 = 0x100;
pub(super) const IFF_ALLMULTI: u32 = 0x200;

/// `sizeof(struct ifinfomsg)`.
pub(super) const HEADER: usize = 16;

/// What matters of `struct ifinfomsg`, which is before the attributes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Header {
    pub(crate) family: u8,
    pub(crate) index: u32,
    pub(crate) flags: u32,
    /// Which of the flags are to be as they are above.
    pub(crate) change: u32,
}

impl Header {
    /// Of a link that is to be up.
    pub(crate) const UP: Self = Self {
        family: 0,
        index: 0,
        flags: IFF_UP,
        change: IFF_UP,
    };

    /// A request that begins with it.
    pub(crate) fn request(self, kind: u16) -> Encoder {
        let mut request = Encoder::request(kind);
        request.plain(&[self.family, 0, 0, 0]);
        for number in [self.index, self.flags, self.change] {
            request.plain(&number.to_ne_bytes());
        }
        request
    }

    /// Reads it, and gives the attributes behind it.
    pub(crate) fn read(message: &[u8]) -> Option<(Self, Attributes<'_>)> {
        let (header, attributes) = message.split_first_chunk::<HEADER>()?;
        let ([[family, ..], index, flags, change], []) = header.as_chunks::<4>() else {
            return None;
        };
        let header = Self {
            family: *family,
            index: u32::from_ne_bytes(*index),
            flags: u32::from_ne_bytes(*flags),
            change: u32::from_ne_bytes(*change),
        };
        Some((header, Attributes(attributes)))
    }
}
