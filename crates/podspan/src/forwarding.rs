//! What lets pods through where the node's own filter drops what it forwards: `FORWARD` with the policy drop, as Docker sets it.
//!
//! A verdict of ours in a table of ours cannot undo that drop. So a chain of ours stands in `ip filter` and `ip6 filter` while
//! their `FORWARD` has that policy, and a jump to it behind all other rules: what anybody wrote decides first, a Service
//! proxy's source ranges and an administrator's `DOCKER-USER` included; ours only outweighs the policy. It is not the chain of
//! the plugin in the place of `firewall`, which stands before all others and is an operator's wish for single networks.
//! Surprise: `iptables-nft` refuses to list a table with one rule that it could not have written, so the rules are in its words.

use std::fmt;

use podspan_cni::forwarding::TABLES;
use podspan_kernel::nft::{
    Batch, Chain, Family, Field, ListedRule, News, Nft, Policy, Rule, Verdict,
};
use podspan_kernel::{IfName, Result};

/// The name of our chain.
pub const NAME: &str = "PODSPAN-AGENT";
/// The chain whose policy drops.
const FORWARD: &str = "FORWARD";
/// What begins the comments of our rules.
const COMMENT: &str = "podspan agent";

/// What should be let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forwarding {
    /// The link that leads to the pods.
    pub link: IfName,
    /// In IPv4, in IPv6.
    pub families: [bool; 2],
}

/// What is there in `ip filter` and in `ip6 filter`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    tables: [SeenTable; 2],
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct SeenTable {
    /// What no rule of `FORWARD` decides on is dropped.
    drops: bool,
    /// The comments of the rules of our chain; none when it is not there.
    rules: Option<Vec<String>>,
    /// The handles of the jumps to it.
    jumps: Vec<u64>,
}

/// A difference, which the kernel makes as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// In that one of the [`TABLES`]: the chain with its rules, and with a jump where there is none.
    Allow {
        family: usize,
        link: IfName,
        is_new: bool,
        jump: bool,
    },
    /// The chain goes, and these jumps to it.
    Forget { family: usize, jumps: Vec<u64> },
}

/// True for what may have changed something of it.
pub fn matters(news: &News<'_>) -> bool {
    let is_ours = news
        .object
        .is_none_or(|name| [NAME, FORWARD].contains(&name));
    is_ours && news.table == "filter" && matches!(news.family, Family::Ip | Family::Ip6)
}

/// Looks at both tables.
///
/// # Errors
/// What the kernel answered.
pub fn observe(nft: &mut Nft) -> Result<Seen> {
    let mut seen = Seen::default();
    for (table, seen) in TABLES.into_iter().zip(&mut seen.tables) {
        let [forward, ours] = [FORWARD, NAME].map(|name| Chain::plain(table, name));
        let base = nft.find_chain(forward)?.and_then(|chain| chain.base);
        seen.drops = base.is_some_and(|base| base.policy == Policy::Drop);
        if nft.has_chain(ours)? {
            let rules = nft.list_rules(ours)?.into_iter();
            seen.rules = Some(rules.map(|rule| rule.comment.unwrap_or_default()).collect());
            let leads_to = |rule: &ListedRule| rule.verdict == Some(Verdict::jump(&ours));
            let jumps = nft.list_rules(forward)?;
            let jumps = jumps.into_iter().filter(leads_to);
            seen.jumps = jumps.map(|rule| rule.handle).collect();
        }
    }
    Ok(seen)
}

/// What makes it as desired where it is needed, and takes it away where it is not; none when nothing is to be done.
pub fn plan(desired: Option<&Forwarding>, seen: &Seen) -> Option<Transaction> {
    let mut steps = Vec::new();
    for (family, seen) in seen.tables.iter().enumerate() {
        let is_wanted = |wanted: &&Forwarding| wanted.families.get(family) == Some(&true);
        match desired.filter(is_wanted).filter(|_| seen.drops) {
            Some(wanted) => {
                let stands = seen.rules.as_deref() == Some(&comments(&wanted.link));
                if !stands || seen.jumps.is_empty() {
                    steps.push(Step::Allow {
                        family,
                        link: wanted.link.clone(),
                        is_new: seen.rules.is_none(),
                        jump: seen.jumps.is_empty(),
                    });
                }
            }
            None if seen.rules.is_some() => steps.push(Step::Forget {
                family,
                jumps: seen.jumps.clone(),
            }),
            None => {}
        }
    }
    (!steps.is_empty()).then_some(Transaction(steps))
}

fn comments(link: &IfName) -> [String; 2] {
    ["from", "to"].map(|way| format!("{COMMENT}: {way} {link}"))
}

impl Transaction {
    /// As the kernel takes it.
    pub fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        for step in &self.0 {
            let (Step::Allow { family, .. } | Step::Forget { family, .. }) = step;
            let Some(table) = TABLES.get(*family) else {
                continue;
            };
            let [forward, ours] = [FORWARD, NAME].map(|name| Chain::plain(*table, name));
            match step {
                Step::Allow { link, jump, .. } => {
                    batch.add_chain(ours);
                    batch.flush_chain(ours);
                    let fields = [Field::IIFNAME, Field::OIFNAME];
                    for (field, comment) in fields.into_iter().zip(comments(link)) {
                        let rule = Rule::of(ours).is(field, link).counter();
                        batch.add_rule(&rule.verdict(&Verdict::Accept).comment(comment));
                    }
                    if *jump {
                        let rule = Rule::of(forward).counter().verdict(&Verdict::jump(&ours));
                        batch.add_rule(&rule.comment(COMMENT));
                    }
                }
                Step::Forget { jumps, .. } => {
                    for handle in jumps {
                        batch.delete_rule(forward, *handle);
                    }
                    batch.delete_chain(ours);
                }
            }
        }
        batch
    }
}

impl fmt::Display for Transaction {
    /// As one would type it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let commands: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&commands.join(" && "))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Allow { family, .. } | Self::Forget { family, .. }) = self;
        let program = if *family == 0 {
            "iptables"
        } else {
            "ip6tables"
        };
        match self {
            Self::Allow {
                link, is_new, jump, ..
            } => {
                let first = if *is_new { "-N" } else { "-F" };
                write!(f, "{program} {first} {NAME}")?;
                for (option, comment) in ["-i", "-o"].iter().zip(comments(link)) {
                    let comment = format!("-m comment --comment \"{comment}\"");
                    write!(
                        f,
                        " && {program} -A {NAME} {option} {link} {comment} -j ACCEPT"
                    )?;
                }
                if *jump {
                    let comment = format!("-m comment --comment \"{COMMENT}\"");
                    write!(f, " && {program} -A {FORWARD} {comment} -j {NAME}")?;
                }
                Ok(())
            }
            Self::Forget { jumps, .. } => {
                for _ in jumps {
                    let comment = format!("-m comment --comment \"{COMMENT}\"");
                    write!(f, "{program} -D {FORWARD} {comment} -j {NAME} && ")?;
                }
                write!(f, "{program} -F {NAME} && {program} -X {NAME}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use podspan_kernel::testing::TestNs;

    use super::*;

    fn wanted() -> Forwarding {
        Forwarding {
            link: "podspan0".parse().unwrap(),
            families: [true, true],
        }
    }

    fn sh(script: &str) -> String {
        let output = std::process::Command::new("sh")
            .args([
                "-ec",
                &script
                    .replace("iptables ", "iptables-nft ")
                    .replace("ip6tables ", "ip6tables-nft "),
            ])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn both() -> String {
        sh("iptables -S && ip6tables -S")
    }

    /// Plans and applies: as it is done, or as it is printed.
    fn settle(desired: Option<&Forwarding>, typed: bool) -> bool {
        let mut nft = Nft::open().unwrap();
        let seen = observe(&mut nft).unwrap();
        let Some(transaction) = plan(desired, &seen) else {
            return false;
        };
        if typed {
            sh(&transaction.to_string());
        } else {
            nft.commit(transaction.batch()).unwrap();
        }
        let seen = observe(&mut nft).unwrap();
        assert_eq!(plan(desired, &seen), None, "{seen:?}");
        true
    }

    #[test]
    fn what_is_printed_does_what_is_done_and_only_where_the_policy_drops() {
        let wanted = wanted();
        let mut listings = Vec::new();
        for typed in [false, true] {
            let _ns = TestNs::new();
            assert!(!settle(Some(&wanted), typed), "no table at all");
            sh(
                "iptables -N DOCKER-USER && iptables -A FORWARD -j DOCKER-USER && ip6tables -P FORWARD ACCEPT",
            );
            let begin = both();
            assert!(!settle(Some(&wanted), typed), "nothing is dropped");
            sh("iptables -P FORWARD DROP");
            assert!(settle(Some(&wanted), typed));
            listings.push(both());
            for harm in [
                "iptables -F FORWARD",
                "iptables -F PODSPAN-AGENT",
                "iptables -D FORWARD -m comment --comment 'podspan agent' -j PODSPAN-AGENT; iptables -F PODSPAN-AGENT; iptables -X PODSPAN-AGENT",
                "iptables -I PODSPAN-AGENT -j DROP",
            ] {
                sh(harm);
                assert!(settle(Some(&wanted), typed), "{harm}: nobody noticed");
            }
            sh(
                "iptables -F DOCKER-USER && iptables -D FORWARD 1; iptables -A FORWARD -j DOCKER-USER",
            );
            sh("ip6tables -P FORWARD DROP");
            assert!(settle(Some(&wanted), typed));
            assert!(sh("ip6tables -S").contains("-A PODSPAN-AGENT -o podspan0 "));
            let four = Forwarding {
                families: [true, false],
                ..wanted.clone()
            };
            assert!(settle(Some(&four), typed));
            sh("iptables -P FORWARD ACCEPT && ip6tables -P FORWARD ACCEPT");
            assert!(settle(Some(&wanted), typed));
            let end = both();
            assert!(!end.contains("PODSPAN"), "{begin}{end}");
            sh("iptables -P FORWARD DROP");
            assert!(settle(Some(&wanted), typed) && settle(None, typed));
        }
        assert_eq!(listings[0], listings[1]);
        let expected = "-A FORWARD -j DOCKER-USER\n\
             -A FORWARD -m comment --comment \"podspan agent\" -j PODSPAN-AGENT\n\
             -A PODSPAN-AGENT -i podspan0 -m comment --comment \"podspan agent: from podspan0\" -j ACCEPT\n\
             -A PODSPAN-AGENT -o podspan0 -m comment --comment \"podspan agent: to podspan0\" -j ACCEPT\n";
        assert!(listings[0].contains(expected), "{}", listings[0]);
    }
}
