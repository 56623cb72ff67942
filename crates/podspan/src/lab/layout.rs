//! What a lab should be: who has which address, which file holds what, and which routes follow from it.
//!
//! A pure function of a routing and two numbers, without I/O. The lab writes these files, and checks against them; the routes here are
//! therefore computed apart from the agent's own computing, which they are to judge.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};
use ipnet::IpNet;
use podspan_kernel::{Mac, Prefix};
use serde::{Deserialize, Serialize};

/// The most nodes: their addresses end with .11 to .210.
const NODES_MAX: u16 = 200;
/// The most nodes that test the ways to each other: the kernel has one table of neighbours for all nodes of a lab
/// (`gc_thresh3`), and each of these asks for all others at once.
const PROBED_MAX: u16 = 10;
/// The most pods of a node, out of 253 addresses; some stay free for those that `lab add` and `lab check` add.
const PODS_MAX: u16 = 240;

/// The bridge that is the switch between the nodes; with two subnets, of the odd ones.
pub const UNDERLAY: &str = "underlay";
/// With two subnets, the switch between the even nodes.
pub const UNDERLAY_2: &str = "underlay2";
/// A node's interface on the underlay.
pub const UPLINK: &str = "eth0";
/// The gateway's interface on the second.
pub const UPLINK_2: &str = "eth1";
/// The MTU of the underlay, in bytes.
pub const MTU: u32 = 1500;

/// Where a node finds the nodes file, one file for all of them.
pub const NODES_FILE: &str = "/etc/podspan/cluster/nodes.toml";

/// How packets find the node of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// Directly on a subnet and through VXLAN between two; odd nodes are on one and even nodes on the other.
    Auto,
    /// Each node holds a route to each other node's pods.
    Direct,
    /// Each node holds one route, through a router that holds them all.
    Router,
    /// Each node sends through VXLAN to each other.
    Vxlan,
}

/// A whole lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// How many nodes.
    pub nodes: u16,
    /// How many pods each node begins with.
    pub pods: u16,
    /// How they find each other.
    pub routing: Routing,
}

/// One of the lab's machines: a node, by its number from 1, the router, or the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Machine {
    /// node1, node2 …
    Node(u16),
    /// The router.
    Router,
    /// The gateway between two subnets, which knows no pods and only forwards.
    Gateway,
}

/// A machine's cable to a switch.
#[derive(Debug, Clone, Copy)]
pub struct Uplink {
    /// The machine's end.
    pub name: &'static str,
    /// The switch.
    pub switch: &'static str,
    /// The addresses of the machine's end, IPv4 first.
    pub addresses: [IpNet; 2],
}

impl Uplink {
    fn new([name, switch]: [&'static str; 2], [subnet, host]: [u16; 2]) -> Self {
        let [high, low] = [subnet, host].map(u32::from);
        let v4 = Ipv4Addr::from_bits(0xc0a8_0000 | high << 8 | low);
        let v6 = Ipv6Addr::new(0xfd00, 0x192, 0x168, subnet, 0, 0, 0, digits(host));
        Self {
            name,
            switch,
            addresses: [
                IpNet::new_assert(v4.into(), 24),
                IpNet::new_assert(v6.into(), 64),
            ],
        }
    }

    /// The MAC address of the machine's end, which is that of its address, so that captures are easy to read.
    pub fn mac(&self) -> Mac {
        let [v4, _] = self.addresses;
        Mac::of_ip(v4.addr())
    }
}

impl Layout {
    /// Refuses what there are no addresses for.
    ///
    /// # Errors
    /// The number that is out of range, and the range.
    pub fn validate(self) -> Result<Self> {
        if !(1..=NODES_MAX).contains(&self.nodes) {
            bail!(
                "--nodes {}: a lab has 1 to {NODES_MAX} nodes (their addresses end with .11 to .210)",
                self.nodes
            );
        }
        if self.pods > PODS_MAX {
            bail!(
                "--pods {}: a node of the lab has at most {PODS_MAX} pods",
                self.pods
            );
        }
        Ok(self)
    }

    /// All nodes, and the router or the gateway where there is one.
    pub fn machines(self) -> impl Iterator<Item = Machine> {
        let another = match self.routing {
            Routing::Router => Some(Machine::Router),
            Routing::Auto => Some(Machine::Gateway),
            Routing::Direct | Routing::Vxlan => None,
        };
        (1..=self.nodes).map(Machine::Node).chain(another)
    }

    /// The switches.
    pub fn switches(self) -> &'static [&'static str] {
        match self.routing {
            Routing::Auto => &[UNDERLAY, UNDERLAY_2],
            _ => &[UNDERLAY],
        }
    }

    /// The machine's cables.
    pub fn uplinks(self, machine: Machine) -> Vec<Uplink> {
        let first = [UPLINK, UNDERLAY];
        match (machine, self.routing) {
            (Machine::Router, _) => vec![Uplink::new(first, [1, 1])],
            (Machine::Gateway, _) => vec![
                Uplink::new(first, [1, 1]),
                Uplink::new([UPLINK_2, UNDERLAY_2], [2, 1]),
            ],
            (Machine::Node(number), Routing::Auto) if number.is_multiple_of(2) => {
                let host = number.saturating_add(10);
                vec![Uplink::new([UPLINK, UNDERLAY_2], [2, host])]
            }
            (Machine::Node(number), _) => {
                vec![Uplink::new(first, [1, number.saturating_add(10)])]
            }
        }
    }

    /// The machine's addresses on the underlay, IPv4 first.
    pub fn addresses(self, machine: Machine) -> Vec<IpNet> {
        let uplinks = self.uplinks(machine).into_iter();
        uplinks.flat_map(|uplink| uplink.addresses).collect()
    }

    /// The way out of a node's subnet, where there is one: the gateway's addresses there, IPv4 first.
    pub fn ways_out(self, machine: Machine) -> Vec<IpAddr> {
        if !matches!((machine, self.routing), (Machine::Node(_), Routing::Auto)) {
            return Vec::new();
        }
        let own = self.uplinks(machine);
        let of_gateway = self.uplinks(Machine::Gateway).into_iter();
        of_gateway
            .filter(|uplink| own.iter().any(|own| own.switch == uplink.switch))
            .flat_map(|uplink| uplink.addresses.map(|net| net.addr()))
            .collect()
    }

    /// The names of the pods that each node begins with.
    pub fn pods(self) -> impl Iterator<Item = String> {
        (1..=self.pods).map(|number| format!("pod{number}"))
    }

    /// The routes of ours that this machine must hold, and no others: to which prefix, through which neighbour.
    pub fn routes(self, machine: Machine) -> Vec<(Prefix, IpAddr)> {
        match (machine, self.routing) {
            (Machine::Node(_), Routing::Router) => {
                let routers = self.addresses(Machine::Router).into_iter();
                let routers = routers.map(|net| net.addr());
                return cluster_cidrs().into_iter().zip(routers).collect();
            }
            (Machine::Gateway, _) => return Vec::new(),
            _ => {}
        }
        let others = (1..=self.nodes).map(Machine::Node);
        others
            .filter(|other| *other != machine)
            .flat_map(|other| {
                let next_hops = match self.is_far(machine, other) {
                    true => other.next_hops().to_vec(),
                    false => self.addresses(other).iter().map(|net| net.addr()).collect(),
                };
                other.pod_cidrs().into_iter().zip(next_hops)
            })
            .collect()
    }

    /// True when packets from one node to the other are encapsulated.
    pub fn is_far(self, node: Machine, other: Machine) -> bool {
        match (self.routing, node, other) {
            (Routing::Vxlan, ..) => true,
            (Routing::Auto, Machine::Node(one), Machine::Node(other)) => one % 2 != other % 2,
            _ => false,
        }
    }

    /// The text of the nodes file.
    pub fn nodes_file(self) -> String {
        (1..=self.nodes)
            .map(|number| {
                let node = Machine::Node(number);
                format!(
                    "[[nodes]]\nname = \"{node}\"\naddresses = {}\npod_cidrs = {}\n\n",
                    toml_list(self.addresses(node).iter().map(|net| net.addr())),
                    toml_list(node.pod_cidrs()),
                )
            })
            .collect()
    }

    /// The text of the `/etc/podspan/<program>.toml` of a machine that runs a program.
    pub fn config(self, machine: Machine) -> String {
        let nodes_file = format!("nodes_file = \"{NODES_FILE}\"\n");
        let Machine::Node(_) = machine else {
            return nodes_file;
        };
        let routing = match self.routing {
            Routing::Auto => "auto",
            Routing::Direct => "direct",
            Routing::Router => "router",
            Routing::Vxlan => "vxlan",
        };
        let mut config = format!("node = \"{machine}\"\n{nodes_file}routing = \"{routing}\"\n");
        if self.routing == Routing::Router {
            let routers = self.addresses(Machine::Router).into_iter();
            config += &format!(
                "cluster_cidrs = {}\nrouters = {}\n",
                toml_list(cluster_cidrs()),
                toml_list(routers.map(|net| net.addr())),
            );
        }
        if self.nodes > PROBED_MAX {
            config += "probe = false\n";
        }
        config
    }
}

impl Machine {
    /// The program that runs on it, `podspan agent` or `podspan router`; its configuration and log bear that name. None on
    /// the gateway, which is no machine of ours.
    pub fn program(self) -> Option<&'static str> {
        match self {
            Self::Node(_) => Some("agent"),
            Self::Router => Some("router"),
            Self::Gateway => None,
        }
    }

    /// The next hops to its pods through VXLAN, IPv4 first; nobody has these addresses.
    fn next_hops(self) -> [IpAddr; 2] {
        let v4 = match self {
            Self::Node(number) => Ipv4Addr::from_bits(0x0af4_0000 | u32::from(number) << 8),
            Self::Router | Self::Gateway => Ipv4Addr::UNSPECIFIED,
        };
        let mac = Mac::of_ip(v4.into());
        [v4.into(), mac.link_local().into()]
    }

    /// The addresses of its pods, IPv4 first; none for a machine that has no pods.
    pub fn pod_cidrs(self) -> Vec<Prefix> {
        let Self::Node(number) = self else {
            return Vec::new();
        };
        let v4 = Ipv4Addr::from_bits(0x0af4_0000 | (u32::from(number) << 8));
        let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, digits(number), 0, 0, 0, 0);
        vec![prefix(v4.into(), 24), prefix(v6.into(), 64)]
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(number) => f.pad(&format!("node{number}")),
            Self::Router => f.pad("router"),
            Self::Gateway => f.pad("gateway"),
        }
    }
}

/// What holds every pod's address.
fn cluster_cidrs() -> [Prefix; 2] {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0);
    [
        prefix(Ipv4Addr::new(10, 244, 0, 0).into(), 16),
        prefix(v6.into(), 48),
    ]
}

fn prefix(ip: IpAddr, length: u8) -> Prefix {
    Prefix::containing(IpNet::new_assert(ip, length))
}

/// The group of an IPv6 address that is written with the decimal digits of the number: 11 gives 0x11, to be read as 11.
fn digits(number: u16) -> u16 {
    ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10)
}

fn toml_list(items: impl IntoIterator<Item = impl fmt::Display>) -> String {
    let items: Vec<_> = items
        .into_iter()
        .map(|item| format!("{item:?}", item = item.to_string()))
        .collect();
    format!("[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(routing: Routing) -> Layout {
        Layout {
            nodes: 3,
            pods: 2,
            routing,
        }
    }

    #[test]
    fn the_default_is_the_textbook_network() {
        let text = layout(Routing::Direct).nodes_file();
        assert!(text.starts_with(concat!(
            "[[nodes]]\nname = \"node1\"\n",
            "addresses = [\"192.168.1.11\", \"fd00:192:168:1::11\"]\n",
            "pod_cidrs = [\"10.244.1.0/24\", \"fd00:10:244:1::/64\"]\n",
        )));
        let file: toml::Table = text.parse().unwrap();
        assert_eq!(file["nodes"].as_array().unwrap().len(), 3);
        let routes: Vec<_> = layout(Routing::Direct)
            .routes(Machine::Node(2))
            .into_iter()
            .map(|(dst, next_hop)| format!("{dst} via {next_hop}"))
            .collect();
        assert_eq!(
            routes,
            [
                "10.244.1.0/24 via 192.168.1.11",
                "fd00:10:244:1::/64 via fd00:192:168:1::11",
                "10.244.3.0/24 via 192.168.1.13",
                "fd00:10:244:3::/64 via fd00:192:168:1::13",
            ]
        );
    }

    #[test]
    fn with_a_router_each_node_holds_one_route_and_the_router_one_for_each_node() {
        let layout = layout(Routing::Router);
        let routes = layout.routes(Machine::Node(1));
        let text: Vec<_> = routes.iter().map(|(d, n)| format!("{d} via {n}")).collect();
        assert_eq!(
            text,
            [
                "10.244.0.0/16 via 192.168.1.1",
                "fd00:10:244::/48 via fd00:192:168:1::1"
            ]
        );
        assert_eq!(layout.routes(Machine::Router).len(), 6);
        assert_eq!(layout.machines().count(), 4);
        let config: toml::Table = layout.config(Machine::Node(1)).parse().unwrap();
        assert_eq!(
            config["routers"].as_array().unwrap()[1].as_str(),
            Some("fd00:192:168:1::1")
        );
    }

    #[test]
    fn on_two_subnets_what_is_near_is_reached_directly_and_what_is_far_through_vxlan() {
        let layout = layout(Routing::Auto);
        let text = |machine| -> Vec<_> {
            let routes = layout.routes(machine).into_iter();
            routes
                .map(|(dst, hop)| format!("{dst} via {hop}"))
                .collect()
        };
        let expected = [
            "10.244.2.0/24 via 10.244.2.0",
            "fd00:10:244:2::/64 via fe80::858:aff:fef4:200",
            "10.244.3.0/24 via 192.168.1.13",
            "fd00:10:244:3::/64 via fd00:192:168:1::13",
        ];
        assert_eq!(text(Machine::Node(1)), expected);
        assert_eq!(text(Machine::Gateway), [""; 0]);
        let out = |number| -> Vec<_> {
            let ways = layout.ways_out(Machine::Node(number)).into_iter();
            ways.map(|ip| ip.to_string()).collect()
        };
        assert_eq!(out(1), ["192.168.1.1", "fd00:192:168:1::1"]);
        assert_eq!(out(2), ["192.168.2.1", "fd00:192:168:2::1"]);
        let addresses = layout.addresses(Machine::Gateway);
        assert_eq!(addresses.len(), 4);
    }

    #[test]
    fn no_two_of_the_most_nodes_share_an_address_or_a_mac() {
        let layout = layout(Routing::Router);
        let nodes = || (1..=NODES_MAX).map(Machine::Node).chain([Machine::Router]);
        let uplinks = || nodes().flat_map(|node| layout.uplinks(node));
        let count = |all: std::collections::BTreeSet<String>| all.len();
        assert_eq!(
            count(
                uplinks()
                    .flat_map(|uplink| uplink.addresses)
                    .map(|a| a.to_string())
                    .collect()
            ),
            402
        );
        let macs = uplinks().map(|uplink| uplink.mac().to_string());
        assert_eq!(count(macs.collect()), 201);
        assert_eq!(
            count(
                nodes()
                    .flat_map(Machine::pod_cidrs)
                    .map(|p| p.to_string())
                    .collect()
            ),
            400
        );
        let last = Machine::Node(200);
        assert_eq!(
            layout.addresses(last)[1].to_string(),
            "fd00:192:168:1::210/64"
        );
        assert_eq!(last.pod_cidrs()[1].to_string(), "fd00:10:244:200::/64");
    }

    #[test]
    fn more_than_there_are_addresses_for_is_refused() {
        for (nodes, pods) in [(0, 1), (201, 1), (3, 241)] {
            let layout = Layout {
                nodes,
                pods,
                routing: Routing::Direct,
            };
            assert!(layout.validate().is_err(), "{nodes} nodes, {pods} pods");
        }
        let error = Layout {
            nodes: 500,
            ..layout(Routing::Direct)
        }
        .validate()
        .unwrap_err();
        assert!(error.to_string().contains("1 to 200 nodes"), "{error}");
    }
}
