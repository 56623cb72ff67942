//! Traffic control: how fast a link may send, and, by way of an `ifb` device, how fast it may receive.
//!
//! A link can only hold back what it sends. What it receives is therefore redirected to an `ifb` device of its own, which
//! sends it on where it would have gone, at its rate. Nothing here removes a queueing discipline of another kind than it
//! makes. A surprise: an ifb device does not go with the link that feeds it; its owner removes it as any link.

use rustix::io::Errno;

use crate::encode::{Attributes, Encoder, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, text};
use crate::error::{Error, Result};
use crate::link::Link;
use crate::link::attribute::{
    self, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, IFLA_NUM_RX_QUEUES,
    IFLA_NUM_TX_QUEUES,
};
use crate::names::IfName;
use crate::netlink::{Netlink, message, u32_at};

/// How long a packet may wait for its turn, in microseconds.
const LATENCY_US: u64 = 25_000;
const US_PER_SECOND: u64 = 1_000_000;
/// A tick of the kernel's packet scheduler is 64 ns (`PSCHED_SHIFT`, net/pkt_sched.h); this many ticks are 8 µs.
const TICKS_PER_8_US: u64 = 125;
/// Attributes of queueing disciplines and filters (linux/rtnetlink.h).
pub(crate) const TCA_KIND: u16 = 1;
pub(crate) const TCA_OPTIONS: u16 = 2;
/// `TCA_TBF_PARMS` (linux/pkt_sched.h): `struct tc_tbf_qopt`.
const TCA_TBF_PARMS: u16 = 1;
/// `TCA_TBF_RATE64`: the rate where 32 bits do not hold it.
const TCA_TBF_RATE64: u16 = 4;
/// Where `struct tc_tbf_qopt` has the rate (in the first `struct tc_ratespec`), the limit and the bucket.
const RATE_AT: usize = 8;
const LIMIT_AT: usize = 24;
const BUFFER_AT: usize = 28;
/// `TC_LINKLAYER_ETHERNET`.
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// Options of a u32 filter (linux/pkt_cls.h).
const TCA_U32_CLASSID: u16 = 1;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
/// `TC_U32_TERMINAL`: a match ends the search.
const TC_U32_TERMINAL: u8 = 1;
/// Attributes of an action, which stand in that of its number.
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
/// The first action.
const FIRST: u16 = 1;
/// `TCA_MIRRED_PARMS` (linux/tc_act/tc_mirred.h): `struct tc_mirred`, and where it has what to do and with which link.
const TCA_MIRRED_PARMS: u16 = 2;
const MIRRED_ACTION_AT: usize = 20;
const MIRRED_LINK_AT: usize = 24;
/// `TCA_EGRESS_REDIR`: have the link send it.
const TCA_EGRESS_REDIR: u32 = 1;
/// `TC_ACT_STOLEN` (linux/pkt_cls.h): nobody else sees it.
const TC_ACT_STOLEN: u32 = 4;
/// `ETH_P_ALL` (linux/if_ether.h): packets of every protocol.
const ETH_P_ALL: u16 = 3;
/// The place of our filter among those of a link: behind a program that drops (see `classifier`).
const PRIORITY: u16 = 2;
/// Handles have 16 bits before the colon and 16 behind it. That of the token bucket: `1:`.
const TBF_HANDLE: u32 = 0x1_0000;
/// The handle that an ingress qdisc always has: `ffff:`.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// The parents of a link's own qdisc, and of that for what it receives (`TC_H_ROOT` and `TC_H_INGRESS`, linux/pkt_sched.h).
const ROOT: u32 = u32::MAX;
const INGRESS: u32 = 0xffff_fff1;
/// The parent of filters of received packets (`TC_H_MIN_INGRESS`).
const INGRESS_FILTERS: u32 = 0xffff_fff2;
/// The handle of the one filter there: entry 800 of table 800, as u32 numbers its first.
const FILTER_HANDLE: u32 = 0x8000_0800;
/// The class that it puts packets into, which is nobody's: `1:1`.
const CLASS: u32 = 0x1_0001;

/// `struct tcmsg`, which is before the attributes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Header {
    pub(crate) link: u32,
    pub(crate) handle: u32,
    pub(crate) parent: u32,
    pub(crate) info: u32,
}

impl Header {
    /// A request that begins with it.
    pub(crate) fn request(self, kind: u16) -> Encoder {
        let mut request = Encoder::request(kind);
        for number in [0, self.link, self.handle, self.parent, self.info] {
            request.plain(&number.to_ne_bytes());
        }
        request
    }

    /// Reads it, and gives the attributes behind it.
    pub(crate) fn read(message: &[u8]) -> Option<(Self, Attributes<'_>)> {
        let (header, attributes) = message.split_first_chunk::<20>()?;
        let number = |at| u32_at(header, at);
        let header = Self {
            link: number(4)?,
            handle: number(8)?,
            parent: number(12)?,
            info: number(16)?,
        };
        Some((header, Attributes(attributes)))
    }
}

/// True when a qdisc or a filter is of that kind.
pub(crate) fn is_of_kind(attributes: Attributes<'_>, kind: &str) -> bool {
    attributes.find(TCA_KIND).and_then(text) == Some(kind)
}

/// How fast, and how much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bandwidth {
    /// In bits per second; at least 8.
    pub rate: u64,
    /// In bits; at least 8. The kernel drops every packet that is larger.
    pub burst: u64,
}

impl std::fmt::Display for Bandwidth {
    /// As one writes it behind `tc qdisc replace dev <link> root`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { rate, burst } = self;
        write!(f, "tbf rate {rate}bit burst {burst}bit latency 25ms")
    }
}

impl Bandwidth {
    /// Rate and burst in bytes, which is what the kernel counts; none when one of them would be nothing.
    fn bytes(self) -> Option<(u64, u64)> {
        let (rate, burst) = (self.rate / 8, self.burst / 8);
        (rate > 0 && burst > 0).then_some((rate, burst))
    }

    /// `struct tc_tbf_qopt`, and the rate again where its 32 bits do not hold it.
    ///
    /// The bucket is given in ticks, the time that its bytes take, and what may wait for it in bytes: one latency of
    /// them beyond a burst. What 32 bits do not hold is as much as they do.
    fn options(self) -> Option<Vec<(u16, Vec<u8>)>> {
        let (rate, burst) = self.bytes()?;
        let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        let scaled = |number: u64, by: u64| number.saturating_mul(by);
        let filling_us = small(scaled(burst, US_PER_SECOND) / rate);
        let buffer = small(u64::from(filling_us) * TICKS_PER_8_US / 8);
        let limit = small((scaled(rate, LATENCY_US) / US_PER_SECOND).saturating_add(burst));

        let mut parameters = vec![0, TC_LINKLAYER_ETHERNET, 0, 0, 0, 0, 0, 0];
        parameters.extend(small(rate).to_ne_bytes());
        parameters.extend([0; 12]); // no peak rate
        parameters.extend(limit.to_ne_bytes());
        parameters.extend(buffer.to_ne_bytes());
        parameters.extend([0; 4]); // mtu: of the peak rate's bucket
        let mut options = vec![(TCA_TBF_PARMS, parameters)];
        if rate > u64::from(u32::MAX) {
            options.push((TCA_TBF_RATE64, rate.to_ne_bytes().to_vec()));
        }
        Some(options)
    }

    /// True when the kernel tells these parameters.
    ///
    /// What it tells is not byte for byte what it was given, so that rate, limit and bucket are compared.
    fn is_told_by(self, told: Attributes<'_>) -> bool {
        let parts = |bytes: &[u8]| [RATE_AT, LIMIT_AT, BUFFER_AT].map(|at| u32_at(bytes, at));
        self.options().is_some_and(|wanted| {
            wanted.iter().all(|(kind, bytes)| match told.find(*kind) {
                Some(seen) if *kind == TCA_TBF_PARMS => parts(seen) == parts(bytes),
                seen => seen == Some(bytes),
            })
        })
    }
}

impl Netlink {
    /// Bounds what a link sends, by a token bucket at its root. Replaces an earlier bound.
    ///
    /// # Errors
    /// Not found; EINVAL when rate or burst are less than a byte; what the kernel answered.
    pub fn ensure_bandwidth(&mut self, link: u32, bandwidth: Bandwidth) -> Result<()> {
        let action = || format!("replace qdisc of link {link} root {bandwidth}");
        let options = bandwidth
            .options()
            .ok_or_else(|| Error::new(action(), Errno::INVAL))?;
        let root = Header {
            handle: TBF_HANDLE,
            ..root_of(link)
        };
        let mut request = root.request(message::NEW_QDISC);
        request.text(TCA_KIND, "tbf");
        request.list(TCA_OPTIONS, |to| {
            for (kind, bytes) in &options {
                to.bytes_attribute(*kind, bytes);
            }
        });
        self.change(request, NLM_F_CREATE | NLM_F_REPLACE, action)
    }

    /// Removes the bound of what a link sends; that there is none, or no such link, is fine.
    ///
    /// # Errors
    /// EINVAL when the link's root is of another kind; what the kernel answered.
    pub fn remove_bandwidth(&mut self, link: u32) -> Result<()> {
        self.remove(root_of(link), "tbf", || {
            format!("delete qdisc of link {link} root tbf")
        })
    }

    /// True when what the link sends is bounded so.
    ///
    /// # Errors
    /// Not found; what the kernel answered.
    pub fn has_bandwidth(&mut self, link: u32, bandwidth: Bandwidth) -> Result<bool> {
        let request = root_of(link).request(message::GET_QDISC);
        let is_it = |qdisc: &[u8]| {
            let (_, attributes) = Header::read(qdisc)?;
            let told = attributes.inside(TCA_OPTIONS);
            let as_wanted = told.is_some_and(|told| bandwidth.is_told_by(told));
            Some(as_wanted && is_of_kind(attributes, "tbf"))
        };
        self.query(request, is_it, || format!("find qdisc of link {link} root"))
    }

    /// The link that all that link `from` receives is sent through; none where there is no redirection.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn redirect_of(&mut self, from: u32) -> Result<Option<u32>> {
        let request = filters_of(from).request(message::GET_FILTER);
        let all = self.dump(request, "list filters", redirected_to)?;
        Ok(all.first().copied())
    }

    /// Makes an ifb device that is up, or finds it with another MTU and corrects that.
    ///
    /// # Errors
    /// Exists, when the name is that of a link of another kind; what the kernel answered.
    pub fn ensure_ifb(&mut self, name: &IfName, mtu: u32) -> Result<Link> {
        let action = || format!("add link {name} type ifb");
        let mut request = attribute::Header::UP.request(message::NEW_LINK);
        request.text(IFLA_IFNAME, name.as_str());
        request.native32(IFLA_MTU, mtu);
        request.native32(IFLA_NUM_TX_QUEUES, 1);
        request.native32(IFLA_NUM_RX_QUEUES, 1);
        request.list(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "ifb"));
        match self.change(request, NLM_F_CREATE | NLM_F_EXCL, action) {
            Err(error) if !error.is_exists() => return Err(error),
            _ => {}
        }
        let link = self.link(name)?;
        if link.kind.as_deref() != Some("ifb") {
            return Err(Error::new(action(), Errno::EXIST));
        }
        if link.up && link.mtu == mtu {
            return Ok(link);
        }
        let change = crate::LinkChange {
            up: true,
            mtu: Some(mtu),
            ..Default::default()
        };
        self.set_link(link.index, change)?;
        self.link(name)
    }

    /// Sends all that link `from` receives through link `to`, an ifb device, before it goes on.
    ///
    /// # Errors
    /// Not found, when one of the links or `u32` or `mirred` is not there; what the kernel answered.
    pub fn ensure_redirect(&mut self, from: u32, to: u32) -> Result<()> {
        self.ensure_ingress(from, "ingress")?;
        let mut request = redirection_of(from).request(message::NEW_FILTER);
        request.text(TCA_KIND, "u32");
        request.list(TCA_OPTIONS, |options| write_redirect(options, to));
        self.change(request, NLM_F_CREATE, || {
            format!("replace filter of link {from} ingress action redirect to link {to}")
        })
    }

    /// The place for filters of what a link receives. Both kinds, `ingress` and `clsact`, have the same handle, and what is
    /// there serves.
    pub(crate) fn ensure_ingress(&mut self, link: u32, kind: &str) -> Result<()> {
        let mut request = ingress_of(link).request(message::NEW_QDISC);
        request.text(TCA_KIND, kind);
        let action = || format!("add qdisc of link {link} {kind}");
        match self.change(request, NLM_F_CREATE | NLM_F_EXCL, action) {
            Err(error) if !error.is_exists() => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes the redirection of what a link receives; that there is none, or no such link, is fine. A qdisc `clsact` stays,
    /// with what else stands in it.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn remove_redirect(&mut self, from: u32) -> Result<()> {
        if self.redirect_of(from)?.is_some() {
            let mut request = redirection_of(from).request(message::DELETE_FILTER);
            request.text(TCA_KIND, "u32");
            let action = || format!("delete filter of link {from} ingress");
            match self.change(request, 0, action) {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        let action = || format!("delete qdisc of link {from} ingress");
        match self.remove(ingress_of(from), "ingress", action) {
            // The other kind.
            Err(error) if error.errno() == Errno::INVAL => Ok(()),
            outcome => outcome,
        }
    }

    /// Deletes a qdisc of that kind.
    ///
    /// The kernel says EINVAL both when another kind is there and when there is none but the link's default, whose handle
    /// is 0; only the former is an error.
    fn remove(&mut self, qdisc: Header, kind: &str, action: impl FnOnce() -> String) -> Result<()> {
        let mut request = qdisc.request(message::DELETE_QDISC);
        request.text(TCA_KIND, kind);
        match self.change(request, 0, action) {
            Err(error) if error.errno() == Errno::INVAL => {
                let look = Header { handle: 0, ..qdisc }.request(message::GET_QDISC);
                let handle = |qdisc: &[u8]| Header::read(qdisc).map(|(header, _)| header.handle);
                match self.query(look, handle, String::new) {
                    Ok(handle) if handle > u32::from(u16::MAX) => Err(error),
                    _ => Ok(()),
                }
            }
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// Where a filter of ours sends to.
fn redirected_to(filter: &[u8]) -> Option<u32> {
    let (_, attributes) = Header::read(filter)?;
    if !is_of_kind(attributes, "u32") {
        return None;
    }
    let mut actions = attributes.inside(TCA_OPTIONS)?.inside(TCA_U32_ACT)?;
    actions.find_map(|(_, action)| {
        let action = Attributes(action);
        let is_mirred = action.find(TCA_ACT_KIND).and_then(text) == Some("mirred");
        let parameters = action.inside(TCA_ACT_OPTIONS)?.find(TCA_MIRRED_PARMS)?;
        let redirects = u32_at(parameters, MIRRED_ACTION_AT)? == TCA_EGRESS_REDIR;
        u32_at(parameters, MIRRED_LINK_AT).filter(|_| is_mirred && redirects)
    })
}

/// What a link sends by.
fn root_of(link: u32) -> Header {
    Header {
        link,
        parent: ROOT,
        ..Header::default()
    }
}

/// What a link receives by.
fn ingress_of(link: u32) -> Header {
    Header {
        link,
        handle: INGRESS_HANDLE,
        parent: INGRESS,
        info: 0,
    }
}

/// All filters of what a link receives.
pub(crate) fn filters_of(link: u32) -> Header {
    Header {
        link,
        parent: INGRESS_FILTERS,
        ..Header::default()
    }
}

/// Our filter there that redirects.
fn redirection_of(link: u32) -> Header {
    Header {
        handle: FILTER_HANDLE,
        info: every_protocol(PRIORITY),
        ..filters_of(link)
    }
}

/// `tcm_info` of a filter for frames of every protocol.
pub(crate) fn every_protocol(priority: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be())
}

/// A u32 filter that every packet matches and that gives it to `link` to send.
fn write_redirect(to: &mut Encoder, link: u32) {
    // `struct tc_u32_sel` with one `struct tc_u32_key`, whose mask is 0.
    let mut selector = [0; 16 + 16];
    let [flags, _, keys, ..] = &mut selector;
    (*flags, *keys) = (TC_U32_TERMINAL, 1);
    let numbers = [0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, link];
    to.native32(TCA_U32_CLASSID, CLASS);
    to.bytes_attribute(TCA_U32_SEL, &selector);
    to.list(TCA_U32_ACT, |actions| {
        actions.list(FIRST, |action| {
            action.text(TCA_ACT_KIND, "mirred");
            action.nest(TCA_ACT_OPTIONS, |options| {
                options.bytes_attribute(
                    TCA_MIRRED_PARMS,
                    numbers.map(u32::to_ne_bytes).as_flattened(),
                );
            });
        });
    });
}

#[cfg(test)]
mod tests;
