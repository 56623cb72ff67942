//! DEL and GC: what an attachment had is given back.
//!
//! Everything is found by the attachment's name: neither the pod's namespace nor a previous result is needed, and what is
//! not there is fine (T24, T26). The link goes before the address, and an address whose link could not be removed is
//! kept: giving it out again while a pod still answers for it is worse than DEL failing, which the runtime repeats.

use std::collections::BTreeSet;
use std::path::Path;

use podspan_kernel::{Link, Netlink};

use crate::attachment::{AttachmentId, NetworkName};
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
    data_dir: &Path,
) -> Result<(), Error> {
    let name = id.host_veth(network);
    match netlink.find_link(&name)? {
        Some(link) if is_host_veth(&link, network, id) => netlink.remove_link(link.index)?,
        // Of somebody else, who took a name of ours: it stays.
        Some(_) | None => {}
    }
    Ipam::of_network(data_dir, network, &boot_id()?)?.release(id)?;
    Ok(())
}

/// Frees everything of the network that belongs to no attachment of `valid` (T29, T30).
///
/// # Errors
/// All that went wrong; it never stops at the first.
pub fn collect_garbage(
    network: &NetworkName,
    valid: &BTreeSet<AttachmentId>,
    data_dir: &Path,
) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let mut errors = Vec::new();
    let mut keep = valid.clone();
    for link in netlink.list_links()? {
        let Some((of, id)) = link.alias.as_deref().and_then(AttachmentId::from_alias) else {
            continue;
        };
        if of != *network || valid.contains(&id) {
            continue;
        }
        if let Err(error) = netlink.remove_link(link.index) {
            errors.push(error.into());
            keep.insert(id);
        }
    }
    let freed =
        Ipam::of_network(data_dir, network, &boot_id()?).and_then(|ipam| ipam.retain(&keep));
    errors.extend(freed.err().map(Error::Ipam));
    Error::from_all(errors)
}

/// By its alias, or, when a kill came before the alias was set, by the name alone, which nobody else forms.
fn is_host_veth(link: &Link, network: &NetworkName, id: &AttachmentId) -> bool {
    let named = link.alias.as_deref().map(AttachmentId::from_alias);
    link.is_veth() && named.is_none_or(|named| named == Some((network.clone(), id.clone())))
}
