//! The guard that holds the agent to its budget: what it says of the cost, what it sheds, and that it takes it back.

use crate::agent::Agent;
use crate::exposition::Exposition;
use crate::host::{skipped, socket_cgroup, turn, wait_for};
use crate::load::{self, Server, assert_all};
use crate::privileges::said_to_be_kept;
use crate::reload::{Site, clients, handshakes, links, verdict};
use std::process::{Child, Stdio};
use std::time::Duration;

/// Samples are a second or two apart, a step down takes four, one back up five.
const PATIENCE: Duration = Duration::from_secs(120);

const OF_TCP: [(&str, &str); 1] = [("probe", "tcp")];

/// Connects as fast as it goes, until it is dropped.
struct Storm(Child);

impl Storm {
    fn begin() -> Self {
        let mut storm = load::command("storm --self --seconds 600", &[]);
        Self(storm.stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn settings(budget: &str, more: &str) -> String {
    settings_each("1s", budget, more)
}

fn settings_each(interval: &str, budget: &str, more: &str) -> String {
    format!("probes: tcp\noverhead: {{budget: {budget}, interval: {interval}}}\n{more}")
}

/// Waits for a line of the log about a probe's step, behind the lines that are known. How long the log is then.
fn wait_for_line(agent: &Agent, known: usize, what: &str) -> usize {
    wait_for(what, PATIENCE, || {
        let log = agent.log();
        let line = log[known..].find(what)?;
        let end = log[known + line..].find('\n')?;
        Some(known + line + end)
    })
}

fn is_shed(scrape: &Exposition, step: &str) -> f64 {
    let labels = [("probe", "tcp"), ("step", step)];
    scrape.value("sentry_overhead_shed", &labels)
}

/// What Sentry takes of the CPUs, all of it.
fn taken(scrape: &Exposition) -> f64 {
    let shares = scrape.matching("sentry_overhead_ratio", &[]);
    shares.map(|sample| sample.value).sum()
}

#[test]
fn over_budget_it_sheds_step_by_step_and_takes_it_back() {
    turn!("over_budget_it_sheds_step_by_step_and_takes_it_back");
    load::program();
    let exemplars = "tcp.exemplars: auto\n";
    let storm = Storm::begin();
    let site = Site::new(&settings("0.0001%", exemplars));
    let agent = site.agent("");
    let client = socket_cgroup("client");
    let listener = Server::listen("", &[]);
    let connect = format!("connect --to 127.0.0.1:{} --count 200", listener.port());
    assert_all(&load::run(&connect, &[&client]), "connected", 200);
    let all_links = links(&agent);

    let known = wait_for_line(&agent, 0, "without exemplars");
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("attached".to_owned(), 1.0));
    assert_eq!(is_shed(&scrape, "exemplars"), 1.0);
    assert_eq!(is_shed(&scrape, "off"), 0.0);
    let threshold = scrape.matching("sentry_exemplar_threshold_seconds", &OF_TCP);
    assert_eq!(threshold.count(), 0);
    // By what was measured at the start, before the privilege for it was given up.
    let of_tcp = [("probe", "tcp"), ("basis", "calibrated")];
    assert!(scrape.value("sentry_overhead_ratio", &of_tcp) > 1e-6);
    assert_eq!(scrape.value("sentry_overhead_budget_ratio", &[]), 1e-6);
    let ready = agent.get("/readyz", &[]);
    assert_eq!(ready.status, 200);
    let text = ready.text();
    let expected = "tcp: attached: without exemplars, to stay within the budget of 0.0001 %";
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("\noverhead: "), "{text}");

    let known = wait_for_line(&agent, known, "attached for an eighth of the time");
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("degraded".to_owned(), 1.0));
    assert_eq!(is_shed(&scrape, "sampling"), 1.0);
    let seen = |scrape: &Exposition| {
        let name = "sentry_tcp_handshake_duration_seconds_count";
        let all = scrape.matching(name, &[("role", "client")]);
        all.map(|sample| sample.value).sum::<f64>()
    };
    let before = seen(&scrape);
    wait_for("an event in the time that is left", PATIENCE, || {
        (seen(&agent.scrape()) > before).then_some(())
    });
    let share = agent.scrape().value("sentry_probe_sampled_ratio", &OF_TCP);
    assert!((0.0..0.9).contains(&share), "{share}");

    let known = wait_for_line(&agent, known, "turned off");
    let scrape = agent.scrape();
    let of_tcp = [("probe", "tcp"), ("reason", "over_budget")];
    assert_eq!(scrape.value("sentry_probe_up", &of_tcp), 0.0);
    assert_eq!(verdict(&scrape, "tcp"), ("off".to_owned(), 0.0));
    for step in ["exemplars", "sampling", "off"] {
        assert_eq!(is_shed(&scrape, step), 1.0, "{step}");
    }
    assert_eq!(scrape.value("sentry_probe_sampled_ratio", &OF_TCP), 0.0);
    assert!(links(&agent) < all_links);
    let (before, of_client) = (seen(&scrape), handshakes(&scrape, &client));
    assert_all(&load::run(&connect, &[&client]), "connected", 200);
    let scrape = agent.scrape();
    assert_eq!(seen(&scrape), before);
    assert_eq!(handshakes(&scrape, &client), of_client);
    let ready = agent.get("/readyz", &[]);
    assert_eq!(ready.status, 200, "{}", ready.text());
    assert!(ready.text().contains("tcp: off: turned off, to stay"));
    // A reload that has nothing to do with it leaves it alone.
    let done = site.reload(
        &agent,
        &settings("0.0001%", &format!("{exemplars}log.level: debug\n")),
    );
    assert!(done.ends_with("changed: log.level"), "{done}");
    assert_eq!(verdict(&agent.scrape(), "tcp"), ("off".to_owned(), 0.0));
    drop(storm);

    // With room for it, all comes back, the last first.
    site.reload(&agent, &settings("100%", exemplars));
    let known = wait_for_line(&agent, known, "turned on again");
    let known = wait_for_line(&agent, known, "attached all the time again");
    wait_for_line(&agent, known, "with exemplars again");
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("attached".to_owned(), 1.0));
    for step in ["exemplars", "sampling", "off"] {
        assert_eq!(is_shed(&scrape, step), 0.0, "{step}");
    }
    assert_eq!(scrape.value("sentry_probe_sampled_ratio", &OF_TCP), 1.0);
    assert_eq!(links(&agent), all_links);
    assert!(!agent.get("/readyz", &[]).text().contains("overhead"));
    let other = socket_cgroup("other");
    assert_all(&load::run(&connect, &[&other]), "connected", 200);
    assert_eq!(handshakes(&agent.scrape(), &other), clients(200));
    agent.stop();
}

#[test]
fn what_was_shed_comes_back_when_the_load_ends() {
    turn!("what_was_shed_comes_back_when_the_load_ends");
    load::program();
    // Taking turns costs the agent more the shorter they are.
    let settings = |budget: &str| settings_each("2s", budget, "");
    let site = Site::new(&settings("100%"));
    let agent = site.agent("--bpf.stats");
    let samples = || {
        let mut samples = Vec::new();
        for _ in 0..2 {
            // A scrape takes its part of the sample that it falls into, and this shows the one before.
            std::thread::sleep(Duration::from_millis(4500));
            samples.push(taken(&agent.scrape()));
        }
        samples
    };
    let idle = samples();
    let storm = Storm::begin();
    let busy = samples();
    println!("idle {idle:?}, busy {busy:?}");
    let scrape = agent.scrape();
    let of_tcp = [("probe", "tcp"), ("basis", "measured")];
    let programs = scrape.value("sentry_overhead_ratio", &of_tcp);
    let (most, least) = (
        idle.into_iter().fold(0.0, f64::max),
        busy.into_iter().fold(1.0, f64::min),
    );
    assert!(
        programs > 0.0 && least > most,
        "{programs}, {most} to {least}"
    );
    let budget = f64::midpoint(most, least) * 100.0;

    // What the storm takes is over it, what is there without it is not.
    site.reload(&agent, &settings(&format!("{budget:.6}%")));
    let known = wait_for_line(&agent, 0, "attached for an eighth of the time");
    assert_eq!(
        verdict(&agent.scrape(), "tcp"),
        ("degraded".to_owned(), 1.0)
    );
    drop(storm);
    wait_for_line(&agent, known, "attached all the time again");
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("attached".to_owned(), 1.0));
    agent.stop();
}

/// What others turn off is not held back any more, and begins afresh when they turn it on.
#[test]
fn a_reload_takes_a_probe_out_of_the_guards_hands() {
    turn!("a_reload_takes_a_probe_out_of_the_guards_hands");
    load::program();
    let site = Site::new(&settings("0.0001%", ""));
    let agent = site.agent("");
    let _storm = Storm::begin();
    let all_links = links(&agent);
    let sampled = "attached for an eighth of the time";
    let known = wait_for_line(&agent, 0, sampled);
    let others = "probes: disk\noverhead: {budget: 0.0001%, interval: 1s}\n";
    site.reload(&agent, others);
    let off = [("probe", "tcp"), ("reason", "turned_off")];
    assert_eq!(agent.scrape().value("sentry_probe_up", &off), 0.0);
    site.reload(&agent, &settings("0.0001%", ""));
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("attached".to_owned(), 1.0));
    assert_eq!(links(&agent), all_links);
    wait_for_line(&agent, known, sampled);
    agent.stop();
}

/// An agent that keeps the privilege for something else measures time and again.
#[test]
fn where_the_privilege_stays_the_kernel_measures() {
    turn!("where_the_privilege_stays_the_kernel_measures");
    load::program();
    let agent = Agent::start("--probes tcp,gpu --gpu.hook uprobe --overhead.interval 6s");
    if !said_to_be_kept(&agent).contains("CAP_SYS_ADMIN") {
        skipped(
            "where_the_privilege_stays_the_kernel_measures",
            "this kernel has no uprobes, for which it would stay",
        );
        agent.stop();
        return;
    }
    // Only now, so that there was nothing to learn from at the start but a part of it.
    let storm = Storm::begin();
    let of_tcp = [("probe", "tcp"), ("basis", "measured")];
    wait_for("a cost that is measured", PATIENCE, || {
        let scrape = agent.scrape();
        let ratio = scrape.matching("sentry_overhead_ratio", &of_tcp).next();
        ratio.filter(|ratio| ratio.value > 0.0).map(drop)
    });
    drop(storm);
    agent.stop();
}

#[test]
fn without_a_budget_nothing_is_said_and_nothing_shed() {
    turn!("without_a_budget_nothing_is_said_and_nothing_shed");
    load::program();
    let by_default = Agent::start("");
    wait_for("the default", PATIENCE, || {
        let scrape = by_default.scrape();
        let budget = scrape
            .matching("sentry_overhead_budget_ratio", &[])
            .next()?;
        assert_eq!(budget.value, 0.01);
        Some(())
    });
    // The first sample is not there yet, and no number stands in for it.
    let scrape = by_default.scrape();
    assert_eq!(scrape.matching("sentry_overhead_ratio", &[]).count(), 0);
    assert_eq!(is_shed(&scrape, "off"), 0.0);
    // What was counted to learn the cost is no measure of anything else.
    let runs = scrape.matching("sentry_bpf_program_runs_total", &[]);
    assert_eq!(runs.count(), 0);
    by_default.stop();

    // A budget that is taken away takes what was shed for it back.
    let site = Site::new(&settings("0.0001%", ""));
    let agent = site.agent("");
    let storm = Storm::begin();
    let known = wait_for_line(&agent, 0, "attached for an eighth of the time");
    site.reload(&agent, &settings("off", ""));
    wait_for_line(&agent, known, "nothing is shed any more");
    drop(storm);
    let scrape = agent.scrape();
    assert_eq!(verdict(&scrape, "tcp"), ("attached".to_owned(), 1.0));
    for name in ["budget_ratio", "ratio", "shed"] {
        let name = format!("sentry_overhead_{name}");
        assert_eq!(scrape.matching(&name, &[]).count(), 0, "{name}");
    }
    let client = socket_cgroup("client");
    let listener = Server::listen("", &[]);
    let connect = format!("connect --to 127.0.0.1:{} --count 200", listener.port());
    assert_all(&load::run(&connect, &[&client]), "connected", 200);
    assert_eq!(handshakes(&agent.scrape(), &client), clients(200));
    agent.stop();
}
