//! What the thread knows, and the way of its news to the agent. One owner: the thread; nothing here waits.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;

use podspan_kernel::Prefix;
use tokio::sync::watch as latest;

use super::client::Failure;
use super::object::{NodeObject, Record};
use super::{About, News};
use crate::events::{Event, Sender};

/// The Nodes by name.
pub type Records = BTreeMap<String, Arc<Record>>;

/// What the thread knows.
pub struct State {
    /// The name of this machine's Node.
    own_name: Option<String>,
    records: RefCell<Records>,
    /// The answer's status of each problem that was told.
    problems: RefCell<BTreeMap<About, u16>>,
    own: latest::Sender<Option<Arc<Record>>>,
    news: mpsc::Sender<News>,
    events: Sender,
}

impl State {
    /// Nothing yet.
    pub fn new(own_name: Option<String>, news: mpsc::Sender<News>, events: Sender) -> Self {
        Self {
            own_name,
            records: RefCell::default(),
            problems: RefCell::default(),
            own: latest::Sender::new(None),
            news,
            events,
        }
    }

    /// The name of this machine's Node.
    pub fn own_name(&self) -> Option<&str> {
        self.own_name.as_deref()
    }

    /// What is remembered of that object.
    pub fn record(&self, object: NodeObject) -> Arc<Record> {
        Arc::new(Record::new(object, self.own_name.as_deref()))
    }

    /// This machine's Node as it is now and will be.
    pub fn own(&self) -> latest::Receiver<Option<Arc<Record>>> {
        self.own.subscribe()
    }

    /// All Nodes, listed anew: what is not among them is gone.
    pub fn replace(&self, records: Records) {
        if *self.records.borrow() != records || records.is_empty() {
            self.send(News::All(records.values().cloned().collect()));
        }
        *self.records.borrow_mut() = records;
        self.follow_own();
    }

    /// A Node that is new or changed; most of what happens to a Node is neither.
    pub fn set(&self, record: Arc<Record>) {
        let mut records = self.records.borrow_mut();
        if records.get(&record.name) == Some(&record) {
            return;
        }
        records.insert(record.name.clone(), Arc::clone(&record));
        drop(records);
        self.send(News::Is(record));
        self.follow_own();
    }

    /// A Node that is gone.
    pub fn remove(&self, name: &str) {
        if self.records.borrow_mut().remove(name).is_some() {
            self.send(News::Gone(name.to_owned()));
            self.follow_own();
        }
    }

    /// The pod CIDRs of all Nodes but that one.
    pub fn pod_cidrs_beside(&self, uid: &str) -> Vec<Prefix> {
        let records = self.records.borrow();
        let others = records.values().filter(|record| record.uid != uid);
        others
            .flat_map(|record| record.pod_cidrs.iter().copied())
            .collect()
    }

    /// True when a Node with that uid is known.
    pub fn has(&self, uid: &str) -> bool {
        self.records
            .borrow()
            .values()
            .any(|record| record.uid == uid)
    }

    /// What is wrong about that; told when it is new, however its words change with each attempt.
    pub fn problem(&self, about: About, failure: &Failure) {
        if self.problems.borrow_mut().insert(about, failure.code) != Some(failure.code) {
            self.send(News::Problem(about, Some(failure.to_string())));
        }
    }

    /// Nothing is wrong about that.
    pub fn mended(&self, about: About) {
        if self.problems.borrow_mut().remove(&about).is_some() {
            self.send(News::Problem(about, None));
        }
    }

    fn follow_own(&self) {
        let records = self.records.borrow();
        let own = self.own_name.as_ref().and_then(|name| records.get(name));
        self.own.send_if_modified(|last| {
            let is_new = last.as_ref() != own;
            if is_new {
                *last = own.cloned();
            }
            is_new
        });
    }

    /// An event that finds no room is as good as the one that is there.
    fn send(&self, news: News) {
        let _ = self.news.send(news);
        let _ = self.events.try_send(Event::Look);
    }
}
