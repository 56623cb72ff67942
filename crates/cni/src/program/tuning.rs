//! In the place of `tuning`: sysctls and attributes of the pod's interface, behind the plugin that made it.
//!
//! What the interface was is kept in a file of the attachment's own before anything is changed, in the reference plugin's
//! form, and DEL restores it: the interface may live on (host-device). Sysctls are not restored by DEL, as with the
//! reference plugin; they end with the namespace.
//! A surprise: the thread enters the pod's namespace for good, and /proc/sys/net then is the pod's. A key that is not
//! below `net` is therefore refused: it would be the machine's.

use podspan_kernel::{Link, Mac, Netlink, Netns, sysctl};
use serde_json::Value;

use crate::attach::{open_pod_netns, require_foreign};
use crate::error::Error;
use crate::netconf::Input;
use crate::request::{PodRequest, Request};
use crate::result::CniResult;

mod backup;
mod conf;

use backup::{Backup, Backups};
use conf::TuningConf;

/// Serves any command; `tell` is given the result of an ADD.
///
/// # Errors
/// What is wrong with the configuration, or what the kernel answered; a failed ADD is undone.
pub(crate) fn serve_tuning(
    request: &Request,
    input: &Input,
    tell: impl FnOnce(CniResult) -> Result<(), Error>,
) -> Result<(), Error> {
    match request {
        Request::Add(pod) => add(pod, input, tell),
        Request::Del(pod) => del(pod, input),
        Request::Check(pod) => check(pod, input),
        Request::Gc => Backups::of(input)?.retain(&input.network, &input.valid_attachments()?),
        Request::Status => TuningConf::parse(input).map(drop),
        Request::Version => Ok(()),
    }
}

fn add(
    pod: &PodRequest,
    input: &Input,
    tell: impl FnOnce(CniResult) -> Result<(), Error>,
) -> Result<(), Error> {
    let (conf, mut result) = (TuningConf::parse(input)?, input.chained_result()?);
    let sysctls = conf.sysctls(&pod.attachment.ifname)?;
    let backups = Backups::of(input)?;

    let netns = open_pod_netns(pod, &Netlink::open()?)?;
    netns.enter()?;
    let mut netlink = Netlink::open()?;
    let link = netlink.link(&pod.attachment.ifname)?;
    let before = Backup::of(&link, &conf);
    if !before.is_empty() {
        let alias = pod.attachment.alias(&input.network)?;
        backups.keep(&pod.attachment, before.clone().mark(alias, netns.number()?))?;
    }
    let mut undo = Undo {
        link: link.index,
        before,
        sysctls: Vec::new(),
    };
    let tuned = undo.tune(&mut netlink, &conf, &sysctls);
    tuned
        .and_then(|()| {
            update(&mut result, pod, &conf);
            tell(result)
        })
        .or_else(|error| {
            let undone = undo.run(&mut netlink);
            let removed = backups.remove(&pod.attachment);
            let all = [Some(error), undone.err(), removed.err()];
            Error::from_all(all.into_iter().flatten().collect())
        })
}

/// What an ADD has changed, to be changed back should it fail.
struct Undo {
    link: u32,
    before: Backup,
    /// Those that were set, with what they were.
    sysctls: Vec<(String, String)>,
}

impl Undo {
    fn tune(
        &mut self,
        netlink: &mut Netlink,
        conf: &TuningConf,
        sysctls: &[(String, String)],
    ) -> Result<(), Error> {
        for (key, value) in sysctls {
            // Some can only be written.
            let before = sysctl::read(key).ok();
            sysctl::write(key, value)?;
            self.sysctls
                .extend(before.map(|before| (key.clone(), before)));
        }
        if !self.before.is_empty() {
            netlink.set_link(self.link, conf.change())?;
        }
        Ok(())
    }

    fn run(&self, netlink: &mut Netlink) -> Result<(), Error> {
        let mut errors = Vec::new();
        if !self.before.is_empty() {
            errors.extend(netlink.set_link(self.link, self.before.change()).err());
        }
        for (key, value) in self.sysctls.iter().rev() {
            errors.extend(sysctl::write(key, value).err());
        }
        Error::from_all(errors.into_iter().map(Error::Kernel).collect())
    }
}

/// The result of the plugins before, with what is other now (T19).
fn update(result: &mut CniResult, pod: &PodRequest, conf: &TuningConf) {
    let ifname = pod.attachment.ifname.as_str();
    let of_pod = result.interfaces.iter_mut();
    for interface in of_pod.filter(|i| i.name == ifname && !i.sandbox.is_empty()) {
        if let Some(mac) = conf.mac {
            interface.mac = mac.to_string();
        }
        interface.mtu = conf.mtu.or(interface.mtu);
    }
}

/// Restores what the interface was, if it is there still: neither a namespace nor a file is needed.
fn del(pod: &PodRequest<Option<std::path::PathBuf>>, input: &Input) -> Result<(), Error> {
    let backups = Backups::of(input)?;
    let Some(backup) = backups.find(&pod.attachment)? else {
        return Ok(());
    };
    let netns = pod.netns.as_ref().and_then(|path| Netns::open(path).ok());
    if let Some(netns) = netns {
        require_foreign(&netns, &Netlink::open()?, pod.own_netns_allowed)?;
        if backup.is_of(netns.number()?) {
            netns.enter()?;
            let mut netlink = Netlink::open()?;
            if let Some(link) = netlink.find_link(&pod.attachment.ifname)? {
                netlink.set_link(link.index, backup.change())?;
            }
        }
    }
    backups.remove(&pod.attachment)
}

fn check(pod: &PodRequest, input: &Input) -> Result<(), Error> {
    let (conf, _) = (TuningConf::parse(input)?, input.chained_result()?);
    let sysctls = conf.sysctls(&pod.attachment.ifname)?;
    open_pod_netns(pod, &Netlink::open()?)?.enter()?;
    let link = Netlink::open()?.link(&pod.attachment.ifname)?;
    let mut deviations = Vec::new();
    for (key, wanted) in &sysctls {
        let is = sysctl::read(key)?;
        // The kernel separates numbers by tabs, people by spaces.
        if !is.split_whitespace().eq(wanted.split_whitespace()) {
            deviations.push(format!("sysctl {key} is {is}, not {wanted}"));
        }
    }
    for (what, is, wanted) in attributes(&link, &conf) {
        if is != wanted {
            let ifname = &pod.attachment.ifname;
            deviations.push(format!(
                "interface {ifname} in the pod has {what} {is}, not {wanted}"
            ));
        }
    }
    match deviations.is_empty() {
        true => Ok(()),
        false => Err(Error::Deviations(deviations)),
    }
}

/// The attributes that the configuration names: key, what it is, what it should be.
fn attributes(link: &Link, conf: &TuningConf) -> Vec<(&'static str, Value, Value)> {
    let text = |mac: Option<Mac>| Value::from(mac.map(|mac| mac.to_string()));
    let named = [
        ("mac", text(link.mac), conf.mac.map(|mac| text(Some(mac)))),
        ("mtu", link.mtu.into(), conf.mtu.map(Value::from)),
        (
            "promisc",
            link.promiscuous.into(),
            conf.promisc.map(Value::from),
        ),
        (
            "allmulti",
            link.all_multicast.into(),
            conf.allmulti.map(Value::from),
        ),
        (
            "txQLen",
            link.tx_queue_length.into(),
            conf.tx_queue_length.map(Value::from),
        ),
    ];
    let named = named.into_iter();
    named
        .filter_map(|(key, is, wanted)| Some((key, is, wanted?)))
        .collect()
}
