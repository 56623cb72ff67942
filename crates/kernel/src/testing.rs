//! For tests: a private network namespace, and `ip -j` as the witness.

pub mod fuzz;

use std::process::Command;

use serde_json::Value;

use crate::Netns;

/// The calling thread is in a network namespace of its own, with `lo` up. Two tests can make the same names at once.
pub struct TestNs(());

impl TestNs {
    /// Enters a new namespace.
    ///
    /// # Panics
    /// Where none can be made: a test that cannot run here fails and says so.
    #[expect(
        clippy::new_without_default,
        clippy::panic,
        reason = "a test's first line"
    )]
    pub fn new() -> Self {
        if let Err(error) = Netns::enter_new() {
            panic!("this test needs to make network namespaces (root, or `unshare -Urn`): {error}");
        }
        let ns = Self(());
        ns.ip("link set lo up");
        ns
    }

    /// Runs `ip -j <arguments>` here; the parsed answer, null when it printed nothing.
    ///
    /// # Panics
    /// When `ip` fails.
    #[expect(clippy::panic, clippy::expect_used, reason = "a test's witness")]
    pub fn ip(&self, arguments: &str) -> Value {
        let output = Command::new("ip")
            .arg("-j")
            .args(arguments.split_whitespace())
            .output()
            .expect("ip of iproute2 is installed");
        if !output.status.success() {
            panic!(
                "ip {arguments}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }
}
