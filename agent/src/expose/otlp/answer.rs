//! What a receiver's answer means, and how long to wait before the next attempt: OTLP's rules
//! (<https://opentelemetry.io/docs/specs/otlp/>), by HTTP and by gRPC.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    io::Read,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use flate2::read::GzDecoder;
use prost::Message;

use super::message::{ExportMetricsServiceResponse, RetryInfo, Span, Status};

/// What an answer's body may take, compressed and not.
pub(super) const ANSWER_BYTES: usize = 256 * 1024;

/// Characters of a receiver's words that are shown.
const DETAIL_CHARACTERS: usize = 300;

/// Before the second attempt; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);

const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A receiver that wants to be left alone for longer is asked again nevertheless.
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 60);

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The receiver has it, but for the data points that it rejected.
    Delivered { rejected: u64, message: String },
    /// The receiver says that it has it, but not in words that can be read, so it may have rejected some.
    Unread(String),
    /// It may go better another time, after as long as the receiver says.
    Retry {
        after: Option<Duration>,
        why: String,
    },
    /// It never will.
    Refused(String),
}

impl Verdict {
    pub(super) fn retry(why: impl Into<String>) -> Self {
        Self::Retry {
            after: None,
            why: why.into(),
        }
    }
}

/// The body of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body<'a> {
    /// At most `ANSWER_BYTES` of it.
    pub(super) bytes: &'a [u8],
    /// Whether there is no more of it.
    pub(super) whole: bool,
    /// `content-type`
    pub(super) kind: &'a str,
}

/// An answer by HTTP. `retry_after` is the text of its header.
pub(super) fn of_http(
    status: u16,
    retry_after: Option<&str>,
    body: Body,
    now: SystemTime,
) -> Verdict {
    match status {
        200..300 => delivered_by_http(body),
        429 | 502 | 503 | 504 => Verdict::Retry {
            after: retry_after.and_then(|text| pause(text, now)),
            why: http_error(status, body.bytes),
        },
        _ => Verdict::Refused(http_error(status, body.bytes)),
    }
}

/// An answer by gRPC: the status of HTTP, that of gRPC with its words and details, how the message is compressed if it
/// is, and the message with its frame.
pub(super) fn of_grpc(
    http: u16,
    status: Option<&str>,
    message: &str,
    details: Option<&str>,
    encoding: Option<&str>,
    body: Body,
) -> Verdict {
    // Its status comes after it, and is a failure's only where there is nothing to say.
    if status.is_none() && http == 200 && !body.whole && body.kind.starts_with("application/grpc") {
        return Verdict::Unread(TOO_LONG.to_owned());
    }
    let Some(status) = status.and_then(|status| status.parse::<u8>().ok()) else {
        // As gRPC says for what is in the way: <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
        let why = format!("HTTP status {http} and none of gRPC");
        return match http {
            429 | 502 | 503 | 504 => Verdict::retry(why),
            _ => Verdict::Refused(why),
        };
    };
    if status == 0 && !body.whole {
        return Verdict::Unread(TOO_LONG.to_owned());
    }
    if status == 0 {
        return match framed(encoding, body.bytes) {
            Ok(message) => delivered(&message),
            Err(why) => Verdict::Unread(why),
        };
    }
    let name = STATUS.get(usize::from(status)).unwrap_or(&"unknown");
    let why = saying(
        &format!("gRPC status {status} ({name})"),
        &unescaped(message),
    );
    let after = details.and_then(retry_delay);
    match status {
        // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS
        1 | 4 | 10 | 11 | 14 | 15 => Verdict::Retry { after, why },
        // RESOURCE_EXHAUSTED, where the receiver says that it will recover.
        8 if after.is_some() => Verdict::Retry { after, why },
        _ => Verdict::Refused(why),
    }
}

const TOO_LONG: &str = "the rest of it is too long to be read";

/// By the numbers of gRPC's statuses.
const STATUS: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid argument",
    "deadline exceeded",
    "not found",
    "already exists",
    "permission denied",
    "resource exhausted",
    "failed precondition",
    "aborted",
    "out of range",
    "unimplemented",
    "internal",
    "unavailable",
    "data loss",
    "unauthenticated",
];

/// The message in gRPC's frame: whether it is compressed, and its length. Some receivers answer without any.
fn framed(encoding: Option<&str>, body: &[u8]) -> Result<Vec<u8>, String> {
    if body.is_empty() {
        return Ok(Vec::new());
    }
    let (compressed, message) = match body {
        [flag @ (0 | 1), a, b, c, d, message @ ..]
            if usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])) == Ok(message.len()) =>
        {
            (*flag == 1, message)
        }
        _ => return Err("it is not one whole message of gRPC".to_owned()),
    };
    match encoding {
        _ if !compressed => Ok(message.to_vec()),
        Some("gzip") => inflated(message),
        Some(other) => Err(format!("it is compressed by {}", shown(other))),
        None => Err("it is compressed, and does not say how".to_owned()),
    }
}

fn inflated(gzip: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut bounded = GzDecoder::new(gzip).take(ANSWER_BYTES as u64 + 1);
    match bounded.read_to_end(&mut bytes) {
        Err(error) => Err(format!("gzip: {error}")),
        Ok(length) if length > ANSWER_BYTES => Err(TOO_LONG.to_owned()),
        Ok(_) => Ok(bytes),
    }
}

/// What the receiver says of a request that it has. Some receivers say nothing.
fn delivered(body: &[u8]) -> Verdict {
    match ExportMetricsServiceResponse::decode(body) {
        Ok(response) => {
            let partial = response.partial_success.unwrap_or_default();
            Verdict::Delivered {
                rejected: u64::try_from(partial.rejected_data_points).unwrap_or(0),
                message: shown(&partial.error_message),
            }
        }
        Err(_) => Verdict::Unread(saying("it is no protobuf", &String::from_utf8_lossy(body))),
    }
}

/// The same by HTTP, where a portal or a proxy may answer in the receiver's place, and some receivers in JSON.
fn delivered_by_http(body: Body) -> Verdict {
    let text = String::from_utf8_lossy(body.bytes);
    let kind = body.kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("text/html") {
        return Verdict::Unread(saying("it is a page", &text));
    }
    match text.trim() {
        _ if !body.whole => Verdict::Unread(TOO_LONG.to_owned()),
        "" | "{}" => delivered(&[]),
        _ => delivered(body.bytes),
    }
}

/// What it is, and the beginning of what it says.
fn saying(what: &str, text: &str) -> String {
    match shown(text) {
        text if text.is_empty() => what.to_owned(),
        text => format!("{what}: {text}"),
    }
}

fn http_error(status: u16, body: &[u8]) -> String {
    let words = match Status::decode(body) {
        Ok(Status { message, .. }) if !message.is_empty() => message,
        _ => String::from_utf8_lossy(body).into_owned(),
    };
    saying(&format!("HTTP status {status}"), &words)
}

/// The beginning, in one line.
pub(super) fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().map(plain).take(DETAIL_CHARACTERS).collect();
    text.trim().to_owned()
}

/// The text of `grpc-message`, which is percent-encoded; as it came where that cannot be undone.
fn unescaped(text: &str) -> String {
    percent_decoded(text).unwrap_or_else(|| text.to_owned())
}

/// Text without its escapes such as `%20`.
pub(super) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// How long `Retry-After` says to wait: seconds, or until a date.
fn pause(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text)
            .ok()?
            .duration_since(now)
            .unwrap_or_default(),
    };
    Some(wait.min(LONGEST_PAUSE))
}

/// How long `RetryInfo` in the text of `grpc-status-details-bin` says to wait.
fn retry_delay(details: &str) -> Option<Duration> {
    let bytes = STANDARD_NO_PAD.decode(details.trim_end_matches('=')).ok()?;
    let status = Status::decode(bytes.as_slice()).ok()?;
    let mut details = status.details.iter();
    let info = details.find(|detail| detail.type_url.ends_with("google.rpc.RetryInfo"))?;
    let info = RetryInfo::decode(info.value.as_slice()).ok()?;
    let Span { seconds, nanos } = info.retry_delay.unwrap_or_default();
    let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let wait = seconds.saturating_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)));
    Some(wait.min(LONGEST_PAUSE))
}

/// The waits between attempts at one request.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { next: FIRST_WAIT }
    }

    /// How long to wait now: at least as long as the receiver says, and between half of the wait and all of it, so that
    /// the agents of many nodes don't come back at once. `random` is from 0 to 1023.
    fn wait(&mut self, after: Option<Duration>, random: u32) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST_WAIT);
        let spread = wait / 2 * random / 1024;
        match after {
            Some(after) => after + spread,
            None => wait / 2 + spread,
        }
    }

    /// The same, at random.
    pub(super) fn next_wait(&mut self, after: Option<Duration>) -> Duration {
        // Each state is seeded at random.
        let random = RandomState::new().hash_one(0) % 1024;
        self.wait(after, u32::try_from(random).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::UNIX_EPOCH};

    use flate2::{Compression, write::GzEncoder};

    use super::super::message::{Any, ExportMetricsPartialSuccess};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn whole(bytes: &[u8]) -> Body<'_> {
        Body {
            bytes,
            whole: true,
            kind: "application/x-protobuf",
        }
    }

    #[test]
    fn answers_by_http() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        for status in [429, 502, 503, 504] {
            for (header, after) in [
                (None, None),
                (Some("7"), Some(SECOND * 7)),
                (Some("Sun, 06 Nov 1994 08:49:37 GMT"), Some(SECOND * 7)),
                (Some("Sun, 06 Nov 1994 08:49:20 GMT"), Some(Duration::ZERO)),
                (Some("99999999999"), Some(SECOND * 600)),
                (Some("soon"), None),
            ] {
                assert_eq!(
                    of_http(status, header, whole(b""), now),
                    Verdict::Retry {
                        after,
                        why: format!("HTTP status {status}")
                    }
                );
            }
        }
        let status = Status {
            message: "no\nsuch tenant".to_owned(),
            details: Vec::new(),
        };
        for (code, body, why) in [
            (
                400,
                status.encode_to_vec(),
                "HTTP status 400: no such tenant",
            ),
            (
                401,
                b"<b>who?</b>\n".to_vec(),
                "HTTP status 401: <b>who?</b>",
            ),
            (500, Vec::new(), "HTTP status 500"),
            (301, Vec::new(), "HTTP status 301"),
        ] {
            let expected = Verdict::Refused(why.to_owned());
            assert_eq!(of_http(code, Some("1"), whole(&body), now), expected);
        }
        let long = Verdict::Refused(format!("HTTP status 404: {}", "x".repeat(300)));
        assert_eq!(of_http(404, None, whole(&[b'x'; 5000]), now), long);
    }

    #[test]
    fn rejected_points_are_told() {
        let delivered = |rejected, message: &str| Verdict::Delivered {
            rejected,
            message: message.to_owned(),
        };
        let response = ExportMetricsServiceResponse {
            partial_success: Some(ExportMetricsPartialSuccess {
                rejected_data_points: 3,
                error_message: "too old".to_owned(),
            }),
        };
        // Fields 1 of both, and 2 of the inner one.
        let body = [b"\x0a\x0b\x08\x03\x12\x07too old".as_slice()].concat();
        assert_eq!(response.encode_to_vec(), body);
        let frame = [&[0, 0, 0, 0, 13], body.as_slice()].concat();
        assert_eq!(
            of_http(200, None, whole(&body), UNIX_EPOCH),
            delivered(3, "too old")
        );
        assert_eq!(
            of_grpc(200, Some("0"), "", None, None, whole(&frame)),
            delivered(3, "too old")
        );
        for body in [&b""[..], b"{}", b"\x0a\x00"] {
            assert_eq!(
                of_http(202, None, whole(body), UNIX_EPOCH),
                delivered(0, "")
            );
        }
        assert_eq!(
            of_grpc(200, Some("0"), "", None, None, whole(b"")),
            delivered(0, "")
        );
    }

    #[test]
    fn an_answer_may_be_too_long() {
        let cut = Body {
            bytes: &vec![b'x'; ANSWER_BYTES],
            whole: false,
            kind: "application/grpc+proto",
        };
        let unread = Verdict::Unread(TOO_LONG.to_owned());
        for code in [200, 202] {
            assert_eq!(of_http(code, None, cut, UNIX_EPOCH), unread);
        }
        let why = format!("HTTP status 400: {}", "x".repeat(DETAIL_CHARACTERS));
        let refused = Verdict::Refused(why);
        assert_eq!(of_http(400, None, cut, UNIX_EPOCH), refused);

        let by_grpc = |http, status, body| of_grpc(http, status, "", None, None, body);
        // The status is among the trailers, which nobody has seen, or in the head.
        assert_eq!(by_grpc(200, None, cut), unread);
        assert_eq!(by_grpc(200, Some("0"), cut), unread);
        let refused = Verdict::Refused("gRPC status 3 (invalid argument)".to_owned());
        assert_eq!(by_grpc(200, Some("3"), cut), refused);
        // What is no answer of gRPC takes nothing.
        let page = Body {
            kind: "text/html",
            ..cut
        };
        for (http, body) in [(200, page), (404, cut)] {
            let why = format!("HTTP status {http} and none of gRPC");
            assert_eq!(by_grpc(http, None, body), Verdict::Refused(why));
        }
        let whole = by_grpc(200, None, whole(b"x"));
        let why = "HTTP status 200 and none of gRPC".to_owned();
        assert_eq!(whole, Verdict::Refused(why));
    }

    #[test]
    fn what_is_no_answer_is_told() {
        let by_http = |kind, bytes: &[u8]| {
            let body = Body {
                bytes,
                whole: true,
                kind,
            };
            of_http(200, None, body, UNIX_EPOCH)
        };
        let nothing = Verdict::Delivered {
            rejected: 0,
            message: String::new(),
        };
        let unread = |why: &str| Verdict::Unread(why.to_owned());
        for kind in [
            "",
            "application/x-protobuf",
            "application/json; charset=utf-8",
        ] {
            for body in ["", "{}", " {}\r\n", "\n"] {
                assert_eq!(by_http(kind, body.as_bytes()), nothing, "{kind} {body:?}");
            }
            for (body, why) in [
                ("<html>\nLog in", "it is no protobuf: <html> Log in"),
                ("OK", "it is no protobuf: OK"),
                (
                    "{\"partialSuccess\":{}}",
                    "it is no protobuf: {\"partialSuccess\":{}}",
                ),
            ] {
                assert_eq!(by_http(kind, body.as_bytes()), unread(why), "{kind}");
            }
        }
        for kind in ["text/html", "Text/HTML ;charset=utf-8"] {
            assert_eq!(by_http(kind, b"Log in"), unread("it is a page: Log in"));
            assert_eq!(by_http(kind, b""), unread("it is a page"));
        }
        let page = [0, 0, 0, 0, 6, b'<', b'h', b't', b'm', b'l', b'>'];
        let by_grpc = of_grpc(200, Some("0"), "", None, None, whole(&page));
        assert_eq!(by_grpc, unread("it is no protobuf: <html>"));
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn messages_of_grpc_come_in_frames() {
        let message = b"\x0a\x0b\x08\x03\x12\x07too old";
        let frame = |flag: u8, message: &[u8]| {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            [&[flag], &length[..], message].concat()
        };
        let told = Verdict::Delivered {
            rejected: 3,
            message: "too old".to_owned(),
        };
        let nothing = Verdict::Delivered {
            rejected: 0,
            message: String::new(),
        };
        let unread = |why: &str| Verdict::Unread(why.to_owned());
        let torn = unread("it is not one whole message of gRPC");
        let (plain, packed) = (frame(0, message), frame(1, &gzip(message)));
        // Field 1 of the response, and in it a text of such a length that all is of as many bytes.
        let long = |bytes: usize| {
            let partial = ExportMetricsPartialSuccess {
                rejected_data_points: 3,
                error_message: "x".repeat(bytes),
            };
            let response = ExportMetricsServiceResponse {
                partial_success: Some(partial),
            };
            response.encode_to_vec()
        };
        let over = long(ANSWER_BYTES).len() - ANSWER_BYTES;
        let full = Verdict::Delivered {
            rejected: 3,
            message: "x".repeat(DETAIL_CHARACTERS),
        };
        let bomb = gzip(&vec![0; 16 << 20]);
        assert!(bomb.len() < ANSWER_BYTES / 8, "{}", bomb.len());
        for (name, encoding, body, expected) in [
            ("plain", None, plain.clone(), &told),
            ("not compressed", Some("gzip"), plain.clone(), &told),
            ("compressed", Some("gzip"), packed.clone(), &told),
            ("no message", None, Vec::new(), &nothing),
            ("of nothing", None, frame(0, b""), &nothing),
            (
                "gzip of nothing",
                Some("gzip"),
                frame(1, &gzip(b"")),
                &nothing,
            ),
            ("head alone", None, plain[..4].to_vec(), &torn),
            ("truncated", None, plain[..17].to_vec(), &torn),
            ("one byte more", None, [&plain[..], b"x"].concat(), &torn),
            ("twice", None, [&plain[..], &plain].concat(), &torn),
            ("another flag", None, frame(2, message), &torn),
            (
                "another compression",
                Some("snappy"),
                packed.clone(),
                &unread("it is compressed by snappy"),
            ),
            (
                "unknown compression",
                None,
                packed.clone(),
                &unread("it is compressed, and does not say how"),
            ),
            (
                "gzip cut off",
                Some("gzip"),
                frame(1, &gzip(message)[..20]),
                &unread("gzip: incomplete deflate stream"),
            ),
            (
                "no gzip",
                Some("gzip"),
                frame(1, message),
                &unread("gzip: invalid gzip header"),
            ),
            (
                "as long as may be",
                Some("gzip"),
                frame(1, &gzip(&long(ANSWER_BYTES - over))),
                &full,
            ),
            (
                "too long",
                Some("gzip"),
                frame(1, &gzip(&long(ANSWER_BYTES - over + 1))),
                &unread(TOO_LONG),
            ),
            ("bomb", Some("gzip"), frame(1, &bomb), &unread(TOO_LONG)),
        ] {
            let found = of_grpc(200, Some("0"), "", None, encoding, whole(&body));
            assert_eq!(&found, expected, "{name}");
        }
        // A failure is told by its status, whatever is in its frame.
        let failed = of_grpc(200, Some("3"), "", None, None, whole(&plain[..4]));
        let refused = Verdict::Refused("gRPC status 3 (invalid argument)".to_owned());
        assert_eq!(failed, refused);
    }

    #[test]
    fn answers_by_grpc() {
        let details = |type_url: &str| {
            let info = RetryInfo {
                retry_delay: Some(Span {
                    seconds: 2,
                    nanos: 500_000_000,
                }),
            };
            let status = Status {
                message: String::new(),
                details: vec![Any {
                    type_url: type_url.to_owned(),
                    value: info.encode_to_vec(),
                }],
            };
            STANDARD_NO_PAD.encode(status.encode_to_vec())
        };
        let info = details("type.googleapis.com/google.rpc.RetryInfo");
        let after = Some(Duration::from_millis(2500));
        for (code, may, exhausted) in [
            (1, true, false),
            (2, false, false),
            (3, false, false),
            (4, true, false),
            (7, false, false),
            (8, false, true),
            (10, true, false),
            (11, true, false),
            (12, false, false),
            (13, false, false),
            (14, true, false),
            (15, true, false),
            (16, false, false),
            (99, false, false),
        ] {
            let status = code.to_string();
            let plain = of_grpc(200, Some(&status), "a%20b", None, None, whole(b""));
            let timed = of_grpc(200, Some(&status), "a%20b", Some(&info), None, whole(b""));
            let name = STATUS.get(code).unwrap_or(&"unknown");
            let why = format!("gRPC status {code} ({name}): a b");
            let retry = |after| Verdict::Retry {
                after,
                why: why.clone(),
            };
            let refused = Verdict::Refused(why.clone());
            assert_eq!(plain, if may { retry(None) } else { refused.clone() });
            let again = may || exhausted;
            assert_eq!(timed, if again { retry(after) } else { refused });
        }
        for bad in ["?", &details("type.googleapis.com/google.rpc.ErrorInfo")] {
            let expected = Verdict::Refused("gRPC status 8 (resource exhausted)".to_owned());
            assert_eq!(
                of_grpc(200, Some("8"), "", Some(bad), None, whole(b"")),
                expected
            );
        }
        let why = "HTTP status 503 and none of gRPC";
        assert_eq!(
            of_grpc(503, None, "", None, None, whole(b"")),
            Verdict::retry(why)
        );
        let why = "HTTP status 404 and none of gRPC".to_owned();
        assert_eq!(
            of_grpc(404, None, "", None, None, whole(b"")),
            Verdict::Refused(why)
        );
    }

    #[test]
    fn waits_double_and_are_spread() {
        let waits = |random| {
            let mut backoff = Backoff::new();
            (0..8)
                .map(|_| backoff.wait(None, random).as_millis())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            waits(0),
            [500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]
        );
        assert_eq!(
            waits(512),
            [750, 1500, 3000, 6000, 12_000, 22_500, 22_500, 22_500]
        );
        let mut backoff = Backoff::new();
        assert_eq!(backoff.wait(Some(SECOND * 5), 0), Duration::from_secs(5));
        assert_eq!(
            backoff.wait(Some(SECOND * 5), 512),
            Duration::from_millis(5500)
        );
        let random: Vec<_> = (0..50)
            .map(|_| Backoff::new().next_wait(None).as_millis())
            .collect();
        assert!(random.iter().all(|wait| (500..1000).contains(wait)));
        assert!(random.iter().any(|wait| *wait != random[0]));
    }

    #[test]
    fn escapes_are_undone() {
        for (text, expected) in [
            ("", Some("")),
            ("a b", Some("a b")),
            ("Basic%20a%2Cb%3d", Some("Basic a,b=")),
            ("%c3%BC", Some("ü")),
            ("%", None),
            ("%2", None),
            ("%zz", None),
            ("%ff", None),
        ] {
            assert_eq!(percent_decoded(text).as_deref(), expected, "{text}");
        }
    }
}
