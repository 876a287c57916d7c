//! Generates `docs/metrics.md` and the README's table of metrics from what the agent exports.
//!
//! A test, since only here all metrics are known and no user has a need for it: it fails when
//! the files differ, and with `SENTRY_WRITE_DOCS` set (`make docs`) it writes them.

use std::{env, fmt::Write, fs, path::Path};

use probes::{BUCKETS, PROBES, Probe, Reason, Verdict, bucket_edge_seconds};

use super::{
    format::Format,
    model::{Kind, classic_buckets},
    self_metrics::SELF_METRICS,
    text::write_real,
};

const WRITE: &str = "SENTRY_WRITE_DOCS";
const README_START: &str = "<!-- metrics -->";
const README_END: &str = "<!-- /metrics -->";

#[test]
fn metrics_are_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    hold(&root.join("docs/metrics.md"), |_| page());
    hold(&root.join("README.md"), |text| {
        between(text, README_START, README_END, &short_table())
    });
}

/// Compares a file with what it should be, or makes it so.
pub(crate) fn hold(path: &Path, wanted: impl FnOnce(&str) -> String) {
    let text = fs::read_to_string(path).unwrap_or_default();
    let wanted = wanted(&text);
    if text == wanted {
        return;
    }
    assert!(
        env::var_os(WRITE).is_some(),
        "{} is not what the code says: run `make docs` and commit the result",
        path.display()
    );
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, wanted).unwrap();
}

/// Holds a file of the repository to what is between two marks of it.
pub(crate) fn hold_between(path: &str, start: &str, end: &str, content: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    hold(&root.join(path), |text| {
        assert!(text.contains(start), "{path} has no {start}");
        between(text, start, end, content)
    });
}

/// The text with new content between two marks; the same text where they are missing.
fn between(text: &str, start: &str, end: &str, content: &str) -> String {
    let parts = text.split_once(start).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(end)?;
        Some((before, after))
    });
    parts.map_or_else(
        || text.to_owned(),
        |(before, after)| format!("{before}{start}\n{content}{end}{after}"),
    )
}

#[test]
fn marked_text_is_replaced() {
    assert_eq!(
        between("a <b> old </b> c", "<b>", "</b>", "new\n"),
        "a <b>\nnew\n</b> c"
    );
    assert_eq!(between("a <b> old", "<b>", "</b>", "new\n"), "a <b> old");
}

fn page() -> String {
    let mut text = String::from(
        "<!-- Generated from the code by `make docs`. Do not edit. -->\n\n# Metrics\n\n\
         What `/metrics` of the agent holds. [Workloads](#workloads) are what the probes measure, \
         [the agent](#the-agent) is what it tells about itself, [formats](#formats) is how a client gets it and what becomes of histograms, [cardinality](#cardinality) is how many \
         series that makes, and [memory](#memory) what the kernel side takes.\n\n",
    );
    text.push_str(&workloads());
    for probe in PROBES {
        text.push_str(&section(probe));
    }
    text.push_str(&agent());
    text.push_str(&formats());
    text.push_str(&cardinality());
    text.push_str(&memory());
    text
}

fn workloads() -> String {
    format!(
        "## Workloads\n\n\
         Every metric of a probe has these labels, and those that its table names.\n\n{}\n\
         - The cgroup is that of the socket, and of the block request, whichever process runs when \
         the event happens; of `gpu`, that of the process when it first called CUDA, in the v2 tree.\n\
         - `process`, on the metrics of `gpu`, is the command name of the thread that made its process' first CUDA call. \
         Processes of the same cgroup and name count together, and what they have counted stays when one ends.\n\
         - `cgroup=\"other\"`, and `device=\"other\"`, hold what happened while no cell was free: see \
         `--series.max` and `sentry_series_overflow_total`. With `process=\"other\"` they hold the \
         processes that found no place among those of `gpu`. The sum over all cgroups is complete.\n\
         - `cgroup=\"unknown:HIERARCHY:ID\"` is a cgroup whose name is not known, mostly since it was gone too soon; with `--aggregate-by pod` and `workload` all of them are `cgroup=\"unknown\"`.\n\
         - Names of pods come from one watch of this node's pods (`--kubernetes.node`), those of containers from there too, \
         and from the state files of containerd, CRI-O, Docker and Podman beneath `--path.rootfs`, which also name the pod where the \
         API server has not yet told of it. A series whose names become known or change later is shown under the new ones from then on, with all that it has counted; \
         where labels are shared (`--aggregate-by` other than `container`) only with what it counts from then on, so that no sum falls.\n\
         - A series stays for `--series.retention` after its cgroup, or of `gpu` its last process, is gone, then it is dropped. \
         A gauge is 0 meanwhile.\n\
         - A series appears with its first event. A probe that does not run has no metrics, but one that was turned off keeps its counts: look at \
         `sentry_probe_up`.\n\n\
         A name, a label, a type or a help text that is here stays; a change to one stands in [CHANGELOG.md](../CHANGELOG.md).\n\n",
        table(
            &["Label", "Meaning"],
            &[
                [
                    "`namespace`",
                    "Kubernetes namespace of the pod; empty outside of pods"
                ],
                ["`pod`", "Name of the pod; empty outside of pods"],
                [
                    "`container`",
                    "Name of the container in its pod, or that its runtime has for it, else its id; empty outside of containers, and of a pod's sandbox where its runtime's files can be read"
                ],
                [
                    "`cgroup`",
                    "Path of the cgroup from the root of its hierarchy, `/` being the root; of all in a container, that of the container"
                ],
                [
                    "`label_*`",
                    "The labels of pods that `--kubernetes.pod-labels` names: `app` as `label_app`, every character that is no letter or digit as `_`; empty where a pod has none"
                ],
                [
                    "`workload`, `workload_kind`",
                    "With `--aggregate-by workload` only: name and kind of what owns the pod"
                ],
            ]
            .map(|row| row.map(str::to_owned).to_vec()),
        ),
    )
}

/// What the formats are, and what becomes of histograms in them.
fn formats() -> String {
    let formats = [
        (Format::Prometheus, "everyone else"),
        (Format::OpenMetrics, "Prometheus as it comes"),
        (
            Format::Protobuf,
            "Prometheus 2.40 to 3.8 with `--enable-feature=native-histograms`, 3.8 and later with `scrape_native_histograms: true`",
        ),
    ]
    .map(|(format, who)| {
        let histograms = match format {
            Format::Protobuf => "native, and classic",
            Format::OpenMetrics | Format::Prometheus => "classic",
        };
        vec![
            code(format.content_type()),
            histograms.to_owned(),
            who.to_owned(),
        ]
    });
    let edges: Vec<Vec<String>> = [1, 2, 4]
        .map(|per_octave| {
            let buckets: Vec<usize> = classic_buckets(per_octave).collect();
            let shown = buckets
                .iter()
                .take(if per_octave == 1 { BUCKETS } else { 5 });
            let mut shown: Vec<String> = shown
                .map(|bucket| edge(bucket_edge_seconds(*bucket)))
                .collect();
            if per_octave > 1 {
                shown.push(format!("… {}, +Inf", edge(16.0)));
            }
            vec![
                per_octave.to_string(),
                buckets.len().to_string(),
                shown.join(", "),
            ]
        })
        .to_vec();
    format!(
        "## Formats\n\n\
         The client's `Accept` header says in which format `/metrics` answers, by its quality values; where it takes several alike, in the later of these:\n\n{}\n\
         All say the same numbers at the same moment ([0011](decisions/0011-three-formats-from-one-model.md)). Label and metric names are plain ASCII, so `escaping` changes nothing; the `Content-Type` repeats it where a client asks for it, as Prometheus 3 does. \
         Who asks for OpenMetrics by the draft's number, 0.0.1, gets the same text by that number. \
         Protobuf leaves out what has no samples.\n\n\
         With `--metrics.created`, counters and histograms say since when they count, as `_created` in OpenMetrics and `created_timestamp` in protobuf; 0.0.4 has no place for it. \
         It is a moment at which the series certainly was not there yet: when the agent last looked before it found it, some 10 s before its first event at most. \
         Where several cgroups share their labels, it is that of the first; the agent's own began when it did, and `process_cpu_seconds_total` with the process. \
         So that no event counts twice, a series that has been shown and whose labels become others later, as its pod becomes known, then begins anew under these, from zero, \
         and what it has counted so far stays under the old ones for `--series.retention`. \
         Without this flag and `--otlp.endpoint` it takes along what it has counted.\n\n\
         ### Histograms\n\n\
         The kernel's buckets are four to the octave: bucket i holds durations above 2^((i-1)/4) s up to 2^(i/4) s, edge included, from 2^-18 s ({:.1} µs) to 2^4 s. \
         One more holds all that is shorter, and one all that is longer. `_count` is the sum of them all.\n\n\
         - **Native histograms** have these very buckets: they are those of schema 2. What took {:.1} µs or less is the zero bucket (`zero_threshold` 2^-18), where a quantile is between 0 and that. \
         What took longer than 16 s is in the next bucket, up to {:.2} s: a quantile that falls there says that it was 16 s or more. \
         Counts and sums are exact. A counter reset is not told beforehand: it shows as it does for any counter.\n\
         - **Classic histograms** have a subset of the same edges as `le`, with `--metrics.buckets-per-octave`:\n\n{}\n\
         In protobuf they stand beside the native ones. A Prometheus that takes native ones keeps both only where it is told to: 2.40 to 2.44 cannot, so leave `native-histograms` off there where the classic ones are wanted, as rules and dashboards want them; \
         2.45 to 2.55 do with `scrape_classic_histograms: true`, and 3.0 and later with `always_scrape_classic_histograms: true`. One that reads protobuf and no native histograms, because of its `scrape_protocols` or \
         `--enable-feature=created-timestamp-zero-ingestion`, needs that setting as well: 3.5 takes no histogram of ours without it. \
         `--metrics.classic-histograms=false` leaves them out there; the text formats have no others, and always have them. `le` is written as Prometheus writes it when it reads protobuf, so that a bucket is the same series from every format.\n\n",
        table(
            &["`Content-Type`", "Histograms", "Who asks for it"],
            &formats
        ),
        bucket_edge_seconds(0) * 1e6,
        bucket_edge_seconds(0) * 1e6,
        4.25f64.exp2(),
        table(&["Buckets an octave", "`le` values", "Which"], &edges),
    )
}

/// An edge as `le` shows it.
fn edge(seconds: f64) -> String {
    let mut text = String::new();
    write_real(&mut text, seconds);
    code(&text)
}

fn section(probe: &Probe) -> String {
    let mut text = format!("### `{}`: {}\n\n", probe.name, probe.summary);
    let rows = probe.metrics.iter().map(|metric| {
        let kind = Kind::from(metric.kind).name().to_owned();
        let labels = code_list(metric.labels);
        vec![
            code(metric.name),
            kind,
            unit(metric.name).to_owned(),
            labels,
            metric.help.to_owned(),
            metric.source.to_owned(),
        ]
    });
    text += &table(
        &["Metric", "Type", "Unit", "Labels", "Meaning", "Source"],
        &rows.collect::<Vec<_>>(),
    );
    text.push_str("\nHooks, best first:\n\n");
    for rung in probe.rungs {
        if rung.variants.is_empty() {
            let _ = writeln!(text, "- `{}`: {}", rung.hook, uprobes(rung.hook));
        }
        for variant in rung.variants {
            let points: Vec<&str> = variant
                .programs
                .iter()
                .map(|program| program.hook.point())
                .collect();
            let note = if variant.note.is_empty() {
                String::new()
            } else {
                format!("; {}", variant.note)
            };
            let _ = writeln!(text, "- `{}` on {}{note}", rung.hook, code_list(&points));
        }
        if !rung.limits.is_empty() {
            let _ = writeln!(text, "  (`degraded`: {})", rung.limits);
        }
    }
    if let Some(fallback) = &probe.fallback {
        let _ = writeln!(
            text,
            "- `{}` besides, where needed: {}",
            fallback.point, fallback.detail
        );
    }
    text.push('\n');
    text
}

/// How a hook of the gpu probe works, whose places are not in this kernel but in files.
fn uprobes(hook: &str) -> &'static str {
    match hook {
        "uprobe_multi" => {
            "all functions of a file at once; each tells its program by a cookie which it is (Linux 6.6 or later)"
        }
        "uprobe_cookie" => "one by one, with cookies as well (Linux 5.15 or later)",
        "uprobe" => "one by one, a program for each function",
        other => panic!("{other} has no description"),
    }
}

fn agent() -> String {
    let rows = SELF_METRICS.iter().map(|metric| {
        vec![
            code(metric.name),
            metric.kind.name().to_owned(),
            unit(metric.name).to_owned(),
            code_list(metric.labels),
            metric.help.to_owned(),
            metric.source.to_owned(),
        ]
    });
    let verdicts = VERDICTS.map(|(verdict, meaning)| {
        let up = u8::from(verdict.is_up()).to_string();
        vec![code(verdict.name()), up, meaning.to_owned()]
    });
    let reasons = REASONS.map(|reason| vec![code(reason.code()), meaning(reason).to_owned()]);
    format!(
        "## The agent\n\n{}\n\
         The program metrics are there while the kernel's BPF statistics are on: `--bpf.stats` switches \
         them on, at the cost of two clock reads for each run of any BPF program on the host.\n\n\
         ### Verdicts\n\n\
         What `sentry_probe_up`, `sentry check` and the log say of each probe.\n\n{}\n\
         ### Reasons\n\n{}\n",
        table(
            &["Metric", "Type", "Unit", "Labels", "Meaning", "Source"],
            &rows.collect::<Vec<_>>()
        ),
        table(&["`verdict`", "`sentry_probe_up`", "Meaning"], &verdicts),
        table(&["`reason`", "Meaning"], &reasons),
    )
}

const VERDICTS: [(Verdict, &str); 5] = [
    (Verdict::Attached, "All that the probe measures is measured"),
    (
        Verdict::Degraded,
        "The probe runs; the reason says what is missing",
    ),
    (
        Verdict::Unsupported,
        "This kernel cannot run the probe, or there is nothing here that it could be attached to",
    ),
    (Verdict::Failed, "The probe should run here and does not"),
    (
        Verdict::Off,
        "The configuration leaves the probe out, and a reload may bring it back; what it has counted stays",
    ),
];

const REASONS: [Reason; 19] = [
    Reason::Ok,
    Reason::NoBtf,
    Reason::NoHook,
    Reason::Rejected,
    Reason::AttachError,
    Reason::NoPermission,
    Reason::MapError,
    Reason::IoControllerOff,
    Reason::NoTimestamps,
    Reason::NoTracefs,
    Reason::Lockdown,
    Reason::LimitedHook,
    Reason::CgroupV1Only,
    Reason::KernelTooOld,
    Reason::NoCuda,
    Reason::NoMappingEvents,
    Reason::PidNamespace,
    Reason::TurnedOff,
    Reason::OverBudget,
];

/// A reason in words. A new one does not compile before it has its line here; it belongs into
/// [`REASONS`] as well.
fn meaning(reason: Reason) -> &'static str {
    match reason {
        Reason::Ok => "Nothing is missing",
        Reason::NoBtf => {
            "The kernel's type information, `/sys/kernel/btf/vmlinux`, is missing, or `--btf` names no such file"
        }
        Reason::NoHook => "The kernel does not have the hook",
        Reason::Rejected => "The kernel refused the program",
        Reason::AttachError => "The program could not be attached to its hook",
        Reason::NoPermission => "The privileges do not suffice",
        Reason::MapError => "The kernel lacks a kind of map, or memory for it",
        Reason::IoControllerOff => {
            "The io controller is off, so all disk I/O belongs to the root cgroup"
        }
        Reason::NoTimestamps => {
            "A device gives its requests no time stamps, so durations run from the issue to the device"
        }
        Reason::NoTracefs => "tracefs is not mounted, and the hook needs it",
        Reason::Lockdown => "The kernel is locked down and allows no such hook",
        Reason::LimitedHook => "The hook in use does not tell all that the probe measures",
        Reason::CgroupV1Only => {
            "Only cgroup v1 is mounted, and sockets belong to cgroups of v2 only"
        }
        Reason::KernelTooOld => "The kernel is older than 5.10 and lacks what every probe needs",
        Reason::NoCuda => {
            "No process maps libcudart or libcuda; the probe is attached as soon as one does"
        }
        Reason::NoMappingEvents => {
            "The kernel does not tell what processes map, so procfs is looked through time and again, and a short-lived process may be missed"
        }
        Reason::PidNamespace => {
            "The agent sees only the processes of its own PID namespace: it needs the host's (`hostPID`)"
        }
        Reason::TurnedOff => {
            "The file of `--config.file` leaves the probe out of `probes`; its programs are not attached"
        }
        Reason::OverBudget => {
            "Sentry took more of the CPUs than `--overhead.budget` allows: the probe is attached for an eighth of the time (`degraded`), or not (`off`)"
        }
    }
}

/// What the kernel says each map takes (`memlock` of its descriptor on 6.18), by the ceiling of
/// series and the CPUs that the machine may have.
fn map_bytes(series: u64, cpus: u64) -> Vec<(&'static str, &'static str, u64)> {
    let counters = (2 * series).next_multiple_of(512);
    let power = series.next_power_of_two();
    let queue = |cells: u64| 312 + 2 * (cells + 1);
    vec![
        (
            "`histograms`",
            "368 N rounded up to pages of 4,096, and a page",
            (368 * series).next_multiple_of(4096) + 4096,
        ),
        (
            "`counters`",
            "8 K and a page; K is 2 N rounded up to 512",
            8 * counters + 4096,
        ),
        (
            "`series_index`",
            "80 N + 16 P + 120 C + 832; P is N rounded up to a power of two",
            80 * series + 16 * power + 120 * cpus + 832,
        ),
        ("`series_slots`", "12 P + 312", 12 * power + 312),
        ("`free_histograms`", "2 N + 314", queue(series)),
        (
            "`free_counters`",
            "2 (K - N) + 314",
            queue(counters - series),
        ),
        ("`tcp_started_slots`", "2,360", 2360),
        (
            "`tcp_started_storage`",
            "16 C + 448, C rounded up to a power of two, at least 2",
            16 * cpus.next_power_of_two().max(2) + 448,
        ),
        ("`cgroup_events`", "16,728", 16_728),
        (
            "`tcp_started_hash`, `disk_in_flight`, `disk_issued`, `event_origins`, `event_cgroups`",
            "320 each, for the slot of a table that is made when it is needed",
            5 * 320,
        ),
        ("`events`", "8 C + 312", 8 * cpus + 312),
        ("`rodata`", "528", 528),
    ]
}

fn map_sum(series: u64, cpus: u64) -> u64 {
    map_bytes(series, cpus)
        .iter()
        .map(|(_, _, bytes)| bytes)
        .sum()
}

#[test]
fn the_formula_gives_what_was_measured() {
    // sum(sentry_bpf_map_memory_bytes) on 6.18 with 2 CPUs, by --series.max.
    for (series, measured) in [
        (64, 68_836),
        (100, 85_796),
        (256, 159_204),
        (300, 191_396),
        (1000, 530_020),
        (2048, 1_048_036),
        (10_000, 5_178_084),
        (32_000, 15_925_732),
    ] {
        assert_eq!(map_sum(series, 2), measured, "{series}");
    }
}

/// How many Prometheus series there can be.
fn cardinality() -> String {
    let lines = |per_octave: u8| classic_buckets(per_octave).count() + 2;
    let per_histogram: Vec<Vec<String>> = [1, 2, 4]
        .map(|per_octave| vec![per_octave.to_string(), lines(per_octave).to_string()])
        .to_vec();
    let (tcp, disk) = (2 * lines(1) + 6 + 2 + 1, 2 * lines(1) + 1);
    format!(
        "## Cardinality\n\n\
         `--aggregate-by` says what one set of workload labels stands for:\n\n{}\n\
         What is told apart less finely is added up, and its counters never fall as pods come and go: what one that is dropped has counted stays with \
         another of the same labels, as long as there is one. In the kernel, workloads are told apart by cgroup whatever is chosen here, up to \
         `--series.max` histograms (a hard ceiling: `sentry_series`, `sentry_series_limit`); what finds no room is counted under `cgroup=\"other\"`, and in `sentry_series_overflow_total`.\n\n\
         A histogram is as many Prometheus series as it has buckets, and two:\n\n{}\n\
         With H of them, one set of labels has at most 2 H + 9 of `tcp` ({tcp} at one bucket an octave), and 2 H + 1 of `disk` ({disk}) for each device and operation, flushes H + 1; \
         of `disk`, each kind of error adds one. Only what has happened has a series. Over all, there are no more than `--series.max` histograms and twice as many counters in the kernel, \
         and those of workloads that went in the last `--series.retention`, at most four times `--series.max` or 2,048, whichever is more, of which the oldest go first (`sentry_series_evicted_total`).\n\n\
         So P pods of one container that connect and serve, and read and write one device, are P (2 H + 9 + 2 (2 H + 1)) series: {} for 30 pods, and take 6 P of `--series.max`.\n\n\
         The agent's own memory grows by some 4 KB for each histogram with its names, and 3 KB for each pod that it knows (measured with 1,000 of both).\n\n",
        table(
            &["`--aggregate-by`", "One set of labels for each", "Labels that are left empty"],
            &[
                ["`container`", "container, and cgroup outside of containers", ""],
                [
                    "`pod`",
                    "pod; outside of pods container, user or service of systemd",
                    "`container` of pods; `cgroup` is that of the pod",
                ],
                [
                    "`workload`",
                    "Deployment, StatefulSet, DaemonSet, Job, CronJob or other controller of pods, or pod without one; outside of pods container, user or service, as `workload_kind` `Container`, `User` and `Unit`",
                    "`pod`, `container`; `cgroup` of pods",
                ],
                [
                    "`node`",
                    "the whole node",
                    "all, but `cgroup=\"other\"` of what found no room",
                ],
            ]
            .map(|row| row.map(str::to_owned).to_vec()),
        ),
        table(
            &["`--metrics.buckets-per-octave`", "Prometheus series of a histogram, H"],
            &per_histogram,
        ),
        grouped(30 * (tcp + 2 * disk) as u64),
    )
}

fn memory() -> String {
    let maps: Vec<Vec<String>> = map_bytes(256, 2)
        .into_iter()
        .map(|(map, formula, bytes)| vec![map.to_owned(), formula.to_owned(), grouped(bytes)])
        .collect();
    let sizes: Vec<Vec<String>> = [64, 256, 1024, 2048, 4096, 8192, 32_000]
        .into_iter()
        .map(|series| {
            let sums = [2, 16, 128].map(|cpus| grouped(map_sum(series, cpus)));
            [vec![grouped(series)], sums.to_vec()].concat()
        })
        .collect();
    format!(
        "## Memory\n\n\
         What the maps of `tcp` and `disk` take in the kernel, in bytes, as `sentry_bpf_map_memory_bytes` shows it \
         on 6.18. N is `--series.max`, C the number of CPUs that the machine may have (`/sys/devices/system/cpu/possible`). \
         The formula was measured with N from 64 to 32,000 and 2 CPUs; what a CPU adds comes from the sizes of the kernel's own structures.\n\n{}\n\
         All of them together:\n\n{}\n\
         What is made when it is needed comes besides: some 0.7 MB (`tcp_started_hash_table`) and 0.9 MB (`disk_in_flight_table`) with hooks that have nothing better (see there), 0.3 MB (`disk_issued_table`) for a device without time stamps of its own, and with exemplars 0.26 MB (`event_origins_table`) and 16,728 for each CPU (`events_rings`).\n\n\
         The maps of `gpu` come besides, not before a process uses CUDA: until then it takes none, and then 0.74 MB (`uprobe_multi`) or 1.7 MB, whatever N.\n\n\
         A connect whose places in `tcp_started_slots` are taken is kept with its socket, in memory that goes with it. Kernels before 6.4 tell the sizes of maps differently.\n\n\
         A cell of `histograms` is one histogram of one workload. A workload with both ends of \
         handshakes, and with reads and writes on one device, takes six: two of handshakes and two for each operation. The probes' own `other` \
         cells take {} from N.\n",
        table(&["Map", "Bytes", "N = 256, C = 2"], &maps),
        table(&["`--series.max`", "2 CPUs", "16 CPUs", "128 CPUs"], &sizes),
        PROBES
            .iter()
            .map(|probe| u64::from(probe.histograms))
            .sum::<u64>(),
    )
}

/// The README's table: no units and sources.
fn short_table() -> String {
    let rows: Vec<Vec<String>> = PROBES
        .iter()
        .flat_map(|probe| probe.metrics)
        .map(|metric| {
            vec![
                code(metric.name),
                Kind::from(metric.kind).name().to_owned(),
                code_list(metric.labels),
                metric.help.to_owned(),
            ]
        })
        .collect();
    table(&["Metric", "Type", "Labels", "Meaning"], &rows)
}

fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let mut text = line(&head);
    text += &line(&vec!["---".to_owned(); head.len()]);
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        text += &line(&cells);
    }
    text
}

fn unit(name: &str) -> &'static str {
    let name = name.trim_end_matches("_total");
    if name.ends_with("_seconds") {
        "seconds"
    } else if name.ends_with("_bytes") {
        "bytes"
    } else {
        ""
    }
}

fn code(name: &str) -> String {
    format!("`{name}`")
}

fn code_list(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| code(name))
        .collect::<Vec<_>>()
        .join(", ")
}

/// With a comma at the thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
