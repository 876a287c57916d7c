//! What the programs and the agent itself take, from one sample to the next.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use probes::RunStats;
use rustix::time::{ClockId, clock_gettime};

use crate::{collect::Collector, config::Config};

/// Events of a probe that tell what one takes for now.
const FEW: u64 = 100;

/// The same for good: of few, which come one by one, each finds cold caches and a series that is in no slot yet.
const ENOUGH: u64 = 1000;

/// How it is known what a probe's programs take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Basis {
    /// The kernel's statistics are on, always or for a moment before each sample.
    Measured,
    /// They were on when the agent began: its events since, times what one took then.
    Calibrated,
    /// They never were, or saw too few events: its events, times what one took on another machine.
    Assumed,
}

impl Basis {
    /// The name in labels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Measured => "measured",
            Self::Calibrated => "calibrated",
            Self::Assumed => "assumed",
        }
    }
}

/// What was taken between two samples, of the time of all CPUs, 1 being all of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Taken {
    /// By the agent itself.
    pub(crate) agent: f64,
    /// By each probe's programs.
    pub(crate) probes: Vec<f64>,
}

/// What a probe has counted, and what its programs took as far as the kernel counts that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    events: u64,
    runs: u64,
    run_ns: u64,
}

impl Count {
    fn since(self, earlier: Self) -> Self {
        Self {
            events: self.events.saturating_sub(earlier.events),
            runs: self.runs.saturating_sub(earlier.runs),
            run_ns: self.run_ns.saturating_sub(earlier.run_ns),
        }
    }

    /// What the programs took, and getting to them.
    #[allow(clippy::cast_precision_loss)] // a share of it is wanted
    fn took_ns(self, entry_ns: u32) -> f64 {
        self.run_ns as f64 + self.runs as f64 * f64::from(entry_ns)
    }
}

/// What an event of a probe takes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Price {
    ns: f64,
    basis: Basis,
}

/// Reads what is taken.
pub(crate) struct Meter {
    procfs: PathBuf,
    /// Whether the agent has the statistics on for as long as it runs.
    bpf_stats: bool,
    /// Holds the statistics on, and what was counted before.
    counting: Option<(OwnedFd, Vec<Count>)>,
    /// Whether those that are held are for the moment before a sample.
    is_moment: bool,
    is_always_on: bool,
    counts: Vec<Count>,
    prices: Vec<Price>,
    cpu: Duration,
    at: Instant,
    last: Option<Taken>,
}

impl Meter {
    pub(crate) fn new(
        collector: &Collector,
        config: &Config,
        calibration: Option<OwnedFd>,
        now: Instant,
    ) -> Self {
        let counts = counts(collector);
        let probes = collector.probes().iter();
        let assumed = probes.map(|probe| Price {
            ns: f64::from(probe.installed.probe.cost.event_ns),
            basis: Basis::Assumed,
        });
        let mut meter = Self {
            procfs: config.procfs.clone(),
            bpf_stats: config.bpf_stats,
            counting: calibration.map(|stats| (stats, counts.clone())),
            is_moment: false,
            is_always_on: false,
            counts,
            prices: assumed.collect(),
            cpu: cpu_time(),
            at: now,
            last: None,
        };
        meter.is_always_on = meter.reads_always_on();
        meter
    }

    /// Counts from here.
    pub(crate) fn begin(&mut self, collector: &Collector, now: Instant) {
        self.counts = counts(collector);
        (self.cpu, self.at, self.last) = (cpu_time(), now, None);
        self.is_always_on = self.reads_always_on();
    }

    /// Whether the kernel's statistics are on, for as long as somebody else wants.
    fn reads_always_on(&self) -> bool {
        let setting = self.procfs.join("sys/kernel/bpf_stats_enabled");
        let setting = fs::read_to_string(setting);
        self.bpf_stats || setting.is_ok_and(|text| text.trim() == "1")
    }

    pub(crate) fn is_always_on(&self) -> bool {
        self.is_always_on
    }

    /// Whether it has the statistics on itself.
    pub(crate) fn is_counting(&self) -> bool {
        self.counting.is_some()
    }

    pub(crate) fn stop_counting(&mut self) {
        self.counting = None;
    }

    /// Switches them on until the next sample, if that is of use and allowed.
    pub(crate) fn count_for_a_moment(&mut self, collector: &Collector) -> bool {
        if self.is_always_on {
            return false;
        }
        self.counting = probes::enable_run_stats()
            .ok()
            .map(|stats| (stats, counts(collector)));
        self.is_moment = self.counting.is_some();
        self.is_moment
    }

    /// Whether each probe that runs from the start on has had enough events to tell what one takes.
    pub(crate) fn has_seen_enough(&self, collector: &Collector) -> bool {
        let Some((_, before)) = &self.counting else {
            return true;
        };
        let probes = collector.probes().iter();
        let mut gained = probes.zip(counts(collector)).zip(before);
        gained.all(|((probe, now), before)| {
            let installed = &probe.installed;
            let waits = installed.probe.deferred.is_some() || !installed.status.verdict.is_up();
            waits || now.since(*before).events >= ENOUGH
        })
    }

    /// Ends it, and takes over what an event took meanwhile.
    pub(crate) fn calibrate(&mut self, collector: &Collector) {
        let Some((stats, before)) = self.counting.take() else {
            return;
        };
        // The counts first, that none are missing.
        let now = counts(collector);
        drop(stats);
        let (basis, least) = if self.is_moment {
            (Basis::Measured, FEW)
        } else {
            (Basis::Calibrated, ENOUGH)
        };
        let probes = collector.probes().iter().zip(&mut self.prices);
        for ((probe, price), (now, before)) in probes.zip(now.into_iter().zip(before)) {
            let gained = now.since(before);
            let entry_ns = probe.installed.probe.cost.entry_ns;
            if let Some(ns) = price_ns(gained, entry_ns, least) {
                *price = Price { ns, basis };
                let name = probe.installed.probe.name;
                tracing::debug!(probe = name, "an event takes {ns:.0} ns");
            }
        }
    }

    /// What was taken since the last sample. Totals have just been brought up to date.
    #[allow(clippy::cast_precision_loss)] // shares
    pub(crate) fn sample(&mut self, collector: &Collector, now: Instant) -> &Taken {
        let had_moment = self.counting.is_some() && self.is_moment;
        self.calibrate(collector);
        let always_on = self.reads_always_on();
        // Both ends have to be.
        let was_on = std::mem::replace(&mut self.is_always_on, always_on);
        let is_measured = always_on && was_on;
        let cpu = cpu_time();
        let agent = cpu.saturating_sub(std::mem::replace(&mut self.cpu, cpu));
        let took = now.saturating_duration_since(std::mem::replace(&mut self.at, now));
        let all_ns = took.as_nanos().max(1) as f64 * cpus(&self.procfs) as f64;
        let counts = counts(collector);
        let before = std::mem::replace(&mut self.counts, counts.clone());
        let probes = collector.probes().iter().zip(&mut self.prices);
        let gained = counts.into_iter().zip(before);
        let gained = gained.map(|(now, before)| now.since(before));
        let probes = probes.zip(gained).map(|((probe, price), gained)| {
            let entry_ns = probe.installed.probe.cost.entry_ns;
            if !is_measured {
                if !had_moment && price.basis == Basis::Measured {
                    price.basis = Basis::Calibrated;
                }
                return gained.events as f64 * price.ns / all_ns;
            }
            // What an event takes is of use when they are not on any more.
            let ns = price_ns(gained, entry_ns, FEW).unwrap_or(price.ns);
            let basis = Basis::Measured;
            *price = Price { ns, basis };
            gained.took_ns(entry_ns) / all_ns
        });
        let probes = probes.collect();
        self.last.insert(Taken {
            agent: agent.as_nanos() as f64 / all_ns,
            probes,
        })
    }

    /// The last sample, if there was one.
    pub(crate) fn last(&self) -> Option<&Taken> {
        self.last.as_ref()
    }

    /// How it is known what a probe took.
    pub(crate) fn basis(&self, probe: usize) -> Basis {
        self.prices[probe].basis
    }
}

/// What an event took, where there were enough of them to tell.
#[allow(clippy::cast_precision_loss)] // an average
fn price_ns(gained: Count, entry_ns: u32, least: u64) -> Option<f64> {
    let is_known = gained.events >= least && gained.runs > 0;
    is_known.then(|| gained.took_ns(entry_ns) / gained.events as f64)
}

fn counts(collector: &Collector) -> Vec<Count> {
    let stats = collector.run_stats();
    let probes = collector.probes().iter().enumerate();
    probes
        .map(|(place, probe)| {
            // A program's name begins with its probe's.
            let name = probe.installed.probe.name;
            let is_of = |stats: &&RunStats| {
                let rest = stats.program.strip_prefix(name);
                rest.is_some_and(|rest| rest.starts_with('_'))
            };
            let mut count = Count {
                events: collector.events(place),
                ..Count::default()
            };
            for stats in stats.iter().filter(is_of) {
                count.runs += stats.runs;
                count.run_ns += stats.run_time_ns;
            }
            count
        })
        .collect()
}

/// CPU time that this process has taken.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The CPUs that are on, by `/proc/stat`.
fn cpus(procfs: &Path) -> usize {
    let stat = fs::read_to_string(procfs.join("stat")).unwrap_or_default();
    match online(&stat) {
        0 => thread::available_parallelism().map_or(1, usize::from),
        cpus => cpus,
    }
}

fn online(stat: &str) -> usize {
    let of_one = |line: &&str| {
        let rest = line.strip_prefix("cpu");
        rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    stat.lines().filter(of_one).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_have_a_line_each() {
        assert_eq!(
            online("cpu  1 2\ncpu0 1 2\ncpu3 0 0\nintr 5\ncpufreq 1\n"),
            2
        );
        assert_eq!(online(""), 0);
        assert!(cpus(Path::new("/proc")) >= 1);
        assert!(cpus(Path::new("/nonexistent")) >= 1);
    }

    #[test]
    fn a_price_takes_enough_events_and_runs() {
        let count = |events, runs, run_ns| Count {
            events,
            runs,
            run_ns,
        };
        assert_eq!(price_ns(count(99, 500, 50_000), 0, FEW), None);
        assert_eq!(price_ns(count(200, 0, 0), 0, FEW), None);
        assert_eq!(price_ns(count(999, 5000, 500_000), 0, ENOUGH), None);
        assert_eq!(price_ns(count(200, 1000, 90_000), 0, FEW), Some(450.0));
        assert_eq!(price_ns(count(200, 400, 20_000), 700, FEW), Some(1500.0));
    }

    #[test]
    fn counters_that_fall_have_gained_nothing() {
        let earlier = Count {
            events: 5,
            runs: 7,
            run_ns: 100,
        };
        assert_eq!(Count::default().since(earlier), Count::default());
    }
}
