use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::policy::object::{Requirement, Selector, Text};

fn read(spec: Value) -> (NetworkPolicy, Vec<String>) {
    let object =
        json!({"metadata": {"namespace": "a", "name": "np", "resourceVersion": "1"}, "spec": spec});
    let object: NetworkPolicyObject = serde_json::from_str(&object.to_string()).unwrap();
    let (change, faults) = object.read();
    let Change::NetworkPolicy(_, Some(policy)) = change else {
        panic!("{change:?}")
    };
    let faults = faults.iter().map(|fault| fault.key.clone());
    (policy, faults.collect())
}

fn right(spec: Value) -> NetworkPolicy {
    let (policy, faults) = read(spec);
    assert_eq!(faults, [""; 0]);
    policy
}

fn text(text: &str) -> Text {
    Text::from(text)
}

fn is(key: &str, value: &str) -> Requirement {
    Requirement::In(text(key), [text(value)].into())
}

fn selector(requirements: &[Requirement]) -> Selector {
    Selector(requirements.into())
}

#[test]
fn the_directions_are_those_that_it_says_and_by_default_ingress_and_egress_where_it_has_rules() {
    let table = [
        (json!({}), (true, false)),
        (json!({"egress": []}), (true, false)),
        (json!({"egress": [{}]}), (true, true)),
        (json!({"policyTypes": []}), (true, false)),
        (
            json!({"policyTypes": ["Ingress"], "egress": [{}]}),
            (true, false),
        ),
        (
            json!({"policyTypes": ["Egress"], "ingress": [{}]}),
            (false, true),
        ),
        (json!({"policyTypes": ["Egress", "Ingress"]}), (true, true)),
    ];
    for (spec, expected) in table {
        let policy = right(spec.clone());
        let is = (policy.ingress.is_some(), policy.egress.is_some());
        assert_eq!(is, expected, "{spec}");
    }
    // What cannot be read may be either.
    for (types, place) in [
        (json!(["Ingress", "both"]), "spec.policyTypes[1]"),
        (json!(["egress"]), "spec.policyTypes[0]"),
        (json!("Egress"), "spec.policyTypes"),
    ] {
        let (policy, faults) = read(json!({"policyTypes": types, "ingress": [{}]}));
        let is_about = (policy.ingress.map(|rules| rules.len()), policy.egress);
        assert_eq!(is_about, (Some(1), Some(Vec::new())), "{types}");
        assert_eq!(faults, [place], "{types}");
    }
}

#[test]
fn a_rule_without_peers_or_ports_means_all_of_them() {
    for rule in [
        json!({}),
        json!({"from": [], "ports": []}),
        json!({"from": null, "ports": null}),
    ] {
        let policy = right(json!({"ingress": [rule]}));
        assert_eq!(policy.ingress, Some(vec![Rule::default()]));
    }
    let policy = right(json!({"podSelector": {}, "ingress": []}));
    assert_eq!(
        (policy.pods, policy.ingress),
        (Selector::default(), Some(vec![]))
    );
}

#[test]
fn selectors_are_read_and_those_that_mean_the_same_are_the_same() {
    let policy = right(json!({"podSelector": {
        "matchLabels": {"b": "2", "a": "1"},
        "matchExpressions": [
            {"key": "c", "operator": "NotIn", "values": ["y", "x", "y"]}, {"key": "d", "operator": "Exists"},
            {"key": "e", "operator": "DoesNotExist", "values": []}, {"key": "a", "operator": "In", "values": ["1"]}],
    }}));
    let expected = [
        is("a", "1"),
        is("b", "2"),
        Requirement::NotIn(text("c"), [text("x"), text("y")].into()),
        Requirement::Exists(text("d")),
        Requirement::DoesNotExist(text("e")),
    ];
    assert_eq!(policy.pods, selector(&expected));
}

#[test]
fn a_pod_selector_that_cannot_be_read_isolates_all_pods_of_the_namespace_and_is_told() {
    let table = [
        (json!({"matchLabels": {"a": 1}}), ".matchLabels.a"),
        (json!({"matchLabels": []}), ".matchLabels"),
        (json!({"matchFields": []}), ""),
        (json!([]), ""),
        (json!({"matchExpressions": {}}), ".matchExpressions"),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}),
            ".matchExpressions[0]",
        ),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
            ".matchExpressions[0]",
        ),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["1"]}]}),
            ".matchExpressions[0]",
        ),
        (
            json!({"matchExpressions": [{"operator": "Exists"}]}),
            ".matchExpressions[0]",
        ),
        (
            json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": [1]}]}),
            ".matchExpressions[0]",
        ),
        (json!({"matchExpressions": [7]}), ".matchExpressions[0]"),
    ];
    for (pods, place) in table {
        let spec = json!({"podSelector": pods, "ingress": [{}], "egress": [{}]});
        let (policy, faults) = read(spec);
        assert_eq!(policy.pods, Selector::default(), "{pods}");
        let rules = (policy.ingress, policy.egress);
        assert_eq!(rules, (Some(Vec::new()), Some(Vec::new())), "{pods}");
        assert_eq!(faults, [format!("spec.podSelector{place}")], "{pods}");
    }
}

fn peers(peers: Value) -> (Vec<Peer>, Vec<String>) {
    let (policy, faults) = read(json!({"policyTypes": ["Egress"], "egress": [{"to": peers}]}));
    (policy.egress.unwrap().remove(0).peers, faults)
}

#[test]
fn peers_are_read() {
    let (read, faults) = peers(json!([
        {"podSelector": {"matchLabels": {"a": "1"}}},
        {"podSelector": {}},
        {"namespaceSelector": {}},
        {"namespaceSelector": {"matchLabels": {"n": "1"}}, "podSelector": {"matchLabels": {"a": "1"}}},
        {"ipBlock": {"cidr": "10.0.0.7/8", "except": ["10.1.0.0/16", "192.168.0.0/16", "fd00::/64"]}},
        {"ipBlock": {"cidr": "::/0"}},
        // As the API server reads it.
        {"ipBlock": {"cidr": "010.0.0.0/8"}},
    ]));
    let net = |text: &str| text.parse().unwrap();
    let expected = [
        Peer::Pods(selector(&[is("a", "1")])),
        Peer::Pods(Selector::default()),
        Peer::PodsOf(Selector::default(), Selector::default()),
        Peer::PodsOf(selector(&[is("n", "1")]), selector(&[is("a", "1")])),
        Peer::Block(net("10.0.0.0/8"), vec![net("10.1.0.0/16")]),
        Peer::Block(net("::/0"), vec![]),
        Peer::Block(net("10.0.0.0/8"), vec![]),
    ];
    assert_eq!((read, faults), (expected.to_vec(), vec![]));
}

#[test]
fn a_peer_that_cannot_be_read_is_nobody_and_is_told() {
    let table = [
        (json!({}), ""),
        (json!(7), ""),
        (json!(null), ""),
        (json!({"podSelector": {}, "serviceAccount": {}}), ""),
        (
            json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}),
            "",
        ),
        (json!({"ipBlock": {}}), ".ipBlock"),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "port": 1}}),
            ".ipBlock",
        ),
        (json!({"ipBlock": {"cidr": "10.0.0.0"}}), ".ipBlock.cidr"),
        (json!({"ipBlock": {"cidr": "10.0.0.0/33"}}), ".ipBlock.cidr"),
        (
            json!({"ipBlock": {"cidr": "::ffff:10.0.0.0/104"}}),
            ".ipBlock.cidr",
        ),
        (json!({"ipBlock": {"cidr": 10}}), ".ipBlock.cidr"),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "x"]}}),
            ".ipBlock.except[1]",
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}}),
            ".ipBlock.except[0]",
        ),
        (
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": "10.1.0.0/16"}}),
            ".ipBlock.except",
        ),
    ];
    for (peer, place) in table {
        let (read, faults) = peers(json!([{"podSelector": {}}, peer.clone()]));
        assert_eq!(
            read,
            [Peer::Pods(Selector::default()), Peer::Unknown],
            "{peer}"
        );
        assert_eq!(faults, [format!("spec.egress[0].to[1]{place}")], "{peer}");
    }
    // No list, and a rule that says more than we know: nobody, not everybody.
    let (read, faults) = peers(json!({"podSelector": {}}));
    assert_eq!(
        (read, faults),
        (vec![Peer::Unknown], vec!["spec.egress[0].to".to_owned()])
    );
    for rule in [json!({"log": true}), json!({"to": []}), json!("everybody")] {
        let (policy, faults) = self::read(json!({"ingress": [rule]}));
        assert_eq!(policy.ingress.unwrap()[0].peers, [Peer::Unknown], "{rule}");
        assert_eq!(faults, ["spec.ingress[0]"], "{rule}");
    }
}

fn ports(ports: Value) -> (Vec<Port>, Vec<String>) {
    let (policy, faults) = read(json!({"ingress": [{"ports": ports}]}));
    (policy.ingress.unwrap().remove(0).ports, faults)
}

#[test]
fn ports_are_read() {
    let (read, faults) = ports(json!([
        {"port": 80}, {"protocol": "UDP", "port": 53}, {"protocol": "SCTP"}, {}, {"port": "http"},
        {"protocol": "UDP", "port": "dns"}, {"port": 1, "endPort": 65535}, {"port": 7, "endPort": 7}]));
    let expected = [
        Port::Range(Protocol::Tcp, 80, 80),
        Port::Range(Protocol::Udp, 53, 53),
        Port::All(Protocol::Sctp),
        Port::All(Protocol::Tcp),
        Port::Named(Some(Protocol::Tcp), text("http")),
        Port::Named(Some(Protocol::Udp), text("dns")),
        Port::Range(Protocol::Tcp, 1, 65535),
        Port::Range(Protocol::Tcp, 7, 7),
    ];
    assert_eq!((read, faults), (expected.to_vec(), vec![]));
}

#[test]
fn a_port_that_cannot_be_read_is_none_and_is_told() {
    let table = [
        (json!({"protocol": "ICMP"}), ".protocol"),
        (json!({"protocol": "tcp", "port": 1}), ".protocol"),
        (json!({"protocol": 6}), ".protocol"),
        (json!({"port": 0}), ""),
        (json!({"port": 65536}), ""),
        (json!({"port": -1}), ""),
        (json!({"port": 1.5}), ""),
        (json!({"port": "80"}), ""),
        (json!({"port": ""}), ""),
        (json!({"port": "a-name-that-is-too-long"}), ""),
        (json!({"port": []}), ""),
        (json!({"endPort": 80}), ""),
        (json!({"port": "http", "endPort": 80}), ""),
        (json!({"port": 81, "endPort": 80}), ""),
        (json!({"port": 80, "icmpType": 8}), ""),
        (json!(80), ""),
    ];
    for (port, place) in table {
        let (read, faults) = ports(json!([port.clone()]));
        assert_eq!(read, [Port::Unknown], "{port}");
        assert_eq!(
            faults,
            [format!("spec.ingress[0].ports[0]{place}")],
            "{port}"
        );
    }
    let (read, faults) = ports(json!({"port": 80}));
    assert_eq!(
        (read, faults),
        (
            vec![Port::Unknown],
            vec!["spec.ingress[0].ports".to_owned()]
        )
    );
}

#[test]
fn rules_that_are_no_list_isolate() {
    let (policy, faults) = read(json!({"ingress": {}, "egress": "all"}));
    assert_eq!(
        (policy.ingress, policy.egress),
        (Some(vec![]), Some(vec![]))
    );
    assert_eq!(faults, ["spec.ingress", "spec.egress"]);
}

proptest! {
    #[test]
    fn no_spec_panics_and_nothing_that_is_wrong_is_silent(spec in crate::kubernetes::policy::tests::any_json()) {
        let is_object = spec.is_object() || spec.is_null();
        let (_, faults) = read(spec);
        prop_assert!(is_object || !faults.is_empty());
    }

    #[test]
    fn no_rule_panics_and_what_is_unknown_is_told(
        peer in crate::kubernetes::policy::tests::any_json(),
        port in crate::kubernetes::policy::tests::any_json(),
    ) {
        let (policy, faults) = read(json!({"ingress": [{"from": [peer], "ports": [port]}]}));
        let rule = &policy.ingress.unwrap()[0];
        let unknown = rule.peers.contains(&Peer::Unknown) || rule.ports.contains(&Port::Unknown);
        prop_assert_eq!(rule.peers.len(), 1);
        prop_assert_eq!(rule.ports.len(), 1);
        prop_assert!(!unknown || !faults.is_empty());
    }
}
