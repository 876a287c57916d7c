//! Metrics sent to an OpenTelemetry receiver, for those who have no scraper: OTLP, by HTTP or gRPC.
//!
//! Everything counts since the agent's start or the series' beginning, so what was not delivered needs no queue: the
//! next export says it as well.

mod answer;
mod client;
mod encode;
mod message;
mod names;

use std::{
    fmt, io,
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum;
use http::{HeaderName, HeaderValue, Uri};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until, timeout_at},
};

use self::{
    answer::{Backoff, Verdict, percent_decoded},
    client::Client,
    encode::{Request, Requests, Sender},
};
use super::metrics::{Metrics, Shape};
use crate::config::PodLabel;

pub(crate) use client::Error;
pub(crate) use names::POD_LABEL;

/// How long an attempt may take: the default of OpenTelemetry's own exporters.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the agent's end waits for the last export.
const LAST_EXPORT: Duration = Duration::from_secs(1);

/// Where metrics are sent, and how.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Options {
    pub(crate) endpoint: Endpoint,
    pub(crate) protocol: Protocol,
    pub(crate) interval: Duration,
    pub(crate) headers: Headers,
    /// Authorities that are trusted instead of the system's.
    pub(crate) ca_file: Option<PathBuf>,
}

/// By the names of `OTEL_EXPORTER_OTLP_PROTOCOL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    #[value(name = "http/protobuf")]
    HttpProtobuf,
    #[value(name = "grpc")]
    Grpc,
}

/// The receiver's URL. Shown without path and query, which may hold a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    tls: bool,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    authority: String,
    /// With the query; where metrics go by HTTP.
    path: String,
    /// Whether the URL has a path of its own, which gRPC has no use for.
    has_path: bool,
}

/// A URL that is none of a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "allowed: a URL such as http://collector:4318 or https://HOST[:PORT][/PATH], without user and password"
)]
pub(crate) struct EndpointError;

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let url: Uri = text.parse().map_err(|_| EndpointError)?;
        let tls = match url.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(EndpointError),
        };
        let authority = url.authority().ok_or(EndpointError)?;
        let host = authority.host();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        // Neither a user nor a port that is no number is left out silently.
        let port = match authority.as_str().strip_prefix(host) {
            Some("") if tls => 443,
            Some("") => 80,
            Some(_) => authority.port_u16().ok_or(EndpointError)?,
            None => return Err(EndpointError),
        };
        if host.is_empty() || port == 0 || text.contains('#') {
            return Err(EndpointError);
        }
        let has_path = !matches!(url.path(), "" | "/");
        let path = if has_path { url.path() } else { "/v1/metrics" };
        let query = url.query().map(|query| format!("?{query}"));
        Ok(Self {
            tls,
            host: bare.unwrap_or(host).to_owned(),
            port,
            authority: authority.to_string(),
            path: format!("{path}{}", query.unwrap_or_default()),
            has_path,
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

impl Endpoint {
    /// Whether it has a path, which only HTTP has a use for.
    pub(crate) fn has_path(&self) -> bool {
        self.has_path
    }
}

/// Headers of every request. Values may be secrets, and are shown nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(HeaderName, HeaderValue)>);

/// Headers that are the exporter's own, beside those whose names begin with one of `RESERVED_PREFIXES`.
const RESERVED: [&str; 7] = [
    "accept-encoding",
    "connection",
    "expect",
    "host",
    "te",
    "transfer-encoding",
    "upgrade",
];

const RESERVED_PREFIXES: [&str; 2] = ["content-", "grpc-"];

/// Headers that can't be sent. Says nothing of their values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadersError {
    /// One without a name or a value.
    #[error(
        "header {0} is not a name and a value; allowed: name=value, separated by commas, values percent-encoded where needed (%2C is a comma)"
    )]
    NotAPair(usize),
    /// One that says what only the exporter knows, or changes how it is answered.
    #[error(
        "header {0} is not for the configuration to set; allowed: any but {list}, content-* and grpc-*",
        list = RESERVED.join(", ")
    )]
    Reserved(HeaderName),
}

impl FromStr for Headers {
    type Err = HeadersError;

    fn from_str(text: &str) -> Result<Self, HeadersError> {
        let mut headers = Vec::new();
        for (index, pair) in text.split(',').enumerate() {
            let pair = pair.trim();
            if pair.is_empty() {
                continue;
            }
            let header = || {
                let (name, value) = pair.split_once('=')?;
                let name: HeaderName = name.trim().parse().ok()?;
                let value = percent_decoded(value.trim())?;
                let mut value = HeaderValue::from_str(&value).ok()?;
                value.set_sensitive(true);
                Some((name, value))
            };
            let (name, value) = header().ok_or(HeadersError::NotAPair(index + 1))?;
            let mut prefixes = RESERVED_PREFIXES.iter();
            if RESERVED.contains(&name.as_str())
                || prefixes.any(|prefix| name.as_str().starts_with(prefix))
            {
                return Err(HeadersError::Reserved(name));
            }
            headers.push((name, value));
        }
        Ok(Self(headers))
    }
}

/// What became of the exports so far.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    exports: [AtomicU64; 3],
    dropped: AtomicU64,
    /// In seconds since 1970; 0 before the first.
    last_success: AtomicU64,
}

/// What became of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The receiver has everything.
    Success,
    /// It rejected some data points, or some requests.
    Partial,
    /// It has nothing.
    Failed,
}

impl Outcome {
    pub(crate) const ALL: [Self; 3] = [Self::Success, Self::Partial, Self::Failed];

    /// The label's value.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Partial => "partial",
            Self::Failed => "failed",
        }
    }
}

impl Stats {
    /// Exports that ended so.
    pub(crate) fn exports_total(&self, outcome: Outcome) -> u64 {
        self.exports[outcome as usize].load(Ordering::Relaxed)
    }

    /// Data points that were rejected or not delivered.
    pub(crate) fn dropped_data_points_total(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// When the receiver last took everything.
    pub(crate) fn last_success(&self) -> Option<u64> {
        Some(self.last_success.load(Ordering::Relaxed)).filter(|seconds| *seconds > 0)
    }

    fn count(&self, outcome: Outcome, dropped: u64) {
        self.exports[outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        if outcome == Outcome::Success {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            let seconds = now.unwrap_or_default().as_secs();
            self.last_success.store(seconds, Ordering::Relaxed);
        }
    }
}

/// An exporter that has yet to begin.
pub(crate) struct Exporter {
    client: Client,
    endpoint: Endpoint,
    interval: Duration,
    sender: Sender,
    /// Only what it says of labels and beginnings counts here.
    shape: Shape,
    stats: Arc<Stats>,
    /// Whether the log has said that it fails.
    failing: bool,
    succeeded: bool,
    /// Whether the log has said that its answers cannot be read.
    unread: bool,
    /// The receiver wants to be left alone until then.
    not_before: Option<Instant>,
}

/// Who sends.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// This host's name.
    pub(crate) host: String,
    /// Its name in Kubernetes.
    pub(crate) node: Option<String>,
    /// A moment before anything was counted.
    pub(crate) started: SystemTime,
}

/// The exporter at work.
#[derive(Debug)]
pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
}

impl Running {
    /// Sends what has come since the last export, if that takes no longer than a second, and ends.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        let _ = tokio::time::timeout(LAST_EXPORT * 3 / 2, self.ended).await;
    }
}

impl Exporter {
    /// Reads the authorities that it trusts, and connects nowhere yet.
    ///
    /// # Errors
    /// When there are none, and the URL wants TLS.
    pub(crate) fn new(options: &Options, identity: Identity) -> Result<Self, Error> {
        let Identity {
            host,
            node,
            started,
        } = identity;
        let node_or_host = node.clone().unwrap_or_else(|| host.clone());
        let mut resource = vec![
            ("service.name", "sentry".to_owned()),
            ("service.version", env!("CARGO_PKG_VERSION").to_owned()),
            // One agent runs on a host, and what it says goes on after its restart.
            ("service.instance.id", node_or_host.clone()),
            // In a pod, the host's own name is that of the pod.
            ("host.name", node_or_host),
        ];
        resource.extend(node.map(|node| ("k8s.node.name", node)));
        Ok(Self {
            client: Client::new(options)?,
            endpoint: options.endpoint.clone(),
            interval: options.interval,
            sender: Sender { resource, started },
            shape: Shape {
                buckets_per_octave: 1,
                classic_histograms: false,
                created: true,
                pod_label: PodLabel::attribute,
            },
            stats: Arc::default(),
            failing: false,
            succeeded: false,
            unread: false,
            not_before: None,
        })
    }

    /// What becomes of its exports.
    pub(crate) fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Begins, in a thread of its own: to encode and compress takes longer than the server may wait.
    ///
    /// # Errors
    /// When there can be no more threads or file descriptors.
    pub(crate) fn start(mut self, metrics: Arc<Metrics>) -> io::Result<Running> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(1)
            .thread_keep_alive(Duration::from_secs(1))
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        thread::Builder::new()
            .name("otlp".to_owned())
            .spawn(move || {
                runtime.block_on(self.run(&metrics, stopped));
                // A name may still be looked up.
                runtime.shutdown_background();
                let _ = end.send(());
            })?;
        Ok(Running { stop, ended })
    }

    async fn run(&mut self, metrics: &Metrics, mut stop: oneshot::Receiver<()>) {
        loop {
            let next = Instant::now() + self.interval;
            let stopped = tokio::select! {
                () = self.export(metrics, next) => false,
                _ = &mut stop => true,
            };
            let next = self.not_before.map_or(next, |pause| pause.max(next));
            let stopped = stopped
                || tokio::select! {
                    () = sleep_until(next) => false,
                    _ = &mut stop => true,
                };
            if stopped {
                self.client.disconnect();
                self.export(metrics, Instant::now() + LAST_EXPORT).await;
                return;
            }
        }
    }

    /// Sends all metrics as they are now, if that can be done by the deadline.
    async fn export(&mut self, metrics: &Metrics, deadline: Instant) {
        let source = metrics.source();
        let parts = source.parts();
        let sender = self.sender.clone();
        let mut requests = Requests::new(&sender, SystemTime::now());
        let mut delivery = self.begin();
        let mut own = Vec::new();
        source.own(self.shape.created, |family, samples| {
            for sample in samples {
                own.extend(requests.add(&family, sample));
            }
        });
        for request in own {
            self.deliver(request, deadline, &mut delivery).await;
        }
        for part in parts {
            let family = part.family();
            for copied in part.samples {
                let ready = requests.add(&family, &copied.sample(&self.shape));
                if let Some(request) = ready {
                    self.deliver(request, deadline, &mut delivery).await;
                }
            }
        }
        if let Some(request) = requests.take() {
            self.deliver(request, deadline, &mut delivery).await;
        }
        self.client.disconnect();
        self.conclude(&delivery);
    }

    /// Only the last export comes before the end of a pause, and is then not sent.
    fn begin(&self) -> Delivery {
        let pause = self.not_before.is_some_and(|end| end > Instant::now());
        Delivery {
            given_up: pause,
            why: pause.then(|| "the receiver wants to be left alone".to_owned()),
            ..Delivery::default()
        }
    }

    async fn deliver(&mut self, request: Request, deadline: Instant, delivery: &mut Delivery) {
        if delivery.given_up {
            delivery.dropped += request.points;
            return;
        }
        let points = request.points;
        match self.attempt(request, deadline).await {
            Ok(Taken::Unread(why)) => {
                delivery.delivered += points;
                delivery.unread = Some(why);
            }
            Ok(Taken::But(rejected, message)) => {
                delivery.delivered += points.saturating_sub(rejected);
                delivery.dropped += rejected.min(points);
                if rejected > 0 {
                    delivery.why = Some(format!("{rejected} data points were rejected: {message}"));
                } else if !message.is_empty() {
                    tracing::debug!("{} says: {message}", self.endpoint);
                }
            }
            Err(Failure { why, ended }) => {
                delivery.dropped += points;
                delivery.given_up |= ended;
                delivery.why = Some(why);
            }
        }
    }

    /// Sends a request until the receiver has it, refuses it, or the time is over.
    async fn attempt(&mut self, request: Request, deadline: Instant) -> Result<Taken, Failure> {
        let refused = |why| Failure { why, ended: false };
        let packed = self.client.packed(&request.body);
        let body = packed.map_err(|error| refused(error.to_string()))?;
        drop(request);
        let mut backoff = Backoff::new();
        loop {
            let end = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
            let verdict = timeout_at(end, self.client.send(body.clone())).await;
            let verdict = verdict.unwrap_or_else(|_| Verdict::retry("no answer in time"));
            let (after, why) = match verdict {
                Verdict::Delivered { rejected, message } => {
                    return Ok(Taken::But(rejected, message));
                }
                Verdict::Unread(why) => return Ok(Taken::Unread(why)),
                Verdict::Refused(why) => return Err(refused(why)),
                Verdict::Retry { after, why } => (after, why),
            };
            // Whoever has just set it up wants to know at once.
            if !self.succeeded {
                self.warn(&why);
            }
            let next = Instant::now() + backoff.next_wait(after);
            self.not_before = after.is_some().then_some(next);
            if next >= deadline {
                return Err(Failure { why, ended: true });
            }
            sleep_until(next).await;
        }
    }

    fn conclude(&mut self, delivery: &Delivery) {
        let outcome = match (delivery.delivered, delivery.dropped) {
            (_, 0) => Outcome::Success,
            (0, _) => Outcome::Failed,
            (_, _) => Outcome::Partial,
        };
        self.stats.count(outcome, delivery.dropped);
        if let Some(why) = &delivery.unread
            && !self.unread
        {
            let endpoint = &self.endpoint;
            tracing::warn!(
                "metrics for {endpoint} count as delivered, but its answer cannot be read: {why}"
            );
        }
        // An export of which nothing arrives says nothing of answers.
        if delivery.delivered > 0 {
            self.unread = delivery.unread.is_some();
        }
        if let Some(why) = &delivery.why {
            self.warn(why);
            return;
        }
        self.succeeded = true;
        if std::mem::take(&mut self.failing) {
            tracing::info!("metrics are sent to {} again", self.endpoint);
        }
    }

    fn warn(&mut self, why: &str) {
        if !std::mem::replace(&mut self.failing, true) {
            let endpoint = &self.endpoint;
            tracing::warn!("metrics cannot be sent to {endpoint}; trying again: {why}");
        }
    }
}

/// How an export goes.
#[derive(Debug, Default)]
struct Delivery {
    delivered: u64,
    dropped: u64,
    /// Why something was dropped, last.
    why: Option<String>,
    /// Why an answer to what was delivered cannot be read, last.
    unread: Option<String>,
    /// Its time is over.
    given_up: bool,
}

/// The receiver has a request.
enum Taken {
    /// All but so many of its points, and what it said of that.
    But(u64, String),
    /// Its answer cannot be read, for this reason.
    Unread(String),
}

/// A request was not delivered.
struct Failure {
    why: String,
    /// Nor will others be: the time is over.
    ended: bool,
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        io::{Read, Write},
        net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
        sync::atomic::AtomicUsize,
    };

    use bytes::Bytes;
    use http::{HeaderMap, Response};
    use http_body_util::{BodyExt, Full};
    use hyper::{body::Incoming, server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::sync::Notify;

    use super::*;
    use crate::expose::model::{Family, Kind, Sample, Value};

    #[test]
    fn urls_of_receivers() {
        for (url, tls, host, port, path, shown) in [
            (
                "http://a:4318",
                false,
                "a",
                4318,
                "/v1/metrics",
                "http://a:4318",
            ),
            (
                "http://a:4318/",
                false,
                "a",
                4318,
                "/v1/metrics",
                "http://a:4318",
            ),
            (
                "https://otlp.example.com",
                true,
                "otlp.example.com",
                443,
                "/v1/metrics",
                "https://otlp.example.com",
            ),
            (
                "http://10.0.0.1",
                false,
                "10.0.0.1",
                80,
                "/v1/metrics",
                "http://10.0.0.1",
            ),
            (
                "http://[::1]:4318/api/v1/otlp/v1/metrics",
                false,
                "::1",
                4318,
                "/api/v1/otlp/v1/metrics",
                "http://[::1]:4318",
            ),
            (
                "https://a/x?token=secret",
                true,
                "a",
                443,
                "/x?token=secret",
                "https://a",
            ),
            (
                "https://a?token=secret",
                true,
                "a",
                443,
                "/v1/metrics?token=secret",
                "https://a",
            ),
        ] {
            let endpoint: Endpoint = url.parse().unwrap();
            assert_eq!((endpoint.tls, endpoint.port), (tls, port), "{url}");
            assert_eq!((&*endpoint.host, &*endpoint.path), (host, path), "{url}");
            assert_eq!(endpoint.to_string(), shown);
        }
        assert!(!"http://a:4317/".parse::<Endpoint>().unwrap().has_path());
        assert!("http://a:4317/x".parse::<Endpoint>().unwrap().has_path());
        for url in [
            "",
            "a",
            "a:4318",
            "grpc://a:4317",
            "http://",
            "http:///v1/metrics",
            "/v1/metrics",
            "http://a:b",
            "http://a:0",
            "http://a:65536",
            "http://a:",
            "http://a b",
            "http://user:secret@a:4318",
            "http://a:4318#x",
        ] {
            assert_eq!(url.parse::<Endpoint>(), Err(EndpointError), "{url:?}");
        }
    }

    #[test]
    fn headers_are_secrets() {
        let headers: Headers = "Authorization=Bearer%20abc==, x-scope-orgid = team a,"
            .parse()
            .unwrap();
        let text: Vec<_> = headers
            .0
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect();
        assert_eq!(
            text,
            [
                ("authorization", "Bearer abc=="),
                ("x-scope-orgid", "team a")
            ]
        );
        let shown = format!("{headers:?}");
        assert!(!shown.contains("abc") && !shown.contains("team"), "{shown}");
        for (text, number) in [
            ("secret", 1),
            ("a=b,c d=secret", 2),
            ("a=%zz", 1),
            ("a=x\ny", 1),
        ] {
            let error = text.parse::<Headers>().unwrap_err();
            assert_eq!(error, HeadersError::NotAPair(number), "{text}");
            assert!(!error.to_string().contains("secret"));
        }
        for name in [
            "Accept-Encoding",
            "connection",
            "Content-Type",
            "content-language",
            "expect",
            "host",
            "grpc-timeout",
            "te",
            "transfer-encoding",
            "upgrade",
        ] {
            let error = format!("{name}=x").parse::<Headers>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!(
                    "header {} is not for the configuration to set; allowed: any but accept-encoding, connection, \
                     expect, host, te, transfer-encoding, upgrade, content-* and grpc-*",
                    name.to_lowercase()
                )
            );
        }
    }

    fn options(address: SocketAddr, protocol: Protocol) -> Options {
        Options {
            endpoint: format!("http://{address}").parse().unwrap(),
            protocol,
            interval: Duration::from_secs(60),
            headers: Headers::default(),
            ca_file: None,
        }
    }

    fn exporter(address: SocketAddr, protocol: Protocol) -> Exporter {
        let identity = Identity {
            host: "host".to_owned(),
            node: None,
            started: SystemTime::now(),
        };
        Exporter::new(&options(address, protocol), identity).unwrap()
    }

    #[test]
    fn a_header_of_the_agents_own_is_replaced() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let headers = |text: &str| {
            let mut options = options(address, Protocol::Grpc);
            options.headers = text.parse().unwrap();
            let client = Client::new(&options).unwrap();
            let of = |name: &str| -> Vec<_> {
                let values = client.headers.get_all(name).iter();
                values
                    .map(|value| value.to_str().unwrap().to_owned())
                    .collect()
            };
            (of("user-agent"), of("x-a"))
        };
        let own = concat!("sentry/", env!("CARGO_PKG_VERSION")).to_owned();
        assert_eq!(headers(""), (vec![own], vec![]));
        let (user_agent, other) = headers("User-Agent=x,x-a=1,x-a=2");
        assert_eq!(
            (user_agent, other),
            (vec!["x".to_owned()], vec!["1".to_owned(), "2".to_owned()])
        );
    }

    /// What a receiver does with its connections.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Ends {
        /// The first answer says that it is the last one.
        Announced,
        /// It ends after the first answer.
        Silently,
        /// It ends instead of a second answer.
        AfterASecondRequest,
        /// The same, and only the first one of all answers at all.
        ForEver,
        /// The first answer says to come back after so many seconds.
        Later(u8),
    }

    /// Reads a request; false where the connection ends instead.
    fn request(stream: &mut TcpStream) -> bool {
        let mut bytes = Vec::new();
        loop {
            if let Some(head) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
                let mut lines = text.lines();
                let length = lines.find_map(|line| line.strip_prefix("content-length: "));
                let length: usize = length.unwrap().parse().unwrap();
                if bytes.len() == head + 4 + length {
                    return true;
                }
            }
            let mut more = [0; 4096];
            match stream.read(&mut more) {
                Ok(0) | Err(_) => return false,
                Ok(length) => bytes.extend(&more[..length]),
            }
        }
    }

    /// A receiver by HTTP, and how many connections it has had so far.
    fn receiver(ends: Ends) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&connections);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let before = seen.fetch_add(1, Ordering::SeqCst);
                if !request(&mut stream) || (ends == Ends::ForEver && before > 0) {
                    continue;
                }
                let (status, header) = match ends {
                    Ends::Announced => ("200 OK", "Connection: close\r\n".to_owned()),
                    Ends::Later(seconds) => {
                        let header = format!("Retry-After: {seconds}\r\n");
                        ("503 Service Unavailable", header)
                    }
                    _ => ("200 OK", String::new()),
                };
                let answer = format!("HTTP/1.1 {status}\r\n{header}Content-Length: 0\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
                if matches!(ends, Ends::AfterASecondRequest | Ends::ForEver) {
                    request(&mut stream);
                }
            }
        });
        (address, connections)
    }

    /// A receiver by gRPC. Announced is by GOAWAY; answers have so many bytes.
    async fn grpc_receiver(ends: Ends, bytes: usize) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let listener = listener.await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                seen.fetch_add(1, Ordering::SeqCst);
                let end = Arc::new(Notify::new());
                let (ending, requests) = (Arc::clone(&end), Arc::new(AtomicUsize::new(0)));
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let (ending, requests) = (Arc::clone(&ending), Arc::clone(&requests));
                    async move {
                        request.into_body().collect().await.unwrap();
                        let before = requests.fetch_add(1, Ordering::SeqCst);
                        if ends == Ends::Announced {
                            ending.notify_one();
                        } else if before > 0 {
                            ending.notify_one();
                            std::future::pending::<()>().await;
                        }
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static("0"));
                        let body = Full::new(Bytes::from(vec![0; bytes]));
                        let body = body.with_trailers(async { Some(Ok(trailers)) });
                        let answer = Response::builder().header("content-type", "application/grpc");
                        Ok::<_, Infallible>(answer.body(body).unwrap())
                    }
                });
                let http = http2::Builder::new(TokioExecutor::new());
                let connection = http.serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    let mut connection = std::pin::pin!(connection);
                    tokio::select! {
                        _ = &mut connection => return,
                        () = end.notified() => {}
                    }
                    if ends == Ends::AfterASecondRequest {
                        return;
                    }
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                });
            }
        });
        (address, connections)
    }

    /// Exports that many data points.
    async fn export_points(exporter: &mut Exporter, points: u64) -> Delivery {
        const FAMILY: Family = Family {
            name: "sentry_series_evicted_total",
            help: "Help",
            kind: Kind::Counter,
        };
        let sender = exporter.sender.clone();
        let mut requests = Requests::new(&sender, SystemTime::now());
        let mut delivery = exporter.begin();
        let deadline = Instant::now() + exporter.interval;
        for value in 0..points {
            let sample = Sample {
                labels: Vec::new(),
                value: Value::Whole(value),
                created: None,
            };
            if let Some(request) = requests.add(&FAMILY, &sample) {
                exporter.deliver(request, deadline, &mut delivery).await;
            }
        }
        if let Some(request) = requests.take() {
            exporter.deliver(request, deadline, &mut delivery).await;
        }
        delivery
    }

    #[tokio::test]
    async fn a_connection_that_has_ended_is_made_anew() {
        let sent = async |address, protocol, case| {
            let mut exporter = exporter(address, protocol);
            let delivery = export_points(&mut exporter, 1200).await;
            assert_eq!(
                (delivery.delivered, delivery.dropped),
                (1200, 0),
                "{case:?}"
            );
            assert_eq!((delivery.why, delivery.unread), (None, None), "{case:?}");
            // Any attempt that fails is warned of before the first success, and waited after.
            assert!(!exporter.failing, "{case:?}");
        };
        for ends in [Ends::Announced, Ends::Silently, Ends::AfterASecondRequest] {
            let (address, connections) = receiver(ends);
            sent(address, Protocol::HttpProtobuf, ends).await;
            assert_eq!(connections.load(Ordering::SeqCst), 3, "{ends:?}");
        }
        let (address, connections) = grpc_receiver(Ends::AfterASecondRequest, 0).await;
        sent(address, Protocol::Grpc, Ends::AfterASecondRequest).await;
        assert_eq!(connections.load(Ordering::SeqCst), 3);
        // A second request may come before GOAWAY does, and is then answered.
        let (address, connections) = grpc_receiver(Ends::Announced, 0).await;
        sent(address, Protocol::Grpc, Ends::Announced).await;
        assert!(connections.load(Ordering::SeqCst) > 1);
    }

    #[tokio::test]
    async fn a_request_is_sent_anew_once() {
        let (address, connections) = receiver(Ends::ForEver);
        let mut client = Client::new(&options(address, Protocol::HttpProtobuf)).unwrap();
        let body = client.packed(b"").unwrap();
        for connected in [1, 2, 3] {
            let verdict = client.send(body.clone()).await;
            let delivered = matches!(verdict, Verdict::Delivered { .. });
            let failed = matches!(verdict, Verdict::Retry { after: None, .. });
            assert_eq!((delivered, failed), (connected == 1, connected > 1));
            assert_eq!(connections.load(Ordering::SeqCst), connected);
        }
    }

    #[tokio::test]
    async fn the_end_of_a_long_answer_is_not_awaited() {
        let (address, _) = grpc_receiver(Ends::AfterASecondRequest, 300_000).await;
        let mut exporter = exporter(address, Protocol::Grpc);
        let delivery = export_points(&mut exporter, 3).await;
        assert_eq!((delivery.delivered, delivery.dropped), (3, 0));
        let why = delivery.unread.as_deref().unwrap();
        assert_eq!(why, "the rest of it is too long to be read");
        // That is said until an answer can be read again, and fails nothing.
        let outcomes = |exporter: &Exporter| {
            let exports = Outcome::ALL.map(|outcome| exporter.stats.exports_total(outcome));
            (exporter.unread, exporter.failing, exports)
        };
        exporter.conclude(&delivery);
        assert_eq!(outcomes(&exporter), (true, false, [1, 0, 0]));
        let nothing = Delivery {
            dropped: 3,
            ..Delivery::default()
        };
        exporter.conclude(&nothing);
        assert_eq!(outcomes(&exporter), (true, false, [1, 0, 1]));
        let read = Delivery {
            delivered: 3,
            ..Delivery::default()
        };
        exporter.conclude(&read);
        assert_eq!(outcomes(&exporter), (false, false, [2, 0, 1]));
    }

    #[tokio::test]
    async fn a_receiver_that_wants_a_pause_has_it() {
        for (ends, longer_than_interval) in [(Ends::Later(90), true), (Ends::Later(9), false)] {
            let (address, connections) = receiver(ends);
            let mut exporter = exporter(address, Protocol::HttpProtobuf);
            let export = export_points(&mut exporter, 700);
            // Long enough for an answer, and as the agent's end does it.
            let first = tokio::time::timeout(Duration::from_secs(2), export).await;
            assert_eq!(first.is_ok(), longer_than_interval);
            if let Ok(first) = first {
                assert_eq!((first.delivered, first.dropped), (0, 700));
                assert_eq!(first.why.unwrap(), "HTTP status 503");
            }
            let last = export_points(&mut exporter, 700).await;
            assert_eq!((last.delivered, last.dropped), (0, 700));
            assert_eq!(last.why.unwrap(), "the receiver wants to be left alone");
            assert_eq!(connections.load(Ordering::SeqCst), 1);
        }
    }

    #[test]
    fn outcomes_are_counted() {
        let stats = Stats::default();
        assert_eq!(stats.last_success(), None);
        stats.count(Outcome::Failed, 5);
        stats.count(Outcome::Partial, 2);
        assert_eq!(stats.last_success(), None);
        stats.count(Outcome::Success, 0);
        stats.count(Outcome::Success, 0);
        let exports = Outcome::ALL.map(|outcome| stats.exports_total(outcome));
        assert_eq!((exports, stats.dropped_data_points_total()), ([2, 1, 1], 7));
        assert!(stats.last_success().is_some());
    }
}
