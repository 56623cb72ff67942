//! Policy while its agents die, are replaced by another executable, and have nowhere to read policies from: what is denied stays
//! denied, what is allowed can be begun, and connections that were allowed go on without losing a packet.
//!
//! A pod on each node asks a third one in both families for as long as the test takes: a byte, and its echo; attempts at a port that
//! is denied; and new connections to one that is allowed. The nodes count what comes to their filters and what passes them: of the
//! connections that are allowed all, of what is denied nothing. So TCP hides no loss, and no time is asserted.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use podspan_kernel::Netns;
use serde_json::{Value, json};

use crate::cases::{Cluster, Layout};
use crate::first::{ALLOWED, DENIED, Ends, knock, namespace, object, pod};
use crate::object::Pod;
use crate::wire::network::{Network, Node, again, replace};
use crate::wire::witness::{Place, Witness};

/// The echo's port, which is allowed.
const ECHO: u16 = 7;
/// How long anything may take before the test gives up: generous, because the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two bytes, and between two attempts.
const PAUSE: Duration = Duration::from_millis(2);
/// Between two new connections that are allowed.
const PAUSE_OF_NEW: Duration = Duration::from_millis(20);
/// How long nodes are left without an agent, or with one that has no policies.
const AWAY: Duration = Duration::from_millis(300);
/// How long a byte is waited for that must not come.
const SILENCE: Duration = Duration::from_millis(500);

fn ports(ports: &[u16]) -> Value {
    let of =
        |port: &u16| json!([{"protocol": "TCP", "port": port}, {"protocol": "UDP", "port": port}]);
    let all = ports.iter().map(of);
    all.flat_map(|pair| pair.as_array().cloned().unwrap())
        .collect()
}

/// `web` may begin connections to `db` on the ports and to nobody else, and nobody else to `db`: each node has something to say.
fn policies(allowed: &[u16]) -> [Value; 2] {
    let pods = |app: &str| json!({"podSelector": {"matchLabels": {"app": app}}});
    let of = |name: &str, spec: Value| {
        let mut spec = spec;
        spec["podSelector"] = pods(name)["podSelector"].clone();
        json!({"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": name}, "spec": spec})
    };
    let ingress = json!([{"from": [pods("web")], "ports": ports(allowed)}]);
    let egress = json!([{"to": [pods("db")], "ports": ports(allowed)}]);
    [
        of(
            "db",
            json!({"policyTypes": ["Ingress"], "ingress": ingress}),
        ),
        of("web", json!({"policyTypes": ["Egress"], "egress": egress})),
    ]
}

/// Says again what it hears, until whoever speaks has ended.
fn echo(netns: &Netns) {
    let listener = netns.run(|| TcpListener::bind(("::", ECHO)).unwrap());
    let listener = listener.unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, DEADLINE);
    let stream = stream.unwrap_or_else(|error| panic!("{to} is allowed: {error}"));
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A byte and its echo, one after the other: how many, and the longest that one took.
fn talk(stream: &mut TcpStream, over: &AtomicBool) -> (u64, Duration) {
    let (mut said, mut longest) = (0_u64, Duration::ZERO);
    while !over.load(Relaxed) {
        let begin = Instant::now();
        let byte = [u8::try_from(said % 200).unwrap()];
        let mut heard = [0];
        stream.write_all(&byte).unwrap();
        let outcome = stream.read_exact(&mut heard);
        outcome
            .unwrap_or_else(|error| panic!("byte {said} of a connection that is allowed: {error}"));
        assert_eq!(heard, byte);
        said += 1;
        longest = longest.max(begin.elapsed());
        std::thread::sleep(PAUSE);
    }
    (said, longest)
}

/// First packets of connections that are denied, each from a port of its own: how many.
fn attempt(targets: &[IpAddr], over: &AtomicBool) -> u64 {
    let mut sent = 0;
    while !over.load(Relaxed) {
        for target in targets {
            let to = SocketAddr::new(*target, DENIED);
            let any = ["0.0.0.0:0", "[::]:0"][usize::from(to.is_ipv6())];
            let datagram = UdpSocket::bind(any).unwrap().send_to(b"?", to);
            sent += u64::from(datagram.is_ok()) + u64::from(knock(to));
        }
        std::thread::sleep(PAUSE);
    }
    sent
}

/// New connections that are allowed: how many.
fn begin_anew(targets: &[IpAddr], over: &AtomicBool) -> u64 {
    let mut begun = 0;
    while !over.load(Relaxed) {
        for target in targets {
            let mut stream = connect(SocketAddr::new(*target, ALLOWED));
            assert!(stream.read(&mut [0; 64]).unwrap() > 0, "it says its name");
            begun += 1;
        }
        std::thread::sleep(PAUSE_OF_NEW);
    }
    begun
}

/// Rules, sets and chains of policy, without what they counted.
fn laid(node: &Node) -> String {
    let mut nft = std::process::Command::new("nft");
    nft.args(["--stateless", "list", "table", "inet", "podspan"]);
    let output = node.netns.run(|| nft.output().unwrap()).unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    let lines = printed.lines();
    let lines = lines.filter(|line| !line.trim_start().starts_with("packets "));
    lines.map(|line| format!("{line}\n")).collect()
}

/// What becomes of the agents.
impl Network {
    fn agents_are_killed_and_start(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill_agent);
        std::thread::sleep(AWAY);
        for node in 0..self.nodes.len() {
            self.start_agent(node);
        }
        self.until_in_force();
    }

    /// What stands in the place of the agent that ends is another file.
    fn agents_are_replaced(&mut self, executable: &std::path::Path) {
        for node in 0..self.nodes.len() {
            self.nodes[node].stop_agent();
            executable.clone_into(&mut self.nodes[node].executable);
            self.start_agent(node);
        }
        self.until_in_force();
    }

    /// Agents that start and can read no policies change nothing; then the file is there again.
    fn agents_start_without_policies(&mut self, content: Option<&str>, told: &str) {
        let file = self.policy_file();
        let aside = file.with_extension("aside");
        std::fs::copy(&file, &aside).unwrap();
        match content {
            Some(content) => replace(&file, content),
            None => std::fs::remove_file(&file).unwrap(),
        }
        self.agents_start_and_lay_nothing(told);
        std::fs::rename(aside, file).unwrap();
        self.until_in_force();
    }

    /// Agents that start and never reach the API change nothing.
    fn agents_start_without_the_api(&mut self) {
        let of_file: Vec<_> = { self.nodes.iter() }
            .map(|node| std::fs::read_to_string(node.config()).unwrap())
            .collect();
        let kubeconfig = self.policy_file().with_file_name("kubeconfig");
        // Nobody listens there.
        let nobody = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
        std::fs::write(&kubeconfig, nobody.to_string()).unwrap();
        for (node, config) in self.nodes.iter().zip(&of_file) {
            let lines = config.lines().filter(|line| {
                !["nodes_file", "policy_file"]
                    .iter()
                    .any(|key| line.starts_with(key))
            });
            let config: Vec<_> = lines.collect();
            let config = format!(
                "{}\nregistry = \"kubernetes\"\nkubeconfig = \"{}\"\n",
                config.join("\n"),
                kubeconfig.display()
            );
            std::fs::write(node.config(), config).unwrap();
        }
        self.agents_start_and_lay_nothing("Connection refused");
        for (node, config) in self.nodes.iter().zip(&of_file) {
            std::fs::write(node.config(), config).unwrap();
        }
        self.agents_are_killed_and_start();
    }

    fn agents_start_and_lay_nothing(&mut self, told: &str) {
        let before: Vec<_> = self.nodes.iter().map(laid).collect();
        for node in 0..self.nodes.len() {
            self.nodes[node].kill_agent();
            self.start_agent(node);
        }
        self.until(&format!("without policies: {told}"), |node| {
            node.log_of_agent().contains(told)
        });
        std::thread::sleep(AWAY);
        let after: Vec<_> = self.nodes.iter().map(laid).collect();
        assert_eq!(after, before, "{told}");
    }
}

/// The nodes, with `db` on the first and a `web` on each.
struct Shop {
    network: Network,
    objects: Vec<Value>,
    db: Vec<IpAddr>,
    webs: [Netns; 2],
    of_db: Netns,
}

impl Shop {
    fn open() -> Self {
        let cluster = Cluster::letters(&Layout::two_nodes());
        let mut network = Network::up(&cluster);
        let pods = [
            pod("db", "db", (1, 2)),
            pod("web-1", "web", (1, 3)),
            pod("web-2", "web", (2, 3)),
        ];
        let mut objects = vec![namespace()];
        objects.extend(pods.iter().map(object));
        network.enforce_objects(&[&objects[..], &policies(&[ECHO, ALLOWED])].concat());
        for pod in &pods {
            network.add(&cluster, pod);
        }
        let netns = |pod: &Pod| again(&network.pods[&pod.key].netns);
        let [db, one, two] = pods.each_ref().map(netns);
        Self {
            objects,
            db: pods[0].addresses.iter().collect(),
            webs: [one, two],
            of_db: db,
            network,
        }
    }

    /// All that can become of agents, one after the other.
    fn agents_fare(&mut self, other: &std::path::Path) {
        let first = self.network.nodes[0].executable.clone();
        for _ in 0..3 {
            self.network.agents_are_killed_and_start();
        }
        self.network.agents_are_replaced(other);
        let file = self.network.policy_file();
        let missing = format!("read {}", file.display());
        self.network.agents_start_without_policies(None, &missing);
        let torn = "must be a List as kubectl get -o json prints it";
        self.network.agents_start_without_policies(Some("{"), torn);
        self.network.agents_start_without_the_api();
        self.network.agents_are_replaced(&first);
    }
}

/// What went on meanwhile.
struct Traffic {
    /// The connections that were allowed, which stand still now, with the number of bytes and the longest wait for one.
    talks: Vec<(TcpStream, (u64, Duration))>,
    attempts: u64,
    begun: u64,
}

impl Traffic {
    /// From each of the network namespaces to each of the addresses, while that is done.
    fn during((webs, db): (&[Netns], &[IpAddr]), work: impl FnOnce()) -> Self {
        let over = &AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ends = Ends(over);
            let (mut talks, mut counts) = (Vec::new(), Vec::new());
            for web in webs {
                for ip in db {
                    let mut stream = web.run(|| connect(SocketAddr::new(*ip, ECHO))).unwrap();
                    talks.push(scope.spawn(move || {
                        let told = talk(&mut stream, over);
                        (stream, told)
                    }));
                }
                let attempts = scope.spawn(move || web.run(|| attempt(db, over)).unwrap());
                let begun = scope.spawn(move || web.run(|| begin_anew(db, over)).unwrap());
                counts.push((attempts, begun));
            }
            work();
            drop(ends);
            let mut traffic = Self {
                talks: talks.into_iter().map(|one| one.join().unwrap()).collect(),
                attempts: 0,
                begun: 0,
            };
            for (attempts, begun) in counts {
                traffic.attempts += attempts.join().unwrap();
                traffic.begun += begun.join().unwrap();
            }
            traffic
        })
    }
}

#[test]
fn policy_stays_in_force_and_connections_go_on_while_agents_die_are_replaced_and_have_no_policies()
{
    let mut shop = Shop::open();
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("podspan-of-another-version");
    std::fs::copy(env!("CARGO_BIN_EXE_podspan"), &other).unwrap();
    let witnesses = { shop.network.nodes.iter() }
        .map(|node| Witness::of(&node.netns, &[ECHO, DENIED]))
        .collect::<Vec<_>>();
    let at_db = Witness::of(&shop.of_db, &[DENIED]);
    echo(&shop.of_db);

    let (db, webs) = (shop.db.clone(), shop.webs.each_ref().map(again));
    let begin = Instant::now();
    let Traffic {
        talks,
        attempts,
        begun,
    } = Traffic::during((&webs, &db), || shop.agents_fare(&other));
    for (node, witness) in shop.network.nodes.iter().zip(&witnesses) {
        let echoed = witness.until_all_passed(ECHO);
        let denied = [Place::Came, Place::Passed].map(|place| witness.count(place, DENIED));
        println!(
            "{}: all {echoed} packets of what is allowed passed; of {} that are denied {} did",
            node.name, denied[0], denied[1]
        );
        assert!(
            echoed > 0 && denied[0] > 0 && denied[1] == 0,
            "{}",
            node.name
        );
    }
    assert_eq!(at_db.count(Place::Arrived, DENIED), 0);
    let said: Vec<_> = talks.iter().map(|(_, told)| told).collect();
    println!(
        "{:?}: bytes and the longest wait for one {said:?}; {attempts} attempts, {begun} new connections",
        begin.elapsed()
    );

    // The test would see it: what a policy forbids from now on ends.
    let denied = policies(&[ALLOWED]);
    let objects = [&shop.objects[..], &denied].concat();
    shop.network.enforce_objects(&objects);
    shop.network.until("done with them", |node| {
        node.metric("podspan_policy_ended_connections_total")
            .is_some_and(|ended| ended > 0)
    });
    for (mut stream, _) in talks {
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        stream.write_all(b"x").unwrap();
        let heard = stream.read(&mut [0]).map_err(|error| error.kind());
        assert!(
            matches!(heard, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)),
            "{heard:?}"
        );
    }
    for (node, witness) in shop.network.nodes.iter().zip(&witnesses) {
        let [came, passed] = [Place::Came, Place::Passed].map(|place| witness.count(place, ECHO));
        assert!(came > passed, "{}: {came} {passed}", node.name);
    }
}
