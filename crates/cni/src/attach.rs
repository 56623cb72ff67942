//! ADD: one pod gets its address, its veth pair and its routes. Read [`attach`] from top to bottom.
//!
//! It either finishes or leaves nothing: the first step takes the attachment's record, which only one can have, so
//! everything that is found under the attachment afterwards was made here, and the way back is simply DEL's.
//! It may be killed between any two system calls; the DEL that follows finds all of it by name.
//! A surprise: the calling thread ends up in the pod's network namespace, and only `host` still leads to the node's, unless
//! it failed and came back to undo. The plugin is a process for one attachment.

use podspan_kernel::{
    Errno, Link, LinkChange, Mac, Netlink, Netns, Prefix, Route, RouteOptions, RouteProtocol,
    VethEnd, VethPair, sysctl,
};
use serde_json::Map;

use crate::addresses::{AddressStore, Addresses, PodAddress};
use crate::bridge::ensure_bridge;
use crate::detach::undo;
use crate::error::Error;
use crate::ipam::IpamError;
use crate::masquerade::masquerade;
use crate::netconf::{Gateway, NetConf};
use crate::request::PodRequest;
use crate::result::{CniResult, Interface, Ip, result_route};

/// Attaches the pod and tells how. `host` is a socket in the node's network namespace, where the caller is; `store` is
/// where the addresses go back to when something fails.
///
/// # Errors
/// That the attachment exists, which then stays as it is; otherwise what went wrong, after everything was undone.
pub fn attach(
    host: &mut Netlink,
    conf: &NetConf,
    store: &AddressStore,
    request: &PodRequest,
) -> Result<CniResult, Error> {
    let pod_netns = open_pod_netns(request)?;
    require_new(host, conf, request)?;

    let addresses = match conf
        .addresses
        .take(&conf.network, &request.attachment, &conf.wanted_ips)
    {
        // Somebody has the record; nothing of it is ours to undo.
        Err(Error::Ipam(error @ IpamError::Duplicate { .. })) => return Err(error.into()),
        outcome => outcome,
    };
    let attached = addresses.and_then(|mut addresses| {
        addresses.complete_gateways(conf.gateway);
        let bridge = ensure_bridge(host, conf, &addresses.list)?;
        NewAttachment {
            conf,
            request,
            bridge,
            pod_netns,
            addresses,
        }
        .connect(host)
    });
    attached.map_err(
        |error| match undo(host, &conf.network, &request.attachment, store) {
            Ok(()) => error,
            Err(second) => Error::Several(vec![error, second]),
        },
    )
}

/// That the attachment has no link yet (T22). Behind this, whatever is found under its name was made by this ADD: a runtime
/// never runs two commands for one container at a time.
fn require_new(host: &mut Netlink, conf: &NetConf, request: &PodRequest) -> Result<(), Error> {
    let id = &request.attachment;
    let host_veth = id.host_veth(&conf.network);
    match host.find_link(&host_veth)? {
        None => Ok(()),
        Some(_) => Err(Error::AlreadyAttached(format!(
            "{id} is attached already: host veth {host_veth} exists; run DEL first"
        ))),
    }
}

/// The pod's network namespace, which must not be the node's own (T8): a path that is used again would otherwise turn
/// the node's own interfaces into a pod's.
///
/// # Errors
/// [`Error::OwnNetns`]; [`Error::Environment`] when there is no namespace at the path.
pub(crate) fn open_pod_netns(request: &PodRequest) -> Result<Netns, Error> {
    let netns = Netns::open(&request.netns).map_err(|error| match error.errno() {
        Errno::NOENT | Errno::INVAL => Error::Environment(format!(
            "CNI_NETNS is {}, where there is no network namespace: {error}",
            request.netns.display()
        )),
        _ => error.into(),
    })?;
    require_foreign(&netns, request.own_netns_allowed)?;
    Ok(netns)
}

/// That the namespace is not the one that the plugin itself is in, unless that is allowed (`CNI_NETNS_OVERRIDE`).
///
/// # Errors
/// [`Error::OwnNetns`].
pub(crate) fn require_foreign(netns: &Netns, own_is_allowed: bool) -> Result<(), Error> {
    if own_is_allowed || !netns.is_same(&Netns::current()?)? {
        return Ok(());
    }
    Err(Error::OwnNetns(format!(
        "CNI_NETNS is {}, the node's own network namespace; a pod needs one of its own",
        netns.path().display()
    )))
}

/// An attachment whose addresses are allocated and whose links are not made yet.
struct NewAttachment<'a> {
    conf: &'a NetConf,
    request: &'a PodRequest,
    bridge: Link,
    pod_netns: Netns,
    addresses: Addresses,
}

impl NewAttachment<'_> {
    /// Makes the veth pair and what the node does for it, then everything inside the pod.
    fn connect(&self, host: &mut Netlink) -> Result<CniResult, Error> {
        let id = &self.request.attachment;
        let host_veth = id.host_veth(&self.conf.network);
        let alias = id.alias(&self.conf.network)?;
        let mtu = self.conf.mtu.unwrap_or(self.bridge.mtu);
        let pod_mac = self.pod_mac();
        host.add_veth(&VethPair {
            host: VethEnd {
                name: &host_veth,
                mac: host_end(pod_mac),
            },
            peer: VethEnd {
                name: &id.ifname,
                mac: pod_mac,
            },
            peer_netns: &self.pod_netns,
            master: Some(self.bridge.index),
            mtu,
        })
        .map_err(|error| self.name_taken(error))?;
        host.set_link(
            &host_veth,
            LinkChange {
                up: true,
                alias: Some(&alias),
                hairpin: Some(self.conf.hairpin),
                isolated: Some(true).filter(|_| self.conf.port_isolation),
                no_link_local: true,
                ..LinkChange::default()
            },
        )?;

        if self.conf.masquerade {
            masquerade(&self.conf.bridge, &alias, &self.addresses.ips())?;
        }

        let routes = self.routes();
        self.pod_netns.enter()?;
        self.configure_pod(&routes)?;

        // The pod's end came up last, so the carrier of the host's end is just on: asking waits until it lets packets
        // through, and the first packet of the pod is not lost.
        let host_link = host.link(&host_veth)?;
        Ok(self.result(&host_link, pod_mac, routes))
    }

    /// Inside the pod: link up, addresses, routes.
    fn configure_pod(&self, routes: &[Route]) -> Result<(), Error> {
        let ifname = &self.request.attachment.ifname;
        self.set_ipv6_sysctls()?;
        if self.conf.wanted_mac.is_some() {
            // The address may have been another's with another MAC address: neighbours hear of it (`arp_notify`).
            sysctl::write(&format!("net/ipv4/conf/{ifname}/arp_notify"), "1")?;
        }
        let mut pod = Netlink::open()?;
        let index = pod.link(ifname)?.index;
        if self.conf.interface_down {
            return Ok(());
        }
        // IPv4 addresses first, so that a MAC address that was asked for is announced when the link comes up. IPv6 ones
        // need a link that is up to be usable when the call returns.
        let (ipv4, ipv6): (Vec<_>, Vec<_>) = self
            .addresses
            .list
            .iter()
            .map(|address| address.net)
            .partition(|net| net.addr().is_ipv4());
        for net in ipv4 {
            pod.ensure_address(index, net)?;
        }
        pod.set_link(
            index,
            LinkChange {
                up: true,
                ..LinkChange::default()
            },
        )?;
        for net in ipv6 {
            match self.conf.detect_duplicates {
                true => pod.ensure_address_after_detection(index, net)?,
                false => pod.ensure_address(index, net)?,
            }
        }
        for route in routes {
            pod.add_route(&Route {
                link: Some(index),
                ..route.clone()
            })?;
        }
        Ok(())
    }

    /// No router advertisement of a neighbour changes the pod's routes; its link-local address is usable at once.
    fn set_ipv6_sysctls(&self) -> Result<(), Error> {
        let ifname = &self.request.attachment.ifname;
        let has_ipv6 = self
            .addresses
            .list
            .iter()
            .any(|address| address.net.addr().is_ipv6());
        let set = |key: &str, how: fn(&str, &str) -> podspan_kernel::Result<()>| {
            match how(&format!("net/ipv6/conf/{ifname}/{key}"), "0") {
                // A kernel without IPv6 has no such keys, and a pod without IPv6 needs none.
                Err(error) if has_ipv6 || !error.is_not_found() => Err(error),
                _ => Ok(()),
            }
        };
        set("accept_ra", sysctl::write)?;
        if has_ipv6 && !self.conf.detect_duplicates {
            set("accept_dad", sysctl::write)?;
        }
        if has_ipv6 {
            // Reading first: a write of this one spins until the kernel's network lock is free, even when it changes
            // nothing (`addrconf_disable_ipv6`), and costs a millisecond beside other attachments.
            set("disable_ipv6", sysctl::ensure)?;
        }
        Ok(())
    }

    /// The routes inside the pod: those that come with the addresses, and the default routes that they lack.
    fn routes(&self) -> Vec<Route> {
        let mut routes: Vec<Route> = Vec::new();
        for wanted in &self.addresses.routes {
            let same_family =
                |address: &&PodAddress| address.net.addr().is_ipv4() == wanted.dst.is_ipv4();
            let gateway = self
                .addresses
                .list
                .iter()
                .find(same_family)
                .and_then(|address| address.gateway);
            let route = Route::from(wanted.clone());
            routes.push(Route {
                next_hop: route.next_hop.or(gateway),
                ..route
            });
        }
        if self.conf.gateway == Gateway::Default {
            for gateway in self
                .addresses
                .list
                .iter()
                .filter_map(|address| address.gateway)
            {
                let dst = Prefix::default_route(gateway);
                if !routes.iter().any(|route| route.dst == dst) {
                    routes.push(Route {
                        dst,
                        next_hop: Some(gateway),
                        link: None,
                        protocol: RouteProtocol::BOOT,
                        options: RouteOptions::default(),
                    });
                }
            }
        }
        routes
    }

    /// The one that was asked for, or that of the first address, IPv4 before IPv6: an address that is given out again meets no stale neighbour entry.
    fn pod_mac(&self) -> Mac {
        if let Some(mac) = self.conf.wanted_mac {
            return mac;
        }
        let addresses = || self.addresses.list.iter().map(|address| address.net.addr());
        let first = addresses()
            .find(|ip| ip.is_ipv4())
            .or_else(|| addresses().next());
        first.map_or_else(
            || self.request.attachment.mac(&self.conf.network),
            Mac::of_ip,
        )
    }

    /// Two names could be taken; the kernel does not say which.
    fn name_taken(&self, error: podspan_kernel::Error) -> Error {
        if !error.is_exists() {
            return error.into();
        }
        let id = &self.request.attachment;
        Error::AlreadyAttached(format!(
            "interface {} exists in {} already, or host veth {} on the node: {error}",
            id.ifname,
            self.request.netns.display(),
            id.host_veth(&self.conf.network),
        ))
    }

    fn result(&self, host_link: &Link, pod_mac: Mac, routes: Vec<Route>) -> CniResult {
        let interface = |name: &str, mac: Option<Mac>, mtu, sandbox: String| Interface {
            name: name.to_owned(),
            mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: Some(mtu),
            sandbox,
            other: Map::new(),
        };
        let sandbox = self.request.netns.display().to_string();
        let pod_veth = self.request.attachment.ifname.as_str();
        CniResult {
            interfaces: vec![
                interface(
                    &self.bridge.name,
                    self.bridge.mac,
                    self.bridge.mtu,
                    String::new(),
                ),
                interface(&host_link.name, host_link.mac, host_link.mtu, String::new()),
                interface(pod_veth, Some(pod_mac), host_link.mtu, sandbox),
            ],
            ips: self.addresses.list.iter().map(result_ip).collect(),
            routes: routes.iter().map(result_route).collect(),
            dns: match self.conf.dns.is_empty() {
                true => self.addresses.dns.clone(),
                false => self.conf.dns.clone(),
            },
            other: Map::new(),
        }
    }
}

/// The host end's MAC address: nobody ever sends to it, but a bridge's ports must not share one with a pod.
fn host_end(Mac([first, rest @ ..]): Mac) -> Mac {
    let [b, c, d, e, f] = rest;
    Mac([first | 0x04, b, c, d, e, f])
}

/// The pod's end in the result's list of interfaces, behind the bridge and the host's end.
const POD_INTERFACE: usize = 2;

fn result_ip(address: &PodAddress) -> Ip {
    Ip {
        address: address.net,
        gateway: address.gateway,
        interface: Some(POD_INTERFACE),
        other: Map::new(),
    }
}
