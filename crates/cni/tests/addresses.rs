//! Where addresses come from, on the real kernel: directories of before and of host-local, and IPAM plugins of somebody else's.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use harness::{Node, Pod, run};
use serde_json::{Value, json};

#[test]
fn a_host_local_directory_is_adopted_as_it_stands() {
    let (node, pod) = (Node::new(), Pod::new());
    let dir = node.data.path().join("net");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("10.244.1.5"), "before\r\neth0").unwrap();
    std::fs::write(dir.join("last_reserved_ip.0"), "10.244.1.5").unwrap();
    std::fs::write(dir.join("lock"), "").unwrap();
    let conf = node.conf(json!({}));
    assert_eq!(node.add("c1", &pod, &conf).expect_ok().ip(4), "10.244.1.6");
    let text = std::fs::read_to_string(dir.join("10.244.1.6")).unwrap();
    assert_eq!(text, "c1\r\neth0", "and host-local could take it back");
    node.del("before", &conf).expect_ok();
    assert!(!dir.join("10.244.1.5").exists());
}

/// The path of a pod's namespace may lead to another one's by the time of its DEL (T26).
#[test]
fn t26_del_of_a_pod_of_another_plugin_removes_the_veth_that_has_its_address_and_no_other() {
    let node = Node::new();
    let dir = node.data.path().join("net");
    let conf = node.conf(json!({}));
    for (has, goes) in [("10.244.1.5", true), ("10.244.1.6", false)] {
        let pod = Pod::new();
        let path = pod.path();
        node.ns.ip(&format!(
            "link add theirs type veth peer name eth0 netns {}",
            path.display()
        ));
        pod.ip(&format!("addr add {has}/24 dev eth0"));
        let _ = std::fs::create_dir(&dir);
        std::fs::write(dir.join("10.244.1.5"), "before\r\neth0").unwrap();
        std::fs::write(dir.join("last_reserved_ip.0"), "10.244.1.5").unwrap();
        let mut del = node.command(&[], "DEL", "before");
        run(del.env("CNI_NETNS", path), &conf).expect_ok();
        assert!(!dir.join("10.244.1.5").exists(), "it is free");
        let left = if goes { vec![] } else { vec!["theirs"] };
        assert_eq!(node.pod_links(), left, "{has}");
    }
}

#[test]
fn addresses_of_another_boot_are_void() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    node.add("before", &pod, &conf).expect_ok();
    node.ns.ip(&format!("link del {}", node.pod_links()[0]));
    std::fs::write(
        node.data.path().join("net/boot_id"),
        "00000000-0000-0000-0000-000000000000\n",
    )
    .unwrap();
    node.add("after", &Pod::new(), &conf).expect_ok();
    assert_eq!(node.records(), ["after:eth0"]);
}

/// A directory with an IPAM plugin of somebody else's, which writes down what it was told.
fn foreign_ipam(node: &Node) -> (std::path::PathBuf, std::path::PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let (dir, log) = (
        node.data.path().join("plugins"),
        node.data.path().join("told"),
    );
    std::fs::create_dir(&dir).unwrap();
    let script = format!(
        "#!/bin/sh\ncat > {dir}/stdin\necho \"$CNI_COMMAND $CNI_CONTAINERID\" >> {log}\n\
         [ -e {dir}/fail-$CNI_COMMAND ] && {{ echo '{{\"code\": 77, \"msg\": \"no\", \"details\": \"luck\"}}'; exit 1; }}\n\
         [ $CNI_COMMAND = ADD ] && echo '{{\"cniVersion\": \"1.1.0\", \"ips\": [{{\"address\": \"10.7.0.9/24\"}}], \
         \"routes\": [{{\"dst\": \"198.51.100.0/24\"}}], \"dns\": {{\"domain\": \"a\"}}}}'\nexit 0\n",
        dir = dir.display(),
        log = log.display(),
    );
    std::fs::write(dir.join("their-ipam"), script).unwrap();
    std::fs::set_permissions(dir.join("their-ipam"), PermissionsExt::from_mode(0o755)).unwrap();
    (dir, log)
}

#[test]
fn t23_t27_t28_t30_t32_another_ipam_plugin_is_told_every_command() {
    let (node, pod) = (Node::new(), Pod::new());
    let (dir, log) = foreign_ipam(&node);
    let conf = node.conf(json!({"ipam": {"type": "their-ipam", "mine": 1}}));
    let told = |command: &str, conf: &Value| {
        let mut process = node.command(&[], command, "c1");
        run(
            process
                .env("CNI_NETNS", pod.path())
                .env("CNI_PATH", format!("/nowhere:{}", dir.display())),
            conf,
        )
    };
    let added = told("ADD", &conf).expect_ok();
    assert_eq!(
        added.json["ips"],
        json!([{"address": "10.7.0.9/24", "gateway": "10.7.0.1", "interface": 2}])
    );
    assert_eq!(added.json["dns"], json!({"domain": "a"}));
    assert_eq!(
        pod.ip("route show 198.51.100.0/24")[0]["gateway"],
        "10.7.0.1"
    );
    let stdin: Value = serde_json::from_slice(&std::fs::read(dir.join("stdin")).unwrap()).unwrap();
    assert_eq!(stdin, conf, "the whole configuration");
    told("CHECK", &node.with_prev(&conf, &added)).expect_ok();
    told("STATUS", &conf).expect_ok();
    let mut valid = conf.clone();
    valid["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    told("GC", &valid).expect_ok();
    told("DEL", &conf).expect_ok();
    let lines = std::fs::read_to_string(&log).unwrap();
    assert_eq!(lines, "ADD c1\nCHECK c1\nSTATUS c1\nGC c1\nDEL c1\n");
    node.assert_clean("after DEL");

    for command in ["ADD", "DEL", "CHECK", "STATUS", "GC"] {
        std::fs::write(dir.join(format!("fail-{command}")), "").unwrap();
    }
    std::fs::write(&log, "").unwrap();
    for command in ["STATUS", "ADD"] {
        let (code, text) = told(command, &conf).expect_error();
        assert!(
            code == 77 && text.contains("IPAM plugin their-ipam: no: luck"),
            "{code} {text}"
        );
    }
    assert_eq!(
        std::fs::read_to_string(&log).unwrap(),
        "STATUS c1\nADD c1\nDEL c1\n",
        "T23: DEL after a failed ADD"
    );
    let nobody = node.conf(json!({"ipam": {"type": "nobody-s-ipam"}}));
    let (code, text) = told("ADD", &nobody).expect_error();
    assert!(
        code == 4 && text.contains("nobody-s-ipam") && text.contains("CNI_PATH"),
        "{code} {text}"
    );
}

#[test]
fn masquerading_goes_with_gc_and_with_addresses_of_another_ipam_plugin() {
    let node = Node::new();
    let conf = node.conf(json!({"ipMasq": true}));
    let pods: Vec<_> = (0..3).map(|_| Pod::new()).collect();
    node.add("lost", &pods[0], &conf).expect_ok();
    node.add("kept", &pods[1], &conf).expect_ok();
    let mut valid = conf.clone();
    valid["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
    run(&mut node.command(&[], "GC", ""), &valid).expect_ok();
    assert_eq!(node.masqueraded(), ["10.244.1.3", "fd00:10:244:1::3"]);
    node.del("kept", &conf).expect_ok();

    let (dir, _) = foreign_ipam(&node);
    let conf = node.conf(json!({"ipMasq": true, "ipam": {"type": "their-ipam"}}));
    for (command, left) in [("ADD", 1), ("DEL", 0)] {
        let mut process = node.command(&[], command, "c1");
        run(
            process
                .env("CNI_NETNS", pods[2].path())
                .env("CNI_PATH", &dir),
            &conf,
        )
        .expect_ok();
        assert_eq!(node.masqueraded().len(), left, "{command}");
    }
}
