//! Names, labels, selectors and policies by chance.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use podspan_kernel::testing::fuzz::Dice;

use super::super::super::object::{
    Action, Addresses, ClusterPeer, ClusterPolicy, ClusterRule, Key, Labels, NetworkPolicy, Peer,
    Port, Protocol, Requirement, Rule, Selector, Text, Tier,
};
use super::world::{PORTS, sorted};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
const LABELS: [&str; 3] = ["app", "tier", "x"];
const VALUES: [&str; 3] = ["a", "b", ""];

pub fn namespace(dice: &mut Dice) -> Text {
    dice.pick(&["n1", "n2", "n3"]).into()
}

pub fn node(dice: &mut Dice) -> Text {
    dice.pick(&["node-a", "node-a", "node-b", "node-c"]).into()
}

pub fn key(dice: &mut Dice) -> Key {
    Key {
        namespace: namespace(dice),
        name: dice.pick(&["p1", "p2", "p3", "p4"]).into(),
    }
}

pub fn policy_key(dice: &mut Dice) -> Key {
    Key {
        namespace: namespace(dice),
        name: dice.pick(&["allow", "deny", "other"]).into(),
    }
}

pub fn port_name(dice: &mut Dice) -> Text {
    dice.pick(&["http", "dns"]).into()
}

pub fn address_pair(number: u8) -> [IpAddr; 2] {
    let v6 = [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)];
    [
        Ipv4Addr::from([10, 0, 0, number]).into(),
        Ipv6Addr::from(v6).into(),
    ]
}

pub fn addresses(dice: &mut Dice) -> Addresses {
    let number = 1 + dice.below(8) as u8;
    let mut addresses = Addresses::default();
    for address in address_pair(number) {
        match address {
            IpAddr::V4(address) => addresses.v4 = dice.percent(85).then_some(address),
            IpAddr::V6(address) => addresses.v6 = dice.percent(60).then_some(address),
        }
    }
    addresses
}

pub fn labels(dice: &mut Dice) -> Labels {
    let pairs = (0..dice.below(4)).map(|_| (dice.pick(&LABELS).into(), dice.pick(&VALUES).into()));
    sorted(pairs.collect())
}

fn selector(dice: &mut Dice) -> Selector {
    let count = dice.pick(&[0, 0, 1, 1, 1, 2]);
    let requirements = (0..count).map(|_| {
        let key: Text = dice.pick(&LABELS).into();
        let values: Vec<Text> = (0..1 + dice.below(2))
            .map(|_| dice.pick(&VALUES).into())
            .collect();
        match dice.below(20) {
            0..=10 => Requirement::In(key, values.into()),
            11..=13 => Requirement::NotIn(key, values.into()),
            14..=16 => Requirement::Exists(key),
            17 | 18 => Requirement::DoesNotExist(key),
            _ => Requirement::Unknown,
        }
    });
    Selector(requirements.collect())
}

fn block(dice: &mut Dice) -> IpNet {
    let texts = [
        "0.0.0.0/0",
        "::/0",
        "10.0.0.0/8",
        "10.0.0.0/29",
        "10.0.0.4/30",
        "10.0.0.5/31",
        "10.0.0.2/32",
        "10.0.0.3/32",
        "fd00::/64",
        "fd00::4/126",
        "fd00::3/128",
        "192.0.2.0/24",
        "192.0.2.1/32",
        "255.255.255.255/32",
        "ffff::/16",
        "0.0.0.0/1",
    ];
    dice.pick(&texts).parse().expect("a block")
}

fn blocks(dice: &mut Dice, most: usize) -> Vec<IpNet> {
    (0..dice.below(most + 1)).map(|_| block(dice)).collect()
}

fn port(dice: &mut Dice) -> Port {
    let protocol = dice.pick(&PROTOCOLS);
    match dice.below(20) {
        0..=2 => Port::All(protocol),
        3..=8 => {
            let number = dice.pick(&PORTS);
            Port::Range(protocol, number, number)
        }
        9..=11 => Port::Range(
            protocol,
            dice.pick(&[0, 52, 80]),
            dice.pick(&[53, 81, 65535]),
        ),
        12..=16 => Port::Named(Some(protocol), port_name(dice)),
        17 | 18 => Port::Named(dice.percent(50).then_some(protocol), port_name(dice)),
        _ => Port::Unknown,
    }
}

fn ports(dice: &mut Dice) -> Vec<Port> {
    let count = dice.pick(&[0, 0, 1, 1, 2, 3]);
    (0..count).map(|_| port(dice)).collect()
}

fn rule(dice: &mut Dice) -> Rule {
    let count = dice.pick(&[0, 1, 1, 1, 2, 3]);
    let peers = (0..count).map(|_| match dice.below(20) {
        0..=5 => Peer::Pods(selector(dice)),
        6..=12 => Peer::PodsOf(selector(dice), selector(dice)),
        13..=18 => Peer::Block(block(dice), blocks(dice, 2)),
        _ => Peer::Unknown,
    });
    Rule {
        peers: peers.collect(),
        ports: ports(dice),
    }
}

pub fn network_policy(key: &Key, dice: &mut Dice) -> NetworkPolicy {
    let mut rules = |chance| {
        dice.percent(chance)
            .then(|| (0..dice.below(3)).map(|_| rule(dice)).collect())
    };
    NetworkPolicy {
        key: key.clone(),
        ingress: rules(75),
        egress: rules(50),
        pods: selector(dice),
    }
}

fn cluster_rule(dice: &mut Dice) -> ClusterRule {
    let peers = (0..1 + dice.below(2)).map(|_| match dice.below(20) {
        0..=11 => ClusterPeer::Pods(selector(dice), selector(dice)),
        12 | 13 => ClusterPeer::Nodes(selector(dice)),
        14..=18 => ClusterPeer::Networks(blocks(dice, 3)),
        _ => ClusterPeer::Unknown,
    });
    ClusterRule {
        peers: peers.collect(),
        name: dice.percent(30).then(|| "why".into()),
        action: dice.pick(&[Action::Accept, Action::Deny, Action::Deny, Action::Pass]),
        ports: ports(dice),
    }
}

pub fn cluster_policy(name: &Text, dice: &mut Dice) -> ClusterPolicy {
    ClusterPolicy {
        name: name.clone(),
        tier: dice.pick(&[Tier::Admin, Tier::Baseline]),
        priority: dice.pick(&[0, 5, 1000]),
        subject: (selector(dice), selector(dice)),
        ingress: (0..dice.below(3)).map(|_| cluster_rule(dice)).collect(),
        egress: (0..dice.below(3)).map(|_| cluster_rule(dice)).collect(),
    }
}
