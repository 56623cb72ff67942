//! Counters with a name: objects of a table, which rules count with, and which stay when a rule goes.
//!
//! A rule's own counter begins at nothing whenever the rule is replaced; one with a name goes on, whoever counts with it. It
//! is deleted by itself, and only when no rule counts with it any longer.

use std::fmt;

use super::element::{UDATA_COMMENT, encode_comment, read_user_data};
use super::listing::text;
use super::{Nft, Table, message};
use crate::encode::{Attributes, Encoder, Header, NLM_F_DUMP, NLM_F_REQUEST};
use crate::error::Result;

/// `NFT_OBJECT_COUNTER` (linux/netfilter/nf_tables.h).
pub(super) const OBJECT_COUNTER: u32 = 1;

/// A counter with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter<'a> {
    /// Where it is.
    pub table: Table<'a>,
    /// Its name, unique among the table's counters, at most 255 bytes.
    pub name: &'a str,
    /// Its owner's words about it, at most 253 bytes.
    pub comment: Option<&'a str>,
}

/// A counter as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedCounter {
    /// Its name.
    pub name: String,
    /// Its owner's words about it.
    pub comment: Option<String>,
    /// How many packets it has counted.
    pub packets: u64,
    /// How many bytes they had, their IP headers too.
    pub bytes: u64,
}

impl<'a> Counter<'a> {
    /// A counter of that name, without a comment.
    pub const fn of(table: Table<'a>, name: &'a str) -> Self {
        Self {
            table,
            name,
            comment: None,
        }
    }

    /// What the kernel finds it by.
    pub(super) fn encode_name(&self, to: &mut Encoder) {
        to.text(1, self.table.name); // NFTA_OBJ_TABLE
        to.text(2, self.name); // NFTA_OBJ_NAME
        to.number32(3, OBJECT_COUNTER); // NFTA_OBJ_TYPE
    }

    /// The body of `NFT_MSG_NEWOBJ`.
    pub(super) fn encode(&self, to: &mut Encoder) {
        self.encode_name(to);
        to.nest(4, |_| {}); // NFTA_OBJ_DATA, which must be there
        if let Some(comment) = self.comment {
            encode_comment(to, 8, comment); // NFTA_OBJ_USERDATA
        }
    }
}

impl fmt::Display for Counter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counter {} {}", self.table, self.name)
    }
}

impl ListedCounter {
    fn read(object: Attributes<'_>) -> Option<Self> {
        let data = object.inside(4)?; // NFTA_OBJ_DATA
        let number = |kind| Some(u64::from_be_bytes(data.find(kind)?.try_into().ok()?));
        let own = object.find(8); // NFTA_OBJ_USERDATA
        Some(Self {
            name: text(object.find(2)?), // NFTA_OBJ_NAME
            comment: own.and_then(|data| read_user_data(data, UDATA_COMMENT)),
            packets: number(2)?, // NFTA_COUNTER_PACKETS
            bytes: number(1)?,   // NFTA_COUNTER_BYTES
        })
    }
}

impl Nft {
    /// All counters of a table that have a name, with what they have counted; none where there is no table.
    ///
    /// # Errors
    /// EINTR when commits never let a listing finish; what the kernel answered.
    pub fn list_counters(&mut self, table: Table<'_>) -> Result<Vec<ListedCounter>> {
        let header = Header {
            kind: message::GET_OBJECTS,
            flags: NLM_F_REQUEST | NLM_F_DUMP,
            family: table.family as u8,
            resource: 0,
        };
        let mut counters = Vec::new();
        let asked = self.link.dump(
            header,
            |to| {
                to.text(1, table.name); // NFTA_OBJ_TABLE
                to.number32(3, OBJECT_COUNTER); // NFTA_OBJ_TYPE
            },
            |part| match part {
                None => counters.clear(),
                Some(counter) => counters.extend(ListedCounter::read(counter)),
            },
        );
        asked.map_err(|refusal| refusal.into_error(format!("list counters of table {table}")))?;
        Ok(counters)
    }
}
