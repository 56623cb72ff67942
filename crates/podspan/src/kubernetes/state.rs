//! What the thread knows, and the way of its news to the agent. One owner: the thread; nothing here waits.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc;

use podspan_kernel::Prefix;
use tokio::sync::watch as latest;

use super::client::{Failure, FailureKind};
use super::object::{NodeObject, Record};
use super::{About, News};
use crate::events::{Event, Sender};
use crate::policy::object::Kind;

/// The Nodes by name.
pub type Records = BTreeMap<String, Arc<Record>>;

/// Of so many objects in which something is wrong it is told what; of others when one of these is right again.
const FAULTY: usize = 20;

/// What the thread knows.
pub struct State {
    /// The name of this machine's Node.
    own_name: Option<String>,
    records: RefCell<Records>,
    /// How each problem that was told differs from others.
    problems: RefCell<BTreeMap<About, FailureKind>>,
    /// What is wrong in objects that policy reads.
    faults: RefCell<BTreeMap<(Kind, Box<str>), String>>,
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
            faults: RefCell::default(),
            own: latest::Sender::new(None),
            news,
            events,
        }
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
    pub fn problem(&self, about: &About, failure: &Failure) {
        let kind = failure.kind();
        let last = self
            .problems
            .borrow_mut()
            .insert(about.clone(), kind.clone());
        if last != Some(kind) {
            self.send(News::Problem(about.clone(), Some(failure.to_string())));
        }
    }

    /// True while something is wrong about that.
    pub fn has_problem(&self, about: &About) -> bool {
        self.problems.borrow().contains_key(about)
    }

    /// Nothing is wrong about that.
    pub fn mended(&self, about: &About) {
        if self.problems.borrow_mut().remove(about).is_some() {
            self.send(News::Problem(about.clone(), None));
        }
    }

    /// True when something is wrong in some object.
    pub fn has_faults(&self) -> bool {
        !self.faults.borrow().is_empty()
    }

    /// The objects of that kind in which something is wrong.
    pub fn faulty(&self, kind: Kind) -> BTreeSet<Box<str>> {
        let faults = self.faults.borrow();
        let of_kind = faults.keys().filter(|(of, _)| *of == kind);
        of_kind.map(|(_, name)| name.clone()).collect()
    }

    /// What is wrong in that object, or none when nothing is any longer.
    pub fn set_fault(&self, kind: Kind, name: &str, fault: Option<String>) {
        let key = (kind, Box::from(name));
        let mut faults = self.faults.borrow_mut();
        if faults.get(&key) == fault.as_ref() {
            return;
        }
        let told = first(&faults);
        match fault {
            Some(fault) => faults.insert(key, fault),
            None => faults.remove(&key),
        };
        let now = first(&faults);
        drop(faults);
        for (kind, name) in told.keys().filter(|key| !now.contains_key(*key)) {
            self.send(News::Problem(About::Object(*kind, name.clone()), None));
        }
        for ((kind, name), fault) in now {
            if told.get(&(kind, name.clone())) != Some(&fault) {
                self.send(News::Problem(About::Object(kind, name), Some(fault)));
            }
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

/// Those that are told.
fn first(faults: &BTreeMap<(Kind, Box<str>), String>) -> BTreeMap<(Kind, Box<str>), String> {
    let faults = faults.iter().take(FAULTY);
    faults
        .map(|(key, fault)| (key.clone(), fault.clone()))
        .collect()
}
