//! The attachments of this node, the pods that they belong to, and the verdicts that were given out.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::object::{Addresses, Attached, Key, Pod, Text};
use super::super::program::{Attachment, Verdict};

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) attached: Attached,
    pub(super) verdict: Verdict,
    /// As it was given out.
    pub(super) given: Option<Verdict>,
}

#[derive(Debug, Default)]
pub(super) struct Attachments {
    pub(super) entries: BTreeMap<Attachment, Entry>,
    /// Of each namespace and pod.
    names: HashMap<Text, BTreeMap<Text, BTreeSet<Attachment>>>,
}

impl Attachments {
    pub(super) fn insert(&mut self, name: Attachment, attached: Attached) {
        let Key {
            namespace,
            name: pod,
        } = attached.pod.clone();
        let of_namespace = self.names.entry(namespace).or_default();
        of_namespace.entry(pod).or_default().insert(name.clone());
        let entry = Entry {
            attached,
            verdict: Verdict::Unknown,
            given: None,
        };
        self.entries.insert(name, entry);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Entry> {
        let entry = self.entries.remove(name)?;
        let Key {
            namespace,
            name: pod,
        } = &entry.attached.pod;
        if let Some(pods) = self.names.get_mut(namespace) {
            if let Some(names) = pods.get_mut(pod) {
                names.remove(name);
                if names.is_empty() {
                    pods.remove(pod);
                }
            }
            if pods.is_empty() {
                self.names.remove(namespace);
            }
        }
        Some(entry)
    }

    pub(super) fn of_pod(&self, key: &Key) -> impl Iterator<Item = &Attachment> {
        let pods = self.names.get(&key.namespace);
        let names = pods.and_then(|pods| pods.get(&key.name));
        names.into_iter().flatten()
    }

    pub(super) fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &Attachment> {
        let pods = self.names.get(namespace).into_iter();
        pods.flat_map(BTreeMap::values).flatten()
    }

    /// The addresses of the attachments that belong to the pod.
    pub(super) fn addresses(&self, pod: &Pod, node: &str) -> Vec<Addresses> {
        let entries = self
            .of_pod(&pod.key)
            .filter_map(|name| self.entries.get(name));
        entries
            .filter(|entry| belongs(&entry.attached, pod, node))
            .map(|entry| entry.attached.addresses)
            .collect()
    }
}

/// True when the attachment is that pod's, and not that of one which was called so before or will be. Where the runtime
/// named no uid, the pod must at least be this node's.
pub(super) fn belongs(attached: &Attached, pod: &Pod, node: &str) -> bool {
    attached.pod == pod.key
        && match &attached.uid {
            Some(uid) => *uid == pod.uid,
            None => pod.node.as_deref() == Some(node),
        }
}
