//! A machine that QEMU emulates: no KVM and no privileges are needed.

use crate::kernel::Kernel;
use crate::list::Guest;
use crate::plan::{DEMO_PORT, DISK, END, SLOW_DISK};
use anyhow::{Context, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// The program.
const QEMU: &str = "qemu-system-x86_64";

/// Size of each disk.
const DISK_BYTES: u64 = 64 << 20;

/// Requests a second of the slow disk.
const SLOW_REQUESTS: u32 = 20;

/// What a machine is made of.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Its kernel.
    pub kernel: &'a Kernel,
    /// What its first root file system is unpacked from.
    pub initramfs: &'a [u8],
    /// What is peculiar to it.
    pub guest: Guest,
    /// A folder for its files.
    pub folder: &'a Path,
    /// Give it a network card whose port of the agent is the host's.
    pub network: bool,
    /// CPUs.
    pub cpus: usize,
}

impl Machine<'_> {
    /// Switches it on and hands its console to `line`, line by line, until it goes off.
    ///
    /// # Errors
    /// When QEMU cannot be run, or the machine is still on after this time; it is switched off then.
    pub fn run(&self, limit: Option<Duration>, line: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let console = self.folder.join("console.log");
        let mut log = File::create(&console).with_context(|| console.display().to_string())?;
        let mut process = Running(self.start()?);
        let lines = follow(&mut process.0)?;
        let started = Instant::now();
        let mut ended = false;
        loop {
            let left = limit.map_or(Duration::from_secs(3600), |limit| {
                limit.saturating_sub(started.elapsed())
            });
            match lines.recv_timeout(left) {
                Ok(text) => {
                    log.write_all(text.as_bytes())?;
                    ended |= text.contains(END);
                    line(&text);
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if limit.is_none() => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!("still running after {} s", started.elapsed().as_secs())
                }
            }
        }
        let status = process.0.wait()?;
        if !ended && !status.success() {
            bail!("{QEMU}: {status}");
        }
        Ok(())
    }

    fn start(&self) -> anyhow::Result<Child> {
        let initramfs = self.folder.join("initramfs.cpio");
        std::fs::write(&initramfs, self.initramfs)
            .with_context(|| initramfs.display().to_string())?;
        // QEMU goes when this process goes, whatever ends it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU]);
        // Without CMPXCHG16B, which kernels do without: QEMU 7.2 now and then loses the flags after it (5.10 and 6.12
        // ended in a double fault in kmem_cache_alloc(), with a part of RDI for flags).
        command.args([
            "-accel",
            "tcg,thread=single",
            "-cpu",
            "max,-cx16",
            "-m",
            "1G",
        ]);
        // Busy time is counted in instructions, 2 ns each, so that a host with other work to do slows the guest down
        // without the guest noticing.
        command.args(["-icount", "shift=1,sleep=on"]);
        command.args(["-smp", &self.cpus.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.args(["-display", "none", "-serial", "stdio"]);
        command.arg("-kernel").arg(&self.kernel.image);
        command.arg("-initrd").arg(&initramfs);
        command.args(["-append", &kernel_command_line(self.guest)]);
        for (serial, option) in [
            (DISK, String::new()),
            (SLOW_DISK, format!(",throttling.iops-total={SLOW_REQUESTS}")),
        ] {
            let file = self.disk(serial)?;
            let file = file.display().to_string().replace(',', ",,");
            let drive = format!("if=none,id={serial},format=raw,discard=unmap,file={file}{option}");
            command.args(["-drive", &drive]);
            command.args(["-device", &format!("nvme,drive={serial},serial={serial}")]);
        }
        if self.network {
            let user = format!(
                "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{DEMO_PORT}-10.0.2.15:{DEMO_PORT}"
            );
            command.args(["-netdev", &user, "-device", "virtio-net-pci,netdev=net"]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("setpriv cannot be run")
    }

    /// An empty disk.
    fn disk(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(format!("{name}.img"));
        File::create(&path)
            .and_then(|file| file.set_len(DISK_BYTES))
            .with_context(|| path.display().to_string())?;
        Ok(path)
    }
}

fn kernel_command_line(guest: Guest) -> String {
    // Of the kernel's own lines only the worst may break into those of the tests; a panic ends the machine. Init starts
    // the other CPUs.
    let mut line = "console=ttyS0 loglevel=3 panic=-1 nokaslr mitigations=off maxcpus=1".to_owned();
    match guest {
        Guest::LockdownIntegrity => line.push_str(" lockdown=integrity"),
        Guest::LockdownConfidentiality => line.push_str(" lockdown=confidentiality"),
        Guest::Plain | Guest::NoBtf | Guest::CgroupV1 => {}
    }
    line
}

/// A process that is killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that a process prints on either stream.
fn follow(process: &mut Child) -> anyhow::Result<Receiver<String>> {
    let (sender, receiver) = channel();
    let stdout = process.stdout.take().context("no standard output")?;
    let stderr = process.stderr.take().context("no standard error")?;
    let streams: [Box<dyn std::io::Read + Send>; 2] = [Box::new(stdout), Box::new(stderr)];
    for stream in streams {
        let sender = sender.clone();
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream
                .read_until(b'\n', &mut line)
                .is_ok_and(|read| read > 0)
            {
                let text = String::from_utf8_lossy(&line).into_owned();
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_may_be_locked_down() {
        let end = |guest| {
            kernel_command_line(guest)
                .rsplit(' ')
                .next()
                .map(str::to_owned)
        };
        assert_eq!(
            end(Guest::LockdownIntegrity).as_deref(),
            Some("lockdown=integrity")
        );
        assert_eq!(end(Guest::NoBtf).as_deref(), Some("maxcpus=1"));
    }
}
