//! A node: the machine of this thread's network namespace with the agent, and the pods that the plugin attached there.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{PODS_OF_A_NODE, Pod};
use crate::endpoint::{End, Endpoint};
use crate::machine::Machine;

/// Where an agent tells its metrics, in its node's network.
const METRICS: &str = "127.0.0.1:9470";

pub struct Node {
    pub machine: Machine,
    /// Begins the names of its pods' namespaces.
    name: &'static str,
    agent: Option<Child>,
}

impl Node {
    /// In a network namespace of this thread, with an agent that is not started yet.
    pub fn new(name: &'static str) -> Self {
        Self {
            machine: Machine::new(),
            name,
            agent: None,
        }
    }

    /// The words of the configuration that all nodes of this bench have.
    pub fn more(&self) -> String {
        let ipam = self.machine.path("ipam");
        format!("data_dir = \"{}\"\nprobe = false\n", ipam.display())
    }

    pub fn start(&mut self) {
        let log = std::fs::File::create(self.machine.path("log")).unwrap();
        let mut command = Command::new(bin("podspan"));
        command.args(["agent", "--config"]);
        command.arg(self.machine.path("agent.toml")).stderr(log);
        self.agent = Some(command.spawn().unwrap());
        self.until("ready", |node| node.get("/readyz").is_some());
    }

    pub fn until(&self, what: &str, so: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !so(self) {
            assert!(
                begin.elapsed() < Duration::from_secs(120),
                "never {what}: {}",
                self.machine.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(METRICS).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    }

    pub fn metric(&self, name: &str) -> Option<usize> {
        let text = self.get("/metrics")?;
        let mut lines = text.lines();
        lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// As many changes of objects as that are in force, or more.
    pub fn until_in_force(&self, objects: usize) {
        self.until("in force", |node| {
            let told = node.metric("podspan_policy_told_in_force_total");
            told.is_some_and(|told| told >= objects)
        });
    }

    /// Its pods come, one after the other; how long that takes.
    pub fn attach_all(&self) -> Duration {
        let conflist = self.machine.path("net.d/10-podspan.conflist");
        let conflist: Value = serde_json::from_slice(&std::fs::read(conflist).unwrap()).unwrap();
        let mut conf = conflist["plugins"][0].clone();
        conf["name"] = conflist["name"].clone();
        conf["cniVersion"] = json!("1.1.0");
        let pods = (0..PODS_OF_A_NODE).map(Pod);
        pods.map(|pod| self.attach(conf.clone(), pod)).sum()
    }

    fn attach(&self, mut conf: Value, pod: Pod) -> Duration {
        let netns = self.netns(pod);
        let made = Command::new("ip").args(["netns", "add", &netns]).status();
        assert!(made.unwrap().success(), "ip netns add {netns}");
        conf["args"] = json!({"cni": {"ips": pod.addresses()}});
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
            pod.namespace(),
            pod.name(),
            pod.uid()
        );
        let mut command = Command::new(bin("podspan-cni"));
        command.envs([
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", &netns),
            ("CNI_NETNS", &format!("/run/netns/{netns}")),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/nowhere"),
            ("CNI_ARGS", &args),
        ]);
        let begin = Instant::now();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(conf.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "ADD {pod:?}: {said}");
        // That it waited in vain, on a machine that has other things to do.
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        begin.elapsed()
    }

    fn netns(&self, pod: Pod) -> String {
        format!("{}-{}", self.name, pod.0)
    }

    /// A process in the network of that pod.
    pub fn endpoint(&self, pod: Pod, end: End, core: usize) -> Endpoint {
        Endpoint::start(&["ip", "netns", "exec", &self.netns(pod)], end, core)
    }

    /// Of the agent, out of `/proc/<pid>/status`, in MiB.
    pub fn mib(&self, key: &str) -> f64 {
        let pid = self.agent.as_ref().unwrap().id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<f64>().unwrap() / 1024.0
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

/// The executable as users have it.
pub fn bin(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../bin")
        .join(name)
}
