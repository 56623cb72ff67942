//! Following the objects of a kind: all of them first, then what changes, for ever. One loop for every kind; what becomes of the
//! objects is said by whoever wants them ([`Objects`]).
//!
//! The server streams the list where it can (`sendInitialEvents`), so that no more than one object is in memory as text; one
//! that cannot is asked for pages. A watch that ends goes on from the last version seen, a version that the server has forgotten
//! (410) means to list again, and the new list takes the place of the old one. All lists are consistent reads: with several API
//! servers, one that lags behind must not take away what another has shown already.
//!
//! Nothing is kept here but the version, and that is noted only when the object was taken: a watch that is dropped while it waits
//! loses nothing.
//!
//! What would surprise: the watch is asked to end after some minutes, another time on each machine, and one that is silent for
//! longer than bookmarks come is taken for dead: a connection whose other end lost its power says nothing.

use std::marker::PhantomData;
use std::time::Duration;

use futures_util::{TryStream, TryStreamExt as _};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::About;
use super::backoff::{Backoff, random};
use super::client::{Client, Failure, no_request, too_slow};
use super::state::State;

/// How many objects a page has: half a megabyte to two.
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
/// After so many failures in a row the client is made anew.
const ANEW: u32 = 4;
/// So often in a row, which takes some seconds, a kind that was there must be said not to be.
const SURE: u32 = 6;
/// A watch that ended sooner than that after it was accepted did not go well.
const LASTS: Duration = Duration::from_secs(5);

/// Where the objects of a kind are.
#[derive(Debug, Clone)]
pub struct Place {
    /// The path of the list.
    pub path: &'static str,
    /// What a watch is in the words of a problem: `watch Nodes`.
    pub watch: &'static str,
    /// What a list is.
    pub list: &'static str,
    /// What a problem of it is about.
    pub about: About,
    /// For a kind that a cluster need not have: about how long after the server did not know it it is asked again.
    pub absent: Option<Duration>,
}

/// An object, as far as it is read.
pub trait Object: DeserializeOwned + Clone {
    /// What a watch goes on from.
    fn version(&self) -> &str;
}

/// The objects of a kind, and what becomes of them. While they are listed, they come between `begin` and `end`; a list that
/// breaks begins again.
pub trait Objects {
    /// What they are.
    type Object: Object;

    /// Where they are.
    fn place(&self) -> &Place;
    /// Where problems are told.
    fn state(&self) -> &State;
    /// All of them follow.
    async fn begin(&self);
    /// One that is new or changed.
    async fn set(&self, object: Self::Object);
    /// One that is gone, as it was.
    async fn remove(&self, object: Self::Object);
    /// All of them have come.
    async fn end(&self);
}

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
    /// The server does not know the kind.
    absent: bool,
}

impl Watch {
    /// Follows until it failed a few times in a row.
    pub async fn follow<O: Objects>(&mut self, client: &Client, objects: &O) {
        loop {
            let outcome = self.session(client, objects).await;
            match (outcome, objects.place().absent) {
                (Ok(Ended::WhenDue), _) => {}
                (Err(failure), Some(again)) if failure.is_not_found() => {
                    self.not_there(objects, again).await;
                }
                (Err(failure), _)
                    if !self.pages && self.version.is_none() && failure.is_unsupported() =>
                {
                    self.pages = true;
                }
                (Err(failure), _) if failure.is_expired() && self.version.is_some() => {
                    self.version = None;
                    tokio::time::sleep(self.backoff.next()).await;
                }
                (Ok(Ended::AtOnce), _) => tokio::time::sleep(self.backoff.next()).await,
                (Err(failure), _) => self.failed(objects, &failure).await,
            }
            if self.backoff.failures >= ANEW {
                return;
            }
        }
    }

    /// Waits, and tells of the failure: the first time when nothing is known yet, or else the second, because a watch
    /// breaks with every restart of a server and is taken up by the next.
    pub async fn failed(&mut self, objects: &impl Objects, failure: &Failure) {
        let (about, state) = (&objects.place().about, objects.state());
        let failures = self.backoff.failures;
        // A server that is away is one problem, which the watch of the Nodes tells.
        let is_theirs = failure.is_unreachable()
            && *about != About::Nodes
            && (failures < ANEW || state.has_problem(&About::Nodes));
        if (!self.synced || failures > 0) && !is_theirs {
            state.problem(about, failure);
        }
        tokio::time::sleep(self.backoff.next()).await;
    }

    /// The server does not know the kind: then there is no object of it. A server that starts, or lags behind, may not know it
    /// yet; so where it was there, that is believed only after some seconds.
    async fn not_there(&mut self, objects: &impl Objects, again: Duration) {
        let was_there = self.synced && !self.absent;
        if was_there && self.backoff.failures < SURE {
            return tokio::time::sleep(self.backoff.next()).await;
        }
        if !self.absent {
            objects.begin().await;
            objects.end().await;
        }
        self.version = None;
        self.pages = false;
        self.in_sync(objects);
        self.absent = true;
        self.backoff.reset();
        tokio::time::sleep(again.mul_f64(0.5 + random())).await;
    }

    /// One watch, and the list before it where there must be one.
    async fn session<O: Objects>(
        &mut self,
        client: &Client,
        objects: &O,
    ) -> Result<Ended, Failure> {
        let place = objects.place();
        if self.version.is_none() && self.pages {
            self.version = Some(list(client, objects).await?);
        }
        let params = WatchParams {
            timeout: Some(some_minutes()),
            send_initial_events: self.version.is_none(),
            ..WatchParams::default()
        };
        let version = self.version.as_deref().unwrap_or_default();
        let request = Request::new(place.path).watch(&params, version);
        let request = request.map_err(|error| no_request(place.watch, &error))?;
        let events = client.kube.request_events::<O::Object>(request);
        let events = std::pin::pin!(client.wait(place.watch, events).await?);
        let listing = self.version.is_none();
        if listing {
            objects.begin().await;
        } else {
            self.in_sync(objects);
        }
        let mut session = Session {
            watch: self,
            client,
            objects,
            accepted: Instant::now(),
            listing,
            bookmarks: false,
        };
        session.follow(events).await
    }

    fn in_sync(&mut self, objects: &impl Objects) {
        self.synced = true;
        self.absent = false;
        objects.state().mended(&objects.place().about);
    }
}

/// How a watch ended that the server ended.
enum Ended {
    /// After some minutes, as it was asked to, or a while at least.
    WhenDue,
    /// As soon as it was accepted.
    AtOnce,
}

/// A watch that was accepted.
struct Session<'a, O> {
    watch: &'a mut Watch,
    client: &'a Client,
    objects: &'a O,
    /// When the server answered: an attempt that takes long until then is none that goes well.
    accepted: Instant,
    /// The list is streamed, and its end has not come.
    listing: bool,
    /// The server sends bookmarks.
    bookmarks: bool,
}

impl<O: Objects> Session<'_, O> {
    async fn follow(
        &mut self,
        mut events: impl TryStream<Ok = WatchEvent<O::Object>, Error = kube::Error> + Unpin,
    ) -> Result<Ended, Failure> {
        let what = self.objects.place().watch;
        loop {
            let silence = self.silence();
            let Ok(heard) = tokio::time::timeout(silence, events.try_next()).await else {
                return Err(too_slow(what, silence));
            };
            // Something is heard, though it be the end, of a watch that was there for a while.
            let lasted = !self.listing && self.accepted.elapsed() > LASTS;
            if lasted {
                self.watch.backoff.reset();
            }
            match heard {
                Ok(Some(event)) => self.take(event).await?,
                Ok(None) if self.listing => return Err(self.client.cut_short(what)),
                Ok(None) if lasted => return Ok(Ended::WhenDue),
                Ok(None) => return Ok(Ended::AtOnce),
                Err(error) => return Err(self.client.failure(what, &error)),
            }
        }
    }

    fn silence(&self) -> Duration {
        match (self.listing, self.bookmarks) {
            (true, _) => SILENCE,
            (false, true) => BOOKMARKS,
            (false, false) => Duration::from_secs((SHORTEST + SPREAD).into()) + SILENCE,
        }
    }

    async fn take(&mut self, event: WatchEvent<O::Object>) -> Result<(), Failure> {
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                let version = object.version().to_owned();
                self.objects.set(object).await;
                self.has_seen(version);
            }
            WatchEvent::Deleted(object) => {
                let version = object.version().to_owned();
                self.objects.remove(object).await;
                self.has_seen(version);
            }
            WatchEvent::Bookmark(bookmark) => {
                self.bookmarks = true;
                if bookmark.metadata.annotations.contains_key(ALL_SENT) && self.listing {
                    self.objects.end().await;
                    self.listing = false;
                    self.watch.in_sync(self.objects);
                }
                self.has_seen(bookmark.metadata.resource_version);
            }
            WatchEvent::Error(status) => {
                return Err(self.client.refusal(self.objects.place().watch, &status));
            }
        }
        Ok(())
    }

    /// While the list is streamed, versions come in the order of names: nothing to go on from.
    fn has_seen(&mut self, version: String) {
        if !self.listing {
            self.watch.version = Some(version);
        }
    }
}

/// All objects in pages, and the version that they are of.
async fn list<O: Objects>(client: &Client, objects: &O) -> Result<String, Failure> {
    let mut pages = Pages::new(client, objects.place());
    let mut page = pages.next().await?;
    objects.begin().await;
    while let Some(items) = page {
        for object in items {
            objects.set(object).await;
        }
        page = pages.next().await?;
    }
    objects.end().await;
    Ok(pages.version)
}

/// A list that is asked for in pages.
pub struct Pages<'a, T> {
    client: &'a Client,
    place: &'a Place,
    /// None behind the last page.
    params: Option<ListParams>,
    /// The version that the list is of.
    version: String,
    items: PhantomData<T>,
}

impl<'a, T: Object> Pages<'a, T> {
    /// Of that kind, from the first.
    pub fn new(client: &'a Client, place: &'a Place) -> Self {
        Self {
            client,
            place,
            params: Some(ListParams::default().limit(PAGE)),
            version: String::new(),
            items: PhantomData,
        }
    }

    /// The next page; none behind the last.
    ///
    /// # Errors
    /// What the server answered.
    pub async fn next(&mut self) -> Result<Option<Vec<T>>, Failure> {
        let Some(params) = &mut self.params else {
            return Ok(None);
        };
        let what = self.place.list;
        let request = Request::new(self.place.path).list(params);
        let request = request.map_err(|error| no_request(what, &error))?;
        let answer = self.client.kube.request(request);
        let page: Page<T> = self.client.wait(what, answer).await?;
        if page.metadata.next.is_empty() {
            self.params = None;
            self.version = page.metadata.resource_version;
        } else {
            params.continue_token = Some(page.metadata.next);
        }
        Ok(Some(page.items))
    }
}

#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct Page<T> {
    metadata: PageMetadata,
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PageMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

/// Another time on each machine, so that not all of them come back at once.
fn some_minutes() -> u32 {
    // Truncated on purpose: a number from 0 to SPREAD.
    let more = (random() * f64::from(SPREAD)) as u32;
    SHORTEST + more
}
