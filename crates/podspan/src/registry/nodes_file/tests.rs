use super::*;

fn read(content: &str) -> (Cluster, Vec<Refusal>) {
    parse(Path::new("nodes.toml"), content).unwrap()
}

/// Two nodes with which nothing is wrong.
pub const GOOD: &str = r#"
    [[nodes]]
    name = "node1"
    addresses = ["192.168.1.11", "fd00:192:168:1::11"]
    pod_cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"]
    [[nodes]]
    name = "node2"
    addresses = ["192.168.1.12", "fd00:192:168:1::12"]
    pod_cidrs = ["10.244.2.0/24", "fd00:10:244:2::/64"]
"#;

/// One entry behind the two good ones: keys and values as in the file.
fn third(entry: &str) -> (Cluster, Vec<String>) {
    let (cluster, refusals) = read(&format!("{GOOD}\n[[nodes]]\n{entry}"));
    (cluster, refusals.iter().map(Refusal::to_string).collect())
}

#[test]
fn nodes_of_both_families_are_read_in_order() {
    let (cluster, refusals) = read(GOOD);
    assert_eq!(refusals, []);
    let node2 = cluster.node("node2").unwrap();
    assert_eq!(
        (node2.entry, node2.addresses.len(), node2.pod_cidrs.len()),
        (1, 2, 2)
    );
    assert_eq!(node2.pod_cidrs[1].to_string(), "fd00:10:244:2::/64");
}

#[test]
fn a_wrong_entry_is_refused_with_its_place_and_the_rest_goes_on() {
    let table = [
        (
            "name = 'n'\naddresses = ['192.168.1.300']\npod_cidrs = ['10.9.0.0/24']",
            "nodes.toml: nodes[2].addresses[0] (n) = \"192.168.1.300\": must be an IP address, such as \"192.168.1.11\" or \"fd00:192:168:1::11\"",
        ),
        (
            "name = 'n'\naddresses = ['fe80::1']\npod_cidrs = ['fd09::/64']",
            "nodes.toml: nodes[2].addresses[0] (n) = \"fe80::1\": must be an address that other nodes reach, not loopback, link-local, multicast or unspecified",
        ),
        (
            "name = 'n'\naddresses = ['192.168.1.13']\npod_cidrs = ['10.9.0.1/24']",
            "nodes.toml: nodes[2].pod_cidrs[0] (n) = \"10.9.0.1/24\": prefix 10.9.0.1/24 has host bits set; its network is 10.9.0.0/24",
        ),
        (
            "name = 'n'\naddresses = ['192.168.1.13']\npod_cidrs = ['0.0.0.0/0']",
            "nodes.toml: nodes[2].pod_cidrs[0] (n) = \"0.0.0.0/0\": must have a length from /8 to /30",
        ),
        (
            "name = 'n'\naddresses = ['192.168.1.13']\npod_cidrs = ['127.0.0.0/8']",
            "nodes.toml: nodes[2].pod_cidrs[0] (n) = \"127.0.0.0/8\": must not be loopback, link-local or multicast",
        ),
        (
            "name = 'n'\naddresses = '192.168.1.13'\npod_cidrs = ['10.9.0.0/24']",
            "nodes.toml: nodes[2].addresses (n) = \"192.168.1.13\": must be a list: [\"…\", \"…\"]",
        ),
        (
            "name = 'n'\naddresses = ['192.168.1.13']",
            "nodes.toml: nodes[2].pod_cidrs (n): is missing; give at least one, such as [\"10.244.1.0/24\"]",
        ),
        (
            "name = 'n'\npod_cidrs = ['10.9.0.0/24']",
            "nodes.toml: nodes[2].addresses (n): is missing; give the node's address, such as [\"192.168.1.11\"]",
        ),
        (
            "addresses = ['192.168.1.13']\npod_cidrs = ['10.9.0.0/24']",
            "nodes.toml: nodes[2].name: is missing",
        ),
        (
            "name = 'n'\naddresses = ['192.168.1.13', '192.168.1.14']\npod_cidrs = ['10.9.0.0/24']",
            "nodes.toml: nodes[2].addresses[1] (n) = \"192.168.1.14\": is a second IPv4 address; give one per family",
        ),
        (
            "name = 'n'\naddresses = ['192.168.1.13']\npod_cidrs = ['fd09::/64']",
            "nodes.toml: nodes[2].pod_cidrs[0] (n) = \"fd09::/64\": the node has no IPv6 address to reach it through; add one to addresses",
        ),
        (
            "name = 'n'\naddresses = ['192.168.1.13']\npod_cidrs = ['10.9.0.0/24', '10.9.0.0/25']",
            "nodes.toml: nodes[2].pod_cidrs[1] (n) = \"10.9.0.0/25\": overlaps 10.9.0.0/24 of the same node; remove one",
        ),
        (
            "name = 'n'\naddress = '192.168.1.13'\naddresses = ['192.168.1.13']\npod_cidrs = ['10.9.0.0/24']",
            "nodes.toml: nodes[2].address (n) = \"192.168.1.13\": no such key; there are name, addresses, pod_cidrs",
        ),
        (
            "name = 'node1'\naddresses = ['192.168.1.13']\npod_cidrs = ['10.9.0.0/24']",
            "nodes.toml: nodes[2].name = \"node1\": is the name of nodes[0] too; give each node its own",
        ),
        (
            "name = 'n'\naddresses = ['192.168.1.12']\npod_cidrs = ['10.9.0.0/24']",
            "nodes.toml: nodes[2].addresses[0] (n) = \"192.168.1.12\": is the address of nodes[1] (node2) too; give each node its own",
        ),
        (
            "name = 'n'\naddresses = ['192.168.1.13']\npod_cidrs = ['10.244.1.128/25']",
            "nodes.toml: nodes[2].pod_cidrs[0] (n) = \"10.244.1.128/25\": overlaps 10.244.1.0/24 of nodes[0] (node1); give each node its own",
        ),
        (
            "name = 'n'\naddresses = ['192.168.1.13']\npod_cidrs = ['10.244.0.0/16']",
            "nodes.toml: nodes[2].pod_cidrs[0] (n) = \"10.244.0.0/16\": overlaps 10.244.1.0/24 of nodes[0] (node1); give each node its own",
        ),
    ];
    for (entry, expected) in table {
        let (cluster, refusals) = third(entry);
        assert_eq!(refusals, [expected], "{entry}");
        assert_eq!(
            (cluster.nodes.len(), cluster.refused.len()),
            (2, 1),
            "{entry}"
        );
    }
}

#[test]
fn reading_in_sections_is_reading_the_whole() {
    let texts = [
        GOOD.to_owned(),
        GOOD.replace("[[nodes]]", "  [[ nodes ]] # comment"),
        GOOD.replace("[[nodes]]", "[[\"nodes\"]]"),
        GOOD.replace('\n', "\r\n"),
        GOOD.replace("\"node2\"", "\"\"\"node2\"\"\""),
        "nodes = [{name = 'node1', addresses = ['192.168.1.11', 'fd00:192:168:1::11'], \
         pod_cidrs = ['10.244.1.0/24', 'fd00:10:244:1::/64']}, {name = 'node2', addresses = ['192.168.1.12', \
         'fd00:192:168:1::12'], pod_cidrs = ['10.244.2.0/24', 'fd00:10:244:2::/64']}]"
            .to_owned(),
    ];
    let expected = read(GOOD);
    for text in texts {
        assert_eq!(read(&text), expected, "{text}");
    }
    let long = GOOD.replace("\"node2\"", "\"\"\"\n[[nodes]]\"\"\"");
    assert!(read(&long).0.node("[[nodes]]").is_some());
    let elsewhere = format!("x = 1\n{GOOD}\n[nodes.more]\n[other]\n");
    let keys: Vec<_> = read(&elsewhere)
        .1
        .iter()
        .map(|refusal| refusal.key.clone())
        .collect();
    assert_eq!(keys, ["x", "other", "nodes[1].more (node2)"]);
}

#[test]
fn what_can_be_read_of_a_refused_entry_is_remembered() {
    let (cluster, _) =
        third("name = 'n'\naddresses = ['x', '192.168.1.13']\npod_cidrs = ['10.9.0.0/24']");
    let remains = &cluster.refused[0];
    assert_eq!(
        remains.addresses,
        ["192.168.1.13".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(remains.pod_cidrs, ["10.9.0.0/24".parse().unwrap()]);
}

#[test]
fn the_later_of_two_that_exclude_each_other_is_refused_and_does_not_exclude_a_third() {
    let later = r#"
        [[nodes]]
        name = "clash"
        addresses = ["192.168.1.13"]
        pod_cidrs = ["10.244.0.0/16"]
        [[nodes]]
        name = "node4"
        addresses = ["192.168.1.13"]
        pod_cidrs = ["10.244.4.0/24"]
    "#;
    let (cluster, refusals) = read(&format!("{GOOD}{later}"));
    assert_eq!(refusals.len(), 1);
    assert!(cluster.node("clash").is_none() && cluster.node("node4").is_some());
}

#[test]
fn a_file_without_a_usable_node_is_an_error() {
    let table = [
        (
            "",
            "nodes.toml: no node in it; write [[nodes]] with name, addresses, pod_cidrs",
        ),
        (
            "nodes = []",
            "nodes.toml: no node in it; write [[nodes]] with name, addresses, pod_cidrs",
        ),
        ("nodes = 1", "nodes.toml: nodes must be tables: [[nodes]]"),
        (
            "[[nodes]]\nname = 1",
            "nodes.toml: none of its 1 nodes is usable; nodes.toml: nodes[0].name = 1: must be a name without white space, such as \"node1\"",
        ),
        (
            "[[nodes]\n",
            "nodes.toml: line 1: unclosed array table, expected `]`",
        ),
        (
            "\n[[nodes]]\nname = 'a'\n[[nodes]]\nname = b",
            "nodes.toml: line 5: string values must be quoted, expected literal string",
        ),
    ];
    for (content, expected) in table {
        let error = parse(Path::new("nodes.toml"), content)
            .unwrap_err()
            .to_string();
        let short = error
            .chars()
            .take(expected.chars().count())
            .collect::<String>();
        assert_eq!(short, expected, "{content}: {error}");
    }
}

#[test]
fn five_thousand_nodes_are_read_and_each_overlap_among_them_is_found() {
    use std::fmt::Write as _;
    let mut content = String::new();
    for node in 0..5000_u32 {
        let (high, low) = (node >> 8, node & 255);
        writeln!(
            content,
            "[[nodes]]\nname = 'n{node}'\naddresses = ['172.16.{high}.{low}', 'fd00::{node:x}']\n\
             pod_cidrs = ['10.{high}.{low}.0/24', 'fd00:10:{node:x}::/64']"
        )
        .unwrap();
    }
    content +=
        "[[nodes]]\nname = 'wide'\naddresses = ['172.31.0.1']\npod_cidrs = ['10.5.0.0/16']\n";
    let (cluster, refusals) = read(&content);
    assert_eq!((cluster.nodes.len(), refusals.len()), (5000, 1));
    assert!(refusals[0].fix.contains("10.5.0.0/24"), "{}", refusals[0]);
}
