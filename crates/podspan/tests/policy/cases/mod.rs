//! Cases of NetworkPolicy and ClusterNetworkPolicy as data: what is in the API, what changes, who is asked, and what
//! is said of the answer. They know no kernel and no API server, and nothing of the crate but its input ([`object`]), which
//! whoever includes this module has beside it.
//!
//! Three suites: the one that cyclonus generates ([`cyclonus`]), Kubernetes's own ([`netpol`]), and the conformance
//! suite of ClusterNetworkPolicy ([`cnp`]). The last two say what must come out; of the first, and of everything that they do not
//! say, the [`oracle`] does.
//!
//! What would surprise: a case is made for a [`Layout`], because blocks of addresses are made of those of pods.

mod build;
pub mod cluster;
pub mod cnp;
pub mod cyclonus;
pub mod netpol;
pub mod oracle;
pub mod to_json;

use std::collections::BTreeSet;
use std::fmt;

pub use cluster::{Cluster, Layout};
use object::{Change, Key, Protocol};

use super::object;

/// A protocol and a port.
pub type Socket = (Protocol, u16);

/// A case.
#[derive(Debug, Clone)]
pub struct Case {
    /// The suite's name for it, or one that tells what is generated; no two are the same.
    pub name: String,
    /// The suite, and in cyclonus the group.
    pub group: &'static str,
    /// What it touches, in cyclonus.
    pub tags: BTreeSet<&'static str>,
    /// What is there before the first step.
    pub cluster: Cluster,
    /// One after the other.
    pub steps: Vec<Step>,
}

impl Case {
    /// Visits every step with the cluster as it is after the step's changes.
    pub fn walk(&self, mut visit: impl FnMut(&Cluster, &Step)) {
        let mut cluster = self.cluster.clone();
        for step in &self.steps {
            for change in &step.changes {
                cluster.apply(change);
            }
            visit(&cluster, step);
        }
    }
}

/// Changes that are made together, and the questions behind them.
#[derive(Debug, Clone)]
pub struct Step {
    /// What is new in the API; never [`Change::Begin`] and [`Change::End`]. A pod that is new has the place that the layout gives it.
    pub changes: Vec<Change>,
    /// Who asks whom.
    pub probe: Probe,
    /// What comes out; a later line outweighs those before it, and of what no line is about nothing is said.
    pub said: Vec<Line>,
}

/// Who asks whom.
#[derive(Debug, Clone)]
pub enum Probe {
    /// Every pod asks every pod on all that it serves.
    All,
    /// Every pod asks every pod on these ports.
    Ports(Vec<Socket>),
    /// These.
    Asks(Vec<Ask>),
}

/// A question: does the one reach the other there?
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    /// Who asks.
    pub from: Key,
    /// Who is asked.
    pub to: Key,
    /// Where.
    pub socket: Socket,
}

impl fmt::Display for Ask {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (protocol, port) = self.socket;
        let Self { from, to, .. } = self;
        let (of_from, of_to) = (&from.namespace, &to.namespace);
        write!(
            out,
            "{of_from}/{} to {of_to}/{}, {protocol:?} {port}",
            from.name, to.name
        )
    }
}

/// What is said of some questions at once.
#[derive(Debug, Clone)]
pub struct Line {
    /// Who asks: `*`, a namespace, or `namespace/pod`.
    pub from: &'static str,
    /// Who is asked, likewise.
    pub to: &'static str,
    /// Where; none for everywhere.
    pub socket: Option<Socket>,
    /// Whether the answer comes.
    pub reaches: bool,
}

impl Line {
    /// True when it is about that question.
    pub fn is_about(&self, ask: &Ask) -> bool {
        let means = |who: &str, key: &Key| match who.split_once('/') {
            Some((namespace, name)) => *key.namespace == *namespace && *key.name == *name,
            None => who == "*" || *key.namespace == *who,
        };
        let here = self.socket.is_none_or(|socket| socket == ask.socket);
        here && means(self.from, &ask.from) && means(self.to, &ask.to)
    }
}

/// The one reaches the other.
pub fn yes(from: &'static str, to: &'static str) -> Line {
    let (socket, reaches) = (None, true);
    Line {
        from,
        to,
        socket,
        reaches,
    }
}

/// The one does not reach the other.
pub fn no(from: &'static str, to: &'static str) -> Line {
    Line {
        reaches: false,
        ..yes(from, to)
    }
}

impl Step {
    /// Changes, without a question yet.
    pub fn new(changes: impl IntoIterator<Item = Change>) -> Self {
        Self {
            changes: changes.into_iter().collect(),
            probe: Probe::All,
            said: Vec::new(),
        }
    }

    /// Every pod asks every pod there, and everybody is reached but as the lines say.
    pub fn table<const N: usize>(mut self, socket: Socket, lines: [Line; N]) -> Self {
        match &mut self.probe {
            Probe::Ports(ports) => ports.push(socket),
            probe => *probe = Probe::Ports(vec![socket]),
        }
        let lines = std::iter::once(yes("*", "*")).chain(lines);
        self.said.extend(lines.map(|line| Line {
            socket: Some(socket),
            ..line
        }));
        self
    }

    /// The one asks the other there, and that is what comes out.
    pub fn ask(mut self, socket: Socket, line: Line) -> Self {
        let ask = Ask {
            from: build::key(line.from),
            to: build::key(line.to),
            socket,
        };
        match &mut self.probe {
            Probe::Asks(asks) => asks.push(ask),
            probe => *probe = Probe::Asks(vec![ask]),
        }
        let socket = Some(socket);
        self.said.push(Line { socket, ..line });
        self
    }

    /// All questions of the step in that cluster, one family of addresses as the other.
    pub fn asks(&self, cluster: &Cluster) -> Vec<Ask> {
        match &self.probe {
            Probe::Asks(asks) => asks.clone(),
            Probe::All => cluster.asks(|to| cluster.serves(&cluster.pods[to]).to_vec()),
            Probe::Ports(ports) => cluster.asks(|_| ports.clone()),
        }
    }

    /// What is said of that question. A pod reaches itself, whatever a table says (no policy can keep it from that).
    pub fn says(&self, ask: &Ask) -> Option<bool> {
        let line = self.said.iter().rev().find(|line| line.is_about(ask))?;
        Some(line.reaches || ask.from == ask.to)
    }
}
