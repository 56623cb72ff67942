//! The agent against a real Kubernetes API server: `make e2e` runs it, after `make kubernetes` has built the executables.
//!
//! Each test has a network namespace with an etcd and a kube-apiserver of its own. The agent is a user of its own with no more
//! rights than `docs/kubernetes.md` says; the API server's audit log is the witness of every request, `ip` of every route.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod allocation;
mod followed;
#[allow(
    dead_code,
    reason = "shared with the tests of the agent with a nodes file"
)]
#[path = "../agent/machine.rs"]
mod machine;
#[allow(
    dead_code,
    reason = "shared with the tests of the agent with a nodes file"
)]
#[path = "../agent/monitor.rs"]
mod monitor;
#[allow(dead_code, reason = "shared with the benchmark")]
mod plane;
mod policies;
mod told;
#[allow(
    dead_code,
    reason = "shared with the tests of the agent with a nodes file"
)]
#[path = "../agent/traffic.rs"]
mod traffic;
