//! Two nodes that test the way to each other: machines as namespaces, and between them a cable in the middle of which
//! things can be broken.

use std::process::Command;

use podspan_kernel::Netns;
use podspan_kernel::testing::TestNs;

use crate::machine::{Agent, Machine, entry};

/// `node1` with its agent's machine, `node2`, and a router between that forwards what it gets; each in its own namespace.
struct Pair {
    one: Machine,
    two: Netns,
    middle: Netns,
}

/// Runs the script in a namespace.
fn sh(netns: &Netns, script: &str) -> String {
    let output = netns
        .run(|| Command::new("sh").args(["-ec", script]).output().unwrap())
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{script}\n{}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn new_netns() -> Netns {
    std::thread::spawn(|| {
        let _ns = TestNs::new();
        Netns::current().unwrap()
    })
    .join()
    .unwrap()
}

impl Pair {
    /// The segment is a bridge in the middle, with a cable to each node.
    fn new() -> Self {
        let one = Machine::new();
        let (two, middle) = (new_netns(), new_netns());
        let here = Netns::current().unwrap();
        sh(&middle, "ip link add lan up type bridge");
        for (netns, name) in [(&here, "one"), (&two, "two")] {
            // The other end of a cable goes to a namespace by a process in it, which `sh` is not; so it is made there.
            let pid = Sleeper::new(&middle);
            let make = format!(
                "ip link add up0 up type veth peer name {name} netns {}",
                pid.0.id()
            );
            sh(netns, &make);
            sh(&middle, &format!("ip link set {name} up master lan"));
        }
        // As a port of the bridge that is this machine's uplink already. Whoever asks for the neighbour of a packet from
        // elsewhere does it with a link-local address.
        sh(
            &here,
            "ip link set up0 master eth0
             ip addr add fe80::1/64 dev eth0 nodad",
        );
        sh(
            &two,
            "ip link set up0 name eth0
             ip link set eth0 up
             ip addr add 172.16.0.2/16 dev eth0
             ip addr add fd00:172::2/64 dev eth0 nodad",
        );
        one.nodes(&[entry(1), entry(2)].concat());
        Self { one, two, middle }
    }

    /// Starts the agent of node2.
    fn start_two(&self) -> Agent<'_> {
        let directory = self.one.path("two");
        std::fs::create_dir_all(&directory).unwrap();
        let config = format!(
            "node = \"node2\"\nnodes_file = \"{}\"\nconflist = \"{}/net.d/10-podspan.conflist\"\n",
            self.one.path("nodes.toml").display(),
            directory.display()
        );
        std::fs::write(self.one.path("two.toml"), config).unwrap();
        self.two.run(|| self.one.start_as("agent", "two")).unwrap()
    }

    /// The number of ways of node1 with that verdict.
    fn verdicts(&self, outcome: &str) -> f64 {
        let series = format!("podspan_probe_verdicts{{outcome=\"{outcome}\"}}");
        crate::operation::metric(&series).unwrap_or_default()
    }
}

/// A process in a namespace.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn new(netns: &Netns) -> Self {
        let start = || Command::new("sleep").arg("60").spawn().unwrap();
        Self(netns.run(start).unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn two_nodes_find_that_packets_of_every_size_pass_and_that_a_killed_agent_is_no_fault_of_the_way() {
    let pair = Pair::new();
    let _one = pair.one.start("agent");
    let two = pair.start_two();
    pair.one
        .until("all pass", || pair.verdicts("passes") == 2.0);
    assert_eq!(crate::operation::metric("podspan_probe_peers"), Some(2.0));
    assert!(!pair.one.log().contains("peer node2"), "{}", pair.one.log());
    // Its answers came from the gateways of the other node, which has found the same about this one.
    let seen = sh(&pair.two, "ss -Htln sport = :11270");
    assert!(
        seen.contains("10.0.2.1:11270") && seen.contains("[fd00:10:2::1]:11270"),
        "{seen}"
    );
    drop(two);
    pair.one
        .until("the way is right", || pair.verdicts("refused") == 2.0);
    assert!(crate::operation::metric("podspan_problems") == Some(0.0));
}

#[test]
fn a_node_that_is_down_is_told_once_and_its_return_too() {
    let pair = Pair::new();
    let _one = pair.one.start("agent");
    let _two = pair.start_two();
    pair.one
        .until("all pass", || pair.verdicts("passes") == 2.0);
    sh(&pair.middle, "ip link set two down");
    pair.one
        .until("both fail", || pair.verdicts("silent") == 2.0);
    pair.one
        .until("told", || pair.one.log().contains("peer node2 (10.0.2.1)"));
    assert!(
        crate::operation::is_ready(),
        "this node's pods can be started"
    );
    let failing = "podspan_probe_failing_peer{node=\"node2\",gateway=\"10.0.2.1\"";
    assert!(
        crate::operation::ask("/metrics")
            .unwrap()
            .1
            .contains(failing)
    );
    sh(&pair.middle, "ip link set two up");
    pair.one
        .until("all pass", || pair.verdicts("passes") == 2.0);
    pair.one.until("mended", || {
        pair.one.log().contains("mended: peer node2 (10.0.2.1)")
    });
}

#[test]
fn a_link_on_the_way_that_loses_large_packets_in_silence_is_found() {
    let pair = Pair::new();
    // What a switch with a smaller MTU does: a frame that is too large is gone, and nobody is told.
    sh(
        &pair.middle,
        "nft add table bridge hole
         nft add chain bridge hole forward '{ type filter hook forward priority 0; }'
         nft add rule bridge hole forward oifname two meta length gt 1400 counter drop",
    );
    let _one = pair.one.start("agent");
    let _two = pair.start_two();
    pair.one
        .until("found", || pair.verdicts("too_large") == 2.0);
    let said = "peer node2 (10.0.2.1): small packets pass, those of 1450 bytes sent to it are lost on eth0";
    pair.one.until("told", || pair.one.log().contains(said));
    sh(&pair.middle, "nft flush table bridge hole");
    pair.one
        .until("all pass", || pair.verdicts("passes") == 2.0);
    // And the other way.
    sh(
        &pair.middle,
        "nft add rule bridge hole forward oifname one meta length gt 1400 counter drop",
    );
    let said = "peer node2 (10.0.2.1): small packets pass, those of 1450 bytes that it sends are lost on eth0";
    pair.one.until("told", || pair.one.log().contains(said));
}

#[test]
fn pods_that_send_more_than_the_uplink_takes_are_told() {
    let pair = Pair::new();
    pair.one.configure("mtu = 1500\n");
    sh(&Netns::current().unwrap(), "ip link set eth0 mtu 1400");
    let _one = pair.one.start("agent");
    let _two = pair.start_two();
    let said =
        "peer node2 (10.0.2.1): pods send packets of 1500 bytes, and the way on eth0 takes 1400";
    pair.one.until("told", || pair.one.log().contains(said));
}

#[test]
fn where_tests_are_switched_off_nobody_answers_nor_asks() {
    let pair = Pair::new();
    pair.one.configure("probe = false\n");
    let _one = pair.one.start("agent");
    pair.one.until("ready", crate::operation::is_ready);
    assert_eq!(crate::operation::metric("podspan_probe_peers"), Some(0.0));
    let seen = sh(&Netns::current().unwrap(), "ss -Htln sport = :11270");
    assert_eq!(seen, "");
}
