//! How fast a pod may receive and send (capability `bandwidth`), in the words and numbers of the reference plugin.
//!
//! *Ingress* is what the pod receives: a token bucket on the host veth, which goes with it. *Egress* is what the pod sends:
//! what the host veth receives is sent through an ifb device that has a token bucket.
//! A surprise: an ifb device outlives the host veth, and even the pod. It is therefore found as the host veth is, by a
//! name that follows from the attachment and by its alias; and because the kernel gives it the alias in a second step, the
//! name alone tells the network, so that GC finds one that a kill left between the two.

use std::collections::BTreeSet;

use podspan_kernel::{Bandwidth, IfName, Link, LinkChange, Netlink};
use serde::Deserialize;
use serde_json::Value;

use crate::attachment::{AttachmentId, IfbMaker, NetworkName, is_ifb_of};
use crate::error::Error;

/// The limits of both directions, as the pod sees them; none of a direction is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// What the pod receives.
    pub ingress: Option<Bandwidth>,
    /// What the pod sends.
    pub egress: Option<Bandwidth>,
}

/// The keys as they stand: bits per second and bits.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Raw {
    // containerd writes these with capitals.
    #[serde(alias = "IngressRate")]
    ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    egress_burst: u64,
}

/// The kernel counts in bytes, and a burst in 32 bits of them.
const BITS_MIN: u64 = 8;
const BURST_MAX: u64 = u32::MAX as u64 * 8;

impl Limits {
    /// Reads the four keys of the object that `place` names.
    ///
    /// # Errors
    /// [`Error::Config`] with key and value.
    pub fn from_json(place: &str, value: Option<&Value>) -> Result<Self, Error> {
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return Ok(Self::default());
        };
        let raw: Raw = serde_path_to_error::deserialize(value).map_err(|error| {
            let below = error.path().to_string();
            let path = [place, below.trim_matches('.')];
            let path: Vec<_> = path.into_iter().filter(|part| !part.is_empty()).collect();
            Error::Config(format!("{}: {}", path.join("."), error.inner()))
        })?;
        Ok(Self {
            ingress: limit((place, "ingress"), raw.ingress_rate, raw.ingress_burst)?,
            egress: limit((place, "egress"), raw.egress_rate, raw.egress_burst)?,
        })
    }

    /// Those that the runtime asks for (`runtimeConfig.bandwidth`).
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn of_runtime(runtime_config: Option<&Value>) -> Result<Self, Error> {
        let asked = runtime_config.and_then(|config| config.get("bandwidth"));
        Self::from_json("runtimeConfig.bandwidth", asked)
    }

    /// True when neither direction is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Both are given, or neither; 0 counts as not given.
fn limit(
    (place, direction): (&str, &str),
    rate: u64,
    burst: u64,
) -> Result<Option<Bandwidth>, Error> {
    let dot = if place.is_empty() { "" } else { "." };
    let wrong = |key: &str, value: u64, what: String| {
        Err(Error::Config(format!(
            "{place}{dot}{direction}{key} is {value}; {what}"
        )))
    };
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, burst) => wrong(
            "Burst",
            burst,
            format!("{direction}Rate must be given with it, in bits per second"),
        ),
        (rate, 0) => wrong(
            "Rate",
            rate,
            format!("{direction}Burst must be given with it, in bits"),
        ),
        (1..BITS_MIN, _) => wrong(
            "Rate",
            rate,
            format!("the least is {BITS_MIN} bits per second"),
        ),
        (_, 1..BITS_MIN) => wrong("Burst", burst, format!("the least is {BITS_MIN} bits")),
        (_, burst) if burst > BURST_MAX => {
            wrong("Burst", burst, format!("the most is {BURST_MAX} bits"))
        }
        (rate, burst) => Ok(Some(Bandwidth { rate, burst })),
    }
}

/// The links that limits are put on.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The host's end of the pod's veth pair, or what takes its place.
    pub host_link: &'a Link,
    /// The name of the ifb device for what the pod sends.
    pub ifb: &'a IfName,
    /// The alias that it bears.
    pub alias: &'a str,
}

/// Makes the limits true, and tells the ifb device, where there is one.
///
/// # Errors
/// [`Error::AlreadyAttached`] when the device's name is that of another attachment's; what the kernel answered.
pub fn ensure_limits(
    host: &mut Netlink,
    limits: &Limits,
    place: &Place<'_>,
) -> Result<Option<Link>, Error> {
    if let Some(ingress) = limits.ingress {
        host.ensure_bandwidth(place.host_link.index, ingress)?;
    }
    let Some(egress) = limits.egress else {
        return Ok(None);
    };
    let ifb = host.ensure_ifb(place.ifb, place.host_link.mtu)?;
    match ifb.alias.as_deref() {
        None => host.set_link(
            ifb.index,
            LinkChange {
                alias: Some(place.alias),
                no_link_local: true,
                ..LinkChange::default()
            },
        )?,
        Some(alias) if alias == place.alias => {}
        Some(other) => {
            return Err(Error::AlreadyAttached(format!(
                "ifb device {} exists with alias {other:?}",
                place.ifb
            )));
        }
    }
    host.ensure_bandwidth(ifb.index, egress)?;
    host.ensure_redirect(place.host_link.index, ifb.index)?;
    Ok(Some(ifb))
}

/// What is other than the limits say.
///
/// # Errors
/// What the kernel answered.
pub fn deviations(
    host: &mut Netlink,
    limits: &Limits,
    place: &Place<'_>,
) -> Result<Vec<String>, Error> {
    let Link { name, index, .. } = place.host_link;
    let mut deviations = Vec::new();
    if let Some(ingress) = limits.ingress
        && !host.has_bandwidth(*index, ingress)?
    {
        deviations.push(format!("link {name} does not send as {ingress}"));
    }
    let Some(egress) = limits.egress else {
        return Ok(deviations);
    };
    let Some(ifb) = host.find_link(place.ifb)?.filter(is_ifb) else {
        deviations.push(format!("ifb device {} does not exist", place.ifb));
        return Ok(deviations);
    };
    let ifb_name = &ifb.name;
    if !ifb.up {
        deviations.push(format!("ifb device {ifb_name} is down"));
    }
    if ifb.alias.as_deref() != Some(place.alias) {
        let (is, should) = (&ifb.alias, place.alias);
        deviations.push(format!(
            "ifb device {ifb_name} has alias {is:?}, not {should:?}"
        ));
    }
    if !host.has_bandwidth(ifb.index, egress)? {
        deviations.push(format!("ifb device {ifb_name} does not send as {egress}"));
    }
    if host.redirect_of(*index)? != Some(ifb.index) {
        deviations.push(format!(
            "what link {name} receives does not go through ifb device {ifb_name}"
        ));
    }
    Ok(deviations)
}

/// The attachment's ifb device; none where it is somebody else's under its name.
///
/// # Errors
/// What the kernel answered.
pub fn find_ifb(
    host: &mut Netlink,
    (network, id): (&NetworkName, &AttachmentId),
    maker: IfbMaker,
) -> Result<Option<Link>, Error> {
    let found = host.find_link(&id.ifb(network, maker))?;
    Ok(found.filter(|link| is_ifb(link) && id.may_own(link, network)))
}

/// Removes every ifb device of the network that belongs to no attachment of `keep`.
///
/// # Errors
/// All that could not be removed.
pub fn collect_ifbs(
    host: &mut Netlink,
    (network, maker): (&NetworkName, IfbMaker),
    keep: &BTreeSet<AttachmentId>,
) -> Result<(), Error> {
    let kept: BTreeSet<_> = keep
        .iter()
        .map(|id| id.ifb(network, maker).to_string())
        .collect();
    let mut errors = Vec::new();
    for link in host.list_links()? {
        let is_of_network = is_ifb_of(&link.name, network, maker)
            && match link.alias.as_deref() {
                // A kill came before the alias.
                None => true,
                Some(alias) => {
                    AttachmentId::from_alias(alias).is_some_and(|(of, _)| of == *network)
                }
            };
        if is_ifb(&link) && is_of_network && !kept.contains(&link.name) {
            errors.extend(host.remove_link(link.index).err().map(Error::Kernel));
        }
    }
    Error::from_all(errors)
}

fn is_ifb(link: &Link) -> bool {
    link.kind.as_deref() == Some("ifb")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<Limits, String> {
        Limits::of_runtime(Some(&json!({ "bandwidth": value })))
            .map_err(|error| format!("{} {error}", error.code()))
    }

    #[test]
    fn a_direction_is_limited_by_rate_and_burst_together() {
        assert!(Limits::of_runtime(None).unwrap().is_none());
        assert!(parse(json!(null)).unwrap().is_none());
        assert!(
            parse(json!({"ingressRate": 0, "ingressBurst": 0}))
                .unwrap()
                .is_none()
        );
        let limits = parse(json!({"ingressRate": 8000, "ingressBurst": 16000})).unwrap();
        let expected = Bandwidth {
            rate: 8000,
            burst: 16000,
        };
        assert_eq!((limits.ingress, limits.egress), (Some(expected), None));
    }

    #[test]
    fn what_containerd_writes_is_understood() {
        let written = json!({"IngressRate": 0, "IngressBurst": 0,
                             "EgressRate": 1_000_000, "EgressBurst": u32::MAX});
        let expected = Bandwidth {
            rate: 1_000_000,
            burst: u32::MAX.into(),
        };
        let limits = parse(written).unwrap();
        assert_eq!((limits.ingress, limits.egress), (None, Some(expected)));
    }

    #[test]
    fn t14_a_bad_value_is_told_with_key_value_and_what_would_be_right() {
        let refused = |value| parse(value).unwrap_err();
        assert_eq!(
            refused(json!({"ingressRate": 8000})),
            "7 runtimeConfig.bandwidth.ingressRate is 8000; ingressBurst must be given with it, in bits"
        );
        assert_eq!(
            refused(json!({"egressBurst": 8000})),
            "7 runtimeConfig.bandwidth.egressBurst is 8000; egressRate must be given with it, in bits per second"
        );
        assert_eq!(
            refused(json!({"egressRate": 7, "egressBurst": 8000})),
            "7 runtimeConfig.bandwidth.egressRate is 7; the least is 8 bits per second"
        );
        assert_eq!(
            refused(json!({"egressRate": 8, "egressBurst": 34_359_738_361u64})),
            "7 runtimeConfig.bandwidth.egressBurst is 34359738361; the most is 34359738360 bits"
        );
        let text = refused(json!({"ingressRate": -1}));
        assert!(
            text.starts_with("7 runtimeConfig.bandwidth.ingressRate: invalid value: integer `-1`"),
            "{text}"
        );
        let text = refused(json!({"ingressRate": "1M"}));
        assert!(
            text.contains("ingressRate: invalid type: string \"1M\""),
            "{text}"
        );
        let text = refused(json!(7));
        assert!(
            text.starts_with("7 runtimeConfig.bandwidth: invalid type"),
            "{text}"
        );
    }
}
