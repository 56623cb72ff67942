//! What it was measured on, and with which versions.

use std::process::Command;
use std::time::Duration;

/// A list in Markdown.
pub fn describe() -> String {
    let cpu = field("/proc/cpuinfo", "model name");
    let virtually = match field("/proc/cpuinfo", "flags").contains("hypervisor") {
        true => "virtual ",
        false => "",
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal");
    let memory: usize = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = release.trim().split('-').next().unwrap_or_default();
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let lines = [
        format!("date: {}", told("date", &["-u", "+%F"])),
        format!(
            "machine: {cores} {virtually}cores, {cpu}, {} GiB",
            memory.div_ceil(1 << 20)
        ),
        format!(
            "system: Linux {kernel}, {}",
            system.unwrap_or_default().trim_matches('"')
        ),
        format!(
            "podspan-cni: {}, {}",
            env!("CARGO_PKG_VERSION"),
            told("rustc", &["-V"])
        ),
        format!(
            "reference: containernetworking-plugins {}, {}",
            told(
                "dpkg-query",
                &["-W", "-f", "${Version}", "containernetworking-plugins"]
            ),
            told("iptables", &["-V"]),
        ),
    ];
    lines.map(|line| format!("* {line}\n")).concat()
}

/// The part of two seconds in which the processors had nothing to do, in percent: of a quiet machine nearly all.
pub fn idle() -> f64 {
    // The first line of /proc/stat sums up all processors; the fourth and fifth figure are idleness (proc(5)).
    let look = || {
        let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<f64> = line
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        (
            ticks.iter().skip(3).take(2).sum::<f64>(),
            ticks.iter().sum::<f64>(),
        )
    };
    let before = look();
    std::thread::sleep(Duration::from_secs(2));
    let after = look();
    100.0 * (after.0 - before.0) / (after.1 - before.1)
}

/// The first value of that name in a file of `name: value`.
fn field(file: &str, name: &str) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let values = text.lines().filter_map(|line| line.split_once(':'));
    let mut named = values.filter(|(known, _)| known.trim() == name);
    named
        .next()
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}

fn told(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_else(|error| format!("{program}: {error}"))
}
