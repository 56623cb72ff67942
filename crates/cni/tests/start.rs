//! The program starts without the standard library's preparations; what must hold all the same is held here.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod harness;

use std::io::Write;
use std::process::Stdio;

use harness::{Node, Pod, run, run_raw};
use serde_json::{Value, json};

#[test]
fn an_add_whose_result_nobody_reads_fails_and_leaves_nothing() {
    let (node, pod) = (Node::new(), Pod::new());
    let mut process = node.command(&[], "ADD", "c1");
    let mut child = process.env("CNI_NETNS", pod.path()).spawn().unwrap();
    drop(child.stdout.take());
    let conf = node.conf(json!({})).to_string();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(conf.as_bytes())
        .unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1), "{status}: no signal ends it");
    node.assert_clean("after an ADD whose result nobody read");
}

#[test]
fn a_standard_descriptor_that_is_closed_is_never_a_socket_s() {
    let (node, pod) = (Node::new(), Pod::new());
    let conf = node.conf(json!({}));
    let shell = |command: &str| ["/bin/sh", "-c", command].map(str::to_owned);
    let mut process = node.command(&shell("exec \"$0\" >&- 2>&-"), "ADD", "c1");
    let output = run_raw(process.env("CNI_NETNS", pod.path()), &conf);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(pod.ip("addr show eth0")[0]["ifname"], "eth0");
    node.del("c1", &conf).expect_ok();
    node.assert_clean("after an ADD with closed outputs");

    let mut process = node.command(&shell("exec \"$0\" <&-"), "STATUS", "c1");
    process.stdin(Stdio::null());
    let output = process.output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["code"], 6, "{told}");
    run(&mut node.command(&[], "VERSION", "c1"), &json!({})).expect_ok();
}
