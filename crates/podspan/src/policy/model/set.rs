//! The sets that programs ask: one for each meaning, kept right address by address.
//!
//! What was given out and what has changed since is kept with each, so that a difference costs what changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::super::object::{Labels, Protocol, Text};
use super::super::program::{Members, SetChange, SetId};
use super::cluster::{Cluster, Touched};
use super::meaning::{Meaning, Owner, Pick, Whose};

#[derive(Debug)]
struct Entry {
    meaning: Arc<Meaning>,
    members: Members,
    /// By how many programs.
    used: usize,
    /// None while it was not given out.
    since: Option<Since>,
}

/// What changed since it was given out.
#[derive(Debug)]
struct Since {
    added: Members,
    removed: Members,
}

#[derive(Debug, Default)]
pub(super) struct Sets {
    entries: BTreeMap<SetId, Entry>,
    numbers: HashMap<Arc<Meaning>, SetId>,
    last: u32,
    /// Which have only pods of that namespace.
    narrow: HashMap<Text, BTreeSet<SetId>>,
    /// Which may have any.
    wide: BTreeSet<SetId>,
    changed: BTreeSet<SetId>,
    perhaps_unused: BTreeSet<SetId>,
}

impl Sets {
    /// The set of that meaning; a new one is filled.
    pub(super) fn number(&mut self, meaning: &Arc<Meaning>, cluster: &Cluster) -> SetId {
        if let Some(id) = self.numbers.get(meaning) {
            return *id;
        }
        self.last += 1;
        let id = SetId(self.last);
        self.numbers.insert(Arc::clone(meaning), id);
        match meaning.namespaces() {
            None => {
                self.wide.insert(id);
            }
            Some(names) => {
                for name in names {
                    self.narrow.entry(name).or_default().insert(id);
                }
            }
        }
        let entry = Entry {
            meaning: Arc::clone(meaning),
            members: fill(meaning, cluster),
            used: 0,
            since: None,
        };
        self.entries.insert(id, entry);
        self.changed.insert(id);
        self.perhaps_unused.insert(id);
        id
    }

    pub(super) fn hold(&mut self, id: SetId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.used += 1;
        }
    }

    pub(super) fn release(&mut self, id: SetId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.used -= 1;
            self.perhaps_unused.insert(id);
        }
    }

    pub(super) fn members(&self, id: SetId) -> Option<&Members> {
        self.entries.get(&id).map(|entry| &entry.members)
    }

    /// Makes the sets right for addresses of pods.
    pub(super) fn refresh(&mut self, touched: &[Touched], cluster: &Cluster) {
        for (address, namespace) in touched {
            let owner = cluster.owner(*address);
            let narrow = self.narrow.get(namespace).into_iter().flatten();
            for id in self.wide.iter().chain(narrow) {
                if let Some(entry) = self.entries.get_mut(id)
                    && entry.refresh(&owner)
                {
                    self.changed.insert(*id);
                }
            }
        }
    }

    /// Makes the sets right for addresses of nodes.
    pub(super) fn refresh_nodes(&mut self, addresses: &[IpAddr], cluster: &Cluster) {
        for address in addresses {
            let owner = cluster.owner(*address);
            for id in &self.wide {
                if let Some(entry) = self.entries.get_mut(id)
                    && entry.refresh(&owner)
                {
                    self.changed.insert(*id);
                }
            }
        }
    }

    /// Makes the sets right whose namespace selectors say something else of those labels than of these.
    pub(super) fn refresh_namespace(
        &mut self,
        name: &Text,
        before: Option<&Labels>,
        cluster: &Cluster,
    ) {
        let now = cluster.labels(name);
        let concerned: Vec<SetId> = self
            .wide
            .iter()
            .copied()
            .filter(|id| {
                let entry = self.entries.get(id);
                entry.is_some_and(|entry| entry.tells_apart(before, now))
            })
            .collect();
        if concerned.is_empty() {
            return;
        }
        for address in cluster.addresses_in(name) {
            let owner = cluster.owner(address);
            for id in &concerned {
                if let Some(entry) = self.entries.get_mut(id)
                    && entry.refresh(&owner)
                {
                    self.changed.insert(*id);
                }
            }
        }
    }

    /// What is different since the last time; what nobody uses is gone.
    pub(super) fn difference(&mut self) -> BTreeMap<SetId, SetChange> {
        let mut changes = BTreeMap::new();
        for id in std::mem::take(&mut self.perhaps_unused) {
            if self.entries.get(&id).is_some_and(|entry| entry.used == 0)
                && let Some(entry) = self.remove(id)
                && entry.since.is_some()
            {
                changes.insert(id, SetChange::Gone);
            }
        }
        for id in std::mem::take(&mut self.changed) {
            if let Some(change) = self.entries.get_mut(&id).and_then(Entry::give) {
                changes.insert(id, change);
            }
        }
        changes
    }

    /// Forgets what was given out.
    pub(super) fn anew(&mut self) {
        for (id, entry) in &mut self.entries {
            entry.since = None;
            self.changed.insert(*id);
        }
    }

    fn remove(&mut self, id: SetId) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        self.numbers.remove(&entry.meaning);
        self.wide.remove(&id);
        for name in entry.meaning.namespaces().into_iter().flatten() {
            if let Some(ids) = self.narrow.get_mut(&name) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.narrow.remove(&name);
                }
            }
        }
        Some(entry)
    }
}

impl Entry {
    /// Makes it right for the owner's address; true when something changed.
    fn refresh(&mut self, owner: &Owner<'_>) -> bool {
        match &mut self.members {
            Members::Ranges(_) => false,
            Members::Addresses(members) => {
                let means = self.meaning.means(owner);
                let changed = if means {
                    members.insert(owner.address)
                } else {
                    members.remove(&owner.address)
                };
                if changed && let Some(since) = &mut self.since {
                    let (to, from) = since.ways(means);
                    note(addresses(to), addresses(from), owner.address);
                }
                changed
            }
            Members::Sockets(members) => {
                let wanted: BTreeSet<_> = self.meaning.sockets(owner).into_iter().collect();
                let of_address =
                    (owner.address, Protocol::Tcp, 0)..=(owner.address, Protocol::Sctp, u16::MAX);
                let there: BTreeSet<_> = members.range(of_address).copied().collect();
                for socket in wanted.symmetric_difference(&there) {
                    let comes = members.insert(*socket);
                    if !comes {
                        members.remove(socket);
                    }
                    if let Some(since) = &mut self.since {
                        let (to, from) = since.ways(comes);
                        note(sockets(to), sockets(from), *socket);
                    }
                }
                wanted != there
            }
        }
    }

    /// True when a namespace with the one kind of labels may be meant otherwise than with the other.
    fn tells_apart(&self, one: Option<&Labels>, other: Option<&Labels>) -> bool {
        let (Meaning::Addresses(picks) | Meaning::Sockets(Whose::Of(picks, _), _)) = &*self.meaning
        else {
            return false;
        };
        picks.iter().any(|pick| match pick {
            Pick::Of(selector, _) => {
                let means = |labels: Option<&Labels>| labels.is_some_and(|it| selector.matches(it));
                means(one) != means(other)
            }
            Pick::Here(..) | Pick::Nodes(_) => false,
        })
    }

    /// What is new about it since the last time.
    fn give(&mut self) -> Option<SetChange> {
        let nothing = Since {
            added: empty(&self.meaning),
            removed: empty(&self.meaning),
        };
        match self.since.replace(nothing) {
            None => Some(SetChange::New(self.members.clone())),
            Some(since) if is_empty(&since.added) && is_empty(&since.removed) => None,
            Some(Since { added, removed }) => Some(SetChange::Changed { added, removed }),
        }
    }
}

impl Since {
    /// Where what comes, or goes, is written, and where it may be written the other way round.
    fn ways(&mut self, comes: bool) -> (&mut Members, &mut Members) {
        if comes {
            (&mut self.added, &mut self.removed)
        } else {
            (&mut self.removed, &mut self.added)
        }
    }
}

/// What comes after it went is as it was.
fn note<T: Ord>(to: Option<&mut BTreeSet<T>>, from: Option<&mut BTreeSet<T>>, one: T) {
    if let (Some(to), Some(from)) = (to, from)
        && !from.remove(&one)
    {
        to.insert(one);
    }
}

fn addresses(members: &mut Members) -> Option<&mut BTreeSet<IpAddr>> {
    match members {
        Members::Addresses(addresses) => Some(addresses),
        Members::Ranges(_) | Members::Sockets(_) => None,
    }
}

fn sockets(members: &mut Members) -> Option<&mut BTreeSet<(IpAddr, Protocol, u16)>> {
    match members {
        Members::Sockets(sockets) => Some(sockets),
        Members::Ranges(_) | Members::Addresses(_) => None,
    }
}

fn empty(meaning: &Meaning) -> Members {
    match meaning {
        Meaning::Addresses(_) => Members::Addresses(BTreeSet::new()),
        Meaning::Ranges(_) => Members::Ranges(Vec::new()),
        Meaning::Sockets(..) => Members::Sockets(BTreeSet::new()),
    }
}

fn is_empty(members: &Members) -> bool {
    match members {
        Members::Addresses(members) => members.is_empty(),
        Members::Ranges(members) => members.is_empty(),
        Members::Sockets(members) => members.is_empty(),
    }
}

fn fill(meaning: &Meaning, cluster: &Cluster) -> Members {
    match meaning {
        Meaning::Ranges(ranges) => Members::Ranges(ranges.clone()),
        Meaning::Addresses(_) => {
            let meant = cluster.candidates(meaning).filter(|it| meaning.means(it));
            Members::Addresses(meant.map(|owner| owner.address).collect())
        }
        Meaning::Sockets(..) => {
            let owners = cluster.candidates(meaning);
            Members::Sockets(owners.flat_map(|owner| meaning.sockets(&owner)).collect())
        }
    }
}
