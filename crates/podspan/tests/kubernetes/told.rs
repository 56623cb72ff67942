//! What the agent tells the API of its machine.

use serde_json::{Value, json};

use crate::machine::Machine;
use crate::plane::{EVENTS, Plane};

fn node1() -> (Machine, Plane) {
    let machine = Machine::new();
    machine.ns.ip("link set lo up");
    let plane = Plane::start("127.0.0.1");
    plane.configure(&machine, "");
    plane.create_node(1);
    (machine, plane)
}

/// The Events about Nodes that podspan sent.
fn events(plane: &Plane) -> Vec<Value> {
    let mut events = plane.list(EVENTS);
    events.retain(|event| event["reportingController"] == "podspan.io/agent");
    events
}

#[test]
fn the_network_is_available_when_pods_can_run_and_not_before() {
    let (machine, plane) = node1();
    let conflist = machine.path("net.d/10-podspan.conflist");
    std::fs::create_dir(machine.path("net.d")).unwrap();
    let foreign = r#"{"name": "cbr0", "plugins": [{"type": "flannel"}]}"#;
    std::fs::write(&conflist, foreign).unwrap();
    let agent = machine.start("agent");
    machine.until("told", || events(&plane).len() == 1);
    assert_eq!(plane.condition("node1", "NetworkUnavailable"), None);

    std::fs::remove_file(&conflist).unwrap();
    let is =
        |status: &str| plane.condition("node1", "NetworkUnavailable").as_deref() == Some(status);
    machine.until("available", || is("False"));
    let node = plane.node("node1");
    let managers = node["metadata"]["managedFields"].as_array().unwrap();
    let applied =
        |manager: &&Value| manager["manager"] == "podspan" && manager["operation"] == "Apply";
    assert_eq!(managers.iter().filter(applied).count(), 1, "{managers:#?}");

    // Somebody who says that it is not is corrected.
    plane.patch_status(
        "node1",
        &json!({"conditions": [{"type": "NetworkUnavailable", "status": "True"}]}),
    );
    machine.until("available again", || is("False"));
    let patches = plane
        .requests()
        .iter()
        .filter(|request| request.starts_with("patch "))
        .count();
    assert_eq!(patches, 2, "{:?}", plane.requests());
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn a_problem_is_one_event_of_the_node_however_often_it_is_met() {
    let (machine, plane) = node1();
    plane.create_node(2);
    machine
        .ns
        .ip("route add 10.0.2.0/24 via 172.16.0.99 proto static");
    for _ in 0..2 {
        let agent = machine.start("agent");
        machine.until("told", || !events(&plane).is_empty());
        machine.until("available", || {
            plane.condition("node1", "NetworkUnavailable").is_some()
        });
        // Further looks meet it too.
        for n in 0..5 {
            machine.ns.ip(&format!(
                "route add 10.{}.0.0/16 via 172.16.0.99 proto static",
                100 + n
            ));
            machine.ns.ip(&format!("route del 10.{}.0.0/16", 100 + n));
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        assert_eq!(agent.stop(), Some(0));
    }
    let events = events(&plane);
    assert_eq!(events.len(), 1, "{events:#?}");
    let event = &events[0];
    assert_eq!(
        (
            &event["type"],
            &event["reason"],
            &event["regarding"]["name"]
        ),
        (&"Warning".into(), &"Failed".into(), &"node1".into())
    );
    assert_eq!(
        event["regarding"]["uid"],
        plane.node("node1")["metadata"]["uid"]
    );
    let note = event["note"].as_str().unwrap();
    assert!(
        note.starts_with("somebody else's route is there; see `ip route show 10.0.2.0/24`"),
        "{note}"
    );
}

#[test]
fn a_node_that_is_refused_is_told_of_by_its_own_agent_only() {
    let (machine, plane) = node1();
    plane.create_node(2);
    plane.create("/api/v1/nodes", &json!({"metadata": {"name": "zz"}, "spec": {"podCIDR": "10.0.2.0/24", "podCIDRs": ["10.0.2.0/24"]}}));
    plane.set_addresses("zz", &["172.16.0.9"]);
    let agent = machine.start("agent");
    machine.until("told in the log", || {
        machine.log().contains("refused: Node zz: spec.podCIDRs")
    });
    machine.until("available", || {
        plane.condition("node1", "NetworkUnavailable").is_some()
    });
    assert_eq!(agent.stop(), Some(0));
    assert_eq!(events(&plane), [Value::Null; 0]);

    plane.configure(&machine, "");
    let text = std::fs::read_to_string(machine.path("agent.toml")).unwrap();
    std::fs::write(machine.path("agent.toml"), text.replace("node1", "zz")).unwrap();
    let agent = machine.start("agent");
    machine.until("told in Events", || {
        let events = events(&plane);
        let refused =
            |event: &Value| event["reason"] == "Refused" && event["regarding"]["name"] == "zz";
        events.iter().any(refused)
    });
    assert_eq!(plane.condition("zz", "NetworkUnavailable"), None);
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn explain_finds_a_pod_by_its_name_or_says_what_to_do_without_the_right() {
    let (machine, plane) = node1();
    plane.create_node(2);
    let pods = "/api/v1/namespaces/default/pods";
    let account = json!({"metadata": {"name": "default"}});
    plane.create("/api/v1/namespaces/default/serviceaccounts", &account);
    for name in ["web", "pending"] {
        let container = json!({"name": "web", "image": "web.test/web:1"});
        let spec = json!({"containers": [container], "automountServiceAccountToken": false});
        plane.create(pods, &json!({"metadata": {"name": name}, "spec": spec}));
    }
    let ips = json!([{"ip": "10.0.2.9"}, {"ip": "fd00:10:2::9"}]);
    plane.patch_status_of(pods, "web", &json!({"podIP": "10.0.2.9", "podIPs": ips}));

    let explain = |words: &str| machine.run(&format!("explain {words}"));
    // The agent's own account may list pods.
    for (words, expected) in [
        (
            "default/web 10.0.2.8",
            "10.0.2.9 is a pod of node2: run this there",
        ),
        (
            "-6 default/web fd00:10:2::8",
            "fd00:10:2::9 is a pod of node2",
        ),
        (
            "default/pending 10.0.2.8",
            "pod default/pending has no address yet",
        ),
        ("default/none 10.0.2.8", "there is no pod default/none"),
        ("default/../web 10.0.2.8", "is written namespace/name"),
    ] {
        let (code, told) = explain(words);
        assert!(code == 2 && told.contains(expected), "{words}: {told}");
    }

    plane.configure_as_nobody(&machine);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let group = "rbac.authorization.k8s.io";
    let name = json!({"name": "nobody"});
    let rules = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]);
    plane.create(
        &format!("{rbac}/clusterroles"),
        &json!({"metadata": name, "rules": rules}),
    );
    let subjects = json!([{"kind": "User", "name": "system:anonymous", "apiGroup": group}]);
    let role = json!({"kind": "ClusterRole", "name": "nobody", "apiGroup": group});
    plane.create(
        &format!("{rbac}/clusterrolebindings"),
        &json!({"metadata": name, "subjects": subjects, "roleRef": role}),
    );
    let (code, told) = explain("default/web 10.0.2.8");
    let mend = "kubectl get pod --namespace default web -o wide";
    assert!(
        code == 2 && told.contains("(403)") && told.contains(mend),
        "{told}"
    );
}
