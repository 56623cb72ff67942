//! What other pod networks left on this machine (B7). It routes, translates or drops what is ours.

use podspan_kernel::nft::Family;

use super::super::Finding;
use super::super::facts::Facts;
use super::{NAMED, some};

const WHY: &str = "what another pod network left routes, translates or drops what is ours; take it away when that network is \
                   not used any more";
/// Links of others, by their names and by how their names begin.
const LINKS: [&str; 6] = [
    "cni0",
    "kube-bridge",
    "weave",
    "vxlan.calico",
    "antrea-gw0",
    "ovn0",
];
const LINKS_BEGIN: [&str; 5] = ["flannel.", "cali", "cilium_", "weave-", "vxlan-v6.calico"];
/// How the names of others' chains begin.
const CHAINS_BEGIN: [&str; 6] = [
    "FLANNEL-",
    "KUBE-ROUTER-",
    "cali-",
    "CILIUM_",
    "WEAVE-",
    "KINDNET-",
];
/// The types of others' plugins.
const PLUGINS: [&str; 6] = [
    "flannel",
    "calico",
    "cilium-cni",
    "weave-net",
    "kube-ovn",
    "antrea",
];

pub(super) fn foreign_links(facts: &Facts) -> Vec<Finding> {
    let begins = |name: &str| LINKS_BEGIN.iter().any(|begin| name.starts_with(begin));
    let names = facts.links.iter().map(|link| link.name.as_str());
    let ours = facts.bridge.as_ref().map(|bridge| bridge.as_str());
    let names = names.filter(|name| LINKS.contains(name) || begins(name));
    let names: Vec<_> = names.filter(|name| Some(*name) != ours).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let what = format!("links of another pod network are here: {}", some(&names));
    let commands = names.iter().take(NAMED);
    let commands: Vec<_> = commands.map(|name| format!("ip link del {name}")).collect();
    vec![Finding::warning(what, (WHY, commands.join(" && ")))]
}

pub(super) fn foreign_rules(facts: &Facts) -> Vec<Finding> {
    let begin_of = |name: &str| {
        CHAINS_BEGIN
            .into_iter()
            .find(|begin| name.starts_with(begin))
    };
    let mut found = Vec::new();
    for (program, family) in [("iptables", Family::Ip), ("ip6tables", Family::Ip6)] {
        let chains = facts.chains.iter().filter(|chain| chain.family == family);
        let chains: Vec<_> = chains
            .filter(|chain| begin_of(&chain.name).is_some())
            .collect();
        let mut begins: Vec<_> = chains
            .iter()
            .filter_map(|chain| begin_of(&chain.name))
            .collect();
        begins.sort_unstable();
        begins.dedup();
        if chains.is_empty() {
            continue;
        }
        let names = chains
            .iter()
            .map(|chain| format!("{} {} {}", chain.family, chain.table, chain.name));
        let what = format!("rules of another pod network are here: {}", some(names));
        let without: Vec<_> = begins
            .iter()
            .map(|begin| format!("grep -v {begin}"))
            .collect();
        let mend = format!(
            "{program}-save | {} | {program}-restore",
            without.join(" | ")
        );
        found.push(Finding::warning(what, (WHY, mend)));
    }
    found
}

pub(super) fn foreign_conflists(facts: &Facts) -> Vec<Finding> {
    let others = facts
        .conflists
        .iter()
        .filter(|(_, types)| types.iter().any(|kind| PLUGINS.contains(&kind.as_str())));
    let found = others.map(|(path, types)| {
        let (path, kinds) = (path.display(), types.join(", "));
        let what = format!("{path} is the configuration of another pod network ({kinds})");
        let why = "should ours be away for a moment, a runtime would take it";
        Finding::warning(what, (why, format!("mv {path} {path}.disabled")))
    });
    found.collect()
}
