//! Brings the programs into the kernel, and keeps them there as long as [`Programs`] lives.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the wire header's constants are u32 and far below 2^16"
)]

use std::{
    fmt,
    io::ErrorKind,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use aya::{
    Btf, BtfError, Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData, Queue, RingBuf},
    programs::{BtfTracePoint, ProgramError},
};

use crate::{
    Cells, OwnCounter, PoolError, Probe, Reason, Rung, Sample, SeriesError, SeriesTable, Status,
    Verdict, cgroup,
    pool::map_memory_bytes,
    series::slot_count,
    spec::{Fallback, Variant},
    wire,
};

/// What to attach.
#[derive(Debug)]
pub struct Request<'a> {
    /// Probes, each with the hook that the user forces, if any.
    pub probes: &'a [(&'static Probe, Option<&'a str>)],
    /// Histograms in the pool, the `other` cells included.
    pub series_max: u16,
    /// The hierarchy that disk I/O is charged in: see [`cgroup::io_hierarchy`].
    pub io_hierarchy: u16,
}

/// Nothing at all can be attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel's own type information is missing.
    #[error("/sys/kernel/btf/vmlinux: {0}; the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    NoBtf(BtfError),
    /// The kernel refused the maps, or the object does not fit it.
    #[error("the kernel does not take the eBPF object: {0}")]
    Object(String),
    /// See there.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// See there.
    #[error(transparent)]
    Series(#[from] SeriesError),
    /// `series_max` leaves no cell for any workload.
    #[error("a pool of {0} series is too small for the probes' own")]
    TooFewSeries(u16),
    /// The programs' object is not what this code expects.
    #[error("the eBPF object has no {0}")]
    Missing(String),
}

/// All that is in the kernel now.
pub struct Kernel {
    /// The values.
    pub cells: Cells,
    /// Whose they are.
    pub series: SeriesTable,
    /// The counter of cgroup events that found their ring full.
    pub cgroup_events_lost: u16,
    /// The probes, in the order asked for.
    pub probes: Vec<Installed>,
    /// Kernel memory of each map in bytes.
    pub map_memory_bytes: Vec<(String, u64)>,
    /// The programs; dropping this takes them out of the kernel.
    pub programs: Programs,
}

/// A probe and its own cells.
#[derive(Debug)]
pub struct Installed {
    /// The probe.
    pub probe: &'static Probe,
    /// Whether it runs.
    pub status: Status,
    /// Whether its second hook has been called for; it is tried once.
    pub fallback_tried: bool,
    histograms: u16,
    counters: u16,
}

impl Installed {
    /// Where events are counted that found no free cell.
    #[must_use]
    pub fn other(&self) -> Vec<Sample> {
        (self.probe.other)(self.histograms, self.counters)
    }

    /// The cells of the counters by which the probe tells about itself.
    pub fn own_counters(&self) -> impl Iterator<Item = (OwnCounter, u16)> + '_ {
        self.probe
            .own
            .iter()
            .map(|(kind, offset)| (*kind, self.counters + offset))
    }

    /// The counter that calls for the fallback hook.
    #[must_use]
    pub fn fallback_trigger(&self) -> Option<u16> {
        let fallback = self.probe.fallback.as_ref()?;
        Some(self.counters + fallback.trigger)
    }
}

/// How often a program ran and how long, as far as the kernel's statistics were on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStats {
    /// The program.
    pub program: String,
    /// Times run.
    pub runs: u64,
    /// Time spent, in nanoseconds.
    pub run_time_ns: u64,
    /// Events that it did not see, for it was running on their CPU already: the kernel lets no
    /// tracing program interrupt itself. Counted whether the statistics are on or not, since
    /// 5.12 (commit 9ed9e9ba2337); 0 before.
    pub misses: u64,
}

/// The programs in the kernel.
pub struct Programs {
    ebpf: Ebpf,
    attached: Vec<&'static str>,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Programs").field(&self.attached).finish()
    }
}

/// The object, aligned as its parser wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes.bpf.o"));

/// Switches the kernel's statistics of program runs on while the descriptor is open. They cost
/// two clock reads a run, for every program on the host.
///
/// # Errors
/// Without `CAP_SYS_ADMIN`, or before 5.8.
pub fn enable_run_stats() -> std::io::Result<OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|error| error.io_error)
}

/// Loads and attaches.
///
/// A probe that cannot run has a verdict in [`Kernel::probes`] and does not disturb the others.
/// Beside it come the events of cgroups that are made and removed, or why there are none.
///
/// # Errors
/// When nothing can run: no BTF, no maps.
pub fn attach(request: &Request) -> Result<(Kernel, Result<cgroup::Events, Status>), LoadError> {
    attach_from(request, vec![0; request.probes.len()])
}

/// Attaches, beginning with a given variant of each probe's rung.
pub(crate) fn attach_from(
    request: &Request,
    mut variants: Vec<usize>,
) -> Result<(Kernel, Result<cgroup::Events, Status>), LoadError> {
    let layout = Layout::new(request)?;
    // Parsed here for the attach points; the loader has its own copy, gone before this one is
    // made, so that the peak is that of one.
    let (mut ebpf, btf, mut outcomes) = loop {
        let mut ebpf = layout.load(request, &variants)?;
        let btf = Btf::from_sys_fs().map_err(LoadError::NoBtf)?;
        let mut retry = false;
        let mut outcomes = Vec::new();
        for ((probe, hook), variant) in request.probes.iter().zip(&mut variants) {
            let rung = rung(probe, *hook);
            let outcome = load_variant(&mut ebpf, &btf, &rung.variants[*variant]);
            // A lesser variant needs its table made, and maps are made with the object.
            if matches!(&outcome, Err((_, Reason::Rejected, _)))
                && *variant + 1 < rung.variants.len()
            {
                *variant += 1;
                retry = true;
            }
            outcomes.push(outcome);
        }
        if !retry {
            break (ebpf, btf, outcomes);
        }
    };

    let cells = Cells::new(
        fd_of(ebpf.map("histograms"))?,
        fd_of(ebpf.map("counters"))?,
        request.series_max,
        layout.counter_count,
    )?;
    let map_memory_bytes = map_sizes(&ebpf);
    let mut series = SeriesTable::new(
        HashMap::try_from(take(&mut ebpf, "series_index")?).map_err(object_error)?,
        Queue::try_from(take(&mut ebpf, "free_histograms")?).map_err(object_error)?,
        Queue::try_from(take(&mut ebpf, "free_counters")?).map_err(object_error)?,
        Array::try_from(take(&mut ebpf, "series_slots")?).map_err(object_error)?,
        layout.inserts,
        u32::from(request.series_max),
    );
    series.fill(
        layout.free_histograms..request.series_max,
        layout.free_counters..u16::try_from(layout.counter_count).unwrap_or(u16::MAX),
    )?;

    let mut programs = Programs {
        ebpf,
        attached: Vec::new(),
    };
    // First, so that no workload's cgroup is made unseen between its walk and its events.
    let cgroups = programs.attach_cgroups(&btf);
    let mut probes = Vec::new();
    for (((probe, hook), (histograms, counters)), (variant, outcome)) in request
        .probes
        .iter()
        .zip(&layout.probes)
        .zip(variants.iter().zip(outcomes.drain(..)))
    {
        let rung = rung(probe, *hook);
        let variant = &rung.variants[*variant];
        let outcome = outcome.and_then(|()| programs.attach_variant(variant));
        let status = match outcome {
            Ok(()) => Status {
                probe: probe.name,
                hook: rung.hook,
                verdict: Verdict::Attached,
                reason: Reason::Ok,
                detail: variant.note.to_owned(),
            },
            Err((verdict, reason, detail)) => Status {
                probe: probe.name,
                hook: rung.hook,
                verdict,
                reason,
                detail,
            },
        };
        probes.push(Installed {
            probe,
            status,
            fallback_tried: false,
            histograms: *histograms,
            counters: *counters,
        });
    }
    let kernel = Kernel {
        cells,
        series,
        cgroup_events_lost: layout.cgroup_counters + wire::CGROUP_COUNTER_LOST as u16,
        probes,
        map_memory_bytes,
        programs,
    };
    Ok((kernel, cgroups))
}

/// Which cells are whose: the programs' own first, the rest free for series.
#[derive(Debug)]
struct Layout {
    /// The first own histogram and counter of each probe.
    probes: Vec<(u16, u16)>,
    cgroup_counters: u16,
    inserts: u16,
    free_histograms: u16,
    free_counters: u16,
    counter_count: u32,
}

impl Layout {
    fn new(request: &Request) -> Result<Self, LoadError> {
        let inserts = request.series_max;
        let mut histogram = 0;
        // Counters up to series_max belong to the histograms of the same numbers.
        let mut counter = inserts + 1;
        let mut probes = Vec::new();
        for (probe, _) in request.probes {
            probes.push((histogram, counter));
            histogram += probe.histograms;
            counter += probe.counters;
        }
        let cgroup_counters = counter;
        counter += wire::CGROUP_COUNTERS as u16;
        if histogram >= request.series_max {
            return Err(LoadError::TooFewSeries(request.series_max));
        }
        Ok(Self {
            probes,
            cgroup_counters,
            inserts,
            free_histograms: histogram,
            free_counters: counter,
            counter_count: (2 * u32::from(request.series_max))
                .next_multiple_of(wire::COUNTERS_PER_PAGE),
        })
    }

    fn load(&self, request: &Request, variants: &[usize]) -> Result<Ebpf, LoadError> {
        let series_max = u32::from(request.series_max);
        let io_hierarchy = u32::from(request.io_hierarchy);
        let (inserts, cgroup_counters) = (u32::from(self.inserts), u32::from(self.cgroup_counters));
        let slots = slot_count(request.series_max);
        let slots_mask = slots - 1;
        let constants: Vec<(String, u32)> = request
            .probes
            .iter()
            .zip(&self.probes)
            .flat_map(|((probe, _), (histograms, counters))| {
                [
                    (format!("{}_histograms", probe.name), u32::from(*histograms)),
                    (format!("{}_counters", probe.name), u32::from(*counters)),
                ]
            })
            .collect();
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries("histograms", series_max)
            .map_max_entries("counters", self.counter_count)
            .map_max_entries("series_index", series_max)
            .map_max_entries("free_histograms", series_max)
            .map_max_entries("free_counters", self.counter_count - series_max)
            .map_max_entries("series_slots", slots)
            .override_global("series_slots_mask", &slots_mask, true)
            .override_global("counter_inserts", &inserts, true)
            .override_global("cgroup_counters", &cgroup_counters, true)
            .override_global("cgroup_io_hierarchy", &io_hierarchy, true);
        for (name, value) in &constants {
            loader.override_global(name, value, true);
        }
        for ((probe, hook), variant) in request.probes.iter().zip(variants) {
            if let Some((table, entries)) = rung(probe, *hook).variants[*variant].table {
                loader.map_max_entries(table, entries);
            }
        }
        loader.load(OBJECT).map_err(object_error)
    }
}

/// The rung to use: the forced one, else the best.
fn rung(probe: &'static Probe, hook: Option<&str>) -> &'static Rung {
    hook.and_then(|hook| probe.rungs.iter().find(|rung| rung.hook == hook))
        .unwrap_or(&probe.rungs[0])
}

type Outcome = Result<(), (Verdict, Reason, String)>;

fn load_variant(ebpf: &mut Ebpf, btf: &Btf, variant: &Variant) -> Outcome {
    for (program, tracepoint) in variant.programs {
        load_program(ebpf, btf, program, tracepoint)?;
    }
    Ok(())
}

fn tracepoint_program<'a>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> Result<&'a mut BtfTracePoint, (Verdict, Reason, String)> {
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| {
            (
                Verdict::Failed,
                Reason::Rejected,
                format!("the eBPF object has no program {name}"),
            )
        })
}

fn load_program(ebpf: &mut Ebpf, btf: &Btf, name: &str, tracepoint: &str) -> Outcome {
    let program = tracepoint_program(ebpf, name)?;
    program.load(tracepoint, btf).map_err(|error| match error {
        ProgramError::Btf(_) => (
            Verdict::Unsupported,
            Reason::NoHook,
            format!("this kernel has no tracepoint {tracepoint}"),
        ),
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let reason = if io_error.kind() == ErrorKind::PermissionDenied && log.is_empty() {
                Reason::NoPermission
            } else {
                Reason::Rejected
            };
            (
                Verdict::Failed,
                reason,
                format!("{name} was refused: {io_error}{}", last_words(&log)),
            )
        }
        other => (
            Verdict::Failed,
            Reason::Rejected,
            format!("{name}: {other}"),
        ),
    })
}

/// The verifier's complaint, without its statistics and the trace before it.
fn last_words(log: &str) -> String {
    log.lines()
        .map(str::trim)
        .rfind(|line| {
            !line.is_empty()
                && !line.starts_with("processed ")
                && !line.starts_with("verification time")
        })
        .map(|line| format!(" ({line})"))
        .unwrap_or_default()
}

impl Programs {
    fn attach_program(&mut self, name: &'static str) -> Outcome {
        tracepoint_program(&mut self.ebpf, name)?
            .attach()
            .map_err(|error| {
                (
                    Verdict::Failed,
                    Reason::AttachError,
                    format!("{name} cannot be attached: {error}"),
                )
            })?;
        self.attached.push(name);
        Ok(())
    }

    fn attach_variant(&mut self, variant: &Variant) -> Outcome {
        let before = self.attached.len();
        let outcome = variant
            .programs
            .iter()
            .try_for_each(|(program, _)| self.attach_program(program));
        if outcome.is_err() {
            self.detach_from(before);
        }
        outcome
    }

    /// Takes the programs attached last out of the kernel: a part of a probe would count a part
    /// of the truth.
    fn detach_from(&mut self, first: usize) {
        for name in self.attached.split_off(first) {
            if let Ok(program) = tracepoint_program(&mut self.ebpf, name) {
                let _ = program.unload();
            }
        }
    }

    fn attach_cgroups(&mut self, btf: &Btf) -> Result<cgroup::Events, Status> {
        let before = self.attached.len();
        let mut outcome = Ok(());
        for name in ["cgroup_mkdir", "cgroup_rename", "cgroup_rmdir"] {
            outcome = outcome
                .and_then(|()| load_program(&mut self.ebpf, btf, name, name))
                .and_then(|()| self.attach_program(name));
        }
        let status = |(verdict, reason, detail)| Status {
            probe: "cgroup",
            hook: "tp_btf",
            verdict,
            reason,
            detail,
        };
        if let Err(error) = outcome {
            self.detach_from(before);
            return Err(status(error));
        }
        let ring = self.ebpf.take_map("cgroup_events").map(RingBuf::try_from);
        if let Some(Ok(ring)) = ring {
            return Ok(cgroup::Events::new(ring));
        }
        self.detach_from(before);
        Err(status((
            Verdict::Failed,
            Reason::MapError,
            "the ring of cgroup events cannot be mapped".to_owned(),
        )))
    }

    /// Attaches a probe's second hook and gives it its table. The verdict becomes `degraded`, and
    /// says so beside what it said before. Returns the table's name and memory in bytes.
    pub fn attach_fallback(&mut self, installed: &mut Installed) -> Option<(String, u64)> {
        let fallback = installed.probe.fallback.as_ref()?;
        installed.fallback_tried = true;
        let outcome = self.fallback(fallback);
        let status = &mut installed.status;
        if status.verdict == Verdict::Attached {
            status.verdict = Verdict::Degraded;
            status.reason = fallback.reason;
        }
        if !status.detail.is_empty() {
            status.detail.push_str("; ");
        }
        status.detail.push_str(fallback.detail);
        match outcome {
            Ok(bytes) => bytes.map(|bytes| (format!("{}_table", fallback.table.0), bytes)),
            Err((_, _, error)) => {
                status.detail.push_str("; and they are not timed: ");
                status.detail.push_str(&error);
                None
            }
        }
    }

    fn fallback(&mut self, fallback: &Fallback) -> Result<Option<u64>, (Verdict, Reason, String)> {
        let map_error =
            |error: &dyn fmt::Display| (Verdict::Failed, Reason::MapError, error.to_string());
        let btf = Btf::from_sys_fs().map_err(|error| map_error(&error))?;
        let (program, tracepoint) = fallback.program;
        load_program(&mut self.ebpf, &btf, program, tracepoint)?;
        let (slot, entries) = fallback.table;
        let table =
            HashMap::<MapData, u64, u64>::create(entries, 0).map_err(|error| map_error(&error))?;
        let mut slots: ArrayOfMaps<&mut MapData, HashMap<MapData, u64, u64>> = self
            .ebpf
            .map_mut(slot)
            .and_then(|map| map.try_into().ok())
            .ok_or_else(|| map_error(&format!("the eBPF object has no map {slot}")))?;
        // The kernel holds the table as long as the slot does.
        slots.set(0, &table, 0).map_err(|error| map_error(&error))?;
        let bytes = self
            .ebpf
            .map(slot)
            .and_then(|map| ArrayOfMaps::<&MapData, MapData>::try_from(map).ok())
            .and_then(|slots| slots.get(&0, 0).ok())
            .and_then(|table| map_memory_bytes(table.fd().as_fd()));
        self.attach_program(program)?;
        Ok(bytes)
    }

    /// Run counts of the attached programs: zero while the kernel's statistics are off.
    #[must_use]
    pub fn run_stats(&self) -> Vec<RunStats> {
        self.attached
            .iter()
            .filter_map(|name| {
                let fd = self.ebpf.program(name)?.fd().ok()?.as_fd().as_raw_fd();
                let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
                let value = |key: &str| -> Option<u64> {
                    text.lines()
                        .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
                };
                Some(RunStats {
                    program: (*name).to_owned(),
                    runs: value("run_cnt:")?,
                    run_time_ns: value("run_time_ns:")?,
                    misses: value("recursion_misses:").unwrap_or(0),
                })
            })
            .collect()
    }
}

fn object_error(error: impl std::error::Error) -> LoadError {
    // The causes name the map or the type, which is what helps.
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    LoadError::Object(text)
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, LoadError> {
    ebpf.take_map(name)
        .ok_or_else(|| LoadError::Missing(format!("map {name}")))
}

fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::ArrayOfMaps(data)
        | Map::HashMap(data)
        | Map::Queue(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Some(data),
        _ => None,
    }
}

fn fd_of(map: Option<&Map>) -> Result<BorrowedFd<'_>, LoadError> {
    map.and_then(map_data)
        .map(|data| data.fd().as_fd())
        .ok_or_else(|| LoadError::Missing("map for a pool".to_owned()))
}

fn map_sizes(ebpf: &Ebpf) -> Vec<(String, u64)> {
    let mut sizes: Vec<(String, u64)> = ebpf
        .maps()
        .filter_map(|(name, map)| {
            let bytes = map_memory_bytes(map_data(map)?.fd().as_fd())?;
            Some((name.trim_start_matches('.').to_owned(), bytes))
        })
        .collect();
    sizes.sort();
    sizes
}
