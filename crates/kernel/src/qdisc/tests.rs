//! Queues and filters against a real kernel, and what `tc` prints of them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::*;
use crate::Netns;
use crate::testing::TestNs;

const SLOW: Bandwidth = Bandwidth {
    rate: 40_000_000,
    burst: 800_000,
};

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

fn tc(arguments: &str) -> Value {
    let output = Command::new("tc")
        .arg("-j")
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "tc {arguments}: {told}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn made(link: &str) -> Vec<Value> {
    let Value::Array(all) = tc(&format!("qdisc show dev {link}")) else {
        panic!("tc prints a list");
    };
    let ours = |qdisc: &Value| qdisc["kind"] == "tbf" || qdisc["kind"] == "ingress";
    all.into_iter().filter(ours).collect()
}

#[test]
fn a_token_bucket_is_what_the_reference_plugin_would_have_set() {
    let ns = TestNs::new();
    ns.ip("link add v0 up type veth peer name v1");
    let mut netlink = Netlink::open().unwrap();
    let link = netlink.link(&name("v0")).unwrap().index;
    netlink.remove_bandwidth(link).unwrap();
    let bandwidth = Bandwidth {
        rate: 1_000_000,
        burst: 1_000_000,
    };
    netlink.ensure_bandwidth(link, bandwidth).unwrap();
    let ours = made("v0");
    assert_eq!(ours[0]["handle"], "1:");
    // 1 Mbit/s, 125,000 bytes a second: a burst takes one second, and 25 ms are 3,125 bytes more.
    let words = "rate 125000bps burst 125000b limit 128125b";
    tc(&format!("qdisc replace dev v0 root handle 1: tbf {words}"));
    assert_eq!(ours, made("v0"));
    assert!(netlink.has_bandwidth(link, bandwidth).unwrap());
    let other = Bandwidth {
        burst: 800_000,
        ..bandwidth
    };
    assert!(!netlink.has_bandwidth(link, other).unwrap());

    for rate in [SLOW.rate, 80_000_000_000] {
        let changed = Bandwidth { rate, ..SLOW };
        netlink.ensure_bandwidth(link, changed).unwrap();
        let ours = made("v0");
        assert_eq!(ours.len(), 1);
        assert_eq!(ours[0]["options"]["rate"], rate / 8);
        assert!(netlink.has_bandwidth(link, changed).unwrap());
    }
    netlink.remove_bandwidth(link).unwrap();
    netlink.remove_bandwidth(link).unwrap();
    assert_eq!(made("v0"), [] as [Value; 0]);
    assert!(!netlink.has_bandwidth(link, SLOW).unwrap());

    tc("qdisc replace dev v0 root handle 7: htb");
    let error = netlink.remove_bandwidth(link).unwrap_err();
    assert_eq!(error.errno(), Errno::INVAL);
    assert_eq!(tc("qdisc show dev v0")[0]["kind"], "htb");
    let nothing = Bandwidth {
        rate: 7,
        burst: 800,
    };
    let error = netlink.ensure_bandwidth(link, nothing).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "replace qdisc of link {link} root tbf rate 7bit burst 800bit latency 25ms: \
             invalid argument (EINVAL)"
        )
    );
}

#[test]
fn parameters_that_32_bits_do_not_hold_are_as_much_as_they_do() {
    let number = |bytes: &[u8], at| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let options = |rate, burst| Bandwidth { rate, burst }.options();
    assert_eq!(options(0, 800), None);
    assert_eq!(options(800, 0), None);
    let huge = options(u64::MAX, u64::MAX).unwrap();
    assert_eq!(number(&huge[0].1, 8), u32::MAX);
    assert_eq!(huge[1].0, TCA_TBF_RATE64);
    let slow = options(8, u64::MAX).unwrap();
    assert_eq!(number(&slow[0].1, 28), u32::MAX);
}

#[test]
fn a_redirection_is_made_once_changed_and_removed() {
    let ns = TestNs::new();
    ns.ip("link add v0 up type veth peer name v1");
    let mut netlink = Netlink::open().unwrap();
    let from = netlink.link(&name("v0")).unwrap().index;
    let ifb = netlink.ensure_ifb(&name("ifb-a"), 1400).unwrap();
    let other = netlink.ensure_ifb(&name("ifb-b"), 1500).unwrap();
    assert_eq!(netlink.ensure_ifb(&name("ifb-a"), 1400).unwrap(), ifb);
    assert_eq!(netlink.ensure_ifb(&name("ifb-a"), 1300).unwrap().mtu, 1300);
    assert_eq!(
        ns.ip("-d link show ifb-b")[0]["linkinfo"]["info_kind"],
        "ifb"
    );
    let error = netlink.ensure_ifb(&name("v0"), 1500).unwrap_err();
    assert!(error.is_exists(), "{error}");

    netlink.remove_redirect(from).unwrap();
    for to in [&ifb, &ifb, &other] {
        netlink.ensure_redirect(from, to.index).unwrap();
        assert_eq!(netlink.redirect_of(from).unwrap(), Some(to.index));
        let filters = tc("filter show dev v0 ingress");
        let ours: Vec<_> = filters
            .as_array()
            .unwrap()
            .iter()
            .filter(|filter| filter["options"]["actions"].is_array())
            .collect();
        assert_eq!(ours.len(), 1, "{filters}");
        assert_eq!(
            (&ours[0]["protocol"], &ours[0]["pref"]),
            (&"all".into(), &2.into())
        );
        let action = &ours[0]["options"]["actions"][0];
        assert_eq!(action["kind"], "mirred");
        assert_eq!(action["mirred_action"], "redirect");
        assert_eq!(action["to_dev"], to.name.as_str());
    }
    netlink.remove_redirect(from).unwrap();
    netlink.remove_redirect(from).unwrap();
    assert_eq!(netlink.redirect_of(from).unwrap(), None);
    assert_eq!(netlink.redirect_of(99).unwrap(), None, "no such link");
    assert_eq!(made("v0"), [] as [Value; 0]);
}

#[test]
fn both_directions_keep_to_their_rate() {
    let ns = TestNs::new();
    let pod = std::thread::spawn(|| Netns::enter_new().and_then(|()| Netns::current()))
        .join()
        .unwrap()
        .unwrap();
    ns.ip("link add v0 up type veth peer name v1");
    let target = format!("/proc/{}/fd/{}", std::process::id(), {
        use std::os::fd::{AsFd, AsRawFd};
        pod.as_fd().as_raw_fd()
    });
    ns.ip(&format!("link set v1 netns {target}"));
    ns.ip("addr add 10.0.0.1/24 dev v0");
    pod.run(|| {
        ns.ip("addr add 10.0.0.2/24 dev v1");
        ns.ip("link set v1 up");
    })
    .unwrap();
    let here = Netns::current().unwrap();
    let mut netlink = Netlink::open().unwrap();
    let link = netlink.link(&name("v0")).unwrap().index;
    let free = throughput(&here, &pod, "10.0.0.2:5000");
    assert!(
        free > 5.0 * SLOW.rate as f64,
        "{free} bit/s without a bound"
    );

    netlink.ensure_bandwidth(link, SLOW).unwrap();
    let ifb = netlink.ensure_ifb(&name("ifb-pod"), 1500).unwrap();
    netlink.ensure_bandwidth(ifb.index, SLOW).unwrap();
    netlink.ensure_redirect(link, ifb.index).unwrap();
    for (from, to, address) in [
        (&here, &pod, "10.0.0.2:5001"),
        (&pod, &here, "10.0.0.1:5002"),
    ] {
        let seen = throughput(from, to, address) / SLOW.rate as f64;
        println!("{seen:.2} of the rate to {address}");
        assert!(
            (0.25..1.3).contains(&seen),
            "{seen} of the rate to {address}"
        );
    }
}

/// Bits per second that arrive of TCP, after a burst.
fn throughput(from: &Netns, to: &Netns, address: &str) -> f64 {
    let listener = to.run(|| TcpListener::bind(address).unwrap()).unwrap();
    let mut sender = from.run(|| TcpStream::connect(address).unwrap()).unwrap();
    let (mut receiver, _) = listener.accept().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || while sender.write_all(&[0; 16 * 1024]).is_ok() {});
        let mut buffer = vec![0; 64 * 1024];
        let mut read_for = |time: Duration| {
            let (begin, mut count) = (Instant::now(), 0);
            while begin.elapsed() < time {
                count += receiver.read(&mut buffer).unwrap();
            }
            count as f64 * 8.0 / begin.elapsed().as_secs_f64()
        };
        read_for(Duration::from_millis(150));
        let seen = read_for(Duration::from_millis(400));
        drop(receiver);
        seen
    })
}
