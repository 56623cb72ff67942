//! The loop of the agent and of the router: look, change what differs, wait.
//!
//! An event only says *look again*. Everything that this process knows besides is the last good nodes file; so it can be
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
use crate::look::look;
use crate::packet_filter::PacketFilter;
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
    let mut files = vec![config.nodes_file.clone()];
    if let Role::Node(role) = &config.role {
        files.push(role.conflist.clone());
    }
    let events = events::start(files)?;
    let mut agent = Agent {
        config,
        netlink: Netlink::open()?,
        filter: PacketFilter::default(),
        registry: Registry::new(&config.nodes_file),
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
    filter: PacketFilter,
    registry: Registry,
    told: Told,
}

impl Agent<'_> {
    /// One look, and the changes that it asks for; tells what is new.
    fn sync(&mut self) {
        self.registry.look();
        let mut problems: BTreeSet<String> = BTreeSet::new();
        problems.extend(self.registry.problem().map(str::to_owned));
        problems.extend(
            self.registry
                .refusals()
                .iter()
                .map(|refusal| format!("refused: {refusal}")),
        );
        let mut made = Lines::default();
        if let Some(cluster) = self.registry.cluster() {
            match look(&mut self.netlink, &mut self.filter, self.config, cluster) {
                Ok(look) => {
                    problems.extend(
                        look.plan
                            .refusals
                            .iter()
                            .map(|refusal| format!("refused: {refusal}")),
                    );
                    apply(
                        (&mut self.netlink, &mut self.filter),
                        &look.plan.changes,
                        |change, outcome| match outcome {
                            Ok(()) => made.push(change),
                            Err(error) => drop(problems.insert(format!("{error:#}"))),
                        },
                    );
                }
                Err(error) => drop(problems.insert(format!("{error:#}"))),
            }
        }
        let lines = made.finish("changes made");
        for line in lines.into_iter().chain(self.told.lines(problems)) {
            log(format_args!("{line}"));
        }
    }
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
