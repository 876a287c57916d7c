//! Dashboards and rules: every expression says something of real loads, in each Prometheus that there is.

use crate::agent::Agent;
use crate::gpu::shared_program;
use crate::host::{Folder, is_v1_only, output, skipped, take_turn, wait_for};
use crate::load::{self, Server};
use crate::node::{NAME, Node, Seat, id, slice, uid};
use crate::prometheus::{PATIENCE, Prometheus, Setup, prometheus_3};
use crate::tcp::{impatient_netns, peer};
use sentry_bench::kubernetes::{Cut, Fault, Pod};
use sentry_bench::sandbox::LoopDevice;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// How often all loads run; more than one, since a rate takes an increase that Prometheus has seen.
const ROUNDS: u64 = 5;

/// With it Prometheus asks for protobuf, and so for native histograms.
const NATIVE: &str = "--enable-feature=exemplar-storage,native-histograms";

/// What stands for Grafana's own choice of a window.
const WINDOW: &str = "5m";

/// What may say nothing while all is well, by a part of the expression, with the reason.
const QUIET: &[(&str, &str)] = &[
    (
        "sentry_tcp_handshakes_unmeasured_total",
        "the kernel tells all durations",
    ),
    (
        "sentry_gpu_attach_errors_total",
        "every file can be attached to",
    ),
    ("verdict=\"failed\"", "no probe has failed"),
    (
        "verdict=\"degraded\"",
        "each probe measures all that it can",
    ),
    (
        "sentry_web_config_last_reload_successful",
        "no agent has such a file",
    ),
    (
        "count by (workload)",
        "the label is there with --aggregate-by workload alone",
    ),
];

/// An expression, and where it stands.
struct Expression {
    place: String,
    text: String,
    /// It stands for the values from which a variable is chosen.
    is_choice: bool,
}

/// A folder of deploy/.
fn deployed(folder: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    root.join(folder).canonicalize().unwrap()
}

/// What all dashboards ask for: expressions of panels, and those that stand for the queries of variables.
fn of_dashboards() -> Vec<Expression> {
    let mut expressions = Vec::new();
    for entry in fs::read_dir(deployed("grafana/dashboards")).unwrap() {
        let path = entry.unwrap().path();
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let title = dashboard["title"].as_str().unwrap();
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            if let Some(query) = variable["query"]["query"].as_str() {
                let inner = query.strip_prefix("label_values(").unwrap();
                let (selector, label) = inner.strip_suffix(')').unwrap().rsplit_once(", ").unwrap();
                expressions.push(Expression {
                    place: format!("{title}, ${label}"),
                    // Only with a value that can be chosen.
                    text: format!(
                        "count by ({label}) (({selector}) unless ({label_is_empty}))",
                        label_is_empty = with_matcher(selector, &format!("{label}=\"\""))
                    ),
                    is_choice: true,
                });
            }
        }
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                expressions.push(Expression {
                    place: format!("{title}, {}", panel["title"].as_str().unwrap()),
                    text: target["expr"].as_str().unwrap().to_owned(),
                    is_choice: false,
                });
            }
        }
    }
    expressions
}

/// A selector with one matcher more.
fn with_matcher(selector: &str, matcher: &str) -> String {
    match selector.strip_suffix('}') {
        Some(start) => format!("{start}, {matcher}}}"),
        None => format!("{selector}{{{matcher}}}"),
    }
}

/// An expression with values in the place of Grafana's variables.
fn filled_in(text: &str, values: &[(&str, &str)]) -> String {
    let mut text = text.replace("$__rate_interval", WINDOW);
    text = text.replace("$__range", WINDOW);
    for (name, value) in values {
        text = text.replace(&format!("\"${name}\""), &format!("\"{value}\""));
    }
    assert!(!text.contains('$'), "{text}");
    text
}

/// The series that an expression selects.
fn selectors(expression: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut found = BTreeSet::new();
    let mut rest = expression;
    while let Some(start) = rest.find(is_name) {
        rest = &rest[start..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let is_up = name == "up" && after.starts_with('{');
        let mut braces = 0;
        if (name.contains("sentry_") || is_up) && after.starts_with('{') {
            braces = after.find('}').unwrap() + 1;
        }
        if name.contains("sentry_") || is_up {
            found.insert(format!("{name}{}", &after[..braces]));
        }
        rest = &after[braces..];
    }
    found
}

#[test]
fn selectors_are_found() {
    let expression = "(a:sentry_x:rate5m{b=\"c\"} > 14.4 and sum by (sentry) (increase(sentry_y_total[10m])) >= 5) \
                      or up{job=\"sentry\"} == 0 or absent(sentry_z)";
    let expected = [
        "a:sentry_x:rate5m{b=\"c\"}",
        "sentry_y_total",
        "sentry_z",
        "up{job=\"sentry\"}",
    ];
    assert_eq!(selectors(expression), expected.map(str::to_owned).into());
}

/// A pod and its processes.
struct Load<'a> {
    seat: &'a Seat,
    device: LoopDevice,
    listener: Server,
    /// A program that keeps its device.
    _held: Held,
}

/// A program that runs until its standard input is closed. Killed on drop.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'a> Load<'a> {
    fn new(seat: &'a Seat) -> Self {
        let device = LoopDevice::new(1 << 20).unwrap();
        // What lies beyond the end of the file cannot be read.
        let name = device.name();
        let backing = format!("/sys/block/{name}/loop/backing_file");
        let backing = fs::read_to_string(backing).unwrap();
        let backing = fs::OpenOptions::new().write(true).open(backing.trim_end());
        backing.unwrap().set_len(1 << 19).unwrap();
        let mut held = on_gpu(seat, "--hold synchronous");
        held.stdin(Stdio::piped());
        Self {
            seat,
            device,
            listener: Server::start(seat.command("listen")),
            _held: Held(held.spawn().unwrap()),
        }
    }

    /// Connects that nobody answers: a time-out and SYNs sent again.
    fn unanswered(&self) {
        let netns = impatient_netns();
        let peer = peer(&netns, "--silent");
        let mut connect = load::command_in(&netns, "connect --to 10.99.0.2:80", &[]);
        for folder in &self.seat.folders {
            connect.arg("--cgroup").arg(folder);
        }
        assert_eq!(load::report(connect)["timeout"], 1);
        drop(peer);
    }

    /// Something of everything.
    fn round(&self) {
        let programs: Vec<_> = ["synchronous", "graph", "async_copies", "polling", "errors"]
            .map(|scenario| (scenario, on_gpu(self.seat, scenario).spawn().unwrap()))
            .into();
        let file = self.device.path().display();
        for args in [
            format!("connect --to 127.0.0.1:{} --count 40", self.listener.port()),
            "connect --to 127.0.0.1:1 --count 40".to_owned(),
            format!("write --file {file} --direct --count 20 --fsync-each"),
            format!("read --file {file} --direct --count 40 --span 524288"),
        ] {
            self.seat.run(&args);
        }
        let mut beyond = self.seat.enter();
        beyond.args(["dd", &format!("if={file}"), "of=/dev/null", "bs=4096"]);
        beyond.args(["count=1", "skip=200", "iflag=direct"]);
        assert!(!output(beyond).status.success());
        for (scenario, mut program) in programs {
            assert!(program.wait().unwrap().success(), "{scenario}");
        }
    }
}

/// A program on a virtual GPU.
fn on_gpu(seat: &Seat, args: &str) -> Command {
    let mut command = seat.enter();
    command.arg(shared_program()).args(args.split_whitespace());
    command.stdout(Stdio::null()).stdin(Stdio::null());
    command
}

/// How many scrapes a Prometheus has made.
fn scrapes(prometheus: &Prometheus) -> f64 {
    let counted = prometheus.query("count_over_time(up[1h])");
    counted.first().map_or(0.0, |(_, value)| *value)
}

/// What dashboards ask for with these values of their variables.
fn of_filled_in_dashboards(values: [&str; 8]) -> Vec<Expression> {
    let names = [
        "instance",
        "namespace",
        "pod",
        "container",
        "cgroup",
        "workload",
        "process",
        "device",
    ];
    let values: Vec<_> = names.into_iter().zip(values).collect();
    let fill_in = |expression: Expression| Expression {
        place: format!("{}, {values:?}", expression.place),
        text: filled_in(&expression.text, &values),
        ..expression
    };
    of_dashboards().into_iter().map(fill_in).collect()
}

/// What rules record, and the series that alerts watch. All of them can be evaluated.
fn of_rules(prometheus: &Prometheus) -> Vec<Expression> {
    let answer = prometheus.api("rules");
    let groups = answer["data"]["groups"].as_array().unwrap();
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap());
    let mut expressions = Vec::new();
    for rule in rules {
        let name = rule["name"].as_str().unwrap();
        assert_eq!(rule["health"], "ok", "{rule}");
        let texts = match rule["type"].as_str().unwrap() {
            "recording" => [name.to_owned()].into(),
            _ => selectors(rule["query"].as_str().unwrap()),
        };
        expressions.extend(texts.into_iter().map(|text| Expression {
            place: name.to_owned(),
            text,
            is_choice: false,
        }));
    }
    assert!(expressions.len() > 40, "{answer}");
    expressions
}

/// Asserts that the load is taken for what it is, and the agents for well.
fn assert_alerted(prometheus: &Prometheus) {
    let answer = prometheus.api("alerts");
    let alerts = answer["data"]["alerts"].as_array().unwrap().iter();
    let active: BTreeSet<_> = alerts
        .map(|alert| alert["labels"]["alertname"].as_str().unwrap())
        .collect();
    // Half of all connects.
    assert!(active.contains("SentryConnectFailures"), "{active:?}");
    for quiet in [
        "SentryDown",
        "SentryAbsent",
        "SentryProbeDown",
        "SentryWatchDown",
        "SentrySeriesOverflow",
        "SentryScrapesRefused",
        "SentryConfigReloadFailed",
        "SentryOverBudget",
    ] {
        assert!(!active.contains(quiet), "{answer}");
    }
}

/// Asserts that expressions say something, but for those that may be quiet.
fn assert_all_say_something(prometheus: &Prometheus, expressions: &[Expression]) {
    let mut wrong = Vec::new();
    for Expression { place, text, .. } in expressions {
        let results = prometheus.query(text);
        let says_something = results.iter().any(|(_, value)| !value.is_nan());
        let may_be_quiet = QUIET.iter().any(|(part, _)| text.contains(part));
        if !says_something && !may_be_quiet {
            wrong.push(format!("{place}: nothing: {text}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for (part, reason) in QUIET {
        let mut texts = expressions.iter().map(|expression| &expression.text);
        assert!(
            texts.any(|text| text.contains(part)),
            "{part}, as {reason}: nowhere"
        );
    }
}

/// An agent, and the labels by which it knows the container that does everything: namespace, pod, container, cgroup,
/// workload.
struct Watched<'a> {
    agent: Agent,
    labels: [&'a str; 5],
}

impl Watched<'_> {
    /// What dashboards ask for of this agent and that container.
    fn expressions(&self, device: &str) -> Vec<Expression> {
        let instance = self.agent.address().to_string();
        let [namespace, pod, container, cgroup, workload] = self.labels;
        let of = |process, device| {
            of_filled_in_dashboards([
                &instance, namespace, pod, container, cgroup, workload, process, device,
            ])
        };
        // A GPU is no block device, and what is told apart less finely leaves nothing to choose.
        let is_of_gpu = |it: &Expression| it.text.contains("sentry_gpu");
        let of_gpu = of("workload", ".*").into_iter().filter(is_of_gpu);
        let of_others = of(".*", device).into_iter().filter(|it| !is_of_gpu(it));
        let all = of_gpu.chain(of_others);
        all.filter(|it| !it.is_choice || !pod.is_empty()).collect()
    }

    fn until_watch_failed(&self) {
        wait_for("failed watch", PATIENCE, || {
            let scrape = self.agent.scrape();
            let mut errors = scrape.matching("sentry_kubernetes_watch_errors_total", &[]);
            errors.any(|sample| sample.value > 0.0).then_some(())
        });
    }
}

/// Each Prometheus that there is, with the rules and all agents.
fn servers(test: &str, agents: &[Watched], folder: &Folder) -> Vec<(Prometheus, Folder)> {
    let mut programs = vec![(PathBuf::from("prometheus"), "")];
    match prometheus_3() {
        // As it comes, and as Compose has it.
        Some(program) => programs.extend([(program.clone(), ""), (program, NATIVE)]),
        None => skipped(
            test,
            "SENTRY_PROMETHEUS_3 names no folder; with Debian's own alone",
        ),
    }
    let address = |watched: &Watched| watched.agent.address().to_string();
    let others: Vec<_> = agents[1..].iter().map(address).collect();
    let targets = folder.path().join("targets.json");
    fs::write(&targets, json!([{"targets": others}]).to_string()).unwrap();
    let scrape = format!(
        "honor_labels: true\nfile_sd_configs: [{{files: ['{}']}}]",
        targets.display()
    );
    let start = |(program, feature): (PathBuf, &'static str)| {
        let folder = Folder::new();
        let mut scrape = scrape.clone();
        let mut flags = Vec::new();
        if !feature.is_empty() {
            flags.push(feature);
            scrape.push_str("\nalways_scrape_classic_histograms: true");
        }
        let setup = Setup {
            program,
            flags,
            scrape: scrape.leak(),
            rules: Some(deployed("prometheus/rules")),
        };
        let prometheus = Prometheus::start(&setup, &folder, agents[0].agent.address());
        (prometheus, folder)
    };
    programs.into_iter().map(start).collect()
}

#[test]
fn every_expression_says_something() {
    let test = "every_expression_says_something";
    let Some(_turn) = take_turn(test) else {
        return;
    };
    if is_v1_only() {
        skipped(test, "sockets belong to no pod with cgroup v1 alone");
        return;
    }
    let node = Node::new();
    let scope = format!("cri-containerd-{}.scope", id(1));
    let seat = node.cgroup(&format!("{}/{scope}", slice("burstable", 1)));
    let pod = Pod::new(NAME, "shop", "web-0", &uid(1))
        .owned_by("StatefulSet", "web")
        .with("app", &format!("containerd://{}", id(1)));
    node.api.apply(&pod);
    let path = seat.path.as_str();
    let agents = [
        ("container", ["shop", "web-0", "app", path, ""]),
        ("workload", ["shop", "", "", "", "web"]),
        ("node", [""; 5]),
    ]
    .map(|(by, labels)| {
        let flags = format!(
            "--probes tcp,disk,gpu --bpf.stats --aggregate-by {by} --overhead.budget 50% --overhead.interval 2s"
        );
        let agent = node.agent(&flags);
        Watched { agent, labels }
    });
    let folder = Folder::new();
    let servers = servers(test, &agents, &folder);

    let load = Load::new(&seat);
    // The watches fail for a while, and come back.
    node.api.set_fault(Some(Fault::Answer(503)));
    node.api.cut_watches(Cut::End);
    load.unanswered();
    agents.iter().for_each(Watched::until_watch_failed);
    node.api.set_fault(None);
    for _ in 0..ROUNDS {
        load.round();
    }
    let device = load.device.name();
    for (prometheus, _) in &servers {
        let before = scrapes(prometheus);
        wait_for("later scrapes", PATIENCE, || {
            (scrapes(prometheus) >= before + 3.0).then_some(())
        });
        let mut expressions = of_filled_in_dashboards([".*"; 8]);
        expressions.extend(of_rules(prometheus));
        expressions.extend(
            agents
                .iter()
                .flat_map(|watched| watched.expressions(device)),
        );
        assert_all_say_something(prometheus, &expressions);
        assert_alerted(prometheus);
        let version = &prometheus.api("status/buildinfo")["data"]["version"];
        println!("{} expressions in Prometheus {version}", expressions.len());
    }
    drop(load);
    drop(servers);
    for watched in agents {
        watched.agent.stop();
    }
}
