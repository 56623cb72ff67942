//! DEL and GC: what an attachment had is given back.
//!
//! Everything is found by the attachment's name: neither the pod's namespace nor a previous result is needed, and what is
//! not there is fine (T24, T26). The link goes before the address, and an address whose link could not be removed is
//! kept: giving it out again while a pod still answers for it is worse than DEL failing, which the runtime repeats.

use std::collections::BTreeSet;
use std::path::PathBuf;

use podspan_kernel::{Address, Link, Netlink, Netns};

use crate::addresses::AddressStore;
use crate::attachment::{AttachmentId, IfbMaker, NetworkName};
use crate::bandwidth::{collect_ifbs, find_ifb};
use crate::error::Error;
use crate::host::Host;
use crate::ipam::{Ipam, boot_id};
use crate::request::PodRequest;

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
    let errors = disconnect(host, network, id);
    give_back((network, id), store, errors)
}

/// The same by a DEL, whose attachment another plugin may have made.
///
/// # Errors
/// As of [`detach`].
pub fn detach_pod(
    host: &mut Host,
    (network, pod): (&NetworkName, &PodRequest<Option<PathBuf>>),
    store: &AddressStore,
) -> Result<(), Error> {
    let mut errors = Vec::new();
    if store.may_be_adopted(network) {
        errors.extend(remove_adopted_link(host, network, pod, store).err());
    }
    errors.extend(disconnect(host, network, &pod.attachment));
    give_back((network, &pod.attachment), store, errors)
}

/// Frees the addresses, unless it failed that no link has them any longer.
fn give_back(
    (network, id): (&NetworkName, &AttachmentId),
    store: &AddressStore,
    mut errors: Vec<Error>,
) -> Result<(), Error> {
    // The delegate's affair is its own: it hears of every DEL (T27).
    if errors.is_empty() || matches!(store, AddressStore::Delegated(_)) {
        errors.extend(store.give_back(network, id).err());
    }
    Error::from_all(errors)
}

/// Removes the veth pair of an attachment that another plugin made, whose directory of addresses this network goes on with.
///
/// Its host veth bears neither our name nor our mark; but the address is the attachment's on record, so that the interface of
/// that name in the pod's namespace, if it has the address, is what it was given for. With the namespace the pair has gone by
/// itself.
///
/// # Errors
/// What the kernel or the file system answered: the address is then kept.
fn remove_adopted_link(
    host: &mut Host,
    network: &NetworkName,
    pod: &PodRequest<Option<PathBuf>>,
    store: &AddressStore,
) -> Result<(), Error> {
    let AddressStore::Own(dir) = store else {
        return Ok(());
    };
    let Some(Ok(netns)) = pod.netns.as_ref().map(Netns::open) else {
        return Ok(());
    };
    let (id, node) = (&pod.attachment, host.netns()?);
    if netns.is_same(&node)? || host.find_link(&id.host_veth(network))?.is_some() {
        return Ok(());
    }
    let addresses = Ipam::of_network(dir, network, &boot_id()?)?.find(id)?;
    if addresses.is_empty() {
        return Ok(());
    }
    // A socket belongs to the namespace that it was opened in; everything that follows is the node's.
    netns.enter()?;
    let inside = Netlink::open();
    node.enter()?;
    let mut inside = inside?;
    let Some(link) = inside.find_link(&id.ifname)?.filter(Link::is_veth) else {
        return Ok(());
    };
    // The path may lead to another pod by now, and this be its link (T26).
    let has = |seen: &Address| seen.link == link.index && addresses.contains(&seen.net.addr());
    match inside.list_addresses()?.iter().any(has) {
        true => Ok(inside.remove_link(link.index)?),
        false => Ok(()),
    }
}

/// Undoes an ADD, whose thread may be in the pod's network namespace by now: what filters is reached from the node's only, and
/// a delegate runs there.
///
/// # Errors
/// That the way back is closed, and nothing was undone; else as [`detach`]. The DEL that follows does the same.
pub fn undo(
    host: &mut Host,
    network: &NetworkName,
    id: &AttachmentId,
    store: &AddressStore,
) -> Result<(), Error> {
    host.netns()?.enter()?;
    detach(host, network, id, store)
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
        // What is left has no owner: damage.
        (AddressStore::Own(dir), Ok(())) => boot_id()
            .and_then(|boot| Ipam::of_network(dir, network, &boot)?.retain(&keep))
            .map_err(Error::Ipam),
        // It is not known which addresses are still some link's.
        (AddressStore::Own(_), Err(error)) => Err(error),
        // The delegate's affair is its own: it hears of every GC.
        (AddressStore::Delegated(delegate), detached) => {
            errors.extend(detached.err());
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
    let mut host = Host::open()?;
    let mut lost: BTreeSet<AttachmentId> = attachments(&mut host, network)?;
    // The link may have gone with the pod's namespace while the filtering stayed.
    let filtered = host.filtered(network)?.into_iter();
    let own = filtered.filter(|(id, record)| id.host_veth(network).as_str() == record);
    lost.extend(own.map(|(id, _)| id));
    if let AddressStore::Own(dir) = store {
        // A kill may have come before the host veth had its alias; then only the addresses tell of it.
        let taken = Ipam::of_network(dir, network, &boot_id()?)?.list()?;
        lost.extend(taken.into_iter().filter_map(|taken| taken.owner));
    }
    lost.retain(|id| !keep.contains(id));
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
    let ifbs = collect_ifbs(&mut host, (network, IfbMaker::Attaching), keep);
    errors.extend(ifbs.err());
    Ok(())
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
    let name = id.host_veth(network);
    let host_veth = host.find_link(&name).map_err(Error::from);
    // One of somebody else, who took a name of ours, stays.
    let host_veth = host_veth.map(|link| link.filter(|link| is_host_veth(link, network, id)));
    // It does not go with the host veth, and GC finds the way here by either.
    let ifb = find_ifb(host, (network, id), IfbMaker::Attaching);
    let (mut errors, mut links, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for found in [ifb, host_veth] {
        match found {
            Ok(found) => {
                links.extend(found.iter().map(|link| link.index));
                ports.extend(found.filter(|link| link.master.is_some()));
            }
            Err(error) => errors.push(error),
        }
    }
    let group = host.group_links(links);
    for port in ports {
        // Where it is down, nothing comes through it.
        let _ = host.shut_port(port.index);
    }
    errors.extend(host.remove_filtering(&name).err());
    errors.extend(host.remove_group(&group).err().map(Error::from));
    errors
}

/// By its alias, or, when a kill came before the alias was set, by the name alone, which nobody else forms.
fn is_host_veth(link: &Link, network: &NetworkName, id: &AttachmentId) -> bool {
    link.is_veth() && id.may_own(link, network)
}
