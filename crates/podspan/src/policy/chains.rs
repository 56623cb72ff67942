//! The chains of attachments, which the plugin makes and which go with the address: where they are, and whose.

use std::collections::BTreeMap;

use podspan_kernel::nft::Nft;

use super::object::Attached;
use super::program::{Attachment, Direction};

/// The comment of the rule that closes a pod which is not known yet.
pub const CLOSED: &str = "closed";
/// The maps that lead from addresses to chains; the plugin alone changes them.
pub const MAPS: [&str; 2] = ["policy_ingress4", "policy_ingress6"];

/// The chain of an attachment for that direction.
pub fn own_chain(attachment: &str, direction: Direction) -> String {
    match direction {
        Direction::Ingress => format!("pi_{attachment}"),
        Direction::Egress => format!("pe_{attachment}"),
    }
}

/// All attachments of pods that have chains.
///
/// # Errors
/// What the kernel answered.
pub fn attachments(_nft: &mut Nft) -> podspan_kernel::Result<BTreeMap<Attachment, Attached>> {
    Ok(BTreeMap::new())
}
