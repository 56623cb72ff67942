use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::policy::object::Requirement;

fn spec() -> Value {
    json!({
        "tier": "Admin", "priority": 10,
        "subject": {"pods": {"namespaceSelector": {"matchLabels": {"n": "1"}}, "podSelector": {"matchLabels": {"p": "1"}}}},
        "ingress": [
            {"name": "all", "action": "Pass", "from": [{"namespaces": {}}]},
            {"action": "Deny", "from": [{"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"p": "2"}}}}],
             "protocols": [{"tcp": {"destinationPort": {"number": 80}}}, {"udp": {"destinationPort": {"range": {"start": 1, "end": 65535}}}},
                           {"sctp": {"destinationPort": {"number": 9}}}, {"destinationNamedPort": "http"}]}],
        "egress": [{"name": "out", "action": "Accept", "to": [
            {"nodes": {"matchExpressions": [{"key": "cp", "operator": "Exists"}]}},
            {"networks": ["10.0.0.0/8", "fd00::/8"]}, {"namespaces": {"matchLabels": {"n": "2"}}}]}],
    })
}

fn maybe(spec: &Value) -> (Option<ClusterPolicy>, Vec<String>) {
    let object = json!({"metadata": {"name": "cnp", "resourceVersion": "1"}, "spec": spec, "status": {"conditions": []}});
    let object: ClusterPolicyObject = serde_json::from_str(&object.to_string()).unwrap();
    let (change, faults) = object.read();
    let Change::ClusterPolicy(_, policy) = change else {
        panic!("{change:?}")
    };
    let faults = faults.iter().map(|fault| fault.key.clone());
    (policy, faults.collect())
}

fn is(key: &str, value: &str) -> Selector {
    let requirement = Requirement::In(Text::from(key), [Text::from(value)].into());
    Selector([requirement].into())
}

#[test]
fn every_field_is_read() {
    let (policy, faults) = maybe(&spec());
    assert_eq!(faults, [""; 0]);
    let policy = policy.unwrap();
    assert_eq!(
        (&*policy.name, policy.tier, policy.priority),
        ("cnp", Tier::Admin, 10)
    );
    assert_eq!(policy.subject, (is("n", "1"), is("p", "1")));
    let all = || Selector::default();
    let ingress = [
        ClusterRule {
            name: Some(Text::from("all")),
            action: Action::Pass,
            peers: vec![ClusterPeer::Pods(all(), all())],
            ports: vec![],
        },
        ClusterRule {
            name: None,
            action: Action::Deny,
            peers: vec![ClusterPeer::Pods(all(), is("p", "2"))],
            ports: vec![
                Port::Range(Protocol::Tcp, 80, 80),
                Port::Range(Protocol::Udp, 1, 65535),
                Port::Range(Protocol::Sctp, 9, 9),
                Port::Named(None, Text::from("http")),
            ],
        },
    ];
    assert_eq!(policy.ingress, ingress);
    let networks = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().unwrap());
    let egress = ClusterRule {
        name: Some(Text::from("out")),
        action: Action::Accept,
        peers: vec![
            ClusterPeer::Nodes(Selector([Requirement::Exists(Text::from("cp"))].into())),
            ClusterPeer::Networks(networks.to_vec()),
            ClusterPeer::Pods(is("n", "2"), all()),
        ],
        ports: vec![],
    };
    assert_eq!(policy.egress, [egress]);
}

#[test]
fn a_policy_without_a_place_is_not_in_force_and_is_told() {
    let table = [
        ("tier", json!("Default"), "spec.tier"),
        ("tier", Value::Null, "spec.tier"),
        ("priority", json!(1001), "spec.priority"),
        ("priority", json!(-1), "spec.priority"),
        ("priority", json!("1"), "spec.priority"),
        ("priority", Value::Null, "spec.priority"),
        ("subject", json!({}), "spec.subject"),
        ("subject", json!({"serviceAccounts": {}}), "spec.subject"),
        (
            "subject",
            json!({"namespaces": {}, "pods": {}}),
            "spec.subject",
        ),
        (
            "subject",
            json!({"pods": {"accounts": {}}}),
            "spec.subject.pods",
        ),
        ("subject", Value::Null, "spec.subject"),
    ];
    for (key, value, place) in table {
        let mut spec = spec();
        spec[key] = value.clone();
        assert_eq!(
            maybe(&spec),
            (None, vec![place.to_owned()]),
            "{key} {value}"
        );
    }
    for priority in [0, 1000] {
        let mut spec = spec();
        spec["priority"] = json!(priority);
        assert_eq!(maybe(&spec).0.unwrap().priority, priority);
    }
}

fn rule(way: &str, rule: Value) -> (ClusterRule, Vec<String>) {
    let mut spec = json!({"tier": "Baseline", "priority": 0, "subject": {"namespaces": {}}});
    spec[way] = json!([rule]);
    let (policy, faults) = maybe(&spec);
    let mut policy = policy.unwrap();
    assert_eq!(policy.tier, Tier::Baseline);
    policy.ingress.append(&mut policy.egress);
    (policy.ingress.remove(0), faults)
}

#[test]
fn an_action_that_is_not_known_denies() {
    for action in [json!("Allow"), json!("accept"), json!(1), Value::Null] {
        let (read, faults) = rule(
            "ingress",
            json!({"action": action, "from": [{"namespaces": {}}]}),
        );
        assert_eq!(
            (read.action, faults),
            (Action::Deny, vec!["spec.ingress[0].action".to_owned()])
        );
    }
}

#[test]
fn a_peer_that_cannot_be_read_is_unknown_and_is_told() {
    let table = [
        ("egress", json!({}), ""),
        ("egress", json!("all"), ""),
        ("egress", json!({"services": {}}), ""),
        ("egress", json!({"namespaces": {}, "services": {}}), ""),
        ("egress", json!({"namespaces": {}, "nodes": {}}), ""),
        (
            "egress",
            json!({"domainNames": ["example.org"]}),
            ".domainNames",
        ),
        ("egress", json!({"networks": []}), ".networks"),
        ("egress", json!({"networks": "10.0.0.0/8"}), ".networks"),
        (
            "egress",
            json!({"networks": ["10.0.0.0/8", "10.0.0.0/33"]}),
            ".networks[1]",
        ),
        (
            "egress",
            json!({"pods": {"podSelector": {}, "accounts": {}}}),
            ".pods",
        ),
        ("ingress", json!({"nodes": {}}), ""),
        ("ingress", json!({"networks": ["10.0.0.0/8"]}), ""),
        ("ingress", json!({}), ""),
    ];
    for (way, peer, place) in table {
        let key = if way == "egress" { "to" } else { "from" };
        let (read, faults) = rule(
            way,
            json!({"action": "Deny", key: [{"namespaces": {}}, peer.clone()]}),
        );
        let all = ClusterPeer::Pods(Selector::default(), Selector::default());
        assert_eq!(read.peers, [all, ClusterPeer::Unknown], "{way} {peer}");
        assert_eq!(faults, [format!("spec.{way}[0].{key}[1]{place}")], "{peer}");
    }
}

#[test]
fn peers_are_never_empty() {
    for (rest, place) in [
        (json!({}), ""),
        (json!({"to": []}), ""),
        (json!({"to": {}}), ".to"),
    ] {
        let mut object = json!({"action": "Accept"});
        object
            .as_object_mut()
            .unwrap()
            .extend(rest.as_object().unwrap().clone());
        let (read, faults) = rule("egress", object);
        assert_eq!(read.peers, [ClusterPeer::Unknown], "{rest}");
        assert_eq!(faults, [format!("spec.egress[0]{place}")]);
    }
    let (policy, faults) = maybe(
        &json!({"tier": "Admin", "priority": 0, "subject": {"namespaces": {}}, "egress": {}}),
    );
    let egress = policy.unwrap().egress;
    assert_eq!(
        (egress[0].action, &egress[0].peers[..]),
        (Action::Deny, &[ClusterPeer::Unknown][..])
    );
    assert_eq!(faults, ["spec.egress"]);
}

#[test]
fn a_key_that_may_narrow_a_rule_closes_it() {
    for (action, peers_are_known) in [("Accept", false), ("Pass", false), ("Deny", true)] {
        let object = json!({"action": action, "from": [{"namespaces": {}}], "when": "at night"});
        let (read, faults) = rule("ingress", object);
        assert_eq!(
            !read.peers.contains(&ClusterPeer::Unknown),
            peers_are_known,
            "{action}"
        );
        assert_eq!(faults, ["spec.ingress[0]"]);
    }
}

#[test]
fn a_port_that_cannot_be_read_is_unknown_and_is_told() {
    let table = [
        (json!({}), ""),
        (json!({"icmp": {}}), ""),
        (
            json!({"tcp": {"destinationPort": {"number": 1}}, "udp": {"destinationPort": {"number": 1}}}),
            "",
        ),
        (json!({"tcp": {}}), ".tcp"),
        (json!({"tcp": {"sourcePort": {"number": 1}}}), ".tcp"),
        (
            json!({"tcp": {"destinationPort": {}}}),
            ".tcp.destinationPort",
        ),
        (
            json!({"tcp": {"destinationPort": {"number": 1, "range": {"start": 1, "end": 2}}}}),
            ".tcp.destinationPort",
        ),
        (
            json!({"tcp": {"destinationPort": {"number": 0}}}),
            ".tcp.destinationPort.number",
        ),
        (
            json!({"udp": {"destinationPort": {"number": 65536}}}),
            ".udp.destinationPort.number",
        ),
        (
            json!({"sctp": {"destinationPort": {"range": {"start": 2, "end": 1}}}}),
            ".sctp.destinationPort.range",
        ),
        (
            json!({"sctp": {"destinationPort": {"range": {"start": 2}}}}),
            ".sctp.destinationPort.range",
        ),
        (
            json!({"destinationNamedPort": "80"}),
            ".destinationNamedPort",
        ),
        (json!({"destinationNamedPort": 80}), ".destinationNamedPort"),
    ];
    for (port, place) in table {
        let object =
            json!({"action": "Deny", "from": [{"namespaces": {}}], "protocols": [port.clone()]});
        let (read, faults) = rule("ingress", object);
        assert_eq!(read.ports, [Port::Unknown], "{port}");
        assert_eq!(
            faults,
            [format!("spec.ingress[0].protocols[0]{place}")],
            "{port}"
        );
    }
    for protocols in [json!([]), json!({}), json!("TCP")] {
        let object =
            json!({"action": "Deny", "from": [{"namespaces": {}}], "protocols": protocols});
        let (read, faults) = rule("ingress", object);
        assert_eq!(
            (read.ports, faults),
            (
                vec![Port::Unknown],
                vec!["spec.ingress[0].protocols".to_owned()]
            )
        );
    }
}

#[test]
fn what_has_no_named_ports_cannot_be_met_by_one() {
    let object = |peer: Value| json!({"action": "Deny", "to": [peer], "protocols": [{"destinationNamedPort": "http"}]});
    for peer in [json!({"nodes": {}}), json!({"networks": ["10.0.0.0/8"]})] {
        let (read, faults) = rule("egress", object(peer));
        assert_eq!(
            (read.ports, faults),
            (
                vec![Port::Unknown],
                vec!["spec.egress[0].protocols[0]".to_owned()]
            )
        );
    }
    let (read, faults) = rule("egress", object(json!({"namespaces": {}})));
    assert_eq!(
        (read.ports, faults),
        (vec![Port::Named(None, Text::from("http"))], vec![])
    );
}

proptest! {
    #[test]
    fn no_spec_panics_and_peers_are_never_empty(
        any in crate::kubernetes::policy::tests::any_json(),
        place in 0..6,
    ) {
        let mut spec = spec();
        match place {
            0 => spec["egress"][0]["to"] = any,
            1 => spec["ingress"][1]["protocols"][0] = any,
            2 => spec["subject"] = any,
            3 => spec["ingress"] = any,
            4 => spec["ingress"][0] = any,
            _ => spec = any,
        }
        let (policy, faults) = maybe(&spec);
        prop_assert!(policy.is_some() || !faults.is_empty());
        for rule in policy.iter().flat_map(|policy| policy.ingress.iter().chain(&policy.egress)) {
            prop_assert!(!rule.peers.is_empty());
            let unknown = rule.peers.contains(&ClusterPeer::Unknown) || rule.ports.contains(&Port::Unknown);
            prop_assert!(!unknown || !faults.is_empty());
        }
    }
}
