//! Sets and maps: what their elements are.

use std::fmt;

use super::Table;
use super::element::{UserData, read_user_data};
use super::value::{Type, total_length, type_number};
use crate::encode::{Attributes, Encoder, Header, LIST_ELEM, NLM_F_REQUEST};

/// `NFT_SET_INTERVAL` (linux/netfilter/nf_tables.h).
const SET_INTERVAL: u32 = 0x4;
/// `NFT_SET_MAP`.
const SET_MAP: u32 = 0x8;
/// `NFT_SET_CONCAT`: for intervals of several fields; a plain concatenation does without.
const SET_CONCAT: u32 = 0x80;
/// `NFT_DATA_VERDICT`: the data type of a verdict map.
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;
/// `NFTNL_UDATA_SET_KEYBYTEORDER`: what `nft` writes into a set's user data to print its keys again.
const UDATA_KEY_BYTE_ORDER: u8 = 0;
/// `NFTNL_UDATA_SET_COMMENT`.
const UDATA_COMMENT: u8 = 7;

/// The attributes of a set (`enum nft_set_attributes`).
mod attribute {
    pub(super) const TABLE: u16 = 1;
    pub(super) const NAME: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const KEY_TYPE: u16 = 4;
    pub(super) const KEY_LEN: u16 = 5;
    pub(super) const DATA_TYPE: u16 = 6;
    pub(super) const DATA_LEN: u16 = 7;
    pub(super) const DESC: u16 = 9;
    pub(super) const ID: u16 = 10;
    pub(super) const USERDATA: u16 = 13;
    /// `NFTA_SET_DESC_CONCAT`.
    pub(super) const DESC_CONCAT: u16 = 2;
    /// `NFTA_SET_FIELD_LEN`.
    pub(super) const FIELD_LEN: u16 = 1;
}

/// What an element of a map leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds<'a> {
    /// Nothing: a set.
    Nothing,
    /// Values: a map, as for NAT.
    Values(&'a [Type]),
    /// Verdicts: a verdict map.
    Verdicts,
}

/// A set or a map. It can be a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set<'a> {
    /// Where it is.
    pub table: Table<'a>,
    /// Its name, unique among the sets and maps of its table.
    pub name: &'a str,
    /// The fields of its keys.
    pub key: &'a [Type],
    /// What it leads to.
    pub holds: Holds<'a>,
    /// Its elements may be ranges. Not for keys with a mark, an index or a name of an interface. A change to a set of
    /// ranges of several fields costs the kernel a copy of all of it.
    pub interval: bool,
    /// Its owner's words about it, at most 247 bytes.
    pub comment: Option<&'a str>,
}

/// A set or a map as a list of those of a table tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSet {
    /// Its name.
    pub name: String,
    /// Its owner's words about it.
    pub comment: Option<String>,
}

impl NamedSet {
    /// Reads one message of a list; none for the nameless sets of rules.
    pub(super) fn read(attributes: Attributes<'_>) -> Option<Self> {
        let name = std::str::from_utf8(attributes.find(attribute::NAME)?).ok()?;
        let name = name.trim_end_matches('\0');
        let user_data = attributes.find(attribute::USERDATA).unwrap_or_default();
        (!name.starts_with("__")).then(|| Self {
            name: name.to_owned(),
            comment: read_user_data(user_data, UDATA_COMMENT),
        })
    }
}

impl<'a> Set<'a> {
    /// A set of keys of these fields.
    pub const fn of(table: Table<'a>, name: &'a str, key: &'a [Type]) -> Self {
        Self {
            table,
            name,
            key,
            holds: Holds::Nothing,
            interval: false,
            comment: None,
        }
    }

    /// A map from keys of these fields to values of those.
    pub const fn map(table: Table<'a>, name: &'a str, types: (&'a [Type], &'a [Type])) -> Self {
        Self {
            holds: Holds::Values(types.1),
            ..Self::of(table, name, types.0)
        }
    }

    /// A map from keys of these fields to verdicts.
    pub const fn verdict_map(table: Table<'a>, name: &'a str, key: &'a [Type]) -> Self {
        Self {
            holds: Holds::Verdicts,
            ..Self::of(table, name, key)
        }
    }

    /// The same, whose elements may be ranges.
    pub const fn with_intervals(mut self) -> Self {
        self.interval = true;
        self
    }

    /// The same with a comment.
    pub const fn with_comment(mut self, comment: &'a str) -> Self {
        self.comment = Some(comment);
        self
    }

    /// The header of a question about it.
    pub(super) fn request(&self, kind: u16, flags: u16) -> Header {
        Header {
            kind,
            flags: NLM_F_REQUEST | flags,
            family: self.table.family as u8,
            resource: 0,
        }
    }

    /// Its keys have several fields.
    pub(super) fn concatenated(&self) -> bool {
        self.key.len() > 1
    }

    /// The body of `NFT_MSG_NEWSET`. `id` is unique in its batch.
    pub(super) fn encode(&self, to: &mut Encoder, id: u32) {
        let mut flags = 0;
        if self.interval {
            flags |= SET_INTERVAL;
            flags |= if self.concatenated() { SET_CONCAT } else { 0 };
        }
        if self.holds != Holds::Nothing {
            flags |= SET_MAP;
        }
        self.encode_name(to);
        to.number32(attribute::FLAGS, flags);
        to.number32(attribute::KEY_TYPE, type_number(self.key));
        to.number32(attribute::KEY_LEN, total_length(self.key) as u32);
        match self.holds {
            Holds::Nothing => {}
            Holds::Values(types) => {
                to.number32(attribute::DATA_TYPE, type_number(types));
                to.number32(attribute::DATA_LEN, total_length(types) as u32);
            }
            Holds::Verdicts => to.number32(attribute::DATA_TYPE, DATA_TYPE_VERDICT),
        }
        to.number32(attribute::ID, id);
        if flags & SET_CONCAT != 0 {
            to.nest(attribute::DESC, |desc| {
                desc.nest(attribute::DESC_CONCAT, |fields| self.encode_fields(fields));
            });
        }
        let mut user_data = UserData::default();
        if let [only] = self.key {
            user_data.bytes(UDATA_KEY_BYTE_ORDER, &only.byte_order().to_ne_bytes());
        }
        if let Some(comment) = self.comment {
            user_data.text(UDATA_COMMENT, comment);
        }
        user_data.encode(to, attribute::USERDATA);
    }

    fn encode_fields(&self, to: &mut Encoder) {
        for field in self.key {
            to.nest(LIST_ELEM, |to| {
                to.number32(attribute::FIELD_LEN, field.length() as u32);
            });
        }
    }

    /// Table and name: the same attributes of a set and of a list of its elements.
    pub(super) fn encode_name(&self, to: &mut Encoder) {
        to.text(attribute::TABLE, self.table.name);
        to.text(attribute::NAME, self.name);
    }
}

impl fmt::Display for Set<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.holds {
            Holds::Nothing => "set",
            _ => "map",
        };
        write!(f, "{word} {} {}", self.table, self.name)
    }
}
