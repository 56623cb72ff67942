//! What no plugin can undercut: the start of a process, the requests of an ADD, the deletion of a veth pair.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use podspan_kernel::{IfName, LinkChange, Mac, Netlink, Netns, VethEnd, VethPair};

use crate::contestant::podspan;
use crate::process::{Calls, Cost, Way};
use crate::world::{Node, Space};

/// The bridge, its address and the pod's, all as the contestants have them.
const BRIDGE: &str = "cni0";
const GATEWAY: &str = "10.1.0.1";
const ADDRESS: &str = "10.1.0.2/16";
const HOST_VETH: &str = "pod0123456789ab";

pub struct Bare {
    node: Node,
    program: PathBuf,
    /// A static process that does nothing.
    pub nothing: Vec<Cost>,
    /// Our plugin without a pod: VERSION.
    pub version: Vec<Cost>,
    /// The requests of ADD.
    pub attach: Vec<Cost>,
    /// Deleting what that made: one request, no process.
    pub remove_pod: Vec<Duration>,
    /// Deleting a pair that is up, in no bridge and without an address.
    pub remove_pair: Vec<Duration>,
}

impl Bare {
    /// `program` is the example `floor`, built as the plugin is.
    pub fn new(program: &Path) -> Self {
        let node = Node::new();
        node.space.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let (name, gateway) = (BRIDGE.parse().unwrap(), format!("{GATEWAY}/16"));
            let mac = Mac::of_ip(GATEWAY.parse().unwrap());
            netlink.add_bridge(&name, mac).unwrap();
            let index = netlink.link(&name).unwrap().index;
            netlink
                .ensure_address(index, gateway.parse().unwrap())
                .unwrap();
            podspan_kernel::sysctl::ensure("net/ipv4/ip_forward", "1").unwrap();
        });
        Self {
            node,
            program: program.to_owned(),
            nothing: Vec::new(),
            version: Vec::new(),
            attach: Vec::new(),
            remove_pod: Vec::new(),
            remove_pair: Vec::new(),
        }
    }

    /// The requests of an ADD, and the deletion of what they made: where a contestant has its ADD and its DEL.
    pub fn pod(&mut self, pod: &Space, counts: bool) {
        let (attach, remove) = (self.attach(pod, &Way::Bare), self.remove());
        if counts {
            self.attach.push(attach);
            self.remove_pod.push(remove);
        }
    }

    /// The bare process, and the bare pair.
    pub fn process(&mut self, pod: &Space, counts: bool) {
        let (nothing, version) = self.node.space.run(|| {
            let version: [(&str, &Path); 1] = [("CNI_COMMAND", "VERSION".as_ref())];
            let nothing = [self.program.as_path(), "nothing".as_ref()];
            (
                Way::Bare.run(&nothing, &[], ""),
                Way::Bare.run(&[&podspan()], &version, r#"{"cniVersion":"1.0.0"}"#),
            )
        });
        assert!(
            nothing.ok && version.ok,
            "{}{}",
            nothing.stderr,
            version.stdout
        );
        self.add_pair(pod);
        let remove = self.remove();
        if counts {
            self.nothing.push(nothing.cost);
            self.version.push(version.cost);
            self.remove_pair.push(remove);
        }
    }

    /// How many requests the floor of ADD sends.
    pub fn calls(&self, file: &Path) -> Calls {
        let pod = Space::new();
        let calls = self.attach(&pod, &Way::Counted(file.to_owned())).calls;
        self.remove();
        calls
    }

    fn attach(&self, pod: &Space, way: &Way) -> Cost {
        let netns = pod.path();
        let words = ["attach", "", BRIDGE, HOST_VETH, ADDRESS, GATEWAY];
        let mut words: Vec<&Path> = words.iter().map(Path::new).collect();
        words[1] = &netns;
        words.insert(0, &self.program);
        let ended = self.node.space.run(|| way.run(&words, &[], ""));
        assert!(ended.ok, "{}", ended.stderr);
        ended.cost
    }

    fn add_pair(&self, pod: &Space) {
        let end = |name, last| VethEnd {
            name,
            mac: Mac([0x0a, 0x58, 0, 0, 0, last]),
        };
        let (host, peer): (IfName, IfName) = (HOST_VETH.parse().unwrap(), "eth0".parse().unwrap());
        let up = LinkChange {
            up: true,
            ..LinkChange::default()
        };
        self.node.space.run(|| {
            let pair = VethPair {
                host: end(&host, 1),
                peer: end(&peer, 2),
                peer_netns: &Netns::open(pod.path()).unwrap(),
                master: None,
                mtu: 1500,
            };
            let mut netlink = Netlink::open().unwrap();
            netlink.add_veth(&pair).unwrap();
            netlink.set_link(&host, up).unwrap();
        });
        pod.run(|| Netlink::open().unwrap().set_link(&peer, up).unwrap());
    }

    fn remove(&self) -> Duration {
        self.node.space.run(|| {
            let mut netlink = Netlink::open().unwrap();
            let index = netlink.link(&HOST_VETH.parse().unwrap()).unwrap().index;
            let start = Instant::now();
            netlink.remove_link(index).unwrap();
            start.elapsed()
        })
    }
}
