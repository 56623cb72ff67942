//! A storm: parallel ADD, CHECK, DEL and GC, a good part of them killed, on networks that are too small.
//!
//! All the time a watcher looks into the pods' namespaces themselves: an address that two of them have ends the test.
//! Afterwards nothing may be left, and every address of every range must be there to be taken again, once.
//! It is as long as `PODSPAN_STORM_SECONDS` says, 15 seconds otherwise: `PODSPAN_STORM_SECONDS=600 cargo test -p podspan-cni
//! --test storm -- --nocapture` is the storm of ten minutes, to be run before a release.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::{Duration, Instant};

use harness::{Node, Pod, run_within};
use podspan_cni::attachment::AttachmentId;
use podspan_cni::ipam::{Ipam, IpamConfig, IpamError, boot_id};
use podspan_kernel::Netlink;
use serde_json::{Value, json};

/// Each works on pods of its own: a runtime never runs two commands for one container at a time.
const WORKERS: usize = 6;
const PODS_OF_A_WORKER: usize = 2;
/// The pods' interfaces. Each is on a network of its own.
const IFNAMES: [&str; 2] = ["eth0", "net1"];
/// No command takes so long; one that does hangs.
const HANG: Duration = Duration::from_secs(30);
/// `IpamError::Exhausted`, by `docs/podspan-cni.md`.
const EXHAUSTED: u64 = 101;
/// The attachment is there already.
const ATTACHED: u64 = 102;

/// Network name, bridge, ranges. The first two share a bridge; five, eight and six addresses for eight pods each.
const NETWORKS: [(&str, &str, &[&str]); 3] = [
    ("alpha", "podspan0", &["10.244.1.0/29", "fd00:a::/125"]),
    ("beta", "podspan0", &["10.244.2.0/28", "fd00:b::/125"]),
    ("gamma", "other0", &["fd00:c::/125"]),
];

/// A pod's namespace with the watcher's socket in it.
struct Home {
    pod: Pod,
    socket: Mutex<Netlink>,
}

impl Home {
    fn new() -> Arc<Self> {
        let pod = Pod::new();
        let socket = Mutex::new(pod.run(|| Netlink::open().unwrap()));
        Arc::new(Self { pod, socket })
    }
}

/// What a worker knows of an attachment.
enum State {
    Empty,
    /// With what ADD answered.
    Attached(Value),
    /// A command for it was killed.
    Unknown,
}

/// A container that its runtime forgot, for GC to find.
struct Abandoned {
    container: String,
    /// Its namespace may live on, with everything in it.
    home: Option<Arc<Home>>,
}

#[derive(Default)]
struct Tally {
    done: Mutex<BTreeMap<String, u64>>,
    /// The longest that was not killed, by command.
    longest: Mutex<BTreeMap<String, Duration>>,
    looks: AtomicU64,
    addresses_seen: AtomicU64,
}

impl Tally {
    fn count(&self, what: &str) {
        *self
            .done
            .lock()
            .unwrap()
            .entry(what.to_owned())
            .or_default() += 1;
    }
}

struct Storm {
    node: Node,
    confs: Vec<Value>,
    over: AtomicBool,
    /// The containers that the runtime knows. GC holds it for reading: a container that is not on its list is not born
    /// meanwhile, as the protocol asks; those on the list live on as they like.
    live: RwLock<BTreeSet<String>>,
    abandoned: Mutex<Vec<Abandoned>>,
    homes: Mutex<Vec<Weak<Home>>>,
    /// From the answer of an ADD until just before the DEL.
    claims: Mutex<HashMap<IpAddr, String>>,
    tally: Tally,
}

/// Numbers that look random: xorshift (Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// True in so many of a hundred cases.
    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// When a kill comes: anywhere in the life of a command.
    fn moment(&mut self) -> Duration {
        Duration::from_micros(self.below(8_000))
    }
}

impl Storm {
    fn new() -> Self {
        let node = Node::new();
        let conf = |(name, bridge, ranges): &(&str, &str, &[&str])| {
            let sets: Vec<_> = ranges
                .iter()
                .map(|range| json!([{"subnet": range}]))
                .collect();
            let ipam = json!({"dataDir": node.data.path(), "ranges": sets});
            let masquerade = *name != "beta";
            // Nobody opens the pods: each ADD waits as long as it may.
            let policy = match *name {
                "alpha" => json!({"waitMilliseconds": 5}),
                _ => Value::Null,
            };
            node.conf(json!({
                "name": name, "bridge": bridge, "ipam": ipam, "ipMasq": masquerade, "policy": policy}))
        };
        Self {
            confs: NETWORKS.iter().map(conf).collect(),
            node,
            over: AtomicBool::new(false),
            live: RwLock::default(),
            abandoned: Mutex::default(),
            homes: Mutex::default(),
            claims: Mutex::default(),
            tally: Tally::default(),
        }
    }

    fn home(&self) -> Arc<Home> {
        let home = Home::new();
        self.homes.lock().unwrap().push(Arc::downgrade(&home));
        home
    }

    /// Runs the command, killed after `kill` if that is sooner than its end. None when it was.
    fn run(&self, mut process: Command, conf: &Value, kill: Option<Duration>) -> Option<Answer> {
        let name = process
            .get_envs()
            .find(|(key, _)| *key == "CNI_COMMAND")
            .and_then(|(_, value)| value?.to_str())
            .unwrap()
            .to_owned();
        let start = Instant::now();
        let output = run_within(kill.unwrap_or(HANG), &mut process, conf);
        let took = start.elapsed();
        let killed = output.status.signal() == Some(9);
        assert!(!killed || kill.is_some(), "{name} hung: {conf}");
        if !killed {
            let mut longest = self.tally.longest.lock().unwrap();
            let known = longest.entry(name.clone()).or_default();
            *known = took.max(*known);
        }
        self.tally.count(&match killed {
            true => format!("{name} killed"),
            false => name,
        });
        (!killed).then(|| Answer::of(&output))
    }

    fn data(&self, network: usize) -> PathBuf {
        self.node.data.path().join(NETWORKS[network].0)
    }

    /// Two pods were told the same address at the same time.
    fn claim(&self, added: &Value, owner: &str) {
        let mut claims = self.claims.lock().unwrap();
        for ip in ips(added) {
            let other = claims.insert(ip, owner.to_owned());
            assert_eq!(other, None, "{ip} was given to {owner} too");
        }
    }

    fn disclaim(&self, added: &Value) {
        let mut claims = self.claims.lock().unwrap();
        ips(added).for_each(|ip| _ = claims.remove(&ip));
    }
}

struct Answer {
    ok: bool,
    json: Value,
}

impl Answer {
    /// Exit code and standard output say the same, and nothing panicked.
    fn of(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!text.contains("panicked"), "{text}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let ok = output.status.success();
        assert!(
            ok || json["code"].is_u64() && json["msg"].is_string(),
            "{output:?}"
        );
        Self { ok, json }
    }

    fn code(&self) -> Option<u64> {
        self.json["code"].as_u64()
    }
}

fn ips(added: &Value) -> impl Iterator<Item = IpAddr> {
    let list = added["ips"].as_array().expect("ADD answers with addresses");
    list.iter().map(|ip| {
        let text = ip["address"].as_str().unwrap();
        text.split('/').next().unwrap().parse().unwrap()
    })
}

/// One container of a worker, on two networks.
struct Container<'a> {
    storm: &'a Storm,
    name: String,
    home: Option<Arc<Home>>,
    attachments: Vec<(usize, &'static str, State)>,
}

impl<'a> Container<'a> {
    fn born(storm: &'a Storm, networks: &[usize], dice: &mut Dice) -> Self {
        let name = format!("c{:x}", dice.below(u64::MAX));
        storm.live.write().unwrap().insert(name.clone());
        let empty = |(network, ifname): (&usize, &'static str)| (*network, ifname, State::Empty);
        Self {
            storm,
            name,
            home: Some(storm.home()),
            attachments: networks.iter().zip(IFNAMES).map(empty).collect(),
        }
    }

    fn command(&self, command: &str, index: usize) -> Command {
        let mut process = self.storm.node.command(&[], command, &self.name);
        process.env("CNI_IFNAME", self.attachments[index].1);
        let pod = format!("K8S_POD_NAMESPACE=storm;K8S_POD_NAME={}", self.name);
        process.env("CNI_ARGS", pod);
        if let Some(home) = &self.home {
            process.env("CNI_NETNS", home.pod.path());
        }
        process
    }

    fn run(&self, command: &str, index: usize, kill: Option<Duration>) -> Option<Answer> {
        let (network, ifname, state) = &self.attachments[index];
        let mut conf = self.storm.confs[*network].clone();
        // A namespace has one default route.
        conf["isGateway"] = true.into();
        conf["isDefaultGateway"] = (*ifname == IFNAMES[0]).into();
        if let State::Attached(added) = state {
            conf["prevResult"] = added.clone();
        }
        self.storm.run(self.command(command, index), &conf, kill)
    }

    /// Something happens to one of the attachments.
    fn step(&mut self, dice: &mut Dice) {
        let index = dice.below(self.attachments.len() as u64) as usize;
        if self.home.is_none() {
            // The namespace is gone: all that a runtime does now is DEL, and then a new namespace.
            for index in 0..self.attachments.len() {
                self.del(index, None);
            }
            self.home = Some(self.storm.home());
            return;
        }
        match &self.attachments[index].2 {
            State::Empty if dice.percent(5) => self.del(index, None),
            State::Empty => {
                let kill = dice.percent(25).then(|| dice.moment());
                self.add(index, kill);
            }
            State::Attached(_) if dice.percent(40) => self.check(index),
            State::Attached(_) if dice.percent(8) => self.add_twice(index),
            State::Attached(_) if dice.percent(5) => {
                self.storm.tally.count("namespace gone");
                self.home = None;
            }
            State::Attached(_) | State::Unknown => {
                let kill = dice.percent(25).then(|| dice.moment());
                self.del(index, kill);
            }
        }
    }

    fn add(&mut self, index: usize, kill: Option<Duration>) {
        let answer = self.run("ADD", index, kill);
        self.attachments[index].2 = match answer {
            None => State::Unknown,
            Some(answer) if answer.ok => {
                self.storm.claim(&answer.json, &self.name);
                State::Attached(answer.json)
            }
            Some(answer) => {
                assert_eq!(answer.code(), Some(EXHAUSTED), "ADD: {}", answer.json);
                self.storm.tally.count("ADD of an exhausted range");
                // It left nothing: the next ADD may come without a DEL.
                State::Empty
            }
        };
    }

    fn check(&self, index: usize) {
        let answer = self.run("CHECK", index, None).unwrap();
        assert!(answer.ok, "CHECK: {}", answer.json);
    }

    fn add_twice(&self, index: usize) {
        let again = self.run("ADD", index, None).unwrap();
        assert_eq!(again.code(), Some(ATTACHED), "a second ADD: {}", again.json);
        self.storm.tally.count("ADD of what is attached");
        self.check(index);
    }

    fn del(&mut self, index: usize, kill: Option<Duration>) {
        if let State::Attached(added) = &self.attachments[index].2 {
            self.storm.disclaim(added);
        }
        let answer = self.run("DEL", index, kill);
        self.attachments[index].2 = match answer {
            None => State::Unknown,
            Some(answer) => {
                assert!(answer.ok, "DEL: {}", answer.json);
                State::Empty
            }
        };
    }

    /// The runtime forgets it, whatever it was doing.
    fn abandon(self, dice: &mut Dice) {
        for (_, _, state) in &self.attachments {
            if let State::Attached(added) = state {
                self.storm.disclaim(added);
            }
        }
        self.storm.tally.count("abandoned");
        self.storm.live.write().unwrap().remove(&self.name);
        self.storm.abandoned.lock().unwrap().push(Abandoned {
            container: self.name,
            home: self.home.filter(|_| dice.percent(50)),
        });
    }
}

fn work(storm: &Storm, number: usize) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ (number as u64 + 1).wrapping_mul(0xff51_afd7));
    let networks = |pod: usize| {
        [
            (number + pod) % NETWORKS.len(),
            (number + pod + 1) % NETWORKS.len(),
        ]
    };
    let mut containers: Vec<_> = (0..PODS_OF_A_WORKER)
        .map(|pod| Container::born(storm, &networks(pod), &mut dice))
        .collect();
    while !storm.over.load(Relaxed) {
        let pod = dice.below(PODS_OF_A_WORKER as u64) as usize;
        if dice.percent(2) {
            let next = Container::born(storm, &networks(pod), &mut dice);
            std::mem::replace(&mut containers[pod], next).abandon(&mut dice);
        }
        containers[pod].step(&mut dice);
    }
    for mut container in containers {
        for index in 0..container.attachments.len() {
            container.del(index, None);
        }
    }
}

/// GC beside all of that. Its list has every container that may be in flight.
fn collect(storm: &Storm) {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    while !storm.over.load(Relaxed) {
        std::thread::sleep(Duration::from_millis(200));
        // Whatever was abandoned before the list was made must be gone after it.
        let gone = std::mem::take(&mut *storm.abandoned.lock().unwrap());
        let live = storm.live.read().unwrap();
        let valid: Vec<_> = live
            .iter()
            .flat_map(|name| IFNAMES.map(|ifname| json!({"containerID": name, "ifname": ifname})))
            .collect();
        let mut killed = false;
        for conf in &storm.confs {
            let mut conf = conf.clone();
            conf["cni.dev/valid-attachments"] = valid.clone().into();
            let kill = dice.percent(30).then(|| dice.moment());
            match storm.run(storm.node.command(&[], "GC", ""), &conf, kill) {
                None => killed = true,
                Some(answer) => assert!(answer.ok, "GC: {}", answer.json),
            }
        }
        drop(live);
        if killed {
            storm.abandoned.lock().unwrap().extend(gone);
            continue;
        }
        let left = aliases(storm);
        for abandoned in gone {
            let name = &abandoned.container;
            let alias = left
                .iter()
                .find(|alias| alias.contains(&format!("/{name}/")));
            assert_eq!(alias, None, "GC left a link of {name}");
            for (network, ifname) in (0..NETWORKS.len()).flat_map(|n| IFNAMES.map(|i| (n, i))) {
                let record = storm
                    .data(network)
                    .join(format!("attachments/{name}:{ifname}"));
                assert!(!record.exists(), "GC left {}", record.display());
            }
            if let Some(home) = &abandoned.home {
                assert_eq!(
                    by_ip(home),
                    [],
                    "GC left addresses in the namespace of {name}"
                );
            }
            storm.tally.count("abandoned and collected");
        }
    }
}

/// The aliases of all links of the node.
fn aliases(storm: &Storm) -> Vec<String> {
    let links = storm.node.ns.ip("link show");
    let alias = |link: &Value| link["ifalias"].as_str().map(str::to_owned);
    links.as_array().unwrap().iter().filter_map(alias).collect()
}

/// No address is in two namespaces at once.
fn watch(storm: &Storm) {
    for round in 0_u64.. {
        if storm.over.load(Relaxed) {
            return;
        }
        // `ip` is the witness that counts; the socket is the one that is quick.
        look(storm, if round % 200 == 0 { by_ip } else { by_socket });
        storm.tally.looks.fetch_add(1, Relaxed);
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn look(storm: &Storm, addresses: fn(&Home) -> Vec<(IpAddr, u64)>) {
    let homes = {
        let mut homes = storm.homes.lock().unwrap();
        homes.retain(|home| home.strong_count() > 0);
        homes.clone()
    };
    let mut seen: HashMap<IpAddr, (Arc<Home>, u64)> = HashMap::new();
    for home in homes.iter().filter_map(Weak::upgrade) {
        for (ip, link) in addresses(&home) {
            storm.tally.addresses_seen.fetch_add(1, Relaxed);
            let Some((other, its_link)) = seen.insert(ip, (home.clone(), link)) else {
                continue;
            };
            // It may have moved while we looked. A link's number is not used again, and no address comes back to a link:
            // if the first still has it, it had it all the time.
            assert!(
                !addresses(&other).contains(&(ip, its_link)),
                "{ip} is in two namespaces: {} and {}",
                other.pod.path().display(),
                home.pod.path().display()
            );
        }
    }
}

/// The addresses in the namespace with their links' numbers.
fn by_socket(home: &Home) -> Vec<(IpAddr, u64)> {
    let listed = home.socket.lock().unwrap().list_addresses().unwrap();
    let global = listed.into_iter().filter(|address| address.global);
    global
        .map(|address| (address.net.addr(), address.link.into()))
        .collect()
}

fn by_ip(home: &Home) -> Vec<(IpAddr, u64)> {
    let links = home.pod.ip("addr show");
    let mut found = Vec::new();
    for link in links.as_array().unwrap() {
        let of_link = link["addr_info"].as_array().into_iter().flatten();
        for address in of_link.filter(|address| address["scope"] == "global") {
            let ip = address["local"].as_str().unwrap().parse().unwrap();
            found.push((ip, link["ifindex"].as_u64().unwrap()));
        }
    }
    found
}

/// Every address of every range can be taken, each once, as on the first day.
fn assert_all_addresses_are_free(storm: &Storm) {
    for conf in &storm.confs {
        let config = IpamConfig::from_json(&conf["ipam"], "/run/podspan/ipam").unwrap();
        let network = conf["name"].as_str().unwrap().parse().unwrap();
        let ipam = Ipam::open(&config, &network, &boot_id().unwrap()).unwrap();
        let mut taken = BTreeSet::new();
        let exhausted = (0..).find_map(|number| {
            let id = AttachmentId {
                container: format!("after{number}").parse().unwrap(),
                ifname: "eth0".parse().unwrap(),
            };
            let allocated = ipam.allocate(&id);
            for allocation in allocated.as_deref().unwrap_or_default() {
                assert!(
                    taken.insert(allocation.address),
                    "{} twice",
                    allocation.address
                );
            }
            allocated.err()
        });
        assert!(
            matches!(exhausted, Some(IpamError::Exhausted { .. })),
            "{exhausted:?}"
        );
        let sets = &config.range_sets;
        let least = sets.iter().map(|set| set.total()).min().unwrap();
        assert_eq!(
            taken.len() as u128,
            least * sets.len() as u128,
            "{network}: {taken:?}"
        );
        ipam.retain(&BTreeSet::new()).unwrap();
    }
}

/// No link, no address file, no record; only the store's own few files.
fn assert_nothing_is_left(storm: &Storm) {
    let links = storm.node.ns.ip("link show");
    let names: BTreeSet<_> = links
        .as_array()
        .unwrap()
        .iter()
        .map(|link| link["ifname"].as_str().unwrap())
        .collect();
    let known = ["foreign0", "lo", "other0", "pod0", "pod1", "podspan0"];
    assert_eq!(names, known.into(), "links");
    for network in 0..NETWORKS.len() {
        let path = storm.data(network);
        let names = |path: PathBuf| -> Vec<String> {
            let files = std::fs::read_dir(path).unwrap();
            files
                .map(|file| file.unwrap().file_name().into_string().unwrap())
                .collect()
        };
        assert_eq!(
            names(path.join("attachments")),
            Vec::<String>::new(),
            "records"
        );
        // A kill may leave the draft of a file (`free.0.new`), which the next draft replaces.
        for name in names(path) {
            let base = name.strip_suffix(".new").unwrap_or(&name);
            let ours = ["attachments", "boot_id", "lock", "free.0", "free.1"];
            assert!(ours.contains(&base), "{name} is left");
        }
    }
    assert_eq!(storm.node.filtered(), Vec::<String>::new());
    storm.node.assert_foreign_survives();
}

#[test]
#[should_panic(expected = "10.244.1.2 is in two namespaces")]
fn the_watcher_sees_an_address_that_two_namespaces_have() {
    let storm = Storm::new();
    let homes = [storm.home(), storm.home()];
    for home in &homes {
        home.pod.ip("addr add 10.244.1.2/29 dev lo scope global");
    }
    look(&storm, by_socket);
}

#[test]
fn in_a_storm_of_commands_and_kills_no_address_has_two_owners_and_nothing_is_left() {
    let seconds = std::env::var("PODSPAN_STORM_SECONDS").ok();
    let seconds = seconds.map_or(15, |text| text.parse().expect("PODSPAN_STORM_SECONDS"));
    let storm = Storm::new();
    let begin = Instant::now();
    std::thread::scope(|scope| {
        /// Ends the storm for all when one fails.
        struct Ending<'a>(&'a AtomicBool);
        impl Drop for Ending<'_> {
            fn drop(&mut self) {
                self.0.store(true, Relaxed);
            }
        }
        let over = &storm.over;
        for number in 0..WORKERS {
            let storm = &storm;
            scope.spawn(move || {
                let _ending = Ending(over);
                work(storm, number);
            });
        }
        for task in [collect, watch] {
            let storm = &storm;
            scope.spawn(move || {
                let _ending = Ending(over);
                task(storm);
            });
        }
        while begin.elapsed() < Duration::from_secs(seconds) && !over.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
        }
        over.store(true, Relaxed);
    });
    let forgotten = std::mem::take(&mut *storm.abandoned.lock().unwrap());
    for (abandoned, ifname) in forgotten.iter().flat_map(|a| IFNAMES.map(|i| (a, i))) {
        for conf in &storm.confs {
            let mut process = storm.node.command(&[], "DEL", &abandoned.container);
            process.env("CNI_IFNAME", ifname);
            let answer = storm.run(process, conf, None).unwrap();
            assert!(answer.ok, "{}", answer.json);
        }
    }
    assert_nothing_is_left(&storm);
    assert_all_addresses_are_free(&storm);

    let done = storm.tally.done.lock().unwrap();
    let (looks, seen) = (&storm.tally.looks, &storm.tally.addresses_seen);
    println!("in {:.1} s: {done:#?}", begin.elapsed().as_secs_f64());
    println!("the longest: {:?}", storm.tally.longest.lock().unwrap());
    println!(
        "{} looks saw {} addresses",
        looks.load(Relaxed),
        seen.load(Relaxed)
    );
    for what in [
        "ADD",
        "ADD killed",
        "DEL",
        "DEL killed",
        "CHECK",
        "GC",
        "ADD of an exhausted range",
    ] {
        assert!(done.contains_key(what), "the storm had no {what}: {done:?}");
    }
}
