//! What a rule can look at: fields of packets and what the kernel knows about a packet.

/// Where a header begins (`enum nft_payload_bases`, linux/netfilter/nf_tables.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The Ethernet header.
    Link = 0,
    /// The IP or ARP header.
    Network = 1,
    /// The TCP, UDP, SCTP or ICMP header.
    Transport = 2,
}

/// Where a field is loaded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Bytes of a header, that many from its begin.
    Payload(Header, u32),
    /// `enum nft_meta_keys`.
    Meta(u32),
    /// `enum nft_ct_keys`.
    Conntrack(u32),
    /// What kind of address the destination is here (`NFT_FIB_RESULT_ADDRTYPE` of `NFTA_FIB_F_DADDR`).
    DestinationKind,
}

/// What a packet must be for a field to mean something. A rule asks that first, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Any,
    Ipv4,
    Ipv6,
    Icmp6,
}

/// Something that a rule can look at.
///
/// A field of a header implies its protocol: a rule with [`Field::IP_SADDR`] matches IPv4 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub(super) source: Source,
    /// In bytes.
    pub(super) length: usize,
    pub(super) layer: Layer,
}

impl Field {
    /// `meta protocol`: the Ethernet protocol.
    pub const PROTOCOL: Self = Self::meta(1, 2);
    /// `meta mark`.
    pub const MARK: Self = Self::meta(3, 4);
    /// `iif`: the index of the interface that it came in by.
    pub const IIF: Self = Self::meta(4, 4);
    /// `oif`: the index of the interface that it goes out by.
    pub const OIF: Self = Self::meta(5, 4);
    /// `iifname`; in the family bridge the port.
    pub const IIFNAME: Self = Self::meta(6, 16);
    /// `oifname`; in the family bridge the port.
    pub const OIFNAME: Self = Self::meta(7, 16);
    /// `meta nfproto`: `NFPROTO_IPV4` or `NFPROTO_IPV6` (linux/netfilter.h).
    pub const NFPROTO: Self = Self::meta(15, 1);
    /// `meta l4proto`: the transport protocol.
    pub const L4PROTO: Self = Self::meta(16, 1);
    /// `meta ibrname`: the bridge of the port that it came in by. Needs `CONFIG_NFT_BRIDGE_META`.
    pub const IBRNAME: Self = Self::meta(17, 16);
    /// `meta obrname`: the bridge of the port that it goes out by. Needs `CONFIG_NFT_BRIDGE_META`.
    pub const OBRNAME: Self = Self::meta(18, 16);
    /// `ct state`, as bits; see `Rule::ct_state`.
    pub(super) const CT_STATE: Self = Self {
        source: Source::Conntrack(0),
        length: 4,
        layer: Layer::Any,
    };
    /// `ct status`, as bits; see `Rule::is_dnat`.
    pub(super) const CT_STATUS: Self = Self {
        source: Source::Conntrack(2),
        length: 4,
        layer: Layer::Any,
    };
    /// `fib daddr type`; see `Rule::daddr_is_local`.
    pub(super) const DADDR_TYPE: Self = Self {
        source: Source::DestinationKind,
        length: 4,
        layer: Layer::Any,
    };

    /// `ip saddr`.
    pub const IP_SADDR: Self = Self::payload(Header::Network, 12, 4).of(Layer::Ipv4);
    /// `ip daddr`.
    pub const IP_DADDR: Self = Self::payload(Header::Network, 16, 4).of(Layer::Ipv4);
    /// `ip6 saddr`.
    pub const IP6_SADDR: Self = Self::payload(Header::Network, 8, 16).of(Layer::Ipv6);
    /// `ip6 daddr`.
    pub const IP6_DADDR: Self = Self::payload(Header::Network, 24, 16).of(Layer::Ipv6);
    /// `ip6 hoplimit`: 255 of a packet that no router has passed on.
    pub const IP6_HOPLIMIT: Self = Self::payload(Header::Network, 7, 1).of(Layer::Ipv6);
    /// `th sport`: the source port, whatever the transport protocol.
    pub const SPORT: Self = Self::payload(Header::Transport, 0, 2);
    /// `th dport`: the destination port, whatever the transport protocol.
    pub const DPORT: Self = Self::payload(Header::Transport, 2, 2);
    /// `icmpv6 type`.
    pub const ICMPV6_TYPE: Self = Self::payload(Header::Transport, 0, 1).of(Layer::Icmp6);

    /// `length` bytes of a header, `offset` bytes from its begin.
    pub const fn payload(header: Header, offset: u32, length: usize) -> Self {
        Self {
            source: Source::Payload(header, offset),
            length,
            layer: Layer::Any,
        }
    }

    const fn meta(key: u32, length: usize) -> Self {
        Self {
            source: Source::Meta(key),
            length,
            layer: Layer::Any,
        }
    }

    const fn of(self, layer: Layer) -> Self {
        Self { layer, ..self }
    }
}
