//! Many containers: thousands that come and go, and a thousand at once.
//!
//! `SENTRY_CHURN_SECONDS` lets them come and go for longer than the few seconds of a test: 1,000 a minute.

use crate::agent::Agent;
use crate::exposition::{Exposition, Format, Labels};
use crate::host::{roots, turn, wait_for};
use crate::load::{self, Server, assert_all, count};
use crate::node::{NAME, Node, Seat, id, uid};
use sentry_bench::kubernetes::{Options, Pod};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

const CONNECTS: &str = "sentry_tcp_handshake_duration_seconds_count";

/// Containers that are alive at a time, and those that the API server is told of together.
const ALIVE: u64 = 20;

/// Where pods of the churn begin to be counted, and those of the thousand.
const CHURN: u64 = 10_000;
const THOUSAND: u64 = 30_000;

/// Where a kubelet with this cgroup root keeps most pods, as those of kind have one. No other test has it, and no other
/// run of this one: whoever connects from here is counted.
fn burstable() -> String {
    let root = format!("sentry{}", std::process::id());
    format!("/{root}.slice/{root}-kubepods.slice/{root}-kubepods-burstable.slice")
}

/// What must be 0 at the end. Whoever makes or removes thousands of cgroups at once elsewhere on this host adds to it.
const MISSES: [(&str, &[(&str, &str)]); 4] = [
    ("sentry_events_lost_total", &[("probe", "cgroup")]),
    ("sentry_events_lost_total", &[("probe", "tcp")]),
    ("sentry_series_overflow_total", &[("probe", "tcp")]),
    ("sentry_series_evicted_total", &[]),
];

/// How long a series may be shown after its retention: a removal has its event, a rest and a collection to wait for.
const FORGETTING: Duration = Duration::from_secs(20);

/// How long the agent may take to hear of pods.
const NEWS: Duration = Duration::from_secs(20);

/// How many, how fast, and for how long the gone are shown.
struct Plan {
    generations: u64,
    /// From one container to the next.
    pause: Duration,
    retention: Duration,
    /// `--series.max`. Those who live take a cell each, and so do some that are gone and not yet read for the last time:
    /// 64 would do, and with fewer cells than containers each is another's later. But agents show four times this many
    /// that are gone, 2,048 at least.
    series_max: u64,
}

impl Plan {
    fn of_environment() -> Self {
        let Ok(seconds) = std::env::var("SENTRY_CHURN_SECONDS") else {
            return Self {
                generations: 20,
                pause: Duration::ZERO,
                retention: Duration::from_secs(4),
                series_max: 256,
            };
        };
        let seconds: u64 = seconds.parse().unwrap();
        Self {
            generations: seconds * 1000 / 60 / ALIVE,
            pause: Duration::from_millis(60),
            retention: Duration::from_secs(120),
            // At 1,000 a minute 2,000 are shown that are gone, and there is room for what else the host runs.
            series_max: 2048,
        }
    }
}

/// A container from its pod's announcement on.
struct Life {
    pod: Pod,
    number: u64,
    seat: Option<Seat>,
    removed: Option<Instant>,
    seen: bool,
}

impl Life {
    /// Half of the pods have their container in the API server's status; of the others it knows the UID alone, and
    /// containerd's file has the container's name.
    fn has_status(number: u64) -> bool {
        number.is_multiple_of(2)
    }

    fn announced(number: u64) -> Self {
        let mut pod = Pod::new(
            NAME,
            &format!("jobs-{}", number % 3),
            &format!("job-{number}"),
            &uid(number),
        )
        .owned_by("ReplicaSet", "job");
        if Self::has_status(number) {
            pod = pod.with("main", &format!("containerd://{}", id(number)));
        }
        Self {
            pod,
            number,
            seat: None,
            removed: None,
            seen: false,
        }
    }

    fn path(number: u64) -> String {
        let uid = uid(number).replace('-', "_");
        format!(
            "{}/sentry{}-kubepods-burstable-pod{uid}.slice/cri-containerd-{}.scope",
            burstable(),
            std::process::id(),
            id(number)
        )
    }

    fn begin(&mut self, node: &Node, connect: &str) {
        if !Self::has_status(self.number) {
            node.containerd_state(&id(self.number), &self.pod, "main");
        }
        let seat = node.cgroup(&Self::path(self.number));
        assert_all(&seat.run(connect), "connected", 1);
        self.seat = Some(seat);
    }

    fn end(&mut self, node: &Node) {
        // Before the agent can hear of it.
        self.removed = Some(Instant::now());
        node.remove_pod(self.seat.as_ref().unwrap());
        if !Self::has_status(self.number) {
            node.forget_state(&id(self.number));
        }
    }

    /// Asserts that it is named as it must be, by the labels of its sample.
    fn assert_named(&self, labels: &Labels) {
        let pod = &self.pod;
        let wanted = [
            ("namespace", &*pod.namespace),
            ("pod", &pod.name),
            ("container", "main"),
        ];
        for (label, value) in wanted {
            assert_eq!(labels[label], value, "{label} of {}: {labels:?}", pod.name);
        }
    }
}

/// What the scrapes have shown so far.
struct Shown {
    /// The counters of the last scrape.
    counters: BTreeMap<(String, Labels), f64>,
    /// Seconds since the start, and bytes.
    resident: Vec<(f64, u64)>,
    scrapes: u64,
    largest: usize,
    slowest: Duration,
    /// What the last scrape said of [`MISSES`].
    missed: Vec<u64>,
}

impl Shown {
    /// Scrapes, and asserts what must hold at any time. Returns how many pods the agent knows.
    fn scrape(
        &mut self,
        agent: &Agent,
        lives: &mut BTreeMap<String, Life>,
        retention: Duration,
        start: Instant,
    ) -> u64 {
        let resident = status(agent, "VmRSS:");
        let before = Instant::now();
        self.resident
            .push(((before - start).as_secs_f64(), resident));
        let response = agent.get("/metrics", &[]);
        let after = Instant::now();
        self.scrapes += 1;
        self.largest = self.largest.max(response.body.len());
        self.slowest = self.slowest.max(after - before);
        let scrape = Exposition::parse(&response.text(), Format::Text);

        let client = [("role", "client")];
        let mut found = BTreeSet::new();
        for sample in scrape.matching(CONNECTS, &client) {
            let cgroup = sample.labels["cgroup"].as_str();
            assert_ne!(cgroup, "other");
            assert!(!cgroup.starts_with("unknown:"), "{sample:?}");
            if let Some(life) = lives.get_mut(cgroup) {
                life.assert_named(&sample.labels);
                assert_eq!(sample.value, 1.0, "{sample:?}");
                assert!(found.insert(cgroup), "twice: {sample:?}");
                life.seen = true;
            }
        }
        for (path, life) in lives.iter() {
            let shown = found.contains(path.as_str());
            let gone_for = |at: Instant| life.removed.map(|removed| at.duration_since(removed));
            if life.seat.is_none() {
                assert!(!shown, "{path} is not there yet");
            } else if gone_for(after).is_none_or(|gone| gone < retention) {
                assert!(shown, "{path}, gone for {:?}", gone_for(after));
            } else if gone_for(before).is_some_and(|gone| gone > retention + FORGETTING) {
                assert!(!shown, "{path}, gone for {:?}", gone_for(before));
            }
        }
        self.missed = MISSES
            .map(|(what, labels)| scrape.count(what, labels))
            .to_vec();
        let known = scrape.count("sentry_kubernetes_pods", &[]);
        self.assert_none_fell(scrape);
        known
    }

    /// No counter is less than it was in the last scrape.
    fn assert_none_fell(&mut self, scrape: Exposition) {
        let types = scrape.types;
        let is_counter = |name: &str| {
            let of = |suffix| types.get(name.strip_suffix(suffix)?);
            let kind = of("").or_else(|| of("_count")).or_else(|| of("_sum"));
            kind.is_some_and(|kind| kind != "gauge")
        };
        let mut counters = BTreeMap::new();
        for sample in scrape.samples {
            if !is_counter(&sample.name) {
                continue;
            }
            let key = (sample.name, sample.labels);
            if let Some(before) = self.counters.get(&key) {
                assert!(sample.value >= *before, "{key:?} fell: {before}");
            }
            counters.insert(key, sample.value);
        }
        self.counters = counters;
    }

    /// The median of what was resident in a time, in MB.
    fn resident_mb(&self, from: f64, to: f64) -> f64 {
        let of_time = self
            .resident
            .iter()
            .filter(|(at, _)| (from..to).contains(at));
        let mut bytes: Vec<u64> = of_time.map(|(_, bytes)| *bytes).collect();
        bytes.sort_unstable();
        megabytes(bytes[bytes.len() / 2])
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A size of the agent's process in bytes.
fn status(agent: &Agent, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib * 1024
}

/// How many pods the agent knows, from the text alone: a strict reader takes its time.
fn pods(agent: &Agent) -> u64 {
    let text = agent.get("/metrics", &[]).text();
    let mut lines = text.lines();
    let found = lines.find_map(|line| line.strip_prefix("sentry_kubernetes_pods "));
    found.unwrap().parse().unwrap()
}

#[test]
fn containers_that_come_and_go_are_all_named() {
    turn!("containers_that_come_and_go_are_all_named");
    let plan = Plan::of_environment();
    load::program();
    let node = Node::new();
    let agent = node.agent(&format!(
        "--probes tcp --overhead.budget off --series.max {} --series.retention {}s",
        plan.series_max,
        plan.retention.as_secs()
    ));
    let listener = Server::listen("", &[]);
    let connect = format!("connect --to 127.0.0.1:{} --count 1", listener.port());
    let cpu = || agent.scrape().value("process_cpu_seconds_total", &[]);
    let cpu_before = cpu();
    let start = Instant::now();
    let mut lives: BTreeMap<String, Life> = BTreeMap::new();
    let mut shown = Shown {
        counters: BTreeMap::new(),
        resident: Vec::new(),
        scrapes: 0,
        largest: 0,
        slowest: Duration::ZERO,
        missed: Vec::new(),
    };
    let generation = |number: u64| {
        let first = CHURN + number * ALIVE;
        (first..first + ALIVE).map(Life::path)
    };
    let mut due = start;
    for number in 0..plan.generations {
        for (path, member) in generation(number).zip(CHURN + number * ALIVE..) {
            let life = Life::announced(member);
            node.api.apply(&life.pod);
            lives.insert(path, life);
        }
        // What the agent has heard of, it knew in time.
        let older = if number == 0 { 0 } else { ALIVE };
        wait_for("pods", NEWS, || {
            (pods(&agent) == older + ALIVE).then_some(())
        });
        let before: Vec<String> = match number {
            0 => Vec::new(),
            _ => generation(number - 1).collect(),
        };
        for (place, path) in generation(number).enumerate() {
            sleep(due.saturating_duration_since(Instant::now()));
            due = due.max(Instant::now().checked_sub(plan.pause).unwrap()) + plan.pause;
            // One goes for each that comes.
            if let Some(path) = before.get(place) {
                lives.get_mut(path).unwrap().end(&node);
            }
            lives.get_mut(&path).unwrap().begin(&node, &connect);
        }
        for path in &before {
            node.api.delete(&lives[path].pod);
        }
        wait_for("fewer pods", NEWS, || {
            let known = shown.scrape(&agent, &mut lives, plan.retention, start);
            (known == ALIVE).then_some(())
        });
        // What can be shown no more was seen.
        lives.retain(|path, life| {
            let forgotten = life
                .removed
                .is_some_and(|removed| removed.elapsed() > plan.retention + 2 * FORGETTING);
            assert!(life.seen || !forgotten, "{path} was never shown");
            !forgotten
        });
    }
    assert!(lives.values().all(|life| life.seen));
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{} containers in {seconds:.0} s, {ALIVE} at a time, --series.max {}, retention {:?}: \
         all named, {} scrapes, the largest {:.1} MB, the slowest {:.0} ms, agent {:.1} s of CPU time",
        plan.generations * ALIVE,
        plan.series_max,
        plan.retention,
        shown.scrapes,
        megabytes(shown.largest as u64),
        shown.slowest.as_secs_f64() * 1e3,
        cpu() - cpu_before,
    );
    let mut minute = 0.0;
    while minute < seconds - 30.0 {
        let now = shown.resident_mb(minute, minute + 60.0);
        println!("from second {minute}: {now:.2} MB resident between scrapes");
        minute += 60.0;
    }
    assert_eq!(shown.missed, [0; MISSES.len()], "{MISSES:?}");
    // By then as many are forgotten as are made, of whatever sort.
    if seconds > 360.0 {
        let (then, now) = (
            shown.resident_mb(240.0, 300.0),
            shown.resident_mb(seconds - 60.0, seconds),
        );
        assert!(now <= then + 1.0, "{then} MB became {now} MB");
    }
    agent.stop();
}

#[test]
fn a_thousand_pods() {
    const PODS: u64 = 1000;
    turn!("a_thousand_pods");
    load::program();
    let node = Node::with(Options {
        page: 500,
        ..Options::default()
    });
    let mut expected = BTreeMap::new();
    for number in THOUSAND..THOUSAND + PODS {
        let name = format!("web-{:x}-{number:05}", 0x5d9c_7b8f + number);
        let container = format!("containerd://{}", id(number));
        let pod = Pod::new(NAME, "shop", &name, &uid(number)).with("app", &container);
        node.api.apply(&pod);
        expected.insert(Life::path(number), name);
        node.cgroup(&Life::path(number));
    }
    let agent = node.agent("--probes tcp,disk --series.max 4096");
    let before = status(&agent, "VmRSS:");
    let listener = Server::listen("", &[]);
    let burstable = roots().v2.join(burstable().trim_start_matches('/'));
    let start = Instant::now();
    let mut tour = load::command("tour", &[]);
    tour.arg("--below").arg(&burstable);
    tour.arg("--to")
        .arg(format!("127.0.0.1:{}", listener.port()));
    let report = load::report(tour);
    assert_all(&report, "connected", PODS);
    assert_eq!(count(&report, "cgroups"), PODS);
    let toured = start.elapsed();

    let mut took = Vec::new();
    let mut text = String::new();
    for _ in 0..5 {
        let start = Instant::now();
        text = agent.get("/metrics", &[]).text();
        took.push(start.elapsed());
    }
    took.sort();
    let after = status(&agent, "VmRSS:");
    let scrape = Exposition::parse(&text, Format::Text);
    let mut found = BTreeMap::new();
    for sample in scrape.matching(CONNECTS, &[("namespace", "shop"), ("role", "client")]) {
        let labels = &sample.labels;
        assert_eq!((labels["container"].as_str(), sample.value), ("app", 1.0));
        found.insert(labels["cgroup"].clone(), labels["pod"].clone());
    }
    assert_eq!(found, expected);
    assert_eq!(scrape.count("sentry_kubernetes_pods", &[]), PODS);
    let during = scrape.count("process_resident_memory_bytes", &[]);
    println!(
        "{PODS} pods: scrape {:.0} ms (median of 5), {:.1} MB of text, {} Prometheus series; resident {:.1} MB before \
         the connects ({:.1} s), {:.1} MB at the scrape, {:.1} MB after, {:.1} MB at most since the start",
        took[2].as_secs_f64() * 1e3,
        megabytes(text.len() as u64),
        scrape.samples.len(),
        megabytes(before),
        toured.as_secs_f64(),
        megabytes(during),
        megabytes(after),
        megabytes(status(&agent, "VmHWM:")),
    );
    // All that go at once give their cells back. Meanwhile others of the host may take a few.
    let in_use = || agent.scrape().count("sentry_series", &[("probe", "tcp")]);
    let before = in_use();
    drop(node);
    wait_for("recycled cells", Duration::from_secs(20), || {
        let now = in_use();
        (now + PODS <= before + 50).then_some(())
    });
    // Unoptimised, the program itself is larger than that.
    if !cfg!(debug_assertions) {
        assert!(during <= 25_000_000, "{during} bytes resident");
    }
    agent.stop();
}
