//! A metric as every format has it: a family, and samples that borrow their values.

use std::time::SystemTime;

use crate::collect::Exemplar;
use probes::{BUCKETS, BUCKETS_PER_OCTAVE, MetricKind};

/// All samples of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Family {
    /// Full name with unit and, for a counter, `_total`.
    pub(crate) name: &'static str,
    /// Help text, without the full stop.
    pub(crate) help: &'static str,
    /// What its values are.
    pub(crate) kind: Kind,
}

/// What the values of a family are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sums that never fall.
    Counter,
    /// What is there now.
    Gauge,
    /// Durations.
    Histogram,
}

impl From<MetricKind> for Kind {
    fn from(kind: MetricKind) -> Self {
        match kind {
            MetricKind::Histogram => Self::Histogram,
            MetricKind::Counter | MetricKind::CounterSeconds => Self::Counter,
            MetricKind::Gauge => Self::Gauge,
        }
    }
}

impl Kind {
    /// Its name in both text formats.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Family {
    /// The name as `OpenMetrics` has it: without a counter's `_total`, which belongs to its samples there.
    pub(crate) fn base_name(&self) -> &'static str {
        match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            Kind::Gauge | Kind::Histogram => self.name,
        }
    }

    /// The unit that its name ends in, if it has one.
    pub(crate) fn unit(&self) -> Option<&'static str> {
        let name = self.base_name();
        ["seconds", "bytes"].into_iter().find(|unit| {
            name.strip_suffix(unit)
                .is_some_and(|rest| rest.ends_with('_'))
        })
    }
}

/// A value under its labels.
#[derive(Debug, Clone)]
pub(crate) struct Sample<'a> {
    /// Names and values, in the order in which they are shown.
    pub(crate) labels: Vec<(&'a str, &'a str)>,
    pub(crate) value: Value<'a>,
    /// Since when it counts, where that is known and asked for. Gauges have none.
    pub(crate) created: Option<SystemTime>,
}

/// What a sample says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    /// A whole number.
    Whole(u64),
    /// Any other.
    Real(f64),
    /// Durations.
    Histogram(Histogram<'a>),
}

/// Durations as the kernel counts them, whatever a format makes of the buckets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Histogram<'a> {
    pub(crate) sum_seconds: f64,
    /// Events in each bucket of [`probes::bucket_edge_seconds`].
    pub(crate) buckets: &'a [u64; BUCKETS],
    /// Events that are in them, at most one in each.
    pub(crate) exemplars: &'a [Exemplar],
}

impl Histogram<'_> {
    /// Events in all buckets.
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The newest exemplar of those above one bucket, up to and with another.
    pub(crate) fn exemplar(&self, above: Option<usize>, bucket: usize) -> Option<&Exemplar> {
        let within = self.exemplars.iter().filter(|exemplar| {
            exemplar.bucket <= bucket && above.is_none_or(|above| exemplar.bucket > above)
        });
        within.max_by_key(|exemplar| exemplar.time)
    }

    /// The events up to and with each bucket whose edge is among the classic ones.
    pub(crate) fn cumulative(
        &self,
        buckets_per_octave: u8,
    ) -> impl Iterator<Item = (usize, u64)> + '_ {
        let counts = self.buckets.iter().scan(0, |below, events| {
            *below += events;
            Some(*below)
        });
        let step = classic_step(buckets_per_octave);
        counts
            .enumerate()
            .filter(move |(bucket, _)| is_classic(*bucket, step))
    }
}

/// The buckets of the kernel that close a classic one: every 4th at one bucket an octave, and the last, above all.
pub(crate) fn classic_buckets(buckets_per_octave: u8) -> impl Iterator<Item = usize> {
    let step = classic_step(buckets_per_octave);
    (0..BUCKETS).filter(move |bucket| is_classic(*bucket, step))
}

fn classic_step(buckets_per_octave: u8) -> usize {
    BUCKETS_PER_OCTAVE / usize::from(buckets_per_octave).clamp(1, BUCKETS_PER_OCTAVE)
}

fn is_classic(bucket: usize, step: usize) -> bool {
    bucket.is_multiple_of(step) || bucket == BUCKETS - 1
}

#[allow(clippy::cast_precision_loss)] // exact up to 104 days, and to a ns in 10^16 beyond
pub(crate) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use probes::bucket_edge_seconds;

    use super::*;

    #[test]
    fn fewer_buckets_lose_no_event() {
        let buckets = std::array::from_fn(|bucket| bucket as u64 + 1);
        let histogram = Histogram {
            sum_seconds: 0.0,
            buckets: &buckets,
            exemplars: &[],
        };
        for (per_octave, edges) in [(1, 24), (2, 46), (4, 90)] {
            let shown: Vec<_> = histogram.cumulative(per_octave).collect();
            assert_eq!(shown.len(), edges);
            assert!(
                classic_buckets(per_octave).eq(shown.iter().map(|(bucket, _)| *bucket)),
                "{per_octave}"
            );
            let edge = |at: usize| bucket_edge_seconds(shown[at].0);
            assert_eq!((edge(0), shown[0].1), (2f64.powi(-18), 1));
            assert_eq!(edge(edges - 2).to_bits(), 16f64.to_bits());
            assert_eq!(shown[edges - 2].1, histogram.count() - 90);
            assert_eq!(edge(edges - 1).to_bits(), f64::INFINITY.to_bits());
            assert_eq!(shown[edges - 1].1, histogram.count());
        }
    }

    #[test]
    fn names_have_their_parts() {
        let family = |name, kind| Family {
            name,
            help: "",
            kind,
        };
        for (name, kind, base, unit) in [
            (
                "sentry_disk_bytes_total",
                Kind::Counter,
                "sentry_disk_bytes",
                Some("bytes"),
            ),
            ("a_failures_total", Kind::Counter, "a_failures", None),
            ("a_seconds", Kind::Histogram, "a_seconds", Some("seconds")),
            ("a_total", Kind::Gauge, "a_total", None),
            ("seconds", Kind::Gauge, "seconds", None),
            ("a_kilobytes", Kind::Gauge, "a_kilobytes", None),
        ] {
            let family = family(name, kind);
            assert_eq!((family.base_name(), family.unit()), (base, unit), "{name}");
        }
    }
}
