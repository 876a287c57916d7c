//! What Sentry costs, in one run on one machine: nanoseconds an event beside an empty program on
//! the same hook and beside `biolatency`, what calls of CUDA cost a program, what a node full of
//! pods takes, scrapes in each format, memory, and the time to be ready.
//!
//! Once all are attached together and see the very same events, in an order that changes from round
//! to round; and once each is attached alone, as its users have it, rounds in turn. Alone, a
//! program pays for every cache line that it is the first to touch, the kernel's clock among
//! them. Medians are printed as Markdown tables.

mod fleet;
mod footprint;
mod gpu;
mod hooks;
mod kubernetes;
mod results;
mod rezolus;
mod scale;
mod scrape;
mod upkeep;
mod workloads;

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    num::{NonZeroU64, NonZeroUsize},
    os::{
        fd::{AsFd, AsRawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, loaded_programs},
};
use clap::{Parser, ValueEnum};
use results::{Cell, Measured, Results, Table, measured};
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
    /// Pairs of each workload; with another tool attached, half as many
    #[arg(long, default_value = "20")]
    pairs: NonZeroUsize,
    /// Only workloads whose title contains this; may be repeated
    #[arg(long, conflicts_with = "write")]
    workload: Vec<String>,
    /// Milliseconds of each half of a pair
    #[arg(long, default_value = "300")]
    slice_ms: NonZeroU64,
    /// Seconds for which an idle agent is watched, and half of them a busy one
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How the gpu probe is attached
    #[arg(long, default_value = "uprobe_multi", value_parser = gpu::HOOKS)]
    gpu_hook: String,
    /// Only these parts, separated by commas
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Folder for results.md and results.json; of several the last
    #[arg(long, value_name = "DIR", overrides_with = "out")]
    out: PathBuf,
    /// Write the tables into docs/performance.md, too
    #[arg(long, conflicts_with = "only")]
    write: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Workloads,
    Agent,
    Disk,
    Tcp,
    Hooks,
    Gpu,
    Footprint,
    Rezolus,
    Kubernetes,
    Scrape,
    /// Thousands of containers; only when asked for
    Scale,
    /// A fleet's Prometheus; only when asked for
    Fleet,
}

/// Set where the second start has tried to bring tracefs.
const MOUNTED: &str = "SENTRY_BENCH_MOUNTED";

/// Starts this program anew where it sees tracefs, if this system has not mounted it: classic tracepoints are found there.
fn see_tracefs() -> Result<()> {
    if Path::new("/sys/kernel/tracing/events").exists() || std::env::var_os(MOUNTED).is_some() {
        return Ok(());
    }
    let script = "mount -t tracefs tracefs /sys/kernel/tracing; exec \"$@\"";
    let error = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(MOUNTED, "1")
        .exec();
    Err(error).context("unshare of util-linux cannot be run")
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        is_root(),
        "needs root: it loads eBPF programs and makes cgroups"
    );
    see_tracefs()?;
    let bin = std::env::current_exe()?;
    let bin = bin.parent().context("no folder of executables")?;
    for name in ["sentry", "load"] {
        ensure!(
            bin.join(name).exists(),
            "{} is missing: run `make bench`",
            bin.join(name).display()
        );
    }
    let mut results = Results::new(args.out.clone())?;
    println!("# What Sentry costs\n\n{}\n", results.machine());
    for part in Part::value_variants() {
        let wanted = match part {
            _ if args.only.contains(part) => true,
            Part::Scale | Part::Fleet => false,
            _ => args.only.is_empty(),
        };
        if !wanted {
            continue;
        }
        let started = Instant::now();
        let name = part.to_possible_value().context("no name")?;
        // A part that cannot be measured here takes no other with it.
        if let Err(error) = measure(*part, bin, &args, &mut results) {
            results.fail(name.get_name(), &error)?;
        }
        eprintln!(
            "bench: {} took {:.0} s",
            name.get_name(),
            started.elapsed().as_secs_f64()
        );
    }
    if args.write {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        results.write_into(&root.join("docs/performance.md"))?;
    }
    let failures = results.failures();
    ensure!(
        failures == 0,
        "parts that could not be measured: {failures}"
    );
    Ok(())
}

fn measure(part: Part, bin: &Path, args: &Args, results: &mut Results) -> Result<()> {
    // Runs are counted, and timed, only while this is open. Timing a program takes longer than a
    // short program; so it is off where the caller's time is taken.
    let statistics = || {
        aya::sys::enable_stats(aya::sys::Stats::RunTime)
            .context("the kernel's BPF statistics cannot be switched on")
    };
    match part {
        Part::Disk => {
            let _statistics = statistics()?;
            disk(bin, args, results)
        }
        Part::Tcp => {
            let _statistics = statistics()?;
            tcp(bin, args, results)
        }
        Part::Hooks => {
            let _statistics = statistics()?;
            hooks::ladder(bin, args, results)
        }
        Part::Gpu => {
            gpu::calls(bin, args, results)?;
            gpu::attaching(bin, results)
        }
        Part::Kubernetes => kubernetes::node(bin, results),
        Part::Scrape => scrape::formats(bin, results),
        Part::Rezolus => {
            let _statistics = statistics()?;
            rezolus::beside(bin, args, results)
        }
        Part::Footprint => footprint::footprint(bin, results),
        Part::Agent => {
            upkeep::idle(bin, args, results)?;
            upkeep::busy(bin, args, results)?;
            let _statistics = statistics()?;
            upkeep::contention(bin, args, results)
        }
        Part::Workloads => workloads::all(bin, args, results),
        Part::Scale => scale::simulate(bin, results),
        Part::Fleet => fleet::prometheus(bin, results),
    }
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
    Biolatency(#[expect(dead_code, reason = "held for its drop")] workloads::Peer),
}

impl Loader {
    fn collect(&self) -> Result<()> {
        match self {
            Self::Agent(_, address) => collect(*address),
            Self::Empty(_) | Self::Biolatency(_) => Ok(()),
        }
    }
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
        "biolatency" => Loader::Biolatency(workloads::peer(&["biolatency", "3600"])?),
        other => bail!("no loader {other}"),
    };
    Ok((loader, programs_since(&before, name)?))
}

/// The programs that were loaded since there were only these.
fn programs_since(before: &[u32], name: &str) -> Result<Programs> {
    let mut ids = program_ids()?;
    ids.retain(|id| !before.contains(id));
    ensure!(!ids.is_empty(), "{name} loaded no program");
    Ok(Programs { ids })
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
fn costs_of(
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
        loader.collect()?;
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

/// Of an event, by what is attached.
type Costs = BTreeMap<&'static str, Measured>;

/// What each costs over the rounds, in nanoseconds: all together, then each alone.
fn in_rounds(
    names: &[&'static str],
    rounds: usize,
    mut round: impl FnMut(&[&'static str]) -> Result<Vec<(&'static str, f64)>>,
) -> Result<[Costs; 2]> {
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
        values
            .into_iter()
            .map(|(name, values)| (name, measured(&values, "ns", 0)))
            .collect()
    }))
}

/// A row for each of these.
fn side_by_side(table: &mut Table, costs: &[Costs; 2], rows: &[(&'static str, &str)]) {
    for (name, text) in rows {
        table.row(
            *text,
            costs
                .iter()
                .map(|costs| costs[name].clone().into())
                .collect(),
        );
    }
}

/// The median of one over that of another, together and alone.
fn ratios(costs: &[Costs; 2], one: &str, over: &str) -> [f64; 2] {
    costs
        .each_ref()
        .map(|costs| costs[one].median() / costs[over].median())
}

fn ratio_cells(ratios: [f64; 2]) -> Vec<Cell> {
    ratios
        .iter()
        .map(|ratio| measured(&[*ratio], "", 2).into())
        .collect()
}

fn empty_programs() -> Result<Ebpf> {
    Ok(Ebpf::load(aya::include_bytes_aligned!(concat!(
        env!("OUT_DIR"),
        "/empty.bpf.o"
    )))?)
}

/// Empty programs on the best hooks of both probes.
fn attach_empty() -> Result<Ebpf> {
    let mut empty = empty_programs()?;
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

/// How long anything else may take to start, to answer or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process that ends with its guard.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // SIGTERM, so that an agent ends as it does for its users.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        );
        let asked = Instant::now();
        while let Ok(None) = self.0.try_wait() {
            if asked.elapsed() > PATIENCE {
                let name = fs::read_to_string(format!("/proc/{}/comm", self.0.id()));
                let name = name.unwrap_or_default();
                eprintln!("bench: {} does not end, and is killed", name.trim());
                let _ = self.0.kill();
                let _ = self.0.wait();
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Starts an agent and waits until it is ready. Also returns where it serves, and how long that took.
fn agent(bin: &Path, flags: &[&str]) -> Result<(Process, SocketAddr, Duration)> {
    let started = Instant::now();
    let mut child = workloads::mortal(bin.join("sentry"))
        .args(["--web.listen-address", "127.0.0.1:0"])
        .args(["--overhead.budget", "off"])
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take().context("no standard error")?;
    let process = Process(child);
    let address = serving(stderr)?;
    while !get(address, "/readyz")?.starts_with("HTTP/1.1 200") {
        ensure!(started.elapsed() < PATIENCE, "the agent is not ready");
        thread::sleep(Duration::from_millis(1));
    }
    Ok((process, address, started.elapsed()))
}

/// The address in the agent's log; goes on reading, so that the agent can go on logging.
fn serving(stderr: ChildStderr) -> Result<SocketAddr> {
    let (lines_in, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            // Nobody listens any more once the address is known.
            let _ = lines_in.send(line);
        }
    });
    let mut log = String::new();
    while let Ok(line) = lines.recv_timeout(PATIENCE) {
        if let Some((_, rest)) = line.split_once("serving http://") {
            return Ok(rest.split('/').next().context("no address")?.parse()?);
        }
        log = line;
    }
    bail!("the agent did not start: {log}")
}

/// Makes an agent collect, as it does every ten seconds at least: until then, series and thresholds are those of a start.
fn collect(address: SocketAddr) -> Result<()> {
    get(address, "/metrics").map(drop)
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
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

/// Reads of a loop device from many cgroups.
struct Reads {
    device: LoopDevice,
    cgroups: Vec<Cgroup>,
    count: u64,
    /// At once where threads can be in different cgroups, as in version 1. In turns, one process after the other,
    /// every event comes after switches of context that leave no cache warm.
    at_once: bool,
}

impl Reads {
    fn new(cgroups: usize, count: u64) -> Result<Self> {
        let roots = CgroupRoots::find()?;
        Ok(Self {
            device: LoopDevice::new(64 << 20)?,
            cgroups: (0..cgroups)
                .map(|number| Cgroup::new(&roots.blkio, &format!("bench-{number}")))
                .collect::<Result<_, _>>()?,
            count,
            at_once: roots.blkio != roots.v2,
        })
    }

    /// Who reads, in words.
    fn who(&self) -> String {
        match (self.cgroups.len(), self.at_once) {
            (1, _) => "one cgroup".to_owned(),
            (count, true) => format!("{count} cgroups at once"),
            (count, false) => format!("{count} cgroups in turn"),
        }
    }

    /// Reads; how often.
    fn run(&self, bin: &Path) -> Result<u64> {
        let mut command: Vec<String> = vec![
            "interleave".to_owned(),
            "--file".to_owned(),
            self.device.path().display().to_string(),
            "--count".to_owned(),
            self.count.to_string(),
        ];
        if self.at_once {
            command.push("--threads".to_owned());
        }
        for cgroup in &self.cgroups {
            command.extend(["--cgroup".to_owned(), cgroup.path().display().to_string()]);
        }
        let report: InterleaveReport = load(bin, &command)?;
        Ok(report.operations)
    }
}

fn is_disk(program: &str) -> bool {
    program.contains("disk") || program.starts_with("block_rq")
}

fn is_tcp(program: &str) -> bool {
    program.contains("tcp")
}

/// Connects over loopback, closed by FIN.
struct Connects {
    to: String,
    count: u64,
    _listener: Process,
}

impl Connects {
    fn new(bin: &Path, args: &Args) -> Result<Self> {
        let (listener, to) = listener(bin, None)?;
        Ok(Self {
            to,
            count: args.connects,
            _listener: listener,
        })
    }

    /// Connects; how often.
    fn run(&self, bin: &Path) -> Result<u64> {
        let count = self.count.to_string();
        let command = ["connect", "--to", &self.to, "--count", &count].map(str::to_owned);
        let report: ConnectReport = load(bin, &command)?;
        let connected = report.tally.connected;
        ensure!(
            connected == self.count,
            "{connected} of {count} connects came through"
        );
        Ok(connected)
    }
}

fn disk(bin: &Path, args: &Args, results: &mut Results) -> Result<()> {
    let names = ["empty", "sentry", "exemplars", "events", "biolatency"];
    let (mut table, costs) = disk_costs(bin, args, "One disk I/O", CGROUPS, &names)?;
    let of_biolatency = ratios(&costs, "sentry", "biolatency");
    for (place, name) in ["together", "alone"].into_iter().enumerate() {
        let over = costs[place]["sentry"].median() - costs[place]["empty"].median();
        let what = format!("at most 80 ns over an empty program {name}");
        table.want(what, over <= 80.0);
        table.want(
            format!("at most 0.30 of biolatency {name}"),
            of_biolatency[place] <= 0.3,
        );
    }
    results.add(table)?;
    // Each read waits for the one before, and before each completion the CPU does something else.
    let names = ["empty", "sentry", "biolatency"];
    results.add(disk_costs(bin, args, "One disk I/O at a time", 1, &names)?.0)
}

/// What a read costs of so many cgroups, with these attached.
fn disk_costs(
    bin: &Path,
    args: &Args,
    title: &str,
    cgroups: usize,
    names: &[&'static str],
) -> Result<(Table, [Costs; 2])> {
    // As many in a round, whoever makes them.
    let all = args.reads * CGROUPS as u64;
    let reads = Reads::new(cgroups, all / cgroups as u64)?;
    let mut ios = 0;
    let costs = in_rounds(names, args.rounds, |names| {
        let costs = costs_of(names, bin, is_disk, || reads.run(bin))?;
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
    let rows = [
        ("empty", "empty program on `block_rq_complete`"),
        ("sentry", "Sentry, by cgroup, device and operation"),
        ("exemplars", "the same with `--disk.exemplars auto`"),
        ("events", "the same with an event of each (`1us`)"),
        (
            "biolatency",
            "biolatency, its two programs, without attribution",
        ),
    ];
    let mut table = Table::new(
        title,
        format!(
            "{ios} reads of 4 KiB a round, `O_DIRECT`, on a loop device, {}, {} rounds: median, least and greatest.",
            reads.who(),
            args.rounds
        ),
        &["an I/O", "together", "alone"],
    );
    side_by_side(
        &mut table,
        &costs,
        &rows
            .into_iter()
            .filter(|(name, _)| names.contains(name))
            .collect::<Vec<_>>(),
    );
    table.row(
        "Sentry over empty",
        ratio_cells(ratios(&costs, "sentry", "empty")),
    );
    table.row(
        "Sentry of biolatency",
        ratio_cells(ratios(&costs, "sentry", "biolatency")),
    );
    Ok((table, costs))
}

fn met(yes: bool) -> &'static str {
    if yes { "met" } else { "missed" }
}

/// A listener, in a cgroup if need be, and its address.
fn listener(bin: &Path, cgroup: Option<&Path>) -> Result<(Process, String)> {
    let mut command = Command::new(bin.join("load"));
    command.arg("listen");
    if let Some(cgroup) = cgroup {
        command.arg("--cgroup").arg(cgroup);
    }
    let mut listener = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let stdout = listener.stdout.take().context("no standard output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let port = serde_json::from_str::<serde_json::Value>(&line)?["port"].clone();
    Ok((Process(listener), format!("127.0.0.1:{port}")))
}

fn tcp(bin: &Path, args: &Args, results: &mut Results) -> Result<()> {
    let connects = Connects::new(bin, args)?;
    let mut changes = 0.0;
    let names = ["empty", "sentry", "exemplars", "events"];
    let costs = in_rounds(&names, args.rounds, |names| {
        let costs = costs_of(names, bin, is_tcp, || connects.run(bin))?;
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
    let mut table = Table::new(
        "One TCP connection",
        format!(
            "{} connects a round over loopback, closed by FIN, both ends on this host, {} rounds: \
             {changes:.1} changes of state a connection. Median, least and greatest.",
            args.connects, args.rounds,
        ),
        &["a connection", "together", "alone"],
    );
    side_by_side(
        &mut table,
        &costs,
        &[
            ("empty", "empty program on `inet_sock_set_state`"),
            ("sentry", "Sentry, both ends, by cgroup"),
            ("exemplars", "the same with `--tcp.exemplars auto`"),
            ("events", "the same with two events of each (`1us`)"),
        ],
    );
    let over = ratios(&costs, "sentry", "empty");
    table.row("Sentry over empty", ratio_cells(over));
    for (over, name) in over.into_iter().zip(["together", "alone"]) {
        let what = format!("at most 2 times an empty program {name}");
        table.want(what, over <= 2.0);
    }
    results.add(table)
}

/// Scrapes often, so that its memory is what it stays.
fn scrape_often(address: SocketAddr) -> Result<()> {
    for _ in 0..20 {
        let answer = get(address, "/metrics")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        thread::sleep(Duration::from_millis(50));
    }
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
    memory_bytes(process, "status", key)
}

/// A size in such a file of a process.
fn memory_bytes(process: &Process, file: &str, key: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{}/{file}", process.0.id()))?;
    let kib: f64 = text
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .with_context(|| format!("no {key}"))?;
    Ok(kib * 1024.0)
}
