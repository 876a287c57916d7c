//! Prometheus' protobuf: `io.prometheus.client.MetricFamily`, each after its length. The only format with native
//! histograms.

use std::time::{SystemTime, UNIX_EPOCH};

use probes::{BUCKETS, bucket_edge_seconds};
use prost::Message;

use super::model::{Family, Histogram, Kind, Sample, Value, seconds};
use crate::collect::Exemplar;
use message::{
    Bucket, BucketSpan, Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType, Timestamp,
};

/// Four buckets to the octave.
pub(super) const SCHEMA: i32 = 2;

/// The kernel's bucket that ends at a second. Native histograms count theirs from there.
pub(super) const ONE_SECOND: i32 = 72;

/// What is encoded in one piece: an exposition of many megabytes needs no allocation of that size.
const PIECE_BYTES: usize = 32 * 1024;

/// Makes messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoder {
    /// Of the classic histograms beside the native ones, if they are wanted there.
    pub(crate) classic_buckets_per_octave: Option<u8>,
}

/// A family that is being encoded. Its length stands before it, so it is there as a whole before its first byte can
/// go out.
#[derive(Debug)]
pub(crate) struct Encoded {
    encoder: Encoder,
    family: Family,
    pieces: Vec<Vec<u8>>,
}

impl Encoder {
    /// Begins a family.
    pub(crate) fn family(self, family: Family) -> Encoded {
        Encoded {
            encoder: self,
            family,
            pieces: Vec::new(),
        }
    }

    fn metric(self, kind: Kind, sample: &Sample) -> Metric {
        let mut metric = Metric {
            label: sample.labels.iter().map(LabelPair::from).collect(),
            ..Metric::default()
        };
        let created_timestamp = sample.created.map(Timestamp::from);
        match (&sample.value, kind) {
            (Value::Histogram(histogram), _) => {
                metric.histogram = Some(message::Histogram {
                    created_timestamp,
                    ..self.histogram(histogram)
                });
            }
            (value, Kind::Counter) => {
                metric.counter = Some(Counter {
                    value: Some(number(value)),
                    created_timestamp,
                });
            }
            (value, _) => {
                metric.gauge = Some(Gauge {
                    value: Some(number(value)),
                });
            }
        }
        metric
    }

    fn histogram(self, histogram: &Histogram) -> message::Histogram {
        let (positive_span, positive_delta) = native(histogram.buckets);
        // In the order of time, in which Prometheus takes them.
        let mut exemplars: Vec<&Exemplar> = histogram.exemplars.iter().collect();
        exemplars.sort_by_key(|exemplar| exemplar.time);
        let exemplars = exemplars.into_iter().map(Into::into).collect();
        let classic = self.classic_buckets_per_octave.map(|per_octave| {
            let counts = histogram.cumulative(per_octave);
            let mut above = None;
            let buckets = counts.map(|(bucket, count)| {
                let exemplar = histogram.exemplar(above.replace(bucket), bucket);
                let shown = Bucket {
                    cumulative_count: Some(count),
                    upper_bound: Some(bucket_edge_seconds(bucket)),
                    exemplar: exemplar.map(Into::into),
                };
                (bucket, shown)
            });
            // The one above all edges is what the number of samples says, unless there is more to say.
            let buckets = buckets
                .filter(|(bucket, shown)| *bucket != BUCKETS - 1 || shown.exemplar.is_some());
            buckets.map(|(_, shown)| shown).collect()
        });
        message::Histogram {
            sample_count: Some(histogram.count()),
            sample_sum: Some(histogram.sum_seconds),
            bucket: classic.unwrap_or_default(),
            schema: Some(SCHEMA),
            zero_threshold: Some(bucket_edge_seconds(0)),
            zero_count: Some(histogram.buckets[0]),
            positive_span,
            positive_delta,
            created_timestamp: None,
            exemplars,
        }
    }
}

impl Encoded {
    /// Adds a sample.
    pub(crate) fn add(&mut self, sample: &Sample) {
        let metric = self.encoder.metric(self.family.kind, sample);
        let length = metric.encoded_len();
        // Number and length of a field take six bytes at most.
        let room = |piece: &Vec<u8>| piece.capacity() - piece.len() >= length + 6;
        if !self.pieces.last().is_some_and(room) {
            let capacity = PIECE_BYTES.max(length + 6);
            self.pieces.push(Vec::with_capacity(capacity));
        }
        if let Some(piece) = self.pieces.last_mut() {
            prost::encoding::message::encode(message::METRIC, &metric, piece);
        }
    }

    /// The message after its length, in pieces; none of a family without samples.
    pub(crate) fn finish(mut self) -> Vec<Vec<u8>> {
        if self.pieces.is_empty() {
            return Vec::new();
        }
        let kind = match self.family.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        };
        let head = MetricFamily {
            name: Some(self.family.name.to_owned()),
            help: Some(format!("{}.", self.family.help)),
            kind: Some(kind.into()),
            ..MetricFamily::default()
        };
        let tail = MetricFamily {
            unit: self.family.unit().map(str::to_owned),
            ..MetricFamily::default()
        };
        let samples: usize = self.pieces.iter().map(Vec::len).sum();
        let length = head.encoded_len() + samples + tail.encoded_len();
        let mut begin = Vec::with_capacity(10 + head.encoded_len());
        // They end at a limit of the buffer only, and a vector has none.
        let _ = prost::encode_length_delimiter(length, &mut begin);
        let _ = head.encode(&mut begin);
        self.pieces.insert(0, begin);
        self.pieces.push(tail.encode_to_vec());
        self.pieces
    }
}

/// The buckets of a native histogram: its spans, and by how much each bucket differs from the one before.
///
/// The kernel's buckets are those of the schema, but the first, which has all that is shorter and is the zero bucket,
/// and the last, which has all that is longer and takes the place above the highest edge.
fn native(buckets: &[u64; BUCKETS]) -> (Vec<BucketSpan>, Vec<i64>) {
    let mut spans: Vec<BucketSpan> = Vec::new();
    let mut deltas = Vec::new();
    let (mut next, mut before) = (0, 0);
    for (index, count) in (1 - ONE_SECOND..).zip(&buckets[1..]) {
        if *count == 0 {
            continue;
        }
        let touching = spans.last_mut().filter(|_| next == index);
        if let Some(length) = touching.and_then(|span| span.length.as_mut()) {
            *length += 1;
        } else {
            spans.push(BucketSpan {
                offset: Some(index - next),
                length: Some(1),
            });
        }
        deltas.push(count.wrapping_sub(before).cast_signed());
        (next, before) = (index + 1, *count);
    }
    (spans, deltas)
}

#[allow(clippy::cast_precision_loss)] // as every reader of the text formats does
fn number(value: &Value) -> f64 {
    match value {
        Value::Whole(value) => *value as f64,
        Value::Real(value) => *value,
        Value::Histogram(histogram) => histogram.count() as f64,
    }
}

impl From<&(&str, &str)> for LabelPair {
    fn from((name, value): &(&str, &str)) -> Self {
        Self {
            name: Some((*name).to_owned()),
            value: Some((*value).to_owned()),
        }
    }
}

impl From<&Exemplar> for message::Exemplar {
    fn from(exemplar: &Exemplar) -> Self {
        let labels = exemplar.labels.iter();
        Self {
            label: labels
                .map(|(name, value)| LabelPair::from(&(*name, value.as_str())))
                .collect(),
            value: Some(seconds(exemplar.duration_ns)),
            timestamp: Some(exemplar.time.into()),
        }
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            seconds: since.as_secs().cast_signed(),
            nanos: since.subsec_nanos().cast_signed(),
        }
    }
}

/// The messages, as far as they are used: `io/prometheus/client/metrics.proto` of Prometheus' `client_model`.
mod message {
    use prost::{Enumeration, Message};

    /// The number of the field that holds a family's metrics.
    pub(super) const METRIC: u32 = 4;

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
        Histogram = 4,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Metric {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(message, optional, tag = "2")]
        pub(super) gauge: Option<Gauge>,
        #[prost(message, optional, tag = "3")]
        pub(super) counter: Option<Counter>,
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

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(super) struct Gauge {
        #[prost(double, optional, tag = "1")]
        pub(super) value: Option<f64>,
    }

    #[derive(Clone, Copy, PartialEq, Message)]
    pub(super) struct Counter {
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
        #[prost(sint32, optional, tag = "5")]
        pub(super) schema: Option<i32>,
        #[prost(double, optional, tag = "6")]
        pub(super) zero_threshold: Option<f64>,
        #[prost(uint64, optional, tag = "7")]
        pub(super) zero_count: Option<u64>,
        #[prost(message, repeated, tag = "12")]
        pub(super) positive_span: Vec<BucketSpan>,
        // The file's syntax is proto2, where what is repeated is not packed unless it says so.
        #[prost(sint64, repeated, packed = "false", tag = "13")]
        pub(super) positive_delta: Vec<i64>,
        #[prost(message, optional, tag = "15")]
        pub(super) created_timestamp: Option<Timestamp>,
        #[prost(message, repeated, tag = "16")]
        pub(super) exemplars: Vec<Exemplar>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Exemplar {
        #[prost(message, repeated, tag = "1")]
        pub(super) label: Vec<LabelPair>,
        #[prost(double, optional, tag = "2")]
        pub(super) value: Option<f64>,
        #[prost(message, optional, tag = "3")]
        pub(super) timestamp: Option<Timestamp>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(super) struct Bucket {
        #[prost(uint64, optional, tag = "1")]
        pub(super) cumulative_count: Option<u64>,
        #[prost(double, optional, tag = "2")]
        pub(super) upper_bound: Option<f64>,
        #[prost(message, optional, tag = "3")]
        pub(super) exemplar: Option<Exemplar>,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Message)]
    pub(super) struct BucketSpan {
        #[prost(sint32, optional, tag = "1")]
        pub(super) offset: Option<i32>,
        #[prost(uint32, optional, tag = "2")]
        pub(super) length: Option<u32>,
    }

    /// `google.protobuf.Timestamp`
    #[derive(Clone, Copy, PartialEq, Eq, Message)]
    pub(super) struct Timestamp {
        #[prost(int64, tag = "1")]
        pub(super) seconds: i64,
        #[prost(int32, tag = "2")]
        pub(super) nanos: i32,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ALL: Encoder = Encoder {
        classic_buckets_per_octave: Some(1),
    };
    const NATIVE: Encoder = Encoder {
        classic_buckets_per_octave: None,
    };
    const WAIT: Family = Family {
        name: "wait_seconds",
        help: "Wait",
        kind: Kind::Histogram,
    };

    fn sample<'a>(labels: &[(&'a str, &'a str)], value: Value<'a>) -> Sample<'a> {
        Sample {
            labels: labels.to_vec(),
            value,
            created: None,
        }
    }

    fn encoded(encoder: Encoder, family: Family, samples: &[Sample]) -> Vec<u8> {
        let mut message = encoder.family(family);
        for sample in samples {
            message.add(sample);
        }
        message.finish().concat()
    }

    fn decoded(bytes: &[u8]) -> MetricFamily {
        let mut rest = bytes;
        let family = MetricFamily::decode_length_delimited(&mut rest).unwrap();
        assert!(rest.is_empty());
        family
    }

    fn histogram(buckets: &[(usize, u64)]) -> [u64; BUCKETS] {
        let mut all = [0; BUCKETS];
        for (bucket, count) in buckets {
            all[*bucket] = *count;
        }
        all
    }

    #[test]
    fn a_counter_byte_by_byte() {
        let family = Family {
            name: "a_total",
            help: "A",
            kind: Kind::Counter,
        };
        let mut counter = sample(&[("x", "ü")], Value::Whole(3));
        counter.created = Some(UNIX_EPOCH + Duration::new(300, 5));
        let metric = [
            &[0x0a, 7, 0x0a, 1, b'x', 0x12, 2, 0xc3, 0xbc][..],
            &[0x1a, 16, 0x09, 0, 0, 0, 0, 0, 0, 8, 0x40],
            &[0x1a, 5, 0x08, 0xac, 0x02, 0x10, 5],
        ]
        .concat();
        let metric_length = u8::try_from(metric.len()).unwrap();
        let message = [
            &[0x0a, 7][..],
            b"a_total",
            &[0x12, 2, b'A', b'.', 0x18, 0],
            &[0x22, metric_length],
            &metric,
        ]
        .concat();
        let length = u8::try_from(message.len()).unwrap();
        assert_eq!(
            encoded(ALL, family, &[counter]),
            [&[length][..], &message].concat()
        );
    }

    #[test]
    fn a_histogram_byte_by_byte() {
        // The bucket up to a second, and the one after: 2 and 1 events.
        let buckets = histogram(&[(72, 2), (73, 1)]);
        let value = Value::Histogram(Histogram {
            sum_seconds: 3.0,
            buckets: &buckets,
            exemplars: &[],
        });
        let histogram = [
            &[0x08, 3][..],                        // sample_count
            &[0x11, 0, 0, 0, 0, 0, 0, 8, 0x40],    // sample_sum
            &[0x28, 4],                            // schema, zigzag
            &[0x31, 0, 0, 0, 0, 0, 0, 0xd0, 0x3e], // zero_threshold
            &[0x38, 0],                            // zero_count
            &[0x62, 4, 0x08, 0, 0x10, 2],          // positive_span
            &[0x68, 4, 0x68, 1],                   // positive_delta: 2, -1
        ]
        .concat();
        let length = u8::try_from(histogram.len()).unwrap();
        let metric = [&[0x3a, length][..], &histogram].concat();
        let message = [
            &[0x0a, 12][..],
            b"wait_seconds",
            &[0x12, 5],
            b"Wait.",
            &[0x18, 4, 0x22, length + 2],
            &metric,
            &[0x2a, 7],
            b"seconds",
        ]
        .concat();
        let length = u8::try_from(message.len()).unwrap();
        assert_eq!(
            encoded(NATIVE, WAIT, &[sample(&[], value)]),
            [&[length][..], &message].concat()
        );
    }

    #[test]
    fn kinds_and_labels_come_back() {
        let family = |name, kind| Family {
            name,
            help: "Says \"hi\" and \\",
            kind,
        };
        let labels = [("a", ""), ("b", "x\ny\"")];
        let level = family("level_bytes", Kind::Gauge);
        let samples = [
            sample(&labels, Value::Whole(1 << 40)),
            sample(&[], Value::Real(0.5)),
        ];
        let found = decoded(&encoded(ALL, level, &samples));
        assert_eq!(found.name(), "level_bytes");
        assert_eq!(found.help(), "Says \"hi\" and \\.");
        assert_eq!(found.kind(), MetricType::Gauge);
        assert_eq!(found.unit(), "bytes");
        let values: Vec<_> = found
            .metric
            .iter()
            .map(|metric| metric.gauge.and_then(|gauge| gauge.value))
            .collect();
        assert_eq!(values, [Some(1_099_511_627_776.0), Some(0.5)]);
        let pairs: Vec<_> = found.metric[0]
            .label
            .iter()
            .map(|pair| (pair.name(), pair.value()))
            .collect();
        assert_eq!(pairs, labels);
        // Nothing is said of what has no samples, nor a unit where there is none.
        assert!(encoded(ALL, level, &[]).is_empty());
        let plain = family("n_total", Kind::Counter);
        let found = decoded(&encoded(ALL, plain, &[sample(&[], Value::Whole(7))]));
        assert_eq!((found.kind(), found.unit), (MetricType::Counter, None));
        let counter = found.metric[0].counter.unwrap();
        assert_eq!(
            (counter.value, counter.created_timestamp),
            (Some(7.0), None)
        );
    }

    /// The buckets of a native histogram as a reader understands them: index and events.
    fn read(histogram: &message::Histogram) -> Vec<(i32, i64)> {
        let mut deltas = histogram.positive_delta.iter();
        let (mut index, mut count) = (0, 0);
        let mut buckets = Vec::new();
        for span in &histogram.positive_span {
            index += span.offset();
            for _ in 0..span.length() {
                count += deltas.next().unwrap();
                buckets.push((index, count));
                index += 1;
            }
        }
        assert_eq!(deltas.next(), None);
        buckets
    }

    #[test]
    fn native_buckets_have_the_edges_of_the_kernels() {
        let second = usize::try_from(ONE_SECOND).unwrap();
        assert_eq!(bucket_edge_seconds(second).to_bits(), 1f64.to_bits());
        for bucket in 1..BUCKETS - 1 {
            let (spans, _) = native(&histogram(&[(bucket, 1)]));
            let upper = (f64::from(spans[0].offset()) / 2f64.powi(SCHEMA)).exp2();
            let expected = bucket_edge_seconds(bucket);
            assert_eq!(upper.to_bits(), expected.to_bits(), "{bucket}");
        }
        let (spans, _) = native(&histogram(&[(BUCKETS - 1, 1)]));
        assert_eq!(spans[0].offset(), 17);
        let (spans, _) = native(&histogram(&[(0, 1)]));
        assert_eq!(spans, []);
    }

    #[test]
    fn native_buckets_hold_every_event() {
        for (buckets, expected, spans) in [
            (vec![], vec![], vec![]),
            (vec![(0, 9)], vec![], vec![]),
            (
                vec![
                    (0, 9),
                    (1, 5),
                    (2, 7),
                    (3, 7),
                    (40, 1),
                    (42, 1 << 40),
                    (89, 3),
                ],
                vec![
                    (-71, 5),
                    (-70, 7),
                    (-69, 7),
                    (-32, 1),
                    (-30, 1 << 40),
                    (17, 3),
                ],
                vec![(-71, 3), (36, 1), (1, 1), (46, 1)],
            ),
            (
                (1..90).map(|bucket| (bucket, 1)).collect(),
                (-71..=17).map(|index| (index, 1)).collect(),
                vec![(-71, 89)],
            ),
        ] {
            let buckets = histogram(&buckets);
            let value = Value::Histogram(Histogram {
                sum_seconds: 1.0,
                buckets: &buckets,
                exemplars: &[],
            });
            let found = decoded(&encoded(ALL, WAIT, &[sample(&[], value)]));
            let found = found.metric[0].histogram.clone().unwrap();
            assert_eq!(read(&found), expected);
            let found_spans: Vec<_> = found
                .positive_span
                .iter()
                .map(|span| (span.offset(), span.length()))
                .collect();
            assert_eq!(found_spans, spans);
            assert_eq!(found.schema(), 2);
            assert_eq!(found.zero_threshold().to_bits(), 2f64.powi(-18).to_bits());
            assert_eq!(found.zero_count(), buckets[0]);
            let total = buckets.iter().sum::<u64>();
            assert_eq!(found.sample_count(), total);
            let native: i64 = expected.iter().map(|(_, count)| count).sum();
            assert_eq!(native.cast_unsigned() + found.zero_count(), total);
            // The classic buckets beside them.
            assert_eq!(found.bucket.len(), 23);
            let (first, last) = (&found.bucket[0], &found.bucket[22]);
            assert_eq!(first.upper_bound().to_bits(), 2f64.powi(-18).to_bits());
            assert_eq!(first.cumulative_count(), buckets[0]);
            assert_eq!(last.upper_bound().to_bits(), 16f64.to_bits());
            assert_eq!(last.cumulative_count(), total - buckets[BUCKETS - 1]);
        }
    }

    #[test]
    fn classic_buckets_can_be_left_out() {
        let buckets = histogram(&[(30, 1)]);
        let value = Value::Histogram(Histogram {
            sum_seconds: 1.0,
            buckets: &buckets,
            exemplars: &[],
        });
        let mut sample = sample(&[], value);
        sample.created = Some(UNIX_EPOCH + Duration::from_millis(1500));
        let found = decoded(&encoded(NATIVE, WAIT, &[sample]));
        let found = found.metric[0].histogram.clone().unwrap();
        assert_eq!(found.bucket, []);
        assert_eq!(read(&found), [(-42, 1)]);
        assert_eq!(
            found.created_timestamp,
            Some(Timestamp {
                seconds: 1,
                nanos: 500_000_000
            })
        );
    }

    #[test]
    fn exemplars_are_in_the_native_histogram_and_in_the_classic_buckets() {
        let exemplar = |bucket, seconds: u64, second| Exemplar {
            bucket,
            labels: vec![("pid", "7".to_owned())],
            duration_ns: seconds * 1_000_000_000,
            time: UNIX_EPOCH + Duration::from_secs(second),
        };
        let buckets = histogram(&[(72, 1), (73, 1), (75, 1), (BUCKETS - 1, 1)]);
        let exemplars = [
            exemplar(72, 1, 40),
            exemplar(73, 2, 50),
            exemplar(75, 2, 30),
            exemplar(BUCKETS - 1, 20, 20),
        ];
        let value = Value::Histogram(Histogram {
            sum_seconds: 25.0,
            buckets: &buckets,
            exemplars: &exemplars,
        });
        let of = |exemplar: &message::Exemplar| {
            assert_eq!(exemplar.label[0].name(), "pid");
            assert_eq!(exemplar.label[0].value(), "7");
            (exemplar.value(), exemplar.timestamp.unwrap().seconds)
        };
        let found = decoded(&encoded(ALL, WAIT, &[sample(&[], value)]));
        let found = found.metric[0].histogram.clone().unwrap();
        // By time.
        let native: Vec<_> = found.exemplars.iter().map(of).collect();
        assert_eq!(native, [(20.0, 20), (2.0, 30), (1.0, 40), (2.0, 50)]);
        let classic: Vec<_> = found
            .bucket
            .iter()
            .filter_map(|bucket| Some((bucket.upper_bound(), of(bucket.exemplar.as_ref()?))))
            .collect();
        let expected = [
            (1.0, (1.0, 40)),
            (2.0, (2.0, 50)),
            (f64::INFINITY, (20.0, 20)),
        ];
        assert_eq!(classic, expected);
        assert_eq!(found.bucket.last().unwrap().cumulative_count(), 4);

        let found = decoded(&encoded(NATIVE, WAIT, &[sample(&[], value)]));
        let found = found.metric[0].histogram.clone().unwrap();
        assert_eq!((found.exemplars.len(), found.bucket.len()), (4, 0));
    }

    #[test]
    fn large_families_are_pieces_of_one_message() {
        let buckets = [u64::MAX >> 8; BUCKETS];
        let value = || {
            Value::Histogram(Histogram {
                sum_seconds: 1.0,
                buckets: &buckets,
                exemplars: &[],
            })
        };
        let huge = "x".repeat(3 * PIECE_BYTES);
        let mut encoded = ALL.family(WAIT);
        for number in 0..200 {
            encoded.add(&sample(&[("number", &number.to_string())], value()));
        }
        encoded.add(&sample(&[("huge", &huge)], value()));
        let pieces = encoded.finish();
        assert!(pieces.len() > 5);
        for piece in &pieces {
            assert!(piece.capacity() <= PIECE_BYTES || piece.len() > PIECE_BYTES);
        }
        let found = decoded(&pieces.concat());
        assert_eq!(found.metric.len(), 201);
        assert_eq!(found.metric[199].label[0].value(), "199");
        assert_eq!(found.unit(), "seconds");
    }
}
