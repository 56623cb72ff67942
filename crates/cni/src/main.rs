//! `podspan-cni`: the CNI plugin. The container runtime runs it once for every event of a pod.

use std::io::{stdin, stdout};
use std::process::ExitCode;

use podspan_cni::plugin::{Streams, serve};
use podspan_cni::version::Version;

fn main() -> ExitCode {
    let streams = Streams {
        input: stdin().lock(),
        output: stdout().lock(),
    };
    match serve(|name| std::env::var_os(name), streams) {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => {
            about();
            ExitCode::SUCCESS
        }
    }
}

/// For a person who runs the plugin to see what it is (T1).
#[expect(
    clippy::print_stderr,
    reason = "standard output belongs to the protocol"
)]
fn about() {
    eprintln!(
        "podspan-cni {}: the Podspan CNI plugin",
        env!("CARGO_PKG_VERSION")
    );
    eprintln!(
        "CNI versions: {}",
        Version::ALL.map(Version::as_str).join(", ")
    );
    eprintln!("A container runtime runs it, from /opt/cni/bin; to attach a container by hand:");
    eprintln!("  podspan add <container> <namespace>");
}
