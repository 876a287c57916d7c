//! All metrics, encoded straight from the collector's totals.

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Instant,
};

use probes::{BUCKETS, BUCKETS_PER_OCTAVE, MetricKind, OwnCounter, bucket_edge_seconds};
use prometheus_client::{
    collector::Collector as Encode,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{HttpStats, Scrape};
use crate::{
    collect::{Collector, Labels, Totals, Value, lock},
    enrich::process,
};

/// The cgroup and device of series that found no free cell.
const OTHER: &str = "other";

/// Answers a scrape: collects, then encodes.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
}

impl Metrics {
    pub(crate) fn new(source: Source) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(source));
        Self { registry }
    }
}

impl Scrape for Metrics {
    fn scrape(&self) -> String {
        let mut text = String::new();
        // Writing to a string fails only if a label or a help text does, and those are ours.
        if let Err(error) = text::encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics could not be encoded");
        }
        text
    }
}

/// What the metrics are made of.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) collector: Arc<Mutex<Collector>>,
    pub(crate) http: Arc<HttpStats>,
    pub(crate) procfs: PathBuf,
    pub(crate) buckets_per_octave: u8,
    /// Whether the agent switched the kernel's statistics of program runs on.
    pub(crate) run_stats: bool,
}

impl Encode for Source {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut collector = lock(&self.collector);
        if let Err(error) = collector.collect(Instant::now()) {
            tracing::error!(%error, "values may be stale");
        }
        self.encode_probes(&collector, &mut encoder)?;
        self.encode_self(&collector, &mut encoder)?;
        drop(collector);
        self.encode_process(&mut encoder)
    }
}

impl Source {
    fn encode_probes(&self, collector: &Collector, encoder: &mut DescriptorEncoder) -> fmt::Result {
        for (index, probe) in collector.probes().iter().enumerate() {
            // A probe that does not run has no values; a zero would look like one.
            if !probe.installed.status.verdict.is_up() {
                continue;
            }
            for (number, metric) in probe.installed.probe.metrics.iter().enumerate() {
                let family = Family::new(metric.name);
                let mut encoder = family.describe(
                    encoder,
                    metric.help,
                    match metric.kind {
                        MetricKind::Histogram => MetricType::Histogram,
                        MetricKind::Counter => MetricType::Counter,
                    },
                )?;
                let has_device = metric.labels.contains(&"device");
                let other = Labels {
                    cgroup: OTHER.to_owned(),
                    device: has_device.then(|| OTHER.to_owned()),
                };
                let others = probe
                    .other
                    .iter()
                    .filter(|(_, value)| !value.is_zero())
                    .map(|sample| (&other, sample));
                let samples = collector
                    .series()
                    .filter(|tracked| tracked.probe == index)
                    .flat_map(|tracked| {
                        tracked
                            .samples
                            .iter()
                            .map(move |sample| (&tracked.labels, sample))
                    })
                    .chain(others)
                    .filter(|(_, (sample, _))| sample.metric == number);
                for (labels, (sample, value)) in samples {
                    self.encode_value(&mut encoder, labels, &sample.labels, value)?;
                }
            }
        }
        Ok(())
    }

    fn encode_value(
        &self,
        encoder: &mut MetricEncoder,
        labels: &Labels,
        own: &[(&'static str, &'static str)],
        value: &Value,
    ) -> fmt::Result {
        // Pods and containers get their names with container attribution.
        let mut set: Vec<(&str, &str)> = vec![
            ("namespace", ""),
            ("pod", ""),
            ("container", ""),
            ("cgroup", &labels.cgroup),
        ];
        set.extend(labels.device.as_deref().map(|device| ("device", device)));
        set.extend(own);
        let mut encoder = encoder.encode_family(&set)?;
        match value {
            Value::Counter(count) => encoder.encode_counter::<NoLabelSet, _, f64>(count, None),
            Value::Histogram(totals) => encoder.encode_histogram::<NoLabelSet>(
                seconds(totals.sum_ns),
                totals.count(),
                &classic_buckets(totals, self.buckets_per_octave),
                None,
            ),
        }
    }

    fn encode_self(&self, collector: &Collector, encoder: &mut DescriptorEncoder) -> fmt::Result {
        gauges(
            encoder,
            "sentry_probe_up",
            "Whether a probe is attached",
            collector.probes().iter().map(|probe| {
                let status = &probe.installed.status;
                let labels = vec![
                    ("probe", status.probe.to_owned()),
                    ("hook", status.hook.to_owned()),
                    ("verdict", status.verdict.name().to_owned()),
                    ("reason", status.reason.code().to_owned()),
                ];
                (labels, u64::from(status.verdict.is_up()))
            }),
        )?;
        let by_probe = |value: &dyn Fn(usize) -> Option<u64>| -> Vec<(OwnLabels, u64)> {
            collector
                .probes()
                .iter()
                .enumerate()
                .filter(|(_, probe)| probe.installed.status.verdict.is_up())
                .filter_map(|(index, probe)| {
                    let name = probe.installed.probe.name.to_owned();
                    Some((vec![("probe", name)], value(index)?))
                })
                .collect()
        };
        let own = |kind| by_probe(&|index| collector.own_counter(index, kind));
        gauges(
            encoder,
            "sentry_series",
            "Series in use: histograms and counters of live workloads",
            by_probe(&|index| Some(collector.series_in_use(index) as u64)),
        )?;
        gauges(
            encoder,
            "sentry_series_limit",
            "Most histograms that all probes together can give to series; see --series.max",
            by_probe(&|_| Some(u64::from(collector.series_limit()))),
        )?;
        counters(
            encoder,
            "sentry_series_overflow_total",
            "Events counted under cgroup=\"other\" because no cell was free",
            own(OwnCounter::SeriesOverflow),
        )?;
        counters(
            encoder,
            "sentry_series_evicted_total",
            "Series of workloads that are gone, dropped before their retention for want of room",
            [(Vec::new(), collector.evicted())],
        )?;
        let stats = collector.run_stats();
        // A program's name begins with its probe's.
        let missed = |probe: &str| -> u64 {
            stats
                .iter()
                .filter(|stats| stats.program.starts_with(probe))
                .map(|stats| stats.misses)
                .sum()
        };
        let mut lost = by_probe(&|index| {
            let probe = collector.probes()[index].installed.probe;
            Some(missed(probe.name))
        });
        lost.push((
            vec![("probe", "cgroup".to_owned())],
            collector.cgroup_events_lost() + missed("cgroup"),
        ));
        counters(
            encoder,
            "sentry_events_lost_total",
            "Events that no program saw, for it was running on their CPU already, or that found their ring full",
            lost,
        )?;
        counters(
            encoder,
            "sentry_connections_untracked_total",
            "Connects whose start found no room and whose duration is unknown",
            own(OwnCounter::ConnectionsUntracked),
        )?;
        counters(
            encoder,
            "sentry_disk_io_untimed_total",
            "Durations missing because a request carried no time stamp",
            own(OwnCounter::Untimed),
        )?;
        counters(
            encoder,
            "sentry_disk_io_untracked_total",
            "Requests without time stamps whose issue found no room",
            own(OwnCounter::IosUntracked),
        )?;
        gauges(
            encoder,
            "sentry_bpf_map_memory_bytes",
            "Kernel memory of a BPF map",
            collector
                .map_memory_bytes
                .iter()
                .map(|(map, bytes)| (vec![("map", map.clone())], *bytes)),
        )?;
        self.encode_run_stats(&stats, encoder)?;
        self.encode_http(encoder)?;
        gauges(
            encoder,
            "sentry_build_info",
            "The agent's version",
            [(
                vec![("version", env!("CARGO_PKG_VERSION").to_owned())],
                1u64,
            )],
        )
    }

    fn encode_run_stats(
        &self,
        stats: &[probes::RunStats],
        encoder: &mut DescriptorEncoder,
    ) -> fmt::Result {
        // Others may have switched them on, and off again: then there are runs. With none, and
        // the statistics off, a zero would be a lie.
        if !self.run_stats && stats.iter().all(|stats| stats.runs == 0) {
            return Ok(());
        }
        let labels = |stats: &probes::RunStats| vec![("program", stats.program.clone())];
        counters(
            encoder,
            "sentry_bpf_program_runs_total",
            "Runs of a BPF program while the kernel's statistics were on",
            stats.iter().map(|stats| (labels(stats), stats.runs)),
        )?;
        float_counters(
            encoder,
            "sentry_bpf_program_run_seconds_total",
            "Time spent in a BPF program while the kernel's statistics were on",
            stats
                .iter()
                .map(|stats| (labels(stats), seconds(stats.run_time_ns))),
        )
    }

    fn encode_http(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        for (name, help, count) in [
            (
                "sentry_http_connections_refused_total",
                "Connections closed at once because too many were open",
                self.http.connections_refused_total(),
            ),
            (
                "sentry_http_scrapes_refused_total",
                "Scrapes refused because too many were under way",
                self.http.scrapes_refused_total(),
            ),
            (
                "sentry_http_timeouts_total",
                "Connections cut off because the client was too slow",
                self.http.timeouts_total(),
            ),
            (
                "sentry_http_accept_errors_total",
                "Connections that the kernel failed to hand over",
                self.http.accept_errors_total(),
            ),
        ] {
            counters(encoder, name, help, [(Vec::new(), count)])?;
        }
        Ok(())
    }

    /// The metrics that Prometheus' client libraries have for every process.
    fn encode_process(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let usage = match process::usage(&self.procfs) {
            Ok(usage) => usage,
            Err(error) => {
                tracing::debug!(%error, "no process metrics");
                return Ok(());
            }
        };
        float_counters(
            encoder,
            "process_cpu_seconds_total",
            "User and system CPU time",
            [(Vec::new(), usage.cpu_seconds)],
        )?;
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Resident memory",
                usage.resident_bytes,
            ),
            (
                "process_virtual_memory_bytes",
                "Virtual memory",
                usage.virtual_bytes,
            ),
            ("process_open_fds", "Open file descriptors", usage.open_fds),
            (
                "process_max_fds",
                "Most file descriptors that may be open",
                usage.max_fds,
            ),
        ] {
            gauges(encoder, name, help, [(Vec::new(), value)])?;
        }
        float_gauge(
            encoder,
            "process_start_time_seconds",
            "When the process started, in seconds since 1970",
            usage.start_time_seconds,
        )
    }
}

impl Value {
    fn is_zero(&self) -> bool {
        match self {
            Self::Histogram(totals) => totals.count() == 0,
            Self::Counter(count) => *count == 0,
        }
    }
}

/// A metric's name as `OpenMetrics` takes it apart: the unit apart, `_total` left to the encoder.
struct Family {
    name: &'static str,
    unit: Option<Unit>,
}

impl Family {
    fn new(full: &'static str) -> Self {
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

    fn describe<'s>(
        &'s self,
        encoder: &'s mut DescriptorEncoder,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        encoder.encode_descriptor(self.name, &format!("{help}."), self.unit.as_ref(), kind)
    }
}

type OwnLabels = Vec<(&'static str, String)>;

fn gauges(
    encoder: &mut DescriptorEncoder,
    name: &'static str,
    help: &str,
    values: impl IntoIterator<Item = (OwnLabels, u64)>,
) -> fmt::Result {
    let family = Family::new(name);
    let mut encoder = family.describe(encoder, help, MetricType::Gauge)?;
    for (labels, value) in values {
        with_labels(&mut encoder, &labels, |encoder| {
            encoder.encode_gauge(&value)
        })?;
    }
    Ok(())
}

fn float_gauge(
    encoder: &mut DescriptorEncoder,
    name: &'static str,
    help: &str,
    value: f64,
) -> fmt::Result {
    Family::new(name)
        .describe(encoder, help, MetricType::Gauge)?
        .encode_gauge(&value)
}

fn counters(
    encoder: &mut DescriptorEncoder,
    name: &'static str,
    help: &str,
    values: impl IntoIterator<Item = (OwnLabels, u64)>,
) -> fmt::Result {
    let family = Family::new(name);
    let mut encoder = family.describe(encoder, help, MetricType::Counter)?;
    for (labels, value) in values {
        with_labels(&mut encoder, &labels, |encoder| {
            encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
        })?;
    }
    Ok(())
}

fn float_counters(
    encoder: &mut DescriptorEncoder,
    name: &'static str,
    help: &str,
    values: impl IntoIterator<Item = (OwnLabels, f64)>,
) -> fmt::Result {
    let family = Family::new(name);
    let mut encoder = family.describe(encoder, help, MetricType::Counter)?;
    for (labels, value) in values {
        with_labels(&mut encoder, &labels, |encoder| {
            encoder.encode_counter::<NoLabelSet, _, f64>(&value, None)
        })?;
    }
    Ok(())
}

fn with_labels(
    encoder: &mut MetricEncoder,
    labels: &OwnLabels,
    encode: impl FnOnce(&mut MetricEncoder) -> fmt::Result,
) -> fmt::Result {
    // An empty set would be written as `{}`.
    if labels.is_empty() {
        return encode(encoder);
    }
    fn family<'s, S: EncodeLabelSet>(
        encoder: &'s mut MetricEncoder,
        labels: &'s S,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        encoder.encode_family(labels)
    }
    encode(&mut family(encoder, labels)?)
}

#[allow(clippy::cast_precision_loss)] // exact up to 104 days, and to a ns in 10^16 beyond
fn seconds(ns: u64) -> f64 {
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
            assert_eq!(buckets[edges - 2].0, 16.0);
            assert_eq!(buckets[edges - 1], (f64::INFINITY, 90));
        }
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
