//! A ClusterNetworkPolicy (`policy.networking.k8s.io/v1alpha2`).
//!
//! The API is an alpha: what a later version of it may say besides is met sooner or later. A peer with none of the known keys then
//! fails closed, as the API's text demands: nobody for what accepts, everybody for what denies or passes, which is for the model to
//! do. A policy whose tier, priority or subject cannot be read has no place to be in force in, and is told.

use serde::Deserialize;
use serde_json::Value;

use super::Read;
use super::labels::Shared;
use super::reader::{At, Fault, Faults, Path, block, port_name, selector};
use crate::kubernetes::watch::Object;
use crate::policy::object::{
    Action, Change, ClusterPeer, ClusterPolicy, ClusterRule, Kind, Port, Protocol, Selector, Text,
    Tier,
};

/// The greatest priority.
const LAST: u16 = 1000;

/// What the API sends.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ClusterPolicyObject {
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Shared,
    resource_version: String,
}

impl Object for ClusterPolicyObject {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Read for ClusterPolicyObject {
    const KIND: Kind = Kind::ClusterPolicies;

    fn read(self) -> (Change, Vec<Fault>) {
        let name = self.metadata.name.0;
        let mut faults = Faults::default();
        let at = At {
            value: &self.spec,
            path: &Path::Spec,
        };
        let policy = read(Text::clone(&name), at, &mut faults);
        (Change::ClusterPolicy(name, policy), faults.0)
    }

    fn gone(self) -> Change {
        Change::ClusterPolicy(self.metadata.name.0, None)
    }
}

fn read(name: Text, at: At<'_>, faults: &mut Faults) -> Option<ClusterPolicy> {
    // An unknown key is told; there is nothing that could be closed for it.
    at.has_only(
        &["egress", "ingress", "priority", "subject", "tier"],
        faults,
    );
    let tier = required(at, "tier", faults, |at, faults| {
        let tier = match at.value.as_str() {
            Some("Admin") => Some(Tier::Admin),
            Some("Baseline") => Some(Tier::Baseline),
            _ => None,
        };
        if tier.is_none() {
            let fix = "must be Admin or Baseline; the policy is not in force";
            faults.add(at, fix);
        }
        tier
    });
    let priority = required(at, "priority", faults, |at, faults| {
        let priority = at.value.as_u64().and_then(|it| u16::try_from(it).ok());
        let priority = priority.filter(|priority| *priority <= LAST);
        if priority.is_none() {
            let fix = format!("must be a number from 0 to {LAST}; the policy is not in force");
            faults.add(at, fix);
        }
        priority
    });
    let subject = required(at, "subject", faults, |at, faults| {
        let (key, value) = at.one_of(&["namespaces", "pods"], faults)?;
        let path = &Path::Key(at.path, key);
        pods(key, At { value, path }, faults)
    });
    let ingress = rules(at, Way::Ingress, faults);
    let egress = rules(at, Way::Egress, faults);
    Some(ClusterPolicy {
        name,
        tier: tier?,
        priority: priority?,
        subject: subject?,
        ingress,
        egress,
    })
}

/// What must be there.
fn required<'a, T>(
    at: At<'a>,
    key: &str,
    faults: &mut Faults,
    read: impl FnOnce(At<'_>, &mut Faults) -> Option<T>,
) -> Option<T> {
    let path = &Path::Key(at.path, key);
    let Some(value) = at.get(key) else {
        let value = &Value::Null;
        faults.add(
            At { value, path },
            "must be there; the policy is not in force",
        );
        return None;
    };
    read(At { value, path }, faults)
}

/// `namespaces` or `pods`: the namespaces, and the pods in them. None where there is a key that is not known.
fn pods(key: &str, at: At<'_>, faults: &mut Faults) -> Option<(Selector, Selector)> {
    if key == "namespaces" {
        return Some((selector(at, faults), Selector::default()));
    }
    if !at.has_only(&["namespaceSelector", "podSelector"], faults) {
        return None;
    }
    let namespaces = at.selector("namespaceSelector", faults);
    Some((namespaces, at.selector("podSelector", faults)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Ingress,
    Egress,
}

fn rules(at: At<'_>, way: Way, faults: &mut Faults) -> Vec<ClusterRule> {
    let key = match way {
        Way::Ingress => "ingress",
        Way::Egress => "egress",
    };
    let path = &Path::Key(at.path, key);
    match at.list(key, faults) {
        Some(list) => list
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let path = &Path::Item(path, index);
                rule(At { value, path }, way, faults)
            })
            .collect(),
        // Whatever it says, it says it of everything.
        None => vec![ClusterRule {
            name: None,
            action: Action::Deny,
            peers: vec![ClusterPeer::Unknown],
            ports: Vec::new(),
        }],
    }
}

fn rule(at: At<'_>, way: Way, faults: &mut Faults) -> ClusterRule {
    let key = match way {
        Way::Ingress => "from",
        Way::Egress => "to",
    };
    let is_known = at.has_only(&["action", "name", key, "protocols"], faults);
    let action = action(at, faults);
    // An unknown key may narrow the rule. For what denies that is more than was meant, and closed.
    let is_whole = is_known || action == Action::Deny;
    let mut peers = peers(at, (key, way), faults);
    if peers.is_empty() || !is_whole {
        peers = vec![ClusterPeer::Unknown];
    }
    let mut ports = ports(at, faults);
    let has_no_names = |peer: &ClusterPeer| !matches!(peer, ClusterPeer::Pods(..));
    if way == Way::Egress && peers.iter().any(has_no_names) {
        let path = &Path::Key(at.path, "protocols");
        for (index, port) in ports.iter_mut().enumerate() {
            if let Port::Named(..) = port {
                let value = at.get("protocols").and_then(|list| list.get(index));
                let path = &Path::Item(path, index);
                let value = value.unwrap_or(&Value::Null);
                let fix = "the ports of nodes, networks and domain names have no names";
                faults.add(At { value, path }, fix);
                *port = Port::Unknown;
            }
        }
    }
    let name = at.get("name").and_then(Value::as_str);
    ClusterRule {
        name: name.filter(|name| !name.is_empty()).map(Text::from),
        action,
        peers,
        ports,
    }
}

fn action(at: At<'_>, faults: &mut Faults) -> Action {
    let value = at.get("action").unwrap_or(&Value::Null);
    match value.as_str() {
        Some("Accept") => Action::Accept,
        Some("Deny") => Action::Deny,
        Some("Pass") => Action::Pass,
        _ => {
            let path = &Path::Key(at.path, "action");
            faults.add(
                At { value, path },
                "must be Accept, Deny or Pass; it is taken for Deny",
            );
            Action::Deny
        }
    }
}

/// Empty where there is nothing that can be read.
fn peers(at: At<'_>, (key, way): (&str, Way), faults: &mut Faults) -> Vec<ClusterPeer> {
    let path = &Path::Key(at.path, key);
    let list = at.list(key, faults);
    if list.is_some_and(<[Value]>::is_empty) {
        faults.add(at, format!("must have peers in {key}"));
    }
    let list = list.unwrap_or_default().iter().enumerate();
    list.map(|(index, value)| {
        let path = &Path::Item(path, index);
        peer(At { value, path }, way, faults).unwrap_or(ClusterPeer::Unknown)
    })
    .collect()
}

fn peer(at: At<'_>, way: Way, faults: &mut Faults) -> Option<ClusterPeer> {
    let known: &[&str] = match way {
        Way::Ingress => &["namespaces", "pods"],
        Way::Egress => &["domainNames", "namespaces", "networks", "nodes", "pods"],
    };
    let (key, value) = at.one_of(known, faults)?;
    let path = &Path::Key(at.path, key);
    let at = At { value, path };
    match key {
        "nodes" => Some(ClusterPeer::Nodes(selector(at, faults))),
        "networks" => networks(at, faults),
        "domainNames" => {
            faults.add(at, "domain names are not served; they mean nobody");
            None
        }
        key => pods(key, at, faults).map(|(namespaces, pods)| ClusterPeer::Pods(namespaces, pods)),
    }
}

/// All of them or none: what denies must not deny less for one that cannot be read.
fn networks(at: At<'_>, faults: &mut Faults) -> Option<ClusterPeer> {
    let list = at.value.as_array().filter(|list| !list.is_empty());
    let Some(list) = list else {
        faults.add(at, "must be a list of CIDRs that is not empty");
        return None;
    };
    let networks = list.iter().enumerate().map(|(index, value)| {
        let path = &Path::Item(at.path, index);
        block(At { value, path }, faults)
    });
    let networks: Option<Vec<_>> = networks.collect();
    networks.map(ClusterPeer::Networks)
}

/// Empty means all ports; a list that is there and empty, or is none, means nothing that is known.
fn ports(at: At<'_>, faults: &mut Faults) -> Vec<Port> {
    let Some(value) = at.get("protocols") else {
        return Vec::new();
    };
    let path = &Path::Key(at.path, "protocols");
    let list = value.as_array().filter(|list| !list.is_empty());
    let Some(list) = list else {
        faults.add(
            At { value, path },
            "must be a list of protocols that is not empty",
        );
        return vec![Port::Unknown];
    };
    let ports = list.iter().enumerate().map(|(index, value)| {
        let path = &Path::Item(path, index);
        port(At { value, path }, faults).unwrap_or(Port::Unknown)
    });
    ports.collect()
}

fn port(at: At<'_>, faults: &mut Faults) -> Option<Port> {
    let (key, value) = at.one_of(&["destinationNamedPort", "sctp", "tcp", "udp"], faults)?;
    let path = &Path::Key(at.path, key);
    let inner = At { value, path };
    let protocol = match key {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => {
            let name = port_name(value);
            if name.is_none() {
                faults.add(inner, "must be the name of a container's port");
            }
            return name.map(|name| Port::Named(None, name));
        }
    };
    let (key, value) = inner.one_of(&["destinationPort"], faults)?;
    let path = &Path::Key(inner.path, key);
    let at = At { value, path };
    let (key, value) = at.one_of(&["number", "range"], faults)?;
    let path = &Path::Key(at.path, key);
    let at = At { value, path };
    let range = match key {
        "number" => at.port().map(|port| (port, port)),
        _ => range(at, faults),
    };
    let range = range.filter(|(first, last)| first <= last);
    if range.is_none() {
        let fix =
            "must be a number from 1 to 65535, or a start and an end of these that is not less";
        faults.add(at, fix);
    }
    range.map(|(first, last)| Port::Range(protocol, first, last))
}

fn range(at: At<'_>, faults: &mut Faults) -> Option<(u16, u16)> {
    let path = at.path;
    let number = |key| {
        let value = at.get(key)?;
        At { value, path }.port()
    };
    let is_known = at.has_only(&["end", "start"], faults);
    number("start").zip(number("end")).filter(|_| is_known)
}

#[cfg(test)]
mod tests;
