//! The short live summary on a terminal: one line every two seconds, in the manner of `vmstat`.

use std::time::{Duration, Instant};

use crate::collect::{Probe, Totals, Value};

/// How often it is printed.
pub(crate) const INTERVAL: Duration = Duration::from_secs(2);

/// Remembers the sums of the last print, to show what came since.
#[derive(Debug)]
pub(crate) struct Summary {
    last: Vec<Totals>,
    since: Instant,
}

impl Summary {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last: Vec::new(),
            since: now,
        }
    }

    /// What came since the last call, in one line: each probe's first histogram.
    pub(crate) fn line(&mut self, probes: &[Probe], now: Instant) -> String {
        let seconds = (now - std::mem::replace(&mut self.since, now)).as_secs_f64();
        self.last.resize_with(probes.len(), Totals::default);
        let parts: Vec<String> = probes
            .iter()
            .zip(&mut self.last)
            .filter(|(probe, _)| probe.installed.status.verdict.is_up())
            .filter_map(|(probe, last)| {
                let sum = probe.sums.iter().find_map(|value| match value {
                    Value::Histogram(sum) => Some(sum),
                    Value::Counter(_) => None,
                })?;
                let recent = sum.since(last);
                *last = (**sum).clone();
                Some(part(probe.installed.probe.name, &recent, seconds))
            })
            .collect();
        parts.join("    ")
    }
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
fn duration(seconds: f64) -> String {
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
}
