//! What the contestants work in: nodes, pods and a machine outside, each a network namespace of its own.
//!
//! Nothing touches the machine's own network. A namespace is torn down in the background, which holds others up: that is
//! why pods live until a round is over, and why [`settle`] follows.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use podspan_kernel::{LinkChange, Netlink, Netns};

/// After namespaces were dropped.
const PAUSE: Duration = Duration::from_millis(120);
/// How long a connection may take that must come about; and how long one is waited for that must not.
const PATIENCE: Duration = Duration::from_secs(2);
/// The node's and the outside machine's addresses between the two.
const UPLINK: [&str; 2] = ["203.0.113.1", "203.0.113.2"];

/// A network namespace with `lo` up; it ends with this value.
pub struct Space {
    netns: Netns,
}

/// A node, and a machine beside it that is no part of the pod network.
pub struct Node {
    pub space: Space,
    outside: Space,
}

impl Space {
    pub fn new() -> Self {
        let make = || {
            Netns::enter_new()?;
            let up = LinkChange {
                up: true,
                ..LinkChange::default()
            };
            Netlink::open()?.set_link(&"lo".parse().unwrap(), up)?;
            Netns::current()
        };
        let made = std::thread::scope(|scope| scope.spawn(make).join()).unwrap();
        Self {
            netns: made.unwrap_or_else(|error: podspan_kernel::Error| {
                panic!("the bench makes network namespaces (root, or `unshare -Urn`): {error}")
            }),
        }
    }

    /// A path that leads to it, as long as this value lives.
    pub fn path(&self) -> PathBuf {
        let (process, number) = (std::process::id(), self.netns.as_fd().as_raw_fd());
        format!("/proc/{process}/fd/{number}").into()
    }

    /// Runs `work` inside, on a thread of its own.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).unwrap()
    }

    /// What a program prints that is run inside and must succeed.
    pub fn output(&self, command: &str) -> String {
        let mut words = command.split(' ');
        let mut process = Command::new(words.next().unwrap());
        let output = self.run(|| process.args(words).output()).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn listen(&self, port: u16) -> TcpListener {
        self.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap())
    }

    /// Whom a server sees that is connected to from here; none when no connection comes about.
    pub fn seen_by(&self, server: &TcpListener, address: &str, port: u16) -> Option<String> {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        let client = self.run(|| TcpStream::connect_timeout(&address, PATIENCE));
        let _client = client.ok()?;
        let (_connection, peer) = server.accept().unwrap();
        Some(peer.ip().to_string())
    }
}

impl Node {
    pub fn new() -> Self {
        let (space, outside) = (Space::new(), Space::new());
        let [here, there] = UPLINK;
        let peer = outside.path().display().to_string();
        space.output(&format!(
            "ip link add up0 type veth peer name up1 netns {peer}"
        ));
        for command in [
            &format!("ip addr add {here}/24 dev up0"),
            "ip link set up0 up",
            &format!("ip route add default via {there}"),
        ] {
            space.output(command);
        }
        for command in [
            &format!("ip addr add {there}/24 dev up1"),
            "ip link set up1 up",
            &format!("ip route add 10.0.0.0/8 via {here}"),
        ] {
            outside.output(command);
        }
        Self { space, outside }
    }

    /// The address under which others know the node.
    pub fn address() -> &'static str {
        UPLINK[0]
    }

    /// The machine beside it, and its address.
    pub fn outside(&self) -> (&Space, &'static str) {
        (&self.outside, UPLINK[1])
    }
}

/// Lets the kernel finish with namespaces that were just dropped.
pub fn settle() {
    std::thread::sleep(PAUSE);
}
