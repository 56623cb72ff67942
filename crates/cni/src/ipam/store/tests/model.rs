//! Random histories against a model too simple to be wrong.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// What a runtime, a power supply or an operator does.
#[derive(Debug, Clone)]
enum Event {
    Add(u8),
    Del(u8),
    /// An ADD or DEL that dies before the step, and the DEL that the runtime sends then.
    KilledAdd(u8, usize),
    KilledDel(u8, usize),
    Reboot,
    /// A reboot whose first ADD dies before the step.
    KilledReboot(u8, usize),
    Reconfigure(usize),
    LoseQueue(usize),
    Gc(u8),
}

fn event() -> impl Strategy<Value = Event> {
    let (who, step) = (0..12_u8, 0..40_usize);
    prop_oneof![
        20 => who.clone().prop_map(Event::Add),
        14 => who.clone().prop_map(Event::Del),
        4 => (who.clone(), step.clone()).prop_map(|(who, step)| Event::KilledAdd(who, step)),
        4 => (who.clone(), step.clone()).prop_map(|(who, step)| Event::KilledDel(who, step)),
        1 => Just(Event::Reboot),
        1 => (who.clone(), step).prop_map(|(who, step)| Event::KilledReboot(who, step)),
        2 => (0..4_usize).prop_map(Event::Reconfigure),
        1 => (0..2_usize).prop_map(Event::LoseQueue),
        1 => who.prop_map(Event::Gc),
    ]
}

fn configurations() -> [Vec<RangeSet>; 4] {
    [
        sets(json!([[{"subnet": "10.1.0.0/29"}]])),
        sets(
            json!([[{"subnet": "10.1.0.0/29", "gateway": "10.1.0.4"}], [{"subnet": "fd00::/125"}]]),
        ),
        sets(
            json!([[{"subnet": "fd00::/125"}], [{"subnet": "10.1.0.0/28", "rangeStart": "10.1.0.3"}]]),
        ),
        sets(
            json!([[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/29", "rangeEnd": "10.2.0.4"}]]),
        ),
    ]
}

/// The model: who has what. Nothing else.
struct World {
    it: Fixture,
    boots: usize,
    held: BTreeMap<AttachmentId, Vec<IpAddr>>,
}

impl World {
    fn reboot(&mut self) {
        self.boots += 1;
        self.it.store = store_in(&self.it.temp, &format!("0c5ab-boot-{:04}", self.boots));
        self.held.clear();
    }

    fn add(&mut self, id: &AttachmentId) {
        match self.it.store.allocate(&self.it.sets, id, &[]) {
            Ok(addresses) => {
                assert_eq!(addresses.len(), self.it.sets.len());
                for (&ip, set) in addresses.iter().zip(&self.it.sets) {
                    assert!(set.range_of(ip).is_some(), "{ip} is outside or reserved");
                    let mut others = self.held.values().flatten();
                    assert!(others.all(|&other| other != ip), "{ip} has two owners");
                }
                assert!(self.held.insert(id.clone(), addresses).is_none());
            }
            Err(IpamError::Duplicate { addresses, .. }) => {
                assert_eq!(self.held.get(id), Some(&addresses));
            }
            Err(IpamError::Exhausted { set, .. }) => {
                let of_set = |ip: &&IpAddr| self.it.sets[set].range_of(**ip).is_some();
                let taken = self.held.values().flatten().filter(of_set).count();
                assert_eq!(
                    taken as u128,
                    self.it.sets[set].total(),
                    "said to be exhausted"
                );
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn del(&mut self, id: &AttachmentId) {
        self.it.store.release(id).unwrap();
        self.held.remove(id);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Add(who) => self.add(&id(who)),
            Event::Del(who) => self.del(&id(who)),
            Event::KilledAdd(who, step) => {
                steps::kill_at(step, || self.it.add(who));
                self.del(&id(who));
            }
            Event::KilledDel(who, step) => {
                steps::kill_at(step, || self.it.del(who));
                self.del(&id(who));
            }
            Event::Reboot => self.reboot(),
            Event::KilledReboot(who, step) => {
                self.reboot();
                steps::kill_at(step, || self.it.add(who));
                self.del(&id(who));
            }
            Event::Reconfigure(which) => self.it.sets = configurations()[which].clone(),
            Event::LoseQueue(index) => {
                let _ = fs::remove_file(self.it.store.path.join(format!("free.{index}")));
            }
            Event::Gc(who) => {
                self.held.remove(&id(who));
                let valid = self.held.keys().cloned().collect();
                self.it.store.retain(&valid).unwrap();
            }
        }
    }

    fn agrees(&self) {
        let mut held: Vec<Taken> = Vec::new();
        for (id, addresses) in &self.held {
            assert_eq!(&self.it.store.find(id).unwrap(), addresses);
            let owner = Some(id.clone());
            held.extend(addresses.iter().map(|&address| Taken {
                address,
                owner: owner.clone(),
            }));
        }
        held.sort();
        assert_eq!(self.it.store.list().unwrap(), held);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_history_gives_an_address_two_owners_or_loses_one(events in prop::collection::vec(event(), 1..60)) {
        let it = Fixture::new(configurations()[0].clone());
        let mut world = World { it, boots: 0, held: BTreeMap::new() };
        world.reboot();
        for event in events {
            world.happen(event);
            world.agrees();
        }
        for held in world.held.keys().cloned().collect::<Vec<_>>() {
            world.del(&held);
        }
        let least = world.it.sets.iter().map(RangeSet::total).min().unwrap();
        prop_assert_eq!(world.it.fill().len() as u128, least * world.it.sets.len() as u128);
    }

    #[test]
    fn without_damage_the_order_is_exactly_least_recently_freed(
        events in prop::collection::vec((0..14_u8, any::<bool>()), 1..120)
    ) {
        let ranges = json!([[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/28", "gateway": "10.2.0.5"}]]);
        let it = Fixture::new(sets(ranges));
        let set = &it.sets[0];
        let lap = std::iter::successors(set.first(), |&ip| set.after(ip).filter(|&next| Some(next) != set.first()));
        let mut order: VecDeque<IpAddr> = lap.collect();
        let mut held: BTreeMap<u8, IpAddr> = BTreeMap::new();
        for (who, wants) in events {
            match (held.get(&who).copied(), wants) {
                (None, true) => match order.pop_front() {
                    Some(next) => {
                        prop_assert_eq!(it.add(who).unwrap(), [next]);
                        held.insert(who, next);
                    }
                    None => prop_assert!(it.add(who).is_err()),
                },
                (_, true) => prop_assert!(it.add(who).is_err()),
                (freed, false) => {
                    it.del(who);
                    held.remove(&who);
                    order.extend(freed);
                }
            }
        }
    }
}
