//! What the registry says of the cluster: nodes, each with its addresses and its pod CIDRs. Pure.

use std::net::IpAddr;
use std::path::PathBuf;

use podspan_kernel::Prefix;

use crate::refusal::{Key, Setting};

/// All nodes that are right, and what is left of those that are not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The file that it was read from.
    pub file: PathBuf,
    /// The nodes, in the order of the file. No two share a name or an address, and no pod CIDRs overlap.
    pub nodes: Vec<Node>,
    /// What could be read of the refused entries: what runs for them already goes on running.
    pub refused: Vec<Remains>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The entry's index in the file.
    pub entry: usize,
    /// Its name.
    pub name: String,
    /// Its addresses, at most one per family.
    pub addresses: Box<[IpAddr]>,
    /// The prefixes of its pods' addresses, each of a family that it has an address of.
    pub pod_cidrs: Box<[Prefix]>,
}

/// What could be read of a refused entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// Addresses that stand in it.
    pub addresses: Vec<IpAddr>,
    /// Pod CIDRs that stand in it.
    pub pod_cidrs: Vec<Prefix>,
}

impl Cluster {
    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The node's pod CIDRs with their places.
    pub fn pod_cidrs<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = Setting<'a, Prefix>> {
        self.settings(node, "pod_cidrs", &node.pod_cidrs)
    }

    /// The node's addresses with their places.
    pub fn addresses<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = Setting<'a, IpAddr>> {
        self.settings(node, "addresses", &node.addresses)
    }

    fn settings<'a, T: Copy>(
        &'a self,
        node: &'a Node,
        list: &'static str,
        values: &'a [T],
    ) -> impl Iterator<Item = Setting<'a, T>> {
        values
            .iter()
            .enumerate()
            .map(move |(index, value)| Setting {
                value: *value,
                file: &self.file,
                key: Key::OfNode {
                    entry: node.entry,
                    name: &node.name,
                    list,
                    index,
                },
            })
    }
}
