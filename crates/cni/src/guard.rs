//! The guard: a pod sends as itself only (`antiSpoof`; `macspoofchk` for the MAC address alone).
//!
//! On the host's end of the veth stands a program that judges each frame before the bridge, or anybody else on the node, has
//! seen it (see [`program`]). It is the pod's alone and goes with the link: nothing is shared, nothing is left, and DEL has
//! nothing to do. What the bridge then need not find out is written down: the pod's MAC address is behind that port, for good.
//! A surprise: the kernel takes frames past all programs of a link that an `ifb` device of the sender's own sent. That takes
//! `CAP_NET_ADMIN` in the pod's network namespace, which an ordinary pod does not have (docs/decisions/0009-guard.md).

mod program;

use std::net::IpAddr;

use podspan_kernel::{Errno, Link, Mac, Netlink};

use crate::error::Error;

/// What a pod may send as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guard {
    /// Its MAC address.
    pub mac: Mac,
    /// Its addresses; none where they are anybody's guess.
    pub addresses: Option<Vec<IpAddr>>,
}

impl Guard {
    /// Has the guard judge all that the link receives, and the bridge know whose port it is.
    ///
    /// Before the link is up, so that the pod's first frame meets it; and when it has its VLANs, each of which then knows.
    ///
    /// # Errors
    /// [`Error::UnsupportedField`] when the kernel cannot guard; what else it answered.
    pub fn ensure(&self, host: &mut Netlink, port: u32) -> Result<(), Error> {
        host.ensure_classifier(port, &program::of(self))
            .map_err(explain)?;
        Ok(host.ensure_behind(port, self.mac)?)
    }

    /// What is other than it should be about the link, in words.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn deviations(&self, host: &mut Netlink, link: &Link) -> Result<Vec<String>, Error> {
        let (name, mac) = (&link.name, self.mac);
        let mut deviations = Vec::new();
        match host.classifier(link.index)? {
            Some(found) if found == program::of(self) => {}
            Some(_) => deviations.push(format!(
                "the guard against spoofing on host veth {name} is not that of {self}"
            )),
            None => deviations.push(format!(
                "host veth {name} has no guard against spoofing, for {self}"
            )),
        }
        if !host.is_behind(link.index, mac)? {
            deviations.push(format!(
                "the bridge has no static entry that {mac} is behind host veth {name}"
            ));
        }
        for (what, is_on) in [("learning", link.learning), ("flood", link.flood)] {
            if is_on {
                deviations.push(format!("host veth {name} has {what} on"));
            }
        }
        Ok(deviations)
    }
}

impl std::fmt::Display for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.mac.fmt(f)?;
        match &self.addresses {
            None => f.write_str(" with any address"),
            Some(addresses) => addresses.iter().try_for_each(|ip| write!(f, " {ip}")),
        }
    }
}

/// Names the key, where the kernel cannot guard. Of a link that is gone it says ENODEV.
fn explain(error: podspan_kernel::Error) -> Error {
    match error.errno() {
        Errno::NOENT | Errno::OPNOTSUPP => Error::UnsupportedField(format!(
            "antiSpoof: true (or macspoofchk) needs a kernel with CONFIG_NET_CLS_BPF and CONFIG_NET_SCH_INGRESS: {error}; \
             \"antiSpoof\": false goes without"
        )),
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_guard_is_told_with_the_key() {
        let error = |errno| podspan_kernel::Error::new("add qdisc of link 7 clsact", errno);
        for errno in [Errno::NOENT, Errno::OPNOTSUPP] {
            let told = explain(error(errno));
            assert_eq!(told.code(), 2);
            let told = told.to_string();
            assert!(told.contains("CONFIG_NET_CLS_BPF") && told.contains("add qdisc of link 7"));
            assert!(told.ends_with("\"antiSpoof\": false goes without"));
        }
        for errno in [Errno::NODEV, Errno::PERM, Errno::INVAL] {
            assert_eq!(explain(error(errno)).code(), 100);
        }
    }
}
