//! Masquerading: what a pod sends out of its network goes out under the node's address (`ipMasq`).
//!
//! Packets to the pods of the same bridge and to multicast groups keep the pod's address.

use std::net::IpAddr;

use podspan_kernel::nft::{
    Base, Batch, Chain, Element, Field, Hook, NatFlag, Rule, Set, Type, Value, Verdict, priority,
};

use super::{INET, Part, Plan, Wanted};

/// The pods that are masqueraded.
const PODS4: Set<'static> = Set::of(INET, "masquerade4", &[Type::Ipv4]);
const PODS6: Set<'static> = Set::of(INET, "masquerade6", &[Type::Ipv6]);
/// What goes out by one of these goes to a pod.
const BRIDGES: Set<'static> = Set::of(INET, "bridges", &[Type::IfName]);
const POSTROUTING: Chain<'static> = Chain::hooked(
    INET,
    "postrouting",
    Base::nat(Hook::Postrouting, priority::SRCNAT),
);
const RULES: Set<'static> = Set::of(INET, "rules_masquerade_1", &[Type::Mark]);

/// All sets that a record may name.
pub(super) static SETS: [Set<'static>; 3] = [PODS4, PODS6, BRIDGES];

/// What masquerading needs.
pub(super) fn plan(wanted: &Wanted, plan: &mut Plan) {
    if wanted.masquerade.is_empty() {
        return;
    }
    plan.parts.push(Part { rules: RULES, lay });
    if let Some(link) = &wanted.towards {
        plan.add_link(wanted, (&BRIDGES, Element::new([link.into()])));
    }
    for ip in &wanted.masquerade {
        let pods = if ip.is_ipv4() { &PODS4 } else { &PODS6 };
        plan.own.push((pods, Element::new([(*ip).into()])));
    }
}

fn lay(batch: &mut Batch) {
    for set in &SETS {
        batch.add_set(set);
    }
    batch.add_chain(POSTROUTING);
    batch.flush_chain(POSTROUTING);
    // 224.0.0.0/4 (RFC 5771) and ff00::/8 (RFC 4291).
    let multicast: [(Field, [IpAddr; 2]); 2] = [
        (
            Field::IP_DADDR,
            [[240, 0, 0, 0].into(), [224, 0, 0, 0].into()],
        ),
        (Field::IP6_DADDR, [high_byte(0xff), high_byte(0xff)]),
    ];
    for (field, [mask, value]) in multicast {
        batch.add_rule(
            &Rule::of(POSTROUTING)
                .masked(field, Value::from(mask), Value::from(value))
                .verdict(&Verdict::Return),
        );
    }
    for (field, set) in [(Field::IP_SADDR, PODS4), (Field::IP6_SADDR, PODS6)] {
        batch.add_rule(
            &Rule::of(POSTROUTING)
                .is_in(&[field], &set)
                .is_not_in(&[Field::OIFNAME], &BRIDGES)
                .masquerade(&[NatFlag::FullyRandom]),
        );
    }
}

/// What it means that an element is missing; none for one of another set.
pub(super) fn missing(set: &Set<'_>, element: &Element) -> Option<String> {
    [PODS4, PODS6]
        .contains(set)
        .then(|| format!("{element} is not masqueraded"))
}

/// The IPv6 address whose first byte it is and the rest zero.
fn high_byte(byte: u8) -> IpAddr {
    IpAddr::from((u128::from(byte) << 120).to_be_bytes())
}
