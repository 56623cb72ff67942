//! Whether somebody's filter drops what this machine forwards to pods and from them.
//!
//! A packet must pass the chains of all tables at a hook: an accept in one of them does not undo a drop in another.

use podspan_kernel::nft::{Family, Policy, Verdict};

use super::super::Finding;
use super::super::facts::{Facts, Forward};

/// What begins the chains that let pods through in the tables of `iptables`.
const OUR_CHAINS: [&str; 2] = ["PODSPAN-AGENT", "PODSPAN-FORWARD"];

/// Somebody's filter drops what the node forwards (B4).
pub(super) fn forward_drops(facts: &Facts) -> Vec<Finding> {
    let drops = facts.forward.iter().filter(|forward| forward.drops(facts));
    let found = drops.map(|forward| {
        let chain = &forward.chain;
        let what = format!(
            "chain {} {} {} drops what this machine forwards to pods and from them",
            chain.family, chain.table, chain.name
        );
        let why = "a packet must pass the chains of all tables: an accept elsewhere does not undo the drop";
        Finding::wrong(what, (why, forward.mend(facts)))
    });
    found.collect()
}

impl Forward {
    fn drops(&self, facts: &Facts) -> bool {
        let Some(base) = self.chain.base else {
            return false;
        };
        let lets_pods_pass = self.rules.iter().position(|rule| {
            let names_bridge = facts.bridge.iter().any(|bridge| rule.links.contains(bridge));
            let is_ours = matches!(&rule.verdict, Some(Verdict::Jump(to)) if OUR_CHAINS.contains(&to.as_str()));
            names_bridge && !rule.refuses || is_ours
        });
        let refuses = self
            .rules
            .iter()
            .position(|rule| rule.refuses && rule.is_for_all);
        // That the agent outweighs this policy is told with what else it does.
        let is_the_agent_s = self.is_of_iptables() && facts.bridge.is_some();
        let is_dropped = match (refuses, base.policy) {
            (Some(refuses), _) => lets_pods_pass.is_none_or(|passes| passes > refuses),
            (None, Policy::Drop) => lets_pods_pass.is_none() && !is_the_agent_s,
            (None, Policy::Accept) => false,
        };
        is_dropped && !self.names_bridge
    }

    fn is_of_iptables(&self) -> bool {
        let is_ip = matches!(self.chain.family, Family::Ip | Family::Ip6);
        is_ip && self.chain.table == "filter" && self.chain.name == "FORWARD"
    }

    fn mend(&self, facts: &Facts) -> String {
        let chain = &self.chain;
        let program = match chain.family {
            Family::Ip6 => "ip6tables",
            _ => "iptables",
        };
        let Some(bridge) = &facts.bridge else {
            return if self.is_of_iptables() {
                format!("{program} -P FORWARD ACCEPT, or rules that accept the pods' ranges")
            } else {
                "rules in it that accept the pods' ranges".to_owned()
            };
        };
        if chain.table == "firewalld" {
            format!(
                "firewall-cmd --permanent --zone=trusted --add-interface={bridge} && firewall-cmd --reload"
            )
        } else if self.is_of_iptables() {
            format!(
                "{program} -I FORWARD -i {bridge} -j ACCEPT && {program} -I FORWARD -o {bridge} -j ACCEPT"
            )
        } else {
            let place = format!("{} {} {}", chain.family, chain.table, chain.name);
            format!(
                "nft insert rule {place} iifname {bridge} accept && nft insert rule {place} oifname {bridge} accept"
            )
        }
    }
}
