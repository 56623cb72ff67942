//! The rules do what they say, with real packets between network namespaces.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};

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

#[test]
fn a_port_of_the_node_leads_to_the_pod_from_outside_and_from_the_node_itself() {
    let ns = TestNs::new();
    let (pod, world) = node(&ns);
    let here = Netns::current().unwrap();
    let mut nft = Nft::open().unwrap();
    nft.commit(port_mappings()).unwrap();
    let from_world = |address| visitor(&world, address, (&pod, "[::]:80"));
    assert_eq!(from_world("192.0.2.1:8080"), None);

    let to4 = [ip("10.244.1.2"), Value::Port(80)];
    let to6 = [ip("fd00:1::2"), Value::Port(80)];
    let any = [Value::TCP, Value::Port(8080)];
    let one4 = [ip("192.0.2.1"), Value::TCP, Value::Port(9090)];
    let one6 = [ip("fd00:2::1"), Value::TCP, Value::Port(9090)];
    let mut batch = Batch::new();
    batch.add_element(&HOST_PORTS4, &Element::new(any.clone()).to(to4.clone()));
    batch.add_element(&HOST_PORTS6, &Element::new(any).to(to6.clone()));
    batch.add_element(&HOST_IP_PORTS4, &Element::new(one4).to(to4));
    batch.add_element(&HOST_IP_PORTS6, &Element::new(one6).to(to6));
    nft.commit(batch).unwrap();

    for address in ["192.0.2.1:8080", "192.0.2.1:9090"] {
        assert_eq!(
            from_world(address),
            seen_as("::ffff:192.0.2.2"),
            "{address}"
        );
        let from_node = visitor(&here, address, (&pod, "[::]:80"));
        assert_eq!(from_node, seen_as("::ffff:192.0.2.1"), "{address}");
    }
    for address in ["[fd00:2::1]:8080", "[fd00:2::1]:9090"] {
        assert_eq!(from_world(address), seen_as("fd00:2::2"), "{address}");
        let from_node = visitor(&here, address, (&pod, "[::]:80"));
        assert_eq!(from_node, seen_as("fd00:2::1"), "{address}");
    }
    // The mapping with an address is of that address alone, and no mapping is of what is not the node's.
    assert_eq!(visitor(&here, "10.244.1.1:9090", (&pod, "[::]:80")), None);
    let through = visitor(&pod, "192.0.2.2:8080", (&world, "0.0.0.0:8080"));
    assert_eq!(through, seen_as("10.244.1.2"));
}

/// A bridge here with two pods; the port of the first is guarded.
fn guarded_bridge(ns: &TestNs) -> (Netns, Netns) {
    ns.ip("link add br0 up type bridge");
    let pods = ["pod-a", "pod-b"].map(|pod| {
        let number = if pod == "pod-a" { 2 } else { 3 };
        let netns = connect(
            ns,
            pod,
            &[
                &format!("link set eth0 address 02:00:00:00:00:0{number}"),
                &format!("addr add 10.0.0.{number}/24 dev eth0"),
                &format!("addr add fd00::{number}/64 dev eth0 nodad"),
            ],
        );
        ns.ip(&format!("link set {pod} master br0"));
        netns
    });
    // A port forwards when the kernel comes to it.
    for address in ["10.0.0.2:0", "[fd00::2]:0"] {
        assert!((0..20).any(|_| arrives(&pods[0], address, &pods[1])));
    }
    let mac = Mac([2, 0, 0, 0, 0, 2]);
    let mut batch = anti_spoofing();
    batch.add_element(&GUARDED, &Element::new([port("pod-a")]));
    batch.add_element(&PORT_MAC, &Element::new([port("pod-a"), mac.into()]));
    batch.add_element(&PORT_IP4, &Element::new([port("pod-a"), ip("10.0.0.2")]));
    batch.add_element(&PORT_IP6, &Element::new([port("pod-a"), ip("fd00::2")]));
    Nft::open().unwrap().commit(batch).unwrap();
    pods.into()
}

/// True when a datagram from that address of `a` reaches `b`.
fn arrives(a: &Netns, from: &str, b: &Netns) -> bool {
    let from: SocketAddr = from.parse().unwrap();
    let to = if from.is_ipv4() {
        "10.0.0.3:7"
    } else {
        "[fd00::3]:7"
    };
    let receiver = bound(b, || UdpSocket::bind(to));
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = bound(a, || UdpSocket::bind(from));
    sender.send_to(b"x", to).unwrap();
    receiver.recv(&mut [0; 1]).is_ok()
}

#[test]
fn a_guarded_port_sends_only_as_itself() {
    let ns = TestNs::new();
    let (a, b) = guarded_bridge(&ns);
    let run = |netns: &Netns, words: &str| netns.run(|| ns.ip(words)).unwrap();
    assert!(arrives(&a, "10.0.0.2:0", &b));
    assert!(arrives(&a, "[fd00::2]:0", &b));

    // An address of somebody else: the ARP request that says so is dropped, and the packet too when none is needed.
    run(&a, "neigh flush dev eth0");
    run(&a, "addr add 10.0.0.66/24 dev eth0");
    run(&a, "addr add fd00::66/64 dev eth0 nodad");
    assert!(!arrives(&a, "10.0.0.66:0", &b));
    let neighbours = run(&b, "neigh show 10.0.0.66").to_string();
    assert!(!neighbours.contains("02:00:00:00:00:02"), "{neighbours}");
    for address in ["10.0.0.3", "fd00::3"] {
        run(
            &a,
            &format!("neigh replace {address} lladdr 02:00:00:00:00:03 dev eth0 nud permanent"),
        );
    }
    assert!(!arrives(&a, "10.0.0.66:0", &b));
    assert!(!arrives(&a, "[fd00::66]:0", &b));
    assert!(arrives(&a, "10.0.0.2:0", &b));
    assert!(arrives(&a, "[fd00::2]:0", &b));

    // A MAC address of somebody else.
    run(&a, "link set eth0 address 02:00:00:00:00:77");
    run(
        &a,
        "neigh replace 10.0.0.3 lladdr 02:00:00:00:00:03 dev eth0 nud permanent",
    );
    assert!(!arrives(&a, "10.0.0.2:0", &b));
    run(&a, "link set eth0 address 02:00:00:00:00:02");
    run(
        &a,
        "neigh replace 10.0.0.3 lladdr 02:00:00:00:00:03 dev eth0 nud permanent",
    );
    assert!(arrives(&a, "10.0.0.2:0", &b));

    // The other port is not guarded.
    run(&b, "addr add 10.0.0.99/24 dev eth0");
    let sender = bound(&b, || UdpSocket::bind("10.0.0.99:0"));
    let receiver = bound(&a, || UdpSocket::bind("10.0.0.2:7"));
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    sender.send_to(b"x", "10.0.0.2:7").unwrap();
    assert!(receiver.recv(&mut [0; 1]).is_ok());
}

#[test]
fn a_guarded_port_advertises_only_itself_and_no_router() {
    let ns = TestNs::new();
    let (a, b) = guarded_bridge(&ns);
    let advertises = |kind: u8, target: &str| {
        let target: std::net::Ipv6Addr = target.parse().unwrap();
        let mut message = vec![kind, 0, 0, 0, 0x20, 0, 0, 0];
        message.extend(target.octets());
        let socket = |netns: &Netns| netns.run(icmpv6).unwrap();
        let (sender, receiver) = (socket(&a), socket(&b));
        let to: std::net::SocketAddrV6 = "[fd00::3]:0".parse().unwrap();
        rustix::net::sendto(&sender, &message, SendFlags::empty(), &to).unwrap();
        // Neighbour discovery of the namespaces themselves comes by too.
        let mut buffer = [0; 256];
        while let Ok((length, _)) = rustix::net::recv(&receiver, &mut buffer, RecvFlags::empty()) {
            if buffer[..length].first() == Some(&kind) && buffer[8..24] == target.octets() {
                return true;
            }
        }
        false
    };
    assert!(advertises(136, "fd00::2"));
    assert!(!advertises(136, "fd00::3"), "the neighbour's address");
    assert!(!advertises(134, "fd00::2"), "a router");
    let mut batch = Batch::new();
    batch.remove_table(BRIDGE);
    Nft::open().unwrap().commit(batch).unwrap();
    assert!(advertises(136, "fd00::3") && advertises(134, "fd00::2"));
}

/// A raw socket of ICMPv6 that waits no longer than a packet may take.
fn icmpv6() -> OwnedFd {
    let socket =
        rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
    let timeout = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE)).unwrap();
    socket
}
