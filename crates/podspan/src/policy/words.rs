//! Policy in words, for `podspan explain`, `podspan policy` and the log.

use std::fmt;

use super::denied::Denier;
use super::model::{Judged, PolicyName};
use super::object::{Action, Key, Protocol, Tier};
use super::program::{Decision, Direction, Members, Origin, Peers, Ports, Program, SetId, Step};

/// How many members of a set are named.
const NAMED: usize = 4;

impl fmt::Display for Key {
    /// `namespace/name`, as `kubectl` and people write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

impl fmt::Display for Origin {
    /// Rules are counted from 1, as people do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(policy, rule) => write!(f, "rule {} of NetworkPolicy {policy}", rule + 1),
            Self::ClusterRule(policy, rule, name) => {
                write!(f, "rule {}", rule + 1)?;
                if let Some(name) = name {
                    write!(f, " ({name})")?;
                }
                write!(f, " of ClusterNetworkPolicy {policy}")
            }
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(_, _, name) => write!(f, "ClusterNetworkPolicy {name}"),
            Self::Network(key) => write!(f, "NetworkPolicy {key}"),
        }
    }
}

impl fmt::Display for Denier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("not known yet"),
            Self::Cluster(name) => write!(f, "ClusterNetworkPolicy {name}"),
            Self::Network(keys) => {
                let names = keys.iter().map(|key| format!("NetworkPolicy {key}"));
                f.write_str(&names.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        })
    }
}

/// What one pod's policy says of a packet, to whom and on what port.
pub fn judged(direction: Direction, judged: &Judged, port: Option<(Protocol, u16)>) -> String {
    let pod = &judged.pod;
    match &judged.decision {
        Decision::Open => format!("{direction} of {pod}: no policy is about it"),
        Decision::Met { accepted, origin } => {
            let does = if *accepted {
                "lets it through"
            } else {
                "drops it"
            };
            format!("{direction} of {pod}: {origin} {does}")
        }
        Decision::Isolated(policies) => {
            let what = match port {
                Some((protocol, port)) => format!("this peer on {protocol} {port}"),
                None => "this peer without a port (ICMP)".to_owned(),
            };
            format!(
                "{direction} of {pod}: dropped, because {} and no rule there allows {what}",
                isolating(policies)
            )
        }
    }
}

/// Why a packet was denied, by what its counter says of the denier.
pub fn denied(pod: Option<&str>, denier: Option<&str>) -> String {
    let pod = pod.unwrap_or("a pod that is gone");
    match denier {
        Some(denier) if denier == Denier::Unknown.to_string() => {
            format!("denied, because the API does not know {pod} yet")
        }
        Some(denier) => format!("denied by {denier}, which is about {pod}"),
        None => format!("denied by a policy that was about {pod} and is gone"),
    }
}

fn isolating(policies: &[Key]) -> String {
    let names: Vec<_> = policies.iter().map(Key::to_string).collect();
    match names.as_slice() {
        [one] => format!("NetworkPolicy {one} selects the pod"),
        all => format!("NetworkPolicies {} select the pod", all.join(", ")),
    }
}

/// A program as lines, in the order in which the kernel asks them.
pub fn program<'a>(
    program: &Program,
    members: impl Fn(SetId) -> Option<&'a Members>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for step in program.stages.iter().flatten() {
        lines.push(describe(step, program.direction, &members));
    }
    lines.push(match program.isolated_by.as_slice() {
        [] => "what is left passes".to_owned(),
        policies => format!("what is left is dropped: {}", isolating(policies)),
    });
    lines
}

fn describe<'a>(
    step: &Step,
    direction: Direction,
    members: impl Fn(SetId) -> Option<&'a Members>,
) -> String {
    let does = match step.action {
        Action::Accept => "accept",
        Action::Deny => "deny",
        Action::Pass => "pass on",
    };
    let side = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let peers = match step.peers {
        Peers::Anybody => "anybody".to_owned(),
        Peers::In(set) | Peers::Socket(set) => members(set).map_or_else(String::new, several),
    };
    let ports = match &step.ports {
        Ports::Any => String::new(),
        Ports::Of(ranges) => {
            let ranges = ranges
                .iter()
                .map(|(protocol, first, last)| match (first, last) {
                    (0, &u16::MAX) => protocol.to_string(),
                    _ if first == last => format!("{protocol} {first}"),
                    _ => format!("{protocol} {first}-{last}"),
                });
            format!(" on {}", ranges.collect::<Vec<_>>().join(", "))
        }
    };
    format!("{does} {side} {peers}{ports}: {}", step.origin)
}

/// The first members, and how many more there are.
fn several(members: &Members) -> String {
    let (names, all): (Vec<String>, usize) = match members {
        Members::Addresses(all) => {
            let names = all.iter().take(NAMED).map(ToString::to_string);
            (names.collect(), all.len())
        }
        Members::Ranges(all) => {
            let names = all.iter().take(NAMED);
            let names = names.map(|(first, last)| format!("{first}-{last}"));
            (names.collect(), all.len())
        }
        Members::Sockets(all) => {
            let names = all.iter().take(NAMED);
            let names = names.map(|(ip, protocol, port)| format!("{ip} {protocol} {port}"));
            (names.collect(), all.len())
        }
    };
    match all.saturating_sub(names.len()) {
        _ if all == 0 => "nobody now".to_owned(),
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}
