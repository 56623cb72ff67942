//! What goes to an API server: every object of every case, read again by the API's own types, and against the members that
//! ClusterNetworkPolicy has.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use crate::cases::to_json;
use crate::every_case;
use crate::object::Change;

/// What the type does not know is lost on the way, and would be missed.
fn read_again<T: serde::Serialize + serde::de::DeserializeOwned>(object: &Value) -> Value {
    let typed: T =
        serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"));
    serde_json::to_value(typed).unwrap()
}

fn members(value: &Value) -> BTreeSet<&str> {
    let object = value
        .as_object()
        .unwrap_or_else(|| panic!("no object: {value}"));
    object.keys().map(String::as_str).collect()
}

/// It has members out of these, and those before the colon.
#[track_caller]
fn has(value: &Value, known: &str) {
    let (must, may) = known.split_once(':').unwrap();
    let [must, may] = [must, may].map(|words| words.split_whitespace().collect::<BTreeSet<_>>());
    let found = members(value);
    assert!(must.is_subset(&found), "{known}, but {value}");
    assert!(found.is_subset(&(&must | &may)), "{known}, but {value}");
}

#[track_caller]
fn has_one(value: &Value, known: &str) {
    has(value, &format!(":{known}"));
    assert_eq!(members(value).len(), 1, "one of {known}, but {value}");
}

fn is_namespaces_or_pods(value: &Value) {
    if let Some(pods) = value.get("pods") {
        has(pods, "namespaceSelector podSelector:");
    }
}

fn is_cluster_policy(object: &Value) {
    has(object, "apiVersion kind metadata spec:");
    assert_eq!(object["apiVersion"], "policy.networking.k8s.io/v1alpha2");
    assert_eq!(object["kind"], "ClusterNetworkPolicy");
    has(&object["metadata"], "name:");
    let spec = &object["spec"];
    has(spec, "tier priority subject:ingress egress");
    assert!(
        ["Admin", "Baseline"]
            .map(Value::from)
            .contains(&spec["tier"]),
        "{spec}"
    );
    assert!(
        (0..=1000).contains(&spec["priority"].as_i64().unwrap()),
        "{spec}"
    );
    has_one(&spec["subject"], "namespaces pods");
    is_namespaces_or_pods(&spec["subject"]);
    for (member, peers, kinds) in [
        ("ingress", "from", "namespaces pods"),
        ("egress", "to", "namespaces pods nodes networks"),
    ] {
        let Some(rules) = spec.get(member) else {
            continue;
        };
        let rules = rules.as_array().unwrap();
        assert!((1..=25).contains(&rules.len()), "{spec}");
        for rule in rules {
            has(rule, &format!("action {peers}:name protocols"));
            assert!(
                ["Accept", "Deny", "Pass"]
                    .map(Value::from)
                    .contains(&rule["action"]),
                "{rule}"
            );
            let all = rule[peers].as_array().unwrap();
            assert!(!all.is_empty(), "{rule}");
            for peer in all {
                has_one(peer, kinds);
                is_namespaces_or_pods(peer);
            }
            for protocol in rule
                .get("protocols")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                is_protocol(protocol);
            }
        }
    }
}

fn is_protocol(protocol: &Value) {
    has_one(protocol, "tcp udp sctp destinationNamedPort");
    for value in protocol
        .as_object()
        .unwrap()
        .values()
        .filter(|value| value.is_object())
    {
        has(value, "destinationPort:");
        let port = &value["destinationPort"];
        has_one(port, "number range");
        if let Some(range) = port.get("range") {
            assert!(range["start"].as_u64() < range["end"].as_u64(), "{range}");
        }
    }
}

#[test]
fn every_object_is_one_of_the_api() {
    let (mut objects, mut gone) = (0, 0);
    for case in every_case() {
        let told = case.cluster.told();
        let listed = told
            .iter()
            .filter(|change| !matches!(change, Change::Begin(_) | Change::End(_)));
        let steps = case.steps.iter().flat_map(|step| &step.changes);
        for change in listed.chain(steps) {
            let (path, object) = to_json::change(change);
            let Some(object) = object else {
                gone += 1;
                continue;
            };
            objects += 1;
            let name = object["metadata"]["name"].as_str().unwrap();
            assert_eq!(path.rsplit('/').next(), Some(name), "{object}");
            let again = match change {
                Change::Namespace(..) => read_again::<Namespace>(&object),
                Change::Pod(..) => read_again::<Pod>(&object),
                Change::Node(..) => read_again::<Node>(&object),
                Change::NetworkPolicy(..) => read_again::<NetworkPolicy>(&object),
                _ => {
                    is_cluster_policy(&object);
                    continue;
                }
            };
            assert_eq!(again, object, "{}: read by the API's type", case.name);
        }
    }
    println!("{objects} objects, {gone} are gone");
}

#[test]
fn a_policy_reads_as_one_would_write_it() {
    let cases = every_case();
    let policy = |name: &str| {
        let case = cases.iter().find(|case| case.name == name).unwrap();
        to_json::change(&case.steps[0].changes[0])
    };
    let (path, object) = policy("peers: ingress pods c of namespace x and block with except");
    assert_eq!(
        path,
        "/apis/networking.k8s.io/v1/namespaces/x/networkpolicies/base"
    );
    let from = json!([
        {"namespaceSelector": {"matchLabels": {"ns": "x"}}, "podSelector": {"matchLabels": {"pod": "c"}}},
        {"ipBlock": {"cidr": "10.244.1.0/24", "except": ["10.244.1.32/28"]}},
        {"ipBlock": {"cidr": "fd00:10:244:1::/120", "except": ["fd00:10:244:1::20/124"]}},
    ]);
    assert_eq!(
        object.unwrap()["spec"]["ingress"],
        json!([{"from": from, "ports": [{"port": 80}]}])
    );
    let (_, object) = policy("port/protocol: egress sctp 53 to 84");
    let ports = &object.unwrap()["spec"]["egress"][0]["ports"];
    assert_eq!(
        *ports,
        json!([{"protocol": "SCTP", "port": 53, "endPort": 84}])
    );
    let (path, object) = policy("CNPAdminTierEgressNamedPort");
    assert_eq!(
        path,
        "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies/ordered"
    );
    let rule = &object.unwrap()["spec"]["egress"][5];
    let to =
        json!([{"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "hufflepuff"}}}]);
    let protocols = json!([{"destinationNamedPort": "web"}]);
    let expected =
        json!({"name": "accept ports", "action": "Accept", "to": to, "protocols": protocols});
    assert_eq!(*rule, expected);
}
