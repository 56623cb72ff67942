//! What policy denies is counted for each pod and policy, and told to whoever asks; with real packets of real pods.

use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::{Agent, Machine, THREE_NODES};
use crate::operation::{is_ready, metric};
use crate::traffic::Place;

const PATIENCE: Duration = Duration::from_secs(30);
pub const OPERATION: &str = "listen = \"127.0.0.1:9470\"\n";

fn pod(name: &str, ip: &str) -> Value {
    json!({"kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": "node1"}, "status": {"podIPs": [{"ip": ip}]}})
}

/// Nobody may send `db` anything.
pub fn isolates(policy: &str) -> Value {
    json!({"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": policy},
        "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"]}})
}

/// Nobody may send a pod of the namespace anything to port 99 of UDP.
fn denies() -> Value {
    json!({"kind": "ClusterNetworkPolicy", "metadata": {"name": "no-99"},
        "spec": {"tier": "Admin", "priority": 10, "subject": {"namespaces": {}},
            "ingress": [{"name": "never", "action": "Deny", "from": [{"namespaces": {}}],
                "protocols": [{"udp": {"destinationPort": {"number": 99}}}]}]}})
}

impl Machine {
    pub fn policies(&self, policies: &[Value]) {
        let mut items = vec![
            json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"ns": "shop"}}}),
            pod("web", "10.0.1.2"),
            pod("db", "10.0.1.3"),
            pod("cache", "10.0.1.4"),
        ];
        items.extend_from_slice(policies);
        let list = json!({"kind": "List", "items": items}).to_string();
        std::fs::write(self.path("policy.new"), list).unwrap();
        std::fs::rename(self.path("policy.new"), self.path("policy.json")).unwrap();
    }

    pub fn ready(&self) -> Agent<'_> {
        let agent = self.start("agent");
        self.until("ready", is_ready);
        self.until_routes(&THREE_NODES);
        self.until("right", || self.run("plan").0 == 0);
        agent
    }

    /// `web`, `db` and `cache`, whose policies are known.
    pub fn pods(&self) -> [Place; 3] {
        ["web", "db", "cache"].map(|name| self.pod_named("shop", name))
    }

    /// What a pod comes to is what the model says of it: the agent has seen what the file says.
    fn until_rules(&self, of: &str, has: bool) {
        self.until(&format!("{of}: {has}"), || {
            crate::traffic::nft("list table inet podspan").contains(of) == has
        });
    }
}

pub fn counted(pod: &str, policy: &str) -> Option<f64> {
    metric(&format!(
        "podspan_policy_denied_packets_total{{namespace=\"shop\",pod=\"{pod}\",direction=\"ingress\",policy=\"{policy}\"}}"
    ))
}

/// Sends datagrams, which nobody answers. Each is the first of a connection of its own.
pub fn send(from: &Place, to: &str, number: usize) {
    from.run(|| {
        for _ in 0..number {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            assert_eq!(socket.send_to(b"hello", to).unwrap(), 5);
        }
    });
}

pub const ONE: &str = "NetworkPolicy shop/one";
const CLUSTER: &str = "ClusterNetworkPolicy no-99";

#[test]
fn denied_packets_are_counted_for_each_pod_and_policy_and_never_fewer() {
    let machine = Machine::new();
    let file = machine.path("policy.json");
    machine.configure(&format!("{OPERATION}policy_file = {file:?}\n"));
    machine.policies(&[isolates("one"), denies()]);
    let agent = machine.ready();
    let [web, _db, _cache] = machine.pods();
    assert_eq!(counted("db", ONE), Some(0.0));
    assert_eq!(counted("cache", ONE), None, "nobody isolates it");

    send(&web, "10.0.1.3:53", 3);
    send(&web, "10.0.1.3:99", 2);
    // By the same program's rule, but another pod.
    send(&web, "10.0.1.4:99", 4);
    send(&web, "10.0.1.4:53", 5);
    let all = || {
        [
            counted("db", ONE),
            counted("db", CLUSTER),
            counted("cache", CLUSTER),
        ]
    };
    let expected = [3.0, 2.0, 4.0].map(Some);
    machine.until("all are counted", || all() == expected);

    // The rules are replaced, and what was counted stays; so it does when a policy goes and comes again.
    let two = "NetworkPolicy shop/one, NetworkPolicy shop/two";
    machine.policies(&[isolates("one"), isolates("two"), denies()]);
    machine.until("two isolate", || counted("db", two) == Some(0.0));
    assert_eq!(all(), expected);
    send(&web, "10.0.1.3:53", 1);
    machine.until("the other counts", || counted("db", two) == Some(1.0));
    assert_eq!(all(), expected);
    machine.policies(&[]);
    machine.until_rules("log prefix", false);
    send(&web, "10.0.1.3:53", 1);
    machine.policies(&[isolates("one"), denies()]);
    machine.until_rules("log prefix", true);
    assert_eq!(all(), expected);
    send(&web, "10.0.1.3:53", 1);
    let expected = [4.0, 2.0, 4.0].map(Some);
    machine.until("it goes on", || all() == expected);

    // An agent's start counts on, and tells nothing of policies that are gone.
    agent.stop();
    let _agent = machine.ready();
    machine.until("counted on", || all() == expected);
    machine.until("of one that is gone", || counted("db", two).is_none());
    machine.plugin("DEL", ("db", &_db), &json!({}));
    machine.until("of a pod that is gone", || counted("db", ONE).is_none());
    assert_eq!(counted("cache", CLUSTER), Some(4.0));
}

/// `podspan policy log`, which listens.
struct Listener {
    child: Child,
    lines: Receiver<String>,
}

impl Listener {
    fn start(machine: &Machine, arguments: &str) -> Self {
        let mut command = machine.podspan(&format!("policy log {arguments}"));
        command.arg("--config").arg(machine.path("agent.toml"));
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let stderr = child.stderr.as_mut().unwrap();
        BufReader::new(stderr).read_line(&mut said).unwrap();
        assert_eq!(said, "podspan: denied packets are told from now on\n");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self {
            child,
            lines: receiver,
        }
    }

    /// The next line, which comes at the latest when nobody would wait any longer.
    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }

    /// The next line, without its time.
    #[track_caller]
    fn text(&self) -> String {
        let line = self.line();
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{line}");
        rest.to_owned()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn denied_packets_are_told_with_the_names_of_pods_and_policies() {
    let machine = Machine::new();
    let file = machine.path("policy.json");
    machine.configure(&format!("{OPERATION}policy_file = {file:?}\n"));
    machine.policies(&[isolates("one"), denies()]);
    let _agent = machine.ready();
    let [web, _db, cache] = machine.pods();
    let node2 = machine.node2();

    let all = Listener::start(&machine, "");
    let (status, said) = machine.run("policy log --for 1s");
    assert_eq!(status, 2);
    assert!(
        said.contains("another podspan policy log listens already"),
        "{said}"
    );
    send(&web, "10.0.1.4:53", 1); // It passes.
    send(&web, "10.0.1.3:53", 1);
    let by_one = "denied by NetworkPolicy shop/one, which is about shop/db";
    assert_eq!(
        all.text(),
        format!("ingress shop/web -> shop/db UDP 53: {by_one}")
    );
    send(&web, "10.0.1.4:99", 1);
    assert_eq!(
        all.text(),
        "ingress shop/web -> shop/cache UDP 99: denied by ClusterNetworkPolicy no-99, which is about shop/cache"
    );
    // A stranger has an address alone.
    node2.ip("route replace 10.0.1.0/24 via 172.16.0.1");
    send(&node2, "10.0.1.3:80", 1);
    assert_eq!(
        all.text(),
        format!("ingress 172.16.0.2 -> shop/db UDP 80: {by_one}")
    );

    drop(all);

    // Killed, it has left nothing; the next one listens at once.
    let one = Listener::start(&machine, "--pod shop/cache -o json");
    send(&web, "10.0.1.3:53", 1);
    send(&cache, "10.0.1.3:53", 1);
    let mut told: Value = serde_json::from_str(&one.line()).unwrap();
    assert!(told["time"].take().is_string());
    let expected = json!({"time": null, "direction": "ingress", "pod": "shop/db", "from": "10.0.1.4",
        "from_pod": "shop/cache", "to": "10.0.1.3", "to_pod": "shop/db", "protocol": "UDP", "port": 53,
        "policy": ONE});
    assert_eq!(told, expected);
    drop(one);
    assert_eq!(machine.run("policy log --for 100ms").0, 0);

    // A flood is told in part, and counted as a whole.
    let all = Listener::start(&machine, "");
    let before = counted("db", ONE).unwrap();
    send(&web, "10.0.1.3:53", 500);
    machine.until("all of the flood", || {
        counted("db", ONE) == Some(before + 500.0)
    });
    send(&web, "10.0.1.4:99", 1);
    let mut told = 0;
    while !all.text().contains("UDP 99") {
        told += 1;
    }
    assert!((1..250).contains(&told), "{told}");
    drop(all);

    // Who is on this node and what is in force here is known though the policies cannot be read.
    let all = Listener::start(&machine, "");
    let two = "NetworkPolicy shop/one, NetworkPolicy shop/two";
    machine.policies(&[isolates("one"), isolates("two"), denies()]);
    machine.until("two isolate", || counted("db", two) == Some(0.0));
    std::fs::remove_file(machine.path("policy.json")).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    send(&web, "10.0.1.3:53", 1);
    let by_two = format!("denied by {two}, which is about shop/db");
    assert_eq!(
        all.text(),
        format!("ingress shop/web -> shop/db UDP 53: {by_two}")
    );
}
