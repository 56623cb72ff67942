//! What can go wrong with the store of addresses: [`IpamError`].
//!
//! Every variant names the path it is about, and what would be right where we know it. `error.rs` of the crate alone maps variants
//! to CNI error codes; nobody matches text.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::attachment::AttachmentId;

/// Why the store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IpamError {
    /// The attachment has addresses already: an ADD without the DEL before it.
    Duplicate {
        /// The attachment.
        id: AttachmentId,
        /// What it holds.
        addresses: Vec<IpAddr>,
    },
    /// Every address of a range set is taken.
    Exhausted {
        /// The range set's index.
        set: usize,
        /// How many addresses it has, reserved ones not counted.
        total: u128,
        /// Its ranges, as text.
        ranges: String,
        /// Where the allocations are.
        directory: PathBuf,
    },
    /// An address that was asked for belongs to another attachment.
    Taken {
        /// The address.
        address: IpAddr,
        /// Where the allocations are.
        directory: PathBuf,
    },
    /// Addresses that were asked for and that no range set hands out, or more than one from the same set.
    Unserved {
        /// The addresses.
        addresses: Vec<IpAddr>,
    },
    /// Each candidate was taken by somebody between our look and our link: another program ignores the lock.
    Contended {
        /// Where the allocations are.
        directory: PathBuf,
    },
    /// The attachment's id does not fit into a file name.
    TooLong {
        /// The attachment.
        id: AttachmentId,
        /// How many bytes its file name would have.
        bytes: usize,
    },
    /// The file system has no `O_TMPFILE`, without which no file is complete and exclusive in one step.
    Unsupported {
        /// The directory.
        path: PathBuf,
        /// What the kernel answered.
        errno: Errno,
    },
    /// A system call failed.
    Io {
        /// What we did, as a verb.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the kernel answered.
        errno: Errno,
    },
    /// Several steps failed, and none kept the others from being taken.
    Several(Vec<IpamError>),
}

impl IpamError {
    /// Success for no fault, the fault itself for one, [`IpamError::Several`] for more.
    pub(super) fn gather(mut faults: Vec<Self>) -> Result<(), Self> {
        match faults.pop() {
            None => Ok(()),
            Some(only) if faults.is_empty() => Err(only),
            Some(last) => {
                faults.push(last);
                Err(Self::Several(faults))
            }
        }
    }
}

/// The items with `separator` between them.
fn joined<T: fmt::Display>(items: &[T], separator: &str) -> String {
    let texts: Vec<String> = items.iter().map(T::to_string).collect();
    texts.join(separator)
}

impl fmt::Display for IpamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate { id, addresses } => {
                let addresses = joined(addresses, " and ");
                write!(f, "{id} holds {addresses} already; run DEL first")
            }
            Self::Exhausted {
                set,
                total,
                ranges,
                directory,
            } => write!(
                f,
                "range set {set} ({ranges}) is exhausted: all of its {total} addresses are taken in {}",
                directory.display()
            ),
            Self::Taken { address, directory } => write!(
                f,
                "{address}, which was asked for, is taken: see {}",
                directory.join(address.to_string()).display()
            ),
            Self::Unserved { addresses } => write!(
                f,
                "{}, which was asked for, is in no range of this network, or another of its range set was asked for too",
                joined(addresses, " and ")
            ),
            Self::Contended { directory } => write!(
                f,
                "each address tried was taken at the same moment by a program that ignores {}/lock; try again",
                directory.display()
            ),
            Self::TooLong { id, bytes } => write!(
                f,
                "attachment {id} needs a file name of {bytes} bytes; a file system has room for {}",
                super::directory::NAME_MAX
            ),
            Self::Unsupported { path, errno } => write!(
                f,
                "{} is on a file system without O_TMPFILE ({errno}); put ipam.dataDir on tmpfs, ext4, xfs or btrfs",
                path.display()
            ),
            Self::Io {
                operation,
                path,
                errno,
            } => write!(f, "{operation} {}: {errno}", path.display()),
            Self::Several(faults) => f.write_str(&joined(faults, "; ")),
        }
    }
}

impl std::error::Error for IpamError {}
