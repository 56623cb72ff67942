//! The results of CNI 0.1.0 and 0.2.0: one address a family, each with its routes, and no interfaces.
//!
//! What such a result cannot say is left out: interfaces, further addresses, keys of others.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use super::{CniResult, Ip, ResultRoute};
use crate::error::Error;
use crate::ipam::Dns;

/// A result in the shape of 0.1.0 and 0.2.0.
#[derive(Serialize, Deserialize)]
pub(super) struct LegacyResult {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<LegacyIp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<LegacyIp>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Serialize, Deserialize)]
struct LegacyIp {
    ip: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<LegacyRoute>,
}

#[derive(Serialize, Deserialize)]
struct LegacyRoute {
    dst: IpNet,
    #[serde(skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
}

impl LegacyResult {
    /// The first address of each family.
    ///
    /// # Errors
    /// [`Error::Config`] when there is no address at all: the shape has no room for such a result.
    pub(super) fn of(result: &CniResult) -> Result<Self, Error> {
        let family = |ipv4: bool| {
            let ip = result
                .ips
                .iter()
                .find(|ip| ip.address.addr().is_ipv4() == ipv4)?;
            let routes = result
                .routes
                .iter()
                .filter(|route| route.dst.addr().is_ipv4() == ipv4);
            Some(LegacyIp {
                ip: ip.address,
                gateway: ip.gateway,
                routes: routes
                    .map(|route| LegacyRoute {
                        dst: route.dst,
                        gw: route.gw,
                    })
                    .collect(),
            })
        };
        let (ip4, ip6) = (family(true), family(false));
        if ip4.is_none() && ip6.is_none() {
            return Err(Error::Config(
                "cannot convert: no valid IP addresses".into(),
            ));
        }
        Ok(Self {
            ip4,
            ip6,
            dns: result.dns.clone(),
        })
    }
}

impl From<LegacyResult> for CniResult {
    fn from(legacy: LegacyResult) -> Self {
        let mut result = Self {
            dns: legacy.dns,
            ..Self::default()
        };
        for of_family in [legacy.ip4, legacy.ip6].into_iter().flatten() {
            result.ips.push(Ip {
                address: of_family.ip,
                gateway: of_family.gateway,
                interface: None,
                other: Map::new(),
            });
            result
                .routes
                .extend(of_family.routes.into_iter().map(|route| ResultRoute {
                    dst: route.dst,
                    gw: route.gw,
                    other: Map::new(),
                }));
        }
        result
    }
}
