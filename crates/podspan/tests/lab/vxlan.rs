//! Routing `vxlan` and `auto` with real traffic, faults, and the change from one routing to another.

use std::process::{Child, Stdio};

use crate::harness::{Lab, Pings, wait_until};

/// Every node forgets nothing of what comes in another way than it would answer.
const LOOSE: &str = "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0";
const STRICT: &str = "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1";

fn passes(lab: &Lab) {
    let rows = lab.check();
    assert!(rows.iter().all(|row| row.outcome == "PASS"), "{rows:#?}");
}

fn is_right(lab: &Lab, node: &str) -> bool {
    let output = lab
        .podspan(&["exec", node, "--", "podspan", "plan"])
        .output();
    output.unwrap().status.success()
}

#[test]
fn every_promise_holds_through_vxlan_also_where_the_reverse_path_is_checked() {
    let lab = Lab::up(
        "vxlan",
        &["--nodes", "3", "--pods", "2", "--routing", "vxlan"],
    );
    passes(&lab);
    (1..=3).for_each(|n| drop(lab.sh(&format!("node{n}"), STRICT)));
    passes(&lab);
    let status = lab.json(&["status"]);
    for machine in status["machines"].as_array().unwrap() {
        assert_eq!(machine["vxlan_devices"][0], "podspan-vxlan4");
    }
    // A node speaks with pods elsewhere as its own gateway, by both families.
    for ip in ["10.244.2.2", "fd00:10:244:2::2"] {
        lab.sh("node1", &format!("ping -q -c 1 -W 2 {ip}"));
        let source = lab.sh("node1", &format!("ip route get {ip}"));
        assert!(
            source.contains(" src 10.244.1.1 ") || source.contains(" src fd00:10:244:1::1 "),
            "{source}"
        );
    }
    // Neither asked nor learned: what is known of the others is what was written down.
    let known = lab.sh(
        "node1",
        "ip neigh show dev podspan-vxlan4 nud all; bridge fdb show dev podspan-vxlan4",
    );
    let strange =
        |line: &&str| !line.to_lowercase().contains("permanent") && !line.contains("NOARP");
    assert_eq!(known.lines().filter(strange).collect::<Vec<_>>(), [""; 0]);
}

#[test]
fn every_promise_holds_between_two_subnets() {
    let lab = Lab::up(
        "auto",
        &["--nodes", "4", "--pods", "2", "--routing", "auto"],
    );
    passes(&lab);
    let route = |to: &str| lab.sh("node1", &format!("ip route get {to}"));
    assert!(route("10.244.3.2").contains("via 192.168.1.13 dev eth0"));
    assert!(route("10.244.2.2").contains("via 10.244.2.0 dev podspan-vxlan4"));
    (1..=4).for_each(|n| drop(lab.sh(&format!("node{n}"), STRICT)));
    passes(&lab);
}

#[test]
fn agents_killed_lose_no_packet_through_vxlan() {
    let lab = Lab::up(
        "killed-vxlan",
        &["--nodes", "2", "--pods", "1", "--routing", "auto"],
    );
    let pings = Pings::start(&lab, 300);
    pings.while_agents_are_killed(&["node1", "node2", "node1"]);
    pings.lost_none();
}

#[test]
fn pods_reach_each_other_again_after_whatever_somebody_takes_away() {
    let lab = Lab::up(
        "taken",
        &["--nodes", "2", "--pods", "1", "--routing", "vxlan"],
    );
    for fault in [
        "ip link del podspan-vxlan4",
        "ip link set podspan-vxlan4 down",
        "ip link set podspan-vxlan4 address 02:00:00:00:00:07",
        "bridge fdb del 0a:58:0a:f4:02:00 dev podspan-vxlan4 dst 192.168.1.12 self",
        "ip neigh flush dev podspan-vxlan4 nud permanent",
        "ip route flush proto 112",
    ] {
        lab.sh("node1", fault);
        wait_until(fault, || is_right(&lab, "node1"));
        lab.sh(
            "node1/pod1",
            "ping -q -c 1 -W 2 10.244.2.2 && ping -q -c 1 -W 2 fd00:10:244:2::2",
        );
    }
    passes_but_for_company(&lab);
}

/// One pod has no other on its node.
fn passes_but_for_company(lab: &Lab) {
    let rows = lab.check();
    assert!(rows.iter().all(|row| row.outcome != "FAIL"), "{rows:#?}");
}

#[test]
fn an_uplink_that_becomes_smaller_is_followed_and_large_transfers_go_on() {
    let lab = Lab::up(
        "mtu",
        &["--nodes", "2", "--pods", "1", "--routing", "vxlan"],
    );
    let _server = Server::start(&lab);
    let talks = [
        Talk::start(&lab, "10.244.2.2", 300),
        Talk::start(&lab, "fd00:10:244:2::2", 300),
    ];
    for node in ["node1", "node2"] {
        lab.sh(node, "ip link set eth0 mtu 1400");
        wait_until("followed", || {
            is_right(&lab, node)
                && lab.sh(
                    node,
                    "cat /sys/class/net/podspan-vxlan4/mtu /sys/class/net/podspan0/mtu",
                ) == "1350\n1350\n"
        });
    }
    talks.into_iter().for_each(Talk::lost_none);
    // A pod that starts now has the smaller MTU, and full-size packets pass.
    for node in ["node1", "node2"] {
        lab.succeed(&["del", &format!("{node}/pod1")]);
        lab.succeed(&["add", &format!("{node}/pod2")]);
        let mtu = lab.sh(&format!("{node}/pod2"), "cat /sys/class/net/eth0/mtu");
        assert_eq!(mtu, "1350\n");
    }
    passes_but_for_company(&lab);
}

#[test]
fn a_change_of_routing_loses_no_packet_and_no_connection() {
    // With a router, so that this routing can be had too; its keys do no harm to others.
    let lab = Lab::up(
        "change",
        &["--nodes", "2", "--pods", "1", "--routing", "router"],
    );
    for node in ["node1", "node2"] {
        lab.sh(node, LOOSE);
        configure(&lab, node, "$ a vxlan_accept = true");
    }
    let _server = Server::start(&lab);
    for steps in [["vxlan", "direct"], ["auto", "vxlan"], ["router", "direct"]] {
        let pings = Pings::start(&lab, 500);
        let talks = [
            Talk::start(&lab, "10.244.2.2", 400),
            Talk::start(&lab, "fd00:10:244:2::2", 400),
        ];
        for routing in steps {
            for node in ["node1", "node2"] {
                configure(
                    &lab,
                    node,
                    &format!("s/^routing = .*/routing = \"{routing}\"/"),
                );
            }
        }
        talks.into_iter().for_each(Talk::lost_none);
        pings.lost_none();
    }
    // Nobody sends through VXLAN any more, and nobody need hear it.
    let pings = Pings::start(&lab, 100);
    for node in ["node1", "node2"] {
        configure(&lab, node, "/vxlan_accept/d");
        assert!(!lab.sh(node, "ip link show").contains("vxlan"));
    }
    pings.lost_none();
}

/// Edits an agent's configuration as `sed` is told, starts the agent anew, and waits until its node is right.
fn configure(lab: &Lab, node: &str, edit: &str) {
    lab.sh(node, &format!("sed -i '{edit}' /etc/podspan/agent.toml"));
    lab.restart_agent(node);
    wait_until("right", || is_right(lab, node));
}

const TALK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lab/talk.py");

/// Who answers, in the first pod of node2, as long as there is the lab.
struct Server(Child);

impl Server {
    fn start(lab: &Lab) -> Self {
        let serve = ["exec", "node2/pod1", "--", "python3", TALK, "serve", "7777"];
        let mut server = lab.podspan(&serve).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = server.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        assert_eq!(line, "listening\n", "python3 can be started");
        Self(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection from the first pod of node1, over which questions go and answers come.
struct Talk(Child, u32);

impl Talk {
    fn start(lab: &Lab, to: &str, times: u32) -> Self {
        let times_text = times.to_string();
        let ask = [
            "exec",
            "node1/pod1",
            "--",
            "python3",
            TALK,
            "ask",
            to,
            "7777",
            &times_text,
        ];
        let talk = lab.podspan(&ask).stdout(Stdio::piped()).spawn().unwrap();
        Self(talk, times)
    }

    fn lost_none(self) {
        let output = self.0.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        println!("{text}");
        assert!(
            text.contains(&format!("{0} asked, {0} answered", self.1)),
            "{text}"
        );
    }
}
