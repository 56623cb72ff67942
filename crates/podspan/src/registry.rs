//! The nodes file: reading it into a [`Cluster`], and noticing that it changed.
//!
//! An entry that is wrong is refused and the rest goes on. Of two entries that exclude each other the later one in the
//! file is refused, on every node alike, the node that it names included: were each node to prefer itself, two nodes
//! would hand out the same addresses. A file that is missing, unreadable, empty or without any usable node is an error
//! that changes nothing: the last good cluster stays (an empty list must never take the routes of a whole cluster away).
//! Write the file beside its place and rename it: a file that is being written could be read half.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use podspan_kernel::Prefix;
use toml::Value;

use crate::cluster::{Cluster, Node, Remains};
use crate::config::{ip, node_name};
use crate::fields::{Fields, Section, parse_toml, text};
use crate::refusal::{Refusal, Setting};

const NODE_KEYS: &str = "name, addresses, pod_cidrs";

/// The nodes file as it was last seen, and what it said when it was last good.
#[derive(Debug)]
pub struct Registry {
    file: PathBuf,
    seen: Option<String>,
    good: Option<(Cluster, Vec<Refusal>)>,
    problem: Option<String>,
}

impl Registry {
    /// Of that file, which is not looked at yet.
    pub fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            seen: None,
            good: None,
            problem: None,
        }
    }

    /// Looks at the file, and reads it when its bytes have changed.
    pub fn look(&mut self) {
        let read = std::fs::read_to_string(&self.file)
            .with_context(|| format!("read {}", self.file.display()));
        let outcome = match read {
            Ok(content) if self.seen.as_ref() == Some(&content) => return,
            Ok(content) => {
                let outcome = parse(&self.file, &content);
                self.seen = Some(content);
                outcome
            }
            Err(error) => {
                self.seen = None;
                Err(error)
            }
        };
        match outcome {
            Ok(good) => {
                self.good = Some(good);
                self.problem = None;
            }
            Err(error) => self.problem = Some(format!("{error:#}; nothing was changed for it")),
        }
    }

    /// The last good cluster; none until the file was good once.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.good.as_ref().map(|(cluster, _)| cluster)
    }

    /// The entries that the last good file has and that are refused.
    pub fn refusals(&self) -> &[Refusal] {
        self.good.as_ref().map_or(&[], |(_, refusals)| refusals)
    }

    /// Why the file as it is now is not followed.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

/// Reads the content of a nodes file, section by section: the syntax tree of five thousand nodes is larger than all else
/// that this process has.
///
/// # Errors
/// No TOML, or no usable node.
pub fn parse(file: &Path, content: &str) -> anyhow::Result<(Cluster, Vec<Refusal>)> {
    let mut refusals = Vec::new();
    let mut gathered = Gathered::new(file);
    let mut total = 0;
    for section in sections(content) {
        let mut top = parse_toml(file, &section)?;
        let entries = match top.remove("nodes") {
            Some(Value::Array(entries)) => entries,
            Some(_) => bail!("{}: nodes must be tables: [[nodes]]", file.display()),
            None => Vec::new(),
        };
        refusals.extend(Fields::new(file, top).finish("nodes"));
        for value in entries {
            let read = read_entry(file, total, value).and_then(|node| gathered.take(node));
            if let Err((remains, faults)) = read {
                gathered.cluster.refused.push(remains);
                refusals.extend(faults);
            }
            total += 1;
        }
    }
    if gathered.cluster.nodes.is_empty() {
        let file = file.display();
        let Some(first) = refusals.first() else {
            bail!("{file}: no node in it; write [[nodes]] with {NODE_KEYS}");
        };
        bail!("{file}: none of its {total} nodes is usable; {first}");
    }
    Ok((gathered.cluster, refusals))
}

/// The text before the first `[[nodes]]`, and that of each.
///
/// Outside of a text over several lines, a line can begin so only as a header; with such a text the whole is one section.
fn sections(content: &str) -> Vec<Section<'_>> {
    let has_long_text = content.contains("\"\"\"") || content.contains("'''");
    let mut sections = vec![Section {
        line: 1,
        text: content,
    }];
    let (mut line, mut begin, mut at) = (1, 0, 0);
    for text in content.split_inclusive('\n').filter(|_| !has_long_text) {
        if is_header(text) {
            cut(&mut sections, content, begin..at);
            sections.push(Section {
                line,
                text: content.get(at..).unwrap_or_default(),
            });
            begin = at;
        }
        at += text.len();
        line += 1;
    }
    sections
}

/// Ends the last section where the next begins.
fn cut<'a>(sections: &mut [Section<'a>], content: &'a str, range: std::ops::Range<usize>) {
    if let Some(last) = sections.last_mut() {
        last.text = content.get(range).unwrap_or_default();
    }
}

fn is_header(line: &str) -> bool {
    let key = line.trim_start().strip_prefix("[[").map(str::trim_start);
    let rest = key.and_then(|key| key.strip_prefix("nodes"));
    rest.is_some_and(|rest| rest.trim_start().starts_with("]]"))
}

/// What could be read of an entry, and why it is refused.
type Refused = (Remains, Vec<Refusal>);

fn read_entry(file: &Path, entry: usize, value: Value) -> Result<Node, Refused> {
    let Value::Table(table) = value else {
        let mut fields = Fields::new(file, toml::Table::new());
        let fix = "must be a table with name, addresses, pod_cidrs";
        fields.refuse(&format!("nodes[{entry}]"), value.to_string(), fix);
        return Err((Remains::default(), fields.finish("")));
    };
    let mut fields = Fields::inside(file, table, format!("nodes[{entry}]."));
    let name = fields.take_required("name", node_name);
    fields.name_node(name.as_deref());
    let addresses = fields.take_list("addresses", ip).unwrap_or_default();
    let pod_cidrs = fields.take_list("pod_cidrs", pod_cidr).unwrap_or_default();
    if fields.is_right() {
        check_families(&mut fields, &addresses, &pod_cidrs);
    }
    let faults = fields.finish(NODE_KEYS);
    match name {
        Some(name) if faults.is_empty() => Ok(Node {
            entry,
            name,
            addresses: addresses.into(),
            pod_cidrs: pod_cidrs.into(),
        }),
        _ => {
            let remains = Remains {
                addresses,
                pod_cidrs,
            };
            Err((remains, faults))
        }
    }
}

/// A node has one address per family at the most, and one for each family of its pods.
fn check_families(fields: &mut Fields<'_>, addresses: &[IpAddr], pod_cidrs: &[Prefix]) {
    if addresses.is_empty() {
        let fix = "is missing; give the node's address, such as [\"192.168.1.11\"]";
        fields.refuse("addresses", "", fix);
    }
    if pod_cidrs.is_empty() {
        let fix = "is missing; give at least one, such as [\"10.244.1.0/24\"]";
        fields.refuse("pod_cidrs", "", fix);
    }
    for (index, address) in addresses.iter().enumerate() {
        let family = family(address.is_ipv4());
        let mut earlier = addresses.iter().take(index);
        if earlier.any(|other| other.is_ipv4() == address.is_ipv4()) {
            let fix = format!("is a second {family} address; give one per family");
            fields.refuse(&format!("addresses[{index}]"), quoted(address), fix);
        }
    }
    for (index, pod_cidr) in pod_cidrs.iter().enumerate() {
        let family = family(pod_cidr.is_ipv4());
        if !addresses.is_empty()
            && !addresses
                .iter()
                .any(|ip| ip.is_ipv4() == pod_cidr.is_ipv4())
        {
            let fix = format!(
                "the node has no {family} address to reach it through; add one to addresses"
            );
            fields.refuse(&format!("pod_cidrs[{index}]"), quoted(pod_cidr), fix);
        }
    }
}

/// A prefix that pods of one node can have: room for a gateway and pods, and not half of the internet.
fn pod_cidr(value: &Value) -> Result<Prefix, String> {
    let prefix: Prefix = text(value)?;
    let lengths = if prefix.is_ipv4() { 8..=30 } else { 16..=126 };
    if !lengths.contains(&prefix.length()) {
        let (least, most) = (lengths.start(), lengths.end());
        return Err(format!("must have a length from /{least} to /{most}"));
    }
    let first = toml::Value::from(prefix.addr().to_string());
    ip(&first).map_err(|_| "must not be loopback, link-local or multicast".to_owned())?;
    Ok(prefix)
}

fn family(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "IPv4" } else { "IPv6" }
}

fn quoted(value: impl std::fmt::Display) -> String {
    format!("\"{value}\"")
}

/// The nodes taken so far, and who has what.
struct Gathered {
    cluster: Cluster,
    names: BTreeMap<String, usize>,
    addresses: BTreeMap<IpAddr, usize>,
    pod_cidrs: BTreeMap<Prefix, usize>,
}

impl Gathered {
    fn new(file: &Path) -> Self {
        Self {
            cluster: Cluster {
                file: file.to_owned(),
                ..Cluster::default()
            },
            names: BTreeMap::new(),
            addresses: BTreeMap::new(),
            pod_cidrs: BTreeMap::new(),
        }
    }

    /// Takes the node, unless an earlier one excludes it.
    fn take(&mut self, node: Node) -> Result<(), Refused> {
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
        Some(Refusal {
            file: self.cluster.file.clone(),
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
        Some(format!("nodes[{}] ({})", node.entry, node.name))
    }
}

#[cfg(test)]
mod tests;
