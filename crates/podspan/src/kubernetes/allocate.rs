//! Giving this machine's Node its pod CIDRs, where no controller does. Why it is safe: `docs/decisions/0007-subnets.md`.
//!
//! A subnet is reserved before it is used, by a Lease that is named after it: creating an object is exclusive, so two nodes
//! cannot reserve one subnet. The Lease belongs to the Node (`ownerReferences`), so that Kubernetes removes it with the Node.
//! Then the Node gets the subnet, which the API allows once in a Node's life. A process that ends in between finds its own
//! reservation when it begins again.
//!
//! Never: a reservation of this Node is removed before the Node has its pod CIDRs, because a request of an earlier life of
//! this process may still be on its way; one of another Node is removed only when the API itself says that the Node is gone.

mod subnets;

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use podspan_kernel::Prefix;
use serde_json::json;

use super::About;
use super::backoff::Backoff;
use super::client::{Client, Failure, no_request};
use super::object::{NodeObject, Record};
use super::report::FIELD_MANAGER;
use super::state::State;
pub use subnets::Ranges;
use subnets::{Taken, lease_name};

/// Where the reservations are: the same for all agents, however they are configured.
const NAMESPACE: &str = "kube-system";
/// The label of all reservations.
const LABEL: &str = "podspan.io/reserves";
const RESERVES: &str = "pod-cidr";
/// The label that holds the uid of the Node that has reserved.
const NODE_UID: &str = "podspan.io/node-uid";
/// The annotation that holds the subnet.
const SUBNET: &str = "podspan.io/subnet";

/// Gives this machine's Node pod CIDRs when it has none, for ever.
pub async fn run(client: &Client, state: &State, ranges: Option<&Ranges>) {
    let Some(ranges) = ranges else {
        return std::future::pending().await;
    };
    let mut own = state.own();
    let mut backoff = Backoff::default();
    let mut tidied = None;
    loop {
        let node = own.borrow_and_update().clone();
        let outcome = match &node {
            Some(node) if node.pod_cidrs.is_empty() && node.faults.is_empty() => {
                Attempt::new(client, state, node).give(ranges).await
            }
            Some(node) if tidied.as_ref() != Some(&node.uid) => {
                tidied = Some(node.uid.clone());
                Attempt::new(client, state, node).tidy().await
            }
            _ => Ok(()),
        };
        match outcome {
            Ok(()) => {
                state.mended(&About::Allocation);
                backoff.reset();
                // The sender lives as long as the process.
                let _ = own.changed().await;
            }
            Err(failure) => {
                tidied = None;
                state.problem(&About::Allocation, &failure);
                tokio::time::sleep(backoff.next()).await;
            }
        }
    }
}

/// A subnet that somebody has reserved.
#[derive(Debug, Clone)]
struct Reservation {
    subnet: Prefix,
    /// The Lease's name and uid.
    name: String,
    uid: String,
    /// The Node's name and uid.
    node: String,
    node_uid: String,
}

struct Attempt<'a> {
    client: &'a Client,
    state: &'a State,
    node: &'a Arc<Record>,
    leases: Api<Lease>,
}

impl<'a> Attempt<'a> {
    fn new(client: &'a Client, state: &'a State, node: &'a Arc<Record>) -> Self {
        Self {
            client,
            state,
            node,
            leases: Api::namespaced(client.kube.clone(), NAMESPACE),
        }
    }

    /// Reserves a subnet of each family and gives them to the Node.
    async fn give(&self, ranges: &Ranges) -> Result<(), Failure> {
        let mut reservations = self.list(&format!("{LABEL}={RESERVES}")).await?;
        let mut subnets = Vec::new();
        for is_ipv4 in ranges.families() {
            let subnet = match self.earlier(&reservations, (ranges, is_ipv4)) {
                Some(subnet) => subnet,
                None => self.reserve((ranges, is_ipv4), &mut reservations).await?,
            };
            subnets.push(subnet);
        }
        // Behind the reservation: of two that reserve overlapping subnets of different lengths, the one that comes later
        // sees the other here.
        self.check(&subnets).await?;
        self.patch(&subnets).await
    }

    /// What this Node has reserved before, and has not been given: the first by its name.
    fn earlier(
        &self,
        reservations: &[Reservation],
        (ranges, is_ipv4): (&Ranges, bool),
    ) -> Option<Prefix> {
        let own = reservations
            .iter()
            .filter(|one| one.node_uid == self.node.uid);
        let fitting = own.filter(|one| one.subnet.is_ipv4() == is_ipv4 && ranges.has(one.subnet));
        let first = fitting.min_by(|a, b| a.name.cmp(&b.name))?;
        Some(first.subnet)
    }

    async fn reserve(
        &self,
        (ranges, is_ipv4): (&Ranges, bool),
        reservations: &mut Vec<Reservation>,
    ) -> Result<Prefix, Failure> {
        let mut refused = BTreeSet::new();
        loop {
            let of_nodes = self.state.pod_cidrs_beside(&self.node.uid);
            let reserved = reservations.iter().map(|one| one.subnet);
            let taken = Taken::new(of_nodes.into_iter().chain(reserved).chain(refused.clone()));
            let Some(subnet) = ranges.choose(is_ipv4, &self.node.name, &taken) else {
                if self.free(reservations).await? {
                    continue;
                }
                return Err(Failure::of(ranges.full(is_ipv4)));
            };
            if self.create(subnet).await? {
                return Ok(subnet);
            }
            // Reserved since the list.
            refused.insert(subnet);
        }
    }

    /// False when somebody has it.
    async fn create(&self, subnet: Prefix) -> Result<bool, Failure> {
        let Record { name, uid, .. } = self.node.as_ref();
        let text = |text: &str| text.to_owned();
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(lease_name(subnet)),
                labels: Some([(text(LABEL), text(RESERVES)), (text(NODE_UID), uid.clone())].into()),
                annotations: Some([(text(SUBNET), subnet.net().to_string())].into()),
                owner_references: Some(vec![OwnerReference {
                    api_version: text("v1"),
                    kind: text("Node"),
                    name: name.clone(),
                    uid: uid.clone(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name.clone()),
                ..LeaseSpec::default()
            }),
        };
        let params = PostParams {
            field_manager: Some(text(FIELD_MANAGER)),
            ..PostParams::default()
        };
        let what = format!("reserve {}", subnet.net());
        let created = self.leases.create(&params, &lease);
        match self.client.wait(&what, created).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_there_already() => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Nobody else has anything of these: no Node, and no reservation; and ours are there.
    async fn check(&self, subnets: &[Prefix]) -> Result<(), Failure> {
        let reservations = self.list(&format!("{LABEL}={RESERVES}")).await?;
        let (own, others): (Vec<_>, Vec<_>) = reservations
            .into_iter()
            .partition(|one| one.node_uid == self.node.uid);
        let of_nodes = self.state.pod_cidrs_beside(&self.node.uid);
        for subnet in subnets {
            let net = subnet.net();
            if !own.iter().any(|one| one.subnet == *subnet) {
                let text = format!("the reservation {} is gone", lease_name(*subnet));
                return Err(Failure::of(text));
            }
            if let Some(other) = others.iter().find(|one| one.subnet.overlaps(*subnet)) {
                return Err(Failure::of(format!(
                    "{net}, reserved for this node, overlaps {} of node {}; give all agents the same cluster_cidrs and \
                     node_prefix_lengths, then: kubectl -n {NAMESPACE} delete lease {}",
                    other.subnet.net(),
                    other.node,
                    lease_name(*subnet)
                )));
            }
            if let Some(other) = of_nodes.iter().find(|other| other.overlaps(*subnet)) {
                return Err(Failure::of(format!(
                    "{net}, reserved for this node, overlaps {} of another Node; then: kubectl -n {NAMESPACE} delete lease {}",
                    other.net(),
                    lease_name(*subnet)
                )));
            }
        }
        Ok(())
    }

    /// The API refuses it when the Node has pod CIDRs already, or is another one of that name: both are compared there.
    async fn patch(&self, subnets: &[Prefix]) -> Result<(), Failure> {
        let subnets: Vec<_> = subnets
            .iter()
            .map(|subnet| subnet.net().to_string())
            .collect();
        let what = format!("give Node {} {}", self.node.name, subnets.join(" and "));
        let body = json!({
            "metadata": {"uid": self.node.uid},
            "spec": {"podCIDR": subnets.first(), "podCIDRs": subnets},
        });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let nodes = Request::new("/api/v1/nodes");
        let request = nodes.patch(&self.node.name, &params, &Patch::Merge(&body));
        let request = request.map_err(|error| no_request(&what, &error))?;
        let answer = self.client.kube.request::<NodeObject>(request);
        self.client.wait(&what, answer).await.map(drop)
    }

    /// Removes what this Node has reserved and does not use, now that it has its pod CIDRs for good.
    async fn tidy(&self) -> Result<(), Failure> {
        let own = self.list(&format!("{NODE_UID}={}", self.node.uid)).await?;
        for one in own
            .iter()
            .filter(|one| !self.node.pod_cidrs.contains(&one.subnet))
        {
            self.remove(one).await?;
        }
        Ok(())
    }

    /// Removes the reservations of Nodes that are gone; true when there were some.
    async fn free(&self, reservations: &mut Vec<Reservation>) -> Result<bool, Failure> {
        let mut freed = BTreeSet::new();
        for one in reservations.iter() {
            if one.node_uid != self.node.uid
                && !self.state.has(&one.node_uid)
                && self.is_gone(one).await?
            {
                self.remove(one).await?;
                freed.insert(one.uid.clone());
            }
        }
        reservations.retain(|one| !freed.contains(&one.uid));
        Ok(!freed.is_empty())
    }

    /// Asked of the API itself: what we have seen may be older than the reservation.
    async fn is_gone(&self, one: &Reservation) -> Result<bool, Failure> {
        let what = format!("get Node {}", one.node);
        let request = Request::new("/api/v1/nodes").get(&one.node, &Default::default());
        let request = request.map_err(|error| no_request(&what, &error))?;
        let answer = self.client.kube.request::<NodeObject>(request);
        match self.client.wait(&what, answer).await {
            Ok(node) => Ok(node.metadata.uid != one.node_uid),
            Err(failure) if failure.is_not_found() => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    async fn remove(&self, one: &Reservation) -> Result<(), Failure> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(one.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let what = format!("remove the reservation {}", one.name);
        let removed = self.leases.delete(&one.name, &params);
        match self.client.wait(&what, removed).await {
            // Another one of that name is there, or none: this one is gone.
            Err(failure) if failure.is_not_found() || failure.is_there_already() => Ok(()),
            removed => removed.map(drop),
        }
    }

    async fn list(&self, selector: &str) -> Result<Vec<Reservation>, Failure> {
        let params = ListParams::default().labels(selector);
        let listed = self.leases.list(&params);
        let leases = self.client.wait("list the reservations", listed).await?;
        Ok(leases.items.into_iter().filter_map(reservation).collect())
    }
}

/// One that lacks what we write is nobody's that we know.
fn reservation(lease: Lease) -> Option<Reservation> {
    let metadata = lease.metadata;
    Some(Reservation {
        subnet: metadata.annotations?.remove(SUBNET)?.parse().ok()?,
        name: metadata.name?,
        uid: metadata.uid?,
        node: lease.spec?.holder_identity?,
        node_uid: metadata.labels?.remove(NODE_UID)?,
    })
}
