//! Which network a node has before ours: read from its conflist, and from what the kernel has of it. Changes nothing.
//!
//! What is read here is somebody else's format, so that nothing is taken for granted: what is not understood is told, and
//! nothing is migrated.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use podspan_cni::attachment::NetworkName;
use podspan_cni::forwarding::remove_chain;
use podspan_kernel::nft::{Chain, Family, Nft, Table};
use podspan_kernel::{IfName, Link};
use serde_json::Value;

use crate::conflist;

/// Where host-local keeps its addresses unless it is told otherwise.
const HOST_LOCAL: &str = "/var/lib/cni/networks";
/// What a conflist that was moved out of the way ends with: no runtime loads it.
pub const MOVED: &str = "podspan-migrated";

/// A network that can be migrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// flannel's: the bridge plugin by delegation, and VXLAN or plain routes.
    Flannel,
    /// kindnet's: the ptp plugin, and plain routes.
    Kindnet,
    /// The bridge plugin, and somebody's routes.
    Bridge,
}

/// What a node's pods are on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// What made it.
    pub kind: Kind,
    /// Its conflist.
    pub conflist: PathBuf,
    /// The network's name: addresses are kept by it.
    pub network: NetworkName,
    /// The bridge that its pods are on; none where each has a link of its own.
    pub bridge: Option<IfName>,
    /// Where host-local keeps the addresses.
    pub data_dir: PathBuf,
}

impl Kind {
    /// True for a link that this network made for the way between nodes, and that nobody needs when it has gone.
    pub fn has_tunnel(self, link: &Link) -> bool {
        self == Self::Flannel
            && link.kind.as_deref() == Some("vxlan")
            && ["flannel.", "flannel-v6."]
                .iter()
                .any(|prefix| link.name.starts_with(prefix))
    }
}

/// A chain of rules that a daemon of another network left behind, in a table that iptables keeps.
#[derive(Debug)]
pub struct Leftover {
    family: Family,
    /// The table, the chain of iptables' own that leads to it, and its name.
    place: (&'static str, &'static str, &'static str),
}

impl Leftover {
    /// flannel's masquerading and forwarding, and kindnet's masquerading.
    const PLACES: [(&'static str, &'static str, &'static str); 3] = [
        ("nat", "POSTROUTING", "FLANNEL-POSTRTG"),
        ("filter", "FORWARD", "FLANNEL-FWD"),
        ("nat", "POSTROUTING", "KIND-MASQ-AGENT"),
    ];

    /// Those that are there.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn find(nft: &mut Nft) -> podspan_kernel::Result<Vec<Self>> {
        let mut found = Vec::new();
        for family in [Family::Ip, Family::Ip6] {
            for place in Self::PLACES {
                let leftover = Self { family, place };
                if nft.has_chain(leftover.chains().1)? {
                    found.push(leftover);
                }
            }
        }
        Ok(found)
    }

    /// Removes it, and what leads to it.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove(&self) -> podspan_kernel::Result<()> {
        let (base, chain) = self.chains();
        remove_chain(&mut Nft::open()?, base, chain).map(drop)
    }

    fn chains(&self) -> (Chain<'static>, Chain<'static>) {
        let (name, base, chain) = self.place;
        let table = Table {
            family: self.family,
            name,
        };
        (Chain::plain(table, base), Chain::plain(table, chain))
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (base, chain) = self.chains();
        write!(
            f,
            "nft delete {chain} # and the jump to it from {}",
            base.name
        )
    }
}

/// The network whose conflist a runtime takes: the first in the directory that is not ours.
///
/// # Errors
/// A file that cannot be read, or that describes what cannot be migrated.
pub fn find(directory: &Path) -> anyhow::Result<Option<Foreign>> {
    for path in conflist::loaded(directory) {
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if matches!(conflist::observe(&path), conflist::Found::Ours(_)) {
            continue;
        }
        return parse(&path, &text)
            .map(Some)
            .with_context(|| format!("{} cannot be migrated", path.display()));
    }
    Ok(None)
}

/// The conflists that an earlier migration moved away.
pub fn moved(directory: &Path) -> Vec<PathBuf> {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|suffix| suffix == MOVED));
    paths.sort();
    paths
}

fn parse(path: &Path, text: &str) -> anyhow::Result<Foreign> {
    let conf: Value = serde_json::from_str(text).context("it is no JSON")?;
    let plugin = conf.pointer("/plugins/0").unwrap_or(&conf);
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let kind = match text(plugin, "type").as_deref() {
        Some("flannel") => Kind::Flannel,
        Some("ptp") => Kind::Kindnet,
        Some("bridge") => Kind::Bridge,
        other => bail!(
            "its first plugin is {}; flannel, ptp (as of kindnet) and bridge are known",
            other.unwrap_or("none")
        ),
    };
    let nothing = Value::Null;
    // flannel gives the block below `delegate` to the bridge plugin, and adds the ranges.
    let (of_bridge, ipam) = match kind {
        Kind::Flannel => (
            plugin.get("delegate").unwrap_or(&nothing),
            plugin.get("ipam").unwrap_or(&nothing),
        ),
        Kind::Kindnet | Kind::Bridge => (plugin, plugin.get("ipam").unwrap_or(&nothing)),
    };
    for (of, key, right) in [(of_bridge, "type", "bridge"), (ipam, "type", "host-local")] {
        let is = text(of, key).filter(|_| kind != Kind::Kindnet || right != "bridge");
        if let Some(is) = is.filter(|is| is != right) {
            bail!("it has {is} where {right} is known");
        }
    }
    let bridge = match kind {
        Kind::Kindnet => None,
        Kind::Flannel | Kind::Bridge => Some(
            text(of_bridge, "bridge")
                .unwrap_or("cni0".to_owned())
                .parse()?,
        ),
    };
    Ok(Foreign {
        kind,
        conflist: path.to_owned(),
        network: text(&conf, "name").unwrap_or_default().parse()?,
        bridge,
        data_dir: text(ipam, "dataDir")
            .unwrap_or(HOST_LOCAL.to_owned())
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> anyhow::Result<Foreign> {
        parse(Path::new("/c/10-x.conflist"), text)
    }

    #[test]
    fn what_flannel_kindnet_and_the_bridge_plugin_write_is_understood() {
        let flannel = r#"{"name": "cbr0", "plugins": [
            {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}}, {"type": "portmap"}]}"#;
        let kindnet = r#"{"name": "kindnet", "plugins": [{"type": "ptp", "ipMasq": false,
            "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state", "ranges": [[{"subnet": "10.244.1.0/24"}]]}}]}"#;
        let bridge = r#"{"name": "pods", "type": "bridge", "bridge": "br0", "ipam": {"type": "host-local"}}"#;
        for (text, kind, network, bridge, data_dir) in [
            (flannel, Kind::Flannel, "cbr0", Some("cni0"), HOST_LOCAL),
            (
                kindnet,
                Kind::Kindnet,
                "kindnet",
                None,
                "/run/cni-ipam-state",
            ),
            (bridge, Kind::Bridge, "pods", Some("br0"), HOST_LOCAL),
        ] {
            let expected = Foreign {
                kind,
                conflist: "/c/10-x.conflist".into(),
                network: network.parse().unwrap(),
                bridge: bridge.map(|name| name.parse().unwrap()),
                data_dir: data_dir.into(),
            };
            assert_eq!(parsed(text).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_understood_is_told() {
        for (text, told) in [
            ("{", "it is no JSON"),
            (
                r#"{"name": "x", "plugins": [{"type": "calico"}]}"#,
                "its first plugin is calico",
            ),
            (r#"{"name": "x"}"#, "its first plugin is none"),
            (
                r#"{"name": "x", "type": "bridge", "ipam": {"type": "dhcp"}}"#,
                "it has dhcp where host-local is known",
            ),
            (
                r#"{"name": "x", "type": "flannel", "delegate": {"type": "ipvlan"}}"#,
                "it has ipvlan where bridge is known",
            ),
            (r#"{"type": "bridge"}"#, "network name"),
        ] {
            let error = format!("{:#}", parsed(text).unwrap_err());
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn the_first_that_is_not_ours_is_found_and_what_was_moved_is_not_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        assert_eq!(find(&path("none")).unwrap(), None);
        let bridge = r#"{"name": "pods", "type": "bridge"}"#;
        std::fs::write(
            path("05.conflist"),
            r#"{"plugins": [{"type": "podspan-cni"}]}"#,
        )
        .unwrap();
        std::fs::write(path(&format!("06.conflist.{MOVED}")), bridge).unwrap();
        assert_eq!(find(directory.path()).unwrap(), None);
        std::fs::write(path("20.conf"), bridge).unwrap();
        let found = find(directory.path()).unwrap().unwrap();
        assert_eq!(found.conflist, path("20.conf"));
        assert_eq!(
            moved(directory.path()),
            [path(&format!("06.conflist.{MOVED}"))]
        );
    }
}
