//! The thread with the real kernel: attachments as the plugin leaves them, and objects as the API tells of them.

use std::process::Command;

use podspan_kernel::testing::TestNs;

use super::*;
use crate::kubernetes::policy::{Sink, channel};
use crate::policy::object::{Change, Kind};

fn nft(commands: &str) {
    let status = Command::new("nft").arg(commands).status().unwrap();
    assert!(status.success(), "nft {commands}");
}

/// An enforcer that nothing was told of yet, and the ways to it.
struct World {
    enforcer: Enforcer,
    sink: Sink,
    wake: Wake,
    woken: Receiver<()>,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
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
        let enforcer = Enforcer::new(place, role, &board, changes).unwrap();
        Self {
            enforcer,
            sink,
            wake,
            woken,
            _directory: directory,
        }
    }

    fn list(&self, kind: Kind, objects: impl IntoIterator<Item = Change>) {
        self.sink.send_now(Change::Begin(kind));
        objects
            .into_iter()
            .for_each(|object| self.sink.send_now(object));
        self.sink.send_now(Change::End(kind));
    }

    /// All kinds, and nothing of them.
    fn list_all(&self) {
        let kinds = [
            Kind::Namespaces,
            Kind::Pods,
            Kind::Nodes,
            Kind::NetworkPolicies,
            Kind::ClusterPolicies,
        ];
        kinds.into_iter().for_each(|kind| self.list(kind, []));
    }
}

/// A pod's chains, as the plugin makes them.
fn attach(name: &str) {
    nft(&format!("add table {INET}"));
    nft(&format!(
        "add chain {INET} pe_of-{name} {{ comment \"{name}\" ; }}"
    ));
    nft(&format!(
        "add chain {INET} pi_of-{name} {{ comment \"shop uid-of-{name}\" ; }}"
    ));
}

/// Leads to a chain that looks like one of an earlier agent's, so that the kernel does not let it go.
fn refuse() {
    nft(&format!("add chain {INET} policy_7_1_0"));
    nft(&format!("add chain {INET} in-the-way"));
    nft(&format!("add rule {INET} in-the-way jump policy_7_1_0"));
}

/// How long the calling thread has been running, in ticks of 10 ms.
fn ran() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // Behind the name, which may have anything in it, come the fields from the third on (proc(5)); these are 14 and 15.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap());
    ticks.sum()
}

#[test]
fn a_kernel_that_refuses_is_asked_now_and_then_and_waiting_costs_nothing() {
    let _ns = TestNs::new();
    attach("web");
    refuse();
    let world = World::new();
    world.list_all();
    let board = Arc::clone(&world.enforcer.board);
    let mut enforcer = world.enforcer;
    // As an apply leaves it that succeeded a moment before.
    enforcer.end_at = Some(Instant::now());
    let busy = std::thread::spawn(move || {
        enforcer.run(&world.woken);
        ran()
    });
    let begin = Instant::now();
    let failures = || board.metrics.policy.failures.get();
    while begin.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!((2..=11).contains(&failures()), "{}", failures());
    let told = board.problems();
    let told = told.iter().any(|problem| {
        problem.starts_with("policy: delete chain inet podspan policy_7_1_0: ")
            && problem.contains("EBUSY")
    });
    assert!(told, "{:?}", board.problems());
    drop((world.sink, world.wake));
    let ticks = busy.join().unwrap();
    assert!(ticks < 50, "{ticks} ticks of 200");
}
