//! The initramfs: the guest's programs, the modules, and the plan.

use crate::archive::Archive;
use crate::kernel::Kernel;
use crate::list::Guest;
use crate::plan::{PLAN, Plan, Task};
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The host's programs that tests call, and those that init does.
const PROGRAMS: [&str; 24] = [
    "biosnoop",
    "blkdiscard",
    "capsh",
    "cat",
    "chroot",
    "dd",
    "id",
    "ip",
    "kill",
    "losetup",
    "ls",
    "mke2fs",
    "mount",
    "nsenter",
    "ps",
    "setpriv",
    "sh",
    "sleep",
    "ss",
    "strace",
    "sysctl",
    "taskset",
    "umount",
    "unshare",
];

/// Where those may be, besides the user's path: Debian keeps some for root.
const FOLDERS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin";

/// Modules that tests need.
const MODULES: [&str; 7] = [
    "ext4",
    "inet_diag",
    "loop",
    "nvme",
    "tcp_diag",
    "tun",
    "veth",
];
/// Modules of the demo's network.
const NETWORK_MODULES: [&str; 2] = ["virtio_pci", "virtio_net"];

/// What was built for the guests: static programs, at the places where the tests look for them.
#[derive(Debug)]
pub struct Programs {
    /// The folder with `sentry`, `load` and `init`, and `gpu` with the programs on virtual GPUs.
    pub folder: PathBuf,
    /// The kernel tests.
    pub tests: Option<PathBuf>,
}

impl Programs {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// An initramfs for a kernel and a kind of guest.
    ///
    /// # Errors
    /// When something that belongs into it is missing.
    pub fn initramfs(&self, kernel: &Kernel, guest: Guest, task: Task) -> anyhow::Result<Vec<u8>> {
        let mut archive = Archive::default();
        // What init needs before it has mounted anything.
        archive.character_device(Path::new("/dev/console"), 5, 1);
        archive.character_device(Path::new("/dev/null"), 1, 3);
        let gpu = self.path("gpu");
        let mut shared = host_programs()?;
        if self.tests.is_some() {
            let (workload, alone) = (gpu.join("workload"), gpu.join("workload-static"));
            add(&mut archive, &alone, &alone)?;
            shared.push((workload.clone(), workload));
        }
        add_shared(&mut archive, &shared)?;
        add(&mut archive, &self.path("init"), Path::new("/init"))?;
        let (sentry, load) = (self.path("sentry"), self.path("load"));
        for program in [&sentry, &load].into_iter().chain(&self.tests) {
            ensure!(
                !program.starts_with("/dev"),
                "{}: programs below /dev are hidden in the guest",
                program.display()
            );
            add(&mut archive, program, program)?;
        }
        let mut names = MODULES.to_vec();
        if matches!(task, Task::Demo) {
            names.extend(NETWORK_MODULES);
        }
        let mut modules = Vec::new();
        for (name, image) in kernel.modules(&names)? {
            let path = PathBuf::from(format!("/modules/{name}.ko"));
            archive.file(&path, &image);
            modules.push(path);
        }
        let plan = Plan {
            modules,
            cgroup_v1: guest == Guest::CgroupV1,
            hide_btf: guest == Guest::NoBtf,
            sentry,
            load,
            gpu,
            task,
        };
        archive.file(Path::new(PLAN), &serde_json::to_vec(&plan)?);
        Ok(archive.finish())
    }
}

fn add(archive: &mut Archive, from: &Path, to: &Path) -> anyhow::Result<()> {
    let content = fs::read(from).with_context(|| from.display().to_string())?;
    archive.file(to, &content);
    Ok(())
}

/// The host's programs, and where they are in the guest.
fn host_programs() -> anyhow::Result<Vec<(PathBuf, PathBuf)>> {
    let programs = PROGRAMS.iter().map(|name| {
        let program = find(name).with_context(|| format!("the program {name} is missing"))?;
        Ok((program, Path::new("/bin").join(name)))
    });
    programs.collect()
}

/// Adds programs with the libraries that they need.
fn add_shared(archive: &mut Archive, programs: &[(PathBuf, PathBuf)]) -> anyhow::Result<()> {
    let mut libraries = BTreeSet::new();
    for (from, to) in programs {
        let output = Command::new("ldd").arg(from).output();
        let output = output.context("ldd cannot be run")?;
        libraries.extend(libraries_of(&String::from_utf8_lossy(&output.stdout)));
        add(archive, from, to)?;
    }
    for library in libraries {
        add(archive, &library, &library)?;
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let folders = path.split(':').chain(FOLDERS.split(':'));
    folders
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.is_absolute() && path.is_file())
}

/// The files that `ldd` names.
fn libraries_of(text: &str) -> impl Iterator<Item = PathBuf> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| word.starts_with('/')).map(PathBuf::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries_of(text).collect::<Vec<_>>(),
            [
                PathBuf::from("/lib/x86_64-linux-gnu/libc.so.6"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert_eq!(libraries_of("\tnot a dynamic executable\n").count(), 0);
    }
}
