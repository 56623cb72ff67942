//! A NetworkPolicy (`networking.k8s.io/v1`). What cannot be read lets nobody through.

use serde::Deserialize;
use serde_json::Value;

use super::Read;
use super::labels::Shared;
use super::reader::{At, Fault, Faults, Path, block, port_name, protocol_named};
use crate::kubernetes::watch::Object;
use crate::policy::object::{
    Change, Key, Kind, NetworkPolicy, Peer, Port, Protocol, Requirement, Rule, Selector,
};

/// What the API sends.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NetworkPolicyObject {
    metadata: Metadata,
    #[serde(default)]
    spec: Value,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    namespace: Shared,
    name: Shared,
    resource_version: String,
}

impl Metadata {
    fn key(self) -> Key {
        Key {
            namespace: self.namespace.0,
            name: self.name.0,
        }
    }
}

impl Object for NetworkPolicyObject {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

impl Read for NetworkPolicyObject {
    const KIND: Kind = Kind::NetworkPolicies;

    fn read(self) -> (Change, Vec<Fault>) {
        let key = self.metadata.key();
        let mut faults = Faults::default();
        let at = At {
            value: &self.spec,
            path: &Path::Spec,
        };
        let policy = read(key.clone(), at, &mut faults);
        (Change::NetworkPolicy(key, Some(policy)), faults.0)
    }

    fn gone(self) -> Change {
        Change::NetworkPolicy(self.metadata.key(), None)
    }
}

fn read(key: Key, at: At<'_>, faults: &mut Faults) -> NetworkPolicy {
    // An unknown key is told; there is nothing that could be closed for it.
    let known = ["egress", "ingress", "podSelector", "policyTypes"];
    if !at.value.is_null() {
        at.has_only(&known, faults);
    }
    let (is_ingress, is_egress) = directions(at, faults);
    // Read in any case: what is wrong there is told.
    let mut ingress = rules(at, ("ingress", "from"), faults);
    let mut egress = rules(at, ("egress", "to"), faults);
    let mut pods = at.selector("podSelector", faults);
    if pods.0.contains(&Requirement::Unknown) {
        // Whom it isolates nobody can say: all that it may be, and its rules allow nobody anything.
        pods = Selector::default();
        (ingress, egress) = (Vec::new(), Vec::new());
    }
    NetworkPolicy {
        key,
        pods,
        ingress: is_ingress.then_some(ingress),
        egress: is_egress.then_some(egress),
    }
}

/// The keys are those of the rules and of their peers. A list that cannot be read has no rules, and isolates.
fn rules(at: At<'_>, (key, peers): (&str, &str), faults: &mut Faults) -> Vec<Rule> {
    let path = &Path::Key(at.path, key);
    let list = at.list(key, faults).unwrap_or_default();
    let rules = list.iter().enumerate().map(|(index, value)| {
        let path = &Path::Item(path, index);
        rule(At { value, path }, peers, faults)
    });
    rules.collect()
}

/// Whether it is about ingress, and about egress. Where it does not say, as for old servers: always about ingress, and about
/// egress where it has rules of that. What cannot be read may be either.
fn directions(at: At<'_>, faults: &mut Faults) -> (bool, bool) {
    let Some(types) = at.list("policyTypes", faults) else {
        return (true, true);
    };
    if types.is_empty() {
        // One that cannot be read is there too, and closed.
        let is_empty = |rules: &Value| rules.as_array().is_some_and(Vec::is_empty);
        let has_egress = at.get("egress").is_some_and(|rules| !is_empty(rules));
        return (true, has_egress);
    }
    let path = &Path::Key(at.path, "policyTypes");
    let (mut is_ingress, mut is_egress) = (false, false);
    for (index, value) in types.iter().enumerate() {
        match value.as_str() {
            Some("Ingress") => is_ingress = true,
            Some("Egress") => is_egress = true,
            _ => {
                let path = &Path::Item(path, index);
                let fix = "must be Ingress or Egress; until then the policy is about both";
                faults.add(At { value, path }, fix);
                (is_ingress, is_egress) = (true, true);
            }
        }
    }
    (is_ingress, is_egress)
}

/// `peers` is the key of its peers.
fn rule(at: At<'_>, peers: &str, faults: &mut Faults) -> Rule {
    let is_known = at.has_only(&[peers, "ports"], faults);
    let path = &Path::Key(at.path, peers);
    let read = at.list(peers, faults).filter(|_| is_known);
    let peers = match read {
        Some(list) => list
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let path = &Path::Item(path, index);
                peer(At { value, path }, faults).unwrap_or(Peer::Unknown)
            })
            .collect(),
        None => vec![Peer::Unknown],
    };
    let path = &Path::Key(at.path, "ports");
    let ports = match at.list("ports", faults) {
        Some(list) => list
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let path = &Path::Item(path, index);
                port(At { value, path }, faults).unwrap_or(Port::Unknown)
            })
            .collect(),
        None => vec![Port::Unknown],
    };
    Rule { peers, ports }
}

fn peer(at: At<'_>, faults: &mut Faults) -> Option<Peer> {
    if !at.has_only(&["ipBlock", "namespaceSelector", "podSelector"], faults) {
        return None;
    }
    let namespaces = at.get("namespaceSelector");
    let pods = at.get("podSelector");
    match (at.get("ipBlock"), namespaces.is_some(), pods.is_some()) {
        (Some(value), false, false) => {
            let path = &Path::Key(at.path, "ipBlock");
            ip_block(At { value, path }, faults)
        }
        (None, false, true) => Some(Peer::Pods(at.selector("podSelector", faults))),
        (None, true, _) => Some(Peer::PodsOf(
            at.selector("namespaceSelector", faults),
            at.selector("podSelector", faults),
        )),
        _ => {
            let fix = "must have ipBlock, or podSelector, namespaceSelector or both of these; it means nobody";
            faults.add(at, fix);
            None
        }
    }
}

/// An exception that cannot be read makes the whole block unknown: without it, too much would be let through.
fn ip_block(at: At<'_>, faults: &mut Faults) -> Option<Peer> {
    if !at.has_only(&["cidr", "except"], faults) {
        return None;
    }
    let Some(value) = at.get("cidr") else {
        faults.add(at, "must have a cidr; it means nobody");
        return None;
    };
    let path = &Path::Key(at.path, "cidr");
    let whole = block(At { value, path }, faults)?;
    let path = &Path::Key(at.path, "except");
    let mut except = Vec::new();
    for (index, value) in at.list("except", faults)?.iter().enumerate() {
        let path = &Path::Item(path, index);
        let at = At { value, path };
        let excepted = block(at, faults)?;
        if excepted.contains(&whole) {
            faults.add(at, format!("must be a part of {whole}; nothing is left"));
            return None;
        }
        // Of what is no part of it nothing can be excepted.
        if whole.contains(&excepted) {
            except.push(excepted);
        }
    }
    Some(Peer::Block(whole, except))
}

fn port(at: At<'_>, faults: &mut Faults) -> Option<Port> {
    if !at.has_only(&["endPort", "port", "protocol"], faults) {
        return None;
    }
    let protocol = match at.get("protocol") {
        None => Protocol::Tcp,
        Some(value) => {
            let protocol = value.as_str().and_then(protocol_named);
            if protocol.is_none() {
                let path = &Path::Key(at.path, "protocol");
                let fix = "must be TCP, UDP or SCTP; no packet has this port";
                faults.add(At { value, path }, fix);
            }
            protocol?
        }
    };
    let number = |value| {
        let path = at.path;
        At { value, path }.port()
    };
    let read = match (at.get("port"), at.get("endPort")) {
        (None, None) => Some(Port::All(protocol)),
        (Some(port @ Value::String(_)), None) => {
            port_name(port).map(|name| Port::Named(Some(protocol), name))
        }
        (Some(port), None) => number(port).map(|port| Port::Range(protocol, port, port)),
        (Some(first), Some(last)) => number(first)
            .zip(number(last))
            .filter(|(first, last)| first <= last)
            .map(|(first, last)| Port::Range(protocol, first, last)),
        (None, Some(_)) => None,
    };
    if read.is_none() {
        let fix = "must have as port a number from 1 to 65535, or the name of a container's port; \
            endPort goes with a number that is not greater; no packet has this port";
        faults.add(at, fix);
    }
    read
}

#[cfg(test)]
mod tests;
