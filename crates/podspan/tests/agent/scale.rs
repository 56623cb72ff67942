//! Five thousand nodes.

use std::fmt::Write as _;
use std::time::Instant;

use crate::machine::{Agent, Machine, addressed};
use crate::monitor::Monitor;

/// What the agent may have beside the pages of its executable, in KiB. The whole must stay below 20 MiB; the executable
/// that is installed takes 3 MiB of that, while the one under test, with its debug information, takes 10.
const OWN_MEMORY: u64 = 16 * 1024;
/// The same with an entry and two neighbours for each node: the whole stays below the 25 MiB that the agent may have.
const OWN_MEMORY_WITH_VXLAN: u64 = 22 * 1024;

/// The most memory that the process ever had beside the pages of its executable, in KiB.
fn own_memory(agent: &Agent<'_>) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.child.id())).unwrap();
    let value = |key: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse().unwrap()
    };
    value("VmHWM:") - value("RssFile:")
}

#[test]
fn five_thousand_nodes_fit_into_20_mib_and_one_that_changes_costs_one_route_message() {
    let machine = Machine::new();
    let nodes = |moved: bool| {
        let mut content = String::new();
        for n in 1..=5000 {
            let address = if moved && n == 77 {
                "172.16.200.77".to_owned()
            } else {
                format!("172.16.{}.{}", n >> 8, n & 255)
            };
            content.write_str(&addressed(n, &address)).unwrap();
        }
        content
    };
    machine.nodes(&nodes(false));
    let begin = Instant::now();
    let agent = machine.start("agent");
    machine.until("synced", || machine.log().contains("more changes made"));
    println!("first sync of 5000 nodes: {:?}", begin.elapsed());
    assert_eq!(machine.routes().len(), 2 * 4999);
    machine.until("right", || machine.run("plan").0 == 0);

    let monitor = Monitor::start(&machine, "route");
    machine.nodes(&nodes(true));
    machine.until("followed", || {
        machine.ns.ip("route show 10.0.77.0/24")[0]["gateway"] == "172.16.200.77"
    });
    machine.until("right", || machine.run("plan").0 == 0);
    machine
        .ns
        .ip("route add 10.251.0.0/16 via 172.16.0.99 proto static");
    let lines = monitor.stop(&machine, "10.251.0.0/16");
    let ours: Vec<_> = lines
        .lines()
        .filter(|line| !line.contains("10.251.0.0/16"))
        .map(str::trim)
        .collect();
    assert_eq!(ours, ["10.0.77.0/24 via 172.16.200.77 dev eth0 proto 112"]);

    // Reading again and again must not make it grow.
    for round in 0..5 {
        machine.nodes(&nodes(round % 2 == 0));
        agent.has_looked();
    }
    let kib = own_memory(&agent);
    println!("agent's own memory with 5000 nodes: {kib} KiB at the most");
    assert!(kib < OWN_MEMORY, "{kib} KiB");
}

#[test]
fn five_thousand_nodes_behind_vxlan_fit_into_25_mib_and_one_that_moves_costs_one_message() {
    let machine = Machine::new();
    machine.configure("routing = \"vxlan\"\n");
    let nodes = |moved: bool| {
        let address = |n: u32| match moved && n == 77 {
            true => "172.16.200.77".to_owned(),
            false => format!("172.16.{}.{}", n >> 8, n & 255),
        };
        let entries = (1..=5000).map(|n| addressed(n, &address(n)));
        entries.collect::<String>()
    };
    machine.nodes(&nodes(false));
    let begin = Instant::now();
    let agent = machine.start("agent");
    machine.until("synced", || machine.log().contains("more changes made"));
    println!(
        "first sync of 5000 nodes through VXLAN: {:?}",
        begin.elapsed()
    );
    assert_eq!(machine.routes().len(), 2 * 4999);
    machine.until("right", || machine.run("plan").0 == 0);

    let monitor = Monitor::start(&machine, "all");
    machine.nodes(&nodes(true));
    let followed = || {
        let shown = std::process::Command::new("bridge")
            .args(["fdb", "show", "dev", "podspan-vxlan4"])
            .output();
        String::from_utf8_lossy(&shown.unwrap().stdout).contains("172.16.200.77")
    };
    machine.until("followed", followed);
    machine.until("right", || machine.run("plan").0 == 0);
    machine
        .ns
        .ip("route add 10.251.0.0/16 via 172.16.0.99 proto static");
    let lines = monitor.stop(&machine, "10.251.0.0/16");
    let ours: Vec<_> = lines
        .lines()
        // What the tests of the ways ask for on the uplink is no change of ours.
        .filter(|line| !line.contains("10.251.0.0/16") && !line.contains("dev eth0"))
        .collect();
    let moved = "172.16.200.77 dev podspan-vxlan4 lladdr 0a:58:0a:00:4d:00";
    assert!(ours.len() == 1 && ours[0].contains(moved), "{ours:#?}");

    for round in 0..2 {
        machine.nodes(&nodes(round % 2 == 0));
        agent.has_looked();
    }
    let kib = own_memory(&agent);
    println!("agent's own memory with 5000 nodes through VXLAN: {kib} KiB at the most");
    assert!(kib < OWN_MEMORY_WITH_VXLAN, "{kib} KiB");
}
