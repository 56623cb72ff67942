//! The cluster: 50,000 pods on 200 nodes, 1,000 namespaces with ten NetworkPolicies each, as objects of the API.

use serde_json::{Value, json};

use crate::plane::pod_cidrs;

pub const NODES: usize = 200;
pub const NAMESPACES: usize = 1_000;
pub const PODS: usize = 50_000;
/// Of each namespace.
pub const POLICIES: usize = 10;
pub const PODS_OF_A_NODE: usize = PODS / NODES;
/// When everything was made.
const MADE: &str = "2026-11-24T00:00:00Z";
/// Where the endpoints of the packets serve.
const PORT: u16 = 7000;

/// A pod by its number. The pods of a node have numbers that follow each other, two are of one namespace.
#[derive(Debug, Clone, Copy)]
pub struct Pod(pub usize);

impl Pod {
    pub fn name(self) -> String {
        format!("{}-7d4b9c6f5-{:05}", self.app(), self.0)
    }

    pub fn place(self) -> usize {
        self.0 / 2 % NAMESPACES
    }

    pub fn namespace(self) -> String {
        format!("namespace-{}", self.place())
    }

    pub fn uid(self) -> String {
        format!("{:08x}-1c2d-4e3f-8a5b-{0:012x}", self.0)
    }

    /// Counted from one.
    pub fn node(self) -> u32 {
        (self.0 / PODS_OF_A_NODE + 1) as u32
    }

    pub fn app(self) -> String {
        format!("app-{}", (self.0 / (2 * NAMESPACES) + self.0 % 2) % 5)
    }

    /// The gateways have the first ones.
    pub fn addresses(self) -> [String; 2] {
        let number = self.0 % PODS_OF_A_NODE + 2;
        let [v4, v6] = pod_cidrs(self.node());
        [
            v4.replace("0/24", &number.to_string()),
            v6.replace("/64", &format!("{number:x}")),
        ]
    }

    /// As a Deployment's controller makes it, and the kubelet then says of it.
    pub fn object(self) -> Value {
        let variable = |n: usize| json!({"name": format!("SETTING_{n}"), "value": format!("https://service-{n}.example.com:8443/")});
        let container = |name: &str, port: u16| {
            json!({
                "name": name,
                "image": format!("registry.example.com/team/{name}@sha256:{:064x}", self.0),
                "ports": [{"name": name, "containerPort": port, "protocol": "TCP"}],
                "env": (0..10).map(variable).collect::<Vec<_>>(),
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": port}, "periodSeconds": 10},
            })
        };
        let [v4, v6] = self.addresses();
        let condition =
            |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": MADE});
        let conditions = ["Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.name(), "namespace": self.namespace(), "uid": self.uid(), "creationTimestamp": MADE,
                "labels": {"app": self.app(), "tier": "web", "pod-template-hash": format!("{:x}", self.place() * 5)},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{}-7d4b9c6f5", self.app()),
                    "uid": self.uid(), "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "spec": {
                "nodeName": format!("node{}", self.node()), "automountServiceAccountToken": false,
                "containers": [container("http", 8080), container("metrics", 9090)],
            },
            "status": {
                "phase": "Running", "hostIP": crate::plane::address(self.node()),
                "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}], "conditions": conditions,
            },
        })
    }
}

pub fn namespace(place: usize) -> Value {
    let name = format!("namespace-{place}");
    let team = format!("t{}", place % 20);
    let labels = json!({"kubernetes.io/metadata.name": name, "team": team});
    let uid = format!("{place:08x}-0000-4e3f-8a5b-000000000000");
    let metadata = json!({"name": name, "labels": labels, "uid": uid, "creationTimestamp": MADE});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata, "status": {"phase": "Active"}})
}

/// The label by which the first kind of a namespace's policies knows whom it lets in.
pub fn let_in(place: usize) -> String {
    format!("app-{}", (place + 1) % 5)
}

/// The label by which half of a namespace's policies know whom they are about.
pub fn selected(place: usize) -> String {
    format!("app-{}", place % 5)
}

/// One of ten, of five kinds; the one with the endpoints' port lets all pods of the namespace talk.
pub fn policy(place: usize, kind: usize) -> Value {
    let app = |app: String| json!({"matchLabels": {"app": app}});
    let next = format!("namespace-{}", (place + 1) % NAMESPACES);
    let peer = match kind % 5 {
        0 => json!({"podSelector": app(let_in(place))}),
        1 => json!({
            "namespaceSelector": {"matchLabels": {"team": format!("t{}", place % 20)}},
            "podSelector": app(selected(place)),
        }),
        2 => {
            json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": [format!("10.{}.0.0/16", 100 + place % 100)]}})
        }
        3 => json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": next}}}),
        _ => json!({"podSelector": {}}),
    };
    let ports = match kind % 5 {
        4 => json!([{"protocol": "TCP", "port": PORT}]),
        0 => json!([{"protocol": "TCP", "port": 8000, "endPort": 8080}]),
        1 => json!([{"protocol": "TCP", "port": "http"}]),
        _ => json!([]),
    };
    let of_all = kind < 5;
    let types = match kind % 2 {
        0 => json!(["Ingress", "Egress"]),
        _ => json!(["Ingress"]),
    };
    let mut spec = json!({
        "podSelector": if of_all { json!({}) } else { app(selected(place)) },
        "policyTypes": types,
        "ingress": [{"from": [peer], "ports": ports}],
    });
    if kind.is_multiple_of(2) {
        spec["egress"] = json!([{"to": [peer], "ports": ports}]);
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {
            "name": format!("policy-{kind}"), "namespace": format!("namespace-{place}"),
            "uid": format!("{place:08x}-{kind:04x}-4e3f-8a5b-000000000000"), "creationTimestamp": MADE,
        },
        "spec": spec,
    })
}

/// What ten policies are, and whom they are about: one namespace's, and the pods of the first node, as a `List`.
pub fn ten_policies() -> Value {
    let local = (0..PODS_OF_A_NODE).map(Pod);
    let mut items: Vec<_> = (0..PODS_OF_A_NODE / 2).map(namespace).collect();
    items.extend(local.map(Pod::object));
    items.extend((0..POLICIES).map(|kind| policy(0, kind)));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}
