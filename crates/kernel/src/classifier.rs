//! Classifiers: a program of classic BPF that judges every frame that a link receives, before anybody else sees it.
//!
//! The program goes with the request and is compiled by the kernel: no `bpf()` system call, and no capability but
//! `CAP_NET_ADMIN`. It goes with its link. Surprises: the program sees a frame behind its VLAN tag, the first one at least,
//! which the kernel has put aside; a load from behind the frame's end ends the program with 0, which is [`Verdict::OK`]; and
//! a frame whose sender had it redirected by an `ifb` device of its own comes past all of it (`tc_skip_classify`).

use rustix::io::Errno;

use crate::encode::{NLM_F_CREATE, native32};
use crate::error::{Error, Result};
use crate::netlink::{Netlink, message};
use crate::qdisc::{Header, TCA_KIND, TCA_OPTIONS, every_protocol, filters_of, is_of_kind};

/// `TCA_BPF_OPS_LEN` and `TCA_BPF_OPS` (linux/pkt_cls.h): how many instructions, and they.
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
/// `TCA_BPF_FLAGS`, and of them that what the program returns is the verdict (`TCA_BPF_FLAG_ACT_DIRECT`).
const TCA_BPF_FLAGS: u16 = 8;
const DIRECT_ACTION: u32 = 1;
/// `BPF_MAXINSNS` (linux/bpf_common.h).
const MAX: usize = 4096;
/// `sizeof(struct sock_filter)`.
const INSTRUCTION: usize = 8;
/// The place of the program among the classifiers of a link: the first.
const PRIORITY: u16 = 1;
/// Its number there.
const HANDLE: u32 = 1;

/// An instruction of classic BPF (`struct sock_filter`, linux/filter.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u16,
    /// How many instructions to pass over where a comparison holds, and where not.
    pub jumps: [u8; 2],
    /// The operand.
    pub operand: u32,
}

/// What a program returns (`TC_ACT_…`, linux/pkt_cls.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict(pub u32);

impl Verdict {
    /// The frame goes on, past all further classifiers.
    pub const OK: Self = Self(0);
    /// The frame goes on to the next classifier, and then to who is to have it.
    pub const NEXT: Self = Self(u32::MAX);
    /// The frame is dropped.
    pub const DROP: Self = Self(2);
}

impl Instruction {
    fn bytes(self) -> [u8; INSTRUCTION] {
        let ([a, b], [jt, jf]) = (self.code.to_ne_bytes(), self.jumps);
        let [c, d, e, f] = self.operand.to_ne_bytes();
        [a, b, jt, jf, c, d, e, f]
    }

    fn read([a, b, jt, jf, c, d, e, f]: [u8; INSTRUCTION]) -> Self {
        Self {
            code: u16::from_ne_bytes([a, b]),
            jumps: [jt, jf],
            operand: u32::from_ne_bytes([c, d, e, f]),
        }
    }
}

impl Netlink {
    /// Has a program judge what a link receives, in the place of an earlier one, and before all other classifiers.
    ///
    /// # Errors
    /// ENOENT or EOPNOTSUPP where the kernel has no such classifier (`CONFIG_NET_CLS_BPF`, `CONFIG_NET_SCH_INGRESS`); EINVAL
    /// for a program that is none, or of more than 4096 instructions; not found; what the kernel answered.
    pub fn ensure_classifier(&mut self, link: u32, program: &[Instruction]) -> Result<()> {
        let action = || {
            let count = program.len();
            format!("replace filter of link {link} ingress bpf of {count} instructions")
        };
        let length = u16::try_from(program.len()).ok();
        let length = length.filter(|length| usize::from(*length) <= MAX);
        let length = length.ok_or_else(|| Error::new(action(), Errno::INVAL))?;
        self.ensure_ingress(link, "clsact")?;
        let bytes: Vec<u8> = program.iter().flat_map(|one| one.bytes()).collect();
        let filter = Header {
            handle: HANDLE,
            info: every_protocol(PRIORITY),
            ..filters_of(link)
        };
        let mut request = filter.request(message::NEW_FILTER);
        request.text(TCA_KIND, "bpf");
        request.list(TCA_OPTIONS, |options| {
            options.bytes_attribute(TCA_BPF_OPS_LEN, &length.to_ne_bytes());
            options.bytes_attribute(TCA_BPF_OPS, &bytes);
            options.native32(TCA_BPF_FLAGS, DIRECT_ACTION);
        });
        self.change(request, NLM_F_CREATE, action)
    }

    /// The program that judges what a link receives before all other classifiers; none where there is no classic one.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn classifier(&mut self, link: u32) -> Result<Option<Vec<Instruction>>> {
        let request = filters_of(link).request(message::GET_FILTER);
        let all = self.dump(request, "list filters", read)?;
        Ok(all.into_iter().next())
    }
}

/// The program of a filter that stands where ours does and acts by itself.
fn read(filter: &[u8]) -> Option<Vec<Instruction>> {
    let (header, attributes) = Header::read(filter)?;
    if header.info != every_protocol(PRIORITY) || !is_of_kind(attributes, "bpf") {
        return None;
    }
    let options = attributes.inside(TCA_OPTIONS)?;
    if native32(options.find(TCA_BPF_FLAGS)?)? != DIRECT_ACTION {
        return None;
    }
    let (instructions, _) = options.find(TCA_BPF_OPS)?.as_chunks::<INSTRUCTION>();
    Some(
        instructions
            .iter()
            .copied()
            .map(Instruction::read)
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::Value;

    use super::*;
    use crate::testing::TestNs;

    /// `return verdict`.
    const fn always(verdict: Verdict) -> Instruction {
        Instruction {
            code: 6,
            jumps: [0, 0],
            operand: verdict.0,
        }
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

    fn link() -> (TestNs, Netlink, u32) {
        let ns = TestNs::new();
        ns.ip("link add v0 up type veth peer name v1");
        let mut netlink = Netlink::open().unwrap();
        let index = netlink.link(&"v0".parse().unwrap()).unwrap().index;
        (ns, netlink, index)
    }

    #[test]
    fn a_program_is_what_tc_would_have_set_and_is_read_again() {
        let (_ns, mut netlink, v0) = link();
        assert_eq!(netlink.classifier(v0).unwrap(), None);
        // ldh [12]; jeq #0x800 jt 0 jf 1; ret #2; ret #-1
        let instruction = |code, jumps, operand| Instruction {
            code,
            jumps,
            operand,
        };
        let program = [
            instruction(0x28, [0, 0], 12),
            instruction(0x15, [0, 1], 0x800),
            always(Verdict::DROP),
            always(Verdict::NEXT),
        ];
        netlink.ensure_classifier(v0, &program[3..]).unwrap();
        for _ in 0..2 {
            netlink.ensure_classifier(v0, &program).unwrap();
        }
        assert_eq!(netlink.classifier(v0).unwrap(), Some(program.to_vec()));
        let ours = tc("filter show dev v0 ingress");
        let words = "4,40 0 0 12,21 0 1 2048,6 0 0 2,6 0 0 4294967295,";
        let by_hand = Command::new("tc")
            .args("filter replace dev v0 ingress prio 1 handle 1 bpf da bytecode".split(' '))
            .arg(words)
            .status();
        assert!(by_hand.unwrap().success());
        assert_eq!(ours, tc("filter show dev v0 ingress"));
        assert!(ours.to_string().contains("direct-action"), "{ours}");
    }

    #[test]
    fn a_redirection_stands_behind_a_program_and_goes_alone() {
        let (ns, mut netlink, v0) = link();
        let ifb = netlink.ensure_ifb(&"ifb0".parse().unwrap(), 1500).unwrap();
        for program_first in [true, false] {
            let program = [always(Verdict::NEXT)];
            if program_first {
                netlink.ensure_classifier(v0, &program).unwrap();
            }
            netlink.ensure_redirect(v0, ifb.index).unwrap();
            netlink.ensure_classifier(v0, &program).unwrap();
            assert_eq!(netlink.redirect_of(v0).unwrap(), Some(ifb.index));
            assert_eq!(netlink.classifier(v0).unwrap(), Some(program.to_vec()));
            let shown = tc("filter show dev v0 ingress");
            let mut seen: Vec<_> = shown
                .as_array()
                .unwrap()
                .iter()
                .map(|filter| (filter["pref"].as_u64(), filter["kind"].as_str()))
                .collect();
            seen.dedup();
            assert_eq!(seen, [(Some(1), Some("bpf")), (Some(2), Some("u32"))]);
            if program_first {
                // It takes nothing of the program's along.
                netlink.remove_redirect(v0).unwrap();
                netlink.remove_redirect(v0).unwrap();
                assert_eq!(netlink.redirect_of(v0).unwrap(), None);
                assert_eq!(netlink.classifier(v0).unwrap(), Some(program.to_vec()));
                tc("qdisc del dev v0 clsact");
            }
        }
        // Somebody's own qdisc for what is received goes as before, and a program with it.
        netlink.remove_redirect(v0).unwrap();
        assert_eq!(netlink.redirect_of(v0).unwrap(), None);
        ns.ip("link del v0");
        let gone = netlink.ensure_classifier(v0, &[always(Verdict::NEXT)]);
        assert!(gone.unwrap_err().is_not_found());
    }

    #[test]
    fn a_program_that_is_none_is_refused_and_the_one_before_stays() {
        let (_ns, mut netlink, v0) = link();
        let program = [always(Verdict::NEXT)];
        netlink.ensure_classifier(v0, &program).unwrap();
        let endless = Instruction {
            code: 5,
            jumps: [0, 0],
            operand: 7,
        };
        let too_long = vec![always(Verdict::NEXT); MAX + 1];
        for wrong in [&[endless][..], &[], &too_long, &vec![endless; 1 << 17]] {
            let error = netlink.ensure_classifier(v0, wrong).unwrap_err();
            let count = wrong.len();
            assert_eq!(
                error.to_string(),
                format!(
                    "replace filter of link {v0} ingress bpf of {count} instructions: invalid argument (EINVAL)"
                )
            );
        }
        assert_eq!(netlink.classifier(v0).unwrap(), Some(program.to_vec()));
        netlink
            .ensure_classifier(v0, &vec![always(Verdict::DROP); MAX])
            .unwrap();
    }
}
