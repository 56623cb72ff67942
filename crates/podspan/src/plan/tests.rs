//! The laws of `plan`, on a model of the kernel that does what the changes say.

use std::collections::BTreeSet;

use podspan_cni::attachment::MARK;
use podspan_kernel::{RouteOptions, RouteProtocol};
use proptest::prelude::*;

use super::*;
use crate::desired::{ConflistFile, Kept};
use crate::observe::ObservedPort;

mod tunnels;

fn bridge_name() -> IfName {
    "podspan0".parse().unwrap()
}

fn mac(last: u8) -> Mac {
    Mac([0x0a, 0x58, 10, 244, last, 1])
}

fn route(dst: u8, next_hop: u8, metric: Option<u32>) -> Route {
    let (dst, next_hop) = if dst.is_multiple_of(2) {
        (
            format!("10.244.{dst}.0/24"),
            format!("192.168.1.{next_hop}"),
        )
    } else {
        (
            format!("fd00:10:244:{dst:x}::/64"),
            format!("fd00:192::{next_hop:x}"),
        )
    };
    Route {
        dst: dst.parse().unwrap(),
        next_hop: Some(next_hop.parse().unwrap()),
        link: Some(2),
        protocol: RouteProtocol::PODSPAN,
        options: RouteOptions {
            metric,
            ..RouteOptions::default()
        },
    }
}

fn sysctl(key: &str, value: &'static str) -> Sysctl {
    Sysctl {
        key: key.to_owned(),
        value,
    }
}

fn port(number: u8, isolated: bool) -> ObservedPort {
    ObservedPort {
        name: format!("pod{number}").parse().unwrap(),
        isolated,
    }
}

fn gateway(node: u8) -> IpNet {
    format!("10.244.{node}.1/24").parse().unwrap()
}

fn desired(node: u8, routes: &BTreeSet<Route>) -> Desired {
    Desired {
        config_file: "agent.toml".into(),
        sysctls: vec![sysctl("net/ipv4/ip_forward", "1")],
        bridge: Some(Bridge {
            name: bridge_name(),
            mac: mac(node),
            mtu: Some(1500),
            gateways: vec![gateway(node), "fd00:10:244:1::1/64".parse().unwrap()],
            between: Between::Bridge,
            sysctls: vec![sysctl("net/ipv6/conf/podspan0/accept_dad", "0")],
        }),
        tunnels: Vec::new(),
        routes: routes.iter().cloned().collect(),
        kept: Kept::default(),
        masquerade: None,
        forwarding: None,
        conflist: Some(ConflistFile {
            path: "/c".into(),
            text: "ours".to_owned(),
        }),
    }
}

fn nothing() -> Observed {
    Observed {
        links: BTreeMap::from([(2, "eth0".into())]),
        bridge: None,
        tunnels: Vec::new(),
        routes: Vec::new(),
        sysctls: BTreeMap::new(),
        allocations: Some(Vec::new()),
        conflist: Found::Absent,
        filter: Ok(Arc::default()),
    }
}

/// What the kernel and the file system make of a change.
fn model(observed: &mut Observed, change: &Change) {
    let same = |a: &Route, b: &Route| key(a) == key(b);
    match change {
        Change::SetSysctl(sysctl) => {
            let of_bridge = sysctl.key.contains("podspan0");
            assert!(
                !of_bridge || observed.bridge.is_some(),
                "{change} before the bridge"
            );
            observed
                .sysctls
                .insert(sysctl.key.clone(), sysctl.value.to_owned());
        }
        Change::AddBridge { mac, .. } => {
            assert!(observed.bridge.is_none(), "{change} twice");
            observed.bridge = Some(ObservedBridge {
                kind: Some("bridge".to_owned()),
                mac: Some(*mac),
                mtu: 1500,
                up: true,
                ..ObservedBridge::default()
            });
        }
        Change::SetBridge { change, .. } => {
            let bridge = observed.bridge.as_mut().unwrap();
            bridge.alias = change.alias.map(str::to_owned).or(bridge.alias.take());
            bridge.mac = change.mac.or(bridge.mac);
            bridge.netfilter = change.netfilter.or(bridge.netfilter);
            bridge.mtu = change.mtu.unwrap_or(bridge.mtu);
            bridge.up |= change.up;
        }
        Change::SetPort { name, isolated } => {
            let mut ports = observed.bridge.as_mut().unwrap().ports.iter_mut();
            ports.find(|port| port.name == *name).unwrap().isolated = *isolated;
        }
        Change::AddAddress { net, .. } => observed.bridge.as_mut().unwrap().addresses.push(*net),
        Change::RemoveAddress { net, .. } => {
            observed
                .bridge
                .as_mut()
                .unwrap()
                .addresses
                .retain(|have| have != net);
        }
        Change::AddRoute(named) => {
            let route = with_link(observed, named);
            assert!(
                !observed.routes.iter().any(|have| same(have, &route)),
                "{change}: exists"
            );
            observed.routes.push(route);
        }
        Change::ReplaceRoute(named) => {
            let route = with_link(observed, named);
            let there = observed.routes.iter_mut().find(|have| same(have, &route));
            *there.unwrap_or_else(|| panic!("{change}: nothing to replace")) = route;
        }
        Change::RemoveRoute(NamedRoute { route, .. }) => {
            let at = observed
                .routes
                .iter()
                .position(|have| have == route)
                .unwrap();
            observed.routes.remove(at);
        }
        Change::SetMasquerade(_) | Change::SetForwarding(_) => {
            panic!("{change}: nothing is filtered here")
        }
        Change::WriteConflist { text, .. } => observed.conflist = Found::Ours(text.clone()),
        of_tunnel => tunnels::model(observed, of_tunnel),
    }
}

/// A route's link is that of its name, where the device was only just made.
fn with_link(observed: &Observed, named: &NamedRoute) -> Route {
    let made = || {
        let name = named.link_name.as_deref().unwrap();
        let mut tunnels = observed.tunnels.iter();
        let tunnel = tunnels.find(|tunnel| tunnel.name.as_str() == name);
        tunnel
            .unwrap_or_else(|| panic!("a route through {name}, which is not there"))
            .index
    };
    Route {
        link: Some(named.route.link.unwrap_or_else(made)),
        ..named.route.clone()
    }
}

fn applied(desired: &Desired, mut observed: Observed) -> (Vec<Change>, Observed) {
    let changes = plan(desired, &observed).changes;
    changes
        .iter()
        .for_each(|change| model(&mut observed, change));
    (changes, observed)
}

fn texts(plan: &Plan) -> Vec<String> {
    plan.changes.iter().map(ToString::to_string).collect()
}

prop_compose! {
    fn routes()(
        parts in prop::collection::btree_map((0_u8..20, prop::option::of(1_u32..3)), 2_u8..9, 0..30)
    ) -> BTreeSet<Route> {
        parts.into_iter().map(|((dst, metric), next_hop)| route(dst, next_hop, metric)).collect()
    }
}

prop_compose! {
    /// Of any state that our own object can be in, and with a second route of ours to a destination, as by `append`.
    fn any_observed()(
        routes in prop::collection::btree_set((0_u8..20, 2_u8..9, prop::option::of(1_u32..3)), 0..30),
        bridge in prop::option::of((any::<bool>(), any::<bool>(), 1_u8..4, prop::collection::btree_set(1_u8..6, 0..4))),
        sysctl in prop::option::of(any::<bool>()),
        conflist in 0_usize..3,
        allocation in prop::option::of(1_u8..6),
    ) -> Observed {
        Observed {
            routes: routes.into_iter().map(|(dst, hop, metric)| route(dst, hop, metric)).collect(),
            bridge: bridge.map(|(up, mtu, node, gateways)| ObservedBridge {
                kind: Some("bridge".to_owned()),
                alias: Some(BRIDGE_ALIAS.to_owned()),
                mac: Some(mac(node)),
                mtu: if mtu { 1500 } else { 1400 },
                up,
                addresses: gateways.into_iter().map(gateway).collect(),
                netfilter: Some(mtu),
                ports: vec![port(1, up), port(2, mtu)],
            }),
            sysctls: sysctl.map(|on| ("net/ipv4/ip_forward".to_owned(), u8::from(on).to_string())).into_iter().collect(),
            conflist: [Found::Absent, Found::Ours("ours".to_owned()), Found::Ours("old".to_owned())][conflist].clone(),
            allocations: Some(allocation.map(|node| format!("10.244.{node}.7").parse().unwrap()).into_iter().collect()),
            ..nothing()
        }
    }
}

proptest! {
    #[test]
    fn applying_a_plan_gives_what_is_desired_and_then_nothing_is_left_to_do(
        node in 1_u8..4, routes in routes(), observed in any_observed()
    ) {
        let desired = desired(node, &routes);
        let (_, after) = applied(&desired, observed);
        prop_assert_eq!(texts(&plan(&desired, &after)), Vec::<String>::new());
        let have: BTreeSet<_> = after.routes.into_iter().collect();
        prop_assert_eq!(have, routes);
        let bridge = after.bridge.unwrap();
        prop_assert!(desired.bridge.unwrap().gateways.iter().all(|net| bridge.addresses.contains(net)));
        prop_assert_eq!(after.conflist, Found::Ours("ours".to_owned()));
    }

    #[test]
    fn nothing_is_removed_before_all_that_replaces_it_is_there(
        node in 1_u8..4, routes in routes(), observed in any_observed()
    ) {
        let changes = plan(&desired(node, &routes), &observed).changes;
        let is_removal = |change: &Change| {
            matches!(change, Change::RemoveRoute(_) | Change::RemoveAddress { .. })
        };
        let rest = changes.iter().skip_while(|change| !is_removal(change));
        prop_assert!(rest.clone().all(|c| is_removal(c) || matches!(c, Change::WriteConflist { .. })), "{:?}", changes);
    }

    #[test]
    fn only_what_bears_our_mark_is_ever_changed(
        node in 1_u8..4, routes in routes(), observed in any_observed()
    ) {
        for change in plan(&desired(node, &routes), &observed).changes {
            match change {
                Change::AddRoute(named) | Change::ReplaceRoute(named) | Change::RemoveRoute(named) => {
                    prop_assert_eq!(named.route.protocol, RouteProtocol::PODSPAN);
                }
                Change::AddBridge { name, .. } | Change::SetBridge { name, .. } => {
                    prop_assert_eq!(name, bridge_name());
                    let alias = observed.bridge.as_ref().map(|seen| seen.alias.clone().unwrap_or_default());
                    prop_assert!(alias.is_none_or(|alias| alias.starts_with(MARK)));
                }
                _ => {}
            }
        }
    }

    #[test]
    fn a_destination_that_stays_is_reached_at_every_moment(
        node in 1_u8..4, before in routes(), after in routes()
    ) {
        let (_, mut observed) = applied(&desired(node, &before), nothing());
        let destinations = |routes: &BTreeSet<Route>| routes.iter().map(key).collect::<BTreeSet<_>>();
        let stay: BTreeSet<_> = destinations(&before).intersection(&destinations(&after)).copied().collect();
        for change in plan(&desired(node, &after), &observed).changes {
            model(&mut observed, &change);
            let reached: BTreeSet<_> = observed.routes.iter().map(key).collect();
            prop_assert!(stay.is_subset(&reached));
        }
    }
}

#[test]
fn on_an_empty_machine_everything_is_made_in_order_and_printed_as_one_would_type_it() {
    let routes = [route(2, 12, None)].into();
    let expected = [
        "sysctl -w net.ipv4.ip_forward=1",
        "ip link add podspan0 up address 0a:58:0a:f4:01:01 type bridge",
        "ip link set podspan0 mtu 1500 alias podspan:bridge",
        "sysctl -w net.ipv6.conf.podspan0.accept_dad=0",
        "ip address add 10.244.1.1/24 dev podspan0",
        "ip address add fd00:10:244:1::1/64 dev podspan0 nodad",
        "ip route add 10.244.2.0/24 via 192.168.1.12 proto 112 dev eth0",
        "write /c",
    ];
    assert_eq!(texts(&plan(&desired(1, &routes), &nothing())), expected);
    assert_eq!(
        sysctl("net/ipv4/conf/eth0.7/send_redirects", "0").to_string(),
        "net/ipv4/conf/eth0.7/send_redirects=0"
    );
}

#[test]
fn one_node_of_five_thousand_that_changes_is_one_change() {
    let far = |node: u32, hop: u32| Route {
        dst: format!("10.{}.{}.0/24", node >> 8, node & 255)
            .parse()
            .unwrap(),
        next_hop: Some(std::net::Ipv4Addr::from_bits(0xac10_0000 | hop).into()),
        ..route(2, 2, None)
    };
    let mut routes: BTreeSet<_> = (0..5000).map(|node| far(node, node)).collect();
    let (changes, observed) = applied(&desired(1, &routes), nothing());
    assert!(changes.len() > 5000);
    routes.remove(&far(77, 77));
    routes.insert(far(77, 6000));
    let text = texts(&plan(&desired(1, &routes), &observed));
    assert_eq!(
        text,
        ["ip route replace 10.0.77.0/24 via 172.16.23.112 proto 112 dev eth0"]
    );
    routes.remove(&far(77, 6000));
    let text = texts(&plan(&desired(1, &routes), &observed));
    assert_eq!(
        text,
        ["ip route del 10.0.77.0/24 via 172.16.0.77 proto 112 dev eth0"]
    );
}

/// A machine that is right, and what is changed about its bridge.
fn with_bridge(change: impl FnOnce(&mut ObservedBridge)) -> Observed {
    let (_, mut observed) = applied(&desired(1, &BTreeSet::new()), nothing());
    change(observed.bridge.as_mut().unwrap());
    observed
}

fn plan_on(observed: &Observed) -> Plan {
    plan(&desired(1, &BTreeSet::new()), observed)
}

#[test]
fn a_bridge_that_a_kill_left_unmarked_is_marked() {
    let observed = with_bridge(|bridge| bridge.alias = None);
    assert_eq!(
        texts(&plan_on(&observed)),
        ["ip link set podspan0 alias podspan:bridge"]
    );
}

#[test]
fn a_mac_address_that_somebody_else_set_is_corrected() {
    let observed = with_bridge(|bridge| bridge.mac = Some(Mac([2, 0, 0, 0, 0, 1])));
    assert_eq!(
        texts(&plan_on(&observed)),
        ["ip link set podspan0 address 0a:58:0a:f4:01:01"]
    );
}

#[test]
fn our_bridge_calls_the_filters_of_ip_where_that_is_wanted_and_the_kernel_can() {
    let mut wanted = desired(1, &BTreeSet::new());
    for (seen, on, expected) in [
        (
            Some(false),
            true,
            &["ip link set podspan0 type bridge nf_call_iptables 1 nf_call_ip6tables 1"][..],
        ),
        (
            Some(true),
            false,
            &["ip link set podspan0 type bridge nf_call_iptables 0 nf_call_ip6tables 0"][..],
        ),
        (Some(true), true, &[]),
        (None, true, &[]),
    ] {
        let between = if on {
            Between::Filters
        } else {
            Between::Bridge
        };
        wanted.bridge.as_mut().unwrap().between = between;
        let observed = with_bridge(|bridge| bridge.netfilter = seen);
        assert_eq!(texts(&plan(&wanted, &observed)), expected);
    }
}

/// Nobody sends past policy, at no moment: the filters are called before ports are opened.
#[test]
fn ports_are_isolated_where_the_filters_of_ip_cannot_be_had_and_called_as_long_as_one_is_not() {
    let [calls, does_not] =
        [1, 0].map(|on| format!("type bridge nf_call_iptables {on} nf_call_ip6tables {on}"));
    let bridge = |does: &str| format!("ip link set podspan0 {does}");
    let is = |number: u8, isolated: &str| {
        format!("ip link set pod{number} type bridge_slave isolated {isolated}")
    };
    let by_node = |can_filter| Between::Node { can_filter };
    for (between, ports, called, expected) in [
        (by_node(false), [false, true], false, vec![is(1, "on")]),
        (by_node(true), [false, true], false, vec![bridge(&calls)]),
        (by_node(true), [false, true], true, vec![]),
        (by_node(true), [true, true], true, vec![bridge(&does_not)]),
        (
            Between::Filters,
            [true, false],
            false,
            vec![bridge(&calls), is(1, "off")],
        ),
        (
            Between::Bridge,
            [false, true],
            true,
            vec![bridge(&does_not), is(2, "off")],
        ),
    ] {
        let observed = with_bridge(|bridge| {
            bridge.netfilter = Some(called);
            bridge.ports = [1, 2]
                .into_iter()
                .zip(ports)
                .map(|(n, on)| port(n, on))
                .collect();
        });
        let mut wanted = desired(1, &BTreeSet::new());
        wanted.bridge.as_mut().unwrap().between = between;
        assert_eq!(texts(&plan(&wanted, &observed)), expected, "{between:?}");
    }
}

#[test]
fn the_mac_address_of_an_earlier_gateway_stays_while_there_are_pods() {
    let mut observed = with_bridge(|bridge| bridge.mac = Some(mac(9)));
    observed.allocations = Some(vec!["10.244.9.7".parse().unwrap()]);
    assert_eq!(texts(&plan_on(&observed)), [""; 0]);
    observed.allocations = Some(Vec::new());
    assert_eq!(
        texts(&plan_on(&observed)),
        ["ip link set podspan0 address 0a:58:0a:f4:01:01"]
    );
}

#[test]
fn a_stale_gateway_goes_when_its_last_pod_has_gone() {
    let mut observed = with_bridge(|bridge| bridge.addresses.push(gateway(9)));
    for in_use in [
        Some(vec![
            "10.244.9.7".parse().unwrap(),
            "10.244.1.3".parse().unwrap(),
        ]),
        None,
    ] {
        observed.allocations = in_use;
        assert_eq!(texts(&plan_on(&observed)), [""; 0]);
    }
    observed.allocations = Some(vec!["10.244.1.3".parse().unwrap()]);
    assert_eq!(
        texts(&plan_on(&observed)),
        ["ip address del 10.244.9.1/24 dev podspan0"]
    );
}

#[test]
fn a_bridge_of_somebody_else_gets_addresses_and_nothing_else() {
    for alias in [None, Some("theirs".to_owned())] {
        let observed = with_bridge(|bridge| {
            *bridge = ObservedBridge {
                alias,
                mac: Some(Mac([2, 0, 0, 0, 0, 1])),
                up: false,
                mtu: 9000,
                addresses: vec!["192.0.2.1/24".parse().unwrap()],
                kind: bridge.kind.take(),
                netfilter: Some(true),
                ports: vec![port(1, true)],
            };
        });
        let expected = [
            "ip address add 10.244.1.1/24 dev podspan0",
            "ip address add fd00:10:244:1::1/64 dev podspan0 nodad",
        ];
        assert_eq!(texts(&plan_on(&observed)), expected);
    }
}

#[test]
fn a_link_that_is_no_bridge_is_refused_and_no_conflist_is_written() {
    let mut observed = nothing();
    observed.bridge = Some(ObservedBridge {
        kind: Some("veth".to_owned()),
        ..ObservedBridge::default()
    });
    let routes = [route(2, 12, None)].into();
    let plan = plan(&desired(1, &routes), &observed);
    let expected = [
        "sysctl -w net.ipv4.ip_forward=1",
        "ip route add 10.244.2.0/24 via 192.168.1.12 proto 112 dev eth0",
    ];
    assert_eq!(texts(&plan), expected);
    let refusal = "agent.toml: bridge = \"podspan0\": a veth has this name; name a bridge, or a link that does not exist yet";
    assert_eq!(plan.refusals[0].to_string(), refusal);
}

#[test]
fn a_conflist_of_somebody_else_is_refused() {
    let mut observed = with_bridge(|_| {});
    observed.conflist = Found::Foreign("it is not JSON".to_owned());
    let plan = plan_on(&observed);
    assert!(plan.changes.is_empty());
    let refusal = "agent.toml: conflist = \"/c\": a file that is not ours is there (it is not JSON); \
                   move it away, or set conflist to another path";
    assert_eq!(plan.refusals[0].to_string(), refusal);
}

#[test]
fn routes_and_gateways_of_refused_values_are_not_removed() {
    let mut observed = with_bridge(|bridge| bridge.addresses.push(gateway(9)));
    observed.routes = vec![route(4, 12, None), route(6, 13, None), route(8, 14, None)];
    let mut desired = desired(1, &BTreeSet::new());
    desired.kept = Kept {
        destinations: vec![
            "10.244.4.0/24".parse().unwrap(),
            "10.244.9.0/24".parse().unwrap(),
        ],
        next_hops: vec!["192.168.1.13".parse().unwrap()],
    };
    let text = texts(&plan(&desired, &observed));
    assert_eq!(
        text,
        ["ip route del 10.244.8.0/24 via 192.168.1.14 proto 112 dev eth0"]
    );
}
