//! The checks that every registry's nodes go through: who has which name, which address, which prefix.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podspan_kernel::Prefix;
use toml::Value;

use crate::cluster::{Cluster, Node, Origin, Remains};
use crate::config::ip;
use crate::fields::text;
use crate::refusal::{Refusal, Setting, Source};

/// What could be read of an entry, and why it is refused.
pub type Refused = (Remains, Vec<Refusal>);

/// The nodes taken so far, and who has what.
pub struct Gathered {
    /// What they make.
    pub cluster: Cluster,
    names: BTreeMap<String, usize>,
    addresses: BTreeMap<IpAddr, usize>,
    pod_cidrs: BTreeMap<Prefix, usize>,
}

impl Gathered {
    /// None yet.
    pub fn new(origin: Origin) -> Self {
        Self {
            cluster: Cluster {
                origin,
                ..Cluster::default()
            },
            names: BTreeMap::new(),
            addresses: BTreeMap::new(),
            pod_cidrs: BTreeMap::new(),
        }
    }

    /// Takes the node, unless an earlier one excludes it.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn take(&mut self, node: Node) -> Result<(), Refused> {
        let mut faults: Vec<_> = self.name_fault(&node).into_iter().collect();
        faults.extend(self.cluster.addresses(&node).filter_map(|address| {
            let other = self.holder(*self.addresses.get(&address.value)?)?;
            let fix = format!("is the address of {other} too; give each node its own");
            Some(address.refuse(fix))
        }));
        let mut own: Vec<Prefix> = Vec::new();
        for pod_cidr in self.cluster.pod_cidrs(&node) {
            faults.extend(self.overlap_fault(&pod_cidr, &own));
            own.push(pod_cidr.value);
        }
        if !faults.is_empty() {
            let remains = Remains {
                addresses: node.addresses.into(),
                pod_cidrs: node.pod_cidrs.into(),
            };
            return Err((remains, faults));
        }
        let position = self.cluster.nodes.len();
        self.names.insert(node.name.clone(), position);
        self.addresses
            .extend(node.addresses.iter().map(|ip| (*ip, position)));
        self.pod_cidrs
            .extend(node.pod_cidrs.iter().map(|cidr| (*cidr, position)));
        self.cluster.nodes.push(node);
        Ok(())
    }

    fn name_fault(&self, node: &Node) -> Option<Refusal> {
        let other = self.cluster.nodes.get(*self.names.get(&node.name)?)?;
        let source = match &self.cluster.origin {
            Origin::File(file) => Source::File(file),
            Origin::Kubernetes => Source::NodeObject(&node.name),
        };
        Some(Refusal {
            source: source.to_string(),
            key: format!("nodes[{}].name", node.entry),
            value: quoted(&node.name),
            fix: format!(
                "is the name of nodes[{}] too; give each node its own",
                other.entry
            ),
        })
    }

    /// The prefixes taken do not overlap; so only the one before and the one behind can overlap with a further one.
    fn overlap_fault(&self, pod_cidr: &Setting<'_, Prefix>, own: &[Prefix]) -> Option<Refusal> {
        let prefix = pod_cidr.value;
        if let Some(twin) = own.iter().find(|other| other.overlaps(prefix)) {
            return Some(pod_cidr.refuse(format!("overlaps {twin} of the same node; remove one")));
        }
        let before = self.pod_cidrs.range(..=prefix).next_back();
        let behind = self.pod_cidrs.range(prefix..).next();
        let mut neighbours = before.into_iter().chain(behind);
        let (taken, position) = neighbours.find(|(taken, _)| taken.overlaps(prefix))?;
        let other = self.holder(*position)?;
        Some(pod_cidr.refuse(format!(
            "overlaps {taken} of {other}; give each node its own"
        )))
    }

    /// The node at that position, in the words of a refusal.
    fn holder(&self, position: usize) -> Option<String> {
        let node = self.cluster.nodes.get(position)?;
        Some(self.cluster.describe(node))
    }
}

/// A prefix that pods of one node can have: room for a gateway and pods, and not half of the internet.
///
/// # Errors
/// What would be right.
pub fn pod_cidr(value: &Value) -> Result<Prefix, String> {
    let prefix: Prefix = text(value)?;
    let lengths = if prefix.is_ipv4() { 8..=30 } else { 16..=126 };
    if !lengths.contains(&prefix.length()) {
        let (least, most) = (lengths.start(), lengths.end());
        return Err(format!("must have a length from /{least} to /{most}"));
    }
    let first = Value::from(prefix.addr().to_string());
    ip(&first).map_err(|_| "must not be loopback, link-local or multicast".to_owned())?;
    Ok(prefix)
}

/// The family in words.
pub fn family(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "IPv4" } else { "IPv6" }
}

/// The value as a file would have it.
pub fn quoted(value: impl std::fmt::Display) -> String {
    format!("\"{value}\"")
}
