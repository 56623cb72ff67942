//! One attachment of a pod on this node: the CNI protocol, IPAM, attach, detach, check.
//!
//! This crate knows one pod. It does not know that other nodes exist, opens no network connection and has no threads,
//! and runs another program only where `ipam.type` names one. Start reading at [`plugin::serve`], then [`attach::attach`].

pub mod addresses;
pub mod attach;
pub mod attachment;
pub mod bandwidth;
mod bridge;
pub mod check;
pub mod delegate;
pub mod detach;
pub mod error;
pub mod filter;
pub mod forwarding;
pub mod guard;
pub mod host;
pub mod ipam;
mod isolation;
pub mod netconf;
pub mod plugin;
pub mod pod_policy;
mod point_to_point;
pub mod port_mapping;
pub mod program;
pub mod request;
pub mod requested;
pub mod result;
pub mod version;
pub mod vlan;
