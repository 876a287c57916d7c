//! The page, in a real browser: under load, without anything, with a thousand workloads, and when its agent dies.

use crate::agent::Agent;
use crate::gpu::shared_program;
use crate::host::{
    IoController, disk_cgroup, in_cgroup, label, output, roots, skipped, socket_cgroup, take_turn,
    turn, wait_for,
};
use crate::load::{self, Server, count};
use rustix::process::Signal;
use sentry_bench::sandbox::{Cgroup, LoopDevice};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A step of the history, and some.
const PATIENCE: Duration = Duration::from_secs(25);

const HANDSHAKE: &str = "sentry_tcp_handshake_duration_seconds";

/// What a name may be that somebody chose who means no good.
const HOSTILE: &str = "<img src=x onerror=alert(1)>&\"'";

/// Where the browser's tests are.
fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../page/test")
}

/// What of the browser's tests is missing here, if anything.
fn missing() -> Option<&'static str> {
    let has = |program: &str| {
        let mut asked = Command::new(program);
        asked.arg("--version").stdout(Stdio::null());
        asked.stderr(Stdio::null()).status().is_ok()
    };
    if !has("node") {
        return Some("no node");
    }
    if std::env::var_os("SENTRY_CHROMIUM").is_none() && !Path::new("/usr/bin/chromium").exists() {
        return Some("no /usr/bin/chromium, and SENTRY_CHROMIUM names none");
    }
    if !tests().join("../node_modules/playwright-core").exists() {
        return Some(
            "no page/node_modules; `npm ci` in page/ brings them, and `make test` calls it",
        );
    }
    None
}

/// Ends a test where there is no browser; else it is this test's turn until its end.
macro_rules! browser_turn {
    ($test:literal) => {
        let Some(_turn) = take_turn($test) else {
            return;
        };
        if let Some(reason) = missing() {
            skipped($test, reason);
            return;
        }
    };
}

fn browser(agent: &Agent, scenario: &str, told: &Value) -> Command {
    let mut node = Command::new("node");
    node.arg(tests().join("page.js"));
    node.args([scenario, &format!("http://{}/", agent.address())]);
    node.arg(told.to_string());
    node
}

/// Runs a scenario to its end; what it measured.
fn browse(agent: &Agent, scenario: &str, told: &Value) -> Value {
    let output = output(browser(agent, scenario, told));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{scenario}: {stderr}");
    let measured = serde_json::from_slice(&output.stdout).unwrap();
    println!("{scenario}: {measured}");
    measured
}

fn api(agent: &Agent, path: &str) -> Value {
    let answer = agent.get(&format!("/api/v1/{path}"), &[]);
    assert_eq!(answer.status, 200, "{path}");
    serde_json::from_slice(&answer.body).unwrap()
}

fn row(agent: &Agent, cgroup: &str) -> Option<Value> {
    let answer = api(agent, "workloads");
    let mut rows = answer["workloads"].as_array().unwrap().iter();
    let found = rows.find(|row| row["labels"] == json!({"cgroup": cgroup}));
    found.cloned()
}

/// All events of a role in the history of a workload.
fn in_history(agent: &Agent, id: &str, role: &str) -> u64 {
    let answer = api(agent, &format!("history?workload={id}"));
    let lanes = answer["lanes"].as_array().unwrap();
    let lane = lanes
        .iter()
        .find(|lane| lane["metric"] == HANDSHAKE && lane["labels"]["role"] == role);
    let Some(lane) = lane else {
        return 0;
    };
    let steps = answer["steps"].as_array().unwrap().iter();
    let values = steps.flat_map(|step| step["values"].as_array().unwrap());
    let of_lane = values.filter(|value| value[0] == lane["lane"]);
    let events = of_lane.flat_map(|value| value[1].as_array().unwrap().chunks_exact(2));
    events.map(|pair| pair[1].as_u64().unwrap()).sum()
}

#[test]
fn history_is_exact_whoever_reads_meanwhile() {
    turn!("history_is_exact_whoever_reads_meanwhile");
    let agent = Agent::start("--probes tcp");
    let cgroup = socket_cgroup("page-history");
    let listener = Server::listen("", &[&cgroup]);
    let to = format!("connect --to 127.0.0.1:{} --count 50", listener.port());
    for _ in 0..6 {
        load::assert_all(&load::run(&to, &[&cgroup]), "connected", 50);
        agent.scrape();
        api(&agent, "workloads");
        api(&agent, "status");
    }
    let found = wait_for("workload", PATIENCE, || row(&agent, &label(&cgroup)));
    assert_eq!(found["tcp"]["client"]["total"], 300);
    assert_eq!(found["lives"], true);
    let id = found["id"].as_str().unwrap();
    wait_for("step with all of it", PATIENCE, || {
        let events = in_history(&agent, id, "client");
        assert!(events <= 300, "{events}");
        (events == 300).then_some(())
    });
    assert_eq!(in_history(&agent, id, "server"), 300);
    // What was read before is left out, and there is little of the rest.
    let latest = api(&agent, "history")["latest"].as_u64().unwrap();
    let rest = api(&agent, &format!("history?since={latest}"));
    assert!(rest["steps"].as_array().unwrap().len() <= 1);
    // The workload ends; its history does not.
    count(&listener.finish(), "accepted");
    drop(cgroup);
    wait_for("end of the workload", PATIENCE, || {
        let rows = api(&agent, "workloads");
        let mut rows = rows["workloads"].as_array().unwrap().iter();
        let row = rows.find(|row| row["id"] == id)?;
        (row["lives"] == false).then_some(())
    });
    assert_eq!(in_history(&agent, id, "client"), 300);
    let status = api(&agent, "status");
    let bytes = status["history"]["bytes"].as_u64().unwrap();
    assert!(bytes < 100_000, "{bytes}");
    assert_eq!(status["probes"][0]["verdict"], "attached");
    agent.stop();
}

/// Something that goes on until it is dropped.
struct Ongoing {
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ongoing {
    fn start(mut round: impl FnMut() + Send + 'static) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                round();
            }
        });
        Self {
            ends,
            thread: Some(thread),
        }
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn name_of(cgroup: &Cgroup) -> String {
    let path = label(cgroup);
    path.rsplit('/').next().unwrap().to_owned()
}

#[test]
fn page_under_load() {
    browser_turn!("page_under_load");
    let _controller = IoController::on();
    let agent = Agent::start("--probes tcp,disk,gpu --tcp.exemplars 1us --disk.exemplars 1us");
    let [web, refused] = ["page-web", "page-refused"].map(socket_cgroup);
    // The folder of a cgroup may be called anything.
    let hostile = socket_cgroup(HOSTILE);
    let readers = ["page-reader", "page-other"].map(disk_cgroup);
    let devices = [(); 2].map(|()| LoopDevice::new(1 << 20).unwrap());
    let listener = Server::listen("", &[&web]);
    let told = json!({
        "workloads": [name_of(&web), name_of(&refused), name_of(&hostile), name_of(&readers[0])],
        "refused": name_of(&refused),
        "reader": name_of(&readers[0]),
        "devices": devices.each_ref().map(LoopDevice::name),
    });
    let port = listener.port();
    let files = devices
        .each_ref()
        .map(|device| device.path().display().to_string());
    let gpu = socket_cgroup("page-gpu");
    let mut on_gpu = in_cgroup(&gpu, shared_program());
    on_gpu.arg("synchronous").stdout(Stdio::null());
    let ongoing = Ongoing::start(move || {
        let connect = format!("connect --to 127.0.0.1:{port} --count 40");
        load::run(&connect, &[&web]);
        load::run(&connect, &[&hostile]);
        load::run("connect --to 127.0.0.1:1 --count 20", &[&refused]);
        thread::sleep(Duration::from_millis(100));
    });
    // By itself: the disk beneath may be so busy that it takes half a minute.
    let reading = Ongoing::start(move || {
        for (file, reader) in files.iter().zip(&readers) {
            let read = format!("read --file {file} --direct --count 40 --span 524288");
            load::run(&read, &[reader]);
        }
        thread::sleep(Duration::from_millis(100));
    });
    let gpu_ongoing = Ongoing::start(move || {
        assert!(on_gpu.status().unwrap().success());
    });
    let measured = browse(&agent, "load", &told);
    assert!(measured["paint"].as_f64().unwrap() > 0.0, "{measured}");
    browse(&agent, "scriptless", &json!({}));
    drop((ongoing, reading, gpu_ongoing));
    drop(listener);
    agent.stop();
}

#[test]
fn page_without_anything_to_show() {
    browser_turn!("page_without_anything_to_show");
    let agent = Agent::start("--probes gpu");
    let says = |text: &str| json!({ "says": text });
    // Unless something on this host has CUDA.
    if api(&agent, "status")["probes"][0]["verdict"] == "unsupported" {
        browse(&agent, "empty", &says("No probe is attached"));
    }
    let mut waiting = Command::new(shared_program());
    waiting.args(["--wait", "short"]).stdout(Stdio::null());
    let mut waiting = waiting.stdin(Stdio::piped()).spawn().unwrap();
    wait_for("attached probe", PATIENCE, || {
        let status = api(&agent, "status");
        (status["probes"][0]["verdict"] == "attached").then_some(())
    });
    browse(&agent, "empty", &says("Nothing has happened yet"));
    drop(waiting.stdin.take());
    waiting.wait().unwrap();
    agent.stop();
}

#[test]
fn page_with_a_thousand_workloads() {
    browser_turn!("page_with_a_thousand_workloads");
    let agent = Agent::start("--probes tcp --series.max 4096");
    let outer = socket_cgroup("page-many");
    let listener = Server::listen("", &[&outer]);
    let args = format!(
        "churn --v2-root {} --prefix many --count 1000 --keep --to 127.0.0.1:{}",
        outer.path().display(),
        listener.port()
    );
    load::run(&args, &[]);
    assert!(outer.path().starts_with(&roots().v2));
    let told = json!({ "count": 1000, "prefix": "many" });
    browse(&agent, "many", &told);
    drop(listener);
    agent.stop();
}

#[test]
fn page_of_a_dead_agent() {
    browser_turn!("page_of_a_dead_agent");
    let agent = Agent::start("--probes tcp");
    let mut node = browser(&agent, "dead", &json!({}));
    node.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut node = node.stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(node.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    if line == "ready\n" {
        agent.end(Signal::KILL);
        writeln!(node.stdin.take().unwrap()).unwrap();
    }
    let output = node.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}{stderr}");
}
