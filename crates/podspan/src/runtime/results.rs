//! What ADD answered, kept for DEL: a file per attachment, with the conflist that made it.
//!
//! Lives under `/run`, as the attachments live as long as the boot. Written beside its place and renamed.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use podspan_cni::attachment::{AttachmentId, NetworkName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The directory of the results.
#[derive(Debug)]
pub struct Results {
    directory: PathBuf,
}

/// What is kept of an ADD.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Cached {
    /// The conflist that was run.
    pub conflist: Value,
    /// The last plugin's result.
    pub result: Value,
}

/// The file: names in a file's name cannot be told apart (`a-b` and `c`, `a` and `b-c`), so they stand in it.
#[derive(Serialize, Deserialize)]
struct File {
    network: String,
    container: String,
    ifname: String,
    #[serde(flatten)]
    cached: Cached,
}

impl Results {
    /// In that directory, which is made when it is needed.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Keeps a result.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn write(
        &self,
        network: &NetworkName,
        id: &AttachmentId,
        cached: &Cached,
    ) -> anyhow::Result<()> {
        let path = self.path(network, id);
        let file = serde_json::json!({
            "network": network.as_str(),
            "container": id.container.as_str(),
            "ifname": id.ifname.as_str(),
            "conflist": cached.conflist,
            "result": cached.result,
        });
        let write = || -> std::io::Result<()> {
            std::fs::create_dir_all(&self.directory)?;
            let draft = path.with_extension("tmp");
            std::fs::write(&draft, file.to_string())?;
            std::fs::rename(&draft, &path)
        };
        write().with_context(|| format!("write {}", path.display()))
    }

    /// The attachment's result, on that network or on any; a file that cannot be read counts as none.
    ///
    /// # Errors
    /// A directory that is there and cannot be read.
    pub fn find(
        &self,
        network: Option<&NetworkName>,
        id: &AttachmentId,
    ) -> anyhow::Result<Option<Cached>> {
        let entries = match self.directory.read_dir() {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("list {}", self.directory.display()));
            }
        };
        let names = |file: &File| {
            file.container == id.container.as_str()
                && file.ifname == id.ifname.as_str()
                && network.is_none_or(|network| file.network == network.as_str())
        };
        let mut paths: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        paths.sort();
        let files = paths
            .iter()
            .filter(|path| path.extension().is_some_and(|suffix| suffix == "json"));
        let mut files =
            files.filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok());
        Ok(files.find(names).map(|file: File| file.cached))
    }

    /// Forgets a result; that there is none is fine.
    ///
    /// # Errors
    /// What the file system answered.
    pub fn remove(&self, network: &NetworkName, id: &AttachmentId) -> anyhow::Result<()> {
        let path = self.path(network, id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, network: &NetworkName, id: &AttachmentId) -> PathBuf {
        self.directory
            .join(format!("{network}-{}-{}.json", id.container, id.ifname))
    }
}
