//! What somebody changes on the machine comes back, what is not ours stays, and the agent's own life changes nothing.

use std::time::Duration;

use serde_json::Value;

use crate::machine::{Machine, THREE_NODES};
use crate::monitor::Monitor;

#[test]
fn the_agent_makes_the_node_right() {
    let machine = Machine::new();
    assert_eq!(machine.run("status").0, 1);
    let (code, changes) = machine.run("plan");
    assert_eq!((code, changes.lines().count()), (1, 16), "{changes}");
    assert_eq!(machine.routes(), [""; 0], "plan only looks");

    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("status").0 == 0);
    let bridge = &machine.ns.ip("-d link show podspan0")[0];
    assert_eq!(
        (&bridge["address"], &bridge["ifalias"]),
        (&"0a:58:0a:00:01:01".into(), &"podspan:bridge".into())
    );
    let addresses = machine.ns.ip("addr show podspan0")[0]["addr_info"].clone();
    let global = addresses
        .as_array()
        .unwrap()
        .iter()
        .filter(|address| address["scope"] == "global");
    let global: Vec<_> = global.map(|address| &address["local"]).collect();
    assert_eq!(global, ["10.0.1.1", "fd00:10:1::1"]);
    let conflist = std::fs::read_to_string(machine.path("net.d/10-podspan.conflist")).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&conflist).unwrap()["plugins"][0]["mtu"],
        1500
    );
    assert_eq!(machine.run("plan"), (0, String::new()));
    machine.assert_foreign_things_are_there();
}

#[test]
fn what_somebody_deletes_comes_back() {
    let machine = Machine::new();
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.ns.ip("route del 10.0.2.0/24");
    println!(
        "a deleted IPv4 route is back after {:?}",
        machine.until_routes(&THREE_NODES)
    );
    machine.ns.ip("-6 route del fd00:10:3::/64");
    println!(
        "a deleted IPv6 route is back after {:?}",
        machine.until_routes(&THREE_NODES)
    );
    machine
        .ns
        .ip("route replace 10.0.2.0/24 via 172.16.0.77 proto 112");
    machine.until_routes(&THREE_NODES);
    machine.ns.ip("link del podspan0");
    machine.until("the bridge is back", || machine.run("plan").0 == 0);
    std::fs::remove_file(machine.path("net.d/10-podspan.conflist")).unwrap();
    machine.until("the conflist is back", || {
        machine.path("net.d/10-podspan.conflist").exists()
    });
}

#[test]
fn a_stale_route_of_an_earlier_life_goes_and_foreign_ones_stay() {
    let machine = Machine::new();
    machine
        .ns
        .ip("route add 10.0.9.0/24 via 172.16.0.9 proto 112");
    machine
        .ns
        .ip("-6 route add fd00:10:9::/64 via fd00:172::9 proto 112");
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.assert_foreign_things_are_there();
}

#[test]
fn an_uplink_that_goes_down_and_up_has_its_routes_again() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.ns.ip("link set eth0 down");
    machine.until("told", || {
        machine.log().contains("is reached by eth0, which is down")
    });
    machine.ns.ip("link set eth0 up");
    machine.ns.ip("addr replace fd00:172::1/64 dev eth0 nodad");
    machine.until_routes(&THREE_NODES);
    machine.until("mended", || machine.log().contains("mended: refused: "));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_foreign_route_in_the_way_is_told_with_what_mends_it_and_the_rest_goes_on() {
    let machine = Machine::new();
    machine
        .ns
        .ip("route add 10.0.2.0/24 via 172.16.0.99 proto static");
    let _agent = machine.start("agent");
    let said = "somebody else's route is there; see `ip route show 10.0.2.0/24`, and `ip route del 10.0.2.0/24` \
                if nobody needs it: add route 10.0.2.0/24 via 172.16.0.2 proto 112: file exists (EEXIST)";
    machine.until("told", || machine.log().contains(said));
    machine.until_routes(&THREE_NODES[1..]);
    machine.ns.ip("route del 10.0.2.0/24 via 172.16.0.99");
    machine.until_routes(&THREE_NODES);
    machine.until("mended", || {
        machine.log().contains(&format!("mended: {said}"))
    });
}

#[test]
fn a_stale_gateway_is_swapped_without_losing_the_new_one() {
    let machine = Machine::new();
    machine.ns.ip("link add podspan0 up type bridge");
    machine.ns.ip("link set podspan0 alias podspan:bridge");
    // In the same subnet and there first: the kernel would remove the right one with it.
    for stale in ["10.0.1.9/24", "10.99.0.1/24"] {
        machine.ns.ip(&format!("addr add {stale} dev podspan0"));
    }
    let agent = machine.start("agent");
    machine.until("right", || machine.run("plan").0 == 0);
    let addresses = machine.ns.ip("-4 addr show podspan0")[0]["addr_info"].clone();
    let addresses: Vec<_> = addresses
        .as_array()
        .unwrap()
        .iter()
        .map(|address| &address["local"])
        .collect();
    assert_eq!(addresses, ["10.0.1.1"]);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(
        machine.log().matches("ip address add 10.0.1.1/24").count(),
        1,
        "{}",
        machine.log()
    );
}

#[test]
fn sigterm_leaves_the_network_and_a_restart_sends_no_change() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("plan").0 == 0);
    assert_eq!(agent.stop(), Some(0));
    assert!(
        machine
            .log()
            .ends_with("stopped; the network stays as it is\n"),
        "{}",
        machine.log()
    );
    let before = machine.everything();
    assert_eq!(machine.routes(), THREE_NODES);
    let monitor = Monitor::start(&machine, "all");
    let agent = machine.start("agent");
    machine.until("started", || {
        machine.log().matches("started as node node1").count() == 2
    });
    machine
        .ns
        .ip("route add 10.254.0.0/16 via 172.16.0.99 proto static");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(agent.stop(), Some(0));
    machine.ns.ip("route del 10.254.0.0/16");
    let lines = monitor.stop(&machine, "Deleted 10.254.0.0/16");
    assert_eq!(
        lines
            .lines()
            .filter(|line| !line.contains("10.254.0.0/16"))
            .collect::<Vec<_>>(),
        [""; 0]
    );
    assert_eq!(machine.everything(), before);
}
