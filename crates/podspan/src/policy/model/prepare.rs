//! Rules as they are compared, made once for each policy: what a program's steps are but for the pod that it is of.
//!
//! What is not known fails closed here. Of a NetworkPolicy it allows nothing. A ClusterNetworkPolicy's rule with a peer that
//! is not known is no rule when it accepts and denies everything otherwise, as the API has it
//! (`ClusterNetworkPolicyIngressPeer`); of its ports, one that is not known accepts nothing, and otherwise the rule
//! denies its peers all of them.

use std::sync::Arc;

use ipnet::IpNet;

use super::super::object::{
    Action, ClusterPeer, ClusterPolicy, ClusterRule, NetworkPolicy, Peer, Port, Requirement, Rule,
    Selector, Text, Tier,
};
use super::super::program::{Direction, Origin};
use super::intern::Interner;
use super::meaning::{Meaning, Name, Pick, Whose};
use super::range::{self, PortRange};

/// The other side.
#[derive(Debug)]
pub(super) enum Whom {
    Anybody,
    In(Arc<Meaning>),
    /// With its ports.
    Socket(Arc<Meaning>),
}

/// The receiver's ports.
#[derive(Debug)]
pub(super) enum Asked {
    Any,
    /// Ranges, and names of the pod's own.
    Of(Vec<PortRange>, Vec<Name>),
}

/// A step, before it is known of which pod.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) whom: Whom,
    pub(super) ports: Asked,
    pub(super) action: Action,
    pub(super) origin: Origin,
}

/// A NetworkPolicy.
#[derive(Debug)]
pub(super) struct OfNamespace {
    pub(super) pods: Selector,
    ingress: Option<Vec<Draft>>,
    egress: Option<Vec<Draft>>,
}

/// A ClusterNetworkPolicy.
#[derive(Debug)]
pub(super) struct OfCluster {
    pub(super) tier: Tier,
    pub(super) priority: u16,
    pub(super) subject: (Selector, Selector),
    ingress: Vec<Draft>,
    egress: Vec<Draft>,
}

impl OfNamespace {
    pub(super) fn new(policy: &NetworkPolicy, interner: &mut Interner) -> Self {
        let key = interner.key(policy.key.clone());
        let mut of_way = |rules: &Option<Vec<Rule>>, direction| {
            let rules = rules.as_ref()?;
            let mut drafts = Vec::new();
            for (place, rule) in rules.iter().enumerate() {
                let origin = Origin::Rule(key.clone(), place);
                let said = of_rule(rule, &key.namespace, interner);
                lay(direction, said, &origin, &mut drafts);
            }
            Some(drafts)
        };
        Self {
            ingress: of_way(&policy.ingress, Direction::Ingress),
            egress: of_way(&policy.egress, Direction::Egress),
            pods: interner.selector(&policy.pods),
        }
    }

    /// None where it is not about the direction.
    pub(super) fn way(&self, direction: Direction) -> Option<&[Draft]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

impl OfCluster {
    pub(super) fn new(policy: &ClusterPolicy, interner: &mut Interner) -> Self {
        let mut of_way = |rules: &[ClusterRule], direction| {
            let mut drafts = Vec::new();
            for (place, rule) in rules.iter().enumerate() {
                let origin = Origin::ClusterRule(policy.name.clone(), place, rule.name.clone());
                if let Some(said) = of_cluster_rule(rule, interner) {
                    lay(direction, said, &origin, &mut drafts);
                }
            }
            drafts
        };
        Self {
            ingress: of_way(&policy.ingress, Direction::Ingress),
            egress: of_way(&policy.egress, Direction::Egress),
            tier: policy.tier,
            priority: policy.priority,
            subject: (
                interner.selector(&policy.subject.0),
                interner.selector(&policy.subject.1),
            ),
        }
    }

    pub(super) fn way(&self, direction: Direction) -> &[Draft] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// The peers of a rule, all together.
#[derive(Debug, Default)]
struct Side {
    anybody: bool,
    picks: Vec<Pick>,
    blocks: Vec<(IpNet, Vec<IpNet>)>,
}

/// The ports of a rule, all together.
#[derive(Debug, Default)]
struct Wanted {
    any: bool,
    /// Something among them is not known.
    unknown: bool,
    ranges: Vec<PortRange>,
    names: Vec<Name>,
}

/// What a rule says.
#[derive(Debug)]
struct Said {
    side: Side,
    ports: Wanted,
    action: Action,
}

fn of_rule(rule: &Rule, namespace: &Text, interner: &mut Interner) -> Said {
    let mut side = Side {
        anybody: rule.peers.is_empty(),
        ..Side::default()
    };
    for peer in &rule.peers {
        match peer {
            Peer::Pods(pods) if is_known(pods) => {
                let here = Pick::Here(interner.text(namespace), interner.selector(pods));
                side.picks.push(here);
            }
            Peer::PodsOf(namespaces, pods) if is_known(namespaces) && is_known(pods) => {
                let of = Pick::Of(interner.selector(namespaces), interner.selector(pods));
                side.picks.push(of);
            }
            Peer::Block(block, except) => side.blocks.push((*block, except.clone())),
            Peer::Pods(_) | Peer::PodsOf(..) | Peer::Unknown => {}
        }
    }
    Said {
        side,
        ports: of_ports(&rule.ports, interner),
        action: Action::Accept,
    }
}

/// None where the rule says nothing.
fn of_cluster_rule(rule: &ClusterRule, interner: &mut Interner) -> Option<Said> {
    let mut side = Side::default();
    let mut unknown = rule.peers.is_empty();
    for peer in &rule.peers {
        match peer {
            ClusterPeer::Pods(namespaces, pods) if is_known(namespaces) && is_known(pods) => {
                let of = Pick::Of(interner.selector(namespaces), interner.selector(pods));
                side.picks.push(of);
            }
            ClusterPeer::Nodes(nodes) if is_known(nodes) => {
                side.picks.push(Pick::Nodes(interner.selector(nodes)));
            }
            ClusterPeer::Networks(blocks) if !blocks.is_empty() => {
                let whole = blocks.iter().map(|block| (*block, Vec::new()));
                side.blocks.extend(whole);
            }
            _ => unknown = true,
        }
    }
    let mut ports = of_ports(&rule.ports, interner);
    let mut action = rule.action;
    if action == Action::Accept {
        return (!unknown).then_some(Said {
            side,
            ports,
            action,
        });
    }
    if unknown {
        side.anybody = true;
    }
    if unknown || ports.unknown {
        ports.any = true;
        action = Action::Deny;
    }
    Some(Said {
        side,
        ports,
        action,
    })
}

fn of_ports(ports: &[Port], interner: &mut Interner) -> Wanted {
    let mut wanted = Wanted {
        any: ports.is_empty(),
        ..Wanted::default()
    };
    for port in ports {
        match port {
            Port::All(protocol) => wanted.ranges.push((*protocol, 0, u16::MAX)),
            Port::Range(protocol, first, last) if first <= last => {
                wanted.ranges.push((*protocol, *first, *last));
            }
            Port::Named(protocol, name) => wanted.names.push((*protocol, interner.text(name))),
            Port::Range(..) | Port::Unknown => wanted.unknown = true,
        }
    }
    wanted.ranges = range::of_ports(wanted.ranges);
    wanted.names.sort();
    wanted.names.dedup();
    wanted
}

/// What a rule says, as steps that do not ask for one another.
fn lay(direction: Direction, said: Said, origin: &Origin, drafts: &mut Vec<Draft>) {
    let Said {
        side,
        ports,
        action,
    } = said;
    let mut draft = |whom, ports| {
        drafts.push(Draft {
            whom,
            ports,
            action,
            origin: origin.clone(),
        });
    };
    let (mut picks, blocks) = (side.picks, side.blocks);
    picks.sort();
    picks.dedup();
    let blocks: Vec<_> = blocks.iter().map(|(one, but)| (*one, &**but)).collect();
    let ranges = range::of_blocks(&blocks);
    let mut names = ports.names;
    if direction == Direction::Egress && !ports.any && !names.is_empty() {
        // A node calls no port by a name.
        let pods = picks.iter().filter(|pick| !matches!(pick, Pick::Nodes(_)));
        let pods: Vec<Pick> = pods.cloned().collect();
        let nobody = !side.anybody && pods.is_empty() && ranges.is_empty();
        let whose = if side.anybody {
            Whose::Anybody
        } else {
            Whose::Of(pods, ranges.clone())
        };
        if !nobody {
            let sockets = Meaning::Sockets(whose, std::mem::take(&mut names));
            draft(Whom::Socket(Arc::new(sockets)), Asked::Any);
        }
        names = Vec::new();
    }
    if !ports.any && ports.ranges.is_empty() && names.is_empty() {
        return;
    }
    let mut add = |whom| {
        let asked = if ports.any {
            Asked::Any
        } else {
            Asked::Of(ports.ranges.clone(), names.clone())
        };
        draft(whom, asked);
    };
    if side.anybody {
        add(Whom::Anybody);
        return;
    }
    if !picks.is_empty() {
        add(Whom::In(Arc::new(Meaning::Addresses(picks))));
    }
    if !ranges.is_empty() {
        add(Whom::In(Arc::new(Meaning::Ranges(ranges))));
    }
}

/// False where an operator is not known: what it would select, nobody can say.
fn is_known(selector: &Selector) -> bool {
    !selector.0.contains(&Requirement::Unknown)
}
