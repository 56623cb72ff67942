//! Who owns which address: the directory `<data_dir>/<network>/`, in the format of host-local.
//!
//! | file | content |
//! |---|---|
//! | `10.244.1.7` | the owner: container id, CR LF, interface name. The truth: who has the file has the address |
//! | `attachments/<container id>:<ifname>` | the attachment's addresses, a line each, so that DEL and CHECK need no walk |
//! | `free.<set>` | which address comes next, see [`queue`](super::queue) |
//! | `boot_id` | the boot that we worked in last; what another boot left is void and removed, see [`past`] |
//! | `adopted` | the directory was host-local's before: there are attachments without a record |
//! | `lock` | locked (flock) by whoever changes any of it, host-local included |
//!
//! An ADD links the record, then the address files, then moves the queue on; a DEL queues the address, removes its file,
//! then the record. So a kill at any point leaves a record behind, through which the next DEL finds all there is; and an
//! address that is free is always in the queue or still before it. No file here may ever be made in two steps.
//!
//! Surprising: address files are never synced. A power loss is another boot, and the state of another boot is void.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::directory::Directory;
use super::error::IpamError;
use super::format::{owner_text, parse_address, parse_owner, parse_record_name, record_name};
use super::queue::{self, Queue};
use super::range::RangeSet;
use crate::attachment::{AttachmentId, NetworkName};
use past::boot_start;

mod past;

/// How often an ADD looks again when a program that ignores the lock was faster.
const ATTEMPTS: usize = 16;

/// A file of any of these names says that host-local has worked here: our own mark, and what it makes itself.
pub(super) const MARKS_OF_HOST_LOCAL: [&str; 2] = ["adopted", "last_reserved_ip.0"];
/// Where the kernel says which boot this is, and as which parameter.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const BOOT_ID_KEY: &str = "kernel/random/boot_id";

/// The identity of the present boot.
///
/// # Errors
/// When procfs does not say.
pub fn boot_id() -> Result<String, IpamError> {
    podspan_kernel::sysctl::read(BOOT_ID_KEY).map_err(|error| IpamError::Io {
        operation: "read",
        path: BOOT_ID.into(),
        errno: error.errno(),
    })
}

/// An address with an address file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taken {
    /// The address.
    pub address: IpAddr,
    /// Whom the file names; none when it is damaged.
    pub owner: Option<AttachmentId>,
}

/// The allocations of one network. Needs no ranges but to allocate, so that DEL works when they are unusable.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
    boot_id: String,
}

/// The directory, under the lock and of the present boot.
struct Locked {
    directory: Directory,
    _lock: OwnedFd,
}

impl Store {
    /// The store of `network` in `data_dir`. Touches no file yet.
    ///
    /// # Errors
    /// When the boot id is empty: it would take a directory of any boot for its own.
    pub fn open(data_dir: &Path, network: &NetworkName, boot_id: &str) -> Result<Self, IpamError> {
        match boot_id.trim() {
            "" => Err(IpamError::Io {
                operation: "read",
                path: BOOT_ID.into(),
                errno: Errno::NODATA,
            }),
            boot_id => Ok(Self {
                path: data_dir.join(network.as_str()),
                boot_id: boot_id.to_owned(),
            }),
        }
    }

    /// Takes one address of each range set for the attachment: all of them, or none. Of a set that hands out one of the
    /// `wanted` addresses it takes that one.
    ///
    /// # Errors
    /// When the attachment has addresses already, when a set is exhausted, when a wanted address is taken or in no set,
    /// when the id is too long, or when the file system fails. What was done is undone.
    pub fn allocate(
        &self,
        sets: &[RangeSet],
        id: &AttachmentId,
        wanted: &[IpAddr],
    ) -> Result<Vec<IpAddr>, IpamError> {
        let name = record_name(id)?;
        let fixed = fixed(sets, wanted)?;
        let locked = self.enter_ensured()?;
        let record = locked.record(id)?;
        let held = locked.addresses_of(id, &record)?;
        if !held.is_empty() {
            return Err(IpamError::Duplicate {
                id: id.clone(),
                addresses: held,
            });
        }
        if record == Record::Unsound {
            // No address file bears it out, so it stands in nobody's way.
            locked.directory.remove(&name)?;
        }
        for _ in 0..ATTEMPTS {
            let mut queues = locked.queues(sets)?;
            let mut candidates = Vec::with_capacity(sets.len());
            for (queue, fixed) in queues.iter_mut().zip(&fixed) {
                candidates.push(match fixed {
                    Some(ip) => locked.require_free(*ip)?,
                    None => locked.candidate(queue)?,
                });
            }
            if locked.take(&name, id, &candidates)? {
                let mut passed = queues
                    .iter_mut()
                    .zip(&fixed)
                    .filter(|(_, fixed)| fixed.is_none());
                let advanced = passed.try_for_each(|(queue, _)| queue.advance());
                return match advanced {
                    Ok(()) => Ok(candidates),
                    Err(fault) => locked.give_up(id, fault),
                };
            }
        }
        Err(locked.contended())
    }

    /// Frees all addresses of the attachment. Nothing there is success; a failure does not stop the rest.
    ///
    /// # Errors
    /// When the file system fails; says everything that failed. What could not be freed stays on record for the next try.
    pub fn release(&self, id: &AttachmentId) -> Result<(), IpamError> {
        match self.enter_existing()? {
            Some(locked) => locked.release(id),
            None => Ok(()),
        }
    }

    /// The addresses whose files name the attachment, in the order of the range sets.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn find(&self, id: &AttachmentId) -> Result<Vec<IpAddr>, IpamError> {
        let Some(locked) = self.enter_existing()? else {
            return Ok(Vec::new());
        };
        let mut addresses = locked.addresses_of(id, &locked.record(id)?)?;
        let mut faults = Vec::new();
        addresses.retain(|&ip| match locked.owner(ip) {
            Ok(owner) => owner == Owner::Attachment(id.clone()),
            Err(fault) => {
                faults.push(fault);
                false
            }
        });
        IpamError::gather(faults).map(|()| addresses)
    }

    /// All addresses that are taken, by address. Costs as much as there are.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn list(&self) -> Result<Vec<Taken>, IpamError> {
        match self.enter_existing()? {
            Some(locked) => locked.list(),
            None => Ok(Vec::new()),
        }
    }

    /// Success means that an ADD finds an address in each range set. Costs the same however full it is.
    ///
    /// # Errors
    /// When a set is exhausted, or when the file system fails.
    pub fn status(&self, sets: &[RangeSet]) -> Result<(), IpamError> {
        let locked = self.enter_ensured()?;
        for mut queue in locked.queues(sets)? {
            locked.candidate(&mut queue)?;
        }
        Ok(())
    }

    /// Frees the addresses of all attachments but the `valid` ones, and damaged files that no valid attachment has on
    /// record. A failure does not stop the rest. Costs as much as there are allocations.
    ///
    /// # Errors
    /// When the file system fails; says everything that failed.
    pub fn retain(&self, valid: &BTreeSet<AttachmentId>) -> Result<(), IpamError> {
        match self.enter_existing()? {
            Some(locked) => locked.retain(valid),
            None => Ok(()),
        }
    }

    /// The directory under the lock; none when there is no directory.
    fn enter_existing(&self) -> Result<Option<Locked>, IpamError> {
        Directory::open(&self.path)?
            .map(|directory| self.enter(directory))
            .transpose()
    }

    /// The directory under the lock, made where it is missing.
    fn enter_ensured(&self) -> Result<Locked, IpamError> {
        self.enter(Directory::ensure(&self.path)?)
    }

    /// Takes the lock and sees to it that what is in the directory is of this boot.
    fn enter(&self, directory: Directory) -> Result<Locked, IpamError> {
        let lock = directory.lock()?;
        let locked = Locked {
            directory,
            _lock: lock,
        };
        let written = locked.directory.read("boot_id")?.unwrap_or_default();
        match written.trim() {
            same if same == self.boot_id => return Ok(locked),
            // No boot id is not another boot: the directory is new, it was host-local's, or the file is damaged. To take
            // that for another boot would give the addresses of living pods to others.
            none if none.len() != self.boot_id.len() => locked.adopt()?,
            _ => locked.void(boot_start())?,
        }
        locked.directory.ensure_inner("attachments")?;
        // Last, so that a kill before it repeats the rest.
        let boot_id = format!("{}\n", self.boot_id);
        locked.directory.replace("boot_id", boot_id.as_bytes())?;
        Ok(locked)
    }
}

/// For each set the wanted address that it hands out.
fn fixed(sets: &[RangeSet], wanted: &[IpAddr]) -> Result<Vec<Option<IpAddr>>, IpamError> {
    let mut unserved = wanted.to_vec();
    let fixed = sets.iter().map(|set| {
        let served = |ip: &IpAddr| set.0.iter().any(|range| range.hands_out(*ip));
        unserved
            .iter()
            .position(served)
            .map(|at| unserved.remove(at))
    });
    let fixed = fixed.collect();
    match unserved.is_empty() {
        true => Ok(fixed),
        false => Err(IpamError::Unserved {
            addresses: unserved,
        }),
    }
}

/// What an address file says.
#[derive(Debug, PartialEq, Eq)]
enum Owner {
    /// There is no file: the address is free.
    Nobody,
    /// The file names an attachment.
    Attachment(AttachmentId),
    /// The file is empty or damaged: the address is taken, and only a record or GC frees it.
    Unknown,
}

/// What an attachment's record says.
#[derive(Debug, PartialEq, Eq)]
enum Record {
    /// There is none.
    Absent,
    /// It is empty or damaged.
    Unsound,
    /// The attachment's addresses, in the order of the range sets.
    Sound(Vec<IpAddr>),
}

impl Locked {
    fn queues<'a>(&'a self, sets: &'a [RangeSet]) -> Result<Vec<Queue<'a>>, IpamError> {
        let indexed = sets.iter().enumerate();
        indexed
            .map(|(index, set)| Queue::open(&self.directory, index, set))
            .collect()
    }

    /// The next address that nobody has. The queue does not hear of all that is freed: host-local does not tell it, and
    /// its file may be damaged. Before a set counts as exhausted, its address files are counted.
    fn candidate(&self, queue: &mut Queue<'_>) -> Result<IpAddr, IpamError> {
        let mut found = queue.peek()?;
        if found.is_none() && self.taken_of(queue.set())? < queue.set().total() {
            queue.begin_lap();
            found = queue.peek()?;
        }
        found.ok_or_else(|| queue.exhausted())
    }

    /// How many addresses of the set have a file. Costs as much as there are files.
    fn taken_of(&self, set: &RangeSet) -> Result<u128, IpamError> {
        let addresses = self.addresses()?.into_iter();
        let of_set = addresses.filter(|ip| set.range_of(*ip).is_some());
        Ok(of_set.count() as u128)
    }

    /// The address, when nobody has it.
    fn require_free(&self, address: IpAddr) -> Result<IpAddr, IpamError> {
        match self.directory.holds(&address.to_string())? {
            false => Ok(address),
            true => Err(IpamError::Taken {
                address,
                directory: self.directory.path().to_owned(),
            }),
        }
    }

    /// Links the record, then the address files. False, with everything undone, when somebody took one meanwhile.
    fn take(
        &self,
        record: &str,
        id: &AttachmentId,
        addresses: &[IpAddr],
    ) -> Result<bool, IpamError> {
        let lines: String = addresses.iter().map(|ip| format!("{ip}\n")).collect();
        let owner = owner_text(id);
        let names = addresses.iter().map(|ip| (ip.to_string(), owner.as_str()));
        let mut linked = Vec::new();
        for (name, content) in std::iter::once((record.to_owned(), lines.as_str())).chain(names) {
            match self.directory.link_new(&name, content) {
                Ok(true) => linked.push(name),
                failed => {
                    let mut faults: Vec<IpamError> = failed.err().into_iter().collect();
                    let undone = linked.iter().rev().map(|name| self.directory.remove(name));
                    faults.extend(undone.filter_map(Result::err));
                    return IpamError::gather(faults).map(|()| false);
                }
            }
        }
        Ok(true)
    }

    /// Undoes an allocation whose addresses some queue has passed already.
    fn give_up<T>(&self, id: &AttachmentId, fault: IpamError) -> Result<T, IpamError> {
        Err(match self.release(id) {
            Ok(()) => fault,
            Err(second) => IpamError::Several(vec![fault, second]),
        })
    }

    /// The addresses that are the attachment's to free, and what failed on the way.
    fn held(&self, id: &AttachmentId) -> Result<(Vec<IpAddr>, Vec<IpamError>), IpamError> {
        let record = self.record(id)?;
        let mut held = Vec::new();
        let mut faults = Vec::new();
        for ip in self.addresses_of(id, &record)? {
            match self.owner(ip) {
                Ok(Owner::Attachment(owner)) if owner == *id => held.push(ip),
                // Only an atomic link can have put it there, so the record proves whose it was before the damage.
                Ok(Owner::Unknown) if matches!(record, Record::Sound(_)) => held.push(ip),
                Ok(_) => {}
                Err(fault) => faults.push(fault),
            }
        }
        Ok((held, faults))
    }

    fn release(&self, id: &AttachmentId) -> Result<(), IpamError> {
        let (held, mut faults) = self.held(id)?;
        for ip in held {
            faults.extend(self.free(ip).err());
        }
        if faults.is_empty()
            && let Ok(record) = record_name(id)
        {
            faults.extend(self.directory.remove(&record).err());
        }
        IpamError::gather(faults)
    }

    /// Queues the address, then removes its file: between the two it is taken still, and not lost.
    fn free(&self, ip: IpAddr) -> Result<(), IpamError> {
        queue::append(&self.directory, ip)?;
        self.directory.remove(&ip.to_string())
    }

    fn retain(&self, valid: &BTreeSet<AttachmentId>) -> Result<(), IpamError> {
        let mut faults = Vec::new();
        let mut proven = BTreeSet::new();
        // A valid attachment's unsound record may be of any damaged file; then GC leaves those to its DEL.
        let mut in_doubt = false;
        let records = self.directory.names("attachments")?;
        for id in records.iter().filter_map(|name| parse_record_name(name)) {
            if !valid.contains(&id) {
                faults.extend(self.release(&id).err());
                continue;
            }
            match self.record(&id) {
                Ok(Record::Sound(addresses)) => proven.extend(addresses),
                unsound => {
                    in_doubt = true;
                    faults.extend(unsound.err());
                }
            }
        }
        for ip in self.addresses()? {
            let freed = self.owner(ip).and_then(|owner| match owner {
                Owner::Attachment(id) if !valid.contains(&id) => self.free(ip),
                Owner::Unknown if !in_doubt && !proven.contains(&ip) => self.free(ip),
                _ => Ok(()),
            });
            faults.extend(freed.err());
        }
        IpamError::gather(faults)
    }

    /// The addresses of the attachment: on record; or, where there may be allocations that no sound record tells of, by
    /// walking the address files.
    fn addresses_of(&self, id: &AttachmentId, record: &Record) -> Result<Vec<IpAddr>, IpamError> {
        match record {
            Record::Sound(addresses) => return Ok(addresses.clone()),
            Record::Absent if !self.is_shared()? => return Ok(Vec::new()),
            Record::Absent | Record::Unsound => {}
        }
        let mut taken = self.list()?;
        taken.retain(|taken| taken.owner.as_ref() == Some(id));
        Ok(taken.into_iter().map(|taken| taken.address).collect())
    }

    fn record(&self, id: &AttachmentId) -> Result<Record, IpamError> {
        // What is too long for a name has no record; host-local may know it all the same.
        let Ok(name) = record_name(id) else {
            return Ok(Record::Absent);
        };
        let Some(text) = self.directory.read(&name)? else {
            return Ok(Record::Absent);
        };
        let addresses: Result<Vec<IpAddr>, _> = text.lines().map(str::parse).collect();
        Ok(match addresses {
            Ok(addresses) if !addresses.is_empty() => Record::Sound(addresses),
            _ => Record::Unsound,
        })
    }

    fn owner(&self, ip: IpAddr) -> Result<Owner, IpamError> {
        Ok(match self.directory.read(&ip.to_string())? {
            None => Owner::Nobody,
            Some(text) => parse_owner(&text).map_or(Owner::Unknown, Owner::Attachment),
        })
    }

    /// All addresses that have a file, in order.
    fn addresses(&self) -> Result<Vec<IpAddr>, IpamError> {
        let names = self.directory.names("")?;
        let mut addresses: Vec<IpAddr> = names
            .iter()
            .filter_map(|name| parse_address(name))
            .collect();
        addresses.sort();
        Ok(addresses)
    }

    fn list(&self) -> Result<Vec<Taken>, IpamError> {
        let mut taken = Vec::new();
        for address in self.addresses()? {
            let owner = match self.owner(address)? {
                Owner::Nobody => continue,
                Owner::Attachment(id) => Some(id),
                Owner::Unknown => None,
            };
            taken.push(Taken { address, owner });
        }
        Ok(taken)
    }

    /// True where host-local has worked in this boot: it keeps no records, and frees without telling the queue.
    fn is_shared(&self) -> Result<bool, IpamError> {
        for name in MARKS_OF_HOST_LOCAL {
            if self.directory.holds(name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Marks a directory that holds allocations of host-local. They all stay as they are.
    fn adopt(&self) -> Result<(), IpamError> {
        let of_host_local =
            |name: &String| parse_address(name).is_some() || name.starts_with("last_reserved_ip.");
        if self.directory.names("")?.iter().any(of_host_local) {
            self.directory.link_new("adopted", "host-local\n")?;
        }
        Ok(())
    }

    fn contended(&self) -> IpamError {
        IpamError::Contended {
            directory: self.directory.path().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
