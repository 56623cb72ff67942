//! What the executable is called, and what it therefore is: our own plugin, or one of the reference plugins' place.
//!
//! Under a reference plugin's name it takes that plugin's configuration with that plugin's defaults, so that an existing
//! conflist runs unchanged. `podspan-cni install <dir>` makes the names.

use std::ffi::OsStr;
use std::path::Path;

mod bandwidth;
mod firewall;
mod fixed;
mod host_local;
pub mod install;
mod loopback;
mod portmap;
mod tuning;

pub(crate) use bandwidth::serve_bandwidth;
pub(crate) use firewall::serve_firewall;
pub(crate) use fixed::serve_static;
pub(crate) use host_local::serve_host_local;
pub(crate) use loopback::serve_loopback;
pub(crate) use portmap::{serve_portmap, undo_portmap};
pub(crate) use tuning::serve_tuning;

/// A plugin that the executable can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `podspan-cni`: bridge and IPAM with our own defaults.
    Podspan,
    /// `bridge`: the same with the reference plugin's defaults.
    Bridge,
    /// `host-local`: the IPAM alone.
    HostLocal,
    /// `loopback`: the pod's `lo`.
    Loopback,
    /// `portmap`: host ports of a pod that another plugin attached.
    Portmap,
    /// `ptp`: a veth pair without a bridge.
    Ptp,
    /// `static`: the IPAM that gives what the configuration says.
    Static,
    /// `bandwidth`: limits on a veth pair that another plugin made.
    Bandwidth,
    /// `tuning`: sysctls and attributes of an interface that another plugin made.
    Tuning,
    /// `firewall`: the node forwards for the pods, whatever else it drops.
    Firewall,
}

/// What is meant where a configuration says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// `bridge`.
    pub bridge: &'static str,
    /// `isGateway` and `isDefaultGateway`.
    pub gateway: bool,
    /// `hairpinMode`.
    pub hairpin: bool,
    /// `antiSpoof`.
    pub anti_spoof: bool,
    /// `ipam.dataDir`.
    pub data_dir: &'static str,
}

impl Program {
    /// All reference plugins whose place it takes.
    pub const REFERENCE: [(&'static str, Self); 9] = [
        ("bandwidth", Self::Bandwidth),
        ("bridge", Self::Bridge),
        ("firewall", Self::Firewall),
        ("host-local", Self::HostLocal),
        ("loopback", Self::Loopback),
        ("portmap", Self::Portmap),
        ("ptp", Self::Ptp),
        ("static", Self::Static),
        ("tuning", Self::Tuning),
    ];

    /// What an executable of that path is; of any other name it is our own plugin.
    pub fn of(path: Option<&OsStr>) -> Self {
        let name = path
            .and_then(|path| Path::new(path).file_name())
            .unwrap_or_default();
        let known = Self::REFERENCE
            .into_iter()
            .find(|(reference, _)| *reference == name);
        known.map_or(Self::Podspan, |(_, program)| program)
    }

    /// Its defaults.
    pub fn defaults(self) -> Defaults {
        match self {
            Self::Podspan => Defaults {
                bridge: "podspan0",
                gateway: true,
                hairpin: true,
                anti_spoof: true,
                data_dir: "/run/podspan/ipam",
            },
            _ => Defaults {
                bridge: "cni0",
                gateway: false,
                hairpin: false,
                anti_spoof: false,
                data_dir: "/var/lib/cni/networks",
            },
        }
    }
}
