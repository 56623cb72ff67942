//! The agent's part: answers on this node's gateways, tests its peers in turn, and pins what it finds to the board.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use podspan_kernel::Netlink;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::schedule::{PACE, Schedule, TOGETHER, Turn};
use super::told::{problems, way};
use super::{COMPANY, Failure, Outcome, Peer, Targets, answer, test};
use crate::board::{Board, Probed};
use crate::metrics::OutcomeLabel;

/// What fails, and why.
pub type Failing = BTreeMap<Arc<Peer>, Failure>;
/// So many of them are told to whoever asks.
const NAMED: usize = 100;

/// Tests and answers until the end of the process; `news` is called when there is something new to tell.
pub async fn run(board: Arc<Board>, news: impl Fn() + Clone + Send + 'static) {
    let mut targets = board.targets();
    let mut tester = Tester {
        board,
        schedule: Schedule::new(Instant::now()),
        mtu: None,
        failing: Failing::new(),
        tests: JoinSet::new(),
        answers: BTreeMap::new(),
    };
    let mut pace = Instant::now();
    loop {
        let may_test = tester.tests.len() < COMPANY;
        let due = tester.schedule.next_due().filter(|_| may_test);
        let turn = due.map(|due| due.max(pace));
        tokio::select! {
            changed = targets.changed() => {
                if changed.is_err() {
                    return;
                }
                tester.follow(&mut targets, &news);
            }
            Some(Ok((peer, outcome))) = tester.tests.join_next(), if !tester.tests.is_empty() => {
                if tester.take(&peer, outcome) {
                    news();
                }
            }
            () = sleep_until(turn.unwrap_or_else(Instant::now)), if turn.is_some() => {
                pace = Instant::now() + PACE;
                tester.begin();
            }
        }
    }
}

struct Tester {
    board: Arc<Board>,
    schedule: Schedule,
    mtu: Option<u32>,
    failing: Failing,
    tests: JoinSet<(Arc<Peer>, Outcome)>,
    /// The tasks that answer, by gateway and MTU.
    answers: BTreeMap<(IpAddr, Option<u32>), AbortHandle>,
}

impl Tester {
    /// Takes over what is to be tested, and where to answer.
    fn follow(
        &mut self,
        targets: &mut watch::Receiver<Arc<Targets>>,
        news: &(impl Fn() + Clone + Send + 'static),
    ) {
        let targets = Arc::clone(&targets.borrow_and_update());
        let wanted: Vec<_> = targets
            .gateways
            .iter()
            .map(|ip| (*ip, targets.mtu))
            .collect();
        self.answers.retain(|place, task| {
            let stays = wanted.contains(place);
            if !stays {
                task.abort();
            }
            stays
        });
        for place in wanted {
            let (board, news) = (Arc::clone(&self.board), news.clone());
            self.answers.entry(place).or_insert_with(|| {
                tokio::spawn(answer::answer(place.0, place.1, board, news)).abort_handle()
            });
        }
        let mut gone = Vec::new();
        if self.mtu != targets.mtu {
            // What was found out was of another size, and what is under way would be.
            self.tests = JoinSet::new();
            gone = self.schedule.follow(&[], Instant::now());
            self.mtu = targets.mtu;
        }
        gone.extend(self.schedule.follow(&targets.peers, Instant::now()));
        self.board.metrics.probe.peers(self.schedule.len());
        let mut is_new = false;
        for turn in &gone {
            is_new |= self.turn(turn);
        }
        if is_new {
            self.pin();
            news();
        }
    }

    /// Begins the tests whose turn it is.
    fn begin(&mut self) {
        let now = Instant::now();
        let room = TOGETHER.min(COMPANY.saturating_sub(self.tests.len()));
        for peer in std::iter::from_fn(|| self.schedule.take(now)).take(room) {
            let mtu = self.mtu;
            self.tests.spawn(async move {
                let outcome = test(&peer, mtu).await;
                (peer, outcome)
            });
        }
    }

    /// Takes what a test found; true when that is something new to tell.
    fn take(&mut self, peer: &Arc<Peer>, outcome: Outcome) -> bool {
        let metrics = &self.board.metrics.probe;
        let label = OutcomeLabel {
            outcome: outcome.word(),
        };
        metrics.tests.get_or_create(&label).inc();
        if let Some(time) = outcome.round_trip() {
            metrics.round_trip.observe(time.as_secs_f64());
        }
        let turn = self.schedule.done(peer, outcome, Instant::now());
        let is_new = turn.is_some_and(|turn| self.turn(&turn));
        if is_new {
            self.pin();
        }
        is_new
    }

    /// Counts the peer anew; true when one that fails comes, goes or fails otherwise.
    fn turn(&mut self, turn: &Turn) -> bool {
        let metrics = &self.board.metrics.probe;
        metrics.turn(
            turn.before.map(Outcome::word),
            turn.after.map(Outcome::word),
        );
        match turn.after.and_then(Outcome::failure) {
            Some(failure) => {
                self.failing.insert(Arc::clone(&turn.peer), failure);
                true
            }
            None => self.failing.remove(&turn.peer).is_some(),
        }
    }

    fn pin(&self) {
        let way = |ip| Netlink::open().and_then(|mut netlink| way(&mut netlink, ip));
        let named = self.failing.iter().take(NAMED);
        self.board.set_probed(Probed {
            failing: named
                .map(|(peer, failure)| (Arc::clone(peer), *failure))
                .collect(),
            problems: problems(&self.failing, |ip| way(ip).ok().flatten()),
        });
    }
}
