//! The configuration read anew: what is in force then, what is refused, and that no count is lost on the way.

use crate::agent::{Agent, Response, sentry};
use crate::bystander::{Bystanders, undisturbed};
use crate::disk::{MIB, moved};
use crate::exposition::Exposition;
use crate::host::{
    Folder, IoController, disk_cgroup, label, output, socket_cgroup, turn, wait_for,
};
use crate::lifecycle::as_nobody;
use crate::load::{self, Server, assert_all};
use crate::privileges::{BOTH, PERFMON, assert_left, mask, said_to_be_kept};
use rustix::process::{Pid, Signal, kill_process};
use sentry_bench::sandbox::{Cgroup, LoopDevice};
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const SUCCESSFUL: &str = "sentry_config_last_reload_successful";
const SUCCESS_TIME: &str = "sentry_config_last_reload_success_timestamp_seconds";

/// A configuration file, and the agent that runs by it.
pub(crate) struct Site {
    folder: Folder,
}

impl Site {
    pub(crate) fn new(text: &str) -> Self {
        let site = Self {
            folder: Folder::new(),
        };
        site.write(text);
        site
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("sentry.yaml")
    }

    /// Puts another file in its place at once.
    fn write(&self, text: &str) {
        let new = self.folder.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    pub(crate) fn agent(&self, flags: &str) -> Agent {
        Agent::start(&format!("--config.file {} {flags}", self.file().display()))
    }

    /// Has the file read anew, and waits for what the log says of it.
    pub(crate) fn reload(&self, agent: &Agent, text: &str) -> String {
        self.write(text);
        let before = outcomes(agent).len();
        agent.signal(Signal::HUP);
        wait_for("a reload", PATIENCE, || {
            outcomes(agent).into_iter().nth(before)
        })
    }
}

/// What the log says of reloads.
fn outcomes(agent: &Agent) -> Vec<String> {
    let log = agent.log();
    let lines = log.lines().filter_map(|line| {
        let start = line.find("the configuration was")?;
        Some(line[start..].to_owned())
    });
    lines.collect()
}

fn reads(device: &LoopDevice, cgroup: &Cgroup, count: u64) {
    let file = device.path().display();
    let args = format!("read --file {file} --direct --count {count}");
    load::run(&args, &[cgroup]);
}

/// All that is said of reads from a device.
fn said_of_reads(scrape: &Exposition, cgroup: &Cgroup, device: &LoopDevice) -> Vec<String> {
    let name = device.name();
    let mut said = scrape.of_cgroup(&label(cgroup));
    said.retain(|line| line.contains(&format!("device={name},operation=read")));
    said
}

pub(crate) fn handshakes(scrape: &Exposition, cgroup: &Cgroup) -> Vec<String> {
    scrape.of_cgroup(&label(cgroup))
}

pub(crate) fn clients(count: u64) -> Vec<String> {
    vec![format!(
        "sentry_tcp_handshake_duration_seconds_count{{role=client}} {count}"
    )]
}

pub(crate) fn verdict(scrape: &Exposition, probe: &str) -> (String, f64) {
    let of_probe = [("probe", probe)];
    let mut samples = scrape.matching("sentry_probe_up", &of_probe);
    let sample = samples.next().unwrap();
    assert!(samples.next().is_none());
    (sample.labels["verdict"].clone(), sample.value)
}

/// How many programs the agent holds at their hooks, as links of the kernel.
pub(crate) fn links(agent: &Agent) -> usize {
    let folder = format!("/proc/{}/fdinfo", agent.pid());
    let entries = fs::read_dir(folder).unwrap().flatten();
    let texts = entries.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.filter(|text| text.contains("link_type:")).count()
}

fn post(agent: &Agent, method: &str) -> Response {
    crate::agent::request(agent.address(), method, "/-/reload", &[])
}

#[test]
fn a_probe_goes_off_and_on_and_counts_go_on() {
    turn!("a_probe_goes_off_and_on_and_counts_go_on");
    let _io = IoController::on();
    let site = Site::new("probes: [tcp, disk]\n");
    let agent = site.agent("--bpf.stats");
    assert_eq!(agent.scrape().value(SUCCESSFUL, &[]), 1.0);
    let all_links = links(&agent);
    let device = LoopDevice::new(MIB).unwrap();
    let listener = Server::listen("", &[]);
    let connect = format!("connect --to 127.0.0.1:{} --count 200", listener.port());
    undisturbed(&device, || {
        assert_eq!(
            site.reload(&agent, "probes: [tcp, disk]\n"),
            "the configuration was read anew; no setting has changed"
        );
        let (client, reader) = (socket_cgroup("client"), disk_cgroup("reader"));
        reads(&device, &reader, 100);
        assert_all(&load::run(&connect, &[&client]), "connected", 200);
        let scrape = agent.scrape();
        assert_eq!(handshakes(&scrape, &client), clients(200));
        let first = said_of_reads(&scrape, &reader, &device);

        // Off: its program is not run, and what it has counted stays.
        let changed = "the configuration was read anew; changed: probes";
        assert_eq!(site.reload(&agent, "probes: tcp\n"), changed);
        assert_eq!(links(&agent), all_links - 1);
        let runs = |scrape: &Exposition| {
            let of_disk = scrape
                .matching("sentry_bpf_program_runs_total", &[])
                .filter(|sample| sample.labels["program"].starts_with("disk_"));
            of_disk.map(|sample| sample.value).sum::<f64>()
        };
        let before = agent.scrape();
        reads(&device, &reader, 77);
        assert_all(&load::run(&connect, &[&client]), "connected", 200);
        let scrape = agent.scrape();
        assert_eq!(verdict(&scrape, "disk"), ("off".to_owned(), 0.0));
        assert_eq!(verdict(&scrape, "tcp"), ("attached".to_owned(), 1.0));
        assert!(runs(&before) > 0.0);
        assert_eq!(runs(&scrape), runs(&before));
        assert_eq!(handshakes(&scrape, &client), clients(400));
        assert_eq!(said_of_reads(&scrape, &reader, &device), first);
        assert_eq!(
            scrape.value("sentry_series_overflow_total", &[("probe", "disk")]),
            0.0
        );
        let ready = agent.get("/readyz", &[]);
        assert_eq!(ready.status, 200);
        assert!(
            ready
                .text()
                .contains("disk: off: the configuration leaves it out")
        );

        // On again.
        assert_eq!(site.reload(&agent, "probes: disk,tcp\n"), changed);
        assert_eq!(links(&agent), all_links);
        reads(&device, &reader, 50);
        let scrape = agent.scrape();
        assert_eq!(verdict(&scrape, "disk"), ("attached".to_owned(), 1.0));
        assert!(runs(&scrape) > runs(&before));
        assert_eq!(handshakes(&scrape, &client), clients(400));
        let second = said_of_reads(&scrape, &reader, &device);
        (
            (first, second),
            (
                moved(&device, "read", 100, 100 * 4096),
                moved(&device, "read", 150, 150 * 4096),
            ),
        )
    });
    agent.stop();
}

/// The probes are made ready with all privileges, and turned on with those that are left.
#[test]
fn a_probe_that_was_off_at_the_start_is_turned_on() {
    turn!("a_probe_that_was_off_at_the_start_is_turned_on");
    let site = Site::new("probes: disk\n");
    let agent = site.agent("");
    let kept = said_to_be_kept(&agent);
    assert_eq!(mask(&kept), BOTH, "{kept}");
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("off".to_owned(), 0.0));
    let client = socket_cgroup("client");
    let listener = Server::listen("", &[]);
    let connect = format!("connect --to 127.0.0.1:{} --count 200", listener.port());
    assert_all(&load::run(&connect, &[&client]), "connected", 200);
    let scrape = agent.scrape();
    assert_eq!(handshakes(&scrape, &client), [""; 0]);
    // What it never measured it says nothing of.
    let of_tcp = scrape
        .samples
        .iter()
        .filter(|sample| sample.name.starts_with("sentry_tcp_"));
    assert_eq!(of_tcp.count(), 0);

    site.reload(&agent, "probes: tcp\n");
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("attached".to_owned(), 1.0));
    assert_eq!(verdict(&scrape, "disk"), ("off".to_owned(), 0.0));
    assert_all(&load::run(&connect, &[&client]), "connected", 200);
    assert_eq!(handshakes(&agent.scrape(), &client), clients(200));
    assert_left(&agent, mask(&kept), mask(&kept));
    agent.stop();
}

/// Where no second hook is in reserve, nothing at all is kept for it.
#[test]
fn a_probe_is_attached_anew_without_any_privilege() {
    turn!("a_probe_is_attached_anew_without_any_privilege");
    // Whose folder nobody may look into.
    let fixed = "disk.hook: tracepoint\npath.rootfs: /nonexistent\n";
    let site = Site::new(&format!("probes: [tcp, disk]\n{fixed}"));
    let (folder, file) = (Folder::new(), site.file().display().to_string());
    let agent = Agent::spawn(as_nobody(
        &folder,
        &["bpf", "perfmon"],
        &["--config.file", &file],
    ));
    let kept = said_to_be_kept(&agent);
    // What follows is on the bounding set.
    let left = mask(kept.split_once(';').unwrap().0);
    assert_eq!(left & PERFMON, 0, "{kept}");
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("attached".to_owned(), 1.0));
    let refused = verdict(&scrape, "disk");
    assert_eq!(refused.1, 0.0);
    let client = socket_cgroup("client");
    let listener = Server::listen("", &[]);
    let connect = format!("connect --to 127.0.0.1:{} --count 200", listener.port());
    assert_all(&load::run(&connect, &[&client]), "connected", 200);
    site.reload(&agent, &format!("probes: disk\n{fixed}"));
    assert_all(&load::run(&connect, &[&client]), "connected", 200);
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("off".to_owned(), 0.0));
    assert_eq!(verdict(&scrape, "disk"), refused);
    assert_eq!(agent.get("/readyz", &[]).status, 503);
    site.reload(&agent, &format!("probes: tcp\n{fixed}"));
    assert_all(&load::run(&connect, &[&client]), "connected", 200);
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("attached".to_owned(), 1.0));
    assert_eq!(handshakes(&scrape, &client), clients(400));
    assert_left(&agent, left, BOTH);
    agent.stop();
}

/// What root may not read any more once it has given up its capabilities.
#[test]
fn a_file_that_is_closed_is_read_anew_all_the_same() {
    turn!("a_file_that_is_closed_is_read_anew_all_the_same");
    let site = Site::new("");
    let close = || {
        fs::set_permissions(site.file(), fs::Permissions::from_mode(0o600)).unwrap();
        chown(site.file(), Some(12345), Some(12345)).unwrap();
    };
    close();
    let agent = site.agent("--probes tcp");
    let kept = said_to_be_kept(&agent);
    let expected =
        "CAP_DAC_READ_SEARCH (files of --config.file and --web.config.file are read anew)";
    assert!(kept.contains(expected), "{kept}");
    // The list of probes is not for the file to say, and nothing is kept for it.
    assert_eq!(mask(&kept) & PERFMON, 0, "{kept}");
    fs::write(site.file(), "log.level: debug\nprobes: disk\n").unwrap();
    close();
    agent.signal(Signal::HUP);
    let outcome = wait_for("a reload", PATIENCE, || outcomes(&agent).pop());
    assert_eq!(
        outcome,
        "the configuration was read anew; changed: log.level"
    );
    let probes = agent.scrape();
    assert_eq!(verdict(&probes, "tcp"), ("attached".to_owned(), 1.0));
    let disk = [("probe", "disk")];
    assert_eq!(probes.matching("sentry_probe_up", &disk).count(), 0);
    agent.stop();
}

/// Signals that come faster than they are answered, while all is counted.
#[test]
fn fifty_signals_lose_no_connect() {
    turn!("fifty_signals_lose_no_connect");
    let site = Site::new("probes: [tcp, disk]\n");
    let agent = site.agent("");
    let client = socket_cgroup("client");
    let listener = Server::listen("", &[]);
    let connect = format!("connect --to 127.0.0.1:{} --count 5000", listener.port());
    let bystanders = Bystanders::of_port(u16::try_from(listener.port()).unwrap());
    let mut load = load::command(&connect, &[&client]);
    let mut load = load.stdout(Stdio::null()).spawn().unwrap();
    for number in 0..50 {
        let probes = ["[tcp, disk]", "tcp"][number % 2];
        let level = ["info", "debug"][number / 2 % 2];
        site.write(&format!("probes: {probes}\nlog.level: {level}\n"));
        agent.signal(Signal::HUP);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(load.wait().unwrap().success());
    let bystanders = bystanders.count();
    // One of the fifty may be under way still: only who reads this file can say so, and who comes after has nothing to do.
    site.write("probes: tcp\nseries.retention: 61s\n");
    agent.signal(Signal::HUP);
    let before = wait_for("a reload after the fifty", PATIENCE, || {
        let mut said = outcomes(&agent).into_iter();
        said.position(|outcome| outcome.ends_with("series.retention"))
    });
    site.write("probes: [tcp, disk]\nseries.retention: 61s\n");
    agent.signal(Signal::HUP);
    let outcome = wait_for("the last reload", PATIENCE, || {
        let mut said = outcomes(&agent).into_iter().skip(before + 1);
        said.find(|line| !line.ends_with("no setting has changed"))
    });
    assert_eq!(outcome, "the configuration was read anew; changed: probes");
    let scrape = agent.scrape();
    // What the kernel shows no program of is lost with or without a reload.
    let lost = scrape.count("sentry_events_lost_total", &[("probe", "tcp")]);
    let of_client = [("role", "client"), ("cgroup", &*label(&client))];
    let name = "sentry_tcp_handshake_duration_seconds_count";
    let missing = 5000 - scrape.count(name, &of_client);
    println!("{missing} of 5000 missing, {lost} events lost, {bystanders} bystanders");
    assert!(missing <= lost + bystanders);
    assert_eq!(verdict(&scrape, "disk"), ("attached".to_owned(), 1.0));
    assert_eq!(scrape.value(SUCCESSFUL, &[]), 1.0);
    let outcomes = outcomes(&agent);
    assert!(outcomes.len() > 5, "{outcomes:?}");
    agent.stop();
}

#[test]
fn what_is_refused_changes_nothing() {
    turn!("what_is_refused_changes_nothing");
    let site = Site::new("probes: [tcp, disk]\n");
    let agent = site.agent("");
    let all_links = links(&agent);
    let time = agent.scrape().value(SUCCESS_TIME, &[]);
    let name = site.file().display().to_string();
    for (text, expected) in [
        (
            "probes: tcp\nlog.levl: debug\n",
            format!("config file {name}:2: log.levl: unknown key; did you mean log.level?"),
        ),
        (
            "probes: tcp\nmetrics.buckets-per-octave: 4\nseries.max: 300\nbtf: /b\n",
            format!("config file {name}: btf, series.max: a change of this needs a restart"),
        ),
        (
            "probes: [tcp, gpu]\n",
            format!("config file {name}: gpu in probes: a change of this needs a restart"),
        ),
    ] {
        assert_eq!(
            site.reload(&agent, text),
            format!(
                "the configuration was not read anew: {expected}; what was in force before stays so"
            )
        );
        let scrape = agent.scrape();
        assert_eq!(scrape.value(SUCCESSFUL, &[]), 0.0);
        assert_eq!(scrape.value(SUCCESS_TIME, &[]), time);
        assert_eq!(verdict(&scrape, "disk"), ("attached".to_owned(), 1.0));
        assert_eq!(links(&agent), all_links);
        assert!(!agent.log().contains("DEBUG"));
    }
    fs::remove_file(site.file()).unwrap();
    let before = outcomes(&agent).len();
    agent.signal(Signal::HUP);
    let gone = wait_for("a refusal", PATIENCE, || {
        outcomes(&agent).into_iter().nth(before)
    });
    assert!(
        gone.contains("cannot be read: No such file or directory"),
        "{gone}"
    );
    std::thread::sleep(Duration::from_millis(1100));
    site.reload(&agent, "probes: [tcp, disk]\n");
    let scrape = agent.scrape();
    assert_eq!(scrape.value(SUCCESSFUL, &[]), 1.0);
    assert!(scrape.value(SUCCESS_TIME, &[]) > time);
    agent.stop();
}

#[test]
fn all_that_may_change_does() {
    turn!("all_that_may_change_does");
    let client = socket_cgroup("client");
    let site = Site::new("probes: tcp\n");
    let agent = site.agent("");
    let listener = Server::listen("", &[]);
    let connect = format!("connect --to 127.0.0.1:{} --count 200", listener.port());
    assert_all(&load::run(&connect, &[&client]), "connected", 200);
    let buckets = |scrape: &Exposition| {
        let name = "sentry_tcp_handshake_duration_seconds_bucket";
        let of_client = [("role", "client"), ("cgroup", &*label(&client))];
        scrape.matching(name, &of_client).count()
    };
    let before = agent.scrape();
    assert_eq!(handshakes(&before, &client), clients(200));
    let coarse = buckets(&before);

    assert_eq!(
        site.reload(
            &agent,
            "probes: tcp\nmetrics.buckets-per-octave: 4\nlog: {level: debug, format: json}\n"
        ),
        "the configuration was read anew; changed: log.format, log.level, metrics.buckets-per-octave\"}"
    );
    let scrape = agent.scrape();
    assert_eq!(handshakes(&scrape, &client), clients(200));
    assert!(buckets(&scrape) > 3 * coarse);
    let log = agent.log();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "INFO");

    // Under its new labels a series begins anew, and no sum falls.
    let sum = |scrape: &Exposition| {
        let name = "sentry_tcp_handshake_duration_seconds_count";
        let clients = scrape.matching(name, &[("role", "client")]);
        clients.map(|sample| sample.value).sum::<f64>()
    };
    let total = sum(&agent.scrape());
    site.reload(
        &agent,
        "probes: tcp\naggregate-by: node\nseries.retention: 2s\n",
    );
    let scrape = agent.scrape();
    assert_eq!(handshakes(&scrape, &client), clients(200));
    assert!(sum(&scrape) >= total);
    let of_node = |scrape: &Exposition| {
        let name = "sentry_tcp_handshake_duration_seconds_count";
        let of_node = [("role", "client"), ("cgroup", "")];
        scrape
            .matching(name, &of_node)
            .map(|found| found.value)
            .sum::<f64>()
    };
    let start = of_node(&scrape);
    assert_all(&load::run(&connect, &[&client]), "connected", 200);
    let scrape = agent.scrape();
    assert!(of_node(&scrape) >= start + 200.0, "{start}");
    assert_eq!(handshakes(&scrape, &client), clients(200));
    // The new retention.
    wait_for("the end of the old labels", Duration::from_secs(20), || {
        handshakes(&agent.scrape(), &client)
            .is_empty()
            .then_some(())
    });
    agent.stop();
}

#[test]
fn a_request_reloads_where_it_may() {
    turn!("a_request_reloads_where_it_may");
    let site = Site::new("probes: [tcp, disk]\n");
    let agent = site.agent("");
    let refused = post(&agent, "POST");
    assert_eq!(refused.status, 403);
    assert_eq!(
        refused.text(),
        "reloads by request are off; --web.enable-lifecycle switches them on, and SIGHUP does the same\n"
    );
    assert_eq!(post(&agent, "GET").status, 405);
    agent.stop();

    let agent = site.agent("--web.enable-lifecycle");
    assert_eq!(post(&agent, "GET").status, 405);
    site.write("probes: tcp\n");
    let done = post(&agent, "POST");
    assert_eq!(
        (done.status, done.text().as_str()),
        (200, "the configuration was read anew; changed: probes\n")
    );
    // It is in force when it is answered.
    assert_eq!(verdict(&agent.scrape(), "disk"), ("off".to_owned(), 0.0));
    site.write("probes: dsik\n");
    let refused = post(&agent, "PUT");
    assert_eq!(
        (refused.status, refused.text()),
        (
            500,
            format!(
                "config file {}:1: probes: invalid value 'dsik'; unknown probe 'dsik'; allowed: tcp, disk, gpu\n",
                site.file().display()
            )
        )
    );
    agent.stop();
}

#[test]
fn a_request_needs_the_password_that_is_in_force() {
    turn!("a_request_needs_the_password_that_is_in_force");
    let site = Site::new("probes: tcp\n");
    let web = site.folder.path().join("web.yml");
    let set = |password: &str| {
        let hash = bcrypt::hash(password, 5).unwrap();
        fs::write(&web, format!("basic_auth_users:\n  admin: {hash}\n")).unwrap();
    };
    let curl = |agent: &Agent, user: &str, path: &str, args: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--max-time",
            "20",
            "--write-out",
            "\n%{http_code}",
        ])
        .args(["--user", user])
        .args(args)
        .arg(format!("http://{}{path}", agent.address()));
        let text = String::from_utf8(output(curl).stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse::<u16>().unwrap(), body.to_owned())
    };
    set("old");
    let agent = site.agent(&format!(
        "--web.enable-lifecycle --web.config.file {}",
        web.display()
    ));
    let reload = |user: &str| curl(&agent, user, "/-/reload", &["--request", "POST"]);
    assert_eq!(post(&agent, "POST").status, 401);
    assert_eq!(reload("admin:wrong").0, 401);
    assert_eq!(reload("admin:old").0, 200);

    // A new password, by a signal.
    set("new");
    site.reload(&agent, "probes: tcp\n");
    assert_eq!(reload("admin:old").0, 401);
    assert_eq!(reload("admin:new").0, 200);

    // A web config that is wrong holds back the rest of the configuration, too.
    fs::write(&web, "basic_auth_usrs: {}\n").unwrap();
    site.write("probes: disk\n");
    let (status, line) = reload("admin:new");
    assert_eq!(status, 500);
    assert_eq!(
        line.trim_end(),
        format!(
            "web config file {}:1: basic_auth_usrs: unknown key; did you mean basic_auth_users?",
            web.display()
        )
    );
    let (status, text) = curl(&agent, "admin:new", "/metrics", &[]);
    assert_eq!(status, 200);
    assert!(
        text.contains(
            "sentry_probe_up{probe=\"tcp\",hook=\"tp_btf\",verdict=\"attached\",reason=\"ok\"} 1\n"
        ),
        "{text}"
    );
    assert!(text.contains("verdict=\"off\",reason=\"turned_off\"} 0\n"));
    assert!(text.contains(&format!("{SUCCESSFUL} 0\n")));
    set("newest");
    wait_for("the newest password", PATIENCE, || {
        (reload("admin:newest").0 == 200).then_some(())
    });
    agent.stop();
}

/// A signal that comes before the agent serves ends nothing, and is heeded.
#[test]
fn an_early_signal_does_not_end_the_start() {
    turn!("an_early_signal_does_not_end_the_start");
    let site = Site::new("probes: tcp\n");
    let log = site.folder.path().join("log");
    let mut command = sentry(&format!(
        "--config.file {} --web.listen-address 127.0.0.1:0",
        site.file().display()
    ));
    let mut agent = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
    let status = format!("/proc/{}/status", agent.id());
    let is_heeded = || {
        let status = fs::read_to_string(&status).unwrap();
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:\t"));
        u64::from_str_radix(caught.unwrap(), 16).unwrap() & 1 == 1
    };
    while !is_heeded() {
        assert_eq!(agent.try_wait().unwrap(), None);
    }
    // Nothing has been done yet.
    assert_eq!(fs::read_to_string(&log).unwrap(), "");
    let pid = Pid::from_raw(agent.id().cast_signed()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    wait_for("a reload", PATIENCE, || {
        let log = fs::read_to_string(&log).unwrap();
        log.contains("the configuration was read anew")
            .then_some(())
    });
    kill_process(pid, Signal::TERM).unwrap();
    assert!(agent.wait().unwrap().success());
}
