//! A pod sends as itself only: real packets through the guard that the real plugin made.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use harness::{Node, Pod, is_guarded, nft, tc};
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

/// The node's end of the pod's link.
fn port(node: &Node, pod: &Pod) -> String {
    let index = &pod.ip("link show eth0")[0]["link_index"];
    let links = node.ns.ip("link show");
    let mut links = links.as_array().unwrap().iter();
    let found = links.find(|link| link["ifindex"] == *index).unwrap();
    found["ifname"].as_str().unwrap().to_owned()
}

/// Takes the guard away, and what goes with it.
fn unguard(node: &Node, pod: &Pod) {
    let port = port(node, pod);
    assert!(is_guarded(&port));
    tc(&format!("filter del dev {port} ingress"));
    learn(node, &port);
}

fn learn(node: &Node, port: &str) {
    node.ns.ip(&format!(
        "link set {port} type bridge_slave learning on flood on"
    ));
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
    let (node, a, b) = pods(json!({}));
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
    unguard(&node, &a);
    asks("10.244.1.3", "10.244.1.66", &b);
    assert!(
        known(&b, "10.244.1.66").contains(A[2]),
        "the test would see it"
    );
}

/// What the bridge says of a MAC address.
fn behind(mac: &str) -> Option<Value> {
    let output = std::process::Command::new("bridge")
        .args(["-j", "fdb", "show", "br", "podspan0"])
        .output()
        .unwrap();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut all = all.as_array().unwrap().iter();
    all.find(|entry| entry["mac"] == mac).cloned()
}

#[test]
fn a_pod_has_its_own_mac_address_and_the_bridge_learns_no_other() {
    for keys in [json!({}), json!({"antiSpoof": false, "macspoofchk": true})] {
        let (node, a, b) = pods(keys);
        assert!(arrives(&a, A[0], (&b, B)));
        let port = port(&node, &a);
        let entry = behind(A[2]).unwrap();
        assert_eq!(
            (&entry["ifname"], &entry["state"]),
            (&json!(port), &json!("static"))
        );
        a.ip("link set eth0 address 0a:58:0a:f4:01:77");
        assert!(!arrives(&a, A[0], (&b, B)));
        // Frames to groups that bridges take in themselves, past their filters: STP, PAUSE's neighbour, LLDP. A bridge that
        // learns would learn from them.
        let groups = ["00", "03", "0e"];
        let send_to_groups = || {
            for group in groups {
                a.ip(&format!(
                    "neigh replace 10.244.1.99 lladdr 01:80:c2:00:00:{group} dev eth0 nud permanent"
                ));
                let socket = a.run(|| UdpSocket::bind("10.244.1.2:0").unwrap());
                socket.send_to(b"x", "10.244.1.99:7").unwrap();
                std::thread::sleep(PATIENCE / 4);
                let found = behind("0a:58:0a:f4:01:77");
                assert_eq!(
                    found.is_some(),
                    !is_guarded(&port),
                    "01:80:c2:00:00:{group}"
                );
                // What was learned is forgotten.
                node.ns.ip("link set podspan0 type bridge fdb_flush");
            }
        };
        learn(&node, &port);
        send_to_groups();
        unguard(&node, &a);
        send_to_groups();
        assert!(arrives(&a, A[0], (&b, B)));
    }
}

#[test]
fn nobody_takes_a_guarded_pod_s_place_and_it_keeps_it_when_its_link_goes_down_and_up() {
    let (node, a, b) = pods(json!({}));
    let port = port(&node, &a);
    let is_in_place = || {
        let entry = behind(A[2]).unwrap();
        entry["ifname"] == port.as_str() && entry["state"] == "static"
    };
    // The other one, whom nobody guards, takes its MAC address.
    b.ip(&format!("link set eth0 address {}", A[2]));
    let socket = b.run(|| UdpSocket::bind("10.244.1.3:0").unwrap());
    b.ip("neigh replace 10.244.1.1 lladdr 0a:58:0a:f4:01:01 dev eth0 nud permanent");
    socket.send_to(b"x", "10.244.1.1:7").unwrap();
    std::thread::sleep(PATIENCE / 4);
    assert!(is_in_place());
    b.ip(&format!("link set eth0 address {}", B[2]));
    for state in ["down", "up"] {
        a.ip(&format!("link set eth0 {state}"));
        assert!(is_in_place(), "{state}");
    }
    for state in ["down", "up"] {
        node.ns.ip(&format!("link set {port} {state}"));
        assert!(is_in_place(), "{state}");
    }
    // What is for nobody does not come to it; what is for all does.
    let data = &node.ns.ip(&format!("-d link show {port}"))[0]["linkinfo"]["info_slave_data"];
    let flags = ["learning", "flood", "mcast_flood", "bcast_flood"].map(|key| &data[key]);
    assert_eq!(flags, [false, false, true, true]);
    node.ns.ip("link set podspan0 type bridge fdb_flush");
    assert!(is_in_place());
    assert!(arrives(&b, B[0], (&a, A)));
    assert!(arrives(&a, A[0], (&b, B)));
}

#[test]
fn a_limit_of_what_a_pod_sends_is_no_way_around() {
    let limit = json!({"egressRate": 80_000_000, "egressBurst": 8_000_000});
    let (_node, a, b) = pods(json!({"runtimeConfig": {"bandwidth": limit}}));
    take(&a, "10.244.1.66/24");
    assert!(arrives(&a, A[0], (&b, B)));
    assert!(!arrives(&a, "10.244.1.66", (&b, B)));
}

#[test]
fn the_check_of_mac_addresses_alone_lets_any_address_pass() {
    let (_node, a, b) = pods(json!({"antiSpoof": false, "macspoofchk": true}));
    take(&a, "10.244.1.66/24");
    take(&a, "fd00:10:244:1::66/64");
    assert!(arrives(&a, "10.244.1.66", (&b, B)));
    assert!(arrives(&a, "fd00:10:244:1::66", (&b, B)));
}

/// Runs a command whose last word may have spaces.
fn run_words(command: &str, last: &str) {
    let words = command.strip_suffix(last).unwrap_or(command);
    let mut words = words.split_whitespace();
    let mut process = std::process::Command::new(words.next().unwrap());
    process.args(words);
    if command.ends_with(last) {
        process.arg(last);
    }
    assert!(process.status().unwrap().success(), "{command}");
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
    let (node, a, b) = pods(json!({}));
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
    unguard(&node, &a);
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

/// Sends whole frames, as hexadecimal digits on standard input, a line each.
const SEND: &str = "
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
for line in sys.stdin:
    s.send(bytes.fromhex(line))
";

/// Which of the frames of `sender` come to `receiver`, whole.
fn arriving(sender: &Pod, receiver: &Pod, frames: &[Vec<u8>]) -> Vec<bool> {
    let every_protocol =
        rustix::net::Protocol::from_raw(u32::from(3u16.to_be()).try_into().unwrap());
    let socket = receiver.run(|| {
        let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
        rustix::net::socket(family, kind, Some(every_protocol)).unwrap()
    });
    let timeout = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE)).unwrap();
    let hex = |frame: &Vec<u8>| {
        frame
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let lines: Vec<_> = frames.iter().map(hex).collect();
    sender.run(|| {
        let mut python = std::process::Command::new("python3")
            .args(["-c", SEND])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = python.stdin.take().unwrap();
        input.write_all(lines.join("\n").as_bytes()).unwrap();
        drop(input);
        assert!(python.wait().unwrap().success());
    });
    let mut arrived = vec![false; frames.len()];
    let mut buffer = [0; 2048];
    while let Ok((length, _)) = rustix::net::recv(&socket, &mut buffer, RecvFlags::empty()) {
        for (frame, arrived) in frames.iter().zip(&mut arrived) {
            // The kernel tells of a VLAN tag beside the frame.
            let untagged = [&frame[..12], &frame[frame.len().min(16)..]].concat();
            let is_tagged = [[0x81, 0], [0x88, 0xa8]]
                .iter()
                .any(|tag| frame[12..14] == *tag);
            *arrived |=
                buffer[..length] == frame[..] || is_tagged && buffer[..length] == untagged[..];
        }
    }
    arrived
}

/// A frame from the first pod's MAC address to the second one's.
fn frame(ether_type: u16, packet: &[u8]) -> Vec<u8> {
    let mac = |text: &str| -> Vec<u8> {
        text.split(':')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect()
    };
    [
        &mac(B[2])[..],
        &mac(A[2]),
        &ether_type.to_be_bytes(),
        packet,
    ]
    .concat()
}

#[test]
fn neither_tags_nor_headers_nor_the_end_of_a_frame_are_a_way_around() {
    let (node, a, b) = pods(json!({}));
    let ipv4 = |last: u8| -> Vec<u8> {
        let head = [
            0x45, 0, 0, 28, 0, 0, 0, 0, 64, 253, 0, 0, 10, 244, 1, last, 10, 244, 1, 3,
        ];
        [&head[..], &[last; 8]].concat()
    };
    let ipv6 = |source: &str, headers: usize, (next, payload): (u8, Vec<u8>)| -> Vec<u8> {
        let first = if headers == 0 { next } else { 60 };
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, first, 255];
        for ip in [source, B[1]] {
            packet.extend(ip.parse::<Ipv6Addr>().unwrap().octets());
        }
        for left in (0..headers).rev() {
            packet.extend([if left == 0 { next } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        packet[5] = u8::try_from(packet.len() - 40 + payload.len()).unwrap();
        [packet, payload].concat()
    };
    let tagged = |tag: u16, ether_type: u16, packet: Vec<u8>| {
        let inner = [&[0, 7][..], &ether_type.to_be_bytes(), &packet].concat();
        (tag, inner)
    };
    let of = |(ether_type, packet): (u16, Vec<u8>)| frame(ether_type, &packet);
    let cut = |mut frame: Vec<u8>, length: usize| {
        frame.truncate(length);
        frame
    };
    let (router, neighbour) = (134, 136);
    let twice = |packet| tagged(0x88a8, 0x8100, tagged(0x8100, 0x0800, packet).1);
    let udp = (17, vec![0, 9, 0, 9, 0, 8, 0, 0]);
    let passing = [
        of((0x0800, ipv4(2))),
        of(tagged(0x8100, 0x0800, ipv4(2))),
        of(tagged(0x88a8, 0x0800, ipv4(2))),
        of((0x86dd, ipv6(A[1], 0, udp.clone()))),
        of((0x86dd, ipv6(A[1], 4, udp.clone()))),
        of((0x86dd, ipv6(A[1], 4, (58, about(neighbour, A[1]))))),
        of((0x88b5, vec![7; 40])),
        cut(of((0x88b5, vec![])), 14),
    ];
    let dropped = [
        of((0x0800, ipv4(66))),
        of(tagged(0x8100, 0x0800, ipv4(66))),
        of(tagged(0x88a8, 0x0800, ipv4(66))),
        of(twice(ipv4(66))),
        of(twice(ipv4(2))),
        of((0x86dd, ipv6("fd00:10:244:1::66", 1, udp.clone()))),
        of((0x86dd, ipv6(A[1], 5, udp))),
        of((0x86dd, ipv6(A[1], 4, (58, about(neighbour, B[1]))))),
        of((0x86dd, ipv6(A[1], 4, (58, about(router, A[1]))))),
        of((0x86dd, ipv6(A[1], 5, (58, about(router, A[1]))))),
        of(tagged(
            0x8100,
            0x86dd,
            ipv6(A[1], 1, (58, about(router, A[1]))),
        )),
        // A program whose load fails ends with what lets a frame pass.
        cut(of((0x0800, ipv4(66))), 33),
        cut(of((0x0806, vec![0; 46])), 41),
        cut(of((0x86dd, ipv6("fd00:10:244:1::66", 0, (58, vec![])))), 53),
        cut(
            of((0x86dd, ipv6(A[1], 0, (58, about(neighbour, B[1]))))),
            77,
        ),
        cut(of((0x86dd, ipv6(A[1], 1, (58, about(router, A[1]))))), 61),
        cut(of((0x86dd, ipv6(A[1], 1, (58, about(router, A[1]))))), 62),
    ];
    // Of this namespace alone; it drops what is cut, too.
    for family in ["ip", "ip6"] {
        let key = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
        if std::path::Path::new(&key).exists() {
            std::fs::write(key, "0").unwrap();
        }
    }
    assert_eq!(arriving(&a, &b, &passing), vec![true; passing.len()]);
    assert_eq!(arriving(&a, &b, &dropped), vec![false; dropped.len()]);
    unguard(&node, &a);
    assert_eq!(
        arriving(&a, &b, &dropped),
        vec![true; dropped.len()],
        "the test would see it"
    );
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
    unguard(&node, &a);
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
    let pod = served("c1", json!({}));
    let of_pod = port(&node, &pod);
    assert_eq!(
        tc(&format!("filter show dev {of_pod} ingress")),
        Vec::<Value>::new()
    );
    let data = &node.ns.ip(&format!("-d link show {of_pod}"))[0]["linkinfo"]["info_slave_data"];
    assert_eq!([&data["learning"], &data["flood"]], [true, true]);
    for (container, keys) in [
        ("c2", json!({"antiSpoof": true})),
        ("c3", json!({"macspoofchk": true})),
    ] {
        let other = served(container, keys);
        assert!(is_guarded(&port(&node, &other)));
    }
    // It takes no rule, for any of them.
    assert_eq!(
        nft("list tables"),
        "table inet foreign\ntable bridge foreign\n"
    );
}

#[test]
fn t28_check_names_what_the_guard_lacks() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    let added = node.add("c1", &pod, &conf).expect_ok();
    let conf = node.with_prev(&conf, &added);
    node.check("c1", &pod, &conf).expect_ok();
    let port = port(&node, &pod);
    let other = "2,6 0 0 4294967295,6 0 0 0,";
    for (break_it, mend_it, told) in [
        (
            format!("tc filter replace dev {port} ingress pref 1 handle 1 bpf da bytecode {other}"),
            None,
            format!(
                "the guard against spoofing on host veth {port} is not that of {} {} {}",
                A[2], A[0], A[1]
            ),
        ),
        (
            format!("tc filter del dev {port} ingress"),
            None,
            format!("host veth {port} has no guard against spoofing"),
        ),
        (
            format!("tc qdisc del dev {port} clsact"),
            None,
            format!("host veth {port} has no guard against spoofing"),
        ),
        (
            format!("bridge fdb del {} dev {port} master", A[2]),
            None,
            format!("no static entry that {} is behind host veth {port}", A[2]),
        ),
        (
            format!("ip link set {port} type bridge_slave learning on"),
            Some(format!("ip link set {port} type bridge_slave learning off")),
            format!("host veth {port} has learning on"),
        ),
        (
            format!("ip link set {port} type bridge_slave flood on"),
            None,
            format!("host veth {port} has flood on"),
        ),
    ] {
        run_words(&break_it, other);
        let (code, text) = node.check("c1", &pod, &conf).expect_error();
        assert!(code == 103 && text.contains(&told), "{code} {text}");
        mend_it.iter().for_each(|command| run_words(command, other));
    }
    node.del("c1", &conf).expect_ok();
    node.assert_clean("after DEL");
}
