//! Real packets of a test: pods of this machine by the real plugin, another node, and a machine outside of the cluster that
//! tells whom it sees.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use podspan_kernel::Netns;
use podspan_kernel::testing::TestNs;
use serde_json::{Value, json};

use crate::machine::Machine;

/// How long a connection may take that works; on a busy machine, too.
const PATIENCE: Duration = Duration::from_secs(5);
/// Every server has this port.
pub const PORT: u16 = 8080;

/// What `nft` says to these commands.
#[track_caller]
pub fn nft(commands: &str) -> String {
    let output = Command::new("nft")
        .args(commands.split_whitespace())
        .output();
    let output = output.unwrap_or_else(|error| panic!("nft of nftables is installed: {error}"));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {commands}: {told}");
    String::from_utf8(output.stdout).unwrap()
}

/// Packets whose answer would leave by another link are dropped on every link of this machine (`rp_filter`, RFC 3704).
pub fn strict_reverse_path() {
    std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
}

/// A network namespace: a pod's, or another machine's.
pub struct Place {
    netns: Netns,
}

impl Place {
    pub fn new() -> Self {
        let make = || {
            let _ns = TestNs::new();
            Netns::current().unwrap()
        };
        Self {
            netns: std::thread::scope(|scope| scope.spawn(make).join()).unwrap(),
        }
    }

    /// A path that leads to it, as long as this value lives.
    pub fn path(&self) -> PathBuf {
        let descriptor = self.netns.as_fd().as_raw_fd();
        format!("/proc/{}/fd/{descriptor}", std::process::id()).into()
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).unwrap()
    }

    pub fn ip(&self, arguments: &str) -> Value {
        self.run(|| ip(arguments))
    }

    /// A server on all of its addresses.
    pub fn server(&self) -> TcpListener {
        self.run(|| TcpListener::bind(format!("[::]:{PORT}")).unwrap())
    }

    /// A connection from here.
    pub fn connect(&self, ip: &str) -> std::io::Result<TcpStream> {
        self.connect_to(SocketAddr::new(ip.parse().unwrap(), PORT))
    }

    pub fn connect_to(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&address, PATIENCE))
    }

    /// The address that the server sees when a program here connects to `ip`.
    #[track_caller]
    pub fn seen_as(&self, ip: &str, server: &TcpListener) -> String {
        seen_as(self.connect(ip), ip, server).1
    }
}

/// The server's end of a connection and the address that it sees.
#[track_caller]
pub fn seen_as(
    client: std::io::Result<TcpStream>,
    ip: &str,
    server: &TcpListener,
) -> (TcpStream, String) {
    let client = client.unwrap_or_else(|error| panic!("connect to {ip}: {error}"));
    client.set_nodelay(true).unwrap();
    let (end, peer) = server.accept().unwrap();
    assert!(is_one(&client, &end), "somebody else's connection to {ip}");
    (end, peer.ip().to_canonical().to_string())
}

/// What one end says the other hears.
pub fn is_one(mut client: &TcpStream, mut server: &TcpStream) -> bool {
    for stream in [client, server] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut heard = [0];
    client.write_all(&[7]).is_ok() && server.read_exact(&mut heard).is_ok() && heard == [7]
}

fn ip(arguments: &str) -> Value {
    let mut command = Command::new("ip");
    let output = command.arg("-j").args(arguments.split(' ')).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "ip {arguments}: {text}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

impl Machine {
    /// A machine on the segment of `eth0`, with these addresses and all pods of this node through this node.
    pub fn neighbour(&self, link: &str, addresses: &[&str]) -> Place {
        let place = Place::new();
        self.ns.ip(&format!(
            "link add {link} type veth peer name eth0 netns {}",
            place.path().display()
        ));
        // Neighbours of IPv6 are asked from a link-local address, which must be usable at once.
        place.run(|| std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0").unwrap());
        self.ns.ip("addr replace fe80::1/64 dev eth0 nodad");
        self.ns.ip(&format!("link set {link} master eth0 up"));
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            place.ip(&format!("addr add {address} dev eth0{nodad}"));
        }
        place.ip("link set eth0 up");
        for route in [
            "10.0.1.0/24 via 172.16.0.1",
            "fd00:10:1::/64 via fd00:172::1",
        ] {
            let family = if route.contains(':') { "-6" } else { "-4" };
            place.ip(&format!("{family} route add {route}"));
        }
        self.until("the segment is open", || {
            let links = self.ns.ip(&format!("-d link show {link}"));
            links[0]["linkinfo"]["info_slave_data"]["state"] == "forwarding"
        });
        place
    }

    /// Node 2 with a pod's addresses, 10.0.2.2 and fd00:10:2::2.
    pub fn node2(&self) -> Place {
        let node2 = self.neighbour("to-node2", &["172.16.0.2/16", "fd00:172::2/64"]);
        node2.ip("addr add 10.0.2.2/32 dev lo");
        node2.ip("addr add fd00:10:2::2/128 dev lo nodad");
        node2
    }

    /// Runs the real plugin with the conflist that the agent wrote; the first plugin's keys are changed by `more`.
    #[track_caller]
    pub fn plugin(&self, command: &str, pod: (&str, &Place), more: &Value) -> Value {
        self.plugin_for((command, ""), pod, more)
    }

    /// The same with these `CNI_ARGS`.
    #[track_caller]
    pub fn plugin_for(
        &self,
        (command, args): (&str, &str),
        (container, pod): (&str, &Place),
        more: &Value,
    ) -> Value {
        let conflist = self.path("net.d/10-podspan.conflist");
        let conflist: Value = serde_json::from_slice(&std::fs::read(conflist).unwrap()).unwrap();
        let mut conf = conflist["plugins"][0].clone();
        conf["name"] = conflist["name"].clone();
        conf["cniVersion"] = json!("1.1.0");
        conf["ipam"]["dataDir"] = json!(self.path("ipam"));
        for (key, value) in more.as_object().into_iter().flatten() {
            conf[key] = value.clone();
        }
        let mut process = Command::new(plugins().join("podspan-cni"));
        let environment = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", container),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/nowhere"),
            ("CNI_ARGS", args),
        ];
        process.envs(environment).env("CNI_NETNS", pod.path());
        let mut child = process
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(conf.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command} {container}: {said}");
        serde_json::from_str(&said).unwrap_or(Value::Null)
    }

    /// A new pod of this node, as Kubernetes names it; its container has the same name.
    #[track_caller]
    pub fn pod_named(&self, namespace: &str, name: &str) -> Place {
        let pod = Place::new();
        let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
        self.plugin_for(("ADD", &args), (name, &pod), &json!({}));
        pod
    }

    /// A new pod of this node.
    #[track_caller]
    pub fn pod(&self, container: &str, more: &Value) -> Place {
        let pod = Place::new();
        self.plugin("ADD", (container, &pod), more);
        pod
    }
}

/// The directory with the plugin that `make build` made.
pub fn plugins() -> PathBuf {
    let directory = std::env::var_os("PODSPAN_BIN_DIR").map(PathBuf::from);
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bin");
    let directory = directory.unwrap_or_else(default);
    assert!(
        directory.join("podspan-cni").exists(),
        "podspan-cni is missing in {}: run `make build` first",
        directory.display()
    );
    directory
}
