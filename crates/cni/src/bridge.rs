//! The node's bridge, as ADD needs it: there, up, marked, with the gateways' addresses.
//!
//! ADD makes what is missing and corrects nothing else: a bridge that somebody else made is used as it is, and an address
//! too many is the agent's affair. So ADD never fails because a bridge outlived its last configuration (the "already has
//! an IP address different from" of other networks). The work is the same whatever the number of pods.

use std::net::IpAddr;

use ipnet::IpNet;
use podspan_kernel::{Link, LinkChange, Mac, Netlink, sysctl};

use crate::attachment::BRIDGE_ALIAS;
use crate::error::Error;
use crate::netconf::{Gateway, NetConf};

/// Makes the bridge right and tells what it is.
///
/// # Errors
/// [`Error::Config`] when the name belongs to a link that is no bridge; [`Error::Kernel`].
pub fn ensure_bridge(netlink: &mut Netlink, conf: &NetConf) -> Result<Link, Error> {
    let gateways = gateway_addresses(conf);
    let bridge = match netlink.find_link(&conf.bridge)? {
        Some(link) if !link.is_bridge() => {
            let kind = link.kind.as_deref().unwrap_or("physical device");
            return Err(Error::Config(format!(
                "bridge: {} exists and is a {kind}; name a bridge, or a link that does not exist yet",
                conf.bridge
            )));
        }
        Some(link) if is_complete(&link, &gateways) => link,
        found => complete_bridge(netlink, conf, found)?,
    };
    if conf.gateway >= Gateway::Present {
        for address in &gateways {
            netlink.ensure_address(bridge.index, *address)?;
        }
        ensure_forwarding(&gateways)?;
    }
    Ok(bridge)
}

/// The gateway of each subnet, with the subnet's length.
fn gateway_addresses(conf: &NetConf) -> Vec<IpNet> {
    let ranges = conf.ipam.range_sets.iter().flat_map(|set| &set.0);
    let mut gateways: Vec<_> = ranges
        .filter_map(|range| IpNet::new(range.gateway, range.subnet.length()).ok())
        .collect();
    gateways.dedup();
    gateways
}

/// The MAC address that a bridge of ours has: that of its first gateway.
fn bridge_mac(gateways: &[IpNet]) -> Mac {
    let first = gateways.first().map_or(IpAddr::from([0; 4]), IpNet::addr);
    Mac::of_ip(first)
}

/// False when a kill came between the making of the bridge and its mark: it bears our MAC address and no alias.
fn is_complete(link: &Link, gateways: &[IpNet]) -> bool {
    let unmarked = link.alias.is_none() && link.mac == Some(bridge_mac(gateways));
    link.up && !unmarked
}

/// Makes the bridge, or finishes what another ADD began; two at a time are fine.
fn complete_bridge(
    netlink: &mut Netlink,
    conf: &NetConf,
    found: Option<Link>,
) -> Result<Link, Error> {
    let mac = bridge_mac(&gateway_addresses(conf));
    if found.is_none() {
        match netlink.add_bridge(&conf.bridge, mac) {
            Err(error) if !error.is_exists() => return Err(error.into()),
            _ => {}
        }
        // A bridge takes router advertisements of its ports for its own otherwise; without IPv6 there is no such key.
        match sysctl::write(&format!("net/ipv6/conf/{}/accept_ra", conf.bridge), "0") {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    let ours = match &found {
        None => true,
        Some(link) => link.alias.is_none() && link.mac == Some(mac),
    };
    let change = LinkChange {
        up: true,
        alias: ours.then_some(BRIDGE_ALIAS),
        mtu: conf.mtu.filter(|_| ours),
        ..LinkChange::default()
    };
    netlink.set_link(&conf.bridge, change)?;
    Ok(netlink.link(&conf.bridge)?)
}

/// The node forwards between its links, in each family that pods have addresses of.
fn ensure_forwarding(gateways: &[IpNet]) -> Result<(), Error> {
    if gateways.iter().any(|net| net.addr().is_ipv4()) {
        sysctl::ensure("net/ipv4/ip_forward", "1")?;
    }
    if gateways.iter().any(|net| net.addr().is_ipv6()) {
        sysctl::ensure("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}
