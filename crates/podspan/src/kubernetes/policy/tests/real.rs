//! All kinds against a real API server, which only `make kubernetes` builds: `make e2e` runs it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use podspan_kernel::testing::TestNs;

use super::*;
use crate::policy::object::{Port, Protocol};

const DEFINITION: &str = "crd/clusternetworkpolicies.policy.networking.k8s.io";

/// etcd and kube-apiserver in this thread's network namespace, and kubectl as admin.
struct Plane {
    child: Child,
    hand: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    places: Value,
}

impl Plane {
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut child = Command::new(root.join("tests/e2e/control_plane.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let hand = child.stdin.take();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let places = serde_json::from_str(&line).unwrap();
        Self {
            child,
            hand,
            answers,
            places,
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        PathBuf::from(self.places["kubeconfigs"]["admin"].as_str().unwrap())
    }

    fn kubectl(&self, arguments: &str, objects: &[Value]) {
        let program = Path::new(self.places["kubernetes"].as_str().unwrap()).join("kubectl");
        let mut kubectl = Command::new(program)
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .args(arguments.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = kubectl.stdin.take().unwrap();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        if !objects.is_empty() {
            input.write_all(list.to_string().as_bytes()).unwrap();
        }
        drop(input);
        assert!(kubectl.wait().unwrap().success(), "kubectl {arguments}");
    }

    fn apply(&self, objects: &[Value]) {
        self.kubectl("apply --server-side --force-conflicts -f -", objects);
    }

    /// The kind, its content unchecked, and an object of it.
    fn define(&self) {
        let names = json!({"kind": "ClusterNetworkPolicy", "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy"});
        let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let version = json!({"name": "v1alpha2", "served": true, "storage": true, "schema": {"openAPIV3Schema": any}});
        let metadata = json!({
            "name": "clusternetworkpolicies.policy.networking.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, of a test"},
        });
        let spec = json!({"group": "policy.networking.k8s.io", "scope": "Cluster", "names": names, "versions": [version]});
        let definition = json!({"metadata": metadata, "spec": spec});
        let of = "apiextensions.k8s.io/v1";
        self.apply(&[typed(of, "CustomResourceDefinition", definition)]);
        self.kubectl(
            &format!("wait --for=condition=Established {DEFINITION}"),
            &[],
        );
        let of = "policy.networking.k8s.io/v1alpha2";
        self.apply(&[typed(of, "ClusterNetworkPolicy", cluster_policy("cnp"))]);
    }

    fn order(&mut self, order: &str) {
        writeln!(self.hand.as_ref().unwrap(), "{order}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(["killed\n", "ready\n"].contains(&line.as_str()), "{line}");
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        drop(self.hand.take());
        let _ = self.child.wait();
    }
}

/// Asks etcd itself.
fn store(what: &str, body: &Value) -> Value {
    let body = body.to_string();
    let head = format!(
        "POST /v3/kv/{what} HTTP/1.0\r\nContent-Length: {}",
        body.len()
    );
    let mut etcd = TcpStream::connect("127.0.0.1:6444").unwrap();
    write!(etcd, "{head}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    etcd.read_to_string(&mut answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

fn typed(version: &str, kind: &str, mut object: Value) -> Value {
    object["apiVersion"] = json!(version);
    object["kind"] = json!(kind);
    object
}

fn real_pod(name: &str) -> Value {
    let container = json!({"name": "c", "image": "none.invalid/none", "ports": [{"name": "http", "containerPort": 80}]});
    let spec = json!({"automountServiceAccountToken": false, "containers": [container]});
    let metadata = json!({"namespace": "a", "name": name, "labels": {"app": name}});
    typed("v1", "Pod", json!({"metadata": metadata, "spec": spec}))
}

fn real_policy(port: u16) -> Value {
    let mut policy = network_policy("np");
    policy["spec"]["ingress"] = json!([{"ports": [{"port": port}]}]);
    typed("networking.k8s.io/v1", "NetworkPolicy", policy)
}

fn labelled(n: u32) -> Value {
    let metadata = json!({"name": "a", "labels": {"n": n.to_string()}});
    typed("v1", "Namespace", json!({"metadata": metadata}))
}

/// As the test has changed them.
fn is_changed(change: &Change) -> bool {
    match change {
        Change::Pod(_, Some(pod)) => pod.addresses.v4.is_some() && pod.ports.len() == 1,
        Change::Namespace(name, Some(labels)) => &**name != "a" || labels.get("n") == Some("2"),
        Change::Node(_, Some(node)) => node.labels.get("zone") == Some("x"),
        Change::NetworkPolicy(_, Some(policy)) => {
            let rules = policy.ingress.as_ref().unwrap();
            rules[0].ports == [Port::Range(Protocol::Tcp, 2, 2)]
        }
        _ => true,
    }
}

#[test]
#[ignore = "needs the API server that make kubernetes builds: make e2e runs it"]
fn a_real_api_server_is_followed_killed_forgetful_and_with_a_kind_that_comes_and_goes() {
    let ns = TestNs::new();
    ns.ip("link set lo up");
    let mut plane = Plane::start();
    let config = KubernetesConfig {
        kubeconfig: Some(plane.kubeconfig()),
        ..KubernetesConfig::default()
    };
    let mut taker = Taker::of(&config);
    taker.until_synced();

    // All kinds come but that which the cluster does not have.
    let account = json!({"metadata": {"namespace": "a", "name": "default"}});
    plane.apply(&[labelled(1)]);
    plane.apply(&[typed("v1", "ServiceAccount", account)]);
    plane.apply(&[typed("v1", "Node", of_name("n1")), real_policy(1)]);
    plane.apply(&[real_pod("p1")]);
    let first = [
        (Kind::Namespaces, "a"),
        (Kind::Nodes, "n1"),
        (Kind::NetworkPolicies, "a/np"),
        (Kind::Pods, "a/p1"),
    ];
    let is_there = |taker: &Taker| first.iter().all(|(kind, name)| taker.has(*kind, name));
    taker.until("there", is_there);

    // They change.
    let status =
        r#"{"status":{"phase":"Running","podIP":"10.0.0.7","podIPs":[{"ip":"10.0.0.7"}]}}"#;
    plane.kubectl(
        &format!("patch pod p1 -n a --subresource=status --type=merge -p {status}"),
        &[],
    );
    plane.apply(&[labelled(2), real_policy(2)]);
    plane.kubectl("label node n1 zone=x", &[]);
    taker.until("changed", |taker| taker.objects.values().all(is_changed));

    // The kind comes with an object, and goes, and comes again.
    let has_policy = |taker: &Taker| taker.has(Kind::ClusterPolicies, "cnp");
    assert_eq!(taker.ended[&Kind::ClusterPolicies], 1);
    plane.define();
    taker.until("with the kind", has_policy);
    let lists = taker.ended[&Kind::ClusterPolicies];
    plane.kubectl(&format!("delete {DEFINITION}"), &[]);
    taker.until("without the kind", |taker| {
        !has_policy(taker) && taker.ended[&Kind::ClusterPolicies] > lists
    });
    plane.define();
    taker.until("with the kind again", has_policy);
    assert!(taker.told.is_empty(), "{:?}", taker.told);

    // Killed and back: nothing is taken away, and the watches go on.
    plane.order("kill");
    taker.until("told", |taker| !taker.problems.is_empty());
    plane.order("start");
    plane.apply(&[real_pod("p2")]);
    taker.until("caught up", |taker| taker.has(Kind::Pods, "a/p2"));
    taker.until("mended", |taker| taker.problems.is_empty());
    assert!(has_policy(&taker) && is_there(&taker));

    // Forgotten meanwhile: what is gone goes.
    plane.order("kill");
    taker.until("told", |taker| !taker.problems.is_empty());
    plane.order("start");
    plane.kubectl("delete pod p1 -n a --force --grace-period=0", &[]);
    plane.kubectl("delete networkpolicy np -n a", &[]);
    plane.order("kill");
    let now = store("range", &json!({"key": "AA=="}));
    let compaction = json!({"revision": now["header"]["revision"], "physical": true});
    store("compaction", &compaction);
    plane.order("start");
    taker.until("gone", |taker| {
        !taker.has(Kind::Pods, "a/p1") && !taker.has(Kind::NetworkPolicies, "a/np")
    });
    plane.kubectl("delete node n1", &[]);
    taker.until("gone", |taker| !taker.has(Kind::Nodes, "n1"));
    taker.until("mended", |taker| taker.problems.is_empty());
    assert!(has_policy(&taker) && taker.has(Kind::Pods, "a/p2"));
    println!("told: {:#?}; lists: {:?}", taker.told, taker.ended);
}
