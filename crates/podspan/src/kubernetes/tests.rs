use std::collections::BTreeMap;

use serde_json::json;

use super::server::Server;
use super::*;
use crate::policy::object::Change;

const NODES: &str = "/api/v1/nodes";
const PATHS: [&str; 5] = [
    NODES,
    "/api/v1/namespaces",
    "/api/v1/pods",
    "/apis/networking.k8s.io/v1/networkpolicies",
    "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
];

/// What has come of the API.
struct Heard {
    news: Receiver<News>,
    changes: policy::Changes,
    nodes: Vec<String>,
    /// Kinds of which all has come, in that order.
    ended: Vec<Kind>,
    problems: BTreeMap<About, String>,
    /// All that was ever told.
    told: Vec<String>,
}

impl Heard {
    fn hear(&mut self) {
        for news in self.news.try_iter() {
            match news {
                News::All(all) => self.nodes = all.iter().map(|node| node.name.clone()).collect(),
                News::Is(node) => self.nodes.push(node.name.clone()),
                News::Gone(name) => self.nodes.retain(|node| *node != name),
                News::Problem(about, Some(text)) => {
                    self.told.push(text.clone());
                    self.problems.insert(about, text);
                }
                News::Problem(about, None) => drop(self.problems.remove(&about)),
            }
        }
        for change in self.changes.try_iter() {
            if let Change::End(kind) = change {
                self.ended.push(kind);
            }
        }
    }

    /// For an hour of the runtime's clock. Where that stands still but for who waits, a second is some milliseconds, in which a
    /// server can answer.
    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..3600 {
            self.hear();
            if is_so(self) {
                return;
            }
            thread::sleep(Duration::from_millis(3));
            tokio::time::sleep(self.pace()).await;
        }
        panic!("never {what}: {:?} {:?}", self.nodes, self.told);
    }

    /// Until all has come of a server that answers, the clock is everybody's.
    fn pace(&self) -> Duration {
        Duration::from_millis(if self.ended.len() < PATHS.len() {
            3
        } else {
            1000
        })
    }
}

#[test]
fn an_api_that_takes_connections_and_never_answers_is_told_once_and_a_corrected_kubeconfig_is_read()
{
    let server_with = |name: &str| {
        let server = Server::start(&PATHS);
        server.set(NODES, json!({"metadata": {"name": name}}));
        server
    };
    let (mut first, second) = (server_with("first"), server_with("second"));
    // It knows nothing of the first one's versions.
    second.forget();
    let config = first.config();
    let (to_agent, news) = channel();
    let (events, _events) = std::sync::mpsc::sync_channel(16);
    let (_report, reports) = latest::channel(Report::default());
    let (sink, changes) = policy::channel(|| {});
    let mut heard = Heard {
        news,
        changes,
        nodes: Vec::new(),
        ended: Vec::new(),
        problems: BTreeMap::new(),
        told: Vec::new(),
    };
    let story = async {
        heard
            .until("synced", |heard| heard.ended.len() == PATHS.len())
            .await;
        assert_eq!(heard.nodes, ["first"]);
        assert_eq!(heard.told, [""; 0]);

        // From now on half a minute without an answer is over at once.
        tokio::time::pause();
        let silent = first.be_silent();
        heard.until("told", |heard| !heard.told.is_empty()).await;
        let begin = tokio::time::Instant::now();
        let for_long = |_: &Heard| begin.elapsed() > Duration::from_secs(600);
        heard.until("tried for long", for_long).await;
        assert_eq!(heard.told.len(), 1, "{:?}", heard.told);
        let said = "watch Nodes at http://127.0.0.1:";
        assert!(heard.told[0].starts_with(said), "{:?}", heard.told);
        assert_eq!(heard.nodes, ["first"]);

        std::fs::copy(
            second.config().kubeconfig.unwrap(),
            config.kubeconfig.as_ref().unwrap(),
        )
        .unwrap();
        let all = 2 * PATHS.len();
        heard
            .until("the other server is asked", |heard| {
                heard.nodes == ["second"] && heard.ended.len() >= all && heard.problems.is_empty()
            })
            .await;
        drop(silent);
    };
    let state = State::new(None, to_agent, events);
    runtime().unwrap().block_on(async {
        tokio::select! {
            () = run(config.clone(), state, reports, Some(sink)) => {}
            () = story => {}
        }
    });
}

#[test]
fn a_problem_is_told_again_when_it_is_another_one_and_not_when_only_its_words_are() {
    let (news, told) = std::sync::mpsc::channel();
    let (events, _heard) = std::sync::mpsc::sync_channel(8);
    let state = State::new(None, news, events);
    let answered = |code, text: &str| {
        let mut failure = Failure::of(text.to_owned());
        failure.code = code;
        failure
    };
    for failure in [
        Failure::of("kubeconfig: no such file".into()),
        Failure::of("kubeconfig: no such file".into()),
        Failure::of("kubeconfig: not YAML".into()),
        answered(503, "the first try"),
        answered(503, "the second try"),
        answered(403, "forbidden"),
    ] {
        state.problem(&About::Nodes, &failure);
    }
    let texts = told.try_iter().map(|news| match news {
        News::Problem(About::Nodes, text) => text.unwrap(),
        other => panic!("{other:?}"),
    });
    let expected = [
        "kubeconfig: no such file",
        "kubeconfig: not YAML",
        "the first try",
        "forbidden",
    ];
    assert_eq!(texts.collect::<Vec<_>>(), expected);
}
