//! IPAM: one address of each range set for an attachment, kept until DEL or GC. Serves the block of host-local.
//!
//! The rooms behind: [`range`] reads the configuration (pure), [`store`] knows who owns which address, `queue` which one
//! comes next, `directory` makes files in one step. Nothing here knows links, namespaces or the CNI protocol, and nothing
//! waits for anything but the lock.
//! Surprising: DEL wants a [`Store`], not an [`Ipam`], because it must free addresses when the ranges have become unusable.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use crate::attachment::{AttachmentId, NetworkName};

mod directory;
mod error;
mod format;
mod queue;
pub mod range;
pub mod resolv_conf;
pub mod store;

pub(crate) use directory::Directory;
pub use error::IpamError;
pub use range::{IpamConfig, IpamRoute, Range, RangeSet, data_dir};
pub use resolv_conf::Dns;
pub use store::{Store, Taken, boot_id};

/// The addresses of one network, by a valid configuration.
#[derive(Debug, Clone)]
pub struct Ipam {
    range_sets: Vec<RangeSet>,
    store: Store,
}

/// An address given to an attachment, kept until DEL or GC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The address, with the prefix length of its subnet.
    pub address: IpNet,
    /// The gateway of its range.
    pub gateway: IpAddr,
}

impl Ipam {
    /// The addresses of `network` in the boot that [`boot_id`] names. Touches no file yet.
    ///
    /// # Errors
    /// When the boot id is empty.
    pub fn open(
        config: &IpamConfig,
        network: &NetworkName,
        boot_id: &str,
    ) -> Result<Self, IpamError> {
        Ok(Self {
            range_sets: config.range_sets.clone(),
            store: Self::of_network(&config.data_dir, network, boot_id)?,
        })
    }

    /// The allocations of `network`, without a range to allocate from: for DEL and GC, however broken the ranges are.
    ///
    /// # Errors
    /// When the boot id is empty.
    pub fn of_network(
        data_dir: &Path,
        network: &NetworkName,
        boot_id: &str,
    ) -> Result<Store, IpamError> {
        Store::open(data_dir, network, boot_id)
    }

    /// True where host-local works in the directory of a network, or has before. Takes no lock, and fails never.
    pub fn may_be_adopted(directory: &Path) -> bool {
        store::MARKS_OF_HOST_LOCAL
            .iter()
            .any(|name| directory.join(name).exists())
    }

    /// Takes one address of each range set, in their order: all of them, or none.
    ///
    /// # Errors
    /// See [`Store::allocate`].
    pub fn allocate(&self, id: &AttachmentId) -> Result<Vec<Allocation>, IpamError> {
        self.allocate_wanted(id, &[])
    }

    /// The same, with the wanted addresses from the sets that hold them.
    ///
    /// # Errors
    /// See [`Store::allocate`].
    pub fn allocate_wanted(
        &self,
        id: &AttachmentId,
        wanted: &[IpAddr],
    ) -> Result<Vec<Allocation>, IpamError> {
        let addresses = self.store.allocate(&self.range_sets, id, wanted)?;
        let allocation = |(ip, set): (IpAddr, &RangeSet)| {
            let range = set.range_of(ip)?;
            let address = IpNet::new(ip, range.subnet.length()).ok()?;
            Some(Allocation {
                address,
                gateway: range.gateway,
            })
        };
        let with_sets = addresses.into_iter().zip(&self.range_sets);
        // An address comes from its set, so that none is dropped here.
        Ok(with_sets.filter_map(allocation).collect())
    }

    /// Frees all addresses of the attachment; see [`Store::release`].
    ///
    /// # Errors
    /// When the file system fails.
    pub fn release(&self, id: &AttachmentId) -> Result<(), IpamError> {
        self.store.release(id)
    }

    /// The addresses of the attachment, also those outside the present ranges; see [`Store::find`].
    ///
    /// # Errors
    /// When the file system fails.
    pub fn find(&self, id: &AttachmentId) -> Result<Vec<IpAddr>, IpamError> {
        self.store.find(id)
    }

    /// All addresses that are taken; see [`Store::list`].
    ///
    /// # Errors
    /// When the file system fails.
    pub fn list(&self) -> Result<Vec<Taken>, IpamError> {
        self.store.list()
    }

    /// Success means that an ADD finds an address in each range set; see [`Store::status`].
    ///
    /// # Errors
    /// When a set is exhausted, or when the file system fails.
    pub fn status(&self) -> Result<(), IpamError> {
        self.store.status(&self.range_sets)
    }

    /// Frees the addresses of all attachments but the `valid` ones; see [`Store::retain`].
    ///
    /// # Errors
    /// When the file system fails.
    pub fn retain(&self, valid: &BTreeSet<AttachmentId>) -> Result<(), IpamError> {
        self.store.retain(valid)
    }
}
