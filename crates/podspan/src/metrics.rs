//! What is counted and measured, in the words of Prometheus.
//!
//! The loop counts; whoever asks reads. Series are few on a cluster of any size: nothing has a node for a label but the
//! peers that fail, and of those only the first hundred.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::board::Board;
use crate::policy::denied::Denied;
use crate::policy::measured::Measured;

/// The bounds of the durations of looks, in seconds: a node of a small cluster takes one millisecond.
const LOOKS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5];

/// The bounds of the times of handshakes, in seconds: within a rack, a site, a continent.
const ROUND_TRIPS: [f64; 8] = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0];

/// What is counted.
#[derive(Debug)]
pub struct Metrics {
    /// Looks that have ended.
    pub looks: Counter,
    /// How long they took, with the changes.
    pub look_duration: Histogram,
    /// Looks that failed as a whole.
    pub look_failures: Counter,
    /// Changes made.
    pub changes: Family<Kind, Counter>,
    /// Changes that failed.
    pub change_failures: Family<Kind, Counter>,
    /// Problems of the last look.
    pub problems: Gauge,
    /// Refused values among them.
    pub refusals: Gauge,
    /// Nodes of the registry that are usable.
    pub nodes: Gauge,
    /// Routes that this machine should have.
    pub routes: Gauge,
    /// When a look succeeded last.
    pub last_look: Gauge<f64, AtomicU64>,
    /// What the tests of other nodes find out.
    pub probe: Probe,
    /// What policy did.
    pub policy: Measured,
}

/// What the tests of other nodes find out.
#[derive(Debug)]
pub struct Probe {
    /// Tests that ended, by what they found.
    pub tests: Family<OutcomeLabel, Counter>,
    /// How long handshakes took.
    pub round_trip: Histogram,
    /// How many ways there are to test.
    peers: Gauge,
    /// How many of them are found to be so.
    verdicts: Family<OutcomeLabel, Gauge>,
}

/// What a test found.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// Such as `passes` or `silent`.
    pub outcome: &'static str,
}

/// Of which kind a change is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    /// Such as `add_route`.
    pub kind: &'static str,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            looks: Counter::default(),
            look_duration: Histogram::new(LOOKS),
            look_failures: Counter::default(),
            changes: Family::default(),
            change_failures: Family::default(),
            problems: Gauge::default(),
            refusals: Gauge::default(),
            nodes: Gauge::default(),
            routes: Gauge::default(),
            last_look: Gauge::default(),
            probe: Probe {
                tests: Family::default(),
                round_trip: Histogram::new(ROUND_TRIPS),
                peers: Gauge::default(),
                verdicts: Family::default(),
            },
            policy: Measured::default(),
        }
    }
}

impl Probe {
    /// Says how many ways there are to test.
    pub fn peers(&self, number: usize) {
        self.peers.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// Counts a way under another verdict; none is that of one that is new, or gone.
    pub fn turn(&self, before: Option<&'static str>, after: Option<&'static str>) {
        let of = |outcome| self.verdicts.get_or_create_owned(&OutcomeLabel { outcome });
        if let Some(gauge) = before.map(of) {
            gauge.dec();
        }
        if let Some(gauge) = after.map(of) {
            gauge.inc();
        }
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "peers",
            "Ways to the pods of other nodes that are tested",
            self.peers.clone(),
        );
        registry.register(
            "verdicts",
            "Ways to the pods of other nodes by what the last tests found; what failed once does not count",
            self.verdicts.clone(),
        );
        registry.register(
            "tests",
            "Tests of ways to the pods of other nodes, by what they found",
            self.tests.clone(),
        );
        registry.register_with_unit(
            "round_trip",
            "How long the handshakes of tests took",
            Unit::Seconds,
            self.round_trip.clone(),
        );
    }
}

impl Metrics {
    /// Notes that a look succeeded just now.
    pub fn look_succeeded(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.last_look.set(now.unwrap_or_default().as_secs_f64());
    }

    fn register(&self, registry: &mut Registry) {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "This program", Info::new(version));
        registry.register(
            "looks",
            "Looks at this machine that ended",
            self.looks.clone(),
        );
        registry.register_with_unit(
            "look_duration",
            "How long a look took, with the changes that it made",
            Unit::Seconds,
            self.look_duration.clone(),
        );
        registry.register(
            "look_failures",
            "Looks that failed as a whole",
            self.look_failures.clone(),
        );
        registry.register(
            "changes",
            "Changes made to this machine",
            self.changes.clone(),
        );
        registry.register(
            "change_failures",
            "Changes that failed; each is tried again at the next look",
            self.change_failures.clone(),
        );
        registry.register(
            "problems",
            "What is wrong now; podspan status names it",
            self.problems.clone(),
        );
        registry.register(
            "refusals",
            "Values that are not followed, among the problems",
            self.refusals.clone(),
        );
        registry.register("nodes", "Nodes known", self.nodes.clone());
        registry.register(
            "routes",
            "Routes that this machine should have",
            self.routes.clone(),
        );
        registry.register_with_unit(
            "last_look_timestamp",
            "When a look succeeded last; 0 is never",
            Unit::Seconds,
            self.last_look.clone(),
        );
        self.probe
            .register(registry.sub_registry_with_prefix("probe"));
        self.policy
            .register(registry.sub_registry_with_prefix("policy"));
    }
}

/// All that is measured, as a registry to be asked.
pub fn registry(board: &Arc<Board>) -> Registry {
    let mut registry = Registry::with_prefix("podspan");
    board.metrics.register(&mut registry);
    registry.register_collector(Box::new(Pinned(Arc::clone(board))));
    registry.register_collector(Box::new(Denied::new(board)));
    registry
}

/// What is read from the board when somebody asks.
#[derive(Debug)]
struct Pinned(Arc<Board>);

impl Collector for Pinned {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let report = self.0.report();
        gauges(
            &mut encoder,
            "ready",
            "1 when pods can be started on this machine.",
            [(Vec::new(), f64::from(u8::from(self.0.unready().is_empty())))],
        )?;
        let of_cidr = |usage: &crate::board::Usage| vec![("pod_cidr", usage.pod_cidr.to_string())];
        gauges(
            &mut encoder,
            "pod_cidr_allocations",
            "Addresses that pods have.",
            report
                .pod_cidrs
                .iter()
                .map(|usage| (of_cidr(usage), usage.used.into())),
        )?;
        gauges(
            &mut encoder,
            "pod_cidr_addresses",
            "Addresses that there are for pods.",
            report
                .pod_cidrs
                .iter()
                .map(|usage| (of_cidr(usage), usage.total)),
        )?;
        let failing = self.0.failing();
        let series = failing.iter().map(|(peer, failure)| {
            let labels = vec![
                ("node", peer.node.to_string()),
                ("gateway", peer.gateway.to_string()),
                ("outcome", failure.word().to_owned()),
            ];
            (labels, 1.0)
        });
        gauges(
            &mut encoder,
            "probe_failing_peer",
            "A way to the pods of another node that fails; the first hundred.",
            series,
        )
    }
}

/// A gauge with a value for each set of labels; its name without the prefix, which a collector writes itself.
fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Vec<(&'static str, String)>, f64)>,
) -> Result<(), std::fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        if labels.is_empty() {
            metric.encode_gauge(&value)?;
        } else {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
    }
    Ok(())
}
