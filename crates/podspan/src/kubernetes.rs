//! The Kubernetes API: a thread of its own that follows the Nodes, what policy needs besides, and tells there what this machine is
//! like.
//!
//! Everything that waits for the API waits here, on one thread with its own runtime; the agent's loop never does. What is new
//! goes to it as messages, and an event says *look again*. Nothing here touches the machine: when the API is away, for however
//! long, the agent keeps what it was told last.
//!
//! What would surprise: the client is made anew after a few failures in a row, because the certificate authority or the
//! server's address may have changed in the files that it was made from.

pub mod allocate;
mod backoff;
mod client;
mod nodes;
pub mod object;
pub mod pod;
pub mod policy;
mod report;
#[cfg(test)]
mod server;
mod state;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use tokio::runtime::Runtime;
use tokio::sync::watch as latest;

use crate::config::KubernetesConfig;
use crate::events::Sender;
use crate::policy::object::Kind;
use client::{Client, Failure};
use nodes::Nodes;
use object::{NodeObject, Record};
use state::State;

/// How long `status` and `plan` wait for the list of Nodes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is new in the API.
#[derive(Debug)]
pub enum News {
    /// All Nodes that there are.
    All(Vec<Arc<Record>>),
    /// A Node is new or other than before.
    Is(Arc<Record>),
    /// The Node of that name is gone.
    Gone(String),
    /// What is wrong about one thing, or that nothing is any longer.
    Problem(About, Option<String>),
}

/// What a problem is about: each has at most one, told once however often it is met.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// Reading the Nodes.
    Nodes,
    /// Reading that kind, for policy.
    Kind(Kind),
    /// What is in the object of that kind and name, or of namespace/name.
    Object(Kind, Box<str>),
    /// The pod CIDRs of this node.
    Allocation,
    /// The condition of this node's Node.
    Condition,
    /// Events of this node's Node.
    Events,
}

/// What this machine is like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Pods can run: nothing that they need is missing.
    pub ready: bool,
    /// What an operator must know.
    pub problems: BTreeSet<String>,
}

/// The thread that follows the API, seen from the agent.
#[derive(Debug)]
pub struct Follower {
    news: Receiver<News>,
    report: latest::Sender<Report>,
}

impl Follower {
    /// What came since the last call.
    pub fn news(&self) -> impl Iterator<Item = News> {
        self.news.try_iter()
    }

    /// Tells what this machine is like; nothing happens when that was told already.
    pub fn report(&self, report: Report) {
        self.report.send_if_modified(|last| {
            let is_new = *last != report;
            if is_new {
                *last = report;
            }
            is_new
        });
    }
}

/// Starts following; whatever is new sends an event. With `policy`, also what that needs, which goes there.
///
/// # Errors
/// No thread, or no runtime; never that the API is out of reach.
pub fn follow(
    config: &KubernetesConfig,
    events: &Sender,
    policy: Option<policy::Sink>,
) -> anyhow::Result<Follower> {
    let (to_agent, news) = channel();
    let (report, reports) = latest::channel(Report::default());
    let state = State::new(config.node.clone(), to_agent, events.clone());
    let runtime = runtime()?;
    let config = config.clone();
    thread::Builder::new()
        .name("kubernetes".to_owned())
        .spawn(move || runtime.block_on(run(config, state, reports, policy)))
        .context("start the thread for Kubernetes")?;
    Ok(Follower { news, report })
}

/// Lists the Nodes once.
///
/// # Errors
/// No runtime; that the API is out of reach is among the news.
pub fn read(config: &KubernetesConfig) -> anyhow::Result<Vec<News>> {
    let listed = runtime()?.block_on(async {
        let client = client::connect(config).await?;
        let listing = list(&client, config.node.as_deref());
        let listed = tokio::time::timeout(PATIENCE, listing).await;
        listed.unwrap_or_else(|_| Err(client::too_slow(nodes::PLACE.list, PATIENCE)))
    });
    Ok(match listed {
        Ok(records) => vec![News::All(records)],
        Err(failure) => vec![News::Problem(About::Nodes, Some(failure.to_string()))],
    })
}

async fn list(client: &Client, own: Option<&str>) -> Result<Vec<Arc<Record>>, Failure> {
    let mut pages = watch::Pages::<NodeObject>::new(client, &nodes::PLACE);
    let mut records = Vec::new();
    while let Some(items) = pages.next().await? {
        let items = items.into_iter();
        records.extend(items.map(|object| Arc::new(Record::new(object, own))));
    }
    Ok(records)
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime for Kubernetes")
}

async fn run(
    config: KubernetesConfig,
    state: State,
    reports: latest::Receiver<Report>,
    policy: Option<policy::Sink>,
) {
    let nodes = Nodes::new(&state, policy.as_ref());
    let mut watch = watch::Watch::default();
    let mut others = policy::Watches::default();
    let mut reporter = report::Reporter::new(reports);
    loop {
        let client = match client::connect(&config).await {
            Ok(client) => client,
            Err(failure) => {
                watch.failed(&nodes, &failure).await;
                continue;
            }
        };
        // The watch ends when it failed a few times in a row; what the others had begun is taken up again.
        tokio::select! {
            () = watch.follow(&client, &nodes) => {}
            () = others.follow(&client, &state, policy.as_ref()) => {}
            () = reporter.run(&client, &state) => {}
            () = allocate::run(&client, &state, config.allocate.as_ref()) => {}
        }
    }
}

#[cfg(test)]
mod tests;
