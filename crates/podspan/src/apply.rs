//! Carries out a plan: every change, whatever became of those before it, and tells of each.
//!
//! One exception: the conflist invites the runtime, so it is not written when the bridge is not as it should be. Each route
//! costs one netlink message.

use anyhow::{Context as _, anyhow};
use podspan_kernel::{Netlink, sysctl};

use crate::conflist;
use crate::masquerade::PacketFilter;
use crate::plan::{Change, NamedRoute};

/// Carries out all changes and tells `told` what became of each.
pub fn apply(
    (netlink, filter): (&mut Netlink, &mut PacketFilter),
    changes: &[Change],
    mut told: impl FnMut(&Change, anyhow::Result<()>),
) {
    let mut is_ready_for_pods = true;
    for change in changes {
        let outcome = match change {
            Change::WriteConflist { .. } if !is_ready_for_pods => Err(anyhow!(
                "{change}: left as it is, because the bridge is not right"
            )),
            change => make(netlink, filter, change),
        };
        is_ready_for_pods &= outcome.is_ok() || !change.is_for_pods();
        told(change, outcome);
    }
}

fn make(netlink: &mut Netlink, filter: &mut PacketFilter, change: &Change) -> anyhow::Result<()> {
    match change {
        Change::SetSysctl(wanted) => sysctl::write(&wanted.key, wanted.value)?,
        // The plugin makes the bridge too: that it was quicker is fine, the next look sees what it left to do.
        Change::AddBridge { name, mac } => match netlink.add_bridge(name, *mac) {
            Err(error) if error.is_exists() => {}
            outcome => outcome?,
        },
        Change::SetBridge { name, change } => netlink.set_link(name, *change)?,
        Change::AddAddress { link, net } => {
            let index = netlink.link(link)?.index;
            netlink.ensure_address(index, *net)?;
        }
        Change::RemoveAddress { link, net } => {
            if let Some(link) = netlink.find_link(link)? {
                netlink.remove_address(link.index, *net)?;
            }
        }
        Change::AddRoute(NamedRoute { route, .. }) => match netlink.add_route(route) {
            Err(error) if error.is_exists() => {
                let dst = route.dst;
                let why = format!(
                    "somebody else's route is there; see `ip route show {dst}`, and `ip route del {dst}` if nobody needs it"
                );
                return Err(error).context(why);
            }
            outcome => outcome?,
        },
        Change::ReplaceRoute(NamedRoute { route, .. }) => netlink.replace_route(route)?,
        Change::RemoveRoute(NamedRoute { route, .. }) => netlink.remove_route(route)?,
        Change::SetMasquerade(transaction) => filter.commit(transaction)?,
        Change::WriteConflist { path, text } => conflist::write(path, text)?,
    }
    Ok(())
}
