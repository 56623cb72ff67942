//! Where every system call of a command is killed or made to fail: the configurations, the node, and what may be left.
//!
//! For `crash.rs` and `faults.rs`. Both go through all [`CONFIGURATIONS`] that are for every run, and through the others
//! too where `PODSPAN_ALL_CONFIGURATIONS` is 1; where it is a configuration's name, through that alone. They print which.
//! What is left is whatever `ip` and `nft` show that they did not show when the node was ready, and any file that is not
//! the store's own: a new feature needs a line in the table and nothing here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Output;
use std::time::Duration;

use podspan_cni::attachment::AttachmentId;
use podspan_cni::ipam::{Ipam, IpamConfig, IpamError, boot_id};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Node, Pod, run_within};

/// What pods of a test are like.
pub struct Configuration {
    pub name: &'static str,
    /// Tried in every run; the others only where `PODSPAN_ALL_CONFIGURATIONS` says so. The last, "everything", has the system
    /// calls of all features, so that one of them alone shows little more.
    pub always: bool,
    /// One set each.
    ranges: &'static [&'static str],
    /// Besides `ipam`, as JSON.
    keys: &'static str,
}

/// Who the pods are.
const POD_ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=0f3";
/// So small that what a test loses is missed, and so large that a pod and another fit.
const IPV4: &str = "10.244.1.0/28";
const IPV6: &str = "fd00:10:244:1::/124";

/// A host port of each kind.
macro_rules! ports {
    () => {
        r#""portMappings": [
            {"hostPort": 80, "containerPort": 8080},
            {"hostPort": 53, "containerPort": 53, "protocol": "udp"},
            {"hostPort": 81, "containerPort": 81, "hostIP": "192.0.2.1"}]"#
    };
}
/// Limits in both directions, one of which has a device of its own.
macro_rules! limits {
    () => {
        r#""bandwidth": {
            "ingressRate": 8000000, "ingressBurst": 800000, "egressRate": 8000000, "egressBurst": 800000}"#
    };
}

#[rustfmt::skip]
pub const CONFIGURATIONS: [Configuration; 9] = [
    Configuration { name: "plain", always: true, ranges: &[IPV4], keys: r#"{}"# },
    Configuration { name: "not guarded", always: false, ranges: &[IPV4], keys: r#"{"antiSpoof": false}"# },
    Configuration { name: "dual stack", always: false, ranges: &[IPV4, IPV6], keys: r#"{}"# },
    Configuration { name: "masquerade", always: false, ranges: &[IPV4], keys: r#"{"ipMasq": true}"# },
    Configuration { name: "host ports", always: false, ranges: &[IPV4],
        keys: concat!(r#"{"runtimeConfig": {"#, ports!(), "}}") },
    Configuration { name: "bandwidth", always: false, ranges: &[IPV4],
        keys: concat!(r#"{"runtimeConfig": {"#, limits!(), "}}") },
    Configuration { name: "policy", always: false, ranges: &[IPV4],
        keys: r#"{"policy": {"waitMilliseconds": 0}}"# },
    Configuration { name: "routed", always: false, ranges: &[IPV4, IPV6], keys: r#"{"routed": true}"# },
    Configuration { name: "everything", always: true, ranges: &[IPV4, IPV6],
        keys: concat!(r#"{"ipMasq": true, "policy": {"waitMilliseconds": 0}, "runtimeConfig": {"#, ports!(), ",", limits!(), "}}") },
];

impl Configuration {
    /// Those of this run.
    pub fn of_this_run() -> Vec<&'static Self> {
        let wanted = std::env::var("PODSPAN_ALL_CONFIGURATIONS").ok();
        let is_wanted = |configuration: &&Self| match wanted.as_deref() {
            None => configuration.always,
            Some("1") => true,
            Some(name) => configuration.name == name,
        };
        let (run, left): (Vec<_>, Vec<_>) = CONFIGURATIONS.iter().partition(is_wanted);
        assert!(!run.is_empty(), "PODSPAN_ALL_CONFIGURATIONS={wanted:?}");
        let names = |list: &[&Self]| list.iter().map(|c| c.name).collect::<Vec<_>>().join(", ");
        println!("configurations: {}", names(&run));
        if !left.is_empty() {
            let left = names(&left);
            println!("not in this run, but with PODSPAN_ALL_CONFIGURATIONS=1: {left}");
        }
        run
    }

    /// What it has besides `ipam`.
    pub fn keys(&self) -> Value {
        serde_json::from_str(self.keys).unwrap()
    }

    /// The one of that name.
    pub fn named(name: &str) -> &'static Self {
        let named = CONFIGURATIONS.iter().find(|known| known.name == name);
        named.unwrap()
    }

    /// The one that has all system calls.
    pub fn with_everything() -> &'static Self {
        CONFIGURATIONS.last().unwrap()
    }
}

/// No command takes so long; one that does hangs.
pub const HANG: Duration = Duration::from_secs(20);
/// Most of the time is the kernel's wait for RCU periods, which several nodes can share.
const NODES: usize = 4;

/// A node with a pod and a configuration, whose ranges are small and have been through: each ADD is like the last.
pub struct World {
    pub node: Node,
    pub pod: Pod,
    /// Another, for what is to stay.
    pub kept: Pod,
    pub conf: Value,
    data: TempDir,
    /// What `ip` and `nft` show while nothing is attached.
    ready: BTreeSet<String>,
}

impl World {
    pub fn new(configuration: &Configuration) -> Self {
        let node = Node::new();
        let data = on_tmpfs();
        let ranges = configuration.ranges.iter();
        let ranges: Vec<_> = ranges.map(|range| json!([{"subnet": range}])).collect();
        let mut conf = node.conf(json!({"ipam": {"dataDir": data.path(), "ranges": ranges}}));
        for (key, value) in configuration.keys().as_object().unwrap() {
            conf[key] = value.clone();
        }
        let mut world = Self {
            node,
            pod: Pod::new(),
            kept: Pod::new(),
            conf,
            data,
            ready: BTreeSet::new(),
        };
        world.node.add("first", &world.pod, &world.conf).expect_ok();
        world.node.del("first", &world.conf).expect_ok();
        have_a_connection();
        world.ready = shown();
        world.assert_all_addresses_are_free_but(0, "at first");
        world
    }

    /// As on the node's first day.
    pub fn begin_anew(&self) {
        for table in listed_by_nft()
            .iter()
            .filter_map(|object| object.get("table"))
        {
            if table["name"] == "podspan" {
                let family = table["family"].as_str().unwrap();
                nft(&["delete", "table", family, "podspan"]);
            }
        }
        self.node.ns.ip("link del podspan0");
        std::fs::remove_dir_all(self.data.path().join("net")).unwrap();
    }

    /// Of another pod at the same time, which cannot have the same host ports.
    pub fn conf_beside_others(&self) -> Value {
        let mut conf = self.conf.clone();
        if let Some(Value::Object(asked)) = conf.get_mut("runtimeConfig") {
            asked.remove("portMappings");
        }
        conf
    }

    /// No more than the network's name and the place of the addresses: all that DEL needs.
    pub fn least_conf(&self) -> Value {
        self.node
            .conf(json!({"ipam": {"dataDir": self.data.path()}}))
    }

    /// Runs the command for container `c1`.
    pub fn run(&self, wrapper: &[String], command: &str, conf: &Value) -> Output {
        let mut process = self.node.command(wrapper, command, "c1");
        process.env("CNI_ARGS", POD_ARGS);
        run_within(HANG, process.env("CNI_NETNS", self.pod.path()), conf)
    }

    /// The configuration for a GC that frees everything but these containers.
    pub fn gc_conf(&self, valid: &[&str]) -> Value {
        let valid = valid.iter();
        let valid: Vec<_> = valid
            .map(|container| json!({"containerID": container, "ifname": "eth0"}))
            .collect();
        let mut conf = self.conf.clone();
        conf["cni.dev/valid-attachments"] = valid.into();
        conf
    }

    /// Frees everything but these.
    #[track_caller]
    pub fn gc(&self, valid: &[&str]) {
        let output = self.run(&[], "GC", &self.gc_conf(valid));
        assert!(output.status.success(), "GC: {output:?}");
    }

    /// The system calls of one run, in order.
    pub fn trace(&self, command: &str, conf: &Value) -> Vec<String> {
        let file = self.node.data.path().join("trace");
        let strace = ["strace", "-f", "-qq", "-o", file.to_str().unwrap()];
        let output = self.run(&strace.map(str::to_owned), command, conf);
        assert!(output.status.success(), "{command}: {output:?}");
        let text = std::fs::read_to_string(file).unwrap();
        text.lines()
            .map(|line| line.split_once(' ').unwrap().1.trim_start().to_owned())
            .collect()
    }

    /// The system calls of an ADD that never had to wait for the kernel: those that every ADD makes. `before` comes before
    /// each.
    pub fn trace_add(&self, before: impl Fn()) -> Vec<String> {
        for _ in 0..100 {
            before();
            let lines = self.trace("ADD", &self.conf);
            self.node.del("c1", &self.conf).expect_ok();
            if !lines.iter().any(|line| line.starts_with("clock_nanosleep")) {
                return lines;
            }
        }
        panic!("each of a hundred ADDs had to wait for its IPv6 address");
    }

    /// What is there of attachments that should not be, in the kernel and on disk.
    pub fn left(&self) -> Vec<String> {
        let mut left: Vec<_> = shown().difference(&self.ready).cloned().collect();
        left.extend(self.left_in_pod());
        let files = |inner: &str| -> Vec<String> {
            let files = std::fs::read_dir(self.data.path().join("net").join(inner));
            files
                .into_iter()
                .flatten()
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        left.extend(files("attachments"));
        let is_ours = |name: &String| {
            let ours = ["attachments", "boot_id", "lock"];
            // A kill may leave the draft of a file (`free.0.new`), which the next draft replaces.
            let draft = name.strip_suffix(".new").unwrap_or(name);
            ours.contains(&draft) || draft.starts_with("free.")
        };
        left.extend(files("").into_iter().filter(|name| !is_ours(name)));
        left
    }

    fn left_in_pod(&self) -> Vec<String> {
        let links = self.pod.ip("link show");
        let names = links.as_array().unwrap().iter().map(|link| &link["ifname"]);
        let names = names.filter(|name| *name != "lo");
        names
            .map(|name| format!("link {name} in the pod"))
            .collect()
    }

    /// The addresses that lead to a pod's chains.
    pub fn policed(&self) -> BTreeSet<IpAddr> {
        let mut policed = BTreeSet::new();
        for object in listed_by_nft() {
            let map = &object.get("map").cloned().unwrap_or_default();
            let is_ours = map["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("policy_"));
            for pair in map["elem"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|_| is_ours)
            {
                let key = pair[0]["elem"]["val"].as_str().unwrap();
                policed.insert(key.parse().unwrap());
            }
        }
        policed
    }

    /// No address that could be given to another pod leads to a chain.
    pub fn assert_no_free_address_is_policed(&self, context: &str) {
        let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        for ip in self.policed().iter().filter(|ip| !link_local(ip)) {
            let file = self.data.path().join("net").join(ip.to_string());
            assert!(
                file.exists(),
                "{ip} is free and leads to a chain: {context}"
            );
        }
    }

    /// Every address can be taken, each once, but for those of so many attachments.
    pub fn assert_all_addresses_are_free_but(&self, held: u128, context: &str) {
        let config = IpamConfig::from_json(&self.conf["ipam"], "/nowhere").unwrap();
        let network = "net".parse().unwrap();
        let ipam = Ipam::open(&config, &network, &boot_id().unwrap()).unwrap();
        let mut taken = BTreeSet::new();
        let id = |number: u32| AttachmentId {
            container: format!("all{number}").parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        };
        for number in 0.. {
            match ipam.allocate(&id(number)) {
                Ok(allocated) => {
                    for allocation in allocated {
                        let ip = allocation.address;
                        assert!(taken.insert(ip), "{ip} was given twice: {context}");
                    }
                }
                Err(IpamError::Exhausted { .. }) => {
                    (0..number).for_each(|number| ipam.release(&id(number)).unwrap());
                    break;
                }
                Err(other) => panic!("{context}: {other}"),
            }
        }
        // The IPv6 range has one more, which has no partner.
        let sets = &config.range_sets;
        let each = sets[0].total() - held;
        assert_eq!(
            taken.len() as u128,
            sets.len() as u128 * each,
            "{context}: {taken:?}"
        );
    }

    pub fn assert_nothing_is_left(&self, context: &str) {
        assert_eq!(self.left(), Vec::<String>::new(), "left: {context}");
        self.assert_all_addresses_are_free_but(0, context);
    }
}

/// A connection of the node's that is there for as long as the test takes, where connections are followed: a list of none comes in
/// fewer parts than one of some, and those by which the kernel tells of groups that it has joined begin at any time.
fn have_a_connection() {
    let for_an_hour = std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "3600");
    for_an_hour.unwrap();
    let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
    socket.send_to(b"x", ("192.0.2.1", 9)).unwrap();
}

/// Where the addresses are kept: on what `/run` is, which is quicker too.
fn on_tmpfs() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// Links, and what is in nftables, of the thread's network namespace: a line each, without what changes by itself.
fn shown() -> BTreeSet<String> {
    let mut shown = BTreeSet::new();
    let links = std::process::Command::new("ip")
        .args(["-j", "link", "show"])
        .output();
    let links: Value = serde_json::from_slice(&links.unwrap().stdout).unwrap();
    for link in links.as_array().unwrap() {
        shown.insert(format!("link {}", link["ifname"]));
    }
    for object in listed_by_nft() {
        for (kind, mut object) in object {
            let keys = object.as_object_mut().unwrap();
            keys.remove("handle");
            let elements = keys.remove("elem").unwrap_or_default();
            // What a rule has counted.
            for expression in keys
                .get_mut("expr")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                if expression.get("counter").is_some() {
                    *expression = json!("counter");
                }
            }
            let text = |key| keys.get(key).map(Value::to_string).unwrap_or_default();
            let name = format!("{kind} {} {}", text("family"), text("name"));
            for element in elements.as_array().into_iter().flatten() {
                shown.insert(format!("{name}: {element}"));
            }
            shown.insert(format!("{name}: {object}"));
        }
    }
    shown
}

fn listed_by_nft() -> Vec<serde_json::Map<String, Value>> {
    let listed = nft(&["-j", "list", "ruleset"]);
    let listed: Value = serde_json::from_slice(&listed).unwrap();
    let objects = listed["nftables"].as_array().unwrap().iter();
    objects
        .map(|object| object.as_object().unwrap().clone())
        .filter(|object| !object.contains_key("metainfo"))
        .collect()
}

fn nft(words: &[&str]) -> Vec<u8> {
    let output = std::process::Command::new("nft").args(words).output();
    let output = output.unwrap();
    assert!(output.status.success(), "nft {words:?}: {output:?}");
    output.stdout
}

/// A system call of a run.
#[derive(Debug, Clone)]
pub struct Call {
    pub name: String,
    /// Among those of the same name, as `strace --inject` counts them.
    pub number: usize,
    /// Its arguments and what it returned, as `strace` wrote it.
    pub rest: String,
    /// Before the plugin reads its input: loader and runtime, which do the same for every configuration.
    pub early: bool,
}

/// The system calls in the lines that `strace` wrote.
pub fn calls(lines: &[String]) -> Vec<Call> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut early = true;
    let mut calls = Vec::new();
    for line in lines {
        let Some((name, rest)) = line.split_once('(') else {
            continue;
        };
        if !name.chars().all(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        early &= !line.starts_with("read(0,");
        let number = seen.entry(name).or_default();
        *number += 1;
        calls.push(Call {
            name: name.to_owned(),
            number: *number,
            rest: rest.to_owned(),
            early,
        });
    }
    calls
}

/// Does `work` for each of the cases, on several nodes.
pub fn each<T: Sync>(configuration: &Configuration, cases: &[T], work: impl Fn(&World, &T) + Sync) {
    std::thread::scope(|scope| {
        for part in 0..NODES {
            let work = &work;
            scope.spawn(move || {
                let world = World::new(configuration);
                for case in cases.iter().skip(part).step_by(NODES) {
                    work(&world, case);
                }
                world.node.assert_foreign_survives();
            });
        }
    });
}
