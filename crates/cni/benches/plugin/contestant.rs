//! A contestant: a plugin, or a chain of them, with one configuration, on a node of its own.
//!
//! It is run as a runtime runs a conflist (libcni): every plugin a process, in order for ADD and CHECK and in reverse for
//! DEL, `runtimeConfig` and `prevResult` passed on. Both sides have the same keys: default gateway, hairpin, the same
//! range, the addresses on the same tmpfs. Whatever a plugin refuses ends the bench.

use std::path::{Path, PathBuf};

use podspan_cni::ipam::{Ipam, IpamConfig, boot_id};
use serde_json::{Value, json};

use crate::process::{Cost, Way};
use crate::world::{Node, Space};

/// Where Debian puts the reference plugins.
pub const REFERENCE: &str = "/usr/lib/cni";
/// The port in the pod that a host port leads to.
pub const POD_PORT: u16 = 8080;
/// The first host port; a pod's is that many behind it.
const HOST_PORTS: u16 = 20_000;
/// Bits per second each way, and bits that may come at once.
const RATE: u64 = 100_000_000;
const BURST: u64 = 20_000_000;

/// What a pod gets besides an address on the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Configuration {
    pub key: &'static str,
    pub title: &'static str,
    pub masquerade: bool,
    pub host_port: bool,
    pub bandwidth: bool,
}

/// Each includes the one before.
pub const CONFIGURATIONS: [Configuration; 4] = [
    Configuration {
        key: "plain",
        title: "Bridge and IPAM",
        masquerade: false,
        host_port: false,
        bandwidth: false,
    },
    Configuration {
        key: "masquerade",
        title: "with masquerade",
        masquerade: true,
        host_port: false,
        bandwidth: false,
    },
    Configuration {
        key: "host-port",
        title: "with masquerade, host port",
        masquerade: true,
        host_port: true,
        bandwidth: false,
    },
    Configuration {
        key: "bandwidth",
        title: "with masquerade, host port, bandwidth",
        masquerade: true,
        host_port: true,
        bandwidth: true,
    },
];

/// Whose plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// As it is by default: it guards against spoofing, which the reference does not.
    Podspan,
    /// Without that guard, so that it does no more than the reference.
    Unguarded,
    Reference,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Check,
    Del,
}

/// One plugin of the chain, with its part of the conflist.
struct Plugin {
    program: PathBuf,
    keys: Value,
}

pub struct Contestant {
    pub side: Side,
    pub configuration: Configuration,
    /// Addresses that others have before it begins.
    pub taken: usize,
    pub node: Node,
    chain: Vec<Plugin>,
}

/// The pod of one attachment.
pub struct Pod<'a> {
    pub space: &'a Space,
    pub container: String,
    /// Sets its host port apart from those of other pods at the same time.
    pub number: u16,
}

impl Pod<'_> {
    pub fn host_port(&self) -> u16 {
        HOST_PORTS + self.number
    }
}

/// The plugin that is measured, as `make build` leaves it.
pub fn podspan() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bin/podspan-cni")
}

impl Contestant {
    /// With a node of its own, and with a directory of addresses under `shm` where `taken` are somebody else's.
    pub fn new(side: Side, configuration: Configuration, taken: usize, shm: &Path) -> Self {
        let data_dir = shm.join(format!("{side:?}-{}-{taken}", configuration.key));
        let mut bridge = json!({
            "cniVersion": "1.0.0", "name": "bench", "bridge": "cni0",
            "isDefaultGateway": true, "hairpinMode": true, "ipMasq": configuration.masquerade,
            "ipam": {"type": "host-local", "dataDir": data_dir, "ranges": [[{"subnet": "10.1.0.0/16"}]]},
        });
        if side == Side::Unguarded {
            bridge["antiSpoof"] = false.into();
        }
        let named = |kind: &str, mut keys: Value| {
            keys["type"] = kind.into();
            keys
        };
        let plugin = |kind: &str, keys: Value| Plugin {
            program: match side {
                Side::Podspan | Side::Unguarded => podspan(),
                Side::Reference => Path::new(REFERENCE).join(kind),
            },
            keys: named(kind, keys),
        };
        let bare = json!({"cniVersion": "1.0.0", "name": "bench"});
        let chain = match side {
            Side::Podspan | Side::Unguarded => vec![plugin("podspan-cni", bridge.clone())],
            Side::Reference => [
                Some(plugin("bridge", bridge.clone())),
                (configuration.host_port).then(|| plugin("portmap", bare.clone())),
                (configuration.bandwidth).then(|| plugin("bandwidth", bare.clone())),
            ]
            .into_iter()
            .flatten()
            .collect(),
        };
        match side {
            Side::Podspan | Side::Unguarded => fill(&bridge, taken),
            Side::Reference => fill_as_host_local(&data_dir.join("bench"), taken),
        }
        Self {
            side,
            configuration,
            taken,
            node: Node::new(),
            chain,
        }
    }

    pub fn name(&self) -> String {
        let side = self.side.name();
        format!("{side}, {}, {} taken", self.configuration.key, self.taken)
    }

    /// The command in the node's namespace; on failure what the plugin answered.
    pub fn command(
        &self,
        verb: Verb,
        pod: &Pod<'_>,
        (added, way): (Option<&Value>, &Way),
    ) -> Result<(Value, Cost), String> {
        self.node
            .space
            .run(|| self.command_here(verb, pod, (added, way)))
    }

    /// The same for a thread that is in the node's namespace. The value is the last result, or `added` again.
    pub fn command_here(
        &self,
        verb: Verb,
        pod: &Pod<'_>,
        (added, way): (Option<&Value>, &Way),
    ) -> Result<(Value, Cost), String> {
        let (mut previous, mut cost) = (added.cloned().unwrap_or_default(), Cost::default());
        let mut chain: Vec<&Plugin> = self.chain.iter().collect();
        if verb == Verb::Del {
            chain.reverse();
        }
        for plugin in chain {
            let input = self.input(plugin, pod, &previous).to_string();
            let environment: [(&str, &Path); 5] = [
                ("CNI_COMMAND", verb.word().as_ref()),
                ("CNI_CONTAINERID", pod.container.as_ref()),
                ("CNI_NETNS", &pod.space.path()),
                ("CNI_IFNAME", "eth0".as_ref()),
                ("CNI_PATH", REFERENCE.as_ref()),
            ];
            let ended = way.run(&[&plugin.program], &environment, &input);
            let text = &ended.stdout;
            if !ended.ok {
                return Err(format!(
                    "{}: {} of {}: {text}{}",
                    self.name(),
                    verb.word(),
                    plugin.program.display(),
                    ended.stderr
                ));
            }
            if verb == Verb::Add {
                previous = serde_json::from_str(text)
                    .map_err(|error| format!("{}: ADD answered {text:?}: {error}", self.name()))?;
            }
            cost += ended.cost;
        }
        Ok((previous, cost))
    }

    fn input(&self, plugin: &Plugin, pod: &Pod<'_>, previous: &Value) -> Value {
        let mut conf = plugin.keys.clone();
        let mut asked = json!({});
        if self.configuration.host_port {
            let mapping =
                json!({"hostPort": pod.host_port(), "containerPort": POD_PORT, "protocol": "tcp"});
            asked["portMappings"] = json!([mapping]);
        }
        if self.configuration.bandwidth {
            asked["bandwidth"] = json!({
                "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST,
            });
        }
        conf["runtimeConfig"] = asked;
        if !previous.is_null() {
            conf["prevResult"] = previous.clone();
        }
        conf
    }
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::Podspan => "podspan-cni",
            Self::Unguarded => "podspan-cni, `antiSpoof` off",
            Self::Reference => "reference",
        }
    }
}

impl Verb {
    pub const ALL: [Self; 3] = [Self::Add, Self::Check, Self::Del];

    pub fn word(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
        }
    }
}

/// Takes addresses as that many ADDs would.
fn fill(conf: &Value, taken: usize) {
    let config = IpamConfig::from_json(&conf["ipam"], "/run/podspan/ipam").unwrap();
    let network = conf["name"].as_str().unwrap().parse().unwrap();
    let ipam = Ipam::open(&config, &network, &boot_id().unwrap()).unwrap();
    for number in 0..taken {
        let container = format!("taken{number}").parse().unwrap();
        let ifname = "eth0".parse().unwrap();
        ipam.allocate(&podspan_cni::attachment::AttachmentId { container, ifname })
            .unwrap();
    }
}

/// The same in the way of host-local.
fn fill_as_host_local(dir: &Path, taken: usize) {
    std::fs::create_dir_all(dir).unwrap();
    let address = |number: usize| std::net::Ipv4Addr::from_bits(0x0a01_0002 + number as u32);
    for number in 0..taken {
        let owner = format!("taken{number}\r\neth0");
        std::fs::write(dir.join(address(number).to_string()), owner).unwrap();
    }
    if let Some(last) = taken.checked_sub(1) {
        std::fs::write(dir.join("last_reserved_ip.0"), address(last).to_string()).unwrap();
    }
}
