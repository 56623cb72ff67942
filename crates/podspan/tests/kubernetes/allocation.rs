//! Pod CIDRs that the agents take themselves: many machines, each a network namespace on one segment with the API server.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use podspan_kernel::Prefix;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::plane::{LEASES, Plane, address};

const PLANE: &str = "172.16.0.1";

/// An agent that waits in a network namespace of its own until it is let go.
struct Node<'a> {
    machine: &'a Machine,
    child: Child,
}

impl<'a> Node<'a> {
    /// `node<n>`, on the segment of the machine's `eth0`.
    fn new(machine: &'a Machine, plane: &Plane, (n, more): (u32, &str)) -> Self {
        let (name, directory) = (format!("node{n}"), machine.path(&format!("node{n}")));
        std::fs::create_dir_all(&directory).unwrap();
        let config = format!(
            "node = \"{name}\"\nregistry = \"kubernetes\"\nkubeconfig = \"{}\"\nprobe = false\nlisten = \"off\"\n\
             conflist = \"{}/10-podspan.conflist\"\nallocate_pod_cidrs = true\n{more}",
            plane.kubeconfig().display(),
            directory.display()
        );
        std::fs::write(directory.join("agent.toml"), config).unwrap();
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let script = "read go && exec \"$0\" agent --config \"$1\"";
        let child = Command::new("unshare")
            .args(["--net", "sh", "-c", script, env!("CARGO_BIN_EXE_podspan")])
            .arg(directory.join("agent.toml"))
            .stdin(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let node = Self { machine, child };
        let pid = node.child.id();
        machine.until("a namespace of its own", || {
            let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
            of(&pid.to_string()).is_some_and(|own| Some(own) != of("thread-self"))
        });
        let ip = |command: &str| machine.ns.ip(command);
        ip(&format!(
            "link add v{pid} up master eth0 type veth peer name eth0 netns {pid}"
        ));
        node.inside("link set lo up");
        node.inside("link set eth0 up");
        node.inside(&format!("addr add {}/16 dev eth0", address(n)));
        node.inside(&format!("addr add fd00:172::{n:x}/64 dev eth0 nodad"));
        node
    }

    fn inside(&self, command: &str) {
        let mut nsenter = Command::new("nsenter");
        nsenter.args([&format!("--net=/proc/{}/ns/net", self.child.id()), "ip"]);
        let status = nsenter.args(command.split_whitespace()).status().unwrap();
        assert!(status.success(), "{command}");
    }

    fn go(&mut self) {
        writeln!(self.child.stdin.as_ref().unwrap(), "go").unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn log(&self, n: u32) -> String {
        std::fs::read_to_string(self.machine.path(&format!("node{n}/log"))).unwrap()
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn world() -> (Machine, Plane) {
    let machine = Machine::new();
    machine.ns.ip("link set lo up");
    let plane = Plane::start(PLANE);
    (machine, plane)
}

/// A Node without pod CIDRs.
fn create(plane: &Plane, n: u32) {
    plane.create_bare_node(&format!("node{n}"));
    plane.set_addresses(
        &format!("node{n}"),
        &[&address(n), &format!("fd00:172::{n:x}")],
    );
}

/// The pod CIDRs of all Nodes that have some, by name.
fn pod_cidrs(plane: &Plane) -> BTreeMap<String, Vec<Prefix>> {
    let mut all = BTreeMap::new();
    for node in plane.nodes() {
        if let Some(cidrs) = node["spec"]["podCIDRs"].as_array() {
            let cidrs = cidrs
                .iter()
                .map(|cidr| cidr.as_str().unwrap().parse().unwrap());
            all.insert(
                node["metadata"]["name"].as_str().unwrap().to_owned(),
                cidrs.collect(),
            );
        }
    }
    all
}

fn assert_no_two_overlap(all: &BTreeMap<String, Vec<Prefix>>) {
    let flat: Vec<_> = all
        .iter()
        .flat_map(|(name, cidrs)| cidrs.iter().map(move |cidr| (name, cidr)))
        .collect();
    for (index, (name, cidr)) in flat.iter().enumerate() {
        for (other, taken) in &flat[..index] {
            assert!(
                !taken.overlaps(**cidr),
                "{cidr} of {name} and {taken} of {other}"
            );
        }
    }
}

/// The subnets that are reserved, each with the name of its Node.
fn reserved(plane: &Plane) -> Vec<(String, String)> {
    let mut all: Vec<_> = plane
        .list(LEASES)
        .iter()
        .filter(|lease| lease["metadata"]["labels"]["podspan.io/reserves"] == "pod-cidr")
        .map(|lease| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (
                text(&lease["metadata"]["annotations"]["podspan.io/subnet"]),
                text(&lease["spec"]["holderIdentity"]),
            )
        })
        .collect();
    all.sort();
    all
}

/// A reservation as an agent makes it.
fn reserve(plane: &Plane, (name, subnet): (&str, &str), (node, uid): (&str, &str)) {
    plane.create(
        LEASES,
        &json!({
            "metadata": {
                "name": name,
                "labels": {"podspan.io/reserves": "pod-cidr", "podspan.io/node-uid": uid},
                "annotations": {"podspan.io/subnet": subnet},
            },
            "spec": {"holderIdentity": node},
        }),
    );
}

#[test]
fn fifty_agents_at_once_never_give_two_nodes_one_subnet() {
    const NODES: u32 = 50;
    let (machine, plane) = world();
    // Little more room than nodes, so that many ask for the same.
    let more = "cluster_cidrs = [\"10.244.0.0/18\", \"fd00:10:244::/58\"]\n";
    let mut nodes: Vec<_> = (2..2 + NODES)
        .map(|n| Node::new(&machine, &plane, (n, more)))
        .collect();
    (2..2 + NODES).for_each(|n| create(&plane, n));
    nodes.iter_mut().for_each(Node::go);
    // Some die in the midst, and come again.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    for n in [2, 12, 22, 32, 42] {
        nodes[n - 2].kill();
        let n = u32::try_from(n).unwrap();
        let mut again = Node::new(&machine, &plane, (n, more));
        again.go();
        nodes.push(again);
    }
    machine.until("all have a subnet of each family", || {
        let all = pod_cidrs(&plane);
        assert_no_two_overlap(&all);
        all.len() == NODES as usize
    });
    let all = pod_cidrs(&plane);
    assert!(
        all.values()
            .all(|cidrs| cidrs.len() == 2 && cidrs[0].length() == 24 && cidrs[1].length() == 64)
    );
    // What is reserved is what the Nodes have, once each agent has seen its Node.
    let mut expected: Vec<_> = all
        .iter()
        .flat_map(|(name, cidrs)| cidrs.iter().map(|cidr| (cidr.to_string(), name.clone())))
        .collect();
    expected.sort();
    machine.until("nothing else is reserved", || reserved(&plane) == expected);
    // And the nodes use it.
    machine.until("all are available", || {
        plane.nodes().iter().all(|node| {
            let conditions = node["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            conditions
                .iter()
                .any(|one| one["type"] == "NetworkUnavailable" && one["status"] == "False")
        })
    });
}

#[test]
fn what_was_reserved_before_a_crash_is_used_and_what_a_gone_node_had_is_free_again() {
    let (machine, plane) = world();
    // Room for four: one of an earlier life of node2, one of a Node that is there, two of Nodes that are gone.
    let more = "cluster_cidrs = [\"10.244.0.0/22\"]\n";
    create(&plane, 2);
    let uid = plane.node("node2")["metadata"]["uid"]
        .as_str()
        .unwrap()
        .to_owned();
    reserve(
        &plane,
        ("podspan-10-244-3-0-24", "10.244.3.0/24"),
        ("node2", &uid),
    );
    plane.create("/api/v1/nodes", &json!({"metadata": {"name": "other"}, "spec": {"podCIDR": "10.244.2.0/24", "podCIDRs": ["10.244.2.0/24"]}}));
    for third in 0..2 {
        let names = (
            format!("podspan-10-244-{third}-0-24"),
            format!("10.244.{third}.0/24"),
        );
        reserve(
            &plane,
            (&names.0, &names.1),
            ("gone", "00000000-0000-0000-0000-000000000000"),
        );
    }
    let mut node2 = Node::new(&machine, &plane, (2, more));
    node2.go();
    let has = |name: &str| {
        pod_cidrs(&plane)
            .get(name)
            .map(|cidrs| cidrs[0].to_string())
    };
    machine.until("node2 has what it had reserved", || {
        has("node2").as_deref() == Some("10.244.3.0/24")
    });

    // The range is full now, but for what the gone Nodes had.
    let mut others: Vec<_> = (3..=5)
        .map(|n| Node::new(&machine, &plane, (n, more)))
        .collect();
    (3..=5).for_each(|n| create(&plane, n));
    others[0].go();
    others[1].go();
    machine.until("two more", || {
        has("node3").is_some() && has("node4").is_some()
    });
    others[2].go();
    let said = "no free IPv4 subnet in 10.244.0.0/22 (/24 each)";
    machine.until("told", || others[2].log(5).contains(said));
    assert_no_two_overlap(&pod_cidrs(&plane));
    assert_eq!(has("node5"), None);
    // As the controller that collects garbage does with `ownerReferences`, which is not there in this test.
    let of_node3 = reserved(&plane)
        .into_iter()
        .find(|(_, node)| node == "node3")
        .unwrap()
        .0;
    let lease = plane
        .list(LEASES)
        .into_iter()
        .find(|lease| lease["metadata"]["annotations"]["podspan.io/subnet"] == of_node3.as_str())
        .unwrap();
    let owner = &lease["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["name"], &owner["uid"]),
        (
            &"Node".into(),
            &"node3".into(),
            &plane.node("node3")["metadata"]["uid"]
        )
    );
    others[0].kill();
    plane.delete_node("node3");
    machine.until("node5 has what node3 had", || {
        has("node5") == Some(of_node3.clone())
    });
    machine.until("mended", || others[2].log(5).contains("mended: "));
}
