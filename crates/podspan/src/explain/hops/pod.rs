//! The ends of the way: a pod of this node as it is inside, and its host veth as a port of the bridge.

use std::net::IpAddr;

use podspan_kernel::Reachability;

use super::{Hop, State, Way};
use crate::desired::Bridge;
use crate::explain::pods::{Inside, Pod};
use crate::observe::Observed;

impl Way<'_> {
    /// The pod itself: its interface, its route, and who is next.
    pub(super) fn pod(&mut self, pod: &Pod, bridge: &Bridge) {
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
        // Nobody answers on the link then; by the gateway it is a detour otherwise, and none that is wrong.
        let isolated = self.by_node();
        let by_gateway = matches!(&inside.route, Ok(route) if route.next_hop == gateway);
        let expected = match on_link && !isolated && !by_gateway {
            true => None,
            false => gateway,
        };
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
            Ok(route) if isolated && route.next_hop.is_none() => {
                let what = format!(
                    "to {to} through the link itself on {name}, where nobody answers: pods of this node reach each other \
                     through the node, and this one was made before that"
                );
                Hop::new(place, State::Wrong, what).mended_by("make the pod anew")
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

    /// True when the two pods are of this node and their ports isolated, so that the node routes between them.
    pub(super) fn by_node(&self) -> bool {
        let isolated = |pod: &Pod| {
            let here = pod.here.as_ref();
            here.and_then(|here| here.host_veth.as_ref())
                .is_some_and(|veth| veth.isolated)
        };
        isolated(self.from) && isolated(self.to)
    }

    /// The pod's host veth, as a port of the bridge.
    pub(super) fn port(&mut self, pod: &Pod, bridge: &Bridge, observed: &Observed) {
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

    /// The other pod, of this node too.
    pub(super) fn receiver(&mut self) {
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
