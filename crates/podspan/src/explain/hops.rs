//! The hops of a packet, in its order: the pod, this node, the other node; each as it is where it is seen, against what the
//! model wants.
//!
//! What the model wants differently is what `plan` says, so that this and `podspan plan` never disagree. The room only asks
//! which of it a packet to one address meets. Its parts: [`pod`], [`node`], [`filter`].

mod filter;
mod node;
mod pod;

use std::net::IpAddr;

use podspan_kernel::{Netlink, Prefix};

use super::pods::Pod;
use super::{Hop, State};
use crate::cluster::{Cluster, Node};
use crate::desired::{Desired, Tunnel};
use crate::look::Look;
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
            let by_node = self.by_node();
            if by_node {
                let what = format!(
                    "the node routes between them: their ports of {} are isolated",
                    bridge.name
                );
                self.on_node(State::Right, what);
            }
            let seen = observed.bridge.as_ref();
            if by_node || seen.is_some_and(|seen| seen.netfilter == Some(true)) {
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

    /// The other node, as the registry and the model have it.
    fn other_node(&mut self, desired: &Desired) {
        let (Some(node), Some(own)) = (
            self.cluster.node(&self.to.node),
            self.cluster.node(&self.from.node),
        ) else {
            return;
        };
        let cidr =
            |node: &Node, ip: IpAddr| node.pod_cidrs.iter().find(|cidr| cidr.holds(ip)).copied();
        let gateway = cidr(node, self.to.ip).and_then(Prefix::first_host);
        if let (Some(gateway), Some(address)) = (gateway, node.address_beside(self.to.ip)) {
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
        if let (Some(back), Some(own)) = (cidr(own, self.from.ip), own.address_beside(self.from.ip))
        {
            let what = format!(
                "its way back to {back}: through {by}{own}, or a router; see it there: podspan explain {} {}",
                self.to.ip, self.from.ip
            );
            self.hops.push(Hop::new(&node.name, State::Unseen, what));
        }
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
        // How a port is its own hop tells.
        Change::SetPort { .. } | Change::RemoveAddress { .. } | Change::WriteConflist { .. } => {
            false
        }
    }
}
