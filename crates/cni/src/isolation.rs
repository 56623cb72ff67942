//! Bridges whose pods keep to themselves (`ingressPolicy` of the plugin `firewall`).
//!
//! One rule in table `inet podspan`, and two sets that it looks at: a packet from one of the isolated bridges to one of them
//! is dropped, unless the pair of the two is among those that may. A bridge with the pair of itself is a network whose pods
//! reach each other; without, they do not even do that. What other ways there are into a bridge is nobody's affair here.
//! Nothing is removed when a pod goes: the next one of that bridge needs it. A surprise: packets from port to port of a
//! bridge come by here with `br_netfilter` only; the caller therefore isolates the ports, too.

use podspan_kernel::nft::{
    Base, Batch, Chain, Element, Field, Hook, Nft, Rule, Set, Type, Verdict, priority,
};
use podspan_kernel::{IfName, Result};

use crate::filter::INET;

/// The bridges that keep to themselves.
const ISOLATED: Set<'static> = Set::of(INET, "isolated_bridges", &[Type::IfName]);
/// From and to which of them packets pass all the same: from one to itself.
const PASSING: Set<'static> = Set::of(INET, "passing_bridges", &[Type::IfName, Type::IfName]);
const CHAIN: Chain<'static> = Chain::hooked(
    INET,
    "isolation",
    Base::filter(Hook::Forward, priority::FILTER),
);

/// Who reaches the pods of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ingress {
    /// Everybody.
    Open,
    /// No other isolated bridge.
    SameBridge,
    /// No isolated bridge, and not that bridge itself either.
    Isolated,
}

/// Adds to the batch what makes it so for these bridges.
///
/// # Errors
/// What the kernel answered.
pub(crate) fn isolate(
    nft: &mut Nft,
    batch: &mut Batch,
    (bridges, ingress): (&[IfName], Ingress),
) -> Result<()> {
    let seen = look(nft)?;
    if seen.is_none() {
        if ingress == Ingress::Open {
            return Ok(());
        }
        lay(batch);
    }
    let [isolated, passing] = seen.unwrap_or_default();
    for bridge in bridges {
        let [name, pair] = elements(bridge);
        for (set, known, element, wanted) in [
            (&ISOLATED, &isolated, name, ingress != Ingress::Open),
            (&PASSING, &passing, pair, ingress == Ingress::SameBridge),
        ] {
            match (wanted, known.iter().any(|known| known.key == element.key)) {
                (true, false) => batch.add_element(set, &element),
                (false, true) => batch.delete_element(set, &element),
                _ => {}
            }
        }
    }
    Ok(())
}

/// True when it is so for all these bridges.
///
/// # Errors
/// What the kernel answered.
pub(crate) fn stands(nft: &mut Nft, bridges: &[IfName], ingress: Ingress) -> Result<bool> {
    let mut batch = Batch::new();
    isolate(nft, &mut batch, (bridges, ingress))?;
    Ok(batch.is_empty())
}

/// The elements of both sets; none when not all of it is there.
fn look(nft: &mut Nft) -> Result<Option<[Vec<Element>; 2]>> {
    let mut list = || -> Result<_> {
        let sets = [nft.list_elements(&ISOLATED)?, nft.list_elements(&PASSING)?];
        Ok((sets, nft.list_rules(CHAIN)?))
    };
    match list() {
        Ok((sets, rules)) => Ok(Some(sets).filter(|_| !rules.is_empty())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// In the order of the sets.
fn elements(bridge: &IfName) -> [Element; 2] {
    let name = || bridge.into();
    [Element::new([name()]), Element::new([name(), name()])]
}

/// Lays everything anew, whatever of it is there.
fn lay(batch: &mut Batch) {
    batch.add_table(INET);
    batch.add_set(&ISOLATED);
    batch.add_set(&PASSING);
    batch.add_chain(CHAIN);
    batch.flush_chain(CHAIN);
    batch.add_rule(
        &Rule::of(CHAIN)
            .is_in(&[Field::IIFNAME], &ISOLATED)
            .is_in(&[Field::OIFNAME], &ISOLATED)
            .is_not_in(&[Field::IIFNAME, Field::OIFNAME], &PASSING)
            .counter()
            .verdict(&Verdict::Drop),
    );
}
