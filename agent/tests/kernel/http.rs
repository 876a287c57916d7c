//! What `/metrics` and its neighbours answer: both formats, whole and correct, and no `bpf()` call for it.

use crate::agent::Agent;
use crate::exposition::{Exposition, Format, Histogram};
use crate::host::{Folder, label, output, socket_cgroup, turn, wait_for};
use crate::load;
use flate2::read::GzDecoder;
use sentry_bench::sandbox::{Cgroup, LoopDevice};
use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

/// An agent that has something to show of every metric that comes by itself, and the cgroup of the sockets behind it.
fn busy_agent(flags: &str) -> (Agent, Cgroup) {
    let (agent, cgroup) = (Agent::start(flags), socket_cgroup("busy"));
    load::run("storm --self --seconds 0.2", &[&cgroup]);
    load::run("connect --to 127.0.0.1:1 --count 2", &[&cgroup]);
    let device = LoopDevice::new(1 << 20).unwrap();
    let args = format!(
        "write --file {} --count 5 --direct --fsync-each",
        device.path().display()
    );
    load::run(&args, &[]);
    (agent, cgroup)
}

#[test]
fn both_formats_say_the_same() {
    turn!("both_formats_say_the_same");
    let (agent, cgroup) = busy_agent("");
    let text = agent.get("/metrics", &["Accept: text/plain"]);
    assert_eq!(
        text.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let open = agent.get("/metrics", &[accept]);
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let text = Exposition::parse(&text.text(), Format::Text);
    let open = Exposition::parse(&open.text(), Format::OpenMetrics);
    let names = |exposition: &Exposition| -> Vec<String> {
        let types = exposition.types.iter();
        types
            .map(
                |(name, kind)| match (name.strip_suffix("_total"), kind.as_str()) {
                    (Some(family), "counter") => family.to_owned(),
                    _ => name.clone(),
                },
            )
            .collect()
    };
    assert_eq!(names(&text), names(&open));
    let said = text.of_cgroup(&label(&cgroup));
    assert_eq!(said.len(), 3, "{said:?}");
    assert_eq!(said, open.of_cgroup(&label(&cgroup)));
    for role in ["client", "server"] {
        let of = |exposition: &Exposition| -> Histogram {
            let labels = [("cgroup", &*label(&cgroup)), ("role", role)];
            let name = "sentry_tcp_handshake_duration_seconds";
            exposition.histogram(name, &labels).clone()
        };
        assert_eq!(of(&text), of(&open), "{role}");
    }
    agent.stop();
}

#[test]
fn the_contract_is_kept() {
    turn!("the_contract_is_kept");
    let (agent, _cgroup) = busy_agent("--bpf.stats");
    let scrape = agent.scrape();
    for (name, kind) in [
        ("sentry_tcp_handshake_duration_seconds", "histogram"),
        ("sentry_tcp_connect_failures_total", "counter"),
        ("sentry_tcp_handshakes_unmeasured_total", "counter"),
        ("sentry_tcp_syn_retransmits_total", "counter"),
        ("sentry_disk_io_duration_seconds", "histogram"),
        ("sentry_disk_device_duration_seconds", "histogram"),
        ("sentry_disk_bytes_total", "counter"),
        ("sentry_disk_errors_total", "counter"),
        ("sentry_probe_up", "gauge"),
        ("sentry_bpf_program_runs_total", "counter"),
        ("sentry_bpf_program_run_seconds_total", "counter"),
        ("sentry_bpf_map_memory_bytes", "gauge"),
        ("sentry_series", "gauge"),
        ("sentry_series_limit", "gauge"),
        ("sentry_series_overflow_total", "counter"),
        ("sentry_events_lost_total", "counter"),
        ("sentry_connections_untracked_total", "counter"),
        ("sentry_build_info", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_virtual_memory_bytes", "gauge"),
        ("process_open_fds", "gauge"),
        ("process_max_fds", "gauge"),
        ("process_start_time_seconds", "gauge"),
    ] {
        assert_eq!(
            scrape.types.get(name).map(String::as_str),
            Some(kind),
            "{name}"
        );
    }
    let workload = ["cgroup", "container", "namespace", "pod"];
    for (name, own) in [
        ("sentry_tcp_handshake_duration_seconds_count", vec!["role"]),
        ("sentry_tcp_connect_failures_total", vec!["reason"]),
        (
            "sentry_disk_io_duration_seconds_count",
            vec!["device", "operation"],
        ),
        ("sentry_disk_bytes_total", vec!["device", "operation"]),
    ] {
        let mut expected = [&workload[..], &own].concat();
        expected.sort_unstable();
        assert!(scrape.matching(name, &[]).count() > 0, "no {name}");
        for sample in scrape.matching(name, &[]) {
            assert!(sample.labels.keys().eq(&expected), "{sample:?}");
        }
    }
    for probe in ["tcp", "disk"] {
        let up = [
            ("probe", probe),
            ("hook", "tp_btf"),
            ("verdict", "attached"),
            ("reason", "ok"),
        ];
        assert_eq!(scrape.value("sentry_probe_up", &up), 1.0);
        let runs: u64 = scrape
            .matching("sentry_bpf_program_runs_total", &[])
            .filter(|sample| sample.labels["program"].starts_with(probe))
            .map(|sample| crate::exposition::as_count(sample.value))
            .sum();
        assert!(runs > 0, "{probe}");
    }
    assert_eq!(
        scrape.value("sentry_series_limit", &[("probe", "tcp")]),
        256.0
    );
    // docs/metrics.md has the formula. What a CPU adds is hundreds of bytes.
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap();
    if ["0", "0-1"].contains(&possible.trim()) {
        let maps = scrape.matching("sentry_bpf_map_memory_bytes", &[]);
        let bytes: f64 = maps.map(|sample| sample.value).sum();
        assert!((100_000.0..=160_000.0).contains(&bytes), "{bytes}");
    }
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(scrape.value("sentry_build_info", &version), 1.0);
    agent.stop();
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    turn!("promtool_finds_nothing_to_complain_of");
    let (agent, _cgroup) = busy_agent("--bpf.stats");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("promtool: {error}"));
    let text = agent.get("/metrics", &[]).text();
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(String::from_utf8_lossy(&said), "");
    assert_eq!(output.status.code(), Some(0));
    agent.stop();
}

#[test]
fn gzip_where_it_is_asked_for() {
    turn!("gzip_where_it_is_asked_for");
    let (agent, _cgroup) = busy_agent("");
    let plain = agent.get("/metrics", &[]);
    assert_eq!(plain.header("content-encoding"), None);
    let zipped = agent.get("/metrics", &["Accept-Encoding: gzip"]);
    assert_eq!(zipped.header("content-encoding"), Some("gzip"));
    assert!(zipped.body.len() * 4 < plain.body.len());
    let mut text = String::new();
    GzDecoder::new(zipped.body.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    let unzipped = Exposition::parse(&text, Format::Text);
    let plain = Exposition::parse(&plain.text(), Format::Text);
    assert_eq!(unzipped.types, plain.types);
    agent.stop();
}

#[test]
fn health_readiness_and_the_page() {
    turn!("health_readiness_and_the_page");
    let agent = Agent::start("--web.telemetry-path /other");
    assert_eq!(agent.get("/healthz", &[]).status, 200);
    let ready = agent.get("/readyz", &[]);
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("tcp: attached"), "{}", ready.text());
    let page = agent.get("/", &[]);
    assert_eq!(page.status, 200);
    for link in ["other", "healthz", "readyz"] {
        assert!(page.text().contains(&format!("href=\"{link}\"")), "{link}");
    }
    assert_eq!(agent.get("/metrics", &[]).status, 404);
    let metrics = agent.get("/other", &[]).text();
    Exposition::parse(&metrics, Format::Text);
    agent.stop();
}

#[test]
fn a_steady_scrape_makes_no_bpf_call() {
    turn!("a_steady_scrape_makes_no_bpf_call");
    let agent = Agent::start("--probes tcp");
    let outer = socket_cgroup("steady");
    let args = format!(
        "churn --v2-root {} --prefix s --count 120 --keep --to 127.0.0.1:1",
        outer.path().display()
    );
    load::run(&args, &[]);
    let series = || agent.scrape().count("sentry_series", &[("probe", "tcp")]);
    series();
    let folder = Folder::new();
    let summary = folder.path().join("strace");
    // Another workload of this host that comes meanwhile is no steady state: then once more.
    for _ in 0..5 {
        let before = series();
        assert!(before >= 120, "{before}");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-c", "-e", "trace=bpf,accept4", "-o"])
            .arg(&summary)
            .args(["-p", &agent.pid().to_string()])
            .stderr(Stdio::null());
        let mut strace = strace
            .spawn()
            .unwrap_or_else(|error| panic!("strace: {error}"));
        let status = format!("/proc/{}/status", agent.pid());
        wait_for("tracer", Duration::from_secs(10), || {
            let status = fs::read_to_string(&status).unwrap();
            (!status.contains("TracerPid:\t0")).then_some(())
        });
        for _ in 0..10 {
            agent.scrape();
        }
        let mut interrupt = Command::new("kill");
        interrupt.args(["-INT", &strace.id().to_string()]);
        output(interrupt);
        strace.wait().unwrap();
        let text = fs::read_to_string(&summary).unwrap();
        if series() != before {
            continue;
        }
        // It did see the agent: ten scrapes are ten connections.
        assert!(calls(&text, "accept4") >= 10, "{text}");
        assert_eq!(calls(&text, "bpf"), 0, "{text}");
        agent.stop();
        return;
    }
    panic!("this host makes a new series all the time");
}

/// The calls of a system call in strace's summary: percent, seconds, microseconds a call, calls, errors if any, name.
fn calls(summary: &str, name: &str) -> u64 {
    let words = summary
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = words.into_iter().find(|words| words.last() == Some(&name));
    line.map_or(0, |words| words[3].parse().unwrap())
}
