//! What a fleet asks of Prometheus: shards of deploy/fleet scrape what a real agent says, as many times over, and send it
//! to a receiver.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sentry_bench::sandbox::LoopDevice;

use super::{
    Process, get,
    kubernetes::{Node, cpu_ticks},
    listener,
    results::{Cell, Results, Table},
    status_bytes, sum,
};

/// Pods of a node, of one container each, that connect, serve, read and write: what docs/metrics.md counts with.
const PODS: u32 = 30;

/// Nodes, each an address on loopback.
const NODES: u8 = 100;

const SHARDS: usize = 2;

/// Until each node has been scraped three times.
const WARM: Duration = Duration::from_secs(50);

/// How long all is measured: twelve scrapes.
const MEASURED: Duration = Duration::from_secs(180);

/// How often what nodes say changes.
const STEP: Duration = Duration::from_secs(5);

const AGENT: &str = include_str!("../../../../deploy/fleet/agent.yml");
const RECEIVER: &str = include_str!("../../../../deploy/fleet/receiver.yml");

/// How the agent gives histograms, and what Prometheus is told for it.
struct Kind {
    name: &'static str,
    /// Of the agent.
    flag: &'static str,
    accept: &'static str,
    /// Of Prometheus.
    features: &'static str,
    remote_write: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind {
        name: "classic histograms",
        flag: "--metrics.classic-histograms=true",
        accept: "application/openmetrics-text;version=1.0.0",
        features: "agent",
        remote_write: "",
    },
    Kind {
        name: "native histograms alone",
        flag: "--metrics.classic-histograms=false",
        accept: "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
        features: "agent,native-histograms",
        remote_write: "    send_native_histograms: true\n",
    },
];

pub(crate) fn prometheus(bin: &Path, results: &mut Results) -> Result<()> {
    let version = Command::new("prometheus").arg("--version").output();
    let version = version.context("prometheus cannot be run: install the package prometheus")?;
    let version = [version.stdout, version.stderr].concat();
    let version = String::from_utf8_lossy(&version).into_owned();
    let mut names = vec!["what"];
    names.extend(KINDS.map(|kind| kind.name));
    let mut table = Table::new(
        &format!("{NODES} nodes of {PODS} pods"),
        format!(
            "Each pod connects, serves, reads and writes. {SHARDS} shards of `deploy/fleet/agent.yml`, every 15 s, into \
             one receiver with the rules; {} s, from {} s after the start. {}.",
            MEASURED.as_secs(),
            WARM.as_secs(),
            version.lines().next().unwrap_or_default(),
        ),
        &names,
    );
    let columns: Vec<Vec<(&str, String)>> = KINDS
        .iter()
        .map(|kind| fleet(bin, kind))
        .collect::<Result<_>>()?;
    for (row, (what, _)) in columns[0].iter().enumerate() {
        let cells = columns.iter().map(|column| Cell::text(&*column[row].1));
        table.row(*what, cells.collect());
    }
    results.add(table)
}

/// Runs the fleet once; what was measured, and how much it was.
fn fleet(bin: &Path, kind: &Kind) -> Result<Vec<(&'static str, String)>> {
    let mut node = Node::new(PODS)?;
    let disk_cgroups = node.disk_cgroups()?;
    let (_agent, address, _, _) = node.agent(bin, &[kind.flag])?;
    let device = LoopDevice::new(16 << 20)?;
    let file = device.path().display().to_string();
    let mut listeners = Vec::new();
    for (sockets, disk) in node.socket_cgroups().iter().zip(&disk_cgroups) {
        let (listener, to) = listener(bin, Some(sockets))?;
        run(bin, &["connect", "--to", &to, "--count", "20"], sockets)?;
        for operation in ["read", "write"] {
            let args = [operation, "--direct", "--count", "20", "--file", &file];
            run(bin, &args, disk)?;
        }
        listeners.push((listener, to));
    }
    let answer = Arc::new(Mutex::new(Arc::from(scrape(address, kind)?)));
    let nodes: Vec<SocketAddr> = (1..=NODES)
        .map(|number| serve(number, &answer))
        .collect::<Result<_>>()?;
    let folder = std::env::temp_dir().join(format!("sentry-fleet-{}", std::process::id()));
    let servers = start_all(&folder, kind, &nodes)?;

    let change = |until: Instant| -> Result<()> {
        while Instant::now() < until {
            for (sockets, (_, to)) in node.socket_cgroups().iter().zip(&listeners) {
                run(bin, &["connect", "--to", to, "--count", "2"], sockets)?;
            }
            let args = ["read", "--direct", "--count", "50", "--file", &file];
            run(bin, &args, &disk_cgroups[0])?;
            *answer.lock().unwrap_or_else(PoisonError::into_inner) =
                Arc::from(scrape(address, kind)?);
            thread::sleep(STEP);
        }
        Ok(())
    };
    let all = || -> Result<Vec<Now>> { servers.iter().map(Prometheus::now).collect() };
    change(Instant::now() + WARM)?;
    let start = Instant::now();
    let before = all()?;
    change(start + MEASURED)?;
    let seconds = start.elapsed().as_secs_f64();
    let after = all()?;
    let bytes = answer.lock().unwrap_or_else(PoisonError::into_inner).len();
    drop(servers);
    fs::remove_dir_all(&folder)?;
    ensure!(
        after[..SHARDS].iter().all(|now| now.active_series > 0.0),
        "a shard has no series"
    );
    let mut rows = vec![("bytes of a scrape, gzipped", bytes.to_string())];
    rows.extend(rows_of(&before, &after, seconds));
    Ok(rows)
}

/// The shards, and the receiver after them.
fn start_all(folder: &Path, kind: &Kind, nodes: &[SocketAddr]) -> Result<Vec<Prometheus>> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder.join("targets"))?;
    let targets = serde_json::json!([{"targets": nodes}]).to_string();
    fs::write(folder.join("targets/nodes.yml"), targets)?;
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/prometheus");
    let rules = rules.canonicalize()?.display().to_string();
    let text = RECEIVER.replace("../prometheus", &rules);
    let flags = [
        "--web.enable-remote-write-receiver",
        "--enable-feature=native-histograms",
    ];
    // The second one only for those.
    let flags = &flags[..if kind.remote_write.is_empty() { 1 } else { 2 }];
    let receiver = Prometheus::start(folder, "receiver", &text, "storage.tsdb.path", flags)?;
    let url = format!("http://{}/api/v1/write", receiver.address);
    let agent_mode = format!("--enable-feature={}", kind.features);
    let mut servers = Vec::new();
    for shard in 0..SHARDS {
        let text = AGENT
            .replace("modulus: 1\n", &format!("modulus: {SHARDS}\n"))
            .replace("regex: \"0\"", &format!("regex: \"{shard}\""))
            .replace("http://receiver:9090/api/v1/write", &url)
            + kind.remote_write;
        let name = format!("shard-{shard}");
        let flags = [agent_mode.as_str()];
        servers.push(Prometheus::start(
            folder,
            &name,
            &text,
            "storage.agent.path",
            &flags,
        )?);
    }
    servers.push(receiver);
    Ok(servers)
}

/// What all of them say, after so many seconds, of the fleet as a whole.
fn rows_of(before: &[Now], after: &[Now], seconds: f64) -> Vec<(&'static str, String)> {
    let shards = |value: fn(&Now) -> f64| after[..SHARDS].iter().map(value).sum::<f64>();
    let gained =
        |value: fn(&Now) -> f64| shards(value) - before[..SHARDS].iter().map(value).sum::<f64>();
    let (active, samples) = (shards(|now| now.active_series), gained(|now| now.sent));
    let (wire, resident) = (gained(|now| now.sent_bytes), shards(|now| now.resident));
    let receiver = &after[SHARDS];
    let receiver_cpu = receiver.cpu_seconds - before[SHARDS].cpu_seconds;
    let microseconds = |cpu_seconds: f64| format!("{:.2}", cpu_seconds * 1e6 / samples);
    let whole = |value: f64| format!("{value:.0}");
    vec![
        ("series of a node", whole(active / f64::from(NODES))),
        ("series that the shards scrape", whole(active)),
        ("samples a second", whole(samples / seconds)),
        (
            "remote write, bytes a sample",
            format!("{:.1}", wire / samples),
        ),
        ("remote write, kB a second", whole(wire / seconds / 1e3)),
        (
            "samples that were not taken",
            whole(shards(|now| now.failed)),
        ),
        ("shards, resident, MB all together", whole(resident / 1e6)),
        ("shards, resident, bytes a series", whole(resident / active)),
        (
            "shards, CPU, µs a sample",
            microseconds(gained(|now| now.cpu_seconds)),
        ),
        (
            "receiver, series with what the rules record",
            whole(receiver.head_series),
        ),
        ("receiver, resident, MB", whole(receiver.resident / 1e6)),
        (
            "receiver, resident, bytes a series",
            whole(receiver.resident / receiver.head_series),
        ),
        ("receiver, CPU, µs a sample", microseconds(receiver_cpu)),
    ]
}

/// Runs `load` in a cgroup.
fn run(bin: &Path, args: &[&str], cgroup: &Path) -> Result<()> {
    let output = Command::new(bin.join("load"))
        .args(args)
        .arg("--cgroup")
        .arg(cgroup)
        .output()?;
    ensure!(
        output.status.success(),
        "the load failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// What the agent answers to Prometheus, head and all.
fn scrape(address: SocketAddr, kind: &Kind) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nAccept: {}\r\nAccept-Encoding: gzip\r\n\r\n",
        kind.accept
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "a scrape failed");
    Ok(answer)
}

/// A node that gives this answer to whoever connects, until this program ends.
fn serve(number: u8, answer: &Arc<Mutex<Arc<[u8]>>>) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 1, number), 0))?;
    let address = listener.local_addr()?;
    let answer = Arc::clone(answer);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let now = Arc::clone(&answer.lock().unwrap_or_else(PoisonError::into_inner));
            // One read has the whole request. Who is gone meanwhile counts a failed scrape.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&now);
        }
    });
    Ok(address)
}

/// A running Prometheus.
struct Prometheus {
    process: Process,
    address: SocketAddr,
}

/// What one says of itself. What it does not have is 0.
struct Now {
    resident: f64,
    cpu_seconds: f64,
    active_series: f64,
    head_series: f64,
    sent: f64,
    failed: f64,
    sent_bytes: f64,
}

impl Prometheus {
    fn start(
        folder: &Path,
        name: &str,
        config: &str,
        storage: &str,
        flags: &[&str],
    ) -> Result<Self> {
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let path: PathBuf = folder.join(format!("{name}.yml"));
        fs::write(&path, config)?;
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--{storage}={}", folder.join(name).display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .args(flags)
            .spawn()?;
        let process = Process(child);
        let start = Instant::now();
        while !get(address, "/-/ready").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            ensure!(
                start.elapsed() < Duration::from_secs(20),
                "{name} is not ready"
            );
            thread::sleep(Duration::from_millis(100));
        }
        Ok(Self { process, address })
    }

    fn now(&self) -> Result<Now> {
        let metrics = get(self.address, "/metrics")?;
        let value = |name: &str| sum(&metrics, name);
        Ok(Now {
            resident: status_bytes(&self.process, "VmRSS:")?,
            cpu_seconds: cpu_ticks(&self.process)? / 100.0,
            active_series: value("prometheus_agent_active_series "),
            head_series: value("prometheus_tsdb_head_series "),
            sent: value("prometheus_remote_storage_samples_total{")
                + value("prometheus_remote_storage_histograms_total{"),
            failed: value("prometheus_remote_storage_samples_failed_total{")
                + value("prometheus_remote_storage_samples_dropped_total{")
                + value("prometheus_remote_storage_histograms_failed_total{"),
            sent_bytes: value("prometheus_remote_storage_bytes_total{"),
        })
    }
}
