//! A real OpenTelemetry collector takes what the agent sends, and passes the numbers of the scrape on.

use crate::agent::{Agent, sentry};
use crate::host::{Folder, skipped, turn, wait_for};
use crate::otlp::{
    DROPPED, EXPORTS, PATIENCE, Protocol, Receiver, Reply, assert_all_same, attributes, events,
    unix_nano,
};
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::SystemTime;

const REQUIREMENTS: &str = include_str!("../collector/requirements.txt");

/// Where the collector is; none where nobody has fetched it, which is said on standard error.
fn find(test: &str) -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    let folder = folder("SENTRY_COLLECTOR_CACHE")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("sentry/collector")))
        .or_else(|| Some(folder("HOME")?.join(".cache/sentry/collector")));
    let folder = folder.filter(|folder| {
        let present = fs::read_to_string(folder.join("requirements.txt"));
        present.is_ok_and(|present| present == REQUIREMENTS)
    });
    if folder.is_none() {
        skipped(test, "no collector: cargo xtask collector fetches it");
    }
    folder.map(|folder| folder.join("rotel/rotel-agent"))
}

/// A collector that passes metrics on. Killed on drop.
struct Collector {
    process: Child,
    http: SocketAddr,
    grpc: SocketAddr,
    log: PathBuf,
}

impl Collector {
    /// Starts it in a folder of its own.
    fn start(program: &Path, folder: &Folder, to: SocketAddr) -> Self {
        // Ports that were free a moment ago.
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [http, grpc] = listeners.map(|listener| listener.local_addr().unwrap());
        let log = folder.path().join("log");
        let output = fs::File::create(&log).unwrap();
        let process = Command::new(program)
            .args(["start", "--exporter", "otlp"])
            .args(["--otlp-http-endpoint", &http.to_string()])
            .args(["--otlp-grpc-endpoint", &grpc.to_string()])
            .args(["--otlp-exporter-endpoint", &format!("http://{to}")])
            .args(["--otlp-exporter-protocol", "http"])
            .args(["--otlp-exporter-batch-timeout", "100ms"])
            .env_clear()
            .current_dir(folder.path())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let collector = Self {
            process,
            http,
            grpc,
            log,
        };
        for address in [http, grpc] {
            wait_for("collector", PATIENCE, || TcpStream::connect(address).ok());
        }
        collector
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_real_collector_passes_the_numbers_of_a_scrape_on() {
    const TEST: &str = "a_real_collector_passes_the_numbers_of_a_scrape_on";
    turn!("a_real_collector_passes_the_numbers_of_a_scrape_on");
    let Some(program) = find(TEST) else {
        return;
    };
    for protocol in [Protocol::Http, Protocol::Grpc] {
        let receiver = Receiver::start(Protocol::Http, Reply::Take);
        let folder = Folder::new();
        let collector = Collector::start(&program, &folder, receiver.address);
        let since = unix_nano(SystemTime::now());
        let mut command = sentry(&protocol.flags(match protocol {
            Protocol::Http => collector.http,
            Protocol::Grpc => collector.grpc,
        }));
        command
            .args(["--otlp.interval", "1s"])
            .args(["--metrics.buckets-per-octave", "4"]);
        let agent = Agent::spawn(command);
        let cgroups = events();
        let metrics = receiver.next_export();
        let scrape = agent.scrape();
        assert_all_same(&metrics, &scrape, &cgroups, since);
        for request in receiver.received() {
            for resource in &request.message.resource_metrics {
                let resource = attributes(&resource.resource.as_ref().unwrap().attributes);
                assert_eq!(resource["service.name"], "sentry");
            }
        }

        // It took everything, by an answer that the agent can read.
        let scrape = agent.scrape();
        let exports = scrape.count(EXPORTS, &[]);
        assert!(exports >= 2);
        assert_eq!(scrape.count(EXPORTS, &[("outcome", "success")]), exports);
        assert_eq!(scrape.count(DROPPED, &[]), 0);
        let log = agent.log();
        assert!(!log.contains("WARN"), "{log}");
        let log = fs::read_to_string(&collector.log).unwrap();
        assert!(!log.contains("ERROR"), "{log}");
        agent.stop();
    }
}
