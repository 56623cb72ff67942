//! Namespaces, pods and nodes, and which pod an address belongs to.
//!
//! An address has one owner. Where two pods claim it (an old one that the API has still, and the one that got its address), the
//! later claim takes it, and the old one gets it back by nothing that it says again. A claim that an attachment of this node proves
//! goes over all that none does. Who does not have it is next when the owner's claim, or its proof, is gone: the first list comes
//! by name and says nothing of who was later, so the one that is left must not be nobody.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::super::object::{Addresses, Key, Labels, Node, Pod, Text};
use super::meaning::{Meaning, Owner};

/// The place of a pod in the list.
pub(super) type PodId = u32;

#[derive(Debug, Default)]
struct Namespace {
    /// None while the API has not told of it.
    labels: Option<Labels>,
    pods: HashMap<Text, PodId>,
}

#[derive(Debug)]
struct Entry {
    pod: Pod,
    /// The addresses that it says are its own, whether they are or not.
    claim: Addresses,
    /// Those of them that an attachment proves.
    proven: Addresses,
}

/// An address that has something new about it, and the namespace of the pod that has or had it.
pub(super) type Touched = (IpAddr, Text);

#[derive(Debug, Default)]
pub(super) struct Cluster {
    namespaces: HashMap<Text, Namespace>,
    pods: Vec<Option<Entry>>,
    free: Vec<PodId>,
    owners: HashMap<IpAddr, PodId>,
    /// Who else claims an address, the next one last.
    others: BTreeMap<IpAddr, Vec<PodId>>,
    nodes: HashMap<Text, Node>,
    node_addresses: HashMap<IpAddr, Vec<Text>>,
}

impl Cluster {
    pub(super) fn pod(&self, key: &Key) -> Option<&Pod> {
        self.entry(self.id(key)?).map(|entry| &entry.pod)
    }

    pub(super) fn labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces.get(namespace)?.labels.as_ref()
    }

    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    pub(super) fn owner(&self, address: IpAddr) -> Owner<'_> {
        let owner = self.owners.get(&address).and_then(|id| self.entry(*id));
        let nodes = self.node_addresses.get(&address);
        let nodes = nodes.into_iter().flatten();
        Owner {
            address,
            pod: owner.map(|entry| (&entry.pod, self.labels(&entry.pod.key.namespace))),
            nodes: nodes.filter_map(|name| self.nodes.get(name)).collect(),
        }
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().flatten().map(|entry| &entry.pod)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        let there = self.pods.iter().flatten();
        there.map(|entry| &entry.pod.key)
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Text> {
        let known = self.namespaces.iter();
        known
            .filter(|(_, namespace)| namespace.labels.is_some())
            .map(|(name, _)| name)
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Text> {
        self.nodes.keys()
    }

    /// The addresses that a pod of the namespace has.
    pub(super) fn addresses_in(&self, namespace: &str) -> impl Iterator<Item = IpAddr> {
        let pods = self
            .namespaces
            .get(namespace)
            .map(|found| found.pods.values());
        let ids = pods.into_iter().flatten();
        ids.flat_map(|id| self.addresses_of(*id))
    }

    pub(super) fn addresses(&self, key: &Key) -> impl Iterator<Item = IpAddr> {
        let id = self.id(key).into_iter();
        id.flat_map(|id| self.addresses_of(id))
    }

    fn addresses_of(&self, id: PodId) -> impl Iterator<Item = IpAddr> {
        let claimed = self.entry(id).map(|entry| entry.claim).unwrap_or_default();
        let owned = move |address: &IpAddr| self.owners.get(address) == Some(&id);
        claimed.iter().filter(owned)
    }

    /// All owners that can be in the set, some of them more than once.
    pub(super) fn candidates<'a>(
        &'a self,
        meaning: &'a Meaning,
    ) -> impl Iterator<Item = Owner<'a>> {
        let concerned = self.namespaces.iter().filter(|(name, namespace)| {
            !namespace.pods.is_empty() && meaning.concerns(name, namespace.labels.as_ref())
        });
        let of_pods = concerned
            .flat_map(|(_, namespace)| namespace.pods.values())
            .flat_map(|id| self.addresses_of(*id));
        let nodes = meaning.concerns_nodes().then_some(&self.node_addresses);
        let of_nodes = nodes.into_iter().flat_map(HashMap::keys).copied();
        of_pods.chain(of_nodes).map(|address| self.owner(address))
    }

    /// Sets the labels; what they were.
    pub(super) fn put_namespace(&mut self, name: &Text, labels: Option<Labels>) -> Option<Labels> {
        if labels.is_none() && !self.namespaces.contains_key(name) {
            return None;
        }
        let namespace = self.namespaces.entry(name.clone()).or_default();
        let before = std::mem::replace(&mut namespace.labels, labels);
        self.forget_namespace(name);
        before
    }

    /// Sets the node; its addresses before and now.
    pub(super) fn put_node(&mut self, name: &Text, node: Option<Node>) -> Vec<IpAddr> {
        let before = match &node {
            Some(node) => self.nodes.insert(name.clone(), node.clone()),
            None => self.nodes.remove(name),
        };
        let mut touched = Vec::new();
        for address in before
            .iter()
            .flat_map(|node| node.addresses.iter().copied())
        {
            touched.push(address);
            if let Some(names) = self.node_addresses.get_mut(&address) {
                names.retain(|known| known != name);
                if names.is_empty() {
                    self.node_addresses.remove(&address);
                }
            }
        }
        for address in node.iter().flat_map(|node| node.addresses.iter().copied()) {
            touched.push(address);
            let names = self.node_addresses.entry(address).or_default();
            names.push(name.clone());
        }
        touched
    }

    /// Takes the pod in; `settle` gives it its addresses. One of another uid in its place goes first.
    pub(super) fn put_pod(&mut self, pod: Pod) -> Vec<Touched> {
        let key = pod.key.clone();
        let mut touched = Vec::new();
        if self.pod(&key).is_some_and(|before| before.uid != pod.uid) {
            touched = self.remove_pod(&key);
        }
        if let Some(entry) = self.id(&key).and_then(|id| self.entry_mut(id)) {
            entry.pod = pod;
            return touched;
        }
        let entry = Entry {
            pod,
            claim: Addresses::default(),
            proven: Addresses::default(),
        };
        let id = self.place(entry);
        let namespace = self.namespaces.entry(key.namespace).or_default();
        namespace.pods.insert(key.name, id);
        touched
    }

    /// Takes the pod away, and what it owns.
    pub(super) fn remove_pod(&mut self, key: &Key) -> Vec<Touched> {
        let mut touched = Vec::new();
        let Some(id) = self.id(key) else {
            return touched;
        };
        let claimed = self.entry(id).map(|entry| entry.claim).unwrap_or_default();
        for address in claimed.iter() {
            self.release(id, address, &mut touched);
        }
        if let Some(place) = self.pods.get_mut(id as usize) {
            *place = None;
            self.free.push(id);
        }
        if let Some(namespace) = self.namespaces.get_mut(&key.namespace) {
            namespace.pods.remove(&key.name);
        }
        self.forget_namespace(&key.namespace);
        touched
    }

    /// Makes the pod's claims those that follow from its object and from the addresses of its attachments: its own where the API has none.
    pub(super) fn settle(&mut self, key: &Key, attached: &[Addresses]) -> Vec<Touched> {
        let mut touched = Vec::new();
        let Some((id, entry)) = self.id(key).and_then(|id| Some((id, self.entry(id)?))) else {
            return touched;
        };
        let (claim_before, proven_before) = (entry.claim, entry.proven);
        let claim = if entry.pod.host_network {
            Addresses::default()
        } else if entry.pod.addresses == Addresses::default() {
            attached.first().copied().unwrap_or_default()
        } else {
            entry.pod.addresses
        };
        let of_attachment = |address: IpAddr| attached.iter().any(|one| has(one, address));
        let proven = only(claim, of_attachment);
        if let Some(entry) = self.entry_mut(id) {
            (entry.claim, entry.proven) = (claim, proven);
        }
        for address in claim_before.iter() {
            if !has(&claim, address) {
                self.release(id, address, &mut touched);
            } else if has(&proven_before, address) && !has(&proven, address) {
                self.give_to_next(address, &mut touched);
            }
        }
        for address in claim.iter() {
            let news = !has(&claim_before, address)
                || (has(&proven, address) && !has(&proven_before, address));
            if news {
                self.claim(id, address, &mut touched);
            }
        }
        touched
    }

    fn claim(&mut self, id: PodId, address: IpAddr, touched: &mut Vec<Touched>) {
        let proves = |id: PodId| self.entry(id).is_some_and(|it| has(&it.proven, address));
        let owner = self.owners.get(&address).copied();
        if owner == Some(id) {
            return;
        }
        let waits = owner.is_some_and(|owner| proves(owner) && !proves(id));
        self.forget_other(id, address);
        if let Some(next) = if waits { Some(id) } else { owner } {
            self.others.entry(address).or_default().push(next);
        }
        if waits {
            return;
        }
        self.owners.insert(address, id);
        touched.extend(owner.and_then(|before| self.touched(before, address)));
        touched.extend(self.touched(id, address));
    }

    fn release(&mut self, id: PodId, address: IpAddr, touched: &mut Vec<Touched>) {
        self.forget_other(id, address);
        if self.owners.get(&address) == Some(&id) {
            self.owners.remove(&address);
            touched.extend(self.touched(id, address));
            self.give_to_next(address, touched);
        }
    }

    fn give_to_next(&mut self, address: IpAddr, touched: &mut Vec<Touched>) {
        let others = self.others.get(&address);
        if let Some(id) = others.and_then(|ids| ids.last().copied()) {
            self.claim(id, address, touched);
        }
    }

    fn forget_other(&mut self, id: PodId, address: IpAddr) {
        if let Some(others) = self.others.get_mut(&address) {
            others.retain(|other| *other != id);
            if others.is_empty() {
                self.others.remove(&address);
            }
        }
    }

    fn touched(&self, id: PodId, address: IpAddr) -> Option<Touched> {
        Some((address, self.entry(id)?.pod.key.namespace.clone()))
    }

    fn place(&mut self, entry: Entry) -> PodId {
        if let Some(id) = self.free.pop()
            && let Some(place) = self.pods.get_mut(id as usize)
        {
            *place = Some(entry);
            return id;
        }
        self.pods.push(Some(entry));
        // No cluster has as many pods as would not fit.
        (self.pods.len() - 1) as PodId
    }

    fn forget_namespace(&mut self, name: &Text) {
        let unused = self
            .namespaces
            .get(name)
            .is_some_and(|namespace| namespace.labels.is_none() && namespace.pods.is_empty());
        if unused {
            self.namespaces.remove(name);
        }
    }

    fn id(&self, key: &Key) -> Option<PodId> {
        let namespace = self.namespaces.get(&key.namespace)?;
        namespace.pods.get(&key.name).copied()
    }

    fn entry(&self, id: PodId) -> Option<&Entry> {
        self.pods.get(id as usize)?.as_ref()
    }

    fn entry_mut(&mut self, id: PodId) -> Option<&mut Entry> {
        self.pods.get_mut(id as usize)?.as_mut()
    }
}

fn has(addresses: &Addresses, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => addresses.v4 == Some(address),
        IpAddr::V6(address) => addresses.v6 == Some(address),
    }
}

fn only(addresses: Addresses, wanted: impl Fn(IpAddr) -> bool) -> Addresses {
    Addresses {
        v4: addresses.v4.filter(|one| wanted((*one).into())),
        v6: addresses.v6.filter(|one| wanted((*one).into())),
    }
}
