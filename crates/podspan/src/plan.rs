//! The difference between what should be and what is: a list of changes, empty when all is right. Pure.
//!
//! Only what bears our mark is ever named in a change, with one exception: a bridge of somebody else that the operator
//! configured is used, which is to say that it gets the gateways' addresses and nothing more. What is new or to be replaced
//! comes before what is to be removed, and the conflist, which invites the runtime, comes last.

mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use podspan_cni::attachment::BRIDGE_ALIAS;
use podspan_kernel::nft::AddressRange;
use podspan_kernel::{IfName, LinkChange, Mac, Prefix, Route};

use crate::conflist::{self, Found};
use crate::desired::{Between, Bridge, Desired, Sysctl};
use crate::observe::{Observed, ObservedBridge};
use crate::refusal::{Key, Refusal, Setting, Source};
use crate::{forwarding, masquerade};

pub use tunnel::{NewVxlan, VxlanStep};

/// What is to be done, and what stands in the way.
#[derive(Debug, Default)]
pub struct Plan {
    /// In their order.
    pub changes: Vec<Change>,
    /// Things of somebody else where ours should be.
    pub refusals: Vec<Refusal>,
}

/// One step, printed as the command that a person would type.
#[derive(Debug, Clone)]
pub enum Change {
    /// Set a kernel parameter.
    SetSysctl(Sysctl),
    /// Make the bridge.
    AddBridge {
        /// Its name.
        name: IfName,
        /// Its MAC address.
        mac: Mac,
    },
    /// Correct the bridge.
    SetBridge {
        /// Its name.
        name: IfName,
        /// What is wrong about it.
        change: LinkChange<'static>,
    },
    /// Isolate a port of the bridge from others that are isolated, or no longer.
    SetPort {
        /// The host veth.
        name: IfName,
        /// Isolated.
        isolated: bool,
    },
    /// Give the bridge a gateway's address.
    AddAddress {
        /// The bridge.
        link: IfName,
        /// The address.
        net: IpNet,
    },
    /// Take a stale gateway's address from the bridge.
    RemoveAddress {
        /// The bridge.
        link: IfName,
        /// The address.
        net: IpNet,
    },
    /// Change a VXLAN device, or what is written down on it.
    Vxlan {
        /// The device.
        link: IfName,
        /// What is changed.
        step: VxlanStep,
    },
    /// Add a route.
    AddRoute(NamedRoute),
    /// Put a route in the place of ours with the same destination.
    ReplaceRoute(NamedRoute),
    /// Remove a route.
    RemoveRoute(NamedRoute),
    /// Correct what is masqueraded.
    SetMasquerade(masquerade::Transaction),
    /// Let through what the node's own filter would drop.
    SetForwarding(forwarding::Transaction),
    /// Write the conflist.
    WriteConflist {
        /// Where.
        path: PathBuf,
        /// Its text.
        text: String,
    },
}

/// A route, and the name of its link.
#[derive(Debug, Clone)]
pub struct NamedRoute {
    /// The route. Its link is none where a change before this one makes the link.
    pub route: Route,
    /// Its link's name, where the link is known, and where it is to be made.
    pub link_name: Option<Arc<str>>,
}

impl Change {
    /// What it does, in a word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SetSysctl(_) => "set_sysctl",
            Self::AddBridge { .. } => "add_bridge",
            Self::Vxlan { step, .. } => step.kind(),
            Self::SetBridge { .. } => "set_bridge",
            Self::SetPort { .. } => "set_port",
            Self::AddAddress { .. } => "add_address",
            Self::RemoveAddress { .. } => "remove_address",
            Self::AddRoute(_) => "add_route",
            Self::ReplaceRoute(_) => "replace_route",
            Self::RemoveRoute(_) => "remove_route",
            Self::SetMasquerade(_) => "set_masquerade",
            Self::SetForwarding(_) => "set_forwarding",
            Self::WriteConflist { .. } => "write_conflist",
        }
    }

    /// True for what a pod's start depends on: after a failure of it the conflist is not written.
    pub fn is_for_pods(&self) -> bool {
        matches!(
            self,
            Self::SetSysctl(_)
                | Self::AddBridge { .. }
                | Self::SetBridge { .. }
                | Self::AddAddress { .. }
        )
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl(sysctl) => write!(f, "sysctl -w {sysctl}"),
            Self::AddBridge { name, mac } => {
                write!(f, "ip link add {name} up address {mac} type bridge")
            }
            Self::SetBridge { name, change } => write!(f, "ip link set {name}{change}"),
            Self::SetPort { name, isolated } => {
                write!(f, "ip link set {name}{}", isolation(*isolated))
            }
            Self::AddAddress { link, net } => {
                let nodad = if net.addr().is_ipv6() { " nodad" } else { "" };
                write!(f, "ip address add {net} dev {link}{nodad}")
            }
            Self::RemoveAddress { link, net } => write!(f, "ip address del {net} dev {link}"),
            Self::Vxlan { link, step } => step.fmt(f, link),
            Self::AddRoute(route) => write!(f, "ip route add {route}"),
            Self::ReplaceRoute(route) => write!(f, "ip route replace {route}"),
            Self::RemoveRoute(route) => write!(f, "ip route del {route}"),
            Self::SetMasquerade(transaction) => transaction.fmt(f),
            Self::SetForwarding(transaction) => transaction.fmt(f),
            Self::WriteConflist { path, .. } => write!(f, "write {}", path.display()),
        }
    }
}

/// What makes a port isolated, or not.
pub fn isolation(isolated: bool) -> LinkChange<'static> {
    LinkChange {
        isolated: Some(isolated),
        ..LinkChange::default()
    }
}

impl fmt::Display for NamedRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.route)?;
        match &self.link_name {
            Some(name) => write!(f, " dev {name}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Sysctl {
    /// As `sysctl` takes it: with dots, unless a link's name has one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value } = self;
        if key.contains('.') {
            write!(f, "{key}={value}")
        } else {
            write!(f, "{}={value}", key.replace('/', "."))
        }
    }
}

/// What makes `observed` be as `desired`.
pub fn plan(desired: &Desired, observed: &Observed) -> Plan {
    let mut draft = Draft {
        desired,
        observed,
        plan: Plan::default(),
        removals: Vec::new(),
        unusable: Vec::new(),
        gone: Vec::new(),
        kept_hops: BTreeSet::new(),
    };
    draft.sysctls(&desired.sysctls);
    if let Some(bridge) = &desired.bridge {
        draft.bridge(bridge);
    }
    // Before the routes: what a pod sends to a new node must not be masqueraded for the first moment, and so for long.
    draft.masquerade();
    draft.tunnels();
    draft.forwarding();
    draft.routes();
    draft.stale_tunnels();
    draft.plan.changes.append(&mut draft.removals);
    draft.conflist();
    draft.plan
}

struct Draft<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    plan: Plan,
    removals: Vec<Change>,
    /// VXLAN devices that cannot be had: routes through them are neither made nor removed.
    unusable: Vec<&'a IfName>,
    /// VXLAN devices that are made anew, by their old number: what was on them has gone with them.
    gone: Vec<u32>,
    /// The link and next hop of each route that stays although it is not desired.
    kept_hops: BTreeSet<(Option<u32>, IpAddr)>,
}

/// A desired route, and the VXLAN device that it leads through.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    route: &'a Route,
    tunnel: Option<(&'a IfName, Option<u32>)>,
}

impl Wanted<'_> {
    fn is(&self, seen: &Route) -> bool {
        match self.tunnel {
            None => self.route == seen,
            Some((_, link)) => {
                link.is_some() && seen.link == link && without_link(seen) == *self.route
            }
        }
    }
}

fn without_link(route: &Route) -> Route {
    Route {
        link: None,
        ..route.clone()
    }
}

impl Draft<'_> {
    fn push(&mut self, change: Change) {
        self.plan.changes.push(change);
    }

    fn sysctls(&mut self, wanted: &[Sysctl]) {
        for sysctl in wanted {
            if self.is_wrong(sysctl) {
                self.push(Change::SetSysctl(sysctl.clone()));
            }
        }
    }

    fn is_wrong(&self, wanted: &Sysctl) -> bool {
        let seen = self.observed.sysctls.get(&wanted.key);
        seen.map(String::as_str) != Some(wanted.value)
    }

    fn bridge(&mut self, bridge: &Bridge) {
        let name = &bridge.name;
        match &self.observed.bridge {
            None => {
                self.push(Change::AddBridge {
                    name: name.clone(),
                    mac: bridge.mac,
                });
                let change = LinkChange {
                    alias: Some(BRIDGE_ALIAS),
                    mtu: bridge.mtu,
                    // A new one does without.
                    netfilter: Some(true).filter(|_| bridge.between == Between::Filters),
                    ..LinkChange::default()
                };
                self.push(Change::SetBridge {
                    name: name.clone(),
                    change,
                });
                self.sysctls(&bridge.sysctls);
                self.addresses(bridge, &[]);
            }
            Some(seen) if !seen.is_bridge() => {
                let kind = seen.kind.as_deref().unwrap_or("physical device");
                let fix = format!(
                    "a {kind} has this name; name a bridge, or a link that does not exist yet"
                );
                self.refuse(Key::Plain("bridge"), name.as_str(), fix);
            }
            Some(seen) if seen.is_ours(bridge.mac) => {
                self.correct(bridge, seen);
                self.ports(bridge, seen);
                self.sysctls(&bridge.sysctls);
                self.addresses(bridge, &seen.addresses);
                self.stale_addresses(bridge, seen);
            }
            Some(seen) => self.addresses(bridge, &seen.addresses),
        }
    }

    /// Corrects our own bridge where it is wrong.
    fn correct(&mut self, bridge: &Bridge, seen: &ObservedBridge) {
        let change = LinkChange {
            up: !seen.up,
            alias: (seen.alias.as_deref() != Some(BRIDGE_ALIAS)).then_some(BRIDGE_ALIAS),
            mtu: bridge.mtu.filter(|mtu| *mtu != seen.mtu),
            mac: Some(bridge.mac).filter(|_| !self.is_mac_right(bridge, seen)),
            netfilter: Some(calls_filters(bridge, seen))
                .filter(|wanted| seen.netfilter.is_some_and(|seen| seen != *wanted)),
            ..LinkChange::default()
        };
        let is_link = change.up || change.alias.is_some() || change.mtu.is_some();
        if is_link || change.mac.is_some() || change.netfilter.is_some() {
            let name = bridge.name.clone();
            self.push(Change::SetBridge { name, change });
        }
    }

    /// The filters of IP are called already where ports are opened for them.
    fn ports(&mut self, bridge: &Bridge, seen: &ObservedBridge) {
        let isolated = match bridge.between {
            Between::Bridge | Between::Filters => false,
            Between::Node { can_filter: false } => true,
            Between::Node { can_filter: true } => return,
        };
        for port in seen.ports.iter().filter(|port| port.isolated != isolated) {
            let name = port.name.clone();
            self.push(Change::SetPort { name, isolated });
        }
    }

    /// The MAC address of an earlier gateway stays while there are pods, which know it; somebody else's does not.
    fn is_mac_right(&self, bridge: &Bridge, seen: &ObservedBridge) -> bool {
        let derived = matches!(seen.mac, Some(Mac([0x0a, 0x58 | 0x59, ..])));
        let pods = self.observed.allocations.as_deref();
        seen.mac == Some(bridge.mac) || derived && pods.is_none_or(|pods| !pods.is_empty())
    }

    fn addresses(&mut self, bridge: &Bridge, seen: &[IpNet]) {
        for net in bridge.gateways.iter().filter(|net| !seen.contains(net)) {
            let link = bridge.name.clone();
            self.push(Change::AddAddress { link, net: *net });
        }
    }

    /// A gateway of an earlier pod CIDR goes when it is known that no pod of that CIDR is left.
    fn stale_addresses(&mut self, bridge: &Bridge, seen: &ObservedBridge) {
        for net in &seen.addresses {
            let pods = self.observed.allocations.as_deref();
            let in_use = pods.is_none_or(|pods| pods.iter().any(|ip| net.contains(ip)));
            if !in_use && !bridge.gateways.contains(net) && !self.desired.kept.has_gateway(*net) {
                let link = bridge.name.clone();
                self.removals
                    .push(Change::RemoveAddress { link, net: *net });
            }
        }
    }

    /// The addresses of an earlier pod CIDR are masqueraded as long as the bridge has its gateway, and so its last pod.
    fn masquerade(&mut self) {
        let wanted = self.desired.masquerade.as_ref();
        let seen = match &self.observed.filter {
            Ok(seen) => &seen.masquerade,
            Err(_) if wanted.is_none() => return,
            Err(why) => {
                let fix =
                    format!("{why}; the kernel needs nf_tables and nft_masq, or set it to false");
                return self.refuse(Key::Plain("masquerade"), "true", fix);
            }
        };
        let addresses = self.observed.bridge.iter().flat_map(|seen| &seen.addresses);
        let subnets: Vec<AddressRange> = addresses
            .map(|net| Prefix::containing(*net).into())
            .collect();
        let kept = &self.desired.kept;
        let stays = (
            |pods: AddressRange| subnets.contains(&pods) || kept.has_range(pods),
            |inside: AddressRange| kept.has_range(inside),
        );
        if let Some(transaction) = masquerade::plan(wanted, seen, stays) {
            self.push(Change::SetMasquerade(transaction));
        }
    }

    fn forwarding(&mut self) {
        // Without nftables there is no such drop, or one that nobody can see from here.
        if let Ok(seen) = &self.observed.filter
            && let Some(change) =
                forwarding::plan(self.desired.forwarding.as_ref(), &seen.forwarding)
        {
            self.push(Change::SetForwarding(change));
        }
    }

    /// Over the union of both sides, by what the kernel takes for the same route.
    fn routes(&mut self) {
        let (desired, observed) = (self.desired, self.observed);
        let mut seen: BTreeMap<RouteKey, Vec<&Route>> = BTreeMap::new();
        let gone = |route: &&Route| route.link.is_some_and(|link| self.gone.contains(&link));
        for route in observed.routes.iter().filter(|route| !gone(route)) {
            seen.entry(key(route)).or_default().push(route);
        }
        let direct = desired.routes.iter();
        let direct = direct.map(|route| Wanted {
            route,
            tunnel: None,
        });
        for wanted in direct.chain(self.routes_through_tunnels()) {
            let there = seen.remove(&key(wanted.route)).unwrap_or_default();
            if wanted
                .tunnel
                .is_some_and(|(name, _)| self.unusable.contains(&name))
            {
                continue;
            }
            match there.as_slice() {
                [] => self.push(Change::AddRoute(self.wanted(wanted))),
                there if there.iter().any(|route| wanted.is(route)) => {
                    self.remove(there.iter().filter(|route| !wanted.is(route)));
                }
                [_, others @ ..] => {
                    self.push(Change::ReplaceRoute(self.wanted(wanted)));
                    self.remove(others.iter());
                }
            }
        }
        let left: Vec<_> = seen.into_values().flatten().collect();
        let (kept, left): (Vec<_>, Vec<_>) = left.into_iter().partition(|r| self.is_kept(r));
        self.kept_hops = kept
            .iter()
            .filter_map(|route| Some((route.link, route.next_hop?)))
            .collect();
        self.remove(left.iter());
    }

    fn wanted(&self, wanted: Wanted<'_>) -> NamedRoute {
        match wanted.tunnel {
            None => self.named(wanted.route),
            Some((name, link)) => NamedRoute {
                route: Route {
                    link,
                    ..wanted.route.clone()
                },
                link_name: Some(name.as_str().into()),
            },
        }
    }

    fn remove<'r>(&mut self, routes: impl Iterator<Item = &'r &'r Route>) {
        for route in routes {
            self.removals.push(Change::RemoveRoute(self.named(route)));
        }
    }

    fn named(&self, route: &Route) -> NamedRoute {
        NamedRoute {
            route: route.clone(),
            link_name: route
                .link
                .and_then(|link| self.observed.links.get(&link).cloned()),
        }
    }

    fn conflist(&mut self) {
        let Some(wanted) = &self.desired.conflist else {
            return;
        };
        if self.desired.bridge.is_none() || self.is_bridge_taken() {
            return;
        }
        match &self.observed.conflist {
            Found::Ours(text) if *text == wanted.text => {}
            Found::Foreign(why) => {
                let value = wanted.path.to_string_lossy();
                self.refuse(Key::Plain("conflist"), &value, conflist::foreign(why));
            }
            Found::Ours(_) | Found::Absent => self.push(Change::WriteConflist {
                path: wanted.path.clone(),
                text: wanted.text.clone(),
            }),
        }
    }

    fn is_bridge_taken(&self) -> bool {
        self.observed
            .bridge
            .as_ref()
            .is_some_and(|seen| !seen.is_bridge())
    }

    fn refuse(&mut self, key: Key<'_>, value: &str, fix: String) {
        let source = Source::File(&self.desired.config_file);
        self.plan
            .refusals
            .push(Setting { value, source, key }.refuse(fix));
    }
}

/// Also where the node routes between its pods, as long as some of them send past it.
fn calls_filters(bridge: &Bridge, seen: &ObservedBridge) -> bool {
    match bridge.between {
        Between::Bridge | Between::Node { can_filter: false } => false,
        Between::Filters => true,
        Between::Node { can_filter: true } => seen.ports.iter().any(|port| !port.isolated),
    }
}

/// What makes two routes one for the kernel: IPv4 and IPv6 alike, with one exception (routes *appended* by hand).
type RouteKey = (Prefix, Option<u32>, Option<u32>);

fn key(route: &Route) -> RouteKey {
    (route.dst, route.options.metric, route.options.table)
}

#[cfg(test)]
mod tests;
