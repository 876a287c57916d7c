//! The guest's init: makes a machine of a bare kernel, does what the plan says, and switches it off.

use crate::plan::{
    BTF_COPY, CHECK, DEMO_PORT, DISK, FAILED, PLAN, Plan, SLOW_DISK, Task, end_line,
};
use anyhow::{Context, bail, ensure};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Resource, Rlimit, Signal, WaitOptions, kill_process, setrlimit, wait};
use rustix::system::{RebootCommand, init_module, reboot, sethostname};
use std::ffi::CStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Where programs are.
const PATH: &str = "/bin";

/// How long the agent may take to serve: an emulated CPU is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Trees of version 1, each with its controllers.
const V1_TREES: [&str; 6] = [
    "blkio",
    "cpu,cpuacct",
    "cpuset",
    "devices",
    "memory",
    "pids",
];

/// What process 1 does: it starts the worker, buries whoever dies, and powers the machine off when the worker is done.
pub fn init() {
    let code = match worker() {
        Ok(code) => code,
        Err(error) => {
            println!("{FAILED} init: {error:#}");
            1
        }
    };
    println!("\n{}", end_line(code));
    let _ = std::io::stdout().flush();
    let _ = reboot(RebootCommand::PowerOff);
    // The kernel panics when process 1 ends, and the host sees that.
}

fn worker() -> anyhow::Result<i32> {
    let worker = Command::new("/init")
        .arg("work")
        .env_clear()
        .envs([("PATH", PATH), ("HOME", "/root"), ("TMPDIR", "/tmp")])
        .stdin(Stdio::null())
        .spawn()?;
    let worker = worker.id();
    loop {
        if let Some((pid, status)) = wait(WaitOptions::empty())?
            && pid.as_raw_nonzero().get().unsigned_abs() == worker
        {
            return Ok(status.exit_status().unwrap_or(1));
        }
    }
}

/// What the worker does.
///
/// # Errors
/// When something that was to be done could not be, or a test failed.
pub fn work() -> anyhow::Result<()> {
    mount_at("proc", "/proc", "proc", None)?;
    let plan = fs::read(PLAN).context(PLAN)?;
    let plan: Plan = serde_json::from_slice(&plan).context(PLAN)?;
    furnish(&plan)?;
    match &plan.task {
        Task::Test {
            program,
            filters,
            except,
        } => test(&plan, program, filters, except),
        Task::Demo => demo(&plan),
    }
}

fn mount_at(kind: &str, path: &str, source: &str, options: Option<&CStr>) -> anyhow::Result<()> {
    fs::create_dir_all(path).context(path.to_owned())?;
    mount(source, path, kind, MountFlags::empty(), options)
        .with_context(|| format!("mount {kind} at {path}"))
}

/// Makes of a bare kernel what programs expect of a machine.
fn furnish(plan: &Plan) -> anyhow::Result<()> {
    mount_at("sysfs", "/sys", "sysfs", None)?;
    // Older kernels hang in a machine that counts instructions when they start other CPUs while they boot.
    for entry in fs::read_dir("/sys/devices/system/cpu")?.flatten() {
        let online = entry.path().join("online");
        if fs::read_to_string(&online).is_ok_and(|text| text.trim() == "0") {
            fs::write(&online, "1").with_context(|| online.display().to_string())?;
        }
    }
    mount_at("devtmpfs", "/dev", "devtmpfs", None)?;
    mount_at("tmpfs", "/dev/shm", "tmpfs", None)?;
    mount_at("devpts", "/dev/pts", "devpts", None)?;
    mount_at("securityfs", "/sys/kernel/security", "securityfs", None)?;
    mount_at("bpf", "/sys/fs/bpf", "bpf", None)?;
    // A locked-down kernel may refuse it, and the agent must get along.
    if let Err(error) = mount_at("tracefs", "/sys/kernel/tracing", "tracefs", None) {
        println!("{error:#}");
    }
    if plan.cgroup_v1 {
        mount_at("tmpfs", "/sys/fs/cgroup", "tmpfs", None)?;
        for controllers in V1_TREES {
            let path = format!("/sys/fs/cgroup/{controllers}");
            let options = std::ffi::CString::new(controllers)?;
            // Which controllers a kernel still has in version 1 differs; which there are, the agent sees.
            if let Err(error) = mount_at("cgroup", &path, "cgroup", Some(&options)) {
                fs::remove_dir(&path)?;
                println!("{error:#}");
            }
        }
    } else {
        mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", None)?;
    }
    for folder in ["/run", "/tmp", "/root"] {
        fs::create_dir_all(folder)?;
    }
    for module in &plan.modules {
        let image = fs::read(module).with_context(|| module.display().to_string())?;
        init_module(&image, c"").with_context(|| format!("load {}", module.display()))?;
    }
    // As a service manager does for the agent: before 5.11 maps are charged to it.
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    setrlimit(Resource::Memlock, unlimited).context("RLIMIT_MEMLOCK")?;
    sethostname(b"sentry-vm")?;
    run("ip", &["link", "set", "lo", "up"])?;
    if plan.hide_btf {
        fs::copy("/sys/kernel/btf/vmlinux", BTF_COPY)?;
        mount_at("tmpfs", "/sys/kernel/btf", "tmpfs", None)?;
    }
    Ok(())
}

fn run(program: &str, args: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(program).args(args).status();
    let status = status.with_context(|| program.to_owned())?;
    ensure!(status.success(), "{program} {}: {status}", args.join(" "));
    Ok(())
}

/// The block device with this serial number.
fn disk(serial: &str) -> anyhow::Result<PathBuf> {
    let started = Instant::now();
    loop {
        for entry in fs::read_dir("/sys/block")?.flatten() {
            let found = fs::read_to_string(entry.path().join("device/serial"));
            let device = Path::new("/dev").join(entry.file_name());
            if found.is_ok_and(|found| found.trim() == serial) && device.exists() {
                return Ok(device);
            }
        }
        // NVMe devices are looked for in the background.
        ensure!(started.elapsed() < PATIENCE, "no disk {serial:?}");
        sleep(Duration::from_millis(50));
    }
}

fn test(plan: &Plan, program: &Path, filters: &[String], except: &[String]) -> anyhow::Result<()> {
    let disks = [
        ("SENTRY_TEST_DISK", disk(DISK)?),
        ("SENTRY_TEST_SLOW_DISK", disk(SLOW_DISK)?),
    ];
    let mut failures = Vec::new();
    let works = check(plan)?;
    if works && let Err(error) = alone(&plan.sentry) {
        failures.push(format!("the agent alone: {error:#}"));
    }
    if !filters.is_empty() {
        let status = Command::new(program)
            .args(filters)
            .args(except.iter().flat_map(|name| ["--skip", name]))
            .args(["--test-threads=1", "--nocapture"])
            .envs(disks)
            .env("SENTRY_GPU_WORKLOAD", &plan.gpu)
            .envs(plan.hide_btf.then_some(("SENTRY_TEST_BTF", BTF_COPY)))
            .status()
            .with_context(|| program.display().to_string())?;
        if !status.success() {
            failures.push(format!("tests: {status}"));
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    kernel_log();
    bail!(failures.join("; "))
}

/// Prints what `sentry check` says, for the reader and for the host; whether a probe works.
fn check(plan: &Plan) -> anyhow::Result<bool> {
    let sentry = || Command::new(&plan.sentry);
    sentry().arg("check").status().context("sentry check")?;
    let output = sentry().args(["check", "--format", "json"]).output()?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("sentry check: {}", output.status))?;
    println!("{CHECK} {report}");
    Ok(output.status.success())
}

/// Runs the agent in a root file system that holds nothing but its program, `/proc` and `/sys`.
fn alone(sentry: &Path) -> anyhow::Result<()> {
    let root = "/run/alone";
    for folder in ["proc", "sys"] {
        let path = format!("{root}/{folder}");
        fs::create_dir_all(&path)?;
        rustix::mount::mount_bind_recursive(format!("/{folder}"), path)?;
    }
    fs::copy(sentry, format!("{root}/sentry"))?;
    let mut agent = Command::new("chroot")
        .args([root, "/sentry", "--log.level", "warn"])
        .env_clear()
        .env("PATH", PATH)
        .spawn()?;
    let served = serves(&mut agent);
    let pid = Pid::from_child(&agent);
    kill_process(pid, Signal::TERM)?;
    let status = agent.wait()?;
    served?;
    ensure!(status.success(), "{status}");
    println!("the agent alone in its root: ready, and ended by SIGTERM");
    Ok(())
}

/// Waits until an agent on its usual port is ready.
fn serves(agent: &mut Child) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        if let Some(status) = agent.try_wait()? {
            bail!("ended: {status}");
        }
        if is_ready().unwrap_or(false) {
            return Ok(());
        }
        ensure!(started.elapsed() < PATIENCE, "not ready after {PATIENCE:?}");
        sleep(Duration::from_millis(100));
    }
}

fn is_ready() -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, DEMO_PORT)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200 "))
}

/// Prints the end of what the kernel had to say.
fn kernel_log() {
    // A read would wait for more at its end.
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let Ok(file) = rustix::fs::open("/dev/kmsg", flags, rustix::fs::Mode::empty()) else {
        return;
    };
    let mut file = fs::File::from(file);
    let mut records = Vec::new();
    let mut record = [0; 8192];
    while let Ok(length @ 1..) = file.read(&mut record) {
        let text = String::from_utf8_lossy(&record[..length]);
        if let Some((_, message)) = text.split_once(';') {
            records.push(message.lines().next().unwrap_or_default().to_owned());
        }
    }
    println!("the kernel's last messages:");
    for message in records.iter().rev().take(25).rev() {
        println!("  {message}");
    }
}

/// Serves to the host, with a load that looks like a small node's.
fn demo(plan: &Plan) -> anyhow::Result<()> {
    for line in [
        "link set eth0 up",
        "addr add 10.0.2.15/24 dev eth0",
        "route add default via 10.0.2.2",
    ] {
        run("ip", &line.split(' ').collect::<Vec<_>>())?;
    }
    crate::guest::demo_load::start(&plan.load, &disk(DISK)?)?;
    let mut agent = Command::new(&plan.sentry)
        .args(["--web.listen-address", &format!("0.0.0.0:{DEMO_PORT}")])
        .spawn()?;
    serves(&mut agent)?;
    println!("{READY}");
    let status = agent.wait()?;
    bail!("the agent ended: {status}")
}

/// The line that tells the host that the demo is up.
pub const READY: &str = "sentry-vm: ready";

pub mod demo_load;
