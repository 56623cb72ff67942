//! The checks: each a pure function of the facts.

mod forwarding;
mod remains;
#[cfg(test)]
mod tests;

use podspan_kernel::Link;
use podspan_kernel::nft::Family;

use super::Finding;
use super::facts::Facts;
use crate::desired::Between;
use crate::observe::BR_NETFILTER;
use forwarding::forward_drops;
use remains::{foreign_conflists, foreign_links, foreign_rules};

/// A check.
type Check = fn(&Facts) -> Vec<Finding>;

/// All of them, in the order of a person's questions.
pub const ALL: [Check; 16] = [
    ways,
    forward_drops,
    reverse_path,
    services,
    advertisements,
    plugin,
    pod_cidrs,
    addresses,
    pod_mtu,
    conntrack,
    neighbours,
    network_manager,
    legacy,
    foreign_links,
    foreign_rules,
    foreign_conflists,
];

/// How full a table may be before it is told, in parts of one.
const NEARLY_FULL: f64 = 0.8;
/// How many of one kind are named.
const NAMED: usize = 5;
/// The file that keeps NetworkManager from our links.
const DROP_IN: &str = "/etc/NetworkManager/conf.d/podspan.conf";

/// The first few, and how many there are beside.
fn some(all: impl IntoIterator<Item = impl ToString>) -> String {
    let all: Vec<_> = all.into_iter().map(|one| one.to_string()).collect();
    let first: Vec<_> = all.iter().take(NAMED).cloned().collect();
    match all.len().saturating_sub(NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

impl Facts {
    fn sysctl(&self, key: &str) -> Option<&str> {
        self.sysctls.get(key).map(String::as_str)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.sysctl(key)?.parse().ok()
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    fn names(&self, indexes: impl IntoIterator<Item = u32>) -> Vec<&str> {
        let links = indexes.into_iter().filter_map(|index| self.link(index));
        links.map(|link| link.name.as_str()).collect()
    }
}

/// Ways to other nodes' pods, tried just now (D1, D2).
fn ways(facts: &Facts) -> Vec<Finding> {
    let found = facts.failing.iter().map(|line| {
        let (what, mend) = line
            .split_once("; ")
            .unwrap_or((line, "see podspan status"));
        let why = "pods of this node do not reach those of that one, or only with small packets";
        Finding::wrong(what.to_owned(), (why, mend.to_owned()))
    });
    found.collect()
}

/// Packets of other nodes' pods come in by a link that their answers do not leave by (B3).
fn reverse_path(facts: &Facts) -> Vec<Finding> {
    let of = |name: &str| facts.number(&format!("net/ipv4/conf/{name}/rp_filter"));
    let all = of("all").unwrap_or(0);
    if facts.ways.is_empty() {
        return Vec::new();
    }
    let elsewhere = facts.uplinks.difference(&facts.ways);
    let names = facts.names(elsewhere.copied());
    // The kernel takes the larger of both; 1 is strict, 2 is not (ip-sysctl.rst, rp_filter).
    let strict = names
        .into_iter()
        .filter(|name| all.max(of(name).unwrap_or(0)) == 1);
    let found = strict.map(|name| {
        let ways = facts.names(facts.ways.iter().copied()).join(", ");
        let what = format!(
            "rp_filter of {name} is strict, and the routes to other nodes' pods leave by {ways}"
        );
        let why =
            "other nodes send to the address on that link: their pods' packets are dropped there";
        Finding::wrong(
            what,
            (why, format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2")),
        )
    });
    found.collect()
}

/// A Service proxy needs that what pods of this node send each other passes its rules.
fn services(facts: &Facts) -> Vec<Finding> {
    let is_proxy = facts
        .chains
        .iter()
        .any(|chain| chain.name == "KUBE-SERVICES" || chain.table == "kube-proxy");
    let bridge = facts.bridge.iter().find_map(|name| {
        let mut links = facts.links.iter();
        links.find(|link| link.name == name.as_str())
    });
    let (true, Some(bridge)) = (is_proxy, bridge) else {
        return Vec::new();
    };
    let passes = match facts.sysctl(BR_NETFILTER) {
        Some("1") => true,
        Some(_) => bridge.netfilter == Some(true),
        None => false,
    };
    if passes || matches!(facts.between, Some(Between::Node { .. })) {
        return Vec::new();
    }
    let why = "a Service whose client and pod are both on this node does not answer: the answer goes over the bridge, \
               past the rules that would translate it back";
    let name = &bridge.name;
    let what = format!(
        "there are Services here, and what bridge {name} forwards does not pass their rules"
    );
    let mend = format!(
        "set bridge_netfilter = true in {} and restart the agent",
        facts.config_file.display()
    );
    vec![Finding::wrong(what, (why, mend))]
}

/// A node that forwards IPv6 is deaf to router advertisements, unless told otherwise.
fn advertisements(facts: &Facts) -> Vec<Finding> {
    if facts.sysctl("net/ipv6/conf/all/forwarding") != Some("1") {
        return Vec::new();
    }
    let names = facts.names(facts.advertised.iter().copied());
    let key = |name: &str| format!("net/ipv6/conf/{name}/accept_ra");
    let deaf = names
        .into_iter()
        .filter(|name| facts.sysctl(&key(name)) == Some("1"));
    let found = deaf.map(|name| {
        let what = format!("{name} has its IPv6 default route from a router, and will hear of no other");
        let why = "the kernel ignores router advertisements on a machine that forwards: the route ends with its lifetime";
        let mend = format!("sysctl -w net.ipv6.conf.{name}.accept_ra=2");
        Finding::warning(what, (why, mend))
    });
    found.collect()
}

/// The plugin is where a runtime looks for it, and of our version.
fn plugin(facts: &Facts) -> Vec<Finding> {
    let Some(plugin) = &facts.plugin else {
        return Vec::new();
    };
    let file = plugin.file.display();
    let directory = plugin.file.parent().unwrap_or(&plugin.file).display();
    let mend = format!("podspan-cni install {directory}");
    match &plugin.version {
        Ok(version) if version == env!("CARGO_PKG_VERSION") => Vec::new(),
        Ok(version) => vec![Finding::warning(
            format!(
                "{file} is version {version}, and this is {}",
                env!("CARGO_PKG_VERSION")
            ),
            ("what one of them makes the other may not know", mend),
        )],
        Err(why) => vec![Finding::wrong(
            format!("the plugin {file} cannot be run: {why}"),
            ("no pod can be started", mend),
        )],
    }
}

/// The addresses for pods come to their end (A5).
fn pod_cidrs(facts: &Facts) -> Vec<Finding> {
    let full = facts.pod_cidrs.iter().filter_map(|usage| {
        let what = usage.problem()?;
        let left = usage.total - f64::from(usage.used);
        let why = "a pod that gets no address does not start";
        let mend = "podspan list shows who has them; give the node a further pod CIDR".to_owned();
        Some(match left < 1.0 {
            true => Finding::wrong(what, (why, mend)),
            false => Finding::warning(what, (why, mend)),
        })
    });
    full.collect()
}

/// Addresses that nobody uses and nobody can have (A2, A3).
fn addresses(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some((_, first)) = facts.orphans.first() {
        let count = facts.orphans.len();
        let ips = some(facts.orphans.iter().map(|(ip, _)| ip));
        let what = format!("{count} addresses belong to containers without a link: {ips}");
        let why = "each is lost for pods until its container is deleted or the runtime collects garbage (GC)";
        let mend = format!(
            "podspan del {} /none --ifname {}, and so on; podspan list names the others",
            first.container, first.ifname
        );
        found.push(Finding::warning(what, (why, mend)));
    }
    if let Some(first) = facts.damaged.first() {
        let files = some(facts.damaged.iter().map(|file| file.display()));
        let what = format!("files of addresses name no owner: {files}");
        let why = "such an address is given to nobody, so that it never has two owners";
        let mend = format!("ping it; when nobody answers: rm {}", first.display());
        found.push(Finding::warning(what, (why, mend)));
    }
    found
}

/// Pods whose MTU is not the bridge's any more (B5, D2).
fn pod_mtu(facts: &Facts) -> Vec<Finding> {
    let is_bridge = |link: &&Link| {
        facts
            .bridge
            .as_ref()
            .is_some_and(|name| name.as_str() == link.name)
    };
    let Some(bridge) = facts.links.iter().find(is_bridge) else {
        return Vec::new();
    };
    let is_pod = |link: &&Link| {
        let alias = link.alias.as_deref().unwrap_or_default();
        link.master == Some(bridge.index) && alias.starts_with(podspan_cni::attachment::MARK)
    };
    let pods = facts.links.iter().filter(is_pod);
    let larger: Vec<_> = pods.filter(|link| link.mtu > bridge.mtu).collect();
    if larger.is_empty() {
        return Vec::new();
    }
    let names = some(
        larger
            .iter()
            .map(|link| format!("{} {}", link.name, link.mtu)),
    );
    let what = format!(
        "pods have a larger MTU than bridge {} with its {}: {names}",
        bridge.name, bridge.mtu
    );
    let why =
        "the uplink takes smaller packets now; what such a pod sends is dropped or cut on the way";
    let mend = "start these pods anew; podspan list names them by these links".to_owned();
    vec![Finding::warning(what, (why, mend))]
}

/// The table of connections is nearly full.
fn conntrack(facts: &Facts) -> Vec<Finding> {
    let [count, max] =
        ["count", "max"].map(|key| facts.number(&format!("net/netfilter/nf_conntrack_{key}")));
    let (Some(count), Some(max)) = (count, max.filter(|max| *max > 0)) else {
        return Vec::new();
    };
    if (count as f64) < NEARLY_FULL * max as f64 {
        return Vec::new();
    }
    let what = format!("{count} connections are followed, of {max} at the most");
    let why = "from the last on, the first packet of every connection is dropped";
    let mend = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}",
        max.saturating_mul(2)
    );
    vec![match count >= max {
        true => Finding::wrong(what, (why, mend)),
        false => Finding::warning(what, (why, mend)),
    }]
}

/// The table of neighbours holds all that this machine talks to directly: the other nodes and its pods.
fn neighbours(facts: &Facts) -> Vec<Finding> {
    let needed = facts.peers as u64 + facts.pods as u64;
    let mut found = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let key = format!("net/{family}/neigh/default/gc_thresh3");
        let Some(limit) = facts.number(&key) else {
            continue;
        };
        if (needed as f64) < NEARLY_FULL * limit as f64 {
            continue;
        }
        let what = format!(
            "this machine has {needed} neighbours among nodes and pods, and the {family} table holds {limit}"
        );
        let why = "a neighbour that has no place in the table is not reached";
        let room = needed.saturating_mul(4).next_power_of_two();
        let mend = format!(
            "sysctl -w net.{family}.neigh.default.gc_thresh3={room} net.{family}.neigh.default.gc_thresh2={}",
            room / 2
        );
        found.push(match needed >= limit {
            true => Finding::wrong(what, (why, mend)),
            false => Finding::warning(what, (why, mend)),
        });
    }
    found
}

/// NetworkManager takes links for its own (B6).
fn network_manager(facts: &Facts) -> Vec<Finding> {
    let (true, Some(bridge)) = (
        facts.network_manager.runs && !facts.network_manager.is_told,
        &facts.bridge,
    ) else {
        return Vec::new();
    };
    let what = format!(
        "NetworkManager runs, and no file tells it to leave {bridge} and the pods' links alone"
    );
    let why = "it may take their addresses away, or ask for others by DHCP";
    let mend = format!(
        "printf '[keyfile]\\nunmanaged-devices=interface-name:{bridge};interface-name:pod*\\n' > {DROP_IN} && \
         systemctl reload NetworkManager"
    );
    vec![Finding::warning(what, (why, mend))]
}

/// Rules of the older of the kernel's interfaces, beside those of the newer (C5) or alone: the agent does not see what they drop (B4).
fn legacy(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    let families = [("iptables", Family::Ip), ("ip6tables", Family::Ip6)];
    for ((program, family), there) in families.into_iter().zip(facts.legacy) {
        let tables = ["filter", "nat", "mangle", "raw"];
        let is_beside = |table: &str| tables.contains(&table);
        let mut chains = facts.chains.iter();
        let beside = chains.any(|chain| chain.family == family && is_beside(&chain.table));
        if there && beside {
            let what = format!("there are rules of {program}-legacy and of {program}-nft");
            let why = "packets pass both, and each program shows only its own: a drop in the other is not seen, \
                       and the agent cannot outweigh one of the older";
            let mend = format!(
                "{program}-legacy-save shows them; move them with {program}-legacy-save | {program}-nft-restore --noflush, then flush the older"
            );
            found.push(Finding::warning(what, (why, mend)));
        } else if there && let Some(bridge) = &facts.bridge {
            let what =
                format!("there are rules of {program}-legacy, which are not looked into here");
            let why = "a drop of what the node forwards, such as Docker's, is there neither seen nor outweighed by the agent";
            let mend = format!(
                "{program}-legacy -S FORWARD shows it; where it drops: {program}-legacy -I FORWARD -i {bridge} -j ACCEPT && \
                 {program}-legacy -I FORWARD -o {bridge} -j ACCEPT"
            );
            found.push(Finding::warning(what, (why, mend)));
        }
    }
    found
}
