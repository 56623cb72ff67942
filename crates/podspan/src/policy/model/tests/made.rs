//! Objects by hand, and a model that has been told all of them.

use std::net::IpAddr;

use super::super::super::object::{
    Action, Addresses, Attached, Change, ClusterPeer, ClusterPolicy, ClusterRule, Key, Kind,
    Labels, NamedPort, NetworkPolicy, Node, Peer, Pod, Port, Protocol, Requirement, Rule, Selector,
    Text, Tier,
};
use super::super::super::program::{Decision, Origin, Program, Verdict};
use super::super::Model;
use super::world::{HERE, KINDS, sorted};

pub const TCP: Protocol = Protocol::Tcp;
pub const UDP: Protocol = Protocol::Udp;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn key(text: &str) -> Key {
    let (namespace, name) = text.split_once('/').expect("namespace/name");
    Key {
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// `app=web tier=front`
pub fn labels(text: &str) -> Labels {
    let pairs = text.split_whitespace().map(|pair| {
        let (key, value) = pair.split_once('=').expect("key=value");
        (Text::from(key), Text::from(value))
    });
    sorted(pairs.collect())
}

pub fn selector(text: &str) -> Selector {
    let requirements = labels(text);
    let requirements = requirements
        .0
        .iter()
        .map(|(key, value)| Requirement::In(key.clone(), [value.clone()].into()));
    Selector(requirements.collect())
}

/// `10.0.0.1 fd00::1`
pub fn addresses(text: &str) -> Addresses {
    let mut addresses = Addresses::default();
    for address in text.split_whitespace() {
        match ip(address) {
            IpAddr::V4(address) => addresses.v4 = Some(address),
            IpAddr::V6(address) => addresses.v6 = Some(address),
        }
    }
    addresses
}

/// A pod of this node; its uid is its name.
pub fn pod(name: &str, its: &str, at: &str) -> Pod {
    Pod {
        key: key(name),
        uid: key(name).name,
        node: Some(HERE.into()),
        labels: labels(its),
        addresses: addresses(at),
        ports: Vec::new().into(),
        host_network: false,
    }
}

pub fn named(name: &str, protocol: Protocol, port: u16) -> NamedPort {
    NamedPort {
        name: name.into(),
        protocol,
        port,
    }
}

pub fn tcp(port: u16) -> Port {
    Port::Range(TCP, port, port)
}

pub fn block(text: &str, except: &[&str]) -> Peer {
    let except = except.iter().map(|one| one.parse().expect("a block"));
    Peer::Block(text.parse().expect("a block"), except.collect())
}

pub fn rule(peers: &[Peer], ports: &[Port]) -> Rule {
    Rule {
        peers: peers.to_vec(),
        ports: ports.to_vec(),
    }
}

/// It selects all pods of its namespace.
pub fn policy(name: &str, ingress: Option<&[Rule]>, egress: Option<&[Rule]>) -> NetworkPolicy {
    NetworkPolicy {
        key: key(name),
        pods: Selector::default(),
        ingress: ingress.map(<[Rule]>::to_vec),
        egress: egress.map(<[Rule]>::to_vec),
    }
}

pub fn cluster_rule(action: Action, peers: &[ClusterPeer], ports: &[Port]) -> ClusterRule {
    ClusterRule {
        name: None,
        action,
        peers: peers.to_vec(),
        ports: ports.to_vec(),
    }
}

/// It selects all pods.
pub fn cluster_policy(name: &str, tier: Tier, ingress: &[ClusterRule]) -> ClusterPolicy {
    ClusterPolicy {
        name: name.into(),
        tier,
        priority: 10,
        subject: Default::default(),
        ingress: ingress.to_vec(),
        egress: Vec::new(),
    }
}

pub fn all_pods() -> ClusterPeer {
    ClusterPeer::Pods(Selector::default(), Selector::default())
}

/// Synced, with namespaces `one` (`team=one`) and `two` (`team=two`).
pub fn model() -> Model {
    let mut model = Model::new(HERE);
    for kind in KINDS {
        model.take(Change::Begin(kind));
        if kind == Kind::Namespaces {
            for name in ["one", "two"] {
                let its = labels(&format!("team={name}"));
                model.take(Change::Namespace(name.into(), Some(its)));
            }
        }
        model.take(Change::End(kind));
    }
    assert!(model.is_synced());
    model
}

/// What tests tell the model, in short.
pub trait Tell {
    fn pod(&mut self, pod: Pod);
    /// With the pod's attachment, which is called as the pod.
    fn local(&mut self, pod: Pod);
    fn attach(&mut self, name: &str, pod: &str, uid: Option<&str>, at: &str);
    fn policy(&mut self, policy: NetworkPolicy);
    fn cluster_policy(&mut self, policy: ClusterPolicy);
    fn node(&mut self, name: &str, its: &str, at: &str);
    /// Whether the packet passes at the sender and at the receiver; none where nobody is asked.
    fn fate(&self, from: &str, to: &str, port: Port) -> (Option<bool>, Option<bool>);
    /// What decides at the receiver.
    fn why(&self, from: &str, to: &str, port: Port) -> Decision;
    /// The programs of an attachment, to the pod and from it.
    fn programs(&mut self, name: &str) -> [Option<Program>; 2];
}

impl Tell for Model {
    fn pod(&mut self, pod: Pod) {
        self.take(Change::Pod(pod.key.clone(), Some(pod)));
    }

    fn local(&mut self, pod: Pod) {
        let attached = Attached {
            pod: pod.key.clone(),
            uid: Some(pod.uid.clone()),
            addresses: pod.addresses,
        };
        self.attached(pod.key.name.clone(), attached);
        self.pod(pod);
    }

    fn attach(&mut self, name: &str, pod: &str, uid: Option<&str>, at: &str) {
        let attached = Attached {
            pod: key(pod),
            uid: uid.map(Text::from),
            addresses: addresses(at),
        };
        self.attached(name.into(), attached);
    }

    fn policy(&mut self, policy: NetworkPolicy) {
        self.take(Change::NetworkPolicy(policy.key.clone(), Some(policy)));
    }

    fn cluster_policy(&mut self, policy: ClusterPolicy) {
        self.take(Change::ClusterPolicy(policy.name.clone(), Some(policy)));
    }

    fn node(&mut self, name: &str, its: &str, at: &str) {
        let node = Node {
            labels: labels(its),
            addresses: addresses(at).iter().collect(),
        };
        self.take(Change::Node(name.into(), Some(node)));
    }

    fn fate(&self, from: &str, to: &str, port: Port) -> (Option<bool>, Option<bool>) {
        let judgement = self.judge(ip(from), ip(to), of(&port));
        let accepts = |it: Option<super::super::Judged>| it.map(|it| it.decision.accepts());
        (accepts(judgement.egress), accepts(judgement.ingress))
    }

    fn why(&self, from: &str, to: &str, port: Port) -> Decision {
        let judgement = self.judge(ip(from), ip(to), of(&port));
        judgement
            .ingress
            .expect("a receiver that is asked")
            .decision
    }

    fn programs(&mut self, name: &str) -> [Option<Program>; 2] {
        self.difference();
        let Some(Verdict::Known {
            ingress, egress, ..
        }) = self.verdict(name)
        else {
            panic!("{name}: {:?}", self.verdict(name));
        };
        [ingress, egress].map(|id| id.map(|id| Program::clone(self.program(id).expect("there"))))
    }
}

/// The packet that goes to that port; [`Port::Unknown`] stands for what has none.
fn of(port: &Port) -> Option<(Protocol, u16)> {
    match port {
        Port::Range(protocol, first, _) => Some((*protocol, *first)),
        _ => None,
    }
}

pub fn met(accepted: bool, policy: &str, place: usize) -> Decision {
    let origin = Origin::Rule(key(policy), place);
    Decision::Met { accepted, origin }
}
