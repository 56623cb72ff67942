//! Network namespaces: opening one, being in one, making one.
//!
//! A thread enters a namespace and stays there. Code that must come back runs on a thread of its own ([`Netns::run`]);
//! a short-lived program enters for good ([`Netns::enter`]), after it opened the sockets that it needs outside.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Stat, fstat};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::error::{Error, Result};

/// The calling thread's own network namespace.
const OWN: &str = "/proc/thread-self/ns/net";

/// `NSFS_MAGIC` (linux/magic.h): the file system that namespaces live in.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// An open network namespace; it lives at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    file: OwnedFd,
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace that is at `path`: a file under `/run/netns` or `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    /// Not found; EINVAL when the file is something else (as after its namespace was unmounted); what the kernel answered.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let action = || format!("open network namespace {}", path.display());
        let file = File::open(path).map_err(|error| Error::from_io(action(), &error))?;
        let magic = rustix::fs::fstatfs(&file)
            .map_err(|errno| Error::new(action(), errno))?
            .f_type;
        if magic.cast_unsigned() != NSFS_MAGIC {
            return Err(Error::new(action(), Errno::INVAL));
        }
        Ok(Self {
            file: file.into(),
            path: path.to_owned(),
        })
    }

    /// The calling thread's own.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn current() -> Result<Self> {
        Self::open(OWN)
    }

    /// The one that a socket was opened in.
    ///
    /// # Errors
    /// What `ioctl` answered; EPERM without CAP_NET_ADMIN in it.
    pub(crate) fn of_socket(socket: impl AsFd) -> Result<Self> {
        // SAFETY: SIOCGSKNS takes no argument and opens a descriptor (`sock_ioctl`, net/socket.c).
        let file = unsafe { ioctl(socket, NetnsOfSocket) }
            .map_err(|errno| Error::new("open network namespace of a socket", errno))?;
        Ok(Self {
            file,
            path: "of a socket".into(),
        })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// True when both are the same namespace.
    ///
    /// # Errors
    /// What `fstat` answered.
    pub fn is_same(&self, other: &Self) -> Result<bool> {
        let (mine, others) = (self.stat()?, other.stat()?);
        Ok((mine.st_dev, mine.st_ino) == (others.st_dev, others.st_ino))
    }

    /// Its number, which no other namespace of the machine has while it lives.
    ///
    /// # Errors
    /// What `fstat` answered.
    pub fn number(&self) -> Result<u64> {
        Ok(self.stat()?.st_ino)
    }

    fn stat(&self) -> Result<Stat> {
        fstat(&self.file).map_err(|errno| self.error("stat", errno))
    }

    /// Moves the calling thread into it, for good.
    ///
    /// # Errors
    /// What `setns` answered; EPERM without CAP_SYS_ADMIN over both.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| self.error("enter", errno))
    }

    /// Runs `work` inside it, on a thread that then ends.
    ///
    /// # Errors
    /// Those of [`Self::enter`], and EAGAIN when no thread could be had.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new()
                .spawn_scoped(scope, || self.enter().map(|()| work()))
                .map_err(|error| Error::from_io("start a thread", &error))?;
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into a new, empty namespace.
    ///
    /// # Errors
    /// What `unshare` answered.
    pub fn enter_new() -> Result<()> {
        // SAFETY: only the network namespace of this thread changes; no memory, descriptor or file system is unshared.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
            .map_err(|errno| Error::new("unshare network namespace", errno))
    }

    /// Makes a new namespace and pins it at `path`, a file that must not exist yet, as `ip netns add` does.
    ///
    /// # Errors
    /// Exists, or what the kernel answered; then nothing is left at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let action = || format!("create network namespace {}", path.display());
        File::create_new(path).map_err(|error| Error::from_io(action(), &error))?;
        let pin = || -> Result<()> {
            Self::enter_new()?;
            rustix::mount::mount_bind(OWN, path).map_err(|errno| Error::new(action(), errno))
        };
        let pinned = std::thread::scope(|scope| {
            scope
                .spawn(pin)
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        match pinned {
            Ok(()) => Self::open(path),
            Err(error) => {
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// Unpins the namespace at `path`; that nothing is there is fine. It ends with its last user.
    ///
    /// # Errors
    /// What `umount` or `unlink` answered.
    pub fn remove(path: &Path) -> Result<()> {
        let action = || format!("remove network namespace {}", path.display());
        match rustix::mount::unmount(path, UnmountFlags::DETACH) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(Error::new(action(), errno)),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::from_io(action(), &error))
            }
            _ => Ok(()),
        }
    }

    fn error(&self, verb: &str, errno: Errno) -> Error {
        Error::new(
            format!("{verb} network namespace {}", self.path.display()),
            errno,
        )
    }
}

/// `SIOCGSKNS` (linux/sockios.h): which network namespace a socket belongs to.
struct NetnsOfSocket;

// SAFETY: the opcode is one that takes no argument and answers a new descriptor, which nobody else owns.
unsafe impl Ioctl for NetnsOfSocket {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        0x894c
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(opened: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: the call succeeded, so that it is an open descriptor.
        Ok(unsafe { OwnedFd::from_raw_fd(opened) })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes every mount of the calling process's mount namespace private, so that none of ours shows elsewhere.
///
/// # Errors
/// What `mount` answered.
pub fn make_mounts_private() -> Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags)
        .map_err(|errno| Error::new("make mounts private", errno))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNs;

    #[test]
    fn run_leaves_the_caller_where_it_is() {
        let _ns = TestNs::new();
        let here = Netns::current().unwrap();
        let there = std::thread::spawn(|| Netns::enter_new().and_then(|()| Netns::current()))
            .join()
            .unwrap()
            .unwrap();
        assert!(!here.is_same(&there).unwrap());
        assert!(
            there
                .run(|| Netns::current()?.is_same(&there))
                .unwrap()
                .unwrap()
        );
        assert!(Netns::current().unwrap().is_same(&here).unwrap());
    }

    #[test]
    fn a_socket_leads_back_to_the_namespace_that_it_was_opened_in() {
        let ns = TestNs::new();
        let here = Netns::current().unwrap();
        let socket = crate::Netlink::open().unwrap();
        let _other = TestNs::new();
        assert!(!Netns::current().unwrap().is_same(&here).unwrap());
        socket.netns().unwrap().enter().unwrap();
        assert!(Netns::current().unwrap().is_same(&here).unwrap());
        ns.ip("link show lo");
    }

    #[test]
    fn a_file_that_is_no_namespace_is_told_apart() {
        let file = tempfile();
        assert_eq!(Netns::open(&file).unwrap_err().errno(), Errno::INVAL);
        std::fs::remove_file(&file).unwrap();
        assert!(Netns::open(&file).unwrap_err().is_not_found());
    }

    /// A path for a file of this test alone, which exists.
    fn tempfile() -> PathBuf {
        let name = format!("podspan-netns-{:?}", std::thread::current().id());
        let path = std::env::temp_dir().join(name.replace(['(', ')'], "-"));
        std::fs::write(&path, "").unwrap();
        path
    }
}
