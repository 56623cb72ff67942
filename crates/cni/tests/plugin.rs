//! The executable, with JSON on its standard input, on the real kernel. Rule numbers are those of the CNI digest.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use harness::{Answer, Node, Pod, run, run_raw};
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
