use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::ipam::range::IpamConfig;

fn sets(subnets: &[&str]) -> Vec<RangeSet> {
    let ranges: Vec<_> = subnets
        .iter()
        .map(|subnet| json!([{"subnet": subnet}]))
        .collect();
    IpamConfig::from_json(&json!({ "ranges": ranges }), "/run/podspan/ipam")
        .unwrap()
        .range_sets
}

fn set(subnet: &str) -> RangeSet {
    sets(&[subnet]).remove(0)
}

fn directory(temp: &TempDir) -> Directory {
    Directory::open(temp.path()).unwrap().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn next(directory: &Directory, set: &RangeSet) -> Option<IpAddr> {
    let mut queue = Queue::open(directory, 0, set).unwrap();
    let found = queue.peek().unwrap();
    assert_eq!(queue.peek().unwrap(), found, "looking changes nothing");
    queue.advance().unwrap();
    found
}

#[test]
fn a_person_can_read_the_file() {
    let temp = TempDir::new().unwrap();
    let (directory, set) = (directory(&temp), set("10.244.1.0/24"));
    assert_eq!(next(&directory, &set), Some(ip("10.244.1.2")));
    append(&directory, ip("10.244.1.2")).unwrap();
    let text = fs::read_to_string(temp.path().join("free.0")).unwrap();
    let trimmed: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert_eq!(
        trimmed,
        [
            "podspan-free 1 250",
            "fresh 10.244.1.3",
            "lap   10.244.1.2",
            "head  0",
            "10.244.1.0/24 10.244.1.1-10.244.1.254 gateway 10.244.1.1",
            "",
            "10.244.1.2",
        ]
    );
}

#[test]
fn a_lap_then_the_oldest_line() {
    let temp = TempDir::new().unwrap();
    let (directory, set) = (directory(&temp), set("10.1.0.0/29"));
    append(&directory, ip("10.1.0.5")).unwrap();
    assert_eq!(
        next(&directory, &set),
        Some(ip("10.1.0.2")),
        "a queue not yet begun is no error"
    );
    append(&directory, ip("10.1.0.2")).unwrap();
    let rest: Vec<_> = std::iter::from_fn(|| next(&directory, &set)).collect();
    assert_eq!(
        rest,
        ["10.1.0.3", "10.1.0.4", "10.1.0.5", "10.1.0.6", "10.1.0.2"].map(ip)
    );
}

#[test]
fn a_damaged_or_lost_or_foreign_queue_is_begun_anew() {
    let good = {
        let temp = TempDir::new().unwrap();
        next(&directory(&temp), &set("10.1.0.0/29"));
        fs::read(temp.path().join("free.0")).unwrap()
    };
    let good = String::from_utf8(good).unwrap();
    for damage in [
        String::new(),
        "\0".repeat(300),
        "podspan-free 1 99999999999999999999".to_owned(),
        "podspan-free 1 3".to_owned(),
        format!("podspan-free 1 5\n{}", "é".repeat(200)),
        good.replace("fresh 10.1.0.3", "fresh 10.9.9.9"),
        good.replace("lap   10.1.0.2", "lap   10.1.0.0"),
        good.replace("head  0", "head  x"),
        good.replace("gateway 10.1.0.1", "gateway 10.1.0.6"),
        good[..200].to_owned(),
    ] {
        let temp = TempDir::new().unwrap();
        fs::write(temp.path().join("free.0"), &damage).unwrap();
        append(&directory(&temp), ip("10.1.0.4")).unwrap();
        assert_eq!(
            next(&directory(&temp), &set("10.1.0.0/29")),
            Some(ip("10.1.0.2")),
            "{damage:?}"
        );
    }
}

#[test]
fn half_a_line_is_written_over_and_a_stranger_is_passed() {
    let temp = TempDir::new().unwrap();
    let (directory, set) = (directory(&temp), set("10.1.0.0/30"));
    assert_eq!(next(&directory, &set), Some(ip("10.1.0.2")));
    let path = temp.path().join("free.0");
    let mut text = fs::read_to_string(&path).unwrap();
    for stranger in ["10.1.0.1", "10.1.0.3", "10.9.0.2", "fd00::2"] {
        text.push_str(&line(stranger));
    }
    fs::write(&path, text + "10.1.").unwrap();
    append(&directory, ip("10.1.0.2")).unwrap();
    assert_eq!(next(&directory, &set), Some(ip("10.1.0.2")));
    assert_eq!(next(&directory, &set), None);
}

#[test]
fn a_damaged_line_loses_no_address() {
    let temp = TempDir::new().unwrap();
    let (directory, set) = (directory(&temp), set("10.1.0.0/29"));
    while next(&directory, &set).is_some() {}
    for freed in ["10.1.0.4", "10.1.0.3"] {
        append(&directory, ip(freed)).unwrap();
    }
    let path = temp.path().join("free.0");
    let (intact, mut damaged) = (fs::read(&path).unwrap(), fs::read(&path).unwrap());
    let second_last = damaged.len() - 2 * LINE as usize;
    damaged[second_last..].fill(0);
    fs::write(&path, &damaged).unwrap();
    assert_eq!(
        std::iter::from_fn(|| next(&directory, &set)).count(),
        5,
        "a new lap"
    );
    let past = String::from_utf8(intact)
        .unwrap()
        .replace("head  0", "head  9");
    fs::write(&path, past).unwrap();
    assert_eq!(
        std::iter::from_fn(|| next(&directory, &set)).count(),
        5,
        "begun anew"
    );
}

#[test]
fn an_address_goes_to_every_queue_that_it_concerns() {
    let temp = TempDir::new().unwrap();
    let directory = directory(&temp);
    let sets = sets(&["10.1.0.0/30", "fd00::/126"]);
    for (index, set) in sets.iter().enumerate() {
        let mut queue = Queue::open(&directory, index, set).unwrap();
        while queue.peek().unwrap().is_some() {
            queue.advance().unwrap();
        }
    }
    append(&directory, ip("fd00::3")).unwrap();
    assert_eq!(Queue::open(&directory, 0, &sets[0]).unwrap().waiting(), 0);
    let mut second = Queue::open(&directory, 1, &sets[1]).unwrap();
    assert_eq!(
        (second.waiting(), second.peek().unwrap()),
        (1, Some(ip("fd00::3")))
    );
    fs::remove_file(temp.path().join("free.0")).unwrap();
    append(&directory, ip("fd00::2")).unwrap();
    assert_eq!(Queue::open(&directory, 1, &sets[1]).unwrap().waiting(), 2);
}

#[test]
fn the_endless_lap_of_a_64_pauses_while_enough_freed_addresses_wait() {
    let temp = TempDir::new().unwrap();
    let (directory, set) = (directory(&temp), set("fd00::/64"));
    assert_eq!(next(&directory, &set), Some(ip("fd00::2")));
    let path = temp.path().join("free.0");
    let mut text = fs::read_to_string(&path).unwrap();
    for i in 0..WAITING_MAX - 1 {
        text.push_str(&line(&format!("fd00::a:{i:x}")));
    }
    fs::write(&path, text).unwrap();
    assert_eq!(next(&directory, &set), Some(ip("fd00::3")));
    append(&directory, ip("fd00::2")).unwrap();
    assert_eq!(next(&directory, &set), Some(ip("fd00::a:0")));
    assert_eq!(next(&directory, &set), Some(ip("fd00::4")));
}

#[test]
fn lines_of_the_past_are_dropped_now_and_then() {
    let temp = TempDir::new().unwrap();
    let (directory, set) = (directory(&temp), set("10.1.0.0/29"));
    let mut order: std::collections::VecDeque<_> =
        (0..5).filter_map(|_| next(&directory, &set)).collect();
    let mut longest = 0;
    for _ in 0..3 * COMPACT_MIN {
        let oldest = order.pop_front().unwrap();
        append(&directory, oldest).unwrap();
        assert_eq!(next(&directory, &set), Some(oldest));
        order.push_back(oldest);
        longest = longest.max(fs::metadata(temp.path().join("free.0")).unwrap().len());
    }
    assert!(longest <= (COMPACT_MIN + 20) * LINE, "{longest}");
}
