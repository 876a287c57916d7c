//! All metrics, encoded straight from the collector's totals.

use std::{
    borrow::Cow,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Instant, SystemTime},
};

use probes::{Metric, MetricKind};

use super::{
    HttpStats, Parts, Scrape,
    format::Format,
    model::{self, Family, Sample, seconds},
    otlp, protobuf,
    self_metrics::{Reading, SELF_METRICS},
    text::{self, Dialect},
};
use crate::{
    collect::{Collector, Exemplar, Labels, Occasion, Shown, Value, lock},
    config::{Config, PodLabel},
    enrich::names::Owner,
    overhead::Overhead,
    reload,
};

/// The process and device of what found no room.
const OTHER: &str = "other";

/// Values that are encoded together as text. An exposition of many megabytes is never in memory as a whole.
const PART: usize = 8;

/// What the metrics are made of.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) collector: Arc<Mutex<Collector>>,
    pub(crate) http: Arc<HttpStats>,
    pub(crate) procfs: PathBuf,
    pub(crate) shape: Mutex<Arc<Shape>>,
    /// Whether the agent switched the kernel's statistics of program runs on.
    pub(crate) run_stats: bool,
    /// How reading the configuration anew went.
    pub(crate) reloads: Arc<reload::Stats>,
    /// What the agent and its programs take.
    pub(crate) overhead: Arc<Overhead>,
    /// What becomes of the metrics that are sent, if they are.
    pub(crate) otlp: Option<Arc<otlp::Stats>>,
}

/// How values are shown.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) buckets_per_octave: u8,
    /// Whether classic histograms stand beside native ones, too.
    pub(crate) classic_histograms: bool,
    /// Whether counters and histograms say since when they count.
    pub(crate) created: bool,
    /// What the label is called that shows one of pods.
    pub(crate) pod_label: fn(&PodLabel) -> &str,
}

/// Answers a scrape: collects, copies the values, and encodes them as they are read.
#[derive(Debug)]
pub(crate) struct Metrics(pub(crate) Source);

impl Scrape for Metrics {
    fn scrape(&self, format: Format) -> Parts {
        let parts = self.0.parts();
        let shape = self.0.shape();
        let dialect = match format {
            Format::Protobuf => return Box::new(self.messages(parts).into_iter()),
            Format::OpenMetrics => Dialect::OpenMetrics,
            Format::Prometheus => Dialect::Prometheus,
        };
        let encoder = text::Encoder::new(dialect, shape.buckets_per_octave);
        let own = self.own_text(&encoder, dialect).into_bytes();
        let mut size = 0;
        let parts = parts.into_iter().map(move |part| {
            // The next is most likely as large as this one.
            let mut text = String::with_capacity(size);
            part.write(&mut text, &encoder, &shape);
            size = text.len();
            text.into_bytes()
        });
        Box::new(parts.chain(std::iter::once(own)))
    }
}

impl Metrics {
    /// Shows values so from the next scrape on.
    pub(crate) fn reshape(&self, shape: Shape) {
        *lock(&self.0.shape) = Arc::new(shape);
    }

    /// What they are made of.
    pub(crate) fn source(&self) -> &Source {
        &self.0
    }

    /// All families in protobuf. A family's length stands before it, so each is there as a whole before it goes out;
    /// it takes less than the copies of its values, which go as it is made.
    fn messages(&self, parts: Vec<Part>) -> Vec<Vec<u8>> {
        let shape = &*self.0.shape();
        let encoder = protobuf::Encoder {
            classic_buckets_per_octave: shape
                .classic_histograms
                .then_some(shape.buckets_per_octave),
        };
        let mut pieces = Vec::new();
        let mut last: Option<protobuf::Encoded> = None;
        for part in parts {
            if part.is_first {
                pieces.extend(last.take().into_iter().flat_map(protobuf::Encoded::finish));
            }
            let message = last.get_or_insert_with(|| encoder.family(part.family()));
            for copied in &part.samples {
                message.add(&copied.sample(shape));
            }
        }
        pieces.extend(last.into_iter().flat_map(protobuf::Encoded::finish));
        self.0.own(shape.created, |family, samples| {
            let mut message = encoder.family(family);
            for sample in samples {
                message.add(sample);
            }
            pieces.extend(message.finish());
        });
        pieces
    }

    /// The metrics about the agent itself, which come last.
    fn own_text(&self, encoder: &text::Encoder, dialect: Dialect) -> String {
        let mut text = String::new();
        self.0.own(self.0.shape().created, |family, samples| {
            encoder.metadata(&mut text, &family);
            for sample in samples {
                encoder.sample(&mut text, &family, sample);
            }
        });
        if dialect == Dialect::OpenMetrics {
            text.push_str(text::END);
        }
        text
    }
}

impl Shape {
    /// As the configuration has it.
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            buckets_per_octave: config.buckets_per_octave,
            classic_histograms: config.classic_histograms,
            created: config.created,
            pod_label: PodLabel::shown,
        }
    }
}

impl Source {
    fn shape(&self) -> Arc<Shape> {
        Arc::clone(&lock(&self.shape))
    }

    /// Hands over each number that the agent tells about itself.
    pub(crate) fn about_itself(&self, mut each: impl FnMut(&str, &[(&str, &str)], f64)) {
        self.own(false, |family, samples| {
            for sample in samples {
                #[allow(clippy::cast_precision_loss)] // for people
                match sample.value {
                    model::Value::Whole(value) => each(family.name, &sample.labels, value as f64),
                    model::Value::Real(value) => each(family.name, &sample.labels, value),
                    model::Value::Histogram(_) => {}
                }
            }
        });
    }

    /// Hands the metrics about the agent itself over, each that has a value now, and if wanted since when it counts.
    pub(super) fn own(&self, created: bool, mut each: impl FnMut(Family, &[Sample])) {
        let collector = lock(&self.collector);
        let reading = Reading::new(
            &collector,
            &self.http,
            self.otlp.as_deref(),
            &self.procfs,
            self.run_stats,
            &self.reloads,
            &self.overhead,
        );
        for metric in SELF_METRICS {
            let created = created.then(|| reading.begun(metric));
            let values = metric.values(&reading);
            let samples: Vec<Sample> = values
                .iter()
                .map(|(labels, value)| Sample {
                    labels: metric
                        .labels
                        .iter()
                        .copied()
                        .zip(labels.iter().map(String::as_str))
                        .collect(),
                    value: *value,
                    created,
                })
                .collect();
            if !samples.is_empty() {
                each(metric.family(), &samples);
            }
        }
    }

    /// Collects, and copies the values of all workloads.
    pub(super) fn parts(&self) -> Vec<Part> {
        let mut collector = lock(&self.collector);
        if let Err(error) = collector.collect(Instant::now(), Occasion::Scrape) {
            tracing::error!(%error, "values may be stale");
        }
        let mut parts = Vec::new();
        for (index, probe) in collector.probes().iter().enumerate() {
            let has_counted = probe.installed.has_counted();
            for (number, metric) in probe.installed.probe.metrics.iter().enumerate() {
                // What is there now nobody knows of a probe that is off; what was counted stays.
                if metric.kind == MetricKind::Gauge && !probe.installed.is_running() {
                    continue;
                }
                let shown = collector.shown(index, number);
                // A probe that does not run has no values; a zero would look like one. The gpu
                // probe may have run until its last process ended.
                if !has_counted && (probe.installed.probe.deferred.is_none() || shown.is_empty()) {
                    continue;
                }
                let other = |label| metric.labels.contains(&label).then(|| OTHER.to_owned());
                let other = Labels {
                    owner: collector.names().other().owner,
                    process: other("process"),
                    device: other("device"),
                };
                let others = probe
                    .other
                    .iter()
                    .filter(|(sample, value)| sample.metric == number && !value.is_zero())
                    .map(|(sample, value)| Shown {
                        labels: &other,
                        own: sample.labels.clone(),
                        value: Cow::Borrowed(value),
                        begun: collector.started(),
                        exemplars: Vec::new(),
                    });
                let mut part = Part {
                    metric,
                    is_first: true,
                    samples: Vec::new(),
                };
                for shown in shown.into_iter().chain(others) {
                    if part.samples.len() == PART {
                        let next = Part {
                            metric,
                            is_first: false,
                            samples: Vec::with_capacity(PART),
                        };
                        parts.push(std::mem::replace(&mut part, next));
                    }
                    let own = shown.own.into_iter();
                    part.samples.push(Copied {
                        labels: shown.labels.clone(),
                        own: own.map(|(name, value)| (name, value.to_owned())).collect(),
                        value: shown.value.into_owned(),
                        begun: shown.begun,
                        exemplars: shown.exemplars.into_iter().cloned().collect(),
                    });
                }
                parts.push(part);
            }
        }
        parts
    }
}

/// A value as it was at the scrape.
#[derive(Debug)]
pub(super) struct Copied {
    labels: Labels,
    own: Vec<(&'static str, String)>,
    value: Value,
    begun: SystemTime,
    exemplars: Vec<Exemplar>,
}

impl Copied {
    pub(super) fn sample<'a>(&'a self, shape: &'a Shape) -> Sample<'a> {
        let mut labels = workload_labels(&self.labels.owner, shape.pod_label);
        let of_labels = |name, value: &'a Option<String>| Some((name, value.as_deref()?));
        labels.extend(of_labels("process", &self.labels.process));
        labels.extend(of_labels("device", &self.labels.device));
        let own = self.own.iter();
        labels.extend(own.map(|(name, value)| (*name, value.as_str())));
        let value = match &self.value {
            Value::Counter(value) | Value::Gauge(value) => model::Value::Whole(*value),
            Value::CounterNs(ns) => model::Value::Real(seconds(*ns)),
            Value::Histogram(totals) => model::Value::Histogram(model::Histogram {
                sum_seconds: seconds(totals.sum_ns),
                buckets: &totals.buckets,
                exemplars: &self.exemplars,
            }),
        };
        Sample {
            labels,
            value,
            created: shape.created.then_some(self.begun),
        }
    }
}

/// Some of the values of a metric.
#[derive(Debug)]
pub(super) struct Part {
    metric: &'static Metric,
    /// Whether the metric begins with it.
    is_first: bool,
    pub(super) samples: Vec<Copied>,
}

impl Part {
    pub(super) fn family(&self) -> Family {
        Family {
            name: self.metric.name,
            help: self.metric.help,
            kind: self.metric.kind.into(),
        }
    }

    fn write(&self, text: &mut String, encoder: &text::Encoder, shape: &Shape) {
        let family = self.family();
        if self.is_first {
            encoder.metadata(text, &family);
        }
        for copied in &self.samples {
            encoder.sample(text, &family, &copied.sample(shape));
        }
    }
}

/// The labels that every metric of a workload has.
fn workload_labels(owner: &Owner, pod_label: fn(&PodLabel) -> &str) -> Vec<(&str, &str)> {
    let mut labels: Vec<(&str, &str)> = vec![
        ("namespace", &owner.namespace),
        ("pod", &owner.pod),
        ("container", &owner.container),
        ("cgroup", &owner.cgroup),
    ];
    if let Some([kind, name]) = &owner.workload {
        labels.extend([("workload_kind", kind.as_str()), ("workload", name)]);
    }
    let of_pod = owner.pod_labels();
    labels.extend(of_pod.map(|(label, value)| (pod_label(label), value)));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expose::model::Kind;

    #[test]
    fn values_have_their_kind_and_all_labels() {
        let shape = Shape {
            buckets_per_octave: 1,
            classic_histograms: true,
            created: false,
            pod_label: PodLabel::shown,
        };
        let labels = Labels {
            owner: Arc::new(Owner {
                namespace: "shop".to_owned(),
                pod: "web-0".to_owned(),
                container: "app".to_owned(),
                cgroup: "/a".to_owned(),
                workload: Some(["StatefulSet".to_owned(), "web".to_owned()]),
                pod_labels: vec!["x\ny".to_owned()],
                pod_label_names: Arc::new([PodLabel::from("team")]),
            }),
            process: Some("a \"b\"".to_owned()),
            device: Some("0".to_owned()),
        };
        let encoder = text::Encoder::new(Dialect::OpenMetrics, 1);
        let mut text = String::new();
        for (name, kind, value) in [
            ("n_total", Kind::Counter, Value::Counter(u64::MAX)),
            (
                "t_seconds_total",
                Kind::Counter,
                Value::CounterNs(1_500_000_001),
            ),
            ("g_bytes", Kind::Gauge, Value::Gauge(1 << 40)),
        ] {
            let family = Family {
                name,
                help: "Help",
                kind,
            };
            encoder.metadata(&mut text, &family);
            let copied = Copied {
                labels: labels.clone(),
                own: vec![("own", "x".to_owned())],
                value,
                begun: SystemTime::now(),
                exemplars: Vec::new(),
            };
            encoder.sample(&mut text, &family, &copied.sample(&shape));
        }
        let labels = r#"{namespace="shop",pod="web-0",container="app",cgroup="/a",workload_kind="StatefulSet",workload="web",label_team="x\ny",process="a \"b\"",device="0",own="x"}"#;
        assert_eq!(
            text,
            format!(
                "# HELP n Help.\n# TYPE n counter\nn_total{labels} 18446744073709551615\n\
                 # HELP t_seconds Help.\n# TYPE t_seconds counter\n# UNIT t_seconds seconds\n\
                 t_seconds_total{labels} 1.500000001\n\
                 # HELP g_bytes Help.\n# TYPE g_bytes gauge\n# UNIT g_bytes bytes\n\
                 g_bytes{labels} 1099511627776\n"
            )
        );
    }
}
