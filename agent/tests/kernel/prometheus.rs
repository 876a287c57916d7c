//! A real Prometheus scrapes the agent.

use crate::agent::{Agent, get, without_settings};
use crate::exposition::as_f64;
use crate::host::{Folder, label, socket_cgroup, turn, wait_for};
use crate::load::{self, Server, assert_all};
use serde_json::Value;
use std::fs;
use std::net::{SocketAddr, TcpListener};
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
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap();
        let config = folder.path().join("prometheus.yml");
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
        fs::write(&config, text).unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new(&setup.program);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .args(&setup.flags)
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap());
        let process = without_settings(&mut command)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", setup.program.display()));
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
