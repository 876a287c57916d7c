//! Exemplars: who and what is behind the slow events that the buckets count.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use probes::{
    BUCKETS, EVENT_RING_BYTES, Event, Events, Installed, Kernel, Programs, Refusal, SeriesKey,
    bucket_edge_seconds,
};

use super::{Probe, Totals, Value};
use crate::config::{self, Config};

/// Exemplars in memory at most; the oldest goes. One takes some 250 bytes.
const MAX: usize = 1024;

/// The characters that names and values of an exemplar's labels may have together, by `OpenMetrics`.
const MAX_CHARACTERS: usize = 128;

/// Events of a probe for which the threshold is chosen: what comes in the ten seconds between two collections fits a
/// CPU's ring.
const EVENTS_PER_SECOND: f64 = 2.0;

/// How often a threshold is chosen at most.
const CHOICE_INTERVAL: Duration = Duration::from_secs(1);

/// An event behind a bucket.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Exemplar {
    /// The kernel's bucket that its duration is in.
    pub(crate) bucket: usize,
    /// Names and values.
    pub(crate) labels: Vec<(&'static str, String)>,
    pub(crate) duration_ns: u64,
    pub(crate) time: SystemTime,
}

/// The threshold of a probe, and how it is found.
#[derive(Debug, Default)]
struct Slow {
    /// What is asked for.
    asked: config::Exemplars,
    /// Whether there is all that its events take.
    is_open: bool,
    /// What was asked for in vain at the start: no reload is refused for what a start goes without.
    in_vain: Option<config::Exemplars>,
    /// What is in force, in nanoseconds; 0 is none.
    threshold_ns: u64,
    /// Of the choice that was made last.
    counted: Totals,
    chosen: Option<Instant>,
}

/// There can be no exemplars of a probe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{probe}.exemplars: there can be none: {detail}; a restart may find another way")]
pub(crate) struct OpenError {
    probe: &'static str,
    detail: String,
}

/// All of them, and where they come from.
#[derive(Debug)]
pub(crate) struct Exemplars {
    events: Option<Events>,
    /// In the order of the probes.
    slow: Vec<Slow>,
    /// By series, metric and bucket.
    latest: BTreeMap<(SeriesKey, usize, usize), Exemplar>,
}

impl Exemplars {
    /// Those that the configuration asks for, of probes that were just attached: what they take may take privileges
    /// that are given up later. What there cannot be is in the log, for the probes' numbers are there all the same.
    pub(crate) fn new(config: &Config, kernel: &mut Kernel) -> Self {
        let mut exemplars = Self {
            events: None,
            slow: kernel.probes.iter().map(|_| Slow::default()).collect(),
            latest: BTreeMap::new(),
        };
        let (programs, memory) = (&mut kernel.programs, &mut kernel.map_memory_bytes);
        for (place, installed) in kernel.probes.iter().enumerate() {
            if let Err(error) = exemplars.open(place, config, installed, programs, memory) {
                tracing::warn!("{error}");
                exemplars.slow[place].in_vain = Some(which(config, installed));
            }
        }
        exemplars.want(config, kernel.probes.iter(), programs);
        exemplars
    }

    /// Makes what the events of a probe take, if they are asked for and it is not there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn open(
        &mut self,
        place: usize,
        config: &Config,
        installed: &Installed,
        programs: &mut Programs,
        memory: &mut Vec<(String, u64)>,
    ) -> Result<(), OpenError> {
        let probe = installed.probe.name;
        let slow = &mut self.slow[place];
        let asked = which(config, installed);
        let is_up = installed.is_on() && installed.status_when_on().verdict.is_up();
        let can = is_up && installed.tells_events() && slow.in_vain != Some(asked);
        if slow.is_open || asked == config::Exemplars::Off || !can {
            return Ok(());
        }
        let error = |refusal: Refusal| OpenError {
            probe,
            detail: refusal.detail,
        };
        if self.events.is_none() {
            let (rings, bytes) = programs.open_events(EVENT_RING_BYTES).map_err(error)?;
            self.events = Some(rings);
            memory.extend(bytes);
        }
        programs.attach_origins(installed).map_err(error)?;
        slow.is_open = true;
        Ok(())
    }

    /// Goes on by a new configuration, for which all is [`Self::open`] that can be.
    pub(super) fn want<'a>(
        &mut self,
        config: &Config,
        probes: impl Iterator<Item = &'a Installed>,
        programs: &mut Programs,
    ) {
        for (installed, slow) in probes.zip(&mut self.slow) {
            let asked = which(config, installed);
            let (name, hook) = (installed.probe.name, installed.rung.hook);
            let is_off = asked == config::Exemplars::Off || !installed.is_on();
            if is_off || installed.is_held_back() {
                programs.detach_origins(installed);
            }
            if is_off {
                slow.is_open = false;
                // Nobody is to see them any more.
                let number = installed.probe.number;
                self.latest.retain(|(key, ..), _| key.kind >> 4 != number);
            }
            if slow.asked != asked {
                if !is_off && !installed.tells_events() {
                    tracing::warn!("{name}.exemplars: the hook {hook} tells too little for any");
                }
                *slow = Slow {
                    asked,
                    threshold_ns: slow.threshold_ns,
                    is_open: slow.is_open,
                    in_vain: slow.in_vain.filter(|in_vain| *in_vain == asked),
                    ..Slow::default()
                };
            }
        }
    }

    /// There are none of a probe while it is held back, and what notes who begins its events is away from its hook.
    pub(super) fn hold(&mut self, place: usize, installed: &Installed, programs: &mut Programs) {
        if installed.is_held_back() {
            programs.detach_origins(installed);
        } else if self.slow[place].is_open
            && let Err(refusal) = programs.attach_origins(installed)
        {
            let (probe, detail) = (installed.probe.name, refusal.detail);
            tracing::warn!(probe, "exemplars have no process any more: {detail}");
        }
    }

    /// Whether there are any of a probe, while it is not held back.
    pub(super) fn are_on(&self, probe: usize) -> bool {
        let slow = &self.slow[probe];
        slow.is_open && slow.asked != config::Exemplars::Off
    }

    /// The threshold of a probe in nanoseconds, if there is one.
    pub(crate) fn threshold_ns(&self, probe: usize) -> Option<u64> {
        let threshold = self.slow[probe].threshold_ns;
        (threshold > 0).then_some(threshold)
    }

    /// Takes in what has come. Before the cells are read: what they count then has it already.
    pub(super) fn take_in(&mut self, probes: &[Probe]) {
        let Some(events) = &mut self.events else {
            return;
        };
        let slow = probes.iter().zip(&self.slow);
        let open = slow.filter(|(_, slow)| slow.is_open);
        let open: Vec<u8> = open
            .map(|(probe, _)| probe.installed.probe.number)
            .collect();
        let latest = &mut self.latest;
        events.take(|event| {
            if open.contains(&(event.key.kind >> 4)) {
                keep(latest, event);
            }
        });
    }

    /// Forgets those that nobody can see: of series that there are not, and of a clock that was set back.
    pub(super) fn forget(&mut self, is_there: impl Fn(&SeriesKey) -> bool) {
        let now = SystemTime::now();
        self.latest
            .retain(|(key, ..), exemplar| exemplar.time <= now && is_there(key));
        trim(&mut self.latest);
    }

    /// Forgets those of a series that has other labels from now on.
    pub(super) fn forget_renamed(&mut self, key: &SeriesKey) {
        let all = (*key, 0, 0)..=(*key, usize::MAX, usize::MAX);
        let found: Vec<_> = self.latest.range(all).map(|(key, _)| *key).collect();
        for key in found {
            self.latest.remove(&key);
        }
    }

    /// Chooses the thresholds anew, of which those are handed over that are others now.
    pub(super) fn choose(
        &mut self,
        now: Instant,
        probes: &[Probe],
        mut set: impl FnMut(usize, u64),
    ) {
        for (place, (slow, probe)) in self.slow.iter_mut().zip(probes).enumerate() {
            let counted = probe.sums.iter().find_map(|sum| match sum {
                Value::Histogram(totals) => Some(&**totals),
                _ => None,
            });
            let chosen = if probe.installed.is_held_back() {
                Some(0)
            } else {
                slow.choice(now, counted)
            };
            if let Some(threshold_ns) = chosen
                && threshold_ns != slow.threshold_ns
            {
                slow.threshold_ns = threshold_ns;
                set(place, threshold_ns);
            }
        }
    }

    /// All of them, with series and metric.
    pub(super) fn all(&self) -> impl Iterator<Item = (&SeriesKey, usize, &Exemplar)> {
        let all = self.latest.iter();
        all.map(|((key, metric, _), exemplar)| (key, *metric, exemplar))
    }

    /// What is known of a series' metric, by bucket.
    pub(super) fn of(&self, key: &SeriesKey, metric: usize) -> Vec<&Exemplar> {
        let all = (*key, metric, 0)..(*key, metric, BUCKETS);
        self.latest
            .range(all)
            .map(|(_, exemplar)| exemplar)
            .collect()
    }
}

fn which(config: &Config, installed: &Installed) -> config::Exemplars {
    let which = config.exemplars.get(installed.probe.name);
    which.copied().unwrap_or_default()
}

impl Slow {
    /// The threshold that is to be in force, if it is time to choose one.
    fn choice(&mut self, now: Instant, counted: Option<&Totals>) -> Option<u64> {
        match self.asked {
            _ if !self.is_open => Some(0),
            config::Exemplars::Off => Some(0),
            config::Exemplars::Slow(slow) => {
                Some(u64::try_from(slow.as_nanos()).unwrap_or(u64::MAX))
            }
            config::Exemplars::Auto => {
                let counted = counted?;
                let since = self.chosen.map(|chosen| now.duration_since(chosen));
                if since.is_some_and(|since| since < CHOICE_INTERVAL) {
                    return None;
                }
                let new = counted.since(&self.counted);
                self.counted = counted.clone();
                self.chosen = Some(now);
                // Of the first interval nobody knows how long it was.
                Some(threshold_ns(&new, since.unwrap_or(CHOICE_INTERVAL)))
            }
        }
    }
}

/// The shortest duration above which there were no more events than wanted.
fn threshold_ns(counted: &Totals, interval: Duration) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // small and positive
    let mut room = (EVENTS_PER_SECOND * interval.as_secs_f64()) as u64;
    for (bucket, events) in counted.buckets.iter().enumerate().rev() {
        if *events > room {
            return edge_ns(bucket.min(BUCKETS - 2)) + 1;
        }
        room -= events;
    }
    1
}

fn edge_ns(bucket: usize) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 16 s at most
    let ns = (bucket_edge_seconds(bucket) * 1e9) as u64;
    ns
}

fn keep(latest: &mut BTreeMap<(SeriesKey, usize, usize), Exemplar>, event: Event) {
    let mut labels = Vec::new();
    if let Some((pid, comm)) = event.process {
        labels.extend([("pid", pid.to_string()), ("comm", comm)]);
    }
    labels.extend(event.detail.labels);
    let characters = |(name, value): &(&str, String)| name.len() + value.chars().count();
    if labels.iter().map(characters).sum::<usize>() > MAX_CHARACTERS {
        return;
    }
    for (metric, duration_ns) in event.detail.timings_ns {
        let bucket = (0..BUCKETS - 1)
            .find(|bucket| duration_ns <= edge_ns(*bucket))
            .unwrap_or(BUCKETS - 1);
        let exemplar = Exemplar {
            bucket,
            labels: labels.clone(),
            duration_ns,
            time: event.ended,
        };
        // Not in the order of time: rings are emptied one after the other.
        let place = latest.entry((event.key, metric, bucket));
        let kept = place.or_insert_with(|| exemplar.clone());
        if kept.time < exemplar.time {
            *kept = exemplar;
        }
    }
}

/// Leaves the newest, as many as there may be.
fn trim(latest: &mut BTreeMap<(SeriesKey, usize, usize), Exemplar>) {
    let Some(surplus) = latest.len().checked_sub(MAX + 1) else {
        return;
    };
    let mut times: Vec<SystemTime> = latest.values().map(|exemplar| exemplar.time).collect();
    let (_, newest_to_go, _) = times.select_nth_unstable(surplus);
    let newest_to_go = *newest_to_go;
    latest.retain(|_, exemplar| exemplar.time > newest_to_go);
}

#[cfg(test)]
mod tests {
    use super::*;
    use probes::EventDetail;
    use std::time::UNIX_EPOCH;

    const MS: u64 = 1_000_000;

    fn totals(buckets: &[(usize, u64)]) -> Totals {
        let mut totals = Totals::default();
        for (bucket, events) in buckets {
            totals.buckets[*bucket] = *events;
        }
        totals
    }

    fn event(cgroup_id: u64, duration_ns: u64, second: u64) -> Event {
        Event {
            ended: UNIX_EPOCH + Duration::from_secs(second),
            duration_ns: Some(duration_ns),
            key: SeriesKey {
                cgroup_id,
                device: 0,
                hierarchy: 0,
                kind: 0,
                detail: 0,
            },
            process: Some((7, "curl".to_owned())),
            detail: EventDetail {
                timings_ns: vec![(0, duration_ns)],
                labels: vec![("peer", "10.0.0.1:443".to_owned())],
                what: ("role", "client"),
                outcome: "ok".into(),
                numbers: Vec::new(),
            },
        }
    }

    #[test]
    fn thresholds_leave_two_events_a_second() {
        let ten = Duration::from_secs(10);
        // 20 fit: all of them, or those of the buckets above the first that is too much.
        for (buckets, expected) in [
            (vec![], 1),
            (vec![(30, 20)], 1),
            (vec![(30, 21)], edge_ns(30) + 1),
            (vec![(30, 1000), (50, 15), (60, 5)], edge_ns(30) + 1),
            (vec![(30, 1000), (50, 16), (60, 5)], edge_ns(50) + 1),
            // Nothing is above what is above all edges: then it is all of that.
            (vec![(BUCKETS - 1, 1000)], edge_ns(BUCKETS - 2) + 1),
        ] {
            assert_eq!(threshold_ns(&totals(&buckets), ten), expected);
        }
    }

    #[test]
    fn a_choice_is_by_what_came_since_the_last() {
        let mut slow = Slow {
            asked: config::Exemplars::Auto,
            is_open: true,
            ..Slow::default()
        };
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let first = totals(&[(30, 100)]);
        assert_eq!(slow.choice(at(0), None), None);
        assert_eq!(slow.choice(at(0), Some(&first)), Some(edge_ns(30) + 1));
        // Too soon.
        assert_eq!(slow.choice(at(999), Some(&first)), None);
        assert_eq!(slow.choice(at(1000), Some(&first)), Some(1));
        let more = totals(&[(30, 100), (40, 7)]);
        assert_eq!(slow.choice(at(4000), Some(&more)), Some(edge_ns(40) + 1));
    }

    #[test]
    fn one_that_is_set_stands_at_once() {
        let mut slow = Slow {
            asked: config::Exemplars::Slow(Duration::from_millis(5)),
            is_open: true,
            ..Slow::default()
        };
        assert_eq!(slow.choice(Instant::now(), None), Some(5 * MS));
        slow.is_open = false;
        assert_eq!(slow.choice(Instant::now(), None), Some(0));
        slow.asked = config::Exemplars::Off;
        assert_eq!(slow.choice(Instant::now(), None), Some(0));
    }

    #[test]
    fn a_bucket_keeps_its_latest() {
        let mut latest = BTreeMap::new();
        keep(&mut latest, event(1, 5 * MS, 1));
        keep(&mut latest, event(1, 5 * MS + 1, 2));
        // Of another CPU's ring, that is emptied later.
        keep(&mut latest, event(1, 5 * MS + 2, 0));
        keep(&mut latest, event(1, 500 * MS, 3));
        keep(&mut latest, event(1, 60_000 * MS, 4));
        let found: Vec<_> = latest
            .values()
            .map(|exemplar| exemplar.duration_ns)
            .collect();
        assert_eq!(found, [5 * MS + 1, 500 * MS, 60_000 * MS]);
        for exemplar in latest.values().take(2) {
            assert!(exemplar.duration_ns <= edge_ns(exemplar.bucket));
            assert!(exemplar.duration_ns > edge_ns(exemplar.bucket - 1));
        }
        let last = latest.values().last().unwrap();
        assert_eq!(last.bucket, BUCKETS - 1);
        let labels = [("pid", "7"), ("comm", "curl"), ("peer", "10.0.0.1:443")];
        assert_eq!(
            last.labels,
            labels.map(|(name, value)| (name, value.to_owned()))
        );
    }

    #[test]
    fn the_oldest_goes() {
        let mut latest = BTreeMap::new();
        let count = u64::try_from(MAX).unwrap() + 3;
        for number in 0..count {
            // Not in the order of their keys.
            keep(&mut latest, event(count - number, MS, number));
        }
        trim(&mut latest);
        assert_eq!(latest.len(), MAX);
        let gone = latest.keys().all(|(key, ..)| key.cgroup_id <= count - 3);
        assert!(gone);
    }

    #[test]
    fn labels_beyond_the_limit_are_left_out() {
        // pid, 7, comm, curl and peer are 16 characters.
        for (characters, kept) in [(112, 1), (113, 0)] {
            let mut long = event(1, MS, 1);
            long.detail.labels[0].1 = "ä".repeat(characters);
            let mut latest = BTreeMap::new();
            keep(&mut latest, long);
            assert_eq!(latest.len(), kept);
        }
    }
}
