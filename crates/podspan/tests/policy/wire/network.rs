//! Two nodes on one segment, each with the real agent, and pods by the real plugin: who enforces what a case's objects say.
//!
//! The agents follow one file with all objects. What they tell in their metrics says when it is in force, so that a question is asked
//! once, and an answer that came too early is none that a second try hides. An agent may be killed, stopped and started again, also
//! another executable; each counts what it told from its own start.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Seek as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use podspan_kernel::Netns;
use podspan_kernel::testing::TestNs;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::asked::name;
use crate::cases::{Cluster, to_json};
use crate::object::{Addresses, Change, Key, Pod};
use crate::prober::Asker;
use crate::prober::server::Server;

/// How long anything may take before the test gives up: generous, because the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);
/// Where an agent tells its metrics, in its node's network.
const METRICS: &str = "127.0.0.1:9470";
/// What the agent tells of: what is in the file, and the begin and the end of each kind.
const BEGINS_AND_ENDS: usize = 10;
/// How long nodes remember connections that are over, in seconds: thousands are asked in a few.
const FORGET: [(&str, &str); 6] = [
    ("udp_timeout", "2"),
    ("udp_timeout_stream", "2"),
    ("tcp_timeout_close", "2"),
    ("sctp_timeout_closed", "2"),
    ("sctp_timeout_cookie_wait", "2"),
    ("sctp_timeout_cookie_echoed", "2"),
];

/// The two nodes.
pub struct Network {
    directory: TempDir,
    pub nodes: [Node; 2],
    /// Who asks, and answers.
    pub pods: BTreeMap<Key, Peer>,
    version: usize,
    /// How much the file tells.
    listed: usize,
}

/// A machine with the agent.
pub struct Node {
    pub name: &'static str,
    pub netns: Netns,
    directory: PathBuf,
    /// What is started as the agent.
    pub executable: PathBuf,
    agent: Option<Child>,
    /// How much the agent has been told since its start, and how long the log was then.
    told: usize,
    logged: usize,
}

/// A pod, of a node's network or its own.
pub struct Peer {
    pub netns: Netns,
    pub asker: Asker,
    _server: Server,
    /// A pod is a place where a process is: whoever looks for its network finds it by that.
    process: Child,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A path that leads to it, as long as the value lives.
fn path(netns: &Netns) -> PathBuf {
    let descriptor = netns.as_fd().as_raw_fd();
    format!("/proc/{}/fd/{descriptor}", std::process::id()).into()
}

/// The same once more.
pub fn again(netns: &Netns) -> Netns {
    Netns::open(path(netns)).unwrap()
}

/// A network namespace, of a machine or a pod.
pub fn new_netns() -> Netns {
    let make = || {
        let _ns = TestNs::new();
        // Neighbours of IPv6 are asked from a link-local address, which must be usable at once.
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        Netns::current().unwrap()
    };
    std::thread::scope(|scope| scope.spawn(make).join()).unwrap()
}

fn ip(netns: &Netns, commands: &[String]) {
    for command in commands {
        let mut ip = Command::new("ip");
        ip.args(command.split_whitespace());
        let output = netns.run(|| ip.output().unwrap()).unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {command}: {told}");
    }
}

fn podspan() -> Command {
    Command::new(env!("CARGO_BIN_EXE_podspan"))
}

/// Beside its place, then renamed.
pub fn replace(file: &Path, content: &str) {
    let new = file.with_extension("new");
    std::fs::write(&new, content).unwrap();
    std::fs::rename(new, file).unwrap();
}

impl Node {
    /// Pods of the first node reach each other over the bridge, past the filters of IP; those of the second through the node,
    /// whose bridge calls nothing.
    fn new(directory: &Path, number: usize) -> Self {
        let name = ["node1", "node2"][number];
        let bridge_netfilter = number == 0;
        let own = directory.join(name);
        std::fs::create_dir(&own).unwrap();
        let (shared, here) = (directory.display(), own.display());
        let config = format!(
            "node = \"{name}\"\nnodes_file = \"{shared}/nodes.toml\"\nrouting = \"direct\"\n\
             conflist = \"{here}/net.d/10-podspan.conflist\"\ndata_dir = \"{here}/ipam\"\n\
             policy_file = \"{shared}/policy.json\"\nbridge_netfilter = {bridge_netfilter}\n"
        );
        std::fs::write(own.join("agent.toml"), config).unwrap();
        let netns = new_netns();
        for key in ["iptables", "ip6tables"] {
            let file = format!("/proc/sys/net/bridge/bridge-nf-call-{key}");
            netns.run(|| std::fs::write(file, "0").unwrap()).unwrap();
        }
        Self {
            name,
            netns,
            directory: own,
            executable: env!("CARGO_BIN_EXE_podspan").into(),
            agent: None,
            told: 0,
            logged: 0,
        }
    }

    /// The file with the agent's configuration.
    pub fn config(&self) -> PathBuf {
        self.directory.join("agent.toml")
    }

    fn start_agent(&mut self) {
        assert!(self.agent.is_none(), "{} has an agent", self.name);
        self.logged = self.log().len();
        let mut log = std::fs::File::options();
        let log = log
            .append(true)
            .create(true)
            .open(self.directory.join("log"));
        let mut command = Command::new(&self.executable);
        command.arg("agent").arg("--config");
        command.arg(self.config()).stderr(log.unwrap());
        self.agent = Some(self.netns.run(|| command.spawn().unwrap()).unwrap());
    }

    /// The agent is gone, in the middle of whatever it did.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// The agent has ended, as SIGTERM asks it to.
    pub fn stop_agent(&mut self) {
        let mut agent = self.agent.take().unwrap();
        let pid = agent.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.unwrap().success());
        assert_eq!(agent.wait().unwrap().code(), Some(0), "{}", self.log());
    }

    /// What the agent answers, none when it does not.
    fn get(&self, path: &str) -> Option<String> {
        let get = || {
            let mut stream = TcpStream::connect(METRICS).ok()?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.starts_with("HTTP/1.1 200").then_some(answer)
        };
        self.netns.run(get).unwrap()
    }

    /// A value of the agent's metrics.
    pub fn metric(&self, name: &str) -> Option<usize> {
        let text = self.get("/metrics")?;
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// What the agent said since its start.
    pub fn log_of_agent(&self) -> String {
        self.log().split_off(self.logged)
    }

    /// What all agents said so far.
    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// Starts the plugin as the conflist of the agent has it; the pod asks for its addresses.
    pub fn plugin(&self, command: &str, netns: &Netns, pod: &Pod) -> Child {
        let conflist = self.directory.join("net.d/10-podspan.conflist");
        let conflist: Value = serde_json::from_slice(&std::fs::read(conflist).unwrap()).unwrap();
        let mut conf = conflist["plugins"][0].clone();
        assert!(!conf["policy"].is_null(), "{conf}");
        conf["name"] = conflist["name"].clone();
        conf["cniVersion"] = json!("1.1.0");
        let Addresses { v4, v6 } = pod.addresses;
        conf["args"] = json!({"cni": {"ips": [v4.unwrap(), v6.unwrap()]}});
        let (namespace, uid) = (&pod.key.namespace, &pod.uid);
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={};K8S_POD_UID={uid}",
            pod.key.name
        );
        let mut process = Command::new(plugins().join("podspan-cni"));
        process.envs([
            ("CNI_COMMAND", command),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/nowhere"),
            ("CNI_ARGS", &args),
        ]);
        process.env("CNI_CONTAINERID", format!("{namespace}.{}", pod.key.name));
        process.env("CNI_NETNS", path(netns));
        process.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = self.netns.run(|| process.spawn().unwrap()).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(conf.to_string().as_bytes()).unwrap();
        child
    }

    fn add(&self, netns: &Netns, pod: &Pod) {
        let said = finish_plugin(self.plugin("ADD", netns, pod));
        for address in pod.addresses.iter() {
            assert!(said.contains(&format!("\"{address}/")), "{address}: {said}");
        }
    }

    /// Starts `podspan explain`, of TCP.
    pub fn explain(&self, (from, to): (IpAddr, IpAddr), port: u16) -> Child {
        let packet = [from.to_string(), to.to_string(), port.to_string()];
        self.start(&["explain"], &packet, Stdio::null())
    }

    /// Starts `podspan policy ask`, of a packet a line.
    pub fn ask(&self, questions: &str) -> Child {
        // A file, because nobody reads the answers while the questions are written.
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(questions.as_bytes()).unwrap();
        file.rewind().unwrap();
        self.start(&["policy", "ask"], &[], file.into())
    }

    fn start(&self, command: &[&str], arguments: &[String], stdin: Stdio) -> Child {
        let mut process = podspan();
        process.args(command).args(["-o", "json"]).args(arguments);
        process.arg("--config").arg(self.config()).stdin(stdin);
        process.stdout(Stdio::piped()).stderr(Stdio::piped());
        self.netns.run(|| process.spawn().unwrap()).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// The directory with the plugin that `make build` made.
fn plugins() -> PathBuf {
    let directory = std::env::var_os("PODSPAN_BIN_DIR").map(PathBuf::from);
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bin");
    let directory = directory.unwrap_or_else(default);
    assert!(
        directory.join("podspan-cni").exists(),
        "podspan-cni is missing in {}: run `make build` first",
        directory.display()
    );
    directory
}

impl Network {
    /// The nodes of that cluster, with agents that are ready.
    pub fn up(cluster: &Cluster) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut nodes = [0, 1].map(|number| Node::new(directory.path(), number));
        let [one, two] = &nodes;
        let peer = path(&two.netns);
        let link = format!(
            "link add eth0 type veth peer name eth0 netns {}",
            peer.display()
        );
        ip(&one.netns, &[link]);
        let mut entries = String::new();
        for (index, node) in nodes.iter().enumerate() {
            let [v4, v6] = cluster.nodes[node.name].addresses[..] else {
                panic!("{}: {:?}", node.name, cluster.nodes[node.name]);
            };
            let commands = [
                format!("addr add {v4}/24 dev eth0"),
                format!("addr add {v6}/64 dev eth0 nodad"),
                "link set eth0 up".to_owned(),
            ];
            ip(&node.netns, &commands);
            let net = index + 1;
            let _ = write!(
                entries,
                "[[nodes]]\nname = \"{}\"\naddresses = [\"{v4}\", \"{v6}\"]\n\
                 pod_cidrs = [\"10.244.{net}.0/24\", \"fd00:10:244:{net}::/64\"]\n",
                node.name
            );
        }
        std::fs::write(directory.path().join("nodes.toml"), entries).unwrap();
        std::fs::write(directory.path().join("policy.json"), "{\"items\": []}").unwrap();
        for node in &mut nodes {
            node.told = BEGINS_AND_ENDS;
            node.start_agent();
        }
        let network = Self {
            directory,
            nodes,
            pods: BTreeMap::new(),
            version: 0,
            listed: BEGINS_AND_ENDS,
        };
        network.until("ready", |node| node.get("/readyz").is_some());
        network.until_in_force();
        for node in &network.nodes {
            let forget = || {
                for (key, seconds) in FORGET {
                    // Where it may not be said the nodes remember for longer, which costs time only.
                    let file = format!("/proc/sys/net/netfilter/nf_conntrack_{key}");
                    let _ = std::fs::write(file, seconds);
                }
            };
            node.netns.run(forget).unwrap();
        }
        network
    }

    /// Waits until it is so of both nodes.
    pub fn until(&self, what: &str, so: impl Fn(&Node) -> bool) {
        let begin = Instant::now();
        for node in &self.nodes {
            while !so(node) {
                let (name, log) = (node.name, node.log());
                assert!(
                    begin.elapsed() < DEADLINE,
                    "{name} is never {what}: it said\n{log}"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Waits until both agents have in force what the file says.
    pub fn until_in_force(&self) {
        self.until("up to date", |node| {
            let told = node.metric("podspan_policy_told_in_force_total");
            assert!(told.is_none_or(|told| told <= node.told), "{told:?}");
            told == Some(node.told)
        });
    }

    /// Starts a node's agent, which has not been told anything yet.
    pub fn start_agent(&mut self, node: usize) {
        self.nodes[node].told = self.listed;
        self.nodes[node].start_agent();
    }

    /// The file that both agents follow.
    pub fn policy_file(&self) -> PathBuf {
        self.directory.path().join("policy.json")
    }

    /// Makes the pod, and who answers in it on what the cluster says that it serves.
    pub fn add(&mut self, cluster: &Cluster, pod: &Pod) {
        let node = pod.node.as_deref().unwrap();
        let node = self.nodes.iter().find(|known| known.name == node).unwrap();
        let netns = match pod.host_network {
            true => again(&node.netns),
            false => new_netns(),
        };
        if !pod.host_network {
            node.add(&netns, pod);
        }
        // It ends with its input, which ends with the test.
        let mut process = Command::new("cat");
        process.stdin(Stdio::piped());
        let process = netns.run(|| process.spawn().unwrap()).unwrap();
        let addresses: Vec<_> = pod.addresses.iter().collect();
        let serves = cluster.serves(pod);
        let server = Server::start(again(&netns), &name(&pod.key), &addresses, serves).unwrap();
        let peer = Peer {
            netns: again(&netns),
            asker: Asker::new(netns),
            _server: server,
            process,
        };
        self.pods.insert(pod.key.clone(), peer);
    }

    /// Both agents have in force what that cluster's objects say when this returns.
    pub fn enforce(&mut self, cluster: &Cluster) {
        let told = cluster.told();
        let objects = told
            .iter()
            .filter(|change| !matches!(change, Change::Begin(_) | Change::End(_)));
        let items = objects.filter_map(|change| to_json::change(change).1);
        self.enforce_objects(&items.collect::<Vec<_>>());
    }

    /// Both agents have in force what these objects say when this returns.
    pub fn enforce_objects(&mut self, items: &[Value]) {
        self.version += 1;
        self.listed = items.len() + BEGINS_AND_ENDS;
        for node in &mut self.nodes {
            node.told += self.listed;
        }
        // The version has the agents take a file that says the same as before for a new one.
        let list = json!({
            "apiVersion": "v1",
            "kind": "List",
            "metadata": {"resourceVersion": self.version.to_string()},
            "items": items,
        });
        replace(&self.policy_file(), &list.to_string());
        self.until_in_force();
    }

    /// The node of that pod.
    pub fn node_of(&self, pod: &Pod) -> &Node {
        let named = |node: &&Node| pod.node.as_deref() == Some(node.name);
        self.nodes.iter().find(named).unwrap()
    }
}

/// What the plugin printed, which must succeed.
#[track_caller]
pub fn finish_plugin(child: Child) -> String {
    let output = finish(child);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "the plugin failed: {said}");
    said
}

/// What a child that is started printed, and its status.
pub fn finish(child: Child) -> Output {
    child.wait_with_output().unwrap()
}
