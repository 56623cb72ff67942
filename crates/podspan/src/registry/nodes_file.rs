//! The nodes file: noticing that it changed, and reading it.
//!
//! Write the file beside its place and rename it: a file that is being written could be read half. Of two entries that exclude
//! each other the later one in the file is refused, on every node alike.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use podspan_kernel::Prefix;
use toml::Value;

use super::gathered::{Gathered, Refused, family, pod_cidr, quoted};
use crate::cluster::{Cluster, Node, Origin, Remains};
use crate::config::{ip, node_name};
use crate::fields::{Fields, Section, parse_toml};
use crate::refusal::Refusal;

const NODE_KEYS: &str = "name, addresses, pod_cidrs";

/// The nodes file as it was last seen.
#[derive(Debug)]
pub struct NodesFile {
    file: PathBuf,
    seen: Option<String>,
}

impl NodesFile {
    /// Of that file, which is not looked at yet.
    pub fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            seen: None,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// What the file says, when its bytes have changed.
    pub fn news(&mut self) -> Option<anyhow::Result<(Cluster, Vec<Refusal>)>> {
        let read = std::fs::read_to_string(&self.file)
            .with_context(|| format!("read {}", self.file.display()));
        match read {
            Ok(content) if self.seen.as_ref() == Some(&content) => None,
            Ok(content) => {
                let outcome = parse(&self.file, &content);
                self.seen = Some(content);
                Some(outcome)
            }
            Err(error) => {
                self.seen = None;
                Some(Err(error))
            }
        }
    }
}

/// Reads the content of a nodes file, section by section: the syntax tree of five thousand nodes is larger than all else
/// that this process has.
///
/// # Errors
/// No TOML, or no usable node.
pub fn parse(file: &Path, content: &str) -> anyhow::Result<(Cluster, Vec<Refusal>)> {
    let mut refusals = Vec::new();
    let mut gathered = Gathered::new(Origin::File(file.to_owned()));
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

#[cfg(test)]
pub mod tests;
