//! The configuration of the agent and of the router: read once, at the start.
//!
//! Everything that is wrong in the file is told at once, each with its key, its value and what would be right; then the
//! program does not start, and what runs goes on running. Nothing here looks at the node.

mod keys;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use podspan_cni::attachment::NetworkName;
use podspan_kernel::{IfName, Prefix};

use crate::fields::{Fields, Section, parse_toml, text};
use crate::kubernetes::allocate::Ranges;
use crate::log::Format;
use crate::refusal::{Key, Refusal, Setting, Source};

use keys::{
    MTU, boolean, conflist_path, default, number, path, take_allocates, take_non_masquerade,
    take_operation, take_policy, take_ranges, take_registry, take_routing, take_vxlan,
};
pub use keys::{ip, node_name};

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

/// The keys of the agent's file, in the words of a refusal.
const AGENT_KEYS: &str = "node, registry, nodes_file, kubeconfig, allocate_pod_cidrs, node_prefix_lengths, \
    routing, vxlan_vni, vxlan_port, vxlan_accept, cluster_cidrs, routers, network, bridge, mtu, conflist, \
    data_dir, proc_sys, \
    masquerade, non_masquerade_cidrs, bridge_netfilter, \
    policy, policy_file, policy_when_unknown, policy_wait_milliseconds, policy_keeps_connections, \
    probe, listen, log";
/// The keys of the router's file.
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
    pub vxlan: VxlanRole,
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
    /// What the bridge forwards from pod to pod passes the filters of IP too, as a Service proxy and policy need it; where the
    /// kernel cannot, the node routes between its pods. By default where the registry is Kubernetes or there is policy.
    pub bridge_netfilter: bool,
    /// How policy is enforced; none where it is not. By default where the registry is Kubernetes, or there is a file of
    /// policies.
    pub policy: Option<PolicyRole>,
}

/// How policy is enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRole {
    /// The file that policies, namespaces and pods are read from; none is the Kubernetes API.
    pub file: Option<PathBuf>,
    /// A pod that the API does not know yet sends and receives all; else nothing, but for its node.
    pub when_unknown_open: bool,
    /// How long ADD waits until a pod is known, in milliseconds.
    pub wait_milliseconds: u32,
    /// Connections that a new denial forbids go on until they end.
    pub keeps_connections: bool,
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
        let bridge_netfilter = fields.take("bridge_netfilter", boolean);
        let policy = take_policy(&mut fields, &registry);
        let role = NodeRole {
            name,
            routing,
            vxlan: take_vxlan(&mut fields)?,
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
            bridge_netfilter: bridge_netfilter
                .unwrap_or(registry.is_kubernetes() || policy.is_some()),
            policy,
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

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests;
