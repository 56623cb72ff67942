//! Another IPAM plugin, run in our place where `ipam.type` names one (CNI 1.1.0, section 4, "Plugin Delegation").
//!
//! It gets our own environment and configuration (T23) and answers with a result without interfaces. This is the only
//! room that starts a process; a configuration of ours never comes here.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::error::Error;
use crate::result::CniResult;
use crate::version::Version;

/// An IPAM plugin of somebody else's with what it is told.
#[derive(Debug, Clone)]
pub struct Delegate {
    executable: PathBuf,
    configuration: Vec<u8>,
    version: Version,
}

impl Delegate {
    /// The plugin of that name in the directories of `CNI_PATH`, in their order.
    ///
    /// # Errors
    /// [`Error::Environment`] when none of them has it; [`Error::Config`] for a name that is a path (T17).
    pub fn find(
        name: &str,
        cni_path: Option<&OsStr>,
        configuration: &[u8],
        version: Version,
    ) -> Result<Self, Error> {
        if name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(Error::Config(format!(
                "ipam.type: {name:?} is no plugin's name"
            )));
        }
        let path = cni_path.unwrap_or_default();
        let executable = std::env::split_paths(path)
            .map(|dir| dir.join(name))
            .find(|file| file.is_file());
        let executable = executable.ok_or_else(|| {
            Error::Environment(format!(
                "ipam.type: there is no plugin {name:?} in CNI_PATH, which is {path:?}"
            ))
        })?;
        Ok(Self {
            executable,
            configuration: configuration.to_vec(),
            version,
        })
    }

    /// Runs ADD and reads the addresses.
    ///
    /// # Errors
    /// The plugin's own, or [`Error::Io`] when it cannot be run or read.
    pub fn add(&self) -> Result<CniResult, Error> {
        let answer = self.run("ADD")?;
        let value = serde_json::from_slice(&answer).map_err(|error| {
            Error::Decode(format!(
                "{} answered ADD with no JSON: {error}",
                self.executable.display()
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
        let failed = |error: std::io::Error| {
            Error::Io(format!(
                "run {} for {command}: {error}",
                self.executable.display()
            ))
        };
        let mut child = Command::new(&self.executable)
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
        let name = self.executable.file_name().unwrap_or_default().display();
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
