//! The agent and the router as real processes, each in a network namespace of its test; `ip` is the witness.
//!
//! On every machine stand a foreign link and a foreign route, which survive.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod commands;
mod denied;
mod doctor;
mod forwarding;
mod keeps;
mod machine;
mod masquerade;
mod monitor;
mod nodes_file;
mod operation;
mod peers;
mod routed;
mod scale;
mod services;
mod traffic;
mod untold;
mod vxlan;
