//! The agent with five thousand Nodes in a real API server: memory, first sync, a change's way into the kernel, CPU, requests.
//!
//!     make bench-nodes
//!
//! As root. It prints a table, and with `--write` puts it into `docs/benchmarks.md`. The machine is a network namespace, the Nodes
//! are objects without machines: nothing answers there, so the self-test is off at first. In the end it is on: the packet
//! filter leads all tests to the agent of a second node, from where those of all other nodes come, each by itself, as they would
//! from five thousand.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

#[allow(dead_code, reason = "shared with the tests")]
#[path = "../../tests/agent/machine.rs"]
mod machine;
#[allow(dead_code, reason = "shared with the plugin's")]
#[path = "../../../cni/benches/plugin/page.rs"]
mod page;
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../../tests/kubernetes/plane.rs"]
mod plane;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use machine::Machine;
use plane::{Plane, address, pod_cidrs};
use podspan_kernel::Netns;

const NODES: u32 = 5000;
/// How many Nodes are moved, one after the other.
const CHANGES: u32 = 200;
/// A kubelet renews its Node's status every five minutes (`nodeStatusReportFrequency`).
const RENEWALS_A_SECOND: f64 = NODES as f64 / 300.0;
/// How long CPU is measured.
const WATCHED: Duration = Duration::from_secs(120);
/// The second node has the subnets and the addresses of these: it answers on that many gateways, since one takes few at a time.
const SECOND: std::ops::Range<u32> = 10..18;
/// Where agents answer.
const PORT: u16 = 11270;
/// Between two tests of other nodes: each tests this one twice in forty minutes, or all at the pace of their first round.
const ASKED: [(&str, Duration); 2] = [
    ("in its first round", Duration::from_millis(240)),
    (
        "when all others are in their first round too",
        Duration::from_millis(125),
    ),
];

fn main() {
    let words: Vec<String> = std::env::args().collect();
    // `cargo test --benches` must not measure.
    if words.iter().any(|word| word == "--test") {
        return;
    }
    let mut after = words.iter().skip_while(|word| *word != "--podspan");
    let podspan = after
        .nth(1)
        .map_or(env!("CARGO_BIN_EXE_podspan"), |word| word);
    let mut bench = Bench::new(podspan.into());
    bench.untested();
    std::thread::scope(|scope| {
        let (sender, netns) = channel();
        let (pace, asked) = channel();
        let podspan = bench.podspan.clone();
        let second = scope.spawn(move || second(&podspan, sender, asked));
        let agent = bench.tested(&netns.recv().unwrap(), &pace);
        // It asks the agent until then.
        drop(pace);
        second.join().unwrap();
        drop(agent);
    });
    if words.iter().any(|word| word == "--write") {
        page::fill(&[("nodes", bench.table)]).unwrap();
    }
}

/// The first node, the API, and what was measured.
struct Bench {
    machine: Machine,
    plane: Plane,
    podspan: PathBuf,
    renewals: u32,
    table: String,
}

impl Bench {
    /// All Nodes are in the API.
    fn new(podspan: PathBuf) -> Self {
        let machine = Machine::new();
        machine.ns.ip("link set lo up");
        let plane = Plane::start("172.16.0.1");
        plane.configure(&machine, "");
        plane.create_all("/api/v1/nodes", (1..=NODES).map(node));
        let mut bench = Self {
            machine,
            plane,
            podspan,
            renewals: 0,
            table: String::new(),
        };
        bench.row("what", "figure", "aim");
        bench.row("---", "---", "---");
        let bytes = bench.plane.node("node77").to_string().len();
        bench.row("a Node as JSON", &format!("{bytes} bytes"), "");
        bench
    }

    fn row(&mut self, what: &str, figure: &str, aim: &str) {
        let row = format!("| {what} | {figure} | {aim} |");
        println!("{row}");
        self.table += &(row + "\n");
    }

    fn memory(&mut self, agent: &Agent, when: &str) {
        let mib = |key: &str| agent.kib(key) / 1024.0;
        let figure = format!(
            "{:.1}, {:.1}, {:.1} MiB",
            mib("VmRSS:"),
            mib("VmHWM:"),
            mib("RssFile:")
        );
        let what = format!(
            "resident memory {when}: now, at the most since the start, of which the executable's pages"
        );
        self.row(&what, &figure, "25 MiB");
    }

    /// The agent without its self-test.
    fn untested(&mut self) {
        let routes = Routes::follow();
        let begin = Instant::now();
        let agent = Agent::start(&self.machine, &self.podspan);
        routes.until(|seen| seen == 2 * (NODES as usize - 1));
        self.row(
            "first sync: from the start of the process until 9,998 routes are there",
            &format!("{:.2} s", begin.elapsed().as_secs_f64()),
            "3 s",
        );
        std::thread::sleep(Duration::from_secs(15));
        self.memory(&agent, "after the first sync");

        let before = self.plane.requests().len();
        let mut times = changes(&self.plane, &routes);
        times.sort();
        let at =
            |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        self.row(
            "a Node's change, from the request to the API until the kernel tells of the route: median, p99, most of 200",
            &format!("{:.0}, {:.0}, {:.0} ms", at(0.5), at(0.99), at(1.0)),
            "100, 500 ms",
        );

        let idle = cpu(&agent, || std::thread::sleep(WATCHED));
        self.row("CPU, nothing happens", &of_a_core(idle), "");
        let renewed = cpu(&agent, || renew(&self.plane, &mut self.renewals));
        let what = "CPU, all Nodes renew their status every 5 minutes";
        self.row(what, &of_a_core(renewed), "1 %");
        self.memory(&agent, "after all that");
        let asked = self.plane.requests();
        let asked = asked[before..].iter();
        let beside = asked.filter(|request| !request.starts_with("watch "));
        let what = "requests beside the watch in that time";
        self.row(what, &beside.count().to_string(), "none");
    }

    /// The same agent with its self-test: in its first round, which goes faster than all that follow.
    fn tested(&mut self, second: &Netns, pace: &Sender<Duration>) -> Agent {
        let machine = &self.machine;
        let there = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            second.as_fd().as_raw_fd()
        );
        // For a packet from the gateway the kernel asks for the next hop's neighbour from a link-local address of the device, or
        // not at all.
        machine.ns.ip("addr add fe80::1/64 dev eth0 nodad");
        machine.ns.ip(&format!(
            "link add second0 master eth0 up type veth peer name second0 netns {there}"
        ));
        lead_tests_to_the_second();
        let config = std::fs::read_to_string(machine.path("agent.toml")).unwrap();
        let config = config.replace("probe = false\nlisten = \"off\"\n", "");
        std::fs::write(machine.path("agent.toml"), config).unwrap();
        let agent = Agent::start(machine, &self.podspan);
        // What was tested while the other agent had not begun yet is over by then.
        std::thread::sleep(Duration::from_secs(60));
        for (when, pause) in ASKED {
            pace.send(pause).unwrap();
            let (passed, failed) = tests();
            let with = cpu(&agent, || renew(&self.plane, &mut self.renewals));
            let (now, still) = tests();
            assert_eq!(failed, still, "tests that did not pass");
            let what = format!(
                "CPU, the same with the self-test {when}: {:.1} tests of ways a second pass, and {:.1} of other nodes are answered",
                (now - passed) / WATCHED.as_secs_f64(),
                1.0 / pause.as_secs_f64()
            );
            self.row(&what, &of_a_core(with), "1 %");
            self.memory(&agent, "then");
        }
        agent
    }
}

fn of_a_core(percent: f64) -> String {
    format!("{percent:.2} % of a core")
}

/// The second node, on the segment of the first, which it tests with that pause between, as long as it is told one.
fn second(podspan: &PathBuf, ready: Sender<Netns>, asked: Receiver<Duration>) {
    let machine = Machine::new();
    machine.ns.ip("addr flush dev eth0");
    for n in SECOND {
        machine
            .ns
            .ip(&format!("addr add {}/16 dev eth0", address(n)));
        machine
            .ns
            .ip(&format!("addr add fd00:172::{n:x}/64 dev eth0 nodad"));
    }
    machine.ns.ip("addr add fe80::2/64 dev eth0 nodad");
    let (first, subnets) = (SECOND.start, SECOND.flat_map(pod_cidrs));
    let second = format!(
        "[[nodes]]\nname = \"node2\"\naddresses = [\"{}\", \"fd00:172::{first:x}\"]\npod_cidrs = {:?}\n",
        address(first),
        subnets.collect::<Vec<_>>()
    );
    machine.nodes(&(machine::entry(1) + &second));
    machine.configure("listen = \"off\"\n");
    let config = std::fs::read_to_string(machine.path("agent.toml")).unwrap();
    let config = config.replace("node = \"node1\"", "node = \"node2\"");
    std::fs::write(machine.path("agent.toml"), config).unwrap();
    ready.send(Netns::current().unwrap()).unwrap();
    // The link is there when the first node has made it.
    machine.until("linked", || {
        machine.ns.ip("link show").to_string().contains("second0")
    });
    machine.ns.ip("link set second0 master eth0 up");
    let _agent = Agent::start(&machine, podspan);
    let mut gateways = [("10.0.1.1", 1448), ("fd00:10:1::1", 1428)].iter().cycle();
    let Ok(mut pause) = asked.recv() else {
        return;
    };
    loop {
        match asked.recv_timeout(pause) {
            Ok(other) => pause = other,
            Err(RecvTimeoutError::Timeout) => ask(gateways.next().unwrap()),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Tests a way as another node's agent does, and finds it right.
fn ask((gateway, segment): &(&str, u16)) {
    let mut stream = TcpStream::connect((*gateway, PORT)).unwrap();
    stream.set_nodelay(true).unwrap();
    let number = (segment + 2).to_be_bytes();
    let packet = vec![0; usize::from(*segment)];
    stream.write_all(&number).unwrap();
    stream.write_all(&packet).unwrap();
    let mut back = vec![0; 2 + number.len() + packet.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back[2..4], number);
}

/// Every connection to where agents answer goes to one of the second node's gateways.
fn lead_tests_to_the_second() {
    let count = SECOND.len();
    let turns = |gateway: fn(u32) -> String| {
        let numbered = SECOND.map(gateway).enumerate();
        let turns: Vec<_> = numbered.map(|(n, ip)| format!("{n} : {ip}")).collect();
        turns.join(", ")
    };
    let ipv4 = turns(|n| format!("10.0.{n}.1"));
    let ipv6 = turns(|n| format!("fd00:10:{n:x}::1"));
    let rules = format!(
        "add table inet bench
         add chain inet bench out {{ type nat hook output priority -100; }}
         add rule inet bench out meta nfproto ipv4 tcp dport {PORT} dnat ip to numgen inc mod {count} map {{ {ipv4} }}
         add rule inet bench out meta nfproto ipv6 tcp dport {PORT} dnat ip6 to numgen inc mod {count} map {{ {ipv6} }}"
    );
    let status = Command::new("nft").arg(rules).status().unwrap();
    assert!(status.success());
}

/// How many tests of ways the agent here has made that passed, and that did not.
fn tests() -> (f64, f64) {
    let mut stream = TcpStream::connect("127.0.0.1:9470").unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (mut passed, mut failed) = (0.0, 0.0);
    for line in answer.lines() {
        let Some(test) = line.strip_prefix("podspan_probe_tests_total{outcome=\"") else {
            continue;
        };
        let (outcome, count) = test.split_once("\"} ").unwrap();
        let sum = match outcome {
            "passes" => &mut passed,
            _ => &mut failed,
        };
        *sum += count.parse::<f64>().unwrap();
    }
    (passed, failed)
}

/// A Node as kubelets make them: 50 images, the usual conditions, labels and annotations.
fn node(n: u32) -> Value {
    let pod_cidrs = pod_cidrs(n);
    let name = format!("node{n}");
    let image = |i: u32| {
        json!({
            "names": [
                format!("registry.example.com/team-{i}/application-{i}@sha256:{:064x}", u64::from(i) * 7919),
                format!("registry.example.com/team-{i}/application-{i}:v1.{i}.0"),
            ],
            "sizeBytes": 12_345_678 + i,
        })
    };
    json!({
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": "zone-a", "node.kubernetes.io/instance-type": "m5.4xlarge",
            },
            "annotations": {
                "node.alpha.kubernetes.io/ttl": "0",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                "csi.volume.kubernetes.io/nodeid": format!("{{\"ebs.csi.example.com\":\"i-{n:017x}\"}}"),
            },
        },
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs, "providerID": format!("example:///zone-a/i-{n:017x}")},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address(n)}, {"type": "InternalIP", "address": format!("fd00:172::{n:x}")},
                {"type": "Hostname", "address": name},
            ],
            "capacity": {"cpu": "16", "memory": "65806460Ki", "pods": "110", "ephemeral-storage": "104845292Ki", "hugepages-2Mi": "0"},
            "allocatable": {"cpu": "15890m", "memory": "60575868Ki", "pods": "110", "ephemeral-storage": "95551679124", "hugepages-2Mi": "0"},
            "conditions": conditions(0),
            "nodeInfo": {
                "machineID": format!("{n:032x}"), "systemUUID": format!("{n:032x}"), "bootID": format!("{n:032x}"),
                "kernelVersion": "6.18.0", "osImage": "Debian GNU/Linux 13 (trixie)", "containerRuntimeVersion": "containerd://2.1.4",
                "kubeletVersion": "v1.36.3", "kubeProxyVersion": "v1.36.3", "operatingSystem": "linux", "architecture": "amd64",
            },
            "images": (0..50).map(image).collect::<Vec<_>>(),
        },
    })
}

fn conditions(minute: u32) -> Value {
    let beat = format!("2026-11-24T{:02}:{:02}:00Z", minute / 60 % 24, minute % 60);
    let kinds = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
    let one = |kind: &str| {
        json!({
            "type": kind, "status": if kind == "Ready" { "True" } else { "False" }, "reason": "KubeletIsWell",
            "message": "kubelet is posting ready status", "lastHeartbeatTime": beat, "lastTransitionTime": "2026-11-24T00:00:00Z",
        })
    };
    kinds.map(one).into_iter().collect()
}

/// The Nodes renew their status, one after the other, at the pace of all kubelets; goes on where the last time ended, for what is
/// the same as before is nothing new to anybody.
fn renew(plane: &Plane, count: &mut u32) {
    let (begin, first) = (Instant::now(), *count);
    let version = |count| {
        plane.node(&format!("node{}", count % NODES + 1))["metadata"]["resourceVersion"].clone()
    };
    let before = version(first);
    while begin.elapsed() < WATCHED {
        *count += 1;
        let n = (*count - 1) % NODES + 1;
        plane.patch_status(
            &format!("node{n}"),
            &json!({"conditions": conditions(*count)}),
        );
        let next = begin + Duration::from_secs_f64(f64::from(*count - first) / RENEWALS_A_SECOND);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    assert_ne!(version(first), before, "nobody was told of a renewal");
}

/// Moves Nodes to other addresses, and how long each takes.
fn changes(plane: &Plane, routes: &Routes) -> Vec<Duration> {
    let move_one = |round: u32| {
        // The first two may be machines.
        let n = 3 + round * 23 % (NODES - 3);
        let next_hop = format!("172.16.{}.{}", 200 + round % 50, n & 255);
        let addresses = json!({"addresses": [
            {"$patch": "replace"}, {"type": "InternalIP", "address": next_hop},
            {"type": "InternalIP", "address": format!("fd00:172::{n:x}")}, {"type": "Hostname", "address": format!("node{n}")},
        ]});
        let begin = Instant::now();
        plane.patch_status(&format!("node{n}"), &addresses);
        let taken = routes.wait_for(&next_hop).duration_since(begin);
        // Not in step with anything that has a period.
        std::thread::sleep(Duration::from_millis(300 + u64::from(round * 37 % 200)));
        taken
    };
    (0..CHANGES).map(move_one).collect()
}

struct Agent(Child);

impl Agent {
    fn start(machine: &Machine, podspan: &PathBuf) -> Self {
        let log = std::fs::File::create(machine.path("log")).unwrap();
        let mut command = Command::new(podspan);
        command
            .args(["agent", "--config"])
            .arg(machine.path("agent.toml"))
            .stderr(log);
        Self(command.spawn().unwrap())
    }

    fn kib(&self, key: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn cpu_ticks(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let fields: Vec<_> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        // utime and stime: fields 14 and 15 of proc_pid_stat(5), of which two are before the bracket.
        [11, 12]
            .iter()
            .map(|field| fields[*field].parse::<f64>().unwrap())
            .sum()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Percent of a core.
fn cpu(agent: &Agent, meanwhile: impl FnOnce()) -> f64 {
    let (begin, ticks) = (Instant::now(), agent.cpu_ticks());
    meanwhile();
    // A tick is a hundredth of a second (USER_HZ).
    (agent.cpu_ticks() - ticks) / begin.elapsed().as_secs_f64()
}

/// What the kernel tells of our routes, as it happens.
struct Routes {
    monitor: Child,
    seen: Receiver<(Instant, String)>,
}

impl Routes {
    fn follow() -> Self {
        let mut monitor = Command::new("ip")
            // All of the first sync may have to wait.
            .args(["-rcvbuf", "4194304", "monitor", "route"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
        let (sender, seen) = channel();
        std::thread::spawn(move || {
            for line in lines
                .map_while(Result::ok)
                .filter(|line| line.contains("proto 112"))
            {
                let _ = sender.send((Instant::now(), line));
            }
        });
        // Subscribed before anything happens.
        std::thread::sleep(Duration::from_millis(500));
        Self { monitor, seen }
    }

    fn until(&self, so: impl Fn(usize) -> bool) {
        let mut seen = 0;
        while !so(seen) {
            self.seen.recv_timeout(Duration::from_secs(120)).unwrap();
            seen += 1;
        }
    }

    fn wait_for(&self, next_hop: &str) -> Instant {
        loop {
            let (at, line) = self.seen.recv_timeout(Duration::from_secs(30)).unwrap();
            if line.contains(&format!("via {next_hop} ")) {
                return at;
            }
        }
    }
}

impl Drop for Routes {
    fn drop(&mut self) {
        let _ = self.monitor.kill();
        let _ = self.monitor.wait();
    }
}
