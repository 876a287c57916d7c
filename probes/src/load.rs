//! Brings the programs into the kernel, and keeps them there as long as [`Programs`] lives.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the wire header's constants are u32 and far below 2^16"
)]

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData, Queue, RingBuf},
};
use aya_obj::generated::{BPF_F_INNER_MAP, bpf_map_type};

use crate::{
    Cells, Events, OwnCounter, PoolError, Probe, Reason, Rung, Sample, SeriesError, SeriesTable,
    Status, StreamCgroups, StreamFilter, Table, TableKind, Verdict, btf, cgroup,
    hook::{self, Host, Link, chain},
    pool::map_memory_bytes,
    record::{self, Field},
    series::slot_count,
    spec::{Fallback, Hook, PassedOver, Program, Refusal, Variant},
    tcp, wire,
};

/// What to attach.
#[derive(Debug)]
pub struct Request<'a> {
    /// Probes, each with the hook that the user forces, if any.
    pub probes: &'a [(&'static Probe, Option<&'a str>)],
    /// Of them those that are made ready, and not attached until [`Programs::turn_on`].
    pub off: &'a [&'static str],
    /// Histograms in the pool, the `other` cells included.
    pub series_max: u16,
    /// The hierarchy that disk I/O is charged in: see [`cgroup::io_hierarchy`].
    pub io_hierarchy: u16,
    /// The v1 hierarchy by which a connect belongs to its task, where sockets have no cgroup of
    /// their own: v2 is not mounted.
    pub task_hierarchy: Option<u16>,
    /// The types of a kernel that has none of its own: BTF as in `/sys/kernel/btf/vmlinux`.
    pub btf: Option<&'a Path>,
    /// Whether each event can be asked for, those that failed among them, and which; else it is those that are slow.
    pub stream: Option<&'a StreamFilter>,
}

/// Nothing at all can be attached.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file of types cannot be used.
    #[error("--btf {}: {error}; raw BTF of this very kernel is needed, as in /sys/kernel/btf/vmlinux", path.display())]
    Btf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
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
    /// The hook in use or tried last.
    pub rung: &'static Rung,
    /// Whether its second hook has been called for; it is tried once.
    pub fallback_tried: bool,
    histograms: u16,
    counters: u16,
    /// While it is turned off, the verdict that it has when it is on.
    when_on: Option<Status>,
    /// While it is held back, the verdict that it has otherwise.
    when_free: Option<Status>,
    /// Whether its programs are away from their hooks, while it is on.
    is_paused: bool,
    /// Whether it ran before it was turned off.
    has_run: bool,
}

impl Installed {
    /// Whether the configuration wants it to run.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.when_on.is_none()
    }

    /// The verdict that it has, or had and will have, when it is on and not held back.
    #[must_use]
    pub fn status_when_on(&self) -> &Status {
        let held = self.when_free.as_ref().or(self.when_on.as_ref());
        held.unwrap_or(&self.status)
    }

    /// Whether it is held back, for the cost of it.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.when_free.is_some()
    }

    /// Whether its programs are at their hooks, if they ever could be.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.is_on() && !self.is_paused
    }

    /// Says that it is held back, for the cost of it, which [`Programs::pause`] does. Without a verdict of its own it
    /// keeps the one that it has, but for what it says.
    pub fn hold_back(&mut self, verdict: Option<Verdict>, detail: &str) {
        let free = self
            .when_free
            .get_or_insert_with(|| self.status.clone())
            .clone();
        let mut detail = detail.to_owned();
        if !free.detail.is_empty() {
            detail = format!("{detail}; {}", free.detail);
        }
        let (verdict, reason) = verdict.map_or((free.verdict, free.reason), |verdict| {
            (verdict, Reason::OverBudget)
        });
        self.status = Status {
            verdict,
            reason,
            detail,
            ..free
        };
    }

    /// Gives it the verdict back that it had before it was held back.
    pub fn let_go(&mut self) {
        if let Some(free) = self.when_free.take() {
            self.status = free;
        }
    }

    /// Whether it counts, or has counted until it was turned off.
    #[must_use]
    pub fn has_counted(&self) -> bool {
        self.has_run || self.status.verdict.is_up()
    }

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

    /// Whether it can tell of single events by the hook in use.
    #[must_use]
    pub fn tells_events(&self) -> bool {
        self.probe.events.is_some() && self.rung.events.is_some()
    }

    /// The counter of events that were asked for and found their ring full.
    #[must_use]
    pub fn events_lost(&self) -> Option<u16> {
        let source = self.probe.events.as_ref()?;
        Some(self.counters + source.lost)
    }

    /// The counter of events that a stream by process has left out though they may be that process's.
    #[must_use]
    pub fn events_unknown(&self) -> Option<u16> {
        let source = self.probe.events.as_ref()?;
        Some(self.counters + source.unknown)
    }

    pub(crate) fn slow_cell(&self) -> Option<u16> {
        let source = self.probe.events.as_ref()?;
        Some(self.counters + source.slow_ns)
    }

    /// The counter that calls for the fallback hook.
    #[must_use]
    pub fn fallback_trigger(&self) -> Option<u16> {
        let fallback = self.probe.fallback.as_ref()?;
        (!self.rung.fallback.is_empty()).then_some(self.counters + fallback.trigger)
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
    /// tracing program interrupt itself, and no kprobe or classic tracepoint program another.
    /// Counted whether the statistics are on or not, since 5.12 (commit 9ed9e9ba2337), for the
    /// latter two since 6.7 (commit dd8657894c11); 0 before.
    pub misses: u64,
}

/// The programs in the kernel.
pub struct Programs {
    ebpf: Ebpf,
    /// Whether each event can be asked for.
    streams: bool,
    loaded: Vec<Loaded>,
}

/// A program in the kernel.
struct Loaded {
    program: &'static Program,
    /// What holds it at its hook; nothing while its probe is off.
    link: Option<Link>,
}

impl Loaded {
    /// A program's name begins with its probe's.
    fn is_of(&self, probe: &Probe) -> bool {
        let rest = self.program.name.strip_prefix(probe.name);
        rest.is_some_and(|rest| rest.starts_with('_'))
    }
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.loaded.iter().map(|loaded| loaded.program.name);
        f.debug_list().entries(names).finish()
    }
}

/// Bytes of a CPU's ring of slow events: mostly the least that a ring can have, a page, and room for 46 until the agent
/// comes.
pub const EVENT_RING_BYTES: u32 = 4096;

/// The processes of connects and requests under way.
const EVENT_ORIGINS: Table = Table {
    slot: "event_origins",
    key_bytes: size_of::<u32>() as u32,
    value_bytes: size_of::<wire::event_place>() as u32,
    entries: 1 << wire::EVENT_PLACE_BITS,
    kind: TableKind::Array,
};

/// The same for a stream.
const EVENT_STREAM_ORIGINS: Table = Table {
    entries: 1 << wire::EVENT_STREAM_PLACE_BITS,
    ..EVENT_ORIGINS
};

/// The cgroups whose events are asked for. One takes a part of a table that is made for all of them at once.
const EVENT_CGROUPS: &Table = &Table {
    slot: "event_cgroups",
    key_bytes: size_of::<wire::event_cgroup>() as u32,
    value_bytes: size_of::<u32>() as u32,
    entries: 1024,
    kind: TableKind::Hash,
};

/// The object, aligned as its parser wants it.
pub(crate) static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes.bpf.o"));

/// Switches the kernel's statistics of program runs on while the descriptor is open. They cost
/// two clock reads a run, for every program on the host.
///
/// # Errors
/// Without `CAP_SYS_ADMIN`, or before 5.8.
pub fn enable_run_stats() -> std::io::Result<OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).map_err(|error| error.io_error)
}

/// Loads and attaches: of each probe the best hook that this kernel allows, or the forced one.
///
/// A probe that cannot run has a verdict in [`Kernel::probes`] and does not disturb the others.
/// Beside it come the events of cgroups that are made and removed, or why there are none.
///
/// # Errors
/// When nothing can run: no maps, or a file of types that is none.
pub fn attach(request: &Request) -> Result<(Kernel, Result<cgroup::Events, Status>), LoadError> {
    attach_from(request, 0)
}

/// Attaches, passing over that many variants of the first probe's hook.
pub(crate) fn attach_from(
    request: &Request,
    variant: usize,
) -> Result<(Kernel, Result<cgroup::Events, Status>), LoadError> {
    let own_types = btf::own_types();
    // Its own are right for certain.
    let path = request.btf.filter(|_| own_types.is_err());
    let of_file = |error| LoadError::Btf {
        path: path.unwrap_or(Path::new("")).to_owned(),
        error,
    };
    let file = path.map(btf::read).transpose().map_err(of_file)?;
    let mut host = Host::new(own_types, file.is_some());
    let layout = Layout::new(request)?;
    let mut ladders: Vec<Ladder> = request
        .probes
        .iter()
        .map(|(probe, hook)| Ladder::new(probe.rungs, *hook, request.task_hierarchy.is_some()))
        .chain([Ladder::new(cgroup::RUNGS, None, false)])
        .collect();
    if let Some(first) = ladders.first_mut() {
        first.steps.drain(..variant);
    }
    // A lower step may need other constants, which are loaded with the object: each round begins
    // anew. There are as many as steps at most.
    loop {
        for ladder in &mut ladders {
            ladder.descend(&host);
        }
        let ebpf = layout.load(request, &ladders, file.as_ref())?;
        // Parsed here for the attach points; the loader has its own copy, gone before this one is
        // made, so that the peak is that of one.
        let btf = match host.own_types.is_ok().then(Btf::from_sys_fs).transpose() {
            Ok(btf) => btf,
            Err(error) => {
                host.lacks_types(format!("{} cannot be read: {}", btf::OWN, chain(&error)));
                continue;
            }
        };
        let mut installing = layout.fill(ebpf, request)?;
        if file.is_some() {
            layout.check_types(&mut installing).map_err(of_file)?;
        }
        let mut settled = true;
        // The last first: no workload's cgroup is to be made unseen between its walk and its
        // events.
        for (place, ladder) in ladders.iter_mut().enumerate().rev() {
            let Some(step) = ladder.steps.first() else {
                continue;
            };
            let probe = request.probes.get(place).map(|(probe, _)| probe.name);
            let is_off = probe.is_some_and(|name| request.off.contains(&name));
            let (programs, all) = (&mut installing.programs, step.variant.programs);
            let made = step.variant.table.map(|table| programs.new_table(table));
            let outcome = made.transpose().and_then(|made| {
                installing.map_memory_bytes.extend(made.flatten());
                if is_off {
                    programs.load_all(btf.as_ref(), all)
                } else {
                    programs.attach_all(btf.as_ref(), all)
                }
            });
            if let Err(refusal) = outcome {
                let hook = step.variant.programs[0].hook;
                ladder.pass_over(host.explain(&hook, refusal));
                settled = false;
            }
        }
        if settled {
            return Ok(layout.settle(request, ladders, installing));
        }
    }
}

/// A variant of a rung.
struct Step {
    rung: &'static Rung,
    variant: &'static Variant,
    /// Where the records of its tracepoints have their fields.
    fields: Vec<(&'static str, Field)>,
}

/// What can still be tried, best first, and what cannot.
struct Ladder {
    rungs: &'static [Rung],
    steps: Vec<Step>,
    passed_over: Vec<PassedOver>,
}

impl Ladder {
    fn new(rungs: &'static [Rung], forced: Option<&str>, of_task: bool) -> Self {
        let steps = rungs
            .iter()
            .filter(|rung| forced.is_none_or(|forced| forced == rung.hook))
            .flat_map(|rung| {
                // Where tasks own what sockets should, a variant that asks no task is no better.
                let of_task = of_task && rung.variants.iter().any(|variant| variant.of_task);
                let variants = rung.variants.iter();
                variants
                    .filter(move |variant| variant.of_task || !of_task)
                    .map(|variant| Step {
                        rung,
                        variant,
                        fields: Vec::new(),
                    })
            })
            .collect();
        Self {
            rungs,
            steps,
            passed_over: Vec::new(),
        }
    }

    /// Goes down to the first step for which all is there, as far as can be said before it is
    /// loaded.
    fn descend(&mut self, host: &Host) {
        while let Some(step) = self.steps.first_mut() {
            match step.prepare(host) {
                Ok(()) => return,
                Err(refusal) => self.pass_over(refusal),
            }
        }
    }

    fn pass_over(&mut self, why: Refusal) {
        let step = self.steps.remove(0);
        // A lesser variant of the same hook says itself what is missing.
        if self
            .steps
            .first()
            .is_none_or(|next| next.rung.hook != step.rung.hook)
        {
            self.passed_over.push(PassedOver {
                hook: step.rung.hook,
                why,
            });
        }
    }

    fn status(self, probe: &'static str) -> (Status, &'static Rung) {
        let Some(step) = self.steps.first() else {
            let status = Status::refused(probe, &self.passed_over);
            let tried = self.rungs.iter().find(|rung| rung.hook == status.hook);
            return (status, tried.unwrap_or(&self.rungs[0]));
        };
        let status = Status::attached(probe, step.rung, step.variant, self.passed_over);
        (status, step.rung)
    }
}

impl Step {
    fn prepare(&mut self, host: &Host) -> Result<(), Refusal> {
        self.fields.clear();
        for program in self.variant.programs {
            host.suffices_for(&program.hook)?;
            if let Hook::Tracepoint(record) = program.hook {
                let fields = record::fields(record);
                self.fields
                    .extend(fields.map_err(|refusal| host.explain(&program.hook, refusal))?);
            }
        }
        Ok(())
    }
}

/// What is in the kernel before the first program runs.
struct Installing {
    cells: Cells,
    series: SeriesTable,
    map_memory_bytes: Vec<(String, u64)>,
    programs: Programs,
}

/// Which cells are whose: the programs' own first, the rest free for series.
#[derive(Debug)]
struct Layout {
    /// The first own histogram and counter of each probe.
    probes: Vec<(u16, u16)>,
    cgroup_counters: u16,
    btf_counters: u16,
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
        let btf_counters = counter;
        counter += wire::BTF_COUNTERS as u16;
        if histogram >= request.series_max {
            return Err(LoadError::TooFewSeries(request.series_max));
        }
        Ok(Self {
            probes,
            cgroup_counters,
            btf_counters,
            inserts,
            free_histograms: histogram,
            free_counters: counter,
            counter_count: (2 * u32::from(request.series_max))
                .next_multiple_of(wire::COUNTERS_PER_PAGE),
        })
    }

    fn load(
        &self,
        request: &Request,
        ladders: &[Ladder],
        btf: Option<&Btf>,
    ) -> Result<Ebpf, LoadError> {
        let series_max = u32::from(request.series_max);
        let io_hierarchy = u32::from(request.io_hierarchy);
        let task_hierarchy = u32::from(request.task_hierarchy.unwrap_or(0));
        let (inserts, cgroup_counters) = (u32::from(self.inserts), u32::from(self.cgroup_counters));
        let btf_counters = u32::from(self.btf_counters);
        let slots = slot_count(request.series_max);
        let slots_mask = slots - 1;
        let constants: Vec<(String, u32)> = request
            .probes
            .iter()
            .zip(&self.probes)
            // Deferred ones are not in this object.
            .filter(|((probe, _), _)| probe.deferred.is_none())
            .flat_map(|((probe, _), (histograms, counters))| {
                [
                    (format!("{}_histograms", probe.name), u32::from(*histograms)),
                    (format!("{}_counters", probe.name), u32::from(*counters)),
                ]
            })
            .collect();
        let mut loader = EbpfLoader::new();
        if btf.is_some() {
            loader.btf(btf);
        }
        loader
            .map_max_entries("histograms", series_max)
            .map_max_entries("counters", self.counter_count)
            .map_max_entries("series_index", series_max)
            .map_max_entries("free_histograms", series_max)
            .map_max_entries("free_counters", self.counter_count - series_max)
            .map_max_entries("series_slots", slots)
            .map_max_entries("events", possible_cpus()?)
            .override_global("series_slots_mask", &slots_mask, true)
            .override_global("counter_inserts", &inserts, true)
            .override_global("cgroup_counters", &cgroup_counters, true)
            .override_global("btf_counters", &btf_counters, true)
            .override_global("cgroup_io_hierarchy", &io_hierarchy, true)
            .override_global("tcp_task_hierarchy", &task_hierarchy, true);
        for (name, value) in &constants {
            loader.override_global(name, value, true);
        }
        let stream = StreamFilter::constants(request.stream);
        for (name, value) in &stream {
            loader.override_global(name, value, true);
        }
        for step in ladders.iter().filter_map(|ladder| ladder.steps.first()) {
            for (variable, field) in &step.fields {
                loader.override_global(variable, field, true);
            }
        }
        loader.load(OBJECT).map_err(object_error)
    }

    /// Maps the pools and gives the programs their free cells.
    fn fill(&self, mut ebpf: Ebpf, request: &Request) -> Result<Installing, LoadError> {
        let cells = Cells::new(
            fd_of(ebpf.map("histograms"))?,
            fd_of(ebpf.map("counters"))?,
            request.series_max,
            self.counter_count,
        )?;
        let map_memory_bytes = map_sizes(&ebpf);
        let mut series = SeriesTable::new(
            HashMap::try_from(take(&mut ebpf, "series_index")?).map_err(object_error)?,
            Queue::try_from(take(&mut ebpf, "free_histograms")?).map_err(object_error)?,
            Queue::try_from(take(&mut ebpf, "free_counters")?).map_err(object_error)?,
            Array::try_from(take(&mut ebpf, "series_slots")?).map_err(object_error)?,
            self.inserts,
            u32::from(request.series_max),
        );
        series.fill(
            self.free_histograms..request.series_max,
            self.free_counters..u16::try_from(self.counter_count).unwrap_or(u16::MAX),
        )?;
        Ok(Installing {
            cells,
            series,
            map_memory_bytes,
            programs: Programs {
                streams: request.stream.is_some(),
                ebpf,
                loaded: Vec::new(),
            },
        })
    }

    /// Asks the kernel whether the types of a file are its own: wrong ones would give wrong numbers,
    /// and nothing else would tell.
    fn check_types(&self, installing: &mut Installing) -> Result<(), String> {
        const OTHER: &str = "it is not of this kernel: what is read with its offsets is wrong";
        let programs = &mut installing.programs;
        if let Err(refusal) = programs.attach_all(None, &btf::CHECK) {
            // A call in place of an offset that is not there: Aya's and libbpf's mark. What else is
            // refused here is for the probes to tell.
            return if refusal.detail.contains("invalid func") {
                Err(OTHER.to_owned())
            } else {
                Ok(())
            };
        }
        // A system call of this very task.
        let _ = std::os::unix::process::parent_id();
        programs.unload(&btf::CHECK);
        let count = |counter: u32| {
            let cell = self.btf_counters + counter as u16;
            installing.cells.counter(cell)
        };
        let (right, wrong) = (
            count(wire::BTF_COUNTER_RIGHT),
            count(wire::BTF_COUNTER_WRONG),
        );
        // One may be wrong by chance: a task that moved to another cgroup between two reads.
        if right > 0 || wrong == 0 {
            Ok(())
        } else {
            Err(OTHER.to_owned())
        }
    }

    /// Puts it all together, once nothing more is tried.
    fn settle(
        &self,
        request: &Request,
        mut ladders: Vec<Ladder>,
        installing: Installing,
    ) -> (Kernel, Result<cgroup::Events, Status>) {
        let Installing {
            cells,
            series,
            map_memory_bytes,
            mut programs,
        } = installing;
        let events = match ladders.pop() {
            Some(ladder) => programs.cgroup_events(ladder),
            None => Err(Status::refused(cgroup::NAME, &[])),
        };
        let probes = request
            .probes
            .iter()
            .zip(&self.probes)
            .zip(ladders)
            .map(|(((probe, hook), (histograms, counters)), ladder)| {
                let (mut status, rung) = ladder.status(probe.name);
                if let Some(detail) = probe.deferred {
                    status = Status::deferred(probe, *hook, detail);
                }
                Installed {
                    probe,
                    status,
                    rung,
                    fallback_tried: false,
                    histograms: *histograms,
                    counters: *counters,
                    when_on: None,
                    when_free: None,
                    is_paused: false,
                    has_run: false,
                }
            })
            .collect();
        let kernel = Kernel {
            cells,
            series,
            cgroup_events_lost: self.cgroup_counters + wire::CGROUP_COUNTER_LOST as u16,
            probes,
            map_memory_bytes,
            programs,
        };
        (kernel, events)
    }
}

impl Programs {
    /// Loads and attaches them all, or none: a part of a probe would count a part of the truth.
    fn attach_all(
        &mut self,
        btf: Option<&Btf>,
        programs: &'static [Program],
    ) -> Result<(), Refusal> {
        self.load_all(btf, programs)?;
        let attached =
            self.hold(|loaded| programs.iter().any(|one| one.name == loaded.program.name));
        attached.inspect_err(|_| self.unload(programs))
    }

    fn load_all(&mut self, btf: Option<&Btf>, programs: &'static [Program]) -> Result<(), Refusal> {
        for program in programs {
            hook::load(&mut self.ebpf, btf, program)?;
        }
        let loaded = programs.iter().map(|program| Loaded {
            program,
            link: None,
        });
        self.loaded.extend(loaded);
        Ok(())
    }

    /// Attaches those of the loaded programs, or none.
    fn hold(&mut self, which: impl Fn(&Loaded) -> bool) -> Result<(), Refusal> {
        let mut links = Vec::new();
        for loaded in self.loaded.iter().filter(|loaded| which(loaded)) {
            links.push(hook::attach(&mut self.ebpf, loaded.program)?);
        }
        let held = self.loaded.iter_mut().filter(|loaded| which(loaded));
        for (loaded, link) in held.zip(links) {
            loaded.link = Some(link);
        }
        Ok(())
    }

    fn unload(&mut self, programs: &[Program]) {
        for program in programs {
            let is_it = |loaded: &Loaded| loaded.program.name == program.name;
            self.loaded.retain(|loaded| !is_it(loaded));
            hook::unload(&mut self.ebpf, program.name);
        }
    }

    /// Takes a probe's programs away from their hooks. They stay loaded, and what they have counted stays in its
    /// cells. A deferred probe has none here: see [`crate::gpu::Gpu::turn`].
    pub fn turn_off(&mut self, installed: &mut Installed) {
        if !installed.is_on() {
            return;
        }
        installed.let_go();
        self.pause(installed);
        installed.is_paused = false;
        let off = Status::turned_off(&installed.status);
        installed.when_on = Some(std::mem::replace(&mut installed.status, off));
    }

    /// Takes a probe's programs away from their hooks for a while; it stays on, and its verdict is what it is. See
    /// [`Self::turn_off`] for the rest.
    pub fn pause(&mut self, installed: &mut Installed) {
        let of_probe = |loaded: &&mut Loaded| loaded.is_of(installed.probe);
        for loaded in self.loaded.iter_mut().filter(of_probe) {
            installed.has_run |= loaded.link.take().is_some();
        }
        let is_deferred = installed.probe.deferred.is_some();
        installed.has_run |= is_deferred && installed.status.verdict.is_up();
        installed.is_paused = true;
    }

    /// Attaches the programs of a probe that was paused again.
    ///
    /// # Errors
    /// The kernel's refusal; they stay away.
    pub fn resume(&mut self, installed: &mut Installed) -> Result<(), Refusal> {
        if installed.is_paused {
            self.attach_again(installed)?;
            installed.is_paused = false;
        }
        Ok(())
    }

    /// Attaches the programs of a probe that is off again. One that this kernel could not run at the start gets the
    /// verdict that it would have had then.
    ///
    /// # Errors
    /// The kernel's refusal; the probe stays off.
    pub fn turn_on(&mut self, installed: &mut Installed) -> Result<(), Refusal> {
        if installed.is_on() {
            return Ok(());
        }
        self.attach_again(installed)?;
        if let Some(status) = installed.when_on.take() {
            installed.status = status;
        }
        Ok(())
    }

    fn attach_again(&mut self, installed: &Installed) -> Result<(), Refusal> {
        self.forget_in_flight(installed)?;
        // Those that note who begins events come by themselves.
        let of_events = installed.rung.events.unwrap_or_default();
        let of_events = of_events.iter().map(|program| program.name);
        self.hold(|loaded| {
            loaded.is_of(installed.probe)
                && of_events.clone().all(|name| name != loaded.program.name)
        })
    }

    /// What began before the probe was turned off may have ended since, and be taken for something else.
    fn forget_in_flight(&mut self, installed: &Installed) -> Result<(), Refusal> {
        for name in installed.probe.in_flight {
            let words = self.ebpf.map_mut(name).map(Array::<_, u64>::try_from);
            if let Some(Ok(mut words)) = words {
                let mut all = 0..words.len();
                let outcome = all.try_for_each(|word| words.set(word, 0, 0));
                outcome.map_err(|error| map_error(&chain(&error)))?;
            }
        }
        let fallback = installed.probe.fallback.as_ref();
        let fallback = fallback.filter(|_| installed.fallback_tried);
        let tables = installed.rung.variants.iter().filter_map(|variant| {
            let is_loaded = self.is_loaded(variant.programs);
            variant.table.filter(|_| is_loaded)
        });
        let tables: Vec<_> = tables
            .chain(fallback.map(|fallback| fallback.table))
            .collect();
        for table in tables {
            self.new_table(table)?;
        }
        Ok(())
    }

    fn is_loaded(&self, programs: &[Program]) -> bool {
        programs.iter().all(|program| {
            let mut loaded = self.loaded.iter();
            loaded.any(|loaded| loaded.program.name == program.name)
        })
    }

    fn cgroup_events(&mut self, ladder: Ladder) -> Result<cgroup::Events, Status> {
        let (status, rung) = ladder.status(cgroup::NAME);
        if !status.verdict.is_up() {
            return Err(status);
        }
        let events = self.ebpf.take_map("cgroup_events").map(RingBuf::try_from);
        if let Some(Ok(events)) = events {
            return Ok(cgroup::Events::new(events, status));
        }
        for variant in rung.variants {
            self.unload(variant.programs);
        }
        let why = Refusal {
            verdict: Verdict::Failed,
            reason: Reason::MapError,
            detail: "the ring of cgroup events cannot be mapped".to_owned(),
        };
        let hook = rung.hook;
        Err(Status::refused(cgroup::NAME, &[PassedOver { hook, why }]))
    }

    /// Attaches a probe's second hook and gives it its table. The verdict becomes `degraded`, and
    /// says so beside what it said before. Returns the table's name and memory in bytes.
    pub fn attach_fallback(&mut self, installed: &mut Installed) -> Option<(String, u64)> {
        let fallback = installed.probe.fallback.as_ref()?;
        installed.fallback_tried = true;
        let outcome = self.fallback(fallback, installed.rung.fallback);
        let status = &mut installed.status;
        match outcome {
            Ok(memory) => {
                status.degrade(fallback.reason, fallback.detail);
                memory
            }
            Err(refusal) => {
                let detail = format!(
                    "{}; and they are not timed: {}",
                    fallback.detail, refusal.detail
                );
                status.degrade(fallback.reason, &detail);
                None
            }
        }
    }

    /// Attaches a probe's second hook, if it has one, before anything calls for it: a stream's times are those of the
    /// hook, once [`crate::Cells::call_for_second`] has told the first. The verdict stays what it is.
    ///
    /// # Errors
    /// The kernel's refusal: times are then those that the probe's first hook tells.
    pub fn attach_second(&mut self, installed: &mut Installed) -> Result<(), Refusal> {
        let Some(fallback) = &installed.probe.fallback else {
            return Ok(());
        };
        installed.fallback_tried = true;
        self.fallback(fallback, installed.rung.fallback).map(drop)
    }

    fn fallback(
        &mut self,
        fallback: &Fallback,
        programs: &'static [Program],
    ) -> Result<Option<(String, u64)>, Refusal> {
        let memory = self.new_table(fallback.table)?;
        self.attach_first(programs)?;
        Ok(memory)
    }

    /// Attaches the first of these programs that the kernel takes.
    fn attach_first(&mut self, programs: &'static [Program]) -> Result<(), Refusal> {
        let btf = programs
            .iter()
            .any(|program| matches!(program.hook, Hook::TpBtf(_)))
            .then(Btf::from_sys_fs)
            .transpose()
            .map_err(|error| map_error(&chain(&error)))?;
        let mut outcome = Err(map_error(&"there is no program for it"));
        for program in programs.chunks(1) {
            outcome = self.attach_all(btf.as_ref(), program);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Makes the rings of events, one of so many bytes for each CPU (a power of two, and a page at least), and the table
    /// of who began what is under way. Returns their names and memory in bytes as well. They stay as long as the
    /// programs do.
    ///
    /// # Errors
    /// When the kernel gives no memory for them.
    pub fn open_events(
        &mut self,
        ring_bytes: u32,
    ) -> Result<(Events, Vec<(String, u64)>), Refusal> {
        // First, for it alone can be replaced: rings are held by their slots.
        let origins = if self.streams {
            EVENT_STREAM_ORIGINS
        } else {
            EVENT_ORIGINS
        };
        let origins = self.new_table(&origins)?;
        let ring_bytes = ring_bytes.max(page_bytes());
        let ring = || {
            let kind = bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
            aya_obj::Map::new_from_params(kind, 0, 0, ring_bytes, 0)
        };
        let cpus = possible_cpus().map_err(|error| map_error(&chain(&error)))?;
        let mut rings = Vec::new();
        let mut bytes = 0;
        for cpu in 0..cpus {
            let ring = self.fill_slot("events", cpu, ring())?;
            bytes += map_memory_bytes(ring.fd().as_fd()).unwrap_or(0);
            let ring = RingBuf::try_from(Map::RingBuf(ring));
            rings.push(ring.map_err(|error| map_error(&chain(&error)))?);
        }
        let mut memory = vec![("events_rings".to_owned(), bytes)];
        memory.extend(origins);
        Ok((Events::new(rings, ring_bytes), memory))
    }

    /// Makes the table of cgroups that a stream by cgroup has the events of: none at first.
    ///
    /// # Errors
    /// When the kernel gives no memory for it.
    pub fn stream_cgroups(&mut self) -> Result<StreamCgroups, Refusal> {
        let (table, _) = self.make_table(EVENT_CGROUPS)?;
        let table = HashMap::try_from(Map::HashMap(table));
        let table = table.map_err(|error| map_error(&chain(&error)))?;
        Ok(StreamCgroups(table))
    }

    /// Makes the table of the connections that are followed to their close.
    ///
    /// # Errors
    /// When the kernel gives no memory for it.
    pub fn open_closed(&mut self) -> Result<(), Refusal> {
        self.make_table(tcp::LIVES).map(drop)
    }

    /// Attaches what notes who begins the events of a probe, if its hook needs that.
    ///
    /// # Errors
    /// The kernel's refusal: its events have no process.
    pub fn attach_origins(&mut self, installed: &Installed) -> Result<(), Refusal> {
        let programs = installed.rung.events.unwrap_or_default();
        if let Some(one) = programs.chunks(1).find(|one| self.is_loaded(one)) {
            return self.hold(|loaded| loaded.program.name == one[0].name && loaded.link.is_none());
        }
        if programs.is_empty() {
            return Ok(());
        }
        self.attach_first(programs)
    }

    /// Takes them away from their hooks.
    pub fn detach_origins(&mut self, installed: &Installed) {
        let programs = installed.rung.events.unwrap_or_default();
        for loaded in &mut self.loaded {
            if programs
                .iter()
                .any(|program| program.name == loaded.program.name)
            {
                loaded.link = None;
            }
        }
    }

    /// Puts a new map into a slot of an array of maps. The kernel holds it as long as the slot does.
    fn fill_slot(&mut self, array: &str, slot: u32, map: aya_obj::Map) -> Result<MapData, Refusal> {
        let map = MapData::create(map, array, None).map_err(|error| map_error(&chain(&error)))?;
        let mut slots: ArrayOfMaps<&mut MapData, MapData> = self
            .ebpf
            .map_mut(array)
            .and_then(|map| map.try_into().ok())
            .ok_or_else(|| map_error(&format!("the eBPF object has no map {array}")))?;
        slots
            .set(slot, &map, 0)
            .map_err(|error| map_error(&chain(&error)))?;
        Ok(map)
    }

    /// Fills a table's slot with an empty one. Returns its name and memory in bytes.
    fn new_table(&mut self, table: &Table) -> Result<Option<(String, u64)>, Refusal> {
        self.make_table(table).map(|(_, memory)| memory)
    }

    fn make_table(&mut self, table: &Table) -> Result<(MapData, Option<(String, u64)>), Refusal> {
        let (kind, flags) = match table.kind {
            TableKind::Hash => (bpf_map_type::BPF_MAP_TYPE_HASH, 0),
            TableKind::LruHash => (bpf_map_type::BPF_MAP_TYPE_LRU_HASH, 0),
            // Without it an array must have as many entries as the object says.
            TableKind::Array => (bpf_map_type::BPF_MAP_TYPE_ARRAY, BPF_F_INNER_MAP),
        };
        let (key, value) = (table.key_bytes, table.value_bytes);
        let map = aya_obj::Map::new_from_params(kind as u32, key, value, table.entries, flags);
        let map = self.fill_slot(table.slot, 0, map)?;
        let bytes = map_memory_bytes(map.fd().as_fd());
        let memory = bytes.map(|bytes| (format!("{}_table", table.slot), bytes));
        Ok((map, memory))
    }

    /// Of each attached program its instructions, and how many the verifier looked at.
    #[cfg(test)]
    pub(crate) fn instructions(&self) -> Vec<(&'static str, u32, u32)> {
        let programs = self.loaded.iter().map(|loaded| loaded.program.name);
        programs
            .map(|name| {
                let info = self.ebpf.program(name).unwrap().info().unwrap();
                // Of 8 bytes each.
                let translated = info.size_translated().unwrap() / 8;
                (name, translated, info.verified_instruction_count().unwrap())
            })
            .collect()
    }

    /// Run counts of the attached programs: zero while the kernel's statistics are off.
    #[must_use]
    pub fn run_stats(&self) -> Vec<RunStats> {
        let names = self.loaded.iter().map(|loaded| loaded.program.name);
        names
            .filter_map(|name| {
                let fd = self.ebpf.program(name)?.fd().ok()?.as_fd().as_raw_fd();
                run_stats_of(name, fd)
            })
            .collect()
    }
}

/// What `fdinfo` of a program's descriptor says of its runs.
pub(crate) fn run_stats_of(name: &str, fd: i32) -> Option<RunStats> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
    let value = |key: &str| -> Option<u64> {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    };
    Some(RunStats {
        program: name.to_owned(),
        runs: value("run_cnt:")?,
        run_time_ns: value("run_time_ns:")?,
        misses: value("recursion_misses:").unwrap_or(0),
    })
}

fn map_error(error: &dyn fmt::Display) -> Refusal {
    Refusal {
        verdict: Verdict::Failed,
        reason: Reason::MapError,
        detail: error.to_string(),
    }
}

pub(crate) fn page_bytes() -> u32 {
    // SAFETY: takes no pointer, and cannot fail for this name.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(bytes).unwrap_or(EVENT_RING_BYTES)
}

/// CPUs that there may ever be, as the kernel numbers them.
pub(crate) fn possible_cpus() -> Result<u32, LoadError> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(path, error)| LoadError::Object(format!("{path} cannot be read: {error}")))?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX))
}

fn object_error(error: impl std::error::Error) -> LoadError {
    LoadError::Object(chain(&error))
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
        | Map::LruHashMap(data)
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

/// On the running kernel: needs root, and room for programs.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        PROBES,
        running_kernel::{SERIES_MAX, kernel},
    };

    /// Words of slots that are not 0.
    fn in_slots(programs: &mut Programs) -> usize {
        let slots = programs.ebpf.map_mut("tcp_started_slots").unwrap();
        let slots = Array::<_, u64>::try_from(slots).unwrap();
        let words = slots.iter();
        words.filter(|word| *word.as_ref().unwrap() != 0).count()
    }

    /// The table of connects, where there is one.
    fn connects(programs: &mut Programs) -> Option<HashMap<MapData, u64, [u64; 2]>> {
        let slots = programs.ebpf.map_mut("tcp_started_hash").unwrap();
        let slots: ArrayOfMaps<_, HashMap<_, _, _>> = slots.try_into().unwrap();
        slots.get(&0, 0).ok()
    }

    /// As if all of it had begun before the probes were turned off.
    #[test]
    fn what_began_before_a_probe_was_off_is_forgotten() {
        // With slots, and with a table in their place.
        for variant in [0, 1] {
            let name = "what_began_before_a_probe_was_off_is_forgotten";
            let Some(mut kernel) = kernel(name, variant) else {
                return;
            };
            let Kernel {
                probes, programs, ..
            } = &mut kernel;
            for installed in probes.iter_mut() {
                programs.turn_off(installed);
                assert_eq!(installed.status.verdict, Verdict::Off);
                assert!(!installed.is_on());
            }
            let slots = programs.ebpf.map_mut("tcp_started_slots").unwrap();
            let mut slots = Array::<_, u64>::try_from(slots).unwrap();
            for word in 0..slots.len() {
                slots.set(word, 7, 0).unwrap();
            }
            let words = slots.len() as usize;
            assert_eq!(in_slots(programs), words);
            let mut table = connects(programs);
            assert_eq!(table.is_some(), variant == 1);
            if let Some(table) = &mut table {
                table.insert(1, [2, 3], 0).unwrap();
                assert_eq!(connects(programs).unwrap().get(&1, 0).unwrap(), [2, 3]);
            }
            for installed in probes.iter_mut() {
                let (was_up, hook) = (
                    installed.status_when_on().verdict.is_up(),
                    installed.status.hook,
                );
                programs.turn_on(installed).unwrap();
                assert_eq!(installed.status.verdict.is_up(), was_up);
                assert_eq!(installed.status.hook, hook);
                assert!(installed.is_on());
            }
            // Others connect meanwhile, one at a time.
            assert!(in_slots(programs) < words / 2);
            let table = connects(programs);
            assert_eq!(table.is_some(), variant == 1);
            assert!(table.is_none_or(|table| table.get(&1, 0).is_err()));
        }
    }

    /// The verifier looks at what filters need only where they are set.
    #[test]
    fn each_variant_and_hook_takes_every_filter() {
        let name = "each_variant_and_hook_takes_every_filter";
        if kernel(name, 0).is_none() {
            return;
        }
        let stream = StreamFilter {
            pid: Some(1),
            port: Some(1),
            device: Some(1),
            by_cgroup: true,
            closed: false,
        };
        let [tcp, disk] = [PROBES[0], PROBES[1]];
        for (probe, hook, variant, closed) in [
            (tcp, "tp_btf", 0, false),
            (tcp, "tp_btf", 1, false),
            (tcp, "tp_btf", 0, true),
            (tcp, "tp_btf", 1, true),
            (disk, "tp_btf", 0, false),
            (disk, "raw_tp", 0, false),
        ] {
            let stream = StreamFilter { closed, ..stream };
            let request = Request {
                probes: &[(probe, Some(hook))],
                off: &[],
                series_max: SERIES_MAX,
                io_hierarchy: 0,
                task_hierarchy: None,
                btf: None,
                stream: Some(&stream),
            };
            let (mut kernel, _) = attach_from(&request, variant).unwrap();
            let Kernel {
                probes, programs, ..
            } = &mut kernel;
            assert!(probes[0].status.verdict.is_up(), "{:?}", probes[0].status);
            programs.open_events(1 << 18).unwrap();
            programs.open_closed().unwrap();
            programs.attach_origins(&probes[0]).unwrap();
            programs.attach_second(&mut probes[0]).unwrap();
            let mut cgroups = programs.stream_cgroups().unwrap();
            cgroups
                .add(crate::Workload {
                    hierarchy: 0,
                    cgroup_id: 1,
                })
                .unwrap();
        }
    }
}
