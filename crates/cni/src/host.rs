//! The node's side of an attachment: what the plugin reaches the node's kernel by.
//!
//! Sockets belong to the network namespace that they were opened in, and the plugin leaves the node's for the pod's: all that
//! the way back needs is opened before. Packet filtering is reached only when there is something to filter; a kernel without it
//! has nothing of ours. Where nothing was filtered on the way there, a look on the way back finds nothing, wherever it is.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use podspan_kernel::{IfName, Netlink};

use crate::attachment::{AttachmentId, NetworkName};
use crate::error::Error;
use crate::filter::{Filter, Wanted, has_no_nftables};

/// The node, in whose network namespace it was opened. It is its links' [`Netlink`], too.
pub struct Host {
    netlink: Netlink,
    filter: Option<Filter>,
}

impl Host {
    /// Opens the node that the calling thread is in.
    ///
    /// # Errors
    /// As of [`Netlink::open`].
    pub fn open() -> Result<Self, Error> {
        Ok(Self {
            netlink: Netlink::open()?,
            filter: None,
        })
    }

    /// Filters for an attachment as it wants; see [`Filter::ensure`].
    ///
    /// # Errors
    /// As there.
    pub fn ensure_filtering(&mut self, wanted: &Wanted) -> Result<(), Error> {
        if wanted.is_nothing() {
            return Ok(());
        }
        open(&mut self.filter)?.ensure(&mut self.netlink, wanted)
    }

    /// Ends the filtering that stands in the record of that name.
    ///
    /// # Errors
    /// As of [`Filter::remove`].
    pub fn remove_filtering(&mut self, record: &IfName) -> Result<(), Error> {
        match open(&mut self.filter) {
            Ok(filter) => filter.remove(&mut self.netlink, record),
            Err(error) if has_no_nftables(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// What is missing of what an attachment wants, in words.
    ///
    /// # Errors
    /// As of [`Filter::missing`].
    pub fn missing_filtering(&mut self, wanted: &Wanted) -> Result<Vec<String>, Error> {
        match wanted.is_nothing() {
            true => Ok(Vec::new()),
            false => open(&mut self.filter)?.missing(wanted),
        }
    }

    /// Waits until an attachment passes something, as [`Filter::wait_until_open`].
    ///
    /// # Errors
    /// As there.
    pub fn wait_until_open(&mut self, record: &IfName, wait: Duration) -> Result<bool, Error> {
        open(&mut self.filter)?.wait_until_open(record, wait)
    }

    /// The attachments of a network whose packets are filtered, with the names of their records.
    ///
    /// # Errors
    /// As of [`Filter::recorded`].
    pub fn filtered(
        &mut self,
        network: &NetworkName,
    ) -> Result<Vec<(AttachmentId, String)>, Error> {
        match open(&mut self.filter) {
            Ok(filter) => filter.recorded(network),
            Err(error) if has_no_nftables(&error) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

fn open(filter: &mut Option<Filter>) -> podspan_kernel::Result<&mut Filter> {
    Ok(match filter {
        Some(open) => open,
        closed => closed.insert(Filter::open()?),
    })
}

impl Deref for Host {
    type Target = Netlink;

    fn deref(&self) -> &Netlink {
        &self.netlink
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut Netlink {
        &mut self.netlink
    }
}
