use std::os::unix::fs::PermissionsExt as _;

use podspan_kernel::testing::TestNs;
use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A runtime with directories of its own, and plugins that write down how they were called.
struct Sandbox {
    temp: TempDir,
    _ns: TestNs,
}

impl Sandbox {
    fn new(conflist: &Value) -> Self {
        let sandbox = Self {
            temp: tempfile::tempdir().unwrap(),
            _ns: TestNs::new(),
        };
        std::fs::create_dir_all(sandbox.path("net.d")).unwrap();
        std::fs::create_dir_all(sandbox.path("bin")).unwrap();
        std::fs::write(sandbox.path("net.d/10.conflist"), conflist.to_string()).unwrap();
        for name in ["first", "second"] {
            sandbox.plugin(name, r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"10.244.1.2/24","gateway":"10.244.1.1"}],"by":"'"${0##*/}"'"}'"#);
        }
        sandbox
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// A plugin that notes its call and then does as `on_add` says when it is an ADD.
    fn plugin(&self, name: &str, on_add: &str) {
        let path = self.path("bin").join(name);
        let calls = self.path("calls");
        let script = format!(
            "#!/bin/sh\necho \"$CNI_COMMAND ${{0##*/}} $CNI_CONTAINERID $CNI_IFNAME $(cat)\" >> {}\n\
             [ $CNI_COMMAND = ADD ] || exit 0\n{on_add}\n",
            calls.display()
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn runtime(&self) -> Runtime {
        Runtime {
            conf_dir: self.path("net.d"),
            plugins: Plugins::new(self.path("bin").into()),
            results: Results::new(&self.path("results")),
        }
    }

    fn add(&self) -> anyhow::Result<Value> {
        let runtime = self.runtime();
        let chain = Chain::load(&runtime.conf_dir, None)?;
        runtime.add(&arguments(), chain)
    }

    /// Command, plugin, and configuration of each call so far; then they are forgotten.
    fn calls(&self) -> Vec<(String, Value)> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = std::fs::remove_file(self.path("calls"));
        let call = |line: &str| {
            let mut parts = line.splitn(5, ' ');
            let call = [parts.next().unwrap(), parts.next().unwrap()].join(" ");
            assert_eq!((parts.next(), parts.next()), (Some("c1"), Some("eth0")));
            (call, serde_json::from_str(parts.next().unwrap()).unwrap())
        };
        text.lines().map(call).collect()
    }
}

fn arguments() -> Arguments {
    Arguments {
        container: "c1".parse().unwrap(),
        namespace: "/proc/thread-self/ns/net".to_owned(),
        ifname: "eth0".parse().unwrap(),
        network: None,
        conf_dir: None,
    }
}

fn two_plugins() -> Value {
    json!({
        "cniVersion": "0.4.0",
        "cniVersions": ["1.1.0", "9.0.0"],
        "name": "pods",
        "plugins": [{"type": "first", "key": {"a": 1}, "capabilities": {"mac": true}}, {"type": "second"}],
    })
}

fn names(calls: &[(String, Value)]) -> Vec<&str> {
    calls.iter().map(|(call, _)| call.as_str()).collect()
}

#[test]
fn t34_each_plugin_gets_its_configuration_with_name_version_and_the_result_before_it() {
    let sandbox = Sandbox::new(&two_plugins());
    let result = sandbox.add().unwrap();
    assert_eq!(result["by"], "second");
    let calls = sandbox.calls();
    assert_eq!(names(&calls), ["ADD first", "ADD second"]);
    assert_eq!(
        calls[0].1,
        json!({"type": "first", "key": {"a": 1}, "name": "pods", "cniVersion": "1.1.0"})
    );
    assert_eq!(calls[1].1["prevResult"]["by"], "first");
    let told = describe(&arguments(), &result);
    assert_eq!(
        told,
        "container c1 is on the network by eth0\naddress 10.244.1.2/24 gateway 10.244.1.1\n"
    );
}

#[test]
fn t25_del_goes_backwards_with_the_cached_result_even_when_the_conflist_is_gone() {
    let sandbox = Sandbox::new(&two_plugins());
    sandbox.add().unwrap();
    sandbox.calls();
    std::fs::remove_file(sandbox.path("net.d/10.conflist")).unwrap();
    sandbox.runtime().del(&arguments()).unwrap();
    let calls = sandbox.calls();
    assert_eq!(names(&calls), ["DEL second", "DEL first"]);
    assert!(
        calls
            .iter()
            .all(|(_, netconf)| netconf["prevResult"]["by"] == "second")
    );
    assert_eq!(sandbox.path("results").read_dir().unwrap().count(), 0);
}

#[test]
fn t24_del_of_what_is_unknown_runs_the_installed_conflist_and_succeeds() {
    let sandbox = Sandbox::new(&two_plugins());
    let gone = Arguments {
        namespace: "99999999".to_owned(),
        ..arguments()
    };
    sandbox.runtime().del(&gone).unwrap();
    let calls = sandbox.calls();
    assert_eq!(names(&calls), ["DEL second", "DEL first"]);
    assert!(
        calls
            .iter()
            .all(|(_, netconf)| netconf.get("prevResult").is_none())
    );
}

#[test]
fn t22_a_failed_add_is_undone_and_told_with_code_message_and_details() {
    let sandbox = Sandbox::new(&two_plugins());
    sandbox.plugin(
        "second",
        r#"echo '{"code": 11, "msg": "no address is free", "details": "try later"}'; exit 1"#,
    );
    let error = format!("{:#}", sandbox.add().unwrap_err());
    assert_eq!(
        error,
        "second ADD: no address is free: try later (CNI code 11)"
    );
    assert_eq!(
        names(&sandbox.calls()),
        ["ADD first", "ADD second", "DEL second", "DEL first"]
    );
    sandbox.plugin("second", "exit 3");
    let error = format!("{:#}", sandbox.add().unwrap_err());
    assert_eq!(error, "second ADD: exit status: 3 and no error printed");
}

#[test]
fn a_second_add_runs_no_plugin_and_leaves_the_first_alone() {
    let sandbox = Sandbox::new(&two_plugins());
    sandbox.add().unwrap();
    sandbox.calls();
    let error = sandbox.add().unwrap_err().to_string();
    let expected =
        "container c1 is on network pods already; take it off first: podspan del c1 <namespace>";
    assert_eq!(error, expected);
    assert_eq!(sandbox.calls(), []);
}

#[test]
fn an_attachment_that_a_runtime_made_is_left_alone_too() {
    let sandbox = Sandbox::new(&two_plugins());
    sandbox._ns.ip("link add pod1 type veth peer name x1");
    sandbox._ns.ip("link set pod1 alias podspan:pods/c1/eth0");
    assert!(sandbox.add().unwrap_err().to_string().contains("already"));
    assert_eq!(sandbox.calls(), []);
}

#[test]
fn t33_the_first_conflist_is_taken_or_that_of_the_network_and_further_plugins_are_appended() {
    let sandbox = Sandbox::new(&two_plugins());
    let other = json!({"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "first"}]});
    std::fs::write(sandbox.path("net.d/20.conflist"), other.to_string()).unwrap();
    std::fs::create_dir(sandbox.path("net.d/other")).unwrap();
    std::fs::write(sandbox.path("net.d/other/1.conf"), r#"{"type": "second"}"#).unwrap();
    let load = |name: Option<&str>| {
        let network = name.map(|name| name.parse().unwrap());
        Chain::load(&sandbox.path("net.d"), network.as_ref())
    };
    assert_eq!(load(None).unwrap().network.as_str(), "pods");
    let kinds: Vec<_> = load(Some("other"))
        .unwrap()
        .plugins
        .iter()
        .map(|p| chain::kind(p).to_owned())
        .collect();
    assert_eq!(kinds, ["first", "second"]);
    let error = load(Some("none")).unwrap_err().to_string();
    assert!(
        error.starts_with("no conflist of network none in "),
        "{error}"
    );
}

#[test]
fn a_conflist_that_cannot_be_run_is_refused_with_its_key() {
    for (conflist, expected) in [
        (
            json!({"name": "a", "plugins": [], "cniVersion": "1.0.0"}),
            "plugins: the list is empty",
        ),
        (
            json!({"name": "a/b", "plugins": [], "cniVersion": "1.0.0"}),
            "name: network name \"a/b\" must begin",
        ),
        (
            json!({"name": "a", "plugins": [{}], "cniVersion": "1.0.0"}),
            "plugins[0].type: is missing",
        ),
        (
            json!({"name": "a", "cniVersion": "1.0.0"}),
            "plugins: must be a list",
        ),
        (
            json!({"name": "a", "plugins": [], "cniVersion": "2.0.0"}),
            "cniVersion: the conflist names \"2.0.0\"; we speak",
        ),
    ] {
        let sandbox = Sandbox::new(&conflist);
        let error = format!(
            "{:#}",
            Chain::load(&sandbox.path("net.d"), None).unwrap_err()
        );
        assert!(error.contains(expected), "{error}");
    }
    let sandbox =
        Sandbox::new(&json!({"name": "a", "plugins": [{"type": "absent"}], "cniVersion": "1.0.0"}));
    let error = format!("{:#}", sandbox.add().unwrap_err());
    assert!(error.starts_with("plugin absent is not in "), "{error}");
}

#[test]
fn a_namespace_is_a_name_a_path_or_a_pid() {
    for (given, path) in [
        ("blue", "/run/netns/blue"),
        ("/var/run/netns/x", "/var/run/netns/x"),
        ("42", "/proc/42/ns/net"),
    ] {
        assert_eq!(namespace_path(given).unwrap(), Path::new(path));
    }
    assert!(namespace_path("").is_err());
}
