//! `ip monitor` as the witness of every message that the kernel gets.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::machine::Machine;

/// `ip monitor`, which writes down every message of the kernel.
pub struct Monitor {
    child: Child,
    file: PathBuf,
}

impl Monitor {
    pub fn start(machine: &Machine, what: &str) -> Self {
        let file = machine.path("monitor");
        let out = std::fs::File::create(&file).unwrap();
        let child = Command::new("ip")
            .args(["monitor", what])
            .stdout(out)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let monitor = Self { child, file };
        // It is subscribed when it shows a message.
        machine.until("the monitor works", || {
            machine
                .ns
                .ip("route replace 10.253.0.0/16 via 172.16.0.99 proto static");
            machine.ns.ip("route del 10.253.0.0/16");
            monitor.seen().contains("10.253.0.0/16")
        });
        machine
            .ns
            .ip("route add 10.252.0.0/16 via 172.16.0.99 proto static");
        machine.ns.ip("route del 10.252.0.0/16");
        machine.until("the monitor is at its begin", || {
            monitor.seen().contains("Deleted 10.252.0.0/16")
        });
        monitor
    }

    pub fn seen(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap()
    }

    /// What it showed since its start, up to the line with the last message.
    pub fn stop(mut self, machine: &Machine, last: &str) -> String {
        machine.until("the monitor shows the last message", || {
            self.seen().contains(last)
        });
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let seen = self.seen();
        let begin = seen
            .lines()
            .skip_while(|line| !line.contains("Deleted 10.252.0.0/16"));
        begin.skip(1).map(|line| format!("{line}\n")).collect()
    }
}
