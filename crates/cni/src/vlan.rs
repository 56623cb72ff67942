//! VLANs on the node's bridge (`vlan`, `vlanTrunk`, `preserveDefaultVlan`), as the bridge plugin has them.
//!
//! The pod's port has one VLAN without a tag (*access*) and any number with tags (*trunk*). In an access VLAN the bridge
//! itself is no gateway: it is in the default VLAN. So the gateway's address is on a link `<bridge>.<vlan>`, one end of a
//! veth pair whose other end is a port in that VLAN; as the bridge, it is made once and stays.
//! A surprise: many kernels can do none of this (`CONFIG_BRIDGE_VLAN_FILTERING`); ADD then says so, with code 2, before
//! anything is made.

use std::collections::BTreeSet;

use podspan_kernel::{Errno, IfName, Link, LinkChange, Mac, Netlink, Netns, VethEnd, VethPair};
use serde::Deserialize;
use serde_json::Value;

use crate::attachment::MARK;
use crate::bridge::{speak_ipv6_at_once, take_no_advertisement};
use crate::error::Error;

/// The greatest number of a VLAN (IEEE 802.1Q; 4095 is reserved).
const MAX: u16 = 4094;
/// The VLAN without a tag of a trunk that names none.
const NATIVE: u16 = 1;
/// What a link of a VLAN's gateway bears behind [`MARK`].
const ALIAS: &str = "vlan";

/// The VLANs of a pod's port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortVlans {
    /// The one without a tag.
    pub access: Option<u16>,
    /// Those with tags.
    pub trunk: BTreeSet<u16>,
    /// The bridge's default one stays beside them.
    pub keep_default: bool,
}

/// An element of `vlanTrunk`.
#[derive(Deserialize)]
struct Trunk {
    id: Option<i64>,
    #[serde(rename = "minID")]
    min: Option<i64>,
    #[serde(rename = "maxID")]
    max: Option<i64>,
}

impl PortVlans {
    /// Reads the keys' values.
    ///
    /// # Errors
    /// [`Error::Config`] with key, value and what would be right.
    pub fn parse(vlan: i64, trunk: Option<&Value>, keep_default: bool) -> Result<Self, Error> {
        let access = match u16::try_from(vlan) {
            Ok(0) => None,
            Ok(number @ 1..=MAX) => Some(number),
            _ => {
                return Err(Error::Config(format!(
                    "vlan is {vlan}; it must be from 0 to {MAX}"
                )));
            }
        };
        let mut all = BTreeSet::new();
        if let Some(trunk) = trunk.filter(|trunk| !trunk.is_null()) {
            let list: Vec<Trunk> = serde_path_to_error::deserialize(trunk).map_err(|error| {
                Error::Config(format!("vlanTrunk{}: {}", error.path(), error.inner()))
            })?;
            for (at, element) in list.iter().enumerate() {
                all.extend(element.numbers(&format!("vlanTrunk[{at}]"))?);
            }
        }
        Ok(Self {
            access,
            trunk: all,
            keep_default,
        })
    }

    /// True where the port is a plain one.
    pub fn is_none(&self) -> bool {
        self.access.is_none() && self.trunk.is_empty()
    }

    /// As the kernel takes them: ranges first, and the one without a tag last, which then holds where both name one.
    pub fn ranges(&self) -> Vec<podspan_kernel::Vlans> {
        let mut ranges: Vec<podspan_kernel::Vlans> = Vec::new();
        for number in &self.trunk {
            match ranges.last_mut() {
                Some(range) if range.last + 1 == *number => range.last = *number,
                _ => ranges.push(alone(*number, false)),
            }
        }
        if !self.is_none() {
            ranges.push(alone(self.access.unwrap_or(NATIVE), true));
        }
        ranges
    }

    /// The error of a kernel that cannot filter VLANs, with the key that asked for it.
    fn explained(&self, error: podspan_kernel::Error) -> Error {
        if error.errno() != Errno::OPNOTSUPP {
            return error.into();
        }
        let key = match (self.access, self.ranges().first()) {
            (Some(number), _) => format!("vlan: {number}"),
            (None, first) => format!("vlanTrunk: {}", first.map_or(NATIVE, |range| range.first)),
        };
        Error::UnsupportedField(format!(
            "{key}: this kernel's bridges know no VLANs (CONFIG_BRIDGE_VLAN_FILTERING): {error}"
        ))
    }
}

impl Trunk {
    fn numbers(&self, key: &str) -> Result<BTreeSet<u16>, Error> {
        let number = |name: &str, value: i64| match u16::try_from(value) {
            Ok(number @ 1..=MAX) => Ok(number),
            _ => Err(Error::Config(format!(
                "{key}.{name} is {value}; it must be from 1 to {MAX}"
            ))),
        };
        let missing = |name: &str| {
            Error::Config(format!(
                "{key}.{name} is missing; minID and maxID are given together"
            ))
        };
        let mut numbers = BTreeSet::new();
        match (self.min, self.max) {
            (Some(min), Some(max)) => {
                let (first, last) = (number("minID", min)?, number("maxID", max)?);
                if last < first {
                    return Err(Error::Config(format!(
                        "{key}.maxID is {last}; it must not be below minID, which is {first}"
                    )));
                }
                numbers.extend(first..=last);
            }
            (None, Some(_)) => return Err(missing("minID")),
            (Some(_), None) => return Err(missing("maxID")),
            (None, None) => {}
        }
        if let Some(id) = self.id {
            numbers.insert(number("id", id)?);
        }
        Ok(numbers)
    }
}

fn alone(number: u16, untagged: bool) -> podspan_kernel::Vlans {
    podspan_kernel::Vlans {
        first: number,
        last: number,
        untagged,
    }
}

/// Makes a bridge that heeds VLANs.
///
/// # Errors
/// [`Error::UnsupportedField`]; exists, as the kernel's.
pub fn add_bridge(
    host: &mut Netlink,
    (name, mac): (&IfName, Mac),
    vlans: &PortVlans,
) -> Result<(), Error> {
    match host.add_filtering_bridge(name, mac) {
        Err(error) if !error.is_exists() => Err(vlans.explained(error)),
        _ => Ok(()),
    }
}

/// A bridge that is there heeds VLANs: ours is made to, and somebody else's must.
///
/// # Errors
/// [`Error::UnsupportedField`]; [`Error::Config`] for a bridge of somebody else.
pub fn ensure_filtering(host: &mut Netlink, bridge: &Link, vlans: &PortVlans) -> Result<(), Error> {
    if bridge.vlans.filtered {
        return Ok(());
    }
    if !is_marked(bridge) {
        return Err(Error::Config(format!(
            "bridge: {} is not ours and heeds no VLANs; set its vlan_filtering on, or name another",
            bridge.name
        )));
    }
    host.filter_vlans(bridge.index)
        .map_err(|error| vlans.explained(error))
}

/// Gives a port its VLANs. Before the port is up, so that no frame of it is in another.
///
/// # Errors
/// [`Error::UnsupportedField`]; what the kernel answered.
pub fn set_port(
    host: &mut Netlink,
    (bridge, port): (&Link, u32),
    vlans: &PortVlans,
) -> Result<(), Error> {
    if !vlans.keep_default && bridge.vlans.default != 0 {
        host.remove_vlan(port, bridge.vlans.default)?;
    }
    host.add_vlans(port, &vlans.ranges())
        .map_err(|error| vlans.explained(error))
}

/// The name of the link that has the gateway's address in that VLAN.
///
/// # Errors
/// [`Error::Config`] when it would be longer than a link's name may be.
pub fn gateway_link_name(bridge: &IfName, vlan: u16) -> Result<IfName, Error> {
    format!("{bridge}.{vlan}").parse().map_err(|invalid| {
        Error::Config(format!(
            "bridge: the gateway of VLAN {vlan} is on a link of the bridge's name and the VLAN's, and {invalid}"
        ))
    })
}

/// Makes the link that has the gateway's address in that VLAN, or finishes what another ADD began.
///
/// # Errors
/// As [`gateway_link_name`] and [`set_port`].
pub fn ensure_gateway_link(
    host: &mut Netlink,
    (bridge, mac): (&Link, Mac),
    (vlan, keep_default): (u16, bool),
) -> Result<Link, Error> {
    let bridge_name: IfName = bridge.name.parse()?;
    let name = gateway_link_name(&bridge_name, vlan)?;
    let port = port_name(&name);
    let found = host.find_link(&name)?;
    match &found {
        Some(link) if is_marked(link) && link.up => return Ok(link.clone()),
        // Somebody else made it, as the bridge plugin does under the same name.
        Some(link) if host.find_link(&port)?.is_none() => return Ok(link.clone()),
        _ => {}
    }
    if found.is_none() {
        let pair = VethPair {
            host: VethEnd {
                name: &port,
                mac: Mac::of_text(&[port.as_str()]),
            },
            peer: VethEnd { name: &name, mac },
            peer_netns: &Netns::current()?,
            master: Some(bridge.index),
            mtu: bridge.mtu,
        };
        match host.add_veth(&pair) {
            // Another ADD was quicker.
            Err(error) if !error.is_exists() => return Err(error.into()),
            _ => {}
        }
    }
    speak_ipv6_at_once(&name)?;
    take_no_advertisement(&name)?;
    let vlans = PortVlans {
        access: Some(vlan),
        keep_default,
        ..PortVlans::default()
    };
    let index = host.link(&port)?.index;
    set_port(host, (bridge, index), &vlans)?;
    let alias = format!("{MARK}{ALIAS}");
    let change = LinkChange {
        up: true,
        alias: Some(&alias),
        ..LinkChange::default()
    };
    let without_link_local = LinkChange {
        no_link_local: true,
        ..change
    };
    host.set_link(&port, without_link_local)?;
    // The mark comes last: what bears it is complete.
    host.set_link(&name, change)?;
    Ok(host.link(&name)?)
}

/// What is other than it should be about a port.
///
/// # Errors
/// What the kernel answered.
pub fn deviations(
    host: &mut Netlink,
    (bridge, port): (&Link, &Link),
    vlans: &PortVlans,
) -> Result<Vec<String>, Error> {
    let mut deviations = Vec::new();
    if !bridge.vlans.filtered {
        deviations.push(format!("bridge {} heeds no VLANs", bridge.name));
    }
    let seen = host.list_vlans(port.index)?;
    for wanted in vlans.ranges() {
        for number in wanted.first..=wanted.last {
            let holds = |seen: &podspan_kernel::Vlans| seen.first == number;
            let found = seen.iter().find(|seen| holds(seen));
            if !found.is_some_and(|found| found.untagged || !wanted.untagged) {
                let (name, alone) = (&port.name, alone(number, wanted.untagged));
                deviations.push(format!("host veth {name} does not have {alone}"));
            }
        }
    }
    Ok(deviations)
}

fn is_marked(link: &Link) -> bool {
    link.alias
        .as_deref()
        .is_some_and(|alias| alias.starts_with(MARK))
}

/// The other end of a gateway's pair: `vl` and 48 bits of a hash of its name.
fn port_name(gateway_link: &IfName) -> IfName {
    let hash = podspan_kernel::hash(&["vlan/", gateway_link.as_str()]) >> 16;
    #[expect(
        clippy::expect_used,
        reason = "14 bytes of letters and digits are always an interface name"
    )]
    format!("vl{hash:012x}")
        .parse()
        .expect("vl and twelve digits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(vlan: i64, trunk: Value) -> Result<PortVlans, String> {
        PortVlans::parse(vlan, Some(&trunk), false)
            .map_err(|error| format!("{} {error}", error.code()))
    }

    #[test]
    fn trunks_are_ranges_and_the_one_without_a_tag_is_last() {
        let texts = |vlans: PortVlans| -> Vec<_> {
            vlans.ranges().iter().map(ToString::to_string).collect()
        };
        assert!(
            parse(0, json!(null)).unwrap().is_none() && parse(0, json!([{}])).unwrap().is_none()
        );
        assert_eq!(texts(parse(0, json!([])).unwrap()), [""; 0]);
        assert_eq!(
            texts(parse(100, json!(null)).unwrap()),
            ["vid 100 pvid untagged"]
        );
        let trunk =
            json!([{"minID": 10, "maxID": 12}, {"id": 13}, {"id": 20, "minID": 11, "maxID": 11}]);
        assert_eq!(
            texts(parse(0, trunk.clone()).unwrap()),
            ["vid 10-13", "vid 20", "vid 1 pvid untagged"]
        );
        assert_eq!(
            texts(parse(12, trunk).unwrap()),
            ["vid 10-13", "vid 20", "vid 12 pvid untagged"]
        );
        let all = parse(1, json!([{"minID": 1, "maxID": 4094}])).unwrap();
        assert_eq!(texts(all), ["vid 1-4094", "vid 1 pvid untagged"]);
    }

    #[test]
    fn t14_a_bad_number_is_told_with_key_value_and_what_would_be_right() {
        let refused = |vlan, trunk| parse(vlan, trunk).unwrap_err();
        assert_eq!(
            refused(4095, json!(null)),
            "7 vlan is 4095; it must be from 0 to 4094"
        );
        assert_eq!(
            refused(-1, json!(null)),
            "7 vlan is -1; it must be from 0 to 4094"
        );
        let trunk = |element| refused(0, json!([{"id": 2}, element]));
        assert_eq!(
            trunk(json!({"id": 0})),
            "7 vlanTrunk[1].id is 0; it must be from 1 to 4094"
        );
        assert_eq!(
            trunk(json!({"minID": 0, "maxID": 2})),
            "7 vlanTrunk[1].minID is 0; it must be from 1 to 4094"
        );
        assert_eq!(
            trunk(json!({"minID": 1, "maxID": 4095})),
            "7 vlanTrunk[1].maxID is 4095; it must be from 1 to 4094"
        );
        assert_eq!(
            trunk(json!({"minID": 3, "maxID": 2})),
            "7 vlanTrunk[1].maxID is 2; it must not be below minID, which is 3"
        );
        assert_eq!(
            trunk(json!({"minID": 3})),
            "7 vlanTrunk[1].maxID is missing; minID and maxID are given together"
        );
        assert_eq!(
            trunk(json!({"maxID": 3})),
            "7 vlanTrunk[1].minID is missing; minID and maxID are given together"
        );
        assert!(trunk(json!({"id": "x"})).starts_with("7 vlanTrunk[1].id: invalid type: string"));
    }

    /// On a kernel whose bridges know no VLANs, too, where it is not finished.
    #[test]
    fn the_gateway_s_link_takes_no_router_advertisement_of_a_pod() {
        let ns = podspan_kernel::testing::TestNs::new();
        ns.ip("link add br0 up type bridge");
        let mut host = Netlink::open().unwrap();
        let bridge = host.link(&"br0".parse().unwrap()).unwrap();
        let made = ensure_gateway_link(&mut host, (&bridge, Mac([2, 0, 0, 0, 0, 1])), (7, false));
        assert!(
            matches!(made, Ok(_) | Err(Error::UnsupportedField(_))),
            "{made:?}"
        );
        for key in ["accept_ra", "accept_dad"] {
            let key = format!("net/ipv6/conf/br0.7/{key}");
            assert_eq!(podspan_kernel::sysctl::read(&key), Ok("0".into()), "{key}");
        }
    }

    #[test]
    fn the_gateway_s_link_has_the_bridge_plugin_s_name() {
        let name = |bridge: &str| gateway_link_name(&bridge.parse().unwrap(), 100);
        assert_eq!(name("cni0").unwrap().as_str(), "cni0.100");
        let error = name("twelve-bytes").unwrap_err();
        assert!(
            error.code() == 7 && error.to_string().contains("\"twelve-bytes.100\" is longer"),
            "{error}"
        );
    }
}
