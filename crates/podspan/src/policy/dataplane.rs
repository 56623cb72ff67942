//! Programs and sets in the kernel: each [`Difference`] is one transaction, so that no moment lies between the old and the new.
//!
//! A program is a chain for each of its stages, a step a rule for each family and range of ports that it means. An attachment's own
//! chains, which the plugin made and which go with the address, get what runs the pod's program, and nothing else of the
//! plugin's is touched: a transaction that names the chains of an attachment that is gone fails as a whole. What an earlier
//! agent laid is replaced in the first transaction, which is why names have a number in front that is new with each start.
//!
//! What would surprise: `accept` ends the base chain that asked, not the packet's way; the other direction is asked by another.
//! A set has a name for each family, of which one may stay empty.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podspan_cni::filter::INET;
use podspan_kernel::nft::{
    Batch, Chain, Element, Field, Nft, Rule, Set, Type, Value, Verdict as NftVerdict,
};

use super::chains::{CLOSED, own_chain};
use super::object::{Action, Key, Protocol};
use super::program::{
    Difference, Direction, Members, Origin, Peers, Ports, Program, ProgramId, SetChange, SetId,
    Step, Verdict,
};

/// Begins the names of the chains of programs, and of sets.
const PREFIX: &str = "policy";
/// How long a rule's comment may be, in bytes.
const COMMENT: usize = 253;
const SOCKET4: [Type; 3] = [Type::Ipv4, Type::Protocol, Type::Port];
const SOCKET6: [Type; 3] = [Type::Ipv6, Type::Protocol, Type::Port];

/// What of ours is in the kernel.
pub struct Dataplane {
    nft: Nft,
    /// What a pod that the API does not know yet may do.
    when_unknown_open: bool,
    /// The number that all names of now begin with.
    epoch: u32,
    /// What others of us laid before, until the first transaction.
    stale: Option<Stale>,
    /// What sets are, to delete them by the right names.
    kinds: BTreeMap<SetId, Kind>,
    /// What programs are, as far as whoever runs or deletes them must know.
    programs: BTreeMap<ProgramId, Laid>,
}

/// A program that is in the kernel.
#[derive(Debug, Clone, Copy)]
struct Laid {
    stages: usize,
    /// What no step met is dropped.
    isolates: bool,
}

/// Chains and sets of an earlier epoch.
#[derive(Debug, Default)]
struct Stale {
    chains: Vec<String>,
    sets: Vec<String>,
}

/// What kind of members a set has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Addresses,
    Ranges,
    Sockets,
}

impl Kind {
    fn of(members: &Members) -> Self {
        match members {
            Members::Addresses(_) => Self::Addresses,
            Members::Ranges(_) => Self::Ranges,
            Members::Sockets(_) => Self::Sockets,
        }
    }
}

/// The names of a set's two halves.
struct Names([String; 2]);

impl Names {
    fn sets(&self, kind: Kind) -> [Set<'_>; 2] {
        let Self([v4, v6]) = self;
        match kind {
            Kind::Addresses => [
                Set::of(INET, v4, &[Type::Ipv4]),
                Set::of(INET, v6, &[Type::Ipv6]),
            ],
            Kind::Ranges => [
                Set::of(INET, v4, &[Type::Ipv4]).with_intervals(),
                Set::of(INET, v6, &[Type::Ipv6]).with_intervals(),
            ],
            Kind::Sockets => [Set::of(INET, v4, &SOCKET4), Set::of(INET, v6, &SOCKET6)],
        }
    }
}

impl Dataplane {
    /// For the network namespace of the calling thread. Nothing is changed yet.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn open(when_unknown_open: bool) -> podspan_kernel::Result<Self> {
        let mut dataplane = Self {
            nft: Nft::open()?,
            when_unknown_open,
            epoch: 0,
            stale: None,
            kinds: BTreeMap::new(),
            programs: BTreeMap::new(),
        };
        dataplane.begin_anew()?;
        Ok(dataplane)
    }

    /// The next difference is everything, and takes the place of all that is there.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn begin_anew(&mut self) -> podspan_kernel::Result<()> {
        let of_us = |name: &str| epoch_of(name).is_some();
        let chains = self.nft.list_chains(INET.family)?;
        let chains = chains.into_iter().filter(|chain| chain.table == INET.name);
        let chains: Vec<_> = chains
            .map(|chain| chain.name)
            .filter(|name| of_us(name))
            .collect();
        let sets = self.nft.list_sets(INET)?.into_iter().map(|set| set.name);
        let sets: Vec<_> = sets.filter(|name| of_us(name)).collect();
        let last = chains
            .iter()
            .chain(&sets)
            .filter_map(|name| epoch_of(name))
            .max();
        self.epoch = last.map_or(0, |last| last.wrapping_add(1));
        self.stale = Some(Stale { chains, sets });
        self.kinds.clear();
        self.programs.clear();
        Ok(())
    }

    /// The connection to the kernel's packet filter.
    pub fn nft(&mut self) -> &mut Nft {
        &mut self.nft
    }

    /// Puts a difference into the kernel, as a whole or not at all.
    ///
    /// # Errors
    /// ENOENT when an attachment that it names is gone; what else the kernel answered. Then [`Self::begin_anew`].
    pub fn apply(&mut self, difference: &Difference) -> podspan_kernel::Result<()> {
        let mut batch = Batch::new();
        for (id, change) in &difference.sets {
            self.change_set(&mut batch, *id, change);
        }
        for (id, program) in &difference.programs {
            if let Some(program) = program {
                self.lay_program(&mut batch, *id, program);
            }
        }
        for (attachment, verdict) in &difference.attachments {
            self.lay_attachment(&mut batch, attachment, verdict);
        }
        self.clear(&mut batch, difference);
        self.nft.commit(batch)?;
        self.stale = None;
        Ok(())
    }

    fn change_set(&mut self, batch: &mut Batch, id: SetId, change: &SetChange) {
        let names = self.set_names(id);
        match change {
            SetChange::New(members) => {
                let kind = Kind::of(members);
                self.kinds.insert(id, kind);
                for set in &names.sets(kind) {
                    batch.add_set(set);
                }
                add(batch, &names, members);
            }
            SetChange::Changed { added, removed } => {
                delete(batch, &names, removed);
                add(batch, &names, added);
            }
            SetChange::Gone => {}
        }
    }

    /// All its chains first, which refer to each other.
    fn lay_program(&mut self, batch: &mut Batch, id: ProgramId, program: &Program) {
        let laid = Laid {
            stages: program.stages.len(),
            isolates: !program.isolated_by.is_empty(),
        };
        self.programs.insert(id, laid);
        let names: Vec<_> = (0..program.stages.len())
            .map(|stage| self.chain_name(id, stage))
            .collect();
        for name in &names {
            batch.add_chain(Chain::plain(INET, name));
        }
        for (place, (name, stage)) in names.iter().zip(&program.stages).enumerate() {
            let chain = Chain::plain(INET, name);
            // Behind the last stage back to the attachment's chain, where it is decided.
            let next = names.get(place + 1).map(|next| Chain::plain(INET, next));
            let on = next.map_or(NftVerdict::Return, |next| NftVerdict::goto(&next));
            for step in stage {
                for rule in self.matches(chain, program.direction, step) {
                    batch.add_rule(&decide(rule, step, &on));
                }
            }
            batch.add_rule(&Rule::of(chain).verdict(&on));
        }
    }

    /// A step as rules: one for each family, protocol and range of ports that it means.
    fn matches<'a>(&self, chain: Chain<'a>, direction: Direction, step: &Step) -> Vec<Rule<'a>> {
        let peer = match direction {
            Direction::Ingress => [Field::IP_SADDR, Field::IP6_SADDR],
            Direction::Egress => [Field::IP_DADDR, Field::IP6_DADDR],
        };
        let from = match step.peers {
            Peers::Anybody => vec![Rule::of(chain)],
            Peers::In(id) => {
                let (names, kind) = (self.set_names(id), self.kinds.get(&id));
                let sets = names.sets(kind.copied().unwrap_or(Kind::Addresses));
                let both = peer.into_iter().zip(&sets);
                both.map(|(field, set)| Rule::of(chain).is_in(&[field], set))
                    .collect()
            }
            Peers::Socket(id) => {
                let names = self.set_names(id);
                let sets = names.sets(Kind::Sockets);
                let both = peer.into_iter().zip(&sets);
                both.map(|(field, set)| {
                    Rule::of(chain).is_in(&[field, Field::L4PROTO, Field::DPORT], set)
                })
                .collect()
            }
        };
        let Ports::Of(ranges) = &step.ports else {
            return from;
        };
        let with_ports = |rule: Rule<'a>| {
            ranges.iter().map(move |(protocol, first, last)| {
                let rule = rule.clone().is(Field::L4PROTO, number(*protocol));
                match (first, last) {
                    (0, &u16::MAX) => rule,
                    _ if first == last => rule.is(Field::DPORT, Value::Port(*first)),
                    _ => rule.between(Field::DPORT, Value::Port(*first), Value::Port(*last)),
                }
            })
        };
        from.into_iter().flat_map(with_ports).collect()
    }

    /// Takes the place of what is in an attachment's chains, which must be there.
    fn lay_attachment(&self, batch: &mut Batch, attachment: &str, verdict: &Verdict) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let name = own_chain(attachment, direction);
            let chain = Chain::plain(INET, &name);
            batch.flush_chain(chain);
            let program = match (verdict, direction) {
                (Verdict::Unknown, _) if self.when_unknown_open => None,
                (Verdict::Unknown, _) => {
                    let rule = Rule::of(chain).comment(CLOSED).counter();
                    batch.add_rule(&rule.verdict(&NftVerdict::Drop));
                    None
                }
                (Verdict::Known { ingress, .. }, Direction::Ingress) => *ingress,
                (Verdict::Known { egress, .. }, Direction::Egress) => *egress,
            };
            if let Some(id) = program {
                self.run(batch, chain, id);
            }
        }
    }

    /// What leaves a program undecided comes back: it is dropped here, where drops are counted for each pod, or passes.
    fn run(&self, batch: &mut Batch, chain: Chain<'_>, id: ProgramId) {
        let Some(laid) = self.programs.get(&id) else {
            // Named by nobody who keeps to the contract: closed, and seen in the list of rules.
            batch.add_rule(&Rule::of(chain).counter().verdict(&NftVerdict::Drop));
            return;
        };
        if laid.stages > 0 {
            let first = self.chain_name(id, 0);
            let first = NftVerdict::jump(&Chain::plain(INET, &first));
            batch.add_rule(&Rule::of(chain).verdict(&first));
        }
        if laid.isolates {
            batch.add_rule(&Rule::of(chain).counter().verdict(&NftVerdict::Drop));
        }
    }

    /// Deletes what nobody refers to any longer: of this epoch, and of an earlier one.
    fn clear(&mut self, batch: &mut Batch, difference: &Difference) {
        let mut stale = Stale::default();
        for (id, program) in &difference.programs {
            if program.is_none()
                && let Some(laid) = self.programs.remove(id)
            {
                let stages = 0..laid.stages;
                stale
                    .chains
                    .extend(stages.map(|stage| self.chain_name(*id, stage)));
            }
        }
        for (id, change) in &difference.sets {
            if *change == SetChange::Gone && self.kinds.remove(id).is_some() {
                stale.sets.extend(self.set_names(*id).0);
            }
        }
        for stale in self.stale.iter().chain([&stale]) {
            stale.delete(batch);
        }
    }

    fn chain_name(&self, id: ProgramId, stage: usize) -> String {
        format!("{PREFIX}_{}_{}_{stage}", self.epoch, id.0)
    }

    fn set_names(&self, id: SetId) -> Names {
        Names([4, 6].map(|family| format!("{PREFIX}_{}_{}_ip{family}", self.epoch, id.0)))
    }
}

impl Stale {
    /// All chains are emptied before the first is deleted, because they lead to each other.
    fn delete(&self, batch: &mut Batch) {
        let chains = || self.chains.iter().map(|name| Chain::plain(INET, name));
        chains().for_each(|chain| batch.flush_chain(chain));
        chains().for_each(|chain| batch.delete_chain(chain));
        for name in &self.sets {
            batch.delete_set(&Set::of(INET, name, &[]));
        }
    }
}

/// With what the step says of what it means.
fn decide<'a>(rule: Rule<'a>, step: &Step, on: &NftVerdict) -> Rule<'a> {
    let rule = rule.comment(comment(&step.origin));
    match step.action {
        Action::Accept => rule.verdict(&NftVerdict::Accept),
        Action::Deny => rule.counter().verdict(&NftVerdict::Drop),
        Action::Pass => rule.verdict(on),
    }
}

fn epoch_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?.strip_prefix('_')?;
    rest.split('_').next()?.parse().ok()
}

fn add(batch: &mut Batch, names: &Names, members: &Members) {
    change(names, members, |set, elements| {
        batch.add_elements(set, elements)
    });
}

fn delete(batch: &mut Batch, names: &Names, members: &Members) {
    change(names, members, |set, elements| {
        batch.delete_elements(set, elements);
    });
}

/// The members of each family, and the set that they belong to.
fn change(names: &Names, members: &Members, mut take: impl FnMut(&Set<'_>, &[Element])) {
    let elements: Vec<(bool, Element)> = match members {
        Members::Addresses(all) => {
            let all = all.iter().copied();
            all.map(|ip| (ip.is_ipv4(), Element::new([ip.into()])))
                .collect()
        }
        Members::Ranges(all) => {
            let all = all.iter().copied();
            all.map(|(first, last)| {
                let element = Element::new([first.into()]).through([last.into()]);
                (first.is_ipv4(), element)
            })
            .collect()
        }
        Members::Sockets(all) => all.iter().copied().map(socket).collect(),
    };
    let (v4, v6): (Vec<_>, Vec<_>) = elements.into_iter().partition(|(is_ipv4, _)| *is_ipv4);
    for (set, elements) in names.sets(Kind::of(members)).iter().zip([v4, v6]) {
        let elements: Vec<_> = elements.into_iter().map(|(_, element)| element).collect();
        take(set, &elements);
    }
}

fn socket((ip, protocol, port): (IpAddr, Protocol, u16)) -> (bool, Element) {
    let key = [ip.into(), number(protocol), Value::Port(port)];
    (ip.is_ipv4(), Element::new(key))
}

fn number(protocol: Protocol) -> Value {
    match protocol {
        Protocol::Tcp => Value::TCP,
        Protocol::Udp => Value::UDP,
        Protocol::Sctp => Value::SCTP,
    }
}

/// The rule that a rule of the kernel stands for, for people who read `nft list`.
fn comment(origin: &Origin) -> String {
    let mut text = match origin {
        Origin::Rule(Key { namespace, name }, rule) => {
            format!("NetworkPolicy {namespace}/{name} rule {}", rule + 1)
        }
        Origin::ClusterRule(name, rule, called) => {
            let called = called.as_ref().map(|called| format!(" {called}"));
            let called = called.unwrap_or_default();
            format!("ClusterNetworkPolicy {name} rule {}{called}", rule + 1)
        }
    };
    let end = (0..=COMMENT).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
    text
}

#[cfg(test)]
mod tests;
