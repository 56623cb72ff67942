//! `podspan policy log`: the packets that policy denies from now on, a line each, with the pods' names and the policies'.
//!
//! The rules that deny stand ready to tell ([`super::denied`]), so that nothing is changed by listening, and nothing is left by a
//! command that was killed. The kernel limits how much is told; a flood costs nothing here. The pod that a policy is about is
//! known by the chain that dropped the packet, and who denies by the counter beside. The other pod is known by its address, as
//! of the last time that names were read.

use std::collections::{BTreeMap, HashSet};
use std::io::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::SignedDuration;
use podspan_cni::filter::INET;
use podspan_kernel::Errno;
use podspan_kernel::nflog::{Ends, LoggedPacket, PacketLog};
use podspan_kernel::nft::Nft;
use serde::Serialize;

use super::command;
use super::denied::{GROUP, counted_by};
use super::model::Model;
use super::object::{Attached, Key, Protocol};
use super::program::Attachment;
use super::words;
use crate::config::Config;
use crate::output::Output;

/// Names are read again for an address that is new not sooner than that: in a large cluster they are many.
const AGAIN: Duration = Duration::from_secs(30);
/// How long nothing may come before it is looked whether the time is over.
const PATIENCE: Duration = Duration::from_secs(1);

/// `podspan policy log`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Tell only packets from or to this pod, as namespace/name
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// End after this time, such as 60s or 5m [default: never]
    #[arg(long = "for", value_name = "TIME")]
    time: Option<SignedDuration>,
}

/// A packet that was denied, as it is told.
#[derive(Debug, PartialEq, Serialize)]
struct Denied {
    time: String,
    /// `ingress` or `egress`, of `pod`.
    direction: String,
    /// The pod that the policy is about.
    pod: Option<String>,
    from: IpAddr,
    from_pod: Option<String>,
    to: IpAddr,
    to_pod: Option<String>,
    protocol: String,
    /// The receiver's.
    port: Option<u16>,
    /// Who denies.
    policy: Option<String>,
}

/// Tells denied packets until the time is over.
///
/// # Errors
/// No policy here, the source out of reach, somebody listens already, what the kernel answered.
pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let time = arguments.time.map(Duration::try_from).transpose();
    let time = time.context("--for must not be negative")?;
    if let Some(pod) = &arguments.pod {
        ensure!(
            pod.contains('/'),
            "{pod:?}: a pod is written namespace/name"
        );
    }
    // First of all: what is denied while names are read is told, too.
    let mut log = PacketLog::open(GROUP).map_err(|error| {
        let why = match error.errno() {
            Errno::PERM | Errno::BUSY => {
                "another podspan policy log listens already, or this is not root"
            }
            _ => "this kernel tells nobody of packets (nfnetlink_log)",
        };
        anyhow::Error::from(error).context(why)
    })?;
    let mut names = Names::read(config)?;
    eprintln!("podspan: denied packets are told from now on");
    let end = time.map(|time| Instant::now() + time);
    loop {
        let left = end.map_or(PATIENCE, |end| {
            end.saturating_duration_since(Instant::now())
        });
        if left.is_zero() {
            return Ok(ExitCode::SUCCESS);
        }
        let logged = log.receive(left.min(PATIENCE))?;
        if logged.lost {
            eprintln!("podspan: more was denied than could be told");
        }
        for packet in &logged.packets {
            names.refresh(config, packet)?;
            let Some(denied) = names.tell(packet, jiff::Timestamp::now()) else {
                continue;
            };
            if arguments
                .pod
                .as_ref()
                .is_none_or(|pod| denied.concerns(pod))
            {
                denied.print(output)?;
            }
        }
    }
}

/// Who is who.
struct Names {
    model: Model,
    attachments: BTreeMap<Attachment, Attached>,
    /// What counters say of themselves.
    deniers: BTreeMap<String, String>,
    read: Instant,
    /// Addresses that nobody had when names were read last.
    strangers: HashSet<IpAddr>,
}

impl Names {
    fn read(config: &Config) -> anyhow::Result<Self> {
        let (model, attachments) = command::model(config)?;
        let counters = Nft::open()?.list_counters(INET)?.into_iter();
        let deniers = counters.filter_map(|one| Some((one.name, one.comment?)));
        Ok(Self {
            model,
            attachments: attachments.into_iter().collect(),
            deniers: deniers.collect(),
            read: Instant::now(),
            strangers: HashSet::new(),
        })
    }

    /// Reads names again where somebody is new. A pod or a counter of this node is known at once, others when it is time.
    fn refresh(&mut self, config: &Config, packet: &LoggedPacket) -> anyhow::Result<()> {
        let attachment = counted_by(&packet.prefix).map(|(name, _)| name);
        let is_new_here = !self.deniers.contains_key(&packet.prefix)
            || attachment.is_some_and(|name| !self.attachments.contains_key(name));
        let ends = packet
            .ends
            .iter()
            .flat_map(|ends| [ends.source, ends.destination]);
        let is_new = |ip: &IpAddr| self.pod_at(*ip).is_none() && !self.strangers.contains(ip);
        let unknown: Vec<IpAddr> = ends.filter(is_new).collect();
        let is_time = self.read.elapsed() >= AGAIN;
        if (is_new_here && self.read.elapsed() >= PATIENCE) || (!unknown.is_empty() && is_time) {
            let strangers = std::mem::take(&mut self.strangers);
            *self = Self {
                strangers,
                ..Self::read(config)?
            };
            let still = |ip: &IpAddr| self.pod_at(*ip).is_none();
            let still: Vec<_> = unknown.into_iter().filter(still).collect();
            self.strangers.extend(still);
        }
        Ok(())
    }

    fn pod_at(&self, ip: IpAddr) -> Option<&Key> {
        let mut here = self.attachments.values();
        let here = here.find(|attached| attached.addresses.iter().any(|own| own == ip));
        here.map(|attached| &attached.pod)
            .or_else(|| self.model.pod_at(ip))
    }

    /// None of a packet that is not ours, or cannot be read.
    fn tell(&self, packet: &LoggedPacket, now: jiff::Timestamp) -> Option<Denied> {
        let (attachment, direction) = counted_by(&packet.prefix)?;
        let Ends {
            source,
            destination,
            protocol,
            ports,
        } = packet.ends?;
        let attached = self.attachments.get(attachment);
        let name = |ip| self.pod_at(ip).map(Key::to_string);
        Some(Denied {
            time: now
                .round(jiff::Unit::Millisecond)
                .unwrap_or(now)
                .to_string(),
            direction: direction.to_string(),
            pod: attached.map(|attached| attached.pod.to_string()),
            from: source,
            from_pod: name(source),
            to: destination,
            to_pod: name(destination),
            protocol: match (Protocol::of_number(protocol), protocol) {
                (Some(protocol), _) => protocol.to_string(),
                (None, 1 | 58) => "ICMP".to_owned(),
                (None, number) => format!("protocol {number}"),
            },
            port: ports.map(|(_, to)| to),
            policy: self.deniers.get(&packet.prefix).cloned(),
        })
    }
}

impl Denied {
    fn concerns(&self, pod: &str) -> bool {
        let names = [&self.pod, &self.from_pod, &self.to_pod];
        names.into_iter().flatten().any(|name| name == pod)
    }

    fn print(&self, output: Output) -> anyhow::Result<()> {
        let mut line = match output {
            Output::Text => self.to_text(),
            Output::Json => serde_json::to_string(self)?,
        };
        line.push('\n');
        let mut out = std::io::stdout().lock();
        out.write_all(line.as_bytes())
            .and_then(|()| out.flush())
            .context("print")
    }

    fn to_text(&self) -> String {
        let end = |ip: IpAddr, pod: &Option<String>| pod.clone().unwrap_or_else(|| ip.to_string());
        let port = self.port.map(|port| format!(" {port}"));
        format!(
            "{} {} {} -> {} {}{}: {}",
            self.time,
            self.direction,
            end(self.from, &self.from_pod),
            end(self.to, &self.to_pod),
            self.protocol,
            port.unwrap_or_default(),
            words::denied(self.pod.as_deref(), self.policy.as_deref())
        )
    }
}
