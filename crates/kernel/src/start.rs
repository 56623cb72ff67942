//! The start of a program that lives for a millisecond: the C library calls it, with nothing in between.
//!
//! The standard library's own start looks for the stack's end in `/proc/self/maps` and installs handlers that explain an
//! overflow of it: a tenth of a millisecond, a twentieth of an ADD. What no program can do without is done here: the
//! three standard descriptors are open, and writing to a reader who has gone is an error instead of the end.
//! A surprise: such a program has no `fn main`; [`start!`](crate::start!) names its first function.

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::fd::{BorrowedFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags};

/// Makes `fn(Vec<OsString>) -> bool` the program's start: it takes the arguments, the program's own name first, and returns
/// whether it succeeded.
#[macro_export]
macro_rules! start {
    ($program:path) => {
        // SAFETY: the C library looks for this name once, and has this signature in mind (C11, 5.1.2.2.1).
        #[unsafe(no_mangle)]
        extern "C" fn main(
            count: std::ffi::c_int,
            arguments: *const *const std::ffi::c_char,
        ) -> std::ffi::c_int {
            // SAFETY: both are as the C library gave them.
            unsafe { $crate::start::run($program, count, arguments) }
        }
    };
}

/// Runs the program and tells its exit code: 0 for success, 1 for failure. For [`start!`](crate::start!) alone.
///
/// # Safety
/// `arguments` points to `count` texts that end with NUL and outlive the program.
pub unsafe fn run(
    program: fn(Vec<OsString>) -> bool,
    count: c_int,
    arguments: *const *const c_char,
) -> c_int {
    open_standard_descriptors();
    // SAFETY: SIG_IGN is no function of ours, and no other thread exists yet.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    keep_memory();
    let argument = |number| {
        // SAFETY: the caller says that there are that many, and what they point to.
        let text = unsafe { CStr::from_ptr(*arguments.add(number)) };
        OsStr::from_bytes(text.to_bytes()).to_owned()
    };
    let count = usize::try_from(count).unwrap_or_default();
    c_int::from(!program((0..count).map(argument).collect()))
}

/// What is freed stays with the program, which ends before anybody could make use of it.
fn keep_memory() {
    // SAFETY: a number is set.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, c_int::MAX)
    };
}

/// All threads take memory from one place, and give it back there. The C library has one for each thread otherwise, and what one
/// has freed is of no use to another: several megabytes, in a program whose threads work by turns. A large block goes back
/// to the kernel when it is freed; the C library stops doing that for blocks as large as one that it has seen freed, and
/// then keeps the holes. Call it before there are threads. Nothing happens with another C library.
pub fn share_memory_of_threads() {
    // SAFETY: numbers are set; they are of consequence for what does not exist yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK);
    }
}

/// In bytes: with what the C library begins, too.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK: c_int = 128 * 1024;

/// A descriptor that is closed would be the next file's or socket's, and the result would be written into that.
fn open_standard_descriptors() {
    for number in 0..=2 {
        // SAFETY: only asked about; a number that is not open is what we look for.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        if rustix::io::fcntl_getfd(descriptor).is_ok() {
            continue;
        }
        // The lowest free number is given out: this one. Without /dev/null it stays closed, as it was.
        if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()) {
            let _ = null.into_raw_fd();
        }
    }
}
