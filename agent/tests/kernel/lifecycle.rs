//! Start and end: quick, clear, and nothing left in the kernel.

use crate::agent::{Agent, End, SENTRY, sentry, without_settings};
use crate::host::{Folder, in_cgroup, label, output, socket_cgroup, turn, wait_for};
use crate::load;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A kind of thing that eBPF leaves in the kernel, and its number.
type Object = (&'static str, u64);

/// Kinds of objects, and what `fdinfo` calls their numbers.
const OBJECTS: [(&str, &str); 3] = [
    ("prog", "prog_id:"),
    ("map", "map_id:"),
    ("link", "link_id:"),
];

/// All programs, maps and links in the kernel, as `bpftool` lists them.
fn in_kernel() -> BTreeSet<Object> {
    let mut all = BTreeSet::new();
    for (kind, _) in OBJECTS {
        let mut list = Command::new("bpftool");
        list.args([kind, "show", "-j"]);
        let output = output(list);
        assert!(output.status.success(), "bpftool {kind} show");
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let ids = list.as_array().unwrap().iter();
        all.extend(ids.map(|object| (kind, object["id"].as_u64().unwrap())));
    }
    all
}

/// What a process holds by its file descriptors. None of it once it is gone.
fn held_by(process: &Path) -> BTreeSet<Object> {
    let mut held = BTreeSet::new();
    let entries = fs::read_dir(process.join("fdinfo")).into_iter().flatten();
    for entry in entries.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for (kind, key) in OBJECTS {
            let id = text.lines().find_map(|line| line.strip_prefix(key));
            held.extend(id.map(|id| (kind, id.trim().parse::<u64>().unwrap())));
        }
    }
    held
}

/// What any process holds.
fn held_by_anybody() -> BTreeSet<Object> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .flat_map(|process| held_by(&process.path()))
        .collect()
}

/// Asserts that what came since `before` is gone, or another process': other agents may run on this host.
fn assert_nothing_left(before: &BTreeSet<Object>) {
    // The kernel frees a program a moment after its last user is gone.
    wait_for("end of the objects", Duration::from_secs(5), || {
        let now = in_kernel();
        let others = held_by_anybody();
        let left: Vec<_> = now
            .difference(before)
            .filter(|object| !others.contains(object))
            .collect();
        left.is_empty().then_some(())
    });
}

#[test]
fn signals_end_it_within_a_second_and_leave_nothing() {
    turn!("signals_end_it_within_a_second_and_leave_nothing");
    for signal in [Signal::TERM, Signal::INT, Signal::KILL] {
        let before = in_kernel();
        let agent = Agent::start("--bpf.stats");
        let process = Path::new("/proc").join(agent.pid().to_string());
        let held = held_by(&process);
        for (kind, least) in [("prog", 5), ("map", 5), ("link", 5)] {
            let count = held.iter().filter(|object| object.0 == kind).count();
            assert!(count >= least, "{count} of {kind}: {held:?}");
        }
        let ours: BTreeSet<_> = in_kernel().difference(&before).copied().collect();
        assert!(held.is_subset(&ours), "{held:?} in {ours:?}");
        let End {
            status,
            stdout,
            stderr,
            took,
        } = agent.end(signal);
        if signal != Signal::KILL {
            assert_eq!(status.code(), Some(0), "{signal:?}: {stderr}");
            assert!(took < Duration::from_secs(1), "{signal:?}: {took:?}");
            assert_eq!(stdout, "");
        }
        assert_nothing_left(&before);
    }
}

#[test]
fn a_scrape_under_way_does_not_hold_the_end_up() {
    turn!("a_scrape_under_way_does_not_hold_the_end_up");
    let agent = Agent::start("");
    // One that says nothing, one that stopped in the middle of its request.
    let silent = std::net::TcpStream::connect(agent.address()).unwrap();
    let mut slow = std::net::TcpStream::connect(agent.address()).unwrap();
    std::io::Write::write_all(&mut slow, b"GET /metrics HTT").unwrap();
    agent.scrape();
    let end = agent.end(Signal::TERM);
    assert_eq!(end.status.code(), Some(0));
    assert!(end.took < Duration::from_secs(1), "{:?}", end.took);
    drop((silent, slow));
}

#[test]
fn the_second_on_a_port_says_who_has_it() {
    turn!("the_second_on_a_port_says_who_has_it");
    let before = in_kernel();
    let agent = Agent::start("");
    let address = agent.address();
    let second = output(sentry(&format!("--web.listen-address {address}")));
    let stderr = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1), "{stderr}");
    let expected = format!(
        "sentry: {address} is already in use by sentry (pid {})\n",
        agent.pid()
    );
    assert_eq!(stderr, expected);
    assert_eq!(second.stdout, b"");
    // The first one is none the worse for it.
    agent.scrape();
    agent.stop();
    assert_nothing_left(&before);
}

/// A command of the agent's program as a user without any privilege but these capabilities, such as `bpf`, from a folder
/// where that user may go.
pub(crate) fn as_nobody(folder: &Folder, capabilities: &[&str], args: &[&str]) -> Command {
    let program = folder.path().join("sentry");
    if !program.exists() {
        fs::hard_link(SENTRY, &program)
            .or_else(|_| fs::copy(SENTRY, &program).map(drop))
            .unwrap();
    }
    for (path, mode) in [(folder.path(), 0o755), (&program, 0o755)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    let granted = capabilities.iter().map(|name| format!(",+{name}"));
    let granted = format!("-all{}", granted.collect::<String>());
    for set in ["inh-caps", "ambient-caps", "bounding-set"] {
        command.arg(format!("--{set}={granted}"));
    }
    command.arg("--").arg(program).args(args);
    without_settings(&mut command);
    command
}

#[test]
fn without_privileges_one_line_says_so() {
    turn!("without_privileges_one_line_says_so");
    let folder = Folder::new();
    let refused = output(as_nobody(
        &folder,
        &[],
        &["--web.listen-address", "127.0.0.1:0"],
    ));
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert_eq!(
        stderr,
        "sentry: missing privileges: CAP_BPF and CAP_PERFMON needed to load eBPF programs; run as root, or grant them to the binary; `make demo` shows the agent in a virtual machine\n"
    );

    let checked = output(as_nobody(&folder, &[], &["check", "--format", "json"]));
    assert_eq!(checked.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    for probe in report["probes"].as_array().unwrap() {
        assert_eq!(probe["verdict"], "failed", "{probe}");
        assert_eq!(probe["reason"], "no_permission", "{probe}");
    }
}

#[test]
fn check_tells_what_runs_and_leaves_nothing() {
    turn!("check_tells_what_runs_and_leaves_nothing");
    let before = in_kernel();
    let json = output(sentry("check --format json"));
    assert_eq!(json.status.code(), Some(0));
    assert_eq!(json.stderr, b"");
    let report: Value = serde_json::from_slice(&json.stdout).unwrap();
    let probes = report["probes"].as_array().unwrap();
    let names: Vec<_> = probes.iter().map(|probe| &probe["probe"]).collect();
    assert_eq!(names, ["tcp", "disk", "gpu", "cgroup"]);
    for probe in probes {
        // Whether a process of this host uses CUDA is not up to this test.
        let waits = probe["probe"] == "gpu" && probe["reason"] == "no_cuda";
        let expected: &[&str] = if waits {
            &["unsupported"]
        } else {
            &["attached", "degraded"]
        };
        assert!(
            expected.contains(&probe["verdict"].as_str().unwrap()),
            "{probe}"
        );
    }
    let libraries = report["cuda"].as_array().unwrap();

    let table = output(sentry("check"));
    assert_eq!(table.status.code(), Some(0));
    let table = String::from_utf8(table.stdout).unwrap();
    let (host, rows) = table.split_once("\n\n").unwrap();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(host.contains(release.trim()), "{host}");
    for fact in [
        "kernel",
        "BTF",
        "lockdown",
        "privileges",
        "tracefs",
        "cgroups",
    ] {
        let line = host.lines().find(|line| line.starts_with(fact));
        assert!(line.is_some(), "no {fact} in {host}");
    }
    let (rows, cuda) = rows.split_once("\n\n").unwrap_or((rows, ""));
    assert_eq!(cuda.lines().skip(1).count(), libraries.len(), "{cuda}");
    let rows: Vec<_> = rows.lines().collect();
    assert_eq!(
        rows[0].split_whitespace().collect::<Vec<_>>(),
        ["PROBE", "VERDICT", "HOOK", "REASON", "DETAIL"]
    );
    for (row, probe) in rows[1..].iter().zip(probes) {
        let cells: Vec<_> = row.split_whitespace().take(4).collect();
        let expected = ["probe", "verdict", "hook", "reason"].map(|key| &probe[key]);
        assert_eq!(cells, expected, "{row}");
    }
    assert_eq!(rows.len(), 1 + probes.len());
    assert_nothing_left(&before);
}

#[test]
fn the_gpu_probe_alone_waits_for_cuda() {
    turn!("the_gpu_probe_alone_waits_for_cuda");
    let checked = output(sentry("check --probes gpu --format json"));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let probe = &report["probes"][0];
    assert_eq!(probe["probe"], "gpu");
    if probe["reason"] != "no_cuda" {
        eprintln!("not tried: a process of this host uses CUDA: {probe}");
        return;
    }
    let detail = "no process maps libcudart or libcuda";
    assert_eq!(probe["verdict"], "unsupported");
    assert_eq!(probe["detail"], detail);
    assert_eq!(report["cuda"], Value::Array(Vec::new()));
    assert_eq!(checked.status.code(), Some(1));

    // Nothing to attach to is no reason not to start, whatever the hook.
    for hook in ["auto", "uprobe"] {
        let agent = Agent::start(&format!("--probes gpu --gpu.hook {hook}"));
        let ready = agent.get("/readyz", &[]);
        assert_eq!(ready.status, 503);
        let line = format!("gpu: unsupported: {detail}");
        assert!(ready.text().contains(&line), "{}", ready.text());
        let scrape = agent.scrape();
        let up = [
            ("probe", "gpu"),
            ("verdict", "unsupported"),
            ("reason", "no_cuda"),
        ];
        assert_eq!(scrape.value("sentry_probe_up", &up), 0.0);
        let shown = scrape
            .types
            .keys()
            .filter(|name| name.starts_with("sentry_gpu_"));
        assert_eq!(
            shown.collect::<Vec<_>>(),
            ["sentry_gpu_calls_untracked_total"]
        );
        let log = agent.log();
        let said = log.lines().filter(|said| said.contains(detail)).count();
        assert_eq!(said, 1, "{log}");
        agent.stop();
    }
}

#[test]
fn a_closed_standard_input_is_nothing_to_it() {
    turn!("a_closed_standard_input_is_nothing_to_it");
    let mut command = Command::new("sh");
    // Closed, not empty: the first file that it opens gets number 0.
    command.args(["-c", "exec <&- \"$0\" \"$@\"", SENTRY]);
    without_settings(&mut command);
    let agent = Agent::spawn(command);
    agent.scrape();
    agent.stop();
}

#[test]
fn labels_are_those_of_the_host_in_a_cgroup_namespace_too() {
    turn!("labels_are_those_of_the_host_in_a_cgroup_namespace_too");
    let (home, client) = (socket_cgroup("namespace"), socket_cgroup("client"));
    let mut command = in_cgroup(&home, "unshare");
    command.args(["--cgroup", SENTRY, "--probes", "tcp"]);
    without_settings(&mut command);
    let agent = Agent::spawn(command);
    load::run("connect --to 127.0.0.1:1 --count 3", &[&client]);
    let expected = ["sentry_tcp_connect_failures_total{reason=refused} 3"];
    assert_eq!(agent.scrape().of_cgroup(&label(&client)), expected);
    agent.stop();
}

#[test]
fn a_person_at_a_terminal_sees_a_summary() {
    turn!("a_person_at_a_terminal_sees_a_summary");
    let mut command = Command::new("script");
    command.args([
        "--quiet",
        "--return",
        "--command",
        &format!("exec {SENTRY} --web.listen-address 127.0.0.1:0"),
        "/dev/null",
    ]);
    without_settings(&mut command);
    let mut process = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let mut shown = Vec::new();
    // While it looks, something happens.
    let summary = loop {
        let line = lines.next().unwrap().unwrap();
        if line.contains("serving") {
            load::run("connect --to 127.0.0.1:1 --count 3", &[]);
        }
        if line.starts_with("tcp ") {
            break line;
        }
        shown.push(line);
        assert!(start.elapsed() < Duration::from_secs(30), "{shown:?}");
    };
    // A terminal's interrupt key.
    std::io::Write::write_all(process.stdin.as_mut().unwrap(), b"\x03").unwrap();
    let status = wait_for("end at the terminal", Duration::from_secs(5), || {
        process.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(0));
    let words: Vec<_> = summary.split_whitespace().collect();
    for word in ["tcp", "disk", "p50", "p99"] {
        assert!(words.contains(&word), "{summary}");
    }
}
