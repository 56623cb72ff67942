//! nf_tables over netlink: tables, chains, rules, sets and maps, changed by transactions.
//!
//! A [`Batch`] is written down first and then committed: all of it happens or nothing, and the error names the one change
//! that the kernel refused. This room knows no policy and no names: which tables are ours is the caller's affair, and it
//! never touches what the batch does not name. It never runs `nft`; what it makes is what `nft list ruleset` prints.
//!
//! Surprises: sets and chains are found by name inside of their own batch, so order alone matters. A commit does not wait
//! for packets that are under way, but closing the socket does (an RCU grace period, 10 ms or so) when something was
//! deleted a moment ago in the same network namespace, by whomever (`nft_rcv_nl_event`). A short-lived program therefore
//! deletes first and does its other work before it ends.

mod batch;
mod chain;
mod counter;
mod element;
mod field;
mod listing;
mod monitor;
mod ranges;
mod rule;
mod set;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;

use rustix::io::Errno;

pub use batch::Batch;
pub use chain::{Base, Chain, ChainKind, Hook, NamedChain, Policy, Verdict, priority};
pub use counter::{Counter, ListedCounter};
pub use element::{Data, Element};
pub use field::{Field, Header};
pub use listing::{Generation, ListedBase, ListedChain, ListedRule};
pub use monitor::{News, NftMonitor};
pub use ranges::AddressRange;
pub use rule::{Compare, CtState, Limit, LimitUnit, Nat, NatFlag, Reject, Rule};
pub use set::{Holds, NamedSet, Set};
pub use value::{Type, Value};

use crate::encode;
use crate::encode::{Attributes, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use crate::error::Result;
use crate::netlink::{DUMP_TRIES, Refusal};
use crate::nfnetlink::Nfnetlink;

/// `NFNL_SUBSYS_NFTABLES` (linux/netfilter/nfnetlink.h).
const SUBSYSTEM: u16 = 10;

/// The kinds of messages (`enum nf_tables_msg_types`, linux/netfilter/nf_tables.h).
mod message {
    use super::SUBSYSTEM;

    pub(super) const NEW_TABLE: u16 = SUBSYSTEM << 8;
    pub(super) const GET_TABLE: u16 = SUBSYSTEM << 8 | 1;
    pub(super) const DELETE_TABLE: u16 = SUBSYSTEM << 8 | 2;
    pub(super) const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
    pub(super) const GET_CHAIN: u16 = SUBSYSTEM << 8 | 4;
    pub(super) const DELETE_CHAIN: u16 = SUBSYSTEM << 8 | 5;
    pub(super) const NEW_RULE: u16 = SUBSYSTEM << 8 | 6;
    pub(super) const GET_RULES: u16 = SUBSYSTEM << 8 | 7;
    pub(super) const DELETE_RULE: u16 = SUBSYSTEM << 8 | 8;
    pub(super) const NEW_SET: u16 = SUBSYSTEM << 8 | 9;
    pub(super) const GET_SETS: u16 = SUBSYSTEM << 8 | 10;
    pub(super) const DELETE_SET: u16 = SUBSYSTEM << 8 | 11;
    pub(super) const NEW_ELEMENT: u16 = SUBSYSTEM << 8 | 12;
    pub(super) const GET_ELEMENTS: u16 = SUBSYSTEM << 8 | 13;
    pub(super) const DELETE_ELEMENT: u16 = SUBSYSTEM << 8 | 14;
    pub(super) const GET_GENERATION: u16 = SUBSYSTEM << 8 | 16;
    pub(super) const NEW_OBJECT: u16 = SUBSYSTEM << 8 | 18;
    pub(super) const GET_OBJECTS: u16 = SUBSYSTEM << 8 | 19;
    pub(super) const DELETE_OBJECT: u16 = SUBSYSTEM << 8 | 20;
    /// `NFT_MSG_DESTROYSETELEM` (Linux 6.3).
    pub(super) const DESTROY_ELEMENT: u16 = SUBSYSTEM << 8 | 30;
}

/// The packets that a table sees (`NFPROTO_*`, linux/netfilter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// All of one interface.
    Netdev = 5,
    /// Those that a bridge forwards.
    Bridge = 7,
    /// IPv6.
    Ip6 = 10,
}

impl Family {
    /// That of a message's header; none for one that is not in this type.
    fn from_number(number: u8) -> Option<Self> {
        let known = [Self::Inet, Self::Ip, Self::Netdev, Self::Bridge, Self::Ip6];
        known.into_iter().find(|family| *family as u8 == number)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
        })
    }
}

/// A table. It can be a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table<'a> {
    /// What it sees.
    pub family: Family,
    /// Its name, unique in its family.
    pub name: &'a str,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// A connection to nf_tables, in the network namespace that it was opened in.
pub struct Nft {
    link: Nfnetlink,
}

/// The first change of a batch that was refused, by its place; none when the batch was as a whole.
struct Failure {
    place: Option<usize>,
    refusal: Refusal,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self {
            place: None,
            refusal,
        }
    }
}

impl Nft {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// What `socket`, `bind` or `setsockopt` answered; EPROTONOSUPPORT from a kernel without nfnetlink.
    pub fn open() -> Result<Self> {
        Ok(Self {
            link: Nfnetlink::open("nftables")?,
        })
    }

    /// Makes all changes of a batch, or none. An empty one costs nothing.
    ///
    /// # Errors
    /// The first refused change and why: *`create element 10.244.1.2 to set inet podspan masquerade4: file exists
    /// (EEXIST)`*. EMSGSIZE when the batch is larger than the kernel lets us send at once: `net.core.wmem_max` bounds it
    /// outside of the initial user namespace. ENOBUFS when so much was refused that nothing is known.
    pub fn commit(&mut self, batch: Batch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.link.sequence.wrapping_add(1);
        let (messages, actions) = batch.finish(first);
        let count = actions.len();
        self.link.sequence = first.wrapping_add(u32::try_from(count + 1).unwrap_or(u32::MAX));
        let mut attempt = || {
            self.link.send(messages.bytes())?;
            self.outcome(first, count)
        };
        attempt().map_err(|failure| {
            let Failure { place, refusal } = failure;
            let action = place.and_then(|place| actions.get(place));
            let whole = || format!("commit {count} nftables changes");
            refusal.into_error(action.cloned().unwrap_or_else(whole))
        })
    }

    /// True when the table is there.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn has_table(&mut self, table: Table<'_>) -> Result<bool> {
        Ok(self.table_handle(table)?.is_some())
    }

    /// The number of the table, which none that is made in its place has in the same network namespace; none when it is not there.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn table_handle(&mut self, table: Table<'_>) -> Result<Option<u64>> {
        let header = encode::Header {
            kind: message::GET_TABLE,
            flags: NLM_F_REQUEST | NLM_F_ACK,
            family: table.family as u8,
            resource: 0,
        };
        let mut handle = 0;
        let asked = self.link.ask(
            header,
            |to| to.text(1, table.name), // NFTA_TABLE_NAME
            |attributes| handle = read_handle(attributes).unwrap_or_default(),
        );
        match asked {
            Ok(()) => Ok(Some(handle)),
            Err(refusal) if refusal.errno == Errno::NOENT => Ok(None),
            Err(refusal) => Err(refusal.into_error(format!("find table {table}"))),
        }
    }

    /// All elements of a set or a map. A list that has an element twice is begun again.
    ///
    /// # Errors
    /// Not found; EBADMSG when the set is of other types than `set` says; EINTR when commits never let a dump finish.
    pub fn list_elements(&mut self, set: &Set<'_>) -> Result<Vec<Element>> {
        let error = |refusal: Refusal| refusal.into_error(format!("list elements of {set}"));
        for _ in 0..DUMP_TRIES {
            let stored = self
                .walk(set, |attributes| element::read_stored(set, attributes))
                .map_err(error)?;
            // Its hash table grew meanwhile, and was walked again from its beginning (`nft_rhash_walk`).
            if !stored.as_deref().is_some_and(element::has_doubles) {
                return stored
                    .and_then(|all| element::understand(set, all))
                    .ok_or_else(|| error(Errno::BADMSG.into()));
            }
        }
        Err(error(Errno::INTR.into()))
    }

    /// One walk over all that is stored in a set, in the parts that the kernel tells of it; none when one cannot be read.
    fn walk<T>(
        &mut self,
        set: &Set<'_>,
        read: impl Fn(Attributes<'_>) -> Option<Vec<T>>,
    ) -> std::result::Result<Option<Vec<T>>, Refusal> {
        let mut stored = Some(Vec::new());
        self.link.dump(
            set.request(message::GET_ELEMENTS, NLM_F_DUMP),
            |to| set.encode_name(to),
            |part| match part {
                None => stored = Some(Vec::new()),
                Some(attributes) => match (&mut stored, read(attributes)) {
                    (Some(all), Some(part)) => all.extend(part),
                    _ => stored = None,
                },
            },
        )?;
        Ok(stored)
    }

    /// The element of that key, or none: of a set of single keys, whose size does not matter.
    ///
    /// # Errors
    /// What the kernel answered, other than that there is no such element, set or table; EBADMSG as with
    /// [`Self::list_elements`].
    pub fn find_element(&mut self, set: &Set<'_>, key: &Element) -> Result<Option<Element>> {
        let header = set.request(message::GET_ELEMENTS, NLM_F_ACK);
        let error = |refusal: Refusal| refusal.into_error(format!("find element {key} in {set}"));
        let mut stored = Some(Vec::new());
        let asked = self.link.ask(
            header,
            |to| key.encode_question(to, set),
            |attributes| stored = element::read_stored(set, attributes),
        );
        match asked {
            Ok(()) => {}
            Err(refusal) if refusal.errno == Errno::NOENT => return Ok(None),
            Err(refusal) => return Err(error(refusal)),
        }
        stored
            .and_then(|found| element::understand(set, found))
            .map(|mut found| found.pop())
            .ok_or_else(|| error(Errno::BADMSG.into()))
    }

    /// All sets and maps of a table that have a name, with what their owners say of them; none where there is no table.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn list_sets(&mut self, table: Table<'_>) -> Result<Vec<NamedSet>> {
        let header = encode::Header {
            kind: message::GET_SETS,
            flags: NLM_F_REQUEST | NLM_F_DUMP,
            family: table.family as u8,
            resource: 0,
        };
        let mut sets = Vec::new();
        let asked = self.link.dump(
            header,
            |to| to.text(1, table.name), // NFTA_SET_TABLE
            |part| match part {
                None => sets.clear(),
                Some(attributes) => sets.extend(NamedSet::read(attributes)),
            },
        );
        match asked {
            Ok(()) => Ok(sets),
            Err(refusal) if refusal.errno == Errno::NOENT => Ok(Vec::new()),
            Err(refusal) => Err(refusal.into_error(format!("list sets of table {table}"))),
        }
    }

    /// Reads what became of a batch, whose first message has number `first` and `count` changes behind it.
    ///
    /// The kernel tells every change that failed, in order, and then of the last one whether it did or not. That the batch
    /// as a whole was refused is told of its first message.
    fn outcome(&mut self, first: u32, count: usize) -> std::result::Result<(), Failure> {
        let mut failure: Option<Failure> = None;
        let mut lost = false;
        loop {
            let read = self.link.receive(|answer| {
                let message = usize::try_from(answer.sequence.wrapping_sub(first)).ok()?;
                let place = message.checked_sub(1);
                let outcome = answer.outcome().filter(|_| message <= count)?;
                if let (Err(refusal), None) = (outcome, &failure) {
                    failure = Some(Failure { place, refusal });
                }
                (message == 0 || message == count).then_some(())
            });
            let ended = match read {
                Ok(ended) => ended.is_some(),
                // More was refused than the receive buffer holds: what it holds is the first.
                Err(refusal) if refusal.errno == Errno::NOBUFS && !lost => {
                    lost = true;
                    false
                }
                Err(refusal) if refusal.errno == Errno::NOMSG && lost => {
                    return Err(failure.unwrap_or_else(|| Refusal::from(Errno::NOBUFS).into()));
                }
                Err(refusal) => return Err(refusal.into()),
            };
            if ended {
                return failure.map_or(Ok(()), Err);
            }
        }
    }
}

fn read_handle(table: Attributes<'_>) -> Option<u64> {
    let bytes = table.find(4)?; // NFTA_TABLE_HANDLE
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
