//! How much slower whole workloads become while something is attached.
//!
//! A load runs on and on. Slices of its time with something attached alternate with slices of nothing attached, and
//! each is held against the mean of its two neighbours, so that a machine that becomes slower or faster meanwhile
//! changes little. "Off again" goes the same way, with nothing attached: what it shows is noise.

use std::{
    any::Any,
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sentry_bench::{cpu, sandbox::LoopDevice};

use crate::{
    Args, PATIENCE, Process, agent, attach_empty, collect, get,
    gpu::{Launches, UP},
    results::{Cell, Measured, Results, Table, measured},
    rezolus::rezolus,
    sum,
};

/// What is left alone after attaching and after letting go.
const SETTLE: Duration = Duration::from_millis(60);

/// How long a load runs before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// Of the loop device under fio.
const DEVICE_BYTES: u64 = 64 << 20;

/// What one operation of a load took in a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice {
    /// The slice's length by the operations that were done in it.
    pub(crate) wall_ns: f64,
    /// What its processes ran for each operation, for disks the kernel's threads among them.
    pub(crate) cpu_ns: f64,
}

/// Something that runs on and on.
pub(crate) trait Load {
    /// Measures it for so long.
    fn slice(&mut self, length: Duration) -> Result<Slice>;
}

/// What can be attached beside a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contender {
    Off,
    Empty,
    Sentry,
    Tcplife,
    TcpLine,
    Biolatency,
    Biosnoop,
    DiskLine,
    Rezolus,
    GpuEmpty,
    GpuSentry,
    GpuLine,
}

impl Contender {
    /// Whether it is another tool.
    fn is_peer(self) -> bool {
        matches!(
            self,
            Self::Tcplife
                | Self::TcpLine
                | Self::Biolatency
                | Self::Biosnoop
                | Self::DiskLine
                | Self::Rezolus
                | Self::GpuLine
        )
    }

    fn text(self) -> &'static str {
        match self {
            Self::Off => "nothing, again",
            Self::Empty => "empty programs on `inet_sock_set_state` and `block_rq_complete`",
            Self::Sentry | Self::GpuSentry => "Sentry, default settings without a budget",
            Self::Tcplife => "tcplife of libbpf-tools",
            Self::TcpLine => "bpftrace, states counted",
            Self::Biolatency => "biolatency of libbpf-tools",
            Self::Biosnoop => "biosnoop of libbpf-tools",
            Self::DiskLine => "bpftrace, a histogram from issue to completion",
            Self::Rezolus => "Rezolus, all samplers",
            Self::GpuEmpty => "empty programs on the functions of the runtime",
            Self::GpuLine => "bpftrace, launches counted",
        }
    }
}

const TCP: [Contender; 6] = [
    Contender::Off,
    Contender::Empty,
    Contender::Sentry,
    Contender::Tcplife,
    Contender::TcpLine,
    Contender::Rezolus,
];
const DISK: [Contender; 7] = [
    Contender::Off,
    Contender::Empty,
    Contender::Sentry,
    Contender::Biolatency,
    Contender::Biosnoop,
    Contender::DiskLine,
    Contender::Rezolus,
];
const GPU: [Contender; 4] = [
    Contender::Off,
    Contender::GpuEmpty,
    Contender::GpuSentry,
    Contender::GpuLine,
];

const TCP_LINE: &str = "tracepoint:sock:inet_sock_set_state { @[args->newstate] = count(); }";
const DISK_LINE: &str = "tracepoint:block:block_rq_issue { @start[args->dev, args->sector] = nsecs; } \
     tracepoint:block:block_rq_complete /@start[args->dev, args->sector]/ { \
     @us = hist((nsecs - @start[args->dev, args->sector]) / 1000); \
     delete(@start[args->dev, args->sector]); }";

pub(crate) fn all(bin: &Path, args: &Args, results: &mut Results) -> Result<()> {
    let (mut failed, mut titles) = (Vec::new(), Vec::new());
    let mut one = |title: &str,
                   what: &str,
                   operation: &str,
                   contenders: &[Contender],
                   start: &dyn Fn() -> Result<Box<dyn Load>>| {
        titles.push(title.to_owned());
        if !args.workload.is_empty() && !args.workload.iter().any(|name| title.contains(name)) {
            return Ok(());
        }
        let table = start()
            .and_then(|load| compare(bin, args, load, contenders))
            .map(|outcome| outcome.table(title, what, operation));
        match table {
            Ok(table) => results.add(table),
            // The other workloads may run nevertheless.
            Err(error) => {
                failed.push(format!("{title}: {error:#}"));
                Ok(())
            }
        }
    };
    one(
        "TCP connect-close storm",
        "One thread connects over loopback and closes with RST, as fast as it goes.",
        "connections",
        &TCP,
        &|| Ok(Box::new(storm(bin)?)),
    )?;
    one(
        "HTTP with keep-alive",
        "wrk, one thread and eight connections, and nginx with one worker, over loopback.",
        "requests",
        &TCP,
        &|| Ok(Box::new(Http::start()?)),
    )?;
    one(
        "Random reads and writes of 4 KiB, direct",
        "fio, four threads, `psync`, half of it reads, on a loop device in memory.",
        "I/Os",
        &DISK,
        &|| Ok(Box::new(Fio::start(true)?)),
    )?;
    one(
        "Random reads and writes of 4 KiB, buffered",
        "The same through the page cache, from which the kernel writes back meanwhile.",
        "I/Os",
        &DISK,
        &|| Ok(Box::new(Fio::start(false)?)),
    )?;
    one(
        "CUDA launch loop",
        "Launches on the stand-in runtime, with work between them.",
        "launches",
        &GPU,
        &|| Ok(Box::new(Launches::start(bin)?)),
    )?;
    if let Some(unknown) = args
        .workload
        .iter()
        .find(|name| !titles.iter().any(|title| title.contains(*name)))
    {
        bail!(
            "--workload {unknown}: allowed is a part of {}",
            titles.join(", ")
        );
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// What the pairs of a workload showed.
struct Outcome {
    /// Operations a second with nothing attached.
    rates: Vec<f64>,
    /// By how many percent the load became slower, by its time and by its processor's time, in each pair.
    slower: BTreeMap<Contender, [Vec<f64>; 2]>,
    /// What could not be attached, and why.
    missing: BTreeMap<Contender, String>,
    contenders: Vec<Contender>,
    slice: Duration,
}

/// Takes the pairs.
fn compare(
    bin: &Path,
    args: &Args,
    mut load: Box<dyn Load>,
    contenders: &[Contender],
) -> Result<Outcome> {
    let length = Duration::from_millis(args.slice_ms.get());
    let mut outcome = Outcome {
        rates: Vec::new(),
        slower: BTreeMap::new(),
        missing: BTreeMap::new(),
        contenders: contenders.to_vec(),
        slice: length,
    };
    load.slice(WARM_UP)?;
    let mut before = load.slice(length)?;
    for pair in 0..args.pairs.get() {
        let mut order = contenders.to_vec();
        order.rotate_left(pair % contenders.len());
        for contender in order {
            // Others' tools take longer to attach, and need to be known less well.
            let is_left_out = pair % 2 == 1 && contender.is_peer();
            if is_left_out || outcome.missing.contains_key(&contender) {
                continue;
            }
            let attached = match attach(contender, bin) {
                Ok(attached) => attached,
                // A peer that cannot run here; without the others there is nothing to say.
                Err(error) if contender.is_peer() => {
                    outcome.missing.insert(contender, format!("{error:#}"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            thread::sleep(SETTLE);
            let on = load.slice(length)?;
            drop(attached);
            thread::sleep(SETTLE);
            let after = load.slice(length)?;
            outcome.rates.push(1e9 / after.wall_ns);
            let slower = |on: f64, before: f64, after: f64| {
                (on / f64::midpoint(before, after) - 1.0) * 100.0
            };
            let [wall, cpu] = outcome.slower.entry(contender).or_default();
            wall.push(slower(on.wall_ns, before.wall_ns, after.wall_ns));
            cpu.push(slower(on.cpu_ns, before.cpu_ns, after.cpu_ns));
            before = after;
        }
    }
    Ok(outcome)
}

impl Outcome {
    fn table(&self, title: &str, what: &str, operation: &str) -> Table {
        let mut table = Table::new(
            &format!("Workload: {title}"),
            format!(
                "{what} {:.0} {operation} a second with nothing attached. Slices of {} ms; medians of pairs with their \
                 quartiles, and where the median of endless pairs is with 95 % probability.",
                measured(&self.rates, "", 0).median(),
                self.slice.as_millis(),
            ),
            &[
                "attached",
                "slower by",
                "95 %",
                "more CPU time by",
                "95 %",
                "pairs",
            ],
        );
        for contender in &self.contenders {
            if let Some(why) = self.missing.get(contender) {
                table.row(
                    contender.text(),
                    vec![Cell::text(format!("not measured: {why}"))],
                );
                continue;
            }
            let Some([wall, cpu]) = self.slower.get(contender) else {
                continue;
            };
            let wall = measured(wall, "%", 2).quartiles();
            let wall_shown = shown(&wall);
            let pairs = wall.count();
            let cpu = measured(cpu, "%", 2).quartiles();
            let cpu_shown = shown(&cpu);
            table.row(
                contender.text(),
                vec![
                    wall.into(),
                    Cell::text(wall_shown),
                    cpu.into(),
                    Cell::text(cpu_shown),
                    Cell::text(pairs.to_string()),
                ],
            );
        }
        for (place, what) in ["time", "CPU time"].into_iter().enumerate() {
            let of = |contender: Contender| {
                let percent = &self.slower.get(&contender)?[place];
                Some(measured(percent, "%", 2))
            };
            let noise = of(Contender::Off).and_then(|noise| noise.interval());
            let is_quiet = noise.is_some_and(|[least, greatest]| greatest - least < 1.0);
            table.want(
                format!("{what}: the 95 % of nothing against nothing less than 1 % wide"),
                is_quiet,
            );
            let sentry = of(Contender::Sentry).or_else(|| of(Contender::GpuSentry));
            let met = sentry.and_then(|sentry| {
                let surely_more = sentry.interval().is_some_and(|[least, _]| least >= 1.0);
                (is_quiet || surely_more).then(|| sentry.median() < 1.0)
            });
            table.want(format!("{what}: Sentry adds less than 1 %"), met);
        }
        table
    }
}

/// Where the median of endless pairs is.
fn shown(percent: &Measured) -> String {
    percent.interval().map_or_else(
        || "too few pairs".to_owned(),
        |[least, greatest]| format!("{least:.2} to {greatest:.2}"),
    )
}

/// Attaches it, and lets go of it when dropped.
fn attach(contender: Contender, bin: &Path) -> Result<Box<dyn Any>> {
    Ok(match contender {
        Contender::Off => Box::new(()),
        Contender::Empty => Box::new(attach_empty()?),
        Contender::Sentry => {
            let (process, address, _) = agent(bin, &[])?;
            thread::sleep(SETTLE);
            collect(address)?;
            Box::new(process)
        }
        Contender::GpuSentry => {
            let (process, address, _) = agent(bin, &[])?;
            wait_until("the gpu probe finds the program", || {
                get(address, "/metrics").is_ok_and(|metrics| sum(&metrics, UP) > 0.5)
            })?;
            thread::sleep(SETTLE);
            collect(address)?;
            Box::new(process)
        }
        Contender::Tcplife => Box::new(peer(&["tcplife"])?),
        Contender::TcpLine => Box::new(peer(&["bpftrace", "-e", TCP_LINE])?),
        Contender::Biolatency => Box::new(peer(&["biolatency", "3600"])?),
        Contender::Biosnoop => Box::new(peer(&["biosnoop"])?),
        Contender::DiskLine => Box::new(peer(&["bpftrace", "-e", DISK_LINE])?),
        Contender::Rezolus => Box::new(rezolus(bin)?),
        Contender::GpuEmpty => Box::new(Launches::empty(bin)?),
        Contender::GpuLine => {
            let library = Launches::library(bin)?;
            let line = format!(
                "uprobe:{}:cudaLaunchKernel {{ @ = count(); }}",
                library.display()
            );
            Box::new(peer(&["bpftrace", "-e", &line])?)
        }
    })
}

/// A command whose process ends with this one, whatever this one ends by.
pub(crate) fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM"]).arg(program);
    command.stdin(Stdio::null());
    command
}

/// Another tool. It is killed, for some are asked in vain to end; the kernel takes away what they have attached.
pub(crate) struct Peer(pub(crate) Process);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.0.kill();
    }
}

/// Starts another tool that attaches programs, and waits until they are. Its output goes nowhere.
pub(crate) fn peer(command: &[&str]) -> Result<Peer> {
    let mut child = mortal(command[0])
        .args(&command[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("setpriv of util-linux cannot be run")?;
    let said = Arc::new(Mutex::new(Vec::new()));
    let stderr = child.stderr.take().context("no standard error")?;
    let into = Arc::clone(&said);
    let reader = thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            into.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(line);
        }
    });
    let mut peer = Peer(Process(child));
    let started = Instant::now();
    let mut descriptors = (0, Instant::now());
    while started.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(10));
        if let Some(status) = peer.0.0.try_wait()? {
            let _ = reader.join();
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            // bpftrace says so where it may not raise a limit, and goes on.
            let mut lines = said.iter().filter(|line| !line.contains("MEMLOCK"));
            let why = lines.next().cloned().unwrap_or_else(|| status.to_string());
            bail!("it does not attach: {why}");
        }
        // It says nothing in common with the others once it is attached; it only opens no more.
        let (all, attached) = attachments(peer.0.0.id())?;
        if all != descriptors.0 {
            descriptors = (all, Instant::now());
        }
        if attached && descriptors.1.elapsed() > Duration::from_millis(100) {
            return Ok(peer);
        }
    }
    bail!("it did not attach within {} s", PATIENCE.as_secs())
}

/// The open descriptors of a process, and whether one of them attaches a program.
fn attachments(pid: u32) -> Result<(usize, bool)> {
    let (mut all, mut attached) = (0, false);
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        all += 1;
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        attached |= ["bpf_link", "perf_event", "bpf-raw-tracepoint"]
            .iter()
            .any(|kind| target.contains(kind));
    }
    Ok((all, attached))
}

/// Nanoseconds that the threads of a process have run.
pub(crate) fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        // A thread may have ended meanwhile.
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        sum += text
            .split(' ')
            .next()
            .and_then(|ns| ns.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(sum)
}

/// The kernel's own threads, which do some of a disk's work.
fn kernel_threads() -> Result<Vec<u32>> {
    // All of them are children of kthreadd.
    let is_one = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields);
        fields.and_then(|fields| fields.split(' ').nth(1)) == Some("2")
    };
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry.file_name().to_string_lossy().parse().ok();
        threads.extend(pid.filter(|&pid| is_one(pid)));
    }
    Ok(threads)
}

/// Measures a slice by a count that only rises, and by the processor's time of the processes that do the work.
#[allow(clippy::cast_precision_loss)] // some seconds
fn slice_of(
    length: Duration,
    processes: impl Fn() -> Result<Vec<u32>>,
    count: impl Fn() -> Result<u64>,
) -> Result<Slice> {
    let cpu = || -> Result<BTreeMap<u32, u64>> {
        let processes = processes()?.into_iter();
        // One may have ended since it was listed.
        Ok(processes
            .filter_map(|pid| Some((pid, cpu_ns(pid).ok()?)))
            .collect())
    };
    let (cpu_before, start, before) = (cpu()?, Instant::now(), count()?);
    thread::sleep(length);
    let (took, after, cpu_after) = (start.elapsed(), count()?, cpu()?);
    ensure!(after > before, "the load does nothing");
    let done = (after - before) as f64;
    let ran: u64 = cpu_after
        .iter()
        .map(|(pid, ns)| ns.saturating_sub(cpu_before.get(pid).copied().unwrap_or(0)))
        .sum();
    Ok(Slice {
        wall_ns: took.as_nanos() as f64 / done,
        cpu_ns: ran as f64 / done,
    })
}

/// A command in a network namespace of its own, which is gone with its last process.
fn in_namespace() -> Command {
    let mut command = mortal("unshare");
    command.args(["--net", "sh", "-c"]);
    command.args(["ip link set lo up && exec \"$@\"", "sh"]);
    command
}

/// Connects over the loopback of its own namespace, whose kernel counts them.
struct Storm(Process);

fn storm(bin: &Path) -> Result<Storm> {
    let child = in_namespace()
        .arg(bin.join("load"))
        .args(["storm", "--self", "--pin-cpus", "--seconds", "100000"])
        .stdout(Stdio::null())
        .spawn()?;
    let storm = Storm(Process(child));
    wait_until("the storm begins", || {
        storm.connects().is_ok_and(|connects| connects > 0)
    })?;
    Ok(storm)
}

impl Storm {
    fn connects(&self) -> Result<u64> {
        let pid = self.0.0.id();
        let own = fs::read_link("/proc/self/ns/net")?;
        let its = fs::read_link(format!("/proc/{pid}/ns/net"))?;
        ensure!(own != its, "it is in no namespace of its own");
        let text = fs::read_to_string(format!("/proc/{pid}/net/snmp"))?;
        let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
        let (names, values) = (lines.next(), lines.next());
        let (names, values) = (names.context("no names")?, values.context("no values")?);
        let mut pairs = names.split(' ').zip(values.split(' '));
        let (_, opens) = pairs
            .find(|(name, _)| *name == "ActiveOpens")
            .context("no ActiveOpens")?;
        Ok(opens.parse()?)
    }
}

impl Load for Storm {
    fn slice(&mut self, length: Duration) -> Result<Slice> {
        slice_of(length, || Ok(vec![self.0.0.id()]), || self.connects())
    }
}

/// Waits for a state of a process that has just been started.
fn wait_until(what: &str, mut is: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !is() {
        ensure!(
            started.elapsed() < PATIENCE,
            "{what}: not within {} s",
            PATIENCE.as_secs()
        );
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What a process has read and written so far, in calls.
fn io_calls(pid: u32) -> Result<[u64; 2]> {
    let path = format!("/proc/{pid}/io");
    let text = fs::read_to_string(&path).context(path)?;
    let of = |key: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        Ok(line.with_context(|| format!("no {key}"))?.trim().parse()?)
    };
    Ok([of("syscr:")?, of("syscw:")?])
}

/// A folder that is gone when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// wrk and nginx, in a network namespace of their own. In this order they end.
struct Http {
    wrk: Process,
    nginx: Process,
    _folder: Folder,
}

impl Http {
    fn start() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("sentry-bench-http-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let guard = Folder(folder.clone());
        let at = folder.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {at}/{name};\n"))
            .concat();
        // One process, that ends with this one.
        let text = format!(
            "daemon off;\nmaster_process off;\npid {at}/pid;\nerror_log stderr;\n\
             events {{ worker_connections 256; }}\n\
             http {{\naccess_log off;\n{temporary}keepalive_requests 1000000000;\n\
             server {{ listen 127.0.0.1:8080; location / {{ return 200 \"hello\\n\"; }} }}\n}}\n"
        );
        let configuration = folder.join("nginx.conf");
        fs::write(&configuration, text)?;
        let child = in_namespace()
            .args(["nginx", "-e", "stderr", "-p"])
            .arg(&folder)
            .arg("-c")
            .arg(&configuration)
            .stdout(Stdio::null())
            .spawn()?;
        let nginx = Process(child);
        let pid = nginx.0.id();
        let own = fs::read_link("/proc/self/ns/net")?;
        wait_until("nginx listens", || {
            let its = fs::read_link(format!("/proc/{pid}/ns/net"));
            let sockets = fs::read_to_string(format!("/proc/{pid}/net/tcp"));
            // Port 8080, state LISTEN.
            its.is_ok_and(|its| its != own)
                && sockets.is_ok_and(|text| text.contains(":1F90 00000000:0000 0A"))
        })?;
        let child = mortal("nsenter")
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .args(["wrk", "-t1", "-c8", "-d24h", "http://127.0.0.1:8080/"])
            .stdout(Stdio::null())
            .spawn()?;
        let wrk = Process(child);
        let wrk_pid = wrk.0.id();
        wait_until("wrk asks", || {
            fs::read_to_string(format!("/proc/{wrk_pid}/comm")).is_ok_and(|name| name == "wrk\n")
        })?;
        Ok(Self {
            wrk,
            nginx,
            _folder: guard,
        })
    }
}

impl Load for Http {
    fn slice(&mut self, length: Duration) -> Result<Slice> {
        let (wrk, nginx) = (self.wrk.0.id(), self.nginx.0.id());
        // A request is a call to write.
        slice_of(length, || Ok(vec![wrk, nginx]), || Ok(io_calls(wrk)?[1]))
    }
}

/// fio on a loop device. In this order they end.
pub(crate) struct Fio {
    fio: Process,
    _device: LoopDevice,
}

impl Fio {
    /// Half reads, half writes, by four threads.
    fn start(direct: bool) -> Result<Self> {
        let direct = format!("--direct={}", u8::from(direct));
        Self::on(device()?, &[&direct, "--numjobs=4"])
    }

    /// The same, direct, by so many threads on as many CPUs, where their requests complete as well.
    pub(crate) fn pinned(threads: usize) -> Result<Self> {
        let device = device()?;
        let queue = Path::new("/sys/block")
            .join(device.name())
            .join("queue/rq_affinity");
        fs::write(&queue, "2").with_context(|| queue.display().to_string())?;
        let cpus: Vec<String> = cpu::allowed()?
            .iter()
            .take(threads)
            .map(ToString::to_string)
            .collect();
        Self::on(
            device,
            &[
                "--direct=1",
                &format!("--numjobs={threads}"),
                &format!("--cpus_allowed={}", cpus.join(",")),
                "--cpus_allowed_policy=split",
            ],
        )
    }

    fn on(device: LoopDevice, flags: &[&str]) -> Result<Self> {
        let child = mortal("fio")
            .args(["--name=bench", "--rw=randrw", "--bs=4k", "--ioengine=psync"])
            .args(["--thread", "--norandommap", "--time_based", "--runtime=1d"])
            .args(["--eta=never", "--output=/dev/null"])
            .arg(format!("--filename={}", device.path().display()))
            .args(flags)
            .stdout(Stdio::null())
            .spawn()
            .context("setpriv of util-linux cannot be run")?;
        let fio = Process(child);
        let pid = fio.0.id();
        wait_until("fio begins", || {
            io_calls(pid).is_ok_and(|[_, writes]| writes > 1000)
        })?;
        Ok(Self {
            fio,
            _device: device,
        })
    }
}

/// A loop device with all of its memory there, so that no write is the first to its place.
fn device() -> Result<LoopDevice> {
    let device = LoopDevice::new(DEVICE_BYTES)?;
    let mut file = fs::File::options().write(true).open(device.path())?;
    let zeroes = vec![0; 1 << 20];
    for _ in 0..DEVICE_BYTES >> 20 {
        file.write_all(&zeroes)?;
    }
    file.sync_all()?;
    Ok(device)
}

impl Load for Fio {
    fn slice(&mut self, length: Duration) -> Result<Slice> {
        let pid = self.fio.0.id();
        let processes = || {
            let mut processes = kernel_threads()?;
            processes.push(pid);
            Ok(processes)
        };
        slice_of(length, processes, || Ok(io_calls(pid)?.iter().sum()))
    }
}
