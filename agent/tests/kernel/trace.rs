//! `sentry trace`: a line for each event, with who and what is behind it, and no other.

mod closed;
mod gpu;

use crate::agent::{Printed, sentry};
use crate::disk::MIB;
use crate::host::{
    Folder, IoController, disk_cgroup, hooks, in_cgroup, is_v1_only, label, output, skipped,
    socket_cgroup, turn, types, wait_for,
};
use crate::ladder::{Disk, without_types};
use crate::load::{self, Server, assert_all};
use crate::node::{NAME, Node, id, slice, uid};
use rustix::process::{Pid, Signal, kill_process};
use sentry_bench::kubernetes::Pod;
use sentry_bench::sandbox::{Cgroup, LoopDevice};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a trace may take to begin or to end: the kernel lets go of uprobes one by one, on an emulated CPU for long.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a part of a test is tried.
const ATTEMPTS: usize = 3;

/// The hooks that tell enough of single events.
const TCP: [&str; 2] = ["tp_btf", "kprobe"];
const DISK: [&str; 2] = ["tp_btf", "raw_tp"];

/// A running trace. Killed on drop, should a test fail before it ends.
struct Trace {
    process: Child,
    printed: Option<[Printed; 2]>,
}

/// How a trace ended.
struct End {
    code: Option<i32>,
    lines: Vec<String>,
    stderr: String,
}

impl Trace {
    fn start(args: &str) -> Self {
        Self::spawn(sentry(&format!("trace {args} {}", types())))
    }

    /// With flags for a hook, which it must be by.
    fn by(hook: &str, args: &str) -> Self {
        let trace = Self::spawn(sentry(&format!("trace {args} {hook}")));
        let name = hook.split_whitespace().nth(1).unwrap();
        let [_, stderr] = trace.printed.as_ref().unwrap();
        let said = stderr.text();
        assert!(said.contains(&format!(" by {name}\n")), "{said}");
        trace
    }

    fn spawn(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let stdout = Printed::follow(process.stdout.take().unwrap());
        let stderr = Printed::follow(process.stderr.take().unwrap());
        let mut trace = Self {
            process,
            printed: Some([stdout, stderr]),
        };
        wait_for("begin of a trace", PATIENCE, || {
            let said = trace.printed.as_ref().unwrap()[1].text();
            assert_eq!(trace.process.try_wait().unwrap(), None, "{said}");
            said.contains("sentry: tracing ").then_some(())
        });
        trace
    }

    /// Lines so far.
    fn lines(&self) -> usize {
        let [stdout, _] = self.printed.as_ref().unwrap();
        stdout.text().lines().count()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until it has ended.
    fn wait(mut self) -> End {
        let status = wait_for("end of a trace", PATIENCE, || {
            self.process.try_wait().unwrap()
        });
        let [stdout, stderr] = self.printed.take().unwrap().map(Printed::all);
        End {
            code: status.code(),
            lines: stdout.lines().map(str::to_owned).collect(),
            stderr,
        }
    }

    /// Ends it as Ctrl-C does, and asserts that its rings had room for all; its objects, or none where the kernel left
    /// out runs of its programs.
    fn objects(self) -> Option<Vec<Value>> {
        self.signal(Signal::INT);
        let End {
            code,
            lines,
            stderr,
        } = self.wait();
        assert_eq!(code, Some(0), "{stderr}");
        let said = format!("sentry: {} events; ", lines.len());
        let end = stderr.lines().last().unwrap();
        let lost = end.strip_prefix(&said);
        let lost = lost.unwrap_or_else(|| panic!("{stderr}"));
        if lost != "none lost" {
            let unseen = lost.strip_suffix(" runs of programs left out by the kernel");
            let is_number = unseen.is_some_and(|unseen| unseen.parse::<u64>().is_ok());
            assert!(is_number, "{stderr}");
            eprintln!("once more: {lost}");
            return None;
        }
        let objects = lines.iter().map(|line| serde_json::from_str(line).unwrap());
        Some(objects.collect())
    }
}

/// Does a part of a test, and does it once more where the kernel left out runs of the programs: it runs none on top of
/// one that is running already on that CPU, so a packet or a completed request may have gone unseen. It counts those
/// runs, and nothing else is forgiven.
fn seen<T>(mut part: impl FnMut() -> Option<T>) -> T {
    let mut parts = (0..ATTEMPTS).map(|_| part());
    let found = parts.find_map(|part| part);
    found.expect("the kernel left out runs each time")
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A program that waits for a line before it begins, so that its process is known before.
struct Waiting(Child);

impl Waiting {
    fn new(args: &str, cgroups: &[&Cgroup]) -> Self {
        let load = load::command(args, cgroups);
        let mut command = Command::new("sh");
        command.args(["-c", "read go; exec \"$0\" \"$@\""]);
        command.arg(load.get_program()).args(load.get_args());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Lets it run to its end; its report.
    fn go(mut self) -> Value {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        let output = self.0.wait_with_output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// Those that have this value.
fn with<'a>(objects: &'a [Value], name: &str, value: &str) -> Vec<&'a Value> {
    let objects = objects.iter();
    objects.filter(|object| object[name] == value).collect()
}

#[test]
fn five_hundred_connects_are_500_lines_at_each_end() {
    turn!("five_hundred_connects_are_500_lines_at_each_end");
    for hook in hooks("tcp", &TCP) {
        connects(&hook);
    }
}

fn connects(hook: &str) {
    let (client, server) = (socket_cgroup("client"), socket_cgroup("server"));
    let listener = Server::listen("", &[&server]);
    let to = format!("127.0.0.1:{}", listener.port());
    let (pid, objects) = seen(|| {
        let port = listener.port();
        let trace = Trace::by(hook, &format!("tcp --format json --port {port}"));
        let load = Waiting::new(&format!("connect --to {to} --count 500"), &[&client]);
        let pid = load.pid();
        assert_all(&load.go(), "connected", 500);
        Some((pid, trace.objects()?))
    });
    assert_eq!(objects.len(), 1000);
    let clients = with(&objects, "role", "client");
    assert_eq!(clients.len(), 500);
    let mut ports = Vec::new();
    let mut times = Vec::new();
    for object in clients {
        assert_eq!(object["pid"], pid);
        assert_eq!(object["comm"], "load");
        assert_eq!(object["peer"], to.as_str());
        assert_eq!(object["outcome"], "ok");
        assert_eq!(object["cgroup"], label(&client).as_str());
        assert_eq!(object["syn_retransmits"], 0);
        let seconds = object["duration_seconds"].as_f64().unwrap();
        assert!((0.000_001..1.0).contains(&seconds), "{seconds}");
        ports.push(object["local"].as_str().unwrap().to_owned());
        times.push(object["time"].as_str().unwrap().to_owned());
    }
    ports.sort();
    ports.dedup();
    assert_eq!(ports.len(), 500);
    assert!(ports[0].starts_with("127.0.0.1:"), "{}", ports[0]);
    let servers = with(&objects, "role", "server");
    // Only the connecting task tells of a cgroup of version 1.
    let owner = if is_v1_only() {
        "/".to_owned()
    } else {
        label(&server)
    };
    let mut peers = Vec::new();
    for object in servers {
        assert_eq!(object.get("pid"), None);
        assert_eq!(object["local"], to.as_str());
        assert_eq!(object["cgroup"], owner.as_str());
        assert_eq!(object["outcome"], "ok");
        peers.push(object["peer"].as_str().unwrap().to_owned());
    }
    peers.sort();
    assert_eq!(peers, ports);
}

#[test]
fn refused_connects_of_either_family_are_lines() {
    turn!("refused_connects_of_either_family_are_lines");
    for hook in hooks("tcp", &TCP) {
        for to in ["127.0.0.1:1", "[::1]:1"] {
            refused(&hook, to);
        }
    }
}

fn refused(hook: &str, to: &str) {
    let client = socket_cgroup("client");
    let args = format!("tcp --format json --cgroup {}", label(&client));
    let (pid, objects) = seen(|| {
        let trace = Trace::by(hook, &args);
        let load = Waiting::new(&format!("connect --to {to} --count 40"), &[&client]);
        let pid = load.pid();
        assert_all(&load.go(), "refused", 40);
        Some((pid, trace.objects()?))
    });
    assert_eq!(objects.len(), 40);
    let host = to.rsplit_once(':').unwrap().0;
    for object in objects {
        assert_eq!(object["pid"], pid);
        assert_eq!(object["comm"], "load");
        assert_eq!(object["role"], "client");
        assert_eq!(object["peer"], to);
        assert_eq!(object["outcome"], "refused");
        assert!(object["duration_seconds"].as_f64().unwrap() > 0.0);
        let local = object["local"].as_str().unwrap();
        let port = local.strip_prefix(&format!("{host}:"));
        let port: u16 = port.unwrap().parse().unwrap();
        assert!(port > 1, "{local}");
    }
}

/// Two processes in two cgroups, one below the other's sibling, connect to two ports: each filter has its own.
#[test]
fn filters_let_through_what_they_should() {
    turn!("filters_let_through_what_they_should");
    for hook in hooks("tcp", &TCP) {
        filters(&hook);
    }
}

fn filters(hook: &str) {
    let (one, two) = (socket_cgroup("one"), socket_cgroup("two"));
    let (first, second) = (Server::listen("", &[]), Server::listen("", &[]));
    let to = |server: &Server| format!("connect --to 127.0.0.1:{}", server.port());
    let run = |filter: &dyn Fn(u32) -> String| {
        seen(|| {
            let a = Waiting::new(&format!("{} --count 30", to(&first)), &[&one]);
            let trace = Trace::by(hook, &format!("tcp --format json {}", filter(a.pid())));
            // Made after the trace began: it is found by the one around it.
            let below = Cgroup::new(two.path(), "below").unwrap();
            let b = Waiting::new(&format!("{} --count 20", to(&first)), &[&below]);
            let c = Waiting::new(&format!("{} --count 7", to(&second)), &[&two]);
            let pids = [a.pid(), b.pid(), c.pid()];
            for load in [a, b, c] {
                load.go();
            }
            let objects = trace.objects()?;
            let of = |pid: u32| objects.iter().filter(|object| object["pid"] == pid).count();
            Some((pids.map(of), objects.len()))
        })
    };
    let none = [0, 0, 0];
    assert_eq!(run(&|pid| format!("--pid {pid}")), ([30, 0, 0], 30));
    // With those of the servers.
    let port = second.port();
    assert_eq!(run(&|_| format!("--port {port}")), ([0, 0, 7], 14));
    let path = label(&two);
    // Tasks' cgroups of version 1 tell nothing of those above them.
    let below = if is_v1_only() { 0 } else { 20 };
    assert_eq!(
        run(&|_| format!("--cgroup {path}")),
        ([0, below, 7], below + 7)
    );
    let both = format!("--cgroup {path} --port {}", first.port());
    assert_eq!(run(&|_| both.clone()), ([0, below, 0], below));
    assert_eq!(
        run(&|pid| format!("--cgroup {path} --pid {pid}")),
        (none, 0)
    );
    let least = |least: &str| format!("--cgroup {path} --min-duration {least}");
    assert_eq!(run(&|_| least("1us")), ([0, below, 7], below + 7));
    assert_eq!(run(&|_| least("10s")), (none, 0));
}

/// Two processes in two cgroups write to a disk: each filter has its own.
#[test]
fn disk_filters_let_through_what_they_should() {
    turn!("disk_filters_let_through_what_they_should");
    let _io = IoController::on();
    for hook in hooks("disk", &DISK) {
        disk_filters(&hook);
    }
}

fn disk_filters(hook: &str) {
    let device = LoopDevice::new(MIB).unwrap();
    let file = device.path().display();
    let (one, two) = (disk_cgroup("one"), disk_cgroup("two"));
    let run = |filter: &dyn Fn(u32) -> String| {
        seen(|| {
            let write = |count: u32, cgroup| {
                let args = format!("write --file {file} --count {count} --direct --span {MIB}");
                Waiting::new(&args, &[cgroup])
            };
            let (a, b) = (write(30, &one), write(20, &two));
            let filter = filter(a.pid());
            let args = format!("disk --format json --device {file} {filter}");
            let trace = Trace::by(hook, &args);
            let pids = [a.pid(), b.pid()];
            a.go();
            b.go();
            let objects = trace.objects()?;
            let of = |pid: u32| objects.iter().filter(|object| object["pid"] == pid).count();
            let others = objects.len() - of(pids[0]) - of(pids[1]);
            Some((pids.map(of), others))
        })
    };
    assert_eq!(run(&|pid| format!("--pid {pid}")), ([30, 0], 0));
    let of_two = format!("--cgroup {}", label(&two));
    assert_eq!(run(&|_| of_two.clone()), ([0, 20], 0));
    assert_eq!(run(&|pid| format!("{of_two} --pid {pid}")), ([0, 0], 0));
    assert_eq!(
        run(&|_| format!("{of_two} --min-duration 1us")),
        ([0, 20], 0)
    );
    assert_eq!(run(&|_| format!("{of_two} --min-duration 1h")), ([0, 0], 0));
}

/// Of a container that is there before the trace, and of one that comes later.
#[test]
fn a_pod_has_its_own_lines() {
    turn!("a_pod_has_its_own_lines");
    if is_v1_only() {
        eprintln!(
            "a_pod_has_its_own_lines: sockets belong to no cgroup here, and their tasks' ids have no ancestors"
        );
        return;
    }
    let node = Node::new();
    let container = |pod: u64, number: u64| {
        let slice = slice("burstable", pod);
        node.cgroup(&format!("{slice}/cri-containerd-{}.scope", id(number)))
    };
    node.api.apply(&Pod::new(NAME, "shop", "api-0", &uid(1)));
    node.api.apply(&Pod::new(NAME, "shop", "api-1", &uid(2)));
    let (before, other) = (container(1, 1), container(2, 3));
    let listener = Server::listen("", &[]);
    let connect =
        |count: u32| format!("connect --to 127.0.0.1:{} --count {count}", listener.port());
    let (shown, objects) = seen(|| {
        let args = format!("trace tcp --format json --pod shop/api-0 {}", types());
        let trace = Trace::spawn(node.command(&args));
        // The API server tells when it likes.
        wait_for("pod", PATIENCE, || {
            before.run(&connect(1));
            (trace.lines() > 0).then_some(())
        });
        let shown = trace.lines();
        let after = container(1, 2);
        before.run(&connect(3));
        after.run(&connect(2));
        other.run(&connect(5));
        Some((shown, trace.objects()?))
    });
    for object in &objects {
        assert_eq!(
            (&object["namespace"], &object["pod"]),
            (&"shop".into(), &"api-0".into())
        );
    }
    let of = |number: u64| {
        objects
            .iter()
            .filter(|object| object["container"] == id(number))
            .count()
    };
    assert_eq!(of(2), 2);
    // What the one connect of a try has shown may have come later than it was looked for.
    assert!((shown + 3..=shown + 4).contains(&of(1)), "{shown}");
    assert_eq!(objects.len(), of(1) + of(2));
}

#[test]
fn requests_have_their_sectors_and_bytes() {
    turn!("requests_have_their_sectors_and_bytes");
    let _io = IoController::on();
    for hook in hooks("disk", &DISK) {
        requests(&hook);
    }
}

fn requests(hook: &str) {
    let (device, other) = (LoopDevice::new(MIB).unwrap(), LoopDevice::new(MIB).unwrap());
    let file = device.path().display();
    let name = device.name();
    for given in [name.to_owned(), file.to_string()] {
        let cgroup = disk_cgroup("disk");
        let args = format!("--count 50 --size 8192 --direct --span {MIB}");
        let (pids, mut objects) = seen(|| {
            let write = Waiting::new(&format!("write --file {file} {args}"), &[&cgroup]);
            let elsewhere = other.path().display();
            let unseen = Waiting::new(&format!("write --file {elsewhere} {args}"), &[&cgroup]);
            let trace = Trace::by(hook, &format!("disk --format json --device {given}"));
            let pids = [write.pid(), unseen.pid()];
            write.go();
            unseen.go();
            Some((pids, trace.objects()?))
        });
        assert!(objects.iter().all(|object| object["device"] == name));
        assert!(objects.iter().all(|object| object["pid"] != pids[1]));
        objects.retain(|object| object["pid"] == pids[0]);
        assert_eq!(objects.len(), 50);
        for (number, object) in (0u64..).zip(&objects) {
            assert_eq!(object["comm"], "load");
            assert_eq!(object["operation"], "write");
            assert_eq!(object["sector"], number * 16);
            assert_eq!(object["bytes"], 8192);
            assert_eq!(object["outcome"], "ok");
            assert_eq!(object["cgroup"], label(&cgroup).as_str());
            let seconds = |name: &str| object[name].as_f64().unwrap();
            let (whole, part) = (
                seconds("duration_seconds"),
                seconds("device_duration_seconds"),
            );
            assert!(0.0 < part && part <= whole && whole < 1.0, "{object}");
        }
    }
}

/// biosnoop of Debian's libbpf-tools. Killed on drop, should a test fail before it ends.
struct Biosnoop {
    process: Child,
    printed: Option<[Printed; 2]>,
    _folder: Folder,
}

impl Biosnoop {
    /// Waits until it sees all; none where it is not installed or cannot run, and why.
    fn start() -> Result<Self, String> {
        let folder = Folder::new();
        let why = match Self::spawn(Command::new("biosnoop"), folder) {
            Ok(biosnoop) => return Ok(biosnoop),
            Err(why) => why,
        };
        let (command, folder) = Self::as_on_5_11();
        Self::spawn(command, folder).map_err(|_| why)
    }

    /// It decides by the kernel's version which arguments the tracepoints have. Those of 5.11 have come to Debian's 5.10
    /// as well, so it has to take that for 5.11: first of all it believes `/proc/version_signature`, which Ubuntu has.
    fn as_on_5_11() -> (Command, Folder) {
        let folder = Folder::new();
        let proc = folder.path();
        fs::create_dir(proc.join("real")).unwrap();
        for name in ["filesystems", "kallsyms", "mounts", "partitions", "self"] {
            symlink(Path::new("real").join(name), proc.join(name)).unwrap();
        }
        fs::write(proc.join("version_signature"), "Linux 5.11 5.11.0\n").unwrap();
        let script =
            "mount -t proc proc \"$0/real\" && mount --rbind \"$0\" /proc && exec biosnoop";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script]).arg(proc);
        (command, folder)
    }

    fn spawn(mut command: Command, folder: Folder) -> Result<Self, String> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawned = command.spawn();
        let mut process = spawned.map_err(|error| format!("biosnoop of libbpf-tools: {error}"))?;
        let stdout = Printed::follow(process.stdout.take().unwrap());
        let stderr = Printed::follow(process.stderr.take().unwrap());
        let pid = process.id();
        let mut biosnoop = Self {
            process,
            printed: Some([stdout, stderr]),
            _folder: folder,
        };
        let has_begun = wait_for("begin of biosnoop", PATIENCE, || {
            if biosnoop.process.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let of = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
            let status = of("status");
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
            let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
            // Its last step before it reads: to catch SIGINT, signal 2.
            (of("comm") == "biosnoop\n" && caught & 1 << 1 != 0).then_some(true)
        });
        if has_begun {
            return Ok(biosnoop);
        }
        let [_, stderr] = biosnoop.printed.take().unwrap().map(Printed::all);
        let why = stderr.lines().next().unwrap_or_default();
        Err(format!("biosnoop cannot run on this kernel: {why}"))
    }

    /// Ends it; what it said of these devices.
    fn end(mut self, devices: &[&str]) -> Snooped {
        let pid = Pid::from_raw(self.process.id().cast_signed()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let status = wait_for("end of biosnoop", PATIENCE, || {
            self.process.try_wait().unwrap()
        });
        let [stdout, stderr] = self.printed.take().unwrap().map(Printed::all);
        assert!(status.success(), "{stderr}");
        assert_eq!(stderr, "");
        let mut lines = stdout.lines();
        let columns = "TIME(s) COMM PID DISK T SECTOR BYTES LAT(ms)";
        let head: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(head.join(" "), columns);
        let mut rows: Vec<(f64, Place, f64)> = lines
            // A thread's name may have spaces.
            .map(|line| line.split_whitespace().rev().collect::<Vec<_>>())
            .map(|words| {
                let [latency, bytes, sector, kind, disk] = words[..5] else {
                    panic!("{words:?}")
                };
                let place = Place {
                    device: disk.to_owned(),
                    operation: kind.trim_start_matches('F')[..1].to_owned(),
                    sector: sector.parse().unwrap(),
                    bytes: bytes.parse().unwrap(),
                };
                let time = words.last().unwrap().parse().unwrap();
                let milliseconds: f64 = latency.parse().unwrap();
                (time, place, milliseconds / 1e3)
            })
            .filter(|(_, place, _)| devices.contains(&place.device.as_str()))
            .collect();
        rows.sort_by(|(one, ..), (other, ..)| one.total_cmp(other));
        let mut snooped = Snooped::new();
        for (_, place, seconds) in rows {
            snooped.entry(place).or_default().push(seconds);
        }
        snooped
    }
}

impl Drop for Biosnoop {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a request was of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    device: String,
    /// The first letter of what it did.
    operation: String,
    sector: u64,
    bytes: u64,
}

/// How long requests were at their device, in seconds, in the order of time.
type Snooped = BTreeMap<Place, Vec<f64>>;

/// The same of a trace's objects.
fn traced(mut objects: Vec<Value>, devices: &[&str]) -> Snooped {
    objects.sort_by_key(|object| object["time"].as_str().unwrap().to_owned());
    let mut traced = Snooped::new();
    for object in objects {
        let text = |name: &str| object[name].as_str().unwrap().to_owned();
        let number = |name: &str| object[name].as_u64().unwrap();
        if !devices.contains(&text("device").as_str()) {
            continue;
        }
        let place = Place {
            device: text("device"),
            operation: text("operation")[..1].to_uppercase(),
            sector: number("sector"),
            bytes: number("bytes"),
        };
        let seconds = object["device_duration_seconds"].as_f64();
        let seconds = seconds.unwrap_or_else(|| panic!("not timed: {object}"));
        traced.entry(place).or_default().push(seconds);
    }
    traced
}

/// Both take their times in programs on the same tracepoints, one after the other. What stops that CPU between the two
/// is in the duration of one and not of the other: an interrupt, or another of a machine's virtual CPUs, whose turns are
/// long where they are emulated. It happens to one request in so many, and is less than a tenth of a long one.
const INTERRUPTED: usize = 20;
const LONG_SECONDS: f64 = 0.001;

/// How far from others' latency a trace's may be: a tenth, or what their whole microseconds and the run of somebody
/// else's program in between make of a short one, which is more on an emulated CPU.
fn tolerance(seconds: f64) -> f64 {
    let is_guest = std::env::var_os("SENTRY_TEST_DISK").is_some();
    let least = if is_guest { 6e-6 } else { 2e-6 };
    (seconds / 10.0).max(least)
}

/// The block layer's own tracepoints, in a tracing instance of its own. Gone on drop.
struct BlockTrace(PathBuf);

impl BlockTrace {
    /// Watches these disks; none where tracefs is not to be had, and why.
    fn start(disks: &[Disk]) -> Result<Self, String> {
        let name = format!("sentry-trace-{}", std::process::id());
        let instance = Path::new("/sys/kernel/tracing/instances").join(name);
        fs::create_dir(&instance).map_err(|error| format!("tracefs: {error}"))?;
        let trace = Self(instance);
        let set = |file: &str, value: &str| fs::write(trace.0.join(file), value).unwrap();
        set("trace_clock", "mono");
        let is_asked_for = disks.iter().map(|disk| {
            let number = fs::read_to_string(format!("/sys/block/{}/dev", disk.name())).unwrap();
            let (major, minor) = number.trim().split_once(':').unwrap();
            let (major, minor): (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
            format!("dev == {}", major << 20 | minor)
        });
        let filter = is_asked_for.collect::<Vec<_>>().join(" || ");
        for event in ["block_rq_issue", "block_rq_complete"] {
            set(&format!("events/block/{event}/filter"), &filter);
            set(&format!("events/block/{event}/enable"), "1");
        }
        Ok(trace)
    }

    /// What it has seen.
    fn end(self, disks: &[Disk]) -> Snooped {
        let text = fs::read_to_string(self.0.join("trace")).unwrap();
        let name = |number: &str| {
            let [major, minor] = number.split(',').collect::<Vec<_>>()[..] else {
                panic!("{number}")
            };
            let number = format!("{major}:{minor}");
            let dev = |disk: &&Disk| {
                let found = fs::read_to_string(format!("/sys/block/{}/dev", disk.name()));
                found.unwrap().trim() == number
            };
            disks.iter().find(dev).unwrap().name().to_owned()
        };
        let mut issued = BTreeMap::new();
        let mut snooped = Snooped::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (before, event) = line.split_once(": block_rq_").unwrap();
            let time: f64 = before.rsplit(' ').next().unwrap().parse().unwrap();
            let words: Vec<&str> = event.split_whitespace().collect();
            let place = words.iter().position(|word| *word == "()").unwrap();
            let sectors: u64 = words[place + 3].parse().unwrap();
            let place = Place {
                device: name(words[1]),
                operation: words[2].trim_start_matches('F')[..1].to_owned(),
                sector: words[place + 1].parse().unwrap(),
                bytes: sectors * 512,
            };
            if words[0] == "issue:" {
                issued.insert(place, time);
            } else {
                let seconds = time - issued.remove(&place).unwrap();
                snooped.entry(place).or_default().push(seconds);
            }
        }
        snooped
    }
}

impl Drop for BlockTrace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Who else tells how long requests are at their device.
enum Witness {
    Biosnoop(Biosnoop),
    BlockTrace(BlockTrace),
}

/// Reads and writes of two disks, one of which may be slow: a trace must have the same requests as somebody else, each as
/// long at its device.
fn same_io(test: &str, witness: impl Fn(&[Disk]) -> Result<Witness, String>) {
    let disks = [
        Disk::new("SENTRY_TEST_DISK"),
        Disk::new("SENTRY_TEST_SLOW_DISK"),
    ];
    let [disk, slow] = &disks;
    let devices = [disk.name(), slow.name()];
    for hook in hooks("disk", &DISK) {
        let ours_and_theirs = seen(|| {
            let trace = Trace::by(&hook, "disk --format json");
            let witness = match witness(&disks) {
                Ok(witness) => witness,
                Err(why) => return Some(Err(why)),
            };
            // Large, so that the time of somebody else's program, many microseconds on an emulated CPU, is little.
            disk.load("write --count 100 --size 262144", &[]);
            disk.load("read --count 200 --size 524288 --random", &[]);
            // Several at once only here: emulated CPUs take turns, and many a one is stopped between the two programs.
            slow.load("read --count 15 --threads 4", &[]);
            slow.load("write --count 20 --size 8192", &[]);
            let theirs = match witness {
                Witness::Biosnoop(biosnoop) => biosnoop.end(&devices),
                Witness::BlockTrace(trace) => trace.end(&disks),
            };
            Some(Ok((traced(trace.objects()?, &devices), theirs)))
        });
        let (ours, theirs) = match ours_and_theirs {
            Ok(both) => both,
            Err(why) => return skipped(test, &why),
        };
        let counts = |snooped: &Snooped| -> Vec<(Place, usize)> {
            let counts = snooped.iter();
            counts
                .map(|(place, all)| (place.clone(), all.len()))
                .collect()
        };
        assert_eq!(counts(&ours), counts(&theirs));
        let pairs = ours
            .iter()
            .zip(theirs.values())
            .flat_map(|((place, ours), theirs)| {
                let pairs = ours.iter().copied().zip(theirs.iter().copied());
                pairs.map(move |(ours, theirs)| (ours / theirs, ours, theirs, place))
            });
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_by(|(one, ..), (other, ..)| one.total_cmp(other));
        assert!(pairs.len() >= 380, "{}", pairs.len());
        let (least, middle, most) = (pairs[0], pairs[pairs.len() / 2], pairs[pairs.len() - 1]);
        println!(
            "{hook}: {} requests; ours to theirs, ours, theirs: {least:?} to {most:?}, half below {middle:?}",
            pairs.len()
        );
        let count = pairs.len();
        pairs.retain(|(_, ours, theirs, _)| (ours - theirs).abs() > tolerance(*theirs));
        let mut long = pairs
            .iter()
            .filter(|(_, ours, theirs, _)| ours.min(*theirs) >= LONG_SECONDS);
        let far = format!("{} of {count} are farther: {pairs:?}", pairs.len());
        assert!(
            long.next().is_none() && pairs.len() * INTERRUPTED <= count,
            "{far}"
        );
        println!("{far}");
    }
}

#[test]
fn the_same_io_as_biosnoop() {
    turn!("the_same_io_as_biosnoop");
    same_io("the_same_io_as_biosnoop", |_| {
        Biosnoop::start().map(Witness::Biosnoop)
    });
}

/// For kernels on which biosnoop cannot run: it takes its times in these very tracepoints.
#[test]
fn the_same_io_as_the_block_layer() {
    turn!("the_same_io_as_the_block_layer");
    same_io("the_same_io_as_the_block_layer", |disks| {
        BlockTrace::start(disks).map(Witness::BlockTrace)
    });
}

#[test]
fn requests_that_fail_are_lines() {
    turn!("requests_that_fail_are_lines");
    let _io = IoController::on();
    for hook in hooks("disk", &DISK) {
        failures(&hook);
    }
}

fn failures(hook: &str) {
    let device = LoopDevice::new(MIB).unwrap();
    let file = device.path().display();
    let name = device.name();
    let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).unwrap();
    let backing = fs::OpenOptions::new().write(true).open(backing.trim_end());
    // What lies beyond the end of the file cannot be read.
    backing.unwrap().set_len(MIB / 2).unwrap();
    let cgroup = disk_cgroup("error");
    let objects = seen(|| {
        let args = format!("disk --format json --cgroup {}", label(&cgroup));
        let trace = Trace::by(hook, &args);
        for _ in 0..7 {
            let mut read = in_cgroup(&cgroup, "dd");
            let whence = ["of=/dev/null", "bs=4096", "count=1", "skip=200"];
            read.arg(format!("if={file}"))
                .args(whence)
                .arg("iflag=direct");
            assert!(!output(read).status.success());
        }
        trace.objects()
    });
    let failed: Vec<&Value> = objects
        .iter()
        .filter(|object| object["outcome"] != "ok")
        .collect();
    assert_eq!(failed.len(), 7);
    for object in failed {
        assert_eq!(object["comm"], "dd");
        assert_eq!(object["device"], name);
        assert_eq!(object["operation"], "read");
        assert_eq!(object["outcome"], "io");
        assert_eq!(
            (&object["sector"], &object["bytes"]),
            (&1600.into(), &4096.into())
        );
    }
}

#[test]
fn lines_and_lost_are_what_happened() {
    turn!("lines_and_lost_are_what_happened");
    let server = Server::listen("", &[]);
    let trace = Trace::start(&format!("tcp --format json --port {}", server.port()));
    // Nobody reads meanwhile.
    trace.signal(Signal::STOP);
    let to = server.port();
    let args = format!("connect --to 127.0.0.1:{to} --threads 2 --pin-cpus --count 5000 --rst");
    assert_all(&load::run(&args, &[]), "connected", 10_000);
    trace.signal(Signal::CONT);
    trace.signal(Signal::INT);
    let End {
        code,
        lines,
        stderr,
    } = trace.wait();
    assert_eq!(code, Some(0), "{stderr}");
    let last = stderr.lines().last().unwrap();
    let said = last.strip_prefix("sentry: ").unwrap();
    let (shown, rest) = said.split_once(" events; ").unwrap();
    let (full, rest) = rest
        .split_once(" events lost: their ring was full")
        .unwrap();
    let (shown, full): (u64, u64) = (shown.parse().unwrap(), full.parse().unwrap());
    assert_eq!(shown, lines.len() as u64);
    assert!(full > 1000, "{stderr}");
    assert!(shown > 1000, "{stderr}");
    if rest.is_empty() {
        assert_eq!(shown + full, 20_000);
    } else {
        // A kernel that runs no program on top of another says of how many that is true.
        let unseen = rest
            .strip_prefix("; ")
            .and_then(|rest| rest.split_once(' '));
        let unseen: u64 = unseen.unwrap().0.parse().unwrap();
        assert!(
            (20_000 - unseen..=20_000).contains(&(shown + full)),
            "{stderr}"
        );
    }
}

#[test]
fn a_trace_ends_by_itself() {
    turn!("a_trace_ends_by_itself");
    let server = Server::listen("", &[]);
    let port = server.port();
    let trace = Trace::start(&format!("tcp --port {port} --count 5"));
    load::run(&format!("connect --to 127.0.0.1:{port} --count 20"), &[]);
    let end = trace.wait();
    assert_eq!((end.code, end.lines.len()), (Some(0), 6), "{}", end.stderr);
    assert!(end.lines[0].starts_with("TIME "), "{}", end.lines[0]);
    assert!(end.lines[1..].iter().all(|line| line.contains(" ok ")));
    assert!(end.stderr.contains("sentry: 5 events; "), "{}", end.stderr);
    let end = Trace::start("disk --duration 300ms --min-duration 1h").wait();
    assert_eq!((end.code, end.lines.len()), (Some(0), 1), "{}", end.stderr);
    assert!(
        end.stderr.ends_with("sentry: 0 events; none lost\n"),
        "{}",
        end.stderr
    );
    for signal in [Signal::TERM, Signal::HUP] {
        let trace = Trace::start("tcp --min-duration 1h");
        trace.signal(signal);
        assert_eq!(trace.wait().code, Some(0));
    }
}

#[test]
fn a_trace_whose_reader_goes_ends_quietly() {
    turn!("a_trace_whose_reader_goes_ends_quietly");
    let server = Server::listen("", &[]);
    let port = server.port();
    let args = format!("trace tcp --format json --port {port} {}", types());
    let mut command = sentry(&args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let stderr = Printed::follow(process.stderr.take().unwrap());
    drop(process.stdout.take());
    wait_for("begin of a trace", PATIENCE, || {
        stderr.text().contains("sentry: tracing ").then_some(())
    });
    load::run(&format!("connect --to 127.0.0.1:{port}"), &[]);
    let status = wait_for("end of a trace", PATIENCE, || process.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    let said = stderr.all();
    assert!(
        !said.contains("pipe") && !said.contains("panicked"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_traced_is_said_in_a_line() {
    turn!("what_cannot_be_traced_is_said_in_a_line");
    for (args, expected) in [
        (
            "tcp --cgroup /no/such",
            "sentry: --cgroup /no/such: no such cgroup; allowed: a path from the root of its hierarchy, such as /system.slice\n",
        ),
        (
            "disk --device nosuch",
            "sentry: --device nosuch: no such device; allowed: ",
        ),
    ] {
        let output = output(sentry(&format!("trace {args} {}", types())));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
        assert_eq!(output.stdout, b"");
    }
}

/// By its own choice where there are no types of the kernel, and by the user's.
#[test]
fn a_hook_that_tells_too_little_is_refused() {
    turn!("a_hook_that_tells_too_little_is_refused");
    for probe in ["tcp", "disk"] {
        let chosen = sentry(&format!("trace {probe} --{probe}.hook tracepoint"));
        for command in [chosen, without_types(&format!("trace {probe}"))] {
            let output = output(command);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            let expected = format!(
                "sentry: trace {probe}: the hook tracepoint tells too little of single events; sentry check says why there is no better one"
            );
            assert_eq!(stderr.lines().last(), Some(expected.as_str()), "{stderr}");
            assert_eq!(output.stdout, b"");
        }
    }
}
