//! What is said of a way that fails: what happened, where the packets leave this node, and what would mend it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podspan_kernel::{Netlink, Result};

use super::{Direction, Failing, Failure, PORT, Peer};

/// More are told together.
const ONE_BY_ONE: usize = 10;

/// Where packets leave this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The link.
    pub link: String,
    /// Its kind, such as `vxlan`; none for a physical device.
    pub kind: Option<String>,
}

/// Where packets to an address leave this node, by the kernel's own word.
///
/// # Errors
/// What the kernel answered.
pub fn way(netlink: &mut Netlink, ip: IpAddr) -> Result<Option<Way>> {
    let Some(index) = netlink.route_to(ip)?.link else {
        return Ok(None);
    };
    let link = netlink.link(index)?;
    Ok(Some(Way {
        link: link.name,
        kind: link.kind,
    }))
}

/// A line for people about a way that fails; it begins with what happened and ends with what would mend it.
pub fn describe(peer: &Peer, failure: Failure, way: Option<&Way>) -> String {
    let on = way
        .map(|way| format!(" on {}", way.link))
        .unwrap_or_default();
    let address = peer.address.unwrap_or(peer.gateway);
    let gateway = peer.gateway;
    match failure {
        Failure::NoRoute => format!(
            "peer {peer} is not reached: no route; see podspan status, and ip route get {gateway}"
        ),
        Failure::Silent => {
            let tunnel = way.filter(|way| way.kind.as_deref() == Some("vxlan"));
            let offload = tunnel.map(|way| {
                format!("; wrong checksums of tunnelled packets are known to do this: ethtool -K {} tx off", way.link)
            });
            format!(
                "peer {peer} does not answer{on}; see whether the node is up: ping {address}, whether it lets TCP port \
                 {PORT} in, and podspan status on it{}",
                offload.unwrap_or_default()
            )
        }
        Failure::TooLarge { bytes, lost } => {
            let which = match lost {
                Direction::There => "sent to it",
                Direction::Back => "that it sends",
            };
            format!(
                "peer {peer}: small packets pass, those of {bytes} bytes {which} are lost{on}: a link on the way has a smaller MTU \
                 and does not say so; raise it (ip link set dev … mtu …), or set mtu on every node to what passes (podspan explain finds it)"
            )
        }
        Failure::PathMtu { path, pods } => format!(
            "peer {peer}: pods send packets of {pods} bytes, and the way{on} takes {path}; raise the MTU of what is on it \
             (ip link set dev … mtu {pods}), or set mtu = {path} on every node"
        ),
    }
}

/// The lines about all that fail; `way` is asked about those that are told one by one. Many are not, and then not by their
/// number either, which would be another line for each that comes or goes.
pub fn problems(failing: &Failing, mut way: impl FnMut(IpAddr) -> Option<Way>) -> BTreeSet<String> {
    if failing.len() <= ONE_BY_ONE {
        let lines = failing.iter();
        return lines
            .map(|(peer, failure)| describe(peer, *failure, way(peer.gateway).as_ref()))
            .collect();
    }
    let kind = |failure: &Failure| match failure {
        Failure::NoRoute | Failure::Silent => "are not reached or do not answer",
        Failure::TooLarge { .. } => "lose large packets",
        Failure::PathMtu { .. } => "take no packets as large as pods send",
    };
    let kinds: BTreeSet<&str> = failing.values().map(kind).collect();
    let line = |kind| {
        format!(
            "of more than {ONE_BY_ONE} failing peers some {kind}; podspan_probe_failing_peer among the metrics names the first hundred"
        )
    };
    kinds.into_iter().map(line).collect()
}
