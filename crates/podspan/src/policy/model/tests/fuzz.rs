//! Random clusters and policies, random changes: the model, the kernel's mirror and the oracle say the same of every packet.
//!
//! A case is a cluster, its policies and a packet. `PODSPAN_POLICY_CASES` says how many there are; `PODSPAN_POLICY_SEED`, which
//! a failure prints, runs one history alone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use podspan_kernel::testing::fuzz::Dice;

use super::super::super::object::{Change, Kind, Protocol};
use super::super::super::oracle::Way;
use super::super::super::program::{Decision, Direction};
use super::super::{Judged, Model};
use super::mirror::Mirror;
use super::world::{Event, HERE, KINDS, PORTS, World, packet_port, universe};

const CASES: u64 = 30_000;
/// Of one history.
const STEPS: usize = 60;
/// After each step.
const PACKETS: usize = 4;

struct Run {
    dice: Dice,
    world: World,
    model: Model,
    mirror: Mirror,
    addresses: Vec<IpAddr>,
    listed: BTreeSet<Kind>,
    cases: u64,
}

#[test]
fn the_model_and_the_kernel_say_what_the_documentation_says() {
    let mut cases = 0;
    if let Some(seed) = number("PODSPAN_POLICY_SEED") {
        cases = history(seed);
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut seeds = Dice::new(now.map_or(0, |time| time.as_nanos() as u64));
        let wanted = number("PODSPAN_POLICY_CASES").unwrap_or(CASES);
        while cases < wanted {
            cases += history(seeds.roll());
        }
    }
    println!("{cases} cases");
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is {text:?}, no number")),
    )
}

/// Tells the seed when its history panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "to repeat this history alone: PODSPAN_POLICY_SEED={}",
                self.0
            );
        }
    }
}

/// How many cases there were.
fn history(seed: u64) -> u64 {
    let _told = Told(seed);
    let mut run = Run {
        dice: Dice::new(seed),
        world: World::default(),
        model: Model::new(HERE),
        mirror: Mirror::default(),
        addresses: universe(),
        listed: BTreeSet::new(),
        cases: 0,
    };
    run.begin();
    for _ in 0..STEPS {
        for event in run.world.happen(&mut run.dice) {
            run.tell(event);
        }
        // Sometimes several things happen before anybody asks.
        if run.dice.percent(70) {
            run.ask();
            for _ in 0..PACKETS {
                run.packet();
            }
        }
    }
    run.ask();
    run.everything();
    run.end();
    run.cases
}

impl Run {
    /// Until all kinds were listed nothing is said.
    fn begin(&mut self) {
        for _ in 0..self.dice.below(40) {
            for event in self.world.happen(&mut self.dice) {
                self.tell(event);
            }
        }
        for kind in KINDS {
            if self.listed.len() < KINDS.len() {
                assert!(!self.model.is_synced());
                assert!(self.model.difference().is_empty());
            }
            for event in self.world.list(kind, 100, &mut self.dice) {
                self.tell(event);
            }
        }
        assert!(self.model.is_synced());
        self.ask();
    }

    fn tell(&mut self, event: Event) {
        if let Event::Told(Change::End(kind)) = &event {
            self.listed.insert(*kind);
        }
        match event {
            Event::Told(change) => self.model.take(change),
            Event::Attached(name, attached) => {
                self.mirror.add(&name);
                self.model.attached(name, attached);
            }
            Event::Detached(name) => {
                self.mirror.del(&name);
                self.model.detached(&name);
            }
        }
    }

    fn ask(&mut self) {
        if self.dice.percent(3) {
            self.model.anew();
            let difference = self.model.difference();
            self.mirror.replace(difference);
        } else {
            let difference = self.model.difference();
            self.mirror.apply(difference);
        }
        assert!(self.model.difference().is_empty(), "asked twice");
        for (id, members) in &self.mirror.sets {
            assert_eq!(self.model.members(*id), Some(members));
        }
        for (id, program) in &self.mirror.programs {
            assert_eq!(self.model.program(*id), Some(program));
        }
        for (name, verdict) in &self.mirror.attachments {
            assert_eq!(self.model.verdict(name), verdict.as_ref());
        }
    }

    /// One between any two addresses, mostly of pods.
    fn packet(&mut self) {
        let owned: Vec<IpAddr> = self.world.cluster.owners.keys().copied().collect();
        let mut any = || {
            let all = if owned.is_empty() || self.dice.percent(20) {
                &self.addresses
            } else {
                &owned
            };
            self.dice.pick(all)
        };
        let (from, to) = (any(), any());
        let port = packet_port(&mut self.dice);
        self.compare(from, to, port);
        self.cases += 1;
    }

    fn compare(&self, from: IpAddr, to: IpAddr, port: Option<(Protocol, u16)>) {
        let judgement = self.model.judge(from, to, port);
        let (egress, ingress) = self.world.cluster.judge(from, to, port);
        let passes = |it: &Option<Judged>| it.as_ref().map(|judged| judged.decision.accepts());
        let told = || {
            format!(
                "{from} -> {to} {port:?}: {judgement:?}\nowners {:?}\n{:#?}",
                self.world.cluster.owners,
                self.world.policies()
            )
        };
        assert_eq!(passes(&judgement.egress), egress, "egress of {}", told());
        assert_eq!(passes(&judgement.ingress), ingress, "ingress of {}", told());
        self.compare_kernel(Direction::Egress, from, to, port, judgement.egress.as_ref());
        self.compare_kernel(
            Direction::Ingress,
            to,
            from,
            port,
            judgement.ingress.as_ref(),
        );
    }

    /// The attachment that has the address says what the oracle says of its pod, and the model of the address where that is
    /// the pod's.
    fn compare_kernel(
        &self,
        direction: Direction,
        own: IpAddr,
        peer: IpAddr,
        port: Option<(Protocol, u16)>,
        judged: Option<&Judged>,
    ) {
        let mut all = self.world.attachments.iter();
        let Some((name, attached)) = all.find(|(_, it)| it.addresses.iter().any(|it| it == own))
        else {
            return;
        };
        let decided = self.mirror.decide(name, direction, peer, port);
        let cluster = &self.world.cluster;
        let known = cluster.namespaces.contains_key(&attached.pod.namespace)
            && self.world.belongs(attached);
        let namespace = &attached.pod.namespace;
        let mut of_namespaces = cluster.network_policies.keys();
        let may_be_about = !cluster.cluster_policies.is_empty()
            || of_namespaces.any(|key| key.namespace == *namespace);
        if !known && !may_be_about {
            assert_eq!(decided, Some(Decision::Open), "{name}: nothing is about it");
            return;
        }
        assert_eq!(decided.is_some(), known, "{name} is known");
        let (Some(decided), Some(pod)) = (decided, cluster.pods.get(&attached.pod)) else {
            return;
        };
        let way = match direction {
            Direction::Ingress => Way::In,
            Direction::Egress => Way::Out,
        };
        assert_eq!(
            decided.accepts(),
            cluster.passes(pod, way, peer, port),
            "{name} {direction:?} {peer} {port:?}: {decided:?}\n{:#?}",
            self.world.policies()
        );
        if let Some(judged) = judged.filter(|judged| judged.pod == attached.pod) {
            assert_eq!(judged.decision, decided, "the same rule is named");
        }
    }

    /// Every attachment and every address, so that no element is where it does not belong.
    fn everything(&self) {
        let ports = PORTS.iter().flat_map(|port| {
            let of = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
            of.map(|protocol| Some((protocol, *port)))
        });
        let ports: Vec<_> = ports.chain([None]).collect();
        let own: Vec<IpAddr> = self
            .world
            .attachments
            .values()
            .filter_map(|it| it.addresses.iter().next())
            .collect();
        for own in own {
            for peer in &self.addresses {
                for port in &ports {
                    self.compare_kernel(Direction::Ingress, own, *peer, *port, None);
                    self.compare_kernel(Direction::Egress, own, *peer, *port, None);
                }
            }
        }
    }

    /// When everything is gone, nothing is left.
    fn end(&mut self) {
        for kind in KINDS {
            for event in self.world.list(kind, 0, &mut self.dice) {
                self.tell(event);
            }
        }
        self.ask();
        assert!(self.mirror.programs.is_empty() && self.mirror.sets.is_empty());
        let all: Vec<_> = self.world.attachments.keys().cloned().collect();
        for name in all {
            let decided = self
                .mirror
                .decide(&name, Direction::Egress, self.addresses[0], None);
            assert_eq!(decided, Some(Decision::Open), "no policy is left");
        }
    }
}
