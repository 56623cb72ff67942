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

/// The bounds of the durations of looks, in seconds: a node of a small cluster takes one millisecond.
const LOOKS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5];

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
        }
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
    }
}

/// All that is measured, as a registry to be asked.
pub fn registry(board: &Arc<Board>) -> Registry {
    let mut registry = Registry::with_prefix("podspan");
    board.metrics.register(&mut registry);
    registry.register_collector(Box::new(Pinned(Arc::clone(board))));
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
            [(Vec::new(), f64::from(u8::from(report.unready.is_empty())))],
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
