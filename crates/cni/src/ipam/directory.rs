//! One directory of the store, and the few things that are done with files in it. Knows no addresses and no owners.
//!
//! A file comes into being complete and exclusive in one step: written without a name (`O_TMPFILE`), then linked. A kill
//! at any point leaves either the whole file or nothing, and of two writers one is told that the name is taken.
//! Never add a call that creates a file under its final name and writes it afterwards.
//! Surprising: linked files are not synced. A power loss is another boot, and the state of another boot is void.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::error::IpamError;

/// The longest file name, in bytes (`NAME_MAX` of limits.h).
pub(super) const NAME_MAX: usize = 255;

/// The longest file that [`Directory::read`] takes for whole; ours have some hundred bytes at most.
const CONTENT_MAX: usize = 4096;

const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o755);

/// An open directory.
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens the directory; none when there is none.
    pub fn open(path: &Path) -> Result<Option<Self>, IpamError> {
        step();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self {
                fd,
                path: path.to_owned(),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(io_error("open", path, errno)),
        }
    }

    /// Opens the directory, made with its parents where it is missing.
    pub fn ensure(path: &Path) -> Result<Self, IpamError> {
        if let Some(directory) = Self::open(path)? {
            return Ok(directory);
        }
        ensure_path(path)?;
        Self::open(path)?.ok_or_else(|| io_error("open", path, Errno::NOENT))
    }

    /// The directory's own path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a directory inside; fine if it is there.
    pub fn ensure_inner(&self, name: &str) -> Result<(), IpamError> {
        make_directory(&self.path.join(name))
    }

    /// Waits for the exclusive lock, which is free again when the returned file is dropped or the process dies.
    ///
    /// The lock file and the kind of lock are host-local's, so that both can work on one directory.
    pub fn lock(&self) -> Result<OwnedFd, IpamError> {
        step();
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, "lock", flags, FILE_MODE)
            .map_err(|errno| self.error("open", "lock", errno))?;
        retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::LockExclusive))
            .map_err(|errno| self.error("lock", "lock", errno))?;
        Ok(fd)
    }

    /// Makes the file complete and exclusive in one step; false when the name is taken, by whatever content.
    pub fn link_new(&self, name: &str, content: &str) -> Result<bool, IpamError> {
        step();
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(&self.fd, ".", flags, FILE_MODE).map_err(|errno| match errno {
                // A kernel or file system that does not know the flag opens the directory itself for writing (open(2)).
                Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL => IpamError::Unsupported {
                    path: self.path.clone(),
                    errno,
                },
                errno => self.error("create", name, errno),
            })?;
        // The umask of whoever started us is not our affair.
        rustix::fs::fchmod(&fd, FILE_MODE).map_err(|errno| self.error("chmod", name, errno))?;
        let mut file = File::from(fd);
        file.write_all(content.as_bytes())
            .map_err(|err| self.error("write", name, errno_of(&err)))?;
        step();
        let linked = match rustix::fs::linkat(&file, "", &self.fd, name, AtFlags::EMPTY_PATH) {
            // Without CAP_DAC_READ_SEARCH the short way is closed (open(2), O_TMPFILE).
            Err(Errno::NOENT) => {
                let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::linkat(CWD, unnamed, &self.fd, name, AtFlags::SYMLINK_FOLLOW)
            }
            linked => linked,
        };
        match linked {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(self.error("link", name, errno)),
        }
    }

    /// Puts the file in the place of whatever has the name, durably. Only for files that have one writer: under the lock.
    pub fn replace(&self, name: &str, content: &[u8]) -> Result<(), IpamError> {
        let draft = format!("{name}.new");
        let write = || -> io::Result<()> {
            step();
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(&self.fd, draft.as_str(), flags, FILE_MODE)?;
            rustix::fs::fchmod(&fd, FILE_MODE)?;
            let mut file = File::from(fd);
            file.write_all(content)?;
            file.sync_data()?;
            step();
            Ok(rustix::fs::renameat(
                &self.fd,
                draft.as_str(),
                &self.fd,
                name,
            )?)
        };
        write().map_err(|err| self.error("write", name, errno_of(&err)))
    }

    /// The file's content; none when there is no such file. Longer than any file of ours counts as empty: damaged.
    pub fn read(&self, name: &str) -> Result<Option<String>, IpamError> {
        step();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.error("open", name, errno)),
        };
        let mut buffer = vec![0; CONTENT_MAX];
        // One call: a regular file is read short only at its end.
        let length = retry_on_intr(|| rustix::io::read(&fd, buffer.as_mut_slice()))
            .map_err(|errno| self.error("read", name, errno))?;
        let whole = buffer.get(..length).filter(|_| length < CONTENT_MAX);
        Ok(Some(
            String::from_utf8_lossy(whole.unwrap_or_default()).into_owned(),
        ))
    }

    /// Opens a file for reading and writing at given positions; none when there is no such file.
    pub fn open_file(&self, name: &str) -> Result<Option<File>, IpamError> {
        step();
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("open", name, errno)),
        }
    }

    /// True when something has the name, be it a link that leads nowhere.
    pub fn holds(&self, name: &str) -> Result<bool, IpamError> {
        step();
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.error("look for", name, errno)),
        }
    }

    /// When the file was last written, in seconds since 1970; none when there is no such file.
    pub fn written(&self, name: &str) -> Result<Option<i64>, IpamError> {
        step();
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.st_mtime)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("look for", name, errno)),
        }
    }

    /// Removes the file; fine if it is absent.
    pub fn remove(&self, name: &str) -> Result<(), IpamError> {
        step();
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.error("remove", name, errno)),
        }
    }

    /// The names in the directory, or in the one inside it; none when it is absent. Costs as much as there are files.
    pub fn names(&self, inner: &str) -> Result<Vec<String>, IpamError> {
        step();
        let path = self.path.join(inner);
        let listed = fs::read_dir(&path).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        match listed {
            Ok(entries) => Ok(entries
                .into_iter()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .collect()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(err) => Err(io_error("list", &path, errno_of(&err))),
        }
    }

    /// The failure of `operation` on the file `name`.
    pub fn error(&self, operation: &'static str, name: &str, errno: Errno) -> IpamError {
        io_error(operation, &self.path.join(name), errno)
    }
}

/// The errno of a failure of the standard library; EIO where it has none (a write that wrote nothing).
pub(super) fn errno_of(err: &io::Error) -> Errno {
    Errno::from_io_error(err).unwrap_or(Errno::IO)
}

fn io_error(operation: &'static str, path: &Path, errno: Errno) -> IpamError {
    IpamError::Io {
        operation,
        path: path.to_owned(),
        errno,
    }
}

/// Makes the directory and its missing parents.
fn ensure_path(path: &Path) -> Result<(), IpamError> {
    match path.parent() {
        Some(parent) if !parent.exists() => ensure_path(parent)?,
        _ => {}
    }
    make_directory(path)
}

/// Makes one directory with mode 0755 whatever the umask; one that is there keeps its mode.
fn make_directory(path: &Path) -> Result<(), IpamError> {
    step();
    match rustix::fs::mkdir(path, DIRECTORY_MODE) {
        Ok(()) => {
            let mode = fs::Permissions::from_mode(DIRECTORY_MODE.as_raw_mode());
            fs::set_permissions(path, mode).map_err(|err| io_error("chmod", path, errno_of(&err)))
        }
        Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(io_error("make directory", path, errno)),
    }
}

/// Stands before every step that another process can see. Tests count the steps, or die at one.
#[cfg(not(test))]
#[inline]
pub(super) fn step() {}

#[cfg(test)]
pub(super) use steps::step;

#[cfg(test)]
pub(super) mod steps {
    //! The test's view of the steps. A kill is a panic: nothing in this room has a `Drop` that touches a file.

    use std::cell::Cell;

    thread_local! {
        static TAKEN: Cell<usize> = const { Cell::new(0) };
        static LAST: Cell<usize> = const { Cell::new(usize::MAX) };
    }

    /// What a killed thread's panic says.
    pub const KILLED: &str = "killed by the test";

    pub fn step() {
        if TAKEN.get() >= LAST.get() {
            LAST.set(usize::MAX);
            std::panic::resume_unwind(Box::new(KILLED));
        }
        TAKEN.set(TAKEN.get() + 1);
    }

    /// How many steps `work` takes.
    pub fn count<T>(work: impl FnOnce() -> T) -> (usize, T) {
        TAKEN.set(0);
        let done = work();
        (TAKEN.get(), done)
    }

    /// Kills `work` before its step number `last`; its result when it had no more than so many.
    pub fn kill_at<T>(last: usize, work: impl FnOnce() -> T) -> Option<T> {
        TAKEN.set(0);
        LAST.set(last);
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok();
        LAST.set(usize::MAX);
        done
    }
}
