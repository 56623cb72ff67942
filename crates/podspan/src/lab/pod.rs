//! Pods of the node that the caller is in: a network namespace each, which `podspan add` attaches.
//!
//! The lab is the container runtime's part here and nothing more: what is inside the pod is the plugin's work.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use podspan_cni::attachment::ContainerId;
use podspan_kernel::{Netlink, Netns};

use super::machine::set_up_loopback;

/// Where a node has its pods' network namespaces, as `ip netns` does.
pub const NETNS_DIRECTORY: &str = "/run/netns";

/// Where that pod's network namespace is.
pub fn netns_path(pod: &ContainerId) -> PathBuf {
    Path::new(NETNS_DIRECTORY).join(pod.as_str())
}

/// Makes a pod and attaches it to the network.
///
/// # Errors
/// When there is one of that name, or it cannot be attached; then nothing of it is left.
pub fn add(pod: &ContainerId) -> Result<()> {
    let path = netns_path(pod);
    let netns = Netns::create(&path)?;
    let attached = netns
        .run(|| set_up_loopback(&mut Netlink::open()?))
        .map_err(anyhow::Error::from)
        .and_then(|up| up)
        .and_then(|()| podspan("add", pod));
    if attached.is_err() {
        Netns::remove(&path)?;
    }
    attached
}

/// Detaches a pod and ends it. What is not there is fine.
///
/// # Errors
/// When it cannot be detached; its namespace goes nevertheless.
pub fn remove(pod: &ContainerId) -> Result<()> {
    let detached = podspan("del", pod);
    Netns::remove(&netns_path(pod))?;
    detached
}

/// Runs `podspan <verb> <pod> <pod>`: the container bears the name of its network namespace.
fn podspan(verb: &str, pod: &ContainerId) -> Result<()> {
    let output = command()?
        .args([verb, pod.as_str(), pod.as_str()])
        .output()
        .context("start podspan")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("podspan {verb} {pod} {pod}: {}", said.trim());
    }
    Ok(())
}

/// This program again, in an environment where it finds its plugin.
fn command() -> Result<Command> {
    let program = std::env::current_exe().context("find this program's own file")?;
    let mut command = Command::new(&program);
    let directory = program.parent().unwrap_or(Path::new("/"));
    command.env("CNI_PATH", directory);
    Ok(command)
}
