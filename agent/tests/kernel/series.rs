//! Series: as many as there is room for, the rest under `other`; cells given back when a workload is gone; none lost to
//! two CPUs that meet.

use crate::agent::Agent;
use crate::bystander::undisturbed;
use crate::disk;
use crate::exposition::{Exposition, as_count};
use crate::host::{
    IoController, disk_cgroup, label, label_of, roots, socket_cgroup, turn, wait_for,
};
use crate::load::{self, Server, assert_all};
use rustix::process::Signal;
use sentry_bench::sandbox::{Cgroup, LoopDevice};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

/// A kind of connect, and where it is counted.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// In the reports of the load.
    outcome: &'static str,
    metric: &'static str,
    label: (&'static str, &'static str),
}

/// Takes a histogram of the pool.
pub(crate) const CONNECTED: Kind = Kind {
    outcome: "connected",
    metric: "sentry_tcp_handshake_duration_seconds_count",
    label: ("role", "client"),
};

/// Takes a counter of the pool.
const REFUSED: Kind = Kind {
    outcome: "refused",
    metric: "sentry_tcp_connect_failures_total",
    label: ("reason", "refused"),
};

/// What else takes counters.
const COUNTERS: [&str; 2] = [
    "sentry_tcp_handshakes_unmeasured_total",
    "sentry_tcp_syn_retransmits_total",
];

/// Histograms that workloads can have at the default ceiling: the probe keeps one for each role of `other`.
pub(crate) const DEFAULT_ROOM: usize = 256 - 2;

const NOBODY: &str = "127.0.0.1:1";

impl Kind {
    /// The series of this kind in cgroups of `outer`: their values by the last part of their path.
    fn named(self, scrape: &Exposition, outer: &Cgroup) -> BTreeMap<String, u64> {
        let prefix = format!("{}/", label(outer));
        let mut named = BTreeMap::new();
        for sample in scrape.matching(self.metric, &[self.label]) {
            if let Some(name) = sample.labels["cgroup"].strip_prefix(&prefix) {
                named.insert(name.to_owned(), as_count(sample.value));
            }
        }
        named
    }

    /// What found no cell.
    fn other(self, scrape: &Exposition) -> u64 {
        scrape.count(self.metric, &[("cgroup", "other"), self.label])
    }
}

/// How many series of these metrics have a name.
fn shown(scrape: &Exposition, metrics: &[&str]) -> usize {
    metrics
        .iter()
        .flat_map(|metric| scrape.matching(metric, &[]))
        .filter(|sample| sample.labels["cgroup"] != "other")
        .count()
}

/// Histograms and counters of all series that have a name.
fn cells(scrape: &Exposition) -> (usize, usize) {
    let counters = [REFUSED.metric, COUNTERS[0], COUNTERS[1]];
    (shown(scrape, &[CONNECTED.metric]), shown(scrape, &counters))
}

/// Asserts that overflow was counted event by event.
fn assert_overflow_is_other(scrape: &Exposition) {
    let overflow = scrape.count("sentry_series_overflow_total", &[("probe", "tcp")]);
    let other = [("cgroup", "other")];
    let counted =
        [CONNECTED.metric, REFUSED.metric, COUNTERS[0]].map(|metric| scrape.count(metric, &other));
    assert_eq!(overflow, counted.iter().sum::<u64>());
}

/// What may tell where a missing event has gone.
fn doubts(scrape: &Exposition) -> String {
    let unnamed: Vec<_> = scrape
        .matching(CONNECTED.metric, &[])
        .map(|sample| sample.labels["cgroup"].as_str())
        .filter(|cgroup| cgroup.starts_with("unknown"))
        .collect();
    format!(
        "{} cgroup events lost, {} unmeasured, without a name: {unnamed:?}",
        scrape.count("sentry_events_lost_total", &[("probe", "cgroup")]),
        scrape.count(COUNTERS[0], &[]),
    )
}

fn churn(outer: &Cgroup, prefix: &str, count: u64, to: &str) -> String {
    let root = outer.path().display();
    format!("churn --v2-root {root} --prefix {prefix} --count {count} --to {to}")
}

/// A listener that has its series already, and its address.
pub(crate) fn listener(agent: &Agent, cgroup: &Cgroup) -> (Server, String) {
    let listener = Server::listen("", &[cgroup]);
    let to = format!("127.0.0.1:{}", listener.port());
    load::run(&format!("connect --to {to}"), &[]);
    // The second scrape has the first one's connection.
    agent.scrape();
    agent.scrape();
    (listener, to)
}

/// Runs a load in cgroups of `outer`, and looks all the while: what is gone may soon be forgotten. Each series that was
/// ever seen, and the last that was seen of it.
fn watch(agent: &Agent, args: &str, kind: Kind, outer: &Cgroup) -> (Value, BTreeMap<String, u64>) {
    let mut seen = BTreeMap::new();
    let mut look = || {
        for (name, value) in kind.named(&agent.scrape(), outer) {
            let last = seen.insert(name.clone(), value);
            assert!(last.is_none_or(|last| last <= value), "{name} fell");
        }
    };
    let report = std::thread::scope(|scope| {
        let load = scope.spawn(|| load::run(args, &[]));
        while !load.is_finished() {
            look();
            std::thread::sleep(Duration::from_millis(250));
        }
        load.join().unwrap()
    });
    look();
    (report, seen)
}

/// Waits until nothing of `outer` is shown any more, and until cells are in use only for what is shown: what is in use
/// and not shown would be lost.
fn wait_until_forgotten(agent: &Agent, outer: &Cgroup) {
    wait_for("end of the series", Duration::from_secs(10), || {
        let scrape = agent.scrape();
        let left = [CONNECTED, REFUSED].map(|kind| kind.named(&scrape, outer).len());
        let in_use = scrape.count("sentry_series", &[("probe", "tcp")]);
        let (histograms, counters) = cells(&scrape);
        (left == [0, 0] && in_use == (histograms + counters) as u64).then_some(())
    });
}

/// Fills all cells with cgroups that stay, and says how many cells of each kind there are. The cgroups are gone and
/// forgotten at the end.
pub(crate) fn fill(agent: &Agent, kind: Kind, to: &str) -> (usize, usize) {
    let outer = socket_cgroup("fill");
    let before = agent.scrape();
    let args = format!("{} --keep", churn(&outer, "kept", 300, to));
    assert_all(&load::run(&args, &[]), kind.outcome, 300);
    let scrape = agent.scrape();
    let named = kind.named(&scrape, &outer);
    assert_eq!(named.values().max(), Some(&1));
    let other = kind.other(&scrape) - kind.other(&before);
    assert!(other > 0, "300 are not enough to fill all cells");
    assert_eq!(named.len() as u64 + other, 300);
    assert_overflow_is_other(&scrape);
    for entry in fs::read_dir(outer.path()).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            fs::remove_dir(entry.path()).unwrap();
        }
    }
    let cells = cells(&scrape);
    wait_until_forgotten(agent, &outer);
    cells
}

#[test]
fn a_thousand_short_lived_cgroups_are_all_named() {
    turn!("a_thousand_short_lived_cgroups_are_all_named");
    let agent = Agent::start("--probes tcp --series.max 2048");
    let (outer, server) = (socket_cgroup("churn"), socket_cgroup("server"));
    let (_listener, to) = listener(&agent, &server);
    let churned = load::run(&churn(&outer, "c", 1000, &to), &[]);
    assert_all(&churned, "connected", 1000);
    let scrape = agent.scrape();
    let named = CONNECTED.named(&scrape, &outer);
    let wrong: Vec<_> = (0..1000)
        .map(|number| format!("c-{number}"))
        .filter(|name| named.get(name) != Some(&1))
        .collect();
    assert_eq!(wrong, [""; 0], "{}", doubts(&scrape));
    assert_eq!(named.len(), 1000);
    let server = [("cgroup", &*label(&server)), ("role", "server")];
    assert_eq!(scrape.count(CONNECTED.metric, &server), 1001);
    assert_eq!(scrape.of_cgroup("other"), [""; 0]);
    assert_overflow_is_other(&scrape);
    agent.stop();
}

#[test]
fn the_ceiling_holds_and_cells_of_the_gone_are_given_out_again() {
    turn!("the_ceiling_holds_and_cells_of_the_gone_are_given_out_again");
    let agent = Agent::start("--probes tcp --series.retention 1s");
    let server = socket_cgroup("server");
    let (_listener, to) = listener(&agent, &server);
    assert_eq!(fill(&agent, CONNECTED, &to).0, DEFAULT_ROOM);
    let mut resident = Vec::new();
    for (round, count) in [1000, 1000, 300, 300, 300].into_iter().enumerate() {
        let outer = socket_cgroup("churn");
        let before = CONNECTED.other(&agent.scrape());
        let args = churn(&outer, &format!("round{round}"), count, &to);
        let (report, seen) = watch(&agent, &args, CONNECTED, &outer);
        assert_all(&report, "connected", count);
        // A cell that came with another's counts would show more.
        assert_eq!(seen.values().max(), Some(&1));
        let scrape = agent.scrape();
        let other = CONNECTED.other(&scrape) - before;
        assert_eq!(seen.len() as u64 + other, count, "{}", doubts(&scrape));
        assert_overflow_is_other(&scrape);
        wait_until_forgotten(&agent, &outer);
        let bytes = agent.scrape().value("process_resident_memory_bytes", &[]);
        println!(
            "{} of {count} named, {:.2} MB resident",
            seen.len(),
            bytes / 1e6
        );
        resident.push(bytes);
    }
    assert!(resident[4] - resident[1] < 1e6, "{resident:?} bytes");
    assert_eq!(fill(&agent, CONNECTED, &to).0, DEFAULT_ROOM);
    agent.stop();
}

/// What a cell counts beside its buckets is another thing for connects than for I/O.
#[test]
fn bytes_and_times_are_right_in_cells_that_connects_had() {
    turn!("bytes_and_times_are_right_in_cells_that_connects_had");
    let _io = IoController::on();
    let agent = Agent::start("--probes tcp,disk --series.retention 1s");
    let server = socket_cgroup("server");
    let (_listener, to) = listener(&agent, &server);
    fill(&agent, CONNECTED, &to);
    let device = LoopDevice::new(disk::MIB).unwrap();
    undisturbed(&device, || {
        let cgroup = disk_cgroup("disk");
        let file = device.path().display();
        let args = format!("read --file {file} --direct --count 100");
        let begun = Instant::now();
        load::run(&args, &[&cgroup]);
        let took = begun.elapsed().as_secs_f64();
        let scrape = agent.scrape();
        let label = label(&cgroup);
        let labels = [("cgroup", label.as_str()), ("operation", "read")];
        let [io, at_device] = ["io", "device"].map(|which| {
            scrape.value(
                &format!("sentry_disk_{which}_duration_seconds_sum"),
                &labels,
            )
        });
        assert!(
            0.0 < at_device && at_device <= io && io < took,
            "{at_device} s of {io} s of {took} s"
        );
        let expected = disk::moved(&device, "read", 100, 409_600);
        (disk::said_in(&scrape, &cgroup, &device), expected)
    });
    agent.stop();
}

#[test]
fn cells_come_back_though_the_news_that_their_cgroups_are_gone_was_lost() {
    const PODS: usize = 240;
    turn!("cells_come_back_though_the_news_that_their_cgroups_are_gone_was_lost");
    let agent = Agent::start("--probes tcp --series.max 1024");
    let (outer, server) = (socket_cgroup("pods"), socket_cgroup("server"));
    let (_listener, to) = listener(&agent, &server);
    for number in 0..PODS {
        fs::create_dir_all(outer.path().join(format!("pod-{number}/app"))).unwrap();
    }
    let tour = format!("tour --below {} --to {to}", outer.path().display());
    assert_all(&load::run(&tour, &[]), "connected", PODS as u64);
    let named = |scrape: &Exposition| CONNECTED.named(scrape, &outer).len();
    // They may have been made faster than the ring was emptied.
    wait_for("names", Duration::from_secs(20), || {
        (named(&agent.scrape()) == PODS).then_some(())
    });
    let lost =
        |scrape: &Exposition| scrape.count("sentry_events_lost_total", &[("probe", "cgroup")]);
    let in_use = |scrape: &Exposition| scrape.count("sentry_series", &[("probe", "tcp")]);
    let before = (lost(&agent.scrape()), in_use(&agent.scrape()));

    // Twice as many go as there is news of in the ring, each pod after its container.
    agent.signal(Signal::STOP);
    wait_until_stopped(&agent);
    for number in 0..PODS {
        for folder in ["pod-{}/app", "pod-{}"] {
            let folder = folder.replace("{}", &number.to_string());
            fs::remove_dir(outer.path().join(folder)).unwrap();
        }
    }
    agent.signal(Signal::CONT);
    let scrape = agent.scrape();
    assert!(
        lost(&scrape) > before.0 + PODS as u64,
        "{}",
        doubts(&scrape)
    );
    assert_eq!(named(&scrape), PODS);
    wait_for("cells of the gone", Duration::from_secs(20), || {
        (in_use(&agent.scrape()) + PODS as u64 <= before.1).then_some(())
    });
    agent.stop();
}

/// All threads of the agent.
fn wait_until_stopped(agent: &Agent) {
    wait_for("stopped agent", Duration::from_secs(5), || {
        let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
        let mut states = threads.map(|thread| {
            let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
            stat.rsplit(')').next().unwrap().starts_with(" T")
        });
        states.all(|stopped| stopped).then_some(())
    });
}

#[test]
fn two_cpus_that_meet_lose_no_cell_and_no_count() {
    turn!("two_cpus_that_meet_lose_no_cell_and_no_count");
    if std::thread::available_parallelism().unwrap().get() < 2 {
        return crate::host::skipped(
            "two_cpus_that_meet_lose_no_cell_and_no_count",
            "needs two CPUs",
        );
    }
    let agent = Agent::start("--probes tcp --series.retention 1s");
    let server = socket_cgroup("server");
    let (_listener, to) = listener(&agent, &server);
    for (kind, to) in [(CONNECTED, to.as_str()), (REFUSED, NOBODY)] {
        let fresh = fill(&agent, kind, to);
        let outer = socket_cgroup("race");
        let before = kind.other(&agent.scrape());
        let args = format!(
            "race --v2-root {} --prefix r --rounds 300 --cpus 0,1 --to {to}",
            outer.path().display()
        );
        let (report, seen) = watch(&agent, &args, kind, &outer);
        assert_all(&report, kind.outcome, 600);
        let other = kind.other(&agent.scrape()) - before;
        assert_eq!(seen.values().sum::<u64>() + other, 600);
        assert!(seen.values().all(|count| *count <= 2));
        println!(
            "{} of 300 named, median skew {} ns",
            seen.len(),
            report["median_skew_ns"]
        );
        wait_until_forgotten(&agent, &outer);
        assert_eq!(fill(&agent, kind, to), fresh);
    }
    agent.stop();
}

#[test]
fn a_removed_cgroup_is_shown_as_long_as_told() {
    turn!("a_removed_cgroup_is_shown_as_long_as_told");
    let agent = Agent::start("--probes tcp --series.retention 3s");
    let cgroup = socket_cgroup("gone");
    let label = label(&cgroup);
    assert_all(
        &load::run(&format!("connect --to {NOBODY}"), &[&cgroup]),
        "refused",
        1,
    );
    drop(cgroup);
    let start = Instant::now();
    let expected = ["sentry_tcp_connect_failures_total{reason=refused} 1"];
    let gone = wait_for("end of the series", Duration::from_secs(10), || {
        let said = agent.scrape().of_cgroup(&label);
        let elapsed = start.elapsed();
        if said.is_empty() {
            return Some(elapsed);
        }
        assert_eq!(said, expected);
        None
    });
    assert!(gone >= Duration::from_secs(3), "{gone:?}");
    agent.stop();
}

#[test]
fn a_cgroup_made_again_goes_on_where_it_was() {
    turn!("a_cgroup_made_again_goes_on_where_it_was");
    let agent = Agent::start("--probes tcp --series.retention 2s");
    let outer = socket_cgroup("restart");
    // As an init system restarts a service: each time another cgroup of the same name.
    for _ in 0..5 {
        let args = churn(&outer, "service", 1, NOBODY);
        assert_all(&load::run(&args, &[]), "refused", 1);
    }
    let service = outer.path().join("service-0");
    let label = label_of(&service);
    let said = || agent.scrape().of_cgroup(&label);
    assert_eq!(
        said(),
        ["sentry_tcp_connect_failures_total{reason=refused} 5"]
    );

    // The last one stays, and has what the others counted when they are forgotten.
    fs::create_dir(&service).unwrap();
    let mut connect = load::command(&format!("connect --to {NOBODY} --count 2"), &[]);
    connect.arg("--cgroup").arg(&service);
    assert_all(&load::report(connect), "refused", 2);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        assert_eq!(
            said(),
            ["sentry_tcp_connect_failures_total{reason=refused} 7"]
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    agent.stop();
}

#[test]
fn cgroups_within_cgroups_have_their_whole_path() {
    turn!("cgroups_within_cgroups_have_their_whole_path");
    let outer = socket_cgroup("deep");
    let before = outer.path().join("before/a b");
    fs::create_dir_all(&before).unwrap();
    let agent = Agent::start("--probes tcp");
    // One made before the agent's start and found by its walk, one that it heard of.
    let since = outer.path().join("before/a b/since/\u{e4}\"\\");
    fs::create_dir_all(&since).unwrap();
    for folder in [&before, &since] {
        let mut connect = load::command(&format!("connect --to {NOBODY}"), &[]);
        connect.arg("--cgroup").arg(folder);
        assert_all(&load::report(connect), "refused", 1);
        let label = format!("/{}", folder.strip_prefix(&roots().v2).unwrap().display());
        let expected = ["sentry_tcp_connect_failures_total{reason=refused} 1"];
        assert_eq!(agent.scrape().of_cgroup(&label), expected);
    }
    agent.stop();
}
