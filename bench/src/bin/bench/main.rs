//! What Sentry costs, in one run on one machine: nanoseconds an event beside an empty program on
//! the same hook and beside `biolatency`, what calls of CUDA cost a program, what a node full of
//! pods takes, scrapes in each format, memory, and the time to be ready.
//!
//! Once all are attached together and see the very same events, in an order that changes from round
//! to round; and once each is attached alone, as its users have it, rounds in turn. Alone, a
//! program pays for every cache line that it is the first to touch, the kernel's clock among
//! them. Medians are printed as Markdown tables.

mod fleet;
mod gpu;
mod kubernetes;
mod scale;
mod scrape;

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
    /// Calls of CUDA in a row, timed together
    #[arg(long, default_value_t = 4000)]
    calls: u64,
    /// How the gpu probe is attached
    #[arg(long, default_value = "uprobe_multi", value_parser = gpu::HOOKS)]
    gpu_hook: String,
    /// Only these parts, separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Disk,
    Tcp,
    Gpu,
    Kubernetes,
    Scrape,
    Footprint,
    /// Thousands of containers; only when asked for
    Scale,
    /// A fleet's Prometheus; only when asked for
    Fleet,
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
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    println!("# What Sentry costs\n\n{}\n", machine());
    // Runs are counted, and timed, only while this is open.
    let statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)
        .context("the kernel's BPF statistics cannot be switched on")?;
    if wanted(Part::Disk) {
        disk(bin, &args)?;
    }
    if wanted(Part::Tcp) {
        tcp(bin, &args)?;
    }
    // Timing a program takes longer than a short program; calls are timed by their caller.
    drop(statistics);
    if wanted(Part::Gpu) {
        gpu::calls(bin, &args)?;
        gpu::attaching(bin)?;
    }
    if wanted(Part::Kubernetes) {
        kubernetes::node(bin)?;
    }
    if wanted(Part::Scrape) {
        scrape::formats(bin)?;
    }
    if wanted(Part::Footprint) {
        footprint(bin)?;
    }
    if args.only.contains(&Part::Scale) {
        scale::simulate(bin)?;
    }
    if args.only.contains(&Part::Fleet) {
        fleet::prometheus(bin)?;
    }
    Ok(())
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
        "sentry" | "exemplars" | "events" => {
            let exemplars = match name {
                "exemplars" => "auto",
                // Each event is slower.
                "events" => "1us",
                _ => "off",
            };
            let flags = ["--probes", "tcp,disk"];
            let tcp = ["--tcp.exemplars", exemplars];
            let disk = ["--disk.exemplars", exemplars];
            let (process, address, _) = agent(bin, &[flags, tcp, disk].concat())?;
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

/// What a round measured.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// Events of the load.
    events: u64,
    runs: Runs,
}

/// What the programs of some loaders, attached together, cost: attaches them in this order, runs
/// the load once so that all is in place, and once more to measure.
fn costs(
    names: &[&'static str],
    bin: &Path,
    counts: impl Fn(&str) -> bool,
    mut load: impl FnMut() -> Result<u64>,
) -> Result<Vec<(&'static str, Cost)>> {
    let loaders: Vec<(&'static str, Loader, Programs)> = names
        .iter()
        .map(|name| {
            let (loader, programs) = attach(name, bin)?;
            Ok((*name, loader, programs))
        })
        .collect::<Result<_>>()?;
    load()?;
    for (_, loader, _) in &loaders {
        if let Loader::Agent(_, address) = loader {
            // A collection, as one comes every ten seconds at least.
            get(*address, "/metrics")?;
        }
    }
    let before: Vec<Runs> = loaders
        .iter()
        .map(|(_, _, programs)| programs.runs(&counts))
        .collect::<Result<_>>()?;
    let events = load()?;
    loaders
        .iter()
        .zip(before)
        .map(|((name, _, programs), before)| {
            let runs = programs.runs(&counts)?.since(before);
            Ok((*name, Cost { events, runs }))
        })
        .collect()
}

/// The medians over rounds of what each costs, by `each`: all together, then each alone.
fn medians(
    names: &[&'static str],
    rounds: usize,
    mut round: impl FnMut(&[&'static str]) -> Result<Vec<(&'static str, f64)>>,
) -> Result<[BTreeMap<&'static str, f64>; 2]> {
    let mut values: [BTreeMap<&str, Vec<f64>>; 2] = Default::default();
    for number in 0..rounds {
        let mut order = names.to_vec();
        order.rotate_left(number % names.len());
        for (name, value) in round(&order)? {
            values[0].entry(name).or_default().push(value);
        }
        for name in names {
            for (name, value) in round(&[*name])? {
                values[1].entry(name).or_default().push(value);
            }
        }
    }
    Ok(values.map(|values| {
        let medians = values.into_iter();
        medians
            .map(|(name, mut values)| (name, median(&mut values)))
            .collect()
    }))
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
    // At once where threads can be in different cgroups, as in version 1. In turns, one process
    // after the other, every event would come after switches of context that leave no cache warm.
    let threads = roots.blkio != roots.v2;
    if threads {
        command.push("--threads".to_owned());
    }
    for cgroup in &cgroups {
        command.extend(["--cgroup".to_owned(), cgroup.path().display().to_string()]);
    }

    let mut ios = 0;
    let block = |name: &str| name.contains("disk") || name.starts_with("block_rq");
    let names = ["empty", "sentry", "exemplars", "events", "biolatency"];
    let medians = medians(&names, args.rounds, |names| {
        let costs = costs(names, bin, block, || {
            let report: InterleaveReport = load(bin, &command)?;
            Ok(report.operations)
        })?;
        Ok(costs
            .into_iter()
            .map(|(name, cost)| {
                ios = cost.events;
                // Others of the host do I/O too, so by its own count; some have two programs for
                // each I/O.
                let programs = match name {
                    "biolatency" | "exemplars" | "events" => 2,
                    _ => 1,
                };
                (name, cost.runs.ns_per(cost.runs.count / programs))
            })
            .collect())
    })?;
    println!(
        "## One disk I/O\n\n\
         {ios} reads of 4 KiB a round, O_DIRECT, on a loop device, {CGROUPS} cgroups {}, {} rounds.\n\n\
         | ns an I/O | together | alone |\n|---|---:|---:|",
        if threads { "at once" } else { "in turn" },
        args.rounds
    );
    for (name, text) in [
        ("empty", "empty program on `block_rq_complete`"),
        ("sentry", "Sentry, by cgroup, device and operation"),
        ("exemplars", "the same with `--disk.exemplars auto`"),
        ("events", "the same with an event of each (`1us`)"),
        (
            "biolatency",
            "biolatency, its two programs, without attribution",
        ),
    ] {
        println!(
            "| {text} | {:.0} | {:.0} |",
            medians[0][name], medians[1][name]
        );
    }
    let ratio = |over: &str| {
        medians
            .each_ref()
            .map(|costs| costs["sentry"] / costs[over])
    };
    let (over_empty, of_biolatency) = (ratio("empty"), ratio("biolatency"));
    println!(
        "| Sentry over empty | {:.2} | {:.2} |\n| Sentry of biolatency | {:.2} | {:.2} |\n\n\
         Wanted: at most 170 ns ({}, {}), at most 0.30 of biolatency ({}, {}).\n",
        over_empty[0],
        over_empty[1],
        of_biolatency[0],
        of_biolatency[1],
        met(medians[0]["sentry"] <= 170.0),
        met(medians[1]["sentry"] <= 170.0),
        met(of_biolatency[0] <= 0.3),
        met(of_biolatency[1] <= 0.3),
    );
    Ok(())
}

fn met(yes: bool) -> &'static str {
    if yes { "met" } else { "missed" }
}

/// A listener, and its address.
fn listener(bin: &Path) -> Result<(Process, String)> {
    let mut listener = Command::new(bin.join("load"))
        .arg("listen")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = listener.stdout.take().context("no standard output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let port = serde_json::from_str::<serde_json::Value>(&line)?["port"].clone();
    Ok((Process(listener), format!("127.0.0.1:{port}")))
}

fn tcp(bin: &Path, args: &Args) -> Result<()> {
    let (_listener, to) = listener(bin)?;
    let command: Vec<String> = ["connect", "--to", &to, "--count"]
        .into_iter()
        .map(str::to_owned)
        .chain([args.connects.to_string()])
        .collect();

    let mut changes = 0.0;
    let names = ["empty", "sentry", "exemplars", "events"];
    let medians = medians(&names, args.rounds, |names| {
        let costs = costs(
            names,
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
        Ok(costs
            .into_iter()
            .map(|(name, cost)| {
                #[allow(clippy::cast_precision_loss)] // some thousands
                let each = cost.runs.count as f64 / cost.events as f64;
                changes = each;
                (name, cost.runs.ns_per(cost.events))
            })
            .collect())
    })?;
    println!(
        "## One TCP connection\n\n\
         {} connects a round over loopback, closed by FIN, both ends on this host, {} rounds: \
         {changes:.1} changes of state a connection.\n\n\
         | ns a connection | together | alone |\n|---|---:|---:|",
        args.connects, args.rounds,
    );
    for (name, text) in [
        ("empty", "empty program on `inet_sock_set_state`"),
        ("sentry", "Sentry, both ends, by cgroup"),
        ("exemplars", "the same with `--tcp.exemplars auto`"),
        ("events", "the same with two events of each (`1us`)"),
    ] {
        println!(
            "| {text} | {:.0} | {:.0} |",
            medians[0][name], medians[1][name]
        );
    }
    let over = medians.map(|costs| costs["sentry"] / costs["empty"]);
    println!(
        "| Sentry over empty | {:.2} | {:.2} |\n\nWanted: at most 2.5 times an empty program ({}, {}).\n",
        over[0],
        over[1],
        met(over[0] <= 2.5),
        met(over[1] <= 2.5),
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
    // The gpu probe's come with the first program that uses CUDA.
    let maps = "sentry_bpf_map_memory_bytes{";
    let maps = sum(&metrics, maps) - sum(&metrics, &format!("{maps}map=\"gpu_"));
    let resident = status_bytes(&process, "VmRSS:")?;
    let ready = median(&mut ready);
    let executable = fs::metadata(bin.join("sentry"))?.len();
    println!(
        "## Footprint\n\n\
         All probes, default ceiling of 256 series, {}.\n\n\
         | what | measured | wanted |\n|---|---:|---|\n\
         | BPF maps, without those that come with CUDA | {maps:.0} bytes | at most 160,000 ({}) |\n\
         | resident memory of the agent, scraped 20 times | {:.1} MB | at most 10 MB ({}) |\n\
         | start to `/readyz` | {ready:.0} ms | under 1000 ms ({}) |\n\
         | executable | {} kB | |",
        if metrics.contains("sentry_bpf_map_memory_bytes{map=\"gpu_") {
            "with CUDA on this host"
        } else {
            "no CUDA on this host"
        },
        met(maps <= 160_000.0),
        resident / 1e6,
        met(resident <= 10e6),
        met(ready < 1000.0),
        executable / 1000,
    );
    Ok(())
}

/// The sum of all values whose line in an exposition starts like this.
fn sum(metrics: &str, prefix: &str) -> f64 {
    metrics
        .lines()
        .filter(|line| line.starts_with(prefix))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// A size in the status of a process.
fn status_bytes(process: &Process, key: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("no {key}"))?;
    Ok(kib * 1024.0)
}
