//! The board between the agent's loop and the threads beside it: each pins up what the others read, and none ever waits
//! for another.
//!
//! The loop pins up a report after each look, and when the last look began; the thread for policy, whether that is in force; a
//! scrape reads what hangs there. Nothing here does I/O.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use podspan_kernel::Prefix;
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::probe::{Failure, Peer, Targets};

/// What both sides see.
#[derive(Debug)]
pub struct Board {
    start: Instant,
    /// When the last look began, in milliseconds since the start.
    look_began: AtomicU64,
    report: watch::Sender<Arc<Report>>,
    /// Why policy is not in force.
    policy: watch::Sender<Option<String>>,
    /// What went wrong on the other thread, told by the loop.
    problems: watch::Sender<BTreeSet<String>>,
    /// The ways that the other thread tests, and what it found out.
    targets: watch::Sender<Arc<Targets>>,
    probed: watch::Sender<Probed>,
    /// What is counted.
    pub metrics: Metrics,
}

/// What the tests of other nodes found out.
#[derive(Debug, Clone, Default)]
pub struct Probed {
    /// The ways that fail, the first hundred of them.
    pub failing: Vec<(Arc<Peer>, Failure)>,
    /// The same as lines to log.
    pub problems: BTreeSet<String>,
}

/// What the loop says after a look.
#[derive(Debug, Default, PartialEq)]
pub struct Report {
    /// Why pods cannot be started here, or may not work; nothing when they can.
    pub unready: Vec<String>,
    /// How full the pod CIDRs of this node are.
    pub pod_cidrs: Vec<Usage>,
}

/// How full a pod CIDR is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Which.
    pub pod_cidr: Prefix,
    /// How many addresses pods have.
    pub used: u32,
    /// How many addresses there are for pods; of an IPv6 subnet more than a whole number holds.
    pub total: f64,
}

/// From here on, how full a pod CIDR is is a problem, in parts of one.
const NEARLY_FULL: f64 = 0.9;

impl Board {
    /// An empty board.
    pub fn new() -> Self {
        let report = Report {
            unready: vec!["the first look has not ended yet".to_owned()],
            ..Report::default()
        };
        Self {
            start: Instant::now(),
            look_began: AtomicU64::new(0),
            report: watch::Sender::new(Arc::new(report)),
            policy: watch::Sender::new(None),
            problems: watch::Sender::new(BTreeSet::new()),
            targets: watch::Sender::new(Arc::default()),
            probed: watch::Sender::new(Probed::default()),
            metrics: Metrics::default(),
        }
    }

    /// Says that a look begins.
    pub fn look_begins(&self) {
        let millis = self.start.elapsed().as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.look_began.store(millis, Ordering::Relaxed);
    }

    /// How long ago the last look began.
    pub fn since_look_began(&self) -> Duration {
        let began = Duration::from_millis(self.look_began.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(began)
    }

    /// Puts a report in the place of the last one.
    pub fn pin(&self, report: Report) {
        self.report.send_replace(Arc::new(report));
    }

    /// The last report.
    pub fn report(&self) -> Arc<Report> {
        Arc::clone(&self.report.borrow())
    }

    /// Says that policy is not in force and why, or that nothing is to be said of it.
    pub fn set_policy(&self, why_not: Option<String>) {
        self.policy.send_if_modified(|last| {
            let is_new = *last != why_not;
            if is_new {
                *last = why_not;
            }
            is_new
        });
    }

    /// Why pods cannot be started here, or may not work, by the last report and by what is said of policy; nothing when they can.
    pub fn unready(&self) -> Vec<String> {
        let mut reasons = self.report().unready.clone();
        let of_policy = self.policy.borrow();
        reasons.extend(
            of_policy
                .iter()
                .map(|why| format!("policy is not in force: {why}")),
        );
        reasons
    }

    /// Sets or takes back a problem of the thread beside the loop; true when that is new.
    pub fn set_problem(&self, problem: &str, is_there: bool) -> bool {
        self.problems.send_if_modified(|problems| {
            if is_there {
                problems.insert(problem.to_owned())
            } else {
                problems.remove(problem)
            }
        })
    }

    /// The problems that the thread beside the loop has, and those that it found out.
    pub fn problems(&self) -> BTreeSet<String> {
        let mut problems = self.problems.borrow().clone();
        problems.extend(self.probed.borrow().problems.iter().cloned());
        problems
    }

    /// Says which ways to other nodes there are to test.
    pub fn set_targets(&self, targets: Targets) {
        self.targets.send_if_modified(|last| {
            let is_new = **last != targets;
            if is_new {
                *last = Arc::new(targets);
            }
            is_new
        });
    }

    /// The ways to test, as the loop said last.
    pub fn last_targets(&self) -> Arc<Targets> {
        Arc::clone(&self.targets.borrow())
    }

    /// The ways to test, now and whenever they change.
    pub fn targets(&self) -> watch::Receiver<Arc<Targets>> {
        let mut targets = self.targets.subscribe();
        targets.mark_changed();
        targets
    }

    /// Says what the tests found out.
    pub fn set_probed(&self, probed: Probed) {
        self.probed.send_replace(probed);
    }

    /// The ways that fail, the first hundred of them.
    pub fn failing(&self) -> Vec<(Arc<Peer>, Failure)> {
        self.probed.borrow().failing.clone()
    }
}

impl Usage {
    /// How full the subnets of these gateways are, by the addresses that pods have.
    pub fn of<'a>(
        gateways: impl IntoIterator<Item = &'a IpNet>,
        allocations: &[std::net::IpAddr],
    ) -> Vec<Self> {
        let of_one = |gateway: &IpNet| {
            let pod_cidr = Prefix::containing(*gateway);
            let used = allocations.iter().filter(|ip| pod_cidr.holds(**ip)).count();
            let host_bits = gateway
                .max_prefix_len()
                .saturating_sub(gateway.prefix_len());
            // The network and the gateway are nobody's, and in IPv4 the broadcast address.
            let reserved = if pod_cidr.is_ipv4() { 3.0 } else { 2.0 };
            Self {
                pod_cidr,
                used: u32::try_from(used).unwrap_or(u32::MAX),
                total: f64::from(host_bits).exp2() - reserved,
            }
        };
        gateways.into_iter().map(of_one).collect()
    }

    /// Says what is to be done when it is nearly full.
    pub fn problem(&self) -> Option<String> {
        let Self {
            pod_cidr,
            used,
            total,
        } = self;
        (f64::from(*used) >= NEARLY_FULL * total).then(|| {
            let free = total - f64::from(*used);
            // No exact number: each pod that comes or goes would be another problem.
            let how = if free < 1.0 { "is full" } else { "is nearly full" };
            format!(
                "pod CIDR {pod_cidr} {how} ({total} addresses); see podspan list, and give the node a further one"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(gateway: &str, used: u32) -> Usage {
        let addresses: Vec<_> = (0..used)
            .map(|n| std::net::Ipv4Addr::from_bits(0x0af4_0102 + n).into())
            .collect();
        Usage::of(&[gateway.parse().unwrap()], &addresses)[0]
    }

    #[test]
    fn a_subnet_that_fills_is_told_before_it_is_full() {
        assert_eq!(usage("10.244.1.1/24", 0).total, 253.0);
        assert_eq!(usage("10.244.1.1/24", 227).problem(), None);
        let told = |used| usage("10.244.1.1/24", used).problem().unwrap();
        assert!(told(228).contains("10.244.1.0/24 is nearly full (253 addresses)"));
        assert_eq!(told(228), told(252));
        assert!(told(253).contains("is full"));
        let v6 = usage("fd00:10:244:1::1/64", 5);
        assert_eq!((v6.used, v6.problem()), (0, None));
        assert!(v6.total > 1e19);
    }

    #[test]
    fn a_problem_is_new_once() {
        let board = Board::new();
        assert!(board.set_problem("x", true));
        assert!(!board.set_problem("x", true));
        assert_eq!(board.problems().len(), 1);
        assert!(board.set_problem("x", false));
        assert!(!board.set_problem("x", false));
    }
}
