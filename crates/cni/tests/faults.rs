//! Each system call of ADD, DEL and GC fails in turn: the plugin says so, or does without it, and leaves nothing.
//!
//! As in `crash.rs` the calls are enumerated by `strace`, which then makes one of one run fail, with each errno that fits.
//! Success means complete, by CHECK; failure means a CNI error on standard output. Nothing panics and nothing hangs.
//! Not here: `close`, which closes also where it fails, and so cannot be made to fail in `strace`'s way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::collections::BTreeSet;
use std::process::Output;
use std::sync::Mutex;

use harness::world::{Call, Configuration, HANG, World, calls, each};
use harness::{Node, Pod, run_within};
use podspan_cni::attachment::AttachmentId;
use podspan_cni::ipam::{Ipam, IpamConfig, boot_id};
use podspan_kernel::namespaces::{Kind, unshare};
use serde_json::{Value, json};

/// One system call and how it fails.
#[derive(Debug)]
struct Fault {
    call: Call,
    /// As `strace --inject` has it: `error=EIO`, `poke_exit=@arg2=00000000`.
    how: String,
}

/// How a system call can fail here. `EINTR` only where a signal can interrupt it (signal(7)): regular files are not.
fn errnos(call: &str, line: &str) -> &'static [&'static str] {
    let creates = line.contains("O_CREAT") || line.contains("O_TMPFILE");
    match call {
        "open" | "openat" if creates => &["EMFILE", "ENOSPC", "EIO"],
        "open" | "openat" => &["EMFILE", "EIO"],
        "read" => &["EINTR", "EIO"],
        "write" => &["EINTR", "ENOSPC", "EIO"],
        "pwrite64" | "linkat" | "mkdir" | "renameat" | "ftruncate" => &["ENOSPC", "EIO"],
        "socket" => &["EMFILE", "ENOBUFS"],
        "sendto" | "sendmsg" | "recvfrom" | "recvmsg" => &["EINTR", "ENOBUFS", "ENOMEM"],
        "flock" => &["EINTR", "ENOLCK"],
        "setns" => &["EPERM", "ENOMEM"],
        "clock_nanosleep" => &["EINTR"],
        "bind" | "setsockopt" | "getsockname" | "mmap" | "mremap" => &["ENOMEM"],
        "munmap" | "mprotect" | "sigaltstack" | "poll" => &["ENOMEM"],
        "prlimit64" | "rt_sigaction" | "fcntl" | "sched_getaffinity" => &["EPERM"],
        // The kernel's brk never answers with an errno (brk(2)).
        "execve" | "exit_group" | "close" | "brk" => &[],
        // pread64, unlinkat, fchmod, chmod, fdatasync, getdents64, lseek and all that look at a file.
        _ => &["EIO"],
    }
}

/// All faults of a run, from the lines that `strace` wrote about it.
fn faults(lines: &[String]) -> Vec<Fault> {
    let of_call = |call: Call| {
        let fault = |errno: &&str| Fault {
            call: call.clone(),
            how: format!("error={errno}"),
        };
        let errnos = errnos(&call.name, &call.rest);
        errnos.iter().map(fault).collect::<Vec<_>>()
    };
    calls(lines).into_iter().flat_map(of_call).collect()
}

/// Runs the command with the fault; it must come to an end, without a panic, and say how it ended.
fn run_with(world: &World, fault: &Fault, (command, conf): (&str, &Value)) -> Output {
    let file = world.node.data.path().join("trace");
    let Fault { call, how } = fault;
    let Call {
        name,
        number,
        early,
        ..
    } = call;
    let strace = [
        "strace",
        "-f",
        "-qq",
        "--seccomp-bpf",
        &format!("--output={}", file.display()),
        &format!("--trace={name}"),
        &format!("--inject={name}:{how}:when={number}"),
    ];
    let output = world.run(&strace.map(str::to_owned), command, conf);
    let injected = std::fs::read_to_string(file).unwrap();
    assert!(
        injected.contains("(INJECTED)") || !how.starts_with("error="),
        "{command} came not to {fault:?}: {output:?}"
    );
    let said = String::from_utf8_lossy(&output.stderr);
    // Before `main` a panic is the standard library's own.
    assert!(
        *early || !said.contains("panicked"),
        "{command}, {fault:?}: {said}"
    );
    assert_ne!(hung(&output), Some(true), "{command} hung at {fault:?}");
    if !output.status.success() && !early {
        assert_tells_an_error(&output, &format!("{command}, {fault:?}"));
    }
    // A signal that interrupts is no fault.
    assert!(
        how != "error=EINTR" || *early || output.status.success(),
        "{command}, {fault:?}: {output:?}"
    );
    output
}

fn hung(output: &Output) -> Option<bool> {
    use std::os::unix::process::ExitStatusExt;
    output.status.signal().map(|signal| signal == 9)
}

fn assert_tells_an_error(output: &Output, context: &str) {
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text = told["msg"].as_str().unwrap_or_default();
    assert!(
        told["code"].is_u64() && !text.is_empty() && told["cniVersion"] == "1.1.0",
        "no CNI error: {context}: {output:?}"
    );
}

/// What came of the faults of a command.
#[derive(Debug, Default)]
struct Tally {
    /// It did without the call, and everything was right.
    harmless: usize,
    failed: usize,
    /// What those that failed left for DEL.
    leftovers: Vec<String>,
}

impl Tally {
    fn count(&mut self, succeeded: bool) {
        match succeeded {
            true => self.harmless += 1,
            false => self.failed += 1,
        }
    }
}

/// What ADD did without the call must be complete; what it did not do must be gone after DEL.
fn add_and_then_del(world: &World, fault: &Fault, tally: &Mutex<Tally>) {
    let (node, conf) = (&world.node, &world.conf);
    let output = run_with(world, fault, ("ADD", conf));
    let succeeded = output.status.success();
    tally.lock().unwrap().count(succeeded);
    if succeeded {
        let mut checked = conf.clone();
        checked["prevResult"] = serde_json::from_slice(&output.stdout).unwrap();
        let check = node.check("c1", &world.pod, &checked);
        assert!(check.ok, "ADD with {fault:?}: {}", check.json);
    } else {
        let left = world.left();
        if !left.is_empty() {
            let text = format!("{fault:?}: {left:?}");
            tally.lock().unwrap().leftovers.push(text);
        }
    }
    node.del("c1", conf).expect_ok();
    world.assert_nothing_is_left(&format!("ADD with {fault:?}, then DEL"));
}

/// An ADD that fails undoes what it did, unless it does not come back to the node's namespace: then DEL does.
fn assert_failures_left_nothing(tally: &Tally) {
    let odd = |text: &&String| !text.contains(r#"name: "setns""#);
    let odd: Vec<_> = tally.leftovers.iter().filter(odd).collect();
    assert!(odd.is_empty(), "{odd:#?}");
}

#[test]
fn add_with_any_system_call_failing_is_complete_or_tells_why_and_leaves_nothing() {
    for (index, configuration) in Configuration::of_this_run().into_iter().enumerate() {
        let mut faults = faults(&World::new(configuration).trace_add(|| ()));
        // What comes before the input is the same for all.
        faults.retain(|fault| index == 0 || !fault.call.early);
        assert!(faults.len() > 150, "strace listed only {}", faults.len());
        let tally = Mutex::default();
        each(configuration, &faults, |world, fault| {
            add_and_then_del(world, fault, &tally);
        });
        let tally = tally.into_inner().unwrap();
        println!("{}: ADD: {tally:#?}", configuration.name);
        assert_failures_left_nothing(&tally);
    }
}

#[test]
fn the_first_add_of_a_node_with_any_system_call_failing_leaves_what_the_next_completes() {
    for configuration in Configuration::of_this_run() {
        let world = World::new(configuration);
        let mut faults = faults(&world.trace_add(|| world.begin_anew()));
        faults.retain(|fault| !fault.call.early);
        let tally = Mutex::default();
        each(configuration, &faults, |world, fault| {
            let (node, conf) = (&world.node, &world.conf);
            world.begin_anew();
            add_and_then_del(world, fault, &tally);
            let added = node.add("c1", &world.pod, conf).expect_ok();
            let check = node.check("c1", &world.pod, &node.with_prev(conf, &added));
            assert!(check.ok, "after {fault:?}: {}", check.json);
            let bridge = &node.ns.ip("-d addr show podspan0")[0];
            assert_eq!(bridge["ifalias"], "podspan:bridge", "the mark: {fault:?}");
            node.del("c1", conf).expect_ok();
        });
        let tally = tally.into_inner().unwrap();
        println!("{}: the first ADD: {tally:#?}", configuration.name);
        assert_failures_left_nothing(&tally);
    }
}

#[test]
fn del_with_any_system_call_failing_is_complete_or_is_so_when_repeated() {
    for configuration in Configuration::of_this_run() {
        let world = World::new(configuration);
        world.node.add("c1", &world.pod, &world.conf).expect_ok();
        let mut faults = faults(&world.trace("DEL", &world.conf));
        faults.retain(|fault| !fault.call.early);
        assert!(faults.len() > 50, "strace listed only {}", faults.len());
        let tally = Mutex::<Tally>::default();
        each(configuration, &faults, |world, fault| {
            world.node.add("c1", &world.pod, &world.conf).expect_ok();
            let output = run_with(world, fault, ("DEL", &world.conf));
            let succeeded = output.status.success();
            tally.lock().unwrap().count(succeeded);
            if !succeeded {
                world.node.del("c1", &world.conf).expect_ok();
            }
            world.assert_nothing_is_left(&format!("DEL with {fault:?}"));
        });
        let tally = tally.into_inner().unwrap();
        println!("{}: DEL: {tally:#?}", configuration.name);
    }
}

#[test]
fn gc_with_any_system_call_failing_spares_the_valid_and_frees_the_rest_when_repeated() {
    for configuration in Configuration::of_this_run() {
        let world = World::new(configuration);
        let kept_conf = &world.conf_beside_others();
        world.node.add("kept", &world.kept, kept_conf).expect_ok();
        world.node.add("c1", &world.pod, &world.conf).expect_ok();
        let mut faults = faults(&world.trace("GC", &world.gc_conf(&["kept"])));
        faults.retain(|fault| !fault.call.early);
        assert!(faults.len() > 50, "strace listed only {}", faults.len());
        let tally = Mutex::<Tally>::default();
        each(configuration, &faults, |world, fault| {
            let (node, conf, kept) = (&world.node, &world.conf, &world.kept);
            let context = format!("GC with {fault:?}");
            let kept_conf = &world.conf_beside_others();
            let added = node.add("kept", kept, kept_conf).expect_ok();
            node.add("c1", &world.pod, conf).expect_ok();
            let output = run_with(world, fault, ("GC", &world.gc_conf(&["kept"])));
            let succeeded = output.status.success();
            tally.lock().unwrap().count(succeeded);
            if !succeeded {
                world.gc(&["kept"]);
            }
            world.assert_all_addresses_are_free_but(1, &context);
            let check = node.check("kept", kept, &node.with_prev(kept_conf, &added));
            assert!(check.ok, "{context}: {}", check.json);
            node.del("kept", conf).expect_ok();
            world.assert_nothing_is_left(&context);
        });
        let tally = tally.into_inner().unwrap();
        println!("{}: GC: {tally:#?}", configuration.name);
    }
}

/// The kind of any rtnetlink object, `NLM_F_MULTI` and `NLM_F_DUMP_INTR`, as `strace` pokes them.
const INTERRUPTED: &str = "10001200";

/// A number in what `strace` wrote about an answer.
fn number(line: &str, key: &str) -> u32 {
    let (_, rest) = line.split_once(&format!("{key}=")).unwrap();
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
    rest[..end].parse().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What begins an answer that is nothing but an error (`struct nlmsghdr` and the code).
fn refusal(answer: &Call, code: i32) -> String {
    let header = [
        20,
        2,
        number(&answer.rest, "nlmsg_seq"),
        0,
        code.cast_unsigned(),
    ];
    hex(&header.map(u32::to_ne_bytes).concat())
}

/// An answer that begins with these bytes.
fn poked(answer: &Call, bytes: &str) -> Fault {
    Fault {
        call: answer.clone(),
        how: format!("poke_exit=@arg2={bytes}"),
    }
}

/// The answers of the kernel with something wrong in each of them: the run's `recvfrom`s, of which `strace` can rewrite
/// the first bytes, `struct nlmsghdr` and what follows (netlink(7)).
fn garbled_answers(lines: &[String]) -> Vec<Fault> {
    let garbled = |call: Call| {
        let line = &call.rest;
        let length = |length: u32| hex(&length.to_ne_bytes());
        let sequence = length(number(line, "nlmsg_seq"));
        let mut pokes = vec![
            // No message, more than there is, less than a header.
            length(0),
            length(u32::MAX),
            length(15),
            // An object with its end missing; an answer to somebody else.
            length(24),
            refusal(&call, 0).replacen(&sequence, &length(0xdead), 1),
            // A refusal, and codes that are no errno.
            refusal(&call, -105),
            refusal(&call, 5),
            refusal(&call, i32::MIN),
        ];
        // Only of links: the length of an nftables element's answer is another in each run, with its address.
        if line.contains("RTM_NEW") && line.contains("NLM_F_MULTI") && !line.contains("NLMSG_DONE")
        {
            // Something changed while the kernel listed it.
            pokes.push(length(number(line, "nlmsg_len")) + INTERRUPTED);
        }
        let faults = pokes.iter().map(|poke| poked(&call, poke));
        faults.collect::<Vec<_>>()
    };
    let received = calls(lines)
        .into_iter()
        .filter(|call| call.name == "recvfrom");
    received.flat_map(garbled).collect()
}

/// Each answer to the wish to see all of a part of netfilter as that of a kernel without it: EINVAL (`nfnetlink_rcv_msg`), and
/// EOPNOTSUPP. `asked` is in the lines that ask.
fn refused_lists(lines: &[String], asked: &str) -> Vec<Fault> {
    let calls = calls(lines);
    let is_question = |call: &Call| {
        [asked, "NLM_F_DUMP"]
            .iter()
            .all(|word| call.rest.contains(word))
            && call.name == "sendto"
    };
    let mut faults = Vec::new();
    for (place, _) in calls
        .iter()
        .enumerate()
        .filter(|(_, call)| is_question(call))
    {
        let mut later = calls[place..].iter();
        let answer = later.find(|call| call.name == "recvfrom").unwrap();
        faults.extend([-22, -95].map(|code| poked(answer, &refusal(answer, code))));
    }
    faults
}

#[test]
fn answers_of_the_kernel_that_make_no_sense_are_errors_and_never_a_panic_or_a_hang() {
    let configuration = Configuration::with_everything();
    let world = World::new(configuration);
    let in_add = garbled_answers(&world.trace_add(|| ()));
    world.node.add("c1", &world.pod, &world.conf).expect_ok();
    let in_gc = garbled_answers(&world.trace("GC", &world.gc_conf(&[])));
    let is_interrupted = |fault: &Fault| fault.how.ends_with(INTERRUPTED);
    assert!(in_gc.iter().any(is_interrupted), "GC lists something");
    let counts = (in_add.len(), in_gc.len());
    assert!(counts.0 > 100 && counts.1 > 30, "{counts:?}");
    let tally = Mutex::default();
    each(configuration, &in_add, |world, fault| {
        add_and_then_del(world, fault, &tally);
    });
    println!("garbled in ADD: {:#?}", tally.into_inner().unwrap());
    let tally = Mutex::<Tally>::default();
    each(configuration, &in_gc, |world, fault| {
        world.node.add("c1", &world.pod, &world.conf).expect_ok();
        let output = run_with(world, fault, ("GC", &world.gc_conf(&[])));
        let succeeded = output.status.success();
        tally.lock().unwrap().count(succeeded);
        assert!(
            succeeded || !is_interrupted(fault),
            "an interrupted dump is begun again: {output:?}"
        );
        if !succeeded {
            world.gc(&[]);
        }
        world.assert_nothing_is_left(&format!("GC with {fault:?}"));
    });
    println!("garbled in GC: {:#?}", tally.into_inner().unwrap());
}

#[test]
fn del_and_gc_free_the_address_where_the_kernel_does_not_tell_of_its_connections() {
    // Of policy the connections of the address; of host ports those to each port of UDP.
    for (configuration, lists) in [
        (Configuration::named("policy"), 1),
        (Configuration::with_everything(), 2),
    ] {
        let name = configuration.name;
        let world = World::new(configuration);
        for (command, conf) in [("DEL", &world.conf), ("GC", &world.gc_conf(&[]))] {
            world.node.add("c1", &world.pod, &world.conf).expect_ok();
            let refused = refused_lists(&world.trace(command, conf), "CTNETLINK");
            assert!(refused.len() >= 2 * lists, "{name}, {command}: {refused:?}");
            for fault in &refused {
                world.node.add("c1", &world.pod, &world.conf).expect_ok();
                let output = run_with(&world, fault, (command, conf));
                let context = format!("{name}, {command} with {fault:?}");
                assert!(output.status.success(), "{context}: {output:?}");
                world.assert_nothing_is_left(&context);
            }
            println!("{name}: {command} with {} refusals", refused.len());
        }
    }
}

#[test]
fn gc_frees_all_where_the_kernel_has_nfnetlink_and_no_nftables() {
    let world = World::new(Configuration::named("not guarded"));
    let conf = world.gc_conf(&[]);
    world.node.add("c1", &world.pod, &world.conf).expect_ok();
    let refused = refused_lists(&world.trace("GC", &conf), "NFT_MSG_GETSET,");
    assert_eq!(refused.len(), 2, "GC looks for records once: {refused:?}");
    for fault in &refused {
        world.node.add("c1", &world.pod, &world.conf).expect_ok();
        let output = run_with(&world, fault, ("GC", &conf));
        assert!(output.status.success(), "GC with {fault:?}: {output:?}");
        world.assert_nothing_is_left(&format!("GC with {fault:?}"));
    }
}

#[test]
fn on_a_full_disk_add_tells_so_and_del_and_gc_free_all_the_same() {
    let node = Node::new();
    unshare(&[Kind::Mount]).unwrap();
    let data = node.data.path().display().to_string();
    let mount = ["-t", "tmpfs", "-o", "size=4m", "none", &data];
    let mounted = std::process::Command::new("mount").args(mount).status();
    assert!(
        mounted.unwrap().success(),
        "this test needs to mount a tmpfs"
    );
    let conf = node.conf(json!({}));
    let config = IpamConfig::from_json(&conf["ipam"], &data).unwrap();
    let ipam = Ipam::open(&config, &"net".parse().unwrap(), &boot_id().unwrap()).unwrap();
    let id = |number: usize| AttachmentId {
        container: format!("c{number}").parse().unwrap(),
        ifname: "eth0".parse().unwrap(),
    };
    // So many that what is freed needs room for itself: more than a page.
    let count = 120;
    for number in 0..count {
        ipam.allocate(&id(number)).unwrap();
    }
    let filler = node.data.path().join("filler");
    let full = std::fs::write(&filler, vec![0; 8 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);

    let pod = Pod::new();
    let (code, text) = node.add("new", &pod, &conf).expect_error();
    assert_eq!(code, 104, "{text}");
    assert!(
        text.contains("No space left") || text.contains("ENOSPC"),
        "{text}"
    );
    assert_eq!(node.pod_links(), Vec::<String>::new());
    assert_eq!(node.addresses().len(), 2 * count);
    for number in 0..count / 2 {
        node.del(&format!("c{number}"), &conf).expect_ok();
    }
    assert_eq!(node.addresses().len(), count);
    let mut collecting = conf.clone();
    collecting["cni.dev/valid-attachments"] = json!([]);
    let collected = run_within(HANG, &mut node.command(&[], "GC", ""), &collecting);
    assert!(collected.status.success(), "{collected:?}");
    node.assert_clean("DEL and GC on a full disk");

    std::fs::remove_file(&filler).unwrap();
    let all = usize::try_from(config.range_sets[0].total()).unwrap();
    let addresses: BTreeSet<_> = (0..all)
        .map(|number| ipam.allocate(&id(number)).unwrap()[0].address)
        .collect();
    assert_eq!(addresses.len(), all);
}
