//! What the dashboards show.

use serde_json::Value;

use super::panel::{Panel, dashboard, variable};

/// The dashboards in files of these names.
pub(super) fn all() -> [(&'static str, Value); 5] {
    [
        ("node", node()),
        ("workload", workload()),
        ("disk", disk()),
        ("gpu", gpu()),
        ("sentry", agent()),
    ]
}

/// What selects instances.
const I: &str = r#"instance=~"$instance""#;
/// The same and workloads.
const W: &str = r#"instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container", cgroup=~"$cgroup""#;
/// What is told of a workload.
const WORKLOAD: &str = "instance, namespace, pod, container, workload, cgroup";

const HANDSHAKES: &str = "sentry_tcp_handshake_duration_seconds";
const IO: &str = "sentry_disk_io_duration_seconds";
const AT_DEVICE: &str = "sentry_disk_device_duration_seconds";
const GAPS: &str = "sentry_gpu_starvation_gap_seconds";

fn instances() -> Value {
    variable("instance", "sentry_build_info")
}

/// What selects all that did something.
const ANY: &str = r#"__name__=~"sentry_tcp_handshake_duration_seconds_count|sentry_tcp_connect_failures_total|sentry_disk_bytes_total|sentry_gpu_processes""#;

/// Choices of workloads, among those that have metrics.
fn workloads(metrics: &str) -> Vec<Value> {
    let of = |name: &str, selected: &str| variable(name, &format!("{{{metrics}, {I}{selected}}}"));
    vec![
        instances(),
        of("namespace", ""),
        of("pod", r#", namespace=~"$namespace""#),
        of("container", r#", namespace=~"$namespace", pod=~"$pod""#),
        of(
            "cgroup",
            r#", namespace=~"$namespace", pod=~"$pod", container=~"$container""#,
        ),
    ]
}

/// A rate of a counter, added up by labels.
fn rate(by: &str, metric: &str, selector: &str) -> String {
    format!("sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))")
}

fn handshake_panels(selector: &str) -> Vec<Panel> {
    let client = format!(r#"{selector}, role="client""#);
    vec![
        Panel::lines(
            "Handshakes",
            "TCP handshakes that were completed: as a client (connects) and as a server (accepts).",
            "ops",
        )
        .with(
            &rate("role", &format!("{HANDSHAKES}_count"), selector),
            "{{role}}",
        ),
        Panel::stacked(
            "Failed connects by reason",
            "Connects that ended without a connection. refused: nobody listens; timeout: no answer; aborted: the application gave up first.",
            "ops",
        )
        .with(
            &rate("reason", "sentry_tcp_connect_failures_total", selector),
            "{{reason}}",
        )
        .red_from(1.0),
        Panel::lines(
            "Duration of handshakes",
            "Quantiles of the time from the SYN to the end of the handshake (client), and from the SYN-ACK to its ACK (server). Estimated within a bucket: off by up to a factor of two with the default buckets. Points are exemplars.",
            "s",
        )
        .quantiles(HANDSHAKES, selector, &["role"])
        .red_from(0.25),
        Panel::heatmap(
            "Connects by duration",
            "How many connects took how long. A band at 1 s or 3 s is SYNs that were lost and sent again.",
            &format!("{HANDSHAKES}_bucket{{{client}}}"),
        ),
        Panel::lines(
            "SYNs sent again",
            "SYNs without an answer in time, as counted when the connect ends: lost packets, a full queue at the peer, or nobody there.",
            "ops",
        )
        .with(
            &format!("sum(rate(sentry_tcp_syn_retransmits_total{{{selector}}}[$__rate_interval]))"),
            "sent again",
        ),
        Panel::lines(
            "Unmeasured handshakes",
            "Handshakes whose duration the kernel does not tell; they are in no histogram. Server: SYN cookies, or a retransmission on kernels before 6.7.",
            "ops",
        )
        .with(
            &rate("role", "sentry_tcp_handshakes_unmeasured_total", selector),
            "{{role}}",
        ),
    ]
}

fn disk_panels(selector: &str) -> Vec<Panel> {
    vec![
        Panel::lines(
            "Requests",
            "Block requests that were completed.",
            "iops",
        )
        .with(
            &rate("device, operation", &format!("{IO}_count"), selector),
            "{{device}} {{operation}}",
        ),
        Panel::lines(
            "Throughput",
            "Bytes moved by completed block requests.",
            "Bps",
        )
        .with(
            &rate("device, operation", "sentry_disk_bytes_total", selector),
            "{{device}} {{operation}}",
        ),
        Panel::lines(
            "Duration of I/O",
            "Quantiles of the time from the creation of a request to its completion, so with the time that it waited above the device. Points are exemplars.",
            "s",
        )
        .quantiles(IO, selector, &["device", "operation"])
        .red_from(0.5),
        Panel::heatmap(
            "I/O by duration",
            "How many requests took how long, from creation to completion, all devices and operations together.",
            &format!("{IO}_bucket{{{selector}}}"),
        ),
    ]
}

fn starved(selector: &str) -> Panel {
    Panel::lines(
        "Starved",
        "Share of time in which a GPU certainly had nothing of this process to do, because its host gave it nothing: at most a second of each gap. The mean of the processes behind one name. A lower bound.",
        "percentunit",
    )
    .with(
        &format!(
            "rate(sentry_gpu_starved_seconds_total{{{selector}}}[$__rate_interval]) / ignoring (device) group_left () (sentry_gpu_processes{{{selector}}} > 0)"
        ),
        "{{pod}} {{process}} GPU {{device}}",
    )
    .red_from(0.33)
}

/// Who does most.
fn node_workloads() -> Vec<Panel> {
    vec![
                Panel::table(
                    "Slowest connects",
                    "The ten workloads with the highest p99 of connects in the time shown.",
                    "s",
                    "p99",
                    &format!(
                        "topk(10, histogram_quantile(0.99, sum by (le, {WORKLOAD}) (rate({HANDSHAKES}_bucket{{{I}, role=\"client\"}}[$__range]))) >= 0)"
                    ),
                )
                .leading_to_workload(),
                Panel::table(
                    "Most failed connects",
                    "The ten workloads with the most failed connects in the time shown.",
                    "short",
                    "failed",
                    &format!(
                        "topk(10, sum by ({WORKLOAD}, reason) (increase(sentry_tcp_connect_failures_total{{{I}}}[$__range])) > 0)"
                    ),
                )
                .leading_to_workload(),
                Panel::table(
                    "Most disk throughput",
                    "The ten workloads that moved the most in the time shown.",
                    "Bps",
                    "throughput",
                    &format!(
                        "topk(10, sum by ({WORKLOAD}) (rate(sentry_disk_bytes_total{{{I}}}[$__range])) > 0)"
                    ),
                )
                .leading_to_workload(),
                Panel::table(
                    "Most starved GPUs",
                    "The ten processes that left a GPU without work for the greatest share of the time shown; processes of one name add up.",
                    "percentunit",
                    "starved",
                    &format!(
                        "topk(10, sum by ({WORKLOAD}, process, device) (rate(sentry_gpu_starved_seconds_total{{{I}}}[$__range])) > 0)"
                    ),
                )
                .leading_to_workload(),
    ]
}

fn node() -> Value {
    let handshakes = |more: &str| format!("{HANDSHAKES}_count{{{I}{more}}}");
    let failed = format!(
        "(sum(rate(sentry_tcp_connect_failures_total{{{I}}}[$__rate_interval])) or vector(0))"
    );
    let connects = handshakes(r#", role="client""#);
    let rows = vec![
        (
            "Now",
            vec![
                Panel::number(
                    "Agents",
                    "Agents that were scraped.",
                    "short",
                    &format!("count(sentry_build_info{{{I}}})"),
                )
                .red_below(1.0),
                Panel::number(
                    "Probes down",
                    "Probes that are not attached, but should be; gpu waits, and is not counted, where no process uses CUDA.",
                    "short",
                    &format!("count(sentry_probe_up{{{I}, reason!~\"no_cuda|turned_off\"}} == 0) or vector(0)"),
                )
                .red_from(1.0),
                Panel::number(
                    "Connects",
                    "TCP connects that succeeded.",
                    "ops",
                    &format!("sum(rate({connects}[$__rate_interval]))"),
                ),
                Panel::number(
                    "Failed connects",
                    "Share of connects that ended without a connection.",
                    "percentunit",
                    &format!("{failed} / ({failed} + sum(rate({connects}[$__rate_interval])) > 0)"),
                )
                .red_from(0.05),
                Panel::number(
                    "Disk throughput",
                    "Bytes read and written, all devices together; what is on a device above another counts on both.",
                    "Bps",
                    &format!("sum(rate(sentry_disk_bytes_total{{{I}}}[$__rate_interval]))"),
                ),
                Panel::number(
                    "CUDA processes",
                    "Live processes that have called CUDA.",
                    "short",
                    &format!("sum(sentry_gpu_processes{{{I}}}) or vector(0)"),
                ),
            ],
        ),
        ("TCP", handshake_panels(I)),
        ("Disk", disk_panels(I)),
        ("GPU", vec![starved(I)]),
        ("Workloads", node_workloads()),
    ];
    dashboard(
        "sentry-node",
        "Sentry / Node",
        "What the processes of a node do: TCP handshakes, disk I/O, GPUs. The tables lead to the workloads.",
        vec![instances()],
        rows,
    )
}

fn workload() -> Value {
    let w = format!(r#"{W}, workload=~"$workload""#);
    let mut disk = disk_panels(&w);
    disk.push(errors(&w));
    let mut variables = workloads(ANY);
    variables.push(variable("workload", &format!("{{{ANY}, {W}}}")));
    let rows = vec![
        ("TCP", handshake_panels(&w)),
        ("Disk", disk),
        (
            "GPU",
            vec![starved(&w), sync_wait(&w), launches(&w), allocated(&w)],
        ),
    ];
    dashboard(
        "sentry-workload",
        "Sentry / Workload",
        "One workload: a container, a pod, a service of systemd, whatever --aggregate-by tells apart. Its TCP handshakes, disk I/O and GPUs.",
        variables,
        rows,
    )
}

fn errors(selector: &str) -> Panel {
    Panel::stacked(
        "Errors",
        "Block requests that failed, by the kernel's name for the error. not_supported is mostly a device that cannot discard.",
        "ops",
    )
    .with(
        &rate(
            "device, operation, error",
            "sentry_disk_errors_total",
            selector,
        ),
        "{{device}} {{operation}} {{error}}",
    )
    .red_from(0.01)
}

fn disk() -> Value {
    let d = format!(
        r#"{I}, device=~"$device", namespace=~"$namespace", pod=~"$pod", container=~"$container""#
    );
    let sum = |metric: &str| rate("instance, device", &format!("{metric}_sum"), &d);
    let count = |metric: &str| rate("instance, device", &format!("{metric}_count"), &d);
    let mut panels = disk_panels(&d);
    panels.push(
        Panel::lines(
            "Time at the device",
            "Quantiles of the time from the issue of a request to the device to its completion: what the device itself takes. Points are exemplars.",
            "s",
        )
        .quantiles(AT_DEVICE, &d, &["device", "operation"])
        .red_from(0.5),
    );
    panels.push(Panel::heatmap(
        "I/O by time at the device",
        "How many requests the device took how long for.",
        &format!("{AT_DEVICE}_bucket{{{d}}}"),
    ));
    let saturation = vec![
        Panel::lines(
            "Requests at the device",
            "How many requests the device had at once, on average: seconds that requests spent there, a second (Little's law). Fast drives take dozens in parallel; a disk that spins has enough to do with a few. Requests count when they end.",
            "short",
        )
        .with(&sum(AT_DEVICE), "{{device}} {{instance}}")
        .red_from(10.0),
        Panel::lines(
            "Requests above the device",
            "How many requests waited before the device got them, on average: in the scheduler, or for a limit of a cgroup. Flushes are not among them.",
            "short",
        )
        .with(
            &format!(
                "{} - {}",
                rate("instance, device", &format!("{IO}_sum"), &format!("{d}, operation!=\"flush\"")),
                sum(AT_DEVICE)
            ),
            "{{device}} {{instance}}",
        ),
        Panel::lines(
            "Mean time at the device",
            "Seconds at the device by number of requests.",
            "s",
        )
        .with(
            &format!("{} / ({} > 0)", sum(AT_DEVICE), count(AT_DEVICE)),
            "{{device}} {{instance}}",
        )
        .red_from(0.02),
        errors(&d),
    ];
    let who = vec![
        Panel::table(
            "Who moves most",
            "The twenty workloads that moved the most in the time shown, by device and operation.",
            "Bps",
            "throughput",
            &format!(
                "topk(20, sum by ({WORKLOAD}, device, operation) (rate(sentry_disk_bytes_total{{{d}}}[$__range])) > 0)"
            ),
        )
        .leading_to_workload(),
        Panel::table(
            "Who waits longest",
            "The twenty workloads with the highest p99 in the time shown, by device and operation.",
            "s",
            "p99",
            &format!(
                "topk(20, histogram_quantile(0.99, sum by (le, {WORKLOAD}, device, operation) (rate({IO}_bucket{{{d}}}[$__range]))) >= 0)"
            ),
        )
        .leading_to_workload(),
    ];
    let bytes = "sentry_disk_bytes_total";
    let mut variables = vec![instances(), variable("device", &format!("{bytes}{{{I}}}"))];
    let of = |name: &str, selected: &str| {
        let selector = format!("{I}, device=~\"$device\"{selected}");
        variable(name, &format!("{bytes}{{{selector}}}"))
    };
    variables.extend([
        of("namespace", ""),
        of("pod", r#", namespace=~"$namespace""#),
        of("container", r#", namespace=~"$namespace", pod=~"$pod""#),
    ]);
    dashboard(
        "sentry-disk",
        "Sentry / Disk",
        "Block devices: how long their requests take, above them and at them, how many they have at once, and whose they are.",
        variables,
        vec![
            ("Load", panels),
            ("Saturation and errors", saturation),
            ("Workloads", who),
        ],
    )
}

fn sync_wait(selector: &str) -> Panel {
    Panel::lines(
        "Waiting for the GPU",
        "Share of time that threads spent in calls that wait for a device; threads add up. Near 1 while starved is near 0 is as it should be: the GPU is what limits.",
        "percentunit",
    )
    .with(
        &rate("process, call", "sentry_gpu_sync_wait_seconds_total", selector),
        "{{process}} {{call}}",
    )
}

fn launches(selector: &str) -> Panel {
    Panel::lines(
        "Launches",
        "Kernels and graphs launched. Many of them while GPUs starve: they are too small.",
        "ops",
    )
    .with(
        &rate("process, api", "sentry_gpu_launches_total", selector),
        "{{process}} {{api}}",
    )
}

fn allocated(selector: &str) -> Panel {
    Panel::stacked(
        "Device memory",
        "What live processes have asked for and not freed; of a framework with a pool, the pool.",
        "bytes",
    )
    .with(
        &format!("sum by (process) (sentry_gpu_allocated_bytes{{{selector}}})"),
        "{{process}}",
    )
}

/// What the probe is for.
fn gpu_feeding(p: &str, d: &str) -> Vec<Panel> {
    vec![
                Panel::lines(
                    "Starved",
                    "Share of time in which a GPU certainly had nothing of this process to do: at most a second of each gap, a lower bound. The mean of the processes behind one name.",
                    "percentunit",
                )
                .with(
                    &format!(
                        "rate(sentry_gpu_starved_seconds_total{{{d}}}[$__rate_interval]) / ignoring (device) group_left () (sentry_gpu_processes{{{p}}} > 0)"
                    ),
                    "{{pod}} {{process}} GPU {{device}}",
                )
                .red_from(0.33),
                sync_wait(p),
                Panel::lines(
                    "Idle",
                    "What is left of gaps after their first second: a server without requests, a notebook left open, or a loader that hangs. Seconds a second; processes of one name add up.",
                    "percentunit",
                )
                .with(
                    &rate("pod, process, device", "sentry_gpu_idle_seconds_total", d),
                    "{{pod}} {{process}} GPU {{device}}",
                ),
                launches(p),
    ]
}

/// What processes ask of CUDA.
fn gpu_calls(p: &str) -> Vec<Panel> {
    vec![
                Panel::lines(
                    "Synchronisation",
                    "Calls that wait for a device or ask whether it is done. Many with waited=false could be left out.",
                    "ops",
                )
                .with(
                    &rate("process, call, waited", "sentry_gpu_syncs_total", p),
                    "{{process}} {{call}} waited={{waited}}",
                ),
                Panel::lines("Copies", "Bytes that copies were asked to move.", "Bps").with(
                    &rate("process, kind", "sentry_gpu_memcpy_bytes_total", p),
                    "{{process}} {{kind}}",
                ),
                allocated(p),
                Panel::stacked(
                    "Errors",
                    "Failed calls, of those that are seen to return, by CUDA's code; 2 is out of memory.",
                    "ops",
                )
                .with(
                    &rate("process, call, code", "sentry_gpu_errors_total", p),
                    "{{process}} {{call}} {{code}}",
                )
                .red_from(0.01),
    ]
}

fn gpu() -> Value {
    let p = format!(r#"{W}, process=~"$process""#);
    let d = format!(r#"{p}, device=~"$device""#);
    let rows = vec![
        ("Is the host feeding its GPUs?", gpu_feeding(&p, &d)),
        (
            "Gaps",
            vec![
                Panel::lines(
                    "Length of gaps",
                    "Quantiles of the time from the proof that a GPU was done to the next work that it was given. Points are exemplars.",
                    "s",
                )
                .quantiles(GAPS, &d, &["process", "device"]),
                Panel::heatmap(
                    "Gaps by length",
                    "How many gaps were how long, of those that the next enqueue ended.",
                    &format!("{GAPS}_bucket{{{d}}}"),
                ),
            ],
        ),
        ("Calls", gpu_calls(&p)),
        (
            "Processes and the probe",
            vec![
                Panel::table(
                    "Processes",
                    "Live processes that have called CUDA, by the name of the thread that made the first call.",
                    "short",
                    "processes",
                    &format!("sum by ({WORKLOAD}, process) (sentry_gpu_processes{{{p}}})"),
                )
                .leading_to_workload(),
                Panel::lines(
                    "What the probe missed",
                    "CUDA calls that found no place for their thread, stream, event or memory, and files that could not be attached to.",
                    "ops",
                )
                .with(
                    &format!("sum by (instance) (rate(sentry_gpu_calls_untracked_total{{{I}}}[$__rate_interval]))"),
                    "untracked calls {{instance}}",
                )
                .with(
                    &format!("sum by (instance, reason) (rate(sentry_gpu_attach_errors_total{{{I}}}[$__rate_interval]))"),
                    "files, {{reason}} {{instance}}",
                ),
            ],
        ),
    ];
    let mut variables = workloads(r#"__name__="sentry_gpu_processes""#);
    variables.push(variable("process", &format!("sentry_gpu_processes{{{W}}}")));
    variables.push(variable(
        "device",
        &format!("sentry_gpu_starved_seconds_total{{{p}}}"),
    ));
    dashboard(
        "sentry-gpu",
        "Sentry / GPU",
        "Whether hosts keep their GPUs fed: docs/gpu.md says how to read it.",
        variables,
        rows,
    )
}

/// What is measured, and what is not.
fn agent_probes() -> Vec<Panel> {
    vec![
                Panel::table(
                    "Probes",
                    "Each probe with its verdict: 1 is attached, 0 is not. docs/metrics.md has the reasons.",
                    "short",
                    "up",
                    &format!("sentry_probe_up{{{I}}}"),
                )
                .red_below(1.0),
                Panel::table(
                    "Agents",
                    "The version of each agent.",
                    "short",
                    "up",
                    &format!("sentry_build_info{{{I}}}"),
                ),
                Panel::lines(
                    "Events lost",
                    "Events that no program saw, for it was running on their CPU already, or that found their ring full. Counts are too low by as much.",
                    "ops",
                )
                .with(&rate("instance, probe", "sentry_events_lost_total", I), "{{probe}} {{instance}}")
                .red_from(1.0),
                Panel::lines(
                    "Unmeasured",
                    "Connects whose start found no room, and requests without time stamps: counted, but in no histogram.",
                    "ops",
                )
                .with(
                    &rate("instance", "sentry_connections_untracked_total", I),
                    "connects {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_disk_io_untimed_total", I),
                    "requests without a time stamp {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_disk_io_untracked_total", I),
                    "requests without room {{instance}}",
                ),
    ]
}

/// How much room there is.
fn agent_series() -> Vec<Panel> {
    vec![
                Panel::lines(
                    "Series in use",
                    "Histograms of live workloads that have a cell, and how many there are for tcp and disk together; for gpu, processes.",
                    "short",
                )
                .with(&format!("sentry_series{{{I}}}"), "{{probe}} {{instance}}")
                .with(
                    &format!("sentry_series_limit{{{I}}}"),
                    "limit {{probe}} {{instance}}",
                ),
                Panel::lines(
                    "Without room",
                    "Events counted under cgroup=other because no cell was free, and series of workloads that are gone dropped before their time.",
                    "ops",
                )
                .with(
                    &rate("instance, probe", "sentry_series_overflow_total", I),
                    "overflow {{probe}} {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_series_evicted_total", I),
                    "evicted {{instance}}",
                )
                .red_from(0.01),
    ]
}

/// Whether it knows the pods.
fn agent_watch() -> Vec<Panel> {
    vec![
        Panel::lines(
            "Watch",
            "Whether the pods of the node are known as they are now.",
            "short",
        )
        .with(
            &format!("sentry_kubernetes_watch_up{{{I}}}"),
            "up {{instance}}",
        )
        .with(
            &format!("sentry_kubernetes_pods{{{I}}}"),
            "pods {{instance}}",
        ),
        Panel::lines(
            "Since the API server was heard of",
            "It speaks once a minute or so even when nothing changes.",
            "s",
        )
        .with(
            &format!("time() - sentry_kubernetes_last_sync_timestamp_seconds{{{I}}}"),
            "{{instance}}",
        )
        .red_from(600.0),
        Panel::stacked(
            "Failed attempts",
            "Failed attempts to list or watch pods, by reason.",
            "ops",
        )
        .with(
            &rate(
                "instance, reason",
                "sentry_kubernetes_watch_errors_total",
                I,
            ),
            "{{reason}} {{instance}}",
        ),
    ]
}

/// What it takes itself.
fn agent_cost() -> Vec<Panel> {
    vec![
                Panel::lines("CPU", "Of the agent's process: cores.", "short").with(
                    &format!(
                        "rate(process_cpu_seconds_total{{{I}}}[$__rate_interval]) and on (job, instance) sentry_build_info"
                    ),
                    "{{instance}}",
                ),
                Panel::lines("Memory", "Of the agent's process, resident, and of its maps in the kernel.", "bytes")
                    .with(
                        &format!(
                            "process_resident_memory_bytes{{{I}}} and on (job, instance) sentry_build_info"
                        ),
                        "resident {{instance}}",
                    )
                    .with(
                        &format!("sum by (instance) (sentry_bpf_map_memory_bytes{{{I}}})"),
                        "maps {{instance}}",
                    ),
                Panel::lines(
                    "Time of a program's run",
                    "What one run of a BPF program takes. There only while the kernel's statistics are on: --bpf.stats.",
                    "s",
                )
                .with(
                    &format!(
                        "{} / ({} > 0)",
                        rate("instance, program", "sentry_bpf_program_run_seconds_total", I),
                        rate("instance, program", "sentry_bpf_program_runs_total", I)
                    ),
                    "{{program}} {{instance}}",
                ),
                Panel::lines(
                    "File descriptors",
                    "Those that are open, and the most that may be.",
                    "short",
                )
                .with(
                    &format!("process_open_fds{{{I}}} and on (job, instance) sentry_build_info"),
                    "open {{instance}}",
                )
                .with(
                    &format!("process_max_fds{{{I}}} and on (job, instance) sentry_build_info"),
                    "most {{instance}}",
                ),
                Panel::lines(
                    "Share of all CPUs",
                    "What the programs of each probe take in the kernel, and the agent itself, beside their budget: docs/overhead.md.",
                    "percentunit",
                )
                .with(
                    &format!("sum by (instance, probe, basis) (sentry_overhead_ratio{{{I}}})"),
                    "{{probe}} ({{basis}}) {{instance}}",
                )
                .with(
                    &format!("sentry_overhead_budget_ratio{{{I}}}"),
                    "budget {{instance}}",
                ),
                Panel::lines(
                    "Shed",
                    "What is shed of a probe to stay within the budget, and the part of the time for which it is attached.",
                    "short",
                )
                .with(
                    &format!("sentry_overhead_shed{{{I}}}"),
                    "{{step}} of {{probe}} {{instance}}",
                )
                .with(
                    &format!("sentry_probe_sampled_ratio{{{I}}}"),
                    "{{probe}} attached {{instance}}",
                ),
    ]
}

/// Who asks it.
fn agent_scrapes() -> Vec<Panel> {
    vec![
                Panel::lines(
                    "Duration of a scrape",
                    "As Prometheus measures it, transfer and parsing included.",
                    "s",
                )
                .with(
                    &format!(
                        "scrape_duration_seconds{{{I}}} and on (job, instance) sentry_build_info"
                    ),
                    "{{instance}}",
                ),
                Panel::lines(
                    "Samples",
                    "How many series of Prometheus an agent gives.",
                    "short",
                )
                .with(
                    &format!(
                        "scrape_samples_scraped{{{I}}} and on (job, instance) sentry_build_info"
                    ),
                    "{{instance}}",
                ),
                Panel::lines(
                    "Turned away",
                    "Scrapes and connections beyond what the agent answers at once, clients that were too slow, connections that the kernel failed to hand over.",
                    "ops",
                )
                .with(
                    &rate("instance", "sentry_http_scrapes_refused_total", I),
                    "scrapes {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_http_connections_refused_total", I),
                    "connections {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_http_timeouts_total", I),
                    "too slow {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_http_accept_errors_total", I),
                    "not handed over {{instance}}",
                )
                .red_from(0.01),
    ]
}

fn agent() -> Value {
    let rows = vec![
        ("Probes", agent_probes()),
        ("Series", agent_series()),
        ("Names of pods", agent_watch()),
        ("Cost", agent_cost()),
        ("Scrapes", agent_scrapes()),
    ];
    dashboard(
        "sentry-agent",
        "Sentry / Sentry",
        "The agent itself: its probes, what it could not measure, what it costs, who scrapes it.",
        vec![instances()],
        rows,
    )
}
