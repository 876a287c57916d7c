//! A real Prometheus scrapes the agent.

use crate::agent::{Agent, get, sentry, without_settings};
use crate::exposition::as_f64;
use crate::host::{Folder, label, socket_cgroup, turn, wait_for};
use crate::load::{self, Server, assert_all};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A Prometheus server with one target. Killed on drop.
pub(crate) struct Prometheus {
    process: Child,
    address: SocketAddr,
    log: PathBuf,
}

/// Which Prometheus, and how it scrapes.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Its program.
    pub(crate) program: PathBuf,
    /// Flags besides those that every test needs.
    pub(crate) flags: Vec<&'static str>,
    /// Settings of the scrape besides, each a line.
    pub(crate) scrape: &'static str,
    /// A folder of rules.
    pub(crate) rules: Option<PathBuf>,
}

impl Default for Setup {
    /// Debian's, as it comes.
    fn default() -> Self {
        Self {
            program: "prometheus".into(),
            flags: Vec::new(),
            scrape: "",
            rules: None,
        }
    }
}

/// Prometheus 3, if the folder that has its programs is named.
pub(crate) fn prometheus_3() -> Option<PathBuf> {
    let folder = std::env::var_os("SENTRY_PROMETHEUS_3")?;
    Some(Path::new(&folder).join("prometheus"))
}

impl Prometheus {
    /// Starts it in a folder of its own.
    pub(crate) fn start(setup: &Setup, folder: &Folder, target: SocketAddr) -> Self {
        let mut text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nscrape_configs:\n- job_name: sentry\n  static_configs: [{{targets: ['{target}']}}]\n"
        );
        for line in setup.scrape.lines() {
            text.extend(["  ", line, "\n"]);
        }
        if let Some(rules) = &setup.rules {
            let rules = rules.display().to_string();
            text.extend(["rule_files: ['", &rules, "/*.yml']\n"]);
        }
        let mut flags = setup.flags.clone();
        let data = format!(
            "--storage.tsdb.path={}",
            folder.path().join("data").display()
        );
        flags.push(&data);
        Self::run(&setup.program, &flags, folder, &text)
    }

    /// Starts it with this configuration; the flags say where it keeps data.
    pub(crate) fn run(program: &Path, flags: &[&str], folder: &Folder, text: &str) -> Self {
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap();
        let config = folder.path().join("prometheus.yml");
        fs::write(&config, text).unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .args(flags)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap());
        let process = without_settings(&mut command)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let prometheus = Self {
            process,
            address,
            log,
        };
        wait_for("Prometheus", PATIENCE, || {
            std::net::TcpStream::connect(address).ok()
        });
        wait_for("ready Prometheus", PATIENCE, || {
            (get(address, "/-/ready", &[]).status == 200).then_some(())
        });
        prometheus
    }

    /// The results of a query: labels and value of each.
    pub(crate) fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let escaped: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect();
        let answer = self.api(&format!("query?query={escaped}"));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let results = answer["data"]["result"].as_array().unwrap().iter();
        results
            .map(|result| {
                let value = result["value"][1].as_str().unwrap().parse().unwrap();
                (result["metric"].clone(), value)
            })
            .collect()
    }

    /// What its API says.
    pub(crate) fn api(&self, request: &str) -> Value {
        let answer = get(self.address, &format!("/api/v1/{request}"), &[]);
        serde_json::from_str(&answer.text()).unwrap()
    }

    /// Asserts that it takes scrapes in whole.
    pub(crate) fn assert_content(&self) {
        assert_eq!(self.query("up")[0].1, 1.0);
        let log = fs::read_to_string(&self.log).unwrap();
        assert!(!log.contains("sentry"), "{log}");
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn prometheus_has_the_very_numbers() {
    turn!("prometheus_has_the_very_numbers");
    let agent = Agent::start("");
    let (client, server) = (socket_cgroup("client"), socket_cgroup("server"));
    let listener = Server::listen("", &[&server]);
    let args = format!("connect --to 127.0.0.1:{} --count 321", listener.port());
    assert_all(&load::run(&args, &[&client]), "connected", 321);
    let folder = Folder::new();
    let prometheus = Prometheus::start(&Setup::default(), &folder, agent.address());
    let of = format!("{{cgroup=\"{}\"}}", label(&client));

    let count = format!("sentry_tcp_handshake_duration_seconds_count{of}");
    let results = wait_for("first scrape", PATIENCE, || {
        Some(prometheus.query(&count)).filter(|results| !results.is_empty())
    });
    assert_eq!(results.len(), 1, "{results:?}");
    assert_eq!(results[0].1, 321.0);
    assert_eq!(results[0].0["role"], "client");

    // Its own estimate lies in the bucket that has the median.
    let scrape = agent.scrape();
    let histogram = scrape.histogram(
        "sentry_tcp_handshake_duration_seconds",
        &[("cgroup", &label(&client))],
    );
    let mut below = 0;
    let filled = histogram.filled();
    let (lower, upper, _) = filled
        .iter()
        .find(|(_, _, events)| {
            below += events;
            as_f64(below) >= 160.5
        })
        .unwrap();
    let quantile =
        format!("histogram_quantile(0.5, sentry_tcp_handshake_duration_seconds_bucket{of})");
    let median = prometheus.query(&quantile)[0].1;
    assert!(
        (*lower..=*upper).contains(&median),
        "{median} in {lower} to {upper}"
    );

    prometheus.assert_content();
    drop(prometheus);
    agent.stop();
}

/// Nodes of the fleet: one agent, by as many addresses of loopback.
const NODES: u8 = 12;

const SHARDS: usize = 3;

/// Shards and their receiver, of one version, as deploy/fleet sets them up. Only intervals, addresses and paths are
/// others.
struct Fleet {
    shards: Vec<Prometheus>,
    receiver: Prometheus,
    _folders: Vec<Folder>,
}

impl Fleet {
    fn start(program: &Path, agent_mode: &'static str, targets: &str) -> Self {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let read = |name: &str| fs::read_to_string(deploy.join("fleet").join(name)).unwrap();
        let replaced = |text: String, from: &str, to: &str| {
            assert!(text.contains(from), "{from} is not in {text}");
            text.replace(from, to)
        };
        let mut folders = Vec::new();
        let mut run = |text: &str, flags: &[&str], storage: &str| {
            let folder = Folder::new();
            fs::create_dir(folder.path().join("targets")).unwrap();
            fs::write(folder.path().join("targets/nodes.yml"), targets).unwrap();
            let data = folder.path().join("data");
            let data = format!("--storage.{storage}.path={}", data.display());
            let prometheus = Prometheus::run(program, &[flags, &[&data]].concat(), &folder, text);
            folders.push(folder);
            prometheus
        };
        let rules = deploy.join("prometheus").canonicalize().unwrap();
        let text = replaced(
            read("receiver.yml"),
            "../prometheus",
            rules.to_str().unwrap(),
        );
        let receiver = run(&text, &["--web.enable-remote-write-receiver"], "tsdb");
        let url = format!("{}/api/v1/write", receiver.address);
        let shards = (0..SHARDS)
            .map(|shard| {
                let modulus = format!("modulus: {SHARDS}\n");
                let text = replaced(read("agent.yml"), "modulus: 1\n", &modulus);
                let text = replaced(text, "regex: \"0\"\n", &format!("regex: \"{shard}\"\n"));
                let text = replaced(text, "scrape_interval: 15s", "scrape_interval: 2s");
                let text = replaced(text, "receiver:9090/api/v1/write", &url);
                run(&text, &[agent_mode], "agent")
            })
            .collect();
        Self {
            shards,
            receiver,
            _folders: folders,
        }
    }

    /// The targets of each shard.
    fn targets(&self) -> Vec<BTreeSet<String>> {
        let of_shard = |shard: &Prometheus| {
            let targets = shard.api("targets?state=active");
            let targets = targets["data"]["activeTargets"].as_array().unwrap().iter();
            let instances =
                targets.map(|target| target["labels"]["instance"].as_str().unwrap().to_owned());
            instances.collect()
        };
        self.shards.iter().map(of_shard).collect()
    }

    /// By node, what the receiver has for a query that gives one value for each.
    fn by_node(&self, query: &str) -> BTreeMap<String, f64> {
        let results = self.receiver.query(query);
        let count = results.len();
        let values: BTreeMap<_, _> = results
            .into_iter()
            .map(|(labels, value)| (labels["instance"].as_str().unwrap().to_owned(), value))
            .collect();
        assert_eq!(values.len(), count, "{query}: a node has two");
        values
    }

    fn shares(&self, nodes: &BTreeSet<String>, of: &str) {
        wait_for("targets of all shards", 3 * PATIENCE, || {
            let count: usize = self.targets().iter().map(BTreeSet::len).sum();
            (count >= nodes.len()).then_some(())
        });
        let shares = self.targets();
        let count: usize = shares.iter().map(BTreeSet::len).sum();
        assert_eq!(count, nodes.len(), "a node is of two shards: {shares:?}");
        assert_eq!(
            &shares.into_iter().flatten().collect::<BTreeSet<_>>(),
            nodes
        );

        // What is counted while the query runs is not in both.
        wait_for("every series of every node", 3 * PATIENCE, || {
            let scraped = self.by_node("scrape_samples_post_metric_relabeling");
            let there = self.by_node(
                "count by (instance) ({job=\"sentry\", __name__=~\"(sentry|process)_.+\"})",
            );
            (scraped.len() == nodes.len() && scraped == there).then_some(())
        });
        let up = self.by_node("up{job=\"sentry\", cluster=\"main\"} == 1");
        assert_eq!(&up.into_keys().collect::<BTreeSet<_>>(), nodes);
        let connects = self.by_node(&format!("sentry_tcp_handshake_duration_seconds_count{of}"));
        assert_eq!(connects.len(), nodes.len());
        assert!(
            connects.values().all(|count| *count == 321.0),
            "{connects:?}"
        );
        for prometheus in self.shards.iter().chain([&self.receiver]) {
            let log = fs::read_to_string(&prometheus.log).unwrap();
            // What Prometheus says of samples that it does not take.
            assert!(
                !log.contains("ingesting") && !log.contains("uplicate sample"),
                "{log}"
            );
        }
    }
}

#[test]
fn shards_take_each_node_once() {
    turn!("shards_take_each_node_once");
    let mut command = sentry("--probes tcp");
    command.args(["--web.listen-address", "0.0.0.0:0"]);
    let agent = Agent::spawn_as(command);
    let pid = agent.pid();
    let agent = agent.inside(pid, Ipv4Addr::LOCALHOST.into());
    let client = socket_cgroup("client");
    let listener = Server::listen("", &[]);
    let args = format!("connect --to 127.0.0.1:{} --count 321", listener.port());
    assert_all(&load::run(&args, &[&client]), "connected", 321);

    let port = agent.address().port();
    let nodes: BTreeSet<_> = (1..=NODES)
        .map(|number| format!("127.0.1.{number}:{port}"))
        .collect();
    let targets = serde_json::json!([{"targets": nodes}]).to_string();
    let of = format!("{{cgroup=\"{}\"}}", label(&client));
    // One after the other: each is four servers that scrape.
    Fleet::start("prometheus".as_ref(), "--enable-feature=agent", &targets).shares(&nodes, &of);
    match prometheus_3() {
        Some(program) => Fleet::start(&program, "--agent", &targets).shares(&nodes, &of),
        None => eprintln!("Prometheus 3 is left out: SENTRY_PROMETHEUS_3 names no folder"),
    }
    agent.stop();
}
