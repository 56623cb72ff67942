//! Which peer is tested when, and which failures count. Pure: the time is given.
//!
//! What is new is tested at once, then everything in turn; one that failed soon again, then ever more seldom. Only a second
//! failure in a row counts: one packet may be lost anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Failure, Outcome, Peer};

/// In a small cluster, everything is tested this often.
const ROUND_MIN: Duration = Duration::from_secs(30);
/// In a large one, at the least this often; each way is tested from both its ends.
const ROUND_MAX: Duration = Duration::from_secs(2400);
/// Between, each peer adds this: four tests a second, and as many that are answered, are a tenth of a percent of a core.
const EACH: Duration = Duration::from_millis(240);
/// So many tests are begun together. They share the wake-ups, and what the first one brings into the caches: a test that is
/// alone takes three times the processor's time.
pub const TOGETHER: usize = 16;
/// Between two such begins, at the least. Each test needs a neighbour on a plain segment, and the kernel takes back those of five
/// seconds ago before its table is full (`gc_thresh3`): so no more than some hundred in that time.
pub const PACE: Duration = Duration::from_secs(2);
/// How long after its first failure a peer is tested again.
const AGAIN: Duration = Duration::from_secs(1);
/// After the second, doubled with each further one.
const BACK_OFF: Duration = Duration::from_secs(5);
/// At the least so often.
const BACK_OFF_MAX: Duration = Duration::from_secs(300);
/// So many failures in a row count.
const COUNTS: u32 = 2;

/// The peers and when their turn is.
#[derive(Debug)]
pub struct Schedule {
    /// When the first round began.
    begin: Instant,
    peers: BTreeMap<Arc<Peer>, State>,
    due: BTreeSet<(Instant, Arc<Peer>)>,
}

#[derive(Debug, Default)]
struct State {
    /// None while it is tested.
    due: Option<Instant>,
    failures: u32,
    verdict: Option<Outcome>,
}

/// A peer's verdict is another one now; none is that of a peer that was never tested, or is gone.
#[derive(Debug, PartialEq)]
pub struct Turn {
    /// Which.
    pub peer: Arc<Peer>,
    /// What was known.
    pub before: Option<Outcome>,
    /// What is known.
    pub after: Option<Outcome>,
}

impl Schedule {
    /// Without peers.
    pub fn new(now: Instant) -> Self {
        Self {
            begin: now,
            peers: BTreeMap::new(),
            due: BTreeSet::new(),
        }
    }

    /// How many peers there are.
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// From now on, these are tested: those that are new at once, or, where they are many, as soon as their turn comes. Until then
    /// whoever is new later, or failed once, is not behind them. Tells of those that are gone.
    pub fn follow(&mut self, peers: &[Arc<Peer>], now: Instant) -> Vec<Turn> {
        let wanted: BTreeSet<&Arc<Peer>> = peers.iter().collect();
        let mut gone = Vec::new();
        self.peers.retain(|peer, state| {
            let stays = wanted.contains(peer);
            if !stays {
                gone.push(Turn {
                    peer: Arc::clone(peer),
                    before: state.verdict,
                    after: None,
                });
            }
            stays
        });
        self.due.retain(|(_, peer)| wanted.contains(peer));
        let mut new: Vec<_> = peers
            .iter()
            .filter(|peer| !self.peers.contains_key(*peer))
            .collect();
        // In another order on each node: not all test the same one at the same time.
        new.sort_by_cached_key(|peer| place(peer));
        let turns = (0..).map(|turn| now + PACE * turn);
        for (some, due) in new.chunks(TOGETHER).zip(turns) {
            for peer in some {
                let state = State {
                    due: Some(due),
                    ..State::default()
                };
                self.peers.insert(Arc::clone(peer), state);
                self.due.insert((due, Arc::clone(peer)));
            }
        }
        gone
    }

    /// When the next test is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// The peer whose turn it is; it has none until its test is done.
    pub fn take(&mut self, now: Instant) -> Option<Arc<Peer>> {
        if self.next_due()? > now {
            return None;
        }
        let (_, peer) = self.due.pop_first()?;
        if let Some(state) = self.peers.get_mut(&peer) {
            state.due = None;
        }
        Some(peer)
    }

    /// Notes what a test found; tells when the verdict is another one for it.
    pub fn done(&mut self, peer: &Arc<Peer>, outcome: Outcome, now: Instant) -> Option<Turn> {
        let round = (EACH * u32::try_from(self.peers.len()).unwrap_or(u32::MAX))
            .clamp(ROUND_MIN, ROUND_MAX);
        let turn = time_to_turn(peer, now - self.begin, round);
        // It may be gone meanwhile, or gone and new again.
        let state = self.peers.get_mut(peer)?;
        if state.due.is_some() {
            return None;
        }
        state.failures = match outcome {
            Outcome::Fails(_) => state.failures.saturating_add(1),
            _ => 0,
        };
        let wait = match (outcome, state.failures) {
            (Outcome::Untested, _) | (_, 1) => AGAIN,
            (_, 0) => turn,
            (_, failures) => {
                let doublings = failures.saturating_sub(COUNTS).min(10);
                (BACK_OFF * (1 << doublings)).min(BACK_OFF_MAX)
            }
        };
        state.due = Some(now + wait);
        self.due.insert((now + wait, Arc::clone(peer)));
        let counts = match outcome {
            Outcome::Fails(_) => state.failures >= COUNTS,
            Outcome::Untested => false,
            _ => true,
        };
        let before = state.verdict;
        if !counts || is_same(before, outcome) {
            return None;
        }
        state.verdict = Some(outcome);
        Some(Turn {
            peer: Arc::clone(peer),
            before,
            after: Some(outcome),
        })
    }
}

/// A peer's place among all, which is another one on each node.
fn place(peer: &Peer) -> u64 {
    podspan_kernel::hash(&[&peer.source.to_string(), &peer.gateway.to_string()])
}

/// How long it is to a peer's turn, so long after the begin of the first round. Each has its place in the round: those that came
/// together are spread over it.
fn time_to_turn(peer: &Peer, now: Duration, round: Duration) -> Duration {
    let hash = place(peer);
    let round = u64::try_from(round.as_millis()).unwrap_or(u64::MAX).max(1);
    let now = u64::try_from(now.as_millis()).unwrap_or_default() % round;
    let left = (hash % round + round - now) % round;
    Duration::from_millis(if left == 0 { round } else { left })
}

/// The same verdict, but for the time that it took.
fn is_same(before: Option<Outcome>, after: Outcome) -> bool {
    let kind =
        |outcome: Outcome| -> (&str, Option<Failure>) { (outcome.word(), outcome.failure()) };
    before.map(kind) == Some(kind(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSES: Outcome = Outcome::Passes(Duration::from_millis(1));
    const SILENT: Outcome = Outcome::Fails(Failure::Silent);

    fn peers(count: u16) -> Vec<Arc<Peer>> {
        let peer = |n: u16| {
            Arc::new(Peer {
                node: format!("node{n:05}").into(),
                gateway: std::net::Ipv4Addr::from_bits(0x0a00_0001 | (u32::from(n) << 8)).into(),
                address: None,
                source: [10, 244, 0, 1].into(),
            })
        };
        (0..count).map(peer).collect()
    }

    /// Runs tests that take no time, at most sixteen every two seconds, so many times; tells how many each time.
    fn run(schedule: &mut Schedule, begin: Instant, times: u64, outcome: Outcome) -> Vec<u32> {
        let together = |time| {
            let now = begin + Duration::from_secs(2 * time);
            let begun: Vec<_> = std::iter::from_fn(|| schedule.take(now))
                .take(TOGETHER)
                .collect();
            for peer in &begun {
                schedule.done(peer, outcome, now);
            }
            u32::try_from(begun.len()).unwrap()
        };
        (0..times).map(together).collect()
    }

    #[test]
    fn ten_thousand_ways_are_tested_in_forty_minutes_at_an_even_pace() {
        let mut schedule = Schedule::new(Instant::now());
        let now = Instant::now();
        schedule.follow(&peers(10_000), now);
        let tests = run(&mut schedule, now, 6000, PASSES);
        assert!(tests[..625].iter().all(|tests| *tests == 16));
        for round in tests[1200..].chunks(1200) {
            assert_eq!(round.iter().sum::<u32>(), 10_000);
        }
        // No more are due together than are begun, but seldom.
        let full = tests[1200..].iter().filter(|tests| **tests == 16).count();
        assert!(full < 100, "{full}");
    }

    #[test]
    fn one_that_is_new_does_not_wait_for_the_others() {
        let mut schedule = Schedule::new(Instant::now());
        let begin = Instant::now();
        schedule.follow(&peers(100), begin);
        run(&mut schedule, begin, 5, PASSES);
        let now = begin + Duration::from_secs(5);
        while let Some(peer) = schedule.take(now) {
            schedule.done(&peer, PASSES, now);
        }
        schedule.follow(&peers(101), now);
        assert_eq!(schedule.take(now), peers(101).pop());
    }

    #[test]
    fn who_failed_once_or_is_new_does_not_wait_for_the_first_round_to_end() {
        let mut schedule = Schedule::new(Instant::now());
        let begin = Instant::now();
        schedule.follow(&peers(1000), begin);
        let failed = schedule.take(begin).unwrap();
        schedule.done(&failed, SILENT, begin);
        while let Some(peer) = schedule.take(begin) {
            schedule.done(&peer, PASSES, begin);
        }
        schedule.follow(&peers(1001), begin + PACE);
        let mut together = |now| -> Vec<_> {
            let begun = std::iter::from_fn(|| schedule.take(now));
            begun.take(TOGETHER).collect()
        };
        let (next, after) = (together(begin + PACE), together(begin + 2 * PACE));
        assert!(next.contains(&failed), "{next:?}");
        let new = peers(1001).pop().unwrap();
        assert!(next.contains(&new) || after.contains(&new), "{after:?}");
    }

    #[test]
    fn two_failures_in_a_row_count_and_each_is_tried_again_later() {
        let mut schedule = Schedule::new(Instant::now());
        let mut now = Instant::now();
        let peer = peers(1).remove(0);
        schedule.follow(std::slice::from_ref(&peer), now);
        let mut step = |schedule: &mut Schedule, outcome| {
            let due = schedule.next_due().unwrap();
            let waited = due - now;
            now = due;
            assert_eq!(schedule.take(now).as_ref(), Some(&peer));
            assert_eq!(schedule.take(now), None);
            let turn = schedule.done(&peer, outcome, now);
            (waited.as_secs(), turn.map(|turn| (turn.before, turn.after)))
        };
        let turn = |before, after| Some((before, Some(after)));
        assert_eq!(step(&mut schedule, PASSES), (0, turn(None, PASSES)));
        let in_a_round =
            |(waited, turn): (u64, Option<_>)| assert!(waited <= 30 && turn.is_none(), "{waited}");
        in_a_round(step(&mut schedule, SILENT));
        assert_eq!(step(&mut schedule, PASSES), (1, None));
        in_a_round(step(&mut schedule, SILENT));
        assert_eq!(step(&mut schedule, SILENT), (1, turn(Some(PASSES), SILENT)));
        for waited in [5, 10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(step(&mut schedule, SILENT), (waited, None));
        }
        assert_eq!(
            step(&mut schedule, PASSES),
            (300, turn(Some(SILENT), PASSES))
        );
        in_a_round(step(&mut schedule, Outcome::Untested));
        assert_eq!(step(&mut schedule, PASSES), (1, None));
    }

    #[test]
    fn one_that_is_gone_is_told_and_its_late_test_is_nobodys() {
        let mut schedule = Schedule::new(Instant::now());
        let now = Instant::now();
        let all = peers(2);
        schedule.follow(&all, now);
        let first = schedule.take(now).unwrap();
        schedule.done(&first, PASSES, now);
        let second = schedule.take(now).unwrap();
        let gone = schedule.follow(&[], now);
        assert_eq!(gone.len(), 2);
        assert_eq!((gone[0].before, gone[0].after), (Some(PASSES), None));
        assert_eq!(schedule.done(&second, SILENT, now), None);
        assert_eq!(schedule.next_due(), None);
        // Gone and new again: the late outcome is that of the one before.
        schedule.follow(&all, now);
        assert_eq!(schedule.done(&second, SILENT, now), None);
        assert_eq!(schedule.due.len(), 2);
    }
}
