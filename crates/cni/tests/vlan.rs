//! VLANs of pods: at work where the kernel's bridges heed them, refused with a clear error where they do not.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::process::Command;

use harness::{Node, Pod};
use serde_json::{Value, json};

/// What bridge(8) shows of a port: the numbers, and the one without a tag.
fn vlans(port: &str) -> (Vec<u64>, Option<u64>) {
    let shown = Command::new("bridge")
        .args(["-j", "vlan", "show", "dev", port])
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let list = shown[0]["vlans"].as_array().unwrap();
    let number = |vlan: &Value| vlan["vlan"].as_u64().unwrap();
    let numbers = list
        .iter()
        .flat_map(|vlan| number(vlan)..=vlan["vlanEnd"].as_u64().unwrap_or(number(vlan)));
    let untagged = list
        .iter()
        .find(|vlan| vlan["flags"].to_string().contains("PVID"));
    (numbers.collect(), untagged.map(number))
}

/// True where the kernel can do it, which another program shows.
fn kernel_filters_vlans() -> bool {
    let _elsewhere = Node::new();
    let made = Command::new("ip")
        .args([
            "link",
            "add",
            "probe0",
            "type",
            "bridge",
            "vlan_filtering",
            "1",
        ])
        .output()
        .unwrap();
    made.status.success()
}

#[test]
fn a_pod_s_port_has_its_vlans_or_the_kernel_is_told_to_have_none() {
    let works = std::thread::spawn(kernel_filters_vlans).join().unwrap();
    println!(
        "this kernel {} VLANs of bridges",
        if works { "filters" } else { "does not filter" }
    );
    let trunk = json!([{"minID": 10, "maxID": 12}, {"id": 20}]);
    let cases = [
        (json!({"vlan": 100}), "vlan: 100", (vec![100], Some(100))),
        (
            json!({"vlan": 100, "preserveDefaultVlan": true}),
            "vlan: 100",
            (vec![1, 100], Some(100)),
        ),
        (
            json!({"vlanTrunk": trunk}),
            "vlanTrunk: 10",
            (vec![1, 10, 11, 12, 20], Some(1)),
        ),
        (
            json!({"vlan": 11, "vlanTrunk": trunk}),
            "vlan: 11",
            (vec![10, 11, 12, 20], Some(11)),
        ),
    ];
    for (keys, named, expected) in cases {
        let (node, pod) = (Node::new(), Pod::new());
        let conf = node.conf(keys);
        let added = node.add("c1", &pod, &conf);
        if works {
            let added = added.expect_ok();
            let port = added.json["interfaces"][1]["name"].as_str().unwrap();
            assert_eq!(vlans(port), expected, "{named}");
            node.check("c1", &pod, &node.with_prev(&conf, &added))
                .expect_ok();
            assert!(pod.ip("addr show eth0").is_array());
            node.del("c1", &conf).expect_ok();
            continue;
        }
        let (code, text) = added.expect_error();
        let why = "this kernel's bridges know no VLANs (CONFIG_BRIDGE_VLAN_FILTERING)";
        assert!(
            code == 2 && text.starts_with(&format!("{named}: {why}")),
            "{code} {text}"
        );
        node.assert_clean(named);
        let bridges = node.ns.ip("link show type bridge");
        assert_eq!(
            bridges.as_array().unwrap().len(),
            1,
            "foreign0 alone: {bridges}"
        );
        // DEL asks for nothing.
        node.del("c1", &conf).expect_ok();
        // Nor is a bridge of ours that is there changed.
        let plain = Pod::new();
        node.add("plain", &plain, &node.conf(json!({}))).expect_ok();
        let before = node.ns.ip("link show podspan0");
        assert_eq!(node.add("c1", &pod, &conf).expect_error().0, 2);
        assert_eq!(node.pod_links().len(), 1, "{named}");
        assert_eq!(node.ns.ip("link show podspan0"), before);
    }
}

#[test]
fn vlans_of_a_bridge_of_somebody_else_need_it_to_heed_them() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({"bridge": "foreign0", "vlan": 100}));
    let (code, text) = node.add("c1", &pod, &conf).expect_error();
    assert_eq!(
        (code, text.as_str()),
        (
            7,
            "bridge: foreign0 is not ours and heeds no VLANs; set its vlan_filtering on, or name another"
        )
    );
    node.assert_clean("a bridge that heeds no VLANs");
    node.assert_foreign_survives();
}

#[test]
fn t14_a_vlan_that_cannot_be_is_refused_and_nothing_is_made() {
    let (node, pod) = (Node::new(), Pod::new());
    for (keys, expected) in [
        (
            json!({"vlan": 4095}),
            "vlan is 4095; it must be from 0 to 4094",
        ),
        (
            json!({"vlanTrunk": [{"minID": 9, "maxID": 8}]}),
            "vlanTrunk[0].maxID is 8; it must not be below minID, which is 9",
        ),
        (
            json!({"vlanTrunk": [{"id": 4095}]}),
            "vlanTrunk[0].id is 4095; it must be from 1 to 4094",
        ),
    ] {
        let answer = node.add("c1", &pod, &node.conf(keys));
        assert_eq!(answer.expect_error(), (7, expected.to_owned()));
        node.assert_clean(expected);
    }
    let nothing = json!({"vlan": 0, "vlanTrunk": [], "preserveDefaultVlan": true});
    node.add("c1", &pod, &node.conf(nothing)).expect_ok();
}
