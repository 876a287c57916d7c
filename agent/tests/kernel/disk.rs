//! Disk: every request and every byte, under its device, operation and cgroup. On raw loop devices, since a file system
//! adds writes of its own.

use crate::agent::Agent;
use crate::bystander::undisturbed;
use crate::exposition::Exposition;
use crate::host::{
    IoController, disk_cgroup, in_cgroup, label, output, roots, socket_cgroup, turn, wait_for,
};
use crate::load;
use crate::reload::{Site, links};
use sentry_bench::sandbox::{Cgroup, LoopDevice};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

const IO: &str = "sentry_disk_io_duration_seconds_count";
const AT_DEVICE: &str = "sentry_disk_device_duration_seconds_count";
const BYTES: &str = "sentry_disk_bytes_total";
const ERRORS: &str = "sentry_disk_errors_total";

pub(crate) const MIB: u64 = 1 << 20;

/// All that is to be said of a cgroup that did only this to one device, sorted.
pub(crate) fn moved(device: &LoopDevice, operation: &str, count: u64, bytes: u64) -> Vec<String> {
    let labels = format!("device={},operation={operation}", device.name());
    vec![
        format!("{BYTES}{{{labels}}} {bytes}"),
        format!("{AT_DEVICE}{{{labels}}} {count}"),
        format!("{IO}{{{labels}}} {count}"),
    ]
}

/// All that is said of a cgroup and one device. A program may have been read from another.
fn said(agent: &Agent, cgroup: &Cgroup, device: &LoopDevice) -> Vec<String> {
    said_in(&agent.scrape(), cgroup, device)
}

pub(crate) fn said_in(scrape: &Exposition, cgroup: &Cgroup, device: &LoopDevice) -> Vec<String> {
    let mut said = scrape.of_cgroup(&label(cgroup));
    said.retain(|line| line.contains(&format!("device={},", device.name())));
    said
}

/// The same and so many fsyncs.
fn moved_and_flushed(device: &LoopDevice, count: u64, flushes: u64) -> Vec<String> {
    let mut all = moved(device, "write", count, count * 4096);
    let labels = format!("device={},operation=flush", device.name());
    all.push(format!("{IO}{{{labels}}} {flushes}"));
    all.sort();
    all
}

/// Runs a load on a device, in a cgroup of its own, and asserts that exactly this is said of the two.
pub(crate) fn assert_said(agent: &Agent, device: &LoopDevice, args: &str, expected: &[String]) {
    undisturbed(device, || {
        let cgroup = disk_cgroup("disk");
        let (operation, args) = args.split_once(' ').unwrap();
        let file = device.path().display();
        load::run(
            &format!("{operation} --file {file} --direct {args}"),
            &[&cgroup],
        );
        (said(agent, &cgroup, device), expected.to_vec())
    });
}

/// Whatever the queue of a device keeps, restored on drop.
struct QueueSetting {
    file: PathBuf,
    before: String,
}

impl QueueSetting {
    fn set(device: &LoopDevice, setting: &str, value: &str) -> Self {
        let file = PathBuf::from(format!("/sys/block/{}/queue/{setting}", device.name()));
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, value).unwrap();
        Self { file, before }
    }
}

impl Drop for QueueSetting {
    fn drop(&mut self) {
        let _ = fs::write(&self.file, self.before.trim());
    }
}

#[test]
fn a_hundred_writes_and_fsyncs() {
    turn!("a_hundred_writes_and_fsyncs");
    let _io = IoController::on();
    let agent = Agent::start("--probes disk");
    let device = LoopDevice::new(MIB).unwrap();
    let expected = moved_and_flushed(&device, 100, 100);
    assert_said(&agent, &device, "write --count 100 --fsync-each", &expected);
    let scrape = agent.scrape();
    assert_eq!(scrape.of_cgroup("other"), [""; 0]);
    assert_eq!(scrape.value("sentry_disk_io_untimed_total", &[]), 0.0);
    agent.stop();
}

#[test]
fn sixty_four_mebibytes_are_all_there() {
    turn!("sixty_four_mebibytes_are_all_there");
    let _io = IoController::on();
    let agent = Agent::start("--probes disk");
    let device = LoopDevice::new(64 * MIB).unwrap();
    for operation in ["write", "read"] {
        // In sixteenths: where a kernel hides completions, most runs of 16,384 lack some, and none would ever be whole.
        for _ in 0..16 {
            let args = format!("{operation} --count 1024 --size 4096");
            let expected = moved(&device, operation, 1024, 4_194_304);
            assert_said(&agent, &device, &args, &expected);
        }

        undisturbed(&device, || {
            let cgroup = disk_cgroup("large");
            let before = requests(&device, operation);
            let file = device.path().display();
            let args = format!("{operation} --file {file} --count 64 --size 1048576 --direct");
            load::run(&args, &[&cgroup]);
            // The block layer may split a large request; how often, it tells itself.
            let count = requests(&device, operation) - before;
            assert!(count >= 64, "{count}");
            let expected = moved(&device, operation, count, 67_108_864);
            (said(&agent, &cgroup, &device), expected)
        });
    }
    agent.stop();
}

/// Reads or writes that the block layer has counted.
fn requests(device: &LoopDevice, operation: &str) -> u64 {
    let text = fs::read_to_string(format!("/sys/block/{}/stat", device.name())).unwrap();
    let column = if operation == "read" { 0 } else { 4 };
    let count = text.split_whitespace().nth(column).unwrap();
    count.parse().unwrap()
}

#[test]
fn each_of_64_cgroups_has_its_own_reads() {
    turn!("each_of_64_cgroups_has_its_own_reads");
    let _io = IoController::on();
    let agent = Agent::start("--probes disk --series.max 2048");
    let device = LoopDevice::new(MIB).unwrap();
    let file = device.path().display();
    undisturbed(&device, || {
        let cgroups: Vec<Cgroup> = (0..64).map(|_| disk_cgroup("turn")).collect();
        let all: Vec<&Cgroup> = cgroups.iter().collect();
        let reads = load::run(&format!("interleave --file {file} --count 10"), &all);
        assert_eq!(reads["operations"], 640);
        // One of them reads more: numbers that are all the same could be anybody's.
        let args = format!("read --file {file} --count 7 --direct");
        load::run(&args, &[&cgroups[9]]);
        let scrape = agent.scrape();
        assert_eq!(scrape.of_cgroup("other"), [""; 0]);
        let found: Vec<_> = cgroups
            .iter()
            .map(|cgroup| said_in(&scrape, cgroup, &device))
            .collect();
        let expected = (0..64)
            .map(|number| if number == 9 { 17 } else { 10 })
            .map(|count| moved(&device, "read", count, count * 4096))
            .collect();
        (found, expected)
    });
    agent.stop();
}

#[test]
fn a_discard_is_a_discard() {
    turn!("a_discard_is_a_discard");
    let _io = IoController::on();
    let agent = Agent::start("--probes disk");
    let device = LoopDevice::new(8 * MIB).unwrap();
    undisturbed(&device, || {
        let cgroup = disk_cgroup("discard");
        let mut discard = in_cgroup(&cgroup, "blkdiscard");
        // Without force it would look for a file system first.
        discard.args(["--force", "--offset", "1048576", "--length", "2097152"]);
        discard.arg(device.path());
        let output = output(discard);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        let expected = moved(&device, "discard", 1, 2 * MIB);
        (said(&agent, &cgroup, &device), expected)
    });
    agent.stop();
}

#[test]
fn without_time_stamps_the_issue_hook_steps_in() {
    turn!("without_time_stamps_the_issue_hook_steps_in");
    let _io = IoController::on();
    let agent = Agent::start("--probes disk");
    assert_issue_hook_steps_in(&agent);
    agent.stop();
}

/// Takes a device its time stamps, and asserts that the agent times its I/O nevertheless.
pub(crate) fn assert_issue_hook_steps_in(agent: &Agent) {
    let device = LoopDevice::new(MIB).unwrap();
    let _off = QueueSetting::set(&device, "iostats", "0");
    let untimed = || agent.scrape().count("sentry_disk_io_untimed_total", &[]);
    let labels = format!("{{device={},operation=read}}", device.name());
    let expected = [
        format!("{BYTES}{labels} 81920"),
        format!("{AT_DEVICE}{labels} 0"),
        format!("{IO}{labels} 0"),
    ];
    assert_said(agent, &device, "read --count 20", &expected);
    assert!(untimed() >= 20, "{}", untimed());

    let degraded = wait_for("degraded verdict", Duration::from_secs(15), || {
        // A cgroup that goes brings the next maintenance forward.
        drop(disk_cgroup("nudge"));
        let scrape = agent.scrape();
        let verdict = [("probe", "disk"), ("reason", "no_timestamps")];
        let mut verdicts = scrape.matching("sentry_probe_up", &verdict);
        let found = verdicts.next()?;
        Some((found.labels["verdict"].clone(), found.value))
    });
    assert_eq!(degraded, ("degraded".to_owned(), 1.0));
    wait_for("a line of the log", Duration::from_secs(5), || {
        agent.log().contains("iostats").then_some(())
    });

    let expected = moved(&device, "read", 30, 30 * 4096);
    assert_said(agent, &device, "read --count 30", &expected);
    // An fsync is never issued to the device as such, so nothing tells when it began.
    let before = untimed();
    let expected = moved_and_flushed(&device, 40, 0);
    assert_said(agent, &device, "write --count 40 --fsync-each", &expected);
    assert!(untimed() >= before + 40, "{} since {before}", untimed());
}

#[test]
fn the_second_hook_goes_off_and_on_with_its_probe() {
    turn!("the_second_hook_goes_off_and_on_with_its_probe");
    let _io = IoController::on();
    let site = Site::new("probes: [tcp, disk]\n");
    let agent = site.agent("");
    let before = links(&agent);
    assert_issue_hook_steps_in(&agent);
    assert_eq!(links(&agent), before + 1);
    site.reload(&agent, "probes: tcp\n");
    assert_eq!(links(&agent), before - 1);
    site.reload(&agent, "probes: [tcp, disk]\n");
    assert_eq!(links(&agent), before + 1);
    let verdict = [("probe", "disk"), ("reason", "no_timestamps")];
    assert_eq!(agent.scrape().value("sentry_probe_up", &verdict), 1.0);
    let device = LoopDevice::new(MIB).unwrap();
    let _off = QueueSetting::set(&device, "iostats", "0");
    let expected = moved(&device, "read", 30, 30 * 4096);
    assert_said(&agent, &device, "read --count 30", &expected);
    agent.stop();
}

#[test]
fn failed_reads_are_errors_and_no_reads() {
    turn!("failed_reads_are_errors_and_no_reads");
    let _io = IoController::on();
    let agent = Agent::start("--probes disk");
    let device = LoopDevice::new(MIB).unwrap();
    let backing = format!("/sys/block/{}/loop/backing_file", device.name());
    let backing = fs::read_to_string(backing).unwrap();
    let backing = fs::OpenOptions::new().write(true).open(backing.trim_end());
    // What lies beyond the end of the file cannot be read.
    backing.unwrap().set_len(MIB / 2).unwrap();
    let file = device.path().display();
    undisturbed(&device, || {
        let cgroup = disk_cgroup("error");
        let args = format!("read --file {file} --count 11 --direct --span 524288");
        load::run(&args, &[&cgroup]);
        for _ in 0..7 {
            let mut read = in_cgroup(&cgroup, "dd");
            let input = format!("if={file}");
            let whence = ["of=/dev/null", "bs=4096", "count=1", "skip=200"];
            read.arg(input).args(whence).arg("iflag=direct");
            let output = output(read);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(stderr.contains("Input/output error"), "{stderr}");
        }
        let labels = format!("device={},error=io,operation=read", device.name());
        let mut expected = moved(&device, "read", 11, 11 * 4096);
        expected.push(format!("{ERRORS}{{{labels}}} 7"));
        expected.sort();
        (said(&agent, &cgroup, &device), expected)
    });
    agent.stop();
}

#[test]
fn io_belongs_to_the_cgroup_of_the_block_layers_hierarchy() {
    turn!("io_belongs_to_the_cgroup_of_the_block_layers_hierarchy");
    if roots().v2 == roots().blkio {
        // One hierarchy for all: nothing to tell apart.
        return;
    }
    let agent = Agent::start("--probes tcp,disk");
    let device = LoopDevice::new(MIB).unwrap();
    let file = device.path().display();
    undisturbed(&device, || {
        let (disk, sockets) = (disk_cgroup("both"), socket_cgroup("both"));
        let args = format!("read --file {file} --count 5 --direct");
        load::run(&args, &[&disk, &sockets]);
        load::run("connect --to 127.0.0.1:1 --count 3", &[&disk, &sockets]);
        let refused = "sentry_tcp_connect_failures_total{reason=refused} 3";
        assert_eq!(agent.scrape().of_cgroup(&label(&sockets)), [refused]);
        let expected = moved(&device, "read", 5, 5 * 4096);
        (said(&agent, &disk, &device), expected)
    });
    agent.stop();
}
