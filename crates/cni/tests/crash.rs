//! Killed at each of its system calls in turn, the plugin leaves nothing that the DEL after it does not find.
//!
//! The calls are enumerated, not sampled: `strace` lists those of one run, and then kills one run at each of them.
//! Also here: what the plugin must never do at all, seen in the same list.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::process::Command;

use harness::kill::{self, points};
use harness::{Node, Pod};
use serde_json::{Value, json};

/// The system calls of one run, in order.
fn trace(node: &Node, command: &str, pod: &Pod, conf: &Value) -> Vec<String> {
    kill::trace(&|strace| of_pod(node, pod, (command, strace)), conf)
}

fn of_pod(node: &Node, pod: &Pod, (command, strace): (&str, &[String])) -> Command {
    let mut process = node.command(strace, command, "c1");
    process.env("CNI_NETNS", pod.path());
    process
}

/// The system calls of an ADD that never had to wait for the kernel: those that every ADD makes. The pod is attached then.
fn trace_add(node: &Node, pod: &Pod, (conf, before): (&Value, &dyn Fn())) -> Vec<String> {
    for _ in 0..100 {
        before();
        let lines = trace(node, "ADD", pod, conf);
        if !lines.iter().any(|line| line.starts_with("clock_nanosleep")) {
            return lines;
        }
        node.del("c1", conf).expect_ok();
    }
    panic!("each of a hundred ADDs had to wait for its IPv6 address");
}

/// Runs `command` and kills it when it enters the system call.
fn run_killed(node: &Node, pod: &Pod, conf: &Value, (command, at): (&str, &(String, usize))) {
    kill::run_killed(&|strace| of_pod(node, pod, (command, strace)), conf, at);
}

#[test]
fn add_killed_at_any_system_call_and_then_del_leaves_nothing() {
    for conf in [
        json!({}),
        json!({"ipMasq": true, "antiSpoof": false}),
        everything_filtered(),
        with_limits(),
    ] {
        add_killed_and_then_del(&conf);
    }
}

/// Masquerading, host ports of each kind, and the guard, in both families.
fn everything_filtered() -> Value {
    json!({"ipMasq": true, "runtimeConfig": {"portMappings": [
        {"hostPort": 80, "containerPort": 8080},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp"},
        {"hostPort": 81, "containerPort": 81, "hostIP": "192.0.2.1"},
    ]}})
}

/// A port that lets frames in is a guarded one, whenever one looks.
fn assert_guarded_or_shut(node: &Node, context: &str) {
    for port in node.pod_links() {
        let link = &node.ns.ip(&format!("-d link show {port}"))[0];
        let is_up = link["flags"].as_array().unwrap().contains(&json!("UP"));
        let is_shut = link["linkinfo"]["info_slave_data"]["state"] == "disabled";
        let guarded = node
            .filtered()
            .iter()
            .any(|text| text.starts_with("guarded_ips ") && text.contains(&port));
        assert!(
            guarded || !is_up || is_shut,
            "{port} is open: {context}: {link}"
        );
    }
}

/// With an ifb device, which does not go with the host veth.
fn with_limits() -> Value {
    let limits = json!({"ingressRate": 8_000_000, "ingressBurst": 800_000,
                        "egressRate": 8_000_000, "egressBurst": 800_000});
    json!({"runtimeConfig": {"bandwidth": limits}})
}

fn add_killed_and_then_del(changes: &Value) {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(changes.clone());
    // The bridge is made once and for all; its making has a test of its own.
    node.add("first", &Pod::new(), &conf).expect_ok();
    node.del("first", &conf).expect_ok();
    let points = points(&trace_add(&node, &pod, (&conf, &|| ())));
    node.del("c1", &conf).expect_ok();
    assert!(
        points.len() > 60,
        "strace listed only {} system calls",
        points.len()
    );
    for point in &points {
        run_killed(&node, &pod, &conf, ("ADD", point));
        if conf["antiSpoof"] != false {
            assert_guarded_or_shut(&node, &format!("ADD killed at {point:?}"));
        }
        // It needs no more than the network's name and the place of the addresses.
        node.del("c1", &node.conf(json!({}))).expect_ok();
        node.assert_clean(&format!("ADD killed at {point:?}, then DEL"));
        assert_eq!(
            pod.ip("link show").as_array().unwrap().len(),
            1,
            "in the pod: {point:?}"
        );
    }
    // And the next ADD works, with the addresses that are next in turn.
    node.add("c1", &pod, &conf).expect_ok();
    node.assert_foreign_survives();
    println!("ADD killed at each of {} system calls", points.len());
}

#[test]
fn del_killed_at_any_system_call_and_then_repeated_leaves_nothing() {
    let (node, pod) = (Node::new(), Pod::new());
    let mut changes = everything_filtered();
    changes["runtimeConfig"]["bandwidth"] = with_limits()["runtimeConfig"]["bandwidth"].clone();
    let conf = node.conf(changes);
    node.add("c1", &pod, &conf).expect_ok();
    // A connection that DEL has to forget.
    let send = || {
        let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
        socket.send_to(b"x", "192.0.2.1:53").unwrap();
    };
    send();
    let points = points(&trace(&node, "DEL", &pod, &conf));
    assert!(
        points.len() > 30,
        "strace listed only {} system calls",
        points.len()
    );
    for point in &points {
        node.add("c1", &pod, &conf).expect_ok();
        send();
        run_killed(&node, &pod, &conf, ("DEL", point));
        assert_guarded_or_shut(&node, &format!("DEL killed at {point:?}"));
        node.del("c1", &node.conf(json!({}))).expect_ok();
        node.assert_clean(&format!("DEL killed at {point:?}, then repeated"));
    }
    node.assert_foreign_survives();
    println!("DEL killed at each of {} system calls", points.len());
}

#[test]
fn in_the_place_of_portmap_killed_at_any_system_call_it_leaves_nothing() {
    let (mut node, pod) = (Node::new(), Pod::new());
    let attached = node
        .add("c1", &pod, &node.conf(json!({"antiSpoof": false})))
        .expect_ok();
    let mut conf = everything_filtered();
    for (key, value) in [
        ("cniVersion", json!("1.1.0")),
        ("name", json!("net")),
        ("type", json!("portmap")),
        ("prevResult", attached.json),
    ] {
        conf[key] = value;
    }
    node.call_it("portmap");
    node.add("c1", &pod, &conf).expect_ok();
    let of_del = points(&trace(&node, "DEL", &pod, &conf));
    let of_add = points(&trace(&node, "ADD", &pod, &conf));
    let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap"});
    node.del("c1", &bare).expect_ok();
    for (command, points) in [("ADD", of_add), ("DEL", of_del)] {
        for point in &points {
            if command == "DEL" {
                node.add("c1", &pod, &conf).expect_ok();
            }
            run_killed(&node, &pod, &conf, (command, point));
            node.del("c1", &bare).expect_ok();
            assert_eq!(
                node.filtered(),
                Vec::<String>::new(),
                "{command} killed at {point:?}"
            );
        }
        println!(
            "{command} of portmap killed at each of {} system calls",
            points.len()
        );
    }
    node.assert_foreign_survives();
}

#[test]
fn the_first_add_of_a_node_killed_anywhere_leaves_a_bridge_that_the_next_completes() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    let begin_anew = || {
        node.ns.ip("link del podspan0");
        std::fs::remove_dir_all(node.data.path().join("net")).unwrap();
    };
    node.add("c1", &pod, &conf).expect_ok();
    node.del("c1", &conf).expect_ok();
    let points = points(&trace_add(&node, &pod, (&conf, &begin_anew)));
    node.del("c1", &conf).expect_ok();
    for point in points {
        begin_anew();
        run_killed(&node, &pod, &conf, ("ADD", &point));
        node.del("c1", &conf).expect_ok();
        node.assert_clean(&format!("ADD killed at {point:?}, then DEL"));
        node.add("c1", &pod, &conf).expect_ok();
        let bridge = &node.ns.ip("-d addr show podspan0")[0];
        assert_eq!(
            bridge["ifalias"], "podspan:bridge",
            "the mark, after a kill at {point:?}"
        );
        assert_eq!(bridge["address"], "0a:58:0a:f4:01:01");
        node.del("c1", &conf).expect_ok();
    }
}

#[test]
fn the_plugin_starts_no_process_no_thread_and_no_network_connection() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    for command in ["ADD", "DEL"] {
        for line in trace(&node, command, &pod, &conf).iter().skip(1) {
            let name = line.split('(').next().unwrap();
            assert!(
                !["fork", "vfork", "clone", "clone3", "execve", "connect"].contains(&name),
                "{line}"
            );
            assert!(name != "socket" || line.contains("AF_NETLINK"), "{line}");
        }
    }
}
