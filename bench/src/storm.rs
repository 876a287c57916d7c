//! Connects as fast as the machine allows.

use crate::connect::{Client, Outcome, Tally};
use crate::listen::Listener;
use crate::{Error, Result, cpu};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// How far the connects may run ahead of the storm's own listener: less than its queue, which drops SYNs when full.
const LEAD: u64 = 512;

/// How long the listener waits for stragglers.
const QUIET: Duration = Duration::from_millis(100);

/// What to storm, and how long.
#[derive(Debug, Clone, clap::Args)]
pub struct StormArgs {
    /// Address and port of a listener
    #[arg(
        long,
        value_name = "ADDR:PORT",
        required_unless_present = "own_listener"
    )]
    pub to: Option<SocketAddr>,
    /// Connect to a listener of this process, on loopback
    #[arg(long = "self", conflicts_with = "to")]
    pub own_listener: bool,
    /// How long
    #[arg(long, default_value_t = 1.0, value_parser = parse_seconds)]
    pub seconds: f64,
    /// Threads that connect at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,
    /// Pin each thread to a CPU, in turn
    #[arg(long)]
    pub pin_cpus: bool,
    /// Cgroup to join first; may be repeated, once for each hierarchy
    #[arg(long = "cgroup", value_name = "DIR")]
    pub cgroups: Vec<PathBuf>,
}

/// Reads a positive number of seconds.
pub(crate) fn parse_seconds(text: &str) -> std::result::Result<f64, String> {
    text.parse()
        .ok()
        .filter(|seconds| (0.001..=1e6).contains(seconds))
        .ok_or_else(|| "allowed are seconds from 0.001 to 1000000".to_owned())
}

/// What was done.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct StormReport {
    /// The outcomes.
    #[serde(flatten)]
    pub tally: Tally,
    /// Connections that the storm's own listener accepted, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u64>,
    /// From the first connect to the end of the last.
    pub seconds: f64,
    /// Connects that succeeded in a second.
    pub connects_per_second: f64,
}

/// Connects and closes with RST, as fast as it goes, for so long.
///
/// # Errors
/// When a socket cannot be made or a thread not be pinned; a failed connect is an outcome.
pub fn run(args: &StormArgs) -> Result<StormReport> {
    let listener = match args.to {
        Some(_) => None,
        None => Some(Listener::bind(SocketAddr::new(
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            0,
        ))?),
    };
    let to = match (&listener, args.to) {
        (Some(listener), _) => listener.address()?,
        (None, Some(to)) => to,
        (None, None) => {
            return Err(Error::Argument(
                "allowed are --to ADDR:PORT and --self".to_owned(),
            ));
        }
    };
    let cpus = cpu::allowed()?;
    let lead = Lead::default();
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(args.seconds);
    let (tally, seconds, accepted) = thread::scope(|scope| {
        let acceptor = listener
            .as_ref()
            .map(|listener| scope.spawn(|| accept(listener, &lead)));
        let lead = acceptor.as_ref().map(|_| &lead);
        let clients: Vec<_> = (0..args.threads as usize)
            .map(|number| {
                let cpu = args.pin_cpus.then(|| cpus[number % cpus.len()]);
                scope.spawn(move || connect_until(to, end, cpu, lead))
            })
            .collect();
        // All threads end before an error is passed on: the acceptor must hear of the end in any case.
        let tallies: Vec<_> = clients.into_iter().map(crate::join_thread).collect();
        let seconds = start.elapsed().as_secs_f64();
        if let Some(lead) = lead {
            lead.over.store(true, SeqCst);
        }
        let accepted = acceptor.map(crate::join_thread).transpose()?;
        let mut tally = Tally::default();
        for part in tallies {
            tally.add(&part?);
        }
        Ok((tally, seconds, accepted))
    })?;
    #[expect(clippy::cast_precision_loss, reason = "a rate to 15 digits")]
    let connects_per_second = tally.connected as f64 / seconds;
    Ok(StormReport {
        tally,
        accepted,
        seconds,
        connects_per_second,
    })
}

/// How far the clients are ahead of the listener in the same process.
#[derive(Debug, Default)]
struct Lead {
    connected: AtomicU64,
    accepted: AtomicU64,
    over: AtomicBool,
}

impl Lead {
    fn is_too_long(&self) -> bool {
        self.connected
            .load(SeqCst)
            .saturating_sub(self.accepted.load(SeqCst))
            > LEAD
    }
}

fn connect_until(
    to: SocketAddr,
    end: Instant,
    cpu: Option<usize>,
    lead: Option<&Lead>,
) -> Result<Tally> {
    if let Some(cpu) = cpu {
        cpu::pin(cpu)?;
    }
    let mut tally = Tally::default();
    while Instant::now() < end {
        if lead.is_some_and(Lead::is_too_long) {
            thread::yield_now();
            continue;
        }
        let client = Client::open(to)?;
        let outcome = client.connect(to);
        tally.count(outcome);
        if outcome == Outcome::Connected {
            client.reset()?;
            if let Some(lead) = lead {
                lead.connected.fetch_add(1, SeqCst);
            }
        }
    }
    Ok(tally)
}

fn accept(listener: &Listener, lead: &Lead) -> Result<u64> {
    loop {
        let over = lead.over.load(SeqCst);
        if !listener.wait(QUIET)? && over {
            return Ok(lead.accepted.load(SeqCst));
        }
        while listener.accept()?.is_some() {
            lead.accepted.fetch_add(1, SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_positive_and_finite() {
        assert_eq!(parse_seconds("2.5"), Ok(2.5));
        for bad in ["0", "-1", "nan", "inf", "1e9", "", "1s"] {
            assert_eq!(
                parse_seconds(bad),
                Err("allowed are seconds from 0.001 to 1000000".to_owned())
            );
        }
    }
}
