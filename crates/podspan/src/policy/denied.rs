//! What is denied: by whom, where that is counted, and where it is logged.
//!
//! Whatever policy drops, it drops in the chain of the pod that the policy is about, with a counter for each pod, direction and
//! [`Denier`]. The counters have names and so go on when the agent replaces the rules that count with them; they are made and
//! deleted by the agent alone. In front of each drop stands a rule that logs, some packets a second, to a group of nfnetlink_log to
//! which nobody listens until somebody asks (`podspan policy log`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use podspan_cni::filter::INET;
use podspan_cni::filter::policy::{EGRESS_OF, INGRESS_OF};
use podspan_kernel::hash;
use podspan_kernel::nft::{Limit, LimitUnit, ListedCounter, Nft};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::chains::own_chain;
use super::object::{Key, Text};
use super::program::{Attachment, Direction, Origin, Program};
use crate::board::Board;

/// The group of nfnetlink_log that denied packets are told to.
pub const GROUP: u16 = 112;
/// How many packets of each counter are told.
pub const TOLD: Limit = Limit {
    rate: 10,
    seconds: 1,
    burst: 20,
    unit: LimitUnit::Packets,
    over: false,
};
/// How long a counter's comment may be, in bytes.
const COMMENT: usize = 253;

/// Who denies a packet.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Denier {
    /// Nobody knows the pod yet.
    Unknown,
    /// NetworkPolicies that select the pod, sorted, none of which allows it.
    Network(Vec<Key>),
    /// A rule of a ClusterNetworkPolicy.
    Cluster(Text),
}

impl Denier {
    /// All that deny packets in that program. The last of them denies what no step met, where the program isolates.
    pub fn all_of(program: &Program) -> Vec<Self> {
        let denying = program.stages.iter().flatten();
        let denying = denying.filter(|step| step.action == super::object::Action::Deny);
        let mut all: Vec<Self> = Vec::new();
        for denier in denying.map(|step| Self::of_rule(&step.origin)) {
            if !all.contains(&denier) {
                all.push(denier);
            }
        }
        if !program.isolated_by.is_empty() {
            let isolating = Self::Network(program.isolated_by.clone());
            all.retain(|denier| *denier != isolating);
            all.push(isolating);
        }
        all
    }

    /// Whose the rule is.
    pub fn of_rule(origin: &Origin) -> Self {
        match origin {
            Origin::Rule(policy, _) => Self::Network(vec![policy.clone()]),
            Origin::ClusterRule(policy, ..) => Self::Cluster(policy.clone()),
        }
    }
}

/// A counter, and what it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Whose chain drops.
    pub attachment: Attachment,
    /// Which of its chains.
    pub direction: Direction,
    /// Who denies, in words.
    pub denier: Text,
}

impl Counted {
    /// The name of the counter: the same as long as it counts the same.
    pub fn name(&self) -> String {
        let chain = own_chain(&self.attachment, self.direction);
        format!("{chain}_{:016x}", hash(&[&self.denier]))
    }

    /// What the counter says of itself: as much of the denier's name as there is room for.
    pub fn comment(&self) -> &str {
        let mut ends = (0..=COMMENT.min(self.denier.len())).rev();
        let end = ends.find(|end| self.denier.is_char_boundary(*end));
        self.denier.get(..end.unwrap_or_default()).unwrap_or("")
    }
}

/// The attachment and the direction whose denied packets the counter of that name counts; none of a counter that does not.
pub fn counted_by(name: &str) -> Option<(&str, Direction)> {
    let (chain, _) = name.rsplit_once('_')?;
    let of = |prefix, direction| Some((chain.strip_prefix(prefix)?, direction));
    of(INGRESS_OF, Direction::Ingress).or_else(|| of(EGRESS_OF, Direction::Egress))
}

/// What one counter is told as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series {
    /// The pod.
    pub pod: Key,
    /// What the pod was sent, or has sent.
    pub direction: Direction,
    /// Who denies, in words.
    pub denier: Text,
}

/// The series of each counter that is told.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Arc<BTreeMap<String, Series>>>);

impl Ledger {
    /// Puts these in the place of the last ones.
    pub fn put(&self, series: BTreeMap<String, Series>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(series);
    }

    fn read(&self) -> Arc<BTreeMap<String, Series>> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads the counters whenever somebody asks.
pub struct Denied {
    board: Arc<Board>,
    /// Opened when it is needed first, and kept.
    nft: Mutex<Option<Nft>>,
    /// Why they could not be read the last time, as it hangs on the board.
    problem: Mutex<Option<String>>,
}

impl fmt::Debug for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Denied").finish_non_exhaustive()
    }
}

impl Denied {
    /// For the network namespace of the thread that asks, and what the board says of counters.
    pub fn new(board: &Arc<Board>) -> Self {
        Self {
            board: Arc::clone(board),
            nft: Mutex::new(None),
            problem: Mutex::new(None),
        }
    }

    fn counters(&self) -> podspan_kernel::Result<Vec<ListedCounter>> {
        let mut kept = self.nft.lock().unwrap_or_else(PoisonError::into_inner);
        let nft = match &mut *kept {
            Some(nft) => nft,
            none => none.insert(Nft::open()?),
        };
        nft.list_counters(INET)
    }

    /// What they say now; nothing where they cannot be read, which is told as a problem.
    fn read(&self) -> Vec<ListedCounter> {
        let read = self.counters();
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let now = read.as_ref().err().map(|error| format!("policy: {error}"));
        if *known != now {
            let before = std::mem::replace(&mut *known, now.clone());
            for (problem, is_there) in [(before, false), (now, true)] {
                if let Some(problem) = problem {
                    self.board.set_problem(&problem, is_there);
                }
            }
        }
        read.unwrap_or_default()
    }
}

impl Collector for Denied {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let series = self.board.metrics.policy.denied.read();
        if series.is_empty() {
            return Ok(());
        }
        let help = "Packets that policy denied, by the pod that it is about.";
        let mut metric =
            encoder.encode_descriptor("policy_denied_packets", help, None, MetricType::Counter)?;
        for counter in self.read() {
            let Some(series) = series.get(&counter.name) else {
                continue;
            };
            let labels = [
                ("namespace", &*series.pod.namespace),
                ("pod", &*series.pod.name),
                ("direction", &*series.direction.to_string()),
                ("policy", &*series.denier),
            ];
            let mut metric = metric.encode_family(&labels)?;
            metric.encode_counter::<NoLabelSet, _, u64>(&counter.packets, None)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_s_name_says_whose_chain_it_is_and_differs_with_the_denier() {
        let counted = |denier: &str| Counted {
            attachment: "pod0123_456789a".into(),
            direction: Direction::Ingress,
            denier: denier.into(),
        };
        let [one, other] = ["NetworkPolicy a/b", "NetworkPolicy a/c"].map(counted);
        assert_ne!(one.name(), other.name());
        assert_eq!(
            counted_by(&one.name()),
            Some(("pod0123_456789a", Direction::Ingress))
        );
        assert_eq!(counted_by("others_counter"), None);
        let long = counted(&"é".repeat(200));
        assert_eq!(long.comment().len(), 252);
    }
}
