//! One end of a path: a process in a network namespace, pinned to a core, that serves and drives traffic.
//!
//! Client and server of a path run on the same core: on a virtual machine a wake-up between cores costs more, and varies
//! more, than all that is to be measured. It is told what to do on standard input, a line a task, and answers with a line.

use std::io::{BufRead, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::thread::{CpuSet, sched_setaffinity};

/// The word that makes this program an endpoint; the core's number follows, and what it is.
pub const WORD: &str = "--endpoint";

/// Which end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Client,
    Server,
}

/// Where it serves, in its own namespace.
const PORT: u16 = 7000;
/// How much is written and read at once in a stream.
const CHUNK: usize = 128 * 1024;
/// How often time is looked at, in transactions: looking costs too.
const BETWEEN_LOOKS: usize = 16;

/// What is measured of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Bytes one way, as fast as it goes: bytes a second.
    Stream,
    /// A byte there and a byte back over one connection: transactions a second.
    Request,
    /// A connection, a byte there, a byte back, the end: connections a second.
    Connect,
}

impl Task {
    /// In the order of the report.
    pub const ALL: [Self; 3] = [Self::Stream, Self::Request, Self::Connect];

    pub fn title(self) -> &'static str {
        match self {
            Self::Stream => "TCP stream, Gbit/s",
            Self::Request => "request and response, thousand/s",
            Self::Connect => "new connections, thousand/s",
        }
    }

    /// The value that the title speaks of.
    pub fn scaled(self, per_second: f64) -> f64 {
        match self {
            Self::Stream => per_second * 8.0 / 1e9,
            Self::Request | Self::Connect => per_second / 1e3,
        }
    }

    /// The first byte of a connection says what it is for.
    fn byte(self) -> u8 {
        match self {
            Self::Stream => b's',
            Self::Request => b'r',
            Self::Connect => b'c',
        }
    }
}

/// An endpoint that runs, as its starter sees it.
pub struct Endpoint {
    process: Child,
    tasks: ChildStdin,
    answers: std::io::BufReader<ChildStdout>,
}

impl Endpoint {
    /// Starts this program again behind `prefix`, words that run a program in some network namespace.
    pub fn start(prefix: &[&str], end: End, core: usize) -> Self {
        let own = std::env::current_exe().unwrap();
        let mut process = Command::new(prefix[0])
            .args(&prefix[1..])
            .arg(own)
            .args([WORD, &core.to_string(), &format!("{end:?}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{prefix:?}: {error}"));
        let tasks = process.stdin.take().unwrap();
        let answers = std::io::BufReader::new(process.stdout.take().unwrap());
        let mut endpoint = Self {
            process,
            tasks,
            answers,
        };
        assert_eq!(endpoint.answer(), format!("{end:?}"), "{prefix:?}");
        endpoint
    }

    /// Drives traffic to the endpoint of that address for that time; how much of it a second.
    pub fn drive(&mut self, task: Task, server: IpAddr, time: Duration) -> f64 {
        let byte = char::from(task.byte());
        writeln!(self.tasks, "{byte} {server} {}", time.as_millis()).unwrap();
        let answer = self.answer();
        let parsed = answer.parse();
        parsed.unwrap_or_else(|_| panic!("{task:?} to {server}: {answer:?}"))
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Is an endpoint until standard input ends.
pub fn run(core: &str, end: &str) -> std::io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core.parse().expect("a core's number"));
    sched_setaffinity(None, &cores)?;
    if end == "Server" {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // The other side may have ended; that is its affair.
                let _ = serve(stream);
            }
        });
    }
    println!("{end}");
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [task, server, time] = words[..] else {
            panic!("{line:?}")
        };
        let server = SocketAddr::new(server.parse().expect("an address"), PORT);
        let time = Duration::from_millis(time.parse().expect("milliseconds"));
        let done = match task {
            "s" => stream(server, time),
            "r" => request(server, time),
            _ => connect(server, time),
        };
        match done {
            Ok(per_second) => println!("{per_second}"),
            Err(error) => println!("{error}"),
        }
    }
    Ok(())
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    match byte[0] {
        b's' => {
            let mut buffer = vec![0; CHUNK];
            while stream.read(&mut buffer)? > 0 {}
        }
        _ => while stream.write_all(&byte).is_ok() && stream.read(&mut byte)? > 0 {},
    }
    Ok(())
}

fn open(server: SocketAddr, task: Task) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&[task.byte()])?;
    Ok(stream)
}

/// Counts what has arrived: the server ends when it has read everything.
fn stream(server: SocketAddr, time: Duration) -> std::io::Result<f64> {
    let mut stream = open(server, Task::Stream)?;
    let (chunk, mut bytes) = (vec![0; CHUNK], 0_usize);
    let begin = Instant::now();
    while begin.elapsed() < time {
        stream.write_all(&chunk)?;
        bytes += CHUNK;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let _ = stream.read(&mut [0])?;
    Ok(bytes as f64 / begin.elapsed().as_secs_f64())
}

fn request(server: SocketAddr, time: Duration) -> std::io::Result<f64> {
    let mut stream = open(server, Task::Request)?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    let (begin, mut count) = (Instant::now(), 0_usize);
    while begin.elapsed() < time {
        for _ in 0..BETWEEN_LOOKS {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)?;
        }
        count += BETWEEN_LOOKS;
    }
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

/// Ends each connection by a reset, so that no port stays taken (TIME-WAIT).
fn connect(server: SocketAddr, time: Duration) -> std::io::Result<f64> {
    let (begin, mut count) = (Instant::now(), 0_usize);
    while begin.elapsed() < time {
        let mut stream = open(server, Task::Connect)?;
        stream.read_exact(&mut [0])?;
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        count += 1;
    }
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}

/// Whether that program is there.
pub fn require(program: &Path, mend: &str) -> Result<(), String> {
    match program.exists() {
        true => Ok(()),
        false => Err(format!("{} is missing: {mend}", program.display())),
    }
}
