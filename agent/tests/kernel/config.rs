//! Settings that are refused or doubted, from the outside. What is allowed of each is for the unit tests.

use crate::agent::{Agent, sentry};
use crate::host::{Folder, output, turn};
use std::fs;
use std::net::TcpListener;
use std::process::Command;

/// The one line that a refused start prints.
fn refusal(command: Command, code: i32) -> String {
    let called = format!("{command:?}");
    let output = output(command);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{called}: {stderr}");
    assert_eq!(output.stdout, b"", "{called}");
    assert_eq!(stderr.lines().count(), 1, "{called}: {stderr}");
    assert!(stderr.starts_with("sentry: "), "{called}: {stderr}");
    stderr
}

#[test]
fn what_is_unknown_or_wrong_ends_in_one_line() {
    let folder = Folder::new();
    let file = folder.path().join("sentry.yaml");
    let name = file.display();
    for (args, text, parts) in [
        (
            "--probes tcp,dsik",
            "",
            vec!["--probes", "dsik", "tcp", "disk", "gpu"],
        ),
        ("--no.such-flag", "", vec!["--no.such-flag"]),
        ("--series.max 3", "", vec!["--series.max", "64", "32000"]),
        (
            "",
            "web:\n  listen-adress: :1\n",
            vec!["listen-adress", "listen-address", "sentry.yaml"],
        ),
        (
            "",
            "tcp.hook: xdp\n",
            vec!["tcp.hook", "xdp", "auto", "tp_btf", "sentry.yaml"],
        ),
        ("", "- a\n", vec!["sentry.yaml"]),
    ] {
        fs::write(&file, text).unwrap();
        let line = refusal(sentry(&format!("--config.file {name} {args}")), 2);
        for part in parts {
            assert!(line.contains(part), "no {part} in {line}");
        }
    }
    let mut bad = sentry("");
    bad.env("SENTRY_LOG_LEVEL", "loud");
    let line = refusal(bad, 2);
    for part in ["SENTRY_LOG_LEVEL", "loud", "debug"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
}

#[test]
fn a_port_that_is_taken_has_a_holder() {
    turn!("a_port_that_is_taken_has_a_holder");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let line = refusal(sentry(&format!("--web.listen-address {address}")), 1);
    // The kernel keeps 15 characters of a program's name.
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    let (name, pid) = (name.trim(), std::process::id());
    assert!(line.contains(&address.to_string()), "{line}");
    assert!(line.contains(&format!("(pid {pid})")), "{name}: {line}");
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    turn!("flags_win_over_the_environment_and_that_over_the_file");
    let folder = Folder::new();
    let file = folder.path().join("sentry.yaml");
    fs::write(
        &file,
        "series.max: 100\nprobes: tcp\nmetrics:\n  buckets-per-octave: 4\n",
    )
    .unwrap();
    let mut command = sentry("--series.max 300");
    command.env("SENTRY_CONFIG_FILE", &file);
    command.env("SENTRY_SERIES_MAX", "200");
    command.env("SENTRY_PROBES", "disk");
    command.env("SENTRY_PORT_9763_TCP", "tcp://10.0.0.1:9763");
    let agent = Agent::spawn(command);
    let scrape = agent.scrape();
    let limits: Vec<_> = scrape
        .matching("sentry_series_limit", &[])
        .map(|sample| (sample.labels["probe"].as_str(), sample.value))
        .collect();
    assert_eq!(limits, [("disk", 300.0)]);
    // Kubernetes makes such a variable for a Service of this name: no reason not to start.
    assert!(agent.log().contains("SENTRY_PORT_9763_TCP"));
    agent.stop();
}
