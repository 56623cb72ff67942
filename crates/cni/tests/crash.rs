//! Killed at each of its system calls in turn, the plugin leaves nothing that the DEL or GC after it does not find.
//!
//! The calls are enumerated, not sampled: `strace` lists those of one run, and then kills one run at each of them, in each
//! of the configurations of `harness/world.rs`. Those before the plugin reads its input are the same for all commands and
//! configurations, and tried once.
//! Also here: what the plugin must never do at all, seen in the same list.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use harness::world::{Call, Configuration, World, calls, each};
use harness::{Node, Pod, is_guarded, kill};
use serde_json::{Value, json};

/// Where to kill: every call from the reading of the input on, but the end of the process, which comes too late to matter,
/// and the growing of the heap, which lasts no longer and does not happen equally often in every run.
fn points(lines: &[String]) -> Vec<Call> {
    let mut points = calls(lines);
    points.retain(|call| !call.early && !["brk", "exit_group"].contains(&call.name.as_str()));
    points
}

/// Runs `command` and kills it when it enters the system call.
fn run_killed(world: &World, command: &str, (conf, at): (&Value, &Call)) {
    let Call { name, number, .. } = at;
    let strace = [
        "strace",
        "-f",
        "-qq",
        "--output=/dev/null",
        &format!("--trace={name}"),
        &format!("--inject={name}:signal=KILL:when={number}"),
    ];
    let output = world.run(&strace.map(str::to_owned), command, conf);
    assert!(
        !output.status.success(),
        "{command} was not killed at {name} {number}: {output:?}"
    );
}

/// A connection by UDP, which the DEL of a pod with that host port has to forget.
fn connect_to_port(port: u16) {
    let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
    socket.send_to(b"x", ("192.0.2.1", port)).unwrap();
}

/// A port that is up is a guarded one, whenever one looks.
fn assert_guarded(node: &Node, context: &str) {
    for port in node.pod_links() {
        let link = &node.ns.ip(&format!("-d link show {port}"))[0];
        let is_ifb = link["linkinfo"]["info_kind"] == "ifb";
        let is_up = link["flags"].as_array().unwrap().contains(&json!("UP"));
        assert!(
            is_guarded(&port) || !is_up || is_ifb,
            "{port} is open: {context}: {link}"
        );
    }
}

#[test]
fn add_killed_at_any_system_call_and_then_del_leaves_nothing() {
    for configuration in Configuration::of_this_run() {
        let world = World::new(configuration);
        let points = points(&world.trace_add(|| ()));
        assert!(points.len() > 60, "strace listed only {}", points.len());
        each(configuration, &points, |world, point| {
            run_killed(world, "ADD", (&world.conf, point));
            assert_guarded(&world.node, &format!("ADD killed at {point:?}"));
            // It needs no more than the network's name and the place of the addresses.
            world.node.del("c1", &world.least_conf()).expect_ok();
            world.assert_nothing_is_left(&format!("ADD killed at {point:?}, then DEL"));
        });
        let (name, count) = (configuration.name, points.len());
        println!("{name}: ADD killed at each of {count} system calls, then DEL");
    }
}

#[test]
fn add_killed_before_it_reads_its_input_has_done_nothing() {
    let configuration = Configuration::of_this_run()[0];
    let mut points = calls(&World::new(configuration).trace_add(|| ()));
    // The first is strace's own exec of the plugin.
    points.retain(|call| call.early && !(call.name == "execve" && call.number == 1));
    each(configuration, &points, |world, point| {
        run_killed(world, "ADD", (&world.conf, point));
        world.assert_nothing_is_left(&format!("ADD killed at {point:?}"));
    });
    println!(
        "killed at each of {} system calls before the input",
        points.len()
    );
}

/// DEL's way to what is left is the attachment's name, GC's is a list of all there is.
#[test]
fn add_killed_at_any_system_call_and_then_gc_leaves_nothing() {
    let configuration = Configuration::with_everything();
    let points = points(&World::new(configuration).trace_add(|| ()));
    each(configuration, &points, |world, point| {
        run_killed(world, "ADD", (&world.conf, point));
        world.gc(&[]);
        world.assert_nothing_is_left(&format!("ADD killed at {point:?}, then GC"));
    });
    let (name, count) = (configuration.name, points.len());
    println!("{name}: ADD killed at each of {count} system calls, then GC");
}

#[test]
fn del_killed_at_any_system_call_and_then_repeated_leaves_nothing() {
    for configuration in Configuration::of_this_run() {
        let world = World::new(configuration);
        world.node.add("c1", &world.pod, &world.conf).expect_ok();
        connect_to_port(53);
        let points = points(&world.trace("DEL", &world.conf));
        assert!(points.len() > 30, "strace listed only {}", points.len());
        each(configuration, &points, |world, point| {
            world.node.add("c1", &world.pod, &world.conf).expect_ok();
            connect_to_port(53);
            run_killed(world, "DEL", (&world.conf, point));
            assert_guarded(&world.node, &format!("DEL killed at {point:?}"));
            world.assert_no_free_address_is_policed(&format!("DEL killed at {point:?}"));
            world.node.del("c1", &world.least_conf()).expect_ok();
            world.assert_nothing_is_left(&format!("DEL killed at {point:?}, then repeated"));
        });
        let (name, count) = (configuration.name, points.len());
        println!("{name}: DEL killed at each of {count} system calls");
    }
}

#[test]
fn gc_killed_at_any_system_call_spares_the_valid_and_leaves_nothing_when_repeated() {
    for configuration in Configuration::of_this_run() {
        let world = World::new(configuration);
        let kept_conf = &world.conf_beside_others();
        world.node.add("kept", &world.kept, kept_conf).expect_ok();
        world.node.add("c1", &world.pod, &world.conf).expect_ok();
        let points = points(&world.trace("GC", &world.gc_conf(&["kept"])));
        assert!(points.len() > 30, "strace listed only {}", points.len());
        each(configuration, &points, |world, point| {
            let (node, conf, kept) = (&world.node, &world.conf, &world.kept);
            let context = format!("GC killed at {point:?}, then repeated");
            let kept_conf = &world.conf_beside_others();
            let added = node.add("kept", kept, kept_conf).expect_ok();
            node.add("c1", &world.pod, conf).expect_ok();
            run_killed(world, "GC", (&world.gc_conf(&["kept"]), point));
            world.assert_no_free_address_is_policed(&context);
            world.gc(&["kept"]);
            world.assert_all_addresses_are_free_but(1, &context);
            let check = node.check("kept", kept, &node.with_prev(kept_conf, &added));
            assert!(check.ok, "{context}: {}", check.json);
            node.del("kept", conf).expect_ok();
            world.assert_nothing_is_left(&context);
        });
        let (name, count) = (configuration.name, points.len());
        println!("{name}: GC killed at each of {count} system calls");
    }
}

#[test]
fn the_first_add_of_a_node_killed_anywhere_leaves_a_node_that_the_next_completes() {
    for configuration in Configuration::of_this_run() {
        let world = World::new(configuration);
        let lines = world.trace_add(|| world.begin_anew());
        let mut points = points(&lines);
        points.retain(|point| !point.early);
        each(configuration, &points, |world, point| {
            let (node, conf) = (&world.node, &world.conf);
            world.begin_anew();
            run_killed(world, "ADD", (conf, point));
            node.del("c1", conf).expect_ok();
            assert_eq!(
                world.left(),
                Vec::<String>::new(),
                "ADD killed at {point:?}, then DEL"
            );
            let added = node.add("c1", &world.pod, conf).expect_ok();
            let check = node.check("c1", &world.pod, &node.with_prev(conf, &added));
            assert!(check.ok, "after a kill at {point:?}: {}", check.json);
            let bridge = &node.ns.ip("-d addr show podspan0")[0];
            assert_eq!(
                bridge["ifalias"], "podspan:bridge",
                "the mark, after a kill at {point:?}"
            );
            assert_eq!(bridge["address"], "0a:58:0a:f4:01:01");
            node.del("c1", conf).expect_ok();
            world.assert_nothing_is_left(&format!("after a kill at {point:?}"));
        });
        let (name, count) = (configuration.name, points.len());
        println!("{name}: the first ADD killed at each of {count} system calls");
    }
}

#[test]
fn the_plugin_starts_no_process_no_thread_and_no_network_connection() {
    for configuration in Configuration::of_this_run() {
        let world = World::new(configuration);
        let add = world.trace_add(|| ());
        world.node.add("c1", &world.pod, &world.conf).expect_ok();
        let del = world.trace("DEL", &world.conf);
        for line in add.iter().skip(1).chain(del.iter().skip(1)) {
            let name = line.split('(').next().unwrap();
            assert!(
                !["fork", "vfork", "clone", "clone3", "execve", "connect"].contains(&name),
                "{line}"
            );
            assert!(name != "socket" || line.contains("AF_NETLINK"), "{line}");
        }
    }
}

#[test]
fn in_the_place_of_portmap_killed_at_any_system_call_it_leaves_nothing() {
    let (mut node, pod) = (Node::new(), Pod::new());
    let attached = node
        .add("c1", &pod, &node.conf(json!({"antiSpoof": false})))
        .expect_ok();
    let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap"});
    let mut conf = bare.clone();
    conf["prevResult"] = attached.json;
    conf["runtimeConfig"] = Configuration::with_everything().keys()["runtimeConfig"].clone();
    node.call_it("portmap");
    let of_pod = |command: &'static str| {
        let (node, pod) = (&node, &pod);
        move |strace: &[String]| {
            let mut process = node.command(strace, command, "c1");
            process.env("CNI_NETNS", pod.path());
            process
        }
    };
    node.add("c1", &pod, &conf).expect_ok();
    let of_del = kill::points(&kill::trace(&of_pod("DEL"), &conf));
    let of_add = kill::points(&kill::trace(&of_pod("ADD"), &conf));
    node.del("c1", &bare).expect_ok();
    for (command, points) in [("ADD", of_add), ("DEL", of_del)] {
        for point in &points {
            if command == "DEL" {
                node.add("c1", &pod, &conf).expect_ok();
            }
            kill::run_killed(&of_pod(command), &conf, point);
            node.del("c1", &bare).expect_ok();
            assert_eq!(
                node.filtered(),
                Vec::<String>::new(),
                "{command} killed at {point:?}"
            );
        }
        let count = points.len();
        println!("{command} of portmap killed at each of {count} system calls");
    }
    node.assert_foreign_survives();
}
