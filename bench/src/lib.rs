//! Real kernel events on demand, and the sandboxes they happen in.
//!
//! The binary `load` is the command line of these modules. Each prints exactly what it did, so that what an observer
//! counted can be held against it. Traffic belongs on loopback or in a network namespace of one's own.

pub mod cgroup;
pub mod churn;
pub mod connect;
pub mod cpu;
pub mod disk;
mod error;
pub mod interleave;
pub mod kubernetes;
mod lifeline;
pub mod listen;
pub mod packet;
pub mod race;
pub mod sandbox;
pub mod storm;
pub mod tour;
pub mod tun;
pub mod tun_client;
pub mod tun_peer;

use std::io::Write;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

pub use error::Error;

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// Prints one JSON object as a line on standard output, and flushes it: a reader may be waiting for it.
///
/// # Errors
/// When standard output is closed.
pub fn print<T: serde::Serialize>(report: &T) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    serde_json::to_writer(&mut stdout, report)
        .map_err(std::io::Error::from)
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush())
        .map_err(Error::io("write to standard output"))
}

/// A duration as the field's unit.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Takes a thread's result, and its panic as one's own.
pub(crate) fn join_thread<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
