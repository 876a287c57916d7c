//! TCP: every handshake counted once, under its own cgroup; every failure with its reason; durations as the test made
//! them.

use crate::agent::Agent;
use crate::bystander::Bystanders;
use crate::exposition::{Exposition, Histogram, as_f64};
use crate::host::{label, output, socket_cgroup, turn, wait_for};
use crate::load::{self, Server, assert_all};
use sentry_bench::sandbox::{Cgroup, Netns};
use serde_json::Value;
use std::time::Duration;

const HANDSHAKES: &str = "sentry_tcp_handshake_duration_seconds";
const FAILURES: &str = "sentry_tcp_connect_failures_total";
const RETRANSMITS: &str = "sentry_tcp_syn_retransmits_total";

/// An agent with this probe alone and its finest buckets, and a cgroup for clients.
fn agent_and_cgroup() -> (Agent, Cgroup) {
    let cgroup = socket_cgroup("client");
    let agent = Agent::start("--probes tcp --metrics.buckets-per-octave 4");
    (agent, cgroup)
}

/// Asserts that this and nothing else is said of a cgroup.
fn assert_said(scrape: &Exposition, cgroup: &Cgroup, said: &[String]) {
    assert_eq!(scrape.of_cgroup(&label(cgroup)), said);
}

/// Asserts that all series had room.
fn assert_no_other(scrape: &Exposition) {
    assert_eq!(scrape.of_cgroup("other"), [""; 0]);
    let overflow = scrape.value("sentry_series_overflow_total", &[("probe", "tcp")]);
    assert_eq!(overflow, 0.0);
}

fn handshakes(role: &str, count: u64) -> String {
    format!("{HANDSHAKES}_count{{role={role}}} {count}")
}

fn failures(reason: &str, count: u64) -> String {
    format!("{FAILURES}{{reason={reason}}} {count}")
}

fn retransmits(count: u64) -> String {
    format!("{RETRANSMITS}{{}} {count}")
}

fn unmeasured(role: &str, count: u64) -> String {
    format!("sentry_tcp_handshakes_unmeasured_total{{role={role}}} {count}")
}

/// A namespace in which a connect that nobody answers ends after one retransmission.
pub(crate) fn impatient_netns() -> Netns {
    let netns = Netns::new("tcp").unwrap();
    netns.sysctl("net.ipv4.tcp_syn_retries", "1").unwrap();
    // Since 6.5 the first retransmissions are counted apart.
    let _ = netns.sysctl("net.ipv4.tcp_syn_linear_timeouts", "0");
    netns
}

/// A peer behind `tun9`, which answers for all of 10.99.0.0/24 but its first address.
pub(crate) fn peer(netns: &Netns, args: &str) -> Server {
    let args = format!("tun-peer --name tun9 --addr 10.99.0.1/24 {args}");
    Server::start(load::command_in(netns, &args, &[]))
}

/// What a namespace's kernel counted as retransmitted.
fn retransmitted_segments(netns: &Netns) -> u64 {
    tcp_statistic(netns, "RetransSegs")
}

/// A number of a namespace's kernel, by its name in `/proc/net/snmp`.
pub(crate) fn tcp_statistic(netns: &Netns, name: &str) -> u64 {
    let listed = netns.command("cat").arg("/proc/net/snmp").output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut columns = names.split(' ').zip(values.split(' '));
    let (_, value) = columns.find(|(column, _)| *column == name).unwrap();
    value.parse().unwrap()
}

/// Asserts that all events are in the bucket of a duration, or, as some wake up late, in the next one; and that together
/// they took that long.
fn assert_durations(histogram: &Histogram, count: u64, seconds: f64) {
    let next = 2f64.powf(0.25);
    assert_eq!(histogram.count, count);
    for (lower, upper, events) in histogram.filled() {
        assert!(
            lower < seconds * next && seconds <= upper,
            "{events} in ({lower}, {upper}] s instead of {seconds} s"
        );
    }
    // The kernel counts some times in whole milliseconds; and 20 ms is what a busy or emulated machine may add.
    let all = as_f64(count) * seconds;
    let late = (seconds * 0.05).max(0.02);
    assert!(
        (all * 0.995..all + as_f64(count) * late).contains(&histogram.sum),
        "{count} times {seconds} s in {} s",
        histogram.sum
    );
}

#[test]
fn both_ends_of_500_connects_belong_to_their_own_cgroups() {
    turn!("both_ends_of_500_connects_belong_to_their_own_cgroups");
    let agent = Agent::start("--probes tcp");
    for (listen, connect) in [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "[::1]"),
        // A dual-stack listener sees IPv4 clients as IPv6, whichever address they themselves used.
        ("::", "127.0.0.1"),
        ("::", "[::ffff:127.0.0.1]"),
    ] {
        let (client, server) = (socket_cgroup("client"), socket_cgroup("server"));
        let listener = Server::listen(&format!("--addr {listen}"), &[&server]);
        let args = format!("connect --to {connect}:{} --count 500", listener.port());
        assert_all(&load::run(&args, &[&client]), "connected", 500);
        let scrape = agent.scrape();
        assert_said(&scrape, &client, &[handshakes("client", 500)]);
        assert_said(&scrape, &server, &[handshakes("server", 500)]);
        assert_no_other(&scrape);
        assert_eq!(listener.finish()["accepted"], 500);
    }
    agent.stop();
}

#[test]
fn threads_on_all_cpus_lose_nothing() {
    turn!("threads_on_all_cpus_lose_nothing");
    // Made before the agent, which so knows their names whatever the load keeps it from.
    let server = socket_cgroup("server");
    let (agent, client) = agent_and_cgroup();
    let listener = Server::listen("", &[&server]);
    let args = format!(
        "connect --to 127.0.0.1:{} --count 400 --threads 6 --pin-cpus --rst",
        listener.port()
    );
    assert_all(&load::run(&args, &[&client]), "connected", 2400);
    let scrape = agent.scrape();
    let lost = scrape.count("sentry_events_lost_total", &[("probe", "tcp")]);
    if lost == 0 {
        assert_said(&scrape, &client, &[handshakes("client", 2400)]);
        assert_said(&scrape, &server, &[handshakes("server", 2400)]);
    } else {
        // A kernel that puts another task in the place of a running program runs none for that one, and counts it.
        println!("{lost} events lost");
        for (cgroup, role) in [(&client, "client"), (&server, "server")] {
            let label = label(cgroup);
            let end = [("cgroup", label.as_str()), ("role", role)];
            let counted = scrape.count(&format!("{HANDSHAKES}_count"), &end);
            assert!(
                counted <= 2400 && counted + lost >= 2400,
                "{role}: {counted}"
            );
        }
    }
    agent.stop();
}

#[test]
fn refused_connects_are_refused_and_no_handshake() {
    turn!("refused_connects_are_refused_and_no_handshake");
    // Made before the agent, which so knows their names: the connects take less time than an event of a cgroup.
    let clients = ["127.0.0.1:1", "[::1]:1"].map(|to| (to, socket_cgroup("client")));
    let agent = Agent::start("--probes tcp");
    // Port 1 is below those that the kernel gives out: nobody listens there by chance.
    for (to, client) in clients {
        let args = format!("connect --to {to} --count 37");
        assert_all(&load::run(&args, &[&client]), "refused", 37);
        let scrape = agent.scrape();
        assert_said(&scrape, &client, &[failures("refused", 37)]);
        assert_no_other(&scrape);
    }
    agent.stop();
}

#[test]
fn a_silent_peer_is_a_timeout_and_syns_sent_again() {
    turn!("a_silent_peer_is_a_timeout_and_syns_sent_again");
    let (agent, client) = agent_and_cgroup();
    let netns = impatient_netns();
    let peer = peer(&netns, "--silent");
    let args = "connect --to 10.99.0.2:80 --threads 5";
    assert_all(&load::run_in(&netns, args, &[&client]), "timeout", 5);
    let segments = retransmitted_segments(&netns);
    assert!(segments >= 5);
    assert_eq!(
        load::count(&peer.finish(), "retransmitted_syns"),
        segments,
        "sent again and seen"
    );
    let said = [failures("timeout", 5), retransmits(segments)];
    assert_said(&agent.scrape(), &client, &said);
    agent.stop();
}

#[test]
fn a_connect_given_up_or_killed_is_aborted() {
    turn!("a_connect_given_up_or_killed_is_aborted");
    let (agent, client) = agent_and_cgroup();
    let netns = impatient_netns();
    let peer = peer(&netns, "--silent");
    let args = "connect --to 10.99.0.2:80 --count 6 --abort-after-ms 20";
    assert_all(&load::run_in(&netns, args, &[&client]), "aborted", 6);
    assert_said(&agent.scrape(), &client, &[failures("aborted", 6)]);

    let args = "connect --to 10.99.0.3:80";
    let mut killed = load::command_in(&netns, args, &[&client]).spawn().unwrap();
    wait_for("SYN", Duration::from_secs(10), || {
        let listed = netns.command("ss").args(["-Htan"]).output().unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        text.contains("10.99.0.3:80").then_some(())
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    // Dying closes the socket; the end of that is not the end of wait().
    wait_for("7th abort", Duration::from_secs(2), || {
        let aborted = [("cgroup", &*label(&client)), ("reason", "aborted")];
        (agent.scrape().count(FAILURES, &aborted) == 7).then_some(())
    });
    drop(peer);
    agent.stop();
}

#[test]
fn no_free_port_is_local() {
    turn!("no_free_port_is_local");
    let (agent, client) = agent_and_cgroup();
    let netns = Netns::new("ports").unwrap();
    netns
        .sysctl("net.ipv4.ip_local_port_range", "40000 40000")
        .unwrap();
    let listener = Server::start(load::command_in(&netns, "listen --hold --port 8080", &[]));
    let args = "connect --to 127.0.0.1:8080 --count 5 --hold";
    let connects = load::run_in(&netns, args, &[&client]);
    assert_eq!(
        (&connects["connected"], &connects["local"]),
        (&1.into(), &4.into())
    );
    let said = [failures("local", 4), handshakes("client", 1)];
    assert_said(&agent.scrape(), &client, &said);
    drop(listener);
    agent.stop();
}

#[test]
fn no_such_neighbour_is_unreachable() {
    turn!("no_such_neighbour_is_unreachable");
    let (agent, client) = agent_and_cgroup();
    let netns = Netns::new("nobody").unwrap();
    for args in [
        "link add near type veth peer name far",
        "addr add 10.98.0.1/24 dev near",
        "link set near up",
        "link set far up",
    ] {
        netns
            .ip(&args.split_whitespace().collect::<Vec<_>>())
            .unwrap();
    }
    let args = "connect --to 10.98.0.2:80 --threads 3";
    assert_all(&load::run_in(&netns, args, &[&client]), "unreachable", 3);
    let segments = retransmitted_segments(&netns);
    let mut said = vec![failures("unreachable", 3)];
    // The kernel may have sent a SYN again while it looked for the neighbour.
    if segments > 0 {
        said.push(retransmits(segments));
    }
    assert_said(&agent.scrape(), &client, &said);
    agent.stop();
}

#[test]
fn a_delayed_answer_shows_in_its_bucket() {
    turn!("a_delayed_answer_shows_in_its_bucket");
    let (agent, _) = agent_and_cgroup();
    for (delay_ms, seconds) in [(60, 0.06), (300, 0.3), (1300, 1.3)] {
        let (client, netns) = (socket_cgroup("late"), Netns::new("late").unwrap());
        let peer = peer(&netns, &format!("--delay-ms {delay_ms}"));
        let args = "connect --to 10.99.0.2:443 --threads 20";
        assert_all(&load::run_in(&netns, args, &[&client]), "connected", 20);
        let segments = retransmitted_segments(&netns);
        let scrape = agent.scrape();
        let mut said = vec![handshakes("client", 20)];
        if delay_ms > 1000 {
            assert_eq!(segments, 20, "a SYN is sent again after a second");
            said.push(retransmits(segments));
        }
        assert_said(&scrape, &client, &said);
        let histogram = scrape.histogram(HANDSHAKES, &[("cgroup", &label(&client))]);
        assert_durations(histogram, 20, seconds);
        drop(peer);
    }
    agent.stop();
}

#[test]
fn a_delayed_end_of_the_handshake_shows_in_the_servers_bucket() {
    turn!("a_delayed_end_of_the_handshake_shows_in_the_servers_bucket");
    let (agent, _) = agent_and_cgroup();
    for (delay_ms, seconds) in [(60, 0.06), (300, 0.3), (1300, 1.3)] {
        let (server, netns) = (socket_cgroup("server"), Netns::new("late").unwrap());
        let args = "listen --addr 0.0.0.0";
        let listener = Server::start(load::command_in(&netns, args, &[&server]));
        let args = format!(
            "tun-client --name tun9 --addr 10.99.0.1/24 --port {} --count 20 --delay-ms {delay_ms}",
            listener.port()
        );
        let clients = Server::start(load::command_in(&netns, &args, &[]));
        let server_label = label(&server);
        let ends = [("cgroup", server_label.as_str()), ("role", "server")];
        let scrape = wait_for("20 handshakes", Duration::from_secs(10), || {
            let scrape = agent.scrape();
            let ended = scrape.count(&format!("{HANDSHAKES}_count"), &ends)
                + scrape.count("sentry_tcp_handshakes_unmeasured_total", &ends);
            (ended >= 20).then_some(scrape)
        });
        if delay_ms > 1000 && !keeps_time_of_retransmissions() {
            assert_said(&scrape, &server, &[unmeasured("server", 20)]);
        } else {
            assert_said(&scrape, &server, &[handshakes("server", 20)]);
            assert_durations(scrape.histogram(HANDSHAKES, &ends), 20, seconds);
        }
        assert_eq!(listener.finish()["accepted"], 20);
        let again = u64::from(delay_ms > 1000) * 20;
        assert_eq!(clients.finish()["retransmitted_syn_acks"], again);
    }
    agent.stop();
}

/// Whether this kernel notes the time since the first SYN-ACK: from 6.7 on.
fn keeps_time_of_retransmissions() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse::<u32>().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 7)
}

#[test]
fn syn_cookies_lose_no_handshake() {
    turn!("syn_cookies_lose_no_handshake");
    let (agent, client) = agent_and_cgroup();
    let (server, netns) = (socket_cgroup("server"), Netns::new("cookies").unwrap());
    // 2: for every connection, not only when the queue is full.
    netns.sysctl("net.ipv4.tcp_syncookies", "2").unwrap();
    let listener = Server::start(load::command_in(&netns, "listen", &[&server]));
    let args = format!("connect --to 127.0.0.1:{} --count 12", listener.port());
    assert_all(&load::run_in(&netns, &args, &[&client]), "connected", 12);
    let scrape = agent.scrape();
    assert_said(&scrape, &client, &[handshakes("client", 12)]);
    // Whether the server's side can be measured depends on the TCP time stamps.
    let label = label(&server);
    let ends = [("cgroup", label.as_str()), ("role", "server")];
    let measured = scrape.count(&format!("{HANDSHAKES}_count"), &ends);
    let unmeasured = scrape.count("sentry_tcp_handshakes_unmeasured_total", &ends);
    assert_eq!(measured + unmeasured, 12);
    agent.stop();
}

#[test]
fn a_connect_older_than_the_agent_is_unmeasured() {
    turn!("a_connect_older_than_the_agent_is_unmeasured");
    let (client, netns) = (socket_cgroup("old"), Netns::new("old").unwrap());
    let peer = peer(&netns, "--delay-ms 4000");
    let args = "connect --to 10.99.0.2:80 --threads 3";
    let connects = std::thread::scope(|scope| {
        let connects = scope.spawn(|| load::run_in(&netns, args, &[&client]));
        let agent = Agent::start("--probes tcp");
        assert!(!connects.is_finished(), "the agent took too long to start");
        assert_all(&connects.join().unwrap(), "connected", 3);
        agent
    });
    let said = [
        unmeasured("client", 3),
        retransmits(retransmitted_segments(&netns)),
    ];
    assert_said(&connects.scrape(), &client, &said);
    drop(peer);
    connects.stop();
}

#[test]
fn more_pending_connects_than_slots_are_all_measured() {
    turn!("more_pending_connects_than_slots_are_all_measured");
    let (agent, client) = agent_and_cgroup();
    let netns = Netns::new("pending").unwrap();
    let peer = peer(&netns, "--delay-ms 900");
    // The kernel side has 256 slots for start times, and another place for what finds none.
    let args = "connect --to 10.99.0.2:80 --threads 400";
    assert_all(&load::run_in(&netns, args, &[&client]), "connected", 400);
    let scrape = agent.scrape();
    let label = label(&client);
    let labels = [("cgroup", label.as_str())];
    assert_durations(scrape.histogram(HANDSHAKES, &labels), 400, 0.9);
    let untracked = scrape.value("sentry_connections_untracked_total", &[("probe", "tcp")]);
    assert_eq!(untracked, 0.0);
    drop(peer);
    agent.stop();
}

#[test]
fn what_an_interrupted_program_misses_is_counted_and_harms_nothing() {
    turn!("what_an_interrupted_program_misses_is_counted_and_harms_nothing");
    let (agent, client) = agent_and_cgroup();
    let netns = Netns::new("interrupts").unwrap();
    let peer = peer(&netns, "");
    // Packets from the interface go to the CPU on which all connects run, and so come in the midst of them.
    let mut steer = netns.command("unshare");
    let queue = "/sys/class/net/tun9/queues/rx-0/rps_cpus";
    let script = "mount -t sysfs sysfs /sys && echo 1 >\"$0\"";
    steer.args(["--mount", "sh", "-c", script, queue]);
    assert!(output(steer).status.success());
    let mut connect = netns.command("taskset");
    connect.args(["--cpu-list", "0"]).arg(load::program());
    let args = "connect --to 10.99.0.2:80 --threads 32 --count 1000 --rst --measure";
    connect.args(args.split_whitespace());
    connect.arg("--cgroup").arg(client.path());
    let bystanders = Bystanders::of_port(80);
    let connects = load::report(connect);
    assert_all(&connects, "connected", 32_000);
    let bystanders = bystanders.count();
    let measured = seconds(&connects["durations_ns"]);

    let scrape = agent.scrape();
    let histogram = scrape.histogram(HANDSHAKES, &[("cgroup", &label(&client))]);
    let lost = scrape.count("sentry_events_lost_total", &[("probe", "tcp")]);
    // Where its start was missed, a handshake is counted and no more.
    let missing = 32_000 - histogram.count;
    println!("{missing} of 32000 missing, {lost} events lost, {bystanders} bystanders");
    assert!(missing <= lost + bystanders);
    let longest = measured.iter().copied().fold(0.0, f64::max);
    for (lower, upper, events) in histogram.filled() {
        assert!(
            lower < longest,
            "{events} in ({lower}, {upper}] s, and no client waited longer than {longest} s"
        );
    }
    let all: f64 = measured.iter().sum();
    assert!(histogram.sum < all, "{} s of {all} s", histogram.sum);
    drop(peer);
    agent.stop();
}

#[test]
fn quantiles_are_those_that_the_clients_measured() {
    turn!("quantiles_are_those_that_the_clients_measured");
    let (agent, client) = agent_and_cgroup();
    let netns = Netns::new("spread").unwrap();
    let peer = peer(&netns, "--delay-ms 20 --delay-to-ms 640");
    let args = "connect --to 10.99.0.2:80 --threads 40 --count 10 --measure";
    let connects = load::run_in(&netns, args, &[&client]);
    assert_all(&connects, "connected", 400);
    let mut durations = seconds(&connects["durations_ns"]);
    durations.sort_by(f64::total_cmp);
    let scrape = agent.scrape();
    let histogram = scrape.histogram(HANDSHAKES, &[("cgroup", &label(&client))]);
    assert_eq!(histogram.count, 400);
    for (share, rank) in [(0.1, 40), (0.5, 200), (0.9, 360), (0.95, 380), (0.99, 396)] {
        let (measured, told) = (durations[rank - 1], histogram.quantile(share));
        assert!(
            (told / measured - 1.0).abs() < 0.1,
            "quantile {share}: {told} s instead of {measured} s"
        );
        println!("quantile {share}: {told:.4} s, by the clients {measured:.4} s");
    }
    let all: f64 = durations.iter().sum();
    assert!(
        (all * 0.9..=all).contains(&histogram.sum),
        "{} s in sum, by the clients {all} s",
        histogram.sum
    );
    drop(peer);
    agent.stop();
}

fn seconds(durations_ns: &Value) -> Vec<f64> {
    let durations = durations_ns.as_array().unwrap().iter();
    durations
        .map(|ns| as_f64(ns.as_u64().unwrap()) / 1e9)
        .collect()
}
