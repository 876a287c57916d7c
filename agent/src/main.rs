//! The agent: attaches the probes, collects what they count, names it, and serves it.
//!
//! This file is the wiring, in the order of the data.
#![forbid(unsafe_code)]
// They panic where nobody reads, which aborts.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod attach;
mod check;
mod collect;
mod config;
mod enrich;
mod expose;
mod log;
mod overhead;
mod privileges;
mod reload;
mod summary;
mod top;
mod trace;
mod views;

use std::{
    env, fs,
    io::{IsTerminal, Write},
    net::SocketAddr,
    os::fd::OwnedFd,
    process::ExitCode,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use probes::{Kernel, Status, cgroup::Events, gpu::Follower};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{Notify, mpsc},
};
use tracing::Level;

use crate::{
    attach::AttachError,
    collect::{Collector, Occasion, lock},
    config::{Command, Config, ProbeOptions},
    enrich::{
        cgroup::Mount,
        kubernetes,
        names::{self, Detail, Names, Sources},
    },
    expose::{
        Exposed, HttpStats, Limits,
        metrics::{Metrics, Shape, Source},
        otlp::{self, Exporter, Identity, Running},
        verdicts::Verdicts,
        web_config::{WebConfig, WebConfigError},
    },
    log::Log,
    overhead::{Overhead, Watcher},
    privileges::{PrivilegesError, Reloads},
    reload::Reloader,
    summary::Summary,
    views::{Recorder, Views, history::History},
};

/// How often totals are read when nobody scrapes: a bucket wraps in 71 minutes at a million
/// events a second.
const COLLECT_INTERVAL: Duration = Duration::from_secs(10);

/// How soon cells are freed after a workload has gone, so that a burst of them is one pass.
const RECYCLE_INTERVAL: Duration = Duration::from_millis(50);

/// How long the follower of CUDA programs waits for news at a time.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(1);

/// How often cgroupfs is walked at most, when an event was lost or a name is missing.
const WALK_INTERVAL: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    probes::bound_allocator();
    // A signal to reload must not end the agent, however early it comes.
    let outcome = Started::new().and_then(|started| {
        Ok(match load() {
            Ok(Command::Check(config, format)) => check::run(&config, format)?,
            Ok(Command::Top(config, options)) => {
                show(&config, &options, started).map(|()| ExitCode::SUCCESS)?
            }
            Ok(Command::Trace(config, options)) => {
                stream(&config, &options, started).map(|()| ExitCode::SUCCESS)?
            }
            Ok(Command::Agent(config)) => run(&config, started).map(|()| ExitCode::SUCCESS)?,
            Err(error) => error.report(),
        })
    });
    outcome.unwrap_or_else(|error| {
        log::say(format_args!("{error:#}"));
        let attach = error.downcast_ref::<AttachError>();
        let watch = error.downcast_ref::<kubernetes::Error>();
        let authorities = error.downcast_ref::<otlp::Error>();
        let trace = error.downcast_ref::<trace::Error>();
        if attach.is_some_and(AttachError::is_bad_setting)
            || error.is::<WebConfigError>()
            || watch.is_some_and(kubernetes::Error::is_bad_setting)
            || authorities.is_some()
            || trace.is_some_and(trace::Error::is_bad_setting)
        {
            ExitCode::from(config::BAD_SETTING)
        } else {
            ExitCode::FAILURE
        }
    })
}

/// Reads the command line, the environment and the file that they name. The first two stay what they are.
fn load() -> Result<Command, config::Error> {
    let options: Vec<ProbeOptions> = probes::PROBES
        .iter()
        .map(|probe| ProbeOptions::from(*probe))
        .collect();
    config::load(env::args_os(), env::vars_os(), &options)
}

/// Where the agent runs, and the signals that it is told by to reload.
struct Started {
    runtime: tokio::runtime::Runtime,
    hangup: Signal,
    /// Whether whoever started it had it ignore that signal, as `nohup` does.
    ignores_hangup: bool,
}

impl Started {
    fn new() -> anyhow::Result<Self> {
        let ignores_hangup = ignores_hangup();
        let runtime = expose::runtime().context("cannot start the runtime")?;
        let hangup = {
            let _within = runtime.enter();
            signal(SignalKind::hangup()).context("SIGHUP")?
        };
        Ok(Self {
            runtime,
            hangup,
            ignores_hangup,
        })
    }
}

/// Whether this process was started so that it ignores SIGHUP, the first of the signals.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 == 1)
}

fn run(
    config: &Config,
    Started {
        runtime, hangup, ..
    }: Started,
) -> anyhow::Result<()> {
    let log = log::init(config.log_level, config.log_format);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    privileges::raise()?;
    let outcome = runtime.block_on(agent(config, hangup, log));
    runtime.shutdown_background();
    outcome
}

/// Shows on the terminal what an agent knows: one that runs, or this process without a server.
fn show(
    config: &Config,
    options: &top::Options,
    Started {
        runtime, hangup, ..
    }: Started,
) -> anyhow::Result<()> {
    anyhow::ensure!(
        std::io::stdout().is_terminal(),
        "top needs a terminal; an agent says the same as JSON: /api/v1/workloads"
    );
    let outcome = runtime.block_on(async {
        let agent = match &options.url {
            Some(url) => Some(top::Source::agent(url)?),
            None => top::Source::on_this_host(config.listen).await?,
        };
        // Held as long as it is shown.
        let (source, _run_stats) = match agent {
            Some(agent) => (agent, None),
            None => own(config)?,
        };
        top::run(source, options.interval, hangup).await
    });
    runtime.shutdown_background();
    outcome
}

/// Prints events as they happen, by a probe of its own.
fn stream(
    config: &Config,
    options: &trace::Options,
    Started {
        runtime,
        hangup,
        ignores_hangup,
    }: Started,
) -> anyhow::Result<()> {
    log::init(config.log_level.min(Level::WARN), config.log_format);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    privileges::raise()?;
    let config = &options.config(config);
    let filter = options.filter(&config.sysfs)?;
    let outcome = runtime.block_on(async {
        let attach::Attached {
            mut kernel,
            cgroup_events,
            mounts,
            gpu: mut follower,
            ..
        } = attach::attach(config, Some(&filter))?;
        // What follows CUDA has its verdict once it has looked for it.
        let traced = follower
            .as_mut()
            .map(|follower| trace::Stream::follow(follower, &filter));
        if let Some(follower) = &follower {
            attach::follow_status(&mut kernel, follower);
        }
        say_verdicts(config, &kernel)?;
        let stream = match traced {
            Some(stream) => stream?,
            None => trace::Stream::open(&mut kernel, &filter)?,
        };
        reduce_privileges(config, None, &kernel)?;
        let names = Arc::new(name(config, cgroup_events, mounts)?);
        let follows = follow_names(&names, &Arc::default())?;
        if let Some(follower) = follower {
            spawn("gpu", move || trace_gpu(follower))?;
        }
        let hangup = (!ignores_hangup).then_some(hangup);
        trace::run(kernel, stream, (names, follows), options, config, hangup).await
    });
    runtime.shutdown_background();
    outcome
}

/// What this process knows by probes of its own. The log then is off if it would be written over the screen.
fn own(config: &Config) -> anyhow::Result<(top::Source, Option<OwnedFd>)> {
    let log = log::init(config.log_level.min(Level::WARN), config.log_format);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    privileges::raise()?;
    let run_stats = run_stats(config)?;
    let Observed { collector, history } = observe(config, None, SystemTime::now())?;
    let metrics = Metrics(Source {
        collector: Arc::clone(&collector),
        http: Arc::default(),
        procfs: config.procfs.clone(),
        shape: Mutex::new(Arc::new(Shape::new(config))),
        run_stats: config.bpf_stats,
        reloads: Arc::new(reload::Stats::new()),
        overhead: Arc::new(Overhead::new(config.overhead_budget)),
        otlp: None,
    });
    let views = Views {
        collector,
        history,
        metrics: Arc::new(metrics),
        node: config.node.clone(),
    };
    if std::io::stderr().is_terminal() {
        log.off();
    }
    Ok((top::Source::Own(Arc::new(views)), run_stats))
}

async fn agent(config: &Config, hangup: Signal, log: Log) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let (started, started_at) = (Instant::now(), SystemTime::now());
    let http = Arc::new(HttpStats::default());
    let web = web(config, &http)?;
    let listener = expose::bind(config.listen, &config.procfs).await?;
    // Files of authorities are read with all privileges.
    let exporter = exporter(config, started_at)?;
    // Held as long as the agent runs.
    let _run_stats = run_stats(config)?;
    let calibration = overhead::calibration(config);

    let Observed { collector, history } = observe(config, web.as_deref(), started_at)?;
    if std::io::stdout().is_terminal() {
        tokio::spawn(summarise(Arc::clone(&collector)));
    }

    // totals -> what they cost
    let overhead = Arc::new(Overhead::new(config.overhead_budget));
    let watcher = Watcher::new(
        Arc::clone(&overhead),
        Arc::clone(&collector),
        config,
        calibration,
    );
    tokio::spawn(watcher.watch());

    // totals -> the outside
    let statuses = lock(&collector).statuses();
    let reloads = Arc::new(reload::Stats::new());
    let metrics = Arc::new(Metrics(Source {
        collector: Arc::clone(&collector),
        http: Arc::clone(&http),
        procfs: config.procfs.clone(),
        shape: Mutex::new(Arc::new(Shape::new(config))),
        run_stats: config.bpf_stats,
        reloads: Arc::clone(&reloads),
        overhead: Arc::clone(&overhead),
        otlp: exporter.as_ref().map(Exporter::stats),
    }));
    let pushing = push(exporter, &metrics)?;
    let (reload, requests) = mpsc::channel(1);
    let reloader = Reloader {
        started: config.probes.clone(),
        current: config.clone(),
        load: Box::new(load_anew),
        collector: Arc::clone(&collector),
        metrics: Arc::clone(&metrics),
        web: web.clone(),
        overhead: Arc::clone(&overhead),
        log,
        stats: reloads,
    };
    tokio::spawn(reload::follow(reloader, hangup, requests));
    let exposed = Exposed {
        views: Arc::new(Views {
            collector,
            history,
            metrics: Arc::clone(&metrics),
            node: config.node.clone(),
        }),
        reload: config.lifecycle.then_some(reload),
        readiness: Arc::new(Verdicts { statuses, overhead }),
        scrape: metrics,
        stats: http,
        telemetry_path: config.telemetry_path.parse()?,
        limits: Limits::default(),
        web: web.clone(),
    };
    announce(listener.local_addr()?, config, web.as_deref(), started);
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    expose::serve(listener, exposed, shutdown).await;
    if let Some(pushing) = pushing {
        pushing.stop().await;
    }
    tracing::info!("stopped");
    Ok(())
}

/// Whether what is left of the probes is worth running for.
fn say_verdicts(config: &Config, kernel: &Kernel) -> anyhow::Result<()> {
    let statuses = kernel.probes.iter().map(|probe| probe.status.clone());
    let statuses: Vec<_> = statuses.collect();
    statuses.iter().for_each(log::verdict);
    Ok(attach::forced_hooks_left_something(config, &statuses)?)
}

/// What is known of workloads, kept current.
struct Observed {
    collector: Arc<Mutex<Collector>>,
    history: Arc<Mutex<History>>,
}

/// Attaches the probes, and from then on collects and names what they count.
fn observe(
    config: &Config,
    web: Option<&WebConfig>,
    started_at: SystemTime,
) -> anyhow::Result<Observed> {
    // kernel -> mapped cells
    let attach::Attached {
        kernel,
        exemplars,
        cgroup_events,
        mounts,
        gpu: follower,
    } = attach::attach(config, None)?;
    say_verdicts(config, &kernel)?;
    // No thread was made so far, and all that are have what this one keeps.
    reduce_privileges(config, web, &kernel)?;

    // cgroup ids -> names
    let names = Arc::new(name(config, cgroup_events, mounts)?);
    let news = Arc::new(Notify::new());
    let follows = follow_names(&names, &news)?;

    // programs that use CUDA -> mapped tables
    let gpu = follower.as_ref().map(Follower::gpu);
    if let Some(follower) = follower {
        let news = Arc::clone(&news);
        spawn("gpu", move || follow_gpu(follower, &news))?;
    }

    // cells, tables and names -> totals
    let collector = Arc::new(Mutex::new(Collector::new(
        started_at,
        kernel,
        exemplars,
        gpu,
        Arc::clone(&names),
        config,
    )));
    let history = Arc::new(Mutex::new(History::new(Instant::now())));
    let recorder = Recorder::new(Arc::clone(&history), config.procfs.clone());
    let upkeep = maintain(Arc::clone(&collector), recorder, names, news, follows);
    tokio::spawn(upkeep);
    Ok(Observed { collector, history })
}

fn announce(address: SocketAddr, config: &Config, web: Option<&WebConfig>, started: Instant) {
    let tls = web.is_some_and(|web| web.current().tls.is_some());
    let scheme = if tls { "https" } else { "http" };
    let path = &config.telemetry_path;
    let took = started.elapsed().as_millis();
    tracing::info!("serving {scheme}://{address}{path} after {took} ms");
}

/// Has the kernel count the runs of programs while what this gives is held, if the configuration wants it.
fn run_stats(config: &Config) -> anyhow::Result<Option<OwnedFd>> {
    let run_stats = config.bpf_stats.then(probes::enable_run_stats);
    run_stats
        .transpose()
        .context("--bpf.stats: the kernel's statistics cannot be switched on")
}

/// Gives up what neither that which is attached nor a reload needs.
fn reduce_privileges(
    config: &Config,
    web: Option<&WebConfig>,
    kernel: &Kernel,
) -> Result<(), PrivilegesError> {
    let files = web.map(WebConfig::files).unwrap_or_default();
    let reloads = Reloads::new(config, &files)?;
    let kept = privileges::reduce(kernel, &config.procfs, &config.rootfs, reloads)?;
    tracing::info!("capabilities kept: {kept}");
    if let Some(missed) = &kept.missed {
        tracing::warn!("{missed}");
    }
    Ok(())
}

/// Who may connect, if the configuration has a file that says so.
fn web(config: &Config, http: &Arc<HttpStats>) -> Result<Option<Arc<WebConfig>>, WebConfigError> {
    let Some(path) = &config.web else {
        return Ok(None);
    };
    let web = WebConfig::load(path, Arc::clone(http))?;
    web.log();
    Ok(Some(Arc::new(web)))
}

/// The configuration as it is by now.
fn load_anew() -> Result<Config, String> {
    match load() {
        Ok(
            Command::Agent(config)
            | Command::Check(config, _)
            | Command::Top(config, _)
            | Command::Trace(config, _),
        ) => Ok(config),
        Err(error) => Err(error.to_string()),
    }
}

/// What sends metrics, if the configuration says where to.
fn exporter(config: &Config, started: SystemTime) -> Result<Option<Exporter>, otlp::Error> {
    let Some(options) = &config.otlp else {
        return Ok(None);
    };
    let host = rustix::system::uname();
    let identity = Identity {
        host: host.nodename().to_string_lossy().into_owned(),
        node: config.node.clone(),
        started,
    };
    Exporter::new(options, identity).map(Some)
}

fn push(exporter: Option<Exporter>, metrics: &Arc<Metrics>) -> anyhow::Result<Option<Running>> {
    exporter
        .map(|exporter| exporter.start(Arc::clone(metrics)))
        .transpose()
        .context("cannot start to send metrics")
}

fn spawn(name: &str, follow: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(follow)
        .context("cannot start a thread")?;
    Ok(())
}

/// Brings together what names are made of, and watches the pods of this node if the configuration
/// says which it is.
fn name(
    config: &Config,
    cgroup_events: Result<Events, Status>,
    mounts: Vec<Mount>,
) -> anyhow::Result<Names> {
    if let Err(status) = &cgroup_events {
        tracing::warn!(
            reason = status.reason.code(),
            "cgroups that live for less than {COLLECT_INTERVAL:?} may have no name: {}",
            status.detail
        );
    }
    let watch = |node: &String| {
        kubernetes::start(kubernetes::Options {
            node: node.clone(),
            kubeconfig: config.kubeconfig.clone(),
            labels: names::of_labels(&config.pod_labels),
            keeps_all_labels: config.file.is_some(),
            retention: config.series_retention,
        })
    };
    Ok(Names::new(Sources {
        events: cgroup_events.ok(),
        mounts,
        pods: config.node.as_ref().map(watch).transpose()?,
        rootfs: config.rootfs.clone(),
        detail: Detail {
            aggregate: config.aggregate,
            pod_labels: config.pod_labels.clone().into(),
        },
    }))
}

/// Starts the thread that follows cgroups, if the kernel tells of them; whether it does.
fn follow_names(names: &Arc<Names>, news: &Arc<Notify>) -> anyhow::Result<bool> {
    let Some(readable) = names.readable().context("cgroup events")? else {
        return Ok(false);
    };
    let (names, news) = (Arc::clone(names), Arc::clone(news));
    spawn("cgroups", move || follow_cgroups(&readable, &names, &news))?;
    Ok(true)
}

/// Takes in the cgroups that come and go, and says when one has gone. Has a thread of its own, so
/// that the small ring is emptied whatever else goes on.
fn follow_cgroups(readable: &OwnedFd, names: &Names, news: &Notify) {
    loop {
        if let Err(error) = names::wait(readable) {
            tracing::error!(%error, "cgroup events cannot be followed");
            return;
        }
        if names.take_in_events() {
            news.notify_one();
        }
    }
}

/// Attaches to CUDA as programs bring it along, and lets go of it. Has a thread of its own, since
/// to attach takes milliseconds; says when there is something to collect for.
fn follow_gpu(mut follower: Follower, news: &Notify) {
    let gpu = follower.gpu();
    let mut known = None;
    loop {
        // A collection shows the new verdict, and gives the places of ended processes back.
        let now = (gpu.status().verdict, gpu.processes().0);
        if known.replace(now).is_some_and(|known| known != now) {
            news.notify_one();
        }
        follower.follow(FOLLOW_TIMEOUT);
    }
}

/// The same for a trace: nobody reads the values of processes that have ended.
fn trace_gpu(mut follower: Follower) {
    let gpu = follower.gpu();
    loop {
        follower.follow(FOLLOW_TIMEOUT);
        if let Err(error) = gpu.recycle_all() {
            tracing::error!(%error, "places of CUDA processes that have ended are not given back");
        }
    }
}

/// Keeps totals current without a scrape, records them in the history, and gives the places of gone workloads back.
async fn maintain(
    collector: Arc<Mutex<Collector>>,
    recorder: Recorder,
    names: Arc<Names>,
    news: Arc<Notify>,
    follows: bool,
) {
    let mut lost = 0;
    let mut walked = Instant::now();
    let recorder = Arc::new(Mutex::new(recorder));
    loop {
        let (pass, record) = (Arc::clone(&collector), Arc::clone(&recorder));
        let pass = tokio::task::spawn_blocking(move || {
            let mut collector = lock(&pass);
            collector.attach_fallbacks();
            let outcome = collector.collect(Instant::now(), Occasion::Upkeep);
            let left = lock(&record).record(&mut collector);
            (outcome, collector.cgroup_events_lost(), left)
        });
        let (outcome, lost_now, left) = match pass.await {
            Ok((Ok(outcome), lost_now, left)) => (outcome, lost_now, left),
            Ok((Err(error), _, left)) => {
                tracing::error!(%error, "series cannot be kept in order");
                (collect::Outcome::default(), lost, left)
            }
            Err(error) => {
                tracing::error!(%error, "a collection was cut off");
                (collect::Outcome::default(), lost, COLLECT_INTERVAL)
            }
        };
        let stale = !follows || lost_now != lost || !outcome.unknown.is_empty();
        let walks = stale && walked.elapsed() >= WALK_INTERVAL;
        if walks {
            lost = lost_now;
            walked = Instant::now();
            let (names, unknown) = (Arc::clone(&names), outcome.unknown);
            let _ = tokio::task::spawn_blocking(move || names.walk(&unknown)).await;
        }
        // What a walk has named or missed is taken in at once.
        if outcome.unfinished || walks {
            tokio::time::sleep(RECYCLE_INTERVAL).await;
        } else {
            let timer = tokio::time::timeout(left.min(COLLECT_INTERVAL), news.notified());
            if timer.await.is_ok() {
                tokio::time::sleep(RECYCLE_INTERVAL).await;
            }
        }
    }
}

/// Prints a line every two seconds, for the person at the terminal.
async fn summarise(collector: Arc<Mutex<Collector>>) {
    let mut summary = Summary::new(Instant::now());
    loop {
        tokio::time::sleep(summary::INTERVAL).await;
        let collector = Arc::clone(&collector);
        // A scrape may hold the collector for milliseconds, and the server must not wait for it.
        let printed = tokio::task::spawn_blocking(move || {
            let mut collector = lock(&collector);
            let now = Instant::now();
            if let Err(error) = collector.collect(now, Occasion::Upkeep) {
                tracing::error!(%error, "values may be stale");
            }
            let line = summary.line(collector.probes(), now);
            writeln!(std::io::stdout(), "{line}").map(|()| summary)
        });
        match printed.await {
            Ok(Ok(next)) => summary = next,
            // The terminal is gone.
            _ => return,
        }
    }
}
