//! Which pods are meant, and those of this node as they are: their host veth, their network namespace, what is in it.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use podspan_kernel::{IfName, Link, Netlink, Netns, Reachability, Result, Route};

use crate::cluster::Cluster;
use crate::list::Row;

/// Where namespaces of pods are pinned: by `ip netns` and CNI runtimes, and by Docker.
const PINNED: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// What pods are looked for among.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The attachments of this node.
    pub rows: &'a [Row],
    /// The nodes.
    pub cluster: &'a Cluster,
    /// This node's name.
    pub own: &'a str,
    /// Which of a pod's addresses is meant.
    pub is_ipv4: bool,
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Its address of the family that is meant.
    pub ip: IpAddr,
    /// Its node.
    pub node: String,
    /// What is seen of it, where it is of this node.
    pub here: Option<Here>,
}

/// A pod of this node.
#[derive(Debug)]
pub struct Here {
    /// Its container's id.
    pub container: String,
    /// The pod veth's name.
    pub interface: String,
    /// The host veth, where it is there.
    pub host_veth: Option<Link>,
    /// Its network namespace, where it was found.
    pub netns: Option<Netns>,
}

/// A pod's network namespace, as far as one packet is concerned.
#[derive(Debug)]
pub struct Inside {
    /// The pod veth.
    pub link: Link,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
    /// The route that the packet takes, or why there is none.
    pub route: Result<Route>,
    /// What is known of the next hop.
    pub next_hop: Reachability,
}

impl Wanted<'_> {
    /// The pod of that name.
    ///
    /// # Errors
    /// None, or several; what the kernel answered.
    pub fn find(&self, netlink: &mut Netlink, name: &str) -> anyhow::Result<Pod> {
        match name.parse::<IpAddr>() {
            Ok(ip) => self.of_address(netlink, ip),
            Err(_) => self.of_container(netlink, name),
        }
    }

    /// The pod that has that address.
    ///
    /// # Errors
    /// No pod has it; what the kernel answered.
    pub fn of_address(&self, netlink: &mut Netlink, ip: IpAddr) -> anyhow::Result<Pod> {
        if let Some(row) = self.rows.iter().find(|row| row.addresses.contains(&ip)) {
            return self.here(netlink, row, ip);
        }
        let nodes = &self.cluster.nodes;
        let node = nodes
            .iter()
            .find(|node| node.pod_cidrs.iter().any(|cidr| cidr.holds(ip)))
            .with_context(|| format!("{ip} is in no node's pod CIDR: it is no pod's address"))?;
        if node.name == self.own {
            bail!("no pod of this node has the address {ip}; see podspan list");
        }
        Ok(Pod {
            ip,
            node: node.name.clone(),
            here: None,
        })
    }

    fn of_container(&self, netlink: &mut Netlink, name: &str) -> anyhow::Result<Pod> {
        let named = |row: &&Row| row.container == name;
        let begins = |row: &&Row| row.container.starts_with(name);
        let exact: Vec<&Row> = self.rows.iter().filter(named).collect();
        let found = if exact.is_empty() {
            self.rows.iter().filter(begins).collect()
        } else {
            exact
        };
        let containers: BTreeSet<&str> = found.iter().map(|row| row.container.as_str()).collect();
        match containers.len() {
            0 => bail!(
                "no pod of this node has a container {name:?}; see podspan list, and name pods of other nodes by address or as namespace/name"
            ),
            1 => {}
            count => bail!("{count} containers begin with {name:?}; give more of the id"),
        }
        let mut addresses = found
            .iter()
            .flat_map(|row| row.addresses.iter().map(move |ip| (*row, *ip)));
        let (row, ip) = addresses
            .find(|(_, ip)| ip.is_ipv4() == self.is_ipv4)
            .with_context(|| {
                let family = if self.is_ipv4 { "IPv4" } else { "IPv6" };
                format!("{name} has no {family} address; see podspan list")
            })?;
        self.here(netlink, row, ip)
    }

    fn here(&self, netlink: &mut Netlink, row: &Row, ip: IpAddr) -> anyhow::Result<Pod> {
        let host_veth = match &row.host_veth {
            Some(name) => netlink.find_link(&name.parse::<IfName>()?)?,
            None => None,
        };
        let netns = host_veth.as_ref().and_then(|veth| netns_of(veth, ip));
        Ok(Pod {
            ip,
            node: self.own.to_owned(),
            here: Some(Here {
                container: row.container.clone(),
                interface: row.interface.clone(),
                host_veth,
                netns,
            }),
        })
    }
}

/// The namespace that has the other end of a host veth, where we may enter it. Where other nodes are on this machine, too, the numbers
/// of both ends may be those of a pod of theirs: then the address tells which it is.
fn netns_of(veth: &Link, ip: IpAddr) -> Option<Netns> {
    let peer = veth.peer?;
    let mut seen = BTreeSet::new();
    let candidates = candidates().into_iter().filter_map(|path| {
        let netns = Netns::open(path).ok()?;
        let is_new = seen.insert(netns.number().ok()?);
        is_new.then_some(netns)
    });
    let has_address = || -> podspan_kernel::Result<_> {
        let mut netlink = Netlink::open()?;
        let link = netlink.link(peer)?;
        let is_other_end = link.is_veth() && link.peer == Some(veth.index) && link.mac != veth.mac;
        if !is_other_end {
            return Ok(None);
        }
        let addresses = netlink.list_addresses()?;
        let mut addresses = addresses.iter().filter(|address| address.link == peer);
        Ok(Some(addresses.any(|address| address.net.addr() == ip)))
    };
    let mut without = None;
    for netns in candidates {
        match netns.run(has_address).and_then(|has_address| has_address) {
            Ok(Some(true)) => return Some(netns),
            Ok(Some(false)) if without.is_none() => without = Some(netns),
            Ok(_) | Err(_) => {}
        }
    }
    without
}

fn candidates() -> Vec<PathBuf> {
    let entries = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten();
    let pinned = PINNED
        .into_iter()
        .flat_map(entries)
        .map(|entry| entry.path());
    let processes = entries("/proc").map(|entry| entry.path().join("ns/net"));
    pinned.chain(processes).collect()
}

impl Here {
    /// What the pod's namespace says of a packet to `to`; none where it is not seen.
    pub fn inside(&self, to: IpAddr) -> Option<Result<Inside>> {
        let peer = self.host_veth.as_ref()?.peer?;
        let look = || {
            let mut netlink = Netlink::open()?;
            let addresses = netlink.list_addresses()?;
            let addresses = addresses.iter().filter(|address| address.link == peer);
            let route = netlink.route_to(to);
            let next_hop = match &route {
                Ok(route) => {
                    let link = route.link.unwrap_or(peer);
                    netlink.reachability(link, route.next_hop.unwrap_or(to))?
                }
                Err(_) => Reachability::Unknown,
            };
            Ok(Inside {
                link: netlink.link(peer)?,
                addresses: addresses.map(|address| address.net).collect(),
                route,
                next_hop,
            })
        };
        Some(self.netns.as_ref()?.run(look).and_then(|inside| inside))
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.here {
            Some(here) => write!(f, "{} ({} on {})", self.ip, here.container, self.node),
            None => write!(f, "{} (on {})", self.ip, self.node),
        }
    }
}
