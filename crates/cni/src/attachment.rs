//! What names an attachment (one container on one network) and everything that is derived from the name.
//!
//! The host veth's name and alias follow from the attachment alone, so that DEL and GC find what is ours without a
//! look-up table, without the pod's network namespace and without a previous result. Nothing here does I/O.

use std::fmt;
use std::str::FromStr;

use podspan_kernel::{IfName, Invalid, Link, Mac};

/// Every alias of a link of ours begins so; a link without it is somebody else's.
pub const MARK: &str = "podspan:";

/// The alias of a bridge of ours.
pub const BRIDGE_ALIAS: &str = "podspan:bridge";

/// The longest alias that the kernel stores, in bytes (`IFALIASZ` less the final NUL).
const ALIAS_MAX: usize = 255;

/// A container's id as the runtime gave it: begins alphanumeric, then letters, digits, `_`, `.`, `-` (CNI rule T2).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

/// The name of a network: begins alphanumeric, then letters, digits, `_`, `.`, `-` (CNI rule T13).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(String);

/// The character rule that CNI has for both names.
fn is_cni_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

macro_rules! cni_name {
    ($name:ident, $what:literal) => {
        impl $name {
            /// The name as text; safe as a part of a file name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                if is_cni_name(text) {
                    return Ok(Self(text.to_owned()));
                }
                Err(Invalid(format!(
                    concat!($what, " {:?} must begin with a letter or digit and hold only letters, digits, '_', '.' and '-'"),
                    text
                )))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
cni_name!(ContainerId, "container id");
cni_name!(NetworkName, "network name");

/// One container on one network: the key under which everything of an attachment is found (CNI 1.1.0, "GC").
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId {
    /// The container.
    pub container: ContainerId,
    /// The pod veth's name, usually `eth0`.
    pub ifname: IfName,
}

impl AttachmentId {
    /// The host veth's name: `pod` and 48 bits of a hash of the network and the attachment.
    ///
    /// The network is part of it: one container may be on two networks under one interface name in turn, while a late DEL
    /// of the first is still to come.
    pub fn host_veth(&self, network: &NetworkName) -> IfName {
        self.derived("pod", network)
    }

    /// The name of what the plugin in the place of `portmap` records of it, beside what the host veth's name stands for.
    pub fn port_mappings(&self, network: &NetworkName) -> IfName {
        self.derived("map", network)
    }

    fn derived(&self, prefix: &str, network: &NetworkName) -> IfName {
        let name = format!(
            "{prefix}{:012x}",
            podspan_kernel::hash(&self.parts(network)) >> 16
        );
        #[expect(
            clippy::expect_used,
            reason = "15 bytes of letters and digits are always an interface name"
        )]
        name.parse().expect("a prefix and twelve digits")
    }

    /// The name of the ifb device that the pod's packets go through: who made it, 15 bits of a hash of the network, and 50
    /// of one of the attachment. The network is readable in it for GC, which may find the device without its alias.
    pub fn ifb(&self, network: &NetworkName, maker: IfbMaker) -> IfName {
        let attachment = podspan_kernel::hash(&self.parts(network)) >> 14;
        let name = format!("{}{}", ifb_prefix(network, maker), base32(attachment, 10));
        #[expect(
            clippy::expect_used,
            reason = "15 bytes of letters and digits are always an interface name"
        )]
        name.parse().expect("two letters and thirteen digits")
    }

    /// True for a link that bears the attachment's alias, or none: a kill may have come before it was set. To be asked of
    /// a link whose name is the attachment's, which nobody else forms.
    pub fn may_own(&self, link: &Link, network: &NetworkName) -> bool {
        let named = link.alias.as_deref().map(Self::from_alias);
        named.is_none_or(|named| named == Some((network.clone(), self.clone())))
    }

    /// The MAC address of a pod without an IP address.
    pub fn mac(&self, network: &NetworkName) -> Mac {
        Mac::of_text(&self.parts(network))
    }

    /// What names the attachment among those of all networks.
    fn parts<'a>(&'a self, network: &'a NetworkName) -> [&'a str; 5] {
        [
            network.as_str(),
            "/",
            self.container.as_str(),
            "/",
            self.ifname.as_str(),
        ]
    }

    /// The host veth's alias, which carries the attachment: `podspan:<network>/<container id>/<interface>`.
    ///
    /// # Errors
    /// When it would be longer than the 255 bytes that the kernel stores.
    pub fn alias(&self, network: &NetworkName) -> Result<String, Invalid> {
        let alias = format!("{MARK}{network}/{}/{}", self.container, self.ifname);
        if alias.len() > ALIAS_MAX {
            return Err(Invalid(format!(
                "network name and container id have {} bytes together, the link's alias has room for {}",
                network.as_str().len() + self.container.as_str().len(),
                ALIAS_MAX - (alias.len() - network.as_str().len() - self.container.as_str().len()),
            )));
        }
        Ok(alias)
    }

    /// The network and the attachment that a link's alias names; none for an alias that is not an attachment of ours.
    pub fn from_alias(alias: &str) -> Option<(NetworkName, Self)> {
        let mut parts = alias.strip_prefix(MARK)?.splitn(3, '/');
        let network = parts.next()?.parse().ok()?;
        let container = parts.next()?.parse().ok()?;
        let ifname = parts.next()?.parse().ok()?;
        Some((network, Self { container, ifname }))
    }
}

/// Which plugin made an ifb device: one attachment may have one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfbMaker {
    /// The one that made the host veth.
    Attaching,
    /// The one called `bandwidth`, behind it in the chain.
    Bandwidth,
}

/// True for the name of an ifb device of some attachment of the network.
pub fn is_ifb_of(name: &str, network: &NetworkName, maker: IfbMaker) -> bool {
    name.len() == 15 && name.starts_with(&ifb_prefix(network, maker))
}

fn ifb_prefix(network: &NetworkName, maker: IfbMaker) -> String {
    let letters = match maker {
        IfbMaker::Attaching => "px",
        IfbMaker::Bandwidth => "bx",
    };
    let hash = podspan_kernel::hash(&[network.as_str()]);
    format!("{letters}{}", base32(hash >> 32, 3))
}

/// The lowest digits of a number to the base of 32.
fn base32(number: u64, digits: u32) -> String {
    let digit = |place: u32| char::from_digit((number >> (5 * place) & 31) as u32, 32);
    (0..digits).rev().filter_map(digit).collect()
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container, self.ifname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container: &str) -> AttachmentId {
        AttachmentId {
            container: container.parse().unwrap(),
            ifname: "eth0".parse().unwrap(),
        }
    }

    #[test]
    fn t2_and_t13_names_begin_alphanumeric() {
        for good in ["a", "0x", "A.b_c-d"] {
            assert!(
                good.parse::<ContainerId>().is_ok() && good.parse::<NetworkName>().is_ok(),
                "{good}"
            );
        }
        for bad in ["", "-a", ".a", "_a", "a/b", "a b", "a\\b", "ä"] {
            assert!(
                bad.parse::<ContainerId>().is_err() && bad.parse::<NetworkName>().is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn alias_names_the_attachment_and_nothing_else_does() {
        let network: NetworkName = "podspan".parse().unwrap();
        let alias = id("c1").alias(&network).unwrap();
        assert_eq!(alias, "podspan:podspan/c1/eth0");
        assert_eq!(
            AttachmentId::from_alias(&alias),
            Some((network.clone(), id("c1")))
        );
        assert_eq!(AttachmentId::from_alias(BRIDGE_ALIAS), None);
        assert_eq!(AttachmentId::from_alias("uplink"), None);
        assert!(
            id(&"c".repeat(300))
                .alias(&network)
                .unwrap_err()
                .0
                .contains("307 bytes")
        );
    }

    #[test]
    fn ifb_devices_differ_by_maker_and_attachment_and_tell_their_network() {
        let (a, b): (NetworkName, NetworkName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let makers = [IfbMaker::Attaching, IfbMaker::Bandwidth];
        let mut names = std::collections::BTreeSet::new();
        for (network, maker) in [&a, &b].into_iter().flat_map(|n| makers.map(|m| (n, m))) {
            for number in 0..1000 {
                let name = id(&format!("c{number}")).ifb(network, maker);
                assert_eq!(name.as_str().len(), 15);
                for (other, by) in [&a, &b].into_iter().flat_map(|n| makers.map(|m| (n, m))) {
                    let expected = (other, by) == (network, maker);
                    assert_eq!(is_ifb_of(name.as_str(), other, by), expected, "{name}");
                }
                names.insert(name);
            }
        }
        assert_eq!(names.len(), 4000);
        assert_eq!(base32(0x1f, 3), "00v");
    }

    #[test]
    fn host_veth_differs_by_network_container_and_interface() {
        let (a, b): (NetworkName, NetworkName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let other = AttachmentId {
            ifname: "net1".parse().unwrap(),
            ..id("c1")
        };
        let names = [
            id("c1").host_veth(&a),
            id("c2").host_veth(&a),
            id("c1").host_veth(&b),
            other.host_veth(&a),
        ];
        assert_eq!(
            names
                .iter()
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            4
        );
        assert!(names.iter().all(|name| name.as_str().len() == 15));
    }
}
