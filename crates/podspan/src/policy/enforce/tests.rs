//! The thread with the real kernel: attachments as the plugin leaves them, and objects as the API tells of them.

use std::process::Command;

use podspan_cni::filter::Filter;
use podspan_kernel::Netlink;
use podspan_kernel::nft::Nft;
use podspan_kernel::testing::TestNs;
use serde_json::json;

use super::*;
use crate::board::Report;
use crate::kubernetes::policy::{Sink, channel, read_object};
use crate::policy::adopt::tests as pods;
use crate::policy::object::{Change, Kind};

fn nft(commands: &str) {
    let status = Command::new("nft").arg(commands).status().unwrap();
    assert!(status.success(), "nft {commands}");
}

/// A pod's chains, as the plugin makes them.
fn attach(name: &str) {
    let chain = format!("add chain {INET}");
    nft(&format!("add table {INET}"));
    nft(&format!("{chain} pe_of-{name} {{ comment \"{name}\" ; }}"));
    nft(&format!(
        "{chain} pi_of-{name} {{ comment \"shop uid-of-{name}\" ; }}"
    ));
}

/// Leads to a chain that looks like one of an earlier agent's, so that the kernel does not let it go.
fn refuse() {
    nft(&format!("add chain {INET} policy_7_1_0"));
    nft(&format!("add chain {INET} in-the-way"));
    nft(&format!("add rule {INET} in-the-way jump policy_7_1_0"));
}

fn refuse_no_longer() {
    nft(&format!("delete chain {INET} in-the-way"));
}

/// An enforcer, which runs as long as this lives.
struct World {
    board: Arc<Board>,
    sink: Sink,
    wake: Wake,
    look: Arc<AtomicBool>,
    directory: tempfile::TempDir,
}

impl World {
    /// `before` is done to it before it runs; what comes behind it tells how long it ran, in ticks of 10 ms.
    fn start(before: impl FnOnce(&mut Enforcer)) -> (Self, thread::JoinHandle<u64>) {
        let directory = tempfile::tempdir().unwrap();
        let (wake, woken) = Wake::new();
        let up = wake.clone();
        let (sink, changes) = channel(move || up.up());
        let role = PolicyRole {
            file: None,
            when_unknown_open: false,
            wait_milliseconds: 0,
            keeps_connections: false,
        };
        let (place, board) = (("node1", directory.path()), Arc::new(Board::new()));
        board.pin(Report::default());
        let mut enforcer = Enforcer::new(place, role, &board, changes).unwrap();
        before(&mut enforcer);
        let world = Self {
            board,
            sink,
            wake,
            look: Arc::clone(&enforcer.look),
            directory,
        };
        let busy = thread::spawn(move || {
            enforcer.run(&woken);
            ran()
        });
        (world, busy)
    }

    fn list(&self, kinds: &[Kind]) {
        kinds.iter().for_each(|kind| self.list_of(*kind, None));
    }

    fn list_of(&self, kind: Kind, objects: impl IntoIterator<Item = Change>) {
        let begin = std::iter::once(Change::Begin(kind));
        let all = begin.chain(objects).chain([Change::End(kind)]);
        all.for_each(|change| self.sink.send_now(change));
    }

    /// Something happened to the attachments, as the kernel tells.
    fn happened(&self) {
        self.look.store(true, Ordering::Release);
        self.wake.up();
    }

    fn until_unready(&self, reasons: &[&str]) {
        let begin = Instant::now();
        while self.board.unready() != reasons {
            let are = self.board.unready();
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "{are:?} and not {reasons:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn failures(&self) -> u64 {
        self.board.metrics.policy.failures.get()
    }
}

/// How long the calling thread has been running, in ticks.
fn ran() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // Behind the name, which may have anything in it, come the fields from the third on (proc(5)); these are 14 and 15.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks = fields.skip(11).take(2);
    ticks.map(|field| field.parse::<u64>().unwrap()).sum()
}

const REFUSED: &str = "delete chain inet podspan policy_7_1_0: device or resource busy (EBUSY)";

#[test]
fn a_kernel_that_refuses_is_asked_now_and_then_and_waiting_costs_nothing() {
    let _ns = TestNs::new();
    attach("web");
    refuse();
    // As an apply leaves it that succeeded a moment before.
    let (world, busy) = World::start(|enforcer| enforcer.end_at = Some(Instant::now()));
    world.list(&Kind::ALL);
    let begin = Instant::now();
    thread::sleep(Duration::from_secs(2));
    let (failures, told) = (world.failures(), world.board.problems());
    let most = 2 + begin.elapsed().as_millis() / 200;
    assert!(failures >= 2 && u128::from(failures) <= most, "{failures}");
    assert_eq!(told, BTreeSet::from([format!("policy: {REFUSED}")]));
    drop(world);
    let ticks = busy.join().unwrap();
    assert!(ticks < 50, "{ticks} ticks of 200");
}

#[test]
fn policy_is_in_force_when_all_was_listed_and_the_kernel_took_it_and_then_it_stays_so() {
    let _ns = TestNs::new();
    attach("web");
    refuse();
    let (world, _busy) = World::start(|_| {});
    let all = "Namespaces, Nodes, Pods, NetworkPolicies, ClusterNetworkPolicies";
    world.until_unready(&[&format!("policy is not in force: no list yet of {all}")]);
    world.list(&[Kind::Namespaces, Kind::Pods, Kind::Nodes]);
    world.list(&[Kind::ClusterPolicies]);
    // One that may not be read.
    let only = "policy is not in force: no list yet of NetworkPolicies";
    world.until_unready(&[only]);
    assert_eq!(world.failures(), 0);

    world.list(&[Kind::NetworkPolicies]);
    world.until_unready(&[&format!("policy is not in force: {REFUSED}")]);
    refuse_no_longer();
    world.until_unready(&[]);

    // The API is away: a list breaks off, and comes no further.
    Kind::ALL
        .map(Change::Begin)
        .into_iter()
        .for_each(|begin| world.sink.send_now(begin));
    thread::sleep(Duration::from_millis(200));
    assert_eq!(world.board.unready(), [""; 0]);
}

/// A pod of this node that nobody may send anything, attached without chains.
fn isolated(world: &World, ns: &TestNs) -> podspan_kernel::IfName {
    let web = pods::pod("web", "10.0.1.2");
    pods::attach(ns, world.directory.path(), &web);
    let shop = json!({"kind": "Namespace", "metadata": {"name": "shop"}});
    let isolates = json!({"kind": "NetworkPolicy", "metadata": {"namespace": "shop", "name": "one"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
    let [shop, isolates] = [shop, isolates].map(|object| read_object(object).unwrap().0);
    let veth = pods::attachment_of(&web).0;
    world.list_of(Kind::Pods, [Change::Pod(web.key.clone(), Some(web))]);
    world.list_of(Kind::Namespaces, [shop]);
    world.list_of(Kind::NetworkPolicies, [isolates]);
    world.list(&[Kind::Nodes, Kind::ClusterPolicies]);
    veth
}

#[test]
fn pods_get_their_chains_again_at_once_when_the_table_was_taken_away_and_not_after_a_del() {
    let ns = TestNs::new();
    let (world, _busy) = World::start(|_| {});
    let veth = isolated(&world, &ns);
    let is_denied = || {
        let own = format!("list chain {INET} pi_{veth}");
        let listed = Command::new("nft").arg(own).output().unwrap();
        String::from_utf8_lossy(&listed.stdout).contains(" drop")
    };
    let until_denied = |patience: Duration| {
        let begin = Instant::now();
        while !is_denied() {
            assert!(begin.elapsed() < patience, "nothing is denied");
            // As the kernel tells of chains that come and go.
            world.happened();
            thread::sleep(Duration::from_millis(20));
        }
    };
    until_denied(Duration::from_secs(30));

    // While DEL is not done the link is still there, and the API knows the pod for longer.
    let (mut host, mut filter) = (Netlink::open().unwrap(), Filter::open().unwrap());
    filter.remove(&mut host, &veth).unwrap();
    world.happened();
    thread::sleep(Duration::from_secs(1));
    let chains = Nft::open().unwrap().list_chains_of(INET).unwrap();
    assert!(
        chains
            .iter()
            .all(|chain| chain.name != format!("pi_{veth}"))
    );

    nft("flush ruleset");
    until_denied(PERIOD / 2);
    assert_eq!(world.failures(), 0);
}
