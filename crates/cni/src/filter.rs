//! Packet filtering of an attachment: masquerading, host ports and policy, in one transaction.
//!
//! Table `inet podspan` gets its sets, chains and rules with the first attachment that needs them. After that an attachment
//! is elements of plain sets and maps, however many pods there are: never a rule, a chain or an element of a verdict map,
//! for which the kernel would look through all chains of the table again. [`policy`] alone makes these, because an address and
//! what holds for it must come and go together. What an attachment has stands in its record, a set of its own which comes and
//! goes in the same transaction (see [`record`]), so that DEL asks neither a configuration nor an earlier result, and one look
//! tells it that there is nothing to do.
//! Nothing of somebody else's is looked at: rules of ours match our own sets only.
//! A surprise: a socket of netfilter that is closed waits for what anybody deleted a moment ago. It therefore lives as long
//! as the [`crate::host::Host`] that it hangs on, beyond the removal of the link, which waits for the same.

mod masquerade;
pub mod policy;
mod ports;
mod record;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use podspan_kernel::conntrack::Conntrack;
use podspan_kernel::nft::{Batch, Element, Family, Nft, Set, Table};
use podspan_kernel::{Errno, IfName, Netlink};

use crate::attachment::{AttachmentId, MARK, NetworkName};
use crate::error::Error;
pub use ports::{HostPort, HostPorts, lead_to};
use record::Record;

/// All packet filtering of ours is in this table.
pub const INET: Table<'static> = Table {
    family: Family::Inet,
    name: "podspan",
};

/// How often a transaction is tried: others make the tables, or take over what a dead attachment had, at the same time.
const TRIES: usize = 10;

/// Between two looks whether the agent has opened a pod's chains: an agent that is there needs some milliseconds. A look that
/// comes an eighth later than it could is not noticed.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const PART_OF_WAIT: u32 = 8;
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// What one attachment wants.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The name of its record.
    pub record: IfName,
    /// The attachment, as its alias has it.
    pub owner: String,
    /// The link that the attachment lives and dies with; none where nobody knows.
    pub link: Option<IfName>,
    /// The link that leads from the node to the pod: its bridge, or its own; none where nobody knows.
    pub towards: Option<IfName>,
    /// The addresses that leave the network under the node's.
    pub masquerade: Vec<IpAddr>,
    /// The ports of the node that lead to it.
    pub ports: HostPorts,
    /// What others may send it and it may send others.
    pub policy: Option<policy::Subject>,
}

/// An element and where it stands.
type Entry = (&'static Set<'static>, Element);

/// Sets, chains and rules for one concern.
struct Part {
    /// An empty set that is there while the rules are those of this version: its name changes with them, so that an ADD finds
    /// the rules of another version out and lays them anew. The sets keep name and types for ever, or change their name.
    rules: Set<'static>,
    /// Lays everything anew, whatever of it is there.
    lay: fn(&mut Batch),
}

/// What an attachment's wishes come to.
#[derive(Default)]
struct Plan {
    parts: Vec<Part>,
    /// What others need too, and nobody removes: links that lead to pods.
    shared: Vec<Entry>,
    /// What is the attachment's alone.
    own: Vec<Entry>,
    /// The same of chains, all in [`INET`].
    chains: Vec<policy::OwnChain>,
}

impl Wanted {
    /// True for an attachment whose packets are nobody's affair.
    pub fn is_nothing(&self) -> bool {
        self.masquerade.is_empty() && self.ports.list.is_empty() && self.policy.is_none()
    }

    fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        masquerade::plan(self, &mut plan);
        ports::plan(self, &mut plan);
        policy::plan(self, &mut plan);
        for (_, element) in &mut plan.own {
            element.comment = Some(self.record.to_string());
        }
        plan
    }

    /// The owner without the mark that all have.
    fn attachment(&self) -> &str {
        self.owner.strip_prefix(MARK).unwrap_or(&self.owner)
    }
}

impl Plan {
    /// An element of a link that leads to pods: the attachment's own where the link is.
    fn add_link(&mut self, wanted: &Wanted, entry: Entry) {
        match wanted.link == wanted.towards {
            true => self.own.push(entry),
            false => self.shared.push(entry),
        }
    }

    fn batch(&self, wanted: &Wanted, (skeleton, stale): (bool, &Stale)) -> Batch {
        let mut batch = Batch::new();
        stale.delete(&mut batch);
        for part in &self.parts {
            match skeleton {
                true => {
                    batch.add_table(part.rules.table);
                    batch.add_set(&part.rules);
                    (part.lay)(&mut batch);
                }
                false => batch.require_set(&part.rules),
            }
        }
        for (set, element) in &self.shared {
            batch.add_element(set, element);
        }
        record::create(&mut batch, wanted, self);
        for chain in &self.chains {
            chain.create(&mut batch);
        }
        for (set, element) in &self.own {
            batch.create_element(set, element);
        }
        batch
    }
}

/// What is to go: elements, chains of [`INET`], and the records that they stand in.
#[derive(Default)]
struct Stale {
    entries: Vec<Entry>,
    chains: Vec<String>,
    records: Vec<IfName>,
}

impl Stale {
    fn add(&mut self, record: Record) {
        if !self.records.contains(&record.name) {
            self.records.push(record.name);
            self.entries.extend(record.entries);
            self.chains.extend(record.chains);
        }
    }

    fn delete(&self, batch: &mut Batch) {
        for (set, element) in &self.entries {
            batch.delete_element(set, element);
        }
        for name in &self.chains {
            batch.delete_chain(policy::chain(name));
        }
        for name in &self.records {
            batch.delete_set(&record::set(name.as_str()));
        }
    }
}

/// Connections to the kernel's packet filter in the network namespace that they were opened in.
pub struct Filter {
    nft: Nft,
    conntrack: Option<Conntrack>,
}

impl Filter {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// As of [`Nft::open`]; see [`has_no_nftables`].
    pub fn open() -> podspan_kernel::Result<Self> {
        Ok(Self {
            nft: Nft::open()?,
            conntrack: None,
        })
    }

    /// Gives an attachment what it wants, from the next connection on. What stands in the way and belongs to an attachment
    /// whose link is gone, or to nobody, is removed in the same transaction.
    ///
    /// # Errors
    /// [`Error::Taken`] with the owner when a living attachment has one of the host ports; what else the kernel answered.
    /// Nothing is changed then.
    pub fn ensure(&mut self, host: &mut Netlink, wanted: &Wanted) -> Result<(), Error> {
        let plan = wanted.plan();
        if plan.own.is_empty() && plan.chains.is_empty() {
            return Ok(());
        }
        let (mut skeleton, mut stale, mut tries) = (false, Stale::default(), 0);
        while let Err(error) = self.nft.commit(plan.batch(wanted, (skeleton, &stale))) {
            tries += 1;
            let in_the_way = error.is_exists() || !stale.records.is_empty();
            match error {
                error if tries == TRIES => return Err(error.into()),
                error if error.is_not_found() && !skeleton => skeleton = true,
                _ if in_the_way => stale = self.in_the_way(host, (wanted, &plan))?,
                error => return Err(error.into()),
            }
        }
        let mut forgotten = stale.entries;
        if wanted.policy.as_ref().is_some_and(|subject| subject.closed) {
            // What somebody sent when the address was nobody's: the pod's own packets would pass as answers to it.
            forgotten.extend(plan.own.iter().cloned());
        }
        self.forget_policed(&forgotten)?;
        ports::complete(wanted)?;
        self.forget_stale_connections(host, &plan.own)
    }

    /// What keeps an attachment from having what it wants and may be removed: what it had in another life, what a dead
    /// attachment has, and elements without a record.
    fn in_the_way(
        &mut self,
        host: &mut Netlink,
        (wanted, plan): (&Wanted, &Plan),
    ) -> Result<Stale, Error> {
        let mut stale = Stale::default();
        if let Some(record) = self.record(&wanted.record)? {
            stale.add(record);
        }
        for (set, element) in &plan.own {
            let Some(found) = self.nft.find_element(set, element)? else {
                continue;
            };
            let holder = found.comment.as_deref().and_then(|name| name.parse().ok());
            let record = match &holder {
                Some(name) => self.record(name)?,
                None => None,
            };
            let Some(record) = record else {
                stale.entries.push((set, found));
                continue;
            };
            if Some(&wanted.record) != holder.as_ref() {
                let lives = match &record.link {
                    Some(link) => host.find_link(link)?.is_some(),
                    None => true,
                };
                if lives {
                    return Err(self.taken((set, &found), holder));
                }
                stale.add(record);
            }
        }
        self.add_chains_in_the_way(&plan.chains, &mut stale)?;
        self.keep_existing(&mut stale)?;
        Ok(stale)
    }

    /// Chains of the attachment's names that no record tells of, and what leads there: they tell of another pod.
    fn add_chains_in_the_way(
        &mut self,
        chains: &[policy::OwnChain],
        stale: &mut Stale,
    ) -> Result<(), Error> {
        let names: Vec<&str> = chains.iter().map(|chain| chain.name.as_str()).collect();
        for name in &names {
            let is_known = stale.chains.iter().any(|known| known == name);
            if !is_known && self.nft.has_chain(policy::chain(name))? {
                stale.chains.push((*name).to_owned());
            }
        }
        if stale
            .chains
            .iter()
            .any(|chain| names.contains(&chain.as_str()))
        {
            stale
                .entries
                .extend(policy::elements_to(&mut self.nft, &names)?);
        }
        Ok(())
    }

    /// Drops what is not there, or is not its record's, as after somebody else's hand in our tables.
    fn keep_existing(&mut self, stale: &mut Stale) -> Result<(), Error> {
        let mut existing: Vec<Entry> = Vec::new();
        for (set, element) in stale.entries.drain(..) {
            let is_known = existing
                .iter()
                .any(|(at, known)| *at == set && known.key == element.key);
            let found = self.nft.find_element(set, &element)?;
            existing.extend(
                found
                    .filter(|found| !is_known && found.comment == element.comment)
                    .map(|found| (set, found)),
            );
        }
        stale.entries = existing;
        let mut chains: Vec<String> = Vec::new();
        for name in stale.chains.drain(..) {
            if !chains.contains(&name) && self.nft.has_chain(policy::chain(&name))? {
                chains.push(name);
            }
        }
        stale.chains = chains;
        Ok(())
    }

    /// The error for what a living attachment has.
    fn taken(&mut self, (set, element): (&Set<'_>, &Element), holder: Option<IfName>) -> Error {
        let named = self.nft.list_sets(set.table).unwrap_or_default();
        let owner = named
            .into_iter()
            .find(|set| {
                holder
                    .as_ref()
                    .is_some_and(|name| name.as_str() == set.name)
            })
            .and_then(|set| set.comment)
            .unwrap_or_else(|| "another attachment".into());
        let what = ports::describe(set, element).unwrap_or_else(|| format!("{element} in {set}"));
        Error::Taken(format!("{what} is taken by {owner}"))
    }

    /// Removes all that stands in the record of that name; that there is none is fine.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove(&mut self, host: &mut Netlink, record: &IfName) -> Result<(), Error> {
        for attempt in 0..TRIES {
            let Some(found) = self.record(record)? else {
                return Ok(());
            };
            let mut stale = Stale::default();
            stale.add(found);
            if attempt > 0 {
                self.keep_existing(&mut stale)?;
            }
            // Before: who repeats this after a kill finds no record any longer.
            self.forget_policed(&stale.entries)?;
            let mut batch = Batch::new();
            stale.delete(&mut batch);
            match self.nft.commit(batch) {
                Err(error) if error.is_not_found() && attempt + 1 < TRIES => {}
                Err(error) => return Err(error.into()),
                Ok(()) => return self.forget_stale_connections(host, &stale.entries),
            }
        }
        Ok(())
    }

    /// What of it is missing, in words.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn missing(&mut self, wanted: &Wanted) -> Result<Vec<String>, Error> {
        let plan = wanted.plan();
        let mut missing = ports::missing(wanted)?;
        let sets = self.nft.list_sets(INET)?;
        let has = |name: &str| sets.iter().any(|set| set.name == name);
        for part in plan.parts.iter().filter(|part| !has(part.rules.name)) {
            missing.push(format!("the rules of {} are not there", part.rules));
        }
        if !has(wanted.record.as_str()) && !plan.own.is_empty() {
            missing.push(format!(
                "record {} is missing in table {INET}",
                wanted.record
            ));
        }
        for (set, element) in plan.own.iter().chain(&plan.shared) {
            match self.nft.find_element(set, element)? {
                Some(found) if found == *element => {}
                Some(found) => missing.push(format!(
                    "{found} of {} stands in {set} instead of {element}",
                    found.comment.as_deref().unwrap_or("nobody")
                )),
                None => missing.push(
                    masquerade::missing(set, element)
                        .unwrap_or_else(|| format!("{element} is missing in {set}")),
                ),
            }
        }
        for chain in &plan.chains {
            let chain = policy::chain(&chain.name);
            if !self.nft.has_chain(chain)? {
                missing.push(format!("{chain} is missing"));
            }
        }
        Ok(missing)
    }

    /// Waits until the agent has replaced what closes an attachment's chains, by looking at once and then ever more rarely;
    /// false when the time is over first. Chains that are not there are not closed.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn wait_until_open(&mut self, record: &IfName, wait: Duration) -> Result<bool, Error> {
        let (names, begin) = (policy::chains(record), Instant::now());
        let mut is_closed = || match policy::is_closed(&mut self.nft, &names) {
            // Others change the packet filter so often that no look at it was a whole one.
            Err(error) if error.errno() == Errno::INTR => Ok(true),
            outcome => outcome,
        };
        while is_closed()? {
            let waited = begin.elapsed();
            let left = wait.saturating_sub(waited);
            if left.is_zero() {
                return Ok(false);
            }
            let pause = (waited / PART_OF_WAIT).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            std::thread::sleep(pause.min(left));
        }
        Ok(true)
    }

    /// The attachments of a network that have a record, with its name.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn recorded(
        &mut self,
        network: &NetworkName,
    ) -> Result<Vec<(AttachmentId, String)>, Error> {
        let sets = match self.nft.list_sets(INET) {
            // A socket is had of a kernel that has another part of netfilter.
            Err(error) if has_no_nftables(&error) => return Ok(Vec::new()),
            listed => listed?,
        };
        let mut recorded = Vec::new();
        for set in sets {
            let alias = set.comment.map(|owner| format!("{MARK}{owner}"));
            match alias.as_deref().and_then(AttachmentId::from_alias) {
                Some((of, id)) if of == *network => recorded.push((id, set.name)),
                _ => {}
            }
        }
        Ok(recorded)
    }

    /// The record of that name.
    fn record(&mut self, name: &IfName) -> Result<Option<Record>, Error> {
        match self.nft.list_elements(&record::set(name.as_str())) {
            Ok(elements) => Ok(Some(Record::read(name, &elements))),
            Err(error) if error.is_not_found() || has_no_nftables(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What was allowed to the pod that had an address is not to who has it next.
    fn forget_policed(&mut self, entries: &[Entry]) -> Result<(), Error> {
        let ips = policy::addresses(entries);
        if ips.is_empty() {
            return Ok(());
        }
        match self.of_connections(|conntrack| Ok(conntrack.forget(&ips)?)) {
            // It follows connections and does not tell of them (CONFIG_NF_CT_NETLINK): they end by themselves.
            Err(Error::Kernel(error)) if has_no_nftables(&error) => Ok(()),
            outcome => outcome,
        }
    }

    /// Asks the kernel something of connections. A socket is not used again after a failure: the kernel may still be telling
    /// what was asked then, and answers nothing else before.
    fn of_connections<T>(
        &mut self,
        ask: impl FnOnce(&mut Conntrack) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut conntrack = match self.conntrack.take() {
            Some(open) => open,
            None => Conntrack::open()?,
        };
        let answer = ask(&mut conntrack)?;
        self.conntrack = Some(conntrack);
        Ok(answer)
    }

    /// A sender of datagrams with a steady source port would otherwise never see that a host port leads elsewhere now.
    fn forget_stale_connections(
        &mut self,
        host: &mut Netlink,
        entries: &[Entry],
    ) -> Result<(), Error> {
        for mapped in entries.iter().filter_map(ports::datagrams) {
            self.of_connections(|conntrack| ports::forget(conntrack, host, mapped))?;
        }
        Ok(())
    }
}

/// True for the answers of a kernel without nftables: there is nothing of ours then.
pub fn has_no_nftables(error: &podspan_kernel::Error) -> bool {
    matches!(
        error.errno(),
        Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::INVAL
    )
}
