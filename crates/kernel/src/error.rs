//! The one error of this crate: which operation, on what, and what the kernel answered.
//!
//! Nobody matches text: callers ask [`Error::is_not_found`] and its like.

use std::fmt;

use rustix::io::Errno;

/// What went wrong, printed as *`add route 10.1.2.0/24 via 192.0.2.3: network is unreachable (ENETUNREACH)`*.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    action: String,
    errno: Errno,
    detail: Option<String>,
}

/// This crate's results.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of the operation and object that `action` names, such as `remove link podspan0`.
    pub fn new(action: impl Into<String>, errno: Errno) -> Self {
        Self {
            action: action.into(),
            errno,
            detail: None,
        }
    }

    /// The same from an [`std::io::Error`]; one without an errno counts as EIO.
    pub fn from_io(action: impl Into<String>, error: &std::io::Error) -> Self {
        Self::new(action, Errno::from_io_error(error).unwrap_or(Errno::IO))
    }

    /// With the kernel's own words about it (`NLMSGERR_ATTR_MSG`).
    pub(crate) fn with_detail(mut self, detail: Option<String>) -> Self {
        self.detail = detail;
        self
    }

    /// What the kernel answered.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// True when the object, or what it hangs on, is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno,
            Errno::NOENT | Errno::NODEV | Errno::SRCH | Errno::ADDRNOTAVAIL | Errno::NXIO
        )
    }

    /// True when an object of that key is there already.
    pub fn is_exists(&self) -> bool {
        self.errno == Errno::EXIST
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action, errno_text(self.errno))?;
        match &self.detail {
            Some(detail) => write!(f, ": {}", detail.trim_end_matches('.')),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// An errno in words and by name: `network is unreachable (ENETUNREACH)`.
pub fn errno_text(errno: Errno) -> String {
    let os = std::io::Error::from(errno).to_string();
    let words = os.split(" (os error").next().unwrap_or_default();
    let mut letters = words.chars();
    let first: String = letters
        .next()
        .into_iter()
        .flat_map(char::to_lowercase)
        .collect();
    format!("{first}{} ({})", letters.as_str(), errno_name(errno))
}

/// The names that networking meets; any other errno by its number.
fn errno_name(errno: Errno) -> String {
    const NAMES: [(Errno, &str); 30] = [
        (Errno::PERM, "EPERM"),
        (Errno::NOENT, "ENOENT"),
        (Errno::SRCH, "ESRCH"),
        (Errno::INTR, "EINTR"),
        (Errno::IO, "EIO"),
        (Errno::NXIO, "ENXIO"),
        (Errno::AGAIN, "EAGAIN"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::ACCESS, "EACCES"),
        (Errno::BUSY, "EBUSY"),
        (Errno::EXIST, "EEXIST"),
        (Errno::NODEV, "ENODEV"),
        (Errno::NOTDIR, "ENOTDIR"),
        (Errno::ISDIR, "EISDIR"),
        (Errno::INVAL, "EINVAL"),
        (Errno::NFILE, "ENFILE"),
        (Errno::MFILE, "EMFILE"),
        (Errno::NOSPC, "ENOSPC"),
        (Errno::ROFS, "EROFS"),
        (Errno::PIPE, "EPIPE"),
        (Errno::RANGE, "ERANGE"),
        (Errno::NAMETOOLONG, "ENAMETOOLONG"),
        (Errno::OPNOTSUPP, "EOPNOTSUPP"),
        (Errno::AFNOSUPPORT, "EAFNOSUPPORT"),
        (Errno::ADDRNOTAVAIL, "EADDRNOTAVAIL"),
        (Errno::NETDOWN, "ENETDOWN"),
        (Errno::NETUNREACH, "ENETUNREACH"),
        (Errno::NOBUFS, "ENOBUFS"),
        (Errno::NOTCONN, "ENOTCONN"),
        (Errno::HOSTUNREACH, "EHOSTUNREACH"),
    ];
    match NAMES.iter().find(|(known, _)| *known == errno) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("errno {}", errno.raw_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_operation_object_and_errno() {
        let error = Error::new("add route 10.1.2.0/24 via 192.0.2.3", Errno::NETUNREACH);
        let text = "add route 10.1.2.0/24 via 192.0.2.3: network is unreachable (ENETUNREACH)";
        assert_eq!(error.to_string(), text);
        let told = error.with_detail(Some("Nexthop has invalid gateway.".into()));
        assert_eq!(
            told.to_string(),
            format!("{text}: Nexthop has invalid gateway")
        );
        assert_eq!(
            errno_text(Errno::XDEV),
            "invalid cross-device link (errno 18)"
        );
    }

    #[test]
    fn callers_ask_and_never_match_text() {
        assert!(Error::new("remove link x", Errno::NODEV).is_not_found());
        assert!(Error::new("remove route x", Errno::SRCH).is_not_found());
        assert!(Error::new("add link x", Errno::EXIST).is_exists());
        assert!(!Error::new("add link x", Errno::PERM).is_exists());
    }
}
