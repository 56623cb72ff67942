//! In the place of `static`: the addresses that the configuration names, for plugins that delegate to it.
//!
//! Nothing is kept: who gives two pods one address has two pods with one address. CNI_ARGS adds addresses; `args.cni` and
//! `runtimeConfig` take the place of all of them, as with the reference plugin.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::ipam::Dns;
use crate::netconf::Input;
use crate::request::Request;
use crate::requested::cni_args;
use crate::result::{CniResult, Ip, ResultRoute};
use crate::version::Version;

/// The `ipam` block as it stands.
#[derive(Deserialize)]
struct Block {
    addresses: Option<Vec<RawAddress>>,
    routes: Option<Vec<ResultRoute>>,
    dns: Option<Dns>,
}

#[derive(Deserialize)]
struct RawAddress {
    address: String,
    gateway: Option<String>,
}

/// Serves any command; ADD answers a result.
///
/// # Errors
/// What is wrong with the configuration; for CHECK what prevResult lacks.
pub(crate) fn serve_static(request: &Request, input: &Input) -> Result<Option<CniResult>, Error> {
    match request {
        Request::Add(_) => result(input).map(Some),
        Request::Check(_) => {
            let (wanted, added) = (result(input)?, input.chained_result()?);
            let is_there = |ip: &&Ip| {
                let same = |other: &&Ip| other.address == ip.address;
                let found = added.ips.iter().find(same);
                !found.is_some_and(|other| ip.gateway.is_none() || ip.gateway == other.gateway)
            };
            let missing: Vec<_> = wanted.ips.iter().filter(is_there).map(deviation).collect();
            match missing.is_empty() {
                true => Ok(None),
                false => Err(Error::Deviations(missing)),
            }
        }
        Request::Status => result(input).map(|_| None),
        Request::Del(_) | Request::Gc | Request::Version => Ok(None),
    }
}

fn deviation(ip: &Ip) -> String {
    let gateway = ip.gateway.map(|ip| format!(" with gateway {ip}"));
    let gateway = gateway.unwrap_or_default();
    format!("address {}{gateway} is not in prevResult", ip.address)
}

/// The result: addresses, routes and DNS of the configuration, without interfaces (T23).
fn result(input: &Input) -> Result<CniResult, Error> {
    let keys = input.keys();
    let ipam = keys.get("ipam").filter(|ipam| ipam.is_object());
    let ipam = ipam.ok_or_else(|| {
        let right = r#""ipam": {"type": "static", "addresses": [{"address": "10.244.1.7/24"}]}"#;
        Error::Config(format!("ipam is missing; give {right}"))
    })?;
    let block: Block = serde_path_to_error::deserialize(ipam)
        .map_err(|error| Error::Config(format!("ipam.{}: {}", error.path(), error.inner())))?;
    let configured = block.addresses.unwrap_or_default();
    let configured = configured.iter().enumerate().map(|(at, raw)| {
        let key = format!("ipam.addresses[{at}]");
        let gateway = raw.gateway.as_deref().filter(|text| !text.is_empty());
        let gateway = gateway.map(|text| gateway_of(&format!("{key}.gateway"), text));
        let gateway = gateway.transpose().map_err(Error::Config)?;
        let address = address(&format!("{key}.address"), &raw.address).map_err(Error::Config)?;
        Ok(ip(address, gateway))
    });
    let mut ips = configured.collect::<Result<Vec<_>, Error>>()?;
    ips.extend(of_cni_args(input.cni_args().unwrap_or_default())?);
    let args = keys.get("args").and_then(|args| args.get("cni"));
    for (place, value) in [
        ("args.cni", args),
        ("runtimeConfig", keys.get("runtimeConfig")),
    ] {
        let asked = listed(place, value.and_then(|value| value.get("ips")))?;
        if !asked.is_empty() {
            ips = asked;
        }
    }
    require_room(&ips, input.version)?;
    Ok(CniResult {
        ips,
        routes: block.routes.unwrap_or_default(),
        dns: block.dns.unwrap_or_default(),
        ..CniResult::default()
    })
}

/// `IP=10.244.1.7/24,fd00::7/64;GATEWAY=10.244.1.1`: a gateway is that of the addresses whose subnet holds it.
fn of_cni_args(text: &str) -> Result<Vec<Ip>, Error> {
    let wrong = |what| Error::Environment(format!("CNI_ARGS: {what}"));
    let pairs = cni_args(text)?;
    let values = |wanted: &'static str| {
        let of_key = pairs.iter().filter(move |(key, _)| *key == wanted);
        of_key.flat_map(|(_, value)| value.split(',').map(str::trim))
    };
    let addresses = values("IP").map(|text| Ok(ip(address("IP", text).map_err(wrong)?, None)));
    let mut ips = addresses.collect::<Result<Vec<_>, Error>>()?;
    for text in values("GATEWAY") {
        let gateway = gateway_of("GATEWAY", text).map_err(wrong)?;
        for ip in &mut ips {
            if ip.address.contains(&gateway) {
                ip.gateway = Some(gateway);
            }
        }
    }
    Ok(ips)
}

/// The addresses of a list of texts.
fn listed(place: &str, list: Option<&Value>) -> Result<Vec<Ip>, Error> {
    let Some(list) = list.filter(|list| !list.is_null()) else {
        return Ok(Vec::new());
    };
    let wrong = |what: String| Error::Config(format!("{place}.ips: {what}"));
    let texts = Vec::<String>::deserialize(list).map_err(|error| wrong(error.to_string()))?;
    let parse = |text: &String| match text.parse::<IpNet>() {
        Ok(net) => Ok(ip(net, None)),
        Err(_) => Err(wrong(format!("{text:?} {ADDRESS_FORM}"))),
    };
    texts.iter().map(parse).collect()
}

/// A result before 0.3.0 has one address a family.
fn require_room(ips: &[Ip], version: Version) -> Result<(), Error> {
    let ipv4 = ips.iter().filter(|ip| ip.address.addr().is_ipv4()).count();
    if version >= Version::V0_3_0 || (ipv4 <= 1 && ips.len() - ipv4 <= 1) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "there are {} addresses, and cniVersion {version} has room for one of each family",
        ips.len()
    )))
}

const ADDRESS_FORM: &str = "is no address with the length of its subnet, such as 10.244.1.7/24";

fn address(key: &str, text: &str) -> Result<IpNet, String> {
    let parsed = text.parse();
    parsed.map_err(|_| format!("{key}: {text:?} {ADDRESS_FORM}"))
}

fn gateway_of(key: &str, text: &str) -> Result<IpAddr, String> {
    let parsed = text.parse();
    parsed.map_err(|_| format!("{key}: {text:?} is no address, such as 10.244.1.1"))
}

fn ip(address: IpNet, gateway: Option<IpAddr>) -> Ip {
    Ip {
        address,
        gateway,
        interface: None,
        other: Map::new(),
    }
}
