//! The agent and the router as real processes, each in a network namespace of its test; `ip` is the witness.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podspan_kernel::testing::TestNs;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before the test gives up: generous, because the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(20);

/// A machine: a network namespace with an uplink, and a directory with the files.
struct Machine {
    ns: TestNs,
    temp: TempDir,
}

/// A node as an entry of the nodes file: `node<n>` with addresses and pod CIDRs of both families.
fn entry(n: u32) -> String {
    addressed(n, &format!("172.16.{}.{}", n >> 8, n & 255))
}

fn addressed(n: u32, address: &str) -> String {
    format!(
        "[[nodes]]\nname = \"node{n}\"\naddresses = [\"{address}\", \"fd00:172::{n:x}\"]\n\
         pod_cidrs = [\"10.{}.{}.0/24\", \"fd00:10:{n:x}::/64\"]\n",
        n >> 8,
        n & 255
    )
}

impl Machine {
    /// `node1`, with `eth0` on the segment of all nodes, and foreign things that must survive everything.
    fn new() -> Self {
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

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn configure(&self, more: &str) {
        let directory = self.temp.path().display();
        let agent = format!(
            "node = \"node1\"\nnodes_file = \"{directory}/nodes.toml\"\n\
             conflist = \"{directory}/net.d/10-podspan.conflist\"\n{more}"
        );
        std::fs::write(self.path("agent.toml"), agent).unwrap();
        let router = format!("nodes_file = \"{directory}/nodes.toml\"\n");
        std::fs::write(self.path("router.toml"), router).unwrap();
    }

    /// Writes the nodes file as one should: beside its place, then renamed.
    fn nodes(&self, content: &str) {
        std::fs::write(self.path("nodes.new"), content).unwrap();
        std::fs::rename(self.path("nodes.new"), self.path("nodes.toml")).unwrap();
    }

    fn podspan(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podspan"));
        command.args(arguments.split_whitespace());
        command
    }

    /// Runs a command with this machine's configuration: its exit status and what it printed.
    fn run(&self, arguments: &str) -> (i32, String) {
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

    fn start(&self, role: &str) -> Agent<'_> {
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.path("log"))
            .unwrap();
        let mut command = self.podspan(role);
        command
            .arg("--config")
            .arg(self.path(&format!("{role}.toml")))
            .stderr(log);
        Agent {
            machine: self,
            child: command.spawn().unwrap(),
        }
    }

    /// Our routes, `destination via next hop`, sorted.
    fn routes(&self) -> Vec<String> {
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

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Waits until it is so.
    fn until(&self, what: &str, so: impl Fn() -> bool) -> Duration {
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

    fn until_routes(&self, expected: &[&str]) -> Duration {
        self.until(&format!("routes {expected:?}"), || {
            self.routes() == expected
        })
    }

    /// Everything that is configured on this machine, to compare: routes, links, global addresses.
    fn everything(&self) -> Vec<String> {
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

    fn assert_foreign_things_are_there(&self) {
        assert_eq!(
            self.ns.ip("route show proto static")[0]["dst"],
            "10.255.0.0/16"
        );
        assert_eq!(self.ns.ip("link show foreign0")[0]["ifname"], "foreign0");
    }
}

/// A running agent or router; killed when the test is over.
struct Agent<'a> {
    machine: &'a Machine,
    child: Child,
}

impl Agent<'_> {
    fn signal(&self, signal: &str) {
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
    fn stop(mut self) -> Option<i32> {
        self.signal("-TERM");
        self.child.wait().unwrap().code()
    }

    /// A look has been taken since the call: what this nodes file's extra node shows.
    fn has_looked(&self) {
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

const THREE_NODES: [&str; 4] = [
    "10.0.2.0/24 via 172.16.0.2",
    "10.0.3.0/24 via 172.16.0.3",
    "fd00:10:2::/64 via fd00:172::2",
    "fd00:10:3::/64 via fd00:172::3",
];

#[test]
fn the_agent_makes_the_node_right() {
    let machine = Machine::new();
    assert_eq!(machine.run("status").0, 1);
    let (code, changes) = machine.run("plan");
    assert_eq!((code, changes.lines().count()), (1, 15), "{changes}");
    assert_eq!(machine.routes(), [""; 0], "plan only looks");

    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("status").0 == 0);
    let bridge = &machine.ns.ip("-d link show podspan0")[0];
    assert_eq!(
        (&bridge["address"], &bridge["ifalias"]),
        (&"0a:58:0a:00:01:01".into(), &"podspan:bridge".into())
    );
    let addresses = machine.ns.ip("addr show podspan0")[0]["addr_info"].clone();
    let global = addresses
        .as_array()
        .unwrap()
        .iter()
        .filter(|address| address["scope"] == "global");
    let global: Vec<_> = global.map(|address| &address["local"]).collect();
    assert_eq!(global, ["10.0.1.1", "fd00:10:1::1"]);
    let conflist = std::fs::read_to_string(machine.path("net.d/10-podspan.conflist")).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&conflist).unwrap()["plugins"][0]["mtu"],
        1500
    );
    assert_eq!(machine.run("plan"), (0, String::new()));
    machine.assert_foreign_things_are_there();
}

#[test]
fn what_somebody_deletes_comes_back() {
    let machine = Machine::new();
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.ns.ip("route del 10.0.2.0/24");
    println!(
        "a deleted IPv4 route is back after {:?}",
        machine.until_routes(&THREE_NODES)
    );
    machine.ns.ip("-6 route del fd00:10:3::/64");
    println!(
        "a deleted IPv6 route is back after {:?}",
        machine.until_routes(&THREE_NODES)
    );
    machine
        .ns
        .ip("route replace 10.0.2.0/24 via 172.16.0.77 proto 112");
    machine.until_routes(&THREE_NODES);
    machine.ns.ip("link del podspan0");
    machine.until("the bridge is back", || machine.run("plan").0 == 0);
    std::fs::remove_file(machine.path("net.d/10-podspan.conflist")).unwrap();
    machine.until("the conflist is back", || {
        machine.path("net.d/10-podspan.conflist").exists()
    });
}

#[test]
fn a_stale_route_of_an_earlier_life_goes_and_foreign_ones_stay() {
    let machine = Machine::new();
    machine
        .ns
        .ip("route add 10.0.9.0/24 via 172.16.0.9 proto 112");
    machine
        .ns
        .ip("-6 route add fd00:10:9::/64 via fd00:172::9 proto 112");
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.assert_foreign_things_are_there();
}

#[test]
fn an_uplink_that_goes_down_and_up_has_its_routes_again() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.ns.ip("link set eth0 down");
    machine.until("told", || {
        machine.log().contains("is reached by eth0, which is down")
    });
    machine.ns.ip("link set eth0 up");
    machine.ns.ip("addr replace fd00:172::1/64 dev eth0 nodad");
    machine.until_routes(&THREE_NODES);
    machine.until("mended", || machine.log().contains("mended: refused: "));
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn changes_of_the_nodes_file_are_followed() {
    let machine = Machine::new();
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.nodes(&[entry(1), entry(2), entry(4)].concat());
    machine.until_routes(&[
        "10.0.2.0/24 via 172.16.0.2",
        "10.0.4.0/24 via 172.16.0.4",
        "fd00:10:2::/64 via fd00:172::2",
        "fd00:10:4::/64 via fd00:172::4",
    ]);
    // In place, as an editor may write it.
    std::fs::write(
        machine.path("nodes.toml"),
        [entry(1), entry(2), entry(3)].concat(),
    )
    .unwrap();
    machine.until_routes(&THREE_NODES);
}

#[test]
fn a_nodes_file_behind_symbolic_links_is_followed_as_kubernetes_swaps_them() {
    let machine = Machine::new();
    let write = |directory: &str, content: String| {
        std::fs::create_dir(machine.path(directory)).unwrap();
        std::fs::write(machine.path(directory).join("nodes.toml"), content).unwrap();
        std::os::unix::fs::symlink(directory, machine.path("..data_tmp")).unwrap();
        std::fs::rename(machine.path("..data_tmp"), machine.path("..data")).unwrap();
    };
    write("..2026_1", [entry(1), entry(2), entry(3)].concat());
    std::fs::remove_file(machine.path("nodes.toml")).unwrap();
    std::os::unix::fs::symlink("..data/nodes.toml", machine.path("nodes.toml")).unwrap();
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    write("..2026_2", [entry(1), entry(3)].concat());
    machine.until_routes(&[
        "10.0.3.0/24 via 172.16.0.3",
        "fd00:10:3::/64 via fd00:172::3",
    ]);
}

#[test]
fn an_empty_missing_or_broken_nodes_file_changes_nothing_and_is_said_once() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    let good = std::fs::read_to_string(machine.path("nodes.toml")).unwrap();
    let times = |text: &str| machine.log().matches(text).count();
    for (content, said) in [
        ("", "no node in it"),
        ("[[nodes", "unclosed"),
        ("nodes = 1", "must be tables"),
    ] {
        machine.nodes(content);
        machine.until(said, || times(said) == 1);
        // A look for another reason: the file is as bad as before, and everything else is kept right.
        machine.ns.ip("route del 10.0.2.0/24");
        machine.until_routes(&THREE_NODES);
        agent.signal("-HUP");
        assert_eq!(times(said), 1, "{}", machine.log());
    }
    std::fs::remove_file(machine.path("nodes.toml")).unwrap();
    machine.until("told", || times("No such file") == 1);
    assert_eq!(machine.routes(), THREE_NODES);
    let before = times("mended");
    machine.nodes(&good);
    machine.until("mended", || times("mended") > before);
    agent.has_looked();
    assert_eq!(machine.routes(), THREE_NODES);
}

#[test]
fn an_agent_that_starts_with_a_bad_nodes_file_leaves_everything_as_it_is() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    assert_eq!(agent.stop(), Some(0));
    machine.nodes("");
    let before = machine.everything();
    let agent = machine.start("agent");
    machine.until("told", || machine.log().contains("no node in it"));
    assert_eq!(machine.run("status").0, 1);
    assert_eq!(machine.run("plan").0, 2);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(machine.everything(), before);
}

#[test]
fn a_refused_entry_is_told_and_what_ran_for_it_and_for_the_others_goes_on() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.nodes(&[entry(1), addressed(2, "172.16.0.300"), entry(3)].concat());
    machine.until("told", || machine.log().contains("refused: "));
    agent.has_looked();
    assert_eq!(machine.routes(), THREE_NODES);
    let (code, status) = machine.run("status");
    assert_eq!(code, 1);
    assert!(
        status.contains("nodes[1].addresses[0] (node2) = \"172.16.0.300\": must be an IP address"),
        "{status}"
    );
}

#[test]
fn a_node_that_is_not_in_the_file_changes_nothing() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    let before = machine.everything();
    machine.nodes(&[entry(2), entry(4)].concat());
    machine.until("told", || {
        machine.log().contains("has no usable entry of that name")
    });
    assert_eq!(machine.run("plan").0, 0);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(machine.everything(), before);
}

#[test]
fn a_foreign_route_in_the_way_is_told_with_what_mends_it_and_the_rest_goes_on() {
    let machine = Machine::new();
    machine
        .ns
        .ip("route add 10.0.2.0/24 via 172.16.0.99 proto static");
    let _agent = machine.start("agent");
    let said = "somebody else's route is there; see `ip route show 10.0.2.0/24`, and `ip route del 10.0.2.0/24` \
                if nobody needs it: add route 10.0.2.0/24 via 172.16.0.2 proto 112: file exists (EEXIST)";
    machine.until("told", || machine.log().contains(said));
    machine.until_routes(&THREE_NODES[1..]);
    machine.ns.ip("route del 10.0.2.0/24 via 172.16.0.99");
    machine.until_routes(&THREE_NODES);
    machine.until("mended", || {
        machine.log().contains(&format!("mended: {said}"))
    });
}

#[test]
fn a_stale_gateway_is_swapped_without_losing_the_new_one() {
    let machine = Machine::new();
    machine.ns.ip("link add podspan0 up type bridge");
    machine.ns.ip("link set podspan0 alias podspan:bridge");
    // In the same subnet and there first: the kernel would remove the right one with it.
    for stale in ["10.0.1.9/24", "10.99.0.1/24"] {
        machine.ns.ip(&format!("addr add {stale} dev podspan0"));
    }
    let agent = machine.start("agent");
    machine.until("right", || machine.run("plan").0 == 0);
    let addresses = machine.ns.ip("-4 addr show podspan0")[0]["addr_info"].clone();
    let addresses: Vec<_> = addresses
        .as_array()
        .unwrap()
        .iter()
        .map(|address| &address["local"])
        .collect();
    assert_eq!(addresses, ["10.0.1.1"]);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(
        machine.log().matches("ip address add 10.0.1.1/24").count(),
        1,
        "{}",
        machine.log()
    );
}

#[test]
fn sigterm_leaves_the_network_and_a_restart_sends_no_change() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("plan").0 == 0);
    assert_eq!(agent.stop(), Some(0));
    assert!(
        machine
            .log()
            .ends_with("stopped; the network stays as it is\n"),
        "{}",
        machine.log()
    );
    let before = machine.everything();
    assert_eq!(machine.routes(), THREE_NODES);
    let monitor = Monitor::start(&machine, "all");
    let agent = machine.start("agent");
    machine.until("started", || {
        machine.log().matches("started as node node1").count() == 2
    });
    machine
        .ns
        .ip("route add 10.254.0.0/16 via 172.16.0.99 proto static");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(agent.stop(), Some(0));
    machine.ns.ip("route del 10.254.0.0/16");
    let lines = monitor.stop(&machine, "Deleted 10.254.0.0/16");
    assert_eq!(
        lines
            .lines()
            .filter(|line| !line.contains("10.254.0.0/16"))
            .collect::<Vec<_>>(),
        [""; 0]
    );
    assert_eq!(machine.everything(), before);
}

/// `ip monitor`, which writes down every message of the kernel.
struct Monitor {
    child: Child,
    file: PathBuf,
}

impl Monitor {
    fn start(machine: &Machine, what: &str) -> Self {
        let file = machine.path("monitor");
        let out = std::fs::File::create(&file).unwrap();
        let child = Command::new("ip")
            .args(["monitor", what])
            .stdout(out)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let monitor = Self { child, file };
        // It is subscribed when it shows a message.
        machine.until("the monitor works", || {
            machine
                .ns
                .ip("route replace 10.253.0.0/16 via 172.16.0.99 proto static");
            machine.ns.ip("route del 10.253.0.0/16");
            monitor.seen().contains("10.253.0.0/16")
        });
        machine
            .ns
            .ip("route add 10.252.0.0/16 via 172.16.0.99 proto static");
        machine.ns.ip("route del 10.252.0.0/16");
        machine.until("the monitor is at its begin", || {
            monitor.seen().contains("Deleted 10.252.0.0/16")
        });
        monitor
    }

    fn seen(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap()
    }

    /// What it showed since its start, up to the line with the last message.
    fn stop(mut self, machine: &Machine, last: &str) -> String {
        machine.until("the monitor shows the last message", || {
            self.seen().contains(last)
        });
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let seen = self.seen();
        let begin = seen
            .lines()
            .skip_while(|line| !line.contains("Deleted 10.252.0.0/16"));
        begin.skip(1).map(|line| format!("{line}\n")).collect()
    }
}

fn memory(agent: &Agent<'_>) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.child.id())).unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn five_thousand_nodes_fit_into_20_mib_and_one_that_changes_costs_one_route_message() {
    let machine = Machine::new();
    let nodes = |moved: bool| {
        let mut content = String::new();
        for n in 1..=5000 {
            let address = if moved && n == 77 {
                "172.16.200.77".to_owned()
            } else {
                format!("172.16.{}.{}", n >> 8, n & 255)
            };
            content.write_str(&addressed(n, &address)).unwrap();
        }
        content
    };
    machine.nodes(&nodes(false));
    let begin = Instant::now();
    let agent = machine.start("agent");
    machine.until("synced", || machine.log().contains("more changes made"));
    println!("first sync of 5000 nodes: {:?}", begin.elapsed());
    assert_eq!(machine.routes().len(), 2 * 4999);
    machine.until("right", || machine.run("plan").0 == 0);

    let monitor = Monitor::start(&machine, "route");
    machine.nodes(&nodes(true));
    machine.until("followed", || {
        machine.ns.ip("route show 10.0.77.0/24")[0]["gateway"] == "172.16.200.77"
    });
    machine.until("right", || machine.run("plan").0 == 0);
    machine
        .ns
        .ip("route add 10.251.0.0/16 via 172.16.0.99 proto static");
    let lines = monitor.stop(&machine, "10.251.0.0/16");
    let ours: Vec<_> = lines
        .lines()
        .filter(|line| !line.contains("10.251.0.0/16"))
        .map(str::trim)
        .collect();
    assert_eq!(ours, ["10.0.77.0/24 via 172.16.200.77 dev eth0 proto 112"]);

    // Reading again and again must not make it grow.
    for round in 0..5 {
        machine.nodes(&nodes(round % 2 == 0));
        agent.has_looked();
    }
    let kib = memory(&agent);
    println!("agent's peak memory with 5000 nodes: {kib} KiB");
    assert!(kib < 20 * 1024, "{kib} KiB");
}

#[test]
fn routing_by_a_router_is_one_route_per_family_on_the_node_and_all_of_them_on_the_router() {
    let machine = Machine::new();
    machine.configure(
        "routing = \"router\"\ncluster_cidrs = [\"10.0.0.0/17\", \"fd00:10::/32\"]\n\
         routers = [\"172.16.0.254\", \"fd00:172::fe\"]\n",
    );
    let agent = machine.start("agent");
    machine.until_routes(&[
        "10.0.0.0/17 via 172.16.0.254",
        "fd00:10::/32 via fd00:172::fe",
    ]);
    assert_eq!(agent.stop(), Some(0));

    let machine = Machine::new();
    machine.ns.ip("addr flush dev eth0");
    machine.ns.ip("addr add 172.16.0.254/16 dev eth0");
    machine.ns.ip("addr add fd00:172::fe/64 dev eth0 nodad");
    machine
        .ns
        .ip("route replace 10.255.0.0/16 via 172.16.99.99 proto static");
    let router = machine.start("router");
    machine.until("all routes", || machine.routes().len() == 6);
    let redirects = "/proc/sys/net/ipv4/conf/eth0/send_redirects";
    let value = Command::new("cat").arg(redirects).output().unwrap().stdout;
    assert_eq!(value, b"0\n");
    assert_eq!(
        machine.ns.ip("link show").as_array().unwrap().len(),
        3,
        "no bridge of ours"
    );
    machine.nodes(&[entry(1), entry(2)].concat());
    machine.until("followed", || machine.routes().len() == 4);
    assert_eq!(router.stop(), Some(0));
    machine.assert_foreign_things_are_there();
}

#[test]
fn a_bad_configuration_is_refused_with_everything_that_is_wrong_in_it() {
    let machine = Machine::new();
    machine.configure("mtu = 5\nbrigde = \"br0\"\n");
    for command in ["agent", "plan", "status"] {
        let (code, printed) = machine.run(command);
        assert_eq!(code, 2);
        let file = machine.path("agent.toml").display().to_string();
        let expected = format!(
            "podspan: {file}: mtu = 5: must be a number from 1280 to 65535\n\
             {file}: brigde = \"br0\": no such key; there are node, nodes_file, routing, cluster_cidrs, routers, \
             network, bridge, mtu, conflist\n"
        );
        assert_eq!(printed, expected);
    }
}

#[test]
fn plan_and_status_speak_json() {
    let machine = Machine::new();
    let (code, plan) = machine.run("plan -o json");
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(
        (code, &plan["refusals"], &plan["changes"][0]),
        (
            1,
            &Value::Array(vec![]),
            &"sysctl -w net.ipv4.ip_forward=1".into()
        )
    );
    let (code, status) = machine.run("-o json status");
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((code, &status["right"]), (1, &false.into()));
    let wrong = status["lines"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["what"] == "bridge podspan0 is missing");
    assert_eq!(
        wrong.unwrap()["mend"],
        "ip link add podspan0 up address 0a:58:0a:00:01:01 type bridge"
    );
}

#[test]
fn status_names_a_conflist_that_a_runtime_takes_instead_of_ours() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until("right", || machine.run("status").0 == 0);
    std::fs::write(machine.path("net.d/05-old.conflist"), "{}").unwrap();
    let (code, status) = machine.run("status");
    assert_eq!(code, 1);
    assert!(
        status.contains("a runtime takes it instead of ours; to mend it: mv "),
        "{status}"
    );
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn cleanup_removes_what_the_agent_made_and_nothing_else() {
    let machine = Machine::new();
    std::fs::create_dir(machine.path("net.d")).unwrap();
    std::fs::write(machine.path("net.d/20-other.conflist"), "{}").unwrap();
    let agent = machine.start("agent");
    machine.until("right", || machine.run("status").0 == 0);
    assert_eq!(agent.stop(), Some(0));
    // With a /run of its own: cleanup empties that of the machine otherwise.
    let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/podspan/ipam/podspan /run/other && \
                  \"$0\" cleanup --config \"$1\" -o json && ls /run";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_podspan")])
        .arg(machine.path("agent.toml"))
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let json = printed.strip_suffix("other\n").unwrap();
    let cleanup: Value = serde_json::from_str(json).unwrap();
    assert_eq!(
        (
            cleanup["removed"].as_array().unwrap().len(),
            &cleanup["failed"]
        ),
        (7, &Value::Array(vec![]))
    );
    assert_eq!(machine.routes(), [""; 0]);
    assert!(machine.path("net.d/20-other.conflist").exists());
    assert!(!machine.path("net.d/10-podspan.conflist").exists());
    machine.assert_foreign_things_are_there();
}
