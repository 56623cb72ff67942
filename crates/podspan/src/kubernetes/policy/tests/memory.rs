//! What a list of many pods takes: time and memory of the way from the text to the change. It prints; of fifty thousand with
//! `PODSPAN_PODS=50000 cargo test -p podspan --bin podspan policy::tests::memory -- --nocapture`.

use super::*;

/// In KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let mut words = line.unwrap().split_whitespace();
    words.nth(1).unwrap().parse().unwrap()
}

/// About 6 KiB, most of it what is skipped.
fn text(n: usize) -> String {
    let fields: BTreeMap<_, _> = (0..60)
        .map(|n| {
            (
                format!("f:field{n}"),
                json!({".": {}, "f:name": {}, "f:value": {}}),
            )
        })
        .collect();
    let environment: Vec<_> = (0..30)
        .map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "a value of some length"}))
        .collect();
    let ip = format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255);
    let labels = json!({"app": format!("web-{}", n % 2000), "pod-template-hash": "7c9f8d6b5", "tier": "web", "team": (n % 500).to_string()});
    let metadata = json!({
        "name": format!("web-7c9f8d6b5-{n:05}"), "namespace": format!("team-{}", n % 500), "resourceVersion": n.to_string(),
        "uid": format!("7f1d2c3b-4a5e-6f70-8192-{n:012}"), "annotations": {"checksum/config": "f".repeat(64)},
        "labels": labels, "managedFields": [{"fieldsV1": fields}],
    });
    let container = json!({"name": "web", "image": "registry.example/team/web:1.2.3", "env": environment,
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]});
    let spec = json!({"nodeName": format!("node-{}", n % 1000), "containers": [container]});
    let status = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    let object = json!({"metadata": metadata, "spec": spec, "status": status});
    format!("{{\"type\":\"ADDED\",\"object\":{object}}}")
}

#[test]
fn many_pods_are_read_and_nothing_is_kept_of_what_is_skipped() {
    let pods: usize = std::env::var("PODSPAN_PODS").map_or(500, |pods| pods.parse().unwrap());
    let (mut bytes, mut time) = (0, Duration::ZERO);
    let mut kept = Vec::with_capacity(pods);
    // What making the texts takes is taken before.
    drop(text(0));
    let before = resident();
    for n in 0..pods {
        let line = text(n);
        bytes += line.len();
        let begin = Instant::now();
        // As the client reads a watch.
        let event: kube::api::WatchEvent<PodObject> = serde_json::from_str(&line).unwrap();
        let kube::api::WatchEvent::Added(object) = event else {
            panic!("{event:?}")
        };
        let (change, faults) = object.read();
        time += begin.elapsed();
        assert_eq!(faults, []);
        kept.push(change);
    }
    let grown = resident().saturating_sub(before);
    println!(
        "{pods} pods, {} KiB of text: {time:?}; kept, before texts are shared: {grown} KiB, {} B a pod",
        bytes / 1024,
        grown * 1024 / pods as u64
    );
    let first = &kept[0];
    let Change::Pod(_, Some(pod)) = first else {
        panic!("{first:?}")
    };
    assert_eq!(
        (pod.labels.0.len(), pod.ports.len(), kept.len()),
        (4, 1, pods)
    );
    assert!(bytes / pods > 4096, "as long as a real one");
}
