//! What the interface of an attachment was before it was tuned: a file for each attachment in `dataDir`.
//!
//! Name and keys are the reference plugin's, so that each restores what the other kept. Two more keys say whose the file
//! is, for GC, and of which namespace, for a DEL whose path leads to another pod by now. A file appears whole or not at
//! all, and the first one stays: a second ADD would take tuned values for the first.

use std::collections::BTreeSet;
use std::path::PathBuf;

use podspan_kernel::{Link, LinkChange, Mac};
use serde::{Deserialize, Serialize};

use super::conf::TuningConf;
use crate::attachment::{AttachmentId, NetworkName};
use crate::error::Error;
use crate::ipam::Directory;
use crate::netconf::Input;

const DATA_DIR: &str = "/run/cni/tuning";
const SUFFIX: &str = ".json";

/// The attributes that are to be changed, as they were.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Backup {
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_queue_length: Option<u32>,
    /// The alias that a link of the attachment would bear.
    #[serde(skip_serializing_if = "Option::is_none")]
    attachment: Option<String>,
    /// The number of the pod's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
}

impl Backup {
    /// What the configuration is about to change.
    pub fn of(link: &Link, conf: &TuningConf) -> Self {
        Self {
            mac: conf.mac.and(link.mac).map(|mac| mac.to_string()),
            promisc: conf.promisc.map(|_| link.promiscuous),
            mtu: conf.mtu.map(|_| link.mtu),
            allmulti: conf.allmulti.map(|_| link.all_multicast),
            tx_queue_length: conf.tx_queue_length.map(|_| link.tx_queue_length),
            ..Self::default()
        }
    }

    pub fn mark(self, attachment: String, netns: u64) -> Self {
        Self {
            attachment: Some(attachment),
            netns: Some(netns),
            ..self
        }
    }

    /// True where nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// False when it is known to be of another namespace.
    pub fn is_of(&self, netns: u64) -> bool {
        self.netns.is_none_or(|of| of == netns)
    }

    /// The way back.
    pub fn change(&self) -> LinkChange<'static> {
        let mac = self.mac.as_deref().and_then(|mac| mac.parse::<Mac>().ok());
        LinkChange {
            mac,
            mtu: self.mtu,
            promiscuous: self.promisc,
            all_multicast: self.allmulti,
            tx_queue_length: self.tx_queue_length,
            ..LinkChange::default()
        }
    }
}

/// The directory of backups (`dataDir`).
pub(super) struct Backups {
    path: PathBuf,
}

impl Backups {
    /// However broken the rest of the configuration is.
    ///
    /// # Errors
    /// [`Error::Config`] for a path that is not absolute.
    pub fn of(input: &Input) -> Result<Self, Error> {
        let dir = input.keys().get("dataDir").and_then(|dir| dir.as_str());
        let path = PathBuf::from(dir.filter(|dir| !dir.is_empty()).unwrap_or(DATA_DIR));
        match path.is_absolute() {
            true => Ok(Self { path }),
            false => Err(Error::Config(format!(
                "dataDir is {}; it must be absolute",
                path.display()
            ))),
        }
    }

    /// Keeps it, unless there is one of the attachment already.
    ///
    /// # Errors
    /// [`Error::Ipam`] with what the file system answered.
    pub fn keep(&self, id: &AttachmentId, backup: Backup) -> Result<(), Error> {
        let text = serde_json::to_string(&backup)
            .map_err(|error| Error::Io(format!("write a backup as JSON: {error}")))?;
        Directory::ensure(&self.path)?.link_new(&file_name(id), &text)?;
        Ok(())
    }

    /// The attachment's; a damaged one says nothing.
    ///
    /// # Errors
    /// As [`Self::keep`].
    pub fn find(&self, id: &AttachmentId) -> Result<Option<Backup>, Error> {
        let Some(directory) = Directory::open(&self.path)? else {
            return Ok(None);
        };
        let text = directory.read(&file_name(id))?;
        Ok(text.map(|text| serde_json::from_str(&text).unwrap_or_default()))
    }

    /// Removes it; that there is none is fine.
    ///
    /// # Errors
    /// As [`Self::keep`].
    pub fn remove(&self, id: &AttachmentId) -> Result<(), Error> {
        if let Some(directory) = Directory::open(&self.path)? {
            directory.remove(&file_name(id))?;
        }
        Ok(())
    }

    /// Removes those of the network's attachments that are not `valid`. A file of the reference plugin does not say whose
    /// it is, and stays.
    ///
    /// # Errors
    /// All that could not be removed.
    pub fn retain(
        &self,
        network: &NetworkName,
        valid: &BTreeSet<AttachmentId>,
    ) -> Result<(), Error> {
        let Some(directory) = Directory::open(&self.path)? else {
            return Ok(());
        };
        let mut errors = Vec::new();
        for name in directory.names("")? {
            let text = match name.ends_with(SUFFIX) {
                true => directory.read(&name)?.unwrap_or_default(),
                false => continue,
            };
            let backup: Backup = serde_json::from_str(&text).unwrap_or_default();
            let of = backup
                .attachment
                .as_deref()
                .and_then(AttachmentId::from_alias);
            if of.is_some_and(|(of, id)| of == *network && !valid.contains(&id)) {
                errors.extend(directory.remove(&name).err().map(Error::Ipam));
            }
        }
        Error::from_all(errors)
    }
}

fn file_name(id: &AttachmentId) -> String {
    format!("{}_{}{SUFFIX}", id.container, id.ifname)
}
