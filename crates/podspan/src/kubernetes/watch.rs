//! Following the Nodes: all of them first, then what changes, for ever.
//!
//! The server streams the list where it can (`sendInitialEvents`), so that no more than one Node is in memory as text; one
//! that cannot is asked for pages. A watch that ends goes on from the last version seen, a version that the server has forgotten
//! (410) means to list again, and the new list takes the place of the old one in one step. All lists are consistent reads:
//! with several API servers, one that lags behind must not take away what another has shown already.
//!
//! What would surprise: the watch is asked to end after some minutes, another time on each machine, and one that is silent for
//! longer than bookmarks come is taken for dead: a connection whose other end lost its power says nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{TryStream, TryStreamExt as _};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use serde::Deserialize;

use super::About;
use super::backoff::{Backoff, random};
use super::client::{Client, Failure, no_request, too_slow};
use super::object::{Metadata, NodeObject, Record};
use super::state::{Records, State};

/// How many Nodes a page has: half a megabyte to two.
const PAGE: u32 = 100;
/// A watch is asked to last from that, in seconds.
const SHORTEST: u32 = 240;
/// To that much longer.
const SPREAD: u32 = 60;
/// What may lie between two events while the list is streamed, and before the server ends a watch as it was asked.
const SILENCE: Duration = Duration::from_secs(60);
/// Two bookmarks and a half; the server sends one a minute where it sends any (`bookmarkFrequency` of its watch cache).
const BOOKMARKS: Duration = Duration::from_secs(150);
/// The bookmark that ends a streamed list.
const ALL_SENT: &str = "k8s.io/initial-events-end";
const NODES: &str = "/api/v1/nodes";
const WATCH: &str = "watch Nodes";
const LIST: &str = "list Nodes";
/// After so many failures in a row the client is made anew.
const ANEW: u32 = 4;
/// A watch that ended sooner than that did not go well.
const LASTS: Duration = Duration::from_secs(5);

/// Where we are.
#[derive(Debug, Default)]
pub struct Watch {
    /// What to go on from; none lists first.
    version: Option<String>,
    /// The server refused to stream the list.
    pages: bool,
    backoff: Backoff,
    /// Everything was listed once.
    synced: bool,
}

impl Watch {
    /// Follows until it failed a few times in a row.
    pub async fn follow(&mut self, client: &Client, state: &State) {
        loop {
            let begin = Instant::now();
            let outcome = self.session(client, state).await;
            if begin.elapsed() > LASTS {
                self.backoff.reset();
            }
            match outcome {
                Ok(()) if begin.elapsed() > LASTS => {}
                Err(failure)
                    if !self.pages && self.version.is_none() && failure.is_unsupported() =>
                {
                    self.pages = true;
                }
                Err(failure) if failure.is_expired() && self.version.is_some() => {
                    self.version = None;
                    tokio::time::sleep(self.backoff.next()).await;
                }
                Ok(()) => tokio::time::sleep(self.backoff.next()).await,
                Err(failure) => self.failed(state, &failure).await,
            }
            if self.backoff.failures >= ANEW {
                return;
            }
        }
    }

    /// Waits, and tells of the failure: the first time when nothing is known yet, or else the second, because a watch
    /// breaks with every restart of a server and is taken up by the next.
    pub async fn failed(&mut self, state: &State, failure: &Failure) {
        if !self.synced || self.backoff.failures > 0 {
            state.problem(About::Nodes, failure);
        }
        tokio::time::sleep(self.backoff.next()).await;
    }

    /// One watch, and the list before it where there must be one.
    async fn session(&mut self, client: &Client, state: &State) -> Result<(), Failure> {
        if self.version.is_none() && self.pages {
            let (records, version) = list(client, state.own_name()).await?;
            state.replace(by_name(records));
            self.version = Some(version);
        }
        let params = WatchParams {
            timeout: Some(some_minutes()),
            send_initial_events: self.version.is_none(),
            ..WatchParams::default()
        };
        let version = self.version.as_deref().unwrap_or_default();
        let request = Request::new(NODES).watch(&params, version);
        let request = request.map_err(|error| no_request(WATCH, &error))?;
        let events = client.kube.request_events::<NodeObject>(request);
        let events = std::pin::pin!(client.wait(WATCH, events).await?);
        let listing = if self.version.is_none() {
            Some(Records::new())
        } else {
            self.in_sync(state);
            None
        };
        let mut session = Session {
            watch: self,
            client,
            state,
            listing,
            bookmarks: false,
        };
        session.follow(events).await
    }

    fn in_sync(&mut self, state: &State) {
        self.synced = true;
        state.mended(About::Nodes);
    }
}

/// A watch that was accepted.
struct Session<'a> {
    watch: &'a mut Watch,
    client: &'a Client,
    state: &'a State,
    /// The list as far as it was streamed; none behind its end.
    listing: Option<Records>,
    /// The server sends bookmarks.
    bookmarks: bool,
}

impl Session<'_> {
    async fn follow(
        &mut self,
        mut events: impl TryStream<Ok = WatchEvent<NodeObject>, Error = kube::Error> + Unpin,
    ) -> Result<(), Failure> {
        loop {
            let silence = self.silence();
            match tokio::time::timeout(silence, events.try_next()).await {
                Ok(Ok(Some(event))) => self.take(event)?,
                Ok(Ok(None)) if self.listing.is_none() => return Ok(()),
                Ok(Ok(None)) => return Err(self.client.cut_short(WATCH)),
                Ok(Err(error)) => return Err(self.client.failure(WATCH, &error)),
                Err(_) => return Err(too_slow(WATCH, silence)),
            }
        }
    }

    fn silence(&self) -> Duration {
        match (&self.listing, self.bookmarks) {
            (Some(_), _) => SILENCE,
            (None, true) => BOOKMARKS,
            (None, false) => Duration::from_secs((SHORTEST + SPREAD).into()) + SILENCE,
        }
    }

    fn take(&mut self, event: WatchEvent<NodeObject>) -> Result<(), Failure> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                self.has_seen(&object.metadata);
                let record = self.state.record(object);
                match &mut self.listing {
                    Some(listing) => drop(listing.insert(record.name.clone(), record)),
                    None => self.state.set(record),
                }
            }
            WatchEvent::Deleted(object) => {
                self.has_seen(&object.metadata);
                let name = object.metadata.name;
                match &mut self.listing {
                    Some(listing) => drop(listing.remove(&name)),
                    None => self.state.remove(&name),
                }
            }
            WatchEvent::Bookmark(bookmark) => {
                self.bookmarks = true;
                if bookmark.metadata.annotations.contains_key(ALL_SENT)
                    && let Some(records) = self.listing.take()
                {
                    self.state.replace(records);
                    self.watch.in_sync(self.state);
                }
                if self.listing.is_none() {
                    self.watch.version = Some(bookmark.metadata.resource_version);
                }
            }
            WatchEvent::Error(status) => return Err(self.client.refusal(WATCH, &status)),
        }
        Ok(())
    }

    /// While the list is streamed, versions come in the order of names: nothing to go on from.
    fn has_seen(&mut self, metadata: &Metadata) {
        if self.listing.is_none() {
            self.watch.version = Some(metadata.resource_version.clone());
        }
    }
}

/// All Nodes in pages, and the version that they are of.
///
/// # Errors
/// What the server answered.
pub async fn list(
    client: &Client,
    own: Option<&str>,
) -> Result<(Vec<Arc<Record>>, String), Failure> {
    let mut params = ListParams::default().limit(PAGE);
    let mut records = Vec::new();
    loop {
        let request = Request::new(NODES).list(&params);
        let request = request.map_err(|error| no_request(LIST, &error))?;
        let page: Page = client.wait(LIST, client.kube.request(request)).await?;
        let items = page.items.into_iter();
        records.extend(items.map(|object| Arc::new(Record::new(object, own))));
        if page.metadata.next.is_empty() {
            return Ok((records, page.metadata.resource_version));
        }
        params.continue_token = Some(page.metadata.next);
    }
}

#[derive(Debug, Deserialize)]
struct Page {
    metadata: PageMetadata,
    #[serde(default)]
    items: Vec<NodeObject>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

fn by_name(records: Vec<Arc<Record>>) -> Records {
    let named = records
        .into_iter()
        .map(|record| (record.name.clone(), record));
    named.collect()
}

/// Another time on each machine, so that not all of them come back at once.
fn some_minutes() -> u32 {
    // Truncated on purpose: a number from 0 to SPREAD.
    let more = (random() * f64::from(SPREAD)) as u32;
    SHORTEST + more
}
