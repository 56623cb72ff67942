//! The model against hand-made cases, and against the oracle with random ones.

mod draw;
mod fuzz;
mod mirror;
mod world;
