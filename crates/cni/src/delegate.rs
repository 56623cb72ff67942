//! Another IPAM plugin, run in our place where `ipam.type` names one (CNI 1.1.0, section 4, "Plugin Delegation").
//!
//! It gets our own environment and configuration (T23) and answers with a result without interfaces. This is the only
//! room that starts a process; a configuration of ours never comes here.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::Error;
use crate::result::CniResult;
use crate::version::Version;

/// An IPAM plugin of somebody else's with what it is told. That it is there is seen when it is run, so that DEL and GC do all
/// else without it.
#[derive(Debug, Clone)]
pub struct Delegate {
    name: String,
    cni_path: OsString,
    configuration: Vec<u8>,
    version: Version,
}

impl Delegate {
    /// The plugin of that name in the directories of `CNI_PATH`.
    pub fn new(
        name: &str,
        cni_path: Option<&OsStr>,
        configuration: &[u8],
        version: Version,
    ) -> Self {
        Self {
            name: name.to_owned(),
            cni_path: cni_path.unwrap_or_default().to_owned(),
            configuration: configuration.to_vec(),
            version,
        }
    }

    /// The first that has the name, in the order of the directories.
    ///
    /// # Errors
    /// [`Error::Environment`] when none of them has it; [`Error::Config`] for a name that is a path (T17).
    pub fn executable(&self) -> Result<PathBuf, Error> {
        let Self { name, cni_path, .. } = self;
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(Error::Config(format!(
                "ipam.type: {name:?} is no plugin's name"
            )));
        }
        std::env::split_paths(cni_path)
            .map(|dir| dir.join(name))
            .find(|file| file.is_file())
            .ok_or_else(|| {
                Error::Environment(format!(
                    "ipam.type: there is no plugin {name:?} in CNI_PATH, which is {cni_path:?}"
                ))
            })
    }

    /// Runs ADD and reads the addresses.
    ///
    /// # Errors
    /// The plugin's own, as of [`Self::executable`], or [`Error::Io`] when it cannot be run or read.
    pub fn add(&self) -> Result<CniResult, Error> {
        let answer = self.run("ADD")?;
        let value = serde_json::from_slice(&answer).map_err(|error| {
            let name = &self.name;
            Error::Decode(format!(
                "IPAM plugin {name} answered ADD with no JSON: {error}"
            ))
        })?;
        CniResult::parse(value, self.version)
    }

    /// Runs a command that answers nothing: CHECK, DEL, GC, STATUS.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn tell(&self, command: &str) -> Result<(), Error> {
        self.run(command).map(drop)
    }

    fn run(&self, command: &str) -> Result<Vec<u8>, Error> {
        let executable = self.executable()?;
        let failed = |error: std::io::Error| {
            Error::Io(format!(
                "run {} for {command}: {error}",
                executable.display()
            ))
        };
        let mut child = Command::new(&executable)
            .env("CNI_COMMAND", command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let told = child
            .stdin
            .take()
            .map_or(Ok(()), |mut input| input.write_all(&self.configuration));
        let output = child.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return match told {
                // A plugin may end without reading, when it needs nothing of it (DEL) or says itself what was wrong.
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(failed(error)),
                _ => Ok(output.stdout),
            };
        }
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let name = &self.name;
        let number = answer
            .get("code")
            .and_then(Value::as_u64)
            .and_then(|code| u32::try_from(code).ok())
            // No error has it (CNI 1.1.0, "Error").
            .filter(|code| *code != 0);
        let text = |key| {
            answer
                .get(key)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
        };
        let said = [text("msg"), text("details")]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(": ");
        Err(Error::Delegate {
            code: number.unwrap_or(UNTOLD),
            text: match said.is_empty() {
                true => format!(
                    "IPAM plugin {name}: {command} failed with {}",
                    output.status
                ),
                false => format!("IPAM plugin {name}: {said}"),
            },
        })
    }
}

/// The code for a delegate that failed without saying one.
const UNTOLD: u32 = 100;
