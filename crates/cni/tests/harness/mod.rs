//! A node for one test: a private network namespace, a private data directory, and the real plugin.
//!
//! `ip -j` is the witness, never our own code. Nothing is left behind: the namespaces end with the test's thread.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(missing_docs, reason = "the functions' names say it")]

pub mod kill;
pub mod world;

use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use podspan_kernel::Netns;
use podspan_kernel::testing::TestNs;
use serde_json::{Value, json};

pub struct Node {
    pub ns: TestNs,
    pub data: tempfile::TempDir,
    /// The plugin's executable, under the name that it is called by.
    pub program: PathBuf,
}

/// A pod's network namespace, empty but for `lo`.
pub struct Pod {
    netns: Netns,
}

/// How the plugin ended and what it said.
#[derive(Debug)]
pub struct Answer {
    pub ok: bool,
    pub json: Value,
}

impl Node {
    /// A node, with things of somebody else's that must survive.
    pub fn new() -> Self {
        let ns = TestNs::new();
        ns.ip("link add foreign0 up type bridge");
        ns.ip("addr add 192.0.2.1/24 dev foreign0");
        ns.ip("link add pod0 type veth peer name pod1");
        ns.ip("route add 198.51.100.0/24 via 192.0.2.2 proto static");
        nft(FOREIGN);
        Self {
            ns,
            data: tempfile::tempdir().unwrap(),
            program: env!("CARGO_BIN_EXE_podspan-cni").into(),
        }
    }

    /// Fails when something of somebody else's is gone.
    pub fn assert_foreign_survives(&self) {
        assert_eq!(
            self.ns.ip("addr show foreign0")[0]["addr_info"][0]["local"],
            "192.0.2.1"
        );
        assert_eq!(self.ns.ip("link show pod0")[0]["ifname"], "pod0");
        assert_eq!(
            self.ns.ip("route show 198.51.100.0/24")[0]["gateway"],
            "192.0.2.2"
        );
        for family in ["inet", "bridge"] {
            let listed = nft(&format!("list table {family} foreign"));
            assert!(
                listed.contains("type filter hook") && listed.contains("pod0"),
                "{listed}"
            );
        }
    }

    /// A dual-stack configuration with these keys changed; null takes one away.
    pub fn conf(&self, changes: Value) -> Value {
        let mut conf = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "podspan-cni",
            "ipam": {
                "dataDir": self.data.path(),
                "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]],
            },
        });
        for (key, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => _ = conf.as_object_mut().unwrap().remove(key),
                value => conf[key] = value.clone(),
            }
        }
        conf
    }

    /// From now on the plugin is called by that name.
    pub fn call_it(&mut self, name: &str) {
        self.program = self.data.path().join(name);
        if !self.program.exists() {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_podspan-cni"), &self.program).unwrap();
        }
    }

    /// The plugin's process, ready to run, behind `wrapper` (such as `strace …`).
    pub fn command(&self, wrapper: &[String], command: &str, container: &str) -> Command {
        let plugin = self.program.to_str().unwrap().to_owned();
        Self::process(wrapper, plugin, (command, container))
    }

    /// The same under the name of a reference plugin.
    pub fn command_as(
        &self,
        name: &str,
        wrapper: &[String],
        (command, container): (&str, &str),
    ) -> Command {
        let link = self.data.path().join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_podspan-cni"), &link).unwrap();
        }
        let link = link.into_os_string().into_string().unwrap();
        Self::process(wrapper, link, (command, container))
    }

    fn process(wrapper: &[String], plugin: String, (command, container): (&str, &str)) -> Command {
        let mut words = wrapper.iter().cloned().chain([plugin]);
        let mut process = Command::new(words.next().unwrap());
        process.args(words).env_clear();
        process.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        process
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container);
        process
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/nowhere");
        process
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        process
    }

    pub fn add(&self, container: &str, pod: &Pod, conf: &Value) -> Answer {
        run(
            self.command(&[], "ADD", container)
                .env("CNI_NETNS", pod.path()),
            conf,
        )
    }

    pub fn check(&self, container: &str, pod: &Pod, conf: &Value) -> Answer {
        run(
            self.command(&[], "CHECK", container)
                .env("CNI_NETNS", pod.path()),
            conf,
        )
    }

    /// DEL with as little as the specification allows: no namespace, no previous result.
    pub fn del(&self, container: &str, conf: &Value) -> Answer {
        run(&mut self.command(&[], "DEL", container), conf)
    }

    /// The configuration for the CHECK or DEL after an ADD.
    pub fn with_prev(&self, conf: &Value, added: &Answer) -> Value {
        let mut conf = conf.clone();
        conf["prevResult"] = added.json.clone();
        conf
    }

    /// The names of the files that hold an address, sorted.
    pub fn addresses(&self) -> Vec<String> {
        let Ok(files) = std::fs::read_dir(self.data.path().join("net")) else {
            return Vec::new();
        };
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut addresses: Vec<_> = names
            .filter(|name| name.parse::<IpAddr>().is_ok())
            .collect();
        addresses.sort();
        addresses
    }

    /// The addresses that are masqueraded, as `nft` lists them.
    pub fn masqueraded(&self) -> Vec<String> {
        let output = Command::new("nft")
            .args(["-j", "list", "table", "inet", "podspan"])
            .output()
            .unwrap();
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let objects = listed["nftables"].as_array().cloned().unwrap_or_default();
        let sets = objects.iter().map(|object| &object["set"]);
        let of_pods = sets.filter(|set| {
            set["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("masq"))
        });
        let elements = of_pods.flat_map(|set| set["elem"].as_array().cloned().unwrap_or_default());
        elements
            .map(|element| element["elem"]["val"].as_str().unwrap().to_owned())
            .collect()
    }

    /// What stands of attachments in the table of the packet filter: each element as `<set> <element>`, and the records
    /// themselves, and chains of their own; but not the links that lead to pods, which are nobody's. Sorted.
    pub fn filtered(&self) -> Vec<String> {
        const SHARED: [&str; 3] = ["bridges", "host_port_links", "hairpin_links"];
        let mut all = Vec::new();
        let output = Command::new("nft")
            .args(["-j", "list", "table", "inet", "podspan"])
            .output()
            .unwrap();
        let listed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        for object in listed["nftables"].as_array().into_iter().flatten() {
            if let Some(name) = object["chain"]["name"].as_str()
                && (name.starts_with("pe_") || name.starts_with("pi_"))
            {
                all.push(format!("chain {name}"));
            }
            let set = if object["set"].is_null() {
                &object["map"]
            } else {
                &object["set"]
            };
            let Some(name) = set["name"].as_str().filter(|name| !SHARED.contains(name)) else {
                continue;
            };
            if name.starts_with("pod") && name.len() == 15 || name.starts_with("map") {
                all.push(format!("record {name}"));
            }
            for element in set["elem"].as_array().into_iter().flatten() {
                all.push(format!("{name} {element}"));
            }
        }
        all.sort();
        all
    }

    /// The records of attachments, sorted.
    pub fn records(&self) -> Vec<String> {
        let path = self.data.path().join("net/attachments");
        let Ok(files) = std::fs::read_dir(path) else {
            return Vec::new();
        };
        let mut names: Vec<_> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The names of all links that are not there from the beginning and not the bridge.
    pub fn pod_links(&self) -> Vec<String> {
        let known = ["lo", "foreign0", "pod0", "pod1", "podspan0", "up0"];
        let links = self.ns.ip("link show");
        let names = links
            .as_array()
            .unwrap()
            .iter()
            .map(|link| link["ifname"].as_str().unwrap());
        names
            .filter(|name| !known.contains(name))
            .map(str::to_owned)
            .collect()
    }

    /// Nothing of any attachment is left; what is somebody else's is.
    pub fn assert_clean(&self, context: &str) {
        assert_eq!(
            self.pod_links(),
            Vec::<String>::new(),
            "links left: {context}"
        );
        assert_eq!(
            self.addresses(),
            Vec::<String>::new(),
            "addresses left: {context}"
        );
        assert_eq!(
            self.records(),
            Vec::<String>::new(),
            "records left: {context}"
        );
        assert_eq!(
            self.filtered(),
            Vec::<String>::new(),
            "packet filtering left: {context}"
        );
    }
}

/// Filtering of somebody else's, in both families.
const FOREIGN: &str = "add table inet foreign; add chain inet foreign c { type filter hook prerouting priority -300; }; \
    add rule inet foreign c iifname \"pod0\" counter; add table bridge foreign; \
    add chain bridge foreign c { type filter hook prerouting priority -200; }; add rule bridge foreign c iifname \"pod0\" counter";

/// What `nft` says to these commands.
#[track_caller]
pub fn nft(commands: &str) -> String {
    let output = Command::new("nft").arg(commands).output();
    let output = output.unwrap_or_else(|error| panic!("nft of nftables is installed: {error}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {commands}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `tc -j` says in this thread's namespace.
#[track_caller]
pub fn tc(arguments: &str) -> Vec<Value> {
    let words = arguments.split_whitespace();
    let output = Command::new("tc").arg("-j").args(words).output().unwrap();
    assert!(output.status.success(), "tc {arguments}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

/// True where a program judges first what the link receives.
pub fn is_guarded(link: &str) -> bool {
    let filters = tc(&format!("filter show dev {link} ingress"));
    let first = filters.first();
    first.is_some_and(|first| first["kind"] == "bpf" && first["pref"] == 1)
}

/// A machine beside the node, outside of the network: 203.0.113.2 and 2001:db8::2, the node being 1.
pub fn outside(node: &Node) -> Pod {
    let outside = Pod::new();
    node.ns.ip(&format!(
        "link add up0 type veth peer name up1 netns {}",
        outside.path().display()
    ));
    // Neighbours of IPv6 are asked from a link-local address, which must be usable at once.
    let at_once = |link: &str| {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/accept_dad"), "0").unwrap();
    };
    at_once("up0");
    outside.run(|| at_once("up1"));
    node.ns.ip("addr add 203.0.113.1/24 dev up0");
    node.ns.ip("addr add 2001:db8::1/64 dev up0 nodad");
    node.ns.ip("link set up0 up");
    for command in [
        "addr add 203.0.113.2/24 dev up1",
        "addr add 2001:db8::2/64 dev up1 nodad",
        "link set up1 up",
        "route add 10.244.0.0/16 via 203.0.113.1",
        "-6 route add fd00:10:244::/48 via 2001:db8::1",
    ] {
        outside.ip(command);
    }
    outside
}

impl Pod {
    pub fn new() -> Self {
        let make = || {
            let _ns = TestNs::new();
            Netns::current().unwrap()
        };
        Self {
            netns: std::thread::scope(|scope| scope.spawn(make).join()).unwrap(),
        }
    }

    /// A path that leads to it, as long as this value lives.
    pub fn path(&self) -> PathBuf {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.netns.as_fd().as_raw_fd()
        )
        .into()
    }

    /// Runs `work` inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).unwrap()
    }

    /// `ip -j` inside.
    pub fn ip(&self, arguments: &str) -> Value {
        self.run(|| {
            let output = Command::new("ip")
                .arg("-j")
                .args(arguments.split(' '))
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "ip {arguments}: {text}");
            serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
        })
    }

    /// A server on all addresses; tells each client the address that it saw.
    pub fn listen(&self) -> TcpListener {
        self.run(|| TcpListener::bind("[::]:8080").unwrap())
    }

    /// Connects from inside; true when it worked within the time that a lost first packet would take.
    pub fn reaches(&self, ip: &str) -> bool {
        let address = SocketAddr::new(ip.parse().unwrap(), 8080);
        self.run(|| TcpStream::connect_timeout(&address, Duration::from_millis(700)).is_ok())
    }
}

impl Answer {
    /// The first address of the result that is of that family (4 or 6), without its length.
    pub fn ip(&self, family: u8) -> String {
        let list = self.json["ips"]
            .as_array()
            .unwrap_or_else(|| panic!("no ips: {self:?}"));
        let texts = list
            .iter()
            .map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap());
        let of_family = |ip: &&str| ip.contains(':') == (family == 6);
        texts.into_iter().find(of_family).unwrap().to_owned()
    }

    #[track_caller]
    pub fn expect_ok(self) -> Self {
        assert!(self.ok, "{:#}", self.json);
        self
    }

    /// The error's code and message.
    #[track_caller]
    pub fn expect_error(self) -> (u64, String) {
        assert!(!self.ok, "{:#}", self.json);
        let text = self.json["msg"]
            .as_str()
            .unwrap_or_else(|| panic!("no msg: {self:?}"));
        (self.json["code"].as_u64().unwrap(), text.to_owned())
    }
}

/// Runs the process with the configuration on its standard input.
pub fn run(process: &mut Command, conf: &Value) -> Answer {
    let output = run_raw(process, conf);
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    Answer {
        ok: output.status.success(),
        json,
    }
}

pub fn run_raw(process: &mut Command, conf: &Value) -> Output {
    let mut child = process.spawn().unwrap();
    // A process that was killed does not read.
    let _ = child
        .stdin
        .take()
        .unwrap()
        .write_all(conf.to_string().as_bytes());
    child.wait_with_output().unwrap()
}

/// The same with an end: after `limit` the process and all that it started are killed, which its status then tells.
pub fn run_within(limit: Duration, process: &mut Command, conf: &Value) -> Output {
    let mut child = process.process_group(0).spawn().unwrap();
    let group = rustix::process::Pid::from_child(&child);
    let (ended, end) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if end.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                // Fails only where it has just ended by itself.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
        });
        let _ = child
            .stdin
            .take()
            .unwrap()
            .write_all(conf.to_string().as_bytes());
        let output = child.wait_with_output().unwrap();
        drop(ended);
        output
    })
}
