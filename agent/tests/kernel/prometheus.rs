//! A real Prometheus scrapes the agent.

use crate::agent::{Agent, get, without_settings};
use crate::exposition::as_f64;
use crate::host::{Folder, label, socket_cgroup, turn, wait_for};
use crate::load::{self, Server, assert_all};
use serde_json::Value;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// A Prometheus server with one target. Killed on drop.
struct Prometheus {
    process: Child,
    address: SocketAddr,
}

impl Prometheus {
    fn start(folder: &Folder, target: SocketAddr) -> Self {
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .unwrap();
        let config = folder.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: sentry\n  static_configs: [{{targets: ['{target}']}}]\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).unwrap());
        let process = without_settings(&mut command)
            .spawn()
            .unwrap_or_else(|error| panic!("prometheus: {error}"));
        let prometheus = Self { process, address };
        wait_for("Prometheus", PATIENCE, || {
            std::net::TcpStream::connect(address).ok()
        });
        wait_for("ready Prometheus", PATIENCE, || {
            (get(address, "/-/ready", &[]).status == 200).then_some(())
        });
        prometheus
    }

    /// The results of a query: labels and value of each.
    fn query(&self, query: &str) -> Vec<(Value, f64)> {
        let escaped: String = query
            .bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
                other => format!("%{other:02X}"),
            })
            .collect();
        let answer = get(self.address, &format!("/api/v1/query?query={escaped}"), &[]);
        let answer: Value = serde_json::from_str(&answer.text()).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let results = answer["data"]["result"].as_array().unwrap().iter();
        results
            .map(|result| {
                let value = result["value"][1].as_str().unwrap().parse().unwrap();
                (result["metric"].clone(), value)
            })
            .collect()
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
    let prometheus = Prometheus::start(&folder, agent.address());
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

    // Every scrape was taken in whole.
    assert_eq!(prometheus.query("up")[0].1, 1.0);
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(!log.contains("sentry"), "{log}");
    drop(prometheus);
    agent.stop();
}
