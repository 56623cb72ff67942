//! Programs and sets in the kernel: each [`Difference`] is one transaction, so that no moment lies between the old and the new.
//!
//! A program is a chain for each of its stages, a step a rule for each family and range of ports that it means. An attachment's own
//! chains, which the plugin made and which go with the address, get what runs the pod's program, and nothing else of the
//! plugin's is touched: a transaction that names the chains of an attachment that is gone fails as a whole. What an earlier
//! agent laid is replaced in the first transaction, which is why names have a number in front that is new with each start.
//!
//! Whatever is dropped is dropped in the attachment's chain, where it is counted and logged for each pod ([`super::denied`]): a
//! step that denies sends the packet back there. Where more than one policy can, the packet's mark says which: a mark that nobody
//! sees, because from there no packet goes on.
//!
//! What would surprise: `accept` ends the base chain that asked, not the packet's way; the other direction is asked by another.
//! A set has a name for each family, of which one may stay empty.

mod elements;

use std::collections::{BTreeMap, BTreeSet};

use podspan_cni::filter::INET;
use podspan_kernel::Errno;
use podspan_kernel::nft::{
    Batch, Chain, Counter, Field, Nft, Rule, Set, Table, Value, Verdict as NftVerdict,
};

use self::elements::{Kind, Names, add, delete, number};
use super::chains::{CLOSED, own_chain};
use super::denied::{Counted, Denier, GROUP, TOLD, counted_by};
use super::object::{Action, Key};
use super::program::{
    Attachment, Difference, Direction, Origin, Peers, Ports, Program, ProgramId, SetChange, SetId,
    Step, Verdict,
};

/// Begins the names of the chains of programs, and of sets.
const PREFIX: &str = "policy";
/// How many counters of an attachment's are told that no rule counts with any longer.
const FORMER: usize = 8;
/// How long a rule's comment may be, in bytes.
const COMMENT: usize = 253;

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
    /// The kernel has what rules that log need.
    logs: bool,
    /// By their names, the counters of attachments that are there.
    counters: BTreeMap<String, Place>,
    /// Counters with which nobody counts any longer.
    idle: BTreeSet<String>,
    /// The counters are others than the last time that somebody asked.
    counters_changed: bool,
}

/// A counter that is in the kernel.
#[derive(Debug)]
struct Place {
    counted: Counted,
    /// A rule counts with it; if not, it says what was counted.
    is_used: bool,
}

/// A program that is in the kernel.
#[derive(Debug, Clone)]
struct Laid {
    stages: usize,
    /// Who denies what comes back; with nobody everything passes that does.
    deniers: Vec<Denier>,
}

/// Chains and sets of an earlier epoch.
#[derive(Debug, Default)]
struct Stale {
    chains: Vec<String>,
    sets: Vec<String>,
}

impl Dataplane {
    /// For the network namespace of the calling thread. Nothing is changed yet.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn open(when_unknown_open: bool) -> podspan_kernel::Result<Self> {
        let mut nft = Nft::open()?;
        let mut dataplane = Self {
            logs: can_log(&mut nft)?,
            nft,
            counters: BTreeMap::new(),
            idle: BTreeSet::new(),
            counters_changed: true,
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
        self.counters.clear();
        self.counters_changed = true;
        self.idle = self.listed_counters()?;
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

    /// The attachment is gone, and its chains with it.
    pub fn forget(&mut self, attachment: &str) {
        let gone = |_: &String, place: &mut Place| *place.counted.attachment == *attachment;
        let gone = self.counters.extract_if(.., gone);
        self.idle.extend(gone.map(|(name, _)| name));
        self.counters_changed = true;
    }

    /// The counters by their names, when they are others than the last time.
    pub fn changed_counters(&mut self) -> Option<impl Iterator<Item = (&String, &Counted)>> {
        let all = self.counters.iter();
        let all = all.map(|(name, place)| (name, &place.counted));
        std::mem::take(&mut self.counters_changed).then_some(all)
    }

    /// Deletes the counters with which nobody counts any longer.
    ///
    /// # Errors
    /// What the kernel answered, other than that one is not there, or that a rule counts with it: then it is for the next time.
    pub fn sweep(&mut self) -> podspan_kernel::Result<()> {
        let mut left = BTreeSet::new();
        for name in std::mem::take(&mut self.idle) {
            let mut batch = Batch::new();
            batch.delete_counter(&Counter::of(INET, &name));
            match self.nft.commit(batch) {
                Err(error) if error.errno() == Errno::BUSY => drop(left.insert(name)),
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        self.idle = left;
        Ok(())
    }

    /// Those in the kernel that count what attachments are denied.
    fn listed_counters(&mut self) -> podspan_kernel::Result<BTreeSet<String>> {
        let listed = self.nft.list_counters(INET)?.into_iter();
        let names = listed.map(|counter| counter.name);
        Ok(names.filter(|name| counted_by(name).is_some()).collect())
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
            deniers: Denier::all_of(program),
        };
        self.programs.insert(id, laid.clone());
        let ways = Ways::of(program, &laid.deniers);
        let names: Vec<_> = (0..program.stages.len())
            .map(|stage| self.chain_name(id, stage))
            .collect();
        for name in &names {
            batch.add_chain(Chain::plain(INET, name));
        }
        for (place, (name, stage)) in names.iter().zip(&program.stages).enumerate() {
            let chain = Chain::plain(INET, name);
            let next = names.get(place + 1).map(|next| Chain::plain(INET, next));
            for step in stage {
                for rule in self.matches(chain, program.direction, step) {
                    batch.add_rule(&ways.decide(rule, step, next.as_ref()));
                }
            }
            batch.add_rule(&ways.on(Rule::of(chain), next.as_ref()));
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
    fn lay_attachment(&mut self, batch: &mut Batch, attachment: &Attachment, verdict: &Verdict) {
        self.retire_counters(attachment);
        for direction in [Direction::Ingress, Direction::Egress] {
            let name = own_chain(attachment, direction);
            let chain = Chain::plain(INET, &name);
            batch.flush_chain(chain);
            let of = (attachment, direction);
            let program = match (verdict, direction) {
                (Verdict::Unknown, _) if self.when_unknown_open => None,
                (Verdict::Unknown, _) => {
                    let rule = Rule::of(chain).comment(CLOSED);
                    self.deny(batch, of, (rule, &Denier::Unknown));
                    None
                }
                (Verdict::Known { ingress, .. }, Direction::Ingress) => *ingress,
                (Verdict::Known { egress, .. }, Direction::Egress) => *egress,
            };
            if let Some(id) = program {
                self.run(batch, of, (chain, id));
            }
        }
    }

    /// What comes back of a program is dropped here, where it is counted for each pod, or passes where nobody denies anything.
    fn run(
        &mut self,
        batch: &mut Batch,
        of: (&Attachment, Direction),
        (chain, id): (Chain<'_>, ProgramId),
    ) {
        let Some(laid) = self.programs.get(&id).cloned() else {
            // Named by nobody who keeps to the contract: closed, and seen in the list of rules.
            batch.add_rule(&Rule::of(chain).counter().verdict(&NftVerdict::Drop));
            return;
        };
        if laid.stages > 0 {
            let first = self.chain_name(id, 0);
            let first = NftVerdict::jump(&Chain::plain(INET, &first));
            batch.add_rule(&Rule::of(chain).verdict(&first));
        }
        let Some((last, marked)) = laid.deniers.split_last() else {
            return;
        };
        for (mark, denier) in (0..).zip(marked) {
            let rule = Rule::of(chain).is(Field::MARK, Value::Mark(mark));
            self.deny(batch, of, (rule, denier));
        }
        // Without a question: nothing that comes back passes.
        self.deny(batch, of, (Rule::of(chain), last));
    }

    /// Logs, counts and drops what `rule` matches.
    fn deny(
        &mut self,
        batch: &mut Batch,
        (attachment, direction): (&Attachment, Direction),
        (rule, denier): (Rule<'_>, &Denier),
    ) {
        let counted = Counted {
            attachment: attachment.clone(),
            direction,
            denier: denier.to_string().into(),
        };
        let name = counted.name();
        let counter = Counter {
            comment: Some(counted.comment()),
            ..Counter::of(INET, &name)
        };
        batch.add_counter(&counter);
        if self.logs {
            batch.add_rule(&rule.clone().limit(TOLD).log_to(GROUP, &name));
        }
        batch.add_rule(&rule.counts_with(&counter).verdict(&NftVerdict::Drop));
        self.idle.remove(&name);
        let place = Place {
            counted,
            is_used: true,
        };
        self.counters.insert(name, place);
        self.counters_changed = true;
    }

    /// No rule of the attachment's counts any longer. What was counted is told on, of some.
    fn retire_counters(&mut self, attachment: &str) {
        let mut unused = 0;
        let too_many = |_: &String, place: &mut Place| {
            if *place.counted.attachment != *attachment {
                return false;
            }
            unused += usize::from(!place.is_used);
            let is_too_many = !place.is_used && unused > FORMER;
            place.is_used = false;
            is_too_many
        };
        let names = self.counters.extract_if(.., too_many);
        self.idle.extend(names.map(|(name, _)| name));
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

/// Where packets go on in a program.
struct Ways<'a> {
    /// Behind the last stage what is left is dropped.
    isolates: bool,
    deniers: &'a [Denier],
}

impl<'a> Ways<'a> {
    fn of(program: &Program, deniers: &'a [Denier]) -> Self {
        Self {
            isolates: !program.isolated_by.is_empty(),
            deniers,
        }
    }

    /// With what the step says of what it means.
    fn decide<'r>(&self, rule: Rule<'r>, step: &Step, next: Option<&Chain<'_>>) -> Rule<'r> {
        let rule = rule.comment(comment(&step.origin));
        match step.action {
            Action::Accept => rule.verdict(&NftVerdict::Accept),
            Action::Deny => self.back(rule, &Denier::of_rule(&step.origin)),
            Action::Pass => self.on(rule, next),
        }
    }

    /// With the next stage; behind the last one nothing is left to ask.
    fn on<'r>(&self, rule: Rule<'r>, next: Option<&Chain<'_>>) -> Rule<'r> {
        match (next, self.deniers.last()) {
            (Some(next), _) => rule.verdict(&NftVerdict::goto(next)),
            (None, Some(last)) if self.isolates => self.back(rule, last),
            // What comes back is dropped where anybody denies anything.
            (None, Some(_)) => rule.verdict(&NftVerdict::Accept),
            (None, None) => rule.verdict(&NftVerdict::Return),
        }
    }

    /// Back to the attachment's chain, to be dropped for that one's sake.
    fn back<'r>(&self, rule: Rule<'r>, denier: &Denier) -> Rule<'r> {
        let mark = self.deniers.iter().position(|known| known == denier);
        let mark = mark.and_then(|mark| u32::try_from(mark).ok());
        let rule = match mark {
            Some(mark) if self.deniers.len() > 1 => rule.set_mark(mark),
            _ => rule,
        };
        rule.verdict(&NftVerdict::Return)
    }
}

/// True where rules may log to a group: the kernel is asked with a table that never is.
fn can_log(nft: &mut Nft) -> podspan_kernel::Result<bool> {
    let table = Table {
        name: "podspan_asks",
        ..INET
    };
    let chain = Chain::plain(table, "log");
    let mut batch = Batch::new();
    batch.add_table(table);
    batch.add_chain(chain);
    batch.add_rule(&Rule::of(chain).log_to(GROUP, "may I"));
    batch.delete_table(table);
    match nft.commit(batch) {
        Ok(()) => Ok(true),
        // No logger, no expression, or not here.
        Err(error) if [Errno::NOENT, Errno::OPNOTSUPP].contains(&error.errno()) => Ok(false),
        Err(error) => Err(error),
    }
}

fn epoch_of(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?.strip_prefix('_')?;
    rest.split('_').next()?.parse().ok()
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
