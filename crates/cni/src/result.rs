//! What ADD answers: the CNI result, read and written in every version that we speak.
//!
//! In the program it always has the shape of 1.1.0. Keys of other plugins that we do not know are kept and written
//! again (T19); keys that the wanted version does not have are left out (cni.md, section 2.3).

mod legacy;

use std::net::IpAddr;

use ipnet::IpNet;
use legacy::LegacyResult;
use podspan_kernel::Route;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::ipam::Dns;
use crate::version::Version;

/// A result in the shape of CNI 1.1.0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CniResult {
    /// All interfaces that belong to the attachment, outside and inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// The routes inside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<ResultRoute>,
    /// What the runtime may write into the container's resolv.conf.
    #[serde(default)]
    pub dns: Dns,
    /// Keys of others.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An interface of a result.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The path of the network namespace that it is in; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Keys of others.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An address of a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    /// The address with the length of its subnet.
    pub address: IpNet,
    /// Where packets to elsewhere go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The interface that has it, as an index of `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// Keys of others.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A route of a result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultRoute {
    /// Where it leads.
    pub dst: IpNet,
    /// Through which address; none is the gateway of the address of the same family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// `mtu`, `advmss`, `priority`, `table`, `scope` (1.1.0), and keys of others.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The keys that 1.1.0 added to a route.
const ROUTE_KEYS_OF_1_1: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];
/// The keys that 1.1.0 added to an interface.
const INTERFACE_KEYS_OF_1_1: [&str; 3] = ["mtu", "socketPath", "pciID"];

impl CniResult {
    /// Reads a previous result in the shape of `version`, the configuration's (T19).
    ///
    /// # Errors
    /// [`Error::Config`] with the key that cannot be read.
    pub fn parse(value: Value, version: Version) -> Result<Self, Error> {
        if version < Version::V0_3_0 {
            return read::<LegacyResult>(value).map(Self::from);
        }
        let mut result: Self = read(value)?;
        result.other.remove("cniVersion");
        result
            .ips
            .iter_mut()
            .for_each(|ip| _ = ip.other.remove("version"));
        Ok(result)
    }

    /// As JSON in the shape of `version`.
    ///
    /// # Errors
    /// [`Error::Config`] when a version before 0.3.0 is asked for and there is no address.
    pub fn to_json(&self, version: Version) -> Result<Value, Error> {
        let written = match version < Version::V0_3_0 {
            true => serde_json::to_value(LegacyResult::of(self)?),
            false => serde_json::to_value(self),
        };
        let mut keys = match written {
            Ok(Value::Object(keys)) => keys,
            // A struct of lists and texts is always an object.
            _ => Map::new(),
        };
        keys.insert("cniVersion".into(), version.as_str().into());
        if version < Version::V1_1_0 {
            objects(&mut keys, "interfaces")
                .for_each(|object| drop_keys(object, &INTERFACE_KEYS_OF_1_1));
            objects(&mut keys, "routes").for_each(|object| drop_keys(object, &ROUTE_KEYS_OF_1_1));
        }
        if version < Version::V1_0_0 {
            for (json, ip) in objects(&mut keys, "ips").zip(&self.ips) {
                let family = if ip.address.addr().is_ipv4() {
                    "4"
                } else {
                    "6"
                };
                json.insert("version".into(), family.into());
            }
        }
        Ok(Value::Object(keys))
    }
}

/// A route as results tell it.
pub fn result_route(route: &Route) -> ResultRoute {
    let options = &route.options;
    let numbers = [
        ("mtu", options.mtu),
        ("advmss", options.advmss),
        ("priority", options.metric),
        ("table", options.table),
        ("scope", options.scope.map(u32::from)),
    ];
    let other = numbers
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.into())));
    ResultRoute {
        dst: route.dst.net(),
        gw: route.next_hop,
        other: other.collect(),
    }
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| Error::Config(format!("prevResult.{}: {}", error.path(), error.inner())))
}

/// The objects of the list under `key`.
fn objects<'a>(
    keys: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    let list = keys.get_mut(key).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

fn drop_keys(object: &mut Map<String, Value>, keys: &[&str]) {
    object.retain(|key, _| !keys.contains(&key.as_str()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn full() -> Value {
        json!({
            "interfaces": [
                {"name": "podspan0", "mac": "0a:58:0a:f4:01:01", "mtu": 1450},
                {"name": "eth0", "mac": "0a:58:0a:f4:01:02", "mtu": 1450, "sandbox": "/run/netns/a",
                 "pciID": "0000:00:1f.6"},
            ],
            "ips": [
                {"address": "10.244.1.2/24", "gateway": "10.244.1.1", "interface": 1},
                {"address": "fd00::2/64", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1", "mtu": 1400}],
            "dns": {"nameservers": ["10.96.0.10"]},
            "somebodyElses": {"key": 1},
        })
    }

    fn parse(value: Value) -> CniResult {
        CniResult::parse(value, Version::NEWEST).unwrap()
    }

    #[test]
    fn results_of_0_1_0_and_0_2_0_have_one_address_a_family_with_its_routes() {
        let expected = json!({
            "cniVersion": "0.2.0",
            "ip4": {"ip": "10.244.1.2/24", "gateway": "10.244.1.1",
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}]},
            "ip6": {"ip": "fd00::2/64"},
            "dns": {"nameservers": ["10.96.0.10"]},
        });
        let legacy = parse(full()).to_json(Version::V0_2_0).unwrap();
        assert_eq!(legacy, expected);
        let back = CniResult::parse(legacy, Version::V0_2_0).unwrap();
        assert_eq!(back.to_json(Version::V0_2_0).unwrap(), expected);
        let none = CniResult::default().to_json(Version::V0_1_0).unwrap_err();
        assert_eq!(none.to_string(), "cannot convert: no valid IP addresses");
    }

    #[test]
    fn t19_no_key_of_another_plugin_is_lost() {
        let mut expected = full();
        expected["cniVersion"] = json!("1.1.0");
        assert_eq!(parse(full()).to_json(Version::V1_1_0).unwrap(), expected);
    }

    #[test]
    fn t20_the_answer_has_the_shape_of_the_configuration_s_version() {
        let result = parse(full());
        let v1_0 = result.to_json(Version::V1_0_0).unwrap();
        assert_eq!(v1_0["cniVersion"], "1.0.0");
        assert!(
            v1_0["interfaces"][1].get("mtu").is_none()
                && v1_0["interfaces"][1].get("pciID").is_none()
        );
        assert_eq!(
            v1_0["routes"],
            json!([{"dst": "0.0.0.0/0", "gw": "10.244.1.1"}])
        );
        assert!(v1_0["ips"][0].get("version").is_none());
        let v0_4 = result.to_json(Version::V0_4_0).unwrap();
        assert_eq!(
            (&v0_4["ips"][0]["version"], &v0_4["ips"][1]["version"]),
            (&json!("4"), &json!("6"))
        );
        assert_eq!(parse(v0_4).ips, result.ips);
    }

    #[test]
    fn a_previous_result_that_cannot_be_read_names_the_key() {
        let mut broken = full();
        broken["ips"][1]["address"] = json!("fd00::2");
        let error = CniResult::parse(broken, Version::NEWEST)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("prevResult."), "{error}");
        assert_eq!(
            CniResult::default().to_json(Version::V1_0_0).unwrap(),
            json!({"cniVersion": "1.0.0", "dns": {}})
        );
    }
}
