//! The Linux network stack, typed: links, addresses, routes, network namespaces, sysctls.
//!
//! Every call is blocking and short, and belongs to one network namespace: that in which its socket was opened. This
//! crate knows no pods, no CNI and no Kubernetes, decides nothing, and never runs another program.

mod address;
mod classifier;
pub mod conntrack;
pub mod echo;
mod encode;
mod error;
mod fdb;
mod link;
mod monitor;
mod names;
pub mod namespaces;
mod neighbour;
mod netlink;
pub mod netns;
pub mod nflog;
mod nfnetlink;
pub mod nft;
mod qdisc;
mod route;
pub mod socket;
pub mod start;
pub mod sysctl;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vlan;
mod vxlan;

pub use address::Address;
pub use classifier::{Instruction, Verdict};
pub use error::{Error, Result, errno_text};
pub use link::{BridgeVlans, Link, LinkChange, LinkGroup, LinkKey, VethEnd, VethPair};
pub use monitor::{LinkSet, Monitor};
pub use names::{IfName, Invalid, Mac, Prefix, hash};
pub use neighbour::{Neighbour, Reachability};
pub use netlink::Netlink;
pub use netns::Netns;
pub use qdisc::Bandwidth;
pub use route::{Route, RouteOptions, RouteProtocol};
pub use rustix::io::Errno;
pub use vlan::Vlans;
pub use vxlan::{FdbEntry, Vxlan, VxlanDevice};
