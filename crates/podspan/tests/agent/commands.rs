//! The operator's commands, by their exit status and what they print.

use std::process::Command;

use serde_json::Value;

use crate::machine::Machine;

#[test]
fn a_bad_configuration_is_refused_with_everything_that_is_wrong_in_it() {
    let machine = Machine::new();
    machine.configure("mtu = 5\nbrigde = \"br0\"\n");
    for command in ["agent", "plan", "status"] {
        let (code, printed) = machine.run(command);
        assert_eq!(code, 2);
        let file = machine.path("agent.toml").display().to_string();
        let expected = format!(
            "podspan: {file}: mtu = 5: must be a number from 1280 to 65535\n\
             {file}: brigde = \"br0\": no such key; there are node, "
        );
        assert!(printed.starts_with(&expected), "{printed}");
    }
}

#[test]
fn plan_and_status_speak_json() {
    let machine = Machine::new();
    let (code, plan) = machine.run("plan -o json");
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(
        (code, &plan["refusals"], &plan["changes"][0]),
        (
            1,
            &Value::Array(vec![]),
            &"sysctl -w net.ipv4.ip_forward=1".into()
        )
    );
    let (code, status) = machine.run("-o json status");
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!((code, &status["right"]), (1, &false.into()));
    let wrong = status["lines"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["what"] == "bridge podspan0 is missing");
    assert_eq!(
        wrong.unwrap()["mend"],
        "ip link add podspan0 up address 0a:58:0a:00:01:01 type bridge"
    );
}

#[test]
fn status_names_a_conflist_that_a_runtime_takes_instead_of_ours() {
    let machine = Machine::new();
    let agent = machine.start("agent");
    machine.until("right", || machine.run("status").0 == 0);
    std::fs::write(machine.path("net.d/05-old.conflist"), "{}").unwrap();
    let (code, status) = machine.run("status");
    assert_eq!(code, 1);
    assert!(
        status.contains("a runtime takes it instead of ours; to mend it: mv "),
        "{status}"
    );
    assert_eq!(agent.stop(), Some(0));
}

#[test]
fn cleanup_removes_what_the_agent_made_and_nothing_else() {
    let machine = Machine::new();
    std::fs::create_dir(machine.path("net.d")).unwrap();
    std::fs::write(machine.path("net.d/20-other.conflist"), "{}").unwrap();
    let agent = machine.start("agent");
    machine.until("right", || machine.run("status").0 == 0);
    assert_eq!(agent.stop(), Some(0));
    // With a /run of its own: cleanup empties that of the machine otherwise.
    let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/podspan/ipam/podspan /run/other && \
                  \"$0\" cleanup --config \"$1\" -o json && ls /run";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_podspan")])
        .arg(machine.path("agent.toml"))
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let json = printed.strip_suffix("other\n").unwrap();
    let cleanup: Value = serde_json::from_str(json).unwrap();
    assert_eq!(
        (
            cleanup["removed"].as_array().unwrap().len(),
            &cleanup["failed"]
        ),
        (8, &Value::Array(vec![]))
    );
    assert_eq!(machine.routes(), [""; 0]);
    assert!(machine.path("net.d/20-other.conflist").exists());
    assert!(!machine.path("net.d/10-podspan.conflist").exists());
    machine.assert_foreign_things_are_there();
}
