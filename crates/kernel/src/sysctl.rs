//! Kernel parameters under `/proc/sys`.
//!
//! `/proc/sys/net` shows the network namespace of the calling thread. A key is the path below `/proc/sys`
//! (`net/ipv6/conf/eth0/accept_ra`), because the names of links may hold dots. A container that is not privileged has
//! `/proc/sys` read-only: there the whole process looks at the host's, mounted elsewhere ([`use_root`]).

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, retry_on_intr};

use crate::error::{Error, Result};

/// Values are shorter, in bytes.
const VALUE: usize = 4096;

/// Where the parameters are; nothing is `/proc/sys`. It follows from the mounts that the process has, once and for all.
static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// From now on, parameters are below `root`, for the whole process.
///
/// # Errors
/// Exists: another root is in use already.
pub fn use_root(root: &Path) -> Result<()> {
    match ROOT.get_or_init(|| root.to_owned()) {
        used if used == root => Ok(()),
        used => Err(Error::new(
            format!(
                "look for sysctls in {} instead of {}",
                root.display(),
                used.display()
            ),
            rustix::io::Errno::EXIST,
        )),
    }
}

/// The value, without the line's end.
///
/// # Errors
/// Not found where the kernel has no such parameter (as all of `net/ipv6` without IPv6), or what it answered; EOVERFLOW for a
/// value of 4096 bytes or more.
pub fn read(key: &str) -> Result<String> {
    whole(&path(key))
        .map(|text| text.trim_end().to_owned())
        .map_err(|error| Error::from_io(format!("read sysctl {key}"), &error))
}

/// The text of a parameter, by one call: the kernel tells it at once, as far as there is room, and of numbers never the rest
/// (`do_proc_dointvec`, `proc_do_large_bitmap`).
fn whole(path: &Path) -> io::Result<String> {
    let file = File::open(path)?;
    let mut text = Vec::with_capacity(VALUE);
    let length = retry_on_intr(|| rustix::io::read(&file, spare_capacity(&mut text)))?;
    match length < VALUE {
        true => String::from_utf8(text).map_err(io::Error::other),
        false => Err(Errno::OVERFLOW.into()),
    }
}

/// Sets the value, whatever it was.
///
/// # Errors
/// As [`read`].
pub fn write(key: &str, value: &str) -> Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .open(path(key))
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|error| Error::from_io(format!("set sysctl {key} to {value}"), &error))
}

/// Sets the value where it is another one; on a read-only `/proc/sys` the right value is therefore enough.
///
/// # Errors
/// As [`read`].
pub fn ensure(key: &str, value: &str) -> Result<()> {
    if read(key)? == value {
        Ok(())
    } else {
        write(key, value)
    }
}

fn path(key: &str) -> PathBuf {
    let root = ROOT.get().map_or(Path::new("/proc/sys"), PathBuf::as_path);
    root.join(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestNs;

    #[test]
    fn sysctls_are_those_of_the_thread_s_network_namespace() {
        let ns = TestNs::new();
        ns.ip("link add dotted.0 type bridge");
        assert_eq!(read("net/ipv4/ip_forward"), Ok("0".into()));
        ensure("net/ipv4/ip_forward", "1").unwrap();
        ensure("net/ipv4/ip_forward", "1").unwrap();
        write("net/ipv6/conf/dotted.0/accept_ra", "0").unwrap();
        assert_eq!(read("net/ipv6/conf/dotted.0/accept_ra"), Ok("0".into()));
        let ports = |count: u32| {
            let ports: Vec<_> = (1..count).map(|port| (2 * port).to_string()).collect();
            write("net/ipv4/ip_local_reserved_ports", &ports.join(",")).unwrap();
            ports.join(",")
        };
        let many = ports(500);
        assert_eq!(read("net/ipv4/ip_local_reserved_ports"), Ok(many));
        ports(2000);
        let cut = read("net/ipv4/ip_local_reserved_ports").unwrap_err();
        assert_eq!(cut.errno(), Errno::OVERFLOW);
        let error = write("net/ipv4/conf/none/rp_filter", "1").unwrap_err();
        assert!(error.is_not_found());
        let _other = TestNs::new();
        assert_eq!(read("net/ipv4/ip_forward"), Ok("0".into()));
    }
}
