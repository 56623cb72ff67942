//! What the kernel holds when it has applied every difference, and what it would refuse.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::super::super::object::Protocol;
use super::super::super::program::{
    Attachment, Decision, Difference, Direction, Members, Packet, Peers, Program, ProgramId,
    SetChange, SetId, Verdict,
};

/// Sets, programs and the chains of attachments.
#[derive(Debug, Default)]
pub struct Mirror {
    pub sets: BTreeMap<SetId, Members>,
    pub programs: BTreeMap<ProgramId, Arc<Program>>,
    /// None where ADD made the chains and nobody filled them.
    pub attachments: BTreeMap<Attachment, Option<Verdict>>,
    last_set: u32,
    last_program: u32,
}

impl Mirror {
    /// The plugin makes the chains of an attachment.
    pub fn add(&mut self, name: &Attachment) {
        self.attachments.insert(name.clone(), None);
    }

    /// The plugin takes them away.
    pub fn del(&mut self, name: &str) {
        self.attachments.remove(name);
    }

    /// Lays everything anew in one transaction: nothing of what was there stays, but the chains of attachments.
    pub fn replace(&mut self, difference: Difference) {
        self.sets.clear();
        self.programs.clear();
        self.attachments.values_mut().for_each(|it| *it = None);
        (self.last_set, self.last_program) = (0, 0);
        let named: BTreeSet<_> = difference.attachments.keys().cloned().collect();
        let all: BTreeSet<_> = self.attachments.keys().cloned().collect();
        assert_eq!(named, all, "every attachment is named");
        self.apply(difference);
    }

    /// One transaction. Panics where the kernel would refuse it, or where it leaves what nobody uses.
    pub fn apply(&mut self, difference: Difference) {
        let mut newest = self.last_set;
        for (id, change) in difference.sets {
            match change {
                SetChange::New(members) => {
                    assert!(id.0 > self.last_set, "{id:?} is used again");
                    newest = newest.max(id.0);
                    check_ranges(&members);
                    self.sets.insert(id, members);
                }
                SetChange::Changed { added, removed } => {
                    let members = self.sets.get_mut(&id).expect("a set that is there");
                    change_members(members, added, removed);
                }
                SetChange::Gone => {
                    assert!(self.sets.remove(&id).is_some(), "{id:?} is not there");
                }
            }
        }
        self.last_set = newest;
        let mut newest = self.last_program;
        for (id, program) in difference.programs {
            match program {
                Some(program) => {
                    assert!(id.0 > self.last_program, "{id:?} is used again");
                    newest = newest.max(id.0);
                    self.programs.insert(id, program);
                }
                None => assert!(self.programs.remove(&id).is_some(), "{id:?} is not there"),
            }
        }
        self.last_program = newest;
        for (name, verdict) in difference.attachments {
            let there = self.attachments.get_mut(&name).expect("chains there");
            assert_ne!(
                there.as_ref(),
                Some(&verdict),
                "{name}: nothing is different"
            );
            *there = Some(verdict);
        }
        self.check();
    }

    /// What is used is there, and what is there is used.
    fn check(&self) {
        let mut programs = BTreeSet::new();
        for verdict in self.attachments.values() {
            let Some(Verdict::Known {
                ingress, egress, ..
            }) = verdict
            else {
                continue;
            };
            for (id, direction) in [(ingress, Direction::Ingress), (egress, Direction::Egress)] {
                let Some(id) = id else { continue };
                let program = self.programs.get(id).expect("a program that is there");
                assert_eq!(program.direction, direction);
                assert!(!program.stages.is_empty() || !program.isolated_by.is_empty());
                programs.insert(*id);
            }
        }
        let there: BTreeSet<_> = self.programs.keys().copied().collect();
        assert_eq!(
            programs, there,
            "programs that run, programs that are there"
        );
        let distinct: BTreeSet<_> = self.programs.values().collect();
        assert_eq!(distinct.len(), self.programs.len(), "a program twice");
        let mut sets = BTreeSet::new();
        for step in self
            .programs
            .values()
            .flat_map(|it| it.stages.iter().flatten())
        {
            let (id, of_sockets) = match step.peers {
                Peers::Anybody => continue,
                Peers::In(id) => (id, false),
                Peers::Socket(id) => (id, true),
            };
            let members = self.sets.get(&id).expect("a set that is there");
            assert_eq!(matches!(members, Members::Sockets(_)), of_sockets);
            sets.insert(id);
        }
        let there: BTreeSet<_> = self.sets.keys().copied().collect();
        assert_eq!(sets, there, "sets that are asked, sets that are there");
    }

    /// What becomes of the packet at that attachment.
    pub fn decide(
        &self,
        attachment: &str,
        direction: Direction,
        peer: IpAddr,
        port: Option<(Protocol, u16)>,
    ) -> Option<Decision> {
        let Some(Verdict::Known {
            ingress, egress, ..
        }) = self.attachments.get(attachment)?
        else {
            return None;
        };
        let id = match direction {
            Direction::Ingress => ingress,
            Direction::Egress => egress,
        };
        let Some(id) = id else {
            return Some(Decision::Open);
        };
        let packet = Packet { peer, port };
        Some(self.programs[id].decide(&packet, |set| self.sets.get(&set)))
    }
}

fn change_members(members: &mut Members, added: Members, removed: Members) {
    match (members, added, removed) {
        (Members::Addresses(there), Members::Addresses(added), Members::Addresses(removed)) => {
            change(there, added, removed);
        }
        (Members::Sockets(there), Members::Sockets(added), Members::Sockets(removed)) => {
            change(there, added, removed);
        }
        other => panic!("sets of one kind that may change, not {other:?}"),
    }
}

fn change<T: Ord + Copy + std::fmt::Debug>(
    there: &mut BTreeSet<T>,
    added: BTreeSet<T>,
    removed: BTreeSet<T>,
) {
    assert!(!added.is_empty() || !removed.is_empty(), "nothing changes");
    for one in removed {
        assert!(there.remove(&one), "{one:?} goes and is not there");
    }
    for one in added {
        assert!(there.insert(one), "{one:?} comes and is there");
    }
}

fn check_ranges(members: &Members) {
    let Members::Ranges(ranges) = members else {
        return;
    };
    for (first, last) in ranges {
        assert!(first.is_ipv4() == last.is_ipv4() && first <= last);
    }
    for pair in ranges.windows(2) {
        let ((_, last), (first, _)) = (pair[0], pair[1]);
        let next = match last {
            IpAddr::V4(last) => u32::from(last)
                .checked_add(1)
                .map(|it| IpAddr::V4(it.into())),
            IpAddr::V6(last) => u128::from(last)
                .checked_add(1)
                .map(|it| IpAddr::V6(it.into())),
        };
        assert!(last < first && next != Some(first), "{ranges:?}");
    }
}
