//! What Sentry takes of the machine's CPUs, and what is shed of it when that is more than the budget.

mod guard;
mod meter;

use std::{
    fmt,
    os::fd::OwnedFd,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use probes::Refusal;
use tokio::sync::Notify;

pub(crate) use self::guard::Step;
use self::{
    guard::{Decision, Guard, Load},
    meter::{Basis, Meter},
};
use crate::{
    collect::{Collector, Occasion, Probe, lock},
    config::Config,
    privileges,
};

/// The parts that a turn of sampling has: a probe that is sampled is attached in one of them.
const PARTS: u32 = 8;

/// How many turns of sampling there are from one sample to the next, so that each sees some of them: 7.5.
const TURNS: f64 = 7.5;

/// Parts of the time between two samples, in the last of which the kernel's statistics are on.
const MOMENTS: u32 = 60;

/// How much longer than it should be the time between two samples may be: the machine may have slept.
const GAP: u32 = 3;

/// While there is no budget, nothing is to be done before a reload says otherwise.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// The share of all CPUs' time that Sentry may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Budget {
    /// 0 stands for none.
    percent: f64,
}

/// What is no budget.
#[derive(Debug, thiserror::Error)]
#[error("allowed: off, or a share of all CPUs' time up to 100%, such as 1% or 0.5%")]
pub(crate) struct BudgetError;

impl FromStr for Budget {
    type Err = BudgetError;

    fn from_str(text: &str) -> Result<Self, BudgetError> {
        if text == "off" || text == "0" {
            return Ok(Self { percent: 0.0 });
        }
        let number = text.strip_suffix('%').ok_or(BudgetError)?;
        // No signs, exponents and infinities.
        let is_plain = number.chars().all(|c| c.is_ascii_digit() || c == '.');
        let percent = number.parse().ok().filter(|_| is_plain);
        percent
            .filter(|percent| (0.0..=100.0).contains(percent))
            .map(|percent| Self { percent })
            .ok_or(BudgetError)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.percent)
    }
}

impl Budget {
    /// The share, 1 being all of it, if there is a budget.
    fn ratio(self) -> Option<f64> {
        (self.percent > 0.0).then_some(self.percent / 100.0)
    }
}

/// What a probe took, and what is shed of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Share {
    pub(crate) probe: &'static str,
    /// Of all CPUs' time between the last two samples, once there was one.
    pub(crate) ratio: Option<f64>,
    /// How that is known.
    pub(crate) basis: Basis,
    /// The part of the time for which it is attached.
    pub(crate) attached: f64,
    /// What can be shed of it, and whether it is.
    pub(crate) steps: Vec<(Step, bool)>,
}

/// What is known by the last sample.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Report {
    /// What Sentry may take of all CPUs' time, if there is a budget.
    pub(crate) budget: Option<f64>,
    /// What the agent itself took.
    pub(crate) agent: Option<f64>,
    pub(crate) probes: Vec<Share>,
    /// What is to be said of it where the probes' state is asked for; empty where all is well.
    pub(crate) detail: String,
}

/// What the guard and the rest of the agent tell each other.
#[derive(Debug)]
pub(crate) struct Overhead {
    budget: Mutex<Budget>,
    changed: Notify,
    report: Mutex<Report>,
    /// Whether the kernel's statistics were on for a while, for the guard's sake alone.
    has_counted: AtomicBool,
    /// Whether they are always on, by others.
    always_on: AtomicBool,
}

impl Overhead {
    pub(crate) fn new(budget: Budget) -> Self {
        Self {
            budget: Mutex::new(budget),
            changed: Notify::new(),
            report: Mutex::default(),
            has_counted: AtomicBool::new(false),
            always_on: AtomicBool::new(false),
        }
    }

    /// Goes on by another budget.
    pub(crate) fn set_budget(&self, budget: Budget) {
        let before = std::mem::replace(&mut *lock(&self.budget), budget);
        if before != budget {
            self.changed.notify_one();
        }
    }

    fn budget(&self) -> Budget {
        *lock(&self.budget)
    }

    /// What is known.
    pub(crate) fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Whether counts of the kernel's statistics are of all the time, not only of when the guard had them on.
    pub(crate) fn run_stats_are_whole(&self) -> bool {
        self.always_on.load(Ordering::Relaxed) || !self.has_counted.load(Ordering::Relaxed)
    }
}

/// Has the kernel count the runs of programs, if there is a budget and the privileges for it are there. To close what this
/// gives takes none.
pub(crate) fn calibration(config: &Config) -> Option<OwnedFd> {
    if config.bpf_stats || config.overhead_budget.ratio().is_none() {
        return None;
    }
    let stats = probes::enable_run_stats();
    stats
        .inspect_err(|error| tracing::debug!(%error, "what programs take is not measured"))
        .ok()
}

/// Samples, sheds and takes back.
pub(crate) struct Watcher {
    overhead: Arc<Overhead>,
    collector: Arc<Mutex<Collector>>,
    interval: Duration,
    meter: Meter,
    guard: Guard,
    budget: Budget,
    sampled_at: Instant,
    /// When the next moment begins in which the kernel's statistics are to be on, or to be looked at.
    moment: Option<Instant>,
    slice: Slice,
    /// What each probe took in the last sample.
    loads: Vec<Load>,
    is_exhausted: bool,
    /// Which probes run, of those that do from the start on.
    up: Vec<bool>,
}

fn is_up(probe: &Probe) -> bool {
    let installed = &probe.installed;
    installed.probe.deferred.is_none() && installed.status.verdict.is_up()
}

/// The turns of all probes that are sampled.
struct Slice {
    on_since: Option<Instant>,
    /// For how long they were attached since the last sample.
    on: Duration,
    next: Instant,
}

impl Watcher {
    /// `calibration` is what [`calibration`] gave.
    pub(crate) fn new(
        overhead: Arc<Overhead>,
        collector: Arc<Mutex<Collector>>,
        config: &Config,
        calibration: Option<OwnedFd>,
    ) -> Self {
        let now = Instant::now();
        if calibration.is_some() {
            overhead.has_counted.store(true, Ordering::Relaxed);
        }
        let meter = Meter::new(&lock(&collector), config, calibration, now);
        let always_on = meter.is_always_on();
        overhead.always_on.store(always_on, Ordering::Relaxed);
        let probes = lock(&collector).probes().len();
        let moment = meter
            .is_counting()
            .then(|| now + config.overhead_interval / 6);
        Self {
            overhead,
            collector,
            interval: config.overhead_interval,
            meter,
            guard: Guard::new(),
            budget: config.overhead_budget,
            sampled_at: now,
            moment,
            slice: Slice {
                on_since: None,
                on: Duration::ZERO,
                next: now,
            },
            loads: vec![
                Load {
                    ratio: 0.0,
                    attached: 1.0,
                    steps: Vec::new(),
                };
                probes
            ],
            is_exhausted: false,
            up: Vec::new(),
        }
    }

    /// Does so for as long as the runtime lives.
    pub(crate) async fn watch(mut self) {
        let overhead = Arc::clone(&self.overhead);
        loop {
            // A collection or a program that is attached may take milliseconds.
            let turn = tokio::task::spawn_blocking(move || {
                let next = self.turn(Instant::now());
                (self, next)
            });
            let next = match turn.await {
                Ok((watcher, next)) => {
                    self = watcher;
                    next
                }
                Err(error) => {
                    tracing::error!(%error, "what Sentry takes is not watched any more");
                    return;
                }
            };
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = overhead.changed.notified() => {}
            }
        }
    }

    /// Does what is due; when something is again.
    fn turn(&mut self, now: Instant) -> Instant {
        let collector = Arc::clone(&self.collector);
        let collector = &mut *lock(&collector);
        let budget = self.overhead.budget();
        if budget != self.budget {
            let was_off = std::mem::replace(&mut self.budget, budget)
                .ratio()
                .is_none();
            if was_off {
                self.meter.begin(collector, now);
                let always_on = self.meter.is_always_on();
                self.overhead.always_on.store(always_on, Ordering::Relaxed);
                self.sampled_at = now;
                self.moment = Some(now + self.interval / MOMENTS * (MOMENTS - 1));
            }
        }
        let Some(ratio) = budget.ratio() else {
            self.stop(collector);
            return now + IDLE;
        };
        // A reload that turned a probe off has taken back what was shed of it.
        self.guard
            .forget(|probe| !collector.probes()[probe].installed.is_held_back());
        // Nor does what was before say anything of one that it turned on.
        let up: Vec<bool> = collector.probes().iter().map(is_up).collect();
        if up != self.up {
            self.up = up;
            self.guard.gap();
        }
        self.take_turns(collector, now);
        let due = self.sampled_at + self.interval;
        if now >= due {
            self.sample(collector, ratio, now);
        } else if self.moment.is_some_and(|moment| now >= moment) {
            self.count(collector, now);
        }
        self.report(collector);
        let mut next = self.sampled_at + self.interval;
        next = self.moment.map_or(next, |moment| next.min(moment));
        if self.sampled().next().is_some() {
            next = next.min(self.slice.next);
        }
        next
    }

    /// There is no budget any more.
    fn stop(&mut self, collector: &mut Collector) {
        for probe in 0..collector.probes().len() {
            if self.guard.step(probe).is_some() {
                self.apply(collector, probe, None);
                let installed = &collector.probes()[probe].installed;
                if !installed.is_held_back() {
                    let probe = installed.probe.name;
                    tracing::info!(probe, "no budget: nothing is shed any more");
                }
            }
        }
        // What the kernel refused to attach again is tried the next time.
        self.guard
            .forget(|probe| !collector.probes()[probe].installed.is_held_back());
        self.guard.gap();
        self.meter.stop_counting();
        self.moment = None;
        self.slice.on_since = None;
        *lock(&self.overhead.report) = Report::default();
    }

    /// Switches the kernel's statistics on for the last moment before a sample, or looks at what they say at the start.
    fn count(&mut self, collector: &mut Collector, now: Instant) {
        if let Err(error) = collector.collect(now, Occasion::Upkeep) {
            tracing::error!(%error, "what an event takes may be off");
        }
        if self.meter.is_counting() {
            let is_enough = self.meter.has_seen_enough(collector);
            if is_enough {
                self.meter.calibrate(collector);
            }
            self.moment = (!is_enough).then(|| now + self.interval / 6);
            return;
        }
        self.moment = None;
        if self.meter.count_for_a_moment(collector) {
            self.overhead.has_counted.store(true, Ordering::Relaxed);
        }
    }

    /// Those that are attached for a part of the time.
    fn sampled(&self) -> impl Iterator<Item = usize> {
        let probes = 0..self.loads.len();
        probes.filter(|probe| self.guard.step(*probe) == Some(Step::Sampling))
    }

    /// Attaches the probes that are sampled, or takes them away from their hooks.
    fn take_turns(&mut self, collector: &mut Collector, now: Instant) {
        let sampled: Vec<usize> = self.sampled().collect();
        if sampled.is_empty() || now < self.slice.next {
            return;
        }
        let turn = self.interval.div_f64(TURNS);
        if let Some(since) = self.slice.on_since.take() {
            self.slice.on += now.duration_since(since);
            self.slice.next = now + turn / PARTS * (PARTS - 1);
            for probe in sampled {
                collector.pause(probe);
            }
            return;
        }
        self.slice.on_since = Some(now);
        self.slice.next = now + turn / PARTS;
        for probe in sampled {
            if let Err(refusal) = collector.resume(probe) {
                self.refused(collector, probe, &refusal);
            }
        }
    }

    fn sample(&mut self, collector: &mut Collector, budget: f64, now: Instant) {
        let took = now.duration_since(self.sampled_at);
        self.sampled_at = now;
        if let Err(error) = collector.collect(now, Occasion::Upkeep) {
            tracing::error!(%error, "what Sentry takes may be stale");
        }
        if let Some(since) = &mut self.slice.on_since {
            self.slice.on += now.duration_since(*since);
            *since = now;
        }
        let on = std::mem::take(&mut self.slice.on);
        let on = on.as_secs_f64() / took.as_secs_f64().max(f64::MIN_POSITIVE);
        let taken = self.meter.sample(collector, now).clone();
        let always_on = self.meter.is_always_on();
        self.overhead.always_on.store(always_on, Ordering::Relaxed);
        // At the start they stay on for as long as one sample takes, and then for a moment before each, if at all.
        self.moment = Some(now + self.interval / MOMENTS * (MOMENTS - 1));
        self.loads = (0..collector.probes().len())
            .map(|probe| Load {
                ratio: taken.probes[probe],
                attached: match self.guard.step(probe) {
                    Some(Step::Off) => 0.0,
                    Some(Step::Sampling) => on.min(1.0),
                    Some(Step::Exemplars) | None => 1.0,
                },
                steps: steps(collector, probe),
            })
            .collect();
        if took > self.interval * GAP {
            self.guard.gap();
        }
        let decision = self.guard.sample(budget, taken.agent, &self.loads);
        let programs: f64 = taken.probes.iter().sum();
        let all = format!(
            "Sentry takes {} of all CPUs, {} of it the agent itself, the budget is {}",
            percent(taken.agent + programs),
            percent(taken.agent),
            self.budget
        );
        let name = |probe: usize| collector.probes()[probe].installed.probe.name;
        match decision {
            Decision::Shed(place, step) => {
                let (probe, step_name) = (name(place), step.name());
                let means = means(step);
                tracing::warn!(probe, step = step_name, "over budget: {all}; {means}");
                self.apply(collector, place, Some(step));
            }
            Decision::Restore(place, step) => {
                let (probe, step_name) = (name(place), step.name());
                let back = back(step);
                tracing::info!(probe, step = step_name, "within budget: {all}; {back}");
                self.apply(collector, place, self.guard.step(place));
            }
            Decision::Exhausted if !self.is_exhausted => {
                tracing::warn!("over budget: {all}; nothing is left to shed that would help");
            }
            Decision::Keep | Decision::Exhausted => {}
        }
        self.is_exhausted = decision == Decision::Exhausted;
    }

    /// Has a probe be as the guard wants it.
    fn apply(&mut self, collector: &mut Collector, probe: usize, step: Option<Step>) {
        if step == Some(Step::Sampling) && self.sampled().count() == 1 {
            // Its first part begins at once.
            self.slice.on_since = None;
            self.slice.next = self.sampled_at;
        }
        if let Some(load) = self.loads.get_mut(probe) {
            load.attached = match step {
                Some(Step::Off) => 0.0,
                Some(Step::Sampling) => 1.0 / f64::from(PARTS),
                Some(Step::Exemplars) | None => 1.0,
            };
        }
        let detail = step.map_or_else(String::new, |step| {
            format!(
                "{}, to stay within the budget of {}",
                means(step),
                self.budget
            )
        });
        if let Err(refusal) = collector.hold_back(probe, step, &detail) {
            self.refused(collector, probe, &refusal);
        }
    }

    /// The kernel does not attach a probe again: it is off until the next attempt.
    fn refused(&mut self, collector: &mut Collector, probe: usize, refusal: &Refusal) {
        let name = collector.probes()[probe].installed.probe.name;
        let detail = format!(
            "turned off to stay within the budget of {}, and cannot be attached again: {}",
            self.budget, refusal.detail
        );
        tracing::warn!(probe = name, "{detail}");
        self.guard.force(probe, Step::Off);
        if let Some(load) = self.loads.get_mut(probe) {
            load.attached = 0.0;
        }
        // To take it away from its hook is not refused.
        let _ = collector.hold_back(probe, Some(Step::Off), &detail);
    }

    fn report(&self, collector: &Collector) {
        let taken = self.meter.last();
        let probes = collector.probes().iter().enumerate();
        let probes: Vec<Share> = probes
            .filter(|(_, probe)| {
                let verdict = probe.installed.status_when_on().verdict;
                probe.installed.is_on() && verdict.is_up()
            })
            .map(|(place, probe)| Share {
                probe: probe.installed.probe.name,
                ratio: taken.map(|taken| taken.probes[place]),
                basis: self.meter.basis(place),
                attached: self.loads[place].attached,
                steps: Step::ALL
                    .into_iter()
                    .filter(|step| can_ever(probe.installed.probe, *step))
                    .map(|step| (step, self.guard.is_shed(place, step)))
                    .collect(),
            })
            .collect();
        let sheds = probes
            .iter()
            .any(|share| share.steps.iter().any(|(_, is_shed)| *is_shed));
        let mut detail = String::new();
        if let Some(taken) = taken.filter(|_| sheds || self.is_exhausted) {
            let all = taken.agent + taken.probes.iter().sum::<f64>();
            let all = percent(all);
            let left = if self.is_exhausted {
                "; nothing is left to shed that would help"
            } else {
                ""
            };
            let budget = self.budget;
            detail = format!("overhead: {all} of all CPUs, the budget is {budget}{left}");
        }
        *lock(&self.overhead.report) = Report {
            budget: self.budget.ratio(),
            agent: taken.map(|taken| taken.agent),
            probes,
            detail,
        };
    }
}

/// What could be shed of a probe now.
fn steps(collector: &Collector, probe: usize) -> Vec<Step> {
    let installed = &collector.probes()[probe].installed;
    let steps = Step::ALL.into_iter().filter(|step| {
        can_ever(installed.probe, *step)
            && match step {
                Step::Exemplars => collector.has_exemplars(probe),
                Step::Sampling => privileges::can_attach_again(installed.rung.hook),
                Step::Off => installed.is_on(),
            }
    });
    steps.collect()
}

/// What could be shed of a probe at all. Gaps that begin and end with calls cannot be sampled: each that was missed
/// would make a gap of two.
fn can_ever(probe: &probes::Probe, step: Step) -> bool {
    match step {
        Step::Exemplars => probe.events.is_some() && probe.deferred.is_none(),
        Step::Sampling => probe.deferred.is_none(),
        Step::Off => true,
    }
}

/// What a step means, for people.
fn means(step: Step) -> &'static str {
    match step {
        Step::Exemplars => "without exemplars",
        Step::Sampling => "attached for an eighth of the time",
        Step::Off => "turned off",
    }
}

/// What it means that it is taken back.
fn back(step: Step) -> &'static str {
    match step {
        Step::Exemplars => "with exemplars again",
        Step::Sampling => "attached all the time again",
        Step::Off => "turned on again",
    }
}

/// A share, for people.
fn percent(ratio: f64) -> String {
    let percent = ratio * 100.0;
    let digits = if percent < 0.1 { 4 } else { 2 };
    format!("{percent:.digits$} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets() {
        let of = |text: &str| text.parse::<Budget>().map(Budget::ratio).ok();
        assert_eq!(of("1%"), Some(Some(0.01)));
        assert_eq!(of("0.5%"), Some(Some(0.005)));
        assert_eq!(of("100%"), Some(Some(1.0)));
        for off in ["off", "0", "0%", "0.0%"] {
            assert_eq!(of(off), Some(None), "{off}");
        }
        for wrong in [
            "", "%", "1", "0.01", "-1%", "+1%", "101%", "1e-3%", "inf%", "NaN%", "1 %", "1.2.3%",
            "on",
        ] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert_eq!("0.0001%".parse::<Budget>().unwrap().to_string(), "0.0001 %");
    }

    #[test]
    fn shares_have_the_digits_that_matter() {
        assert_eq!(percent(0.0184), "1.84 %");
        assert_eq!(percent(0.000_012), "0.0012 %");
        assert_eq!(percent(0.0), "0.0000 %");
    }

    #[test]
    fn what_cannot_be_sampled_is_not() {
        let steps: Vec<Vec<Step>> = probes::PROBES
            .iter()
            .map(|probe| Step::ALL.into_iter().filter(|step| can_ever(probe, *step)))
            .map(Iterator::collect)
            .collect();
        let all = Step::ALL.to_vec();
        assert_eq!(steps, [all.clone(), all, vec![Step::Off]]);
    }
}
