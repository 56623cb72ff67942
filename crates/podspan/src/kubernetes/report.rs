//! What this machine tells the API: that pods can run on its Node, and what an operator must know.
//!
//! Nothing is sent when nothing changes. The condition is applied when the Node does not have it so; an Event is named after
//! what it says, so that a problem that is there already is one Event however often agents start and meet it.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use serde_json::json;
use tokio::sync::watch as latest;

use super::backoff::Backoff;
use super::client::{Client, Failure, no_request};
use super::object::{NodeObject, Record};
use super::state::State;
use super::{About, Report};

/// Who we are among those who write to one object.
pub const FIELD_MANAGER: &str = "podspan";
/// Who we are among those who send Events.
const REPORTER: &str = "podspan.io/agent";
/// Events of objects without a namespace are there; `kubectl describe node` looks for them there.
const NAMESPACE: &str = "default";
/// The longest text of an Event that the API takes, in bytes (`noteLengthLimit` of its validation).
const LONGEST: usize = 1000;
/// New problems of one look that get an Event each.
const EACH: usize = 5;
/// Events that may be sent at once; after them one a minute.
const BURST: u32 = 10;
const REFILL: Duration = Duration::from_secs(60);

/// Tells the API of this machine.
pub struct Reporter {
    reports: latest::Receiver<Report>,
    told: BTreeSet<String>,
    budget: Budget,
    backoff: Backoff,
}

impl Reporter {
    /// Of what comes there.
    pub fn new(reports: latest::Receiver<Report>) -> Self {
        Self {
            reports,
            told: BTreeSet::new(),
            budget: Budget::new(Instant::now()),
            backoff: Backoff::default(),
        }
    }

    /// Tells, for ever.
    pub async fn run(&mut self, client: &Client, state: &State) {
        let mut own = state.own();
        loop {
            let report = self.reports.borrow_and_update().clone();
            let node = own.borrow_and_update().clone();
            let mut failed = false;
            if let Some(node) = node {
                failed |= set_condition(client, state, (&report, &node))
                    .await
                    .is_err();
                failed |= self
                    .send_events(client, state, (&report, &node))
                    .await
                    .is_err();
            }
            if failed {
                tokio::time::sleep(self.backoff.next()).await;
                continue;
            }
            self.backoff.reset();
            // The senders live as long as the process.
            tokio::select! {
                _ = self.reports.changed() => {}
                _ = own.changed() => {}
            }
        }
    }

    /// An Event for each problem that is new.
    async fn send_events(
        &mut self,
        client: &Client,
        state: &State,
        (report, node): (&Report, &Arc<Record>),
    ) -> Result<(), Failure> {
        self.told.retain(|told| report.problems.contains(told));
        let new: Vec<_> = report.problems.difference(&self.told).cloned().collect();
        for note in notes(&new) {
            if !self.budget.take(Instant::now()) {
                break;
            }
            let sent = send(client, node, &note).await;
            if sent.is_err() {
                self.budget.give_back();
            }
            tell(state, &About::Events, sent)?;
        }
        // What the budget did not allow is in the log.
        self.told.extend(new);
        Ok(())
    }
}

/// A problem, and whether it is over.
fn tell(state: &State, about: &About, outcome: Result<(), Failure>) -> Result<(), Failure> {
    match &outcome {
        Ok(()) => state.mended(about),
        Err(failure) => state.problem(about, failure),
    }
    outcome
}

/// NetworkUnavailable=False, once pods can run; it is never taken back, because those that run go on running.
async fn set_condition(
    client: &Client,
    state: &State,
    (report, node): (&Report, &Record),
) -> Result<(), Failure> {
    if !report.ready || node.network_unavailable == Some(false) {
        return Ok(());
    }
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let body = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name},
        "status": {"conditions": [{
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "PodspanIsReady",
            "message": "bridge, routes and CNI configuration are in place",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }]},
    });
    let what = format!("set the condition NetworkUnavailable of Node {}", node.name);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let nodes = Request::new("/api/v1/nodes");
    let request = nodes.patch_subresource("status", &node.name, &params, &Patch::Apply(&body));
    let applied = match request {
        Ok(request) => {
            let answer = client.kube.request::<NodeObject>(request);
            client.wait(&what, answer).await.map(drop)
        }
        Err(error) => Err(no_request(&what, &error)),
    };
    tell(state, &About::Condition, applied)
}

/// The texts of a look's new problems: a few as they are, the rest as their number.
fn notes(new: &[String]) -> Vec<String> {
    let mut notes: Vec<_> = new.iter().take(EACH).map(|text| shorten(text)).collect();
    if let Some(more @ 1..) = new.len().checked_sub(EACH) {
        notes.push(format!(
            "and {more} more problems: see podspan status on this node"
        ));
    }
    notes
}

fn shorten(text: &str) -> String {
    let mut short = String::with_capacity(text.len().min(LONGEST));
    for character in text.chars() {
        if short.len() + character.len_utf8() > LONGEST {
            break;
        }
        short.push(character);
    }
    short
}

/// Sends an Event; one that is there already is as good.
async fn send(client: &Client, node: &Record, note: &str) -> Result<(), Failure> {
    let event = event(node, note);
    let events: Api<Event> = Api::namespaced(client.kube.clone(), NAMESPACE);
    let params = PostParams::default();
    let sent = client
        .wait("send an Event", events.create(&params, &event))
        .await;
    match sent {
        Err(failure) if failure.is_there_already() => Ok(()),
        sent => sent.map(drop),
    }
}

fn event(node: &Record, note: &str) -> Event {
    let mut hasher = DefaultHasher::new();
    (&node.uid, note).hash(&mut hasher);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.podspan.{:016x}", node.name, hasher.finish())),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        type_: Some("Warning".to_owned()),
        reason: Some(
            if note.starts_with("refused: ") {
                "Refused"
            } else {
                "Failed"
            }
            .to_owned(),
        ),
        action: Some("Sync".to_owned()),
        note: Some(note.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.name.clone()),
            uid: Some(node.uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(node.name.clone()),
        ..Event::default()
    }
}

/// How many Events may be sent.
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        while self.left < BURST && now.duration_since(self.since) >= REFILL {
            self.left += 1;
            self.since += REFILL;
        }
        if self.left == BURST {
            self.since = now;
        }
        let has = self.left > 0;
        self.left = self.left.saturating_sub(1);
        has
    }

    /// What was taken was not used.
    fn give_back(&mut self) {
        self.left = (self.left + 1).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_problems_are_a_few_events() {
        let many: Vec<_> = (0..10_000).map(|n| format!("problem {n}")).collect();
        let notes = notes(&many);
        assert_eq!(notes.len(), EACH + 1);
        assert_eq!(
            notes[EACH],
            "and 9995 more problems: see podspan status on this node"
        );
        assert_eq!(super::notes(&many[..EACH]).len(), EACH);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        let text = "ä".repeat(LONGEST);
        assert_eq!(shorten(&text), "ä".repeat(LONGEST / 2));
    }

    #[test]
    fn the_budget_allows_a_burst_and_then_one_a_minute() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        let taken = |budget: &mut Budget, now| (0..100).filter(|_| budget.take(now)).count();
        assert_eq!(taken(&mut budget, begin), 10);
        assert_eq!(taken(&mut budget, begin + REFILL), 1);
        assert_eq!(taken(&mut budget, begin + REFILL * 4), 3);
        assert_eq!(taken(&mut budget, begin + REFILL * 1000), 10);
    }

    #[test]
    fn the_same_problem_is_the_same_event_and_a_new_node_is_another() {
        let node = Record {
            name: "node1".to_owned(),
            uid: "1".to_owned(),
            ..Record::default()
        };
        let again = Record {
            uid: "2".to_owned(),
            ..node.clone()
        };
        let name = |node: &Record, note| event(node, note).metadata.name;
        assert_eq!(name(&node, "a"), name(&node, "a"));
        assert_ne!(name(&node, "a"), name(&node, "b"));
        assert_ne!(name(&node, "a"), name(&again, "a"));
    }
}
