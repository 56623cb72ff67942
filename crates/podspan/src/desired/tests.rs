use std::path::Path;

use super::*;
use crate::config::{Operation, PolicyRole, RegistryConfig, VxlanRole};
use crate::log::Format;
use crate::registry::nodes_file;

const NODES: &str = r#"
    [[nodes]]
    name = "node1"
    addresses = ["192.168.1.11", "fd00:192:168:1::11"]
    pod_cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"]
    [[nodes]]
    name = "node2"
    addresses = ["192.168.1.12", "fd00:192:168:1::12"]
    pod_cidrs = ["10.244.2.0/24", "fd00:10:244:2::/64"]
    [[nodes]]
    name = "node3"
    addresses = ["192.168.1.13", "fd00:192:168:1::13"]
    pod_cidrs = ["10.244.3.0/24", "fd00:10:244:3::/64"]
"#;

fn cluster(content: &str) -> Cluster {
    nodes_file::parse(Path::new("nodes.toml"), content)
        .unwrap()
        .0
}

fn node1(routing: Routing) -> Config {
    let role = NodeRole {
        name: "node1".to_owned(),
        routing,
        vxlan: VxlanRole {
            names: ["podspan-vxlan4", "podspan-vxlan6"].map(|name| name.parse().unwrap()),
            vni: 112,
            port: 8472,
            accept: false,
        },
        network: "podspan".parse().unwrap(),
        bridge: "podspan0".parse().unwrap(),
        mtu: None,
        conflist: "/c/10.conflist".into(),
        data_dir: crate::config::DATA_DIR.into(),
        masquerade: true,
        non_masquerade_cidrs: Vec::new(),
        bridge_netfilter: false,
        policy: None,
    };
    config(Role::Node(role))
}

fn config(role: Role) -> Config {
    Config {
        file: "agent.toml".into(),
        proc_sys: crate::config::PROC_SYS.into(),
        registry: RegistryConfig::File("nodes.toml".into()),
        role,
        operation: Operation {
            listen: None,
            log: Format::Text,
            probe: true,
        },
    }
}

fn through(cluster_cidrs: &[&str], routers: &[&str]) -> Config {
    node1(Routing::Router {
        cluster_cidrs: cluster_cidrs
            .iter()
            .map(|cidr| cidr.parse().unwrap())
            .collect(),
        routers: routers.iter().map(|ip| ip.parse().unwrap()).collect(),
    })
}

/// `eth0`, index 2, with this node's two addresses, and what is given besides: net, index, name, up.
fn underlay(more: &[(&str, u32, &str, bool)]) -> Underlay {
    let eth0 = [
        ("192.168.1.11/24", 2, "eth0", true),
        ("fd00:192:168:1::11/64", 2, "eth0", true),
    ];
    let subnets = eth0.iter().chain(more).map(|(net, link, name, up)| Subnet {
        net: net.parse().unwrap(),
        link: *link,
        link_name: (*name).into(),
        mtu: 1500,
        up: *up,
    });
    Underlay {
        subnets: subnets.collect(),
        can_filter: true,
        has_ipv6: true,
    }
}

/// Routes as text with their link, and refusals as text.
fn outcome(config: &Config, nodes: &str, underlay: &Underlay) -> (Vec<String>, Vec<String>) {
    let (desired, refusals) = desired(config, &cluster(nodes), underlay).unwrap();
    let routes = desired.unwrap().routes;
    let routes = routes
        .iter()
        .map(|route| format!("{route} link {}", route.link.unwrap()));
    (
        routes.collect(),
        refusals.iter().map(ToString::to_string).collect(),
    )
}

#[test]
fn direct_is_a_route_per_other_node_and_family() {
    let (routes, refusals) = outcome(&node1(Routing::Direct), NODES, &underlay(&[]));
    let expected = [
        "10.244.2.0/24 via 192.168.1.12 proto 112 link 2",
        "10.244.3.0/24 via 192.168.1.13 proto 112 link 2",
        "fd00:10:244:2::/64 via fd00:192:168:1::12 proto 112 link 2",
        "fd00:10:244:3::/64 via fd00:192:168:1::13 proto 112 link 2",
    ];
    assert_eq!(
        (routes.as_slice(), refusals.len()),
        (&expected.map(str::to_owned)[..], 0)
    );
}

#[test]
fn router_is_a_route_per_cluster_cidr() {
    let config = through(
        &["10.244.0.0/16", "fd00:10:244::/48"],
        &["192.168.1.1", "fd00:192:168:1::1"],
    );
    let (routes, refusals) = outcome(&config, NODES, &underlay(&[]));
    let expected = [
        "10.244.0.0/16 via 192.168.1.1 proto 112 link 2",
        "fd00:10:244::/48 via fd00:192:168:1::1 proto 112 link 2",
    ];
    assert_eq!(
        (routes.as_slice(), refusals.len()),
        (&expected.map(str::to_owned)[..], 0)
    );
}

#[test]
fn the_router_holds_a_route_to_every_node_and_sends_no_redirects() {
    let mut underlay = underlay(&[("10.0.0.9/24", 3, "eth1", true)]);
    for subnet in &mut underlay.subnets {
        let host = subnet
            .net
            .to_string()
            .replace("::11/", "::1/")
            .replace(".11/", ".1/");
        subnet.net = host.parse().unwrap();
    }
    let (desired, refusals) = desired(&config(Role::Router), &cluster(NODES), &underlay).unwrap();
    let desired = desired.unwrap();
    assert_eq!((desired.routes.len(), refusals.len()), (6, 0));
    assert!(desired.bridge.is_none() && desired.conflist.is_none());
    let sysctls: Vec<_> = desired.sysctls.iter().map(ToString::to_string).collect();
    let expected = [
        "net.ipv4.ip_forward=1",
        "net.ipv6.conf.all.forwarding=1",
        "net.ipv4.conf.all.send_redirects=0",
        "net.ipv4.conf.eth0.send_redirects=0",
    ];
    assert_eq!(sysctls, expected);
}

#[test]
fn the_bridge_has_the_first_host_of_each_pod_cidr_the_mac_of_the_first_and_the_uplink_s_mtu() {
    let (desired, _) = desired(&node1(Routing::Direct), &cluster(NODES), &underlay(&[])).unwrap();
    let desired = desired.unwrap();
    let bridge = desired.bridge.unwrap();
    let gateways: Vec<_> = bridge.gateways.iter().map(ToString::to_string).collect();
    assert_eq!(gateways, ["10.244.1.1/24", "fd00:10:244:1::1/64"]);
    assert_eq!(
        (bridge.mac.to_string().as_str(), bridge.mtu),
        ("0a:58:0a:f4:01:01", Some(1500))
    );
    assert!(desired.conflist.unwrap().text.contains("\"mtu\": 1500"));
}

/// A pod sends router advertisements on a network of IPv4 alone, too, unless the bridge has no IPv6 at all.
#[test]
fn the_bridge_takes_no_router_advertisement_wherever_it_has_ipv6() {
    let ipv4_only = NODES.replace(", \"fd00:10:244:1::/64\"", "");
    let of_ipv6 = |has_ipv6, mtu| {
        let mut config = node1(Routing::Direct);
        if let Role::Node(role) = &mut config.role {
            role.mtu = mtu;
        }
        let underlay = Underlay {
            has_ipv6,
            ..underlay(&[])
        };
        let (desired, _) = desired(&config, &cluster(&ipv4_only), &underlay).unwrap();
        let desired = desired.unwrap();
        let sysctls = { desired.sysctls.iter() }.chain(&desired.bridge.as_ref().unwrap().sysctls);
        let of_ipv6 = sysctls.filter(|sysctl| sysctl.key.contains("ipv6"));
        of_ipv6.map(ToString::to_string).collect::<Vec<_>>()
    };
    let refused = ["net.ipv6.conf.podspan0.accept_ra=0"];
    assert_eq!(of_ipv6(true, None), refused);
    assert_eq!(of_ipv6(true, Some(1280)), refused);
    assert_eq!(of_ipv6(true, Some(1279)), [""; 0]);
    assert_eq!(of_ipv6(false, None), [""; 0]);
}

/// Of what is written, and what the kernel can.
#[test]
fn pods_reach_each_other_past_the_filters_of_ip_or_through_the_node_where_anybody_needs_that() {
    let policy = PolicyRole {
        file: Some("/p.json".into()),
        when_unknown_open: false,
        wait_milliseconds: 2000,
        keeps_connections: false,
    };
    let redirects = ["all", "podspan0"].map(|of| format!("net/ipv4/conf/{of}/send_redirects"));
    for (bridge_netfilter, policed, can_filter, expected) in [
        (false, false, true, Between::Bridge),
        (false, false, false, Between::Bridge),
        (true, false, true, Between::Filters),
        (true, true, true, Between::Filters),
        (true, false, false, Between::Node { can_filter: false }),
        (true, true, false, Between::Node { can_filter: false }),
        (false, true, true, Between::Node { can_filter: true }),
        (false, true, false, Between::Node { can_filter: false }),
    ] {
        let mut config = node1(Routing::Direct);
        if let Role::Node(role) = &mut config.role {
            role.bridge_netfilter = bridge_netfilter;
            role.policy = Some(policy.clone()).filter(|_| policed);
        }
        let underlay = Underlay {
            can_filter,
            ..underlay(&[])
        };
        let (desired, _) = desired(&config, &cluster(NODES), &underlay).unwrap();
        let desired = desired.unwrap();
        let bridge = desired.bridge.unwrap();
        assert_eq!(bridge.between, expected);
        let routes = matches!(expected, Between::Node { .. });
        let text = desired.conflist.unwrap().text;
        assert_eq!(text.contains("\"routed\": true"), routes, "{text}");
        let sysctls = desired.sysctls.iter().chain(&bridge.sysctls);
        let sysctls: Vec<_> = sysctls.filter(|wanted| wanted.value == "0").collect();
        for key in &redirects {
            assert_eq!(sysctls.iter().any(|wanted| wanted.key == *key), routes);
        }
    }
}

#[test]
fn a_node_that_the_cluster_does_not_have_changes_nothing() {
    let nodes = NODES.replace("\"node1\"", "\"other\"");
    let (desired, refusals) =
        desired(&node1(Routing::Direct), &cluster(&nodes), &underlay(&[])).unwrap();
    assert!(desired.is_none());
    let expected = "agent.toml: node = \"node1\": nodes.toml has no usable entry of that name; \
                    add one, or set node to a name that is there; nothing is changed";
    assert_eq!(refusals[0].to_string(), expected);
}

#[test]
fn what_cannot_be_followed_is_refused_and_the_rest_goes_on() {
    let direct = node1(Routing::Direct);
    let cidrs = ["10.244.0.0/16", "fd00:10:244::/48"];
    let table = [
        (
            "a next hop on no connected subnet",
            direct.clone(),
            NODES.replace("192.168.1.12", "192.168.2.12"),
            underlay(&[]),
            3,
            "nodes.toml: nodes[1].addresses[0] (node2) = \"192.168.2.12\": is on no connected subnet (192.168.1.0/24); give an address there, or route through a router",
        ),
        (
            "a next hop that is this machine's own address",
            direct.clone(),
            NODES.replace("192.168.1.12", "192.168.1.99"),
            underlay(&[("192.168.1.99/24", 2, "eth0", true)]),
            3,
            "nodes.toml: nodes[1].addresses[0] (node2) = \"192.168.1.99\": is this machine's own address; give the address of that machine",
        ),
        (
            "a next hop behind a link that is down",
            direct.clone(),
            NODES.replace("192.168.1.12", "10.0.0.12"),
            underlay(&[("10.0.0.11/24", 3, "eth1", false)]),
            3,
            "nodes.toml: nodes[1].addresses[0] (node2) = \"10.0.0.12\": is reached by eth1, which is down: ip link set eth1 up",
        ),
        (
            "another node's pod CIDR that collides with the underlay",
            direct.clone(),
            NODES.to_owned(),
            underlay(&[("10.244.2.128/25", 3, "docker0", true)]),
            3,
            "nodes.toml: nodes[1].pod_cidrs[0] (node2) = \"10.244.2.0/24\": collides with 10.244.2.128/25 of docker0 on this machine; give the pods a range of their own",
        ),
        (
            "the own pod CIDR that collides with the underlay",
            direct,
            NODES.to_owned(),
            underlay(&[("10.244.1.5/24", 3, "docker0", true)]),
            4,
            "nodes.toml: nodes[0].pod_cidrs[0] (node1) = \"10.244.1.0/24\": collides with 10.244.1.0/24 of docker0 on this machine; give the pods a range of their own",
        ),
        (
            "no router of the family",
            through(&cidrs, &["192.168.1.1"]),
            NODES.to_owned(),
            underlay(&[]),
            1,
            "agent.toml: cluster_cidrs[1] = \"fd00:10:244::/48\": routers has no address of this family; add one",
        ),
        (
            "a router on no connected subnet",
            through(&cidrs, &["203.0.113.1", "fd00:192:168:1::1"]),
            NODES.to_owned(),
            underlay(&[]),
            1,
            "agent.toml: routers[0] = \"203.0.113.1\": is on no connected subnet (192.168.1.0/24); give an address there, or route through a router",
        ),
        (
            "a pod CIDR outside of the cluster CIDRs",
            through(&cidrs, &["192.168.1.1", "fd00:192:168:1::1"]),
            NODES.replace("10.244.3.0", "10.245.3.0"),
            underlay(&[]),
            2,
            "nodes.toml: nodes[2].pod_cidrs[0] (node3) = \"10.245.3.0/24\": lies in none of the cluster_cidrs of agent.toml; widen them, or give the node another",
        ),
    ];
    for (what, config, nodes, underlay, routes, expected) in table {
        let (made, refusals) = outcome(&config, &nodes, &underlay);
        assert_eq!(
            (refusals, made.len()),
            (vec![expected.to_owned()], routes),
            "{what}"
        );
    }
}

#[test]
fn without_an_mtu_there_is_no_conflist_yet() {
    let nodes = NODES
        .replace("192.168.1.11", "192.168.1.10")
        .replace("1::11", "1::10");
    let (desired, refusals) =
        desired(&node1(Routing::Direct), &cluster(&nodes), &underlay(&[])).unwrap();
    let desired = desired.unwrap();
    assert!(desired.conflist.is_none() && desired.bridge.unwrap().mtu.is_none());
    assert_eq!(desired.routes.len(), 4);
    let expected = "nodes.toml: nodes[0].addresses[0] (node1) = \"192.168.1.10\": no link of this node but lo has it, \
                    so the MTU is not known; correct it, or set mtu in agent.toml";
    assert_eq!(refusals[0].to_string(), expected);
}

#[test]
fn an_mtu_too_small_for_the_pods_ipv6_changes_nothing_and_is_told() {
    let of = |change: fn(&mut Subnet)| {
        let mut underlay = underlay(&[]);
        underlay.subnets.iter_mut().for_each(change);
        let (desired, refusals) =
            desired(&node1(Routing::Auto), &cluster(NODES), &underlay).unwrap();
        let desired = desired.unwrap();
        assert_eq!(
            desired.conflist.is_some(),
            desired.bridge.as_ref().unwrap().mtu.is_some()
        );
        let refusals: Vec<_> = refusals.iter().map(ToString::to_string).collect();
        (desired.bridge.unwrap().mtu, refusals)
    };
    assert_eq!(of(|subnet| subnet.mtu = 1330), (Some(1280), vec![]));
    let (mtu, refusals) = of(|subnet| subnet.mtu = 1329);
    assert_eq!(mtu, None);
    let expected = "its link has an MTU of 1329, and the pods' IPv6 needs 1330 of it; raise it \
                    (ip link set dev … mtu 1330), or set mtu in agent.toml";
    assert!(refusals[0].ends_with(expected), "{refusals:?}");
    // The loopback's says nothing of the way.
    let (mtu, refusals) = of(|subnet| {
        subnet.link_name = "lo".into();
        subnet.mtu = 65536;
    });
    assert_eq!(mtu, None);
    assert!(refusals[0].contains("the MTU is not known"), "{refusals:?}");
}

#[test]
fn what_runs_for_a_refused_entry_is_kept() {
    let twin = "[[nodes]]\nname = 'twin'\naddresses = ['192.168.1.12', 'fd00:192:168:1::14']\n\
                pod_cidrs = ['10.244.9.0/24']";
    let (desired, _) = desired(
        &node1(Routing::Direct),
        &cluster(&format!("{NODES}{twin}")),
        &underlay(&[]),
    )
    .unwrap();
    let kept = desired.unwrap().kept;
    let route = |dst: &str, next_hop: &str| Route {
        dst: dst.parse().unwrap(),
        next_hop: Some(next_hop.parse().unwrap()),
        link: Some(2),
        protocol: RouteProtocol::PODSPAN,
        options: RouteOptions::default(),
    };
    assert!(
        kept.has_route(&route("10.244.9.0/24", "192.168.1.77")),
        "its pod CIDR"
    );
    assert!(
        kept.has_route(&route("fd00:77::/64", "fd00:192:168:1::14")),
        "its own address"
    );
    assert!(
        !kept.has_route(&route("10.244.77.0/24", "192.168.1.12")),
        "another node's address"
    );
}

/// `node1` with that routing on the underlay of [`NODES`], and what becomes of these nodes.
fn tunnels(config: &Config, nodes: &str) -> (Vec<String>, Vec<Tunnel>, Vec<String>) {
    let (desired, refusals) = desired(config, &cluster(nodes), &underlay(&[])).unwrap();
    let desired = desired.unwrap();
    let routes = desired.routes.iter().map(ToString::to_string);
    let refusals = refusals.iter().map(ToString::to_string);
    (routes.collect(), desired.tunnels, refusals.collect())
}

fn texts(list: &[impl std::fmt::Debug + Clone], text: impl Fn(&str) -> String) -> Vec<String> {
    list.iter().map(|item| text(&format!("{item:?}"))).collect()
}

#[test]
fn vxlan_is_one_device_over_ipv4_with_all_peers_behind_it() {
    let (direct, tunnels, refusals) = tunnels(&node1(Routing::Vxlan), NODES);
    assert_eq!((direct.len(), refusals.len()), (0, 0), "{refusals:?}");
    let [tunnel] = tunnels.as_slice() else {
        panic!("{tunnels:?}")
    };
    assert_eq!(tunnel.name.as_str(), "podspan-vxlan4");
    assert_eq!(
        (tunnel.mac.to_string().as_str(), tunnel.mtu),
        ("0a:58:0a:f4:01:00", 1450)
    );
    assert_eq!(
        tunnel.vxlan.to_string(),
        "id 112 dstport 8472 local 192.168.1.11 nolearning"
    );
    assert_eq!(tunnel.address, Some("10.244.1.0/32".parse().unwrap()));
    let sysctls: Vec<_> = tunnel.sysctls.iter().map(ToString::to_string).collect();
    let expected = [
        "4.conf.podspan-vxlan4.rp_filter=2",
        "6.conf.podspan-vxlan4.disable_ipv6=0",
        "6.conf.podspan-vxlan4.accept_ra=0",
    ];
    assert_eq!(sysctls, expected.map(|key| format!("net.ipv{key}")));
    let routes: Vec<_> = tunnel.routes.iter().map(ToString::to_string).collect();
    let expected = [
        "10.244.2.0/24 via 10.244.2.0 onlink src 10.244.1.1 proto 112",
        "10.244.3.0/24 via 10.244.3.0 onlink src 10.244.1.1 proto 112",
        "fd00:10:244:2::/64 via fe80::858:aff:fef4:200 src fd00:10:244:1::1 proto 112",
        "fd00:10:244:3::/64 via fe80::858:aff:fef4:300 src fd00:10:244:1::1 proto 112",
    ];
    assert_eq!(routes, expected);
    let neighbours = |n: &podspan_kernel::Neighbour| format!("{} {}", n.ip, n.mac);
    let neighbours: Vec<_> = tunnel.neighbours.iter().map(neighbours).collect();
    let expected = [
        "10.244.2.0 0a:58:0a:f4:02:00",
        "10.244.3.0 0a:58:0a:f4:03:00",
        "fe80::858:aff:fef4:200 0a:58:0a:f4:02:00",
        "fe80::858:aff:fef4:300 0a:58:0a:f4:03:00",
    ];
    assert_eq!(neighbours, expected);
    let entry = |entry: &podspan_kernel::FdbEntry| format!("{} {}", entry.mac, entry.remote);
    let fdb: Vec<_> = tunnel.fdb.iter().map(entry).collect();
    let expected = [
        "0a:58:0a:f4:02:00 192.168.1.12",
        "0a:58:0a:f4:03:00 192.168.1.13",
    ];
    assert_eq!(fdb, expected);
    // What the peer says of itself is what we say of the peer.
    let peer = NODES.replace("node1", "node9").replace("node2", "node1");
    let subnet = |net: &str| Subnet {
        net: net.parse().unwrap(),
        link: 2,
        link_name: "eth0".into(),
        mtu: 1500,
        up: true,
    };
    let underlay = Underlay {
        subnets: vec![subnet("192.168.1.12/24"), subnet("fd00:192:168:1::12/64")],
        can_filter: true,
        has_ipv6: true,
    };
    let (desired, _) = desired(&node1(Routing::Vxlan), &cluster(&peer), &underlay).unwrap();
    let peer = &desired.unwrap().tunnels[0];
    assert_eq!(peer.mac.to_string(), "0a:58:0a:f4:02:00");
    assert_eq!(peer.vxlan.local, Some("192.168.1.12".parse().unwrap()));
    assert_eq!(tunnel.fdb[0].mac, peer.mac);
}

#[test]
fn auto_is_direct_to_what_is_on_a_connected_subnet_and_vxlan_to_the_rest_by_family() {
    let (direct, none, _) = tunnels(&node1(Routing::Auto), NODES);
    let (expected, _) = outcome(&node1(Routing::Direct), NODES, &underlay(&[]));
    let without_link = |route: &String| route.replace(" link 2", "");
    assert_eq!(
        direct,
        expected.iter().map(without_link).collect::<Vec<_>>()
    );
    assert!(none.is_empty(), "no device where nobody is far: {none:?}");

    let far = NODES.replace("192.168.1.12", "192.168.2.12");
    let (direct, tunnels, refusals) = tunnels(&node1(Routing::Auto), &far);
    assert_eq!(refusals, [""; 0]);
    let expected = [
        "10.244.3.0/24 via 192.168.1.13 proto 112",
        "fd00:10:244:2::/64 via fd00:192:168:1::12 proto 112",
        "fd00:10:244:3::/64 via fd00:192:168:1::13 proto 112",
    ];
    assert_eq!(direct, expected);
    let routes: Vec<_> = tunnels[0].routes.iter().map(ToString::to_string).collect();
    let expected = ["10.244.2.0/24 via 10.244.2.0 onlink src 10.244.1.1 proto 112"];
    assert_eq!(
        (routes.as_slice(), tunnels.len()),
        (&expected.map(str::to_owned)[..], 1)
    );
}

#[test]
fn peers_without_ipv4_are_behind_a_device_over_ipv6() {
    let nodes = NODES
        .replace("\"192.168.1.13\", ", "")
        .replace("\"10.244.3.0/24\", ", "");
    let (_, tunnels, refusals) = tunnels(&node1(Routing::Vxlan), &nodes);
    assert_eq!(refusals, [""; 0]);
    let seen = texts(&tunnels, |text| text.contains("podspan-vxlan6").to_string());
    assert_eq!(seen, ["false", "true"]);
    let six = &tunnels[1];
    assert_eq!((six.mtu, six.fdb.len(), six.routes.len()), (1430, 1, 1));
    let mac = Mac::of_ip("fd00:10:244:3::".parse().unwrap());
    assert_eq!(six.fdb[0].mac, mac);
    assert_eq!(six.neighbours[0].ip, IpAddr::from(mac.link_local()));
}

#[test]
fn the_mtu_leaves_room_for_vxlan_whoever_is_near_unless_it_is_given() {
    let mtu = |config: &Config, nodes: &str| {
        let (desired, _) = desired(config, &cluster(nodes), &underlay(&[])).unwrap();
        let desired = desired.unwrap();
        let devices: Vec<_> = desired.tunnels.iter().map(|tunnel| tunnel.mtu).collect();
        (desired.bridge.unwrap().mtu, devices)
    };
    assert_eq!(mtu(&node1(Routing::Direct), NODES), (Some(1500), vec![]));
    assert_eq!(mtu(&node1(Routing::Auto), NODES), (Some(1450), vec![]));
    assert_eq!(mtu(&node1(Routing::Vxlan), NODES), (Some(1450), vec![1450]));
    let six = NODES
        .replace("\"192.168.1.1", "\"fd00:192:168:1::1")
        .replace("\"10.244.", "\"fd00:10:244:");
    let six: String = six
        .lines()
        .map(|line| match line.split_once(", \"") {
            Some((before, behind)) if line.contains("addresses") => {
                let key = before.split('[').next().unwrap();
                format!("{key}[\"{behind}\n")
            }
            Some((before, behind)) => {
                let key = before.split('[').next().unwrap();
                format!("{key}[\"{behind}\n")
            }
            None => format!("{line}\n"),
        })
        .collect();
    assert_eq!(mtu(&node1(Routing::Vxlan), &six), (Some(1430), vec![1430]));
    let mut given = node1(Routing::Vxlan);
    if let Role::Node(role) = &mut given.role {
        role.mtu = Some(1300);
    }
    assert_eq!(mtu(&given, NODES), (Some(1300), vec![1300]));
}

#[test]
fn a_node_that_is_to_accept_has_the_device_whatever_its_routing() {
    for routing in [Routing::Auto, Routing::Direct] {
        let mut config = node1(routing);
        if let Role::Node(role) = &mut config.role {
            role.vxlan.accept = true;
        }
        let (direct, tunnels, _) = tunnels(&config, NODES);
        assert_eq!(direct.len(), 4);
        let [tunnel] = tunnels.as_slice() else {
            panic!("{tunnels:?}")
        };
        assert_eq!(tunnel.name.as_str(), "podspan-vxlan4");
        assert!(tunnel.routes.is_empty() && tunnel.fdb.is_empty());
    }
    let alone = NODES
        .split("[[nodes]]")
        .take(2)
        .collect::<Vec<_>>()
        .join("[[nodes]]");
    let (_, tunnels, _) = tunnels(&node1(Routing::Vxlan), &alone);
    assert!(tunnels.is_empty(), "nobody to hear from: {tunnels:?}");
}

#[test]
fn what_vxlan_cannot_follow_is_refused_and_the_rest_goes_on() {
    let vxlan = node1(Routing::Vxlan);
    let table = [
        (
            "no family in common",
            NODES
                .replace("\"192.168.1.11\", ", "")
                .replace("\"10.244.1.0/24\", ", "")
                .replace(", \"fd00:192:168:1::12\"", "")
                .replace(", \"fd00:10:244:2::/64\"", ""),
            vec![
                "nodes.toml: nodes[1].addresses[0] (node2) = \"192.168.1.12\": is of another family than this node's addresses; give both one of the same",
            ],
            2,
        ),
        (
            "an address of this machine",
            NODES.replace("192.168.1.12", "192.168.1.99"),
            vec![
                "nodes.toml: nodes[1].addresses[0] (node2) = \"192.168.1.99\": is this machine's own address; give the address of that machine",
            ],
            2,
        ),
        (
            "a pod CIDR that collides with the underlay",
            NODES.replace("10.244.2.0/24", "192.168.1.0/25"),
            vec![
                "nodes.toml: nodes[1].pod_cidrs[0] (node2) = \"192.168.1.0/25\": collides with 192.168.1.0/24 of eth0 on this machine; give the pods a range of their own",
            ],
            3,
        ),
    ];
    for (what, nodes, expected, routes) in table {
        let underlay = underlay(&[("192.168.1.99/24", 2, "eth0", true)]);
        let (desired, refusals) = desired(&vxlan, &cluster(&nodes), &underlay).unwrap();
        let desired = desired.unwrap();
        let refusals: Vec<_> = refusals.iter().map(ToString::to_string).collect();
        assert_eq!(refusals, expected, "{what}");
        let made: usize = desired
            .tunnels
            .iter()
            .map(|tunnel| tunnel.routes.len())
            .sum();
        assert_eq!(made, routes, "{what}");
        assert!(!desired.kept.destinations.is_empty(), "{what}");
    }
}
