//! The short live summary on a terminal: one line every two seconds, in the manner of `vmstat`.

use std::time::{Duration, Instant};

use probes::MetricKind;

use crate::collect::{Probe, Totals, Value};

/// How often it is printed.
pub(crate) const INTERVAL: Duration = Duration::from_secs(2);

/// Remembers the sums of the last print, to show what came since.
#[derive(Debug)]
pub(crate) struct Summary {
    last: Vec<Last>,
    since: Instant,
}

/// The sums of a probe that are shown.
#[derive(Debug, Default)]
struct Last {
    histogram: Totals,
    count: u64,
    time_ns: u64,
}

impl Summary {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last: Vec::new(),
            since: now,
        }
    }

    /// What came since the last call, in one line: each probe's first histogram; of the gpu probe,
    /// whose gaps are no events to wait for, launches and the time without any.
    pub(crate) fn line(&mut self, probes: &[Probe], now: Instant) -> String {
        let seconds = (now - std::mem::replace(&mut self.since, now)).as_secs_f64();
        self.last.resize_with(probes.len(), Last::default);
        let parts: Vec<String> = probes
            .iter()
            .zip(&mut self.last)
            .filter(|(probe, _)| probe.installed.status.verdict.is_up())
            .filter_map(|(probe, last)| {
                let name = probe.installed.probe.name;
                if probe.installed.probe.deferred.is_some() {
                    let count = first(probe, MetricKind::Counter);
                    let time_ns = first(probe, MetricKind::CounterSeconds);
                    let launches = count - std::mem::replace(&mut last.count, count);
                    let starved_ns = time_ns - std::mem::replace(&mut last.time_ns, time_ns);
                    return Some(gpu_part(name, launches, starved_ns, seconds));
                }
                let sum = probe.sums.iter().find_map(|value| match value {
                    Value::Histogram(sum) => Some(sum),
                    _ => None,
                })?;
                let recent = sum.since(&last.histogram);
                last.histogram = (**sum).clone();
                Some(part(name, &recent, seconds))
            })
            .collect();
        parts.join("    ")
    }
}

/// The sum of a probe's first metric of this kind.
fn first(probe: &Probe, kind: MetricKind) -> u64 {
    let metrics = probe.installed.probe.metrics.iter();
    let sums = metrics.zip(&probe.sums);
    let mut sums = sums.filter(|(metric, _)| metric.kind == kind);
    match sums.next() {
        Some((_, Value::Counter(sum) | Value::CounterNs(sum))) => *sum,
        _ => 0,
    }
}

/// Several processes and devices may starve at once: for more than a second each second.
#[allow(clippy::cast_precision_loss)] // launches of two seconds
fn gpu_part(name: &str, launches: u64, starved_ns: u64, seconds: f64) -> String {
    let rate = launches as f64 / seconds;
    let starved = if starved_ns == 0 {
        "-".to_owned()
    } else {
        duration(starved_ns as f64 / 1e9 / seconds)
    };
    format!("{name} {rate:>9.1}/s  starved {starved:>7}/s")
}

#[allow(clippy::cast_precision_loss)] // events of two seconds
fn part(name: &str, recent: &Totals, seconds: f64) -> String {
    let rate = recent.count() as f64 / seconds;
    let quantile = |share| {
        recent
            .quantile(share)
            .map_or_else(|| "-".to_owned(), duration)
    };
    format!(
        "{name} {rate:>9.1}/s  p50 {:>7}  p99 {:>7}",
        quantile(0.5),
        quantile(0.99)
    )
}

/// A duration for people, three digits.
pub(crate) fn duration(seconds: f64) -> String {
    let (value, unit) = if seconds < 1e-3 {
        (seconds * 1e6, "us")
    } else if seconds < 1.0 {
        (seconds * 1e3, "ms")
    } else {
        (seconds, "s")
    };
    let digits = if value < 10.0 {
        2
    } else {
        usize::from(value < 100.0)
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_and_a_unit() {
        assert_eq!(duration(3.8147e-6), "3.81 us");
        assert_eq!(duration(0.000_734), "734 us");
        assert_eq!(duration(0.0123), "12.3 ms");
        assert_eq!(duration(1.5), "1.50 s");
    }

    #[test]
    fn a_part_tells_rate_and_quantiles() {
        let mut totals = Totals::default();
        totals.buckets[73] = 20;
        assert_eq!(
            part("tcp", &totals, 2.0),
            "tcp      10.0/s  p50  1.09 s  p99  1.19 s"
        );
        assert_eq!(
            part("disk", &Totals::default(), 2.0),
            "disk       0.0/s  p50       -  p99       -"
        );
    }

    #[test]
    fn a_gpus_part_tells_launches_and_starvation() {
        assert_eq!(
            gpu_part("gpu", 9000, 840_000_000, 2.0),
            "gpu    4500.0/s  starved  420 ms/s"
        );
        assert_eq!(
            gpu_part("gpu", 0, 0, 2.0),
            "gpu       0.0/s  starved       -/s"
        );
    }
}
