//! The configuration of `tuning`: which sysctls, which attributes, and what the node's administrator allows.
//!
//! Pure but for the reading of the list of what is allowed.

use std::collections::BTreeMap;
use std::path::Path;

use podspan_kernel::{IfName, LinkChange, Mac};
use regex_lite::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::netconf::Input;
use crate::requested::Requested;

/// Where an administrator says which sysctls may be set: a regular expression a line. Without the file all may.
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";
/// What stands for the interface's name in a key.
const IFNAME: &str = "IFNAME";

/// What is to be set; nothing where nothing is said.
#[derive(Debug, Default, PartialEq)]
pub(super) struct TuningConf {
    sysctls: BTreeMap<String, String>,
    pub mac: Option<Mac>,
    /// In bytes.
    pub mtu: Option<u32>,
    pub promisc: Option<bool>,
    pub allmulti: Option<bool>,
    /// In packets.
    pub tx_queue_length: Option<u32>,
}

/// The keys as they stand, in the configuration or in `args.cni`. The MAC address is read with what else is asked for one
/// pod.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Raw {
    sysctl: Option<BTreeMap<String, String>>,
    mac: Option<String>,
    mtu: Option<u32>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue_length: Option<u32>,
}

impl TuningConf {
    /// Reads it. 0 as the MTU and false as `promisc` ask for nothing, as with the reference plugin.
    ///
    /// # Errors
    /// [`Error::Config`] with key, value and what would be right.
    pub fn parse(input: &Input) -> Result<Self, Error> {
        let keys = input.keys();
        let configured = raw("", keys)?;
        let none = Map::new();
        let args = keys.get("args").and_then(|args| args.get("cni"));
        let asked = raw(
            "args.cni.",
            args.and_then(Value::as_object).unwrap_or(&none),
        )?;
        let mac = configured.mac.filter(|mac| !mac.is_empty());
        let mac: Option<Mac> = mac
            .map(|mac| mac.parse())
            .transpose()
            .map_err(|invalid| Error::Config(format!("mac: {invalid}")))?;
        let mut sysctls = configured.sysctl.unwrap_or_default();
        sysctls.extend(asked.sysctl.unwrap_or_default());
        Ok(Self {
            sysctls,
            mac: Requested::parse(keys, input.cni_args())?.mac.or(mac),
            mtu: asked.mtu.or(configured.mtu).filter(|mtu| *mtu != 0),
            promisc: asked.promisc.or(configured.promisc).filter(|on| *on),
            allmulti: asked.allmulti.or(configured.allmulti),
            tx_queue_length: asked.tx_queue_length.or(configured.tx_queue_length),
        })
    }

    /// The sysctls as paths below `/proc/sys`, with their values: all in the pod's namespace, all allowed.
    ///
    /// # Errors
    /// [`Error::Config`] with the key.
    pub fn sysctls(&self, ifname: &IfName) -> Result<Vec<(String, String)>, Error> {
        if self.sysctls.is_empty() {
            return Ok(Vec::new());
        }
        let allowed = match std::fs::read_to_string(Path::new(ALLOWED)) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::Io(format!("read {ALLOWED}: {error}"))),
        };
        if let Some(text) = allowed {
            self.require_allowed(&text)?;
        }
        let one = |(key, value): (&String, &String)| Ok((path(key, ifname)?, value.clone()));
        self.sysctls.iter().map(one).collect()
    }

    fn require_allowed(&self, text: &str) -> Result<(), Error> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let read = |line| {
            Regex::new(line).map_err(|error| {
                Error::Config(format!(
                    "{ALLOWED}: {line:?} is no regular expression: {error}"
                ))
            })
        };
        let allowed = lines.map(read).collect::<Result<Vec<_>, _>>()?;
        let denied = |key: &&String| !allowed.iter().any(|line| line.is_match(key));
        match self.sysctls.keys().find(denied) {
            None => Ok(()),
            Some(key) => Err(Error::Config(format!(
                "sysctl.{key}: {ALLOWED} does not allow it"
            ))),
        }
    }

    /// What to change on the interface.
    pub fn change(&self) -> LinkChange<'static> {
        LinkChange {
            mac: self.mac,
            mtu: self.mtu,
            promiscuous: self.promisc,
            all_multicast: self.allmulti,
            tx_queue_length: self.tx_queue_length,
            ..LinkChange::default()
        }
    }
}

fn raw(place: &str, keys: &Map<String, Value>) -> Result<Raw, Error> {
    serde_path_to_error::deserialize(Value::Object(keys.clone()))
        .map_err(|error| Error::Config(format!("{place}{}: {}", error.path(), error.inner())))
}

/// `net.ipv4.conf.IFNAME.arp_filter` is `net/ipv4/conf/eth0/arp_filter`. The first `.` or `/` says which of them separates
/// the parts; the other then is a character of a name (sysctl(8)).
fn path(key: &str, ifname: &IfName) -> Result<String, Error> {
    let dotted = key.chars().find(|c| matches!(c, '.' | '/')) != Some('/');
    let part = |text: &str| {
        let text = if dotted {
            text.replace('/', ".")
        } else {
            text.to_owned()
        };
        text.replace(IFNAME, ifname.as_str())
    };
    let parts: Vec<_> = key
        .split(if dotted { '.' } else { '/' })
        .map(part)
        .collect();
    let is_name = |part: &String| !matches!(part.as_str(), "" | "." | "..") && !part.contains('\0');
    match parts.first().map(String::as_str) {
        Some("net") if parts.len() > 1 && parts.iter().all(is_name) => Ok(parts.join("/")),
        _ => Err(Error::Config(format!(
            "sysctl.{key} is none of the pod's network namespace; those begin with net, such as net.ipv4.conf.IFNAME.arp_filter"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_a_sysctl_of_the_pod_s_namespace_or_is_refused() {
        let path = |key| path(key, &"eth0.1".parse().unwrap()).ok();
        let arp = Some("net/ipv4/conf/eth0.1/arp_filter".to_owned());
        assert_eq!(path("net.ipv4.conf.IFNAME.arp_filter"), arp);
        assert_eq!(path("net/ipv4/conf/IFNAME/arp_filter"), arp);
        assert_eq!(path("net.ipv4.conf.eth0/1.arp_filter"), arp);
        assert_eq!(path("net.core.somaxconn").unwrap(), "net/core/somaxconn");
        for bad in [
            "",
            "net",
            "net.",
            ".net.core",
            "/net/core",
            "kernel.hostname",
            "network.x",
            "net..core",
            "net/../kernel/hostname",
            "net/./core",
            "net.//.kernel.hostname",
            "net.ipv4.\0",
        ] {
            assert_eq!(path(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn only_what_a_line_matches_is_allowed() {
        let conf = TuningConf {
            sysctls: [("net.ipv4.conf.IFNAME.arp_filter".into(), "1".into())].into(),
            ..TuningConf::default()
        };
        let allowed = |text| {
            conf.require_allowed(text)
                .map_err(|error| error.to_string())
        };
        assert_eq!(allowed("\n ^net.ipv4.conf.IFNAME.[a-z_]*$ \n"), Ok(()));
        assert_eq!(allowed("^net.core\narp_"), Ok(()));
        assert!(allowed("").unwrap_err().contains("does not allow it"));
        assert!(
            allowed("^net.ipv4.conf.IFNAME.arp$")
                .unwrap_err()
                .starts_with("sysctl.net.ipv4")
        );
        assert!(
            allowed("(")
                .unwrap_err()
                .contains("is no regular expression")
        );
    }
}
