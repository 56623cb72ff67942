//! What the documentation says of a packet, computed from scratch, for tests: the judge of the model and of the kernel.
//!
//! Nothing is shared with the model: no sets, no programs, no order of rules made before. Selectors and blocks are compared here by
//! hand. Every sentence of `networking.k8s.io/v1` and `policy.networking.k8s.io/v1alpha2` that a verdict depends on is one
//! place here. It depends on [`object`](super::object) only, so that other tests can take it in by its path.
//!
//! The text leaves open: what a pod on its node's network is (its node, that only address blocks mean), to whom an
//! address of two pods belongs ([`Cluster::owners`] says it), and the order of ClusterNetworkPolicies of equal priority (their names).

#![allow(
    clippy::too_many_arguments,
    reason = "each says all that its sentence speaks of"
)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::object::{
    Action, ClusterPeer, ClusterPolicy, ClusterRule, Key, Labels, NetworkPolicy, Node, Peer, Pod,
    Port, Protocol, Requirement, Rule, Selector, Text, Tier,
};

/// A protocol and a port of it; none of what has no ports.
pub type PacketPort = Option<(Protocol, u16)>;

/// Which way a packet goes, seen from the pod that is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To it.
    In,
    /// From it.
    Out,
}

/// All that there is.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    /// Namespaces that the API knows.
    pub namespaces: BTreeMap<Text, Labels>,
    /// Pods.
    pub pods: BTreeMap<Key, Pod>,
    /// Nodes.
    pub nodes: BTreeMap<Text, Node>,
    /// NetworkPolicies.
    pub network_policies: BTreeMap<Key, NetworkPolicy>,
    /// ClusterNetworkPolicies.
    pub cluster_policies: BTreeMap<Text, ClusterPolicy>,
    /// Whose an address is.
    pub owners: BTreeMap<IpAddr, Key>,
}

/// The other side of a packet.
struct Other<'a> {
    address: IpAddr,
    /// The pod that has the address.
    pod: Option<&'a Pod>,
}

impl Cluster {
    /// True for each side that lets the packet pass: the sender, the receiver. None for a side that is no pod, or not subject.
    pub fn judge(
        &self,
        from: IpAddr,
        to: IpAddr,
        port: PacketPort,
    ) -> (Option<bool>, Option<bool>) {
        (
            self.one_side(Way::Out, from, to, port),
            self.one_side(Way::In, to, from, port),
        )
    }

    fn one_side(&self, way: Way, own: IpAddr, other: IpAddr, port: PacketPort) -> Option<bool> {
        let key = self.owners.get(&own)?;
        let pod = self.pods.get(key)?;
        // "A pod cannot block access to itself", and "traffic to and from the node where a pod is running is always allowed".
        if self.owners.get(&other) == Some(key) {
            return None;
        }
        if let Some(node) = pod.node.as_ref().and_then(|name| self.nodes.get(name))
            && node.addresses.contains(&other)
        {
            return None;
        }
        self.namespaces.get(&key.namespace)?;
        Some(self.passes(pod, way, other, port))
    }

    /// True when that pod's policies let the packet pass.
    pub fn passes(&self, pod: &Pod, way: Way, other: IpAddr, port: PacketPort) -> bool {
        if pod.host_network {
            return true;
        }
        let owner = self.owners.get(&other);
        let other = Other {
            address: other,
            pod: owner.and_then(|key| self.pods.get(key)),
        };
        if let Some(decided) = self.tier(Tier::Admin, pod, way, &other, port) {
            return decided;
        }
        let mut isolated = false;
        for policy in self.network_policies.values() {
            if policy.key.namespace != pod.key.namespace || !selects(&policy.pods, &pod.labels) {
                continue;
            }
            let rules = match way {
                Way::In => &policy.ingress,
                Way::Out => &policy.egress,
            };
            let Some(rules) = rules else { continue };
            isolated = true;
            for rule in rules {
                if self.allows(rule, policy, pod, way, &other, port) {
                    return true;
                }
            }
        }
        if isolated {
            return false;
        }
        self.tier(Tier::Baseline, pod, way, &other, port)
            .unwrap_or(true)
    }

    /// What the tier decides; none when it passes or has nothing to say.
    fn tier(
        &self,
        tier: Tier,
        pod: &Pod,
        way: Way,
        other: &Other<'_>,
        port: PacketPort,
    ) -> Option<bool> {
        let mut policies: Vec<&ClusterPolicy> = self
            .cluster_policies
            .values()
            .filter(|policy| policy.tier == tier)
            .collect();
        policies.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
        let labels = self.namespaces.get(&pod.key.namespace)?;
        for policy in policies {
            let (namespaces, pods) = &policy.subject;
            if !selects(namespaces, labels) || !selects(pods, &pod.labels) {
                continue;
            }
            let rules = match way {
                Way::In => &policy.ingress,
                Way::Out => &policy.egress,
            };
            for rule in rules {
                match self.does(rule, pod, way, other, port) {
                    None => {}
                    Some(Action::Pass) => return None,
                    Some(action) => return Some(action == Action::Accept),
                }
            }
        }
        None
    }

    fn allows(
        &self,
        rule: &Rule,
        policy: &NetworkPolicy,
        pod: &Pod,
        way: Way,
        other: &Other<'_>,
        port: PacketPort,
    ) -> bool {
        let peer = |peer: &Peer| match peer {
            Peer::Pods(pods) => other.pod.is_some_and(|it| {
                it.key.namespace == policy.key.namespace && selects(pods, &it.labels)
            }),
            Peer::PodsOf(namespaces, pods) => self.is_pod_of(namespaces, pods, other),
            Peer::Block(block, except) => {
                lies_in(other.address, block)
                    && !except.iter().any(|hole| lies_in(other.address, hole))
            }
            Peer::Unknown => false,
        };
        let receiver = receiver(pod, way, other);
        (rule.peers.is_empty() || rule.peers.iter().any(peer))
            && (rule.ports.is_empty() || rule.ports.iter().any(|one| means(one, receiver, port)))
    }

    /// What the rule does with the packet; none when it does not match.
    fn does(
        &self,
        rule: &ClusterRule,
        pod: &Pod,
        way: Way,
        other: &Other<'_>,
        port: PacketPort,
    ) -> Option<Action> {
        let mut unknown_peer = rule.peers.is_empty();
        for peer in &rule.peers {
            unknown_peer |= match peer {
                ClusterPeer::Pods(namespaces, pods) => not_known(namespaces) || not_known(pods),
                ClusterPeer::Nodes(nodes) => not_known(nodes),
                ClusterPeer::Networks(networks) => networks.is_empty(),
                ClusterPeer::Unknown => true,
            };
        }
        let unknown_port = rule.ports.iter().any(|port| match port {
            Port::Unknown => true,
            Port::Range(_, first, last) => first > last,
            Port::All(_) | Port::Named(..) => false,
        });
        if unknown_peer {
            // "For Accept rules, treat the rule as matching no traffic. For Deny and Pass rules: as a 'Deny all' rule."
            return (rule.action != Action::Accept).then_some(Action::Deny);
        }
        let denies = rule.action != Action::Accept && unknown_port;
        let receiver = receiver(pod, way, other);
        for peer in &rule.peers {
            let (is_peer, may_have_names) = match peer {
                ClusterPeer::Pods(namespaces, pods) => {
                    (self.is_pod_of(namespaces, pods, other), true)
                }
                ClusterPeer::Networks(networks) => {
                    let mut networks = networks.iter();
                    (networks.any(|block| lies_in(other.address, block)), true)
                }
                ClusterPeer::Nodes(nodes) => (self.is_node(nodes, other), false),
                ClusterPeer::Unknown => (false, false),
            };
            if !is_peer {
                continue;
            }
            if denies {
                return Some(Action::Deny);
            }
            // A node calls no port by a name.
            let receiver = receiver.filter(|_| way == Way::In || may_have_names);
            let mut ports = rule.ports.iter();
            if rule.ports.is_empty() || ports.any(|one| means(one, receiver, port)) {
                return Some(rule.action);
            }
        }
        None
    }

    fn is_pod_of(&self, namespaces: &Selector, pods: &Selector, other: &Other<'_>) -> bool {
        let Some(pod) = other.pod else { return false };
        let labels = self.namespaces.get(&pod.key.namespace);
        labels.is_some_and(|labels| selects(namespaces, labels)) && selects(pods, &pod.labels)
    }

    fn is_node(&self, nodes: &Selector, other: &Other<'_>) -> bool {
        self.nodes
            .values()
            .any(|node| selects(nodes, &node.labels) && node.addresses.contains(&other.address))
    }
}

/// Who receives the packet, as far as it is a pod.
fn receiver<'a>(pod: &'a Pod, way: Way, other: &Other<'a>) -> Option<&'a Pod> {
    match way {
        Way::In => Some(pod),
        Way::Out => other.pod,
    }
}

/// True when the packet goes to such a port, which may be one that the receiver calls so.
fn means(port: &Port, receiver: Option<&Pod>, packet: PacketPort) -> bool {
    let Some((protocol, number)) = packet else {
        return false;
    };
    match port {
        Port::All(of) => *of == protocol,
        Port::Range(of, first, last) => *of == protocol && *first <= number && number <= *last,
        Port::Named(of, name) => receiver.is_some_and(|pod| {
            pod.ports.iter().any(|its| {
                its.name == *name
                    && its.port == number
                    && its.protocol == protocol
                    && (of.is_none() || *of == Some(protocol))
            })
        }),
        Port::Unknown => false,
    }
}

fn selects(selector: &Selector, labels: &Labels) -> bool {
    for requirement in selector.0.iter() {
        let value_of = |wanted: &Text| {
            let mut pairs = labels.0.iter();
            pairs.find(|(key, _)| key == wanted).map(|(_, value)| value)
        };
        let met = match requirement {
            Requirement::In(key, values) => match value_of(key) {
                Some(value) => values.contains(value),
                None => false,
            },
            Requirement::NotIn(key, values) => match value_of(key) {
                Some(value) => !values.contains(value),
                None => true,
            },
            Requirement::Exists(key) => value_of(key).is_some(),
            Requirement::DoesNotExist(key) => value_of(key).is_none(),
            Requirement::Unknown => false,
        };
        if !met {
            return false;
        }
    }
    true
}

fn not_known(selector: &Selector) -> bool {
    let mut requirements = selector.0.iter();
    requirements.any(|requirement| *requirement == Requirement::Unknown)
}

/// True when the first bits of both are the same, as many as the block's length says.
fn lies_in(address: IpAddr, block: &IpNet) -> bool {
    let bits = |address: IpAddr| -> Vec<bool> {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let each = octets.into_iter();
        each.flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1))
            .collect()
    };
    let (own, of_block) = (bits(address), bits(block.addr()));
    let length = usize::from(block.prefix_len());
    own.len() == of_block.len() && own.iter().zip(&of_block).take(length).all(|(a, b)| a == b)
}
