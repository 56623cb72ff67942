use std::path::Path;
use std::process::Command;

use podspan_kernel::testing::TestNs;
use tokio::net::TcpListener;

use super::told::Way;
use super::*;
use crate::board::Board;
use crate::config::Routing;
use crate::desired::{Subnet, Underlay, desired};
use crate::registry::nodes_file;

fn config(routing: Routing) -> Config {
    let content = "mtu = 1400\nlisten = 'off'";
    let mut config = Config::parse_agent(Path::new("agent.toml"), content, "node1").unwrap();
    if let Role::Node(role) = &mut config.role {
        role.routing = routing;
    }
    config
}

fn targets_of(config: &Config) -> Targets {
    let nodes = r#"
        [[nodes]]
        name = "node1"
        addresses = ["192.168.1.11", "fd00::11"]
        pod_cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"]
        [[nodes]]
        name = "node2"
        addresses = ["192.168.1.12", "fd00::12"]
        pod_cidrs = ["10.244.2.0/24", "fd00:10:244:2::/64", "10.245.2.0/24"]
        [[nodes]]
        name = "elsewhere"
        addresses = ["172.16.0.3"]
        pod_cidrs = ["10.244.3.0/24"]
    "#;
    let (cluster, _) = nodes_file::parse(Path::new("nodes.toml"), nodes).unwrap();
    let subnet = |net: &str| Subnet {
        net: net.parse().unwrap(),
        link: 2,
        link_name: "eth0".into(),
        mtu: 1500,
        up: true,
    };
    let underlay = Underlay {
        subnets: vec![subnet("192.168.1.11/24"), subnet("fd00::11/64")],
        can_filter: true,
        has_ipv6: true,
    };
    let (desired, _) = desired(config, &cluster, &underlay).unwrap();
    let desired = desired.unwrap();
    let found = targets(config, &cluster, &desired, &Targets::default());
    let again = targets(config, &cluster, &desired, &found);
    assert_eq!(again, found);
    let mut both = again.peers.iter().zip(&found.peers);
    assert!(both.all(|(one, other)| Arc::ptr_eq(one, other)));
    found
}

fn ways(targets: &Targets) -> Vec<String> {
    let ways = targets.peers.iter();
    ways.map(|peer| format!("{} -> {peer}", peer.source))
        .collect()
}

#[test]
fn every_pod_cidr_that_there_is_a_route_for_is_tested_from_the_gateway_of_its_family() {
    let direct = targets_of(&config(Routing::Direct));
    let expected = [
        "10.244.1.1 -> node2 (10.244.2.1)",
        "fd00:10:244:1::1 -> node2 (fd00:10:244:2::1)",
        "10.244.1.1 -> node2 (10.245.2.1)",
    ];
    assert_eq!(ways(&direct), expected);
    assert_eq!(direct.mtu, Some(1400));
    assert_eq!(direct.peers[0].address, Some([192, 168, 1, 12].into()));
    // Through a tunnel to where no segment leads.
    let expected = [
        expected.as_slice(),
        &["10.244.1.1 -> elsewhere (10.244.3.1)"],
    ]
    .concat();
    assert_eq!(ways(&targets_of(&config(Routing::Auto))), expected);
    let router = Routing::Router {
        cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
        routers: vec![[192, 168, 1, 1].into()],
    };
    let expected = [
        "10.244.1.1 -> node2 (10.244.2.1)",
        "10.244.1.1 -> elsewhere (10.244.3.1)",
    ];
    assert_eq!(ways(&targets_of(&config(router))), expected);
}

#[test]
fn where_it_is_switched_off_nothing_is_tested_nor_answered() {
    let mut config = config(Routing::Direct);
    config.operation.probe = false;
    assert_eq!(targets_of(&config), Targets::default());
}

#[test]
fn what_fails_is_told_with_what_mends_it_and_many_together() {
    let peer = |n: u8| Peer {
        node: format!("node{n}").into(),
        gateway: [10, 244, n, 1].into(),
        address: Some([192, 168, 1, n].into()),
        source: [10, 244, 0, 1].into(),
    };
    let way = Way {
        link: "podspan.1".into(),
        kind: Some("vxlan".into()),
    };
    let silent = describe(&peer(2), Failure::Silent, Some(&way));
    let begin = "peer node2 (10.244.2.1) does not answer on podspan.1; see whether the node is up: ping 192.168.1.2";
    assert!(silent.starts_with(begin), "{silent}");
    assert!(silent.ends_with("ethtool -K podspan.1 tx off"), "{silent}");
    let plain = describe(&peer(2), Failure::Silent, None);
    assert!(!plain.contains("ethtool"), "{plain}");

    let failing = |count: u8| -> Failing {
        let peers = (1..=count).map(|n| (Arc::new(peer(n)), Failure::Silent));
        peers.collect()
    };
    let problems = |count| told::problems(&failing(count), |_| Some(way.clone()));
    assert_eq!(problems(10).len(), 10);
    assert!(problems(10).iter().all(|line| line.contains("ethtool")));
    assert_eq!(problems(11).len(), 1);
    assert_eq!(problems(11), problems(200));
}

/// Another node's gateway of each family, and ours. All are in one namespace, and packets as small as on a segment.
const WAYS: [(&str, &str); 2] = [("10.244.2.1", "10.244.1.1"), ("fd00:2::1", "fd00:1::1")];

fn peer_of((gateway, source): (&str, &str)) -> Peer {
    Peer {
        node: "node2".into(),
        gateway: gateway.parse().unwrap(),
        address: None,
        source: source.parse().unwrap(),
    }
}

/// Runs it in a namespace that has these addresses, and as many pods as have four connections each.
fn on_two_nodes(story: impl AsyncFnOnce()) {
    let ns = TestNs::new();
    for (gateway, source) in WAYS {
        ns.ip(&format!("addr add {gateway} dev lo"));
        ns.ip(&format!("addr add {source} dev lo"));
    }
    ns.ip("addr add 10.244.3.0/24 dev lo");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(story());
}

async fn test_way(way: (&str, &str)) -> Outcome {
    test(&peer_of(way), Some(1400)).await
}

/// Drops what comes in for that reason, until the next call.
fn hole(what: &str) {
    let table = format!(
        "table inet hole {{}}; delete table inet hole; table inet hole {{ chain in {{ type filter hook input priority 0; {what}; }}; }}"
    );
    assert!(Command::new("nft").arg(table).status().unwrap().success());
}

#[test]
fn who_takes_what_is_sent_and_does_not_answer_is_no_fault_of_the_way() {
    on_two_nodes(async || {
        for way in WAYS {
            // Connections that nobody accepts: an agent that is stopped, or has no time.
            let gateway: IpAddr = way.0.parse().unwrap();
            let _busy = TcpListener::bind((gateway, PORT)).await.unwrap();
            let is_foreign = |outcome| matches!(outcome, Outcome::Foreign(_));
            let outcome = test_way(way).await;
            assert!(is_foreign(outcome), "{outcome:?}");
            let too_large = Outcome::Fails(Failure::TooLarge {
                bytes: 1400,
                lost: Direction::There,
            });
            hole("meta length > 1000 drop");
            assert_eq!(test_way(way).await, too_large);
            // Nothing but the handshake passes.
            hole("tcp flags & psh == psh drop");
            assert_eq!(test_way(way).await, Outcome::Fails(Failure::Silent));
            hole("accept");
        }
    });
}

#[test]
fn who_holds_all_the_connections_that_he_can_takes_the_answer_from_nobody() {
    on_two_nodes(async || {
        let way = WAYS[0];
        let gateway: IpAddr = way.0.parse().unwrap();
        let _answers = tokio::spawn(answer::answer(
            gateway,
            Some(1400),
            Arc::new(Board::new()),
            || {},
        ));
        let passes = |outcome| matches!(outcome, Outcome::Passes(_));
        let begin = Instant::now();
        while !passes(test_way(way).await) {
            assert!(begin.elapsed() < Duration::from_secs(10));
        }
        let mut held = Vec::new();
        for _ in 0..200 {
            held.push(
                connect(&peer_of((way.0, "10.244.3.1")), None)
                    .await
                    .unwrap(),
            );
        }
        let outcome = test_way(way).await;
        assert!(passes(outcome), "{outcome:?}");
        // As many of them as leave no place: that is no failure either.
        for n in 2..=8 {
            let pod = format!("10.244.3.{n}");
            for _ in 0..4 {
                held.push(connect(&peer_of((way.0, &pod)), None).await.unwrap());
            }
        }
        let outcome = test_way(way).await;
        assert!(matches!(outcome, Outcome::Foreign(_)), "{outcome:?}");
        drop(held);
        let begin = Instant::now();
        while !passes(test_way(way).await) {
            assert!(begin.elapsed() < Duration::from_secs(10));
        }
    });
}
