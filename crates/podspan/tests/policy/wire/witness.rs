//! Counts packets by their ports where they come to a network namespace and where they leave the filters of its forwarding: what came
//! and did not go on was dropped in between, and what arrived was let through, whatever programs make of it.
//!
//! What would surprise: `came` is behind the translation of connections' first packets and before policy, and `passed` behind it.

use std::net::IpAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use podspan_kernel::Netns;

use super::network::again;

/// How long a count may take that must come.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where packets are counted.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// Before the filters of what is forwarded.
    Came,
    /// Behind them.
    Passed,
    /// What comes to the namespace, forwarded or not.
    Arrived,
}

impl Place {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Came, "forward priority -150"),
        (Self::Passed, "forward priority 50"),
        (Self::Arrived, "prerouting priority -300"),
    ];

    fn name(self, port: u16) -> String {
        format!("{self:?}{port}").to_lowercase()
    }
}

/// Counters in a network namespace.
pub struct Witness {
    netns: Netns,
}

impl Witness {
    /// Of all packets of TCP and UDP from or to these ports.
    pub fn of(netns: &Netns, ports: &[u16]) -> Self {
        Self::of_packets(netns, ports, &[String::new()])
    }

    /// The same of packets of these senders alone.
    pub fn of_senders(netns: &Netns, ports: &[u16], senders: &[IpAddr]) -> Self {
        let of = |ip: &IpAddr| {
            let family = if ip.is_ipv4() { "ip" } else { "ip6" };
            format!("{family} saddr {ip} ")
        };
        let senders: Vec<_> = senders.iter().map(of).collect();
        Self::of_packets(netns, ports, &senders)
    }

    fn of_packets(netns: &Netns, ports: &[u16], packets: &[String]) -> Self {
        let netns = again(netns);
        let witness = Self { netns };
        let mut text = String::from("table inet witness {\n");
        for (place, hook) in Place::ALL {
            for port in ports {
                text += &format!("counter {} {{}}\n", place.name(*port));
            }
            text += &format!("chain {place:?} {{ type filter hook {hook};\n");
            for port in ports {
                let name = place.name(*port);
                for packets in packets {
                    for end in ["sport", "dport"] {
                        text += &format!(
                            "{packets}meta l4proto {{ tcp, udp }} th {end} {port} counter name {name}\n"
                        );
                    }
                }
            }
            text += "}\n";
        }
        witness.nft(&[&(text + "}")]);
        witness
    }

    /// How many packets so far.
    pub fn count(&self, place: Place, port: u16) -> u64 {
        let name = place.name(port);
        let printed = self.nft(&["list", "counter", "inet", "witness", &name]);
        let mut words = printed.split_whitespace();
        words.find(|word| *word == "packets");
        words.next().unwrap().parse().unwrap()
    }

    /// Waits until all that came has passed.
    pub fn until_all_passed(&self, port: u16) -> u64 {
        let begin = Instant::now();
        loop {
            let came = self.count(Place::Came, port);
            let passed = self.count(Place::Passed, port);
            if came == passed {
                return came;
            }
            assert!(
                begin.elapsed() < DEADLINE,
                "{passed} packets of port {port} passed of {came} that came"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn nft(&self, arguments: &[&str]) -> String {
        let mut nft = Command::new("nft");
        nft.args(arguments);
        let output = self.netns.run(|| nft.output().unwrap()).unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nft {arguments:?}: {told}");
        String::from_utf8(output.stdout).unwrap()
    }
}
