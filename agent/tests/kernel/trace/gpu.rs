//! `sentry trace gpu`: a line for each gap that an enqueue ends and each call that fails, of programs on virtual GPUs
//! that tell themselves what they did.

use super::{End, PATIENCE, Trace};
use crate::agent::sentry;
use crate::cuda::{Account, OTHERS_WITH_ERRORS, SHARED_13, STATIC_12, SYNCS, take_turn_with_cuda};
use crate::exposition::as_count;
use crate::gpu::{ERRORS, Form, GAPS, Workload, program, start_agent, unseen, wait_until_attached};
use crate::host::{
    Folder, Turn, is_v1_only, label, output, skipped, socket_cgroup, take_turn, wait_for,
};
use crate::node::{NAME, Node, id, slice, uid};
use rustix::process::Signal;
use sentry_bench::kubernetes::Pod;
use sentry_bench::sandbox::Cgroup;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// How long the host leaves the device of `synchronous` idle, in turns: 39 times.
const PAUSES: [f64; 5] = [0.005, 0.020, 0.050, 0.010, 0.030];

fn seconds(object: &Value) -> f64 {
    object["duration_seconds"].as_f64().unwrap()
}

/// Ends a trace as Ctrl-C does, and asserts that nothing was lost; its objects.
fn objects_of(trace: Trace) -> Vec<Value> {
    trace.signal(Signal::INT);
    let End {
        code,
        lines,
        stderr,
    } = trace.wait();
    assert_eq!(code, Some(0), "{stderr}");
    let said = format!("sentry: {} events; none lost\n", lines.len());
    assert!(stderr.ends_with(&said), "{stderr}");
    let lines = lines.iter();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Those of a process.
fn of_process(objects: &[Value], pid: u32) -> Vec<&Value> {
    let objects = objects.iter();
    objects.filter(|object| object["pid"] == pid).collect()
}

/// Asserts that these are the gaps of `synchronous`.
fn assert_synchronous(gaps: &[&Value], pid: u32, form: Form, cgroup: &Cgroup, idle_ns: u64) {
    assert_eq!(gaps.len(), 39);
    let name = program(form);
    let name = name.file_name().unwrap().to_str().unwrap();
    let mut sum = 0.0;
    for (gap, pause) in gaps.iter().zip(PAUSES.iter().cycle()) {
        assert_eq!(gap["event"], "gap");
        assert_eq!(gap["pid"], pid);
        assert_eq!(gap["comm"], name[..name.len().min(15)]);
        assert_eq!(gap["cgroup"], label(cgroup).as_str());
        assert_eq!(gap["device"], "0");
        assert_eq!(gap["outcome"], "starved");
        assert_eq!(gap.get("call"), None);
        assert!(seconds(gap) >= *pause, "{gap}: {pause} s");
        sum += seconds(gap);
    }
    let idle = std::time::Duration::from_nanos(idle_ns).as_secs_f64();
    assert!(sum <= idle, "{sum} s of {idle} s");
}

/// What `sentry check` says of the probe.
fn check(hook: &str) -> Value {
    let checked = sentry(&format!(
        "check --format json --probes gpu --gpu.hook {hook}"
    ));
    let checked: Value = serde_json::from_slice(&output(checked).stdout).unwrap();
    checked["probes"][0].clone()
}

/// Whether this kernel has a hook.
fn has_hook(hook: &str) -> bool {
    let probe = check(hook);
    assert_eq!(probe["hook"], hook, "{probe}");
    probe["reason"] != "no_hook"
}

/// A test's turn, where programs are found as they come and have a cgroup.
fn turn(test: &str) -> Option<Turn> {
    let turn = take_turn(test)?;
    let polls = check("auto")["detail"].to_string().contains("every 5 s");
    if polls || is_v1_only() {
        eprintln!("{test}: this kernel tells of no mappings, or has no cgroups for the probe");
        return None;
    }
    Some(turn)
}

#[test]
fn each_gap_is_a_line_by_every_hook() {
    let Some(_turn) = turn("each_gap_is_a_line_by_every_hook") else {
        return;
    };
    let hooks = ["uprobe_multi", "uprobe_cookie", "uprobe"];
    let mut tried = 0;
    for hook in hooks.into_iter().filter(|hook| has_hook(hook)) {
        tried += 1;
        for form in [Form::Shared, Form::Static] {
            let cgroup = socket_cgroup("gpu");
            let mut workload = Workload::start_waiting(&cgroup, &program(form), "synchronous");
            let pid = workload.pid();
            let trace = Trace::start(&format!("gpu --format json --gpu.hook {hook} --pid {pid}"));
            workload.go_on();
            let truth = workload.truth();
            let objects = objects_of(trace);
            let gaps: Vec<_> = objects.iter().collect();
            let idle_ns = truth.number("/devices/0/idle_between_ns");
            assert_synchronous(&gaps, pid, form, &cgroup, idle_ns);
            workload.end();
        }
    }
    assert!(tried > 0);
}

/// The agent beside it counts the same, and each call that failed is a line.
#[test]
fn failed_calls_are_lines_beside_an_agent_that_counts_them() {
    let Some(_turn) = turn("failed_calls_are_lines_beside_an_agent_that_counts_them") else {
        return;
    };
    let cgroup = socket_cgroup("gpu");
    let mut workloads = ["errors", "synchronous"]
        .map(|args| Workload::start_waiting(&cgroup, &program(Form::Shared), args));
    let [failing, pausing] = workloads.each_ref().map(Workload::pid);
    let agent = start_agent();
    wait_until_attached(&agent);
    let trace = Trace::start(&format!("gpu --format json --cgroup {}", label(&cgroup)));
    workloads.iter_mut().for_each(Workload::go_on);
    let [failures, pauses] = workloads.each_mut().map(Workload::truth);
    let objects = objects_of(trace);
    let mut errors = BTreeMap::new();
    let failed = of_process(&objects, failing);
    for object in &failed {
        assert_eq!(object["comm"], "workload");
        assert_eq!(object.get("device"), None);
        assert!((0.0..1.0).contains(&seconds(object)), "{object}");
        let [call, code] = ["call", "outcome"].map(|key| object[key].as_str().unwrap().to_owned());
        *errors.entry((call, code)).or_insert(0) += 1;
    }
    assert_eq!(errors, failures.errors());
    assert!(failed.len() > 50, "{}", failed.len());
    let gaps = of_process(&objects, pausing);
    let idle_ns = pauses.number("/devices/0/idle_between_ns");
    assert_synchronous(&gaps, pausing, Form::Shared, &cgroup, idle_ns);
    assert_eq!(objects.len(), failed.len() + gaps.len());
    let scrape = agent.scrape();
    let of_cgroup = label(&cgroup);
    let counted = |metric: &str| -> u64 {
        let labels = [("cgroup", of_cgroup.as_str())];
        let samples = scrape.matching(metric, &labels);
        samples.map(|sample| as_count(sample.value)).sum()
    };
    assert_eq!(counted(&format!("{GAPS}_count")), 39);
    assert_eq!(counted(ERRORS), failures.errors().values().sum::<u64>());
    workloads.into_iter().for_each(Workload::end);
    agent.stop();
}

#[test]
fn a_gap_of_more_than_a_second_is_idle() {
    let Some(_turn) = turn("a_gap_of_more_than_a_second_is_idle") else {
        return;
    };
    let cgroup = socket_cgroup("gpu");
    let mut workload = Workload::start_waiting(&cgroup, &program(Form::Shared), "sparse_server");
    let trace = Trace::start(&format!("gpu --cgroup {}", label(&cgroup)));
    workload.go_on();
    workload.truth();
    trace.signal(Signal::INT);
    let End { lines, stderr, .. } = trace.wait();
    assert!(
        stderr.ends_with("sentry: 2 events; none lost\n"),
        "{stderr}"
    );
    let rows: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0],
        [
            "TIME", "PID", "COMM", "DEVICE", "EVENT", "MS", "OUTCOME", "WORKLOAD"
        ]
    );
    let pid = workload.pid().to_string();
    for row in &rows[1..] {
        assert_eq!(row[1..5], [pid.as_str(), "workload", "0", "gap"]);
        let ms: f64 = row[5].parse().unwrap();
        let outcome = if ms > 1000.0 { "idle" } else { "starved" };
        assert_eq!(row[6..], [outcome, &label(&cgroup)], "{row:?}");
    }
    assert!(rows.iter().any(|row| row[6] == "idle"), "{lines:?}");
    workload.end();
}

/// Of two processes in two cgroups, one with two devices and one whose calls fail, each filter has its own.
#[test]
fn filters_let_through_what_they_should() {
    let Some(_turn) = turn("filters_let_through_what_they_should") else {
        return;
    };
    let (one, two) = (socket_cgroup("one"), socket_cgroup("two"));
    let run = |filter: &dyn Fn(u32) -> String| {
        let start = |cgroup: &Cgroup, args: &str| {
            Workload::start_waiting(cgroup, &program(Form::Shared), args)
        };
        let a = start(&one, "two_devices");
        let trace = Trace::start(&format!("gpu --format json {}", filter(a.pid())));
        // Made after the trace began: it is below the one that is asked for.
        let below = Cgroup::new(two.path(), "below").unwrap();
        let b = start(&below, "synchronous");
        let c = start(&two, "errors");
        let mut workloads = [a, b, c];
        workloads.iter_mut().for_each(Workload::go_on);
        let failed = workloads.each_mut().map(|workload| {
            let errors = workload.truth().errors();
            errors.values().sum::<u64>()
        });
        let objects = objects_of(trace);
        let of = workloads
            .each_ref()
            .map(|workload| of_process(&objects, workload.pid()).len());
        assert_eq!(objects.len(), of.iter().sum::<usize>());
        workloads.into_iter().for_each(Workload::end);
        (of, usize::try_from(failed[2]).unwrap())
    };
    let (all, failed) = run(&|_| String::new());
    assert!(failed > 50, "{failed}");
    assert_eq!(all, [38, 39, failed]);
    assert_eq!(run(&|pid| format!("--pid {pid}")).0, [38, 0, 0]);
    let path = label(&two);
    assert_eq!(run(&|_| format!("--cgroup {path}")).0, [0, 39, failed]);
    // Failed calls are no device's.
    assert_eq!(run(&|_| "--device 0".to_owned()).0, [29, 39, 0]);
    assert_eq!(run(&|_| "--device 1".to_owned()).0, [9, 0, 0]);
    let (of, _) = run(&|_| format!("--cgroup {path} --min-duration 25ms"));
    // Pauses of 50 ms and of 30 ms; on a busy host a shorter one may have become as long.
    assert!((15..39).contains(&of[1]), "{of:?}");
    assert_eq!([of[0], of[2]], [0, 0]);
    let none = run(&|pid| format!("--pid {pid} --cgroup {path}")).0;
    assert_eq!(none, [0, 0, 0]);
}

#[test]
fn a_pod_has_its_own_gaps() {
    let Some(_turn) = turn("a_pod_has_its_own_gaps") else {
        return;
    };
    let node = Node::new();
    let container = |pod: u64, number: u64| {
        let slice = slice("burstable", pod);
        node.cgroup(&format!("{slice}/cri-containerd-{}.scope", id(number)))
    };
    node.api.apply(&Pod::new(NAME, "shop", "api-0", &uid(1)));
    node.api.apply(&Pod::new(NAME, "shop", "api-1", &uid(2)));
    let (seat, other) = (container(1, 1), container(2, 2));
    let args = "gpu --format json --pod shop/api-0";
    let trace = Trace::spawn(node.command(&format!("trace {args}")));
    let run = |seat: &crate::node::Seat| {
        let mut command = seat.enter();
        command.arg(program(Form::Shared)).arg("short");
        assert!(output(command).status.success());
    };
    // The API server tells when it likes.
    wait_for("pod", PATIENCE, || {
        run(&seat);
        (trace.lines() > 0).then_some(())
    });
    let seen = trace.lines();
    run(&other);
    run(&seat);
    let objects = objects_of(trace);
    for object in &objects {
        assert_eq!(
            (&object["namespace"], &object["pod"], &object["container"]),
            (&"shop".into(), &"api-0".into(), &id(1).into())
        );
    }
    // Of a program that is over so soon some are missed.
    assert!(objects.len() > seen, "{seen}");
}

#[test]
fn lines_and_lost_are_what_failed() {
    let Some(_turn) = turn("lines_and_lost_are_what_failed") else {
        return;
    };
    let cgroup = socket_cgroup("gpu");
    let mut workload = Workload::start_waiting(&cgroup, &program(Form::Shared), "failures 20000");
    let trace = Trace::start(&format!("gpu --format json --pid {}", workload.pid()));
    // Nobody reads meanwhile.
    trace.signal(Signal::STOP);
    workload.go_on();
    assert_eq!(workload.truth().errors().values().sum::<u64>(), 20_000);
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
    assert_eq!(rest, "", "{stderr}");
    let [shown, full]: [usize; 2] = [shown, full].map(|number| number.parse().unwrap());
    assert_eq!(shown, lines.len());
    assert!(shown > 1000 && full > 1000, "{stderr}");
    assert_eq!(shown + full, 20_000);
    workload.end();
}

/// NVIDIA's runtime without a driver: each call fails, and is one line.
#[test]
fn failed_calls_of_the_real_runtime_are_lines() {
    let name = "failed_calls_of_the_real_runtime_are_lines";
    let Some((_turn, cuda)) = take_turn_with_cuda(name) else {
        return;
    };
    let folder = Folder::new();
    for form in [SHARED_13, STATIC_12] {
        let compiled = cuda.compile(&form, folder.path());
        let cgroup = socket_cgroup("gpu");
        let mut running = cuda.start(&form, &compiled, &cgroup);
        let trace = Trace::start(&format!("gpu --format json --cgroup {}", label(&cgroup)));
        let mut expected = running.call();
        expected.retain(|(call, code), _| {
            let call = call.as_str();
            *code != 0 && (SYNCS.contains(&call) || OTHERS_WITH_ERRORS.contains(&call))
        });
        let mut failed = Account::new();
        for object in objects_of(trace) {
            let [call, code] = ["call", "outcome"].map(|key| object[key].as_str().unwrap());
            let key = (call.to_owned(), code.parse().unwrap());
            *failed.entry(key).or_insert(0) += 1;
        }
        assert_eq!(failed, expected);
        assert!(failed.len() > 5, "{failed:?}");
        running.end();
    }
}

/// It has places for 63 processes at a time.
#[test]
fn processes_that_end_make_room() {
    let Some(_turn) = turn("processes_that_end_make_room") else {
        return;
    };
    let cgroup = socket_cgroup("gpu");
    let first = Workload::start_waiting(&cgroup, &program(Form::Shared), "failures 3");
    let trace = Trace::start(&format!("gpu --format json --cgroup {}", label(&cgroup)));
    for _ in 0..70 {
        let mut workload = Workload::start(&cgroup, &program(Form::Shared), "failures 1");
        workload.truth();
        workload.end();
    }
    let mut last = Workload::start(&cgroup, &program(Form::Shared), "synchronous");
    let (pid, idle_ns) = (
        last.pid(),
        last.truth().number("/devices/0/idle_between_ns"),
    );
    let objects = objects_of(trace);
    let gaps = of_process(&objects, pid);
    assert_synchronous(&gaps, pid, Form::Shared, &cgroup, idle_ns);
    assert_eq!(objects.len(), 70 + 39);
    last.end();
    first.end();
}

#[test]
fn a_trace_waits_for_the_first_program() {
    let Some(_turn) = turn("a_trace_waits_for_the_first_program") else {
        return;
    };
    for form in [Form::Shared, Form::Static] {
        let (folder, cgroup) = (Folder::new(), socket_cgroup("gpu"));
        let unseen = unseen(&folder, form);
        let trace = Trace::start("gpu --format json");
        let said = || trace.printed.as_ref().unwrap()[1].text();
        if said().contains("sentry: attached to ") {
            let why = "other programs of this host use CUDA";
            skipped("a_trace_waits_for_the_first_program", why);
            return;
        }
        wait_for("word of a trace that waits", PATIENCE, || {
            let waits = "sentry: waiting for a program that uses CUDA: no process maps libcudart or libcuda\n";
            said().contains(waits).then_some(())
        });
        let mut workload = Workload::start_waiting(&cgroup, &unseen, "failures 7");
        wait_for("attached trace", PATIENCE, || {
            said().contains("sentry: attached to ").then_some(())
        });
        workload.go_on();
        workload.truth();
        assert_eq!(objects_of(trace).len(), 7);
        workload.end();
    }
}

#[test]
fn what_cannot_be_traced_is_said_in_a_line() {
    let Some(_turn) = turn("what_cannot_be_traced_is_said_in_a_line") else {
        return;
    };
    for (args, expected) in [
        (
            "--device vda",
            "sentry: --device vda: allowed: the number by which a process knows its GPU, 0 to 7\n",
        ),
        ("--port 80", "sentry: --port: gpu has none; only tcp has\n"),
        (
            "--cgroup /no/such",
            "sentry: --cgroup /no/such: no such cgroup; allowed: a path from the root of its hierarchy, such as /system.slice\n",
        ),
    ] {
        let output = output(sentry(&format!("trace gpu {args}")));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
        assert_eq!(output.stdout, b"");
    }
    // A kernel without uprobes says nothing of them.
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs none /sys/bus/event_source/devices && exec \"$0\" \"$@\"";
    command.args(["--mount", "sh", "-euc", script]);
    let trace = sentry("trace gpu --gpu.hook uprobe");
    command.arg(trace.get_program()).args(trace.get_args());
    command.stdin(Stdio::null());
    let output = output(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let expected = "sentry: trace gpu: this kernel has no uprobes\n";
    assert!(stderr.ends_with(expected), "{stderr}");
    assert_eq!(output.stdout, b"");
}
