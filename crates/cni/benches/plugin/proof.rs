//! Before anything is measured, every contestant shows that it does its job: with packets, not with its own words.
//!
//! A plugin that ignores a key would otherwise win.

use std::net::TcpListener;

use crate::contestant::{Contestant, POD_PORT, Pod, Side, Verb};
use crate::process::Way;
use crate::world::{Node, Space};

/// A port outside of the pod network.
const OUTSIDE_PORT: u16 = 9000;

/// Adds a pod, looks at what it has, and removes it. Hands back what CHECK says against a pod that works: of the
/// reference that is told, of ours it is a failure.
///
/// # Errors
/// What the contestant does not do.
pub fn prove(contestant: &Contestant) -> Result<Option<String>, String> {
    let space = Space::new();
    let pod = Pod {
        space: &space,
        container: "proof".into(),
        number: 0,
    };
    let command = |verb, added| contestant.command(verb, &pod, (added, &Way::Bare));
    let (added, _) = command(Verb::Add, None)?;
    let address = added["ips"][0]["address"].as_str().unwrap_or_default();
    let address = address.split('/').next().unwrap_or_default();

    let name = contestant.name();
    let must = |holds: bool, what: String| match holds {
        true => Ok(()),
        false => Err(format!("{name}: {what}")),
    };
    let (outside, there) = contestant.node.outside();
    let configuration = contestant.configuration;
    let expected = match configuration.masquerade {
        true => Node::address(),
        false => address,
    };
    let seen = space.seen_by(&outside.listen(OUTSIDE_PORT), there, OUTSIDE_PORT);
    must(
        seen.as_deref() == Some(expected),
        format!("the pod {address} was seen outside as {seen:?}, not as {expected}"),
    )?;

    let server: TcpListener = space.listen(POD_PORT);
    if configuration.host_port {
        let port = pod.host_port();
        let reached = outside.seen_by(&server, Node::address(), port);
        must(
            reached.is_some(),
            format!("host port {port} does not lead to the pod"),
        )?;
    }
    let qdiscs = contestant.node.space.output("tc qdisc show");
    let shaped = qdiscs.matches("qdisc tbf ").count();
    let wanted = if configuration.bandwidth { 2 } else { 0 };
    must(
        shaped == wanted,
        format!("{shaped} links have their bandwidth limited, not {wanted}: {qdiscs}"),
    )?;

    let checked = command(Verb::Check, Some(&added));
    command(Verb::Del, Some(&added))?;
    must(
        !space.output("ip link").contains("eth0"),
        "the pod has its interface after DEL".into(),
    )?;
    match (contestant.side, checked) {
        (_, Ok(_)) => Ok(None),
        (Side::Reference, Err(objection)) => Ok(Some(objection)),
        (Side::Podspan | Side::Unguarded, Err(objection)) => Err(objection),
    }
}
