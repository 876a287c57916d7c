//! The ladder of hooks: every rung that this kernel has, attached at the same time under the same load, counts the same;
//! what a rung cannot measure is in its verdict.
//!
//! Each test prints a line `cell {...}` for each rung, from which the table of supported kernels is made.

use crate::agent::{Agent, sentry, without_settings};
use crate::bystander::{ATTEMPTS, Bystanders};
use crate::disk::assert_issue_hook_steps_in;
use crate::exposition::{Exposition, Histogram};
use crate::host::{
    Folder, IoController, disk_cgroup, is_v1_only, label, output, roots, skipped, socket_cgroup,
    turn, types, wait_for,
};
use crate::load::{self, Server, assert_all};
use crate::tcp::tcp_statistic;
use sentry_bench::sandbox::{Cgroup, LoopDevice, Netns};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

const HANDSHAKES: &str = "sentry_tcp_handshake_duration_seconds";
const IO: &str = "sentry_disk_io_duration_seconds";
const AT_DEVICE: &str = "sentry_disk_device_duration_seconds";
const BYTES: &str = "sentry_disk_bytes_total";

/// The rung that needs no types, and whose records tell less.
const RECORDS: &str = "tracepoint";

/// Durations up to here are not compared between rungs: see [`compare`].
const SHORT_SECONDS: f64 = 0.002;

/// How long the agent takes to find a new cgroup of which the kernel does not tell.
pub(crate) const WALK_INTERVAL: Duration = Duration::from_secs(12);

/// A hook of a probe on this kernel.
pub(crate) struct Rung {
    probe: &'static str,
    hook: &'static str,
    /// What `sentry check` says of it.
    verdict: Value,
    /// Runs with this hook, where it can.
    pub(crate) agent: Option<Agent>,
    /// What was wrong.
    pub(crate) wrong: Vec<String>,
}

impl Rung {
    pub(crate) fn start(probe: &'static str, hook: &'static str) -> Self {
        let mut flags = format!("--probes {probe} --{probe}.hook {hook} {}", types());
        let verdict = check(&flags)["probes"][0].clone();
        assert_eq!(verdict["hook"], hook, "{verdict}");
        let is_up = ["attached", "degraded"].contains(&verdict["verdict"].as_str().unwrap());
        flags.push_str(" --metrics.buckets-per-octave 4 --series.max 512");
        let agent = is_up.then(|| Agent::start(&flags));
        Self {
            probe,
            hook,
            verdict,
            agent,
            wrong: Vec::new(),
        }
    }

    fn tells_all(&self) -> bool {
        self.hook != RECORDS
    }

    fn expect<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, found: &T, expected: &T) {
        if found != expected {
            let wrong = format!("{what}: {found:?} instead of {expected:?}");
            self.wrong.push(wrong);
        }
    }

    fn expect_at_least(&mut self, what: &str, found: f64, expected: f64) {
        if found < expected {
            let wrong = format!("{what}: {found} instead of {expected} or more");
            self.wrong.push(wrong);
        }
    }

    /// Prints its cell and ends its agent.
    fn end(self) -> Vec<String> {
        let result = match (&self.agent, self.wrong.is_empty()) {
            (None, _) => String::new(),
            (Some(_), true) => "exact".to_owned(),
            (Some(_), false) => self.wrong.join("; "),
        };
        let mut cell = json!({ "probe": self.probe, "hook": self.hook, "result": result });
        for key in ["verdict", "reason", "detail"] {
            cell[key] = self.verdict[key].clone();
        }
        println!("cell {cell}");
        if let Some(agent) = self.agent {
            agent.stop();
        }
        let name = format!("{} {}", self.probe, self.hook);
        self.wrong
            .into_iter()
            .map(|wrong| format!("{name}: {wrong}"))
            .collect()
    }
}

/// What `sentry check` says with these flags.
fn check(flags: &str) -> Value {
    let checked = output(sentry(&format!("check --format json {flags}")));
    serde_json::from_slice(&checked.stdout).unwrap()
}

/// Asserts that nothing was wrong anywhere, once all rungs have told.
pub(crate) fn end(rungs: Vec<Rung>) {
    assert!(
        rungs.iter().any(|rung| rung.agent.is_some()),
        "no rung runs"
    );
    let wrong: Vec<String> = rungs.into_iter().flat_map(Rung::end).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The buckets of all events of a histogram, the shortest first.
fn events(histogram: &Histogram) -> Vec<usize> {
    let mut below = 0;
    let mut events = Vec::new();
    for (bucket, &(_, cumulative)) in histogram.buckets.iter().enumerate() {
        for _ in below..cumulative {
            events.push(bucket);
        }
        below = cumulative;
    }
    events
}

/// Compares a histogram of all rungs: no event may be more than a bucket away from the same one of the first rung. The
/// programs run one after another, so that a duration as short as that of a program is not the same to all of them: an
/// emulated CPU takes many microseconds for one.
fn compare(
    rungs: &mut [Rung],
    scrapes: &[Option<Exposition>],
    name: &str,
    labels: &[(&str, &str)],
) {
    let mut first: Option<Vec<usize>> = None;
    for (rung, scrape) in rungs.iter_mut().zip(scrapes) {
        let Some(scrape) = scrape else {
            continue;
        };
        let histogram = scrape.histogram(name, labels);
        let events = events(histogram);
        let Some(first) = &first else {
            first = Some(events);
            continue;
        };
        let far = first.iter().zip(&events).filter(|(one, other)| {
            let (upper_edge, _) = histogram.buckets[**one.max(other)];
            one.abs_diff(**other) > 1 && upper_edge > SHORT_SECONDS
        });
        rung.expect(
            &format!("events more than a bucket away in {name}"),
            &far.count(),
            &0,
        );
    }
}

fn scrapes(rungs: &[Rung]) -> Vec<Option<Exposition>> {
    if !named() {
        sleep(WALK_INTERVAL);
    }
    let agents = rungs.iter().map(|rung| rung.agent.as_ref());
    agents.map(|agent| agent.map(Agent::scrape)).collect()
}

/// Whether this kernel tells of cgroups as they come; else the agent walks their tree.
pub(crate) fn named() -> bool {
    static NAMED: OnceLock<bool> = OnceLock::new();
    *NAMED.get_or_init(|| {
        let report = check("");
        let probes = report["probes"].as_array().unwrap();
        let names = probes
            .iter()
            .find(|probe| probe["probe"] == "cgroup")
            .unwrap();
        names["verdict"] == "attached"
    })
}

/// Events of a probe that the kernel says it did not show to the agent: it runs no program that is running already on
/// that CPU, in a task or on an interrupt.
fn lost(scrape: &Exposition, probe: &str) -> u64 {
    scrape.count("sentry_events_lost_total", &[("probe", probe)])
}

/// Holds all rungs to a load, and to another where they missed something and the kernel says that it hid an event: it
/// counted one as lost, or a bystander was interrupted. Nothing else is ever forgiven.
fn undisturbed(
    rungs: &mut [Rung],
    watch: fn(&[Rung]) -> Bystanders,
    mut attempt: impl FnMut(&mut [Rung]),
) {
    let all_lost = |rungs: &[Rung]| -> u64 {
        let agents = rungs.iter().filter_map(|rung| rung.agent.as_ref());
        agents
            .map(|agent| lost(&agent.scrape(), rungs[0].probe))
            .sum()
    };
    for number in 1..=ATTEMPTS {
        let (bystanders, before) = (watch(rungs), all_lost(rungs));
        attempt(rungs);
        let wrong = rungs.iter().any(|rung| !rung.wrong.is_empty());
        let (bystanders, lost) = (bystanders.count(), all_lost(rungs) - before);
        if !wrong || bystanders + lost == 0 || number == ATTEMPTS {
            return;
        }
        for rung in &mut *rungs {
            println!(
                "once more, {bystanders} bystanders, {lost} lost: {:?}",
                rung.wrong
            );
            rung.wrong.clear();
        }
    }
}

fn handshakes(role: &str, count: u64) -> String {
    format!("{HANDSHAKES}_count{{role={role}}} {count}")
}

fn failures(reason: &str, count: u64) -> String {
    format!("sentry_tcp_connect_failures_total{{reason={reason}}} {count}")
}

/// Connects of all kinds, each kind in a cgroup of its own.
struct Connects {
    /// 637 clients.
    clients: Cgroup,
    /// Their servers.
    servers: Cgroup,
    /// 37 that nobody waits for.
    refused: Cgroup,
    /// 5 that nobody answers.
    silent: Cgroup,
    /// How often their SYNs were sent again.
    resent: u64,
    /// 200 that are answered after 20 to 640 ms.
    late_clients: Cgroup,
    /// The server of 20 that end their handshake after 60 ms.
    late_servers: Cgroup,
}

impl Connects {
    fn make() -> Self {
        let mut all = Self {
            clients: socket_cgroup("clients"),
            servers: socket_cgroup("servers"),
            refused: socket_cgroup("refused"),
            silent: socket_cgroup("silent"),
            resent: 0,
            late_clients: socket_cgroup("late-clients"),
            late_servers: socket_cgroup("late-servers"),
        };
        for (listen, connect, number) in [("127.0.0.1", "127.0.0.1", 500), ("::1", "[::1]", 137)] {
            let listener = Server::listen(&format!("--addr {listen}"), &[&all.servers]);
            let args = format!(
                "connect --to {connect}:{} --count {number}",
                listener.port()
            );
            assert_all(&load::run(&args, &[&all.clients]), "connected", number);
            assert_eq!(listener.finish()["accepted"], number);
        }
        let args = "connect --to 127.0.0.1:1 --count 37";
        assert_all(&load::run(args, &[&all.refused]), "refused", 37);
        all.wait_in_vain();
        all.answer_late();
        all
    }

    fn wait_in_vain(&mut self) {
        let netns = Netns::new("ladder").unwrap();
        netns.sysctl("net.ipv4.tcp_syn_retries", "1").unwrap();
        // Since 6.5 the first retransmissions are counted apart.
        let _ = netns.sysctl("net.ipv4.tcp_syn_linear_timeouts", "0");
        let peer = tun_peer(&netns, "--silent");
        let args = "connect --to 10.99.0.2:80 --threads 5";
        assert_all(&load::run_in(&netns, args, &[&self.silent]), "timeout", 5);
        self.resent = tcp_statistic(&netns, "RetransSegs");
        drop(peer);
    }

    fn answer_late(&self) {
        let netns = Netns::new("ladder").unwrap();
        let peer = tun_peer(&netns, "--delay-ms 20 --delay-to-ms 640");
        let args = "connect --to 10.99.0.2:80 --threads 40 --count 5";
        let connects = load::run_in(&netns, args, &[&self.late_clients]);
        assert_all(&connects, "connected", 200);
        drop(peer);

        let netns = Netns::new("ladder").unwrap();
        let listener = load::command_in(&netns, "listen --addr 0.0.0.0", &[&self.late_servers]);
        let listener = Server::start(listener);
        let args = format!(
            "tun-client --name tun9 --addr 10.99.0.1/24 --port {} --count 20 --delay-ms 60",
            listener.port()
        );
        let clients = Server::start(load::command_in(&netns, &args, &[]));
        wait_for("20 connections", Duration::from_secs(30), || {
            (tcp_statistic(&netns, "PassiveOpens") >= 20).then_some(())
        });
        clients.finish();
        assert_eq!(listener.finish()["accepted"], 20);
    }

    /// Holds what a rung says to what it can tell.
    fn expect(&self, rung: &mut Rung, scrape: &Exposition) {
        let all = rung.tells_all();
        // Without cgroup v2 only the connecting task tells whose a socket is, and the records do not even that.
        let by_client = all || !is_v1_only();
        let by_server = all && !is_v1_only();
        let reason = |reason| if all { reason } else { "other" };
        let mut timeouts = vec![failures(reason("timeout"), 5)];
        if all {
            timeouts.push(format!(
                "sentry_tcp_syn_retransmits_total{{}} {}",
                self.resent
            ));
        }
        let refused = failures(reason("refused"), 37);
        for (cgroup, is_told, lines) in [
            (&self.clients, by_client, vec![handshakes("client", 637)]),
            (&self.servers, by_server, vec![handshakes("server", 637)]),
            (&self.refused, by_client, vec![refused]),
            (&self.silent, by_client, timeouts),
            (
                &self.late_clients,
                by_client,
                vec![handshakes("client", 200)],
            ),
            (
                &self.late_servers,
                by_server,
                vec![handshakes("server", 20)],
            ),
        ] {
            let label = label(cgroup);
            let lines = if is_told { lines } else { Vec::new() };
            rung.expect(&label, &scrape.of_cgroup(&label), &lines);
        }
        // What has no owner is not lost.
        if !by_server {
            let (metric, cgroup) = if all {
                (format!("{HANDSHAKES}_count"), "/")
            } else {
                ("sentry_tcp_handshakes_unmeasured_total".to_owned(), "other")
            };
            let found = scrape.value(&metric, &[("cgroup", cgroup), ("role", "server")]);
            rung.expect_at_least("servers of nobody", found, 657.0);
        }
        if !by_client {
            let client = [("cgroup", "/"), ("role", "client")];
            let found = scrape.value(&format!("{HANDSHAKES}_count"), &client);
            rung.expect_at_least("clients of nobody", found, 837.0);
        }
        for metric in [
            "sentry_connections_untracked_total",
            "sentry_series_overflow_total",
        ] {
            rung.expect(metric, &scrape.value(metric, &[("probe", "tcp")]), &0.0);
        }
    }
}

#[test]
fn every_rung_of_tcp_counts_the_same() {
    turn!("every_rung_of_tcp_counts_the_same");
    load::program();
    let mut rungs: Vec<Rung> = ["tp_btf", "kprobe", RECORDS]
        .map(|hook| Rung::start("tcp", hook))
        .into();
    // The scrapes are connects as well, and not those of the load.
    let watch = |rungs: &[Rung]| {
        let agents = rungs.iter().filter_map(|rung| rung.agent.as_ref());
        Bystanders::of_handshakes_but(agents.map(|agent| agent.address().port()))
    };
    undisturbed(&mut rungs, watch, |rungs| {
        let connects = Connects::make();
        let scrapes = scrapes(rungs);
        for (rung, scrape) in rungs.iter_mut().zip(&scrapes) {
            if let Some(scrape) = scrape {
                connects.expect(rung, scrape);
            }
        }
        if !is_v1_only() {
            let late = label(&connects.late_clients);
            let late = [("cgroup", late.as_str()), ("role", "client")];
            compare(rungs, &scrapes, HANDSHAKES, &late);
            let late = label(&connects.late_servers);
            let late = [("cgroup", late.as_str()), ("role", "server")];
            let by_server = &scrapes[..scrapes.len() - 1];
            compare(rungs, by_server, HANDSHAKES, &late);
        }
    });
    end(rungs);
}

fn tun_peer(netns: &Netns, args: &str) -> Server {
    let args = format!("tun-peer --name tun9 --addr 10.99.0.1/24 {args}");
    Server::start(load::command_in(netns, &args, &[]))
}

/// A disk to write to: the one that the environment names, else a loop device.
pub(crate) struct Disk {
    path: PathBuf,
    _device: Option<LoopDevice>,
}

impl Disk {
    pub(crate) fn new(variable: &str) -> Self {
        if let Some(path) = std::env::var_os(variable) {
            return Self {
                path: path.into(),
                _device: None,
            };
        }
        let device = LoopDevice::new(32 << 20).unwrap();
        Self {
            path: device.path().to_owned(),
            _device: Some(device),
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.path.file_name().unwrap().to_str().unwrap()
    }

    /// Writes that the block layer has counted.
    fn writes(&self) -> u64 {
        let stat = Path::new("/sys/block").join(self.name()).join("stat");
        let text = fs::read_to_string(stat).unwrap();
        text.split_whitespace().nth(4).unwrap().parse().unwrap()
    }

    pub(crate) fn load(&self, operation: &str, cgroups: &[&Cgroup]) {
        let (operation, args) = operation.split_once(' ').unwrap();
        let file = self.path.display();
        load::run(
            &format!("{operation} --file {file} --direct {args}"),
            cgroups,
        );
    }

    /// All that is to be said of a cgroup that did only this, sorted.
    fn moved(&self, operation: &str, count: u64, bytes: u64) -> Vec<String> {
        let labels = format!("device={},operation={operation}", self.name());
        vec![
            format!("{BYTES}{{{labels}}} {bytes}"),
            format!("{AT_DEVICE}_count{{{labels}}} {count}"),
            format!("{IO}_count{{{labels}}} {count}"),
        ]
    }
}

/// Requests of all kinds, each kind in a cgroup of its own: 300 reads, 200 writes each with an fsync, 64 writes of
/// 256 KiB, and 20 reads of a slow disk. One at a time: a request that completes while the program for another's issue
/// runs on that CPU is hidden from the records' programs, which kernels before 6.7 do not even count.
struct Requests {
    /// In the block layer's hierarchy and, where that is another one, in v2, by which the records tell.
    cgroups: [(Cgroup, Option<Cgroup>); 4],
    /// What the block layer made of the large writes.
    large: u64,
}

impl Requests {
    fn make(disk: &Disk, slow: &Disk) -> Self {
        let cgroups = ["reads", "writes", "large", "slow"].map(|name| {
            let v2 = (roots().v2 != roots().blkio).then(|| socket_cgroup(name));
            (disk_cgroup(name), v2)
        });
        disk.load("read --count 300", &both(&cgroups[0]));
        disk.load("write --count 200 --fsync-each", &both(&cgroups[1]));
        let before = disk.writes();
        disk.load("write --count 64 --size 262144", &both(&cgroups[2]));
        let large = disk.writes() - before;
        slow.load("read --count 20", &both(&cgroups[3]));
        Self { cgroups, large }
    }

    /// Holds what a rung says to what it can tell.
    fn expect(&self, rung: &mut Rung, scrape: &Exposition, disk: &Disk, slow: &Disk) {
        let all = rung.tells_all();
        let mut writes = disk.moved("write", 200, 200 * 4096);
        if all {
            let device = disk.name();
            writes.push(format!("{IO}_count{{device={device},operation=flush}} 200"));
            writes.sort();
        }
        let expected = [
            (disk, disk.moved("read", 300, 300 * 4096)),
            (disk, writes),
            (disk, disk.moved("write", self.large, 16 << 20)),
            (slow, slow.moved("read", 20, 20 * 4096)),
        ];
        // Without cgroup v2 the records name no owner but the root.
        let has_owner = all || !is_v1_only();
        for (cgroups, (device, lines)) in self.cgroups.iter().zip(expected) {
            let [blkio, v2] = both(cgroups);
            let owner = label(if all { blkio } else { v2 });
            let mut told = scrape.of_cgroup(&owner);
            told.retain(|line| line.contains(&format!("device={},", device.name())));
            rung.expect(&owner, &told, &if has_owner { lines } else { Vec::new() });
        }
        if !has_owner {
            let labels = [
                ("cgroup", "/"),
                ("device", disk.name()),
                ("operation", "read"),
            ];
            let found = scrape.value(&format!("{IO}_count"), &labels);
            rung.expect_at_least("reads of nobody", found, 300.0);
        }
        for metric in [
            "sentry_disk_io_untimed_total",
            "sentry_disk_io_untracked_total",
            "sentry_series_overflow_total",
        ] {
            rung.expect(metric, &scrape.value(metric, &[("probe", "disk")]), &0.0);
        }
    }
}

fn both((blkio, v2): &(Cgroup, Option<Cgroup>)) -> [&Cgroup; 2] {
    [blkio, v2.as_ref().unwrap_or(blkio)]
}

#[test]
fn every_rung_of_disk_counts_the_same() {
    turn!("every_rung_of_disk_counts_the_same");
    load::program();
    let _io = IoController::on();
    let mut rungs: Vec<Rung> = ["tp_btf", "raw_tp", RECORDS]
        .map(|hook| Rung::start("disk", hook))
        .into();
    let (disk, slow) = (
        Disk::new("SENTRY_TEST_DISK"),
        Disk::new("SENTRY_TEST_SLOW_DISK"),
    );

    undisturbed(
        &mut rungs,
        |_| Bystanders::of_devices(),
        |rungs| {
            let requests = Requests::make(&disk, &slow);
            let scrapes = scrapes(rungs);
            for (rung, scrape) in rungs.iter_mut().zip(&scrapes) {
                if let Some(scrape) = scrape {
                    requests.expect(rung, scrape, &disk, &slow);
                }
            }
            if !is_v1_only() && roots().v2 == roots().blkio {
                let (owner, _) = &requests.cgroups[3];
                let owner = label(owner);
                compare(rungs, &scrapes, AT_DEVICE, &[("cgroup", &owner)]);
                // The records know nothing of the time before the issue.
                let telling_all = &scrapes[..scrapes.len() - 1];
                compare(rungs, telling_all, IO, &[("cgroup", &owner)]);
            }
        },
    );
    end(rungs);
}

/// Where requests carry no time stamps, the raw tracepoint of the issue steps in as the typed one does.
#[test]
fn the_second_hook_of_raw_tp_steps_in() {
    turn!("the_second_hook_of_raw_tp_steps_in");
    let _io = IoController::on();
    let flags = format!("--probes disk --disk.hook raw_tp {}", types());
    let agent = Agent::start(&flags);
    assert_issue_hook_steps_in(&agent);
    agent.stop();
}

/// A command of the agent's program that sees no types of the kernel.
pub(crate) fn without_types(flags: &str) -> Command {
    let mut command = Command::new("unshare");
    // They may be missing already.
    let script = "if [ -e /sys/kernel/btf/vmlinux ]; then mount --bind /dev/null /sys/kernel/btf/vmlinux || exit; fi; \
        exec \"$0\" \"$@\"";
    command.args(["--mount", "sh", "-c", script, crate::agent::SENTRY]);
    without_settings(&mut command).args(flags.split_whitespace());
    command
}

#[test]
fn without_types_the_records_serve() {
    turn!("without_types_the_records_serve");
    let agent = Agent::spawn(without_types("--probes tcp,disk"));
    // Made after the agent: its name comes by a record as well.
    let (client, folder) = (socket_cgroup("client"), socket_cgroup("parent"));
    let child = Cgroup::new(folder.path(), "child").unwrap();
    load::run("connect --to 127.0.0.1:1 --count 3", &[&client]);
    load::run("connect --to 127.0.0.1:1 --count 4", &[&child]);
    let scrape = agent.scrape();
    for probe in ["tcp", "disk"] {
        let verdict = [("probe", probe), ("hook", RECORDS), ("verdict", "degraded")];
        assert_eq!(scrape.value("sentry_probe_up", &verdict), 1.0);
    }
    assert_eq!(scrape.of_cgroup(&label(&client)), [failures("other", 3)]);
    assert_eq!(scrape.of_cgroup(&label(&child)), [failures("other", 4)]);
    let log = agent.log();
    assert!(log.contains("/sys/kernel/btf/vmlinux"), "{log}");
    agent.stop();
}

#[test]
fn types_may_come_from_a_file() {
    turn!("types_may_come_from_a_file");
    let Ok(types) = fs::read("/sys/kernel/btf/vmlinux") else {
        return skipped(
            "types_may_come_from_a_file",
            "this kernel shows no types of its own",
        );
    };
    let _io = IoController::on();
    let folder = Folder::new();
    let other = folder.path().join("other.btf");
    fs::write(&other, shifted(&types, "task_struct", "tgid")).unwrap();
    let file = folder.path().join("vmlinux.btf");
    fs::write(&file, types).unwrap();
    let file = file.display();
    let agent = Agent::spawn(without_types(&format!("--probes disk --btf {file}")));
    let verdict = [
        ("hook", "raw_tp"),
        ("verdict", "attached"),
        ("reason", "ok"),
    ];
    assert_eq!(agent.scrape().value("sentry_probe_up", &verdict), 1.0);
    agent.stop();

    for (name, text) in [("none", None), ("text", Some("no types"))] {
        let file = folder.path().join(name);
        if let Some(text) = text {
            fs::write(&file, text).unwrap();
        }
        let refused = output(without_types(&format!("--btf {}", file.display())));
        assert_eq!(refused.status.code(), Some(2));
        let line = String::from_utf8(refused.stderr).unwrap();
        assert!(
            line.starts_with(&format!("sentry: --btf {}: ", file.display())),
            "{line}"
        );
        assert!(
            line.trim_end().lines().count() == 1 && line.contains("raw BTF"),
            "{line}"
        );
    }

    // Of a kernel that is built otherwise: its offsets are found out before they give wrong numbers.
    let refused = output(without_types(&format!("--btf {}", other.display())));
    assert_eq!(refused.status.code(), Some(2));
    let line = String::from_utf8(refused.stderr).unwrap();
    assert!(line.contains("it is not of this kernel"), "{line}");
}

/// A kernel's types with a member of a structure four bytes further on.
fn shifted(types: &[u8], structure: &str, member: &str) -> Vec<u8> {
    let word = |at: usize| {
        let bytes = types[at..at + 4].try_into().unwrap();
        usize::try_from(u32::from_ne_bytes(bytes)).unwrap()
    };
    // Documentation/bpf/btf.rst: a header, then types and strings where it says.
    let (head, strings) = (word(4), word(4) + word(16));
    let has_name = |at: usize, name: &str| {
        let text = &types[strings + word(at)..];
        text.starts_with(name.as_bytes()) && text[name.len()] == 0
    };
    let (mut at, end) = (head + word(8), head + word(8) + word(12));
    while at < end {
        let (kind, count) = (word(at + 4) >> 24 & 31, word(at + 4) & 0xffff);
        let entries = at + 12;
        if kind == 4 && has_name(at, structure) {
            let mut members = (0..count).map(|number| entries + 12 * number);
            if let Some(found) = members.find(|at| has_name(*at, member)) {
                let bits = u32::try_from(word(found + 8) + 32).unwrap();
                let mut other = types.to_vec();
                other[found + 8..found + 12].copy_from_slice(&bits.to_ne_bytes());
                return other;
            }
        }
        at = entries
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => 0,
            };
    }
    panic!("no {structure}.{member}");
}

#[test]
fn a_hook_that_the_kernel_lacks_harms_no_other_probe() {
    turn!("a_hook_that_the_kernel_lacks_harms_no_other_probe");
    // Without types there is nothing to fit this one to.
    let agent = Agent::spawn(without_types("--probes tcp,disk --tcp.hook tp_btf"));
    let scrape = agent.scrape();
    let verdict = [
        ("probe", "tcp"),
        ("hook", "tp_btf"),
        ("verdict", "unsupported"),
        ("reason", "no_btf"),
    ];
    assert_eq!(scrape.value("sentry_probe_up", &verdict), 0.0);
    assert_eq!(scrape.value("sentry_probe_up", &[("probe", "disk")]), 1.0);
    let ready = agent.get("/readyz", &[]);
    assert_eq!(ready.status, 200);
    assert!(
        ready.text().contains("tcp: unsupported"),
        "{}",
        ready.text()
    );
    assert!(
        agent.log().contains("/sys/kernel/btf/vmlinux"),
        "{}",
        agent.log()
    );
    agent.stop();

    // Alone, it leaves nothing to do.
    let refused = output(without_types("--probes tcp --tcp.hook tp_btf"));
    assert_eq!(refused.status.code(), Some(2));
    let line = String::from_utf8(refused.stderr).unwrap();
    let line = line.lines().last().unwrap();
    assert!(line.starts_with("sentry: --tcp.hook tp_btf: "), "{line}");
    assert!(line.contains("/sys/kernel/btf/vmlinux"), "{line}");
}

/// A command under a tracer that lets the kernel refuse some of its `bpf()` calls, by their numbers.
fn refusing(refused: &str, log: &Path, args: &str) -> Command {
    let mut command = Command::new("strace");
    command.args(["--follow-forks", "--quiet=all", "--trace=bpf"]);
    command.arg("--output").arg(log);
    if !refused.is_empty() {
        command.arg(format!("--inject=bpf:error=EINVAL:when={refused}"));
    }
    // The agent goes with its tracer.
    command.args(["setpriv", "--pdeathsig", "KILL", crate::agent::SENTRY]);
    without_settings(&mut command).args(args.split_whitespace());
    // What it takes is measured by one call more, which a check does not make.
    command.args(["--overhead.budget", "off"]);
    command
}

/// The number of the first `bpf()` call of a kind that has one of these words.
fn number_of_call(log: &Path, args: &str, kind: &str, words: &[&str]) -> usize {
    assert!(
        output(refusing("", log, &format!("check {args}")))
            .status
            .success()
    );
    let calls = fs::read_to_string(log).unwrap();
    let mut calls = calls.lines().filter(|line| line.contains("bpf("));
    1 + calls
        .position(|call| call.contains(kind) && words.iter().any(|word| call.contains(word)))
        .unwrap()
}

/// The kernel refuses one program: the probe fails, the others run on.
#[test]
fn a_probe_that_is_sabotaged_leaves_the_others_running() {
    turn!("a_probe_that_is_sabotaged_leaves_the_others_running");
    // Forced, so that no lesser hook takes its place. The kernel keeps 15 characters of a name.
    let (hook, program, known_as) = if Path::new("/sys/kernel/btf/vmlinux").exists() {
        ("tp_btf", "disk_complete", "disk_complete")
    } else {
        (RECORDS, "disk_make_record", "disk_make_recor")
    };
    let flags = &format!("--probes tcp,disk --disk.hook {hook}");
    let folder = Folder::new();
    let log = folder.path().join("strace");
    let known_as = format!("\"{known_as}\"");
    let number = number_of_call(&log, flags, "BPF_PROG_LOAD", &[&known_as]);
    // Aya tries a refused program once more, to have the verifier's log.
    let agent = Agent::spawn(refusing(&format!("{number}..{}", number + 1), &log, flags));
    let scrape = agent.scrape();
    let verdict = [
        ("probe", "disk"),
        ("verdict", "failed"),
        ("reason", "rejected"),
    ];
    assert_eq!(scrape.value("sentry_probe_up", &verdict), 0.0);
    let tcp = scrape.value("sentry_probe_up", &[("probe", "tcp")]);
    assert_eq!(tcp, 1.0);
    let ready = agent.get("/readyz", &[]);
    assert_eq!(ready.status, 200);
    let text = ready.text();
    assert!(
        text.contains(&format!("disk: failed: {program} was refused")),
        "{text}"
    );
    // What runs still counts.
    let client = socket_cgroup("client");
    load::run("connect --to 127.0.0.1:1 --count 3", &[&client]);
    let reason = if hook == RECORDS { "other" } else { "refused" };
    assert_eq!(
        agent.scrape().of_cgroup(&label(&client)),
        [failures(reason, 3)]
    );
}

/// A kernel that says it is 4.19 and refuses a map: one sentence, and no panic.
#[test]
fn a_kernel_too_old_is_named() {
    turn!("a_kernel_too_old_is_named");
    let folder = Folder::new();
    let (log, proc) = (folder.path().join("strace"), folder.path().join("proc"));
    fs::create_dir_all(proc.join("sys/kernel")).unwrap();
    fs::write(proc.join("sys/kernel/osrelease"), "4.19.0-27-amd64\n").unwrap();
    for name in ["self", "cgroups", "net"] {
        std::os::unix::fs::symlink(Path::new("/proc").join(name), proc.join(name)).unwrap();
    }
    let flags = format!(
        "--web.listen-address 127.0.0.1:0 --path.procfs {}",
        proc.display()
    );
    // Maps are made in any order.
    let maps = [
        "\"histograms\"",
        "\"counters\"",
        "\"series_",
        "\"free_",
        "\"tcp_",
        "\"disk_",
        "rodata",
        "\"cgroup_",
    ];
    let number = number_of_call(&log, &flags, "BPF_MAP_CREATE", &maps);
    let refused = output(refusing(&number.to_string(), &log, &flags));
    assert_eq!(refused.status.code(), Some(1));
    let line = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(line.trim_end().lines().count(), 1, "{line}");
    let sentence =
        "sentry: this kernel (4.19.0-27-amd64) is too old: Sentry needs Linux 5.10 or later (";
    assert!(
        line.starts_with(sentence) && line.contains("failed to create map"),
        "{line}"
    );
    let checked = output(refusing(
        &number.to_string(),
        &log,
        &format!("check --format json {flags}"),
    ));
    assert_eq!(checked.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    for probe in report["probes"].as_array().unwrap() {
        assert_eq!(probe["verdict"], "unsupported");
        assert_eq!(probe["reason"], "kernel_too_old");
    }
}
