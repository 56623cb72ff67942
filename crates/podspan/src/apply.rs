//! Carries out a plan: every change, whatever became of those before it, and tells of each.
//!
//! One exception: the conflist invites the runtime, so it is not written when the bridge is not as it should be. Each route
//! costs one netlink message.

use anyhow::{Context as _, anyhow};
use podspan_kernel::{Errno, Error, IfName, Invalid, Netlink, Route, VxlanDevice, sysctl};

use crate::conflist;
use crate::packet_filter::PacketFilter;
use crate::plan::{Change, NamedRoute, VxlanLink};

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
        Change::AddVxlan(link) => add_vxlan(netlink, link)?,
        Change::ReplaceVxlan(link) => {
            remove_link(netlink, &link.name)?;
            add_vxlan(netlink, link)?;
        }
        Change::SetVxlan { name, change } => netlink.set_link(name, *change)?,
        Change::RemoveVxlan { name } => remove_link(netlink, name)?,
        Change::SetFdbEntry { link, entry } => {
            let index = netlink.link_index(link)?;
            netlink.replace_fdb_entry(index, *entry)?;
        }
        Change::RemoveFdbEntry { link, entry } => {
            let index = netlink.link_index(link)?;
            netlink.remove_fdb_entry(index, *entry)?;
        }
        Change::SetNeighbour { link, neighbour } => {
            let index = netlink.link_index(link)?;
            netlink.replace_neighbour(index, *neighbour)?;
        }
        Change::RemoveNeighbour { link, ip } => {
            let index = netlink.link_index(link)?;
            netlink.remove_neighbour(index, *ip)?;
        }
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

fn add_vxlan(netlink: &mut Netlink, link: &VxlanLink) -> anyhow::Result<()> {
    let device = VxlanDevice {
        name: &link.name,
        mac: link.mac,
        mtu: Some(link.mtu),
        vxlan: link.vxlan,
    };
    Ok(netlink.add_vxlan(&device)?)
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
