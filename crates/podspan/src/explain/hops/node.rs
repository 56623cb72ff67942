//! The way through this node: the route that the kernel takes against the one that the model wants, the tunnel, the next
//! machine, the way back, and what fits.

use std::net::IpAddr;

use podspan_kernel::{Reachability, Route, sysctl};

use super::{NextHop, State, Way};
use crate::desired::{Desired, Tunnel};
use crate::observe::Observed;

impl Way<'_> {
    /// The route to the other node, and who is next.
    pub(super) fn routed(&mut self, desired: &Desired, observed: &Observed) {
        let to = self.to.ip;
        let wanted = covering(desired, to);
        if wanted.is_none() {
            let what =
                format!("the model has no route to {to}: see podspan status for what it refuses");
            self.on_node(State::Wrong, what);
        }
        // As the pod's packet comes: rules of routing may be about who sends it.
        let bridge = desired.bridge.as_ref().map(|bridge| bridge.name.as_str());
        let mut links = observed.links.iter();
        let bridge = links.find(|(_, name)| Some(name.as_ref()) == bridge);
        let taken = match bridge {
            Some((bridge, _)) => self.netlink.route_from((self.from.ip, *bridge), to),
            None => self.netlink.route_to(to),
        };
        let taken = match taken {
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
        let address = own.and_then(|own| own.address_beside(self.to.ip));
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
