//! Whatever comes in by standard input and environment: no panic, and a failure is always told as CNI wants it.
//!
//! The commands here reach nothing: their network namespace does not exist, and where addresses are looked at or taken,
//! the data directory is the test's own. How long it runs: `harness/fuzz.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[path = "harness/fuzz.rs"]
mod fuzz;

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use podspan_cni::plugin::{Streams, serve};
use podspan_cni::program::Program;
use podspan_cni::result::CniResult;
use podspan_cni::version::Version;
use podspan_kernel::testing::TestNs;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use serde_json::{Map, Value, json};

/// The codes of `docs/podspan-cni.md`.
const CODES: [u64; 14] = [1, 2, 4, 5, 6, 7, 8, 11, 50, 100, 101, 102, 103, 104];

/// All keys that the plugin knows, at any level: a key that it does not know is soon ignored.
const KEYS: [&str; 64] = [
    "cniVersion",
    "name",
    "type",
    "ipam",
    "prevResult",
    "runtimeConfig",
    "args",
    "cni",
    "dns",
    "bridge",
    "isGateway",
    "isDefaultGateway",
    "mtu",
    "hairpinMode",
    "ipMasq",
    "ipMasqBackend",
    "promiscMode",
    "vlan",
    "vlanTrunk",
    "preserveDefaultVlan",
    "macspoofchk",
    "enabledad",
    "forceAddress",
    "portIsolation",
    "disableContainerInterface",
    "ranges",
    "subnet",
    "rangeStart",
    "rangeEnd",
    "gateway",
    "routes",
    "dst",
    "gw",
    "advmss",
    "priority",
    "table",
    "scope",
    "resolvConf",
    "interfaces",
    "mac",
    "sandbox",
    "socketPath",
    "pciID",
    "ips",
    "address",
    "interface",
    "version",
    "ip4",
    "ip6",
    "ip",
    "nameservers",
    "domain",
    "search",
    "options",
    "cni.dev/valid-attachments",
    "cni.dev/attachments",
    "containerID",
    "ifname",
    "capabilities",
    "ipRanges",
    "portMappings",
    "bandwidth",
    "labels",
    "id",
];

const TEXTS: [&str; 36] = [
    "",
    "0.1.0",
    "0.2.0",
    "0.3.0",
    "0.3.1",
    "0.4.0",
    "1.0.0",
    "1.1.0",
    "1.2.0",
    "net",
    "a/b",
    "..",
    "podspan-cni",
    "host-local",
    "dhcp",
    "podspan0",
    "a name that is too long",
    "10.1.0.0/24",
    "10.1.0.9/24",
    "10.1.0.7",
    "10.1.0.0/0",
    "10.1.0.0/33",
    "10.1.0.0/31",
    "10.1.0.0/32",
    "fd00::/64",
    "fd00::/0",
    "fd00::/128",
    "::",
    "::ffff:10.1.0.1",
    "0a:58:0a:01:00:07",
    "00:00:00:00:00:00",
    "ff:ff:ff:ff:ff:ff",
    "eth0",
    "c1",
    "\u{0}",
    "ä\u{202e}",
];

/// Any JSON, mostly of keys and texts that mean something.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        1 => Just(Value::Null),
        2 => any::<bool>().prop_map(Value::from),
        2 => (-2_i64..70_000).prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<u64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        6 => select(&TEXTS[..]).prop_map(Value::from),
        1 => ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((select(&KEYS[..]), inner), 0..6).prop_map(|pairs| {
                let pairs = pairs
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value));
                Value::Object(pairs.collect())
            }),
        ]
    })
}

/// A configuration as it should be, of each kind there is.
fn sound() -> impl Strategy<Value = Value> {
    let version = select(&TEXTS[1..8]);
    let ranges = json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]);
    let prev = select(vec![
        json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.7/24", "gateway": "10.1.0.1",
            "routes": [{"dst": "0.0.0.0/0"}]}, "dns": {"nameservers": ["10.1.0.1"]}}),
        json!({"cniVersion": "0.4.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}],
            "ips": [{"version": "4", "address": "10.1.0.7/24", "interface": 0}], "dns": {}}),
        json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mtu": 1500, "sandbox": "/x"}],
            "ips": [{"address": "fd00::7/64", "gateway": "fd00::1", "interface": 0}],
            "routes": [{"dst": "::/0", "gw": "fd00::1", "mtu": 1400, "table": 7}]}),
        Value::Null,
    ]);
    (version, prev).prop_map(move |(version, prev)| {
        json!({
            "cniVersion": version, "name": "net", "type": "podspan-cni", "prevResult": prev,
            "ipam": {"ranges": ranges, "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
            "runtimeConfig": {"mac": "0a:58:0a:01:00:07", "ips": ["10.1.0.7/24"]},
            "args": {"cni": {"ips": ["10.1.0.8"]}},
            "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
        })
    })
}

/// A sound configuration with some places put out of order.
fn damaged() -> impl Strategy<Value = Value> {
    let damage = (
        any::<prop::sample::Index>(),
        prop::option::weighted(0.8, any_json()),
    );
    (sound(), prop::collection::vec(damage, 0..4)).prop_map(|(mut conf, damages)| {
        for (place, value) in damages {
            let mut pointers = Vec::new();
            list_pointers(&conf, String::new(), &mut pointers);
            let pointer = place.get(&pointers).clone();
            match (value, pointer.rsplit_once('/')) {
                (Some(value), _) => *conf.pointer_mut(&pointer).unwrap() = value,
                (None, Some((parent, key))) => {
                    if let Some(Value::Object(keys)) = conf.pointer_mut(parent) {
                        keys.remove(&key.replace("~1", "/"));
                    }
                }
                (None, None) => {}
            }
        }
        conf
    })
}

fn list_pointers(value: &Value, here: String, found: &mut Vec<String>) {
    match value {
        Value::Object(keys) => keys.iter().for_each(|(key, value)| {
            list_pointers(value, format!("{here}/{}", key.replace('/', "~1")), found);
        }),
        Value::Array(list) => list.iter().enumerate().for_each(|(index, value)| {
            list_pointers(value, format!("{here}/{index}"), found);
        }),
        _ => {}
    }
    found.push(here);
}

/// Any bytes, and the text of a configuration with bytes changed, left out or cut off.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let edit = (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8);
    let edited = (damaged(), prop::collection::vec(edit, 0..6)).prop_map(|(conf, edits)| {
        let mut bytes = conf.to_string().into_bytes();
        for (place, byte, how) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = place.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => _ = bytes.remove(at),
                _ => bytes.truncate(at),
            }
        }
        bytes
    });
    prop_oneof![3 => edited, 1 => prop::collection::vec(any::<u8>(), 0..200)]
}

/// A value of an environment variable: mostly sound, never one that leads anywhere.
fn variable(sound: &'static str) -> impl Strategy<Value = Option<OsString>> {
    prop_oneof![
        6 => Just(Some(OsString::from(sound))),
        1 => Just(None),
        1 => ".{0,20}".prop_map(|text| Some(text.into())),
        1 => prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Some(OsString::from_vec(bytes))),
    ]
}

/// What is in the environment besides the command and the namespace.
fn environment() -> impl Strategy<Value = [(&'static str, Option<OsString>); 4]> {
    let arguments = prop_oneof![
        variable(
            "IgnoreUnknown=1;K8S_POD_NAME=a;IP=10.1.0.9;GATEWAY=10.1.0.1;MAC=0a:58:0a:01:00:09"
        ),
        "(IP|MAC|GATEWAY|X|)(=|;|)[0-9a-f.:/,]{0,12}(;|=)?".prop_map(|text| Some(text.into())),
    ];
    (
        variable("c1"),
        variable("eth0"),
        arguments,
        variable("false"),
    )
        .prop_map(|(container, ifname, arguments, own)| {
            [
                ("CNI_CONTAINERID", container),
                ("CNI_IFNAME", ifname),
                ("CNI_ARGS", arguments),
                ("CNI_NETNS_OVERRIDE", own),
            ]
        })
}

type Environment = [(&'static str, Option<OsString>); 4];

/// Serves it and judges the answer; true when it succeeded.
fn judge(
    program: Program,
    command: &str,
    (environment, input): (&Environment, &[u8]),
) -> Result<bool, TestCaseError> {
    let mut output = Vec::new();
    let find = |name: &str| match name {
        "CNI_COMMAND" => Some(command.into()),
        "CNI_NETNS" => Some("/nonexistent/netns".into()),
        "CNI_PATH" => Some("/nonexistent/bin".into()),
        name => environment
            .iter()
            .find(|(known, _)| *known == name)?
            .1
            .clone(),
    };
    let streams = Streams {
        input,
        output: &mut output,
    };
    let succeeded = serve(program, find, streams).unwrap();
    let told: Option<Map<String, Value>> = serde_json::from_slice(&output).ok();
    if succeeded {
        // T11: ADD and VERSION alone say something, and an ADD that says no address is none (here, where all give one).
        let told = told.unwrap_or_default();
        let says = |keys: &[&str]| keys.iter().any(|key| told.contains_key(*key));
        match command {
            "ADD" => prop_assert!(says(&["ips", "ip4", "ip6"]), "{told:?}"),
            "VERSION" => prop_assert!(says(&["supportedVersions"]), "{told:?}"),
            _ => prop_assert!(output.is_empty(), "{command}: {told:?}"),
        }
    } else {
        let told = told.unwrap_or_default();
        let code = told.get("code").and_then(Value::as_u64);
        prop_assert!(code.is_some_and(|code| CODES.contains(&code)), "{told:?}");
        prop_assert!(
            told["msg"].as_str().is_some_and(|text| !text.is_empty()),
            "{told:?}"
        );
        let version = told["cniVersion"].as_str().and_then(Version::parse);
        prop_assert!(version.is_some(), "{told:?}");
    }
    Ok(succeeded)
}

/// The configuration with the data directory of the test; none where it has no place for that.
fn kept_in(dir: &Path, mut conf: Value) -> Option<Vec<u8>> {
    let ipam = conf.get_mut("ipam")?.as_object_mut()?;
    ipam.insert("dataDir".into(), dir.to_str()?.into());
    ipam.remove("type");
    Some(conf.to_string().into_bytes())
}

#[test]
fn any_input_is_answered_and_no_add_or_check_succeeds_without_a_namespace() {
    let _ns = TestNs::new();
    let commands = select(vec!["ADD", "CHECK"]);
    let programs = select(vec![Program::Podspan, Program::Bridge, Program::Loopback]);
    let every = (programs, commands, environment(), any_bytes());
    fuzz::holds(&every, |(program, command, environment, input)| {
        let succeeded = judge(program, command, (&environment, &input))?;
        prop_assert!(!succeeded, "{command}");
        judge(program, "VERSION", (&environment, &input))?;
        let unknown = format!("ADD{}", String::from_utf8_lossy(&input));
        judge(program, &unknown, (&environment, b"{}")).map(drop)
    });
}

#[test]
fn any_configuration_is_answered_by_the_commands_that_look_at_addresses() {
    let _ns = TestNs::new();
    let dir = tempfile::tempdir().unwrap();
    let commands = select(vec![
        (Program::Podspan, "STATUS"),
        (Program::Podspan, "DEL"),
        (Program::Podspan, "GC"),
        (Program::HostLocal, "ADD"),
        (Program::HostLocal, "CHECK"),
        (Program::HostLocal, "DEL"),
        (Program::HostLocal, "STATUS"),
    ]);
    let every = (commands, environment(), damaged());
    fuzz::holds(&every, |((program, command), environment, conf)| {
        if let Some(input) = kept_in(dir.path(), conf) {
            let _ = judge(program, command, (&environment, &input))?;
        }
        Ok(())
    });
    // And sound ones succeed, so that the test looks behind the first refusal.
    fuzz::holds(&sound(), |conf| {
        let environment = [
            ("CNI_CONTAINERID", Some("c1".into())),
            ("CNI_IFNAME", Some("eth0".into())),
            ("CNI_ARGS", None),
            ("CNI_NETNS_OVERRIDE", None),
        ];
        let input = kept_in(dir.path(), conf).unwrap();
        prop_assert!(judge(Program::Podspan, "DEL", (&environment, &input))?);
        Ok(())
    });
}

#[test]
fn any_previous_result_is_refused_or_read_and_written_in_every_version_without_a_further_change() {
    let result = prop_oneof![
        any_json(),
        damaged().prop_map(|conf| conf.get("prevResult").cloned().unwrap_or_default()),
    ];
    let version = select(Version::ALL.to_vec());
    let cases = (result, version.clone(), version);
    fuzz::holds(&cases, |(value, read_as, written_as)| {
        let Ok(result) = CniResult::parse(value, read_as) else {
            return Ok(());
        };
        let Ok(written) = result.to_json(written_as) else {
            return Ok(());
        };
        let fail = |error| TestCaseError::fail(format!("{written}: {error}"));
        let again = CniResult::parse(written.clone(), written_as).map_err(fail)?;
        let twice = again.to_json(written_as).map_err(fail)?;
        prop_assert_eq!(&twice, &written);
        Ok(())
    });
}
