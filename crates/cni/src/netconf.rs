//! The network configuration that the runtime writes to standard input (CNI 1.1.0, section 1 and 3).
//!
//! Two steps. [`Input`] has what every command needs (version, network's name, where the addresses are kept) and comes
//! from almost any configuration, so that DEL can free what a since broken configuration once took. [`NetConf`] is the
//! whole of it, with every value checked. A surprise: `isDefaultGateway` and `hairpinMode` are on where nothing is said.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::IpAddr;

use podspan_kernel::{IfName, Mac};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::addresses::{AddressSource, AddressStore};
use crate::attachment::{AttachmentId, NetworkName};
use crate::bandwidth::Limits;
use crate::delegate::Delegate;
use crate::error::Error;
use crate::ipam::{Dns, IpamConfig, data_dir};
use crate::pod_policy::PodPolicy;
use crate::port_mapping::PortMapping;
use crate::program::{Defaults, Program};
use crate::requested::Requested;
use crate::result::CniResult;
use crate::version::Version;
use crate::vlan::{PortVlans, gateway_link_name};

/// A configuration of which only the outermost is known to be right.
#[derive(Debug)]
pub struct Input {
    /// The version of the specification that runtime and plugin speak.
    pub version: Version,
    /// The network.
    pub network: NetworkName,
    keys: Map<String, Value>,
    bytes: Vec<u8>,
    surroundings: Surroundings,
}

/// What the environment says besides the request.
#[derive(Debug)]
pub struct Surroundings {
    /// What the executable is called; its defaults follow.
    pub program: Program,
    /// `CNI_PATH`: where the plugins are that this one may delegate to.
    pub cni_path: Option<OsString>,
    /// `CNI_ARGS`: what is asked for this one pod.
    pub cni_args: Option<String>,
}

/// A configuration, checked.
#[derive(Debug)]
pub struct NetConf {
    /// The network.
    pub network: NetworkName,
    /// What the host's ends of the pods' links are.
    pub wiring: Wiring,
    /// The bridge that the pods of this node are on, where they are on one.
    pub bridge: IfName,
    /// What the bridge is to the pods.
    pub gateway: Gateway,
    /// The MTU of the pods' links in bytes; none is the bridge's.
    pub mtu: Option<u32>,
    /// A pod reaches itself through an address that leads back to it.
    pub hairpin: bool,
    /// Pods of this bridge do not reach each other, only the node and what is behind it.
    pub port_isolation: bool,
    /// Pods of this bridge reach each other through the node, which routes between them: their ports are isolated, and their
    /// subnet is behind its gateway.
    pub routed: bool,
    /// The bridge takes in every frame.
    pub promiscuous: bool,
    /// Addresses of the bridge that overlap with a gateway's subnet and are not a gateway's are removed.
    pub force_address: bool,
    /// What a pod sends out of its network goes out under the node's address.
    pub masquerade: bool,
    /// What a pod may send as.
    pub spoofing: Spoofing,
    /// What others may send the pod and it may send others; none is everything.
    pub policy: Option<PodPolicy>,
    /// Ports of the node that lead to the pod.
    pub port_mappings: Vec<PortMapping>,
    /// IPv6 addresses are used after duplicate address detection only.
    pub detect_duplicates: bool,
    /// The pod's interface is left down.
    pub interface_down: bool,
    /// Where the pods' addresses come from.
    pub addresses: AddressSource,
    /// The addresses that were asked for.
    pub wanted_ips: Vec<IpAddr>,
    /// The MAC address that was asked for.
    pub wanted_mac: Option<Mac>,
    /// What the result says of DNS, before what comes with the addresses.
    pub dns: Dns,
    /// How fast the pod may receive and send.
    pub limits: Limits,
    /// The VLANs of the pod's port of the bridge.
    pub vlans: PortVlans,
}

impl NetConf {
    /// The link that has the gateway's address where there is one, and that leads to the pods: the bridge, or in a VLAN one
    /// of the VLAN's own.
    ///
    /// # Errors
    /// [`Error::Config`] when its name would be too long.
    pub fn gateway_link(&self) -> Result<IfName, Error> {
        match self.vlans.access {
            Some(vlan) => gateway_link_name(&self.bridge, vlan),
            None => Ok(self.bridge.clone()),
        }
    }
}

/// What the host's end of a pod's link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wiring {
    /// A port of a bridge.
    Bridge,
    /// The pod's router by itself.
    PointToPoint,
}

/// What the bridge is to the pods, each including the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gateway {
    /// A switch.
    None,
    /// It has the gateway's address, and the node forwards.
    Present,
    /// The pods' default route leads to it.
    Default,
}

/// What a pod may send as, each freer than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoofing {
    /// Itself.
    Refused,
    /// Its own MAC address.
    RefusedMacs,
    /// Anything.
    Allowed,
}

/// The keys as they stand; a key that is not here belongs to somebody else.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    bridge: Option<String>,
    is_gateway: Option<bool>,
    is_default_gateway: Option<bool>,
    mtu: Option<u32>,
    hairpin_mode: Option<bool>,
    promisc_mode: Option<bool>,
    port_isolation: Option<bool>,
    routed: Option<bool>,
    force_address: Option<bool>,
    // Written so by the bridge plugin.
    enabledad: Option<bool>,
    ip_masq: Option<bool>,
    anti_spoof: Option<bool>,
    // Written so by the bridge plugin.
    macspoofchk: Option<bool>,
    disable_container_interface: Option<bool>,
    policy: Option<Value>,
    vlan: Option<i64>,
    vlan_trunk: Option<Value>,
    preserve_default_vlan: Option<bool>,
    ipam: Option<Value>,
    dns: Option<Dns>,
}

/// The least MTU: that of IPv6 (RFC 8200, section 5). IPv4 alone needs 68.
const MTU_MIN_IPV6: u32 = 1280;
const MTU_MIN_IPV4: u32 = 68;
/// The greatest MTU that a veth takes (`ETH_MAX_MTU`).
const MTU_MAX: u32 = 65535;

impl Input {
    /// Reads what every command needs.
    ///
    /// # Errors
    /// [`Error::Decode`] when it is no JSON object, [`Error::Version`], [`Error::Config`] for the name.
    pub fn parse(bytes: &[u8], surroundings: Surroundings) -> Result<Self, Error> {
        let keys: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| {
            Error::Decode(format!(
                "the network configuration is no JSON object: {error}"
            ))
        })?;
        // Absent means 0.1.0 (T16).
        let version = match keys.get("cniVersion") {
            None => "0.1.0",
            Some(Value::String(text)) => text,
            Some(other) => {
                return Err(Error::Config(format!(
                    "cniVersion is {other}, not a text such as \"1.0.0\""
                )));
            }
        };
        let spoken = Version::parse(version).ok_or_else(|| {
            let all = Version::ALL.map(Version::as_str).join(", ");
            Error::Version(format!(
                "cniVersion is {version:?}; this plugin speaks {all}"
            ))
        })?;
        let name = keys.get("name").and_then(Value::as_str).unwrap_or_default();
        let network = name
            .parse()
            .map_err(|invalid| Error::Config(format!("name: {invalid}")))?;
        Ok(Self {
            version: spoken,
            network,
            keys,
            bytes: bytes.to_vec(),
            surroundings,
        })
    }

    /// Where addresses go back to, however broken the rest of the configuration is. Another plugin that serves them may not
    /// be there.
    pub fn address_store(&self) -> AddressStore {
        let ipam = self.keys.get("ipam").unwrap_or(&Value::Null);
        match foreign_ipam(ipam) {
            Some(name) => AddressStore::Delegated(self.delegate(name)),
            None => AddressStore::Own(data_dir(ipam, self.defaults().data_dir)),
        }
    }

    fn defaults(&self) -> Defaults {
        self.surroundings.program.defaults()
    }

    fn delegate(&self, name: &str) -> Delegate {
        Delegate::new(
            name,
            self.surroundings.cni_path.as_deref(),
            &self.bytes,
            self.version,
        )
    }

    fn address_source(
        &self,
        ipam: Option<&Value>,
        ip_ranges: Option<&Value>,
    ) -> Result<AddressSource, Error> {
        let ipam = ipam.ok_or_else(|| {
            let right = r#""ipam": {"ranges": [[{"subnet": "10.244.1.0/24"}]]}"#;
            Error::Config(format!(
                "ipam is missing; give {right}, or {{}} for pods without addresses"
            ))
        })?;
        match (ipam, foreign_ipam(ipam)) {
            (Value::Object(keys), _) if keys.is_empty() => Ok(AddressSource::None),
            (_, Some(name)) => {
                let delegate = self.delegate(name);
                delegate.executable()?;
                Ok(AddressSource::Delegated(delegate))
            }
            (_, None) => Ok(AddressSource::Own(IpamConfig::from_json(
                &with_ranges(ipam, ip_ranges),
                self.defaults().data_dir,
            )?)),
        }
    }

    /// The command needs a version that has it (T15).
    ///
    /// # Errors
    /// [`Error::Version`].
    pub fn require(&self, command: &str, least: Version) -> Result<(), Error> {
        if self.version >= least {
            return Ok(());
        }
        let version = self.version;
        Err(Error::Version(format!(
            "cniVersion is {version}; {command} exists since {least}"
        )))
    }

    /// What the plugins before us in the chain, or ADD, answered.
    ///
    /// # Errors
    /// [`Error::Config`] when it cannot be read.
    pub fn prev_result(&self) -> Result<Option<CniResult>, Error> {
        let present = self.keys.get("prevResult").filter(|value| !value.is_null());
        present
            .cloned()
            .map(|value| CniResult::parse(value, self.version))
            .transpose()
    }

    /// The same for a plugin that stands behind another one, and for CHECK.
    ///
    /// # Errors
    /// [`Error::Config`] when it is absent (T19, T28) or cannot be read.
    pub fn chained_result(&self) -> Result<CniResult, Error> {
        self.prev_result()?.ok_or_else(|| {
            Error::Config(
                "prevResult is missing; it is the result of the plugins before, and for CHECK that of the ADD".into(),
            )
        })
    }

    /// All keys, as they stand.
    pub fn keys(&self) -> &Map<String, Value> {
        &self.keys
    }

    /// `CNI_ARGS`.
    pub fn cni_args(&self) -> Option<&str> {
        self.surroundings.cni_args.as_deref()
    }

    /// `cni.dev/valid-attachments`: what the runtime still knows (GC).
    ///
    /// # Errors
    /// [`Error::Config`] when it is absent, which must never be taken for *none* (T29), or cannot be read.
    pub fn valid_attachments(&self) -> Result<BTreeSet<AttachmentId>, Error> {
        #[derive(Deserialize)]
        struct Valid {
            #[serde(rename = "containerID")]
            container: String,
            ifname: String,
        }
        let key = "cni.dev/valid-attachments";
        let list = self
            .keys
            .get(key)
            .filter(|value| !value.is_null())
            .ok_or_else(|| {
                Error::Config(format!(
                    "{key} is missing: GC frees nothing without the list of what is in use"
                ))
            })?;
        let wrong = |text: String| Error::Config(format!("{key}: {text}"));
        let list: Vec<Valid> = serde_path_to_error::deserialize(list)
            .map_err(|error| wrong(format!("{} at {}", error.inner(), error.path())))?;
        list.into_iter()
            .map(|valid| {
                let container = valid
                    .container
                    .parse()
                    .map_err(|invalid| wrong(format!("{invalid}")))?;
                let ifname = valid
                    .ifname
                    .parse()
                    .map_err(|invalid| wrong(format!("{invalid}")))?;
                Ok(AttachmentId { container, ifname })
            })
            .collect()
    }

    /// The keys that a plugin knows; others are others'.
    ///
    /// # Errors
    /// [`Error::Config`] with the key that is something else.
    pub(crate) fn keys_as<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_path_to_error::deserialize(Value::Object(self.keys.clone()))
            .map_err(|error| Error::Config(format!("{}: {}", error.path(), error.inner())))
    }

    /// What is asked for this one pod.
    ///
    /// # Errors
    /// As of [`Requested::parse`].
    pub(crate) fn requested(&self) -> Result<Requested, Error> {
        Requested::parse(&self.keys, self.surroundings.cni_args.as_deref())
    }

    /// What an IPAM plugin reads: where addresses come from, and which were asked for. All else is its caller's (T17).
    ///
    /// # Errors
    /// [`Error::Config`] with key, value and what would be right.
    pub(crate) fn ipam(&self) -> Result<(AddressSource, Vec<IpAddr>), Error> {
        let requested = Requested::of_ipam(&self.keys, self.cni_args())?;
        let ipam = self.keys.get("ipam").filter(|ipam| !ipam.is_null());
        let source = self.address_source(ipam, requested.ip_ranges.as_ref())?;
        Ok((source, requested.ips))
    }

    /// The whole configuration.
    ///
    /// # Errors
    /// [`Error::Config`] with key, value and what would be right; [`Error::UnsupportedField`].
    pub fn netconf(&self) -> Result<NetConf, Error> {
        let raw: Raw = self.keys_as()?;
        let requested = self.requested()?;
        let addresses = self.address_source(raw.ipam.as_ref(), requested.ip_ranges.as_ref())?;
        let bridge = raw
            .bridge
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or(self.defaults().bridge);
        let wiring = match self.surroundings.program {
            Program::Ptp => Wiring::PointToPoint,
            _ => Wiring::Bridge,
        };
        let gateway = match wiring {
            Wiring::Bridge => gateway(
                raw.is_gateway,
                raw.is_default_gateway,
                self.defaults().gateway,
            ),
            Wiring::PointToPoint => Gateway::Present,
        };
        Ok(NetConf {
            network: self.network.clone(),
            wiring,
            bridge: bridge
                .parse()
                .map_err(|invalid| Error::Config(format!("bridge: {invalid}")))?,
            gateway,
            mtu: checked_mtu(raw.mtu, &addresses)?,
            hairpin: hairpin(&raw, self.defaults().hairpin)?,
            port_isolation: raw.port_isolation.unwrap_or(false),
            routed: routed(&raw, gateway)?,
            promiscuous: raw.promisc_mode.unwrap_or(false),
            force_address: raw.force_address.unwrap_or(false),
            masquerade: raw.ip_masq.unwrap_or(false),
            spoofing: spoofing(&raw, self.defaults().anti_spoof, wiring)?,
            policy: PodPolicy::parse(raw.policy.as_ref(), self.cni_args())?,
            port_mappings: requested.port_mappings,
            detect_duplicates: raw.enabledad.unwrap_or(false),
            interface_down: interface_down(&raw, &addresses)?,
            wanted_ips: requested.ips,
            wanted_mac: requested.mac,
            dns: requested.dns.or(raw.dns).unwrap_or_default(),
            limits: Limits::of_runtime(self.keys.get("runtimeConfig"))?,
            vlans: PortVlans::parse(
                raw.vlan.unwrap_or(0),
                raw.vlan_trunk.as_ref(),
                raw.preserve_default_vlan.unwrap_or(false),
            )?,
            addresses,
        })
    }
}

/// `isDefaultGateway` includes `isGateway`; where neither is said, `default` is meant of both.
fn gateway(is_gateway: Option<bool>, is_default: Option<bool>, default: bool) -> Gateway {
    match (is_gateway, is_default) {
        (_, Some(true)) => Gateway::Default,
        (None | Some(true), None) if default => Gateway::Default,
        (Some(true), None | Some(false)) => Gateway::Present,
        (Some(false) | None, None | Some(false)) => Gateway::None,
    }
}

/// A subnet that is behind its gateway needs one.
fn routed(raw: &Raw, gateway: Gateway) -> Result<bool, Error> {
    match (raw.routed.unwrap_or(false), gateway) {
        (true, Gateway::None) => Err(Error::Config(
            "routed is true, so that the bridge must be the pods' gateway: isGateway or isDefaultGateway must be true".into(),
        )),
        (routed, _) => Ok(routed),
    }
}

/// A promiscuous bridge has every frame anyhow: the two exclude each other, as with the bridge plugin.
fn hairpin(raw: &Raw, default: bool) -> Result<bool, Error> {
    match (raw.promisc_mode, raw.hairpin_mode) {
        (Some(true), Some(true)) => Err(Error::Config(
            "promiscMode and hairpinMode are both true; choose one".into(),
        )),
        (Some(true), None) => Ok(false),
        (_, hairpin) => Ok(hairpin.unwrap_or(default)),
    }
}

/// `antiSpoof` includes `macspoofchk`. Both look at what comes into a bridge.
fn spoofing(raw: &Raw, default: bool, wiring: Wiring) -> Result<Spoofing, Error> {
    let macs = raw.macspoofchk.unwrap_or(false);
    let spoofing = match (raw.anti_spoof.unwrap_or(default), macs) {
        (true, _) => Spoofing::Refused,
        (false, true) => Spoofing::RefusedMacs,
        (false, false) => Spoofing::Allowed,
    };
    if wiring == Wiring::PointToPoint && spoofing != Spoofing::Allowed {
        let key = if macs { "macspoofchk" } else { "antiSpoof" };
        return Err(Error::UnsupportedField(format!(
            "{key}: true is not served for a point-to-point link; it guards the ports of a bridge"
        )));
    }
    Ok(spoofing)
}

fn interface_down(raw: &Raw, addresses: &AddressSource) -> Result<bool, Error> {
    match (raw.disable_container_interface, addresses) {
        (Some(true), AddressSource::None) => Ok(true),
        (Some(true), _) => Err(Error::Config(
            "disableContainerInterface is true, so that ipam must be {}: an interface that is down has no addresses".into(),
        )),
        (_, _) => Ok(false),
    }
}

/// The IPAM plugin that serves in our place; none where we serve, under our own name or that of the plugin whose place we
/// take.
fn foreign_ipam(ipam: &Value) -> Option<&str> {
    let name = ipam.get("type").and_then(Value::as_str)?;
    (!["", "podspan", "host-local"].contains(&name)).then_some(name)
}

/// The `ipam` block with the runtime's range sets before its own, as host-local puts them.
fn with_ranges(ipam: &Value, first: Option<&Value>) -> Value {
    let mut ipam = ipam.clone();
    let Some(Value::Array(first)) = first else {
        return ipam;
    };
    if let Value::Object(keys) = &mut ipam {
        let configured = keys.get("ranges").and_then(Value::as_array);
        let all = first
            .iter()
            .chain(configured.into_iter().flatten())
            .cloned();
        let all = Value::Array(all.collect());
        keys.insert("ranges".into(), all);
    }
    ipam
}

/// 0 counts as absent, as with the bridge plugin.
fn checked_mtu(mtu: Option<u32>, addresses: &AddressSource) -> Result<Option<u32>, Error> {
    let Some(mtu) = mtu.filter(|mtu| *mtu != 0) else {
        return Ok(None);
    };
    let ipv6 = addresses
        .gateways()
        .iter()
        .any(|gateway| gateway.addr().is_ipv6());
    let least = if ipv6 { MTU_MIN_IPV6 } else { MTU_MIN_IPV4 };
    if (least..=MTU_MAX).contains(&mtu) {
        return Ok(Some(mtu));
    }
    Err(Error::Config(format!(
        "mtu is {mtu}; it must be from {least} to {MTU_MAX} bytes"
    )))
}

#[cfg(test)]
mod tests;
