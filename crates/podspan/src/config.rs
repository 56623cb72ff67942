//! The configuration of the agent and of the router: read once, at the start.
//!
//! Everything that is wrong in the file is told at once, each with its key, its value and what would be right; then the
//! program does not start, and what runs goes on running. Nothing here looks at the node.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use podspan_cni::attachment::NetworkName;
use podspan_kernel::{IfName, Prefix};
use toml::Value;

use crate::fields::{Fields, Section, parse_toml, text};
use crate::kubernetes::allocate::Ranges;
use crate::log::Format;
use crate::refusal::{Key, Refusal, Setting, Source};

/// Where the agent's configuration is by default.
pub const AGENT_FILE: &str = "/etc/podspan/agent.toml";
/// Where the router's configuration is by default.
pub const ROUTER_FILE: &str = "/etc/podspan/router.toml";
/// Where the conflist is by default: in the directory that every runtime reads, early in its order.
pub const CONFLIST: &str = "/etc/cni/net.d/10-podspan.conflist";
/// Where the plugin keeps the allocations by default: a directory per network, a file per address.
pub const DATA_DIR: &str = "/run/podspan/ipam";
/// Where kernel parameters are by default.
pub const PROC_SYS: &str = "/proc/sys";
/// Where the nodes file is by default.
const NODES_FILE: &str = "/etc/podspan/nodes.toml";
/// What an IPv6 link needs at the least (RFC 8200, section 5), and what Ethernet can have at the most (`ETH_MAX_MTU`).
const MTU: RangeInclusive<i64> = 1280..=65535;

/// The VXLAN network identifier by default: our number (that of our routes' protocol), so that flannel's device, which has
/// 1, can stand beside ours while a cluster moves.
const VXLAN_VNI: u32 = 112;
/// The UDP port of VXLAN by default: Linux's own. The registered one, 4789, is that of virtual switches below many virtual
/// machines, which take such packets for their own.
const VXLAN_PORT: u16 = 8472;
/// The VXLAN devices, by the family of their underlay: IPv4, IPv6.
const VXLAN_NAMES: [&str; 2] = ["podspan-vxlan4", "podspan-vxlan6"];

const AGENT_KEYS: &str = "node, registry, nodes_file, kubeconfig, allocate_pod_cidrs, node_prefix_lengths, \
    routing, vxlan_vni, vxlan_port, vxlan_accept, cluster_cidrs, routers, network, bridge, mtu, conflist, \
    data_dir, proc_sys, \
    masquerade, non_masquerade_cidrs, bridge_netfilter, \
    probe, listen, log";
/// Where metrics and health are served by default.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9470);

const ROUTER_KEYS: &str = "registry, nodes_file, kubeconfig, listen, log";

/// What this machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RoleName {
    /// Has pods.
    Node,
    /// Holds the routes to all nodes.
    Router,
}

/// A configuration that is right in itself.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that it was read from.
    pub file: PathBuf,
    /// Where it is read what nodes there are.
    pub registry: RegistryConfig,
    /// Where the machine's kernel parameters are: in a container, where the host's are mounted.
    pub proc_sys: PathBuf,
    /// What this machine is to do.
    pub role: Role,
    /// How it is watched.
    pub operation: Operation,
}

/// How the agent or the router is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Where metrics and health are served; none nowhere.
    pub listen: Option<SocketAddr>,
    /// How the log is written.
    pub log: Format,
    /// The ways to the other nodes' pods are tested, and theirs to ours; never on a router, which is on no pod's side.
    pub probe: bool,
}

/// Where it is read what nodes there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistryConfig {
    /// In a nodes file.
    File(PathBuf),
    /// In the Kubernetes API.
    Kubernetes(KubernetesConfig),
}

/// How the Kubernetes API is reached, and what is written there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// The kubeconfig's path; none is the service account of the pod that this process runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The Node that is this machine; none on a router.
    pub node: Option<String>,
    /// From where this node takes its pod CIDRs; none when somebody else gives them.
    pub allocate: Option<Ranges>,
}

/// What this machine is, with all that only this role needs.
#[derive(Debug, Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "a process has one, from its start to its end"
)]
pub enum Role {
    /// Has pods: a bridge, the conflist, and routes to the other nodes.
    Node(NodeRole),
    /// Holds the route to every node's pods.
    Router,
}

/// What a node needs to know of itself.
#[derive(Debug, Clone)]
pub struct NodeRole {
    /// Its name in the nodes file.
    pub name: String,
    /// How pods of other nodes are reached.
    pub routing: Routing,
    /// What VXLAN devices are like, where there are any.
    pub vxlan: Box<VxlanRole>,
    /// The name of the pod network.
    pub network: NetworkName,
    /// The bridge's name.
    pub bridge: IfName,
    /// The MTU of the pods in bytes; none follows the uplink.
    pub mtu: Option<u32>,
    /// Where the conflist is written.
    pub conflist: PathBuf,
    /// Where the plugin keeps the allocations: a directory per network, as host-local has it.
    pub data_dir: PathBuf,
    /// What leaves the cluster leaves under the node's address.
    pub masquerade: bool,
    /// What counts as inside of the cluster besides its nodes and their pods.
    pub non_masquerade_cidrs: Vec<Prefix>,
    /// What the bridge forwards from pod to pod passes the filters of IP too, as a Service proxy needs it. By default
    /// where the registry is Kubernetes.
    pub bridge_netfilter: bool,
}

/// What all nodes must agree on to send each other packets through VXLAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VxlanRole {
    /// The devices' names: over IPv4, over IPv6.
    pub names: [IfName; 2],
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// Takes packets of other nodes also when it sends none itself.
    pub accept: bool,
}

impl VxlanRole {
    /// The name of the device over the underlay that has this address.
    pub fn name(&self, local: IpAddr) -> &IfName {
        let [v4, v6] = &self.names;
        if local.is_ipv4() { v4 } else { v6 }
    }
}

/// How pods of other nodes are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routing {
    /// Directly where the other node is on a connected subnet, through VXLAN elsewhere.
    Auto,
    /// A route per other node, through its address.
    Direct,
    /// Through VXLAN: a route, a neighbour and an entry of the forwarding table per other node.
    Vxlan,
    /// One route per family for the whole cluster, through a router.
    Router {
        /// The ranges that hold all pod CIDRs.
        cluster_cidrs: Vec<Prefix>,
        /// The routers' addresses, at most one per family.
        routers: Vec<IpAddr>,
    },
}

impl Config {
    /// Reads the agent's file; `node` goes before the key of that name.
    ///
    /// # Errors
    /// Unreadable, no TOML, or all the values that are wrong.
    pub fn read_agent(file: &Path, node: Option<&str>) -> anyhow::Result<Self> {
        Self::parse_named(file, &read(file)?, (node, &host_name()))
    }

    /// Reads the router's file.
    ///
    /// # Errors
    /// Unreadable, no TOML, or all the values that are wrong.
    pub fn read_router(file: &Path) -> anyhow::Result<Self> {
        Self::parse_router(file, &read(file)?)
    }

    /// Reads the file of that role; none is the role's default file. `node` is this node's name, where it is told otherwise.
    ///
    /// # Errors
    /// Unreadable, no TOML, or all the values that are wrong.
    pub fn read(role: RoleName, file: Option<&Path>, node: Option<&str>) -> anyhow::Result<Self> {
        match role {
            RoleName::Node => Self::read_agent(file.unwrap_or(Path::new(AGENT_FILE)), node),
            RoleName::Router => Self::read_router(file.unwrap_or(Path::new(ROUTER_FILE))),
        }
    }

    /// A value of this file with its place.
    pub fn setting<'a, T>(&'a self, key: Key<'a>, value: T) -> Setting<'a, T> {
        Setting {
            value,
            source: Source::File(&self.file),
            key,
        }
    }

    /// Reads the content of an agent's file; `host_name` is the node's name where the file has none.
    ///
    /// # Errors
    /// No TOML, or all the values that are wrong.
    #[cfg(test)]
    pub fn parse_agent(file: &Path, content: &str, host_name: &str) -> anyhow::Result<Self> {
        Self::parse_named(file, content, (None, host_name))
    }

    /// The node's name is what was `named` on the command line, what is written, or the host's.
    fn parse_named(
        file: &Path,
        content: &str,
        (named, host): (Option<&str>, &str),
    ) -> anyhow::Result<Self> {
        let mut fields = Fields::new(file, parse_toml(file, &Section::whole(content))?);
        let written = fields.take("node", node_name);
        let mut registry = take_registry(&mut fields);
        let allocates = take_allocates(&mut fields, &registry);
        let (routing, cluster_cidrs) = take_routing(&mut fields, allocates);
        let ranges = take_ranges(&mut fields, &cluster_cidrs, allocates);
        let name = match (named, written) {
            (Some(named), _) => named.to_owned(),
            (None, Some(written)) => written,
            // A Node is named so by its kubelet.
            (None, None) if registry.is_kubernetes() => host.to_lowercase(),
            (None, None) => host.to_owned(),
        };
        if let RegistryConfig::Kubernetes(kubernetes) = &mut registry {
            kubernetes.node = Some(name.clone());
            kubernetes.allocate = ranges;
        }
        let role = NodeRole {
            name,
            routing,
            vxlan: Box::new(take_vxlan(&mut fields)?),
            network: match fields.take("network", text) {
                Some(name) => name,
                None => default("podspan")?,
            },
            bridge: match fields.take("bridge", text) {
                Some(name) => name,
                None => default("podspan0")?,
            },
            mtu: fields.take("mtu", number(MTU)),
            conflist: fields
                .take("conflist", conflist_path)
                .unwrap_or(CONFLIST.into()),
            data_dir: fields.take("data_dir", path).unwrap_or(DATA_DIR.into()),
            masquerade: fields.take("masquerade", boolean).unwrap_or(true),
            non_masquerade_cidrs: take_non_masquerade(&mut fields, cluster_cidrs),
            bridge_netfilter: fields
                .take("bridge_netfilter", boolean)
                .unwrap_or(registry.is_kubernetes()),
        };
        let proc_sys = fields.take("proc_sys", path);
        let mut operation = take_operation(&mut fields);
        operation.probe = fields.take("probe", boolean).unwrap_or(true);
        all_right(fields.finish(AGENT_KEYS))?;
        Ok(Self {
            file: file.to_owned(),
            proc_sys: proc_sys.unwrap_or(PROC_SYS.into()),
            registry,
            role: Role::Node(role),
            operation,
        })
    }

    fn parse_router(file: &Path, content: &str) -> anyhow::Result<Self> {
        let mut fields = Fields::new(file, parse_toml(file, &Section::whole(content))?);
        let registry = take_registry(&mut fields);
        let operation = take_operation(&mut fields);
        all_right(fields.finish(ROUTER_KEYS))?;
        Ok(Self {
            file: file.to_owned(),
            proc_sys: PROC_SYS.into(),
            registry,
            role: Role::Router,
            operation,
        })
    }
}

/// What a node's commands need of the agent's file; none where there is no file and none was named.
///
/// # Errors
/// As [`Config::read`].
pub fn read_node_if_there(file: Option<&Path>) -> anyhow::Result<Option<NodeRole>> {
    if file.is_none() && !Path::new(AGENT_FILE).exists() {
        return Ok(None);
    }
    let config = Config::read(RoleName::Node, file, None)?;
    podspan_kernel::sysctl::use_root(&config.proc_sys)?;
    match config.role {
        Role::Node(role) => Ok(Some(role)),
        Role::Router => Ok(None),
    }
}

impl RegistryConfig {
    fn is_kubernetes(&self) -> bool {
        matches!(self, Self::Kubernetes(_))
    }
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

/// All refusals as one error, a line each.
fn all_right(refusals: Vec<Refusal>) -> anyhow::Result<()> {
    if refusals.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = refusals.iter().map(Refusal::to_string).collect();
    bail!("{}", lines.join("\n"))
}

/// A default of ours, which its type accepts; the tests read an empty file.
fn default<T: std::str::FromStr<Err = podspan_kernel::Invalid>>(name: &str) -> anyhow::Result<T> {
    Ok(name.parse()?)
}

/// Where pods keep their addresses: in the whole of the cluster's ranges, whoever has them today.
fn take_non_masquerade(fields: &mut Fields<'_>, mut cidrs: Vec<Prefix>) -> Vec<Prefix> {
    cidrs.extend(
        fields
            .take_list("non_masquerade_cidrs", text::<Prefix>)
            .unwrap_or_default(),
    );
    cidrs
}

fn take_operation(fields: &mut Fields<'_>) -> Operation {
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

fn take_registry(fields: &mut Fields<'_>) -> RegistryConfig {
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

fn take_allocates(fields: &mut Fields<'_>, registry: &RegistryConfig) -> bool {
    let allocates = fields.take("allocate_pod_cidrs", boolean);
    if allocates == Some(true) && !registry.is_kubernetes() {
        let fix = "needs registry = \"kubernetes\"; a nodes file says it itself";
        fields.refuse("allocate_pod_cidrs", "true", fix);
    }
    allocates == Some(true)
}

/// The ranges that nodes are given subnets of, and how long those are.
fn take_ranges(
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
fn take_routing(fields: &mut Fields<'_>, allocates: bool) -> (Routing, Vec<Prefix>) {
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

fn take_vxlan(fields: &mut Fields<'_>) -> anyhow::Result<VxlanRole> {
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

fn path(value: &Value) -> Result<PathBuf, String> {
    match value.as_str().map(PathBuf::from) {
        Some(path) if path.is_absolute() && path.file_name().is_some() => Ok(path),
        _ => Err("must be an absolute path, beginning with /".to_owned()),
    }
}

fn conflist_path(value: &Value) -> Result<PathBuf, String> {
    match path(value)? {
        path if path.extension().is_some_and(|suffix| suffix == "conflist") => Ok(path),
        _ => Err("must end with .conflist, or no runtime reads it".to_owned()),
    }
}

fn boolean(value: &Value) -> Result<bool, String> {
    value
        .as_bool()
        .ok_or_else(|| "must be true or false, without quotes".to_owned())
}

/// A number of that range.
fn number<T: TryFrom<i64>>(range: RangeInclusive<i64>) -> impl Fn(&Value) -> Result<T, String> {
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

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(content: &str) -> anyhow::Result<Config> {
        Config::parse_agent(Path::new("agent.toml"), content, "here")
    }

    fn node(content: &str) -> NodeRole {
        match agent(content).unwrap().role {
            Role::Node(node) => node,
            Role::Router => panic!("an agent's file makes a node"),
        }
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let node = node("");
        assert_eq!((node.name.as_str(), node.routing), ("here", Routing::Auto));
        assert_eq!(
            (node.network.as_str(), node.bridge.as_str()),
            ("podspan", "podspan0")
        );
        assert_eq!((node.mtu, node.conflist), (None, CONFLIST.into()));
        assert_eq!(node.data_dir, Path::new(DATA_DIR));
        assert_eq!(agent("").unwrap().proc_sys, Path::new(PROC_SYS));
        assert!(node.masquerade && node.non_masquerade_cidrs.is_empty());
        let vxlan = &node.vxlan;
        assert_eq!((vxlan.vni, vxlan.port, vxlan.accept), (112, 8472, false));
        let name = |local: [u16; 8]| vxlan.name(std::net::Ipv6Addr::from(local).to_canonical());
        assert_eq!(
            name([0, 0, 0, 0, 0, 0xffff, 1, 1]).as_str(),
            "podspan-vxlan4"
        );
        assert_eq!(name([1; 8]).as_str(), "podspan-vxlan6");
        let config = agent("").unwrap();
        let operation = Operation {
            listen: Some("127.0.0.1:9470".parse().unwrap()),
            log: Format::Text,
            probe: true,
        };
        assert_eq!(config.operation, operation);
        assert_eq!(config.registry, RegistryConfig::File(NODES_FILE.into()));
    }

    #[test]
    fn every_key_is_read() {
        let content = r#"
            node = "node1"
            nodes_file = "/n.toml"
            routing = "router"
            vxlan_vni = 7
            vxlan_port = 4789
            vxlan_accept = true
            cluster_cidrs = ["10.244.0.0/16", "fd00:10:244::/48"]
            routers = ["192.168.1.1", "fd00:192:168:1::1"]
            network = "pods"
            bridge = "br0"
            mtu = 9000
            conflist = "/c/10.conflist"
            data_dir = "/var/lib/cni/networks"
            proc_sys = "/host/proc/sys"
            masquerade = false
            non_masquerade_cidrs = ["10.0.0.0/8"]
            probe = false
            listen = "[::]:1234"
            log = "json"
        "#;
        let operation = Operation {
            listen: Some("[::]:1234".parse().unwrap()),
            log: Format::Json,
            probe: false,
        };
        assert_eq!(agent(content).unwrap().operation, operation);
        let node = node(content);
        let routing = Routing::Router {
            cluster_cidrs: vec![
                "10.244.0.0/16".parse().unwrap(),
                "fd00:10:244::/48".parse().unwrap(),
            ],
            routers: vec![
                "192.168.1.1".parse().unwrap(),
                "fd00:192:168:1::1".parse().unwrap(),
            ],
        };
        assert_eq!((node.name.as_str(), node.routing), ("node1", routing));
        assert_eq!(
            (node.network.as_str(), node.bridge.as_str()),
            ("pods", "br0")
        );
        assert_eq!(
            (node.mtu, node.conflist),
            (Some(9000), "/c/10.conflist".into())
        );
        assert_eq!(node.data_dir, Path::new("/var/lib/cni/networks"));
        assert_eq!(
            agent(content).unwrap().proc_sys,
            Path::new("/host/proc/sys")
        );
        assert!(!node.masquerade);
        let cidrs = ["10.244.0.0/16", "fd00:10:244::/48", "10.0.0.0/8"];
        let cidrs: Vec<Prefix> = cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        assert_eq!(node.non_masquerade_cidrs, cidrs);
        let vxlan = node.vxlan;
        assert_eq!((vxlan.vni, vxlan.port, vxlan.accept), (7, 4789, true));
    }

    #[test]
    fn listening_can_be_switched_off() {
        for off in ["listen = ''", "listen = 'off'"] {
            assert_eq!(agent(off).unwrap().operation.listen, None);
            let router = Config::parse_router(Path::new("router.toml"), off).unwrap();
            assert_eq!(router.operation.listen, None);
        }
    }

    #[test]
    fn a_key_that_is_not_known_is_refused_with_those_that_are() {
        let error = agent("nod = 'a'").unwrap_err().to_string();
        let told = format!("agent.toml: nod = \"a\": no such key; there are {AGENT_KEYS}");
        assert_eq!(error, told);
    }

    #[test]
    fn what_the_manifest_gives_the_agent_is_understood() {
        let manifest = include_str!("../../../deploy/podspan.yaml");
        let block = manifest.split("  agent.toml: |\n").nth(1).unwrap();
        let lines = block.lines().map_while(|line| line.strip_prefix("    "));
        let content: Vec<_> = lines.collect();
        let config = agent(&content.join("\n")).unwrap();
        assert!(matches!(config.registry, RegistryConfig::Kubernetes(_)));
        assert_eq!(config.proc_sys, Path::new("/host/proc/sys"));
    }

    #[test]
    fn a_wrong_value_is_refused_with_file_key_value_and_what_would_be_right() {
        let table = [
            (
                "masquerade = 'no'",
                "agent.toml: masquerade = \"no\": must be true or false, without quotes",
            ),
            (
                "non_masquerade_cidrs = ['10.1.0.1/16']",
                "agent.toml: non_masquerade_cidrs[0] = \"10.1.0.1/16\": prefix 10.1.0.1/16 has host bits set; its network is 10.1.0.0/16",
            ),
            (
                "probe = 'yes'",
                "agent.toml: probe = \"yes\": must be true or false, without quotes",
            ),
            (
                "listen = 9470",
                "agent.toml: listen = 9470: must be an address and a port, such as \"127.0.0.1:9470\", or \"off\"",
            ),
            (
                "listen = 'localhost:9470'",
                "agent.toml: listen = \"localhost:9470\": must be an address and a port, such as \"127.0.0.1:9470\", or \"off\"",
            ),
            (
                "log = 'xml'",
                "agent.toml: log = \"xml\": must be \"text\" or \"json\"",
            ),
            (
                "node = ''",
                "agent.toml: node = \"\": must be a name without white space, such as \"node1\"",
            ),
            (
                "node = 7",
                "agent.toml: node = 7: must be a name without white space, such as \"node1\"",
            ),
            (
                "nodes_file = 'n.toml'",
                "agent.toml: nodes_file = \"n.toml\": must be an absolute path, beginning with /",
            ),
            (
                "routing = 'fast'",
                "agent.toml: routing = \"fast\": must be \"auto\", \"direct\", \"vxlan\" or \"router\"",
            ),
            (
                "vxlan_vni = 16777216",
                "agent.toml: vxlan_vni = 16777216: must be a number from 1 to 16777215",
            ),
            (
                "vxlan_port = 65536",
                "agent.toml: vxlan_port = 65536: must be a number from 1 to 65535",
            ),
            (
                "vxlan_accept = 'yes'",
                "agent.toml: vxlan_accept = \"yes\": must be true or false, without quotes",
            ),
            (
                "mtu = 100",
                "agent.toml: mtu = 100: must be a number from 1280 to 65535",
            ),
            (
                "mtu = '1500'",
                "agent.toml: mtu = \"1500\": must be a number from 1280 to 65535",
            ),
            (
                "bridge = 'sixteen-bytes-xx'",
                "agent.toml: bridge = \"sixteen-bytes-xx\": interface name \"sixteen-bytes-xx\" is longer than 15 bytes",
            ),
            (
                "network = 'a/b'",
                "agent.toml: network = \"a/b\": network name \"a/b\" must begin with a letter or digit and hold only letters, digits, '_', '.' and '-'",
            ),
            (
                "conflist = '/etc/cni/x.conf'",
                "agent.toml: conflist = \"/etc/cni/x.conf\": must end with .conflist, or no runtime reads it",
            ),
            (
                "cluster_cidrs = '10.0.0.0/8'",
                "agent.toml: cluster_cidrs = \"10.0.0.0/8\": must be a list: [\"…\", \"…\"]",
            ),
            (
                "cluster_cidrs = ['10.244.1.1/16']",
                "agent.toml: cluster_cidrs[0] = \"10.244.1.1/16\": prefix 10.244.1.1/16 has host bits set; its network is 10.244.0.0/16",
            ),
            (
                "cluster_cidrs = ['10.0.0.0/8', '10.244.0.0/16']",
                "agent.toml: cluster_cidrs[1] = \"10.244.0.0/16\": overlaps 10.0.0.0/8; remove one",
            ),
            (
                "routers = ['127.0.0.1']",
                "agent.toml: routers[0] = \"127.0.0.1\": must be an address that other nodes reach, not loopback, link-local, multicast or unspecified",
            ),
            (
                "routers = ['192.168.1.1', '192.168.1.2']",
                "agent.toml: routers[1] = \"192.168.1.2\": is a second IPv4 router; name one per family",
            ),
            (
                "routing = 'router'\ncluster_cidrs = ['10.0.0.0/8']",
                "agent.toml: routers: routing = \"router\" needs the router's address, such as [\"192.168.1.1\"]",
            ),
            (
                "routing = 'router'\nrouters = ['10.0.0.1']",
                "agent.toml: cluster_cidrs: routing = \"router\" needs the ranges of all pods, such as [\"10.244.0.0/16\"]",
            ),
            (
                "registry = 'etcd'",
                "agent.toml: registry = \"etcd\": must be \"file\" or \"kubernetes\"",
            ),
            (
                "registry = 'kubernetes'\nnodes_file = '/n.toml'",
                "agent.toml: nodes_file = \"/n.toml\": is not read with registry = \"kubernetes\"; remove it",
            ),
            (
                "kubeconfig = '/k'",
                "agent.toml: kubeconfig = \"/k\": is read with registry = \"kubernetes\" only",
            ),
            (
                "allocate_pod_cidrs = true\ncluster_cidrs = ['10.244.0.0/16']",
                "agent.toml: allocate_pod_cidrs = true: needs registry = \"kubernetes\"; a nodes file says it itself",
            ),
            (
                "registry = 'kubernetes'\nallocate_pod_cidrs = true",
                "agent.toml: cluster_cidrs: allocate_pod_cidrs needs the ranges of all pods, such as [\"10.244.0.0/16\"]",
            ),
            (
                "node_prefix_lengths = [24]",
                "agent.toml: node_prefix_lengths = [24]: is used with allocate_pod_cidrs = true only",
            ),
            (
                "registry = 'kubernetes'\nallocate_pod_cidrs = true\ncluster_cidrs = ['10.244.0.0/16']\nnode_prefix_lengths = [8]",
                "agent.toml: node_prefix_lengths = [8]: /8 does not divide 10.244.0.0/16; lengths from /16 to /30 do",
            ),
            (
                "\nnode = ",
                "agent.toml: line 2: string values must be quoted, expected literal string",
            ),
        ];
        for (content, expected) in table {
            let told = agent(content).unwrap_err().to_string();
            assert_eq!(told.replace("\"a\": no", "'a': no"), expected, "{content}");
        }
        let error = Config::parse_router(Path::new("router.toml"), "node = 'a'").unwrap_err();
        let expected = format!("router.toml: node = \"a\": no such key; there are {ROUTER_KEYS}");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn the_registry_is_a_file_or_the_kubernetes_api() {
        let kubernetes = |content: &str| match agent(content).unwrap().registry {
            RegistryConfig::Kubernetes(config) => config,
            RegistryConfig::File(file) => panic!("{file:?}"),
        };
        let config = kubernetes("registry = 'kubernetes'\nkubeconfig = '/k'");
        assert_eq!(config.kubeconfig, Some("/k".into()));
        assert_eq!(
            (config.node.as_deref(), config.allocate),
            (Some("here"), None)
        );
        let config = kubernetes(
            "registry = 'kubernetes'\nallocate_pod_cidrs = true\n\
             cluster_cidrs = ['10.244.0.0/16']\nnode_prefix_lengths = [25]",
        );
        let ranges = Ranges::new(&["10.244.0.0/16".parse().unwrap()], Some(&[25]));
        assert_eq!((config.kubeconfig, config.allocate), (None, ranges.ok()));
        let router = Config::parse_router(Path::new("r"), "registry = 'kubernetes'").unwrap();
        let expected = RegistryConfig::Kubernetes(KubernetesConfig::default());
        assert_eq!(router.registry, expected);
    }

    #[test]
    fn a_name_that_is_given_goes_before_the_file_and_the_file_before_the_host() {
        let name = |content: &str, given: Option<&str>| {
            let config = Config::parse_named(Path::new("a"), content, (given, "Host")).unwrap();
            match config.role {
                Role::Node(node) => node.name,
                Role::Router => panic!("an agent's file makes a node"),
            }
        };
        assert_eq!(name("node = 'file'", Some("given")), "given");
        assert_eq!(name("node = 'file'", None), "file");
        assert_eq!(name("", None), "Host");
        assert_eq!(name("registry = 'kubernetes'", None), "host");
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let told = agent("mtu = 1\nbridge = '.'\nx = 1")
            .unwrap_err()
            .to_string();
        assert_eq!(told.lines().count(), 3, "{told}");
    }
}
