//! The short live summary on a terminal: per probe and histogram, the rate and two quantiles.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use crate::collect::{Collector, Probe, Totals, Value};

/// How often it is printed.
pub(crate) const INTERVAL: Duration = Duration::from_secs(2);

/// Remembers the sums of the last print, to show what came since.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    last: Vec<Totals>,
    since: Option<Instant>,
}

impl Summary {
    /// Prints one line a histogram.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(crate) fn print(&mut self, collector: &Collector, now: Instant) -> io::Result<()> {
        let seconds = self
            .since
            .map_or(f64::INFINITY, |since| (now - since).as_secs_f64());
        self.since = Some(now);
        let text = self.text(collector.probes(), seconds);
        io::stdout().write_all(text.as_bytes())
    }

    fn text(&mut self, probes: &[Probe], seconds: f64) -> String {
        let mut text = String::new();
        let mut number = 0;
        for probe in probes {
            let metrics = probe.installed.probe.metrics.iter();
            for (metric, sum) in metrics.zip(&probe.sums) {
                let Value::Histogram(sum) = sum else { continue };
                if self.last.len() == number {
                    self.last.push(Totals::default());
                }
                let recent = sum.since(&self.last[number]);
                self.last[number] = (**sum).clone();
                number += 1;
                let name = metric
                    .name
                    .trim_start_matches("sentry_")
                    .trim_end_matches("_duration_seconds");
                text.push_str(&line(name, &recent, seconds));
            }
        }
        text
    }
}

fn line(name: &str, recent: &Totals, seconds: f64) -> String {
    let mut line = format!("{name:<16}");
    #[allow(clippy::cast_precision_loss)] // events of two seconds
    let rate = recent.count() as f64 / seconds;
    // Writing to a string cannot fail.
    let _ = write!(line, "{rate:>10.1}/s");
    for (label, share) in [("p50", 0.5), ("p99", 0.99)] {
        let _ = write!(
            line,
            "   {label} {:>8}",
            recent.quantile(share).map_or_else(|| "-".to_owned(), duration)
        );
    }
    line.push('\n');
    line
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
    fn a_line_tells_rate_and_quantiles_of_what_came_since() {
        let mut totals = Totals::default();
        totals.buckets[73] = 20;
        assert_eq!(
            line("tcp_handshake", &totals, 2.0),
            "tcp_handshake         10.0/s   p50   1.09 s   p99   1.19 s\n"
        );
        assert_eq!(
            line("tcp_handshake", &Totals::default(), 2.0),
            "tcp_handshake          0.0/s   p50        -   p99        -\n"
        );
    }
}
