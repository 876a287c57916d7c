//! Totals of GPU processes: by workload and command name, so that they outlive the process.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

use probes::{
    Metric, Workload,
    gpu::{Process, Reading, ReadingValue},
};

use super::{Labels, Outcome, QUARANTINE, REMAINDER, Seen, Shown, Totals, Value, recent::Recent};
use crate::enrich::names::{Certainty, Named};

/// The process of those that found no place in the table.
const OTHER: &str = "other";

/// Labels besides workload, process and device.
type Own = Vec<(&'static str, Cow<'static, str>)>;

/// The totals, and the last reading of every process.
#[derive(Debug, Default)]
pub(super) struct ProcessTotals {
    /// By their number in the table.
    processes: HashMap<u16, Known>,
    totals: BTreeMap<Key, Total>,
    /// Of totals that were left behind, the next one's number.
    remainders: u64,
}

/// What to do about names that may have changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Renames {
    /// All are to be asked for again, not only those that are unknown.
    pub(super) due: bool,
    /// What was counted and seen stays with the old labels: others may share them, or it would count twice for those
    /// who are told since when it counts.
    pub(super) leave: bool,
    /// All is about to be seen.
    pub(super) shown: bool,
}

/// When a collection takes place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) now: Instant,
    /// When the one before it began.
    pub(super) looked: SystemTime,
}

/// What a total is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    metric: usize,
    /// None for those that found no place.
    workload: Option<Workload>,
    process: String,
    device: Option<u32>,
    own: Own,
}

/// A process as it was last read.
#[derive(Debug)]
struct Known {
    generation: u32,
    tgid: u32,
    last: HashMap<(usize, Option<u32>, Own), ReadingValue>,
    /// When it was first found to be gone.
    exited: Option<Instant>,
}

#[derive(Debug)]
struct Total {
    value: Value,
    labels: Labels,
    recent: Recent,
    /// Processes that have it, and lived at the last collection.
    processes: u32,
    certainty: Certainty,
    /// When a living process last had it, or it last changed.
    touched: Instant,
    /// When it was not there yet.
    begun: SystemTime,
    /// Whether anybody has seen it under its labels.
    shown: bool,
}

impl ProcessTotals {
    /// Takes in every process: what each has gained, and what is there now. Gives back those that
    /// are gone, and whose last values these were. `owner` names a workload; `None` are those that
    /// found no place.
    pub(super) fn take_in(
        &mut self,
        processes: Vec<Process>,
        mut owner: impl FnMut(Option<Workload>) -> Named,
        renames: Renames,
        clock: Clock,
        sums: &mut [Value],
        outcome: &mut Outcome,
    ) -> Vec<Process> {
        for total in self.totals.values_mut() {
            total.processes = 0;
        }
        let totals = self.totals.values_mut().map(|total| &mut total.value);
        for value in totals.chain(sums.iter_mut()) {
            if let Value::Gauge(value) = value {
                *value = 0;
            }
        }
        let mut rested = Vec::new();
        for process in processes {
            self.add(&process, &mut owner, clock, sums);
            match self.since_exit(&process, clock.now) {
                Some(rest) if rest >= QUARANTINE => rested.push(process),
                Some(_) => outcome.unfinished = true,
                None => {}
            }
        }
        self.name(owner, renames, clock, outcome);
        rested
    }

    fn add(
        &mut self,
        process: &Process,
        owner: &mut impl FnMut(Option<Workload>) -> Named,
        Clock { now, looked }: Clock,
        sums: &mut [Value],
    ) {
        let fresh = || Known {
            generation: process.generation,
            tgid: process.tgid,
            last: HashMap::new(),
            exited: None,
        };
        let known = self
            .processes
            .entry(process.slot)
            .and_modify(|known| {
                if (known.generation, known.tgid) != (process.generation, process.tgid) {
                    *known = fresh();
                }
            })
            .or_insert_with(fresh);
        for Reading {
            metric,
            device,
            labels,
            value,
        } in &process.readings
        {
            let last = known
                .last
                .entry((*metric, *device, labels.clone()))
                .or_insert_with(|| nothing(value));
            let mut gained = gain(last, value);
            // What is gone holds nothing.
            if process.exited && matches!(gained, Value::Gauge(_)) {
                gained = Value::Gauge(0);
            }
            let command = if process.other {
                OTHER
            } else {
                &process.command
            };
            let workload = (!process.other).then_some(process.workload);
            let key = Key {
                metric: *metric,
                workload,
                process: command.to_owned(),
                device: *device,
                own: labels.clone(),
            };
            sums[*metric].add(&gained);
            let total = self.totals.entry(key).or_insert_with(|| {
                let named = owner(workload);
                let labels = Labels {
                    owner: named.owner,
                    process: Some(command.to_owned()),
                    device: device.map(|device| device.to_string()),
                };
                Total {
                    value: gained.zero(),
                    labels,
                    recent: Recent::default(),
                    processes: 0,
                    certainty: named.certainty,
                    touched: now,
                    begun: looked,
                    shown: false,
                }
            });
            if !process.exited || !gained.is_zero() {
                total.touched = now;
            }
            total.processes += u32::from(!process.exited);
            match &gained {
                Value::Histogram(gained) => total.recent.add_buckets(0, &gained.buckets),
                Value::Counter(gained) | Value::CounterNs(gained) => {
                    total.recent.add(0, 0, *gained);
                }
                Value::Gauge(_) => {}
            }
            total.value.add(&gained);
        }
    }

    /// The probe is on again: what it had seen has all its time to come back.
    pub(super) fn resume(&mut self, now: Instant) {
        for total in self.totals.values_mut() {
            total.touched = now;
        }
    }

    /// How long a process has been known to be gone; `None` while it lives.
    fn since_exit(&mut self, process: &Process, now: Instant) -> Option<Duration> {
        let known = self.processes.get_mut(&process.slot)?;
        process
            .exited
            .then(|| now.duration_since(*known.exited.get_or_insert(now)))
    }

    /// Gives workloads their names that were not known before, or have changed.
    fn name(
        &mut self,
        mut owner: impl FnMut(Option<Workload>) -> Named,
        renames: Renames,
        Clock { now, looked }: Clock,
        outcome: &mut Outcome,
    ) {
        let mut left = Vec::new();
        for (key, total) in &mut self.totals {
            let Some(workload) = key.workload else {
                continue;
            };
            if renames.due || total.certainty == Certainty::Unknown {
                let before = total.labels.clone();
                let named = owner(key.workload);
                named.improve(&mut total.labels.owner, &mut total.certainty);
                // A gauge is what is there now, and goes along.
                let stays = !matches!(total.value, Value::Gauge(_));
                if renames.leave && total.shown && stays && before != total.labels {
                    let zero = total.value.zero();
                    let value = std::mem::replace(&mut total.value, zero);
                    let begun = std::mem::replace(&mut total.begun, looked);
                    left.push((key.clone(), before, value, begun));
                }
            }
            total.shown |= renames.shown;
            // Of those that ended nobody can tell.
            let lives = total.touched == now;
            if total.certainty == Certainty::Unknown
                && lives
                && !outcome.unknown.contains(&workload)
            {
                outcome.unknown.push(workload);
            }
        }
        for (key, labels, value, begun) in left {
            let workload = Some(Workload {
                hierarchy: REMAINDER,
                cgroup_id: self.remainders,
            });
            self.remainders += 1;
            let total = Total {
                value,
                labels,
                recent: Recent::default(),
                processes: 0,
                certainty: Certainty::Full,
                touched: now,
                begun,
                shown: true,
            };
            self.totals.insert(Key { workload, ..key }, total);
        }
    }

    /// Its number is another's from now on.
    pub(super) fn recycled(&mut self, process: &Process) {
        self.processes.remove(&process.slot);
    }

    /// Drops totals that no living process has and that have not changed for `retention`, and
    /// the oldest when there are more than `retained_max`; says how many those were.
    pub(super) fn forget(&mut self, now: Instant, retention: Duration, retained_max: usize) -> u64 {
        let mut retained: Vec<(Instant, Key)> = self
            .totals
            .iter()
            .filter(|(_, total)| total.touched != now)
            .map(|(key, total)| (total.touched, key.clone()))
            .collect();
        retained.sort_unstable();
        let old = retained.partition_point(|(touched, _)| now - *touched >= retention);
        let surplus = (retained.len() - old).saturating_sub(retained_max);
        let gone: Vec<(Key, Total)> = retained[..old + surplus]
            .iter()
            .filter_map(|(_, key)| self.totals.remove_entry(key))
            .collect();
        for (key, total) in gone {
            self.bequeath(&key, &total);
        }
        surplus as u64
    }

    /// Adds what is dropped to what is shown with the same labels, which must not fall.
    fn bequeath(&mut self, gone: &Key, dropped: &Total) {
        let heir = self.totals.iter_mut().find(|(key, total)| {
            (key.metric, &key.own, &total.labels) == (gone.metric, &gone.own, &dropped.labels)
        });
        if let Some((_, heir)) = heir {
            heir.value.add(&dropped.value);
            heir.begun = heir.begun.min(dropped.begun);
        }
    }

    /// Shows every total, with what it has gained lately.
    pub(super) fn see(&self, metrics: &'static [Metric], each: &mut dyn FnMut(&Seen)) {
        for (key, total) in &self.totals {
            let own = key.own.iter().map(|(label, value)| (*label, &**value));
            let own: Vec<_> = own.collect();
            each(&Seen {
                metric: &metrics[key.metric],
                labels: &total.labels,
                own: &own,
                value: &total.value,
                now: total.recent.now(0),
                last: total.recent.last(0),
                processes: total.processes,
                lives: total.processes > 0,
            });
        }
    }

    /// Ends the running step of what came lately.
    pub(super) fn turn(&mut self) {
        for total in self.totals.values_mut() {
            total.recent.turn();
        }
    }

    /// What is shown of a metric, in no order.
    pub(super) fn shown(&self, metric: usize) -> Vec<Shown<'_>> {
        let totals = self.totals.iter();
        totals
            .filter(|(key, _)| key.metric == metric)
            .map(|(key, total)| {
                let own = key.own.iter().map(|(label, value)| (*label, &**value));
                Shown {
                    exemplars: Vec::new(),
                    labels: &total.labels,
                    own: own.collect(),
                    value: Cow::Borrowed(&total.value),
                    begun: total.begun,
                }
            })
            .collect()
    }
}

/// The value of a process that has done nothing yet.
fn nothing(value: &ReadingValue) -> ReadingValue {
    match value {
        ReadingValue::Counter(_) => ReadingValue::Counter(0),
        ReadingValue::CounterNs(_) => ReadingValue::CounterNs(0),
        ReadingValue::Gauge(_) => ReadingValue::Gauge(0),
        ReadingValue::Histogram(_) => ReadingValue::Histogram(Box::default()),
    }
}

/// What a reading adds to its total, and makes it the last one. A sum that is read while the
/// kernel adds to it may seem to have fallen by some nanoseconds: it stays where it was.
fn gain(last: &mut ReadingValue, now: &ReadingValue) -> Value {
    let rise = |last: &mut u64, now: u64| {
        let gained = now.saturating_sub(*last);
        *last = now.max(*last);
        gained
    };
    match (last, now) {
        (ReadingValue::Counter(last), ReadingValue::Counter(now)) => {
            Value::Counter(rise(last, *now))
        }
        (ReadingValue::CounterNs(last), ReadingValue::CounterNs(now)) => {
            Value::CounterNs(rise(last, *now))
        }
        (ReadingValue::Histogram(last), ReadingValue::Histogram(now)) => {
            let mut gained = Totals::default();
            gained.between(last, now);
            last.clone_from(now);
            Value::Histogram(Box::new(gained))
        }
        (_, ReadingValue::Gauge(now)) => Value::Gauge(*now),
        // A process' readings of a metric are of one kind.
        (_, ReadingValue::Counter(_)) => Value::Counter(0),
        (_, ReadingValue::CounterNs(_)) => Value::CounterNs(0),
        (_, ReadingValue::Histogram(_)) => Value::Histogram(Box::default()),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::UNIX_EPOCH};

    use super::{super::recent::Gain, *};
    use crate::enrich::names::Owner;

    const LAUNCHES: usize = 0;
    const STARVED: usize = 1;
    const GAPS: usize = 2;
    const ALLOCATED: usize = 3;
    const RETENTION: Duration = Duration::from_secs(60);

    /// The totals, fed with processes that are made up.
    struct Fixture {
        totals: ProcessTotals,
        sums: Vec<Value>,
        start: Instant,
        now: Instant,
        /// The names of cgroups that are known.
        named: Vec<(u64, &'static str)>,
        renames: Renames,
        retained_max: usize,
    }

    impl Fixture {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                totals: ProcessTotals::default(),
                sums: vec![
                    Value::Counter(0),
                    Value::CounterNs(0),
                    Value::Histogram(Box::default()),
                    Value::Gauge(0),
                ],
                start: now,
                now,
                named: vec![(1, "/job")],
                renames: Renames {
                    due: false,
                    leave: false,
                    shown: false,
                },
                retained_max: 100,
            }
        }

        /// Takes the processes in, a second after the last time; says which are to be recycled,
        /// by their number, and how many totals had to go before their time.
        fn collect(&mut self, processes: &[Process]) -> (Vec<u16>, u64, Outcome) {
            self.now += Duration::from_secs(1);
            self.collect_now(processes)
        }

        fn collect_now(&mut self, processes: &[Process]) -> (Vec<u16>, u64, Outcome) {
            let mut outcome = Outcome::default();
            let rested = self.totals.take_in(
                processes.to_vec(),
                |workload| {
                    let id = workload.map(|workload| workload.cgroup_id);
                    let mut named = self.named.iter();
                    let (cgroup, certainty) = match (id, named.find(|(of, _)| Some(*of) == id)) {
                        (None, _) => (OTHER.to_owned(), Certainty::Full),
                        (_, Some((_, path))) => ((*path).to_owned(), Certainty::Full),
                        (Some(id), None) => (format!("unknown:0:{id}"), Certainty::Unknown),
                    };
                    let owner = Arc::new(Owner {
                        cgroup,
                        ..Owner::default()
                    });
                    Named { owner, certainty }
                },
                self.renames,
                Clock {
                    now: self.now,
                    looked: UNIX_EPOCH + (self.now - self.start),
                },
                &mut self.sums,
                &mut outcome,
            );
            let evicted = self.totals.forget(self.now, RETENTION, self.retained_max);
            for process in &rested {
                self.totals.recycled(process);
            }
            let rested = rested.iter().map(|process| process.slot).collect();
            (rested, evicted, outcome)
        }

        /// What is shown of a metric that is a number, as `cgroup process device labels value`.
        fn shown(&self, metric: usize) -> Vec<String> {
            let shown = self.totals.shown(metric);
            let mut lines: Vec<String> = shown
                .into_iter()
                .map(|shown| {
                    let Shown {
                        labels, own, value, ..
                    } = shown;
                    let value = match &*value {
                        Value::Histogram(totals) => format!("{:?}", filled(totals)),
                        Value::Counter(n) | Value::CounterNs(n) | Value::Gauge(n) => n.to_string(),
                    };
                    let device = labels.device.as_deref().unwrap_or("-");
                    let process = labels.process.as_deref().unwrap_or("-");
                    let cgroup = &labels.owner.cgroup;
                    format!("{cgroup} {process} {device} {own:?} {value}")
                })
                .collect();
            lines.sort();
            lines
        }
    }

    /// The sum, and the buckets that are not empty.
    fn filled(totals: &Totals) -> (u64, Vec<(usize, u64)>) {
        let buckets = totals.buckets.iter().copied().enumerate();
        let filled = buckets.filter(|(_, events)| *events > 0);
        (totals.sum_ns, filled.collect())
    }

    fn process(slot: u16, readings: Vec<Reading>) -> Process {
        Process {
            slot,
            generation: 0,
            tgid: 100 + u32::from(slot),
            other: false,
            workload: Workload {
                hierarchy: 0,
                cgroup_id: 1,
            },
            command: "train".to_owned(),
            exited: false,
            readings,
        }
    }

    fn reading(metric: usize, value: ReadingValue) -> Reading {
        Reading {
            metric,
            device: None,
            labels: Vec::new(),
            value,
        }
    }

    fn launches(count: u64) -> Reading {
        Reading {
            labels: vec![("api", "kernel".into())],
            ..reading(LAUNCHES, ReadingValue::Counter(count))
        }
    }

    fn starved(ns: u64) -> Reading {
        Reading {
            device: Some(0),
            ..reading(STARVED, ReadingValue::CounterNs(ns))
        }
    }

    fn allocated(bytes: u64) -> Reading {
        reading(ALLOCATED, ReadingValue::Gauge(bytes))
    }

    fn gaps(sum_ns: u64, buckets: &[(usize, u32)]) -> Reading {
        let mut histogram = probes::Histogram {
            sum: sum_ns,
            ..probes::Histogram::default()
        };
        for (bucket, events) in buckets {
            histogram.buckets[*bucket] = *events;
        }
        reading(GAPS, ReadingValue::Histogram(Box::new(histogram)))
    }

    fn number(value: &Value) -> u64 {
        match value {
            Value::Counter(n) | Value::CounterNs(n) | Value::Gauge(n) => *n,
            Value::Histogram(totals) => totals.count(),
        }
    }

    /// What the views see of starved time lately: in the last step, in the running one, and of how many living processes.
    fn lately(fixture: &Fixture) -> (u64, u64, u32) {
        let mut found = (0, 0, 0);
        fixture.totals.see(probes::PROBES[2].metrics, &mut |seen| {
            if seen.metric.name == probes::PROBES[2].metrics[STARVED].name {
                let sum = |gains: &[Gain]| gains.iter().map(|gain| gain.gained()).sum::<u64>();
                found.0 += sum(seen.last);
                found.1 += sum(seen.now);
                found.2 += seen.processes;
            }
        });
        found
    }

    #[test]
    fn what_came_lately_is_exact_whoever_comes_and_goes() {
        let mut fixture = Fixture::new();
        let two = |one, two| {
            [
                process(1, vec![starved(one)]),
                process(2, vec![starved(two)]),
            ]
        };
        fixture.collect(&two(5, 7));
        // Read twice within a step, as when somebody scrapes.
        fixture.collect(&two(6, 9));
        assert_eq!(lately(&fixture), (0, 15, 2));
        fixture.totals.turn();
        assert_eq!(lately(&fixture), (15, 0, 2));
        // One is gone, and its number another's who starts from nothing.
        let next = Process {
            generation: 1,
            ..process(1, vec![starved(3)])
        };
        fixture.collect(&[next]);
        assert_eq!(lately(&fixture), (15, 3, 1));
        fixture.totals.turn();
        fixture.now += RETENTION;
        fixture.collect(&[]);
        assert_eq!(lately(&fixture), (0, 0, 0));
    }

    #[test]
    fn processes_with_the_same_labels_add_up() {
        let mut fixture = Fixture::new();
        let mut other_name = process(3, vec![launches(1)]);
        other_name.command = "serve".to_owned();
        let two = |one, two| {
            [
                process(1, vec![launches(one), starved(5)]),
                process(2, vec![launches(two), starved(7)]),
                other_name.clone(),
            ]
        };
        fixture.collect(&two(10, 20));
        let kernel = r#"[("api", "kernel")]"#;
        assert_eq!(
            fixture.shown(LAUNCHES),
            [
                format!("/job serve - {kernel} 1"),
                format!("/job train - {kernel} 30"),
            ]
        );
        assert_eq!(fixture.shown(STARVED), ["/job train 0 [] 12"]);
        fixture.collect(&two(11, 25));
        assert_eq!(
            fixture.shown(LAUNCHES)[1],
            format!("/job train - {kernel} 36")
        );
        assert_eq!(number(&fixture.sums[LAUNCHES]), 37);
        assert_eq!(number(&fixture.sums[STARVED]), 12);
    }

    #[test]
    fn a_number_that_is_given_out_again_starts_from_nothing() {
        let mut fixture = Fixture::new();
        fixture.collect(&[process(1, vec![launches(10)])]);
        let next = Process {
            generation: 1,
            ..process(1, vec![launches(3)])
        };
        fixture.collect(std::slice::from_ref(&next));
        assert_eq!(number(&fixture.sums[LAUNCHES]), 13);
        // And so if the table itself is a new one.
        let next = Process {
            tgid: 7,
            ..process(1, vec![launches(4)])
        };
        fixture.collect(&[next]);
        assert_eq!(number(&fixture.sums[LAUNCHES]), 17);
        // One that was not given for once is no new one.
        fixture.collect(&[]);
        let same = Process {
            tgid: 7,
            ..process(1, vec![launches(5)])
        };
        fixture.collect(&[same]);
        assert_eq!(number(&fixture.sums[LAUNCHES]), 18);
    }

    #[test]
    fn a_racy_fall_is_none() {
        let mut fixture = Fixture::new();
        for (read, expected) in [(1000, 1000), (990, 1000), (999, 1000), (1010, 1010)] {
            fixture.collect(&[process(1, vec![starved(read)])]);
            let expected = format!("/job train 0 [] {expected}");
            assert_eq!(fixture.shown(STARVED), [expected], "{read}");
        }
    }

    #[test]
    fn gauges_are_of_the_living() {
        let mut fixture = Fixture::new();
        let live = |slot, bytes| process(slot, vec![allocated(bytes), launches(1)]);
        fixture.collect(&[live(1, 100), live(2, 50)]);
        assert_eq!(fixture.shown(ALLOCATED), ["/job train - [] 150"]);
        assert_eq!(number(&fixture.sums[ALLOCATED]), 150);
        let gone = Process {
            exited: true,
            ..live(1, 100)
        };
        fixture.collect(&[gone.clone(), live(2, 70)]);
        assert_eq!(fixture.shown(ALLOCATED), ["/job train - [] 70"]);
        let gone_too = Process {
            exited: true,
            ..live(2, 70)
        };
        fixture.collect(&[gone_too]);
        assert_eq!(fixture.shown(ALLOCATED), ["/job train - [] 0"]);
        assert_eq!(number(&fixture.sums[ALLOCATED]), 0);
        // What was counted stays, until nobody can have missed it.
        fixture.now += Duration::from_secs(57);
        fixture.collect(&[]);
        assert_eq!(fixture.shown(ALLOCATED), ["/job train - [] 0"]);
        assert_eq!(number(&fixture.sums[LAUNCHES]), 2);
        fixture.collect(&[]);
        fixture.collect(&[]);
        assert_eq!(fixture.shown(ALLOCATED), [""; 0]);
        assert_eq!(fixture.shown(LAUNCHES), [""; 0]);
    }

    #[test]
    fn the_last_values_are_read_after_a_rest() {
        let mut fixture = Fixture::new();
        let gone = |count| Process {
            exited: true,
            ..process(1, vec![launches(count)])
        };
        let (recycled, _, outcome) = fixture.collect(&[gone(5)]);
        assert_eq!((recycled, outcome.unfinished), (vec![], true));
        fixture.now += QUARANTINE / 2;
        let (recycled, _, outcome) = fixture.collect_now(&[gone(6)]);
        assert_eq!((recycled, outcome.unfinished), (vec![], true));
        fixture.now += QUARANTINE / 2;
        let (recycled, _, outcome) = fixture.collect_now(&[gone(7)]);
        assert_eq!((recycled, outcome.unfinished), (vec![1], false));
        assert_eq!(number(&fixture.sums[LAUNCHES]), 7);
        assert!(fixture.totals.processes.is_empty());
    }

    #[test]
    fn histograms_add_what_came() {
        let mut fixture = Fixture::new();
        let wrapping = u32::MAX;
        fixture.collect(&[process(1, vec![gaps(100, &[(3, 2), (7, wrapping)])])]);
        fixture.collect(&[
            process(1, vec![gaps(150, &[(3, 4), (7, 1)])]),
            process(2, vec![gaps(10, &[(3, 1)])]),
        ]);
        let expected = (160, vec![(3, 5), (7, u64::from(wrapping) + 2)]);
        assert_eq!(
            fixture.shown(GAPS),
            [format!("/job train - [] {expected:?}")]
        );
    }

    #[test]
    fn a_cgroup_is_named_later() {
        let mut fixture = Fixture::new();
        fixture.named.clear();
        let mut one = process(1, vec![launches(4), allocated(9)]);
        let (_, _, outcome) = fixture.collect(std::slice::from_ref(&one));
        assert_eq!(outcome.unknown, [one.workload]);
        assert_eq!(
            fixture.shown(ALLOCATED),
            ["unknown:0:1 train - [] 9".to_owned()]
        );
        fixture.named.push((1, "/late"));
        one.readings = vec![launches(6), allocated(8)];
        let (_, _, outcome) = fixture.collect(&[one]);
        assert_eq!(outcome.unknown, []);
        assert_eq!(fixture.shown(ALLOCATED), ["/late train - [] 8"]);
        assert_eq!(
            fixture.shown(LAUNCHES),
            [r#"/late train - [("api", "kernel")] 6"#]
        );
    }

    #[test]
    fn a_new_name_takes_the_values_along() {
        let mut fixture = Fixture::new();
        fixture.collect(&[process(1, vec![launches(4)])]);
        fixture.named = vec![(1, "/web")];
        fixture.collect(&[process(1, vec![launches(5)])]);
        let kernel = r#"[("api", "kernel")]"#;
        assert_eq!(
            fixture.shown(LAUNCHES),
            [format!("/job train - {kernel} 5")]
        );
        fixture.renames.due = true;
        fixture.collect(&[process(1, vec![launches(6)])]);
        assert_eq!(
            fixture.shown(LAUNCHES),
            [format!("/web train - {kernel} 6")]
        );
        // Nobody knows it any more, and it stays what it was.
        fixture.named.clear();
        fixture.collect(&[process(1, vec![launches(7)])]);
        assert_eq!(
            fixture.shown(LAUNCHES),
            [format!("/web train - {kernel} 7")]
        );
    }

    #[test]
    fn where_labels_are_shared_no_sum_falls() {
        let mut fixture = Fixture::new();
        fixture.named = vec![(1, "/job"), (2, "/job")];
        fixture.renames.leave = true;
        fixture.renames.shown = true;
        let second = |count| Process {
            workload: Workload {
                hierarchy: 0,
                cgroup_id: 2,
            },
            ..process(2, vec![launches(count), allocated(9)])
        };
        let first = |count| process(1, vec![launches(count), allocated(5)]);
        let sum = |fixture: &Fixture, metric, of: &str| -> u64 {
            let shown = fixture.totals.shown(metric);
            let of_name = shown.iter().filter(|shown| shown.labels.owner.cgroup == of);
            of_name.map(|shown| number(&shown.value)).sum()
        };
        let begun = |fixture: &Fixture, of: &str| -> Vec<u64> {
            let shown = fixture.totals.shown(LAUNCHES);
            let of_name = shown.iter().filter(|shown| shown.labels.owner.cgroup == of);
            let since = |shown: &Shown| shown.begun.duration_since(UNIX_EPOCH).unwrap();
            of_name.map(|shown| since(shown).as_secs()).collect()
        };
        fixture.collect(&[first(4), second(3)]);
        assert_eq!(sum(&fixture, LAUNCHES, "/job"), 7);
        fixture.named[1].1 = "/web";
        fixture.renames.due = true;
        fixture.collect(&[first(5), second(5)]);
        assert_eq!(sum(&fixture, LAUNCHES, "/job"), 5 + 5);
        assert_eq!(sum(&fixture, LAUNCHES, "/web"), 0);
        fixture.renames.due = false;
        fixture.collect(&[first(5), second(6)]);
        assert_eq!(sum(&fixture, LAUNCHES, "/web"), 1);
        assert_eq!(sum(&fixture, ALLOCATED, "/job"), 5);
        assert_eq!(sum(&fixture, ALLOCATED, "/web"), 9);
        assert_eq!(begun(&fixture, "/job"), [1, 1]);
        assert_eq!(begun(&fixture, "/web"), [2]);
        // What was left behind is not asked for, and is the others' in the end.
        fixture.now += RETENTION;
        let (_, _, outcome) = fixture.collect(&[first(6), second(6)]);
        assert_eq!(outcome.unknown, []);
        assert_eq!(sum(&fixture, LAUNCHES, "/job"), 11);
        assert_eq!(fixture.shown(LAUNCHES).len(), 2);
    }

    #[test]
    fn what_nobody_has_seen_goes_along() {
        let mut fixture = Fixture::new();
        fixture.renames.leave = true;
        let launched = |count| [process(1, vec![launches(count)])];
        let line = |name: &str, count: u64| {
            let kernel = r#"[("api", "kernel")]"#;
            format!("{name} train - {kernel} {count}")
        };
        fixture.collect(&launched(4));
        fixture.renames.due = true;
        fixture.named = vec![(1, "/web")];
        fixture.renames.shown = true;
        fixture.collect(&launched(5));
        assert_eq!(fixture.shown(LAUNCHES), [line("/web", 5)]);
        fixture.named = vec![(1, "/shop")];
        fixture.collect(&launched(6));
        fixture.collect(&launched(8));
        let mut shown = fixture.shown(LAUNCHES);
        shown.sort();
        assert_eq!(shown, [line("/shop", 2), line("/web", 6)]);
    }

    #[test]
    fn what_is_dropped_goes_to_the_next_of_its_name() {
        let mut fixture = Fixture::new();
        fixture.named = vec![(1, "/job"), (2, "/job")];
        let second = |count| Process {
            workload: Workload {
                hierarchy: 0,
                cgroup_id: 2,
            },
            ..process(2, vec![launches(count)])
        };
        fixture.collect(&[process(1, vec![launches(4)])]);
        fixture.collect(&[second(1)]);
        assert_eq!(fixture.shown(LAUNCHES).len(), 2);
        fixture.now += RETENTION;
        fixture.collect(&[second(2)]);
        assert_eq!(
            fixture.shown(LAUNCHES),
            [r#"/job train - [("api", "kernel")] 6"#]
        );
    }

    #[test]
    fn those_without_a_place_are_others() {
        let mut fixture = Fixture::new();
        fixture.named.clear();
        let others = Process {
            other: true,
            tgid: 0,
            command: String::new(),
            ..process(0, vec![launches(4)])
        };
        let (_, _, outcome) = fixture.collect(&[others]);
        assert_eq!(outcome, Outcome::default());
        assert_eq!(
            fixture.shown(LAUNCHES),
            [r#"other other - [("api", "kernel")] 4"#]
        );
    }

    #[test]
    fn too_many_that_are_gone_lose_the_oldest() {
        let mut fixture = Fixture::new();
        fixture.retained_max = 2;
        let named = |slot, name: &str| Process {
            command: name.to_owned(),
            ..process(slot, vec![launches(1)])
        };
        for (slot, name) in [(1, "b"), (2, "a"), (3, "c")] {
            fixture.collect(&[named(slot, name)]);
        }
        let (_, evicted, _) = fixture.collect(&[named(4, "d")]);
        assert_eq!(evicted, 1);
        let shown = fixture.shown(LAUNCHES);
        let left: Vec<_> = shown.iter().map(|line| &line[5..6]).collect();
        assert_eq!(left, ["a", "c", "d"]);
    }
}
