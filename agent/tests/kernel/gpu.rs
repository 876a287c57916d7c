//! GPU: what the probe says of programs on virtual GPUs, held against the truth that the stand-in runtime tells itself.
//!
//! All times are nanoseconds of the monotonic clock, which the programs, the kernel and these tests share. So a GPU may
//! never be said to have idled for longer than it truly had until just after the scrape: there is no slack.

use crate::agent::Agent;
use crate::exposition::{Exposition, as_count, as_f64};
use crate::host::{
    Folder, in_cgroup, label, output, skipped, socket_cgroup, take_turn, turn, wait_for,
};
use crate::ladder::{self, Rung};
use crate::reload::{Site, links};
use rustix::time::{ClockId, clock_gettime};
use sentry_bench::sandbox::Cgroup;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

const LAUNCHES: &str = "sentry_gpu_launches_total";
const STARVED: &str = "sentry_gpu_starved_seconds_total";
const IDLE: &str = "sentry_gpu_idle_seconds_total";
pub(crate) const GAPS: &str = "sentry_gpu_starvation_gap_seconds";
const SYNCS: &str = "sentry_gpu_syncs_total";
const SYNC_WAIT: &str = "sentry_gpu_sync_wait_seconds_total";
const BYTES: &str = "sentry_gpu_memcpy_bytes_total";
const ALLOCATED: &str = "sentry_gpu_allocated_bytes";
pub(crate) const ERRORS: &str = "sentry_gpu_errors_total";
const PROCESSES: &str = "sentry_gpu_processes";
const ATTACH_ERRORS: &str = "sentry_gpu_attach_errors_total";
const UP: &str = "sentry_probe_up";

const BLOCKING_CALLS: [&str; 4] = [
    "device_synchronize",
    "stream_synchronize",
    "event_synchronize",
    "memcpy",
];
const QUERIES: [&str; 2] = ["stream_query", "event_query"];

/// How long the agent may take to find a program and attach to it, or to find it gone: an emulated CPU is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// What rounding may add to a sum of seconds.
const ROUNDING: f64 = 1e-9;

/// Names a folder with both forms of the workload, for hosts without a compiler.
const BUILT: &str = "SENTRY_GPU_WORKLOAD";

/// How a program comes by its runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Shared,
    Static,
}

/// How much of the GPU's idle time calls give away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    /// Everything has been waited for before each gap.
    Whole,
    /// Not all of it can be seen, but some may.
    Partial,
    /// Something is always left that nobody has waited for.
    Nothing,
}

/// A program, what it truly does, and what of that can be seen.
#[derive(Debug)]
struct Scenario {
    name: &'static str,
    form: Form,
    args: &'static str,
    sight: Sight,
    /// Kernels and graphs launched.
    launches: [u64; 2],
    /// By device: seconds that the program itself leaves it idle between its first and its last enqueue.
    idle: &'static [f64],
    /// By device: gaps that can be seen and that an enqueue ends; none where that hangs on who comes first.
    gaps: Option<&'static [u64]>,
}

/// A test for each scenario, and a list of them all.
macro_rules! scenarios {
    ($($name:ident: $form:ident $args:literal, $sight:ident, launches $launches:expr, idle $idle:expr, gaps $gaps:expr;)*) => {
        const SCENARIOS: &[Scenario] = &[$(
            Scenario {
                name: stringify!($name),
                form: Form::$form,
                args: $args,
                sight: Sight::$sight,
                launches: $launches,
                idle: &$idle,
                gaps: $gaps,
            },
        )*];

        $(
            #[test]
            fn $name() {
                let name = stringify!($name);
                let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
                observe(scenario.unwrap());
            }
        )*
    };
}

// Pauses of 5, 20, 50, 10 and 30 ms take turns: 115 ms in five rounds.
scenarios! {
    synchronous: Shared "synchronous", Whole, launches [40, 0], idle [0.89], gaps Some(&[39]);
    synchronous_static: Static "synchronous", Whole, launches [40, 0], idle [0.89], gaps Some(&[39]);
    pipelined: Shared "pipelined", Nothing, launches [61, 0], idle [0.0], gaps Some(&[0]);
    pipelined_in_three_threads: Static "pipelined 3", Nothing, launches [183, 0], idle [0.0], gaps Some(&[0]);
    blocking_copies: Shared "blocking_copies", Whole, launches [20, 0], idle [0.43], gaps Some(&[19]);
    async_copies: Shared "async_copies", Whole, launches [30, 0], idle [0.66], gaps Some(&[29]);
    two_threads: Shared "threads 2", Whole, launches [60, 0], idle [0.66], gaps None;
    eight_threads: Shared "threads 8", Whole, launches [240, 0], idle [0.66], gaps None;
    eight_threads_static: Static "threads 8", Whole, launches [240, 0], idle [0.66], gaps None;
    overlap: Shared "overlap", Whole, launches [60, 0], idle [0.66], gaps Some(&[29]);
    overlap_busy: Shared "overlap_busy", Nothing, launches [61, 0], idle [0.0], gaps Some(&[0]);
    prefetch: Shared "prefetch", Whole, launches [30, 0], idle [0.66], gaps Some(&[29]);
    prefetch_ahead: Shared "prefetch_ahead", Nothing, launches [30, 0], idle [0.66], gaps Some(&[0]);
    two_devices: Shared "two_devices", Whole, launches [40, 0], idle [0.66, 0.2], gaps Some(&[29, 9]);
    foreign_sync: Shared "foreign_sync", Whole, launches [40, 0], idle [0.71, 0.43], gaps Some(&[19, 19]);
    polling: Shared "polling", Whole, launches [30, 0], idle [0.66], gaps Some(&[29]);
    graph: Shared "graph", Whole, launches [3, 30], idle [0.68], gaps Some(&[30]);
    silent_drain: Shared "silent_drain", Nothing, launches [25, 0], idle [0.96], gaps Some(&[0]);
    legacy_copy: Shared "legacy_copy", Partial, launches [20, 0], idle [0.43], gaps None;
    sparse_server: Shared "sparse_server", Whole, launches [3, 0], idle [3.159], gaps Some(&[2]);
    errors: Shared "errors", Whole, launches [1, 0], idle [0.0], gaps Some(&[0]);
    failed_sync: Shared "failed_sync", Nothing, launches [20, 0], idle [0.95], gaps Some(&[0]);
    memory: Shared "memory", Whole, launches [1, 0], idle [0.0], gaps Some(&[0]);
    memory_static: Static "memory", Whole, launches [1, 0], idle [0.0], gaps Some(&[0]);
}

/// The folder with both forms of the workload, built once.
fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os(BUILT) {
            return folder.into();
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpu");
        fs::create_dir_all(&folder).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu/build.sh");
        let mut command = Command::new("sh");
        command.arg(script).arg(&folder);
        let output = output(command);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        folder
    })
}

/// The workload in this form.
pub(crate) fn program(form: Form) -> PathBuf {
    built().join(match form {
        Form::Shared => "workload",
        Form::Static => "workload-static",
    })
}

/// The workload that loads its runtime.
pub(crate) fn shared_program() -> PathBuf {
    program(Form::Shared)
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

fn seconds(ns: u64) -> f64 {
    as_f64(ns) / 1e9
}

/// What a program says that it truly did.
pub(crate) struct Truth(Value);

impl Truth {
    pub(crate) fn number(&self, pointer: &str) -> u64 {
        let number = self.0.pointer(pointer).and_then(Value::as_u64);
        number.unwrap_or_else(|| panic!("no {pointer} in {}", self.0))
    }

    fn devices(&self) -> impl Iterator<Item = Device<'_>> {
        self.0["devices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|device| Device {
                device,
                report_ns: self.number("/report_ns"),
            })
    }

    /// Errors by call and code, of the calls that are asked how they ended.
    pub(crate) fn errors(&self) -> BTreeMap<(String, String), u64> {
        let mut errors = BTreeMap::new();
        for (call, codes) in self.0["errors"].as_object().unwrap() {
            for (code, count) in codes.as_object().unwrap() {
                if call != "other" {
                    errors.insert((call.clone(), code.clone()), count.as_u64().unwrap());
                }
            }
        }
        errors
    }

    /// Asserts that the program did what the table says of it.
    fn assert_as_planned(&self, scenario: &Scenario) {
        let launches = ["/launches/kernel", "/launches/graph"].map(|api| self.number(api));
        assert_eq!(launches, scenario.launches, "{}", self.0);
        assert_eq!(self.devices().count(), scenario.idle.len(), "{}", self.0);
        for (device, planned) in self.devices().zip(scenario.idle) {
            let idle = seconds(device.number("idle_between_ns"));
            assert!(
                idle >= *planned,
                "{idle} s instead of {planned} s: {}",
                self.0
            );
            // Where this fails, the host was too busy to keep the GPU so.
            assert!(
                idle < planned * 1.5 + 0.05,
                "{idle} s instead of {planned} s: {}",
                self.0
            );
        }
    }
}

/// One device of a [`Truth`].
struct Device<'a> {
    device: &'a Value,
    report_ns: u64,
}

impl Device<'_> {
    fn number(&self, key: &str) -> u64 {
        let number = self.device[key].as_u64();
        number.unwrap_or_else(|| panic!("no {key} in {}", self.device))
    }

    fn ordinal(&self) -> String {
        self.number("device").to_string()
    }

    /// For how long it has had nothing to do, at a time after the report.
    fn running_gap(&self, at_ns: u64) -> u64 {
        at_ns.saturating_sub(self.number("busy_until_ns"))
    }

    /// For how long it has had nothing to do since its first enqueue, until a time after the report.
    fn idle(&self, until_ns: u64) -> u64 {
        let busy_until_ns = self.number("busy_until_ns").max(self.report_ns);
        self.number("idle_total_ns") + until_ns.saturating_sub(busy_until_ns)
    }

    /// What of that lies in the first second of each gap.
    fn first_seconds(&self, until_ns: u64) -> u64 {
        self.number("first_seconds_ns") + self.running_gap(until_ns).min(1_000_000_000)
    }
}

/// A running workload. Killed on drop, should a test fail before it lets it end.
pub(crate) struct Workload {
    process: Child,
    stdout: BufReader<ChildStdout>,
}

impl Workload {
    pub(crate) fn start(cgroup: &Cgroup, program: &Path, args: &str) -> Self {
        let mut process = in_cgroup(cgroup, program)
            .args(args.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        Self { process, stdout }
    }

    /// One that waits before its first call, and before its end.
    pub(crate) fn start_waiting(cgroup: &Cgroup, program: &Path, args: &str) -> Self {
        let mut workload = Self::start(cgroup, program, &format!("--wait --hold {args}"));
        assert_eq!(workload.line(), "ready\n");
        workload
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line
    }

    /// Lets it go on from where it waits.
    pub(crate) fn go_on(&mut self) {
        self.process
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"\n")
            .unwrap();
    }

    pub(crate) fn truth(&mut self) -> Truth {
        let line = self.line();
        if line.is_empty() {
            let status = self.process.wait().unwrap();
            panic!("the workload ended without a report: {status}");
        }
        Truth(serde_json::from_str(&line).unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Lets it end.
    pub(crate) fn end(mut self) {
        drop(self.process.stdin.take());
        let status = wait_for("end of a workload", PATIENCE, || {
            self.process.try_wait().unwrap()
        });
        assert!(status.success());
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A scrape, and the times before and after it.
struct Scrape {
    before_ns: u64,
    after_ns: u64,
    said: Exposition,
    cgroup: String,
}

impl Scrape {
    fn take(agent: &Agent, cgroup: &Cgroup) -> Self {
        let before_ns = now_ns();
        let said = agent.scrape();
        Self {
            before_ns,
            after_ns: now_ns(),
            said,
            cgroup: label(cgroup),
        }
    }

    /// The sum of a metric's samples of the cgroup that have these labels; 0 when there are none.
    fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels = [&[("cgroup", self.cgroup.as_str())], labels].concat();
        self.said
            .matching(name, &labels)
            .map(|sample| sample.value)
            .sum()
    }

    fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        as_count(self.sum(name, labels))
    }

    /// Asserts all that the probe says of a workload that waits before its end.
    fn assert_tells(&self, truth: &Truth, scenario: &Scenario) {
        self.assert_calls(truth);
        assert_eq!(self.count(ALLOCATED, &[]), truth.number("/allocated_bytes"));
        assert_eq!(self.count(PROCESSES, &[]), 1);
        for (index, device) in truth.devices().enumerate() {
            let gaps = scenario.gaps.map(|gaps| gaps[index]);
            self.assert_idle_time(&device, scenario.sight, gaps);
        }
        let ordinals: Vec<_> = truth.devices().map(|device| device.ordinal()).collect();
        for sample in &self.said.samples {
            if sample.labels.get("cgroup") == Some(&self.cgroup)
                && let Some(device) = sample.labels.get("device")
            {
                assert!(ordinals.contains(device), "{sample:?}");
            }
        }
    }

    /// Asserts what is counted: calls, bytes and errors.
    fn assert_calls(&self, truth: &Truth) {
        for api in ["kernel", "graph"] {
            let launches = truth.number(&format!("/launches/{api}"));
            assert_eq!(self.count(LAUNCHES, &[("api", api)]), launches, "{api}");
        }
        for call in BLOCKING_CALLS.into_iter().chain(QUERIES) {
            let syncs = truth.number(&format!("/syncs/{call}/count"));
            assert_eq!(self.count(SYNCS, &[("call", call)]), syncs, "{call}");
            let waited = self.count(SYNCS, &[("call", call), ("waited", "true")]);
            // Who measures from outside the call sees it take a little longer.
            let within = truth.number(&format!("/syncs/{call}/waited"));
            assert!(
                (within..=syncs).contains(&waited),
                "{call}: {waited}, {within} waited within"
            );
            let took = self.sum(SYNC_WAIT, &[("call", call)]);
            let within = seconds(truth.number(&format!("/syncs/{call}/wait_ns")));
            let most = within * 1.1 + as_f64(syncs) * 200e-6;
            let expected = within - ROUNDING..=most + ROUNDING;
            assert!(
                expected.contains(&took),
                "{call}: {took} s, {within} s within"
            );
        }
        for call in QUERIES {
            assert_eq!(
                self.count(SYNCS, &[("call", call), ("waited", "true")]),
                0,
                "{call}"
            );
            assert_eq!(self.sum(SYNC_WAIT, &[("call", call)]), 0.0, "{call}");
        }
        for kind in [
            "host_to_host",
            "host_to_device",
            "device_to_host",
            "device_to_device",
            "default",
        ] {
            let bytes = truth.number(&format!("/memcpy_bytes/{kind}"));
            assert_eq!(self.count(BYTES, &[("kind", kind)]), bytes, "{kind}");
        }
        let of_cgroup = [("cgroup", self.cgroup.as_str())];
        let errors: BTreeMap<_, _> = self
            .said
            .matching(ERRORS, &of_cgroup)
            .filter(|sample| sample.value > 0.0)
            .map(|sample| {
                let [call, code] = ["call", "code"].map(|label| sample.labels[label].clone());
                ((call, code), as_count(sample.value))
            })
            .collect();
        assert_eq!(errors, truth.errors());
        assert_eq!(self.said.count(ATTACH_ERRORS, &[]), 0);
    }

    /// Asserts what is said of a device's idle time: never more than there truly was until after the scrape.
    fn assert_idle_time(&self, truth: &Device<'_>, sight: Sight, gaps: Option<u64>) {
        let ordinal = truth.ordinal();
        let of_device = [("device", ordinal.as_str())];
        let starved = self.sum(STARVED, &of_device);
        let idle = self.sum(IDLE, &of_device);
        let gap_count = self.count(&format!("{GAPS}_count"), &of_device);
        let gap_sum = self.sum(&format!("{GAPS}_sum"), &of_device);
        let said = format!(
            "starved {starved} s, idle {idle} s, {gap_count} gaps of {gap_sum} s, {} calls untracked, truly {}",
            self.said.count("sentry_gpu_calls_untracked_total", &[]),
            truth.device
        );

        let first_seconds = truth.first_seconds(self.after_ns);
        let rest = truth.idle(self.after_ns) - first_seconds;
        assert!(
            starved <= seconds(first_seconds) + ROUNDING,
            "starved: {said}"
        );
        assert!(idle <= seconds(rest) + ROUNDING, "idle: {said}");
        // A scrape adds the gap that has not ended.
        let running = starved + idle - gap_sum;
        let truly_running = truth.running_gap(self.after_ns);
        assert!(
            running >= -ROUNDING && running <= seconds(truly_running) + ROUNDING,
            "running: {said}"
        );
        if let Some(gaps) = gaps {
            assert_eq!(gap_count, gaps, "{said}");
        }
        match sight {
            Sight::Whole => {
                let least = |truly: u64| 0.9 * seconds(truly) - ROUNDING;
                assert!(
                    starved + idle >= least(truth.idle(self.before_ns)),
                    "too little: {said}"
                );
                let first_seconds = truth.first_seconds(self.before_ns);
                assert!(
                    starved >= least(first_seconds),
                    "starved too little: {said}"
                );
                let rest = truth.idle(self.before_ns) - first_seconds;
                assert!(idle >= least(rest), "idle too little: {said}");
                let truly_running = truth.running_gap(self.before_ns);
                assert!(
                    running >= least(truly_running),
                    "running too little: {said}"
                );
            }
            Sight::Partial => {}
            Sight::Nothing => {
                assert_eq!((starved, idle), (0.0, 0.0), "{said}");
                assert_eq!((gap_count, gap_sum), (0, 0.0), "{said}");
            }
        }
    }

    /// Asserts that all is under the name of this program.
    fn assert_named(&self, program: &Path) {
        let name = program.file_name().unwrap().to_str().unwrap();
        // As much of it as the kernel keeps.
        let name = &name[..name.len().min(15)];
        let mut samples = 0;
        for sample in &self.said.samples {
            if sample.name.starts_with("sentry_gpu_")
                && sample.labels.get("cgroup") == Some(&self.cgroup)
            {
                assert_eq!(sample.labels["process"], name, "{sample:?}");
                samples += 1;
            }
        }
        assert!(samples > 0, "nothing is said of {}", self.cgroup);
    }
}

pub(crate) fn start_agent() -> Agent {
    Agent::start("--probes gpu")
}

/// Waits until the agent has found the programs that run.
pub(crate) fn wait_until_attached(agent: &Agent) {
    let up = [("probe", "gpu")];
    wait_for("GPU probe that is attached", PATIENCE, || {
        let scrape = agent.scrape();
        let attached = scrape.matching(UP, &up).any(|sample| sample.value == 1.0);
        attached.then_some(())
    });
}

/// Asserts that a dead process leaves nothing behind but what it did, of which nothing falls and nothing grows.
fn assert_dead(agent: &Agent, cgroup: &Cgroup, truth: &Truth, last: &Scrape) {
    let gone = wait_for("end of a process", PATIENCE, || {
        let scrape = Scrape::take(agent, cgroup);
        (scrape.count(PROCESSES, &[]) == 0).then_some(scrape)
    });
    assert_eq!(gone.count(ALLOCATED, &[]), 0);
    gone.assert_calls(truth);
    sleep(Duration::from_millis(100));
    let later = Scrape::take(agent, cgroup);
    for device in truth.devices() {
        let ordinal = device.ordinal();
        let [before, at_end, after] = [last, &gone, &later].map(|scrape| {
            let of_device = [("device", ordinal.as_str())];
            scrape.sum(STARVED, &of_device) + scrape.sum(IDLE, &of_device)
        });
        assert!(at_end >= before, "{at_end} s after {before} s");
        assert!(at_end <= seconds(device.idle(gone.after_ns)) + ROUNDING);
        assert_eq!(after, at_end, "the gap of a dead process goes on");
    }
}

/// Runs a scenario beside an agent, and asserts all that this says of it.
fn observe(scenario: &Scenario) {
    let Some(_turn) = take_turn(scenario.name) else {
        return;
    };
    let program = program(scenario.form);
    let cgroup = socket_cgroup("gpu");
    let mut workload = Workload::start_waiting(&cgroup, &program, scenario.args);
    let agent = start_agent();
    wait_until_attached(&agent);
    workload.go_on();
    let truth = workload.truth();
    truth.assert_as_planned(scenario);
    // A gap that nothing will end is to show as well.
    sleep(Duration::from_millis(200));
    let scrape = Scrape::take(&agent, &cgroup);
    scrape.assert_tells(&truth, scenario);
    scrape.assert_named(&program);
    workload.end();
    assert_dead(&agent, &cgroup, &truth, &scrape);
    agent.stop();
}

/// Scenarios that agents look on at together, some at a time.
struct Show {
    scenarios: Vec<&'static Scenario>,
    programs: Vec<(Cgroup, Workload)>,
    truths: Vec<Truth>,
}

impl Show {
    pub(crate) fn of(names: &[&str]) -> Self {
        Self {
            scenarios: names.iter().map(|name| scenario(name)).collect(),
            programs: Vec::new(),
            truths: Vec::new(),
        }
    }

    /// Lets them do all they do. The agents have attached to both forms of the workload.
    pub(crate) fn perform(&mut self) {
        let programs = self.scenarios.iter().map(|scenario| {
            let cgroup = socket_cgroup("gpu");
            let program = program(scenario.form);
            let workload = Workload::start(&cgroup, &program, &format!("--hold {}", scenario.args));
            (cgroup, workload)
        });
        self.programs = programs.collect();
        for ((_, workload), scenario) in self.programs.iter_mut().zip(&self.scenarios) {
            let truth = workload.truth();
            truth.assert_as_planned(scenario);
            self.truths.push(truth);
        }
    }

    /// Asserts all that an agent says of them.
    pub(crate) fn assert_told(&self, agent: &Agent) {
        for (index, scenario) in self.scenarios.iter().enumerate() {
            let scrape = Scrape::take(agent, &self.programs[index].0);
            scrape.assert_tells(&self.truths[index], scenario);
            scrape.assert_named(&program(scenario.form));
        }
    }

    /// Lets them end.
    pub(crate) fn close(self) {
        for (_, workload) in self.programs {
            workload.end();
        }
    }
}

/// Programs of both forms that wait before their first call, so that there is something to attach to.
struct Waiting {
    _workloads: [Workload; 2],
    _cgroup: Cgroup,
}

impl Waiting {
    pub(crate) fn start() -> Self {
        let cgroup = socket_cgroup("gpu");
        let start = |form| Workload::start_waiting(&cgroup, &program(form), "memory");
        Self {
            _workloads: [Form::Shared, Form::Static].map(start),
            _cgroup: cgroup,
        }
    }

    /// Waits until an agent counts the calls of both.
    pub(crate) fn until_hooked(agent: &Agent) {
        let cgroup = socket_cgroup("gpu");
        for form in [Form::Shared, Form::Static] {
            let process = program(form).file_name().unwrap().to_owned();
            let of_form = [("process", process.to_str().unwrap())];
            wait_for("GPU probe that counts", PATIENCE, || {
                let mut workload = Workload::start(&cgroup, &program(form), "short");
                workload.truth();
                workload.end();
                (Scrape::take(agent, &cgroup).count(LAUNCHES, &of_form) > 0).then_some(())
            });
        }
    }
}

fn scenario(name: &str) -> &'static Scenario {
    SCENARIOS
        .iter()
        .find(|scenario| scenario.name == name)
        .unwrap()
}

#[test]
fn the_stand_in_keeps_its_promises() {
    turn!("the_stand_in_keeps_its_promises");
    let cgroup = socket_cgroup("gpu");
    for form in [Form::Shared, Form::Static] {
        let mut workload = Workload::start(&cgroup, &program(form), "semantics");
        assert!(workload.truth().errors().len() > 5);
        workload.end();
    }
    // Nobody looks on, and most of them sleep most of the time: they need not take turns.
    for scenarios in SCENARIOS.chunks(4) {
        let workloads: Vec<_> = scenarios
            .iter()
            .map(|scenario| Workload::start(&cgroup, &program(scenario.form), scenario.args))
            .collect();
        for (scenario, mut workload) in scenarios.iter().zip(workloads) {
            workload.truth().assert_as_planned(scenario);
            workload.end();
        }
    }
}

#[test]
fn a_hang_shows_while_it_lasts() {
    turn!("a_hang_shows_while_it_lasts");
    let scenario = scenario("memory");
    let cgroup = socket_cgroup("gpu");
    let mut workload = Workload::start_waiting(&cgroup, &program(scenario.form), scenario.args);
    let agent = start_agent();
    wait_until_attached(&agent);
    workload.go_on();
    let truth = workload.truth();
    let device = truth.devices().next().unwrap();
    let starved_and_idle = |scrape: &Scrape| [STARVED, IDLE].map(|name| scrape.sum(name, &[]));
    let mut last: Option<Scrape> = None;
    while now_ns() < truth.number("/report_ns") + 2_000_000_000 {
        let scrape = Scrape::take(&agent, &cgroup);
        scrape.assert_idle_time(&device, Sight::Whole, Some(0));
        if let Some(last) = last {
            let [starved, idle] = starved_and_idle(&scrape);
            let [before_starved, before_idle] = starved_and_idle(&last);
            assert!(starved >= before_starved && idle >= before_idle);
            let grown = starved + idle - before_starved - before_idle;
            let between = seconds(scrape.before_ns - last.after_ns);
            let around = seconds(scrape.after_ns - last.before_ns);
            let expected = between - ROUNDING..=around + ROUNDING;
            assert!(
                expected.contains(&grown),
                "{grown} s in {between} to {around} s"
            );
        }
        last = Some(scrape);
        sleep(Duration::from_millis(150));
    }
    let last = last.unwrap();
    let [starved, idle] = starved_and_idle(&last);
    assert!(
        (starved - 1.0).abs() < ROUNDING && idle > 0.5,
        "{starved} s, {idle} s"
    );
    workload.end();
    assert_dead(&agent, &cgroup, &truth, &last);
    agent.stop();
}

#[test]
fn two_processes_at_once_are_told_apart() {
    turn!("two_processes_at_once_are_told_apart");
    let scenarios = ["synchronous", "prefetch"].map(scenario);
    let cgroups = scenarios.map(|_| socket_cgroup("gpu"));
    let mut workloads = [0, 1].map(|index| {
        let program = program(scenarios[index].form);
        Workload::start_waiting(&cgroups[index], &program, scenarios[index].args)
    });
    let agent = start_agent();
    wait_until_attached(&agent);
    workloads.iter_mut().for_each(Workload::go_on);
    let truths = workloads.each_mut().map(Workload::truth);
    let scrapes = [0, 1].map(|index| {
        truths[index].assert_as_planned(scenarios[index]);
        let scrape = Scrape::take(&agent, &cgroups[index]);
        scrape.assert_tells(&truths[index], scenarios[index]);
        scrape
    });
    workloads.into_iter().for_each(Workload::end);
    for index in [0, 1] {
        assert_dead(&agent, &cgroups[index], &truths[index], &scrapes[index]);
    }
    agent.stop();
}

/// A form of the workload as a file that no one has seen: copies are files of their own.
pub(crate) fn unseen(folder: &Folder, form: Form) -> PathBuf {
    let program = program(form);
    let copied = folder.path().join(program.file_name().unwrap());
    fs::copy(&program, &copied).unwrap();
    if form == Form::Shared {
        let library = "libcudart.so.12";
        fs::copy(program.with_file_name(library), folder.path().join(library)).unwrap();
    }
    copied
}

/// How many of its 35 launches an agent has seen of a program that lives for less than 100 ms, from a file that nobody
/// has seen.
fn seen_of_short(agent: &Agent, form: Form) -> u64 {
    let folder = Folder::new();
    let program = unseen(&folder, form);
    let cgroup = socket_cgroup("gpu");
    let mut workload = Workload::start(&cgroup, &program, "short");
    let truth = workload.truth();
    assert!(truth.number("/elapsed_ns") < 100_000_000, "{}", truth.0);
    workload.end();
    let scrape = Scrape::take(agent, &cgroup);
    let launches = scrape.count(LAUNCHES, &[("api", "kernel")]);
    println!("{form:?}: {launches} of 35 launches");
    assert!(launches <= 35, "{launches}");
    for device in truth.devices() {
        let said = scrape.sum(STARVED, &[]) + scrape.sum(IDLE, &[]);
        assert!(
            said <= seconds(device.idle(scrape.after_ns)) + ROUNDING,
            "{said}"
        );
    }
    if launches > 0 {
        scrape.assert_named(&program);
    }
    launches
}

/// The first one meets an agent that has yet to load its programs, for some 50 ms: one of three must be seen. All that
/// come later must be seen for a good part of their lives.
#[test]
fn a_program_that_starts_and_ends_within_100_ms_is_seen() {
    turn!("a_program_that_starts_and_ends_within_100_ms_is_seen");
    for form in [Form::Shared, Form::Static] {
        let first = (0..3).any(|_| {
            let agent = start_agent();
            let first = seen_of_short(&agent, form);
            let second = seen_of_short(&agent, form);
            assert!(second >= 9, "{form:?}: {second} of 35 launches");
            agent.stop();
            first > 0
        });
        assert!(first, "{form:?}: no first one was seen");
    }
}

#[test]
fn a_program_that_comes_later_is_hooked_before_its_first_call() {
    turn!("a_program_that_comes_later_is_hooked_before_its_first_call");
    for form in [Form::Shared, Form::Static] {
        let folder = Folder::new();
        let program = unseen(&folder, form);
        let agent = start_agent();
        let no_cuda = [
            ("probe", "gpu"),
            ("verdict", "unsupported"),
            ("reason", "no_cuda"),
        ];
        if agent.scrape().matching(UP, &no_cuda).next().is_none() {
            skipped(
                "a_program_that_comes_later_is_hooked_before_its_first_call",
                "other programs of this host use CUDA",
            );
            return;
        }
        assert_eq!(agent.scrape().value(UP, &no_cuda), 0.0);
        let cgroup = socket_cgroup("gpu");
        let mut workload = Workload::start_waiting(&cgroup, &program, "memory");
        wait_until_attached(&agent);
        workload.go_on();
        let truth = workload.truth();
        let scrape = Scrape::take(&agent, &cgroup);
        scrape.assert_tells(&truth, scenario("memory"));
        workload.end();
        assert_dead(&agent, &cgroup, &truth, &scrape);
        agent.stop();
    }
}

/// Programs on virtual GPUs, those of a line at the same time: they sleep most of it.
const SHOWS: [&[&str]; 2] = [
    &["synchronous_static", "prefetch", "two_devices", "graph"],
    &["eight_threads", "blocking_copies", "polling", "memory"],
];

#[test]
fn every_rung_counts_the_same() {
    turn!("every_rung_counts_the_same");
    let _waiting = Waiting::start();
    let mut rungs: Vec<Rung> = ["uprobe_multi", "uprobe_cookie", "uprobe"]
        .map(|hook| Rung::start("gpu", hook))
        .into();
    let agents = rungs.iter().filter_map(|rung| rung.agent.as_ref());
    agents.for_each(Waiting::until_hooked);
    for names in SHOWS {
        let mut show = Show::of(names);
        show.perform();
        if !ladder::named() {
            sleep(ladder::WALK_INTERVAL);
        }
        for rung in &mut rungs {
            let Some(agent) = &rung.agent else {
                continue;
            };
            let told = catch_unwind(AssertUnwindSafe(|| show.assert_told(agent)));
            if let Err(panic) = told {
                let why = panic.downcast::<String>();
                let why = why.map_or_else(|_| "wrong".to_owned(), |why| *why);
                rung.wrong.push(why);
            }
        }
        show.close();
    }
    ladder::end(rungs);
}

/// Off, nothing is hooked and nothing falls; on again, counts go on, and what is there is hooked anew.
#[test]
fn turned_off_and_on_it_goes_on_counting() {
    turn!("turned_off_and_on_it_goes_on_counting");
    let scenario = scenario("synchronous");
    let program = program(scenario.form);
    let cgroup = socket_cgroup("gpu");
    let rest = "series.retention: 5s\n";
    let on = format!("probes: [tcp, gpu]\n{rest}");
    let site = Site::new(&on);
    let mut first = Workload::start_waiting(&cgroup, &program, scenario.args);
    let agent = site.agent("");
    wait_until_attached(&agent);
    let hooked = links(&agent);
    first.go_on();
    first.truth().assert_as_planned(scenario);
    let time = |scrape: &Scrape| scrape.sum(STARVED, &[]) + scrape.sum(IDLE, &[]);
    let before = Scrape::take(&agent, &cgroup);
    assert_eq!(before.count(LAUNCHES, &[]), 40);

    site.reload(&agent, &format!("probes: tcp\n{rest}"));
    // Those of tcp and of cgroups are left.
    wait_for("probe that has let go", PATIENCE, || {
        (links(&agent) < hooked - 4).then_some(())
    });
    let off = wait_for("end of the gap", PATIENCE, || {
        let [one, next] = [0, 1].map(|_| {
            sleep(Duration::from_millis(50));
            Scrape::take(&agent, &cgroup)
        });
        (time(&one) == time(&next)).then_some(next)
    });
    assert!(time(&off) >= time(&before));
    let mut second = Workload::start_waiting(&cgroup, &program, scenario.args);
    second.go_on();
    second.truth().assert_as_planned(scenario);
    second.end();
    // Longer than series of what is gone stay.
    sleep(Duration::from_secs(6));
    let still = Scrape::take(&agent, &cgroup);
    assert_eq!(still.count(LAUNCHES, &[]), 40);
    assert_eq!(time(&still), time(&off));
    let said = [
        ("probe", "gpu"),
        ("verdict", "off"),
        ("reason", "turned_off"),
    ];
    assert_eq!(still.said.value(UP, &said), 0.0);
    for gauge in [PROCESSES, ALLOCATED] {
        assert_eq!(still.said.matching(gauge, &[]).count(), 0, "{gauge}");
    }

    site.reload(&agent, &on);
    let mut third = Workload::start_waiting(&cgroup, &program, scenario.args);
    wait_for("probe that is attached again", PATIENCE, || {
        (links(&agent) == hooked).then_some(())
    });
    third.go_on();
    let truth = third.truth();
    truth.assert_as_planned(scenario);
    let after = Scrape::take(&agent, &cgroup);
    assert_eq!(after.count(LAUNCHES, &[]), 80);
    assert_eq!(after.count(PROCESSES, &[]), 1);
    let gained = time(&after) - time(&off);
    let device = truth.devices().next().unwrap();
    assert!(
        gained <= seconds(device.idle(after.after_ns)) + ROUNDING,
        "{gained} s"
    );
    assert!(
        gained >= 0.9 * seconds(device.idle(after.before_ns)),
        "{gained} s"
    );
    third.end();
    first.end();
    agent.stop();
}
