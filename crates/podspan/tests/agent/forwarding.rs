//! A node that drops what it forwards, as Docker leaves it: pods of other nodes, and what pods send, pass all the same.

use std::process::Command;

use serde_json::json;

use crate::machine::{Machine, THREE_NODES};

/// What `iptables` or `ip6tables` prints.
#[track_caller]
fn iptables(program: &str, words: &str) -> String {
    let output = Command::new(format!("{program}-nft"))
        .args(words.split_whitespace())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}-nft is installed: {error}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

const PROGRAMS: [&str; 2] = ["iptables", "ip6tables"];

#[test]
fn where_docker_drops_what_the_node_forwards_pods_pass_in_both_directions() {
    let machine = Machine::new();
    let node2 = machine.node2();
    let near = node2.server();
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("plan").0 == 0);
    let pod = machine.pod("web", &json!({}));
    let server = pod.server();
    let pairs = [
        ("10.0.2.2", "10.0.1.2", "172.16.0.2"),
        ("fd00:10:2::2", "fd00:10:1::2", "fd00:172::2"),
    ];
    let passes = || {
        for (pod2, pod1, address2) in pairs {
            assert_eq!(pod.seen_as(pod2, &near), pod1);
            assert_eq!(node2.seen_as(pod1, &server), address2);
        }
    };
    passes();
    for program in PROGRAMS {
        assert!(!iptables(program, "-S").contains("PODSPAN"), "not needed");
    }
    // As Docker starts, and as it starts again: the policy, then its rules at the head.
    for program in PROGRAMS {
        for words in [
            "-P FORWARD DROP",
            "-N DOCKER-USER",
            "-N DOCKER-FORWARD",
            "-A DOCKER-FORWARD -o docker0 -j DROP",
            "-I FORWARD -j DOCKER-FORWARD",
            "-I FORWARD -j DOCKER-USER",
        ] {
            iptables(program, words);
        }
    }
    let has_ours = |program| iptables(program, "-S FORWARD").contains("-j PODSPAN-AGENT");
    let back = machine.until("pods pass", || PROGRAMS.iter().all(|p| has_ours(p)));
    println!("after the drop pods pass again within {back:?}");
    passes();
    machine.until("right", || machine.run("plan").0 == 0);
    for program in PROGRAMS {
        iptables(program, "-F FORWARD");
    }
    let back = machine.until("the jump is back", || PROGRAMS.iter().all(|p| has_ours(p)));
    println!("after a flush of FORWARD the jump is back within {back:?}");
    passes();
    // What somebody else drops is dropped: ours comes last.
    iptables("iptables", "-I FORWARD -d 10.0.1.2 -j DROP");
    assert!(node2.run(|| {
        let address = "10.0.1.2:8080".parse().unwrap();
        let patience = std::time::Duration::from_millis(700);
        std::net::TcpStream::connect_timeout(&address, patience).is_err()
    }));
    iptables("iptables", "-D FORWARD -d 10.0.1.2 -j DROP");
    passes();
    for program in PROGRAMS {
        iptables(program, "-P FORWARD ACCEPT");
    }
    machine.until("ours goes with the need", || {
        PROGRAMS
            .iter()
            .all(|program| !iptables(program, "-S").contains("PODSPAN"))
    });
    passes();
}
