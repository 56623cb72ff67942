//! A lab seen from outside: whether it is up, starting it, ending it, and getting into it.
//!
//! A lab is its holder, pid 1 of a PID namespace: with it the kernel ends every process, namespace and mount of the lab.
//! All that exists outside is one state file with the holder's pid. The holder keeps that file locked as long as it lives
//! (flock(2); the lock goes with the process, however it ends), so that a pid in a locked file is always the holder's and
//! never that of a process which got the number later. Nothing here changes the machine's own network.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{PipeReader, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use podspan_cni::attachment::NetworkName;
use podspan_kernel::namespaces::{self, Kind};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::wait_until;
use crate::output::Output;

/// A lab of that name, up or not.
pub struct Instance {
    name: NetworkName,
    state_file: PathBuf,
}

/// What the state file says.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// The holder, as numbered outside.
    pid: i32,
}

impl Instance {
    /// The lab of that name and of the user who runs this.
    ///
    /// # Errors
    /// When there is no directory for its state file that nobody else can write to.
    pub fn named(name: NetworkName) -> Result<Self> {
        let directory = state_directory()?;
        let state_file = directory.join(format!("{name}.json"));
        Ok(Self { name, state_file })
    }

    /// The holder's pid; none when the lab is not up, and then what a dead one left is removed.
    ///
    /// # Errors
    /// When the state file cannot be read.
    fn holder(&self) -> Result<Option<Pid>> {
        let mut holder = None;
        // Between taking the lock and writing its pid the holder needs a moment.
        wait_until("the lab's holder to write its pid", || {
            let mut file = match File::open(&self.state_file) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
                file => file.with_context(|| format!("open {}", self.state_file.display()))?,
            };
            match file.try_lock_shared() {
                Ok(()) => {
                    self.forget()?;
                    return Ok(true);
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            let state = serde_json::from_str::<State>(&text);
            holder = state.ok().and_then(|state| Pid::from_raw(state.pid));
            Ok(holder.is_some())
        })?;
        Ok(holder)
    }

    /// Takes the state file for a new lab.
    fn claim(&self) -> Result<File> {
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&self.state_file)
                .with_context(|| format!("create {}", self.state_file.display()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => bail!(
                    "lab {0:?} is up already; `podspan lab --lab {0} down` takes it down, \
                     `podspan lab --lab <name> up` makes another beside it",
                    self.name.as_str()
                ),
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            // Somebody may have removed the file of a dead lab between our opening and our locking it.
            let same = |there: fs::Metadata| Ok(there.ino() == file.metadata()?.ino());
            if fs::metadata(&self.state_file)
                .and_then(same)
                .unwrap_or(false)
            {
                file.set_len(0)?;
                return Ok(file);
            }
        }
    }

    fn forget(&self) -> Result<()> {
        match fs::remove_file(&self.state_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", self.state_file.display()))
            }
            _ => Ok(()),
        }
    }

    /// Starts the holder, `podspan lab hold <argument>`, as pid 1 of a new PID namespace and, unless root does it, as root
    /// of a new user namespace. What it has to say comes out of the pipe.
    ///
    /// # Errors
    /// When the lab is up already, or where no namespaces can be made.
    pub fn start(&self, argument: &str) -> Result<(Child, PipeReader)> {
        let state_file = self.claim()?;
        let program = std::env::current_exe().context("find this program's own file")?;
        let kinds: &[Kind] = match geteuid().is_root() {
            true => &[Kind::Pid],
            false => &[Kind::User, Kind::Pid],
        };
        let started = namespaces::unshare(kinds)
            .map_err(|error| {
                anyhow!(
                    "{error}; the lab needs root (CAP_SYS_ADMIN), or user namespaces for everybody (see sysctl \
                     user.max_user_namespaces, kernel.unprivileged_userns_clone, \
                     kernel.apparmor_restrict_unprivileged_userns)"
                )
            })
            .and_then(|()| {
                let (reader, writer) = std::io::pipe()?;
                let holder = Command::new(program)
                    .args(["lab", "--lab", self.name.as_str(), "hold", argument])
                    .stdin(state_file)
                    .stdout(writer.try_clone()?)
                    .stderr(writer)
                    .spawn()
                    .context("start the lab's holder")?;
                Ok((holder, reader))
            });
        if started.is_err() {
            self.forget()?;
        }
        started
    }

    /// Ends a lab that [`Self::start`] began and that did not come up.
    ///
    /// # Errors
    /// When its state file cannot be removed.
    pub fn abandon(&self, mut holder: Child) -> Result<()> {
        // It may have ended by itself.
        let _ = holder.kill();
        let _ = holder.wait();
        self.forget()
    }

    /// Ends the lab and waits until nothing is left of it; false when it was not up.
    ///
    /// # Errors
    /// When the holder cannot be killed, or the state file cannot be removed.
    pub fn end(&self) -> Result<bool> {
        let Some(pid) = self.holder()? else {
            return Ok(false);
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("open the lab's holder")?;
        // The pidfd is of the holder for certain if the holder still lives now.
        if self.holder()? == Some(pid) {
            pidfd_send_signal(&pidfd, Signal::KILL).context("end the lab's holder")?;
            // Ready when the holder is gone, which it is only after all others of its PID namespace (pid_namespaces(7)).
            poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None)
                .context("wait for the lab's end")?;
        }
        self.forget()?;
        Ok(true)
    }

    /// Runs `podspan lab inside <argument>` in the lab, with this process's standard streams, and passes its exit status.
    ///
    /// The calling process is of no other use afterwards.
    ///
    /// # Errors
    /// When the lab is not up, or cannot be entered.
    pub fn run_inside(&self, argument: &str, output: Output) -> Result<ExitCode> {
        let Some(pid) = self.holder()? else {
            bail!(
                "lab {0:?} is not up; `podspan lab --lab {0} up` makes it",
                self.name.as_str()
            );
        };
        let program = std::env::current_exe().context("find this program's own file")?;
        let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let all = [
            Kind::User,
            Kind::Mount,
            Kind::Pid,
            Kind::Net,
            Kind::Uts,
            Kind::Ipc,
        ];
        namespaces::enter(&process, &all).context("enter the lab")?;
        // Ctrl-C is for the command inside; its exit status is told after it ended.
        let seen = Arc::default();
        signal_hook::flag::register(signal_hook::consts::SIGINT, seen)?;
        let output = match output {
            Output::Text => "text",
            Output::Json => "json",
        };
        let status = Command::new(&program)
            .args([
                "-o",
                output,
                "lab",
                "--lab",
                self.name.as_str(),
                "inside",
                argument,
            ])
            .status()
            .with_context(|| format!("start {} in the lab", program.display()))?;
        Ok(exit_code(status))
    }
}

/// Writes this process's pid, as numbered outside, into the state file that is its standard input.
///
/// To be called by the holder, before it mounts a `/proc` of its own.
///
/// # Errors
/// When `/proc` or the file is not there.
pub fn record_holder() -> Result<()> {
    let pid = process_number()?;
    let state = serde_json::to_vec(&State { pid })?;
    rustix::io::pwrite(std::io::stdin(), &state, 0).context("write the lab's state file")?;
    Ok(())
}

/// The caller's pid as `/proc` numbers it, which is what is needed to find it there.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn process_number() -> Result<i32> {
    let own = fs::read_link("/proc/self").context("read /proc/self")?;
    let number = own.to_str().and_then(|text| text.parse().ok());
    number.with_context(|| format!("/proc/self is {}", own.display()))
}

/// As a shell has it: 128 and the signal for a process that a signal ended.
fn exit_code(status: ExitStatus) -> ExitCode {
    let killed = || status.signal().map(|signal| signal.saturating_add(128));
    let code = status.code().or_else(killed).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Where the state files of this user's labs are, made if need be: nobody else may write there.
fn state_directory() -> Result<PathBuf> {
    let user = geteuid().as_raw();
    let directory = match std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) {
        _ if user == 0 => PathBuf::from("/run/podspan-lab"),
        Some(runtime) if is_owned_by(&runtime, user) => runtime.join("podspan-lab"),
        _ => PathBuf::from(format!("/tmp/podspan-lab-{user}")),
    };
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("create {}", directory.display()))
        }
        _ if is_owned_by(&directory, user) => Ok(directory),
        _ => bail!(
            "{} is not a directory of user {user} that nobody else can write to",
            directory.display()
        ),
    }
}

/// A real directory of that user's, in which nobody else can write.
fn is_owned_by(directory: &Path, user: u32) -> bool {
    fs::symlink_metadata(directory)
        .is_ok_and(|there| there.is_dir() && there.uid() == user && there.mode() & 0o022 == 0)
}
