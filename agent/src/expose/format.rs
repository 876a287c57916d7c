//! The two text formats of `/metrics`: which one a client wants, and the way from `OpenMetrics` to Prometheus text.

use std::ops::Range;

/// A text format that `/metrics` can answer in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4, which every scraper reads.
    Prometheus,
}

impl Format {
    /// The exact `Content-Type` of the format.
    #[must_use]
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Chooses the format for the values of a request's `Accept` headers (RFC 9110, section 12.5.1).
    ///
    /// The most specific range that matches a format gives its quality, and the higher quality wins. On a tie
    /// `OpenMetrics` wins only where the client named it. A client that accepts neither still gets Prometheus text,
    /// as from Prometheus' own exporters: a readable answer serves it better than a 406.
    #[must_use]
    pub(crate) fn negotiate<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let mut open_metrics = Preference::default();
        let mut prometheus = Preference::default();
        let ranges = accept.into_iter().flat_map(|value| value.split(','));
        for range in ranges.filter_map(MediaRange::parse) {
            open_metrics.consider(range.open_metrics_rank(), range.quality);
            prometheus.consider(range.prometheus_rank(), range.quality);
        }
        let named = open_metrics.rank >= Some(RANK_NAMED) && open_metrics.quality > 0;
        if open_metrics.quality > prometheus.quality
            || (named && open_metrics.quality == prometheus.quality)
        {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }
}

const RANK_ANY: u8 = 0;
const RANK_TYPE: u8 = 1;
const RANK_NAMED: u8 = 2;
const RANK_OLD_VERSION: u8 = 3;
const RANK_VERSION: u8 = 4;

/// What the ranges seen so far say about one format.
#[derive(Default)]
struct Preference {
    rank: Option<u8>,
    quality: u16,
}

impl Preference {
    fn consider(&mut self, rank: Option<u8>, quality: u16) {
        if rank.is_some() && (rank, quality) > (self.rank, self.quality) {
            (self.rank, self.quality) = (rank, quality);
        }
    }
}

/// One element of an `Accept` header.
struct MediaRange<'a> {
    media: &'a str,
    version: Option<&'a str>,
    /// In thousandths.
    quality: u16,
}

impl<'a> MediaRange<'a> {
    /// `None` for an element that is no media range, or whose quality isn't one.
    fn parse(element: &'a str) -> Option<Self> {
        let mut parts = element.split(';').map(str::trim);
        let media = parts.next().filter(|media| media.contains('/'))?;
        let mut range = Self {
            media,
            version: None,
            quality: 1000,
        };
        for parameter in parts {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if name.eq_ignore_ascii_case("q") {
                range.quality = parse_quality(value)?;
            } else if name.eq_ignore_ascii_case("version") {
                range.version = Some(value.trim_matches('"'));
            }
        }
        Some(range)
    }

    fn open_metrics_rank(&self) -> Option<u8> {
        // Version 0.0.1 is the draft's number for the same text.
        self.rank(
            "application/*",
            "application/openmetrics-text",
            &[("0.0.1", RANK_OLD_VERSION), ("1.0.0", RANK_VERSION)],
        )
    }

    fn prometheus_rank(&self) -> Option<u8> {
        self.rank("text/*", "text/plain", &[("0.0.4", RANK_VERSION)])
    }

    /// How specifically this range matches a format; `None` if it doesn't.
    fn rank(&self, family: &str, name: &str, versions: &[(&str, u8)]) -> Option<u8> {
        if self.media == "*/*" {
            return Some(RANK_ANY);
        }
        if self.media.eq_ignore_ascii_case(family) {
            return Some(RANK_TYPE);
        }
        if !self.media.eq_ignore_ascii_case(name) {
            return None;
        }
        let Some(wanted) = self.version else {
            return Some(RANK_NAMED);
        };
        let known = versions.iter().find(|(version, _)| *version == wanted);
        known.map(|(_, rank)| *rank)
    }
}

/// A quality value in thousandths: 0 to 1 with at most three digits after the point.
fn parse_quality(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths: u16 = format!("{fraction:0<3}").parse().ok()?;
    match (whole, thousandths) {
        ("0", _) => Some(thousandths),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

/// A part of a converted exposition.
///
/// Nearly every line is the same in both formats, so the result is told as pieces of the source: an exposition of
/// several megabytes then needs no second copy in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// These bytes of the source.
    Kept(Range<usize>),
    /// Text that the source lacks.
    Added(&'static str),
}

impl Piece {
    /// How many bytes it stands for.
    #[must_use]
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Kept(range) => range.len(),
            Self::Added(text) => text.len(),
        }
    }

    /// Takes up to `at_most` bytes off its front; `source` is what the piece was made from.
    pub(crate) fn take<'a>(&mut self, at_most: usize, source: &'a [u8]) -> &'a [u8] {
        let taken = self.size().min(at_most);
        match self {
            Self::Kept(range) => {
                let start = range.start;
                range.start += taken;
                &source[start..start + taken]
            }
            Self::Added(text) => {
                let (front, rest) = text.split_at(taken);
                *text = rest;
                front.as_bytes()
            }
        }
    }
}

/// Rewrites an `OpenMetrics` exposition as Prometheus text 0.0.4.
///
/// Expects what `prometheus_client::encoding::text::encode` writes, whose samples carry no timestamps.
#[must_use]
pub(crate) fn to_prometheus(open_metrics: &str) -> Vec<Piece> {
    let mut pieces = Pieces::default();
    let mut family = Family::default();
    let mut end = 0;
    for line in open_metrics.split_inclusive('\n') {
        let start = end;
        end += line.len();
        let Some(comment) = Metadata::parse(line) else {
            if line.trim_end() != "# EOF" && !family.is_created_sample(line) {
                let kept = exemplar_start(line).unwrap_or(line.len());
                pieces.keep(start..start + kept);
                if kept < line.len() && line.ends_with('\n') {
                    pieces.keep(end - 1..end);
                }
            }
            continue;
        };
        if family.name != comment.name {
            family = Family::beginning_at(&open_metrics[start..], comment.name);
        }
        let name_end = start + comment.name_end;
        match comment.keyword {
            "HELP" => {
                pieces.keep(start..name_end);
                pieces.add(family.suffix());
                pieces.keep_unquoted(open_metrics, name_end..end);
            }
            "TYPE" => {
                pieces.keep(start..name_end);
                pieces.add(family.suffix());
                pieces.add(family.prometheus_kind());
                pieces.add("\n");
            }
            _ => {}
        }
    }
    pieces.0
}

/// The last family that `open_metrics` has metadata of.
pub(crate) fn last_family(open_metrics: &str) -> Option<&str> {
    let metadata = open_metrics.lines().rev().find_map(Metadata::parse)?;
    Some(metadata.name)
}

/// Bytes of the metadata that `open_metrics` begins with, if they are those of this family.
pub(crate) fn repeated_metadata(open_metrics: &str, family: &str) -> usize {
    let lines = open_metrics.split_inclusive('\n');
    let of_family = |line: &str| Metadata::parse(line).is_some_and(|line| line.name == family);
    lines.take_while(|line| of_family(line)).map(str::len).sum()
}

#[derive(Default)]
struct Pieces(Vec<Piece>);

impl Pieces {
    /// Keeps a range of the source, as one piece with the range before it where they touch.
    fn keep(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        match self.0.last_mut() {
            Some(Piece::Kept(last)) if last.end == range.start => last.end = range.end,
            _ => self.0.push(Piece::Kept(range)),
        }
    }

    fn add(&mut self, text: &'static str) {
        if !text.is_empty() {
            self.0.push(Piece::Added(text));
        }
    }

    /// Keeps help text. `OpenMetrics` escapes quotes in it; 0.0.4 calls that an invalid escape.
    fn keep_unquoted(&mut self, source: &str, range: Range<usize>) {
        let bytes = &source.as_bytes()[range.clone()];
        let mut kept = range.start;
        let mut at = 0;
        while at < bytes.len() {
            if bytes[at] == b'\\' {
                if bytes.get(at + 1) == Some(&b'"') {
                    self.keep(kept..range.start + at);
                    kept = range.start + at + 1;
                }
                at += 1;
            }
            at += 1;
        }
        self.keep(kept..range.end);
    }
}

/// A `# HELP`, `# TYPE` or `# UNIT` line.
struct Metadata<'a> {
    keyword: &'a str,
    name: &'a str,
    /// Where the name ends in the line.
    name_end: usize,
    /// What follows the name, trimmed.
    value: &'a str,
}

impl<'a> Metadata<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (keyword, rest) = line.strip_prefix("# ")?.split_once(' ')?;
        if !matches!(keyword, "HELP" | "TYPE" | "UNIT") {
            return None;
        }
        let name = rest.split([' ', '\n']).next()?;
        let name_end = line.len() - rest.len() + name.len();
        Some(Self {
            keyword,
            name,
            name_end,
            value: line[name_end..].trim(),
        })
    }
}

/// A metric family: its name and `OpenMetrics` type.
#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
}

impl<'a> Family<'a> {
    /// The family whose first line `text` begins with. Its type may stand below its help, which needs it already.
    fn beginning_at(text: &'a str, name: &'a str) -> Self {
        let kind = text
            .lines()
            .map_while(Metadata::parse)
            .take_while(|comment| comment.name == name)
            .find(|comment| comment.keyword == "TYPE")
            .map_or("unknown", |comment| comment.value);
        Self { name, kind }
    }

    /// What 0.0.4 has in a family's name and `OpenMetrics` only in its samples' names.
    fn suffix(&self) -> &'static str {
        match self.kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        }
    }

    fn prometheus_kind(&self) -> &'static str {
        match self.kind {
            "counter" => " counter",
            "gauge" | "info" | "stateset" => " gauge",
            "histogram" => " histogram",
            "summary" => " summary",
            _ => " untyped",
        }
    }

    /// Whether a sample tells when its counter, histogram or summary was created. A gauge may be called that way.
    fn is_created_sample(&self, line: &str) -> bool {
        matches!(
            self.kind,
            "counter" | "histogram" | "gaugehistogram" | "summary"
        ) && line
            .strip_prefix(self.name)
            .and_then(|rest| rest.strip_prefix("_created"))
            .is_some_and(|rest| rest.starts_with(['{', ' ']))
    }
}

/// Where the exemplar of a sample line begins. A label's value may look like one.
fn exemplar_start(line: &str) -> Option<usize> {
    const MARK: &str = " # {";
    // Nearly every line ends here.
    if !line.contains(MARK) {
        return None;
    }
    let bytes = line.as_bytes();
    let mut quoted = false;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if quoted => at += 1,
            b'"' => quoted = !quoted,
            b' ' if !quoted && bytes[at..].starts_with(MARK.as_bytes()) => {
                return Some(at);
            }
            _ => {}
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::Format::{OpenMetrics, Prometheus};
    use super::*;
    use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, text::encode};
    use prometheus_client::metrics::MetricType;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::exemplar::{CounterWithExemplar, HistogramWithExemplars};
    use prometheus_client::metrics::family::Family as Labelled;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::{Registry, Unit};
    use std::time::{Duration, UNIX_EPOCH};

    fn convert(source: &str) -> String {
        let pieces = to_prometheus(source);
        pieces
            .iter()
            .map(|piece| match piece {
                Piece::Kept(range) => &source[range.clone()],
                Piece::Added(text) => text,
            })
            .collect()
    }

    // What Prometheus 2.42 and 3.x send.
    const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    const PROTOBUF_FIRST: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,text/plain;version=0.0.4;q=0.5,*/*;q=0.2";
    const BROWSER: &str =
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";

    const ACCEPT: &[(&[&str], Format)] = &[
        (&[], Prometheus),
        (&[""], Prometheus),
        (&["*/*"], Prometheus),
        (&[PROMETHEUS_2], OpenMetrics),
        (&[PROMETHEUS_3], OpenMetrics),
        (&[PROTOBUF_FIRST], Prometheus),
        (&[BROWSER], Prometheus),
        (&["application/openmetrics-text"], OpenMetrics),
        (
            &["application/openmetrics-text; version=1.0.0; charset=utf-8"],
            OpenMetrics,
        ),
        (
            &["application/openmetrics-text; version=\"0.0.1\""],
            OpenMetrics,
        ),
        (
            &["Application/OpenMetrics-Text ; Version=1.0.0 ; Q=0.5"],
            OpenMetrics,
        ),
        (&["application/openmetrics-text;version=2.0.0"], Prometheus),
        (
            &["application/openmetrics-text;version=2.0.0, text/plain;q=0.1"],
            Prometheus,
        ),
        // Ties.
        (&["application/openmetrics-text, text/plain"], OpenMetrics),
        (&["text/plain, application/openmetrics-text"], OpenMetrics),
        (&["*/*, application/openmetrics-text"], OpenMetrics),
        (&["application/*, text/*"], Prometheus),
        (&["application/*, */*"], Prometheus),
        // Quality.
        (
            &["application/openmetrics-text;q=0.4, text/plain;q=0.5"],
            Prometheus,
        ),
        (
            &["application/openmetrics-text;q=0.501, text/plain;q=0.5"],
            OpenMetrics,
        ),
        (&["application/openmetrics-text;q=0, */*"], Prometheus),
        (&["application/openmetrics-text;q=0"], Prometheus),
        (
            &["text/plain;q=0, application/openmetrics-text;q=0.001"],
            OpenMetrics,
        ),
        (&["text/plain;q=0, */*"], OpenMetrics),
        (&["text/plain;q=0"], Prometheus),
        // The most specific range speaks, wherever it stands and whatever others say.
        (&["application/*, text/plain;q=0.5"], OpenMetrics),
        (&["application/*;q=0.2, text/plain;q=0.5"], Prometheus),
        (
            &["application/*;q=0.9, application/openmetrics-text;q=0.1, text/plain;q=0.5"],
            Prometheus,
        ),
        (
            &["text/*;q=0.1, text/plain;version=0.0.4;q=0.9, application/openmetrics-text;q=0.5"],
            Prometheus,
        ),
        (
            &[
                "text/plain;version=0.0.4;q=0.1, text/plain;q=0.9, application/openmetrics-text;q=0.5",
            ],
            OpenMetrics,
        ),
        (
            &[
                "application/openmetrics-text;version=1.0.0;q=0, application/openmetrics-text;version=0.0.1, */*;q=0.1",
            ],
            Prometheus,
        ),
        (
            &["text/plain;version=1.0.0, application/openmetrics-text;q=0.1"],
            OpenMetrics,
        ),
        // Several header lines are one list.
        (
            &["text/plain;q=0.5", "application/openmetrics-text"],
            OpenMetrics,
        ),
        // What is no media range or no quality counts for nothing.
        (
            &["application/openmetrics-text;q=2, text/plain;q=0.1"],
            Prometheus,
        ),
        (
            &["application/openmetrics-text;q=1.001, text/plain;q=0.1"],
            Prometheus,
        ),
        (
            &["application/openmetrics-text;q=0.1234, text/plain;q=0.1"],
            Prometheus,
        ),
        (
            &["application/openmetrics-text;q=high, */*;q=0.1"],
            Prometheus,
        ),
        (&["application/openmetrics-text;q=-1"], Prometheus),
        (&["openmetrics,,;q=1"], Prometheus),
        (&["image/png"], Prometheus),
    ];

    #[test]
    fn negotiates() {
        for (accept, expected) in ACCEPT {
            assert_eq!(
                Format::negotiate(accept.iter().copied()),
                *expected,
                "{accept:?}"
            );
        }
    }

    #[test]
    fn quality_values() {
        for (text, expected) in [
            ("1", Some(1000)),
            ("1.", Some(1000)),
            ("1.000", Some(1000)),
            ("0", Some(0)),
            ("0.5", Some(500)),
            ("0.05", Some(50)),
            ("0.123", Some(123)),
            ("", None),
            (".5", None),
            ("1.1", None),
            ("0.1234", None),
            ("0.+1", None),
            ("2", None),
        ] {
            assert_eq!(parse_quality(text), expected, "{text:?}");
        }
    }

    const REWRITES: &[(&str, &str)] = &[
        ("", ""),
        ("# EOF\n", ""),
        ("# EOF", ""),
        (
            "# HELP a_b Things.\n# TYPE a_b counter\na_b_total 1\n# EOF\n",
            "# HELP a_b_total Things.\n# TYPE a_b_total counter\na_b_total 1\n",
        ),
        // Type before help, no help text, no help at all.
        (
            "# TYPE a counter\n# HELP a Things.\na_total 1\n",
            "# TYPE a_total counter\n# HELP a_total Things.\na_total 1\n",
        ),
        (
            "# HELP a\n# TYPE a counter\n",
            "# HELP a_total\n# TYPE a_total counter\n",
        ),
        (
            "# TYPE a counter\na_total 1",
            "# TYPE a_total counter\na_total 1",
        ),
        // A family called _total already: its sample has the suffix twice.
        (
            "# TYPE a_total counter\na_total_total 1\n",
            "# TYPE a_total_total counter\na_total_total 1\n",
        ),
        // A family whose name begins another's.
        (
            "# HELP a A.\n# TYPE a gauge\na 1\n# HELP a_b B.\n# TYPE a_b counter\na_b_total 2\n",
            "# HELP a A.\n# TYPE a gauge\na 1\n# HELP a_b_total B.\n# TYPE a_b_total counter\na_b_total 2\n",
        ),
        // Help without a type, next to a counter.
        (
            "# HELP a A.\n# HELP b B.\n# TYPE b counter\n",
            "# HELP a A.\n# HELP b_total B.\n# TYPE b_total counter\n",
        ),
        (
            "# TYPE a_seconds gauge\n# UNIT a_seconds seconds\na_seconds 0.5\n",
            "# TYPE a_seconds gauge\na_seconds 0.5\n",
        ),
        (
            "# HELP a A.\n# UNIT a s\n# TYPE a counter\n",
            "# HELP a_total A.\n# TYPE a_total counter\n",
        ),
        // Other types.
        (
            "# HELP build B.\n# TYPE build info\nbuild_info{version=\"1\"} 1\n",
            "# HELP build_info B.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n",
        ),
        ("# TYPE a unknown\na 1\n", "# TYPE a untyped\na 1\n"),
        (
            "# TYPE a stateset\na{a=\"on\"} 1\n",
            "# TYPE a gauge\na{a=\"on\"} 1\n",
        ),
        (
            "# TYPE a summary\na{quantile=\"0.5\"} 1\n",
            "# TYPE a summary\na{quantile=\"0.5\"} 1\n",
        ),
        (
            "# TYPE a gaugehistogram\na_gcount 1\n",
            "# TYPE a untyped\na_gcount 1\n",
        ),
        // Creation times go, a gauge of that name stays.
        (
            "# TYPE a counter\na_total 1\na_created 5\na_total{x=\"1\"} 1\na_created{x=\"1\"} 5\n",
            "# TYPE a_total counter\na_total 1\na_total{x=\"1\"} 1\n",
        ),
        (
            "# TYPE a histogram\na_count 1\na_created 5\na_sum 1\n",
            "# TYPE a histogram\na_count 1\na_sum 1\n",
        ),
        (
            "# TYPE a gauge\na 1\na_created 5\n",
            "# TYPE a gauge\na 1\na_created 5\n",
        ),
        (
            "# TYPE a_created gauge\na_created 5\n",
            "# TYPE a_created gauge\na_created 5\n",
        ),
        (
            "# TYPE a counter\na_created_total 5\n",
            "# TYPE a_total counter\na_created_total 5\n",
        ),
        // Exemplars, and what only looks like one.
        (
            "a_total 1 # {trace=\"7\"} 0.5 1700000000.25\nb 2\n",
            "a_total 1\nb 2\n",
        ),
        ("a_total 1 # {} 0.5", "a_total 1"),
        ("a{x=\" # {}\"} 1\n", "a{x=\" # {}\"} 1\n"),
        (
            "a{x=\" # {y=\\\"1\\\"} 2\"} 1 # {x=\"b\"} 1\n",
            "a{x=\" # {y=\\\"1\\\"} 2\"} 1\n",
        ),
        ("a{x=\"\\\\\"} 1 # {y=\" # {\"} 1\n", "a{x=\"\\\\\"} 1\n"),
        (
            "a{x=\"\\\\\\\" # {\"} 1 # {y=\"\"} 1\n",
            "a{x=\"\\\\\\\" # {\"} 1\n",
        ),
        ("a{x=\"# EOF\"} 1\n", "a{x=\"# EOF\"} 1\n"),
        // Label values with other alphabets: the pieces are byte ranges.
        (
            "a{x=\"шум # {\"} 1 # {y=\"日本\"} 1\nb{x=\"é\"} 2\n",
            "a{x=\"шум # {\"} 1\nb{x=\"é\"} 2\n",
        ),
        // Help text: escaped quotes lose their backslash, other escapes stay.
        (
            "# HELP a Says \\\"hi\\\" and \\\\\" and \\n.\n",
            "# HELP a Says \"hi\" and \\\\\" and \\n.\n",
        ),
        (
            "# HELP a See # {x} and # TYPE a counter.\n# TYPE a gauge\n",
            "# HELP a See # {x} and # TYPE a counter.\n# TYPE a gauge\n",
        ),
    ];

    #[test]
    fn rewrites_line_by_line() {
        for (source, expected) in REWRITES {
            assert_eq!(convert(source), *expected, "{source}");
        }
    }

    #[test]
    fn unchanged_lines_are_one_piece() {
        let source = "# HELP a A.\n# TYPE a counter\na_total{x=\"1\"} 1\na_total{x=\"2\"} 1\na_total{x=\"3\"} 1\n# HELP b B.\n# TYPE b gauge\nb 1\n# EOF\n";
        let samples = source.find("a_total").unwrap();
        let b_type = source.find(" gauge").unwrap();
        assert_eq!(
            to_prometheus(source),
            [
                Piece::Kept(0..8),
                Piece::Added("_total"),
                Piece::Kept(8..20),
                Piece::Added("_total"),
                Piece::Added(" counter"),
                Piece::Added("\n"),
                Piece::Kept(samples..b_type),
                Piece::Added(" gauge"),
                Piece::Added("\n"),
                Piece::Kept(b_type + 7..source.len() - 6),
            ]
        );
    }

    #[derive(Debug)]
    struct Untyped;

    impl EncodeMetric for Untyped {
        fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
            encoder.encode_gauge(&7_i64)
        }

        fn metric_type(&self) -> MetricType {
            MetricType::Unknown
        }
    }

    #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
    struct Labels {
        cgroup: String,
    }

    fn registry() -> Registry {
        let mut registry = Registry::default();
        let runs = Labelled::<Labels, Counter>::default();
        let cgroup = "/system.slice/a\\x2db # {\"x\"} 1\n".to_owned();
        runs.get_or_create(&Labels { cgroup }).inc_by(3);
        registry.register("sentry_runs", "Runs", runs);
        let seconds: Counter<f64, std::sync::atomic::AtomicU64> = Counter::default();
        seconds.inc_by(1.5);
        registry.register_with_unit("sentry_busy", "Busy time", Unit::Seconds, seconds);
        let exemplified = CounterWithExemplar::<Vec<(String, String)>>::default();
        let label = || vec![("trace".to_owned(), "a\" # {b".to_owned())];
        exemplified.inc_by(2, Some(label()), Some(UNIX_EPOCH + Duration::from_secs(9)));
        registry.register("sentry_traced", "Traced", exemplified);
        let histogram = HistogramWithExemplars::new([0.25, 0.5].into_iter());
        histogram.observe(0.3, Some(label()), None);
        registry.register_with_unit("sentry_wait", "Wait", Unit::Seconds, histogram);
        registry.register("sentry_plain_seconds", "Plain", Histogram::new([0.5]));
        let gauge: Gauge = Gauge::default();
        gauge.set(-4);
        registry.register("sentry_level", "Level", gauge);
        let build = Info::new([("version", "0.1.0")]);
        registry.register("sentry_build", "Build", build);
        registry.register("sentry_odd", "Odd", Untyped);
        registry
    }

    #[test]
    fn rewrites_what_the_encoder_writes() {
        let mut source = String::new();
        encode(&mut source, &registry()).unwrap();
        assert!(
            source.contains("# {trace=\"a\\\" # {b\"} 2.0 9.0"),
            "{source}"
        );
        let expected = r#"# HELP sentry_runs_total Runs.
# TYPE sentry_runs_total counter
sentry_runs_total{cgroup="/system.slice/a\\x2db # {\"x\"} 1\n"} 3
# HELP sentry_busy_seconds_total Busy time.
# TYPE sentry_busy_seconds_total counter
sentry_busy_seconds_total 1.5
# HELP sentry_traced_total Traced.
# TYPE sentry_traced_total counter
sentry_traced_total 2
# HELP sentry_wait_seconds Wait.
# TYPE sentry_wait_seconds histogram
sentry_wait_seconds_sum 0.3
sentry_wait_seconds_count 1
sentry_wait_seconds_bucket{le="0.25"} 0
sentry_wait_seconds_bucket{le="0.5"} 1
sentry_wait_seconds_bucket{le="+Inf"} 1
# HELP sentry_plain_seconds Plain.
# TYPE sentry_plain_seconds histogram
sentry_plain_seconds_sum 0.0
sentry_plain_seconds_count 0
sentry_plain_seconds_bucket{le="0.5"} 0
sentry_plain_seconds_bucket{le="+Inf"} 0
# HELP sentry_level Level.
# TYPE sentry_level gauge
sentry_level -4
# HELP sentry_build_info Build.
# TYPE sentry_build_info gauge
sentry_build_info{version="0.1.0"} 1
# HELP sentry_odd Odd.
# TYPE sentry_odd untyped
sentry_odd 7
"#;
        assert_eq!(convert(&source), expected);
    }
}
