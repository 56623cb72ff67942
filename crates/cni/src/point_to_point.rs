//! A veth pair without a bridge, in the place of `ptp`: the node routes to each pod by itself.
//!
//! The host veth has the gateways' addresses, each alone (/32, /128), and a route to each of the pod's. Inside the pod the
//! route to the subnet leads through the gateway, so that the pod asks for nobody's MAC address but the gateway's.
//! Nothing here is undone: addresses and routes go with the pair. They bear the protocol `boot`, not ours, which is the
//! agent's mark for the routes that it keeps.

use std::net::IpAddr;

use ipnet::IpNet;
use podspan_kernel::{Link, Mac, Netlink, Prefix, Route, RouteOptions, RouteProtocol};

use crate::addresses::PodAddress;
use crate::bridge::ensure_forwarding;
use crate::error::Error;

/// The node forwards for the pod's families.
///
/// # Errors
/// [`Error::Config`] when there is no address; what the kernel answered.
pub fn prepare_node(addresses: &[PodAddress]) -> Result<(), Error> {
    if addresses.is_empty() {
        return Err(Error::Config(
            "ipam gave no address; a point-to-point link needs one".into(),
        ));
    }
    let nets: Vec<_> = addresses.iter().map(|address| address.net).collect();
    ensure_forwarding(&nets)
}

/// The gateways' addresses and the routes to the pod. The pod's end is up already: an IPv6 address is usable on a link with
/// a carrier only.
///
/// # Errors
/// That there is a route to one of the pod's addresses; what the kernel answered.
pub fn ensure_host_side(
    host: &mut Netlink,
    host_veth: &Link,
    addresses: &[PodAddress],
) -> Result<(), Error> {
    if has_ipv6(addresses) {
        // For another's packets the node asks for the pod's MAC address from here only (`ndisc_send_ns`). The kernel's own
        // link-local address would be usable a moment later, and the first packet lost.
        let mac = host_veth.mac.unwrap_or(Mac([0; 6]));
        let address = IpNet::new_assert(mac.link_local().into(), 64);
        host.ensure_address(host_veth.index, address)?;
    }
    for gateway in gateways(addresses) {
        host.ensure_address(host_veth.index, alone(gateway))?;
    }
    for address in addresses {
        host.add_route(&on_link(host_veth.index, address.net.addr()))?;
    }
    Ok(())
}

/// Inside the pod: what is on the link is the gateway alone, and the subnet is behind it.
///
/// # Errors
/// What the kernel answered.
pub fn lead_through_gateways(
    pod: &mut Netlink,
    link: u32,
    addresses: &[PodAddress],
) -> Result<(), Error> {
    let mut subnets: Vec<Prefix> = Vec::new();
    for address in addresses {
        let subnet = Prefix::containing(address.net);
        if address.gateway.is_none() || subnets.contains(&subnet) {
            continue;
        }
        subnets.push(subnet);
        pod.remove_route(&Route {
            dst: subnet,
            protocol: RouteProtocol::KERNEL,
            ..on_link(link, address.net.addr())
        })?;
    }
    for gateway in gateways(addresses) {
        pod.add_route(&on_link(link, gateway))?;
    }
    for subnet in subnets {
        let inside = |address: &&PodAddress| Prefix::containing(address.net) == subnet;
        let gateway = addresses
            .iter()
            .find(inside)
            .and_then(|first| first.gateway);
        // A subnet of one address is on the link already.
        if gateway.is_some_and(|gateway| subnet.net() != alone(gateway)) {
            pod.add_route(&Route {
                dst: subnet,
                next_hop: gateway,
                ..on_link(link, subnet.addr())
            })?;
        }
    }
    Ok(())
}

/// What the host veth should have and has not.
///
/// # Errors
/// What the kernel answered.
pub fn deviations(
    host: &mut Netlink,
    host_veth: &Link,
    addresses: &[PodAddress],
) -> Result<Vec<String>, Error> {
    let mut deviations = Vec::new();
    let name = &host_veth.name;
    let (on_node, routes) = (host.list_addresses()?, host.list_routes(None)?);
    for gateway in gateways(addresses) {
        let net = alone(gateway);
        let has = |seen: &podspan_kernel::Address| seen.link == host_veth.index && seen.net == net;
        if !on_node.iter().any(has) {
            deviations.push(format!(
                "host veth {name} does not have the gateway's address {net}"
            ));
        }
    }
    for address in addresses {
        let wanted = alone(address.net.addr());
        let leads = |seen: &Route| seen.dst.net() == wanted && seen.link == Some(host_veth.index);
        if !routes.iter().any(leads) {
            deviations.push(format!("the node has no route to {wanted} by {name}"));
        }
    }
    Ok(deviations)
}

/// Each gateway once, in their order.
fn gateways(addresses: &[PodAddress]) -> Vec<IpAddr> {
    let mut gateways = Vec::new();
    for gateway in addresses.iter().filter_map(|address| address.gateway) {
        if !gateways.contains(&gateway) {
            gateways.push(gateway);
        }
    }
    gateways
}

fn has_ipv6(addresses: &[PodAddress]) -> bool {
    addresses.iter().any(|address| address.net.addr().is_ipv6())
}

/// The prefix that holds the address and no other.
fn alone(ip: IpAddr) -> IpNet {
    ip.into()
}

fn on_link(link: u32, ip: IpAddr) -> Route {
    Route {
        dst: Prefix::containing(alone(ip)),
        next_hop: None,
        link: Some(link),
        protocol: RouteProtocol::BOOT,
        options: RouteOptions::default(),
    }
}
