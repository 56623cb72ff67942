//! A pod sends as itself only: real packets through the guard that the real plugin made.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use harness::{Node, Pod, nft};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};
use serde_json::{Value, json};

/// How long a packet that is not dropped may take.
const PATIENCE: Duration = Duration::from_millis(400);
/// Addresses and MAC addresses of the two pods of most tests.
const A: [&str; 3] = ["10.244.1.2", "fd00:10:244:1::2", "0a:58:0a:f4:01:02"];
const B: [&str; 3] = ["10.244.1.3", "fd00:10:244:1::3", "0a:58:0a:f4:01:03"];

/// A node with two pods: the first with these keys, the second free to send as anybody.
fn pods(keys: Value) -> (Node, Pod, Pod) {
    let node = Node::new();
    let (a, b) = (Pod::new(), Pod::new());
    node.add("a", &a, &node.conf(keys)).expect_ok();
    node.add("b", &b, &node.conf(json!({"antiSpoof": false})))
        .expect_ok();
    (node, a, b)
}

/// True when a datagram from that address of `sender` comes to `to` of `receiver`. The sender knows the receiver's MAC
/// address, so that nothing but the datagram itself is asked.
fn arrives(sender: &Pod, from: &str, (receiver, to): (&Pod, [&str; 3])) -> bool {
    let [four, six, mac] = to;
    let of_ipv6 = from.contains(':');
    let to = if of_ipv6 { six } else { four };
    sender.ip(&format!(
        "neigh replace {to} lladdr {mac} dev eth0 nud permanent"
    ));
    let at = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port);
    let receiver = receiver.run(|| UdpSocket::bind(at(to, 7)).unwrap());
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = sender.run(|| UdpSocket::bind(at(from, 0)).unwrap());
    // A pod that dropped its own packet would be no test.
    sender.send_to(b"x", at(to, 7)).unwrap();
    receiver.recv(&mut [0; 1]).is_ok()
}

/// What the pod has besides what it was given.
fn take(pod: &Pod, address: &str) {
    let nodad = if address.contains(':') { " nodad" } else { "" };
    pod.ip(&format!("addr add {address} dev eth0{nodad}"));
}

#[test]
fn a_pod_sends_ip_as_itself_only() {
    let (node, a, b) = pods(json!({}));
    take(&a, "10.244.1.66/24");
    take(&a, "fd00:10:244:1::66/64");
    take(&a, "127.0.0.66/8");
    for (from, passes) in [
        (A[0], true),
        (A[1], true),
        ("10.244.1.66", false),
        ("fd00:10:244:1::66", false),
    ] {
        assert_eq!(arrives(&a, from, (&b, B)), passes, "{from}");
    }
    // The other one is free to.
    take(&b, "10.244.1.77/24");
    take(&b, "fd00:10:244:1::77/64");
    for from in ["10.244.1.77", "fd00:10:244:1::77"] {
        assert!(arrives(&b, from, (&a, A)), "{from}");
    }
    // Neither does the node see it.
    let server = UdpSocket::bind("10.244.1.1:7").unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    for (from, passes) in [(A[0], true), ("10.244.1.66", false)] {
        let client = a.run(|| UdpSocket::bind(format!("{from}:0")).unwrap());
        client.send_to(b"x", "10.244.1.1:7").unwrap();
        assert_eq!(server.recv(&mut [0; 1]).is_ok(), passes, "{from}");
    }
    node.del("a", &node.conf(json!({}))).expect_ok();
    node.del("b", &node.conf(json!({}))).expect_ok();
    node.assert_clean("after DEL");
    node.assert_foreign_survives();
}

#[test]
fn a_pod_resolves_and_announces_its_own_address_only() {
    let (_node, a, b) = pods(json!({}));
    let known = |pod: &Pod, ip: &str| pod.ip(&format!("neigh show {ip}")).to_string();
    // It asks for others and answers for itself.
    let asks = |from: &str, to: &str, pod: &Pod| {
        // A question that is still open is not asked again at once.
        pod.ip(&format!(
            "neigh replace {to} lladdr 02:00:00:00:00:01 dev eth0 nud permanent"
        ));
        pod.ip(&format!("neigh del {to} dev eth0"));
        let socket = pod.run(|| UdpSocket::bind(format!("{from}:0")).unwrap());
        socket.send_to(b"x", format!("{to}:9")).unwrap();
        std::thread::sleep(PATIENCE / 2);
    };
    asks("10.244.1.2", "10.244.1.3", &a);
    assert!(known(&a, B[0]).contains(B[2]) && known(&b, A[0]).contains(A[2]));
    // It asks in the name of another: who is asked learns nothing.
    take(&a, "10.244.1.66/24");
    a.ip("neigh flush dev eth0");
    asks("10.244.1.66", "10.244.1.3", &a);
    assert!(
        !known(&b, "10.244.1.66").contains(A[2]),
        "{}",
        known(&b, "10.244.1.66")
    );
    // It answers for another.
    asks("10.244.1.3", "10.244.1.66", &b);
    assert!(
        !known(&b, "10.244.1.66").contains(A[2]),
        "{}",
        known(&b, "10.244.1.66")
    );
    // And the same where nobody guards.
    nft("flush set bridge podspan guarded");
    asks("10.244.1.3", "10.244.1.66", &b);
    assert!(
        known(&b, "10.244.1.66").contains(A[2]),
        "the test would see it"
    );
}

/// The port that the bridge has a MAC address behind.
fn learnt(mac: &str) -> Option<String> {
    let output = std::process::Command::new("bridge")
        .args(["-j", "fdb", "show", "br", "podspan0"])
        .output()
        .unwrap();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = all
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["mac"] == mac)?;
    Some(found["ifname"].as_str().unwrap().to_owned())
}

#[test]
fn a_pod_has_its_own_mac_address_and_the_bridge_learns_no_other() {
    for keys in [json!({}), json!({"antiSpoof": false, "macspoofchk": true})] {
        let (node, a, b) = pods(keys);
        assert!(arrives(&a, A[0], (&b, B)));
        assert!(learnt(A[2]).is_some());
        a.ip("link set eth0 address 0a:58:0a:f4:01:77");
        assert!(!arrives(&a, A[0], (&b, B)));
        // A frame to a group that bridges take in themselves, past their first hook: the bridge learns from it.
        a.ip("neigh replace 10.244.1.99 lladdr 01:80:c2:00:00:0e dev eth0 nud permanent");
        let group = || {
            let socket = a.run(|| UdpSocket::bind("10.244.1.2:0").unwrap());
            socket.send_to(b"x", "10.244.1.99:7").unwrap();
            std::thread::sleep(PATIENCE / 4);
        };
        group();
        assert_eq!(learnt("0a:58:0a:f4:01:77"), None);
        nft("flush set bridge podspan guarded");
        node.ns
            .ip("link set podspan0 type bridge no_linklocal_learn 0");
        group();
        assert!(
            learnt("0a:58:0a:f4:01:77").is_some(),
            "the test would see it"
        );
        assert!(arrives(&a, A[0], (&b, B)));
    }
}

#[test]
fn the_check_of_mac_addresses_alone_lets_any_address_pass() {
    let (_node, a, b) = pods(json!({"antiSpoof": false, "macspoofchk": true}));
    take(&a, "10.244.1.66/24");
    take(&a, "fd00:10:244:1::66/64");
    assert!(arrives(&a, "10.244.1.66", (&b, B)));
    assert!(arrives(&a, "fd00:10:244:1::66", (&b, B)));
}

/// A raw socket of ICMPv6 that waits no longer than a packet may take.
fn icmpv6() -> OwnedFd {
    let socket =
        rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
    let timeout = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn a_pod_advertises_itself_only_and_no_router() {
    let (_node, a, b) = pods(json!({}));
    let to: SocketAddrV6 = format!("[{}]:0", B[1]).parse().unwrap();
    assert!(arrives(&a, A[1], (&b, B)));
    let heard = |receiver: &OwnedFd, message: &[u8]| {
        // Neighbour discovery of the namespaces themselves comes by too.
        let mut buffer = [0; 256];
        while let Ok((length, _)) = rustix::net::recv(receiver, &mut buffer, RecvFlags::empty()) {
            if buffer[..length].first() == message.first() && buffer[8..24] == message[8..] {
                return true;
            }
        }
        false
    };
    let advertises = |kind: u8, target: &str| {
        let message = about(kind, target);
        let (sender, receiver) = (a.run(icmpv6), b.run(icmpv6));
        rustix::net::sendto(&sender, &message, SendFlags::empty(), &to).unwrap();
        heard(&receiver, &message)
    };
    let advertises_behind_a_header = |kind: u8, target: &str| {
        let message = about(kind, target);
        let receiver = b.run(icmpv6);
        let sender = a.run(|| {
            let kind = (AddressFamily::INET6, SocketType::RAW, Some(ipproto::RAW));
            rustix::net::socket(kind.0, kind.1, kind.2).unwrap()
        });
        let packet = with_hop_by_hop_header([A[1], B[1]], &message);
        rustix::net::sendto(&sender, &packet, SendFlags::empty(), &to).unwrap();
        heard(&receiver, &message)
    };
    let (advertisement, router, redirect) = (136, 134, 137);
    assert!(advertises(advertisement, A[1]));
    assert!(!advertises(advertisement, B[1]), "the neighbour's address");
    assert!(
        !advertises(advertisement, "fd00:10:244:1::1"),
        "the gateway's"
    );
    assert!(!advertises(router, A[1]));
    assert!(advertises_behind_a_header(advertisement, A[1]));
    assert!(!advertises_behind_a_header(advertisement, B[1]));
    assert!(!advertises_behind_a_header(router, A[1]));
    nft("flush set bridge podspan guarded");
    assert!(
        advertises(advertisement, B[1]) && advertises(router, A[1]) && advertises(redirect, A[1])
    );
    assert!(advertises_behind_a_header(router, A[1]));
}

/// A message of neighbour discovery about that address, whose checksum is still zero.
fn about(kind: u8, target: &str) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    let mut message = vec![kind, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(target.octets());
    message
}

/// A whole packet (RFC 8200) in which a header of options that say nothing stands before the ICMPv6 message.
fn with_hop_by_hop_header(ends: [&str; 2], message: &[u8]) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    let ends: Vec<u8> = ends
        .iter()
        .flat_map(|ip| ip.parse::<Ipv6Addr>().unwrap().octets())
        .collect();
    let options = [ICMPV6, 0, 1, 4, 0, 0, 0, 0];
    let length = u8::try_from(options.len() + message.len()).unwrap();
    let mut packet = vec![0x60, 0, 0, 0, 0, length, 0, 255];
    packet.extend(&ends);
    packet.extend(options);
    let begin = packet.len();
    packet.extend(message);
    // The Internet checksum (RFC 1071) of addresses, length, protocol and message; all of even length here.
    let pseudo = [&ends[..], &[0, message.len() as u8, 0, ICMPV6], message].concat();
    let pairs = pseudo
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = pairs.sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[begin + 2..begin + 4].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn what_a_link_local_address_needs_passes() {
    let (_node, a, b) = pods(json!({}));
    // From and to link-local addresses, with neighbour discovery.
    let link_local = |[_, _, mac]: [&str; 3], pod: &Pod| -> (Ipv6Addr, u32) {
        let shown = pod.ip("-6 addr show dev eth0 scope link");
        let shown = shown.as_array().unwrap();
        let ip = shown
            .iter()
            .flat_map(|link| link["addr_info"].as_array().unwrap())
            .find_map(|address| address["local"].as_str())
            .unwrap()
            .parse()
            .unwrap();
        assert!(mac.starts_with("0a:58"));
        (
            ip,
            pod.ip("link show eth0")[0]["ifindex"].as_u64().unwrap() as u32,
        )
    };
    let ((from, here), (to, there)) = (link_local(A, &a), link_local(B, &b));
    let receiver = b.run(|| UdpSocket::bind(SocketAddrV6::new(to, 7, 0, there)).unwrap());
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let sender = a.run(|| UdpSocket::bind(SocketAddrV6::new(from, 0, 0, here)).unwrap());
    sender
        .send_to(b"x", SocketAddrV6::new(to, 7, 0, here))
        .unwrap();
    let (_, peer) = receiver.recv_from(&mut [0; 1]).unwrap();
    assert_eq!(peer.ip(), from);

    // Reports of multicast groups: the bridge notes them.
    let group: Ipv6Addr = "ff05::1234".parse().unwrap();
    let member = a.run(|| UdpSocket::bind("[::]:9").unwrap());
    let joined = |group: &str| {
        let output = std::process::Command::new("bridge")
            .args(["mdb", "show", "dev", "podspan0"])
            .output();
        String::from_utf8(output.unwrap().stdout)
            .unwrap()
            .contains(group)
    };
    member.join_multicast_v6(&group, here).unwrap();
    assert!((0..40).any(|_| {
        std::thread::sleep(PATIENCE / 8);
        joined("ff05::1234")
    }));
}

#[test]
fn duplicates_of_a_guarded_pod_s_own_addresses_are_found_and_others_are_not_disturbed() {
    let (node, a, b) = pods(json!({}));
    // The next pod asks from `::` whether somebody has its address: this one has.
    take(&b, "fd00:10:244:1::4/64");
    let conf = node.conf(json!({"enabledad": true}));
    let (code, text) = node.add("c", &Pod::new(), &conf).expect_error();
    assert!(
        code == 100 && text.contains("fd00:10:244:1::4"),
        "{code} {text}"
    );

    // A solicitation from `::` for the address of another, which would keep that one from using it, is dropped.
    let solicit = |target: &str| {
        a.ip(&format!("addr add {target}/64 dev eth0"));
        std::thread::sleep(Duration::from_secs(2));
        let shown = a.ip("-6 addr show dev eth0").to_string();
        a.ip(&format!("addr del {target}/64 dev eth0"));
        shown.contains("dadfailed")
    };
    a.run(|| std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_dad", "1").unwrap());
    assert!(!solicit(B[1]), "nobody heard it, so nobody said no");
    nft("flush set bridge podspan guarded");
    assert!(solicit(B[1]), "the test would see it");
}

#[test]
fn a_pod_without_addresses_may_have_any_and_a_pod_of_one_family_has_that() {
    let node = Node::new();
    let conf = node.conf(json!({"ipam": {}}));
    let (a, b) = (Pod::new(), Pod::new());
    node.add("a", &a, &conf).expect_ok();
    node.add("b", &b, &conf).expect_ok();
    take(&a, "10.0.0.1/24");
    take(&b, "10.0.0.2/24");
    let mac = b.ip("link show eth0")[0]["address"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(arrives(&a, "10.0.0.1", (&b, ["10.0.0.2", "::", &mac])));
    node.del("a", &conf).expect_ok();
    node.del("b", &conf).expect_ok();
    node.assert_clean("after DEL");

    let ipam = json!({"dataDir": node.data.path(), "ranges": [[{"subnet": "10.244.1.0/24"}]]});
    let a = Pod::new();
    node.add("a", &a, &node.conf(json!({"ipam": ipam})))
        .expect_ok();
    let b = Pod::new();
    node.add(
        "b",
        &b,
        &node.conf(json!({"antiSpoof": false, "ipam": ipam})),
    )
    .expect_ok();
    take(&a, "fd00::1/64");
    take(&b, "fd00::2/64");
    let of_b = [B[0], "fd00::2", B[2]];
    assert!(arrives(&a, A[0], (&b, of_b)));
    assert!(!arrives(&a, "fd00::1", (&b, of_b)));
}

#[test]
fn under_the_name_bridge_nothing_is_guarded_unless_asked_for() {
    let mut node = Node::new();
    node.call_it("bridge");
    let served = |container: &str, keys: Value| {
        let pod = Pod::new();
        node.add(container, &pod, &node.conf(keys)).expect_ok();
        pod
    };
    let _pod = served("c1", json!({}));
    assert_eq!(node.filtered(), Vec::<String>::new());
    assert_eq!(
        nft("list tables"),
        "table inet foreign\ntable bridge foreign\n"
    );
    let _other = served("c2", json!({"antiSpoof": true}));
    assert!(
        node.filtered()
            .iter()
            .any(|text| text.starts_with("port_mac_ip6"))
    );
}

#[test]
fn t28_check_names_what_the_guard_lacks() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    let added = node.add("c1", &pod, &conf).expect_ok();
    let conf = node.with_prev(&conf, &added);
    node.check("c1", &pod, &conf).expect_ok();
    let port = node.pod_links().pop().unwrap();
    for (set, key, told) in [
        (
            "guarded",
            format!("\"{port}\""),
            format!("\"{port}\" is missing in set bridge podspan guarded"),
        ),
        (
            "port_mac",
            format!("\"{port}\" . {}", A[2]),
            format!("{} is missing in set bridge podspan port_mac", A[2]),
        ),
        (
            "port_mac_ip6",
            format!("\"{port}\" . {} . {}", A[2], A[1]),
            format!("{} is missing in set bridge podspan port_mac_ip6", A[1]),
        ),
    ] {
        nft(&format!("delete element bridge podspan {set} {{ {key} }}"));
        let (code, text) = node.check("c1", &pod, &conf).expect_error();
        assert!(code == 103 && text.contains(&told), "{code} {text}");
    }
    nft("delete table bridge podspan");
    let (_, text) = node.check("c1", &pod, &conf).expect_error();
    for told in [
        "the rules of set bridge podspan rules_guard_3",
        "record",
        "guarded",
        "port_mac_ip4",
    ] {
        assert!(text.contains(told), "{told}: {text}");
    }
    node.del("c1", &conf).expect_ok();
    node.assert_clean("after DEL");
}
