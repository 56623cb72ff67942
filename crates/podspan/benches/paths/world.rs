//! The paths: ours in a lab, and the same ones made by hand with `ip` and nothing of ours.
//!
//! Everything is in namespaces that end with the first process of this program's own PID namespace. Both kinds hang on a
//! switch of the same kind, have the same addresses, the same MTU and the same kernel parameters.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::endpoint::{End, Endpoint};

/// From where to where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Two namespaces with a veth pair between them, and nothing else.
    Bare,
    /// From a node to a node, over the switch.
    Hosts,
    /// From a pod to another one of the same node.
    SameNode,
    /// From a pod to one of the other node.
    OtherNode(Routing),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    Direct,
    Vxlan,
}

/// Who made the path, and whether what leaves the cluster is masqueraded: with that, the kernel tracks connections, also
/// those between pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    Hand { masquerade: bool },
    Podspan { masquerade: bool },
}

/// A path, with a process at each end.
pub struct Run {
    pub way: Way,
    pub maker: Maker,
    pub client: Endpoint,
    pub server: IpAddr,
    _server: Endpoint,
}

impl Routing {
    pub const ALL: [Self; 2] = [Self::Direct, Self::Vxlan];

    pub fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Vxlan => "vxlan",
        }
    }
}

/// Moves this process into namespaces of its own and makes a world there; `false` in the process that only waits for the
/// one inside, with whose end everything ends.
pub fn isolate() -> Result<bool, String> {
    const INSIDE: &str = "PODSPAN_BENCH_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        shell("mount -t tmpfs tmpfs /run && mkdir /run/netns && ip link set lo up");
        return Ok(true);
    }
    let status = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
        .arg("--mount-proc")
        .arg(std::env::current_exe().map_err(|error| error.to_string())?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .map_err(|error| format!("unshare: {error}"))?;
    match status.success() {
        true => Ok(false),
        false => Err("see above".to_owned()),
    }
}

/// All paths, by hand and by Podspan.
pub fn build(core: usize) -> Vec<Run> {
    let mut runs = vec![bare(core)];
    let (near, far) = (["node1/pod1", "node1/pod2"], ["node1/pod1", "node2/pod1"]);
    for routing in Routing::ALL {
        for masquerade in [false, true] {
            let hand = Hand::new(routing, masquerade);
            let lab = Lab::up(routing, masquerade);
            if routing == Routing::Direct {
                if !masquerade {
                    runs.push(hand.run(Way::Hosts, ["node1", "node2"], core));
                }
                runs.push(hand.run(Way::SameNode, near, core));
                runs.push(lab.run(Way::SameNode, near, core));
            }
            let way = Way::OtherNode(routing);
            runs.push(hand.run(way, far, core));
            runs.push(lab.run(way, far, core));
        }
    }
    runs
}

fn bare(core: usize) -> Run {
    shell(
        "ip netns add bare1 && ip netns add bare2
         ip -n bare1 link add eth0 type veth peer name eth0 netns bare2
         for n in 1 2; do
           ip -n bare$n address add 10.0.0.$n/24 dev eth0
           ip -n bare$n link set eth0 up
         done",
    );
    run(
        (Way::Bare, Maker::Hand { masquerade: false }),
        [&in_netns("bare1"), &in_netns("bare2")],
        core,
    )
}

/// Two nodes with two pods each, by `ip` alone.
struct Hand {
    name: String,
    masquerade: bool,
}

impl Hand {
    fn new(routing: Routing, masquerade: bool) -> Self {
        let h = name(routing, masquerade);
        let (mtu, routes) = match routing {
            Routing::Direct => (1500, "direct"),
            Routing::Vxlan => (1450, "vxlan"),
        };
        // The pods' MAC addresses do not matter; the VXLAN devices' do, for nothing is learned.
        shell(&format!(
            "set -e
             ip netns add {h}-switch
             ip -n {h}-switch link add underlay up type bridge
             for n in 1 2; do
               node={h}-node$n other=$((3 - n))
               ip netns add $node
               ip -n $node link set lo up
               ip -n {h}-switch link add node$n up master underlay type veth peer name eth0 netns $node
               ip -n $node address add 192.168.1.1$n/24 dev eth0
               ip -n $node link set eth0 up
               ip netns exec $node sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
               ip -n $node link add pods mtu {mtu} up type bridge
               ip -n $node address add 10.244.$n.1/24 dev pods
               for p in 1 2; do
                 pod=$node-pod$p
                 ip netns add $pod
                 ip -n $node link add pod$p mtu {mtu} up master pods type veth peer name eth0 mtu {mtu} netns $pod
                 ip -n $pod address add 10.244.$n.$((p + 1))/24 dev eth0
                 ip -n $pod link set eth0 up
                 ip -n $pod route add default via 10.244.$n.1
               done
               case {routes} in
               direct) ip -n $node route add 10.244.$other.0/24 via 192.168.1.1$other ;;
               vxlan)
                 ip -n $node link add overlay mtu {mtu} address 0a:58:0a:f4:0$n:00 up type vxlan id 1 dstport 4789 local 192.168.1.1$n nolearning
                 ip -n $node address add 10.244.$n.0/32 dev overlay
                 ip -n $node neighbour add 10.244.$other.0 lladdr 0a:58:0a:f4:0$other:00 dev overlay nud permanent
                 ip netns exec $node bridge fdb add 0a:58:0a:f4:0$other:00 dev overlay dst 192.168.1.1$other
                 ip -n $node route add 10.244.$other.0/24 via 10.244.$other.0 dev overlay onlink ;;
               esac
               if {masquerade}; then
                 ip netns exec $node nft \"
                   table ip hand {{
                     chain postrouting {{
                       type nat hook postrouting priority srcnat
                       ip saddr 10.244.$n.0/24 ip daddr != {{ 10.244.0.0/16, 192.168.1.0/24 }} masquerade fully-random
                     }}
                   }}\"
               fi
             done"
        ));
        Self {
            name: h,
            masquerade,
        }
    }

    fn run(&self, way: Way, places: [&str; 2], core: usize) -> Run {
        let [client, server] =
            places.map(|place| in_netns(&format!("{}-{}", self.name, place.replace('/', "-"))));
        let masquerade = self.masquerade;
        run((way, Maker::Hand { masquerade }), [&client, &server], core)
    }
}

/// Two nodes with two pods each, as `podspan lab up` makes them: the real agents, the real plugin.
struct Lab {
    podspan: String,
    name: String,
    masquerade: bool,
}

impl Lab {
    fn up(routing: Routing, masquerade: bool) -> Self {
        let lab = Self {
            podspan: podspan().to_string_lossy().into_owned(),
            name: name(routing, masquerade),
            masquerade,
        };
        let Self { podspan, name, .. } = &lab;
        let routing = routing.word();
        shell(&format!(
            "{podspan} lab --lab {name} up --nodes 2 --pods 2 --routing {routing} > /run/{name}.log ||
             {{ cat /run/{name}.log; exit 1; }}"
        ));
        if !masquerade {
            lab.without_masquerade();
        }
        lab
    }

    /// The agents again, with that key; they undo what they did before.
    fn without_masquerade(&self) {
        let Self { podspan, name, .. } = self;
        for node in ["node1", "node2"] {
            shell(&format!(
                "{podspan} lab --lab {name} exec {node} -- sh -ec '
                   kill $(cat /run/podspan/agent.pid)
                   echo masquerade = false >> /etc/podspan/agent.toml
                   podspan agent --config /etc/podspan/agent.toml 2> /run/podspan/again.log &
                   for look in $(seq 100); do
                     podspan status --config /etc/podspan/agent.toml > /run/podspan/status && break
                     sleep 0.1
                   done
                   cat /run/podspan/again.log
                   podspan status --config /etc/podspan/agent.toml > /dev/null
                   ! nft list chain inet podspan agent_masquerade > /dev/null 2>&1'"
            ));
        }
    }

    fn run(&self, way: Way, places: [&str; 2], core: usize) -> Run {
        let [client, server] = places.map(|place| {
            let words = ["lab", "--lab", &self.name, "exec", place, "--"];
            let words = std::iter::once(self.podspan.as_str()).chain(words);
            words.map(str::to_owned).collect()
        });
        let masquerade = self.masquerade;
        run(
            (way, Maker::Podspan { masquerade }),
            [&client, &server],
            core,
        )
    }
}

fn name(routing: Routing, masquerade: bool) -> String {
    let suffix = if masquerade { "-masquerade" } else { "" };
    format!("{}{suffix}", routing.word())
}

/// The executable as users have it.
pub fn podspan() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bin/podspan")
}

fn in_netns(name: &str) -> Vec<String> {
    ["ip", "netns", "exec", name].map(str::to_owned).to_vec()
}

fn run((way, maker): (Way, Maker), [client, server]: [&Vec<String>; 2], core: usize) -> Run {
    let [client, server] = [client, server].map(|place| {
        let words: Vec<&str> = place.iter().map(String::as_str).collect();
        words
    });
    Run {
        way,
        maker,
        server: address(&server),
        client: Endpoint::start(&client, End::Client, core),
        _server: Endpoint::start(&server, End::Server, core),
    }
}

/// The address of `eth0` there.
fn address(place: &[&str]) -> IpAddr {
    let output = Command::new(place[0])
        .args(&place[1..])
        .args(["ip", "-j", "-4", "address", "show", "dev", "eth0"])
        .output()
        .unwrap();
    let links: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{place:?}: {error}"));
    let address = &links[0]["addr_info"][0]["local"];
    address.as_str().unwrap().parse().unwrap()
}

fn shell(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}");
}
