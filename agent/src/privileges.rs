//! Capabilities: how they are put to use, what loading eBPF programs takes, what is still needed once they are attached,
//! and how the rest is given up.
//!
//! They belong to a thread and pass on to those that it makes. So all of this is done before there is a second one.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use probes::{Kernel, Reason};
use rustix::{
    process::{Resource, Rlimit, geteuid, getrlimit, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

use crate::{config::Config, enrich::runtime};

/// Since then, commit c8644cd0efe7, map calls on a descriptor that one holds take no capability, whatever
/// `kernel.unprivileged_bpf_disabled` says. Before, it refuses every `bpf()` call without `CAP_BPF`, and may be
/// switched on at any time.
const FREE_MAP_CALLS: (u32, u32) = (5, 19);

/// Since then the links of `/proc/PID/map_files` are open to `CAP_CHECKPOINT_RESTORE`; before, they take
/// `CAP_SYS_ADMIN`.
const OPEN_MAP_FILES: (u32, u32) = (5, 9);

/// Since then, commit 80ee81e0403c, maps are memory of their maker's cgroup and not charged to `RLIMIT_MEMLOCK`.
pub(crate) const UNCHARGED_MAPS: (u32, u32) = (5, 11);

/// The hooks that are attached by `perf_event_open()`, each time anew.
const PERF_HOOKS: [&str; 2] = ["kprobe", "tracepoint"];

/// Why `CAP_DAC_READ_SEARCH` stays without the gpu probe.
const NAMES: &str = "names of containers are read in the folders of their runtimes";

/// Likewise.
const ANEW: &str = "files of --config.file and --web.config.file are read anew";

/// A capability that stays, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Exactly one.
    pub(crate) capability: CapabilitySet,
    /// For a person.
    pub(crate) reason: String,
}

/// The privileges that are there could not be put to use, or those that are not needed any more not given up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivilegesError {
    /// The kernel, or a filter before it, refuses a call that puts capabilities to use.
    #[error("capabilities cannot be put to use: {call}: {source}; a seccomp filter must allow it")]
    Raise {
        /// The call.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel, or a filter before it, refuses a call.
    #[error("privileges cannot be given up: {call}: {source}; a seccomp filter must allow it")]
    Refused {
        /// The call.
        call: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nobody can take them from another thread.
    #[error("privileges cannot be given up: there are {0} threads already")]
    Threads(usize),
    /// A file of procfs that must be there.
    #[error("privileges cannot be given up: {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why it can't be read.
        source: io::Error,
    },
}

/// Puts every capability that is permitted to use. Those that come from the program's file, as in the image, are only
/// permitted there: with effective ones, the kernel would refuse to run the program at all where a single one is out of
/// bounds, and say no more than "operation not permitted".
///
/// # Errors
/// When a call is refused.
pub(crate) fn raise() -> Result<(), PrivilegesError> {
    let refused = |call| {
        move |errno: rustix::io::Errno| PrivilegesError::Raise {
            call,
            source: errno.into(),
        }
    };
    let before = capabilities(None).map_err(refused("capget"))?;
    if before.effective == before.permitted {
        return Ok(());
    }
    let sets = CapabilitySets {
        effective: before.permitted,
        ..before
    };
    set_capabilities(None, sets).map_err(refused("capset"))
}

/// The capabilities that loading takes and that are missing, from the text of `/proc/self/status` and the target of
/// `/proc/self/ns/user`. Before 5.8, and on it still, `CAP_SYS_ADMIN` stands for all.
pub(crate) fn missing(status: &str, user_namespace: Option<&Path>) -> Option<String> {
    let needed = CapabilitySet::BPF.union(CapabilitySet::PERFMON);
    if !is_first_user_namespace(user_namespace) {
        let names = names(needed).join(" and ");
        return Some(format!("{names} outside this user namespace"));
    }
    let effective = set(status, "CapEff:");
    let missing = names(needed.difference(effective));
    // Whoever gave the file capabilities wonders where they are.
    let lost = if field(status, "NoNewPrivs:") == Some("1") {
        " (no_new_privs is set, so the program's file cannot give them; in Kubernetes, allowPrivilegeEscalation: true leaves it unset)"
    } else {
        ""
    };
    (!missing.is_empty() && !effective.contains(CapabilitySet::SYS_ADMIN))
        .then(|| format!("{}{lost}", missing.join(" and ")))
}

/// Whether capabilities count for eBPF, by the target of `/proc/self/ns/user`: only those in the first user namespace
/// do, and that has the same number everywhere (`PROC_USER_INIT_INO` in `include/linux/proc_ns.h`).
pub(crate) fn is_first_user_namespace(link: Option<&Path>) -> bool {
    link.is_none_or(|link| link == Path::new("user:[4026531837]"))
}

/// A set of capabilities by its name in the text of `/proc/self/status`; empty where it is not there.
pub(crate) fn set(status: &str, name: &str) -> CapabilitySet {
    let mask = field(status, name).and_then(|mask| u64::from_str_radix(mask, 16).ok());
    CapabilitySet::from_bits_retain(mask.unwrap_or(0))
}

/// A line of `/proc/self/status` by its name, the colon included.
pub(crate) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(value.trim())
}

/// The names of capabilities, the highest first: `CAP_BPF` before `CAP_PERFMON`.
pub(crate) fn names(capabilities: CapabilitySet) -> Vec<String> {
    let mut names: Vec<String> = singles(capabilities)
        .map(|single| {
            single.iter_names().next().map_or_else(
                || format!("capability {}", single.bits().trailing_zeros()),
                |(name, _)| format!("CAP_{name}"),
            )
        })
        .collect();
    names.reverse();
    names
}

fn singles(capabilities: CapabilitySet) -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS)
        .map(|number| CapabilitySet::from_bits_retain(1 << number))
        .filter(move |single| capabilities.contains(*single))
}

/// Whether a kernel is older than a version, by its release such as `5.10.0-30-amd64`. One that cannot be read
/// passes for old, which costs a privilege kept in vain.
pub(crate) fn is_before(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < version,
        _ => true,
    }
}

/// The probes that may have to load and attach something later.
pub(crate) fn unfinished(kernel: &Kernel) -> Vec<&'static str> {
    kernel
        .probes
        .iter()
        .filter(|installed| {
            installed.status_when_on().verdict.is_up()
                && installed.fallback_trigger().is_some()
                && !installed.fallback_tried
        })
        .map(|installed| installed.probe.name)
        .collect()
}

/// Whether a probe whose hook is this one can be attached again by this thread, as far as that is known beforehand.
pub(crate) fn can_attach_again(hook: &str) -> bool {
    let enough = CapabilitySet::PERFMON.union(CapabilitySet::SYS_ADMIN);
    !PERF_HOOKS.contains(&hook)
        || capabilities(None).is_ok_and(|sets| sets.effective.intersects(enough))
}

/// What is done once privileges are given up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Later<'a> {
    /// The kernel's release, such as `5.10.0-30-amd64`.
    pub(crate) release: &'a str,
    /// The probes that are [`unfinished`].
    pub(crate) unfinished: Vec<&'static str>,
    /// The probes that may be turned off and on again, and are attached by `perf_event_open()`.
    pub(crate) by_perf: Vec<&'static str>,
    /// Whether programs that use CUDA are looked for and attached to.
    pub(crate) gpu: bool,
    /// Whether that is done with `perf_event_open()`, which takes `CAP_SYS_ADMIN` for uprobes: again
    /// since 6.16 and the stable releases of mid-2025 (its revert of
    /// `CAP_PERFMON` for uprobes), and always where Debian's `kernel.perf_event_paranoid` is 3.
    pub(crate) perf_uprobes: bool,
    /// The folders of container runtimes.
    pub(crate) folders: Folders,
    /// Whether there are files to be read anew that are [`closed`].
    pub(crate) closed_files: bool,
}

/// What of a reload takes privileges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reloads {
    /// Whether there are files to be read anew that are [`closed`].
    pub(crate) closed_files: bool,
    /// Whether probes can be turned off and on.
    pub(crate) probes: bool,
}

impl Reloads {
    /// By the settings, and the files that `--web.config.file` leads to.
    ///
    /// # Errors
    /// When a call is refused.
    pub(crate) fn new(config: &Config, web_files: &[PathBuf]) -> Result<Self, PrivilegesError> {
        let files: Vec<PathBuf> = config.file.iter().chain(web_files).cloned().collect();
        Ok(Self {
            closed_files: closed(&files)?,
            probes: config.probes_of_file,
        })
    }
}

/// The folders in which container runtimes keep their state: they are root's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Folders {
    /// This is root.
    #[default]
    Open,
    /// None is there yet.
    Absent,
    /// There are some.
    Closed,
}

impl Folders {
    fn new(rootfs: &Path) -> Self {
        match (geteuid().is_root(), runtime::is_there(rootfs)) {
            (true, _) => Self::Open,
            (false, false) => Self::Absent,
            (false, true) => Self::Closed,
        }
    }
}

impl<'a> Later<'a> {
    /// By what is attached, the kernel's release, where the host's files are, and what a reload may change.
    pub(crate) fn new(kernel: &Kernel, release: &'a str, rootfs: &Path, reloads: Reloads) -> Self {
        let mut probes = kernel.probes.iter();
        let by_perf = probes.clone().filter(|installed| {
            // What is attached otherwise is loaded, and attaching it takes no more.
            let status = installed.status_when_on();
            reloads.probes && status.verdict.is_up() && PERF_HOOKS.contains(&status.hook)
        });
        let by_perf = by_perf.map(|installed| installed.probe.name).collect();
        let gpu = probes
            .find(|installed| installed.probe.deferred.is_some())
            // Nothing comes later where this kernel has no way to attach.
            .filter(|gpu| gpu.status.reason != Reason::NoHook);
        Self {
            release,
            unfinished: unfinished(kernel),
            gpu: gpu.is_some(),
            perf_uprobes: gpu.is_some_and(|gpu| gpu.status.hook != "uprobe_multi"),
            folders: Folders::new(rootfs),
            by_perf,
            closed_files: reloads.closed_files,
        }
    }

    /// What is needed, what may stand in for it, and why.
    fn needs(&self) -> [(CapabilitySet, CapabilitySet, Vec<String>); 6] {
        let later = (!self.unfinished.is_empty()).then(|| {
            format!(
                "{} attaches a second hook if a device gives no time stamps",
                self.unfinished.join(", ")
            )
        });
        let maps = is_before(self.release, FREE_MAP_CALLS).then(|| {
            let (major, minor) = FREE_MAP_CALLS;
            format!(
                "series come and go, and kernels before {major}.{minor} may refuse map calls without it"
            )
        });
        let anew = (!self.by_perf.is_empty()).then(|| {
            format!(
                "{}: attached by perf_event_open() each time that a reload turns it on",
                self.by_perf.join(", ")
            )
        });
        let gpu = |reason: &str| self.gpu.then(|| format!("gpu {reason}"));
        let attaches = gpu("attaches to programs when they begin to use CUDA");
        let perf = gpu("attaches by perf_event_open(), which takes it for uprobes");
        let (none, admin) = (CapabilitySet::empty(), CapabilitySet::SYS_ADMIN);
        let reasons = |reasons: [Option<String>; 3]| reasons.into_iter().flatten().collect();
        [
            (
                CapabilitySet::BPF,
                admin,
                reasons([maps, later.clone(), attaches.clone()]),
            ),
            (
                CapabilitySet::PERFMON,
                admin,
                reasons([anew, later, attaches]),
            ),
            (
                CapabilitySet::SYS_PTRACE,
                none,
                reasons([None, None, gpu("reads what the processes of others map")]),
            ),
            (
                CapabilitySet::DAC_READ_SEARCH,
                none,
                reasons([
                    self.closed_files.then(|| ANEW.to_owned()),
                    (self.folders != Folders::Open).then(|| NAMES.to_owned()),
                    gpu("opens files in the folders of containers"),
                ]),
            ),
            (
                if is_before(self.release, OPEN_MAP_FILES) {
                    admin
                } else {
                    CapabilitySet::CHECKPOINT_RESTORE
                },
                admin,
                reasons([None, None, gpu("opens mapped files that are deleted")]),
            ),
            (
                admin,
                none,
                reasons([None, None, perf.filter(|_| self.perf_uprobes)]),
            ),
        ]
    }
}

/// What of the permitted capabilities must stay.
pub(crate) fn keep(permitted: CapabilitySet, later: &Later) -> Vec<Kept> {
    let mut kept: Vec<Kept> = Vec::new();
    for (needed, stand_in, reasons) in later.needs() {
        let Some(capability) = [needed, stand_in]
            .into_iter()
            .find(|capability| !capability.is_empty() && permitted.contains(*capability))
        else {
            continue;
        };
        for reason in reasons {
            match kept.iter_mut().find(|kept| kept.capability == capability) {
                Some(kept) if kept.reason.contains(&reason) => {}
                Some(kept) => kept.reason = format!("{}; {reason}", kept.reason),
                None => kept.push(Kept { capability, reason }),
            }
        }
    }
    kept
}

/// What is done without, in one line, where a capability is lacking. Probes but that for GPUs do not
/// start without theirs.
pub(crate) fn missed(permitted: CapabilitySet, later: &Later) -> Option<String> {
    let names = (later.folders == Folders::Closed && !permitted.contains(CapabilitySet::DAC_READ_SEARCH)).then(|| {
        format!(
            "containers that Kubernetes does not tell of go by their ids, for want of CAP_DAC_READ_SEARCH ({NAMES})"
        )
    });
    let files = (later.closed_files && !permitted.contains(CapabilitySet::DAC_READ_SEARCH)).then(|| {
        "--config.file, or --web.config.file and its files, cannot be read anew, for want of CAP_DAC_READ_SEARCH (they are closed to this user)".to_owned()
    });
    let parts: Vec<String> = names
        .into_iter()
        .chain(files)
        .chain(missed_by_gpu(permitted, later))
        .collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn missed_by_gpu(permitted: CapabilitySet, later: &Later) -> Option<String> {
    let later = Later {
        folders: Folders::Open,
        closed_files: false,
        ..later.clone()
    };
    let missed: Vec<String> = later
        .needs()
        .into_iter()
        .filter(|(needed, stand_in, reasons)| {
            let either = needed.union(*stand_in);
            !reasons.is_empty() && !permitted.intersects(either)
        })
        .map(|(needed, _, reasons)| {
            let names = names(needed).join(" and ");
            format!("{names} ({})", reasons.join("; "))
        })
        .collect();
    (later.gpu && !missed.is_empty()).then(|| {
        format!(
            "some programs that use CUDA may not be seen, for want of {}",
            missed.join(", ")
        )
    })
}

/// The capabilities and reasons in one line.
pub(crate) fn describe(kept: &[Kept]) -> String {
    if kept.is_empty() {
        return "none".to_owned();
    }
    let parts: Vec<String> = kept
        .chunk_by(|one, next| one.reason == next.reason)
        .map(|same| {
            let all = same.iter().flat_map(|kept| names(kept.capability));
            let all: Vec<String> = all.collect();
            format!("{} ({})", all.join(" and "), same[0].reason)
        })
        .collect();
    parts.join(", ")
}

/// What is left to this process.
#[derive(Debug)]
pub(crate) struct Reduced {
    kept: Vec<Kept>,
    /// See [`missed`].
    pub(crate) missed: Option<String>,
    /// Whether the bounding set is reduced likewise: that takes `CAP_SETPCAP`.
    bounded: bool,
}

impl fmt::Display for Reduced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(&self.kept))?;
        if !self.bounded {
            f.write_str("; the bounding set stays as it is, for want of CAP_SETPCAP")?;
        }
        Ok(())
    }
}

/// Whether one of these files, which can be read now, is open to this thread only by a capability that overrides
/// permissions. Takes it from the thread for a moment.
///
/// # Errors
/// When a call is refused.
fn closed(files: &[PathBuf]) -> Result<bool, PrivilegesError> {
    let refused = |call| {
        move |errno: rustix::io::Errno| PrivilegesError::Refused {
            call,
            source: errno.into(),
        }
    };
    let before = capabilities(None).map_err(refused("capget"))?;
    let overriding = CapabilitySet::DAC_READ_SEARCH.union(CapabilitySet::DAC_OVERRIDE);
    if files.is_empty() || !before.effective.intersects(overriding) {
        return Ok(false);
    }
    let without = CapabilitySets {
        effective: before.effective.difference(overriding),
        ..before
    };
    set_capabilities(None, without).map_err(refused("capset"))?;
    let closed = files.iter().any(|file| {
        let opened = fs::File::open(file);
        opened.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    });
    set_capabilities(None, before).map_err(refused("capset"))?;
    Ok(closed)
}

/// Gives up every capability that what is attached does not need any more, in all sets of this thread, and with
/// `no_new_privs` the ways to new ones.
///
/// # Errors
/// When there is another thread, whose capabilities would stay, or when a call is refused.
pub(crate) fn reduce(
    kernel: &Kernel,
    procfs: &Path,
    rootfs: &Path,
    reloads: Reloads,
) -> Result<Reduced, PrivilegesError> {
    let read_error = |path: &Path| {
        let path = path.to_owned();
        move |source| PrivilegesError::Read { path, source }
    };
    let folder = procfs.join("self/task");
    let threads = fs::read_dir(&folder).map_err(read_error(&folder))?.count();
    if threads != 1 {
        return Err(PrivilegesError::Threads(threads));
    }
    let file = procfs.join("sys/kernel/osrelease");
    let release = fs::read_to_string(&file).map_err(read_error(&file))?;
    let refused = |call| {
        move |errno: rustix::io::Errno| PrivilegesError::Refused {
            call,
            source: errno.into(),
        }
    };
    let before = capabilities(None).map_err(refused("capget"))?;
    // Where it cannot be read, there is no such patch to heed.
    let later = Later::new(kernel, &release, rootfs, reloads);
    let missed = missed(before.permitted, &later);
    let kept = keep(before.permitted, &later);
    let keep = kept.iter().fold(CapabilitySet::empty(), |all, kept| {
        all.union(kept.capability)
    });

    // The lesser hooks of the gpu probe take some 200 descriptors for each file.
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            ..files
        },
    );
    if is_before(&release, UNCHARGED_MAPS) {
        // A table that is made later is charged as well, and nobody can make room for it then. A refusal is
        // none of this call's business: the limit may suffice.
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        let _ = setrlimit(Resource::Memlock, unlimited);
    }
    let mut bounded = true;
    for single in singles(keep.complement()) {
        // The call fails beyond the last one that this kernel knows.
        if !capability_is_in_bounding_set(single).unwrap_or(false) {
            continue;
        }
        if before.effective.contains(CapabilitySet::SETPCAP) {
            remove_capability_from_bounding_set(single)
                .map_err(refused("prctl(PR_CAPBSET_DROP)"))?;
        } else {
            bounded = false;
        }
    }
    clear_ambient_capability_set().map_err(refused("prctl(PR_CAP_AMBIENT)"))?;
    let sets = CapabilitySets {
        effective: keep,
        permitted: keep,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(refused("capset"))?;
    set_no_new_privs(true).map_err(refused("prctl(PR_SET_NO_NEW_PRIVS)"))?;
    Ok(Reduced {
        kept,
        missed,
        bounded,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: CapabilitySet = CapabilitySet::from_bits_retain(0x1ff_ffff_ffff);

    #[test]
    fn missing_ones_are_read_from_the_effective_set() {
        for (mask, expected) in [
            ("0000000000000000", Some("CAP_BPF and CAP_PERFMON")),
            ("0000008000000000", Some("CAP_PERFMON")),
            ("0000004000000000", Some("CAP_BPF")),
            ("000000c000000000", None),
            ("0000000000200000", None),
        ] {
            let status = format!("Name:\tx\nCapPrm:\tffff\nCapEff:\t{mask}\n");
            assert_eq!(missing(&status, None).as_deref(), expected, "{mask}");
        }
        let none = missing("Name:\tx\n", None);
        assert_eq!(none.as_deref(), Some("CAP_BPF and CAP_PERFMON"));
    }

    #[test]
    fn no_new_privs_is_named_where_something_is_missing() {
        let missing =
            |mask: &str, set: u8| missing(&format!("CapEff:\t{mask}\nNoNewPrivs:\t{set}\n"), None);
        let perfmon = "0000008000000000";
        assert_eq!(missing(perfmon, 0).as_deref(), Some("CAP_PERFMON"));
        assert_eq!(
            missing(perfmon, 1).as_deref(),
            Some(
                "CAP_PERFMON (no_new_privs is set, so the program's file cannot give them; in Kubernetes, allowPrivilegeEscalation: true leaves it unset)"
            )
        );
        assert_eq!(missing("000000c000000000", 1), None);
    }

    #[test]
    fn in_a_user_namespace_none_counts() {
        let status = "CapEff:\t000001ffffffffff\n";
        let missing = |link: &str| missing(status, Some(Path::new(link)));
        assert_eq!(missing("user:[4026531837]"), None);
        assert_eq!(
            missing("user:[4026532451]").as_deref(),
            Some("CAP_BPF and CAP_PERFMON outside this user namespace")
        );
    }

    #[test]
    fn capabilities_have_names() {
        let some = CapabilitySet::SETPCAP.union(CapabilitySet::from_bits_retain(1 << 50));
        assert_eq!(names(some), ["capability 50", "CAP_SETPCAP"]);
        assert_eq!(names(FULL).len(), 41);
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        for (release, before) in [
            ("5.18.0", true),
            ("5.19", false),
            ("5.9.16-arch1", true),
            ("6.1.0-37-cloud-amd64", false),
            ("4.19.0-27-amd64", true),
            ("10.0.0", false),
            ("unknown", true),
            ("", true),
        ] {
            assert_eq!(is_before(release, FREE_MAP_CALLS), before, "{release}");
        }
    }

    fn capabilities(permitted: CapabilitySet, later: &Later) -> Vec<CapabilitySet> {
        let kept = keep(permitted, later);
        kept.iter().map(|kept| kept.capability).collect()
    }

    #[test]
    fn what_stays_is_what_may_be_needed() {
        let sets = |permitted, release, unfinished: &[&'static str]| {
            let later = Later {
                release,
                unfinished: unfinished.to_vec(),
                ..Later::default()
            };
            assert_eq!(missed(permitted, &later), None);
            capabilities(permitted, &later)
        };
        let (bpf, perfmon, admin) = (
            CapabilitySet::BPF,
            CapabilitySet::PERFMON,
            CapabilitySet::SYS_ADMIN,
        );
        for (permitted, release, unfinished, expected) in [
            (FULL, "6.1.0", &[][..], vec![]),
            (FULL, "6.1.0", &["disk"], vec![bpf, perfmon]),
            (FULL, "5.10.0", &[], vec![bpf]),
            (FULL, "5.10.0", &["disk"], vec![bpf, perfmon]),
            (bpf.union(perfmon), "6.1.0", &["disk"], vec![bpf, perfmon]),
            // Before 5.8, or given nothing else.
            (admin, "5.4.0", &["disk"], vec![admin]),
            (admin.union(bpf), "6.1.0", &["disk"], vec![bpf, admin]),
            (admin, "6.1.0", &[], vec![]),
            // Nothing can stay that is not there.
            (CapabilitySet::empty(), "5.10.0", &["disk"], vec![]),
        ] {
            assert_eq!(
                sets(permitted, release, unfinished),
                expected,
                "{permitted:?} {release} {unfinished:?}"
            );
        }
    }

    #[test]
    fn every_reason_is_given_once() {
        let later = "disk attaches a second hook if a device gives no time stamps";
        let maps = "series come and go, and kernels before 5.19 may refuse map calls without it";
        let line = |permitted, release| {
            let later = Later {
                release,
                unfinished: vec!["disk"],
                ..Later::default()
            };
            describe(&keep(permitted, &later))
        };
        assert_eq!(
            line(FULL, "6.12.0"),
            format!("CAP_BPF and CAP_PERFMON ({later})")
        );
        assert_eq!(
            line(FULL, "5.10.0"),
            format!("CAP_BPF ({maps}; {later}), CAP_PERFMON ({later})")
        );
        assert_eq!(
            line(CapabilitySet::SYS_ADMIN, "5.4.0"),
            format!("CAP_SYS_ADMIN ({maps}; {later})")
        );
        assert_eq!(describe(&[]), "none");
    }

    #[test]
    fn what_is_attached_by_perf_events_again_takes_one() {
        let later = Later {
            release: "6.18.0",
            by_perf: vec!["tcp", "disk"],
            ..Later::default()
        };
        assert_eq!(
            describe(&keep(FULL, &later)),
            "CAP_PERFMON (tcp, disk: attached by perf_event_open() each time that a reload turns it on)"
        );
        // Where it stood for all, it stays.
        assert_eq!(
            capabilities(CapabilitySet::SYS_ADMIN, &later),
            [CapabilitySet::SYS_ADMIN]
        );
    }

    fn gpu(release: &str, perf_uprobes: bool) -> Later<'_> {
        Later {
            release,
            gpu: true,
            perf_uprobes,
            ..Later::default()
        }
    }

    #[test]
    fn the_gpu_probe_keeps_what_it_looks_for_programs_with() {
        let (bpf, perfmon) = (CapabilitySet::BPF, CapabilitySet::PERFMON);
        let (ptrace, search) = (CapabilitySet::SYS_PTRACE, CapabilitySet::DAC_READ_SEARCH);
        let restore = CapabilitySet::CHECKPOINT_RESTORE;
        let admin = CapabilitySet::SYS_ADMIN;
        for (permitted, later, expected) in [
            (
                FULL,
                gpu("6.18.0", false),
                vec![bpf, perfmon, ptrace, search, restore],
            ),
            (
                FULL,
                gpu("6.1.0", true),
                vec![bpf, perfmon, ptrace, search, restore, admin],
            ),
            (
                FULL,
                gpu("5.8.0", false),
                vec![bpf, perfmon, ptrace, search, admin],
            ),
            (bpf.union(perfmon), gpu("6.18.0", false), vec![bpf, perfmon]),
            (
                admin.union(ptrace),
                gpu("6.18.0", false),
                vec![admin, ptrace],
            ),
        ] {
            assert_eq!(capabilities(permitted, &later), expected, "{later:?}");
        }
        assert_eq!(
            describe(&keep(FULL, &gpu("6.18.0", false))),
            "CAP_BPF and CAP_PERFMON (gpu attaches to programs when they begin to use CUDA), \
             CAP_SYS_PTRACE (gpu reads what the processes of others map), \
             CAP_DAC_READ_SEARCH (gpu opens files in the folders of containers), \
             CAP_CHECKPOINT_RESTORE (gpu opens mapped files that are deleted)"
        );
    }

    #[test]
    fn names_of_containers_take_a_capability() {
        let later = Later {
            release: "6.18.0",
            folders: Folders::Closed,
            ..Later::default()
        };
        let search = CapabilitySet::DAC_READ_SEARCH;
        assert_eq!(
            describe(&keep(FULL, &later)),
            format!("CAP_DAC_READ_SEARCH ({NAMES})")
        );
        assert_eq!(missed(search, &later), None);
        let absent = Later {
            folders: Folders::Absent,
            ..later.clone()
        };
        assert_eq!(keep(FULL, &absent), keep(FULL, &later));
        assert_eq!(missed(CapabilitySet::empty(), &absent), None);
        let alone = missed(CapabilitySet::empty(), &later).unwrap();
        assert_eq!(
            alone,
            "containers that Kubernetes does not tell of go by their ids, for want of CAP_DAC_READ_SEARCH \
             (names of containers are read in the folders of their runtimes)"
        );
        let both = Later {
            folders: Folders::Closed,
            ..gpu("6.18.0", false)
        };
        let some = CapabilitySet::BPF.union(CapabilitySet::PERFMON);
        let both = missed(some, &both).unwrap();
        assert!(both.starts_with(&alone), "{both}");
        assert!(
            both.contains("some programs that use CUDA may not be seen"),
            "{both}"
        );
    }

    #[test]
    fn a_file_is_closed_if_it_takes_a_capability_to_open_it() {
        use std::os::unix::fs::PermissionsExt;

        let overriding = CapabilitySet::DAC_READ_SEARCH.union(CapabilitySet::DAC_OVERRIDE);
        let effective = super::capabilities(None).unwrap().effective;
        let path = std::env::temp_dir().join(format!("sentry-closed-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        let files = [path.clone()];
        assert!(!closed(&files).unwrap());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(closed(&files).unwrap(), effective.intersects(overriding));
        fs::remove_file(&path).unwrap();
        // One that is gone is not closed.
        assert!(!closed(&files).unwrap());
        assert_eq!(super::capabilities(None).unwrap().effective, effective);
    }

    #[test]
    fn files_that_are_closed_take_a_capability() {
        let later = Later {
            release: "6.18.0",
            closed_files: true,
            ..Later::default()
        };
        let search = CapabilitySet::DAC_READ_SEARCH;
        assert_eq!(
            describe(&keep(FULL, &later)),
            format!("CAP_DAC_READ_SEARCH ({ANEW})")
        );
        assert_eq!(missed(search, &later), None);
        assert_eq!(
            missed(CapabilitySet::empty(), &later).as_deref(),
            Some(
                "--config.file, or --web.config.file and its files, cannot be read anew, for want of CAP_DAC_READ_SEARCH (they are closed to this user)"
            )
        );
    }

    #[test]
    fn what_the_gpu_probe_lacks_is_said() {
        let two = CapabilitySet::BPF.union(CapabilitySet::PERFMON);
        assert_eq!(missed(FULL, &gpu("6.18.0", true)), None);
        assert_eq!(missed(two, &Later::default()), None);
        let some = two
            .union(CapabilitySet::SYS_PTRACE)
            .union(CapabilitySet::DAC_READ_SEARCH);
        assert_eq!(
            missed(some, &gpu("6.18.0", false)).as_deref(),
            Some(
                "some programs that use CUDA may not be seen, for want of CAP_CHECKPOINT_RESTORE (gpu opens mapped files that are deleted)"
            )
        );
        let missed = missed(two, &gpu("6.1.0", true)).unwrap();
        for name in [
            "CAP_SYS_PTRACE",
            "CAP_DAC_READ_SEARCH",
            "CAP_CHECKPOINT_RESTORE",
            "CAP_SYS_ADMIN",
        ] {
            assert!(missed.contains(name), "no {name} in {missed}");
        }
    }
}
