//! What the lab and the programs in it did, as the commands of iproute2 with which one does it by hand.
//!
//! Typed one after the other they make the same network: a test does that. What the programs did is read from the kernel
//! afterwards, not from their words. Pure: it only writes text.

use std::net::IpAddr;

use podspan_kernel::{FdbEntry, Neighbour};

use super::layout::{Layout, MTU, Machine};
use super::machine::port;
use super::observe::{Pod, Seen, Tunnel};

/// A machine, its cables to the underlay, and its way out.
pub fn uplinks(layout: Layout, machine: Machine) -> Vec<String> {
    let mut commands = vec![
        format!("ip netns add {machine}"),
        format!("ip -n {machine} link set lo up"),
    ];
    for uplink in layout.uplinks(machine) {
        let (name, switch, port) = (uplink.name, uplink.switch, port(machine, &uplink));
        commands.extend([
            format!(
                "ip link add {port} mtu {MTU} master {switch} type veth peer name {name} mtu {MTU} netns {machine}"
            ),
            format!("ip link set {port} up"),
            format!("ip -n {machine} link set {name} up"),
        ]);
        for net in uplink.addresses {
            commands.push(format!(
                "ip -n {machine} address add {net} dev {name}{}",
                nodad(net.addr())
            ));
        }
    }
    for gateway in layout.ways_out(machine) {
        commands.push(format!("ip -n {machine} route add default via {gateway}"));
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
    for each in &seen.tunnels {
        commands.extend(tunnel(machine, each));
    }
    for route in &seen.routes {
        let mut tunnels = seen.tunnels.iter();
        let through = tunnels.find(|tunnel| Some(tunnel.link.index) == route.link);
        let dev = through.map(|tunnel| format!(" dev {}", tunnel.link.name));
        let dev = dev.unwrap_or_default();
        commands.push(format!("ip -n {machine} route add {route}{dev}"));
    }
    commands
}

/// A VXLAN device, and what is written down about who is behind it.
fn tunnel(machine: Machine, tunnel: &Tunnel) -> Vec<String> {
    let (name, mtu) = (&tunnel.link.name, tunnel.link.mtu);
    let (Some(vxlan), Some(mac)) = (tunnel.link.vxlan, tunnel.link.mac) else {
        return Vec::new();
    };
    let mut commands = vec![
        format!("ip -n {machine} link add {name} address {mac} mtu {mtu} type vxlan {vxlan}"),
        format!("ip -n {machine} link set {name} addrgenmode none"),
        format!("ip -n {machine} link set {name} up"),
    ];
    for FdbEntry { mac, remote } in &tunnel.fdb {
        commands.push(format!(
            "bridge -n {machine} fdb add {mac} dev {name} dst {remote} self permanent"
        ));
    }
    for Neighbour { ip, mac } in &tunnel.neighbours {
        commands.push(format!(
            "ip -n {machine} neigh add {ip} lladdr {mac} dev {name} nud permanent"
        ));
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
