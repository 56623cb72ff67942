//! In the place of `host-local`: the IPAM without links, for plugins that delegate to it.
//!
//! Its result has no interfaces (CNI 1.1.0, section 4). It gets its caller's whole configuration (T23), and judges nothing of it
//! but `ipam` and which addresses were asked for. The addresses are those that our own plugin keeps, in the same
//! directory and format.

use serde_json::Map;

use crate::addresses::{AddressSource, AddressStore, Addresses};
use crate::error::Error;
use crate::ipam::{Ipam, boot_id};
use crate::netconf::Input;
use crate::request::Request;
use crate::result::{CniResult, Ip, result_route};

/// Serves any command; ADD answers a result.
///
/// # Errors
/// What is wrong with the configuration, or what the allocation failed of.
pub(crate) fn serve_host_local(
    request: &Request,
    input: &Input,
) -> Result<Option<CniResult>, Error> {
    match request {
        Request::Add(pod) => {
            let (source, wanted) = input.ipam()?;
            let addresses = source.take(&input.network, &pod.attachment, &wanted)?;
            Ok(Some(result(addresses)))
        }
        Request::Del(pod) => {
            input
                .address_store()
                .give_back(&input.network, &pod.attachment)?;
            Ok(None)
        }
        Request::Check(pod) => {
            let (AddressSource::Own(config), _) = input.ipam()? else {
                return Ok(None);
            };
            let store = Ipam::of_network(&config.data_dir, &input.network, &boot_id()?)?;
            match store.find(&pod.attachment)?.is_empty() {
                false => Ok(None),
                true => {
                    let id = &pod.attachment;
                    Err(Error::Deviations(vec![format!(
                        "no address is allocated to {id}"
                    )]))
                }
            }
        }
        Request::Gc => {
            let AddressStore::Own(dir) = input.address_store() else {
                return Ok(None);
            };
            let valid = input.valid_attachments()?;
            Ipam::of_network(&dir, &input.network, &boot_id()?)?.retain(&valid)?;
            Ok(None)
        }
        Request::Status => {
            let (source, _) = input.ipam()?;
            source.status(&input.network).map(|()| None)
        }
        Request::Version => Ok(None),
    }
}

fn result(addresses: Addresses) -> CniResult {
    let ips = addresses.list.iter().map(|address| Ip {
        address: address.net,
        gateway: address.gateway,
        interface: None,
        other: Map::new(),
    });
    CniResult {
        ips: ips.collect(),
        routes: addresses
            .routes
            .iter()
            .map(|route| result_route(&route.clone().into()))
            .collect(),
        dns: addresses.dns,
        ..CniResult::default()
    }
}
