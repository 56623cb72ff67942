//! What happens to Nodes is what happens to routes; and nothing else is.

use std::time::Duration;

use serde_json::json;

use crate::machine::{Machine, THREE_NODES};
use crate::monitor::Monitor;
use crate::plane::Plane;

const LOOPBACK: &str = "127.0.0.1";

/// A machine that is node1 of three, with a configuration of that API server.
fn three_nodes() -> (Machine, Plane) {
    let machine = Machine::new();
    machine.ns.ip("link set lo up");
    let plane = Plane::start(LOOPBACK);
    plane.configure(&machine, "");
    (1..=3).for_each(|n| plane.create_node(n));
    (machine, plane)
}

fn count(log: &str, text: &str) -> usize {
    log.matches(text).count()
}

#[test]
fn nodes_that_come_change_and_go_are_followed() {
    let (machine, plane) = three_nodes();
    let (code, changes) = machine.run("plan");
    let route = "ip route add 10.0.2.0/24 via 172.16.0.2 proto 112 dev eth0\n";
    assert!(code == 1 && changes.contains(route), "{changes}");
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("status").0 == 0);
    assert!(machine.path("net.d/10-podspan.conflist").exists());

    // Without an address yet, then with one.
    plane.create_bare_node("node5");
    machine.until("counted", || {
        machine
            .run("status")
            .1
            .contains("3 nodes, 1 more without pod CIDRs or address yet")
    });
    plane.create_node(4);
    let four = [
        "10.0.2.0/24 via 172.16.0.2",
        "10.0.3.0/24 via 172.16.0.3",
        "10.0.4.0/24 via 172.16.0.4",
    ];
    let sixth = [
        "fd00:10:2::/64 via fd00:172::2",
        "fd00:10:3::/64 via fd00:172::3",
        "fd00:10:4::/64 via fd00:172::4",
    ];
    machine.until_routes(&[four, sixth].concat());
    let moved = plane_moved(&plane);
    machine.until_routes(&[[four[0], four[1], moved], sixth].concat());
    plane.delete_node("node4");
    machine.until_routes(&THREE_NODES);
    assert!(!machine.log().contains("refused"), "{}", machine.log());

    // A name that comes again with another subnet.
    plane.delete_node("node3");
    machine.until_routes(&[THREE_NODES[0], THREE_NODES[2]]);
    plane.create("/api/v1/nodes", &json!({"metadata": {"name": "node3"}, "spec": {"podCIDR": "10.0.33.0/24", "podCIDRs": ["10.0.33.0/24"]}}));
    plane.set_addresses("node3", &["172.16.0.3"]);
    machine.until_routes(&[
        THREE_NODES[0],
        "10.0.33.0/24 via 172.16.0.3",
        THREE_NODES[2],
    ]);

    // A Node that excludes an older one is refused, and the older one keeps its route.
    plane.create("/api/v1/nodes", &json!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.0.2.0/24", "podCIDRs": ["10.0.2.0/24"]}}));
    plane.set_addresses("a", &["172.16.0.9"]);
    let said = "refused: Node a: spec.podCIDRs = \"10.0.2.0/24\": overlaps 10.0.2.0/24 of Node node2; give each node its own";
    machine.until("refused", || machine.log().contains(said));
    machine.until_routes(&[
        THREE_NODES[0],
        "10.0.33.0/24 via 172.16.0.3",
        THREE_NODES[2],
    ]);
    machine.assert_foreign_things_are_there();
    assert_eq!(agent.stop(), Some(0));
}

/// node4 has another address.
fn plane_moved(plane: &Plane) -> &'static str {
    plane.patch_status(
        "node4",
        &json!({"addresses": [{"$patch": "replace"}, {"type": "InternalIP", "address": "172.16.0.44"}, {"type": "Hostname", "address": "node4"},
                              {"type": "InternalIP", "address": "fd00:172::4"}]}),
    );
    "10.0.4.0/24 via 172.16.0.44"
}

#[test]
fn the_router_reads_the_kubernetes_api_too() {
    let (machine, plane) = three_nodes();
    // Beyond the router's own address, which is node1's here.
    plane.delete_node("node1");
    let router = machine.start("router");
    machine.until_routes(&THREE_NODES);
    assert_eq!(router.stop(), Some(0));
    assert!(
        plane
            .requests()
            .iter()
            .all(|request| !request.starts_with("patch"))
    );
}

#[test]
fn an_api_server_that_is_killed_changes_nothing_and_is_told_once_and_all_is_caught_up() {
    let (machine, mut plane) = three_nodes();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    // Else what the kill interrupts is a report, and that is told too.
    machine.until("reported", || {
        plane.condition("node1", "NetworkUnavailable").is_some()
    });
    machine.until("right", || machine.run("plan").0 == 0);
    let monitor = Monitor::start(&machine, "route");
    plane.order("kill");
    machine.until("told", || machine.log().contains("Connection refused"));
    assert_eq!(machine.run("status").0, 1);
    // A second agent knows nothing and changes nothing; it learns it when the server is back.
    assert_eq!(agent.stop(), Some(0));
    let agent = machine.start("agent");
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(machine.routes(), THREE_NODES);
    plane.order("start");
    plane.create_node(4);
    let fourth = || {
        machine
            .routes()
            .iter()
            .any(|route| route.starts_with("10.0.4.0/24"))
    };
    machine.until("caught up", fourth);
    machine.until("mended", || {
        machine.log().contains("mended: list Nodes at")
            || machine.log().contains("mended: watch Nodes at")
    });
    let log = machine.log();
    assert_eq!(
        count(&log, "Connection refused"),
        1 + 2,
        "each agent once, and once when it has mended: {log}"
    );
    machine
        .ns
        .ip("route add 10.251.0.0/16 via 172.16.0.99 proto static");
    let lines = monitor.stop(&machine, "10.251.0.0/16");
    assert!(!lines.contains("Deleted"), "{lines}");
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_watch_that_the_server_has_forgotten_lists_again_and_no_route_vanishes() {
    let (machine, mut plane) = three_nodes();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("plan").0 == 0);
    let monitor = Monitor::start(&machine, "route");
    machine.until("available", || {
        plane.condition("node1", "NetworkUnavailable").is_some()
    });
    // Away when it happens: what the server had sent already would still be read.
    plane.order("kill");
    machine.until("told", || machine.log().contains("Connection refused"));
    agent.signal("-STOP");
    plane.order("start");
    plane.delete_node("node3");
    plane.create_node(4);
    plane.order("kill");
    plane.forget_versions();
    plane.order("start");
    let before = plane.requests().len();
    agent.signal("-CONT");
    machine.until("caught up", || {
        let routes = machine.routes();
        let has = |cidr: &str| routes.iter().any(|route| route.starts_with(cidr));
        has("10.0.4.0/24") && !has("10.0.3.0/24")
    });
    // As a streamed list or in pages, as the server can.
    let lists = |requests: &[String]| {
        let is_list = |request: &&String| {
            request.starts_with("list ") || request.contains("sendInitialEvents=true")
        };
        requests.iter().filter(is_list).count()
    };
    // Those of policy come in between.
    let mut after = plane.requests().split_off(before);
    after.retain(|request| request.contains(" /api/v1/nodes?"));
    assert!(
        after[0].starts_with("watch ") && lists(&after[..1]) == 0,
        "{after:?}"
    );
    assert!(lists(&after) >= 1, "{after:?}");
    machine
        .ns
        .ip("route add 10.251.0.0/16 via 172.16.0.99 proto static");
    let lines = monitor.stop(&machine, "10.251.0.0/16");
    let deleted: Vec<_> = lines
        .lines()
        .filter(|line| line.starts_with("Deleted"))
        .collect();
    assert_eq!(deleted.len(), 2, "only those of node3: {lines}");
    assert!(
        !lines.contains("10.0.2.0/24") && !lines.contains("fd00:10:2::/64"),
        "{lines}"
    );
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn an_empty_list_changes_nothing() {
    let (machine, plane) = three_nodes();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    assert_eq!(agent.stop(), Some(0));
    (1..=3).for_each(|n| plane.delete_node(&format!("node{n}")));
    let agent = machine.start("agent");
    let said = "the Kubernetes API: no Node in it; nothing was changed for it";
    machine.until("told", || machine.log().contains(said));
    let (code, status) = machine.run("status");
    assert!(code == 1 && status.contains(said), "{status}");
    assert_eq!(machine.routes(), THREE_NODES);
    (1..=2).for_each(|n| plane.create_node(n));
    machine.until_routes(&[THREE_NODES[0], THREE_NODES[2]]);
    machine.until("mended", || {
        machine.log().contains(&format!("mended: {said}"))
    });
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn an_idle_minute_has_no_request_but_the_watch() {
    let (machine, plane) = three_nodes();
    let agent = machine.start("agent");
    machine.until("condition", || {
        plane.condition("node1", "NetworkUnavailable").is_some()
    });
    machine.until("right", || machine.run("plan").0 == 0);
    let before = plane.requests().len();
    for beat in 0..30 {
        // What kubelets do meanwhile.
        for n in 1..=3 {
            let ready =
                json!([{"type": "Ready", "status": "True", "message": format!("beat {beat}")}]);
            plane.patch_status(&format!("node{n}"), &json!({"conditions": ready}));
        }
        std::thread::sleep(Duration::from_secs(2));
    }
    assert_eq!(plane.requests()[before..], [""; 0]);
    assert_eq!(agent.stop(), Some(0));
}
