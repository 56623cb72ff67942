//! A small cluster of which everything may happen, told to the model and kept for the oracle.
//!
//! Few names, labels, addresses and ports, so that they meet.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podspan_kernel::testing::fuzz::Dice;

use super::super::super::object::{
    Addresses, Attached, Change, ClusterPolicy, Key, Kind, Labels, NamedPort, NetworkPolicy, Node,
    Pod, Protocol, Text,
};
use super::super::super::oracle;
use super::super::super::program::Attachment;
use super::draw;

pub const HERE: &str = "node-a";
pub const KINDS: [Kind; 5] = [
    Kind::Namespaces,
    Kind::Pods,
    Kind::Nodes,
    Kind::NetworkPolicies,
    Kind::ClusterPolicies,
];
pub const PORTS: [u16; 5] = [53, 80, 81, 443, 8080];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// What happens.
#[derive(Debug, Clone)]
pub enum Event {
    /// The API tells something.
    Told(Change),
    Attached(Attachment, Attached),
    Detached(Attachment),
}

#[derive(Debug, Default)]
pub struct World {
    pub cluster: oracle::Cluster,
    pub attachments: BTreeMap<Attachment, Attached>,
    /// Who claims an address: the owner, and behind it who is next.
    claims: BTreeMap<IpAddr, Vec<Key>>,
    /// What each pod claimed, and whether an attachment proved it.
    claimed: BTreeMap<Key, BTreeMap<IpAddr, bool>>,
    uids: u32,
    chains: u32,
}

impl World {
    /// The next thing to happen, done already.
    pub fn happen(&mut self, dice: &mut Dice) -> Vec<Event> {
        match dice.below(20) {
            0..=5 => {
                let key = draw::key(dice);
                let pod = (!dice.percent(20)).then(|| self.draw_pod(&key, dice));
                vec![self.tell(Change::Pod(key, pod))]
            }
            6 | 7 => {
                let name = draw::namespace(dice);
                let labels = (!dice.percent(15)).then(|| draw::labels(dice));
                vec![self.tell(Change::Namespace(name, labels))]
            }
            8 => {
                let name = draw::node(dice);
                let node = (!dice.percent(20)).then(|| self.draw_node(dice));
                vec![self.tell(Change::Node(name, node))]
            }
            9..=12 => {
                let key = draw::policy_key(dice);
                let policy = (!dice.percent(35)).then(|| draw::network_policy(&key, dice));
                vec![self.tell(Change::NetworkPolicy(key, policy))]
            }
            13..=15 => {
                let name: Text = dice.pick(&["c1", "c2", "c3"]).into();
                let policy = (!dice.percent(40)).then(|| draw::cluster_policy(&name, dice));
                vec![self.tell(Change::ClusterPolicy(name, policy))]
            }
            16 | 17 => self.attach(dice),
            18 => {
                let names: Vec<Attachment> = self.attachments.keys().cloned().collect();
                let Some(name) = names.get(dice.below(names.len())) else {
                    return Vec::new();
                };
                vec![self.detach(name)]
            }
            _ => self.list(dice.pick(&KINDS), 80, dice),
        }
    }

    /// All of a kind comes once more, in any order; of what is there so many of a hundred are there still.
    pub fn list(&mut self, kind: Kind, stay: usize, dice: &mut Dice) -> Vec<Event> {
        let mut there: Vec<Change> = match kind {
            Kind::Namespaces => {
                let all = self.cluster.namespaces.iter();
                all.map(|(name, it)| Change::Namespace(name.clone(), Some(it.clone())))
                    .collect()
            }
            Kind::Pods => {
                let all = self.cluster.pods.iter();
                all.map(|(key, it)| Change::Pod(key.clone(), Some(it.clone())))
                    .collect()
            }
            Kind::Nodes => {
                let all = self.cluster.nodes.iter();
                all.map(|(name, it)| Change::Node(name.clone(), Some(it.clone())))
                    .collect()
            }
            Kind::NetworkPolicies => {
                let all = self.cluster.network_policies.iter();
                all.map(|(key, it)| Change::NetworkPolicy(key.clone(), Some(it.clone())))
                    .collect()
            }
            Kind::ClusterPolicies => {
                let all = self.cluster.cluster_policies.iter();
                all.map(|(name, it)| Change::ClusterPolicy(name.clone(), Some(it.clone())))
                    .collect()
            }
        };
        let mut events = vec![Event::Told(Change::Begin(kind))];
        let mut gone = Vec::new();
        while !there.is_empty() {
            let one = there.swap_remove(dice.below(there.len()));
            if dice.percent(stay) {
                events.push(self.tell(one));
            } else {
                gone.push(one);
            }
        }
        // The model finds out at the end, in the order of the names.
        gone.sort_by_key(|change| match change {
            Change::Pod(key, _) | Change::NetworkPolicy(key, _) => Some(key.clone()),
            _ => None,
        });
        for one in gone {
            self.tell(match one {
                Change::Namespace(name, _) => Change::Namespace(name, None),
                Change::Pod(key, _) => Change::Pod(key, None),
                Change::Node(name, _) => Change::Node(name, None),
                Change::NetworkPolicy(key, _) => Change::NetworkPolicy(key, None),
                Change::ClusterPolicy(name, _) => Change::ClusterPolicy(name, None),
                other => other,
            });
        }
        events.push(Event::Told(Change::End(kind)));
        events
    }

    fn tell(&mut self, change: Change) -> Event {
        let cluster = &mut self.cluster;
        match &change {
            Change::Namespace(name, it) => put(&mut cluster.namespaces, name, it),
            Change::Node(name, it) => put(&mut cluster.nodes, name, it),
            Change::NetworkPolicy(key, it) => put(&mut cluster.network_policies, key, it),
            Change::ClusterPolicy(name, it) => put(&mut cluster.cluster_policies, name, it),
            Change::Pod(key, it) => {
                let before = cluster.pods.get(key).map(|pod| pod.uid.clone());
                if before != it.as_ref().map(|pod| pod.uid.clone()) {
                    cluster.pods.remove(key);
                    self.claim(key);
                }
                put(&mut self.cluster.pods, key, it);
                self.claim(key);
            }
            Change::Begin(_) | Change::End(_) => {}
        }
        Event::Told(change)
    }

    fn attach(&mut self, dice: &mut Dice) -> Vec<Event> {
        let keys: Vec<Key> = self.cluster.pods.keys().cloned().collect();
        let pod = match keys.get(dice.below(keys.len())) {
            Some(key) if dice.percent(85) => key.clone(),
            _ => draw::key(dice),
        };
        let known = self.cluster.pods.get(&pod);
        let uid = match known {
            _ if dice.percent(15) => None,
            Some(known) if dice.percent(85) => Some(known.uid.clone()),
            _ => Some(format!("uid-{}", self.uids + dice.below(2) as u32).into()),
        };
        let addresses = match known {
            Some(known) if known.addresses != Addresses::default() && dice.percent(70) => {
                known.addresses
            }
            _ => draw::addresses(dice),
        };
        let mut events = Vec::new();
        // No address is given to two attachments at a time.
        let others: Vec<Attachment> = self
            .attachments
            .iter()
            .filter(|(_, it)| {
                it.addresses
                    .iter()
                    .any(|own| addresses.iter().any(|it| it == own))
            })
            .map(|(name, _)| name.clone())
            .collect();
        events.extend(others.iter().map(|name| self.detach(name)));
        self.chains += 1;
        let name: Attachment = format!("veth{}", self.chains).into();
        let attached = Attached {
            pod: pod.clone(),
            uid,
            addresses,
        };
        self.attachments.insert(name.clone(), attached.clone());
        self.claim(&pod);
        events.push(Event::Attached(name, attached));
        events
    }

    fn detach(&mut self, name: &Attachment) -> Event {
        if let Some(attached) = self.attachments.remove(name) {
            self.claim(&attached.pod);
        }
        Event::Detached(name.clone())
    }

    /// True when the attachment is that pod's.
    pub fn belongs(&self, attached: &Attached) -> bool {
        let pod = self.cluster.pods.get(&attached.pod);
        pod.is_some_and(|pod| match &attached.uid {
            Some(uid) => *uid == pod.uid,
            None => pod.node.as_deref() == Some(HERE),
        })
    }

    /// Finds what the pod claims now, and to whom that gives addresses.
    fn claim(&mut self, key: &Key) {
        let now = self.wanted(key);
        let before = self.claimed.insert(key.clone(), now.clone());
        let before = before.unwrap_or_default();
        for (address, was_proven) in &before {
            let claims = self.claims.entry(*address).or_default();
            let proven_still = now.get(address).copied();
            if proven_still.is_none() {
                claims.retain(|claimant| claimant != key);
            } else if *was_proven
                && proven_still == Some(false)
                && claims.first() == Some(key)
                && claims.len() > 1
            {
                claims.swap(0, 1);
            }
        }
        for (address, proven) in &now {
            let was = before.get(address).copied();
            if was.is_some() && !(*proven && was == Some(false)) {
                continue;
            }
            let claims = self.claims.entry(*address).or_default();
            let owner = claims.first().cloned();
            let owner_proves = owner.as_ref().is_some_and(|owner| {
                let claimed = self.claimed.get(owner);
                claimed.and_then(|all| all.get(address)) == Some(&true)
            });
            if owner.as_ref() != Some(key) {
                claims.retain(|claimant| claimant != key);
                let place = usize::from(owner_proves && !proven);
                claims.insert(place, key.clone());
            }
        }
        let owned = self.claims.iter();
        self.cluster.owners = owned
            .filter_map(|(address, claims)| Some((*address, claims.first()?.clone())))
            .collect();
    }

    /// The addresses that the pod says are its own, or that its attachment has, and whether an attachment has them.
    fn wanted(&self, key: &Key) -> BTreeMap<IpAddr, bool> {
        let Some(pod) = self.cluster.pods.get(key) else {
            return BTreeMap::new();
        };
        let attached: Vec<&Attached> = self
            .attachments
            .values()
            .filter(|it| it.pod == *key && self.belongs(it))
            .collect();
        let mut wanted = pod.addresses;
        if wanted == Addresses::default()
            && let Some(first) = attached.first()
        {
            wanted = first.addresses;
        }
        if pod.host_network {
            return BTreeMap::new();
        }
        let proven = |address: &IpAddr| {
            attached
                .iter()
                .any(|it| it.addresses.iter().any(|own| own == *address))
        };
        wanted
            .iter()
            .map(|address| (address, proven(&address)))
            .collect()
    }

    fn draw_pod(&mut self, key: &Key, dice: &mut Dice) -> Pod {
        let before = self.cluster.pods.get(key).filter(|_| dice.percent(85));
        let mut pod = match before {
            Some(before) => before.clone(),
            None => {
                self.uids += 1;
                Pod {
                    key: key.clone(),
                    uid: format!("uid-{}", self.uids).into(),
                    node: dice.percent(90).then(|| draw::node(dice)),
                    labels: draw::labels(dice),
                    addresses: if dice.percent(75) {
                        draw::addresses(dice)
                    } else {
                        Addresses::default()
                    },
                    ports: named_ports(dice),
                    host_network: dice.percent(8),
                }
            }
        };
        if pod.host_network {
            let node = pod
                .node
                .as_ref()
                .and_then(|name| self.cluster.nodes.get(name));
            pod.addresses = Addresses::default();
            for address in node.iter().flat_map(|node| node.addresses.iter()) {
                pod.addresses.add(*address);
            }
        }
        match dice.below(8) {
            0..=2 => pod.labels = draw::labels(dice),
            3 => pod.ports = named_ports(dice),
            4 => pod.addresses = draw::addresses(dice),
            // It has ended, or is not there yet.
            5 => pod.addresses = Addresses::default(),
            _ => {}
        }
        pod
    }

    fn draw_node(&self, dice: &mut Dice) -> Node {
        let number = 1 + dice.below(3) as u8;
        let mut addresses: Vec<IpAddr> = vec![[192, 0, 2, number].into()];
        if dice.percent(50) {
            addresses.push([0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)].into());
        }
        // A second one of a family, and that of a pod.
        if dice.percent(20) {
            addresses.push([198, 51, 100, 200 + number].into());
        }
        if dice.percent(5) {
            addresses = draw::addresses(dice).iter().collect();
        }
        Node {
            labels: draw::labels(dice),
            addresses: addresses.into(),
        }
    }
}

fn put<K: Ord + Clone, T: Clone>(map: &mut BTreeMap<K, T>, key: &K, one: &Option<T>) {
    match one {
        Some(one) => map.insert(key.clone(), one.clone()),
        None => map.remove(key),
    };
}

fn named_ports(dice: &mut Dice) -> std::sync::Arc<[NamedPort]> {
    let mut ports: Vec<NamedPort> = (0..dice.below(4))
        .map(|_| NamedPort {
            name: draw::port_name(dice),
            protocol: dice.pick(&PROTOCOLS),
            port: dice.pick(&PORTS),
        })
        .collect();
    ports.sort();
    ports.into()
}

/// A random packet's port.
pub fn packet_port(dice: &mut Dice) -> Option<(Protocol, u16)> {
    let port = dice.pick(&[0, 1, 52, 53, 54, 80, 81, 82, 443, 8080, 65535]);
    dice.percent(92).then(|| (dice.pick(&PROTOCOLS), port))
}

/// All addresses that anybody may have, and some that nobody has.
pub fn universe() -> Vec<IpAddr> {
    let pods = (1..=8u8).flat_map(draw::address_pair);
    let nodes = (1..=3u8).flat_map(|number| {
        let v6 = [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)];
        [IpAddr::from([192, 0, 2, number]), IpAddr::from(v6)]
    });
    let outside = [
        IpAddr::from([198, 51, 100, 7]),
        IpAddr::from([255, 255, 255, 255]),
        IpAddr::from([0xffffu16; 8]),
        IpAddr::from([0u8; 4]),
        IpAddr::from([0u16; 8]),
    ];
    pods.chain(nodes).chain(outside).collect()
}

/// Labels out of pairs in any order.
pub fn sorted(mut pairs: Vec<(Text, Text)>) -> Labels {
    pairs.sort();
    pairs.dedup_by(|one, other| one.0 == other.0);
    Labels(pairs.into())
}

impl World {
    /// For a message.
    pub fn policies(&self) -> (Vec<&NetworkPolicy>, Vec<&ClusterPolicy>) {
        (
            self.cluster.network_policies.values().collect(),
            self.cluster.cluster_policies.values().collect(),
        )
    }
}
