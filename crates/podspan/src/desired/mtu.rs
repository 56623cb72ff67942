//! How large the pods' packets are: what the uplink takes, less the encapsulation.
//!
//! What would surprise: where that is not known, or too little, nothing is changed that is there. The kernel takes IPv6 away from a
//! bridge whose MTU is too small for it, and the plugin refuses a conflist that says so.

use super::{Draft, IPV6_MTU};
use crate::cluster::Node;

/// The link that each network namespace has, whose MTU says nothing of the way.
const LOOPBACK: &str = "lo";

impl Draft<'_> {
    /// None where it is not known, or less than the pods' IPv6 needs; that is refused then.
    pub(super) fn mtu_of_pods(&mut self, own: &Node, overhead: u32, has_ipv6: bool) -> Option<u32> {
        let uplink = self.uplink_mtu(own)?;
        let mtu = uplink.saturating_sub(overhead);
        if !has_ipv6 || mtu >= IPV6_MTU {
            return Some(mtu);
        }
        let needed = IPV6_MTU + overhead;
        let refused = self.cluster.addresses(own).map(|address| {
            address.refuse(format!(
                "its link has an MTU of {uplink}, and the pods' IPv6 needs {needed} of it; raise it (ip link set dev … mtu {needed}), \
                 or set mtu in {}",
                self.config.file.display()
            ))
        });
        self.refusals.extend(refused);
        None
    }

    /// The smallest MTU of the links that have an address of this node.
    fn uplink_mtu(&mut self, own: &Node) -> Option<u32> {
        let on_links = self.underlay.subnets.iter();
        let mtu = on_links
            .filter(|subnet| own.addresses.contains(&subnet.net.addr()))
            .filter(|subnet| subnet.link_name.as_ref() != LOOPBACK)
            .map(|subnet| subnet.mtu)
            .min();
        if mtu.is_none() {
            let refused = self.cluster.addresses(own).map(|address| {
                let fix =
                    "no link of this node but lo has it, so the MTU is not known; correct it, or set mtu";
                address.refuse(format!("{fix} in {}", self.config.file.display()))
            });
            self.refusals.extend(refused);
        }
        mtu
    }
}
