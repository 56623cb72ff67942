//! The kernel's packet filter as the agent looks at it and changes it.
//!
//! A dump of all ranges costs some milliseconds with five thousand nodes. So it is kept as long as nobody's transaction has
//! changed anything, which the kernel tells by a number.

use std::sync::Arc;

use podspan_cni::filter::INET;
use podspan_kernel::Result;
use podspan_kernel::nft::{Generation, Nft, Value};

use super::{
    BASE, CHAIN, INSIDE4, INSIDE6, LINKS, OURS, PODS4, PODS6, RULES, Seen, SeenChain, Transaction,
};

/// The packet filter of the network namespace in which it is first used.
#[derive(Default)]
pub struct PacketFilter {
    nft: Option<Nft>,
    last: Option<(Generation, Arc<Seen>)>,
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
                let seen = Arc::new(observe(nft)?);
                self.last = Some((generation, Arc::clone(&seen)));
                Ok(seen)
            }
        }
    }

    /// Makes all of it, or nothing.
    ///
    /// # Errors
    /// What the kernel refused, and why.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<()> {
        open(&mut self.nft)?.commit(transaction.batch())
    }
}

fn open(nft: &mut Option<Nft>) -> Result<&mut Nft> {
    Ok(match nft {
        Some(open) => open,
        closed => closed.insert(Nft::open()?),
    })
}

fn observe(nft: &mut Nft) -> Result<Seen> {
    let sets = nft.list_sets(INET)?.into_iter().map(|set| set.name);
    let mut seen = Seen {
        sets: sets.filter(|name| name.starts_with(OURS)).collect(),
        chain: observe_chain(nft)?,
        ..Seen::default()
    };
    for set in [PODS4, PODS6] {
        seen.pods.extend(nft.list_ranges(&set)?);
    }
    for set in [INSIDE4, INSIDE6] {
        seen.inside.extend(nft.list_ranges(&set)?);
    }
    if seen.has(&LINKS) {
        for element in nft.list_elements(&LINKS)? {
            match element.key.as_slice() {
                [Value::IfName(name)] => seen.links.push(name.clone()),
                _ => {}
            }
        }
        seen.links.sort();
    }
    Ok(seen)
}

fn observe_chain(nft: &mut Nft) -> Result<SeenChain> {
    let Some(chain) = nft.find_chain(CHAIN)? else {
        return Ok(SeenChain::Absent);
    };
    if !chain.base.is_some_and(|base| base.stands_as(&BASE)) {
        return Ok(SeenChain::Elsewhere);
    }
    let rules = nft.list_rules(CHAIN)?;
    let comments = rules.iter().map(|rule| rule.comment.as_deref());
    Ok(match comments.eq(RULES.map(Some)) {
        true => SeenChain::Right,
        false => SeenChain::Changed,
    })
}
