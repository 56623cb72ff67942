//! How fast pods may receive and send: the capability `bandwidth`, on the real kernel.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use harness::{Node, Pod, is_guarded, run, tc};
use podspan_cni::attachment::{AttachmentId, IfbMaker};
use serde_json::{Value, json};

/// Bits per second: slow beside a veth pair, and enough for a stream of TCP to get going.
const RATE: u64 = 40_000_000;

fn limits() -> Value {
    json!({"bandwidth": {"ingressRate": RATE, "ingressBurst": 800_000,
                         "egressRate": RATE, "egressBurst": 800_000}})
}

/// The qdiscs of that kind on a link of this thread's namespace.
fn qdiscs(link: &str, kind: &str) -> Vec<Value> {
    let mut all = tc(&format!("qdisc show dev {link}"));
    all.retain(|qdisc| qdisc["kind"] == kind);
    all
}

/// The names of host veth and ifb device of the attachment of container `c1`.
fn names(network: &str) -> (String, String) {
    let id = AttachmentId {
        container: "c1".parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
    };
    let network = network.parse().unwrap();
    let ifb = id.ifb(&network, IfbMaker::Attaching);
    (id.host_veth(&network).to_string(), ifb.to_string())
}

/// Bits per second that arrive, after a burst.
fn throughput(listener: &TcpListener, connect: impl FnOnce() -> TcpStream) -> f64 {
    let mut sender = connect();
    let (mut receiver, _) = listener.accept().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || while sender.write_all(&[0; 16 * 1024]).is_ok() {});
        let mut buffer = vec![0; 64 * 1024];
        let mut read_for = |time: Duration| {
            let (begin, mut count) = (Instant::now(), 0);
            while begin.elapsed() < time {
                count += receiver.read(&mut buffer).unwrap();
            }
            count as f64 * 8.0 / begin.elapsed().as_secs_f64()
        };
        read_for(Duration::from_millis(150));
        let seen = read_for(Duration::from_millis(400));
        drop(receiver);
        seen
    })
}

/// What a pod receives from the node and sends to it, in bits per second.
fn both_directions(pod: &Pod, ip: &str) -> [f64; 2] {
    let in_pod = pod.listen();
    let received = throughput(&in_pod, || TcpStream::connect((ip, 8080)).unwrap());
    let on_node = TcpListener::bind("10.244.1.1:0").unwrap();
    let address = on_node.local_addr().unwrap();
    let sent = throughput(&on_node, || {
        pod.run(|| TcpStream::connect(address).unwrap())
    });
    [received, sent]
}

#[test]
fn real_traffic_keeps_to_the_limit_in_both_directions() {
    let (node, free, limited) = (Node::new(), Pod::new(), Pod::new());
    let added = node.add("free", &free, &node.conf(json!({}))).expect_ok();
    for seen in both_directions(&free, &added.ip(4)) {
        assert!(seen > 4.0 * RATE as f64, "{seen} bit/s without a limit");
    }
    let conf = node.conf(json!({"runtimeConfig": limits()}));
    let added = node.add("c1", &limited, &conf).expect_ok();
    for seen in both_directions(&limited, &added.ip(4)) {
        println!("{:.2} of the rate", seen / RATE as f64);
        assert!(seen < 2.0 * RATE as f64, "{seen} bit/s with a limit");
    }
}

#[test]
fn an_attachment_with_limits_has_its_qdiscs_and_an_ifb_device_and_del_takes_all() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({"runtimeConfig": limits()}));
    let (host_veth, ifb) = names("net");
    for _ in 0..2 {
        let added = node.add("c1", &pod, &conf).expect_ok();
        let link = &node.ns.ip(&format!("-d link show {ifb}"))[0];
        assert_eq!(link["ifalias"], "podspan:net/c1/eth0");
        assert_eq!(link["linkinfo"]["info_kind"], "ifb");
        let interfaces = added.json["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 4);
        assert_eq!(
            (&interfaces[3]["name"], &interfaces[3]["mac"]),
            (&json!(ifb), &link["address"])
        );
        assert_eq!(added.json["ips"][0]["interface"], 2);
        for link in [&host_veth, &ifb] {
            let tbf = &qdiscs(link, "tbf")[0]["options"];
            assert_eq!(
                (&tbf["rate"], &tbf["burst"]),
                (&json!(RATE / 8), &json!(100_000))
            );
        }
        // The guard comes first.
        assert_eq!(qdiscs(&host_veth, "clsact").len(), 1);
        let mut order: Vec<_> = tc(&format!("filter show dev {host_veth} ingress"))
            .iter()
            .map(|filter| format!("{} {}", filter["pref"], filter["kind"]))
            .collect();
        order.dedup();
        assert_eq!(order, ["1 \"bpf\"", "2 \"u32\""]);
        node.del("c1", &node.with_prev(&conf, &added)).expect_ok();
        node.assert_clean("DEL");
        node.del("c1", &conf).expect_ok();
    }
    node.assert_foreign_survives();
}

#[test]
fn one_direction_alone_leaves_the_other_as_it_is() {
    let (node, pod) = (Node::new(), Pod::new());
    let (host_veth, _) = names("net");
    let one = |key: &str| json!({"bandwidth": {format!("{key}Rate"): RATE, format!("{key}Burst"): u32::MAX}});
    for (key, limited, ifbs) in [("Ingress", 1, 0), ("Egress", 0, 1)] {
        let conf = node.conf(json!({"runtimeConfig": one(key)}));
        let added = node.add("c1", &pod, &conf).expect_ok();
        assert_eq!(qdiscs(&host_veth, "tbf").len(), limited, "{key}");
        assert_eq!(node.pod_links().len(), 1 + ifbs, "{key}");
        node.check("c1", &pod, &node.with_prev(&conf, &added))
            .expect_ok();
        node.del("c1", &conf).expect_ok();
        node.assert_clean(key);
    }
}

#[test]
fn t14_a_bad_limit_is_refused_and_nothing_is_made() {
    let (node, pod) = (Node::new(), Pod::new());
    for (bad, text) in [
        (
            json!({"ingressRate": RATE}),
            "runtimeConfig.bandwidth.ingressRate is 40000000",
        ),
        (
            json!({"egressRate": 1, "egressBurst": 8}),
            "runtimeConfig.bandwidth.egressRate is 1",
        ),
        (
            json!({"egressRate": -8}),
            "runtimeConfig.bandwidth.egressRate: ",
        ),
    ] {
        let conf = node.conf(json!({"runtimeConfig": {"bandwidth": bad}}));
        let (code, said) = node.add("c1", &pod, &conf).expect_error();
        assert!(code == 7 && said.starts_with(text), "{code} {said}");
        node.assert_clean(text);
        // DEL does not need them.
        node.del("c1", &conf).expect_ok();
    }
}

#[test]
fn an_add_that_fails_late_leaves_no_ifb_device() {
    let (node, pod) = (Node::new(), Pod::new());
    // The route is refused inside the pod, after everything on the node was made.
    let ipam = json!({"dataDir": node.data.path(), "ranges": [[{"subnet": "10.244.1.0/24"}]],
                      "routes": [{"dst": "198.51.100.0/24", "gw": "203.0.113.1"}]});
    let conf = node.conf(json!({"ipam": ipam, "runtimeConfig": limits()}));
    let (code, text) = node.add("c1", &pod, &conf).expect_error();
    assert!(
        code == 100 && text.contains("198.51.100.0/24"),
        "{code} {text}"
    );
    node.assert_clean("ADD failed");
    // Somebody else's device of that name is left alone.
    let (_, ifb) = names("net");
    node.ns.ip(&format!("link add {ifb} type ifb"));
    node.ns.ip(&format!("link set {ifb} alias mine"));
    let conf = node.conf(json!({"runtimeConfig": limits()}));
    let (code, text) = node.add("c1", &pod, &conf).expect_error();
    assert!(
        code == 102 && text.contains("exists with alias \"mine\""),
        "{code} {text}"
    );
    assert_eq!(node.pod_links(), [ifb]);
}

#[test]
fn t28_check_verifies_the_limits() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({"runtimeConfig": limits()}));
    let (host_veth, ifb) = names("net");
    let deviate = |break_it: &dyn Fn(), expected: &str| {
        let added = node.add("c1", &pod, &conf).expect_ok();
        let conf = node.with_prev(&conf, &added);
        node.check("c1", &pod, &conf).expect_ok();
        break_it();
        let (code, text) = node.check("c1", &pod, &conf).expect_error();
        assert!(code == 103 && text.contains(expected), "{code} {text}");
        node.del("c1", &conf).expect_ok();
        node.assert_clean(expected);
    };
    let run_tc = |arguments: String| _ = tc(&arguments);
    deviate(
        &|| run_tc(format!("qdisc del dev {host_veth} root")),
        &format!("link {host_veth} does not send as tbf rate 40000000bit"),
    );
    deviate(
        &|| {
            run_tc(format!(
                "qdisc replace dev {ifb} root handle 1: tbf rate 1mbit burst 10k latency 25ms"
            ))
        },
        &format!("ifb device {ifb} does not send as tbf"),
    );
    deviate(
        &|| run_tc(format!("filter del dev {host_veth} ingress pref 2")),
        "does not go through ifb device",
    );
    deviate(
        &|| _ = node.ns.ip(&format!("link del {ifb}")),
        &format!("ifb device {ifb} does not exist"),
    );
    deviate(
        &|| _ = node.ns.ip(&format!("link set {ifb} down")),
        "is down",
    );
}

#[test]
fn without_a_guard_the_limit_has_a_qdisc_of_its_own() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({"antiSpoof": false, "runtimeConfig": limits()}));
    let added = node.add("c1", &pod, &conf).expect_ok();
    let (host_veth, _) = names("net");
    assert_eq!(qdiscs(&host_veth, "ingress").len(), 1);
    assert!(!is_guarded(&host_veth));
    node.check("c1", &pod, &node.with_prev(&conf, &added))
        .expect_ok();
    node.del("c1", &conf).expect_ok();
    node.assert_clean("DEL");
}

#[test]
fn t29_gc_finds_an_ifb_device_whose_host_veth_is_gone() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({"runtimeConfig": limits()}));
    let (host_veth, ifb) = names("net");
    let gc = |network: &str, valid: Value| {
        let mut conf = conf.clone();
        conf["name"] = json!(network);
        conf["cni.dev/valid-attachments"] = valid;
        run(&mut node.command(&[], "GC", ""), &conf).expect_ok();
    };
    let ours = json!([{"containerID": "c1", "ifname": "eth0"}]);
    node.add("c1", &pod, &conf).expect_ok();
    node.ns.ip(&format!("link del {host_veth}"));
    gc("net", ours.clone());
    gc("other", json!([]));
    assert_eq!(
        node.pod_links(),
        [ifb.as_str()],
        "valid, or of another network"
    );
    gc("net", json!([]));
    node.assert_clean("GC");

    // What a kill leaves between the making of the device and its alias, without a record of the attachment.
    node.ns.ip(&format!("link add {ifb} type ifb"));
    gc("net", ours);
    gc("other", json!([]));
    assert_eq!(
        node.pod_links(),
        [ifb.as_str()],
        "valid, or of another network"
    );
    gc("net", json!([]));
    node.assert_clean("GC of a device without alias");
    node.assert_foreign_survives();
}
