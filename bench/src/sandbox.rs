//! What a test may disturb as it likes, and that is gone when its guard is dropped: network namespaces, cgroups and
//! loop devices. Names carry the process id, so that tests may run at the same time. All of it needs root.

use crate::{Error, Result, cgroup};
use rustix::fs::{major, minor};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A name that nothing else has now.
fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{count}", std::process::id())
}

/// Runs a program to its end; its standard output, without the last line's end.
fn output<S: AsRef<OsStr>>(program: &str, args: &[S]) -> Result<String> {
    let words: Vec<_> = args
        .iter()
        .map(|arg| arg.as_ref().to_string_lossy())
        .collect();
    let called = format!("{program} {}", words.join(" "));
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(Error::io(called.as_str()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::program(
        called,
        format!("{}: {}", output.status, said.trim()),
    ))
}

/// A network namespace of one's own, with loopback up. Removed on drop, with the interfaces in it.
#[derive(Debug)]
pub struct Netns(String);

impl Netns {
    /// Makes one, with `ip`.
    ///
    /// # Errors
    /// When `ip` is missing or this process is not root.
    pub fn new(name: &str) -> Result<Self> {
        let name = unique(name);
        output("ip", &["netns", "add", &name])?;
        let netns = Self(name);
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its name, as `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Runs `ip` with these arguments in it; what it printed.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        output("ip", &[&["-n", &self.0], args].concat())
    }

    /// A command that runs in it. Unlike with `ip netns exec`, mounts under `/sys` such as cgroups stay as they are.
    pub fn command<S: AsRef<OsStr>>(&self, program: S) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.0))
            .arg("--")
            .arg(program);
        command
    }

    /// Sets a sysctl of its own, such as `net.ipv4.tcp_syn_retries`.
    ///
    /// # Errors
    /// When there is no such sysctl, or it refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let namespace = format!("--net=/run/netns/{}", self.0);
        let script = "printf %s \"$1\" >\"$2\"";
        output(
            "nsenter",
            &[
                namespace.as_str(),
                "--",
                "sh",
                "-c",
                script,
                "sh",
                value,
                &path,
            ],
        )
        .map(drop)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        report(output("ip", &["netns", "delete", &self.0]));
    }
}

/// A cgroup of one's own. On drop its other members are killed, and it is removed with all cgroups in it.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one in a directory of cgroupfs, v1 or v2.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(root: &Path, name: &str) -> Result<Self> {
        let path = root.join(unique(name));
        cgroup::create(&path)?;
        Ok(Self(path))
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its number in its hierarchy, as eBPF programs see it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn id(&self) -> Result<u64> {
        let metadata = fs::metadata(&self.0).map_err(Error::at("look at", &self.0))?;
        Ok(metadata.ino())
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// When there is no such process, or the kernel refuses.
    pub fn add(&self, pid: u32) -> Result<()> {
        cgroup::add(&self.0, pid)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let outside = self.0.parent().unwrap_or(Path::new("/")).to_owned();
        report(empty_and_remove(&self.0, &outside));
    }
}

/// Removes a cgroup and those in it. This process is moved outside, any other member killed.
fn empty_and_remove(cgroup: &Path, outside: &Path) -> Result<()> {
    let entries = fs::read_dir(cgroup).map_err(Error::at("list", cgroup))?;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            empty_and_remove(&entry.path(), outside)?;
        }
    }
    let members = cgroup.join("cgroup.procs");
    let text = fs::read_to_string(&members).map_err(Error::at("read", &members))?;
    for pid in text.lines().filter_map(|line| line.parse::<i32>().ok()) {
        if pid.cast_unsigned() == std::process::id() {
            cgroup::add(outside, 0)?;
        } else if let Some(pid) = Pid::from_raw(pid) {
            // It may have ended since.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    cgroup::remove(cgroup)
}

/// A loop device on a sparse file. Detached on drop, and the file removed.
#[derive(Debug)]
pub struct LoopDevice {
    file: PathBuf,
    device: PathBuf,
}

impl LoopDevice {
    /// Makes one of so many bytes in memory (`/dev/shm`), where reads take little time.
    ///
    /// # Errors
    /// When the file cannot be made or `losetup` fails.
    pub fn new(size_bytes: u64) -> Result<Self> {
        Self::new_in(Path::new("/dev/shm"), size_bytes)
    }

    /// Makes one on a file in this directory.
    ///
    /// # Errors
    /// When the file cannot be made or `losetup` fails.
    pub fn new_in(directory: &Path, size_bytes: u64) -> Result<Self> {
        let file = directory.join(unique("loop-file"));
        // From here on the guard removes the file, whatever fails next.
        let mut guard = Self {
            file,
            device: PathBuf::new(),
        };
        File::create_new(&guard.file)
            .and_then(|file| file.set_len(size_bytes))
            .map_err(Error::at("make", &guard.file))?;
        let args = ["--find".as_ref(), "--show".as_ref(), guard.file.as_os_str()];
        guard.device = PathBuf::from(output("losetup", &args)?);
        Ok(guard)
    }

    /// The block device, such as `/dev/loop0`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.device
    }

    /// Its name, such as `loop0`.
    #[must_use]
    pub fn name(&self) -> &str {
        let name = self.device.file_name().and_then(OsStr::to_str);
        name.unwrap_or_default()
    }

    /// Its major and minor number.
    ///
    /// # Errors
    /// When it is gone.
    pub fn number(&self) -> Result<(u32, u32)> {
        let metadata = fs::metadata(&self.device).map_err(Error::at("look at", &self.device))?;
        Ok((major(metadata.rdev()), minor(metadata.rdev())))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if !self.device.as_os_str().is_empty() {
            report(output(
                "losetup",
                &["--detach".as_ref(), self.device.as_os_str()],
            ));
        }
        report(fs::remove_file(&self.file).map_err(Error::at("remove", &self.file)));
    }
}

/// A guard cannot fail, but what it leaves behind is said.
fn report<T>(result: Result<T>) {
    if let Err(error) = result {
        eprintln!("left behind: {error}");
    }
}
