//! The hops of a packet, in its order: the pod, this node, the other node; each as it is where it is seen, against what the
//! model wants.
//!
//! What the model wants differently is what `plan` says, so that this and `podspan plan` never disagree. The room only asks
//! which of it a packet to one address meets.

use std::net::IpAddr;

use podspan_cni::forwarding::TABLES;
use podspan_kernel::nft::{ChainKind, Family, Hook, ListedBase, ListedChain, Nft, Policy};
use podspan_kernel::{Netlink, Prefix, Reachability, Route, sysctl};

use super::pods::{Inside, Pod};
use super::{Hop, State};
use crate::cluster::{Cluster, Node};
use crate::desired::{Bridge, Desired, Tunnel};
use crate::forwarding;
use crate::look::Look;
use crate::observe::Observed;
use crate::plan::{Change, VxlanStep};

/// The neighbour that a packet goes to.
#[derive(Debug, Clone)]
pub struct NextHop {
    /// The link, by number and by name.
    pub link: u32,
    /// Its name.
    pub link_name: String,
    /// The neighbour's address.
    pub ip: IpAddr,
}

/// The way of a packet, as it is gathered.
pub struct Way<'a> {
    netlink: &'a mut Netlink,
    from: &'a Pod,
    to: &'a Pod,
    cluster: &'a Cluster,
    look: &'a Look,
    /// What was gathered.
    pub hops: Vec<Hop>,
    /// The machine that the packet leaves this node for.
    pub next_hop: Option<NextHop>,
}

impl<'a> Way<'a> {
    /// Nothing yet.
    pub fn new(
        netlink: &'a mut Netlink,
        (from, to): (&'a Pod, &'a Pod),
        cluster: &'a Cluster,
        look: &'a Look,
    ) -> Self {
        Self {
            netlink,
            from,
            to,
            cluster,
            look,
            hops: Vec::new(),
            next_hop: None,
        }
    }

    /// Gathers all hops.
    pub fn walk(&mut self) {
        let Some((desired, observed)) = &self.look.both else {
            for refusal in &self.look.plan.refusals {
                self.on_node(State::Wrong, format!("refused: {refusal}"));
            }
            return;
        };
        let Some(bridge) = &desired.bridge else {
            self.on_node(State::Wrong, "the model has no bridge: see podspan status");
            return;
        };
        self.pod(self.from, bridge);
        self.port(self.from, bridge, observed);
        self.pending(desired);
        if self.to.here.is_some() {
            if observed
                .bridge
                .as_ref()
                .is_some_and(|seen| seen.netfilter == Some(true))
            {
                self.filters(desired);
            }
            self.port(self.to, bridge, observed);
            self.receiver();
            return;
        }
        self.routed(desired, observed);
        self.filters(desired);
        self.other_node(desired);
    }

    fn on_node(&mut self, state: State, what: impl Into<String>) {
        let hop = self.node_hop(state, what);
        self.hops.push(hop);
    }

    fn node_hop(&self, state: State, what: impl Into<String>) -> Hop {
        Hop::new(&self.from.node, state, what)
    }

    /// The pod itself: its interface, its route, and who is next.
    fn pod(&mut self, pod: &Pod, bridge: &Bridge) {
        let Some(here) = &pod.here else { return };
        let place = here.container.as_str();
        let name = &here.interface;
        let inside = match here.inside(self.to.ip) {
            Some(Ok(inside)) => inside,
            Some(Err(error)) => {
                return self
                    .hops
                    .push(Hop::new(place, State::Unseen, error.to_string()));
            }
            None => {
                let what =
                    "its network namespace was not found, or may not be entered: that needs root";
                return self.hops.push(Hop::new(place, State::Unseen, what));
            }
        };
        self.hops.push(interface(place, name, pod.ip, &inside));
        let gateways = bridge.gateways.iter();
        let mut gateways = gateways.filter(|gateway| gateway.contains(&pod.ip));
        let gateway = gateways.next().map(ipnet::IpNet::addr);
        let on_link = gateway.is_some()
            && bridge
                .gateways
                .iter()
                .any(|net| net.contains(&pod.ip) && net.contains(&self.to.ip));
        let expected = if on_link { None } else { gateway };
        let to = self.to.ip;
        let hop = match &inside.route {
            Err(error) => Hop::new(place, State::Wrong, error.to_string())
                .mended_by(mend_in_pod(pod, expected)),
            Ok(route) if route.next_hop == expected => {
                let through = expected.map_or("the link itself".to_owned(), |ip| ip.to_string());
                Hop::new(
                    place,
                    State::Right,
                    format!("to {to} through {through} on {name}"),
                )
            }
            Ok(route) => {
                let through = route
                    .next_hop
                    .map_or("the link itself".to_owned(), |ip| ip.to_string());
                let what = format!(
                    "to {to} through {through}, where the gateway is {}",
                    expected.map_or("none".to_owned(), |ip| ip.to_string())
                );
                Hop::new(place, State::Perhaps, what)
            }
        };
        self.hops.push(hop);
        if inside.next_hop == Reachability::Failed {
            let next = expected.unwrap_or(to);
            let what = format!("{next} does not answer on {name}");
            self.hops.push(Hop::new(place, State::Wrong, what));
        }
    }

    /// The pod's host veth, as a port of the bridge.
    fn port(&mut self, pod: &Pod, bridge: &Bridge, observed: &Observed) {
        let Some(here) = &pod.here else { return };
        let of = format!("host veth of {}", here.container);
        let Some(veth) = &here.host_veth else {
            return self.on_node(
                State::Wrong,
                format!("{of} is missing: the pod is to be made anew"),
            );
        };
        let (name, master) = (&veth.name, &bridge.name);
        let on = observed
            .links
            .iter()
            .find(|(_, link)| &***link == master.as_str());
        let is_port = veth.master.is_some() && veth.master == on.map(|(index, _)| *index);
        let hop = if !veth.up {
            self.node_hop(State::Wrong, format!("{name}, {of}, is down"))
                .mended_by(format!("ip link set {name} up"))
        } else if is_port {
            self.node_hop(State::Right, format!("{name}, {of}, is a port of {master}"))
        } else {
            self.node_hop(
                State::Wrong,
                format!("{name}, {of}, is no port of {master}"),
            )
            .mended_by(format!("ip link set {name} master {master}"))
        };
        self.hops.push(hop);
    }

    /// What the model wants differently of what this packet meets.
    fn pending(&mut self, desired: &Desired) {
        let before = self.hops.len();
        for change in &self.look.plan.changes {
            if is_met(change, self.to.ip, desired) {
                let what = format!("the model wants it otherwise ({})", change.kind());
                let hop = self
                    .node_hop(State::Wrong, what)
                    .mended_by(change.to_string());
                self.hops.push(hop);
            }
        }
        if self.hops.len() == before {
            let what = match &desired.bridge {
                Some(bridge) => format!(
                    "bridge {}, kernel parameters and tables are as the model wants them",
                    bridge.name
                ),
                None => return,
            };
            self.on_node(State::Right, what);
        }
    }

    /// The route to the other node, and who is next.
    fn routed(&mut self, desired: &Desired, observed: &Observed) {
        let to = self.to.ip;
        let wanted = covering(desired, to);
        if wanted.is_none() {
            let what =
                format!("the model has no route to {to}: see podspan status for what it refuses");
            self.on_node(State::Wrong, what);
        }
        let taken = match self.netlink.route_to(to) {
            Ok(taken) => taken,
            Err(error) => {
                let mut hop = self.node_hop(State::Wrong, error.to_string());
                if let Some((route, link)) = &wanted {
                    hop = hop.mended_by(add_command(route, link.as_deref(), observed));
                }
                return self.hops.push(hop);
            }
        };
        let link = taken.link.and_then(|index| observed.links.get(&index));
        let link = link.map_or("?".to_owned(), ToString::to_string);
        let via = taken
            .next_hop
            .map(|ip| format!(" via {ip}"))
            .unwrap_or_default();
        let what = format!("route to {to}{via} dev {link}");
        let hop = match &wanted {
            Some((route, through)) => {
                let wanted_link = link_name(route, through.as_deref(), observed);
                if route.next_hop == taken.next_hop && wanted_link.as_deref() == Some(&link) {
                    self.node_hop(
                        State::Right,
                        format!("{what}, as the model wants it: {route}"),
                    )
                } else {
                    self.node_hop(
                        State::Wrong,
                        format!("{what}, where the model wants {route}"),
                    )
                    .mended_by(format!(
                        "ip route get {to} shows whose it is; {}",
                        add_command(route, through.as_deref(), observed)
                    ))
                }
            }
            None => self.node_hop(State::Perhaps, what),
        };
        self.hops.push(hop);
        let tunnel = desired
            .tunnels
            .iter()
            .find(|tunnel| tunnel.name.as_str() == link);
        match (tunnel, taken.next_hop) {
            (Some(tunnel), Some(next_hop)) => self.tunnel(tunnel, next_hop, observed),
            _ => self.neighbour(&taken, &link),
        }
        self.reverse_path(&link, desired);
        self.mtu(desired, observed, &link);
    }

    /// What a VXLAN device does with the packet: who is behind the next hop, and how that machine is reached.
    fn tunnel(&mut self, tunnel: &Tunnel, next_hop: IpAddr, observed: &Observed) {
        let name = &tunnel.name;
        let seen = observed.tunnels.iter().find(|seen| seen.name == *name);
        let neighbours = seen
            .map(|seen| seen.neighbours.as_slice())
            .unwrap_or_default();
        let entries = seen.map(|seen| seen.fdb.as_slice()).unwrap_or_default();
        let neighbour = neighbours.iter().find(|neighbour| neighbour.ip == next_hop);
        let Some(mac) = neighbour.map(|neighbour| neighbour.mac) else {
            let what = format!("{name} has no neighbour {next_hop}: see ip neigh show dev {name}");
            return self.on_node(State::Wrong, what);
        };
        let Some(remote) = entries
            .iter()
            .find(|entry| entry.mac == mac)
            .map(|entry| entry.remote)
        else {
            let what =
                format!("{name} does not know where {mac} is: see bridge fdb show dev {name}");
            return self.on_node(State::Wrong, what);
        };
        let what = format!(
            "{name}: {next_hop} is {mac}, and that is at {remote}; tunnelled with {}",
            tunnel.vxlan
        );
        self.on_node(State::Right, what);
        match self.netlink.route_to(remote) {
            Ok(outer) => {
                let index = outer.link;
                let link = index.and_then(|index| observed.links.get(&index));
                let link = link.map_or("?".to_owned(), ToString::to_string);
                let via = outer
                    .next_hop
                    .map(|ip| format!(" via {ip}"))
                    .unwrap_or_default();
                self.on_node(
                    State::Right,
                    format!("tunnelled packets to {remote}{via} dev {link}"),
                );
                self.neighbour(
                    &Route {
                        next_hop: outer.next_hop.or(Some(remote)),
                        ..outer
                    },
                    &link,
                );
            }
            Err(error) => self.on_node(State::Wrong, format!("tunnelled packets: {error}")),
        }
    }

    fn neighbour(&mut self, route: &Route, link_name: &str) {
        let Some(link) = route.link else { return };
        let ip = route.next_hop.unwrap_or(self.to.ip);
        let hop = match self.netlink.reachability(link, ip) {
            Ok(Reachability::Known) => self.node_hop(
                State::Right,
                format!("{ip} is a known neighbour on {link_name}"),
            ),
            Ok(Reachability::Failed) => {
                let what = format!("{ip} does not answer on {link_name}: is that machine up?");
                self.node_hop(State::Wrong, what)
                    .mended_by(format!("ping {ip}"))
            }
            Ok(Reachability::Unknown | Reachability::Asked) => {
                let what = format!("{ip} on {link_name} has not been asked for yet");
                self.node_hop(State::Unseen, what)
            }
            Err(error) => self.node_hop(State::Unseen, error.to_string()),
        };
        self.hops.push(hop);
        self.next_hop = Some(NextHop {
            link,
            link_name: link_name.to_owned(),
            ip,
        });
    }

    /// Answers come to this node's address, by whatever link has it: another one is an asymmetric way, which strict reverse
    /// path filtering drops.
    fn reverse_path(&mut self, out: &str, desired: &Desired) {
        let own = self.cluster.node(&self.from.node);
        let address = own.and_then(|own| {
            let mut same = own.addresses.iter();
            same.find(|ip| ip.is_ipv4() == self.to.ip.is_ipv4())
                .copied()
        });
        let is_tunnel = desired
            .tunnels
            .iter()
            .any(|tunnel| tunnel.name.as_str() == out);
        let (Some(address), false) = (address, is_tunnel) else {
            return;
        };
        let Ok(addresses) = self.netlink.list_addresses() else {
            return;
        };
        let has_it = addresses.iter().find(|seen| seen.net.addr() == address);
        let back = has_it.and_then(|seen| self.netlink.link(seen.link).ok());
        let Some(back) = back.map(|link| link.name) else {
            return;
        };
        let filter = strictness(&back);
        let strict = self.to.ip.is_ipv4() && filter == Some(1);
        if back == out {
            if strict {
                let what = format!(
                    "rp_filter is strict on {back}: answers come in where packets go out, and pass"
                );
                self.on_node(State::Right, what);
            }
            return;
        }
        let what =
            format!("asymmetric: packets leave by {out}, answers come to {address} on {back}");
        let hop = if strict {
            self.node_hop(
                State::Wrong,
                format!("{what}, where rp_filter is strict and drops them"),
            )
            .mended_by(format!("sysctl -w net.ipv4.conf.{back}.rp_filter=2"))
        } else {
            self.node_hop(State::Perhaps, what)
        };
        self.hops.push(hop);
    }

    fn mtu(&mut self, desired: &Desired, observed: &Observed, out: &str) {
        let pods = observed.bridge.as_ref().map(|bridge| bridge.mtu);
        let index = observed.links.iter().find(|(_, name)| &***name == out);
        let link = index.and_then(|(index, _)| self.netlink.link(*index).ok());
        let (Some(pods), Some(link), Some(bridge)) = (pods, link, &desired.bridge) else {
            return;
        };
        let what = format!("MTU: {} {pods}, {out} {}", bridge.name, link.mtu);
        let hop = if pods <= link.mtu {
            self.node_hop(State::Right, what)
        } else {
            self.node_hop(
                State::Wrong,
                format!("{what}: packets of pods are too large for it"),
            )
            .mended_by(format!(
                "ip link set {out} mtu {pods}, or mtu = {} on every node",
                link.mtu
            ))
        };
        self.hops.push(hop);
    }

    /// Where the node's packet filter may drop or translate what it forwards.
    fn filters(&mut self, desired: &Desired) {
        let own = if self.to.ip.is_ipv4() {
            Family::Ip
        } else {
            Family::Ip6
        };
        let listed = Nft::open().and_then(|mut nft| {
            let mut chains = nft.list_chains(own)?;
            chains.extend(nft.list_chains(Family::Inet)?);
            Ok(chains)
        });
        let chains = match listed {
            Ok(chains) => chains,
            Err(error) => {
                return self.on_node(State::Unseen, format!("the packet filter: {error}"));
            }
        };
        let has_ours = chains.iter().any(|chain| chain.name == forwarding::NAME);
        let mut drops = false;
        for (chain, base) in based(&chains) {
            let (family, table, name) = (chain.family, &chain.table, &chain.name);
            let place = format!("chain {family} {table} {name}");
            if (base.hook, base.policy) == (Hook::Forward, Policy::Drop) {
                drops = true;
                let is_iptables = TABLES
                    .iter()
                    .any(|known| known.family == family && known.name == table);
                let hop = if is_iptables && name == "FORWARD" && has_ours {
                    let what = format!(
                        "{place} drops what no rule accepts; {} accepts what pods send and get",
                        forwarding::NAME
                    );
                    self.node_hop(State::Right, what)
                } else {
                    let link = desired
                        .bridge
                        .as_ref()
                        .map(|bridge| bridge.name.to_string());
                    let link = link.unwrap_or_default();
                    let what = format!("{place} drops what none of its rules accepts");
                    let mend = format!(
                        "nft list {place}; nft add rule {family} {table} {name} iifname {link} accept, and oifname {link}"
                    );
                    self.node_hop(State::Perhaps, what).mended_by(mend)
                };
                self.hops.push(hop);
            }
            let translates = base.kind == Some(ChainKind::Nat) && base.hook == Hook::Postrouting;
            if translates && !table.starts_with("podspan") {
                let what = format!("{place} may translate the source address: nft list {place}");
                self.on_node(State::Unseen, what);
            }
        }
        if !drops {
            self.on_node(
                State::Right,
                "no chain drops what this node forwards by its policy",
            );
        }
        if desired.masquerade.is_some() {
            self.on_node(
                State::Right,
                "the source address is kept: the other pod is inside of the cluster",
            );
        }
    }

    /// The other node, as the registry and the model have it.
    fn other_node(&mut self, desired: &Desired) {
        let (Some(node), Some(own)) = (
            self.cluster.node(&self.to.node),
            self.cluster.node(&self.from.node),
        ) else {
            return;
        };
        let of_family = |node: &Node, ip: IpAddr| {
            let mut same = node.addresses.iter();
            same.find(|address| address.is_ipv4() == ip.is_ipv4())
                .copied()
        };
        let cidr =
            |node: &Node, ip: IpAddr| node.pod_cidrs.iter().find(|cidr| cidr.holds(ip)).copied();
        let gateway = cidr(node, self.to.ip).and_then(Prefix::first_host);
        if let (Some(gateway), Some(address)) = (gateway, of_family(node, self.to.ip)) {
            let what = format!("{address}, whose bridge has {gateway} and the pod as a neighbour");
            self.hops.push(Hop::new(&node.name, State::Unseen, what));
        }
        let tunnelled = desired.tunnels.iter().any(|tunnel| {
            tunnel
                .routes
                .iter()
                .any(|route| route.dst.holds(self.to.ip))
        });
        let by = if tunnelled { "a VXLAN device to " } else { "" };
        if let (Some(back), Some(own)) = (cidr(own, self.from.ip), of_family(own, self.from.ip)) {
            let what = format!(
                "its way back to {back}: through {by}{own}, or a router; see it there: podspan explain {} {}",
                self.to.ip, self.from.ip
            );
            self.hops.push(Hop::new(&node.name, State::Unseen, what));
        }
    }

    /// The other pod, of this node too.
    fn receiver(&mut self) {
        let Some(here) = &self.to.here else { return };
        let hop = match here.inside(self.from.ip) {
            Some(Ok(inside)) => interface(&here.container, &here.interface, self.to.ip, &inside),
            Some(Err(error)) => Hop::new(&here.container, State::Unseen, error.to_string()),
            None => Hop::new(
                &here.container,
                State::Unseen,
                "its network namespace was not found, or may not be entered",
            ),
        };
        self.hops.push(hop);
    }
}

/// A pod veth as it is.
fn interface(place: &str, name: &str, ip: IpAddr, inside: &Inside) -> Hop {
    let has_it = inside.addresses.iter().find(|net| net.addr() == ip);
    match (inside.link.up, has_it) {
        (true, Some(net)) => {
            let what = format!("{name} has {net}, MTU {}", inside.link.mtu);
            Hop::new(place, State::Right, what)
        }
        (false, _) => Hop::new(place, State::Wrong, format!("{name} is down"))
            .mended_by(format!("ip link set {name} up, in the pod")),
        (true, None) => Hop::new(
            place,
            State::Wrong,
            format!("{name} lacks its address {ip}"),
        ),
    }
}

fn mend_in_pod(pod: &Pod, gateway: Option<IpAddr>) -> String {
    let interface = pod.here.as_ref().map(|here| here.interface.as_str());
    let interface = interface.unwrap_or("eth0");
    match gateway {
        Some(gateway) => format!("ip route add default via {gateway} dev {interface}, in the pod"),
        None => format!("ip address show dev {interface}, in the pod"),
    }
}

/// True for a change that a packet to `to` would meet.
fn is_met(change: &Change, to: IpAddr, desired: &Desired) -> bool {
    let through = |tunnel: &&Tunnel| tunnel.routes.iter().any(|route| route.dst.holds(to));
    let tunnel = desired.tunnels.iter().find(through);
    let is_tunnel =
        |name: &podspan_kernel::IfName| tunnel.is_some_and(|tunnel| tunnel.name == *name);
    let next_hop = tunnel.and_then(|tunnel| {
        let route = tunnel.routes.iter().find(|route| route.dst.holds(to))?;
        let mut neighbours = tunnel.neighbours.iter();
        neighbours.find(|neighbour| Some(neighbour.ip) == route.next_hop)
    });
    match change {
        Change::SetSysctl(_)
        | Change::AddBridge { .. }
        | Change::SetBridge { .. }
        | Change::AddAddress { .. }
        | Change::SetMasquerade(_)
        | Change::SetForwarding(_) => true,
        Change::Vxlan { link, step } => {
            is_tunnel(link)
                && match step {
                    VxlanStep::Make(_)
                    | VxlanStep::Remake(_)
                    | VxlanStep::Correct(_)
                    | VxlanStep::Remove
                    | VxlanStep::SetSysctl(_)
                    | VxlanStep::AddAddress(_) => true,
                    VxlanStep::SetEntry(entry) => {
                        next_hop.is_some_and(|next_hop| next_hop.mac == entry.mac)
                    }
                    VxlanStep::SetNeighbour(neighbour) => {
                        next_hop.is_some_and(|next_hop| next_hop.ip == neighbour.ip)
                    }
                    VxlanStep::RemoveAddress(_)
                    | VxlanStep::RemoveEntry(_)
                    | VxlanStep::RemoveNeighbour(_) => false,
                }
        }
        Change::AddRoute(route) | Change::ReplaceRoute(route) | Change::RemoveRoute(route) => {
            route.route.dst.holds(to)
        }
        Change::RemoveAddress { .. } | Change::WriteConflist { .. } => false,
    }
}

/// The route that the model has to an address, the narrowest, and the tunnel that it leads through.
fn covering(desired: &Desired, to: IpAddr) -> Option<(Route, Option<String>)> {
    let direct = desired.routes.iter().map(|route| (route.clone(), None));
    let tunnelled = desired.tunnels.iter().flat_map(|tunnel| {
        let name = tunnel.name.to_string();
        tunnel
            .routes
            .iter()
            .map(move |route| (route.clone(), Some(name.clone())))
    });
    let all = direct
        .chain(tunnelled)
        .filter(|(route, _)| route.dst.holds(to));
    all.max_by_key(|(route, _)| route.dst.length())
}

fn link_name(route: &Route, tunnel: Option<&str>, observed: &Observed) -> Option<String> {
    match tunnel {
        Some(name) => Some(name.to_owned()),
        None => observed.links.get(&route.link?).map(ToString::to_string),
    }
}

fn add_command(route: &Route, tunnel: Option<&str>, observed: &Observed) -> String {
    let on = link_name(route, tunnel, observed).map(|name| format!(" dev {name}"));
    let onlink = if tunnel.is_some() { " onlink" } else { "" };
    format!("ip route replace {route}{}{onlink}", on.unwrap_or_default())
}

/// How strictly a link's reverse path filter is: the kernel takes the larger of two (ip-sysctl.rst, rp_filter).
fn strictness(link: &str) -> Option<u32> {
    let read = |name: &str| -> Option<u32> {
        let value = sysctl::read(&format!("net/ipv4/conf/{name}/rp_filter"));
        value.ok()?.parse().ok()
    };
    read("all").max(read(link))
}

fn based(chains: &[ListedChain]) -> impl Iterator<Item = (&ListedChain, ListedBase)> {
    chains.iter().filter_map(|chain| Some((chain, chain.base?)))
}
