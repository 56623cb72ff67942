//! The loop of the agent and of the router: look, change what differs, wait.
//!
//! An event only says *look again*. Everything that this process knows besides is the last good list of nodes; so it can be
//! killed, upgraded and restarted at any time, and a start on a machine that is right changes nothing. It never removes
//! anything when it ends.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::bail;
use podspan_kernel::{LinkSet, Netlink};

use crate::apply::apply;
use crate::beside;
use crate::board::{Board, Report, Usage};
use crate::config::{Config, Role};
use crate::conflist;
use crate::events::{self, Event};
use crate::kubernetes::{self, policy::Sink};
use crate::log::{Fact, Log};
use crate::look::{Look, look};
use crate::metrics::{Kind, Metrics};
use crate::packet_filter::PacketFilter;
use crate::plan::Change;
use crate::policy::{enforce, source::PolicyFile};
use crate::probe;
use crate::refusal::{Refusal, Source};
use crate::registry::Registry;
use crate::told::{Lines, Told};

/// Looks at the latest after this time, whatever the sources say: for what nobody tells of, as most sysctls. With 5,000 nodes a
/// look is 50 ms of a core.
pub const PERIOD: Duration = Duration::from_secs(30);
/// What comes this soon after an event belongs to it.
const SETTLE: Duration = Duration::from_millis(5);
/// Between the begins of two looks, at the least: a storm of events costs five looks a second.
const PACE: Duration = Duration::from_millis(200);

/// Keeps this machine right until a signal ends it.
///
/// # Errors
/// No netlink socket, or no thread; never because of what it meets later.
pub fn run(config: &Config) -> anyhow::Result<ExitCode> {
    podspan_kernel::start::share_memory_of_threads();
    let mut files: Vec<_> = config.registry.file().into_iter().collect();
    if let Role::Node(role) = &config.role {
        files.push(role.conflist.clone());
        files.extend(role.policy.iter().filter_map(|policy| policy.file.clone()));
    }
    let log = Log {
        format: config.operation.log,
    };
    let tunnels = LinkSet::default();
    let (sender, events) = events::start(files, tunnels.clone())?;
    let board = Arc::new(Board::new());
    let sink = start_policy(&config.role, &board)?;
    let (sink, policy_file) = PolicyFile::of(&config.role, sink);
    let registry = Registry::follow(&config.registry, &sender, sink)?;
    beside::start(config, &board, sender)?;
    let mut agent = Agent {
        config,
        netlink: Netlink::open()?,
        filter: PacketFilter::default(),
        registry,
        policy_file,
        tunnels,
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

/// Starts what enforces policy; what comes out of the sink's other end is enforced.
fn start_policy(role: &Role, board: &Arc<Board>) -> anyhow::Result<Option<Sink>> {
    let Role::Node(node) = role else {
        return Ok(None);
    };
    let Some(policy) = &node.policy else {
        return Ok(None);
    };
    let (wake, woken) = enforce::Wake::new();
    let up = wake.clone();
    let (sink, changes) = kubernetes::policy::channel(move || up.up());
    enforce::start((node, policy.clone()), board, changes, (wake, woken))?;
    Ok(Some(sink))
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
    /// Where policies are read from, where they are not in the API.
    policy_file: Option<PolicyFile>,
    /// The VXLAN devices, whose neighbours somebody else may change.
    tunnels: LinkSet,
    told: Told,
    board: Arc<Board>,
    log: Log,
}

/// What a look found out and did.
#[derive(Default)]
struct Found {
    /// What is wrong on this machine, and not in the registry.
    here: BTreeSet<String>,
    /// Pods have all that they need, and had before anything was changed.
    ready: bool,
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
        if let Some(file) = &mut self.policy_file {
            file.look();
        }
        let mut found = Found {
            refusals: self.registry.refusals().len(),
            ..Found::default()
        };
        if let Err(error) = self.look_and_change(&mut found) {
            self.board.metrics.look_failures.inc();
            found.report.unready.push(format!("{error:#}"));
            found.here.insert(format!("{error:#}"));
        }
        self.tell(found, begin);
    }

    fn look_and_change(&mut self, found: &mut Found) -> anyhow::Result<()> {
        let Some(cluster) = self.registry.cluster() else {
            let problems = self.registry.problems().map(str::to_owned);
            found.report.unready.extend(problems);
            if found.report.unready.is_empty() {
                let why = "the Nodes are not known yet";
                found.report.unready.push(why.to_owned());
            }
            return Ok(());
        };
        let metrics = &self.board.metrics;
        metrics.nodes.set(count(cluster.nodes.len()));
        let look = look(&mut self.netlink, &mut self.filter, self.config, cluster)?;
        if let Some((_, observed)) = &look.both {
            let tunnels = observed.tunnels.iter();
            self.tunnels.set(tunnels.map(|tunnel| tunnel.index));
        }
        found.note(self.config, &look, metrics);
        let at = (&mut self.netlink, &mut self.filter);
        found.make(at, &look.plan.changes, metrics);
        if let Some((desired, _)) = &look.both {
            // Now that the gateways are there, which tests begin at.
            let last = self.board.last_targets();
            let targets = probe::targets(self.config, cluster, desired, &last);
            self.board.set_targets(targets);
        }
        metrics.look_succeeded();
        Ok(())
    }

    /// To the log, to whoever asks for metrics and health, and to the registry, where that wants to know.
    fn tell(&mut self, mut found: Found, begin: Instant) {
        found.here.extend(self.board.problems());
        let full = found.report.pod_cidrs.iter().filter_map(Usage::problem);
        found.here.extend(full);
        let mut problems: BTreeSet<String> = self.registry.problems().map(str::to_owned).collect();
        problems.extend(self.registry.refusals().iter().map(refused));
        let of_policies = self.policy_file.iter().flat_map(|file| &file.problems);
        problems.extend(of_policies.cloned());
        problems.extend(found.here.iter().cloned());
        let metrics = &self.board.metrics;
        metrics.looks.inc();
        metrics.problems.set(count(problems.len()));
        metrics.refusals.set(count(found.refusals));
        metrics.look_duration.observe(begin.elapsed().as_secs_f64());
        self.board.pin(found.report);
        self.report(found.ready, found.here);
        let made = found.made.finish("changes made", Fact::Made);
        for fact in made.into_iter().chain(self.told.facts(problems)) {
            self.log.tell(&fact);
        }
    }

    /// A Node that is refused is told of by its own agent, not by all.
    fn report(&self, ready: bool, mut problems: BTreeSet<String>) {
        if let Role::Node(role) = &self.config.role {
            let own = Source::NodeObject(&role.name).to_string();
            let refusals = self.registry.refusals().iter();
            let of_own = refusals.filter(|refusal| refusal.source == own);
            problems.extend(of_own.map(refused));
            self.registry.report(kubernetes::Report { ready, problems });
        }
    }
}

fn refused(refusal: &Refusal) -> String {
    format!("refused: {refusal}")
}

impl Found {
    /// Notes what a look says of this machine.
    fn note(&mut self, config: &Config, look: &Look, metrics: &Metrics) {
        self.refusals += look.plan.refusals.len();
        self.here.extend(look.plan.refusals.iter().map(refused));
        self.ready = look.is_ready_for_pods();
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
                    self.here.insert(format!("{error:#}"));
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
