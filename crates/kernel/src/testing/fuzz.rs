//! For fuzzing: how long, from which seed, and bytes that are nearly right.
//!
//! `PODSPAN_FUZZ_SECONDS` says how long each target runs, 10 seconds otherwise. A case that fails prints its seed;
//! `PODSPAN_FUZZ_SEED` runs that case alone.

use std::fmt;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SECONDS: &str = "PODSPAN_FUZZ_SECONDS";
const SEED: &str = "PODSPAN_FUZZ_SEED";
/// No case takes so long, not even one that fails and is made smaller.
const HANG: Duration = Duration::from_secs(120);

/// Numbers that look random: SplitMix64 (Steele, Lea and Flood 2014), for which any seed is as good as another.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The numbers of that seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `end`, which does not belong to them; 0 where there is none.
    pub fn below(&mut self, end: usize) -> usize {
        (self.roll() % end.max(1) as u64) as usize
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    /// One of them.
    ///
    /// # Panics
    /// When there is none.
    #[expect(clippy::indexing_slicing, reason = "a test's own list")]
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Runs `case` with a seed of its own each time until the time is over; how many there were.
///
/// # Panics
/// When a case does; its seed is printed then. When an environment variable is no number.
pub fn run(mut case: impl FnMut(u64)) -> u64 {
    let (begins, begun) = mpsc::channel();
    std::thread::spawn(move || watch(&begun));
    let mut tried = |seed: u64| {
        // It ends before we do only by ending all.
        let _ = begins.send(seed);
        let _told = Told(seed);
        case(seed);
    };
    if let Some(seed) = number(SEED) {
        tried(seed);
        return 1;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut seeds = Dice::new(now.map_or(0, |time| time.as_nanos() as u64));
    let end = Instant::now() + Duration::from_secs(number(SECONDS).unwrap_or(10));
    let mut count = 0;
    while Instant::now() < end {
        tried(seeds.roll());
        count += 1;
    }
    count
}

/// Tells the seed when its case panics.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tell(format_args!("to repeat this case alone: {SEED}={}", self.0));
        }
    }
}

/// Ends the whole test when a case hangs: a thread cannot be ended.
fn watch(begun: &mpsc::Receiver<u64>) {
    let Ok(mut last) = begun.recv() else { return };
    loop {
        match begun.recv_timeout(HANG) {
            Ok(seed) => last = seed,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                tell(format_args!("this case hangs: {SEED}={last}"));
                std::process::abort();
            }
        }
    }
}

#[expect(clippy::print_stderr, reason = "how a failure is repeated")]
fn tell(text: fmt::Arguments<'_>) {
    eprintln!("{text}");
}

#[expect(clippy::panic, reason = "a test's input")]
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name} is {text:?}, no number"),
    }
}

/// Numbers at which lengths and kinds go wrong.
const EDGES: [u32; 16] = [
    0,
    1,
    3,
    4,
    5,
    8,
    15,
    16,
    17,
    20,
    0xff,
    0x7fff,
    0xffff,
    0x8000,
    i32::MAX as u32,
    u32::MAX,
];

/// Puts some places of the bytes out of order: bits, bytes, numbers at even places, pieces left out, doubled or taken from
/// `other`, and the end cut off.
pub fn mutate(bytes: &mut Vec<u8>, other: &[u8], dice: &mut Dice) {
    for _ in 0..=dice.below(6) {
        let at = dice.below(bytes.len());
        let even = at & !3;
        let [a, b, c, d] = dice.pick(&EDGES).to_ne_bytes();
        match dice.below(8) {
            0 => {
                let bit = 1 << dice.below(8);
                bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= bit);
            }
            1 => overwrite(bytes, at, &[dice.roll() as u8]),
            2 => overwrite(bytes, even, &[a, b]),
            3 => overwrite(bytes, even + 2, &[a, b]),
            4 => overwrite(bytes, even, &[a, b, c, d]),
            5 => bytes.truncate(at),
            6 => {
                let end = (even + 4 * dice.below(16)).min(bytes.len());
                let piece: Vec<u8> = bytes.drain(even..end).collect();
                let again = piece.repeat(dice.below(4));
                let to = dice.below(bytes.len() + 1) & !3;
                bytes.splice(to..to, again);
            }
            _ => {
                let from = dice.below(other.len()) & !3;
                let piece = other.iter().skip(from).take(4 * dice.below(32));
                bytes.splice(even..even, piece.copied());
            }
        }
    }
}

/// Writes what there is room for.
pub fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    for (place, byte) in bytes.iter_mut().skip(at).zip(with) {
        *place = *byte;
    }
}
