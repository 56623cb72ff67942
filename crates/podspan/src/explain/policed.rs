//! What policy says of a packet: of the sender's egress and the receiver's ingress, with the rule that decides. It is the model
//! that the agent's programs come from, of the policies as they are now.

use std::net::IpAddr;

use super::pods::Pod;
use super::{Hop, State};
use crate::config::{Config, Role};
use crate::policy::model::Judged;
use crate::policy::object::Protocol;
use crate::policy::program::Direction;
use crate::policy::{command, words};

/// The hops; none where policy is not enforced.
pub fn hops(config: &Config, (from, to): (&Pod, &Pod), port: Option<u16>) -> Vec<Hop> {
    let enforced = match &config.role {
        Role::Node(role) => role.policy.is_some(),
        Role::Router => false,
    };
    if !enforced {
        return Vec::new();
    }
    // Without a port the packet that is sent is one of ICMP.
    let port = port.map(|port| (Protocol::Tcp, port));
    let judged = |from: IpAddr, to: IpAddr| -> anyhow::Result<_> {
        Ok(command::model(config)?.0.judge(from, to, port))
    };
    let judgement = match judged(from.ip, to.ip) {
        Ok(judgement) => judgement,
        Err(error) => {
            let what = format!("policy: cannot be told: {error:#}");
            return vec![Hop::new(&from.node, State::Unseen, what)];
        }
    };
    let hop = |place: &str, direction: Direction, judged: Judged| {
        let state = match judged.decision.accepts() {
            true => State::Right,
            false => State::Wrong,
        };
        Hop::new(place, state, words::judged(direction, &judged, port))
    };
    let egress = judgement
        .egress
        .map(|judged| hop(&from.node, Direction::Egress, judged));
    let ingress = judgement
        .ingress
        .map(|judged| hop(&to.node, Direction::Ingress, judged));
    egress.into_iter().chain(ingress).collect()
}
