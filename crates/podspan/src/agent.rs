//! The loop of the agent and of the router: look, change what differs, wait.
//!
//! An event only says *look again*. Everything that this process knows besides is the last good list of nodes; so it can be
//! killed, upgraded and restarted at any time, and a start on a machine that is right changes nothing. It never removes
//! anything when it ends.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::bail;
use podspan_kernel::Netlink;

use crate::apply::apply;
use crate::config::{Config, Role};
use crate::events::{self, Event};
use crate::kubernetes::Report;
use crate::look::look;
use crate::refusal::{Refusal, Source};
use crate::registry::Registry;
use crate::told::{Lines, Told};

/// Looks at the latest after this time, whatever the sources say.
const PERIOD: Duration = Duration::from_secs(10);
/// What comes this soon after an event belongs to it.
const SETTLE: Duration = Duration::from_millis(20);
/// Between the begins of two looks, at the least: a storm of events costs five looks a second.
const PACE: Duration = Duration::from_millis(200);

/// Keeps this machine right until a signal ends it.
///
/// # Errors
/// No netlink socket, or no thread; never because of what it meets later.
pub fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let mut files: Vec<_> = config.registry.file().into_iter().collect();
    if let Role::Node(role) = &config.role {
        files.push(role.conflist.clone());
    }
    let (sender, events) = events::start(files)?;
    let mut agent = Agent {
        config,
        netlink: Netlink::open()?,
        registry: Registry::follow(&config.registry, &sender)?,
        told: Told::default(),
    };
    log(format_args!(
        "started as {} with {}",
        describe(&config.role),
        config.file.display()
    ));
    loop {
        let begin = Instant::now();
        agent.sync();
        match wait(&events, begin)? {
            Wake::Look => {}
            Wake::Stop => {
                log(format_args!("stopped; the network stays as it is"));
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
fn wait(events: &Receiver<Event>, begin: Instant) -> anyhow::Result<Wake> {
    let mut until = begin + PERIOD;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            // The first sets the time of the look; those that follow until then belong to it.
            Ok(Event::Look) => until = until.min((Instant::now() + SETTLE).max(begin + PACE)),
            Ok(Event::Stop) => return Ok(Wake::Stop),
            Ok(Event::SourceFailed(why)) => {
                log(format_args!(
                    "{why}; looking every {} s meanwhile",
                    PERIOD.as_secs()
                ));
            }
            Err(RecvTimeoutError::Timeout) => return Ok(Wake::Look),
            Err(RecvTimeoutError::Disconnected) => bail!("all sources of events ended"),
        }
    }
}

struct Agent<'a> {
    config: &'a Config,
    netlink: Netlink,
    registry: Registry,
    told: Told,
}

impl Agent<'_> {
    /// One look, and the changes that it asks for; tells what is new.
    fn sync(&mut self) {
        self.registry.look();
        // Of this machine, and not of the registry: what the API is told of it.
        let mut here: BTreeSet<String> = BTreeSet::new();
        let mut ready = false;
        let mut made = Lines::default();
        if let Some(cluster) = self.registry.cluster() {
            match look(&mut self.netlink, self.config, cluster) {
                Ok(look) => {
                    ready = look.is_ready_for_pods();
                    here.extend(look.plan.refusals.iter().map(refused));
                    apply(
                        &mut self.netlink,
                        &look.plan.changes,
                        |change, outcome| match outcome {
                            Ok(()) => made.push(change),
                            Err(error) => drop(here.insert(format!("{error:#}"))),
                        },
                    );
                }
                Err(error) => drop(here.insert(format!("{error:#}"))),
            }
        }
        let mut problems: BTreeSet<String> = self.registry.problems().map(str::to_owned).collect();
        problems.extend(self.registry.refusals().iter().map(refused));
        problems.extend(here.iter().cloned());
        self.report(ready, here);
        let lines = made.finish("changes made");
        for line in lines.into_iter().chain(self.told.lines(problems)) {
            log(format_args!("{line}"));
        }
    }

    /// A Node that is refused is told of by its own agent, not by all.
    fn report(&self, ready: bool, mut problems: BTreeSet<String>) {
        if let Role::Node(role) = &self.config.role {
            let own = Source::NodeObject(&role.name).to_string();
            let refusals = self.registry.refusals().iter();
            problems.extend(
                refusals
                    .filter(|refusal| refusal.source == own)
                    .map(refused),
            );
            self.registry.report(Report { ready, problems });
        }
    }
}

fn refused(refusal: &Refusal) -> String {
    format!("refused: {refusal}")
}

fn describe(role: &Role) -> String {
    match role {
        Role::Node(role) => format!("node {}", role.name),
        Role::Router => "router".to_owned(),
    }
}

/// To stderr, without a time, which the journal adds. That nobody reads it must not end us.
fn log(line: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
