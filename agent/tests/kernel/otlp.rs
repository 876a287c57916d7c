//! Metrics sent by OTLP: receivers of both protocols get the numbers of `/metrics`, and what becomes of the agent when
//! they don't take them.

use crate::agent::{Agent, SENTRY, sentry, without_settings};
use crate::exposition::{Exposition, as_f64};
use crate::host::{Folder, disk_cgroup, label, output, socket_cgroup, turn, wait_for};
use crate::load::{self, Server, assert_all};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::{HeaderMap, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::rt;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
// OpenTelemetry's own messages, not the agent's idea of them.
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, ExponentialHistogramDataPoint, Metric, NumberDataPoint, Sum,
};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sentry_bench::sandbox::{Cgroup, LoopDevice};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio_rustls::TlsAcceptor;

const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub(crate) const EXPORTS: &str = "sentry_otlp_exports_total";
pub(crate) const DROPPED: &str = "sentry_otlp_dropped_data_points_total";
const LAST_SUCCESS: &str = "sentry_otlp_last_success_timestamp_seconds";

pub(crate) type Attributes = BTreeMap<String, String>;

pub(crate) fn attributes(pairs: &[KeyValue]) -> Attributes {
    let text = |pair: &KeyValue| match pair.value.clone().unwrap().value {
        Some(any_value::Value::StringValue(text)) => text,
        other => panic!("{}: {other:?}", pair.key),
    };
    let all: Attributes = pairs
        .iter()
        .map(|pair| (pair.key.clone(), text(pair)))
        .collect();
    assert_eq!(all.len(), pairs.len(), "{pairs:?}");
    assert!(!all.values().any(String::is_empty), "{all:?}");
    all
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

impl Protocol {
    pub(crate) fn flags(self, address: SocketAddr) -> String {
        let name = match self {
            Self::Http => "http/protobuf",
            Self::Grpc => "grpc",
        };
        format!("--otlp.endpoint http://{address} --otlp.protocol {name}")
    }
}

/// What the receiver does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    Take,
    /// Takes it but for so many data points.
    Reject(i64),
    /// 503, or UNAVAILABLE.
    Unavailable,
    /// The same, for a minute.
    Later,
    /// 400, or `INVALID_ARGUMENT`.
    Refuse,
    Hang,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    path: String,
    headers: HeaderMap,
    pub(crate) message: ExportMetricsServiceRequest,
}

impl Received {
    fn metrics(&self) -> impl Iterator<Item = &Metric> {
        let scopes = self.message.resource_metrics.iter();
        scopes
            .flat_map(|resource| &resource.scope_metrics)
            .flat_map(|scope| &scope.metrics)
    }
}

/// A receiver. It ends with the test.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    reply: Arc<Mutex<Reply>>,
}

type Body = BoxBody<Bytes, Infallible>;

impl Receiver {
    pub(crate) fn start(protocol: Protocol, reply: Reply) -> Self {
        Self::start_at(LOOPBACK, protocol, reply, None)
    }

    fn start_at(
        address: SocketAddr,
        protocol: Protocol,
        reply: Reply,
        tls: Option<TlsAcceptor>,
    ) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            received: Arc::default(),
            reply: Arc::new(Mutex::new(reply)),
        };
        let (log, reply) = (receiver.received.clone(), receiver.reply.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (log, reply) = (log.clone(), reply.clone());
                    let service = service_fn(move |request| {
                        answer(protocol, request, log.clone(), reply.clone())
                    });
                    let tls = tls.clone();
                    tokio::spawn(async move {
                        match tls {
                            None => serve(protocol, TokioIo::new(stream), service).await,
                            Some(tls) => {
                                if let Ok(stream) = tls.accept(stream).await {
                                    serve(protocol, TokioIo::new(stream), service).await;
                                }
                            }
                        }
                    });
                }
            });
        });
        receiver
    }

    fn set(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }

    fn count(&self) -> usize {
        self.received.lock().unwrap().len()
    }

    /// All requests that came.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// All metrics of the first export that is there as a whole and was begun now or later.
    pub(crate) fn next_export(&self) -> Vec<Metric> {
        let since = unix_nano(SystemTime::now());
        wait_for("export", PATIENCE, || {
            let received = self.received.lock().unwrap();
            // All points of an export have its time.
            let mut exports: BTreeMap<u64, Vec<Metric>> = BTreeMap::new();
            for metric in received.iter().flat_map(Received::metrics) {
                exports
                    .entry(time(metric))
                    .or_default()
                    .push(metric.clone());
            }
            let mut later = exports.into_iter().filter(|(time, _)| *time >= since);
            let (_, metrics) = later.next()?;
            // The next one has begun, so this one is whole.
            later.next().map(|_| metrics)
        })
    }
}

/// Serves a connection to its end. The agent may leave at any time.
async fn serve<Io, S, F>(protocol: Protocol, io: Io, service: S)
where
    Io: rt::Read + rt::Write + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future = F>,
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    match protocol {
        Protocol::Http => {
            let http = http1::Builder::new();
            let _ = http.serve_connection(io, service).await;
        }
        Protocol::Grpc => {
            let http = http2::Builder::new(TokioExecutor::new());
            let _ = http.serve_connection(io, service).await;
        }
    }
}

async fn answer(
    protocol: Protocol,
    request: Request<Incoming>,
    received: Arc<Mutex<Vec<Received>>>,
    reply: Arc<Mutex<Reply>>,
) -> Result<Response<Body>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let packed = match protocol {
        Protocol::Http => &body[..],
        Protocol::Grpc => {
            let length = u32::try_from(body.len() - 5).unwrap().to_be_bytes();
            assert_eq!(body[..5], [&[1], &length[..]].concat());
            &body[5..]
        }
    };
    let mut message = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut message).unwrap();
    assert!(message.len() < 1 << 20);
    let message = ExportMetricsServiceRequest::decode(message.as_slice()).unwrap();
    received.lock().unwrap().push(Received {
        path: head.uri.path().to_owned(),
        headers: head.headers,
        message,
    });
    let reply = *reply.lock().unwrap();
    let rejected = match reply {
        Reply::Hang => std::future::pending().await,
        Reply::Reject(points) => points,
        _ => 0,
    };
    let message = ExportMetricsServiceResponse {
        partial_success: (rejected > 0).then(|| ExportMetricsPartialSuccess {
            rejected_data_points: rejected,
            error_message: "too\nold".to_owned(),
        }),
    };
    let message = message.encode_to_vec();
    let (http, grpc) = match reply {
        Reply::Unavailable | Reply::Later => (503, "14"),
        Reply::Refuse => (400, "3"),
        _ => (200, "0"),
    };
    Ok(match protocol {
        Protocol::Http => {
            let body = if http == 200 { message } else { Vec::new() };
            let mut answer = Response::builder().status(http);
            if reply == Reply::Later {
                answer = answer.header("retry-after", "60");
            }
            answer.body(Full::new(body.into()).boxed()).unwrap()
        }
        Protocol::Grpc if grpc == "0" => {
            // As it was asked, which is what most servers do.
            let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
            packed.write_all(&message).unwrap();
            let packed = packed.finish().unwrap();
            let length = u32::try_from(packed.len()).unwrap().to_be_bytes();
            let frame = [&[1], &length[..], &packed].concat();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let body = Full::new(Bytes::from(frame));
            let body = body.with_trailers(async { Some(Ok(trailers)) });
            let answer = Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-encoding", "gzip");
            answer.body(body.boxed()).unwrap()
        }
        // All in the head, as servers do it.
        Protocol::Grpc => {
            let answer = Response::builder()
                .header("content-type", "application/grpc")
                .header("grpc-status", grpc)
                .header("grpc-message", "not%20now");
            answer.body(Full::default().boxed()).unwrap()
        }
    })
}

pub(crate) fn unix_nano(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos()).unwrap()
}

fn numbers(metric: &Metric) -> &[NumberDataPoint] {
    match metric.data.as_ref().unwrap() {
        Data::Gauge(gauge) => &gauge.data_points,
        Data::Sum(sum) => &sum.data_points,
        other => panic!("{}: {other:?}", metric.name),
    }
}

fn time(metric: &Metric) -> u64 {
    match metric.data.as_ref().unwrap() {
        Data::ExponentialHistogram(histogram) => histogram.data_points[0].time_unix_nano,
        _ => numbers(metric)[0].time_unix_nano,
    }
}

fn number(point: &NumberDataPoint) -> f64 {
    match point.value.unwrap() {
        Number::AsDouble(value) => value,
        Number::AsInt(value) => as_f64(u64::try_from(value).unwrap()),
    }
}

/// Handshakes of both ends (500 of them), failures, and writes: something of each kind, of these cgroups.
pub(crate) fn events() -> [Cgroup; 3] {
    let (client, server) = (socket_cgroup("otlp-client"), socket_cgroup("otlp-server"));
    let disk = disk_cgroup("otlp-disk");
    let listener = Server::listen("", &[&server]);
    let args = format!("connect --to 127.0.0.1:{} --count 500", listener.port());
    assert_all(&load::run(&args, &[&client]), "connected", 500);
    load::run("connect --to 127.0.0.1:1 --count 2", &[&client]);
    let device = LoopDevice::new(1 << 20).unwrap();
    let args = format!(
        "write --file {} --count 5 --direct --fsync-each",
        device.path().display()
    );
    load::run(&args, &[&disk]);
    [client, server, disk]
}

/// Attributes and labels.
type Pairs = &'static [(&'static str, &'static str)];

/// Name, unit and labels as they are to be, of what [`events`] makes.
const EXPECTED: [(&str, &str, &str, Pairs); 5] = [
    (
        "sentry.tcp.handshake.duration",
        "s",
        "sentry_tcp_handshake_duration_seconds",
        &[("sentry.tcp.role", "role")],
    ),
    (
        "sentry.tcp.connect.failures",
        "{connect}",
        "sentry_tcp_connect_failures_total",
        &[("error.type", "reason")],
    ),
    (
        "sentry.disk.io.duration",
        "s",
        "sentry_disk_io_duration_seconds",
        DISK,
    ),
    (
        "sentry.disk.device.duration",
        "s",
        "sentry_disk_device_duration_seconds",
        DISK,
    ),
    ("sentry.disk.bytes", "By", "sentry_disk_bytes_total", DISK),
];

const DISK: Pairs = &[
    ("system.device", "device"),
    ("disk.io.direction", "operation"),
];

/// Asserts that all that a scrape says of a cgroup is in an export as well, and nothing else; how many samples.
fn assert_same(metrics: &[Metric], scrape: &Exposition, cgroup: &str, since: u64) -> usize {
    let mut samples = 0;
    for metric in metrics {
        let labels = |pairs: &[KeyValue]| -> Option<Vec<(&'static str, String)>> {
            let mut pairs = attributes(pairs);
            if pairs.remove("sentry.cgroup")? != cgroup {
                return None;
            }
            let (_, unit, _, known) = EXPECTED.iter().find(|row| row.0 == metric.name).unwrap();
            assert_eq!(metric.unit, *unit, "{}", metric.name);
            let labels = pairs.iter().map(|(key, value)| {
                let known = known.iter().find(|(attribute, _)| attribute == key);
                (known.unwrap().1, value.clone())
            });
            Some(labels.collect())
        };
        let ours = EXPECTED.iter().find(|row| row.0 == metric.name);
        let ours = ours.map(|row| row.2);
        if let Data::ExponentialHistogram(histogram) = metric.data.as_ref().unwrap() {
            assert_eq!(histogram.aggregation_temporality, CUMULATIVE);
            for point in &histogram.data_points {
                let Some(own) = labels(&point.attributes) else {
                    continue;
                };
                samples += 1;
                assert_times(point.start_time_unix_nano, point.time_unix_nano, since);
                let classic = scrape.histogram(ours.unwrap(), &wanted(&own, cgroup));
                assert_eq!(point.count, classic.count, "{}", metric.name);
                assert_eq!(point.sum, Some(classic.sum), "{}", metric.name);
                assert_eq!(filled(point), classic.filled(), "{}", metric.name);
            }
        } else {
            for point in numbers(metric) {
                let Some(own) = labels(&point.attributes) else {
                    continue;
                };
                samples += 1;
                let Some(Data::Sum(Sum {
                    aggregation_temporality,
                    is_monotonic: true,
                    ..
                })) = metric.data
                else {
                    panic!("{metric:?}");
                };
                assert_eq!(aggregation_temporality, CUMULATIVE);
                assert_times(point.start_time_unix_nano, point.time_unix_nano, since);
                let value = scrape.value(ours.unwrap(), &wanted(&own, cgroup));
                assert_eq!(number(point), value, "{}", metric.name);
            }
        }
    }
    samples
}

/// Asserts that an export is what a scrape is: as many families, and the numbers of those cgroups to which no event comes
/// any more.
pub(crate) fn assert_all_same(
    metrics: &[Metric],
    scrape: &Exposition,
    cgroups: &[Cgroup; 3],
    since: u64,
) {
    for cgroup in cgroups {
        let cgroup = label(cgroup);
        let said = scrape.of_cgroup(&cgroup);
        assert!(!said.is_empty());
        let samples = assert_same(metrics, scrape, &cgroup, since);
        assert_eq!(samples, said.len(), "{said:?}");
    }
    let client = label(&cgroups[0]);
    let labels = [("cgroup", &*client), ("role", "client")];
    let handshakes = scrape.histogram("sentry_tcp_handshake_duration_seconds", &labels);
    assert_eq!(handshakes.count, 500);

    // As many families as the scrape has, each once, with all samples.
    let mut names: Vec<_> = metrics.iter().map(|metric| metric.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), metrics.len(), "{names:?}");
    let filled = scrape.types.keys().filter(|family| {
        let mut samples = scrape.samples.iter();
        samples.any(|sample| {
            let suffix = sample.name.strip_prefix(family.as_str());
            suffix.is_some_and(|suffix| ["", "_count"].contains(&suffix))
        })
    });
    assert_eq!(names.len(), filled.count(), "{names:?}");
    let cpu = metrics
        .iter()
        .find(|metric| metric.name == "process.cpu.time");
    let start = as_f64(numbers(cpu.unwrap())[0].start_time_unix_nano) / 1e9;
    let began = scrape.value("process_start_time_seconds", &[]);
    assert!((start - began).abs() < 0.001, "{start} {began}");
    // Gauges, by probe.
    for (theirs, ours) in [
        ("sentry.probe.up", "sentry_probe_up"),
        ("sentry.series.limit", "sentry_series_limit"),
    ] {
        let gauge = metrics.iter().find(|metric| metric.name == theirs);
        let gauge = gauge.unwrap();
        assert!(matches!(gauge.data, Some(Data::Gauge(_))));
        let points = numbers(gauge);
        assert_eq!(points.len(), scrape.matching(ours, &[]).count());
        for point in points {
            let probe = attributes(&point.attributes)["sentry.probe"].clone();
            let value = scrape.value(ours, &[("probe", &probe)]);
            assert_eq!(number(point), value, "{theirs} {probe}");
        }
    }
}

fn wanted<'a>(own: &'a [(&'static str, String)], cgroup: &'a str) -> Vec<(&'a str, &'a str)> {
    let own = own.iter().map(|(label, value)| (*label, value.as_str()));
    own.chain([("cgroup", cgroup)]).collect()
}

/// A series of an agent that began at a time begins then or later, and before its values are read.
fn assert_times(start: u64, time: u64, since: u64) {
    assert!(since <= start && start < time, "{since}, {start}, {time}");
    assert!(time <= unix_nano(SystemTime::now()));
}

/// The buckets that are not empty by their edges, as the specification has them: what is in bucket `index` is above
/// base^index and not above base^(index + 1), where the base is 2^(2^-scale).
fn filled(point: &ExponentialHistogramDataPoint) -> Vec<(f64, f64, u64)> {
    assert_eq!((point.scale, &point.negative), (2, &None));
    let edge = |index: i32| (f64::from(index) * 2f64.powi(-point.scale)).exp2();
    let positive = point.positive.as_ref().unwrap();
    let counts = (positive.offset..).zip(&positive.bucket_counts);
    let mut all = vec![(0.0, point.zero_threshold, point.zero_count)];
    all.extend(counts.map(|(index, count)| {
        // What is longer than the highest edge may be of any length.
        let upper = if index == 16 {
            f64::INFINITY
        } else {
            edge(index + 1)
        };
        (edge(index), upper, *count)
    }));
    let count: u64 = all.iter().map(|(_, _, count)| count).sum();
    assert_eq!(count, point.count);
    all.retain(|(_, _, count)| *count > 0);
    all
}

#[test]
fn receivers_get_the_numbers_of_a_scrape() {
    turn!("receivers_get_the_numbers_of_a_scrape");
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let receiver = Receiver::start(protocol, Reply::Take);
        let since = unix_nano(SystemTime::now());
        let mut command = sentry(&protocol.flags(receiver.address));
        command
            .args(["--otlp.interval", "1s"])
            .args(["--metrics.buckets-per-octave", "4"])
            .env("SENTRY_OTLP_HEADERS", "authorization=Bearer%20secret,x-a=b");
        let agent = Agent::spawn(command);
        let cgroups = events();
        // What is counted of these cgroups is all there.
        let metrics = receiver.next_export();
        let scrape = agent.scrape();
        assert_all_same(&metrics, &scrape, &cgroups, since);
        let requests = receiver.received();
        for request in &requests {
            let [resource] = &request.message.resource_metrics[..] else {
                panic!("{request:?}");
            };
            let resource = attributes(&resource.resource.as_ref().unwrap().attributes);
            let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
            let host = host.trim();
            assert_eq!(resource["service.name"], "sentry");
            assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
            assert_eq!(
                (&*resource["service.instance.id"], &*resource["host.name"]),
                (host, host)
            );
            assert_eq!(resource.len(), 4);
            let header = |name: &str| request.headers[name].to_str().unwrap();
            assert_eq!(
                (header("authorization"), header("x-a")),
                ("Bearer secret", "b")
            );
            let (path, kind, encoding) = match protocol {
                Protocol::Http => ("/v1/metrics", "application/x-protobuf", "content-encoding"),
                Protocol::Grpc => (
                    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
                    "application/grpc+proto",
                    "grpc-encoding",
                ),
            };
            assert_eq!((&*request.path, header("content-type")), (path, kind));
            assert_eq!(header(encoding), "gzip");
            let accepted = request.headers.get("grpc-accept-encoding");
            let expected = (protocol == Protocol::Grpc).then_some("gzip");
            assert_eq!(accepted.map(|value| value.to_str().unwrap()), expected);
        }
        let scrape = agent.scrape();
        assert!(scrape.value(EXPORTS, &[("outcome", "success")]) >= 2.0);
        assert_eq!(scrape.count(EXPORTS, &[("outcome", "failed")]), 0);
        assert_eq!(scrape.count(DROPPED, &[]), 0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(now.as_secs_f64() - scrape.value(LAST_SUCCESS, &[]) < 10.0);
        let log = agent.log();
        assert!(!log.contains("secret") && !log.contains("WARN"), "{log}");
        // The end brings the last values.
        let before = receiver.count();
        agent.stop();
        assert!(receiver.count() > before);
    }
}

#[test]
fn without_a_receiver_there_is_nothing_of_it() {
    turn!("without_a_receiver_there_is_nothing_of_it");
    let agent = Agent::start("--probes tcp");
    assert!(!threads(&agent).contains(&"otlp".to_owned()));
    let scrape = agent.scrape();
    for name in [EXPORTS, DROPPED, LAST_SUCCESS] {
        assert_eq!(scrape.matching(name, &[]).count(), 0);
    }
    agent.stop();
    let receiver = Receiver::start(Protocol::Http, Reply::Take);
    let agent = Agent::start(&format!(
        "--probes tcp {}",
        Protocol::Http.flags(receiver.address)
    ));
    assert!(threads(&agent).contains(&"otlp".to_owned()));
    agent.stop();
}

fn threads(agent: &Agent) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap())
        .map(|name| name.trim().to_owned())
        .collect()
}

/// How often the log says so.
fn said(agent: &Agent, text: &str) -> usize {
    agent.log().matches(text).count()
}

const FAILS: &str = "metrics cannot be sent to";
const AGAIN: &str = "metrics are sent to";

#[test]
fn a_receiver_that_is_not_ready_gets_the_same_again() {
    turn!("a_receiver_that_is_not_ready_gets_the_same_again");
    for (protocol, why) in [
        (Protocol::Http, "HTTP status 503"),
        (Protocol::Grpc, "gRPC status 14 (unavailable): not now"),
    ] {
        let receiver = Receiver::start(protocol, Reply::Unavailable);
        let flags = protocol.flags(receiver.address);
        let agent = Agent::start(&format!("--probes tcp --otlp.interval 30s {flags}"));
        wait_for("second attempt", PATIENCE, || {
            (receiver.count() >= 2).then_some(())
        });
        receiver.set(Reply::Take);
        wait_for("success", PATIENCE, || {
            let scrape = agent.scrape();
            (scrape.count(EXPORTS, &[("outcome", "success")]) == 1).then_some(())
        });
        let requests = receiver.received();
        assert!(requests.len() >= 3);
        for request in &requests[1..] {
            if time(request.metrics().next().unwrap())
                == time(requests[0].metrics().next().unwrap())
            {
                assert_eq!(request.message, requests[0].message);
            }
        }
        let scrape = agent.scrape();
        assert_eq!(scrape.count(EXPORTS, &[]), 1);
        assert_eq!(scrape.count(DROPPED, &[]), 0);
        assert_eq!((said(&agent, FAILS), said(&agent, AGAIN)), (1, 1));
        assert_eq!(said(&agent, why), 1, "{}", agent.log());
        agent.stop();
    }
}

#[test]
fn a_receiver_that_wants_a_pause_has_it_at_the_end_too() {
    turn!("a_receiver_that_wants_a_pause_has_it_at_the_end_too");
    let receiver = Receiver::start(Protocol::Http, Reply::Later);
    let flags = Protocol::Http.flags(receiver.address);
    let agent = Agent::start(&format!("--probes tcp --otlp.interval 1s {flags}"));
    wait_for("failure", PATIENCE, || {
        let scrape = agent.scrape();
        (scrape.count(EXPORTS, &[("outcome", "failed")]) == 1).then_some(())
    });
    agent.stop();
    assert_eq!(receiver.count(), 1);
}

#[test]
fn a_receiver_that_is_away_misses_nothing() {
    turn!("a_receiver_that_is_away_misses_nothing");
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap();
    let flags = Protocol::Http.flags(address);
    let agent = Agent::start(&format!("--probes tcp --otlp.interval 1s {flags}"));
    let cgroup = socket_cgroup("otlp-away");
    let server = Server::listen("", &[]);
    let args = format!("connect --to 127.0.0.1:{} --count 100", server.port());
    load::run(&args, &[&cgroup]);
    let scrape = wait_for("failures", PATIENCE, || {
        let scrape = agent.scrape();
        (scrape.count(EXPORTS, &[("outcome", "failed")]) >= 5).then_some(scrape)
    });
    assert_eq!(scrape.count(EXPORTS, &[("outcome", "success")]), 0);
    assert!(scrape.count(DROPPED, &[]) >= 5 * 20);
    assert_eq!(scrape.matching(LAST_SUCCESS, &[]).count(), 0);
    assert_eq!(said(&agent, FAILS), 1, "{}", agent.log());
    assert_eq!(said(&agent, "onnection refused"), 1, "{}", agent.log());
    load::run(&args, &[&cgroup]);
    let receiver = Receiver::start_at(address, Protocol::Http, Reply::Take, None);
    let metrics = receiver.next_export();
    let handshakes = metrics
        .iter()
        .find(|metric| metric.name == "sentry.tcp.handshake.duration");
    let Some(Data::ExponentialHistogram(handshakes)) = &handshakes.unwrap().data else {
        panic!("{handshakes:?}");
    };
    let of_cgroup: Vec<_> = handshakes
        .data_points
        .iter()
        .filter(|point| attributes(&point.attributes)["sentry.cgroup"] == label(&cgroup))
        .map(|point| point.count)
        .collect();
    assert_eq!(of_cgroup, [200]);
    assert_eq!((said(&agent, FAILS), said(&agent, AGAIN)), (1, 1));
    agent.stop();
}

#[test]
fn a_receiver_that_hangs_holds_up_nobody() {
    turn!("a_receiver_that_hangs_holds_up_nobody");
    let receiver = Receiver::start(Protocol::Grpc, Reply::Hang);
    let flags = Protocol::Grpc.flags(receiver.address);
    let agent = Agent::start(&format!("--probes tcp --otlp.interval 300ms {flags}"));
    let scrape = wait_for("failures", PATIENCE, || {
        let scrape = agent.scrape();
        (scrape.count(EXPORTS, &[("outcome", "failed")]) >= 3).then_some(scrape)
    });
    assert_eq!(scrape.count(EXPORTS, &[("outcome", "success")]), 0);
    assert_eq!(said(&agent, "no answer in time"), 1, "{}", agent.log());
    let end = agent.end(rustix::process::Signal::TERM);
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    assert!(end.took < Duration::from_secs(5), "{:?}", end.took);
}

#[test]
fn what_is_rejected_or_refused_is_counted() {
    turn!("what_is_rejected_or_refused_is_counted");
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let receiver = Receiver::start(protocol, Reply::Reject(3));
        let flags = protocol.flags(receiver.address);
        let agent = Agent::start(&format!("--probes tcp --otlp.interval 1s {flags}"));
        let scrape = wait_for("partial success", PATIENCE, || {
            let scrape = agent.scrape();
            (scrape.count(EXPORTS, &[("outcome", "partial")]) >= 3).then_some(scrape)
        });
        // One request each: this agent has little to say.
        let exports = scrape.count(EXPORTS, &[]);
        assert_eq!(scrape.count(EXPORTS, &[("outcome", "partial")]), exports);
        assert_eq!(scrape.count(DROPPED, &[]), 3 * exports);
        assert_eq!(said(&agent, "3 data points were rejected: too old"), 1);

        receiver.set(Reply::Refuse);
        let scrape = wait_for("refusal", PATIENCE, || {
            let scrape = agent.scrape();
            (scrape.count(EXPORTS, &[("outcome", "failed")]) >= 3).then_some(scrape)
        });
        // A request that is refused is not sent again.
        let attempts = receiver.count() as u64;
        let exports = scrape.count(EXPORTS, &[]);
        assert!(
            (exports..=exports + 2).contains(&attempts),
            "{attempts}, {exports}"
        );
        assert_eq!(said(&agent, FAILS), 1);
        agent.stop();
    }
}

fn resident_kb(agent: &Agent) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse().unwrap()
}

#[test]
fn failures_cost_no_memory() {
    turn!("failures_cost_no_memory");
    let receiver = Receiver::start(Protocol::Http, Reply::Unavailable);
    let flags = Protocol::Http.flags(receiver.address);
    let agent = Agent::start(&format!("--otlp.interval 100ms {flags}"));
    let _cgroups = events();
    let failed = |exports: u64| {
        wait_for("failures", 3 * PATIENCE, || {
            let failed = agent.scrape().count(EXPORTS, &[("outcome", "failed")]);
            (failed >= exports).then_some(())
        });
        resident_kb(&agent)
    };
    let before = failed(30);
    let after = failed(200);
    println!("{before} kB after 30 failed exports, {after} kB after 200");
    assert!(after <= before + 1024, "{before} kB, then {after} kB");
    agent.stop();
}

/// An authority's certificate in PEM, and a server at 127.0.0.1 that it vouches for.
fn authority(protocol: Protocol) -> (String, TlsAcceptor) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = server.signed_by(&key, &issuer).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = match protocol {
        Protocol::Http => vec![b"http/1.1".to_vec()],
        Protocol::Grpc => vec![b"h2".to_vec()],
    };
    (pem, TlsAcceptor::from(Arc::new(config)))
}

#[test]
fn tls_takes_an_authority_that_is_known() {
    turn!("tls_takes_an_authority_that_is_known");
    let folder = Folder::new();
    let file = folder.path().join("ca.pem");
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let (pem, tls) = authority(protocol);
        let receiver = Receiver::start_at(LOOPBACK, protocol, Reply::Take, Some(tls));
        let flags = protocol
            .flags(receiver.address)
            .replace("http://", "https://");
        let flags = format!(
            "--probes tcp --otlp.interval 1s {flags} --otlp.ca-file {}",
            file.display()
        );
        fs::write(&file, pem).unwrap();
        let agent = Agent::start(&flags);
        assert!(receiver.next_export().len() > 10);
        assert_eq!(said(&agent, FAILS), 0);
        agent.stop();

        fs::write(&file, authority(protocol).0).unwrap();
        let before = receiver.count();
        let agent = Agent::start(&flags);
        wait_for("failures", PATIENCE, || {
            let failed = agent.scrape().count(EXPORTS, &[("outcome", "failed")]);
            (failed >= 2).then_some(())
        });
        let log = agent.log();
        assert!(log.contains("TLS: invalid peer certificate"), "{log}");
        assert_eq!((said(&agent, FAILS), receiver.count()), (1, before));
        agent.stop();
    }
    for (content, reason) in [
        (
            None,
            "cannot be read: No such file or directory (os error 2)",
        ),
        (Some("nothing"), "no certificate is in it"),
    ] {
        let _ = fs::remove_file(&file);
        if let Some(content) = content {
            fs::write(&file, content).unwrap();
        }
        let mut command = Command::new(SENTRY);
        without_settings(&mut command)
            .args(["--web.listen-address", "127.0.0.1:0"])
            .args(["--otlp.endpoint", "https://127.0.0.1:1", "--otlp.ca-file"])
            .arg(&file);
        let ended = output(command);
        assert_eq!(ended.status.code(), Some(2));
        let expected = format!(
            "sentry: otlp.ca-file {}: {reason}; allowed: a file with certificates of authorities in PEM\n",
            file.display()
        );
        assert_eq!(String::from_utf8_lossy(&ended.stderr), expected);
    }
}
