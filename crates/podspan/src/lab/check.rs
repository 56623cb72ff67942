//! `podspan lab check`: does the network keep what it promises?
//!
//! Each promise is a row of the table, judged on what the kernels and the sockets say, never on what the programs say of
//! themselves. A row for which there is nothing to try (one node has no other nodes) is neither passed nor failed: a check
//! that cannot fail proves nothing.

mod change;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::layout::{Layout, Machine};
use super::observe::Seen;
use super::{holder, status};
use crate::output::Output;
use traffic::{Attempt, NOT_TRIED, Place};

/// How many of a row's failures are printed.
const FAILURES_SHOWN: usize = 5;

/// A promise, and what became of it.
struct Row {
    promise: &'static str,
    /// How many times it was tried, and on what.
    tried: usize,
    of: &'static str,
    failures: Vec<String>,
}

impl Row {
    fn outcome(&self) -> &'static str {
        match (self.failures.len(), self.tried) {
            (1.., _) => "FAIL",
            (0, 0) => "none",
            _ => "PASS",
        }
    }

    fn as_json(&self) -> Value {
        json!({
            "promise": self.promise,
            "outcome": self.outcome(),
            "tried": self.tried,
            "of": self.of,
            "failures": self.failures,
        })
    }
}

/// Checks the lab and prints a table; fails when a promise is broken.
///
/// # Errors
/// When the lab cannot be looked at.
pub fn run(output: Output) -> Result<ExitCode> {
    let layout = holder::layout()?;
    let machines = status::observe_all(layout.machines())?;
    let mut rows = vec![addresses(&machines), routes(layout, &machines)];
    let places = traffic::places(&machines)?;
    rows.extend(promises_of_traffic(&traffic::connect(
        &places,
        is_promised,
    )?));
    rows.extend(change::pod_comes_and_goes(layout)?);
    rows.extend(change::node_leaves_and_returns(layout)?);
    let list: Vec<_> = rows.iter().map(Row::as_json).collect();
    output.print(&list, |_| table(&rows))?;
    let broken = rows.iter().any(|row| row.outcome() == "FAIL");
    Ok(if broken {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Every pod has one address of each of its node's subnets, and shares it with nobody.
fn addresses(machines: &[(Machine, Seen)]) -> Row {
    let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
    let mut failures = Vec::new();
    let mut tried = 0;
    for (machine, seen) in machines {
        for pod in &seen.pods {
            tried += 1;
            let name = format!("{machine}/{}", pod.name);
            for subnet in machine.pod_cidrs() {
                let length = subnet.length();
                let fits =
                    |net: &&ipnet::IpNet| subnet.holds(net.addr()) && net.prefix_len() == length;
                if pod.addresses.iter().filter(fits).count() != 1 {
                    failures.push(format!(
                        "{name} has not one address of {subnet}, but {:?}",
                        pod.addresses
                    ));
                }
            }
            for net in &pod.addresses {
                if let Some(other) = owners.insert(net.addr(), name.clone()) {
                    failures.push(format!("{other} and {name} both have {}", net.addr()));
                }
            }
        }
    }
    Row {
        promise: "every pod has its own address of its node's subnet, in both families",
        tried,
        of: "pods",
        failures,
    }
}

/// Every machine holds exactly the routes that the routing asks for.
fn routes(layout: Layout, machines: &[(Machine, Seen)]) -> Row {
    let mut tried = 0;
    let mut failures = Vec::new();
    for (machine, seen) in machines {
        let wanted: BTreeSet<_> = layout
            .routes(*machine)
            .into_iter()
            .map(|(dst, hop)| (dst, Some(hop)))
            .collect();
        let held: BTreeSet<_> = seen
            .routes
            .iter()
            .map(|route| (route.dst, route.next_hop))
            .collect();
        tried += wanted.len();
        failures.extend(wanted.difference(&held).map(|(dst, hop)| match hop {
            Some(hop) => format!("{machine} has no route {dst} via {hop}"),
            None => format!("{machine} has no route {dst}"),
        }));
        let strange = seen
            .routes
            .iter()
            .filter(|route| !wanted.contains(&(route.dst, route.next_hop)));
        failures.extend(strange.map(|route| format!("{machine} has a route too many: {route}")));
    }
    Row {
        promise: "every machine holds the routes of its routing, and no other of ours",
        tried,
        of: "routes",
        failures,
    }
}

/// The traffic that the network promises: pods with all pods, a pod with its own node.
fn is_promised(client: &Place, server: &Place) -> bool {
    match (&client.pod, &server.pod) {
        (Some(_), Some(_)) => true,
        (None, None) => false,
        _ => client.machine == server.machine,
    }
}

fn promises_of_traffic(attempts: &[Attempt<'_>]) -> Vec<Row> {
    let itself = |a: &Attempt<'_>| a.client.name() == a.server.name();
    let pods = |a: &Attempt<'_>| a.client.pod.is_some() && a.server.pod.is_some();
    let neighbours = |a: &Attempt<'_>| a.client.machine == a.server.machine;
    vec![
        connections("pods of one node reach each other", attempts, |a| {
            pods(a) && neighbours(a) && !itself(a)
        }),
        connections("pods of different nodes reach each other", attempts, |a| {
            pods(a) && !neighbours(a)
        }),
        full_size(attempts),
        connections("a pod reaches its node, at every address", attempts, |a| {
            a.server.pod.is_none()
        }),
        connections("a node reaches its pods", attempts, |a| {
            a.client.pod.is_none()
        }),
        connections("a pod reaches itself", attempts, itself),
        own_address(attempts),
    ]
}

/// A row about those of the connections that are `meant`.
fn connections(
    promise: &'static str,
    attempts: &[Attempt<'_>],
    meant: impl Fn(&Attempt<'_>) -> bool,
) -> Row {
    let meant: Vec<_> = attempts.iter().filter(|attempt| meant(attempt)).collect();
    let mut failures: Vec<_> = meant
        .iter()
        .filter_map(|attempt| {
            Some(format!(
                "{}: {}",
                name(attempt),
                attempt.seen.as_ref().err()?
            ))
        })
        .collect();
    // Those that say something come first.
    failures.sort_by_key(|failure| failure.ends_with(NOT_TRIED));
    Row {
        promise,
        tried: meant.len(),
        of: "connections",
        failures,
    }
}

/// What a pod's link lets through passes undivided all the way.
fn full_size(attempts: &[Attempt<'_>]) -> Row {
    let tried = || {
        attempts
            .iter()
            .filter_map(|a| Some((a, a.full_size.as_ref()?)))
    };
    Row {
        promise: "packets of full size pass undivided between pods of different nodes",
        tried: tried().count(),
        of: "packets",
        failures: tried()
            .filter_map(|(a, outcome)| Some(format!("{}: {}", name(a), outcome.as_ref().err()?)))
            .collect(),
    }
}

/// No address was translated on the way: the server saw one of the pod's own.
fn own_address(attempts: &[Attempt<'_>]) -> Row {
    let from_pods = attempts
        .iter()
        .filter(|attempt| attempt.client.pod.is_some());
    let seen: Vec<_> = from_pods
        .filter_map(|attempt| Some((attempt, attempt.seen.as_ref().ok()?)))
        .collect();
    let strange = seen
        .iter()
        .filter(|(attempt, ip)| !attempt.client.addresses.contains(*ip));
    Row {
        promise: "every server sees the client pod's own address (no NAT)",
        tried: seen.len(),
        of: "connections",
        failures: strange
            .map(|(attempt, ip)| format!("{}: the server saw {ip}", name(attempt)))
            .collect(),
    }
}

fn name(attempt: &Attempt<'_>) -> String {
    format!(
        "{} to {} at {}",
        attempt.client.name(),
        attempt.server.name(),
        attempt.to
    )
}

/// The table: a line for each promise, and under a broken one the first of its failures.
fn table(rows: &[Row]) -> String {
    let mut lines = Vec::new();
    for row in rows {
        let count = match row.failures.len() {
            0 => format!("{} {}", row.tried, row.of),
            failed => format!("{} {}, {failed} failed", row.tried, row.of),
        };
        lines.push(format!("{}  {:<69} {count}", row.outcome(), row.promise));
        for failure in row.failures.iter().take(FAILURES_SHOWN) {
            lines.push(format!("        {failure}"));
        }
        if let Some(more @ 1..) = row.failures.len().checked_sub(FAILURES_SHOWN) {
            lines.push(format!("        and {more} more"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests;
