//! Policy between two pods of one node where what the bridge forwards does not pass the filters of IP: by the operator's will, or
//! because the kernel has no `br_netfilter`. The node routes between them then. With real packets, in both families.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::{Agent, Machine, THREE_NODES, all_bridges_call_iptables};
use crate::operation::{is_ready, metric};
use crate::traffic::{PORT, Place, is_one, strict_reverse_path};

/// What a denied packet costs a test: who is reached is reached sooner.
const SILENCE: Duration = Duration::from_millis(500);
const POLICY: &str = "NetworkPolicy shop/db";
const GATEWAY: [&str; 2] = ["10.0.1.1", "fd00:10:1::1"];

fn pod(name: &str, last: u8) -> Value {
    let ips = json!([{"ip": format!("10.0.1.{last}")}, {"ip": format!("fd00:10:1::{last:x}")}]);
    json!({"kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}},
        "spec": {"nodeName": "node1"}, "status": {"podIPs": ips}})
}

/// Of pods only `web` may connect to `db`, and only to the port of all servers here.
fn policies() -> String {
    let policy = json!({"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "db"},
        "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": PORT}]}]}});
    let namespace =
        json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": {"ns": "shop"}}});
    let items = [
        namespace,
        pod("web", 2),
        pod("db", 3),
        pod("cache", 4),
        policy,
    ];
    json!({"kind": "List", "items": items}).to_string()
}

/// A pod, and a process in it, by which its network is found.
struct Shop {
    place: Place,
    addresses: [String; 2],
    process: Child,
}

impl Shop {
    fn new(machine: &Machine, name: &str, last: u8) -> Self {
        let place = machine.pod_named("shop", name);
        let mut process = Command::new("cat");
        process.stdin(Stdio::piped());
        Self {
            addresses: [format!("10.0.1.{last}"), format!("fd00:10:1::{last:x}")],
            process: place.run(|| process.spawn().unwrap()),
            place,
        }
    }

    fn tries(&self, to: &str) -> std::io::Result<TcpStream> {
        let address = std::net::SocketAddr::new(to.parse().unwrap(), PORT);
        self.place
            .run(|| TcpStream::connect_timeout(&address, SILENCE))
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start<'m>(machine: &'m Machine, more: &str) -> Agent<'m> {
    let (file, data) = (machine.path("policy.json"), machine.path("ipam"));
    std::fs::write(&file, policies()).unwrap();
    machine.configure(&format!(
        "listen = \"127.0.0.1:9470\"\nprobe = false\npolicy_file = {file:?}\ndata_dir = {data:?}\n{more}"
    ));
    let agent = machine.start("agent");
    machine.until("ready", is_ready);
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("plan").0 == 0);
    agent
}

fn denied() -> f64 {
    metric(&format!(
        "podspan_policy_denied_packets_total{{namespace=\"shop\",pod=\"db\",direction=\"ingress\",policy=\"{POLICY}\"}}"
    ))
    .unwrap()
}

/// `web` reaches `db`, `cache` does not and reaches `web`; what is denied, policy denies.
#[track_caller]
fn policy_holds([web, db, cache]: &[&Shop; 3], when: &str) {
    let (of_db, of_web) = (db.place.server(), web.place.server());
    for family in [0, 1] {
        let [web_ip, db_ip, cache_ip] = [web, db, cache].map(|pod| pod.addresses[family].as_str());
        assert_eq!(web.place.seen_as(db_ip, &of_db), web_ip, "{when}");
        assert_eq!(cache.place.seen_as(web_ip, &of_web), cache_ip, "{when}");
        let before = denied();
        assert!(cache.tries(db_ip).is_err(), "{when}: {db_ip} is reached");
        assert!(denied() > before, "{when}: {db_ip}: nobody denied it");
    }
}

/// Of each port of the bridge.
fn is_isolated(machine: &Machine) -> Vec<bool> {
    let links = machine.ns.ip("-d link show master podspan0");
    let links = links.as_array().cloned().unwrap_or_default();
    let isolated = |link: &Value| link["linkinfo"]["info_slave_data"]["isolated"] == true;
    links.iter().map(isolated).collect()
}

fn calls_filters(machine: &Machine) -> bool {
    machine.ns.ip("-d link show podspan0")[0]["linkinfo"]["info_data"]["nf_call_iptables"] == 1
}

#[test]
fn policy_holds_between_pods_of_a_node_whose_bridge_calls_no_filters() {
    for absent in [false, true] {
        let machine = Machine::new();
        all_bridges_call_iptables(false);
        strict_reverse_path();
        let key = match absent {
            true => machine.without_br_netfilter(),
            false => "bridge_netfilter = false\n".to_owned(),
        };
        let agent = start(&machine, &key);
        let node2 = machine.node2();
        let [web, db, cache] =
            [("web", 2), ("db", 3), ("cache", 4)].map(|(name, ip)| Shop::new(&machine, name, ip));
        assert_eq!(is_isolated(&machine), [true; 3]);
        assert!(!calls_filters(&machine));
        policy_holds(&[&web, &db, &cache], "routed");

        // A connection that goes on does not heed that it could take a shorter way.
        let server = db.place.server();
        let open: Vec<_> = { db.addresses.iter() }
            .map(|ip| (web.place.connect(ip).unwrap(), server.accept().unwrap().0))
            .collect();
        for _ in 0..15 {
            std::thread::sleep(Duration::from_millis(200));
            assert!(open.iter().all(|(client, server)| is_one(client, server)));
        }

        // The node, other nodes and oneself.
        let (on_node, far) = (
            std::net::TcpListener::bind(("::", PORT)).unwrap(),
            node2.server(),
        );
        for family in [0, 1] {
            let own = web.addresses[family].as_str();
            assert_eq!(web.place.seen_as(GATEWAY[family], &on_node), own);
            let far_pod = ["10.0.2.2", "fd00:10:2::2"][family];
            assert_eq!(web.place.seen_as(far_pod, &far), own);
            let of_web = web.place.server();
            assert_eq!(web.place.seen_as(own, &of_web), own, "itself");
            drop(of_web);
            let to_db = std::net::SocketAddr::new(db.addresses[family].parse().unwrap(), PORT);
            assert!(TcpStream::connect_timeout(&to_db, SILENCE).is_ok());
        }

        // What is said is what is so; of each family once, because silence takes its time.
        let family = usize::from(absent);
        let [from_web, from_cache] = [&web, &cache].map(|from| {
            let (from, to) = (&from.addresses[family], &db.addresses[family]);
            machine.run(&format!("explain {from} {to} {PORT}"))
        });
        assert_eq!(from_web.0, 0, "{}", from_web.1);
        for said in [
            &format!(
                "to {} through {} on eth0",
                db.addresses[family], GATEWAY[family]
            ),
            "the node routes between them: their ports of podspan0 are isolated",
            "it should pass, and it does",
        ] {
            assert!(from_web.1.contains(said), "{said}: {}", from_web.1);
        }
        assert_eq!(from_cache.0, 1, "{}", from_cache.1);
        assert!(from_cache.1.contains(POLICY), "{}", from_cache.1);
        drop(server);
        assert_eq!(agent.stop(), Some(0));
        policy_holds_without_agent(&[&web, &db, &cache]);
    }
}

/// The agent's counters are not to be asked for then.
fn policy_holds_without_agent([web, db, cache]: &[&Shop; 3]) {
    let server = db.place.server();
    for family in [0, 1] {
        let (web_ip, db_ip) = (&web.addresses[family], &db.addresses[family]);
        assert_eq!(web.place.seen_as(db_ip, &server), *web_ip);
        assert!(cache.tries(db_ip).is_err());
    }
}

#[test]
fn the_key_is_changed_under_pods_that_run_and_policy_holds_at_every_time() {
    let machine = Machine::new();
    all_bridges_call_iptables(false);
    let agent = start(&machine, "bridge_netfilter = true\n");
    let web = Shop::new(&machine, "web", 2);
    let db = Shop::new(&machine, "db", 3);
    let server = db.place.server();
    let open: Vec<_> = { db.addresses.iter() }
        .map(|ip| (web.place.connect(ip).unwrap(), server.accept().unwrap().0))
        .collect();
    drop(server);
    let goes_on = || open.iter().all(|(client, server)| is_one(client, server));
    assert_eq!(agent.stop(), Some(0));

    // Those that are there stay on the bridge, which calls the filters for their sake.
    let agent = start(&machine, "bridge_netfilter = false\n");
    assert_eq!(
        (is_isolated(&machine), calls_filters(&machine)),
        (vec![false; 2], true)
    );
    let cache = Shop::new(&machine, "cache", 4);
    let pods = [&web, &db, &cache];
    assert_eq!(is_isolated(&machine).iter().filter(|is| **is).count(), 1);
    policy_holds(&pods, "new ones are routed to");
    assert!(goes_on());
    assert_eq!(agent.stop(), Some(0));

    // And back.
    let agent = start(&machine, "bridge_netfilter = true\n");
    assert_eq!(
        (is_isolated(&machine), calls_filters(&machine)),
        (vec![false; 3], true)
    );
    policy_holds(&pods, "filtered again");
    assert!(goes_on());
    assert_eq!(agent.stop(), Some(0));

    // Where the kernel cannot, nobody passes by policy: pods of before are closed to each other until they are made anew.
    let agent = start(&machine, &machine.without_br_netfilter());
    assert_eq!(
        (is_isolated(&machine), calls_filters(&machine)),
        (vec![true; 3], false)
    );
    let listening = db.place.server();
    for family in [0, 1] {
        assert!(web.tries(&db.addresses[family]).is_err());
    }
    drop(listening);
    let (code, said) = machine.run(&format!("explain {} {}", web.addresses[0], db.addresses[0]));
    assert!(
        code == 1 && said.contains("to mend it: make the pod anew"),
        "{said}"
    );
    for (name, pod) in [("web", &web), ("db", &db)] {
        machine.plugin("DEL", (name, &pod.place), &json!({}));
    }
    let args = |name| format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}");
    for (name, pod, last) in [("web", &web, 2), ("db", &db, 3)] {
        let ips = json!({"args": {"cni": {"ips": [format!("10.0.1.{last}"), format!("fd00:10:1::{last:x}")]}}});
        machine.plugin_for(("ADD", &args(name)), (name, &pod.place), &ips);
    }
    policy_holds(&pods, "made anew");
    assert_eq!(agent.stop(), Some(0));

    // The kernel can again.
    let _agent = start(&machine, "");
    assert_eq!(
        (is_isolated(&machine), calls_filters(&machine)),
        (vec![false; 3], true)
    );
    policy_holds(&pods, "loaded");
}
