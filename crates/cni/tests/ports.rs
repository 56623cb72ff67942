//! Host ports: real packets from everywhere through rules that the real plugin made.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use harness::{Answer, Node, Pod, nft, outside, run, run_raw};
use serde_json::{Value, json};

/// How long something that works may take; a lost first packet would take more.
const PATIENCE: Duration = Duration::from_millis(700);
/// Every listener inside of a pod has this port.
const POD_PORT: u16 = 8080;

/// The configuration with these ports of the node.
fn with_ports(node: &Node, mappings: Value) -> Value {
    node.conf(json!({"runtimeConfig": {"portMappings": mappings}}))
}

fn tcp(host_port: u16) -> Value {
    json!([{"hostPort": host_port, "containerPort": POD_PORT, "protocol": "tcp"}])
}

/// Where a program runs.
enum At<'a> {
    Node,
    Pod(&'a Pod),
}

impl At<'_> {
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match self {
            At::Node => work(),
            At::Pod(pod) => pod.run(work),
        }
    }

    /// The address that `server` sees when a program here connects to `address`; none when it does not.
    fn seen(&self, address: &str, server: &TcpListener) -> Option<String> {
        let address: SocketAddr = address.parse().unwrap();
        let client = self.run(|| TcpStream::connect_timeout(&address, PATIENCE));
        let _client = client.ok()?;
        server.set_nonblocking(true).unwrap();
        // Somebody else's listener may have answered.
        let (_, peer) = server.accept().ok()?;
        Some(peer.ip().to_canonical().to_string())
    }
}

/// Bridges hand their packets to the filters of IP, as Kubernetes asks for, or not.
fn call_iptables(on: bool) {
    for key in ["iptables", "ip6tables"] {
        let path = format!("/proc/sys/net/bridge/bridge-nf-call-{key}");
        std::fs::write(path, if on { "1" } else { "0" }).unwrap();
    }
}

#[test]
fn a_host_port_leads_to_the_pod_from_outside_from_pods_from_the_node_and_from_itself() {
    let node = Node::new();
    let far = outside(&node);
    let (web, other) = (Pod::new(), Pod::new());
    node.add("web", &web, &with_ports(&node, tcp(80)))
        .expect_ok();
    node.add("other", &other, &node.conf(json!({}))).expect_ok();
    let server = web.listen();
    for bridged in [true, false] {
        call_iptables(bridged);
        let seen = |at: At<'_>, address: &str| {
            at.seen(address, &server).unwrap_or_else(|| {
                panic!("{address} does not lead to the pod (bridged: {bridged})")
            })
        };
        assert_eq!(seen(At::Pod(&far), "203.0.113.1:80"), "203.0.113.2");
        assert_eq!(seen(At::Pod(&far), "[2001:db8::1]:80"), "2001:db8::2");
        assert_eq!(seen(At::Node, "203.0.113.1:80"), "203.0.113.1");
        assert_eq!(seen(At::Node, "10.244.1.1:80"), "10.244.1.1");
        assert_eq!(seen(At::Node, "[2001:db8::1]:80"), "2001:db8::1");
        assert_eq!(seen(At::Node, "127.0.0.1:80"), "10.244.1.1");
        assert_eq!(seen(At::Node, "127.0.0.7:80"), "10.244.1.1");
        // Where the bridge translates, another pod keeps its address, too.
        let [four, six] = match bridged {
            true => ["10.244.1.3", "fd00:10:244:1::3"],
            false => ["10.244.1.1", "fd00:10:244:1::1"],
        };
        assert_eq!(seen(At::Pod(&other), "203.0.113.1:80"), four);
        assert_eq!(seen(At::Pod(&other), "10.244.1.1:80"), four);
        assert_eq!(seen(At::Pod(&other), "[2001:db8::1]:80"), six);
        assert_eq!(seen(At::Pod(&web), "203.0.113.1:80"), "10.244.1.1");
        assert_eq!(seen(At::Pod(&web), "[2001:db8::1]:80"), "fd00:10:244:1::1");
    }
    // The node's ports are the node's alone, and nobody else's.
    let theirs = far.run(|| TcpListener::bind("[::]:80").unwrap());
    let through = At::Pod(&other).seen("203.0.113.2:80", &theirs);
    assert_eq!(through.as_deref(), Some("10.244.1.3"));
    // `::1` is refused at once, as without a host port, and a server that is there is reached.
    let error = TcpStream::connect_timeout(&"[::1]:80".parse().unwrap(), PATIENCE).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    let local = TcpListener::bind("[::1]:80").unwrap();
    assert_eq!(At::Node.seen("[::1]:80", &local).as_deref(), Some("::1"));

    node.del("web", &node.conf(json!({}))).expect_ok();
    assert_eq!(At::Pod(&far).seen("203.0.113.1:80", &server), None);
    node.del("other", &node.conf(json!({}))).expect_ok();
    node.assert_clean("after DEL");
    node.assert_foreign_survives();
}

#[test]
fn one_port_of_two_addresses_and_of_two_protocols_is_no_conflict() {
    let node = Node::new();
    let far = outside(&node);
    node.ns.ip("addr add 203.0.113.7/24 dev up0");
    let mapped = |host_ip: &str, protocol: &str| {
        let mapping = json!({"HostPort": 54323, "ContainerPort": POD_PORT, "HostIP": host_ip, "Protocol": protocol});
        with_ports(&node, json!([mapping]))
    };
    let pods = [Pod::new(), Pod::new(), Pod::new(), Pod::new()];
    let confs = [
        mapped("203.0.113.1", "TCP"),
        mapped("203.0.113.7", "TCP"),
        mapped("203.0.113.7", "UDP"),
        mapped("127.0.0.1", "TCP"),
    ];
    let listeners: Vec<_> = pods.iter().map(Pod::listen).collect();
    for (number, (pod, conf)) in pods.iter().zip(&confs).enumerate() {
        node.add(&format!("c{number}"), pod, conf).expect_ok();
    }
    let datagrams = pods[2].run(|| UdpSocket::bind("0.0.0.0:8080").unwrap());
    let far = At::Pod(&far);
    assert!(far.seen("203.0.113.1:54323", &listeners[0]).is_some());
    assert!(far.seen("203.0.113.7:54323", &listeners[1]).is_some());
    assert!(At::Node.seen("127.0.0.1:54323", &listeners[3]).is_some());
    assert_eq!(
        far.seen("[2001:db8::1]:54323", &listeners[0]),
        None,
        "not of IPv6"
    );
    far.run(|| {
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        client.send_to(b"x", "203.0.113.7:54323").unwrap();
    });
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    let (_, peer) = datagrams.recv_from(&mut [0; 1]).unwrap();
    assert_eq!(peer.ip().to_string(), "203.0.113.2");
    for number in 0..4 {
        node.del(&format!("c{number}"), &confs[0]).expect_ok();
    }
    node.assert_clean("after DEL");
}

#[test]
fn a_client_with_a_steady_source_port_reaches_whom_the_port_leads_to_now() {
    let node = Node::new();
    let far = outside(&node);
    let conf = with_ports(
        &node,
        json!([{"hostPort": 53, "containerPort": 5353, "protocol": "udp"}]),
    );
    for (address, any) in [("203.0.113.1:53", "0.0.0.0"), ("[2001:db8::1]:53", "::")] {
        let client = far.run(|| UdpSocket::bind(format!("{}:4321", brackets(any))).unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let asks = |expected: Option<&UdpSocket>| {
            client.send_to(b"x", address).unwrap();
            if let Some(server) = expected {
                server.set_read_timeout(Some(PATIENCE)).unwrap();
                let (_, peer) = server.recv_from(&mut [0; 1]).expect("the datagram comes");
                server.send_to(b"y", peer).unwrap();
                let (_, from) = client.recv_from(&mut [0; 1]).expect("the answer comes");
                assert_eq!(from.to_string(), address, "the answer is the node's");
            }
        };
        let serve =
            |pod: &Pod| pod.run(|| UdpSocket::bind(format!("{}:5353", brackets(any))).unwrap());
        // Before there is anybody, the node itself is asked; others' connections to that port number stay.
        let others = connections(53);
        let hold = Pod::new();
        node.add("hold", &hold, &with_ports(&node, tcp(1)))
            .expect_ok();
        let bystander = UdpSocket::bind(format!("{}:0", brackets(any))).unwrap();
        let elsewhere = if any == "::" {
            "[2001:db8::2]:53"
        } else {
            "203.0.113.2:53"
        };
        bystander.send_to(b"x", elsewhere).unwrap();
        asks(None);
        let (a, b) = (Pod::new(), Pod::new());
        node.add("a", &a, &conf).expect_ok();
        asks(Some(&serve(&a)));
        node.del("a", &conf).expect_ok();
        node.add("b", &b, &conf).expect_ok();
        asks(Some(&serve(&b)));
        // Without DEL: the pod is gone, and its link with it.
        b.ip("link del eth0");
        let c = Pod::new();
        node.add("c", &c, &conf).expect_ok();
        asks(Some(&serve(&c)));
        let known = connections(53);
        assert_eq!(known.len(), others.len() + 2, "{known:?}");
        assert!(known.iter().any(|to| to == elsewhere), "{known:?}");
        for id in ["b", "c", "hold"] {
            node.del(id, &conf).expect_ok();
        }
        let left = [others, vec![elsewhere.to_owned()]].concat();
        assert_eq!(connections(53), left, "DEL forgets its own");
        node.assert_clean("after DEL");
    }
}

fn brackets(ip: &str) -> String {
    if ip.contains(':') {
        format!("[{ip}]")
    } else {
        ip.to_owned()
    }
}

/// Where the connections to that port go, as the kernel lists them.
fn connections(port: u16) -> Vec<String> {
    let mut conntrack = podspan_kernel::conntrack::Conntrack::open().unwrap();
    let known = conntrack.list(17, port).unwrap();
    known
        .iter()
        .map(|known| known.destination.to_string())
        .collect()
}

/// An SCTP packet that begins an association (RFC 9260): a common header and an INIT chunk.
fn sctp_init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = [from.to_be_bytes(), to.to_be_bytes()].concat();
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20, 1, 2, 3, 4, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// CRC-32C, which SCTP has for its checksum (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

fn raw_sctp(family: rustix::net::AddressFamily) -> OwnedFd {
    let socket = rustix::net::socket(
        family,
        rustix::net::SocketType::RAW,
        Some(rustix::net::ipproto::SCTP),
    )
    .unwrap();
    let timeout = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&socket, timeout, Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn an_sctp_association_begins_with_the_pod() {
    let node = Node::new();
    let far = outside(&node);
    let pod = Pod::new();
    let mapping = json!([{"hostPort": 9000, "containerPort": 38412, "protocol": "SCTP"}]);
    node.add("c1", &pod, &with_ports(&node, mapping))
        .expect_ok();
    // This kernel has no SCTP of its own: the packets are written and read as they are.
    for (family, to) in [
        (rustix::net::AddressFamily::INET, "203.0.113.1:0"),
        (rustix::net::AddressFamily::INET6, "[2001:db8::1]:0"),
    ] {
        let receiver = pod.run(|| raw_sctp(family));
        far.run(|| {
            let to: SocketAddr = to.parse().unwrap();
            let flags = rustix::net::SendFlags::empty();
            rustix::net::sendto(raw_sctp(family), &sctp_init(7777, 9000), flags, &to).unwrap();
        });
        let mut buffer = [0; 128];
        let flags = rustix::net::RecvFlags::empty();
        let (length, _) =
            rustix::net::recv(&receiver, &mut buffer, flags).expect("the packet comes");
        // A raw socket of IPv4 sees the IP header, too.
        let packet = buffer[..length].last_chunk::<32>().unwrap();
        assert_eq!(
            packet[..4],
            [7777_u16.to_be_bytes(), 38412_u16.to_be_bytes()].concat()
        );
        let mut summed = *packet;
        summed[8..12].fill(0);
        assert_eq!(
            packet[8..12],
            crc32c(&summed).to_le_bytes(),
            "the checksum is right"
        );
    }
    node.del("c1", &node.conf(json!({}))).expect_ok();
    node.assert_clean("after DEL");
}

#[test]
fn a_port_of_a_living_pod_is_refused_with_its_owner_and_one_of_a_dead_pod_is_taken_over() {
    let node = Node::new();
    let far = outside(&node);
    let pods = [Pod::new(), Pod::new(), Pod::new()];
    let both = json!([
        {"hostPort": 81, "containerPort": POD_PORT},
        {"hostPort": 80, "containerPort": POD_PORT, "hostIP": "203.0.113.1"}]);
    let conf = with_ports(&node, both.clone());
    node.add("first", &pods[0], &conf).expect_ok();
    let before = node.filtered();
    let refused = |mappings, told: &str| {
        let (code, text) = node
            .add("second", &pods[1], &with_ports(&node, mappings))
            .expect_error();
        assert_eq!((code, text.as_str()), (102, told));
        assert_eq!(node.filtered(), before, "nothing is left of the second");
        assert_eq!(node.pod_links().len(), 1);
        assert_eq!(node.addresses(), ["10.244.1.2", "fd00:10:244:1::2"]);
    };
    refused(both.clone(), "host port tcp 81 is taken by net/first/eth0");
    let one = json!([{"hostPort": 80, "containerPort": 1, "hostIP": "203.0.113.1"}]);
    refused(
        one,
        "host port tcp 80 of 203.0.113.1 is taken by net/first/eth0",
    );

    // The runtime lost the first: its namespace is gone, and DEL never came.
    let link = node.pod_links().pop().unwrap();
    node.ns.ip(&format!("link del {link}"));
    node.add("second", &pods[1], &with_ports(&node, both))
        .expect_ok();
    assert!(
        At::Pod(&far)
            .seen("203.0.113.1:81", &pods[1].listen())
            .is_some()
    );
    assert!(!node.filtered().iter().any(|text| text.contains(&link)));
    // The late DEL of the first takes nothing from the second.
    let before = node.filtered();
    node.del("first", &conf).expect_ok();
    assert_eq!(node.filtered(), before);
    node.del("second", &conf).expect_ok();
    node.assert_clean("after DEL");
}

#[test]
fn a_port_that_was_lost_without_a_record_is_taken_over() {
    let node = Node::new();
    let pod = Pod::new();
    let conf = with_ports(&node, tcp(80));
    node.add("a", &Pod::new(), &conf).expect_ok();
    node.del("a", &conf).expect_ok();
    // Somebody else's hand.
    nft("add element inet podspan host_ports4 { tcp . 80 : 10.9.9.9 . 9 }");
    node.add("b", &pod, &conf).expect_ok();
    assert!(At::Node.seen("10.244.1.1:80", &pod.listen()).is_some());
    nft("flush map inet podspan host_ports4");
    node.del("b", &conf).expect_ok();
    node.assert_clean("after somebody else's hand, then DEL");
    node.add("c", &pod, &conf).expect_ok();
    nft("flush ruleset");
    nft("add table inet foreign");
    node.del("c", &conf).expect_ok();
    node.assert_clean("after the end of all rules, then DEL");
}

#[test]
fn a_mapping_that_cannot_be_served_is_an_error_and_leaves_nothing() {
    let node = Node::new();
    let refused = |changes: Value, mapping: Value| {
        let mut conf = node.conf(changes);
        conf["runtimeConfig"] = json!({"portMappings": [mapping]});
        let answer = node.add("c1", &Pod::new(), &conf).expect_error();
        node.assert_clean("after a refused ADD");
        answer
    };
    let web = json!({"hostPort": 80, "containerPort": 8080});
    let (code, text) = refused(json!({"ipam": {}}), web.clone());
    assert_eq!(code, 7);
    assert_eq!(
        text,
        "runtimeConfig.portMappings: tcp 80 needs an address of the pod of its family; it has none"
    );
    let mut six = web.clone();
    six["hostIP"] = json!("2001:db8::1");
    let ipam = json!({"dataDir": node.data.path(), "ranges": [[{"subnet": "10.244.1.0/24"}]]});
    let (code, text) = refused(json!({"ipam": ipam}), six);
    assert!(
        code == 7 && text.contains("tcp 80 of 2001:db8::1"),
        "{text}"
    );
    for (key, value) in [
        ("hostPort", json!(65536)),
        ("containerPort", json!(-1)),
        ("protocol", json!("icmp")),
        ("hostIP", json!("node1")),
    ] {
        let mut bad = web.clone();
        bad[key] = value.clone();
        let (code, text) = refused(json!({}), bad);
        let place = format!("runtimeConfig.portMappings[0].{key} is {value}");
        assert!(code == 7 && text.starts_with(&place), "{code} {text}");
    }
}

#[test]
fn the_node_s_own_127_0_0_0_stays_its_own() {
    let node = Node::new();
    let pod = Pod::new();
    let conf = with_ports(&node, tcp(80));
    node.add("c1", &pod, &conf).expect_ok();
    let server = TcpListener::bind("127.0.0.1:9999").unwrap();
    // A pod that takes 127.0.0.1 for the gateway's.
    pod.ip("route del local 127.0.0.0/8 dev lo table local");
    pod.ip("route del local 127.0.0.1 dev lo table local");
    pod.ip("addr del 127.0.0.1/8 dev lo");
    pod.ip("route add 127.0.0.0/8 via 10.244.1.1 src 10.244.1.2");
    let key = "/proc/sys/net/ipv4/conf/eth0/route_localnet";
    pod.run(|| std::fs::write(key, "1").unwrap());
    assert_eq!(At::Pod(&pod).seen("127.0.0.1:9999", &server), None);
    // It is the rule that keeps it away.
    nft("flush chain inet podspan localnet");
    assert!(At::Pod(&pod).seen("127.0.0.1:9999", &server).is_some());
}

#[test]
fn t28_check_names_each_host_port_that_does_not_lead_to_the_pod() {
    let (node, pod) = (Node::new(), Pod::new());
    let mut conf = with_ports(&node, tcp(80));
    conf["ipMasq"] = json!(true);
    let added = node.add("c1", &pod, &conf).expect_ok();
    let with_prev = node.with_prev(&conf, &added);
    node.check("c1", &pod, &with_prev).expect_ok();
    let record = node.pod_links().pop().unwrap();
    let deviations = [
        (
            "delete element inet podspan host_ports4 { tcp . 80 }".to_owned(),
            "tcp . 80 : 10.244.1.2 . 8080 is missing in map inet podspan host_ports4",
        ),
        (
            "add element inet podspan host_ports4 { tcp . 80 : 10.244.1.9 . 1 }".to_owned(),
            "tcp . 80 : 10.244.1.9 . 1 of nobody stands in map inet podspan host_ports4 instead of tcp . 80 : 10.244.1.2 . 8080",
        ),
        (
            "delete element inet podspan hairpin6 { fd00:10:244:1::2 . fd00:10:244:1::2 }"
                .to_owned(),
            "fd00:10:244:1::2 . fd00:10:244:1::2 is missing in set inet podspan hairpin6",
        ),
        (
            "delete element inet podspan masquerade4 { 10.244.1.2 }".to_owned(),
            "10.244.1.2 is not masqueraded",
        ),
        (
            "delete element inet podspan hairpin_links { \"podspan0\" . \"podspan0\" }".to_owned(),
            "\"podspan0\" . \"podspan0\" is missing in set inet podspan hairpin_links",
        ),
        (
            format!("delete set inet podspan {record}"),
            "is missing in table inet podspan",
        ),
        (
            "delete set inet podspan rules_masquerade_1".to_owned(),
            "the rules of set inet podspan rules_masquerade_1",
        ),
    ];
    for (command, told) in deviations {
        nft(&command);
        let (code, text) = node.check("c1", &pod, &with_prev).expect_error();
        assert!(
            code == 103 && text.contains(told),
            "{command}: {code} {text}"
        );
    }
    std::fs::write("/proc/sys/net/ipv4/conf/podspan0/route_localnet", "0").unwrap();
    let (_, text) = node.check("c1", &pod, &with_prev).expect_error();
    assert!(text.contains("route_localnet is 0, not 1"), "{text}");
}

#[test]
fn a_table_of_another_version_is_completed_and_its_elements_stay() {
    let node = Node::new();
    let far = outside(&node);
    nft(
        "add table inet podspan; add set inet podspan masquerade4 { type ipv4_addr; }; \
         add element inet podspan masquerade4 { 10.244.1.77 }; \
         add chain inet podspan postrouting { type nat hook postrouting priority 100; }; \
         add rule inet podspan postrouting ip saddr @masquerade4 drop",
    );
    let pod = Pod::new();
    let mut conf = with_ports(&node, tcp(80));
    conf["ipMasq"] = json!(true);
    node.add("c1", &pod, &conf).expect_ok();
    let server = far.listen();
    assert_eq!(
        At::Pod(&pod).seen("203.0.113.2:8080", &server).as_deref(),
        Some("203.0.113.1")
    );
    assert!(
        At::Pod(&far)
            .seen("203.0.113.1:80", &pod.listen())
            .is_some()
    );
    assert!(nft("list set inet podspan masquerade4").contains("10.244.1.77"));
    // Rules of a later version give way to ours, and the other way round.
    nft("delete set inet podspan rules_host_ports_1; flush chain inet podspan prerouting");
    node.del("c1", &conf).expect_ok();
    node.add("c1", &pod, &conf).expect_ok();
    assert!(
        At::Pod(&far)
            .seen("203.0.113.1:80", &pod.listen())
            .is_some()
    );
}

#[test]
fn t29_gc_finds_lost_ports_of_this_network_whose_link_and_addresses_are_gone() {
    let node = Node::new();
    let mut other = with_ports(&node, tcp(90));
    other["name"] = json!("other-net");
    other["ipam"]["ranges"] = json!([[{"subnet": "10.244.2.0/24"}]]);
    let confs = [
        with_ports(&node, tcp(80)),
        with_ports(&node, tcp(81)),
        other,
    ];
    let pods: Vec<_> = confs.iter().map(|_| Pod::new()).collect();
    for (number, conf) in confs.iter().enumerate() {
        node.add(&format!("c{number}"), &pods[number], conf)
            .expect_ok();
    }
    let all = node.filtered();
    for link in node.pod_links() {
        if node.ns.ip(&format!("link show {link}"))[0]["ifalias"] != "podspan:net/c1/eth0" {
            node.ns.ip(&format!("link del {link}"));
        }
    }
    std::fs::remove_dir_all(node.data.path().join("net")).unwrap();
    let mut valid = node.conf(json!({}));
    valid["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    run(&mut node.command(&[], "GC", ""), &valid).expect_ok();
    let left = node.filtered();
    let records = |list: &[String]| {
        list.iter()
            .filter(|text| text.starts_with("record "))
            .count()
    };
    assert_eq!((records(&all), records(&left)), (3, 2), "{left:?}");
    let of_ports = left.iter().filter(|text| text.starts_with("host_ports4"));
    let left: Vec<_> = of_ports
        .map(|text| [",80]", ",81]", ",90]"].map(|port| text.contains(port)))
        .collect();
    assert!(
        left.len() == 2 && left.iter().all(|[gone, ..]| !gone),
        "{left:?}"
    );
    node.assert_foreign_survives();
}

/// The bytes and the number of the netlink messages that the plugin sends to the packet filter for an ADD.
fn sent(node: &Node, container: &str, conf: &Value) -> (usize, usize) {
    let file = node.data.path().join("trace");
    let strace = [
        "strace",
        "-qq",
        "-e",
        "trace=socket,sendto",
        "-o",
        file.to_str().unwrap(),
    ];
    let pod = Pod::new();
    let mut process = node.command(&strace.map(str::to_owned), "ADD", container);
    let output = run_raw(process.env("CNI_NETNS", pod.path()), conf);
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(file).unwrap();
    let opened = text
        .lines()
        .find(|line| line.contains("NETLINK_NETFILTER"))
        .unwrap();
    let socket = opened.rsplit("= ").next().unwrap();
    let sent = text
        .lines()
        .filter(|line| line.starts_with(&format!("sendto({socket},")));
    let lengths: Vec<usize> = sent
        .map(|line| line.rsplit("= ").next().unwrap().parse().unwrap())
        .collect();
    (lengths.len(), lengths.iter().sum())
}

#[test]
fn an_add_tells_the_kernel_the_same_however_many_pods_there_are() {
    let node = Node::new();
    let mut conf = with_ports(
        &node,
        json!([
        {"hostPort": 1080, "containerPort": 80}, {"hostPort": 1053, "containerPort": 53, "protocol": "sctp"}]),
    );
    conf["ipMasq"] = json!(true);
    node.add("a", &Pod::new(), &conf).expect_ok();
    node.del("a", &conf).expect_ok();
    let alone = sent(&node, "b", &conf);
    node.del("b", &conf).expect_ok();
    assert_eq!(alone.0, 1, "one transaction");
    let mut commands = String::new();
    for pod in 0..500 {
        let ip = format!("10.250.{}.{}", pod / 250, pod % 250 + 1);
        commands += &format!(
            "add set inet podspan pod{pod:012x} {{ type mark; comment \"net/x{pod}/eth0\"; }}\n\
             add element inet podspan pod{pod:012x} {{ 0 comment \"masquerade4 {ip}\" }}\n\
             add element inet podspan masquerade4 {{ {ip} }}\n\
             add element inet podspan host_ports4 {{ tcp . {} : {ip} . 80 }}\n",
            20_000 + pod
        );
    }
    let file = node.data.path().join("commands");
    std::fs::write(&file, commands).unwrap();
    let loaded = std::process::Command::new("nft")
        .arg("-f")
        .arg(&file)
        .output()
        .unwrap();
    assert!(loaded.status.success(), "{loaded:?}");
    // The next address may have one digit more or less: all are numbers in netlink, and texts in the record.
    let among_many = sent(&node, "c", &conf);
    assert_eq!(among_many, alone);
    let trace = |command: &str, container: &str| {
        let file = node.data.path().join("calls");
        let strace = ["strace", "-qq", "-o", file.to_str().unwrap()].map(str::to_owned);
        let output = run_raw(&mut node.command(&strace, command, container), &conf);
        assert!(output.status.success(), "{output:?}");
        std::fs::read_to_string(file).unwrap().lines().count()
    };
    let among_many = trace("DEL", "c");
    nft("flush ruleset; add table inet foreign");
    node.add("d", &Pod::new(), &conf).expect_ok();
    let alone = trace("DEL", "d");
    assert!(
        among_many.abs_diff(alone) < 10,
        "system calls of DEL: {alone} alone, {among_many} among 500"
    );
}

/// What the chained plugin answers.
fn portmap(
    node: &mut Node,
    (command, container): (&str, &str),
    (pod, conf): (Option<&Pod>, &Value),
) -> Answer {
    node.call_it("portmap");
    let mut process = node.command(&[], command, container);
    if let Some(pod) = pod {
        process.env("CNI_NETNS", pod.path());
    }
    let answer = run(&mut process, conf);
    node.call_it("podspan-cni");
    answer
}

#[test]
fn under_the_name_portmap_it_serves_what_another_plugin_attached() {
    let mut node = Node::new();
    let far = outside(&node);
    let pod = Pod::new();
    let attached = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let mut result = attached.json.clone();
    result["somebodyElses"] = json!({"key": 1});
    let conf = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "portmap", "snat": true, "backend": "iptables",
        "markMasqBit": 13, "conditionsV4": [], "prevResult": result,
        "runtimeConfig": {"portMappings": tcp(80)},
    });
    let answer = portmap(&mut node, ("ADD", "c1"), (Some(&pod), &conf)).expect_ok();
    assert_eq!(answer.json, result, "T19: the previous result, unchanged");
    portmap(&mut node, ("CHECK", "c1"), (Some(&pod), &conf)).expect_ok();
    portmap(&mut node, ("STATUS", "c1"), (Some(&pod), &conf)).expect_ok();
    let server = pod.listen();
    for address in ["203.0.113.1:80", "[2001:db8::1]:80"] {
        assert!(At::Pod(&far).seen(address, &server).is_some(), "{address}");
    }
    assert!(At::Node.seen("127.0.0.1:80", &server).is_some());
    assert!(At::Pod(&pod).seen("203.0.113.1:80", &server).is_some());

    // The two plugins of one attachment do not take each other's away.
    let own = with_ports(&node, tcp(81));
    let other = Pod::new();
    node.add("c2", &other, &own).expect_ok();
    let mut taken = conf.clone();
    taken["runtimeConfig"] = json!({"portMappings": tcp(81)});
    let (code, text) = portmap(&mut node, ("ADD", "c1"), (Some(&pod), &taken)).expect_error();
    assert_eq!(
        (code, text.as_str()),
        (102, "host port tcp 81 is taken by net/c2/eth0")
    );
    portmap(&mut node, ("ADD", "c1"), (Some(&pod), &conf)).expect_ok();
    node.del("c2", &own).expect_ok();
    let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap"});
    portmap(&mut node, ("DEL", "c2"), (Some(&pod), &bare)).expect_ok();
    assert!(At::Pod(&far).seen("203.0.113.1:80", &server).is_some());
    for _ in 0..2 {
        portmap(&mut node, ("DEL", "c1"), (None, &bare)).expect_ok();
    }
    assert_eq!(At::Pod(&far).seen("203.0.113.1:80", &server), None);
    let (code, text) = portmap(&mut node, ("CHECK", "c1"), (Some(&pod), &conf)).expect_error();
    assert!(
        code == 103 && text.contains("host_ports4") && text.contains("host_ports6"),
        "{text}"
    );
    node.del("c1", &node.conf(json!({}))).expect_ok();
    node.assert_clean("after both DELs");
    node.assert_foreign_survives();
}

#[test]
fn portmap_takes_over_from_the_dead_collects_garbage_and_masquerades_all_where_asked() {
    let mut node = Node::new();
    let far = outside(&node);
    let (dead, pod) = (Pod::new(), Pod::new());
    let conf = |attached: &Answer| {
        json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "masqAll": true,
               "prevResult": attached.json, "runtimeConfig": {"portMappings": tcp(80)}})
    };
    let plain = node.conf(json!({"antiSpoof": false}));
    let attached = node.add("dead", &dead, &plain).expect_ok();
    portmap(&mut node, ("ADD", "dead"), (Some(&dead), &conf(&attached))).expect_ok();
    let attached = node.add("c1", &pod, &plain).expect_ok();
    let told = portmap(&mut node, ("ADD", "c1"), (Some(&pod), &conf(&attached))).expect_error();
    assert_eq!(
        told,
        (102, "host port tcp 80 is taken by net/dead/eth0".into())
    );
    node.del("dead", &plain).expect_ok();
    portmap(&mut node, ("ADD", "c1"), (Some(&pod), &conf(&attached))).expect_ok();
    let server = pod.listen();
    assert_eq!(
        At::Pod(&far).seen("203.0.113.1:80", &server).as_deref(),
        Some("10.244.1.1")
    );
    assert_eq!(
        At::Pod(&far).seen("10.244.1.3:8080", &server).as_deref(),
        Some("203.0.113.2"),
        "who does not come by the host port keeps its address"
    );
    let gc = |node: &mut Node, valid: Value| {
        let mut conf = conf(&attached);
        conf["cni.dev/valid-attachments"] = valid;
        portmap(node, ("GC", ""), (None, &conf))
    };
    gc(&mut node, json!([{"containerID": "c1", "ifname": "eth0"}])).expect_ok();
    assert!(At::Pod(&far).seen("203.0.113.1:80", &server).is_some());
    assert!(
        !gc(&mut node, Value::Null).ok,
        "T29: no list is not an empty one"
    );
    gc(&mut node, json!([])).expect_ok();
    assert_eq!(At::Pod(&far).seen("203.0.113.1:80", &server), None);
    node.del("c1", &plain).expect_ok();
    node.assert_clean("after GC and DEL");
}

#[test]
fn portmap_refuses_what_it_cannot_do_and_does_nothing_without_ports() {
    let (mut node, pod) = (Node::new(), Pod::new());
    let attached = node
        .add("c1", &pod, &node.conf(json!({"antiSpoof": false})))
        .expect_ok();
    let conf = |changes: Value| {
        let mut conf = json!({"cniVersion": "1.0.0", "name": "net", "type": "portmap", "prevResult": attached.json,
            "runtimeConfig": {"portMappings": tcp(80)}});
        conf.as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        conf
    };
    for (changes, code, told) in [
        (
            json!({"conditionsV4": ["!", "-d", "10.0.0.0/8"]}),
            2,
            "conditionsV4: [\"!\", \"-d\", \"10.0.0.0/8\"] is not served",
        ),
        (json!({"conditionsV6": ["-s", "::1"]}), 2, "conditionsV6"),
        (json!({"backend": "ebpf"}), 7, "backend is \"ebpf\""),
        (json!({"markMasqBit": 32}), 7, "markMasqBit is 32"),
        (
            json!({"markMasqBit": 1, "externalSetMarkChain": "KUBE-MARK-MASQ"}),
            7,
            "give one of them",
        ),
        (json!({"snat": "yes"}), 7, "snat: invalid type"),
        (json!({"prevResult": null}), 7, "prevResult is missing"),
    ] {
        let (found, text) =
            portmap(&mut node, ("ADD", "c1"), (Some(&pod), &conf(changes))).expect_error();
        assert!(found == code && text.contains(told), "{found} {text}");
    }
    let none = conf(json!({"runtimeConfig": {}}));
    portmap(&mut node, ("ADD", "c1"), (Some(&pod), &none)).expect_ok();
    portmap(&mut node, ("CHECK", "c1"), (Some(&pod), &none)).expect_ok();
    assert_eq!(
        nft("list tables"),
        "table inet foreign\ntable bridge foreign\n"
    );
    portmap(
        &mut node,
        ("ADD", "c1"),
        (Some(&pod), &conf(json!({"snat": false}))),
    )
    .expect_ok();
    let localnet =
        std::fs::read_to_string("/proc/sys/net/ipv4/conf/podspan0/route_localnet").unwrap();
    assert_eq!(
        localnet.trim(),
        "0",
        "nothing is masqueraded, so 127.0.0.1 need not lead anywhere"
    );
    portmap(&mut node, ("DEL", "c1"), (Some(&pod), &none)).expect_ok();
    assert_eq!(node.filtered(), Vec::<String>::new());
}
