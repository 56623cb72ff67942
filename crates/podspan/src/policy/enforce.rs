//! The thread that keeps policy in force: what is new in the API or of this node's attachments goes into the model, and what the
//! model says is different into the kernel.
//!
//! Until all kinds were listed once nothing is changed: what an earlier agent laid stays in force, and what is new is not, as the board
//! then says. A transaction that fails, because an attachment went meanwhile or somebody touched our table, is followed by a look at the
//! attachments and by everything anew, which takes the place of all that is there in one transaction. Connections that a new denial
//! forbids are ended a moment later, so that a storm of changes looks through them once. Where the whole table was taken away
//! (`nft flush ruleset`), the pods that run get their chains and programs anew at once.
//!
//! What would surprise: what the node itself sends its pods, and they it, is not policy's affair, and so no connection of
//! an address of this machine is ended.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use podspan_cni::filter::INET;
use podspan_kernel::nft::{News, NftMonitor};

use super::adopt::Adoption;
use super::chains::{self, MAPS};
use super::connections;
use super::dataplane::Dataplane;
use super::denied::{Counted, Series};
use super::model::Model;
use super::object::Attached;
use super::program::{Attachment, Verdict};
use super::tries::Tries;
use crate::board::Board;
use crate::config::{NodeRole, PolicyRole};
use crate::kubernetes::policy::Changes;

/// Looks at the attachments at the latest after this time, whatever the kernel said.
const PERIOD: Duration = Duration::from_secs(10);
/// How long after a denial the connections are looked through, for those that follow it.
const SETTLE: Duration = Duration::from_millis(100);
/// After a failure of what tells the kernel's news it is asked again not sooner than that.
const AGAIN: Duration = Duration::from_millis(200);
/// What was in force is so no longer when it was refused to be brought up to date for that long.
const PATIENCE: Duration = Duration::from_secs(5);

/// What problems begin with that keep policy from being in force.
const KERNEL: &str = "policy";

/// What wakes the thread: something is new.
#[derive(Debug, Clone)]
pub struct Wake(SyncSender<()>);

impl Wake {
    /// And what it wakes.
    pub fn new() -> (Self, Receiver<()>) {
        let (sender, receiver) = sync_channel(1);
        (Self(sender), receiver)
    }

    /// That it has been woken already is as good.
    pub fn up(&self) {
        let _ = self.0.try_send(());
    }
}

/// Starts the thread, and one that listens to the kernel.
///
/// # Errors
/// No thread, no socket.
pub fn start(
    (node, role): (&NodeRole, PolicyRole),
    board: &Arc<Board>,
    changes: Changes,
    (wake, woken): (Wake, Receiver<()>),
) -> anyhow::Result<()> {
    let monitor = NftMonitor::open()?;
    let place = (node.name.as_str(), node.data_dir.as_path());
    let mut enforcer = Enforcer::new(place, role, board, changes)?;
    let look = Arc::clone(&enforcer.look);
    enforcer.tell_standing(Instant::now());
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let thread = thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(work).map(drop);
        thread.context("start a thread for policy")
    };
    spawn(
        "policy-events",
        Box::new(move || listen(monitor, &look, &wake)),
    )?;
    spawn("policy", Box::new(move || enforcer.run(&woken)))
}

/// Tells of attachments that come and go; the plugin alone changes the maps that lead to them.
fn listen(mut monitor: NftMonitor, look: &AtomicBool, wake: &Wake) {
    let matters = |news: &News<'_>| {
        news.family == INET.family
            && news.table == INET.name
            && news.object.is_none_or(|object| MAPS.contains(&object))
    };
    loop {
        // What a failure loses is seen with the next look of the period.
        if monitor.wait(matters).is_err() {
            thread::sleep(AGAIN);
        }
        look.store(true, Ordering::Release);
        wake.up();
    }
}

/// What is wrong, by what it is about, as it hangs on the board: each once, and no longer than it is so.
struct Problems {
    board: Arc<Board>,
    hung: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Problems {
    fn new(board: &Arc<Board>) -> Self {
        Self {
            board: Arc::clone(board),
            hung: BTreeMap::new(),
        }
    }

    /// These take the place of those that were hung about the same before.
    fn put(&mut self, about: &'static str, now: BTreeSet<String>) {
        let before = self.hung.remove(about).unwrap_or_default();
        for gone in before.difference(&now) {
            self.board.set_problem(gone, false);
        }
        for new in now.difference(&before) {
            self.board.set_problem(new, true);
        }
        self.hung.insert(about, now);
    }
}

struct Enforcer {
    model: Model,
    role: PolicyRole,
    dataplane: Dataplane,
    adoption: Adoption,
    /// There may be pods without chains.
    adopt: bool,
    changes: Changes,
    /// How many changes the model has that the kernel may not have yet.
    taken: u64,
    attachments: BTreeMap<Attachment, Attached>,
    /// The table that they were seen in.
    table: Option<u64>,
    /// What is in the kernel may be another than what was laid.
    anew: bool,
    /// The attachments must be looked at.
    look: Arc<AtomicBool>,
    /// How it went to bring the kernel up to date.
    tries: Tries,
    /// It was, of all kinds, since the start.
    in_force: bool,
    /// When connections are looked through.
    end_at: Option<Instant>,
    /// Counters that nobody counts with may be deleted.
    sweep: bool,
    /// What is wrong, as it hangs on the board.
    problems: Problems,
    board: Arc<Board>,
}

impl Enforcer {
    /// Of the node of that name; nothing is changed yet.
    fn new(
        (node, data_dir): (&str, &Path),
        role: PolicyRole,
        board: &Arc<Board>,
        changes: Changes,
    ) -> podspan_kernel::Result<Self> {
        let mut dataplane = Dataplane::open(role.when_unknown_open)?;
        Ok(Self {
            model: Model::new(node),
            table: dataplane.nft().table_handle(INET)?,
            dataplane,
            role,
            adoption: Adoption::new(data_dir),
            adopt: true,
            changes,
            taken: 0,
            attachments: BTreeMap::new(),
            anew: false,
            look: Arc::new(AtomicBool::new(true)),
            tries: Tries::default(),
            in_force: false,
            end_at: None,
            sweep: true,
            problems: Problems::new(board),
            board: Arc::clone(board),
        })
    }

    fn run(&mut self, woken: &Receiver<()>) {
        let mut next_look = Instant::now();
        loop {
            // Until what failed has been tried again nothing else is done.
            let due = self.tries.again().or(self.end_at);
            let until = due.map_or(next_look, |due| due.min(next_look));
            let waited = woken.recv_timeout(until.saturating_duration_since(Instant::now()));
            if waited == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            for change in self.changes.try_iter() {
                self.model.take(change);
                self.taken += 1;
            }
            let now = Instant::now();
            if now >= next_look {
                self.adopt = true;
                self.look.store(true, Ordering::Release);
                next_look = now + PERIOD;
                self.sweep = true;
            }
            let outcome = self.keep(now);
            self.tell(outcome, now);
        }
    }

    /// Brings the kernel up to what the model says.
    fn keep(&mut self, now: Instant) -> podspan_kernel::Result<()> {
        if self.tries.again().is_some_and(|again| now < again) {
            return Ok(());
        }
        // Before the look: what comes meanwhile is looked at again.
        if self.look.swap(false, Ordering::AcqRel) {
            self.see_attachments()?;
        }
        if self.adopt && self.model.is_synced() {
            self.adopt = false;
            self.adopt(now);
        }
        if self.anew {
            self.model.anew();
            self.dataplane.begin_anew()?;
        }
        let difference = self.model.difference();
        if !difference.is_empty() {
            self.dataplane.apply(&difference)?;
            self.board.metrics.policy.changes.inc();
            if !self.role.keeps_connections {
                self.end_at.get_or_insert(now + SETTLE);
            }
        }
        self.anew = false;
        self.tries.succeeded();
        self.in_force |= self.model.is_synced();
        if self.end_at.is_some_and(|at| now >= at) {
            let ended = self.end_denied();
            // Again with the next look: what is not ended now would go on until another change.
            self.end_at = ended.is_err().then(|| now + PERIOD);
            self.tell_beside("connections that policy forbids may go on", ended);
        }
        // Until everything is laid again the counters of an earlier agent are in use.
        if self.model.is_synced() && std::mem::take(&mut self.sweep) {
            let swept = self.dataplane.sweep();
            self.tell_beside("counters of policy that nobody needs stay", swept);
        }
        Ok(())
    }

    /// A failure of what goes on beside: what is in the kernel is as the model wants it, and nothing is laid anew for it.
    fn tell_beside(&mut self, what: &'static str, outcome: podspan_kernel::Result<()>) {
        let told = outcome.err().map(|error| format!("{what}: {error}"));
        self.problems.put(what, told.into_iter().collect());
    }

    fn tell(&mut self, outcome: podspan_kernel::Result<()>, now: Instant) {
        match outcome {
            Ok(()) if !self.tries.are_failing() => {
                let taken = std::mem::take(&mut self.taken);
                self.board.metrics.policy.told.inc_by(taken);
                self.problems.put(KERNEL, BTreeSet::new());
            }
            Ok(()) => {}
            Err(error) => {
                self.board.metrics.policy.failures.inc();
                // The attachments may be others; the next time everything is laid anew.
                self.look.store(true, Ordering::Release);
                self.anew = true;
                self.tries.failed(&error, now);
                let told = self.tries.problem().map(|why| format!("{KERNEL}: {why}"));
                self.problems.put(KERNEL, told.into_iter().collect());
            }
        }
        self.tell_standing(now);
        self.tell_denied();
        let unknown = |attachment: &&Attachment| {
            matches!(self.model.verdict(attachment), Some(Verdict::Unknown))
        };
        let unknown = self.attachments.keys().filter(unknown).count();
        let all = self.attachments.len();
        self.board.metrics.policy.set_pods(all - unknown, unknown);
    }

    /// Whether policy is in force. Once it was, an API that is away changes nothing of that: what was listed is known.
    fn tell_standing(&self, now: Instant) {
        let patience = if self.in_force {
            PATIENCE
        } else {
            Duration::ZERO
        };
        let unlisted: Vec<_> = self.model.unlisted().map(|kind| kind.to_string()).collect();
        self.board.set_policy(match &unlisted[..] {
            [] => self.tries.problem_since(patience, now).map(str::to_owned),
            kinds => Some(format!("no list yet of {}", kinds.join(", "))),
        });
    }

    /// What fails is tried again with the next look of the period; what is enforced already is not held up by it.
    fn adopt(&mut self, now: Instant) {
        let known = (&self.model, &self.attachments);
        let told = self.adoption.look(self.dataplane.nft(), known, now);
        self.problems.put("pods without chains", told);
    }

    /// Says which counter is whose.
    fn tell_denied(&mut self) {
        let Some(counters) = self.dataplane.changed_counters() else {
            return;
        };
        let series = |(name, counted): (&String, &Counted)| {
            let attached = self.attachments.get(&counted.attachment)?;
            let series = Series {
                pod: attached.pod.clone(),
                direction: counted.direction,
                denier: counted.denier.clone(),
            };
            Some((name.clone(), series))
        };
        let all = counters.filter_map(series).collect();
        self.board.metrics.policy.denied.put(all);
    }

    fn see_attachments(&mut self) -> podspan_kernel::Result<()> {
        let table = self.dataplane.nft().table_handle(INET)?;
        if std::mem::replace(&mut self.table, table) != table {
            // Somebody took the old one away, and from pods that run all that they had in it. No DEL does that.
            self.adopt = true;
            self.anew = true;
        }
        let seen = chains::attachments(self.dataplane.nft())?;
        for name in self
            .attachments
            .keys()
            .filter(|name| !seen.contains_key(*name))
        {
            self.model.detached(name);
            self.dataplane.forget(name);
        }
        for (name, attached) in &seen {
            if self.attachments.get(name) != Some(attached) {
                self.model.attached(Arc::clone(name), attached.clone());
            }
        }
        self.attachments = seen;
        Ok(())
    }

    fn end_denied(&mut self) -> podspan_kernel::Result<()> {
        let ended = connections::end_denied(&self.model, &self.attachments)?;
        self.board.metrics.policy.ended.inc_by(ended);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
