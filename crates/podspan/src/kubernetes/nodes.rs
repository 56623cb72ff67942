//! The Nodes: for the registry, which wants all that a route needs, and for policy, which wants their labels.
//!
//! The registry goes first, and never waits for policy: of Nodes alone policy is told without waiting for room. They are few, and
//! of what a kubelet says of its Node all the time nothing is passed on that is no news: a digest of each is remembered.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use super::About;
use super::object::NodeObject;
use super::policy::Sink;
use super::state::{Records, State};
use super::watch::{Object, Objects, Place};
use crate::policy::object::{Change, Kind, Node, Text};

/// Where they are.
pub const PLACE: Place = Place {
    path: "/api/v1/nodes",
    watch: "watch Nodes",
    list: "list Nodes",
    about: About::Nodes,
    absent: None,
};

impl Object for NodeObject {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// All of them.
pub struct Nodes<'a> {
    state: &'a State,
    policy: Option<&'a Sink>,
    /// The list as far as it came; none behind its end.
    listing: RefCell<Option<Records>>,
    /// What policy knows of each.
    told: RefCell<HashMap<Text, u64>>,
    digests: RandomState,
}

impl<'a> Nodes<'a> {
    /// For the registry, and for policy where there is any.
    pub fn new(state: &'a State, policy: Option<&'a Sink>) -> Self {
        Self {
            state,
            policy,
            listing: RefCell::default(),
            told: RefCell::default(),
            digests: RandomState::new(),
        }
    }

    fn tell(&self, policy: &Sink, name: Text, node: Node) {
        let digest = self.digests.hash_one((&node.labels, &node.addresses));
        if self.told.borrow_mut().insert(Text::clone(&name), digest) != Some(digest) {
            policy.send_now(Change::Node(name, Some(node)));
        }
    }
}

impl Objects for Nodes<'_> {
    type Object = NodeObject;

    fn place(&self) -> &Place {
        &PLACE
    }

    fn state(&self) -> &State {
        self.state
    }

    async fn begin(&self) {
        *self.listing.borrow_mut() = Some(Records::new());
        if let Some(policy) = self.policy {
            self.told.borrow_mut().clear();
            policy.send_now(Change::Begin(Kind::Nodes));
        }
    }

    async fn set(&self, object: NodeObject) {
        let node = self.policy.map(|policy| {
            let name = Text::from(object.metadata.name.as_str());
            (policy, name, object.for_policy())
        });
        let record = self.state.record(object);
        match &mut *self.listing.borrow_mut() {
            Some(listing) => drop(listing.insert(record.name.clone(), record)),
            None => self.state.set(record),
        }
        if let Some((policy, name, node)) = node {
            self.tell(policy, name, node);
        }
    }

    async fn remove(&self, object: NodeObject) {
        let name = object.metadata.name;
        match &mut *self.listing.borrow_mut() {
            Some(listing) => drop(listing.remove(&name)),
            None => self.state.remove(&name),
        }
        if let Some(policy) = self.policy {
            let name = Text::from(name);
            self.told.borrow_mut().remove(&name);
            policy.send_now(Change::Node(name, None));
        }
    }

    async fn end(&self) {
        // Taken first: nothing is borrowed while the state tells it.
        let listing = self.listing.borrow_mut().take();
        if let Some(records) = listing {
            self.state.replace(records);
        }
        if let Some(policy) = self.policy {
            policy.send_now(Change::End(Kind::Nodes));
        }
    }
}
