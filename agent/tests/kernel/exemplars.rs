//! Exemplars: the process, the peer and the sectors behind what a bucket has counted.

use crate::agent::Agent;
use crate::exposition::{Exemplar, Exposition, Format};
use crate::host::{Folder, IoController, disk_cgroup, hooks, label, socket_cgroup, turn, wait_for};
use crate::load::{self, Server};
use crate::prometheus::{PATIENCE, Prometheus, Setup, prometheus_3};
use crate::reload::{Site, links};
use crate::tcp::peer;
use sentry_bench::sandbox::{Cgroup, LoopDevice, Netns};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const HANDSHAKES: &str = "sentry_tcp_handshake_duration_seconds_bucket";
const IO: &str = "sentry_disk_io_duration_seconds_bucket";
const AT_DEVICE: &str = "sentry_disk_device_duration_seconds_bucket";
const OPEN_METRICS: &str = "Accept: application/openmetrics-text";

fn scrape(agent: &Agent) -> Exposition {
    let text = agent.get("/metrics", &[OPEN_METRICS]).text();
    Exposition::parse(&text, Format::OpenMetrics)
}

fn lost(scrape: &Exposition, probe: &str) -> f64 {
    scrape.value("sentry_exemplars_lost_total", &[("probe", probe)])
}

/// Those of a metric and a cgroup.
fn of(scrape: &Exposition, name: &str, cgroup: &Cgroup) -> Vec<Exemplar> {
    let label = label(cgroup);
    let all = scrape.exemplars.iter();
    all.filter(|exemplar| exemplar.bucket.name == name && exemplar.bucket.labels["cgroup"] == label)
        .cloned()
        .collect()
}

/// Runs a program to its end; its process.
fn pid_of(mut command: Command) -> String {
    let child = command.stdout(Stdio::null()).spawn();
    let mut child = child.unwrap();
    let pid = child.id();
    assert!(child.wait().unwrap().success());
    pid.to_string()
}

fn labels(exemplar: &Exemplar) -> Vec<(&str, &str)> {
    let labels = exemplar.labels.iter();
    labels
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

#[test]
fn a_slow_connect_has_its_process_and_peer() {
    turn!("a_slow_connect_has_its_process_and_peer");
    for hook in hooks("tcp", &["tp_btf", "kprobe"]) {
        slow_connect(&hook);
    }
}

fn slow_connect(hook: &str) {
    let agent = Agent::start(&format!("--probes tcp {hook} --tcp.exemplars 200ms"));
    let (slow, netns) = (socket_cgroup("slow"), Netns::new("slow").unwrap());
    let fast = socket_cgroup("fast");
    let server = Server::listen("", &[]);
    load::run(
        &format!("connect --to 127.0.0.1:{} --count 200", server.port()),
        &[&fast],
    );
    let peer = peer(&netns, "--delay-ms 300");
    let before = now();
    let pid = pid_of(load::command_in(
        &netns,
        "connect --to 10.99.0.2:443",
        &[&slow],
    ));
    let after = now();
    drop(peer);

    let scrape = scrape(&agent);
    assert_eq!(of(&scrape, HANDSHAKES, &fast), []);
    let found = of(&scrape, HANDSHAKES, &slow);
    let [exemplar] = found.as_slice() else {
        panic!("{found:?}");
    };
    let expected = [
        ("comm", "load"),
        ("peer", "10.99.0.2:443"),
        ("pid", pid.as_str()),
    ];
    assert_eq!(labels(exemplar), expected);
    assert_eq!(exemplar.bucket.labels["role"], "client");
    assert!((0.3..0.5).contains(&exemplar.value), "{exemplar:?}");
    // The clocks of event and test are read one after another.
    assert!(
        (before..after + 0.01).contains(&exemplar.time),
        "{exemplar:?}, {after}"
    );
    assert_eq!(lost(&scrape, "tcp"), 0.0);
    let threshold = scrape.value("sentry_exemplar_threshold_seconds", &[("probe", "tcp")]);
    assert_eq!(threshold, 0.2);
    // Neither other format of text has them.
    assert!(!agent.get("/metrics", &[]).text().contains("10.99.0.2"));
    agent.stop();
}

#[test]
fn both_ends_have_their_peer_of_either_family() {
    turn!("both_ends_have_their_peer_of_either_family");
    let agent = Agent::start("--probes tcp --tcp.exemplars 1us");
    for (listen, to) in [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "[::1]"),
        ("::", "[::ffff:127.0.0.1]"),
    ] {
        let (client, server) = (socket_cgroup("client"), socket_cgroup("server"));
        let listener = Server::listen(&format!("--addr {listen}"), &[&server]);
        let to_port = format!("{to}:{}", listener.port());
        let pid = pid_of(load::command(
            &format!("connect --to {to_port}"),
            &[&client],
        ));
        let scrape = scrape(&agent);
        let found = of(&scrape, HANDSHAKES, &client);
        let shown = to_port.replace("[::ffff:127.0.0.1]", "127.0.0.1");
        let [exemplar] = found.as_slice() else {
            panic!("{found:?}");
        };
        let expected = [
            ("comm", "load"),
            ("peer", shown.as_str()),
            ("pid", pid.as_str()),
        ];
        assert_eq!(labels(exemplar), expected);
        let found = of(&scrape, HANDSHAKES, &server);
        let [exemplar] = found.as_slice() else {
            panic!("{found:?}");
        };
        let host = shown.rsplit_once(':').unwrap().0;
        let peer = &exemplar.labels["peer"];
        assert!(
            peer.starts_with(&format!("{host}:")) && *peer != shown,
            "{peer}"
        );
        assert_eq!(exemplar.labels.len(), 1);
    }
    agent.stop();
}

#[test]
fn an_io_has_its_process_and_sectors() {
    turn!("an_io_has_its_process_and_sectors");
    let _io = IoController::on();
    for hook in hooks("disk", &["tp_btf", "raw_tp"]) {
        io(&hook);
    }
}

fn io(hook: &str) {
    let flags = "--probes disk --disk.exemplars 1us --metrics.buckets-per-octave 4";
    let agent = Agent::start(&format!("{flags} {hook}"));
    let device = LoopDevice::new(16 << 20).unwrap();
    let file = device.path().display();
    let cgroup = disk_cgroup("io");
    // 4 KiB at the device's beginning, once a process. Again, for others' I/O may have filled the ring.
    let (pid, found) = wait_for("room in the ring", PATIENCE, || {
        scrape(&agent);
        let args = format!("write --file {file} --direct --count 1");
        let pid = pid_of(load::command(&args, &[&cgroup]));
        let scrape = scrape(&agent);
        let found = [IO, AT_DEVICE].map(|name| {
            let mut found = of(&scrape, name, &cgroup);
            found.retain(|exemplar| exemplar.labels.get("pid") == Some(&pid));
            found
        });
        (!found[0].is_empty()).then_some((pid, found))
    });
    for found in &found {
        let [exemplar] = found.as_slice() else {
            panic!("{found:?}");
        };
        let expected = [("comm", "load"), ("pid", pid.as_str()), ("sectors", "0-7")];
        assert_eq!(labels(exemplar), expected);
        assert_eq!(exemplar.bucket.labels["operation"], "write");
        assert!(
            file.to_string()
                .ends_with(&exemplar.bucket.labels["device"])
        );
    }
    agent.stop();
}

#[test]
fn what_finds_its_ring_full_is_counted_and_no_event_is_lost_to_the_histogram() {
    turn!("what_finds_its_ring_full_is_counted_and_no_event_is_lost_to_the_histogram");
    let agent = Agent::start("--probes tcp --tcp.exemplars 1us");
    let (client, server) = (socket_cgroup("client"), Server::listen("", &[]));
    let before = lost(&scrape(&agent), "tcp");
    load::run(
        &format!("connect --to 127.0.0.1:{} --count 2000", server.port()),
        &[&client],
    );
    let scrape = scrape(&agent);
    let lost = lost(&scrape, "tcp") - before;
    assert!(lost > 1000.0, "{lost}");
    let count = scrape.count(
        "sentry_tcp_handshake_duration_seconds_count",
        &[("cgroup", &label(&client))],
    );
    assert_eq!(count, 2000);
    assert!(!of(&scrape, HANDSHAKES, &client).is_empty());
    agent.stop();
}

#[test]
fn exemplars_come_and_go_with_a_reload() {
    turn!("exemplars_come_and_go_with_a_reload");
    let site = Site::new("probes: tcp\n");
    let agent = site.agent("");
    let server = Server::listen("", &[]);
    let mut clients = Vec::new();
    let mut found = || {
        let client = socket_cgroup("client");
        load::run(
            &format!("connect --to 127.0.0.1:{} --count 1", server.port()),
            &[&client],
        );
        let found = of(&scrape(&agent), HANDSHAKES, &client).len();
        clients.push(client);
        found
    };
    let has_rings = || {
        let text = agent.get("/metrics", &[]).text();
        text.contains("{map=\"events_rings\"}")
    };
    assert_eq!((found(), has_rings()), (0, false));
    assert!(
        !agent
            .get("/metrics", &[])
            .text()
            .contains("sentry_exemplar")
    );
    site.reload(&agent, "probes: tcp\ntcp.exemplars: 1us\n");
    assert_eq!((found(), has_rings()), (1, true));
    site.reload(&agent, "probes: tcp\ntcp.exemplars: 10s\n");
    assert_eq!(found(), 0);
    // One whose connect is in a ring by now is not to be seen any more, either.
    site.reload(&agent, "probes: tcp\ntcp.exemplars: 1us\n");
    let unseen = socket_cgroup("unseen");
    load::run(
        &format!("connect --to 127.0.0.1:{} --count 1", server.port()),
        &[&unseen],
    );
    site.reload(&agent, "probes: tcp\n");
    assert_eq!(found(), 0);
    assert_eq!(scrape(&agent).exemplars, []);
    agent.stop();
}

/// Whoever notes who begins requests is there just as long as somebody asks.
#[test]
fn the_second_program_of_disk_comes_and_goes() {
    turn!("the_second_program_of_disk_comes_and_goes");
    let site = Site::new("probes: [tcp, disk]\n");
    let agent = site.agent("");
    let without = links(&agent);
    let reload = |text: &str| {
        let said = site.reload(&agent, text);
        assert!(said.contains("was read anew"), "{text}: {said}");
        links(&agent)
    };
    let (on, off) = (
        "probes: [tcp, disk]\ndisk.exemplars: auto\n",
        "probes: [tcp, disk]\n",
    );
    for _ in 0..2 {
        assert_eq!(reload(on), without + 1);
        assert_eq!(reload(off), without);
        // With the probe it goes, too, and comes back with it if it is asked for.
        assert_eq!(reload("probes: tcp\n"), without - 1);
        assert_eq!(reload(off), without);
        assert_eq!(reload(on), without + 1);
        assert_eq!(reload("probes: tcp\ndisk.exemplars: auto\n"), without - 1);
        assert_eq!(reload(on), without + 1);
        assert_eq!(reload(on), without + 1);
    }
    agent.stop();
}

/// Without what attaches later nothing is left of the privileges that maps take.
#[test]
fn a_reload_that_cannot_have_them_is_refused() {
    turn!("a_reload_that_cannot_have_them_is_refused");
    let site = Site::new("tcp.exemplars: off\n");
    let agent = site.agent("--probes tcp");
    let said = site.reload(&agent, "tcp.exemplars: 1us\naggregate-by: container\n");
    let expected = "tcp.exemplars: there can be none: failed to create map `event_origins`: Operation not permitted (os error 1); a restart may find another way";
    assert!(said.contains(expected), "{said}");
    let scrape = scrape(&agent);
    assert_eq!(
        scrape.value("sentry_config_last_reload_successful", &[]),
        0.0
    );
    assert!(
        !scrape
            .types
            .contains_key("sentry_exemplar_threshold_seconds")
    );
    agent.stop();
}

#[test]
fn prometheus_takes_exemplars_of_each_format() {
    turn!("prometheus_takes_exemplars_of_each_format");
    let agent = Agent::start("--probes tcp --tcp.exemplars 1us");
    let server = Server::listen("", &[]);
    let storage = "--enable-feature=exemplar-storage";
    let native = "--enable-feature=exemplar-storage,native-histograms";
    let mut setups = vec![
        (
            "2, text",
            Setup {
                flags: vec![storage],
                ..Setup::default()
            },
        ),
        (
            "2, native",
            Setup {
                flags: vec![native],
                ..Setup::default()
            },
        ),
    ];
    match prometheus_3() {
        Some(program) => {
            let setup = |flags, scrape| Setup {
                program: program.clone(),
                flags,
                scrape,
                ..Setup::default()
            };
            setups.extend([
                ("3, text", setup(vec![storage], "")),
                // Native histograms alone have those of a family's first series at most there: its parser does not
                // go back to the start of the next one's (model/textparse/protobufparse.go, to 3.14 at least).
                (
                    "3, both",
                    setup(vec![native], "always_scrape_classic_histograms: true"),
                ),
            ]);
        }
        None => eprintln!("Prometheus 3 is left out: SENTRY_PROMETHEUS_3 names no folder"),
    }
    for (what, setup) in setups {
        let folder = Folder::new();
        let prometheus = Prometheus::start(&setup, &folder, agent.address());
        let client = socket_cgroup("client");
        let mut pids = Vec::new();
        let (start, name) = (now() - 60.0, "sentry_tcp_handshake_duration_seconds");
        let metric = if what.ends_with("native") {
            name.to_owned()
        } else {
            format!("{name}_bucket")
        };
        let query = format!(
            "query_exemplars?query={metric}&start={start:.0}&end={:.0}",
            start + 600.0
        );
        let found = wait_for(
            &format!("an exemplar in Prometheus {what}"),
            PATIENCE,
            || {
                // Again, for the ring may have been full of others' connects.
                let args = format!("connect --to 127.0.0.1:{}", server.port());
                pids.push(pid_of(load::command(&args, &[&client])));
                let answer = prometheus.api(&query);
                let data = answer["data"]
                    .as_array()
                    .unwrap_or_else(|| panic!("{answer}"))
                    .clone();
                let label = label(&client);
                let series = data
                    .into_iter()
                    .find(|series| series["seriesLabels"]["cgroup"] == label.as_str())?;
                Some(series["exemplars"][0].clone())
            },
        );
        let is_ours = pids
            .iter()
            .any(|pid| found["labels"]["pid"] == pid.as_str());
        assert!(is_ours, "{what}: {found}, {pids:?}");
        assert_eq!(found["labels"]["comm"], "load", "{what}: {found}");
        let peer = format!("127.0.0.1:{}", server.port());
        assert_eq!(found["labels"]["peer"], peer.as_str(), "{what}: {found}");
    }
    agent.stop();
}
