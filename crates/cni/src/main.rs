//! `podspan-cni`: the CNI plugin. The container runtime runs it once for every event of a pod.
//!
//! There is no `fn main`: the C library calls [`run`] as soon as it can (`podspan_kernel::start`).
#![no_main]

use std::ffi::OsString;
use std::io::{stdin, stdout};
use std::path::Path;

use podspan_cni::plugin::{Streams, serve};
use podspan_cni::program::Program;
use podspan_cni::program::install::{Foreign, install, uninstall};
use podspan_cni::version::Version;

podspan_kernel::start!(run);

/// True when it did what was asked for.
fn run(arguments: Vec<OsString>) -> bool {
    let program = Program::of(arguments.first().map(OsString::as_os_str));
    let streams = Streams {
        input: stdin().lock(),
        output: stdout().lock(),
    };
    match serve(program, |name| std::env::var_os(name), streams) {
        Some(served) => served,
        None => match arguments.get(1..).unwrap_or_default() {
            [verb, dir] if verb == "install" => install_into(Path::new(dir), Foreign::Keep),
            [verb, force, dir] if verb == "install" && force == "--force" => {
                install_into(Path::new(dir), Foreign::Replace)
            }
            [verb, dir] if verb == "uninstall" => uninstall_from(Path::new(dir)),
            _ => about(),
        },
    }
}

/// For a person who runs the plugin to see what it is (T1).
#[expect(
    clippy::print_stderr,
    reason = "standard output belongs to the protocol"
)]
fn about() -> bool {
    let names = Program::REFERENCE.map(|(name, _)| name).join(", ");
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
    eprintln!("To put it there, also in the place of the reference plugins {names}:");
    eprintln!("  podspan-cni install [--force] /opt/cni/bin");
    eprintln!("To take it away, and nothing of somebody else's:");
    eprintln!("  podspan-cni uninstall /opt/cni/bin");
    true
}

#[expect(clippy::print_stderr, reason = "a person runs it")]
fn install_into(dir: &Path, foreign: Foreign) -> bool {
    let installed =
        std::env::current_exe().and_then(|executable| install(&executable, dir, foreign));
    match installed {
        Ok(installed) => {
            for path in installed.made {
                eprintln!("installed {}", path.display());
            }
            for path in installed.kept {
                eprintln!(
                    "kept {}, which is somebody else's; --force replaces it",
                    path.display()
                );
            }
            for path in installed.removed {
                eprintln!(
                    "removed {}, which this version does not have",
                    path.display()
                );
            }
            true
        }
        Err(error) => {
            eprintln!("podspan-cni: install: {error}");
            false
        }
    }
}

#[expect(clippy::print_stderr, reason = "a person runs it")]
fn uninstall_from(dir: &Path) -> bool {
    match uninstall(dir) {
        Ok(removed) => {
            for path in removed {
                eprintln!("removed {}", path.display());
            }
            true
        }
        Err(error) => {
            eprintln!("podspan-cni: uninstall: {error}");
            false
        }
    }
}
