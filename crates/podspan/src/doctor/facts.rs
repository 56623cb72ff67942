//! What the doctor looks at, gathered once.
//!
//! What cannot be read is missing and no error, unless nothing can be read at all.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use podspan_cni::attachment::{AttachmentId, MARK};
use podspan_kernel::nft::{Chain, Family, Hook, ListedChain, ListedRule, Nft, Table, Verdict};
use podspan_kernel::{IfName, Link, Netlink, RouteProtocol, sysctl};
use serde_json::Value;

use crate::board::Usage;
use crate::cluster::Cluster;
use crate::config::{Config, Role};
use crate::conflist::PLUGIN;
use crate::desired::{Between, Desired};
use crate::list::owner;
use crate::observe::BR_NETFILTER;
use crate::probe;
use crate::status::Seen;

/// Where plugins are, unless `CNI_PATH` says otherwise.
const BIN_DIR: &str = "/opt/cni/bin";
/// `RTPROT_RA` (linux/rtnetlink.h): a route that a router advertised.
const ADVERTISED: RouteProtocol = RouteProtocol(9);
/// How deep a chain that all packets pass is followed into others.
const DEPTH: usize = 5;
/// How many ways are tried at the most: each may need a neighbour, of which the kernel keeps some hundred.
const WAYS: usize = 256;
/// Where the names of tables of the older kernel interface stand, for IPv4 and IPv6.
const LEGACY: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// What is known of this machine.
#[derive(Debug, Default)]
pub struct Facts {
    /// The configuration's file.
    pub config_file: PathBuf,
    /// The bridge; none on a router.
    pub bridge: Option<IfName>,
    /// How pods of this node reach each other; none where that is not known.
    pub between: Option<Between>,
    /// All links.
    pub links: Vec<Link>,
    /// The links that IPv4 packets to other nodes' pods leave by.
    pub ways: BTreeSet<u32>,
    /// The links that have an IPv4 address of this node.
    pub uplinks: BTreeSet<u32>,
    /// How many other machines this one talks to directly.
    pub peers: usize,
    /// How many addresses pods have.
    pub pods: usize,
    /// How full the pod CIDRs are.
    pub pod_cidrs: Vec<Usage>,
    /// Kernel parameters, by their paths below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
    /// The links whose IPv6 default route a router advertised.
    pub advertised: BTreeSet<u32>,
    /// All chains of the packet filter that routed packets can pass.
    pub chains: Vec<ListedChain>,
    /// Those that all packets pass which the node forwards.
    pub forward: Vec<Forward>,
    /// There are tables of the older interface (`iptables-legacy`), for IPv4 and IPv6.
    pub legacy: [bool; 2],
    /// The files that a runtime reads networks from, and the types of their plugins.
    pub conflists: Vec<(PathBuf, Vec<String>)>,
    /// NetworkManager.
    pub network_manager: NetworkManager,
    /// Addresses that are taken by attachments without a link.
    pub orphans: Vec<(IpAddr, AttachmentId)>,
    /// Files of addresses that name no owner.
    pub damaged: Vec<PathBuf>,
    /// Ways to other nodes' pods that failed just now: what happened and what would mend it.
    pub failing: Vec<String>,
    /// The plugin, where a runtime looks for it; none on a router.
    pub plugin: Option<Plugin>,
}

/// A chain at the hook of what the node forwards.
#[derive(Debug)]
pub struct Forward {
    /// The chain.
    pub chain: ListedChain,
    /// Its rules in their order, with those of the chains that all packets pass from it.
    pub rules: Vec<ListedRule>,
    /// A rule of its table that is not ours asks for our bridge by name.
    pub names_bridge: bool,
}

/// Whether NetworkManager leaves our links alone.
#[derive(Debug, Default)]
pub struct NetworkManager {
    /// It runs.
    pub runs: bool,
    /// One of its files tells it of our links.
    pub is_told: bool,
}

/// The plugin's executable.
#[derive(Debug)]
pub struct Plugin {
    /// Where it should be.
    pub file: PathBuf,
    /// Its version, or why it cannot be told.
    pub version: Result<String, String>,
}

impl Facts {
    /// Looks at this machine.
    ///
    /// # Errors
    /// The kernel tells nothing of its links.
    pub fn gather(config: &Config, seen: &Seen) -> anyhow::Result<Self> {
        let mut netlink = Netlink::open()?;
        let mut facts = Self {
            config_file: config.file.clone(),
            links: netlink.list_links()?,
            legacy: LEGACY.map(has_content),
            ..Self::default()
        };
        if let Role::Node(role) = &config.role {
            facts.bridge = Some(role.bridge.clone());
            facts.conflists = read_conflists(role.conflist.parent().unwrap_or(Path::new("/")));
            facts.network_manager = NetworkManager::look(Path::new("/"), &role.bridge);
            facts.plugin = Some(find_plugin());
            facts.read_addresses(&role.data_dir.join(role.network.as_str()));
        }
        let advertised = netlink.list_routes(ADVERTISED).unwrap_or_default();
        let advertised = advertised.iter().filter(|route| route.dst.is_default());
        facts.advertised = advertised.filter_map(|route| route.link).collect();
        facts.read_look(config, seen);
        facts.read_sysctls();
        if let Ok(mut nft) = Nft::open() {
            facts.read_filter(&mut nft);
        }
        Ok(facts)
    }

    /// What the agent sees: routes, addresses, how many nodes there are.
    fn read_look(&mut self, config: &Config, seen: &Seen) {
        let both = seen.look.as_ref().and_then(|look| look.both.as_ref());
        // Why there is none is a line of the status.
        let (Some(cluster), Some((desired, observed))) = (seen.registry.cluster(), both) else {
            return;
        };
        self.between = desired.bridge.as_ref().map(|bridge| bridge.between);
        self.failing = try_ways(config, cluster, desired);
        // Through a tunnel of ours packets come in as they go out.
        let is_ours = |link: &Link| {
            link.alias
                .as_ref()
                .is_some_and(|alias| alias.starts_with(MARK))
        };
        let tunnels = self.links.iter().filter(|link| is_ours(link));
        let tunnels: BTreeSet<u32> = tunnels.map(|link| link.index).collect();
        let routes = desired
            .routes
            .iter()
            .filter(|route| route.link.is_some_and(|link| !tunnels.contains(&link)));
        let hops: BTreeSet<_> = routes.clone().map(|route| route.next_hop).collect();
        self.peers = hops.len();
        let routes = routes.filter(|route| route.dst.is_ipv4());
        self.ways = routes.filter_map(|route| route.link).collect();
        let allocations = observed.allocations.as_deref().unwrap_or_default();
        self.pods = allocations.len();
        let gateways = desired.bridge.iter().flat_map(|bridge| &bridge.gateways);
        self.pod_cidrs = Usage::of(gateways, allocations);
        if let Role::Node(role) = &config.role
            && let Some(own) = cluster.node(&role.name)
            && let Ok(addresses) = Netlink::open().and_then(|mut open| open.list_addresses())
        {
            let own = addresses
                .iter()
                .filter(|address| own.addresses.contains(&address.net.addr()));
            let own = own.filter(|address| address.net.addr().is_ipv4());
            self.uplinks = own.map(|address| address.link).collect();
        }
    }

    /// Those whose names do not follow from a link, and for each link those that do.
    fn read_sysctls(&mut self) {
        let of_links = self.links.iter().flat_map(|link| {
            let name = &link.name;
            [
                format!("net/ipv4/conf/{name}/rp_filter"),
                format!("net/ipv6/conf/{name}/accept_ra"),
            ]
        });
        let keys = [
            "net/ipv4/conf/all/rp_filter",
            "net/ipv6/conf/all/forwarding",
            BR_NETFILTER,
            "net/netfilter/nf_conntrack_count",
            "net/netfilter/nf_conntrack_max",
            "net/ipv4/neigh/default/gc_thresh3",
            "net/ipv6/neigh/default/gc_thresh3",
        ];
        for key in keys.map(str::to_owned).into_iter().chain(of_links) {
            if let Ok(value) = sysctl::read(&key) {
                self.sysctls.insert(key, value);
            }
        }
    }

    fn read_filter(&mut self, nft: &mut Nft) {
        for family in [Family::Ip, Family::Ip6, Family::Inet] {
            self.chains
                .extend(nft.list_chains(family).unwrap_or_default());
        }
        let is_forward =
            |chain: &&ListedChain| chain.base.is_some_and(|base| base.hook == Hook::Forward);
        let forward = self.chains.iter().filter(is_forward);
        self.forward = forward
            .map(|chain| Forward {
                chain: chain.clone(),
                rules: passed(nft, chain, DEPTH),
                names_bridge: self.names_bridge(nft, chain),
            })
            .collect();
    }

    fn names_bridge(&self, nft: &mut Nft, of: &ListedChain) -> bool {
        let is_beside = |chain: &&ListedChain| {
            chain.family == of.family
                && chain.table == of.table
                && !chain.name.starts_with("PODSPAN")
        };
        let mut beside = self.chains.iter().filter(is_beside);
        beside.any(|chain| {
            let rules = nft.list_rules(plain(chain)).unwrap_or_default();
            let mut links = rules.iter().flat_map(|rule| &rule.links);
            links.any(|link| Some(link) == self.bridge.as_ref())
        })
    }

    /// Joins the files of addresses with the links of the attachments that they are for.
    fn read_addresses(&mut self, directory: &Path) {
        let aliases = self.links.iter().filter_map(|link| link.alias.as_deref());
        let ours = aliases.filter(|alias| alias.starts_with(MARK));
        let attached: Vec<_> = ours.filter_map(AttachmentId::from_alias).collect();
        for entry in directory.read_dir().into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(ip) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match owner(&entry.path()) {
                None => self.damaged.push(entry.path()),
                Some(id) if attached.iter().all(|(_, attached)| *attached != id) => {
                    self.orphans.push((ip, id));
                }
                Some(_) => {}
            }
        }
        self.orphans.sort_by_key(|(ip, _)| *ip);
        self.damaged.sort();
    }
}

/// Tries the ways to the other nodes' pods as the agent does: of very many some, spread over all, and others each time.
fn try_ways(config: &Config, cluster: &Cluster, desired: &Desired) -> Vec<String> {
    let mut targets = probe::targets(config, cluster, desired, &probe::Targets::default());
    let step = targets.peers.len().div_ceil(WAYS).max(1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let begin = now.map_or(0, |now| now.subsec_micros() as usize % step);
    targets.peers = targets
        .peers
        .into_iter()
        .skip(begin)
        .step_by(step)
        .collect();
    let (Ok(outcomes), Ok(mut netlink)) = (probe::test_all(&targets), Netlink::open()) else {
        return Vec::new();
    };
    let failing = outcomes.into_iter().filter_map(|(peer, outcome)| {
        let failure = outcome.failure()?;
        let way = probe::way(&mut netlink, peer.gateway).ok().flatten();
        Some(probe::describe(&peer, failure, way.as_ref()))
    });
    failing.collect()
}

fn plain(chain: &ListedChain) -> Chain<'_> {
    let table = Table {
        family: chain.family,
        name: &chain.table,
    };
    Chain::plain(table, &chain.name)
}

/// The rules that all packets of a chain meet, unless one of them decides.
fn passed(nft: &mut Nft, chain: &ListedChain, depth: usize) -> Vec<ListedRule> {
    let mut all = Vec::new();
    for rule in nft.list_rules(plain(chain)).unwrap_or_default() {
        let target = match &rule.verdict {
            _ if !rule.is_for_all || depth == 0 => None,
            Some(Verdict::Jump(name) | Verdict::Goto(name)) => Some(ListedChain {
                name: name.clone(),
                ..chain.clone()
            }),
            Some(Verdict::Return) => break,
            _ => None,
        };
        all.push(rule);
        if let Some(target) = target {
            all.extend(passed(nft, &target, depth - 1));
        }
    }
    all
}

/// Files of `/proc` have no length.
fn has_content(path: &str) -> bool {
    std::fs::read(path).is_ok_and(|content| !content.is_empty())
}

/// The types of the plugins in each file that a runtime loads.
fn read_conflists(directory: &Path) -> Vec<(PathBuf, Vec<String>)> {
    let mut conflists = Vec::new();
    for entry in directory.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(bytes) = std::fs::read(&path) else {
            continue;
        };
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let listed = value.get("plugins").and_then(Value::as_array).cloned();
        let plugins = listed.unwrap_or_else(|| vec![value]).into_iter();
        let types = plugins.filter_map(|plugin| Some(plugin.get("type")?.as_str()?.to_owned()));
        conflists.push((path, types.collect()));
    }
    conflists.sort();
    conflists
}

impl NetworkManager {
    fn look(root: &Path, bridge: &IfName) -> Self {
        let directories = [
            "etc/NetworkManager/conf.d",
            "usr/lib/NetworkManager/conf.d",
            "run/NetworkManager/conf.d",
        ];
        let files = directories.iter().flat_map(|directory| {
            let entries = root.join(directory).read_dir().into_iter();
            entries.flatten().flatten().map(|entry| entry.path())
        });
        let mut texts = files.filter_map(|file| std::fs::read_to_string(file).ok());
        let names = [bridge.as_str(), "podspan*"];
        Self {
            runs: root.join("run/NetworkManager").is_dir(),
            is_told: texts.any(|text| {
                let mut lines = text.lines();
                lines.any(|line| {
                    line.trim_start().starts_with("unmanaged-devices")
                        && names.iter().any(|name| line.contains(name))
                })
            }),
        }
    }
}

fn find_plugin() -> Plugin {
    let path = std::env::var_os("CNI_PATH").unwrap_or_else(|| BIN_DIR.into());
    let files: Vec<_> = std::env::split_paths(&path)
        .map(|directory| directory.join(PLUGIN))
        .collect();
    let there = files.iter().find(|file| file.is_file());
    let file = there.or(files.first()).cloned().unwrap_or_default();
    let version = match there {
        Some(file) => ask_version(file),
        None => Err("it is not there".to_owned()),
    };
    Plugin { file, version }
}

/// The plugin says its version when it is asked for nothing.
fn ask_version(file: &Path) -> Result<String, String> {
    let output = Command::new(file)
        .env_remove("CNI_COMMAND")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let first = said.lines().next().unwrap_or_default();
    first
        .strip_prefix(PLUGIN)
        .and_then(|rest| rest.trim_start().split(':').next())
        .map(str::to_owned)
        .ok_or_else(|| format!("it says {first:?}, which no podspan-cni does"))
}
