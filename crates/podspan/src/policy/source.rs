//! Where policies come from: the Kubernetes API, or a file.
//!
//! The file is a `List` as `kubectl get -o json` prints it, of Namespaces, Pods, Nodes, NetworkPolicies and
//! ClusterNetworkPolicies, read by what reads the API. It is followed: replace it by rename. One that cannot be read changes
//! nothing.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;

use super::object::{Change, Kind};
use crate::config::{PolicyRole, RegistryConfig, Role};
use crate::kubernetes::policy::{self, Sink};

/// All that there is now, for a command.
///
/// # Errors
/// The API out of reach, the file not readable.
pub fn read(registry: &RegistryConfig, role: &PolicyRole) -> anyhow::Result<Vec<Change>> {
    match (registry, &role.file) {
        (RegistryConfig::Kubernetes(kubernetes), _) => policy::read(kubernetes),
        (RegistryConfig::File(_), Some(file)) => Ok(parse(file, &read_file(file)?)?.0),
        (RegistryConfig::File(_), None) => bail!("there is no policy_file"),
    }
}

/// A file that is followed.
#[derive(Debug)]
pub struct PolicyFile {
    path: PathBuf,
    seen: Option<String>,
    sink: Sink,
    /// What is wrong about it.
    pub problems: Vec<String>,
}

impl PolicyFile {
    /// Where the role reads policies from a file, what takes the sink and reads it; else the sink is for the API.
    pub fn of(role: &Role, sink: Option<Sink>) -> (Option<Sink>, Option<Self>) {
        let file = match role {
            Role::Node(node) => node
                .policy
                .as_ref()
                .and_then(|policy| policy.file.as_deref()),
            Role::Router => None,
        };
        match (file, sink) {
            (Some(file), Some(sink)) => (None, Some(Self::new(file, sink))),
            (_, sink) => (sink, None),
        }
    }

    /// Of that file, which is not looked at yet; what is new goes there.
    pub fn new(path: &Path, sink: Sink) -> Self {
        Self {
            path: path.to_owned(),
            seen: None,
            sink,
            problems: Vec::new(),
        }
    }

    /// Sends what it says, when its bytes have changed.
    pub fn look(&mut self) {
        let content = match read_file(&self.path) {
            Ok(content) if self.seen.as_ref() == Some(&content) => return,
            Ok(content) => content,
            Err(error) => {
                self.seen = None;
                self.problems = vec![format!("{error:#}")];
                return;
            }
        };
        match parse(&self.path, &content) {
            Ok((changes, problems)) => {
                self.problems = problems;
                for change in changes {
                    self.sink.send_now(change);
                }
            }
            Err(error) => self.problems = vec![format!("{error:#}")],
        }
        self.seen = Some(content);
    }
}

fn read_file(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

#[derive(Deserialize)]
struct List {
    items: Vec<Value>,
}

/// The objects of the file, all kinds complete, and what in them is not followed.
fn parse(file: &Path, content: &str) -> anyhow::Result<(Vec<Change>, Vec<String>)> {
    let named = || file.display().to_string();
    let list: List = serde_json::from_str(content).with_context(|| {
        format!(
            "{}: must be a List as kubectl get -o json prints it",
            named()
        )
    })?;
    let mut changes: Vec<Change> = Kind::ALL.map(Change::Begin).into();
    let mut problems = Vec::new();
    for (number, item) in list.items.into_iter().enumerate() {
        match policy::read_object(item) {
            Ok((change, faults)) => {
                changes.push(change);
                problems.extend(faults.map(|faults| format!("{}: {faults}", named())));
            }
            Err(why) => problems.push(format!("{}: items[{number}]: {why}", named())),
        }
    }
    changes.extend(Kind::ALL.map(Change::End));
    Ok((changes, problems))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::policy::channel;

    const GOOD: &str = r#"{"items": [
        {"kind": "Namespace", "metadata": {"name": "x", "labels": {"ns": "x"}}},
        {"kind": "Pod", "metadata": {"namespace": "x", "name": "a"}, "status": {"podIPs": [{"ip": "10.0.0.2"}]}},
        {"kind": "Service", "metadata": {"namespace": "x", "name": "a"}}
    ]}"#;

    #[test]
    fn a_file_is_all_kinds_at_once_and_what_is_no_object_of_policy_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.json");
        let (sink, changes) = channel(|| {});
        let mut file = PolicyFile::new(&path, sink);
        file.look();
        assert!(file.problems[0].starts_with(&format!("read {}", path.display())));
        assert_eq!(changes.try_iter().count(), 0);

        std::fs::write(&path, GOOD).unwrap();
        file.look();
        let sent: Vec<_> = changes.try_iter().collect();
        assert_eq!(sent.len(), 5 + 2 + 5);
        assert!(matches!(&sent[5], Change::Namespace(name, Some(labels))
            if &**name == "x" && labels.get("ns") == Some("x")));
        assert!(file.problems[0].contains("items[2]") && file.problems[0].contains("Service"));
        file.look();
        assert_eq!(changes.try_iter().count(), 0);

        // What has no name is no object; the others are followed.
        let nameless = GOOD.replace(
            r#""namespace": "x", "name": "a"}, "status""#,
            r#""name": "a"}, "status""#,
        );
        std::fs::write(&path, nameless).unwrap();
        file.look();
        assert_eq!(changes.try_iter().count(), 5 + 1 + 5);
        let problem = &file.problems[0];
        assert!(
            problem.ends_with("items[1]: metadata.namespace: must be there"),
            "{problem}"
        );

        std::fs::write(&path, "{").unwrap();
        file.look();
        assert!(
            file.problems[0].contains("must be a List"),
            "{:?}",
            file.problems
        );
        assert_eq!(changes.try_iter().count(), 0);
    }
}
