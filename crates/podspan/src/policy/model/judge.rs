//! What policy says of a packet, and a summary of the policies: for people.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::super::object::{Key, Pod, Protocol, Text, Tier};
use super::super::program::{Decision, Direction, Members, Packet, SetId};
use super::Model;
use super::meaning::{Meaning, Owner};
use super::policies::Subject;

/// What policy says of a packet from one address to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What the sender may send; none where it is no pod of the network, or not subject: a pod to its node or to itself.
    pub egress: Option<Judged>,
    /// What the receiver may be sent; none likewise, and of a node to its own pod.
    pub ingress: Option<Judged>,
}

/// What one pod's policy says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The pod.
    pub pod: Key,
    /// What becomes of the packet.
    pub decision: Decision,
}

/// A policy of either kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum PolicyName {
    /// A ClusterNetworkPolicy, and when it decides.
    Cluster(Tier, u16, Text),
    /// A NetworkPolicy.
    Network(Key),
}

/// A policy in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Which.
    pub policy: PolicyName,
    /// It is about what comes to the pods.
    pub ingress: bool,
    /// It is about what goes from them.
    pub egress: bool,
    /// How many pods of this node it selects.
    pub pods: usize,
}

/// A packet, seen from one of its pods.
struct Asked<'a> {
    direction: Direction,
    peer: &'a Owner<'a>,
    port: Option<(Protocol, u16)>,
}

impl Model {
    /// What policy says of a packet between two addresses, for pods of every node. Pods of a namespace that is not known yet are
    /// judged by nothing.
    pub fn judge(&self, from: IpAddr, to: IpAddr, port: Option<(Protocol, u16)>) -> Judgement {
        let (sender, receiver) = (self.cluster.owner(from), self.cluster.owner(to));
        let way = |direction, own: &Owner<'_>, peer| {
            let asked = Asked {
                direction,
                peer,
                port,
            };
            self.one_way(own, &asked)
        };
        Judgement {
            egress: way(Direction::Egress, &sender, &receiver),
            ingress: way(Direction::Ingress, &receiver, &sender),
        }
    }

    /// The pod of that name, on whatever node.
    pub fn pod_named(&self, key: &Key) -> Option<&Pod> {
        self.cluster.pod(key)
    }

    /// The pod that has that address, on whatever node.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Key> {
        self.cluster.owner(address).pod.map(|(pod, _)| &pod.key)
    }

    /// The policies, those of the cluster first, in the order in which they decide.
    pub fn policies(&self) -> Vec<Summary> {
        let names = self.attachments.entries.keys();
        let subjects: Vec<Subject<'_>> = names.filter_map(|name| self.subject(name)).collect();
        let count = |selects: &dyn Fn(&Subject<'_>) -> bool| {
            let selected = subjects.iter().filter(|subject| selects(subject));
            let pods: BTreeSet<&Key> = selected.map(|subject| &subject.pod.key).collect();
            pods.len()
        };
        let of_cluster = self
            .policies
            .all_of_cluster()
            .map(|(name, policy)| Summary {
                policy: PolicyName::Cluster(policy.tier, policy.priority, name.clone()),
                ingress: !policy.way(Direction::Ingress).is_empty(),
                egress: !policy.way(Direction::Egress).is_empty(),
                pods: count(&|subject| policy.selects(subject)),
            });
        let mut all: Vec<Summary> = of_cluster.collect();
        let of_namespaces = self.policies.all_of_namespaces();
        all.extend(of_namespaces.map(|(key, policy)| Summary {
            ingress: policy.way(Direction::Ingress).is_some(),
            egress: policy.way(Direction::Egress).is_some(),
            pods: count(&|subject| {
                subject.pod.key.namespace == key.namespace && policy.selects(subject)
            }),
            policy: PolicyName::Network(key),
        }));
        all.sort_by(|one, other| one.policy.cmp(&other.policy));
        all
    }

    fn one_way(&self, own: &Owner<'_>, asked: &Asked<'_>) -> Option<Judged> {
        let (pod, labels) = own.pod?;
        let itself = asked
            .peer
            .pod
            .is_some_and(|(other, _)| other.key == pod.key);
        if itself || self.is_node_of(pod, asked.peer.address) {
            return None;
        }
        let subject = Subject {
            pod,
            labels: labels?,
        };
        Some(Judged {
            pod: pod.key.clone(),
            decision: self.decide(&subject, asked),
        })
    }

    fn is_node_of(&self, pod: &Pod, address: IpAddr) -> bool {
        let node = pod.node.as_ref().and_then(|name| self.cluster.node(name));
        node.is_some_and(|node| node.addresses.contains(&address))
    }

    /// Sets have nobody in them but the peer, where it belongs to them: nothing else is asked.
    fn decide(&self, subject: &Subject<'_>, asked: &Asked<'_>) -> Decision {
        let Asked {
            direction,
            peer,
            port,
        } = *asked;
        let mut sets: Vec<Members> = Vec::new();
        let mut number = |meaning: &Arc<Meaning>| {
            sets.push(alone(meaning, peer));
            SetId((sets.len() - 1) as u32)
        };
        let program = self.policies.compile(subject, direction, &mut number);
        let packet = Packet {
            peer: peer.address,
            port,
        };
        program.map_or(Decision::Open, |program| {
            program.decide(&packet, |id| sets.get(id.0 as usize))
        })
    }
}

/// What the set of that meaning would have of the owner's address.
fn alone(meaning: &Meaning, owner: &Owner<'_>) -> Members {
    match meaning {
        Meaning::Ranges(ranges) => Members::Ranges(ranges.clone()),
        Meaning::Addresses(_) => {
            let meant = meaning.means(owner).then_some(owner.address);
            Members::Addresses(meant.into_iter().collect())
        }
        Meaning::Sockets(..) => Members::Sockets(meaning.sockets(owner).into_iter().collect()),
    }
}
