//! Texts, labels, named ports and selectors that are equal share their memory.
//!
//! Whatever the model keeps of an object comes through here first. What nobody uses any longer goes when as much has come
//! as there was.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use super::super::object::{Key, Labels, NamedPort, Requirement, Selector, Text};

/// So many may come before the first look at what is unused.
const FEW: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: HashSet<Text>,
    labels: HashSet<Labels>,
    ports: HashSet<Arc<[NamedPort]>>,
    selectors: HashSet<Selector>,
    /// The size at which to look for what is unused.
    full: usize,
}

impl Interner {
    pub(super) fn text(&mut self, text: &Text) -> Text {
        shared(&mut self.texts, text)
    }

    /// The namespace is shared by many, the name is not.
    pub(super) fn key(&mut self, key: Key) -> Key {
        Key {
            namespace: self.text(&key.namespace),
            name: key.name,
        }
    }

    pub(super) fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.get(labels) {
            return known.clone();
        }
        let pairs = labels.0.iter();
        let pairs = pairs.map(|(key, value)| (self.text(key), self.text(value)));
        let made = Labels(pairs.collect());
        self.labels.insert(made.clone());
        made
    }

    pub(super) fn ports(&mut self, ports: &Arc<[NamedPort]>) -> Arc<[NamedPort]> {
        if let Some(known) = self.ports.get(ports) {
            return Arc::clone(known);
        }
        let named = ports.iter().map(|port| NamedPort {
            name: self.text(&port.name),
            ..*port
        });
        let made: Arc<[NamedPort]> = named.collect();
        self.ports.insert(Arc::clone(&made));
        made
    }

    /// In the one order of several that mean the same.
    pub(super) fn selector(&mut self, selector: &Selector) -> Selector {
        let requirements = selector.0.iter().map(|one| self.requirement(one));
        let mut requirements: Vec<Requirement> = requirements.collect();
        requirements.sort();
        requirements.dedup();
        shared(&mut self.selectors, &Selector(requirements.into()))
    }

    fn requirement(&mut self, requirement: &Requirement) -> Requirement {
        match requirement {
            Requirement::In(key, values) => Requirement::In(self.text(key), self.values(values)),
            Requirement::NotIn(key, values) => {
                Requirement::NotIn(self.text(key), self.values(values))
            }
            Requirement::Exists(key) => Requirement::Exists(self.text(key)),
            Requirement::DoesNotExist(key) => Requirement::DoesNotExist(self.text(key)),
            Requirement::Unknown => Requirement::Unknown,
        }
    }

    fn values(&mut self, values: &[Text]) -> Arc<[Text]> {
        let mut values: Vec<Text> = values.iter().map(|value| self.text(value)).collect();
        values.sort();
        values.dedup();
        values.into()
    }

    /// Forgets what nobody uses, when it is time.
    pub(super) fn clean(&mut self) {
        if self.len() < self.full.max(FEW) {
            return;
        }
        self.selectors
            .retain(|selector| Arc::strong_count(&selector.0) > 1);
        self.labels
            .retain(|labels| Arc::strong_count(&labels.0) > 1);
        self.ports.retain(|ports| Arc::strong_count(ports) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.full = 2 * self.len();
    }

    /// How much is kept.
    pub(super) fn len(&self) -> usize {
        self.texts.len() + self.labels.len() + self.ports.len() + self.selectors.len()
    }
}

fn shared<T: Clone + Eq + Hash>(known: &mut HashSet<T>, one: &T) -> T {
    if let Some(known) = known.get(one) {
        return known.clone();
    }
    known.insert(one.clone());
    one.clone()
}
