//! TCP connects, one after the other, each outcome counted.

use crate::lifeline::to_timespec;
use crate::{Error, Result, cpu, nanoseconds};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// Above this many connects, closing with FIN would fill the ports of one address with `TIME_WAIT`.
const RST_ABOVE: u64 = 20_000;

/// How one connect ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The handshake was done.
    Connected,
    /// ECONNREFUSED: nobody listens.
    Refused,
    /// ETIMEDOUT: no answer to any SYN.
    Timeout,
    /// EHOSTUNREACH or ENETUNREACH.
    Unreachable,
    /// Closed by this side while the handshake was under way.
    Aborted,
    /// EADDRNOTAVAIL: no free local port.
    Local,
    /// Any other error.
    Other(Errno),
}

impl From<Errno> for Outcome {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::CONNREFUSED => Self::Refused,
            Errno::TIMEDOUT => Self::Timeout,
            Errno::HOSTUNREACH | Errno::NETUNREACH => Self::Unreachable,
            Errno::ADDRNOTAVAIL => Self::Local,
            other => Self::Other(other),
        }
    }
}

/// How many connects ended how.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// All of them.
    pub attempted: u64,
    /// See [`Outcome::Connected`]; each following field likewise.
    pub connected: u64,
    /// Nobody listened.
    pub refused: u64,
    /// No answer.
    pub timeout: u64,
    /// No way there.
    pub unreachable: u64,
    /// Given up by this side.
    pub aborted: u64,
    /// No local port.
    pub local: u64,
    /// The rest.
    pub other: u64,
}

impl Tally {
    /// Counts one connect.
    pub fn count(&mut self, outcome: Outcome) {
        self.attempted += 1;
        *match outcome {
            Outcome::Connected => &mut self.connected,
            Outcome::Refused => &mut self.refused,
            Outcome::Timeout => &mut self.timeout,
            Outcome::Unreachable => &mut self.unreachable,
            Outcome::Aborted => &mut self.aborted,
            Outcome::Local => &mut self.local,
            Outcome::Other(_) => &mut self.other,
        } += 1;
    }

    /// Adds what another thread or process counted.
    pub fn add(&mut self, more: &Self) {
        self.attempted += more.attempted;
        self.connected += more.connected;
        self.refused += more.refused;
        self.timeout += more.timeout;
        self.unreachable += more.unreachable;
        self.aborted += more.aborted;
        self.local += more.local;
        self.other += more.other;
    }
}

/// A TCP socket that connects once.
#[derive(Debug)]
pub struct Client(OwnedFd);

impl Client {
    /// Makes the socket. It belongs to the cgroup that this process is in now, wherever it connects later.
    ///
    /// # Errors
    /// When the kernel gives no socket, such as for want of file descriptors.
    pub fn open(to: SocketAddr) -> Result<Self> {
        let family = if to.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map(Self)
            .map_err(Error::io("make a TCP socket"))
    }

    /// Connects and waits for the outcome, as long as the kernel tries.
    #[must_use]
    pub fn connect(&self, to: SocketAddr) -> Outcome {
        match connect(&self.0, &to) {
            Ok(()) => Outcome::Connected,
            Err(errno) => errno.into(),
        }
    }

    /// Connects and waits for the outcome, at most so long: what is undecided then is [`Outcome::Aborted`] once this
    /// socket is closed.
    #[must_use]
    pub fn connect_within(&self, to: SocketAddr, patience: Duration) -> Outcome {
        self.try_connect_within(to, patience)
            .unwrap_or_else(Outcome::from)
    }

    fn try_connect_within(
        &self,
        to: SocketAddr,
        patience: Duration,
    ) -> rustix::io::Result<Outcome> {
        rustix::io::ioctl_fionbio(&self.0, true)?;
        match connect(&self.0, &to) {
            Err(Errno::INPROGRESS) => {}
            decided => return decided.map(|()| Outcome::Connected),
        }
        let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
        if poll(&mut fds, Some(&to_timespec(patience)))? == 0 {
            return Ok(Outcome::Aborted);
        }
        sockopt::socket_error(&self.0)?.map(|()| Outcome::Connected)
    }

    /// Closes with RST instead of FIN, so that no side keeps the port in `TIME_WAIT`.
    ///
    /// # Errors
    /// When the kernel refuses the socket option.
    pub fn reset(self) -> Result<()> {
        sockopt::set_socket_linger(&self.0, Some(Duration::ZERO))
            .map_err(Error::io("set SO_LINGER"))
    }
}

/// What to connect to, and how often.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
#[derive(Debug, Clone, clap::Args)]
pub struct ConnectArgs {
    /// Address and port of whom to connect to; an IPv6 address goes in brackets
    #[arg(long, value_name = "ADDR:PORT")]
    pub to: SocketAddr,
    /// Connects of each thread, one after the other
    #[arg(long, default_value = "1")]
    pub count: NonZeroU64,
    /// Threads that connect at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,
    /// Pin each thread to a CPU, in turn
    #[arg(long)]
    pub pin_cpus: bool,
    /// Start at most so many connects a second, all threads together
    #[arg(long, conflicts_with = "interval_ms")]
    pub rate: Option<NonZeroU32>,
    /// Start each thread's connects at least so long after one another
    #[arg(long)]
    pub interval_ms: Option<u64>,
    /// Give up what is still connecting after so long, and count it as aborted
    #[arg(long)]
    pub abort_after_ms: Option<u64>,
    /// Close with RST, so that no port stays taken [default above 20,000 connects]
    #[arg(long)]
    pub rst: bool,
    /// Close no connection before the end
    #[arg(long)]
    pub hold: bool,
    /// Print how long each connect took
    #[arg(long)]
    pub measure: bool,
    /// Cgroup to join first; may be repeated, once for each hierarchy
    #[arg(long = "cgroup", value_name = "DIR")]
    pub cgroups: Vec<PathBuf>,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectReport {
    /// The outcomes.
    #[serde(flatten)]
    pub tally: Tally,
    /// Each connect's duration by `CLOCK_MONOTONIC`, thread after thread, if measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durations_ns: Option<Vec<u64>>,
}

/// What one thread did: the outcomes, and each connect's duration in nanoseconds if measured.
type Part = (Tally, Vec<u64>);

/// Connects as told.
///
/// # Errors
/// When a socket cannot be made or a thread not be pinned; a failed connect is an outcome.
pub fn run(args: &ConnectArgs) -> Result<ConnectReport> {
    let period = match (args.rate, args.interval_ms) {
        (Some(rate), _) => Duration::from_secs(u64::from(args.threads)) / rate.get(),
        (None, interval_ms) => Duration::from_millis(interval_ms.unwrap_or(0)),
    };
    if args.hold {
        raise_file_limit()?;
    }
    let mut report = ConnectReport {
        durations_ns: args.measure.then(Vec::new),
        ..ConnectReport::default()
    };
    let parts = if args.threads == 1 && !args.pin_cpus {
        // A process that connects once should cost no thread besides.
        vec![connect_in_turn(args, None, Duration::ZERO, period)]
    } else {
        connect_side_by_side(args, period)?
    };
    for part in parts {
        let (tally, durations_ns) = part?;
        report.tally.add(&tally);
        if let Some(all) = &mut report.durations_ns {
            all.extend(durations_ns);
        }
    }
    Ok(report)
}

/// Starts the threads; what each of them did.
fn connect_side_by_side(args: &ConnectArgs, period: Duration) -> Result<Vec<Result<Part>>> {
    let cpus = cpu::allowed()?;
    Ok(thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads)
            .map(|number| {
                let cpu = args.pin_cpus.then(|| cpus[number as usize % cpus.len()]);
                // Spread over the period, so that a rate is even.
                let delay = period * number / args.threads;
                scope.spawn(move || connect_in_turn(args, cpu, delay, period))
            })
            .collect();
        threads.into_iter().map(crate::join_thread).collect()
    }))
}

/// The work of one thread.
fn connect_in_turn(
    args: &ConnectArgs,
    cpu: Option<usize>,
    delay: Duration,
    period: Duration,
) -> Result<Part> {
    if let Some(cpu) = cpu {
        cpu::pin(cpu)?;
    }
    let rst = args.rst || args.count.get().saturating_mul(u64::from(args.threads)) > RST_ABOVE;
    let mut tally = Tally::default();
    let mut durations_ns = Vec::new();
    let mut held = Vec::new();
    let mut due = Instant::now() + delay;
    for _ in 0..args.count.get() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // A connect that took longer than the period delays the later ones: they don't bunch up behind it.
        due = due.max(Instant::now()) + period;
        let client = Client::open(args.to)?;
        let start = Instant::now();
        let outcome = match args.abort_after_ms {
            None => client.connect(args.to),
            Some(patience_ms) => client.connect_within(args.to, Duration::from_millis(patience_ms)),
        };
        if args.measure {
            durations_ns.push(nanoseconds(start.elapsed()));
        }
        tally.count(outcome);
        if args.hold {
            held.push(client);
        } else if rst && outcome == Outcome::Connected {
            client.reset()?;
        }
    }
    if rst {
        held.into_iter().try_for_each(Client::reset)?;
    }
    Ok((tally, durations_ns))
}

/// Raises the limit of open files to what this process may have.
pub(crate) fn raise_file_limit() -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    setrlimit(Resource::Nofile, limit).map_err(Error::io("raise the limit of open files"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_has_its_outcome() {
        for (errno, outcome) in [
            (Errno::CONNREFUSED, Outcome::Refused),
            (Errno::TIMEDOUT, Outcome::Timeout),
            (Errno::HOSTUNREACH, Outcome::Unreachable),
            (Errno::NETUNREACH, Outcome::Unreachable),
            (Errno::ADDRNOTAVAIL, Outcome::Local),
            (Errno::ACCESS, Outcome::Other(Errno::ACCESS)),
        ] {
            assert_eq!(Outcome::from(errno), outcome);
        }
    }

    #[test]
    fn a_tally_counts_and_adds() {
        let mut tally = Tally::default();
        tally.count(Outcome::Connected);
        tally.count(Outcome::Aborted);
        let mut sum = tally.clone();
        tally.count(Outcome::Other(Errno::ACCESS));
        sum.add(&tally);
        let expected = Tally {
            attempted: 5,
            connected: 2,
            aborted: 2,
            other: 1,
            ..Tally::default()
        };
        assert_eq!(sum, expected);
    }
}
