//! The facts on a real kernel, and in directories of the tests' own.

use podspan_kernel::testing::TestNs;

use super::*;

fn nft(words: &str) {
    let status = Command::new("nft").arg(words).status();
    assert!(status.unwrap().success(), "nft {words}");
}

#[test]
fn the_rules_that_all_forwarded_packets_meet_are_gathered_through_jumps() {
    let _ns = TestNs::new();
    nft(
        "add table inet fire; add chain inet fire f { type filter hook forward priority 0; }; \
         add chain inet fire every; add chain inet fire some; add chain inet fire deep; \
         add rule inet fire f oifname \"a\" jump some; add rule inet fire f jump every; \
         add rule inet fire some drop; add rule inet fire every jump deep; add rule inet fire every return; \
         add rule inet fire every drop; add rule inet fire deep iifname \"podspan0\" accept; add rule inet fire deep reject; \
         add table ip others; add chain ip others f { type filter hook forward priority 0; policy drop; }; \
         add chain ip others pre { type filter hook prerouting priority 0; }",
    );
    let mut facts = Facts {
        bridge: Some("podspan0".parse().unwrap()),
        ..Facts::default()
    };
    facts.read_filter(&mut Nft::open().unwrap());
    let names: Vec<_> = facts
        .forward
        .iter()
        .map(|f| f.chain.table.as_str())
        .collect();
    assert_eq!(names, ["others", "fire"]);
    let [others, fire] = facts.forward.as_slice() else {
        panic!("two chains");
    };
    assert!(others.rules.is_empty() && !others.names_bridge);
    // The jump for some, the one for all, that from there, its two rules; behind `return` nothing.
    let told: Vec<_> = fire
        .rules
        .iter()
        .map(|rule| (rule.refuses, rule.is_for_all))
        .collect();
    let expected = [
        (false, false),
        (false, true),
        (false, true),
        (false, false),
        (true, true),
    ];
    assert_eq!(told, expected);
    assert!(fire.names_bridge);
}

#[test]
fn addresses_are_joined_with_the_links_of_their_owners() {
    let ns = TestNs::new();
    ns.ip("link add pod1 type veth peer name x1");
    ns.ip("link set pod1 alias podspan:podspan/alive/eth0");
    let directory = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("10.244.1.2", "alive\r\neth0"),
        ("10.244.1.3", "gone\r\neth0"),
        ("10.244.1.4", ""),
        ("lock", ""),
        ("boot_id", "x"),
    ] {
        std::fs::write(directory.path().join(file), text).unwrap();
    }
    let mut facts = Facts {
        links: Netlink::open().unwrap().list_links().unwrap(),
        ..Facts::default()
    };
    facts.read_addresses(directory.path());
    let orphans: Vec<_> = facts
        .orphans
        .iter()
        .map(|(ip, id)| format!("{ip} {}", id.container))
        .collect();
    assert_eq!(orphans, ["10.244.1.3 gone"]);
    assert_eq!(facts.damaged, [directory.path().join("10.244.1.4")]);
    facts.read_addresses(Path::new("/nowhere"));
}

#[test]
fn network_manager_is_told_by_any_of_its_files() {
    let root = tempfile::tempdir().unwrap();
    let bridge = "podspan0".parse().unwrap();
    let look = || NetworkManager::look(root.path(), &bridge);
    assert!(!look().runs && !look().is_told);
    std::fs::create_dir_all(root.path().join("run/NetworkManager")).unwrap();
    assert!(look().runs && !look().is_told);
    let directory = root.path().join("usr/lib/NetworkManager/conf.d");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(
        directory.join("a.conf"),
        "[keyfile]\n# podspan0\nunmanaged-devices=interface-name:docker0\n",
    )
    .unwrap();
    assert!(!look().is_told);
    std::fs::write(
        directory.join("b.conf"),
        "[keyfile]\nunmanaged-devices=interface-name:docker0;interface-name:podspan*\n",
    )
    .unwrap();
    assert!(look().is_told);
}

#[test]
fn conflists_are_read_whatever_is_in_them() {
    let directory = tempfile::tempdir().unwrap();
    for (file, text) in [
        (
            "10-a.conflist",
            r#"{"plugins": [{"type": "flannel"}, {"type": "portmap"}]}"#,
        ),
        ("20-b.conf", r#"{"type": "bridge"}"#),
        ("30-c.conflist", "nonsense"),
    ] {
        std::fs::write(directory.path().join(file), text).unwrap();
    }
    let types: Vec<_> = read_conflists(directory.path())
        .into_iter()
        .map(|(_, types)| types)
        .collect();
    assert_eq!(types, [vec!["flannel", "portmap"], vec!["bridge"], vec![]]);
    assert!(read_conflists(Path::new("/nowhere")).is_empty());
}

#[test]
fn a_plugin_that_is_something_else_is_told() {
    assert!(ask_version(Path::new("/bin/true")).is_err());
    assert!(ask_version(Path::new("/nowhere/podspan-cni")).is_err());
}
