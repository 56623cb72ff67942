//! The floor of ADD: a process that does nothing but ask the kernel the same as `podspan-cni` for a plain pod.
//!
//! No JSON, no IPAM, no kernel parameter, no file but the pod's namespace; built as the plugin is. What ADD takes beyond it
//! is the plugin's own. `make bench-plugin` counts the requests of both and fails when ADD has others than [`attach`] below.
//! Two more words make it the bench's tool: `nothing` is a process's own cost, `peak` tells another program's memory.
#![allow(missing_docs, reason = "a benchmark")]
#![no_main]

use std::error::Error;
use std::ffi::OsString;
use std::net::IpAddr;
use std::process::Command;

use ipnet::IpNet;
use podspan_kernel::{
    IfName, LinkChange, Mac, Netlink, Netns, Prefix, Route, RouteOptions, RouteProtocol, VethEnd,
    VethPair,
};
use wait4::Wait4;

podspan_kernel::start!(run);

fn run(words: Vec<OsString>) -> bool {
    let words: Vec<_> = words
        .iter()
        .skip(1)
        .filter_map(|word| word.to_str())
        .collect();
    let outcome = match words.as_slice() {
        ["nothing"] => Ok(()),
        ["attach", netns, bridge, host_veth, address, gateway] => {
            attach(netns, [bridge, host_veth], [address, gateway])
        }
        ["peak", program] => peak(program),
        _ => Err("nothing | attach NETNS BRIDGE HOST_VETH ADDRESS GATEWAY | peak PROGRAM".into()),
    };
    if let Err(error) = &outcome {
        eprintln!("floor: {error}");
    }
    outcome.is_ok()
}

/// The requests of `attach.rs` and `bridge.rs`, in their order, where the bridge is there and nothing fails.
fn attach(
    netns: &str,
    [bridge, host_veth]: [&str; 2],
    [address, gateway]: [&str; 2],
) -> Result<(), Box<dyn Error>> {
    let (bridge, host_veth): (IfName, IfName) = (bridge.parse()?, host_veth.parse()?);
    let (address, gateway): (IpNet, IpAddr) = (address.parse()?, gateway.parse()?);
    let ifname: IfName = "eth0".parse()?;
    let mac = Mac::of_ip(address.addr());
    let pod_netns = Netns::open(netns)?;

    let mut host = Netlink::open()?;
    if host.find_link(&host_veth)?.is_some() {
        return Err(format!("{host_veth} exists").into());
    }
    let bridge = host.link(&bridge)?;
    host.ensure_address(bridge.index, IpNet::new(gateway, address.prefix_len())?)?;
    host.add_veth(&VethPair {
        host: VethEnd {
            name: &host_veth,
            mac: Mac([0x0e, 0x58, 0, 0, 0, 1]),
        },
        peer: VethEnd { name: &ifname, mac },
        peer_netns: &pod_netns,
        master: Some(bridge.index),
        mtu: bridge.mtu,
    })?;
    host.set_link(
        &host_veth,
        LinkChange {
            up: true,
            alias: Some("podspan:floor/0123456789/eth0"),
            hairpin: Some(true),
            no_link_local: true,
            ..LinkChange::default()
        },
    )?;

    pod_netns.enter()?;
    let mut pod = Netlink::open()?;
    let index = pod.link_index(&ifname)?;
    pod.ensure_address(index, address)?;
    pod.set_link(
        index,
        LinkChange {
            up: true,
            ..LinkChange::default()
        },
    )?;
    pod.add_route(&Route {
        dst: Prefix::default_route(gateway),
        next_hop: Some(gateway),
        link: Some(index),
        protocol: RouteProtocol::BOOT,
        options: RouteOptions::default(),
    })?;
    host.link(&host_veth)?;
    Ok(())
}

/// Runs the program with our own streams, and tells on standard error the KiB that it, or the largest process that it
/// started, had in memory.
///
/// Whoever starts a program lends it his own peak: the kernel's count survives `exec`. That is why this is asked of a
/// process that is smaller than any that it runs, and not of the bench.
fn peak(program: &str) -> Result<(), Box<dyn Error>> {
    let used = Command::new(program).spawn()?.wait4()?;
    if !used.status.success() {
        return Err(format!("{program}: {}", used.status).into());
    }
    eprintln!("{}", used.rusage.maxrss / 1024);
    Ok(())
}
