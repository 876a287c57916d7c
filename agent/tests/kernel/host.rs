//! What a test needs of its host: whether it may run, its turn, and cgroups by the labels they get.

use crate::agent::sentry;
use sentry_bench::cgroup::CgroupRoots;
use sentry_bench::sandbox::{Cgroup, is_root};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A test's turn: nothing else of this program runs meanwhile.
pub(crate) struct Turn(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

/// Waits for the test's turn; none where the host cannot run it, which is said on standard error.
pub(crate) fn take_turn(test: &str) -> Option<Turn> {
    static TURN: Mutex<()> = Mutex::new(());
    static REFUSAL: OnceLock<Option<String>> = OnceLock::new();
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(reason) = REFUSAL.get_or_init(refusal) {
        skipped(test, reason);
        return None;
    }
    Some(Turn(turn))
}

/// Says why a test is skipped, past the capture of the test harness.
pub(crate) fn skipped(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

/// Ends a test that its host cannot run; else it is this test's turn until its end.
macro_rules! turn {
    ($test:literal) => {
        let Some(_turn) = crate::host::take_turn($test) else {
            return;
        };
    };
}
pub(crate) use turn;

/// Why this host runs no eBPF programs; none where it does. Anything else that keeps the probes down is a failure of
/// ours, and no reason to skip.
fn refusal() -> Option<String> {
    if !is_root() {
        return Some("needs root".to_owned());
    }
    let output = sentry("check --format json").output().unwrap();
    if output.status.success() {
        return None;
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for probe in report["probes"].as_array().unwrap() {
        let refused = probe["verdict"] == "unsupported" || probe["reason"] == "no_permission";
        assert!(refused, "sentry check: {probe}");
    }
    let first = &report["probes"][0];
    Some(format!(
        "this host refuses eBPF: {}",
        first["detail"].as_str().unwrap()
    ))
}

/// The flag that names a file with the kernel's types, where the environment says that the kernel hides them.
pub(crate) fn types() -> String {
    let file = std::env::var_os("SENTRY_TEST_BTF");
    file.map_or_else(String::new, |file| format!("--btf {}", file.display()))
}

/// Those hooks of a probe that this kernel has, each as the flags for it.
pub(crate) fn hooks(probe: &str, hooks: &[&str]) -> Vec<String> {
    let flags = |hook: &&str| {
        let flags = format!("--{probe}.hook {hook} {}", types());
        let check = format!("check --format json --probes {probe} {flags}");
        let output = sentry(&check).output().unwrap();
        if !output.status.success() {
            eprintln!("{probe}: this kernel has no {hook}");
        }
        output.status.success().then_some(flags)
    };
    let found: Vec<_> = hooks.iter().filter_map(flags).collect();
    assert!(!found.is_empty());
    found
}

/// The cgroup trees of this host.
pub(crate) fn roots() -> &'static CgroupRoots {
    static ROOTS: OnceLock<CgroupRoots> = OnceLock::new();
    ROOTS.get_or_init(|| CgroupRoots::find().unwrap())
}

/// Whether no v2 tree is mounted, so that sockets belong to no cgroup.
pub(crate) fn is_v1_only() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    !mounts.contains(" - cgroup2 ")
}

/// A cgroup for sockets.
pub(crate) fn socket_cgroup(name: &str) -> Cgroup {
    Cgroup::new(&roots().v2, name).unwrap()
}

/// A cgroup for disk I/O.
pub(crate) fn disk_cgroup(name: &str) -> Cgroup {
    Cgroup::new(&roots().blkio, name).unwrap()
}

/// The label of a cgroup: its path from the root of its hierarchy.
pub(crate) fn label(cgroup: &Cgroup) -> String {
    label_of(cgroup.path())
}

/// The label of a cgroup by its folder.
pub(crate) fn label_of(folder: &Path) -> String {
    let CgroupRoots { v2, blkio } = roots();
    let path = folder
        .strip_prefix(v2)
        .or_else(|_| folder.strip_prefix(blkio));
    format!("/{}", path.unwrap().display())
}

/// On hosts with cgroup v2 alone, the `io` controller for children of the root, as systemd has it; without it, all disk
/// I/O belongs to the root.
pub(crate) struct IoController(Option<PathBuf>);

impl IoController {
    pub(crate) fn on() -> Self {
        let CgroupRoots { v2, blkio } = roots();
        if is_v1_only() {
            return Self(None);
        }
        let control = v2.join("cgroup.subtree_control");
        let is_on = fs::read_to_string(&control)
            .unwrap()
            .split_whitespace()
            .any(|name| name == "io");
        if v2 != blkio || is_on {
            return Self(None);
        }
        fs::write(&control, "+io").unwrap();
        Self(Some(control))
    }
}

impl Drop for IoController {
    fn drop(&mut self) {
        if let Some(control) = &self.0 {
            let _ = fs::write(control, "-io");
        }
    }
}

/// A folder for a test's files, gone at its end. Anybody may read in it.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        Self::new_in(&std::env::temp_dir())
    }

    pub(crate) fn new_in(around: &Path) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = around.join(format!("sentry-kernel-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Waits until something is there.
pub(crate) fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < patience, "no {what} after {patience:?}");
        sleep(Duration::from_millis(20));
    }
}

/// Runs a program that `make test` installs, to its end, with this input; what it printed on either stream.
pub(crate) fn output(mut command: Command) -> std::process::Output {
    let program = command.get_program().to_owned();
    command
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

/// A command that joins a cgroup and then becomes this program.
pub(crate) fn in_cgroup(cgroup: &Cgroup, program: impl AsRef<OsStr>) -> Command {
    let script = "echo 0 >\"$0/cgroup.procs\" && exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(cgroup.path()).arg(program);
    command
}
