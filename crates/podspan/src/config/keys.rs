//! What the configuration's keys mean: each taken from the file with what it may be, or refused with what would be right.
//!
//! A default is here too, beside the key whose default it is. Nothing here knows which program reads the file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use podspan_kernel::{Invalid, Prefix};
use toml::Value;

use super::{KubernetesConfig, Operation, PolicyRole, RegistryConfig, Routing, VxlanRole};
use crate::fields::{Fields, text};
use crate::kubernetes::allocate::Ranges;
use crate::log::Format;
use crate::registry::gathered::quoted;

/// Where the nodes file is by default.
const NODES_FILE: &str = "/etc/podspan/nodes.toml";
/// What an IPv6 link needs at the least (RFC 8200, section 5), and what Ethernet can have at the most (`ETH_MAX_MTU`).
pub const MTU: RangeInclusive<i64> = 1280..=65535;
/// How long an ADD may wait for policy, in milliseconds: less than runtimes wait for an ADD.
const POLICY_WAIT: RangeInclusive<i64> = 0..=60_000;

/// The VXLAN network identifier by default: our number (that of our routes' protocol), so that flannel's device, which has
/// 1, can stand beside ours while a cluster moves.
const VXLAN_VNI: u32 = 112;
/// The UDP port of VXLAN by default: Linux's own. The registered one, 4789, is that of virtual switches below many virtual
/// machines, which take such packets for their own.
const VXLAN_PORT: u16 = 8472;
/// The VXLAN devices, by the family of their underlay: IPv4, IPv6.
const VXLAN_NAMES: [&str; 2] = ["podspan-vxlan4", "podspan-vxlan6"];

/// Where metrics and health are served by default.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9470);

/// A default of ours.
///
/// # Errors
/// None that can happen: its type accepts it; the tests read an empty file.
pub fn default<T: FromStr<Err = Invalid>>(name: &str) -> anyhow::Result<T> {
    Ok(name.parse()?)
}

/// Where pods keep their addresses: in the whole of the cluster's ranges, whoever has them today.
pub fn take_non_masquerade(fields: &mut Fields<'_>, mut cidrs: Vec<Prefix>) -> Vec<Prefix> {
    cidrs.extend(
        fields
            .take_list("non_masquerade_cidrs", text::<Prefix>)
            .unwrap_or_default(),
    );
    cidrs
}

/// How the program is watched; the self-test is off until its key says otherwise.
pub fn take_operation(fields: &mut Fields<'_>) -> Operation {
    Operation {
        listen: fields.take("listen", listen).unwrap_or(Some(LISTEN)),
        log: fields.take("log", format).unwrap_or_default(),
        probe: false,
    }
}

fn listen(value: &Value) -> Result<Option<SocketAddr>, String> {
    match value.as_str() {
        Some("" | "off") => return Ok(None),
        Some(text) => match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => return Ok(Some(address)),
            _ => {}
        },
        None => {}
    }
    Err(format!(
        "must be an address and a port, such as \"{LISTEN}\", or \"off\""
    ))
}

fn format(value: &Value) -> Result<Format, String> {
    match value.as_str() {
        Some("text") => Ok(Format::Text),
        Some("json") => Ok(Format::Json),
        _ => Err("must be \"text\" or \"json\"".to_owned()),
    }
}

/// Where it is read what nodes there are.
pub fn take_registry(fields: &mut Fields<'_>) -> RegistryConfig {
    let kubernetes = fields.take("registry", |value| match value.as_str() {
        Some("file") => Ok(false),
        Some("kubernetes") => Ok(true),
        _ => Err("must be \"file\" or \"kubernetes\"".to_owned()),
    });
    let nodes_file = fields.take("nodes_file", path);
    let kubeconfig = fields.take("kubeconfig", path);
    if kubernetes == Some(true) {
        if let Some(file) = nodes_file {
            let fix = "is not read with registry = \"kubernetes\"; remove it";
            fields.refuse("nodes_file", format!("\"{}\"", file.display()), fix);
        }
        return RegistryConfig::Kubernetes(KubernetesConfig {
            kubeconfig,
            ..KubernetesConfig::default()
        });
    }
    if let Some(kubeconfig) = kubeconfig {
        let fix = "is read with registry = \"kubernetes\" only";
        fields.refuse("kubeconfig", format!("\"{}\"", kubeconfig.display()), fix);
    }
    RegistryConfig::File(nodes_file.unwrap_or(NODES_FILE.into()))
}

/// How policy is enforced; a value that is wrong is refused and counts as not written.
///
pub fn take_policy(fields: &mut Fields<'_>, registry: &RegistryConfig) -> Option<PolicyRole> {
    let wanted = fields.take("policy", boolean);
    let file = fields.take("policy_file", path);
    let role = PolicyRole {
        when_unknown_open: fields
            .take("policy_when_unknown", when_unknown)
            .unwrap_or(false),
        wait_milliseconds: fields
            .take("policy_wait_milliseconds", number(POLICY_WAIT))
            .unwrap_or(2000),
        keeps_connections: fields
            .take("policy_keeps_connections", boolean)
            .unwrap_or(false),
        file,
    };
    let has_source = registry.is_kubernetes() || role.file.is_some();
    if wanted == Some(true) && !has_source {
        let fix = "needs registry = \"kubernetes\", or a policy_file to read policies from";
        fields.refuse("policy", "true", fix);
    }
    if let (true, Some(file)) = (registry.is_kubernetes(), &role.file) {
        let fix = "is not read with registry = \"kubernetes\"; remove it";
        fields.refuse("policy_file", quoted(file.display()), fix);
    }
    (has_source && wanted != Some(false)).then_some(role)
}

/// True for `open`.
fn when_unknown(value: &Value) -> Result<bool, String> {
    match value.as_str() {
        Some("closed") => Ok(false),
        Some("open") => Ok(true),
        _ => Err("must be \"closed\" or \"open\"".to_owned()),
    }
}

/// True when the node takes its pod CIDRs itself.
pub fn take_allocates(fields: &mut Fields<'_>, registry: &RegistryConfig) -> bool {
    let allocates = fields.take("allocate_pod_cidrs", boolean);
    if allocates == Some(true) && !registry.is_kubernetes() {
        let fix = "needs registry = \"kubernetes\"; a nodes file says it itself";
        fields.refuse("allocate_pod_cidrs", "true", fix);
    }
    allocates == Some(true)
}

/// The ranges that nodes are given subnets of, and how long those are.
pub fn take_ranges(
    fields: &mut Fields<'_>,
    cluster_cidrs: &[Prefix],
    allocates: bool,
) -> Option<Ranges> {
    let lengths = fields.take_list("node_prefix_lengths", |value| {
        let length = value.as_integer();
        let length = length.and_then(|length| u8::try_from(length).ok());
        length.ok_or_else(|| "must be a number of bits, such as 24".to_owned())
    });
    let value = lengths.as_ref().map(|lengths| format!("{lengths:?}"));
    let value = value.unwrap_or_default();
    if !allocates {
        if lengths.is_some() {
            let fix = "is used with allocate_pod_cidrs = true only";
            fields.refuse("node_prefix_lengths", value, fix);
        }
        return None;
    }
    let ranges = Ranges::new(cluster_cidrs, lengths.as_deref());
    ranges
        .map_err(|fix| fields.refuse("node_prefix_lengths", value, fix))
        .ok()
}

/// How pods of other nodes are reached, and the ranges that hold all pod CIDRs, where they are told.
pub fn take_routing(fields: &mut Fields<'_>, allocates: bool) -> (Routing, Vec<Prefix>) {
    let routing = fields.take("routing", |value| match value.as_str() {
        Some("auto") => Ok(Some(Routing::Auto)),
        Some("direct") => Ok(Some(Routing::Direct)),
        Some("vxlan") => Ok(Some(Routing::Vxlan)),
        // It needs more than its name.
        Some("router") => Ok(None),
        _ => Err("must be \"auto\", \"direct\", \"vxlan\" or \"router\"".to_owned()),
    });
    let cluster_cidrs = fields
        .take_list("cluster_cidrs", text::<Prefix>)
        .unwrap_or_default();
    refuse_overlaps(fields, &cluster_cidrs);
    let routers = fields.take_list("routers", ip).unwrap_or_default();
    for (index, router) in routers.iter().enumerate() {
        let earlier = routers.iter().take(index);
        if earlier
            .into_iter()
            .any(|other| other.is_ipv4() == router.is_ipv4())
        {
            let family = if router.is_ipv4() { "IPv4" } else { "IPv6" };
            fields.refuse(
                &format!("routers[{index}]"),
                format!("\"{router}\""),
                format!("is a second {family} router; name one per family"),
            );
        }
    }
    if allocates && cluster_cidrs.is_empty() {
        let fix = "allocate_pod_cidrs needs the ranges of all pods, such as [\"10.244.0.0/16\"]";
        fields.refuse("cluster_cidrs", "", fix);
    }
    if let Some(routing) = routing.unwrap_or(Some(Routing::Auto)) {
        return (routing, cluster_cidrs);
    }
    if cluster_cidrs.is_empty() {
        let fix = "routing = \"router\" needs the ranges of all pods, such as [\"10.244.0.0/16\"]";
        fields.refuse("cluster_cidrs", "", fix);
    }
    if routers.is_empty() {
        let fix = "routing = \"router\" needs the router's address, such as [\"192.168.1.1\"]";
        fields.refuse("routers", "", fix);
    }
    let routing = Routing::Router {
        cluster_cidrs: cluster_cidrs.clone(),
        routers,
    };
    (routing, cluster_cidrs)
}

/// What VXLAN devices are like.
///
/// # Errors
/// None that can happen; see [`default`].
pub fn take_vxlan(fields: &mut Fields<'_>) -> anyhow::Result<VxlanRole> {
    let [v4, v6] = VXLAN_NAMES.map(default);
    Ok(VxlanRole {
        names: [v4?, v6?],
        vni: fields
            .take("vxlan_vni", number(1..=(1 << 24) - 1))
            .unwrap_or(VXLAN_VNI),
        port: fields
            .take("vxlan_port", number(1..=65535))
            .unwrap_or(VXLAN_PORT),
        accept: fields.take("vxlan_accept", boolean).unwrap_or(false),
    })
}

fn refuse_overlaps(fields: &mut Fields<'_>, cluster_cidrs: &[Prefix]) {
    for (index, cidr) in cluster_cidrs.iter().enumerate() {
        let mut earlier = cluster_cidrs.iter().take(index);
        if let Some(other) = earlier.find(|other| other.overlaps(*cidr)) {
            let fix = format!("overlaps {other}; remove one");
            fields.refuse(
                &format!("cluster_cidrs[{index}]"),
                format!("\"{cidr}\""),
                fix,
            );
        }
    }
}

/// An address that can be a next hop.
///
/// # Errors
/// What would be right.
pub fn ip(value: &Value) -> Result<IpAddr, String> {
    let example = "must be an IP address, such as \"192.168.1.11\" or \"fd00:192:168:1::11\"";
    let ip: IpAddr = value
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| example.to_owned())?;
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.to_ipv4_mapped().is_some(),
    };
    if link_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
        return Err("must be an address that other nodes reach, not loopback, link-local, multicast or unspecified".to_owned());
    }
    Ok(ip)
}

/// An absolute path.
///
/// # Errors
/// What would be right.
pub fn path(value: &Value) -> Result<PathBuf, String> {
    match value.as_str().map(PathBuf::from) {
        Some(path) if path.is_absolute() && path.file_name().is_some() => Ok(path),
        _ => Err("must be an absolute path, beginning with /".to_owned()),
    }
}

/// An absolute path that a runtime reads a conflist at.
///
/// # Errors
/// What would be right.
pub fn conflist_path(value: &Value) -> Result<PathBuf, String> {
    match path(value)? {
        path if path.extension().is_some_and(|suffix| suffix == "conflist") => Ok(path),
        _ => Err("must end with .conflist, or no runtime reads it".to_owned()),
    }
}

/// `true` or `false`.
///
/// # Errors
/// What would be right.
pub fn boolean(value: &Value) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| "must be true or false, without quotes".to_owned())
}

/// A number of that range.
pub fn number<T: TryFrom<i64>>(range: RangeInclusive<i64>) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        value
            .as_integer()
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| format!("must be a number from {} to {}", range.start(), range.end()))
    }
}

/// A node's name: something to print and to compare.
///
/// # Errors
/// What would be right.
pub fn node_name(value: &Value) -> Result<String, String> {
    value
        .as_str()
        .filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic()))
        .map(str::to_owned)
        .ok_or_else(|| "must be a name without white space, such as \"node1\"".to_owned())
}
