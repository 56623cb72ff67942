//! ADD: one pod gets its address, its veth pair and its routes. Read [`attach`] from top to bottom.
//!
//! It either finishes or leaves nothing: the first step takes the attachment's record, which only one can have, so
//! everything that is found under the attachment afterwards was made here, and the way back is simply DEL's.
//! It may be killed between any two system calls; the DEL that follows finds all of it by name.
//! A surprise: the calling thread ends up in the pod's network namespace, and only `host` still leads to the node's. The
//! plugin is a process for one attachment.

use ipnet::IpNet;
use podspan_kernel::{
    Errno, Link, LinkChange, Mac, Netlink, Netns, Prefix, Route, RouteOptions, RouteProtocol,
    VethEnd, VethPair, sysctl,
};
use serde_json::{Map, Value};

use crate::bridge::ensure_bridge;
use crate::detach::detach;
use crate::error::Error;
use crate::ipam::{Allocation, Dns, Ipam, boot_id};
use crate::netconf::{Gateway, NetConf};
use crate::request::PodRequest;
use crate::result::{CniResult, Interface, Ip, ResultRoute};

/// Attaches the pod and tells how. `host` is a socket in the node's network namespace, where the caller is.
///
/// # Errors
/// [`Error::AlreadyAttached`] for an attachment that exists, which stays as it is; otherwise what went wrong, after
/// everything was undone.
pub fn attach(
    host: &mut Netlink,
    conf: &NetConf,
    request: &PodRequest,
) -> Result<CniResult, Error> {
    let pod_netns = open_pod_netns(request)?;
    let dns = dns(conf)?;
    let bridge = ensure_bridge(host, conf)?;

    let ipam = Ipam::open(&conf.ipam, &conf.network, &boot_id()?)?;
    let allocations = ipam.allocate(&request.attachment)?;
    let attachment = NewAttachment {
        conf,
        request,
        dns,
        bridge,
        pod_netns,
        allocations,
    };
    attachment.connect(host).map_err(|error| {
        match detach(
            host,
            &conf.network,
            &request.attachment,
            &conf.ipam.data_dir,
        ) {
            Ok(()) => error,
            Err(undo) => Error::Several(vec![error, undo]),
        }
    })
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

/// What the configuration says of DNS, or else the file that it names.
fn dns(conf: &NetConf) -> Result<Dns, Error> {
    match &conf.ipam.resolv_conf {
        Some(path) if conf.dns.is_empty() => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Error::Config(format!(
                    "ipam.resolvConf: {} cannot be read: {error}",
                    path.display()
                ))
            })?;
            Ok(Dns::from_resolv_conf(&text))
        }
        _ => Ok(conf.dns.clone()),
    }
}

/// An attachment whose addresses are allocated and whose links are not made yet.
struct NewAttachment<'a> {
    conf: &'a NetConf,
    request: &'a PodRequest,
    dns: Dns,
    bridge: Link,
    pod_netns: Netns,
    allocations: Vec<Allocation>,
}

impl NewAttachment<'_> {
    /// Makes the veth pair, then everything inside the pod.
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
                no_link_local: true,
                ..LinkChange::default()
            },
        )?;

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
        let mut pod = Netlink::open()?;
        let index = pod.link(ifname)?.index;
        pod.set_link(
            index,
            LinkChange {
                up: true,
                ..LinkChange::default()
            },
        )?;
        for allocation in &self.allocations {
            pod.ensure_address(index, allocation.address)?;
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
            .allocations
            .iter()
            .any(|allocation| allocation.address.addr().is_ipv6());
        let mut wanted = vec!["accept_ra"];
        if has_ipv6 {
            wanted.extend(["accept_dad", "disable_ipv6"]);
        }
        for key in wanted {
            match sysctl::write(&format!("net/ipv6/conf/{ifname}/{key}"), "0") {
                // A kernel without IPv6 has no such keys, and a pod without IPv6 needs none.
                Err(error) if has_ipv6 || !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// The routes inside the pod: those of the configuration, and the default routes that it does not have.
    fn routes(&self) -> Vec<Route> {
        let mut routes: Vec<Route> = Vec::new();
        for wanted in &self.conf.ipam.routes {
            let same_family = |a: &&Allocation| a.gateway.is_ipv4() == wanted.dst.is_ipv4();
            let gateway = self.allocations.iter().find(same_family).map(|a| a.gateway);
            routes.push(Route {
                dst: wanted.dst,
                next_hop: wanted.gw.or(gateway),
                link: None,
                protocol: RouteProtocol::BOOT,
                options: RouteOptions {
                    metric: wanted.priority,
                    mtu: wanted.mtu,
                    advmss: wanted.advmss,
                    table: wanted.table,
                    scope: wanted.scope,
                },
            });
        }
        if self.conf.gateway == Gateway::Default {
            for allocation in &self.allocations {
                let dst = Prefix::default_route(allocation.gateway);
                if !routes.iter().any(|route| route.dst == dst) {
                    routes.push(Route {
                        dst,
                        next_hop: Some(allocation.gateway),
                        link: None,
                        protocol: RouteProtocol::BOOT,
                        options: RouteOptions::default(),
                    });
                }
            }
        }
        routes
    }

    /// That of the first address, IPv4 before IPv6: an address that is given out again meets no stale neighbour entry.
    fn pod_mac(&self) -> Mac {
        let addresses = || {
            self.allocations
                .iter()
                .map(|allocation| allocation.address.addr())
        };
        let first = addresses()
            .find(|ip| ip.is_ipv4())
            .or_else(|| addresses().next());
        Mac::of_ip(first.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into()))
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
            ips: self.allocations.iter().map(result_ip).collect(),
            routes: routes.into_iter().map(result_route).collect(),
            dns: self.dns.clone(),
            other: Map::new(),
        }
    }
}

/// The host end's MAC address: nobody ever sends to it, but a bridge's ports must not share one with a pod.
fn host_end(Mac([first, rest @ ..]): Mac) -> Mac {
    let [b, c, d, e, f] = rest;
    Mac([first | 0x04, b, c, d, e, f])
}

fn result_ip(allocation: &Allocation) -> Ip {
    Ip {
        address: allocation.address,
        gateway: Some(allocation.gateway),
        interface: Some(POD_INTERFACE),
        other: Map::new(),
    }
}

/// The pod's end in the result's list of interfaces, behind the bridge and the host's end.
const POD_INTERFACE: usize = 2;

fn result_route(route: Route) -> ResultRoute {
    let options = route.options;
    let numbers = [
        ("mtu", options.mtu),
        ("advmss", options.advmss),
        ("priority", options.metric),
        ("table", options.table),
        ("scope", options.scope.map(u32::from)),
    ];
    let other = numbers
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), Value::from(value?))))
        .collect();
    let dst: IpNet = route.dst.net();
    ResultRoute {
        dst,
        gw: route.next_hop,
        other,
    }
}
