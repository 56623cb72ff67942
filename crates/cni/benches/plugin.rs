//! `make bench`: the plugin against the reference plugins of Debian, whole processes, interleaved in one run.
//!
//! Nothing is asserted about time: it prints medians, 99th percentiles and ratios, and a person judges. Both write their
//! addresses to the same tmpfs, have the same configuration, and begin with a pod's empty network namespace.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Node, Pod, run};
use podspan_cni::ipam::{Ipam, IpamConfig, boot_id};
use serde_json::{Value, json};

/// Rounds, each of which runs every contestant once.
const ROUNDS: usize = 200;
/// Rounds before those, which warm caches and are not counted.
const WARM_UP: usize = 5;
/// After each round.
const PAUSE: Duration = Duration::from_millis(150);
/// How many addresses are taken in the full range.
const TAKEN: usize = 5000;
/// Where Debian puts the reference plugins.
const REFERENCE: &str = "/usr/lib/cni";

/// One plugin with one configuration, and what its commands took.
struct Contestant {
    name: &'static str,
    plugin: PathBuf,
    conf: Value,
    add: Vec<Duration>,
    del: Vec<Duration>,
    version: Vec<Duration>,
}

fn main() {
    // `cargo test --benches` must not measure.
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let plugin = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bin/podspan-cni");
    let reference = Path::new(REFERENCE).join("bridge");
    for (path, mend) in [
        (&plugin, "make build"),
        (&reference, "apt-get install containernetworking-plugins"),
    ] {
        assert!(path.exists(), "{} is missing: {mend}", path.display());
    }
    let node = Node::new();
    let shm = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut contestants = contestants(shm.path(), &plugin, &reference);
    for round in 0..ROUNDS + WARM_UP {
        // Namespaces are torn down in the background, which holds others up: they live until the round is over, and then
        // there is a pause. Each round begins with another contestant.
        let pods: Vec<_> = contestants.iter().map(|_| Pod::new()).collect();
        let count = contestants.len();
        for number in 0..count {
            let turn = (number + round) % count;
            contestants[turn].run(&node, &pods[turn], (round, round >= WARM_UP));
        }
        drop(pods);
        std::thread::sleep(PAUSE);
    }
    report(&contestants);
}

fn contestants(shm: &Path, plugin: &Path, reference: &Path) -> Vec<Contestant> {
    let v4 = json!([[{"subnet": "10.1.0.0/16"}]]);
    let dual = json!([[{"subnet": "10.2.0.0/16"}], [{"subnet": "fd00:2::/64"}]]);
    let conf = |name: &str, bridge: &str, ranges: &Value| {
        json!({
            "cniVersion": "1.0.0", "name": name, "bridge": bridge, "isDefaultGateway": true, "hairpinMode": true,
            "ipam": {"type": "host-local", "dataDir": shm, "ranges": ranges},
        })
    };
    let contestant = |name, plugin: &Path, conf| Contestant {
        name,
        plugin: plugin.to_owned(),
        conf,
        add: Vec::new(),
        del: Vec::new(),
        version: Vec::new(),
    };
    let full = json!([[{"subnet": "10.3.0.0/16"}]]);
    let (ours_full, theirs_full) = (
        conf("ours-full", "b4", &full),
        conf("theirs-full", "b5", &full),
    );
    fill(&ours_full);
    fill_as_host_local(&shm.join("theirs-full"));
    vec![
        contestant("podspan-cni, IPv4", plugin, conf("ours-v4", "b0", &v4)),
        contestant("reference, IPv4", reference, conf("theirs-v4", "b1", &v4)),
        contestant(
            "podspan-cni, dual stack",
            plugin,
            conf("ours-dual", "b2", &dual),
        ),
        contestant(
            "reference, dual stack",
            reference,
            conf("theirs-dual", "b3", &dual),
        ),
        contestant("podspan-cni, IPv4, 5,000 taken", plugin, ours_full),
        contestant("reference, IPv4, 5,000 taken", reference, theirs_full),
    ]
}

/// Takes addresses as that many ADDs would.
fn fill(conf: &Value) {
    let config = IpamConfig::from_json(&conf["ipam"], "/run/podspan/ipam").unwrap();
    let network = conf["name"].as_str().unwrap().parse().unwrap();
    let ipam = Ipam::open(&config, &network, &boot_id().unwrap()).unwrap();
    for number in 0..TAKEN {
        let container = format!("taken{number}").parse().unwrap();
        let ifname = "eth0".parse().unwrap();
        ipam.allocate(&podspan_cni::attachment::AttachmentId { container, ifname })
            .unwrap();
    }
}

/// The same in the way of host-local.
fn fill_as_host_local(dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    let address = |number: usize| std::net::Ipv4Addr::from_bits(0x0a03_0002 + number as u32);
    for number in 0..TAKEN {
        std::fs::write(
            dir.join(address(number).to_string()),
            format!("taken{number}\r\neth0"),
        )
        .unwrap();
    }
    std::fs::write(
        dir.join("last_reserved_ip.0"),
        address(TAKEN - 1).to_string(),
    )
    .unwrap();
}

impl Contestant {
    fn run(&mut self, node: &Node, pod: &Pod, (round, counts): (usize, bool)) {
        let container = format!("bench{round}");
        let timed = |command: &str| {
            let mut process = Command::new(&self.plugin);
            let template = node.command(&[], command, &container);
            let variables = template
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?)));
            process
                .env_clear()
                .envs(variables)
                .env("CNI_PATH", REFERENCE)
                .env("CNI_NETNS", pod.path());
            for stream in [Command::stdin, Command::stdout, Command::stderr] {
                stream(&mut process, std::process::Stdio::piped());
            }
            let start = Instant::now();
            let answer = run(&mut process, &self.conf);
            let took = start.elapsed();
            assert!(answer.ok, "{} {command}: {:#}", self.name, answer.json);
            took
        };
        let (add, del) = (timed("ADD"), timed("DEL"));
        // What starting the process costs by itself.
        let version = timed("VERSION");
        if counts {
            self.version.push(version);
            self.add.push(add);
            self.del.push(del);
        }
    }
}

fn report(contestants: &[Contestant]) {
    println!("{ROUNDS} rounds, interleaved; whole process, milliseconds");
    println!(
        "{:32} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "", "ADD median", "ADD p99", "DEL median", "DEL p99", "VERSION"
    );
    for contestant in contestants {
        let [add, del, version] =
            [&contestant.add, &contestant.del, &contestant.version].map(|times| sorted(times));
        println!(
            "{:32} {:>10.2} {:>10.2} {:>10.2} {:>10.2} {:>10.2}",
            contestant.name,
            at(&add, 0.5),
            at(&add, 0.99),
            at(&del, 0.5),
            at(&del, 0.99),
            at(&version, 0.5)
        );
    }
    println!("\nratios, median of the ratios of each round");
    let pairs = [
        (1, 0, "reference to podspan-cni, IPv4"),
        (3, 2, "reference to podspan-cni, dual stack"),
    ];
    let full = [
        (5, 4, "reference to podspan-cni, IPv4, 5,000 taken"),
        (4, 0, "podspan-cni, 5,000 taken to empty range"),
        (5, 1, "reference, 5,000 taken to empty range"),
    ];
    for (slow, fast, what) in pairs.into_iter().chain(full) {
        let ratio = |times: fn(&Contestant) -> &Vec<Duration>| {
            let pairs = times(&contestants[slow])
                .iter()
                .zip(times(&contestants[fast]));
            let mut ratios: Vec<_> = pairs
                .map(|(a, b)| a.as_secs_f64() / b.as_secs_f64())
                .collect();
            ratios.sort_by(f64::total_cmp);
            at(&ratios, 0.5)
        };
        println!(
            "{what:48} ADD {:>6.2}  DEL {:>6.2}",
            ratio(|c| &c.add),
            ratio(|c| &c.del)
        );
    }
}

/// In milliseconds, the shortest first.
fn sorted(times: &[Duration]) -> Vec<f64> {
    let mut times: Vec<_> = times
        .iter()
        .map(|time| time.as_secs_f64() * 1000.0)
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// The value at that part of a sorted list.
fn at(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}
