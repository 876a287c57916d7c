//! What OpenTelemetry calls our metrics and labels: the one table, of which `docs/otlp.md` is made as well.

/// A metric by the name that OpenTelemetry's users look for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    /// On `/metrics`.
    pub(super) ours: &'static str,
    /// Here.
    pub(super) theirs: &'static str,
    /// By UCUM, with what is counted in braces.
    pub(super) unit: &'static str,
    pub(super) instrument: Instrument,
    /// The labels besides those of workloads, each with the attribute that has its value.
    pub(super) attributes: &'static [(&'static str, &'static str)],
}

/// How the values of a metric come together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instrument {
    /// As its kind on `/metrics` says.
    AsKind,
    /// A gauge of ours that the conventions have as a sum that may fall.
    UpDown,
}

/// The labels of workloads. A container outside of a pod has [`CONTAINER_NAME`], a workload's kind and name are in
/// [`WORKLOADS`], and labels of pods follow [`POD_LABEL`].
pub(super) const WORKLOAD: [(&str, &str); 4] = [
    ("namespace", "k8s.namespace.name"),
    ("pod", "k8s.pod.name"),
    ("container", "k8s.container.name"),
    ("cgroup", "sentry.cgroup"),
];

/// The name that its runtime has for a container of no pod.
pub(super) const CONTAINER_NAME: &str = "container.name";

/// Kinds of workloads whose name has an attribute of its own. Another's kind and name are [`OTHER_WORKLOAD`].
pub(super) const WORKLOADS: [(&str, &str); 6] = [
    ("CronJob", "k8s.cronjob.name"),
    ("DaemonSet", "k8s.daemonset.name"),
    ("Deployment", "k8s.deployment.name"),
    ("Job", "k8s.job.name"),
    ("ReplicaSet", "k8s.replicaset.name"),
    ("StatefulSet", "k8s.statefulset.name"),
];

pub(super) const OTHER_WORKLOAD: [&str; 2] = ["sentry.workload.kind", "sentry.workload.name"];

/// Before the name of a pod's label: `k8s.pod.label.app`.
pub(crate) const POD_LABEL: &str = "k8s.pod.label.";

const NONE: &[(&str, &str)] = &[];
const DISK: &[(&str, &str)] = &[
    ("device", "system.device"),
    ("operation", "disk.io.direction"),
];
const ROLE: &[(&str, &str)] = &[("role", "sentry.tcp.role")];
const REASON: &[(&str, &str)] = &[("reason", "error.type")];
const GPU_PROCESS: &[(&str, &str)] = &[PROCESS];
const GPU_DEVICE: &[(&str, &str)] = &[PROCESS, ("device", "sentry.gpu.device")];
const PROCESS: (&str, &str) = ("process", "sentry.gpu.process");
const CALL: (&str, &str) = ("call", "sentry.gpu.call");
const PROBE: &[(&str, &str)] = &[("probe", "sentry.probe")];
const PROGRAM: &[(&str, &str)] = &[("program", "sentry.bpf.program")];

const fn name(
    ours: &'static str,
    theirs: &'static str,
    unit: &'static str,
    attributes: &'static [(&'static str, &'static str)],
) -> Name {
    Name {
        ours,
        theirs,
        unit,
        instrument: Instrument::AsKind,
        attributes,
    }
}

const fn up_down(ours: &'static str, theirs: &'static str, unit: &'static str) -> Name {
    Name {
        ours,
        theirs,
        unit,
        instrument: Instrument::UpDown,
        attributes: NONE,
    }
}

/// All metrics.
#[rustfmt::skip]
pub(super) const NAMES: &[Name] = &[
    name("sentry_tcp_handshake_duration_seconds", "sentry.tcp.handshake.duration", "s", ROLE),
    name("sentry_tcp_connect_failures_total", "sentry.tcp.connect.failures", "{connect}", REASON),
    name("sentry_tcp_handshakes_unmeasured_total", "sentry.tcp.handshakes.unmeasured", "{handshake}", ROLE),
    name("sentry_tcp_syn_retransmits_total", "sentry.tcp.syn.retransmits", "{segment}", NONE),
    name("sentry_disk_io_duration_seconds", "sentry.disk.io.duration", "s", DISK),
    name("sentry_disk_device_duration_seconds", "sentry.disk.device.duration", "s", DISK),
    name("sentry_disk_bytes_total", "sentry.disk.bytes", "By", DISK),
    name("sentry_disk_errors_total", "sentry.disk.errors", "{request}",
        &[("device", "system.device"), ("operation", "disk.io.direction"), ("error", "error.type")]),
    name("sentry_gpu_launches_total", "sentry.gpu.launches", "{launch}", &[PROCESS, ("api", "sentry.gpu.api")]),
    name("sentry_gpu_starved_seconds_total", "sentry.gpu.starved", "s", GPU_DEVICE),
    name("sentry_gpu_idle_seconds_total", "sentry.gpu.idle", "s", GPU_DEVICE),
    name("sentry_gpu_starvation_gap_seconds", "sentry.gpu.starvation.gap", "s", GPU_DEVICE),
    name("sentry_gpu_sync_wait_seconds_total", "sentry.gpu.sync.wait", "s", &[PROCESS, CALL]),
    name("sentry_gpu_syncs_total", "sentry.gpu.syncs", "{call}",
        &[PROCESS, CALL, ("waited", "sentry.gpu.waited")]),
    name("sentry_gpu_memcpy_bytes_total", "sentry.gpu.memcpy", "By", &[PROCESS, ("kind", "sentry.gpu.memcpy.kind")]),
    name("sentry_gpu_allocated_bytes", "sentry.gpu.allocated", "By", GPU_PROCESS),
    name("sentry_gpu_errors_total", "sentry.gpu.errors", "{call}", &[PROCESS, CALL, ("code", "error.type")]),
    name("sentry_gpu_processes", "sentry.gpu.processes", "{process}", GPU_PROCESS),
    name("sentry_probe_up", "sentry.probe.up", "{probe}", &[
        ("probe", "sentry.probe"), ("hook", "sentry.probe.hook"), ("verdict", "sentry.probe.verdict"),
        ("reason", "sentry.probe.reason"),
    ]),
    name("sentry_series", "sentry.series", "{series}", PROBE),
    name("sentry_series_limit", "sentry.series.limit", "{series}", PROBE),
    name("sentry_series_overflow_total", "sentry.series.overflow", "{event}", PROBE),
    name("sentry_exemplar_threshold_seconds", "sentry.exemplar.threshold", "s", PROBE),
    name("sentry_exemplars_lost_total", "sentry.exemplars.lost", "{event}", PROBE),
    name("sentry_series_evicted_total", "sentry.series.evicted", "{series}", NONE),
    name("sentry_events_lost_total", "sentry.events.lost", "{event}", PROBE),
    name("sentry_connections_untracked_total", "sentry.connections.untracked", "{connect}", PROBE),
    name("sentry_disk_io_untimed_total", "sentry.disk.io.untimed", "{request}", PROBE),
    name("sentry_disk_io_untracked_total", "sentry.disk.io.untracked", "{request}", PROBE),
    name("sentry_gpu_calls_untracked_total", "sentry.gpu.calls.untracked", "{call}", NONE),
    name("sentry_gpu_attach_errors_total", "sentry.gpu.attach.errors", "{file}", REASON),
    name("sentry_kubernetes_watch_up", "sentry.kubernetes.watch.up", "{watch}", NONE),
    name("sentry_kubernetes_last_sync_timestamp_seconds", "sentry.kubernetes.last_sync.timestamp", "s", NONE),
    name("sentry_kubernetes_pods", "sentry.kubernetes.pods", "{pod}", NONE),
    name("sentry_kubernetes_watch_errors_total", "sentry.kubernetes.watch.errors", "{error}", REASON),
    name("sentry_bpf_map_memory_bytes", "sentry.bpf.map.memory", "By", &[("map", "sentry.bpf.map")]),
    name("sentry_bpf_program_runs_total", "sentry.bpf.program.runs", "{run}", PROGRAM),
    name("sentry_bpf_program_run_seconds_total", "sentry.bpf.program.run", "s", PROGRAM),
    name("sentry_overhead_ratio", "sentry.overhead", "1", &[
        ("probe", "sentry.probe"), ("basis", "sentry.overhead.basis"),
    ]),
    name("sentry_overhead_budget_ratio", "sentry.overhead.budget", "1", NONE),
    name("sentry_overhead_shed", "sentry.overhead.shed", "{step}", &[
        ("probe", "sentry.probe"), ("step", "sentry.overhead.step"),
    ]),
    name("sentry_probe_sampled_ratio", "sentry.probe.sampled", "1", PROBE),
    name("sentry_http_connections_refused_total", "sentry.http.connections.refused", "{connection}", NONE),
    name("sentry_http_scrapes_refused_total", "sentry.http.scrapes.refused", "{scrape}", NONE),
    name("sentry_http_timeouts_total", "sentry.http.timeouts", "{connection}", NONE),
    name("sentry_http_accept_errors_total", "sentry.http.accept.errors", "{error}", NONE),
    name("sentry_http_tls_handshake_errors_total", "sentry.http.tls.handshake.errors", "{connection}", REASON),
    name("sentry_http_authentication_failures_total", "sentry.http.authentication.failures", "{request}", REASON),
    name("sentry_http_requests_limited_total", "sentry.http.requests.limited", "{request}", NONE),
    name("sentry_config_last_reload_successful", "sentry.config.last_reload.successful", "{reload}", NONE),
    name("sentry_config_last_reload_success_timestamp_seconds", "sentry.config.last_reload.success.timestamp", "s", NONE),
    name("sentry_web_config_last_reload_successful", "sentry.web.config.last_reload.successful", "{reload}", NONE),
    name("sentry_web_config_last_reload_success_timestamp_seconds", "sentry.web.config.last_reload.success.timestamp",
        "s", NONE),
    name("sentry_web_config_reload_failures_total", "sentry.web.config.reload.failures", "{reload}", NONE),
    name("sentry_otlp_exports_total", "sentry.otlp.exports", "{export}", &[("outcome", "sentry.otlp.outcome")]),
    name("sentry_otlp_dropped_data_points_total", "sentry.otlp.dropped.data_points", "{data_point}", NONE),
    name("sentry_otlp_last_success_timestamp_seconds", "sentry.otlp.last_success.timestamp", "s", NONE),
    name("sentry_build_info", "sentry.build.info", "{build}", &[("version", "service.version")]),
    name("process_cpu_seconds_total", "process.cpu.time", "s", NONE),
    up_down("process_resident_memory_bytes", "process.memory.usage", "By"),
    up_down("process_virtual_memory_bytes", "process.memory.virtual", "By"),
    up_down("process_open_fds", "process.unix.file_descriptor.count", "{file_descriptor}"),
    name("process_max_fds", "sentry.process.file_descriptor.limit", "{file_descriptor}", NONE),
    name("process_start_time_seconds", "sentry.process.start_time", "s", NONE),
];

/// The name of a metric; its own where the table has none, which no test lets pass.
pub(super) fn of(ours: &'static str) -> Name {
    let known = NAMES.iter().find(|name| name.ours == ours);
    known.copied().unwrap_or(name(ours, ours, "", NONE))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write;

    use probes::PROBES;

    use super::*;
    use crate::expose::{documentation, model::Kind, self_metrics::SELF_METRICS};

    /// Name, kind and own labels of all metrics.
    fn metrics() -> Vec<(&'static str, Kind, &'static [&'static str])> {
        let workloads = PROBES
            .iter()
            .flat_map(|probe| probe.metrics)
            .map(|metric| (metric.name, metric.kind.into(), metric.labels));
        let own = SELF_METRICS.iter();
        workloads
            .chain(own.map(|metric| (metric.name, metric.kind, metric.labels)))
            .collect()
    }

    #[test]
    fn every_metric_and_label_has_its_name() {
        let metrics = metrics();
        for (ours, _, labels) in &metrics {
            let found: Vec<_> = NAMES.iter().filter(|name| name.ours == *ours).collect();
            let [name] = found[..] else {
                panic!("{} names for {ours}", found.len());
            };
            let named: Vec<_> = name.attributes.iter().map(|(label, _)| *label).collect();
            assert_eq!(named, *labels, "{ours}");
            let attributes: BTreeSet<_> = name.attributes.iter().map(|(_, to)| to).collect();
            assert_eq!(attributes.len(), labels.len(), "{ours}");
        }
        assert_eq!(metrics.len(), NAMES.len());
        let names: BTreeSet<_> = NAMES.iter().map(|name| name.theirs).collect();
        assert_eq!(names.len(), NAMES.len(), "two metrics of one name");
    }

    impl Name {
        /// What a reader finds in the table of `docs/otlp.md`.
        fn shape(&self, kind: Kind) -> &'static str {
            match (kind, self.instrument) {
                (Kind::Counter, _) => "Sum, monotonic",
                (Kind::Gauge, Instrument::UpDown) => "Sum",
                (Kind::Gauge, Instrument::AsKind) => "Gauge",
                (Kind::Histogram, _) => "ExponentialHistogram",
            }
        }
    }

    /// What Prometheus makes of a name: <https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/>.
    fn in_prometheus(name: &Name, kind: Kind) -> String {
        let mut text = name.theirs.replace('.', "_");
        let unit = match name.unit {
            "s" => "seconds",
            "By" => "bytes",
            "1" if kind == Kind::Gauge => "ratio",
            _ => "",
        };
        if !unit.is_empty() && !text.split('_').any(|part| part == unit) {
            write!(text, "_{unit}").unwrap();
        }
        if kind == Kind::Counter {
            text += "_total";
        }
        text
    }

    #[test]
    fn prometheus_makes_our_names_of_them() {
        for (ours, kind, _) in metrics() {
            if ours.starts_with("sentry_") {
                assert_eq!(in_prometheus(&of(ours), kind), ours);
            }
        }
    }

    #[test]
    fn the_table_is_documented() {
        let mut text = String::from(
            "| On `/metrics` | OpenTelemetry | Type | Unit | Attributes |\n| --- | --- | --- | --- | --- |\n",
        );
        for (ours, kind, _) in metrics() {
            let name = of(ours);
            let attributes = name.attributes.iter();
            let attributes: Vec<_> = attributes
                .map(|(label, to)| format!("`{label}` → `{to}`"))
                .collect();
            writeln!(
                text,
                "| `{ours}` | `{}` | {} | `{}` | {} |",
                name.theirs,
                name.shape(kind),
                name.unit,
                attributes.join(", ")
            )
            .unwrap();
        }
        documentation::hold_between("docs/otlp.md", "<!-- names -->", "<!-- /names -->", &text);
    }
}
