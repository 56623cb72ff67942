//! The rules do what they say, with real packets between network namespaces. Those of the plugin have their own there.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use super::*;
use crate::Netns;
use crate::testing::TestNs;

/// How long a packet that is not dropped may take.
const PATIENCE: Duration = Duration::from_millis(250);

fn other_netns() -> Netns {
    let make = || {
        Netns::enter_new()?;
        no_duplicate_detection();
        Netns::current()
    };
    std::thread::spawn(make).join().unwrap().unwrap()
}

/// Without a link-local address that is usable at once, no IPv6 packet is forwarded for a second or two.
fn no_duplicate_detection() {
    for of in ["all", "default"] {
        crate::sysctl::write(&format!("net/ipv6/conf/{of}/accept_dad"), "0").unwrap();
    }
}

/// A veth pair from here, named `host`, to `eth0` in a namespace of its own, whose `ip` then runs `there`.
fn connect(ns: &TestNs, host: &str, there: &[&str]) -> Netns {
    let netns = other_netns();
    let path = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        netns.as_fd().as_raw_fd()
    );
    ns.ip(&format!(
        "link add {host} up type veth peer name eth0 netns {path}"
    ));
    let set_up = || {
        ns.ip("link set lo up");
        ns.ip("link set eth0 up");
        there.iter().for_each(|words| drop(ns.ip(words)));
        // To ask is to wait until the link lets packets through.
        ns.ip("link show eth0");
    };
    netns.run(set_up).unwrap();
    ns.ip(&format!("link show {host}"));
    netns
}

/// A node here with a pod and the world on either side of it.
fn node(ns: &TestNs) -> (Netns, Netns) {
    for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        crate::sysctl::write(key, "1").unwrap();
    }
    no_duplicate_detection();
    let pod = connect(
        ns,
        "pod",
        &[
            "addr add 10.244.1.2/24 dev eth0",
            "addr add fd00:1::2/64 dev eth0 nodad",
            "route add default via 10.244.1.1",
            "route add default via fd00:1::1",
        ],
    );
    let world = connect(
        ns,
        "world",
        &[
            "addr add 192.0.2.2/24 dev eth0",
            "addr add 198.51.100.2/32 dev eth0",
            "addr add fd00:2::2/64 dev eth0 nodad",
            "route add 10.244.0.0/16 via 192.0.2.1",
            "route add fd00:1::/64 via fd00:2::1",
        ],
    );
    ns.ip("addr add 10.244.1.1/24 dev pod");
    ns.ip("addr add fd00:1::1/64 dev pod nodad");
    ns.ip("addr add 192.0.2.1/24 dev world");
    ns.ip("addr add fd00:2::1/64 dev world nodad");
    ns.ip("route add 198.51.100.2/32 via 192.0.2.2");
    // Neighbours are found when the links come to it.
    for address in ["192.0.2.2:1", "[fd00:2::2]:1"] {
        assert!((0..20).any(|_| visitor(&pod, address, (&world, address)).is_some()));
    }
    (pod, world)
}

/// A socket in a namespace. An IPv6 address can be bound to only once the kernel's own thread has been at it.
fn bound<T: Send>(netns: &Netns, bind: impl Fn() -> std::io::Result<T> + Send + Sync) -> T {
    for _ in 0..40 {
        if let Ok(socket) = netns.run(&bind).unwrap() {
            return socket;
        }
        std::thread::sleep(PATIENCE / 5);
    }
    netns.run(bind).unwrap().unwrap()
}

/// Who `server` sees when a program in `client` connects to `address` and ends up at `listens`; none if it does not.
fn visitor(client: &Netns, address: &str, server: (&Netns, &str)) -> Option<IpAddr> {
    let address: SocketAddr = address.parse().unwrap();
    let listener = bound(server.0, || TcpListener::bind(server.1));
    let connected = client
        .run(|| TcpStream::connect_timeout(&address, PATIENCE))
        .unwrap();
    let _connection = connected.ok()?;
    Some(listener.accept().unwrap().1.ip())
}

fn seen_as(text: &str) -> Option<IpAddr> {
    Some(text.parse().unwrap())
}

#[test]
fn a_pod_leaves_as_the_node_except_for_destinations_of_the_cluster() {
    let ns = TestNs::new();
    let (pod, world) = node(&ns);
    let mut nft = Nft::open().unwrap();
    let mut batch = masquerade();
    batch.add_element(
        &NO_MASQUERADE4,
        &Element::prefix("198.51.100.0/24".parse().unwrap()),
    );
    nft.commit(batch).unwrap();
    let outside = || visitor(&pod, "192.0.2.2:80", (&world, "0.0.0.0:80"));
    assert_eq!(outside(), seen_as("10.244.1.2"));
    let mut batch = Batch::new();
    batch.add_element(&MASQUERADE4, &Element::new([ip("10.244.1.2")]));
    nft.commit(batch).unwrap();
    assert_eq!(outside(), seen_as("192.0.2.1"));
    let inside = visitor(&pod, "198.51.100.2:80", (&world, "0.0.0.0:80"));
    assert_eq!(inside, seen_as("10.244.1.2"));
}
