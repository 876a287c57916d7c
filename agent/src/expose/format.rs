//! The formats of `/metrics`, and which one a client wants.

/// A format that `/metrics` can answer in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus' protobuf, which has native histograms.
    Protobuf,
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
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Chooses the answer to the values of a request's `Accept` headers (RFC 9110, section 12.5.1).
    ///
    /// The most specific range that matches a format gives its quality, and the higher quality wins. On a tie the
    /// format that says more wins, where the client named it; protobuf, which no person can read, is never an answer
    /// to one that did not. A client that accepts none still gets Prometheus text, as from Prometheus' own
    /// exporters: a readable answer serves it better than a 406.
    #[must_use]
    pub(crate) fn negotiate<'a>(accept: impl IntoIterator<Item = &'a str>) -> Answer {
        let mut protobuf = Preference::default();
        let mut open_metrics = Preference::default();
        let mut draft = Preference::default();
        let mut prometheus = Preference::default();
        let ranges = accept.into_iter().flat_map(|value| value.split(','));
        for range in ranges.filter_map(MediaRange::parse) {
            protobuf.consider(range.protobuf_rank(), &range);
            open_metrics.consider(range.open_metrics_rank(), &range);
            draft.consider(range.draft_rank(), &range);
            prometheus.consider(range.prometheus_rank(), &range);
        }
        let is_draft = draft.quality > open_metrics.quality;
        if is_draft {
            open_metrics = draft;
        }
        let text = if open_metrics.is_before(&prometheus) {
            (Self::OpenMetrics, open_metrics)
        } else {
            (Self::Prometheus, prometheus)
        };
        let (format, preference) = if protobuf.is_before(&text.1) {
            (Self::Protobuf, protobuf)
        } else {
            text
        };
        Answer {
            format,
            is_draft: is_draft && format == Self::OpenMetrics,
            escaping: preference.escaping,
        }
    }
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) format: Format,
    /// Whether the client wants `OpenMetrics` by the draft's number, 0.0.1. It is the same text.
    is_draft: bool,
    /// How the client wants names that have more than the old characters. Ours have none, so that each is obeyed.
    escaping: Option<&'static str>,
}

impl Answer {
    /// The `Content-Type`: what was asked for, by the names that it was asked for by.
    #[must_use]
    pub(crate) fn content_type(&self) -> String {
        let mut text = self.format.content_type().to_owned();
        if self.is_draft {
            text = text.replace("version=1.0.0", "version=0.0.1");
        }
        if let Some(escaping) = self.escaping {
            text.extend(["; escaping=", escaping]);
        }
        text
    }
}

/// Ways to escape names that clients of Prometheus 3 ask for.
const ESCAPING: [&str; 4] = ["allow-utf-8", "underscores", "dots", "values"];

const RANK_ANY: u8 = 0;
const RANK_TYPE: u8 = 1;
const RANK_NAMED: u8 = 2;
const RANK_VERSION: u8 = 3;

/// What the ranges seen so far say about one format.
#[derive(Default)]
struct Preference {
    rank: Option<u8>,
    quality: u16,
    escaping: Option<&'static str>,
}

impl Preference {
    fn consider(&mut self, rank: Option<u8>, range: &MediaRange) {
        if rank.is_some() && (rank, range.quality) > (self.rank, self.quality) {
            (self.rank, self.quality) = (rank, range.quality);
            self.escaping = range.escaping;
        }
    }

    /// Whether it wins over a format that says less.
    fn is_before(&self, other: &Self) -> bool {
        let named = self.rank >= Some(RANK_NAMED) && self.quality > 0;
        self.quality > other.quality || (named && self.quality == other.quality)
    }
}

/// One element of an `Accept` header.
struct MediaRange<'a> {
    media: &'a str,
    version: Option<&'a str>,
    /// The message and its framing, of protobuf.
    message: [Option<&'a str>; 2],
    /// One of [`ESCAPING`].
    escaping: Option<&'static str>,
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
            message: [None; 2],
            escaping: None,
            quality: 1000,
        };
        for parameter in parts {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if name.eq_ignore_ascii_case("q") {
                range.quality = parse_quality(value)?;
            } else if name.eq_ignore_ascii_case("version") {
                range.version = Some(value.trim_matches('"'));
            } else if name.eq_ignore_ascii_case("proto") {
                range.message[0] = Some(value.trim_matches('"'));
            } else if name.eq_ignore_ascii_case("encoding") {
                range.message[1] = Some(value.trim_matches('"'));
            } else if name.eq_ignore_ascii_case("escaping") {
                let wanted = value.trim_matches('"');
                range.escaping = ESCAPING.into_iter().find(|known| *known == wanted);
            }
        }
        Some(range)
    }

    /// Only by its full name: the media type alone may be any message in any framing.
    fn protobuf_rank(&self) -> Option<u8> {
        let named = self
            .media
            .eq_ignore_ascii_case("application/vnd.google.protobuf");
        let message = [Some("io.prometheus.client.MetricFamily"), Some("delimited")];
        (named && self.message == message).then_some(RANK_NAMED)
    }

    fn open_metrics_rank(&self) -> Option<u8> {
        self.rank("application/*", "application/openmetrics-text", "1.0.0")
    }

    /// Only by its number: whoever names none gets 1.0.0.
    fn draft_rank(&self) -> Option<u8> {
        let rank = self.rank("application/*", "application/openmetrics-text", "0.0.1");
        rank.filter(|rank| *rank == RANK_VERSION)
    }

    fn prometheus_rank(&self) -> Option<u8> {
        self.rank("text/*", "text/plain", "0.0.4")
    }

    /// How specifically this range matches a format; `None` if it doesn't.
    fn rank(&self, family: &str, name: &str, version: &str) -> Option<u8> {
        if self.media == "*/*" {
            return Some(RANK_ANY);
        }
        if self.media.eq_ignore_ascii_case(family) {
            return Some(RANK_TYPE);
        }
        if !self.media.eq_ignore_ascii_case(name) {
            return None;
        }
        match self.version {
            None => Some(RANK_NAMED),
            Some(wanted) => (wanted == version).then_some(RANK_VERSION),
        }
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

#[cfg(test)]
mod tests {
    use super::Format::{OpenMetrics, Prometheus, Protobuf};
    use super::*;

    // What Prometheus 2.42 and 3.x send.
    const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    const PROTOBUF_FIRST: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,text/plain;version=0.0.4;q=0.5,*/*;q=0.2";
    // With native histograms on.
    const PROMETHEUS_2_NATIVE: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    const PROMETHEUS_3_NATIVE: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
    const PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    const BROWSER: &str =
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";

    const ACCEPT: &[(&[&str], Format)] = &[
        (&[], Prometheus),
        (&[""], Prometheus),
        (&["*/*"], Prometheus),
        (&[PROMETHEUS_2], OpenMetrics),
        (&[PROMETHEUS_3], OpenMetrics),
        (&[PROTOBUF_FIRST], Protobuf),
        (&[PROMETHEUS_2_NATIVE], Protobuf),
        (&[PROMETHEUS_3_NATIVE], Protobuf),
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
            OpenMetrics,
        ),
        (
            &["text/plain;version=1.0.0, application/openmetrics-text;q=0.1"],
            OpenMetrics,
        ),
        // Protobuf, by its full name only.
        (&[PROTOBUF], Protobuf),
        (
            &[
                "Application/Vnd.Google.Protobuf; Proto=\"io.prometheus.client.MetricFamily\"; Encoding=\"delimited\"",
            ],
            Protobuf,
        ),
        (&["application/vnd.google.protobuf"], Prometheus),
        (
            &["application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily"],
            Prometheus,
        ),
        (
            &[
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text, application/openmetrics-text;q=0.1",
            ],
            OpenMetrics,
        ),
        (
            &["application/vnd.google.protobuf;proto=other;encoding=delimited"],
            Prometheus,
        ),
        (
            &["application/openmetrics-text, text/plain", PROTOBUF],
            Protobuf,
        ),
        (&[PROTOBUF, "application/openmetrics-text, */*"], Protobuf),
        (
            &[
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.4",
                "application/openmetrics-text;q=0.5",
            ],
            OpenMetrics,
        ),
        (
            &[
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.4",
                "text/plain;version=0.0.4;q=0.401",
            ],
            Prometheus,
        ),
        (
            &[
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0, */*",
            ],
            Prometheus,
        ),
        (
            &[
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0",
            ],
            Prometheus,
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
                Format::negotiate(accept.iter().copied()).format,
                *expected,
                "{accept:?}"
            );
        }
    }

    #[test]
    fn the_answer_says_what_was_asked_for() {
        let open = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        let draft = "application/openmetrics-text; version=0.0.1; charset=utf-8";
        let text = "text/plain; version=0.0.4; charset=utf-8";
        let protobuf = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";
        for (accept, expected, escaping) in [
            ("", text, ""),
            ("*/*", text, ""),
            (PROMETHEUS_2, open, ""),
            (PROMETHEUS_3, open, "allow-utf-8"),
            (PROMETHEUS_3_NATIVE, protobuf, "allow-utf-8"),
            // Prometheus 3 that is told to keep to old names, or to have text.
            (
                "text/plain;version=0.0.4;escaping=underscores",
                text,
                "underscores",
            ),
            (
                "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,*/*;q=0.5",
                text,
                "",
            ),
            (
                "application/openmetrics-text; escaping=\"dots\"",
                open,
                "dots",
            ),
            ("text/plain; Escaping=values", text, "values"),
            ("text/plain; escaping=rot13", text, ""),
            // The draft's number, where nothing newer is wanted as much.
            (
                "application/openmetrics-text;version=0.0.1;escaping=underscores,text/plain;q=0.5",
                draft,
                "underscores",
            ),
            (
                "application/openmetrics-text;version=0.0.1,application/openmetrics-text;version=1.0.0",
                open,
                "",
            ),
            (
                "application/openmetrics-text;version=0.0.1,application/openmetrics-text;version=1.0.0;q=0.9",
                draft,
                "",
            ),
            (
                "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;q=0.5",
                text,
                "",
            ),
            ("application/openmetrics-text", open, ""),
        ] {
            let mut expected = expected.to_owned();
            if !escaping.is_empty() {
                expected = format!("{expected}; escaping={escaping}");
            }
            let answer = Format::negotiate([accept]).content_type();
            assert_eq!(answer, expected, "{accept}");
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
}
