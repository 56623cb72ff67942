//! Metrics, health and logs, asked for as a monitoring system does.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use serde_json::{Value, json};

use crate::machine::{Machine, THREE_NODES, entry};
use crate::traffic::nft;

const ADDRESS: &str = "127.0.0.1:9470";

/// The status and the body, or none when nobody listens.
pub fn ask(path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(ADDRESS).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Some((status, body.to_owned()))
}

pub fn is_ready() -> bool {
    ask("/readyz").is_some_and(|(status, _)| status == 200)
}

/// The value of a series, by its name with its labels.
pub fn metric(series: &str) -> Option<f64> {
    let (_, text) = ask("/metrics")?;
    let line = text.lines().find_map(|line| line.strip_prefix(series))?;
    line.trim().parse().ok()
}

#[test]
fn metrics_and_health_say_what_the_loop_did() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until("ready", is_ready);
    machine.until_routes(&THREE_NODES);
    assert_eq!(ask("/healthz"), Some((200, "ok\n".into())));
    let (status, text) = ask("/metrics").unwrap();
    assert_eq!(status, 200);
    assert!(text.ends_with("# EOF\n"), "{text}");
    for (series, value) in [
        ("podspan_nodes", 3.0),
        ("podspan_routes", 4.0),
        ("podspan_ready", 1.0),
        ("podspan_changes_total{kind=\"add_route\"}", 4.0),
        ("podspan_changes_total{kind=\"write_conflist\"}", 1.0),
        (
            "podspan_pod_cidr_addresses{pod_cidr=\"10.0.1.0/24\"}",
            253.0,
        ),
        (
            "podspan_pod_cidr_allocations{pod_cidr=\"10.0.1.0/24\"}",
            0.0,
        ),
        ("podspan_problems", 0.0),
        ("podspan_refusals", 0.0),
    ] {
        assert_eq!(metric(series), Some(value), "{series}\n{text}");
    }
    assert!(metric("podspan_last_look_timestamp_seconds").unwrap() > 1e9);
    assert!(metric("podspan_look_duration_seconds_count").unwrap() >= 1.0);

    // What fails for another node is counted, and no reason not to start pods here.
    machine.ns.ip("route del 10.0.2.0/24");
    machine.until_routes(&THREE_NODES);
    machine
        .ns
        .ip("route replace 10.0.2.0/24 via 172.16.0.99 proto static");
    machine.until("counted", || {
        metric("podspan_change_failures_total{kind=\"add_route\"}") >= Some(1.0)
            && metric("podspan_problems") == Some(1.0)
    });
    assert!(is_ready());
    machine.nodes(&(entry(1) + &entry(2) + &entry(3) + &entry(3)));
    machine.until("refused", || metric("podspan_refusals") >= Some(1.0));
    let (_, status) = machine.run("status");
    assert!(
        status.contains("right  the agent answers on 127.0.0.1:9470"),
        "{status}"
    );
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_node_that_cannot_have_pods_is_not_ready_and_says_why() {
    let machine = Machine::new();
    machine.nodes(&entry(2));
    let _agent = machine.start("agent");
    let why = "has no usable entry of that name";
    machine.until("told", || {
        ask("/readyz").is_some_and(|(status, text)| status == 503 && text.contains(why))
    });
    assert_eq!(ask("/healthz").unwrap().0, 200);
    machine.nodes(&(entry(1) + &entry(2)));
    machine.until("ready", is_ready);
    // A conflist that cannot be written: somebody else's is there.
    let conflist = machine.path("net.d/10-podspan.conflist");
    std::fs::write(conflist, "{\"plugins\": [{\"type\": \"bridge\"}]}").unwrap();
    machine.until("not ready", || !is_ready());
}

#[test]
fn a_node_is_not_ready_before_it_knows_the_nodes() {
    let machine = Machine::new();
    // The connection is taken, and never answered.
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]});
    let file = machine.path("kubeconfig");
    std::fs::write(&file, kubeconfig.to_string()).unwrap();
    let conflist = machine.path("net.d/10-podspan.conflist");
    let config = format!(
        "node = \"node1\"\nregistry = \"kubernetes\"\nkubeconfig = {file:?}\nconflist = {conflist:?}\npolicy = false\n"
    );
    std::fs::write(machine.path("agent.toml"), config).unwrap();
    let _agent = machine.start("agent");
    let first = (503, "the first look has not ended yet\n".to_owned());
    machine.until("it has looked", || {
        ask("/readyz").is_some_and(|answer| answer != first)
    });
    let why = "the Nodes are not known yet\n".to_owned();
    assert_eq!(ask("/readyz"), Some((503, why)));
    assert_eq!(metric("podspan_ready"), Some(0.0));
    assert!(!conflist.exists());
}

#[test]
fn a_node_without_policy_is_not_ready_and_one_that_only_lost_sight_of_it_is() {
    let machine = Machine::new();
    let file = machine.path("policy.json");
    machine.configure(&format!(
        "policy_file = {file:?}\npolicy_wait_milliseconds = 50\n"
    ));
    let _agent = machine.start("agent");
    let why = "policy is not in force: no list yet of Namespaces, Nodes, Pods, NetworkPolicies, ClusterNetworkPolicies\n";
    machine.until("told", || ask("/readyz") == Some((503, why.to_owned())));
    assert_eq!(metric("podspan_ready"), Some(0.0));
    // The rest of the node does not wait for it: pods are started, closed.
    machine.until("right", || machine.run("plan").0 == 0);
    let _web = machine.pod_named("shop", "web");
    let listed = nft("list table inet podspan");
    assert!(listed.contains("comment \"closed\""), "{listed}");

    machine.policies(&[]);
    machine.until("ready", is_ready);
    assert_eq!(metric("podspan_ready"), Some(1.0));
    let listed = nft("list table inet podspan");
    assert!(!listed.contains("comment \"closed\""), "{listed}");

    std::fs::remove_file(&file).unwrap();
    let told = format!("read {}", file.display());
    machine.until("missed", || machine.log().matches(&told).count() == 3);
    assert!(is_ready());
}

#[test]
fn a_loop_that_hangs_hinders_no_scrape() {
    let machine = Machine::new();
    std::fs::remove_file(machine.path("nodes.toml")).unwrap();
    // Reading it waits for somebody who writes.
    let fifo = machine.path("nodes.toml");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(fifo)
            .status()
            .unwrap()
            .success()
    );
    let _agent = machine.start("agent");
    machine.until("answers", || ask("/metrics").is_some());
    let (status, text) = ask("/readyz").unwrap();
    assert_eq!(
        (status, text.as_str()),
        (503, "the first look has not ended yet\n")
    );
}

#[test]
fn a_port_that_is_taken_is_told_and_tried_again() {
    let machine = Machine::new();
    let rival = TcpListener::bind(ADDRESS).unwrap();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    let said = "no metrics and no health on 127.0.0.1:9470: listen: address already in use";
    machine.until("told", || machine.log().contains(said));
    let (code, status) = machine.run("status");
    assert_eq!(code, 1);
    let line = "WRONG  somebody else listens on 127.0.0.1:9470, where metrics and health should be; to mend it: ss";
    assert!(status.contains(line), "{status}");
    drop(rival);
    machine.until("mended", || {
        machine.log().contains(&format!("mended: {said}")) && is_ready()
    });
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn nobody_listens_where_it_is_switched_off() {
    let machine = Machine::new();
    machine.configure("listen = \"off\"\n");
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    assert_eq!(ask("/metrics"), None);
    machine.until("right", || machine.run("status").0 == 0);
}

#[test]
fn a_router_is_measured_too() {
    let machine = Machine::new();
    let _router = machine.start("router");
    machine.until("ready", is_ready);
    // It has the address of node1, which is therefore refused.
    assert_eq!(metric("podspan_routes"), Some(4.0));
    assert_eq!(metric("podspan_nodes"), Some(3.0));
}

#[test]
fn the_log_is_one_json_object_a_line_where_that_is_wanted() {
    let machine = Machine::new();
    machine.configure("log = \"json\"\n");
    machine
        .ns
        .ip("route add 10.0.2.0/24 via 172.16.0.99 proto static");
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES[1..]);
    machine.ns.ip("route del 10.0.2.0/24 via 172.16.0.99");
    machine.until_routes(&THREE_NODES);
    machine.until("mended", || machine.log().contains("mended"));
    assert_eq!(agent.stop(), Some(0));
    let log = machine.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of =
        |what: &str| -> Vec<&Value> { lines.iter().filter(|line| line["what"] == what).collect() };
    let added = "ip route add 10.0.3.0/24 via 172.16.0.3 proto 112 dev eth0";
    assert!(
        of("made").iter().any(|line| line["change"] == added),
        "{log}"
    );
    let problem = of("problem")[0];
    assert_eq!(problem["level"], "error");
    assert_eq!(of("mended")[0]["error"], problem["error"]);
    assert!(
        lines[0]["message"]
            .as_str()
            .unwrap()
            .starts_with("started as node node1")
    );
    assert!(lines.iter().all(|line| line["time"].is_string()));
}
