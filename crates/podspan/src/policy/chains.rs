//! The chains of attachments, which the plugin makes and which go with the address: where they are, and whose.

use std::collections::BTreeMap;

use podspan_cni::filter::policy::{self, AttachedChains, EGRESS_OF, INGRESS_OF};
use podspan_kernel::nft::Nft;

pub use podspan_cni::filter::policy::CLOSED;

use super::object::{Addresses, Attached, Key};
use super::program::{Attachment, Direction};

/// The maps that lead from addresses to chains of which an element comes and goes with each attachment.
pub const MAPS: [&str; 2] = ["policy_ingress4", "policy_ingress6"];

/// The chain of an attachment for that direction.
pub fn own_chain(attachment: &str, direction: Direction) -> String {
    let prefix = match direction {
        Direction::Ingress => INGRESS_OF,
        Direction::Egress => EGRESS_OF,
    };
    format!("{prefix}{attachment}")
}

/// All attachments of pods that have chains. A container that is nobody's pod is nobody's subject.
///
/// # Errors
/// What the kernel answered.
pub fn attachments(nft: &mut Nft) -> podspan_kernel::Result<BTreeMap<Attachment, Attached>> {
    let all = policy::attachments(nft)?.into_iter();
    Ok(all.filter_map(attached).collect())
}

fn attached(chains: AttachedChains) -> Option<(Attachment, Attached)> {
    let pod = chains.pod?;
    let mut addresses = Addresses::default();
    chains
        .addresses
        .into_iter()
        .for_each(|ip| addresses.add(ip));
    let attached = Attached {
        pod: Key {
            namespace: pod.namespace.into(),
            name: pod.name.into(),
        },
        uid: pod.uid.map(Into::into),
        addresses,
    };
    Some((chains.veth.as_str().into(), attached))
}
