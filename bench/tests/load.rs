//! Runs `load` for real and holds its reports against what the kernel itself counted.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use sentry_bench::cgroup::CgroupRoots;
use sentry_bench::sandbox::{Cgroup, LoopDevice, Netns, is_root};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

const LOAD: &str = env!("CARGO_BIN_EXE_load");

/// Says why a test is skipped, past the capture of the test harness.
fn skipped(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

macro_rules! needs_root {
    ($test:literal) => {
        if !is_root() {
            return skipped($test, "needs root");
        }
    };
}

/// Runs `load` to its end.
fn output(mut command: Command, args: &str) -> Output {
    command.args(args.split_whitespace()).output().unwrap()
}

fn report(command: Command, args: &str) -> Value {
    let output = output(command, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "load {args}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn load(args: &str) -> Value {
    report(Command::new(LOAD), args)
}

/// The one line that a failing `load` prints.
fn refusal(args: &str) -> String {
    let output = output(Command::new(LOAD), args);
    assert_eq!(output.status.code(), Some(1), "load {args}");
    assert_eq!(output.stdout, b"", "load {args}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "load {args}: {stderr}");
    stderr.trim_end().to_owned()
}

/// A `load` that serves until it is told to finish.
struct Server {
    process: Child,
    stdout: BufReader<ChildStdout>,
    /// Its first line.
    ready: Value,
}

impl Server {
    fn start(mut command: Command, args: &str) -> Self {
        let mut process = command
            .args(args.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap();
        Self {
            process,
            stdout,
            ready,
        }
    }

    fn listen(args: &str) -> Self {
        Self::start(Command::new(LOAD), &format!("listen {args}"))
    }

    fn listen_in(netns: &Netns, args: &str) -> Self {
        Self::start(netns.command(LOAD), &format!("listen {args}"))
    }

    fn port(&self) -> u64 {
        self.ready["port"].as_u64().unwrap()
    }

    fn finish(mut self) -> Value {
        drop(self.process.stdin.take());
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(self.process.wait().unwrap().success());
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Asserts a report's outcomes: those named, and 0 of every other kind.
fn assert_outcomes(report: &Value, expected: &[(&str, u64)]) {
    let kinds = [
        "connected",
        "refused",
        "timeout",
        "unreachable",
        "aborted",
        "local",
        "other",
    ];
    let total: u64 = expected.iter().map(|(_, count)| count).sum();
    assert_eq!(report["attempted"], total, "{report}");
    for kind in kinds {
        let count = expected
            .iter()
            .find(|(name, _)| *name == kind)
            .map_or(0, |(_, count)| *count);
        assert_eq!(report[kind], count, "{kind} of {report}");
    }
}

fn durations_ns(report: &Value) -> Vec<u64> {
    let durations = report["durations_ns"].as_array().unwrap();
    durations
        .iter()
        .map(|duration| duration.as_u64().unwrap())
        .collect()
}

fn stdout_in(netns: &Netns, program: &str, args: &str) -> String {
    let output = output(netns.command(program), args);
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// A counter of the TCP line of `/proc/net/snmp`.
fn tcp_counter(netns: &Netns, name: &str) -> u64 {
    let text = stdout_in(netns, "cat", "/proc/net/snmp");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let column = lines
        .next()
        .unwrap()
        .split(' ')
        .position(|column| column == name)
        .unwrap();
    lines
        .next()
        .unwrap()
        .split(' ')
        .nth(column)
        .unwrap()
        .parse()
        .unwrap()
}

/// The TCP sockets of a namespace that are no listeners, by `ss`.
fn sockets(netns: &Netns) -> Vec<String> {
    let text = stdout_in(netns, "ss", "-Htan");
    let states = text
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    states
        .filter(|state| *state != "LISTEN")
        .map(str::to_owned)
        .collect()
}

#[test]
fn as_many_handshakes_as_the_kernel_counts() {
    needs_root!("as_many_handshakes_as_the_kernel_counts");
    let netns = Netns::new("handshakes").unwrap();
    let listener = Server::listen_in(&netns, "");
    let port = listener.port();
    let args =
        format!("connect --to 127.0.0.1:{port} --count 100 --threads 3 --pin-cpus --measure --rst");
    let connects = report(netns.command(LOAD), &args);
    assert_outcomes(&connects, &[("connected", 300)]);
    assert_eq!(durations_ns(&connects).len(), 300);
    assert!(
        durations_ns(&connects)
            .iter()
            .all(|&duration| duration > 1_000)
    );
    assert_eq!(listener.finish()["accepted"], 300);
    assert_eq!(tcp_counter(&netns, "ActiveOpens"), 300);
    assert_eq!(tcp_counter(&netns, "PassiveOpens"), 300);
    assert_eq!(sockets(&netns), [""; 0], "RST leaves nothing behind");
}

#[test]
fn one_listener_takes_all_kinds_of_addresses() {
    let listener = Server::listen("--addr ::");
    let port = listener.port();
    for address in ["127.0.0.1", "[::ffff:127.0.0.1]", "[::1]"] {
        let connects = load(&format!("connect --to {address}:{port} --count 2"));
        assert_outcomes(&connects, &[("connected", 2)]);
    }
    assert_eq!(listener.finish()["accepted"], 6);
}

#[test]
fn a_port_without_listener_refuses() {
    // Port 1 is below those that the kernel gives out: nobody listens there by chance.
    let connects = load("connect --to 127.0.0.1:1 --count 7");
    assert_outcomes(&connects, &[("refused", 7)]);
}

#[test]
fn a_rate_and_an_interval_are_kept() {
    for pace in [
        "--rate 100 --threads 2 --count 10",
        "--interval-ms 10 --count 20",
    ] {
        let start = Instant::now();
        assert_outcomes(
            &load(&format!("connect --to 127.0.0.1:1 {pace}")),
            &[("refused", 20)],
        );
        let elapsed = start.elapsed();
        assert!(
            (Duration::from_millis(180)..Duration::from_secs(2)).contains(&elapsed),
            "{pace}: {elapsed:?}"
        );
    }
}

#[test]
fn one_local_port_is_enough_for_one_connection() {
    needs_root!("one_local_port_is_enough_for_one_connection");
    let netns = Netns::new("ports").unwrap();
    netns
        .sysctl("net.ipv4.ip_local_port_range", "40000 40000")
        .unwrap();
    let listener = Server::listen_in(&netns, "--hold --port 8080");
    let connects = report(
        netns.command(LOAD),
        "connect --to 127.0.0.1:8080 --count 5 --hold",
    );
    assert_outcomes(&connects, &[("connected", 1), ("local", 4)]);
    assert_eq!(listener.finish()["accepted"], 1);
}

#[test]
fn no_answer_is_a_timeout_or_given_up() {
    needs_root!("no_answer_is_a_timeout_or_given_up");
    let netns = Netns::new("silent").unwrap();
    netns.sysctl("net.ipv4.tcp_syn_retries", "1").unwrap();
    let peer = Server::start(
        netns.command(LOAD),
        "tun-peer --name tun9 --addr 10.99.0.1/24 --silent",
    );
    assert_eq!(peer.ready["ready"], true);
    let aborts = report(
        netns.command(LOAD),
        "connect --to 10.99.0.2:80 --count 4 --abort-after-ms 20",
    );
    assert_outcomes(&aborts, &[("aborted", 4)]);
    let timeouts = report(netns.command(LOAD), "connect --to 10.99.0.2:80 --measure");
    assert_outcomes(&timeouts, &[("timeout", 1)]);
    assert!(durations_ns(&timeouts)[0] > 1_000_000_000);
    let peer = peer.finish();
    assert_eq!((&peer["syns"], &peer["syn_acks"]), (&5.into(), &0.into()));
    // How many that are depends on the kernel, which may count the first ones apart.
    let retransmitted = tcp_counter(&netns, "RetransSegs");
    assert!(retransmitted >= 1);
    assert_eq!(peer["retransmitted_syns"], retransmitted);
}

#[test]
fn no_way_there_is_unreachable() {
    needs_root!("no_way_there_is_unreachable");
    let netns = Netns::new("nowhere").unwrap();
    // No route at all: refused by connect itself.
    assert_outcomes(
        &report(netns.command(LOAD), "connect --to 10.98.0.2:80 --count 2"),
        &[("unreachable", 2)],
    );
    assert_eq!(tcp_counter(&netns, "AttemptFails"), 0);
    // A route, but no such neighbour: SYN_SENT first.
    netns
        .ip(&["link", "add", "near", "type", "veth", "peer", "name", "far"])
        .unwrap();
    netns
        .ip(&["addr", "add", "10.98.0.1/24", "dev", "near"])
        .unwrap();
    netns.ip(&["link", "set", "near", "up"]).unwrap();
    netns.ip(&["link", "set", "far", "up"]).unwrap();
    assert_outcomes(
        &report(netns.command(LOAD), "connect --to 10.98.0.2:80"),
        &[("unreachable", 1)],
    );
    assert_eq!(tcp_counter(&netns, "AttemptFails"), 1);
}

#[test]
fn a_peer_answers_as_late_as_told_and_closes() {
    needs_root!("a_peer_answers_as_late_as_told_and_closes");
    let netns = Netns::new("late").unwrap();
    let peer = Server::start(
        netns.command(LOAD),
        "tun-peer --name tun9 --addr 10.99.0.1/24 --delay-ms 120",
    );
    let connects = report(
        netns.command(LOAD),
        "connect --to 10.99.0.77:443 --count 2 --threads 3 --measure",
    );
    assert_outcomes(&connects, &[("connected", 6)]);
    for duration_ns in durations_ns(&connects) {
        assert!(
            (120_000_000..500_000_000).contains(&duration_ns),
            "{duration_ns}"
        );
    }
    // The FINs are answered: this side waits for nothing but time.
    assert_eq!(sockets(&netns), ["TIME-WAIT"; 6]);
    assert_eq!(tcp_counter(&netns, "RetransSegs"), 0);
    assert_eq!(tcp_counter(&netns, "InErrs"), 0, "checksums");
    let peer = peer.finish();
    assert_eq!(
        peer,
        serde_json::json!({"syns": 6, "retransmitted_syns": 0, "syn_acks": 6})
    );
    assert!(!netns.ip(&["link"]).unwrap().contains("tun9"));
}

#[test]
fn a_late_answer_is_one_answer_whatever_was_sent_again() {
    needs_root!("a_late_answer_is_one_answer_whatever_was_sent_again");
    let netns = Netns::new("later").unwrap();
    let peer = Server::start(
        netns.command(LOAD),
        "tun-peer --name tun9 --addr 10.99.0.1/24 --delay-ms 1300",
    );
    let connects = report(
        netns.command(LOAD),
        "connect --to 10.99.0.2:80 --measure --rst",
    );
    assert_outcomes(&connects, &[("connected", 1)]);
    assert!((1_300_000_000..1_800_000_000).contains(&durations_ns(&connects)[0]));
    assert_eq!(
        peer.finish(),
        serde_json::json!({"syns": 1, "retransmitted_syns": 1, "syn_acks": 1})
    );
}

#[test]
fn a_client_ends_its_handshake_as_late_as_told() {
    needs_root!("a_client_ends_its_handshake_as_late_as_told");
    let netns = Netns::new("lag").unwrap();
    let listener = Server::listen_in(&netns, "--addr 0.0.0.0");
    let start = Instant::now();
    let clients = Server::start(
        netns.command(LOAD),
        &format!(
            "tun-client --name tun9 --addr 10.99.0.1/24 --port {} --count 5 --delay-ms 150",
            listener.port()
        ),
    );
    assert_eq!(clients.ready["syns"], 5);
    while tcp_counter(&netns, "PassiveOpens") < 5 {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(start.elapsed() >= Duration::from_millis(150));
    assert_eq!(tcp_counter(&netns, "InErrs"), 0, "checksums");
    assert_eq!(listener.finish()["accepted"], 5);
    assert_eq!(
        clients.finish(),
        serde_json::json!({"syns": 5, "syn_acks": 5, "retransmitted_syn_acks": 0, "acks": 5})
    );
}

#[test]
fn a_storm_loses_nothing() {
    let storm = load("storm --self --seconds 0.5 --threads 2 --pin-cpus");
    let connected = storm["connected"].as_u64().unwrap();
    assert!(connected > 500, "{storm}");
    assert_outcomes(&storm, &[("connected", connected)]);
    assert_eq!(storm["accepted"], connected);
    assert!(
        storm["connects_per_second"].as_f64().unwrap() > 1000.0,
        "{storm}"
    );

    let listener = Server::listen("");
    let storm = load(&format!(
        "storm --seconds 0.2 --to 127.0.0.1:{}",
        listener.port()
    ));
    assert_eq!(storm["accepted"], Value::Null);
    assert_eq!(listener.finish()["accepted"], storm["connected"]);
}

/// What `/sys/block/DEVICE/stat` counts.
#[derive(Debug, PartialEq, Eq)]
struct BlockStat {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    flushes: u64,
}

impl BlockStat {
    fn of(device: &LoopDevice) -> Self {
        let name = device.path().file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        let fields: Vec<u64> = text
            .split_whitespace()
            .map(|field| field.parse().unwrap())
            .collect();
        Self {
            reads: fields[0],
            read_bytes: fields[2] * 512,
            writes: fields[4],
            written_bytes: fields[6] * 512,
            flushes: fields[15],
        }
    }

    /// What came since.
    fn since(&self, before: &Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            writes: self.writes - before.writes,
            written_bytes: self.written_bytes - before.written_bytes,
            flushes: self.flushes - before.flushes,
        }
    }
}

/// A device that nobody else looks at any more: udev and the like read a new one.
fn quiet_device(size_bytes: u64) -> (LoopDevice, BlockStat) {
    let device = LoopDevice::new(size_bytes).unwrap();
    let mut before = BlockStat::of(&device);
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let now = BlockStat::of(&device);
        if now == before {
            return (device, before);
        }
        before = now;
    }
}

#[test]
fn writes_and_fsyncs_are_those_of_the_device() {
    needs_root!("writes_and_fsyncs_are_those_of_the_device");
    let (device, before) = quiet_device(16 << 20);
    let file = device.path().display();
    let args =
        format!("write --file {file} --count 40 --size 8192 --direct --fsync-each --measure");
    let writes = load(&args);
    assert_eq!(writes["operations"], 40);
    assert_eq!(writes["bytes"], 40 * 8192);
    assert_eq!(writes["fsyncs"], 40);
    assert_eq!(durations_ns(&writes).len(), 40);
    // An fsync is a write without data too.
    let expected = BlockStat {
        reads: 0,
        read_bytes: 0,
        writes: 80,
        written_bytes: 40 * 8192,
        flushes: 40,
    };
    assert_eq!(BlockStat::of(&device).since(&before), expected);

    let before = BlockStat::of(&device);
    load(&format!(
        "write --file {file} --count 10 --size 4096 --direct --offset-random"
    ));
    let expected = BlockStat {
        reads: 0,
        read_bytes: 0,
        writes: 10,
        written_bytes: 10 * 4096,
        flushes: 0,
    };
    assert_eq!(BlockStat::of(&device).since(&before), expected);
}

#[test]
fn reads_are_those_of_the_device() {
    needs_root!("reads_are_those_of_the_device");
    let (device, before) = quiet_device(1 << 20);
    let file = device.path().display();
    // 150 places of 4096 bytes: the threads begin anew at the end of the span.
    let reads = load(&format!(
        "read --file {file} --count 100 --direct --threads 2 --span 614400 --measure"
    ));
    assert_eq!(reads["operations"], 200);
    assert_eq!(reads["bytes"], 200 * 4096);
    assert_eq!(reads["fsyncs"], 0);
    assert_eq!(durations_ns(&reads).len(), 200);
    let expected = BlockStat {
        reads: 200,
        read_bytes: 200 * 4096,
        writes: 0,
        written_bytes: 0,
        flushes: 0,
    };
    assert_eq!(BlockStat::of(&device).since(&before), expected);

    let before = BlockStat::of(&device);
    let reads = load(&format!(
        "read --file {file} --seconds 0.3 --direct --random --size 512"
    ));
    let operations = reads["operations"].as_u64().unwrap();
    assert!(operations > 100, "{reads}");
    assert_eq!(BlockStat::of(&device).since(&before).reads, operations);
}

#[test]
fn a_file_is_written_and_read_back() {
    let file = std::env::temp_dir().join(format!("load-file-{}", std::process::id()));
    let path = file.display();
    let writes = load(&format!("write --file {path} --count 5 --size 1000"));
    assert_eq!(
        (&writes["operations"], &writes["bytes"]),
        (&5.into(), &5000.into())
    );
    let length = fs::metadata(&file).unwrap().len();
    let reads = load(&format!("read --file {path} --count 9 --size 1000"));
    fs::remove_file(&file).unwrap();
    assert_eq!(length, 5000);
    assert_eq!(
        (&reads["operations"], &reads["bytes"]),
        (&9.into(), &9000.into())
    );
}

/// Makes the kernel count what a v1 cgroup reads from a device: it does so only where there is a limit. False where
/// there is no such hierarchy.
fn count_reads(cgroup: &Path, device: &LoopDevice) -> bool {
    let (major, minor) = device.number().unwrap();
    let no_limit = format!("{major}:{minor} 1000000000");
    let file = cgroup.join("blkio.throttle.read_iops_device");
    file.exists() && fs::write(file, no_limit).is_ok()
}

/// The reads of a v1 cgroup from one device, as the kernel counts them.
fn cgroup_reads(cgroup: &Path, device: &LoopDevice) -> u64 {
    let text = fs::read_to_string(cgroup.join("blkio.throttle.io_serviced")).unwrap();
    let (major, minor) = device.number().unwrap();
    let prefix = format!("{major}:{minor} Read ");
    let count = text.lines().find_map(|line| line.strip_prefix(&prefix));
    count.map_or(0, |count| count.parse().unwrap())
}

#[test]
fn readers_of_many_cgroups_take_turns() {
    needs_root!("readers_of_many_cgroups_take_turns");
    let roots = CgroupRoots::find().unwrap();
    let (device, before) = quiet_device(1 << 20);
    let pairs: Vec<_> = (0..64)
        .map(|_| [&roots.v2, &roots.blkio].map(|root| Cgroup::new(root, "turn").unwrap()))
        .collect();
    let counted = pairs
        .iter()
        .all(|[_, blkio]| count_reads(blkio.path(), &device));
    let cgroups: Vec<_> = pairs
        .iter()
        .map(|[v2, blkio]| {
            format!(
                "--cgroup {},{}",
                v2.path().display(),
                blkio.path().display()
            )
        })
        .collect();
    let args = format!(
        "interleave --file {} --count 5 {}",
        device.path().display(),
        cgroups.join(" ")
    );
    let interleaved = load(&args);
    assert_eq!(interleaved["operations"], 320);
    assert_eq!(interleaved["bytes"], 320 * 4096);
    let readers = interleaved["readers"].as_array().unwrap();
    assert_eq!(readers.len(), 64);
    let expected = BlockStat {
        reads: 320,
        read_bytes: 320 * 4096,
        writes: 0,
        written_bytes: 0,
        flushes: 0,
    };
    assert_eq!(BlockStat::of(&device).since(&before), expected);
    for ([v2, blkio], reader) in pairs.iter().zip(readers) {
        assert_eq!(reader["operations"], 5);
        assert_eq!(reader["cgroups"][0], v2.path().to_str().unwrap());
        if counted {
            assert_eq!(
                cgroup_reads(blkio.path(), &device),
                5,
                "{}",
                blkio.path().display()
            );
        }
    }
    if !counted {
        skipped(
            "readers_of_many_cgroups_take_turns, by cgroup",
            "no v1 blkio hierarchy that counts",
        );
    }
}

fn children(root: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap());
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    named.map(|entry| entry.path()).collect()
}

#[test]
fn churn_makes_cgroups_that_connect_and_removes_them() {
    needs_root!("churn_makes_cgroups_that_connect_and_removes_them");
    let roots = CgroupRoots::find().unwrap();
    let outer = [&roots.v2, &roots.blkio].map(|root| Cgroup::new(root, "churn").unwrap());
    let [v2, v1] = outer
        .each_ref()
        .map(|cgroup| cgroup.path().display().to_string());
    // On a pure v2 host both are the same tree, and a name there can be made only once.
    let v1_root = if roots.v2 == roots.blkio {
        String::new()
    } else {
        format!("--v1-root {v1}")
    };
    let listener = Server::listen("");
    let to = format!("--to 127.0.0.1:{}", listener.port());
    let churn = load(&format!(
        "churn --v2-root {v2} {v1_root} --prefix c --count 50 {to}"
    ));
    assert_eq!(churn["cgroups"], 50);
    assert_outcomes(&churn, &[("connected", 50)]);
    for cgroup in &outer {
        assert_eq!(children(cgroup.path(), "c-"), Vec::<PathBuf>::new());
    }
    load(&format!(
        "churn --v2-root {v2} --prefix kept --count 3 {to} --keep"
    ));
    assert_eq!(children(outer[0].path(), "kept-").len(), 3);
    assert_eq!(listener.finish()["accepted"], 53);

    // A name that is taken ends it, and what others made stays.
    let taken = refusal(&format!(
        "churn --v2-root {v2} --prefix kept --count 1 {to}"
    ));
    assert_eq!(
        taken,
        format!("load: make the cgroup {v2}/kept-0: File exists (os error 17)")
    );
    assert_eq!(children(outer[0].path(), "kept-").len(), 3);
}

#[test]
fn a_race_meets_in_each_new_cgroup() {
    needs_root!("a_race_meets_in_each_new_cgroup");
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return skipped("a_race_meets_in_each_new_cgroup", "needs two CPUs");
    }
    let outer = Cgroup::new(&CgroupRoots::find().unwrap().v2, "race").unwrap();
    let listener = Server::listen("");
    let args = format!(
        "race --v2-root {} --prefix r --rounds 100 --cpus 0,1 --to 127.0.0.1:{}",
        outer.path().display(),
        listener.port()
    );
    let race = load(&args);
    assert_eq!(race["rounds"], 100);
    assert_outcomes(&race, &[("connected", 200)]);
    // A connect takes some 20 us: these two met.
    assert!(race["median_skew_ns"].as_u64().unwrap() < 5_000, "{race}");
    assert_eq!(children(outer.path(), "r-"), Vec::<PathBuf>::new());
    assert_eq!(listener.finish()["accepted"], 200);
    let cpus = "load: --cpus: allowed are two different CPUs or more, such as 0,1";
    let args = args.replace("0,1", "1,1");
    assert_eq!(refusal(&args), cpus);
    assert_eq!(
        refusal(&args.replace("1,1", "0,99")),
        "load: pin a thread to CPU 99: Invalid argument (os error 22)"
    );
    assert_eq!(children(outer.path(), "r-"), Vec::<PathBuf>::new());
}

#[test]
fn a_process_joins_a_cgroup_of_each_hierarchy() {
    needs_root!("a_process_joins_a_cgroup_of_each_hierarchy");
    let roots = CgroupRoots::find().unwrap();
    let mut cgroups = vec![Cgroup::new(&roots.v2, "join").unwrap()];
    if roots.blkio != roots.v2 {
        cgroups.push(Cgroup::new(&roots.blkio, "join").unwrap());
    }
    let args: Vec<_> = cgroups
        .iter()
        .map(|cgroup| format!("--cgroup {}", cgroup.path().display()))
        .collect();
    let listener = Server::listen(&args.join(" "));
    for cgroup in &cgroups {
        let members = fs::read_to_string(cgroup.path().join("cgroup.procs")).unwrap();
        assert_eq!(members, format!("{}\n", listener.process.id()));
    }
    assert_eq!(listener.finish()["accepted"], 0);
}

#[test]
fn bad_input_ends_in_one_line() {
    assert_eq!(
        refusal("connect --to 127.0.0.1:1 --cgroup /proc/no-such-cgroup"),
        "load: join the cgroup /proc/no-such-cgroup: No such file or directory (os error 2)"
    );
    assert_eq!(
        refusal("write --file /dev/no-such-device --direct"),
        "load: open /dev/no-such-device: No such file or directory (os error 2)"
    );
    assert!(!Path::new("/dev/no-such-device").exists());
    assert_eq!(
        refusal("read --file /etc/passwd --count 1 --direct --size 100"),
        "load: --size 100: allowed with --direct are multiples of 512"
    );
    assert_eq!(
        refusal("listen --addr 192.0.2.1"),
        "load: listen on 192.0.2.1:0: Cannot assign requested address (os error 99)"
    );
}

#[test]
fn guards_leave_nothing_behind() {
    needs_root!("guards_leave_nothing_behind");
    let cgroup = Cgroup::new(&CgroupRoots::find().unwrap().v2, "guard").unwrap();
    let path = cgroup.path().to_owned();
    fs::create_dir(path.join("inner")).unwrap();
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    fs::write(path.join("inner/cgroup.procs"), sleeper.id().to_string()).unwrap();
    drop(cgroup);
    assert!(!path.exists());
    assert_eq!(sleeper.wait().unwrap().code(), None, "killed by a signal");

    let netns = Netns::new("guard").unwrap();
    let name = PathBuf::from("/run/netns").join(netns.name());
    assert!(name.exists());
    drop(netns);
    assert!(!name.exists());

    let device = LoopDevice::new(1 << 20).unwrap();
    let name = device.path().file_name().unwrap().to_owned();
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    let file = PathBuf::from(fs::read_to_string(&backing).unwrap().trim_end());
    assert_eq!(fs::metadata(&file).unwrap().len(), 1 << 20);
    drop(device);
    assert!(!file.exists());
    // Another test may have the same device by now, but not this file.
    let now = fs::read_to_string(&backing).unwrap_or_default();
    assert_ne!(PathBuf::from(now.trim_end()), file);
}
