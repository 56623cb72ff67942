//! What a machine of the lab is, as its kernel says: addresses, routes, pods.
//!
//! Read from inside the machine or, through `/proc/<pid>`, from beside it. Nothing is taken from what the lab was asked to
//! be, so that what is drawn, shown and checked is the network and not the wish.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use ipnet::IpNet;
use podspan_cni::attachment::{AttachmentId, BRIDGE_ALIAS};
use podspan_kernel::{Address, FdbEntry, Link, Neighbour, Netlink, Netns, Route, RouteProtocol};

use super::holder;
use super::layout::{Machine, UPLINK, UPLINK_2};
use super::machine::pid_file;
use super::pod::NETNS_DIRECTORY;
use crate::desired::VXLAN_ALIAS;

/// A machine.
#[derive(Debug)]
pub struct Seen {
    /// The addresses of its uplink.
    pub uplink: Vec<IpNet>,
    /// The pods' bridge, once the agent made it.
    pub bridge: Option<Bridge>,
    /// The VXLAN devices of ours.
    pub tunnels: Vec<Tunnel>,
    /// The routes of ours.
    pub routes: Vec<Route>,
    /// Its pods, in the order of their names.
    pub pods: Vec<Pod>,
    /// The agent's or router's pid in the lab, while it runs; and whether somebody stopped it.
    pub agent: Option<Agent>,
}

/// The bridge that the pods of a node are on.
#[derive(Debug)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Its addresses, which are the gateways of the pods.
    pub addresses: Vec<IpNet>,
}

/// A VXLAN device and what is behind it.
#[derive(Debug)]
pub struct Tunnel {
    /// The device.
    pub link: Link,
    /// Which node is behind which MAC address.
    pub fdb: Vec<FdbEntry>,
    /// Which next hop is behind which MAC address.
    pub neighbours: Vec<Neighbour>,
}

/// A pod: a network namespace that the node has a name for.
#[derive(Debug)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// The addresses of its `eth0`.
    pub addresses: Vec<IpNet>,
    /// The next hops of its default routes.
    pub gateways: Vec<IpAddr>,
    /// The node's end of its veth pair, when the pod is attached.
    pub host_veth: Option<Link>,
}

/// The program that keeps the machine's routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agent {
    /// Its pid in the lab.
    pub pid: i32,
    /// The state in which the kernel has it.
    pub state: AgentState,
}

/// Whether an agent does its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentState {
    /// It runs, or waits for something to do.
    Running,
    /// Somebody sent it SIGSTOP.
    Stopped,
}

/// Reads a running machine of the lab from beside it.
///
/// # Errors
/// When it does not run, or cannot be read.
pub fn beside(machine: Machine) -> Result<Seen> {
    let process = holder::process_of(machine)?;
    let netns = Netns::open(process.join("ns/net"))
        .with_context(|| format!("{machine} does not run any more"))?;
    let mut seen = self::machine(&process.join("root"), &netns)?;
    seen.agent = pid_file(machine).and_then(|file| agent(&file, &process.join("root")));
    Ok(seen)
}

/// Reads the machine whose file system begins at `root` and whose network namespace is `netns`; not its agent.
///
/// # Errors
/// What the kernel answered.
pub fn machine(root: &Path, netns: &Netns) -> Result<Seen> {
    let mut netlink = netns.run(Netlink::open)??;
    let (links, addresses) = (netlink.list_links()?, netlink.list_addresses()?);
    let bridge = links
        .iter()
        .find(|link| link.is_bridge() && link.alias.as_deref() == Some(BRIDGE_ALIAS));
    Ok(Seen {
        uplink: [UPLINK, UPLINK_2]
            .iter()
            .flat_map(|name| addresses_of(name, &links, &addresses))
            .collect(),
        tunnels: tunnels(&mut netlink, &links)?,
        bridge: bridge.map(|bridge| Bridge {
            name: bridge.name.clone(),
            addresses: addresses_of(&bridge.name, &links, &addresses),
        }),
        routes: routes(&mut netlink)?,
        pods: pods(root, &links)?,
        agent: None,
    })
}

fn tunnels(netlink: &mut Netlink, links: &[Link]) -> Result<Vec<Tunnel>> {
    let ours = links
        .iter()
        .filter(|link| link.vxlan.is_some() && link.alias.as_deref() == Some(VXLAN_ALIAS));
    ours.map(|link| {
        let mut fdb = netlink.list_fdb(link.index)?;
        fdb.sort();
        Ok(Tunnel {
            link: link.clone(),
            fdb,
            neighbours: netlink.list_permanent_neighbours(link.index)?,
        })
    })
    .collect()
}

/// The routes of ours in the namespace of that socket, in order.
///
/// # Errors
/// What the kernel answered.
pub fn routes(netlink: &mut Netlink) -> Result<Vec<Route>> {
    let mut routes = netlink.list_routes(RouteProtocol::PODSPAN)?;
    routes.sort();
    Ok(routes)
}

fn pods(root: &Path, host_links: &[Link]) -> Result<Vec<Pod>> {
    let directory = root.join(NETNS_DIRECTORY.trim_start_matches('/'));
    let mut pods = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // A pod that is just being made or removed is none.
        let Ok(netns) = Netns::open(entry.path()) else {
            continue;
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        let host_veth = host_links.iter().find(|link| is_of_pod(link, &name));
        pods.push(pod(name, &netns, host_veth.cloned())?);
    }
    pods.sort_by_cached_key(|pod| (pod.name.len(), pod.name.clone()));
    Ok(pods)
}

/// Reads one pod.
fn pod(name: String, netns: &Netns, host_veth: Option<Link>) -> Result<Pod> {
    let mut netlink = netns.run(Netlink::open)??;
    let routes = netlink.list_routes(RouteProtocol::BOOT)?;
    let defaults = routes.iter().filter(|route| route.dst.is_default());
    Ok(Pod {
        name,
        addresses: addresses_of("eth0", &netlink.list_links()?, &netlink.list_addresses()?),
        gateways: defaults.filter_map(|route| route.next_hop).collect(),
        host_veth,
    })
}

/// True for the node's end of that pod's veth pair: the container bears the name of its network namespace.
pub fn is_of_pod(link: &Link, pod: &str) -> bool {
    let id = link.alias.as_deref().and_then(AttachmentId::from_alias);
    link.is_veth() && id.is_some_and(|(_, id)| id.container.as_str() == pod)
}

/// The addresses with which the link can be reached from elsewhere, IPv4 first.
fn addresses_of(name: &str, links: &[Link], addresses: &[Address]) -> Vec<IpNet> {
    let index = links
        .iter()
        .find(|link| link.name == name)
        .map(|link| link.index);
    let mut of_link: Vec<_> = addresses
        .iter()
        .filter(|address| Some(address.link) == index && address.global && !address.tentative)
        .map(|address| address.net)
        .collect();
    of_link.sort();
    of_link
}

fn agent(pid_file: &str, root: &Path) -> Option<Agent> {
    let pid = fs::read_to_string(root.join(pid_file.trim_start_matches('/'))).ok()?;
    // The state follows the program's name, which is in parentheses and may hold anything (proc_pid_stat(5)).
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = match stat.rsplit(')').next()?.trim_start().chars().next()? {
        'Z' | 'X' => return None,
        'T' | 't' => AgentState::Stopped,
        _ => AgentState::Running,
    };
    let pid = pid.parse().ok()?;
    Some(Agent { pid, state })
}
