//! In the place of `bandwidth`: limits on the host's end of a veth pair that another plugin of the chain made.
//!
//! The host's end is the peer of the pod's interface, and prevResult must name it. Nothing is changed but its qdiscs and an
//! ifb device of the attachment's own, whose name is another than that of the plugin that made the pair.
//! A surprise: once the host's end is found, the thread is in the pod's namespace, and only `host` leads to the node's.

use podspan_kernel::{Errno, IfName, Link, Netlink};
use serde_json::Value;

use crate::attach::{host_interface, open_pod_netns};
use crate::attachment::{AttachmentId, IfbMaker};
use crate::bandwidth::{Limits, Place, collect_ifbs, deviations, ensure_limits, find_ifb};
use crate::error::Error;
use crate::netconf::Input;
use crate::request::{PodRequest, Request};
use crate::result::CniResult;

const KEYS: [&str; 4] = ["ingressRate", "ingressBurst", "egressRate", "egressBurst"];

/// Serves any command; `tell` is given the result of an ADD.
///
/// # Errors
/// What is wrong with the configuration, or what the kernel answered; a failed ADD is undone.
pub(crate) fn serve_bandwidth(
    request: &Request,
    input: &Input,
    tell: impl FnOnce(CniResult) -> Result<(), Error>,
) -> Result<(), Error> {
    match request {
        Request::Add(pod) => add(pod, input, tell),
        Request::Del(pod) => del(&pod.attachment, input),
        Request::Check(pod) => check(pod, input),
        Request::Gc => {
            let valid = input.valid_attachments()?;
            let of = (&input.network, IfbMaker::Bandwidth);
            collect_ifbs(&mut Netlink::open()?, of, &valid)
        }
        Request::Status => limits(input).map(drop),
        Request::Version => Ok(()),
    }
}

/// The keys of the configuration itself outweigh the runtime's, as with the reference plugin.
fn limits(input: &Input) -> Result<Limits, Error> {
    let keys = input.keys();
    match KEYS.iter().any(|key| keys.contains_key(*key)) {
        true => Limits::from_json("", Some(&Value::Object(keys.clone()))),
        false => Limits::of_runtime(keys.get("runtimeConfig")),
    }
}

fn add(
    pod: &PodRequest,
    input: &Input,
    tell: impl FnOnce(CniResult) -> Result<(), Error>,
) -> Result<(), Error> {
    let (limits, mut result) = (limits(input)?, input.chained_result()?);
    if limits.is_none() {
        return tell(result);
    }
    let mut host = Netlink::open()?;
    let host_link = host_end(&mut host, pod, &result)?;
    let limited = ensure_limits(&mut host, &limits, &place(pod, input, &host_link)?.borrow());
    let told = limited.and_then(|ifb| {
        result.interfaces.extend(ifb.as_ref().map(host_interface));
        tell(result)
    });
    told.or_else(|error| {
        let undone = remove(&mut host, Some(&host_link), (input, &pod.attachment));
        Error::from_all([Some(error), undone.err()].into_iter().flatten().collect())
    })
}

fn check(pod: &PodRequest, input: &Input) -> Result<(), Error> {
    let (limits, result) = (limits(input)?, input.chained_result()?);
    let mut host = Netlink::open()?;
    let host_link = host_end(&mut host, pod, &result)?;
    let found = deviations(&mut host, &limits, &place(pod, input, &host_link)?.borrow())?;
    match found.is_empty() {
        true => Ok(()),
        false => Err(Error::Deviations(found)),
    }
}

/// Without the pod's namespace, whose path may lead to another pod by now: the host's end is the one that prevResult
/// names, or the one that our own plugin made for the attachment.
fn del(id: &AttachmentId, input: &Input) -> Result<(), Error> {
    let mut host = Netlink::open()?;
    let before = input.prev_result().ok().flatten().unwrap_or_default();
    let on_node = before.interfaces.iter().filter(|i| i.sandbox.is_empty());
    let named = on_node.filter_map(|interface| interface.name.parse::<IfName>().ok());
    let mut host_link = None;
    for name in named.chain([id.host_veth(&input.network)]) {
        let found = host.find_link(&name)?;
        host_link =
            host_link.or(found.filter(|link| link.is_veth() && id.may_own(link, &input.network)));
    }
    remove(&mut host, host_link.as_ref(), (input, id))
}

/// Removes all limits; a link that is gone took its own along.
fn remove(
    host: &mut Netlink,
    host_link: Option<&Link>,
    (input, id): (&Input, &AttachmentId),
) -> Result<(), Error> {
    let mut errors = Vec::new();
    if let Some(link) = host_link {
        // First: what is sent to a device that is gone is lost.
        let removed = [
            host.remove_redirect(link.index),
            host.remove_bandwidth(link.index),
        ];
        // A qdisc of another kind is somebody else's.
        let failed = removed.into_iter().filter_map(Result::err);
        errors.extend(
            failed
                .filter(|e| e.errno() != Errno::INVAL)
                .map(Error::Kernel),
        );
    }
    match find_ifb(host, (&input.network, id), IfbMaker::Bandwidth) {
        Ok(Some(ifb)) => errors.extend(host.remove_link(ifb.index).err().map(Error::Kernel)),
        Ok(None) => {}
        Err(error) => errors.push(error),
    }
    Error::from_all(errors)
}

/// The node's end of the pair whose other end is the pod's interface. Enters the pod's namespace for good.
fn host_end(host: &mut Netlink, pod: &PodRequest, before: &CniResult) -> Result<Link, Error> {
    let ifname = &pod.attachment.ifname;
    open_pod_netns(pod, host)?.enter()?;
    let inside = Netlink::open()?.link(ifname)?;
    let wrong = |what: &str| {
        Error::Config(format!(
            "prevResult: {what}; bandwidth runs behind a plugin that makes a veth pair"
        ))
    };
    let peer = inside.peer.filter(|_| inside.is_veth());
    let peer = peer.ok_or_else(|| wrong(&format!("interface {ifname} in the pod is no veth")))?;
    let link = host.link(peer)?;
    let mut on_node = before.interfaces.iter().filter(|i| i.sandbox.is_empty());
    match on_node.any(|interface| interface.name == link.name) {
        true => Ok(link),
        false => Err(wrong(&format!(
            "the node's end of {ifname}, which is {}, is not in it",
            link.name
        ))),
    }
}

/// What a [`Place`] is of.
struct OwnedPlace<'a> {
    host_link: &'a Link,
    ifb: IfName,
    alias: String,
}

impl OwnedPlace<'_> {
    fn borrow(&self) -> Place<'_> {
        Place {
            host_link: self.host_link,
            ifb: &self.ifb,
            alias: &self.alias,
        }
    }
}

fn place<'a>(
    pod: &PodRequest,
    input: &Input,
    host_link: &'a Link,
) -> Result<OwnedPlace<'a>, Error> {
    let id = &pod.attachment;
    Ok(OwnedPlace {
        host_link,
        ifb: id.ifb(&input.network, IfbMaker::Bandwidth),
        alias: id.alias(&input.network)?,
    })
}
