//! `podspan explain <pod> <pod> [port]`: what a packet from a pod of this node meets on its way, and whether it arrives.
//!
//! Each hop is told from the model that the agent follows, from the kernel where the hop is on this node, and from the
//! registry where it is not. Then real packets go from the pod's own network namespace, and what becomes of them is compared
//! with what the hops say. Nothing is changed. What cannot be seen, for want of privileges or because it is elsewhere, is
//! said to be so and is never called right.

mod hops;
mod pods;
mod policed;
mod tests_made;

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use podspan_kernel::Netlink;
use serde::Serialize;

use crate::config::{Config, RegistryConfig, Role};
use crate::kubernetes;
use crate::list;
use crate::look::look;
use crate::output::{Output, columns};
use crate::packet_filter::PacketFilter;
use crate::registry::Registry;

use hops::Way;
use pods::{Pod, Wanted};
use tests_made::Tests;

/// `podspan explain`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The pod that sends, one of this node: its address, its container's id or the begin of it (podspan list), or, where the
    /// registry is Kubernetes, namespace/name
    from: String,
    /// The pod that receives: its address, namespace/name, or of a pod of this node its container's id
    to: String,
    /// The TCP port that it should answer on
    port: Option<u16>,
    /// Over IPv6, where neither pod is named by an address
    #[arg(short = '6', long)]
    ipv6: bool,
}

/// What a packet meets.
#[derive(Debug, Serialize)]
pub struct Explanation {
    /// The pod that sends.
    from: String,
    /// The pod that receives.
    to: String,
    /// On the way, in its order.
    hops: Vec<Hop>,
    /// What became of real packets; none when none could be sent.
    tests: Option<Tests>,
    /// Whether it passes; none when that was not tested.
    passes: Option<bool>,
    /// In one sentence.
    verdict: String,
}

/// One thing on the way.
#[derive(Debug, Clone, Serialize)]
pub struct Hop {
    /// A pod, or a node.
    place: String,
    /// How it is.
    state: State,
    /// What it is.
    what: String,
    /// What would mend it: a command where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

/// How a hop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As the model wants it; seen here.
    Right,
    /// Not as the model wants it, or in the way of packets.
    Wrong,
    /// It may be in the way, and that cannot be told from here.
    Perhaps,
    /// As the model has it; it is elsewhere, or hidden from us.
    Unseen,
}

/// Prints what a packet meets. Exit status 0: it passes, 1: it does not, 2: that was not tested.
///
/// # Errors
/// A pod that is not there, a registry that is not known, what the kernel answered.
pub fn run(arguments: &Arguments, config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    let explanation = explain(arguments, config)?;
    output.print(&explanation, Explanation::to_text)?;
    Ok(match explanation.passes {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::from(1),
        None => ExitCode::from(2),
    })
}

fn explain(arguments: &Arguments, config: &Config) -> anyhow::Result<Explanation> {
    let Role::Node(role) = &config.role else {
        bail!("a router has no pods; run it on the node of the pod that sends");
    };
    let registry = Registry::read(&config.registry)?;
    let Some(cluster) = registry.cluster() else {
        let problems: Vec<_> = registry.problems().collect();
        bail!("{}", problems.join("\n"));
    };
    let mut netlink = Netlink::open()?;
    let rows = list::rows(&mut netlink, &role.data_dir)?;
    let mut wanted = Wanted {
        rows: &rows,
        cluster,
        own: &role.name,
        is_ipv4: !arguments.ipv6,
    };
    // An address says which family is meant, whichever of the two it is given for.
    let names = [&arguments.from, &arguments.to];
    for name in names {
        if let Ok(ip) = name.parse::<IpAddr>() {
            wanted.is_ipv4 = ip.is_ipv4();
        }
    }
    let [from, to] = names.map(|name| match name.contains('/') {
        true => wanted.of_address(&mut netlink, named(name, &config.registry, wanted.is_ipv4)?),
        false => wanted.find(&mut netlink, name),
    });
    let (from, to) = (from?, to?);
    if from.here.is_none() {
        bail!("{} is a pod of {}: run this there", from.ip, from.node);
    }
    if from.ip == to.ip {
        bail!("{} and {} are one pod", arguments.from, arguments.to);
    }
    let look = look(&mut netlink, &mut PacketFilter::default(), config, cluster)?;
    let mut way = Way::new(&mut netlink, (&from, &to), cluster, &look);
    way.walk();
    let (mut hops, next_hop) = (way.hops, way.next_hop);
    hops.extend(policed::hops(config, (&from, &to), arguments.port));
    let tests = tests_made::make(&from, &to, arguments.port);
    if let Some(tests) = tests.as_ref().filter(|tests| !tests.pass()) {
        hops.extend(tests_made::look_again(&mut netlink, &from, next_hop));
        hops.extend(tests.dropped.iter().cloned());
        hops.extend(tests_made::between_nodes(config, cluster, (&look, &to)));
    }
    Ok(Explanation::of(&from, &to, hops, tests))
}

/// The address of the pod that Kubernetes knows by that name.
fn named(name: &str, registry: &RegistryConfig, is_ipv4: bool) -> anyhow::Result<IpAddr> {
    let RegistryConfig::Kubernetes(kubernetes) = registry else {
        bail!("{name:?}: pods have names with registry = \"kubernetes\" only; see podspan list");
    };
    let mut addresses = kubernetes::pod::addresses(kubernetes, name)?.into_iter();
    let family = if is_ipv4 { "IPv4" } else { "IPv6" };
    addresses
        .find(|ip| ip.is_ipv4() == is_ipv4)
        .with_context(|| format!("pod {name} has no {family} address"))
}

impl Hop {
    fn new(place: &str, state: State, what: impl Into<String>) -> Self {
        Self {
            place: place.to_owned(),
            state,
            what: what.into(),
            mend: None,
        }
    }

    fn mended_by(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

impl Explanation {
    fn of(from: &Pod, to: &Pod, hops: Vec<Hop>, tests: Option<Tests>) -> Self {
        let passes = tests.as_ref().map(Tests::pass);
        let first = |state| hops.iter().find(|hop| hop.state == state);
        let wrong = first(State::Wrong);
        let of = |hop: &Hop| {
            let mend = hop.mend.iter().map(|mend| format!("; to mend it: {mend}"));
            format!("{}: {}{}", hop.place, hop.what, mend.collect::<String>())
        };
        let verdict = match (wrong, &tests) {
            (None, None) => "nothing wrong is seen; it was not tested".to_owned(),
            (Some(hop), None) => format!("it should not pass, but was not tested: {}", of(hop)),
            (None, Some(tests)) if tests.pass() => "it should pass, and it does".to_owned(),
            (Some(hop), Some(tests)) if tests.pass() => {
                format!("it passes, although something is wrong: {}", of(hop))
            }
            (wrong, Some(tests)) => {
                let why = wrong.or_else(|| first(State::Perhaps)).map_or_else(
                    || "nothing wrong is seen here; look at what is unseen, and from the other node too".to_owned(),
                    of,
                );
                format!("it does not pass ({}): {why}", tests.what_fails())
            }
        };
        Self {
            from: from.to_string(),
            to: to.to_string(),
            hops,
            tests,
            passes,
            verdict,
        }
    }

    /// For people: the hops in their order, what became of real packets, and a sentence.
    fn to_text(&self) -> String {
        let numbered = self.hops.iter().zip(1..);
        let rows = numbered.map(|(hop, number): (&Hop, usize)| {
            let state = match hop.state {
                State::Right => "right",
                State::Wrong => "WRONG",
                State::Perhaps => "perhaps",
                State::Unseen => "unseen",
            };
            let text = match &hop.mend {
                Some(mend) => format!("{}; to mend it: {mend}", hop.what),
                None => hop.what.clone(),
            };
            vec![
                number.to_string(),
                state.to_owned(),
                hop.place.clone(),
                text,
            ]
        });
        let rows = columns(&rows.collect::<Vec<_>>());
        let tests = match &self.tests {
            Some(tests) => tests.to_text(),
            None => "not tested: entering the pod's network namespace needs root\n".to_owned(),
        };
        let Self {
            from, to, verdict, ..
        } = self;
        format!("{from} -> {to}\n\n{rows}\n{tests}\n{verdict}\n")
    }
}
