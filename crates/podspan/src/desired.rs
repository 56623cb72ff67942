//! What this machine should be: a pure function of the configuration, the cluster and the underlay.
//!
//! Nothing here does I/O, and nothing is stored. A value that cannot be followed is refused and the rest goes on; what runs
//! for a refused value already is *kept*: a mistyped entry must not take away what worked before it.

mod mtu;
mod tunnel;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use podspan_kernel::nft::AddressRange;
use podspan_kernel::{IfName, Mac, Prefix, Route, RouteOptions, RouteProtocol};

use crate::cluster::{Cluster, Node};
use crate::config::{Config, NodeRole, Role, Routing};
use crate::conflist;
use crate::forwarding::Forwarding;
use crate::masquerade::Masquerade;
use crate::refusal::{Key, Refusal, Setting, Source};

pub use tunnel::Tunnel;

/// The mark of our VXLAN devices.
pub const VXLAN_ALIAS: &str = "podspan:vxlan";

/// What this machine should be.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// The configuration's file, for what is refused because of what is observed.
    pub config_file: PathBuf,
    /// Kernel parameters of the machine.
    pub sysctls: Vec<Sysctl>,
    /// The bridge; none on a router.
    pub bridge: Option<Bridge>,
    /// The VXLAN devices; none where nothing is sent through one.
    pub tunnels: Vec<Tunnel>,
    /// Our routes that lead through the underlay's links, sorted.
    pub routes: Vec<Route>,
    /// What stays as it is although it is not among the above.
    pub kept: Kept,
    /// What leaves the cluster under the node's address; none where nothing does.
    pub masquerade: Option<Masquerade>,
    /// What must not be dropped as the node forwards it; none on a router.
    pub forwarding: Option<Forwarding>,
    /// The conflist; none on a router, and as long as the MTU is not known.
    pub conflist: Option<ConflistFile>,
}

/// A kernel parameter: its path below `/proc/sys`, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Such as `net/ipv4/ip_forward`.
    pub key: String,
    /// Such as `1`.
    pub value: &'static str,
}

/// The node's bridge.
#[derive(Debug, Clone)]
pub struct Bridge {
    /// Its name.
    pub name: IfName,
    /// Its MAC address, that of its first gateway.
    pub mac: Mac,
    /// Its MTU in bytes; none leaves it as it is.
    pub mtu: Option<u32>,
    /// The gateway of each pod CIDR, with the subnet's length.
    pub gateways: Vec<IpNet>,
    /// How its pods reach each other.
    pub between: Between,
    /// Its own kernel parameters.
    pub sysctls: Vec<Sysctl>,
}

/// How packets go from pod to pod of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// Over the bridge.
    Bridge,
    /// Over the bridge, and there past the filters of IP.
    Filters,
    /// Through the node, which routes them: the ports of the bridge are isolated from each other. Pods that were made for
    /// another way go on over the bridge, as long as its filters can be had.
    Node {
        /// The kernel has `br_netfilter`.
        can_filter: bool,
    },
}

/// The conflist's place and text.
#[derive(Debug, Clone)]
pub struct ConflistFile {
    /// Where it is written.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
}

/// What refused values name: routes to and through it, and gateways in it, are not removed.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// Pod CIDRs and cluster CIDRs.
    pub destinations: Vec<Prefix>,
    /// Addresses of refused nodes that are no usable node's.
    pub next_hops: Vec<IpAddr>,
}

/// What of the machine is not ours.
#[derive(Debug, Clone, Default)]
pub struct Underlay {
    /// Its links and addresses: one for each global address.
    pub subnets: Vec<Subnet>,
    /// What a bridge forwards can pass the filters of IP: the kernel has `br_netfilter`, and has loaded it.
    pub can_filter: bool,
    /// Links can speak IPv6: the kernel can, and is not told otherwise (`ipv6.disable=1`).
    pub has_ipv6: bool,
}

/// An address of a link, and the subnet that the link is connected to by it.
#[derive(Debug, Clone)]
pub struct Subnet {
    /// The address with the subnet's length.
    pub net: IpNet,
    /// The link's index.
    pub link: u32,
    /// The link's name.
    pub link_name: Arc<str>,
    /// The link's MTU in bytes.
    pub mtu: u32,
    /// The link is administratively up.
    pub up: bool,
}

/// What this machine should be, and what is refused; none when the cluster does not have this node: then nothing is to be
/// changed.
///
/// # Errors
/// None that can happen; see [`conflist::text`].
pub fn desired(
    config: &Config,
    cluster: &Cluster,
    underlay: &Underlay,
) -> anyhow::Result<(Option<Desired>, Vec<Refusal>)> {
    let mut draft = Draft::new(config, cluster, underlay);
    match &config.role {
        Role::Router => draft.router(),
        Role::Node(role) => {
            let Some(own) = cluster.node(&role.name) else {
                return Ok((None, vec![unknown_node(config, role, cluster)]));
            };
            draft.node(role, own)?;
        }
    }
    Ok(draft.finish())
}

fn unknown_node(config: &Config, role: &NodeRole, cluster: &Cluster) -> Refusal {
    let own = cluster.unready.iter().find(|node| node.name == role.name);
    if let Some(unready) = own {
        return Refusal {
            source: Source::NodeObject(&role.name).to_string(),
            key: unready.lacks.to_owned(),
            value: String::new(),
            fix: "is not there yet; nothing is changed until it is".to_owned(),
        };
    }
    config.setting(Key::Plain("node"), &role.name).refuse(format!(
        "{} has no usable entry of that name; add one, or set node to a name that is there; nothing is changed",
        cluster.origin
    ))
}

struct Draft<'a> {
    config: &'a Config,
    cluster: &'a Cluster,
    underlay: &'a Underlay,
    /// The subnets that others can be on: those of more than one address.
    segments: Vec<(Prefix, &'a Subnet)>,
    desired: Desired,
    refusals: Vec<Refusal>,
}

impl<'a> Draft<'a> {
    fn new(config: &'a Config, cluster: &'a Cluster, underlay: &'a Underlay) -> Self {
        let segments = underlay
            .subnets
            .iter()
            .filter(|subnet| subnet.net.prefix_len() < subnet.net.max_prefix_len())
            .map(|subnet| (Prefix::containing(subnet.net), subnet));
        Self {
            config,
            cluster,
            underlay,
            segments: segments.collect(),
            desired: Desired {
                config_file: config.file.clone(),
                ..Desired::default()
            },
            refusals: Vec::new(),
        }
    }

    /// A route to every node's pods, and no redirects: they would tell nodes of one segment to go past the router.
    fn router(&mut self) {
        let cluster = self.cluster;
        for node in &cluster.nodes {
            self.routes_to(node);
        }
        let all = cluster.nodes.iter().flat_map(|node| &node.pod_cidrs);
        self.forward(all);
        let mut links: Vec<u32> = self.desired.routes.iter().filter_map(|r| r.link).collect();
        links.sort_unstable();
        links.dedup();
        let names = self
            .underlay
            .subnets
            .iter()
            .filter(|subnet| links.contains(&subnet.link));
        let mut names: Vec<&str> = names.map(|subnet| &*subnet.link_name).collect();
        names.sort_unstable();
        names.dedup();
        // The kernel sends them when either is 1 (ip-sysctl.rst, send_redirects).
        for name in std::iter::once("all").chain(names) {
            let key = format!("net/ipv4/conf/{name}/send_redirects");
            self.desired.sysctls.push(Sysctl { key, value: "0" });
        }
    }

    /// The bridge, the conflist, and the routes to the other nodes.
    fn node(&mut self, role: &NodeRole, own: &Node) -> anyhow::Result<()> {
        let cluster = self.cluster;
        self.forward(&own.pod_cidrs);
        self.bridge(role, own)?;
        self.masquerade(role, own);
        let mut tunnels = self.tunnels(role, own);
        let others = || cluster.nodes.iter().filter(|node| node.entry != own.entry);
        match &role.routing {
            Routing::Direct => others().for_each(|node| self.routes_to(node)),
            Routing::Auto | Routing::Vxlan => {
                for node in others() {
                    self.near_or_far(&mut tunnels, (role, own), node);
                }
            }
            Routing::Router {
                cluster_cidrs,
                routers,
            } => {
                self.routes_to_router(cluster_cidrs, routers);
                self.check_cluster_cidrs(cluster_cidrs);
            }
        }
        let wanted = match role.vxlan.accept {
            true => self.families_of_peers(own),
            false => [false; 2],
        };
        self.desired.tunnels = tunnels.finish(wanted);
        Ok(())
    }

    /// Directly, where the routing lets it and the node is on a connected subnet; else through VXLAN. For each family by
    /// itself.
    fn near_or_far(
        &mut self,
        tunnels: &mut tunnel::Tunnels,
        (role, own): (&NodeRole, &Node),
        node: &Node,
    ) {
        let cluster = self.cluster;
        for pod_cidr in cluster.pod_cidrs(node) {
            let mut addresses = cluster.addresses(node);
            let same_family = addresses.find(|ip| ip.value.is_ipv4() == pod_cidr.value.is_ipv4());
            match same_family.filter(|via| self.is_connected(via.value)) {
                Some(via) if role.routing == Routing::Auto => self.route(&pod_cidr, &via),
                _ => self.encapsulate(tunnels, [own, node], &pod_cidr),
            }
        }
    }

    /// True when the address is on a subnet of ours, be its link up or down.
    fn is_connected(&self, ip: IpAddr) -> bool {
        self.segments.iter().any(|(segment, _)| segment.holds(ip))
    }

    fn forward<'p>(&mut self, pod_cidrs: impl IntoIterator<Item = &'p Prefix> + Clone) {
        for (is_ipv4, key) in [
            (true, "net/ipv4/ip_forward"),
            (false, "net/ipv6/conf/all/forwarding"),
        ] {
            if pod_cidrs
                .clone()
                .into_iter()
                .any(|cidr| cidr.is_ipv4() == is_ipv4)
            {
                self.desired.sysctls.push(Sysctl {
                    key: key.to_owned(),
                    value: "1",
                });
            }
        }
    }

    fn bridge(&mut self, role: &NodeRole, own: &Node) -> anyhow::Result<()> {
        let mut pod_cidrs = Vec::new();
        for pod_cidr in self.cluster.pod_cidrs(own) {
            match self.collision(pod_cidr.value) {
                Some(collision) => self.keep(pod_cidr.refuse(collision), pod_cidr.value),
                None => pod_cidrs.push(pod_cidr.value),
            }
        }
        let gateways: Vec<IpNet> = pod_cidrs
            .iter()
            .filter_map(|cidr| IpNet::new(cidr.first_host()?, cidr.length()).ok())
            .collect();
        let Some(first) = gateways.first() else {
            return Ok(());
        };
        let mtu = role.mtu.or_else(|| {
            let has_ipv6 = gateways.iter().any(|net| net.addr().is_ipv6());
            self.mtu_of_pods(own, tunnel::overhead(role, own), has_ipv6)
        });
        let between = between(role, self.underlay.can_filter);
        if let Some(mtu) = mtu {
            let text = conflist::text(role, (mtu, between), &pod_cidrs)?;
            let path = role.conflist.clone();
            self.desired.conflist = Some(ConflistFile { path, text });
        }
        if matches!(between, Between::Node { .. }) {
            // It would tell a pod to go to another one directly. The kernel asks for both, this and the bridge's own.
            let key = "net/ipv4/conf/all/send_redirects".to_owned();
            self.desired.sysctls.push(Sysctl { key, value: "0" });
        }
        let has = |is_ipv4| gateways.iter().any(|net| net.addr().is_ipv4() == is_ipv4);
        self.desired.forwarding = Some(Forwarding {
            link: role.bridge.clone(),
            families: [has(true), has(false)],
        });
        let mut sysctls = bridge_sysctls(&role.bridge, &gateways, between);
        // Where it has IPv6, if only by itself: a pod must not become the node's default router.
        if has(false) || (self.underlay.has_ipv6 && mtu.is_none_or(|mtu| mtu >= IPV6_MTU)) {
            let key = format!("net/ipv6/conf/{}/accept_ra", role.bridge);
            sysctls.push(Sysctl { key, value: "0" });
        }
        self.desired.bridge = Some(Bridge {
            name: role.bridge.clone(),
            mac: Mac::of_ip(first.addr()),
            mtu,
            between,
            sysctls,
            gateways,
        });
        Ok(())
    }

    fn masquerade(&mut self, role: &NodeRole, own: &Node) {
        if role.masquerade {
            let nodes = &self.cluster.nodes;
            let pods = nodes.iter().flat_map(|node| &node.pod_cidrs);
            let pods = pods.chain(&role.non_masquerade_cidrs);
            let addresses = nodes.iter().flat_map(|node| &node.addresses);
            let inside = pods.copied().map(AddressRange::from);
            let inside = inside.chain(addresses.copied().map(AddressRange::from));
            self.desired.masquerade = Some(Masquerade::of(&role.bridge, &own.pod_cidrs, inside));
        }
    }

    fn routes_to(&mut self, node: &Node) {
        for pod_cidr in self.cluster.pod_cidrs(node) {
            // The registry refuses a pod CIDR without an address of its family.
            let mut addresses = self.cluster.addresses(node);
            if let Some(via) = addresses.find(|ip| ip.value.is_ipv4() == pod_cidr.value.is_ipv4()) {
                self.route(&pod_cidr, &via);
            }
        }
    }

    fn routes_to_router(&mut self, cluster_cidrs: &[Prefix], routers: &[IpAddr]) {
        let config = self.config;
        for (index, cidr) in cluster_cidrs.iter().enumerate() {
            let cidr = config.setting(Key::Item("cluster_cidrs", index), *cidr);
            let mut same_family = routers.iter().enumerate();
            match same_family.find(|(_, router)| router.is_ipv4() == cidr.value.is_ipv4()) {
                Some((index, router)) => {
                    let via = config.setting(Key::Item("routers", index), *router);
                    self.route(&cidr, &via);
                }
                None => {
                    let fix = "routers has no address of this family; add one";
                    self.keep(cidr.refuse(fix), cidr.value);
                }
            }
        }
    }

    /// A pod CIDR outside of every cluster CIDR would not be reached.
    fn check_cluster_cidrs(&mut self, cluster_cidrs: &[Prefix]) {
        let holds = |cidr: Prefix| {
            let mut around = cluster_cidrs.iter();
            around.any(|around| around.holds(cidr.addr()) && around.length() <= cidr.length())
        };
        for node in &self.cluster.nodes {
            for pod_cidr in self
                .cluster
                .pod_cidrs(node)
                .filter(|cidr| !holds(cidr.value))
            {
                let fix = format!(
                    "lies in none of the cluster_cidrs of {}; widen them, or give the node another",
                    self.config.file.display()
                );
                self.refusals.push(pod_cidr.refuse(fix));
            }
        }
    }

    /// The route, or why not.
    fn route(&mut self, dst: &Setting<'_, Prefix>, via: &Setting<'_, IpAddr>) {
        if let Some(collision) = self.collision(dst.value) {
            return self.keep(dst.refuse(collision), dst.value);
        }
        match self.link_towards(via.value) {
            Ok(link) => self.desired.routes.push(Route {
                dst: dst.value,
                next_hop: Some(via.value),
                link: Some(link),
                protocol: RouteProtocol::PODSPAN,
                options: RouteOptions::default(),
            }),
            Err(fix) => self.keep(via.refuse(fix), dst.value),
        }
    }

    fn keep(&mut self, refusal: Refusal, dst: Prefix) {
        self.refusals.push(refusal);
        self.desired.kept.destinations.push(dst);
    }

    /// Says which connected subnet the prefix would take packets from, or lose them to.
    fn collision(&self, prefix: Prefix) -> Option<String> {
        let (segment, subnet) = self
            .segments
            .iter()
            .find(|(segment, _)| segment.overlaps(prefix))?;
        Some(format!(
            "collides with {} of {} on this machine; give the pods a range of their own",
            segment.net(),
            subnet.link_name
        ))
    }

    /// The link whose subnet the next hop is on: the narrowest, as the kernel chooses.
    fn link_towards(&self, next_hop: IpAddr) -> Result<u32, String> {
        if self
            .underlay
            .subnets
            .iter()
            .any(|subnet| subnet.net.addr() == next_hop)
        {
            return Err(
                "is this machine's own address; give the address of that machine".to_owned(),
            );
        }
        let on = self
            .segments
            .iter()
            .filter(|(segment, _)| segment.holds(next_hop));
        let (up, down): (Vec<_>, Vec<_>) = on.partition(|(_, subnet)| subnet.up);
        if let Some((_, subnet)) = up.iter().max_by_key(|(segment, _)| segment.length()) {
            return Ok(subnet.link);
        }
        if let Some((_, subnet)) = down.first() {
            let name = &subnet.link_name;
            return Err(format!(
                "is reached by {name}, which is down: ip link set {name} up"
            ));
        }
        let segments = self.segments.iter().map(|(segment, _)| segment);
        let mut near: Vec<_> = segments
            .filter(|s| s.is_ipv4() == next_hop.is_ipv4())
            .collect();
        near.sort();
        near.dedup();
        let near: Vec<_> = near
            .iter()
            .take(3)
            .map(|near| near.net().to_string())
            .collect();
        Err(match near.as_slice() {
            [] => "is on no connected subnet: no link has an address of this family".to_owned(),
            near => format!(
                "is on no connected subnet ({}); give an address there, or route through a router",
                near.join(", ")
            ),
        })
    }

    fn finish(mut self) -> (Option<Desired>, Vec<Refusal>) {
        self.desired.routes.sort();
        let used: std::collections::BTreeSet<_> = self
            .cluster
            .nodes
            .iter()
            .flat_map(|node| &node.addresses)
            .collect();
        let kept = &mut self.desired.kept;
        for remains in &self.cluster.refused {
            kept.destinations.extend(&remains.pod_cidrs);
            kept.next_hops
                .extend(remains.addresses.iter().filter(|ip| !used.contains(ip)));
        }
        kept.destinations.sort();
        kept.next_hops.sort();
        (Some(self.desired), self.refusals)
    }
}

impl Kept {
    /// True for a route that something refused names.
    pub fn has_route(&self, route: &Route) -> bool {
        self.destinations.binary_search(&route.dst).is_ok()
            || route
                .next_hop
                .is_some_and(|ip| self.next_hops.binary_search(&ip).is_ok())
    }

    /// True for a range that something refused names.
    pub fn has_range(&self, range: AddressRange) -> bool {
        let ip = (range.first() == range.last()).then_some(range.first());
        ip.is_some_and(|ip| self.next_hops.binary_search(&ip).is_ok())
            || self
                .destinations
                .iter()
                .any(|prefix| AddressRange::from(*prefix) == range)
    }

    /// True for an address of a node that is refused.
    pub fn has_next_hop(&self, ip: IpAddr) -> bool {
        self.next_hops.binary_search(&ip).is_ok()
    }

    /// True for a gateway of a pod CIDR that is refused.
    pub fn has_gateway(&self, address: IpNet) -> bool {
        self.destinations
            .binary_search(&Prefix::containing(address))
            .is_ok()
    }
}

/// A nodes file alone has no Services, and so nothing that packets between pods of the node must pass.
fn between(role: &NodeRole, can_filter: bool) -> Between {
    match (role.bridge_netfilter, &role.policy) {
        (false, None) => Between::Bridge,
        (true, _) if can_filter => Between::Filters,
        _ => Between::Node { can_filter },
    }
}

/// The least MTU of a link with IPv6 (RFC 8200, section 5).
const IPV6_MTU: u32 = 1280;

fn bridge_sysctls(bridge: &IfName, gateways: &[IpNet], between: Between) -> Vec<Sysctl> {
    let sysctl = |family: &str, name: &str, value| Sysctl {
        key: format!("net/{family}/conf/{bridge}/{name}"),
        value,
    };
    // Otherwise the removal of a stale gateway would take the right one of the same subnet with it.
    let mut sysctls = vec![sysctl("ipv4", "promote_secondaries", "1")];
    if matches!(between, Between::Node { .. }) {
        sysctls.push(sysctl("ipv4", "send_redirects", "0"));
    }
    if gateways.iter().any(|net| net.addr().is_ipv6()) {
        sysctls.push(sysctl("ipv6", "disable_ipv6", "0"));
        // The link-local address is the next hop of router advertisements and neighbours: usable at once.
        sysctls.push(sysctl("ipv6", "accept_dad", "0"));
    }
    sysctls
}

#[cfg(test)]
mod tests;
