//! What the gpu probe costs a program that calls CUDA, and what it takes to attach.
//!
//! One program makes the calls, on the stand-in runtime of the tests, and lives through all rounds.
//! With nothing attached, with an empty program and with Sentry in turn, it times its own calls by
//! the processor's time of its thread.

use std::{
    env, fs,
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    Args, Process, agent, get,
    results::{Cell, Measured, Results, Table, measured},
    serving, status_bytes, sum,
    workloads::{Load, Slice},
};

/// What the load calls over and over.
struct Pattern {
    name: &'static str,
    text: &'static str,
    /// Launches of a round.
    launches: u64,
    /// How many times an empty program's cost is wanted at most.
    wanted: f64,
}

const fn pattern(name: &'static str, text: &'static str, launches: u64, wanted: f64) -> Pattern {
    Pattern {
        name,
        text,
        launches,
        wanted,
    }
}

/// In this order: each use of another stream makes what follows dearer.
#[rustfmt::skip] // a table
const PATTERNS: [Pattern; 12] = [
    pattern("launch_default", "launch, default stream", 1, LAUNCH),
    pattern("launch_stream", "launch, a stream", 1, LAUNCH),
    pattern("sync_stream", "`cudaStreamSynchronize`", 0, SYNCHRONISE),
    pattern("query_stream", "`cudaStreamQuery`", 0, SYNCHRONISE),
    pattern("sync_device", "`cudaDeviceSynchronize`", 0, SYNCHRONISE),
    pattern("pair_stream", "launch and `cudaStreamSynchronize`", 1, SYNCHRONISE),
    pattern("pair_device", "launch and `cudaDeviceSynchronize`", 1, SYNCHRONISE),
    pattern("pair_event", "launch, `cudaEventRecord` and `cudaEventSynchronize`", 1, SYNCHRONISE),
    pattern("four_device", "4 launches, each on its stream, and `cudaDeviceSynchronize`", 4, SYNCHRONISE),
    pattern("launch_turns", "launch, 30 streams in turn", 1, LAUNCH),
    pattern("pair_device", "launch and `cudaDeviceSynchronize`, 30 streams in use", 1, SYNCHRONISE),
    pattern("prefetch", "2 streams: launch, `cudaEventRecord`, `cudaStreamWaitEvent`, launch, `cudaStreamSynchronize`", 2, SYNCHRONISE),
];

/// What is wanted of an entry alone, and of an entry and a return.
const LAUNCH: f64 = 1.5;
const SYNCHRONISE: f64 = 1.6;

/// The functions that the patterns call, as the empty program is attached to them.
const FUNCTIONS: [&str; 7] = [
    "cudaLaunchKernel",
    "cudaStreamSynchronize:return",
    "cudaDeviceSynchronize:return",
    "cudaStreamQuery:return",
    "cudaEventRecord",
    "cudaStreamWaitEvent",
    "cudaEventSynchronize:return",
];

/// How often each pattern is timed in a round.
const TIMES: usize = 7;

/// Launches a second of the busy program, by itself.
const LAUNCHES_PER_S: f64 = 50_000.0;

/// The means of attaching, as the agent has them.
pub(crate) const HOOKS: [&str; 3] = ["uprobe_multi", "uprobe_cookie", "uprobe"];

const STATES: [&str; 3] = ["none", "empty", "sentry"];

/// The stand-in runtime and the programs of this bench, built.
#[derive(Debug, Clone)]
struct Built {
    load: PathBuf,
    empty: PathBuf,
    runtime: PathBuf,
}

/// In a folder beside the bench, once a run: a library that is in use is not written anew.
fn build(bin: &Path) -> Result<Built> {
    static BUILT: OnceLock<Built> = OnceLock::new();
    if let Some(built) = BUILT.get() {
        return Ok(built.clone());
    }
    let built = compile(bin)?;
    Ok(BUILT.get_or_init(|| built).clone())
}

fn compile(bin: &Path) -> Result<Built> {
    let folder = bin.join("bench-gpu");
    fs::create_dir_all(&folder)?;
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let stand_in = here.join("../agent/tests/gpu");
    let runtime = folder.join("libcudart.so.12");
    let (load, empty) = (folder.join("gpu-load"), folder.join("empty"));
    let cc = |program: &Path, source: &str| {
        let mut cc = Command::new("cc");
        cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(&stand_in)
            .arg("-o")
            .arg(program)
            .arg(here.join("src/gpu").join(source));
        cc
    };
    let mut script = Command::new("sh");
    script.arg(stand_in.join("build.sh")).arg(&folder);
    let mut with_runtime = cc(&load, "load.c");
    with_runtime.arg(&runtime).arg("-Wl,-rpath,$ORIGIN");
    let mut alone = cc(&empty, "empty.c");
    alone.arg("-ldl");
    for mut command in [script, with_runtime, alone] {
        let status = command.status().context("cc is needed")?;
        ensure!(status.success(), "the load does not compile");
    }
    Ok(Built {
        load,
        empty,
        runtime,
    })
}

/// A program that answers lines by lines, and ends with its input.
struct Partner {
    process: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Partner {
    fn start(mut command: Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().context("no standard output")?;
        Ok(Self {
            input: process.stdin.take(),
            process,
            output: BufReader::new(output).lines(),
        })
    }

    fn answer(&mut self) -> Result<f64> {
        let line = self.output.next().context("it ended early")??;
        Ok(line.parse()?)
    }

    fn ask(&mut self, order: &str) -> Result<f64> {
        writeln!(self.input.as_ref().context("no input")?, "{order}")?;
        self.answer()
    }

    /// Nanoseconds of a round, in the quickest of a few rows of them: what else the host does
    /// only ever adds.
    fn time(&mut self, pattern: &str, rounds: u64, work: u64) -> Result<f64> {
        let mut quickest = f64::INFINITY;
        for _ in 0..TIMES {
            quickest = quickest.min(self.ask(&format!("{pattern} {rounds} {work}"))?);
        }
        #[allow(clippy::cast_precision_loss)] // some thousands
        Ok(quickest / rounds as f64)
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.process.wait();
    }
}

fn empty(built: &Built, hook: &str) -> Result<Partner> {
    let mut command = Command::new(&built.empty);
    command.arg(hook).arg(&built.runtime).args(FUNCTIONS);
    let mut empty = Partner::start(command)?;
    empty.answer()?;
    Ok(empty)
}

/// Launches that the agent has counted of the load, and of no other program of this host.
fn launches_of_load(metrics: &str) -> f64 {
    metrics
        .lines()
        .filter(|line| line.starts_with("sentry_gpu_launches_total{"))
        .filter(|line| line.contains("process=\"gpu-load\""))
        .map(|line| sum(line, ""))
        .sum()
}

/// A program that launches so many times a second, with work between.
pub(crate) struct Launches {
    load: Partner,
    work: u64,
}

impl Launches {
    pub(crate) fn start(bin: &Path) -> Result<Self> {
        let mut load = Partner::start(Command::new(build(bin)?.load))?;
        let work = calibrate(&mut load)?;
        Ok(Self { load, work })
    }

    /// Empty programs on the functions of its runtime.
    pub(crate) fn empty(bin: &Path) -> Result<impl Sized + 'static> {
        empty(&build(bin)?, HOOKS[0])
    }

    /// The stand-in runtime.
    pub(crate) fn library(bin: &Path) -> Result<PathBuf> {
        Ok(build(bin)?.runtime)
    }
}

impl Load for Launches {
    fn slice(&mut self, length: Duration) -> Result<Slice> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // some thousands
        let launches = (length.as_secs_f64() * LAUNCHES_PER_S) as u64;
        let started = Instant::now();
        let cpu_ns = self
            .load
            .ask(&format!("launch_stream {launches} {}", self.work))?;
        #[allow(clippy::cast_precision_loss)] // some thousands
        let done = launches as f64;
        Ok(Slice {
            wall_ns: started.elapsed().as_secs_f64() * 1e9 / done,
            cpu_ns: cpu_ns / done,
        })
    }
}

/// Nanoseconds a round of each pattern, and at last of the busy program.
type Times = [f64; PATTERNS.len() + 1];

const BUSY: usize = PATTERNS.len();

fn round(load: &mut Partner, calls: u64, work: u64) -> Result<Times> {
    let mut times = [0.0; PATTERNS.len() + 1];
    for (time, pattern) in times.iter_mut().zip(PATTERNS) {
        *time = load.time(pattern.name, calls, 0)?;
    }
    times[BUSY] = load.time("launch_stream", calls / 5, work)?;
    Ok(times)
}

/// How much work makes a program with so many launches a second.
fn calibrate(load: &mut Partner) -> Result<u64> {
    let alone = load.time("launch_stream", 1000, 0)?;
    let worked = load.time("launch_stream", 1000, 10_000)?;
    let each = (worked - alone) / 10_000.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // some thousands
    let work = ((1e9 / LAUNCHES_PER_S - alone) / each) as u64;
    Ok(work)
}

/// What calls cost the program that makes them.
pub(crate) fn calls(bin: &Path, args: &Args, results: &mut Results) -> Result<()> {
    let built = build(bin)?;
    let mut load = Partner::start(Command::new(&built.load))?;
    let work = calibrate(&mut load)?;
    let hook = args.gpu_hook.as_str();
    let launches: u64 = PATTERNS.iter().map(|pattern| pattern.launches).sum();
    let mut rounds: Vec<[Times; 3]> = Vec::new();
    for number in 0..args.rounds {
        let mut times = [[0.0; PATTERNS.len() + 1]; 3];
        for turn in 0..STATES.len() {
            let state = (turn + number) % STATES.len();
            let attached = match STATES[state] {
                "empty" => Some(empty(&built, hook)?),
                _ => None,
            };
            let agent = match STATES[state] {
                "sentry" => Some(agent(bin, &["--probes", "gpu", "--gpu.hook", hook])?),
                _ => None,
            };
            // The first calls find their places.
            load.time("launch_stream", args.calls / 10, 0)?;
            let before = agent.as_ref().map(|agent| get(agent.1, "/metrics"));
            times[state] = round(&mut load, args.calls, work)?;
            if let (Some((_, address, _)), Some(before)) = (&agent, before) {
                let metrics = get(*address, "/metrics")?;
                let counted = launches_of_load(&metrics) - launches_of_load(&before?);
                #[allow(clippy::cast_precision_loss)] // some millions
                let made = ((launches * args.calls + args.calls / 5) * TIMES as u64) as f64;
                ensure!(
                    (counted - made).abs() < 0.5,
                    "{counted} launches counted, {made} made"
                );
            }
            drop(attached);
        }
        rounds.push(times);
    }
    report(args, &rounds, results)?;
    profile(bin, args, &mut load, results)
}

fn report(args: &Args, rounds: &[[Times; 3]], results: &mut Results) -> Result<()> {
    let of = |decimals: usize, unit: &'static str, value: &dyn Fn(&[Times; 3]) -> f64| {
        let values: Vec<f64> = rounds.iter().map(value).collect();
        measured(&values, unit, decimals)
    };
    let over = |state: usize, pattern: usize| -> Measured {
        of(0, "ns", &|times| times[state][pattern] - times[0][pattern])
    };
    let mut table = Table::new(
        "One call of CUDA",
        format!(
            "On the stand-in runtime, {}, {} calls {TIMES} times a round, {} rounds: median, least and greatest. \
             What a call takes longer than with nothing attached, by the processor's time of its thread; empty \
             programs are at the same entries and returns.",
            args.gpu_hook, args.calls, args.rounds
        ),
        &["call", "empty", "Sentry", "Sentry over empty", "wanted"],
    );
    for (pattern, Pattern { text, wanted, .. }) in PATTERNS.iter().enumerate() {
        let ratio = of(2, "", &|[none, empty, sentry]| {
            (sentry[pattern] - none[pattern]) / (empty[pattern] - none[pattern])
        });
        let met = crate::met(ratio.median() <= *wanted);
        table.row(
            *text,
            vec![
                over(1, pattern).into(),
                over(2, pattern).into(),
                ratio.into(),
                Cell::text(format!("at most {wanted} ({met})")),
            ],
        );
    }
    results.add(table)?;

    let mut table = Table::new(
        "A busy program of CUDA",
        format!(
            "It makes {:.0} launches a second by itself; what the processor takes for each launch and the work between.",
            1e9 / of(0, "", &|times| times[0][BUSY]).median()
        ),
        &["a launch", "with its work", "more", "over empty"],
    );
    for (state, name) in [
        "nothing attached",
        "empty program",
        "Sentry, `--probes gpu`",
    ]
    .into_iter()
    .enumerate()
    {
        let mut cells: Vec<Cell> = vec![of(2, "us", &|times| times[state][BUSY] / 1e3).into()];
        if state > 0 {
            cells.push(over(state, BUSY).into());
        }
        if state == 2 {
            let ratio = of(3, "", &|times| times[2][BUSY] / times[1][BUSY]);
            table.want(
                "at most 1.2 times what it takes with an empty program",
                ratio.median() <= 1.2,
            );
            cells.push(ratio.into());
        }
        table.row(name, cells);
    }
    results.add(table)
}

/// How long each program runs, by the kernel's statistics, whose own time is part of it.
fn profile(bin: &Path, args: &Args, load: &mut Partner, results: &mut Results) -> Result<()> {
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let (_agent, address, _) = agent(bin, &["--probes", "gpu", "--gpu.hook", &args.gpu_hook])?;
    load.time("launch_stream", args.calls / 10, 0)?;
    let programs = ["gpu_enqueue", "gpu_enter", "gpu_return", "gpu_order"];
    let mut table = Table::new(
        "Programs of the gpu probe",
        "A run of each, with the kernel's clock around it.",
        &[
            "call",
            "`gpu_enqueue`",
            "`gpu_enter`",
            "`gpu_return`",
            "`gpu_order`",
        ],
    );
    for Pattern { name, text, .. } in PATTERNS {
        let before = get(address, "/metrics")?;
        load.time(name, args.calls, 0)?;
        let after = get(address, "/metrics")?;
        let cells = programs.map(|program| {
            let more = |name: &str| {
                let name = format!("{name}{{program=\"{program}\"}}");
                sum(&after, &name) - sum(&before, &name)
            };
            let runs = more("sentry_bpf_program_runs_total");
            if runs < 1.0 {
                return Cell::text("");
            }
            let seconds = more("sentry_bpf_program_run_seconds_total");
            measured(&[seconds / runs * 1e9], "ns", 0).into()
        });
        table.row(text, cells.into());
    }
    results.add(table)
}

/// A real runtime: the one fetched for the tests.
fn runtime() -> Option<PathBuf> {
    let folder = |name| env::var_os(name).map(PathBuf::from);
    let folder = folder("SENTRY_CUDA_CACHE")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("sentry/cuda")))
        .or_else(|| Some(folder("HOME")?.join(".cache/sentry/cuda")))?;
    let runtime = folder.join("nvidia/cuda_runtime/lib/libcudart.so.12");
    runtime.exists().then_some(runtime)
}

fn descriptors(process: &Process) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", process.0.id()))?.count())
}

/// A program that maps a library and does nothing.
fn mapper(library: &Path) -> Result<Partner> {
    let mut command = Command::new("cat");
    command.env("LD_PRELOAD", library);
    let partner = Partner::start(command)?;
    let maps = format!("/proc/{}/maps", partner.process.id());
    let name = library.file_name().context("no name")?.to_string_lossy();
    for _ in 0..1000 {
        if fs::read_to_string(&maps)?.contains(&*name) {
            return Ok(partner);
        }
        thread::sleep(Duration::from_millis(2));
    }
    bail!("{} is not mapped", library.display())
}

/// Whether the gpu probe is attached, but for the end of the labels.
pub(crate) const UP: &str = "sentry_probe_up{probe=\"gpu\"";

/// What one attachment to all functions of a runtime takes, by each of the means.
pub(crate) fn attaching(bin: &Path, results: &mut Results) -> Result<()> {
    let built = build(bin)?;
    let real = runtime();
    let library = real.as_ref().unwrap_or(&built.runtime);
    let mut table = Table::new(
        "Attaching to a CUDA runtime",
        format!(
            "To {}, median of 5 times by `uprobe_multi`, once by the others.",
            if real.is_some() {
                "NVIDIA's `libcudart.so.12`"
            } else {
                "the stand-in runtime"
            }
        ),
        &[
            "hook",
            "until it is attached",
            "descriptors",
            "maps",
            "resident before",
            "after",
            "until it has let go",
        ],
    );
    'hooks: for hook in HOOKS {
        let mut values = Vec::new();
        // Letting go of a uprobe after the other takes many seconds.
        for _ in 0..if hook == "uprobe_multi" { 5 } else { 1 } {
            match attach_once(bin, library, hook)? {
                Ok(row) => values.push(row),
                Err(verdict) => {
                    table.row(format!("`{hook}`"), vec![Cell::text(verdict)]);
                    continue 'hooks;
                }
            }
        }
        let of = |column: usize, unit: &'static str, decimals: usize| -> Cell {
            let values: Vec<f64> = values.iter().map(|row| row[column]).collect();
            measured(&values, unit, decimals).into()
        };
        table.row(
            format!("`{hook}`"),
            vec![
                of(0, "ms", 0),
                of(1, "", 0),
                of(2, "bytes", 0),
                of(3, "MB", 2),
                of(4, "MB", 2),
                of(5, "ms", 0),
            ],
        );
    }
    results.add(table)
}

#[allow(clippy::cast_precision_loss)] // some dozens
fn attach_once(bin: &Path, library: &Path, hook: &str) -> Result<Result<[f64; 6], String>> {
    let mut child = Command::new(bin.join("sentry"))
        .args(["--web.listen-address", "127.0.0.1:0"])
        .args(["--overhead.budget", "off"])
        .args(["--probes", "tcp,gpu", "--gpu.hook", hook])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let stderr = child.stderr.take().context("no standard error")?;
    let process = Process(child);
    let address = serving(stderr)?;
    let scrape = || -> Result<String> {
        for _ in 0..10 {
            get(address, "/metrics")?;
        }
        get(address, "/metrics")
    };
    while !get(address, "/readyz")?.starts_with("HTTP/1.1 200") {
        thread::sleep(Duration::from_millis(1));
    }
    ensure!(
        sum(&scrape()?, UP) < 0.5,
        "another process of this host has CUDA"
    );
    let (descriptors_before, resident_before) =
        (descriptors(&process)?, status_bytes(&process, "VmRSS:")?);
    let mapper = mapper(library)?;
    let started = Instant::now();
    loop {
        let metrics = get(address, "/metrics")?;
        if sum(&metrics, UP) > 0.5 {
            break;
        }
        ensure!(started.elapsed().as_secs() < 20, "it does not attach");
        let line = metrics.lines().find(|line| line.starts_with(UP));
        if let Some(line) = line.filter(|line| line.contains("failed")) {
            return Ok(Err(format!("does not attach: `{line}`")));
        }
        thread::sleep(Duration::from_millis(2));
    }
    let attached = started.elapsed();
    let metrics = scrape()?;
    let (more, resident) = (
        descriptors(&process)? - descriptors_before,
        status_bytes(&process, "VmRSS:")?,
    );
    drop(mapper);
    let ended = Instant::now();
    drop(process);
    Ok(Ok([
        attached.as_secs_f64() * 1e3,
        more as f64,
        sum(&metrics, "sentry_bpf_map_memory_bytes{map=\"gpu_"),
        resident_before / 1e6,
        resident / 1e6,
        ended.elapsed().as_secs_f64() * 1e3,
    ]))
}
