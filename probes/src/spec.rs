//! What a probe says of itself: its hooks, its metrics, and how its cells are read.

use crate::{EventSource, Series, SeriesKey};

/// A probe: one folder of this crate.
#[derive(Debug)]
pub struct Probe {
    /// Name of folder, flags, C prefix and metrics.
    pub name: &'static str,
    /// What it measures, in a few words.
    pub summary: &'static str,
    /// The number in its series' keys.
    pub number: u8,
    /// Its metrics by workload.
    pub metrics: &'static [Metric],
    /// Ways to attach, best first.
    pub rungs: &'static [Rung],
    /// A second hook for what the first cannot time, attached only when it is needed.
    pub fallback: Option<Fallback>,
    /// Its arrays of what has begun and not ended yet, beside the tables: an end that it was turned off for is never
    /// seen.
    pub in_flight: &'static [&'static str],
    /// How it tells of single events, if it does.
    pub events: Option<EventSource>,
    /// It attaches to what processes bring along, so not at the start: what to say until then.
    pub deferred: Option<&'static str>,
    /// What its programs take.
    pub cost: Cost,
    /// Histograms of its own: the `other` cells.
    pub histograms: u16,
    /// Counters of its own.
    pub counters: u16,
    /// Which of its own counters tell about itself.
    pub own: &'static [(OwnCounter, u16)],
    /// What a series of the index holds.
    pub samples: fn(&SeriesKey, Series) -> Vec<Sample>,
    /// What its `other` cells hold, given the first of its own histograms and counters.
    pub other: fn(u16, u16) -> Vec<Sample>,
}

/// What the programs of a probe take of the CPUs, for where the kernel does not measure it.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Which of [`Probe::metrics`] together count its events.
    pub events: &'static [usize],
    /// What an event takes, in nanoseconds, as it was measured once, rounded up.
    pub event_ns: u32,
    /// What it takes to get to a program, in nanoseconds, where the kernel does not count that as the program's: the
    /// breakpoint of a uprobe.
    pub entry_ns: u32,
}

/// A way to attach.
#[derive(Debug)]
pub struct Rung {
    /// Name in flags and verdicts.
    pub hook: &'static str,
    /// The same hook with different means, best first: a kernel may refuse the better one.
    pub variants: &'static [Variant],
    /// What it cannot measure, for a person; empty where it measures all. With it the verdict is
    /// `degraded`.
    pub limits: &'static str,
    /// The programs for [`Probe::fallback`], in the order in which they are tried.
    pub fallback: &'static [Program],
    /// Whether single events can be told of, and the programs that note who begins one, of which the first is attached
    /// that the kernel takes.
    pub events: Option<&'static [Program]>,
}

/// The programs of a rung.
#[derive(Debug)]
pub struct Variant {
    /// All of them, or none, are attached.
    pub programs: &'static [Program],
    /// A table that only this variant fills.
    pub table: Option<&'static Table>,
    /// Whether it can name a workload by the current task, where sockets have no cgroup.
    pub of_task: bool,
    /// What this variant means to the user, where it is not the best one.
    pub note: &'static str,
}

/// A table that is made when it is needed. Until then there is only its slot.
#[derive(Debug)]
pub struct Table {
    /// The array of maps whose slot 0 takes it.
    pub slot: &'static str,
    /// The size of a key. The kernel refuses a table whose sizes or kind are not those that the object gives.
    pub key_bytes: u32,
    /// The size of a value.
    pub value_bytes: u32,
    /// How many there may be.
    pub entries: u32,
    /// Its kind.
    pub kind: TableKind,
}

/// Kinds of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// By key; when it is full the newest finds no place.
    Hash,
    /// By key; when it is full the least recently used goes.
    LruHash,
    /// By number, from 0.
    Array,
}

/// A program and where it is attached.
#[derive(Debug)]
pub struct Program {
    /// Its name in the object.
    pub name: &'static str,
    /// Its place.
    pub hook: Hook,
}

/// A place in the kernel.
#[derive(Debug, Clone, Copy)]
pub enum Hook {
    /// A tracepoint whose arguments have types: the verifier checks each load.
    TpBtf(&'static str),
    /// A tracepoint's bare arguments, read with the offsets of the kernel's types.
    RawTracepoint(&'static str),
    /// The entry of a function.
    Kprobe(&'static str),
    /// A tracepoint's record, whose fields tracefs describes: no types needed.
    Tracepoint(&'static Record),
}

/// The record of a tracepoint.
#[derive(Debug)]
pub struct Record {
    /// Its folder in `events/` of tracefs.
    pub category: &'static str,
    /// Its name.
    pub event: &'static str,
    /// The fields that are read: the object's variable that takes the place, and the field's name.
    pub fields: &'static [(&'static str, &'static str)],
}

impl Hook {
    /// What it is attached to, for people.
    #[must_use]
    pub fn point(&self) -> &'static str {
        match self {
            Self::TpBtf(point) | Self::RawTracepoint(point) | Self::Kprobe(point) => point,
            Self::Tracepoint(record) => record.event,
        }
    }
}

/// A hook that is attached when a counter says that the first one is not enough. Its programs
/// are the rung's.
#[derive(Debug)]
pub struct Fallback {
    /// The own counter that calls for it.
    pub trigger: u16,
    /// What it is attached to.
    pub point: &'static str,
    /// What it notes, for the first hook to find.
    pub table: &'static Table,
    /// Why it is needed.
    pub reason: Reason,
    /// The same in words.
    pub detail: &'static str,
}

/// A metric by workload, as it is shown to the outside.
#[derive(Debug)]
pub struct Metric {
    /// Full name with unit and, for a counter, `_total`.
    pub name: &'static str,
    /// Help text, without the full stop.
    pub help: &'static str,
    /// Histogram or counter.
    pub kind: MetricKind,
    /// Labels besides those of the workload.
    pub labels: &'static [&'static str],
    /// Where in the kernel the number comes from.
    pub source: &'static str,
}

/// How a metric counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Durations in seconds.
    Histogram,
    /// A sum that never falls.
    Counter,
    /// A sum of durations that never falls, kept in nanoseconds and shown in seconds.
    CounterSeconds,
    /// What is there now.
    Gauge,
}

/// One value of a series: where it is kept and under which labels it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Index into [`Probe::metrics`].
    pub metric: usize,
    /// Where its value lives.
    pub cell: Cell,
    /// Labels besides workload and device.
    pub labels: Vec<(&'static str, &'static str)>,
}

/// The number of a cell in one of the two pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cell {
    /// In the pool of histograms.
    Histogram(u16),
    /// The sum of that one, where it counts something of its own.
    Sum(u16),
    /// The buckets of one histogram. Its time is in the sum of `part`, of that share of each event, and, of the rest,
    /// in the counter of the same number as `whole`.
    Whole {
        /// In the pool of histograms.
        whole: u16,
        /// In the pool of histograms.
        part: u16,
    },
    /// In the pool of counters.
    Counter(u16),
}

/// What a workload's cgroup is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Workload {
    /// The hierarchy's id as in `/proc/cgroups`; 0 is cgroup v2.
    pub hierarchy: u16,
    /// The cgroup's id: the inode number of its folder.
    pub cgroup_id: u64,
}

impl From<&SeriesKey> for Workload {
    fn from(key: &SeriesKey) -> Self {
        Self {
            hierarchy: key.hierarchy,
            cgroup_id: key.cgroup_id,
        }
    }
}

/// Counters by which a probe tells about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnCounter {
    /// Events counted under `other` because no cell was free.
    SeriesOverflow,
    /// Connections whose start found no room.
    ConnectionsUntracked,
    /// I/Os that completed without a usable time stamp.
    Untimed,
    /// I/Os whose issue found no room.
    IosUntracked,
}

/// Whether a probe runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All that it measures is measured.
    Attached,
    /// It runs; the reason says what is missing.
    Degraded,
    /// This kernel cannot run it.
    Unsupported,
    /// It should have run.
    Failed,
    /// The configuration has turned it off, or the agent, to stay within its budget.
    Off,
}

impl Verdict {
    /// The name in logs, labels and JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Degraded => "degraded",
            Self::Unsupported => "unsupported",
            Self::Failed => "failed",
            Self::Off => "off",
        }
    }

    /// Whether the probe measures anything.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Attached | Self::Degraded)
    }
}

/// Why a verdict is what it is: a closed set, for labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Nothing is missing.
    Ok,
    /// The kernel's type information is missing.
    NoBtf,
    /// The kernel does not have the hook.
    NoHook,
    /// The kernel refused the program.
    Rejected,
    /// The program could not be attached.
    AttachError,
    /// The privileges do not suffice.
    NoPermission,
    /// The kernel lacks a kind of map or its memory is short.
    MapError,
    /// Disk I/O is not charged to cgroups, so all of it belongs to the root.
    IoControllerOff,
    /// A device gives its requests no time stamps; durations run from the issue.
    NoTimestamps,
    /// tracefs is not mounted.
    NoTracefs,
    /// The kernel is locked down.
    Lockdown,
    /// The hook in use does not tell all that the probe measures.
    LimitedHook,
    /// Only cgroup v1 is mounted, which sockets do not belong to.
    CgroupV1Only,
    /// The kernel lacks what every probe needs.
    KernelTooOld,
    /// No process uses CUDA.
    NoCuda,
    /// What processes map is looked for in procfs, for the kernel does not tell.
    NoMappingEvents,
    /// The agent sees only processes of its own container.
    PidNamespace,
    /// The configuration leaves the probe out, and may bring it back.
    TurnedOff,
    /// It takes more of the CPUs than the budget allows.
    OverBudget,
}

impl Reason {
    /// The name in logs, labels and JSON.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NoBtf => "no_btf",
            Self::NoHook => "no_hook",
            Self::Rejected => "rejected",
            Self::AttachError => "attach_error",
            Self::NoPermission => "no_permission",
            Self::MapError => "map_error",
            Self::IoControllerOff => "io_controller_off",
            Self::NoTimestamps => "no_timestamps",
            Self::NoTracefs => "no_tracefs",
            Self::Lockdown => "lockdown",
            Self::LimitedHook => "limited_hook",
            Self::CgroupV1Only => "cgroup_v1_only",
            Self::KernelTooOld => "kernel_too_old",
            Self::NoCuda => "no_cuda",
            Self::NoMappingEvents => "no_mapping_events",
            Self::PidNamespace => "pid_namespace",
            Self::TurnedOff => "turned_off",
            Self::OverBudget => "over_budget",
        }
    }
}

/// The state of a probe.
#[derive(Debug, Clone)]
pub struct Status {
    /// The probe's name.
    pub probe: &'static str,
    /// The hook in use or tried last.
    pub hook: &'static str,
    /// Whether it runs.
    pub verdict: Verdict,
    /// Why, as a code.
    pub reason: Reason,
    /// Why, for a person; one line.
    pub detail: String,
    /// The better hooks, which this kernel does not allow.
    pub passed_over: Vec<PassedOver>,
}

/// A hook that is not used.
#[derive(Debug, Clone)]
pub struct PassedOver {
    /// Its name.
    pub hook: &'static str,
    /// Whose fault it is.
    pub why: Refusal,
}

/// Why something cannot be attached.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// `Unsupported` or `Failed`.
    pub verdict: Verdict,
    /// As a code.
    pub reason: Reason,
    /// For a person; one line.
    pub detail: String,
}

impl Status {
    /// A hook that is in use.
    pub(crate) fn attached(
        probe: &'static str,
        rung: &Rung,
        variant: &Variant,
        passed_over: Vec<PassedOver>,
    ) -> Self {
        let (verdict, reason) = if rung.limits.is_empty() {
            (Verdict::Attached, Reason::Ok)
        } else {
            (Verdict::Degraded, Reason::LimitedHook)
        };
        let mut status = Self {
            probe,
            hook: rung.hook,
            verdict,
            reason,
            detail: rung.limits.to_owned(),
            passed_over,
        };
        status.add_detail(variant.note);
        status
    }

    /// What it would attach to is not there yet.
    pub(crate) fn deferred(probe: &Probe, forced: Option<&str>, detail: &str) -> Self {
        let mut rungs = probe.rungs.iter().map(|rung| rung.hook);
        Self {
            probe: probe.name,
            hook: rungs
                .find(|hook| forced.is_none_or(|forced| forced == *hook))
                .unwrap_or_default(),
            verdict: Verdict::Unsupported,
            reason: Reason::NoCuda,
            detail: detail.to_owned(),
            passed_over: Vec::new(),
        }
    }

    /// No hook is in use. The verdict is that of the first refusal that is not the kernel's own
    /// nature, else of the first; the detail names all.
    pub(crate) fn refused(probe: &'static str, refusals: &[PassedOver]) -> Self {
        let cause = refusals
            .iter()
            .find(|passed| passed.why.verdict == Verdict::Failed)
            .or(refusals.first());
        let detail = match refusals {
            [only] => only.why.detail.clone(),
            all => all
                .iter()
                .map(|passed| format!("{}: {}", passed.hook, passed.why.detail))
                .collect::<Vec<_>>()
                .join("; "),
        };
        Self {
            probe,
            hook: cause.map_or("", |cause| cause.hook),
            verdict: cause.map_or(Verdict::Unsupported, |cause| cause.why.verdict),
            reason: cause.map_or(Reason::NoHook, |cause| cause.why.reason),
            detail,
            passed_over: Vec::new(),
        }
    }

    /// The configuration has turned off what would run, or not, like this.
    pub(crate) fn turned_off(on: &Self) -> Self {
        Self {
            probe: on.probe,
            hook: on.hook,
            verdict: Verdict::Off,
            reason: Reason::TurnedOff,
            detail: "the configuration leaves it out".to_owned(),
            passed_over: Vec::new(),
        }
    }

    /// Lessens `attached` to `degraded` and says why, beside what it says already.
    pub fn degrade(&mut self, reason: Reason, detail: &str) {
        if self.verdict == Verdict::Attached {
            self.verdict = Verdict::Degraded;
            self.reason = reason;
        }
        if self.verdict.is_up() {
            self.add_detail(detail);
        }
    }

    fn add_detail(&mut self, detail: &str) {
        if !self.detail.is_empty() && !detail.is_empty() {
            self.detail.push_str("; ");
        }
        self.detail.push_str(detail);
    }
}
