//! How well the host keeps its GPUs fed, seen from the calls of CUDA programs.
//!
//! There is nothing to attach to at the start: CUDA is a library, so a [`Follower`] looks for the
//! processes that map it, attaches to each file once, and lets go when its last user is gone.
//! What the programs count is read through [`Gpu`].

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "numbers of the wire header and of system calls are far below what they are cast to"
)]

mod elf;
mod file;
mod follower;
mod functions;
mod mappings;
mod maps;
pub(crate) mod programs;
mod table;
mod trace;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

pub use follower::Follower;
pub(crate) use trace::event_detail;
pub use trace::{Control, DEVICES, Stream};

use crate::{
    Cost, Histogram, Metric, MetricKind, PassedOver, Probe, Reason, RunStats, Rung, Status,
    Verdict, Workload,
    wire::{GPU_PROBE, GPU_PROCESSES},
};
use programs::Means;
use table::Table;

pub(crate) const PROBE: Probe = Probe {
    name: "gpu",
    summary: "CUDA: how long GPUs wait for their host, launches, synchronisation, copies, memory",
    number: GPU_PROBE as u8,
    metrics: &[
        Metric {
            name: "sentry_gpu_launches_total",
            help: "Kernels and graphs launched",
            kind: MetricKind::Counter,
            labels: &["process", "api"],
            source: "entry of cudaLaunchKernel, cudaGraphLaunch and their kin",
        },
        Metric {
            name: "sentry_gpu_starved_seconds_total",
            help: "Time in which a device certainly had nothing of this process to do: the first second of each gap, the running one included",
            kind: MetricKind::CounterSeconds,
            labels: &["process", "device"],
            source: "from the return of a call that proves completion to the entry of the next call that enqueues",
        },
        Metric {
            name: "sentry_gpu_idle_seconds_total",
            help: "The rest of gaps that are longer than a second",
            kind: MetricKind::CounterSeconds,
            labels: &["process", "device"],
            source: "as for sentry_gpu_starved_seconds_total",
        },
        Metric {
            name: "sentry_gpu_starvation_gap_seconds",
            help: "Length of the gaps that the next enqueue has ended",
            kind: MetricKind::Histogram,
            labels: &["process", "device"],
            source: "as for sentry_gpu_starved_seconds_total",
        },
        Metric {
            name: "sentry_gpu_sync_wait_seconds_total",
            help: "Time that threads spent in calls that wait for a device",
            kind: MetricKind::CounterSeconds,
            labels: &["process", "call"],
            source: "entry to return of cudaDeviceSynchronize, cudaStreamSynchronize, cudaEventSynchronize, cudaMemcpy and their kin",
        },
        Metric {
            name: "sentry_gpu_syncs_total",
            help: "Calls that wait for a device or ask whether it is done; waited tells those that took 20 us or more",
            kind: MetricKind::Counter,
            labels: &["process", "call", "waited"],
            source: "return of the same and of cudaStreamQuery and cudaEventQuery",
        },
        Metric {
            name: "sentry_gpu_memcpy_bytes_total",
            help: "Bytes that copies were asked to move",
            kind: MetricKind::Counter,
            labels: &["process", "kind"],
            source: "entry of cudaMemcpyAsync, cudaMemcpy and their kin",
        },
        Metric {
            name: "sentry_gpu_allocated_bytes",
            help: "Device memory that live processes have asked for and not freed",
            kind: MetricKind::Gauge,
            labels: &["process"],
            source: "return of cudaMalloc, cudaFree and their kin",
        },
        Metric {
            name: "sentry_gpu_errors_total",
            help: "Failed calls, of those that are seen to return",
            kind: MetricKind::Counter,
            labels: &["process", "call", "code"],
            source: "the value that the call returned",
        },
        Metric {
            name: "sentry_gpu_processes",
            help: "Live processes that have called CUDA",
            kind: MetricKind::Gauge,
            labels: &["process"],
            source: "first call, and sched_process_exit",
        },
    ],
    rungs: &[
        Rung {
            hook: "uprobe_multi",
            variants: &[],
            limits: "",
            fallback: &[],
            events: None,
        },
        Rung {
            hook: "uprobe_cookie",
            variants: &[],
            limits: "",
            fallback: &[],
            events: None,
        },
        Rung {
            hook: "uprobe",
            variants: &[],
            limits: "",
            fallback: &[],
            events: None,
        },
    ],
    fallback: None,
    events: None,
    in_flight: &[],
    deferred: Some("no process maps libcudart or libcuda"),
    cost: Cost {
        // Launches and synchronisation.
        events: &[0, 5],
        event_ns: 1700,
        entry_ns: 700,
    },
    histograms: 0,
    counters: 0,
    own: &[],
    samples: |_, _| Vec::new(),
    other: |_, _| Vec::new(),
};

/// What a process has done, as it was at one moment.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its number in the table.
    pub slot: u16,
    /// How often that number has been given out before: with it, the process is named for good.
    pub generation: u32,
    /// Its id on the host; 0 for the sum of those that found no place.
    pub tgid: u32,
    /// Whether this is that sum.
    pub other: bool,
    /// Whose it is.
    pub workload: Workload,
    /// Its command name.
    pub command: String,
    /// It is gone: these are its last values, and [`Gpu::recycle`] gives its number out again.
    pub exited: bool,
    /// Its values.
    pub readings: Vec<Reading>,
}

/// A value of a process.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Index into [`Probe::metrics`].
    pub metric: usize,
    /// The CUDA ordinal, where the metric is by device.
    pub device: Option<u32>,
    /// Labels besides workload, process and device.
    pub labels: Vec<(&'static str, Cow<'static, str>)>,
    /// The value since the process began.
    pub value: ReadingValue,
}

/// How a value counts.
#[derive(Debug, Clone, PartialEq)]
pub enum ReadingValue {
    /// Events or bytes; never falls within a generation.
    Counter(u64),
    /// Nanoseconds; never falls within a generation.
    CounterNs(u64),
    /// Falls and rises.
    Gauge(u64),
    /// Durations.
    Histogram(Box<Histogram>),
}

/// A file with CUDA functions that some process maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Library {
    /// Its path as its first user sees it.
    pub path: PathBuf,
    /// As its name has it: `12.8.90`; empty where it has none.
    pub version: String,
    /// The functions that it has of those that are wanted.
    pub found: Vec<String>,
    /// Those that are hooked.
    pub hooked: Vec<String>,
    /// Hooked functions whose first instruction the kernel has to step through: some 10 us a call.
    pub single_stepped: Vec<String>,
    /// Processes that map it.
    pub users: Vec<u32>,
    /// Why nothing, or not all, of it is hooked; empty where all is.
    pub error: String,
}

/// A call on the table of processes failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the table of CUDA processes: {source}")]
pub struct GpuError {
    action: &'static str,
    source: io::Error,
}

/// What is found, as it changes.
#[derive(Debug, Default)]
struct State {
    /// Whether any were ever attached.
    attached: bool,
    /// Whether any are now.
    in_use: bool,
    libraries: Vec<Library>,
    /// Why new mappings have to be polled for.
    unwatched: Option<String>,
    /// Whether the agent sees only the processes of a container.
    confined: bool,
    errors: BTreeMap<&'static str, u64>,
    /// The last of them.
    error: String,
}

/// What the probe has found and counted. Reading makes no syscall per process.
#[derive(Debug)]
pub struct Gpu {
    /// Whether the configuration has turned the probe off.
    off: AtomicBool,
    /// How programs are attached; `None` where they cannot be.
    means: Option<Means>,
    /// The better means.
    passed_over: Vec<PassedOver>,
    state: Mutex<State>,
    table: OnceLock<Table>,
}

impl Gpu {
    fn new(means: Option<Means>, passed_over: Vec<PassedOver>) -> Self {
        Self {
            off: AtomicBool::new(false),
            means,
            passed_over,
            state: Mutex::default(),
            table: OnceLock::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
    }

    /// Counts a file, or a call, that failed, and keeps why.
    fn failed(&self, reason: &'static str, detail: impl FnOnce() -> String) {
        let mut state = self.state();
        *state.errors.entry(reason).or_default() += 1;
        state.error = detail();
    }

    /// Has the follower let go of everything, or look for CUDA again. It does so the next time that it follows.
    pub fn turn(&self, on: bool) {
        self.off.store(!on, Ordering::Relaxed);
    }

    fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }

    /// The verdict of the moment, if the probe is on. Once attached it stays so: programs come and go.
    #[must_use]
    pub fn status(&self) -> Status {
        let Some(means) = self.means else {
            return Status::refused(PROBE.name, &self.passed_over);
        };
        let state = self.state();
        let deferred = PROBE.deferred.unwrap_or_default();
        let mut status = Status::deferred(&PROBE, Some(means.hook()), deferred);
        status.passed_over.clone_from(&self.passed_over);
        let failed = state
            .libraries
            .iter()
            .any(|library| !library.error.is_empty());
        // Programs come and go; but where some are there, one of them must be hooked.
        if state.attached && (state.in_use || !failed) {
            status.verdict = Verdict::Attached;
            status.reason = Reason::Ok;
            status.detail = if state.in_use {
                String::new()
            } else {
                format!("{deferred} now")
            };
        } else if failed {
            status.verdict = Verdict::Failed;
            status.reason = if state.errors.contains_key("permission") {
                Reason::NoPermission
            } else {
                Reason::AttachError
            };
            status.detail.clone_from(&state.error);
        }
        if state.confined {
            let detail = "only processes of the agent's own PID namespace are looked at: run it with the host's (hostPID)";
            if status.verdict.is_up() {
                status.degrade(Reason::PidNamespace, detail);
            } else {
                status.detail = format!("{}; {detail}", status.detail);
            }
        }
        if let Some(why) = &state.unwatched {
            let detail = format!("new processes are looked for every 5 s, for {why}");
            if status.verdict.is_up() {
                status.degrade(Reason::NoMappingEvents, &detail);
            } else {
                status.detail = format!("{}; {detail}", status.detail);
            }
        }
        status
    }

    /// Gives every process that has a place, the sum of the others included if there is any.
    pub fn read(&self, each: &mut dyn FnMut(Process)) {
        if let Some(table) = self.table.get() {
            table.read(each);
        }
    }

    /// Gives the number of an exited process out again. Its values are gone afterwards.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn recycle(&self, process: &Process) -> Result<(), GpuError> {
        self.table
            .get()
            .map_or(Ok(()), |table| table.recycle(process))
    }

    /// Gives the numbers of all exited processes out again, for who reads no values.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn recycle_all(&self) -> Result<(), GpuError> {
        self.table.get().map_or(Ok(()), Table::recycle_all)
    }

    /// Files that could not be attached to, by reason.
    #[must_use]
    pub fn attach_errors(&self) -> Vec<(&'static str, u64)> {
        let state = self.state();
        state.errors.iter().map(|(why, n)| (*why, *n)).collect()
    }

    /// Calls that found no place for their thread, stream, event or memory, over all processes
    /// there ever were.
    #[must_use]
    pub fn untracked(&self) -> u64 {
        self.table.get().map_or(0, Table::untracked)
    }

    /// Calls of processes that found no place in the table: they are counted under `other`.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.table.get().map_or(0, Table::overflow)
    }

    /// Places in the table of processes: in use, and all.
    #[must_use]
    pub fn processes(&self) -> (u64, u64) {
        self.table
            .get()
            .map_or((0, u64::from(GPU_PROCESSES - 1)), Table::processes)
    }

    /// Kernel memory of each map in bytes; none before CUDA has been seen.
    #[must_use]
    pub fn map_memory_bytes(&self) -> Vec<(String, u64)> {
        let table = self.table.get();
        table.map_or_else(Vec::new, |table| table.map_memory_bytes.clone())
    }

    /// As [`crate::Programs::run_stats`].
    #[must_use]
    pub fn run_stats(&self) -> Vec<RunStats> {
        let table = self.table.get();
        table.map_or_else(Vec::new, Table::run_stats)
    }

    /// The files with CUDA functions that are mapped now.
    #[must_use]
    pub fn libraries(&self) -> Vec<Library> {
        self.state().libraries.clone()
    }
}
