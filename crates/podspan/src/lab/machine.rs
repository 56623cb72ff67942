//! A machine of the lab: a process with its own network, mounts and host name, in which the real agent (or router) runs.
//!
//! It has what a machine has: an uplink, its own `/run`, `/sys`, `/etc/cni` and `/etc/podspan`; all else it shares with the
//! machine that the lab is on, and never writes there. Its pods are added by `podspan add`, as by hand. Once built, it only
//! keeps its agent running.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use podspan_kernel::namespaces::{self, Kind};
use podspan_kernel::{
    Errno, IfName, LinkChange, Mac, Netlink, Netns, Prefix, Route, RouteOptions, RouteProtocol,
    VethEnd, VethPair, sysctl,
};

use super::event::Teller;
use super::layout::{Layout, MTU, Machine, Uplink};
use super::{by_hand, holder, observe, pod, wait_until};

/// How long to wait before an agent that ended is started again.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
/// How much of the end of an agent's log is told when it fails, in bytes.
const LOG_END: usize = 1200;

/// Is this machine until it is killed.
///
/// # Errors
/// When it could not be built.
pub fn run(machine: Machine) -> Result<()> {
    let teller = Teller::of(machine);
    let Some(mut agent) = teller.finish(build(machine, &teller))? else {
        loop {
            std::thread::park();
        }
    };
    loop {
        agent.process.wait().context("wait for the agent")?;
        std::thread::sleep(RESTART_PAUSE);
        agent = Agent::start(agent.program)?;
    }
}

/// Gives the agent, where the machine has one.
fn build(machine: Machine, teller: &Teller) -> Result<Option<Agent>> {
    let layout = holder::layout()?;
    // A socket stays in the namespace that it was opened in: this one is the hand that plugs the cable into the switch.
    let switch = Netlink::open()?;
    namespaces::unshare(&[Kind::Net, Kind::Mount, Kind::Uts])?;
    rustix::system::sethostname(machine.to_string().as_bytes()).context("set the host name")?;
    holder::record(machine)?;
    furnish()?;
    connect(layout, machine, switch).context("connect the uplink")?;
    for command in by_hand::uplinks(layout, machine) {
        teller.command(command)?;
    }
    let Some(program) = machine.program() else {
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            sysctl::write(key, "1")?;
            let by_hand = format!("sysctl -qw {}=1", key.replace('/', "."));
            teller.command(format!("ip netns exec {machine} {by_hand}"))?;
        }
        return Ok(None);
    };
    fs::write(config_file(program), layout.config(machine))?;
    let mut agent = Agent::start(program)?;
    if let Machine::Node(_) = machine {
        agent.wait_for("its CNI configuration in /etc/cni/net.d", || {
            Ok(has_conflist())
        })?;
        for name in layout.pods() {
            pod::add(&name.parse()?)?;
        }
    }
    agent.wait_for("its routes", || has_routes(layout, machine))?;
    let seen = observe::machine(Path::new("/"), &Netns::current()?)?;
    for command in by_hand::programmed(machine, &seen) {
        teller.command(command)?;
    }
    Ok(Some(agent))
}

fn config_file(program: &str) -> String {
    format!("/etc/podspan/{program}.toml")
}

fn has_conflist() -> bool {
    let entries = fs::read_dir("/etc/cni/net.d")
        .into_iter()
        .flatten()
        .flatten();
    entries.into_iter().any(|entry| {
        entry
            .path()
            .extension()
            .is_some_and(|end| end == "conflist")
    })
}

fn has_routes(layout: Layout, machine: Machine) -> Result<bool> {
    let routes = observe::routes(&mut Netlink::open()?)?;
    Ok(layout.routes(machine).iter().all(|(dst, next_hop)| {
        routes
            .iter()
            .any(|route| route.dst == *dst && route.next_hop == Some(*next_hop))
    }))
}

/// Gives the machine its own `/run`, `/sys` and `/etc`.
///
/// The machine's `/etc` is that of the machine underneath, entry by entry, but for `cni` and `podspan`: links to it in a
/// small file system of its own, since an overlay is not for everybody to mount. New mounts are made aside and moved to
/// their place, for what they are made of lies behind the place.
fn furnish() -> Result<()> {
    let run = Path::new("/run/machine");
    fs::create_dir_all(run)?;
    // The shared directory lies in `/run`: this machine's own, mounted for it alone, is prepared below it.
    namespaces::mount("tmpfs", run)?;
    for name in ["netns", "podspan", "host-etc", "etc"] {
        fs::create_dir(run.join(name))?;
    }
    namespaces::mount_bind(Path::new("/etc"), &run.join("host-etc"))?;
    let etc = run.join("etc");
    namespaces::mount("tmpfs", &etc)?;
    for name in ["cni/net.d", "podspan/cluster"] {
        fs::create_dir_all(etc.join(name))?;
    }
    namespaces::mount_bind(Path::new(holder::CLUSTER), &etc.join("podspan/cluster"))?;
    for entry in fs::read_dir("/etc").context("read /etc")?.flatten() {
        let name = entry.file_name();
        if name == "cni" || name == "podspan" {
            continue;
        }
        // A link as it is: what it says is relative to where it stands.
        let target =
            fs::read_link(entry.path()).unwrap_or_else(|_| Path::new("/run/host-etc").join(&name));
        symlink(target, etc.join(&name))?;
    }
    namespaces::mount_move(run, Path::new("/run"))?;
    namespaces::mount_move(Path::new("/run/etc"), Path::new("/etc"))?;
    fs::remove_dir("/run/etc")?;
    mount_where_allowed("sysfs", "/sys")
}

/// Mounts what shows the caller's own namespaces. Where that is not allowed, as in a container that hides parts of its own,
/// the machine's own goes on showing there, and what runs in the lab still works.
pub fn mount_where_allowed(file_system: &str, at: &str) -> Result<()> {
    match namespaces::mount(file_system, Path::new(at)) {
        Err(error) if error.errno() != Errno::PERM => Err(error.into()),
        _ => Ok(()),
    }
}

/// The switch's end of a machine's cable.
pub fn port(machine: Machine, uplink: &Uplink) -> String {
    match (machine, uplink.name) {
        (Machine::Gateway, end) => format!("{machine}-{end}"),
        _ => machine.to_string(),
    }
}

/// Cables from the underlay to the machine, and its way out.
fn connect(layout: Layout, machine: Machine, mut switch: Netlink) -> Result<()> {
    // As on a machine that was just installed, whatever the one underneath has: forwarding is the agent's to switch on.
    sysctl::ensure("net/ipv4/ip_forward", "0")?;
    let mut netlink = Netlink::open()?;
    set_up_loopback(&mut netlink)?;
    for uplink in layout.uplinks(machine) {
        plug_in(
            [&mut switch, &mut netlink],
            &port(machine, &uplink),
            &uplink,
        )?;
    }
    for gateway in layout.ways_out(machine) {
        netlink.add_route(&Route {
            dst: Prefix::default_route(gateway),
            next_hop: Some(gateway),
            link: None,
            protocol: RouteProtocol::BOOT,
            options: RouteOptions::default(),
        })?;
    }
    Ok(())
}

/// A cable from a switch to the machine, with an address of each family at this end.
fn plug_in([switch, netlink]: [&mut Netlink; 2], port: &str, uplink: &Uplink) -> Result<()> {
    let (port, name): (IfName, IfName) = (port.parse()?, uplink.name.parse()?);
    let Mac([_, _, a, b, c, d]) = uplink.mac();
    let pair = VethPair {
        host: VethEnd {
            name: &port,
            mac: Mac([0x0a, 0x5a, a, b, c, d]),
        },
        peer: VethEnd {
            name: &name,
            mac: uplink.mac(),
        },
        peer_netns: &Netns::current()?,
        master: Some(switch.link(&uplink.switch.parse()?)?.index),
        mtu: MTU,
    };
    switch.add_veth(&pair)?;
    let up = LinkChange {
        up: true,
        ..LinkChange::default()
    };
    let port = LinkChange {
        no_link_local: true,
        ..up
    };
    let index = switch.link(pair.host.name)?.index;
    switch.set_link(index, port)?;

    // No duplicate address detection, so that the link-local address can ask for neighbours at once, not in a second.
    sysctl::ensure(&format!("net/ipv6/conf/{name}/accept_dad"), "0")?;
    let index = netlink.link(&name)?.index;
    netlink.set_link(index, up)?;
    for net in uplink.addresses {
        netlink.ensure_address(index, net)?;
    }
    Ok(())
}

/// Sets `lo` up, which is down in a new network namespace.
pub fn set_up_loopback(netlink: &mut Netlink) -> Result<()> {
    let loopback = netlink.link(&"lo".parse()?)?.index;
    let up = LinkChange {
        up: true,
        ..LinkChange::default()
    };
    Ok(netlink.set_link(loopback, up)?)
}

/// The machine's agent (on the router, `podspan router`), a child of the machine.
struct Agent {
    program: &'static str,
    process: Child,
}

impl Agent {
    fn start(program: &'static str) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_file(program))?;
        let process = Command::new(std::env::current_exe()?)
            .args([program, "--config", &config_file(program)])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start podspan {program}"))?;
        fs::write(pid_file_of(program), process.id().to_string())?;
        Ok(Self { program, process })
    }

    /// Waits for something that the agent does; tells its log when it ends instead, or does not do it.
    fn wait_for(&mut self, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let process = &mut self.process;
        let waited = wait_until(what, || match process.try_wait()? {
            Some(status) => bail!("the {} ended ({status})", self.program),
            None => done(),
        });
        waited.with_context(|| {
            let log = fs::read_to_string(log_file(self.program)).unwrap_or_default();
            let mut start = log.len().saturating_sub(LOG_END);
            while !log.is_char_boundary(start) {
                start = start.saturating_add(1);
            }
            let end = log.get(start..).unwrap_or_default();
            format!("wait for {what}; the log says:\n{end}")
        })
    }
}

/// Where the agent's log is, in the machine.
fn log_file(program: &str) -> String {
    format!("/run/podspan/{program}.log")
}

/// Where the agent's pid is, in a machine that has an agent.
pub fn pid_file(machine: Machine) -> Option<String> {
    machine.program().map(pid_file_of)
}

fn pid_file_of(program: &str) -> String {
    format!("/run/podspan/{program}.pid")
}
