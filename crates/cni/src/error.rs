//! What can go wrong with an attachment, and the one table that turns it into a CNI error code.
//!
//! Every text names what was wrong, its value, and what would be right.

use std::fmt;

use podspan_kernel::{Errno, Invalid};

use crate::ipam::IpamError;

/// Why a CNI command failed.
#[derive(Debug)]
pub enum Error {
    /// The configuration's `cniVersion` is one that we do not speak, or too old for the command.
    Version(String),
    /// A key that this version of the plugin does not serve; the text holds key and value.
    UnsupportedField(String),
    /// An environment variable is missing or wrong.
    Environment(String),
    /// Standard input could not be read, or standard output not be written.
    Io(String),
    /// Standard input is no JSON.
    Decode(String),
    /// The configuration has a value that cannot be.
    Config(String),
    /// `CNI_NETNS` is the plugin's own network namespace.
    OwnNetns(String),
    /// The kernel refused.
    Kernel(podspan_kernel::Error),
    /// The allocation of addresses failed.
    Ipam(IpamError),
    /// The attachment that is asked for is there already.
    AlreadyAttached(String),
    /// Something that only one can have is another attachment's.
    Taken(String),
    /// CHECK found the attachment to be other than it should be.
    Deviations(Vec<String>),
    /// The IPAM plugin that ours delegates to failed.
    Delegate {
        /// The code that it told.
        code: u32,
        /// What it said, with its name.
        text: String,
    },
    /// ADD would not be accepted now (STATUS).
    Unavailable(String),
    /// Several things failed, each on its own; the first one gives the code.
    Several(Vec<Error>),
}

impl Error {
    /// The code of this error: those below 100 are CNI's (CNI 1.1.0, "Error"), the others ours (`docs/podspan-cni.md`).
    pub fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::UnsupportedField(_) => 2,
            Self::Environment(_) => 4,
            Self::Io(_) => 5,
            Self::Decode(_) => 6,
            Self::Config(_) => 7,
            Self::OwnNetns(_) => 8,
            Self::Kernel(error) if is_transient(error.errno()) => 11,
            Self::Delegate { code, .. } => *code,
            Self::Unavailable(_) => 50,
            Self::Kernel(_) => 100,
            Self::Ipam(error) => match error {
                IpamError::Exhausted { .. } | IpamError::Taken { .. } => 101,
                IpamError::Unserved { .. } => 7,
                IpamError::Duplicate { .. } => 102,
                IpamError::Contended { .. } => 11,
                _ => 104,
            },
            Self::AlreadyAttached(_) | Self::Taken(_) => 102,
            Self::Deviations(_) => 103,
            Self::Several(errors) => errors.first().map_or(100, Self::code),
        }
    }

    /// One error out of those of steps that went on after each other; none out of none.
    pub(crate) fn from_all(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(Self::Several(errors)),
        }
    }
}

/// What passes by itself: the same call may succeed in a moment.
fn is_transient(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::AGAIN
            | Errno::INTR
            | Errno::BUSY
            | Errno::NOMEM
            | Errno::NOBUFS
            | Errno::MFILE
            | Errno::NFILE
            // Others changed the packet filter all the time.
            | Errno::RESTART
    )
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(text)
            | Self::UnsupportedField(text)
            | Self::Environment(text)
            | Self::Io(text)
            | Self::Decode(text)
            | Self::Config(text)
            | Self::OwnNetns(text)
            | Self::AlreadyAttached(text)
            | Self::Taken(text)
            | Self::Delegate { text, .. }
            | Self::Unavailable(text) => f.write_str(text),
            Self::Kernel(error) => error.fmt(f),
            Self::Ipam(error) => error.fmt(f),
            Self::Deviations(found) => f.write_str(&found.join("; ")),
            Self::Several(errors) => {
                let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
                f.write_str(&texts.join("; "))
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<podspan_kernel::Error> for Error {
    fn from(error: podspan_kernel::Error) -> Self {
        Self::Kernel(error)
    }
}

impl From<IpamError> for Error {
    fn from(error: IpamError) -> Self {
        Self::Ipam(error)
    }
}

impl From<Invalid> for Error {
    fn from(invalid: Invalid) -> Self {
        Self::Config(invalid.0)
    }
}
