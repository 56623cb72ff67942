//! In the place of `portmap`: host ports for a pod that another plugin of the chain attached.
//!
//! What it needs it takes from the previous result, and answers it unchanged. DEL and GC go by the record alone, whose name
//! is another than the bridge plugin's for the same attachment. It lives with the link on the node that the result tells of.
//! The keys that choose between mechanisms of iptables ask for nothing here: rules are nftables' always, and nobody's mark is
//! needed to masquerade.

use std::net::IpAddr;

use podspan_kernel::IfName;
use serde::Deserialize;

use crate::attachment::AttachmentId;
use crate::error::Error;
use crate::filter::{HostPorts, Wanted, lead_to};
use crate::host::Host;
use crate::netconf::Input;
use crate::request::{PodRequest, Request};
use crate::result::{CniResult, Interface};

/// The plugin's own keys.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    snat: Option<bool>,
    masq_all: Option<bool>,
    mark_masq_bit: Option<i64>,
    external_set_mark_chain: Option<String>,
    backend: Option<String>,
    #[serde(rename = "conditionsV4")]
    conditions_v4: Option<Vec<String>>,
    #[serde(rename = "conditionsV6")]
    conditions_v6: Option<Vec<String>>,
}

/// Serves any command; ADD answers a result.
///
/// # Errors
/// What is wrong with the configuration, a host port that is taken, or what the kernel answered.
pub(crate) fn serve_portmap(request: &Request, input: &Input) -> Result<Option<CniResult>, Error> {
    match request {
        Request::Add(pod) => {
            let result = previous(input)?;
            let mut host = Host::open()?;
            let wanted = wanted(&mut host, (input, pod), &result)?;
            let undo = |error, host: &mut Host| {
                let undone = host.remove_filtering(&wanted.record).err();
                Error::from_all([Some(error), undone].into_iter().flatten().collect())
            };
            host.ensure_filtering(&wanted)
                .or_else(|error| undo(error, &mut host))?;
            Ok(Some(result))
        }
        Request::Check(pod) => {
            let mut host = Host::open()?;
            let wanted = wanted(&mut host, (input, pod), &previous(input)?)?;
            let missing = host.missing_filtering(&wanted)?;
            match missing.is_empty() {
                true => Ok(None),
                false => Err(Error::Deviations(missing)),
            }
        }
        Request::Del(pod) => {
            let record = pod.attachment.port_mappings(&input.network);
            Host::open()?.remove_filtering(&record).map(|()| None)
        }
        Request::Gc => collect_garbage(input).map(|()| None),
        Request::Status | Request::Version => Ok(None),
    }
}

/// Ends what an ADD did whose result nobody got.
///
/// # Errors
/// What the kernel answered.
pub(crate) fn undo_portmap(input: &Input, id: &AttachmentId) -> Result<(), Error> {
    Host::open()?.remove_filtering(&id.port_mappings(&input.network))
}

fn previous(input: &Input) -> Result<CniResult, Error> {
    input.prev_result()?.ok_or_else(|| {
        Error::Config(
            "prevResult is missing; portmap stands behind a plugin that attaches the pod".into(),
        )
    })
}

/// What is wanted of the node.
fn wanted(
    host: &mut Host,
    (input, pod): (&Input, &PodRequest),
    result: &CniResult,
) -> Result<Wanted, Error> {
    let keys: Keys = input.keys_as()?;
    keys.check()?;
    let mappings = input.requested()?.port_mappings;
    let ips = pod_ips(result);
    let list = lead_to(&mappings, &ips)?;
    let (link, towards) = match list.first() {
        Some(port) => (host_link(host, result)?, towards(host, port.to.ip())?),
        None => (None, None),
    };
    Ok(Wanted {
        record: pod.attachment.port_mappings(&input.network),
        owner: pod.attachment.alias(&input.network)?,
        link,
        towards,
        masquerade: Vec::new(),
        ports: HostPorts {
            list,
            snat: keys.snat.unwrap_or(true),
            masquerade_all: keys.masq_all.unwrap_or(false),
        },
        policy: None,
    })
}

impl Keys {
    /// Refuses what cannot be, as the reference plugin does, and what cannot be served.
    fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Config(text));
        let chain = self.external_set_mark_chain.as_deref().unwrap_or_default();
        match self.mark_masq_bit {
            Some(bit) if !(0..32).contains(&bit) => {
                return wrong(format!("markMasqBit is {bit}; it must be from 0 to 31"));
            }
            Some(bit) if !chain.is_empty() => {
                return wrong(format!(
                    "markMasqBit is {bit} and externalSetMarkChain is {chain:?}; give one of them"
                ));
            }
            _ => {}
        }
        match self.backend.as_deref() {
            None | Some("" | "iptables" | "nftables") => {}
            Some(other) => {
                return wrong(format!(
                    "backend is {other:?}; it must be iptables or nftables"
                ));
            }
        }
        for (key, conditions) in [
            ("conditionsV4", &self.conditions_v4),
            ("conditionsV6", &self.conditions_v6),
        ] {
            if let Some(words) = conditions.as_ref().filter(|words| !words.is_empty()) {
                return Err(Error::UnsupportedField(format!(
                    "{key}: {words:?} is not served: host ports are not rules of iptables here"
                )));
            }
        }
        Ok(())
    }
}

fn is_in_pod(interface: &Interface) -> bool {
    !interface.sandbox.is_empty()
}

/// The addresses of the result that are inside the pod.
fn pod_ips(result: &CniResult) -> Vec<IpAddr> {
    let of_pod = result.ips.iter().filter(|ip| {
        let interface = ip.interface.and_then(|index| result.interfaces.get(index));
        interface.is_none_or(is_in_pod)
    });
    of_pod.map(|ip| ip.address.addr()).collect()
}

/// The pod's own link on the node: the last veth of the result that is there.
fn host_link(host: &mut Host, result: &CniResult) -> Result<Option<IfName>, Error> {
    for interface in result.interfaces.iter().rev() {
        let Some(name) = interface
            .name
            .parse()
            .ok()
            .filter(|_| !is_in_pod(interface))
        else {
            continue;
        };
        if host.find_link(&name)?.is_some_and(|link| link.is_veth()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The link by which the node reaches the pod, where it is a bridge or a veth: others may lead elsewhere, too.
fn towards(host: &mut Host, pod: IpAddr) -> Result<Option<IfName>, Error> {
    let Ok(route) = host.route_to(pod) else {
        return Ok(None);
    };
    let link = match route.link.map(|index| host.link(index)) {
        Some(Err(error)) if !error.is_not_found() => return Err(error.into()),
        found => found.and_then(Result::ok),
    };
    Ok(link
        .filter(|link| link.is_bridge() || link.is_veth())
        .and_then(|link| link.name.parse().ok()))
}

/// Removes the records of the network's attachments that are not valid; never stops at the first error.
fn collect_garbage(input: &Input) -> Result<(), Error> {
    let valid = input.valid_attachments()?;
    let mut host = Host::open()?;
    let mut errors = Vec::new();
    for (id, name) in host.filtered(&input.network)? {
        let record = id.port_mappings(&input.network);
        if record.as_str() == name && !valid.contains(&id) {
            errors.extend(host.remove_filtering(&record).err());
        }
    }
    Error::from_all(errors)
}
