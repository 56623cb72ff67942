//! The model against hand-made cases, and against the oracle with random ones.

mod addresses;
mod cluster_policies;
mod differences;
mod draw;
mod fuzz;
mod made;
mod mirror;
mod network_policies;
mod world;
