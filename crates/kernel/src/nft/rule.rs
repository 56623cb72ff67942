//! Rules: from left to right as `nft` writes them.
//!
//! Each step loads its fields into the registers from the first one on, a concatenation field by field, and uses them at
//! once; no step relies on what an earlier one left there. A surprise: the kernel checks lengths, not meaning; a lookup of
//! the wrong fields of the right length is taken.

use std::net::IpAddr;

use super::Family;
use super::chain::{Chain, Verdict};
use super::counter::{Counter, OBJECT_COUNTER};
use super::element::encode_comment;
use super::field::{Field, Layer, Source};
use super::set::{Holds, Set};
use super::value::{REGISTER, Type, Value, padded};
use crate::encode::{Encoder, LIST_ELEM};

/// `NFT_REG_VERDICT` (linux/netfilter/nf_tables.h).
const REG_VERDICT: u32 = 0;
/// `NFT_REG32_00`: the first register of 32 bits.
const REG32_00: u32 = 8;
/// `NFTA_EXPR_NAME`.
pub(super) const EXPR_NAME: u16 = 1;
/// `NFTA_EXPR_DATA`.
pub(super) const EXPR_DATA: u16 = 2;
/// `ETH_P_IP` and `ETH_P_IPV6` (linux/if_ether.h).
const ETH_P: [u16; 2] = [0x0800, 0x86dd];
/// `NFPROTO_IPV4` (linux/netfilter.h).
const NFPROTO_IPV4: u8 = 2;
/// `NFPROTO_IPV6`.
const NFPROTO_IPV6: u8 = 10;
/// `IPPROTO_ICMPV6` (linux/in6.h).
const IPPROTO_ICMPV6: u8 = 58;
/// `NFT_META_MARK` (linux/netfilter/nf_tables.h).
const META_MARK: u32 = 3;
/// `RTN_LOCAL` (linux/rtnetlink.h): an address of this machine.
const RTN_LOCAL: u32 = 2;
/// `IPS_DST_NAT` (linux/netfilter/nf_conntrack_common.h): the connection's destination was translated.
const IPS_DST_NAT: u32 = 1 << 5;

/// `sizeof(struct xt_conntrack_mtinfo3)` (linux/netfilter/xt_conntrack.h), aligned as `XT_ALIGN` wants it.
const XT_CONNTRACK_INFO: usize = 168;
/// Where its `match_flags` is, as `XT_CONNTRACK_STATE` to look at the state alone.
const XT_CONNTRACK_FLAGS: (usize, u16) = (146, 1);
/// Where its `state_mask` is. The bits are those of [`CtState`], but for `Untracked`.
const XT_CONNTRACK_STATES: usize = 150;

/// How a field compares (`enum nft_cmp_ops`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// `==`
    Equal = 0,
    /// `!=`
    NotEqual = 1,
    /// `<`, for fields in network order.
    Less = 2,
    /// `<=`
    LessOrEqual = 3,
    /// `>`
    Greater = 4,
    /// `>=`
    GreaterOrEqual = 5,
}

/// What conntrack says about a packet (`NF_CT_STATE_BIT`, linux/netfilter/nf_conntrack_common.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtState {
    /// It belongs to no connection that could be.
    Invalid = 1,
    /// Of a connection that has seen both directions.
    Established = 2,
    /// Belongs to another connection, such as an ICMP error.
    Related = 4,
    /// The first of a connection.
    New = 8,
    /// Not followed.
    Untracked = 64,
}

/// How the kernel chooses a translated port or address (`NF_NAT_RANGE_*`, linux/netfilter/nf_nat.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatFlag {
    /// Ports at random, seeded by a hash of the connection.
    Random = 1 << 2,
    /// The same address for the same client.
    Persistent = 1 << 3,
    /// Ports at random: two connections made at the same time do not both take the next free one.
    FullyRandom = 1 << 4,
}

/// Which end of a connection a translation changes (`enum nft_nat_types`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nat {
    /// Its source.
    Source = 0,
    /// Its destination.
    Destination = 1,
}

/// A limit of a rule's rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// How many in each period.
    pub rate: u64,
    /// The period in seconds.
    pub seconds: u64,
    /// How many more at once.
    pub burst: u32,
    /// What is counted.
    pub unit: LimitUnit,
    /// Matches what is above the limit, instead of what is below.
    pub over: bool,
}

/// What a limit counts (`enum nft_limit_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitUnit {
    /// Packets.
    Packets = 0,
    /// Bytes.
    Bytes = 1,
}

/// What a sender is told about its packet (`enum nft_reject_inet_code`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// Nobody listens at that port.
    PortUnreachable = 1,
    /// It is forbidden.
    AdminProhibited = 3,
}

/// A rule for a chain.
#[derive(Debug, Clone)]
pub struct Rule<'a> {
    pub(super) chain: Chain<'a>,
    expressions: Encoder,
    comment: Option<String>,
    known: Vec<Layer>,
}

impl<'a> Rule<'a> {
    /// A rule of that chain which so far matches all.
    pub fn of(chain: Chain<'a>) -> Self {
        Self {
            chain,
            expressions: Encoder::default(),
            comment: None,
            known: Vec::new(),
        }
    }

    /// With its owner's words about it, at most 253 bytes.
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    // --- matches -------------------------------------------------------------------------------------------------

    /// `<field> == <value>`
    pub fn is(self, field: Field, value: impl Into<Value>) -> Self {
        self.compare(field, Compare::Equal, value)
    }

    /// `<field> != <value>`
    pub fn is_not(self, field: Field, value: impl Into<Value>) -> Self {
        self.compare(field, Compare::NotEqual, value)
    }

    /// `<field> < <value>` and its like.
    pub fn compare(self, field: Field, how: Compare, value: impl Into<Value>) -> Self {
        self.load(&[field]).cmp(how, &value.into().bytes())
    }

    /// `<field> <first>-<last>`, for fields in network order.
    pub fn between(self, field: Field, first: impl Into<Value>, last: impl Into<Value>) -> Self {
        self.load(&[field]).expression("range", |to| {
            to.number32(1, REG32_00); // NFTA_RANGE_SREG
            to.number32(2, 0); // NFTA_RANGE_OP: NFT_RANGE_EQ
            to.data(3, &first.into().bytes()); // NFTA_RANGE_FROM_DATA
            to.data(4, &last.into().bytes()); // NFTA_RANGE_TO_DATA
        })
    }

    /// `<field> & <mask> == <value>`, as for a prefix or a bit of the mark.
    pub fn masked(self, field: Field, mask: impl Into<Value>, value: impl Into<Value>) -> Self {
        self.load(&[field])
            .mask(&mask.into().bytes())
            .cmp(Compare::Equal, &value.into().bytes())
    }

    /// `<field> . <field> @<set>`
    pub fn is_in(self, fields: &[Field], set: &Set<'_>) -> Self {
        self.load(fields).lookup(set, None, false)
    }

    /// `<field> . <field> != @<set>`
    pub fn is_not_in(self, fields: &[Field], set: &Set<'_>) -> Self {
        self.load(fields).lookup(set, None, true)
    }

    /// `ct state <state>,<state>`: any of them. Not in the family bridge unless it has a conntrack of its own.
    pub fn ct_state(self, states: &[CtState]) -> Self {
        let bits = states.iter().fold(0, |bits, state| bits | *state as u32);
        self.load(&[Field::CT_STATE])
            .mask(&bits.to_ne_bytes())
            .cmp(Compare::NotEqual, &[0; 4])
    }

    /// `ct status dnat`: the destination of the packet's connection was translated.
    pub fn is_dnat(self) -> Self {
        self.load(&[Field::CT_STATUS])
            .mask(&IPS_DST_NAT.to_ne_bytes())
            .cmp(Compare::NotEqual, &[0; 4])
    }

    /// The same as `iptables-nft` writes it, `-m conntrack --ctstate`: the only form that it can read again. For its tables;
    /// not for [`CtState::Untracked`]. Needs `CONFIG_NFT_COMPAT`, as that program does.
    pub fn xt_ct_state(self, states: &[CtState]) -> Self {
        let bits = states.iter().fold(0, |bits, state| bits | *state as u16);
        let mut info = [0; XT_CONNTRACK_INFO];
        for (at, number) in [XT_CONNTRACK_FLAGS, (XT_CONNTRACK_STATES, bits)] {
            for (place, byte) in info.iter_mut().skip(at).zip(number.to_ne_bytes()) {
                *place = byte;
            }
        }
        self.expression("match", |to| {
            to.text(1, "conntrack"); // NFTA_MATCH_NAME
            to.number32(2, 3); // NFTA_MATCH_REV
            to.bytes_attribute(3, &info); // NFTA_MATCH_INFO
        })
    }

    /// `fib daddr type local`: the destination is an address of this machine.
    pub fn daddr_is_local(self) -> Self {
        self.load(&[Field::DADDR_TYPE])
            .cmp(Compare::Equal, &RTN_LOCAL.to_ne_bytes())
    }

    /// `limit rate [over] …`
    pub fn limit(self, limit: Limit) -> Self {
        self.expression("limit", |to| {
            to.number64(1, limit.rate); // NFTA_LIMIT_RATE
            to.number64(2, limit.seconds); // NFTA_LIMIT_UNIT
            to.number32(3, limit.burst); // NFTA_LIMIT_BURST
            to.number32(4, limit.unit as u32); // NFTA_LIMIT_TYPE
            to.number32(5, u32::from(limit.over)); // NFTA_LIMIT_FLAGS: NFT_LIMIT_F_INV
        })
    }

    // --- what is done --------------------------------------------------------------------------------------------

    /// `counter`
    pub fn counter(self) -> Self {
        self.expression("counter", |_| {})
    }

    /// `counter name "<name>"`: counts with that one, which must be there.
    pub fn counts_with(self, counter: &Counter<'_>) -> Self {
        self.expression("objref", |to| {
            to.number32(1, OBJECT_COUNTER); // NFTA_OBJREF_IMM_TYPE
            to.text(2, counter.name); // NFTA_OBJREF_IMM_NAME
        })
    }

    /// `meta mark set <mark>`
    pub fn set_mark(self, mark: u32) -> Self {
        self.immediate(REG32_00, &mark.to_ne_bytes())
            .expression("meta", |to| {
                to.number32(2, META_MARK); // NFTA_META_KEY
                to.number32(3, REG32_00); // NFTA_META_SREG
            })
    }

    /// `log prefix "<prefix>"`: to the kernel's log, as a warning.
    pub fn log(self, prefix: &str) -> Self {
        self.expression("log", |to| to.text(2, prefix)) // NFTA_LOG_PREFIX
    }

    /// `log prefix "<prefix>" group <group>`: to whoever listens to that group of nfnetlink_log.
    pub fn log_to(self, group: u16, prefix: &str) -> Self {
        self.expression("log", |to| {
            to.bytes_attribute(1, &group.to_be_bytes()); // NFTA_LOG_GROUP
            to.text(2, prefix); // NFTA_LOG_PREFIX
        })
    }

    /// A verdict: the rule's last word.
    pub fn verdict(self, verdict: &Verdict) -> Self {
        self.expression("immediate", |to| {
            to.number32(1, REG_VERDICT); // NFTA_IMMEDIATE_DREG
            verdict.encode(to, 2); // NFTA_IMMEDIATE_DATA
        })
    }

    /// `<field> . <field> vmap @<map>`: the verdict that the map leads to; without one the next rule decides.
    pub fn verdict_by(self, fields: &[Field], map: &Set<'_>) -> Self {
        self.load(fields).lookup(map, Some(REG_VERDICT), false)
    }

    /// `reject with icmpx …`: dropped, and the sender told. For the family inet, and bridge with
    /// `CONFIG_NFT_BRIDGE_REJECT`.
    pub fn reject(self, with: Reject) -> Self {
        self.expression("reject", |to| {
            to.number32(1, 2); // NFTA_REJECT_TYPE: NFT_REJECT_ICMPX_UNREACH
            to.bytes_attribute(2, &[with as u8]); // NFTA_REJECT_ICMP_CODE
        })
    }

    /// `masquerade <flags>`: the source becomes the address of the interface that the packet goes out by.
    pub fn masquerade(self, flags: &[NatFlag]) -> Self {
        self.expression("masq", |to| to.number32(1, nat_bits(flags))) // NFTA_MASQ_FLAGS
    }

    /// `snat` or `dnat ip to <address>[:<port>]`. A port needs a match of the transport protocol before it.
    pub fn nat(self, end: Nat, to: (IpAddr, Option<u16>), flags: &[NatFlag]) -> Self {
        let (address, port) = to;
        let value = Value::from(address).bytes();
        let length = value.len();
        let loaded = self.immediate(REG32_00, &value);
        let loaded = match port {
            Some(port) => loaded.immediate(behind(length), &port.to_be_bytes()),
            None => loaded,
        };
        let target = Target {
            address: length,
            port: port.is_some(),
        };
        loaded.translate(end, target, nat_bits(flags))
    }

    /// `snat` or `dnat ip to <field> . <field> map @<map>`: to the address, or address and port, that the map leads to;
    /// without one the next rule decides. The family is that of the map's addresses.
    pub fn nat_by(self, end: Nat, fields: &[Field], map: &Set<'_>) -> Self {
        let target = match map.holds {
            Holds::Values([address, rest @ ..]) => Target {
                address: address.length(),
                port: !rest.is_empty(),
            },
            // The kernel refuses the lookup.
            _ => Target::default(),
        };
        self.load(fields)
            .lookup(map, Some(REG32_00), false)
            .translate(end, target, 0)
    }

    // --- single expressions --------------------------------------------------------------------------------------

    fn expression(mut self, name: &str, data: impl FnOnce(&mut Encoder)) -> Self {
        self.expressions.nest(LIST_ELEM, |to| {
            to.text(EXPR_NAME, name);
            to.nest(EXPR_DATA, data);
        });
        self
    }

    /// Loads fields as a concatenation, after asking for what they need of the packet.
    fn load(mut self, fields: &[Field]) -> Self {
        for field in fields {
            self = self.establish(field.layer);
        }
        let mut register = REG32_00;
        for field in fields {
            self = self.load_one(*field, register);
            register += registers(field.length);
        }
        self
    }

    fn load_one(self, field: Field, register: u32) -> Self {
        match field.source {
            Source::Payload(header, offset) => self.expression("payload", |to| {
                to.number32(1, register); // NFTA_PAYLOAD_DREG
                to.number32(2, header as u32); // NFTA_PAYLOAD_BASE
                to.number32(3, offset); // NFTA_PAYLOAD_OFFSET
                to.number32(4, field.length as u32); // NFTA_PAYLOAD_LEN
            }),
            Source::Meta(key) => self.expression("meta", |to| {
                to.number32(1, register); // NFTA_META_DREG
                to.number32(2, key); // NFTA_META_KEY
            }),
            Source::Conntrack(key) => self.expression("ct", |to| {
                to.number32(1, register); // NFTA_CT_DREG
                to.number32(2, key); // NFTA_CT_KEY
            }),
            Source::DestinationKind => self.expression("fib", |to| {
                to.number32(1, register); // NFTA_FIB_DREG
                to.number32(2, 3); // NFTA_FIB_RESULT: NFT_FIB_RESULT_ADDRTYPE
                to.number32(3, 2); // NFTA_FIB_FLAGS: NFTA_FIB_F_DADDR
            }),
        }
    }

    /// Matches packets of that layer only, unless the family or an earlier step did.
    fn establish(mut self, layer: Layer) -> Self {
        if layer == Layer::Any || self.known.contains(&layer) {
            return self;
        }
        self.known.push(layer);
        let [ipv4, ipv6] = ETH_P.map(u16::to_be_bytes);
        match (self.chain.table.family, layer) {
            (_, Layer::Icmp6) => self
                .establish(Layer::Ipv6)
                .load_one(Field::L4PROTO, REG32_00)
                .cmp(Compare::Equal, &[IPPROTO_ICMPV6]),
            (Family::Inet, Layer::Ipv4) => self.must(Field::NFPROTO, &[NFPROTO_IPV4]),
            (Family::Inet, Layer::Ipv6) => self.must(Field::NFPROTO, &[NFPROTO_IPV6]),
            (Family::Bridge | Family::Netdev, Layer::Ipv4) => self.must(Field::PROTOCOL, &ipv4),
            (Family::Bridge | Family::Netdev, Layer::Ipv6) => self.must(Field::PROTOCOL, &ipv6),
            _ => self,
        }
    }

    fn must(self, field: Field, bytes: &[u8]) -> Self {
        self.load_one(field, REG32_00).cmp(Compare::Equal, bytes)
    }

    fn cmp(self, how: Compare, bytes: &[u8]) -> Self {
        self.expression("cmp", |to| {
            to.number32(1, REG32_00); // NFTA_CMP_SREG
            to.number32(2, how as u32); // NFTA_CMP_OP
            to.data(3, bytes); // NFTA_CMP_DATA
        })
    }

    fn mask(self, mask: &[u8]) -> Self {
        self.expression("bitwise", |to| {
            to.number32(1, REG32_00); // NFTA_BITWISE_SREG
            to.number32(2, REG32_00); // NFTA_BITWISE_DREG
            to.number32(3, mask.len() as u32); // NFTA_BITWISE_LEN
            to.data(4, mask); // NFTA_BITWISE_MASK
            to.data(5, &vec![0; mask.len()]); // NFTA_BITWISE_XOR
        })
    }

    fn lookup(self, set: &Set<'_>, result: Option<u32>, inverted: bool) -> Self {
        self.expression("lookup", |to| {
            to.text(1, set.name); // NFTA_LOOKUP_SET
            to.number32(2, REG32_00); // NFTA_LOOKUP_SREG
            if let Some(register) = result {
                to.number32(3, register); // NFTA_LOOKUP_DREG
            }
            to.number32(5, u32::from(inverted)); // NFTA_LOOKUP_FLAGS: NFT_LOOKUP_F_INV
        })
    }

    fn immediate(self, register: u32, bytes: &[u8]) -> Self {
        self.expression("immediate", |to| {
            to.number32(1, register); // NFTA_IMMEDIATE_DREG
            to.data(2, bytes); // NFTA_IMMEDIATE_DATA
        })
    }

    /// Translates to the address in the first registers, and to the port in the register behind it.
    fn translate(self, end: Nat, target: Target, flags: u32) -> Self {
        let family = if target.address == Type::Ipv4.length() {
            NFPROTO_IPV4
        } else {
            NFPROTO_IPV6
        };
        self.expression("nat", |to| {
            to.number32(1, end as u32); // NFTA_NAT_TYPE
            to.number32(2, family.into()); // NFTA_NAT_FAMILY
            to.number32(3, REG32_00); // NFTA_NAT_REG_ADDR_MIN
            if target.port {
                to.number32(5, behind(target.address)); // NFTA_NAT_REG_PROTO_MIN
            }
            if flags != 0 {
                to.number32(7, flags); // NFTA_NAT_FLAGS
            }
        })
    }

    /// The body of `NFT_MSG_NEWRULE`.
    pub(super) fn encode(&self, to: &mut Encoder) {
        self.chain.encode_place(to);
        to.nest_bytes(4, self.expressions.bytes()); // NFTA_RULE_EXPRESSIONS
        if let Some(comment) = &self.comment {
            encode_comment(to, 7, comment); // NFTA_RULE_USERDATA
        }
    }
}

/// What the registers hold for a translation.
#[derive(Default)]
struct Target {
    /// The length of the address in the first ones, in bytes.
    address: usize,
    /// A port in the one behind it.
    port: bool,
}

/// The first register behind a value of that length which begins in the first.
fn behind(length: usize) -> u32 {
    REG32_00 + registers(length)
}

/// How many registers a value of that length fills.
fn registers(length: usize) -> u32 {
    (padded(length) / REGISTER) as u32
}

fn nat_bits(flags: &[NatFlag]) -> u32 {
    flags.iter().fold(0, |bits, flag| bits | *flag as u32)
}
