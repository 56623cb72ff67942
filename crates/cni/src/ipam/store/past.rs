//! What another boot left in a directory that outlives boots: all of it is void, for no netns outlives its boot.
//!
//! But the boot id says only when *we* worked here last. Since then host-local may have given addresses to pods of this
//! boot, as after a return to another network and back, and no address of a living pod may be taken away. So what our records
//! tell of goes; and of what no record tells of, only what is older than this boot and than something that we wrote in the
//! last. What is left is taken for host-local's.
//! Surprising: a clock that was set makes this keep more, and never remove more; what is kept in vain goes with DEL or GC.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rustix::time::{ClockId, clock_gettime};

use super::{IpamError, Locked, Owner, Record};
use crate::attachment::AttachmentId;
use crate::ipam::format::parse_record_name;

/// What file times and clocks may be wrong by, in seconds: file systems that count in twos, and clocks that are put right.
const MARGIN: i64 = 10;

/// When this boot began, in seconds since 1970, by the clock as it goes now.
pub(super) fn boot_start() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec - clock_gettime(ClockId::Boottime).tv_sec
}

/// What is certain about the boot that left a directory.
struct Past {
    /// The attachments whose records tell of an address, and when each was written.
    records: BTreeMap<IpAddr, Vec<(AttachmentId, i64)>>,
    /// What was written before is of that boot or an earlier one.
    before: i64,
}

impl Locked {
    /// Removes what another boot left; `started` is when this one began. Files that are neither ours nor host-local's stay.
    ///
    /// Records and queues go last: a kill before leaves all that this goes by.
    ///
    /// # Errors
    /// When the file system fails.
    pub(super) fn void(&self, started: i64) -> Result<(), IpamError> {
        let past = self.past(started)?;
        let mut kept = false;
        for ip in self.addresses()? {
            match self.is_past(ip, &past)? {
                true => self.directory.remove(&ip.to_string())?,
                false => kept = true,
            }
        }
        for name in self.directory.names("attachments")? {
            if parse_record_name(&name).is_some() {
                self.directory.remove(&format!("attachments/{name}"))?;
            }
        }
        for name in self.directory.names("")? {
            let of_host_local = name.starts_with("last_reserved_ip.") || name == "adopted";
            if name.starts_with("free.") || (of_host_local && !kept) {
                self.directory.remove(&name)?;
            }
        }
        self.adopt()
    }

    fn past(&self, started: i64) -> Result<Past, IpamError> {
        let mut past = Past {
            records: BTreeMap::new(),
            before: 0,
        };
        let mut newest = self.directory.written("boot_id")?.unwrap_or(0);
        for name in self.directory.names("")? {
            if name.starts_with("free.") {
                newest = newest.max(self.directory.written(&name)?.unwrap_or(0));
            }
        }
        for name in self.directory.names("attachments")? {
            let Some(id) = parse_record_name(&name) else {
                continue;
            };
            let written = self.directory.written(&format!("attachments/{name}"))?;
            let written = written.unwrap_or(0);
            newest = newest.max(written);
            if let Record::Sound(addresses) = self.record(&id)? {
                for ip in addresses {
                    past.records
                        .entry(ip)
                        .or_default()
                        .push((id.clone(), written));
                }
            }
        }
        past.before = newest.min(started - MARGIN);
        Ok(past)
    }

    /// True when it is certain that the address was given in another boot.
    fn is_past(&self, ip: IpAddr, past: &Past) -> Result<bool, IpamError> {
        let owner = self.owner(ip)?;
        let written = self.directory.written(&ip.to_string())?.unwrap_or(0);
        let records = past.records.get(&ip).into_iter().flatten();
        // An ADD writes its record, then at once the address. What bears the same name and is newer is a later ADD's.
        let mut of_record = records.filter(|(_, record)| written <= record + MARGIN);
        Ok(match owner {
            Owner::Attachment(owner) => of_record.any(|(id, _)| *id == owner),
            Owner::Unknown => of_record.next().is_some(),
            Owner::Nobody => false,
        } || written < past.before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_boot_began_before_now_and_after_the_kernel_was_made() {
        let now = clock_gettime(ClockId::Realtime).tv_sec;
        let started = boot_start();
        assert!((1..=now).contains(&started), "{started} of {now}");
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        let by_proc = now - uptime as i64;
        assert!((by_proc - started).abs() <= 2, "{by_proc} {started}");
    }
}
