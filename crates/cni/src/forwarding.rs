//! What lets pods through where the node's own filter drops what it forwards (chain `FORWARD` with the policy drop, as of
//! Docker or of an operator).
//!
//! A verdict of ours in a table of ours cannot undo that drop. So in `ip filter` and `ip6 filter`, where these and their
//! `FORWARD` are there, stands a chain of ours, [`NAME`], and a jump to it before all other rules. In it, the administrator's
//! chain comes first; then two rules for each link that leads from the node to pods: a bridge's stay for the next pod, those
//! of a link that is one attachment's go with it. They are few however many pods there are, and only what is missing is added.
//! Nothing of somebody else's is changed: ours is that chain and what jumps to it from `FORWARD`.
//! Surprises: `iptables-nft` refuses to list a table with one rule that it could not have written, so that they are in its
//! words; and the chain is not made where there is no `FORWARD`, which would drop nothing. Who makes one later is met by the
//! next ADD.

use std::collections::BTreeSet;

use podspan_kernel::nft::{
    Batch, Chain, CtState, Family, Field, ListedRule, Nft, Rule, Table, Verdict,
};
use podspan_kernel::{IfName, Result};

use crate::attachment::MARK;

/// The name of our chain.
pub const NAME: &str = "PODSPAN-FORWARD";
/// The tables that `iptables-nft` keeps.
pub const TABLES: [Table<'static>; 2] = [
    Table {
        family: Family::Ip,
        name: "filter",
    },
    Table {
        family: Family::Ip6,
        name: "filter",
    },
];
/// What is said of the jump from `FORWARD`.
const JUMP_COMMENT: &str = "podspan:forward";
/// From the pods, and to them.
const RULES_PER_WAY: usize = 2;

/// A link that leads from the node to pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The link.
    pub link: IfName,
    /// The attachment that it is there for, as [`comment_of`] has it; none for a bridge.
    pub owner: Option<String>,
}

/// What is to be let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The administrator's chain, whose rules decide before ours; made when it is missing.
    pub admin: String,
    /// Everything from these links, and the answers to it.
    pub ways: Vec<Way>,
}

/// An attachment's alias as the comment of its rules, which has room for 253 bytes: without its mark it always fits.
pub fn comment_of(alias: &str) -> &str {
    alias.strip_prefix(MARK).unwrap_or(alias)
}

impl Way {
    fn comment(&self) -> String {
        self.owner
            .clone()
            .unwrap_or_else(|| format!("bridge {}", self.link))
    }

    fn rules<'a>(&self, chain: Chain<'a>) -> [Rule<'a>; RULES_PER_WAY] {
        let from = Rule::of(chain).is(Field::IIFNAME, &self.link);
        let to = Rule::of(chain)
            .is(Field::OIFNAME, &self.link)
            .xt_ct_state(&[CtState::Related, CtState::Established]);
        [from, to].map(|rule| {
            let accept = rule.counter().verdict(&Verdict::Accept);
            accept.comment(self.comment())
        })
    }
}

/// What is there of it in one table.
struct Seen<'a> {
    forward: Chain<'a>,
    ours: Chain<'a>,
    admin: Chain<'a>,
    /// The rules of our chain.
    rules: Vec<ListedRule>,
    leads_to_ours: bool,
    leads_to_admin: bool,
}

impl<'a> Seen<'a> {
    /// None where nothing can be dropped.
    fn look(nft: &mut Nft, table: Table<'a>, admin: &'a str) -> Result<Option<Self>> {
        let [forward, ours, admin] = ["FORWARD", NAME, admin].map(|name| Chain::plain(table, name));
        if !nft.has_chain(forward)? {
            return Ok(None);
        }
        let rules = nft.list_rules(ours)?;
        let leads_to = |rules: &[ListedRule], chain| rules.iter().any(|rule| jumps(rule, chain));
        Ok(Some(Self {
            forward,
            ours,
            admin,
            leads_to_ours: leads_to(&nft.list_rules(forward)?, ours),
            leads_to_admin: leads_to(&rules, admin),
            rules,
        }))
    }

    /// The rules that are there with the comment of this way.
    fn rules_of(&self, way: &Way) -> impl Iterator<Item = &ListedRule> {
        let comment = way.comment();
        let is_of = move |rule: &&ListedRule| rule.comment.as_deref() == Some(&comment);
        self.rules.iter().filter(is_of)
    }

    /// All that belongs to the way stands; `ways` are all that are wanted.
    fn has(&self, way: &Way, ways: &[Way]) -> bool {
        let alike = ways.iter().filter(|other| other.comment() == way.comment());
        self.rules_of(way).count() == alike.count() * RULES_PER_WAY
    }
}

fn jumps(rule: &ListedRule, chain: Chain<'_>) -> bool {
    rule.verdict == Some(Verdict::jump(&chain))
}

/// Adds to the batch what is missing of `wanted`.
///
/// # Errors
/// What the kernel answered.
pub fn allow(nft: &mut Nft, batch: &mut Batch, wanted: &Wanted) -> Result<()> {
    for table in TABLES {
        let Some(seen) = Seen::look(nft, table, &wanted.admin)? else {
            continue;
        };
        // What stands there of an attachment is of another life of it, with another link.
        let anew = |way: &&Way| way.owner.is_some() || !seen.has(way, &wanted.ways);
        let anew: Vec<_> = wanted.ways.iter().filter(anew).collect();
        if anew.is_empty() && seen.leads_to_ours && seen.leads_to_admin {
            continue;
        }
        batch.add_chain(seen.ours);
        let stale = anew.iter().flat_map(|way| seen.rules_of(way));
        for handle in stale.map(|rule| rule.handle).collect::<BTreeSet<_>>() {
            batch.delete_rule(seen.ours, handle);
        }
        if !seen.leads_to_admin {
            batch.add_chain(seen.admin);
            batch.insert_rule(&jump(seen.ours, seen.admin));
        }
        for rule in anew.iter().flat_map(|way| way.rules(seen.ours)) {
            batch.add_rule(&rule);
        }
        if !seen.leads_to_ours {
            batch.insert_rule(&jump(seen.forward, seen.ours).comment(JUMP_COMMENT));
        }
    }
    Ok(())
}

fn jump<'a>(from: Chain<'a>, to: Chain<'_>) -> Rule<'a> {
    Rule::of(from).counter().verdict(&Verdict::jump(&to))
}

/// What of `wanted` is missing, in words.
///
/// # Errors
/// What the kernel answered.
pub fn missing(nft: &mut Nft, wanted: &Wanted) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for table in TABLES {
        let Some(seen) = Seen::look(nft, table, &wanted.admin)? else {
            continue;
        };
        for (stands, from, to) in [
            (seen.leads_to_ours, seen.forward, seen.ours),
            (seen.leads_to_admin, seen.ours, seen.admin),
        ] {
            if !stands {
                missing.push(format!("{from} does not lead to {}", to.name));
            }
        }
        let ways = wanted.ways.iter();
        let lacking = ways.filter(|way| !seen.has(way, &wanted.ways));
        missing
            .extend(lacking.map(|way| format!("{} does not let {} through", seen.ours, way.link)));
    }
    Ok(missing)
}

/// Adds to the batch that the rules of some attachments go: of those whose comment `is_gone`.
///
/// # Errors
/// What the kernel answered.
pub fn forget(nft: &mut Nft, batch: &mut Batch, is_gone: impl Fn(&str) -> bool) -> Result<()> {
    for table in TABLES {
        let ours = Chain::plain(table, NAME);
        for rule in nft.list_rules(ours)? {
            if rule.comment.as_deref().is_some_and(&is_gone) {
                batch.delete_rule(ours, rule.handle);
            }
        }
    }
    Ok(())
}

/// Removes a chain of ours from one of the [`TABLES`], with what leads to it from `FORWARD`; false when it is not there. The
/// administrator's chain stays.
///
/// # Errors
/// What the kernel answered; EBUSY when somebody else's rules jump to it.
pub fn remove(nft: &mut Nft, table: Table<'_>, name: &str) -> Result<bool> {
    let [forward, ours] = ["FORWARD", name].map(|name| Chain::plain(table, name));
    remove_chain(nft, forward, ours)
}

/// Removes a chain with what leads to it from `base`; false when it is not there.
///
/// # Errors
/// What the kernel answered; EBUSY when rules of another chain jump to it.
pub fn remove_chain(nft: &mut Nft, base: Chain<'_>, chain: Chain<'_>) -> Result<bool> {
    let mut is_there = false;
    nft.settle(|nft| {
        let mut batch = Batch::new();
        is_there = nft.has_chain(chain)?;
        if is_there {
            for rule in nft.list_rules(base)? {
                if jumps(&rule, chain) {
                    batch.delete_rule(base, rule.handle);
                }
            }
            batch.delete_chain(chain);
        }
        Ok(batch)
    })?;
    Ok(is_there)
}
