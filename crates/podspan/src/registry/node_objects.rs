//! The Nodes of the Kubernetes API as a cluster: what came of them so far, put together anew when something is new. Pure.
//!
//! Of two Nodes that exclude each other the older one stays, by the API's own time and then by name: so it is on every machine,
//! and a Node that is added never takes another's traffic. A Node without pod CIDRs or addresses is not ready, which is
//! nobody's fault; what runs for it already goes on running.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::bail;

use super::gathered::Gathered;
use crate::cluster::{Cluster, Node, Origin, Unready};
use crate::kubernetes::object::Record;
use crate::kubernetes::{About, News};
use crate::refusal::Refusal;

/// What came so far.
#[derive(Debug, Default)]
pub struct NodeObjects {
    /// By time and name; none before the first list.
    records: Option<BTreeMap<Key, Arc<Record>>>,
    keys: BTreeMap<String, Key>,
    problems: BTreeMap<About, String>,
    is_new: bool,
}

/// When it was made, and its name.
type Key = (String, String);

impl NodeObjects {
    /// Takes what is new.
    pub fn take(&mut self, news: News) {
        match news {
            News::Problem(about, text) => {
                match text {
                    Some(text) => self.problems.insert(about, text),
                    None => self.problems.remove(&about),
                };
                return;
            }
            News::All(records) => {
                self.records = Some(BTreeMap::new());
                self.keys.clear();
                records.into_iter().for_each(|record| self.set(record));
            }
            News::Is(record) => {
                self.remove(&record.name);
                self.set(record);
            }
            News::Gone(name) => self.remove(&name),
        }
        self.is_new = true;
    }

    fn set(&mut self, record: Arc<Record>) {
        let key = (record.created.clone(), record.name.clone());
        self.keys.insert(record.name.clone(), key.clone());
        self.records.get_or_insert_default().insert(key, record);
    }

    fn remove(&mut self, name: &str) {
        if let (Some(key), Some(records)) = (self.keys.remove(name), &mut self.records) {
            records.remove(&key);
        }
    }

    /// What is wrong, each thing once.
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.values().map(String::as_str)
    }

    /// The cluster and the refused Nodes, when something is new since the last call.
    pub fn cluster(&mut self) -> Option<anyhow::Result<(Cluster, Vec<Refusal>)>> {
        if !std::mem::take(&mut self.is_new) {
            return None;
        }
        let records = self.records.as_ref()?;
        Some(cluster(records.values().map(AsRef::as_ref)))
    }
}

/// Of Nodes in their order.
fn cluster<'a>(
    records: impl Iterator<Item = &'a Record>,
) -> anyhow::Result<(Cluster, Vec<Refusal>)> {
    let mut gathered = Gathered::new(Origin::Kubernetes);
    let mut refusals = Vec::new();
    let mut total = 0;
    for (entry, record) in records.enumerate() {
        total += 1;
        if !record.faults.is_empty() {
            gathered.cluster.refused.push(record.remains());
            refusals.extend(record.faults.iter().cloned());
        } else if let Some(lacks) = record.lacks() {
            gathered.cluster.refused.push(record.remains());
            let name = record.name.clone();
            gathered.cluster.unready.push(Unready { name, lacks });
        } else if let Err((remains, faults)) = gathered.take(Node {
            entry,
            name: record.name.clone(),
            addresses: record.addresses.clone(),
            pod_cidrs: record.pod_cidrs.clone(),
        }) {
            gathered.cluster.refused.push(remains);
            refusals.extend(faults);
        }
    }
    if gathered.cluster.nodes.is_empty() {
        let api = &gathered.cluster.origin;
        match (refusals.first(), gathered.cluster.unready.first()) {
            (Some(first), _) => bail!("{api}: none of its {total} Nodes is usable; {first}"),
            (None, Some(Unready { name, lacks })) => {
                bail!("{api}: none of its {total} Nodes is usable; Node {name} has no {lacks} yet")
            }
            (None, None) => bail!("{api}: no Node in it"),
        }
    }
    Ok((gathered.cluster, refusals))
}

#[cfg(test)]
mod tests;
