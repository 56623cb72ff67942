//! `podspan list`: the attachments of this node.
//!
//! From the host veths' aliases, joined with the allocations: one without the other is listed too, because it is what an
//! operator looks for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use podspan_cni::attachment::{AttachmentId, NetworkName};
use podspan_kernel::{Link, Netlink};
use serde::Serialize;

use crate::config;
use crate::observe::list_allocations;
use crate::output::{Output, columns};

/// An attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The network's name.
    pub network: String,
    /// The container's id.
    pub container: String,
    /// The pod veth's name.
    pub interface: String,
    /// The host veth's name; none when only the allocation is there.
    pub host_veth: Option<String>,
    /// Its addresses; none when only the link is there.
    pub addresses: Vec<IpAddr>,
}

/// Prints the attachments.
///
/// # Errors
/// A configuration that is not right, or what the kernel or the file system answered.
pub fn print_list(config: Option<&Path>, output: Output) -> anyhow::Result<ExitCode> {
    let data_dir = match config::read_node_if_there(config)? {
        Some(role) => role.data_dir,
        None => config::DATA_DIR.into(),
    };
    let rows = rows(&mut Netlink::open()?, &data_dir)?;
    output.print(&rows, |rows| {
        let title = [
            "NETWORK",
            "CONTAINER",
            "INTERFACE",
            "HOST VETH",
            "ADDRESSES",
        ];
        let mut table = vec![title.map(str::to_owned).to_vec()];
        table.extend(rows.iter().map(|row| {
            let addresses: Vec<_> = row.addresses.iter().map(ToString::to_string).collect();
            let addresses = if addresses.is_empty() {
                "-".to_owned()
            } else {
                addresses.join(" ")
            };
            vec![
                row.network.clone(),
                row.container.clone(),
                row.interface.clone(),
                row.host_veth.clone().unwrap_or("-".to_owned()),
                addresses,
            ]
        }));
        columns(&table)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The attachments of this node.
///
/// # Errors
/// What the kernel or the file system answered.
pub fn rows(netlink: &mut Netlink, ipam: &Path) -> anyhow::Result<Vec<Row>> {
    let mut rows: BTreeMap<(NetworkName, AttachmentId), Row> = BTreeMap::new();
    for link in netlink.list_links()?.into_iter().filter(Link::is_veth) {
        if let Some(of) = link.alias.as_deref().and_then(AttachmentId::from_alias) {
            entry(&mut rows, of).host_veth = Some(link.name);
        }
    }
    for network in networks(ipam) {
        let mut addresses = list_allocations(ipam, &network)?;
        addresses.sort();
        for ip in addresses {
            if let Some(id) = owner(&ipam.join(network.as_str()).join(ip.to_string())) {
                entry(&mut rows, (network.clone(), id)).addresses.push(ip);
            }
        }
    }
    Ok(rows.into_values().collect())
}

fn entry(
    rows: &mut BTreeMap<(NetworkName, AttachmentId), Row>,
    of: (NetworkName, AttachmentId),
) -> &mut Row {
    let row = Row {
        network: of.0.to_string(),
        container: of.1.container.to_string(),
        interface: of.1.ifname.to_string(),
        host_veth: None,
        addresses: Vec::new(),
    };
    rows.entry(of).or_insert(row)
}

/// The networks that have a directory.
fn networks(ipam: &Path) -> Vec<NetworkName> {
    let entries = ipam.read_dir().into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.parse().ok()).collect()
}

/// An allocation's file holds the container's id and the interface's name, a line each, as host-local writes it.
pub fn owner(file: &Path) -> Option<AttachmentId> {
    let content = std::fs::read_to_string(file).ok()?;
    let mut lines = content.lines().map(str::trim);
    let container = lines.next()?.parse().ok()?;
    let ifname = lines.next()?.parse().ok()?;
    Some(AttachmentId { container, ifname })
}

#[cfg(test)]
mod tests {
    use super::*;
    use podspan_kernel::testing::TestNs;

    #[test]
    fn links_and_allocations_are_joined_and_either_alone_is_listed() {
        let ns = TestNs::new();
        let directory = tempfile::tempdir().unwrap();
        let of_network = directory.path().join("podspan");
        std::fs::create_dir(&of_network).unwrap();
        let files = [
            ("10.244.1.2", "both\r\neth0"),
            ("fd00:10:244:1::2", "both\neth0\n"),
            ("10.244.1.3", "leaked\neth0"),
            ("10.244.1.4", ""),
            ("lock", ""),
        ];
        files
            .iter()
            .for_each(|(name, text)| std::fs::write(of_network.join(name), text).unwrap());
        for (name, alias) in [
            ("pod1", "podspan:podspan/both/eth0"),
            ("pod2", "podspan:podspan/link/eth0"),
        ] {
            ns.ip(&format!("link add {name} type veth peer name x{name}"));
            ns.ip(&format!("link set {name} alias {alias}"));
        }
        ns.ip("link add podspan0 type bridge");
        ns.ip("link set podspan0 alias podspan:bridge");
        let rows = rows(&mut Netlink::open().unwrap(), directory.path()).unwrap();
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                (
                    row.container.as_str(),
                    row.host_veth.as_deref(),
                    row.addresses.len(),
                )
            })
            .collect();
        let expected = [
            ("both", Some("pod1"), 2),
            ("leaked", None, 1),
            ("link", Some("pod2"), 0),
        ];
        assert_eq!(rows, expected);
    }
}
