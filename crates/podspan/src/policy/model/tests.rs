//! The model against hand-made cases, and against the oracle with random ones.

mod draw;
mod fuzz;
#[allow(clippy::too_many_arguments, reason = "a test's words for a packet")]
mod mirror;
mod suites;
mod world;
