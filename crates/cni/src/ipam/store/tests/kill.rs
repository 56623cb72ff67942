//! The store killed before each of its steps: whatever is left, the next DEL finds all of it, and nothing is doubled.

use super::*;

/// Kills `work` at each step in turn, in a world of its own that `prepare` made, and looks at the ruins.
fn at_each_step<T>(
    prepare: impl Fn() -> Fixture,
    work: impl Fn(&Fixture) -> T,
    look: impl Fn(&Fixture),
) {
    for step in 0.. {
        let it = prepare();
        let survived = steps::kill_at(step, || work(&it)).is_some();
        look(&it);
        if survived {
            assert!(step > 3, "there were steps to die at");
            return;
        }
    }
}

/// After the DEL of `mine` the neighbours alone hold addresses, and the rest of the sets is handed out, each once.
fn nothing_is_leaked_or_doubled(it: &Fixture, mine: &str, neighbours: &[&str]) {
    it.del(mine);
    let taken = it.store.list().unwrap();
    let mut owners: Vec<_> = taken
        .iter()
        .filter_map(|taken| taken.owner.clone())
        .collect();
    owners.sort();
    let expected = neighbours
        .iter()
        .flat_map(|name| vec![id(name); it.sets.len()]);
    assert_eq!(owners, expected.collect::<Vec<_>>());
    assert_eq!(taken.len(), owners.len());
    let mut all = it.fill();
    all.extend(taken.iter().map(|taken| taken.address));
    let total: u128 = it.sets.iter().map(RangeSet::total).sum();
    assert_eq!(all.len() as u128, total);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
}

fn two_small_sets() -> Vec<RangeSet> {
    sets(json!([[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00::/125", "rangeEnd": "fd00::6"}]]))
}

/// `a` and `b` hold addresses; others were freed, so that the queues have lines.
fn in_use() -> Fixture {
    let it = Fixture::new(two_small_sets());
    for name in ["x", "a", "y", "b"] {
        it.add(name).unwrap();
    }
    it.del("y");
    it.del("x");
    it
}

/// The same with the lap complete, so that the next address comes from the queue.
fn after_the_lap() -> Fixture {
    let it = in_use();
    it.add("z").unwrap();
    it.del("z");
    it
}

#[test]
fn the_first_add_of_all_may_die_anywhere() {
    at_each_step(
        || Fixture::new(two_small_sets()),
        |it| it.add("c").unwrap(),
        |it| nothing_is_leaked_or_doubled(it, "c", &[]),
    );
}

#[test]
fn an_add_may_die_anywhere() {
    for prepare in [in_use, after_the_lap] {
        at_each_step(
            prepare,
            |it| it.add("c").unwrap(),
            |it| nothing_is_leaked_or_doubled(it, "c", &["a", "b"]),
        );
    }
}

#[test]
fn a_del_may_die_anywhere() {
    for prepare in [in_use, after_the_lap] {
        at_each_step(
            prepare,
            |it| it.del("a"),
            |it| nothing_is_leaked_or_doubled(it, "a", &["b"]),
        );
    }
}

#[test]
fn gc_may_die_anywhere() {
    let valid = BTreeSet::from([id("b")]);
    at_each_step(
        in_use,
        |it| it.store.retain(&valid).unwrap(),
        |it| nothing_is_leaked_or_doubled(it, "a", &["b"]),
    );
}

#[test]
fn the_first_add_after_a_reboot_may_die_anywhere() {
    let rebooted = || {
        let it = in_use();
        Fixture {
            store: store_in(&it.temp, "0c5ab3c4-boot-2"),
            ..it
        }
    };
    at_each_step(
        rebooted,
        |it| it.add("c").unwrap(),
        |it| nothing_is_leaked_or_doubled(it, "c", &[]),
    );
}

#[test]
fn an_adoption_may_die_anywhere() {
    let files = [
        ("10.1.0.3", "a\r\neth0"),
        ("fd00::3", "a\r\neth0"),
        ("last_reserved_ip.0", "10.1.0.3"),
        ("last_reserved_ip.1", "fd00::3"),
    ];
    at_each_step(
        || Fixture::of_host_local(two_small_sets(), &files),
        |it| it.add("c").unwrap(),
        |it| nothing_is_leaked_or_doubled(it, "c", &["a"]),
    );
}

#[test]
fn a_killed_add_without_its_del_costs_the_next_add_nothing() {
    at_each_step(
        in_use,
        |it| it.add("c").unwrap(),
        |it| assert!(it.add("d").is_ok()),
    );
}

#[test]
fn del_after_a_killed_add_spares_whoever_got_the_candidate_instead() {
    let it = in_use();
    it.write("attachments/c:eth0", "10.1.0.6\nfd00::6\n");
    assert_eq!(it.add("winner").unwrap(), ["10.1.0.6", "fd00::6"].map(ip));
    it.del("c");
    assert_eq!(it.store.find(&id("winner")).unwrap().len(), 2);
}
