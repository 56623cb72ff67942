//! One attachment of a pod on this node.
pub mod attachment;
