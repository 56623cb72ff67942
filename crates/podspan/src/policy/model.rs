//! Of what the API says, the program of each pod of this node, and of each change the difference.
//!
//! Pure: objects and attachments in, numbers of sets and programs out. A pod's change asks the sets in use once each; a policy's or a
//! namespace's touches the pods that it selects, which are made anew when the next difference is asked for.
//!
//! [`Model::judge`] says what policy says of a packet between any two pods, through the same rules as the programs.
//!
//! What would surprise: a namespace that the API has not told of yet is meant by no selector, not even the empty one, and its pods'
//! verdict is [`Verdict::Unknown`]: pods and namespaces come on two ways, and what a denial selects is not to be open meanwhile.
//! A pod of this node that has ended has no address by its object; its attachment's, while the kernel has that, is still its own and can be
//! nobody else's.

mod attachments;
mod cluster;
mod intern;
mod judge;
mod meaning;
mod policies;
mod prepare;
mod programs;
mod range;
mod set;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use super::object::{
    Attached, Change, ClusterPolicy, Key, Kind, Labels, NetworkPolicy, Node, Pod, Text,
};
use super::program::{
    Attachment, Difference, Direction, Members, Program, ProgramId, SetId, Verdict,
};
use attachments::{Attachments, belongs};
use cluster::{Cluster, Touched};
use intern::Interner;
#[allow(unused_imports, reason = "the interface to explain")]
pub use judge::{Judged, Judgement, PolicyName, Summary};
use policies::{Policies, Subject};
use programs::Programs;
use set::Sets;

/// What is known, and what follows for this node.
#[derive(Debug)]
pub struct Model {
    node: Text,
    interner: Interner,
    cluster: Cluster,
    policies: Policies,
    attachments: Attachments,
    sets: Sets,
    programs: Programs,
    /// Kinds of which everything was listed once.
    listed: BTreeSet<Kind>,
    stale: Stale,
    /// Attachments whose verdict may be another.
    dirty: BTreeSet<Attachment>,
}

/// What has not come again since a kind's listing began.
#[derive(Debug, Default)]
struct Stale {
    namespaces: BTreeSet<Text>,
    pods: BTreeSet<Key>,
    nodes: BTreeSet<Text>,
    network_policies: BTreeSet<Key>,
    cluster_policies: BTreeSet<Text>,
}

impl Model {
    /// `node`: the name of this machine's Node; its pods are the subjects.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.into(),
            interner: Interner::default(),
            cluster: Cluster::default(),
            policies: Policies::default(),
            attachments: Attachments::default(),
            sets: Sets::default(),
            programs: Programs::default(),
            listed: BTreeSet::new(),
            stale: Stale::default(),
            dirty: BTreeSet::new(),
        }
    }

    /// Takes in what is new of the API.
    pub fn take(&mut self, change: Change) {
        match change {
            Change::Begin(kind) => self.begin(kind),
            Change::Namespace(name, labels) => {
                self.stale.namespaces.remove(&name);
                self.take_namespace(&name, labels);
            }
            Change::Pod(key, pod) => {
                self.stale.pods.remove(&key);
                self.take_pod(key, pod);
            }
            Change::Node(name, node) => {
                self.stale.nodes.remove(&name);
                self.take_node(&name, node);
            }
            Change::NetworkPolicy(key, policy) => {
                self.stale.network_policies.remove(&key);
                self.take_network_policy(&key, policy);
            }
            Change::ClusterPolicy(name, policy) => {
                self.stale.cluster_policies.remove(&name);
                self.take_cluster_policy(&name, policy);
            }
            Change::End(kind) => self.end(kind),
        }
        self.interner.clean();
    }

    /// An attachment of this node that the kernel has, new or changed. One that is as it was changes nothing: for its verdict to be given
    /// out again it must have been detached.
    pub fn attached(&mut self, name: Attachment, attached: Attached) {
        if let Some(entry) = self.attachments.entries.get(&name) {
            if entry.attached == attached {
                return;
            }
            self.detached(&name);
        }
        let key = attached.pod.clone();
        self.attachments.insert(name.clone(), attached);
        self.dirty.insert(name);
        self.settle(&key);
    }

    /// An attachment that the kernel has no longer.
    pub fn detached(&mut self, name: &str) {
        let Some(entry) = self.attachments.remove(name) else {
            return;
        };
        self.dirty.remove(name);
        release(&entry.verdict, &mut self.programs);
        self.settle(&entry.attached.pod);
    }

    /// All kinds were listed once since the start.
    pub fn is_synced(&self) -> bool {
        self.listed.len() == Kind::ALL.len()
    }

    /// The kinds of which that is still to come.
    pub fn unlisted(&self) -> impl Iterator<Item = Kind> {
        let all = Kind::ALL.into_iter();
        all.filter(|kind| !self.listed.contains(kind))
    }

    /// What is different since the last call; since the start, everything. Empty until all kinds were listed.
    pub fn difference(&mut self) -> Difference {
        if !self.is_synced() {
            return Difference::default();
        }
        let mut difference = Difference::default();
        for name in std::mem::take(&mut self.dirty) {
            self.renew(&name);
            if let Some(entry) = self.attachments.entries.get_mut(&name)
                && entry.given.as_ref() != Some(&entry.verdict)
            {
                entry.given = Some(entry.verdict.clone());
                let verdict = entry.verdict.clone();
                difference.attachments.insert(name, verdict);
            }
        }
        difference.programs = self.programs.difference(&mut self.sets);
        difference.sets = self.sets.difference();
        difference
    }

    /// The pods of this node that are in its pod network, as the API has them.
    pub fn pods_here(&self) -> impl Iterator<Item = &Pod> {
        let pods = self.cluster.pods();
        pods.filter(|pod| pod.node.as_deref() == Some(&*self.node) && !pod.host_network)
    }

    /// Forgets what was given out: the next difference is everything, to replace whatever is in the kernel.
    pub fn anew(&mut self) {
        self.sets.anew();
        self.programs.anew();
        for (name, entry) in &mut self.attachments.entries {
            entry.given = None;
            self.dirty.insert(name.clone());
        }
    }

    /// A program that pods run.
    pub fn program(&self, id: ProgramId) -> Option<&Arc<Program>> {
        self.programs.get(id)
    }

    /// What is in a set that programs ask.
    pub fn members(&self, id: SetId) -> Option<&Members> {
        self.sets.members(id)
    }

    /// What was found of an attachment when the last difference was made.
    pub fn verdict(&self, attachment: &str) -> Option<&Verdict> {
        let entry = self.attachments.entries.get(attachment);
        entry.map(|entry| &entry.verdict)
    }

    fn take_namespace(&mut self, name: &Text, labels: Option<Labels>) {
        let name = self.interner.text(name);
        let labels = labels.map(|labels| self.interner.labels(&labels));
        let before = self.cluster.put_namespace(&name, labels);
        if before.as_ref() == self.cluster.labels(&name) {
            return;
        }
        self.sets
            .refresh_namespace(&name, before.as_ref(), &self.cluster);
        let pods = self.attachments.of_namespace(&name);
        self.dirty.extend(pods.cloned());
    }

    fn take_pod(&mut self, key: Key, pod: Option<Pod>) {
        let Some(pod) = pod else {
            let touched = self.cluster.remove_pod(&key);
            self.touch(&key, &touched);
            return;
        };
        let pod = Pod {
            key: self.interner.key(key),
            uid: pod.uid,
            node: pod.node.map(|node| self.interner.text(&node)),
            labels: self.interner.labels(&pod.labels),
            addresses: pod.addresses,
            ports: self.interner.ports(&pod.ports),
            host_network: pod.host_network,
        };
        let key = pod.key.clone();
        if self.cluster.pod(&key) == Some(&pod) {
            return;
        }
        let mut touched = self.cluster.put_pod(pod);
        let owned = self.cluster.addresses(&key);
        touched.extend(owned.map(|address| (address, key.namespace.clone())));
        self.touch(&key, &touched);
        self.settle(&key);
    }

    fn take_node(&mut self, name: &Text, node: Option<Node>) {
        let name = self.interner.text(name);
        let node = node.map(|node| Node {
            labels: self.interner.labels(&node.labels),
            addresses: node.addresses,
        });
        if self.cluster.node(&name) == node.as_ref() {
            return;
        }
        let touched = self.cluster.put_node(&name, node);
        self.sets.refresh_nodes(&touched, &self.cluster);
    }

    fn take_network_policy(&mut self, key: &Key, policy: Option<NetworkPolicy>) {
        let before = self
            .policies
            .put_of_namespace(key, policy.as_ref(), &mut self.interner);
        let now = self.policies.of_namespace(key);
        let concerned = self.attachments.of_namespace(&key.namespace);
        let concerned = concerned.filter(|name| {
            self.subject(name).is_none_or(|subject| {
                let mut either = before.iter().chain(now);
                either.any(|policy| policy.selects(&subject))
            })
        });
        let concerned: Vec<Attachment> = concerned.cloned().collect();
        self.dirty.extend(concerned);
    }

    fn take_cluster_policy(&mut self, name: &Text, policy: Option<ClusterPolicy>) {
        let before = self
            .policies
            .put_of_cluster(name, policy.as_ref(), &mut self.interner);
        let now = self.policies.of_cluster(name);
        let concerned = self.attachments.entries.keys().filter(|name| {
            self.subject(name).is_none_or(|subject| {
                let mut either = before.iter().chain(now);
                either.any(|policy| policy.selects(&subject))
            })
        });
        let concerned: Vec<Attachment> = concerned.cloned().collect();
        self.dirty.extend(concerned);
    }

    /// All of the kind that is known is old from now on, until it comes again.
    fn begin(&mut self, kind: Kind) {
        let (stale, cluster, policies) = (&mut self.stale, &self.cluster, &self.policies);
        match kind {
            Kind::Namespaces => stale.namespaces = cluster.namespaces().cloned().collect(),
            Kind::Pods => stale.pods = cluster.keys().cloned().collect(),
            Kind::Nodes => stale.nodes = cluster.nodes().cloned().collect(),
            Kind::NetworkPolicies => stale.network_policies = policies.keys().collect(),
            Kind::ClusterPolicies => stale.cluster_policies = policies.names().cloned().collect(),
        }
    }

    /// What has not come again is gone.
    fn end(&mut self, kind: Kind) {
        match kind {
            Kind::Namespaces => {
                for name in std::mem::take(&mut self.stale.namespaces) {
                    self.take_namespace(&name, None);
                }
            }
            Kind::Pods => {
                for key in std::mem::take(&mut self.stale.pods) {
                    self.take_pod(key, None);
                }
            }
            Kind::Nodes => {
                for name in std::mem::take(&mut self.stale.nodes) {
                    self.take_node(&name, None);
                }
            }
            Kind::NetworkPolicies => {
                for key in std::mem::take(&mut self.stale.network_policies) {
                    self.take_network_policy(&key, None);
                }
            }
            Kind::ClusterPolicies => {
                for name in std::mem::take(&mut self.stale.cluster_policies) {
                    self.take_cluster_policy(&name, None);
                }
            }
        }
        self.listed.insert(kind);
    }

    /// The pod's object or its attachments are others: so may be what it claims.
    fn settle(&mut self, key: &Key) {
        let Some(pod) = self.cluster.pod(key) else {
            return;
        };
        let attached = self.attachments.addresses(pod, &self.node);
        let touched = self.cluster.settle(key, &attached);
        self.sets.refresh(&touched, &self.cluster);
    }

    /// Something is new about the pod, and about these addresses.
    fn touch(&mut self, key: &Key, touched: &[Touched]) {
        self.sets.refresh(touched, &self.cluster);
        self.dirty.extend(self.attachments.of_pod(key).cloned());
    }

    /// The pod of an attachment, where all is known that its programs depend on.
    fn subject(&self, attachment: &str) -> Option<Subject<'_>> {
        let entry = self.attachments.entries.get(attachment)?;
        subject(&entry.attached, &self.cluster, &self.node)
    }

    /// Finds the attachment's verdict anew. What it ran goes only when it has the new, so that what both ask stays.
    fn renew(&mut self, name: &Attachment) {
        let Some(entry) = self.attachments.entries.get_mut(name) else {
            return;
        };
        let namespace = &entry.attached.pod.namespace;
        let verdict = match subject(&entry.attached, &self.cluster, &self.node) {
            None if self.policies.may_be_about(namespace) => Verdict::Unknown,
            // Whoever it is: no policy can be about it.
            None => Verdict::Known {
                pod: entry.attached.pod.clone(),
                ingress: None,
                egress: None,
            },
            Some(subject) => {
                let mut run = |direction| {
                    let mut number = |meaning: &Arc<_>| self.sets.number(meaning, &self.cluster);
                    let program = self.policies.compile(&subject, direction, &mut number)?;
                    Some(self.programs.hold(program, &mut self.sets))
                };
                Verdict::Known {
                    pod: subject.pod.key.clone(),
                    ingress: run(Direction::Ingress),
                    egress: run(Direction::Egress),
                }
            }
        };
        let before = std::mem::replace(&mut entry.verdict, verdict);
        release(&before, &mut self.programs);
    }
}

fn subject<'a>(attached: &Attached, cluster: &'a Cluster, node: &str) -> Option<Subject<'a>> {
    let pod = cluster.pod(&attached.pod)?;
    let labels = cluster.labels(&pod.key.namespace)?;
    belongs(attached, pod, node).then_some(Subject { pod, labels })
}

fn release(verdict: &Verdict, programs: &mut Programs) {
    if let Verdict::Known {
        ingress, egress, ..
    } = verdict
    {
        for id in ingress.iter().chain(egress) {
            programs.release(*id);
        }
    }
}
