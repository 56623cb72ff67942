//! A value that somebody wrote and that we do not follow: where it stands, what it is, and what would be right.
//!
//! A refusal never stops the rest: what is right goes on, and what runs already stays as it is.

use std::fmt;
use std::path::Path;

use serde::Serialize;

/// A refused value, printed as *`nodes.toml: nodes[3].addresses[0] (node4) = "10.0.0.300": must be an IP address`*, or as
/// *`Node node4: status.addresses = "10.0.0.300": must be an IP address`*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// What it stands in: a file, or an object such as `Node node4`.
    pub source: String,
    /// Where in it, such as `nodes[3].pod_cidrs[0] (node4)`; the node's name where a file has several.
    pub key: String,
    /// What is written there, as TOML; empty where something is missing.
    pub value: String,
    /// Why it is refused and what would be right.
    pub fix: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            source,
            key,
            value,
            fix,
        } = self;
        write!(f, "{source}: {key}")?;
        if !value.is_empty() {
            write!(f, " = {value}")?;
        }
        write!(f, ": {fix}")
    }
}

/// A valid value together with the place that it came from, so that it can still be refused for what is around it.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a, T> {
    /// The value.
    pub value: T,
    /// What it stands in.
    pub source: Source<'a>,
    /// Where in it.
    pub key: Key<'a>,
}

/// What a value stands in; text only when it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// A file.
    File(&'a Path),
    /// The Node of that name in the Kubernetes API.
    NodeObject(&'a str),
}

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::NodeObject(name) => write!(f, "Node {name}"),
        }
    }
}

impl<T: fmt::Display> Setting<'_, T> {
    /// The value refused, for that reason.
    pub fn refuse(&self, fix: impl Into<String>) -> Refusal {
        Refusal {
            source: self.source.to_string(),
            key: self.key.to_string(),
            value: format!("\"{}\"", self.value),
            fix: fix.into(),
        }
    }
}

impl<T: fmt::Display> fmt::Display for Setting<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = \"{}\"", self.key, self.value)
    }
}

/// A place in a file or an object; text only when it is printed, because a cluster has ten thousand of them.
#[derive(Debug, Clone, Copy)]
pub enum Key<'a> {
    /// `node`, `spec.podCIDRs`
    Plain(&'static str),
    /// `routers[0]`
    Item(&'static str, usize),
    /// `nodes[3].pod_cidrs[0] (node4)`
    OfNode {
        /// The entry's index in the file.
        entry: usize,
        /// The node's name.
        name: &'a str,
        /// `addresses` or `pod_cidrs`.
        list: &'static str,
        /// The index in that list.
        index: usize,
    },
}

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(key) => f.write_str(key),
            Self::Item(list, index) => write!(f, "{list}[{index}]"),
            Self::OfNode {
                entry,
                name,
                list,
                index,
            } => write!(f, "nodes[{entry}].{list}[{index}] ({name})"),
        }
    }
}
