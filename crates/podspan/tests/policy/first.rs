//! Policy is in force before a pod's first packet, with real agents, plugins and packets, whatever becomes of the agent meanwhile.
//!
//! The pod's first process is there before the pod has a link: it sends from its first instruction on, to a pod of its node and to
//! one of the other node, in both families, by UDP and TCP, and both send to it. A policy allows it one port and denies it another.
//! Of what is denied nothing may go on behind the filters of a node, or arrive; what is allowed must come to pass, for each pod.
//!
//! What would surprise: all pods have one network namespace and one pair of addresses, one after the other, because namespaces take
//! longer to come and go than all the rest; so each meets what the one before may have left, too.
//! `PODSPAN_FIRST_PACKET` says how many pods there are.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use podspan_kernel::Netns;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use serde_json::{Value, json};

use crate::cases::{Cluster, Layout, to_json};
use crate::object::{Addresses, Change, Key, Labels, Pod};
use crate::wire::network::{Network, again, finish_plugin, new_netns};
use crate::wire::witness::{Place, Witness};

/// What pods serve: one port that policy allows, and one that it denies.
pub const ALLOWED: u16 = 80;
pub const DENIED: u16 = 81;
/// How many pods there are where nobody says.
const PODS: usize = 40;
/// How long a pod may stay closed before the test gives up: generous, because the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a pod that is open goes on sending, so that what opens too much is seen.
const LONGER: Duration = Duration::from_millis(10);
/// The node of the new pods, and the end of the addresses that each of them gets.
const NEW: (u8, u8) = (1, 3);
/// Between two rounds of packets: room for the others on a machine of two cores.
const PAUSE: Duration = Duration::from_micros(50);
/// The same of those that send to the new pod.
const PAUSE_OF_PEERS: Duration = Duration::from_millis(1);
/// The agent is killed at the latest so long after ADD began, which takes about half of that.
const LATEST_DEATH: Duration = Duration::from_millis(15);

/// A pod of namespace `shop`.
pub fn pod(name: &str, app: &str, (node, host): (u8, u8)) -> Pod {
    let mut addresses = Addresses::default();
    addresses.add([10, 244, node, host].into());
    let words: [u16; 8] = [0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, host.into()];
    addresses.add(IpAddr::V6(words.into()));
    Pod {
        key: Key {
            namespace: "shop".into(),
            name: name.into(),
        },
        uid: format!("uid-of-{name}").into(),
        node: Some(format!("node{node}").into()),
        labels: Labels(Arc::new([("app".into(), app.into())])),
        addresses,
        ports: Arc::new([]),
        host_network: false,
    }
}

/// As the API has it.
pub fn object(pod: &Pod) -> Value {
    let (_, object) = to_json::change(&Change::Pod(pod.key.clone(), Some(pod.clone())));
    object.unwrap()
}

/// Namespace `shop`.
pub fn namespace() -> Value {
    json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"ns": "shop"}}})
}

/// Pods with the label `app=new` may begin connections to `app=db` on one port, and nobody may begin one to them.
fn policy() -> Value {
    let ports = json!([{"protocol": "TCP", "port": ALLOWED}, {"protocol": "UDP", "port": ALLOWED}]);
    let to = json!([{"podSelector": {"matchLabels": {"app": "db"}}}]);
    json!({"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "new"},
        "spec": {"podSelector": {"matchLabels": {"app": "new"}}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [], "egress": [{"to": to, "ports": ports}]}})
}

/// Sets a flag when it goes, also when the test fails: threads wait for that.
pub struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Who asks for a neighbour before it is there asks again a second later, and would send nothing meanwhile. False where there is no
/// such link yet.
fn ask_neighbours_often() -> bool {
    ["ipv4", "ipv6"].iter().all(|family| {
        let key = format!("/proc/sys/net/{family}/neigh/eth0/retrans_time_ms");
        std::fs::write(key, "1").is_ok()
    })
}

/// True when the first packet of a connection was sent; nobody waits for what becomes of it.
pub fn knock(to: SocketAddr) -> bool {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None).unwrap();
    matches!(connect(&socket, &to), Ok(()) | Err(Errno::INPROGRESS))
}

/// What sends datagrams: a socket of each family, whose ports stay.
struct Datagrams([UdpSocket; 2]);

impl Datagrams {
    fn open() -> Self {
        Self(["0.0.0.0:0", "[::]:0"].map(|any| {
            let socket = UdpSocket::bind(any).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        }))
    }

    /// There is no route before there is an address.
    fn send(&self, to: SocketAddr) -> bool {
        let socket = &self.0[usize::from(to.is_ipv6())];
        socket.send_to(b"?", to).is_ok()
    }

    /// Who answered since.
    fn answers(&self) -> Vec<SocketAddr> {
        let mut from = Vec::new();
        for socket in &self.0 {
            while let Ok((_, sender)) = socket.recv_from(&mut [0; 64]) {
                from.push(sender);
            }
        }
        from
    }
}

/// What a first process did and saw.
#[derive(Default)]
struct Seen {
    /// How many packets it sent that policy denies.
    denied: u64,
    /// Who answered although it was denied.
    leaks: Vec<SocketAddr>,
}

/// Sends to everybody from the first moment on, on both ports, until it is told to end; says when all have answered on the one that is
/// allowed.
fn first_process(targets: &[IpAddr], over: &AtomicBool, is_open: &AtomicBool) -> Seen {
    let datagrams = Datagrams::open();
    let mut seen = Seen::default();
    let mut silent: BTreeSet<IpAddr> = targets.iter().copied().collect();
    let mut asks_often = false;
    while !over.load(Relaxed) {
        asks_often = asks_often || ask_neighbours_often();
        for target in targets {
            let denied = SocketAddr::new(*target, DENIED);
            seen.denied += u64::from(datagrams.send(denied)) + u64::from(knock(denied));
            datagrams.send(SocketAddr::new(*target, ALLOWED));
        }
        for from in datagrams.answers() {
            match from.port() {
                ALLOWED => drop(silent.remove(&from.ip())),
                _ => seen.leaks.push(from),
            }
        }
        is_open.store(silent.is_empty(), Relaxed);
        std::thread::sleep(PAUSE);
    }
    seen
}

/// Sends to the new pod all the time, whether it is there or not: how many packets that policy denies.
fn send_to_new(targets: &[IpAddr], over: &AtomicBool) -> u64 {
    let datagrams = Datagrams::open();
    assert!(ask_neighbours_often());
    let mut sent = 0;
    while !over.load(Relaxed) {
        for target in targets {
            let denied = SocketAddr::new(*target, DENIED);
            sent += u64::from(datagrams.send(denied)) + u64::from(knock(denied));
        }
        std::thread::sleep(PAUSE_OF_PEERS);
    }
    sent
}

/// A connection to each: the pod is open for TCP, too.
fn connect_to_all(targets: &[IpAddr]) {
    for target in targets {
        let address = SocketAddr::new(*target, ALLOWED);
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE)
            .unwrap_or_else(|error| panic!("{address} is allowed: {error}"));
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let length = stream.read(&mut [0; 64]).unwrap();
        assert!(length > 0, "{address} says its name");
    }
}

/// What becomes of the agent of the new pods' node while ADD is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agent {
    /// Nothing.
    Lives,
    /// It is killed in the middle, and started again; in every third ADD it is killed as it starts, too.
    Dies,
}

impl Agent {
    /// Lets it be so in the ADD of that number, which has just begun. How often it died.
    fn fare(self, network: &mut Network, number: usize) -> usize {
        if self == Self::Lives {
            return 0;
        }
        // Steps that have nothing in common with the pods' number go through all moments.
        let moment = |step: usize| {
            let part = u32::try_from(number * step % 100).unwrap();
            LATEST_DEATH * part / 100
        };
        let deaths = match number % 3 {
            0 => 2,
            _ => 1,
        };
        for step in [37, 71].into_iter().take(deaths) {
            std::thread::sleep(moment(step));
            network.nodes[0].kill_agent();
            network.start_agent(0);
        }
        deaths
    }
}

fn number_of_pods() -> usize {
    match std::env::var("PODSPAN_FIRST_PACKET") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => PODS,
    }
}

/// Both nodes, with a pod each that is there already, and the pods that come.
struct Shop {
    network: Network,
    peers: [Pod; 2],
    /// One after the other, with the addresses that each of them gets; the API does not tell those.
    new: Vec<Pod>,
    netns: Netns,
    /// What the new pods send, on their node, and all that comes to pods, in their network namespaces.
    node: Witness,
    pods: Vec<Witness>,
}

#[derive(Default)]
struct Totals {
    sent: u64,
    deaths: usize,
    /// The longest that a pod took until it was open.
    slowest: Duration,
}

impl Shop {
    fn open() -> Self {
        let cluster = Cluster::letters(&Layout::two_nodes());
        let mut network = Network::up(&cluster);
        let peers = [pod("near", "db", (1, 2)), pod("far", "db", (2, 2))];
        let new = (0..number_of_pods()).map(|number| pod(&format!("new-{number}"), "new", NEW));
        let new: Vec<_> = new.collect();
        let mut objects = vec![namespace(), policy()];
        objects.extend(peers.iter().map(object));
        let addresses = Addresses::default();
        objects.extend({ new.iter() }.map(|pod| {
            object(&Pod {
                addresses,
                ..pod.clone()
            })
        }));
        network.enforce_objects(&objects);
        for pod in &peers {
            network.add(&cluster, pod);
        }
        let netns = new_netns();
        let of_new: Vec<_> = pod("", "", NEW).addresses.iter().collect();
        let of_pods = network.pods.values().map(|peer| &peer.netns);
        let of_pods = of_pods.chain([&netns]);
        Self {
            // What goes to an address that nobody has yet is nobody's affair.
            node: Witness::of_senders(&network.nodes[0].netns, &[DENIED], &of_new),
            pods: of_pods.map(|pod| Witness::of(pod, &[DENIED])).collect(),
            network,
            peers,
            new,
            netns,
        }
    }

    /// One pod after the other, while its peers send to it.
    fn come_and_go(&mut self, agent: Agent) -> Totals {
        let over = AtomicBool::new(false);
        let of_new: Vec<IpAddr> = self.new[0].addresses.iter().collect();
        let peers: Vec<Netns> = { self.network.pods.values() }
            .map(|peer| again(&peer.netns))
            .collect();
        std::thread::scope(|scope| {
            let ends = Ends(&over);
            let (targets, over) = (&of_new, &over);
            let send = |peer: &'_ Netns| peer.run(|| send_to_new(targets, over)).unwrap();
            let senders = peers.iter().map(|peer| scope.spawn(move || send(peer)));
            let senders: Vec<_> = senders.collect();
            let mut totals = Totals::default();
            for number in 0..self.new.len() {
                self.come(number, agent, &mut totals);
            }
            drop(ends);
            let sent = senders.into_iter().map(|sender| sender.join().unwrap());
            totals.sent += sent.sum::<u64>();
            totals
        })
    }

    fn come(&mut self, number: usize, agent: Agent, totals: &mut Totals) {
        let (pod, node) = (&self.new[number], 0);
        let targets = { self.peers.iter() }.flat_map(|pod| pod.addresses.iter());
        let targets: Vec<IpAddr> = targets.collect();
        let (over, is_open) = (AtomicBool::new(false), AtomicBool::new(false));
        let seen = std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                let work = || first_process(&targets, &over, &is_open);
                self.netns.run(work).unwrap()
            });
            let ends = Ends(&over);
            let begin = Instant::now();
            let adding = self.network.nodes[node].plugin("ADD", &self.netns, pod);
            totals.deaths += agent.fare(&mut self.network, number);
            finish_plugin(adding);
            while !is_open.load(Relaxed) {
                assert!(begin.elapsed() < DEADLINE, "pod {number} is never open");
                std::thread::sleep(PAUSE);
            }
            totals.slowest = totals.slowest.max(begin.elapsed());
            self.netns.run(|| connect_to_all(&targets)).unwrap();
            std::thread::sleep(LONGER);
            finish_plugin(self.network.nodes[node].plugin("DEL", &self.netns, pod));
            drop(ends);
            first.join().unwrap()
        });
        assert!(seen.denied > 0, "pod {number} sends");
        totals.sent += seen.denied;
        assert_eq!(seen.leaks, [], "pod {number}: denied, but answered");
        let passed = self.node.count(Place::Passed, DENIED);
        let arrived = { self.pods.iter() }.map(|pod| pod.count(Place::Arrived, DENIED));
        assert_eq!((passed, arrived.sum::<u64>()), (0, 0), "pod {number}");
    }
}

fn before_the_first_packet(agent: Agent) {
    let mut shop = Shop::open();
    let begin = Instant::now();
    let totals = shop.come_and_go(agent);
    let came = shop.node.count(Place::Came, DENIED);
    let Totals {
        sent,
        deaths,
        slowest,
    } = totals;
    println!(
        "{} pods, {deaths} deaths of the agent, {:?}: {sent} packets were sent that policy denies, {came} of them came to the \
         node's filter, 0 passed it, 0 arrived; each pod could send what is allowed, the slowest {slowest:?} after its ADD began",
        shop.new.len(),
        begin.elapsed()
    );
    assert!(came > 0, "policy had something to drop");
    assert_eq!(deaths > 0, agent == Agent::Dies);
    if agent == Agent::Lives {
        let failures = shop.network.nodes[0].metric("podspan_policy_failures_total");
        println!("{failures:?} transactions failed, of pods that went meanwhile");
    }
    shop.network.until_in_force();
}

#[test]
fn policy_is_in_force_before_a_pod_s_first_packet() {
    before_the_first_packet(Agent::Lives);
}

#[test]
fn policy_is_in_force_before_a_pod_s_first_packet_when_the_agent_is_killed_in_the_middle_of_its_add()
 {
    before_the_first_packet(Agent::Dies);
}
