//! Two CPUs that meet the same new cgroup at the same instant.

use crate::connect::{Client, Outcome, Tally};
use crate::{Error, Result, cgroup, cpu, nanoseconds};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Which cgroups to make, and who races in them.
#[derive(Debug, Clone, clap::Args)]
pub struct RaceArgs {
    /// Where in the v2 hierarchy to make the cgroups
    #[arg(long, value_name = "DIR")]
    pub v2_root: PathBuf,
    /// What their names begin with; a number follows
    #[arg(long)]
    pub prefix: String,
    /// Cgroups, one after the other
    #[arg(long)]
    pub rounds: u64,
    /// The CPUs that connect, once each in each round
    #[arg(long, value_delimiter = ',', default_value = "0,1")]
    pub cpus: Vec<usize>,
    /// Address and port of a listener
    #[arg(long, value_name = "ADDR:PORT")]
    pub to: SocketAddr,
}

/// What was done.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct RaceReport {
    /// Cgroups that were raced in.
    pub rounds: u64,
    /// The outcomes.
    #[serde(flatten)]
    pub tally: Tally,
    /// Half of the rounds had all their connects begin within so long.
    pub median_skew_ns: u64,
    /// How long it took.
    pub seconds: f64,
}

/// When a connect began, and how it ended.
type Attempt = Result<(Instant, Outcome)>;

/// In each round moves this process into a fresh cgroup, connects once from each CPU at the same instant, and removes
/// the cgroup. The process ends up where it was.
///
/// # Errors
/// When a cgroup cannot be made, joined or removed, or a thread not be pinned; a failed connect is an outcome.
pub fn run(args: &RaceArgs) -> Result<RaceReport> {
    let distinct: BTreeSet<_> = args.cpus.iter().collect();
    if args.cpus.len() < 2 || distinct.len() < args.cpus.len() {
        return Err(Error::Argument(
            "--cpus: allowed are two different CPUs or more, such as 0,1".to_owned(),
        ));
    }
    let home = cgroup::own_v2(&cgroup::CgroupRoots::find()?.v2)?;
    let start = Instant::now();
    let arrivals = AtomicUsize::new(0);
    let mut tally = Tally::default();
    let mut skews_ns = Vec::new();
    thread::scope(|scope| {
        let (attempts_in, attempts) = channel();
        let starters: Vec<_> = args
            .cpus
            .iter()
            .map(|&cpu| {
                let (starter, rounds) = channel();
                let (arrivals, attempts_in) = (&arrivals, attempts_in.clone());
                scope.spawn(move || connect_each_round(args, cpu, arrivals, &rounds, &attempts_in));
                starter
            })
            .collect();
        drop(attempts_in);
        for round in 0..args.rounds {
            let fresh = args.v2_root.join(format!("{}-{round}", args.prefix));
            cgroup::create(&fresh)?;
            let raced = race_in(&fresh, &starters, &attempts);
            let left = cgroup::join(&[&home]);
            let removed = cgroup::remove(&fresh);
            let (outcomes, skew) = raced?;
            left.and(removed)?;
            for outcome in outcomes {
                tally.count(outcome);
            }
            skews_ns.push(nanoseconds(skew));
        }
        Ok(())
    })?;
    skews_ns.sort_unstable();
    Ok(RaceReport {
        rounds: args.rounds,
        tally,
        median_skew_ns: skews_ns.get(skews_ns.len() / 2).copied().unwrap_or(0),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// One round: the outcomes, and how far apart the connects began.
fn race_in(
    fresh: &Path,
    starters: &[Sender<()>],
    attempts: &Receiver<Attempt>,
) -> Result<(Vec<Outcome>, Duration)> {
    cgroup::join(&[fresh])?;
    for starter in starters {
        // A thread that ended has sent its error first.
        let _ = starter.send(());
    }
    let mut begun = Vec::new();
    let mut outcomes = Vec::new();
    for _ in starters {
        let attempt = attempts
            .recv()
            .map_err(|_| Error::program("a racing thread", "ended early"))?;
        let (instant, outcome) = attempt?;
        begun.push(instant);
        outcomes.push(outcome);
    }
    let skew = match (begun.iter().min(), begun.iter().max()) {
        (Some(&first), Some(&last)) => last - first,
        _ => Duration::ZERO,
    };
    Ok((outcomes, skew))
}

/// The work of one CPU, until there are no more rounds.
fn connect_each_round(
    args: &RaceArgs,
    cpu: usize,
    arrivals: &AtomicUsize,
    rounds: &Receiver<()>,
    attempts: &Sender<Attempt>,
) {
    let mut expected = 0;
    while rounds.recv().is_ok() {
        // What fails here fails after the meeting: nobody may be waited for in vain.
        let client = cpu::pin(cpu).and_then(|()| Client::open(args.to));
        expected += args.cpus.len();
        arrivals.fetch_add(1, SeqCst);
        // All spin, so that they leave within a cache line's way of one another.
        while arrivals.load(SeqCst) < expected {
            std::hint::spin_loop();
        }
        let attempt = client.and_then(|client| {
            let begun = Instant::now();
            let outcome = client.connect(args.to);
            if outcome == Outcome::Connected {
                client.reset()?;
            }
            Ok((begun, outcome))
        });
        if attempts.send(attempt).is_err() {
            return;
        }
    }
}
