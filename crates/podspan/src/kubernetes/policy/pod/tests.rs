use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::policy::object::Text;

/// As an API server sends it, with what is skipped.
fn pod_object() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "u1", "resourceVersion": "17", "generation": 1,
            "labels": {"tier": "web", "app": "shop", "app.kubernetes.io/name": "shöp"},
            "annotations": {"a": "b"},
            "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:podIPs": {}}}}],
        },
        "spec": {
            "nodeName": "node4",
            "volumes": [{"name": "v", "projected": {"sources": []}}],
            "initContainers": [
                {"name": "proxy", "restartPolicy": "Always", "ports": [{"name": "admin", "containerPort": 15000}]},
                {"name": "setup", "ports": [{"name": "never", "containerPort": 1}]},
            ],
            "containers": [
                {"name": "web", "env": [{"name": "A", "value": "b"}], "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"name": "dns", "containerPort": 53, "protocol": "UDP"},
                    {"name": "sig", "containerPort": 36412, "protocol": "SCTP"},
                    {"containerPort": 9999}]},
                {"name": "beside"},
            ],
        },
        "status": {"phase": "Running", "hostIP": "192.0.2.4", "podIP": "10.0.4.7",
                   "podIPs": [{"ip": "10.0.4.7"}, {"ip": "fd00:10:4::7"}], "conditions": []},
    })
}

fn read_with(change: impl FnOnce(&mut Value)) -> (Pod, Vec<Fault>) {
    let mut object = pod_object();
    change(&mut object);
    let read: PodObject = serde_json::from_str(&object.to_string()).unwrap();
    match read.read() {
        (Change::Pod(key, Some(pod)), faults) => {
            assert_eq!(key, pod.key);
            (pod, faults)
        }
        other => panic!("{other:?}"),
    }
}

fn read(change: impl FnOnce(&mut Value)) -> Pod {
    let (pod, faults) = read_with(change);
    assert_eq!(faults, []);
    pod
}

#[test]
fn every_field_is_read() {
    let pod = read(|_| {});
    assert_eq!((&*pod.key.namespace, &*pod.key.name), ("shop", "web-0"));
    assert_eq!((&*pod.uid, pod.node.as_deref()), ("u1", Some("node4")));
    let labels: Vec<_> = pod.labels.0.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(
        labels,
        [
            ("app", "shop"),
            ("app.kubernetes.io/name", "shöp"),
            ("tier", "web")
        ]
    );
    let addresses: Vec<_> = pod.addresses.iter().map(|ip| ip.to_string()).collect();
    assert_eq!(addresses, ["10.0.4.7", "fd00:10:4::7"]);
    let port = |name: &str, protocol, port| NamedPort {
        name: Text::from(name),
        protocol,
        port,
    };
    let ports = [
        port("admin", Protocol::Tcp, 15000),
        port("dns", Protocol::Udp, 53),
        port("http", Protocol::Tcp, 8080),
        port("sig", Protocol::Sctp, 36412),
    ];
    assert_eq!(*pod.ports, ports);
    assert!(!pod.host_network);
}

#[test]
fn a_pod_of_a_file_has_the_uid_that_its_runtime_knows() {
    let pod = read(|it| {
        it["metadata"]["annotations"] =
            json!({"kubernetes.io/config.hash": "h1", "kubernetes.io/config.source": "file"});
    });
    assert_eq!(&*pod.uid, "h1");
    let pod = read(|it| it["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": ""}));
    assert_eq!(&*pod.uid, "u1");
}

#[test]
fn who_has_ended_has_no_addresses_and_who_is_ending_has() {
    for (phase, count) in [
        ("Succeeded", 0),
        ("Failed", 0),
        ("Running", 2),
        ("Pending", 2),
        ("Unknown", 2),
    ] {
        let pod = read(|it| {
            it["status"]["phase"] = json!(phase);
            it["metadata"]["deletionTimestamp"] = json!("2026-11-24T10:00:00Z");
        });
        assert_eq!(pod.addresses.iter().count(), count, "{phase}");
    }
}

#[test]
fn an_old_server_has_one_address() {
    let pod = read(|it| drop(it["status"].as_object_mut().unwrap().remove("podIPs")));
    assert_eq!(pod.addresses.iter().count(), 1);
    assert!(pod.addresses.v4.is_some());
}

#[test]
fn a_pod_that_is_new_has_neither_node_nor_address() {
    let pod = read(|it| {
        drop(it["spec"].as_object_mut().unwrap().remove("nodeName"));
        it["status"] = json!({"phase": "Pending"});
        it["metadata"]["labels"] = Value::Null;
        it["spec"]["initContainers"] = Value::Null;
        it["spec"]["hostNetwork"] = json!(true);
    });
    assert_eq!((pod.node, pod.addresses), (None, Addresses::default()));
    assert!(pod.labels.0.is_empty() && pod.host_network);
}

#[test]
fn what_is_no_address_is_told_and_the_other_is_taken() {
    let (pod, faults) = read_with(|it| it["status"]["podIPs"][0]["ip"] = json!("10.0.4.007"));
    assert!(pod.addresses.v4.is_none() && pod.addresses.v6.is_some());
    assert_eq!(faults.len(), 1);
    assert_eq!(
        faults[0].of("Pod shop/web-0").to_string(),
        "Pod shop/web-0: status.podIPs = \"10.0.4.007\": must be an IP address; the pod is nobody's peer by it"
    );
}

#[test]
fn ports_that_nothing_can_be_sent_to_have_no_name() {
    let pod = read(|it| {
        it["spec"]["containers"] = json!([{"ports": [
            {"name": "a", "containerPort": 0}, {"name": "b", "containerPort": 65536}, {"name": "c", "containerPort": -1},
            {"name": "d", "containerPort": 1, "protocol": "DCCP"}, {"name": "", "containerPort": 2}, {"name": "e"},
            {"name": "same", "containerPort": 3}, {"name": "same", "containerPort": 3}]}]);
    });
    let names: Vec<_> = pod.ports.iter().map(|port| &*port.name).collect();
    assert_eq!(names, ["admin", "same"]);
}

#[test]
fn of_a_label_twice_the_last_counts() {
    let text = r#"{"metadata": {"name": "p", "labels": {"b": "1", "a": "1", "b": "2"}}}"#;
    let read: PodObject = serde_json::from_str(text).unwrap();
    assert_eq!(read.metadata.labels.get("b"), Some("2"));
    assert_eq!(read.metadata.labels.0.len(), 2);
}

proptest! {
    #[test]
    fn no_object_of_that_shape_panics(
        metadata in crate::kubernetes::policy::tests::any_json(),
        spec in crate::kubernetes::policy::tests::any_json(),
        status in crate::kubernetes::policy::tests::any_json(),
        place in 0..4,
    ) {
        let mut object = pod_object();
        match place {
            0 => object["metadata"]["labels"] = metadata,
            1 => object["spec"]["containers"] = spec,
            2 => object["status"]["podIPs"] = status,
            _ => object = json!({"metadata": metadata, "spec": spec, "status": status}),
        }
        if let Ok(read) = serde_json::from_str::<PodObject>(&object.to_string()) {
            let (change, _) = read.clone().read();
            prop_assert!(matches!(change, Change::Pod(_, Some(_))));
            prop_assert!(matches!(read.gone(), Change::Pod(_, None)));
        }
    }
}
