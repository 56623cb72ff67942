//! The executable, with JSON on its standard input, on the real kernel. Rule numbers are those of the CNI digest.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use harness::{Answer, Node, Pod, outside, run, run_raw};
use serde_json::{Value, json};

#[test]
fn add_gives_a_pod_all_that_a_pod_needs() {
    let (node, pod) = (Node::new(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    assert_eq!(
        (added.ip(4).as_str(), added.ip(6).as_str()),
        ("10.244.1.2", "fd00:10:244:1::2")
    );

    let bridge = &node.ns.ip("-d addr show podspan0")[0];
    assert_eq!(
        (&bridge["ifalias"], &bridge["address"]),
        (&json!("podspan:bridge"), &json!("0a:58:0a:f4:01:01"))
    );
    let on_bridge: Vec<_> = bridge["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| &a["local"])
        .collect();
    assert!(
        on_bridge.contains(&&json!("10.244.1.1"))
            && on_bridge.contains(&&json!("fd00:10:244:1::1"))
    );

    let host_veth = &node.pod_links()[0];
    let host = &node.ns.ip(&format!("-d link show {host_veth}"))[0];
    assert_eq!(
        (&host["master"], &host["ifalias"]),
        (&json!("podspan0"), &json!("podspan:net/c1/eth0"))
    );
    assert_eq!(host["operstate"], "UP");
    assert_eq!(host["linkinfo"]["info_slave_data"]["hairpin"], true);
    assert_eq!(host["linkinfo"]["info_slave_data"]["state"], "forwarding");

    let eth0 = &pod.ip("-d addr show eth0")[0];
    assert_eq!(
        (&eth0["address"], &eth0["operstate"]),
        (&json!("0a:58:0a:f4:01:02"), &json!("UP"))
    );
    for address in eth0["addr_info"].as_array().unwrap() {
        assert!(
            address.get("tentative").is_none(),
            "usable at once: {address}"
        );
    }
    assert_eq!(pod.ip("route show default")[0]["gateway"], "10.244.1.1");
    assert_eq!(
        pod.ip("-6 route show default")[0]["gateway"],
        "fd00:10:244:1::1"
    );
    assert_eq!(node.addresses(), ["10.244.1.2", "fd00:10:244:1::2"]);
    node.assert_foreign_survives();
}

#[test]
fn the_first_packet_is_not_lost() {
    let node = Node::new();
    let conf = node.conf(json!({}));
    let server = Pod::new();
    let served = node.add("server", &server, &conf).expect_ok();
    let _listener = server.listen();
    for number in 0..20 {
        let pod = Pod::new();
        let added = node.add(&format!("c{number}"), &pod, &conf).expect_ok();
        for family in [4, 6] {
            assert!(
                pod.reaches(&served.ip(family)),
                "{number}: pod to pod, IPv{family}"
            );
        }
        let _own = pod.listen();
        assert!(
            pod.reaches(&added.ip(4)) && pod.reaches(&added.ip(6)),
            "{number}: a pod reaches itself"
        );
    }
}

#[test]
fn node_and_pods_reach_each_other() {
    let (node, pod) = (Node::new(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let _in_pod = pod.listen();
    let _on_node = std::net::TcpListener::bind("[::]:8080").unwrap();
    assert!(pod.reaches("10.244.1.1") && pod.reaches("fd00:10:244:1::1"));
    for family in [4, 6] {
        std::net::TcpStream::connect((added.ip(family), 8080)).unwrap();
    }
}

#[test]
fn an_address_comes_back_with_its_own_mac_and_the_least_recently_freed_first() {
    let node = Node::new();
    let ipam = json!({"dataDir": node.data.path(), "ranges": [[{"subnet": "10.244.1.0/29"}]]});
    let conf = node.conf(json!({"ipam": ipam}));
    let mut seen = Vec::new();
    for number in 0..12 {
        let pod = Pod::new();
        let added = node.add(&format!("c{number}"), &pod, &conf).expect_ok();
        let last: u8 = added.ip(4).rsplit('.').next().unwrap().parse().unwrap();
        assert_eq!(
            pod.ip("link show eth0")[0]["address"],
            format!("0a:58:0a:f4:01:{last:02x}")
        );
        seen.push(last);
        node.del(&format!("c{number}"), &conf).expect_ok();
    }
    assert_eq!(seen, [2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 2, 3]);
}

#[test]
fn t1_without_a_command_the_plugin_says_what_it_is() {
    let node = Node::new();
    let mut process = node.command(&[], "", "c1");
    let output = run_raw(process.env_remove("CNI_COMMAND"), &Value::Null);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    assert!(
        text.contains("podspan-cni") && text.contains("1.1.0") && text.contains("/opt/cni/bin"),
        "{text}"
    );
}

#[test]
fn t3_t24_del_succeeds_without_namespace_without_result_twice_and_for_the_unknown() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    node.del("never-added", &conf).expect_ok();
    node.add("c1", &pod, &conf).expect_ok();
    let answer = node.del("c1", &conf).expect_ok();
    assert_eq!(answer.json, Value::Null, "T11: nothing on standard output");
    node.assert_clean("after DEL");
    node.del("c1", &conf).expect_ok();

    node.add("c2", &pod, &conf).expect_ok();
    let mut process = node.command(&[], "DEL", "c2");
    run(process.env("CNI_NETNS", "/run/netns/gone"), &conf).expect_ok();
    node.assert_clean("after DEL with a namespace that is gone");

    node.add("c3", &pod, &conf).expect_ok();
    node.ns.ip("link del podspan0");
    node.del("c3", &conf).expect_ok();
    node.assert_clean("after DEL without the bridge");
    node.assert_foreign_survives();
}

#[test]
fn t24_del_frees_what_a_since_broken_configuration_took() {
    let (node, pod) = (Node::new(), Pod::new());
    node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let broken = json!({"dataDir": node.data.path(), "ranges": "broken"});
    node.del(
        "c1",
        &node.conf(json!({"ipam": broken, "bridge": "a/b", "mtu": -1})),
    )
    .expect_ok();
    node.assert_clean("after DEL");
}

#[test]
fn t8_the_node_s_own_namespace_is_no_pod_s() {
    let node = Node::new();
    let conf = node.conf(json!({}));
    let mut process = node.command(&[], "ADD", "c1");
    let (code, text) = run(process.env("CNI_NETNS", "/proc/self/ns/net"), &conf).expect_error();
    assert_eq!(code, 8, "{text}");
    node.assert_clean("nothing was done");
    let mut process = node.command(&[], "DEL", "c1");
    let (code, _) = run(process.env("CNI_NETNS", "/proc/self/ns/net"), &conf).expect_error();
    assert_eq!(code, 8);
    let mut process = node.command(&[], "DEL", "c1");
    process
        .env("CNI_NETNS", "/proc/self/ns/net")
        .env("CNI_NETNS_OVERRIDE", "true");
    run(&mut process, &conf).expect_ok();
}

#[test]
fn a_namespace_that_is_not_there_is_told_with_its_path() {
    let node = Node::new();
    for path in ["/run/netns/gone", "/etc/hostname"] {
        let mut process = node.command(&[], "ADD", "c1");
        let (code, text) =
            run(process.env("CNI_NETNS", path), &node.conf(json!({}))).expect_error();
        assert!(
            code == 4 && text.contains("CNI_NETNS") && text.contains(path),
            "{code} {text}"
        );
    }
    node.assert_clean("nothing was done");
}

#[test]
fn t10_an_error_has_version_code_and_message() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({"cniVersion": "1.0.0", "mtu": 12}));
    let answer = node.add("c1", &pod, &conf);
    assert_eq!(
        (&answer.json["cniVersion"], &answer.json["code"]),
        (&json!("1.0.0"), &json!(7))
    );
    assert_eq!(
        answer.json["msg"],
        "mtu is 12; it must be from 1280 to 65535 bytes"
    );
}

#[test]
fn t12_version_answers_with_and_without_input() {
    let node = Node::new();
    let all = json!([
        "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"
    ]);
    let asked = run(
        &mut node.command(&[], "VERSION", "c1"),
        &json!({"cniVersion": "0.4.0"}),
    );
    assert_eq!(
        asked.expect_ok().json,
        json!({"cniVersion": "0.4.0", "supportedVersions": all})
    );
    let mut process = node.command(&[], "VERSION", "");
    let output = process.stdin(std::process::Stdio::null()).output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        answer,
        json!({"cniVersion": "1.1.0", "supportedVersions": all})
    );
}

#[test]
fn t18_an_interface_name_that_is_taken_is_an_error_and_nothing_changes() {
    let (node, pod) = (Node::new(), Pod::new());
    pod.ip("link add eth0 type bridge");
    let before = pod.ip("-d link show");
    let (code, text) = node.add("c1", &pod, &node.conf(json!({}))).expect_error();
    assert!(
        code == 102 && text.contains("interface eth0 exists"),
        "{code} {text}"
    );
    assert_eq!(pod.ip("-d link show"), before);
    node.assert_clean("after the failed ADD");
}

#[test]
fn t19_the_result_of_plugins_before_is_kept_and_ours_appended() {
    let (node, pod) = (Node::new(), Pod::new());
    let before = json!({
        "cniVersion": "1.1.0", "interfaces": [{"name": "other0"}],
        "ips": [{"address": "203.0.113.7/24", "interface": 0}], "mine": {"kept": true},
    });
    let added = node
        .add("c1", &pod, &node.conf(json!({"prevResult": before})))
        .expect_ok();
    assert_eq!(added.json["mine"], json!({"kept": true}));
    assert_eq!(added.json["interfaces"][0]["name"], "other0");
    assert_eq!(
        added.json["ips"][0],
        json!({"address": "203.0.113.7/24", "interface": 0})
    );
    let ours = &added.json["ips"][1];
    assert_eq!(
        (&ours["address"], &ours["interface"]),
        (&json!("10.244.1.2/24"), &json!(3))
    );
    assert_eq!(added.json["interfaces"][3]["name"], "eth0");
}

#[test]
fn t20_t21_the_result_has_the_shape_of_every_version() {
    let node = Node::new();
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let pod = Pod::new();
        let conf = node.conf(json!({"cniVersion": version, "mtu": 1400}));
        let json = node.add("c1", &pod, &conf).expect_ok().json;
        assert_eq!(json["cniVersion"], version);
        let names: Vec<_> = json["interfaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| &i["name"])
            .collect();
        assert_eq!(
            (names.len(), names[0], names[2]),
            (3, &json!("podspan0"), &json!("eth0"))
        );
        assert_eq!(
            json["interfaces"][2]["sandbox"],
            pod.path().to_str().unwrap()
        );
        assert!(json["interfaces"][0].get("sandbox").is_none());
        assert_eq!(
            (&json["ips"][0]["interface"], &json["ips"][1]["interface"]),
            (&json!(2), &json!(2))
        );
        assert_eq!(json["ips"][0]["gateway"], "10.244.1.1");
        let with_version = version < "1.0.0";
        assert_eq!(
            json["ips"][1].get("version"),
            with_version.then_some(&json!("6")),
            "{version}"
        );
        let with_mtu = version >= "1.1.0";
        assert_eq!(
            json["interfaces"][2].get("mtu"),
            with_mtu.then_some(&json!(1400)),
            "{version}"
        );
        assert_eq!(
            json["routes"],
            json!([
            {"dst": "0.0.0.0/0", "gw": "10.244.1.1"}, {"dst": "::/0", "gw": "fd00:10:244:1::1"}])
        );
        node.del("c1", &conf).expect_ok();
    }
}

#[test]
fn t16_t20_the_oldest_versions_have_results_of_their_own_and_are_meant_when_none_is_named() {
    let node = Node::new();
    for version in [json!("0.1.0"), json!("0.2.0"), Value::Null] {
        let pod = Pod::new();
        let conf = node.conf(json!({"cniVersion": version}));
        let json = node.add("c1", &pod, &conf).expect_ok().json;
        assert_eq!(json["cniVersion"], version.as_str().unwrap_or("0.1.0"));
        assert_eq!(json["ip4"]["gateway"], "10.244.1.1");
        assert_eq!(
            json["ip6"]["routes"],
            json!([{"dst": "::/0", "gw": "fd00:10:244:1::1"}])
        );
        assert!(json.get("interfaces").is_none());
        node.del("c1", &conf).expect_ok();
        node.assert_clean("after DEL");
    }
}

#[test]
fn t22_a_second_add_is_an_error_and_leaves_the_first_as_it_is() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    let added = node.add("c1", &pod, &conf).expect_ok();
    let links = node.ns.ip("link show");
    let (code, text) = node.add("c1", &Pod::new(), &conf).expect_error();
    assert!(code == 102 && text.contains("DEL"), "{code} {text}");
    assert_eq!(node.ns.ip("link show"), links);
    node.check("c1", &pod, &node.with_prev(&conf, &added))
        .expect_ok();
    let mut other = node.command(&[], "ADD", "c1");
    run(
        other.env("CNI_IFNAME", "net1").env("CNI_NETNS", pod.path()),
        &conf_l2(&node),
    )
    .expect_ok();
}

#[test]
fn a_second_network_brings_its_default_route_too() {
    let (node, pod) = (Node::new(), Pod::new());
    let first = node.conf(json!({}));
    let ranges = json!([[{"subnet": "10.245.1.0/24"}], [{"subnet": "fd00:10:245:1::/64"}]]);
    let mut second = node.conf(json!({"name": "second", "bridge": "second0"}));
    second["ipam"]["ranges"] = ranges;
    let on_net1 = |command, conf: &Value| {
        let mut process = node.command(&[], command, "c1");
        process
            .env("CNI_IFNAME", "net1")
            .env("CNI_NETNS", pod.path());
        run(&mut process, conf).expect_ok()
    };
    let added = node.add("c1", &pod, &first).expect_ok();
    let added_second = on_net1("ADD", &second);
    let gateways = || -> Vec<Value> {
        let routes = pod.ip("route show default");
        let routes = routes.as_array().unwrap().iter();
        routes.map(|route| route["gateway"].clone()).collect()
    };
    assert_eq!(gateways(), ["10.245.1.1", "10.244.1.1"]);
    node.check("c1", &pod, &node.with_prev(&first, &added))
        .expect_ok();
    on_net1("CHECK", &node.with_prev(&second, &added_second));
    on_net1("DEL", &second);
    assert_eq!(gateways(), ["10.244.1.1"]);
    node.check("c1", &pod, &node.with_prev(&first, &added))
        .expect_ok();
}

/// A configuration without a default route, for a second interface.
fn conf_l2(node: &Node) -> Value {
    node.conf(json!({"isDefaultGateway": false}))
}

#[test]
fn t22_parallel_adds_never_share_an_address() {
    let node = Node::new();
    let conf = node.conf(json!({}));
    let pods: Vec<_> = (0..40).map(|_| Pod::new()).collect();
    let processes: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(number, pod)| {
            let mut process = node.command(&[], "ADD", &format!("c{number}"));
            process.env("CNI_NETNS", pod.path());
            (process, conf.clone())
        })
        .collect();
    // A thread's child begins in the thread's namespace, and these are the node's.
    let here = podspan_kernel::Netns::current().unwrap();
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let running: Vec<_> = processes
            .into_iter()
            .map(|(mut process, conf)| {
                let here = &here;
                scope.spawn(move || {
                    here.enter().unwrap();
                    run(&mut process, &conf)
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap().expect_ok())
            .collect()
    });
    for family in [4, 6] {
        let ips: std::collections::BTreeSet<_> =
            answers.iter().map(|answer| answer.ip(family)).collect();
        assert_eq!(ips.len(), 40);
    }
    assert_eq!(node.addresses().len(), 80);
}

#[test]
fn t26_del_never_touches_the_same_interface_of_another_container() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    let added = node.add("new", &pod, &conf).expect_ok();
    let mut process = node.command(&[], "DEL", "old");
    run(process.env("CNI_NETNS", pod.path()), &conf).expect_ok();
    node.check("new", &pod, &node.with_prev(&conf, &added))
        .expect_ok();
}

#[test]
fn a_foreign_link_that_bears_our_name_is_left_alone() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    node.add("c1", &pod, &conf).expect_ok();
    let name = node.pod_links()[0].clone();
    node.del("c1", &conf).expect_ok();
    node.ns
        .ip(&format!("link add {name} type veth peer name peer0"));
    node.ns.ip(&format!("link set {name} alias somebody-else"));
    let (code, text) = node.add("c1", &pod, &conf).expect_error();
    assert!(code == 102 && text.contains(&name), "{code} {text}");
    node.del("c1", &conf).expect_ok();
    assert_eq!(
        node.ns.ip(&format!("link show {name}"))[0]["ifalias"],
        "somebody-else"
    );
    assert_eq!(node.addresses(), Vec::<String>::new());
}

#[test]
fn t28_check_finds_every_deviation() {
    type Deviate = fn(&Node, &Pod);
    let deviations: [(&str, Deviate, &str); 14] = [
        (
            "bridge gone",
            |node, _| _ = node.ns.ip("link del podspan0"),
            "bridge podspan0 does not exist",
        ),
        (
            "bridge down",
            |node, _| _ = node.ns.ip("link set podspan0 down"),
            "bridge podspan0 is down",
        ),
        (
            "gateway gone",
            |node, _| _ = node.ns.ip("addr del 10.244.1.1/24 dev podspan0"),
            "gateway's address 10.244.1.1",
        ),
        (
            "no forwarding",
            |_, _| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap(),
            "ip_forward is 0",
        ),
        (
            "host veth gone",
            |node, _| _ = node.ns.ip(&format!("link del {}", node.pod_links()[0])),
            "host veth",
        ),
        (
            "host veth down",
            |node, _| {
                _ = node
                    .ns
                    .ip(&format!("link set {} down", node.pod_links()[0]))
            },
            "is down",
        ),
        (
            "not a port",
            |node, _| {
                _ = node
                    .ns
                    .ip(&format!("link set {} nomaster", node.pod_links()[0]))
            },
            "not a port",
        ),
        (
            "alias changed",
            |node, _| {
                _ = node
                    .ns
                    .ip(&format!("link set {} alias x", node.pod_links()[0]))
            },
            "has alias",
        ),
        (
            "pod down",
            |_, pod| _ = pod.ip("link set eth0 down"),
            "eth0 in the pod is down",
        ),
        (
            "address gone",
            |_, pod| _ = pod.ip("addr del 10.244.1.2/24 dev eth0"),
            "no address 10.244.1.2/24",
        ),
        (
            "v6 address gone",
            |_, pod| _ = pod.ip("addr del fd00:10:244:1::2/64 dev eth0"),
            "no address fd00:10:244:1::2/64",
        ),
        (
            "route gone",
            |_, pod| _ = pod.ip("route del default"),
            "no route to 0.0.0.0/0",
        ),
        (
            "v6 route gone",
            |_, pod| _ = pod.ip("-6 route del default"),
            "no route to ::/0",
        ),
        (
            "allocation gone",
            |node, _| std::fs::remove_file(node.data.path().join("net/10.244.1.2")).unwrap(),
            "10.244.1.2",
        ),
    ];
    for (what, deviate, told) in deviations {
        let (node, pod) = (Node::new(), Pod::new());
        let conf = node.conf(json!({}));
        let added = node.add("c1", &pod, &conf).expect_ok();
        let conf = node.with_prev(&conf, &added);
        node.check("c1", &pod, &conf).expect_ok();
        deviate(&node, &pod);
        let (code, text) = node.check("c1", &pod, &conf).expect_error();
        assert!(code == 103 && text.contains(told), "{what}: {code} {text}");
    }
}

#[test]
fn t28_check_needs_the_result_and_accepts_what_later_plugins_changed() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    let added = node.add("c1", &pod, &conf).expect_ok();
    let (code, text) = node.check("c1", &pod, &conf).expect_error();
    assert!(code == 7 && text.contains("prevResult"), "{text}");
    pod.ip("addr add 203.0.113.9/24 dev eth0");
    pod.ip("link set eth0 mtu 1300");
    pod.ip("link set eth0 address 02:00:00:00:00:07");
    pod.ip("route add 198.51.100.0/24 via 10.244.1.1");
    node.check("c1", &pod, &node.with_prev(&conf, &added))
        .expect_ok();
    let old = node.conf(json!({"cniVersion": "0.3.1"}));
    let (code, _) = node
        .check("c1", &pod, &node.with_prev(&old, &added))
        .expect_error();
    assert_eq!(code, 1, "T15");
}

#[test]
fn t29_gc_frees_what_is_not_in_use_of_this_network_only() {
    let node = Node::new();
    let (conf, other) = (
        node.conf(json!({})),
        node.conf(json!({
        "name": "other", "bridge": "podspan1",
        "ipam": {"dataDir": node.data.path(), "ranges": [[{"subnet": "10.99.0.0/24"}]]}})),
    );
    let pods: Vec<_> = (0..3).map(|_| Pod::new()).collect();
    let kept = node.add("kept", &pods[0], &conf).expect_ok();
    node.add("lost", &pods[1], &conf).expect_ok();
    let elsewhere = node.add("lost", &pods[2], &other).expect_ok();

    let (code, _) = run(&mut node.command(&[], "GC", ""), &conf).expect_error();
    assert_eq!(
        (code, node.addresses().len()),
        (7, 4),
        "without the list nothing is freed"
    );
    let mut valid = conf.clone();
    valid["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    run(&mut node.command(&[], "GC", ""), &valid).expect_ok();
    node.check("kept", &pods[0], &node.with_prev(&conf, &kept))
        .expect_ok();
    node.check("lost", &pods[2], &node.with_prev(&other, &elsewhere))
        .expect_ok();
    assert_eq!(node.addresses(), ["10.244.1.2", "fd00:10:244:1::2"]);
    assert!(
        pods[1]
            .ip("link show")
            .as_array()
            .unwrap()
            .iter()
            .all(|link| link["ifname"] == "lo")
    );
    node.assert_foreign_survives();
}

#[test]
fn t32_status_is_silent_or_says_that_the_range_is_exhausted() {
    let node = Node::new();
    let ipam = json!({"dataDir": node.data.path(), "ranges": [[{"subnet": "10.244.1.0/29"}]]});
    let conf = node.conf(json!({"ipam": ipam}));
    let status = || run(&mut node.command(&[], "STATUS", ""), &conf);
    assert_eq!(status().expect_ok().json, Value::Null);
    let pods: Vec<_> = (0..5).map(|_| Pod::new()).collect();
    for (number, pod) in pods.iter().enumerate() {
        node.add(&format!("c{number}"), pod, &conf).expect_ok();
    }
    let (code, text) = status().expect_error();
    assert!(code == 50 && text.contains('5'), "{code} {text}");
    let (code, text) = node.add("c9", &Pod::new(), &conf).expect_error();
    assert!(code == 101 && text.contains("10.244.1."), "{code} {text}");
    node.del("c3", &conf).expect_ok();
    status().expect_ok();
}

#[test]
fn a_stale_address_on_the_bridge_never_fails_an_add() {
    let (node, pod) = (Node::new(), Pod::new());
    node.add("old", &pod, &node.conf(json!({}))).expect_ok();
    let ipam = json!({"dataDir": node.data.path(), "ranges": [[{"subnet": "10.244.9.0/24"}]]});
    let (pod, conf) = (Pod::new(), node.conf(json!({"ipam": ipam})));
    let added = node.add("new", &pod, &conf).expect_ok();
    assert_eq!(added.ip(4), "10.244.9.2");
    let _listener = std::net::TcpListener::bind("[::]:8080").unwrap();
    assert!(pod.reaches("10.244.9.1"));
}

/// A kill between the making of the bridge and what makes it right leaves it as it is here.
#[test]
fn a_bridge_that_was_only_just_made_is_completed_before_it_bears_our_mark() {
    let (node, pod) = (Node::new(), Pod::new());
    node.ns
        .ip("link add podspan0 address 0a:58:0a:f4:01:01 up type bridge");
    let sysctls = || {
        ["accept_ra", "accept_dad"].map(|key| {
            let key = format!("/proc/sys/net/ipv6/conf/podspan0/{key}");
            std::fs::read_to_string(key).unwrap()
        })
    };
    assert_eq!(sysctls(), ["1\n"; 2]);
    node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    assert_eq!(sysctls(), ["0\n"; 2]);
    let seen = &node.ns.ip("link show podspan0")[0];
    assert_eq!(seen["ifalias"], "podspan:bridge");
}

#[test]
fn two_adds_that_make_the_bridge_at_once_both_succeed() {
    for _ in 0..5 {
        t22_parallel_adds_never_share_an_address();
    }
}

#[test]
fn a_host_local_directory_is_adopted_as_it_stands() {
    let (node, pod) = (Node::new(), Pod::new());
    let dir = node.data.path().join("net");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("10.244.1.5"), "before\r\neth0").unwrap();
    std::fs::write(dir.join("last_reserved_ip.0"), "10.244.1.5").unwrap();
    std::fs::write(dir.join("lock"), "").unwrap();
    let conf = node.conf(json!({}));
    assert_eq!(node.add("c1", &pod, &conf).expect_ok().ip(4), "10.244.1.6");
    let text = std::fs::read_to_string(dir.join("10.244.1.6")).unwrap();
    assert_eq!(text, "c1\r\neth0", "and host-local could take it back");
    node.del("before", &conf).expect_ok();
    assert!(!dir.join("10.244.1.5").exists());
}

/// The path of a pod's namespace may lead to another one's by the time of its DEL (T26).
#[test]
fn t26_del_of_a_pod_of_another_plugin_removes_the_veth_that_has_its_address_and_no_other() {
    let node = Node::new();
    let dir = node.data.path().join("net");
    let conf = node.conf(json!({}));
    for (has, goes) in [("10.244.1.5", true), ("10.244.1.6", false)] {
        let pod = Pod::new();
        let path = pod.path();
        node.ns.ip(&format!(
            "link add theirs type veth peer name eth0 netns {}",
            path.display()
        ));
        pod.ip(&format!("addr add {has}/24 dev eth0"));
        let _ = std::fs::create_dir(&dir);
        std::fs::write(dir.join("10.244.1.5"), "before\r\neth0").unwrap();
        std::fs::write(dir.join("last_reserved_ip.0"), "10.244.1.5").unwrap();
        let mut del = node.command(&[], "DEL", "before");
        run(del.env("CNI_NETNS", path), &conf).expect_ok();
        assert!(!dir.join("10.244.1.5").exists(), "it is free");
        let left = if goes { vec![] } else { vec!["theirs"] };
        assert_eq!(node.pod_links(), left, "{has}");
    }
}

#[test]
fn addresses_of_another_boot_are_void() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    node.add("before", &pod, &conf).expect_ok();
    node.ns.ip(&format!("link del {}", node.pod_links()[0]));
    std::fs::write(
        node.data.path().join("net/boot_id"),
        "00000000-0000-0000-0000-000000000000\n",
    )
    .unwrap();
    node.add("after", &Pod::new(), &conf).expect_ok();
    assert_eq!(node.records(), ["after:eth0"]);
}

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
fn masquerading_goes_with_gc_and_with_addresses_of_another_ipam_plugin() {
    let node = Node::new();
    let conf = node.conf(json!({"ipMasq": true}));
    let pods: Vec<_> = (0..3).map(|_| Pod::new()).collect();
    node.add("lost", &pods[0], &conf).expect_ok();
    node.add("kept", &pods[1], &conf).expect_ok();
    let mut valid = conf.clone();
    valid["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    run(&mut node.command(&[], "GC", ""), &valid).expect_ok();
    assert_eq!(node.masqueraded(), ["10.244.1.3", "fd00:10:244:1::3"]);
    node.del("kept", &conf).expect_ok();

    let (dir, _) = foreign_ipam(&node);
    let conf = node.conf(json!({"ipMasq": true, "ipam": {"type": "their-ipam"}}));
    for (command, left) in [("ADD", 1), ("DEL", 0)] {
        let mut process = node.command(&[], command, "c1");
        run(
            process
                .env("CNI_NETNS", pods[2].path())
                .env("CNI_PATH", &dir),
            &conf,
        )
        .expect_ok();
        assert_eq!(node.masqueraded().len(), left, "{command}");
    }
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

/// A directory with an IPAM plugin of somebody else's, which writes down what it was told.
fn foreign_ipam(node: &Node) -> (std::path::PathBuf, std::path::PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let (dir, log) = (
        node.data.path().join("plugins"),
        node.data.path().join("told"),
    );
    std::fs::create_dir(&dir).unwrap();
    let script = format!(
        "#!/bin/sh\ncat > {dir}/stdin\necho \"$CNI_COMMAND $CNI_CONTAINERID\" >> {log}\n\
         [ -e {dir}/fail-$CNI_COMMAND ] && {{ echo '{{\"code\": 77, \"msg\": \"no\", \"details\": \"luck\"}}'; exit 1; }}\n\
         [ $CNI_COMMAND = ADD ] && echo '{{\"cniVersion\": \"1.1.0\", \"ips\": [{{\"address\": \"10.7.0.9/24\"}}], \
         \"routes\": [{{\"dst\": \"198.51.100.0/24\"}}], \"dns\": {{\"domain\": \"a\"}}}}'\nexit 0\n",
        dir = dir.display(),
        log = log.display(),
    );
    std::fs::write(dir.join("their-ipam"), script).unwrap();
    std::fs::set_permissions(dir.join("their-ipam"), PermissionsExt::from_mode(0o755)).unwrap();
    (dir, log)
}

#[test]
fn t23_t27_t28_t30_t32_another_ipam_plugin_is_told_every_command() {
    let (node, pod) = (Node::new(), Pod::new());
    let (dir, log) = foreign_ipam(&node);
    let conf = node.conf(json!({"ipam": {"type": "their-ipam", "mine": 1}}));
    let told = |command: &str, conf: &Value| {
        let mut process = node.command(&[], command, "c1");
        run(
            process
                .env("CNI_NETNS", pod.path())
                .env("CNI_PATH", format!("/nowhere:{}", dir.display())),
            conf,
        )
    };
    let added = told("ADD", &conf).expect_ok();
    assert_eq!(
        added.json["ips"],
        json!([{"address": "10.7.0.9/24", "gateway": "10.7.0.1", "interface": 2}])
    );
    assert_eq!(added.json["dns"], json!({"domain": "a"}));
    assert_eq!(
        pod.ip("route show 198.51.100.0/24")[0]["gateway"],
        "10.7.0.1"
    );
    let stdin: Value = serde_json::from_slice(&std::fs::read(dir.join("stdin")).unwrap()).unwrap();
    assert_eq!(stdin, conf, "the whole configuration");
    told("CHECK", &node.with_prev(&conf, &added)).expect_ok();
    told("STATUS", &conf).expect_ok();
    let mut valid = conf.clone();
    valid["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    told("GC", &valid).expect_ok();
    told("DEL", &conf).expect_ok();
    let lines = std::fs::read_to_string(&log).unwrap();
    assert_eq!(lines, "ADD c1\nCHECK c1\nSTATUS c1\nGC c1\nDEL c1\n");
    node.assert_clean("after DEL");

    for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        std::fs::write(dir.join(format!("fail-{command}")), "").unwrap();
    }
    std::fs::write(&log, "").unwrap();
    for command in ["STATUS", "ADD"] {
        let (code, text) = told(command, &conf).expect_error();
        assert!(
            code == 77 && text.contains("IPAM plugin their-ipam: no: luck"),
            "{code} {text}"
        );
    }
    assert_eq!(
        std::fs::read_to_string(&log).unwrap(),
        "STATUS c1\nADD c1\nDEL c1\n",
        "T23: DEL after a failed ADD"
    );
    let nobody = node.conf(json!({"ipam": {"type": "nobody-s-ipam"}}));
    let (code, text) = told("ADD", &nobody).expect_error();
    assert!(
        code == 4 && text.contains("nobody-s-ipam") && text.contains("CNI_PATH"),
        "{code} {text}"
    );
}

/// The plugin's process under a reference plugin's name.
fn named(node: &Node, name: &str, command: &str) -> std::process::Command {
    let link = node.data.path().join(name);
    if !link.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_podspan-cni"), &link).unwrap();
    }
    let ours = node.command(&[], command, "c1");
    let mut process = std::process::Command::new(link);
    process.env_clear().envs(
        ours.get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    for stream in [std::process::Command::stdin, std::process::Command::stdout] {
        stream(&mut process, std::process::Stdio::piped());
    }
    process
}

#[test]
fn under_the_name_bridge_it_has_the_reference_plugin_s_defaults() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({"type": "bridge"}));
    let added = run(
        named(&node, "bridge", "ADD").env("CNI_NETNS", pod.path()),
        &conf,
    )
    .expect_ok();
    assert_eq!(added.json["interfaces"][0]["name"], "cni0");
    assert_eq!(pod.ip("route show default"), json!([]));
    let link = added.json["interfaces"][1]["name"].as_str().unwrap();
    let port = &node.ns.ip(&format!("-d link show {link}"))[0]["linkinfo"]["info_slave_data"];
    assert_eq!(port["hairpin"], false);
    let conf = node.with_prev(&conf, &added);
    run(
        named(&node, "bridge", "CHECK").env("CNI_NETNS", pod.path()),
        &conf,
    )
    .expect_ok();
    run(&mut named(&node, "bridge", "DEL"), &conf).expect_ok();
    assert_eq!(node.addresses(), Vec::<String>::new());
}

#[test]
fn under_the_name_host_local_it_is_the_ipam_alone() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    let run_it = |command: &str, conf: &Value| {
        run(
            named(&node, "host-local", command).env("CNI_NETNS", pod.path()),
            conf,
        )
    };
    let added = run_it("ADD", &conf).expect_ok();
    assert_eq!(
        added.json["ips"],
        json!([
        {"address": "10.244.1.2/24", "gateway": "10.244.1.1"},
        {"address": "fd00:10:244:1::2/64", "gateway": "fd00:10:244:1::1"}]),
        "T23: without interfaces"
    );
    assert!(added.json.get("interfaces").is_none());
    assert_eq!(pod.ip("link show").as_array().unwrap().len(), 1);
    run_it("CHECK", &node.with_prev(&conf, &added)).expect_ok();
    run_it("STATUS", &conf).expect_ok();
    assert_eq!(run_it("ADD", &conf).expect_error().0, 102);
    run_it("DEL", &conf).expect_ok();
    node.assert_clean("after DEL");
    assert_eq!(
        run_it("CHECK", &node.with_prev(&conf, &added))
            .expect_error()
            .0,
        103
    );
}

/// As of Calico, whose `policy` is not ours; and of plugins that have our keys with other values.
#[test]
fn t17_under_the_name_host_local_it_judges_no_key_of_its_caller() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({
        "type": "calico", "policy": {"type": "k8s"}, "mtu": "auto", "bridge": 7, "vlan": "many",
        "dns": [], "ipMasq": "yes", "capabilities": {"ips": true},
        "args": {"cni": {"mac": 7, "labels": []}},
        "runtimeConfig": {"ips": ["10.244.1.9"], "mac": 7, "portMappings": 7, "bandwidth": [], "dns": 7},
    }));
    let run_it = |command: &str, conf: &Value| {
        let mut process = named(&node, "host-local", command);
        process.env("CNI_NETNS", pod.path());
        run(process.env("CNI_ARGS", "MAC=x;THEIRS=y"), conf)
    };
    let added = run_it("ADD", &conf).expect_ok();
    assert_eq!(added.ip(4), "10.244.1.9");
    run_it("CHECK", &node.with_prev(&conf, &added)).expect_ok();
    run_it("STATUS", &conf).expect_ok();
    run_it("DEL", &conf).expect_ok();
    node.assert_clean("after DEL");
    let (code, text) = {
        let mut conf = conf;
        conf["runtimeConfig"]["ips"] = json!(["x"]);
        run_it("ADD", &conf).expect_error()
    };
    assert!(
        code == 7 && text.starts_with("runtimeConfig.ips: \"x\""),
        "{code} {text}"
    );
}

#[test]
fn under_the_name_loopback_it_sets_lo_up() {
    let (node, pod) = (Node::new(), Pod::new());
    pod.ip("link set lo down");
    let conf = json!({"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"});
    let run_it = |command: &str, conf: &Value| {
        run(
            named(&node, "loopback", command)
                .env("CNI_NETNS", pod.path())
                .env("CNI_IFNAME", "lo"),
            conf,
        )
    };
    let added = run_it("ADD", &conf).expect_ok();
    assert_eq!(added.json["interfaces"][0]["name"], "lo");
    assert_eq!(
        added.json["ips"][0],
        json!({"address": "127.0.0.1/8", "interface": 0, "version": "4"})
    );
    assert!(
        pod.ip("link show lo")[0]["flags"]
            .to_string()
            .contains("UP")
    );
    run_it("DEL", &conf).expect_ok();
    let conf = json!({"cniVersion": "1.0.0", "name": "cni-loopback", "type": "loopback", "prevResult": added.json});
    run_it("CHECK", &conf).expect_ok();
    pod.ip("link set lo down");
    assert_eq!(
        run_it("CHECK", &conf).expect_error(),
        (103, "interface lo in the pod is down".into())
    );
}

#[test]
fn standard_output_that_is_gone_undoes_the_add() {
    let (node, pod) = (Node::new(), Pod::new());
    let mut process = node.command(&[], "ADD", "c1");
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = run_raw(
        process.env("CNI_NETNS", pod.path()).stdout(full),
        &node.conf(json!({})),
    );
    assert!(!output.status.success());
    node.assert_clean("after the ADD whose result nobody got");
}
