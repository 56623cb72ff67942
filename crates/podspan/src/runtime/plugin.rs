//! Running a plugin's executable: the environment, the configuration on its stdin, the answer on its stdout.
//!
//! What it writes to stderr goes to ours. An answer that is an error is told with its code, its message and its details.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, anyhow, bail};
use podspan_cni::attachment::AttachmentId;
use serde_json::Value;

/// Where the plugins' executables are.
#[derive(Debug)]
pub struct Plugins {
    path: OsString,
}

/// What a plugin is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// `ADD` or `DEL`.
    pub command: &'static str,
    /// For which attachment.
    pub id: &'a AttachmentId,
    /// The pod's namespace; for DEL it may be gone.
    pub netns: Option<&'a Path>,
}

impl Plugins {
    /// In the directories of `path`, which `:` separates.
    pub fn new(path: OsString) -> Self {
        Self { path }
    }

    /// Runs the plugin of `netconf`; none when it printed nothing.
    ///
    /// # Errors
    /// No such executable, or what the plugin answered.
    pub fn run(&self, call: &Call<'_>, netconf: &Value) -> anyhow::Result<Option<Value>> {
        let kind = netconf
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let what = format!("{kind} {}", call.command);
        let output = self
            .exchange(call, &self.find(kind)?, netconf)
            .with_context(|| what.clone())?;
        let answer = serde_json::from_slice::<Value>(&output.stdout);
        if !output.status.success() {
            return Err(refusal(answer.ok().as_ref(), &output)).context(what);
        }
        if output.stdout.trim_ascii().is_empty() {
            return Ok(None);
        }
        answer
            .map(Some)
            .with_context(|| format!("{what}: its answer is no JSON"))
    }

    fn exchange(&self, call: &Call<'_>, program: &Path, netconf: &Value) -> anyhow::Result<Output> {
        let mut plugin = Command::new(program)
            .env("CNI_COMMAND", call.command)
            .env("CNI_CONTAINERID", call.id.container.as_str())
            .env("CNI_IFNAME", call.id.ifname.as_str())
            .env(
                "CNI_NETNS",
                call.netns.map_or(OsStr::new(""), Path::as_os_str),
            )
            .env("CNI_PATH", &self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("run {}", program.display()))?;
        if let Some(mut stdin) = plugin.stdin.take() {
            // A plugin that ended without reading has said why on its stdout.
            let _ = stdin.write_all(&serde_json::to_vec(netconf)?);
        }
        plugin
            .wait_with_output()
            .with_context(|| format!("wait for {}", program.display()))
    }

    fn find(&self, kind: &str) -> anyhow::Result<PathBuf> {
        if kind.is_empty() || kind.contains(['/', '\\']) {
            bail!("plugin type {kind:?} is not the name of an executable");
        }
        let mut places = std::env::split_paths(&self.path).map(|directory| directory.join(kind));
        places.find(|place| place.is_file()).with_context(|| {
            format!(
                "plugin {kind} is not in {}; install it there, or set CNI_PATH",
                self.path.display()
            )
        })
    }
}

/// The error that the plugin printed, or what can be said without one.
fn refusal(answer: Option<&Value>, output: &Output) -> anyhow::Error {
    let text = |key: &str| answer?.get(key)?.as_str().filter(|text| !text.is_empty());
    let Some(message) = text("msg") else {
        return anyhow!("{} and no error printed", output.status);
    };
    let code = answer
        .and_then(|answer| answer.get("code"))
        .and_then(Value::as_u64)
        .unwrap_or_default();
    match text("details") {
        Some(details) => anyhow!("{message}: {details} (CNI code {code})"),
        None => anyhow!("{message} (CNI code {code})"),
    }
}
