//! The promises about change: a pod that comes and goes, a node that leaves the nodes file and returns.
//!
//! What is changed is put back, also when the promise is broken. That something is gone afterwards counts only when it was
//! seen before.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use podspan_cni::attachment::ContainerId;
use podspan_kernel::{Netlink, Netns, Prefix};

use super::super::holder::{self, CLUSTER};
use super::super::inside::{Action, Place};
use super::super::layout::{Layout, Machine};
use super::super::observe::{self, Pod, Seen};
use super::super::{LOOK, status};
use super::{Row, connections, own_address, routes, traffic};

/// The pod that is added and removed.
const POD: &str = "lab-check";
const JOINS: &str = "an added pod joins the network";
/// How long a change may take to be everywhere.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pod is added to the first node, talks with all others, and goes.
pub fn pod_comes_and_goes(layout: Layout) -> Result<[Row; 2]> {
    let machine = Machine::Node(1);
    let name: ContainerId = POD.parse()?;
    // Of a check that was interrupted.
    if find(&observe::beside(machine)?).is_some() {
        inside(&Action::Del {
            pod: Place::of_pod(machine, name.clone()),
        })?;
    }
    let added = inside(&Action::Add {
        pod: Place::of_pod(machine, name.clone()),
    })?;
    let joined = match added {
        None => joined(layout)?,
        Some(why) => Row {
            promise: JOINS,
            tried: 1,
            of: "pods",
            failures: vec![why],
        },
    };
    let before = Traces::of(machine)?;
    let removal = inside(&Action::Del {
        pod: Place::of_pod(machine, name),
    })?;
    let after = Traces::of(machine)?;
    Ok([joined, freed(&before, &after, removal)])
}

fn find(seen: &Seen) -> Option<&Pod> {
    seen.pods.iter().find(|pod| pod.name == POD)
}

fn joined(layout: Layout) -> Result<Row> {
    let machines = status::observe_all(layout.machines())?;
    let places = traffic::places(&machines)?;
    let is_new = |place: &traffic::Place| place.pod.as_deref() == Some(POD);
    let attempts = traffic::connect(&places, |client, server| {
        (is_new(client) || is_new(server)) && super::is_promised(client, server)
    })?;
    let mut row = connections(JOINS, &attempts, |_| true);
    row.failures.extend(own_address(&attempts).failures);
    row.failures.extend(super::addresses(&machines).failures);
    Ok(row)
}

/// What a node has of the pod.
struct Traces {
    /// The pod's own addresses.
    addresses: Vec<IpAddr>,
    /// The addresses that the IPAM has a file of.
    files: BTreeSet<IpAddr>,
    /// The node's links whose alias names the pod.
    links: BTreeSet<String>,
}

impl Traces {
    fn of(machine: Machine) -> Result<Self> {
        let process = holder::process_of(machine)?;
        let seen = observe::beside(machine)?;
        let addresses = find(&seen)
            .iter()
            .flat_map(|pod| &pod.addresses)
            .map(|net| net.addr())
            .collect();
        let mut netlink = Netns::open(process.join("ns/net"))?.run(Netlink::open)??;
        let links = netlink
            .list_links()?
            .into_iter()
            .filter(|link| observe::is_of_pod(link, POD));
        Ok(Self {
            addresses,
            files: files_of_addresses(&process.join("root/run/podspan/ipam")),
            links: links.map(|link| link.name).collect(),
        })
    }
}

/// Those in the directory of each network.
fn files_of_addresses(directory: &Path) -> BTreeSet<IpAddr> {
    let networks = fs::read_dir(directory).into_iter().flatten().flatten();
    networks
        .flat_map(|network| fs::read_dir(network.path()).into_iter().flatten().flatten())
        .filter_map(|file| file.file_name().to_str()?.parse().ok())
        .collect()
}

fn freed(before: &Traces, after: &Traces, removal: Option<String>) -> Row {
    let mut failures: Vec<_> = removal.into_iter().collect();
    if before.addresses.is_empty() || before.links.is_empty() {
        failures.push(format!(
            "the pod had {} addresses and {} host veths",
            before.addresses.len(),
            before.links.len()
        ));
    }
    for ip in &before.addresses {
        if !before.files.contains(ip) {
            failures.push(format!("{ip} had no file of its own while the pod had it"));
        }
        if after.files.contains(ip) {
            failures.push(format!("{ip} is still taken"));
        }
    }
    failures.extend(
        after
            .links
            .iter()
            .map(|link| format!("link {link} is still there")),
    );
    Row {
        promise: "a removed pod frees its addresses and takes its host veth with it",
        tried: before.addresses.len() + before.links.len(),
        of: "traces",
        failures,
    }
}

/// Runs `podspan lab inside <action>`, which moves to the node for good; gives what went wrong.
fn inside(action: &Action) -> Result<Option<String>> {
    let output = Command::new(std::env::current_exe()?)
        .args(["lab", "inside", &serde_json::to_string(action)?])
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    Ok((!output.status.success()).then(|| said.trim().to_owned()))
}

/// The last node leaves the nodes file, and returns.
pub fn node_leaves_and_returns(layout: Layout) -> Result<[Row; 2]> {
    let machine = Machine::Node(layout.nodes);
    let others: Vec<_> = layout
        .machines()
        .filter(|other| *other != machine)
        .collect();
    let mut left = Row {
        promise: "a node that leaves the nodes file loses its routes everywhere",
        tried: 0,
        of: "routes",
        failures: Vec::new(),
    };
    let mut returned = Row {
        promise: "a node that returns to the nodes file is reached again",
        tried: 0,
        of: "connections",
        failures: Vec::new(),
    };
    if others.is_empty() {
        return Ok([left, returned]);
    }
    let subnets = machine.pod_cidrs();
    left.tried = held(&others, &subnets)?.len();
    if left.tried == 0 {
        left.failures
            .push(format!("no machine held a route to {machine} before"));
    }
    let file = Path::new(CLUSTER).join("nodes.toml");
    let whole = fs::read_to_string(&file).context("read the nodes file")?;
    replace(&file, &without(&whole, machine)?)?;
    let losing = settle(|| held(&others, &subnets));
    replace(&file, &whole)?;
    left.failures.extend(losing?);
    let returning =
        settle(|| Ok(routes(layout, &status::observe_all(layout.machines())?).failures))?;
    let machines = status::observe_all(layout.machines())?;
    let places = traffic::places(&machines)?;
    let attempts = traffic::connect(&places, |client, server| {
        (client.machine == machine) != (server.machine == machine)
            && super::is_promised(client, server)
    })?;
    let traffic = connections(returned.promise, &attempts, |_| true);
    returned.tried = traffic.tried;
    returned.failures = returning.into_iter().chain(traffic.failures).collect();
    Ok([left, returned])
}

/// Which machines hold routes of ours to those subnets.
fn held(machines: &[Machine], subnets: &[Prefix]) -> Result<Vec<String>> {
    let mut held = Vec::new();
    for (machine, seen) in status::observe_all(machines.iter().copied())? {
        let there = seen
            .routes
            .iter()
            .filter(|route| subnets.contains(&route.dst));
        held.extend(there.map(|route| format!("{machine} still holds {route}")));
    }
    Ok(held)
}

/// Looks until nothing fails any more, or the time is over: what fails then.
fn settle(mut failing: impl FnMut() -> Result<Vec<String>>) -> Result<Vec<String>> {
    let begin = Instant::now();
    loop {
        let failures = failing()?;
        if failures.is_empty() || begin.elapsed() > PATIENCE {
            return Ok(failures);
        }
        std::thread::sleep(LOOK);
    }
}

/// The nodes file's text without that node, whatever else somebody wrote into it.
fn without(nodes_file: &str, machine: Machine) -> Result<String> {
    let mut file: toml::Table = nodes_file.parse().context("read the nodes file")?;
    let nodes = file.get_mut("nodes").and_then(toml::Value::as_array_mut);
    let nodes = nodes.context("the nodes file has no nodes")?;
    nodes.retain(|node| {
        node.get("name").and_then(toml::Value::as_str) != Some(&machine.to_string())
    });
    Ok(toml::to_string(&file)?)
}

/// Gives the file another text, by rename: no agent ever reads half of it.
fn replace(file: &Path, text: &str) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, file))
        .context("write the nodes file")
}
