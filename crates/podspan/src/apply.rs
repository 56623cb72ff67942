//! Carries out a plan: every change, whatever became of those before it, and tells of each.
//!
//! One exception: the conflist invites the runtime, so it is not written when the bridge is not as it should be. Each route
//! costs one netlink message.

use anyhow::{Context as _, anyhow};
use podspan_kernel::{Errno, Error, IfName, Invalid, Netlink, Route, VxlanDevice, sysctl};

use crate::conflist;
use crate::packet_filter::PacketFilter;
use crate::plan::{Change, NamedRoute, NewVxlan, VxlanStep, isolation};

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
        // That the pod went meanwhile is fine.
        Change::SetPort { name, isolated } => match netlink.set_link(name, isolation(*isolated)) {
            Err(error) if error.is_not_found() => {}
            outcome => outcome?,
        },
        Change::AddAddress { link, net } => {
            let index = netlink.link(link)?.index;
            netlink.ensure_address(index, *net)?;
        }
        Change::RemoveAddress { link, net } => {
            if let Some(link) = netlink.find_link(link)? {
                netlink.remove_address(link.index, *net)?;
            }
        }
        Change::Vxlan { link, step } => change_vxlan(netlink, link, step)?,
        Change::AddRoute(named) => match add_route(netlink, named) {
            Err(error) if error.is_exists() => {
                let dst = named.route.dst;
                let why = format!(
                    "somebody else's route is there; see `ip route show {dst}`, and `ip route del {dst}` if nobody needs it"
                );
                return Err(error).context(why);
            }
            outcome => outcome?,
        },
        Change::ReplaceRoute(named) => {
            let route = with_link(netlink, named)?;
            netlink.replace_route(&route)?;
        }
        Change::RemoveRoute(NamedRoute { route, .. }) => netlink.remove_route(route)?,
        Change::SetMasquerade(transaction) => filter.commit(transaction.batch())?,
        Change::SetForwarding(transaction) => filter.commit(transaction.batch())?,
        Change::WriteConflist { path, text } => conflist::write(path, text)?,
    }
    Ok(())
}

fn add_route(netlink: &mut Netlink, named: &NamedRoute) -> podspan_kernel::Result<()> {
    let route = with_link(netlink, named)?;
    netlink.add_route(&route)
}

fn change_vxlan(netlink: &mut Netlink, name: &IfName, step: &VxlanStep) -> anyhow::Result<()> {
    let add = |netlink: &mut Netlink, new: &NewVxlan| {
        netlink.add_vxlan(&VxlanDevice {
            name,
            mac: new.mac,
            mtu: Some(new.mtu),
            vxlan: new.vxlan,
        })
    };
    match step {
        VxlanStep::Make(new) => add(netlink, new)?,
        VxlanStep::Remake(new) => {
            remove_link(netlink, name)?;
            add(netlink, new)?;
        }
        VxlanStep::Correct(change) => netlink.set_link(name, *change)?,
        VxlanStep::Remove => remove_link(netlink, name)?,
        VxlanStep::SetSysctl(wanted) => sysctl::write(&wanted.key, wanted.value)?,
        on_it => {
            let link = netlink.link_index(name)?;
            change_on_vxlan(netlink, link, on_it)?;
        }
    }
    Ok(())
}

/// Changes what is on the device.
fn change_on_vxlan(
    netlink: &mut Netlink,
    link: u32,
    step: &VxlanStep,
) -> podspan_kernel::Result<()> {
    match step {
        VxlanStep::AddAddress(net) => netlink.ensure_address(link, *net),
        VxlanStep::RemoveAddress(net) => netlink.remove_address(link, *net),
        VxlanStep::SetEntry(entry) => netlink.replace_fdb_entry(link, *entry),
        VxlanStep::RemoveEntry(entry) => netlink.remove_fdb_entry(link, *entry),
        VxlanStep::SetNeighbour(neighbour) => netlink.replace_neighbour(link, *neighbour),
        VxlanStep::RemoveNeighbour(ip) => netlink.remove_neighbour(link, *ip),
        // Those that are about the device itself.
        VxlanStep::Make(_)
        | VxlanStep::Remake(_)
        | VxlanStep::Correct(_)
        | VxlanStep::Remove
        | VxlanStep::SetSysctl(_) => Ok(()),
    }
}

fn remove_link(netlink: &mut Netlink, name: &IfName) -> anyhow::Result<()> {
    match netlink.find_link(name)? {
        Some(link) => Ok(netlink.remove_link(link.index)?),
        None => Ok(()),
    }
}

/// The route with its link, also where a change before this one made the link.
fn with_link(netlink: &Netlink, named: &NamedRoute) -> podspan_kernel::Result<Route> {
    let mut route = named.route.clone();
    if let (None, Some(name)) = (route.link, &named.link_name) {
        let invalid = |invalid: Invalid| Error::new(invalid.to_string(), Errno::INVAL);
        let name = name.parse::<IfName>().map_err(invalid)?;
        route.link = Some(netlink.link_index(&name)?);
    }
    Ok(route)
}
