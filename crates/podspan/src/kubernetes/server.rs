//! A server of a test that speaks the API's protocol of lists and watches, out of memory: streamed lists and pages, versions,
//! bookmarks, 404 and 410; it can be killed and started again. The real one has a test of its own (`tests/kubernetes`).

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch as latest};

use crate::config::KubernetesConfig;

/// The server, which lives until it is dropped.
pub struct Server {
    inner: Arc<Inner>,
    address: SocketAddr,
    kubeconfig: NamedTempFile,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

struct Inner {
    store: Mutex<Store>,
    /// One more with each change.
    changed: latest::Sender<u64>,
}

#[derive(Default)]
struct Store {
    kinds: BTreeMap<String, Kind>,
    version: u64,
    /// What all watches of the present must not outlive.
    cuts: u64,
    requests: Vec<String>,
    /// It cannot stream lists.
    old: bool,
    /// After so many objects the next streamed list of that path breaks off.
    breaks: Option<(String, usize)>,
}

#[derive(Default)]
struct Kind {
    objects: BTreeMap<String, Value>,
    events: Vec<(u64, &'static str, Value)>,
    /// Versions before that are forgotten.
    oldest: u64,
    /// Nobody may.
    forbidden: bool,
}

impl Server {
    /// That knows the kinds at those paths.
    pub fn start(paths: &[&str]) -> Self {
        let store = Store {
            version: 1,
            ..Store::default()
        };
        let inner = Arc::new(Inner {
            store: Mutex::new(store),
            changed: latest::Sender::new(0),
        });
        let mut server = Self {
            inner,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            kubeconfig: NamedTempFile::new().unwrap(),
            running: None,
        };
        paths.iter().for_each(|path| server.add_kind(path));
        server.run();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", server.address)}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        server
            .kubeconfig
            .write_all(config.to_string().as_bytes())
            .unwrap();
        server
    }

    pub fn config(&self) -> KubernetesConfig {
        KubernetesConfig {
            kubeconfig: Some(self.kubeconfig.path().to_owned()),
            ..KubernetesConfig::default()
        }
    }

    /// Begins to answer, on the same address as before.
    pub fn run(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (inner, address) = (Arc::clone(&self.inner), self.address);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind(address).await.unwrap();
                ready.send(listener.local_addr().unwrap()).unwrap();
                let app = axum::Router::new().fallback(answer).with_state(inner);
                tokio::select! {
                    _ = axum::serve(listener, app).into_future() => {}
                    _ = stopped => {}
                }
            });
        });
        self.address = is_ready.recv().unwrap();
        self.running = Some((stop, thread));
    }

    /// Ends with all connections.
    pub fn kill(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    /// Ends, and in its place is one that takes connections and answers nothing, until what is given back is dropped.
    pub fn be_silent(&mut self) -> std::net::TcpListener {
        self.kill();
        std::net::TcpListener::bind(self.address).unwrap()
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.inner.store.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Store)) {
        change(&mut self.store());
        self.inner.changed.send_modify(|changes| *changes += 1);
    }

    pub fn add_kind(&self, path: &str) {
        self.change(|store| drop(store.kinds.insert(path.to_owned(), Kind::default())));
    }

    /// The kind goes, its objects before it.
    pub fn remove_kind(&self, path: &str) {
        self.change(|store| drop(store.kinds.remove(path)));
    }

    pub fn forbid(&self, path: &str, forbidden: bool) {
        self.change(|store| store.kinds.get_mut(path).unwrap().forbidden = forbidden);
    }

    /// The object as it is from now on; its key is namespace/name.
    pub fn set(&self, path: &str, mut object: Value) {
        self.change(|store| {
            store.version += 1;
            let version = store.version;
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            let kind = store.kinds.get_mut(path).unwrap();
            let last = kind.objects.insert(key(&object), object.clone());
            let event = if last.is_some() { "MODIFIED" } else { "ADDED" };
            kind.events.push((version, event, object));
        });
    }

    pub fn delete(&self, path: &str, key: &str) {
        self.change(|store| {
            store.version += 1;
            let version = store.version;
            let kind = store.kinds.get_mut(path).unwrap();
            let mut object = kind.objects.remove(key).unwrap();
            object["metadata"]["resourceVersion"] = json!(version.to_string());
            kind.events.push((version, "DELETED", object));
        });
    }

    /// All watches end.
    pub fn cut(&self) {
        self.change(|store| store.cuts += 1);
    }

    /// All watches end, and nothing of before can be gone on from.
    pub fn forget(&self) {
        self.change(|store| {
            store.cuts += 1;
            store.version += 1;
            for kind in store.kinds.values_mut() {
                kind.oldest = store.version;
                kind.events.clear();
            }
        });
    }

    pub fn be_old(&self) {
        self.change(|store| store.old = true);
    }

    pub fn break_list(&self, path: &str, after: usize) {
        self.change(|store| store.breaks = Some((path.to_owned(), after)));
    }

    pub fn requests(&self) -> Vec<String> {
        self.store().requests.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn key(object: &Value) -> String {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap();
    match metadata["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

fn refuse(code: u16, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "code": code});
    (StatusCode::from_u16(code).unwrap(), status.to_string()).into_response()
}

async fn answer(State(inner): State<Arc<Inner>>, uri: Uri) -> Response {
    let query: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let has = |key: &str| query.get(key).is_some_and(|value| value == "true");
    let mut store = inner.store.lock().unwrap();
    store.requests.push(uri.to_string());
    let (version, cuts, old) = (store.version, store.cuts, store.old);
    let breaks = store.breaks.clone().filter(|(path, _)| path == uri.path());
    let Some(kind) = store.kinds.get(uri.path()) else {
        // As the real one says it of a path that it does not know: no Status.
        return (StatusCode::NOT_FOUND, "404 page not found\n").into_response();
    };
    if kind.forbidden {
        return refuse(403, "nodes may not");
    }
    if !has("watch") {
        return Body::from(page(kind, version, &query).to_string()).into_response();
    }
    let streamed = has("sendInitialEvents");
    if streamed && old {
        return refuse(422, "sendInitialEvents is forbidden for watch");
    }
    let mut lines: Vec<_> = Vec::new();
    let mut last = version;
    if streamed {
        lines.extend(kind.objects.values().map(|it| line("ADDED", it)));
        let mut bookmark = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}});
        bookmark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        lines.push(line("BOOKMARK", &bookmark));
    } else {
        last = query["resourceVersion"].parse().unwrap();
        if last < kind.oldest {
            let status = json!({"kind": "Status", "metadata": {}, "status": "Failure", "message": "too old", "reason": "Expired", "code": 410});
            return Body::from(line("ERROR", &status)).into_response();
        }
    }
    let mut ends = false;
    if let (true, Some((_, after))) = (streamed, breaks) {
        lines.truncate(after);
        ends = true;
        store.breaks = None;
    }
    drop(store);
    let changes = inner.changed.subscribe();
    let watch = Watch {
        changes,
        path: uri.path().to_owned(),
        last,
        cuts,
        ends,
        first: Some(lines.concat()),
        inner,
    };
    Body::from_stream(stream::unfold(watch, Watch::next)).into_response()
}

fn line(event: &str, object: &Value) -> String {
    format!("{{\"type\":\"{event}\",\"object\":{object}}}\n")
}

fn page(kind: &Kind, version: u64, query: &BTreeMap<String, String>) -> Value {
    let begin: usize = query.get("continue").map_or(0, |it| it.parse().unwrap());
    let limit: usize = query["limit"].parse().unwrap();
    let items: Vec<_> = kind.objects.values().skip(begin).take(limit).collect();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if begin + limit < kind.objects.len() {
        metadata["continue"] = json!((begin + limit).to_string());
    }
    json!({"metadata": metadata, "items": items})
}

struct Watch {
    inner: Arc<Inner>,
    changes: latest::Receiver<u64>,
    path: String,
    last: u64,
    cuts: u64,
    ends: bool,
    first: Option<String>,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<String, std::io::Error>, Self)> {
        if let Some(first) = self.first.take().filter(|lines| !lines.is_empty()) {
            return Some((Ok(first), self));
        }
        if self.ends {
            return None;
        }
        loop {
            self.changes.borrow_and_update();
            {
                let store = self.inner.store.lock().unwrap();
                let kind = store.kinds.get(&self.path)?;
                if store.cuts != self.cuts {
                    return None;
                }
                let new = kind
                    .events
                    .iter()
                    .filter(|(version, ..)| *version > self.last);
                let lines: String = new.map(|(_, event, object)| line(event, object)).collect();
                self.last = store.version;
                if !lines.is_empty() {
                    drop(store);
                    return Some((Ok(lines), self));
                }
            }
            self.changes.changed().await.ok()?;
        }
    }
}
