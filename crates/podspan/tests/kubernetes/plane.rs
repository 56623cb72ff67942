//! A Kubernetes API server of a test, and a hand in it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use futures_util::StreamExt as _;
use k8s_openapi::ByteString;
use kube::api::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::machine::Machine;

/// Who the agent is there.
pub const USER: &str = "system:serviceaccount:kube-system:podspan";

const NODES: &str = "/api/v1/nodes";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
pub const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
pub const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// etcd and kube-apiserver in this thread's network namespace; they end with it.
pub struct Plane {
    child: Child,
    hand: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    home: TempDir,
    runtime: Runtime,
    client: kube::Client,
}

impl Plane {
    /// On that address of the namespace; the agent's user has its rights.
    pub fn start(address: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["ResponseComplete"],
            "rules": [{"level": "Metadata", "users": [USER]}, {"level": "None"}],
        });
        std::fs::write(home.path().join("policy.json"), policy.to_string()).unwrap();
        let program =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/e2e/control_plane.py");
        let mut child = Command::new(program)
            .args(["--address", address, "--user", USER, "--"])
            .arg(format!(
                "--audit-policy-file={}",
                home.path().join("policy.json").display()
            ))
            .arg(format!(
                "--audit-log-path={}",
                home.path().join("audit.log").display()
            ))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let hand = child.stdin.take();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let places: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("no API server: its error is on standard error"));
        let kubeconfigs = &places["kubeconfigs"];
        for (name, user) in [("admin", "admin"), ("podspan", USER)] {
            let from = kubeconfigs[user].as_str().unwrap();
            std::fs::copy(from, home.path().join(name)).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let client = runtime.block_on(async {
            let read = Kubeconfig::read_from(home.path().join("admin")).unwrap();
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(read, &options).await;
            kube::Client::try_from(config.unwrap()).unwrap()
        });
        let plane = Self {
            child,
            hand,
            answers,
            home,
            runtime,
            client,
        };
        plane.give_rights();
        plane
    }

    /// What `docs/kubernetes.md` says that the agent needs.
    fn give_rights(&self) {
        let rule = |group: &str, resources: &str, verbs: &[&str]| json!({"apiGroups": [group], "resources": [resources], "verbs": verbs});
        let everywhere = [
            rule("", "nodes", &["get", "list", "watch", "patch"]),
            rule("", "nodes/status", &["patch"]),
            rule("", "pods", &["list", "watch"]),
            rule("", "namespaces", &["list", "watch"]),
            rule("networking.k8s.io", "networkpolicies", &["list", "watch"]),
            rule(
                "policy.networking.k8s.io",
                "clusternetworkpolicies",
                &["list", "watch"],
            ),
        ];
        let events = [rule("events.k8s.io", "events", &["create"])];
        let leases = [rule(
            "coordination.k8s.io",
            "leases",
            &["list", "create", "delete"],
        )];
        let subjects =
            json!([{"kind": "User", "name": USER, "apiGroup": "rbac.authorization.k8s.io"}]);
        for (place, kind, rules) in [
            ("", "ClusterRole", &everywhere[..]),
            ("/namespaces/default", "Role", &events[..]),
            ("/namespaces/kube-system", "Role", &leases[..]),
        ] {
            let metadata = json!({"name": "podspan"});
            let path = format!("{RBAC}{place}/{}s", kind.to_lowercase());
            self.create(&path, &json!({"metadata": metadata, "rules": rules}));
            let role =
                json!({"kind": kind, "name": "podspan", "apiGroup": "rbac.authorization.k8s.io"});
            let path = path.replace("roles", "rolebindings");
            self.create(
                &path,
                &json!({"metadata": metadata, "subjects": subjects, "roleRef": role}),
            );
        }
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.home.path().join("podspan")
    }

    /// A configuration of the agent with that kubeconfig. The other nodes are not there to answer a probe.
    pub fn configure(&self, machine: &Machine, more: &str) {
        let directory = machine.path("");
        let agent = format!(
            "node = \"node1\"\nregistry = \"kubernetes\"\nkubeconfig = \"{}\"\n\
             conflist = \"{}/net.d/10-podspan.conflist\"\nprobe = false\nlisten = \"off\"\n{more}",
            self.kubeconfig().display(),
            directory.display(),
        );
        std::fs::write(machine.path("agent.toml"), agent).unwrap();
        let router = format!(
            "registry = \"kubernetes\"\nkubeconfig = \"{}\"\n",
            self.kubeconfig().display()
        );
        std::fs::write(machine.path("router.toml"), router).unwrap();
    }

    /// The agent's configuration with the kubeconfig of somebody who may do nothing.
    pub fn configure_as_nobody(&self, machine: &Machine) {
        let read = std::fs::read_to_string(self.kubeconfig()).unwrap();
        let mut kubeconfig: Value = serde_json::from_str(&read).unwrap();
        kubeconfig["users"][0]["user"] = json!({});
        let nobody = self.home.path().join("nobody");
        std::fs::write(&nobody, kubeconfig.to_string()).unwrap();
        let written = std::fs::read_to_string(machine.path("agent.toml")).unwrap();
        let own = self.kubeconfig();
        let changed = written.replace(&*own.to_string_lossy(), &nobody.to_string_lossy());
        std::fs::write(machine.path("agent.toml"), changed).unwrap();
    }

    /// `kill` or `start`.
    pub fn order(&mut self, order: &str) {
        writeln!(self.hand.as_ref().unwrap(), "{order}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(
            ["killed\n", "ready\n"].contains(&line.as_str()),
            "{order}: {line}"
        );
    }

    /// The store forgets all versions before the present one.
    pub fn forget_versions(&self) {
        let now = store("range", &json!({"key": "AA=="}));
        let revision = now["header"]["revision"].clone();
        store(
            "compaction",
            &json!({"revision": revision, "physical": true}),
        );
    }

    /// Puts objects beside the API into its store, with their keys there: a hundred times as many a second as one creates.
    /// They are as the API server would have stored them, in JSON, which it reads as well as what it writes.
    pub fn store_all(&self, objects: impl Iterator<Item = (String, Value)>) {
        let bytes = |text: String| json!(ByteString(text.into_bytes()));
        let mut puts = objects
            .map(|(key, object)| json!({"requestPut": {"key": bytes(key), "value": bytes(object.to_string())}}))
            .peekable();
        while puts.peek().is_some() {
            // As many as etcd takes at a time (--max-txn-ops).
            let some: Vec<_> = puts.by_ref().take(128).collect();
            store("txn", &json!({"success": some}));
        }
    }

    pub fn create(&self, path: &str, object: &Value) -> Value {
        let request = creation(path, object);
        self.runtime.block_on(self.client.request(request)).unwrap()
    }

    /// Several at a time.
    pub fn create_all(&self, path: &str, objects: impl Iterator<Item = Value>) {
        self.send_all(objects.map(|object| creation(path, &object)));
    }

    /// Several at a time.
    pub fn send_all(&self, requests: impl Iterator<Item = axum::http::Request<Vec<u8>>>) {
        self.runtime.block_on(async {
            let requests = requests
                .map(|request| async move { self.client.request_text(request).await.unwrap() });
            let answers = futures_util::stream::iter(requests).buffer_unordered(16);
            answers.for_each(|_| async {}).await;
        });
    }

    pub fn list(&self, path: &str) -> Vec<Value> {
        let request = Request::new(path).list(&ListParams::default()).unwrap();
        let list: Value = self.runtime.block_on(self.client.request(request)).unwrap();
        list["items"].as_array().unwrap().clone()
    }

    /// Whether the server knows what is there.
    pub fn serves(&self, path: &str) -> bool {
        let request = Request::new(path).list(&ListParams::default()).unwrap();
        self.runtime
            .block_on(self.client.request_text(request))
            .is_ok()
    }

    /// Changes an object as a merge patch says.
    pub fn patch(&self, path: &str, name: &str, patch: &Value) {
        let request = Request::new(path);
        let request = request.patch(name, &PatchParams::default(), &Patch::Merge(patch));
        let _: Value = self
            .runtime
            .block_on(self.client.request(request.unwrap()))
            .unwrap();
    }

    /// At once, also a pod, which otherwise waits for its kubelet.
    pub fn delete(&self, path: &str, name: &str) {
        let params = DeleteParams::default().grace_period(0);
        let request = Request::new(path).delete(name, &params).unwrap();
        let _: Value = self.runtime.block_on(self.client.request(request)).unwrap();
    }

    pub fn get(&self, path: &str, name: &str) -> Value {
        let request = Request::new(path).get(name, &GetParams::default());
        self.runtime
            .block_on(self.client.request(request.unwrap()))
            .unwrap()
    }

    pub fn node(&self, name: &str) -> Value {
        self.get(NODES, name)
    }

    pub fn nodes(&self) -> Vec<Value> {
        self.list(NODES)
    }

    /// A Node with nothing in it.
    pub fn create_bare_node(&self, name: &str) -> Value {
        self.create(NODES, &json!({"metadata": {"name": name}}))
    }

    /// `node<n>` with pod CIDRs and addresses of both families, as the nodes of [`Machine`] are.
    pub fn create_node(&self, n: u32) {
        let pod_cidrs = pod_cidrs(n);
        let spec = json!({"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs});
        self.create(
            NODES,
            &json!({"metadata": {"name": format!("node{n}")}, "spec": spec}),
        );
        self.set_addresses(
            &format!("node{n}"),
            &[&address(n), &format!("fd00:172::{n:x}")],
        );
    }

    pub fn set_addresses(&self, node: &str, addresses: &[&str]) {
        let internal = |address: &&str| json!({"type": "InternalIP", "address": address});
        let addresses: Vec<_> = addresses.iter().map(internal).collect();
        self.patch_status(node, &json!({"addresses": addresses}));
    }

    pub fn patch_status(&self, node: &str, status: &Value) {
        self.patch_status_of(NODES, node, status);
    }

    pub fn patch_status_of(&self, path: &str, name: &str, status: &Value) {
        let patch = Patch::Strategic(json!({"status": status}));
        let request = Request::new(path);
        let request = request.patch_subresource("status", name, &PatchParams::default(), &patch);
        let _: Value = self
            .runtime
            .block_on(self.client.request(request.unwrap()))
            .unwrap();
    }

    pub fn delete_node(&self, name: &str) {
        self.delete(NODES, name);
    }

    /// The status of that condition.
    pub fn condition(&self, node: &str, kind: &str) -> Option<String> {
        let node = self.node(node);
        let conditions = node["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let condition = conditions
            .into_iter()
            .find(|condition| condition["type"] == kind)?;
        Some(condition["status"].as_str().unwrap().to_owned())
    }

    /// The requests of the agents so far, such as `watch /api/v1/nodes?…`.
    pub fn requests(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.home.path().join("audit.log")).unwrap_or_default();
        // The last line may still be written.
        let whole = log
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let entries = whole.map(|line| serde_json::from_str::<Value>(line).unwrap());
        let begun = entries.filter(|entry| entry["stage"] == "RequestReceived");
        begun
            .map(|entry| {
                format!(
                    "{} {}",
                    entry["verb"].as_str().unwrap(),
                    entry["requestURI"].as_str().unwrap()
                )
            })
            .collect()
    }
}

/// That asks for the object.
pub fn creation(path: &str, object: &Value) -> axum::http::Request<Vec<u8>> {
    let body = serde_json::to_vec(object).unwrap();
    let request = Request::new(path).create(&PostParams::default(), body);
    request.unwrap()
}

/// Asks etcd itself, over the JSON that it understands besides gRPC.
fn store(what: &str, body: &Value) -> Value {
    let body = body.to_string();
    let request = format!(
        "POST /v3/kv/{what} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut etcd = std::net::TcpStream::connect("127.0.0.1:6444").unwrap();
    etcd.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    etcd.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 "), "{answer}");
    serde_json::from_str(body).unwrap()
}

impl Drop for Plane {
    fn drop(&mut self) {
        drop(self.hand.take());
        let _ = self.child.wait();
    }
}

pub fn address(n: u32) -> String {
    format!("172.16.{}.{}", n >> 8, n & 255)
}

pub fn pod_cidrs(n: u32) -> [String; 2] {
    [
        format!("10.{}.{}.0/24", n >> 8, n & 255),
        format!("fd00:10:{n:x}::/64"),
    ]
}
