//! A conflist as a runtime understands it: which one is taken, and what each plugin of it gets to read (T33, T34).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use podspan_cni::attachment::NetworkName;
use podspan_cni::version::Version;
use serde_json::{Map, Value, json};

/// A conflist that can be run.
#[derive(Debug)]
pub struct Chain {
    /// The network's name.
    pub network: NetworkName,
    /// The plugins' configurations, as they stand in the conflist.
    pub plugins: Vec<Map<String, Value>>,
    /// The version in which we speak with the plugins.
    version: Version,
}

impl Chain {
    /// Loads the conflist of that network, or else the first in the order of file names.
    ///
    /// # Errors
    /// There is none, or it is not right.
    pub fn load(conf_dir: &Path, network: Option<&NetworkName>) -> anyhow::Result<Self> {
        for file in files(conf_dir, "conflist")? {
            let chain = Self::read(conf_dir, &file);
            match (chain, network) {
                (chain, None) => return chain,
                (Ok(chain), Some(wanted)) if chain.network == *wanted => return Ok(chain),
                // Of another network, whether it is right or not.
                _ => {}
            }
        }
        let of = network
            .map(|network| format!(" of network {network}"))
            .unwrap_or_default();
        bail!(
            "no conflist{of} in {}; the agent writes it, or see --conf-dir",
            conf_dir.display()
        )
    }

    fn read(conf_dir: &Path, file: &Path) -> anyhow::Result<Self> {
        let conflist = read_json(file)?;
        let mut chain = Self::parse(&conflist).with_context(|| file.display().to_string())?;
        if conflist
            .get("loadOnlyInlinedPlugins")
            .is_none_or(|only| !is_true(only))
        {
            for extra in files(&conf_dir.join(chain.network.as_str()), "conf").unwrap_or_default() {
                let plugin = read_json(&extra)?;
                let plugin = plugin
                    .as_object()
                    .with_context(|| format!("{} is no object", extra.display()))?;
                chain.plugins.push(plugin.clone());
            }
        }
        if chain.plugins.is_empty() {
            bail!("{}: plugins: the list is empty", file.display());
        }
        Ok(chain)
    }

    /// Reads a conflist's JSON.
    ///
    /// # Errors
    /// The key that is not right.
    pub fn parse(conflist: &Value) -> anyhow::Result<Self> {
        let name = conflist
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let plugins = conflist
            .get("plugins")
            .and_then(Value::as_array)
            .context("plugins: must be a list")?;
        let plugins = plugins.iter().enumerate().map(|(index, plugin)| {
            let plugin = plugin
                .as_object()
                .filter(|plugin| plugin.get("type").is_some_and(Value::is_string));
            plugin
                .cloned()
                .with_context(|| format!("plugins[{index}].type: is missing"))
        });
        Ok(Self {
            network: name.parse().map_err(|invalid| anyhow!("name: {invalid}"))?,
            version: version(conflist)?,
            plugins: plugins.collect::<anyhow::Result<_>>()?,
        })
    }

    /// The conflist as JSON; read again it gives an equal chain.
    pub fn to_json(&self) -> Value {
        json!({"cniVersion": self.version.as_str(), "name": self.network.as_str(), "plugins": self.plugins})
    }

    /// What the plugin gets to read (T34). We offer no runtime configuration, so no capability is asked for.
    pub fn netconf(&self, plugin: &Map<String, Value>, prev_result: Option<&Value>) -> Value {
        let mut netconf = plugin.clone();
        netconf.remove("capabilities");
        netconf.insert("name".to_owned(), json!(self.network.as_str()));
        netconf.insert("cniVersion".to_owned(), json!(self.version.as_str()));
        if let Some(result) = prev_result {
            netconf.insert("prevResult".to_owned(), result.clone());
        }
        Value::Object(netconf)
    }
}

/// The plugin's type, which is the name of its executable.
pub fn kind(plugin: &Map<String, Value>) -> &str {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The newest version that the conflist names and we know.
fn version(conflist: &Value) -> anyhow::Result<Version> {
    let one = conflist.get("cniVersion").into_iter();
    let more = conflist
        .get("cniVersions")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let named: Vec<&str> = one.chain(more).filter_map(Value::as_str).collect();
    let newest = named
        .iter()
        .filter_map(|version| Version::parse(version))
        .max();
    newest.with_context(|| {
        let known = Version::ALL.map(Version::as_str).join(", ");
        format!(
            "cniVersion: the conflist names {:?}; we speak {known}",
            named.join(", ")
        )
    })
}

/// The reference library takes the texts "true" and "false" too.
fn is_true(value: &Value) -> bool {
    *value == json!(true) || *value == json!("true")
}

/// The files with that suffix, in the order of their names.
fn files(directory: &Path, suffix: &str) -> anyhow::Result<Vec<PathBuf>> {
    let entries = directory
        .read_dir()
        .with_context(|| format!("list {}", directory.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|found| found == suffix))
        .collect();
    files.sort();
    Ok(files)
}

fn read_json(file: &Path) -> anyhow::Result<Value> {
    let bytes = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is no JSON", file.display()))
}
