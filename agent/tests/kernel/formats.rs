//! The three formats of `/metrics`: all say the same numbers, and a real Prometheus reads them from each.

use crate::agent::{Agent, get};
use crate::exposition::{Exposition, Format, Labels, as_f64};
use crate::host::{Folder, disk_cgroup, label, socket_cgroup, turn, wait_for};
use crate::load::{self, Server, assert_all};
use crate::prometheus::{PATIENCE, Prometheus, Setup, prometheus_3};
use message::MetricFamily;
use prost::Message;
use sentry_bench::sandbox::{Cgroup, LoopDevice};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

const HANDSHAKES: &str = "sentry_tcp_handshake_duration_seconds";

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROTOBUF: &str =
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited";

/// What Prometheus' own description of its messages says, `io/prometheus/client/metrics.proto`, written down anew: not
/// the agent's own idea of it.
mod message {
    use prost::{Enumeration, Message};

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct MetricFamily {
        #[prost(string, optional, tag = "1")]
        pub(super) name: Option<String>,
        #[prost(string, optional, tag = "2")]
        pub(super) help: Option<String>,
        #[prost(enumeration = "MetricType", optional, tag = "3")]
        pub(super) kind: Option<i32>,
        #[prost(message, repeated, tag = "4")]
        pub(super) metric: Vec<Metric>,
        #[prost(string, optional, tag = "5")]
        pub(super) unit: Option<String>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
    #[repr(i32)]
    pub(super) enum MetricType {
        Counter = 0,
        Gauge = 1,
        Summary = 2,
        Untyped = 3,
        Histogram = 4,
        GaugeHistogram = 5,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Metric {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(message, optional, tag = "2")]
        pub(super) gauge: Option<Number>,
        #[prost(message, optional, tag = "3")]
        pub(super) counter: Option<Number>,
        #[prost(message, optional, tag = "5")]
        pub(super) untyped: Option<Number>,
        #[prost(int64, optional, tag = "6")]
        pub(super) timestamp_ms: Option<i64>,
        #[prost(message, optional, tag = "7")]
        pub(super) histogram: Option<Histogram>,
    }

    #[derive(Clone, PartialEq, Eq, Message)]
    pub(super) struct LabelPair {
        #[prost(string, optional, tag = "1")]
        pub(super) name: Option<String>,
        #[prost(string, optional, tag = "2")]
        pub(super) value: Option<String>,
    }

    /// `Gauge`, `Counter` and `Untyped`; only the second has a time.
    #[derive(Clone, Copy, PartialEq, Message)]
    pub(super) struct Number {
        #[prost(double, optional, tag = "1")]
        pub(super) value: Option<f64>,
        #[prost(message, optional, tag = "3")]
        pub(super) created_timestamp: Option<Timestamp>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Histogram {
        #[prost(uint64, optional, tag = "1")]
        pub(super) sample_count: Option<u64>,
        #[prost(double, optional, tag = "2")]
        pub(super) sample_sum: Option<f64>,
        #[prost(message, repeated, tag = "3")]
        pub(super) bucket: Vec<Bucket>,
        #[prost(double, optional, tag = "4")]
        pub(super) sample_count_float: Option<f64>,
        #[prost(sint32, optional, tag = "5")]
        pub(super) schema: Option<i32>,
        #[prost(double, optional, tag = "6")]
        pub(super) zero_threshold: Option<f64>,
        #[prost(uint64, optional, tag = "7")]
        pub(super) zero_count: Option<u64>,
        #[prost(double, optional, tag = "8")]
        pub(super) zero_count_float: Option<f64>,
        #[prost(message, repeated, tag = "9")]
        pub(super) negative_span: Vec<BucketSpan>,
        #[prost(message, repeated, tag = "12")]
        pub(super) positive_span: Vec<BucketSpan>,
        #[prost(sint64, repeated, tag = "13")]
        pub(super) positive_delta: Vec<i64>,
        #[prost(message, optional, tag = "15")]
        pub(super) created_timestamp: Option<Timestamp>,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(super) struct Bucket {
        #[prost(uint64, optional, tag = "1")]
        pub(super) cumulative_count: Option<u64>,
        #[prost(double, optional, tag = "2")]
        pub(super) upper_bound: Option<f64>,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Message)]
    pub(super) struct BucketSpan {
        #[prost(sint32, optional, tag = "1")]
        pub(super) offset: Option<i32>,
        #[prost(uint32, optional, tag = "2")]
        pub(super) length: Option<u32>,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Message)]
    pub(super) struct Timestamp {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }
}

impl message::Metric {
    fn labels(&self) -> Labels {
        let pairs = self.label.iter();
        pairs
            .map(|pair| (pair.name().to_owned(), pair.value().to_owned()))
            .collect()
    }
}

impl message::Histogram {
    /// Its native buckets that are not empty: lower and upper edge, and the events between them.
    fn native(&self) -> Vec<(f64, f64, u64)> {
        let base = 2f64.powi(-self.schema.unwrap());
        let threshold = self.zero_threshold.unwrap();
        let mut buckets = vec![(0.0, threshold, self.zero_count.unwrap())];
        let (mut index, mut count) = (0, 0);
        let mut deltas = self.positive_delta.iter();
        for span in &self.positive_span {
            index += span.offset();
            for _ in 0..span.length() {
                count += deltas.next().unwrap();
                let edge = |index: i32| (f64::from(index) * base).exp2();
                buckets.push((edge(index - 1), edge(index), count.cast_unsigned()));
                index += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        assert_eq!(self.negative_span, []);
        buckets.retain(|(_, _, count)| *count > 0);
        let events: u64 = buckets.iter().map(|(_, _, events)| events).sum();
        assert_eq!(self.sample_count(), events);
        buckets
    }

    /// The native bucket that has a quantile.
    fn bucket_of(&self, share: f64) -> (f64, f64) {
        let rank = share * as_f64(self.sample_count());
        let mut below = 0;
        let buckets = self.native();
        let found = buckets.iter().find(|(_, _, events)| {
            below += events;
            as_f64(below) >= rank
        });
        let (lower, upper, _) = found.unwrap();
        (*lower, *upper)
    }
}

/// What the agent says in protobuf, each family by its name.
fn families(agent: &Agent) -> BTreeMap<String, MetricFamily> {
    let response = agent.get("/metrics", &[&format!("Accept: {PROTOBUF}")]);
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some(PROTOBUF));
    let mut rest = response.body.as_slice();
    let mut families = BTreeMap::new();
    while !rest.is_empty() {
        let family = MetricFamily::decode_length_delimited(&mut rest).unwrap();
        assert!(!family.metric.is_empty(), "{family:?}");
        let twice = families.insert(family.name().to_owned(), family);
        assert_eq!(twice, None);
    }
    families
}

fn text(agent: &Agent, accept: &str, format: Format) -> Exposition {
    let response = agent.get("/metrics", &[&format!("Accept: {accept}")]);
    assert_eq!(response.header("content-type"), Some(accept));
    Exposition::parse(&response.text(), format)
}

/// Handshakes of both roles, failures, and writes: something of each kind, of these cgroups.
fn events() -> [Cgroup; 2] {
    let (sockets, disk) = (socket_cgroup("formats"), disk_cgroup("formats"));
    load::run("storm --self --seconds 0.2", &[&sockets]);
    load::run("connect --to 127.0.0.1:1 --count 2", &[&sockets]);
    let device = LoopDevice::new(1 << 20).unwrap();
    let args = format!(
        "write --file {} --count 5 --direct --fsync-each",
        device.path().display()
    );
    load::run(&args, &[&disk]);
    [sockets, disk]
}

#[test]
fn all_formats_say_the_same() {
    turn!("all_formats_say_the_same");
    for per_octave in [1, 4] {
        let agent = Agent::start(&format!("--metrics.buckets-per-octave {per_octave}"));
        let cgroups = events();
        let plain = text(&agent, TEXT, Format::Text);
        let open = text(&agent, OPEN_METRICS, Format::OpenMetrics);
        let families = families(&agent);

        // The same families, of the same kinds; protobuf leaves out what has no samples.
        for (name, family) in &families {
            let kind = format!("{:?}", family.kind()).to_lowercase();
            assert_eq!(plain.types.get(name), Some(&kind), "{name}");
            assert!(family.help().ends_with('.'), "{name}");
            let base = match kind.as_str() {
                "counter" => name.strip_suffix("_total").unwrap(),
                _ => name,
            };
            assert_eq!(open.types.get(base), Some(&kind), "{name}");
            let unit = base.rsplit('_').next().unwrap();
            let unit = ["seconds", "bytes"].contains(&unit).then_some(unit);
            assert_eq!(family.unit.as_deref(), unit, "{name}");
        }
        let of_creation = |name: &str| name.ends_with("_created");
        assert!(!open.samples.iter().any(|sample| of_creation(&sample.name)));
        for name in plain.types.keys() {
            let has_samples = plain.samples.iter().any(|sample| {
                let suffix = sample.name.strip_prefix(name.as_str());
                suffix.is_some_and(|suffix| ["", "_count"].contains(&suffix))
            });
            assert_eq!(families.contains_key(name), has_samples, "{name}");
        }

        for cgroup in &cgroups {
            let cgroup = label(cgroup);
            let said = plain.of_cgroup(&cgroup);
            assert!(said.len() >= 3, "{said:?}");
            assert_eq!(said, open.of_cgroup(&cgroup));
            let mut samples = 0;
            for (name, family) in &families {
                for metric in &family.metric {
                    let labels = metric.labels();
                    if labels.get("cgroup") == Some(&cgroup) {
                        samples += 1;
                        assert_same(name, metric, &plain);
                        assert_same(name, metric, &open);
                    }
                }
            }
            assert_eq!(samples, said.len());
        }
        agent.stop();
    }
}

/// Asserts that a text has the very numbers of a metric in protobuf.
fn assert_same(name: &str, metric: &message::Metric, text: &Exposition) {
    let labels = metric.labels();
    let wanted: Vec<(&str, &str)> = labels
        .iter()
        .map(|(label, value)| (label.as_str(), value.as_str()))
        .collect();
    assert_eq!(metric.timestamp_ms, None);
    assert_eq!(created(metric), None);
    let Some(histogram) = &metric.histogram else {
        let number = metric.counter.or(metric.gauge).unwrap();
        assert_eq!(text.value(name, &wanted), number.value.unwrap(), "{name}");
        return;
    };
    let classic = text.histogram(name, &wanted);
    assert_eq!(classic.count, histogram.sample_count());
    assert_eq!(classic.sum, histogram.sample_sum());
    let buckets = histogram.bucket.iter();
    let mut buckets: Vec<_> = buckets
        .map(|bucket| {
            (
                bucket.upper_bound.unwrap(),
                bucket.cumulative_count.unwrap(),
            )
        })
        .collect();
    buckets.push((f64::INFINITY, histogram.sample_count()));
    assert_eq!(classic.buckets, buckets);
    // The native buckets between two classic edges have what is counted between these.
    let native = histogram.native();
    for (edge, count) in &classic.buckets {
        let below = native.iter().filter(|(_, upper, _)| upper <= edge);
        let events: u64 = below.map(|(_, _, events)| events).sum();
        assert_eq!(events, *count, "{name} up to {edge}: {native:?}");
    }
}

#[test]
fn classic_histograms_can_be_left_out_of_protobuf() {
    turn!("classic_histograms_can_be_left_out_of_protobuf");
    let agent = Agent::start("--probes tcp --metrics.classic-histograms=false");
    let cgroup = socket_cgroup("native");
    load::run("storm --self --seconds 0.1", &[&cgroup]);
    let families = families(&agent);
    let plain = text(&agent, TEXT, Format::Text);
    let mut histograms = 0;
    for metric in &families[HANDSHAKES].metric {
        let labels = metric.labels();
        if labels["cgroup"] != label(&cgroup) {
            continue;
        }
        histograms += 1;
        let histogram = metric.histogram.as_ref().unwrap();
        assert_eq!(histogram.bucket, []);
        let role = ("role", labels["role"].as_str());
        let classic = plain.histogram(HANDSHAKES, &[("cgroup", &label(&cgroup)), role]);
        assert_eq!(classic.buckets.len(), 24);
        assert_eq!(classic.count, histogram.sample_count());
        assert!(!histogram.native().is_empty());
    }
    assert_eq!(histograms, 2);
    agent.stop();
}

/// When a metric in protobuf began, in seconds since 1970.
fn created(metric: &message::Metric) -> Option<f64> {
    let histogram = metric.histogram.as_ref();
    let time = histogram
        .and_then(|histogram| histogram.created_timestamp)
        .or_else(|| metric.counter?.created_timestamp)?;
    let whole = as_f64(time.seconds.cast_unsigned());
    Some(whole + f64::from(time.nanos) / 1e9)
}

#[test]
fn what_counts_says_since_when() {
    turn!("what_counts_says_since_when");
    let now = || UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let start = now();
    let agent = Agent::start("--probes tcp --metrics.created");
    let first = socket_cgroup("first");
    let refused = |cgroup| {
        let refused = load::run("connect --to 127.0.0.1:1 --count 2", &[cgroup]);
        assert_all(&refused, "refused", 2);
    };
    refused(&first);
    let of_first = now();
    agent.scrape();
    let second = socket_cgroup("second");
    refused(&second);
    refused(&first);
    load::run("storm --self --seconds 0.1", &[&second]);
    let end = now();
    let open = text(&agent, OPEN_METRICS, Format::OpenMetrics);
    let families = families(&agent);
    let created_of = |family: &str, cgroup: &Cgroup| {
        let label = label(cgroup);
        let name = family.strip_suffix("_total").unwrap_or(family);
        let mut times = Vec::new();
        for metric in &families[family].metric {
            let labels = metric.labels();
            if labels["cgroup"] == label {
                let labels = labels.iter();
                let labels: Vec<_> = labels.map(|(name, value)| (&**name, &**value)).collect();
                let time = created(metric).unwrap();
                let shown = open.value(&format!("{name}_created"), &labels);
                assert!((0.0..0.002).contains(&(time - shown)), "{time} {shown}");
                times.push(time);
            }
        }
        times
    };
    let failures = "sentry_tcp_connect_failures_total";
    // Before its first event, and no earlier than the last look at what there is.
    let times = created_of(failures, &first);
    assert_eq!(times.len(), 1);
    assert!((start..of_first).contains(&times[0]), "{times:?}");
    let mut times = created_of(failures, &second);
    assert_eq!(times.len(), 1);
    times.extend(created_of(HANDSHAKES, &second));
    assert_eq!(times.len(), 3);
    assert!(
        times.iter().all(|time| (of_first..end).contains(time)),
        "{of_first} {times:?} {end}"
    );
    // The agent's own began with it; a gauge is what it is now.
    let refused = &families["sentry_http_scrapes_refused_total"].metric[0];
    assert!((start..of_first).contains(&created(refused).unwrap()));
    assert_eq!(created(&families["sentry_build_info"].metric[0]), None);
    // The kernel has counted the process' time since that began, before the agent did.
    let only = |family: &str| &families[family].metric[0];
    let process = created(only("process_cpu_seconds_total")).unwrap();
    let began = only("process_start_time_seconds").gauge.unwrap().value();
    assert!((process - began).abs() < 0.001, "{process} {began}");
    assert!(process < created(refused).unwrap());
    let plain = text(&agent, TEXT, Format::Text);
    let mut names = plain.samples.iter().map(|sample| &sample.name);
    assert!(!names.any(|name| name.ends_with("_created")));

    // Prometheus puts a zero there, even of what was there before it first looked.
    if let Some(program) = prometheus_3() {
        let setup = Setup {
            program,
            flags: vec!["--enable-feature=created-timestamp-zero-ingestion"],
            scrape: "always_scrape_classic_histograms: true",
            ..Setup::default()
        };
        let folder = Folder::new();
        let prometheus = Prometheus::start(&setup, &folder, agent.address());
        for family in [failures, &format!("{HANDSHAKES}_count")] {
            let cgroup = label(&second);
            let least = format!("min_over_time({family}{{cgroup=\"{cgroup}\"}}[1h])");
            let found = wait_for("first scrape", PATIENCE, || {
                Some(prometheus.query(&least)).filter(|found| !found.is_empty())
            });
            let found: Vec<f64> = found.into_iter().map(|(_, value)| value).collect();
            assert!(
                found.iter().all(|least| *least == 0.0),
                "{family}: {found:?}"
            );
        }
        prometheus.assert_content();
    }
    agent.stop();
}

/// Stands between Prometheus and the agent: asks for a format of its own choice, if it has one, and notes what came.
struct Relay {
    address: SocketAddr,
    came: Arc<Mutex<BTreeSet<String>>>,
}

impl Relay {
    /// Goes on until the program ends.
    fn start(agent: SocketAddr, accept: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Self {
            address: listener.local_addr().unwrap(),
            came: Arc::default(),
        };
        let came = Arc::clone(&relay.came);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that leaves early has seen enough.
                let _ = answer(stream, agent, accept, &came);
            }
        });
        relay
    }

    fn assert_came(&self, content_type: &str) {
        let came = self.came.lock().unwrap();
        assert_eq!(*came, BTreeSet::from([content_type.to_owned()]));
    }
}

fn answer(
    mut stream: TcpStream,
    agent: SocketAddr,
    accept: Option<&str>,
    came: &Mutex<BTreeSet<String>>,
) -> std::io::Result<()> {
    let mut asked = None;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        if let Some(value) = line.strip_prefix("Accept: ") {
            asked = Some(value.to_owned());
        }
        if line.is_empty() {
            break;
        }
    }
    let accept = accept.map(str::to_owned).or(asked).unwrap_or_default();
    let response = get(agent, "/metrics", &[&format!("Accept: {accept}")]);
    let content_type = response.header("content-type").unwrap();
    came.lock().unwrap().insert(content_type.to_owned());
    let length = response.body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    stream.write_all(&response.body)?;
    // Closing with something unread would be a reset.
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.read_to_end(&mut Vec::new()).map(drop)
}

/// A way to scrape.
struct Way {
    setup: Setup,
    /// The format that is asked for in Prometheus' stead.
    accept: Option<&'static str>,
    /// What it must come to.
    content_type: &'static str,
    /// How names are to be escaped, which Prometheus 3 asks for with new versions of texts.
    escaping: &'static str,
    /// Whether native histograms are taken in.
    native: bool,
    /// Whether classic ones are.
    classic: bool,
}

/// Each format with each Prometheus that is here.
fn ways() -> Vec<Way> {
    let debian = Setup::default();
    let mut programs = vec![debian.program.clone()];
    match prometheus_3() {
        Some(program) => programs.push(program),
        None => crate::host::skipped(
            "prometheus_reads_every_format",
            "with Prometheus 3: SENTRY_PROMETHEUS_3 does not say where it is",
        ),
    }
    let native = vec!["--enable-feature=native-histograms"];
    programs
        .into_iter()
        .flat_map(|program| {
            let is_3 = Some(&program) == prometheus_3().as_ref();
            let way = |flags: &[&'static str], accept, content_type| Way {
                setup: Setup {
                    program: program.clone(),
                    flags: flags.to_vec(),
                    ..Setup::default()
                },
                accept,
                content_type,
                escaping: if is_3 && accept.is_none() && content_type == OPEN_METRICS {
                    "; escaping=allow-utf-8"
                } else {
                    ""
                },
                native: content_type == PROTOBUF,
                classic: content_type != PROTOBUF,
            };
            let mut ways = vec![
                way(&[], None, OPEN_METRICS),
                way(&[], Some(TEXT), TEXT),
                way(&native, None, PROTOBUF),
                way(&native, Some(OPEN_METRICS), OPEN_METRICS),
            ];
            // 2.42 has no such settings.
            if is_3 {
                let mut set = |flags, scrape, content_type, native, classic| {
                    let mut way = way(flags, None, content_type);
                    way.setup.scrape = scrape;
                    (way.native, way.classic) = (native, classic);
                    ways.push(way);
                };
                let both = "always_scrape_classic_histograms: true";
                set(&native, both, PROTOBUF, true, true);
                let protobuf =
                    "scrape_protocols: [PrometheusProto]\nalways_scrape_classic_histograms: true";
                set(&[], protobuf, PROTOBUF, false, true);
                let text = "scrape_protocols: [PrometheusText1.0.0]";
                set(&[], text, TEXT, false, true);
            }
            ways
        })
        .collect()
}

#[test]
fn prometheus_reads_every_format() {
    turn!("prometheus_reads_every_format");
    let agent = Agent::start("--probes tcp");
    let (client, server) = (socket_cgroup("client"), socket_cgroup("server"));
    let listener = Server::listen("", &[&server]);
    let args = format!("connect --to 127.0.0.1:{} --count 321", listener.port());
    assert_all(&load::run(&args, &[&client]), "connected", 321);
    let refused = load::run("connect --to 127.0.0.1:1 --count 7", &[&client]);
    assert_all(&refused, "refused", 7);
    let cgroup = label(&client);
    let families = families(&agent);
    let mut metrics = families[HANDSHAKES].metric.iter();
    let truth = metrics
        .find(|metric| metric.labels()["cgroup"] == cgroup)
        .and_then(|metric| metric.histogram.clone())
        .unwrap();
    assert_eq!(truth.sample_count(), 321);
    let of = format!("{{cgroup=\"{cgroup}\"}}");
    let mut classic_edges = BTreeSet::new();

    for way in ways() {
        let said = format!("{:?} {:?}", way.setup, way.accept);
        let relay = Relay::start(agent.address(), way.accept);
        let folder = Folder::new();
        let prometheus = Prometheus::start(&way.setup, &folder, relay.address);
        let failures = wait_for("first scrape", PATIENCE, || {
            let failures = prometheus.query(&format!("sentry_tcp_connect_failures_total{of}"));
            Some(failures).filter(|failures| !failures.is_empty())
        });
        assert_eq!(failures.len(), 1, "{said}: {failures:?}");
        assert_eq!(failures[0].1, 7.0, "{said}");
        let one = |query: &str| {
            let results = prometheus.query(query);
            assert_eq!(results.len(), 1, "{said}: {query}: {results:?}");
            results[0].1
        };
        if way.native {
            assert_eq!(one(&format!("histogram_count({HANDSHAKES}{of})")), 321.0);
            let sum = one(&format!("histogram_sum({HANDSHAKES}{of})"));
            assert_eq!(sum, truth.sample_sum(), "{said}");
        }
        if way.classic {
            assert_eq!(one(&format!("{HANDSHAKES}_count{of}")), 321.0, "{said}");
            let sum = one(&format!("{HANDSHAKES}_sum{of}"));
            assert_eq!(sum, truth.sample_sum(), "{said}");
            let buckets = prometheus.query(&format!("{HANDSHAKES}_bucket{of}"));
            let edges: BTreeSet<String> = buckets
                .iter()
                .map(|(labels, _)| labels["le"].as_str().unwrap().to_owned())
                .collect();
            assert_eq!(edges.len(), 24, "{said}");
            classic_edges.insert(edges);
        }
        for share in [0.1, 0.5, 0.9, 0.99] {
            let (lower, upper) = truth.bucket_of(share);
            let near = |what: &str, lower: f64, upper: f64| {
                let query = format!("histogram_quantile({share}, {HANDSHAKES}{what}{of})");
                let quantile = one(&query);
                let bucket = lower * (1.0 - 1e-9)..=upper * (1.0 + 1e-9);
                assert!(
                    bucket.contains(&quantile),
                    "{said}: {query}: {quantile} in {bucket:?}"
                );
            };
            if way.native {
                near("", lower, upper);
            }
            if way.classic {
                // In the octave around the native bucket.
                let octave = upper.log2().ceil().exp2();
                near("_bucket", octave / 2.0, octave);
            }
        }
        prometheus.assert_content();
        relay.assert_came(&format!("{}{}", way.content_type, way.escaping));
    }
    // No format makes another series of a bucket.
    assert_eq!(classic_edges.len(), 1, "{classic_edges:?}");
    agent.stop();
}
