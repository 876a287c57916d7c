//! What the agent itself takes, idle and at many events a second, and what one busy series costs from two CPUs at once.

use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sentry_bench::{cpu, storm::StormReport};

use crate::{
    Args, Process, agent, attach, get, is_disk, is_tcp, load,
    results::{Measured, Results, Table, measured},
    status_bytes, sum,
    workloads::{Fio, cpu_ns, mortal},
};

/// Between two scrapes, as Prometheus' configurations often have it.
const SCRAPE: Duration = Duration::from_secs(15);

/// Where nobody listens: a port that no client is given.
const NOBODY: &str = "127.0.0.1:1";

/// What an agent took over a while.
struct Upkeep {
    /// Of one core.
    percent: f64,
    /// Histogram events a second.
    events_per_s: f64,
    resident_bytes: f64,
}

/// Watches an agent for so long. It is scraped after each 15 s, and once more at the end, which is not counted.
fn watch(process: &Process, address: SocketAddr, seconds: u64) -> Result<Upkeep> {
    let events = || -> Result<f64> {
        let metrics = get(address, "/metrics")?;
        Ok([
            "sentry_tcp_handshake_duration_seconds_count{",
            "sentry_tcp_connect_failures_total{",
            "sentry_disk_io_duration_seconds_count{",
        ]
        .into_iter()
        .map(|name| sum(&metrics, name))
        .sum())
    };
    let pid = process.0.id();
    let before = events()?;
    let (started, cpu_before) = (Instant::now(), cpu_ns(pid)?);
    let end = Duration::from_secs(seconds);
    let mut next = SCRAPE;
    while started.elapsed() < end {
        thread::sleep(next.min(end).saturating_sub(started.elapsed()));
        if next <= end {
            get(address, "/metrics")?;
        }
        next += SCRAPE;
    }
    let (took, cpu) = (started.elapsed().as_secs_f64(), cpu_ns(pid)? - cpu_before);
    let more = events()? - before;
    #[allow(clippy::cast_precision_loss)] // some seconds
    let cpu_s = cpu as f64 / 1e9;
    Ok(Upkeep {
        percent: cpu_s / took * 100.0,
        events_per_s: more / took,
        resident_bytes: status_bytes(process, "VmRSS:")?,
    })
}

fn table(title: &str, about: String, upkeep: &Upkeep) -> Table {
    let mut table = Table::new(title, about, &["what", "measured"]);
    for (what, value) in [
        (
            "CPU time of the agent, of one core",
            measured(&[upkeep.percent], "%", 3),
        ),
        (
            "events of its histograms and failures",
            measured(&[upkeep.events_per_s], "a second", 0),
        ),
        (
            "resident memory",
            measured(&[upkeep.resident_bytes / 1e6], "MB", 1),
        ),
    ] {
        table.row(what, vec![value.into()]);
    }
    table
}

/// The agent with default settings but no budget, while the host does what it does anyway.
pub(crate) fn idle(bin: &Path, args: &Args, results: &mut Results) -> Result<()> {
    let (process, address, _) = agent(bin, &[])?;
    let upkeep = watch(&process, address, args.seconds)?;
    let about = format!("For {} s, with a scrape each 15 s.", args.seconds);
    let mut table = table("The agent, idle", about, &upkeep);
    table.want("under 0.1 % of a core", upkeep.percent < 0.1);
    results.add(table)
}

/// The same, under as many events as this machine makes beside it.
pub(crate) fn busy(bin: &Path, args: &Args, results: &mut Results) -> Result<()> {
    let (process, address, _) = agent(bin, &[])?;
    ensure!(
        TcpStream::connect(NOBODY).is_err(),
        "{NOBODY}: somebody listens there"
    );
    let connects: Vec<Process> = (0..2)
        .map(|_| {
            let child = mortal(bin.join("load"))
                .args(["storm", "--seconds", "100000", "--to", NOBODY])
                .stdout(Stdio::null())
                .spawn()
                .context("setpriv of util-linux cannot be run")?;
            Ok(Process(child))
        })
        .collect::<Result<_>>()?;
    let seconds = (args.seconds / 2).max(1);
    let upkeep = watch(&process, address, seconds)?;
    drop(connects);
    let about = format!(
        "For {seconds} s, with a scrape each 15 s. Two processes connect, as fast as they can, to a port of loopback \
         where nobody listens; each refusal is counted."
    );
    let mut table = table("The agent, busy", about, &upkeep);
    table.want(
        "under 1 % of a core at 100,000 events a second or more",
        upkeep.percent < 1.0 && upkeep.events_per_s >= 100_000.0,
    );
    results.add(table)
}

/// One busy series, from one CPU and from two at once.
pub(crate) fn contention(bin: &Path, args: &Args, results: &mut Results) -> Result<()> {
    let cpus = cpu::allowed()?.len();
    ensure!(cpus >= 2, "two CPUs are needed, here is {cpus}");
    let mut table = Table::new(
        "One busy series from two CPUs at once",
        format!(
            "What the programs take, by the kernel's statistics: of one cgroup, from one thread on its CPU and from two \
             on theirs, in turn, {} rounds; median, least and greatest. A connection is of both ends; of the disk, \
             requests complete on the CPU that made them.",
            args.rounds
        ),
        &["what", "one CPU", "two CPUs", "two over one"],
    );
    let mut row = |what: &str, [one, two]: [Vec<f64>; 2]| -> Measured {
        let ratios: Vec<f64> = one.iter().zip(&two).map(|(one, two)| two / one).collect();
        let ratio = measured(&ratios, "", 2);
        table.row(
            what,
            vec![
                measured(&one, "ns", 0).into(),
                measured(&two, "ns", 0).into(),
                ratio.clone().into(),
            ],
        );
        ratio
    };
    let tcp_empty = tcp(bin, args, "empty")?;
    row("TCP connection, empty program", tcp_empty);
    let tcp = row("TCP connection, Sentry", tcp(bin, args, "sentry")?);
    row("disk I/O, empty program", disk(bin, args, "empty")?);
    let disk = row("disk I/O, Sentry", disk(bin, args, "sentry")?);
    for (what, ratio) in [("TCP", tcp), ("disk", disk)] {
        table.want(
            format!("{what}: at most 1.3 times one CPU"),
            ratio.median() <= 1.3,
        );
    }
    results.add(table)
}

/// Nanoseconds a connection, from one CPU and from two, in each round.
fn tcp(bin: &Path, args: &Args, name: &'static str) -> Result<[Vec<f64>; 2]> {
    let (loader, programs) = attach(name, bin)?;
    let mut costs = [Vec::new(), Vec::new()];
    for _ in 0..args.rounds {
        for (costs, threads) in costs.iter_mut().zip(["1", "2"]) {
            loader.collect()?;
            let before = programs.runs(is_tcp)?;
            let report: StormReport = load(
                bin,
                &[
                    "storm",
                    "--self",
                    "--pin-cpus",
                    "--seconds",
                    "0.5",
                    "--threads",
                    threads,
                ]
                .map(str::to_owned),
            )?;
            let runs = programs.runs(is_tcp)?.since(before);
            costs.push(runs.ns_per(report.tally.connected));
        }
    }
    Ok(costs)
}

/// Nanoseconds an I/O, from one CPU and from two, in each round.
fn disk(bin: &Path, args: &Args, name: &'static str) -> Result<[Vec<f64>; 2]> {
    let (loader, programs) = attach(name, bin)?;
    let mut costs = [Vec::new(), Vec::new()];
    for _ in 0..args.rounds {
        for (costs, threads) in costs.iter_mut().zip([1, 2]) {
            let _fio = Fio::pinned(threads)?;
            loader.collect()?;
            let before = programs.runs(is_disk)?;
            thread::sleep(Duration::from_millis(500));
            let runs = programs.runs(is_disk)?.since(before);
            costs.push(runs.ns_per(runs.count));
        }
    }
    Ok(costs)
}
