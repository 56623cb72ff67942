//! Reading a policy value by value, strictly, with the place of each for people.
//!
//! A policy is read as plain JSON and not into a type, because a key that nobody here knows must be seen: it may narrow what a rule
//! means, and a rule that says less than it was meant to lets through too much. What cannot be read becomes *unknown* and a
//! [`Fault`]; nothing is left out in silence.

use std::fmt;

use ipnet::IpNet;
use serde_json::Value;

use crate::policy::object::{Protocol, Requirement, Selector, Text};
use crate::refusal::Refusal;

/// A value longer than that, in characters, is not shown whole.
const SHOWN: usize = 80;
/// RFC 6335, as the API has it (`IsValidPortName`).
const PORT_NAME: usize = 15;

/// A value of an object that is not followed: the key, the value as JSON, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it is, such as `spec.ingress[0].ports[1].protocol`.
    pub key: String,
    /// What is written there.
    pub value: String,
    /// What would be right, and what it means meanwhile.
    pub fix: String,
}

impl Fault {
    /// As a refusal of that object.
    pub fn of(&self, source: &str) -> Refusal {
        Refusal {
            source: source.to_owned(),
            key: self.key.clone(),
            value: self.value.clone(),
            fix: self.fix.clone(),
        }
    }
}

/// A text as a fault shows it.
pub fn quoted(text: &str) -> String {
    shown(&Value::from(text))
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// A place in an object; text only when it is printed.
#[derive(Debug, Clone, Copy)]
pub enum Path<'a> {
    /// `spec`
    Spec,
    /// A key in an object.
    Key(&'a Path<'a>, &'a str),
    /// An index in a list.
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spec => f.write_str("spec"),
            Self::Key(before, key) => write!(f, "{before}.{key}"),
            Self::Item(before, index) => write!(f, "{before}[{index}]"),
        }
    }
}

/// A value and where it is.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// What is there.
    pub value: &'a Value,
    /// Where.
    pub path: &'a Path<'a>,
}

/// What was met that cannot be followed.
#[derive(Debug, Default)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// That value is not followed.
    pub fn add(&mut self, at: At<'_>, fix: impl Into<String>) {
        self.0.push(Fault {
            key: at.path.to_string(),
            value: shown(at.value),
            fix: fix.into(),
        });
    }
}

impl<'a> At<'a> {
    /// What is under that key; none where nothing is, or `null`.
    pub fn get(self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// The keys that are there with something in them.
    fn keys(self) -> impl Iterator<Item = &'a str> {
        let object = self.value.as_object().into_iter().flatten();
        let there = object.filter(|(_, value)| !value.is_null());
        there.map(|(key, _)| key.as_str())
    }

    /// True for an object that has no other keys than those.
    pub fn has_only(self, known: &[&str], faults: &mut Faults) -> bool {
        if !self.value.is_object() {
            faults.add(self, "must be an object");
            return false;
        }
        match self.keys().find(|key| !known.contains(key)) {
            Some(key) => {
                let fix = format!("{key} is not known here; known are {}", known.join(", "));
                faults.add(self, fix);
                false
            }
            None => true,
        }
    }

    /// The key of an object that must have exactly one of those, and what is under it.
    pub fn one_of(self, known: &[&str], faults: &mut Faults) -> Option<(&'a str, &'a Value)> {
        let mut keys = self.keys();
        if let (Some(key), None) = (keys.next(), keys.next())
            && known.contains(&key)
        {
            return Some((key, self.get(key)?));
        }
        let fix = format!("must have exactly one of {}", known.join(", "));
        faults.add(self, fix);
        None
    }

    /// The list under that key, empty where there is none; none when it is something else.
    pub fn list(self, key: &str, faults: &mut Faults) -> Option<&'a [Value]> {
        match self.get(key) {
            None => Some(&[]),
            Some(Value::Array(list)) => Some(list),
            Some(value) => {
                let path = &Path::Key(self.path, key);
                faults.add(At { value, path }, "must be a list");
                None
            }
        }
    }

    /// A number of a port.
    pub fn port(self) -> Option<u16> {
        let number = u16::try_from(self.value.as_u64()?).ok()?;
        (number != 0).then_some(number)
    }

    /// The selector under that key; one that is not there means everything.
    pub fn selector(self, key: &str, faults: &mut Faults) -> Selector {
        match self.get(key) {
            Some(value) => {
                let path = &Path::Key(self.path, key);
                selector(At { value, path }, faults)
            }
            None => Selector::default(),
        }
    }
}

/// A LabelSelector. Sorted, so that those that mean the same are the same.
pub fn selector(at: At<'_>, faults: &mut Faults) -> Selector {
    let mut requirements = Vec::new();
    if !at.has_only(&["matchExpressions", "matchLabels"], faults) {
        requirements.push(Requirement::Unknown);
    }
    if let Some(value) = at.get("matchLabels") {
        let path = &Path::Key(at.path, "matchLabels");
        match_labels(At { value, path }, &mut requirements, faults);
    }
    let path = &Path::Key(at.path, "matchExpressions");
    match at.list("matchExpressions", faults) {
        Some(expressions) => {
            requirements.extend(expressions.iter().enumerate().map(|(index, value)| {
                let path = &Path::Item(path, index);
                expression(At { value, path }, faults)
            }));
        }
        None => requirements.push(Requirement::Unknown),
    }
    requirements.sort_unstable();
    requirements.dedup();
    Selector(requirements.into())
}

fn match_labels(at: At<'_>, requirements: &mut Vec<Requirement>, faults: &mut Faults) {
    let Some(labels) = at.value.as_object() else {
        faults.add(at, "must be an object; what cannot be read allows nothing");
        requirements.push(Requirement::Unknown);
        return;
    };
    requirements.extend(labels.iter().map(|(key, value)| {
        if let Some(text) = value.as_str() {
            return Requirement::In(Text::from(key.as_str()), [Text::from(text)].into());
        }
        let path = &Path::Key(at.path, key);
        faults.add(
            At { value, path },
            "must be a text; what cannot be read allows nothing",
        );
        Requirement::Unknown
    }));
}

fn expression(at: At<'_>, faults: &mut Faults) -> Requirement {
    let known = at.has_only(&["key", "operator", "values"], faults);
    let key = at.get("key").and_then(Value::as_str);
    let operator = at.get("operator").and_then(Value::as_str);
    let (true, Some(key), Some(values)) = (known, key, values(at)) else {
        if known {
            let fix = "must have a key, an operator and a list of values; what cannot be read allows nothing";
            faults.add(at, fix);
        }
        return Requirement::Unknown;
    };
    let key = Text::from(key);
    match (operator, values.is_empty()) {
        (Some("In"), false) => Requirement::In(key, values.into()),
        (Some("NotIn"), false) => Requirement::NotIn(key, values.into()),
        (Some("Exists"), true) => Requirement::Exists(key),
        (Some("DoesNotExist"), true) => Requirement::DoesNotExist(key),
        _ => {
            let fix = "must be In or NotIn with values, or Exists or DoesNotExist without; what cannot be read allows nothing";
            faults.add(at, fix);
            Requirement::Unknown
        }
    }
}

/// Sorted; none when they are no texts.
fn values(at: At<'_>) -> Option<Vec<Text>> {
    let Some(values) = at.get("values") else {
        return Some(Vec::new());
    };
    let texts = values.as_array()?.iter();
    let mut texts: Vec<_> = texts
        .map(|value| value.as_str().map(Text::from))
        .collect::<Option<_>>()?;
    texts.sort_unstable();
    texts.dedup();
    Some(texts)
}

/// A block of addresses, the bits behind its prefix ignored.
pub fn block(at: At<'_>, faults: &mut Faults) -> Option<IpNet> {
    let read = at.value.as_str().and_then(|text| text.parse().ok());
    // As no packet has them: IPv4 written as IPv6.
    let read = read.filter(|block: &IpNet| match block {
        IpNet::V4(_) => true,
        IpNet::V6(block) => block.prefix_len() < 96 || block.addr().to_ipv4_mapped().is_none(),
    });
    if read.is_none() {
        faults.add(at, "must be a CIDR such as 10.0.0.0/8 or fd00::/8");
    }
    read.map(|block| block.trunc())
}

/// A protocol by its name in the API.
pub fn protocol_named(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// A name that a port of a container can have.
pub fn port_name(value: &Value) -> Option<Text> {
    let name = value.as_str()?;
    let is_of = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_valid = name.len() <= PORT_NAME
        && name.chars().all(is_of)
        && name.contains(|c: char| c.is_ascii_lowercase());
    is_valid.then(|| Text::from(name))
}
