//! The GPU probe on NVIDIA's own runtimes, and on programs that its own compiler has made. Without a driver each call
//! fails, and is a call all the same: it is seen once, neither zero times nor twice.
//!
//! There is no nvcc 12 to fetch, so nvcc 13 compiles for runtime 12 as well, with the headers of CUDA 12 and the calls
//! that nvcc 12 puts into a program for a launch.

use crate::agent::Agent;
use crate::exposition::{Exposition, as_count};
use crate::host::{
    Folder, Turn, in_cgroup, label, output, skipped, socket_cgroup, take_turn, wait_for,
};
use sentry_bench::sandbox::Cgroup;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What `cargo xtask cuda` fetches.
const REQUIREMENTS: &str = include_str!("../gpu/requirements.txt");

/// The source of all programs.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/gpu/real.cu");

/// How often `real.cu` makes which call.
const CALLS: [(&str, u64); 14] = [
    ("device_synchronize", 17),
    ("event_query", 31),
    ("event_synchronize", 23),
    ("free", 13),
    ("graph", 37),
    ("kernel", 101),
    ("malloc", 11),
    ("memcpy", 11),
    ("memcpy_async", 16),
    ("memset", 8),
    ("set_device", 2),
    ("stream_capture", 7),
    ("stream_query", 29),
    ("stream_synchronize", 19),
];

/// How many bytes its copies ask for.
const BYTES: [(&str, u64); 3] = [
    ("device_to_device", 9 * 300),
    ("device_to_host", 5 * 100),
    ("host_to_device", 7 * 1000 + 6 * 10),
];

/// Calls of which each is a synchronise or a query.
pub(crate) const SYNCS: [&str; 6] = [
    "device_synchronize",
    "stream_synchronize",
    "event_synchronize",
    "memcpy",
    "stream_query",
    "event_query",
];

/// Calls besides whose errors are counted.
pub(crate) const OTHERS_WITH_ERRORS: [&str; 4] = ["malloc", "free", "set_device", "stream_capture"];

/// `cudaErrorInsufficientDriver`: there is no driver.
const NO_DRIVER: u32 = 35;

/// How long the agent may take to see a library that a process has mapped, or that none maps any longer. The latter it
/// looks for now and then.
const DISCOVERY_PATIENCE: Duration = Duration::from_secs(30);

/// How a program is compiled.
pub(crate) struct Form {
    /// The name of its file, so of its process.
    name: &'static str,
    runtime: Runtime,
    flags: &'static str,
    /// What `nm` says of the function that launches its kernels.
    launches: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Runtime {
    Cuda12,
    Cuda13,
}

const SHARED_12: Form = Form {
    name: "shared12",
    runtime: Runtime::Cuda12,
    flags: "-cudart shared",
    launches: "U cudaLaunchKernel@libcudart.so.12",
};

pub(crate) const SHARED_13: Form = Form {
    name: "shared13",
    runtime: Runtime::Cuda13,
    flags: "-cudart shared",
    launches: "U __cudaLaunchKernel@libcudart.so.13",
};

pub(crate) const STATIC_12: Form = Form {
    name: "static12",
    runtime: Runtime::Cuda12,
    flags: "-cudart static",
    launches: "t cudaLaunchKernel",
};

const STATIC_13: Form = Form {
    name: "static13",
    runtime: Runtime::Cuda13,
    flags: "-cudart static",
    launches: "t __cudaLaunchKernel",
};

/// Each thread has a default stream of its own, and functions of their own serve it.
const THREADS_12: Form = Form {
    name: "threads12",
    runtime: Runtime::Cuda12,
    flags: "-cudart static -default-stream per-thread",
    launches: "t cudaLaunchKernel_ptsz",
};

const THREADS_13: Form = Form {
    name: "threads13",
    runtime: Runtime::Cuda13,
    flags: "-cudart shared -default-stream per-thread",
    launches: "U __cudaLaunchKernel_ptsz@libcudart.so.13",
};

const FORMS: [Form; 6] = [
    SHARED_12, SHARED_13, STATIC_12, STATIC_13, THREADS_12, THREADS_13,
];

/// NVIDIA's runtimes and compiler.
pub(crate) struct Cuda(PathBuf);

impl Cuda {
    /// Where they are; none where nobody has fetched them, which is said on standard error.
    fn find(test: &str) -> Option<Self> {
        let folder = |name| std::env::var_os(name).map(PathBuf::from);
        let folder = folder("SENTRY_CUDA_CACHE")
            .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("sentry/cuda")))
            .or_else(|| Some(folder("HOME")?.join(".cache/sentry/cuda")));
        let folder = folder.filter(|folder| {
            let present = fs::read_to_string(folder.join("requirements.txt"));
            present.is_ok_and(|present| present == REQUIREMENTS)
        });
        if folder.is_none() {
            skipped(test, "no CUDA: cargo xtask cuda fetches it");
        }
        folder.map(Self)
    }

    /// The folder of a runtime's `include` and `lib`.
    fn runtime(&self, runtime: Runtime) -> PathBuf {
        self.0.join(match runtime {
            Runtime::Cuda12 => "nvidia/cuda_runtime",
            Runtime::Cuda13 => "nvidia/cu13",
        })
    }

    /// The library of a runtime.
    fn library(&self, runtime: Runtime) -> PathBuf {
        self.runtime(runtime).join(match runtime {
            Runtime::Cuda12 => "lib/libcudart.so.12",
            Runtime::Cuda13 => "lib/libcudart.so.13",
        })
    }

    /// Compiles the program in this form, into a folder.
    pub(crate) fn compile(&self, form: &Form, folder: &Path) -> PathBuf {
        let runtime = self.runtime(form.runtime);
        let program = folder.join(form.name);
        // The name that a linker looks for, which is not in the wheels.
        let linked = folder.join("libcudart.so");
        let _ = fs::remove_file(&linked);
        std::os::unix::fs::symlink(self.library(form.runtime), &linked).unwrap();
        let mut nvcc = Command::new(self.0.join("nvidia/cu13/bin/nvcc"));
        nvcc.args(["-ccbin", "clang++"])
            .args(form.flags.split_whitespace());
        if form.runtime == Runtime::Cuda12 {
            nvcc.arg("--legacy-launch-seq");
        }
        nvcc.arg("-I").arg(runtime.join("include"));
        for libraries in [
            folder,
            &runtime.join("lib"),
            &self.0.join("nvidia/cu13/lib"),
        ] {
            nvcc.arg("-L").arg(libraries);
        }
        nvcc.arg("-o").arg(&program).arg(SOURCE);
        succeed(nvcc);
        program
    }

    /// A command of a program in a cgroup, with the library of this folder.
    fn command(program: &Path, libraries: &Path, cgroup: &Cgroup) -> Command {
        let mut command = in_cgroup(cgroup, program);
        with_libraries(&mut command, libraries);
        command
    }

    /// Starts a program in a cgroup, with the fetched library.
    pub(crate) fn start(&self, form: &Form, program: &Path, cgroup: &Cgroup) -> Program {
        let libraries = self.runtime(form.runtime).join("lib");
        Program::start(Self::command(program, &libraries, cgroup))
    }
}

/// What a test of the agent waits for: its turn, and CUDA.
pub(crate) fn take_turn_with_cuda(test: &str) -> Option<(Turn, Cuda)> {
    Some((take_turn(test)?, Cuda::find(test)?))
}

/// Lets a program take its libraries from here, and no GPU that the host may have: all its calls are to fail.
fn with_libraries(command: &mut Command, libraries: &Path) {
    command
        .env("LD_LIBRARY_PATH", libraries)
        .env("CUDA_VISIBLE_DEVICES", "");
}

/// Runs a command that must succeed; what it printed on standard output.
fn succeed(command: Command) -> String {
    let called = format!("{command:?}");
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{called}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// How often which call returned which code.
pub(crate) type Account = BTreeMap<(String, u32), u64>;

/// The program at work. Killed on drop.
pub(crate) struct Program {
    process: Child,
    stdout: BufReader<ChildStdout>,
}

impl Program {
    /// Starts it. It maps what it needs, and calls nothing yet.
    fn start(mut command: Command) -> Self {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        let mut program = Self { process, stdout };
        assert_eq!(program.line(), "ready", "{command:?}");
        program
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Lets it make its calls. It goes on living.
    pub(crate) fn call(&mut self) -> Account {
        let stdin = self.process.stdin.as_mut().unwrap();
        stdin.write_all(b"\n").unwrap();
        let mut account = Account::new();
        loop {
            let line = self.line();
            if line == "done" {
                return account;
            }
            let words: Vec<_> = line.split(' ').collect();
            let [call, code, count] = words[..] else {
                panic!("no account: {line:?}");
            };
            let key = (call.to_owned(), code.parse().unwrap());
            account.insert(key, count.parse().unwrap());
        }
    }

    /// Lets it end.
    pub(crate) fn end(mut self) {
        drop(self.process.stdin.take());
        let status = wait_for("end of a program", Duration::from_secs(10), || {
            self.process.try_wait().unwrap()
        });
        assert!(status.success(), "{status}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The number of links and perf events that an agent holds.
fn attachments(agent: &Agent) -> usize {
    let folder = format!("/proc/{}/fd", agent.pid());
    let files = fs::read_dir(folder).unwrap().flatten();
    files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .filter(|target| {
            let target = target.to_string_lossy();
            ["bpf_link", "bpf-link", "[perf_event]"]
                .iter()
                .any(|kind| target.contains(kind))
        })
        .count()
}

/// Whether the probe is attached to anything.
fn is_attached(agent: &Agent) -> bool {
    let scrape = agent.scrape();
    let mut verdicts = scrape.matching("sentry_probe_up", &[("probe", "gpu")]);
    verdicts.any(|verdict| verdict.value == 1.0)
}

/// Waits until the agent is attached, and attaches to nothing more.
fn wait_until_attached(agent: &Agent) {
    const CALM: Duration = Duration::from_millis(500);
    let (mut last, mut since) = (0, Instant::now());
    wait_for("attached probe", DISCOVERY_PATIENCE, || {
        let now = attachments(agent);
        if now != last || !is_attached(agent) {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > CALM).then_some(())
    });
}

/// Errors that nobody may have had.
fn attach_errors(scrape: &Exposition) -> u64 {
    scrape.count("sentry_gpu_attach_errors_total", &[])
}

/// What is counted of a cgroup's calls: each metric with the one label that is its own, and its sum where that is not 0.
fn counted(scrape: &Exposition, cgroup: &Cgroup, process: &str) -> BTreeMap<String, u64> {
    let cgroup = label(cgroup);
    let mut counted = BTreeMap::new();
    for (metric, own) in [
        ("sentry_gpu_launches_total", "api"),
        ("sentry_gpu_memcpy_bytes_total", "kind"),
        ("sentry_gpu_syncs_total", "call"),
        ("sentry_gpu_errors_total", "call"),
        ("sentry_gpu_processes", "process"),
        ("sentry_gpu_allocated_bytes", "process"),
    ] {
        for sample in scrape.matching(metric, &[("cgroup", &cgroup)]) {
            assert_eq!(sample.labels["process"], process, "{sample:?}");
            let mut key = format!("{metric} {}", sample.labels[own]);
            if let Some(code) = sample.labels.get("code") {
                key = format!("{key} {code}");
            }
            let value = as_count(sample.value);
            if value > 0 {
                *counted.entry(key).or_insert(0) += value;
            }
        }
    }
    counted
}

/// What must be counted of programs that live and whose calls returned this.
fn expected(process: &str, account: &Account) -> BTreeMap<String, u64> {
    let calls = BTreeMap::from(CALLS);
    let mut expected = BTreeMap::from([(format!("sentry_gpu_processes {process}"), 1)]);
    for api in ["kernel", "graph"] {
        expected.insert(format!("sentry_gpu_launches_total {api}"), calls[api]);
    }
    for (kind, bytes) in BYTES {
        expected.insert(format!("sentry_gpu_memcpy_bytes_total {kind}"), bytes);
    }
    for call in SYNCS {
        expected.insert(format!("sentry_gpu_syncs_total {call}"), calls[call]);
    }
    for ((call, code), count) in account {
        let name = call.as_str();
        if *code != 0 && (SYNCS.contains(&name) || OTHERS_WITH_ERRORS.contains(&name)) {
            expected.insert(format!("sentry_gpu_errors_total {call} {code}"), *count);
        }
    }
    expected
}

/// Asserts that each call of a program was seen once, and that none of them, as all failed, ended or began a gap.
fn assert_seen_once(scrape: &Exposition, cgroup: &Cgroup, process: &str, account: &Account) {
    let found = counted(scrape, cgroup, process);
    assert_eq!(found, expected(process, account), "{process}");
    let label = label(cgroup);
    for metric in [
        "sentry_gpu_starved_seconds_total",
        "sentry_gpu_idle_seconds_total",
        "sentry_gpu_starvation_gap_seconds_count",
    ] {
        let labels = [("cgroup", label.as_str())];
        let gaps = scrape.matching(metric, &labels);
        let sum: f64 = gaps.map(|sample| sample.value).sum();
        assert_eq!(sum, 0.0, "{process}: {metric}");
    }
    assert_eq!(attach_errors(scrape), 0, "{process}");
}

/// Mounts that show one folder, each an overlay. Unmounted on drop.
struct Overlays(Vec<PathBuf>);

impl Overlays {
    /// Mounts two of them over a folder.
    fn two(folder: &Folder, lower: &Path) -> Self {
        let mut overlays = Self(Vec::new());
        let empty = folder.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let layers = format!("lowerdir={}:{}", empty.display(), lower.display());
        for name in ["one", "two"] {
            let place = folder.path().join(name);
            fs::create_dir(&place).unwrap();
            let [kind, options, layers] = ["-toverlay", "-o", &layers].map(OsStr::new);
            let target = place.as_os_str();
            printed_by(
                "mount",
                &[kind, "overlay".as_ref(), options, layers, target],
            );
            overlays.0.push(place);
        }
        overlays
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        for place in &self.0 {
            let _ = Command::new("umount").arg("--lazy").arg(place).status();
        }
    }
}

/// The files that the loader maps for a program.
fn libraries_of(program: &Path, libraries: &Path) -> Vec<PathBuf> {
    let mut ldd = Command::new("ldd");
    with_libraries(ldd.arg(program), libraries);
    let listed = succeed(ldd);
    let words = listed.split_whitespace();
    let paths = words.filter(|word| word.starts_with('/'));
    paths.map(PathBuf::from).collect()
}

/// What a program that must succeed prints.
fn printed_by(program: &str, args: &[&OsStr]) -> String {
    let mut command = Command::new(program);
    command.args(args);
    succeed(command)
}

/// A copy of a program without symbols.
fn strip(program: &Path) -> PathBuf {
    let stripped = program.with_extension("s");
    let [from, to] = [program, &stripped].map(Path::as_os_str);
    printed_by("strip", &["-o".as_ref(), to, from]);
    stripped
}

/// The symbols of a program.
fn nm(program: &Path) -> String {
    printed_by("nm", &[program.as_os_str()])
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap()
}

#[test]
fn the_programs_are_what_these_tests_take_them_for() {
    let test = "the_programs_are_what_these_tests_take_them_for";
    let Some(cuda) = Cuda::find(test) else { return };
    let folder = Folder::new();
    for form in FORMS {
        let program = cuda.compile(&form, folder.path());
        let symbols = nm(&program);
        assert!(
            symbols.lines().any(|line| line.ends_with(form.launches)),
            "{}: {symbols}",
            form.name
        );
        let stripped = strip(&program);
        assert_eq!(nm(&stripped), "");
        for program in [program, stripped] {
            let sections = printed_by("readelf", &["-SW".as_ref(), program.as_os_str()]);
            assert!(sections.contains(".nv_fatbin"), "{sections}");
            assert!(sections.contains(".nvFatBinSegment"), "{sections}");
            let mut command = Command::new(&program);
            with_libraries(&mut command, &cuda.runtime(form.runtime).join("lib"));
            let mut program = Program::start(command);
            let mut counts = BTreeMap::new();
            for ((call, code), count) in program.call() {
                assert_ne!(code, 0, "{}: {call}", form.name);
                *counts.entry(call).or_insert(0) += count;
            }
            program.end();
            let calls = CALLS.map(|(call, count)| (call.to_owned(), count));
            assert_eq!(counts, BTreeMap::from(calls), "{}", form.name);
        }
    }
}

#[test]
fn each_call_of_real_programs_is_seen_once() {
    let Some((_turn, cuda)) = take_turn_with_cuda("each_call_of_real_programs_is_seen_once") else {
        return;
    };
    let folder = Folder::new();
    for form in FORMS {
        let program = cuda.compile(&form, folder.path());
        let mut programs = vec![program.clone()];
        if form.flags.contains("shared") {
            // What a shared library exports stays in it.
            programs.push(strip(&program));
        }
        for program in programs {
            // One that has seen none: what is attached to another file yet would pass for this one's.
            let agent = Agent::start("--probes gpu");
            let cgroup = socket_cgroup("gpu");
            let mut running = cuda.start(&form, &program, &cgroup);
            wait_until_attached(&agent);
            let account = running.call();
            assert_seen_once(&agent.scrape(), &cgroup, name_of(&program), &account);
            running.end();
            agent.stop();
        }
    }
}

#[test]
fn a_static_and_stripped_runtime_without_a_driver_is_not_seen() {
    let Some((_turn, cuda)) =
        take_turn_with_cuda("a_static_and_stripped_runtime_without_a_driver_is_not_seen")
    else {
        return;
    };
    let folder = Folder::new();
    let agent = Agent::start("--probes gpu");
    for form in [STATIC_12, STATIC_13] {
        let before = attachments(&agent);
        let program = strip(&cuda.compile(&form, folder.path()));
        let cgroup = socket_cgroup("gpu");
        let mut running = cuda.start(&form, &program, &cgroup);
        // As long as the agent may take to look at it.
        sleep(Duration::from_secs(2));
        let account = running.call();
        if account.keys().any(|(_, code)| *code != NO_DRIVER) {
            skipped(
                "a_static_and_stripped_runtime_without_a_driver_is_not_seen",
                "this host has a driver, through which it is seen",
            );
            return;
        }
        let scrape = agent.scrape();
        assert_eq!(scrape.of_cgroup(&label(&cgroup)), [""; 0]);
        assert_eq!(attach_errors(&scrape), 0);
        assert_eq!(attachments(&agent), before);
        running.end();
    }
    agent.stop();
}

#[test]
fn a_file_that_two_mounts_show_is_attached_once() {
    let Some((_turn, cuda)) = take_turn_with_cuda("a_file_that_two_mounts_show_is_attached_once")
    else {
        return;
    };
    for form in [SHARED_13, STATIC_12] {
        let folder = Folder::new();
        let lower = folder.path().join("lower");
        fs::create_dir(&lower).unwrap();
        let program = cuda.compile(&form, &lower);
        let library = cuda.library(form.runtime);
        fs::copy(&library, lower.join(library.file_name().unwrap())).unwrap();
        let overlays = Overlays::two(&folder, &lower);
        let agent = Agent::start("--probes gpu");
        let mut running: Vec<_> = overlays
            .0
            .iter()
            .map(|place| {
                let cgroup = socket_cgroup("gpu");
                let program = place.join(program.file_name().unwrap());
                let command = Cuda::command(&program, place, &cgroup);
                (Program::start(command), cgroup)
            })
            .collect();
        wait_until_attached(&agent);
        let accounts: Vec<_> = running
            .iter_mut()
            .map(|(program, _)| program.call())
            .collect();
        let scrape = agent.scrape();
        for ((_, cgroup), account) in running.iter().zip(&accounts) {
            assert_seen_once(&scrape, cgroup, form.name, account);
        }
        for (program, _) in running {
            program.end();
        }
        agent.stop();
    }
}

#[test]
fn a_file_that_was_deleted_while_mapped_is_found_at_start() {
    let Some((_turn, cuda)) =
        take_turn_with_cuda("a_file_that_was_deleted_while_mapped_is_found_at_start")
    else {
        return;
    };
    for form in [SHARED_12, STATIC_13] {
        let folder = Folder::new();
        let program = cuda.compile(&form, folder.path());
        let library = cuda.library(form.runtime);
        let copy = folder.path().join(library.file_name().unwrap());
        fs::copy(&library, &copy).unwrap();
        let cgroup = socket_cgroup("gpu");
        let command = Cuda::command(&program, folder.path(), &cgroup);
        let mut running = Program::start(command);
        fs::remove_file(&copy).unwrap();
        fs::remove_file(&program).unwrap();
        let agent = Agent::start("--probes gpu");
        wait_until_attached(&agent);
        let account = running.call();
        assert_seen_once(&agent.scrape(), &cgroup, form.name, &account);
        running.end();
        agent.stop();
    }
}

#[test]
fn a_container_s_own_files_are_found() {
    let Some((_turn, cuda)) = take_turn_with_cuda("a_container_s_own_files_are_found") else {
        return;
    };
    // A root that no path of the host leads to.
    let script =
        "mount -t tmpfs tmpfs \"$0\" && cp -r \"$1\"/. \"$0\" && exec chroot \"$0\" \"$2\"";
    let agent = Agent::start("--probes gpu");
    for form in [SHARED_13, STATIC_13] {
        let folder = Folder::new();
        let libraries = cuda.runtime(form.runtime).join("lib");
        let (image, root) = (folder.path().join("image"), folder.path().join("root"));
        let inside = Path::new("/opt/cuda").join(form.name);
        for folder in [&root, &image.join("opt/cuda"), &image.join("lib64")] {
            fs::create_dir_all(folder).unwrap();
        }
        let program = cuda.compile(&form, folder.path());
        fs::copy(&program, image.join("opt/cuda").join(form.name)).unwrap();
        for library in libraries_of(&program, &libraries) {
            let name = library.file_name().unwrap();
            let place = if name_of(&library).starts_with("ld-") {
                "lib64"
            } else {
                "opt/cuda"
            };
            fs::copy(&library, image.join(place).join(name)).unwrap();
        }
        let cgroup = socket_cgroup("gpu");
        let mut command = in_cgroup(&cgroup, "unshare");
        command.args(["--mount", "sh", "-c", script]);
        command.args([&root, &image, &inside]);
        with_libraries(&mut command, Path::new("/opt/cuda"));
        let mut running = Program::start(command);
        assert!(!inside.exists(), "{} of the host", inside.display());
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        wait_until_attached(&agent);
        let account = running.call();
        assert_seen_once(&agent.scrape(), &cgroup, form.name, &account);
        running.end();
    }
    agent.stop();
}

#[test]
fn attachments_go_with_the_last_user() {
    let Some((_turn, cuda)) = take_turn_with_cuda("attachments_go_with_the_last_user") else {
        return;
    };
    let folder = Folder::new();
    let agent = Agent::start("--probes gpu");
    assert!(
        !is_attached(&agent),
        "another process of this host has CUDA"
    );
    let before = attachments(&agent);
    let program = cuda.compile(&SHARED_13, folder.path());
    for round in 0..2 {
        let cgroup = socket_cgroup(&format!("gpu-{round}"));
        let mut first = cuda.start(&SHARED_13, &program, &cgroup);
        let second = cuda.start(&SHARED_13, &program, &cgroup);
        wait_until_attached(&agent);
        let with_users = attachments(&agent);
        assert!(with_users > before);
        // Told to end it would make its calls first.
        drop(second);
        // Twice as long as it takes to look up who uses what.
        sleep(Duration::from_secs(11));
        assert_eq!(attachments(&agent), with_users);
        let account = first.call();
        assert_seen_once(&agent.scrape(), &cgroup, SHARED_13.name, &account);
        first.end();
        wait_for("end of all attachments", DISCOVERY_PATIENCE, || {
            (attachments(&agent) == before).then_some(())
        });
        let scrape = agent.scrape();
        let processes = [("cgroup", &*label(&cgroup))];
        assert_eq!(scrape.count("sentry_gpu_processes", &processes), 0);
    }
    agent.stop();
}
