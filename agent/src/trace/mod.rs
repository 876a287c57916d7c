//! `sentry trace`: events one by one, as they happen.

mod line;

use std::{
    collections::BTreeSet,
    future,
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use probes::{
    Event, Events, Installed, Kernel, OwnCounter, Refusal, StreamCgroups, StreamFilter, Verdict,
    Workload,
    gpu::{self, DEVICES, Follower},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

use self::line::Line;
use crate::{
    config::{Aggregate, Config, Exemplars, Format, parse_count, parse_least, parse_length},
    enrich::{
        device::{self, DeviceError, Devices},
        names::Names,
    },
    log,
    views::who::Who,
};

/// Bytes of a CPU's ring: room for 2,340 handshakes, or 2,970 requests.
const RING_BYTES: u32 = 256 << 10;

/// How often the rings are emptied.
const READ_INTERVAL: Duration = Duration::from_millis(20);

/// Events of a reading from which on the next one follows at once: the rings may fill as fast.
const MANY: u64 = 500;

/// How often it is said what was lost, and looked for what is seldom needed.
const SECOND: Duration = Duration::from_secs(1);

/// How long an end waits for who reads the lines.
const END: Duration = Duration::from_secs(5);

/// What there are events of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// TCP handshakes, and connects that failed
    Tcp,
    /// Block requests that completed or failed
    Disk,
    /// Gaps in which a GPU had nothing to do, and CUDA calls that failed
    Gpu,
}

impl Subject {
    /// The name of the probe.
    fn probe(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Disk => "disk",
            Self::Gpu => "gpu",
        }
    }
}

/// What the command line says of it.
#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct Options {
    /// What to trace
    #[arg(value_enum, value_name = "WHAT")]
    pub(crate) what: Subject,
    /// Shape of the output: a table, or an object a line
    #[arg(
        long,
        value_enum,
        default_value = "table",
        value_name = "FORMAT",
        help_heading = "Trace"
    )]
    pub(crate) format: Format,
    /// TCP connections that close, with how long they lived and their bytes, in place of handshakes and of connects that fail
    #[arg(long, help_heading = "Trace")]
    pub(crate) closed: bool,
    /// Only what took so long at least, such as 500us or 10ms
    #[arg(long, value_name = "DURATION", value_parser = parse_least, help_heading = "Filters")]
    pub(crate) min_duration: Option<Duration>,
    /// Only what this process began
    #[arg(long, value_name = "PID", value_parser = parse_pid, help_heading = "Filters")]
    pub(crate) pid: Option<u32>,
    /// Only what belongs to this cgroup or one below it: its path from the root, as in the label cgroup
    #[arg(long, value_name = "PATH", conflicts_with = "pod", value_parser = parse_cgroup, help_heading = "Filters")]
    pub(crate) cgroup: Option<String>,
    /// Only what belongs to this pod
    #[arg(long, value_name = "NAMESPACE/NAME", help_heading = "Filters")]
    pub(crate) pod: Option<Pod>,
    /// Only what has this TCP port at either end
    #[arg(long, value_name = "PORT", value_parser = parse_port, help_heading = "Filters")]
    pub(crate) port: Option<u16>,
    /// Only I/O of this disk: its name, its path in /dev, or MAJOR:MINOR; or gaps of the GPU that the process knows by this number
    #[arg(long, value_name = "DEVICE", help_heading = "Filters")]
    pub(crate) device: Option<String>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = parse_count, help_heading = "Trace")]
    pub(crate) count: Option<u64>,
    /// End after so long, such as 500ms, 10s or 5m
    #[arg(long, value_name = "DURATION", value_parser = parse_length, help_heading = "Trace")]
    pub(crate) duration: Option<Duration>,
}

/// A pod's namespace and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod {
    namespace: String,
    name: String,
}

/// Text that names no pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("allowed: NAMESPACE/NAME, such as shop/api-0")]
pub(crate) struct PodError;

impl FromStr for Pod {
    type Err = PodError;

    fn from_str(text: &str) -> Result<Self, PodError> {
        let (namespace, name) = text.split_once('/').ok_or(PodError)?;
        if namespace.is_empty() || name.is_empty() || name.contains('/') {
            return Err(PodError);
        }
        Ok(Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }
}

fn parse_pid(value: &str) -> Result<u32, &'static str> {
    let pid = value.parse().ok().filter(|pid| *pid > 0);
    pid.ok_or("allowed: the number of a process, as the host counts them")
}

fn parse_port(value: &str) -> Result<u16, &'static str> {
    let port = value.parse().ok().filter(|port| *port > 0);
    port.ok_or("allowed: 1 to 65535")
}

fn parse_cgroup(value: &str) -> Result<String, &'static str> {
    let Some(path) = value.strip_prefix('/') else {
        return Err("allowed: a path from the root of its hierarchy, such as /system.slice");
    };
    Ok(format!("/{}", path.trim_end_matches('/')))
}

/// A trace cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No such disk.
    #[error("--device {name}: {error}")]
    Device {
        /// What was given.
        name: String,
        /// What is wrong with it.
        error: DeviceError,
    },
    /// No number of a GPU.
    #[error("--device {name}: allowed: the number by which a process knows its GPU, 0 to {}", DEVICES - 1)]
    Ordinal {
        /// What was given.
        name: String,
    },
    /// No such cgroup.
    #[error(
        "--cgroup {0}: no such cgroup; allowed: a path from the root of its hierarchy, such as /system.slice"
    )]
    Cgroup(String),
    /// A filter of something else.
    #[error("--{flag}: {probe} has none; only {others}")]
    Vain {
        /// The filter.
        flag: &'static str,
        /// What is traced.
        probe: &'static str,
        /// What it is for.
        others: &'static str,
    },
    /// The probe cannot run, or not by a hook that tells enough.
    #[error("trace {probe}: {detail}")]
    Probe {
        /// The probe.
        probe: &'static str,
        /// Why not.
        detail: String,
    },
}

impl Error {
    /// Whether a setting is to blame.
    pub(crate) fn is_bad_setting(&self) -> bool {
        !matches!(self, Self::Probe { .. })
    }
}

impl Options {
    /// Whether all that is given has to do with what is traced.
    ///
    /// # Errors
    /// A filter that has not.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let vain = |flag, others| {
            Err(Error::Vain {
                flag,
                probe: self.what.probe(),
                others,
            })
        };
        match self.what {
            Subject::Tcp if self.device.is_some() => vain("device", "disk and gpu have"),
            Subject::Disk | Subject::Gpu if self.port.is_some() => vain("port", "tcp has"),
            Subject::Disk | Subject::Gpu if self.closed => vain("closed", "tcp has"),
            Subject::Gpu => self.ordinal().map(drop),
            _ => Ok(()),
        }
    }

    /// The settings by which the probe is attached: it alone, and workloads told apart.
    pub(crate) fn config(&self, config: &Config) -> Config {
        let exemplars = config.exemplars.keys().cloned();
        Config {
            probes: vec![self.what.probe().to_owned()],
            exemplars: exemplars.map(|probe| (probe, Exemplars::Off)).collect(),
            aggregate: Aggregate::Container,
            probes_of_file: false,
            ..config.clone()
        }
    }

    /// The number of a GPU, if one is given.
    fn ordinal(&self) -> Result<Option<u32>, Error> {
        let ordinal = self.device.as_ref().map(|name| {
            let ordinal = name.parse().ok().filter(|ordinal| *ordinal < DEVICES);
            ordinal.ok_or_else(|| Error::Ordinal { name: name.clone() })
        });
        ordinal.transpose()
    }

    /// What the programs filter by.
    ///
    /// # Errors
    /// When there is no such device.
    pub(crate) fn filter(&self, sysfs: &Path) -> Result<StreamFilter, Error> {
        let disk = |name: &String| {
            device::number(sysfs, name).map_err(|error| Error::Device {
                name: name.clone(),
                error,
            })
        };
        Ok(StreamFilter {
            pid: self.pid,
            port: self.port,
            device: match self.what {
                Subject::Gpu => self.ordinal()?,
                Subject::Tcp | Subject::Disk => self.device.as_ref().map(disk).transpose()?,
            },
            by_cgroup: self.cgroup.is_some() || self.pod.is_some(),
            closed: self.closed,
        })
    }

    /// The shortest duration, in nanoseconds: 1 for all.
    fn least_ns(&self) -> u64 {
        let least = self.min_duration.unwrap_or_default().as_nanos();
        u64::try_from(least).unwrap_or(u64::MAX).max(1)
    }
}

/// Where events come from.
#[derive(Debug)]
pub(crate) struct Stream {
    events: Events,
    cgroups: Option<StreamCgroups>,
    cuda: Option<Cuda>,
}

/// The programs that are at CUDA.
#[derive(Debug)]
struct Cuda {
    gpu: Arc<gpu::Gpu>,
    control: gpu::Control,
    /// Files of which it was said what became of them.
    said: BTreeSet<PathBuf>,
}

impl Stream {
    /// Makes what the events take, while there are the privileges for it. None is sent yet.
    ///
    /// # Errors
    /// When the probe cannot run or its hook tells too little, or the kernel refuses.
    pub(crate) fn open(kernel: &mut Kernel, filter: &StreamFilter) -> Result<Self, Error> {
        let Kernel {
            probes,
            programs,
            cells,
            ..
        } = kernel;
        let Some(installed) = probes.first_mut() else {
            return Err(Error::Probe {
                probe: "",
                detail: "no probe is attached".to_owned(),
            });
        };
        let probe = installed.probe.name;
        let status = &installed.status;
        let error = |detail: String| Error::Probe { probe, detail };
        if !status.verdict.is_up() {
            return Err(error(status.detail.clone()));
        }
        if !installed.tells_events() {
            let hook = installed.rung.hook;
            return Err(error(format!(
                "the hook {hook} tells too little of single events; sentry check says why there is no better one"
            )));
        }
        let refused = |refusal: Refusal| error(refusal.detail);
        let (events, _) = programs.open_events(RING_BYTES).map_err(refused)?;
        if filter.closed {
            programs.open_closed().map_err(refused)?;
        }
        programs.attach_origins(installed).map_err(refused)?;
        programs.attach_second(installed).map_err(refused)?;
        cells.call_for_second(installed);
        let cgroups = filter.by_cgroup.then(|| programs.stream_cgroups());
        let cgroups = cgroups.transpose().map_err(refused)?;
        Ok(Self {
            events,
            cgroups,
            cuda: None,
        })
    }

    /// The same for GPUs: attaches to the CUDA that is in use, if there is any. None is sent yet.
    ///
    /// # Errors
    /// When the kernel has no way to attach, or refuses.
    pub(crate) fn follow(follower: &mut Follower, filter: &StreamFilter) -> Result<Self, Error> {
        let error = |detail: String| Error::Probe {
            probe: Subject::Gpu.probe(),
            detail,
        };
        let opened = follower.open_events(RING_BYTES, filter);
        let stream = opened.map_err(|refusal| error(refusal.detail))?;
        follower.follow(Duration::ZERO);
        let gpu = follower.gpu();
        let status = gpu.status();
        if status.verdict == Verdict::Failed {
            return Err(error(status.detail));
        }
        Ok(Self {
            events: stream.events,
            cgroups: stream.cgroups,
            cuda: Some(Cuda {
                gpu,
                control: stream.control,
                said: BTreeSet::new(),
            }),
        })
    }
}

impl Cuda {
    /// Says which files it has attached to, or why not.
    fn say_files(&mut self) {
        let files = self.gpu.libraries();
        self.said
            .retain(|path| files.iter().any(|file| file.path == *path));
        for file in files {
            let path = line::plain(&file.path.to_string_lossy());
            if self.said.contains(&file.path) {
            } else if file.error.is_empty() {
                log::say(format_args!("attached to {path}"));
            } else {
                log::say(format_args!("{path}: {}", line::plain(&file.error)));
            }
            self.said.insert(file.path);
        }
    }
}

/// Prints events, with names that may be followed by others, until there are as many as wanted, it has taken long enough, nobody reads them any more, or a signal.
///
/// # Errors
/// When there is no such cgroup, or standard output takes nothing.
pub(crate) async fn run(
    kernel: Kernel,
    stream: Stream,
    (names, follows): (Arc<Names>, bool),
    options: &Options,
    config: &Config,
    mut hangup: Option<Signal>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let mut tracer = Tracer {
        kernel,
        stream,
        names,
        follows,
        missed: 0,
        devices: Devices::new(config.sysfs.clone()),
        options: options.clone(),
        matched: Matched::default(),
        shown: 0,
        said: Lost::default(),
    };
    if tracer.match_cgroups() == 0
        && let Some(path) = &options.cgroup
    {
        return Err(Error::Cgroup(path.clone()).into());
    }
    let stop = Arc::new(AtomicBool::new(false));
    let (tell, mut end) = oneshot::channel();
    let thread = {
        let stop = Arc::clone(&stop);
        // Who reads the lines may make it wait.
        thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || {
                // Before the programs are taken away, which may take seconds.
                let _ = tell.send(tracer.follow(&stop, &mut io::stdout().lock()));
            })
            .context("cannot start a thread")?
    };
    let ended = tokio::select! {
        ended = &mut end => ended,
        _ = terminate.recv() => finish(&stop, thread.thread(), end).await,
        _ = interrupt.recv() => finish(&stop, thread.thread(), end).await,
        () = hung_up(&mut hangup) => finish(&stop, thread.thread(), end).await,
    };
    match ended {
        Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// The end of the terminal; never where that is ignored.
async fn hung_up(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => {
            hangup.recv().await;
        }
        None => future::pending().await,
    }
}

type Ended = Result<io::Result<()>, oneshot::error::RecvError>;

/// Has the thread end, and waits for it a while.
async fn finish(
    stop: &AtomicBool,
    thread: &Thread,
    end: oneshot::Receiver<io::Result<()>>,
) -> Ended {
    stop.store(true, Ordering::Relaxed);
    thread.unpark();
    let ended = tokio::time::timeout(END, end).await;
    ended.unwrap_or_else(|_| {
        log::say(
            "nobody reads standard output: lines that are left, and their number, are not shown",
        );
        Ok(Ok(()))
    })
}

/// What was not shown, so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lost {
    /// Events that found their ring full.
    full: u64,
    /// Runs of the programs that the kernel left out.
    unseen: u64,
    /// Calls of CUDA processes, or connections, that found no place.
    unfollowed: u64,
    /// Events that may be the process's that is asked for.
    unknown: u64,
}

impl Lost {
    /// For a person; nothing where there is nothing.
    fn shown(self, subject: Subject) -> Option<String> {
        let full =
            (self.full > 0).then(|| format!("{} events lost: their ring was full", self.full));
        let unseen = (self.unseen > 0)
            .then(|| format!("{} runs of programs left out by the kernel", self.unseen));
        let what = match subject {
            Subject::Gpu => "calls of CUDA processes",
            Subject::Tcp | Subject::Disk => "connections",
        };
        let unfollowed = (self.unfollowed > 0)
            .then(|| format!("{} {what} for which there was no place", self.unfollowed));
        let unknown = (self.unknown > 0)
            .then(|| format!("{} events that may be of this process", self.unknown));
        let parts = [full, unseen, unfollowed, unknown].into_iter().flatten();
        let parts: Vec<String> = parts.collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Whether a cgroup is another one or below it, by their paths.
fn is_within(path: &str, around: &str) -> bool {
    let rest = path.strip_prefix(around.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Which cgroups the programs have been told.
#[derive(Debug, Default)]
struct Matched {
    cgroups: BTreeSet<Workload>,
    /// How many changes there had been.
    changes: Option<u64>,
    /// Whether it was said that no more fit.
    is_full: bool,
}

/// The name of a disk, or its number where it is gone by now.
fn name_of(devices: &mut Devices, device: u32) -> String {
    let (major, minor) = probes::device_number(device);
    let name = devices.name(device).map(str::to_owned);
    name.unwrap_or_else(|| format!("{major}:{minor}"))
}

fn print(out: &mut impl Write, text: &str) -> io::Result<()> {
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|error| io::Error::new(error.kind(), format!("standard output: {error}")))
}

struct Tracer {
    kernel: Kernel,
    stream: Stream,
    names: Arc<Names>,
    /// Whether names are followed by events of the kernel, and how many of those were lost.
    follows: bool,
    missed: u64,
    devices: Devices,
    options: Options,
    matched: Matched,
    /// Events.
    shown: u64,
    said: Lost,
}

impl Tracer {
    fn follow(&mut self, stop: &AtomicBool, out: &mut impl Write) -> io::Result<()> {
        let begun = Instant::now();
        let end = self
            .options
            .duration
            .and_then(|after| begun.checked_add(after));
        let mut second = begun;
        if self.options.format == Format::Table {
            writeln!(
                out,
                "{}",
                line::head(self.options.what, self.options.closed)
            )?;
            out.flush()?;
        }
        self.send(self.options.least_ns())?;
        self.begin();
        loop {
            let now = Instant::now();
            let is_last = stop.load(Ordering::Relaxed) || end.is_some_and(|end| end <= now);
            if is_last {
                self.send(0)?;
            }
            let before = self.shown;
            let read = self.read(out);
            let is_done = self.options.count.is_some_and(|count| count <= self.shown);
            if read.is_err() || is_done || is_last {
                self.send(0)?;
                self.say_end();
                return read.map(drop);
            }
            if now.duration_since(second) >= SECOND {
                second = now;
                self.each_second();
            } else if self.matched.changes != Some(self.names.changes()) {
                self.match_cgroups();
            }
            if self.shown - before >= MANY {
                continue;
            }
            let rest = end.map_or(READ_INTERVAL, |end| end.saturating_duration_since(now));
            thread::park_timeout(rest.min(READ_INTERVAL));
        }
    }

    /// Prints what has come, in the order of time.
    fn read(&mut self, out: &mut impl Write) -> io::Result<()> {
        let mut events: Vec<Event> = Vec::new();
        self.stream.events.take(|event| events.push(event));
        events.sort_by_key(|event| event.ended);
        if let Some(count) = self.options.count {
            let left = usize::try_from(count - self.shown).unwrap_or(usize::MAX);
            events.truncate(left);
        }
        if events.is_empty() {
            return Ok(());
        }
        // Who has read events first knows the cgroup of each.
        self.names.take_in_events();
        let whose = self.whose(&events);
        let mut text = String::new();
        for (event, who) in events.iter().zip(&whose) {
            let line = Line {
                event,
                who,
                device: match (self.options.what, event.key.device) {
                    // A GPU has no name.
                    (Subject::Gpu, _) | (_, 0) => None,
                    (_, device) => Some(name_of(&mut self.devices, device)),
                },
            };
            text += &match self.options.format {
                Format::Table => line.row(self.options.what, self.options.closed),
                Format::Json => line.json()?,
            };
            text.push('\n');
        }
        print(out, &text)?;
        self.shown += events.len() as u64;
        Ok(())
    }

    fn whose(&self, events: &[Event]) -> Vec<Who> {
        let mut look = self.names.look();
        let owner = |event: &Event| look.owner(Workload::from(&event.key)).owner;
        events.iter().map(owner).map(Who::owned_by).collect()
    }

    /// Tells the programs the cgroups that are asked for; how many there are.
    fn match_cgroups(&mut self) -> usize {
        let Some(cgroups) = &mut self.stream.cgroups else {
            return 0;
        };
        self.matched.changes = Some(self.names.changes());
        let all = self.names.cgroups();
        let mut look = self.names.look();
        let is_asked_for = |(cgroup, path): &(Workload, String)| match &self.options {
            Options {
                cgroup: Some(asked),
                what: Subject::Gpu,
                ..
            } => cgroup.hierarchy == 0 && is_within(path, asked),
            Options {
                cgroup: Some(asked),
                ..
            } => asked == path,
            Options { pod: Some(pod), .. } => {
                let owner = look.owner(*cgroup).owner;
                (&owner.namespace, &owner.pod) == (&pod.namespace, &pod.name)
            }
            _ => false,
        };
        let asked: Vec<_> = all.into_iter().filter(is_asked_for).collect();
        for (cgroup, path) in asked {
            if self.matched.cgroups.contains(&cgroup) {
                continue;
            }
            match cgroups.add(cgroup) {
                Ok(()) => {
                    self.matched.cgroups.insert(cgroup);
                }
                Err(error) if !self.matched.is_full => {
                    self.matched.is_full = true;
                    let path = line::plain(&path);
                    log::say(format_args!(
                        "{path} and what comes after it is left out: {error}"
                    ));
                }
                Err(_) => {}
            }
        }
        self.matched.cgroups.len()
    }

    fn each_second(&mut self) {
        let missed = self.kernel.cells.counter(self.kernel.cgroup_events_lost);
        if !self.follows || missed != self.missed {
            self.missed = missed;
            self.names.walk(&[]);
        }
        // Names of pods come later than their cgroups.
        self.match_cgroups();
        self.devices.forget();
        if let Some(cuda) = &mut self.stream.cuda {
            cuda.say_files();
        }
        let lost = self.lost();
        if lost != self.said {
            self.said = lost;
            if let Some(lost) = lost.shown(self.options.what) {
                log::say(format_args!("so far {lost}"));
            }
        }
    }

    /// Has the programs send what takes so long, in nanoseconds; 0 is nothing.
    fn send(&mut self, least_ns: u64) -> io::Result<()> {
        for installed in &self.kernel.probes {
            self.kernel.cells.send_events(installed, least_ns);
        }
        let cuda = self.stream.cuda.as_mut();
        let told = cuda.map_or(Ok(()), |cuda| cuda.control.send(least_ns));
        told.map_err(|error| io::Error::other(format!("the programs cannot be told: {error}")))
    }

    fn lost(&self) -> Lost {
        let probes = self.kernel.probes.iter();
        let of_cells = probes.map(|probe| self.of(probe.events_lost())).sum();
        let mut stats = self.kernel.programs.run_stats();
        let (mut full, mut unfollowed) = (of_cells, self.untracked());
        if let Some(cuda) = &self.stream.cuda {
            full = cuda.control.lost();
            unfollowed = cuda.gpu.overflow();
            stats = cuda.gpu.run_stats();
        }
        let probe = self.options.what.probe();
        let of_probe = stats
            .iter()
            .filter(|program| program.program.starts_with(probe));
        Lost {
            full,
            unseen: of_probe.map(|program| program.misses).sum(),
            unfollowed,
            unknown: self
                .kernel
                .probes
                .iter()
                .map(|probe| self.of(probe.events_unknown()))
                .sum(),
        }
    }

    fn of(&self, counter: Option<u16>) -> u64 {
        counter.map_or(0, |cell| self.kernel.cells.counter(cell))
    }

    /// Connections that are not followed to their close.
    fn untracked(&self) -> u64 {
        let probes = self.kernel.probes.iter().filter(|_| self.options.closed);
        let own = probes.flat_map(Installed::own_counters);
        let cells = own.filter(|(counter, _)| *counter == OwnCounter::ConnectionsUntracked);
        cells.map(|(_, cell)| self.kernel.cells.counter(cell)).sum()
    }

    fn begin(&mut self) {
        let probe = self.options.what.probe();
        let status = self.kernel.probes.first();
        let hook = status.map_or("", |installed| installed.status.hook);
        log::say(format_args!("tracing {probe} by {hook}"));
        if let Some(cuda) = &mut self.stream.cuda {
            cuda.say_files();
            let status = cuda.gpu.status();
            if !status.verdict.is_up() {
                let detail = &status.detail;
                log::say(format_args!(
                    "waiting for a program that uses CUDA: {detail}"
                ));
            }
        }
        if let Some(Pod { namespace, name }) = &self.options.pod
            && self.matched.cgroups.is_empty()
        {
            log::say(format_args!(
                "no cgroup of the pod {namespace}/{name} is known yet"
            ));
        }
    }

    fn say_end(&self) {
        let lost = self.lost().shown(self.options.what);
        let lost = lost.unwrap_or_else(|| "none lost".to_owned());
        let shown = self.shown;
        log::say(format_args!("{shown} events; {lost}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_a_namespace_and_a_name() {
        let pod: Pod = "shop/api-0".parse().unwrap();
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str()),
            ("shop", "api-0")
        );
        for text in ["", "api-0", "/api-0", "shop/", "shop/api-0/api"] {
            assert_eq!(text.parse::<Pod>(), Err(PodError), "{text}");
        }
    }

    #[test]
    fn filters_have_bounds() {
        assert_eq!(parse_pid("1"), Ok(1));
        assert_eq!(parse_port("65535"), Ok(65535));
        for text in ["", "0", "-1", "x", "4294967296"] {
            assert!(parse_pid(text).is_err(), "{text}");
            assert!(parse_port(text).is_err(), "{text}");
        }
        for (text, path) in [("/", "/"), ("/a", "/a"), ("/a/b/", "/a/b")] {
            assert_eq!(parse_cgroup(text).as_deref(), Ok(path));
        }
        assert!(parse_cgroup("a").is_err());
    }

    #[test]
    fn a_cgroup_is_within_those_above_it() {
        for (path, around, expected) in [
            ("/a", "/a", true),
            ("/a/b", "/a", true),
            ("/ab", "/a", false),
            ("/", "/a", false),
            ("/", "/", true),
            ("/a/b", "/", true),
        ] {
            assert_eq!(is_within(path, around), expected, "{path} {around}");
        }
    }

    #[test]
    fn what_was_lost_in_words() {
        let lost = |full, unseen, unfollowed| {
            let lost = Lost {
                full,
                unseen,
                unfollowed,
                unknown: 0,
            };
            lost.shown(Subject::Gpu)
        };
        assert_eq!(lost(0, 0, 0), None);
        assert_eq!(
            lost(7, 0, 0).as_deref(),
            Some("7 events lost: their ring was full")
        );
        assert_eq!(
            lost(7, 3, 0).as_deref(),
            Some("7 events lost: their ring was full; 3 runs of programs left out by the kernel")
        );
        assert_eq!(
            lost(0, 0, 5).as_deref(),
            Some("5 calls of CUDA processes for which there was no place")
        );
    }
}
