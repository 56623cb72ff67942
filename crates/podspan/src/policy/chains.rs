//! The chains of an attachment, which the plugin makes.

use super::program::Direction;

/// The comment of the rule that closes a pod which is not known yet.
pub const CLOSED: &str = "closed";

/// The chain of an attachment for that direction.
pub fn own_chain(attachment: &str, direction: Direction) -> String {
    match direction {
        Direction::Ingress => format!("pi_{attachment}"),
        Direction::Egress => format!("pe_{attachment}"),
    }
}
