//! Namespaces of every kind: making new ones, entering those of another process, and the mounts that they need.
//!
//! Everything here changes the calling thread for good (and a process that has one thread as a whole), so that it is for
//! programs that begin a new life: nothing comes back from where it went. A surprise: a new PID namespace, made or
//! entered, is that of the children only.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::error::{Error, Result};

/// A kind of namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// User and group ids, and the privileges over all namespaces made inside.
    User,
    /// Mounts.
    Mount,
    /// Process ids, of the children.
    Pid,
    /// The network stack.
    Net,
    /// The host name.
    Uts,
    /// System V IPC and POSIX message queues.
    Ipc,
}

impl Kind {
    /// The name of its file in `/proc/<pid>/ns`.
    fn file(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Net => "net",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
        }
    }

    fn unshare_flag(self) -> UnshareFlags {
        match self {
            Self::User => UnshareFlags::NEWUSER,
            Self::Mount => UnshareFlags::NEWNS,
            Self::Pid => UnshareFlags::NEWPID,
            Self::Net => UnshareFlags::NEWNET,
            Self::Uts => UnshareFlags::NEWUTS,
            Self::Ipc => UnshareFlags::NEWIPC,
        }
    }

    fn link_type(self) -> LinkNameSpaceType {
        match self {
            Self::User => LinkNameSpaceType::User,
            Self::Mount => LinkNameSpaceType::Mount,
            Self::Pid => LinkNameSpaceType::ProcessID,
            Self::Net => LinkNameSpaceType::Network,
            Self::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
            Self::Ipc => LinkNameSpaceType::InterProcessCommunication,
        }
    }
}

/// Moves the caller into new namespaces of these kinds, in one step.
///
/// In a new user namespace the caller is root: its own user and group are mapped to 0, and nobody else is mapped
/// (user_namespaces(7)). In a new mount namespace no mount made later shows elsewhere.
///
/// # Errors
/// EPERM where the machine does not allow it; EINVAL for a user namespace when the process has several threads.
pub fn unshare(kinds: &[Kind]) -> Result<()> {
    let names: Vec<_> = kinds.iter().map(|kind| kind.file()).collect();
    let user = rustix::process::geteuid().as_raw();
    let group = rustix::process::getegid().as_raw();
    let flags = kinds
        .iter()
        .fold(UnshareFlags::empty(), |all, kind| all | kind.unshare_flag());
    // SAFETY: a `Kind` is never `FILES`, so that every thread keeps the descriptors that it knows.
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .map_err(|errno| Error::new(format!("make namespaces ({})", names.join(", ")), errno))?;
    if kinds.contains(&Kind::User) {
        // An unprivileged process may map its group only after it gave up setgroups(2).
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("0 {user} 1")),
            ("gid_map", format!("0 {group} 1")),
        ] {
            fs::write(format!("/proc/self/{file}"), text)
                .map_err(|error| Error::from_io(format!("write /proc/self/{file}"), &error))?;
        }
    }
    if kinds.contains(&Kind::Mount) {
        crate::netns::make_mounts_private()?;
    }
    Ok(())
}

/// Moves the caller into namespaces of a process, in the order of `kinds`; `process` is its directory in `/proc`.
///
/// A user namespace goes first, for it gives the privileges to enter the others; that in which the caller is already is
/// left out, for the kernel refuses to enter it again (setns(2)). Entering a mount namespace moves to its `/`.
///
/// # Errors
/// Not found when there is no such process; EPERM; EINVAL for a user namespace when the caller has several threads.
pub fn enter(process: &Path, kinds: &[Kind]) -> Result<()> {
    let open = |kind: Kind, process: &Path| {
        let path = process.join("ns").join(kind.file());
        File::open(&path)
            .map_err(|error| Error::from_io(format!("open {}", path.display()), &error))
    };
    // All are opened before the first is entered: behind a new mount namespace `/proc` is another one.
    let mut targets = Vec::new();
    for kind in kinds {
        let target = open(*kind, process)?;
        if *kind == Kind::User && is_same(&target, &open(*kind, Path::new("/proc/thread-self"))?)? {
            continue;
        }
        targets.push((*kind, target));
    }
    for (kind, target) in targets {
        move_into_link_name_space(target.as_fd(), Some(kind.link_type())).map_err(|errno| {
            let action = format!("enter {}/ns/{}", process.display(), kind.file());
            Error::new(action, errno)
        })?;
    }
    Ok(())
}

fn is_same(one: &File, other: &File) -> Result<bool> {
    let id = |file: &File| {
        rustix::fs::fstat(file)
            .map(|stat| (stat.st_dev, stat.st_ino))
            .map_err(|errno| Error::new("stat namespace", errno))
    };
    Ok(id(one)? == id(other)?)
}

/// Mounts a new file system of that type (`tmpfs`, `proc`, `sysfs`) at `at`.
///
/// `proc` shows the caller's PID namespace (so that it takes a child to mount that of a new one), `sysfs` its network
/// namespace.
///
/// # Errors
/// What `mount` answered; EPERM for `proc` and `sysfs` where parts of the machine's own are hidden, as in a container.
pub fn mount(file_system: &str, at: &Path) -> Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount(file_system, at, file_system, flags, None)
        .map_err(|errno| error(&format!("mount {file_system}"), at, errno))
}

/// Shows the directory `from`, with all that is mounted below it, also at `at`.
///
/// # Errors
/// What `mount` answered.
pub fn mount_bind(from: &Path, at: &Path) -> Result<()> {
    rustix::mount::mount_bind_recursive(from, at)
        .map_err(|errno| error(&format!("bind {}", from.display()), at, errno))
}

/// Moves the mount at `from`, with all that is mounted below it, over `at`.
///
/// # Errors
/// What `mount` answered.
pub fn mount_move(from: &Path, at: &Path) -> Result<()> {
    rustix::mount::mount_move(from, at)
        .map_err(|errno| error(&format!("move mount {}", from.display()), at, errno))
}

fn error(action: &str, at: &Path, errno: Errno) -> Error {
    Error::new(format!("{action} at {}", at.display()), errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `work` on a thread of its own, which takes its namespaces with it.
    fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    fn directory(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("podspan-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn mounts_of_a_new_mount_namespace_show_nowhere_else() {
        let at = directory("mounts");
        apart(|| {
            unshare(&[Kind::Mount]).unwrap();
            mount("tmpfs", &at).unwrap();
            for name in ["new", "seen"] {
                fs::create_dir(at.join(name)).unwrap();
            }
            mount("tmpfs", &at.join("new")).unwrap();
            fs::write(at.join("new/file"), "text").unwrap();
            mount_bind(&at.join("new"), &at.join("seen")).unwrap();
            assert_eq!(fs::read_to_string(at.join("seen/file")).unwrap(), "text");
            mount_move(&at.join("new"), &at).unwrap();
            assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "text");
        });
        assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
        fs::remove_dir(&at).unwrap();
    }

    #[test]
    fn a_host_name_is_that_of_the_namespaces_entered() {
        let hostname = || rustix::system::uname().nodename().to_owned();
        let before = hostname();
        apart(|| {
            unshare(&[Kind::Uts, Kind::Net, Kind::Ipc]).unwrap();
            rustix::system::sethostname(b"elsewhere").unwrap();
            let there = fs::read_link("/proc/thread-self").unwrap();
            let there = Path::new("/proc").join(there);
            apart(|| {
                unshare(&[Kind::Uts]).unwrap();
                rustix::system::sethostname(b"third").unwrap();
                enter(&there, &[Kind::User, Kind::Net, Kind::Uts]).unwrap();
                assert_eq!(hostname().to_str(), Ok("elsewhere"));
            });
        });
        assert_eq!(hostname(), before);
        let gone = enter(Path::new("/proc/no-process"), &[Kind::Net]).unwrap_err();
        assert!(gone.is_not_found(), "{gone}");
    }
}
