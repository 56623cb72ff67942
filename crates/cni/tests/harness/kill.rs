//! Killing a process at each of its system calls: `strace` lists those of one run, and kills another at one of them.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use super::run_raw;

/// Makes the process behind the words of a wrapper.
pub type Make<'a> = &'a dyn Fn(&[String]) -> Command;

/// The system calls of one run, in order.
pub fn trace(make: Make<'_>, conf: &Value) -> Vec<String> {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let strace = ["strace", "-f", "-qq", "-o", path].map(str::to_owned);
    let output = run_raw(&mut make(&strace), conf);
    assert!(output.status.success(), "under strace: {output:?}");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| line.split_once(' ').unwrap().1.trim_start().to_owned())
        .collect()
}

/// Each system call with its number among those of the same name, as `strace --inject` counts them.
pub fn points(trace: &[String]) -> Vec<(String, usize)> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let calls = trace
        .iter()
        .filter_map(|line| line.split_once('('))
        .map(|(name, _)| name);
    // The first is strace's own exec of the plugin; a kill at the end of the process comes too late to matter.
    let calls = calls
        .skip(1)
        .filter(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_'));
    calls
        .map(|name| {
            let number = seen.entry(name).or_default();
            *number += 1;
            // strace counts its exec, too.
            (name.to_owned(), *number + usize::from(name == "execve"))
        })
        .filter(|(name, _)| name != "exit_group")
        .collect()
}

/// Runs the process and kills it when it enters the system call.
pub fn run_killed(make: Make<'_>, conf: &Value, at: &(String, usize)) {
    let (name, number) = at;
    let inject = format!("--inject={name}:signal=KILL:when={number}");
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", &inject].map(str::to_owned);
    let output = run_raw(&mut make(&strace), conf);
    assert!(
        !output.status.success(),
        "not killed at {name} {number}: {output:?}"
    );
}
