//! The two text formats: Prometheus' 0.0.4 and `OpenMetrics` 1.0.

use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use probes::bucket_edge_seconds;

use super::model::{Family, Histogram, Kind, Sample, Value, classic_buckets, seconds};
use crate::collect::Exemplar;

/// The end of an exposition in `OpenMetrics`.
pub(crate) const END: &str = "# EOF\n";

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Prometheus text 0.0.4.
    Prometheus,
    /// `OpenMetrics` 1.0.
    OpenMetrics,
}

/// Writes families and samples.
#[derive(Debug, Clone)]
pub(crate) struct Encoder {
    dialect: Dialect,
    buckets_per_octave: u8,
    /// What `le` is of each classic bucket.
    edges: Vec<String>,
}

impl Encoder {
    /// `buckets_per_octave` of classic histograms: 1, 2 or 4.
    pub(crate) fn new(dialect: Dialect, buckets_per_octave: u8) -> Self {
        let edges = classic_buckets(buckets_per_octave).map(|bucket| {
            let mut edge = String::new();
            write_real(&mut edge, bucket_edge_seconds(bucket));
            edge
        });
        Self {
            dialect,
            buckets_per_octave,
            edges: edges.collect(),
        }
    }

    /// Writes what stands once above a family's samples.
    pub(crate) fn metadata(&self, text: &mut String, family: &Family) {
        let name = match self.dialect {
            Dialect::Prometheus => family.name,
            Dialect::OpenMetrics => family.base_name(),
        };
        text.extend(["# HELP ", name, " "]);
        // 0.0.4 calls an escaped quote in a help text an invalid escape.
        write_escaped(text, family.help, self.dialect == Dialect::OpenMetrics);
        text.extend([".\n# TYPE ", name, " ", family.kind.name(), "\n"]);
        if self.dialect == Dialect::OpenMetrics
            && let Some(unit) = family.unit()
        {
            text.extend(["# UNIT ", name, " ", unit, "\n"]);
        }
    }

    /// Writes a sample of a family.
    pub(crate) fn sample(&self, text: &mut String, family: &Family, sample: &Sample) {
        let labels = Labels::new(&sample.labels);
        match &sample.value {
            Value::Whole(value) => {
                labels.begin(text, family.name, "");
                write_whole(text, *value);
                text.push('\n');
            }
            Value::Real(value) => {
                labels.begin(text, family.name, "");
                write_real(text, *value);
                text.push('\n');
            }
            Value::Histogram(histogram) => self.histogram(text, family, &labels, histogram),
        }
        if self.dialect == Dialect::OpenMetrics
            && family.kind != Kind::Gauge
            && let Some(created) = sample.created
        {
            labels.begin(text, family.base_name(), "_created");
            write_time(text, created);
            text.push('\n');
        }
    }

    fn histogram(
        &self,
        text: &mut String,
        family: &Family,
        labels: &Labels,
        histogram: &Histogram,
    ) {
        labels.begin(text, family.name, "_sum");
        write_real(text, histogram.sum_seconds);
        text.push('\n');
        labels.begin(text, family.name, "_count");
        write_whole(text, histogram.count());
        text.push('\n');
        let counts = histogram.cumulative(self.buckets_per_octave);
        let mut above = None;
        for (edge, (bucket, count)) in self.edges.iter().zip(counts) {
            let separator = if labels.0.is_empty() { "" } else { "," };
            text.extend([family.name, "_bucket{", &labels.0, separator]);
            text.extend(["le=\"", edge, "\"} "]);
            write_whole(text, count);
            if self.dialect == Dialect::OpenMetrics
                && let Some(exemplar) = histogram.exemplar(above, bucket)
            {
                write_exemplar(text, exemplar);
            }
            above = Some(bucket);
            text.push('\n');
        }
    }
}

/// A sample's labels as they stand between the braces: a histogram repeats them on each line.
struct Labels(String);

impl Labels {
    fn new(labels: &[(&str, &str)]) -> Self {
        let mut text = String::with_capacity(256);
        for (label, value) in labels {
            let separator = if text.is_empty() { "" } else { "," };
            text.extend([separator, label, "=\""]);
            write_escaped(&mut text, value, true);
            text.push('"');
        }
        Self(text)
    }

    /// Begins a line: name, labels, and the space before the value.
    fn begin(&self, text: &mut String, name: &str, suffix: &str) {
        text.extend([name, suffix]);
        if !self.0.is_empty() {
            text.extend(["{", &self.0, "}"]);
        }
        text.push(' ');
    }
}

fn write_exemplar(text: &mut String, exemplar: &Exemplar) {
    let labels = exemplar.labels.iter();
    let labels: Vec<(&str, &str)> = labels
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    text.extend([" # {", &Labels::new(&labels).0, "} "]);
    write_real(text, seconds(exemplar.duration_ns));
    text.push(' ');
    write_time(text, exemplar.time);
}

fn write_escaped(text: &mut String, value: &str, quotes: bool) {
    let special = |c: char| matches!(c, '\\' | '\n') || (quotes && c == '"');
    let mut rest = value;
    while let Some(at) = rest.find(special) {
        text.push_str(&rest[..at]);
        text.push('\\');
        let escaped = rest.as_bytes()[at];
        text.push(if escaped == b'\n' {
            'n'
        } else {
            char::from(escaped)
        });
        rest = &rest[at + 1..];
    }
    text.push_str(rest);
}

fn write_whole(text: &mut String, value: u64) {
    // Writing to a string cannot fail.
    let _ = write!(text, "{value}");
}

/// Writes a number, and one below 1e6, which all edges of buckets are, as Prometheus itself would write it (from there on
/// it has an exponent, `1e+06`). It makes labels of edges that come as numbers in protobuf, and a label that was written
/// otherwise would be another series.
pub(super) fn write_real(text: &mut String, value: f64) {
    let magnitude = value.abs();
    if value.is_infinite() {
        text.push_str(if value > 0.0 { "+Inf" } else { "-Inf" });
    } else if value != 0.0 && !(1e-4..1e21).contains(&magnitude) && !value.is_nan() {
        let shortest = format!("{value:e}");
        let (digits, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        let _ = write!(text, "{digits}e{sign}{exponent:0>2}");
    } else {
        let start = text.len();
        let _ = write!(text, "{value}");
        if value.is_finite() && !text[start..].contains('.') {
            text.push_str(".0");
        }
    }
}

/// Writes a time in seconds since 1970, to the millisecond.
fn write_time(text: &mut String, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let _ = write!(text, "{}.{:03}", since.as_secs(), since.subsec_millis());
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use probes::BUCKETS;

    use super::*;

    const FAMILY: Family = Family {
        name: "a_seconds_total",
        help: "Says \"hi\", \\ and\nmore",
        kind: Kind::Counter,
    };

    fn sample<'a>(labels: &[(&'a str, &'a str)], value: Value<'a>) -> Sample<'a> {
        Sample {
            labels: labels.to_vec(),
            value,
            created: Some(UNIX_EPOCH + Duration::from_millis(1_700_000_000_025)),
        }
    }

    fn written(dialect: Dialect, family: &Family, samples: &[Sample]) -> String {
        let encoder = Encoder::new(dialect, 1);
        let mut text = String::new();
        encoder.metadata(&mut text, family);
        for sample in samples {
            encoder.sample(&mut text, family, sample);
        }
        text
    }

    #[test]
    fn counters() {
        let samples = [
            sample(&[], Value::Real(1.5)),
            sample(
                &[("x", "q\"\\\n{},="), ("шум", " # {日本}")],
                Value::Whole(u64::MAX),
            ),
        ];
        assert_eq!(
            written(Dialect::Prometheus, &FAMILY, &samples),
            r#"# HELP a_seconds_total Says "hi", \\ and\nmore.
# TYPE a_seconds_total counter
a_seconds_total 1.5
a_seconds_total{x="q\"\\\n{},=",шум=" # {日本}"} 18446744073709551615
"#
        );
        assert_eq!(
            written(Dialect::OpenMetrics, &FAMILY, &samples),
            r#"# HELP a_seconds Says \"hi\", \\ and\nmore.
# TYPE a_seconds counter
# UNIT a_seconds seconds
a_seconds_total 1.5
a_seconds_created 1700000000.025
a_seconds_total{x="q\"\\\n{},=",шум=" # {日本}"} 18446744073709551615
a_seconds_created{x="q\"\\\n{},=",шум=" # {日本}"} 1700000000.025
"#
        );
    }

    #[test]
    fn gauges_and_families_without_samples() {
        let family = Family {
            name: "level",
            help: "Level",
            kind: Kind::Gauge,
        };
        for dialect in [Dialect::Prometheus, Dialect::OpenMetrics] {
            assert_eq!(
                written(dialect, &family, &[sample(&[("x", "")], Value::Whole(0))]),
                "# HELP level Level.\n# TYPE level gauge\nlevel{x=\"\"} 0\n"
            );
        }
        assert_eq!(
            written(Dialect::OpenMetrics, &FAMILY, &[]).lines().count(),
            3
        );
    }

    #[test]
    fn histograms() {
        let family = Family {
            name: "wait_seconds",
            help: "Wait",
            kind: Kind::Histogram,
        };
        let mut buckets = [0; BUCKETS];
        (buckets[0], buckets[70], buckets[BUCKETS - 1]) = (1, 2, 4);
        let histogram = Value::Histogram(Histogram {
            sum_seconds: 65.25,
            buckets: &buckets,
            exemplars: &[],
        });
        let octaves: Vec<String> = (-18..=4)
            .map(|exponent| {
                let count = if exponent < 0 { 1 } else { 3 };
                let edge = match exponent {
                    -18 => "3.814697265625e-06",
                    -17 => "7.62939453125e-06",
                    -16 => "1.52587890625e-05",
                    -15 => "3.0517578125e-05",
                    -14 => "6.103515625e-05",
                    -13 => "0.0001220703125",
                    -12 => "0.000244140625",
                    -11 => "0.00048828125",
                    -10 => "0.0009765625",
                    -9 => "0.001953125",
                    -8 => "0.00390625",
                    -7 => "0.0078125",
                    -6 => "0.015625",
                    -5 => "0.03125",
                    -4 => "0.0625",
                    -3 => "0.125",
                    -2 => "0.25",
                    -1 => "0.5",
                    0 => "1.0",
                    1 => "2.0",
                    2 => "4.0",
                    3 => "8.0",
                    _ => "16.0",
                };
                format!("wait_seconds_bucket{{LABELS\"{edge}\"}} {count}\n")
            })
            .collect();
        for (labels, set, le) in [
            (vec![("x", "1")], "{x=\"1\"}", "x=\"1\",le="),
            (vec![], "", "le="),
        ] {
            let expected = format!(
                "# HELP wait_seconds Wait.\n# TYPE wait_seconds histogram\nwait_seconds_sum{set} 65.25\n\
                 wait_seconds_count{set} 7\n{}wait_seconds_bucket{{{le}\"+Inf\"}} 7\n",
                octaves.concat().replace("LABELS", le)
            );
            let samples = [sample(&labels, histogram)];
            assert_eq!(written(Dialect::Prometheus, &family, &samples), expected);
            let with_unit = expected.replace(
                "histogram\nwait",
                "histogram\n# UNIT wait_seconds seconds\nwait",
            );
            assert_eq!(
                written(Dialect::OpenMetrics, &family, &samples),
                format!("{with_unit}wait_seconds_created{set} 1700000000.025\n")
            );
        }
    }

    /// The newest of a bucket's, in the one format that has a place for it.
    #[test]
    fn exemplars() {
        let family = Family {
            name: "wait_seconds",
            help: "Wait",
            kind: Kind::Histogram,
        };
        let exemplar = |bucket, duration_ns, ms| Exemplar {
            bucket,
            labels: vec![("pid", "7".to_owned()), ("comm", "a\"b\\c\nd".to_owned())],
            duration_ns,
            time: UNIX_EPOCH + Duration::from_millis(ms),
        };
        let mut buckets = [0; BUCKETS];
        (buckets[70], buckets[72], buckets[BUCKETS - 1]) = (1, 1, 1);
        let found = |exemplars: &[Exemplar], dialect| -> Vec<String> {
            let histogram = Value::Histogram(Histogram {
                sum_seconds: 65.25,
                buckets: &buckets,
                exemplars,
            });
            let text = written(dialect, &family, &[sample(&[("x", "1")], histogram)]);
            let lines = text.lines().filter(|line| line.contains(" # {"));
            lines.map(str::to_owned).collect()
        };
        let exemplars = [
            exemplar(70, 600_000_000, 2_500),
            exemplar(72, 900_000_000, 1_500),
            exemplar(BUCKETS - 1, 20_000_000_000, 3_000),
        ];
        let expected = [
            r#"wait_seconds_bucket{x="1",le="1.0"} 2 # {pid="7",comm="a\"b\\c\nd"} 0.6 2.500"#,
            r#"wait_seconds_bucket{x="1",le="+Inf"} 3 # {pid="7",comm="a\"b\\c\nd"} 20.0 3.000"#,
        ];
        assert_eq!(found(&exemplars, Dialect::OpenMetrics), expected);
        assert_eq!(found(&exemplars, Dialect::Prometheus), [""; 0]);
        assert_eq!(found(&[], Dialect::OpenMetrics), [""; 0]);
    }

    #[test]
    fn numbers() {
        for (value, expected) in [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (-2.5, "-2.5"),
            (0.1, "0.1"),
            (0.0001, "0.0001"),
            (0.000_099, "9.9e-05"),
            (2f64.powf(-17.75), "4.536465129862675e-06"),
            (1e20, "100000000000000000000.0"),
            (1e21, "1e+21"),
            (1.5e300, "1.5e+300"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (f64::NAN, "NaN"),
            (1_500_000_001f64 / 1e9, "1.500000001"),
        ] {
            let mut text = String::new();
            write_real(&mut text, value);
            assert_eq!(text, expected);
        }
    }
}
