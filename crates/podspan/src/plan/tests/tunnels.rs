//! The same laws with VXLAN devices; and one more: no route ever leads to a next hop of which nothing is written down.

use std::ops::ControlFlow;

use podspan_kernel::{FdbEntry, Neighbour, Vxlan};

use super::*;
use crate::desired::{Tunnel, VXLAN_ALIAS};
use crate::observe::ObservedTunnel;

const INDEX: u32 = 9;

fn name() -> IfName {
    "podspan-vxlan4".parse().unwrap()
}

fn vxlan() -> Vxlan {
    Vxlan {
        vni: 112,
        port: 8472,
        local: Some("192.168.1.11".parse().unwrap()),
        learning: false,
    }
}

fn vtep(node: u8) -> Mac {
    Mac([0x0a, 0x58, 10, 244, node, 0])
}

fn address(node: u8) -> IpNet {
    format!("10.244.{node}.0/32").parse().unwrap()
}

fn next_hop(node: u8) -> IpAddr {
    match node.is_multiple_of(2) {
        true => format!("10.244.{node}.0").parse().unwrap(),
        false => vtep(node).link_local().into(),
    }
}

/// A node that is behind the device, and where.
fn entry(node: u8, host: u8) -> FdbEntry {
    FdbEntry {
        mac: vtep(node),
        remote: format!("192.168.1.{host}").parse().unwrap(),
    }
}

fn neighbour(node: u8) -> Neighbour {
    Neighbour {
        ip: next_hop(node),
        mac: vtep(node),
    }
}

fn far(node: u8, link: Option<u32>) -> Route {
    let hop = next_hop(node);
    Route {
        next_hop: Some(hop),
        link,
        options: RouteOptions {
            onlink: hop.is_ipv4(),
            ..RouteOptions::default()
        },
        ..route(node, 2, None)
    }
}

/// With these nodes behind the device, by their number and the last byte of their address.
fn tunnel(nodes: &BTreeMap<u8, u8>) -> Tunnel {
    let mut tunnel = Tunnel {
        name: name(),
        vxlan: vxlan(),
        mac: vtep(1),
        mtu: 1450,
        sysctls: vec![sysctl("net/ipv4/conf/podspan-vxlan4/rp_filter", "2")],
        address: Some(address(1)),
        fdb: nodes
            .iter()
            .map(|(node, host)| entry(*node, *host))
            .collect(),
        neighbours: nodes.keys().map(|node| neighbour(*node)).collect(),
        routes: nodes.keys().map(|node| far(*node, None)).collect(),
    };
    tunnel.fdb.sort();
    tunnel.neighbours.sort();
    tunnel.routes.sort();
    tunnel
}

/// Near and far nodes; none is both.
fn both(near: &BTreeSet<Route>, nodes: &BTreeMap<u8, u8>) -> Desired {
    let mut near = near.clone();
    near.retain(|near| !nodes.keys().any(|node| key(&far(*node, None)) == key(near)));
    Desired {
        tunnels: match nodes.is_empty() {
            true => Vec::new(),
            false => vec![tunnel(nodes)],
        },
        ..desired(1, &near)
    }
}

fn made(new: &NewVxlan, index: u32) -> ObservedTunnel {
    ObservedTunnel {
        name: name(),
        index,
        kind: Some("vxlan".to_owned()),
        alias: None,
        vxlan: Some(new.vxlan),
        mac: Some(new.mac),
        mtu: new.mtu,
        up: false,
        addresses: Vec::new(),
        fdb: Vec::new(),
        neighbours: Vec::new(),
    }
}

/// What the kernel makes of a change that is about a VXLAN device.
pub fn model(observed: &mut Observed, change: &Change) {
    let Change::Vxlan { step, .. } = change else {
        panic!("{change}: not in the model")
    };
    let remove = |observed: &mut Observed| {
        let old = observed.tunnels.pop().expect("there is one to remove");
        observed
            .routes
            .retain(|route| route.link != Some(old.index));
        old.index
    };
    match step {
        VxlanStep::Make(new) => {
            assert!(observed.tunnels.is_empty(), "{change}: exists");
            observed.tunnels.push(made(new, INDEX));
        }
        VxlanStep::Remake(new) => {
            let old = remove(observed);
            observed.tunnels.push(made(new, old + 1));
        }
        VxlanStep::Remove => drop(remove(observed)),
        VxlanStep::SetSysctl(sysctl) => {
            let (key, value) = (sysctl.key.clone(), sysctl.value.to_owned());
            observed.sysctls.insert(key, value);
        }
        step => change_tunnel(&mut observed.tunnels[0], step),
    }
}

fn change_tunnel(tunnel: &mut ObservedTunnel, step: &VxlanStep) {
    match step {
        VxlanStep::Correct(change) => {
            tunnel.alias = change.alias.map(str::to_owned).or(tunnel.alias.take());
            tunnel.mtu = change.mtu.unwrap_or(tunnel.mtu);
            tunnel.up |= change.up;
            if let Some(mac) = change.mac {
                tunnel.mac = Some(mac);
                tunnel.neighbours.clear();
            }
        }
        VxlanStep::AddAddress(net) => tunnel.addresses.push(*net),
        VxlanStep::RemoveAddress(net) => {
            let at = tunnel.addresses.iter().position(|have| have == net);
            tunnel.addresses.remove(at.unwrap());
        }
        VxlanStep::SetEntry(entry) => {
            tunnel.fdb.retain(|have| have.mac != entry.mac);
            tunnel.fdb.push(*entry);
        }
        VxlanStep::RemoveEntry(entry) => {
            let at = tunnel.fdb.iter().position(|have| have == entry);
            tunnel.fdb.remove(at.unwrap());
        }
        VxlanStep::SetNeighbour(neighbour) => {
            assert!(tunnel.up, "{neighbour:?} on a device that is down");
            tunnel.neighbours.retain(|have| have.ip != neighbour.ip);
            tunnel.neighbours.push(*neighbour);
        }
        VxlanStep::RemoveNeighbour(ip) => {
            let at = tunnel.neighbours.iter().position(|have| have.ip == *ip);
            tunnel.neighbours.remove(at.unwrap());
        }
        other => panic!("{other:?}: not about what is on the device"),
    }
}

/// The first route through the device whose next hop, or the node behind it, is not written down.
fn led_astray(observed: &Observed) -> Option<String> {
    let through = |route: &&Route| route.link != Some(2);
    let astray = observed.routes.iter().filter(through).find(|route| {
        let mut tunnels = observed.tunnels.iter();
        let tunnel = tunnels.find(|tunnel| Some(tunnel.index) == route.link);
        let found = tunnel.and_then(|tunnel| {
            let mut neighbours = tunnel.neighbours.iter();
            let mac = neighbours.find(|n| Some(n.ip) == route.next_hop)?.mac;
            tunnel.fdb.iter().find(|entry| entry.mac == mac)
        });
        found.is_none()
    });
    astray.map(ToString::to_string)
}

prop_compose! {
    fn nodes()(nodes in prop::collection::btree_map(0_u8..20, 2_u8..9, 0..12)) -> BTreeMap<u8, u8> {
        nodes
    }
}

prop_compose! {
    /// A device of ours in any state.
    fn any_tunnel()(
        wrong in 0_u8..8,
        addresses in prop::collection::btree_set(0_u8..4, 0..3),
        entries in prop::collection::btree_map(0_u8..24, 2_u8..9, 0..12),
        neighbours in prop::collection::btree_map(0_u8..24, 0_u8..24, 0..12),
        routes in prop::collection::btree_set(0_u8..20, 0..12),
    ) -> (ObservedTunnel, Vec<Route>) {
        let mut seen = made(&NewVxlan { vxlan: vxlan(), mac: vtep(1), mtu: 1450 }, INDEX);
        seen.up = wrong != 1;
        seen.mtu = if wrong == 2 { 1500 } else { 1450 };
        seen.mac = Some(if wrong == 3 { Mac([2, 0, 0, 0, 0, 3]) } else { vtep(1) });
        seen.vxlan = Some(Vxlan { learning: wrong == 4, vni: if wrong == 5 { 7 } else { 112 }, ..vxlan() });
        seen.alias = Some(VXLAN_ALIAS.to_owned()).filter(|_| wrong != 6);
        seen.addresses = addresses.into_iter().map(address).collect();
        seen.fdb = entries.into_iter().map(|(node, host)| entry(node, host)).collect();
        let of = |(ip, mac): (u8, u8)| Neighbour { ip: next_hop(ip), mac: vtep(mac) };
        seen.neighbours = neighbours.into_iter().map(of).collect();
        (seen, routes.into_iter().map(|node| far(node, Some(INDEX))).collect())
    }
}

/// Near routes of any kind, and a device in any state, with any routes through it.
fn join(mut observed: Observed, tunnel: Option<(ObservedTunnel, Vec<Route>)>) -> Observed {
    if let Some((tunnel, routes)) = tunnel {
        let taken: BTreeSet<_> = observed.routes.iter().map(key).collect();
        let free = routes
            .into_iter()
            .filter(|route| !taken.contains(&key(route)));
        observed.routes.extend(free);
        observed.tunnels = vec![tunnel];
    }
    observed
}

proptest! {
    #[test]
    fn applying_a_plan_gives_what_is_desired_and_then_nothing_is_left_to_do(
        near in routes(), nodes in nodes(), observed in any_observed(), tunnel in prop::option::of(any_tunnel())
    ) {
        let desired = both(&near, &nodes);
        let (_, after) = applied(&desired, join(observed, tunnel));
        prop_assert_eq!(texts(&plan(&desired, &after)), Vec::<String>::new());
        prop_assert_eq!(led_astray(&after), None);
        let through = after.routes.iter().filter(|route| route.link != Some(2)).count();
        // A device that a kill left unmarked and that is not wanted is nobody's.
        let ours = after.tunnels.iter().filter(|tunnel| tunnel.alias.is_some()).count();
        prop_assert_eq!((ours, through), (usize::from(!nodes.is_empty()), nodes.len()));
        for seen in after.tunnels.iter().filter(|tunnel| tunnel.alias.is_some()) {
            prop_assert!(seen.up && seen.vxlan == Some(vxlan()) && seen.mac == Some(vtep(1)));
            prop_assert_eq!(&seen.addresses, &[address(1)]);
            prop_assert_eq!((seen.fdb.len(), seen.neighbours.len()), (nodes.len(), nodes.len()));
        }
    }

    #[test]
    fn a_node_that_stays_is_reached_at_every_moment_whether_it_becomes_far_or_near(
        before in (routes(), nodes()), after in (routes(), nodes())
    ) {
        let [before, after] = [before, after].map(|(near, nodes)| both(&near, &nodes));
        let (_, mut observed) = applied(&before, nothing());
        let all = |desired: &Desired| -> BTreeSet<_> {
            let far = desired.tunnels.iter().flat_map(|tunnel| &tunnel.routes);
            desired.routes.iter().chain(far).map(key).collect()
        };
        let stay: BTreeSet<_> = all(&before).intersection(&all(&after)).copied().collect();
        for change in plan(&after, &observed).changes {
            super::model(&mut observed, &change);
            let reached: BTreeSet<_> = observed.routes.iter().map(key).collect();
            prop_assert!(stay.is_subset(&reached), "{}", change);
            prop_assert_eq!(led_astray(&observed), None, "{}", change);
        }
    }

    #[test]
    fn a_device_of_somebody_else_and_what_is_on_it_are_never_changed(
        near in routes(), nodes in nodes(), observed in any_observed(), tunnel in any_tunnel(), theirs in 0_u8..3
    ) {
        let (mut seen, _) = tunnel;
        match theirs {
            0 => seen.alias = Some("theirs".to_owned()),
            1 => (seen.alias, seen.mac) = (None, Some(Mac([2, 0, 0, 0, 0, 3]))),
            _ => (seen.kind, seen.vxlan) = (Some("bridge".to_owned()), None),
        }
        let plan = plan(&both(&near, &nodes), &Observed { tunnels: vec![seen], ..observed });
        let about = plan.changes.iter().find(|change| matches!(change, Change::Vxlan { .. }));
        prop_assert!(about.is_none(), "{:?}", about);
        prop_assert_eq!(plan.refusals.len(), usize::from(!nodes.is_empty()));
    }
}

#[test]
fn a_device_is_made_and_filled_before_routes_lead_to_it() {
    let desired = both(&BTreeSet::new(), &BTreeMap::from([(2, 12), (3, 13)]));
    let mut observed = applied(
        &both(&[route(2, 12, None)].into(), &BTreeMap::new()),
        nothing(),
    )
    .1;
    let expected = [
        "ip link add podspan-vxlan4 address 0a:58:0a:f4:01:00 mtu 1450 type vxlan id 112 dstport 8472 \
         local 192.168.1.11 nolearning",
        "ip link set podspan-vxlan4 alias podspan:vxlan addrgenmode none",
        "ip link set podspan-vxlan4 up",
        "sysctl -w net.ipv4.conf.podspan-vxlan4.rp_filter=2",
        "ip address add 10.244.1.0/32 dev podspan-vxlan4",
        "bridge fdb replace 0a:58:0a:f4:02:00 dev podspan-vxlan4 dst 192.168.1.12 self permanent",
        "bridge fdb replace 0a:58:0a:f4:03:00 dev podspan-vxlan4 dst 192.168.1.13 self permanent",
        "ip neigh replace 10.244.2.0 lladdr 0a:58:0a:f4:02:00 dev podspan-vxlan4 nud permanent",
        "ip neigh replace fe80::858:aff:fef4:300 lladdr 0a:58:0a:f4:03:00 dev podspan-vxlan4 nud permanent",
        "ip route replace 10.244.2.0/24 via 10.244.2.0 onlink proto 112 dev podspan-vxlan4",
        "ip route add fd00:10:244:3::/64 via fe80::858:aff:fef4:300 proto 112 dev podspan-vxlan4",
    ];
    assert_eq!(texts(&plan(&desired, &observed)), expected);
    observed = applied(&desired, observed).1;
    let back = both(&[route(2, 12, None)].into(), &BTreeMap::new());
    let expected = [
        "ip route replace 10.244.2.0/24 via 192.168.1.12 proto 112 dev eth0",
        "ip route del fd00:10:244:3::/64 via fe80::858:aff:fef4:300 proto 112 dev podspan-vxlan4",
        "ip link del podspan-vxlan4",
    ];
    let text = texts(&plan(&back, &observed));
    assert_eq!(
        text,
        expected.map(|text| text.replace(
            " dev podspan-vxlan4",
            if text.contains("route del") {
                ""
            } else {
                " dev podspan-vxlan4"
            }
        ))
    );
}

#[test]
fn one_far_node_of_five_thousand_that_moves_is_one_change() {
    let peer = |node: u32, host: u32| {
        let bytes = node.to_be_bytes();
        let mac = Mac([0x0a, 0x58, 10, bytes[2], bytes[3], 0]);
        let ip = std::net::Ipv4Addr::new(10, bytes[2], bytes[3], 0).into();
        let remote = std::net::Ipv4Addr::from_bits(0xac10_0000 | host).into();
        (FdbEntry { mac, remote }, Neighbour { ip, mac })
    };
    let with = |moved: Option<u32>| {
        let mut desired = both(&BTreeSet::new(), &BTreeMap::from([(2, 2)]));
        let peers = (0..5000).map(|n| peer(n, if moved == Some(n) { 6000 } else { n }));
        let (fdb, neighbours) = peers.unzip();
        let tunnel = &mut desired.tunnels[0];
        (tunnel.fdb, tunnel.neighbours) = (fdb, neighbours);
        tunnel.routes.clear();
        desired
    };
    let (_, observed) = applied(&with(None), nothing());
    let text = texts(&plan(&with(Some(77)), &observed));
    let expected =
        "bridge fdb replace 0a:58:0a:00:4d:00 dev podspan-vxlan4 dst 172.16.23.112 self permanent";
    assert_eq!(text, [expected]);
}

#[test]
fn what_a_route_needs_that_stays_for_something_refused_stays_with_it() {
    let nodes = BTreeMap::from([(2, 12), (4, 14), (6, 16), (8, 18)]);
    let (_, observed) = applied(&both(&BTreeSet::new(), &nodes), nothing());
    for keep in [2, 0] {
        let left = nodes.clone().into_iter().take(keep).collect();
        let mut desired = both(&BTreeSet::new(), &left);
        // One refused entry of which the pod CIDR could be read, and one of which the address.
        desired.kept = Kept {
            destinations: vec!["10.244.6.0/24".parse().unwrap()],
            next_hops: vec!["192.168.1.18".parse().unwrap()],
        };
        let mut changed = observed.clone();
        let plan = plan(&desired, &changed);
        let walked = plan.changes.iter().try_for_each(|change| {
            super::model(&mut changed, change);
            match led_astray(&changed) {
                None => ControlFlow::Continue(()),
                Some(astray) => ControlFlow::Break(astray),
            }
        });
        assert_eq!(walked, ControlFlow::Continue(()));
        let there: BTreeSet<_> = changed.routes.iter().map(|r| r.dst.to_string()).collect();
        for kept in ["10.244.6.0/24", "10.244.8.0/24"] {
            assert!(there.contains(kept), "{kept} of {there:?}");
        }
        assert_eq!(there.len(), keep + 2);
    }
}
