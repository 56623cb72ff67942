//! Somebody takes the whole packet filter away under pods that run (`nft flush ruleset`, as `systemctl restart nftables` does): what was
//! denied is denied again within a moment, and not with the agent's next look of its own.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::cases::{Cluster, Layout};
use crate::first::{ALLOWED, Ends, namespace, object, pod};
use crate::wire::network::{Network, again};

/// Nothing else listens there, and nobody may send to it.
const CLOSED: u16 = 4242;
/// Between two datagrams.
const PAUSE: Duration = Duration::from_millis(2);
/// How long the sender is listened to before, and in the end.
const LISTEN: Duration = Duration::from_millis(500);
/// Until it must be closed again: it takes some 50 ms; the agent looks by itself after 10 s.
const DEADLINE: Duration = Duration::from_secs(5);

/// When datagrams came, until it is over.
fn hear(socket: &UdpSocket, over: &AtomicBool) -> Vec<Instant> {
    let mut came = Vec::new();
    while !over.load(Relaxed) {
        if socket.recv(&mut [0; 8]).is_ok() {
            came.push(Instant::now());
        }
    }
    came
}

#[test]
fn what_is_denied_is_so_again_at_once_when_somebody_flushes_the_packet_filter() {
    let cluster = Cluster::letters(&Layout::two_nodes());
    let mut network = Network::up(&cluster);
    let pods = [pod("db", "db", (1, 2)), pod("web", "web", (1, 3))];
    let ports = json!([{"protocol": "TCP", "port": ALLOWED}]);
    let policy = json!({"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "db"},
        "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"], "ingress": [{"ports": ports}]}});
    let objects: Vec<_> = pods.iter().map(object).collect();
    network.enforce_objects(&[&[namespace(), policy][..], &objects].concat());
    for pod in &pods {
        network.add(&cluster, pod);
    }
    let [db, web] = pods
        .each_ref()
        .map(|pod| again(&network.pods[&pod.key].netns));
    let targets: Vec<_> = pods[0].addresses.iter().collect();
    let socket = db.run(|| UdpSocket::bind(("::", CLOSED)).unwrap()).unwrap();
    socket.set_read_timeout(Some(PAUSE)).unwrap();
    // Its next look of its own is ten seconds off.
    network.nodes[0].kill_agent();
    network.start_agent(0);
    network.until_in_force();

    let over = &AtomicBool::new(false);
    let send = || {
        while !over.load(Relaxed) {
            for target in &targets {
                let any = ["0.0.0.0:0", "[::]:0"][usize::from(target.is_ipv6())];
                let to = SocketAddr::new(*target, CLOSED);
                // Each is the first of a connection; the node may say at once that it does not pass.
                let _ = UdpSocket::bind(any).unwrap().send_to(b"?", to);
            }
            std::thread::sleep(PAUSE);
        }
    };
    let (flushed, came) = std::thread::scope(|scope| {
        let ends = Ends(over);
        let hearing = scope.spawn(|| hear(&socket, over));
        scope.spawn(|| web.run(send).unwrap());
        std::thread::sleep(LISTEN);
        let mut nft = Command::new("nft");
        nft.args(["flush", "ruleset"]);
        let flushed = Instant::now();
        let status = network.nodes[0].netns.run(|| nft.status().unwrap());
        assert!(status.unwrap().success());
        std::thread::sleep(DEADLINE + LISTEN);
        drop(ends);
        (flushed, hearing.join().unwrap())
    });
    assert_eq!(came.iter().filter(|at| **at < flushed).count(), 0);
    let last = came.last().map(|at| *at - flushed);
    println!(
        "{} denied datagrams came, the last after {last:?}",
        came.len()
    );
    assert!(last.is_none_or(|last| last < DEADLINE), "{last:?}");

    for target in targets {
        let to = SocketAddr::new(target, ALLOWED);
        let stream = web.run(|| std::net::TcpStream::connect_timeout(&to, DEADLINE));
        stream
            .unwrap()
            .unwrap_or_else(|error| panic!("{to} is allowed: {error}"));
    }
    let failures = network.nodes[0].metric("podspan_policy_failures_total");
    assert_eq!(failures, Some(0));
}
