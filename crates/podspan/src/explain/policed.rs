//! What policy says of a packet: of the sender's egress and the receiver's ingress, with the rule that decides, in the words of
//! `podspan policy ask`.

use super::pods::Pod;
use super::{Hop, State};
use crate::config::{Config, Role};
use crate::policy::ask::{Answer, Said};
use crate::policy::command;
use crate::policy::object::Protocol;

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
    let answer = match command::model(config) {
        Ok((model, _)) => Answer::of(&model, (from.ip, to.ip), port),
        Err(error) => {
            let what = format!("policy: cannot be told: {error:#}");
            return vec![Hop::new(&from.node, State::Unseen, what)];
        }
    };
    let hop = |place: &str, said: Said| {
        let state = match said.passes {
            true => State::Right,
            false => State::Wrong,
        };
        Hop::new(place, state, said.why)
    };
    let egress = answer.egress.map(|said| hop(&from.node, said));
    let ingress = answer.ingress.map(|said| hop(&to.node, said));
    egress.into_iter().chain(ingress).collect()
}
