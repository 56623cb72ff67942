//! The store against its promises: by example here, by a naive model and by killing it at every step in `tests/`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::ipam::directory::steps;
use crate::ipam::range::IpamConfig;

mod company;
mod kill;
mod model;

const BOOT: &str = "0c5ab3c4-boot-1";

/// A store in a directory of its own, with what it serves.
struct Fixture {
    temp: TempDir,
    store: Store,
    sets: Vec<RangeSet>,
}

fn sets(ranges: serde_json::Value) -> Vec<RangeSet> {
    IpamConfig::from_json(&json!({ "ranges": ranges }), "/run/podspan/ipam")
        .unwrap()
        .range_sets
}

fn small() -> Vec<RangeSet> {
    sets(json!([[{"subnet": "10.1.0.0/29"}]]))
}

fn dual() -> Vec<RangeSet> {
    sets(json!([[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/64"}]]))
}

fn id(container: impl std::fmt::Display) -> AttachmentId {
    AttachmentId {
        container: container.to_string().parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn store_in(temp: &TempDir, boot: &str) -> Store {
    Store::open(&temp.path().join("ipam"), &"podspan".parse().unwrap(), boot).unwrap()
}

/// On tmpfs where there is one: thousands of files are made.
fn temp() -> TempDir {
    TempDir::new_in("/dev/shm")
        .or_else(|_| TempDir::new())
        .unwrap()
}

impl Fixture {
    fn new(sets: Vec<RangeSet>) -> Self {
        let temp = temp();
        let store = store_in(&temp, BOOT);
        Self { temp, store, sets }
    }

    /// A directory as host-local leaves it.
    fn of_host_local(sets: Vec<RangeSet>, files: &[(&str, &str)]) -> Self {
        let fixture = Self::new(sets);
        fs::create_dir_all(&fixture.store.path).unwrap();
        fixture.write("lock", "");
        for (name, content) in files {
            fixture.write(name, content);
        }
        fixture
    }

    fn add(&self, container: impl std::fmt::Display) -> Result<Vec<IpAddr>, IpamError> {
        self.store.allocate(&self.sets, &id(container), &[])
    }

    fn del(&self, container: impl std::fmt::Display) {
        self.store.release(&id(container)).unwrap();
    }

    fn fill(&self) -> Vec<IpAddr> {
        let all = (0..).map_while(|i| self.add(format!("fill{i}")).ok());
        all.flatten().collect()
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.store.path.join(name), content).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.store.path.join(name)).unwrap()
    }

    fn unlink(&self, name: &str) {
        fs::remove_file(self.store.path.join(name)).unwrap();
    }

    fn files(&self) -> Vec<String> {
        let listed = fs::read_dir(&self.store.path).unwrap();
        let mut names: Vec<String> = listed
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn the_directory_is_what_host_local_reads() {
    let it = Fixture::new(dual());
    assert_eq!(it.add("c1").unwrap(), ["10.1.0.2", "fd00::2"].map(ip));
    assert_eq!(
        it.files(),
        [
            "10.1.0.2",
            "attachments",
            "boot_id",
            "fd00::2",
            "free.0",
            "free.1",
            "lock"
        ]
    );
    for name in ["10.1.0.2", "fd00::2"] {
        assert_eq!(it.read(name), "c1\r\neth0");
    }
    assert_eq!(it.read("attachments/c1:eth0"), "10.1.0.2\nfd00::2\n");
    for name in it.files() {
        let metadata = fs::metadata(it.store.path.join(&name)).unwrap();
        let mode = if metadata.is_dir() { 0o755 } else { 0o644 };
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
    }
    let all: Vec<_> = it.store.list().unwrap();
    assert_eq!(all.len(), 2);
    assert!(all.iter().all(|taken| taken.owner == Some(id("c1"))));
}

#[test]
fn del_frees_and_del_again_is_the_same() {
    let it = Fixture::new(dual());
    it.del("never-added");
    assert!(!it.store.path.exists(), "DEL makes no directory");
    it.add("c1").unwrap();
    assert_eq!(
        it.store.find(&id("c1")).unwrap(),
        ["10.1.0.2", "fd00::2"].map(ip)
    );
    it.del("c1");
    it.del("c1");
    assert_eq!(
        it.files(),
        ["attachments", "boot_id", "free.0", "free.1", "lock"]
    );
    assert_eq!(
        fs::read_dir(it.store.path.join("attachments"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(it.store.find(&id("c1")).unwrap(), [] as [IpAddr; 0]);
}

#[test]
fn a_second_add_is_refused_and_says_what_is_held() {
    let it = Fixture::new(dual());
    it.add("c1").unwrap();
    let refused = it.add("c1").unwrap_err();
    assert_eq!(
        refused.to_string(),
        "c1/eth0 holds 10.1.0.2 and fd00::2 already; run DEL first"
    );
    let second_interface = AttachmentId {
        ifname: "net1".parse().unwrap(),
        ..id("c1")
    };
    assert_eq!(
        it.store.allocate(&it.sets, &second_interface, &[]).unwrap(),
        ["10.1.0.3", "fd00::3"].map(ip)
    );
}

#[test]
fn least_recently_freed_address_comes_first() {
    let it = Fixture::new(small());
    for (i, container) in ["a", "b", "c"].into_iter().enumerate() {
        assert_eq!(
            it.add(container).unwrap(),
            [ip(&format!("10.1.0.{}", i + 2))]
        );
    }
    it.del("b");
    it.del("a");
    assert_eq!(
        it.add("d").unwrap(),
        [ip("10.1.0.5")],
        "never used comes before freed"
    );
    assert_eq!(it.add("e").unwrap(), [ip("10.1.0.6")]);
    assert_eq!(it.add("f").unwrap(), [ip("10.1.0.3")], "b's, freed first");
    assert_eq!(it.add("g").unwrap(), [ip("10.1.0.2")]);
}

#[test]
fn exhaustion_is_said_with_counts_and_takes_nothing() {
    let it = Fixture::new(sets(
        json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/29"}]]),
    ));
    it.store.status(&it.sets).unwrap();
    assert_eq!(it.fill().len(), 10);
    let text = format!(
        "range set 1 (10.2.0.1-10.2.0.6) is exhausted: all of its 5 addresses are taken in {}",
        it.store.path.display()
    );
    assert_eq!(it.add("late").unwrap_err().to_string(), text);
    assert_eq!(it.store.status(&it.sets).unwrap_err().to_string(), text);
    assert_eq!(
        it.store.list().unwrap().len(),
        10,
        "nothing of the first set was kept"
    );
    it.del("fill3");
    it.store.status(&it.sets).unwrap();
    assert_eq!(it.add("late").unwrap().len(), 2);
}

#[test]
fn state_of_another_boot_is_void_and_foreign_files_stay() {
    let it = Fixture::new(dual());
    it.fill();
    it.write("last_reserved_ip.0", "10.1.0.4");
    it.write("README", "somebody's");
    let rebooted = store_in(&it.temp, "0c5ab3c4-boot-2");
    assert_eq!(rebooted.find(&id("fill0")).unwrap(), [] as [IpAddr; 0]);
    assert_eq!(rebooted.list().unwrap(), []);
    assert_eq!(it.files(), ["README", "attachments", "boot_id", "lock"]);
    assert_eq!(
        rebooted.allocate(&it.sets, &id("fill0"), &[]).unwrap(),
        ["10.1.0.2", "fd00::2"].map(ip)
    );
}

#[test]
fn an_absent_or_empty_boot_id_is_not_another_boot() {
    for damage in [None, Some("")] {
        let it = Fixture::new(small());
        it.add("c1").unwrap();
        match damage {
            None => it.unlink("boot_id"),
            Some(text) => it.write("boot_id", text),
        }
        assert_eq!(it.store.find(&id("c1")).unwrap(), [ip("10.1.0.2")]);
        assert_eq!(it.add("c2").unwrap(), [ip("10.1.0.3")]);
        assert_eq!(it.read("boot_id"), format!("{BOOT}\n"));
    }
    let network = "podspan".parse().unwrap();
    assert!(Store::open(Path::new("/run"), &network, " \n").is_err());
    assert!(!boot_id().unwrap().is_empty());
}

#[test]
fn a_damaged_address_file_is_taken_until_its_record_or_gc_frees_it() {
    let it = Fixture::new(small());
    it.add("c1").unwrap();
    it.write("10.1.0.2", "");
    it.write("10.1.0.3", "\0\0");
    assert_eq!(it.add("c2").unwrap(), [ip("10.1.0.4")]);
    assert_eq!(
        it.store.find(&id("c1")).unwrap(),
        [] as [IpAddr; 0],
        "CHECK sees the damage"
    );
    it.store
        .retain(&BTreeSet::from([id("c1"), id("c2")]))
        .unwrap();
    assert_eq!(
        it.files()[..2],
        ["10.1.0.2", "10.1.0.4"],
        "on record is kept, without one it goes"
    );
    it.del("c1");
    it.del("c2");
    assert_eq!(it.store.list().unwrap(), []);
    assert_eq!(it.fill().len(), 5);
}

#[test]
fn a_damaged_record_stops_no_add_and_no_del() {
    for damage in ["", "\0\0\0", "10.1.0.2\n10.1."] {
        let it = Fixture::new(small());
        it.add("c1").unwrap();
        it.write("attachments/c1:eth0", damage);
        it.write("attachments/c2:eth0", damage);
        assert!(
            matches!(it.add("c1"), Err(IpamError::Duplicate { .. })),
            "{damage:?}"
        );
        it.write("10.1.0.6", "");
        it.store
            .retain(&BTreeSet::from([id("c1"), id("c2")]))
            .unwrap();
        assert!(
            it.files().contains(&"10.1.0.6".to_owned()),
            "in doubt, it might be c2's"
        );
        assert_eq!(it.add("c2").unwrap(), [ip("10.1.0.3")]);
        it.del("c1");
        assert_eq!(it.store.list().unwrap().len(), 2, "{damage:?}");
    }
}

#[test]
fn another_owners_address_is_never_freed() {
    let it = Fixture::new(small());
    it.add("c1").unwrap();
    it.unlink("10.1.0.2");
    it.write("10.1.0.2", "c2\r\neth0");
    it.del("c1");
    assert_eq!(it.read("10.1.0.2"), "c2\r\neth0");
    assert_eq!(it.fill().len(), 4);
}

#[test]
fn gc_frees_all_but_the_valid() {
    let it = Fixture::new(small());
    for container in ["a", "b", "c"] {
        it.add(container).unwrap();
    }
    it.unlink("attachments/c:eth0");
    it.write("attachments/foreign", "stays");
    it.store
        .retain(&BTreeSet::from([id("b"), id("unknown")]))
        .unwrap();
    assert_eq!(
        it.store.list().unwrap(),
        [Taken {
            address: ip("10.1.0.3"),
            owner: Some(id("b"))
        }]
    );
    assert_eq!(it.read("attachments/foreign"), "stays");
    assert_eq!(it.fill().len(), 4);
}

#[test]
fn del_goes_on_after_a_failure_and_can_be_repeated() {
    let it = Fixture::new(dual());
    it.add("c1").unwrap();
    it.unlink("10.1.0.2");
    fs::create_dir(it.store.path.join("10.1.0.2")).unwrap();
    let failed = it.store.release(&id("c1")).unwrap_err().to_string();
    assert!(
        failed.starts_with("read ") && failed.contains("/10.1.0.2: "),
        "{failed}"
    );
    assert!(
        !it.files().contains(&"fd00::2".to_owned()),
        "the second address is free"
    );
    assert_eq!(
        it.read("attachments/c1:eth0"),
        "10.1.0.2\nfd00::2\n",
        "what is left to do is on record"
    );
    fs::remove_dir(it.store.path.join("10.1.0.2")).unwrap();
    it.del("c1");
    assert!(!it.store.path.join("attachments/c1:eth0").exists());
    assert_eq!(it.store.find(&id("c1")).unwrap(), [] as [IpAddr; 0]);
}

#[test]
fn changed_ranges_leave_old_allocations_until_del() {
    let it = Fixture::new(small());
    it.add("old").unwrap();
    let moved = sets(
        json!([[{"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.4", "rangeEnd": "10.1.0.5"}]]),
    );
    let new: Vec<_> = (0..2)
        .map(|i| it.store.allocate(&moved, &id(i), &[]).unwrap())
        .collect();
    assert_eq!(new, [[ip("10.1.0.4")], [ip("10.1.0.5")]]);
    assert_eq!(it.store.find(&id("old")).unwrap(), [ip("10.1.0.2")]);
    it.del("old");
    assert!(matches!(
        it.store.allocate(&moved, &id("late"), &[]),
        Err(IpamError::Exhausted { total: 2, .. })
    ));
}

#[test]
fn a_failing_add_leaves_nothing() {
    let it = Fixture::new(dual());
    it.add("c1").unwrap();
    let before = it.files();
    fs::remove_dir_all(it.store.path.join("attachments")).unwrap();
    let failed = it.add("c2").unwrap_err();
    assert!(
        matches!(
            failed,
            IpamError::Io {
                operation: "link",
                ..
            }
        ),
        "{failed}"
    );
    fs::create_dir(it.store.path.join("attachments")).unwrap();
    assert_eq!(it.files(), before);
    let long = it.add("c".repeat(300)).unwrap_err();
    assert!(matches!(long, IpamError::TooLong { bytes: 305, .. }));
    it.del("c".repeat(300));
}

#[test]
fn cost_does_not_grow_as_the_range_fills() {
    let it = Fixture::new(sets(json!([[{"subnet": "10.0.0.0/15"}]])));
    let cost = |name: &str| {
        let (add, _) = steps::count(|| it.add(name).unwrap());
        let (status, _) = steps::count(|| it.store.status(&it.sets).unwrap());
        let (del, ()) = steps::count(|| it.del(name));
        (add, status, del)
    };
    it.add("first").unwrap();
    let empty = cost("probe");
    for upto in [5_000, 60_000] {
        let from = it.store.list().unwrap().len();
        (from..upto).for_each(|i| drop(it.add(i).unwrap()));
        assert_eq!(cost("probe"), empty, "with {upto} taken");
    }
    assert!(empty.0 <= 20 && empty.2 <= 20, "{empty:?}");
}

#[test]
fn an_address_that_was_asked_for_is_given_or_refused_and_the_queue_does_not_move() {
    let it = Fixture::new(small());
    let wanted: IpAddr = "10.1.0.5".parse().unwrap();
    assert_eq!(
        it.store.allocate(&it.sets, &id("c1"), &[wanted]).unwrap(),
        [wanted]
    );
    let taken = it
        .store
        .allocate(&it.sets, &id("c2"), &[wanted])
        .unwrap_err();
    assert!(matches!(taken, IpamError::Taken { address, .. } if address == wanted));
    for unserved in ["10.1.0.1", "10.9.9.9", "fd00::2"] {
        let unserved: IpAddr = unserved.parse().unwrap();
        let error = it
            .store
            .allocate(&it.sets, &id("c2"), &[unserved])
            .unwrap_err();
        assert!(matches!(error, IpamError::Unserved { addresses } if addresses == [unserved]));
    }
    let next = it.store.allocate(&it.sets, &id("c2"), &[]).unwrap();
    assert_eq!(next, ["10.1.0.2".parse::<IpAddr>().unwrap()]);
}
