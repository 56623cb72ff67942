//! The configuration of the agent and of the router: read once, at the start.
//!
//! Everything that is wrong in the file is told at once, each with its key, its value and what would be right; then the
//! program does not start, and what runs goes on running. Nothing here looks at the node.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use podspan_cni::attachment::NetworkName;
use podspan_kernel::{IfName, Prefix};
use toml::Value;

use crate::fields::{Fields, Section, parse_toml, text};
use crate::log::Format;
use crate::refusal::{Key, Refusal, Setting};

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
const MTU: std::ops::RangeInclusive<i64> = 1280..=65535;

const AGENT_KEYS: &str = "node, nodes_file, routing, cluster_cidrs, routers, network, bridge, mtu, conflist, \
    data_dir, proc_sys, \
    masquerade, non_masquerade_cidrs, \
    probe, listen, log";
/// Where metrics and health are served by default.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9470);

const ROUTER_KEYS: &str = "nodes_file, listen, log";

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
    /// The registry: what nodes there are.
    pub nodes_file: PathBuf,
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
}

/// What this machine is, with all that only this role needs.
#[derive(Debug, Clone)]
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
    /// The ways to the other nodes' pods are tested, and theirs to ours.
    pub probe: bool,
}

/// How pods of other nodes are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Routing {
    /// A route per other node, through its address.
    Direct,
    /// One route per family for the whole cluster, through a router.
    Router {
        /// The ranges that hold all pod CIDRs.
        cluster_cidrs: Vec<Prefix>,
        /// The routers' addresses, at most one per family.
        routers: Vec<IpAddr>,
    },
}

impl Config {
    /// Reads the agent's file.
    ///
    /// # Errors
    /// Unreadable, no TOML, or all the values that are wrong.
    pub fn read_agent(file: &Path) -> anyhow::Result<Self> {
        Self::parse_agent(file, &read(file)?, &host_name())
    }

    /// Reads the router's file.
    ///
    /// # Errors
    /// Unreadable, no TOML, or all the values that are wrong.
    pub fn read_router(file: &Path) -> anyhow::Result<Self> {
        Self::parse_router(file, &read(file)?)
    }

    /// Reads the file of that role; none is the role's default file.
    ///
    /// # Errors
    /// Unreadable, no TOML, or all the values that are wrong.
    pub fn read(role: RoleName, file: Option<&Path>) -> anyhow::Result<Self> {
        match role {
            RoleName::Node => Self::read_agent(file.unwrap_or(Path::new(AGENT_FILE))),
            RoleName::Router => Self::read_router(file.unwrap_or(Path::new(ROUTER_FILE))),
        }
    }

    /// A value of this file with its place.
    pub fn setting<'a, T>(&'a self, key: Key<'a>, value: T) -> Setting<'a, T> {
        Setting {
            value,
            file: &self.file,
            key,
        }
    }

    /// Reads the content of an agent's file; `host_name` is the node's name where the file has none.
    ///
    /// # Errors
    /// No TOML, or all the values that are wrong.
    pub fn parse_agent(file: &Path, content: &str, host_name: &str) -> anyhow::Result<Self> {
        let mut fields = Fields::new(file, parse_toml(file, &Section::whole(content))?);
        let nodes_file = fields.take("nodes_file", path);
        let (routing, cluster_cidrs) = take_routing(&mut fields);
        let role = NodeRole {
            name: fields
                .take("node", node_name)
                .unwrap_or(host_name.to_owned()),
            routing,
            network: match fields.take("network", text) {
                Some(name) => name,
                None => default("podspan")?,
            },
            bridge: match fields.take("bridge", text) {
                Some(name) => name,
                None => default("podspan0")?,
            },
            mtu: fields.take("mtu", mtu),
            conflist: fields
                .take("conflist", conflist_path)
                .unwrap_or(CONFLIST.into()),
            data_dir: fields.take("data_dir", path).unwrap_or(DATA_DIR.into()),
            masquerade: fields.take("masquerade", boolean).unwrap_or(true),
            non_masquerade_cidrs: take_non_masquerade(&mut fields, cluster_cidrs),
            probe: fields.take("probe", boolean).unwrap_or(true),
        };
        let proc_sys = fields.take("proc_sys", path);
        let operation = take_operation(&mut fields);
        all_right(fields.finish(AGENT_KEYS))?;
        Ok(Self {
            file: file.to_owned(),
            nodes_file: nodes_file.unwrap_or(NODES_FILE.into()),
            proc_sys: proc_sys.unwrap_or(PROC_SYS.into()),
            role: Role::Node(role),
            operation,
        })
    }

    fn parse_router(file: &Path, content: &str) -> anyhow::Result<Self> {
        let mut fields = Fields::new(file, parse_toml(file, &Section::whole(content))?);
        let nodes_file = fields.take("nodes_file", path);
        let operation = take_operation(&mut fields);
        all_right(fields.finish(ROUTER_KEYS))?;
        Ok(Self {
            file: file.to_owned(),
            nodes_file: nodes_file.unwrap_or(NODES_FILE.into()),
            proc_sys: PROC_SYS.into(),
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
    let config = Config::read(RoleName::Node, file)?;
    podspan_kernel::sysctl::use_root(&config.proc_sys)?;
    match config.role {
        Role::Node(role) => Ok(Some(role)),
        Role::Router => Ok(None),
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

/// How pods of other nodes are reached, and the ranges that hold all pod CIDRs, where they are told.
fn take_routing(fields: &mut Fields<'_>) -> (Routing, Vec<Prefix>) {
    let routed = fields.take("routing", |value| match value.as_str() {
        Some("direct") => Ok(false),
        Some("router") => Ok(true),
        _ => Err("must be \"direct\" or \"router\"".to_owned()),
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
    if routed != Some(true) {
        return (Routing::Direct, cluster_cidrs);
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

fn mtu(value: &Value) -> Result<u32, String> {
    value
        .as_integer()
        .filter(|mtu| MTU.contains(mtu))
        .and_then(|mtu| u32::try_from(mtu).ok())
        .ok_or_else(|| format!("must be a number from {} to {}", MTU.start(), MTU.end()))
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
        assert_eq!(
            (node.name.as_str(), node.routing),
            ("here", Routing::Direct)
        );
        assert_eq!(
            (node.network.as_str(), node.bridge.as_str()),
            ("podspan", "podspan0")
        );
        assert_eq!((node.mtu, node.conflist), (None, CONFLIST.into()));
        assert_eq!(node.data_dir, Path::new(DATA_DIR));
        assert_eq!(agent("").unwrap().proc_sys, Path::new(PROC_SYS));
        assert!(node.masquerade && node.non_masquerade_cidrs.is_empty());
        assert_eq!(agent("").unwrap().nodes_file, Path::new(NODES_FILE));
        assert!(node.probe);
        let config = agent("").unwrap();
        assert_eq!(config.nodes_file, Path::new(NODES_FILE));
        let operation = Operation {
            listen: Some("127.0.0.1:9470".parse().unwrap()),
            log: Format::Text,
        };
        assert_eq!(config.operation, operation);
    }

    #[test]
    fn every_key_is_read() {
        let content = r#"
            node = "node1"
            nodes_file = "/n.toml"
            routing = "router"
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
        assert!(!node.probe);
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
                "agent.toml: routing = \"fast\": must be \"direct\" or \"router\"",
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
                "\nnode = ",
                "agent.toml: line 2: string values must be quoted, expected literal string",
            ),
        ];
        for (content, expected) in table {
            let told = agent(content).unwrap_err().to_string();
            assert_eq!(told.replace("\"a\": no", "'a': no"), expected, "{content}");
        }
        let error = Config::parse_router(Path::new("router.toml"), "node = 'a'").unwrap_err();
        let expected = "router.toml: node = \"a\": no such key; there are nodes_file, listen, log";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let told = agent("mtu = 1\nbridge = '.'\nx = 1")
            .unwrap_err()
            .to_string();
        assert_eq!(told.lines().count(), 3, "{told}");
    }
}
