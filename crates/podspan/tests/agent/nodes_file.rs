//! The nodes file: every change of it is followed, and nothing that is wrong with it takes anything away.

use crate::machine::{Machine, THREE_NODES, addressed, entry};

#[test]
fn changes_of_the_nodes_file_are_followed() {
    let machine = Machine::new();
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.nodes(&[entry(1), entry(2), entry(4)].concat());
    machine.until_routes(&[
        "10.0.2.0/24 via 172.16.0.2",
        "10.0.4.0/24 via 172.16.0.4",
        "fd00:10:2::/64 via fd00:172::2",
        "fd00:10:4::/64 via fd00:172::4",
    ]);
    // In place, as an editor may write it.
    std::fs::write(
        machine.path("nodes.toml"),
        [entry(1), entry(2), entry(3)].concat(),
    )
    .unwrap();
    machine.until_routes(&THREE_NODES);
}

#[test]
fn a_nodes_file_behind_symbolic_links_is_followed_as_kubernetes_swaps_them() {
    let machine = Machine::new();
    let write = |directory: &str, content: String| {
        std::fs::create_dir(machine.path(directory)).unwrap();
        std::fs::write(machine.path(directory).join("nodes.toml"), content).unwrap();
        std::os::unix::fs::symlink(directory, machine.path("..data_tmp")).unwrap();
        std::fs::rename(machine.path("..data_tmp"), machine.path("..data")).unwrap();
    };
    write("..2026_1", [entry(1), entry(2), entry(3)].concat());
    std::fs::remove_file(machine.path("nodes.toml")).unwrap();
    std::os::unix::fs::symlink("..data/nodes.toml", machine.path("nodes.toml")).unwrap();
    let _agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    write("..2026_2", [entry(1), entry(3)].concat());
    machine.until_routes(&[
        "10.0.3.0/24 via 172.16.0.3",
        "fd00:10:3::/64 via fd00:172::3",
    ]);
}

#[test]
fn an_empty_missing_or_broken_nodes_file_changes_nothing_and_is_said_once() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    let good = std::fs::read_to_string(machine.path("nodes.toml")).unwrap();
    let times = |text: &str| machine.log().matches(text).count();
    for (content, said) in [
        ("", "no node in it"),
        ("[[nodes", "unclosed"),
        ("nodes = 1", "must be tables"),
    ] {
        machine.nodes(content);
        machine.until(said, || times(said) == 1);
        // A look for another reason: the file is as bad as before, and everything else is kept right.
        machine.ns.ip("route del 10.0.2.0/24");
        machine.until_routes(&THREE_NODES);
        agent.signal("-HUP");
        assert_eq!(times(said), 1, "{}", machine.log());
    }
    std::fs::remove_file(machine.path("nodes.toml")).unwrap();
    machine.until("told", || times("No such file") == 1);
    assert_eq!(machine.routes(), THREE_NODES);
    let before = times("mended");
    machine.nodes(&good);
    machine.until("mended", || times("mended") > before);
    agent.has_looked();
    assert_eq!(machine.routes(), THREE_NODES);
}

#[test]
fn an_agent_that_starts_with_a_bad_nodes_file_leaves_everything_as_it_is() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    assert_eq!(agent.stop(), Some(0));
    machine.nodes("");
    let before = machine.everything();
    let agent = machine.start("agent");
    machine.until("told", || machine.log().contains("no node in it"));
    assert_eq!(machine.run("status").0, 1);
    assert_eq!(machine.run("plan").0, 2);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(machine.everything(), before);
}

#[test]
fn a_refused_entry_is_told_and_what_ran_for_it_and_for_the_others_goes_on() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.nodes(&[entry(1), addressed(2, "172.16.0.300"), entry(3)].concat());
    machine.until("told", || machine.log().contains("refused: "));
    agent.has_looked();
    assert_eq!(machine.routes(), THREE_NODES);
    let (code, status) = machine.run("status");
    assert_eq!(code, 1);
    assert!(
        status.contains("nodes[1].addresses[0] (node2) = \"172.16.0.300\": must be an IP address"),
        "{status}"
    );
}

#[test]
fn a_node_that_is_not_in_the_file_changes_nothing() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    let before = machine.everything();
    machine.nodes(&[entry(2), entry(4)].concat());
    machine.until("told", || {
        machine.log().contains("has no usable entry of that name")
    });
    assert_eq!(machine.run("plan").0, 0);
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(machine.everything(), before);
}

#[test]
fn routing_by_a_router_is_one_route_per_family_on_the_node_and_all_of_them_on_the_router() {
    let machine = Machine::new();
    machine.configure(
        "routing = \"router\"\ncluster_cidrs = [\"10.0.0.0/17\", \"fd00:10::/32\"]\n\
         routers = [\"172.16.0.254\", \"fd00:172::fe\"]\n",
    );
    let agent = machine.start("agent");
    machine.until_routes(&[
        "10.0.0.0/17 via 172.16.0.254",
        "fd00:10::/32 via fd00:172::fe",
    ]);
    assert_eq!(agent.stop(), Some(0));

    let machine = Machine::new();
    machine.ns.ip("addr flush dev eth0");
    machine.ns.ip("addr add 172.16.0.254/16 dev eth0");
    machine.ns.ip("addr add fd00:172::fe/64 dev eth0 nodad");
    machine
        .ns
        .ip("route replace 10.255.0.0/16 via 172.16.99.99 proto static");
    let router = machine.start("router");
    machine.until("all routes", || machine.routes().len() == 6);
    let redirects = podspan_kernel::sysctl::read("net/ipv4/conf/eth0/send_redirects");
    assert_eq!(redirects, Ok("0".to_owned()));
    assert_eq!(
        machine.ns.ip("link show").as_array().unwrap().len(),
        3,
        "no bridge of ours"
    );
    machine.nodes(&[entry(1), entry(2)].concat());
    machine.until("followed", || machine.routes().len() == 4);
    assert_eq!(router.stop(), Some(0));
    machine.assert_foreign_things_are_there();
}
