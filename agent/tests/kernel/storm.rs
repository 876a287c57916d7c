//! As much as one core gives: no count is lost. `SENTRY_STORM_SECONDS` makes it last longer than its 5 seconds.

use crate::agent::Agent;
use crate::bystander::Bystanders;
use crate::exposition::Exposition;
use crate::host::{IoController, disk_cgroup, label, socket_cgroup, turn};
use crate::load;
use sentry_bench::sandbox::LoopDevice;
use std::fs;
use std::time::Instant;

fn seconds() -> f64 {
    std::env::var("SENTRY_STORM_SECONDS").map_or(5.0, |seconds| seconds.parse().unwrap())
}

/// What the agent itself took, since an earlier scrape.
fn print_cost(what: &str, before: &Exposition, after: &Exposition, wall_seconds: f64) {
    let cpu = |scrape: &Exposition| scrape.value("process_cpu_seconds_total", &[]);
    println!(
        "{what}: agent {:.2} s of CPU time in {wall_seconds:.1} s, {:.1} MB resident",
        cpu(after) - cpu(before),
        after.value("process_resident_memory_bytes", &[]) / 1e6
    );
}

#[test]
fn a_connect_storm_loses_no_count() {
    turn!("a_connect_storm_loses_no_count");
    // Built before the clock runs.
    load::program();
    // A storm that is made to last is more than the budget allows.
    let agent = Agent::start("--overhead.budget off");
    let cgroup = socket_cgroup("storm");
    let (start, before) = (Instant::now(), agent.scrape());
    let args = format!("storm --self --seconds {}", seconds());
    let storm = load::run(&args, &[&cgroup]);
    let after = agent.scrape();
    println!("{storm}");
    print_cost("connects", &before, &after, start.elapsed().as_secs_f64());
    let connected = load::count(&storm, "connected");
    assert_eq!(load::count(&storm, "attempted"), connected);
    assert!(connected > 1000, "{storm}");
    assert_eq!(load::count(&storm, "accepted"), connected);
    let label = label(&cgroup);
    // The kernel says itself when it leaves a program out because the program runs already.
    let lost = |probe| after.count("sentry_events_lost_total", &[("probe", probe)]);
    for role in ["client", "server"] {
        let end = [("cgroup", label.as_str()), ("role", role)];
        let counted = after.count("sentry_tcp_handshake_duration_seconds_count", &end);
        assert!(
            (connected.saturating_sub(lost("tcp"))..=connected).contains(&counted),
            "{role}: {counted} of {connected}"
        );
        let unmeasured = after.count("sentry_tcp_handshakes_unmeasured_total", &end);
        assert_eq!(unmeasured, 0, "{role}");
    }
    assert_eq!(recursion_misses(&agent), lost("tcp") + lost("disk"));
    agent.stop();
}

#[test]
fn a_storm_of_reads_loses_no_count() {
    turn!("a_storm_of_reads_loses_no_count");
    let _io = IoController::on();
    load::program();
    // A storm that is made to last is more than the budget allows.
    let agent = Agent::start("--overhead.budget off");
    let (device, cgroup) = (LoopDevice::new(64 << 20).unwrap(), disk_cgroup("storm"));
    let bystanders = Bystanders::of_device(&device);
    let (start, before) = (Instant::now(), agent.scrape());
    let args = format!(
        "read --file {} --direct --random --size 4096 --seconds {}",
        device.path().display(),
        seconds()
    );
    let reads = load::run(&args, &[&cgroup]);
    let after = agent.scrape();
    println!("{reads}");
    print_cost("reads", &before, &after, start.elapsed().as_secs_f64());
    let operations = load::count(&reads, "operations");
    assert!(operations > 1000, "{reads}");
    let name = device.name();
    let labels = [
        ("cgroup", &*label(&cgroup)),
        ("device", name),
        ("operation", "read"),
    ];
    let counted = after.count("sentry_disk_io_duration_seconds_count", &labels);
    let at_device = after.count("sentry_disk_device_duration_seconds_count", &labels);
    let bytes = after.count("sentry_disk_bytes_total", &labels);
    assert_eq!((at_device, bytes), (counted, counted * 4096));
    // The kernel says itself when it leaves a program out because the program runs already.
    let lost = after.count("sentry_events_lost_total", &[("probe", "disk")]);
    let bystanders = bystanders.count();
    assert!(
        (operations.saturating_sub(lost + bystanders)..=operations).contains(&counted),
        "{counted} of {operations}, {lost} lost, {bystanders} bystanders"
    );
    if counted < operations {
        println!(
            "of {operations} reads this kernel withheld {} from eBPF, for they completed on top of bystanders",
            operations - counted
        );
    }
    agent.stop();
}

/// Runs of the agent's programs that the kernel left out.
fn recursion_misses(agent: &Agent) -> u64 {
    let folder = format!("/proc/{}/fdinfo", agent.pid());
    let texts = fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let misses: Vec<u64> = texts
        .filter_map(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("recursion_misses:"))?;
            Some(line.trim().parse().unwrap())
        })
        .collect();
    assert!(!misses.is_empty());
    misses.iter().sum()
}
