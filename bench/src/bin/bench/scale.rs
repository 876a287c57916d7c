//! As many containers as the largest nodes have: what the maps take when they are full, what an event costs then, what a
//! collection and a scrape do.

use std::{
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use sentry_bench::{
    connect::ConnectReport,
    interleave::InterleaveReport,
    sandbox::{Cgroup, LoopDevice},
};

use super::{
    CGROUPS, CgroupRoots, Programs, agent, get,
    kubernetes::{Node, cpu_ticks},
    listener, load, program_ids,
    results::{Cell, Results, Table, measured},
    scrape::{self, Row},
    status_bytes, sum,
};

/// Containers that each connect once and read once: three histograms each. The last fill the largest pool that there is.
const CONTAINERS: [u32; 3] = [100, 1000, 10_000];

const SERIES_MAX: u32 = 32_000;

/// Scrapes of each sort, in turns.
const SCRAPES: usize = 5;

/// How long nobody scrapes: six collections.
const QUIET: Duration = Duration::from_secs(60);

/// Rounds of events.
const ROUNDS: usize = 5;

/// Connects in a round, all from one cgroup.
const CONNECTS: u64 = 5000;

/// Reads of each cgroup in a round.
const READS: u64 = 100;

/// Readers at once.
const CHUNK: usize = 100;

pub(crate) fn simulate(bin: &Path, results: &mut Results) -> Result<()> {
    CONTAINERS
        .into_iter()
        .try_for_each(|containers| on_node(bin, containers, results))
}

fn on_node(bin: &Path, containers: u32, results: &mut Results) -> Result<()> {
    let mut node = Node::new(containers)?;
    node.series_max = SERIES_MAX;
    let disk_cgroups = node.disk_cgroups()?;
    let disk_cgroups: Vec<_> = disk_cgroups.iter().map(PathBuf::as_path).collect();
    let device = LoopDevice::new(64 << 20)?;
    let before = program_ids()?;
    let (both, both_at, _, _) = node.agent(bin, &[])?;
    let full = programs_since(&before)?;
    let (native, native_at, _, _) = node.agent(bin, &["--metrics.classic-histograms=false"])?;
    let idle = status_bytes(&both, "VmRSS:")?;

    let (_listener, to) = listener(bin, None)?;
    node.tour(bin, &to)?;
    for chunk in disk_cgroups.chunks(CHUNK) {
        read(bin, &device, chunk, 1)?;
    }
    // All has been collected, and what is busy published, once this is over.
    thread::sleep(Duration::from_secs(11));
    let before_quiet = cpu_ticks(&both)?;
    thread::sleep(QUIET);
    let quiet = (cpu_ticks(&both)? - before_quiet) * 10.0;
    let resident = status_bytes(&both, "VmRSS:")?;

    let mut rows = scrape::rows((&both, both_at), (&native, native_at));
    for _ in 0..SCRAPES {
        rows.iter_mut().try_for_each(Row::scrape)?;
    }
    let text = String::from_utf8_lossy(&rows[0].body);
    let histograms = sum(&text, "sentry_series{");
    ensure!(
        histograms >= f64::from(containers),
        "{histograms} histograms are not those of {containers} containers"
    );
    results.add(taken(containers, &text, [idle, resident], quiet))?;
    let title = format!("A scrape in each format, {containers} containers");
    let about = format!("Medians of {SCRAPES} scrapes in turns; CPU time is the agent's.");
    results.add(scrape::table(&title, about, &rows))?;
    drop(text);
    drop(rows);
    drop(native);

    // What both see from here on is in the maps of one alone beside all that has come before.
    let before = program_ids()?;
    let max = format!("--series.max={SERIES_MAX}");
    let (_empty, empty_at, _) = agent(bin, &["--probes=tcp,disk", &max])?;
    let empty = programs_since(&before)?;
    let agents = [(&full, both_at), (&empty, empty_at)];
    let roots = CgroupRoots::find()?;
    let own: Vec<Cgroup> = (0..CGROUPS)
        .map(|number| Cgroup::new(&roots.blkio, &format!("bench-{number}")))
        .collect::<Result<_, _>>()?;
    let own: Vec<&Path> = own.iter().map(Cgroup::path).collect();
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)
        .context("the kernel's BPF statistics cannot be switched on")?;
    let connects = medians(agents, "tcp", || {
        let count = CONNECTS.to_string();
        let command = ["connect", "--to", &to, "--count", &count].map(str::to_owned);
        let report: ConnectReport = load(bin, &command)?;
        Ok(report.tally.connected)
    })?;
    let reads = medians(agents, "disk", || read(bin, &device, &own, READS))?;
    // These are new to the other one.
    let tours = medians([agents[0]], "tcp", || {
        node.tour(bin, &to)?;
        Ok(u64::from(containers))
    })?;
    let all_reads = medians([agents[0]], "disk", || {
        let chunks = disk_cgroups.chunks(CHUNK);
        chunks.map(|chunk| read(bin, &device, chunk, 1)).sum()
    })?;
    let mut table = Table::new(
        &format!("An event, {containers} containers"),
        format!("Medians of {ROUNDS} rounds; both agents see the same events."),
        &[
            "event",
            "among those of the containers",
            "alone in maps as large",
        ],
    );
    let connection = "a connection over loopback, both ends, of one cgroup";
    table.row(connection, connects.into());
    let title = format!("a read, of {CGROUPS} cgroups at once");
    table.row(title, reads.into());
    let title = "a connection of a container, each in turn";
    table.row(title, tours.into());
    let title = format!("a read of a container, {CHUNK} at once");
    table.row(title, all_reads.into());
    results.add(table)
}

/// What an agent takes that answered so, by its resident memory before any event and with all of them, and by its CPU time
/// in a minute without a scrape, in milliseconds.
fn taken(containers: u32, text: &str, [idle, resident]: [f64; 2], quiet: f64) -> Table {
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let mut table = Table::new(
        &format!("What {containers} containers take"),
        format!("`--series.max {SERIES_MAX}`, each has connected once and read once."),
        &["what", "measured"],
    );
    let mut row = |what, value, unit, decimals| {
        table.row(what, vec![measured(&[value], unit, decimals).into()]);
    };
    row("histograms in use", sum(text, "sentry_series{"), "", 0);
    let overflow = sum(text, "sentry_series_overflow_total{");
    row("events that found no room", overflow, "", 0);
    #[allow(clippy::cast_precision_loss)] // some hundreds of thousands
    let all = series as f64;
    row("Prometheus series, all that is on this host", all, "", 0);
    let maps = sum(text, "sentry_bpf_map_memory_bytes{");
    row("BPF maps", maps, "bytes", 0);
    row("resident, before any event", idle / 1e6, "MB", 1);
    let before_scrape = "resident, with all of them, before a scrape";
    row(before_scrape, resident / 1e6, "MB", 1);
    row("CPU time a minute, nobody scraping", quiet, "ms", 0);
    table
}

fn programs_since(before: &[u32]) -> Result<Programs> {
    let mut ids = program_ids()?;
    ids.retain(|id| !before.contains(id));
    ensure!(!ids.is_empty(), "the agent loaded no program");
    Ok(Programs { ids })
}

/// Reads from each of these cgroups at once; how often, all together.
fn read(bin: &Path, device: &LoopDevice, cgroups: &[&Path], count: u64) -> Result<u64> {
    let roots = CgroupRoots::find()?;
    let mut command = vec![
        "interleave".to_owned(),
        "--file".to_owned(),
        device.path().display().to_string(),
        "--count".to_owned(),
        count.to_string(),
    ];
    if roots.blkio != roots.v2 {
        command.push("--threads".to_owned());
    }
    for cgroup in cgroups {
        command.extend(["--cgroup".to_owned(), cgroup.display().to_string()]);
    }
    let report: InterleaveReport = load(bin, &command)?;
    Ok(report.operations)
}

/// What an event takes in the programs of a probe of each agent, which all see the same ones: medians over rounds, after
/// one that nobody counts.
fn medians<const N: usize>(
    agents: [(&Programs, std::net::SocketAddr); N],
    probe: &str,
    mut events: impl FnMut() -> Result<u64>,
) -> Result<[Cell; N]> {
    let mut values = [const { Vec::new() }; N];
    for round in 0..=ROUNDS {
        let before = agents.map(|(programs, _)| programs.runs(|name| name.contains(probe)));
        let events = events()?;
        for (place, before) in before.into_iter().enumerate() {
            let runs = agents[place].0.runs(|name| name.contains(probe))?;
            let runs = runs.since(before?);
            // Others of the host read, too; a connection is several runs.
            let events = if probe == "disk" { runs.count } else { events };
            if round > 0 {
                values[place].push(runs.ns_per(events));
            }
            // A collection, after which the programs find what is new in the slots.
            get(agents[place].1, "/metrics")?;
        }
    }
    Ok(values.map(|values| measured(&values, "ns", 0).into()))
}
