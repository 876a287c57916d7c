//! All metrics, encoded straight from the collector's totals.

use std::{
    borrow::Cow,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Instant,
};

use probes::{BUCKETS, BUCKETS_PER_OCTAVE, Metric, MetricKind, bucket_edge_seconds};
use prometheus_client::{
    collector::Collector as Encode,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{
    HttpStats, Parts, Scrape,
    self_metrics::{Reading, SELF_METRICS},
};
use crate::{
    collect::{Collector, Labels, Occasion, Totals, Value, lock},
    enrich::names::Owner,
};

/// The process and device of what found no room.
const OTHER: &str = "other";

/// Values that are encoded together. An exposition of many megabytes is never in memory as a whole.
const PART: usize = 8;

/// What the metrics are made of.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) collector: Arc<Mutex<Collector>>,
    pub(crate) http: Arc<HttpStats>,
    pub(crate) procfs: PathBuf,
    pub(crate) shape: Arc<Shape>,
    /// Whether the agent switched the kernel's statistics of program runs on.
    pub(crate) run_stats: bool,
}

/// How values are shown.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) buckets_per_octave: u8,
    /// Names of the labels that show those of pods.
    pub(crate) pod_labels: Vec<String>,
}

/// Answers a scrape: collects, copies the values, and encodes them as they are read.
#[derive(Debug)]
pub(crate) struct Metrics {
    source: Arc<Source>,
    /// What the agent tells about itself.
    own: Registry,
}

impl Metrics {
    pub(crate) fn new(source: Source) -> Self {
        let source = Arc::new(source);
        let mut own = Registry::default();
        own.register_collector(Box::new(Arc::clone(&source)));
        Self { source, own }
    }
}

impl Scrape for Metrics {
    fn scrape(&self) -> Parts {
        let parts = self.source.parts();
        let parts = parts.into_iter().map(|part| {
            let mut registry = Registry::default();
            registry.register_collector(Box::new(part));
            encoded(&registry)
        });
        let own = encoded(&self.own) + "# EOF\n";
        Box::new(parts.chain(std::iter::once(own)))
    }
}

fn encoded(registry: &Registry) -> String {
    let mut text = String::new();
    // Writing to a string fails only if a label or a help text does, and those are ours.
    if let Err(error) = text::encode_registry(&mut text, registry) {
        tracing::error!(%error, "metrics could not be encoded");
    }
    text
}

/// The metrics about the agent itself.
impl Encode for Source {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let collector = lock(&self.collector);
        let reading = Reading::new(&collector, &self.http, &self.procfs, self.run_stats);
        SELF_METRICS
            .iter()
            .try_for_each(|metric| metric.encode(&reading, &mut encoder))
    }
}

impl Source {
    /// Collects, and copies the values of all workloads.
    fn parts(&self) -> Vec<Part> {
        let mut collector = lock(&self.collector);
        if let Err(error) = collector.collect(Instant::now(), Occasion::Scrape) {
            tracing::error!(%error, "values may be stale");
        }
        let mut parts = Vec::new();
        for (index, probe) in collector.probes().iter().enumerate() {
            let up = probe.installed.status.verdict.is_up();
            for (number, metric) in probe.installed.probe.metrics.iter().enumerate() {
                let shown = collector.shown(index, number);
                // A probe that does not run has no values; a zero would look like one. The gpu
                // probe may have run until its last process ended.
                if !up && (probe.installed.probe.deferred.is_none() || shown.is_empty()) {
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
                    .map(|(sample, value)| (&other, sample.labels.clone(), Cow::Borrowed(value)));
                let mut part = Part {
                    metric,
                    samples: Vec::new(),
                    shape: Arc::clone(&self.shape),
                };
                for (labels, own, value) in shown.into_iter().chain(others) {
                    if part.samples.len() == PART {
                        let next = Part {
                            samples: Vec::with_capacity(PART),
                            shape: Arc::clone(&self.shape),
                            ..part
                        };
                        parts.push(std::mem::replace(&mut part, next));
                    }
                    let own = own.into_iter();
                    part.samples.push(Copied {
                        labels: labels.clone(),
                        own: own.map(|(name, value)| (name, value.to_owned())).collect(),
                        value: value.into_owned(),
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
struct Copied {
    labels: Labels,
    own: Vec<(&'static str, String)>,
    value: Value,
}

/// Some of the values of a metric.
#[derive(Debug)]
struct Part {
    metric: &'static Metric,
    samples: Vec<Copied>,
    shape: Arc<Shape>,
}

impl Encode for Part {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let kind = match self.metric.kind {
            MetricKind::Histogram => MetricType::Histogram,
            MetricKind::Counter | MetricKind::CounterSeconds => MetricType::Counter,
            MetricKind::Gauge => MetricType::Gauge,
        };
        let family = Family::new(self.metric.name);
        let mut encoder = family.describe(&mut encoder, self.metric.help, kind)?;
        for Copied { labels, own, value } in &self.samples {
            let own: Vec<_> = own
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            self.shape.encode(&mut encoder, labels, &own, value)?;
        }
        Ok(())
    }
}

impl Shape {
    fn encode(
        &self,
        encoder: &mut MetricEncoder,
        labels: &Labels,
        own: &[(&'static str, &str)],
        value: &Value,
    ) -> fmt::Result {
        let mut set = workload_labels(&labels.owner, &self.pod_labels);
        set.extend(labels.process.as_deref().map(|name| ("process", name)));
        set.extend(labels.device.as_deref().map(|device| ("device", device)));
        set.extend(own);
        let mut encoder = encoder.encode_family(&set)?;
        match value {
            Value::Counter(count) => encoder.encode_counter::<NoLabelSet, _, f64>(count, None),
            Value::CounterNs(ns) => {
                encoder.encode_counter::<NoLabelSet, _, f64>(&seconds(*ns), None)
            }
            Value::Gauge(value) => encoder.encode_gauge(value),
            Value::Histogram(totals) => encoder.encode_histogram::<NoLabelSet>(
                seconds(totals.sum_ns),
                totals.count(),
                &classic_buckets(totals, self.buckets_per_octave),
                None,
            ),
        }
    }
}

/// The labels that every metric of a workload has.
fn workload_labels<'a>(owner: &'a Owner, pod_labels: &'a [String]) -> Vec<(&'a str, &'a str)> {
    let mut labels: Vec<(&str, &str)> = vec![
        ("namespace", &owner.namespace),
        ("pod", &owner.pod),
        ("container", &owner.container),
        ("cgroup", &owner.cgroup),
    ];
    if let Some([kind, name]) = &owner.workload {
        labels.extend([("workload_kind", kind.as_str()), ("workload", name)]);
    }
    let names = pod_labels.iter().map(String::as_str);
    labels.extend(names.zip(owner.pod_labels.iter().map(String::as_str)));
    labels
}

/// A metric's name as `OpenMetrics` takes it apart: the unit apart, `_total` left to the encoder.
pub(super) struct Family {
    name: &'static str,
    unit: Option<Unit>,
}

impl Family {
    pub(super) fn new(full: &'static str) -> Self {
        let name = full.strip_suffix("_total").unwrap_or(full);
        for (suffix, unit) in [("_seconds", Unit::Seconds), ("_bytes", Unit::Bytes)] {
            if let Some(name) = name.strip_suffix(suffix) {
                return Self {
                    name,
                    unit: Some(unit),
                };
            }
        }
        Self { name, unit: None }
    }

    pub(super) fn describe<'s>(
        &'s self,
        encoder: &'s mut DescriptorEncoder,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        encoder.encode_descriptor(self.name, &format!("{help}."), self.unit.as_ref(), kind)
    }
}

#[allow(clippy::cast_precision_loss)] // exact up to 104 days, and to a ns in 10^16 beyond
pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// The histogram with fewer edges: every 4th at one bucket an octave, and the last above all.
fn classic_buckets(totals: &Totals, per_octave: u8) -> Vec<(f64, u64)> {
    let step = BUCKETS_PER_OCTAVE / usize::from(per_octave).clamp(1, BUCKETS_PER_OCTAVE);
    let mut buckets = Vec::with_capacity(BUCKETS / step + 2);
    let mut count = 0;
    for (bucket, events) in totals.buckets.iter().enumerate() {
        count += events;
        if bucket % step == 0 || bucket == BUCKETS - 1 {
            buckets.push((bucket_edge_seconds(bucket), count));
            count = 0;
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals() -> Totals {
        let mut totals = Totals::default();
        for (bucket, events) in totals.buckets.iter_mut().enumerate() {
            *events = bucket as u64 + 1;
        }
        totals
    }

    #[test]
    fn fewer_buckets_lose_no_event() {
        let all = totals().count();
        for (per_octave, edges) in [(1, 24), (2, 46), (4, 90)] {
            let buckets = classic_buckets(&totals(), per_octave);
            assert_eq!(buckets.len(), edges);
            assert_eq!(buckets.iter().map(|(_, events)| events).sum::<u64>(), all);
            assert_eq!(buckets[0], (2f64.powi(-18), 1));
            assert_eq!(buckets[edges - 2].0.to_bits(), 16f64.to_bits());
            assert_eq!(buckets[edges - 1], (f64::INFINITY, 90));
        }
    }

    /// One of each kind, of a process.
    #[derive(Debug)]
    struct Kinds(Shape);

    impl Encode for Kinds {
        fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
            let labels = Labels {
                owner: Arc::new(Owner {
                    namespace: "shop".to_owned(),
                    pod: "web-0".to_owned(),
                    container: "app".to_owned(),
                    cgroup: "/a".to_owned(),
                    workload: Some(["StatefulSet".to_owned(), "web".to_owned()]),
                    pod_labels: vec!["x\ny".to_owned()],
                }),
                process: Some("a \"b\"".to_owned()),
                device: Some("0".to_owned()),
            };
            for (name, kind, value) in [
                ("n_total", MetricType::Counter, Value::Counter(u64::MAX)),
                (
                    "t_seconds_total",
                    MetricType::Counter,
                    Value::CounterNs(1_500_000_001),
                ),
                ("g_bytes", MetricType::Gauge, Value::Gauge(1 << 40)),
            ] {
                let family = Family::new(name);
                let mut encoder = family.describe(&mut encoder, "Help", kind)?;
                self.0
                    .encode(&mut encoder, &labels, &[("own", "x")], &value)?;
            }
            Ok(())
        }
    }

    #[test]
    fn values_have_their_kind_and_all_labels() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Kinds(Shape {
            buckets_per_octave: 1,
            pod_labels: vec!["label_team".to_owned()],
        })));
        let mut text = String::new();
        text::encode(&mut text, &registry).unwrap();
        let labels = r#"{namespace="shop",pod="web-0",container="app",cgroup="/a",workload_kind="StatefulSet",workload="web",label_team="x\ny",process="a \"b\"",device="0",own="x"}"#;
        assert_eq!(
            text,
            format!(
                "# HELP n Help.\n# TYPE n counter\nn_total{labels} 18446744073709551615\n\
                 # HELP t_seconds Help.\n# TYPE t_seconds counter\n# UNIT t_seconds seconds\n\
                 t_seconds_total{labels} 1.500000001\n\
                 # HELP g_bytes Help.\n# TYPE g_bytes gauge\n# UNIT g_bytes bytes\n\
                 g_bytes{labels} 1099511627776\n# EOF\n"
            )
        );
    }

    #[test]
    fn names_part_into_family_and_unit() {
        let family = Family::new("sentry_disk_bytes_total");
        assert_eq!(family.name, "sentry_disk");
        assert!(matches!(family.unit, Some(Unit::Bytes)));
        let family = Family::new("sentry_tcp_connect_failures_total");
        assert_eq!(family.name, "sentry_tcp_connect_failures");
        assert!(family.unit.is_none());
    }
}
