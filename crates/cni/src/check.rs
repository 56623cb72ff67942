//! CHECK: is the attachment as ADD left it? (CNI 1.1.0, "CHECK"; T28)
//!
//! It changes nothing and collects every deviation before it answers. What a later plugin of the chain may have changed
//! (MTU, MAC address, more addresses and routes) is no deviation; what is missing is.

use std::net::IpAddr;

use podspan_kernel::{Link, Netlink, sysctl};

use crate::addresses::AddressSource;
use crate::addresses::PodAddress;
use crate::attach::{filtering, guard, open_pod_netns};
use crate::attachment::IfbMaker;
use crate::bandwidth::{self, Place};
use crate::error::Error;
use crate::host::Host;
use crate::ipam::{Ipam, boot_id};
use crate::netconf::{Gateway, NetConf, Wiring};
use crate::point_to_point;
use crate::request::PodRequest;
use crate::result::{CniResult, Ip};
use crate::vlan;

/// Compares the attachment with the result of its ADD.
///
/// # Errors
/// [`Error::Deviations`] with everything that is other than it should be.
pub fn check(conf: &NetConf, request: &PodRequest, added: &CniResult) -> Result<(), Error> {
    let mut check = Check {
        conf,
        request,
        added,
        deviations: Vec::new(),
    };
    let mut host = Host::open()?;
    let pod_netns = open_pod_netns(request, &host)?;
    check.allocations()?;
    check.host_side(&mut host)?;
    pod_netns.enter()?;
    check.pod_side(&mut Netlink::open()?)?;
    if check.deviations.is_empty() {
        Ok(())
    } else {
        Err(Error::Deviations(check.deviations))
    }
}

struct Check<'a> {
    conf: &'a NetConf,
    request: &'a PodRequest,
    added: &'a CniResult,
    deviations: Vec<String>,
}

impl Check<'_> {
    fn expect(&mut self, holds: bool, deviation: impl FnOnce() -> String) {
        if !holds {
            self.deviations.push(deviation());
        }
    }

    /// The addresses of the result that are the pod's own interface's.
    fn pod_ips(&self) -> impl Iterator<Item = &Ip> {
        let own = |ip: &&Ip| {
            ip.interface
                .and_then(|index| self.added.interfaces.get(index))
                .is_none_or(|interface| {
                    !interface.sandbox.is_empty()
                        && interface.name == self.request.attachment.ifname.as_str()
                })
        };
        self.added.ips.iter().filter(own)
    }

    /// Those of them that ADD gave it: our own IPAM knows which, of another's plugin all count.
    fn own_ips(&self) -> Vec<IpAddr> {
        let ips = self.pod_ips().map(|ip| ip.address.addr());
        let AddressSource::Own(config) = &self.conf.addresses else {
            return ips.collect();
        };
        let ranges = || config.range_sets.iter().flat_map(|set| &set.0);
        ips.filter(|ip| ranges().any(|range| range.subnet.holds(*ip)))
            .collect()
    }

    /// The addresses are still allocated to this attachment.
    fn allocations(&mut self) -> Result<(), Error> {
        let config = match &self.conf.addresses {
            AddressSource::None => return Ok(()),
            AddressSource::Delegated(delegate) => return delegate.tell("CHECK"),
            AddressSource::Own(config) => config,
        };
        let id = &self.request.attachment;
        let store = Ipam::of_network(&config.data_dir, &self.conf.network, &boot_id()?)?;
        let allocated = store.find(id)?;
        self.expect(!allocated.is_empty(), || {
            format!("no address is allocated to {id}")
        });
        let listed: Vec<_> = self.pod_ips().map(|ip| ip.address.addr()).collect();
        for ip in &allocated {
            self.expect(listed.contains(ip), || {
                format!("{ip} is allocated to {id} but not in prevResult")
            });
        }
        let ranges = || config.range_sets.iter().flat_map(|set| &set.0);
        for ip in listed
            .iter()
            .filter(|ip| ranges().any(|range| range.subnet.holds(**ip)))
        {
            self.expect(allocated.contains(ip), || {
                format!("{ip} is not allocated to {id}")
            });
        }
        Ok(())
    }

    /// The bridge, its addresses, and the host veth.
    fn host_side(&mut self, netlink: &mut Host) -> Result<(), Error> {
        let conf = self.conf;
        let wanted = filtering(conf, &self.request.attachment, &self.own_ips())?;
        self.deviations.extend(netlink.missing_filtering(&wanted)?);
        match conf.wiring {
            Wiring::Bridge => {
                if let Some(bridge) = self.bridge(netlink)? {
                    let host_veth = self.host_veth(netlink)?;
                    self.port(&bridge, host_veth.as_ref());
                    let guard = guard(conf, &self.request.attachment, &self.own_ips());
                    if let (Some(guard), Some(port)) = (guard, &host_veth) {
                        self.deviations.extend(guard.deviations(netlink, port)?);
                    }
                    if let Some(port) = host_veth.filter(|_| !conf.vlans.is_none()) {
                        let found = vlan::deviations(netlink, (&bridge, &port), &conf.vlans)?;
                        self.deviations.extend(found);
                    }
                }
            }
            Wiring::PointToPoint => {
                if let Some(host_veth) = self.host_veth(netlink)? {
                    let addresses: Vec<_> = self.pod_ips().map(pod_address).collect();
                    let found = point_to_point::deviations(netlink, &host_veth, &addresses)?;
                    self.deviations.extend(found);
                    self.forwarding(addresses.iter().map(|address| address.net.addr()))?;
                }
            }
        }
        Ok(())
    }

    /// The bridge, where there is one.
    fn bridge(&mut self, netlink: &mut Netlink) -> Result<Option<Link>, Error> {
        let conf = self.conf;
        let bridge = netlink.find_link(&conf.bridge)?;
        let Some(bridge) = bridge.filter(Link::is_bridge) else {
            self.deviations
                .push(format!("bridge {} does not exist", conf.bridge));
            return Ok(None);
        };
        self.expect(bridge.up, || format!("bridge {} is down", conf.bridge));
        if conf.gateway >= Gateway::Present {
            let link = netlink.find_link(&conf.gateway_link()?)?;
            self.gateways(netlink, link.map_or(0, |link| link.index))?;
        }
        Ok(Some(bridge))
    }

    /// The host veth as a port of the bridge.
    fn port(&mut self, bridge: &Link, host_veth: Option<&Link>) {
        let Some(link) = host_veth else { return };
        let (conf, name) = (self.conf, &link.name);
        self.expect(link.master == Some(bridge.index), || {
            format!("host veth {name} is not a port of {}", conf.bridge)
        });
        self.expect(link.hairpin == conf.hairpin, || {
            format!(
                "host veth {name} has hairpin {}",
                if link.hairpin { "on" } else { "off" }
            )
        });
    }

    /// The host veth and its limits, whatever it is connected to.
    fn host_veth(&mut self, netlink: &mut Netlink) -> Result<Option<Link>, Error> {
        let conf = self.conf;
        let host_veth = self.request.attachment.host_veth(&conf.network);
        let Some(link) = netlink.find_link(&host_veth)? else {
            self.deviations
                .push(format!("host veth {host_veth} does not exist"));
            return Ok(None);
        };
        let alias = self.request.attachment.alias(&conf.network)?;
        self.expect(link.up, || format!("host veth {host_veth} is down"));
        self.expect(link.alias.as_ref() == Some(&alias), || {
            format!(
                "host veth {host_veth} has alias {:?}, not {alias:?}",
                link.alias
            )
        });
        let place = Place {
            host_link: &link,
            ifb: &self
                .request
                .attachment
                .ifb(&conf.network, IfbMaker::Attaching),
            alias: &alias,
        };
        self.deviations
            .extend(bandwidth::deviations(netlink, &conf.limits, &place)?);
        Ok(Some(link))
    }

    /// The bridge is the gateway that the pod was told.
    fn gateways(&mut self, netlink: &mut Netlink, bridge: u32) -> Result<(), Error> {
        let on_bridge: Vec<_> = netlink
            .list_addresses()?
            .into_iter()
            .filter(|address| address.link == bridge)
            .map(|address| address.net.addr())
            .collect();
        let told: Vec<_> = self.pod_ips().filter_map(|ip| ip.gateway).collect();
        for gateway in &told {
            let link = self.conf.gateway_link()?;
            self.expect(on_bridge.contains(gateway), || {
                format!("bridge {link} does not have the gateway's address {gateway}")
            });
        }
        self.forwarding(told.into_iter())
    }

    /// The node forwards packets of the addresses' families.
    fn forwarding(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), Error> {
        let mut families: Vec<_> = addresses.map(|ip| ip.is_ipv4()).collect();
        families.sort_unstable();
        families.dedup();
        for is_ipv4 in families {
            let key = match is_ipv4 {
                true => "net/ipv4/ip_forward",
                false => "net/ipv6/conf/all/forwarding",
            };
            let value = sysctl::read(key)?;
            self.expect(value == "1", || format!("sysctl {key} is {value}, not 1"));
        }
        Ok(())
    }

    /// The pod's interface, its addresses and its routes.
    fn pod_side(&mut self, netlink: &mut Netlink) -> Result<(), Error> {
        let ifname = &self.request.attachment.ifname;
        let Some(link) = netlink.find_link(ifname)? else {
            self.deviations
                .push(format!("interface {ifname} does not exist in the pod"));
            return Ok(());
        };
        let listed = self.added.interfaces.iter();
        let is_listed = listed
            .filter(|i| !i.sandbox.is_empty())
            .any(|i| i.name == link.name);
        self.expect(is_listed, || {
            format!("interface {ifname} is not in prevResult")
        });
        self.expect(link.is_veth(), || {
            format!("interface {ifname} in the pod is no veth")
        });
        self.expect(link.up || self.conf.interface_down, || {
            format!("interface {ifname} in the pod is down")
        });

        let addresses = netlink.list_addresses()?;
        let wanted: Vec<_> = self.pod_ips().map(|ip| ip.address).collect();
        for net in wanted {
            let found = addresses
                .iter()
                .find(|a| a.link == link.index && a.net == net);
            self.expect(found.is_some(), || {
                format!("interface {ifname} in the pod has no address {net}")
            });
            self.expect(found.is_none_or(|address| !address.tentative), || {
                format!("address {net} in the pod is not usable (duplicate address detection)")
            });
        }
        let routes = netlink.list_routes(None)?;
        for wanted in self
            .added
            .routes
            .iter()
            .filter(|route| !route.other.contains_key("table"))
        {
            let found = routes.iter().any(|route| {
                route.dst.net() == wanted.dst
                    && (wanted.gw.is_none() || route.next_hop == wanted.gw)
            });
            let via = wanted.gw.map(|gw| format!(" via {gw}")).unwrap_or_default();
            self.expect(found, || {
                format!("the pod has no route to {}{via}", wanted.dst)
            });
        }
        Ok(())
    }
}

fn pod_address(ip: &Ip) -> PodAddress {
    PodAddress {
        net: ip.address,
        gateway: ip.gateway,
    }
}
