//! What policy needs of the API: Pods, Namespaces, NetworkPolicies and ClusterNetworkPolicies, each followed by the one loop of
//! [`super::watch`]; the Nodes come from the watch that the registry has.
//!
//! An object goes to policy as soon as it is read, and nothing of it stays here but what is wrong in it. Who takes them is
//! another thread, and may be slower than a list of fifty thousand pods comes: then the watch waits for room, and the server with
//! it, while everything else on this thread goes on. Only the Nodes never wait ([`super::nodes`]).
//!
//! What would surprise: the kind ClusterNetworkPolicy need not be there. Then it has no objects, and is asked for again after some
//! minutes; nobody is told, for that is how most clusters are.

mod cluster_policy;
pub mod labels;
mod network_policy;
mod pod;
mod reader;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::About;
use super::client::{self, Client, Failure};
use super::nodes;
use super::object::NodeObject;
use super::state::State;
use super::watch::{Object, Objects, Pages, Place, Watch};
use crate::config::KubernetesConfig;
use crate::policy::object::{Change, Key, Kind, Labels, Text};
use cluster_policy::ClusterPolicyObject;
use labels::{Shared, labels};
use network_policy::NetworkPolicyObject;
use pod::PodObject;

/// How many changes wait to be taken, Nodes not counted: half a megabyte.
const WAITING: usize = 512;
/// How long after a kind was not there it is asked for again, about.
const ABSENT: Duration = Duration::from_secs(300);
/// Of so many values that are wrong in an object is told what they are.
const TOLD: usize = 3;

/// Where changes go.
pub struct Sink {
    changes: mpsc::Sender<Sent>,
    room: Arc<Semaphore>,
    wake: Box<dyn Fn() + Send>,
    /// [`ABSENT`], but in tests.
    absent: Duration,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

/// A change, and the place that it takes until it is taken.
#[derive(Debug)]
struct Sent {
    change: Change,
    _room: Option<OwnedSemaphorePermit>,
}

/// The changes in the order in which they came, to be taken by one thread, whatever it is doing there.
#[derive(Debug)]
pub struct Changes(mpsc::Receiver<Sent>);

/// A way for changes; after each `wake` is called, on the thread that follows the API: it must not wait.
pub fn channel(wake: impl Fn() + Send + 'static) -> (Sink, Changes) {
    let (changes, receiver) = mpsc::channel();
    let sink = Sink {
        changes,
        room: Arc::new(Semaphore::new(WAITING)),
        wake: Box::new(wake),
        absent: ABSENT,
    };
    (sink, Changes(receiver))
}

impl Changes {
    /// What has come; never waits.
    pub fn try_iter(&self) -> impl Iterator<Item = Change> {
        self.0.try_iter().map(|sent| sent.change)
    }

    /// The next one, waiting for it no longer than that.
    #[cfg(test)]
    pub fn recv_timeout(
        &self,
        timeout: Duration,
    ) -> Result<Change, std::sync::mpsc::RecvTimeoutError> {
        self.0.recv_timeout(timeout).map(|sent| sent.change)
    }
}

impl Sink {
    /// Sends, as soon as there is room.
    pub async fn send(&self, change: Change) {
        // It is never closed.
        let room = Arc::clone(&self.room).acquire_owned().await.ok();
        self.put(Sent {
            change,
            _room: room,
        });
    }

    /// Sends at once, however many wait.
    pub fn send_now(&self, change: Change) {
        self.put(Sent {
            change,
            _room: None,
        });
    }

    /// Where nobody takes changes any longer, nobody misses them.
    fn put(&self, sent: Sent) {
        let _ = self.changes.send(sent);
        (self.wake)();
    }
}

/// Where we are with each kind.
#[derive(Debug, Default)]
pub struct Watches {
    namespaces: Watch,
    pods: Watch,
    network_policies: Watch,
    cluster_policies: Watch,
}

impl Watches {
    /// Follows all kinds, for ever; nothing where there is no policy. Whether the client must be made anew is for the watch
    /// of the Nodes to say: the server is the same.
    pub async fn follow(&mut self, client: &Client, state: &State, sink: Option<&Sink>) {
        let Some(sink) = sink else {
            return std::future::pending().await;
        };
        let way = Way {
            client,
            state,
            sink,
        };
        let cluster_policies = Place {
            absent: Some(sink.absent),
            ..CLUSTER_POLICIES
        };
        tokio::join!(
            way.follow::<NamespaceObject>(&mut self.namespaces, NAMESPACES),
            way.follow::<PodObject>(&mut self.pods, PODS),
            way.follow::<NetworkPolicyObject>(&mut self.network_policies, NETWORK_POLICIES),
            way.follow::<ClusterPolicyObject>(&mut self.cluster_policies, cluster_policies),
        );
    }
}

/// From where, and where to.
#[derive(Clone, Copy)]
struct Way<'a> {
    client: &'a Client,
    state: &'a State,
    sink: &'a Sink,
}

impl Way<'_> {
    async fn follow<T: Read>(&self, watch: &mut Watch, place: Place) {
        let followed = Followed::<T>::new(*self, place);
        loop {
            watch.follow(self.client, &followed).await;
        }
    }
}

/// An object that policy reads.
trait Read: Object {
    const KIND: Kind;

    /// What it says, and what in it cannot be read.
    fn read(self) -> (Change, Vec<reader::Fault>);

    /// That it is gone.
    fn gone(self) -> Change;
}

/// The objects of a kind.
struct Followed<'a, T> {
    way: Way<'a>,
    place: Place,
    /// Objects in which something was wrong before the list, as far as they have not come again.
    faulty: RefCell<BTreeSet<Box<str>>>,
    objects: PhantomData<T>,
}

impl<'a, T: Read> Followed<'a, T> {
    fn new(way: Way<'a>, place: Place) -> Self {
        Self {
            way,
            place,
            faulty: RefCell::default(),
            objects: PhantomData,
        }
    }

    fn mind(&self, change: &Change, faults: &[reader::Fault]) {
        let state = self.way.state;
        // Which is nearly always so, and a name is not made for it.
        if faults.is_empty() && !state.has_faults() {
            return;
        }
        let Some((kind, name)) = name(change) else {
            return;
        };
        self.faulty.borrow_mut().remove(name.as_str());
        let text = text(&format!("{kind} {name}"), faults);
        state.set_fault(T::KIND, &name, text);
    }
}

impl<T: Read> Objects for Followed<'_, T> {
    type Object = T;

    fn place(&self) -> &Place {
        &self.place
    }

    fn state(&self) -> &State {
        self.way.state
    }

    async fn begin(&self) {
        self.faulty.replace(self.way.state.faulty(T::KIND));
        self.way.sink.send(Change::Begin(T::KIND)).await;
    }

    async fn set(&self, object: T) {
        let (change, faults) = object.read();
        self.mind(&change, &faults);
        self.way.sink.send(change).await;
    }

    async fn remove(&self, object: T) {
        let change = object.gone();
        self.mind(&change, &[]);
        self.way.sink.send(change).await;
    }

    async fn end(&self) {
        for name in self.faulty.take() {
            self.way.state.set_fault(T::KIND, &name, None);
        }
        self.way.sink.send(Change::End(T::KIND)).await;
    }
}

/// All that there is now, for a command that looks once. What in the objects is not followed is not told here; the agent does.
///
/// # Errors
/// No runtime, the API out of reach, no right to list a kind.
pub fn read(config: &KubernetesConfig) -> anyhow::Result<Vec<Change>> {
    super::runtime()?.block_on(async {
        let client = client::connect(config).await?;
        let mut changes = Vec::new();
        let nodes = list::<NodeObject>(&client, &nodes::PLACE, Kind::Nodes).await?;
        let nodes = nodes.into_iter().map(|object| {
            let name = Text::from(object.metadata.name.as_str());
            Change::Node(name, Some(object.for_policy()))
        });
        complete(&mut changes, Kind::Nodes, nodes);
        read_kind::<NamespaceObject>(&client, &NAMESPACES, &mut changes).await?;
        read_kind::<PodObject>(&client, &PODS, &mut changes).await?;
        read_kind::<NetworkPolicyObject>(&client, &NETWORK_POLICIES, &mut changes).await?;
        read_kind::<ClusterPolicyObject>(&client, &CLUSTER_POLICIES, &mut changes).await?;
        Ok(changes)
    })
}

async fn read_kind<T: Read>(
    client: &Client,
    place: &Place,
    changes: &mut Vec<Change>,
) -> Result<(), Failure> {
    let objects = list::<T>(client, place, T::KIND).await?.into_iter();
    complete(changes, T::KIND, objects.map(|object| object.read().0));
    Ok(())
}

/// All objects of a kind; none of a kind that may be absent and is.
async fn list<T: Object>(client: &Client, place: &Place, kind: Kind) -> Result<Vec<T>, Failure> {
    let mut pages = Pages::<T>::new(client, place);
    let mut all = Vec::new();
    loop {
        match pages.next().await {
            Ok(Some(items)) => all.extend(items),
            Ok(None) => return Ok(all),
            Err(failure) if kind == Kind::ClusterPolicies && failure.is_not_found() => {
                return Ok(Vec::new());
            }
            Err(failure) => return Err(failure),
        }
    }
}

fn complete(changes: &mut Vec<Change>, kind: Kind, objects: impl Iterator<Item = Change>) {
    changes.push(Change::Begin(kind));
    changes.extend(objects);
    changes.push(Change::End(kind));
}

/// One object of any kind, out of a file, and what in it is not followed.
///
/// # Errors
/// No object of a kind that policy reads; why.
pub fn read_object(value: Value) -> Result<(Change, Option<String>), String> {
    let kind = value
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default();
    match kind {
        "Namespace" => read_as::<NamespaceObject>(value),
        "Pod" => read_as::<PodObject>(value),
        "NetworkPolicy" => read_as::<NetworkPolicyObject>(value),
        "ClusterNetworkPolicy" => read_as::<ClusterPolicyObject>(value),
        "Node" => {
            let object = NodeObject::deserialize(value).map_err(|error| error.to_string())?;
            let name = Text::from(object.metadata.name.as_str());
            named(Change::Node(name, Some(object.for_policy())), None)
        }
        other => Err(format!(
            "kind: {other:?} is not read; known are Namespace, Pod, Node, NetworkPolicy, ClusterNetworkPolicy"
        )),
    }
}

fn read_as<T: Read>(value: Value) -> Result<(Change, Option<String>), String> {
    let object = T::deserialize(value).map_err(|error| error.to_string())?;
    let (change, faults) = object.read();
    let name_of = name(&change).map(|(kind, name)| format!("{kind} {name}"));
    let faults = text(&name_of.unwrap_or_default(), &faults);
    named(change, faults)
}

/// The same, if the object has a name: a server gives none without, a file may.
fn named(change: Change, faults: Option<String>) -> Result<(Change, Option<String>), String> {
    let missing = match &change {
        Change::Pod(key, _) | Change::NetworkPolicy(key, _) if key.namespace.is_empty() => {
            Some("namespace")
        }
        Change::Pod(Key { name, .. }, _)
        | Change::NetworkPolicy(Key { name, .. }, _)
        | Change::Namespace(name, _)
        | Change::Node(name, _)
        | Change::ClusterPolicy(name, _)
            if name.is_empty() =>
        {
            Some("name")
        }
        _ => None,
    };
    match missing {
        Some(key) => Err(format!("metadata.{key}: must be there")),
        None => Ok((change, faults)),
    }
}

/// The kind in the API's word, and the name as people write it.
fn name(change: &Change) -> Option<(&'static str, String)> {
    Some(match change {
        Change::Begin(_) | Change::End(_) => return None,
        Change::Namespace(name, _) => ("Namespace", name.to_string()),
        Change::Node(name, _) => ("Node", name.to_string()),
        Change::ClusterPolicy(name, _) => ("ClusterNetworkPolicy", name.to_string()),
        Change::Pod(key, _) => ("Pod", format!("{}/{}", key.namespace, key.name)),
        Change::NetworkPolicy(key, _) => {
            let name = format!("{}/{}", key.namespace, key.name);
            ("NetworkPolicy", name)
        }
    })
}

/// The faults of an object as one text.
fn text(source: &str, faults: &[reader::Fault]) -> Option<String> {
    let mut told: Vec<_> = faults
        .iter()
        .take(TOLD)
        .map(|fault| fault.of(source).to_string())
        .collect();
    if faults.len() > TOLD {
        told.push(format!("and {} more in it", faults.len() - TOLD));
    }
    (!told.is_empty()).then(|| told.join("; "))
}

const NAMESPACES: Place = Place {
    path: "/api/v1/namespaces",
    watch: "watch Namespaces",
    list: "list Namespaces",
    about: About::Kind(Kind::Namespaces),
    absent: None,
};
const PODS: Place = Place {
    path: "/api/v1/pods",
    watch: "watch Pods",
    list: "list Pods",
    about: About::Kind(Kind::Pods),
    absent: None,
};
const NETWORK_POLICIES: Place = Place {
    path: "/apis/networking.k8s.io/v1/networkpolicies",
    watch: "watch NetworkPolicies",
    list: "list NetworkPolicies",
    about: About::Kind(Kind::NetworkPolicies),
    absent: None,
};
const CLUSTER_POLICIES: Place = Place {
    path: "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
    watch: "watch ClusterNetworkPolicies",
    list: "list ClusterNetworkPolicies",
    about: About::Kind(Kind::ClusterPolicies),
    absent: Some(ABSENT),
};

/// A Namespace.
#[derive(Debug, Clone, Default, Deserialize)]
struct NamespaceObject {
    metadata: NamespaceMetadata,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NamespaceMetadata {
    name: Shared,
    resource_version: String,
    #[serde(deserialize_with = "labels")]
    labels: Labels,
}

impl Object for NamespaceObject {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Read for NamespaceObject {
    const KIND: Kind = Kind::Namespaces;

    fn read(self) -> (Change, Vec<reader::Fault>) {
        let NamespaceMetadata { name, labels, .. } = self.metadata;
        (Change::Namespace(name.0, Some(labels)), Vec::new())
    }

    fn gone(self) -> Change {
        Change::Namespace(self.metadata.name.0, None)
    }
}

#[cfg(test)]
mod tests;
