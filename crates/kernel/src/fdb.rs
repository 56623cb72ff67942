//! The forwarding table of a bridge: which Ethernet address is behind which port, as somebody wrote it down.
//!
//! What is written down here is neither forgotten nor learned away: it goes with the port alone. On a bridge that heeds VLANs it
//! is written for each VLAN that the port has by then.

use rustix::io::Errno;

use crate::encode::{Encoder, NLM_F_CREATE, NLM_F_REPLACE};
use crate::error::Result;
use crate::link::AF_BRIDGE;
use crate::names::Mac;
use crate::neighbour::{self, NDA_LLADDR, NTF_MASTER, NTF_STICKY, NUD_NOARP};
use crate::netlink::{Netlink, message};

impl Netlink {
    /// Writes down that an Ethernet address is behind a bridge's port, in the place of what the bridge believes of it.
    ///
    /// Frames that come in by another port with that address as their sender's change nothing (`NTF_STICKY`).
    ///
    /// # Errors
    /// EOPNOTSUPP or EINVAL when the link is no bridge's port; not found; what the kernel answered.
    pub fn ensure_behind(&mut self, port: u32, mac: Mac) -> Result<()> {
        // `permanent` would be an address of the bridge itself (`fdb_add_entry`, net/bridge/br_fdb.c).
        let entry = neighbour::Header {
            state: NUD_NOARP,
            flags: NTF_MASTER | NTF_STICKY,
            ..header(port)
        };
        let request = about(message::NEW_NEIGHBOUR, entry, mac);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        self.change(request, flags, || {
            format!("replace fdb entry {mac} dev {port} master static sticky")
        })
    }

    /// True when it is written down that an Ethernet address is behind a bridge's port.
    ///
    /// # Errors
    /// What the kernel answered; that the link is no bridge's port, or is not there, is false.
    pub fn is_behind(&mut self, port: u32, mac: Mac) -> Result<bool> {
        let request = about(message::GET_NEIGHBOUR, header(port), mac);
        let is_written = |entry: &[u8]| {
            let (entry, _) = neighbour::Header::read(entry)?;
            Some(entry.link == port && entry.state == NUD_NOARP)
        };
        let action = || format!("find fdb entry {mac} dev {port} master");
        match self.query(request, is_written, action) {
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) if matches!(error.errno(), Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
            outcome => outcome,
        }
    }
}

fn header(port: u32) -> neighbour::Header {
    neighbour::Header {
        family: AF_BRIDGE,
        link: port,
        state: 0,
        flags: NTF_MASTER,
    }
}

fn about(kind: u16, entry: neighbour::Header, mac: Mac) -> Encoder {
    let mut request = entry.request(kind);
    request.bytes_attribute(NDA_LLADDR, &mac.0);
    request
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use serde_json::Value;

    use super::*;
    use crate::testing::TestNs;

    const MAC: Mac = Mac([0x0a, 0x58, 10, 244, 1, 2]);

    fn shown(link: &str) -> Vec<Value> {
        let output = Command::new("bridge")
            .args(["-j", "fdb", "show", "dev", link])
            .output();
        let all: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
        let all = all.as_array().unwrap().iter();
        let of_mac = all.filter(|entry| entry["mac"] == MAC.to_string());
        of_mac.cloned().collect()
    }

    #[test]
    fn an_address_is_written_down_for_one_port_and_outlives_its_carrier() {
        let ns = TestNs::new();
        ns.ip("link add br0 up type bridge");
        for pair in ["0", "1"] {
            ns.ip(&format!("link add v{pair} type veth peer name x{pair}"));
            ns.ip(&format!("link set v{pair} master br0"));
        }
        let mut netlink = Netlink::open().unwrap();
        let mut index = |name: &str| netlink.link(&name.parse().unwrap()).unwrap().index;
        let ([v0, v1], lo) = (["v0", "v1"].map(&mut index), index("lo"));
        assert!(!netlink.is_behind(v0, MAC).unwrap());
        for port in [v1, v0, v0] {
            netlink.ensure_behind(port, MAC).unwrap();
        }
        let has =
            |netlink: &mut Netlink| [v0, v1, lo, 99].map(|it| netlink.is_behind(it, MAC).unwrap());
        assert_eq!(has(&mut netlink), [true, false, false, false]);
        assert_eq!(shown("v0")[0]["state"], "static");
        assert_eq!(shown("v1"), [] as [Value; 0]);
        for state in ["up", "down", "up"] {
            for link in ["v0", "x0"] {
                ns.ip(&format!("link set {link} {state}"));
            }
        }
        assert_eq!(has(&mut netlink), [true, false, false, false]);
        // One that was learned is none that was written down. A port without carrier learns nothing (EPERM): wait for it.
        netlink.link(v0).unwrap();
        let learn = [
            "fdb",
            "replace",
            &MAC.to_string(),
            "dev",
            "v0",
            "master",
            "dynamic",
        ];
        let learned = Command::new("bridge").args(learn).status();
        assert!(learned.unwrap().success());
        assert_eq!(has(&mut netlink), [false; 4]);
        let refused = netlink.ensure_behind(lo, MAC).unwrap_err();
        assert!(
            matches!(refused.errno(), Errno::OPNOTSUPP | Errno::INVAL),
            "{refused}"
        );
        netlink.ensure_behind(v0, MAC).unwrap();
        ns.ip("link set v0 nomaster");
        assert_eq!(has(&mut netlink), [false; 4]);
    }
}
