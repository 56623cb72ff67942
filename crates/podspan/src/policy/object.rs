//! What policy needs of the objects of the API, and nothing else.
//!
//! Fifty thousand pods are kept, so texts and label sets are shared ([`Text`], [`Labels`]), and the raw objects are not. What an
//! object says that no version known here can say (an action, a peer, an operator) is kept as *unknown* and never matches what
//! allows and always what denies: failing closed, as the API demands.
//!
//! Sources: `networking.k8s.io/v1` NetworkPolicy, `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy, `v1` Pod, Namespace, Node.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

/// A text that many share.
pub type Text = Arc<str>;

/// Labels, sorted by key, each key once; equal ones share their memory where whoever makes them sees to that.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(pub Arc<[(Text, Text)]>);

impl Labels {
    /// The value of that key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self
            .0
            .binary_search_by(|(known, _)| (**known).cmp(key))
            .ok()?;
        self.0.get(place).map(|(_, value)| &**value)
    }
}

/// A name in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The namespace.
    pub namespace: Text,
    /// The name.
    pub name: Text,
}

/// A protocol that has ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// `IPPROTO_TCP`.
    Tcp,
    /// `IPPROTO_UDP`.
    Udp,
    /// `IPPROTO_SCTP`.
    Sctp,
}

impl Protocol {
    /// That of an `IPPROTO_*` (linux/in.h); none of one without ports.
    pub fn of_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

/// A pod's addresses, at most one of each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Addresses {
    /// Of IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Of IPv6.
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Takes the address where none of its family is there yet.
    pub fn add(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(ip) => drop(self.v4.get_or_insert(ip)),
            IpAddr::V6(ip) => drop(self.v6.get_or_insert(ip)),
        }
    }

    /// Both, as far as they are there.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.v4.map(IpAddr::V4);
        v4.into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// A port of a container that has a name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Its name.
    pub name: Text,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Whose it is.
    pub key: Key,
    /// `metadata.uid`. A pod of a file on the node has two: the runtime knows the other one, which is
    /// the annotation `kubernetes.io/config.hash`, and stands here in its place.
    pub uid: Text,
    /// The node that it runs on, once it has one.
    pub node: Option<Text>,
    /// Its labels.
    pub labels: Labels,
    /// `status.podIPs`; none of a pod that has ended (Succeeded, Failed), for its address may be another's already.
    pub addresses: Addresses,
    /// The ports that have names, sorted.
    pub ports: Arc<[NamedPort]>,
    /// It lives in its node's network: no policy selects it, and no peer but an address block means it.
    pub host_network: bool,
}

/// A namespace's or a node's labels, and a node's addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its labels.
    pub labels: Labels,
    /// Those of `status.addresses` that are IP addresses, whatever their type.
    pub addresses: Arc<[IpAddr]>,
}

/// Which labels are meant: all requirements must hold. The empty selector means everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(pub Arc<[Requirement]>);

/// What is required of labels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The key is there with one of the values; `matchLabels` is that with one value.
    In(Text, Arc<[Text]>),
    /// The key is not there, or with another value.
    NotIn(Text, Arc<[Text]>),
    /// The key is there.
    Exists(Text),
    /// The key is not there.
    DoesNotExist(Text),
    /// An operator that is not known: matches nothing.
    Unknown,
}

impl Selector {
    /// True for labels that meet all requirements.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => labels.get(key).is_some_and(|value| has(values, value)),
            Requirement::NotIn(key, values) => {
                labels.get(key).is_none_or(|value| !has(values, value))
            }
            Requirement::Exists(key) => labels.get(key).is_some(),
            Requirement::DoesNotExist(key) => labels.get(key).is_none(),
            Requirement::Unknown => false,
        })
    }
}

fn has(values: &[Text], value: &str) -> bool {
    values.iter().any(|known| **known == *value)
}

/// Ports that a rule means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// All ports of the protocol.
    All(Protocol),
    /// From one number to another, both included.
    Range(Protocol, u16, u16),
    /// The port that the receiving pod calls so, of that protocol; none in a ClusterNetworkPolicy means any.
    Named(Option<Protocol>, Text),
    /// Something that is not known: matches what denies, never what allows.
    Unknown,
}

/// A NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Whose it is.
    pub key: Key,
    /// The pods of its namespace that it is about.
    pub pods: Selector,
    /// What it allows in; none where it is not about ingress (`policyTypes`).
    pub ingress: Option<Vec<Rule>>,
    /// What it allows out; none where it is not about egress.
    pub egress: Option<Vec<Rule>>,
}

/// A rule of a NetworkPolicy: one of the peers on one of the ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Empty means everybody.
    pub peers: Vec<Peer>,
    /// Empty means all ports of all protocols.
    pub ports: Vec<Port>,
}

/// A peer of a NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods of the policy's own namespace.
    Pods(Selector),
    /// Pods of the namespaces that the first selects.
    PodsOf(Selector, Selector),
    /// The block without what is excepted of it.
    Block(IpNet, Vec<IpNet>),
    /// Something that is not known, such as a block that cannot be read: nobody.
    Unknown,
}

/// When a ClusterNetworkPolicy decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Before NetworkPolicies.
    Admin,
    /// After them, for pods that none is about.
    Baseline,
}

/// A ClusterNetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Its name.
    pub name: Text,
    /// When it decides.
    pub tier: Tier,
    /// Lower goes first, 0 to 1000. Of equal ones the name decides, on all nodes alike.
    pub priority: u16,
    /// The namespaces and the pods in them that it is about.
    pub subject: (Selector, Selector),
    /// What it says of traffic in, in order.
    pub ingress: Vec<ClusterRule>,
    /// What it says of traffic out, in order.
    pub egress: Vec<ClusterRule>,
}

/// What a rule of a ClusterNetworkPolicy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Lets through, whatever comes behind.
    Accept,
    /// Drops.
    Deny,
    /// Leaves it to what comes behind the tier.
    Pass,
}

/// A rule of a ClusterNetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterRule {
    /// Its name, for people.
    pub name: Option<Text>,
    /// What it does; an action that is not known denies.
    pub action: Action,
    /// The other side; never empty.
    pub peers: Vec<ClusterPeer>,
    /// Empty means all ports of all protocols.
    pub ports: Vec<Port>,
}

/// A peer of a ClusterNetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterPeer {
    /// Pods of the namespaces that the first selects; all of them where the second is empty.
    Pods(Selector, Selector),
    /// Nodes, by their labels (egress).
    Nodes(Selector),
    /// Address blocks (egress).
    Networks(Vec<IpNet>),
    /// Something that is not known or not served, such as domain names: everybody for what denies, nobody for what allows. The
    /// API has it of the rule as a whole: one that accepts matches nothing, any other denies everything.
    Unknown,
}

/// A kind of objects that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Namespaces.
    Namespaces,
    /// Pods.
    Pods,
    /// Nodes, for their labels.
    Nodes,
    /// NetworkPolicies.
    NetworkPolicies,
    /// ClusterNetworkPolicies; none in a cluster that does not have that kind.
    ClusterPolicies,
}

impl Kind {
    /// All that policy reads.
    pub const ALL: [Self; 5] = [
        Self::Namespaces,
        Self::Nodes,
        Self::Pods,
        Self::NetworkPolicies,
        Self::ClusterPolicies,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "Namespaces",
            Self::Nodes => "Nodes",
            Self::Pods => "Pods",
            Self::NetworkPolicies => "NetworkPolicies",
            Self::ClusterPolicies => "ClusterNetworkPolicies",
        })
    }
}

/// What is new in the API: an object as it is now, or none where it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// All objects of the kind follow; what does not come until its [`Change::End`] is gone. Where a list breaks off, it comes
    /// again without an end, and what came before counts no longer for that.
    Begin(Kind),
    /// A namespace's labels.
    Namespace(Text, Option<Labels>),
    /// A pod.
    Pod(Key, Option<Pod>),
    /// A node.
    Node(Text, Option<Node>),
    /// A NetworkPolicy.
    NetworkPolicy(Key, Option<NetworkPolicy>),
    /// A ClusterNetworkPolicy.
    ClusterPolicy(Text, Option<ClusterPolicy>),
    /// All objects of the kind have come.
    End(Kind),
}

/// What the kernel says of an attachment of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The pod, as the runtime named it.
    pub pod: Key,
    /// The pod's uid, as the runtime named it; none where it did not.
    pub uid: Option<Text>,
    /// The addresses that it has.
    pub addresses: Addresses,
}
