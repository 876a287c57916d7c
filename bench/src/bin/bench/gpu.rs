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
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{Args, Process, agent, get, median, serving, status_bytes, sum};

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
struct Built {
    load: PathBuf,
    empty: PathBuf,
    runtime: PathBuf,
}

/// In a folder beside the bench.
fn build(bin: &Path) -> Result<Built> {
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

/// Median, least and greatest.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    let middle = median(&mut values);
    [middle, values[0], values[values.len() - 1]]
}

/// What calls cost the program that makes them.
pub(crate) fn calls(bin: &Path, args: &Args) -> Result<()> {
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
    report(args, &rounds);
    profile(bin, args, &mut load)
}

fn report(args: &Args, rounds: &[[Times; 3]]) {
    let over = |state: usize, pattern: usize| {
        spread(
            rounds
                .iter()
                .map(|times| times[state][pattern] - times[0][pattern]),
        )[0]
    };
    println!(
        "## One call of CUDA\n\n\
         On the stand-in runtime, {}, {} calls {TIMES} times a round, {} rounds. What a call takes \
         longer than with nothing attached, by the processor's time of its thread; empty programs \
         are at the same entries and returns.\n\n\
         | ns | empty | Sentry | ratio | least to greatest | wanted |\n|---|---:|---:|---:|---:|---|",
        args.gpu_hook, args.calls, args.rounds
    );
    for (pattern, Pattern { text, wanted, .. }) in PATTERNS.iter().enumerate() {
        let ratios = rounds.iter().map(|[none, empty, sentry]| {
            (sentry[pattern] - none[pattern]) / (empty[pattern] - none[pattern])
        });
        let [ratio, least, greatest] = spread(ratios);
        println!(
            "| {text} | {:.0} | {:.0} | {ratio:.2} | {least:.2} to {greatest:.2} | at most {wanted} ({}) |",
            over(1, pattern),
            over(2, pattern),
            crate::met(ratio <= *wanted),
        );
    }
    let busy = |state: usize| spread(rounds.iter().map(move |times| times[state][BUSY]));
    let slower = |state: usize, than: usize| {
        spread(
            rounds
                .iter()
                .map(move |times| times[state][BUSY] / times[than][BUSY]),
        )
    };
    let [ratio, least, greatest] = slower(2, 1);
    println!(
        "\nA program that makes {:.0} launches a second by itself takes {:.2} us of the processor \
         for each, {:.2} us with an empty program ({:.3} times) and {:.2} us with Sentry ({:.3} \
         times). Sentry over empty: {ratio:.3} ({least:.3} to {greatest:.3}), wanted at most 1.2 \
         ({}). What they add: {:.0} and {:.0} ns a launch.\n",
        1e9 / busy(0)[0],
        busy(0)[0] / 1e3,
        busy(1)[0] / 1e3,
        slower(1, 0)[0],
        busy(2)[0] / 1e3,
        slower(2, 0)[0],
        crate::met(ratio <= 1.2),
        over(1, BUSY),
        over(2, BUSY),
    );
}

/// How long each program runs, by the kernel's statistics, whose own time is part of it.
fn profile(bin: &Path, args: &Args, load: &mut Partner) -> Result<()> {
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let (_agent, address, _) = agent(bin, &["--probes", "gpu", "--gpu.hook", &args.gpu_hook])?;
    load.time("launch_stream", args.calls / 10, 0)?;
    println!(
        "| ns a run, the clock included | `gpu_enqueue` | `gpu_enter` | `gpu_return` | `gpu_order` |"
    );
    println!("|---|---:|---:|---:|---:|");
    for Pattern { name, text, .. } in PATTERNS {
        let before = get(address, "/metrics")?;
        load.time(name, args.calls, 0)?;
        let after = get(address, "/metrics")?;
        print!("| {text} |");
        for program in ["gpu_enqueue", "gpu_enter", "gpu_return", "gpu_order"] {
            let more = |name: &str| {
                let name = format!("{name}{{program=\"{program}\"}}");
                sum(&after, &name) - sum(&before, &name)
            };
            let runs = more("sentry_bpf_program_runs_total");
            if runs < 1.0 {
                print!(" |");
            } else {
                let seconds = more("sentry_bpf_program_run_seconds_total");
                print!(" {:.0} |", seconds / runs * 1e9);
            }
        }
        println!();
    }
    println!();
    Ok(())
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

const UP: &str = "sentry_probe_up{probe=\"gpu\"";

/// What one attachment to all functions of a runtime takes, by each of the means.
pub(crate) fn attaching(bin: &Path) -> Result<()> {
    let built = build(bin)?;
    let library = runtime().unwrap_or_else(|| built.runtime.clone());
    println!(
        "## Attaching to {}\n\n\
         | | until it is attached | descriptors | maps | resident before | after | until it has let go |\n\
         |---|---:|---:|---:|---:|---:|---:|",
        library.display()
    );
    'hooks: for hook in HOOKS {
        let mut values = Vec::new();
        // Letting go of a uprobe after the other takes many seconds.
        for _ in 0..if hook == "uprobe_multi" { 5 } else { 1 } {
            match attach_once(bin, &library, hook)? {
                Ok(row) => values.push(row),
                Err(verdict) => {
                    println!("| `{hook}` | {verdict} | | | | | |");
                    continue 'hooks;
                }
            }
        }
        let of = |column: usize| spread(values.iter().map(|row| row[column]))[0];
        println!(
            "| `{hook}` | {:.0} ms | {:.0} | {:.0} bytes | {:.2} MB | {:.2} MB | {:.0} ms |",
            of(0),
            of(1),
            of(2),
            of(3),
            of(4),
            of(5),
        );
    }
    println!();
    Ok(())
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
