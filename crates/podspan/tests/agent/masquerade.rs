//! Whose address who sees: outside of the cluster the node's, inside of it the pod's; with real packets.

use serde_json::json;

use crate::machine::{Agent, Machine, THREE_NODES};
use crate::traffic::{Place, is_one, nft, seen_as, strict_reverse_path};

const OUTSIDE: [&str; 2] = ["172.16.99.1", "fd00:172::99:1"];
/// Outside of the cluster, and told not to be masqueraded for.
const PARTNER: [&str; 2] = ["172.16.98.1", "fd00:172::98:1"];
const NODE: [&str; 2] = ["172.16.0.1", "fd00:172::1"];
const POD: [&str; 2] = ["10.0.1.2", "fd00:10:1::2"];
const NO_MASQUERADE: &str = "non_masquerade_cidrs = [\"172.16.98.0/24\", \"fd00:172::98:0/112\"]\n";

fn outside(machine: &Machine) -> Place {
    let [out4, out6] = OUTSIDE;
    let [partner4, partner6] = PARTNER;
    machine.neighbour(
        "to-outside",
        &[
            &format!("{out4}/16"),
            &format!("{out6}/64"),
            &format!("{partner4}/16"),
            &format!("{partner6}/64"),
        ],
    )
}

fn ready(machine: &Machine) -> Agent<'_> {
    let agent = machine.start("agent");
    machine.until_routes(&THREE_NODES);
    machine.until("right", || machine.run("plan").0 == 0);
    agent
}

#[test]
fn outside_sees_the_node_and_the_inside_of_the_cluster_sees_the_pod() {
    let machine = Machine::new();
    machine.configure(NO_MASQUERADE);
    strict_reverse_path();
    let (outside, node2) = (outside(&machine), machine.node2());
    let (far, near) = (outside.server(), node2.server());
    let agent = ready(&machine);
    let pod = machine.pod("web", &json!({}));
    let web = pod.server();
    let other = machine.pod("other", &json!({}));
    for family in [0, 1] {
        let seen = |ip: &str, server| pod.seen_as(ip, server);
        assert_eq!(seen(OUTSIDE[family], &far), NODE[family]);
        assert_eq!(seen(PARTNER[family], &far), POD[family]);
        let (pod2, address2) = (["10.0.2.2", "fd00:10:2::2"], ["172.16.0.2", "fd00:172::2"]);
        assert_eq!(seen(pod2[family], &near), POD[family], "another node's pod");
        assert_eq!(seen(address2[family], &near), POD[family], "another node");
        let others = ["10.0.1.3", "fd00:10:1::3"];
        assert_eq!(other.seen_as(POD[family], &web), others[family]);
        // Who comes from outside keeps its address, too.
        let seen = outside.seen_as(POD[family], &web);
        assert!(
            [OUTSIDE[family], PARTNER[family]].contains(&seen.as_str()),
            "{seen}"
        );
    }
    // What a pod sends to many at once keeps its address; nobody answers it.
    let text = nft("list set inet podspan agent_inside4");
    assert!(
        text.contains("224.0.0.0/4") && text.contains("255.255.255.255"),
        "{text}"
    );

    // The change of the setting is for new connections: those that are there keep what they have, as long as a rule of
    // anybody's translates on this node. With the last one the kernel stops to follow connections.
    nft(
        "add table inet foreign; add chain inet foreign c { type nat hook postrouting priority 100; }",
    );
    nft("add rule inet foreign c ip saddr 192.0.2.1 masquerade");
    let (kept, seen) = {
        let client = pod.connect(OUTSIDE[0]).unwrap();
        let (end, seen) = seen_as(client.try_clone(), OUTSIDE[0], &far);
        ((client, end), seen)
    };
    assert_eq!(seen, NODE[0]);
    assert_eq!(agent.stop(), Some(0));
    machine.configure("masquerade = false\n");
    assert!(
        machine
            .run("plan")
            .1
            .starts_with("nft 'delete chain inet podspan agent_masquerade;")
    );
    let agent = ready(&machine);
    assert!(is_one(&kept.0, &kept.1));
    for family in [0, 1] {
        assert_eq!(pod.seen_as(OUTSIDE[family], &far), POD[family]);
    }
    assert!(
        !nft("list ruleset").contains("agent_"),
        "{}",
        nft("list ruleset")
    );
    assert_eq!(agent.stop(), Some(0));
    machine.configure("");
    let _agent = ready(&machine);
    assert!(is_one(&kept.0, &kept.1));
    for family in [0, 1] {
        assert_eq!(pod.seen_as(OUTSIDE[family], &far), NODE[family]);
        assert_eq!(pod.seen_as(PARTNER[family], &far), NODE[family]);
    }
    machine.assert_foreign_things_are_there();
}

#[test]
fn a_node_that_comes_goes_or_changes_is_an_element() {
    let machine = Machine::new();
    let _agent = ready(&machine);
    let inside = || nft("list set inet podspan agent_inside4");
    assert!(inside().contains("10.0.3.0/24") && !inside().contains("10.0.4.0/24"));
    let chain = || nft("-a list chain inet podspan agent_masquerade");
    let before = chain();
    let three = std::fs::read_to_string(machine.path("nodes.toml")).unwrap();
    machine.nodes(&(three.clone() + &crate::machine::entry(4)));
    machine.until("node 4 is inside", || {
        inside().contains("10.0.4.0/24") && inside().contains("172.16.0.4")
    });
    machine.nodes(&three.replace("172.16.0.3", "172.16.0.33"));
    machine.until("node 3 has moved and node 4 has gone", || {
        let text = inside();
        text.contains("172.16.0.33") && !text.contains("172.16.0.3,") && !text.contains("10.0.4.0")
    });
    machine.until("right", || machine.run("plan").0 == 0);
    assert_eq!(chain(), before, "the rules stay, by their handles");
    // A mistyped entry takes nothing away.
    machine.nodes(&three.replace("172.16.0.3", "172.16.0.300"));
    machine.until("told", || machine.log().contains("172.16.0.300"));
    assert!(inside().contains("10.0.3.0/24"));
}

#[test]
fn what_somebody_takes_away_of_it_comes_back() {
    let machine = Machine::new();
    let outside = outside(&machine);
    let far = outside.server();
    let _agent = ready(&machine);
    let pod = machine.pod("web", &json!({}));
    nft(
        "add table inet foreign; add chain inet foreign c; add set inet podspan theirs { type mark; }",
    );
    for harm in [
        "flush chain inet podspan agent_masquerade",
        "delete chain inet podspan agent_masquerade",
        "flush set inet podspan agent_inside6",
        "delete element inet podspan agent_pods4 { 10.0.1.0/24 }",
        "delete table inet podspan",
        "flush ruleset",
    ] {
        nft(harm);
        let back = machine.until(harm, || machine.run("plan").0 == 0);
        println!("after `nft {harm}` it is back within {back:?}");
        assert_eq!(pod.seen_as(OUTSIDE[0], &far), NODE[0]);
        assert_eq!(pod.seen_as(OUTSIDE[1], &far), NODE[1]);
    }
}

/// The plugin lays its chains and sets in the same table.
#[test]
fn agent_and_plugin_leave_each_other_s_parts_alone() {
    let machine = Machine::new();
    let (outside, node2) = (outside(&machine), machine.node2());
    let (far, near) = (outside.server(), node2.server());
    let agent = ready(&machine);
    let wishes = json!({
        "ipMasq": true,
        "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}]},
    });
    let pod = Place::new();
    let right = |context: &str| {
        assert_eq!(machine.run("plan"), (0, String::new()), "{context}");
        let server = pod.server();
        let through = outside.connect_to("172.16.0.1:80".parse().unwrap());
        assert_eq!(
            seen_as(through, "172.16.0.1", &server).1,
            OUTSIDE[0],
            "{context}"
        );
        assert_eq!(pod.seen_as(OUTSIDE[0], &far), NODE[0], "{context}");
        // By the plugin, at the attachment's own wish: inside of the cluster, too.
        assert_eq!(pod.seen_as("10.0.2.2", &near), NODE[0], "{context}");
        machine.plugin("CHECK", ("web", &pod), &with_result(&wishes, &pod));
    };
    machine.plugin("ADD", ("web", &pod), &wishes);
    right("the plugin came second");
    // Somebody takes all away: the agent lays its part anew, and the plugin its own with the next attachment.
    nft("delete table inet podspan");
    machine.until("the agent's part is back", || machine.run("plan").0 == 0);
    machine.plugin("DEL", ("web", &pod), &wishes);
    machine.plugin("ADD", ("web", &pod), &wishes);
    right("the agent came first");
    assert_eq!(agent.stop(), Some(0));
    machine.configure("masquerade = false\n");
    let agent = ready(&machine);
    right("the agent took its part away");
    assert_eq!(agent.stop(), Some(0));
    machine.configure("");
    let _agent = ready(&machine);
    right("and laid it again");
    machine.plugin("DEL", ("web", &pod), &wishes);
    assert_eq!(machine.run("plan").0, 0);
}

/// As CHECK wants it: the result of the ADD, which `ip` tells as well.
fn with_result(wishes: &serde_json::Value, pod: &Place) -> serde_json::Value {
    let addresses = pod.ip("addr show eth0")[0]["addr_info"].clone();
    let global = addresses.as_array().unwrap().iter();
    let global = global.filter(|address| address["scope"] == "global");
    let ips = global.map(|address| {
        let text = |key: &str| address[key].to_string().trim_matches('"').to_owned();
        json!({"interface": 2, "address": format!("{}/{}", text("local"), text("prefixlen"))})
    });
    let mac = pod.ip("link show eth0")[0]["address"].clone();
    let sandbox = pod.path();
    let result = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "podspan0"}, {"name": "host"}, {"name": "eth0", "mac": mac, "sandbox": sandbox}],
        "ips": ips.collect::<Vec<_>>(),
    });
    let mut with = wishes.clone();
    with["prevResult"] = result;
    with
}

/// A pod of an earlier pod CIDR is masqueraded until it has gone.
#[test]
fn an_earlier_pod_cidr_is_masqueraded_as_long_as_its_gateway_stays() {
    let machine = Machine::new();
    machine.ns.ip("link add podspan0 up type bridge");
    machine.ns.ip("link set podspan0 alias podspan:bridge");
    let _agent = ready(&machine);
    let pods = || nft("list set inet podspan agent_pods4");
    assert!(pods().contains("10.0.1.0/24"));
    let nodes = std::fs::read_to_string(machine.path("nodes.toml")).unwrap();
    machine.nodes(&nodes.replace("10.0.1.0/24", "10.0.77.0/24"));
    machine.until("moved", || pods().contains("10.0.77.0/24"));
    // Nobody has an address of it: its gateway goes, and then it.
    machine.until("gone", || !pods().contains("10.0.1.0/24"));
    machine.until("right", || machine.run("plan").0 == 0);
}
