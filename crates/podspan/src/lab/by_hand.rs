//! What the lab and the programs in it did, as the commands of iproute2 with which one does it by hand.
//!
//! Typed one after the other they make the same network: a test does that. What the programs did is read from the kernel
//! afterwards, not from their words. Pure: it only writes text.

use std::net::IpAddr;

use super::layout::{MTU, Machine, UNDERLAY, UPLINK};
use super::observe::{Pod, Seen};

/// A machine and its cable to the underlay.
pub fn uplink(machine: Machine) -> Vec<String> {
    let mut commands = vec![
        format!("ip netns add {machine}"),
        format!("ip -n {machine} link set lo up"),
        format!(
            "ip link add {machine} mtu {MTU} master {UNDERLAY} type veth peer name {UPLINK} mtu {MTU} netns {machine}"
        ),
        format!("ip link set {machine} up"),
        format!("ip -n {machine} link set {UPLINK} up"),
    ];
    for net in machine.addresses() {
        commands.push(format!(
            "ip -n {machine} address add {net} dev {UPLINK}{}",
            nodad(net.addr())
        ));
    }
    commands
}

/// What the machine's agent and, for its pods, the plugin programmed.
pub fn programmed(machine: Machine, seen: &Seen) -> Vec<String> {
    let mut commands = vec![format!(
        "ip netns exec {machine} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
    )];
    if let Some(bridge) = &seen.bridge {
        let name = &bridge.name;
        commands.push(format!("ip -n {machine} link add {name} type bridge"));
        commands.push(format!("ip -n {machine} link set {name} up"));
        for net in &bridge.addresses {
            commands.push(format!(
                "ip -n {machine} address add {net} dev {name}{}",
                nodad(net.addr())
            ));
        }
        for each in &seen.pods {
            commands.extend(pod(machine, each, name));
        }
    }
    for route in &seen.routes {
        commands.push(format!("ip -n {machine} route add {route}"));
    }
    commands
}

/// One pod: its namespace, the pair, the addresses, the default routes.
fn pod(machine: Machine, pod: &Pod, bridge: &str) -> Vec<String> {
    let netns = format!("{machine}-{}", pod.name);
    let mut commands = vec![
        format!("ip netns add {netns}"),
        format!("ip -n {netns} link set lo up"),
    ];
    let Some(host_veth) = &pod.host_veth else {
        return commands;
    };
    let (veth, mtu) = (&host_veth.name, host_veth.mtu);
    commands.extend([
        format!(
            "ip -n {machine} link add {veth} mtu {mtu} master {bridge} type veth peer name eth0 mtu {mtu} netns {netns}"
        ),
        format!("ip -n {machine} link set {veth} up"),
        format!("ip -n {netns} link set eth0 up"),
    ]);
    for net in &pod.addresses {
        commands.push(format!(
            "ip -n {netns} address add {net} dev eth0{}",
            nodad(net.addr())
        ));
    }
    for gateway in &pod.gateways {
        commands.push(format!("ip -n {netns} route add default via {gateway}"));
    }
    commands
}

fn nodad(ip: IpAddr) -> &'static str {
    if ip.is_ipv6() { " nodad" } else { "" }
}
