//! Boots the kernels of `kernels.yaml` and holds the agent to what must work there.
#![forbid(unsafe_code)]

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser};
use sentry_vm::apt::Cache;
use sentry_vm::console::Told;
use sentry_vm::guest::READY;
use sentry_vm::image::Programs;
use sentry_vm::kernel::Kernel;
use sentry_vm::list::{Guest, List, Run};
use sentry_vm::machine::Machine;
use sentry_vm::plan::{DEMO_PORT, Task};
use sentry_vm::table::{self, Outcome};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The document that is made of the runs.
const DOCUMENT: &str = "docs/kernels.md";

/// The kernel that must be reached, and how many others.
const OLDEST: &str = "5.10";
const OTHERS: usize = 2;

/// How long a guest may take.
const LIMIT: Duration = Duration::from_secs(1200);

/// How many lines of a console are shown when something is wrong with it.
const TAIL_LINES: usize = 60;

#[derive(Debug, Parser)]
#[command(name = "vm", about)]
enum Vm {
    /// Boot the runs of the list and test the agent in them
    Test(TestArgs),
    /// Boot the newest kernel with the agent and a load, until Ctrl-C
    Demo(ProgramArgs),
    /// Print the folder with what a Debian package holds, fetched once
    Package {
        /// The suite that has it
        suite: String,
        /// What it is called there
        name: String,
    },
}

#[derive(Debug, Args)]
struct TestArgs {
    #[command(flatten)]
    programs: ProgramArgs,
    /// The kernel tests' program
    #[arg(long, value_name = "FILE")]
    tests: PathBuf,
    /// Only the runs of this name, with their variants or without; may be repeated
    #[arg(long, value_name = "NAME")]
    run: Vec<String>,
    /// Only these tests instead of those of the list
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Write docs/kernels.md anew
    #[arg(long)]
    write: bool,
    /// Guests at the same time; as many as the host has CPUs if not given
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// CPUs of each guest
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: usize,
}

#[derive(Debug, Args)]
struct ProgramArgs {
    /// The folder with the static programs sentry, load and init, and with gpu/
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,
    /// A folder for the guests' files
    #[arg(long, value_name = "DIR", default_value = "target/vm")]
    folder: PathBuf,
}

fn main() -> ExitCode {
    let done = match Vm::parse() {
        Vm::Test(args) => test(&args),
        Vm::Demo(args) => demo(&args),
        Vm::Package { suite, name } => package(&suite, &name),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> anyhow::Result<List> {
    List::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels.yaml"))
}

fn say(text: &str) {
    eprintln!("vm: {text}");
}

fn test(args: &TestArgs) -> anyhow::Result<()> {
    let mut list = list()?;
    let all = list.runs.len();
    if !args.run.is_empty() {
        list.runs
            .retain(|run| args.run.iter().any(|name| run.is_called(name)));
        ensure!(
            !list.runs.is_empty(),
            "no run of the list is called {:?}",
            args.run
        );
    }
    let complete = list.runs.len() == all;
    let names = test_names(&args.tests)?;
    let names: Vec<&str> = names
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .collect();
    list.runs.iter().try_for_each(|run| run.is_among(&names))?;
    let kernels = fetch(&list)?;
    let programs = Programs {
        folder: args.programs.programs.canonicalize()?,
        tests: Some(args.tests.canonicalize()?),
    };
    let mut runs = VecDeque::new();
    for (place, run) in list.runs.into_iter().enumerate() {
        match kernels.get(&run.kernel) {
            Some(kernel) => runs.push_back((place, run, kernel)),
            None => say(&format!("{}: SKIPPED, its kernel cannot be had", run.name)),
        }
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.unwrap_or(cpus).min(runs.len());
    let queue = Mutex::new(runs);
    let ended = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    // Not held while the guest runs.
                    let next = lock(&queue).pop_front();
                    let Some((place, run, kernel)) = next else {
                        break;
                    };
                    let outcome = boot(&programs, args, run, kernel);
                    lock(&ended).push((place, outcome));
                }
            });
        }
    });
    let mut ended = ended.into_inner().unwrap_or_default();
    ended.sort_by_key(|(place, _)| *place);
    let outcomes: Vec<Outcome> = ended.into_iter().map(|(_, outcome)| outcome).collect();
    judge(&outcomes, args, complete)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What a test program says of its tests, one a line.
fn test_names(program: &Path) -> anyhow::Result<String> {
    let output = Command::new(program.canonicalize()?).arg("--list").output();
    let output = output.with_context(|| program.display().to_string())?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The kernels that can be had, by series.
fn fetch(list: &List) -> anyhow::Result<BTreeMap<String, Kernel>> {
    let cache = Cache::open()?;
    let mut kernels = BTreeMap::new();
    for (series, suites) in &list.kernels {
        if !list.runs.iter().any(|run| run.kernel == *series) {
            continue;
        }
        match cache.kernel(series, suites, &mut |text| say(&text)) {
            Ok(kernel) => {
                say(&format!(
                    "kernel {series}: {} ({})",
                    kernel.release, kernel.version
                ));
                kernels.insert(series.clone(), kernel);
            }
            Err(error) => say(&format!("kernel {series}: SKIPPED: {error:#}")),
        }
    }
    Ok(kernels)
}

fn package(suite: &str, name: &str) -> anyhow::Result<()> {
    println!("{}", Cache::open()?.package(suite, name)?.display());
    Ok(())
}

fn boot(programs: &Programs, args: &TestArgs, run: Run, kernel: &Kernel) -> Outcome {
    let started = Instant::now();
    let mut told = Told::default();
    let mut tail = VecDeque::new();
    let folder = args.programs.folder.join(run.folder());
    let filters = if args.only.is_empty() {
        run.filters()
    } else {
        args.only.clone()
    };
    let asks = !filters.is_empty();
    say(&format!("{}: boots {}", run.name, kernel.release));
    let booted = || -> anyhow::Result<()> {
        let program = programs.tests.clone().context("no tests")?;
        let task = Task::Test {
            program,
            filters,
            except: run.except.keys().cloned().collect(),
        };
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let initramfs = programs.initramfs(kernel, run.guest, task)?;
        let machine = Machine {
            kernel,
            initramfs: &initramfs,
            guest: run.guest,
            folder: &folder,
            network: false,
            cpus: args.cpus,
        };
        machine.run(Some(LIMIT), &mut |line| {
            told.line(line);
            tail.push_back(line.trim_end().to_owned());
            if tail.len() > TAIL_LINES {
                tail.pop_front();
            }
        })
    };
    if let Err(error) = booted() {
        told.errors.push(format!("{error:#}"));
    }
    if asks && told.passed == 0 && told.failed.is_empty() {
        told.errors.push("no test has run".to_owned());
    }
    let outcome = Outcome {
        run,
        release: kernel.release.clone(),
        version: kernel.version.clone(),
        told,
        seconds: started.elapsed().as_secs_f64(),
    };
    let faults = outcome.faults();
    let name = &outcome.run.name;
    // Both in one go, since guests run side by side.
    let mut text = format!(
        "{name}: {} after {:.0} s, {} tests passed, {} failed, {} skipped",
        if faults.is_empty() { "ok" } else { "FAILED" },
        outcome.seconds,
        outcome.told.passed,
        outcome.told.failed.len(),
        outcome.told.skipped.len(),
    );
    let except = outcome.run.except.iter();
    text.extend(except.map(|(test, why)| format!("\n  left out {test}: {why}")));
    let skipped = outcome.told.skipped.iter();
    text.extend(skipped.map(|skipped| format!("\n  skipped {skipped}")));
    if !faults.is_empty() {
        let console = folder.join("console.log");
        let tail = Vec::from(tail).join("\n");
        let lines = [
            format!("\n--- the end of {} ---", console.display()),
            tail,
            format!("--- {name}: {}", faults.join("\n--- ")),
        ];
        text.push_str(&lines.join("\n"));
    }
    say(&text);
    outcome
}

/// Says how it went, and whether that is enough.
fn judge(outcomes: &[Outcome], args: &TestArgs, complete: bool) -> anyhow::Result<()> {
    ensure!(!outcomes.is_empty(), "no kernel could be had");
    print!("{}", table::terminal(outcomes));
    let mut wrong = 0;
    for outcome in outcomes {
        // What they are has been said as the guest ended.
        let faults = outcome.faults().len();
        if faults > 0 {
            say(&format!("{}: {faults} faults", outcome.run.name));
            wrong += faults;
        }
    }
    if complete {
        let plain = outcomes
            .iter()
            .filter(|outcome| outcome.run.guest == Guest::Plain);
        let reached = plain.filter(|outcome| outcome.told.end.is_some());
        let (oldest, others): (Vec<_>, Vec<_>) =
            reached.partition(|outcome| outcome.run.kernel == OLDEST);
        if oldest.is_empty() || others.len() < OTHERS {
            say(&format!(
                "reached {OLDEST}: {}, other kernels: {}; {OLDEST} and {OTHERS} others are needed",
                if oldest.is_empty() { "no" } else { "yes" },
                others.len()
            ));
            wrong += 1;
        }
    }
    if args.write {
        ensure!(complete, "{DOCUMENT} takes all runs");
        ensure!(wrong == 0, "{DOCUMENT} is left as it is: {wrong} faults");
        fs::write(DOCUMENT, table::document(outcomes)).context(DOCUMENT)?;
    } else if wrong == 0 {
        let document = fs::read_to_string(DOCUMENT).context(DOCUMENT)?;
        let drift = table::drift(&document, outcomes);
        for line in &drift.other {
            say(&format!("{DOCUMENT}: {line}"));
        }
        for line in &drift.wrong {
            say(&format!(
                "{DOCUMENT} is not true: {line}; make kernels writes it anew"
            ));
            wrong += 1;
        }
    }
    ensure!(wrong == 0, "{wrong} faults");
    Ok(())
}

fn demo(args: &ProgramArgs) -> anyhow::Result<()> {
    // QEMU would say so too, after a boot and in its own words.
    if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, DEMO_PORT)) {
        bail!("port {DEMO_PORT} of this host, where the demo is to be seen: {error}");
    }
    let list = list()?;
    let cache = Cache::open()?;
    let mut tried = list.kernels.iter().rev().map(|(series, suites)| {
        say(&format!("looking for kernel {series}"));
        cache.kernel(series, suites, &mut |text| say(&text))
    });
    let kernel = tried.find_map(Result::ok).context("no kernel can be had")?;
    drop(tried);
    drop(cache);
    let programs = Programs {
        folder: args.programs.canonicalize()?,
        tests: None,
    };
    let folder = args.folder.join("demo");
    fs::create_dir_all(&folder)?;
    let initramfs = programs.initramfs(&kernel, Guest::Plain, Task::Demo)?;
    let machine = Machine {
        kernel: &kernel,
        initramfs: &initramfs,
        guest: Guest::Plain,
        folder: &folder,
        network: true,
        cpus: 2,
    };
    say(&format!("boots {}", kernel.release));
    let mut told = Told::default();
    machine.run(None, &mut |line| {
        told.line(line);
        if line.contains(READY) {
            say(&format!(
                "the agent runs: http://127.0.0.1:{DEMO_PORT}/ (Ctrl-C ends it)"
            ));
        } else {
            print!("{line}");
        }
    })?;
    ensure!(told.errors.is_empty(), "{}", told.errors.join("; "));
    Ok(())
}
