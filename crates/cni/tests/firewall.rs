//! In the place of `firewall`: real packets through a node that drops what it forwards, with `iptables-nft` as the witness.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::io::Write;
use std::process::{Command, Stdio};

use harness::{Answer, Node, Pod, kill, outside, run, run_raw};
use podspan_kernel::sysctl;
use serde_json::{Value, json};

const FAMILIES: [&str; 2] = ["iptables-nft", "ip6tables-nft"];

/// What the program printed, in the node's namespace.
#[track_caller]
fn tool(words: &str) -> String {
    let mut words = words.split(' ');
    let program = words.next().unwrap();
    let output = Command::new(program).args(words).output();
    let output = output.expect("nft of nftables and iptables-nft of iptables are installed");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    // That a table is of another kind, or incompatible, would be told so. nft says of all of them whose they are.
    assert!(told.is_empty() || program == "nft", "{told}");
    String::from_utf8(output.stdout).unwrap()
}

/// The rules of a chain, without its head.
#[track_caller]
fn rules(family: &str, chain: &str) -> Vec<String> {
    let listed = tool(&format!("{family} -S {chain}"));
    let rules = listed.lines().filter(|line| line.starts_with("-A"));
    rules.map(str::to_owned).collect()
}

/// A node whose forwarding is dropped by default, with a rule of somebody else's.
fn dropping() -> Node {
    let node = Node::new();
    for family in FAMILIES {
        tool(&format!("{family} -P FORWARD DROP"));
        tool(&format!("{family} -A FORWARD -i foreign0 -j ACCEPT"));
    }
    node
}

/// The configuration of `firewall` behind the plugin that answered `added`.
fn behind(added: &Value, changes: Value) -> Value {
    let mut conf =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall", "prevResult": added});
    for (key, value) in changes.as_object().unwrap() {
        conf[key] = value.clone();
    }
    conf
}

fn firewall(node: &Node, command: (&str, &str), pod: Option<&Pod>, conf: &Value) -> Answer {
    let mut process = node.command_as("firewall", &[], command);
    if let Some(pod) = pod {
        process.env("CNI_NETNS", pod.path());
    }
    run(&mut process, conf)
}

/// A pod on a bridge behind `firewall`, and what that one was told.
fn attach(node: &Node, container: &str, pod: &Pod, conf: (Value, Value)) -> (Answer, Value) {
    let added = node.add(container, pod, &node.conf(conf.0)).expect_ok();
    let conf = behind(&added.json, conf.1);
    (
        firewall(node, ("ADD", container), Some(pod), &conf).expect_ok(),
        conf,
    )
}

/// The machine beside the node.
const OUTSIDE: [&str; 2] = ["203.0.113.2", "2001:db8::2"];

fn expected(link: &str, comment: &str) -> [String; 2] {
    [
        format!("-A PODSPAN-FORWARD -i {link} -m comment --comment {comment} -j ACCEPT"),
        format!(
            "-A PODSPAN-FORWARD -o {link} -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment {comment} -j ACCEPT"
        ),
    ]
}

const ADMIN: &str = "-A PODSPAN-FORWARD -j CNI-ADMIN";
const JUMP: &str = "-A FORWARD -m comment --comment \"podspan:forward\" -j PODSPAN-FORWARD";

/// All of the bridge's rules stand, once, and what was there before stands behind.
#[track_caller]
fn assert_let_through(context: &str) {
    for family in FAMILIES {
        let [from, to] = expected("podspan0", "\"bridge podspan0\"");
        assert_eq!(
            rules(family, "PODSPAN-FORWARD"),
            [ADMIN, &from, &to],
            "{context}"
        );
        assert_eq!(
            rules(family, "FORWARD"),
            [JUMP, "-A FORWARD -i foreign0 -j ACCEPT"],
            "{context}"
        );
    }
}

#[test]
fn where_forwarding_is_dropped_pods_reach_out_get_answers_and_nobody_else_reaches_them() {
    let node = dropping();
    let outside = outside(&node);
    let _server = outside.listen();
    let pod = Pod::new();
    let _own_server = pod.listen();
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    assert!(!pod.reaches(OUTSIDE[0]), "it is dropped without the plugin");
    let conf = behind(&added.json, json!({"backend": ""}));
    let answer = firewall(&node, ("ADD", "c1"), Some(&pod), &conf).expect_ok();
    assert_eq!(answer.json, added.json, "T19: the result is the one before");
    for ip in OUTSIDE {
        assert!(pod.reaches(ip), "{ip}");
    }
    for ip in [added.ip(4), added.ip(6)] {
        assert!(!outside.reaches(&ip), "a new connection to {ip} is dropped");
    }
    assert_let_through("after ADD");

    // The rules count, and the tools go on working: the administrator's chain decides before ours.
    assert!(tool("iptables-nft -nvL PODSPAN-FORWARD").contains("podspan0"));
    tool("iptables-nft -A CNI-ADMIN -d 203.0.113.2 -j DROP");
    assert!(!pod.reaches(OUTSIDE[0]) && pod.reaches(OUTSIDE[1]));
    tool("iptables-nft -F CNI-ADMIN");
    assert!(pod.reaches(OUTSIDE[0]));
}

#[test]
fn further_pods_of_the_bridge_change_nothing_and_del_leaves_it_to_the_next() {
    let node = dropping();
    let pods = [Pod::new(), Pod::new()];
    let (_, conf) = attach(&node, "c1", &pods[0], (json!({}), json!({})));
    let ruleset = || tool("nft -a -s list ruleset");
    let before = ruleset();
    attach(&node, "c2", &pods[1], (json!({}), json!({})));
    assert_eq!(ruleset(), before);

    // T24: twice, for the unknown, without namespace and without result.
    let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall"});
    for conf in [&conf, &bare, &bare] {
        let answer = firewall(&node, ("DEL", "c1"), None, conf).expect_ok();
        assert_eq!(answer.json, Value::Null, "T11: silent");
    }
    assert_eq!(ruleset(), before);

    // What iptables saved and restored is still known, and somebody's hand is mended by the next ADD.
    for family in ["iptables", "ip6tables"] {
        let saved = Command::new(format!("{family}-nft-save")).output().unwrap();
        let mut restore = Command::new(format!("{family}-nft-restore"));
        let restore = restore.stdin(Stdio::piped());
        let mut restore = restore.spawn().unwrap();
        restore
            .stdin
            .take()
            .unwrap()
            .write_all(&saved.stdout)
            .unwrap();
        assert!(restore.wait().unwrap().success());
    }
    firewall(&node, ("ADD", "c2"), Some(&pods[1]), &conf).expect_ok();
    assert_let_through("after save and restore");
    for damage in [
        "-D FORWARD 1",
        "-D PODSPAN-FORWARD 1",
        "-D PODSPAN-FORWARD 3",
        "-F PODSPAN-FORWARD",
    ] {
        tool(&format!("iptables-nft {damage}"));
        firewall(&node, ("ADD", "c2"), Some(&pods[1]), &conf).expect_ok();
        assert_let_through(damage);
    }
    node.assert_foreign_survives();
}

#[test]
fn without_a_chain_forward_nothing_is_made() {
    let (node, pod) = (Node::new(), Pod::new());
    let (_, conf) = attach(&node, "c1", &pod, (json!({}), json!({})));
    assert_eq!(
        tool("nft list tables"),
        "table inet foreign\ntable bridge foreign\n"
    );
    firewall(&node, ("CHECK", "c1"), Some(&pod), &conf).expect_ok();
    // Docker's coming later is met by the next ADD.
    tool("iptables-nft -P FORWARD DROP");
    let (code, _) = firewall(&node, ("CHECK", "c1"), Some(&pod), &conf).expect_error();
    assert_eq!(code, 103);
    firewall(&node, ("ADD", "c1"), Some(&pod), &conf).expect_ok();
    firewall(&node, ("CHECK", "c1"), Some(&pod), &conf).expect_ok();
    assert_eq!(
        tool("nft list tables"),
        "table inet foreign\ntable bridge foreign\ntable ip filter\n"
    );
}

#[test]
fn t28_check_finds_every_deviation_and_needs_the_result() {
    let (node, pod) = (dropping(), Pod::new());
    let isolated = json!({"ingressPolicy": "isolated"});
    let (added, conf) = attach(&node, "c1", &pod, (json!({}), isolated));
    let check = || firewall(&node, ("CHECK", "c1"), Some(&pod), &conf);
    assert_eq!(check().expect_ok().json, Value::Null);
    let port = added.json["interfaces"][1]["name"].as_str().unwrap();
    let lets = "chain ip filter PODSPAN-FORWARD does not let podspan0 through";
    let unset = "the sets of table inet podspan do not say ingressPolicy isolated of podspan0";
    for (damage, deviation) in [
        (
            "iptables-nft -D FORWARD 1".to_owned(),
            "chain ip filter FORWARD does not lead to PODSPAN-FORWARD",
        ),
        (
            "ip6tables-nft -D PODSPAN-FORWARD 1".into(),
            "chain ip6 filter PODSPAN-FORWARD does not lead to CNI-ADMIN",
        ),
        ("iptables-nft -D PODSPAN-FORWARD 3".into(), lets),
        (
            "nft delete element inet podspan isolated_bridges {podspan0}".into(),
            unset,
        ),
        ("nft flush chain inet podspan isolation".into(), unset),
        (
            format!("ip link set {port} type bridge_slave isolated off"),
            &format!("port {port} is not isolated"),
        ),
    ] {
        tool(&damage);
        assert_eq!(check().expect_error(), (103, deviation.to_owned()));
        firewall(&node, ("ADD", "c1"), Some(&pod), &conf).expect_ok();
        check().expect_ok();
    }
    let mut bare = conf.clone();
    bare.as_object_mut().unwrap().remove("prevResult");
    for command in ["ADD", "CHECK"] {
        let answer = firewall(&node, (command, "c1"), Some(&pod), &bare);
        let (code, text) = answer.expect_error();
        assert!(
            code == 7 && text.starts_with("prevResult is missing"),
            "{text}"
        );
    }
}

/// A link from the node to a pod of its own, as `ptp` makes it, and the result that tells of it.
fn own_link(node: &Node, link: &str, pod: &Pod) -> Value {
    let path = pod.path();
    node.ns.ip(&format!(
        "link add {link} type veth peer name eth0 netns {}",
        path.display()
    ));
    node.ns.ip(&format!("addr add 10.244.9.1/32 dev {link}"));
    node.ns.ip(&format!("link set {link} up"));
    pod.ip("addr add 10.244.9.2/24 dev eth0");
    pod.ip("link set eth0 up");
    pod.ip("route add default via 10.244.9.1");
    node.ns.ip(&format!("route add 10.244.9.2/32 dev {link}"));
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": link}, {"name": "eth0", "sandbox": path}],
        "ips": [{"address": "10.244.9.2/32", "interface": 1}],
    })
}

#[test]
fn the_rules_of_a_link_of_one_pod_go_with_it() {
    let node = dropping();
    sysctl::write("net/ipv4/ip_forward", "1").unwrap();
    let outside = outside(&node);
    let _server = outside.listen();
    let pod = Pod::new();
    let _own_server = pod.listen();
    let conf = behind(&own_link(&node, "veth1", &pod), json!({}));
    let bare = |name| json!({"cniVersion": "1.1.0", "name": name, "type": "firewall"});
    assert!(!pod.reaches(OUTSIDE[0]));
    firewall(&node, ("ADD", "c1"), Some(&pod), &conf).expect_ok();
    assert!(pod.reaches(OUTSIDE[0]) && !outside.reaches("10.244.9.2"));
    firewall(&node, ("CHECK", "c1"), Some(&pod), &conf).expect_ok();
    let [from, to] = expected("veth1", "\"net/c1/eth0\"");
    for family in FAMILIES {
        assert_eq!(rules(family, "PODSPAN-FORWARD"), [ADMIN, &from, &to]);
    }
    // An attachment whose DEL never came, with another link now.
    firewall(&node, ("ADD", "c1"), Some(&pod), &conf).expect_ok();
    assert_eq!(rules("iptables-nft", "PODSPAN-FORWARD").len(), 3);

    // Of another container and of another network: they stay.
    firewall(&node, ("ADD", "c2"), Some(&pod), &conf).expect_ok();
    let mut other = conf.clone();
    other["name"] = json!("other");
    firewall(&node, ("ADD", "c1"), Some(&pod), &other).expect_ok();
    let remaining = |comments: &[&str]| {
        for family in FAMILIES {
            let expected = comments
                .iter()
                .flat_map(|comment| expected("veth1", comment));
            let expected: Vec<_> = std::iter::once(ADMIN.to_owned()).chain(expected).collect();
            assert_eq!(rules(family, "PODSPAN-FORWARD"), expected);
        }
    };
    for _ in 0..2 {
        firewall(&node, ("DEL", "c1"), None, &bare("net")).expect_ok();
        remaining(&["\"net/c2/eth0\"", "\"other/c1/eth0\""]);
    }

    // T29: what is valid and what is another network's stays; without the list nothing goes.
    let gc = |valid: Value| {
        let mut conf = bare("net");
        conf["cni.dev/valid-attachments"] = valid;
        firewall(&node, ("GC", "c1"), None, &conf)
    };
    gc(json!([{"containerID": "c2", "ifname": "eth0"}])).expect_ok();
    assert_eq!(gc(Value::Null).expect_error().0, 7);
    remaining(&["\"net/c2/eth0\"", "\"other/c1/eth0\""]);
    gc(json!([])).expect_ok();
    remaining(&["\"other/c1/eth0\""]);
    node.assert_foreign_survives();
}

#[test]
fn bridges_keep_to_themselves_by_same_bridge_and_pods_by_isolated() {
    let node = Node::new();
    let network = |number: u8, masquerade: bool| {
        let range = format!("10.244.{number}.0/24");
        json!({
            "bridge": format!("br{number}"), "name": format!("net{number}"), "ipMasq": masquerade,
            "ipam": {"dataDir": node.data.path(), "ranges": [[{"subnet": range}]]},
        })
    };
    let policy = |policy: &str| json!({"ingressPolicy": policy});
    let pods: Vec<_> = (0..5).map(|_| Pod::new()).collect();
    let _servers: Vec<_> = pods.iter().map(Pod::listen).collect();
    let add = |pod: usize, network, policy: Value| {
        let container = format!("c{pod}");
        attach(&node, &container, &pods[pod], (network, policy))
    };
    // The table is made for isolation first, and masquerading finds it.
    let (first, conf) = add(0, network(1, false), policy("same-bridge"));
    add(1, network(1, true), policy("same-bridge"));
    let (third, _) = add(2, network(2, false), policy("same-bridge"));
    let (fourth, open_conf) = add(3, network(3, false), policy("open"));
    let [first, third, fourth] = [first, third, fourth].map(|added| added.ip(4));
    let reach = |from: usize, to: &str| pods[from].reaches(to);
    assert!(reach(1, &first), "of the same bridge");
    assert!(!reach(2, &first) && !reach(0, &third), "of another one");
    assert!(reach(3, &first) && reach(0, &fourth), "of one that is open");

    // With the next pod of the bridge another policy begins: now its pods are kept apart, too.
    let (fifth, isolated) = add(4, network(2, false), policy("isolated"));
    let fifth = fifth.ip(4);
    assert!(!reach(0, &fifth) && reach(3, &fifth));
    let sixth = Pod::new();
    let _server = sixth.listen();
    let (sixth_added, _) = attach(&node, "c6", &sixth, (network(2, false), policy("isolated")));
    assert!(!reach(4, &sixth_added.ip(4)) && !sixth.reaches(&fifth));
    assert!(sixth.reaches(&fourth), "and out of the bridge they get");
    firewall(&node, ("CHECK", "c4"), Some(&pods[4]), &isolated).expect_ok();

    // And open again: the sets say nothing of that bridge any more.
    let mut open = conf.clone();
    open["ingressPolicy"] = json!("open");
    firewall(&node, ("ADD", "c0"), Some(&pods[0]), &open).expect_ok();
    assert!(reach(2, &first) && reach(0, &third));
    firewall(&node, ("CHECK", "c3"), Some(&pods[3]), &open_conf).expect_ok();
    let listed = tool("nft list set inet podspan isolated_bridges");
    assert!(
        listed.contains("\"br2\"") && !listed.contains("\"br1\""),
        "{listed}"
    );
}

#[test]
fn what_cannot_be_served_is_told_with_what_would_be_right() {
    let (node, pod) = (dropping(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let before = tool("nft -a -s list ruleset");
    let zone = json!({"backend": "firewalld", "firewalldZone": "pods"});
    let legacy = json!({"prevResult": {"ips": [{"address": "10.244.1.2/24"}]}});
    let alone = json!({
        "ingressPolicy": "isolated",
        "prevResult": {"interfaces": [{"name": "eth0", "sandbox": pod.path()}]},
    });
    for (changes, code, words) in [
        (
            zone,
            2,
            "firewall-cmd --permanent --zone=pods --add-interface=podspan0 && firewall-cmd --reload",
        ),
        (json!({"backend": "ipfw"}), 7, "backend is \"ipfw\""),
        (json!({"backend": 7}), 7, "backend: invalid type"),
        (
            json!({"ingressPolicy": "closed"}),
            7,
            "must be one of open, same-bridge, isolated",
        ),
        (
            json!({"iptablesAdminChainName": "FORWARD"}),
            7,
            "iptablesAdminChainName is \"FORWARD\"",
        ),
        (
            json!({"iptablesAdminChainName": "-j"}),
            7,
            "iptablesAdminChainName is \"-j\"",
        ),
        (legacy, 7, "use cniVersion 0.3.0 or later"),
        (alone, 7, "put firewall behind bridge"),
    ] {
        let conf = behind(&added.json, changes);
        let answer = firewall(&node, ("ADD", "c1"), Some(&pod), &conf).expect_error();
        assert!(answer.0 == code && answer.1.contains(words), "{answer:?}");
        firewall(&node, ("DEL", "c1"), None, &conf).expect_ok();
    }
    assert_eq!(tool("nft -a -s list ruleset"), before);
    let status = |changes| {
        let mut conf = behind(&Value::Null, changes);
        conf.as_object_mut().unwrap().remove("prevResult");
        firewall(&node, ("STATUS", "c1"), None, &conf)
    };
    assert_eq!(status(json!({})).expect_ok().json, Value::Null);
    assert_eq!(status(json!({"backend": "firewalld"})).expect_error().0, 2);

    // Where nobody asked for firewalld and it is there, the pod gets on, and a person is told.
    tool("nft add table inet firewalld");
    let conf = behind(&added.json, json!({"iptablesAdminChainName": "OPERATOR"}));
    let mut process = node.command_as("firewall", &[], ("ADD", "c1"));
    let output = run_raw(process.env("CNI_NETNS", pod.path()), &conf);
    let told = String::from_utf8(output.stderr).unwrap();
    let right = "firewall-cmd --permanent --zone=trusted --add-interface=podspan0";
    assert!(output.status.success() && told.contains(right), "{told}");
    assert_eq!(told.lines().count(), 1);
    assert_eq!(
        rules("iptables-nft", "PODSPAN-FORWARD")[0],
        "-A PODSPAN-FORWARD -j OPERATOR"
    );
}

#[test]
fn what_netlink_does_not_reach_is_told_and_what_is_told_is_right() {
    let node = Node::new();
    let outside = outside(&node);
    let _server = outside.listen();
    let pod = Pod::new();
    let lock = node.data.path().join("xtables.lock");
    let legacy = |words: &str| {
        let mut words = words.split(' ');
        let mut process = Command::new(words.next().unwrap());
        let output = process.args(words).env("XTABLES_LOCKFILE", &lock).output();
        let output = output.expect("iptables-legacy of iptables is installed");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "a kernel with legacy iptables: {told}"
        );
    };
    legacy("iptables-legacy -P FORWARD DROP");
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let conf = behind(&added.json, json!({}));
    let mut process = node.command_as("firewall", &[], ("ADD", "c1"));
    let output = run_raw(process.env("CNI_NETNS", pod.path()), &conf);
    assert!(output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(!pod.reaches(OUTSIDE[0]));
    let (_, right) = told.trim().split_once("to let it through: ").unwrap();
    right.split("; ").for_each(legacy);
    assert!(pod.reaches(OUTSIDE[0]), "after {right}");
}

#[test]
fn adds_at_once_make_everything_once() {
    let node = dropping();
    let pods: Vec<_> = (0..8).map(|_| Pod::new()).collect();
    let confs: Vec<_> = pods
        .iter()
        .enumerate()
        .map(|(number, pod)| {
            let added = node.add(&format!("c{number}"), pod, &node.conf(json!({})));
            behind(
                &added.expect_ok().json,
                json!({"ingressPolicy": "same-bridge"}),
            )
        })
        .collect();
    for round in 0..10 {
        // All of them are started before any has its configuration.
        let mut processes: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| {
                let container = format!("c{number}");
                let mut process = node.command_as("firewall", &[], ("ADD", &container));
                process.env("CNI_NETNS", pod.path()).spawn().unwrap()
            })
            .collect();
        for (process, conf) in processes.iter_mut().zip(&confs) {
            let mut input = process.stdin.take().unwrap();
            input.write_all(conf.to_string().as_bytes()).unwrap();
        }
        for process in processes {
            let output = process.wait_with_output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "round {round}: {told}");
        }
        assert_let_through(&format!("round {round}"));
        let isolation = tool("nft list chain inet podspan isolation");
        assert_eq!(isolation.matches("drop").count(), 1, "{isolation}");
        begin_anew();
    }
}

/// All that ADD makes for a bridge is taken away.
fn begin_anew() {
    for family in FAMILIES {
        for words in [
            "-D FORWARD 1",
            "-F PODSPAN-FORWARD",
            "-X PODSPAN-FORWARD",
            "-X CNI-ADMIN",
        ] {
            tool(&format!("{family} {words}"));
        }
    }
    tool("nft delete table inet podspan");
}

#[test]
fn add_and_del_killed_at_any_system_call_are_mended() {
    let (node, pod) = (dropping(), Pod::new());
    let added = node.add("c1", &pod, &node.conf(json!({}))).expect_ok();
    let other = Pod::new();
    let link = own_link(&node, "veth1", &other);
    let mut both = added.json.clone();
    let interfaces = both["interfaces"].as_array_mut().unwrap();
    interfaces.push(link["interfaces"][0].clone());
    let conf = behind(&both, json!({"ingressPolicy": "same-bridge"}));
    let fresh = tool("nft -s list ruleset");
    let make = |command: &'static str| {
        let (node, pod) = (&node, &pod);
        move |wrapper: &[String]| {
            let mut process = node.command_as("firewall", wrapper, (command, "c1"));
            process.env("CNI_NETNS", pod.path());
            process
        }
    };
    let begin_anew = || {
        begin_anew();
        assert_eq!(tool("nft -s list ruleset"), fresh);
    };
    let points = kill::points(&kill::trace(&make("ADD"), &conf));
    begin_anew();
    assert!(points.len() > 30, "only {} system calls", points.len());
    for point in &points {
        kill::run_killed(&make("ADD"), &conf, point);
        firewall(&node, ("DEL", "c1"), None, &conf).expect_ok();
        let left = tool("nft -s list ruleset");
        assert!(!left.contains("veth1"), "ADD killed at {point:?}: {left}");
        firewall(&node, ("ADD", "c1"), Some(&pod), &conf).expect_ok();
        firewall(&node, ("CHECK", "c1"), Some(&pod), &conf).expect_ok();
        firewall(&node, ("DEL", "c1"), None, &conf).expect_ok();
        assert_let_through(&format!("ADD killed at {point:?}"));
        begin_anew();
    }
    firewall(&node, ("ADD", "c1"), Some(&pod), &conf).expect_ok();
    let points = kill::points(&kill::trace(&make("DEL"), &conf));
    for point in &points {
        firewall(&node, ("ADD", "c1"), Some(&pod), &conf).expect_ok();
        kill::run_killed(&make("DEL"), &conf, point);
        firewall(&node, ("DEL", "c1"), None, &conf).expect_ok();
        assert_let_through(&format!("DEL killed at {point:?}"));
    }
}
