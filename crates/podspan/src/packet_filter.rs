//! The kernel's packet filter as the agent looks at it and changes it.
//!
//! A dump of all ranges costs some milliseconds with five thousand nodes. So what was seen is kept as long as nobody's
//! transaction has changed anything, which the kernel tells by a number.

use std::sync::Arc;

use podspan_kernel::Result;
use podspan_kernel::nft::{Batch, Generation, News, Nft};

use crate::{forwarding, masquerade};

/// The packet filter of the network namespace in which it is first used.
#[derive(Default)]
pub struct PacketFilter {
    nft: Option<Nft>,
    last: Option<(Generation, Arc<Seen>)>,
}

/// What is there of ours, and what it depends on.
#[derive(Debug, Default)]
pub struct Seen {
    /// Our masquerading.
    pub masquerade: masquerade::Seen,
    /// Where the node drops what it forwards.
    pub forwarding: forwarding::Seen,
}

/// True for what may have changed something that [`Seen`] tells.
pub fn matters(news: &News<'_>) -> bool {
    masquerade::matters(news) || forwarding::matters(news)
}

impl PacketFilter {
    /// What is there.
    ///
    /// # Errors
    /// What the kernel answered; EPROTONOSUPPORT or EOPNOTSUPP from one without nftables.
    pub fn observe(&mut self) -> Result<Arc<Seen>> {
        let nft = open(&mut self.nft)?;
        let generation = nft.generation()?;
        match &self.last {
            Some((of, seen)) if *of == generation => Ok(Arc::clone(seen)),
            _ => {
                let seen = Arc::new(Seen {
                    masquerade: masquerade::observe(nft)?,
                    forwarding: forwarding::observe(nft)?,
                });
                self.last = Some((generation, Arc::clone(&seen)));
                Ok(seen)
            }
        }
    }

    /// Makes all of it, or nothing.
    ///
    /// # Errors
    /// What the kernel refused, and why.
    pub fn commit(&mut self, batch: Batch) -> Result<()> {
        open(&mut self.nft)?.commit(batch)
    }
}

fn open(nft: &mut Option<Nft>) -> Result<&mut Nft> {
    Ok(match nft {
        Some(open) => open,
        closed => closed.insert(Nft::open()?),
    })
}
