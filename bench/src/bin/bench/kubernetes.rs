//! A node full of pods: what a scrape takes, and what the agent keeps in memory.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sentry_bench::{
    cgroup::CgroupRoots,
    kubernetes::{ApiServer, Options, Pod},
    tour::TourReport,
};

use super::{
    Process, agent, get, listener, load,
    results::{Cell, Results, Table, measured},
    status_bytes,
};

const NODE: &str = "node-1";

const PODS: u32 = 1000;

/// Starts, and scrapes of each sort.
const STARTS: usize = 5;
const SCRAPES: usize = 20;

/// The pods of a node: the API server that knows them, and the cgroups of their containers. Cgroups and files are gone
/// on drop.
pub(crate) struct Node {
    pods: u32,
    api: ApiServer,
    kubeconfig: String,
    folder: PathBuf,
    /// Folders of cgroups, each after the one around it.
    cgroups: Vec<PathBuf>,
    burstable: PathBuf,
    /// `--series.max` of its agents.
    pub(crate) series_max: u32,
}

impl Node {
    /// Lays them out as a kubelet with the systemd driver and containerd do; the kubelet has a cgroup root of its own,
    /// as in kind, so that a real one is not disturbed.
    pub(crate) fn new(pods: u32) -> Result<Self> {
        let api = ApiServer::start(Options {
            page: 500,
            ..Options::default()
        })?;
        let folder = std::env::temp_dir().join(format!("sentry-bench-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let kubeconfig = folder.join("kubeconfig");
        fs::write(&kubeconfig, api.kubeconfig(""))?;
        let mut node = Self {
            pods,
            kubeconfig: kubeconfig.display().to_string(),
            folder,
            cgroups: Vec::new(),
            burstable: CgroupRoots::find()?.v2,
            series_max: 4096,
            api,
        };
        let root = format!("sentry{}", std::process::id());
        for name in ["", "-kubepods", "-kubepods-burstable"] {
            let folder = node.burstable.join(format!("{root}{name}.slice"));
            node.make(folder.clone())?;
            node.burstable = folder;
        }
        for number in 0..pods {
            let id = format!("{:064x}", (0xc0_ffee_u128 << 64) + u128::from(number));
            let uid = format!("0a1b2c3d-4e5f-4a6b-8c7d-{number:012x}");
            let name = format!("web-5d9c7b8f6d-{number:05}");
            let pod = Pod::new(NODE, "shop", &name, &uid)
                .owned_by("ReplicaSet", "web-5d9c7b8f6d")
                .labelled("app", "web")
                .labelled("pod-template-hash", "5d9c7b8f6d")
                .with("app", &format!("containerd://{id}"));
            node.api.apply(&pod);
            let slice = format!(
                "{root}-kubepods-burstable-pod{}.slice",
                uid.replace('-', "_")
            );
            let slice = node.burstable.join(slice);
            node.make(slice.clone())?;
            node.make(slice.join(format!("cri-containerd-{id}.scope")))?;
        }
        Ok(node)
    }

    /// The cgroups that the containers' sockets belong to.
    pub(crate) fn socket_cgroups(&self) -> Vec<PathBuf> {
        let of_containers = |folder: &&PathBuf| folder.extension().is_some_and(|it| it == "scope");
        self.cgroups.iter().filter(of_containers).cloned().collect()
    }

    /// The cgroups that the containers' disk I/O belongs to, made if that is another hierarchy.
    pub(crate) fn disk_cgroups(&mut self) -> Result<Vec<PathBuf>> {
        let roots = CgroupRoots::find()?;
        let sockets = self.socket_cgroups();
        if roots.blkio != roots.v2 {
            for folder in self.cgroups.clone() {
                self.make(roots.blkio.join(folder.strip_prefix(&roots.v2)?))?;
            }
        }
        sockets
            .iter()
            .map(|folder| Ok(roots.blkio.join(folder.strip_prefix(&roots.v2)?)))
            .collect()
    }

    fn make(&mut self, folder: PathBuf) -> Result<()> {
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        self.cgroups.push(folder);
        Ok(())
    }

    /// An agent that knows the pods, when it was ready, and when it had them all. In milliseconds.
    pub(crate) fn agent(
        &self,
        bin: &Path,
        more: &[&str],
    ) -> Result<(Process, SocketAddr, f64, f64)> {
        let started = Instant::now();
        let rootfs = self.folder.display().to_string();
        let series_max = format!("--series.max={}", self.series_max);
        let flags = [
            "--probes=tcp,disk",
            &series_max,
            "--kubernetes.node",
            NODE,
            "--kubernetes.kubeconfig",
            &self.kubeconfig,
            "--path.rootfs",
            &rootfs,
        ];
        let (process, address, ready) = agent(bin, &[&flags, more].concat())?;
        let all = format!("\nsentry_kubernetes_pods {}\n", self.pods);
        loop {
            let metrics = get(address, "/metrics")?;
            if metrics.contains("\nsentry_kubernetes_watch_up 1\n") && metrics.contains(&all) {
                break;
            }
            ensure!(
                started.elapsed() < Duration::from_secs(20),
                "the agent does not know the pods"
            );
        }
        let synced = started.elapsed();
        Ok((process, address, milliseconds(ready), milliseconds(synced)))
    }

    /// Connects once from each container.
    pub(crate) fn tour(&self, bin: &Path, to: &str) -> Result<()> {
        let report: TourReport = load(
            bin,
            &[
                "tour".to_owned(),
                "--below".to_owned(),
                self.burstable.display().to_string(),
                "--to".to_owned(),
                to.to_owned(),
            ],
        )?;
        ensure!(
            report.tally.connected == u64::from(self.pods),
            "{} of {} connects came through",
            report.tally.connected,
            self.pods
        );
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for folder in self.cgroups.iter().rev() {
            if let Err(error) = fs::remove_dir(folder) {
                eprintln!("bench: {}: {error}", folder.display());
            }
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// What scrapes of one sort took, in milliseconds, and the bytes of the last.
#[derive(Default)]
pub(crate) struct Scrapes {
    pub(crate) first_byte: Vec<f64>,
    pub(crate) whole: Vec<f64>,
    /// In hundredths of a second.
    pub(crate) cpu: f64,
    pub(crate) bytes: usize,
}

impl Scrapes {
    /// Scrapes once; the answer with its head.
    pub(crate) fn scrape(
        &mut self,
        process: &Process,
        address: SocketAddr,
        headers: &str,
    ) -> Result<Vec<u8>> {
        let cpu = cpu_ticks(process)?;
        let start = Instant::now();
        let mut stream = TcpStream::connect(address)?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n{headers}\r\n"
        )?;
        let mut answer = vec![0];
        stream.read_exact(&mut answer)?;
        let first_byte = start.elapsed();
        stream.read_to_end(&mut answer)?;
        self.whole.push(milliseconds(start.elapsed()));
        self.first_byte.push(milliseconds(first_byte));
        self.cpu += cpu_ticks(process)? - cpu;
        self.bytes = answer.len();
        ensure!(answer.starts_with(b"HTTP/1.1 200"), "a scrape failed");
        Ok(answer)
    }
}

/// CPU time of a process, in hundredths of a second.
pub(crate) fn cpu_ticks(process: &Process) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.0.id()))?;
    let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
    let mut fields = fields.split(' ').skip(11);
    let mut next = || -> Result<f64> { Ok(fields.next().context("no times")?.parse()?) };
    Ok(next()? + next()?)
}

pub(crate) fn node(bin: &Path, results: &mut Results) -> Result<()> {
    let node = Node::new(PODS)?;
    let (mut ready, mut synced) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let (_, _, one_ready, one_synced) = node.agent(bin, &[])?;
        ready.push(one_ready);
        synced.push(one_synced);
    }
    let (process, address, _, _) = node.agent(bin, &[])?;
    let from_start = status_bytes(&process, "VmHWM:")?;
    let idle = status_bytes(&process, "VmRSS:")?;

    let (_listener, to) = listener(bin, None)?;
    node.tour(bin, &to)?;

    // From here on its peak is that of scrapes.
    fs::write(format!("/proc/{}/clear_refs", process.0.id()), "5")?;
    let (mut plain, mut gzip) = (Scrapes::default(), Scrapes::default());
    let mut text = Vec::new();
    for _ in 0..SCRAPES {
        text = plain.scrape(&process, address, "")?;
        gzip.scrape(&process, address, "Accept-Encoding: gzip\r\n")?;
    }
    let between = status_bytes(&process, "VmRSS:")?;
    let peak = status_bytes(&process, "VmHWM:")?;
    let text = String::from_utf8(text)?;
    let counted = |line: &&str| {
        line.starts_with(
            "sentry_tcp_handshake_duration_seconds_count{namespace=\"shop\",pod=\"web-",
        ) && line.contains("role=\"client\"")
            && line.ends_with(" 1")
    };
    let named = text.lines().filter(counted).count();
    ensure!(named == PODS as usize, "{named} of {PODS} pods are named");

    let mut table = Table::new(
        &format!("{PODS} pods on a node"),
        format!(
            "One container each, one connect from each; `--probes tcp,disk --series.max 4096`; {SCRAPES} scrapes, \
             {STARTS} starts: median, least and greatest."
        ),
        &["what", "measured"],
    );
    #[allow(clippy::cast_precision_loss)] // some megabytes, some scrapes
    for (what, scrapes) in [("text", &plain), ("gzip", &gzip)] {
        let cpu = scrapes.cpu * 10.0 / SCRAPES as f64;
        let size = scrapes.bytes as f64 / 1e6;
        for (part, value) in [
            ("to the first byte", measured(&scrapes.first_byte, "ms", 1)),
            ("whole", measured(&scrapes.whole, "ms", 1)),
            ("CPU time of the agent", measured(&[cpu], "ms", 1)),
            ("size", measured(&[size], "MB", 2)),
        ] {
            table.row(format!("scrape, {what}: {part}"), vec![value.into()]);
        }
    }
    let megabytes = |bytes: f64| -> Vec<Cell> { vec![measured(&[bytes / 1e6], "MB", 1).into()] };
    table.row("resident, before any connect", megabytes(idle));
    table.row("resident, between scrapes", megabytes(between));
    table.row("resident, at most while scraped", megabytes(peak));
    table.row("resident, at most while it starts", megabytes(from_start));
    table.row("start to `/readyz`", vec![measured(&ready, "ms", 0).into()]);
    table.row(
        "start to all pods known",
        vec![measured(&synced, "ms", 0).into()],
    );
    table.want(
        "a scrape as text in under 50 ms",
        measured(&plain.whole, "ms", 1).median() < 50.0,
    );
    table.want("at most 25 MB resident while scraped", peak <= 25e6);
    results.add(table)
}
