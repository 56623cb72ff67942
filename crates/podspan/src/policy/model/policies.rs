//! The policies, and what they say of one pod: its program.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::super::object::{ClusterPolicy, Key, Labels, NetworkPolicy, Pod, Text, Tier};
use super::super::program::{Direction, Peers, Ports, Program, SetId, Stage, Step};
use super::intern::Interner;
use super::meaning::{self, Meaning};
use super::prepare::{Asked, Draft, OfCluster, OfNamespace, Whom};
use super::range;

/// A pod, and its namespace's labels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) pod: &'a Pod,
    pub(super) labels: &'a Labels,
}

#[derive(Debug, Default)]
pub(super) struct Policies {
    of_namespaces: HashMap<Text, BTreeMap<Text, OfNamespace>>,
    of_cluster: BTreeMap<(Tier, u16, Text), OfCluster>,
    places: BTreeMap<Text, (Tier, u16)>,
}

impl OfNamespace {
    pub(super) fn selects(&self, subject: &Subject<'_>) -> bool {
        !subject.pod.host_network && self.pods.matches(&subject.pod.labels)
    }
}

impl OfCluster {
    pub(super) fn selects(&self, subject: &Subject<'_>) -> bool {
        let (namespaces, pods) = &self.subject;
        !subject.pod.host_network
            && namespaces.matches(subject.labels)
            && pods.matches(&subject.pod.labels)
    }
}

impl Policies {
    /// Sets the policy; what it was.
    pub(super) fn put_of_namespace(
        &mut self,
        key: &Key,
        policy: Option<&NetworkPolicy>,
        interner: &mut Interner,
    ) -> Option<OfNamespace> {
        let Some(policy) = policy else {
            let policies = self.of_namespaces.get_mut(&key.namespace)?;
            let before = policies.remove(&key.name);
            if policies.is_empty() {
                self.of_namespaces.remove(&key.namespace);
            }
            return before;
        };
        let namespace = interner.text(&key.namespace);
        let policies = self.of_namespaces.entry(namespace).or_default();
        policies.insert(key.name.clone(), OfNamespace::new(policy, interner))
    }

    /// Sets the policy; what it was.
    pub(super) fn put_of_cluster(
        &mut self,
        name: &Text,
        policy: Option<&ClusterPolicy>,
        interner: &mut Interner,
    ) -> Option<OfCluster> {
        let before = self
            .places
            .remove(name)
            .and_then(|(tier, priority)| self.of_cluster.remove(&(tier, priority, name.clone())));
        if let Some(policy) = policy {
            let place = (policy.tier, policy.priority);
            self.places.insert(name.clone(), place);
            let made = OfCluster::new(policy, interner);
            self.of_cluster
                .insert((place.0, place.1, name.clone()), made);
        }
        before
    }

    /// True where some policy can be about a pod of the namespace, whatever its labels.
    pub(super) fn may_be_about(&self, namespace: &str) -> bool {
        !self.of_cluster.is_empty() || self.of_namespaces.contains_key(namespace)
    }

    pub(super) fn of_namespace(&self, key: &Key) -> Option<&OfNamespace> {
        self.of_namespaces.get(&key.namespace)?.get(&key.name)
    }

    pub(super) fn of_cluster(&self, name: &Text) -> Option<&OfCluster> {
        let (tier, priority) = self.places.get(name)?;
        self.of_cluster.get(&(*tier, *priority, name.clone()))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        let all = self.of_namespaces.iter();
        all.flat_map(|(namespace, policies)| {
            policies.keys().map(|name| Key {
                namespace: namespace.clone(),
                name: name.clone(),
            })
        })
    }

    pub(super) fn all_of_namespaces(&self) -> impl Iterator<Item = (Key, &OfNamespace)> {
        let all = self.of_namespaces.iter();
        all.flat_map(|(namespace, policies)| {
            policies.iter().map(|(name, policy)| {
                let key = Key {
                    namespace: namespace.clone(),
                    name: name.clone(),
                };
                (key, policy)
            })
        })
    }

    /// In the order in which they decide.
    pub(super) fn all_of_cluster(&self) -> impl Iterator<Item = (&Text, &OfCluster)> {
        let all = self.of_cluster.iter();
        all.map(|((_, _, name), policy)| (name, policy))
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Text> {
        self.places.keys()
    }

    /// The pod's program; none where nothing is said of the direction. `number` gives sets their numbers.
    pub(super) fn compile(
        &self,
        subject: &Subject<'_>,
        direction: Direction,
        number: &mut dyn FnMut(&Arc<Meaning>) -> SetId,
    ) -> Option<Program> {
        let mut program = Program {
            direction,
            stages: Vec::new(),
            isolated_by: Vec::new(),
        };
        let of_tier = |tier| {
            let all = self.of_cluster.values();
            all.filter(move |policy| policy.tier == tier && policy.selects(subject))
                .flat_map(|policy| policy.way(direction))
        };
        let mut stages = vec![stage(of_tier(Tier::Admin), subject, number)];
        let namespace = &subject.pod.key.namespace;
        let of_namespace = self.of_namespaces.get(namespace).into_iter().flatten();
        let mut drafts = Vec::new();
        for (name, policy) in of_namespace.filter(|(_, policy)| policy.selects(subject)) {
            if let Some(way) = policy.way(direction) {
                program.isolated_by.push(Key {
                    namespace: namespace.clone(),
                    name: name.clone(),
                });
                drafts.extend(way);
            }
        }
        stages.push(stage(drafts.into_iter(), subject, number));
        if program.isolated_by.is_empty() {
            stages.push(stage(of_tier(Tier::Baseline), subject, number));
        }
        stages.retain(|stage| !stage.is_empty());
        program.stages = stages;
        let silent = program.stages.is_empty() && program.isolated_by.is_empty();
        (!silent).then_some(program)
    }
}

fn stage<'a>(
    drafts: impl Iterator<Item = &'a Draft>,
    subject: &Subject<'_>,
    number: &mut dyn FnMut(&Arc<Meaning>) -> SetId,
) -> Stage {
    let mut asked = BTreeSet::new();
    let mut stage = Stage::new();
    for draft in drafts {
        let Some(ports) = ports(&draft.ports, subject.pod) else {
            continue;
        };
        let peers = match &draft.whom {
            Whom::Anybody => Peers::Anybody,
            Whom::In(meaning) => Peers::In(number(meaning)),
            Whom::Socket(meaning) => Peers::Socket(number(meaning)),
        };
        // Who asks the same again never gets an answer: the first step has met.
        if asked.insert((peers, ports.clone())) {
            stage.push(Step {
                peers,
                ports,
                action: draft.action,
                origin: draft.origin.clone(),
            });
        }
    }
    stage
}

/// The ports of that pod; none where it has none of them.
fn ports(asked: &Asked, pod: &Pod) -> Option<Ports> {
    match asked {
        Asked::Any => Some(Ports::Any),
        Asked::Of(ranges, names) if names.is_empty() => Some(Ports::Of(ranges.clone())),
        Asked::Of(ranges, names) => {
            let named = meaning::resolve(names, pod);
            let named = named.map(|(protocol, port)| (protocol, port, port));
            let all = ranges.iter().copied().chain(named).collect();
            let all = range::of_ports(all);
            (!all.is_empty()).then_some(Ports::Of(all))
        }
    }
}
