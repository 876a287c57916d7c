//! A strict reader of the two exposition formats: what a lenient server might forgive fails the test.

use std::collections::{BTreeMap, BTreeSet};

/// Which format a text claims to be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus text 0.0.4
    Text,
    /// `OpenMetrics` 1.0
    OpenMetrics,
}

/// A sample's labels.
pub(crate) type Labels = BTreeMap<String, String>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) name: String,
    pub(crate) labels: Labels,
    pub(crate) value: f64,
}

/// A histogram, put together from its samples.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Histogram {
    /// Upper edges in seconds, the last one infinite, each with the events up to it.
    pub(crate) buckets: Vec<(f64, u64)>,
    pub(crate) sum: f64,
    pub(crate) count: u64,
}

impl Histogram {
    /// Buckets that are not empty: lower and upper edge, and the events between them.
    pub(crate) fn filled(&self) -> Vec<(f64, f64, u64)> {
        let mut below = (0.0, 0);
        let mut filled = Vec::new();
        for &(edge, events) in &self.buckets {
            if events > below.1 {
                filled.push((below.0, edge, events - below.1));
            }
            below = (edge, events);
        }
        filled
    }

    /// The duration in seconds below which a share of the events lies. Between a bucket's edges events are taken to lie
    /// evenly on a logarithmic scale.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let rank = share * as_f64(self.count);
        let mut below = 0.0;
        for (lower, upper, events) in self.filled() {
            if below + as_f64(events) >= rank {
                assert!(
                    lower > 0.0 && upper.is_finite(),
                    "at an end of the scale: {self:?}"
                );
                return lower * (upper / lower).powf((rank - below) / as_f64(events));
            }
            below += as_f64(events);
        }
        panic!("no quantile {share} of {self:?}");
    }
}

#[expect(clippy::cast_precision_loss, reason = "tests count less than 2^53")]
pub(crate) fn as_f64(count: u64) -> f64 {
    count as f64
}

/// Reads a count back from its text form.
pub(crate) fn as_count(value: f64) -> u64 {
    assert!(
        value >= 0.0 && value.fract() == 0.0 && value < 9e15,
        "no count: {value}"
    );
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "asserted above"
    )]
    let count = value as u64;
    count
}

/// All samples of a scrape.
#[derive(Debug)]
pub(crate) struct Exposition {
    pub(crate) samples: Vec<Sample>,
    /// Families and their types.
    pub(crate) types: BTreeMap<String, String>,
    histograms: BTreeMap<(String, Labels), Histogram>,
    pub(crate) exemplars: Vec<Exemplar>,
}

/// An exemplar of a bucket.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Exemplar {
    /// The bucket.
    pub(crate) bucket: Sample,
    pub(crate) labels: Labels,
    pub(crate) value: f64,
    /// In seconds since 1970.
    pub(crate) time: f64,
}

impl Exemplar {
    /// `exemplar` stands behind the bucket: `{labels} value time`.
    fn parse(bucket: &Sample, exemplar: &str) -> Self {
        assert!(bucket.name.ends_with("_bucket"), "{bucket:?}");
        let (text, time) = exemplar.rsplit_once(' ').unwrap();
        let Sample { labels, value, .. } = parse_sample(&format!("exemplar{text}"));
        let le: f64 = bucket.labels["le"].parse().unwrap();
        assert!(value <= le, "{exemplar} in {bucket:?}");
        let characters = |text: &String| text.chars().count();
        let length: usize = labels
            .iter()
            .map(|(name, value)| characters(name) + characters(value))
            .sum();
        assert!(length <= 128, "{exemplar}");
        Self {
            bucket: bucket.clone(),
            labels,
            value,
            time: time.parse().unwrap(),
        }
    }
}

impl Exposition {
    /// Reads a text and asserts all that the format asks for.
    pub(crate) fn parse(text: &str, format: Format) -> Self {
        let mut parsed = Self {
            samples: Vec::new(),
            types: BTreeMap::new(),
            histograms: BTreeMap::new(),
            exemplars: Vec::new(),
        };
        assert!(text.ends_with('\n'), "no line feed at the end");
        let text = match format {
            Format::Text => text,
            Format::OpenMetrics => text.strip_suffix("# EOF\n").unwrap(),
        };
        let mut helped = BTreeSet::new();
        let mut family = String::new();
        let mut seen = BTreeSet::new();
        for line in text.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (keyword, name, rest) =
                    (words.next().unwrap(), words.next().unwrap(), words.next());
                match keyword {
                    "HELP" => {
                        assert!(helped.insert(name.to_owned()), "HELP twice: {line}");
                        assert!(rest.is_some_and(|help| help.ends_with('.')), "{line}");
                    }
                    "TYPE" => {
                        let kind = rest.unwrap().to_owned();
                        assert!(["counter", "gauge", "histogram"].contains(&kind.as_str()));
                        let total = name.ends_with("_total");
                        let wanted = format == Format::Text && kind == "counter";
                        assert_eq!(total, wanted, "{line}");
                        let twice = parsed.types.insert(name.to_owned(), kind);
                        assert_eq!(twice, None, "TYPE twice: {line}");
                        name.clone_into(&mut family);
                    }
                    "UNIT" => {
                        assert_eq!(format, Format::OpenMetrics, "{line}");
                        assert!(name.ends_with(&format!("_{}", rest.unwrap())), "{line}");
                    }
                    _ => panic!("no such comment: {line}"),
                }
                continue;
            }
            let (line, exemplar) = match line.split_once(" # ") {
                Some((line, exemplar)) => (line, Some(exemplar)),
                None => (line, None),
            };
            let sample = parse_sample(line);
            if let Some(exemplar) = exemplar {
                assert_eq!(format, Format::OpenMetrics, "{line}");
                parsed.exemplars.push(Exemplar::parse(&sample, exemplar));
            }
            let suffixes: &[&str] = match (parsed.types[&family].as_str(), format) {
                ("histogram", Format::Text) => &["_bucket", "_sum", "_count"],
                ("histogram", Format::OpenMetrics) => &["_bucket", "_sum", "_count", "_created"],
                ("counter", Format::OpenMetrics) => &["_total", "_created"],
                _ => &[""],
            };
            let suffix = sample.name.strip_prefix(family.as_str());
            let suffix = suffix.filter(|suffix| suffixes.contains(suffix));
            let suffix = suffix.unwrap_or_else(|| panic!("not of the family {family}: {line}"));
            if suffixes.contains(&"_bucket") && suffix != "_created" {
                parsed.add_to_histogram(&family, suffix, &sample);
            }
            assert!(
                seen.insert((sample.name.clone(), sample.labels.clone())),
                "twice: {line}"
            );
            assert!(sample.value >= 0.0, "{line}");
            parsed.samples.push(sample);
        }
        for name in parsed.types.keys() {
            assert!(helped.contains(name), "no HELP of {name}");
        }
        for (key, histogram) in &parsed.histograms {
            let ascending = histogram
                .buckets
                .windows(2)
                .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
            assert!(ascending, "{key:?}: {histogram:?}");
            let last = (f64::INFINITY, histogram.count);
            assert_eq!(histogram.buckets.last(), Some(&last), "{key:?}");
            assert!(histogram.sum >= 0.0, "{key:?}: {histogram:?}");
        }
        parsed
    }

    /// Puts a sample into its histogram.
    fn add_to_histogram(&mut self, family: &str, suffix: &str, sample: &Sample) {
        let mut labels = sample.labels.clone();
        let edge = labels.remove("le");
        assert_eq!(edge.is_some(), suffix == "_bucket", "{sample:?}");
        let histogram = self
            .histograms
            .entry((family.to_owned(), labels))
            .or_insert(Histogram {
                buckets: Vec::new(),
                sum: f64::NAN,
                count: u64::MAX,
            });
        match suffix {
            "_bucket" => {
                let edge = edge.unwrap().parse().unwrap();
                histogram.buckets.push((edge, as_count(sample.value)));
            }
            "_sum" => histogram.sum = sample.value,
            _ => histogram.count = as_count(sample.value),
        }
    }

    /// The samples of this name that have these labels, and maybe others.
    pub(crate) fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples
            .iter()
            .filter(move |sample| sample.name == name && has(&sample.labels, labels))
    }

    /// The sum of these samples; 0 when there are none.
    pub(crate) fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let values = self.matching(name, labels).map(|sample| sample.value);
        values.map(as_count).sum()
    }

    /// The value of the only such sample.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let found: Vec<_> = self.matching(name, labels).collect();
        assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
        found[0].value
    }

    /// The only histogram with these labels, and maybe others.
    pub(crate) fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> &Histogram {
        let found: Vec<_> = self
            .histograms
            .iter()
            .filter(|((family, own), _)| family == name && has(own, labels))
            .collect();
        assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
        found[0].1
    }

    /// Every workload sample of a cgroup but histograms' buckets and sums, as `name{further labels} value`: all that is
    /// said of that cgroup, sorted.
    pub(crate) fn of_cgroup(&self, cgroup: &str) -> Vec<String> {
        let mut said: Vec<_> = self
            .samples
            .iter()
            .filter(|sample| has(&sample.labels, &[("cgroup", cgroup)]))
            .filter(|sample| !sample.name.ends_with("_bucket") && !sample.name.ends_with("_sum"))
            .map(|sample| {
                let workload = ["namespace", "pod", "container", "cgroup"];
                let labels: Vec<_> = sample
                    .labels
                    .iter()
                    .filter(|(label, _)| !workload.contains(&label.as_str()))
                    .map(|(label, value)| format!("{label}={value}"))
                    .collect();
                format!("{}{{{}}} {}", sample.name, labels.join(","), sample.value)
            })
            .collect();
        said.sort();
        said
    }
}

fn has(labels: &Labels, wanted: &[(&str, &str)]) -> bool {
    wanted
        .iter()
        .all(|(label, value)| labels.get(*label).is_some_and(|found| found == value))
}

/// `name value` or `name{label="value",...} value`; no time stamp.
fn parse_sample(line: &str) -> Sample {
    let name_end = line.find(['{', ' ']).unwrap();
    let (name, rest) = line.split_at(name_end);
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    assert!(name.chars().all(plain), "{line}");
    let (labels, value) = if let Some(rest) = rest.strip_prefix('{') {
        let (labels, rest) = parse_labels(rest);
        (labels, rest)
    } else {
        (Labels::new(), rest)
    };
    let value = value.strip_prefix(' ').unwrap();
    assert!(!value.contains(' '), "{line}");
    Sample {
        name: name.to_owned(),
        labels,
        value: value
            .parse()
            .unwrap_or_else(|_| panic!("no number: {line}")),
    }
}

/// Labels up to the closing brace, and what comes behind it.
fn parse_labels(mut text: &str) -> (Labels, &str) {
    let mut labels = Labels::new();
    loop {
        let (label, rest) = text.split_once("=\"").unwrap();
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next().unwrap() {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next().unwrap().1 {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    other => panic!("no such escape: \\{other}"),
                }),
                (_, character) => value.push(character),
            }
        };
        let twice = labels.insert(label.to_owned(), value);
        assert_eq!(twice, None, "label {label} twice");
        let rest = &rest[end + 1..];
        if let Some(behind) = rest.strip_prefix('}') {
            return (labels, behind);
        }
        text = rest.strip_prefix(',').unwrap();
    }
}

#[test]
fn samples_are_read_back() {
    let sample = parse_sample(r#"a_b{x="1",y="q\"\\\n,}"} 2.5"#);
    assert_eq!(sample.name, "a_b");
    assert_eq!(sample.labels["y"], "q\"\\\n,}");
    assert_eq!((sample.labels.len(), sample.value), (2, 2.5));
    assert_eq!(parse_sample("a +Inf").value, f64::INFINITY);
}

#[test]
fn quantiles_lie_between_a_buckets_edges() {
    let histogram = Histogram {
        buckets: vec![(0.5, 0), (1.0, 10), (4.0, 30), (f64::INFINITY, 30)],
        sum: 40.0,
        count: 30,
    };
    assert_eq!(histogram.filled(), [(0.5, 1.0, 10), (1.0, 4.0, 20)]);
    assert!((histogram.quantile(1.0 / 6.0) - 0.5f64.sqrt()).abs() < 1e-9);
    assert!((histogram.quantile(2.0 / 3.0) - 2.0).abs() < 1e-9);
}
