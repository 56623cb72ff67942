//! What the kernel and the file system say of this machine: what bears our mark, and what our marks stand on.
//!
//! Nothing is changed here. First the links, from which follows what is desired; then the rest.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use podspan_cni::attachment::{AttachmentId, BRIDGE_ALIAS, MARK, NetworkName};
use podspan_kernel::{
    Address, FdbEntry, IfName, Link, Mac, Neighbour, Netlink, Route, RouteProtocol, Vxlan, sysctl,
};

use crate::config::{Config, NodeRole, Role};
use crate::conflist;
use crate::desired::{Desired, Subnet, Underlay, VXLAN_ALIAS};
use crate::packet_filter::{self, PacketFilter};

/// Is there where the kernel has loaded `br_netfilter`, whatever its value.
pub const BR_NETFILTER: &str = "net/bridge/bridge-nf-call-iptables";
/// It is there while links can have IPv6.
const IPV6: &str = "net/ipv6/conf/all/accept_ra";

/// The machine's links.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// Those that are not ours, with their addresses.
    pub underlay: Underlay,
    /// The link that has the bridge's name, whosever it is.
    pub bridge: Option<ObservedBridge>,
    /// The links that have the names of our VXLAN devices, whosever they are.
    pub tunnels: Vec<ObservedTunnel>,
    /// The name of each.
    pub names: BTreeMap<u32, Arc<str>>,
}

/// A link that has the bridge's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservedBridge {
    /// `bridge`, or what it is instead.
    pub kind: Option<String>,
    /// Its alias.
    pub alias: Option<String>,
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Its global addresses.
    pub addresses: Vec<IpNet>,
    /// What it forwards passes the filters of IP; none where the kernel knows no such thing.
    pub netfilter: Option<bool>,
    /// Its ports that lead to pods of the network.
    pub ports: Vec<ObservedPort>,
}

/// A port of the bridge that leads to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedPort {
    /// The host veth.
    pub name: IfName,
    /// It is isolated from others that are.
    pub isolated: bool,
}

/// A link that has the name of a VXLAN device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedTunnel {
    /// Its name.
    pub name: IfName,
    /// Its number.
    pub index: u32,
    /// `vxlan`, or what it is instead.
    pub kind: Option<String>,
    /// Its alias.
    pub alias: Option<String>,
    /// What it is, where it is a VXLAN device.
    pub vxlan: Option<Vxlan>,
    /// Its MAC address.
    pub mac: Option<Mac>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Its global addresses.
    pub addresses: Vec<IpNet>,
    /// Its forwarding table, where it is ours.
    pub fdb: Vec<FdbEntry>,
    /// The neighbours on it that somebody wrote down, where it is ours.
    pub neighbours: Vec<Neighbour>,
}

/// What this machine is.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The name of each link.
    pub links: BTreeMap<u32, Arc<str>>,
    /// The link that has the bridge's name.
    pub bridge: Option<ObservedBridge>,
    /// The links that have the names of our VXLAN devices.
    pub tunnels: Vec<ObservedTunnel>,
    /// The routes with our protocol number.
    pub routes: Vec<Route>,
    /// The values of the kernel parameters that matter; one that cannot be read is missing.
    pub sysctls: BTreeMap<String, String>,
    /// The addresses that pods of this network have; none when that cannot be read.
    pub allocations: Option<Vec<IpAddr>>,
    /// What is at the conflist's path.
    pub conflist: conflist::Found,
    /// What is there of ours in the packet filter, or why it cannot be told.
    pub filter: Result<Arc<packet_filter::Seen>, podspan_kernel::Error>,
}

impl ObservedBridge {
    /// Ours by its mark, or left by a kill between its making and its marking: the MAC address that we derive, no alias.
    pub fn is_ours(&self, mac: Mac) -> bool {
        let unmarked = self.alias.is_none() && self.mac == Some(mac);
        self.is_bridge() && (self.alias.as_deref() == Some(BRIDGE_ALIAS) || unmarked)
    }

    /// True when it is a bridge at all.
    pub fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }
}

impl ObservedTunnel {
    /// Ours by its mark, or left by a kill between its making and its marking: the MAC address that we derive, no alias.
    pub fn is_ours(&self, mac: Option<Mac>) -> bool {
        let unmarked = self.alias.is_none() && mac.is_some() && self.mac == mac;
        self.vxlan.is_some() && (self.alias.as_deref() == Some(VXLAN_ALIAS) || unmarked)
    }
}

/// Looks at the links.
///
/// # Errors
/// What the kernel answered.
pub fn observe_links(netlink: &mut Netlink, config: &Config) -> anyhow::Result<Links> {
    let role = match &config.role {
        Role::Node(role) => Some(role),
        Role::Router => None,
    };
    let mut links = sort_links(role, netlink.list_links()?, &netlink.list_addresses()?);
    links.underlay.can_filter = sysctl::read(BR_NETFILTER).is_ok();
    links.underlay.has_ipv6 = sysctl::read(IPV6).is_ok();
    Ok(links)
}

/// Tells what is ours from what is the underlay.
fn sort_links(role: Option<&NodeRole>, links: Vec<Link>, addresses: &[Address]) -> Links {
    let mut sorted = Links::default();
    let ports = role.map(|role| ports(role, &links)).unwrap_or_default();
    let mut nets: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
    for address in addresses.iter().filter(|address| address.global) {
        nets.entry(address.link).or_default().push(address.net);
    }
    for link in links {
        let name: Arc<str> = link.name.as_str().into();
        sorted.names.insert(link.index, Arc::clone(&name));
        let nets = nets.remove(&link.index).unwrap_or_default();
        if let Some(name) = role.and_then(|role| tunnel_name(role, &link)) {
            sorted.tunnels.push(observed_tunnel(name, &link, &nets));
        }
        if role.is_some_and(|role| role.bridge.as_str() == link.name) {
            sorted.bridge = Some(ObservedBridge {
                kind: link.kind,
                alias: link.alias,
                mac: link.mac,
                mtu: link.mtu,
                up: link.up,
                addresses: nets,
                netfilter: link.netfilter,
                ports: ports.clone(),
            });
        } else if !link.alias.is_some_and(|alias| alias.starts_with(MARK)) {
            sorted
                .underlay
                .subnets
                .extend(nets.into_iter().map(|net| Subnet {
                    net,
                    link: link.index,
                    link_name: Arc::clone(&name),
                    mtu: link.mtu,
                    up: link.up,
                }));
        }
    }
    sorted
}

fn ports(role: &NodeRole, links: &[Link]) -> Vec<ObservedPort> {
    let bridge = { links.iter() }.find(|link| link.name == role.bridge.as_str());
    let Some(bridge) = bridge.map(|bridge| bridge.index) else {
        return Vec::new();
    };
    let is_pod = |link: &&Link| {
        let attachment = link.alias.as_deref().and_then(AttachmentId::from_alias);
        link.master == Some(bridge)
            && attachment.is_some_and(|(network, _)| network == role.network)
    };
    let port = |link: &Link| {
        Some(ObservedPort {
            name: link.name.parse().ok()?,
            isolated: link.isolated,
        })
    };
    links.iter().filter(is_pod).filter_map(port).collect()
}

fn tunnel_name<'a>(role: &'a NodeRole, link: &Link) -> Option<&'a IfName> {
    let mut names = role.vxlan.names.iter();
    names.find(|name| name.as_str() == link.name)
}

fn observed_tunnel(name: &IfName, link: &Link, nets: &[IpNet]) -> ObservedTunnel {
    ObservedTunnel {
        name: name.clone(),
        index: link.index,
        kind: link.kind.clone(),
        alias: link.alias.clone(),
        vxlan: link.vxlan,
        mac: link.mac,
        mtu: link.mtu,
        up: link.up,
        addresses: nets.to_vec(),
        fdb: Vec::new(),
        neighbours: Vec::new(),
    }
}

/// Looks at everything else that `desired` is about.
///
/// # Errors
/// What the kernel or the file system answered.
pub fn observe(
    netlink: &mut Netlink,
    config: &Config,
    desired: &Desired,
    (mut links, filter): (Links, &mut PacketFilter),
) -> anyhow::Result<Observed> {
    for tunnel in &mut links.tunnels {
        let wanted = desired
            .tunnels
            .iter()
            .find(|wanted| wanted.name == tunnel.name);
        if tunnel.is_ours(wanted.map(|wanted| wanted.mac)) {
            tunnel.fdb = netlink.list_fdb(tunnel.index)?;
            tunnel.neighbours = netlink.list_permanent_neighbours(tunnel.index)?;
        }
    }
    let allocations = match &config.role {
        Role::Node(role) => list_allocations(&role.data_dir, &role.network).ok(),
        Role::Router => None,
    };
    let of_bridge = desired.bridge.iter().flat_map(|bridge| &bridge.sysctls);
    let of_tunnels = desired.tunnels.iter().flat_map(|tunnel| &tunnel.sysctls);
    let mut sysctls = BTreeMap::new();
    for wanted in desired.sysctls.iter().chain(of_bridge).chain(of_tunnels) {
        if let Ok(value) = sysctl::read(&wanted.key) {
            sysctls.insert(wanted.key.clone(), value);
        }
    }
    let conflist = match &desired.conflist {
        Some(file) => conflist::observe(&file.path),
        None => conflist::Found::Absent,
    };
    Ok(Observed {
        links: links.names,
        bridge: links.bridge,
        tunnels: links.tunnels,
        routes: netlink.list_routes(RouteProtocol::PODSPAN)?,
        sysctls,
        allocations,
        conflist,
        filter: filter.observe(),
    })
}

/// The addresses that pods of the network have: the names of the files in its directory under `ipam`.
///
/// # Errors
/// A directory that is there and cannot be read.
pub fn list_allocations(ipam: &Path, network: &NetworkName) -> anyhow::Result<Vec<IpAddr>> {
    let directory = ipam.join(network.as_str());
    let entries = match directory.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            let text = format!("list allocations in {}: {error}", directory.display());
            return Err(anyhow::Error::msg(text));
        }
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}
