use super::*;

fn object(spec: &str, status: &str) -> NodeObject {
    let text = format!(
        r#"{{"apiVersion": "v1", "kind": "Node",
             "metadata": {{"name": "node4", "uid": "u4", "resourceVersion": "17", "creationTimestamp": "2026-11-24T10:00:00Z",
                           "labels": {{"a": "b"}}, "managedFields": [{{"manager": "kubelet", "fieldsV1": {{"f:status": {{}}}}}}]}},
             "spec": {spec}, "status": {status}}}"#
    );
    serde_json::from_str(&text).unwrap()
}

fn record(spec: &str, status: &str) -> Record {
    Record::new(object(spec, status), Some("node4"))
}

const BOTH: &str = r#"{"podCIDR": "10.244.4.0/24", "podCIDRs": ["10.244.4.0/24", "fd00:10:244:4::/64"], "taints": []}"#;
const ADDRESSES_OF_BOTH: &str = r#"{"addresses": [
    {"type": "Hostname", "address": "node4"}, {"type": "ExternalIP", "address": "203.0.113.4"},
    {"type": "InternalIP", "address": "192.168.1.14"}, {"type": "InternalIP", "address": "192.168.2.14"},
    {"type": "InternalIP", "address": "fd00:192:168:1::14"}],
  "images": [{"names": ["a"], "sizeBytes": 1}]}"#;

#[test]
fn the_first_internal_address_of_each_family_and_all_pod_cidrs_are_taken() {
    let record = record(BOTH, ADDRESSES_OF_BOTH);
    let addresses: Vec<_> = record.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.168.1.14", "fd00:192:168:1::14"]);
    let pod_cidrs: Vec<_> = record.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(pod_cidrs, ["10.244.4.0/24", "fd00:10:244:4::/64"]);
    assert_eq!((record.faults.len(), record.lacks()), (0, None));
    assert_eq!(
        (
            record.name.as_str(),
            record.uid.as_str(),
            record.created.as_str()
        ),
        ("node4", "u4", "2026-11-24T10:00:00Z")
    );
}

#[test]
fn a_lone_pod_cidr_of_an_old_server_is_taken_too() {
    let record = record(r#"{"podCIDR": "10.244.4.0/24"}"#, ADDRESSES_OF_BOTH);
    assert_eq!(record.pod_cidrs.len(), 1);
}

#[test]
fn a_node_that_is_not_ready_yet_is_no_fault() {
    let table = [
        ("{}", "{}", POD_CIDRS),
        ("{}", ADDRESSES_OF_BOTH, POD_CIDRS),
        (BOTH, "{}", ADDRESSES),
        (
            BOTH,
            r#"{"addresses": [{"type": "Hostname", "address": "node4"}]}"#,
            ADDRESSES,
        ),
    ];
    for (spec, status, lacks) in table {
        let record = record(spec, status);
        assert_eq!(
            (record.lacks(), record.faults.len()),
            (Some(lacks), 0),
            "{spec} {status}"
        );
    }
}

#[test]
fn a_wrong_value_is_refused_with_node_key_value_and_what_would_be_right() {
    let internal = |address: &str| {
        format!(r#"{{"addresses": [{{"type": "InternalIP", "address": "{address}"}}]}}"#)
    };
    let table = [
        (
            r#"{"podCIDRs": ["10.244.4.1/24"]}"#,
            internal("192.168.1.14"),
            "Node node4: spec.podCIDRs = \"10.244.4.1/24\": prefix 10.244.4.1/24 has host bits set; its network is 10.244.4.0/24",
        ),
        (
            r#"{"podCIDRs": ["10.244.4.0/24"]}"#,
            internal("127.0.0.1"),
            "Node node4: status.addresses = \"127.0.0.1\": must be an address that other nodes reach, not loopback, link-local, multicast or unspecified",
        ),
        (
            r#"{"podCIDRs": ["10.244.4.0/24", "fd00:10:244:4::/64"]}"#,
            internal("192.168.1.14"),
            "Node node4: spec.podCIDRs = \"fd00:10:244:4::/64\": the node has no IPv6 InternalIP to reach it through; see --node-ip of its kubelet",
        ),
    ];
    for (spec, status, expected) in table {
        let faults: Vec<_> = record(spec, &status)
            .faults
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(faults, [expected]);
    }
}

#[test]
fn the_condition_is_remembered_of_this_machines_node_only() {
    for (status, expected) in [
        ("True", Some(true)),
        ("False", Some(false)),
        ("Unknown", Some(true)),
    ] {
        let status = format!(
            r#"{{"conditions": [{{"type": "Ready", "status": "True"}}, {{"type": "NetworkUnavailable", "status": "{status}"}}]}}"#
        );
        assert_eq!(record(BOTH, &status).network_unavailable, expected);
        let elsewhere = Record::new(object(BOTH, &status), Some("node5"));
        assert_eq!(elsewhere.network_unavailable, None);
    }
    assert_eq!(record(BOTH, "{}").network_unavailable, None);
}

#[test]
fn what_a_kubelet_renews_makes_no_other_record() {
    let with = |heartbeat: &str| {
        let status = format!(
            r#"{{"addresses": [{{"type": "InternalIP", "address": "192.168.1.14"}}],
                 "conditions": [{{"type": "Ready", "status": "True", "lastHeartbeatTime": "{heartbeat}"}}]}}"#
        );
        record(r#"{"podCIDR": "10.244.4.0/24"}"#, &status)
    };
    assert_eq!(with("2026-11-24T10:00:00Z"), with("2026-11-24T10:05:00Z"));
}
