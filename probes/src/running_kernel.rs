//! What tests on the running kernel need: root, and room for programs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

use crate::{Kernel, PROBES, Request, load::attach_from};

/// Histograms of the kernels that tests attach to.
pub(crate) const SERIES_MAX: u16 = 1024;

/// A v2 cgroup with this process in it, gone on drop.
pub(crate) struct Cgroup {
    root: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    pub(crate) fn enter(name: &str) -> Self {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .map(Path::new)
            .find(|root| root.join("cgroup.controllers").exists())
            .unwrap();
        let path = root.join(format!("sentry-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("cgroup.procs"), "0").unwrap();
        Self {
            root: root.to_owned(),
            path,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(&self.path).unwrap())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        fs::write(self.root.join("cgroup.procs"), "0").unwrap();
        // Busy until the last thread of this round has left the kernel.
        while let Err(error) = fs::remove_dir(&self.path) {
            assert_eq!(error.kind(), std::io::ErrorKind::ResourceBusy);
            thread::yield_now();
        }
    }
}

/// Keeps other tests waiting: a process is in one cgroup at a time, whatever its threads do.
pub(crate) fn process() -> MutexGuard<'static, ()> {
    static PROCESS: Mutex<()> = Mutex::new(());
    PROCESS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The probes in the kernel, the first with a given variant of its hook; nothing where this
/// process may not put them there.
pub(crate) fn kernel(test: &str, variant: usize) -> Option<Kernel> {
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("SKIPPED {test}: needs root");
        return None;
    }
    let probes: Vec<_> = PROBES.iter().map(|probe| (*probe, None)).collect();
    let request = Request {
        probes: &probes,
        off: &[],
        series_max: SERIES_MAX,
        io_hierarchy: 0,
        task_hierarchy: None,
        btf: None,
        stream: None,
    };
    let kernel = attach_from(&request, variant).map_err(|error| error.to_string());
    Some(kernel.unwrap().0)
}
