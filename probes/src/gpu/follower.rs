//! Finds the files with CUDA functions that processes map, and attaches to each once.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::OsStr,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Gpu, Library,
    elf::{Elf, ElfError, Tables},
    file::{self, FileId, open_mapped},
    functions,
    mappings::Watch,
    maps::{self, Mapping},
    programs::{Attachment, Means, Place, Programs, Refused},
    table::Table,
    trace::{Stream, rings},
};
use crate::{PassedOver, Reason, Refusal, StreamFilter, Verdict};

/// How often the users of a file are looked up again: its last one may be gone, or have unmapped it.
const SWEEP: Duration = Duration::from_secs(5);

/// How often procfs is looked through where the kernel does not tell of new mappings.
const POLL: Duration = Duration::from_secs(5);

/// Files known to have nothing to do with CUDA, before they are forgotten: some 150 kB.
const KNOWN_MAX: usize = 4096;

/// How long they are known for: a file may be written anew.
const KNOWN_FOR: Duration = Duration::from_secs(600);

/// Below procfs: there with NVIDIA's kernel module.
const DRIVER: &str = "driver/nvidia";

/// The namespace of processes that the kernel starts with (`PROC_PID_INIT_INO` in
/// `include/linux/proc_ns.h`): the programs number processes as it does.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// A file's names on its disk: device, inode and what tells apart those that had the inode one
/// after the other.
type OnDisk = ((u32, u32), u64, u64);

/// A file with CUDA functions.
#[derive(Debug)]
struct Used {
    library: Library,
    /// `None` where it could not be attached to; it is not tried again.
    attachment: Option<Attachment>,
    /// As the mappings of its users name it.
    on_disk: BTreeSet<((u32, u32), u64)>,
    users: BTreeSet<u32>,
}

/// What a file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It has CUDA functions.
    Cuda,
    /// It has none that can be hooked.
    Other,
    /// It could not be looked at: the process has ended, or may not be looked at.
    Unseen,
}

/// Why a file was not attached to: the label and a sentence.
struct Failure {
    reason: &'static str,
    detail: String,
}

/// Looks for CUDA and attaches to it. Its calls need the capabilities of [`crate::attach()`], and
/// what it takes to look at other processes.
#[derive(Debug)]
pub struct Follower {
    gpu: Arc<Gpu>,
    procfs: PathBuf,
    watch: Option<Watch>,
    used: BTreeMap<FileId, Used>,
    /// Files whose programs are being taken off.
    going: BTreeMap<FileId, JoinHandle<()>>,
    /// Whether records of mappings were lost since the last scan.
    lost: bool,
    known: HashSet<OnDisk>,
    known_since: Instant,
    /// Whether processes have the same numbers here as for the programs.
    sees_all: bool,
    scanned: Option<Instant>,
    swept: Instant,
    /// Whether the probe was off when it last followed.
    rests: bool,
}

impl Follower {
    /// Begins to watch what processes map. What cannot be watched is polled for, and said in the
    /// verdict. `hook` forces one.
    #[must_use]
    pub fn start(procfs: PathBuf, hook: Option<&str>) -> Self {
        let (means, passed_over) = choose(hook);
        let gpu = Gpu::new(means, passed_over);
        let watch = Watch::open().inspect_err(|error| {
            gpu.change(|state| state.unwatched = Some(error.to_string()));
        });
        let namespace = fs::read_link(procfs.join("self/ns/pid"));
        let sees_all = namespace.is_ok_and(|link| link == Path::new(FIRST_PID_NAMESPACE));
        if !sees_all {
            gpu.change(|state| state.confined = true);
        }
        Self {
            gpu: Arc::new(gpu),
            procfs,
            sees_all,
            known_since: Instant::now(),
            watch: watch.ok(),
            used: BTreeMap::new(),
            going: BTreeMap::new(),
            lost: false,
            known: HashSet::new(),
            scanned: None,
            swept: Instant::now(),
            rests: false,
        }
    }

    /// What it finds.
    #[must_use]
    pub fn gpu(&self) -> Arc<Gpu> {
        Arc::clone(&self.gpu)
    }

    /// Loads programs that also send single gaps and failed calls, those that the filter lets through: to be called
    /// before it follows. A ring has so many bytes for each CPU: a power of two, and a page at least. None is sent yet.
    ///
    /// # Errors
    /// When there is no way to attach, or the kernel refuses something.
    pub fn open_events(
        &mut self,
        ring_bytes: u32,
        filter: &StreamFilter,
    ) -> Result<Stream, Refusal> {
        let refused = |detail: String| Refusal {
            verdict: Verdict::Failed,
            reason: Reason::MapError,
            detail,
        };
        let Some(means) = self.gpu.means else {
            let status = self.gpu.status();
            return Err(Refusal {
                verdict: status.verdict,
                reason: status.reason,
                detail: status.detail,
            });
        };
        let rings = rings(ring_bytes)?;
        let mut programs = Programs::load(means, Some(&rings))?;
        let stream = Stream::new(&mut programs, rings, ring_bytes, filter)?;
        let table = Table::new(programs).map_err(|error| refused(error.to_string()))?;
        if self.gpu.table.set(table).is_err() {
            return Err(refused("programs are loaded already".to_owned()));
        }
        Ok(stream)
    }

    /// Takes in what is new; the first call looks through all processes. Waits for news, for that
    /// long at most. While the probe is turned off there is none.
    pub fn follow(&mut self, timeout: Duration) {
        if self.gpu.is_off() {
            self.rest();
            thread::sleep(timeout);
            return;
        }
        if std::mem::take(&mut self.rests) {
            self.watch_anew();
        }
        if self.scanned.is_none() {
            // Where there is a GPU the first program needs not wait for the verifier.
            if self.procfs.join(DRIVER).exists()
                && let Err(failure) = self.load()
            {
                self.gpu.failed(failure.reason, || failure.detail);
            }
            self.scan();
            return;
        }
        let Some(watch) = &mut self.watch else {
            thread::sleep(timeout.min(POLL));
            if self.scanned.is_none_or(|scanned| scanned.elapsed() >= POLL) {
                self.scan();
            }
            return;
        };
        let mut new = Vec::new();
        match watch.wait(timeout.min(SWEEP)) {
            Ok(true) => self.lost |= watch.take(&mut |mapping| new.push(mapping)) > 0,
            Ok(false) => {}
            Err(error) => {
                self.watch = None;
                self.gpu
                    .change(|state| state.unwatched = Some(error.to_string()));
            }
        }
        for mapping in new {
            let on_disk = (mapping.device, mapping.inode, mapping.generation);
            // A process that is not in this process' view cannot be looked at.
            let known = self.known.contains(&on_disk) && self.known_since.elapsed() < KNOWN_FOR;
            if mapping.pid != 0 && !known {
                let pid = mapping.pid;
                self.look(pid, &mapping.mapping(), Some(on_disk));
            }
        }
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
            // Not at once: a scan may take so long that records are lost again.
            if std::mem::take(&mut self.lost) {
                self.scan();
            }
            self.sweep();
        }
    }

    /// Lets go of everything. What processes were at is forgotten: nobody sees how it goes on.
    fn rest(&mut self) {
        self.rests = true;
        self.watch = None;
        self.scanned = None;
        self.release(|_| true);
        // Until then the programs may still run.
        if self.going.is_empty()
            && let Some(table) = self.gpu.table.get()
        {
            table.programs().forget_ends();
            if let Err(error) = table.end_all() {
                self.gpu.failed("table", || error.to_string());
            }
        }
        self.publish();
    }

    fn watch_anew(&mut self) {
        let watch = Watch::open();
        let why = watch.as_ref().err().map(ToString::to_string);
        self.gpu.change(|state| state.unwatched = why);
        self.watch = watch.ok();
        self.lost = false;
    }

    /// Lets go of these files.
    fn release(&mut self, which: impl Fn(&Used) -> bool) {
        let (unused, used): (BTreeMap<FileId, Used>, _) = std::mem::take(&mut self.used)
            .into_iter()
            .partition(|(_, used)| which(used));
        self.used = used;
        for (id, used) in unused {
            let thread = used.attachment.and_then(Attachment::let_go);
            self.going.extend(thread.map(|thread| (id, thread)));
        }
        self.going.retain(|_, thread| !thread.is_finished());
    }

    /// Looks at what all processes map.
    fn scan(&mut self) {
        let mut seen = HashSet::new();
        for pid in processes(&self.procfs) {
            for mapping in executable_mappings(&self.procfs, pid) {
                let file = (mapping.device, mapping.inode);
                let is_cuda = self.is_used(file);
                // Others that map it count as users too, or can be looked through where one cannot.
                if (is_cuda || !seen.contains(&file))
                    && self.look(pid, &mapping, None) == Look::Other
                {
                    seen.insert(file);
                }
            }
        }
        self.scanned = Some(Instant::now());
        self.sweep();
    }

    /// Whether mappings name a file with CUDA functions so.
    fn is_used(&self, file: ((u32, u32), u64)) -> bool {
        self.used.values().any(|used| used.on_disk.contains(&file))
    }

    /// Looks at a file that a process has mapped, and attaches to it if it has CUDA functions.
    /// `key`: how to know it again if it has not.
    fn look(&mut self, pid: u32, mapping: &Mapping, key: Option<OnDisk>) -> Look {
        let file = (mapping.device, mapping.inode);
        let is_library = is_cuda_library(&mapping.path);
        let opened = open_mapped(&self.procfs, pid, mapping);
        let (opened, path) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                // One that is gone, or has unmapped it, has nothing to be seen of any more.
                let still = |mapping: &Mapping| (mapping.device, mapping.inode) == file;
                let mut mappings = executable_mappings(&self.procfs, pid).into_iter();
                if is_library && mappings.any(|mapping| still(&mapping)) {
                    self.gpu
                        .failed("open", || format!("{}: {error}", mapping.path.display()));
                }
                return Look::Unseen;
            }
        };
        let elf = Elf::read(&opened);
        let mut elf = match elf {
            Ok(elf) if is_library || elf.has_cuda_code() => elf,
            Ok(_) | Err(ElfError::NoElf | ElfError::Foreign) => {
                self.forget_about(key);
                return Look::Other;
            }
            Err(error) => {
                if is_library {
                    self.gpu
                        .failed("elf", || format!("{}: {error}", mapping.path.display()));
                }
                self.forget_about(key);
                return Look::Other;
            }
        };
        let Ok(id) = FileId::new(&opened, elf.build_id.as_deref()) else {
            return Look::Unseen;
        };
        // An overlay's file may have another number in `maps` than in the kernel's records.
        let on_disk: BTreeSet<_> = executable_mappings(&self.procfs, pid)
            .into_iter()
            .filter(|also| also.start == mapping.start)
            .map(|also| (also.device, also.inode))
            .chain([file])
            .collect();
        if let Some(used) = self.used.get_mut(&id) {
            used.on_disk.extend(on_disk);
            used.users.insert(pid);
            self.publish();
            return Look::Cuda;
        }
        let tables = if is_library {
            Tables::Dynamic
        } else {
            Tables::All
        };
        let (places, mut library) = match found(&mut elf, tables) {
            Ok(found) => found,
            Err(error) => {
                self.gpu
                    .failed("elf", || format!("{}: {error}", mapping.path.display()));
                self.forget_about(key);
                return Look::Other;
            }
        };
        // A program of nvcc whose runtime is another file, or stripped.
        if places.is_empty() && !is_library {
            self.forget_about(key);
            return Look::Other;
        }
        library.path.clone_from(&mapping.path);
        library.version = file_version(&opened, mapping.file_name());
        // Two at a time would count twice.
        if let Some(thread) = self.going.remove(&id) {
            let _ = thread.join();
        }
        let attachment = match self.attach(&path, &places) {
            Ok(attachment) => Some(attachment),
            Err(failure) => {
                library.error.clone_from(&failure.detail);
                library.hooked.clear();
                library.single_stepped.clear();
                self.gpu.failed(failure.reason, || {
                    format!("{}: {}", mapping.path.display(), failure.detail)
                });
                None
            }
        };
        self.used.insert(
            id,
            Used {
                library,
                attachment,
                on_disk,
                users: BTreeSet::from([pid]),
            },
        );
        self.publish();
        Look::Cuda
    }

    fn forget_about(&mut self, key: Option<OnDisk>) {
        if self.known.len() >= KNOWN_MAX || self.known_since.elapsed() >= KNOWN_FOR {
            self.known.clear();
            self.known_since = Instant::now();
        }
        self.known.extend(key);
    }

    fn attach(&self, path: &Path, places: &[Place]) -> Result<Attachment, Failure> {
        if places.is_empty() {
            return Err(Failure {
                reason: "no_function",
                detail: "it has none of the functions that are hooked".to_owned(),
            });
        }
        self.load()?;
        let Some(table) = self.gpu.table.get() else {
            return Err(Failure {
                reason: "load",
                detail: "the table is gone".to_owned(),
            });
        };
        table
            .programs()
            .attach(path, places)
            .inspect(|_| self.gpu.change(|state| state.attached = true))
            .map_err(|error| failure("attach", &error))
    }

    /// Loads the programs, unless they are.
    fn load(&self) -> Result<(), Failure> {
        if self.gpu.table.get().is_some() {
            return Ok(());
        }
        let means = self.gpu.means.ok_or_else(|| Failure {
            reason: "load",
            detail: "this kernel has no uprobes that can be used".to_owned(),
        })?;
        let programs = Programs::load(means, None).map_err(|error| failure("load", &error))?;
        let table = Table::new(programs).map_err(|error| Failure {
            reason: "load",
            detail: error.to_string(),
        })?;
        let _ = self.gpu.table.set(table);
        Ok(())
    }

    /// Lets go of files whose last user is gone.
    fn sweep(&mut self) {
        let procfs = &self.procfs;
        if let Some(table) = self.gpu.table.get().filter(|_| self.sees_all) {
            let alive = |pid: u32| procfs.join(pid.to_string()).exists();
            if let Err(error) = table.reap(alive) {
                self.gpu.failed("table", || error.to_string());
            }
        }
        if self.used.is_empty() {
            return;
        }
        let users = self
            .used
            .values()
            .flat_map(|used| used.users.iter().copied());
        self.keep_users(users.collect());
        // A child that was forked has the mappings of a parent that is gone, and nobody told.
        if self.used.values().any(|used| used.users.is_empty()) {
            self.keep_users(processes(&self.procfs).into_iter().collect());
        }
        self.release(|used| used.users.is_empty());
        if self.used.is_empty()
            && let Some(table) = self.gpu.table.get()
        {
            table.programs().forget_ends();
        }
        self.publish();
    }

    /// Looks up which of these processes map which file.
    fn keep_users(&mut self, of: BTreeSet<u32>) {
        for used in self.used.values_mut() {
            used.users.clear();
        }
        for pid in of {
            for mapping in executable_mappings(&self.procfs, pid) {
                let file = (mapping.device, mapping.inode);
                for used in self.used.values_mut() {
                    if used.on_disk.contains(&file) {
                        used.users.insert(pid);
                    }
                }
            }
        }
    }

    fn publish(&self) {
        let libraries = self
            .used
            .values()
            .map(|used| Library {
                users: used.users.iter().copied().collect(),
                ..used.library.clone()
            })
            .collect();
        let attached = self.used.values().any(|used| used.attachment.is_some());
        self.gpu.change(|state| {
            state.libraries = libraries;
            state.in_use = attached;
        });
    }
}

fn failure(reason: &'static str, error: &Refused) -> Failure {
    Failure {
        reason: if error.source.kind() == io::ErrorKind::PermissionDenied {
            "permission"
        } else {
            reason
        },
        detail: error.to_string(),
    }
}

/// The best means that this kernel has, or the forced one, and why not the better ones.
fn choose(forced: Option<&str>) -> (Option<Means>, Vec<PassedOver>) {
    let mut passed_over = Vec::new();
    let means = Means::ALL.into_iter();
    for means in means.filter(|means| forced.is_none_or(|forced| forced == means.hook())) {
        let Some(detail) = means.lack() else {
            return (Some(means), passed_over);
        };
        passed_over.push(PassedOver {
            hook: means.hook(),
            why: Refusal {
                verdict: Verdict::Unsupported,
                reason: Reason::NoHook,
                detail,
            },
        });
    }
    (None, passed_over)
}

/// Whether a file is the runtime or the driver by its path. Wheels bring the runtime as
/// `libcudart-d0da41ae.so.11.0` and the like.
fn is_cuda_library(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let is = |library| {
        let rest = name.strip_prefix(library);
        rest.is_some_and(|rest| rest.starts_with(['.', '-']) && rest.contains(".so"))
    };
    // What the shim of WSL2 calls: through both, calls would count twice.
    let beneath_shim = path.to_string_lossy().contains("/wsl/drivers/");
    (is("libcudart") || is("libcuda")) && !beneath_shim
}

/// The version of a library: of the name that its links lead to, where that says more.
fn file_version(file: &File, name: &OsStr) -> String {
    use std::os::fd::AsRawFd;
    let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
    real.as_deref()
        .and_then(Path::file_name)
        .and_then(file::version)
        .or_else(|| file::version(name))
        .unwrap_or_default()
        .to_owned()
}

/// Where to attach in a file, and what to say of it.
fn found(elf: &mut Elf<&File>, tables: Tables) -> Result<(Vec<Place>, Library), ElfError> {
    let names = functions::names();
    let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    let found = elf.functions(tables, &wanted)?;
    let bodies: HashSet<u64> = found
        .iter()
        .flat_map(|function| [function.offset, function.body])
        .collect();
    let mut library = Library::default();
    let mut places: Vec<Place> = Vec::new();
    for function in &found {
        library.found.push(function.name.to_owned());
        // Another name for one that is hooked anyway.
        let twice = places.iter().any(|place| place.offset == function.body)
            || function
                .leads_to
                .is_some_and(|target| target != function.offset && bodies.contains(&target));
        let Some(hook) = functions::of_name(function.name).filter(|_| !twice) else {
            continue;
        };
        places.push(Place {
            offset: function.body,
            function: hook,
        });
        library.hooked.push(function.name.to_owned());
        if function.single_stepped {
            library.single_stepped.push(function.name.to_owned());
        }
    }
    Ok((places, library))
}

/// The processes that run.
fn processes(procfs: &Path) -> Vec<u32> {
    let entries = fs::read_dir(procfs).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// What a process has mapped as code; nothing where it is gone or may not be looked at.
fn executable_mappings(procfs: &Path, pid: u32) -> Vec<Mapping> {
    let text = fs::read(procfs.join(pid.to_string()).join("maps")).unwrap_or_default();
    maps::parse(&text)
        .filter(|mapping| mapping.executable)
        .collect()
}
