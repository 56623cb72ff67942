//! DEL and GC: what an attachment had is given back.
//!
//! Everything is found by the attachment's name: neither the pod's namespace nor a previous result is needed, and what is
//! not there is fine (T24, T26). The link goes before the address, and an address whose link could not be removed is
//! kept: giving it out again while a pod still answers for it is worse than DEL failing, which the runtime repeats.

use std::collections::BTreeSet;

use podspan_kernel::{Link, Netlink};

use crate::addresses::AddressStore;
use crate::attachment::{AttachmentId, NetworkName};
use crate::error::Error;
use crate::ipam::{Ipam, boot_id};
use crate::masquerade::stop_all_but;

/// Removes the attachment's links and frees its addresses.
///
/// # Errors
/// What could not be done, and what a repetition may mend.
pub fn detach(
    netlink: &mut Netlink,
    network: &NetworkName,
    id: &AttachmentId,
    store: &AddressStore,
) -> Result<(), Error> {
    let stopped = store.stop_masquerading(network, id);
    let removed = remove_host_veth(netlink, network, id);
    let mut errors: Vec<_> = [stopped.err(), removed.err()]
        .into_iter()
        .flatten()
        .collect();
    // The delegate's affair is its own: it hears of every DEL (T27).
    if errors.is_empty() || matches!(store, AddressStore::Delegated(_)) {
        errors.extend(store.give_back(network, id).err());
    }
    Error::from_all(errors)
}

/// Undoes an ADD, whose thread may be in the pod's network namespace by now: what masquerades is reached from the node's only.
///
/// # Errors
/// That the way back is closed, and nothing was undone; else as [`detach`]. The DEL that follows does the same.
pub fn undo(
    netlink: &mut Netlink,
    network: &NetworkName,
    id: &AttachmentId,
    store: &AddressStore,
) -> Result<(), Error> {
    netlink.netns()?.enter()?;
    detach(netlink, network, id, store)
}

/// Detaches every attachment of the network that is not `valid`, and frees what damage left (T29, T30).
///
/// # Errors
/// All that went wrong; it never stops at the first.
pub fn collect_garbage(
    network: &NetworkName,
    valid: &BTreeSet<AttachmentId>,
    store: &AddressStore,
) -> Result<(), Error> {
    let mut errors = Vec::new();
    let mut keep = valid.clone();
    let detached = detach_all_but(&mut keep, (network, store), &mut errors);
    let freed = match (store, detached) {
        // What is left has no owner: damage. Its masquerading goes first.
        (AddressStore::Own(dir), Ok(())) => stop_all_but(network, &keep).and_then(|_stopped| {
            let freed =
                boot_id().and_then(|boot| Ipam::of_network(dir, network, &boot)?.retain(&keep));
            freed.map_err(Error::Ipam)
        }),
        // It is not known which addresses are still some link's.
        (AddressStore::Own(_), Err(error)) => Err(error),
        // The delegate's affair is its own: it hears of every GC.
        (AddressStore::Delegated(delegate), detached) => {
            errors.extend(detached.err());
            errors.extend(stop_all_but(network, &keep).err());
            delegate.tell("GC")
        }
    };
    errors.extend(freed.err());
    Error::from_all(errors)
}

/// Detaches all attachments but those; what could not be detached joins them, and `errors` tell why.
///
/// # Errors
/// When it is not known which attachments there are.
fn detach_all_but(
    keep: &mut BTreeSet<AttachmentId>,
    (network, store): (&NetworkName, &AddressStore),
    errors: &mut Vec<Error>,
) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let mut lost: BTreeSet<AttachmentId> = attachments(&mut netlink, network)?;
    if let AddressStore::Own(dir) = store {
        // A kill may have come before the host veth had its alias; then only the addresses tell of it.
        let taken = Ipam::of_network(dir, network, &boot_id()?)?.list()?;
        lost.extend(taken.into_iter().filter_map(|taken| taken.owner));
    }
    lost.retain(|id| !keep.contains(id));
    for id in lost {
        let detached = match store {
            AddressStore::Own(_) => detach(&mut netlink, network, &id, store),
            // It is told once, of all.
            AddressStore::Delegated(_) => store
                .stop_masquerading(network, &id)
                .and_then(|_stopped| remove_host_veth(&mut netlink, network, &id)),
        };
        if let Err(error) = detached {
            errors.push(error);
            keep.insert(id);
        }
    }
    Ok(())
}

/// The attachments of the network that have a host veth, by their aliases.
fn attachments(
    netlink: &mut Netlink,
    network: &NetworkName,
) -> Result<BTreeSet<AttachmentId>, Error> {
    let aliases = netlink
        .list_links()?
        .into_iter()
        .filter_map(|link| link.alias);
    let named = aliases.filter_map(|alias| AttachmentId::from_alias(&alias));
    Ok(named
        .filter(|(of, _)| of == network)
        .map(|(_, id)| id)
        .collect())
}

fn remove_host_veth(
    netlink: &mut Netlink,
    network: &NetworkName,
    id: &AttachmentId,
) -> Result<(), Error> {
    match netlink.find_link(&id.host_veth(network))? {
        Some(link) if is_host_veth(&link, network, id) => Ok(netlink.remove_link(link.index)?),
        // Of somebody else, who took a name of ours: it stays.
        Some(_) | None => Ok(()),
    }
}

/// By its alias, or, when a kill came before the alias was set, by the name alone, which nobody else forms.
fn is_host_veth(link: &Link, network: &NetworkName, id: &AttachmentId) -> bool {
    let named = link.alias.as_deref().map(AttachmentId::from_alias);
    link.is_veth() && named.is_none_or(|named| named == Some((network.clone(), id.clone())))
}
