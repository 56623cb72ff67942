//! A lab of a test's own, which ends with the test, and the machine under it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A lab; the executables are copied for it, to where every user may run them.
pub struct Lab {
    name: String,
    programs: tempfile::TempDir,
    user: User,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum User {
    /// Whoever runs the tests.
    Own,
    /// `nobody`.
    Ordinary,
}

/// A row of `podspan lab check`.
#[derive(Debug, serde::Deserialize)]
pub struct Row {
    pub promise: String,
    pub outcome: String,
    pub failures: Vec<String>,
}

impl Lab {
    /// A lab that is not up yet.
    pub fn new(name: &str) -> Self {
        let programs = tempfile::tempdir().unwrap();
        fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for name in ["podspan", "podspan-cni"] {
            let built = built(name);
            assert!(
                built.exists(),
                "{} is missing: run `make build` first",
                built.display()
            );
            fs::copy(&built, programs.path().join(name)).unwrap();
        }
        Self {
            name: format!("test-{name}-{}", std::process::id()),
            programs,
            user: User::Own,
        }
    }

    pub fn without_plugin(name: &str) -> Self {
        let lab = Self::new(name);
        fs::remove_file(lab.programs.path().join("podspan-cni")).unwrap();
        lab
    }

    pub fn up(name: &str, arguments: &[&str]) -> Self {
        let lab = Self::new(name);
        lab.succeed(&[&["up"], arguments].concat());
        lab
    }

    /// As the user who runs the tests where that is an ordinary one, else as `nobody`.
    pub fn up_as_ordinary_user(name: &str, arguments: &[&str]) -> Self {
        let mut lab = Self::new(name);
        if is_root() {
            lab.user = User::Ordinary;
        }
        lab.succeed(&[&["up"], arguments].concat());
        lab
    }

    /// `podspan lab --lab <this one> <arguments>`.
    pub fn podspan(&self, arguments: &[&str]) -> Command {
        let program = self.programs.path().join("podspan");
        let mut command = match self.user {
            User::Own => Command::new(program),
            User::Ordinary => {
                let mut command = Command::new("setpriv");
                command
                    .args([
                        "--reuid=65534",
                        "--regid=65534",
                        "--clear-groups",
                        "--inh-caps=-all",
                        "--",
                    ])
                    .arg(program);
                command
            }
        };
        command.args(["lab", "--lab", &self.name]).args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.podspan(arguments)
            .output()
            .expect("podspan (as nobody: setpriv of util-linux) can be started")
    }

    /// What it printed; it must succeed.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "podspan lab {arguments:?}: {}\n{}{}",
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// What it said; it must fail.
    pub fn fail(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            !output.status.success(),
            "podspan lab {arguments:?} succeeded"
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.succeed(&[arguments, &["-o", "json"]].concat())).unwrap()
    }

    /// The rows of a check; whether they pass is the caller's to judge.
    pub fn check(&self) -> Vec<Row> {
        outcomes(&self.output(&["check", "-o", "json"]).stdout)
    }

    /// Runs a shell's script at a place of the lab.
    pub fn sh(&self, place: &str, script: &str) -> String {
        self.succeed(&["exec", place, "--", "sh", "-ec", script])
    }

    /// Kills the agent of a node, and waits for the one that is started in its place.
    pub fn restart_agent(&self, node: &str) {
        let pid = || self.sh(node, "cat /run/podspan/agent.pid");
        let old = pid();
        self.sh(node, "kill -KILL $(cat /run/podspan/agent.pid)");
        wait_until("another agent", || pid() != old);
    }

    pub fn state_file(&self) -> PathBuf {
        let user = rustix::process::geteuid().as_raw();
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let directory = match (self.user, runtime) {
            (User::Ordinary, _) => "/tmp/podspan-lab-65534".into(),
            (User::Own, _) if user == 0 => "/run/podspan-lab".into(),
            (User::Own, Some(runtime)) if runtime.exists() => runtime.join("podspan-lab"),
            (User::Own, _) => PathBuf::from(format!("/tmp/podspan-lab-{user}")),
        };
        directory.join(format!("{}.json", self.name))
    }

    pub fn holder(&self) -> i32 {
        let state: Value = serde_json::from_slice(&fs::read(self.state_file()).unwrap()).unwrap();
        state["pid"].as_i64().unwrap().try_into().unwrap()
    }

    /// All processes in the lab's PID namespace.
    pub fn processes(&self) -> Vec<i32> {
        let namespace = pid_namespace(self.holder()).expect("the holder runs");
        all_processes()
            .filter(|pid| pid_namespace(*pid).as_ref() == Some(&namespace))
            .collect()
    }

    /// Which of those are still there, and run one of this lab's executables.
    pub fn processes_in(&self, processes: &[i32]) -> Vec<i32> {
        let ours = |pid: &i32| {
            fs::read_link(format!("/proc/{pid}/exe"))
                .is_ok_and(|exe| exe.starts_with(self.programs.path()))
        };
        processes.iter().copied().filter(ours).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A lab that the test took down itself is down.
        let _ = self.podspan(&["down"]).output();
    }
}

/// Pings from the first pod of node1 to that of node2, a hundred a second, in both families.
pub struct Pings<'a> {
    lab: &'a Lab,
    count: u32,
    processes: [Child; 2],
}

impl<'a> Pings<'a> {
    pub fn start(lab: &'a Lab, count: u32) -> Self {
        let count_text = count.to_string();
        let ping = |to: &str| {
            let ping = ["ping", "-q", "-i", "0.01", "-c", &count_text, to];
            lab.podspan(&[&["exec", "node1/pod1", "--"], &ping[..]].concat())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        };
        // The first packets wait for neighbours to be found.
        let processes = [ping("10.244.2.2"), ping("fd00:10:244:2::2")];
        Self {
            lab,
            count,
            processes,
        }
    }

    /// Kills the agents of these nodes, one after the other; each is started again.
    pub fn while_agents_are_killed(&self, nodes: &[&str]) {
        nodes.iter().for_each(|node| self.lab.restart_agent(node));
    }

    pub fn lost_none(self) {
        let expected = format!("{0} packets transmitted, {0} received", self.count);
        for ping in self.processes {
            let output = ping.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains(&expected), "{text}");
        }
    }
}

/// What of the machine itself a lab must not change.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    network: Vec<String>,
    mounts: String,
}

impl Machine {
    pub fn observe() -> Self {
        let ip = |arguments: &str| {
            let output = Command::new("ip")
                .args(arguments.split(' '))
                .output()
                .expect("ip of iproute2 is installed");
            String::from_utf8(output.stdout).unwrap()
        };
        Self {
            network: [
                "link",
                "address show scope global",
                "route",
                "-6 route",
                "rule",
                "netns",
            ]
            .map(ip)
            .to_vec(),
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
        }
    }
}

/// The rows that `podspan lab check -o json` printed.
pub fn outcomes(json: &[u8]) -> Vec<Row> {
    serde_json::from_slice(json)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(json)))
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

pub fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "waited for {what}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn built(name: &str) -> PathBuf {
    let directory = std::env::var_os("PODSPAN_BIN_DIR").map(PathBuf::from);
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bin");
    directory.unwrap_or_else(default).join(name)
}

fn all_processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn pid_namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}
