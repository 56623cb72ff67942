//! A transaction being written down: all of it happens, or nothing.

use super::chain::Chain;
use super::counter::Counter;
use super::element::{Element, encode_list};
use super::listing::Generation;
use super::message;
use super::ranges::AddressRange;
use super::rule::Rule;
use super::set::Set;
use super::{SUBSYSTEM, Table};
use crate::encode::{
    Encoder, Header, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST,
};

/// `NFNL_MSG_BATCH_BEGIN` (linux/netfilter/nfnetlink.h).
const BATCH_BEGIN: u16 = 0x10;
/// `NFNL_MSG_BATCH_END`.
const BATCH_END: u16 = 0x11;
/// How many elements one message holds: a range has 64 bytes, in an attribute which has 16 bits for its length.
const ELEMENTS_PER_MESSAGE: usize = 500;
/// Where the generation is: behind the headers of the first message and of its attribute.
const GENERATION_AT: usize = 16 + 4 + 4;

/// Changes that the kernel makes together, or not at all, in the order in which they are written here. `add_x` is fine
/// when the same is there already, `create_x` fails then; `delete_x` fails when it is not there, `remove_x` does not.
#[derive(Debug, Clone)]
pub struct Batch {
    messages: Encoder,
    /// What each message does, for the error.
    actions: Vec<String>,
    last: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch, which changes nothing.
    pub fn new() -> Self {
        let mut messages = Encoder::default();
        messages.message(bracket(BATCH_BEGIN), |to| {
            to.number32(1, 0); // NFNL_BATCH_GENID: 0 is any
        });
        Self {
            messages,
            actions: Vec::new(),
            last: 0,
        }
    }

    /// The same for the state that was looked at: [`super::Nft::commit`] answers ERESTART, and nothing is changed, when
    /// anybody changed anything since.
    pub fn only_at(mut self, generation: Generation) -> Self {
        self.messages
            .overwrite(GENERATION_AT, &generation.0.to_be_bytes());
        self
    }

    /// True when it would change nothing.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// Adds a table; that it is there is fine.
    pub fn add_table(&mut self, table: Table<'_>) {
        let to = Request(message::NEW_TABLE, NLM_F_CREATE, table);
        self.push(to, format!("add table {table}"), |to| {
            to.text(1, table.name); // NFTA_TABLE_NAME
        });
    }

    /// Adds a table that must not be there yet.
    pub fn create_table(&mut self, table: Table<'_>) {
        let to = Request(message::NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL, table);
        self.push(to, format!("create table {table}"), |to| {
            to.text(1, table.name);
        });
    }

    /// Deletes a table and all that is in it.
    pub fn delete_table(&mut self, table: Table<'_>) {
        let to = Request(message::DELETE_TABLE, 0, table);
        self.push(to, format!("delete table {table}"), |to| {
            to.text(1, table.name);
        });
    }

    /// Deletes a table and all that is in it; that it is not there is fine.
    pub fn remove_table(&mut self, table: Table<'_>) {
        self.add_table(table);
        self.delete_table(table);
    }

    /// Adds a chain; that the same is there is fine.
    pub fn add_chain(&mut self, chain: Chain<'_>) {
        let to = Request(message::NEW_CHAIN, NLM_F_CREATE, chain.table);
        self.push(to, format!("add {chain}"), |to| chain.encode(to));
    }

    /// Adds a chain whose name must not be there yet.
    pub fn create_chain(&mut self, chain: Chain<'_>) {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let to = Request(message::NEW_CHAIN, flags, chain.table);
        self.push(to, format!("create {chain}"), |to| chain.encode(to));
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, chain: Chain<'_>) {
        let to = Request(message::DELETE_RULE, 0, chain.table);
        self.push(to, format!("flush {chain}"), |to| {
            chain.encode_place(to);
        });
    }

    /// Deletes one rule of a chain, known by its handle.
    pub fn delete_rule(&mut self, chain: Chain<'_>, handle: u64) {
        let to = Request(message::DELETE_RULE, 0, chain.table);
        let action = format!("delete rule {handle} from {chain}");
        self.push(to, action, |to| {
            chain.encode_place(to);
            to.number64(3, handle); // NFTA_RULE_HANDLE
        });
    }

    /// Deletes a chain, to which no rule and no element may jump. Its rules go with it.
    pub fn delete_chain(&mut self, chain: Chain<'_>) {
        self.flush_chain(chain);
        let to = Request(message::DELETE_CHAIN, 0, chain.table);
        self.push(to, format!("delete {chain}"), |to| chain.encode_name(to));
    }

    /// Adds a set or a map; that the same is there is fine.
    pub fn add_set(&mut self, set: &Set<'_>) {
        let id = u32::try_from(self.actions.len()).unwrap_or(u32::MAX);
        let to = Request(message::NEW_SET, NLM_F_CREATE, set.table);
        self.push(to, format!("add {set}"), |to| set.encode(to, id));
    }

    /// Adds a set or a map whose name must not be there yet.
    pub fn create_set(&mut self, set: &Set<'_>) {
        let id = u32::try_from(self.actions.len()).unwrap_or(u32::MAX);
        let to = Request(message::NEW_SET, NLM_F_CREATE | NLM_F_EXCL, set.table);
        self.push(to, format!("create {set}"), |to| set.encode(to, id));
    }

    /// Changes nothing, and fails when the set or map is not there.
    pub fn require_set(&mut self, set: &Set<'_>) {
        let id = u32::try_from(self.actions.len()).unwrap_or(u32::MAX);
        let to = Request(message::NEW_SET, 0, set.table);
        self.push(to, format!("require {set}"), |to| set.encode(to, id));
    }

    /// Deletes a set or a map and its elements; no rule may look at it.
    pub fn delete_set(&mut self, set: &Set<'_>) {
        let to = Request(message::DELETE_SET, 0, set.table);
        self.push(to, format!("delete {set}"), |to| set.encode_name(to));
    }

    /// Adds an element; that the same is there is fine, but not one of the same key that leads elsewhere.
    pub fn add_element(&mut self, set: &Set<'_>, element: &Element) {
        let to = Request(message::NEW_ELEMENT, NLM_F_CREATE, set.table);
        self.push(to, at_set("add", element, set), |to| {
            element.encode(to, set);
        });
    }

    /// Adds an element whose key must not be there yet.
    pub fn create_element(&mut self, set: &Set<'_>, element: &Element) {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let to = Request(message::NEW_ELEMENT, flags, set.table);
        self.push(to, at_set("create", element, set), |to| {
            element.encode(to, set);
        });
    }

    /// Deletes an element, known by its key alone.
    pub fn delete_element(&mut self, set: &Set<'_>, element: &Element) {
        let to = Request(message::DELETE_ELEMENT, 0, set.table);
        self.push(to, at_set("delete", element, set), |to| {
            element.encode(to, set);
        });
    }

    /// Deletes an element, known by its key alone; that it is not there is fine. Needs Linux 6.3.
    pub fn remove_element(&mut self, set: &Set<'_>, element: &Element) {
        let to = Request(message::DESTROY_ELEMENT, 0, set.table);
        self.push(to, at_set("remove", element, set), |to| {
            element.encode(to, set);
        });
    }

    /// Adds elements, one message for hundreds of them; that the same are there is fine.
    pub fn add_elements(&mut self, set: &Set<'_>, elements: &[Element]) {
        self.push_all((message::NEW_ELEMENT, NLM_F_CREATE, "add"), set, elements);
    }

    /// Deletes elements, known by their keys alone.
    pub fn delete_elements(&mut self, set: &Set<'_>, elements: &[Element]) {
        self.push_all((message::DELETE_ELEMENT, 0, "delete"), set, elements);
    }

    /// Adds ranges to a set of addresses that may be ranges: one message for hundreds of them. That the same is there is
    /// fine, but not one that overlaps.
    pub fn add_ranges(&mut self, set: &Set<'_>, ranges: &[AddressRange]) {
        for part in ranges.chunks(ELEMENTS_PER_MESSAGE) {
            let part: Vec<_> = part.iter().map(|range| range.element()).collect();
            self.add_elements(set, &part);
        }
    }

    /// Deletes ranges from a set of addresses that may be ranges.
    pub fn delete_ranges(&mut self, set: &Set<'_>, ranges: &[AddressRange]) {
        for part in ranges.chunks(ELEMENTS_PER_MESSAGE) {
            let part: Vec<_> = part.iter().map(|range| range.element()).collect();
            self.delete_elements(set, &part);
        }
    }

    fn push_all(
        &mut self,
        (kind, flags, verb): (u16, u16, &str),
        set: &Set<'_>,
        elements: &[Element],
    ) {
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let action = match part {
                [only] => at_set(verb, only, set),
                [first, ..] => {
                    let more = part.len() - 1;
                    format!("{} and {more} more", at_set(verb, first, set))
                }
                [] => continue,
            };
            self.push(Request(kind, flags, set.table), action, |to| {
                encode_list(to, set, |list| {
                    for element in part {
                        element.encode_into(list, set);
                    }
                });
            });
        }
    }

    /// Adds a counter; that it is there is fine, and then it goes on.
    pub fn add_counter(&mut self, counter: &Counter<'_>) {
        let to = Request(message::NEW_OBJECT, NLM_F_CREATE, counter.table);
        self.push(to, format!("add {counter}"), |to| counter.encode(to));
    }

    /// Deletes a counter, with which no rule may count.
    pub fn delete_counter(&mut self, counter: &Counter<'_>) {
        let to = Request(message::DELETE_OBJECT, 0, counter.table);
        self.push(to, format!("delete {counter}"), |to| {
            counter.encode_name(to);
        });
    }

    /// Adds a rule at the end of its chain.
    pub fn add_rule(&mut self, rule: &Rule<'_>) {
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        let to = Request(message::NEW_RULE, flags, rule.chain.table);
        self.push(to, format!("add rule to {}", rule.chain), |to| {
            rule.encode(to);
        });
    }

    /// Adds a rule before all others of its chain.
    pub fn insert_rule(&mut self, rule: &Rule<'_>) {
        let to = Request(message::NEW_RULE, NLM_F_CREATE, rule.chain.table);
        self.push(to, format!("insert rule into {}", rule.chain), |to| {
            rule.encode(to);
        });
    }

    fn push(&mut self, request: Request<'_>, action: String, body: impl FnOnce(&mut Encoder)) {
        let Request(kind, flags, table) = request;
        let header = Header {
            kind,
            flags: NLM_F_REQUEST | flags,
            family: table.family as u8,
            resource: 0,
        };
        self.last = self.messages.message(header, body);
        self.actions.push(action);
    }

    /// The messages, the first of which begins the batch and has number `sequence`, and what each behind it does.
    ///
    /// The last change alone is acknowledged: the kernel answers in order and always tells what failed.
    pub(super) fn finish(mut self, sequence: u32) -> (Encoder, Vec<String>) {
        self.messages.add_flags(self.last, NLM_F_ACK);
        self.messages.message(bracket(BATCH_END), |_| {});
        self.messages.number(sequence);
        (self.messages, self.actions)
    }
}

/// Kind and flags of a message, and where.
struct Request<'a>(u16, u16, Table<'a>);

fn at_set(verb: &str, element: &Element, set: &Set<'_>) -> String {
    let preposition = match verb {
        "delete" | "remove" => "from",
        _ => "to",
    };
    format!("{verb} element {element} {preposition} {set}")
}

fn bracket(kind: u16) -> Header {
    Header {
        kind,
        flags: NLM_F_REQUEST,
        family: 0,
        resource: SUBSYSTEM,
    }
}
