//! What Sentry costs, in one run on one machine: nanoseconds an event beside an empty program on
//! the same hook and beside `biolatency`, memory, and the time to be ready.
//!
//! Each is attached alone, as its users have it, for a round of the same load; the rounds of all
//! take turns, so that a machine whose speed drifts is no one's gain. Medians are printed as a
//! Markdown table.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, loaded_programs},
};
use clap::Parser;
use sentry_bench::{
    cgroup::CgroupRoots,
    connect::ConnectReport,
    interleave::InterleaveReport,
    sandbox::{Cgroup, LoopDevice, is_root},
};

/// Cgroups that take turns in the disk load.
const CGROUPS: usize = 64;

/// Measures what Sentry costs, beside an empty program and beside biolatency.
#[derive(Debug, Parser)]
struct Args {
    /// Rounds; medians are printed
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Reads of each of the 64 cgroups in a round
    #[arg(long, default_value_t = 400)]
    reads: u64,
    /// Connects in a round
    #[arg(long, default_value_t = 5000)]
    connects: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        is_root(),
        "needs root: it loads eBPF programs and makes cgroups"
    );
    let bin = std::env::current_exe()?;
    let bin = bin.parent().context("no folder of executables")?;
    for name in ["sentry", "load"] {
        ensure!(
            bin.join(name).exists(),
            "{} is missing: run `make bench`",
            bin.join(name).display()
        );
    }
    // Runs are counted, and timed, only while this is open.
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)
        .context("the kernel's BPF statistics cannot be switched on")?;
    println!("# What Sentry costs\n\n{}\n", machine());
    disk(bin, &args)?;
    tcp(bin, &args)?;
    footprint(bin)
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let model = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or_else(|| "unknown CPU".to_owned(), |(_, model)| model.to_owned());
    format!(
        "Linux {}, {} CPUs, {model}. Medians of the rounds.",
        read("/proc/sys/kernel/osrelease").trim(),
        thread::available_parallelism().map_or(0, usize::from)
    )
}

/// Runs and run time of some programs.
#[derive(Debug, Clone, Copy, Default)]
struct Runs {
    count: u64,
    ns: u64,
}

impl Runs {
    fn since(self, earlier: Self) -> Self {
        Self {
            count: self.count - earlier.count,
            ns: self.ns - earlier.ns,
        }
    }

    #[allow(clippy::cast_precision_loss)] // seconds of nanoseconds
    fn ns_per(self, events: u64) -> f64 {
        self.ns as f64 / events.max(1) as f64
    }
}

/// The programs of one program loader, known by their ids.
#[derive(Debug)]
struct Programs {
    ids: Vec<u32>,
}

impl Programs {
    /// Runs so far of those whose name `counts`.
    fn runs(&self, counts: impl Fn(&str) -> bool) -> Result<Runs> {
        let mut runs = Runs::default();
        for program in loaded_programs() {
            let program = program?;
            if !self.ids.contains(&program.id()) || !counts(program.name_as_str().unwrap_or("")) {
                continue;
            }
            let fd = program.fd()?;
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            let text = fs::read_to_string(path)?;
            let value = |key: &str| -> Result<u64> {
                let line = text.lines().find_map(|line| line.strip_prefix(key));
                Ok(line
                    .with_context(|| format!("fdinfo has no {key}"))?
                    .trim()
                    .parse()?)
            };
            // An event that comes while the same program runs on the same CPU runs it no more.
            runs.count += value("run_cnt:")? + value("recursion_misses:")?;
            runs.ns += value("run_time_ns:")?;
        }
        Ok(runs)
    }
}

fn program_ids() -> Result<Vec<u32>> {
    loaded_programs().map(|program| Ok(program?.id())).collect()
}

/// Something that loads programs, and takes them away when dropped.
enum Loader {
    Empty(#[expect(dead_code, reason = "held for its drop")] Ebpf),
    Agent(
        #[expect(dead_code, reason = "held for its drop")] Process,
        SocketAddr,
    ),
    Biolatency(#[expect(dead_code, reason = "held for its drop")] Process),
}

/// Attaches one by name and finds its programs.
fn attach(name: &str, bin: &Path) -> Result<(Loader, Programs)> {
    let before = program_ids()?;
    let loader = match name {
        "empty" => Loader::Empty(attach_empty()?),
        "sentry" => {
            let (process, address, _) = agent(bin, &[])?;
            Loader::Agent(process, address)
        }
        "biolatency" => Loader::Biolatency(biolatency()?),
        other => bail!("no loader {other}"),
    };
    let mut ids = program_ids()?;
    ids.retain(|id| !before.contains(id));
    ensure!(!ids.is_empty(), "{name} loaded no program");
    Ok((loader, Programs { ids }))
}

/// What one event costs with one loader's programs: attaches them, runs the load once so that
/// all is in place, and once more to measure. An event is a run of the program that runs most.
fn cost(
    name: &str,
    bin: &Path,
    counts: impl Fn(&str) -> bool,
    mut load: impl FnMut() -> Result<u64>,
) -> Result<Cost> {
    let (loader, programs) = attach(name, bin)?;
    load()?;
    if let Loader::Agent(_, address) = &loader {
        // A collection, as one comes every ten seconds at least.
        get(*address, "/metrics")?;
    }
    let before = programs.runs(&counts)?;
    let events = load()?;
    let runs = programs.runs(&counts)?.since(before);
    Ok(Cost { events, runs })
}

/// What a round measured.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Events of the load.
    events: u64,
    runs: Runs,
}

fn attach_empty() -> Result<Ebpf> {
    let mut empty = Ebpf::load(aya::include_bytes_aligned!(concat!(
        env!("OUT_DIR"),
        "/empty.bpf.o"
    )))?;
    let btf = Btf::from_sys_fs()?;
    for (name, tracepoint) in [
        ("empty_disk", "block_rq_complete"),
        ("empty_tcp", "inet_sock_set_state"),
    ] {
        let program: &mut BtfTracePoint = empty
            .program_mut(name)
            .with_context(|| format!("no program {name}"))?
            .try_into()?;
        program.load(tracepoint, &btf)?;
        program.attach()?;
    }
    Ok(empty)
}

/// A process that ends with its guard.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // SIGTERM, so that an agent ends as it does for its users.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        );
        let _ = self.0.wait();
    }
}

/// Starts an agent and waits until it is ready. Also returns where it serves, and how long that took.
fn agent(bin: &Path, flags: &[&str]) -> Result<(Process, SocketAddr, Duration)> {
    let started = Instant::now();
    let mut child = Command::new(bin.join("sentry"))
        .args(["--web.listen-address", "127.0.0.1:0"])
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take().context("no standard error")?;
    let process = Process(child);
    let address = serving(stderr)?;
    while !get(address, "/readyz")?.starts_with("HTTP/1.1 200") {
        thread::sleep(Duration::from_millis(1));
    }
    Ok((process, address, started.elapsed()))
}

/// The address in the agent's log; goes on reading, so that the agent can go on logging.
fn serving(stderr: ChildStderr) -> Result<SocketAddr> {
    let mut lines = BufReader::new(stderr).lines();
    let mut log = String::new();
    for line in lines.by_ref() {
        let line = line?;
        if let Some((_, rest)) = line.split_once("serving http://") {
            let address = rest.split('/').next().context("no address")?.parse()?;
            thread::spawn(move || lines.for_each(drop));
            return Ok(address);
        }
        log = line;
    }
    bail!("the agent did not start: {log}")
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn biolatency() -> Result<Process> {
    let before = program_ids()?;
    let child = Command::new("biolatency")
        .arg("3600")
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        .spawn()
        .context("biolatency cannot be run: install the package libbpf-tools")?;
    let process = Process(child);
    // It does not say when it is attached: one program at the issue, one at the completion.
    for _ in 0..200 {
        thread::sleep(Duration::from_millis(25));
        if program_ids()?
            .iter()
            .filter(|id| !before.contains(id))
            .count()
            >= 2
        {
            thread::sleep(Duration::from_millis(200));
            return Ok(process);
        }
    }
    bail!("biolatency did not attach within 5 s")
}

/// Runs `load` and reads its report.
fn load<T: serde::de::DeserializeOwned>(bin: &Path, args: &[String]) -> Result<T> {
    let output = Command::new(bin.join("load"))
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(
        output.status.success(),
        "the load failed: {}",
        output.status
    );
    serde_json::from_slice(&output.stdout).context("the load's report")
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn disk(bin: &Path, args: &Args) -> Result<()> {
    let roots = CgroupRoots::find()?;
    let cgroups: Vec<Cgroup> = (0..CGROUPS)
        .map(|number| Cgroup::new(&roots.blkio, &format!("bench-{number}")))
        .collect::<Result<_, _>>()?;
    let device = LoopDevice::new(64 << 20)?;
    let mut command: Vec<String> = vec![
        "interleave".to_owned(),
        "--file".to_owned(),
        device.path().display().to_string(),
        "--count".to_owned(),
        args.reads.to_string(),
    ];
    // One process where its threads can be in different cgroups, as in version 1: with one
    // process each, switching between them leaves every cache cold and is most of what is timed.
    let threads = roots.blkio != roots.v2;
    if threads {
        command.push("--threads".to_owned());
    }
    for cgroup in &cgroups {
        command.extend(["--cgroup".to_owned(), cgroup.path().display().to_string()]);
    }

    let names = ["empty", "sentry", "biolatency"];
    let mut costs: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut ios = 0;
    for _ in 0..args.rounds {
        for name in names {
            let block = |name: &str| name.contains("disk") || name.starts_with("block_rq");
            let cost = cost(name, bin, block, || {
                let report: InterleaveReport = load(bin, &command)?;
                Ok(report.operations)
            })?;
            ios = cost.events;
            // Others of the host do I/O too, so by its own count; biolatency has two
            // programs for each I/O.
            let programs = if name == "biolatency" { 2 } else { 1 };
            let events = cost.runs.count / programs;
            costs
                .entry(name)
                .or_default()
                .push(cost.runs.ns_per(events));
        }
    }
    let mut cost = |name: &str| {
        costs
            .get_mut(name)
            .map_or(f64::NAN, |values| median(values))
    };
    let (empty, ours, theirs) = (cost("empty"), cost("sentry"), cost("biolatency"));
    println!(
        "## One disk I/O\n\n\
         {ios} reads of 4 KiB a round, O_DIRECT, on a loop device, {CGROUPS} cgroups in turn, {} rounds.\n\n\
         | programs | ns an I/O | over empty | of biolatency |\n|---|---:|---:|---:|\n\
         | empty program on `block_rq_complete` | {empty:.0} | 1.00 | {:.2} |\n\
         | Sentry, by cgroup, device and operation | {ours:.0} | {:.2} | {:.2} |\n\
         | biolatency, its two programs, without attribution | {theirs:.0} | {:.2} | 1.00 |\n\n\
         Wanted: Sentry at most 170 ns ({}), at most 0.30 of biolatency ({}).\n",
        args.rounds,
        empty / theirs,
        ours / empty,
        ours / theirs,
        theirs / empty,
        met(ours <= 170.0),
        met(ours <= 0.3 * theirs),
    );
    Ok(())
}

fn met(yes: bool) -> &'static str {
    if yes { "met" } else { "missed" }
}

fn tcp(bin: &Path, args: &Args) -> Result<()> {
    let mut listener = Command::new(bin.join("load"))
        .arg("listen")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = listener.stdout.take().context("no standard output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let _listener = Process(listener);
    let port = serde_json::from_str::<serde_json::Value>(&line)?["port"].clone();
    let command: Vec<String> = ["connect", "--to", &format!("127.0.0.1:{port}"), "--count"]
        .into_iter()
        .map(str::to_owned)
        .chain([args.connects.to_string()])
        .collect();

    let (mut empties, mut ours) = (Vec::new(), Vec::new());
    let mut changes = 0.0;
    for _ in 0..args.rounds {
        for (name, costs) in [("empty", &mut empties), ("sentry", &mut ours)] {
            let cost = cost(
                name,
                bin,
                |name| name.contains("tcp"),
                || {
                    let report: ConnectReport = load(bin, &command)?;
                    ensure!(
                        report.tally.connected == args.connects,
                        "{} of {} connects came through",
                        report.tally.connected,
                        args.connects
                    );
                    Ok(report.tally.connected)
                },
            )?;
            costs.push(cost.runs.ns_per(cost.events));
            #[allow(clippy::cast_precision_loss)] // some thousands
            let each = cost.runs.count as f64 / cost.events as f64;
            changes = each;
        }
    }
    let (empty, ours) = (median(&mut empties), median(&mut ours));
    println!(
        "## One TCP connection\n\n\
         {} connects a round over loopback, closed by FIN, both ends on this host, {} rounds: \
         {changes:.1} changes of state a connection.\n\n\
         | programs | ns a connection | over empty |\n|---|---:|---:|\n\
         | empty program on `inet_sock_set_state` | {empty:.0} | 1.00 |\n\
         | Sentry, both ends, by cgroup | {ours:.0} | {:.2} |\n\n\
         Wanted: at most 2.5 times an empty program ({}).\n",
        args.connects,
        args.rounds,
        ours / empty,
        met(ours <= 2.5 * empty),
    );
    Ok(())
}

fn footprint(bin: &Path) -> Result<()> {
    let mut ready: Vec<f64> = (0..5)
        .map(|_| Ok(agent(bin, &[])?.2.as_secs_f64() * 1e3))
        .collect::<Result<_>>()?;
    let (process, address, _) = agent(bin, &[])?;
    // Steady: it has been scraped for a while.
    for _ in 0..20 {
        get(address, "/metrics")?;
        thread::sleep(Duration::from_millis(50));
    }
    let metrics = get(address, "/metrics")?;
    let sum = |prefix: &str| -> f64 {
        metrics
            .lines()
            .filter(|line| line.starts_with(prefix))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    };
    let maps = sum("sentry_bpf_map_memory_bytes{");
    let status = fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
    let rss_kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .context("no VmRSS")?;
    let ready = median(&mut ready);
    let executable = fs::metadata(bin.join("sentry"))?.len();
    println!(
        "## Footprint\n\n\
         Both probes, default ceiling of 256 series.\n\n\
         | what | measured | wanted |\n|---|---:|---|\n\
         | BPF maps | {maps:.0} bytes | at most 160,000 ({}) |\n\
         | resident memory of the agent, scraped 20 times | {:.1} MB | at most 10 MB ({}) |\n\
         | start to `/readyz` | {ready:.0} ms | under 1000 ms ({}) |\n\
         | executable | {} kB | |",
        met(maps <= 160_000.0),
        rss_kib * 1024.0 / 1e6,
        met(rss_kib * 1024.0 <= 10e6),
        met(ready < 1000.0),
        executable / 1000,
    );
    Ok(())
}
