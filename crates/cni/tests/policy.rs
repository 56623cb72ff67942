//! A pod starts closed before its first packet, and its identity goes with its address: real packets through the real
//! plugin. Here the test is the agent, by `nft`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use harness::{Answer, Node, Pod, nft, outside, run, run_raw};
use podspan_cni::attachment::AttachmentId;
use podspan_cni::filter::policy::{self, AttachedChains, PodName};
use podspan_kernel::Mac;
use podspan_kernel::nft::{Batch, Nft};
use serde_json::{Value, json};

/// How long a packet that is not dropped may take.
const PATIENCE: Duration = Duration::from_millis(300);
/// The first and the second pod of a node, and a machine outside.
const A: [&str; 2] = ["10.244.1.2", "fd00:10:244:1::2"];
const B: [&str; 2] = ["10.244.1.3", "fd00:10:244:1::3"];
const GATEWAY: [&str; 2] = ["10.244.1.1", "fd00:10:244:1::1"];
const OUTSIDE: [&str; 2] = ["203.0.113.2", "2001:db8::2"];

fn args(name: &str) -> String {
    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID=uid-of-{name}")
}

/// Policy, without waiting.
fn closed() -> Value {
    json!({"policy": {"waitMilliseconds": 0}})
}

/// Attaches a container as the pod of that name.
fn add(node: &Node, container: &str, (pod, conf): (&Pod, &Value)) -> Output {
    let mut process = node.command(&[], "ADD", container);
    process.env("CNI_NETNS", pod.path());
    process.env("CNI_ARGS", args(container));
    run_raw(&mut process, conf)
}

#[track_caller]
fn add_ok(node: &Node, container: &str, with: (&Pod, &Value)) -> Answer {
    let output = add(node, container, with);
    let json = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let ok = output.status.success();
    Answer { ok, json }.expect_ok()
}

/// As the agent sets its bridge: same-node traffic comes to the forward hook.
fn filter_on_bridge(node: &Node) {
    let keys = "nf_call_iptables 1 nf_call_ip6tables 1";
    node.ns.ip(&format!("link set podspan0 type bridge {keys}"));
}

/// A node with the pods `a` and `b`, both unknown yet, and a machine outside.
fn node() -> (Node, Pod, Pod, Pod) {
    let node = Node::new();
    let outside = outside(&node);
    let (a, b) = (Pod::new(), Pod::new());
    for (name, pod) in [("a", &a), ("b", &b)] {
        add_ok(&node, name, (pod, &node.conf(closed())));
    }
    filter_on_bridge(&node);
    (node, a, b, outside)
}

/// The chains of the attachment of that pod.
fn chains_of(name: &str) -> policy::ChainNames {
    policy::chains(&attached(name).veth)
}

fn attached(name: &str) -> AttachedChains {
    let all = policy::attachments(&mut Nft::open().unwrap()).unwrap();
    let of_pod = |found: &AttachedChains| found.pod.as_ref().is_some_and(|pod| pod.name == name);
    let found = all.iter().find(|found| of_pod(found));
    found.unwrap_or_else(|| panic!("{name}: {all:#?}")).clone()
}

/// True when one of its chains is as ADD made it.
fn is_closed(attached: &AttachedChains) -> bool {
    let names = policy::chains(&attached.veth);
    policy::is_closed(&mut Nft::open().unwrap(), &names).unwrap()
}

/// As the agent opens a pod.
fn open(name: &str) {
    open_egress(name);
    open_ingress(name);
}

fn open_egress(name: &str) {
    nft(&format!(
        "flush chain inet podspan {}",
        chains_of(name).egress
    ));
}

fn open_ingress(name: &str) {
    nft(&format!(
        "flush chain inet podspan {}",
        chains_of(name).ingress
    ));
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// A socket on all addresses of the pod, or here.
fn bind(pod: Option<&Pod>, port: u16) -> UdpSocket {
    let bind = || loop {
        match UdpSocket::bind(("::", port)) {
            // A process that another test starts has our sockets until its exec.
            Err(error) if error.kind() == ErrorKind::AddrInUse => std::thread::yield_now(),
            bound => break bound.unwrap(),
        }
    };
    let socket = match pod {
        Some(pod) => pod.run(bind),
        None => bind(),
    };
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// True when a datagram from `sender` to that address comes to `receiver`; nobody is the node. The sender's port is new each
/// time, so that no connection is followed yet.
fn arrives(sender: Option<&Pod>, to: &str, receiver: Option<&Pod>) -> bool {
    let (receiver, sender) = (bind(receiver, 7), bind(sender, 0));
    // What is refused at once by a route or a full table is no answer.
    sender.send_to(b"x", at(to, 7)).unwrap();
    receiver.recv(&mut [0; 1]).is_ok()
}

#[test]
fn an_unknown_pod_is_closed_in_both_directions_but_for_its_node() {
    let (node, a, b, outside) = node();
    for family in 0..2 {
        for (what, passes) in [
            ("a to b", arrives(Some(&a), B[family], Some(&b))),
            (
                "a to outside",
                arrives(Some(&a), OUTSIDE[family], Some(&outside)),
            ),
            ("outside to a", arrives(Some(&outside), A[family], Some(&a))),
        ] {
            assert!(!passes, "{what}, family {family}");
        }
        assert!(arrives(Some(&a), GATEWAY[family], None), "a to its node");
        assert!(arrives(None, A[family], Some(&a)), "the node to a");
    }
    // It opens at once, and one direction at a time.
    open_egress("a");
    for (family, to) in B.iter().enumerate() {
        assert!(!arrives(Some(&a), to, Some(&b)), "b is closed still");
        assert!(arrives(Some(&a), OUTSIDE[family], Some(&outside)));
        assert!(!arrives(Some(&outside), A[family], Some(&a)));
    }
    open_ingress("b");
    for (family, to) in B.iter().enumerate() {
        assert!(arrives(Some(&a), to, Some(&b)), "{to}");
        assert!(!arrives(Some(&b), A[family], Some(&a)), "{to}");
        assert!(arrives(Some(&outside), to, Some(&b)), "{to}");
    }
    node.del("a", &node.conf(json!({}))).expect_ok();
    node.del("b", &node.conf(json!({}))).expect_ok();
    node.assert_clean("after DEL, which knows nothing of policy");
    node.assert_foreign_survives();
}

#[test]
fn the_link_local_addresses_of_a_bridge_are_no_way_round() {
    let (_node, a, b, _) = node();
    let link_local = |pod: &Pod| -> Ipv6Addr {
        let shown = pod.ip("-6 addr show dev eth0");
        let of_link = shown[0]["addr_info"].as_array().unwrap().iter();
        let mut of_link = of_link.filter(|address| address["scope"] == "link");
        of_link.next().unwrap()["local"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap()
    };
    let index = a.run(|| {
        let netlink = podspan_kernel::Netlink::open();
        netlink
            .unwrap()
            .link_index(&"eth0".parse().unwrap())
            .unwrap()
    });
    let to = SocketAddrV6::new(link_local(&b), 7, 0, index);
    let passes = || {
        let (receiver, sender) = (bind(Some(&b), 7), bind(Some(&a), 0));
        sender.send_to(b"x", to).unwrap();
        receiver.recv(&mut [0; 1]).is_ok()
    };
    assert!(!passes());
    open("a");
    assert!(!passes());
    open("b");
    assert!(passes(), "the test would see it");
}

#[test]
fn what_was_allowed_once_is_answered() {
    let (_node, a, b, _) = node();
    open("a");
    open("b");
    let listener = b.listen();
    let mut streams = Vec::new();
    for to in B {
        let client = a.run(|| TcpStream::connect_timeout(&at(to, 8080), PATIENCE).unwrap());
        let (served, _) = listener.accept().unwrap();
        streams.push((client, served));
    }
    // Both are closed again: what follows is an established connection's.
    for name in ["a", "b"] {
        let names = chains_of(name);
        for chain in [names.egress, names.ingress] {
            nft(&format!(
                "add rule inet podspan {chain} counter drop comment \"closed\""
            ));
        }
    }
    for (client, served) in &mut streams {
        for stream in [&*client, &*served] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let mut read = [0; 4];
        client.write_all(b"ping").unwrap();
        served.read_exact(&mut read).unwrap();
        served.write_all(&read).unwrap();
        client.read_exact(&mut read).unwrap();
    }
    for to in B {
        assert!(!a.reaches(to), "a new one is not");
    }
}

#[test]
fn who_is_unknown_may_be_open_and_who_is_no_pod_is() {
    let node = Node::new();
    let (a, b, c) = (Pod::new(), Pod::new(), Pod::new());
    let open = node.conf(json!({"policy": {"whenUnknown": "open", "waitMilliseconds": 60_000}}));
    let begin = Instant::now();
    add_ok(&node, "a", (&a, &open));
    let waiting = node.conf(json!({"policy": {"waitMilliseconds": 60_000}}));
    node.add("b", &b, &waiting).expect_ok();
    assert!(begin.elapsed() < Duration::from_secs(30), "nobody waits");
    filter_on_bridge(&node);
    assert!(arrives(Some(&a), B[0], Some(&b)) && arrives(Some(&b), A[1], Some(&a)));
    add_ok(&node, "c", (&c, &node.conf(closed())));
    assert!(!arrives(Some(&a), "10.244.1.4", Some(&c)));

    let all = policy::attachments(&mut Nft::open().unwrap()).unwrap();
    let mut seen: Vec<_> = all
        .iter()
        .map(|found| {
            let ips: Vec<_> = found.addresses.iter().map(IpAddr::to_string).collect();
            (ips.join(" "), found.pod.clone(), is_closed(found))
        })
        .collect();
    seen.sort();
    let pod = |name: &str| {
        Some(PodName {
            namespace: "shop".into(),
            name: name.into(),
            uid: Some(format!("uid-of-{name}")),
        })
    };
    let ips = |last: u8| format!("10.244.1.{last} fd00:10:244:1::{last}");
    assert_eq!(
        seen,
        [
            (ips(2), pod("a"), false),
            (ips(3), None, false),
            (ips(4), pod("c"), true)
        ]
    );
}

#[test]
fn an_address_that_is_used_again_leads_to_new_chains() {
    let node = Node::new();
    let (a, b) = (Pod::new(), Pod::new());
    // One address alone.
    let range = json!([[{"subnet": "10.244.1.0/24", "rangeStart": "10.244.1.7", "rangeEnd": "10.244.1.8"}]]);
    let mut conf = node.conf(closed());
    conf["ipam"]["ranges"] = range;
    add_ok(&node, "peer", (&a, &conf));
    filter_on_bridge(&node);
    open("peer");
    let mut before = None;
    // A sender with a steady port, whose connection the first pod answers.
    let steady = bind(Some(&a), 5000);
    for name in ["first", "second", "third"] {
        let added = add_ok(&node, name, (&b, &conf));
        assert_eq!(added.ip(4), "10.244.1.8");
        let server = bind(Some(&b), 7);
        steady.send_to(b"x", at("10.244.1.8", 7)).unwrap();
        assert!(
            server.recv(&mut [0; 1]).is_err(),
            "{name} has the connections of the one before"
        );
        let chains = attached(name);
        assert!(
            is_closed(&chains) && chains.addresses == ["10.244.1.8".parse::<IpAddr>().unwrap()]
        );
        assert_ne!(before.replace(chains.veth.clone()), Some(chains.veth));
        drop(server);
        assert!(!arrives(Some(&a), "10.244.1.8", Some(&b)), "{name}");
        open(name);
        assert!(arrives(Some(&a), "10.244.1.8", Some(&b)), "{name}");
        let server = bind(Some(&b), 7);
        steady.send_to(b"x", at("10.244.1.8", 7)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 1]).unwrap();
        server.send_to(b"y", from).unwrap();
        steady.recv(&mut [0; 1]).unwrap();
        drop(server);
        node.del(
            name,
            &json!({"cniVersion": "1.1.0", "name": "net",
            "ipam": {"dataDir": node.data.path()}}),
        )
        .expect_ok();
    }
    node.del("peer", &conf).expect_ok();
    node.assert_clean("after all");
}

/// Who sent the next datagram, which must come.
fn next_sender(receiver: &UdpSocket) -> SocketAddr {
    receiver.set_read_timeout(None).unwrap();
    loop {
        match receiver.recv_from(&mut [0; 1]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            received => break received.unwrap().1,
        }
    }
}

/// Who sent the first datagram that comes to port 7 of a new pod to whose address somebody outside sent one before, and the node one
/// afterwards.
fn first_to_come(node: &Node, outside: &Pod, (conf, to): (&Value, &str)) -> IpAddr {
    let pod = Pod::new();
    let receiver = bind(Some(&pod), 7);
    let early = bind(Some(outside), 0);
    early.send_to(b"x", at(to, 7)).unwrap();
    let waits = || {
        let shown = node.ns.ip(&format!("neigh show {to} dev podspan0"));
        shown[0]["state"][0] == "INCOMPLETE"
    };
    until(waits);
    let added = add_ok(node, "new", (&pod, conf));
    assert!([added.ip(4), added.ip(6)].contains(&to.to_owned()));
    // The node asks whose the address is, and sends all that waits for the answer, in order.
    bind(None, 0).send_to(b"x", at(to, 7)).unwrap();
    let from = next_sender(&receiver);
    node.del("new", conf).expect_ok();
    from.ip().to_canonical()
}

#[test]
fn what_was_sent_to_an_address_before_it_was_a_pod_s_does_not_come_to_the_pod() {
    let node = Node::new();
    let outside = outside(&node);
    let peer = Pod::new();
    add_ok(&node, "peer", (&peer, &node.conf(json!({}))));
    filter_on_bridge(&node);
    for (family, number) in [(0, 3), (1, 5)] {
        let address = |number: u8| match family {
            0 => format!("10.244.1.{number}"),
            _ => format!("fd00:10:244:1::{number}"),
        };
        let first = first_to_come(&node, &outside, (&node.conf(json!({})), &address(number)));
        assert_eq!(first.to_string(), OUTSIDE[family], "the test would see it");
        let with_policy = (&node.conf(closed()), &*address(number + 1));
        let first = first_to_come(&node, &outside, with_policy);
        assert_eq!(first.to_string(), GATEWAY[family]);
    }
}

#[test]
fn what_a_pod_sends_is_no_answer_to_what_came_before_it_was_there() {
    let node = Node::new();
    let outside = outside(&node);
    let peer = Pod::new();
    let conf = node.conf(closed());
    // Connections are followed from the first pod with policy on.
    add_ok(&node, "peer", (&peer, &conf));
    filter_on_bridge(&node);
    for (family, to) in [(0, "10.244.1.3"), (1, "fd00:10:244:1::4")] {
        let pod = Pod::new();
        let early = bind(Some(&outside), 6000);
        early.send_to(b"x", at(to, 7)).unwrap();
        until(|| {
            let shown = node.ns.ip(&format!("neigh show {to} dev podspan0"));
            shown[0]["state"][0] == "INCOMPLETE"
        });
        let added = add_ok(&node, "new", (&pod, &conf));
        assert!([added.ip(4), added.ip(6)].contains(&to.to_owned()));
        let sender = bind(Some(&pod), 7);
        let send = || sender.send_to(b"y", at(OUTSIDE[family], 6000)).unwrap();
        send();
        assert!(early.recv(&mut [0; 1]).is_err(), "{to} answers");
        open("new");
        send();
        next_sender(&early);
        node.del("new", &conf).expect_ok();
    }
}

#[test]
fn what_a_dead_attachment_left_and_what_no_record_tells_of_is_taken_over() {
    let (node, a, b, _) = node();
    open("a");
    open("b");
    let conf = node.conf(closed());
    // Its link is gone and so is its address, as after a node's operator's hand; its filtering is not.
    node.ns.ip(&format!("link del {}", attached("a").veth));
    let net = node.data.path().join("net");
    for ip in A {
        std::fs::remove_file(net.join(ip)).unwrap();
    }
    let ips = json!({"ips": A});
    let mut asked = conf.clone();
    asked["runtimeConfig"] = ips;
    let pod = Pod::new();
    add_ok(&node, "c", (&pod, &asked));
    assert!(is_closed(&attached("c")));
    let all = policy::attachments(&mut Nft::open().unwrap()).unwrap();
    assert_eq!(all.len(), 2, "{all:#?}");
    assert!(!arrives(Some(&b), A[0], Some(&pod)));
    node.del("c", &conf).expect_ok();

    // Chains and elements whose record somebody deleted: another pod's name must not stay.
    let veth = attached("b").veth;
    node.ns.ip(&format!("link del {veth}"));
    nft(&format!("delete set inet podspan {veth}"));
    nft("delete element inet podspan policy_egress6 { fd00:10:244:1::3 }");
    for ip in B {
        std::fs::remove_file(net.join(ip)).unwrap();
    }
    std::fs::remove_file(net.join("attachments/b:eth0")).unwrap();
    let mut process = node.command(&[], "ADD", "b");
    process
        .env("CNI_NETNS", a.path())
        .env("CNI_ARGS", args("other"));
    run(&mut process, &conf).expect_ok();
    let found = attached("other");
    assert!(is_closed(&found) && found.veth == veth, "{found:?}");
    node.del("b", &conf).expect_ok();
    assert_eq!(node.filtered(), Vec::<String>::new());
}

#[test]
fn check_misses_chains_and_elements_and_not_what_is_in_the_chains() {
    let (node, a, b, _) = node();
    drop(b);
    let conf = node.conf(closed());
    node.del("a", &conf).expect_ok();
    let added = add_ok(&node, "a", (&a, &conf));
    let check = || node.check("a", &a, &node.with_prev(&conf, &added));
    check().expect_ok();
    open("a");
    check().expect_ok();
    let names = chains_of("a");
    nft(&format!(
        "add rule inet podspan {} counter drop",
        names.egress
    ));
    check().expect_ok();
    nft("delete element inet podspan policy_ingress4 { 10.244.1.4 }");
    let (code, text) = check().expect_error();
    let expected = format!(
        "10.244.1.4 : goto {} is missing in map inet podspan policy_ingress4",
        names.ingress
    );
    assert!(code == 103 && text.contains(&expected), "{text}");
    nft("flush map inet podspan policy_ingress4; flush map inet podspan policy_ingress6");
    nft(&format!("delete chain inet podspan {}", names.ingress));
    let (_, text) = check().expect_error();
    let expected = format!("chain inet podspan {} is missing", names.ingress);
    assert!(text.contains(&expected), "{text}");
}

#[test]
fn gc_removes_what_is_not_valid_and_nothing_of_what_is() {
    let (node, a, _b, _) = node();
    let mut conf = node.conf(json!({"ipMasq": true, "policy": {"waitMilliseconds": 0}}));
    node.del("a", &conf).expect_ok();
    let added = add_ok(&node, "a", (&a, &conf));
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "a", "ifname": "eth0"}]);
    run(&mut node.command(&[], "GC", ""), &conf).expect_ok();
    let all = policy::attachments(&mut Nft::open().unwrap()).unwrap();
    assert_eq!(all, [attached("a")]);
    node.check("a", &a, &node.with_prev(&conf, &added))
        .expect_ok();
    node.del("a", &conf).expect_ok();
    node.assert_clean("after GC and DEL");
}

#[test]
fn the_layout_is_laid_anew_by_the_same_code_and_what_stands_in_it_stays() {
    let (_node, a, b, _) = node();
    open("a");
    open("b");
    let listed = || {
        let words = ["--stateless", "list", "table", "inet", "podspan"];
        let output = Command::new("nft").args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let before = listed();
    assert!(before.contains("policy_egress"), "{before}");
    let mut batch = Batch::new();
    policy::require(&mut batch);
    policy::lay(&mut batch);
    Nft::open().unwrap().commit(batch).unwrap();
    assert_eq!(listed(), before);
    assert!(arrives(Some(&a), B[0], Some(&b)));
}

#[test]
fn an_attachment_of_before_is_adopted_with_what_it_has_already() {
    for keys in [json!({}), json!({"ipMasq": true})] {
        let node = Node::new();
        let (a, b) = (Pod::new(), Pod::new());
        let conf = node.conf(keys);
        let added = add_ok(&node, "a", (&a, &conf));
        add_ok(&node, "b", (&b, &conf));
        filter_on_bridge(&node);
        assert!(arrives(Some(&a), B[0], Some(&b)), "as before");
        let id: AttachmentId = AttachmentId {
            container: "a".parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        };
        let network = "net".parse().unwrap();
        let (veth, alias) = (id.host_veth(&network), id.alias(&network).unwrap());
        let ips = A.map(|ip| ip.parse().unwrap());
        let subject = policy::Subject {
            pod: Some(PodName {
                namespace: "shop".into(),
                name: "a".into(),
                uid: None,
            }),
            addresses: policy::with_link_local(&ips, Mac::of_ip(ips[0])),
            closed: true,
        };
        let mut batch = Batch::new();
        policy::lay(&mut batch);
        policy::adopt(&mut batch, (&veth, &alias), subject);
        Nft::open().unwrap().commit(batch).unwrap();
        let found = attached("a");
        assert!(
            is_closed(&found) && found.addresses == ips && found.veth == veth,
            "{found:?}"
        );
        assert!(!arrives(Some(&a), B[0], Some(&b)));
        assert!(!arrives(Some(&b), A[1], Some(&a)));
        // It is what ADD would have made.
        let mut with_policy = node.with_prev(&conf, &added);
        with_policy["policy"] = json!({});
        node.check("a", &a, &with_policy).expect_ok();
        node.del("a", &conf).expect_ok();
        node.del("b", &conf).expect_ok();
        node.assert_clean("after DEL");
    }
}

/// An ADD under way.
struct Adding {
    child: Child,
}

impl Adding {
    fn begin(node: &Node, container: &str, (pod, conf): (&Pod, &Value)) -> Self {
        let mut process = node.command(&[], "ADD", container);
        process.env("CNI_NETNS", pod.path());
        process.env("CNI_ARGS", args(container)).process_group(0);
        let mut child = process.spawn().unwrap();
        let conf = conf.to_string();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(conf.as_bytes())
            .unwrap();
        Self { child }
    }

    fn end(self) -> Output {
        self.child.wait_with_output().unwrap()
    }
}

/// Waits until it holds; for ever, so that a test that never comes there is seen to hang.
fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn add_waits_until_the_pod_is_open_and_not_longer_than_it_is_told() {
    let node = Node::new();
    let pod = Pod::new();
    let conf = node.conf(json!({"policy": {"waitMilliseconds": 60_000}}));
    let adding = Adding::begin(&node, "a", (&pod, &conf));
    let is_there = || {
        let all = policy::attachments(&mut Nft::open().unwrap()).unwrap();
        all.iter().any(is_closed)
    };
    until(is_there);
    // One direction is not enough.
    open_egress("a");
    std::thread::sleep(Duration::from_millis(100));
    let mut adding = adding;
    assert!(adding.child.try_wait().unwrap().is_none(), "it waits");
    open_ingress("a");
    let begin = Instant::now();
    let output = adding.end();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    assert!(begin.elapsed() < Duration::from_secs(30), "it sees it");

    // Nobody opens: it succeeds, and says so.
    let short = node.conf(json!({"policy": {"waitMilliseconds": 60}}));
    let pod = Pod::new();
    let begin = Instant::now();
    let output = add(&node, "b", (&pod, &short));
    assert!(begin.elapsed() >= Duration::from_millis(60));
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.starts_with("podspan-cni: the policy of pod shop/b was not in force after 60 ms")
            && said.lines().count() == 1,
        "{said}"
    );
    assert!(is_closed(&attached("b")));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ips"].as_array().unwrap().len(), 2);
}

#[test]
fn add_killed_while_it_waits_leaves_a_closed_pod_and_del_removes_it() {
    let node = Node::new();
    let conf = node.conf(json!({"policy": {"waitMilliseconds": 60_000}}));
    for pause in [0, 3, 20] {
        let pod = Pod::new();
        let mut adding = Adding::begin(&node, "a", (&pod, &conf));
        until(|| {
            let shown = pod.ip("link show");
            let links = shown.as_array().unwrap();
            links
                .iter()
                .any(|link| link["ifname"] == "eth0" && link["operstate"] == "UP")
        });
        std::thread::sleep(Duration::from_millis(pause));
        adding.child.kill().unwrap();
        adding.end();
        assert!(is_closed(&attached("a")));
        node.del("a", &conf).expect_ok();
        node.assert_clean("ADD killed while it waited, then DEL");
    }
}

/// Sends to everybody from the first moment on that it has an address, until it is told to end.
fn chatter(pod: &Pod, targets: &[SocketAddr], over: &AtomicBool) -> u64 {
    pod.run(|| {
        let sockets = [
            UdpSocket::bind("0.0.0.0:0").unwrap(),
            UdpSocket::bind("[::]:0").unwrap(),
        ];
        let mut sent = 0;
        let mut impatient = false;
        while !over.load(Relaxed) {
            // Who asks for a neighbour before the port forwards asks again a second later, and would send nothing meanwhile.
            impatient = impatient
                || ["ipv4", "ipv6"].iter().all(|family| {
                    let key = format!("/proc/sys/net/{family}/neigh/eth0/retrans_time_ms");
                    std::fs::write(key, "1").is_ok()
                });
            for target in targets {
                let socket = &sockets[usize::from(target.is_ipv6())];
                // There is no route before there is an address.
                sent += u64::from(socket.send_to(b"x", target).is_ok());
            }
            // Room for the others on a machine of two cores.
            std::thread::sleep(Duration::from_micros(50));
        }
        sent
    })
}

#[test]
fn a_pod_that_sends_from_its_first_instruction_reaches_nobody_before_it_is_known() {
    let times: u32 = match std::env::var("PODSPAN_FIRST_PACKET") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 50,
    };
    let node = Node::new();
    let outside = outside(&node);
    let peer = Pod::new();
    let conf = node.conf(json!({"policy": {"waitMilliseconds": 60_000}}));
    add_ok(&node, "peer", (&peer, &node.conf(closed())));
    filter_on_bridge(&node);
    open("peer");
    let receivers = [bind(Some(&peer), 7), bind(Some(&outside), 7)];
    for receiver in &receivers {
        receiver.set_nonblocking(true).unwrap();
    }
    let targets: Vec<_> = [A, OUTSIDE].concat().iter().map(|ip| at(ip, 7)).collect();
    let mut total = 0;
    // Namespaces take longer to come and go than all the rest.
    let pod = Pod::new();
    for number in 0..times {
        let over = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let chatter = scope.spawn(|| chatter(&pod, &targets, &over));
            let mut adding = Adding::begin(&node, "new", (&pod, &conf));
            // Everything but the wait is done.
            until(|| {
                let shown = pod.ip("-6 addr show");
                shown.to_string().contains("fd00:10:244:1:")
            });
            std::thread::sleep(Duration::from_millis(5));
            assert!(adding.child.try_wait().unwrap().is_none(), "it waits");
            for receiver in &receivers {
                let arrived = receiver.recv(&mut [0; 1]);
                assert!(arrived.is_err(), "{number}: a packet arrived");
            }
            let chains = chains_of("new");
            nft(&format!(
                "flush chain inet podspan {}; flush chain inet podspan {}",
                chains.egress, chains.ingress
            ));
            let output = adding.end();
            assert!(output.status.success(), "{output:?}");
            // Now all of them arrive, so that the test would see one.
            for receiver in &receivers {
                until(|| receiver.recv(&mut [0; 1]).is_ok());
            }
            over.store(true, Relaxed);
            chatter.join().unwrap()
        });
        assert!(sent > 0);
        total += sent;
        node.del("new", &conf).expect_ok();
        for receiver in &receivers {
            while receiver.recv(&mut [0; 1]).is_ok() {}
        }
    }
    println!("{times} pods sent {total} packets, none of which arrived before its pod was known");
}

#[test]
fn without_the_key_there_is_nothing_of_it() {
    let node = Node::new();
    let conf = node.conf(json!({"antiSpoof": false}));
    let pod = Pod::new();
    add_ok(&node, "a", (&pod, &conf));
    let output = Command::new("nft")
        .args(["list", "table", "inet", "podspan"])
        .stderr(Stdio::null())
        .status();
    assert!(
        !output.unwrap().success(),
        "no table for a pod without any filtering"
    );
}
