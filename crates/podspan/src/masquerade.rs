//! Masquerading: what pods send out of the cluster leaves under the node's address, and nothing else does.
//!
//! In the table that the plugin uses too stand one chain and five sets of ours, under names that begin with `agent_`; the
//! rest of the table is never looked at. Who is inside of the cluster is elements, so that a node that changes is an element
//! more or less, and each difference is one transaction. The chain comes behind those of others at its hook: the kernel takes
//! the first translation that it meets, and who wrote a rule for one destination means it.
//! Surprises: a connection keeps the translation that its first packet got until it ends, whatever is changed here; and the
//! rules are known by their comments, which change with what they do.

mod filter;
#[cfg(test)]
mod tests;

use std::fmt;

use podspan_cni::filter::INET;
use podspan_kernel::nft::{
    AddressRange, Base, Batch, Chain, Element, Field, Hook, NatFlag, News, Rule, Set, Type,
    Verdict, priority,
};
use podspan_kernel::{IfName, Prefix};

pub use filter::PacketFilter;

/// What all names of ours in the table begin with.
const OURS: &str = "agent_";
/// The addresses of this node's pods.
const PODS4: Set<'static> = Set::of(INET, "agent_pods4", &[Type::Ipv4]).with_intervals();
const PODS6: Set<'static> = Set::of(INET, "agent_pods6", &[Type::Ipv6]).with_intervals();
/// Where pods are known under their own addresses.
const INSIDE4: Set<'static> = Set::of(INET, "agent_inside4", &[Type::Ipv4]).with_intervals();
const INSIDE6: Set<'static> = Set::of(INET, "agent_inside6", &[Type::Ipv6]).with_intervals();
/// What goes out by one of these goes to a pod of this node.
const LINKS: Set<'static> = Set::of(INET, "agent_links", &[Type::IfName]);
static SETS: [Set<'static>; 5] = [PODS4, PODS6, INSIDE4, INSIDE6, LINKS];
const BASE: Base<'static> = Base::nat(Hook::Postrouting, priority::SRCNAT + BEHIND);
const CHAIN: Chain<'static> = Chain::hooked(INET, "agent_masquerade", BASE);
/// How far the chain is behind those that translate by themselves.
const BEHIND: i32 = 10;
/// The comments of the rules, in their order. Another text with every change of what a rule does.
const RULES: [&str; 3] = [
    "1: to pods of this node",
    "1: IPv4 out of the cluster",
    "1: IPv6 out of the cluster",
];
/// To many at once: 224.0.0.0/4 (RFC 5771), 255.255.255.255 (RFC 919), ff00::/8 (RFC 4291).
const MULTICAST: [&str; 3] = ["224.0.0.0/4", "255.255.255.255/32", "ff00::/8"];
/// How many elements of a set are printed where a person only looks.
const PRINTED: usize = 8;

/// What should be masqueraded, and what not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Masquerade {
    /// The links that lead to pods, sorted.
    pub links: Vec<IfName>,
    /// The addresses of this node's pods: sorted, and none lies in another.
    pub pods: Vec<AddressRange>,
    /// Where pods keep their addresses: sorted, and none lies in another.
    pub inside: Vec<AddressRange>,
}

/// What is there of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The names of our sets that are there.
    pub sets: Vec<String>,
    /// The chain.
    pub chain: SeenChain,
    /// As in [`Masquerade`].
    pub links: Vec<IfName>,
    /// As in [`Masquerade`].
    pub pods: Vec<AddressRange>,
    /// As in [`Masquerade`].
    pub inside: Vec<AddressRange>,
}

/// What is there of our chain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SeenChain {
    /// Nothing.
    #[default]
    Absent,
    /// A chain of that name that packets do not enter where they should.
    Elsewhere,
    /// The chain, with other rules than ours.
    Changed,
    /// All.
    Right,
}

/// A difference, which the kernel makes as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    AddTable,
    AddSet(&'static Set<'static>),
    DeleteSet(&'static Set<'static>),
    AddChain,
    FlushChain,
    DeleteChain,
    AddRules,
    AddRanges(&'static Set<'static>, Vec<AddressRange>),
    DeleteRanges(&'static Set<'static>, Vec<AddressRange>),
    AddLinks(Vec<IfName>),
    DeleteLinks(Vec<IfName>),
}

impl Masquerade {
    /// What leaves these pods for anywhere but `inside`, this node's other pods and many at once.
    pub fn of(
        bridge: &IfName,
        pods: &[Prefix],
        inside: impl IntoIterator<Item = AddressRange>,
    ) -> Self {
        let multicast = MULTICAST.iter().filter_map(|text| text.parse().ok());
        let multicast = multicast.map(|prefix: Prefix| prefix.into());
        let pods = pods.iter().map(|prefix| AddressRange::from(*prefix));
        Self {
            links: vec![bridge.clone()],
            pods: outermost(pods.clone().collect()),
            inside: outermost(inside.into_iter().chain(pods).chain(multicast).collect()),
        }
    }
}

/// Sorted, and without those that lie in others: of two prefixes that share an address, one lies in the other.
fn outermost(mut ranges: Vec<AddressRange>) -> Vec<AddressRange> {
    ranges.sort_unstable_by_key(|range| (range.first(), std::cmp::Reverse(range.last())));
    ranges.dedup_by(|range, before| before.covers(*range));
    ranges
}

/// True for what may have changed something of ours.
pub fn matters(news: &News<'_>) -> bool {
    let is_ours = news.object.is_none_or(|name| name.starts_with(OURS));
    news.family == INET.family && news.table == INET.name && is_ours
}

/// What makes it as desired, or none when it is; nothing is desired where nothing is to be masqueraded. A range that `stays`
/// is not removed, unless it overlaps with one that is to be added.
pub fn plan(
    desired: Option<&Masquerade>,
    seen: &Seen,
    stays: (impl Fn(AddressRange) -> bool, impl Fn(AddressRange) -> bool),
) -> Option<Transaction> {
    let mut steps = Vec::new();
    let Some(desired) = desired else {
        if seen.chain != SeenChain::Absent {
            steps.push(Step::DeleteChain);
        }
        let there = SETS.iter().filter(|set| seen.has(set));
        steps.extend(there.map(Step::DeleteSet));
        return Transaction::of(steps);
    };
    let missing: Vec<_> = SETS.iter().filter(|set| !seen.has(set)).collect();
    if !missing.is_empty() || seen.chain == SeenChain::Absent {
        steps.push(Step::AddTable);
    }
    steps.extend(missing.into_iter().map(Step::AddSet));
    let [pods4, pods6, inside4, inside6, _] = &SETS;
    let sets = [pods4, pods6];
    ranges(&mut steps, sets, (&desired.pods, &seen.pods), stays.0);
    let sets = [inside4, inside6];
    ranges(&mut steps, sets, (&desired.inside, &seen.inside), stays.1);
    links(&mut steps, &desired.links, &seen.links);
    match seen.chain {
        SeenChain::Right => {}
        SeenChain::Absent => steps.extend([Step::AddChain, Step::AddRules]),
        SeenChain::Changed => steps.extend([Step::FlushChain, Step::AddRules]),
        SeenChain::Elsewhere => {
            steps.extend([Step::DeleteChain, Step::AddChain, Step::AddRules]);
        }
    }
    Transaction::of(steps)
}

/// The difference of the two sets of one kind, for IPv4 and IPv6. Both sides are sorted.
fn ranges(
    steps: &mut Vec<Step>,
    sets: [&'static Set<'static>; 2],
    (desired, seen): (&[AddressRange], &[AddressRange]),
    stays: impl Fn(AddressRange) -> bool,
) {
    let lacks = |all: &[AddressRange], range| all.binary_search(range).is_err();
    let added: Vec<_> = { desired.iter() }
        .filter(|range| lacks(seen, range))
        .copied()
        .collect();
    let removed = seen.iter().filter(|range| lacks(desired, range)).copied();
    let removed: Vec<_> = removed
        .filter(|range| !stays(*range) || overlaps(&added, *range))
        .collect();
    for (set, is_ipv4) in sets.into_iter().zip([true, false]) {
        let of_family = |ranges: &[AddressRange]| -> Vec<AddressRange> {
            let ranges = ranges.iter().filter(|range| range.is_ipv4() == is_ipv4);
            ranges.copied().collect()
        };
        let (removed, added) = (of_family(&removed), of_family(&added));
        // What goes first: the kernel refuses what overlaps.
        if !removed.is_empty() {
            steps.push(Step::DeleteRanges(set, removed));
        }
        if !added.is_empty() {
            steps.push(Step::AddRanges(set, added));
        }
    }
}

/// True when one of these, which are sorted and apart, overlaps with the range.
fn overlaps(sorted: &[AddressRange], range: AddressRange) -> bool {
    let behind = sorted.partition_point(|other| other.first() <= range.last());
    let nearest = behind.checked_sub(1).and_then(|at| sorted.get(at));
    nearest.is_some_and(|nearest| nearest.overlaps(range))
}

fn links(steps: &mut Vec<Step>, desired: &[IfName], seen: &[IfName]) {
    let without = |all: &[IfName], others: &[IfName]| -> Vec<IfName> {
        let rest = all.iter().filter(|link| !others.contains(link));
        rest.cloned().collect()
    };
    let (added, removed) = (without(desired, seen), without(seen, desired));
    if !removed.is_empty() {
        steps.push(Step::DeleteLinks(removed));
    }
    if !added.is_empty() {
        steps.push(Step::AddLinks(added));
    }
}

impl Seen {
    fn has(&self, set: &Set<'_>) -> bool {
        self.sets.iter().any(|name| name == set.name)
    }
}

impl Transaction {
    fn of(steps: Vec<Step>) -> Option<Self> {
        (!steps.is_empty()).then_some(Self(steps))
    }

    /// As the kernel takes it.
    fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        for step in &self.0 {
            match step {
                Step::AddTable => batch.add_table(INET),
                Step::AddSet(set) => batch.add_set(set),
                Step::DeleteSet(set) => batch.delete_set(set),
                Step::AddChain => batch.add_chain(CHAIN),
                Step::FlushChain => batch.flush_chain(CHAIN),
                Step::DeleteChain => batch.delete_chain(CHAIN),
                Step::AddRules => rules().iter().for_each(|rule| batch.add_rule(rule)),
                Step::AddRanges(set, ranges) => batch.add_ranges(set, ranges),
                Step::DeleteRanges(set, ranges) => batch.delete_ranges(set, ranges),
                Step::AddLinks(links) => {
                    for link in links {
                        batch.add_element(&LINKS, &Element::new([link.into()]));
                    }
                }
                Step::DeleteLinks(links) => {
                    for link in links {
                        batch.delete_element(&LINKS, &Element::new([link.into()]));
                    }
                }
            }
        }
        batch
    }
}

fn rules() -> [Rule<'static>; 3] {
    let [to_pods, out4, out6] = RULES;
    let out = |fields: [Field; 2], sets: [&Set<'_>; 2]| {
        let ([source, destination], [pods, inside]) = (fields, sets);
        Rule::of(CHAIN)
            .is_in(&[source], pods)
            .is_not_in(&[destination], inside)
            .masquerade(&[NatFlag::FullyRandom])
    };
    [
        Rule::of(CHAIN)
            .is_in(&[Field::OIFNAME], &LINKS)
            .verdict(&Verdict::Return)
            .comment(to_pods),
        out([Field::IP_SADDR, Field::IP_DADDR], [&PODS4, &INSIDE4]).comment(out4),
        out([Field::IP6_SADDR, Field::IP6_DADDR], [&PODS6, &INSIDE6]).comment(out6),
    ]
}

/// The same rules in the words of `nft`, which a test compares.
const RULE_TEXTS: [&str; 3] = [
    "oifname @agent_links return",
    "ip saddr @agent_pods4 ip daddr != @agent_inside4 masquerade fully-random",
    "ip6 saddr @agent_pods6 ip6 daddr != @agent_inside6 masquerade fully-random",
];

impl fmt::Display for Transaction {
    /// As one would type it, which makes it one transaction: `nft 'add element …; add element …'`. Of many elements the
    /// first few, unless it is printed whole: `{:#}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nft '")?;
        for (index, step) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            step.fmt(f)?;
        }
        f.write_str("'")
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable => write!(f, "add table {INET}"),
            Self::AddSet(set) => write_set(f, set),
            Self::DeleteSet(set) => write!(f, "delete set {INET} {}", set.name),
            Self::AddChain => write!(
                f,
                "add chain {INET} {} {{ type nat hook postrouting priority srcnat + {BEHIND}; }}",
                CHAIN.name
            ),
            Self::FlushChain => write!(f, "flush {CHAIN}"),
            Self::DeleteChain => write!(f, "delete {CHAIN}"),
            Self::AddRules => {
                for (index, (rule, comment)) in RULE_TEXTS.iter().zip(RULES).enumerate() {
                    let before = if index > 0 { "; " } else { "" };
                    let name = CHAIN.name;
                    write!(
                        f,
                        "{before}add rule {INET} {name} {rule} comment \"{comment}\""
                    )?;
                }
                Ok(())
            }
            Self::AddRanges(set, ranges) => write_elements(f, ("add", set), ranges),
            Self::DeleteRanges(set, ranges) => write_elements(f, ("delete", set), ranges),
            Self::AddLinks(links) => write_elements(f, ("add", &LINKS), &quoted(links)),
            Self::DeleteLinks(links) => write_elements(f, ("delete", &LINKS), &quoted(links)),
        }
    }
}

fn write_set(f: &mut fmt::Formatter<'_>, set: &Set<'_>) -> fmt::Result {
    let kind = match set.key {
        [Type::Ipv4] => "type ipv4_addr; flags interval",
        [Type::Ipv6] => "type ipv6_addr; flags interval",
        _ => "type ifname",
    };
    write!(f, "add set {INET} {} {{ {kind}; }}", set.name)
}

fn quoted(links: &[IfName]) -> Vec<String> {
    links.iter().map(|link| format!("\"{link}\"")).collect()
}

fn write_elements(
    f: &mut fmt::Formatter<'_>,
    (verb, set): (&str, &Set<'_>),
    elements: &[impl fmt::Display],
) -> fmt::Result {
    let printed = if f.alternate() {
        elements.len()
    } else {
        PRINTED
    };
    write!(f, "{verb} element {INET} {} {{ ", set.name)?;
    for (index, element) in elements.iter().take(printed).enumerate() {
        let before = if index > 0 { ", " } else { "" };
        write!(f, "{before}{element}")?;
    }
    match elements.len().saturating_sub(printed) {
        0 => f.write_str(" }"),
        more => write!(f, ", … and {more} more }}"),
    }
}
