//! A process that serves until its standard input closes: whoever started it holds the other end.

use crate::{Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use std::io::{Read, stdin};
use std::time::Duration;

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// The file descriptor is readable.
    Readable,
    /// The time is over.
    TimedOut,
    /// Standard input was closed.
    Closed,
}

/// Waits until `fd` is readable, `timeout` is over (for ever, if none) or standard input closes.
/// What is already readable goes before a closed input.
pub(crate) fn wait(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Result<Wake> {
    let stdin = stdin();
    let timeout = timeout.map(to_timespec);
    loop {
        let mut fds = [
            PollFd::new(&fd, PollFlags::IN),
            PollFd::new(&stdin, PollFlags::IN),
        ];
        poll(&mut fds, timeout.as_ref()).map_err(Error::io("poll"))?;
        if !fds[0].revents().is_empty() {
            return Ok(Wake::Readable);
        }
        if fds[1].revents().is_empty() {
            return Ok(Wake::TimedOut);
        }
        let mut discarded = [0; 512];
        if stdin
            .lock()
            .read(&mut discarded)
            .map_err(Error::io("read standard input"))?
            == 0
        {
            return Ok(Wake::Closed);
        }
    }
}

/// Waits until `fd` is readable or `timeout` is over; true when it is readable.
pub(crate) fn readable_within(fd: BorrowedFd<'_>, timeout: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let ready = poll(&mut fds, Some(&to_timespec(timeout))).map_err(Error::io("poll"))?;
    Ok(ready > 0)
}

pub(crate) fn to_timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
