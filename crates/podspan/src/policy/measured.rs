//! What is counted of policy, in the words of Prometheus.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::denied::Ledger;

/// What is counted.
#[derive(Debug, Default)]
pub struct Measured {
    /// What was told, of objects and of the begins and ends of lists, as far as it is in force.
    pub told: Counter,
    /// Transactions that changed what the kernel enforces.
    pub changes: Counter,
    /// Those that failed; each is followed by one that lays everything anew.
    pub failures: Counter,
    /// Connections that were ended because a new denial forbids them.
    pub ended: Counter,
    /// What the kernel counts of denied packets, and of whom.
    pub denied: Ledger,
    /// This node's pods, by whether the API knows them.
    pods: Family<State, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

impl Measured {
    /// Says how many pods of this node are known, and how many are not yet.
    pub fn set_pods(&self, known: usize, unknown: usize) {
        for (state, number) in [("known", known), ("unknown", unknown)] {
            let gauge = self.pods.get_or_create_owned(&State { state });
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }

    /// Names all of it.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "told_in_force",
            "Objects, and begins and ends of lists, that were told by the API or the policy file and are in force",
            self.told.clone(),
        );
        registry.register(
            "changes",
            "Changes of what the kernel enforces",
            self.changes.clone(),
        );
        registry.register(
            "failures",
            "Changes of it that failed; everything is laid anew then",
            self.failures.clone(),
        );
        registry.register(
            "ended_connections",
            "Connections that were ended because a new denial forbids them",
            self.ended.clone(),
        );
        registry.register(
            "pods",
            "Pods of this node, by whether the API knows them yet",
            self.pods.clone(),
        );
    }
}
