//! `podspan policy log`: the packets that policy denies from now on, a line each, with the pods' names and the policies'.
//!
//! The rules that deny stand ready to tell ([`super::denied`]), so that nothing is changed by listening, and nothing is left by a
//! command that was killed. The kernel limits how much is told; a flood costs nothing here. The pod that a policy is about is
//! known by the chain that dropped the packet, and who denies by the counter beside; both are read from the kernel. The other pod is
//! known by its address, as of the last time that the source of policies could be read.

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

use super::denied::{GROUP, counted_by};
use super::model::Model;
use super::object::{Attached, Key, Protocol};
use super::program::Attachment;
use super::{chains, command, words};
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
    here: Here,
    model: Model,
    /// When the source of the model was read last, or could not be.
    read: Instant,
    /// It could not be.
    fails: bool,
    /// Addresses that nobody had when names were read last.
    strangers: HashSet<IpAddr>,
}

/// What the kernel says of this node.
struct Here {
    attachments: BTreeMap<Attachment, Attached>,
    /// What counters say of themselves.
    deniers: BTreeMap<String, String>,
    read: Instant,
}

impl Here {
    fn read() -> anyhow::Result<Self> {
        let mut nft = Nft::open()?;
        let counters = nft.list_counters(INET)?.into_iter();
        let deniers = counters.filter_map(|one| Some((one.name, one.comment?)));
        Ok(Self {
            deniers: deniers.collect(),
            attachments: chains::attachments(&mut nft)?.into_iter().collect(),
            read: Instant::now(),
        })
    }

    /// Knows who the packet's counter belongs to, and what it says.
    fn knows(&self, packet: &LoggedPacket) -> bool {
        let attachment = counted_by(&packet.prefix).map(|(name, _)| name);
        self.deniers.contains_key(&packet.prefix)
            && attachment.is_none_or(|name| self.attachments.contains_key(name))
    }
}

impl Names {
    fn read(config: &Config) -> anyhow::Result<Self> {
        let (model, _) = command::model(config)?;
        Ok(Self {
            here: Here::read()?,
            model,
            read: Instant::now(),
            fails: false,
            strangers: HashSet::new(),
        })
    }

    /// Reads names again where somebody is new. A pod or a counter of this node is known at once, others when it is time. Where
    /// the source cannot be read, names stay as they are, and that is told once.
    fn refresh(&mut self, config: &Config, packet: &LoggedPacket) -> anyhow::Result<()> {
        if !self.here.knows(packet) && self.here.read.elapsed() >= PATIENCE {
            self.here = Here::read()?;
        }
        let ends = packet
            .ends
            .iter()
            .flat_map(|ends| [ends.source, ends.destination]);
        let is_new = |ip: &IpAddr| self.pod_at(*ip).is_none() && !self.strangers.contains(ip);
        let unknown: Vec<IpAddr> = ends.filter(is_new).collect();
        if unknown.is_empty() || self.read.elapsed() < AGAIN {
            return Ok(());
        }
        let model = command::model(config);
        self.read = Instant::now();
        match model {
            Ok((model, _)) => {
                self.model = model;
                self.fails = false;
                let still = |ip: &IpAddr| self.pod_at(*ip).is_none();
                let still: Vec<_> = unknown.into_iter().filter(still).collect();
                self.strangers.extend(still);
            }
            Err(error) if !self.fails => {
                self.fails = true;
                eprintln!("podspan: names of pods of other nodes are those of before: {error:#}");
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn pod_at(&self, ip: IpAddr) -> Option<&Key> {
        let mut here = self.here.attachments.values();
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
        let attached = self.here.attachments.get(attachment);
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
            policy: self.here.deniers.get(&packet.prefix).cloned(),
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

#[cfg(test)]
mod tests {
    use podspan_kernel::testing::TestNs;

    use super::*;

    #[test]
    fn a_source_that_is_away_leaves_names_as_they_are_and_is_tried_again_when_it_is_time() {
        let _ns = TestNs::new();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policy.json");
        let keys = format!("policy_file = {file:?}");
        let config = Config::parse_agent(directory.path(), &keys, "node1").unwrap();
        let pod = |name, ip| {
            format!(
                r#"{{"kind": "Pod", "metadata": {{"namespace": "x", "name": "{name}"}}, "status": {{"podIPs": [{{"ip": "{ip}"}}]}}}}"#
            )
        };
        let write = |pods: &[String]| {
            let list = format!(r#"{{"items": [{}]}}"#, pods.join(","));
            std::fs::write(&file, list).unwrap();
        };
        write(&[pod("old", "10.0.0.2")]);
        let mut names = Names::read(&config).unwrap();
        let name = |names: &Names, ip: &str| names.pod_at(ip.parse().unwrap()).map(Key::to_string);
        assert_eq!(name(&names, "10.0.0.2").as_deref(), Some("x/old"));

        let packet = LoggedPacket {
            prefix: String::new(),
            ends: Some(Ends {
                source: [10, 0, 0, 2].into(),
                destination: [10, 0, 0, 3].into(),
                protocol: 17,
                ports: None,
            }),
        };
        let long_ago = || Instant::now().checked_sub(AGAIN).unwrap();
        std::fs::remove_file(&file).unwrap();
        for _ in 0..2 {
            names.read = long_ago();
            names.refresh(&config, &packet).unwrap();
            assert!(names.fails && names.read.elapsed() < AGAIN);
            assert_eq!(name(&names, "10.0.0.2").as_deref(), Some("x/old"));
        }
        // Nobody has seen that the address is nobody's.
        write(&[pod("old", "10.0.0.2"), pod("new", "10.0.0.3")]);
        names.refresh(&config, &packet).unwrap();
        assert!(names.fails, "it was not time");
        names.read = long_ago();
        names.refresh(&config, &packet).unwrap();
        assert!(!names.fails);
        assert_eq!(name(&names, "10.0.0.3").as_deref(), Some("x/new"));
    }
}
