//! Services as kube-proxy makes them, in both of its modes, over the bridge of pods that the real plugin attached.
//!
//! The rules are kube-proxy's own, of one Service: those of its mode iptables by the real `iptables-nft`, those of its mode
//! nftables by the real `nft`.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::machine::{Agent, Machine, THREE_NODES, all_bridges_call_iptables};
use crate::traffic::{Place, nft, seen_as, strict_reverse_path};

/// The Service, its pod on this node and its port; and another whose pod is on node 2.
const NEAR: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const FAR: [&str; 2] = ["10.96.0.20", "fd00:96::20"];
const WEB: [&str; 2] = ["10.0.1.2", "fd00:10:1::2"];
const CLIENT: [&str; 2] = ["10.0.1.3", "fd00:10:1::3"];
const POD2: [&str; 2] = ["10.0.2.2", "fd00:10:2::2"];
const GATEWAY: [&str; 2] = ["10.0.1.1", "fd00:10:1::1"];
const CLUSTER: [&str; 2] = ["10.0.0.0/16", "fd00:10::/32"];

fn restore(program: &str, rules: &str) {
    let mut child = Command::new(program)
        .arg("--noflush")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} of iptables is installed: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(rules.as_bytes()).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success(), "{program}:\n{rules}");
}

/// As kube-proxy's mode iptables.
fn iptables_mode() {
    for family in [0, 1] {
        let mut rules = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n\
            -A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\n\
            -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
            -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
            -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
            -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n"
            .to_owned();
        for (name, service, pod) in [
            ("NEAR", NEAR[family], WEB[family]),
            ("FAR", FAR[family], POD2[family]),
        ] {
            let cluster = CLUSTER[family];
            let to = SocketAddr::new(pod.parse().unwrap(), 8080);
            rules += &format!(
                ":KUBE-SVC-{name} - [0:0]\n:KUBE-SEP-{name} - [0:0]\n\
                 -A KUBE-SERVICES -d {service} -p tcp -m tcp --dport 80 -j KUBE-SVC-{name}\n\
                 -A KUBE-SVC-{name} ! -s {cluster} -d {service} -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ\n\
                 -A KUBE-SVC-{name} -j KUBE-SEP-{name}\n\
                 -A KUBE-SEP-{name} -s {pod} -j KUBE-MARK-MASQ\n\
                 -A KUBE-SEP-{name} -p tcp -m tcp -j DNAT --to-destination {to}\n"
            );
        }
        rules += "COMMIT\n";
        let program = ["iptables-nft-restore", "ip6tables-nft-restore"][family];
        restore(program, &rules);
    }
}

/// As kube-proxy's mode nftables.
fn nftables_mode() {
    for (family, table) in ["ip", "ip6"].into_iter().enumerate() {
        let (near, far, web, pod2) = (NEAR[family], FAR[family], WEB[family], POD2[family]);
        let cluster = CLUSTER[family];
        let to = |pod: &str| SocketAddr::new(pod.parse().unwrap(), 8080);
        let (to_web, to_pod2) = (to(web), to(pod2));
        nft(&format!(
            "add table {table} kube-proxy; \
             add chain {table} kube-proxy mark-for-masquerade; \
             add rule {table} kube-proxy mark-for-masquerade mark set mark or 0x4000; \
             add chain {table} kube-proxy endpoint-near; \
             add rule {table} kube-proxy endpoint-near {table} saddr {web} jump mark-for-masquerade; \
             add rule {table} kube-proxy endpoint-near meta l4proto tcp dnat to {to_web}; \
             add chain {table} kube-proxy endpoint-far; \
             add rule {table} kube-proxy endpoint-far {table} saddr {pod2} jump mark-for-masquerade; \
             add rule {table} kube-proxy endpoint-far meta l4proto tcp dnat to {to_pod2}; \
             add chain {table} kube-proxy services; \
             add rule {table} kube-proxy services {table} saddr != {cluster} jump mark-for-masquerade; \
             add rule {table} kube-proxy services {table} daddr {near} tcp dport 80 goto endpoint-near; \
             add rule {table} kube-proxy services {table} daddr {far} tcp dport 80 goto endpoint-far; \
             add chain {table} kube-proxy nat-prerouting {{ type nat hook prerouting priority -100; }}; \
             add rule {table} kube-proxy nat-prerouting {table} daddr {{ {near}, {far} }} jump services; \
             add chain {table} kube-proxy nat-output {{ type nat hook output priority -100; }}; \
             add rule {table} kube-proxy nat-output {table} daddr {{ {near}, {far} }} jump services; \
             add chain {table} kube-proxy nat-postrouting {{ type nat hook postrouting priority 100; }}; \
             add rule {table} kube-proxy nat-postrouting mark and 0x4000 == 0 return; \
             add rule {table} kube-proxy nat-postrouting mark set mark xor 0x4000; \
             add rule {table} kube-proxy nat-postrouting masquerade fully-random"
        ));
    }
}

fn ready<'m>(machine: &'m Machine, more: &str) -> Agent<'m> {
    machine.configure(more);
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("plan").0 == 0);
    agent
}

/// Whom the server sees when `from` calls the Service.
fn seen(from: &Place, service: &str, server: &TcpListener) -> String {
    let address = SocketAddr::new(service.parse().unwrap(), 80);
    seen_as(from.connect_to(address), service, server).1
}

/// Also where the kernel has not loaded `br_netfilter`: there the node routes between its pods.
#[test]
fn a_service_leads_from_pod_to_pod_of_one_node_and_to_itself_and_elsewhere_keeps_the_pod_s_address()
{
    for (mode, can_filter) in [
        (iptables_mode as fn(), true),
        (iptables_mode, false),
        (nftables_mode, true),
        (nftables_mode, false),
    ] {
        let machine = Machine::new();
        all_bridges_call_iptables(false);
        strict_reverse_path();
        let node2 = machine.node2();
        let far = node2.server();
        let absent = match can_filter {
            true => String::new(),
            false => machine.without_br_netfilter(),
        };
        let _agent = ready(&machine, &format!("bridge_netfilter = true\n{absent}"));
        let web = machine.pod("web", &json!({}));
        let client = machine.pod("client", &json!({}));
        let server = web.server();
        mode();
        for family in [0, 1] {
            assert_eq!(seen(&client, NEAR[family], &server), CLIENT[family]);
            assert_eq!(seen(&web, NEAR[family], &server), GATEWAY[family], "itself");
            assert_eq!(seen(&client, FAR[family], &far), CLIENT[family]);
            // And what is no Service goes on.
            assert_eq!(client.seen_as(WEB[family], &server), CLIENT[family]);
        }
        machine.until("still right", || machine.run("plan").0 == 0);
    }
}

/// What the key is for: the answer goes from pod to pod over the bridge, past the filter that would translate it back.
#[test]
fn without_the_filters_of_ip_on_the_bridge_a_service_on_the_same_node_does_not_answer() {
    let machine = Machine::new();
    all_bridges_call_iptables(false);
    let agent = ready(&machine, "bridge_netfilter = false\n");
    let web = machine.pod("web", &json!({}));
    let client = machine.pod("client", &json!({}));
    let server = web.server();
    nftables_mode();
    let address = SocketAddr::new(NEAR[0].parse().unwrap(), 80);
    assert!(client.connect_to(address).is_err());
    // Itself is masqueraded, so that the answer comes back through the node.
    assert_eq!(seen(&web, NEAR[0], &server), GATEWAY[0]);
    assert_eq!(agent.stop(), Some(0));
    let agent = ready(&machine, "bridge_netfilter = true\n");
    assert_eq!(seen(&client, NEAR[0], &server), CLIENT[0]);
    // The same machine-wide, which is somebody else's affair.
    assert_eq!(agent.stop(), Some(0));
    let _agent = ready(&machine, "bridge_netfilter = false\n");
    all_bridges_call_iptables(true);
    assert_eq!(seen(&client, NEAR[0], &server), CLIENT[0]);
}
