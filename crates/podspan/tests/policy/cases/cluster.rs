//! What is in the API: two clusters to start from, and how a change makes another of one.
//!
//! *Letters* has namespaces x, y and z with pods a, b and c, which all serve the ports 80 and 81 of all protocols under names such as
//! `serve-80-tcp`. *Houses* has the namespaces of the conformance suite of ClusterNetworkPolicy with two pods each, of which
//! those of one live in their nodes' network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::build::{key, labels, labels_and};
use super::object::{
    Addresses, Change, ClusterPolicy, Key, Kind, Labels, NamedPort, NetworkPolicy, Node, Pod,
    Protocol, Text,
};
use super::{Ask, Socket};

/// The label of every namespace that is its name.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// What pods of Letters serve.
const LETTERS: [Socket; 6] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 81),
    (Protocol::Udp, 80),
    (Protocol::Udp, 81),
    (Protocol::Sctp, 80),
    (Protocol::Sctp, 81),
];
/// What pods of Houses serve.
const HOUSES: [Socket; 6] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 8080),
    (Protocol::Udp, 53),
    (Protocol::Udp, 5353),
    (Protocol::Sctp, 9003),
    (Protocol::Sctp, 9005),
];
/// What pods of Houses serve that live in their nodes' network: ports that no node uses otherwise.
pub const HOUSES_NODES: [Socket; 6] = [
    (Protocol::Tcp, 36_001),
    (Protocol::Tcp, 36_002),
    (Protocol::Udp, 36_003),
    (Protocol::Udp, 36_004),
    (Protocol::Sctp, 36_005),
    (Protocol::Sctp, 36_006),
];

/// Where pods are.
pub struct Layout<'a> {
    /// The nodes, in order.
    pub nodes: Vec<(Text, Node)>,
    /// The number of a pod's node, and the pod's addresses. It is asked of pods that a case makes, too: who makes
    /// them for real puts what they really got in the place of what was said here.
    pub place: &'a dyn Fn(&Key) -> (usize, Addresses),
}

impl Layout<'_> {
    /// Two nodes, with neighbours on the same and on the other one, for whom blocks of addresses cut between pods of a node.
    pub fn two_nodes() -> Self {
        let node = |number: u8| {
            let addresses: [IpAddr; 2] = [
                Ipv4Addr::new(172, 16, 0, number).into(),
                Ipv6Addr::new(0xfd00, 0x172, 0, 0, 0, 0, 0, number.into()).into(),
            ];
            let addresses = addresses.into();
            let name = format!("node{number}");
            let labels = labels([
                ("kubernetes.io/hostname", &name),
                ("kubernetes.io/os", "linux"),
            ]);
            (name.into(), Node { labels, addresses })
        };
        Self {
            nodes: vec![node(1), node(2)],
            place: &|pod| {
                let (namespace, number) = position(pod);
                let index = usize::from((namespace + number) % 2);
                let (net, host) = (index as u8 + 1, 2 + namespace * 16 + number * 5);
                let addresses = Addresses {
                    v4: Some(Ipv4Addr::new(10, 244, net, host)),
                    v6: Some(Ipv6Addr::new(
                        0xfd00,
                        0x10,
                        0x244,
                        net.into(),
                        0,
                        0,
                        0,
                        host.into(),
                    )),
                };
                (index, addresses)
            },
        }
    }

    /// A pod at its place.
    pub fn pod(&self, pod: &str, labels: Labels, ports: &[(&str, Socket)]) -> Pod {
        let key = key(pod);
        let (index, addresses) = (self.place)(&key);
        let mut ports: Vec<_> = ports
            .iter()
            .map(|&(name, (protocol, port))| NamedPort {
                name: name.into(),
                protocol,
                port,
            })
            .collect();
        ports.sort();
        Pod {
            uid: format!("uid-of-{}-{}", key.namespace, key.name).into(),
            key,
            node: Some(self.nodes[index].0.clone()),
            labels,
            addresses,
            ports: ports.into(),
            host_network: false,
        }
    }

    /// A pod of Letters.
    pub fn letter(&self, pod: &str, labels: Labels) -> Pod {
        let ports = LETTERS.map(|socket| (port_name(socket), socket));
        let ports = ports.each_ref().map(|(name, socket)| (&**name, *socket));
        self.pod(pod, labels, &ports)
    }
}

/// Numbers of the namespace and of the pod in it, which no other pod of a case has.
fn position(pod: &Key) -> (u8, u8) {
    let known = [
        "x",
        "y",
        "z",
        "w",
        "y-2",
        "gryffindor",
        "slytherin",
        "hufflepuff",
        "ravenclaw",
        "forbidden-forrest",
    ];
    let namespace = known
        .iter()
        .position(|name| *pod.namespace == **name)
        .unwrap();
    let number = match pod.name.as_bytes() {
        [letter] => letter - b'a',
        [.., digit] => digit - b'0',
        [] => panic!("a pod without a name"),
    };
    (namespace as u8, number)
}

fn port_name((protocol, port): Socket) -> String {
    format!("serve-{port}-{protocol:?}").to_lowercase()
}

/// What is in the API, and what pods serve.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Namespaces with their labels.
    pub namespaces: BTreeMap<Text, Labels>,
    /// Pods.
    pub pods: BTreeMap<Key, Pod>,
    /// Nodes.
    pub nodes: BTreeMap<Text, Node>,
    /// NetworkPolicies.
    pub policies: BTreeMap<Key, NetworkPolicy>,
    /// ClusterNetworkPolicies.
    pub cluster_policies: BTreeMap<Text, ClusterPolicy>,
    serves: [Socket; 6],
}

impl Cluster {
    fn new(layout: &Layout<'_>, serves: [Socket; 6]) -> Self {
        Self {
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            nodes: layout.nodes.iter().cloned().collect(),
            policies: BTreeMap::new(),
            cluster_policies: BTreeMap::new(),
            serves,
        }
    }

    /// Namespaces x, y and z with pods a, b and c.
    pub fn letters(layout: &Layout<'_>) -> Self {
        let mut cluster = Self::new(layout, LETTERS);
        for namespace in ["x", "y", "z"] {
            cluster.apply(&namespace_put(namespace, labels([("ns", namespace)])));
            for pod in ["a", "b", "c"] {
                let pod = layout.letter(&format!("{namespace}/{pod}"), labels([("pod", pod)]));
                cluster.apply(&pod_put(&pod));
            }
        }
        cluster
    }

    /// The namespaces of the conformance suite of ClusterNetworkPolicy.
    pub fn houses(layout: &Layout<'_>) -> Self {
        let mut cluster = Self::new(layout, HOUSES);
        for (house, person) in [
            ("gryffindor", "harry-potter"),
            ("slytherin", "draco-malfoy"),
            ("hufflepuff", "cedric-diggory"),
            ("ravenclaw", "luna-lovegood"),
            ("forbidden-forrest", "centaur"),
        ] {
            let mine = labels([("conformance-house", house)]);
            cluster.apply(&namespace_put(house, mine.clone()));
            for number in 0..2 {
                let name = format!("{house}/{person}-{number}");
                let ports = [("web", (Protocol::Tcp, 80)), ("dns", (Protocol::Udp, 53))];
                let mut pod = layout.pod(&name, mine.clone(), &ports);
                if person == "centaur" {
                    let (node, known) = &layout.nodes[number];
                    pod.host_network = true;
                    pod.ports = Arc::new([]);
                    pod.node = Some(node.clone());
                    pod.addresses = Addresses::default();
                    for address in known.addresses.iter() {
                        pod.addresses.add(*address);
                    }
                }
                cluster.apply(&pod_put(&pod));
            }
        }
        cluster
    }

    /// What a pod serves.
    pub fn serves(&self, pod: &Pod) -> &[Socket] {
        if pod.host_network {
            &HOUSES_NODES
        } else {
            &self.serves
        }
    }

    /// The pod of that `namespace/name`.
    #[track_caller]
    pub fn pod(&self, pod: &str) -> &Pod {
        &self.pods[&key(pod)]
    }

    /// Every pod asks every pod there.
    pub fn asks(&self, sockets: impl Fn(&Key) -> Vec<Socket>) -> Vec<Ask> {
        let pairs = self
            .pods
            .keys()
            .flat_map(|from| self.pods.keys().map(move |to| (from, to)));
        let asks = pairs.flat_map(|(from, to)| {
            let ask = |socket| Ask {
                from: from.clone(),
                to: to.clone(),
                socket,
            };
            sockets(to).into_iter().map(ask).collect::<Vec<_>>()
        });
        asks.collect()
    }

    /// As it is told to somebody who knows nothing yet.
    pub fn told(&self) -> Vec<Change> {
        let mut told = Vec::new();
        let mut kind = |kind, changes: Vec<Change>| {
            told.push(Change::Begin(kind));
            told.extend(changes);
            told.push(Change::End(kind));
        };
        kind(Kind::Namespaces, each(&self.namespaces, Change::Namespace));
        kind(Kind::Nodes, each(&self.nodes, Change::Node));
        kind(Kind::Pods, each(&self.pods, Change::Pod));
        kind(
            Kind::NetworkPolicies,
            each(&self.policies, Change::NetworkPolicy),
        );
        kind(
            Kind::ClusterPolicies,
            each(&self.cluster_policies, Change::ClusterPolicy),
        );
        told
    }

    /// Makes the change. What a case removes must be there, and what it makes must be in a namespace that is.
    #[track_caller]
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Namespace(name, value) => put(&mut self.namespaces, name, value),
            Change::Node(name, value) => put(&mut self.nodes, name, value),
            Change::ClusterPolicy(name, value) => put(&mut self.cluster_policies, name, value),
            Change::Pod(key, value) => {
                assert!(
                    self.namespaces.contains_key(&key.namespace),
                    "{key:?} has no namespace"
                );
                put(&mut self.pods, key, value);
            }
            Change::NetworkPolicy(key, value) => {
                assert!(
                    self.namespaces.contains_key(&key.namespace),
                    "{key:?} has no namespace"
                );
                put(&mut self.policies, key, value);
            }
            Change::Begin(_) | Change::End(_) => panic!("a case lists nothing"),
        }
    }
}

fn each<K: Clone, V: Clone>(
    map: &BTreeMap<K, V>,
    change: impl Fn(K, Option<V>) -> Change,
) -> Vec<Change> {
    let changes = map
        .iter()
        .map(|(key, value)| change(key.clone(), Some(value.clone())));
    changes.collect()
}

#[track_caller]
fn put<K: Ord + Clone + std::fmt::Debug, V: Clone>(
    map: &mut BTreeMap<K, V>,
    key: &K,
    value: &Option<V>,
) {
    match value {
        Some(value) => {
            map.insert(key.clone(), value.clone());
        }
        None => assert!(map.remove(key).is_some(), "{key:?} is not there"),
    }
}

/// The namespace has these labels, and the one that is its name.
pub fn namespace_put(name: &str, labels: Labels) -> Change {
    Change::Namespace(name.into(), Some(labels_and(&labels, NAME_LABEL, name)))
}

/// The namespace is gone, of which all pods must be.
pub fn namespace_gone(name: &str) -> Change {
    Change::Namespace(name.into(), None)
}

/// The pod is like that.
pub fn pod_put(pod: &Pod) -> Change {
    Change::Pod(pod.key.clone(), Some(pod.clone()))
}

/// The pod is gone.
pub fn pod_gone(pod: &str) -> Change {
    Change::Pod(key(pod), None)
}

/// The pod has these labels.
pub fn pod_labels(pod: &Pod, labels: Labels) -> Change {
    pod_put(&Pod {
        labels,
        ..pod.clone()
    })
}
