//! Masquerading: what a pod sends out of its network goes out under the node's address (`ipMasq`).
//!
//! Table `inet podspan` is made once, in one transaction; after that an attachment is one element a family, however many
//! pods there are. Packets to the pods of the same bridge and to multicast groups keep the pod's address. Nothing of
//! somebody else's is looked at: rules of ours match our sets only.
//! A surprise: DEL removes the elements always, also where `ipMasq` is off now, or a later pod would inherit them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podspan_kernel::nft::{
    Base, Batch, Chain, Element, Family, Field, Hook, NatFlag, Nft, Rule, Set, Table, Type, Value,
    Verdict, priority,
};
use podspan_kernel::{Errno, IfName};

use crate::attachment::{AttachmentId, MARK, NetworkName};
use crate::error::Error;

/// All packet filtering of ours is in tables of this name.
pub const TABLE: Table<'static> = Table {
    family: Family::Inet,
    name: "podspan",
};

/// The pods that are masqueraded.
const PODS4: Set<'static> = Set::of(TABLE, "masquerade4", &[Type::Ipv4]);
const PODS6: Set<'static> = Set::of(TABLE, "masquerade6", &[Type::Ipv6]);
/// What goes out by one of these goes to a pod.
const BRIDGES: Set<'static> = Set::of(TABLE, "bridges", &[Type::IfName]);
const POSTROUTING: Chain<'static> = Chain::hooked(
    TABLE,
    "postrouting",
    Base::nat(Hook::Postrouting, priority::SRCNAT),
);

/// Masquerades these addresses of an attachment on that bridge, from the next connection on. `owner` is the attachment's
/// alias, for people and for [`stop_all_of`].
///
/// # Errors
/// What the kernel answered; nothing is changed then.
pub fn masquerade(bridge: &IfName, owner: &str, addresses: &[IpAddr]) -> Result<(), Error> {
    let mut nft = Nft::open()?;
    let elements = || {
        let mut batch = Batch::new();
        add_elements(&mut batch, (bridge, owner), addresses);
        batch
    };
    match nft.commit(elements()) {
        Err(error) if error.is_not_found() => {}
        outcome => return Ok(outcome?),
    }
    let mut batch = Batch::new();
    add_skeleton(&mut batch);
    add_elements(&mut batch, (bridge, owner), addresses);
    match nft.commit(batch) {
        // Another ADD was quicker with the table.
        Err(error) if error.is_exists() => Ok(nft.commit(elements())?),
        outcome => Ok(outcome?),
    }
}

/// Masquerading that was ended. The kernel frees what was removed after an RCU period, and closing the socket waits for that:
/// kept until the host veth is gone, which waits for one too, it costs nothing.
pub struct Stopped {
    _socket: Nft,
}

/// Ends the masquerading of these addresses; that there was none is fine.
///
/// # Errors
/// What the kernel answered.
pub fn stop(addresses: &[IpAddr]) -> Result<Option<Stopped>, Error> {
    let mut batch = Batch::new();
    for ip in addresses {
        let element = Element::new([(*ip).into()]);
        // Both in one transaction: that it is not there is fine, on kernels without a request for that too.
        batch.add_element(pods(*ip), &element);
        batch.delete_element(pods(*ip), &element);
    }
    let stopped = Nft::open().and_then(|mut nft| match nft.has_table(TABLE)? {
        true => nft.commit(batch).map(|()| Some(Stopped { _socket: nft })),
        // Asking is cheap, and a transaction that fails waits for an RCU period.
        false => Ok(None),
    });
    match stopped {
        Err(error) if error.is_not_found() || has_no_nftables(&error) => Ok(None),
        outcome => Ok(outcome?),
    }
}

/// Ends the masquerading of all addresses of that owner, where another plugin keeps them: looks at all elements.
///
/// # Errors
/// What the kernel answered.
pub fn stop_all_of(owner: &str) -> Result<Option<Stopped>, Error> {
    stop_those(|comment| comment == self::comment(owner))
}

/// Ends the masquerading of what is an attachment's of that network and not one of these: looks at all elements.
///
/// # Errors
/// What the kernel answered.
pub fn stop_all_but(
    network: &NetworkName,
    keep: &BTreeSet<AttachmentId>,
) -> Result<Option<Stopped>, Error> {
    stop_those(
        |comment| match AttachmentId::from_alias(&format!("{MARK}{comment}")) {
            Some((of, id)) => of == *network && !keep.contains(&id),
            None => false,
        },
    )
}

fn stop_those(is_meant: impl Fn(&str) -> bool) -> Result<Option<Stopped>, Error> {
    let Some((mut nft, known)) = list()? else {
        return Ok(None);
    };
    let mut batch = Batch::new();
    for element in &known {
        if element.comment.as_deref().is_some_and(&is_meant) {
            let is_ipv4 = matches!(element.key.as_slice(), [Value::Ipv4(_)]);
            let set = if is_ipv4 { &PODS4 } else { &PODS6 };
            batch.delete_element(set, element);
        }
    }
    if !batch.is_empty() {
        nft.commit(batch)?;
    }
    Ok(Some(Stopped { _socket: nft }))
}

/// Which of these addresses are not masqueraded.
///
/// # Errors
/// What the kernel answered.
pub fn missing(addresses: &[IpAddr]) -> Result<Vec<IpAddr>, Error> {
    let known = list()?.map(|(_, known)| known).unwrap_or_default();
    let is_known = |ip: &&IpAddr| known.iter().any(|element| element.key == [(**ip).into()]);
    Ok(addresses
        .iter()
        .filter(|ip| !is_known(ip))
        .copied()
        .collect())
}

/// All pods that are masqueraded, with the socket that told them; none where there is no table of ours.
fn list() -> Result<Option<(Nft, Vec<Element>)>, Error> {
    let listed = Nft::open().and_then(|mut nft| {
        let mut all = nft.list_elements(&PODS4)?;
        all.extend(nft.list_elements(&PODS6)?);
        Ok((nft, all))
    });
    match listed {
        Ok(listed) => Ok(Some(listed)),
        Err(error) if error.is_not_found() || has_no_nftables(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The owner as an element's comment, which has room for 253 bytes: the alias without its mark always fits.
fn comment(owner: &str) -> &str {
    owner.strip_prefix(MARK).unwrap_or(owner)
}

fn has_no_nftables(error: &podspan_kernel::Error) -> bool {
    matches!(
        error.errno(),
        Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::INVAL
    )
}

fn pods(ip: IpAddr) -> &'static Set<'static> {
    if ip.is_ipv4() { &PODS4 } else { &PODS6 }
}

fn add_elements(batch: &mut Batch, (bridge, owner): (&IfName, &str), addresses: &[IpAddr]) {
    batch.add_element(&BRIDGES, &Element::new([Value::IfName(bridge.clone())]));
    for ip in addresses {
        batch.add_element(
            pods(*ip),
            &Element::new([(*ip).into()]).comment(comment(owner)),
        );
    }
}

fn add_skeleton(batch: &mut Batch) {
    batch.create_table(TABLE);
    for set in [PODS4, PODS6, BRIDGES] {
        batch.add_set(&set);
    }
    batch.add_chain(POSTROUTING);
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
                .masked(field, mask, value)
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

/// The IPv6 address whose first byte it is and the rest zero.
fn high_byte(byte: u8) -> IpAddr {
    IpAddr::from((u128::from(byte) << 120).to_be_bytes())
}
