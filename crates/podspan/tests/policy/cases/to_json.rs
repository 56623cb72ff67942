//! The objects of a case as Kubernetes's API takes them, and where they belong in it.
//!
//! One value of a label becomes `matchLabels` and several an expression, so that readers meet both. What no version of the API can say
//! (an unknown peer, port or operator) has no form here: no case has such a thing, and one that had would stop the test.

use serde_json::{Map, Value, json};

use super::object::{
    Action, Change, ClusterPeer, ClusterPolicy, ClusterRule, Labels, NetworkPolicy, Node, Peer,
    Pod, Port, Protocol, Requirement, Rule, Selector, Tier,
};

/// Where the object is in the API, and what it is; none where it is gone.
pub fn change(change: &Change) -> (String, Option<Value>) {
    let policies = "/apis/networking.k8s.io/v1/namespaces";
    match change {
        Change::Namespace(name, labels) => (
            format!("/api/v1/namespaces/{name}"),
            labels.as_ref().map(|labels| namespace(name, labels)),
        ),
        Change::Pod(key, value) => (
            format!("/api/v1/namespaces/{}/pods/{}", key.namespace, key.name),
            value.as_ref().map(pod),
        ),
        Change::Node(name, value) => (
            format!("/api/v1/nodes/{name}"),
            value.as_ref().map(|value| node(name, value)),
        ),
        Change::NetworkPolicy(key, policy) => (
            format!("{policies}/{}/networkpolicies/{}", key.namespace, key.name),
            policy.as_ref().map(network_policy),
        ),
        Change::ClusterPolicy(name, policy) => (
            format!("/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies/{name}"),
            policy.as_ref().map(cluster_policy),
        ),
        Change::Begin(_) | Change::End(_) => panic!("no object: {change:?}"),
    }
}

fn labels_of(labels: &Labels) -> Value {
    let pairs = labels
        .0
        .iter()
        .map(|(key, value)| (key.to_string(), json!(value.to_string())));
    Value::Object(pairs.collect())
}

fn namespace(name: &str, labels: &Labels) -> Value {
    let metadata = json!({"name": name, "labels": labels_of(labels)});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
}

fn node(name: &str, node: &Node) -> Value {
    let addresses: Vec<_> = node
        .addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels_of(&node.labels)},
        "status": {"addresses": addresses},
    })
}

/// A pod that runs, with its addresses.
fn pod(pod: &Pod) -> Value {
    let ports: Vec<_> = pod
        .ports
        .iter()
        .map(|port| json!({"name": *port.name, "containerPort": port.port, "protocol": protocol(port.protocol)}))
        .collect();
    let mut spec = json!({"containers": [{"name": "serve", "image": "serve", "ports": ports}]});
    if let Some(node) = &pod.node {
        spec["nodeName"] = json!(**node);
    }
    if pod.host_network {
        spec["hostNetwork"] = json!(true);
    }
    let addresses: Vec<_> = pod
        .addresses
        .iter()
        .map(|address| json!({"ip": address}))
        .collect();
    let mut status = json!({"phase": "Running", "podIPs": addresses});
    if let Some(first) = pod.addresses.iter().next() {
        status["podIP"] = json!(first);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": *pod.key.name,
            "namespace": *pod.key.namespace,
            "uid": *pod.uid,
            "labels": labels_of(&pod.labels),
        },
        "spec": spec,
        "status": status,
    })
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

fn selector(selector: &Selector) -> Value {
    let (mut labels, mut expressions) = (Map::new(), Vec::new());
    let mut expression = |key: &str, operator: &str, values: Option<&[super::object::Text]>| {
        let mut made = json!({"key": key, "operator": operator});
        if let Some(values) = values {
            made["values"] = values.iter().map(|value| json!(**value)).collect();
        }
        expressions.push(made);
    };
    for requirement in selector.0.iter() {
        match requirement {
            Requirement::In(key, values) => match &**values {
                [value] if !labels.contains_key(&**key) => {
                    labels.insert(key.to_string(), json!(**value));
                }
                values => expression(key, "In", Some(values)),
            },
            Requirement::NotIn(key, values) => expression(key, "NotIn", Some(values)),
            Requirement::Exists(key) => expression(key, "Exists", None),
            Requirement::DoesNotExist(key) => expression(key, "DoesNotExist", None),
            Requirement::Unknown => panic!("an operator that is not known cannot be said"),
        }
    }
    let mut made = json!({});
    if !labels.is_empty() {
        made["matchLabels"] = Value::Object(labels);
    }
    if !expressions.is_empty() {
        made["matchExpressions"] = json!(expressions);
    }
    made
}

fn network_policy(policy: &NetworkPolicy) -> Value {
    let mut spec = json!({"podSelector": selector(&policy.pods), "policyTypes": []});
    for (kind, member, peers, rules) in [
        ("Ingress", "ingress", "from", &policy.ingress),
        ("Egress", "egress", "to", &policy.egress),
    ] {
        let Some(rules) = rules else { continue };
        spec["policyTypes"]
            .as_array_mut()
            .unwrap()
            .push(json!(kind));
        spec[member] = rules.iter().map(|one| rule(one, peers)).collect();
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": *policy.key.name, "namespace": *policy.key.namespace},
        "spec": spec,
    })
}

fn rule(rule: &Rule, peers: &str) -> Value {
    let mut made = json!({});
    if !rule.peers.is_empty() {
        made[peers] = rule.peers.iter().map(peer).collect();
    }
    if !rule.ports.is_empty() {
        made["ports"] = rule.ports.iter().map(port).collect();
    }
    made
}

fn peer(peer: &Peer) -> Value {
    match peer {
        Peer::Pods(pods) => json!({"podSelector": selector(pods)}),
        // Without pods all of them are meant, as with the empty selector.
        Peer::PodsOf(namespaces, pods) if pods.0.is_empty() => {
            json!({"namespaceSelector": selector(namespaces)})
        }
        Peer::PodsOf(namespaces, pods) => {
            json!({"namespaceSelector": selector(namespaces), "podSelector": selector(pods)})
        }
        Peer::Block(block, except) => {
            let mut made = json!({"cidr": block});
            if !except.is_empty() {
                made["except"] = json!(except);
            }
            json!({"ipBlock": made})
        }
        Peer::Unknown => panic!("a peer that is not known cannot be said"),
    }
}

/// TCP, which a port without a protocol means, is not said.
fn port(port: &Port) -> Value {
    let (of, number, end) = match port {
        Port::All(of) => (*of, None, None),
        Port::Range(of, low, high) if low == high => (*of, Some(json!(low)), None),
        Port::Range(of, low, high) => (*of, Some(json!(low)), Some(*high)),
        Port::Named(Some(of), name) => (*of, Some(json!(**name)), None),
        Port::Named(None, _) | Port::Unknown => panic!("a NetworkPolicy cannot say {port:?}"),
    };
    let mut made = json!({});
    if of != Protocol::Tcp {
        made["protocol"] = json!(protocol(of));
    }
    if let Some(number) = number {
        made["port"] = number;
    }
    if let Some(end) = end {
        made["endPort"] = json!(end);
    }
    made
}

fn cluster_policy(policy: &ClusterPolicy) -> Value {
    let (namespaces, pods) = &policy.subject;
    let mut spec = json!({
        "tier": match policy.tier {
            Tier::Admin => "Admin",
            Tier::Baseline => "Baseline",
        },
        "priority": policy.priority,
        "subject": pods_of(namespaces, pods),
    });
    for (member, peers, rules) in [
        ("ingress", "from", &policy.ingress),
        ("egress", "to", &policy.egress),
    ] {
        if !rules.is_empty() {
            spec[member] = rules.iter().map(|rule| cluster_rule(rule, peers)).collect();
        }
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": *policy.name},
        "spec": spec,
    })
}

/// A subject, or a peer: exactly one of the two members.
fn pods_of(namespaces: &Selector, pods: &Selector) -> Value {
    if pods.0.is_empty() {
        return json!({"namespaces": selector(namespaces)});
    }
    json!({"pods": {"namespaceSelector": selector(namespaces), "podSelector": selector(pods)}})
}

fn cluster_rule(rule: &ClusterRule, peers: &str) -> Value {
    let action = match rule.action {
        Action::Accept => "Accept",
        Action::Deny => "Deny",
        Action::Pass => "Pass",
    };
    let mut made = json!({"action": action});
    made[peers] = rule.peers.iter().map(cluster_peer).collect();
    if let Some(name) = &rule.name {
        made["name"] = json!(**name);
    }
    if !rule.ports.is_empty() {
        made["protocols"] = rule.ports.iter().map(cluster_port).collect();
    }
    made
}

fn cluster_peer(peer: &ClusterPeer) -> Value {
    match peer {
        ClusterPeer::Pods(namespaces, pods) => pods_of(namespaces, pods),
        ClusterPeer::Nodes(nodes) => json!({"nodes": selector(nodes)}),
        ClusterPeer::Networks(networks) => json!({"networks": networks}),
        ClusterPeer::Unknown => panic!("a peer that is not known cannot be said"),
    }
}

/// All ports are a range here: a protocol without a port is none that the API takes.
fn cluster_port(port: &Port) -> Value {
    let (of, low, high) = match port {
        Port::All(of) => (*of, 1, u16::MAX),
        Port::Range(of, low, high) => (*of, *low, *high),
        Port::Named(_, name) => return json!({"destinationNamedPort": **name}),
        Port::Unknown => panic!("a port that is not known cannot be said"),
    };
    let destination = if low == high {
        json!({"number": low})
    } else {
        json!({"range": {"start": low, "end": high}})
    };
    let mut made = json!({});
    made[protocol(of).to_lowercase()] = json!({"destinationPort": destination});
    made
}
