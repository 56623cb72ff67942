//! `podspan cleanup`: removes all that bears our mark from this machine, and nothing else.
//!
//! It never stops at the first failure. Kernel parameters stay as they are, because nobody knows what they were before; so
//! do gateways' addresses on a bridge of somebody else, which bear no mark. Stop the agent first: it would make all anew.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use podspan_cni::attachment::{AttachmentId, MARK, NetworkName};
use podspan_cni::filter::INET;
use podspan_cni::forwarding;
use podspan_cni::ipam::{Ipam, boot_id};
use podspan_cni::program::install::uninstall;
use podspan_kernel::nft::{Batch, Nft};
use podspan_kernel::{Netlink, RouteProtocol};
use serde::Serialize;

use crate::config;
use crate::conflist;
use crate::events;
use crate::output::{Output, exit_code};

/// Where everything is that lives as long as the boot.
const RUN: &str = "/run/podspan";
/// What of it is ours to remove: allocations, and the results of `podspan add`.
const OF_RUN: [&str; 2] = ["ipam", "results"];

/// What became of it.
#[derive(Debug, Default, Serialize)]
pub struct Cleanup {
    /// What was removed.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
    /// The attachments whose link was removed.
    #[serde(skip)]
    detached: Vec<(NetworkName, AttachmentId)>,
}

/// What is to be cleaned besides.
#[derive(clap::Args)]
pub struct Arguments {
    /// The agent's configuration, which says where the conflist is [default: /etc/podspan/agent.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where addresses are kept; those of the attachments that are removed are freed [default: what the configuration says]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Also remove the plugin, and the names that link to it, from this directory
    #[arg(long, value_name = "DIR")]
    plugins: Option<PathBuf>,
    /// Then wait for SIGTERM, as a container of a DaemonSet must; what failed ends it at once
    #[arg(long)]
    stay: bool,
}

/// Cleans this machine and prints what became of it; the exit status says whether all went.
///
/// # Errors
/// A configuration that is not right: it would say where the conflist is.
pub fn run(arguments: &Arguments, output: Output) -> anyhow::Result<ExitCode> {
    let role = config::read_node_if_there(arguments.config.as_deref())?;
    let conflist = role
        .as_ref()
        .map_or(Path::new(config::CONFLIST), |role| &role.conflist);
    let data_dir = arguments
        .data_dir
        .as_ref()
        .or(role.as_ref().map(|role| &role.data_dir));
    let mut cleanup = clean(conflist, Path::new(RUN));
    if let Some(data_dir) = data_dir.filter(|dir| *dir != Path::new(config::DATA_DIR)) {
        cleanup.addresses(data_dir);
    }
    if let Some(directory) = &arguments.plugins {
        cleanup.plugins(directory);
    }
    output.print(&cleanup, Cleanup::to_text)?;
    if arguments.stay && cleanup.failed.is_empty() {
        events::wait_for_end()?;
    }
    Ok(exit_code(cleanup.failed.is_empty()))
}

/// Removes all that is marked. The conflist goes first: it invites the runtime.
fn clean(conflist: &Path, run: &Path) -> Cleanup {
    let mut cleanup = Cleanup::default();
    match conflist::remove(conflist) {
        Ok(true) => cleanup
            .removed
            .push(format!("conflist {}", conflist.display())),
        Ok(false) => {}
        Err(error) => cleanup.fail(&error),
    }
    match Netlink::open() {
        Ok(mut netlink) => {
            cleanup.links(&mut netlink);
            cleanup.routes(&mut netlink);
        }
        Err(error) => cleanup.fail(&error.into()),
    }
    cleanup.packet_filter();
    cleanup.forwarding();
    for name in OF_RUN {
        let directory = run.join(name);
        let what = format!("directory {}", directory.display());
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            outcome => cleanup.note(what, outcome.map_err(Into::into)),
        }
    }
    // Only when nothing else is in it.
    let _ = std::fs::remove_dir(run);
    cleanup
}

impl Cleanup {
    /// For people: a line each.
    fn to_text(&self) -> String {
        let removed = self.removed.iter().map(|what| format!("removed {what}\n"));
        let failed = self.failed.iter().map(|what| format!("FAILED  {what}\n"));
        removed.chain(failed).collect()
    }

    fn fail(&mut self, error: &anyhow::Error) {
        self.failed.push(format!("{error:#}"));
    }

    fn note(&mut self, what: String, outcome: anyhow::Result<()>) {
        match outcome.with_context(|| format!("remove {what}")) {
            Ok(()) => self.removed.push(what),
            Err(error) => self.fail(&error),
        }
    }

    /// The addresses of what was detached, in a directory that others have addresses in, too.
    fn addresses(&mut self, data_dir: &Path) {
        for (network, id) in std::mem::take(&mut self.detached) {
            let free = || -> anyhow::Result<()> {
                Ok(Ipam::of_network(data_dir, &network, &boot_id()?)?.release(&id)?)
            };
            let what = format!("addresses of {id} in {}", data_dir.display());
            self.note(what, free());
        }
    }

    /// The plugin, last of all: until here, a runtime can still detach its pods.
    fn plugins(&mut self, directory: &Path) {
        match uninstall(directory) {
            Ok(removed) => {
                let paths = removed
                    .iter()
                    .map(|path| format!("file {}", path.display()));
                self.removed.extend(paths);
            }
            Err(error) => self.fail(&anyhow::Error::from(error).context("remove the plugin")),
        }
    }

    /// The table of ours, where it is; a kernel without nftables has none.
    fn packet_filter(&mut self) {
        let Ok(mut nft) = Nft::open() else { return };
        if !matches!(nft.has_table(INET), Ok(true)) {
            return;
        }
        let mut batch = Batch::new();
        batch.delete_table(INET);
        self.note(
            format!("nft table {INET}"),
            nft.commit(batch).map_err(Into::into),
        );
    }

    /// What lets pods through in the tables that iptables keeps.
    fn forwarding(&mut self) {
        let Ok(mut nft) = Nft::open() else { return };
        // A kernel without nftables has none of it, and nothing that could answer.
        if nft.generation().is_err() {
            return;
        }
        for table in forwarding::TABLES {
            for name in [forwarding::NAME, crate::forwarding::NAME] {
                let what = format!("nft chain {table} {name}");
                match forwarding::remove(&mut nft, table, name) {
                    Ok(false) => {}
                    Ok(true) => self.note(what, Ok(())),
                    Err(error) => self.note(what, Err(error.into())),
                }
            }
        }
    }

    fn links(&mut self, netlink: &mut Netlink) {
        let links = match netlink.list_links() {
            Ok(links) => links,
            Err(error) => return self.fail(&error.into()),
        };
        // The host veths first: a bridge with ports would only let go of them.
        let (bridges, others): (Vec<_>, Vec<_>) = links
            .into_iter()
            .filter(|link| {
                link.alias
                    .as_ref()
                    .is_some_and(|alias| alias.starts_with(MARK))
            })
            .partition(podspan_kernel::Link::is_bridge);
        for link in others.into_iter().chain(bridges) {
            let alias = link.alias.unwrap_or_default();
            let outcome = netlink.remove_link(link.index);
            if outcome.is_ok() {
                self.detached.extend(AttachmentId::from_alias(&alias));
            }
            let what = format!("link {} ({alias})", link.name);
            self.note(what, outcome.map_err(Into::into));
        }
    }

    fn routes(&mut self, netlink: &mut Netlink) {
        match netlink.list_routes(RouteProtocol::PODSPAN) {
            Ok(routes) => {
                for route in routes {
                    let outcome = netlink.remove_route(&route).map_err(Into::into);
                    self.note(format!("route {route}"), outcome);
                }
            }
            Err(error) => self.fail(&error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podspan_kernel::testing::TestNs;

    #[test]
    fn all_that_is_marked_goes_and_everything_foreign_stays() {
        let ns = TestNs::new();
        let directory = tempfile::tempdir().unwrap();
        let (conflist, run) = (
            directory.path().join("10-podspan.conflist"),
            directory.path().join("run"),
        );
        std::fs::write(&conflist, r#"{"plugins": [{"type": "podspan-cni"}]}"#).unwrap();
        std::fs::write(directory.path().join("20-other.conflist"), "{}").unwrap();
        std::fs::create_dir_all(run.join("ipam/podspan")).unwrap();
        std::fs::create_dir_all(run.join("lab")).unwrap();
        std::fs::write(run.join("ipam/podspan/10.244.1.2"), "c1\neth0").unwrap();
        ns.ip("link add podspan0 up type bridge");
        ns.ip("link set podspan0 alias podspan:bridge");
        ns.ip("link add pod1 type veth peer name x1");
        ns.ip("link set pod1 alias podspan:podspan/c1/eth0 master podspan0");
        for (name, vni, alias) in [
            ("podspan-vxlan4", 112, "podspan:vxlan"),
            ("foreign2", 7, "x"),
        ] {
            ns.ip(&format!(
                "link add {name} up type vxlan id {vni} dstport 8472 local 127.0.0.1"
            ));
            ns.ip(&format!("link set {name} alias {alias}"));
        }
        ns.ip("neigh add 10.244.3.0 lladdr 0a:58:0a:f4:03:00 dev podspan-vxlan4 nud permanent");
        ns.ip("route add 10.244.3.0/24 via 10.244.3.0 dev podspan-vxlan4 onlink proto 112");
        ns.ip("link add foreign0 up type bridge");
        ns.ip("link set foreign0 alias podspanish");
        ns.ip("link add foreign1 type veth peer name x2");
        ns.ip("link set foreign1 master podspan0");
        ns.ip("addr add 192.168.1.11/24 dev foreign0");
        ns.ip("addr add fd00:192::11/64 dev foreign0 nodad");
        ns.ip("route add 10.244.2.0/24 via 192.168.1.12 proto 112");
        ns.ip("-6 route add fd00:10:244:2::/64 via fd00:192::12 proto 112");
        ns.ip("route add 10.9.0.0/24 via 192.168.1.12 proto static");
        nft(
            "add table inet foreign; add chain inet foreign c1; add table inet podspan; \
              add table ip podspan; add table bridge foreign; \
              add table ip filter; add chain ip filter CNI-ADMIN; add chain ip filter PODSPAN-FORWARD; \
              add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; \
              add rule ip filter FORWARD jump PODSPAN-FORWARD; add rule ip filter FORWARD jump CNI-ADMIN; \
              add rule ip filter PODSPAN-FORWARD jump CNI-ADMIN; \
              add rule ip filter PODSPAN-FORWARD iifname podspan0 accept; \
              add chain ip filter PODSPAN-AGENT; add rule ip filter FORWARD jump PODSPAN-AGENT; \
              add table ip6 filter; add chain ip6 filter PODSPAN-FORWARD",
        );

        let cleanup = clean(&conflist, &run);
        assert_eq!(cleanup.failed, [""; 0]);
        let expected = [
            format!("conflist {}", conflist.display()),
            "link pod1 (podspan:podspan/c1/eth0)".to_owned(),
            "link podspan-vxlan4 (podspan:vxlan)".to_owned(),
            "link podspan0 (podspan:bridge)".to_owned(),
            "route 10.244.2.0/24 via 192.168.1.12 proto 112".to_owned(),
            "route fd00:10:244:2::/64 via fd00:192::12 proto 112".to_owned(),
            "nft table inet podspan".to_owned(),
            "nft chain ip filter PODSPAN-FORWARD".to_owned(),
            "nft chain ip filter PODSPAN-AGENT".to_owned(),
            "nft chain ip6 filter PODSPAN-FORWARD".to_owned(),
            format!("directory {}", run.join("ipam").display()),
        ];
        assert_eq!(cleanup.removed, expected);

        let links = ns.ip("link show");
        let names: Vec<_> = links
            .as_array()
            .unwrap()
            .iter()
            .map(|link| &link["ifname"])
            .collect();
        assert_eq!(names, ["lo", "foreign2", "foreign0", "x2", "foreign1"]);
        assert_eq!(ns.ip("route show proto static")[0]["dst"], "10.9.0.0/24");
        assert_eq!(
            nft("list tables"),
            "table inet foreign\ntable ip podspan\ntable bridge foreign\ntable ip filter\ntable ip6 filter\n"
        );
        let filter = nft("list table ip filter");
        let left: Vec<_> = filter.split_whitespace().collect();
        assert_eq!(
            left.join(" "),
            "table ip filter { chain CNI-ADMIN { } chain FORWARD { type filter hook forward priority filter; policy drop; jump CNI-ADMIN } }"
        );
        assert!(directory.path().join("20-other.conflist").exists() && run.join("lab").exists());
        assert!(clean(&conflist, &run).removed.is_empty(), "twice is once");
    }

    #[test]
    fn in_a_directory_that_is_shared_only_the_addresses_of_what_was_detached_are_freed() {
        let ns = TestNs::new();
        let directory = tempfile::tempdir().unwrap();
        let cbr0 = directory.path().join("networks/cbr0");
        std::fs::create_dir_all(&cbr0).unwrap();
        std::fs::write(cbr0.join("last_reserved_ip.0"), "10.244.1.3").unwrap();
        for (address, owner) in [("10.244.1.2", "ours"), ("10.244.1.3", "theirs")] {
            std::fs::write(cbr0.join(address), format!("{owner}\r\neth0")).unwrap();
        }
        ns.ip("link add pod1 type veth peer name x1");
        ns.ip("link set pod1 alias podspan:cbr0/ours/eth0");
        let mut cleanup = clean(
            &directory.path().join("none"),
            &directory.path().join("run"),
        );
        cleanup.addresses(&directory.path().join("networks"));
        assert_eq!(cleanup.failed, [""; 0]);
        let expected = format!(
            "addresses of ours/eth0 in {}",
            directory.path().join("networks").display()
        );
        assert_eq!(cleanup.removed[1], expected);
        assert!(!cbr0.join("10.244.1.2").exists() && cbr0.join("10.244.1.3").exists());
    }

    fn nft(command: &str) -> String {
        let output = std::process::Command::new("nft").arg(command).output();
        let output = output.expect("nft of nftables is installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn a_conflist_of_somebody_else_is_told_and_the_rest_goes_on() {
        let ns = TestNs::new();
        let directory = tempfile::tempdir().unwrap();
        let conflist = directory.path().join("10-podspan.conflist");
        std::fs::write(&conflist, r#"{"plugins": [{"type": "bridge"}]}"#).unwrap();
        ns.ip("link add podspan0 up type bridge");
        ns.ip("link set podspan0 alias podspan:bridge");
        let cleanup = clean(&conflist, directory.path());
        assert_eq!((cleanup.removed.len(), cleanup.failed.len()), (1, 1));
        assert!(cleanup.failed[0].ends_with("stays: it is not ours: its first plugin is bridge"));
        assert!(conflist.exists());
    }
}
