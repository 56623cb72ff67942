//! A Node of the API as far as the pod network needs it.
//!
//! A real one has 10 KiB and more, of which this is a fiftieth; the rest is skipped while it is read. Values are parsed here,
//! and what cannot be is a fault that names the key and what would be right.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podspan_kernel::Prefix;
use serde::Deserialize;
use toml::Value;

use super::policy::labels::labels;
use crate::cluster::Remains;
use crate::config::ip;
use crate::policy::object::{Labels, Node};
use crate::refusal::{Refusal, Source};
use crate::registry::gathered::{family, pod_cidr, quoted};

/// The key of a Node's pod CIDRs.
pub const POD_CIDRS: &str = "spec.podCIDRs";
/// The key of a Node's addresses.
pub const ADDRESSES: &str = "status.addresses";

/// What the API sends.
#[derive(Debug, Clone, Deserialize)]
pub struct NodeObject {
    /// Whose it is, and its version.
    pub metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

/// Whose it is, and its version.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// Tells it from an earlier Node of that name.
    pub uid: String,
    /// What a watch goes on from.
    pub resource_version: String,
    creation_timestamp: String,
    /// Its labels.
    #[serde(deserialize_with = "labels")]
    pub labels: Labels,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Vec<Address>,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Deserialize)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Debug, Clone, Deserialize)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl NodeObject {
    /// What policy needs of it.
    pub fn for_policy(&self) -> Node {
        let addresses = self.status.addresses.iter();
        // A host's name, and the name that a cloud has for it, are addresses there too.
        let ips: BTreeSet<IpAddr> = addresses
            .filter_map(|address| address.address.parse().ok())
            .collect();
        Node {
            labels: self.metadata.labels.clone(),
            addresses: ips.into_iter().collect(),
        }
    }
}

/// What is remembered of a Node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Tells it from an earlier Node of that name.
    pub uid: String,
    /// When it was made, such as `2026-11-24T10:00:00Z`: the older of two that exclude each other stays.
    pub created: String,
    /// Its addresses, at most one per family.
    pub addresses: Box<[IpAddr]>,
    /// The prefixes of its pods' addresses.
    pub pod_cidrs: Box<[Prefix]>,
    /// What is wrong in it.
    pub faults: Box<[Refusal]>,
    /// Its condition NetworkUnavailable; remembered of this machine's own Node only.
    pub network_unavailable: Option<bool>,
}

impl Record {
    /// Of that object; `own` is the name of this machine's Node.
    pub fn new(object: NodeObject, own: Option<&str>) -> Self {
        let mut record = Self {
            name: object.metadata.name,
            uid: object.metadata.uid,
            created: object.metadata.creation_timestamp,
            ..Self::default()
        };
        if own == Some(record.name.as_str()) {
            let mut conditions = object.status.conditions.into_iter();
            let condition = conditions.find(|condition| condition.kind == "NetworkUnavailable");
            record.network_unavailable = condition.map(|condition| condition.status != "False");
        }
        let mut faults = Vec::new();
        record.addresses = addresses(&record.name, object.status.addresses, &mut faults);
        record.pod_cidrs = pod_cidrs(&record.name, object.spec, &mut faults);
        if !record.addresses.is_empty() && faults.is_empty() {
            faults.extend(record.family_faults());
        }
        record.faults = faults.into();
        record
    }

    /// The key that it will have a value of and has not yet.
    pub fn lacks(&self) -> Option<&'static str> {
        match (self.addresses.is_empty(), self.pod_cidrs.is_empty()) {
            (_, true) => Some(POD_CIDRS),
            (true, false) => Some(ADDRESSES),
            (false, false) => None,
        }
    }

    /// What runs for it already and goes on running, when it cannot be used as it is.
    pub fn remains(&self) -> Remains {
        Remains {
            addresses: self.addresses.to_vec(),
            pod_cidrs: self.pod_cidrs.to_vec(),
        }
    }

    /// Each pod CIDR needs an address of its family.
    fn family_faults(&self) -> impl Iterator<Item = Refusal> {
        let has = |is_ipv4| self.addresses.iter().any(|ip| ip.is_ipv4() == is_ipv4);
        let lone = self
            .pod_cidrs
            .iter()
            .filter(move |cidr| !has(cidr.is_ipv4()));
        lone.map(|cidr| {
            let family = family(cidr.is_ipv4());
            let fix = format!("the node has no {family} InternalIP to reach it through; see --node-ip of its kubelet");
            fault(&self.name, POD_CIDRS, &quoted(cidr), fix)
        })
    }
}

/// The first InternalIP of each family, which is the one that the kubelet's own traffic goes to.
fn addresses(name: &str, given: Vec<Address>, faults: &mut Vec<Refusal>) -> Box<[IpAddr]> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in given
        .into_iter()
        .filter(|address| address.kind == "InternalIP")
    {
        let value = Value::String(address.address);
        match ip(&value) {
            Ok(ip)
                if addresses
                    .iter()
                    .any(|other| other.is_ipv4() == ip.is_ipv4()) => {}
            Ok(ip) => addresses.push(ip),
            Err(fix) => faults.push(fault(name, ADDRESSES, &value.to_string(), fix)),
        }
    }
    addresses.into()
}

fn pod_cidrs(name: &str, spec: Spec, faults: &mut Vec<Refusal>) -> Box<[Prefix]> {
    let one = Some(spec.pod_cidr).filter(|cidr| !cidr.is_empty() && spec.pod_cidrs.is_empty());
    let mut pod_cidrs = Vec::new();
    for cidr in spec.pod_cidrs.into_iter().chain(one) {
        let value = Value::String(cidr);
        match pod_cidr(&value) {
            Ok(cidr) => pod_cidrs.push(cidr),
            Err(fix) => faults.push(fault(name, POD_CIDRS, &value.to_string(), fix)),
        }
    }
    pod_cidrs.into()
}

fn fault(name: &str, key: &str, value: &str, fix: String) -> Refusal {
    Refusal {
        source: Source::NodeObject(name).to_string(),
        key: key.to_owned(),
        value: value.to_owned(),
        fix,
    }
}

#[cfg(test)]
mod tests;
