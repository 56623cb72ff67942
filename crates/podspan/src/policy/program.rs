//! What the model makes for the dataplane: for each pod of this node and direction a program, and the differences.
//!
//! A program is what the kernel runs for the first packet of a connection, and what `explain` and the tests run too
//! ([`Program::decide`] is the kernel's way in words). Programs are shared by all pods for which they are the same; sets by all programs
//! whose rules mean the same peers. Numbers are given once and never again, so that a name in the kernel means one thing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::object::{Action, Key, Protocol, Text};

/// A direction, seen from the pod that the policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From it.
    Egress,
}

/// The number of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u32);

/// The number of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramId(pub u32);

/// A rule of a policy, to be named to people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// The NetworkPolicy, and which of its rules of the direction, from 0.
    Rule(Key, usize),
    /// The ClusterNetworkPolicy, which of its rules of the direction, from 0, and that one's name.
    ClusterRule(Text, usize, Option<Text>),
}

/// Whom a step means. Of pods that are peers, all addresses of both families are in the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// Everybody.
    Anybody,
    /// Whose address is in that set, of kind [`Members::Addresses`] or [`Members::Ranges`].
    In(SetId),
    /// Of egress to ports with names: the receiver's address, protocol and port are together in that set, of kind
    /// [`Members::Sockets`]. Such a step has no ports of its own.
    Socket(SetId),
}

/// What ports a step means.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// All of all protocols, also those that have no ports.
    Any,
    /// Ranges with both ends, sorted, not overlapping within a protocol; none matches nothing.
    Of(Vec<(Protocol, u16, u16)>),
}

/// One comparison and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Step {
    /// The other side.
    pub peers: Peers,
    /// The ports of the receiver.
    pub ports: Ports,
    /// What happens when both are met.
    pub action: Action,
    /// The rule that says so; the first of several that say the same.
    pub origin: Origin,
}

/// What is asked in one go. Who passes goes on with the next stage, and so does what no step met.
pub type Stage = Vec<Step>;

/// What is asked of the first packet of a connection, one way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Program {
    /// The way.
    pub direction: Direction,
    /// One after the other: the Admin tier, NetworkPolicies, the Baseline tier; those that have nothing to say are left out.
    pub stages: Vec<Stage>,
    /// The NetworkPolicies by which what no step met is dropped, sorted; accepted where there are none.
    pub isolated_by: Vec<Key>,
}

/// What a set has in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Members {
    /// Addresses of pods or nodes.
    Addresses(BTreeSet<IpAddr>),
    /// Ranges with both ends, sorted, not overlapping and not touching, of one family each.
    Ranges(Vec<(IpAddr, IpAddr)>),
    /// Address, protocol and port of pods that have a port of some name.
    Sockets(BTreeSet<(IpAddr, Protocol, u16)>),
}

/// How a set changes. [`Members::Ranges`] never do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetChange {
    /// It is new.
    New(Members),
    /// Some come and some go; both are of one kind. Nothing that is in both.
    Changed {
        /// Those that come.
        added: Members,
        /// Those that go.
        removed: Members,
    },
    /// Nobody asks it any longer.
    Gone,
}

/// The name of an attachment of this node: of its host veth.
pub type Attachment = Text;

/// What is known of an attachment's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The API does not know the pod yet, and policies can be about it: what `when_unknown` says.
    Unknown,
    /// Its programs; none of a direction in which everything passes.
    Known {
        /// The pod, for people.
        pod: Key,
        /// To it.
        ingress: Option<ProgramId>,
        /// From it.
        egress: Option<ProgramId>,
    },
}

/// What is different since the last time, to be put into the kernel in one transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Sets.
    pub sets: BTreeMap<SetId, SetChange>,
    /// Programs that are new, and those that nobody runs any longer.
    pub programs: BTreeMap<ProgramId, Option<Arc<Program>>>,
    /// Attachments whose verdict is another. An attachment that is gone is not in it: its chains went with it.
    pub attachments: BTreeMap<Attachment, Verdict>,
}

impl Difference {
    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty() && self.programs.is_empty() && self.attachments.is_empty()
    }
}

/// What a packet is, as far as policy asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// The other side of the pod that the program is of.
    pub peer: IpAddr,
    /// Protocol and port of the receiver; none of what has no ports, such as ICMP.
    pub port: Option<(Protocol, u16)>,
}

/// What becomes of a packet, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A step met.
    Met {
        /// True when it passes.
        accepted: bool,
        /// The rule.
        origin: Origin,
    },
    /// No step met, and these NetworkPolicies select the pod.
    Isolated(Vec<Key>),
    /// No step met, and nobody isolates the pod.
    Open,
}

impl Decision {
    /// True when the packet passes.
    pub fn accepts(&self) -> bool {
        match self {
            Self::Met { accepted, .. } => *accepted,
            Self::Isolated(_) => false,
            Self::Open => true,
        }
    }
}

impl Program {
    /// What becomes of the packet, `members` telling what is in a set.
    pub fn decide<'a>(
        &self,
        packet: &Packet,
        members: impl Fn(SetId) -> Option<&'a Members>,
    ) -> Decision {
        for stage in &self.stages {
            let met = stage.iter().find(|step| step.meets(packet, &members));
            match met {
                Some(step) if step.action != Action::Pass => {
                    return Decision::Met {
                        accepted: step.action == Action::Accept,
                        origin: step.origin.clone(),
                    };
                }
                _ => {}
            }
        }
        match self.isolated_by.as_slice() {
            [] => Decision::Open,
            keys => Decision::Isolated(keys.to_vec()),
        }
    }
}

impl Step {
    fn meets<'a>(&self, packet: &Packet, members: impl Fn(SetId) -> Option<&'a Members>) -> bool {
        let of_peer = match self.peers {
            Peers::Anybody => true,
            Peers::In(set) => match members(set) {
                Some(Members::Addresses(addresses)) => addresses.contains(&packet.peer),
                Some(Members::Ranges(ranges)) => ranges.iter().any(|(first, last)| {
                    first.is_ipv4() == packet.peer.is_ipv4()
                        && (first..=last).contains(&&packet.peer)
                }),
                _ => false,
            },
            Peers::Socket(set) => match (members(set), packet.port) {
                (Some(Members::Sockets(sockets)), Some((protocol, port))) => {
                    sockets.contains(&(packet.peer, protocol, port))
                }
                _ => false,
            },
        };
        of_peer
            && match (&self.ports, packet.port) {
                (Ports::Any, _) => true,
                (Ports::Of(_), None) => false,
                (Ports::Of(ranges), Some((protocol, port))) => ranges
                    .iter()
                    .any(|(of, first, last)| *of == protocol && (*first..=*last).contains(&port)),
            }
    }
}
