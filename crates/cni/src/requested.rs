//! What is asked for this one pod: addresses, MAC address, ranges, DNS (CONVENTIONS.md of CNI).
//!
//! Three places may ask, and a later one outweighs the earlier: `CNI_ARGS`, `args.cni`, `runtimeConfig`. What the runtime
//! may put into `runtimeConfig` the conflist names in `capabilities`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use podspan_kernel::Mac;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::ipam::Dns;
use crate::port_mapping::PortMapping;

/// What is asked for; nothing where nothing is said.
#[derive(Debug, Default, PartialEq)]
pub struct Requested {
    /// The addresses that the pod is to get, from the range sets that hold them.
    pub ips: Vec<IpAddr>,
    /// The MAC address of the pod's interface.
    pub mac: Option<Mac>,
    /// Range sets before those of `ipam`.
    pub ip_ranges: Option<Value>,
    /// What the result says of DNS.
    pub dns: Option<Dns>,
    /// Ports of the node that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
}

/// The keys of `runtimeConfig` and of `args.cni` that are asked for here; others are other plugins'.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Keys {
    ips: Vec<String>,
    mac: Option<String>,
    ip_ranges: Option<Value>,
    dns: Option<RuntimeDns>,
}

/// The capability `dns`, which has other names than the result.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct RuntimeDns {
    // containerd writes these with capitals.
    #[serde(alias = "Servers")]
    servers: Vec<String>,
    #[serde(alias = "Searches")]
    searches: Vec<String>,
    #[serde(alias = "Options")]
    options: Vec<String>,
}

impl Requested {
    /// Reads all three places.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Environment`], with key or variable and value.
    pub fn parse(conf: &Map<String, Value>, cni_args: Option<&str>) -> Result<Self, Error> {
        let mut requested = Self::from_cni_args(cni_args.unwrap_or_default())?;
        let args = conf.get("args").and_then(|args| args.get("cni"));
        requested.outweigh_by("args.cni", args)?;
        let runtime = conf.get("runtimeConfig");
        requested.outweigh_by("runtimeConfig", runtime)?;
        if let Some(mappings) = runtime.and_then(|runtime| runtime.get("portMappings")) {
            requested.port_mappings = PortMapping::parse_all(mappings)?;
        }
        Ok(requested.once())
    }

    /// Reads of the three places what an IPAM plugin is asked for, addresses and ranges. It gets the whole configuration of the
    /// plugin that calls it: all else is that one's to judge.
    ///
    /// # Errors
    /// As of [`Self::parse`].
    pub fn of_ipam(conf: &Map<String, Value>, args: Option<&str>) -> Result<Self, Error> {
        let mut requested = Self::default();
        for (key, value) in cni_args(args.unwrap_or_default())? {
            if key == "IP" {
                requested.ask_for(value)?;
            }
        }
        let args = conf.get("args").and_then(|args| args.get("cni"));
        for (place, value) in [
            ("args.cni", args),
            ("runtimeConfig", conf.get("runtimeConfig")),
        ] {
            let keys = value.and_then(Value::as_object).into_iter().flatten();
            let of_ipam = keys.filter(|(key, _)| ["ips", "ipRanges"].contains(&key.as_str()));
            let of_ipam = of_ipam.map(|(key, value)| (key.clone(), value.clone()));
            requested.outweigh_by(place, Some(&Value::Object(of_ipam.collect())))?;
        }
        Ok(requested.once())
    }

    /// podman asks twice for one address when it reloads a network.
    fn once(mut self) -> Self {
        let mut seen = BTreeSet::new();
        self.ips.retain(|ip| seen.insert(*ip));
        self
    }

    /// The value of `IP` in `CNI_ARGS`, of which the static plugin takes several, with commas.
    fn ask_for(&mut self, ips: &str) -> Result<(), Error> {
        for ip in ips.split(',') {
            let ip = address(ip.trim());
            let wrong = |what| Error::Environment(format!("CNI_ARGS: IP: {what}"));
            self.ips.push(ip.map_err(wrong)?);
        }
        Ok(())
    }

    /// `K=V;K=V` (T5).
    fn from_cni_args(text: &str) -> Result<Self, Error> {
        let wrong = |what: String| Error::Environment(format!("CNI_ARGS: {what}"));
        let mut requested = Self::default();
        let mut unknown = Vec::new();
        let mut ignore_unknown = false;
        for (key, value) in cni_args(text)? {
            match key {
                "IP" => requested.ask_for(value)?,
                // The static plugin's own affair.
                "GATEWAY" => {}
                "MAC" => {
                    requested.mac = Some(
                        value
                            .parse()
                            .map_err(|what| wrong(format!("MAC: {what}")))?,
                    )
                }
                "IgnoreUnknown" => ignore_unknown = matches!(value, "1" | "true"),
                key if key.starts_with("K8S_") => {}
                key => unknown.push(key),
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            let keys = unknown.join(", ");
            return Err(wrong(format!(
                "{keys} is not known here; IgnoreUnknown=1 lets it pass"
            )));
        }
        Ok(requested)
    }

    fn outweigh_by(&mut self, place: &str, value: Option<&Value>) -> Result<(), Error> {
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return Ok(());
        };
        let keys: Keys = serde_path_to_error::deserialize(value).map_err(|error| {
            Error::Config(format!("{place}.{}: {}", error.path(), error.inner()))
        })?;
        let wrong = |key, what| Error::Config(format!("{place}.{key}: {what}"));
        if !keys.ips.is_empty() {
            let ips = keys.ips.iter().map(|ip| address(ip));
            self.ips = ips
                .collect::<Result<_, _>>()
                .map_err(|what| wrong("ips", what))?;
        }
        if let Some(mac) = keys.mac.filter(|mac| !mac.is_empty()) {
            self.mac = Some(
                mac.parse()
                    .map_err(|what: podspan_kernel::Invalid| wrong("mac", what.0))?,
            );
        }
        self.ip_ranges = keys
            .ip_ranges
            .filter(|ranges| !ranges.is_null())
            .or(self.ip_ranges.take());
        self.dns = keys
            .dns
            .map(Dns::from)
            .filter(|dns| !dns.is_empty())
            .or(self.dns.take());
        Ok(())
    }
}

/// The pairs of `CNI_ARGS`: `K=V;K=V` (T5).
///
/// # Errors
/// [`Error::Environment`] with what is no pair.
pub(crate) fn cni_args(text: &str) -> Result<Vec<(&str, &str)>, Error> {
    let pair = |pair| match str::split_once(pair, '=') {
        Some((key, value)) if !value.contains('=') => Ok((key, value)),
        _ => Err(Error::Environment(format!(
            "CNI_ARGS: {pair:?} is no pair such as IP=10.244.1.7"
        ))),
    };
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    pairs.map(pair).collect()
}

impl From<RuntimeDns> for Dns {
    fn from(dns: RuntimeDns) -> Self {
        Self {
            nameservers: dns.servers,
            search: dns.searches,
            options: dns.options,
            domain: String::new(),
        }
    }
}

/// An address, with or without the length of its subnet, which the ranges know better.
fn address(text: &str) -> Result<IpAddr, String> {
    let with_length = || text.parse::<IpNet>().map(|net| net.addr());
    let parsed = text.parse().or_else(|_| with_length());
    parsed.map_err(|_| format!("{text:?} is no address, such as 10.244.1.7"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(conf: Value, cni_args: &str) -> Result<Requested, String> {
        let Value::Object(conf) = conf else { panic!() };
        Requested::parse(&conf, Some(cni_args)).map_err(|error| format!("{} {error}", error.code()))
    }

    #[test]
    fn runtime_config_outweighs_args_and_args_outweigh_cni_args() {
        let all = "IP=10.0.0.1;MAC=0a:00:00:00:00:01";
        let args = json!({"args": {"cni": {"ips": ["10.0.0.2"], "labels": {"a": "b"}}}});
        let requested = parse(args, all).unwrap();
        assert_eq!(requested.ips, ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(requested.mac.unwrap().to_string(), "0a:00:00:00:00:01");
        let both = json!({
            "args": {"cni": {"ips": ["10.0.0.2"], "mac": "0a:00:00:00:00:02"}},
            "runtimeConfig": {"ips": ["10.0.0.3/24", "fd00::3"], "mac": "0a:00:00:00:00:03",
                              "dns": {"servers": ["10.96.0.10"], "searches": ["a.example"]}},
        });
        let requested = parse(both, all).unwrap();
        assert_eq!(
            requested.ips,
            [
                "10.0.0.3".parse::<IpAddr>().unwrap(),
                "fd00::3".parse().unwrap()
            ]
        );
        assert_eq!(requested.mac.unwrap().to_string(), "0a:00:00:00:00:03");
        assert_eq!(requested.dns.unwrap().nameservers, ["10.96.0.10"]);
    }

    #[test]
    fn what_podman_and_containerd_write_is_understood() {
        let conf = json!({"runtimeConfig": {
            "ips": ["10.89.7.77", "10.89.7.77"],
            "dns": {"Servers": ["10.96.0.10"], "Searches": ["a.b"], "Options": ["ndots:5"]},
            "io.kubernetes.cri.pod-annotations": null,
        }});
        let requested = parse(conf, "").unwrap();
        assert_eq!(requested.ips, ["10.89.7.77".parse::<IpAddr>().unwrap()]);
        let dns = requested.dns.unwrap();
        assert_eq!(
            (dns.nameservers[0].as_str(), dns.search[0].as_str()),
            ("10.96.0.10", "a.b")
        );
    }

    #[test]
    fn t5_cni_args_are_pairs_and_unknown_keys_need_leave() {
        assert_eq!(parse(json!({}), ""), Ok(Requested::default()));
        assert_eq!(
            parse(json!({}), "K8S_POD_NAME=a;IgnoreUnknown=1;X=y"),
            Ok(Requested::default())
        );
        let refused = |args| parse(json!({}), args).unwrap_err();
        assert_eq!(
            refused("IP"),
            "4 CNI_ARGS: \"IP\" is no pair such as IP=10.244.1.7"
        );
        assert!(refused("X=y").starts_with("4 CNI_ARGS: X is not known here"));
        assert!(refused("IP=x").starts_with("4 CNI_ARGS: IP: \"x\" is no address"));
        assert!(refused("MAC=x").contains("MAC address \"x\""));
    }

    #[test]
    fn a_bad_value_names_place_and_key() {
        let refused = |conf| parse(conf, "").unwrap_err();
        assert!(
            refused(json!({"runtimeConfig": {"ips": "x"}})).starts_with("7 runtimeConfig.ips: ")
        );
        assert!(
            refused(json!({"runtimeConfig": {"mac": "x"}})).starts_with("7 runtimeConfig.mac: ")
        );
        assert!(
            refused(json!({"args": {"cni": {"ips": ["x"]}}})).starts_with("7 args.cni.ips: \"x\"")
        );
    }
}
