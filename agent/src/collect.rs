//! Reads the kernel's cells and keeps the totals of every series.
//!
//! A steady collection makes no syscall per series: it reads mapped memory, and walks the index
//! only after the kernel side has inserted something.

mod exemplars;
mod gpu;
pub(crate) mod recent;

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use probes::{
    BUCKETS, Cell, Cells, Histogram, Installed, Kernel, Metric, MetricKind, OwnCounter, Programs,
    Refusal, Sample, Series, SeriesError, SeriesKey, SeriesTable, Status, Verdict, Workload,
    gpu::{Gpu, GpuError},
};

pub(crate) use self::exemplars::{Exemplar, Exemplars, OpenError};
use self::{
    gpu::{Clock, ProcessTotals, Renames},
    recent::{Gain, Recent},
};
use crate::{
    config::Config,
    enrich::{
        device::Devices,
        names::{Certainty, Names, Owner},
    },
    log,
    overhead::Step,
};

/// Stands for a hierarchy in the keys of what was left behind; no real one has this number.
const REMAINDER: u16 = u16::MAX;

/// How long removed cells rest before they are given out again. A program that still holds a
/// cell's number is done within microseconds; it cannot sleep.
const QUARANTINE: Duration = Duration::from_millis(20);

/// How often names are looked up anew at most while nobody scrapes. It takes some 4 us for each cgroup,
/// and where pods come and go, the API server has news many times a second.
const RENAME_INTERVAL: Duration = Duration::from_millis(500);

/// How often they are without news: a runtime's file may have come late.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// How often series that are gone are looked through for those that have stayed long enough.
const FORGET_INTERVAL: Duration = Duration::from_millis(500);

/// How often devices are looked up again, to notice those that are gone.
const DEVICE_CHECK: Duration = Duration::from_secs(10);

/// What a histogram has counted since its series began.
#[derive(Debug, Clone)]
pub(crate) struct Totals {
    pub(crate) sum_ns: u64,
    pub(crate) buckets: [u64; BUCKETS],
}

impl Default for Totals {
    fn default() -> Self {
        Self {
            sum_ns: 0,
            buckets: [0; BUCKETS],
        }
    }
}

impl Totals {
    /// Events in all buckets.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The duration in seconds below which a share of the events lies; `None` without events.
    /// Between the edges of a bucket events are taken to lie evenly on a logarithmic scale, which
    /// is off by 10 % at most.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        #[allow(clippy::cast_precision_loss)] // a share of 2^53 events is exact enough
        let (count, as_f64) = (self.count(), |events: u64| events as f64);
        if count == 0 {
            return None;
        }
        let rank = share * as_f64(count);
        let mut below = 0.0;
        for (bucket, events) in self.buckets.iter().enumerate() {
            let events = as_f64(*events);
            if events > 0.0 && below + events >= rank {
                let upper = probes::bucket_edge_seconds(bucket.min(BUCKETS - 2));
                // Neither end of the scale has an edge beyond it.
                if bucket == 0 || bucket == BUCKETS - 1 {
                    return Some(upper);
                }
                let lower = probes::bucket_edge_seconds(bucket - 1);
                let part = ((rank - below) / events).clamp(0.0, 1.0);
                return Some(lower * (upper / lower).powf(part));
            }
            below += events;
        }
        None
    }

    /// What came since an earlier reading.
    pub(crate) fn since(&self, earlier: &Totals) -> Totals {
        let mut delta = self.clone();
        delta.sum_ns = delta.sum_ns.wrapping_sub(earlier.sum_ns);
        for (total, earlier) in delta.buckets.iter_mut().zip(&earlier.buckets) {
            *total -= earlier;
        }
        delta
    }

    /// Becomes what came between two readings of a cell. Its words wrap.
    fn between(&mut self, last: &Histogram, now: &Histogram) {
        self.sum_ns = now.sum.wrapping_sub(last.sum);
        let readings = now.buckets.iter().zip(&last.buckets);
        for (delta, (now, last)) in self.buckets.iter_mut().zip(readings) {
            *delta = u64::from(now.wrapping_sub(*last));
        }
    }

    fn add(&mut self, delta: &Totals) {
        self.sum_ns = self.sum_ns.wrapping_add(delta.sum_ns);
        for (total, delta) in self.buckets.iter_mut().zip(&delta.buckets) {
            *total += delta;
        }
    }
}

/// What a sample has come to.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Histogram(Box<Totals>),
    Counter(u64),
    /// A counter of time, in nanoseconds.
    CounterNs(u64),
    /// What is there now.
    Gauge(u64),
}

impl Value {
    fn of(kind: MetricKind) -> Self {
        match kind {
            MetricKind::Histogram => Self::Histogram(Box::default()),
            MetricKind::Counter => Self::Counter(0),
            MetricKind::CounterSeconds => Self::CounterNs(0),
            MetricKind::Gauge => Self::Gauge(0),
        }
    }

    /// Nothing, of the same kind.
    fn zero(&self) -> Self {
        match self {
            Self::Histogram(_) => Self::Histogram(Box::default()),
            Self::Counter(_) => Self::Counter(0),
            Self::CounterNs(_) => Self::CounterNs(0),
            Self::Gauge(_) => Self::Gauge(0),
        }
    }

    pub(crate) fn is_zero(&self) -> bool {
        match self {
            Self::Histogram(totals) => totals.count() == 0,
            Self::Counter(value) | Self::CounterNs(value) | Self::Gauge(value) => *value == 0,
        }
    }

    fn add(&mut self, more: &Value) {
        match (self, more) {
            (Self::Histogram(totals), Self::Histogram(more)) => totals.add(more),
            (Self::Counter(total), Self::Counter(more))
            | (Self::CounterNs(total), Self::CounterNs(more))
            | (Self::Gauge(total), Self::Gauge(more)) => *total += more,
            // Samples of the same metric are of one kind.
            _ => debug_assert!(false, "values of two kinds do not add up"),
        }
    }
}

/// Whose a series is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Labels {
    /// The workload.
    pub(crate) owner: Arc<Owner>,
    /// The command name of the process, where the probe tells processes apart.
    pub(crate) process: Option<String>,
    /// The device's name, where the probe has devices.
    pub(crate) device: Option<String>,
}

/// A value as it is shown.
#[derive(Debug)]
pub(crate) struct Shown<'a> {
    /// Its workload.
    pub(crate) labels: &'a Labels,
    /// Its further labels.
    pub(crate) own: Vec<(&'static str, &'a str)>,
    /// What it has come to.
    pub(crate) value: Cow<'a, Value>,
    /// A moment at which it was still nothing: when the agent last looked before it was there.
    pub(crate) begun: SystemTime,
    /// Events that it has counted, of a histogram.
    pub(crate) exemplars: Vec<&'a Exemplar>,
}

/// A value as the views see it, with what it has gained lately.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) metric: &'static Metric,
    pub(crate) labels: &'a Labels,
    /// Its further labels.
    pub(crate) own: &'a [(&'static str, &'a str)],
    pub(crate) value: &'a Value,
    /// Since the running step began.
    pub(crate) now: &'a [Gain],
    /// In the step before.
    pub(crate) last: &'a [Gain],
    /// Living processes whose value it is, where the probe tells processes apart.
    pub(crate) processes: u32,
    /// Whether its workload is there.
    pub(crate) lives: bool,
}

/// A single event that was slow.
#[derive(Debug)]
pub(crate) struct SlowEvent<'a> {
    /// What counts it.
    pub(crate) metric: &'static Metric,
    pub(crate) labels: &'a Labels,
    /// Its further labels.
    pub(crate) own: &'a [(&'static str, &'a str)],
    pub(crate) exemplar: &'a Exemplar,
}

/// A series and its values.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) probe: usize,
    pub(crate) labels: Labels,
    pub(crate) samples: Vec<(Sample, Value)>,
    recent: Recent,
    series: Series,
    /// How much of its owner is known.
    certainty: Certainty,
    /// Whether the device had a name; one that never had cannot be missed.
    device_known: bool,
    life: Life,
    /// When it was not there yet: the collection before the one that found it.
    begun: SystemTime,
    /// Whether anybody has seen it under its labels.
    shown: bool,
}

impl Tracked {
    /// Begins anew under its new labels. What it has counted so far stays with those that it had, which
    /// others may share: no sum falls.
    fn leave(&mut self, owner: Arc<Owner>, now: Instant, begun: SystemTime) -> Tracked {
        let zeros = self
            .samples
            .iter()
            .map(|(sample, value)| (sample.clone(), value.zero()));
        let zeros = zeros.collect();
        Tracked {
            probe: self.probe,
            labels: Labels {
                owner,
                ..self.labels.clone()
            },
            samples: std::mem::replace(&mut self.samples, zeros),
            recent: Recent::default(),
            series: self.series,
            certainty: Certainty::Full,
            device_known: false,
            life: Life::Retained(now),
            begun: std::mem::replace(&mut self.begun, begun),
            shown: self.shown,
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Life {
    /// In the index.
    Live,
    /// Out of the index; its cells rest.
    Resting(Instant),
    /// Its cells are another's; its last values are still shown.
    Retained(Instant),
}

/// What came between two readings of a cell.
enum Gained<'a> {
    Durations(&'a Totals),
    Count(u64),
}

/// The last reading of every cell. A cell is never set to zero: a new owner starts from here.
#[derive(Debug)]
struct Readings {
    cells: Cells,
    /// Up to the highest cell that was ever read: a ceiling may be far above what is used.
    histograms: Vec<Histogram>,
    /// Of sums that were read alone, likewise.
    sums: Vec<u64>,
    counters: Vec<u64>,
    scratch: Histogram,
    delta: Totals,
}

impl Readings {
    fn new(cells: Cells) -> Self {
        Self {
            histograms: Vec::new(),
            sums: Vec::new(),
            counters: vec![0; cells.counter_count as usize],
            cells,
            scratch: Histogram::default(),
            delta: Totals::default(),
        }
    }

    /// What a counter has gained since it was last read. Both words wrap.
    fn counter(&mut self, cell: u16) -> u64 {
        let now = self.cells.counter(cell);
        let last = std::mem::replace(&mut self.counters[usize::from(cell)], now);
        now.wrapping_sub(last)
    }

    /// What the sum of a histogram has gained since it was last read alone.
    fn sum(&mut self, cell: u16) -> u64 {
        let now = self.cells.sum(cell);
        let place = usize::from(cell);
        if place >= self.sums.len() {
            self.sums.resize(place + 1, 0);
        }
        now.wrapping_sub(std::mem::replace(&mut self.sums[place], now))
    }

    /// Leaves the cells of a series to their next owner, who counts from here, whichever words it reads.
    fn leave(&mut self, series: &Series) {
        for cell in series.histograms() {
            self.histogram(cell);
            self.sum(cell);
            self.counter(cell);
        }
        if let Some(cell) = series.counter() {
            self.counter(cell);
        }
    }

    fn histogram(&mut self, cell: u16) -> &mut Totals {
        self.cells.read_histogram(cell, &mut self.scratch);
        let place = usize::from(cell);
        if place >= self.histograms.len() {
            self.histograms.resize(place + 1, Histogram::default());
        }
        let last = &mut self.histograms[place];
        self.delta.between(last, &self.scratch);
        std::mem::swap(last, &mut self.scratch);
        &mut self.delta
    }

    /// What a sample's cell has gained since it was last read.
    fn gained(&mut self, cell: Cell) -> Gained<'_> {
        match cell {
            Cell::Counter(cell) => Gained::Count(self.counter(cell)),
            Cell::Sum(cell) => Gained::Count(self.sum(cell)),
            Cell::Histogram(cell) => Gained::Durations(self.histogram(cell)),
            Cell::Whole { whole, part } => {
                let ns = self.counter(whole).wrapping_add(self.sum(part));
                let delta = self.histogram(whole);
                delta.sum_ns = ns;
                Gained::Durations(delta)
            }
        }
    }

    /// Reads the cells of some samples into their values, into the sums over all series, and into what came lately.
    fn update(&mut self, samples: &mut [(Sample, Value)], sums: &mut [Value], recent: &mut Recent) {
        for (number, (sample, value)) in samples.iter_mut().enumerate() {
            match (self.gained(sample.cell), value, &mut sums[sample.metric]) {
                (Gained::Durations(delta), Value::Histogram(totals), Value::Histogram(sum)) => {
                    totals.add(delta);
                    sum.add(delta);
                    recent.add_buckets(number, &delta.buckets);
                }
                (Gained::Count(delta), Value::Counter(total), Value::Counter(sum)) => {
                    *total += delta;
                    *sum += delta;
                    recent.add(number, 0, delta);
                }
                // A probe's samples are of its metrics' kinds: its own tests hold it to that.
                _ => debug_assert!(false, "a sample of another kind than its metric"),
            }
        }
    }
}

/// All series, live and lately gone.
#[derive(Debug)]
pub(crate) struct Collector {
    readings: Readings,
    table: Table,
    inserts: u64,
    probes: Vec<Probe>,
    series: BTreeMap<SeriesKey, Tracked>,
    /// Cells that rest though their series lives, on others.
    resting: Vec<(Instant, Series)>,
    names: Arc<Names>,
    /// Of the names that the labels were made of, and since when they are.
    names_version: u64,
    renamed: Instant,
    /// Of labels that were left behind, the next one's number.
    remainders: u64,
    /// Before any program was attached.
    started: SystemTime,
    /// When the last collection that found all there was began.
    looked: SystemTime,
    forgotten: Instant,
    devices: Devices,
    devices_checked: Instant,
    retention: Duration,
    retained_max: usize,
    evicted: u64,
    programs: Programs,
    map_memory_bytes: Vec<(String, u64)>,
    cgroup_events_lost: u16,
    statuses: Arc<Mutex<Vec<Status>>>,
    gpu: Option<GpuProcesses>,
    exemplars: Exemplars,
    /// Whether other labels are asked for than those that series have.
    relabels: bool,
    /// Whether anybody is told since when series count.
    dated: bool,
}

/// The processes of the gpu probe. They have no cells in the pools.
#[derive(Debug)]
struct GpuProcesses {
    /// Its place among the probes.
    probe: usize,
    gpu: Arc<Gpu>,
    totals: ProcessTotals,
}

/// A probe cannot be turned on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{probe} cannot be turned on: {detail}; a restart may find another way")]
pub(crate) struct TurnOnError {
    probe: &'static str,
    detail: String,
}

/// A collection is incomplete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CollectError {
    /// See there.
    #[error(transparent)]
    Series(#[from] SeriesError),
    /// See there.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

struct Table(SeriesTable);

impl Table {
    /// Series that only count are rare, and never looked for in the slots.
    fn publish(&mut self, key: &SeriesKey, series: &Series) -> Result<(), SeriesError> {
        if series.histograms().next().is_some() {
            self.0.publish(key, series)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SeriesTable")
    }
}

/// A probe, its `other` series, and its sums over all series there ever were.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) installed: Installed,
    pub(crate) other: Vec<(Sample, Value)>,
    recent: Recent,
    /// One value a metric.
    pub(crate) sums: Vec<Value>,
}

/// Why totals are brought up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// They are shown, under the newest names.
    Scrape,
    /// They must not fall behind.
    Upkeep,
}

/// What a collection found to be done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Series wait for their cells to be freed: collect again soon.
    pub(crate) unfinished: bool,
    /// Cgroups without a name: walk cgroupfs.
    pub(crate) unknown: Vec<Workload>,
}

impl Collector {
    /// `gpu` is there if the gpu probe is among those of `kernel`; `started` is a moment before its programs were
    /// attached.
    pub(crate) fn new(
        started: SystemTime,
        kernel: Kernel,
        exemplars: Exemplars,
        gpu: Option<Arc<Gpu>>,
        names: Arc<Names>,
        config: &Config,
    ) -> Self {
        let statuses = kernel
            .probes
            .iter()
            .map(|installed| installed.status.clone())
            .collect();
        let statuses = Arc::new(Mutex::new(statuses));
        let probes: Vec<Probe> = kernel
            .probes
            .into_iter()
            .map(|installed| Probe {
                other: fresh(installed.other()),
                recent: Recent::default(),
                sums: installed
                    .probe
                    .metrics
                    .iter()
                    .map(|metric| Value::of(metric.kind))
                    .collect(),
                installed,
            })
            .collect();
        let mut collector = Self {
            // Room for a burst of short-lived workloads, at most some 4 MB with default limits.
            retained_max: (4 * kernel.series.limit as usize).max(2048),
            readings: Readings::new(kernel.cells),
            table: Table(kernel.series),
            inserts: 0,
            gpu: gpu.and_then(|gpu| {
                let mut probes = probes.iter();
                Some(GpuProcesses {
                    probe: probes.position(|probe| probe.installed.probe.deferred.is_some())?,
                    gpu,
                    totals: ProcessTotals::default(),
                })
            }),
            exemplars,
            probes,
            series: BTreeMap::new(),
            resting: Vec::new(),
            names_version: names.version(),
            renamed: Instant::now(),
            remainders: 0,
            started,
            looked: started,
            forgotten: Instant::now(),
            names,
            devices: Devices::new(config.sysfs.clone()),
            devices_checked: Instant::now(),
            retention: config.series_retention,
            evicted: 0,
            programs: kernel.programs,
            map_memory_bytes: kernel.map_memory_bytes,
            cgroup_events_lost: kernel.cgroup_events_lost,
            statuses,
            relabels: false,
            dated: is_dated(config),
        };
        collector.choose_thresholds(Instant::now());
        collector
    }

    /// Attaches those of these probes that are off. Gives their names.
    ///
    /// # Errors
    /// The first that the kernel refuses; then all are as before.
    pub(crate) fn turn_on(&mut self, wanted: &[String]) -> Result<Vec<&'static str>, TurnOnError> {
        let mut turned = Vec::new();
        let mut refused = None;
        for Probe { installed, .. } in &mut self.probes {
            let probe = installed.probe.name;
            if installed.is_on() || !wanted.iter().any(|name| name == probe) {
                continue;
            }
            if let Err(refusal) = self.programs.turn_on(installed) {
                let detail = refusal.detail;
                refused = Some(TurnOnError { probe, detail });
                break;
            }
            if installed.probe.deferred.is_some()
                && let Some(GpuProcesses { gpu, totals, .. }) = &mut self.gpu
            {
                gpu.turn(true);
                totals.resume(Instant::now());
            }
            turned.push(probe);
        }
        match refused {
            Some(error) => {
                self.turn_off(&turned);
                Err(error)
            }
            None => Ok(turned),
        }
    }

    /// Detaches these probes; what they have counted stays.
    pub(crate) fn turn_off(&mut self, probes: &[&str]) {
        for Probe { installed, .. } in &mut self.probes {
            if !probes.contains(&installed.probe.name) {
                continue;
            }
            self.programs.turn_off(installed);
            if installed.probe.deferred.is_some()
                && let Some(GpuProcesses { gpu, .. }) = &self.gpu
            {
                gpu.turn(false);
            }
        }
    }

    /// Takes a probe away from its hooks for a while.
    pub(crate) fn pause(&mut self, probe: usize) {
        let installed = &mut self.probes[probe].installed;
        self.programs.pause(installed);
        if let Some(gpu) = self.gpu_of(probe) {
            gpu.gpu.turn(false);
        }
    }

    /// Attaches a probe that was paused again.
    ///
    /// # Errors
    /// The kernel's refusal; it stays paused.
    pub(crate) fn resume(&mut self, probe: usize) -> Result<(), Refusal> {
        let installed = &mut self.probes[probe].installed;
        if installed.is_running() {
            return Ok(());
        }
        self.programs.resume(installed)?;
        if let Some(gpu) = self.gpu.as_mut().filter(|gpu| gpu.probe == probe) {
            gpu.gpu.turn(true);
            gpu.totals.resume(Instant::now());
        }
        Ok(())
    }

    /// Sheds so much of a probe, or nothing any more, and says so in its verdict. One that is to be sampled is left as it
    /// is: see [`Self::pause`] and [`Self::resume`].
    ///
    /// # Errors
    /// The kernel's refusal to attach it again; it stays as it was.
    pub(crate) fn hold_back(
        &mut self,
        probe: usize,
        step: Option<Step>,
        detail: &str,
    ) -> Result<(), Refusal> {
        match step {
            Some(Step::Off) => self.pause(probe),
            Some(Step::Sampling) => {}
            Some(Step::Exemplars) | None => self.resume(probe)?,
        }
        let installed = &mut self.probes[probe].installed;
        match step {
            None => installed.let_go(),
            Some(Step::Exemplars) => installed.hold_back(None, detail),
            Some(Step::Sampling) => installed.hold_back(Some(Verdict::Degraded), detail),
            Some(Step::Off) => installed.hold_back(Some(Verdict::Off), detail),
        }
        self.exemplars.hold(probe, installed, &mut self.programs);
        publish(&self.statuses, &installed.status);
        self.choose_thresholds(Instant::now());
        Ok(())
    }

    /// Whether there are exemplars of a probe that could be shed.
    pub(crate) fn has_exemplars(&self, probe: usize) -> bool {
        self.exemplars.are_on(probe)
    }

    /// Events of a probe, all of its series together.
    pub(crate) fn events(&self, probe: usize) -> u64 {
        let probe = &self.probes[probe];
        let counted = probe.installed.probe.cost.events.iter();
        let counted = counted.map(|metric| match &probe.sums[*metric] {
            Value::Histogram(totals) => totals.count(),
            Value::Counter(count) => *count,
            Value::CounterNs(_) | Value::Gauge(_) => 0,
        });
        counted.sum()
    }

    /// Makes what the exemplars of a new configuration take, of the probes that are on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn open_exemplars(&mut self, config: &Config) -> Result<(), OpenError> {
        let (programs, memory) = (&mut self.programs, &mut self.map_memory_bytes);
        for (place, Probe { installed, .. }) in self.probes.iter().enumerate() {
            let exemplars = &mut self.exemplars;
            exemplars.open(place, config, installed, programs, memory)?;
        }
        Ok(())
    }

    /// Goes on with exemplars by a configuration: the new one, or the old one after a new one could not be.
    pub(crate) fn want_exemplars(&mut self, config: &Config) {
        let installed = self.probes.iter().map(|probe| &probe.installed);
        self.exemplars.want(config, installed, &mut self.programs);
        self.choose_thresholds(Instant::now());
    }

    fn choose_thresholds(&mut self, now: Instant) {
        let cells = &self.readings.cells;
        self.exemplars.choose(now, &self.probes, |probe, slow_ns| {
            cells.send_events(&self.probes[probe].installed, slow_ns);
        });
    }

    /// Goes on by a new configuration, for which there was [`Self::turn_on`] and [`Self::open_exemplars`] already.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        let probes = self.probes.iter().map(|probe| probe.installed.probe.name);
        let unwanted: Vec<_> = probes
            .filter(|name| config.probes.iter().all(|wanted| wanted != name))
            .collect();
        self.turn_off(&unwanted);
        self.want_exemplars(config);
        for Probe { installed, .. } in &mut self.probes {
            if publish(&self.statuses, &installed.status) {
                log::verdict(&installed.status);
            }
        }
        self.dated = is_dated(config);
        self.retention = config.series_retention;
        self.names.retain(config.series_retention);
        self.relabels |= self.names.tell(config.aggregate, &config.pod_labels);
    }

    /// Brings all totals up to date, names new series, and frees the cells of workloads that
    /// are gone.
    ///
    /// # Errors
    /// When the kernel refuses a call on the index; the values read so far stand.
    pub(crate) fn collect(
        &mut self,
        now: Instant,
        occasion: Occasion,
    ) -> Result<Outcome, CollectError> {
        let mut outcome = Outcome::default();
        let looked = SystemTime::now();
        // Read before the names are: what comes in meanwhile is taken in by the next collection.
        let version = self.names.version();
        let asked = now.duration_since(self.renamed);
        let soon = occasion == Occasion::Scrape || asked >= RENAME_INTERVAL;
        let due = self.relabels || asked >= ASK_AGAIN || (soon && version != self.names_version);
        let renames = Renames {
            due,
            leave: self.relabels || self.dated || self.names.labels_are_shared(),
            shown: occasion == Occasion::Scrape,
        };
        self.exemplars.take_in(&self.probes);
        let gpu = self.collect_gpu(now, renames, &mut outcome);
        let series = self.collect_series(now, renames, &mut outcome);
        self.exemplars.forget(|key| self.series.contains_key(key));
        self.choose_thresholds(now);
        series?;
        gpu?;
        self.relabels = false;
        if due {
            (self.names_version, self.renamed) = (version, now);
        }
        self.looked = looked;
        Ok(outcome)
    }

    /// Brings the totals of GPU processes up to date, and lets those go that have ended.
    fn collect_gpu(
        &mut self,
        now: Instant,
        renames: Renames,
        outcome: &mut Outcome,
    ) -> Result<(), GpuError> {
        let Some(GpuProcesses { probe, gpu, totals }) = &mut self.gpu else {
            return Ok(());
        };
        let probe = &mut self.probes[*probe];
        let (status, is_on) = (gpu.status(), probe.installed.is_on());
        if is_on && !probe.installed.is_held_back() && !same(&status, &probe.installed.status) {
            log::verdict(&status);
            publish(&self.statuses, &status);
            probe.installed.status = status;
        }
        let mut processes = Vec::new();
        gpu.read(&mut |process| processes.push(process));
        // After the processes: see there.
        self.names.take_in_events();
        let mut look = self.names.look();
        let other = self.names.other();
        let owner = |workload: Option<Workload>| {
            workload.map_or_else(|| other.clone(), |workload| look.owner(workload))
        };
        let clock = Clock {
            now,
            looked: self.looked,
        };
        let rested = totals.take_in(processes, owner, renames, clock, &mut probe.sums, outcome);
        drop(look);
        // A probe that is off sees no process, and those that it saw may live.
        if probe.installed.is_running() {
            self.evicted += totals.forget(now, self.retention, self.retained_max);
        }
        let mut failed = None;
        for process in rested {
            match gpu.recycle(&process) {
                Ok(()) => totals.recycled(&process),
                // Its values are read; only its place stays taken until the next attempt.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn collect_series(
        &mut self,
        now: Instant,
        renames: Renames,
        outcome: &mut Outcome,
    ) -> Result<(), SeriesError> {
        // One series that the kernel refuses is no reason to leave out the others.
        let mut failed = None;
        // Read before the walk: what is inserted meanwhile is found by the next one.
        let inserts = self.table.0.inserts(&self.readings.cells);
        if inserts != self.inserts {
            self.adopt()?;
            self.inserts = inserts;
        }
        if now.duration_since(self.devices_checked) >= DEVICE_CHECK {
            self.devices_checked = now;
            self.devices.forget();
        }
        for probe in &mut self.probes {
            self.readings
                .update(&mut probe.other, &mut probe.sums, &mut probe.recent);
        }
        let mut left = Vec::new();
        let mut look = self.names.look();
        for (key, tracked) in &mut self.series {
            let sums = &mut self.probes[tracked.probe].sums;
            let workload = Workload::from(key);
            if renames.due || tracked.certainty == Certainty::Unknown {
                let named = look.owner(workload);
                let before = Arc::clone(&tracked.labels.owner);
                named.improve(&mut tracked.labels.owner, &mut tracked.certainty);
                if renames.leave && tracked.shown && before != tracked.labels.owner {
                    left.push((*key, tracked.leave(before, now, self.looked)));
                }
            }
            tracked.shown |= renames.shown;
            match tracked.life {
                Life::Live => {
                    self.readings
                        .update(&mut tracked.samples, sums, &mut tracked.recent);
                    if tracked.certainty == Certainty::Unknown {
                        outcome.unknown.push(workload);
                    }
                    let device_gone =
                        tracked.device_known && self.devices.name(key.device).is_none();
                    // Thousands that went at once: even their paths are forgotten.
                    let forgotten =
                        tracked.certainty > Certainty::Unknown && !look.is_known(workload);
                    if look.is_gone(workload) || forgotten || device_gone {
                        outcome.unfinished = true;
                        match self.table.0.remove(key) {
                            Ok(()) => tracked.life = Life::Resting(now),
                            Err(error) => failed = failed.or(Some(error)),
                        }
                    }
                }
                Life::Resting(since) if now.duration_since(since) >= QUARANTINE => {
                    self.readings
                        .update(&mut tracked.samples, sums, &mut tracked.recent);
                    self.readings.leave(&tracked.series);
                    // Cells that could not be given back are lost; their values are not.
                    tracked.life = Life::Retained(now);
                    if let Err(error) = self.table.0.free(&tracked.series) {
                        failed = failed.or(Some(error));
                    }
                }
                Life::Resting(_) => outcome.unfinished = true,
                Life::Retained(_) => {}
            }
        }
        drop(look);
        for (key, tracked) in left {
            self.exemplars.forget_renamed(&key);
            let key = SeriesKey {
                cgroup_id: self.remainders,
                hierarchy: REMAINDER,
                ..key
            };
            self.remainders += 1;
            self.series.insert(key, tracked);
        }
        if now.duration_since(self.forgotten) >= FORGET_INTERVAL {
            self.forgotten = now;
            self.forget(now);
        }
        failed = failed.or(self.free_rested(now).err());
        outcome.unfinished |= !self.resting.is_empty();
        failed.map_or(Ok(()), Err)
    }

    /// Takes in what the kernel side has inserted since the last walk.
    fn adopt(&mut self) -> Result<(), SeriesError> {
        let mut found = Vec::new();
        self.table.0.walk(|key, series| found.push((key, series)))?;
        // After the walk: see there.
        self.names.take_in_events();
        let mut look = self.names.look();
        for (key, series) in found {
            let Some(index) = self
                .probes
                .iter()
                .position(|probe| probe.installed.probe.number == key.kind >> 4)
            else {
                continue;
            };
            let probe = &mut self.probes[index];
            let samples = (probe.installed.probe.samples)(&key, series);
            if let Some(tracked) = self.series.get_mut(&key) {
                if tracked.series == series && matches!(tracked.life, Life::Live) {
                    continue;
                }
                // The same cells under another serial number: only the slot is new.
                if tracked.series.cells == series.cells && matches!(tracked.life, Life::Live) {
                    tracked.series = series;
                    self.table.publish(&key, &series)?;
                    continue;
                }
                // Back after its removal: the totals go on, and the old cells rest on.
                if let Life::Resting(since) = tracked.life {
                    self.readings.update(
                        &mut tracked.samples,
                        &mut probe.sums,
                        &mut tracked.recent,
                    );
                    self.resting.push((since, tracked.series));
                }
                tracked.series = series;
                tracked.life = Life::Live;
                self.table.publish(&key, &series)?;
                for ((old, _), new) in tracked.samples.iter_mut().zip(samples) {
                    *old = new;
                }
                continue;
            }
            let workload = Workload::from(&key);
            let device_known = self.devices.name(key.device).is_some();
            let device = (key.device != 0).then(|| {
                self.devices.name(key.device).map_or_else(
                    || {
                        let (major, minor) = probes::device_number(key.device);
                        format!("{major}:{minor}")
                    },
                    str::to_owned,
                )
            });
            let named = look.owner(workload);
            let labels = Labels {
                owner: named.owner,
                process: None,
                device,
            };
            self.table.publish(&key, &series)?;
            self.series.insert(
                key,
                Tracked {
                    probe: index,
                    labels,
                    samples: fresh(samples),
                    recent: Recent::default(),
                    series,
                    certainty: named.certainty,
                    device_known,
                    life: Life::Live,
                    begun: self.looked,
                    shown: false,
                },
            );
        }
        Ok(())
    }

    /// Frees the old cells of series that came back before those had rested.
    fn free_rested(&mut self, now: Instant) -> Result<(), SeriesError> {
        let mut failed = None;
        // In the order of their keys, not of time.
        let (rested, resting): (Vec<_>, Vec<_>) = std::mem::take(&mut self.resting)
            .into_iter()
            .partition(|(since, _)| now.duration_since(*since) >= QUARANTINE);
        self.resting = resting;
        for (_, series) in rested {
            // The next owner starts from here.
            self.readings.leave(&series);
            failed = failed.or(self.table.0.free(&series).err());
        }
        failed.map_or(Ok(()), Err)
    }

    /// Drops series that have been gone for long, and the oldest when there are too many.
    fn forget(&mut self, now: Instant) {
        let mut retained: Vec<(Instant, SeriesKey)> = self
            .series
            .iter()
            .filter_map(|(key, tracked)| match tracked.life {
                Life::Retained(since) => Some((since, *key)),
                _ => None,
            })
            .collect();
        retained.sort_unstable();
        let old =
            retained.partition_point(|(since, _)| now.duration_since(*since) >= self.retention);
        let surplus = (retained.len() - old).saturating_sub(self.retained_max);
        self.evicted += surplus as u64;
        let gone: Vec<(SeriesKey, Tracked)> = retained[..old + surplus]
            .iter()
            .filter_map(|(_, key)| self.series.remove_entry(key))
            .collect();
        if !gone.is_empty() {
            self.bequeath(gone);
        }
    }

    /// Adds the values of series that are dropped to those of another with the same labels: a
    /// service that was started again has another cgroup of the same name, and its counters
    /// must not fall.
    fn bequeath(&mut self, gone: Vec<(SeriesKey, Tracked)>) {
        type Name<'a> = (u8, Option<&'a [(&'static str, &'static str)]>, &'a Labels);
        fn name<'a>(key: &SeriesKey, tracked: &'a Tracked) -> Name<'a> {
            // The first sample's labels, not the key's detail: several share a label.
            let sample = tracked.samples.first();
            let labels = sample.map(|(sample, _)| sample.labels.as_slice());
            (key.kind, labels, &tracked.labels)
        }
        let mut heirs: Vec<(Name, SeriesKey)> = self
            .series
            .iter()
            .map(|(key, tracked)| (name(key, tracked), *key))
            .collect();
        heirs.sort_unstable();
        let found: Vec<(SeriesKey, Tracked)> = gone
            .into_iter()
            .filter_map(|(key, tracked)| {
                let wanted = name(&key, &tracked);
                let place = heirs.partition_point(|(name, _)| *name < wanted);
                let (_, heir) = heirs.get(place).filter(|(name, _)| *name == wanted)?;
                Some((*heir, tracked))
            })
            .collect();
        for (heir, tracked) in found {
            let Some(heir) = self.series.get_mut(&heir) else {
                continue;
            };
            for ((_, value), (_, more)) in heir.samples.iter_mut().zip(&tracked.samples) {
                value.add(more);
            }
            heir.begun = heir.begun.min(tracked.begun);
        }
    }

    /// Attaches the second hook of probes whose counter calls for it.
    pub(crate) fn attach_fallbacks(&mut self) {
        for probe in &mut self.probes {
            let called = probe
                .installed
                .fallback_trigger()
                .is_some_and(|cell| self.readings.cells.counter(cell) > 0);
            let installed = &probe.installed;
            let is_free = installed.is_on() && !installed.is_held_back();
            if called && !installed.fallback_tried && is_free {
                let table = self.programs.attach_fallback(&mut probe.installed);
                self.map_memory_bytes.extend(table);
                probes::release_unused_memory();
                publish(&self.statuses, &probe.installed.status);
                tracing::warn!(
                    probe = probe.installed.probe.name,
                    "{}",
                    probe.installed.status.detail
                );
            }
        }
    }

    /// A moment before anything was counted.
    pub(crate) fn started(&self) -> SystemTime {
        self.started
    }

    /// Names for cgroups.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// The probes in their order.
    pub(crate) fn probes(&self) -> &[Probe] {
        &self.probes
    }

    /// What is shown of a probe's metric, each set of labels once, sorted by them. Cgroups of the
    /// same name, one gone and one living, share theirs.
    pub(crate) fn shown(&self, probe: usize, metric: usize) -> Vec<Shown<'_>> {
        let mut samples = match self.gpu_of(probe) {
            Some(gpu) => gpu.totals.shown(metric),
            None => self.shown_series(probe, metric),
        };
        samples.sort_by(|one, other| (one.labels, &one.own).cmp(&(other.labels, &other.own)));
        samples.dedup_by(|next, kept| {
            let same = (next.labels, &next.own) == (kept.labels, &kept.own);
            if same {
                kept.value.to_mut().add(&next.value);
                kept.begun = kept.begun.min(next.begun);
                kept.exemplars.append(&mut next.exemplars);
            }
            same
        });
        for shown in &mut samples {
            let order = |exemplar: &&Exemplar| (exemplar.bucket, Reverse(exemplar.time));
            shown.exemplars.sort_by_key(order);
            shown.exemplars.dedup_by_key(|exemplar| exemplar.bucket);
        }
        samples
    }

    fn shown_series(&self, probe: usize, metric: usize) -> Vec<Shown<'_>> {
        let of_probe = self
            .series
            .iter()
            .filter(|(_, tracked)| tracked.probe == probe);
        of_probe
            .flat_map(|(key, tracked)| {
                let samples = tracked.samples.iter();
                samples.map(move |(sample, value)| (key, tracked, sample, value))
            })
            .filter(|(_, _, sample, _)| sample.metric == metric)
            .map(|(key, tracked, sample, value)| Shown {
                exemplars: self.exemplars.of(key, metric),
                labels: &tracked.labels,
                own: sample.labels.clone(),
                value: Cow::Borrowed(value),
                begun: tracked.begun,
            })
            .collect()
    }

    /// Shows every value there is, with what it has gained lately. Several may have the same labels.
    pub(crate) fn see(&self, each: &mut dyn FnMut(&Seen)) {
        let nobody = Labels {
            owner: self.names.other().owner,
            process: None,
            device: None,
        };
        let others = self.probes.iter().enumerate();
        let others =
            others.map(|(index, probe)| (index, &nobody, &probe.other, &probe.recent, true));
        let series = self.series.values().map(|tracked| {
            let lives = matches!(tracked.life, Life::Live);
            let Tracked {
                probe,
                labels,
                samples,
                recent,
                ..
            } = tracked;
            (*probe, labels, samples, recent, lives)
        });
        for (probe, labels, samples, recent, lives) in series.chain(others) {
            let metrics = self.probes[probe].installed.probe.metrics;
            for (number, (sample, value)) in samples.iter().enumerate() {
                each(&Seen {
                    metric: &metrics[sample.metric],
                    labels,
                    own: &sample.labels,
                    value,
                    now: recent.now(number),
                    last: recent.last(number),
                    processes: 0,
                    lives,
                });
            }
        }
        if let Some(GpuProcesses { probe, totals, .. }) = &self.gpu {
            totals.see(self.probes[*probe].installed.probe.metrics, each);
        }
    }

    /// Shows each slow event that there is.
    pub(crate) fn see_slow(&self, each: &mut dyn FnMut(&SlowEvent)) {
        for (key, metric, exemplar) in self.exemplars.all() {
            let Some(tracked) = self.series.get(key) else {
                continue;
            };
            let mut samples = tracked.samples.iter();
            if let Some((sample, _)) = samples.find(|(sample, _)| sample.metric == metric) {
                each(&SlowEvent {
                    metric: &self.probes[tracked.probe].installed.probe.metrics[metric],
                    labels: &tracked.labels,
                    own: &sample.labels,
                    exemplar,
                });
            }
        }
    }

    /// Ends the running step of what came lately, and begins another.
    pub(crate) fn turn(&mut self) {
        let probes = self.probes.iter_mut().map(|probe| &mut probe.recent);
        let series = self.series.values_mut().map(|tracked| &mut tracked.recent);
        probes.chain(series).for_each(Recent::turn);
        if let Some(GpuProcesses { totals, .. }) = &mut self.gpu {
            totals.turn();
        }
    }

    /// The verdicts in the probes' order, for those who must not wait for a collection.
    pub(crate) fn statuses(&self) -> Arc<Mutex<Vec<Status>>> {
        Arc::clone(&self.statuses)
    }

    /// The processes of a probe, if it is the one that has some.
    fn gpu_of(&self, probe: usize) -> Option<&GpuProcesses> {
        self.gpu.as_ref().filter(|gpu| gpu.probe == probe)
    }

    /// What the gpu probe has found and counted, if it was asked for.
    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        self.gpu.as_ref().map(|gpu| &*gpu.gpu)
    }

    /// Histograms and counters that the live series of a probe hold; the processes of the gpu
    /// probe.
    pub(crate) fn series_in_use(&self, probe: usize) -> u64 {
        if let Some(gpu) = self.gpu_of(probe) {
            return gpu.gpu.processes().0;
        }
        self.series
            .values()
            .filter(|tracked| tracked.probe == probe && !matches!(tracked.life, Life::Retained(_)))
            .map(|tracked| &tracked.series)
            .map(|series| series.histograms().count() + usize::from(series.counter().is_some()))
            .sum::<usize>() as u64
    }

    /// The ceiling of histograms; of processes for the gpu probe.
    pub(crate) fn series_limit(&self, probe: usize) -> u64 {
        self.gpu_of(probe)
            .map_or(u64::from(self.table.0.limit), |gpu| gpu.gpu.processes().1)
    }

    /// Series dropped before their time because too many were gone at once.
    pub(crate) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// A probe's counter about itself.
    pub(crate) fn own_counter(&self, probe: usize, kind: OwnCounter) -> Option<u64> {
        if let Some(gpu) = self.gpu_of(probe) {
            return (kind == OwnCounter::SeriesOverflow).then(|| gpu.gpu.overflow());
        }
        self.probes[probe]
            .installed
            .own_counters()
            .find(|(other, _)| *other == kind)
            .map(|(_, cell)| self.readings.cells.counter(cell))
    }

    /// How long an event of a probe takes that may become an exemplar, in nanoseconds, if one may.
    pub(crate) fn exemplar_threshold_ns(&self, probe: usize) -> Option<u64> {
        self.exemplars.threshold_ns(probe)
    }

    /// Events of a probe that would have become exemplars and found their ring full, if one may.
    pub(crate) fn exemplars_lost(&self, probe: usize) -> Option<u64> {
        self.exemplars.threshold_ns(probe)?;
        let cell = self.probes[probe].installed.events_lost()?;
        Some(self.readings.cells.counter(cell))
    }

    /// Cgroup events that found their ring full.
    pub(crate) fn cgroup_events_lost(&self) -> u64 {
        self.readings.cells.counter(self.cgroup_events_lost)
    }

    /// How often each program ran, as far as the kernel counts.
    pub(crate) fn run_stats(&self) -> Vec<probes::RunStats> {
        let mut stats = self.programs.run_stats();
        stats.extend(self.gpu().map(Gpu::run_stats).unwrap_or_default());
        stats
    }

    /// Kernel memory of each map in bytes.
    pub(crate) fn map_memory_bytes(&self) -> Vec<(String, u64)> {
        let mut maps = self.map_memory_bytes.clone();
        maps.extend(self.gpu().map(Gpu::map_memory_bytes).unwrap_or_default());
        maps
    }
}

/// Whether anybody is told since when series count. What they then count must be in no other series as well.
fn is_dated(config: &Config) -> bool {
    config.created || config.otlp.is_some()
}

/// Whether two verdicts on a probe say the same.
fn same(one: &Status, other: &Status) -> bool {
    let said = |status: &Status| (status.hook, status.verdict, status.reason);
    said(one) == said(other) && one.detail == other.detail
}

/// Shows a verdict to those who must not wait for a collection. Whether it is a new one.
fn publish(statuses: &Mutex<Vec<Status>>, status: &Status) -> bool {
    let mut statuses = lock(statuses);
    let mut statuses = statuses.iter_mut();
    let Some(old) = statuses.find(|old| old.probe == status.probe) else {
        return false;
    };
    let is_new = !same(old, status);
    old.clone_from(status);
    is_new
}

fn fresh(samples: Vec<Sample>) -> Vec<(Sample, Value)> {
    samples
        .into_iter()
        .map(|sample| {
            let value = match sample.cell {
                Cell::Histogram(_) | Cell::Whole { .. } => Value::Histogram(Box::default()),
                Cell::Counter(_) | Cell::Sum(_) => Value::Counter(0),
            };
            (sample, value)
        })
        .collect()
}

/// Locks, also after a panic elsewhere: the data are counts, and stale ones beat none.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_interpolate_within_a_bucket() {
        let mut totals = Totals::default();
        assert_eq!(totals.quantile(0.5), None);
        // Bucket 73 ends at 2^(1/4) s and begins at 1 s.
        totals.buckets[73] = 100;
        let median = totals.quantile(0.5).unwrap();
        assert!((median - 2f64.powf(0.125)).abs() < 1e-9, "{median}");
        totals.buckets[0] = 100;
        assert_eq!(totals.quantile(0.25), Some(2f64.powi(-18)));
        totals.buckets[BUCKETS - 1] = 1000;
        assert_eq!(totals.quantile(0.99), Some(16.0));
    }
}
