//! Under the names of the reference plugins `static`, `bandwidth`, `tuning` and `ptp`, as real processes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::process::Command;

use harness::kill::{self, points};
use harness::{Answer, Node, Pod, is_guarded, run, run_raw};
use podspan_cni::attachment::{AttachmentId, IfbMaker};
use serde_json::{Value, json};

fn process(node: &Node, name: &str, command: &str, pod: Option<&Pod>) -> Command {
    let mut process = node.command_as(name, &[], (command, "c1"));
    process.envs(pod.map(|pod| ("CNI_NETNS", pod.path())));
    process
}

fn call(node: &Node, name: &str, (command, pod): (&str, Option<&Pod>), conf: &Value) -> Answer {
    run(&mut process(node, name, command, pod), conf)
}

/// An ADD whose result nobody gets.
fn add_to_nobody(node: &Node, name: &str, pod: &Pod, conf: &Value) {
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let output = run_raw(process(node, name, "ADD", Some(pod)).stdout(full), conf);
    assert!(!output.status.success());
}

/// The configuration of a chained plugin: these keys, and the result of the plugin before it.
fn chained(keys: Value, before: &Answer) -> Value {
    let mut conf = json!({"cniVersion": "1.1.0", "name": "net", "prevResult": before.json});
    conf.as_object_mut()
        .unwrap()
        .extend(keys.as_object().unwrap().clone());
    conf
}

fn id() -> AttachmentId {
    AttachmentId {
        container: "c1".parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
    }
}

fn qdiscs(link: &str) -> Vec<String> {
    let output = Command::new("tc")
        .args(["-j", "qdisc", "show", "dev", link])
        .output()
        .unwrap();
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let kinds = all
        .iter()
        .map(|qdisc| qdisc["kind"].as_str().unwrap().to_owned());
    kinds.filter(|kind| kind != "noqueue").collect()
}

/// The kinds of what judges or redirects what the link receives, in order.
fn filters(link: &str) -> Vec<String> {
    let all = harness::tc(&format!("filter show dev {link} ingress"));
    let kinds = all.iter().map(|filter| filter["kind"].as_str());
    let mut kinds: Vec<_> = kinds.map(|kind| kind.unwrap().to_owned()).collect();
    kinds.dedup();
    kinds
}

fn static_conf(ipam: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam})
}

#[test]
fn t23_static_gives_what_the_configuration_says_without_interfaces() {
    let (node, pod) = (Node::new(), Pod::new());
    let ipam = json!({"type": "static",
        "addresses": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "3ffe:ffff:0:01ff::1/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.10.5.1"}],
        "dns": {"nameservers": ["10.10.0.53"], "search": ["a.example"]}});
    let conf = static_conf(ipam);
    let added = call(&node, "static", ("ADD", Some(&pod)), &conf).expect_ok();
    assert_eq!(
        added.json,
        json!({"cniVersion": "1.0.0",
        "ips": [{"address": "10.10.0.1/24", "gateway": "10.10.0.254"}, {"address": "3ffe:ffff:0:1ff::1/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.10.5.1"}],
        "dns": {"nameservers": ["10.10.0.53"], "search": ["a.example"]}})
    );
    call(
        &node,
        "static",
        ("CHECK", Some(&pod)),
        &node.with_prev(&conf, &added),
    )
    .expect_ok();
    call(&node, "static", ("DEL", None), &conf).expect_ok();
    let mut other = node.with_prev(&conf, &added);
    other["prevResult"]["ips"][0]["gateway"] = json!("10.10.0.9");
    let (code, text) = call(&node, "static", ("CHECK", Some(&pod)), &other).expect_error();
    assert_eq!(
        (code, text.as_str()),
        (
            103,
            "address 10.10.0.1/24 with gateway 10.10.0.254 is not in prevResult"
        )
    );
    let (code, text) = call(&node, "static", ("CHECK", Some(&pod)), &conf).expect_error();
    assert!(
        code == 7 && text.starts_with("prevResult is missing"),
        "T28: {code} {text}"
    );
}

#[test]
fn static_is_told_what_one_pod_gets_by_precedence() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = static_conf(json!({"type": "static", "addresses": [{"address": "10.10.0.1/24"}]}));
    let with_args = |conf: &Value, args: &str| {
        run(
            process(&node, "static", "ADD", Some(&pod)).env("CNI_ARGS", args),
            conf,
        )
    };
    let args =
        "IgnoreUnknown=1;K8S_POD_NAME=a;IP=10.20.0.7/24, fd00::7/64;GATEWAY=10.20.0.1,fd00::1";
    assert_eq!(
        with_args(&conf, args).expect_ok().json["ips"],
        json!([{"address": "10.10.0.1/24"}, {"address": "10.20.0.7/24", "gateway": "10.20.0.1"},
               {"address": "fd00::7/64", "gateway": "fd00::1"}])
    );
    let mut asked = conf.clone();
    asked["args"] = json!({"cni": {"ips": ["10.30.0.7/24"]}});
    assert_eq!(
        with_args(&asked, args).expect_ok().json["ips"],
        json!([{"address": "10.30.0.7/24"}])
    );
    asked["runtimeConfig"] = json!({"ips": ["10.40.0.7/24", "fd00:4::7/64"]});
    assert_eq!(
        with_args(&asked, args).expect_ok().json["ips"],
        json!([{"address": "10.40.0.7/24"}, {"address": "fd00:4::7/64"}])
    );
    // The bridge in front of it leaves commas and the gateway alone.
    let mut chain = node.conf(json!({"ipam": conf["ipam"]}));
    chain["ipam"]["addresses"] = json!([]);
    node.command_as("static", &[], ("ADD", "c1"));
    let mut bridge = process(&node, "bridge", "ADD", Some(&pod));
    bridge
        .env("CNI_PATH", node.data.path())
        .env("CNI_ARGS", args);
    let added = run(&mut bridge, &chain).expect_ok();
    assert_eq!(
        (added.ip(4).as_str(), added.ip(6).as_str()),
        ("10.20.0.7", "fd00::7")
    );
}

#[test]
fn t14_static_tells_a_bad_value_with_its_key() {
    let (node, pod) = (Node::new(), Pod::new());
    let refused = |conf: &Value, args: &str| {
        run(
            process(&node, "static", "ADD", Some(&pod)).env("CNI_ARGS", args),
            conf,
        )
        .expect_error()
    };
    let of = |addresses: Value| static_conf(json!({"type": "static", "addresses": addresses}));
    let (code, text) = refused(&of(json!([{"address": "10.0.0.1"}])), "");
    assert!(
        code == 7 && text.starts_with("ipam.addresses[0].address: \"10.0.0.1\" is no address with"),
        "{text}"
    );
    let (code, text) = refused(&of(json!([{"address": "10.0.0.1/8", "gateway": "x"}])), "");
    assert!(
        code == 7 && text.starts_with("ipam.addresses[0].gateway: \"x\""),
        "{text}"
    );
    let (code, text) = refused(&of(json!([])), "IP=10.0.0.1");
    assert!(
        code == 4 && text.starts_with("CNI_ARGS: IP: \"10.0.0.1\""),
        "{text}"
    );
    let mut conf = of(json!([]));
    conf["runtimeConfig"] = json!({"ips": ["x"]});
    let (code, text) = refused(&conf, "");
    assert!(
        code == 7 && text.starts_with("runtimeConfig.ips: \"x\""),
        "{text}"
    );
    let mut old = of(json!([{"address": "10.0.0.1/8"}, {"address": "10.0.0.2/8"}]));
    old["cniVersion"] = json!("0.2.0");
    let (code, text) = refused(&old, "");
    assert!(
        code == 7 && text.contains("0.2.0 has room for one of each family"),
        "{text}"
    );
}

#[test]
fn t19_bandwidth_limits_the_peer_of_the_pod_s_interface_and_adds_its_device_to_the_result() {
    let (node, pod) = (Node::new(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let host_veth = added.json["interfaces"][1]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let ifb = id()
        .ifb(&"net".parse().unwrap(), IfbMaker::Bandwidth)
        .to_string();
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000,
                        "egressRate": 16_000_000, "egressBurst": 800_000});
    let conf = chained(limits.clone(), &added);
    let limited = call(&node, "bandwidth", ("ADD", Some(&pod)), &conf).expect_ok();
    let mut expected = added.json.clone();
    let mac = &node.ns.ip(&format!("link show {ifb}"))[0]["address"];
    expected["interfaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"name": ifb, "mac": mac, "mtu": 1500}));
    assert_eq!(limited.json, expected);
    // The guard of the plugin before stands first, and stays.
    assert_eq!(qdiscs(&host_veth), ["tbf", "clsact"]);
    assert!(is_guarded(&host_veth));
    assert_eq!(qdiscs(&ifb), ["tbf"]);
    assert_eq!(
        node.ns.ip(&format!("link show {ifb}"))[0]["ifalias"],
        "podspan:net/c1/eth0"
    );

    let conf = chained(limits, &limited);
    call(&node, "bandwidth", ("CHECK", Some(&pod)), &conf).expect_ok();
    node.ns.ip(&format!("link set {ifb} down"));
    let (code, text) = call(&node, "bandwidth", ("CHECK", Some(&pod)), &conf).expect_error();
    assert!(
        code == 103 && text.contains("is down"),
        "T28: {code} {text}"
    );
    // T24: without a namespace, without a result, and again. The pair is another plugin's.
    let bare = json!({"cniVersion": "1.1.0", "name": "net"});
    for _ in 0..2 {
        call(&node, "bandwidth", ("DEL", None), &bare).expect_ok();
        assert_eq!(qdiscs(&host_veth), ["clsact"]);
        assert_eq!(filters(&host_veth), ["bpf"]);
        assert_eq!(node.pod_links(), [host_veth.as_str()]);
    }
    node.del("c1", &node.conf(json!({}))).expect_ok();
    call(&node, "bandwidth", ("DEL", None), &bare).expect_ok();
    node.assert_clean("DEL of both");
    // Behind a plugin that guards nobody, what it made goes whole.
    let added = node
        .add("c1", &pod, &node.conf(json!({"antiSpoof": false})))
        .expect_ok();
    let conf = chained(
        json!({"egressRate": 16_000_000, "egressBurst": 800_000}),
        &added,
    );
    call(&node, "bandwidth", ("ADD", Some(&pod)), &conf).expect_ok();
    assert_eq!(qdiscs(&host_veth), ["ingress"]);
    call(&node, "bandwidth", ("DEL", None), &bare).expect_ok();
    assert_eq!(qdiscs(&host_veth), Vec::<String>::new());
    node.del("c1", &node.conf(json!({}))).expect_ok();
    node.assert_clean("DEL of both");
    node.assert_foreign_survives();
}

#[test]
fn bandwidth_takes_the_runtime_s_limits_and_without_any_hands_the_result_on() {
    let (node, pod) = (Node::new(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let nothing = call(
        &node,
        "bandwidth",
        ("ADD", Some(&pod)),
        &chained(json!({}), &added),
    )
    .expect_ok();
    assert_eq!(nothing.json, added.json);
    let of_runtime =
        json!({"runtimeConfig": {"bandwidth": {"IngressRate": 8000, "IngressBurst": 80000}}});
    let limited = call(
        &node,
        "bandwidth",
        ("ADD", Some(&pod)),
        &chained(of_runtime.clone(), &added),
    )
    .expect_ok();
    assert_eq!(
        limited.json, added.json,
        "without a device for what the pod sends"
    );
    call(
        &node,
        "bandwidth",
        ("CHECK", Some(&pod)),
        &chained(of_runtime, &limited),
    )
    .expect_ok();

    let refused = |conf: Value| call(&node, "bandwidth", ("ADD", Some(&pod)), &conf).expect_error();
    let (code, text) = refused(chained(json!({"egressRate": 8}), &added));
    assert_eq!(
        (code, text.as_str()),
        (
            7,
            "egressRate is 8; egressBurst must be given with it, in bits"
        )
    );
    let both = json!({"egressRate": 8000, "egressBurst": 80000});
    let (code, text) = refused(chained(
        both.clone(),
        &Answer {
            ok: true,
            json: Value::Null,
        },
    ));
    assert!(
        code == 7 && text.starts_with("prevResult is missing"),
        "{text}"
    );
    let mut foreign = chained(both, &added);
    foreign["prevResult"]["interfaces"][1]["name"] = json!("another");
    let (code, text) = refused(foreign);
    assert!(
        code == 7 && text.starts_with("prevResult: the node's end of eth0"),
        "{text}"
    );
    assert_eq!(node.pod_links().len(), 1);
}

#[test]
fn t29_gc_of_bandwidth_frees_devices_of_its_own_network_only() {
    let (node, pod) = (Node::new(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let both = json!({"egressRate": 8_000_000, "egressBurst": 800_000});
    call(
        &node,
        "bandwidth",
        ("ADD", Some(&pod)),
        &chained(both, &added),
    )
    .expect_ok();
    node.del("c1", &node.conf(json!({}))).expect_ok();
    let ifb = node.pod_links();
    assert_eq!(ifb.len(), 1, "the pair is gone, the device is not: {ifb:?}");
    let gc = |network: &str, valid: Value| {
        let conf =
            json!({"cniVersion": "1.1.0", "name": network, "cni.dev/valid-attachments": valid});
        call(&node, "bandwidth", ("GC", None), &conf)
    };
    gc("net", json!([{"containerID": "c1", "ifname": "eth0"}])).expect_ok();
    gc("other", json!([])).expect_ok();
    assert_eq!(
        gc("net", Value::Null).expect_error().0,
        7,
        "no list is no list of nothing"
    );
    assert_eq!(node.pod_links(), ifb);
    gc("net", json!([])).expect_ok();
    node.assert_clean("GC");
}

#[test]
fn both_bandwidths_of_one_attachment_have_devices_of_their_own() {
    let (node, pod) = (Node::new(), Pod::new());
    let limits = json!({"egressRate": 8_000_000, "egressBurst": 800_000});
    let conf = node.conf(json!({"runtimeConfig": {"bandwidth": limits}}));
    let added = node.add("c1", &pod, &conf).expect_ok();
    call(
        &node,
        "bandwidth",
        ("ADD", Some(&pod)),
        &chained(limits, &added),
    )
    .expect_ok();
    assert_eq!(node.pod_links().len(), 3);
    call(
        &node,
        "bandwidth",
        ("DEL", None),
        &json!({"cniVersion": "1.0.0", "name": "net"}),
    )
    .expect_ok();
    assert_eq!(node.pod_links().len(), 2);
    node.del("c1", &conf).expect_ok();
    node.assert_clean("DEL of both");
}

#[test]
fn a_failed_add_of_bandwidth_or_tuning_leaves_all_as_it_was() {
    let (node, pod) = (Node::new(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let links = node.pod_links();
    let judged = (qdiscs(&links[0]), filters(&links[0]));
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000,
                        "egressRate": 16_000_000, "egressBurst": 800_000});
    add_to_nobody(&node, "bandwidth", &pod, &chained(limits, &added));
    assert_eq!((qdiscs(&links[0]), filters(&links[0])), judged);
    assert_eq!(node.pod_links(), links);

    let before = pod.ip("-d link show eth0");
    let backups = node.data.path().join("backups");
    let conf = json!({"mtu": 1400, "mac": "0a:00:00:00:00:07", "promisc": true, "allmulti": true, "txQLen": 7,
                      "dataDir": backups, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}});
    add_to_nobody(&node, "tuning", &pod, &chained(conf.clone(), &added));
    let mut late = conf;
    // The kernel refuses it after everything before it was set.
    late["sysctl"]["net.ipv4.conf.zzz.arp_filter"] = json!("1");
    let (code, text) =
        call(&node, "tuning", ("ADD", Some(&pod)), &chained(late, &added)).expect_error();
    assert!(
        code == 100 && text.contains("net/ipv4/conf/zzz/arp_filter"),
        "{text}"
    );
    assert_eq!(pod.ip("-d link show eth0"), before);
    assert_eq!(arp_filter(&pod), "0");
    assert_eq!(std::fs::read_dir(&backups).unwrap().count(), 0);
}

fn arp_filter(pod: &Pod) -> String {
    let read = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/eth0/arp_filter");
    pod.run(read).unwrap().trim().to_owned()
}

#[test]
fn t19_tuning_changes_what_it_is_told_and_del_restores_it() {
    let (node, pod) = (Node::new(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let before = pod.ip("-d link show eth0");
    let backups = node.data.path().join("backups");
    let keys = json!({"mtu": 1400, "mac": "0a:00:00:00:00:07", "promisc": true, "allmulti": true, "txQLen": 7,
                      "dataDir": backups, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}});
    let tuned = call(
        &node,
        "tuning",
        ("ADD", Some(&pod)),
        &chained(keys.clone(), &added),
    )
    .expect_ok();
    let mut expected = added.json.clone();
    expected["interfaces"][2]["mac"] = json!("0a:00:00:00:00:07");
    expected["interfaces"][2]["mtu"] = json!(1400);
    assert_eq!(tuned.json, expected);
    let link = &pod.ip("link show eth0")[0];
    assert_eq!(
        (&link["mtu"], &link["txqlen"], &link["address"]),
        (&json!(1400), &json!(7), &json!("0a:00:00:00:00:07"))
    );
    let flags = link["flags"].to_string();
    assert!(
        flags.contains("PROMISC") && flags.contains("ALLMULTI"),
        "{flags}"
    );
    assert_eq!(arp_filter(&pod), "1");

    let conf = chained(keys, &tuned);
    call(&node, "tuning", ("CHECK", Some(&pod)), &conf).expect_ok();
    pod.ip("link set eth0 mtu 1300 promisc off");
    pod.run(|| std::fs::write("/proc/sys/net/ipv4/conf/eth0/arp_filter", "0"))
        .unwrap();
    let (code, text) = call(&node, "tuning", ("CHECK", Some(&pod)), &conf).expect_error();
    assert_eq!(
        (code, text.as_str()),
        (
            103,
            "sysctl net/ipv4/conf/eth0/arp_filter is 0, not 1; \
        interface eth0 in the pod has mtu 1300, not 1400; interface eth0 in the pod has promisc false, not true"
        )
    );

    for _ in 0..2 {
        call(&node, "tuning", ("DEL", Some(&pod)), &conf).expect_ok();
        assert_eq!(pod.ip("-d link show eth0"), before);
        assert_eq!(std::fs::read_dir(&backups).unwrap().count(), 0);
    }
}

#[test]
fn t24_t26_del_of_tuning_needs_no_namespace_and_touches_no_other_pod() {
    let (node, pod, other) = (Node::new(), Pod::new(), Pod::new());
    let backups = node.data.path().join("backups");
    let keys = json!({"mtu": 1400, "dataDir": backups});
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    node.add("c2", &other, &node.conf(json!({"mtu": 1350})))
        .expect_ok();
    let conf = chained(keys, &added);
    call(&node, "tuning", ("ADD", Some(&pod)), &conf).expect_ok();
    // The path leads to another pod by now.
    call(&node, "tuning", ("DEL", Some(&other)), &conf).expect_ok();
    assert_eq!(other.ip("link show eth0")[0]["mtu"], 1350);
    assert_eq!(std::fs::read_dir(&backups).unwrap().count(), 0);
    call(&node, "tuning", ("ADD", Some(&pod)), &conf).expect_ok();
    call(&node, "tuning", ("DEL", None), &conf).expect_ok();
    assert_eq!(std::fs::read_dir(&backups).unwrap().count(), 0);
    // What the reference plugin kept is restored.
    std::fs::write(backups.join("c1_eth0.json"), r#"{"mtu": 1333}"#).unwrap();
    call(&node, "tuning", ("DEL", Some(&pod)), &conf).expect_ok();
    assert_eq!(pod.ip("link show eth0")[0]["mtu"], 1333);
}

#[test]
fn t29_gc_of_tuning_removes_backups_of_its_own_network_only() {
    let (node, pod) = (Node::new(), Pod::new());
    let backups = node.data.path().join("backups");
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let keys = json!({"mtu": 1400, "dataDir": backups});
    call(&node, "tuning", ("ADD", Some(&pod)), &chained(keys, &added)).expect_ok();
    std::fs::write(backups.join("c9_eth0.json"), r#"{"mtu": 1333}"#).unwrap();
    let gc = |network: &str, valid: Value| {
        let conf = json!({"cniVersion": "1.1.0", "name": network, "dataDir": backups,
                          "cni.dev/valid-attachments": valid});
        call(&node, "tuning", ("GC", None), &conf).expect_ok();
        std::fs::read_dir(&backups).unwrap().count()
    };
    assert_eq!(
        gc("net", json!([{"containerID": "c1", "ifname": "eth0"}])),
        2
    );
    assert_eq!(gc("other", json!([])), 2);
    assert_eq!(
        gc("net", json!([])),
        1,
        "the reference plugin's does not say whose it is"
    );
}

#[test]
fn tuning_is_told_what_one_pod_gets_by_precedence() {
    let (node, pod) = (Node::new(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let mut keys = json!({"mac": "0a:00:00:00:00:01", "dataDir": node.data.path().join("backups")});
    let mac = |keys: &Value, args: &str| {
        let mut add = process(&node, "tuning", "ADD", Some(&pod));
        run(add.env("CNI_ARGS", args), &chained(keys.clone(), &added)).expect_ok();
        pod.ip("link show eth0")[0]["address"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(mac(&keys, ""), "0a:00:00:00:00:01");
    assert_eq!(mac(&keys, "MAC=0a:00:00:00:00:02"), "0a:00:00:00:00:02");
    keys["args"] = json!({"cni": {"mac": "0a:00:00:00:00:03", "mtu": 1450}});
    assert_eq!(mac(&keys, "MAC=0a:00:00:00:00:02"), "0a:00:00:00:00:03");
    assert_eq!(pod.ip("link show eth0")[0]["mtu"], 1450);
    keys["runtimeConfig"] = json!({"mac": "0a:00:00:00:00:04"});
    assert_eq!(mac(&keys, "MAC=0a:00:00:00:00:02"), "0a:00:00:00:00:04");
}

#[test]
fn tuning_sets_no_sysctl_of_the_node_and_none_that_is_not_allowed() {
    let (node, pod) = (Node::new(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    for key in [
        "kernel.hostname",
        "net/../kernel/hostname",
        "net.//.//.kernel/hostname",
        "net",
        "../net/core/somaxconn",
    ] {
        let conf = chained(json!({"sysctl": {key: "x"}}), &added);
        let (code, text) = call(&node, "tuning", ("ADD", Some(&pod)), &conf).expect_error();
        assert!(
            code == 7 && text.starts_with(&format!("sysctl.{key} is none of the pod's")),
            "{key}: {text}"
        );
    }
    // /etc is another one, for this process alone.
    let allow = "mount -t tmpfs none /etc && mkdir -p /etc/cni/tuning \
                 && echo '^net.ipv4.conf.IFNAME.[a-z_]*$' > /etc/cni/tuning/allowlist.conf && exec \"$0\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", allow].map(str::to_owned);
    let add = |key: &str| {
        let mut add = node.command_as("tuning", &wrapper, ("ADD", "c1"));
        run(
            add.env("CNI_NETNS", pod.path()),
            &chained(json!({"sysctl": {key: "1"}}), &added),
        )
    };
    add("net.ipv4.conf.IFNAME.arp_filter").expect_ok();
    assert_eq!(arp_filter(&pod), "1");
    let (code, text) = add("net.ipv4.ip_forward").expect_error();
    assert_eq!(
        (code, text.as_str()),
        (
            7,
            "sysctl.net.ipv4.ip_forward: /etc/cni/tuning/allowlist.conf does not allow it"
        )
    );
    let refused =
        |keys| call(&node, "tuning", ("ADD", Some(&pod)), &chained(keys, &added)).expect_error();
    assert!(
        refused(json!({"mtu": -1}))
            .1
            .starts_with("mtu: invalid value: integer `-1`")
    );
    assert!(
        refused(json!({"mac": "x"}))
            .1
            .starts_with("mac: MAC address \"x\"")
    );
    assert!(
        refused(json!({"dataDir": "x"}))
            .1
            .starts_with("dataDir is x; it must be absolute")
    );
}

fn ptp_conf(node: &Node, changes: Value) -> Value {
    let routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let mut conf = node.conf(json!({"type": "ptp"}));
    conf["ipam"]["routes"] = routes;
    conf.as_object_mut()
        .unwrap()
        .extend(changes.as_object().unwrap().clone());
    conf
}

#[test]
fn ptp_routes_to_each_pod_and_pods_reach_each_other_and_the_node() {
    let node = Node::new();
    let conf = ptp_conf(&node, json!({}));
    let (first, second) = (Pod::new(), Pod::new());
    let add = |container: &str, pod: &Pod| {
        let mut add = node.command_as("ptp", &[], ("ADD", container));
        run(add.env("CNI_NETNS", pod.path()), &conf).expect_ok()
    };
    let added = add("c1", &first);
    let host_veth = id().host_veth(&"net".parse().unwrap()).to_string();
    let link = &node.ns.ip(&format!("addr show {host_veth}"))[0];
    let eth0 = &first.ip("addr show eth0")[0];
    assert_eq!(
        added.json,
        json!({"cniVersion": "1.1.0", "dns": {},
            "interfaces": [
                {"name": host_veth, "mac": link["address"], "mtu": 1500},
                {"name": "eth0", "mac": eth0["address"], "mtu": 1500, "sandbox": first.path()}],
            "ips": [
                {"address": "10.244.1.2/24", "gateway": "10.244.1.1", "interface": 1},
                {"address": "fd00:10:244:1::2/64", "gateway": "fd00:10:244:1::1", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}, {"dst": "::/0", "gw": "fd00:10:244:1::1"}]})
    );
    let has = |local: &str, length: u64| {
        link["addr_info"]
            .as_array()
            .unwrap()
            .iter()
            .any(|address| address["local"] == local && address["prefixlen"] == length)
    };
    assert!(
        has("10.244.1.1", 32) && has("fd00:10:244:1::1", 128),
        "{link}"
    );
    assert_eq!(
        node.ns.ip("route show 10.244.1.2")[0]["dev"],
        host_veth.as_str()
    );
    assert_eq!(
        node.ns.ip("-6 route show fd00:10:244:1::2")[0]["dev"],
        host_veth.as_str()
    );
    let subnet = &first.ip("route show 10.244.1.0/24")[0];
    assert_eq!(
        (&subnet["gateway"], &subnet["dev"]),
        (&json!("10.244.1.1"), &json!("eth0"))
    );
    assert_eq!(first.ip("route show 10.244.1.1")[0]["scope"], "link");
    assert_eq!(
        first.ip("-6 route show fd00:10:244:1::/64")[0]["gateway"],
        "fd00:10:244:1::1"
    );

    let other = add("c2", &second);
    let (_a, _b) = (first.listen(), second.listen());
    let _on_node = std::net::TcpListener::bind("[::]:8080").unwrap();
    for family in [4, 6] {
        assert!(first.reaches(&other.ip(family)), "pod to pod, IPv{family}");
        assert!(second.reaches(&added.ip(family)), "pod to pod, IPv{family}");
        assert!(
            first.reaches(
                added.json["ips"][usize::from(family == 6)]["gateway"]
                    .as_str()
                    .unwrap()
            )
        );
        std::net::TcpStream::connect((added.ip(family), 8080)).unwrap();
    }
    assert!(
        node.ns
            .ip("link show type bridge")
            .as_array()
            .unwrap()
            .len()
            == 1,
        "foreign0 alone"
    );

    let del = |container: &str| {
        run(&mut node.command_as("ptp", &[], ("DEL", container)), &conf).expect_ok();
    };
    ["c1", "c2", "c1"].into_iter().for_each(del);
    node.assert_clean("DEL");
    assert_eq!(
        node.ns
            .ip("route show 10.244.1.0/24 table all")
            .as_array()
            .map_or(0, Vec::len),
        0
    );
    node.assert_foreign_survives();
}

/// A pod may send one also where the network has IPv4 alone (CVE-2020-10749).
#[test]
fn the_host_veth_of_ptp_takes_no_router_advertisement_and_needs_no_ipv6() {
    for mtu in [1500, 1200] {
        let (node, pod) = (Node::new(), Pod::new());
        let mut conf = ptp_conf(&node, json!({"mtu": mtu}));
        conf["ipam"]["ranges"] = json!([[{"subnet": "10.244.1.0/24"}]]);
        conf["ipam"]["routes"] = json!([{"dst": "0.0.0.0/0"}]);
        let mut add = node.command_as("ptp", &[], ("ADD", "c1"));
        run(add.env("CNI_NETNS", pod.path()), &conf).expect_ok();
        let host_veth = id().host_veth(&"net".parse().unwrap());
        let key = format!("/proc/sys/net/ipv6/conf/{host_veth}/accept_ra");
        let seen = std::fs::read_to_string(key).ok();
        assert_eq!(seen.as_deref(), (mtu == 1500).then_some("0\n"));
    }
}

#[test]
fn t28_check_of_ptp_finds_every_deviation() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = ptp_conf(&node, json!({"ipMasq": true}));
    let host_veth = id().host_veth(&"net".parse().unwrap()).to_string();
    let deviate = |break_it: &dyn Fn(), expected: &str| {
        let added = call(&node, "ptp", ("ADD", Some(&pod)), &conf).expect_ok();
        let prev = node.with_prev(&conf, &added);
        call(&node, "ptp", ("CHECK", Some(&pod)), &prev).expect_ok();
        break_it();
        let (code, text) = call(&node, "ptp", ("CHECK", Some(&pod)), &prev).expect_error();
        let ip = added.ip(4);
        assert!(
            code == 103 && text.contains(&expected.replace("IP", &ip)),
            "{code} {text}"
        );
        call(&node, "ptp", ("DEL", None), &conf).expect_ok();
        node.assert_clean(expected);
    };
    let ip = |arguments: String| _ = node.ns.ip(&arguments);
    deviate(
        &|| ip(format!("addr del 10.244.1.1/32 dev {host_veth}")),
        "does not have the gateway's address 10.244.1.1/32",
    );
    deviate(
        &|| ip(format!("route flush dev {host_veth} proto boot")),
        "the node has no route to IP/32 by",
    );
    deviate(
        &|| ip(format!("link set {host_veth} down")),
        &format!("host veth {host_veth} is down"),
    );
    deviate(
        &|| _ = pod.ip("addr flush dev eth0 scope global"),
        "has no address IP/24",
    );
    deviate(
        &|| _ = pod.ip("route del default"),
        "the pod has no route to 0.0.0.0/0",
    );
    let delete = || {
        let all = "flush set inet podspan masquerade4";
        assert!(Command::new("nft").arg(all).status().unwrap().success());
    };
    deviate(&delete, "IP is not masqueraded");
    deviate(
        &|| _ = std::fs::write("/proc/sys/net/ipv4/ip_forward", "0"),
        "sysctl net/ipv4/ip_forward is 0",
    );
}

#[test]
fn ptp_masquerades_what_leaves_the_node_and_leaves_nothing() {
    let (node, first, second, outside) = (Node::new(), Pod::new(), Pod::new(), Pod::new());
    node.ns.ip("link add up0 type veth peer name out0");
    node.ns
        .ip(&format!("link set out0 netns {}", outside.path().display()));
    node.ns.ip("addr add 203.0.113.1/24 dev up0");
    node.ns.ip("link set up0 up");
    outside.ip("addr add 203.0.113.2/24 dev out0");
    outside.ip("link set out0 up");
    let conf = ptp_conf(&node, json!({"ipMasq": true}));
    let add = |container: &str, pod: &Pod| {
        let mut add = node.command_as("ptp", &[], ("ADD", container));
        run(add.env("CNI_NETNS", pod.path()), &conf).expect_ok()
    };
    let (added, other) = (add("c1", &first), add("c2", &second));
    let seen_by = |server: &Pod, ip: &str| {
        let listener = server.listen();
        assert!(first.reaches(ip), "{ip}");
        listener.accept().unwrap().1.ip().to_canonical().to_string()
    };
    assert_eq!(seen_by(&outside, "203.0.113.2"), "203.0.113.1");
    assert_eq!(
        seen_by(&second, &other.ip(4)),
        added.ip(4),
        "a pod of this node sees the pod"
    );
    for container in ["c1", "c2"] {
        run(&mut node.command_as("ptp", &[], ("DEL", container)), &conf).expect_ok();
    }
    assert_eq!(node.masqueraded(), Vec::<String>::new());
    let listed = Command::new("nft")
        .args(["list", "set", "inet", "podspan", "bridges"])
        .output()
        .unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(
        text.contains("bridges") && !text.contains("pod0") && !text.contains("elements"),
        "{text}"
    );
}

#[test]
fn t18_t22_ptp_that_cannot_finish_leaves_nothing() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = ptp_conf(&node, json!({}));
    pod.ip("link add eth0 type bridge");
    assert_eq!(
        call(&node, "ptp", ("ADD", Some(&pod)), &conf)
            .expect_error()
            .0,
        102
    );
    node.assert_clean("the name is taken in the pod");
    pod.ip("link del eth0");
    // Somebody else's route to the address that is next.
    node.ns.ip("route add 10.244.1.3/32 via 192.0.2.9");
    let (code, text) = call(&node, "ptp", ("ADD", Some(&pod)), &conf).expect_error();
    assert!(
        code == 100 && text.contains("add route 10.244.1.3/32"),
        "{code} {text}"
    );
    node.assert_clean("the route is taken");
    let none = ptp_conf(&node, json!({"ipam": {}}));
    let (code, text) = call(&node, "ptp", ("ADD", Some(&pod)), &none).expect_error();
    assert!(
        code == 7 && text.starts_with("ipam gave no address"),
        "{code} {text}"
    );
    add_to_nobody(&node, "ptp", &pod, &conf);
    node.assert_clean("nobody heard the result");
    call(&node, "ptp", ("ADD", Some(&pod)), &conf).expect_ok();
    assert_eq!(
        call(&node, "ptp", ("ADD", Some(&pod)), &conf)
            .expect_error()
            .0,
        102
    );
    call(&node, "ptp", ("STATUS", None), &conf).expect_ok();
    let mut gc = conf.clone();
    gc["cni.dev/valid-attachments"] = json!([]);
    call(&node, "ptp", ("GC", None), &gc).expect_ok();
    node.assert_clean("GC");
    node.assert_foreign_survives();
}

/// Kills ADD at each of its system calls; after the DEL that follows, `clean` must hold.
fn add_killed_and_then_del(
    node: &Node,
    (name, pod): (&str, &Pod),
    conf: &Value,
    clean: &dyn Fn(&str),
) {
    let make = |strace: &[String]| {
        let mut process = node.command_as(name, strace, ("ADD", "c1"));
        process.env("CNI_NETNS", pod.path());
        process
    };
    let del = |pod| call(node, name, ("DEL", pod), conf).expect_ok();
    let calls = loop {
        let calls = kill::trace(&make, conf);
        del(Some(pod));
        // One that had to wait for the kernel makes calls that others do not.
        if !calls.iter().any(|line| line.starts_with("clock_nanosleep")) {
            break points(&calls);
        }
    };
    assert!(
        calls.len() > 60,
        "strace listed only {} system calls",
        calls.len()
    );
    for point in &calls {
        kill::run_killed(&make, conf, point);
        del(Some(pod));
        clean(&format!("{name} killed at {point:?}, then DEL"));
    }
    println!("{name}: ADD killed at each of {} system calls", calls.len());
}

#[test]
fn add_of_ptp_killed_at_any_system_call_and_then_del_leaves_nothing() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = ptp_conf(&node, json!({"ipMasq": true}));
    call(&node, "ptp", ("ADD", Some(&pod)), &conf).expect_ok();
    call(&node, "ptp", ("DEL", None), &conf).expect_ok();
    add_killed_and_then_del(&node, ("ptp", &pod), &conf, &|context| {
        node.assert_clean(context);
        assert_eq!(node.masqueraded(), Vec::<String>::new(), "{context}");
    });
    node.assert_foreign_survives();
}

#[test]
fn add_of_bandwidth_and_tuning_killed_at_any_system_call_and_then_del_leaves_nothing() {
    let (node, pod) = (Node::new(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let (links, before) = (node.pod_links(), pod.ip("-d link show eth0"));
    let judged = (qdiscs(&links[0]), filters(&links[0]));
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000,
                        "egressRate": 16_000_000, "egressBurst": 800_000});
    add_killed_and_then_del(
        &node,
        ("bandwidth", &pod),
        &chained(limits, &added),
        &|context| {
            assert_eq!(node.pod_links(), links, "{context}");
            let now = (qdiscs(&links[0]), filters(&links[0]));
            assert_eq!(now, judged, "{context}");
        },
    );
    let backups = node.data.path().join("backups");
    // It is made once and for all.
    std::fs::create_dir(&backups).unwrap();
    let keys = json!({"mtu": 1400, "mac": "0a:00:00:00:00:07", "promisc": true, "txQLen": 7, "dataDir": backups});
    add_killed_and_then_del(
        &node,
        ("tuning", &pod),
        &chained(keys, &added),
        &|context| {
            assert_eq!(pod.ip("-d link show eth0"), before, "{context}");
            let left = std::fs::read_dir(&backups).map_or(0, Iterator::count);
            assert_eq!(left, 0, "{context}");
        },
    );
}
