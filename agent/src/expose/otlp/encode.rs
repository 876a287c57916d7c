//! Metrics as the messages of OTLP, in requests of a bounded size.

use std::time::{SystemTime, UNIX_EPOCH};

use probes::{BUCKETS, bucket_edge_seconds};
use prost::Message;

use super::{
    message::{
        Buckets, CUMULATIVE, Data, ExponentialHistogram, ExponentialHistogramDataPoint,
        ExportMetricsServiceRequest, Gauge, InstrumentationScope, KeyValue, Metric, Number,
        NumberDataPoint, Resource, ResourceMetrics, ScopeMetrics, Sum,
    },
    names::{self, CONTAINER_NAME, Instrument, Name, OTHER_WORKLOAD, WORKLOAD, WORKLOADS},
};
use crate::expose::{
    model::{Family, Histogram, Kind, Sample, Value},
    protobuf::{ONE_SECOND, SCHEMA},
};

/// Data points of a request. Receivers of gRPC take messages of 4 MB by default.
const REQUEST_POINTS: usize = 500;

/// Bytes from which on a request takes no more points, should they be large.
const REQUEST_BYTES: usize = 512 * 1024;

/// What is the same in all requests.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    /// Who sends: `service.name` and the like.
    pub(super) resource: Vec<(&'static str, String)>,
    /// Since when everything counts of which it is not known better.
    pub(super) started: SystemTime,
}

/// A request, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    pub(super) body: Vec<u8>,
    /// The data points in it.
    pub(super) points: u64,
}

/// Takes samples, and gives requests.
#[derive(Debug)]
pub(super) struct Requests<'a> {
    sender: &'a Sender,
    time_unix_nano: u64,
    metrics: Vec<Metric>,
    points: usize,
    bytes: usize,
}

impl<'a> Requests<'a> {
    /// Of values as they were at a time.
    pub(super) fn new(sender: &'a Sender, time: SystemTime) -> Self {
        Self {
            sender,
            time_unix_nano: unix_nano(time),
            metrics: Vec::new(),
            points: 0,
            bytes: 0,
        }
    }

    /// Adds a sample. What came so far is a request of its own once there is enough of it.
    pub(super) fn add(&mut self, family: &Family, sample: &Sample) -> Option<Request> {
        let full = self.points >= REQUEST_POINTS || self.bytes >= REQUEST_BYTES;
        let ready = full.then(|| self.take()).flatten();
        let name = names::of(family.name);
        if self
            .metrics
            .last()
            .is_none_or(|last| last.name != name.theirs)
        {
            self.metrics.push(metric(&name, family));
        }
        let start = sample.created.unwrap_or(self.sender.started);
        let attributes = attributes(&name, sample);
        let time = self.time_unix_nano;
        // The clock may have been set back since.
        let start = unix_nano(start).min(time);
        let data = self
            .metrics
            .last_mut()
            .and_then(|metric| metric.data.as_mut());
        self.bytes += match (data, &sample.value) {
            (Some(Data::ExponentialHistogram(metric)), Value::Histogram(histogram)) => {
                let point = ExponentialHistogramDataPoint {
                    attributes,
                    start_time_unix_nano: start,
                    time_unix_nano: time,
                    ..histogram_point(histogram)
                };
                let bytes = point.encoded_len();
                metric.data_points.push(point);
                bytes
            }
            (Some(Data::Sum(Sum { data_points, .. })), value) => {
                push(data_points, attributes, start, time, value)
            }
            // What is there now has no beginning.
            (Some(Data::Gauge(Gauge { data_points })), value) => {
                push(data_points, attributes, 0, time, value)
            }
            // A family's samples are of its kind.
            (_, _) => return ready,
        };
        self.points += 1;
        ready
    }

    /// What is left, if anything.
    pub(super) fn take(&mut self) -> Option<Request> {
        if self.points == 0 {
            return None;
        }
        let resource = self.sender.resource.iter();
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(Resource {
                    attributes: resource
                        .map(|(key, value)| KeyValue::new(*key, value))
                        .collect(),
                }),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(InstrumentationScope {
                        name: "sentry".to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                    }),
                    metrics: std::mem::take(&mut self.metrics),
                }],
            }],
        };
        self.bytes = 0;
        Some(Request {
            body: request.encode_to_vec(),
            points: std::mem::take(&mut self.points) as u64,
        })
    }
}

/// The attributes of a data point. What is empty is not there: that is how OpenTelemetry says it.
fn attributes(name: &Name, sample: &Sample) -> Vec<KeyValue> {
    let value_of = |label| {
        let mut labels = sample.labels.iter();
        let found = labels.find(|(name, _)| *name == label);
        found.map_or("", |(_, value)| *value)
    };
    let in_pod = !value_of("pod").is_empty();
    let kind = value_of("workload_kind");
    let known_kind = WORKLOADS.iter().find(|(known, _)| *known == kind);
    let key = |label| match (label, known_kind) {
        ("container", _) if !in_pod => Some(CONTAINER_NAME),
        ("workload", Some((_, key))) => Some(*key),
        ("workload", None) => Some(OTHER_WORKLOAD[1]),
        ("workload_kind", Some(_)) => None,
        ("workload_kind", None) => Some(OTHER_WORKLOAD[0]),
        (label, _) => {
            let mut known = name.attributes.iter().chain(&WORKLOAD);
            let known = known.find(|(ours, _)| *ours == label);
            // Labels of pods have their names already.
            Some(known.map_or(label, |(_, key)| key))
        }
    };
    let filled = sample.labels.iter().filter(|(_, value)| !value.is_empty());
    filled
        .filter_map(|(label, value)| Some(KeyValue::new(key(label)?, *value)))
        .collect()
}

/// A metric without data points.
fn metric(name: &Name, family: &Family) -> Metric {
    let sum = |is_monotonic| {
        Data::Sum(Sum {
            data_points: Vec::new(),
            aggregation_temporality: CUMULATIVE,
            is_monotonic,
        })
    };
    let data = match (family.kind, name.instrument) {
        (Kind::Counter, _) => sum(true),
        (Kind::Gauge, Instrument::UpDown) => sum(false),
        (Kind::Gauge, Instrument::AsKind) => Data::Gauge(Gauge::default()),
        (Kind::Histogram, _) => Data::ExponentialHistogram(ExponentialHistogram {
            data_points: Vec::new(),
            aggregation_temporality: CUMULATIVE,
        }),
    };
    Metric {
        name: name.theirs.to_owned(),
        description: format!("{}.", family.help),
        unit: name.unit.to_owned(),
        data: Some(data),
    }
}

/// Adds a number; its bytes.
fn push(
    points: &mut Vec<NumberDataPoint>,
    attributes: Vec<KeyValue>,
    start: u64,
    time: u64,
    value: &Value,
) -> usize {
    #[allow(clippy::cast_precision_loss)] // beyond 2^63
    let value = match value {
        Value::Whole(value) => {
            i64::try_from(*value).map_or(Number::Double(*value as f64), Number::Int)
        }
        Value::Real(value) => Number::Double(*value),
        Value::Histogram(histogram) => Number::Double(histogram.count() as f64),
    };
    let point = NumberDataPoint {
        start_time_unix_nano: start,
        time_unix_nano: time,
        value: Some(value),
        attributes,
    };
    let bytes = point.encoded_len();
    points.push(point);
    bytes
}

/// The kernel's buckets as those of scale 2, without attributes and times.
///
/// Bucket `index` of scale 2 has what is above 2^(index/4) and not above 2^((index+1)/4): its index is by one less than
/// that of Prometheus' schema 2, which counts by upper edges. The kernel's first bucket is the zero bucket, and its last
/// one takes the place above the highest edge, as there.
fn histogram_point(histogram: &Histogram) -> ExponentialHistogramDataPoint {
    let buckets = histogram.buckets;
    let first = (1..BUCKETS).find(|bucket| buckets[*bucket] > 0);
    let last = (1..BUCKETS).rfind(|bucket| buckets[*bucket] > 0);
    let positive = first.zip(last).map(|(first, last)| Buckets {
        offset: index(first),
        bucket_counts: buckets[first..=last].to_vec(),
    });
    ExponentialHistogramDataPoint {
        count: histogram.count(),
        sum: Some(histogram.sum_seconds),
        scale: SCHEMA,
        zero_count: buckets[0],
        zero_threshold: bucket_edge_seconds(0),
        positive: Some(positive.unwrap_or_default()),
        ..ExponentialHistogramDataPoint::default()
    }
}

/// The place of one of the kernel's buckets.
fn index(bucket: usize) -> i32 {
    i32::try_from(bucket).unwrap_or(i32::MAX) - ONE_SECOND - 1
}

pub(super) fn unix_nano(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::expose::otlp::message::AnyValue;

    const WAIT: Family = Family {
        name: "sentry_disk_io_duration_seconds",
        help: "Wait",
        kind: Kind::Histogram,
    };

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn sender() -> Sender {
        Sender {
            resource: vec![("service.name", "sentry".to_owned())],
            started: at(1),
        }
    }

    fn sample<'a>(labels: &[(&'a str, &'a str)], value: Value<'a>) -> Sample<'a> {
        Sample {
            labels: labels.to_vec(),
            value,
            created: None,
        }
    }

    /// The metrics of a request.
    fn metrics(request: &Request) -> Vec<Metric> {
        let message = ExportMetricsServiceRequest::decode(request.body.as_slice()).unwrap();
        let [resource] = &message.resource_metrics[..] else {
            panic!("{message:?}");
        };
        let attributes = [KeyValue::new("service.name", "sentry")];
        assert_eq!(resource.resource.as_ref().unwrap().attributes, attributes);
        let [scope] = &resource.scope_metrics[..] else {
            panic!("{message:?}");
        };
        assert_eq!(scope.scope.as_ref().unwrap().name, "sentry");
        scope.metrics.clone()
    }

    fn only(family: Family, sample: &Sample) -> Metric {
        let sender = sender();
        let mut requests = Requests::new(&sender, at(9));
        assert_eq!(requests.add(&family, sample), None);
        let request = requests.take().unwrap();
        assert_eq!(request.points, 1);
        assert_eq!(requests.take(), None);
        let mut metrics = metrics(&request);
        assert_eq!(metrics.len(), 1);
        metrics.remove(0)
    }

    #[test]
    fn a_histogram_byte_by_byte() {
        // Below the first edge, up to a second, and the bucket after: 1, 2 and 300 events.
        let mut buckets = [0; BUCKETS];
        (buckets[0], buckets[72], buckets[73]) = (1, 2, 300);
        let value = Value::Histogram(Histogram {
            sum_seconds: 3.0,
            buckets: &buckets,
            exemplars: &[],
        });
        let labels = [("cgroup", "/a"), ("pod", ""), ("operation", "read")];
        let mut sample = sample(&labels, value);
        sample.created = Some(UNIX_EPOCH + Duration::from_nanos(5));
        let sender = sender();
        let mut requests = Requests::new(&sender, at(9));
        requests.add(&WAIT, &sample);
        let key_value = |key: &str, value: &str| {
            let length = |text: &str| u8::try_from(text.len()).unwrap();
            let value = [&[0x0a, length(value)], value.as_bytes()].concat();
            let key = [&[0x0a, length(key)], key.as_bytes()].concat();
            [
                &key[..],
                &[0x12, u8::try_from(value.len()).unwrap()],
                &value,
            ]
            .concat()
        };
        let nested = |tag: u8, inner: &[u8]| {
            let mut bytes = vec![tag];
            prost::encode_length_delimiter(inner.len(), &mut bytes).unwrap();
            bytes.extend(inner);
            bytes
        };
        let point = [
            &nested(0x0a, &key_value("sentry.cgroup", "/a"))[..],
            &nested(0x0a, &key_value("disk.io.direction", "read")),
            &[0x11, 5, 0, 0, 0, 0, 0, 0, 0], // start_time_unix_nano
            &[0x19, 0, 0x1a, 0x71, 0x18, 2, 0, 0, 0], // time_unix_nano: 9e9
            &[0x21, 0x2f, 1, 0, 0, 0, 0, 0, 0], // count: 303
            &[0x29, 0, 0, 0, 0, 0, 0, 8, 0x40], // sum: 3.0
            &[0x30, 4],                      // scale: 2, zigzag
            &[0x39, 1, 0, 0, 0, 0, 0, 0, 0], // zero_count
            &[0x42, 7, 0x08, 1, 0x12, 3, 2, 0xac, 2], // positive: offset -1; 2, 300
            &[0x71, 0, 0, 0, 0, 0, 0, 0xd0, 0x3e], // zero_threshold: 2^-18
        ]
        .concat();
        let data = [&nested(0x0a, &point)[..], &[0x10, 2]].concat();
        let metric = [
            &nested(0x0a, b"sentry.disk.io.duration")[..],
            &nested(0x12, b"Wait."),
            &nested(0x1a, b"s"),
            &nested(0x52, &data),
        ]
        .concat();
        let version = env!("CARGO_PKG_VERSION");
        let scope = [
            &nested(0x0a, b"sentry")[..],
            &nested(0x12, version.as_bytes()),
        ]
        .concat();
        let scope_metrics = [&nested(0x0a, &scope)[..], &nested(0x12, &metric)].concat();
        let resource = nested(0x0a, &key_value("service.name", "sentry"));
        let resource_metrics = [&nested(0x0a, &resource)[..], &nested(0x12, &scope_metrics)];
        assert_eq!(
            requests.take().unwrap().body,
            nested(0x0a, &resource_metrics.concat())
        );
    }

    #[test]
    fn buckets_have_the_edges_of_the_kernels() {
        for bucket in 1..BUCKETS {
            let mut buckets = [0; BUCKETS];
            buckets[bucket] = 1;
            let point = histogram_point(&Histogram {
                sum_seconds: 0.0,
                buckets: &buckets,
                exemplars: &[],
            });
            let positive = point.positive.unwrap();
            assert_eq!(positive.bucket_counts, [1]);
            // From base^index, which is not in it, to base^(index + 1), which is.
            let edge = |index: i32| (f64::from(index) / 2f64.powi(point.scale)).exp2();
            let lower = bucket_edge_seconds(bucket - 1);
            assert_eq!(edge(positive.offset).to_bits(), lower.to_bits(), "{bucket}");
            if bucket < BUCKETS - 1 {
                let upper = bucket_edge_seconds(bucket);
                assert_eq!(edge(positive.offset + 1).to_bits(), upper.to_bits());
            }
        }
        // The zero bucket ends where the first one begins.
        assert_eq!((index(1), index(BUCKETS - 1)), (-72, 16));
        let point = histogram_point(&Histogram {
            exemplars: &[],
            sum_seconds: 0.0,
            buckets: &std::array::from_fn(|bucket| bucket as u64 + 1),
        });
        assert_eq!(point.zero_threshold.to_bits(), 2f64.powi(-18).to_bits());
        let positive = point.positive.unwrap();
        assert_eq!((positive.offset, positive.bucket_counts.len()), (-72, 89));
        let sum: u64 = positive.bucket_counts.iter().sum();
        assert_eq!((point.zero_count, point.count), (1, sum + 1));
        let none = histogram_point(&Histogram {
            exemplars: &[],
            sum_seconds: 0.0,
            buckets: &[0; BUCKETS],
        });
        assert_eq!((none.count, none.positive), (0, Some(Buckets::default())));
    }

    #[test]
    fn numbers_have_their_type_and_beginning() {
        let family = |name, kind| Family {
            name,
            help: "Help",
            kind,
        };
        let whole = |value| sample(&[], Value::Whole(value));
        let point = |start: u64, value| NumberDataPoint {
            start_time_unix_nano: start * 1_000_000_000,
            time_unix_nano: 9_000_000_000,
            value: Some(value),
            attributes: Vec::new(),
        };
        let sum = |point, is_monotonic| {
            Some(Data::Sum(Sum {
                data_points: vec![point],
                aggregation_temporality: 2,
                is_monotonic,
            }))
        };
        let counter = family("sentry_tcp_syn_retransmits_total", Kind::Counter);
        let found = only(counter, &whole(7));
        assert_eq!(
            (&*found.name, &*found.unit, &*found.description),
            ("sentry.tcp.syn.retransmits", "{segment}", "Help.")
        );
        assert_eq!(found.data, sum(point(1, Number::Int(7)), true));
        let mut later = whole(u64::MAX);
        later.created = Some(at(4));
        #[allow(clippy::cast_precision_loss)]
        let most = Number::Double(u64::MAX as f64);
        assert_eq!(only(counter, &later).data, sum(point(4, most), true));

        let mut ahead = whole(7);
        ahead.created = Some(at(12));
        let no_later = sum(point(9, Number::Int(7)), true);
        assert_eq!(only(counter, &ahead).data, no_later);

        let seconds = family("process_cpu_seconds_total", Kind::Counter);
        let found = only(seconds, &sample(&[], Value::Real(0.5)));
        assert_eq!((&*found.name, &*found.unit), ("process.cpu.time", "s"));
        assert_eq!(found.data, sum(point(1, Number::Double(0.5)), true));

        let level = family("sentry_gpu_allocated_bytes", Kind::Gauge);
        let gauge = Data::Gauge(Gauge {
            data_points: vec![point(0, Number::Int(3))],
        });
        let mut gauge_sample = whole(3);
        gauge_sample.created = Some(at(4));
        assert_eq!(only(level, &gauge_sample).data, Some(gauge));
        let resident = family("process_resident_memory_bytes", Kind::Gauge);
        let found = only(resident, &whole(3));
        assert_eq!(found.name, "process.memory.usage");
        assert_eq!(found.data, sum(point(1, Number::Int(3)), false));
    }

    #[test]
    fn labels_are_attributes() {
        let family = Family {
            name: "sentry_gpu_errors_total",
            help: "Help",
            kind: Kind::Counter,
        };
        let text = |labels: &[(&str, &str)]| -> Vec<String> {
            let metric = only(family, &sample(labels, Value::Whole(1)));
            let Some(Data::Sum(sum)) = metric.data else {
                panic!("{metric:?}");
            };
            let attributes = sum.data_points[0].attributes.iter();
            attributes
                .map(|KeyValue { key, value }| {
                    let Some(AnyValue { string_value }) = value else {
                        panic!("{key}");
                    };
                    format!("{key}={}", string_value.as_deref().unwrap())
                })
                .collect()
        };
        assert_eq!(
            text(&[
                ("namespace", "shop"),
                ("pod", "web-0"),
                ("container", "app"),
                ("cgroup", "/k/p/c"),
                ("k8s.pod.label.app.kubernetes.io/name", "web"),
                ("k8s.pod.label.team", ""),
                ("process", "python3"),
                ("call", "malloc"),
                ("code", "2"),
            ]),
            [
                "k8s.namespace.name=shop",
                "k8s.pod.name=web-0",
                "k8s.container.name=app",
                "sentry.cgroup=/k/p/c",
                "k8s.pod.label.app.kubernetes.io/name=web",
                "sentry.gpu.process=python3",
                "sentry.gpu.call=malloc",
                "error.type=2",
            ]
        );
        let docker = [("namespace", ""), ("pod", ""), ("container", "db")];
        assert_eq!(text(&docker), ["container.name=db"]);
        let workload = |kind| text(&[("workload_kind", kind), ("workload", "web")]);
        assert_eq!(workload("StatefulSet"), ["k8s.statefulset.name=web"]);
        assert_eq!(
            workload("Rollout"),
            ["sentry.workload.kind=Rollout", "sentry.workload.name=web"]
        );
    }

    #[test]
    fn requests_are_bounded() {
        let (sender, huge) = (sender(), "x".repeat(REQUEST_BYTES));
        let mut requests = Requests::new(&sender, at(9));
        let buckets = [u64::MAX >> 8; BUCKETS];
        let value = Value::Histogram(Histogram {
            sum_seconds: 1.0,
            buckets: &buckets,
            exemplars: &[],
        });
        let mut sent = Vec::new();
        for number in 0..1200 {
            let number = number.to_string();
            sent.extend(requests.add(&WAIT, &sample(&[("cgroup", &number)], value)));
        }
        sent.extend(requests.add(&WAIT, &sample(&[("cgroup", &huge)], value)));
        sent.extend(requests.add(&WAIT, &sample(&[("cgroup", "last")], value)));
        sent.extend(requests.take());
        let points: Vec<_> = sent.iter().map(|request| request.points).collect();
        assert_eq!(points, [500, 500, 201, 1]);
        for request in &sent {
            assert!(request.body.len() < 2 * REQUEST_BYTES);
            assert_eq!(metrics(request).len(), 1);
        }
    }
}
