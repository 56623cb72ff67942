//! Which address of a range set comes next: never-used ones first, then the least recently freed. One file per set.
//!
//! The file `free.<set>` is text: a head of fixed-width lines that says how far we are, a line per range, a blank line,
//! then one fixed-width line per freed address, oldest first. Freeing appends a line, taking moves `head` on, so both cost
//! the same however many there are. All of it happens under the directory's lock.
//!
//! The queue never decides who owns an address; the address files do. Each address that is free is in the queue or still
//! before us in the lap. A line too many (a kill between two steps) or a lost queue therefore costs one look per address,
//! once, and never an address: a lost or damaged file is begun anew, which starts a new lap through the whole set.

use std::fmt::Write;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;

use podspan_kernel::Prefix;

use super::directory::{Directory, errno_of, step};
use super::error::IpamError;
use super::range::RangeSet;

/// Every line has so many bytes: the longest address of 39, a keyword, white space.
const LINE: u64 = 48;

/// The lines that move: format, fresh, lap, head.
const CURSOR: u64 = 4 * LINE;

/// The first read of the file; enough for the head of some thirty ranges.
const HEAD_GUESS: usize = 4096;

/// The longest head that is believed.
const HEAD_MAX: usize = 1 << 20;

/// When so many freed addresses wait, the lap pauses: the lap of an IPv6 /64 has no end, and the file must have one.
pub(super) const WAITING_MAX: u64 = 65_536;

/// The file is rewritten when so many lines before `head`, and at least half of all, are of the past.
const COMPACT_MIN: u64 = 4096;

/// How far the queue is, and for which ranges: the head of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Head {
    /// The next address of the lap; none once the lap is complete.
    fresh: Option<IpAddr>,
    /// Where the lap began, and ends.
    lap: IpAddr,
    /// The index of the oldest line that is still queued.
    head: u64,
    /// The ranges, a line each: another text is another queue.
    ranges: String,
}

/// The queue of one range set, open and under the lock.
pub(super) struct Queue<'a> {
    directory: &'a Directory,
    set: &'a RangeSet,
    index: usize,
    name: String,
    file: File,
    head: Head,
    lines: u64,
}

/// Where the next candidate comes from.
#[derive(Clone, Copy)]
enum Turn {
    Lap(IpAddr),
    Queued(Option<IpAddr>),
}

impl Head {
    fn new(set: &RangeSet, start: IpAddr) -> Self {
        Self {
            fresh: Some(start),
            lap: start,
            head: 0,
            ranges: ranges_text(set),
        }
    }

    /// The bytes up to the first queued line.
    fn length(&self) -> u64 {
        CURSOR + self.ranges.len() as u64 + 1
    }

    /// The lines that move, as one block for one write.
    fn cursor(&self) -> String {
        let fresh = self.fresh.map_or("-".to_owned(), |ip| ip.to_string());
        [
            format!("podspan-free 1 {}", self.length()),
            format!("fresh {fresh}"),
            format!("lap   {}", self.lap),
            format!("head  {}", self.head),
        ]
        .iter()
        .map(|text| line(text))
        .collect()
    }

    fn text(&self) -> String {
        format!("{}{}\n", self.cursor(), self.ranges)
    }

    /// The head in `text`, which may go on with queued lines.
    fn parse(text: &str) -> Option<Self> {
        let length = Self::length_in(text)?;
        let (cursor, rest) = text.split_at_checked(CURSOR as usize)?;
        let ranges = rest.get(..length.checked_sub(CURSOR as usize + 1)?)?;
        let mut values = cursor.lines().skip(1);
        let mut value = |key: &str| Some(values.next()?.strip_prefix(key)?.trim());
        let fresh = match value("fresh ")? {
            "-" => None,
            ip => Some(ip.parse().ok()?),
        };
        let lap = value("lap ")?.parse().ok()?;
        let head = value("head ")?.parse().ok()?;
        rest.get(ranges.len()..)?.starts_with('\n').then(|| Self {
            fresh,
            lap,
            head,
            ranges: ranges.to_owned(),
        })
    }

    /// The length that the first line of `text` gives for the head.
    fn length_in(text: &str) -> Option<usize> {
        let first = text.lines().next()?;
        let length = first.strip_prefix("podspan-free 1 ")?.trim().parse().ok()?;
        (length <= HEAD_MAX).then_some(length)
    }

    /// The head of the file; none when it is damaged.
    fn read(file: &File) -> std::io::Result<Option<Self>> {
        let text = read_start(file, HEAD_GUESS)?;
        match Self::length_in(&text) {
            Some(length) if length > HEAD_GUESS => Ok(Self::parse(&read_start(file, length)?)),
            _ => Ok(Self::parse(&text)),
        }
    }

    /// True when the head is of this very set, and its lap one that comes to an end.
    fn fits(&self, set: &RangeSet) -> bool {
        let mut lap = std::iter::once(self.lap).chain(self.fresh);
        self.ranges == ranges_text(set) && lap.all(|ip| set.range_of(ip).is_some())
    }

    /// True when one of the ranges' subnets holds `ip`. Whether its range does is asked when the line's turn comes.
    fn concerns(&self, ip: IpAddr) -> bool {
        let subnets = self
            .ranges
            .lines()
            .filter_map(|range| range.split(' ').next()?.parse::<Prefix>().ok());
        subnets.into_iter().any(|subnet| subnet.holds(ip))
    }

    /// The position of the line with the index `index`.
    fn offset(&self, index: u64) -> u64 {
        self.length() + index * LINE
    }

    /// How many whole lines the file has. Half a line, left by a kill, is written over by the next.
    fn lines(&self, file: &File) -> std::io::Result<u64> {
        Ok(file.metadata()?.len().saturating_sub(self.length()) / LINE)
    }
}

fn ranges_text(set: &RangeSet) -> String {
    let mut text = String::new();
    for range in &set.0 {
        let _ = writeln!(text, "{range}");
    }
    text
}

fn file_name(index: usize) -> String {
    format!("free.{index}")
}

/// `text` as a line of the fixed width.
fn line(text: &str) -> String {
    format!("{text:<width$}\n", width = LINE as usize - 1)
}

/// The first `length` bytes of the file, or all of it.
fn read_start(file: &File, length: usize) -> std::io::Result<String> {
    let mut buffer = vec![0; length];
    let length = file.read_at(&mut buffer, 0)?;
    buffer.truncate(length);
    Ok(String::from_utf8_lossy(&buffer).into_owned())
}

impl<'a> Queue<'a> {
    /// Opens the queue of the range set with the index `index`; begins it anew where it is lost, damaged or of other
    /// ranges.
    pub fn open(
        directory: &'a Directory,
        index: usize,
        set: &'a RangeSet,
    ) -> Result<Self, IpamError> {
        let name = file_name(index);
        if let Some(file) = directory.open_file(&name)? {
            let fault = |err| directory.error("read", &name, errno_of(&err));
            if let Some(head) = Head::read(&file).map_err(fault)?
                && head.fits(set)
                && let lines = head.lines(&file).map_err(fault)?
                && head.head <= lines
            {
                return Ok(Self {
                    directory,
                    set,
                    index,
                    name,
                    file,
                    head,
                    lines,
                });
            }
        }
        let head = Head::new(set, start(directory, index, set)?);
        directory.replace(&name, head.text().as_bytes())?;
        let file = reopen(directory, &name)?;
        Ok(Self {
            directory,
            set,
            index,
            name,
            file,
            head,
            lines: 0,
        })
    }

    /// The next address that nobody has; none when the set is exhausted. The same one again until [`Queue::advance`].
    pub fn peek(&mut self) -> Result<Option<IpAddr>, IpamError> {
        let before = self.head.clone();
        let found = loop {
            let Some(turn) = self.turn()? else {
                break None;
            };
            if let Turn::Lap(ip) | Turn::Queued(Some(ip)) = turn
                && self.set.range_of(ip).is_some()
                && !self.directory.holds(&ip.to_string())?
            {
                break Some(ip);
            }
            self.pass(turn);
        };
        // What was passed over is never looked at again.
        if self.head != before {
            self.store()?;
        }
        Ok(found)
    }

    /// Moves past the address that [`Queue::peek`] gave, after its file was linked. A kill in between costs one look.
    pub fn advance(&mut self) -> Result<(), IpamError> {
        if let Some(turn) = self.turn()? {
            self.pass(turn);
        }
        self.store()?;
        if self.head.head >= COMPACT_MIN && self.head.head * 2 >= self.lines {
            // A file that stays long costs room and no address; the next ADD tries again.
            let _ = self.compact();
        }
        Ok(())
    }

    /// The range set whose queue it is.
    pub fn set(&self) -> &'a RangeSet {
        self.set
    }

    /// Starts a new lap through the whole set, for free addresses that the queue does not know.
    pub fn begin_lap(&mut self) {
        self.head.fresh = Some(self.head.lap);
    }

    /// The answer when no address of the set is free.
    pub fn exhausted(&self) -> IpamError {
        exhausted(self.directory, self.index, self.set)
    }

    fn waiting(&self) -> u64 {
        self.lines.saturating_sub(self.head.head)
    }

    fn turn(&self) -> Result<Option<Turn>, IpamError> {
        if let Some(fresh) = self.head.fresh
            && self.waiting() < WAITING_MAX
        {
            return Ok(Some(Turn::Lap(fresh)));
        }
        if self.waiting() == 0 {
            return Ok(None);
        }
        let mut buffer = [0; LINE as usize];
        self.file
            .read_exact_at(&mut buffer, self.head.offset(self.head.head))
            .map_err(|err| self.error("read", &err))?;
        let text = std::str::from_utf8(&buffer).unwrap_or_default();
        Ok(Some(Turn::Queued(text.trim().parse().ok())))
    }

    fn pass(&mut self, turn: Turn) {
        match turn {
            Turn::Lap(ip) => {
                self.head.fresh = self.set.after(ip).filter(|&next| next != self.head.lap);
            }
            Turn::Queued(Some(_)) => self.head.head += 1,
            // It may have been any address, and its neighbours are hardly better: a new lap finds them all, at one price.
            Turn::Queued(None) => {
                self.head.head = self.lines;
                self.begin_lap();
            }
        }
    }

    fn store(&self) -> Result<(), IpamError> {
        step();
        self.file
            .write_all_at(self.head.cursor().as_bytes(), 0)
            .map_err(|err| self.error("write", &err))
    }

    /// Rewrites the file without the lines of the past. Those are half of it, so each line is copied once on average.
    fn compact(&mut self) -> Result<(), IpamError> {
        let mut queued = vec![0; usize::try_from(self.waiting() * LINE).unwrap_or_default()];
        self.file
            .read_exact_at(&mut queued, self.head.offset(self.head.head))
            .map_err(|err| self.error("read", &err))?;
        let head = Head {
            head: 0,
            ..self.head.clone()
        };
        let mut content = head.text().into_bytes();
        content.append(&mut queued);
        self.directory.replace(&self.name, &content)?;
        self.file = reopen(self.directory, &self.name)?;
        self.lines = self.waiting();
        self.head = head;
        Ok(())
    }

    fn error(&self, operation: &'static str, err: &std::io::Error) -> IpamError {
        self.directory.error(operation, &self.name, errno_of(err))
    }
}

/// Puts a freed address at the tail of every queue whose ranges it is of; of a queue that is lost, the new lap finds it.
///
/// Needs no configuration: the queues know their ranges.
pub(super) fn append(directory: &Directory, ip: IpAddr) -> Result<(), IpamError> {
    for index in 0.. {
        let name = file_name(index);
        let Some(file) = directory.open_file(&name)? else {
            // Dual stack has two sets, and the first one's queue may be the lost one.
            if index == 0 {
                continue;
            }
            break;
        };
        let fault = |err| directory.error("append to", &name, errno_of(&err));
        let Some(head) = Head::read(&file).map_err(fault)? else {
            continue;
        };
        if head.concerns(ip) {
            let end = head.offset(head.lines(&file).map_err(fault)?);
            step();
            // No room for the line: a queue that is empty is begun anew, and its lap finds this address with the others.
            file.write_all_at(line(&ip.to_string()).as_bytes(), end)
                .or_else(|_| file.set_len(0))
                .map_err(fault)?;
        }
    }
    Ok(())
}

/// Where a queue begins: after the address that host-local gave last, or at the first.
fn start(directory: &Directory, index: usize, set: &RangeSet) -> Result<IpAddr, IpamError> {
    let last = directory.read(&format!("last_reserved_ip.{index}"))?;
    last.and_then(|text| text.trim().parse().ok())
        .and_then(|last| set.after(last))
        .or_else(|| set.first())
        .ok_or_else(|| exhausted(directory, index, set))
}

fn exhausted(directory: &Directory, index: usize, set: &RangeSet) -> IpamError {
    IpamError::Exhausted {
        set: index,
        total: set.total(),
        ranges: set.to_string(),
        directory: directory.path().to_owned(),
    }
}

fn reopen(directory: &Directory, name: &str) -> Result<File, IpamError> {
    directory
        .open_file(name)?
        .ok_or_else(|| directory.error("open", name, rustix::io::Errno::NOENT))
}

#[cfg(test)]
mod tests;
