//! DEL and GC: what an attachment had is given back.
//!
//! Everything is found by the attachment's name: neither the pod's namespace nor a previous result is needed, and what is
//! not there is fine (T24, T26). The link goes before the address, and an address whose link could not be removed is
//! kept: giving it out again while a pod still answers for it is worse than DEL failing, which the runtime repeats.

use std::collections::BTreeSet;

use podspan_kernel::Link;

use crate::addresses::AddressStore;
use crate::attachment::{AttachmentId, IfbMaker, NetworkName};
use crate::bandwidth::{collect_ifbs, find_ifb};
use crate::error::Error;
use crate::host::Host;
use crate::ipam::{Ipam, boot_id};

/// Removes the attachment's links and frees its addresses.
///
/// # Errors
/// What could not be done, and what a repetition may mend.
pub fn detach(
    host: &mut Host,
    network: &NetworkName,
    id: &AttachmentId,
    store: &AddressStore,
) -> Result<(), Error> {
    let mut errors = disconnect(host, network, id);
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
    let mut host = Host::open()?;
    let mut errors = Vec::new();
    let mut lost: BTreeSet<AttachmentId> = attachments(&mut host, network)?;
    // The link may have gone with the pod's namespace while the filtering stayed.
    match host.filtered(network) {
        Ok(filtered) => lost.extend(
            filtered
                .into_iter()
                .filter(|(id, record)| id.host_veth(network).as_str() == record)
                .map(|(id, _)| id),
        ),
        Err(error) => errors.push(error),
    }
    if let AddressStore::Own(dir) = store {
        // A kill may have come before the host veth had its alias; then only the addresses tell of it.
        let taken = Ipam::of_network(dir, network, &boot_id()?)?.list()?;
        lost.extend(taken.into_iter().filter_map(|taken| taken.owner));
    }
    lost.retain(|id| !valid.contains(id));

    let mut keep = valid.clone();
    for id in lost {
        let detached = match store {
            AddressStore::Own(_) => detach(&mut host, network, &id, store),
            // It is told once, of all.
            AddressStore::Delegated(_) => Error::from_all(disconnect(&mut host, network, &id)),
        };
        if let Err(error) = detached {
            errors.push(error);
            keep.insert(id);
        }
    }
    let ifbs = collect_ifbs(&mut host, (network, IfbMaker::Attaching), &keep);
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
fn attachments(host: &mut Host, network: &NetworkName) -> Result<BTreeSet<AttachmentId>, Error> {
    let aliases = host.list_links()?.into_iter().filter_map(|link| link.alias);
    let named = aliases.filter_map(|alias| AttachmentId::from_alias(&alias));
    Ok(named
        .filter(|(of, _)| of == network)
        .map(|(_, id)| id)
        .collect())
}

/// Takes the attachment's links and its filtering away; gives what failed.
///
/// The filtering goes first: the removal of a link waits for what the kernel then frees, too. The port of the bridge is shut
/// before, so that nothing comes through it that was filtered a moment ago.
fn disconnect(host: &mut Host, network: &NetworkName, id: &AttachmentId) -> Vec<Error> {
    let host_veth = id.host_veth(network);
    let found = host.find_link(&host_veth).map_err(Error::from);
    // One of somebody else, who took a name of ours, stays.
    let link = found.map(|link| link.filter(|link| is_host_veth(link, network, id)));
    if let Ok(Some(
        link @ Link {
            master: Some(_), ..
        },
    )) = &link
    {
        // Where it is down, nothing comes through it.
        let _ = host.shut_port(link.index);
    }
    let filtering = host.remove_filtering(&host_veth);
    // It does not go with the host veth, and GC finds the way here by either.
    let ifb = find_ifb(host, (network, id), IfbMaker::Attaching);
    let (mut errors, mut links) = (Vec::from_iter(filtering.err()), Vec::new());
    for found in [ifb, link] {
        match found {
            Ok(found) => links.extend(found.map(|link| link.index)),
            Err(error) => errors.push(error),
        }
    }
    let removed = match links.as_slice() {
        [ifb, host_veth] => host.remove_links(*ifb, *host_veth),
        [link] => host.remove_link(*link),
        _ => Ok(()),
    };
    errors.extend(removed.err().map(Error::from));
    errors
}

/// By its alias, or, when a kill came before the alias was set, by the name alone, which nobody else forms.
fn is_host_veth(link: &Link, network: &NetworkName, id: &AttachmentId) -> bool {
    link.is_veth() && id.may_own(link, network)
}
