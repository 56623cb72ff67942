//! The names and contents of the store's files. Pure: from text to values and back.
//!
//! Address files are host-local's, byte for byte, so that host-local can take a directory back and we can take one over.
//! Surprising: what does not parse is no error but "not one of ours" or "owner unknown"; the store decides what follows.

use std::net::IpAddr;

use super::directory::NAME_MAX;
use super::error::IpamError;
use crate::attachment::AttachmentId;

/// The record's name. A colon separates, because neither a container id nor an interface name can have one.
pub(super) fn record_name(id: &AttachmentId) -> Result<String, IpamError> {
    let name = format!("{}:{}", id.container, id.ifname);
    if name.len() > NAME_MAX {
        return Err(IpamError::TooLong {
            id: id.clone(),
            bytes: name.len(),
        });
    }
    Ok(format!("attachments/{name}"))
}

pub(super) fn parse_record_name(name: &str) -> Option<AttachmentId> {
    let (container, ifname) = name.split_once(':')?;
    Some(AttachmentId {
        container: container.parse().ok()?,
        ifname: ifname.parse().ok()?,
    })
}

/// The address that a file of this name is of. Other spellings of an address are other people's files.
pub(super) fn parse_address(name: &str) -> Option<IpAddr> {
    let address: IpAddr = name.parse().ok()?;
    (address.to_string() == name).then_some(address)
}

/// The attachment that an address file names. Old host-locals wrote no interface name; those were `eth0`.
pub(super) fn parse_owner(content: &str) -> Option<AttachmentId> {
    let mut lines = content.trim().lines();
    let container = lines.next()?.parse().ok()?;
    let ifname = lines.next().unwrap_or("eth0").parse().ok()?;
    lines
        .next()
        .is_none()
        .then_some(AttachmentId { container, ifname })
}

/// The content of the address file of an attachment.
pub(super) fn owner_text(id: &AttachmentId) -> String {
    format!("{}\r\n{}", id.container, id.ifname)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(container: &str, ifname: &str) -> AttachmentId {
        AttachmentId {
            container: container.parse().unwrap(),
            ifname: ifname.parse().unwrap(),
        }
    }

    #[test]
    fn an_address_file_reads_as_host_local_writes_it() {
        assert_eq!(owner_text(&id("c1", "net1")), "c1\r\nnet1");
        for (text, owner) in [
            ("c1\r\nnet1", Some(id("c1", "net1"))),
            ("c1\r\nnet1\n", Some(id("c1", "net1"))),
            ("c1", Some(id("c1", "eth0"))),
            ("c1\n", Some(id("c1", "eth0"))),
            ("", None),
            ("\0\0\0", None),
            ("c1\r\n", Some(id("c1", "eth0"))),
            ("c1\r\nnot/a/name", None),
            ("c1\r\nnet1\r\nmore", None),
        ] {
            assert_eq!(parse_owner(text), owner, "{text:?}");
        }
    }

    #[test]
    fn a_record_names_its_attachment_and_a_name_too_long_is_refused() {
        let name = record_name(&id("c1", "net1")).unwrap();
        assert_eq!(name, "attachments/c1:net1");
        assert_eq!(parse_record_name("c1:net1"), Some(id("c1", "net1")));
        assert_eq!(parse_record_name("c1"), None);
        assert!(record_name(&id(&"c".repeat(250), "eth0")).is_ok());
        let long = record_name(&id(&"c".repeat(251), "eth0")).unwrap_err();
        assert!(
            long.to_string()
                .ends_with("needs a file name of 256 bytes; a file system has room for 255")
        );
    }

    #[test]
    fn only_the_usual_spelling_of_an_address_is_an_address_file() {
        assert!(parse_address("10.244.1.7").is_some() && parse_address("fd00::7").is_some());
        for name in ["fd00:0::7", "FD00::7", "10.244.1", "lock", "10.244.1.7.new"] {
            assert_eq!(parse_address(name), None, "{name}");
        }
    }
}
