//! The lab, with the real executables: what it builds, that its check tells the truth, and that nothing is left of it.
//!
//! Each test has labs of its own, which end with it. The machine's own network, mounts and processes are the foreign
//! objects here: they stand beside every lab and must not change.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[path = "lab/explain.rs"]
mod explain;
#[path = "lab/harness.rs"]
mod harness;
#[path = "lab/vxlan.rs"]
mod vxlan;

use std::process::Stdio;
use std::time::{Duration, Instant};

use harness::{Lab, Machine, Pings, outcomes, wait_until};

#[test]
fn every_promise_holds_with_direct_routing() {
    let lab = Lab::up("direct", &["--nodes", "3", "--pods", "2"]);
    let rows = lab.check();
    assert_eq!(rows.len(), 13);
    assert!(rows.iter().all(|row| row.outcome == "PASS"), "{rows:#?}");
    let status = lab.json(&["status"]);
    let node = &status["machines"][1];
    assert_eq!(node["name"], "node2");
    assert_eq!(node["uplink"][0], "192.168.1.12/24");
    assert_eq!(node["bridge"]["addresses"][0], "10.244.2.1/24");
    assert_eq!(node["pods"].as_array().unwrap().len(), 2);
    assert_eq!(node["routes"].as_array().unwrap().len(), 4);
}

#[test]
fn every_promise_holds_through_a_router() {
    let lab = Lab::up(
        "router",
        &["--nodes", "4", "--pods", "1", "--routing", "router"],
    );
    let rows = lab.check();
    // One pod has no other on its node.
    let none = rows.iter().filter(|row| row.outcome == "none").count();
    assert_eq!(none, 1, "{rows:#?}");
    assert!(rows.iter().all(|row| row.outcome != "FAIL"), "{rows:#?}");
    let status = lab.json(&["status"]);
    let routes: Vec<_> = status["machines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|machine| machine["routes"].as_array().unwrap().len())
        .collect();
    assert_eq!(routes, [2, 2, 2, 2, 8]);
}

#[test]
fn the_doctor_finds_nothing_on_healthy_machines_and_a_node_that_is_cut_off_on_the_others() {
    let findings = |lab: &Lab, machine: &str| -> Vec<String> {
        let role = if machine == "router" {
            "router"
        } else {
            "node"
        };
        // Its exit status, which says the same, is not the lab's to judge here.
        let script = format!("podspan doctor -o json --role {role} || true");
        let report: serde_json::Value = serde_json::from_str(&lab.sh(machine, &script)).unwrap();
        let all = report["findings"].as_array().unwrap().iter();
        let ill = all.filter(|finding| finding["level"] != "right");
        ill.map(|finding| finding["what"].as_str().unwrap().to_owned())
            .collect()
    };
    let tunnelled = Lab::up("doctor-vxlan", &["--nodes", "2", "--routing", "vxlan"]);
    let strict = "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter";
    for machine in ["node1", "node2"] {
        tunnelled.sh(machine, strict);
        assert_eq!(findings(&tunnelled, machine), [""; 0], "{machine}");
    }
    drop(tunnelled);
    let lab = Lab::up(
        "doctor",
        &["--nodes", "3", "--pods", "1", "--routing", "router"],
    );
    for machine in ["node1", "node2", "node3", "router"] {
        assert_eq!(findings(&lab, machine), [""; 0], "{machine}");
    }
    lab.sh("node2", "ip link set eth0 down");
    let cut_off = findings(&lab, "node1");
    assert_eq!(cut_off.len(), 2, "{cut_off:#?}");
    let of_node2 = |what: &String| what.starts_with("peer node2 (") && what.contains("not answer");
    assert!(cut_off.iter().all(of_node2), "{cut_off:#?}");
}

#[test]
fn what_was_not_tried_is_not_called_kept() {
    let lab = Lab::up("alone", &["--nodes", "1", "--pods", "1"]);
    for row in lab.check() {
        let untried = [
            "different nodes",
            "one node reach",
            "leaves",
            "returns",
            "routes of its routing",
        ];
        let expected = if untried.iter().any(|word| row.promise.contains(word)) {
            "none"
        } else {
            "PASS"
        };
        assert_eq!(row.outcome, expected, "{row:?}");
    }
}

/// Something broken in a lab of two nodes with two pods each.
struct Fault {
    place: &'static str,
    breaking: &'static str,
    repair: &'static str,
    promises: &'static [&'static str],
}

const FAULTS: [Fault; 6] = [
    Fault {
        place: "node1",
        breaking: "kill -STOP $(cat /run/podspan/agent.pid)
                   ip route del 10.244.2.0/24
                   ip route add 10.244.77.0/24 via 192.168.1.12 proto 112",
        repair: "ip route del 10.244.77.0/24
                 kill -CONT $(cat /run/podspan/agent.pid)
                 until ip route show proto 112 | grep 10.244.2.0; do sleep 0.05; done",
        promises: &[
            "every machine holds the routes of its routing, and no other of ours",
            "pods of different nodes reach each other",
            "a node that leaves the nodes file loses its routes everywhere",
            "a node that returns to the nodes file is reached again",
        ],
    },
    Fault {
        place: "node2",
        breaking: "nft add table ip fault
                   nft add chain ip fault out '{ type nat hook postrouting priority 100; }'
                   nft add rule ip fault out oifname eth0 masquerade",
        repair: "nft delete table ip fault",
        promises: &["every server sees the client pod's own address (no NAT)"],
    },
    Fault {
        place: "node1/pod2",
        breaking: "ip address del fd00:10:244:1::3/64 dev eth0",
        repair: "ip address add fd00:10:244:1::3/64 dev eth0 nodad",
        promises: &["every pod has its own address of its node's subnet, in both families"],
    },
    Fault {
        place: "node2/pod1",
        breaking: "ip link set lo down",
        repair: "ip link set lo up",
        promises: &["a pod reaches itself"],
    },
    Fault {
        place: "node2",
        breaking: "nft add table ip6 fault
                   nft add chain ip6 fault in '{ type filter hook input priority 0; }'
                   nft add rule ip6 fault in iifname podspan0 meta l4proto tcp reject with tcp reset
                   ip link set $(ip -br link show type veth master podspan0 | cut -d@ -f1 | tail -1) down",
        repair: "nft delete table ip6 fault
                 ip link set $(ip -br link show type veth master podspan0 | cut -d@ -f1 | tail -1) up",
        promises: &[
            "pods of one node reach each other",
            "a pod reaches its node, at every address",
            "a node reaches its pods",
        ],
    },
    Fault {
        place: "node1",
        breaking: "mount -t tmpfs -o ro tmpfs /etc/cni/net.d",
        repair: "umount /etc/cni/net.d",
        promises: &["an added pod joins the network", FREED],
    },
];

const FREED: &str = "a removed pod frees its addresses and takes its host veth with it";

#[test]
fn check_tells_each_fault() {
    let lab = Lab::up("faults", &["--nodes", "2", "--pods", "2"]);
    for fault in FAULTS {
        let breaking = fault.breaking;
        lab.sh(fault.place, breaking);
        let output = lab.podspan(&["check", "-o", "json"]).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{breaking}: {words}");
        let rows = outcomes(&output.stdout);
        for promise in fault.promises {
            let row = rows.iter().find(|row| row.promise == *promise).unwrap();
            assert_eq!(row.outcome, "FAIL", "{breaking}: {rows:#?}");
            assert!(!row.failures.is_empty());
        }
        lab.sh(fault.place, fault.repair);
    }
    let rows = lab.check();
    assert!(rows.iter().all(|row| row.outcome == "PASS"), "{rows:#?}");
}

#[test]
fn check_tells_an_address_that_is_not_freed() {
    let lab = Lab::up("leak", &["--nodes", "1", "--pods", "1"]);
    // As after a plugin that forgets: a file for every address that the added pod can get.
    lab.sh(
        "node1",
        "mv $(dirname $(command -v podspan))/podspan-cni /run/real",
    );
    lab.sh(
        "node1",
        "cat > $(dirname $(command -v podspan))/podspan-cni <<'END'
#!/bin/sh
if [ $CNI_COMMAND = DEL ]; then exit 0; fi
exec /run/real
END
         chmod +x $(dirname $(command -v podspan))/podspan-cni",
    );
    let output = lab.podspan(&["check", "-o", "json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let rows = outcomes(&output.stdout);
    let row = rows.iter().find(|row| row.promise == FREED).unwrap();
    assert_eq!(row.outcome, "FAIL", "{rows:#?}");
    assert!(
        row.failures
            .iter()
            .any(|why| why.contains("is still taken")),
        "{row:?}"
    );
}

#[test]
fn down_leaves_nothing_and_the_machine_is_never_touched() {
    let before = Machine::observe();
    let lab = Lab::up("down", &["--routing", "router"]);
    let processes = lab.processes();
    assert!(
        processes.len() >= 9,
        "holder, 4 machines, 4 programs: {processes:?}"
    );
    assert_eq!(Machine::observe(), before);
    lab.succeed(&["check"]);
    lab.succeed(&["down"]);
    assert_eq!(lab.processes_in(&processes), Vec::<i32>::new());
    assert!(!lab.state_file().exists());
    assert_eq!(Machine::observe(), before);
    lab.succeed(&["down"]);
    assert!(lab.fail(&["status"]).contains("is not up"));
}

#[test]
fn two_labs_stand_side_by_side_and_none_twice() {
    let (one, other) = (
        Lab::up("one", &["--nodes", "2"]),
        Lab::up("other", &["--nodes", "2"]),
    );
    one.succeed(&["check"]);
    other.succeed(&["check"]);
    assert!(
        one.fail(&["up"]).contains("podspan lab --lab"),
        "says how to take it down"
    );
    one.succeed(&["down"]);
    other.succeed(&["check"]);
}

#[test]
fn the_end_of_the_holder_ends_everything() {
    let lab = Lab::up("killed", &["--nodes", "2"]);
    let processes = lab.processes();
    harness::kill(lab.holder());
    wait_until("the lab's end", || lab.processes_in(&processes).is_empty());
    assert!(lab.fail(&["status"]).contains("is not up"));
    assert!(!lab.state_file().exists(), "a dead lab's file is noticed");
    lab.succeed(&["up", "--nodes", "1"]);
}

#[test]
fn a_lab_that_cannot_be_built_leaves_nothing_and_says_why() {
    let lab = Lab::without_plugin("broken");
    let words = lab.fail(&["up"]);
    assert!(
        words.contains("podspan-cni") && words.contains("nothing is left"),
        "{words}"
    );
    assert!(!lab.state_file().exists());
    assert!(
        lab.fail(&["up", "--nodes", "201"])
            .contains("1 to 200 nodes")
    );
}

#[test]
fn killing_agents_loses_no_packet() {
    let lab = Lab::up("pings", &["--nodes", "2", "--pods", "1"]);
    let pings = Pings::start(&lab, 300);
    pings.while_agents_are_killed(&["node1", "node2", "node1"]);
    pings.lost_none();
    lab.succeed(&["check"]);
}

#[test]
fn pods_come_and_go_while_the_agent_is_stopped() {
    let lab = Lab::up("stopped", &["--nodes", "2", "--pods", "1"]);
    // Its threads stop one after the other.
    let stop = "pid=$(cat /run/podspan/agent.pid); kill -STOP $pid; \
                until grep -q '^State:.T' /proc/$pid/status; do sleep 0.01; done";
    lab.sh("node1", stop);
    let output = lab.podspan(&["status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("node1 (stopped)"));
    lab.succeed(&["add", "node1/pod7"]);
    lab.sh(
        "node1/pod7",
        "ping -c 1 -W 2 10.244.2.2 && ping -c 1 -W 2 fd00:10:244:2::2",
    );
    lab.succeed(&["del", "node1/pod7"]);
    assert!(
        lab.fail(&["exec", "node1/pod7", "--", "true"])
            .contains("there is no node1/pod7")
    );
    assert!(
        lab.fail(&["del", "node1/pod7"])
            .contains("there is no node1/pod7")
    );
}

#[test]
fn a_command_in_the_lab_keeps_its_streams_and_its_exit_status() {
    let lab = Lab::up("exec", &["--nodes", "1", "--pods", "1"]);
    let mut command = lab.podspan(&[
        "exec",
        "node1",
        "--",
        "sh",
        "-c",
        "cat; hostname; pwd >&2; exit 7",
    ]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"typed\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "typed\nnode1\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "/\n");
    assert_eq!(
        lab.sh("node1/pod1", "ls /sys/class/net")
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["eth0", "lo"]
    );
    assert!(
        lab.sh("node1", "podspan list").contains("pod1"),
        "CNI_PATH and PATH are set"
    );
}

#[test]
fn an_ordinary_user_has_labs_too() {
    let lab = Lab::up_as_ordinary_user("nobody", &["--nodes", "2", "--routing", "router"]);
    let rows = lab.check();
    assert!(rows.iter().all(|row| row.outcome == "PASS"), "{rows:#?}");
    lab.sh("node1/pod1", "test $(id -u) = 0");
    let processes = lab.processes();
    lab.succeed(&["down"]);
    assert_eq!(lab.processes_in(&processes), Vec::<i32>::new());
}

#[test]
fn the_commands_that_are_shown_build_the_same_network() {
    for routing in ["direct", "auto"] {
        build_by_hand(routing);
    }
}

fn build_by_hand(routing: &str) {
    let lab = Lab::new(&format!("by-hand-{routing}"));
    let up = ["up", "-v", "--nodes", "2", "--pods", "1", "--routing"];
    let shown = lab.succeed(&[&up[..], &[routing]].concat());
    let is_command = |line: &&str| line.starts_with("ip ") || line.starts_with("bridge ");
    let commands: Vec<_> = shown.lines().map(str::trim).filter(is_command).collect();
    assert!(commands.len() > 30, "{shown}");
    let script = format!(
        "set -e\nmount -t tmpfs tmpfs /run\nmkdir /run/netns\n{}\n\
         ip netns exec node1-pod1 ping -c 1 -w 5 10.244.2.2\nip netns exec node2-pod1 ping -c 1 -w 5 fd00:10:244:1::2",
        commands.join("\n")
    );
    let user = if harness::is_root() { "-mn" } else { "-rmn" };
    let output = std::process::Command::new("unshare")
        .args([user, "sh", "-c", &script])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_large_lab_comes_up_and_keeps_its_promises() {
    let begin = Instant::now();
    let lab = Lab::up("large", &["--nodes", "30", "--pods", "3"]);
    let rows = lab.check();
    assert!(rows.iter().all(|row| row.outcome == "PASS"), "{rows:#?}");
    // No measurement: only that it does not hang.
    assert!(begin.elapsed() < Duration::from_secs(300));
}
