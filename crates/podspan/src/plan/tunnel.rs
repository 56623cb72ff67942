//! The part of a plan that is about VXLAN devices: first what must be there before routes lead to it, then, when they do
//! no more, what is left over. On a device of ours everything is ours.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use podspan_kernel::{FdbEntry, IfName, LinkChange, Mac, Neighbour, Route, Vxlan};

use super::{Change, Draft, Wanted};
use crate::desired::{Sysctl, Tunnel, VXLAN_ALIAS};
use crate::observe::ObservedTunnel;
use crate::refusal::Key;

/// A change of a VXLAN device, or of what is written down on it.
#[derive(Debug, Clone)]
pub enum VxlanStep {
    /// Make it.
    Make(NewVxlan),
    /// Make it in the place of ours with the same name, which is another.
    Remake(NewVxlan),
    /// Correct it.
    Correct(LinkChange<'static>),
    /// Remove it.
    Remove,
    /// Set a kernel parameter of it.
    SetSysctl(Sysctl),
    /// Give it its address.
    AddAddress(IpNet),
    /// Take an address from it that is not its own.
    RemoveAddress(IpNet),
    /// Write down which node a MAC address is behind.
    SetEntry(FdbEntry),
    /// Forget it.
    RemoveEntry(FdbEntry),
    /// Write down which MAC address a next hop is behind.
    SetNeighbour(Neighbour),
    /// Forget it.
    RemoveNeighbour(IpAddr),
}

/// A VXLAN device to be made.
#[derive(Debug, Clone)]
pub struct NewVxlan {
    /// What it is.
    pub vxlan: Vxlan,
    /// Its MAC address.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
}

impl VxlanStep {
    /// What it does, in a word for metrics.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Make(_) => "add_vxlan",
            Self::Remake(_) => "replace_vxlan",
            Self::Correct(_) | Self::SetSysctl(_) => "set_vxlan",
            Self::Remove => "remove_vxlan",
            Self::AddAddress(_) => "add_vxlan_address",
            Self::RemoveAddress(_) => "remove_vxlan_address",
            Self::SetEntry(_) => "set_fdb_entry",
            Self::RemoveEntry(_) => "remove_fdb_entry",
            Self::SetNeighbour(_) => "set_neighbour",
            Self::RemoveNeighbour(_) => "remove_neighbour",
        }
    }

    /// As the command that a person would type.
    pub(super) fn fmt(&self, f: &mut fmt::Formatter<'_>, link: &IfName) -> fmt::Result {
        match self {
            Self::Make(new) => write!(f, "ip link add {link} {new}"),
            Self::Remake(new) => write!(f, "ip link del {link} && ip link add {link} {new}"),
            Self::Correct(change) => write!(f, "ip link set {link}{change}"),
            Self::Remove => write!(f, "ip link del {link}"),
            Self::SetSysctl(sysctl) => write!(f, "sysctl -w {sysctl}"),
            Self::AddAddress(net) => write!(f, "ip address add {net} dev {link}"),
            Self::RemoveAddress(net) => write!(f, "ip address del {net} dev {link}"),
            Self::SetEntry(FdbEntry { mac, remote }) => {
                write!(
                    f,
                    "bridge fdb replace {mac} dev {link} dst {remote} self permanent"
                )
            }
            Self::RemoveEntry(FdbEntry { mac, remote }) => {
                write!(f, "bridge fdb del {mac} dev {link} dst {remote} self")
            }
            Self::SetNeighbour(Neighbour { ip, mac }) => {
                write!(
                    f,
                    "ip neigh replace {ip} lladdr {mac} dev {link} nud permanent"
                )
            }
            Self::RemoveNeighbour(ip) => write!(f, "ip neigh del {ip} dev {link}"),
        }
    }
}

impl fmt::Display for NewVxlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vxlan, mac, mtu } = self;
        write!(f, "address {mac} mtu {mtu} type vxlan {vxlan}")
    }
}

impl<'a> Draft<'a> {
    /// Makes the devices right, and writes down what is behind them.
    pub(super) fn tunnels(&mut self) {
        for tunnel in &self.desired.tunnels {
            match self.seen(&tunnel.name) {
                None => self.new_tunnel(tunnel, VxlanStep::Make),
                Some(seen) if !seen.is_ours(Some(tunnel.mac)) => self.refuse_tunnel(tunnel, seen),
                Some(seen) if seen.vxlan != Some(tunnel.vxlan) => {
                    self.gone.push(seen.index);
                    self.new_tunnel(tunnel, VxlanStep::Remake);
                }
                Some(seen) => self.correct_tunnel(tunnel, seen),
            }
        }
    }

    fn seen(&self, name: &IfName) -> Option<&'a ObservedTunnel> {
        self.observed.tunnels.iter().find(|seen| seen.name == *name)
    }

    fn step(&mut self, tunnel: &Tunnel, step: VxlanStep) {
        let link = tunnel.name.clone();
        self.push(Change::Vxlan { link, step });
    }

    fn new_tunnel(&mut self, tunnel: &Tunnel, make: impl Fn(NewVxlan) -> VxlanStep) {
        let new = NewVxlan {
            vxlan: tunnel.vxlan,
            mac: tunnel.mac,
            mtu: tunnel.mtu,
        };
        self.step(tunnel, make(new));
        // One after the other: set up first, it would have a link-local address.
        let marked = LinkChange {
            alias: Some(VXLAN_ALIAS),
            no_link_local: true,
            ..LinkChange::default()
        };
        let up = LinkChange {
            up: true,
            ..LinkChange::default()
        };
        self.step(tunnel, VxlanStep::Correct(marked));
        self.step(tunnel, VxlanStep::Correct(up));
        self.settings(tunnel, &[]);
        self.peers(tunnel, None);
    }

    /// Kernel parameters, and the address.
    fn settings(&mut self, tunnel: &Tunnel, addresses: &[IpNet]) {
        for sysctl in &tunnel.sysctls {
            if self.is_wrong(sysctl) {
                self.step(tunnel, VxlanStep::SetSysctl(sysctl.clone()));
            }
        }
        let missing = tunnel.address.filter(|own| !addresses.contains(own));
        if let Some(own) = missing {
            self.step(tunnel, VxlanStep::AddAddress(own));
        }
    }

    fn refuse_tunnel(&mut self, tunnel: &'a Tunnel, seen: &ObservedTunnel) {
        let (name, kind) = (&tunnel.name, seen.kind.as_deref());
        let kind = kind.unwrap_or("physical device");
        let fix = format!(
            "needs {name}, and a {kind} of somebody else has that name; see `ip -d link show {name}`, and \
             `ip link del {name}` if nobody needs it"
        );
        self.refuse(Key::Plain("routing"), "vxlan", fix);
        self.unusable.push(name);
    }

    /// Corrects our own device where it is wrong. A change of its MAC address, and its setting down, take its neighbours with
    /// them (`neigh_changeaddr`, `neigh_ifdown`).
    fn correct_tunnel(&mut self, tunnel: &Tunnel, seen: &'a ObservedTunnel) {
        let marked = seen.alias.as_deref() == Some(VXLAN_ALIAS);
        let change = LinkChange {
            up: !seen.up,
            alias: (!marked).then_some(VXLAN_ALIAS),
            no_link_local: !marked,
            mtu: Some(tunnel.mtu).filter(|mtu| *mtu != seen.mtu),
            mac: Some(tunnel.mac).filter(|mac| Some(*mac) != seen.mac),
            ..LinkChange::default()
        };
        if change.up || !marked || change.mtu.is_some() || change.mac.is_some() {
            self.step(tunnel, VxlanStep::Correct(change));
        }
        self.settings(tunnel, &seen.addresses);
        self.peers(tunnel, Some(seen).filter(|_| change.mac.is_none()));
    }

    /// What is behind the device: entries of the forwarding table, then neighbours.
    fn peers(&mut self, tunnel: &Tunnel, seen: Option<&ObservedTunnel>) {
        let fdb: BTreeSet<_> = seen.iter().flat_map(|seen| &seen.fdb).collect();
        let neighbours: BTreeSet<_> = seen.iter().flat_map(|seen| &seen.neighbours).collect();
        for entry in tunnel.fdb.iter().filter(|entry| !fdb.contains(entry)) {
            self.step(tunnel, VxlanStep::SetEntry(*entry));
        }
        let missing = tunnel.neighbours.iter().filter(|n| !neighbours.contains(n));
        for neighbour in missing {
            self.step(tunnel, VxlanStep::SetNeighbour(*neighbour));
        }
    }

    /// The routes through all devices, each with its device and the number that this has already.
    pub(super) fn routes_through_tunnels(&self) -> impl Iterator<Item = Wanted<'a>> + use<'a> {
        let (observed, gone) = (self.observed, self.gone.clone());
        self.desired.tunnels.iter().flat_map(move |tunnel| {
            let mut links = observed.tunnels.iter();
            let there = links.find(|seen| seen.name == tunnel.name);
            let there = there.map(|seen| seen.index);
            let link = there.filter(|index| !gone.contains(index));
            tunnel.routes.iter().map(move |route| Wanted {
                route,
                tunnel: Some((&tunnel.name, link)),
            })
        })
    }

    /// True for a route that something refused names, by its pod CIDR or by the node behind its next hop.
    pub(super) fn is_kept(&self, route: &Route) -> bool {
        let kept = &self.desired.kept;
        kept.has_route(route)
            || self
                .remote_of(route)
                .is_some_and(|ip| kept.has_next_hop(ip))
    }

    /// The node to which a route through a device of ours leads.
    fn remote_of(&self, route: &Route) -> Option<IpAddr> {
        let mut tunnels = self.observed.tunnels.iter();
        let tunnel = tunnels.find(|tunnel| Some(tunnel.index) == route.link)?;
        let mut neighbours = tunnel.neighbours.iter();
        let mac = neighbours.find(|n| Some(n.ip) == route.next_hop)?.mac;
        let entry = tunnel.fdb.iter().find(|entry| entry.mac == mac)?;
        Some(entry.remote)
    }

    /// What is left over, now that no route leads to it: neighbours, then entries, then whole devices. What a route needs that
    /// stays for something refused stays with it.
    pub(super) fn stale_tunnels(&mut self) {
        let desired = self.desired;
        for seen in &self.observed.tunnels {
            let wanted = desired
                .tunnels
                .iter()
                .find(|wanted| wanted.name == seen.name);
            let is_ours = seen.is_ours(wanted.map(|wanted| wanted.mac));
            if !is_ours || self.gone.contains(&seen.index) {
                continue;
            }
            let mut kept_hops = self.kept_hops.iter().copied();
            match wanted {
                Some(wanted) => self.stale_peers(wanted, seen),
                None if kept_hops.any(|(link, _)| link == Some(seen.index)) => {}
                None => self.removals.push(Change::Vxlan {
                    link: seen.name.clone(),
                    step: VxlanStep::Remove,
                }),
            }
        }
    }

    fn stale_peers(&mut self, wanted: &Tunnel, seen: &ObservedTunnel) {
        let next_hops: BTreeSet<_> = wanted.neighbours.iter().map(|n| n.ip).collect();
        let mut macs: BTreeSet<Mac> = wanted.fdb.iter().map(|e| e.mac).collect();
        let mut stale = Vec::new();
        // Those of a device whose MAC address is corrected have gone with it.
        let there = seen
            .neighbours
            .iter()
            .filter(|_| seen.mac == Some(wanted.mac));
        for neighbour in there {
            if self.kept_hops.contains(&(Some(seen.index), neighbour.ip)) {
                macs.insert(neighbour.mac);
            } else if !next_hops.contains(&neighbour.ip) {
                stale.push(VxlanStep::RemoveNeighbour(neighbour.ip));
            }
        }
        let entries = seen.fdb.iter().filter(|entry| !macs.contains(&entry.mac));
        stale.extend(entries.copied().map(VxlanStep::RemoveEntry));
        let others = seen
            .addresses
            .iter()
            .filter(|net| Some(**net) != wanted.address);
        stale.extend(others.copied().map(VxlanStep::RemoveAddress));
        let link = &seen.name;
        self.removals
            .extend(stale.into_iter().map(|step| Change::Vxlan {
                link: link.clone(),
                step,
            }));
    }
}
