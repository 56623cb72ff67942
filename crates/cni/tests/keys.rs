//! The keys of the configuration, and what is asked for one pod, by what they do on the real kernel.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use harness::{Node, Pod, outside, run};
use serde_json::json;

#[test]
fn routes_dns_and_mtu_of_the_configuration_reach_the_pod_and_the_result() {
    let (node, pod) = (Node::new(), Pod::new());
    let resolv = node.data.path().join("resolv.conf");
    std::fs::write(&resolv, "nameserver 10.96.0.10\nsearch a.example\n").unwrap();
    let ipam = json!({
        "type": "host-local", "dataDir": node.data.path(), "resolvConf": resolv,
        "subnet": "10.244.1.0/24", "rangeStart": "10.244.1.50", "rangeEnd": "10.244.1.60", "gateway": "10.244.1.254",
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "198.51.100.0/24", "gw": "10.244.1.9", "mtu": 1300, "priority": 7}],
    });
    let added = node
        .add("c1", &pod, &node.conf(json!({"ipam": ipam, "mtu": 1450})))
        .expect_ok();
    assert_eq!(added.json["ips"][0]["address"], "10.244.1.50/24");
    assert_eq!(
        added.json["dns"],
        json!({"nameservers": ["10.96.0.10"], "search": ["a.example"]})
    );
    let route = &pod.ip("route show 198.51.100.0/24")[0];
    assert_eq!(
        (&route["gateway"], &route["metric"]),
        (&json!("10.244.1.9"), &json!(7))
    );
    assert_eq!(pod.ip("route show default").as_array().unwrap().len(), 1);
    assert_eq!(pod.ip("route show default")[0]["gateway"], "10.244.1.254");
    assert_eq!(pod.ip("link show eth0")[0]["mtu"], 1450);
    assert_eq!(node.ns.ip("link show podspan0")[0]["mtu"], 1450);
}

/// A link of so small an MTU has no IPv6 in the kernel, as every link where IPv6 is off (`ipv6.disable=1`).
#[test]
fn a_pod_without_ipv6_is_attached_where_links_have_none() {
    for changes in [
        json!({}),
        json!({"runtimeConfig": {"bandwidth": {
            "egressRate": 1_000_000, "egressBurst": 1_000_000}}}),
    ] {
        let (node, pod) = (Node::new(), Pod::new());
        let mut conf = node.conf(changes);
        conf["mtu"] = json!(1200);
        conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/24"}]]);
        let added = node.add("c1", &pod, &conf).expect_ok();
        let host_veth = added.json["interfaces"][1]["name"].as_str().unwrap();
        let seen = &node.ns.ip(&format!("link show {host_veth}"))[0];
        assert_eq!(
            (&seen["mtu"], &seen["operstate"]),
            (&1200.into(), &"UP".into())
        );
        assert!(seen["ifalias"].as_str().unwrap().starts_with("podspan:"));
        let _server = pod.listen();
        let address: (std::net::IpAddr, u16) = (added.ip(4).parse().unwrap(), 8080);
        std::net::TcpStream::connect(address).unwrap();
        node.check("c1", &pod, &node.with_prev(&conf, &added))
            .expect_ok();
        node.del("c1", &conf).expect_ok();
        node.assert_clean("an MTU below that of IPv6");
    }
}

#[test]
fn a_switch_without_gateway_gives_no_address_and_no_route() {
    let (node, pod) = (Node::new(), Pod::new());
    node.add("c1", &pod, &node.conf(json!({"isGateway": false})))
        .expect_ok();
    assert!(
        node.ns
            .ip("-4 addr show podspan0")
            .as_array()
            .unwrap()
            .iter()
            .all(|l| l["addr_info"] == json!([]))
    );
    assert_eq!(pod.ip("route show default"), json!([]));
    assert_eq!(
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(),
        "0\n"
    );
}

#[test]
fn a_bridge_of_somebody_else_is_used_and_never_marked() {
    let (node, pod) = (Node::new(), Pod::new());
    node.add("c1", &pod, &node.conf(json!({"bridge": "foreign0"})))
        .expect_ok();
    let bridge = &node.ns.ip("-d link show foreign0")[0];
    assert!(bridge.get("ifalias").is_none(), "{bridge}");
    node.assert_foreign_survives();
    let (code, text) = node
        .add("c2", &Pod::new(), &node.conf(json!({"bridge": "pod0"})))
        .expect_error();
    assert!(
        code == 7 && text.contains("pod0 exists and is a veth"),
        "{text}"
    );
}

#[test]
fn what_is_asked_for_one_pod_is_given_by_precedence() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({
        "args": {"cni": {"ips": ["10.244.1.40"], "mac": "0a:00:00:00:00:02"}},
        "runtimeConfig": {"ips": ["10.244.1.50/24", "fd00:10:244:1::50"], "dns": {"servers": ["10.96.0.10"]}},
    }));
    let mut process = node.command(&[], "ADD", "c1");
    process
        .env("CNI_NETNS", pod.path())
        .env("CNI_ARGS", "IP=10.244.1.30;MAC=0a:00:00:00:00:01");
    let added = run(&mut process, &conf).expect_ok();
    assert_eq!(
        (added.ip(4), added.ip(6)),
        ("10.244.1.50".into(), "fd00:10:244:1::50".into())
    );
    assert_eq!(pod.ip("link show eth0")[0]["address"], "0a:00:00:00:00:02");
    assert_eq!(added.json["dns"], json!({"nameservers": ["10.96.0.10"]}));
    node.check("c1", &pod, &node.with_prev(&conf, &added))
        .expect_ok();

    let (code, text) = node.add("c2", &Pod::new(), &conf).expect_error();
    assert!(code == 101 && text.contains("10.244.1.50"), "{code} {text}");
    let elsewhere = node.conf(json!({"runtimeConfig": {"ips": ["192.0.2.9"]}}));
    let (code, text) = node.add("c2", &Pod::new(), &elsewhere).expect_error();
    assert!(code == 7 && text.contains("192.0.2.9"), "{code} {text}");
    node.del("c1", &conf).expect_ok();
    node.assert_clean("after DEL");
}

#[test]
fn ranges_of_the_runtime_come_before_those_of_the_configuration() {
    let (node, pod) = (Node::new(), Pod::new());
    let ranges =
        json!([[{"subnet": "10.9.9.0/24", "rangeStart": "10.9.9.7", "rangeEnd": "10.9.9.7"}]]);
    let added = node
        .add(
            "c1",
            &pod,
            &node.conf(json!({"runtimeConfig": {"ipRanges": ranges}})),
        )
        .expect_ok();
    let ips: Vec<_> = added.json["ips"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ip| &ip["address"])
        .collect();
    assert_eq!(ips, ["10.9.9.7/24", "10.244.1.2/24", "fd00:10:244:1::2/64"]);
}

/// The address that the server sees when the pod connects to it.
fn seen_by(listener: &std::net::TcpListener, pod: &Pod, ip: &str) -> String {
    assert!(pod.reaches(ip), "{ip}");
    listener.accept().unwrap().1.ip().to_canonical().to_string()
}

#[test]
fn masquerading_is_for_what_leaves_the_network_and_for_no_pod_that_did_not_ask() {
    let node = Node::new();
    let outside = outside(&node);
    let server = outside.listen();
    let (masked, plain) = (Pod::new(), Pod::new());
    let conf = node.conf(json!({"ipMasq": true}));
    let added = node.add("masked", &masked, &conf).expect_ok();
    node.add("plain", &plain, &node.conf(json!({}))).expect_ok();
    assert_eq!(seen_by(&server, &masked, "203.0.113.2"), "203.0.113.1");
    assert_eq!(seen_by(&server, &masked, "2001:db8::2"), "2001:db8::1");
    assert_eq!(seen_by(&server, &plain, "203.0.113.2"), "10.244.1.3");
    assert_eq!(seen_by(&server, &plain, "2001:db8::2"), "fd00:10:244:1::3");
    let in_plain = plain.listen();
    assert_eq!(
        seen_by(&in_plain, &masked, "10.244.1.3"),
        "10.244.1.2",
        "pods see each other's own address"
    );
    assert_eq!(
        seen_by(&in_plain, &masked, "fd00:10:244:1::3"),
        "fd00:10:244:1::2"
    );
    node.check("masked", &masked, &node.with_prev(&conf, &added))
        .expect_ok();

    // DEL finds what ADD made, whatever the configuration has become.
    node.del("masked", &node.conf(json!({}))).expect_ok();
    assert_eq!(node.masqueraded(), Vec::<String>::new());
    let (code, _) = node
        .check("masked", &masked, &node.with_prev(&conf, &added))
        .expect_error();
    assert_eq!(code, 103);
    node.del("plain", &conf).expect_ok();
    node.assert_clean("after DEL");
    node.assert_foreign_survives();
}

#[test]
fn isolated_ports_reach_the_node_and_not_each_other() {
    let node = Node::new();
    let conf = node.conf(json!({"portIsolation": true}));
    let (a, b) = (Pod::new(), Pod::new());
    let served = node.add("a", &a, &conf).expect_ok();
    node.add("b", &b, &conf).expect_ok();
    let (_on_node, _in_a) = (
        std::net::TcpListener::bind("[::]:8080").unwrap(),
        a.listen(),
    );
    assert!(b.reaches("10.244.1.1") && !b.reaches(&served.ip(4)));
}

#[test]
fn routed_pods_reach_each_other_through_the_node_alone() {
    let node = Node::new();
    let conf = node.conf(json!({"routed": true}));
    let (a, b) = (Pod::new(), Pod::new());
    let added = node.add("a", &a, &conf).expect_ok();
    node.add("b", &b, &conf).expect_ok();
    for link in node.pod_links() {
        let port = &node.ns.ip(&format!("-d link show {link}"))[0]["linkinfo"]["info_slave_data"];
        assert_eq!(port["isolated"], true, "{link}");
    }
    for (family, subnet, gateway) in [
        ("-4", "10.244.1.0/24", "10.244.1.1"),
        ("-6", "fd00:10:244:1::/64", "fd00:10:244:1::1"),
    ] {
        let routes = b.ip(&format!("{family} route show {subnet}"));
        assert_eq!(routes.as_array().map(Vec::len), Some(1), "{routes}");
        assert_eq!(routes[0]["gateway"], gateway);
    }
    // Else a connection would sooner or later look for the other pod on the link.
    let heeds = b.run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_redirects"));
    assert_eq!(heeds.unwrap(), "0\n");
    let (_on_node, _in_a) = (
        std::net::TcpListener::bind("[::]:8080").unwrap(),
        a.listen(),
    );
    for family in [4, 6] {
        assert!(b.reaches(&added.ip(family)), "IPv{family}");
    }
    assert!(b.reaches("10.244.1.1") && b.reaches("fd00:10:244:1::1"));
    node.check("a", &a, &node.with_prev(&conf, &added))
        .expect_ok();
    let drop = "add table inet t; add chain inet t f { type filter hook forward priority 0; policy drop; }";
    harness::nft(drop);
    for family in [4, 6] {
        assert!(!b.reaches(&added.ip(family)), "IPv{family}: past the node");
    }
    node.del("a", &conf).expect_ok();
    node.del("b", &conf).expect_ok();
    node.assert_clean("routed");
}

#[test]
fn promiscuous_mode_is_the_bridge_s_and_excludes_hairpin_mode() {
    let (node, pod) = (Node::new(), Pod::new());
    node.add("c1", &pod, &node.conf(json!({"promiscMode": true})))
        .expect_ok();
    let flags = node.ns.ip("link show podspan0")[0]["flags"].to_string();
    assert!(flags.contains("PROMISC"), "{flags}");
    let both = node.conf(json!({"promiscMode": true, "hairpinMode": true}));
    let (code, text) = node.add("c2", &Pod::new(), &both).expect_error();
    assert!(code == 7 && text.contains("choose one"), "{code} {text}");
}

#[test]
fn a_forced_address_takes_the_place_of_those_that_overlap() {
    let (node, pod) = (Node::new(), Pod::new());
    node.ns.ip("link add podspan0 up type bridge");
    node.ns.ip("addr add 10.244.1.9/16 dev podspan0");
    node.ns.ip("addr add 172.16.0.1/24 dev podspan0");
    node.add("c1", &pod, &node.conf(json!({"forceAddress": true})))
        .expect_ok();
    let bridge = node.ns.ip("-4 addr show podspan0")[0]["addr_info"].clone();
    let ips: Vec<_> = bridge
        .as_array()
        .unwrap()
        .iter()
        .map(|address| &address["local"])
        .collect();
    assert_eq!(ips, ["172.16.0.1", "10.244.1.1"]);
}

#[test]
fn duplicate_address_detection_is_waited_for_where_it_is_on() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({"enabledad": true}));
    let added = node.add("c1", &pod, &conf).expect_ok();
    let shown = pod.ip("-6 addr show dev eth0 scope global").to_string();
    assert!(
        !shown.contains("tentative") && !shown.contains("nodad"),
        "{shown}"
    );
    let _listener = std::net::TcpListener::bind("[::]:8080").unwrap();
    assert!(pod.reaches("fd00:10:244:1::1"));
    node.check("c1", &pod, &node.with_prev(&conf, &added))
        .expect_ok();

    // Somebody took the next address by hand, and nothing keeps it from answering for it.
    let conf = node.conf(json!({"enabledad": true, "antiSpoof": false}));
    node.del("c1", &conf).expect_ok();
    node.add("c1", &pod, &conf).expect_ok();
    pod.ip("addr add fd00:10:244:1::4/64 dev eth0 nodad");
    let (code, text) = node.add("c2", &Pod::new(), &conf).expect_error();
    assert!(
        code == 100 && text.contains("fd00:10:244:1::4"),
        "{code} {text}"
    );
    assert_eq!(node.addresses(), ["10.244.1.3", "fd00:10:244:1::3"]);
}

#[test]
fn an_interface_may_be_left_down_without_addresses() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({"disableContainerInterface": true, "ipam": {}}));
    let added = node.add("c1", &pod, &conf).expect_ok();
    assert_eq!(pod.ip("link show eth0")[0]["operstate"], "DOWN");
    node.check("c1", &pod, &node.with_prev(&conf, &added))
        .expect_ok();
    let with_ipam = node.conf(json!({"disableContainerInterface": true}));
    assert_eq!(node.add("c2", &Pod::new(), &with_ipam).expect_error().0, 7);
}

#[test]
fn a_network_without_addresses_is_a_switch() {
    let node = Node::new();
    let conf = node.conf(json!({"ipam": {}}));
    let pods: Vec<_> = (0..2).map(|_| Pod::new()).collect();
    for (number, pod) in pods.iter().enumerate() {
        let added = node.add(&format!("c{number}"), pod, &conf).expect_ok();
        assert!(added.json.get("ips").is_none(), "{added:?}");
        pod.ip(&format!("addr add 10.0.0.{}/24 dev eth0", number + 1));
        node.check(&format!("c{number}"), pod, &node.with_prev(&conf, &added))
            .expect_ok();
    }
    let macs: Vec<_> = pods
        .iter()
        .map(|pod| pod.ip("link show eth0")[0]["address"].clone())
        .collect();
    assert_ne!(macs[0], macs[1]);
    let _listener = pods[0].listen();
    assert!(pods[1].reaches("10.0.0.1"));
    node.del("c0", &conf).expect_ok();
    node.del("c1", &conf).expect_ok();
    node.assert_clean("after DEL");
}
