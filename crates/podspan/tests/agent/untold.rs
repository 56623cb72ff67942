//! A kernel that follows connections and does not tell of them (without `CONFIG_NF_CT_NETLINK`): policy is in force all the same.
//!
//! `strace` stands between the agent's thread for policy and the kernel: the socket by which it would see the connections, which it opens
//! for each look through them and before all else, cannot be had.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::denied::{ONE, OPERATION, counted, isolates, send};
use crate::machine::{Agent, Machine};
use crate::operation::metric;

/// How the kernel refuses a part of netfilter that it does not have.
const REFUSAL: &str = "inject=socket:error=EINVAL";

/// `strace`, which lets go when it is dropped.
struct Between {
    strace: Child,
}

impl Between {
    /// Of the agent's thread of that name.
    fn kernel_and(agent: &Agent<'_>, thread: &str) -> Self {
        let tasks = format!("/proc/{}/task", agent.child.id());
        let mut tasks = std::fs::read_dir(tasks).unwrap().map(|task| task.unwrap());
        let is_it = |path: &std::path::Path| {
            let name = std::fs::read_to_string(path.join("comm")).unwrap();
            name.trim_end() == thread
        };
        let task = tasks.find(|task| is_it(&task.path())).unwrap();
        let mut strace = Command::new("strace");
        strace.args(["-e", "trace=socket", "-e", REFUSAL, "-o", "/dev/null", "-p"]);
        strace.arg(task.file_name()).stderr(Stdio::piped());
        let mut strace = strace.spawn().unwrap();
        let mut said = String::new();
        let stderr = strace.stderr.as_mut().unwrap();
        BufReader::new(stderr).read_line(&mut said).unwrap();
        assert!(said.trim_end().ends_with("attached"), "{said}");
        Self { strace }
    }
}

impl Drop for Between {
    fn drop(&mut self) {
        let pid = self.strace.id().to_string();
        // Killed, it would leave the agent stopped for a moment at whatever it does.
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.strace.wait();
    }
}

#[test]
fn policy_is_in_force_where_the_kernel_does_not_tell_of_connections_and_that_is_told_once() {
    let machine = Machine::new();
    let file = machine.path("policy.json");
    machine.configure(&format!("{OPERATION}policy_file = {file:?}\n"));
    machine.policies(&[]);
    let agent = machine.ready();
    let [web, _db, _cache] = machine.pods();
    let between = Between::kernel_and(&agent, "policy");

    machine.policies(&[isolates("one")]);
    machine.until("in force", || counted("db", ONE) == Some(0.0));
    send(&web, "10.0.1.3:53", 3);
    machine.until("dropped", || counted("db", ONE) == Some(3.0));
    let told = "connections that policy forbids may go on: open conntrack socket: invalid argument (EINVAL)";
    machine.until("told", || machine.log().contains(told));

    let two = "NetworkPolicy shop/one, NetworkPolicy shop/two";
    machine.policies(&[isolates("one"), isolates("two")]);
    machine.until("the other is in force", || counted("db", two) == Some(0.0));
    send(&web, "10.0.1.3:53", 1);
    machine.until("dropped", || counted("db", two) == Some(1.0));
    assert_eq!(metric("podspan_policy_failures_total"), Some(0.0));

    // What cannot be done is tried again, and mends by itself.
    drop(between);
    machine.until("mended", || {
        machine.log().contains(&format!("mended: {told}"))
    });
    assert_eq!(machine.log().matches(told).count(), 2, "told once");
    assert_eq!(agent.stop(), Some(0));
}
