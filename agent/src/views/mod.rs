//! What people look at: the answers of `/api/v1`, from which the page is made.

mod events;
pub(crate) mod history;
pub(crate) mod who;
mod workloads;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use self::{
    history::{End, History, since_1970_ms},
    who::Id,
};
use crate::{
    collect::{Collector, Occasion, lock},
    enrich::process,
    expose::{View, metrics::Metrics},
};

/// What the agent took in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Own {
    cpu_ns: u64,
    resident_bytes: u64,
}

/// Ends the steps of the history.
#[derive(Debug)]
pub(crate) struct Recorder {
    history: Arc<Mutex<History>>,
    procfs: PathBuf,
    /// The agent's when the running step began.
    cpu: Duration,
}

impl Recorder {
    pub(crate) fn new(history: Arc<Mutex<History>>, procfs: PathBuf) -> Self {
        Self {
            history,
            procfs,
            cpu: cpu_time(),
        }
    }

    /// Ends the running step if its time has come. The totals have just been brought up to date. What is left of the
    /// step that then runs.
    pub(crate) fn record(&mut self, collector: &mut Collector) -> Duration {
        let mut history = lock(&self.history);
        let end = End {
            now: Instant::now(),
            at: SystemTime::now(),
        };
        if history.left(end.now).is_zero() {
            let cpu = cpu_time();
            let took = cpu.saturating_sub(std::mem::replace(&mut self.cpu, cpu));
            let own = Own {
                cpu_ns: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX),
                resident_bytes: process::resident_bytes(&self.procfs).unwrap_or_default(),
            };
            history.take(collector, end, own);
        }
        history.left(end.now)
    }
}

/// CPU time that this process has taken.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// Where the answers come from.
#[derive(Debug)]
pub(crate) struct Views {
    pub(crate) collector: Arc<Mutex<Collector>>,
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) metrics: Arc<Metrics>,
    /// The node's name, where Kubernetes has given it one.
    pub(crate) node: Option<String>,
}

impl View for Views {
    fn status(&self) -> Vec<u8> {
        json(&self.read_status())
    }

    fn workloads(&self) -> Vec<u8> {
        let collector = self.up_to_date();
        let window = lock(&self.history).recent(Instant::now());
        let now_ms = since_1970_ms(SystemTime::now());
        let answer = workloads::answer(|each| collector.see(each), now_ms, window);
        drop(collector);
        json(&answer)
    }

    fn events(&self) -> Vec<u8> {
        let collector = self.up_to_date();
        let answer = events::answer(|each| collector.see_slow(each), SystemTime::now());
        drop(collector);
        json(&answer)
    }

    fn history(&self, since: u64, workload: Option<Id>) -> Vec<u8> {
        json(&lock(&self.history).since(since, workload))
    }
}

impl Views {
    /// The totals, and the numbers of series, as they are by now.
    fn up_to_date(&self) -> MutexGuard<'_, Collector> {
        let mut collector = lock(&self.collector);
        if let Err(error) = collector.collect(Instant::now(), Occasion::Upkeep) {
            tracing::error!(%error, "values may be stale");
        }
        collector
    }

    fn read_status(&self) -> Status {
        let collector = self.up_to_date();
        let statuses = lock(&collector.statuses()).clone();
        let started = collector.started();
        drop(collector);
        let probes = statuses.into_iter().map(|status| ProbeStatus {
            probe: status.probe,
            verdict: status.verdict.name(),
            hook: status.hook,
            reason: status.reason.code(),
            detail: status.detail,
            own: BTreeMap::new(),
        });
        let mut probes: Vec<ProbeStatus> = probes.collect();
        let mut agent = BTreeMap::new();
        let mut lost = 0.0;
        self.metrics.source().about_itself(|name, labels, value| {
            if name == "sentry_events_lost_total" {
                lost += value;
            }
            if let Some((_, key)) = AGENT.iter().find(|(metric, _)| *metric == name) {
                agent.insert(*key, value);
            }
            let key = BY_PROBE.iter().find(|(metric, _)| *metric == name);
            let of_probe = labels.iter().find(|(label, _)| *label == "probe");
            if let (Some((_, key)), Some((_, probe))) = (key, of_probe)
                && let Some(status) = probes.iter_mut().find(|status| status.probe == *probe)
            {
                status.own.insert(*key, value);
            }
        });
        agent.insert("events_lost", lost);
        let history = lock(&self.history);
        let host = rustix::system::uname();
        Status {
            version: 1,
            agent_version: env!("CARGO_PKG_VERSION"),
            node: self
                .node
                .clone()
                .unwrap_or_else(|| host.nodename().to_string_lossy().into_owned()),
            kernel: host.release().to_string_lossy().into_owned(),
            now_ms: since_1970_ms(SystemTime::now()),
            started_ms: since_1970_ms(started),
            probes,
            agent,
            history: HistoryStatus {
                step_ms: u64::try_from(history::STEP.as_millis()).unwrap_or(u64::MAX),
                steps: history.len(),
                steps_max: history::STEPS,
                bytes: history.bytes(),
            },
        }
    }
}

/// Metrics about the agent, and what they are called in its status.
const AGENT: [(&str, &str); 3] = [
    ("process_cpu_seconds_total", "cpu_seconds"),
    ("process_resident_memory_bytes", "resident_bytes"),
    ("process_open_fds", "open_files"),
];

/// The same of each probe.
const BY_PROBE: [(&str, &str); 5] = [
    ("sentry_series", "series"),
    ("sentry_series_limit", "series_limit"),
    ("sentry_series_overflow_total", "overflow"),
    ("sentry_events_lost_total", "events_lost"),
    (
        "sentry_exemplar_threshold_seconds",
        "exemplars_above_seconds",
    ),
];

/// What `/api/v1/status` says; docs/page.md has what each part means.
#[derive(Debug, Serialize)]
struct Status {
    version: u8,
    agent_version: &'static str,
    node: String,
    kernel: String,
    now_ms: u64,
    started_ms: u64,
    probes: Vec<ProbeStatus>,
    agent: BTreeMap<&'static str, f64>,
    history: HistoryStatus,
}

#[derive(Debug, Serialize)]
struct ProbeStatus {
    probe: &'static str,
    verdict: &'static str,
    hook: &'static str,
    reason: &'static str,
    detail: String,
    #[serde(flatten)]
    own: BTreeMap<&'static str, f64>,
}

#[derive(Debug, Serialize)]
struct HistoryStatus {
    step_ms: u64,
    steps: usize,
    steps_max: usize,
    bytes: usize,
}

fn json(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer cannot be written");
        b"{}".to_vec()
    })
}
