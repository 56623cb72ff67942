//! Elements of sets and maps, written and read.
//!
//! A surprise: the kernel stores an interval of one field as two elements, the first key and, marked as an end, the first
//! key behind it. An interval of several fields is one element with two keys. Here both are one [`Element`] with its
//! first and last key.

use std::collections::BTreeSet;
use std::fmt;

use super::chain::Verdict;
use super::set::{Holds, Set};
use super::value::{Value, concatenate, read_values, text};
use crate::encode::{Attributes, DATA_VALUE, Encoder, LIST_ELEM};
use crate::names::Prefix;
use crate::netlink::u32_at;

/// `NFT_SET_ELEM_INTERVAL_END` (linux/netfilter/nf_tables.h): the first key behind an interval.
const ELEM_INTERVAL_END: u32 = 0x1;
/// `NFTNL_UDATA_SET_ELEM_COMMENT`, which is `NFTNL_UDATA_RULE_COMMENT` too: where `nft` looks for a comment.
pub(super) const UDATA_COMMENT: u8 = 0;

/// The longest comment of an element, in bytes. The kernel counts what an element has besides its key in one byte: of a comment
/// of 253 bytes it keeps nothing, and says nothing (`nft_set_ext_add_length`).
const COMMENT_MAX: usize = 251;

/// The attributes of a list of elements and of an element (`enum nft_set_elem_list_attributes`,
/// `enum nft_set_elem_attributes`).
mod attribute {
    pub(super) const LIST_ELEMENTS: u16 = 3;
    pub(super) const KEY: u16 = 1;
    pub(super) const DATA: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const USERDATA: u16 = 6;
    pub(super) const KEY_END: u16 = 10;
}

/// What an element leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// Nothing: it is an element of a set.
    Nothing,
    /// These values.
    Values(Vec<Value>),
    /// This verdict.
    Verdict(Verdict),
}

/// An element of a set or a map. What was listed can be added again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its key, or the first key of its interval.
    pub key: Vec<Value>,
    /// The last key of its interval.
    pub last: Option<Vec<Value>>,
    /// What it leads to.
    pub data: Data,
    /// Its owner's words about it, at most 251 bytes.
    pub comment: Option<String>,
}

impl Element {
    /// An element with this key that leads nowhere.
    pub fn new(key: impl Into<Vec<Value>>) -> Self {
        Self {
            key: key.into(),
            last: None,
            data: Data::Nothing,
            comment: None,
        }
    }

    /// All addresses of a prefix, for a set of intervals.
    pub fn prefix(prefix: Prefix) -> Self {
        let net = prefix.net();
        Self::new([net.network().into()]).through([net.broadcast().into()])
    }

    /// All keys from this one to `last`, which belongs to them.
    pub fn through(mut self, last: impl Into<Vec<Value>>) -> Self {
        self.last = Some(last.into());
        self
    }

    /// The same, leading to these values.
    pub fn to(mut self, values: impl Into<Vec<Value>>) -> Self {
        self.data = Data::Values(values.into());
        self
    }

    /// The same, leading to this verdict.
    pub fn verdict(mut self, verdict: Verdict) -> Self {
        self.data = Data::Verdict(verdict);
        self
    }

    /// The same with a comment.
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// The body of a message that adds it to `set` or deletes it.
    pub(super) fn encode(&self, to: &mut Encoder, set: &Set<'_>) {
        encode_list(to, set, |list| self.encode_into(list, set));
    }

    /// One of the elements of such a message.
    pub(super) fn encode_into(&self, list: &mut Encoder, set: &Set<'_>) {
        let pair = set.interval && !set.concatenated();
        list.nest(LIST_ELEM, |to| self.encode_key(to, pair));
        let last = self.last.as_ref().unwrap_or(&self.key);
        // Nothing ends behind the last key of all.
        if let Some(behind) = next(concatenate(last)).filter(|_| pair) {
            list.nest(LIST_ELEM, |to| {
                to.number32(attribute::FLAGS, ELEM_INTERVAL_END);
                to.data(attribute::KEY, &behind);
            });
        }
    }

    /// The body of a message that asks for it by its key.
    pub(super) fn encode_question(&self, to: &mut Encoder, set: &Set<'_>) {
        set.encode_name(to);
        to.nest(attribute::LIST_ELEMENTS, |list| {
            list.nest(LIST_ELEM, |to| {
                to.data(attribute::KEY, &concatenate(&self.key));
            });
        });
    }

    fn encode_key(&self, to: &mut Encoder, pair: bool) {
        to.data(attribute::KEY, &concatenate(&self.key));
        if let Some(last) = self.last.as_ref().filter(|_| !pair) {
            to.data(attribute::KEY_END, &concatenate(last));
        }
        match &self.data {
            Data::Nothing => {}
            Data::Values(values) => to.data(attribute::DATA, &concatenate(values)),
            Data::Verdict(verdict) => verdict.encode(to, attribute::DATA),
        }
        if let Some(comment) = &self.comment {
            // So long that the kernel refuses it.
            let padding = match comment.len() > COMMENT_MAX {
                true => " ".repeat(COMMENT_MAX),
                false => String::new(),
            };
            encode_comment(to, attribute::USERDATA, &format!("{comment}{padding}"));
        }
    }
}

/// The body of a message about elements of `set`.
pub(super) fn encode_list(to: &mut Encoder, set: &Set<'_>, list: impl FnOnce(&mut Encoder)) {
    set.encode_name(to);
    to.nest(attribute::LIST_ELEMENTS, list);
}

/// Of each element in one message of a dump: its key, and whether it only ends an interval.
pub(super) fn read_keys<'a>(
    attributes: Attributes<'a>,
) -> impl Iterator<Item = Option<(&'a [u8], bool)>> {
    let list = attributes.inside(attribute::LIST_ELEMENTS);
    list.into_iter().flatten().map(|(_, payload)| {
        let element = Attributes(payload);
        let key = element.inside(attribute::KEY)?.find(DATA_VALUE)?;
        Some((key, ends_interval(element)))
    })
}

fn ends_interval(element: Attributes<'_>) -> bool {
    let flags = element.find(attribute::FLAGS);
    let flags = flags
        .and_then(|flags| u32_at(flags, 0))
        .map_or(0, u32::from_be);
    flags & ELEM_INTERVAL_END != 0
}

impl fmt::Display for Element {
    /// As `nft` writes it: `tcp . 8080 : 10.244.1.2 . 80`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(&self.key))?;
        if let Some(last) = &self.last {
            write!(f, "-{}", text(last))?;
        }
        match &self.data {
            Data::Nothing => Ok(()),
            Data::Values(values) => write!(f, " : {}", text(values)),
            Data::Verdict(verdict) => write!(f, " : {verdict}"),
        }
    }
}

/// What `nft` keeps with an object and the kernel does not look at: kind, length and bytes of each. One that is too long is
/// refused by the kernel (`NFT_USERDATA_MAXLEN`).
#[derive(Default)]
pub(super) struct UserData(Vec<u8>);

impl UserData {
    pub(super) fn bytes(&mut self, kind: u8, bytes: &[u8]) {
        let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        self.0.extend([kind, length]);
        self.0.extend(bytes);
    }

    /// Text, with a NUL at its end.
    pub(super) fn text(&mut self, kind: u8, text: &str) {
        self.bytes(kind, &[text.as_bytes(), &[0]].concat());
    }

    /// As an attribute of that kind, where there is anything.
    pub(super) fn encode(&self, to: &mut Encoder, kind: u16) {
        if !self.0.is_empty() {
            to.bytes_attribute(kind, &self.0);
        }
    }
}

/// A comment as `nft` writes and reads it, of an element or a rule.
pub(super) fn encode_comment(to: &mut Encoder, kind: u16, comment: &str) {
    let mut user_data = UserData::default();
    user_data.text(UDATA_COMMENT, comment);
    user_data.encode(to, kind);
}

/// The text of that kind in what `nft` keeps with an object.
pub(super) fn read_user_data(mut bytes: &[u8], wanted: u8) -> Option<String> {
    while let [kind, length, rest @ ..] = bytes {
        let (value, after) = rest.split_at_checked(usize::from(*length))?;
        if *kind == wanted {
            let text = String::from_utf8_lossy(value);
            return Some(text.trim_end_matches('\0').to_owned());
        }
        bytes = after;
    }
    None
}

/// An element as the kernel stores it.
pub(super) struct Stored {
    key: Vec<u8>,
    last: Option<Vec<u8>>,
    ends_interval: bool,
    data: Data,
    comment: Option<String>,
}

/// The elements in one message of a dump; none when they are not of the types of `set`.
pub(super) fn read_stored(set: &Set<'_>, attributes: Attributes<'_>) -> Option<Vec<Stored>> {
    let list = attributes.inside(attribute::LIST_ELEMENTS);
    list.into_iter()
        .flatten()
        .map(|(_, payload)| read_element(set, Attributes(payload)))
        .collect()
}

fn read_element(set: &Set<'_>, attributes: Attributes<'_>) -> Option<Stored> {
    let value = |kind| attributes.inside(kind)?.find(DATA_VALUE);
    let ends_interval = ends_interval(attributes);
    let data = match set.holds {
        Holds::Values(types) if !ends_interval => {
            Data::Values(read_values(types, value(attribute::DATA)?)?)
        }
        Holds::Verdicts if !ends_interval => {
            Data::Verdict(Verdict::read(attributes.inside(attribute::DATA)?)?)
        }
        _ => Data::Nothing,
    };
    Some(Stored {
        key: value(attribute::KEY)?.to_vec(),
        last: value(attribute::KEY_END).map(<[u8]>::to_vec),
        ends_interval,
        data,
        comment: attributes
            .find(attribute::USERDATA)
            .and_then(|bytes| read_user_data(bytes, UDATA_COMMENT)),
    })
}

/// True when one of them is there twice.
pub(super) fn has_doubles(stored: &[Stored]) -> bool {
    let mut seen = BTreeSet::new();
    stored
        .iter()
        .any(|element| !seen.insert((&element.key, element.ends_interval)))
}

/// What stored elements mean; none when they are not of the types of `set`.
pub(super) fn understand(set: &Set<'_>, stored: Vec<Stored>) -> Option<Vec<Element>> {
    let whole = if set.interval && !set.concatenated() {
        join_intervals(stored)
    } else {
        stored
    };
    let read = |element: Stored| {
        let last = element.last.filter(|last| *last != element.key);
        Some(Element {
            key: read_values(set.key, &element.key)?,
            last: match last {
                Some(bytes) => Some(read_values(set.key, &bytes)?),
                None => None,
            },
            data: element.data,
            comment: element.comment,
        })
    };
    whole.into_iter().map(read).collect()
}

/// Gives each first key of an interval its last one, and drops the marks of the ends.
fn join_intervals(mut stored: Vec<Stored>) -> Vec<Stored> {
    // Where one interval ends and the next begins at the same key, the end comes first.
    stored.sort_by(|a, b| (&a.key, !a.ends_interval).cmp(&(&b.key, !b.ends_interval)));
    let mut whole: Vec<Stored> = Vec::new();
    for element in stored {
        if !element.ends_interval {
            let last = vec![0xff; element.key.len()];
            whole.push(Stored {
                last: Some(last),
                ..element
            });
        } else if let Some(open) = whole.last_mut() {
            open.last = Some(previous(element.key));
        }
    }
    whole
}

/// The key behind this one, as a big-endian number; none behind the last of all.
fn next(mut key: Vec<u8>) -> Option<Vec<u8>> {
    for byte in key.iter_mut().rev() {
        let (sum, carry) = byte.overflowing_add(1);
        *byte = sum;
        if !carry {
            return Some(key);
        }
    }
    None
}

/// The key before this one.
fn previous(mut key: Vec<u8>) -> Vec<u8> {
    for byte in key.iter_mut().rev() {
        let (difference, borrow) = byte.overflowing_sub(1);
        *byte = difference;
        if !borrow {
            break;
        }
    }
    key
}
