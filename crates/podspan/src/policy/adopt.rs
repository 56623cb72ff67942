//! Attachments that were made before policy was: they get the chains that ADD would have made, and the record by which DEL
//! removes them.
//!
//! Which pod an attachment is of says its address: the runtime named no pod when it was made, but the API does. One that a plugin
//! of somebody else made has nothing of ours that goes with its address; policy does not hold for it until its pod is made
//! anew, and that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use podspan_cni::attachment::{AttachmentId, NetworkName};
use podspan_cni::filter::policy::{self as plugin, PodName, Subject};
use podspan_kernel::nft::{Batch, Nft};
use podspan_kernel::{IfName, Mac, Netlink};

use super::model::Model;
use super::object::{Attached, Pod};
use super::program::Attachment;
use crate::list::{self, Row};

/// How many pods are named.
const NAMED: usize = 3;

/// Makes chains for the pods of this node that have none; says which pods cannot have any, for people.
///
/// # Errors
/// What the kernel answered, or the file system.
pub fn adopt(
    nft: &mut Nft,
    model: &Model,
    attachments: &BTreeMap<Attachment, Attached>,
    data_dir: &Path,
) -> anyhow::Result<Option<String>> {
    let covered = attachments
        .values()
        .flat_map(|attached| attached.addresses.iter());
    let covered: BTreeSet<IpAddr> = covered.collect();
    let is_missing = |pod: &&Pod| {
        let mut addresses = pod.addresses.iter();
        addresses.next().is_some() && !pod.addresses.iter().any(|ip| covered.contains(&ip))
    };
    let missing: Vec<&Pod> = model.pods_here().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let rows = list::rows(&mut Netlink::open()?, data_dir)?;
    let mut strangers = Vec::new();
    for pod in missing {
        let of_pod = |row: &&Row| pod.addresses.iter().any(|ip| row.addresses.contains(&ip));
        match rows.iter().find(of_pod).and_then(attachment) {
            Some((veth, alias)) => {
                let mut batch = Batch::new();
                plugin::lay(&mut batch);
                plugin::adopt(&mut batch, (&veth, &alias), subject(pod));
                nft.commit(batch)?;
            }
            None => strangers.push(pod.key.to_string()),
        }
    }
    Ok(problem(&strangers))
}

/// The host veth that is there, and its alias.
fn attachment(row: &Row) -> Option<(IfName, String)> {
    let veth = row.host_veth.as_ref()?.parse().ok()?;
    let network: NetworkName = row.network.parse().ok()?;
    let id = AttachmentId {
        container: row.container.parse().ok()?,
        ifname: row.interface.parse().ok()?,
    };
    Some((veth, id.alias(&network).ok()?))
}

/// Its chains are open until the next difference lays its programs: it was open before.
fn subject(pod: &Pod) -> Subject {
    let addresses: Vec<IpAddr> = pod.addresses.iter().collect();
    let mac = addresses.first().map(|ip| Mac::of_ip(*ip));
    Subject {
        pod: Some(PodName {
            namespace: pod.key.namespace.to_string(),
            name: pod.key.name.to_string(),
            uid: Some(pod.uid.to_string()),
        }),
        addresses: match mac {
            Some(mac) => plugin::with_link_local(&addresses, mac),
            None => addresses,
        },
        closed: false,
    }
}

fn problem(strangers: &[String]) -> Option<String> {
    let (first, rest) = match strangers.split_at_checked(NAMED) {
        Some((first, rest)) => (first, rest.len()),
        None => (strangers, 0),
    };
    if first.is_empty() {
        return None;
    }
    let more = match rest {
        0 => String::new(),
        rest => format!(" and {rest} more"),
    };
    Some(format!(
        "policy does not hold for pods that another plugin attached: {}{more}; kubectl delete pod makes each anew",
        first.join(", ")
    ))
}
