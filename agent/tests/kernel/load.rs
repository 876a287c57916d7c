//! Real load: the program `load` of the bench crate, and its reports.

use crate::host::{output, wait_for};
use sentry_bench::sandbox::{Cgroup, Netns};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// The program, beside the agent's own. Cargo builds no other package's program for a test, so it is asked to, unless
/// the test runs without cargo.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let folder = Path::new(crate::agent::SENTRY).parent().unwrap();
        let program = folder.join("load");
        if let Some(cargo) = std::env::var_os("CARGO") {
            let profile = match folder.file_name().unwrap().to_str().unwrap() {
                "debug" => "dev",
                other => other,
            };
            let args = [
                "build",
                "--quiet",
                "--package=sentry-bench",
                "--bin=load",
                "--profile",
                profile,
            ];
            let mut command = Command::new(cargo);
            command.args(args).current_dir(env!("CARGO_MANIFEST_DIR"));
            let built = output(command);
            let stderr = String::from_utf8_lossy(&built.stderr);
            assert!(built.status.success(), "{stderr}");
        }
        assert!(program.exists(), "no {}", program.display());
        program
    })
}

/// A command of it, in these cgroups.
pub(crate) fn command(args: &str, cgroups: &[&Cgroup]) -> Command {
    with_arguments(Command::new(program()), args, cgroups)
}

/// A command of it in a network namespace and these cgroups.
pub(crate) fn command_in(netns: &Netns, args: &str, cgroups: &[&Cgroup]) -> Command {
    with_arguments(netns.command(program()), args, cgroups)
}

fn with_arguments(mut command: Command, args: &str, cgroups: &[&Cgroup]) -> Command {
    command.args(args.split_whitespace());
    for cgroup in cgroups {
        command.arg("--cgroup").arg(cgroup.path());
    }
    command
}

/// Runs it to its end; its report.
pub(crate) fn report(command: Command) -> Value {
    let called = format!("{command:?}");
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{called}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Runs it in these cgroups; its report.
pub(crate) fn run(args: &str, cgroups: &[&Cgroup]) -> Value {
    report(command(args, cgroups))
}

/// Runs it in a network namespace and these cgroups; its report.
pub(crate) fn run_in(netns: &Netns, args: &str, cgroups: &[&Cgroup]) -> Value {
    report(command_in(netns, args, cgroups))
}

/// A count of a report.
pub(crate) fn count(report: &Value, key: &str) -> u64 {
    let count = report[key].as_u64();
    count.unwrap_or_else(|| panic!("no {key} in {report}"))
}

/// Asserts that connects all ended so.
pub(crate) fn assert_all(report: &Value, outcome: &str, expected: u64) {
    assert_eq!(count(report, "attempted"), expected, "{report}");
    assert_eq!(count(report, outcome), expected, "{report}");
}

/// One that serves until it is told to finish.
pub(crate) struct Server {
    process: Child,
    stdout: BufReader<ChildStdout>,
    /// Its first line.
    ready: Value,
}

impl Server {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut process = command
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

    /// A listener in these cgroups.
    pub(crate) fn listen(args: &str, cgroups: &[&Cgroup]) -> Self {
        Self::start(command(&format!("listen {args}"), cgroups))
    }

    pub(crate) fn port(&self) -> u64 {
        count(&self.ready, "port")
    }

    /// Its report, now that it may end.
    pub(crate) fn finish(mut self) -> Value {
        drop(self.process.stdin.take());
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        let status = wait_for("end of a server", Duration::from_secs(10), || {
            self.process.try_wait().unwrap()
        });
        assert!(status.success());
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
