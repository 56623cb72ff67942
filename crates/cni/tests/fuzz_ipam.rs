//! Whatever is in the directory of the addresses: no panic, no address that is taken is given to somebody else, and no
//! damaged file stops an ADD.
//!
//! Files of ours with their bytes changed, other people's files, directories and links in the place of files.
//! How long it runs: `harness/fuzz.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

#[path = "harness/fuzz.rs"]
mod fuzz;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use podspan_cni::attachment::AttachmentId;
use podspan_cni::ipam::{IpamConfig, IpamError, RangeSet, Store};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestCaseError;
use serde_json::json;

const BOOT: &str = "4e2c7a32-the-present-boot";

/// Names that mean something, and some that do not.
const NAMES: [&str; 26] = [
    "10.1.0.1",
    "10.1.0.2",
    "10.1.0.3",
    "10.1.0.4",
    "10.1.0.5",
    "10.1.0.6",
    "10.9.0.1",
    "fd00::1",
    "fd00::2",
    "fd00::3",
    "fd00::4",
    "FD00::2",
    "free.0",
    "free.0",
    "free.1",
    "free.2",
    "free.0.new",
    "boot_id",
    "adopted",
    "lock",
    "last_reserved_ip.0",
    "attachments",
    "attachments/c1:eth0",
    "attachments/c2:eth0",
    "attachments/-:eth0",
    "x",
];

/// What a line of a file may be.
const LINES: [&str; 24] = [
    "c1\r\neth0",
    "c2\r\neth0",
    "c2",
    "10.1.0.3",
    "10.1.0.4",
    "10.1.0.77",
    "fd00::2",
    "fd00::3",
    "not an address",
    "podspan-free 1 241",
    "podspan-free 1 225",
    "podspan-free 1 0",
    "podspan-free 1 18446744073709551615",
    "podspan-free 2 241",
    "fresh 10.1.0.2",
    "fresh -",
    "fresh fd00::2",
    "lap   10.1.0.2",
    "lap   fd00::2",
    "head  0",
    "head  3",
    "head  18446744073709551615",
    "10.1.0.0/29 10.1.0.2 10.1.0.6 10.1.0.1",
    BOOT,
];

#[derive(Debug, Clone)]
enum Thing {
    File(Vec<u8>),
    /// The file that is there, with bytes changed.
    Edited(Vec<(prop::sample::Index, u8)>),
    /// The file that is there, so long.
    Cut(prop::sample::Index),
    Absent,
    Directory,
    Link(&'static str),
}

#[derive(Debug, Clone)]
enum Event {
    Damage(&'static str, Thing),
    Add(u8),
    Del(u8),
    Find(u8),
    List,
    Status,
    Gc(u8),
    Reconfigure(usize),
}

fn thing() -> impl Strategy<Value = Thing> {
    let line = (select(&LINES[..]), any::<bool>()).prop_map(|(text, padded)| match padded {
        true => format!("{text:<47}\n"),
        false => format!("{text}\n"),
    });
    let lines = prop::collection::vec(line, 0..8).prop_map(|lines| lines.concat().into_bytes());
    prop_oneof![
        4 => lines.prop_map(Thing::File),
        1 => prop::collection::vec(any::<u8>(), 0..400).prop_map(Thing::File),
        1 => Just(Thing::File(Vec::new())),
        1 => Just(Thing::File(vec![b'1'; 5000])),
        4 => prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4).prop_map(Thing::Edited),
        2 => any::<prop::sample::Index>().prop_map(Thing::Cut),
        2 => Just(Thing::Absent),
        1 => Just(Thing::Directory),
        1 => select(vec!["lock", "x", "free.0", "nowhere"]).prop_map(Thing::Link),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let who = 0..6_u8;
    prop_oneof![
        6 => (select(&NAMES[..]), thing()).prop_map(|(name, thing)| Event::Damage(name, thing)),
        8 => who.clone().prop_map(Event::Add),
        4 => who.clone().prop_map(Event::Del),
        1 => who.clone().prop_map(Event::Find),
        1 => Just(Event::List),
        1 => Just(Event::Status),
        1 => who.prop_map(Event::Gc),
        1 => (0..3_usize).prop_map(Event::Reconfigure),
    ]
}

fn configurations() -> [Vec<RangeSet>; 3] {
    let sets = |ranges| {
        let config = IpamConfig::from_json(&json!({"ranges": ranges}), "/nonexistent");
        config.unwrap().range_sets
    };
    [
        sets(json!([[{"subnet": "10.1.0.0/29"}]])),
        sets(json!([[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/125"}]])),
        sets(
            json!([[{"subnet": "fd00::/64"}], [{"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.3"}]]),
        ),
    ]
}

fn id(who: u8) -> AttachmentId {
    AttachmentId {
        container: format!("c{who}").parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
    }
}

/// Everything in the directory that has an address for its name.
fn taken(dir: &Path) -> BTreeSet<IpAddr> {
    let files = fs::read_dir(dir).into_iter().flatten();
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| {
            name.parse()
                .ok()
                .filter(|ip: &IpAddr| ip.to_string() == name)
        })
        .collect()
}

/// True for an error that ADD has to tell.
fn is_right(error: &IpamError, (dir, sets): (&Path, &[RangeSet])) -> bool {
    let taken = taken(dir);
    let is_full = |set: &RangeSet| {
        let of_set = taken.iter().filter(|ip| set.range_of(**ip).is_some());
        of_set.count() as u128 == set.total()
    };
    match error {
        IpamError::Exhausted { set, .. } => is_full(&sets[*set]),
        // The attachment's record, whatever else it says, names addresses.
        IpamError::Duplicate { .. } => true,
        // A directory or a link in the place of a file is no damaged file, nor is one that was removed.
        _ => NAMES.into_iter().any(|name| {
            let there = fs::symlink_metadata(dir.join(name));
            match there {
                Ok(it) => it.is_symlink() || it.is_dir() != (name == "attachments"),
                Err(_) => name == "attachments",
            }
        }),
    }
}

fn put(dir: &Path, name: &str, thing: Thing) {
    let path = dir.join(name);
    let _ = path.parent().map(fs::create_dir_all);
    let before = fs::read(&path).ok().filter(|bytes| !bytes.is_empty());
    let content = match (thing, before) {
        (Thing::File(bytes), _) => bytes,
        (Thing::Edited(edits), Some(mut bytes)) => {
            for (place, byte) in edits {
                let at = place.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        }
        (Thing::Cut(place), Some(mut bytes)) => {
            bytes.truncate(place.index(bytes.len()));
            bytes
        }
        (Thing::Edited(_) | Thing::Cut(_), None) => return,
        (other, _) => {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir_all(&path);
            let _ = match other {
                Thing::Directory => fs::create_dir(&path),
                Thing::Link(target) => std::os::unix::fs::symlink(target, &path),
                _ => Ok(()),
            };
            return;
        }
    };
    let _ = fs::remove_dir_all(&path);
    let _ = fs::write(&path, content);
}

fn happens(events: Vec<Event>) -> Result<(), TestCaseError> {
    let base = if Path::new("/dev/shm").is_dir() {
        "/dev/shm"
    } else {
        "/tmp"
    };
    let temp = tempfile::tempdir_in(base).unwrap();
    let store = Store::open(temp.path(), &"net".parse().unwrap(), BOOT).unwrap();
    let dir = temp.path().join("net");
    fs::create_dir(&dir).unwrap();
    let configurations = configurations();
    let mut sets = &configurations[0];
    // What the successful ADDs were given and nothing took away since.
    let mut held: BTreeMap<IpAddr, u8> = BTreeMap::new();
    for event in events {
        match event {
            Event::Damage(name, thing) => {
                put(&dir, name, thing);
                let there = taken(&dir);
                // Whoever removes the file of an address, or writes another owner into it, takes it away.
                held.retain(|ip, who| {
                    there.contains(ip)
                        && fs::read(dir.join(ip.to_string()))
                            .is_ok_and(|text| text == format!("c{who}\r\neth0").as_bytes())
                });
                // Another boot voids everything; what cannot be a boot id does not.
                let boot = fs::read(dir.join("boot_id")).unwrap_or_default();
                let boot = String::from_utf8_lossy(&boot).trim().to_owned();
                if boot != BOOT && boot.len() == BOOT.len() {
                    held.clear();
                }
            }
            Event::Add(who) => {
                // The directory of another boot is voided first, by whatever is asked.
                let _ = store.list();
                let before = taken(&dir);
                let given = match store.allocate(sets, &id(who), &[]) {
                    Ok(given) => given,
                    Err(error) => {
                        let why = is_right(&error, (&dir, sets));
                        prop_assert!(why, "ADD failed, and need not: {error}");
                        continue;
                    }
                };
                prop_assert_eq!(given.len(), sets.len());
                for (ip, set) in given.into_iter().zip(sets) {
                    prop_assert!(!before.contains(&ip), "{ip} was taken");
                    prop_assert!(!held.contains_key(&ip), "{ip} has two owners");
                    let range = set.range_of(ip);
                    prop_assert!(
                        range.is_some_and(|range| range.hands_out(ip)),
                        "{ip} is in no range"
                    );
                    held.insert(ip, who);
                }
            }
            Event::Del(who) => {
                if store.release(&id(who)).is_ok() {
                    // Without damage to its record all is free; with damage something may stay, for GC.
                    held.retain(|_, owner| *owner != who);
                }
            }
            Event::Find(who) => {
                for ip in store.find(&id(who)).unwrap_or_default() {
                    prop_assert!(taken(&dir).contains(&ip), "{ip} is found and not there");
                }
            }
            Event::List => _ = store.list(),
            Event::Status => {
                if let Err(error) = store.status(sets) {
                    let text = error.to_string();
                    prop_assert!(!text.is_empty());
                }
            }
            Event::Gc(who) => {
                let _ = store.retain(&BTreeSet::from([id(who)]));
                let there = taken(&dir);
                let mine = held.iter().filter(|(_, owner)| **owner == who);
                let lost: Vec<_> = mine.filter(|(ip, _)| !there.contains(ip)).collect();
                prop_assert!(lost.is_empty(), "GC took {lost:?} from who is valid");
                held.retain(|_, owner| *owner == who);
            }
            Event::Reconfigure(index) => sets = &configurations[index],
        }
    }
    recovers(&store, &dir, &configurations[0])
}

/// When directories are directories again and files are files, GC mends the rest: all addresses can be taken, each once.
fn recovers(store: &Store, dir: &Path, sets: &[RangeSet]) -> Result<(), TestCaseError> {
    for name in NAMES {
        let path = dir.join(name);
        let Ok(there) = fs::symlink_metadata(&path) else {
            continue;
        };
        if there.is_dir() != (name == "attachments") || there.is_symlink() {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir_all(&path);
        }
    }
    let _ = fs::create_dir(dir.join("attachments"));
    let fail = |what: &str, error: IpamError| TestCaseError::fail(format!("{what}: {error}"));
    store
        .retain(&BTreeSet::new())
        .map_err(|error| fail("GC", error))?;
    prop_assert_eq!(taken(dir), BTreeSet::new(), "after GC of everything");
    let mut given = BTreeSet::new();
    for who in 10..=u8::MAX {
        match store.allocate(sets, &id(who), &[]) {
            Ok(addresses) => {
                prop_assert!(addresses.into_iter().all(|ip| given.insert(ip)), "twice")
            }
            Err(IpamError::Exhausted { .. }) => break,
            Err(error) => return Err(fail("ADD after GC", error)),
        }
    }
    prop_assert_eq!(given.len() as u128, sets[0].total());
    Ok(())
}

#[test]
fn whatever_is_in_the_directory_no_address_has_two_owners_and_gc_mends_it() {
    fuzz::holds(&prop::collection::vec(event(), 1..24), happens);
}
