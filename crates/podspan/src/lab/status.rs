//! The lab as it is now: drawn for a person, listed for a program.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::layout::Machine;
use super::observe::{self, AgentState, Seen};
use super::{draw, holder};
use crate::output::Output;

/// Shows the lab; fails when an agent does not run.
///
/// # Errors
/// When a machine cannot be read.
pub fn run(output: Output) -> Result<ExitCode> {
    let layout = holder::layout()?;
    let machines = observe_all(layout.machines())?;
    let idle: Vec<_> = machines
        .iter()
        .filter(|(machine, seen)| machine.program().is_some() && agent_state(seen) != "running")
        .map(|(machine, seen)| format!("{machine} ({})", agent_state(seen)))
        .collect();
    let list: Vec<_> = machines
        .iter()
        .map(|(machine, seen)| as_json(*machine, seen))
        .collect();
    let whole = json!({ "routing": layout.routing, "machines": list });
    output.print(&whole, |_| {
        let agents = match idle.as_slice() {
            [] => "all agents run".to_owned(),
            idle => format!("agents that do not run: {}", idle.join(", ")),
        };
        draw::network(&machines) + &agents
    })?;
    Ok(if idle.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Reads these machines, from beside them.
///
/// # Errors
/// When one of them does not run.
pub fn observe_all(machines: impl Iterator<Item = Machine>) -> Result<Vec<(Machine, Seen)>> {
    machines
        .map(|machine| Ok((machine, observe::beside(machine)?)))
        .collect()
}

fn agent_state(seen: &Seen) -> &'static str {
    match seen.agent.map(|agent| agent.state) {
        Some(AgentState::Running) => "running",
        Some(AgentState::Stopped) => "stopped",
        None => "absent",
    }
}

fn as_json(machine: Machine, seen: &Seen) -> Value {
    let pods: Vec<_> = seen
        .pods
        .iter()
        .map(|pod| {
            json!({
                "name": pod.name,
                "addresses": pod.addresses,
                "gateways": pod.gateways,
                "host_veth": pod.host_veth.as_ref().map(|link| &link.name),
            })
        })
        .collect();
    let bridge = seen
        .bridge
        .as_ref()
        .map(|bridge| json!({ "name": bridge.name, "addresses": bridge.addresses }));
    let routes: Vec<_> = seen.routes.iter().map(ToString::to_string).collect();
    let tunnels = seen.tunnels.iter();
    let tunnels: Vec<_> = tunnels.map(|tunnel| &tunnel.link.name).collect();
    json!({
        "name": machine.to_string(),
        "agent": agent_state(seen),
        "agent_pid": seen.agent.map(|agent| agent.pid),
        "uplink": seen.uplink,
        "bridge": bridge,
        "vxlan_devices": tunnels,
        "routes": routes,
        "pods": pods,
    })
}
