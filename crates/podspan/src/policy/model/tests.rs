//! The model against hand-made cases, and against the oracle with random ones.

#![allow(
    clippy::too_many_arguments,
    reason = "packets and pods in words, which are many"
)]

mod addresses;
mod cluster_policies;
mod differences;
mod draw;
mod fuzz;
mod made;
mod mirror;
mod network_policies;
mod suites;
mod world;
