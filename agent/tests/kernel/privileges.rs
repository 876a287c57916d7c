//! Privileges: two capabilities are enough, the rest is given up in every thread, and nothing that comes later misses it.

use crate::agent::{Agent, SENTRY, sentry, without_settings};
use crate::disk::{MIB, assert_issue_hook_steps_in, assert_said, moved};
use crate::host::{Folder, IoController, label, output, skipped, socket_cgroup, turn};
use crate::lifecycle::as_nobody;
use crate::load::{self, Server, assert_all};
use crate::series::{CONNECTED, DEFAULT_ROOM, fill, listener};
use rustix::fs::{XattrFlags, setxattr};
use rustix::io::Errno;
use sentry_bench::sandbox::LoopDevice;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// `include/uapi/linux/capability.h`
const BPF: u64 = 1 << 39;
pub(crate) const PERFMON: u64 = 1 << 38;

/// What loading takes.
pub(crate) const BOTH: u64 = BPF | PERFMON;

pub(crate) const DAC_READ_SEARCH: u64 = 1 << 2;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const CHECKPOINT_RESTORE: u64 = 1 << 40;

/// What looking for programs that use CUDA takes besides.
pub(crate) const CUDA: u64 = DAC_READ_SEARCH | SYS_PTRACE | CHECKPOINT_RESTORE;

/// What attaching to them takes besides on this host: where functions are hooked by `perf_event_open()`, which is for
/// the administrator alone.
fn perf_uprobes() -> u64 {
    if release() < [6, 6] { SYS_ADMIN } else { 0 }
}

/// The kernel's version.
fn release() -> [u32; 2] {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    [(); 2].map(|()| numbers.next().unwrap().parse().unwrap())
}

/// The sets that a thread has, and the one that bounds them.
const SETS: [&str; 5] = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];

pub(crate) fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
}

/// What the log says of the capabilities.
pub(crate) fn said_to_be_kept(agent: &Agent) -> String {
    let log = agent.log();
    let mut lines = log
        .lines()
        .filter_map(|line| Some(line.split_once("capabilities kept: ")?.1));
    let line = lines.next().unwrap().to_owned();
    assert_eq!(lines.next(), None, "{log}");
    line
}

/// The mask of the capabilities that a line names.
pub(crate) fn mask(line: &str) -> u64 {
    let words = line.split(|c: char| c != '_' && !c.is_ascii_alphanumeric());
    words
        .filter(|word| word.starts_with("CAP_"))
        .map(|name| match name {
            "CAP_BPF" => BPF,
            "CAP_PERFMON" => PERFMON,
            "CAP_DAC_READ_SEARCH" => DAC_READ_SEARCH,
            "CAP_SYS_PTRACE" => SYS_PTRACE,
            "CAP_SYS_ADMIN" => SYS_ADMIN,
            "CAP_CHECKPOINT_RESTORE" => CHECKPOINT_RESTORE,
            other => panic!("{other} in {line}"),
        })
        .fold(0, |all, one| all | one)
}

/// Asserts that each thread has these capabilities and no other; where the agent could reduce it, the bounding set too.
pub(crate) fn assert_left(agent: &Agent, left: u64, bounding: u64) {
    let tasks = Path::new("/proc")
        .join(agent.pid().to_string())
        .join("task");
    let mut names = BTreeSet::new();
    for task in fs::read_dir(tasks).unwrap().flatten() {
        // A thread of an answered scrape may end meanwhile.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        let sets = SETS.map(|set| u64::from_str_radix(field(&status, set), 16).unwrap());
        assert_eq!(sets, [0, left, left, bounding, 0], "{status}");
        assert_eq!(field(&status, "NoNewPrivs:"), "1", "{status}");
        names.insert(field(&status, "Name:").to_owned());
    }
    // The scrapes' threads have the name of the runtime's.
    for name in ["sentry", "cgroups", "tokio-rt-worker"] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
}

/// Asserts that it measures: both ends of 500 connects.
pub(crate) fn assert_connects(agent: &Agent) {
    let (client, server) = (socket_cgroup("client"), socket_cgroup("server"));
    let listener = Server::listen("", &[&server]);
    let args = format!("connect --to 127.0.0.1:{} --count 500", listener.port());
    assert_all(&load::run(&args, &[&client]), "connected", 500);
    let scrape = agent.scrape();
    for (cgroup, role) in [(&client, "client"), (&server, "server")] {
        let expected = format!("sentry_tcp_handshake_duration_seconds_count{{role={role}}} 500");
        assert_eq!(scrape.of_cgroup(&label(cgroup)), [expected]);
    }
}

fn assert_reads(agent: &Agent) {
    let device = LoopDevice::new(MIB).unwrap();
    let expected = moved(&device, "read", 100, 100 * 4096);
    assert_said(agent, &device, "read --count 100", &expected);
}

#[test]
fn nobody_with_two_capabilities_measures_everything() {
    turn!("nobody_with_two_capabilities_measures_everything");
    let _io = IoController::on();
    let folder = Folder::new();
    let agent = Agent::spawn(as_nobody(&folder, &["bpf", "perfmon"], &[]));
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    assert_eq!(field(&status, "Uid:"), "65534\t65534\t65534\t65534");
    let scrape = agent.scrape();
    for probe in ["tcp", "disk"] {
        let up = scrape.value("sentry_probe_up", &[("probe", probe), ("hook", "tp_btf")]);
        assert_eq!(up, 1.0, "{}", agent.log());
    }
    assert_left(&agent, BOTH, BOTH);
    assert_eq!(mask(&said_to_be_kept(&agent)), BOTH);
    // The gpu probe looks for programs with what it is given, and says what it lacks.
    let log = agent.log();
    let mut lines = log.lines().filter(|line| line.contains("for want of"));
    assert_eq!(mask(lines.next().unwrap()), CUDA | perf_uprobes(), "{log}");
    assert_eq!(lines.next(), None, "{log}");
    assert_connects(&agent);
    assert_reads(&agent);
    assert_issue_hook_steps_in(&agent);
    agent.stop();
}

#[test]
fn root_keeps_what_the_second_hook_takes() {
    turn!("root_keeps_what_the_second_hook_takes");
    let _io = IoController::on();
    let agent = Agent::start("--probes tcp,disk");
    assert_eq!(agent.get("/readyz", &[]).status, 200);
    agent.scrape();
    let kept = said_to_be_kept(&agent);
    let left = mask(&kept);
    assert_eq!(left, BOTH);
    assert!(kept.contains("disk"), "{kept}");
    assert_left(&agent, left, left);
    assert_connects(&agent);
    assert_reads(&agent);
    assert_issue_hook_steps_in(&agent);
    assert_left(&agent, left, left);
    agent.stop();
}

#[test]
fn root_keeps_what_it_looks_for_cuda_with() {
    turn!("root_keeps_what_it_looks_for_cuda_with");
    let agent = Agent::start("--probes gpu");
    agent.scrape();
    let kept = said_to_be_kept(&agent);
    let left = BOTH | CUDA | perf_uprobes();
    assert_eq!(mask(&kept), left, "{kept}");
    assert!(!agent.log().contains("for want of"), "{}", agent.log());
    let tasks = Path::new("/proc")
        .join(agent.pid().to_string())
        .join("task");
    let names: Vec<String> = fs::read_dir(tasks)
        .unwrap()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .collect();
    assert!(names.iter().any(|name| name == "gpu\n"), "{names:?}");
    assert_left(&agent, left, left);
    agent.stop();
}

#[test]
fn without_a_second_hook_fewer_are_kept_and_series_still_come_and_go() {
    turn!("without_a_second_hook_fewer_are_kept_and_series_still_come_and_go");
    let agent = Agent::start("--probes tcp --series.retention 1s");
    assert_eq!(agent.get("/readyz", &[]).status, 200);
    agent.scrape();
    let kept = said_to_be_kept(&agent);
    let expected = if release() < [5, 19] { BPF } else { 0 };
    assert_eq!(mask(&kept), expected, "{kept}");
    assert_left(&agent, expected, expected);
    // All cells taken, given back, and taken again.
    let server = socket_cgroup("server");
    let (_listener, to) = listener(&agent, &server);
    assert_eq!(fill(&agent, CONNECTED, &to).0, DEFAULT_ROOM);
    assert_eq!(fill(&agent, CONNECTED, &to).0, DEFAULT_ROOM);
    assert_connects(&agent);
    assert_left(&agent, expected, expected);
    agent.stop();
}

#[test]
fn a_low_port_is_taken_before_its_privilege_goes() {
    turn!("a_low_port_is_taken_before_its_privilege_goes");
    let low = "127.0.0.1:1009";
    let flags = format!("--probes tcp --web.listen-address {low}");
    let agent = Agent::spawn_as(sentry(&flags));
    assert_eq!(agent.address().to_string(), low);
    agent.scrape();
    agent.stop();

    let folder = Folder::new();
    let args: Vec<&str> = flags.split(' ').collect();
    let refused = output(as_nobody(&folder, &["bpf", "perfmon"], &args));
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert_eq!(
        stderr,
        format!(
            "sentry: cannot listen on {low}: ports below 1024 need CAP_NET_BIND_SERVICE; allowed without it are 1024 to 65535\n"
        )
    );
}

#[test]
fn each_missing_capability_is_one_line() {
    turn!("each_missing_capability_is_one_line");
    let folder = Folder::new();
    for (granted, missing) in [("bpf", "CAP_PERFMON"), ("perfmon", "CAP_BPF")] {
        let args = ["--web.listen-address", "127.0.0.1:0"];
        let refused = output(as_nobody(&folder, &[granted], &args));
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{stderr}");
        assert_eq!(
            stderr,
            format!(
                "sentry: missing privileges: {missing} needed to load eBPF programs; run as root, or grant them to the binary; `make demo` shows the agent in a virtual machine\n"
            )
        );
    }
}

/// Gives a copy of the program these capabilities as the image's has them: permitted, and not effective. Whether the
/// filesystem keeps them.
pub(crate) fn with_file_capabilities(folder: &Folder, permitted: u64) -> bool {
    // `struct vfs_cap_data` of `include/uapi/linux/capability.h`, its second revision: permitted and inheritable, the
    // lower halves first.
    let (low, high) = (permitted & u64::from(u32::MAX), permitted >> 32);
    let words = [0x0200_0000, low, 0, high, 0].map(|word| u32::try_from(word).unwrap());
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let program = folder.path().join("sentry");
    fs::copy(SENTRY, &program).unwrap();
    for path in [folder.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    match setxattr(&program, "security.capability", &value, XattrFlags::empty()) {
        Err(Errno::NOTSUP) => false,
        outcome => {
            outcome.unwrap();
            true
        }
    }
}

/// A command of that copy as a user who may come to these capabilities. A program of `setpriv` holds them, as a container
/// engine's does, and one more of them in between does not.
fn as_nobody_bounded(folder: &Folder, bounding: &[&str], between: &[&str]) -> Command {
    let bounding = bounding.iter().map(|name| format!(",+{name}"));
    let bounding = format!("-all{}", bounding.collect::<String>());
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["--inh-caps=-all", "--ambient-caps=-all"])
        .arg(format!("--bounding-set={bounding}"))
        .args(between)
        .arg("--")
        .arg(folder.path().join("sentry"));
    without_settings(&mut command);
    command
}

#[test]
fn capabilities_of_the_programs_file_are_put_to_use() {
    turn!("capabilities_of_the_programs_file_are_put_to_use");
    let folder = Folder::new();
    if !with_file_capabilities(&folder, BOTH | CUDA) {
        skipped(
            "capabilities_of_the_programs_file_are_put_to_use",
            "the folder for temporary files is on a filesystem without capabilities of files",
        );
        return;
    }
    // Of those that the file has, two are within bounds.
    let mut bounded = as_nobody_bounded(&folder, &["bpf", "perfmon"], &[]);
    bounded.args(["--probes", "tcp,disk"]);
    let agent = Agent::spawn(bounded);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    assert_eq!(field(&status, "Uid:"), "65534\t65534\t65534\t65534");
    agent.scrape();
    assert_left(&agent, BOTH, BOTH);
    assert_connects(&agent);
    agent.stop();

    let mut check = as_nobody_bounded(&folder, &["bpf", "perfmon"], &[]);
    check.args(["check", "--format", "json"]);
    let report = checked(check);
    let (capabilities, _) = fact(&report, "capabilities");
    assert_eq!(capabilities, "CAP_BPF, CAP_PERFMON, as uid 65534");

    // Under no_new_privs the file gives what the one who starts it holds already, and no more.
    let two = ["bpf", "perfmon"];
    let mut held = as_nobody_bounded(&folder, &two, &["--no-new-privs"]);
    held.args(["check", "--format", "json"]);
    let (capabilities, _) = fact(&checked(held), "capabilities");
    assert_eq!(capabilities, "CAP_BPF, CAP_PERFMON, as uid 65534");

    // With none of them it runs all the same, to say what is missing.
    let not_held = ["--", "setpriv", "--no-new-privs"];
    let no_new_privs = " (no_new_privs is set, so the program's file cannot give them; in Kubernetes, allowPrivilegeEscalation: true leaves it unset)";
    for (bounding, between, reason) in [(&[][..], &[][..], ""), (&two, &not_held, no_new_privs)] {
        let refused = output(as_nobody_bounded(&folder, bounding, between));
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(1), "{stderr}");
        assert_eq!(
            stderr,
            format!(
                "sentry: missing privileges: CAP_BPF and CAP_PERFMON{reason} needed to load eBPF programs; run as root, or grant them to the binary; `make demo` shows the agent in a virtual machine\n"
            )
        );
    }
}

/// A fact of `sentry check`: its value, and what it means if something.
pub(crate) fn fact(report: &Value, name: &str) -> (String, Option<String>) {
    let mut facts = report["host"].as_array().unwrap().iter();
    let fact = facts.find(|fact| fact["name"] == name);
    let fact = fact.unwrap_or_else(|| panic!("no {name} in {report}"));
    let text = |key: &str| fact[key].as_str().map(str::to_owned);
    (text("value").unwrap(), text("meaning"))
}

pub(crate) fn checked(command: Command) -> Value {
    let checked = output(command);
    serde_json::from_slice(&checked.stdout).unwrap()
}

#[test]
fn check_looks_at_all_that_decides() {
    turn!("check_looks_at_all_that_decides");
    let report = checked(sentry("check --format json"));
    for name in ["perf_event_paranoid", "unprivileged_bpf_disabled"] {
        let level = fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap();
        assert_eq!(fact(&report, name).0, level.trim());
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let limit = field(&limits, "Max locked memory");
    let soft = limit.split_whitespace().next().unwrap();
    assert!(fact(&report, "memlock").0.starts_with(soft), "{report}");
    for name in ["seccomp", "JIT", "kprobes", "tracefs", "lockdown", "BTF"] {
        assert_ne!(fact(&report, name).0, "", "{name}");
    }
    assert!(fact(&report, "capabilities").0.ends_with(", as uid 0"));
    let (kept, lacking) = fact(&report, "kept");
    assert_eq!(mask(&kept), BOTH | CUDA | perf_uprobes());
    assert_eq!(lacking, None);

    let folder = Folder::new();
    let args = ["check", "--format", "json"];
    let report = checked(as_nobody(&folder, &["bpf", "perfmon"], &args));
    let (capabilities, meaning) = fact(&report, "capabilities");
    assert_eq!(capabilities, "CAP_BPF, CAP_PERFMON, as uid 65534");
    assert_eq!(meaning, None);
    assert_eq!(
        fact(&report, "privileges").0,
        "CAP_BPF and CAP_PERFMON are there"
    );
    let (kept, lacking) = fact(&report, "kept");
    assert_eq!(mask(&kept), BOTH);
    assert_eq!(mask(&lacking.unwrap()), CUDA | perf_uprobes());
    let (tracefs, meaning) = fact(&report, "tracefs");
    if tracefs != "not mounted" {
        assert!(meaning.unwrap().contains("CAP_DAC_READ_SEARCH"));
    }

    // With nothing attached there is nothing to keep.
    let report = checked(as_nobody(&folder, &[], &args));
    assert_eq!(fact(&report, "capabilities").0, "none, as uid 65534");
    let names = report["host"].as_array().unwrap().iter();
    assert!(names.clone().all(|fact| fact["name"] != "kept"));
}

#[test]
fn a_user_namespaces_root_is_told_that_it_is_none() {
    turn!("a_user_namespaces_root_is_told_that_it_is_none");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", SENTRY]);
    command.args(["--web.listen-address", "127.0.0.1:0"]);
    without_settings(&mut command);
    let refused = output(command);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert_eq!(
        stderr,
        "sentry: missing privileges: CAP_BPF and CAP_PERFMON outside this user namespace needed to load eBPF programs; run as root, or grant them to the binary; `make demo` shows the agent in a virtual machine\n"
    );
}
