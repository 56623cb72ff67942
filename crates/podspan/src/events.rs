//! Where the agent's events come from: the kernel, the files, signals. Each source is a thread, and each event only says
//! *look again*.
//!
//! A source that fails says so once and is opened again; meanwhile the periodic look goes on. Events that come faster than
//! they are taken are dropped, which loses nothing: one *look again* is as good as ten.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use podspan_kernel::nft::NftMonitor;
use podspan_kernel::{LinkSet, Monitor};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::packet_filter;

/// What a source says.
#[derive(Debug)]
pub enum Event {
    /// Something may have changed.
    Look,
    /// Somebody wants us to end.
    Stop,
    /// A source failed, and is opened again.
    SourceFailed(String),
}

/// Where sources send to.
pub type Sender = SyncSender<Event>;

/// How many events wait at the most.
const WAITING: usize = 16;
/// How long after a failure a source is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// Starts all sources; others may send events too. `files` are followed through renames of theirs and of the symbolic links
/// on the way; neighbours and forwarding tables are followed of the links in `neighbours_of`.
///
/// # Errors
/// No thread, or no signal handler.
pub fn start(
    files: Vec<PathBuf>,
    neighbours_of: LinkSet,
) -> anyhow::Result<(Sender, Receiver<Event>)> {
    let (sender, receiver) = sync_channel(WAITING);
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("catch signals")?;
    let to_stop = sender.clone();
    spawn("signals", move || {
        for signal in signals.forever() {
            let event = if signal == SIGHUP {
                Event::Look
            } else {
                Event::Stop
            };
            let _ = to_stop.send(event);
        }
    })?;
    // Opened here: what happens after the first look is not missed.
    let monitor = Monitor::open(neighbours_of.clone())?;
    let of_kernel = sender.clone();
    spawn("kernel", move || {
        watch_kernel(monitor, &neighbours_of, &of_kernel);
    })?;
    // A kernel without a packet filter has no news of one.
    if let Ok(monitor) = NftMonitor::open() {
        let of_filter = sender.clone();
        spawn("packet filter", move || watch_filter(monitor, &of_filter))?;
    }
    let of_files = sender.clone();
    spawn("files", move || watch_files(&files, &of_files))?;
    Ok((sender, receiver))
}

/// Waits until somebody wants us to end.
///
/// # Errors
/// No signal handler.
pub fn wait_for_end() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("catch signals")?;
    let _ = signals.forever().next();
    Ok(())
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    // A thread's stack is memory only as far as it is used.
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread
        .map(drop)
        .with_context(|| format!("start the thread for {name}"))
}

fn watch_kernel(monitor: Monitor, neighbours_of: &LinkSet, sender: &SyncSender<Event>) {
    let open = || Monitor::open(neighbours_of.clone());
    watch((monitor, open), sender, |monitor| monitor.wait());
}

/// What others do to their own tables, which is much where there is a Service proxy, wakes nobody.
fn watch_filter(monitor: NftMonitor, sender: &SyncSender<Event>) {
    watch((monitor, NftMonitor::open), sender, |monitor| {
        monitor.wait(packet_filter::matters)
    });
}

fn watch<M>(
    (mut monitor, open): (M, impl Fn() -> podspan_kernel::Result<M>),
    sender: &SyncSender<Event>,
    wait: impl Fn(&mut M) -> podspan_kernel::Result<()>,
) {
    loop {
        let failure = match wait(&mut monitor) {
            Ok(()) => {
                let _ = sender.try_send(Event::Look);
                continue;
            }
            Err(failure) => failure,
        };
        let _ = sender.send(Event::SourceFailed(failure.to_string()));
        loop {
            thread::sleep(REOPEN);
            if let Ok(opened) = open() {
                monitor = opened;
                break;
            }
        }
        let _ = sender.try_send(Event::Look);
    }
}

fn watch_files(files: &[PathBuf], sender: &SyncSender<Event>) {
    let mut told = None;
    loop {
        let failure = format!("{:#}", follow(files, sender));
        if told.as_ref() != Some(&failure) {
            let _ = sender.send(Event::SourceFailed(failure.clone()));
            told = Some(failure);
        }
        thread::sleep(REOPEN);
        let _ = sender.try_send(Event::Look);
    }
}

/// Follows the files until something fails, and tells what.
fn follow(files: &[PathBuf], sender: &SyncSender<Event>) -> anyhow::Error {
    let inotify = match inotify::init(CreateFlags::CLOEXEC) {
        Ok(inotify) => inotify,
        Err(errno) => return anyhow::Error::new(errno).context("open inotify"),
    };
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(&inotify, &mut buffer);
    loop {
        // Each time anew: a symbolic link may lead elsewhere now. A directory that is watched already stays so.
        for directory in directories(files) {
            if let Err(errno) = inotify::add_watch(&inotify, &directory, watched()) {
                let context = format!("watch {}", directory.display());
                return anyhow::Error::new(errno).context(context);
            }
        }
        let _ = sender.try_send(Event::Look);
        match reader.next() {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return anyhow::Error::new(errno).context("wait for changes of files"),
        }
        while !reader.is_buffer_empty() && reader.next().is_ok() {}
    }
}

/// A file that comes, goes, or was written; and the directory itself that goes.
fn watched() -> WatchFlags {
    WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR
}

/// The directory of each file's name, and of each file that a symbolic link on the way leads to; where a directory does
/// not exist yet, the nearest above it that does.
fn directories(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let named = files.iter().cloned();
    let real = files.iter().filter_map(|file| file.canonicalize().ok());
    let all = named.chain(real);
    all.filter_map(|file| {
        file.ancestors()
            .skip(1)
            .find(|above| above.is_dir())
            .map(Path::to_owned)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directories_of_the_name_and_of_what_it_leads_to_are_watched() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("map/..2026")).unwrap();
        std::fs::write(root.join("map/..2026/nodes.toml"), "").unwrap();
        std::os::unix::fs::symlink("..2026", root.join("map/..data")).unwrap();
        std::os::unix::fs::symlink("..data/nodes.toml", root.join("map/nodes.toml")).unwrap();
        let files = [
            root.join("map/nodes.toml"),
            root.join("not/yet/10.conflist"),
        ];
        let expected = [root.clone(), root.join("map"), root.join("map/..2026")];
        assert_eq!(directories(&files), BTreeSet::from(expected));
    }
}
