//! What the agent tells about itself: one list, from which `/metrics` and its documentation derive.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use probes::{OwnCounter, RunStats, gpu::Gpu};

use super::{
    HttpStats, WebConfigReads,
    model::{Family, Kind, Value, seconds},
    otlp::{self, Outcome},
};
use crate::{
    collect::Collector,
    enrich::{
        kubernetes::{Reason, WatchStats},
        process::{self, Usage},
    },
    overhead::{Overhead, Report, Share},
    reload,
};

/// A metric about the agent.
pub(crate) struct SelfMetric {
    /// Full name with unit and, for a counter, `_total`.
    pub(crate) name: &'static str,
    /// Help text, without the full stop.
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    pub(crate) labels: &'static [&'static str],
    /// Where the number comes from.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the documentation"))]
    pub(crate) source: &'static str,
    /// No values hide the metric.
    read: fn(&Reading) -> Values,
}

/// Values with those of the labels.
type Values = Vec<(Vec<String>, Value<'static>)>;

/// All that is read for one scrape.
pub(crate) struct Reading<'a> {
    collector: &'a Collector,
    http: &'a HttpStats,
    otlp: Option<&'a otlp::Stats>,
    usage: Option<Usage>,
    run_stats: Vec<RunStats>,
    /// Whether the runs were counted; else a zero would be a lie.
    run_stats_on: bool,
    reloads: &'a reload::Stats,
    overhead: Report,
}

impl<'a> Reading<'a> {
    /// Reads. `run_stats` says whether the agent switched the kernel's statistics on.
    pub(crate) fn new(
        collector: &'a Collector,
        http: &'a HttpStats,
        otlp: Option<&'a otlp::Stats>,
        procfs: &Path,
        run_stats: bool,
        reloads: &'a reload::Stats,
        overhead: &Overhead,
    ) -> Self {
        let stats = collector.run_stats();
        Self {
            // Others may have switched them on, and off again: then there are runs.
            run_stats_on: run_stats
                || (overhead.run_stats_are_whole() && stats.iter().any(|stats| stats.runs > 0)),
            collector,
            http,
            otlp,
            usage: process::usage(procfs)
                .inspect_err(|error| tracing::debug!(%error, "no process metrics"))
                .ok(),
            run_stats: stats,
            reloads,
            overhead: overhead.report(),
        }
    }

    /// When a metric began to count: with the agent, but for what the kernel has counted since the process began.
    pub(crate) fn begun(&self, metric: &SelfMetric) -> SystemTime {
        let usage = self
            .usage
            .filter(|_| metric.name == "process_cpu_seconds_total");
        usage.map_or(self.collector.started(), |usage| {
            UNIX_EPOCH + Duration::from_secs_f64(usage.start_time_seconds.max(0.0))
        })
    }

    /// A value of each probe that runs, or has until it was turned off.
    fn by_probe(&self, value: impl Fn(usize) -> Option<u64>) -> Values {
        self.collector
            .probes()
            .iter()
            .enumerate()
            .filter(|(_, probe)| probe.installed.has_counted())
            .filter_map(|(index, probe)| {
                let name = probe.installed.probe.name.to_owned();
                Some((vec![name], Value::Whole(value(index)?)))
            })
            .collect()
    }

    fn own(&self, kind: OwnCounter) -> Values {
        self.by_probe(|index| self.collector.own_counter(index, kind))
    }

    /// Events that the programs of a probe missed. A program's name begins with its probe's.
    fn missed(&self, probe: &str) -> u64 {
        let stats = self.run_stats.iter();
        stats
            .filter(|stats| stats.program.starts_with(probe))
            .map(|stats| stats.misses)
            .sum()
    }

    fn by_program(&self, value: impl Fn(&RunStats) -> Value<'static>) -> Values {
        self.run_stats
            .iter()
            .filter(|_| self.run_stats_on)
            .map(|stats| (vec![stats.program.clone()], value(stats)))
            .collect()
    }

    /// A value of the watch of pods, where there is one.
    fn watch(&self, value: impl Fn(&WatchStats) -> Option<Value<'static>>) -> Values {
        let watch = self.collector.names().watch();
        let value = watch.and_then(|watch| value(&watch.stats()));
        value.into_iter().map(|value| (Vec::new(), value)).collect()
    }

    /// A value of the file of `--web.config.file`, where there is one.
    fn web_config(&self, value: impl Fn(WebConfigReads) -> u64) -> Values {
        let reads = self.http.web_config();
        reads.map_or_else(Vec::new, |reads| one(value(reads)))
    }

    /// Values of such a file's doing by reason, where there is one.
    fn by_reason(&self, counts: impl Iterator<Item = (&'static str, u64)>) -> Values {
        counts
            .filter(|_| self.http.web_config().is_some())
            .map(|(reason, count)| (vec![reason.to_owned()], Value::Whole(count)))
            .collect()
    }

    /// A value of the metrics that are sent, if they are.
    fn otlp(&self, value: impl Fn(&otlp::Stats) -> Option<u64>) -> Values {
        let value = self.otlp.and_then(value);
        value.map_or_else(Vec::new, one)
    }

    /// A value of what each probe takes, where that is looked at.
    fn shares(&self, value: impl Fn(&Share) -> Value<'static>) -> Values {
        let shares = self.overhead.probes.iter();
        shares
            .map(|share| (vec![share.probe.to_owned()], value(share)))
            .collect()
    }

    fn usage(&self, value: impl Fn(&Usage) -> Value<'static>) -> Values {
        self.usage
            .iter()
            .map(|usage| (Vec::new(), value(usage)))
            .collect()
    }
}

/// A value without labels.
fn one(count: u64) -> Values {
    vec![(Vec::new(), Value::Whole(count))]
}

const PROBE: &[&str] = &["probe"];
const PROGRAM: &[&str] = &["program"];

/// All of them, in the order of `/metrics`.
pub(crate) const SELF_METRICS: &[SelfMetric] = &[
    SelfMetric {
        name: "sentry_probe_up",
        help: "Whether a probe is attached",
        source: "the agent: what became of attaching the programs",
        kind: Kind::Gauge,
        labels: &["probe", "hook", "verdict", "reason"],
        read: |reading| {
            let statuses = reading.collector.probes().iter();
            statuses
                .map(|probe| &probe.installed.status)
                .map(|status| {
                    let verdict = status.verdict.name();
                    let labels = [status.probe, status.hook, verdict, status.reason.code()];
                    let up = Value::Whole(u64::from(status.verdict.is_up()));
                    (labels.map(str::to_owned).to_vec(), up)
                })
                .collect()
        },
    },
    SelfMetric {
        name: "sentry_series",
        help: "Series in use: histograms and counters of live workloads; for gpu, processes",
        source: "the agent: cells of live entries of the map series_index; gpu: entries of gpu_processes",
        kind: Kind::Gauge,
        labels: PROBE,
        read: |reading| reading.by_probe(|index| Some(reading.collector.series_in_use(index))),
    },
    SelfMetric {
        name: "sentry_series_limit",
        help: "Most histograms that tcp and disk together have for series, a few of their own included: --series.max; there are as many counters beside them; for gpu, processes",
        source: "size of the map histograms; gpu: of its table of processes",
        kind: Kind::Gauge,
        labels: PROBE,
        read: |reading| reading.by_probe(|index| Some(reading.collector.series_limit(index))),
    },
    SelfMetric {
        name: "sentry_series_overflow_total",
        help: "Events counted under cgroup=\"other\" because no cell, or for gpu no place for their process, was free",
        source: "a counter of the probe's programs, in the map counters; gpu: calls in its entry for processes without a place",
        kind: Kind::Counter,
        labels: PROBE,
        read: |reading| reading.own(OwnCounter::SeriesOverflow),
    },
    SelfMetric {
        name: "sentry_series_evicted_total",
        help: "Series of workloads that are gone, dropped before their retention for want of room",
        source: "the agent",
        kind: Kind::Counter,
        labels: &[],
        read: |reading| one(reading.collector.evicted()),
    },
    SelfMetric {
        name: "sentry_exemplar_threshold_seconds",
        help: "Duration from which on an event may become an exemplar",
        source: "the agent: --tcp.exemplars, --disk.exemplars",
        kind: Kind::Gauge,
        labels: &["probe"],
        read: |reading| {
            let threshold = |probe| reading.collector.exemplar_threshold_ns(probe);
            let shown = reading.by_probe(threshold).into_iter();
            let in_seconds = |value| match value {
                Value::Whole(ns) => Value::Real(seconds(ns)),
                other => other,
            };
            shown
                .map(|(labels, value)| (labels, in_seconds(value)))
                .collect()
        },
    },
    SelfMetric {
        name: "sentry_exemplars_lost_total",
        help: "Events that would have become exemplars and found their ring full",
        source: "bpf_ringbuf_output of the probe's programs",
        kind: Kind::Counter,
        labels: &["probe"],
        read: |reading| {
            let lost = |probe| reading.collector.exemplars_lost(probe);
            reading.by_probe(lost)
        },
    },
    SelfMetric {
        name: "sentry_events_lost_total",
        help: "Events that no program saw, for it was running on their CPU already, or that found their ring full",
        source: "bpf_prog.stats.misses of the probe's programs (recursion_misses in their fdinfo); cgroup: also bpf_ringbuf_reserve that found cgroup_events full",
        kind: Kind::Counter,
        labels: PROBE,
        read: |reading| {
            let probes = reading.collector.probes();
            let mut lost = reading.by_probe(|index| {
                let probe = probes[index].installed.probe;
                Some(reading.missed(probe.name))
            });
            let cgroup = reading.collector.cgroup_events_lost() + reading.missed("cgroup");
            lost.push((vec!["cgroup".to_owned()], Value::Whole(cgroup)));
            lost
        },
    },
    SelfMetric {
        name: "sentry_connections_untracked_total",
        help: "Connects whose start found no room and whose duration is unknown",
        source: "a counter of the programs: the start of a connect found the table full",
        kind: Kind::Counter,
        labels: PROBE,
        read: |reading| reading.own(OwnCounter::ConnectionsUntracked),
    },
    SelfMetric {
        name: "sentry_disk_io_untimed_total",
        help: "Durations missing because a request carried no time stamp",
        source: "a counter of the programs: request.part and start_time_ns were not set",
        kind: Kind::Counter,
        labels: PROBE,
        read: |reading| reading.own(OwnCounter::Untimed),
    },
    SelfMetric {
        name: "sentry_disk_io_untracked_total",
        help: "Requests without time stamps whose issue found no room",
        source: "a counter of the programs: block_rq_issue found the table of requests full",
        kind: Kind::Counter,
        labels: PROBE,
        read: |reading| reading.own(OwnCounter::IosUntracked),
    },
    SelfMetric {
        name: "sentry_gpu_calls_untracked_total",
        help: "CUDA calls that found no place for their thread, stream, event or memory",
        source: "a counter of the programs, in each entry of the table of processes",
        kind: Kind::Counter,
        labels: &[],
        read: |reading| {
            let gpu = reading.collector.gpu();
            gpu.map_or_else(Vec::new, |gpu| one(gpu.untracked()))
        },
    },
    SelfMetric {
        name: "sentry_gpu_attach_errors_total",
        help: "Files with CUDA functions that could not be attached to",
        source: "the agent: perf_event_open and BPF_LINK_CREATE for uprobes, and what files are like",
        kind: Kind::Counter,
        labels: &["reason"],
        read: |reading| {
            let errors = reading.collector.gpu().map(Gpu::attach_errors);
            let errors = errors.unwrap_or_default().into_iter();
            errors
                .map(|(reason, count)| (vec![reason.to_owned()], Value::Whole(count)))
                .collect()
        },
    },
    SelfMetric {
        name: "sentry_kubernetes_watch_up",
        help: "Whether the pods of this node are known as they are now",
        source: "the agent: its watch of pods",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.watch(|status| Some(Value::Whole(u64::from(status.up)))),
    },
    SelfMetric {
        name: "sentry_kubernetes_last_sync_timestamp_seconds",
        help: "When the API server was last heard of, in seconds since 1970",
        source: "the agent: the last list, event or bookmark from the API server",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.watch(|status| status.last_sync.map(Value::Whole)),
    },
    SelfMetric {
        name: "sentry_kubernetes_pods",
        help: "Pods of this node that are known",
        source: "the agent: its watch of pods",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.watch(|status| Some(Value::Whole(status.pods as u64))),
    },
    SelfMetric {
        name: "sentry_kubernetes_watch_errors_total",
        help: "Failed attempts to list or watch pods",
        source: "the agent: answers of the API server",
        kind: Kind::Counter,
        labels: &["reason"],
        read: |reading| {
            let watch = reading.collector.names().watch();
            let errors = watch.map(|watch| watch.stats().errors);
            let reasons = Reason::ALL.iter().map(|reason| reason.code());
            reasons
                .zip(errors.into_iter().flatten())
                .map(|(reason, count)| (vec![reason.to_owned()], Value::Whole(count)))
                .collect()
        },
    },
    SelfMetric {
        name: "sentry_bpf_map_memory_bytes",
        help: "Kernel memory of a BPF map",
        source: "memlock in the fdinfo of the map's descriptor",
        kind: Kind::Gauge,
        labels: &["map"],
        read: |reading| {
            let maps = reading.collector.map_memory_bytes().into_iter();
            maps.map(|(map, bytes)| (vec![map], Value::Whole(bytes)))
                .collect()
        },
    },
    SelfMetric {
        name: "sentry_bpf_program_runs_total",
        help: "Runs of a BPF program while the kernel's statistics were on; see --bpf.stats",
        source: "bpf_prog.stats.cnt (run_cnt in the program's fdinfo)",
        kind: Kind::Counter,
        labels: PROGRAM,
        read: |reading| reading.by_program(|stats| Value::Whole(stats.runs)),
    },
    SelfMetric {
        name: "sentry_bpf_program_run_seconds_total",
        help: "Time spent in a BPF program while the kernel's statistics were on",
        source: "bpf_prog.stats.nsecs (run_time_ns in the program's fdinfo)",
        kind: Kind::Counter,
        labels: PROGRAM,
        read: |reading| reading.by_program(|stats| Value::Real(seconds(stats.run_time_ns))),
    },
    SelfMetric {
        name: "sentry_overhead_ratio",
        help: "Share of all CPUs' time that the programs of a probe took, and under probe=\"agent\" the agent itself, between the last two samples",
        source: "the agent: bpf_prog.stats.nsecs over time (basis=\"measured\"), or events times what one takes: as measured at the start (calibrated), or on another machine (assumed); agent: CLOCK_PROCESS_CPUTIME_ID",
        kind: Kind::Gauge,
        labels: &["probe", "basis"],
        read: |reading| {
            let shares = reading.overhead.probes.iter();
            let shares = shares.filter_map(|share| {
                let labels = vec![share.probe.to_owned(), share.basis.name().to_owned()];
                Some((labels, Value::Real(share.ratio?)))
            });
            let agent = reading.overhead.agent.map(|ratio| {
                let labels = ["agent", "measured"].map(str::to_owned).to_vec();
                (labels, Value::Real(ratio))
            });
            shares.chain(agent).collect()
        },
    },
    SelfMetric {
        name: "sentry_overhead_budget_ratio",
        help: "Share of all CPUs' time that the agent and its programs may take together",
        source: "the agent: --overhead.budget",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| {
            let budget = reading.overhead.budget.into_iter();
            budget
                .map(|ratio| (Vec::new(), Value::Real(ratio)))
                .collect()
        },
    },
    SelfMetric {
        name: "sentry_overhead_shed",
        help: "Whether this is shed of a probe to stay within the budget",
        source: "the agent: --overhead.budget",
        kind: Kind::Gauge,
        labels: &["probe", "step"],
        read: |reading| {
            let shares = reading.overhead.probes.iter();
            shares
                .flat_map(|share| {
                    share.steps.iter().map(|(step, is_shed)| {
                        let labels = [share.probe, step.name()].map(str::to_owned).to_vec();
                        (labels, Value::Whole(u64::from(*is_shed)))
                    })
                })
                .collect()
        },
    },
    SelfMetric {
        name: "sentry_probe_sampled_ratio",
        help: "Part of the time for which a probe is attached; what it counts is of that time alone",
        source: "the agent: --overhead.budget",
        kind: Kind::Gauge,
        labels: PROBE,
        read: |reading| reading.shares(|share| Value::Real(share.attached)),
    },
    SelfMetric {
        name: "sentry_http_connections_refused_total",
        help: "Connections closed because too many were open: new ones, or older ones that made room for them",
        source: "the agent's server",
        kind: Kind::Counter,
        labels: &[],
        read: |reading| one(reading.http.connections_refused_total()),
    },
    SelfMetric {
        name: "sentry_http_scrapes_refused_total",
        help: "Scrapes refused because too many were under way",
        source: "the agent's server",
        kind: Kind::Counter,
        labels: &[],
        read: |reading| one(reading.http.scrapes_refused_total()),
    },
    SelfMetric {
        name: "sentry_http_timeouts_total",
        help: "Connections cut off because the client was too slow",
        source: "the agent's server",
        kind: Kind::Counter,
        labels: &[],
        read: |reading| one(reading.http.timeouts_total()),
    },
    SelfMetric {
        name: "sentry_http_accept_errors_total",
        help: "Connections that the kernel failed to hand over",
        source: "the agent's server: accept4",
        kind: Kind::Counter,
        labels: &[],
        read: |reading| one(reading.http.accept_errors_total()),
    },
    SelfMetric {
        name: "sentry_http_tls_handshake_errors_total",
        help: "Connections that came to nothing before TLS was established; see --web.config.file",
        source: "the agent's server",
        kind: Kind::Counter,
        labels: &["reason"],
        read: |reading| reading.by_reason(reading.http.handshake_failures_total()),
    },
    SelfMetric {
        name: "sentry_http_authentication_failures_total",
        help: "Requests refused for want of a right user and password; too_many and busy were not looked at",
        source: "the agent's server",
        kind: Kind::Counter,
        labels: &["reason"],
        read: |reading| reading.by_reason(reading.http.authentication_failures_total()),
    },
    SelfMetric {
        name: "sentry_http_requests_limited_total",
        help: "Requests refused by the rate limit of --web.config.file",
        source: "the agent's server",
        kind: Kind::Counter,
        labels: &[],
        read: |reading| reading.web_config(|_| reading.http.requests_limited_total()),
    },
    SelfMetric {
        name: "sentry_config_last_reload_successful",
        help: "Whether the configuration as it was last read is in force; if not, an older one is",
        source: "the agent: its start, SIGHUP and /-/reload",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| one(u64::from(reading.reloads.last_was_successful())),
    },
    SelfMetric {
        name: "sentry_config_last_reload_success_timestamp_seconds",
        help: "When the configuration that is in force was read, in seconds since 1970",
        source: "the agent: its start, SIGHUP and /-/reload",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| one(reading.reloads.last_success_seconds()),
    },
    SelfMetric {
        name: "sentry_web_config_last_reload_successful",
        help: "Whether --web.config.file is in force as it was last read; if not, an older state is",
        source: "the agent: its reads of the file",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.web_config(|reads| u64::from(reads.last_was_successful)),
    },
    SelfMetric {
        name: "sentry_web_config_last_reload_success_timestamp_seconds",
        help: "When --web.config.file was last read with success, in seconds since 1970",
        source: "the agent: its reads of the file",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.web_config(|reads| reads.last_success_seconds),
    },
    SelfMetric {
        name: "sentry_web_config_reload_failures_total",
        help: "Changes of --web.config.file or of files that it names that were refused",
        source: "the agent: its reads of the file",
        kind: Kind::Counter,
        labels: &[],
        read: |reading| reading.web_config(|reads| reads.failures_total),
    },
    SelfMetric {
        name: "sentry_otlp_exports_total",
        help: "Attempts to send all metrics to --otlp.endpoint",
        source: "the agent",
        kind: Kind::Counter,
        labels: &["outcome"],
        read: |reading| {
            let stats = reading.otlp.into_iter();
            stats
                .flat_map(|stats| {
                    let count = |outcome| Value::Whole(stats.exports_total(outcome));
                    Outcome::ALL.map(|outcome| (vec![outcome.name().to_owned()], count(outcome)))
                })
                .collect()
        },
    },
    SelfMetric {
        name: "sentry_otlp_dropped_data_points_total",
        help: "Data points that --otlp.endpoint rejected or never got",
        source: "the agent",
        kind: Kind::Counter,
        labels: &[],
        read: |reading| reading.otlp(|stats| Some(stats.dropped_data_points_total())),
    },
    SelfMetric {
        name: "sentry_otlp_last_success_timestamp_seconds",
        help: "When --otlp.endpoint last took all metrics, in seconds since 1970",
        source: "the agent",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.otlp(otlp::Stats::last_success),
    },
    SelfMetric {
        name: "sentry_build_info",
        help: "The agent's version",
        source: "the build",
        kind: Kind::Gauge,
        labels: &["version"],
        read: |_| {
            let version = env!("CARGO_PKG_VERSION").to_owned();
            vec![(vec![version], Value::Whole(1))]
        },
    },
    // The metrics that Prometheus' client libraries have for every process.
    SelfMetric {
        name: "process_cpu_seconds_total",
        help: "User and system CPU time",
        source: "/proc/self/stat: utime, stime",
        kind: Kind::Counter,
        labels: &[],
        read: |reading| reading.usage(|usage| Value::Real(usage.cpu_seconds)),
    },
    SelfMetric {
        name: "process_resident_memory_bytes",
        help: "Resident memory",
        source: "/proc/self/stat: rss",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.usage(|usage| Value::Whole(usage.resident_bytes)),
    },
    SelfMetric {
        name: "process_virtual_memory_bytes",
        help: "Virtual memory",
        source: "/proc/self/stat: vsize",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.usage(|usage| Value::Whole(usage.virtual_bytes)),
    },
    SelfMetric {
        name: "process_open_fds",
        help: "Open file descriptors",
        source: "/proc/self/fd",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.usage(|usage| Value::Whole(usage.open_fds)),
    },
    SelfMetric {
        name: "process_max_fds",
        help: "Most file descriptors that may be open",
        source: "/proc/self/limits: Max open files",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.usage(|usage| Value::Whole(usage.max_fds)),
    },
    SelfMetric {
        name: "process_start_time_seconds",
        help: "When the process started, in seconds since 1970",
        source: "/proc/self/stat: starttime; /proc/stat: btime",
        kind: Kind::Gauge,
        labels: &[],
        read: |reading| reading.usage(|usage| Value::Real(usage.start_time_seconds)),
    },
];

impl SelfMetric {
    /// What all formats say of it.
    pub(crate) fn family(&self) -> Family {
        Family {
            name: self.name,
            help: self.help,
            kind: self.kind,
        }
    }

    /// Its values now, each with those of its labels.
    pub(crate) fn values(&self, reading: &Reading) -> Values {
        (self.read)(reading)
    }
}
