//! DEL and GC: what an attachment had is given back.
//!
//! Everything is found by the attachment's name: neither the pod's namespace nor a previous result is needed, and what is
//! not there is fine (T24, T26). The link goes before the address, and an address whose link could not be removed is
//! kept: giving it out again while a pod still answers for it is worse than DEL failing, which the runtime repeats.

use std::collections::BTreeSet;

use podspan_kernel::{Link, Netlink};

use crate::addresses::AddressStore;
use crate::attachment::{AttachmentId, IfbMaker, NetworkName};
use crate::bandwidth::{collect_ifbs, find_ifb};
use crate::error::Error;
use crate::ipam::{Ipam, boot_id};

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
    let removed = remove_links(netlink, network, id);
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

/// Detaches every attachment of the network that is not `valid`, and frees what damage left (T29, T30).
///
/// # Errors
/// All that went wrong; it never stops at the first.
pub fn collect_garbage(
    network: &NetworkName,
    valid: &BTreeSet<AttachmentId>,
    store: &AddressStore,
) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let mut lost: BTreeSet<AttachmentId> = attachments(&mut netlink, network)?;
    if let AddressStore::Own(dir) = store {
        // A kill may have come before the host veth had its alias; then only the addresses tell of it.
        let taken = Ipam::of_network(dir, network, &boot_id()?)?.list()?;
        lost.extend(taken.into_iter().filter_map(|taken| taken.owner));
    }
    lost.retain(|id| !valid.contains(id));

    let mut errors = Vec::new();
    let mut keep = valid.clone();
    for id in lost {
        let detached = match store {
            AddressStore::Own(_) => detach(&mut netlink, network, &id, store),
            // It is told once, of all.
            AddressStore::Delegated(_) => store
                .stop_masquerading(network, &id)
                .and_then(|_stopped| remove_links(&mut netlink, network, &id)),
        };
        if let Err(error) = detached {
            errors.push(error);
            keep.insert(id);
        }
    }
    let ifbs = collect_ifbs(&mut netlink, (network, IfbMaker::Attaching), &keep);
    errors.extend(ifbs.err());
    let freed = match store {
        // What is left has no owner: damage.
        AddressStore::Own(dir) => boot_id()
            .and_then(|boot| Ipam::of_network(dir, network, &boot)?.retain(&keep))
            .map_err(Error::Ipam),
        AddressStore::Delegated(delegate) => delegate.tell("GC"),
    };
    errors.extend(freed.err());
    Error::from_all(errors)
}

/// The attachments of the network that have a link, by their aliases.
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

/// The host veth, and the ifb device, which does not go with it. Of somebody else, who took a name of ours, both stay.
fn remove_links(
    netlink: &mut Netlink,
    network: &NetworkName,
    id: &AttachmentId,
) -> Result<(), Error> {
    let host_veth = netlink.find_link(&id.host_veth(network))?;
    let host_veth = host_veth.filter(|link| is_host_veth(link, network, id));
    let ifb = find_ifb(netlink, (network, id), IfbMaker::Attaching)?;
    match (ifb, host_veth) {
        (Some(ifb), Some(host_veth)) => netlink.remove_links(ifb.index, host_veth.index)?,
        (Some(link), None) | (None, Some(link)) => netlink.remove_link(link.index)?,
        (None, None) => {}
    }
    Ok(())
}

/// By its alias, or, when a kill came before the alias was set, by the name alone, which nobody else forms.
fn is_host_veth(link: &Link, network: &NetworkName, id: &AttachmentId) -> bool {
    link.is_veth() && id.may_own(link, network)
}
