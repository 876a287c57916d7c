//! The table of workloads: what each does now.

use std::{cmp::Reverse, collections::BTreeMap, time::Duration};

use probes::BUCKETS;
use serde::Serialize;

use super::who::{Id, Who};
use crate::collect::{Seen, Totals, Value};

/// Rows that are shown at most, the busiest.
pub(crate) const ROWS_MAX: usize = 2000;

/// What `/api/v1/workloads` says; docs/page.md has what each part means.
#[derive(Debug, Serialize)]
pub(crate) struct Answer {
    version: u8,
    now_ms: u64,
    /// What rates and quantiles are over.
    window_ms: u64,
    workloads: Vec<Row>,
    /// Rows beyond the most that are shown.
    left_out: usize,
}

/// A workload, or a process of one. Parts that it never had anything to do with are left out.
#[derive(Debug, Serialize)]
struct Row {
    id: Id,
    labels: Who,
    lives: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<Tcp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disk: Option<Disk>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<Gpu>,
    #[serde(skip)]
    events: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Tcp {
    client: Durations,
    server: Durations,
    failures: Count,
    syn_retransmits: Count,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Disk {
    io: Durations,
    bytes: Count,
    errors: Count,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Gpu {
    launches: Count,
    /// Of the window, that all its processes had together.
    #[serde(skip_serializing_if = "Option::is_none")]
    starved_share: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_share: Option<f64>,
    processes: u64,
    allocated_bytes: u64,
    errors: Count,
}

/// A count since the series began, and by the second.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Count {
    total: u64,
    per_second: f64,
}

/// Durations: how many, and within which half and 99 % of the recent ones lie.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Durations {
    total: u64,
    per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_seconds: Option<f64>,
}

/// What is added up of a row.
#[derive(Debug, Default)]
struct Sums {
    lives: bool,
    client: Recent,
    server: Recent,
    failures: Recent,
    syn_retransmits: Recent,
    io: Recent,
    bytes: Recent,
    disk_errors: Recent,
    launches: Recent,
    starved: Recent,
    idle: Recent,
    gpu_errors: Recent,
    gpu_processes: u64,
    allocated_bytes: u64,
    /// Times that processes waited on a device each: what the shares are of.
    present: u32,
}

/// A total and what came to it lately.
#[derive(Debug, Default)]
struct Recent {
    is_there: bool,
    total: u64,
    /// By bucket; all in the first for counters.
    gained: Vec<u64>,
}

impl Recent {
    fn add(&mut self, seen: &Seen) {
        self.is_there = true;
        self.total += match seen.value {
            Value::Histogram(totals) => totals.count(),
            Value::Counter(total) | Value::CounterNs(total) | Value::Gauge(total) => *total,
        };
        for gain in seen.last.iter().chain(seen.now) {
            let bucket = gain.bucket();
            if self.gained.len() <= bucket {
                self.gained.resize(bucket + 1, 0);
            }
            self.gained[bucket] += gain.gained();
        }
    }

    fn recent(&self) -> u64 {
        self.gained.iter().sum()
    }

    #[allow(clippy::cast_precision_loss)] // events of some seconds
    fn per_second(&self, window: Duration) -> f64 {
        rounded(self.recent() as f64 / window.as_secs_f64().max(0.1))
    }

    fn count(&self, window: Duration) -> Count {
        Count {
            total: self.total,
            per_second: self.per_second(window),
        }
    }

    fn durations(&self, window: Duration) -> Durations {
        let mut recent = Totals::default();
        for (bucket, gained) in self.gained.iter().enumerate().take(BUCKETS) {
            recent.buckets[bucket] = *gained;
        }
        Durations {
            total: self.total,
            per_second: self.per_second(window),
            p50_seconds: recent.quantile(0.5).map(rounded),
            p99_seconds: recent.quantile(0.99).map(rounded),
        }
    }

    /// Nanoseconds as a share of the time that `present` processes had.
    #[allow(clippy::cast_precision_loss)] // nanoseconds of some seconds
    fn share(&self, window: Duration, present: u32) -> Option<f64> {
        let whole = window.as_nanos() as f64 * f64::from(present);
        (self.is_there && present > 0).then(|| rounded((self.recent() as f64 / whole).min(1.0)))
    }
}

/// Three digits are enough to read, and few bytes.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let magnitude = value.abs().log10().floor();
    let unit = 10f64.powf(3.0 - magnitude);
    (value * unit).round() / unit
}

/// The rows of all that `see` shows.
pub(crate) fn answer(
    see: impl FnOnce(&mut dyn FnMut(&Seen)),
    now_ms: u64,
    window: Duration,
) -> Answer {
    let mut found: BTreeMap<Who, Sums> = BTreeMap::new();
    see(&mut |seen| {
        // The cells of what found no room are there from the start.
        if !seen.value.is_zero() {
            take_in(found.entry(Who::of(seen.labels)).or_default(), seen);
        }
    });
    let mut rows: Vec<Row> = found
        .into_iter()
        .map(|(who, sums)| row(who, &sums, window))
        .collect();
    let left_out = rows.len().saturating_sub(ROWS_MAX);
    if left_out > 0 {
        rows.sort_by_key(|row| Reverse((row.lives, row.events)));
        rows.truncate(ROWS_MAX);
    }
    Answer {
        version: 1,
        now_ms,
        window_ms: u64::try_from(window.as_millis()).unwrap_or(u64::MAX),
        workloads: rows,
        left_out,
    }
}

fn take_in(sums: &mut Sums, seen: &Seen) {
    let has = |name, value| seen.own.contains(&(name, value));
    sums.lives |= seen.lives;
    let recent = match seen.metric.name {
        "sentry_tcp_handshake_duration_seconds" if has("role", "server") => &mut sums.server,
        "sentry_tcp_handshake_duration_seconds" => &mut sums.client,
        "sentry_tcp_connect_failures_total" => &mut sums.failures,
        "sentry_tcp_syn_retransmits_total" => &mut sums.syn_retransmits,
        "sentry_disk_io_duration_seconds" => &mut sums.io,
        "sentry_disk_bytes_total" => &mut sums.bytes,
        "sentry_disk_errors_total" => &mut sums.disk_errors,
        "sentry_gpu_launches_total" => &mut sums.launches,
        "sentry_gpu_starved_seconds_total" => {
            sums.present += seen.processes;
            &mut sums.starved
        }
        "sentry_gpu_idle_seconds_total" => &mut sums.idle,
        "sentry_gpu_errors_total" => &mut sums.gpu_errors,
        "sentry_gpu_processes" | "sentry_gpu_allocated_bytes" => {
            if let Value::Gauge(value) = seen.value {
                let sum = match seen.metric.name {
                    "sentry_gpu_processes" => &mut sums.gpu_processes,
                    _ => &mut sums.allocated_bytes,
                };
                *sum += value;
            }
            return;
        }
        _ => return,
    };
    recent.add(seen);
}

fn row(who: Who, sums: &Sums, window: Duration) -> Row {
    let any = |parts: &[&Recent]| parts.iter().any(|part| part.total > 0);
    let tcp = any(&[
        &sums.client,
        &sums.server,
        &sums.failures,
        &sums.syn_retransmits,
    ]);
    let disk = any(&[&sums.io, &sums.bytes, &sums.disk_errors]);
    let gpu = any(&[&sums.launches, &sums.starved, &sums.idle, &sums.gpu_errors])
        || sums.gpu_processes > 0;
    let events = [
        &sums.client,
        &sums.server,
        &sums.failures,
        &sums.io,
        &sums.launches,
    ];
    Row {
        id: who.id(),
        labels: who,
        lives: sums.lives,
        events: events.iter().map(|part| part.recent()).sum(),
        tcp: tcp.then(|| Tcp {
            client: sums.client.durations(window),
            server: sums.server.durations(window),
            failures: sums.failures.count(window),
            syn_retransmits: sums.syn_retransmits.count(window),
        }),
        disk: disk.then(|| Disk {
            io: sums.io.durations(window),
            bytes: sums.bytes.count(window),
            errors: sums.disk_errors.count(window),
        }),
        gpu: gpu.then(|| Gpu {
            launches: sums.launches.count(window),
            starved_share: sums.starved.share(window, sums.present),
            idle_share: sums.idle.share(window, sums.present),
            processes: sums.gpu_processes,
            allocated_bytes: sums.allocated_bytes,
            errors: sums.gpu_errors.count(window),
        }),
    }
}

#[cfg(test)]
mod tests {
    use probes::PROBES;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{
        collect::{Labels, recent},
        views::who::tests::labels,
    };

    const WINDOW: Duration = Duration::from_secs(10);

    /// A value that has gained so much in each bucket, a part of it in the last step.
    fn seen(
        each: &mut dyn FnMut(&Seen),
        name: &str,
        labels: &Labels,
        own: &[(&'static str, &str)],
        value: &Value,
        gained: &[(usize, u64)],
    ) {
        let mut metrics = PROBES.iter().flat_map(|probe| probe.metrics);
        let mut recent = recent::Recent::default();
        for (bucket, gained) in gained {
            recent.add(0, *bucket, gained - 1);
        }
        recent.turn();
        for (bucket, _) in gained {
            recent.add(0, *bucket, 1);
        }
        each(&Seen {
            metric: metrics.find(|metric| metric.name == name).unwrap(),
            labels,
            own,
            value,
            now: recent.now(0),
            last: recent.last(0),
            processes: u32::from(labels.process.is_some()),
            lives: true,
        });
    }

    #[test]
    fn a_row_has_what_it_had_to_do_with() {
        let (web, job) = (labels("/web", None), labels("/job", Some("train")));
        let mut totals = Totals::default();
        totals.buckets[73] = 500;
        let histogram = Value::Histogram(Box::new(totals));
        let answer = answer(
            |each| {
                let role = [("role", "client")];
                let name = "sentry_tcp_handshake_duration_seconds";
                seen(each, name, &web, &role, &histogram, &[(73, 100)]);
                let name = "sentry_tcp_connect_failures_total";
                for reason in ["refused", "timeout"] {
                    let own = [("reason", reason)];
                    seen(each, name, &web, &own, &Value::Counter(3), &[(0, 2)]);
                }
                let name = "sentry_disk_bytes_total";
                seen(each, name, &web, &[], &Value::Counter(0), &[]);
                let name = "sentry_gpu_starved_seconds_total";
                let starved = Value::CounterNs(9_000_000_000);
                seen(each, name, &job, &[], &starved, &[(0, 2_500_000_000)]);
                let name = "sentry_gpu_allocated_bytes";
                seen(each, name, &job, &[], &Value::Gauge(4096), &[]);
            },
            5,
            WINDOW,
        );
        let answer = serde_json::to_value(answer).unwrap();
        let rows = answer["workloads"].as_array().unwrap();
        assert_eq!(rows.len(), 2);
        let [job, web] = [&rows[0], &rows[1]];
        assert_eq!(web["labels"], json!({"cgroup": "/web"}));
        assert_eq!(web["tcp"]["client"]["total"], 500);
        assert_eq!(web["tcp"]["client"]["per_second"], 10.0);
        // Within the bucket from 1 s to 2^(1/4) s.
        assert_eq!(web["tcp"]["client"]["p50_seconds"], 1.091);
        assert_eq!(
            web["tcp"]["failures"],
            json!({"total": 6, "per_second": 0.4})
        );
        assert_eq!(web["disk"], Json::Null);
        assert_eq!(web["gpu"], Json::Null);
        assert_eq!(job["gpu"]["starved_share"], 0.25);
        assert_eq!(job["gpu"]["idle_share"], Json::Null);
        assert_eq!(job["gpu"]["allocated_bytes"], 4096);
        assert_eq!(
            (&answer["now_ms"], &answer["window_ms"]),
            (&json!(5), &json!(10_000))
        );
    }

    #[test]
    fn the_busiest_have_a_row() {
        let answer = answer(
            |each| {
                for number in 0..ROWS_MAX as u64 + 5 {
                    let labels = labels(&format!("/{number}"), None);
                    let name = "sentry_tcp_connect_failures_total";
                    seen(
                        each,
                        name,
                        &labels,
                        &[],
                        &Value::Counter(9),
                        &[(0, number + 1)],
                    );
                }
            },
            0,
            WINDOW,
        );
        assert_eq!((answer.workloads.len(), answer.left_out), (ROWS_MAX, 5));
        assert_eq!(answer.workloads[0].events, ROWS_MAX as u64 + 5);
        assert_eq!(answer.workloads[ROWS_MAX - 1].events, 6);
    }

    #[test]
    #[allow(clippy::float_cmp)] // short numbers
    fn four_digits_are_enough() {
        assert_eq!(rounded(123_456.0), 123_500.0);
        assert_eq!(rounded(0.000_123_456), 0.000_123_5);
        assert_eq!(rounded(f64::INFINITY), 0.0);
    }
}
