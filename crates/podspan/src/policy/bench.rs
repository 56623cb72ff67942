//! What the model costs: memory by object, and a change of each kind, in a cluster of 50,000 pods and 10,000 policies.
//!
//! A program of its own, whose root lies beside the model so that it is built of the same files.
//! `cargo bench --locked -p podspan --bench policy`

#![allow(
    dead_code,
    clippy::panic,
    unused_imports,
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bench, which uses a part of the model"
)]

#[cfg(test)]
#[path = "../../tests/policy/cases/mod.rs"]
mod cases;
mod model;
mod object;
#[cfg(test)]
mod oracle;
mod program;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use model::Model;
use object::{
    Action, Addresses, Attached, Change, ClusterPeer, ClusterPolicy, ClusterRule, Key, Kind,
    Labels, NamedPort, NetworkPolicy, Node, Peer, Pod, Port, Protocol, Requirement, Rule, Selector,
    Text, Tier,
};

const NAMESPACES: usize = 1_000;
const PODS: usize = 50_000;
const POLICIES: usize = 10_000;
const NODES: usize = 200;
const ROUNDS: usize = 500;

fn main() {
    let mut model = Model::new("node-0");
    let mut before = resident();
    let mut told = |what: &str, count: usize, now: usize| {
        let more = now.saturating_sub(before);
        let each = more / count;
        println!("{what:28} {:7} KiB more, {each} bytes each", more / 1024);
        before = now;
    };
    list(&mut model, Kind::Namespaces, (0..NAMESPACES).map(namespace));
    told("1,000 namespaces", NAMESPACES, resident());
    list(
        &mut model,
        Kind::Pods,
        (0..PODS).map(|number| pod(number, "")),
    );
    told("50,000 pods", PODS, resident());
    list(&mut model, Kind::Nodes, (0..NODES).map(node));
    let policies = (0..POLICIES).map(network_policy);
    list(&mut model, Kind::NetworkPolicies, policies);
    told("10,000 NetworkPolicies", POLICIES, resident());
    list(
        &mut model,
        Kind::ClusterPolicies,
        (0..20).map(cluster_policy),
    );
    let local: Vec<usize> = (0..PODS).filter(|number| node_of(*number) == 0).collect();
    for number in &local {
        attach(&mut model, *number);
    }
    let begin = Instant::now();
    let difference = model.difference();
    println!(
        "first difference             {:?}: {} sets, {} programs, {} attachments",
        begin.elapsed(),
        difference.sets.len(),
        difference.programs.len(),
        difference.attachments.len()
    );
    drop(difference);
    told("what the node runs", local.len(), resident());
    println!("all in all {} KiB", resident() / 1024);
    changes(&mut model, &local);
}

fn changes(model: &mut Model, local: &[usize]) {
    let (name, of) = ("a local pod's label", local.len());
    measure(name, |round| {
        let changed = pod(local[round % of], ["x", "y"][round / of % 2]);
        apply(model, [changed])
    });
    measure("another pod's label", |round| {
        apply(model, [pod(round * 97 % PODS, ["x", "y"][round % 2])])
    });
    measure("another pod gone, and new", |round| {
        let number = round * 89 % PODS;
        let Change::Pod(key, _) = pod(number, "") else {
            return Duration::ZERO;
        };
        apply(model, [Change::Pod(key, None), pod(number, "")])
    });
    measure("a namespace's label", |round| {
        let Change::Namespace(name, _) = namespace(round % NAMESPACES) else {
            return Duration::ZERO;
        };
        let team = format!("t{}", (round + 1) % 20);
        let labels = labels(&[("kubernetes.io/metadata.name", &name), ("team", &team)]);
        apply(model, [Change::Namespace(name, Some(labels))])
    });
    measure("a NetworkPolicy gone, new", |round| {
        let number = round % POLICIES;
        let Change::NetworkPolicy(key, _) = network_policy(number) else {
            return Duration::ZERO;
        };
        let gone = Change::NetworkPolicy(key, None);
        apply(model, [gone]) + apply(model, [network_policy(number)])
    });
    measure("a ClusterNetworkPolicy", |round| {
        let Change::ClusterPolicy(name, _) = cluster_policy(round % 20) else {
            return Duration::ZERO;
        };
        let gone = Change::ClusterPolicy(name, None);
        apply(model, [gone]) + apply(model, [cluster_policy(round % 20)])
    });
}

fn apply<const N: usize>(model: &mut Model, changes: [Change; N]) -> Duration {
    let begin = Instant::now();
    for change in changes {
        model.take(change);
    }
    model.difference();
    begin.elapsed()
}

fn measure(what: &str, mut once: impl FnMut(usize) -> Duration) {
    let mut times: Vec<Duration> = (0..ROUNDS).map(&mut once).collect();
    times.sort();
    println!(
        "{what:28} {:>10.1?} median, {:>10.1?} p99, {:>10.1?} most",
        times[ROUNDS / 2],
        times[ROUNDS * 99 / 100],
        times[ROUNDS - 1]
    );
}

fn list(model: &mut Model, kind: Kind, all: impl Iterator<Item = Change>) {
    model.take(Change::Begin(kind));
    all.for_each(|change| model.take(change));
    model.take(Change::End(kind));
}

/// Bytes of memory that the process has.
fn resident() -> usize {
    let told = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = told
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let kibibytes: usize = words[1].parse().unwrap();
    kibibytes * 1024
}

/// Texts of their own, as they come out of an answer of the API.
fn labels(pairs: &[(&str, &str)]) -> Labels {
    let mut pairs: Vec<(Text, Text)> = pairs
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect();
    pairs.sort();
    Labels(pairs.into())
}

fn namespace(number: usize) -> Change {
    let name: Text = format!("namespace-{number}").into();
    let team = format!("t{}", number % 20);
    let labels = labels(&[("kubernetes.io/metadata.name", &name), ("team", &team)]);
    Change::Namespace(name, Some(labels))
}

/// A fifth of them are of StatefulSets, which have labels of their own.
fn pod(number: usize, release: &str) -> Change {
    let app = format!("app-{}", number / NAMESPACES % 5);
    let key = Key {
        namespace: format!("namespace-{}", number % NAMESPACES).into(),
        name: format!("{app}-7d4b9c6f5-{number:05}").into(),
    };
    let hash = format!("{:x}", number % NAMESPACES * 5 + number / NAMESPACES % 5);
    let mut pairs = vec![
        ("app", &*app),
        ("tier", "web"),
        ("pod-template-hash", &*hash),
    ];
    if number.is_multiple_of(5) {
        pairs.push(("statefulset.kubernetes.io/pod-name", &*key.name));
    }
    if !release.is_empty() {
        pairs.push(("release", release));
    }
    let ports = [("http", 8080), ("metrics", 9090)].map(|(name, port)| NamedPort {
        name: name.into(),
        protocol: Protocol::Tcp,
        port,
    });
    let [high, low] = (number as u16 + 10).to_be_bytes();
    let pod = Pod {
        key: key.clone(),
        uid: uid(number),
        node: Some(format!("node-{}", node_of(number)).into()),
        labels: labels(&pairs),
        addresses: Addresses {
            v4: Some([10, 0, high, low].into()),
            v6: Some([0xfd00, 0, 0, 0, 0, 0, 0, number as u16 + 10].into()),
        },
        ports: ports.into(),
        host_network: false,
    };
    Change::Pod(key, Some(pod))
}

/// A node's pods are of many namespaces.
fn node_of(number: usize) -> usize {
    (number + number / NAMESPACES) % NODES
}

fn uid(number: usize) -> Text {
    format!("{number:08x}-1c2d-4e3f-8a5b-{number:012x}").into()
}

fn attach(model: &mut Model, number: usize) {
    let Change::Pod(key, Some(pod)) = pod(number, "") else {
        return;
    };
    let attached = Attached {
        pod: key,
        uid: Some(pod.uid),
        addresses: pod.addresses,
    };
    model.attached(format!("veth{number}").into(), attached);
}

fn node(number: usize) -> Change {
    let name: Text = format!("node-{number}").into();
    let node = Node {
        labels: labels(&[("kubernetes.io/hostname", &name), ("zone", "a")]),
        addresses: [IpAddr::from([192, 0, 2, number as u8])].into(),
    };
    Change::Node(name, Some(node))
}

fn having(key: &str, value: &str) -> Selector {
    let values = [Text::from(value)];
    Selector([Requirement::In(key.into(), values.into())].into())
}

/// Ten in each namespace, of five kinds.
fn network_policy(number: usize) -> Change {
    let (place, kind) = (number % NAMESPACES, number / NAMESPACES);
    let key = Key {
        namespace: format!("namespace-{place}").into(),
        name: format!("policy-{kind}").into(),
    };
    let app = having("app", &format!("app-{}", number % 5));
    let peer = match kind % 5 {
        0 => Peer::Pods(having("app", &format!("app-{}", (number + 1) % 5))),
        1 => Peer::PodsOf(having("team", &format!("t{}", place % 20)), app.clone()),
        2 => Peer::Block(
            "10.0.0.0/8".parse().unwrap(),
            vec![format!("10.{}.0.0/16", place % 250).parse().unwrap()],
        ),
        3 => Peer::PodsOf(
            having(
                "kubernetes.io/metadata.name",
                &format!("namespace-{}", (place + 1) % NAMESPACES),
            ),
            Selector::default(),
        ),
        _ => Peer::Pods(Selector::default()),
    };
    let ports = match kind % 3 {
        0 => vec![Port::Range(Protocol::Tcp, 8000, 8080)],
        1 => vec![Port::Named(Some(Protocol::Tcp), "http".into())],
        _ => Vec::new(),
    };
    let rules = vec![Rule {
        peers: vec![peer],
        ports,
    }];
    let policy = NetworkPolicy {
        key: key.clone(),
        pods: if kind < 5 { Selector::default() } else { app },
        ingress: Some(rules.clone()),
        egress: (kind % 2 == 0).then_some(rules),
    };
    Change::NetworkPolicy(key, Some(policy))
}

fn cluster_policy(number: usize) -> Change {
    let name: Text = format!("cluster-{number}").into();
    let of_team = having("team", &format!("t{number}"));
    let rule = ClusterRule {
        name: None,
        action: Action::Deny,
        peers: vec![ClusterPeer::Pods(of_team, Selector::default())],
        ports: vec![Port::Range(Protocol::Tcp, 22, 22)],
    };
    let policy = ClusterPolicy {
        name: name.clone(),
        tier: Tier::Admin,
        priority: number as u16,
        subject: Default::default(),
        ingress: vec![rule.clone()],
        egress: vec![rule],
    };
    Change::ClusterPolicy(name, Some(policy))
}
