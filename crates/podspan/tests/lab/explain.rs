//! `podspan explain` in the lab: it says what is so, and each fault by its place.

use serde_json::Value;

use crate::harness::Lab;

const TO: &str = "10.244.2.2";

/// What it prints and its exit status, from pod1 of node1 to pod1 of node2.
fn explain(lab: &Lab, more: &str) -> (i32, Value) {
    let script = format!("podspan explain -o json pod1 {TO} {more} || echo \"exit $?\"");
    let printed = lab.sh("node1", &script);
    let (json, code) = match printed.rsplit_once("exit ") {
        Some((json, code)) => (json, code.trim().parse().unwrap()),
        None => (printed.as_str(), 0),
    };
    (
        code,
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {printed}")),
    )
}

/// Whether some hop of that state says so.
fn says(explained: &Value, state: &str, what: &str) -> bool {
    let hops = explained["hops"].as_array().unwrap();
    hops.iter().any(|hop| {
        hop["state"] == state
            && [&hop["what"], &hop["mend"]]
                .iter()
                .any(|text| text.as_str().is_some_and(|text| text.contains(what)))
    })
}

/// As the caller breaks it; and then it passes again.
fn broken(lab: &Lab, place: &str, breaking: &str, mending: &str) -> Value {
    lab.sh(place, breaking);
    let (code, explained) = explain(lab, "");
    lab.sh(place, mending);
    assert_eq!(
        (code, &explained["passes"]),
        (1, &Value::Bool(false)),
        "{explained:#}"
    );
    explained
}

#[test]
fn each_hop_is_told_and_each_fault_by_its_place() {
    let lab = Lab::up(
        "explain",
        &["--nodes", "2", "--pods", "2", "--routing", "direct"],
    );
    let (code, right) = explain(&lab, "");
    assert_eq!(
        (code, &right["verdict"]),
        (0, &"it should pass, and it does".into()),
        "{right:#}"
    );
    assert!(
        !right["hops"]
            .as_array()
            .unwrap()
            .iter()
            .any(|hop| hop["state"] == "wrong")
    );
    assert!(says(
        &right,
        "right",
        "route to 10.244.2.2 via 192.168.1.12 dev eth0, as the model wants it"
    ));
    let same_node = lab.sh("node1", "podspan explain pod1 pod2 -6");
    assert!(
        same_node.contains("it should pass, and it does"),
        "{same_node}"
    );
    let (code, closed) = explain(&lab, "81");
    assert_eq!(code, 1);
    let refused = closed["tests"]["connection"]["what"].as_str().unwrap();
    assert!(refused.starts_with("refused"), "{closed:#}");

    let gone = broken(
        &lab,
        "node1",
        "kill -STOP $(cat /run/podspan/agent.pid); ip route del 10.244.2.0/24",
        "kill -CONT $(cat /run/podspan/agent.pid)
         until ip route show proto 112 | grep 10.244.2.0; do sleep 0.05; done",
    );
    assert!(
        says(
            &gone,
            "wrong",
            "ip route add 10.244.2.0/24 via 192.168.1.12"
        ),
        "{gone:#}"
    );

    let dropped = broken(
        &lab,
        "node1",
        "nft add table inet wall
         nft add chain inet wall through '{ type filter hook forward priority 0; policy drop; }'",
        "nft delete table inet wall",
    );
    let chain = "chain inet wall through drops what none of its rules accepts";
    assert!(says(&dropped, "perhaps", chain), "{dropped:#}");
    assert!(
        dropped["verdict"].as_str().unwrap().contains(chain),
        "{dropped:#}"
    );

    let rule = broken(
        &lab,
        "node1",
        "nft add table inet wall
         nft add chain inet wall through '{ type filter hook forward priority 0; }'
         nft add chain inet wall more
         nft add rule inet wall through jump more
         nft add rule inet wall more ip daddr 10.244.2.0/24 drop",
        "nft delete table inet wall",
    );
    let what =
        "some packets are dropped by rules of chain inet wall more: nft list chain inet wall more";
    assert!(says(&rule, "unseen", what), "{rule:#}");
    let verdict = rule["verdict"].as_str().unwrap();
    assert!(verdict.contains("look at what is unseen"), "{rule:#}");

    let hole = broken(
        &lab,
        "node2",
        "nft add table netdev hole
         nft add chain netdev hole in '{ type filter hook ingress device eth0 priority 0; }'
         nft add rule netdev hole in meta length gt 1450 drop",
        "nft delete table netdev hole",
    );
    assert_eq!(hole["tests"]["largest"], 1450, "{hole:#}");
    assert!(
        says(&hole, "wrong", "those of 1500 bytes sent to it are lost"),
        "{hole:#}"
    );

    let down = broken(
        &lab,
        "node2",
        "ip link set eth0 down",
        "ip link set eth0 up",
    );
    assert!(says(&down, "wrong", "does not answer on eth0"), "{down:#}");
}

#[test]
fn what_is_no_pod_of_this_node_is_told_with_what_would_help() {
    let lab = Lab::up(
        "explain-names",
        &["--nodes", "2", "--pods", "1", "--routing", "direct"],
    );
    for (words, expected) in [
        (
            "pod9 10.244.2.2",
            "no pod of this node has a container \"pod9\"; see podspan list",
        ),
        (
            "10.244.2.2 pod1",
            "10.244.2.2 is a pod of node2: run this there",
        ),
        ("pod1 10.99.0.1", "10.99.0.1 is in no node's pod CIDR"),
        (
            "pod1 10.244.1.77",
            "no pod of this node has the address 10.244.1.77",
        ),
        ("pod1 pod1", "are one pod"),
    ] {
        let script = format!("podspan explain {words} 2>&1 && exit 9 || test $? -eq 2");
        let said = lab.sh("node1", &script);
        assert!(said.contains(expected), "{words}: {said}");
    }
    // Through a tunnel, where that is the routing.
    drop(lab);
    let lab = Lab::up(
        "explain-vxlan",
        &["--nodes", "2", "--pods", "1", "--routing", "vxlan"],
    );
    let (code, explained) = explain(&lab, "");
    assert_eq!(code, 0, "{explained:#}");
    assert!(
        says(
            &explained,
            "right",
            "tunnelled packets to 192.168.1.12 dev eth0"
        ),
        "{explained:#}"
    );
}
