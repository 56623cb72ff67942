//! `podspan doctor` on machines that are ill for real; what it says mends it, typed as it is printed.

use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::machine::{Agent, Machine, THREE_NODES, entry};
use crate::traffic::{nft, plugins};

struct Patient<'m> {
    machine: &'m Machine,
    plugins: PathBuf,
}

/// A node with an agent, a pod, and the plugin where a runtime would look for it.
fn admit(machine: &Machine) -> (Patient<'_>, Agent<'_>) {
    let data = machine.path("ipam");
    // There are no other nodes here to try the ways to.
    machine.configure(&format!(
        "probe = false\ndata_dir = \"{}\"\n",
        data.display()
    ));
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("plan").0 == 0);
    let patient = Patient {
        machine,
        plugins: plugins(),
    };
    (patient, agent)
}

impl Patient<'_> {
    /// The exit status, and all that is not as it should be: level, what, mend.
    fn examine(&self) -> (i32, Vec<(String, String, String)>) {
        let mut command = self.machine.podspan("doctor -o json --config");
        let output = command
            .arg(self.machine.path("agent.toml"))
            .env("CNI_PATH", &self.plugins)
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let text =
            |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let findings = report["findings"].as_array().unwrap().iter();
        let ill = findings.filter(|finding| finding["level"] != "right");
        let ill = ill.map(|finding| {
            let [level, what, mend] = ["level", "what", "mend"].map(|key| text(finding, key));
            (level, what, mend)
        });
        let ill: Vec<_> = ill.collect();
        let code = output.status.code().unwrap();
        assert_eq!(
            code,
            i32::from(ill.iter().any(|found| found.0 == "wrong")),
            "{ill:#?}"
        );
        (code, ill)
    }

    #[track_caller]
    fn is_healthy(&self) {
        self.machine
            .until("the agent has looked", || self.machine.run("plan").0 == 0);
        assert_eq!(self.examine(), (0, vec![]));
    }

    /// The one thing that it has, and what mends that.
    #[track_caller]
    fn has(&self, level: &str, what: &str) -> String {
        let (_, ill) = self.examine();
        let [(of_level, text, mend)] = ill.as_slice() else {
            panic!("not one finding: {ill:#?}");
        };
        assert!(
            of_level == level && text.contains(what),
            "{of_level}: {text}"
        );
        mend.clone()
    }

    /// Has that, and is well after what is printed was typed.
    #[track_caller]
    fn is_mended_of(&self, level: &str, what: &str) {
        let mend = self.has(level, what);
        let typed = Command::new("sh").args(["-ec", &mend]).status().unwrap();
        assert!(typed.success(), "{mend}");
        self.is_healthy();
    }
}

#[test]
fn a_healthy_node_has_nothing_with_pods_and_without() {
    let machine = Machine::new();
    let (patient, agent) = admit(&machine);
    patient.is_healthy();
    let pod = machine.pod("web", &json!({}));
    patient.is_healthy();
    // Without an agent the network is as right as it was.
    assert_eq!(agent.stop(), Some(0));
    patient.is_healthy();
    machine.ns.ip("route del 10.0.2.0/24");
    let mend = patient.has("wrong", "route 10.0.2.0/24 via 172.16.0.2");
    assert!(
        mend.starts_with("ip route add 10.0.2.0/24 via 172.16.0.2"),
        "{mend}"
    );
    let (code, text) = machine.run("doctor");
    assert!(
        code == 1 && text.contains("to mend it: ip route add"),
        "{text}"
    );
    drop(pod);
}

#[test]
fn a_way_to_another_node_s_pods_is_tried_just_now() {
    let machine = Machine::new();
    let (patient, agent) = admit(&machine);
    let node2 = machine.node2();
    node2.ip("addr add 10.0.2.1/32 dev lo");
    node2.ip("addr add fd00:10:2::1/128 dev lo nodad");
    assert_eq!(agent.stop(), Some(0));
    machine.configure(&format!(
        "data_dir = \"{}\"\n",
        machine.path("ipam").display()
    ));
    machine.nodes(&[entry(1), entry(2)].concat());
    let _agent = machine.start("agent");
    machine.until_routes(&[THREE_NODES[0], THREE_NODES[2]]);
    // No agent runs there; that it refuses is an answer.
    patient.is_healthy();
    node2.ip("link set eth0 down");
    let (code, ill) = patient.examine();
    assert_eq!((code, ill.len()), (1, 2), "{ill:#?}");
    let (_, what, mend) = &ill[0];
    assert!(
        what.starts_with("peer node2 (10.0.2.1) does not answer on eth0"),
        "{what}"
    );
    assert!(mend.contains("ping 172.16.0.2"), "{mend}");
}

#[test]
fn drops_of_what_is_forwarded_are_found_and_mended() {
    let machine = Machine::new();
    let (patient, _agent) = admit(&machine);
    // What the agent outweighs by itself is no finding.
    nft(
        "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
    );
    patient.is_healthy();
    nft(
        "add table inet filter; add chain inet filter forward { type filter hook forward priority 0; policy drop; }",
    );
    patient.is_mended_of(
        "wrong",
        "chain inet filter forward drops what this machine forwards",
    );
    nft("delete table inet filter");
    nft(
        "add chain ip filter LAST; add rule ip filter LAST counter reject; insert rule ip filter FORWARD jump LAST",
    );
    patient.has("wrong", "chain ip filter FORWARD drops");
    nft("delete table ip filter");
    nft(
        "add table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }",
    );
    nft("add chain inet firewalld zones; add rule inet firewalld zones iifname \"eth9\" accept");
    nft(
        "add rule inet firewalld filter_FORWARD jump zones; add rule inet firewalld filter_FORWARD reject",
    );
    let mend = patient.has("wrong", "chain inet firewalld filter_FORWARD drops");
    let said =
        "firewall-cmd --permanent --zone=trusted --add-interface=podspan0 && firewall-cmd --reload";
    assert_eq!(mend, said);
    // What that makes of its rules.
    nft("add rule inet firewalld zones iifname \"podspan0\" accept");
    patient.is_healthy();
}

#[test]
fn what_another_network_left_is_found_and_mended() {
    let machine = Machine::new();
    let (patient, _agent) = admit(&machine);
    machine.ns.ip("link add cni0 type bridge");
    patient.is_mended_of("warning", "links of another pod network are here: cni0");
    nft("add table ip nat; add chain ip nat FLANNEL-POSTRTG");
    let mend = patient.has(
        "warning",
        "rules of another pod network are here: ip nat FLANNEL-POSTRTG",
    );
    assert!(
        mend.starts_with("iptables-save | grep -v FLANNEL- | iptables-restore"),
        "{mend}"
    );
    nft("delete table ip nat");
    std::fs::write(
        machine.path("net.d/05-flannel.conflist"),
        r#"{"plugins": [{"type": "bridge"}]}"#,
    )
    .unwrap();
    patient.is_mended_of("wrong", "a runtime takes it instead of ours");
    std::fs::write(
        machine.path("net.d/20-flannel.conflist"),
        r#"{"plugins": [{"type": "flannel"}]}"#,
    )
    .unwrap();
    let mend = patient.has(
        "warning",
        "is the configuration of another pod network (flannel)",
    );
    assert!(mend.starts_with("mv "), "{mend}");
}

#[test]
fn services_without_the_filters_of_ip_on_the_bridge_are_found() {
    let machine = Machine::new();
    let (patient, _agent) = admit(&machine);
    let key = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    std::fs::write(key, "0").unwrap();
    patient.is_healthy();
    nft("add table ip kube-proxy; add chain ip kube-proxy services");
    let mend = patient.has(
        "wrong",
        "what bridge podspan0 forwards does not pass their rules",
    );
    assert!(
        mend.starts_with("set bridge_netfilter = true in "),
        "{mend}"
    );
    std::fs::write(key, "1").unwrap();
    patient.is_healthy();
}

#[test]
fn a_strict_reverse_path_that_bites_is_found_and_mended() {
    let machine = Machine::new();
    let (patient, _agent) = admit(&machine);
    machine.ns.ip("link add eth1 type bridge");
    machine.ns.ip("addr add 172.17.0.1/16 dev eth1");
    machine.ns.ip("link set eth1 up");
    std::fs::write("/proc/sys/net/ipv4/conf/eth1/rp_filter", "1").unwrap();
    patient.is_healthy();
    // The others know this node by an address on another link than the one to them.
    let elsewhere = entry(1).replace("172.16.0.1", "172.17.0.1");
    machine.nodes(&[elsewhere, entry(2), entry(3)].concat());
    machine.until("followed", || {
        nft("list set inet podspan agent_inside4").contains("172.17.0.1")
    });
    patient.is_mended_of("wrong", "rp_filter of eth1 is strict");
}

#[test]
fn addresses_and_plugins_that_are_lost_are_found() {
    let machine = Machine::new();
    let (mut patient, _agent) = admit(&machine);
    let _pod = machine.pod("web", &json!({}));
    let veth = machine.ns.ip("link show master podspan0")[0]["ifname"].clone();
    machine
        .ns
        .ip(&format!("link del {}", veth.as_str().unwrap()));
    let mend = patient.has(
        "warning",
        "2 addresses belong to containers without a link: 10.0.1.2, fd00:10:1::2",
    );
    assert!(
        mend.starts_with("podspan del web /none --ifname eth0"),
        "{mend}"
    );
    machine.plugin("DEL", ("web", &crate::traffic::Place::new()), &json!({}));
    patient.is_healthy();
    std::fs::write(machine.path("ipam/podspan/10.0.1.9"), "").unwrap();
    patient.has("warning", "files of addresses name no owner: ");
    std::fs::remove_file(machine.path("ipam/podspan/10.0.1.9")).unwrap();
    patient.plugins = machine.path("nothing");
    let mend = patient.has("wrong", "cannot be run: it is not there");
    assert_eq!(
        mend,
        format!("podspan-cni install {}", machine.path("nothing").display())
    );
}
