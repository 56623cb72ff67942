//! What chains hold, and which state of the packet filter was looked at.
//!
//! A rule is known by its handle, which nobody else's ever has. Of what it does only its verdict is understood; its comment
//! is read wherever `nft` or `iptables-nft` may have put it, because a rule that was saved and restored by the latter has
//! moved its comment. Surprise: the kernel lists an unknown chain as an empty one; [`Nft::has_chain`] tells them apart.

use rustix::io::Errno;

use super::batch::Batch;
use super::chain::{Base, Chain, ChainKind, Hook, NamedChain, Policy, Verdict, attribute};
use super::element::{UDATA_COMMENT, read_user_data};
use super::rule::{EXPR_DATA, EXPR_NAME};
use super::value::Type;
use super::{Family, Nft, Table, message};
use crate::encode::{Attributes, DATA_VALUE, Header, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use crate::error::Result;
use crate::names::IfName;
use crate::netlink::{Refusal, u32_at};

/// How often others may come between a look and its change.
const SETTLE_TRIES: usize = 100;

/// A rule as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRule {
    /// Its number, unique in its table as long as the table lives.
    pub handle: u64,
    /// Its owner's words about it.
    pub comment: Option<String>,
    /// Its verdict, where it has one of its own.
    pub verdict: Option<Verdict>,
    /// It drops or rejects the packets that it matches.
    pub refuses: bool,
    /// It asks nothing of a packet, and so is for all of them.
    pub is_for_all: bool,
    /// The names of interfaces that it asks for.
    pub links: Vec<IfName>,
}

/// A chain as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedChain {
    /// The family of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where packets enter it; none for a chain that is entered by a jump only, or at an interface.
    pub base: Option<ListedBase>,
}

/// Where a base chain stands in a packet's way, as the kernel has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedBase {
    /// What its rules may do; none for one that is not in this type (`route`).
    pub kind: Option<ChainKind>,
    /// Where.
    pub hook: Hook,
    /// When, among the chains of that hook.
    pub priority: i32,
    /// What becomes of a packet that no rule decides on.
    pub policy: Policy,
}

impl ListedBase {
    /// True when it is what `base` asks for, whatever its policy.
    pub fn stands_as(&self, base: &Base<'_>) -> bool {
        self.kind == Some(base.kind) && self.hook == base.hook && self.priority == base.priority
    }
}

/// A state of all tables of a network namespace: the next transaction of anybody makes another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation(pub(super) u32);

impl Nft {
    /// The present state, for [`Batch::only_at`]: ask before looking.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn generation(&mut self) -> Result<Generation> {
        let mut seen = None;
        let header = Header {
            kind: message::GET_GENERATION,
            flags: NLM_F_REQUEST | NLM_F_ACK,
            family: 0,
            resource: 0,
        };
        let error = |refusal: Refusal| refusal.into_error("find the generation of nftables".into());
        let asked = self.link.ask(
            header,
            |_| {},
            |answer| seen = answer.find(1).and_then(|id| u32_at(id, 0)), // NFTA_GEN_ID
        );
        asked.map_err(error)?;
        seen.map(|id| Generation(u32::from_be(id)))
            .ok_or_else(|| error(Errno::BADMSG.into()))
    }

    /// Looks and changes as one step: commits what `plan` finds to do, and has it look again when anybody changed anything
    /// meanwhile. It is done when there is nothing to do.
    ///
    /// # Errors
    /// Those of `plan` and of [`Self::commit`]; ERESTART when others never let it finish.
    pub fn settle(&mut self, mut plan: impl FnMut(&mut Self) -> Result<Batch>) -> Result<()> {
        let mut tries = 0;
        loop {
            let generation = self.generation()?;
            let batch = plan(self)?;
            match self.commit(batch.only_at(generation)) {
                Err(error) if error.errno() == Errno::RESTART && tries < SETTLE_TRIES => tries += 1,
                outcome => return outcome,
            }
        }
    }

    /// The chain as it is, or none.
    ///
    /// # Errors
    /// What the kernel answered, other than that there is no such chain or table.
    pub fn find_chain(&mut self, chain: Chain<'_>) -> Result<Option<ListedChain>> {
        let header = chain.request(message::GET_CHAIN, NLM_F_ACK);
        let mut found = None;
        let asked = self.link.ask(
            header,
            |to| chain.encode_name(to),
            |attributes| found = read_chain(chain.table.family, attributes),
        );
        match asked {
            Ok(()) => Ok(found),
            Err(refusal) if refusal.errno == Errno::NOENT => Ok(None),
            Err(refusal) => Err(refusal.into_error(format!("find {chain}"))),
        }
    }

    /// All chains of a family, in all tables.
    ///
    /// # Errors
    /// EINTR when commits never let a listing finish; what the kernel answered.
    pub fn list_chains(&mut self, family: Family) -> Result<Vec<ListedChain>> {
        let header = Header {
            kind: message::GET_CHAIN,
            flags: NLM_F_REQUEST | NLM_F_DUMP,
            family: family as u8,
            resource: 0,
        };
        let mut chains = Vec::new();
        let asked = self.link.dump(
            header,
            |_| {},
            |part| match part {
                None => chains.clear(),
                Some(chain) => chains.extend(read_chain(family, chain)),
            },
        );
        asked.map_err(|refusal| refusal.into_error(format!("list chains of {family}")))?;
        Ok(chains)
    }

    /// All chains of a table, with what their owners say of them; none where there is no table.
    ///
    /// # Errors
    /// EINTR when commits never let a listing finish; what the kernel answered.
    pub fn list_chains_of(&mut self, table: Table<'_>) -> Result<Vec<NamedChain>> {
        let header = Header {
            kind: message::GET_CHAIN,
            flags: NLM_F_REQUEST | NLM_F_DUMP,
            family: table.family as u8,
            resource: 0,
        };
        let mut chains = Vec::new();
        let asked = self.link.dump(
            header,
            |_| {},
            |part| match part {
                None => chains.clear(),
                // The kernel lists those of all tables of the family.
                Some(chain) => chains.extend(NamedChain::read(table, chain)),
            },
        );
        asked.map_err(|refusal| refusal.into_error(format!("list chains of table {table}")))?;
        Ok(chains)
    }

    /// True when the chain is there.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn has_chain(&mut self, chain: Chain<'_>) -> Result<bool> {
        let header = chain.request(message::GET_CHAIN, NLM_F_ACK);
        match self.link.ask(header, |to| chain.encode_name(to), |_| {}) {
            Ok(()) => Ok(true),
            Err(refusal) if refusal.errno == Errno::NOENT => Ok(false),
            Err(refusal) => Err(refusal.into_error(format!("find {chain}"))),
        }
    }

    /// All rules of a chain in their order; none of a chain that is not there.
    ///
    /// # Errors
    /// EINTR when commits never let a listing finish; what the kernel answered.
    pub fn list_rules(&mut self, chain: Chain<'_>) -> Result<Vec<ListedRule>> {
        let header = chain.request(message::GET_RULES, NLM_F_DUMP);
        let mut rules = Vec::new();
        let asked = self.link.dump(
            header,
            |to| chain.encode_place(to),
            |part| match part {
                None => rules.clear(),
                Some(rule) => rules.extend(read_rule(rule)),
            },
        );
        match asked {
            Ok(()) => Ok(rules),
            // No such table.
            Err(refusal) if refusal.errno == Errno::NOENT => Ok(Vec::new()),
            Err(refusal) => Err(refusal.into_error(format!("list rules of {chain}"))),
        }
    }
}

fn read_chain(family: Family, chain: Attributes<'_>) -> Option<ListedChain> {
    let read = |kind| Some(text(chain.find(kind)?));
    Some(ListedChain {
        family,
        table: read(attribute::TABLE)?,
        name: read(attribute::NAME)?,
        base: read_base(family, chain),
    })
}

fn read_base(family: Family, chain: Attributes<'_>) -> Option<ListedBase> {
    let hook = chain.inside(attribute::HOOK)?;
    let number = |from: Attributes<'_>, kind| Some(u32::from_be(u32_at(from.find(kind)?, 0)?));
    let kind = match text(chain.find(attribute::TYPE)?).as_str() {
        "filter" => Some(ChainKind::Filter),
        "nat" => Some(ChainKind::Nat),
        _ => None,
    };
    Some(ListedBase {
        kind,
        hook: Hook::of_number(family, number(hook, attribute::HOOK_NUMBER)?)?,
        priority: number(hook, attribute::HOOK_PRIORITY)?.cast_signed(),
        policy: match number(chain, attribute::POLICY) {
            Some(0) => Policy::Drop,
            _ => Policy::Accept,
        },
    })
}

/// The attributes of a rule (`enum nft_rule_attributes`, linux/netfilter/nf_tables.h).
fn read_rule(rule: Attributes<'_>) -> Option<ListedRule> {
    let handle = rule.find(3)?; // NFTA_RULE_HANDLE
    let expressions = || {
        let list = rule.find(4).unwrap_or_default(); // NFTA_RULE_EXPRESSIONS
        Attributes(list).map(|(_, expression)| Attributes(expression))
    };
    let own = rule.find(7); // NFTA_RULE_USERDATA
    let own = own.and_then(|data| read_user_data(data, UDATA_COMMENT));
    Some(ListedRule {
        handle: u64::from_be_bytes(handle.try_into().ok()?),
        comment: own.or_else(|| expressions().find_map(read_comment_match)),
        verdict: expressions().find_map(read_verdict),
        refuses: expressions().any(refuses),
        is_for_all: !expressions().any(asks),
        links: expressions().filter_map(read_link_name).collect(),
    })
}

/// True for what ends a packet: `drop`, `reject`, and `REJECT` as `iptables-nft` writes it for some protocols.
fn refuses(expression: Attributes<'_>) -> bool {
    let target = data_of(expression, "target").and_then(|data| data.find(1)); // NFTA_TARGET_NAME
    read_verdict(expression) == Some(Verdict::Drop)
        || data_of(expression, "reject").is_some()
        || target.is_some_and(|name| text(name) == "REJECT")
}

/// True for what asks something of a packet, as far as it is known not to.
fn asks(expression: Attributes<'_>) -> bool {
    let name = expression.find(EXPR_NAME).map(text).unwrap_or_default();
    let silent = ["counter", "objref", "log", "immediate", "reject", "target"];
    !silent.contains(&name.as_str()) && read_comment_match(expression).is_none()
}

/// The name that `iifname` or `oifname` is compared with; none for the begin of one, and for other comparisons.
fn read_link_name(expression: Attributes<'_>) -> Option<IfName> {
    let data = data_of(expression, "cmp")?;
    let is_equal = u32_at(data.find(2)?, 0)? == 0; // NFTA_CMP_OP: NFT_CMP_EQ
    let value = data.inside(3)?.find(DATA_VALUE)?; // NFTA_CMP_DATA
    // `iptables-nft` compares up to the NUL alone.
    let is_name = is_equal && value.len() <= Type::IfName.length() && value.last() == Some(&0);
    let name = value.split(|byte| *byte == 0).next().filter(|_| is_name)?;
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// The data of an expression of that name.
fn data_of<'a>(expression: Attributes<'a>, name: &str) -> Option<Attributes<'a>> {
    let found = text(expression.find(EXPR_NAME)?);
    expression.inside(EXPR_DATA).filter(|_| found == name)
}

/// The comment of `-m comment`: a `struct xt_comment_info` (linux/netfilter/xt_comment.h).
fn read_comment_match(expression: Attributes<'_>) -> Option<String> {
    let data = data_of(expression, "match")?;
    let name = text(data.find(1)?); // NFTA_MATCH_NAME
    let info = data.find(3)?; // NFTA_MATCH_INFO
    (name == "comment").then(|| text(info))
}

fn read_verdict(expression: Attributes<'_>) -> Option<Verdict> {
    let data = data_of(expression, "immediate")?;
    Verdict::read(data.inside(2)?) // NFTA_IMMEDIATE_DATA
}

/// Text up to its NUL.
pub(super) fn text(bytes: &[u8]) -> String {
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}
