//! What happens to objects of the kinds that policy reads is what happens to packets; and nothing else is.
//!
//! Each question is a datagram, the first of a connection of its own, from pods of this node by the real plugin, or from node 2.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::machine::{Agent, Machine};
use crate::plane::Plane;
use crate::traffic::{PORT, Place};

const NODES: &str = "/api/v1/nodes";
const NAMESPACES: &str = "/api/v1/namespaces";
const PODS: &str = "/api/v1/namespaces/shop/pods";
const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/shop/networkpolicies";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const CLUSTER_POLICIES: &str = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";
const CLUSTER_POLICIES_DEFINITION: &str = "clusternetworkpolicies.policy.networking.k8s.io";

/// How long a datagram may take before it counts as dropped.
const PATIENCE: Duration = Duration::from_millis(200);

/// An address, and where it is: the index of the place.
type Whom = (usize, &'static str);
const WEB: Whom = (0, "10.0.1.2");
const CLIENT: Whom = (1, "10.0.1.3");
/// A pod of node 2, and node 2 itself.
const FAR: Whom = (2, "10.0.2.2");
const NODE2: Whom = (2, "172.16.0.2");

/// A cluster of two nodes, of which this machine is one.
struct Shop<'a> {
    machine: &'a Machine,
    plane: Plane,
    places: Vec<(Place, UdpSocket)>,
}

impl<'a> Shop<'a> {
    /// With a namespace and the pods in it, none of which has an address yet.
    fn open(machine: &'a Machine) -> Self {
        machine.ns.ip("link set lo up");
        let plane = Plane::start("127.0.0.1");
        plane.configure(machine, "");
        (1..=2).for_each(|n| plane.create_node(n));
        let shop = json!({"metadata": {"name": "shop", "labels": {"n": "1"}}});
        plane.create(NAMESPACES, &shop);
        for (name, node) in [("web", "node1"), ("client", "node1"), ("far", "node2")] {
            let port = json!({"name": "dns", "containerPort": PORT, "protocol": "UDP"});
            let container = json!({"name": "c", "image": "none.invalid/none", "ports": [port]});
            let spec = json!({"nodeName": node, "automountServiceAccountToken": false, "containers": [container]});
            let metadata = json!({"name": name, "labels": {"app": name}});
            plane.create(PODS, &json!({"metadata": metadata, "spec": spec}));
        }
        Self {
            machine,
            plane,
            places: Vec::new(),
        }
    }

    fn start_agent(&self) -> Agent<'a> {
        let agent = self.machine.start("agent");
        let is_right = || self.machine.run("plan").0 == 0;
        self.machine.until("right", is_right);
        agent
    }

    /// Makes the places in which the pods are, and node 2.
    fn plug(&mut self) {
        let pods = ["web", "client"].map(|name| self.machine.pod_named("shop", name));
        for place in pods.into_iter().chain([self.machine.node2()]) {
            let socket = place.run(|| UdpSocket::bind(("0.0.0.0", PORT)).unwrap());
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            self.places.push((place, socket));
        }
    }

    fn give_address(&self, pod: &str, address: &str) {
        let status = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
        self.plane.patch_status_of(PODS, pod, &status);
    }

    fn reaches(&self, from: Whom, to: Whom) -> bool {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let word = NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        self.places[from.0].0.run(|| {
            let socket = UdpSocket::bind((from.1, 0)).unwrap();
            // Nothing goes out where the node says at once that it does not pass.
            let _ = socket.send_to(&word, (to.1, PORT));
        });
        let mut heard = [0; 8];
        while let Ok(length) = self.places[to.0].1.recv(&mut heard) {
            if heard[..length] == word {
                return true;
            }
        }
        false
    }

    fn until_open(&self, what: &str, from: Whom, to: Whom) {
        self.machine.until(what, || self.reaches(from, to));
    }

    fn until_closed(&self, what: &str, from: Whom, to: Whom) {
        self.machine.until(what, || !self.reaches(from, to));
    }

    /// Pods of the namespaces with that label may ask `web`; `client` is to be asked by nobody.
    fn create_policies(&self) {
        let from = json!([{"namespaceSelector": {"matchLabels": {"n": "1"}}, "podSelector": {"matchLabels": {}}}]);
        let rule = json!({"from": from, "ports": [{"protocol": "UDP", "port": "dns"}]});
        for (name, rules) in [("web", json!([rule])), ("client", json!([]))] {
            let selector = json!({"matchLabels": {"app": name}});
            let spec =
                json!({"podSelector": selector, "policyTypes": ["Ingress"], "ingress": rules});
            self.plane
                .create(POLICIES, &json!({"metadata": {"name": name}, "spec": spec}));
        }
    }

    /// The kind, its content unchecked, and an object of it: nobody sends anything to nodes of zone x.
    fn define_cluster_policies(&self) {
        let names = json!({"kind": "ClusterNetworkPolicy", "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy"});
        let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let version = json!({"name": "v1alpha2", "served": true, "storage": true, "schema": {"openAPIV3Schema": any}});
        let metadata = json!({
            "name": CLUSTER_POLICIES_DEFINITION,
            "annotations": {"api-approved.kubernetes.io": "unapproved, of a test"},
        });
        let spec = json!({"group": "policy.networking.k8s.io", "scope": "Cluster", "names": names, "versions": [version]});
        self.plane
            .create(DEFINITIONS, &json!({"metadata": metadata, "spec": spec}));
        self.machine
            .until("the kind is served", || self.plane.serves(CLUSTER_POLICIES));
        let nodes = json!([{"nodes": {"matchLabels": {"zone": "x"}}}]);
        let spec = json!({"tier": "Admin", "priority": 5, "subject": {"namespaces": {}},
            "egress": [{"action": "Deny", "to": nodes}]});
        let policy = json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
            "metadata": {"name": "zone"}, "spec": spec});
        self.plane.create(CLUSTER_POLICIES, &policy);
    }

    /// `web` and `client` are known, `far` is not.
    fn begin(&mut self) {
        self.create_policies();
        self.plug();
        self.give_address("web", WEB.1);
        self.give_address("client", CLIENT.1);
        self.until_open("the client is allowed", CLIENT, WEB);
        assert!(!self.reaches(FAR, WEB));
        assert!(!self.reaches(WEB, CLIENT));
        self.give_address("far", FAR.1);
        self.until_open("a pod with an address is allowed", FAR, WEB);
    }
}

#[test]
fn objects_of_every_kind_are_followed_and_the_kind_that_need_not_be_there_too() {
    let machine = Machine::new();
    let mut shop = Shop::open(&machine);
    let agent = shop.start_agent();
    shop.begin();

    // They change.
    let n = |n: &str| json!({"metadata": {"labels": {"n": n}}});
    shop.plane.patch(NAMESPACES, "shop", &n("2"));
    shop.until_closed("labels of a namespace change", CLIENT, WEB);
    assert!(!shop.reaches(FAR, WEB));
    let from = json!([{"namespaceSelector": {"matchLabels": {"n": "2"}}}]);
    let ingress = json!({"spec": {"ingress": [{"from": from}]}});
    shop.plane.patch(POLICIES, "web", &ingress);
    shop.until_open("a policy changes", CLIENT, WEB);
    assert!(shop.reaches(FAR, WEB));

    // A kind that comes while the agent is not there.
    assert!(shop.reaches(CLIENT, NODE2));
    assert_eq!(agent.stop(), Some(0));
    shop.define_cluster_policies();
    let _agent = shop.start_agent();
    let zone = json!({"metadata": {"labels": {"zone": "x"}}});
    assert!(shop.reaches(CLIENT, NODE2));
    shop.plane.patch(NODES, "node2", &zone);
    shop.until_closed("labels of a node change", CLIENT, NODE2);
    assert!(shop.reaches(CLIENT, WEB));

    // And goes while it is.
    shop.plane.delete(DEFINITIONS, CLUSTER_POLICIES_DEFINITION);
    shop.until_open("the kind is gone", CLIENT, NODE2);
    assert!(!shop.reaches(WEB, CLIENT));
    let log = shop.machine.log();
    assert!(!log.contains("ClusterNetworkPolicies"), "{log}");
}

#[test]
fn a_server_that_was_away_or_has_forgotten_takes_nothing_away_but_what_is_gone() {
    let machine = Machine::new();
    let mut shop = Shop::open(&machine);
    let agent = shop.start_agent();
    shop.begin();

    // Away: what is in force stays, and all is caught up.
    shop.plane.order("kill");
    let told = || shop.machine.log().contains("Connection refused");
    shop.machine.until("told", told);
    assert!(shop.reaches(CLIENT, WEB) && shop.reaches(FAR, WEB));
    assert!(!shop.reaches(WEB, CLIENT));
    shop.plane.order("start");
    let nobody = json!({"spec": {"ingress": []}});
    shop.plane.patch(POLICIES, "web", &nobody);
    shop.until_closed("caught up", CLIENT, WEB);
    let anybody = json!({"spec": {"ingress": [{"from": [{"podSelector": {}}]}]}});
    shop.plane.patch(POLICIES, "web", &anybody);
    shop.until_open("mended", CLIENT, WEB);
    assert!(shop.reaches(FAR, WEB));
    assert!(!shop.reaches(WEB, CLIENT));

    // Forgotten meanwhile: what is gone goes, however the agent is told.
    agent.signal("-STOP");
    shop.plane.delete(POLICIES, "client");
    shop.plane.delete(PODS, "far");
    shop.plane.order("kill");
    shop.plane.forget_versions();
    shop.plane.order("start");
    assert!(!shop.reaches(WEB, CLIENT));
    assert!(shop.reaches(FAR, WEB));
    agent.signal("-CONT");
    shop.until_open("a policy is gone", WEB, CLIENT);
    shop.until_closed("a pod is gone", FAR, WEB);
    assert!(shop.reaches(CLIENT, WEB));
}
