//! In the place of `loopback`: the pod's `lo` is up.
//!
//! Containerd runs it for every pod. DEL does nothing: the interface ends with its namespace, and setting it down would take
//! it from others in it.

use podspan_kernel::{IfName, LinkChange, Netlink};
use serde_json::Map;

use crate::attach::open_pod_netns;
use crate::error::Error;
use crate::netconf::Input;
use crate::request::{PodRequest, Request};
use crate::result::{CniResult, Interface, Ip};

/// Serves any command; ADD answers a result.
///
/// # Errors
/// No namespace, or what the kernel answered; for CHECK that `lo` is down.
pub(crate) fn serve_loopback(request: &Request, input: &Input) -> Result<Option<CniResult>, Error> {
    match request {
        Request::Add(pod) => {
            let addresses = set_up(pod)?;
            // The reference plugin hands on what came before it and adds nothing.
            Ok(Some(
                input
                    .prev_result()?
                    .unwrap_or_else(|| result(pod, &addresses)),
            ))
        }
        Request::Check(pod) => {
            open_pod_netns(pod, &Netlink::open()?)?.enter()?;
            match Netlink::open()?.link(&lo()?)?.up {
                true => Ok(None),
                false => Err(Error::Deviations(vec![
                    "interface lo in the pod is down".into(),
                ])),
            }
        }
        Request::Del(_) | Request::Gc | Request::Status | Request::Version => Ok(None),
    }
}

fn lo() -> Result<IfName, Error> {
    Ok("lo".parse()?)
}

/// The addresses that it then has.
fn set_up(pod: &PodRequest) -> Result<Vec<ipnet::IpNet>, Error> {
    open_pod_netns(pod, &Netlink::open()?)?.enter()?;
    let mut netlink = Netlink::open()?;
    let lo = netlink.link(&lo()?)?.index;
    netlink.set_link(
        lo,
        LinkChange {
            up: true,
            ..LinkChange::default()
        },
    )?;
    let addresses = netlink
        .list_addresses()?
        .into_iter()
        .filter(|address| address.link == lo);
    Ok(addresses.map(|address| address.net).collect())
}

fn result(pod: &PodRequest, addresses: &[ipnet::IpNet]) -> CniResult {
    let interface = Interface {
        name: "lo".into(),
        mac: "00:00:00:00:00:00".into(),
        sandbox: pod.netns.display().to_string(),
        ..Interface::default()
    };
    let ip = |address: &ipnet::IpNet| Ip {
        address: *address,
        gateway: None,
        interface: Some(0),
        other: Map::new(),
    };
    CniResult {
        interfaces: vec![interface],
        ips: addresses.iter().map(ip).collect(),
        ..CniResult::default()
    }
}
