//! One process and what it cost: wall time, processor time of all that it started, system calls, memory. Each figure has
//! its own way of being measured, and none disturbs another.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use wait4::Wait4;

use crate::numbers::Series;

/// What a command cost, of however many processes it consists.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// From before a process was started until after it had ended and its answer was read; one behind the other.
    pub wall: Duration,
    /// User and system time of the processes and of all that they started and waited for. What the kernel does for them
    /// later, on a thread of its own, is in nobody's.
    pub processor: Duration,
    /// Only where they were counted.
    pub calls: Calls,
    /// The largest process, in KiB; only where it was weighed.
    pub peak: usize,
}

/// The counts of one run by `strace`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Calls {
    /// All system calls of all processes and threads.
    pub all: usize,
    /// Programs that were started, the first one included.
    pub programs: usize,
    /// Messages that were sent to sockets: for us, requests to the kernel.
    pub sent: usize,
}

/// How a process is run.
#[derive(Debug, Clone)]
pub enum Way {
    /// As a runtime runs it: for times.
    Bare,
    /// By `strace`, which writes its counts into that file.
    Counted(PathBuf),
    /// By our own little program, which tells the peak of memory.
    Weighed(PathBuf),
}

/// What a process said and cost.
pub struct Ended {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
    pub cost: Cost,
}

impl Way {
    /// Runs the program in the calling thread's network namespace until it has ended, with this environment and no other
    /// than a `PATH`, and with `input` on its standard input.
    pub fn run(&self, program: &[&Path], environment: &[(&str, &Path)], input: &str) -> Ended {
        let mut words: Vec<&Path> = match self {
            Self::Bare => Vec::new(),
            Self::Counted(file) => {
                let strace = ["strace", "-f", "-qq", "-c", "-U", "calls,errors,name", "-o"];
                let words = strace.into_iter().map(Path::new);
                words.chain([file.as_path()]).collect()
            }
            Self::Weighed(scales) => vec![scales, Path::new("peak")],
        };
        words.extend(program);
        let mut command = Command::new(words.remove(0));
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(environment.iter().copied());
        let mut ended = run(&mut command, input);
        match self {
            Self::Counted(file) if ended.ok => ended.cost.calls = Calls::read(file),
            Self::Weighed(_) if ended.ok => {
                let told = ended.stderr.lines().last().unwrap_or_default();
                ended.cost.peak = told.parse().unwrap();
            }
            _ => {}
        }
        ended
    }
}

fn run(command: &mut Command, input: &str) -> Ended {
    for stream in [Command::stdin, Command::stdout, Command::stderr] {
        stream(command, Stdio::piped());
    }
    let start = Instant::now();
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display()));
    // A process need not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut stdout, mut stderr) = (String::new(), String::new());
    out.read_to_string(&mut stdout).unwrap();
    err.read_to_string(&mut stderr).unwrap();
    let used = child.wait4().unwrap();
    let cost = Cost {
        wall: start.elapsed(),
        processor: used.rusage.utime + used.rusage.stime,
        ..Cost::default()
    };
    Ended {
        ok: used.status.success(),
        stdout,
        stderr,
        cost,
    }
}

impl Calls {
    /// Reads what `strace -c -U calls,errors,name` wrote: a line for each system call, the errors left out where there
    /// are none.
    fn read(file: &Path) -> Self {
        let mut counts = Self::default();
        for line in std::fs::read_to_string(file).unwrap().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (calls, errors, name) = match words.as_slice() {
                [calls, errors, name] => (*calls, *errors, *name),
                [calls, name] => (*calls, "0", *name),
                _ => continue,
            };
            // The head and the rulers are no numbers.
            let (Ok(calls), Ok(errors)) = (calls.parse::<usize>(), errors.parse::<usize>()) else {
                continue;
            };
            match name {
                "total" => counts.all += calls,
                "execve" => counts.programs += calls - errors,
                "sendto" | "sendmsg" => counts.sent += calls,
                _ => {}
            }
        }
        counts
    }
}

impl Series {
    /// Wall times in milliseconds.
    pub fn wall(costs: &[Cost]) -> Self {
        Self::times(costs.iter().map(|cost| cost.wall))
    }

    /// Processor times in milliseconds.
    pub fn processor(costs: &[Cost]) -> Self {
        Self::times(costs.iter().map(|cost| cost.processor))
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.wall += other.wall;
        self.processor += other.processor;
        self.calls.all += other.calls.all;
        self.calls.programs += other.calls.programs;
        self.calls.sent += other.calls.sent;
        self.peak = self.peak.max(other.peak);
    }
}
