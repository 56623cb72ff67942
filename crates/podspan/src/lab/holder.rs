//! The holder: pid 1 of a lab, with whom everything of the lab ends.
//!
//! It makes the switch between the nodes and the directory that they share, starts a process for each machine, and then
//! only reaps. It never needs to clean up: when it ends, for whatever reason, the kernel ends the rest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use podspan_kernel::namespaces::{self, Kind};
use podspan_kernel::{Errno, IfName, LinkChange, Mac, Netlink};
use rustix::process::{Pid, WaitOptions, wait};

use super::event::Teller;
use super::layout::{Layout, MTU, Machine, UNDERLAY};
use super::{instance, machine};

/// The directory, in the holder's own file system, that all machines of the lab see while they are built.
const SHARED: &str = "/run/lab";
/// The directory with the nodes file, which each machine shows at `/etc/podspan/cluster`.
pub const CLUSTER: &str = "/run/lab/cluster";
/// What the lab was asked to be.
const LAYOUT: &str = "/run/lab/layout.json";

/// The process of a running machine, as a directory of `/proc`.
pub fn process_of(machine: Machine) -> Result<PathBuf> {
    let file = Path::new(SHARED).join(format!("{machine}.pid"));
    let number =
        fs::read_to_string(&file).with_context(|| format!("there is no {machine} in this lab"))?;
    Ok(Path::new("/proc").join(number))
}

/// Tells the lab that the calling process is this machine.
pub fn record(machine: Machine) -> Result<()> {
    let file = Path::new(SHARED).join(format!("{machine}.pid"));
    let number = instance::process_number()?.to_string();
    fs::write(&file, number).with_context(|| format!("write {}", file.display()))
}

/// What the lab was asked to be.
pub fn layout() -> Result<Layout> {
    let text = fs::read(LAYOUT).with_context(|| format!("read {LAYOUT}"))?;
    Ok(serde_json::from_slice(&text)?)
}

/// Holds a lab until it is killed.
///
/// # Errors
/// When something could not be built.
pub fn hold(layout: Layout) -> Result<()> {
    let teller = Teller::of(UNDERLAY);
    let mut machines = teller.finish(build(layout, &teller))?;
    loop {
        match wait(WaitOptions::empty()) {
            // A machine that gave up ends the lab; one that somebody killed is a fault that the lab is there to show.
            Ok(Some((pid, status)))
                if status.exited() && machines.iter().any(|child| is(child, pid)) =>
            {
                bail!("a machine of the lab gave up");
            }
            Ok(Some((pid, _))) => machines.retain(|child| !is(child, pid)),
            Ok(None) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("wait for the machines"),
        }
    }
}

fn is(child: &Child, pid: Pid) -> bool {
    i32::try_from(child.id()) == Ok(pid.as_raw_nonzero().get())
}

fn build(layout: Layout, teller: &Teller) -> Result<Vec<Child>> {
    instance::record_holder()?;
    // Out of the terminal's reach: Ctrl-C is for the command that was typed, not for the lab.
    rustix::process::setsid().context("start a session")?;
    namespaces::unshare(&[Kind::Mount, Kind::Net, Kind::Uts, Kind::Ipc])?;
    rustix::system::sethostname(b"lab").context("set the host name")?;
    std::env::set_current_dir("/")?;
    machine::mount_where_allowed("proc", "/proc")?;
    namespaces::mount("tmpfs", Path::new("/run"))?;
    fs::create_dir_all(CLUSTER)?;
    fs::write(LAYOUT, serde_json::to_vec(&layout)?)?;
    fs::write(Path::new(CLUSTER).join("nodes.toml"), layout.nodes_file())?;
    for switch in layout.switches() {
        ensure_switch(switch, teller)?;
    }
    let program = std::env::current_exe().context("find this program's own file")?;
    layout
        .machines()
        .map(|machine| {
            Command::new(&program)
                .args(["lab", "machine", &serde_json::to_string(&machine)?])
                .stdin(Stdio::null())
                .spawn()
                .with_context(|| format!("start {machine}"))
        })
        .collect()
}

/// A switch between nodes. It has no addresses: the nodes speak through it, not with it. Its own MAC address must not follow
/// its ports.
fn ensure_switch(name: &str, teller: &Teller) -> Result<()> {
    let mac = Mac::of_text(&[name]);
    let name: IfName = name.parse()?;
    let mut netlink = Netlink::open()?;
    netlink.add_bridge(&name, mac)?;
    let change = LinkChange {
        mtu: Some(MTU),
        no_link_local: true,
        ..LinkChange::default()
    };
    let index = netlink.link(&name)?.index;
    netlink.set_link(index, change)?;
    teller.command(format!("ip link add {name} type bridge"))?;
    teller.command(format!("ip link set {name} up"))
}
