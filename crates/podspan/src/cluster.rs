//! What the registry says of the cluster: nodes, each with its addresses and its pod CIDRs. Pure.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use podspan_kernel::Prefix;

use crate::refusal::{Key, Setting, Source};

/// All nodes that are right, and what is left of those that are not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Where it was read.
    pub origin: Origin,
    /// The nodes, in an order that is the same on every machine. No two share a name or an address, and no pod CIDRs overlap.
    pub nodes: Vec<Node>,
    /// What could be read of the other entries: what runs for them already goes on running.
    pub refused: Vec<Remains>,
    /// Nodes that lack what they will be given yet: nobody's fault, and no refusal.
    pub unready: Vec<Unready>,
}

/// Where a cluster was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Origin {
    /// In a nodes file.
    File(PathBuf),
    /// In the Kubernetes API.
    #[default]
    Kubernetes,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Kubernetes => f.write_str("the Kubernetes API"),
        }
    }
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its entry's index in the file, or in the order of the Node objects; tells nodes of one cluster apart.
    pub entry: usize,
    /// Its name.
    pub name: String,
    /// Its addresses, at most one per family.
    pub addresses: Box<[IpAddr]>,
    /// The prefixes of its pods' addresses, each of a family that it has an address of.
    pub pod_cidrs: Box<[Prefix]>,
}

impl Node {
    /// Its address of the family of that one.
    pub fn address_beside(&self, ip: IpAddr) -> Option<IpAddr> {
        let mut all = self.addresses.iter();
        all.find(|own| own.is_ipv4() == ip.is_ipv4()).copied()
    }
}

/// What could be read of a refused entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// Addresses that stand in it.
    pub addresses: Vec<IpAddr>,
    /// Pod CIDRs that stand in it.
    pub pod_cidrs: Vec<Prefix>,
}

/// A node that cannot be used yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unready {
    /// Its name.
    pub name: String,
    /// The key that it lacks.
    pub lacks: &'static str,
}

impl Cluster {
    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The node's pod CIDRs with their places.
    pub fn pod_cidrs<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = Setting<'a, Prefix>> {
        self.settings(node, ["pod_cidrs", "spec.podCIDRs"], &node.pod_cidrs)
    }

    /// The node's addresses with their places.
    pub fn addresses<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = Setting<'a, IpAddr>> {
        self.settings(node, ["addresses", "status.addresses"], &node.addresses)
    }

    /// The node in the words of a refusal.
    pub fn describe(&self, node: &Node) -> String {
        match self.origin {
            Origin::File(_) => format!("nodes[{}] ({})", node.entry, node.name),
            Origin::Kubernetes => format!("Node {}", node.name),
        }
    }

    /// `keys` are the list's name in a file, and in a Node object.
    fn settings<'a, T: Copy>(
        &'a self,
        node: &'a Node,
        keys: [&'static str; 2],
        values: &'a [T],
    ) -> impl Iterator<Item = Setting<'a, T>> {
        let [in_file, in_object] = keys;
        let values = values.iter().enumerate();
        values.map(move |(index, value)| match &self.origin {
            Origin::File(file) => Setting {
                value: *value,
                source: Source::File(file),
                key: Key::OfNode {
                    entry: node.entry,
                    name: &node.name,
                    list: in_file,
                    index,
                },
            },
            Origin::Kubernetes => Setting {
                value: *value,
                source: Source::NodeObject(&node.name),
                key: Key::Plain(in_object),
            },
        })
    }
}
