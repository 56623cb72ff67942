//! NetworkPolicy and ClusterNetworkPolicy: who may talk to whom, in force before a pod's first packet.
//!
//! Three rooms. [`object`] is what is read of the API: small, shared, without anything that no verdict depends on. The model
//! makes of it one [`program`] for each pod of this node and direction, and of every change the difference. The dataplane puts
//! programs into the kernel, a transaction a change. The model is pure; nothing but the dataplane touches the kernel, and
//! `podspan explain` reads the same programs as the kernel gets.
//!
//! What would surprise: policy is no concern of the agent's loop, which looks at everything five times a second at the most. It has
//! a thread of its own, because a label that changes must be in force within some milliseconds.

mod adopt;
pub mod ask;
#[cfg(test)]
#[allow(
    dead_code,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "what the tests of packets share with the model's"
)]
#[path = "../tests/policy/cases/mod.rs"]
mod cases;
mod chains;
pub mod command;
mod connections;
pub mod dataplane;
pub mod denied;
pub mod enforce;
pub mod log;
pub mod measured;
pub mod model;
pub mod object;
#[cfg(test)]
mod oracle;
pub mod program;
pub mod source;
mod tries;
pub mod words;
