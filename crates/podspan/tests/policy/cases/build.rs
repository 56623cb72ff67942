//! Short words for objects of the API, so that a case reads like what it means. They can build every object that a case needs, and
//! check nothing.

use std::sync::Arc;

use super::object::{
    Action, Addresses, Change, ClusterPeer, ClusterPolicy, ClusterRule, Key, Labels, NetworkPolicy,
    Peer, Port, Protocol, Requirement, Rule, Selector, Text, Tier,
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Of `namespace/name`.
pub fn key(text: &str) -> Key {
    let (namespace, name) = text.split_once('/').unwrap();
    Key {
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// Labels of pairs.
pub fn labels<const N: usize>(pairs: [(&str, &str); N]) -> Labels {
    let pairs = pairs.map(|(key, value)| (Text::from(key), Text::from(value)));
    sorted(pairs.into())
}

/// Those labels and one more, which outweighs an older one of that key.
pub fn labels_and(labels: &Labels, key: &str, value: &str) -> Labels {
    let others = labels.0.iter().filter(|(known, _)| **known != *key);
    let mut pairs: Vec<_> = others.cloned().collect();
    pairs.push((key.into(), value.into()));
    sorted(pairs)
}

fn sorted(mut pairs: Vec<(Text, Text)>) -> Labels {
    pairs.sort();
    Labels(pairs.into())
}

/// Everything.
pub fn all() -> Selector {
    Selector::default()
}

/// What has these labels.
pub fn having<const N: usize>(pairs: [(&str, &str); N]) -> Selector {
    let requirement =
        |(key, value)| Requirement::In(Text::from(key), Arc::new([Text::from(value)]));
    Selector(Arc::new(pairs.map(requirement)))
}

/// What has that key with one of the values.
pub fn within<const N: usize>(key: &str, values: [&str; N]) -> Selector {
    let values = Arc::new(values.map(Text::from));
    Selector(Arc::new([Requirement::In(key.into(), values)]))
}

/// What has that key with none of the values, or not at all.
pub fn outside<const N: usize>(key: &str, values: [&str; N]) -> Selector {
    let values = Arc::new(values.map(Text::from));
    Selector(Arc::new([Requirement::NotIn(key.into(), values)]))
}

/// A policy for all pods of the namespace that is about no direction yet.
pub fn policy(namespace: &str, name: &str) -> NetworkPolicy {
    NetworkPolicy {
        key: Key {
            namespace: namespace.into(),
            name: name.into(),
        },
        pods: all(),
        ingress: None,
        egress: None,
    }
}

impl NetworkPolicy {
    /// For these pods.
    pub fn pods(mut self, pods: Selector) -> Self {
        self.pods = pods;
        self
    }

    /// About ingress too.
    pub fn ingress<const N: usize>(mut self, rules: [Rule; N]) -> Self {
        self.ingress = Some(rules.into());
        self
    }

    /// About egress too.
    pub fn egress<const N: usize>(mut self, rules: [Rule; N]) -> Self {
        self.egress = Some(rules.into());
        self
    }

    /// It is made, or takes the place of the one of that name.
    pub fn put(self) -> Change {
        Change::NetworkPolicy(self.key.clone(), Some(self))
    }

    /// It is gone.
    pub fn gone(self) -> Change {
        Change::NetworkPolicy(self.key, None)
    }
}

/// Everybody on all ports.
pub fn rule() -> Rule {
    Rule::default()
}

impl Rule {
    /// From or to these.
    pub fn peers<const N: usize>(mut self, peers: [Peer; N]) -> Self {
        self.peers = peers.into();
        self
    }

    /// From or to one peer, which is one block in each family.
    pub fn blocks(mut self, blocks: Vec<Peer>) -> Self {
        self.peers = blocks;
        self
    }

    /// On these ports.
    pub fn ports<const N: usize>(mut self, ports: [Port; N]) -> Self {
        self.ports = ports.into();
        self
    }
}

/// Pods of the policy's namespace.
pub fn pods(pods: Selector) -> Peer {
    Peer::Pods(pods)
}

/// All pods of these namespaces.
pub fn namespaces(namespaces: Selector) -> Peer {
    Peer::PodsOf(namespaces, all())
}

/// These pods of these namespaces.
pub fn pods_of(namespaces: Selector, pods: Selector) -> Peer {
    Peer::PodsOf(namespaces, pods)
}

/// One block in each family, `except` blocks taken out of it.
pub fn blocks(blocks: &[IpNet], except: &[IpNet]) -> Vec<Peer> {
    let of = |block: &IpNet| {
        let inside = except.iter().filter(|other| block.contains(*other));
        Peer::Block(*block, inside.copied().collect())
    };
    blocks.iter().map(of).collect()
}

/// In each family the block around that address that has so many first bits.
pub fn around(addresses: &Addresses, (v4, v6): (u8, u8)) -> Vec<IpNet> {
    let v4 = addresses
        .v4
        .map(|address| IpNet::V4(Ipv4Net::new(address, v4).unwrap().trunc()));
    let v6 = addresses
        .v6
        .map(|address| IpNet::V6(Ipv6Net::new(address, v6).unwrap().trunc()));
    v4.into_iter().chain(v6).collect()
}

/// That port.
pub fn port(protocol: Protocol, port: u16) -> Port {
    Port::Range(protocol, port, port)
}

/// That TCP port.
pub fn tcp(number: u16) -> Port {
    port(Protocol::Tcp, number)
}

/// That UDP port.
pub fn udp(number: u16) -> Port {
    port(Protocol::Udp, number)
}

/// That SCTP port.
pub fn sctp(number: u16) -> Port {
    port(Protocol::Sctp, number)
}

/// The port that the receiver calls so.
pub fn named(protocol: Protocol, name: &str) -> Port {
    Port::Named(Some(protocol), name.into())
}

/// A ClusterNetworkPolicy without rules.
pub fn cluster_policy(name: &str, tier: Tier, priority: u16) -> ClusterPolicy {
    ClusterPolicy {
        name: name.into(),
        tier,
        priority,
        subject: (all(), all()),
        ingress: Vec::new(),
        egress: Vec::new(),
    }
}

impl ClusterPolicy {
    /// For these pods of these namespaces.
    pub fn subject(mut self, namespaces: Selector, pods: Selector) -> Self {
        self.subject = (namespaces, pods);
        self
    }

    /// With these rules of ingress.
    pub fn ingress(mut self, rules: Vec<ClusterRule>) -> Self {
        self.ingress = rules;
        self
    }

    /// With these rules of egress.
    pub fn egress(mut self, rules: Vec<ClusterRule>) -> Self {
        self.egress = rules;
        self
    }

    /// It is made, or takes the place of the one of that name.
    pub fn put(&self) -> Change {
        Change::ClusterPolicy(self.name.clone(), Some(self.clone()))
    }
}

/// A rule of a ClusterNetworkPolicy for all ports, with a name that tells what it is.
pub fn cluster_rule<const N: usize>(action: Action, peers: [ClusterPeer; N]) -> ClusterRule {
    ClusterRule {
        name: None,
        action,
        peers: peers.into(),
        ports: Vec::new(),
    }
}

impl ClusterRule {
    /// On these ports.
    pub fn ports(mut self, ports: Vec<Port>) -> Self {
        self.ports = ports;
        self
    }

    /// With that name.
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }
}
