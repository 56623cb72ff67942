//! The conflist: what the runtime and the plugin read on this node. Its text, and the file.
//!
//! The file is written beside its place under a suffix that no runtime loads, synced and renamed: a runtime that watches
//! the directory sees the old file or the whole new one. A file that is not ours is never overwritten nor removed; ours is
//! one whose first plugin is `podspan-cni`.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use podspan_kernel::Prefix;
use serde::Serialize;
use serde_json::Value;

use crate::config::{DATA_DIR, NodeRole};
use crate::desired::Between;

/// The name of the plugin's executable.
pub const PLUGIN: &str = "podspan-cni";
/// What runtimes do not load: they take `.conf`, `.conflist` and `.json`.
const DRAFT_SUFFIX: &str = "podspan.tmp";

/// What is at the conflist's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Absent,
    /// A file of ours, with this text.
    Ours(String),
    /// A file of somebody else; why we think so.
    Foreign(String),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Conflist<'a> {
    cni_version: &'a str,
    cni_versions: [&'a str; 2],
    name: &'a str,
    plugins: [Plugin<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Plugin<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    bridge: &'a str,
    is_default_gateway: bool,
    /// The pods of the node reach each other through the node.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    routed: bool,
    mtu: u32,
    capabilities: Capabilities,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<Policy>,
    ipam: Ipam<'a>,
}

/// How a pod starts whose policy is not known yet.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    wait_milliseconds: u32,
    when_unknown: &'static str,
}

/// What the runtime may put into `runtimeConfig`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Capabilities {
    bandwidth: bool,
    ips: bool,
    mac: bool,
    port_mappings: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ipam<'a> {
    ranges: Vec<[Range; 1]>,
    /// None is the plugin's own default.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_dir: Option<&'a Path>,
}

#[derive(Serialize)]
struct Range {
    subnet: String,
}

/// The conflist's text: an address of each pod CIDR for every pod.
///
/// # Errors
/// None that can happen; JSON of names and numbers can always be written.
pub fn text(
    role: &NodeRole,
    (mtu, between): (u32, Between),
    pod_cidrs: &[Prefix],
) -> anyhow::Result<String> {
    let ranges = pod_cidrs.iter().map(|cidr| {
        let subnet = cidr.net().to_string();
        [Range { subnet }]
    });
    let conflist = Conflist {
        // Runtimes that do not know `cniVersions` (CNI 1.1) take the first.
        cni_version: "1.0.0",
        cni_versions: ["1.0.0", "1.1.0"],
        name: role.network.as_str(),
        plugins: [Plugin {
            kind: PLUGIN,
            bridge: role.bridge.as_str(),
            is_default_gateway: true,
            routed: matches!(between, Between::Node { .. }),
            mtu,
            capabilities: Capabilities {
                bandwidth: true,
                ips: true,
                mac: true,
                port_mappings: true,
            },
            policy: role.policy.as_ref().map(|policy| Policy {
                wait_milliseconds: policy.wait_milliseconds,
                when_unknown: if policy.when_unknown_open {
                    "open"
                } else {
                    "closed"
                },
            }),
            ipam: Ipam {
                ranges: ranges.collect(),
                data_dir: Some(&*role.data_dir).filter(|dir| *dir != Path::new(DATA_DIR)),
            },
        }],
    };
    Ok(serde_json::to_string_pretty(&conflist)? + "\n")
}

/// Looks at what is at `path`. What cannot be read is not ours.
pub fn observe(path: &Path) -> Found {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Found::Absent,
        Err(error) => return Found::Foreign(error.to_string()),
    };
    let Ok(value) = serde_json::from_slice::<Value>(&bytes) else {
        return Found::Foreign("it is not JSON".to_owned());
    };
    match value.pointer("/plugins/0/type").and_then(Value::as_str) {
        Some(PLUGIN) => Found::Ours(String::from_utf8_lossy(&bytes).into_owned()),
        Some(other) => Found::Foreign(format!("its first plugin is {other}")),
        None => Found::Foreign("it has no plugins".to_owned()),
    }
}

/// Writes the conflist, in one step as others see it.
///
/// # Errors
/// A file of somebody else is there, or what the file system answered.
pub fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Found::Foreign(why) = observe(path) {
        bail!("write {}: {}", path.display(), foreign(&why));
    }
    let draft = draft_path(path);
    let write = || -> std::io::Result<()> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        std::fs::create_dir_all(directory)?;
        let mut file = File::create(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&draft, path)?;
        File::open(directory)?.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Removes the conflist and an unfinished draft of it; true when there was one of ours.
///
/// # Errors
/// A file of somebody else is there, or what the file system answered.
pub fn remove(path: &Path) -> anyhow::Result<bool> {
    let _ = std::fs::remove_file(draft_path(path));
    match observe(path) {
        Found::Absent => Ok(false),
        Found::Ours(_) => std::fs::remove_file(path)
            .map(|()| true)
            .with_context(|| format!("remove {}", path.display())),
        Found::Foreign(why) => bail!("{} stays: it is not ours: {why}", path.display()),
    }
}

/// Why a foreign file is left alone, and what to do.
pub fn foreign(why: &str) -> String {
    format!(
        "a file that is not ours is there ({why}); move it away, or set conflist to another path"
    )
}

/// The files that a runtime reads before ours: it takes the first in the order of names.
pub fn rivals(path: &Path) -> Vec<PathBuf> {
    let mut rivals = path.parent().map(loaded).unwrap_or_default();
    rivals.retain(|other| other.file_name() < path.file_name());
    rivals
}

/// The files of a directory that a runtime loads, in its order.
pub fn loaded(directory: &Path) -> Vec<PathBuf> {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| is_loaded(path));
    paths.sort();
    paths
}

fn is_loaded(path: &Path) -> bool {
    let suffix = path.extension().unwrap_or_default();
    ["conf", "conflist", "json"]
        .iter()
        .any(|loaded| suffix == *loaded)
}

fn draft_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(DRAFT_SUFFIX);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Role};

    fn example() -> String {
        let cidrs = ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap());
        text(&role(DATA_DIR), (1450, Between::Bridge), &cidrs).unwrap()
    }

    fn role(data_dir: &str) -> NodeRole {
        let content = format!("data_dir = {data_dir:?}");
        let config = Config::parse_agent(Path::new("agent.toml"), &content, "node1").unwrap();
        match config.role {
            Role::Node(role) => role,
            Role::Router => panic!("an agent's file makes a node"),
        }
    }

    #[test]
    fn the_text_is_a_conflist_for_both_families() {
        let expected = serde_json::json!({
            "cniVersion": "1.0.0",
            "cniVersions": ["1.0.0", "1.1.0"],
            "name": "podspan",
            "plugins": [{
                "type": "podspan-cni",
                "bridge": "podspan0",
                "isDefaultGateway": true,
                "mtu": 1450,
                "capabilities": {"bandwidth": true, "ips": true, "mac": true, "portMappings": true},
                "ipam": {"ranges": [
                    [{"subnet": "10.244.1.0/24"}],
                    [{"subnet": "fd00:10:244:1::/64"}],
                ]},
            }],
        });
        assert_eq!(serde_json::from_str::<Value>(&example()).unwrap(), expected);
        let by_node = Between::Node { can_filter: true };
        let text = text(&role("/var/lib/cni/networks"), (1450, by_node), &[]).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let plugin = &value["plugins"][0];
        assert_eq!(plugin["ipam"]["dataDir"], "/var/lib/cni/networks");
        assert_eq!(plugin["routed"], true);
    }

    #[test]
    fn a_reader_sees_the_old_text_or_the_new_one_and_never_a_part() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("net.d/10-podspan.conflist");
        let texts = [example(), example().replace("1450", "9000")];
        write(&path, &texts[0]).unwrap();
        let reader = {
            let (path, texts) = (path.clone(), texts.clone());
            std::thread::spawn(move || {
                for _ in 0..2000 {
                    let seen = std::fs::read_to_string(&path).unwrap();
                    assert!(texts.contains(&seen), "{seen}");
                    for entry in path.parent().unwrap().read_dir().unwrap().flatten() {
                        let other = entry.path();
                        assert!(other == path || !is_loaded(&other), "{other:?}");
                    }
                }
            })
        };
        while !reader.is_finished() {
            texts.iter().for_each(|text| write(&path, text).unwrap());
        }
        reader.join().unwrap();
        assert_eq!(observe(&path), Found::Ours(texts[1].clone()));
        assert!(remove(&path).unwrap() && !remove(&path).unwrap());
    }

    #[test]
    fn a_file_of_somebody_else_is_neither_overwritten_nor_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("10-podspan.conflist");
        let foreign =
            r#"{"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "podspan-cni"}]}"#;
        for (content, why) in [
            (foreign, "its first plugin is flannel"),
            ("", "it is not JSON"),
            ("{}", "it has no plugins"),
        ] {
            std::fs::write(&path, content).unwrap();
            let error = format!("{:#}", write(&path, &example()).unwrap_err());
            let expected = format!(
                "write {}: a file that is not ours is there ({why}); move it away, or set conflist to another path",
                path.display()
            );
            assert_eq!(error, expected);
            assert!(remove(&path).is_err());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn rivals_are_the_files_that_a_runtime_would_take_instead() {
        let directory = tempfile::tempdir().unwrap();
        for name in [
            "05-old.conflist",
            "06-old.conf",
            "07.bak",
            "10-podspan.conflist",
            "20.conflist",
        ] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let names: Vec<_> = rivals(&directory.path().join("10-podspan.conflist"))
            .iter()
            .map(|path| path.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["05-old.conflist", "06-old.conf"]);
    }
}
