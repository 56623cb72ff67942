//! The loop of the agent and of the router: look, change what differs, wait.
//!
//! An event only says *look again*. Everything that this process knows besides is the last good nodes file; so it can be
//! killed, upgraded and restarted at any time, and a start on a machine that is right changes nothing. It never removes
//! anything when it ends.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::bail;
use podspan_kernel::Netlink;

use crate::apply::apply;
use crate::beside;
use crate::board::{Board, Report, Usage};
use crate::config::{Config, Role};
use crate::conflist;
use crate::events::{self, Event};
use crate::log::{Fact, Log};
use crate::look::{Look, look};
use crate::masquerade::PacketFilter;
use crate::metrics::{Kind, Metrics};
use crate::plan::Change;
use crate::refusal::Refusal;
use crate::registry::Registry;
use crate::told::{Lines, Told};

/// Looks at the latest after this time, whatever the sources say.
pub const PERIOD: Duration = Duration::from_secs(10);
/// What comes this soon after an event belongs to it.
const SETTLE: Duration = Duration::from_millis(20);
/// Between the begins of two looks, at the least: a storm of events costs five looks a second.
const PACE: Duration = Duration::from_millis(200);

/// Keeps this machine right until a signal ends it.
///
/// # Errors
/// No netlink socket, or no thread; never because of what it meets later.
pub fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let mut files = vec![config.nodes_file.clone()];
    if let Role::Node(role) = &config.role {
        files.push(role.conflist.clone());
    }
    let log = Log {
        format: config.operation.log,
    };
    let (sender, events) = events::start(files)?;
    let board = Arc::new(Board::new());
    beside::start(config, &board, sender)?;
    let mut agent = Agent {
        config,
        netlink: Netlink::open()?,
        filter: PacketFilter::default(),
        registry: Registry::new(&config.nodes_file),
        told: Told::default(),
        board,
        log,
    };
    log.say(format_args!(
        "started as {} with {}",
        describe(&config.role),
        config.file.display()
    ));
    loop {
        let begin = Instant::now();
        agent.sync();
        match wait(&events, begin, log)? {
            Wake::Look => {}
            Wake::Stop => {
                log.say("stopped; the network stays as it is");
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

enum Wake {
    Look,
    Stop,
}

/// Waits for an event, then until it has settled and the pace allows the next look.
fn wait(events: &Receiver<Event>, begin: Instant, log: Log) -> anyhow::Result<Wake> {
    let mut until = begin + PERIOD;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            // The first sets the time of the look; those that follow until then belong to it.
            Ok(Event::Look) => until = until.min((Instant::now() + SETTLE).max(begin + PACE)),
            Ok(Event::Stop) => return Ok(Wake::Stop),
            Ok(Event::SourceFailed(why)) => {
                let period = PERIOD.as_secs();
                log.tell(&Fact::Problem(format!(
                    "{why}; looking every {period} s meanwhile"
                )));
            }
            Err(RecvTimeoutError::Timeout) => return Ok(Wake::Look),
            Err(RecvTimeoutError::Disconnected) => bail!("all sources of events ended"),
        }
    }
}

struct Agent<'a> {
    config: &'a Config,
    netlink: Netlink,
    filter: PacketFilter,
    registry: Registry,
    told: Told,
    board: Arc<Board>,
    log: Log,
}

/// What a look found out and did.
#[derive(Default)]
struct Found {
    /// Everything that is wrong.
    problems: BTreeSet<String>,
    /// The changes that were made.
    made: Lines,
    /// How many values are refused.
    refusals: usize,
    report: Report,
}

impl Agent<'_> {
    /// One look, and the changes that it asks for; tells what is new.
    fn sync(&mut self) {
        let begin = Instant::now();
        self.board.look_begins();
        self.registry.look();
        let mut found = Found::default();
        found
            .problems
            .extend(self.registry.problem().map(str::to_owned));
        found.refuse(self.registry.refusals());
        let metrics = &self.board.metrics;
        match self.registry.cluster() {
            Some(cluster) => {
                match look(&mut self.netlink, &mut self.filter, self.config, cluster) {
                    Ok(look) => {
                        metrics.nodes.set(count(cluster.nodes.len()));
                        found.note(self.config, &look, metrics);
                        let at = (&mut self.netlink, &mut self.filter);
                        found.make(at, &look.plan.changes, metrics);
                        metrics.look_succeeded();
                    }
                    Err(error) => {
                        metrics.look_failures.inc();
                        found.report.unready.push(format!("{error:#}"));
                        found.problems.insert(format!("{error:#}"));
                    }
                }
            }
            None => found.report.unready.extend(found.problems.iter().cloned()),
        }
        self.tell(found, begin);
    }

    /// To the log, and to whoever asks for metrics and health.
    fn tell(&mut self, mut found: Found, begin: Instant) {
        found.problems.extend(self.board.problems());
        let full = found.report.pod_cidrs.iter().filter_map(Usage::problem);
        found.problems.extend(full);
        let metrics = &self.board.metrics;
        metrics.looks.inc();
        metrics.problems.set(count(found.problems.len()));
        metrics.refusals.set(count(found.refusals));
        metrics.look_duration.observe(begin.elapsed().as_secs_f64());
        self.board.pin(found.report);
        let made = found.made.finish("changes made", Fact::Made);
        for fact in made.into_iter().chain(self.told.facts(found.problems)) {
            self.log.tell(&fact);
        }
    }
}

impl Found {
    fn refuse(&mut self, refusals: &[Refusal]) {
        self.refusals += refusals.len();
        let refused = refusals.iter().map(|refusal| format!("refused: {refusal}"));
        self.problems.extend(refused);
    }

    /// Notes what a look says of this machine.
    fn note(&mut self, config: &Config, look: &Look, metrics: &Metrics) {
        self.refuse(&look.plan.refusals);
        self.report.unready = what_pods_lack(config, look);
        if let Some((desired, observed)) = &look.both {
            metrics.routes.set(count(desired.routes.len()));
            let gateways = desired.bridge.iter().flat_map(|bridge| &bridge.gateways);
            let allocations = observed.allocations.as_deref().unwrap_or_default();
            self.report.pod_cidrs = Usage::of(gateways, allocations);
        }
    }

    /// Makes the changes, and notes what became of them.
    fn make(
        &mut self,
        at: (&mut Netlink, &mut PacketFilter),
        changes: &[Change],
        metrics: &Metrics,
    ) {
        apply(at, changes, |change, outcome| {
            let kind = Kind {
                kind: change.kind(),
            };
            match outcome {
                Ok(()) => {
                    metrics.changes.get_or_create(&kind).inc();
                    self.made.push(change);
                }
                Err(error) => {
                    metrics.change_failures.get_or_create(&kind).inc();
                    if change.is_for_pods() || matches!(change, Change::WriteConflist { .. }) {
                        self.report.unready.push(format!("{error:#}"));
                    }
                    self.problems.insert(format!("{error:#}"));
                }
            }
        });
    }
}

/// Why this machine is not even meant to have pods now; nothing where it is, and on a router, which never has any.
fn what_pods_lack(config: &Config, look: &Look) -> Vec<String> {
    let refused = || look.plan.refusals.iter().map(ToString::to_string).collect();
    match (&config.role, &look.both) {
        (_, None) => refused(),
        (Role::Node(_), Some((desired, observed)))
            if desired.conflist.is_none()
                || matches!(observed.conflist, conflist::Found::Foreign(_)) =>
        {
            refused()
        }
        _ => Vec::new(),
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn describe(role: &Role) -> String {
    match role {
        Role::Node(role) => format!("node {}", role.name),
        Role::Router => "router".to_owned(),
    }
}
