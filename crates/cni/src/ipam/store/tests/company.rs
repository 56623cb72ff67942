//! The store where others work in the same directory: host-local, plugins of our own kind, programs without manners.

use super::*;

#[test]
fn a_directory_of_host_local_is_adopted_as_it_stands() {
    let files = [
        ("10.1.0.2", "old\r\neth0"),
        ("10.1.0.3", "older"),
        ("10.1.0.4", ""),
        ("10.1.0.5", "old\r\nnet1"),
        ("last_reserved_ip.0", "10.1.0.5"),
    ];
    let it = Fixture::of_host_local(small(), &files);
    assert_eq!(
        it.add("new").unwrap(),
        [ip("10.1.0.6")],
        "the lap begins after the last reserved"
    );
    for (name, content) in files {
        assert_eq!(it.read(name), content);
    }
    assert!(matches!(it.add("old"), Err(IpamError::Duplicate { .. })));
    assert!(matches!(it.add("more"), Err(IpamError::Exhausted { .. })));
    assert_eq!(it.store.find(&id("old")).unwrap(), [ip("10.1.0.2")]);
    it.del("old");
    it.del("older");
    assert_eq!(it.add("x").unwrap(), [ip("10.1.0.2")]);
    assert_eq!(it.add("y").unwrap(), [ip("10.1.0.3")]);
    it.store.retain(&BTreeSet::from([id("x")])).unwrap();
    let left: Vec<IpAddr> = it
        .store
        .list()
        .unwrap()
        .into_iter()
        .map(|taken| taken.address)
        .collect();
    assert_eq!(left, [ip("10.1.0.2")], "damaged files go with GC");
}

#[test]
fn what_host_local_frees_and_takes_beside_us_is_seen() {
    let it = Fixture::of_host_local(
        small(),
        &[
            ("10.1.0.2", "old\r\neth0"),
            ("last_reserved_ip.0", "10.1.0.2"),
        ],
    );
    assert_eq!(it.fill().len(), 4);
    it.unlink("10.1.0.2");
    assert_eq!(
        it.add("new").unwrap(),
        [ip("10.1.0.2")],
        "one more lap finds what the queue was not told"
    );
    it.del("fill1");
    it.write("10.1.0.4", "theirs\r\neth0");
    assert!(matches!(it.add("late"), Err(IpamError::Exhausted { .. })));
    it.del("fill1");
    assert_eq!(it.read("10.1.0.4"), "theirs\r\neth0");
    it.del("theirs");
    assert_eq!(it.add("late").unwrap(), [ip("10.1.0.4")]);
}

#[test]
fn a_directory_that_host_local_took_back_for_a_while_is_shared_too() {
    let it = Fixture::new(small());
    it.add("ours").unwrap();
    it.write("10.1.0.3", "theirs\r\neth0");
    it.write("last_reserved_ip.0", "10.1.0.3");
    it.del("theirs");
    assert_eq!(
        it.files(),
        [
            "10.1.0.2",
            "attachments",
            "boot_id",
            "free.0",
            "last_reserved_ip.0",
            "lock"
        ]
    );
}

/// The directory outlives boots: we worked there in the last one, then in this one host-local, now we again.
#[test]
fn what_host_local_gave_in_this_boot_outlives_our_records_of_the_last() {
    let it = Fixture::new(small());
    for container in ["old", "again", "gone"] {
        it.add(container).unwrap();
    }
    // DEL of two came to host-local, which then gave their addresses to others: one of the same name, much later.
    it.write("10.1.0.3", "again\r\neth0");
    age(&it, "attachments/again:eth0", 100);
    it.write("10.1.0.4", "living\r\neth0");
    it.write("10.1.0.5", "");
    it.write("last_reserved_ip.0", "10.1.0.4");
    let rebooted = Fixture {
        store: store_in(&it.temp, "0c5ab3c4-boot-2"),
        ..it
    };
    assert_eq!(
        rebooted.store.find(&id("living")).unwrap(),
        [ip("10.1.0.4")]
    );
    assert_eq!(rebooted.store.find(&id("old")).unwrap(), [] as [IpAddr; 0]);
    let kept = ["10.1.0.3", "10.1.0.4", "10.1.0.5", "adopted"];
    assert_eq!(rebooted.files()[..4], kept);
    assert_eq!(rebooted.fill(), ["10.1.0.6", "10.1.0.2"].map(ip));
    rebooted.del("living");
    assert_eq!(rebooted.add("new").unwrap(), [ip("10.1.0.4")]);
}

#[test]
fn what_no_record_tells_of_is_void_only_when_it_is_older_than_this_boot_and_than_what_we_wrote_in_the_last()
 {
    const DAY: u64 = 24 * 60 * 60;
    const YEAR: u64 = 366 * DAY;
    let reboot = |ours: u64, theirs: u64| {
        let it = Fixture::new(small());
        it.add("old").unwrap();
        it.write("10.1.0.3", "theirs\r\neth0");
        age(&it, "10.1.0.3", theirs);
        for name in ["boot_id", "free.0", "attachments/old:eth0", "10.1.0.2"] {
            age(&it, name, ours);
        }
        let left = store_in(&it.temp, "0c5ab3c4-boot-2").list().unwrap();
        left.iter().map(|left| left.address).collect::<Vec<_>>()
    };
    assert_eq!(reboot(9 * YEAR, 10 * YEAR), [] as [IpAddr; 0]);
    // Our last word was before it: the clock may have been wrong when this boot began, and was put right.
    assert_eq!(reboot(9 * YEAR, 8 * YEAR), [ip("10.1.0.3")]);
    // It is of this boot, whatever our own files say.
    assert_eq!(reboot(0, 0), [ip("10.1.0.3")]);
}

/// Makes a file of the store so many seconds older.
fn age(it: &Fixture, name: &str, seconds: u64) {
    let file = fs::File::open(it.store.path.join(name)).unwrap();
    let written = file.metadata().unwrap().modified().unwrap();
    let age = std::time::Duration::from_secs(seconds);
    file.set_modified(written - age).unwrap();
}

#[test]
fn two_plugins_never_take_one_address() {
    let it = Fixture::new(sets(
        json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]]),
    ));
    let mut all: Vec<IpAddr> = std::thread::scope(|scope| {
        let worker = |thread: usize| {
            // A handle and a lock of its own: to flock, a thread is as foreign as a process.
            let (store, sets) = (store_in(&it.temp, BOOT), &it.sets);
            scope.spawn(move || {
                let add = |i: usize| {
                    store
                        .allocate(sets, &id(format!("t{thread}-{i}")), &[])
                        .unwrap()
                };
                for i in 0..25 {
                    add(i);
                }
                for i in 0..10 {
                    store.release(&id(format!("t{thread}-{i}"))).unwrap();
                }
                (25..35).for_each(|i| drop(add(i)));
                let mine = (10..35).map(|i| store.find(&id(format!("t{thread}-{i}"))).unwrap());
                mine.flatten().collect::<Vec<_>>()
            })
        };
        let workers: Vec<_> = (0..8).map(worker).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap())
            .collect()
    });
    assert_eq!(all.len(), 400);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 400);
    assert_eq!(it.store.list().unwrap().len(), 400);
}

#[test]
fn a_program_that_ignores_the_lock_takes_no_address_twice() {
    let it = Fixture::new(sets(json!([[{"subnet": "10.1.0.0/24"}]])));
    let other = std::thread::scope(|scope| {
        let rude = scope.spawn(|| {
            let free =
                |i: &u8| fs::File::create_new(it.store.path.join(format!("10.1.0.{i}"))).is_ok();
            (2..=200).filter(free).count()
        });
        it.add("first").unwrap();
        for i in 0..50 {
            it.add(i).unwrap();
        }
        rude.join().unwrap()
    });
    let taken = it.store.list().unwrap();
    assert_eq!(
        taken.iter().filter(|taken| taken.owner.is_some()).count(),
        51
    );
    assert_eq!(
        taken.iter().filter(|taken| taken.owner.is_none()).count(),
        other
    );
}
