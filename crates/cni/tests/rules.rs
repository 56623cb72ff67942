//! Rules of the CNI digest that no other test bears the number of, or bears it for the executable.
//!
//! What a rule asks of the runtime (T25, T31, T33, T34) is tested here as what the plugin must take; what our own runtime
//! makes of it is tested in `crates/podspan`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;

use harness::{Node, Pod, run, run_raw};
use serde_json::{Value, json};

#[test]
fn t4_interface_names_that_cannot_be_are_refused_with_variable_and_value() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    for wrong in [".", "..", "a/b", "a:b", "a b", "a\tb", "sixteen-letters-"] {
        for command in ["ADD", "DEL", "CHECK"] {
            let mut process = node.command(&[], command, "c1");
            process
                .env("CNI_IFNAME", wrong)
                .env("CNI_NETNS", pod.path());
            let (code, text) = run(&mut process, &conf).expect_error();
            let told = text.contains("CNI_IFNAME") && text.contains(&format!("{wrong:?}"));
            assert!(code == 4 && told, "{command} {wrong:?}: {code} {text}");
        }
    }
    let mut process = node.command(&[], "ADD", "c1");
    process
        .env("CNI_IFNAME", "fifteen-letters")
        .env("CNI_NETNS", pod.path());
    run(&mut process, &conf).expect_ok();
    assert_eq!(pod.ip("link show fifteen-letters")[0]["operstate"], "UP");
}

#[test]
fn t6_a_path_to_plugins_is_needed_only_where_one_is_run() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    for command in ["ADD", "DEL", "STATUS", "VERSION"] {
        let mut process = node.command(&[], command, "c1");
        process.env_remove("CNI_PATH").env("CNI_NETNS", pod.path());
        run(&mut process, &conf).expect_ok();
    }
    // The first directory that has it counts; one that is no directory is passed over.
    let (first, second) = (node.data.path().join("a"), node.data.path().join("b"));
    for (dir, address) in [(&first, "10.7.0.1"), (&second, "10.7.0.2")] {
        ipam_plugin(dir, &format!("cat > /dev/null\n{}", answer(address)));
    }
    let conf = node.conf(json!({"ipam": {"type": "their-ipam"}}));
    let path = format!(
        "/nowhere:/etc/hostname:{}:{}",
        first.display(),
        second.display()
    );
    let mut process = node.command(&[], "ADD", "c1");
    process.env("CNI_PATH", path).env("CNI_NETNS", pod.path());
    assert_eq!(run(&mut process, &conf).expect_ok().ip(4), "10.7.0.1");
    let mut process = node.command(&[], "ADD", "c2");
    process.env_remove("CNI_PATH").env("CNI_NETNS", pod.path());
    let (code, text) = run(&mut process, &conf).expect_error();
    assert!(code == 4 && text.contains("CNI_PATH"), "{code} {text}");
}

/// An IPAM plugin of somebody else's.
fn ipam_plugin(dir: &std::path::Path, script: &str) -> PathBuf {
    std::fs::create_dir_all(dir).unwrap();
    let path = dir.join("their-ipam");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

/// What it says to ADD; nothing to other commands.
fn answer(address: &str) -> String {
    let result = json!({"cniVersion": "1.1.0", "ips": [{"address": format!("{address}/24")}]});
    format!("[ $CNI_COMMAND != ADD ] || echo '{result}'")
}

#[test]
fn t9_standard_output_has_the_answer_alone_and_the_exit_code_says_which() {
    let (node, pod) = (Node::new(), Pod::new());
    let raw = |command: &str, conf: &Value| {
        let mut process = node.command(&[], command, "c1");
        run_raw(process.env("CNI_NETNS", pod.path()), conf)
    };
    let conf = node.conf(json!({}));
    let added = raw("ADD", &conf);
    // One JSON value and white space: nothing before it, nothing behind it.
    assert_eq!(added.status.code(), Some(0));
    assert!(serde_json::from_slice::<Value>(&added.stdout).unwrap()["ips"].is_array());
    assert!(added.stderr.is_empty(), "{added:?}");
    let again = raw("ADD", &conf);
    assert_eq!(again.status.code(), Some(1));
    let error: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(error["code"], 102);
    assert!(again.stderr.is_empty(), "{again:?}");
}

#[test]
fn t10_an_error_has_the_version_of_the_configuration_whatever_is_wrong_with_it() {
    let node = Node::new();
    for (changes, code, version) in [
        (json!({"cniVersion": "0.4.0", "name": "a/b"}), 7, "0.4.0"),
        (json!({"cniVersion": "0.4.0", "ipam": null}), 7, "0.4.0"),
        (json!({"cniVersion": "9.9.9"}), 1, "1.1.0"),
        (json!({"cniVersion": 7}), 7, "1.1.0"),
    ] {
        let answer = node.add("c1", &Pod::new(), &node.conf(changes));
        let told = (&answer.json["cniVersion"], &answer.json["code"]);
        assert_eq!(told, (&json!(version), &json!(code)));
    }
}

#[test]
fn t11_commands_but_add_and_version_say_nothing_when_they_succeed() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    let added = node.add("c1", &pod, &conf).expect_ok();
    let mut conf = node.with_prev(&conf, &added);
    conf["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    for command in ["CHECK", "STATUS", "GC", "DEL"] {
        let mut process = node.command(&[], command, "c1");
        let output = run_raw(process.env("CNI_NETNS", pod.path()), &conf);
        assert!(output.status.success(), "{command}: {output:?}");
        assert!(output.stdout.is_empty(), "{command}: {output:?}");
    }
}

#[test]
fn t14_what_cannot_be_read_is_5_and_what_cannot_be_decoded_is_6() {
    let node = Node::new();
    let code = |input: Stdio| {
        let mut process = node.command(&[], "STATUS", "");
        let output = process.stdin(input).output().unwrap();
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(!answer["msg"].as_str().unwrap().is_empty());
        (output.status.code(), answer["code"].as_u64())
    };
    // Reading a directory is EISDIR.
    assert_eq!(code(File::open("/").unwrap().into()), (Some(1), Some(5)));
    let text = node.data.path().join("text");
    for broken in [
        "",
        "{",
        "[]",
        "7",
        "\u{feff}{}",
        "{\"cniVersion\": \"1.1.0\",}",
    ] {
        std::fs::write(&text, broken).unwrap();
        let input = File::open(&text).unwrap();
        assert_eq!(code(input.into()), (Some(1), Some(6)), "{broken:?}");
    }
}

#[test]
fn t15_a_command_needs_a_version_that_has_it() {
    let (node, pod) = (Node::new(), Pod::new());
    for (command, too_old, old_enough) in [
        ("CHECK", "0.3.1", "0.4.0"),
        ("GC", "1.0.0", "1.1.0"),
        ("STATUS", "1.0.0", "1.1.0"),
    ] {
        let conf = node.conf(json!({"cniVersion": old_enough}));
        let added = node.add("c1", &pod, &conf).expect_ok();
        let mut conf = node.with_prev(&conf, &added);
        conf["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
        let told = |conf: &Value| {
            let mut process = node.command(&[], command, "c1");
            run(process.env("CNI_NETNS", pod.path()), conf)
        };
        told(&conf).expect_ok();
        conf["cniVersion"] = too_old.into();
        let (code, text) = told(&conf).expect_error();
        let names = text.contains(too_old) && text.contains(command) && text.contains(old_enough);
        assert!(code == 1 && names, "{code} {text}");
        node.del("c1", &conf).expect_ok();
    }
}

#[test]
fn t23_t27_a_delegate_that_does_not_read_or_answers_nonsense_is_told_of_every_end() {
    let (node, pod) = (Node::new(), Pod::new());
    let (dir, log) = (node.data.path().join("bin"), node.data.path().join("told"));
    let note = format!("echo $CNI_COMMAND >> {}", log.display());
    let told = || std::mem::take(&mut std::fs::read_to_string(&log).unwrap());
    let conf = node.conf(json!({"ipam": {"type": "their-ipam"}}));
    // More than a pipe holds.
    let mut long = conf.clone();
    long["args"] = json!({"cni": {"labels": "x".repeat(200_000)}});
    let call = |command: &str, container: &str, conf: &Value| {
        let mut process = node.command(&[], command, container);
        run(
            process.env("CNI_PATH", &dir).env("CNI_NETNS", pod.path()),
            conf,
        )
    };
    ipam_plugin(
        &dir,
        &format!("exec < /dev/null\n{note}\n{}", answer("10.7.0.9")),
    );
    for conf in [&conf, &long] {
        call("ADD", "c1", conf).expect_ok();
        call("DEL", "c1", conf).expect_ok();
    }
    assert_eq!(told(), "ADD\nDEL\nADD\nDEL\n");

    for nonsense in [
        "echo no JSON",
        "echo '{\"ips\": 7}'",
        "exit 3",
        "echo '{\"code\": 0}'; exit 1",
    ] {
        std::fs::write(&log, "").unwrap();
        let script =
            format!("cat > /dev/null\n{note}\n[ $CNI_COMMAND != ADD ] && exit 0\n{nonsense}");
        ipam_plugin(&dir, &script);
        let (code, text) = call("ADD", "c1", &conf).expect_error();
        assert!(code != 0 && !text.is_empty(), "{nonsense}: {code} {text}");
        assert_eq!(told(), "ADD\nDEL\n", "{nonsense}");
        node.assert_clean(nonsense);
    }
    // Also of an attachment whose id is too long for an alias, and which therefore never was.
    std::fs::write(&log, "").unwrap();
    call("DEL", &"c".repeat(300), &conf).expect_ok();
    assert_eq!(told(), "DEL\n");
}

#[test]
fn t24_t27_t30_del_and_gc_without_the_delegate_free_all_but_its_addresses() {
    let node = Node::new();
    let dir = node.data.path().join("bin");
    ipam_plugin(&dir, &answer("10.7.0.9"));
    let conf = node.conf(json!({"ipam": {"type": "their-ipam"}, "ipMasq": true}));
    for (command, gone, expected) in [
        ("DEL", "their-ipam", 4),
        ("GC", "their-ipam", 4),
        ("DEL", "a/b", 7),
    ] {
        let pod = Pod::new();
        let mut add = node.command(&[], "ADD", "c1");
        add.env("CNI_PATH", &dir).env("CNI_NETNS", pod.path());
        run(&mut add, &conf).expect_ok();
        assert_eq!(node.pod_links().len(), 1);
        assert!(!node.filtered().is_empty());
        let mut conf = conf.clone();
        conf["cni.dev/valid-attachments"] = json!([]);
        conf["ipam"]["type"] = gone.into();
        let told = run(&mut node.command(&[], command, "c1"), &conf);
        let (code, text) = told.expect_error();
        assert!(code == expected && text.contains(gone), "{code} {text}");
        node.assert_clean(command);
    }
}

/// Where another plugin made the link, its removal comes first; all else does not wait for it.
#[test]
fn t24_del_frees_what_it_can_although_an_adopted_link_cannot_be_found() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({"ipMasq": true}));
    node.add("c1", &pod, &conf).expect_ok();
    node.ns.ip(&format!("link del {}", node.pod_links()[0]));
    let record = node.data.path().join("net/attachments/c1:eth0");
    std::fs::write(node.data.path().join("net/adopted"), "").unwrap();
    std::fs::remove_file(&record).unwrap();
    std::fs::create_dir(&record).unwrap();
    let del = || {
        let mut process = node.command(&[], "DEL", "c1");
        run(process.env("CNI_NETNS", pod.path()), &conf)
    };
    assert!(!node.filtered().is_empty());
    let (code, text) = del().expect_error();
    assert!(code == 104 && text.contains("c1:eth0"), "{code} {text}");
    assert_eq!(node.filtered(), [""; 0]);
    assert_eq!(node.addresses().len(), 2, "kept until the link is gone");
    std::fs::remove_dir(&record).unwrap();
    del().expect_ok();
    node.assert_clean("DEL again");
}

#[test]
fn t25_t26_del_fails_for_nothing_that_a_retry_does_not_mend() {
    let node = Node::new();
    let conf = node.conf(json!({"ipMasq": true}));
    // A plugin of the chain that fails keeps those before it from being called.
    for wrong in [
        json!({"prevResult": 7}),
        json!({"prevResult": {"ips": [{"address": "no address"}]}}),
        json!({"bridge": "a/b", "mtu": "large", "vlan": [1]}),
        json!({"runtimeConfig": {"mac": "no MAC", "ips": 7}, "args": 7}),
        json!({"cniVersion": "0.1.0"}),
    ] {
        let pod = Pod::new();
        node.add("c1", &pod, &conf).expect_ok();
        let mut broken = conf.clone();
        let changes = wrong.as_object().unwrap().clone();
        broken.as_object_mut().unwrap().extend(changes);
        let mut process = node.command(&[], "DEL", "c1");
        process
            .env("CNI_ARGS", "no pair")
            .env("CNI_NETNS", "/run/netns/gone");
        run(&mut process, &broken).expect_ok();
        node.assert_clean(&wrong.to_string());
        assert_eq!(node.masqueraded(), Vec::<String>::new());
    }
}

#[test]
fn t26_a_damaged_address_file_keeps_nothing_of_its_attachment() {
    let node = Node::new();
    let conf = node.conf(json!({"ipMasq": true}));
    let gc = |conf: &Value| {
        let mut conf = conf.clone();
        conf["cni.dev/valid-attachments"] = json!([]);
        run(&mut node.command(&[], "GC", ""), &conf).expect_ok();
    };
    // With its record DEL knows whose it was; without it, GC that it is nobody's.
    for with_record in [true, false] {
        node.add("c1", &Pod::new(), &conf).expect_ok();
        assert_eq!(node.masqueraded().len(), 2);
        for name in node.addresses() {
            std::fs::write(node.data.path().join("net").join(name), "").unwrap();
        }
        if with_record {
            node.del("c1", &conf).expect_ok();
        } else {
            let record = node.data.path().join("net/attachments/c1:eth0");
            std::fs::remove_file(record).unwrap();
            gc(&conf);
        }
        node.assert_clean("damage");
        assert_eq!(node.masqueraded(), Vec::<String>::new(), "{with_record}");
    }
}

#[test]
fn t30_gc_is_forwarded_also_after_an_error_of_its_own() {
    let node = Node::new();
    let (dir, log) = (node.data.path().join("bin"), node.data.path().join("told"));
    ipam_plugin(
        &dir,
        &format!("cat > /dev/null\necho $CNI_COMMAND >> {}", log.display()),
    );
    let conf = node.conf(json!({
        "ipam": {"type": "their-ipam"}, "cni.dev/valid-attachments": [],
    }));
    // The kernel has no netlink socket for it.
    let inject = "--inject=socket:error=EMFILE";
    let strace = [
        "strace",
        "-qq",
        "--output=/dev/null",
        "--trace=socket",
        inject,
    ];
    let mut process = node.command(&strace.map(str::to_owned), "GC", "");
    let (code, text) = run(process.env("CNI_PATH", &dir), &conf).expect_error();
    assert!(code == 11 && text.contains("EMFILE"), "{code} {text}");
    assert_eq!(std::fs::read_to_string(log).unwrap(), "GC\n");
}

/// The reference library runs DEL itself, from its cache, for what is not valid, and then GC for configurations that have it.
#[test]
fn t31_gc_after_the_runtime_s_own_dels_finds_nothing_and_spares_the_valid() {
    let node = Node::new();
    let conf = node.conf(json!({}));
    let pods: Vec<_> = (0..2).map(|_| Pod::new()).collect();
    let kept = node.add("kept", &pods[0], &conf).expect_ok();
    let lost = node.add("lost", &pods[1], &conf).expect_ok();
    // From the cache: the previous result, no namespace, and the version of then.
    let cached = node.with_prev(&node.conf(json!({"cniVersion": "1.0.0"})), &lost);
    node.del("lost", &cached).expect_ok();
    let mut valid = conf.clone();
    let list = json!([{"containerID": "kept", "ifname": "eth0"}]);
    valid["cni.dev/valid-attachments"] = list.clone();
    valid["cni.dev/attachments"] = list;
    for _ in 0..2 {
        run(&mut node.command(&[], "GC", ""), &valid).expect_ok();
        node.check("kept", &pods[0], &node.with_prev(&conf, &kept))
            .expect_ok();
        assert_eq!(node.records(), ["kept:eth0"]);
    }
    // The legacy key alone is no list.
    valid
        .as_object_mut()
        .unwrap()
        .remove("cni.dev/valid-attachments");
    let (code, _) = run(&mut node.command(&[], "GC", ""), &valid).expect_error();
    assert_eq!((code, node.records().len()), (7, 1));
}

/// A runtime picks from `cniVersions` the highest that VERSION lists, and puts it into each plugin's configuration.
#[test]
fn t33_each_version_that_version_lists_is_served_from_add_to_del() {
    let (node, pod) = (Node::new(), Pod::new());
    let listed = run(&mut node.command(&[], "VERSION", ""), &json!({})).expect_ok();
    let listed = listed.json["supportedVersions"].as_array().unwrap().clone();
    assert_eq!(listed.len(), 7);
    for version in listed {
        let conf = node.conf(json!({"cniVersion": version}));
        let added = node.add("c1", &pod, &conf).expect_ok();
        assert_eq!(added.json["cniVersion"], version);
        let conf = node.with_prev(&conf, &added);
        if version.as_str().unwrap() >= "0.4.0" {
            node.check("c1", &pod, &conf).expect_ok();
        }
        node.del("c1", &conf).expect_ok();
        node.assert_clean(version.as_str().unwrap());
    }
}

#[test]
fn t34_what_a_runtime_derives_is_taken_and_what_it_left_in_is_no_matter() {
    let (node, pod) = (Node::new(), Pod::new());
    // Older runtimes leave `capabilities` in; a list's own keys do not belong here and are somebody else's.
    let conf = node.conf(json!({
        "capabilities": {"mac": true, "ips": true, "theirs": true},
        "runtimeConfig": {"mac": "0a:00:00:00:00:07", "theirs": {"x": 1}, "cgroupPath": "/kubepods"},
        "args": {"cni": {"labels": [{"key": "a", "value": "b"}]}},
        "disableCheck": "true", "disableGC": true, "cniVersions": ["1.0.0"], "cni.dev/theirs": [7],
    }));
    let added = node.add("c1", &pod, &conf).expect_ok();
    assert_eq!(pod.ip("link show eth0")[0]["address"], "0a:00:00:00:00:07");
    assert_eq!(added.json["cniVersion"], "1.1.0");
    node.check("c1", &pod, &node.with_prev(&conf, &added))
        .expect_ok();
    // A capability that was not asked for is not in `runtimeConfig`; what is listed asks for nothing itself.
    let listed = node.conf(json!({"capabilities": {"mac": true}}));
    let other = Pod::new();
    node.add("c2", &other, &listed).expect_ok();
    assert_eq!(
        other.ip("link show eth0")[0]["address"],
        "0a:58:0a:f4:01:03"
    );
}
