//! Members of sets as the kernel has them: a set for each family, and elements by the hundred.

use std::net::IpAddr;

use podspan_cni::filter::INET;
use podspan_kernel::nft::{Batch, Element, Set, Type, Value};

use super::super::object::Protocol;
use super::super::program::Members;

const SOCKET4: [Type; 3] = [Type::Ipv4, Type::Protocol, Type::Port];
const SOCKET6: [Type; 3] = [Type::Ipv6, Type::Protocol, Type::Port];

/// What kind of members a set has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Addresses,
    Ranges,
    Sockets,
}

impl Kind {
    pub(super) fn of(members: &Members) -> Self {
        match members {
            Members::Addresses(_) => Self::Addresses,
            Members::Ranges(_) => Self::Ranges,
            Members::Sockets(_) => Self::Sockets,
        }
    }
}

/// The names of a set's two halves.
pub(super) struct Names(pub(super) [String; 2]);

impl Names {
    pub(super) fn sets(&self, kind: Kind) -> [Set<'_>; 2] {
        let Self([v4, v6]) = self;
        match kind {
            Kind::Addresses => [
                Set::of(INET, v4, &[Type::Ipv4]),
                Set::of(INET, v6, &[Type::Ipv6]),
            ],
            Kind::Ranges => [
                Set::of(INET, v4, &[Type::Ipv4]).with_intervals(),
                Set::of(INET, v6, &[Type::Ipv6]).with_intervals(),
            ],
            Kind::Sockets => [Set::of(INET, v4, &SOCKET4), Set::of(INET, v6, &SOCKET6)],
        }
    }
}

pub(super) fn add(batch: &mut Batch, names: &Names, members: &Members) {
    change(names, members, |set, elements| {
        batch.add_elements(set, elements)
    });
}

pub(super) fn delete(batch: &mut Batch, names: &Names, members: &Members) {
    change(names, members, |set, elements| {
        batch.delete_elements(set, elements);
    });
}

/// The members of each family, and the set that they belong to.
fn change(names: &Names, members: &Members, mut take: impl FnMut(&Set<'_>, &[Element])) {
    let elements: Vec<(bool, Element)> = match members {
        Members::Addresses(all) => {
            let all = all.iter().copied();
            all.map(|ip| (ip.is_ipv4(), Element::new([ip.into()])))
                .collect()
        }
        Members::Ranges(all) => {
            let all = all.iter().copied();
            all.map(|(first, last)| {
                let element = Element::new([first.into()]).through([last.into()]);
                (first.is_ipv4(), element)
            })
            .collect()
        }
        Members::Sockets(all) => all.iter().copied().map(socket).collect(),
    };
    let (v4, v6): (Vec<_>, Vec<_>) = elements.into_iter().partition(|(is_ipv4, _)| *is_ipv4);
    for (set, elements) in names.sets(Kind::of(members)).iter().zip([v4, v6]) {
        let elements: Vec<_> = elements.into_iter().map(|(_, element)| element).collect();
        take(set, &elements);
    }
}

fn socket((ip, protocol, port): (IpAddr, Protocol, u16)) -> (bool, Element) {
    let key = [ip.into(), number(protocol), Value::Port(port)];
    (ip.is_ipv4(), Element::new(key))
}

pub(super) fn number(protocol: Protocol) -> Value {
    match protocol {
        Protocol::Tcp => Value::TCP,
        Protocol::Udp => Value::UDP,
        Protocol::Sctp => Value::SCTP,
    }
}
