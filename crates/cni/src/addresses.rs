//! Where a pod's addresses come from and go back to: our own IPAM, another IPAM plugin, or nowhere.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use podspan_kernel::{Prefix, Route, RouteOptions, RouteProtocol};

use crate::attachment::{AttachmentId, NetworkName};
use crate::delegate::Delegate;
use crate::error::Error;
use crate::ipam::{Dns, Ipam, IpamConfig, IpamRoute, boot_id};
use crate::netconf::Gateway;
use crate::result::ResultRoute;

/// Where addresses come from.
#[derive(Debug)]
pub enum AddressSource {
    /// `ipam` is empty: the pod is on the bridge without an address.
    None,
    /// Ours.
    Own(IpamConfig),
    /// Another plugin's.
    Delegated(Delegate),
}

/// Where addresses go back to: all that DEL needs, and what even a broken configuration tells.
#[derive(Debug)]
pub enum AddressStore {
    /// Our own directory (`ipam.dataDir`).
    Own(PathBuf),
    /// Another plugin's.
    Delegated(Delegate),
}

/// What a pod gets.
#[derive(Debug, Default)]
pub struct Addresses {
    /// One for each range set, in their order.
    pub list: Vec<PodAddress>,
    /// The routes that come with them.
    pub routes: Vec<IpamRoute>,
    /// What they say of DNS.
    pub dns: Dns,
}

/// An address of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodAddress {
    /// The address with the length of its subnet.
    pub net: IpNet,
    /// Where packets to elsewhere go; another plugin may not say.
    pub gateway: Option<IpAddr>,
}

impl AddressSource {
    /// Takes the addresses of an attachment.
    ///
    /// # Errors
    /// [`Error::Ipam`] with [`Duplicate`](crate::ipam::IpamError::Duplicate) when it has some already; what else failed.
    pub fn take(
        &self,
        network: &NetworkName,
        id: &AttachmentId,
        wanted: &[IpAddr],
    ) -> Result<Addresses, Error> {
        match self {
            Self::None => Ok(Addresses::default()),
            Self::Own(config) => {
                // Before anything is taken: the file may not be there.
                let dns = resolv_conf(config)?;
                let allocations =
                    Ipam::open(config, network, &boot_id()?)?.allocate_wanted(id, wanted)?;
                let list = allocations.into_iter().map(|allocation| PodAddress {
                    net: allocation.address,
                    gateway: Some(allocation.gateway),
                });
                Ok(Addresses {
                    list: list.collect(),
                    routes: config.routes.clone(),
                    dns,
                })
            }
            Self::Delegated(delegate) => {
                // T23: a failed ADD of the delegate is followed by its DEL; whoever called us runs it.
                let result = delegate.add()?;
                let list = result.ips.iter().map(|ip| PodAddress {
                    net: ip.address,
                    gateway: ip.gateway,
                });
                let (list, routes) = (list.collect(), result.routes.iter().map(route).collect());
                Ok(Addresses {
                    list,
                    routes,
                    dns: result.dns,
                })
            }
        }
    }

    /// The gateways that are known before any address is taken, with the length of their subnet.
    pub fn gateways(&self) -> Vec<IpNet> {
        let Self::Own(config) = self else {
            return Vec::new();
        };
        let ranges = config.range_sets.iter().flat_map(|set| &set.0);
        let mut gateways: Vec<_> = ranges
            .filter_map(|range| IpNet::new(range.gateway, range.subnet.length()).ok())
            .collect();
        gateways.dedup();
        gateways
    }

    /// Would an ADD find addresses?
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the counts; the delegate's own (T32).
    pub fn status(&self, network: &NetworkName) -> Result<(), Error> {
        match self {
            Self::None => Ok(()),
            Self::Own(config) => Ipam::open(config, network, &boot_id()?)
                .and_then(|ipam| ipam.status())
                .map_err(|error| Error::Unavailable(error.to_string())),
            Self::Delegated(delegate) => delegate.tell("STATUS"),
        }
    }
}

impl Addresses {
    /// The addresses without the length of their subnet.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.list.iter().map(|address| address.net.addr()).collect()
    }

    /// Where the bridge is a gateway and nobody said its address, it is the first of the subnet.
    pub fn complete_gateways(&mut self, bridge: Gateway) {
        if bridge >= Gateway::Present {
            for address in &mut self.list {
                address.gateway = address
                    .gateway
                    .or(Prefix::containing(address.net).first_host());
            }
        }
    }
}

impl AddressStore {
    /// True where another plugin than ours may have given some of the addresses: in a directory that was host-local's.
    pub fn may_be_adopted(&self, network: &NetworkName) -> bool {
        match self {
            Self::Own(dir) => Ipam::may_be_adopted(&dir.join(network.as_str())),
            Self::Delegated(_) => false,
        }
    }

    /// Gives back the addresses of an attachment; that it has none is fine.
    ///
    /// # Errors
    /// What failed.
    pub fn give_back(&self, network: &NetworkName, id: &AttachmentId) -> Result<(), Error> {
        match self {
            Self::Own(dir) => Ok(Ipam::of_network(dir, network, &boot_id()?)?.release(id)?),
            Self::Delegated(delegate) => delegate.tell("DEL"),
        }
    }
}

/// What `ipam.resolvConf` names says of DNS.
fn resolv_conf(config: &IpamConfig) -> Result<Dns, Error> {
    let Some(path) = &config.resolv_conf else {
        return Ok(Dns::default());
    };
    let text = std::fs::read_to_string(path).map_err(|error| {
        Error::Config(format!(
            "ipam.resolvConf: {} cannot be read: {error}",
            path.display()
        ))
    })?;
    Ok(Dns::from_resolv_conf(&text))
}

impl From<IpamRoute> for Route {
    fn from(route: IpamRoute) -> Self {
        Self {
            dst: route.dst,
            next_hop: route.gw,
            link: None,
            protocol: RouteProtocol::BOOT,
            options: RouteOptions {
                metric: route.priority,
                mtu: route.mtu,
                advmss: route.advmss,
                table: route.table,
                scope: route.scope,
                ..RouteOptions::default()
            },
        }
    }
}

fn route(route: &ResultRoute) -> IpamRoute {
    let number = |key: &str| route.other.get(key)?.as_u64()?.try_into().ok();
    IpamRoute {
        dst: Prefix::containing(route.dst),
        gw: route.gw,
        mtu: number("mtu"),
        advmss: number("advmss"),
        priority: number("priority"),
        table: number("table"),
        scope: route
            .other
            .get("scope")
            .and_then(|scope| scope.as_u64()?.try_into().ok()),
    }
}
