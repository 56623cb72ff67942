//! The node's bridge, as ADD needs it: there, up, marked, with the gateways' addresses.
//!
//! ADD makes what is missing and corrects nothing else: a bridge that somebody else made is used as it is, and an address
//! too many is the agent's affair. So ADD never fails because a bridge outlived its last configuration (the "already has
//! an IP address different from" of other networks). The work is the same whatever the number of pods.

use ipnet::IpNet;
use podspan_kernel::{IfName, Link, LinkChange, Mac, Netlink, Prefix, sysctl};

use crate::addresses::PodAddress;
use crate::attach::host_end;
use crate::attachment::BRIDGE_ALIAS;
use crate::error::Error;
use crate::ipam::boot_id;
use crate::netconf::{Gateway, NetConf};
use crate::vlan;

/// Makes the bridge right for pods with these addresses, and tells what it is.
///
/// # Errors
/// [`Error::Config`] when the name belongs to a link that is no bridge; [`Error::Kernel`].
pub fn ensure_bridge(
    netlink: &mut Netlink,
    conf: &NetConf,
    addresses: &[PodAddress],
) -> Result<Link, Error> {
    let with_length =
        |address: &PodAddress| IpNet::new(address.gateway?, address.net.prefix_len()).ok();
    let gateways: Vec<_> = addresses.iter().filter_map(with_length).collect();
    let mac = bridge_mac(conf, &gateways);
    let bridge = match netlink.find_link(&conf.bridge)? {
        Some(link) if !link.is_bridge() => {
            let kind = link.kind.as_deref().unwrap_or("physical device");
            return Err(Error::Config(format!(
                "bridge: {} exists and is a {kind}; name a bridge, or a link that does not exist yet",
                conf.bridge
            )));
        }
        Some(link) if is_complete(&link, mac) => link,
        found => complete_bridge(netlink, conf, mac, found)?,
    };
    if conf.promiscuous {
        netlink.set_link(
            bridge.index,
            LinkChange {
                promiscuous: Some(true),
                ..LinkChange::default()
            },
        )?;
    }
    if !conf.vlans.is_none() {
        vlan::ensure_filtering(netlink, &bridge, &conf.vlans)?;
    }
    let gateway = match conf.vlans.access {
        Some(number) if conf.gateway >= Gateway::Present && !gateways.is_empty() => {
            let of = (number, conf.vlans.keep_default);
            vlan::ensure_gateway_link(netlink, (&bridge, host_end(mac)), of)?
        }
        _ => bridge.clone(),
    };
    if conf.force_address {
        remove_other_addresses(netlink, &gateway, &gateways)?;
    }
    if conf.gateway >= Gateway::Present {
        for address in &gateways {
            netlink.ensure_address(gateway.index, *address)?;
        }
        ensure_forwarding(&gateways)?;
    }
    Ok(bridge)
}

/// The MAC address that a bridge of ours has: that of its first gateway, or without one a hash of node and name.
fn bridge_mac(conf: &NetConf, gateways: &[IpNet]) -> Mac {
    let known = conf.addresses.gateways();
    match known.first().or(gateways.first()) {
        Some(gateway) => Mac::of_ip(gateway.addr()),
        None => Mac::of_text(&[&boot_id().unwrap_or_default(), conf.bridge.as_str()]),
    }
}

/// False when a kill came between the making of the bridge and its mark: it bears our MAC address and no alias.
fn is_complete(link: &Link, mac: Mac) -> bool {
    let unmarked = link.alias.is_none() && link.mac == Some(mac);
    link.up && !unmarked
}

/// Makes the bridge, or finishes what another ADD began; two at a time are fine.
fn complete_bridge(
    netlink: &mut Netlink,
    conf: &NetConf,
    mac: Mac,
    found: Option<Link>,
) -> Result<Link, Error> {
    if found.is_none() {
        let named = (&conf.bridge, mac);
        match conf.vlans.is_none() {
            true => match netlink.add_bridge(&conf.bridge, mac) {
                Err(error) if !error.is_exists() => return Err(error.into()),
                _ => {}
            },
            false => vlan::add_bridge(netlink, named, &conf.vlans)?,
        }
    }
    let ours = match &found {
        None => true,
        Some(link) => link.alias.is_none() && link.mac == Some(mac),
    };
    if ours {
        // Before the mark, which says that it is complete.
        speak_ipv6_at_once(&conf.bridge)?;
        take_no_advertisement(&conf.bridge)?;
    }
    let change = LinkChange {
        up: true,
        alias: ours.then_some(BRIDGE_ALIAS),
        mtu: conf.mtu.filter(|_| ours),
        ..LinkChange::default()
    };
    netlink.set_link(&conf.bridge, change)?;
    Ok(netlink.link(&conf.bridge)?)
}

/// A link of the node that pods are behind takes none of their router advertisements: a pod must not become the node's router,
/// also where neither speaks IPv6 otherwise (CVE-2020-10749). Called where the node's /proc/sys is.
///
/// # Errors
/// What the kernel answered; a link without IPv6 has no such key, and takes none.
pub(crate) fn take_no_advertisement(link: &IfName) -> Result<(), Error> {
    unset_ipv6(link, "accept_ra")
}

/// A link's own link-local address is usable at once. For a second or two it would otherwise have none to ask for its pods
/// from, and what is sent to them would be lost.
///
/// # Errors
/// As of [`take_no_advertisement`].
pub(crate) fn speak_ipv6_at_once(link: &IfName) -> Result<(), Error> {
    unset_ipv6(link, "accept_dad")
}

fn unset_ipv6(link: &IfName, key: &str) -> Result<(), Error> {
    match sysctl::write(&format!("net/ipv6/conf/{link}/{key}"), "0") {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Removes what overlaps with a gateway's subnet and is not the gateway (`forceAddress`).
fn remove_other_addresses(
    netlink: &mut Netlink,
    holder: &Link,
    gateways: &[IpNet],
) -> Result<(), Error> {
    for address in netlink.list_addresses()? {
        let overlaps = |gateway: &IpNet| {
            Prefix::containing(*gateway).overlaps(Prefix::containing(address.net))
        };
        let is_ours = gateways.contains(&address.net) || address.link != holder.index;
        if !is_ours && address.global && gateways.iter().any(overlaps) {
            netlink.remove_address(holder.index, address.net)?;
        }
    }
    Ok(())
}

/// The node forwards between its links, in each family that pods have addresses of.
pub(crate) fn ensure_forwarding(gateways: &[IpNet]) -> Result<(), Error> {
    if gateways.iter().any(|net| net.addr().is_ipv4()) {
        sysctl::ensure("net/ipv4/ip_forward", "1")?;
    }
    if gateways.iter().any(|net| net.addr().is_ipv6()) {
        sysctl::ensure("net/ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}
