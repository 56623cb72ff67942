//! What must come out, straight from the text of the two APIs: slow, and as close to the words as it can be. It looks at objects
//! only, keeps nothing, and shares nothing with the model that it judges.
//!
//! Sources: the API references of NetworkPolicy v1 and of ClusterNetworkPolicy v1alpha2, and the page "Network Policies" of
//! Kubernetes. Where those leave it open: who lives in a node's network is no pod to a selector, only an address to a block, and a
//! pod and its own node always reach one another.

use std::net::IpAddr;

use super::object::{
    Action, ClusterPeer, ClusterPolicy, ClusterRule, NetworkPolicy, Peer, Pod, Port, Protocol,
    Rule, Selector, Tier,
};
use super::{Ask, Cluster, Socket};

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Both.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Family {
    /// A pod's address.
    pub fn of(self, pod: &Pod) -> Option<IpAddr> {
        match self {
            Self::V4 => pod.addresses.v4.map(IpAddr::V4),
            Self::V6 => pod.addresses.v6.map(IpAddr::V6),
        }
    }
}

/// True when the one may reach the other there. Both must have an address of the family.
pub fn allows(cluster: &Cluster, ask: &Ask, family: Family) -> bool {
    let (from, to) = (&cluster.pods[&ask.from], &cluster.pods[&ask.to]);
    if ask.from == ask.to {
        return true;
    }
    let own_node = (from.host_network || to.host_network) && from.node == to.node;
    let side = |way, subject, peer| Side {
        cluster,
        way,
        subject,
        peer,
        address: family.of(peer).unwrap(),
        receiver: to,
        socket: ask.socket,
    };
    own_node || side(Way::Egress, from, to).allows() && side(Way::Ingress, to, from).allows()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Ingress,
    Egress,
}

/// One pod's policies, asked about somebody else.
struct Side<'a> {
    cluster: &'a Cluster,
    way: Way,
    subject: &'a Pod,
    peer: &'a Pod,
    address: IpAddr,
    receiver: &'a Pod,
    socket: Socket,
}

/// What a tier says.
enum Verdict {
    Allowed,
    Denied,
    Unsaid,
}

impl Side<'_> {
    /// "Admin tier, NetworkPolicy tier, Baseline tier"; what none of them decides is allowed.
    fn allows(&self) -> bool {
        if self.subject.host_network {
            return true;
        }
        for verdict in [
            self.tier(Tier::Admin),
            self.policies(),
            self.tier(Tier::Baseline),
        ] {
            match verdict {
                Verdict::Allowed => return true,
                Verdict::Denied => return false,
                Verdict::Unsaid => {}
            }
        }
        true
    }

    /// "If any policy applies to a given pod for a given direction, the connections allowed in that direction from that pod is
    /// the union of what the applicable policies allow."
    fn policies(&self) -> Verdict {
        let Pod { key, labels, .. } = self.subject;
        let all = self.cluster.policies.values();
        let mut selected = false;
        for policy in all {
            let rules = match self.way {
                Way::Ingress => &policy.ingress,
                Way::Egress => &policy.egress,
            };
            let Some(rules) = rules else { continue };
            if policy.key.namespace != key.namespace || !policy.pods.matches(labels) {
                continue;
            }
            selected = true;
            if rules.iter().any(|rule| self.meets(policy, rule)) {
                return Verdict::Allowed;
            }
        }
        if selected {
            Verdict::Denied
        } else {
            Verdict::Unsaid
        }
    }

    /// "Traffic must match both", and an empty list matches all.
    fn meets(&self, policy: &NetworkPolicy, rule: &Rule) -> bool {
        let peers = rule.peers.is_empty() || rule.peers.iter().any(|peer| self.is(policy, peer));
        let ports = rule.ports.is_empty() || rule.ports.iter().any(|port| self.on(port));
        peers && ports
    }

    fn is(&self, policy: &NetworkPolicy, peer: &Peer) -> bool {
        match peer {
            Peer::Pods(pods) => {
                self.peer.key.namespace == policy.key.namespace && self.is_pod(None, pods)
            }
            Peer::PodsOf(namespaces, pods) => self.is_pod(Some(namespaces), pods),
            Peer::Block(block, except) => {
                block.contains(&self.address)
                    && !except.iter().any(|other| other.contains(&self.address))
            }
            Peer::Unknown => false,
        }
    }

    fn is_pod(&self, namespaces: Option<&Selector>, pods: &Selector) -> bool {
        let Pod { key, labels, .. } = self.peer;
        let namespace = self.cluster.namespaces.get(&key.namespace);
        let there = match (namespaces, namespace) {
            (None, _) => true,
            (Some(selector), Some(namespace)) => selector.matches(namespace),
            (Some(_), None) => false,
        };
        there && !self.peer.host_network && pods.matches(labels)
    }

    /// A name means the port that the receiver gives it, of the same protocol.
    fn on(&self, port: &Port) -> bool {
        let (protocol, number) = self.socket;
        match port {
            Port::All(wanted) => *wanted == protocol,
            Port::Range(wanted, low, high) => {
                *wanted == protocol && (*low..=*high).contains(&number)
            }
            Port::Named(wanted, name) => self.receives(*wanted, name),
            Port::Unknown => false,
        }
    }

    fn receives(&self, wanted: Option<Protocol>, name: &str) -> bool {
        let mut ports = self.receiver.ports.iter();
        let here =
            ports.any(|known| *known.name == *name && (known.protocol, known.port) == self.socket);
        here && wanted.is_none_or(|wanted| wanted == self.socket.0)
    }

    /// The first rule that matches, of the policies by priority: "Policies with lower priority values have higher precedence".
    fn tier(&self, tier: Tier) -> Verdict {
        let Pod { key, labels, .. } = self.subject;
        let namespace = self
            .cluster
            .namespaces
            .get(&key.namespace)
            .cloned()
            .unwrap_or_default();
        let about = |policy: &&ClusterPolicy| {
            let (namespaces, pods) = &policy.subject;
            policy.tier == tier && namespaces.matches(&namespace) && pods.matches(labels)
        };
        let mut policies: Vec<_> = self
            .cluster
            .cluster_policies
            .values()
            .filter(about)
            .collect();
        policies.sort_by_key(|policy| (policy.priority, policy.name.clone()));
        let rules = policies.into_iter().flat_map(|policy| match self.way {
            Way::Ingress => &policy.ingress,
            Way::Egress => &policy.egress,
        });
        for rule in rules {
            match self.says(rule) {
                Some(Action::Accept) => return Verdict::Allowed,
                Some(Action::Deny) => return Verdict::Denied,
                Some(Action::Pass) => return Verdict::Unsaid,
                None => {}
            }
        }
        Verdict::Unsaid
    }

    /// What a rule does, where it matches. With a peer or a port that is not known it fails closed: Accept "as matching no
    /// traffic", Deny and Pass "as a Deny all rule".
    fn says(&self, rule: &ClusterRule) -> Option<Action> {
        let unknown =
            rule.peers.contains(&ClusterPeer::Unknown) || rule.ports.contains(&Port::Unknown);
        if unknown {
            return (rule.action != Action::Accept).then_some(Action::Deny);
        }
        let peers = rule.peers.iter().any(|peer| self.is_cluster_peer(peer));
        let ports = rule.ports.is_empty() || rule.ports.iter().any(|port| self.on(port));
        (peers && ports).then_some(rule.action)
    }

    fn is_cluster_peer(&self, peer: &ClusterPeer) -> bool {
        match peer {
            ClusterPeer::Pods(namespaces, pods) => self.is_pod(Some(namespaces), pods),
            ClusterPeer::Nodes(selector) => self.cluster.nodes.values().any(|node| {
                selector.matches(&node.labels) && node.addresses.contains(&self.address)
            }),
            ClusterPeer::Networks(networks) => networks
                .iter()
                .any(|network| network.contains(&self.address)),
            ClusterPeer::Unknown => false,
        }
    }
}
