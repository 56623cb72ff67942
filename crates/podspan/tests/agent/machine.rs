//! A machine of a test: a network namespace with an uplink, a directory with the files, and the real executable.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use podspan_kernel::testing::TestNs;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before the test gives up: generous, because the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// A machine: a network namespace with an uplink, and a directory with the files.
pub struct Machine {
    pub ns: TestNs,
    temp: TempDir,
}

/// A node as an entry of the nodes file: `node<n>` with addresses and pod CIDRs of both families.
pub fn entry(n: u32) -> String {
    addressed(n, &format!("172.16.{}.{}", n >> 8, n & 255))
}

pub fn addressed(n: u32, address: &str) -> String {
    format!(
        "[[nodes]]\nname = \"node{n}\"\naddresses = [\"{address}\", \"fd00:172::{n:x}\"]\n\
         pod_cidrs = [\"10.{}.{}.0/24\", \"fd00:10:{n:x}::/64\"]\n",
        n >> 8,
        n & 255
    )
}

/// The machine's own setting for all bridges: here, of this network namespace alone.
pub fn all_bridges_call_iptables(on: bool) {
    for key in ["iptables", "ip6tables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{key}");
        let wrote = std::fs::write(&path, if on { "1" } else { "0" });
        wrote.unwrap_or_else(|error| panic!("this test needs br_netfilter: {path}: {error}"));
    }
}

impl Machine {
    /// `node1`, with `eth0` on the segment of all nodes, and foreign things that must survive everything.
    pub fn new() -> Self {
        let ns = TestNs::new();
        for link in ["eth0", "foreign0"] {
            ns.ip(&format!("link add {link} type bridge"));
            // No link-local address, which would come at its own time into what the tests watch.
            ns.ip(&format!("link set {link} addrgenmode none"));
            ns.ip(&format!("link set {link} up"));
        }
        ns.ip("addr add 172.16.0.1/16 dev eth0");
        ns.ip("addr add fd00:172::1/64 dev eth0 nodad");
        ns.ip("route add 10.255.0.0/16 via 172.16.99.99 proto static");
        let machine = Self {
            ns,
            temp: tempfile::tempdir().unwrap(),
        };
        machine.nodes(&[entry(1), entry(2), entry(3)].concat());
        machine.configure("");
        machine
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    pub fn configure(&self, more: &str) {
        let directory = self.temp.path().display();
        let agent = format!(
            "node = \"node1\"\nnodes_file = \"{directory}/nodes.toml\"\n\
             conflist = \"{directory}/net.d/10-podspan.conflist\"\n{more}"
        );
        std::fs::write(self.path("agent.toml"), agent).unwrap();
        let router = format!("nodes_file = \"{directory}/nodes.toml\"\n");
        std::fs::write(self.path("router.toml"), router).unwrap();
    }

    /// A line of the configuration for a kernel that has not loaded `br_netfilter`: the agent finds nothing of it where it looks
    /// for kernel parameters, and the bridges of this machine do not heed it.
    pub fn without_br_netfilter(&self) -> String {
        all_bridges_call_iptables(false);
        let root = self.path("proc-sys");
        std::fs::create_dir_all(root.join("net")).unwrap();
        for known in ["ipv4", "ipv6", "netfilter"] {
            let link = root.join("net").join(known);
            if !link.exists() {
                std::os::unix::fs::symlink(format!("/proc/sys/net/{known}"), link).unwrap();
            }
        }
        format!("proc_sys = {root:?}\n")
    }

    /// Writes the nodes file as one should: beside its place, then renamed.
    pub fn nodes(&self, content: &str) {
        std::fs::write(self.path("nodes.new"), content).unwrap();
        std::fs::rename(self.path("nodes.new"), self.path("nodes.toml")).unwrap();
    }

    pub fn podspan(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podspan"));
        command.args(arguments.split_whitespace());
        command
    }

    /// Runs a command with this machine's configuration: its exit status and what it printed.
    pub fn run(&self, arguments: &str) -> (i32, String) {
        let mut command = self.podspan(arguments);
        let output = command
            .arg("--config")
            .arg(self.path("agent.toml"))
            .output()
            .unwrap();
        let printed = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8(printed).unwrap(),
        )
    }

    pub fn start(&self, role: &str) -> Agent<'_> {
        self.start_with(role, "log", role)
    }

    /// A second agent beside, with a file and a log of that name.
    pub fn start_as(&self, role: &str, name: &str) -> Agent<'_> {
        self.start_with(role, &format!("{name}.log"), name)
    }

    fn start_with(&self, role: &str, log: &str, config: &str) -> Agent<'_> {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.path(log))
            .unwrap();
        let mut command = self.podspan(role);
        command
            .arg("--config")
            .arg(self.path(&format!("{config}.toml")))
            .stderr(log);
        Agent {
            machine: self,
            child: command.spawn().unwrap(),
        }
    }

    /// Our routes, `destination via next hop`, sorted.
    pub fn routes(&self) -> Vec<String> {
        let mut routes = Vec::new();
        for family in ["-4", "-6"] {
            let seen = self.ns.ip(&format!("{family} route show proto 112"));
            let text = |route: &Value, key: &str| route[key].as_str().unwrap_or("?").to_owned();
            let list = seen.as_array().into_iter().flatten();
            routes.extend(
                list.map(|route| format!("{} via {}", text(route, "dst"), text(route, "gateway"))),
            );
        }
        routes.sort();
        routes
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until it is so.
    pub fn until(&self, what: &str, so: impl Fn() -> bool) -> Duration {
        let begin = Instant::now();
        while !so() {
            if begin.elapsed() > DEADLINE {
                let routes: Vec<_> = self.routes().into_iter().take(10).collect();
                panic!("never: {what}\nroutes {routes:#?}\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        begin.elapsed()
    }

    pub fn until_routes(&self, expected: &[&str]) -> Duration {
        self.until(&format!("routes {expected:?}"), || {
            self.routes() == expected
        })
    }

    /// Everything that is configured on this machine, to compare: routes, links, global addresses.
    pub fn everything(&self) -> Vec<String> {
        let mut all = Vec::new();
        let list = |what: &str| self.ns.ip(what).as_array().cloned().unwrap_or_default();
        for route in [list("-4 route show"), list("-6 route show")].concat() {
            all.push(format!(
                "{} {} {} {}",
                route["dst"], route["gateway"], route["dev"], route["protocol"]
            ));
        }
        for link in list("addr show") {
            all.push(format!(
                "{} {} {} {}",
                link["ifname"], link["address"], link["mtu"], link["ifalias"]
            ));
            let addresses = link["addr_info"].as_array().cloned().unwrap_or_default();
            let global = addresses
                .iter()
                .filter(|address| address["scope"] == "global");
            all.extend(
                global.map(|address| format!("{} {}", address["local"], address["prefixlen"])),
            );
        }
        all.retain(|line| !line.contains("fe80::"));
        all
    }

    pub fn assert_foreign_things_are_there(&self) {
        assert_eq!(
            self.ns.ip("route show proto static")[0]["dst"],
            "10.255.0.0/16"
        );
        assert_eq!(self.ns.ip("link show foreign0")[0]["ifname"], "foreign0");
    }
}

/// A running agent or router; killed when the test is over.
pub struct Agent<'a> {
    machine: &'a Machine,
    pub child: Child,
}

impl Agent<'_> {
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Ends it by SIGTERM, and tells its exit status.
    pub fn stop(mut self) -> Option<i32> {
        self.signal("-TERM");
        self.child.wait().unwrap().code()
    }

    /// A look has been taken since the call: what this nodes file's extra node shows.
    pub fn has_looked(&self) {
        let marker = entry(30_000);
        let before = std::fs::read_to_string(self.machine.path("nodes.toml")).unwrap();
        let there = || {
            self.machine
                .routes()
                .iter()
                .any(|route| route.starts_with("10.117.48.0/24"))
        };
        self.machine.nodes(&(before.clone() + &marker));
        self.machine.until("the marker comes", there);
        self.machine.nodes(&before);
        self.machine.until("the marker goes", || !there());
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub const THREE_NODES: [&str; 4] = [
    "10.0.2.0/24 via 172.16.0.2",
    "10.0.3.0/24 via 172.16.0.3",
    "fd00:10:2::/64 via fd00:172::2",
    "fd00:10:3::/64 via fd00:172::3",
];
