//! ADD: one pod gets its address, its veth pair and its routes. Read [`attach`] from top to bottom.
//!
//! It either finishes or leaves nothing: the first step takes the attachment's record, which only one can have, so
//! everything that is found under the attachment afterwards was made here, and the way back is simply DEL's.
//! It may be killed between any two system calls; the DEL that follows finds all of it by name.
//! A surprise: the calling thread ends up in the pod's network namespace, and only `host` still leads to the node's, unless
//! it failed and came back to undo. The plugin is a process for one attachment.

use std::io::Write as _;
use std::net::IpAddr;

use podspan_kernel::{
    Errno, IfName, Link, LinkChange, Mac, Netlink, Netns, Prefix, Route, RouteOptions,
    RouteProtocol, VethEnd, VethPair, sysctl,
};
use serde_json::Map;

use crate::addresses::{AddressStore, Addresses, PodAddress};
use crate::attachment::{AttachmentId, IfbMaker};
use crate::bandwidth::{Place, ensure_limits};
use crate::bridge::{ensure_bridge, take_no_advertisement};
use crate::detach::undo;
use crate::error::Error;
use crate::filter::{HostPorts, Wanted, lead_to, policy};
use crate::guard::Guard;
use crate::host::Host;
use crate::ipam::IpamError;
use crate::netconf::{Gateway, NetConf, Spoofing, Wiring};
use crate::point_to_point;
use crate::request::PodRequest;
use crate::result::{CniResult, Interface, Ip, result_route};
use crate::vlan;

/// Attaches the pod and tells how. `host` is the node, in whose network namespace the caller is; `store` is
/// where the addresses go back to when something fails.
///
/// # Errors
/// That the attachment exists, which then stays as it is; otherwise what went wrong, after everything was undone.
pub fn attach(
    host: &mut Host,
    conf: &NetConf,
    store: &AddressStore,
    request: &PodRequest,
) -> Result<CniResult, Error> {
    let pod_netns = open_pod_netns(request, host)?;
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
        let bridge = match conf.wiring {
            Wiring::Bridge => Some(ensure_bridge(host, conf, &addresses.list)?),
            Wiring::PointToPoint => {
                point_to_point::prepare_node(&addresses.list)?;
                None
            }
        };
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
pub(crate) fn open_pod_netns(request: &PodRequest, host: &Netlink) -> Result<Netns, Error> {
    let netns = Netns::open(&request.netns).map_err(|error| match error.errno() {
        Errno::NOENT | Errno::INVAL => Error::Environment(format!(
            "CNI_NETNS is {}, where there is no network namespace: {error}",
            request.netns.display()
        )),
        _ => error.into(),
    })?;
    require_foreign(&netns, host, request.own_netns_allowed)?;
    Ok(netns)
}

/// That the namespace is not the node's, which `host` is a socket in, unless that is allowed (`CNI_NETNS_OVERRIDE`).
///
/// # Errors
/// [`Error::OwnNetns`].
pub(crate) fn require_foreign(
    netns: &Netns,
    host: &Netlink,
    own_is_allowed: bool,
) -> Result<(), Error> {
    if own_is_allowed || !netns.is_same(&host.netns()?)? {
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
    /// None for a point-to-point link.
    bridge: Option<Link>,
    pod_netns: Netns,
    addresses: Addresses,
}

impl NewAttachment<'_> {
    /// Makes the veth pair and what the node does for it, then everything inside the pod.
    fn connect(&self, host: &mut Host) -> Result<CniResult, Error> {
        let id = &self.request.attachment;
        let host_veth = id.host_veth(&self.conf.network);
        let alias = id.alias(&self.conf.network)?;
        let filtering = filtering(self.conf, id, &self.addresses.ips())?;
        let bridge = self.bridge.as_ref();
        let of_bridge = bridge.map_or(ETHERNET_MTU, |bridge| bridge.mtu);
        let mtu = self.conf.mtu.unwrap_or(of_bridge);
        let pod_mac = pod_mac(self.conf, id, &self.addresses.ips());
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
            master: bridge.map(|bridge| bridge.index),
            mtu,
        })
        .map_err(|error| self.name_taken(error))?;
        // Before the link is up, so that the pod's first packet meets it; and behind its making, by which others see that
        // who has these host ports lives.
        host.ensure_filtering(&filtering)?;
        let guard = guard(self.conf, id, &self.addresses.ips());
        self.prepare_port(host, &host_veth, guard.as_ref())?;
        if bridge.is_none() {
            take_no_advertisement(&host_veth)?;
        }
        self.drop_what_waits(host)?;
        host.set_link(
            &host_veth,
            LinkChange {
                up: true,
                alias: Some(&alias),
                hairpin: bridge.map(|_| self.conf.hairpin),
                isolated: bridge
                    .map(|_| true)
                    .filter(|_| self.conf.port_isolation || self.conf.routed),
                // Of a guarded port all is known.
                learning: guard.as_ref().map(|_| false),
                flood: guard.as_ref().map(|_| false),
                no_link_local: true,
                ..LinkChange::default()
            },
        )?;

        let ifb = self.ensure_limits(host, &host_veth, &alias)?;
        let routes = self.routes();
        self.pod_netns.enter()?;
        self.configure_pod(&routes)?;

        // The pod's end came up last, so the carrier of the host's end is just on: asking waits until it lets packets
        // through, and the first packet of the pod is not lost.
        let host_link = host.link(&host_veth)?;
        if bridge.is_none() {
            point_to_point::ensure_host_side(host, &host_link, &self.addresses.list)?;
        }
        let mut result = self.result(&host_link, pod_mac, routes);
        result.interfaces.extend(ifb.as_ref().map(host_interface));
        let gateway_link = self.conf.gateway_link()?;
        if bridge.is_some() && gateway_link != self.conf.bridge {
            let link = host.find_link(&gateway_link)?;
            result.interfaces.extend(link.as_ref().map(host_interface));
        }
        self.wait_for_policy(host, &host_veth)?;
        Ok(result)
    }

    /// Drops the packets to the addresses that wait on the node for somebody to have them: they came when the addresses were
    /// nobody's, and so past no policy, and would go to the pod as soon as it answers. What comes now is filtered.
    fn drop_what_waits(&self, host: &mut Netlink) -> Result<(), Error> {
        let Some(bridge) = { self.bridge.as_ref() }.filter(|_| self.conf.policy.is_some()) else {
            return Ok(());
        };
        let gateway_link = self.conf.gateway_link()?;
        let link = match gateway_link == self.conf.bridge {
            true => Some(bridge.index),
            false => host.find_link(&gateway_link)?.map(|link| link.index),
        };
        for ip in self.addresses.ips() {
            if let Some(link) = link {
                host.remove_neighbour(link, ip)?;
            }
        }
        Ok(())
    }

    /// Gives the agent time to put the pod's policy into force. A pod that it does not know then stays closed, which is told:
    /// it opens as soon as it is known.
    fn wait_for_policy(&self, host: &mut Host, host_veth: &IfName) -> Result<(), Error> {
        let Some(policy) = { self.conf.policy.as_ref() }.filter(|policy| policy.begins_closed())
        else {
            return Ok(());
        };
        if !policy.wait.is_zero() && !host.wait_until_open(host_veth, policy.wait)? {
            let pod = policy.pod.as_ref();
            let of = |pod: &policy::PodName| format!("{}/{}", pod.namespace, pod.name);
            // Nobody may read it: that is no reason to fail.
            let _ = writeln!(
                std::io::stderr(),
                "podspan-cni: the policy of pod {} was not in force after {} ms: only the node reaches it until podspan agent knows it",
                pod.map(of).unwrap_or_default(),
                policy.wait.as_millis(),
            );
        }
        Ok(())
    }

    /// The VLANs and the guard of a port, which is not up yet. The guard comes last: the bridge is told of each VLAN where the
    /// pod is.
    fn prepare_port(
        &self,
        host: &mut Netlink,
        host_veth: &IfName,
        guard: Option<&Guard>,
    ) -> Result<(), Error> {
        let of_vlans = |_: &&Link| !self.conf.vlans.is_none();
        let bridge = self.bridge.as_ref().filter(of_vlans);
        if bridge.is_none() && guard.is_none() {
            return Ok(());
        }
        let port = host.link_index(host_veth)?;
        if let Some(bridge) = bridge {
            vlan::set_port(host, (bridge, port), &self.conf.vlans)?;
        }
        match guard {
            Some(guard) => guard.ensure(host, port),
            None => Ok(()),
        }
    }

    /// Bounds what goes to the pod and comes from it, and tells the ifb device that this took.
    fn ensure_limits(
        &self,
        host: &mut Netlink,
        host_veth: &IfName,
        alias: &str,
    ) -> Result<Option<Link>, Error> {
        if self.conf.limits.is_none() {
            return Ok(None);
        }
        let id = &self.request.attachment;
        let place = Place {
            host_link: &host.link(host_veth)?,
            ifb: &id.ifb(&self.conf.network, IfbMaker::Attaching),
            alias,
        };
        ensure_limits(host, &self.conf.limits, &place)
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
        let index = pod.link_index(ifname)?;
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
        if self.bridge.is_none() || self.conf.routed {
            point_to_point::lead_through_gateways(&mut pod, index, &self.addresses.list)?;
        }
        // Another network may have brought a default route: as after the reference plugins, both stand.
        for route in routes {
            pod.add_route_beside_others(&Route {
                link: Some(index),
                ..route.clone()
            })?;
        }
        Ok(())
    }

    /// No router advertisement of a neighbour changes the pod's routes, nor does a redirect where the node routes between pods;
    /// its link-local address is usable at once.
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
        if self.conf.routed {
            // The node sends them whenever a packet leaves where it came in (`ip6_forward`), and has no switch for it. Heeded,
            // one would have the pod look for another on the link, where nobody answers.
            set("accept_redirects", sysctl::write)?;
        }
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
        let pod_interface = Interface {
            name: self.request.attachment.ifname.to_string(),
            mac: pod_mac.to_string(),
            mtu: Some(host_link.mtu),
            sandbox: self.request.netns.display().to_string(),
            other: Map::new(),
        };
        let on_node = self.bridge.iter().chain([host_link]).map(host_interface);
        let mut interfaces: Vec<_> = on_node.collect();
        let pod_index = interfaces.len();
        interfaces.push(pod_interface);
        let ip = |address: &PodAddress| Ip {
            address: address.net,
            gateway: address.gateway,
            interface: Some(pod_index),
            other: Map::new(),
        };
        CniResult {
            interfaces,
            ips: self.addresses.list.iter().map(ip).collect(),
            routes: routes.iter().map(result_route).collect(),
            dns: match self.conf.dns.is_empty() {
                true => self.addresses.dns.clone(),
                false => self.conf.dns.clone(),
            },
            other: Map::new(),
        }
    }
}

/// The MTU in bytes of a link that nothing says another of.
const ETHERNET_MTU: u32 = 1500;
/// What the node filters for an attachment with these addresses.
///
/// # Errors
/// [`Error::Config`] for a host port that cannot lead to any of them.
pub(crate) fn filtering(
    conf: &NetConf,
    id: &AttachmentId,
    ips: &[IpAddr],
) -> Result<Wanted, Error> {
    let host_veth = id.host_veth(&conf.network);
    Ok(Wanted {
        record: host_veth.clone(),
        owner: id.alias(&conf.network)?,
        link: Some(host_veth.clone()),
        towards: Some(match conf.wiring {
            Wiring::Bridge => conf.gateway_link()?,
            Wiring::PointToPoint => host_veth.clone(),
        }),
        masquerade: match conf.masquerade {
            true => ips.to_vec(),
            false => Vec::new(),
        },
        ports: HostPorts {
            list: lead_to(&conf.port_mappings, ips)?,
            ..HostPorts::default()
        },
        policy: conf.policy.as_ref().map(|policy| policy::Subject {
            pod: policy.pod.clone(),
            addresses: policy::with_link_local(ips, pod_mac(conf, id, ips)),
            closed: policy.begins_closed(),
        }),
    })
}

/// What an attachment with these addresses may send as; none where that is nobody's affair.
pub(crate) fn guard(conf: &NetConf, id: &AttachmentId, ips: &[IpAddr]) -> Option<Guard> {
    let addresses = match conf.spoofing {
        Spoofing::Refused => Some(ips.to_vec()).filter(|ips| !ips.is_empty()),
        Spoofing::RefusedMacs => None,
        Spoofing::Allowed => return None,
    };
    Some(Guard {
        mac: pod_mac(conf, id, ips),
        addresses,
    })
}

/// The one that was asked for, or that of the first address, IPv4 before IPv6: an address that is given out again meets no
/// stale neighbour entry.
fn pod_mac(conf: &NetConf, id: &AttachmentId, ips: &[IpAddr]) -> Mac {
    let first = ips.iter().find(|ip| ip.is_ipv4()).or_else(|| ips.first());
    let derived = || first.map_or_else(|| id.mac(&conf.network), |ip| Mac::of_ip(*ip));
    conf.wanted_mac.unwrap_or_else(derived)
}

/// The host end's MAC address: nobody ever sends to it, but a bridge's ports must not share one with a pod.
pub(crate) fn host_end(Mac([first, rest @ ..]): Mac) -> Mac {
    let [b, c, d, e, f] = rest;
    Mac([first | 0x04, b, c, d, e, f])
}

/// A link of the node in a result.
pub(crate) fn host_interface(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        mtu: Some(link.mtu),
        ..Interface::default()
    }
}
