//! Chains, where they hook, and verdicts.

use std::fmt;

use super::element::{UDATA_COMMENT, encode_comment, read_user_data};
use super::{Family, Table};
use crate::encode::{Attributes, Encoder, Header, NLM_F_REQUEST};
use crate::netlink::u32_at;

/// The attributes of a chain (`enum nft_chain_attributes`, linux/netfilter/nf_tables.h).
pub(super) mod attribute {
    pub(in crate::nft) const TABLE: u16 = 1;
    pub(in crate::nft) const NAME: u16 = 3;
    pub(in crate::nft) const HOOK: u16 = 4;
    pub(in crate::nft) const POLICY: u16 = 5;
    pub(in crate::nft) const TYPE: u16 = 7;
    /// `NFTA_CHAIN_USERDATA` (Linux 5.8). What `nft` keeps in it is numbered as of rules (`NFTNL_UDATA_CHAIN_COMMENT`).
    pub(in crate::nft) const USERDATA: u16 = 12;
    /// `NFTA_HOOK_HOOKNUM`.
    pub(in crate::nft) const HOOK_NUMBER: u16 = 1;
    /// `NFTA_HOOK_PRIORITY`.
    pub(in crate::nft) const HOOK_PRIORITY: u16 = 2;
    /// `NFTA_HOOK_DEV`.
    pub(in crate::nft) const HOOK_DEVICE: u16 = 3;
}

/// The attributes of a verdict (`enum nft_verdict_attributes`).
mod verdict {
    /// `NFTA_DATA_VERDICT`.
    pub(super) const DATA: u16 = 2;
    pub(super) const CODE: u16 = 1;
    pub(super) const CHAIN: u16 = 2;
}

/// A chain. It can be a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain<'a> {
    /// Where it is.
    pub table: Table<'a>,
    /// Its name, unique in its table.
    pub name: &'a str,
    /// Where packets enter it; a chain without is entered by a jump or goto only.
    pub base: Option<Base<'a>>,
    /// Its owner's words about it, at most 253 bytes. A kernel before 5.8 forgets them; one that has the chain already
    /// keeps those that it has.
    pub comment: Option<&'a str>,
}

/// A chain as a list of those of a table tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedChain {
    /// Its name.
    pub name: String,
    /// Its owner's words about it.
    pub comment: Option<String>,
}

impl NamedChain {
    /// Reads one message of a list; none for a chain of another table.
    pub(super) fn read(table: Table<'_>, attributes: Attributes<'_>) -> Option<Self> {
        let text = |kind| {
            let text = std::str::from_utf8(attributes.find(kind)?).ok()?;
            Some(text.trim_end_matches('\0'))
        };
        let user_data = attributes.find(attribute::USERDATA).unwrap_or_default();
        let name = text(attribute::NAME)?;
        (text(attribute::TABLE)? == table.name).then(|| Self {
            name: name.to_owned(),
            comment: read_user_data(user_data, UDATA_COMMENT),
        })
    }
}

/// Where a base chain stands in a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base<'a> {
    /// What its rules may do.
    pub kind: ChainKind,
    /// Where.
    pub hook: Hook,
    /// When, among the chains of that hook: the smallest first. See [`priority`].
    pub priority: i32,
    /// What becomes of a packet that no rule decides on.
    pub policy: Policy,
    /// The interface, for the family netdev alone.
    pub device: Option<&'a str>,
}

/// What the rules of a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Let through or drop.
    Filter,
    /// Translate addresses: it sees the first packet of a connection only.
    Nat,
}

/// Where a base chain is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// As a packet comes in, before it is routed.
    Prerouting,
    /// On the way to a local process.
    Input,
    /// On the way through.
    Forward,
    /// From a local process.
    Output,
    /// As a packet goes out, after it is routed.
    Postrouting,
    /// As an interface receives it (families netdev and inet).
    Ingress,
    /// As an interface sends it (family netdev).
    Egress,
}

/// What becomes of a packet that no rule decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// It is dropped (`NF_DROP`, linux/netfilter.h).
    Drop = 0,
    /// It goes on (`NF_ACCEPT`).
    Accept = 1,
}

/// The usual priorities.
pub mod priority {
    /// Before connections are followed (`NF_IP_PRI_RAW`).
    pub const RAW: i32 = -300;
    /// Translation of destinations (`NF_IP_PRI_NAT_DST`, linux/netfilter_ipv4.h).
    pub const DSTNAT: i32 = -100;
    /// Filters (`NF_IP_PRI_FILTER`).
    pub const FILTER: i32 = 0;
    /// Translation of sources (`NF_IP_PRI_NAT_SRC`).
    pub const SRCNAT: i32 = 100;
    /// Filters of the family bridge (`NF_BR_PRI_FILTER_BRIDGED`, linux/netfilter_bridge.h).
    pub const BRIDGE_FILTER: i32 = -200;
}

impl Hook {
    /// `enum nf_inet_hooks` and `enum nf_dev_hooks` (linux/netfilter.h); those of bridges (`NF_BR_*`) are numbered alike.
    fn number(self, family: Family) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
            Self::Ingress if family == Family::Inet => 5,
            Self::Ingress => 0,
            Self::Egress => 1,
        }
    }
}

impl Hook {
    /// The hook of that number; none for one that is entered at an interface.
    pub(super) fn of_number(family: Family, number: u32) -> Option<Self> {
        let routed = [
            Self::Prerouting,
            Self::Input,
            Self::Forward,
            Self::Output,
            Self::Postrouting,
        ];
        let mut all = routed.into_iter().filter(|_| family != Family::Netdev);
        all.find(|hook| hook.number(family) == number)
    }
}

impl<'a> Chain<'a> {
    /// A chain that is entered by a jump or goto only.
    pub const fn plain(table: Table<'a>, name: &'a str) -> Self {
        Self {
            table,
            name,
            base: None,
            comment: None,
        }
    }

    /// A chain that packets enter at a hook.
    pub const fn hooked(table: Table<'a>, name: &'a str, base: Base<'a>) -> Self {
        Self {
            table,
            name,
            base: Some(base),
            comment: None,
        }
    }

    /// The same with a comment.
    pub const fn with_comment(mut self, comment: &'a str) -> Self {
        self.comment = Some(comment);
        self
    }

    /// The body of `NFT_MSG_NEWCHAIN`.
    pub(super) fn encode(&self, to: &mut Encoder) {
        self.encode_name(to);
        if let Some(comment) = self.comment {
            encode_comment(to, attribute::USERDATA, comment);
        }
        let Some(base) = &self.base else { return };
        to.nest(attribute::HOOK, |hook| {
            hook.number32(attribute::HOOK_NUMBER, base.hook.number(self.table.family));
            hook.number32(attribute::HOOK_PRIORITY, base.priority.cast_unsigned());
            if let Some(device) = base.device {
                hook.text(attribute::HOOK_DEVICE, device);
            }
        });
        to.number32(attribute::POLICY, base.policy as u32);
        let kind = match base.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        to.text(attribute::TYPE, kind);
    }

    /// The body of `NFT_MSG_DELCHAIN`.
    pub(super) fn encode_name(&self, to: &mut Encoder) {
        to.text(attribute::TABLE, self.table.name);
        to.text(attribute::NAME, self.name);
    }

    /// Table and chain of a rule: `NFTA_RULE_TABLE` and `NFTA_RULE_CHAIN`.
    pub(super) fn encode_place(&self, to: &mut Encoder) {
        to.text(1, self.table.name);
        to.text(2, self.name);
    }

    /// The header of a request about it.
    pub(super) fn request(&self, kind: u16, flags: u16) -> Header {
        Header {
            kind,
            flags: NLM_F_REQUEST | flags,
            family: self.table.family as u8,
            resource: 0,
        }
    }
}

impl Base<'_> {
    /// A filter that lets through what no rule drops.
    pub const fn filter(hook: Hook, priority: i32) -> Self {
        Self {
            kind: ChainKind::Filter,
            hook,
            priority,
            policy: Policy::Accept,
            device: None,
        }
    }

    /// A translation of addresses.
    pub const fn nat(hook: Hook, priority: i32) -> Self {
        Self {
            kind: ChainKind::Nat,
            ..Self::filter(hook, priority)
        }
    }
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chain {} {}", self.table, self.name)
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the next hook or chain of this hook (`NF_ACCEPT`).
    Accept,
    /// It is dropped (`NF_DROP`).
    Drop,
    /// The next rule decides (`NFT_CONTINUE`).
    Continue,
    /// Back to the chain that jumped here; from a base chain, its policy decides (`NFT_RETURN`).
    Return,
    /// Into that chain and back (`NFT_JUMP`).
    Jump(String),
    /// Into that chain for good (`NFT_GOTO`).
    Goto(String),
}

impl Verdict {
    /// Into `chain` and back.
    pub fn jump(chain: &Chain<'_>) -> Self {
        Self::Jump(chain.name.to_owned())
    }

    /// Into `chain` for good.
    pub fn goto(chain: &Chain<'_>) -> Self {
        Self::Goto(chain.name.to_owned())
    }

    /// `NF_*` (linux/netfilter.h) and `enum nft_verdicts`, which share their numbers.
    fn code(&self) -> i32 {
        match self {
            Self::Drop => 0,
            Self::Accept => 1,
            Self::Continue => -1,
            Self::Jump(_) => -3,
            Self::Goto(_) => -4,
            Self::Return => -5,
        }
    }

    /// As `struct nft_data` is written.
    pub(super) fn encode(&self, to: &mut Encoder, kind: u16) {
        to.nest(kind, |data| {
            data.nest(verdict::DATA, |to| {
                to.number32(verdict::CODE, self.code().cast_unsigned());
                if let Self::Jump(chain) | Self::Goto(chain) = self {
                    to.text(verdict::CHAIN, chain);
                }
            });
        });
    }

    /// The same read back; none for what is not in this type.
    pub(super) fn read(data: Attributes<'_>) -> Option<Self> {
        let attributes = data.inside(verdict::DATA)?;
        let code = u32::from_be(u32_at(attributes.find(verdict::CODE)?, 0)?).cast_signed();
        let chain = || {
            let text = attributes.find(verdict::CHAIN).unwrap_or_default();
            let text = String::from_utf8_lossy(text);
            text.trim_end_matches('\0').to_owned()
        };
        let known = [
            Self::Accept,
            Self::Drop,
            Self::Continue,
            Self::Return,
            Self::Jump(chain()),
            Self::Goto(chain()),
        ];
        known.into_iter().find(|verdict| verdict.code() == code)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Continue => f.write_str("continue"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}
