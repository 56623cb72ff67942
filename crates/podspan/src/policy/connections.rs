//! Connections that policy forbids since they began: they are forgotten, so that their next packet is the first of a new one.
//!
//! What a connection is to policy is who began it and who answers, which is another than who was called where the
//! destination was translated. Nothing is ended of which an address of this machine is an end: that traffic is not policy's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use podspan_kernel::Netlink;
use podspan_kernel::conntrack::{Connection, Conntrack};

use super::model::Model;
use super::object::{Attached, Protocol};
use super::program::{Attachment, Direction, Packet, ProgramId, Verdict};

/// Ends all connections of this node's pods that policy forbids now; says how many.
///
/// # Errors
/// What the kernel answered, after all that could be ended was.
pub fn end_denied(
    model: &Model,
    attachments: &BTreeMap<Attachment, Attached>,
) -> podspan_kernel::Result<u64> {
    let owners: HashMap<IpAddr, &Attachment> = attachments
        .iter()
        .flat_map(|(name, attached)| attached.addresses.iter().map(move |ip| (ip, name)))
        .collect();
    if owners.is_empty() {
        return Ok(0);
    }
    let mut conntrack = Conntrack::open()?;
    let own = Netlink::open()?.list_addresses()?;
    let own: BTreeSet<IpAddr> = own.iter().map(|address| address.net.addr()).collect();
    let is_denied = |connection: &Connection| {
        let ends = (connection.source, connection.answered_by);
        ![ends.0.ip(), ends.1.ip()].iter().any(|ip| own.contains(ip))
            && is_denied(model, &owners, (connection.protocol, ends))
    };
    let denied = conntrack.list_where(is_denied)?;
    let mut ended = 0;
    let mut outcome = Ok(());
    for connection in &denied {
        match conntrack.remove(connection) {
            Ok(()) => ended += 1,
            Err(error) => outcome = Err(error),
        }
    }
    outcome.map(|()| ended)
}

/// True when the program of the one that began it or of the one that answers says so; what is not known yet has no say.
fn is_denied(
    model: &Model,
    owners: &HashMap<IpAddr, &Attachment>,
    (protocol, (from, to)): (u8, (SocketAddr, SocketAddr)),
) -> bool {
    let Some(protocol) = Protocol::of_number(protocol) else {
        return false;
    };
    let denies = |of: IpAddr, peer: IpAddr, direction: Direction| {
        let attachment = owners.get(&of);
        let program = attachment.and_then(|name| program_of(model, name, direction));
        let program = program.and_then(|id| model.program(id));
        let packet = Packet {
            peer,
            port: Some((protocol, to.port())),
        };
        program.is_some_and(|program| {
            let decision = program.decide(&packet, |set| model.members(set));
            !decision.accepts()
        })
    };
    denies(from.ip(), to.ip(), Direction::Egress) || denies(to.ip(), from.ip(), Direction::Ingress)
}

fn program_of(model: &Model, attachment: &Attachment, direction: Direction) -> Option<ProgramId> {
    match (model.verdict(attachment)?, direction) {
        (Verdict::Known { ingress, .. }, Direction::Ingress) => *ingress,
        (Verdict::Known { egress, .. }, Direction::Egress) => *egress,
        (Verdict::Unknown, _) => None,
    }
}
