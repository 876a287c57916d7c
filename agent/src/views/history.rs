//! The last quarter of an hour, in steps and bounded memory.
//!
//! A step holds what was counted in it and no totals, so that nothing has to be compared with an earlier reading:
//! scrapes, the summary and other readers disturb it no more than series that come and go.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant, SystemTime},
};

use probes::MetricKind;
use serde::{Serialize, Serializer, ser::SerializeSeq};

use super::{
    Own,
    who::{Id, Who},
};
use crate::collect::{Collector, Seen};

/// How long a step is: as often as totals are read at least, so that it wakes nobody.
pub(crate) const STEP: Duration = Duration::from_secs(10);

/// Steps that are kept: 15 minutes.
pub(crate) const STEPS: usize = 90;

/// What a step may take, for the node and its workloads; what does not fit is counted as left out.
const STEP_BYTES: usize = 5 * 1024;

/// Workloads of all steps. Who was seen last goes for a new one.
const WHO_MAX: usize = 256;

/// What is told apart: a metric, a device and an operation. Who was seen last goes for a new one.
const LANES_MAX: usize = 256;

/// What is kept, by the names of the metrics.
const KEPT: [&str; 10] = [
    "sentry_tcp_handshake_duration_seconds",
    "sentry_tcp_connect_failures_total",
    "sentry_tcp_syn_retransmits_total",
    "sentry_disk_io_duration_seconds",
    "sentry_disk_bytes_total",
    "sentry_disk_errors_total",
    "sentry_gpu_launches_total",
    STARVED,
    "sentry_gpu_idle_seconds_total",
    "sentry_gpu_starvation_gap_seconds",
];

/// Labels by which it is not told apart.
const FOLDED: [&str; 2] = ["error", "api"];

const STARVED: &str = "sentry_gpu_starved_seconds_total";

/// Beside [`STARVED`]: the time in which its processes were there. What is neither starved nor idle was busy.
const PRESENT: &str = "gpu_present_seconds";

/// What a value of a step is of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Lane {
    metric: &'static str,
    kind: LaneKind,
    device: Option<String>,
    /// At most one label is left besides the device.
    own: Option<(&'static str, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum LaneKind {
    /// Pairs of a bucket and its events.
    Histogram,
    /// A count.
    Counter,
    /// A time in nanoseconds.
    Nanoseconds,
}

impl Lane {
    fn of(seen: &Seen) -> Self {
        let mut own = seen.own.iter().filter(|(name, _)| !FOLDED.contains(name));
        Self {
            metric: seen.metric.name,
            kind: match seen.metric.kind {
                MetricKind::Histogram => LaneKind::Histogram,
                MetricKind::CounterSeconds => LaneKind::Nanoseconds,
                MetricKind::Counter | MetricKind::Gauge => LaneKind::Counter,
            },
            device: seen.labels.device.clone(),
            own: own.next().map(|(name, value)| (*name, (*value).to_owned())),
        }
    }

    fn present(device: Option<String>) -> Self {
        Self {
            metric: PRESENT,
            kind: LaneKind::Nanoseconds,
            device,
            own: None,
        }
    }
}

/// Numbers for what is named in steps. A number is never given to another.
#[derive(Debug)]
struct Numbers<K> {
    known: BTreeMap<K, Numbered>,
    next: u32,
    max: usize,
}

#[derive(Debug)]
struct Numbered {
    number: u32,
    /// The last step that names it.
    step: u64,
}

impl<K: Ord> Numbers<K> {
    fn new(max: usize) -> Self {
        Self {
            known: BTreeMap::new(),
            next: 0,
            max,
        }
    }

    /// The number for a step; none where this step has named as many as there may be.
    fn number(&mut self, key: K, step: u64) -> Option<u32> {
        if let Some(known) = self.known.get_mut(&key) {
            known.step = step;
            return Some(known.number);
        }
        if self.known.len() >= self.max {
            let oldest = self.known.values().map(|known| known.step).min()?;
            if oldest == step {
                return None;
            }
            // All of that step: a pass for each that comes would take long where many do.
            self.known.retain(|_, known| known.step > oldest);
        }
        let number = self.next;
        self.next += 1;
        self.known.insert(key, Numbered { number, step });
        Some(number)
    }

    fn by_number(&self) -> BTreeMap<u32, &K> {
        let known = self.known.iter();
        known.map(|(key, known)| (known.number, key)).collect()
    }
}

/// The events of a lane by bucket, or one count.
type Values = BTreeMap<usize, u64>;

/// A step as it is kept: numbers of seven bits a byte. For the node, all lanes. For each workload: its number, how many
/// bytes follow, and its lanes. A lane is its number, how many pairs follow, and these, of a bucket and its events.
#[derive(Debug)]
struct Step {
    number: u64,
    end_ms: u64,
    length_ms: u64,
    node: Box<[u8]>,
    workloads: Box<[u8]>,
    left_out: u32,
    own: Own,
}

/// The last [`STEPS`] steps.
#[derive(Debug)]
pub(crate) struct History {
    steps: VecDeque<Step>,
    lanes: Numbers<Lane>,
    who: Numbers<Who>,
    /// Of the running step.
    number: u64,
    began: Instant,
}

/// When a step ends, by both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct End {
    pub(crate) now: Instant,
    pub(crate) at: SystemTime,
}

impl History {
    /// Nothing yet; the first step begins at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            steps: VecDeque::new(),
            lanes: Numbers::new(LANES_MAX),
            who: Numbers::new(WHO_MAX),
            number: 1,
            began: now,
        }
    }

    /// Ends the running step, with all that was counted in it. The totals have just been brought up to date.
    pub(crate) fn take(&mut self, collector: &mut Collector, end: End, own: Own) {
        self.take_from(|each| collector.see(each), end, own);
        collector.turn();
    }

    fn take_from(&mut self, see: impl FnOnce(&mut dyn FnMut(&Seen)), end: End, own: Own) {
        let number = self.number;
        self.number += 1;
        let length = end.now - std::mem::replace(&mut self.began, end.now);
        let mut node: BTreeMap<Lane, Values> = BTreeMap::new();
        let mut workloads: BTreeMap<Who, BTreeMap<Lane, Values>> = BTreeMap::new();
        let present_ns = |processes: u32| {
            let length = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
            u64::from(processes).saturating_mul(length)
        };
        see(&mut |seen| {
            let is_there = seen.processes > 0 && seen.metric.name == STARVED;
            if !keeps(seen.metric.name) || (seen.now.is_empty() && !is_there) {
                return;
            }
            let lane = Lane::of(seen);
            let mut lanes = [
                &mut node,
                workloads.entry(Who::of(seen.labels)).or_default(),
            ];
            if is_there {
                for lanes in &mut lanes {
                    let present = Lane::present(lane.device.clone());
                    let total = lanes.entry(present).or_default().entry(0).or_default();
                    *total += present_ns(seen.processes);
                }
            }
            for lanes in &mut lanes {
                let values = lanes.entry(lane.clone()).or_default();
                for gain in seen.now {
                    *values.entry(gain.bucket()).or_default() += gain.gained();
                }
            }
        });
        let mut left_out = 0;
        let mut node_bytes = Vec::new();
        for (lane, values) in node {
            match self.lanes.number(lane, number) {
                Some(lane) if put(&mut node_bytes, lane, &values, STEP_BYTES) => {}
                _ => left_out += 1,
            }
        }
        let mut room = STEP_BYTES.saturating_sub(node_bytes.len());
        let mut bytes = Vec::new();
        let mut weighed: Vec<_> = workloads.into_iter().collect();
        weighed.sort_by_cached_key(|(_, lanes)| std::cmp::Reverse(weight(lanes)));
        for (who, lanes) in weighed {
            let mut record = Vec::new();
            let all = lanes.iter().all(|(lane, values)| {
                let lane = self.lanes.number(lane.clone(), number);
                lane.is_some_and(|lane| put(&mut record, lane, values, room))
            });
            // A number of five bytes at most, and a length of two.
            let fits = all && bytes.len() + record.len() + 7 <= room;
            match self.who.number(who, number).filter(|_| fits) {
                Some(who) => {
                    put_number(&mut bytes, u64::from(who));
                    put_number(&mut bytes, record.len() as u64);
                    bytes.append(&mut record);
                }
                None => left_out += 1,
            }
        }
        room = room.saturating_sub(bytes.len());
        debug_assert!(room <= STEP_BYTES);
        if self.steps.len() == STEPS {
            self.steps.pop_front();
        }
        self.steps.push_back(Step {
            number,
            end_ms: since_1970_ms(end.at),
            length_ms: u64::try_from(length.as_millis()).unwrap_or(u64::MAX),
            node: node_bytes.into_boxed_slice(),
            workloads: bytes.into_boxed_slice(),
            left_out,
            own,
        });
    }

    /// What is left of the running step.
    pub(crate) fn left(&self, now: Instant) -> Duration {
        STEP.saturating_sub(now.duration_since(self.began))
    }

    /// How long the running step and the one before it took until `now`: the time of [`Seen::now`] and [`Seen::last`].
    pub(crate) fn recent(&self, now: Instant) -> Duration {
        let running = now.duration_since(self.began);
        let last = self.steps.back().map_or(0, |step| step.length_ms);
        running + Duration::from_millis(last)
    }

    /// The memory that it takes in bytes, nearly.
    pub(crate) fn bytes(&self) -> usize {
        let steps = self.steps.iter();
        let steps = steps.map(|step| step.node.len() + step.workloads.len() + size_of::<Step>());
        let who = self.who.known.keys().map(Who::bytes);
        let lanes = self.lanes.known.len() * (size_of::<Lane>() + 32);
        steps.sum::<usize>() + who.sum::<usize>() + lanes
    }

    /// Steps that are there.
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// The steps after the one of this number, for all workloads together or for one of them with its processes, of
    /// which each has its own values.
    pub(crate) fn since(&self, number: u64, of: Option<Id>) -> Answer<'_> {
        let lanes = self.lanes.by_number();
        let who = self.who.by_number();
        let wanted = who
            .iter()
            .filter(|(_, who)| of.is_some_and(|id| who.belongs_to(id)));
        let wanted: Vec<u32> = wanted.map(|(number, _)| *number).collect();
        let steps = self.steps.iter().filter(|step| step.number > number);
        let mut named = Vec::new();
        let steps: Vec<_> = steps
            .map(|step| {
                let records = Records(&step.workloads);
                let (mut values, mut processes) = (Vec::new(), Vec::new());
                if of.is_none() {
                    values = read(&step.node, &lanes);
                }
                for (number, record) in records {
                    if wanted.contains(&number) {
                        values.extend(read(record, &lanes));
                    } else if of.is_none() {
                        let mut of_gpu = read(record, &lanes);
                        of_gpu.retain(|value| value.is_gpu(&lanes));
                        if !of_gpu.is_empty() && who.contains_key(&number) {
                            named.push(number);
                            processes.push((number, of_gpu));
                        }
                    }
                }
                AnsweredStep {
                    number: step.number,
                    end_ms: step.end_ms,
                    length_ms: step.length_ms,
                    left_out: step.left_out,
                    agent: step.own,
                    values,
                    processes,
                }
            })
            .collect();
        named.sort_unstable();
        named.dedup();
        let named = named.into_iter().filter_map(|number| {
            let who = who.get(&number).copied()?;
            Some(NamedWho {
                number,
                id: who.id(),
                labels: who,
            })
        });
        let known = of.is_none() || !wanted.is_empty();
        Answer {
            version: 1,
            step_ms: u64::try_from(STEP.as_millis()).unwrap_or(u64::MAX),
            steps_max: STEPS,
            latest: self.steps.back().map_or(0, |step| step.number),
            known,
            lanes: lanes
                .iter()
                .map(|(number, lane)| NamedLane::new(*number, lane))
                .collect(),
            processes: named.collect(),
            steps,
        }
    }
}

/// How soon a workload has its place in a step: those with GPUs first, then by events.
fn weight(lanes: &BTreeMap<Lane, Values>) -> u64 {
    let of_lane = |(lane, values): (&Lane, &Values)| match lane.kind {
        LaneKind::Nanoseconds => u64::MAX / 2,
        LaneKind::Counter if lane.metric.ends_with("_bytes_total") => 0,
        LaneKind::Histogram | LaneKind::Counter => values.values().sum(),
    };
    lanes.iter().map(of_lane).fold(0, u64::saturating_add)
}

/// Adds a lane, if it leaves the whole within `most` bytes.
fn put(bytes: &mut Vec<u8>, lane: u32, values: &Values, most: usize) -> bool {
    let before = bytes.len();
    put_number(bytes, u64::from(lane));
    put_number(bytes, values.len() as u64);
    for (bucket, events) in values {
        put_number(bytes, *bucket as u64);
        put_number(bytes, *events);
    }
    let fits = bytes.len() <= most;
    if !fits {
        bytes.truncate(before);
    }
    fits
}

fn put_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn get_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    let mut shift = 0;
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

/// The records of workloads in a step.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let number = get_number(&mut self.0)?;
        let length = get_number(&mut self.0)?;
        let (record, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some((u32::try_from(number).ok()?, record))
    }
}

/// The lanes of a record, but those that are known no more.
fn read(mut bytes: &[u8], lanes: &BTreeMap<u32, &Lane>) -> Vec<LaneValues> {
    let mut read = Vec::new();
    let mut next = || -> Option<LaneValues> {
        let lane = u32::try_from(get_number(&mut bytes)?).ok()?;
        let pairs = get_number(&mut bytes)?;
        let mut values = Vec::new();
        for _ in 0..pairs {
            let bucket = get_number(&mut bytes)?;
            values.push((bucket, get_number(&mut bytes)?));
        }
        Some(LaneValues {
            lane,
            is_histogram: lanes
                .get(&lane)
                .is_some_and(|lane| lane.kind == LaneKind::Histogram),
            values,
        })
    };
    while let Some(values) = next() {
        if lanes.contains_key(&values.lane) {
            read.push(values);
        }
    }
    read
}

/// Whether a metric is in the history.
pub(super) fn keeps(metric: &str) -> bool {
    KEPT.contains(&metric)
}

/// How far back it goes.
pub(super) fn span() -> Duration {
    STEP.saturating_mul(u32::try_from(STEPS).unwrap_or(u32::MAX))
}

pub(super) fn since_1970_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// What `/api/v1/history` says; docs/page.md has what each part means.
#[derive(Debug, Serialize)]
pub(crate) struct Answer<'a> {
    version: u8,
    step_ms: u64,
    steps_max: usize,
    latest: u64,
    /// Whether the workload that was asked for is in it at all.
    known: bool,
    lanes: Vec<NamedLane<'a>>,
    processes: Vec<NamedWho<'a>>,
    steps: Vec<AnsweredStep>,
}

#[derive(Debug, Serialize)]
struct NamedLane<'a> {
    lane: u32,
    metric: &'a str,
    kind: LaneKind,
    labels: BTreeMap<&'a str, &'a str>,
}

impl<'a> NamedLane<'a> {
    fn new(number: u32, lane: &'a Lane) -> Self {
        let device = lane.device.as_ref().map(|device| ("device", device));
        let own = lane.own.as_ref().map(|(name, value)| (*name, value));
        let labels = device.into_iter().chain(own);
        Self {
            lane: number,
            metric: lane.metric,
            kind: lane.kind,
            labels: labels.map(|(name, value)| (name, value.as_str())).collect(),
        }
    }
}

#[derive(Debug, Serialize)]
struct NamedWho<'a> {
    number: u32,
    id: Id,
    labels: &'a Who,
}

#[derive(Debug, Serialize)]
struct AnsweredStep {
    number: u64,
    end_ms: u64,
    length_ms: u64,
    left_out: u32,
    agent: Own,
    values: Vec<LaneValues>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    processes: Vec<(u32, Vec<LaneValues>)>,
}

/// As `[lane, [bucket, events, ...]]` for a histogram, `[lane, value]` else.
#[derive(Debug)]
struct LaneValues {
    lane: u32,
    is_histogram: bool,
    values: Vec<(u64, u64)>,
}

impl LaneValues {
    fn is_gpu(&self, lanes: &BTreeMap<u32, &Lane>) -> bool {
        let lane = lanes.get(&self.lane);
        lane.is_some_and(|lane| lane.kind == LaneKind::Nanoseconds)
    }
}

impl Serialize for LaneValues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut whole = serializer.serialize_seq(Some(2))?;
        whole.serialize_element(&self.lane)?;
        if self.is_histogram {
            let flat = self.values.iter().flat_map(|(bucket, n)| [*bucket, *n]);
            whole.serialize_element(&flat.collect::<Vec<_>>())?;
        } else {
            let value = self.values.first().map_or(0, |(_, value)| *value);
            whole.serialize_element(&value)?;
        }
        whole.end()
    }
}

#[cfg(test)]
mod tests {
    use probes::{BUCKETS, Metric, PROBES};
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{
        collect::{Labels, Value, recent::Recent},
        views::who::tests::labels,
    };

    const HANDSHAKE: &str = "sentry_tcp_handshake_duration_seconds";

    fn metric(name: &str) -> &'static Metric {
        let mut metrics = PROBES.iter().flat_map(|probe| probe.metrics);
        metrics.find(|metric| metric.name == name).unwrap()
    }

    /// Something that counted.
    struct Counted {
        metric: &'static Metric,
        labels: Labels,
        own: Vec<(&'static str, &'static str)>,
        recent: Recent,
        processes: u32,
    }

    impl Counted {
        fn new(name: &str, labels: Labels, own: &[(&'static str, &'static str)]) -> Self {
            Self {
                metric: metric(name),
                labels,
                own: own.to_vec(),
                recent: Recent::default(),
                processes: 0,
            }
        }

        fn client(cgroup: &str, events: &[(usize, u64)]) -> Self {
            let own = [("role", "client")];
            let mut counted = Self::new(HANDSHAKE, labels(cgroup, None), &own);
            for (bucket, events) in events {
                counted.recent.add(0, *bucket, *events);
            }
            counted
        }

        fn see(&self, each: &mut dyn FnMut(&Seen)) {
            each(&Seen {
                metric: self.metric,
                labels: &self.labels,
                own: &self.own,
                // Totals are none of the history's business.
                value: &Value::Counter(1 << 40),
                now: self.recent.now(0),
                last: self.recent.last(0),
                processes: self.processes,
                lives: true,
            });
        }
    }

    struct Fixture {
        history: History,
        now: Instant,
        at: SystemTime,
    }

    impl Fixture {
        fn new() -> Self {
            let now = Instant::now();
            Self {
                history: History::new(now),
                now,
                at: SystemTime::UNIX_EPOCH,
            }
        }

        fn step(&mut self, counted: &[Counted]) {
            self.now += STEP;
            self.at += STEP;
            let see = |each: &mut dyn FnMut(&Seen)| counted.iter().for_each(|one| one.see(each));
            let end = End {
                now: self.now,
                at: self.at,
            };
            self.history.take_from(see, end, Own::default());
        }

        fn since(&self, number: u64, of: Option<&str>) -> Json {
            let of = of.map(|cgroup| Who::of(&labels(cgroup, None)).id());
            serde_json::to_value(self.history.since(number, of)).unwrap()
        }
    }

    #[test]
    fn steps_hold_what_came_in_them() {
        let mut fixture = Fixture::new();
        fixture.step(&[
            Counted::client("/a", &[(3, 2), (89, 1)]),
            Counted::client("/b", &[(3, 5)]),
        ]);
        fixture.step(&[Counted::client("/b", &[(4, 300)])]);
        fixture.step(&[]);
        let all = fixture.since(0, None);
        assert_eq!(
            all["lanes"],
            json!([{"lane": 0, "metric": HANDSHAKE, "kind": "histogram", "labels": {"role": "client"}}])
        );
        let values = |answer: &Json| -> Vec<Json> {
            let steps = answer["steps"].as_array().unwrap().iter();
            steps.map(|step| step["values"].clone()).collect()
        };
        assert_eq!(
            values(&all),
            [
                json!([[0, [3, 7, 89, 1]]]),
                json!([[0, [4, 300]]]),
                json!([])
            ]
        );
        assert_eq!(all["latest"], 3);
        assert_eq!(all["steps"][1]["end_ms"], 20_000);
        assert_eq!(all["steps"][1]["length_ms"], 10_000);
        assert_eq!(values(&fixture.since(1, None)), values(&all)[1..]);
        assert_eq!(values(&fixture.since(3, None)), [] as [Json; 0]);
        // One workload alone; one that nobody has seen.
        let of_a = fixture.since(0, Some("/a"));
        assert_eq!(
            values(&of_a),
            [json!([[0, [3, 2, 89, 1]]]), json!([]), json!([])]
        );
        assert_eq!(of_a["known"], true);
        assert_eq!(fixture.since(0, Some("/c"))["known"], false);
    }

    #[test]
    fn workloads_with_other_labels_of_values_add_up() {
        let mut fixture = Fixture::new();
        let failed = |reason| {
            let own = [("reason", reason)];
            let name = "sentry_tcp_connect_failures_total";
            let mut counted = Counted::new(name, labels("/a", None), &own);
            counted.recent.add(0, 0, 2);
            counted
        };
        // A series that began anew under the same labels is one more.
        fixture.step(&[failed("refused"), failed("timeout"), failed("refused")]);
        let answer = fixture.since(0, Some("/a"));
        assert_eq!(answer["steps"][0]["values"], json!([[0, 4], [1, 2]]));
        assert_eq!(answer["lanes"][0]["labels"], json!({"reason": "refused"}));
    }

    #[test]
    fn processes_have_the_time_in_which_they_were_there() {
        let mut fixture = Fixture::new();
        let process = |starved_ns, processes| {
            let mut labels = labels("/job", Some("train"));
            labels.device = Some("0".to_owned());
            let mut counted = Counted::new(STARVED, labels, &[]);
            counted.recent.add(0, 0, starved_ns);
            counted.processes = processes;
            counted
        };
        fixture.step(&[process(4_000_000_000, 1)]);
        // Nothing but busy, then gone.
        fixture.step(&[process(0, 1)]);
        fixture.step(&[process(0, 0)]);
        let answer = fixture.since(0, None);
        let lane = |metric: &str| {
            let mut lanes = answer["lanes"].as_array().unwrap().iter();
            lanes.find(|lane| lane["metric"] == metric).unwrap()["lane"].clone()
        };
        let (present, starved) = (lane(PRESENT), lane(STARVED));
        let number = &answer["processes"][0]["number"];
        assert_eq!(
            answer["processes"][0]["labels"],
            json!({"cgroup": "/job", "process": "train"})
        );
        let seen = |step: usize| answer["steps"][step]["processes"].clone();
        let whole = 10_000_000_000_u64;
        assert_eq!(
            seen(0),
            json!([[number, [[present, whole], [starved, 4_000_000_000_u64]]]])
        );
        assert_eq!(seen(1), json!([[number, [[present, whole], [starved, 0]]]]));
        assert_eq!(seen(2), Json::Null);
    }

    #[test]
    fn memory_is_bounded_and_what_finds_no_room_is_counted() {
        let mut fixture = Fixture::new();
        let full: Vec<_> = (0..BUCKETS).map(|bucket| (bucket, 1 << 20)).collect();
        for step in 0..2 * STEPS {
            let mut counted = Vec::new();
            for number in 0..400 {
                // Long names, and others in each step.
                let cgroup = format!("/{}/{step}-{number}", "x".repeat(400));
                let events = if number < 40 { &full[..] } else { &full[..1] };
                counted.push(Counted::client(&cgroup, events));
            }
            fixture.step(&counted);
        }
        let history = &fixture.history;
        assert_eq!(history.len(), STEPS);
        assert!(history.bytes() < 700 * 1024, "{}", history.bytes());
        assert!(history.who.known.len() <= WHO_MAX);
        let answer = fixture.since(0, None);
        let last = &answer["steps"][STEPS - 1];
        // The node's own counts are whole.
        let values = last["values"][0][1].as_array().unwrap();
        assert_eq!(values[1], (1 << 20) * 400);
        assert_eq!(values[3], (1 << 20) * 40);
        // The busiest have their place, and as many more as there is room for.
        let busiest = format!("/{}/{}-0", "x".repeat(400), 2 * STEPS - 1);
        let of_busiest = fixture.since(0, Some(&busiest));
        let kept = of_busiest["steps"][STEPS - 1]["values"][0][1].as_array();
        assert_eq!(kept.map(Vec::len), Some(2 * BUCKETS));
        let left_out = last["left_out"].as_u64().unwrap();
        assert!((1..400).contains(&left_out), "{left_out}");
    }

    #[test]
    fn lanes_and_workloads_go_when_others_come() {
        let mut fixture = Fixture::new();
        for round in 0..u64::try_from(LANES_MAX).unwrap() + 10 {
            let mut io = Counted::client(&format!("/{round}"), &[]);
            io.metric = metric("sentry_disk_io_duration_seconds");
            io.own = vec![("operation", "read")];
            io.labels.device = Some(format!("loop{round}"));
            io.recent.add(0, 9, round + 1);
            fixture.step(&[io]);
        }
        assert!(fixture.history.lanes.known.len() <= LANES_MAX);
        assert!(fixture.history.who.known.len() <= WHO_MAX);
        let answer = fixture.since(0, None);
        let steps = answer["steps"].as_array().unwrap();
        for (at, step) in steps.iter().enumerate() {
            let events = LANES_MAX + 10 - STEPS + at + 1;
            assert_eq!(step["values"][0][1], json!([9, events]), "{at}");
            assert_eq!(step["left_out"], 0);
        }
    }

    #[test]
    fn rates_are_over_the_last_step_and_the_running_one() {
        let mut fixture = Fixture::new();
        let half = fixture.now + STEP / 2;
        assert_eq!(fixture.history.recent(half), STEP / 2);
        assert_eq!(fixture.history.left(half), STEP / 2);
        fixture.step(&[]);
        let later = fixture.now + Duration::from_secs(3);
        assert_eq!(fixture.history.recent(later), Duration::from_secs(13));
        assert_eq!(fixture.history.left(fixture.now + 2 * STEP), Duration::ZERO);
    }

    #[test]
    fn numbers_of_any_size() {
        let mut bytes = Vec::new();
        let numbers = [0, 1, 127, 128, 16_384, u64::MAX];
        for number in numbers {
            put_number(&mut bytes, number);
        }
        let mut rest = bytes.as_slice();
        assert_eq!(numbers.map(|_| get_number(&mut rest).unwrap()), numbers);
        assert_eq!(get_number(&mut rest), None);
        assert_eq!(get_number(&mut &[0x80_u8][..]), None);
    }
}
