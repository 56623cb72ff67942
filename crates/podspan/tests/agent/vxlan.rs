//! Routing `vxlan` and `auto`: the device, its forwarding table and its neighbours, as the kernel tells them.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::machine::{Machine, THREE_NODES, addressed, entry};
use crate::monitor::Monitor;

const DEVICE: &str = "podspan-vxlan4";
const ROUTES: [&str; 4] = [
    "10.0.2.0/24 via 10.0.2.0",
    "10.0.3.0/24 via 10.0.3.0",
    "fd00:10:2::/64 via fe80::858:aff:fe00:200",
    "fd00:10:3::/64 via fe80::858:aff:fe00:300",
];

fn bridge(arguments: &str) -> Value {
    let output = Command::new("bridge")
        .arg("-j")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "bridge {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// What is written down on the device: entries of its table and neighbours, sorted.
fn written_down(machine: &Machine) -> Vec<String> {
    let link = format!("link show {DEVICE}");
    let links = machine.ns.ip("link show");
    if !links
        .as_array()
        .unwrap()
        .iter()
        .any(|l| l["ifname"] == DEVICE)
    {
        return vec![format!("no {link}")];
    }
    let text = |of: &Value, key: &str| of[key].as_str().unwrap_or("?").to_owned();
    // Of all devices: this one may be made anew just now, and then it is not there.
    let table = bridge("fdb show");
    let table = table.as_array().cloned().unwrap_or_default().into_iter();
    let table = table.filter(|entry| entry["ifname"] == DEVICE);
    let table = table.map(|entry| {
        let state = text(&entry, "state");
        format!(
            "{} dst {} {state}",
            text(&entry, "mac"),
            text(&entry, "dst")
        )
    });
    let mut all: Vec<_> = table.collect();
    for family in ["-4", "-6"] {
        // Of all devices: this one may be made anew just now, and then it is not there.
        let seen = machine.ns.ip(&format!("{family} neigh show"));
        let seen = seen.as_array().cloned().unwrap_or_default().into_iter();
        let permanent = seen.filter(|n| n["dev"] == DEVICE && n["state"][0] == "PERMANENT");
        all.extend(permanent.map(|n| format!("{} lladdr {}", text(&n, "dst"), text(&n, "lladdr"))));
    }
    all.sort();
    all
}

const WRITTEN_DOWN: [&str; 6] = [
    "0a:58:0a:00:02:00 dst 172.16.0.2 permanent",
    "0a:58:0a:00:03:00 dst 172.16.0.3 permanent",
    "10.0.2.0 lladdr 0a:58:0a:00:02:00",
    "10.0.3.0 lladdr 0a:58:0a:00:03:00",
    "fe80::858:aff:fe00:200 lladdr 0a:58:0a:00:02:00",
    "fe80::858:aff:fe00:300 lladdr 0a:58:0a:00:03:00",
];

fn device(machine: &Machine) -> Value {
    machine.ns.ip(&format!("-d link show {DEVICE}"))[0].clone()
}

fn until_right(machine: &Machine) -> Duration {
    machine.until("right", || {
        machine.routes() == ROUTES && written_down(machine) == WRITTEN_DOWN
    })
}

fn with_vxlan() -> Machine {
    let machine = Machine::new();
    machine.configure("routing = \"vxlan\"\n");
    machine
}

#[test]
fn everything_is_programmed_nothing_is_learned_and_a_second_look_changes_nothing() {
    let machine = with_vxlan();
    let (code, changes) = machine.run("plan");
    assert_eq!(code, 1);
    let made = "ip link add podspan-vxlan4 address 0a:58:0a:00:01:00 mtu 1450 type vxlan id 112 dstport 8472 \
                local 172.16.0.1 nolearning\n";
    assert!(changes.contains(made), "{changes}");
    let agent = machine.start("agent");
    until_right(&machine);
    machine.until("right", || machine.run("status").0 == 0);
    let status = machine.run("status").1;
    let line =
        "vxlan device podspan-vxlan4 from 172.16.0.1 to 2 nodes, VNI 112, UDP port 8472, MTU 1450";
    assert!(status.contains(line), "{status}");
    let seen = device(&machine);
    let data = &seen["linkinfo"]["info_data"];
    assert_eq!(
        (&seen["ifalias"], &seen["address"], &seen["mtu"]),
        (
            &"podspan:vxlan".into(),
            &"0a:58:0a:00:01:00".into(),
            &1450.into()
        )
    );
    assert_eq!(
        (&data["learning"], &data["id"]),
        (&false.into(), &112.into())
    );
    assert_eq!(machine.ns.ip("link show podspan0")[0]["mtu"], 1450);
    let addresses = machine.ns.ip(&format!("addr show {DEVICE}"));
    let addresses = addresses[0]["addr_info"].as_array().unwrap();
    let addresses: Vec<_> = addresses.iter().map(|address| &address["local"]).collect();
    assert_eq!(addresses, ["10.0.1.0"], "and no link-local one");
    let route = machine.ns.ip("route show 10.0.2.0/24");
    assert_eq!(
        (&route[0]["prefsrc"], &route[0]["flags"][0]),
        (&"10.0.1.1".into(), &"onlink".into())
    );
    // NET_ADDR_SET: no udev policy changes it. /sys shows the namespace of whoever mounts it.
    let read = "mount -t sysfs sysfs /sys && cat /sys/class/net/podspan-vxlan4/addr_assign_type";
    let kind = Command::new("unshare")
        .args(["-m", "sh", "-c", read])
        .output();
    assert_eq!(String::from_utf8_lossy(&kind.unwrap().stdout), "3\n");
    assert_eq!(agent.stop(), Some(0));

    // Another life of the agent: not one message.
    let before = (machine.everything(), written_down(&machine));
    let monitor = Monitor::start(&machine, "all");
    let agent = machine.start("agent");
    machine.until("started", || {
        machine.log().matches("started as node node1").count() == 2
    });
    agent.has_looked();
    assert_eq!(agent.stop(), Some(0));
    machine
        .ns
        .ip("route add 10.251.0.0/16 via 172.16.0.99 proto static");
    machine.ns.ip("route del 10.251.0.0/16");
    let lines = monitor.stop(&machine, "Deleted 10.251.0.0/16");
    // The node that `has_looked` adds and removes, and no other.
    let marker = |line: &&str| {
        [
            "10.251.",
            "10.117.48",
            "fd00:10:7530:",
            "75:30",
            "fe0a:7530",
            "172.16.117.48",
        ]
        .iter()
        .any(|text| line.contains(text))
    };
    let others: Vec<_> = lines.lines().filter(|line| !marker(line)).collect();
    assert_eq!(others, [""; 0]);
    assert_eq!((machine.everything(), written_down(&machine)), before);
    machine.assert_foreign_things_are_there();
}

#[test]
fn what_somebody_changes_about_the_device_is_mended() {
    let machine = with_vxlan();
    let agent = machine.start("agent");
    until_right(&machine);
    let ip = |command: &str| drop(machine.ns.ip(command));
    let fdb = |command: &str| drop(bridge(command));
    let faults: [(&str, &dyn Fn()); 14] = [
        ("a deleted device", &|| ip("link del podspan-vxlan4")),
        ("a device that is down", &|| {
            ip("link set podspan-vxlan4 down")
        }),
        ("another MAC address", &|| {
            ip("link set podspan-vxlan4 address 02:00:00:00:00:07");
        }),
        ("another MTU", &|| ip("link set podspan-vxlan4 mtu 1500")),
        ("another VNI", &|| {
            // The agent is as quick as we are.
            agent.signal("-STOP");
            ip("link del podspan-vxlan4");
            ip("link add podspan-vxlan4 type vxlan id 7 dstport 8472 local 172.16.0.1");
            ip("link set podspan-vxlan4 alias podspan:vxlan");
            agent.signal("-CONT");
        }),
        ("a device that learns", &|| {
            ip("link set podspan-vxlan4 type vxlan learning");
        }),
        ("a deleted entry", &|| {
            fdb("fdb del 0a:58:0a:00:02:00 dev podspan-vxlan4 dst 172.16.0.2 self");
        }),
        ("an entry that leads elsewhere", &|| {
            fdb("fdb replace 0a:58:0a:00:02:00 dev podspan-vxlan4 dst 172.16.0.77 self");
        }),
        ("an entry too many", &|| {
            fdb("fdb add 00:00:00:00:00:00 dev podspan-vxlan4 dst 172.16.0.77 self permanent");
        }),
        ("a deleted neighbour", &|| {
            ip("neigh del 10.0.2.0 dev podspan-vxlan4");
        }),
        ("a neighbour that is another", &|| {
            ip(
                "neigh replace fe80::858:aff:fe00:200 lladdr 02:00:00:00:00:07 dev podspan-vxlan4 nud permanent",
            );
        }),
        ("a deleted address", &|| {
            ip("addr del 10.0.1.0/32 dev podspan-vxlan4")
        }),
        ("another address", &|| {
            ip("addr add 10.0.77.0/32 dev podspan-vxlan4")
        }),
        ("a deleted route", &|| ip("route del 10.0.2.0/24")),
    ];
    for (what, fault) in faults {
        fault();
        let is_wrong = || machine.run("plan").0 == 1;
        println!("{what}: wrong {}", is_wrong());
        let after = machine.until(what, || {
            machine.routes() == ROUTES
                && written_down(&machine) == WRITTEN_DOWN
                && machine.run("plan").0 == 0
        });
        println!("{what}: right after {after:?}");
    }
    let data = device(&machine)["linkinfo"]["info_data"].clone();
    assert_eq!(
        (&data["learning"], &data["id"]),
        (&false.into(), &112.into())
    );
    machine.assert_foreign_things_are_there();
}

#[test]
fn auto_has_a_device_as_long_as_somebody_is_far() {
    let machine = Machine::new();
    let far = addressed(3, "198.51.100.3");
    machine.configure("");
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    assert_eq!(written_down(&machine).len(), 1, "no device");
    machine.nodes(&[entry(1), entry(2), far].concat());
    machine.until_routes(&[
        "10.0.2.0/24 via 172.16.0.2",
        "10.0.3.0/24 via 10.0.3.0",
        "fd00:10:2::/64 via fd00:172::2",
        "fd00:10:3::/64 via fd00:172::3",
    ]);
    let expected = [
        "0a:58:0a:00:03:00 dst 198.51.100.3 permanent",
        "10.0.3.0 lladdr 0a:58:0a:00:03:00",
    ];
    assert_eq!(written_down(&machine), expected);
    machine.nodes(&[entry(1), entry(2), entry(3)].concat());
    machine.until_routes(&THREE_NODES);
    machine.until("the device is gone", || written_down(&machine).len() == 1);
    assert_eq!(
        machine.ns.ip("link show podspan0")[0]["mtu"],
        1450,
        "as before"
    );
}

#[test]
fn a_change_of_routing_replaces_routes_and_a_device_that_is_to_accept_stays() {
    let machine = Machine::new();
    let restart = |more: &str, routes: &[&str]| {
        machine.configure(more);
        let agent = machine.start("agent");
        machine.until_routes(routes);
        machine.until("right", || machine.run("plan").0 == 0);
        assert_eq!(agent.stop(), Some(0));
    };
    let router = [
        "10.0.0.0/17 via 172.16.0.254",
        "fd00:10::/32 via fd00:172::fe",
    ];
    let through = "routing = \"router\"\ncluster_cidrs = [\"10.0.0.0/17\", \"fd00:10::/32\"]\n\
                   routers = [\"172.16.0.254\", \"fd00:172::fe\"]\n";
    let there = || machine.ns.ip("link show").to_string().contains(DEVICE);
    restart("routing = \"direct\"", &THREE_NODES);
    assert!(!there());
    restart("routing = \"direct\"\nvxlan_accept = true", &THREE_NODES);
    assert!(there());
    for (routing, routes) in [
        ("routing = \"vxlan\"\n", &ROUTES[..]),
        (through, &router[..]),
        ("routing = \"vxlan\"\n", &ROUTES[..]),
        ("", &THREE_NODES[..]),
    ] {
        let monitor = Monitor::start(&machine, "route");
        restart(&format!("{routing}vxlan_accept = true\n"), routes);
        assert!(there(), "{routing}");
        machine
            .ns
            .ip("route add 10.251.0.0/16 via 172.16.0.99 proto static");
        machine.ns.ip("route del 10.251.0.0/16");
        let lines = monitor.stop(&machine, "Deleted 10.251.0.0/16");
        let of_node2 = |line: &&str| line.contains("Deleted") && line.contains(" 10.0.2.0/24");
        if !routes.contains(&router[0]) {
            let deleted: Vec<_> = lines.lines().filter(of_node2).collect();
            assert_eq!(
                deleted, [""; 0],
                "{routing}: replaced, not removed and added"
            );
        }
    }
    restart("routing = \"direct\"", &THREE_NODES);
    assert!(!there());
}

#[test]
fn the_mtu_of_device_bridge_and_conflist_follows_the_uplink() {
    let machine = with_vxlan();
    let _agent = machine.start("agent");
    until_right(&machine);
    for (uplink, pods) in [(9000, 8950), (1400, 1350)] {
        machine.ns.ip(&format!("link set eth0 mtu {uplink}"));
        machine.until("followed", || {
            let conflist = std::fs::read_to_string(machine.path("net.d/10-podspan.conflist"));
            let conflist: Value = serde_json::from_str(&conflist.unwrap()).unwrap();
            device(&machine)["mtu"] == pods
                && machine.ns.ip("link show podspan0")[0]["mtu"] == pods
                && conflist["plugins"][0]["mtu"] == pods
        });
        until_right(&machine);
    }
}

#[test]
fn a_device_of_somebody_else_with_our_name_is_told_and_what_ran_goes_on() {
    let machine = Machine::new();
    machine.configure("routing = \"direct\"");
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    assert_eq!(agent.stop(), Some(0));
    machine
        .ns
        .ip("link add podspan-vxlan4 type vxlan id 7 dstport 4789 local 172.16.0.1");
    machine.configure("routing = \"vxlan\"\n");
    let agent = machine.start("agent");
    let told =
        "routing = \"vxlan\": needs podspan-vxlan4, and a vxlan of somebody else has that name";
    machine.until("told", || machine.log().contains(told));
    assert_eq!(machine.routes(), THREE_NODES);
    assert_eq!(device(&machine)["linkinfo"]["info_data"]["id"], 7);
    machine.ns.ip("link del podspan-vxlan4");
    until_right(&machine);
    assert_eq!(agent.stop(), Some(0));
}
