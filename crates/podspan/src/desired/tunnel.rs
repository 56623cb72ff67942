//! What VXLAN devices this node should have, and what is behind them.
//!
//! Nothing is learned. A node's VTEP has the MAC address that belongs to the network address of the node's first pod CIDR,
//! so that every other node knows it without asking. A route to a node's pods leads to a next hop that nobody has as an
//! address: IPv4, the network address of its first IPv4 pod CIDR, taken to be on the link; IPv6, the link-local address
//! that belongs to the MAC address, because the kernel refuses a next hop on a link while another route covers it
//! (`ip6_route_check_nh_onlink`), which it does while nodes change from one routing to another. That the next hop is behind
//! the MAC address is written down as a neighbour, and where the MAC address is, as an entry of the forwarding table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use podspan_kernel::{
    FdbEntry, IfName, Mac, Neighbour, Prefix, Route, RouteOptions, RouteProtocol, Vxlan,
};

use super::{Draft, Subnet, Sysctl};
use crate::cluster::Node;
use crate::config::{NodeRole, Routing};
use crate::refusal::Setting;

/// A VXLAN device and what is behind it.
#[derive(Debug, Clone)]
pub struct Tunnel {
    /// Its name.
    pub name: IfName,
    /// What it is.
    pub vxlan: Vxlan,
    /// Its MAC address, which the other nodes derive too.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Its own kernel parameters.
    pub sysctls: Vec<Sysctl>,
    /// Its address, where this node has pods with IPv4 addresses: that of its next hop, for the other nodes. Of a device
    /// without any, strict and loose checks of the reverse path alike drop what would be answered another way
    /// (`no_addr` in `__fib_validate_source`, net/ipv4/fib_frontend.c).
    pub address: Option<IpNet>,
    /// Which node is behind which MAC address, sorted.
    pub fdb: Vec<FdbEntry>,
    /// Which next hop is behind which MAC address, sorted.
    pub neighbours: Vec<Neighbour>,
    /// The routes through it, sorted. Their link is none: its number is known when it is there.
    pub routes: Vec<Route>,
}

/// The devices while peers are added to them.
pub(super) struct Tunnels {
    /// Over IPv4, over IPv6: those that this node has an address for.
    devices: Vec<Tunnel>,
    /// The VTEPs so far, this node's own first, and where they are.
    vteps: BTreeMap<Mac, IpAddr>,
}

impl Tunnels {
    fn over(&mut self, is_ipv4: bool) -> Option<&mut Tunnel> {
        let mut devices = self.devices.iter_mut();
        devices.find(|device| {
            device
                .vxlan
                .local
                .is_some_and(|local| local.is_ipv4() == is_ipv4)
        })
    }

    /// Those that something is sent through, or with `wanted` all over which something may come.
    pub(super) fn finish(self, wanted: [bool; 2]) -> Vec<Tunnel> {
        let [v4, v6] = wanted;
        let mut devices = self.devices;
        devices.retain(|device| {
            let is_ipv4 = device.vxlan.local.is_some_and(|local| local.is_ipv4());
            !device.routes.is_empty() || if is_ipv4 { v4 } else { v6 }
        });
        for device in &mut devices {
            device.fdb.sort();
            device.neighbours.sort();
            device.routes.sort();
        }
        devices
    }
}

impl Draft<'_> {
    /// The devices that this node could have, with nothing behind them.
    pub(super) fn tunnels(&self, role: &NodeRole, own: &Node) -> Tunnels {
        let subnets = own.addresses.iter().filter_map(|ip| self.subnet_of(*ip));
        let devices = subnets.filter_map(|subnet| {
            let local = subnet.net.addr();
            let name = role.vxlan.name(local);
            let room = subnet.mtu.saturating_sub(Vxlan::overhead(local));
            Some(Tunnel {
                name: name.clone(),
                vxlan: Vxlan {
                    vni: role.vxlan.vni,
                    port: role.vxlan.port,
                    local: Some(local),
                    learning: false,
                },
                mac: vtep(own)?,
                mtu: role.mtu.map_or(room, |mtu| mtu.min(room)),
                sysctls: sysctls(name, own),
                address: address(own),
                fdb: Vec::new(),
                neighbours: Vec::new(),
                routes: Vec::new(),
            })
        });
        let own_vtep = vtep(own).zip(own.addresses.first().copied());
        Tunnels {
            devices: devices.collect(),
            vteps: own_vtep.into_iter().collect(),
        }
    }

    fn subnet_of(&self, ip: IpAddr) -> Option<&Subnet> {
        let mut subnets = self.underlay.subnets.iter();
        subnets.find(|subnet| subnet.net.addr() == ip)
    }

    /// A route through VXLAN to that pod CIDR of the node, or why not.
    pub(super) fn encapsulate(
        &mut self,
        tunnels: &mut Tunnels,
        [own, node]: [&Node; 2],
        pod_cidr: &Setting<'_, Prefix>,
    ) {
        if let Some(collision) = self.collision(pod_cidr.value) {
            return self.keep(pod_cidr.refuse(collision), pod_cidr.value);
        }
        let cluster = self.cluster;
        let Some([local, remote]) = underlay_between(own, node) else {
            let mut addresses = cluster.addresses(node);
            let fix = "is of another family than this node's addresses; give both one of the same";
            let refusal = addresses.next().map(|address| address.refuse(fix));
            return refusal
                .into_iter()
                .for_each(|refusal| self.keep(refusal, pod_cidr.value));
        };
        let setting = |of: &'_ Node, ip: IpAddr, fix: &str| {
            let mut addresses = cluster.addresses(of);
            let address = addresses.find(|address| address.value == ip);
            address.map(|address| address.refuse(fix))
        };
        let source = self.source(pod_cidr.value);
        let refusal = match tunnels.over(remote.is_ipv4()) {
            _ if self.subnet_of(remote).is_some() => {
                let fix = "is this machine's own address; give the address of that machine";
                setting(node, remote, fix)
            }
            None => {
                let fix = "no link of this node has it, so nothing can be sent from it; correct it";
                setting(own, local, fix)
            }
            Some(_) => match add_peer(tunnels, node, remote, pod_cidr.value) {
                Ok(next_hop) => {
                    if let Some(device) = tunnels.over(remote.is_ipv4()) {
                        device.routes.push(route(pod_cidr.value, next_hop, source));
                    }
                    return;
                }
                Err(fix) => Some(pod_cidr.refuse(fix)),
            },
        };
        match refusal {
            Some(refusal) if self.refusals.contains(&refusal) => {
                self.desired.kept.destinations.push(pod_cidr.value);
            }
            Some(refusal) => self.keep(refusal, pod_cidr.value),
            None => self.desired.kept.destinations.push(pod_cidr.value),
        }
    }

    /// From where this machine sends to pods of that family elsewhere: the gateway of its own pods, which the other node
    /// has a route to through the same device. Its address on the underlay would be answered another way, or, where
    /// `rp_filter` is strict, not at all.
    fn source(&self, pod_cidr: Prefix) -> Option<IpAddr> {
        let gateways = self.desired.bridge.iter().flat_map(|b| &b.gateways);
        let mut of_family = gateways
            .map(|net| net.addr())
            .filter(|gateway| gateway.is_ipv4() == pod_cidr.is_ipv4());
        of_family.next()
    }

    /// Over which families other nodes may send to this one.
    pub(super) fn families_of_peers(&self, own: &Node) -> [bool; 2] {
        let [mut v4, mut v6] = [false; 2];
        for node in &self.cluster.nodes {
            match underlay_between(own, node) {
                Some([local, _]) if node.entry != own.entry => {
                    if local.is_ipv4() {
                        v4 = true
                    } else {
                        v6 = true
                    }
                }
                _ => {}
            }
        }
        [v4, v6]
    }
}

/// The addresses between which two nodes send: IPv4 where both have it.
fn underlay_between(own: &Node, node: &Node) -> Option<[IpAddr; 2]> {
    let of = |node: &Node, is_ipv4: bool| {
        let mut addresses = node.addresses.iter().copied();
        addresses.find(|ip| ip.is_ipv4() == is_ipv4)
    };
    let both = |is_ipv4| Some([of(own, is_ipv4)?, of(node, is_ipv4)?]);
    both(true).or_else(|| both(false))
}

/// The MAC address of a node's VTEP.
fn vtep(node: &Node) -> Option<Mac> {
    let first = node.pod_cidrs.first()?;
    Some(Mac::of_ip(first.addr()))
}

/// The IPv4 address by which other nodes name this one as a next hop.
fn address(own: &Node) -> Option<IpNet> {
    let first = own.pod_cidrs.iter().find(|cidr| cidr.is_ipv4())?;
    IpNet::new(first.addr(), 32).ok()
}

/// Writes down where the node is, once, and gives the next hop to its pods of that family.
fn add_peer(
    tunnels: &mut Tunnels,
    node: &Node,
    remote: IpAddr,
    pod_cidr: Prefix,
) -> Result<IpAddr, String> {
    let mac = vtep(node).ok_or("the node has no pod CIDR")?;
    let of_family = |cidr: &&Prefix| cidr.is_ipv4() == pod_cidr.is_ipv4();
    let first = node.pod_cidrs.iter().find(of_family).unwrap_or(&pod_cidr);
    let next_hop = match first.addr() {
        IpAddr::V4(network) => network.into(),
        IpAddr::V6(_) => mac.link_local().into(),
    };
    let known = tunnels.vteps.insert(mac, remote);
    if let Some(other) = known.filter(|other| *other != remote) {
        tunnels.vteps.insert(mac, other);
        return Err(format!(
            "gives the node the VTEP {mac}, which the node at {other} has; give it another first pod CIDR"
        ));
    }
    let device = tunnels.over(remote.is_ipv4());
    let device = device.ok_or("there is no device over this family")?;
    if known.is_none() {
        device.fdb.push(FdbEntry { mac, remote });
    }
    let neighbour = Neighbour { ip: next_hop, mac };
    // Of one node, the pod CIDRs follow each other.
    let mut last = device.neighbours.iter().rev().take(node.pod_cidrs.len());
    if !last.any(|known| *known == neighbour) {
        device.neighbours.push(neighbour);
    }
    Ok(next_hop)
}

fn route(dst: Prefix, next_hop: IpAddr, source: Option<IpAddr>) -> Route {
    Route {
        dst,
        next_hop: Some(next_hop),
        link: None,
        protocol: RouteProtocol::PODSPAN,
        options: RouteOptions {
            onlink: next_hop.is_ipv4(),
            source,
            ..RouteOptions::default()
        },
    }
}

/// The device takes what other nodes send by it, also when this node would answer another way: while the nodes change
/// from one routing to another, one after the other, both ways are right. The larger of `all` and this counts, and 2 is
/// *loose* (ip-sysctl.rst, `rp_filter`). For pods with IPv6 addresses it speaks IPv6, and no other node becomes the default
/// router by it.
fn sysctls(name: &IfName, own: &Node) -> Vec<Sysctl> {
    let sysctl = |family: &str, key: &str, value| Sysctl {
        key: format!("net/{family}/conf/{name}/{key}"),
        value,
    };
    let mut sysctls = vec![sysctl("ipv4", "rp_filter", "2")];
    if own.pod_cidrs.iter().any(|cidr| !cidr.is_ipv4()) {
        sysctls.push(sysctl("ipv6", "disable_ipv6", "0"));
        sysctls.push(sysctl("ipv6", "accept_ra", "0"));
    }
    sysctls
}

/// What encapsulation takes of the uplink's MTU, for all pods of the node: also of those that talk with near ones only, so
/// that a node that comes on another subnet changes no running pod's world.
pub(super) fn overhead(role: &NodeRole, own: &Node) -> u32 {
    match role.routing {
        Routing::Auto | Routing::Vxlan => {
            let most = own.addresses.iter().min().copied();
            most.map_or(0, Vxlan::overhead)
        }
        Routing::Direct | Routing::Router { .. } => 0,
    }
}
