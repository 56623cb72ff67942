//! The programs that pods of this node run: equal ones are one, and those that nobody runs go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::program::{Peers, Program, ProgramId, SetId};
use super::set::Sets;

#[derive(Debug)]
struct Entry {
    program: Arc<Program>,
    /// By how many pods.
    used: usize,
    given: bool,
}

#[derive(Debug, Default)]
pub(super) struct Programs {
    entries: BTreeMap<ProgramId, Entry>,
    numbers: HashMap<Arc<Program>, ProgramId>,
    last: u32,
    new: BTreeSet<ProgramId>,
    perhaps_unused: BTreeSet<ProgramId>,
}

impl Programs {
    /// One more runs it.
    pub(super) fn hold(&mut self, program: Program, sets: &mut Sets) -> ProgramId {
        if let Some(id) = self.numbers.get(&program).copied() {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.used += 1;
            }
            return id;
        }
        self.last += 1;
        let id = ProgramId(self.last);
        for set in asked(&program) {
            sets.hold(set);
        }
        let program = Arc::new(program);
        self.numbers.insert(Arc::clone(&program), id);
        let entry = Entry {
            program,
            used: 1,
            given: false,
        };
        self.entries.insert(id, entry);
        self.new.insert(id);
        id
    }

    /// One less runs it.
    pub(super) fn release(&mut self, id: ProgramId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.used -= 1;
            self.perhaps_unused.insert(id);
        }
    }

    pub(super) fn get(&self, id: ProgramId) -> Option<&Arc<Program>> {
        self.entries.get(&id).map(|entry| &entry.program)
    }

    /// What is different since the last time; the sets of what nobody runs are released.
    pub(super) fn difference(
        &mut self,
        sets: &mut Sets,
    ) -> BTreeMap<ProgramId, Option<Arc<Program>>> {
        let mut changes = BTreeMap::new();
        for id in std::mem::take(&mut self.perhaps_unused) {
            if self.entries.get(&id).is_none_or(|entry| entry.used > 0) {
                continue;
            }
            let Some(entry) = self.entries.remove(&id) else {
                continue;
            };
            self.numbers.remove(&entry.program);
            for set in asked(&entry.program) {
                sets.release(set);
            }
            if entry.given {
                changes.insert(id, None);
            }
        }
        for id in std::mem::take(&mut self.new) {
            if let Some(entry) = self.entries.get_mut(&id) {
                entry.given = true;
                changes.insert(id, Some(Arc::clone(&entry.program)));
            }
        }
        changes
    }

    /// Forgets what was given out.
    pub(super) fn anew(&mut self) {
        for (id, entry) in &mut self.entries {
            entry.given = false;
            self.new.insert(*id);
        }
    }
}

fn asked(program: &Program) -> BTreeSet<SetId> {
    let steps = program.stages.iter().flatten();
    let sets = steps.filter_map(|step| match step.peers {
        Peers::Anybody => None,
        Peers::In(set) | Peers::Socket(set) => Some(set),
    });
    sets.collect()
}
