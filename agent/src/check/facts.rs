//! What of the host decides which hooks can be used, each with a word on what it means.

use std::{fs, io, path::Path};

use probes::Kernel;
use rustix::thread::CapabilitySet;
use serde::Serialize;

use crate::{
    config::Config,
    enrich::cgroup::mounts,
    expose::web_config::WebConfig,
    privileges::{self, Later, PrivilegesError, Reloads, UNCHARGED_MAPS},
};

/// Something about the host that the probes depend on.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub(super) struct Fact {
    pub(super) name: &'static str,
    pub(super) value: String,
    /// What follows from it, where something does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) meaning: Option<String>,
}

/// A value and what it means.
type Finding = (String, Option<String>);

fn plain(value: impl Into<String>) -> Finding {
    (value.into(), None)
}

fn meaning(value: impl Into<String>, meaning: impl Into<String>) -> Finding {
    (value.into(), Some(meaning.into()))
}

/// Looks at the host, and, where something could be attached, at what that needs from then on.
pub(super) fn host(
    config: &Config,
    kernel: Option<&Kernel>,
    web: Option<&WebConfig>,
) -> Result<Vec<Fact>, PrivilegesError> {
    let proc = |path: &str| read(&config.procfs.join(path));
    let (btf, lockdown) = (
        config.sysfs.join("kernel/btf/vmlinux"),
        config.sysfs.join("kernel/security/lockdown"),
    );
    let probe = config.sysfs.join("bus/event_source/devices/kprobe/type");
    let release = proc("sys/kernel/osrelease");
    let known_release = release.as_deref().unwrap_or_default();
    let status = proc("self/status").unwrap_or_default();
    let user_namespace = fs::read_link(config.procfs.join("self/ns/user")).ok();
    let mountinfo = proc("self/mountinfo").unwrap_or_default();
    let jit = fs::read_to_string(config.procfs.join("sys/net/core/bpf_jit_enable"));

    let mut facts: Vec<(&'static str, Finding)> = vec![
        ("kernel", plain(unless_unknown(release.clone()))),
        ("BTF", type_information(&btf, config.btf.as_deref())),
        ("lockdown", lockdown_mode(&lockdown)),
        (
            "privileges",
            plain(loading(&status, user_namespace.as_deref())),
        ),
        (
            "capabilities",
            capabilities(
                &status,
                proc("sys/kernel/cap_last_cap").ok().as_deref(),
                user_namespace.as_deref(),
            ),
        ),
    ];
    if let Some(wsl) = wsl(known_release, Path::new(WSL_GPU).exists()) {
        facts.push(("WSL2", wsl));
    }
    if let Some(kernel) = kernel {
        let permitted = privileges::set(&status, "CapPrm:");
        let files = web.map(WebConfig::files).unwrap_or_default();
        let reloads = Reloads::new(config, &files)?;
        let later = Later::new(kernel, known_release, &config.rootfs, reloads);
        let kept = privileges::describe(&privileges::keep(permitted, &later));
        let missed = privileges::missed(permitted, &later);
        facts.push(("kept", (kept, missed)));
    }
    facts.extend([
        ("seccomp", seccomp(&status)),
        (
            "perf_event_paranoid",
            perf_event_paranoid(proc("sys/kernel/perf_event_paranoid")),
        ),
        (
            "unprivileged_bpf_disabled",
            unprivileged_bpf(proc("sys/kernel/unprivileged_bpf_disabled")),
        ),
        ("JIT", compiler(&jit)),
        (
            "memlock",
            memlock(&proc("self/limits").unwrap_or_default(), known_release),
        ),
        ("kprobes", kprobes(probe.exists())),
        (
            "tracefs",
            tracefs(&mountinfo, |path| fs::read_dir(path).map(drop)),
        ),
        (
            "cgroups",
            plain(cgroup_mode(&mountinfo, proc("cgroups").ok().as_deref())),
        ),
    ]);
    if let Some(web) = web {
        let current = web.current();
        let notes: Vec<&str> = current.notes().map(String::as_str).collect();
        let notes = Some(notes.join("; ")).filter(|notes| !notes.is_empty());
        facts.push(("web config", (current.summary(), notes)));
    }
    let facts = facts.into_iter();
    Ok(facts
        .map(|(name, (value, meaning))| Fact {
            name,
            value,
            meaning,
        })
        .collect())
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| format!("unknown ({}: {error})", path.display()))
}

fn unless_unknown(result: Result<String, String>) -> String {
    result.unwrap_or_else(|error| error)
}

/// The device by which WSL2 passes the GPU of Windows on.
const WSL_GPU: &str = "/dev/dxg";

/// What WSL2 means to the gpu probe, by the kernel's release and whether there is that device.
fn wsl(release: &str, has_gpu: bool) -> Option<Finding> {
    (has_gpu || release.to_lowercase().contains("microsoft")).then(|| {
        meaning(
            if has_gpu {
                "the GPU's driver is Windows' own, projected into this guest through a shim (/dev/dxg, libcuda.so in /usr/lib/wsl/lib)"
            } else {
                "without a GPU: there is no /dev/dxg, by which Windows' own driver is projected into a guest"
            },
            "calls of the CUDA runtime in this guest are seen as everywhere, what programs of Windows do on the same GPU is not",
        )
    })
}

/// The kernel's own types, else those of a file.
fn type_information(path: &Path, file: Option<&Path>) -> Finding {
    let path_text = path.display().to_string();
    match (path.exists(), file) {
        (true, None) => plain(path_text),
        (true, Some(file)) => meaning(
            path_text,
            format!("so --btf {} is not used", file.display()),
        ),
        (false, Some(file)) => meaning(
            file.display().to_string(),
            format!("{path_text} is missing"),
        ),
        (false, None) => meaning(
            format!("missing ({path_text})"),
            "without it only the tracepoint hooks work, which tell less; --btf FILE may stand in",
        ),
    }
}

/// The mode in brackets is the one in force. Without the module there is no file, in a securityfs
/// that has others; without securityfs nobody can tell.
fn lockdown_mode(path: &Path) -> Finding {
    match fs::read_to_string(path) {
        Ok(text) => lockdown_meaning(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let others = path
                .parent()
                .and_then(|folder| fs::read_dir(folder).ok()?.next());
            if others.is_some() {
                plain("not built in")
            } else {
                plain("unknown: securityfs is not mounted")
            }
        }
        Err(error) => plain(format!("unknown ({}: {error})", path.display())),
    }
}

fn lockdown_meaning(text: &str) -> Finding {
    let in_force = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    match in_force.map_or(text.trim(), |(mode, _)| mode) {
        "integrity" => meaning("integrity", "it refuses no hook"),
        "confidentiality" => meaning(
            "confidentiality",
            "it refuses kprobes, tracefs, and programs that read kernel memory through a helper",
        ),
        mode => plain(mode),
    }
}

fn loading(status: &str, user_namespace: Option<&Path>) -> String {
    privileges::missing(status, user_namespace).map_or_else(
        || "CAP_BPF and CAP_PERFMON are there".to_owned(),
        |missing| format!("missing: {missing}"),
    )
}

/// Who this is and what it may. `last` is the number of the last capability.
fn capabilities(status: &str, last: Option<&str>, user_namespace: Option<&Path>) -> Finding {
    // Few can be missing from all, and then those are what is worth a line.
    const FEW: usize = 8;
    let all = last
        .and_then(|last| last.parse::<u32>().ok())
        .and_then(|last| u64::MAX.checked_shr(63_u32.checked_sub(last)?))
        .map(CapabilitySet::from_bits_retain);
    let effective = privileges::set(status, "CapEff:");
    let missing = all.map(|all| privileges::names(all.difference(effective)));
    let shown = match missing {
        Some(missing) if missing.is_empty() => "all".to_owned(),
        _ if effective.is_empty() => "none".to_owned(),
        Some(missing) if missing.len() <= FEW => format!("all but {}", missing.join(", ")),
        _ => privileges::names(effective).join(", "),
    };
    let uid = privileges::field(status, "Uid:")
        .and_then(|ids| ids.split_whitespace().nth(1))
        .unwrap_or("?");
    let value = format!("{shown}, as uid {uid}");
    if privileges::is_first_user_namespace(user_namespace) {
        plain(value)
    } else {
        meaning(
            value,
            "in a user namespace of its own, where they do not count for eBPF",
        )
    }
}

fn seccomp(status: &str) -> Finding {
    match privileges::field(status, "Seccomp:") {
        Some("0") => plain("none"),
        Some("1") => plain("strict"),
        Some("2") => meaning("filter", "it may refuse bpf() or perf_event_open()"),
        other => plain(format!("unknown ({})", other.unwrap_or("not said"))),
    }
}

fn perf_event_paranoid(level: Result<String, String>) -> Finding {
    let level = unless_unknown(level);
    let means = match level.parse::<i32>() {
        Ok(3..) => {
            "a level of some distributions: kprobes and classic tracepoints take CAP_SYS_ADMIN, tp_btf and raw_tp do not"
        }
        Ok(_) => "kprobes and classic tracepoints take CAP_PERFMON",
        Err(_) => return plain(level),
    };
    meaning(level, means)
}

fn unprivileged_bpf(level: Result<String, String>) -> Finding {
    let level = unless_unknown(level);
    let means = match level.as_str() {
        "0" => "tracing takes CAP_BPF and CAP_PERFMON nevertheless",
        "1" => "until the next boot nothing can be loaded without CAP_BPF",
        "2" => "without CAP_BPF nothing can be loaded",
        _ => return plain(level),
    };
    meaning(level, means)
}

fn compiler(level: &io::Result<String>) -> Finding {
    match level.as_ref().map(|level| level.trim()) {
        Ok("0") => meaning("off", "programs are interpreted: each event costs more"),
        Ok("1") => plain("on"),
        Ok("2") => meaning("on", "and the kernel logs what it compiles"),
        Ok(other) => plain(other),
        // `net/core/sysctl_net_core.c` lists it for the first network namespace only.
        Err(error) if error.kind() == io::ErrorKind::NotFound => meaning(
            "unknown",
            "no net.core.bpf_jit_enable: this is a network namespace of its own, or the kernel has no JIT",
        ),
        Err(error) => plain(format!("unknown ({error})")),
    }
}

/// The limit of locked memory in bytes, from the text of `/proc/self/limits`.
fn memlock(limits: &str, release: &str) -> Finding {
    let limit = privileges::field(limits, "Max locked memory").map(|line| {
        let mut words = line.split_whitespace();
        (words.next().unwrap_or("?"), words.next().unwrap_or("?"))
    });
    let Some((soft, hard)) = limit else {
        return plain("unknown");
    };
    let value = if soft == hard {
        soft.to_owned()
    } else {
        format!("{soft}, at most {hard}")
    };
    let (major, minor) = UNCHARGED_MAPS;
    if !privileges::is_before(release, UNCHARGED_MAPS) {
        meaning(
            value,
            format!("maps are not charged to it since {major}.{minor}"),
        )
    } else if soft == "unlimited" {
        plain(value)
    } else {
        meaning(
            value,
            format!(
                "before {major}.{minor} maps are charged to it; raising it takes CAP_SYS_RESOURCE"
            ),
        )
    }
}

fn kprobes(built_in: bool) -> Finding {
    if built_in {
        plain("built in")
    } else {
        plain("not built in")
    }
}

/// Where tracefs is mounted, from the text of mountinfo, and whether this user may read it.
fn tracefs(mountinfo: &str, list: impl Fn(&Path) -> io::Result<()>) -> Finding {
    let path = mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right
            .starts_with("tracefs ")
            .then(|| left.split(' ').nth(4))?
    });
    let Some(path) = path else {
        return meaning("not mounted", "only classic tracepoints need it");
    };
    match list(Path::new(path)) {
        Ok(()) => plain(path),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => meaning(
            path,
            "closed to this user: classic tracepoints take CAP_DAC_READ_SEARCH, or root",
        ),
        Err(error) => meaning(path, format!("cannot be read: {error}")),
    }
}

/// How cgroups are mounted, and which hierarchy disk I/O is charged in.
fn cgroup_mode(mountinfo: &str, cgroups: Option<&str>) -> String {
    let io = cgroups.and_then(|text| probes::cgroup::io_hierarchy(text).ok());
    let mounts = mounts(mountinfo, io.unwrap_or(0));
    let path = |hierarchy: u16| {
        mounts
            .iter()
            .find(|mount| mount.hierarchy == hierarchy)
            .map(|mount| mount.path.display().to_string())
    };
    match (path(0), io) {
        (Some(v2), Some(0)) => format!("v2 at {v2}"),
        (Some(v2), Some(io)) => format!(
            "hybrid: sockets in v2 at {v2}, disk I/O in v1 {}",
            path(io).map_or_else(
                || format!("(hierarchy {io}, not mounted)"),
                |path| format!("at {path}")
            )
        ),
        (Some(v2), None) => format!("v2 at {v2}, no I/O controller"),
        (None, _) => "v1 only: sockets belong to no cgroup".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const V1: &str = "31 23 0:27 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n";
    const TRACEFS: &str = "32 23 0:12 / /sys/kernel/tracing rw - tracefs tracefs rw\n";

    /// As the table shows it.
    fn shown((value, meaning): Finding) -> String {
        meaning.map_or(value.clone(), |meaning| format!("{value} ({meaning})"))
    }

    #[test]
    fn cgroup_modes() {
        let text = |io| format!("#subsys_name hierarchy\nblkio\t{io}\t1\t1\n");
        assert_eq!(cgroup_mode(V2, Some(&text(0))), "v2 at /sys/fs/cgroup");
        assert_eq!(
            cgroup_mode(&format!("{V1}{V2}"), Some(&text(7))),
            "hybrid: sockets in v2 at /sys/fs/cgroup, disk I/O in v1 at /sys/fs/cgroup/blkio"
        );
        assert_eq!(
            cgroup_mode(V1, Some(&text(7))),
            "v1 only: sockets belong to no cgroup"
        );
    }

    #[test]
    fn the_lockdown_mode_is_the_one_in_brackets() {
        for (text, expected) in [
            ("[none] integrity confidentiality\n", "none"),
            (
                "none [integrity] confidentiality\n",
                "integrity (it refuses no hook)",
            ),
            (
                "none integrity [confidentiality]\n",
                "confidentiality (it refuses kprobes, tracefs, and programs that read kernel memory through a helper)",
            ),
            ("odd\n", "odd"),
        ] {
            assert_eq!(shown(lockdown_meaning(text)), expected);
        }
    }

    #[test]
    fn capabilities_are_listed_the_short_way() {
        let of = |mask: &str, uid: &str| {
            let status = format!("Uid:\t0\t{uid}\t0\t0\nCapEff:\t{mask}\n");
            shown(capabilities(&status, Some("40"), None))
        };
        assert_eq!(of("000001ffffffffff", "0"), "all, as uid 0");
        assert_eq!(
            of("000001fffeffffff", "0"),
            "all but CAP_SYS_RESOURCE, as uid 0"
        );
        assert_eq!(of("0000000000000000", "65534"), "none, as uid 65534");
        assert_eq!(
            of("000000c000000000", "65534"),
            "CAP_BPF, CAP_PERFMON, as uid 65534"
        );
    }

    #[test]
    fn in_a_user_namespace_capabilities_do_not_count() {
        let status = "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n";
        let link = Path::new("user:[4026532451]");
        assert_eq!(
            shown(capabilities(status, Some("40"), Some(link))),
            "all, as uid 0 (in a user namespace of its own, where they do not count for eBPF)"
        );
    }

    #[test]
    fn seccomp_modes() {
        for (mode, expected) in [
            ("0", "none"),
            ("1", "strict"),
            ("2", "filter (it may refuse bpf() or perf_event_open())"),
            ("7", "unknown (7)"),
        ] {
            assert_eq!(shown(seccomp(&format!("Seccomp:\t{mode}\n"))), expected);
        }
        assert_eq!(shown(seccomp("")), "unknown (not said)");
    }

    #[test]
    fn levels_have_their_meaning() {
        let perf = |level: &str| shown(perf_event_paranoid(Ok(level.to_owned())));
        for level in ["-1", "2"] {
            assert_eq!(
                perf(level),
                format!("{level} (kprobes and classic tracepoints take CAP_PERFMON)")
            );
        }
        for level in ["3", "4"] {
            assert!(perf(level).contains("take CAP_SYS_ADMIN"), "{level}");
        }
        assert_eq!(
            shown(perf_event_paranoid(Err("unknown".to_owned()))),
            "unknown"
        );

        let bpf = |level: &str| shown(unprivileged_bpf(Ok(level.to_owned())));
        assert_eq!(
            bpf("0"),
            "0 (tracing takes CAP_BPF and CAP_PERFMON nevertheless)"
        );
        assert_eq!(
            bpf("1"),
            "1 (until the next boot nothing can be loaded without CAP_BPF)"
        );
        assert_eq!(bpf("2"), "2 (without CAP_BPF nothing can be loaded)");
    }

    #[test]
    fn the_compiler_may_be_off_or_out_of_sight() {
        let of = |level: &str| shown(compiler(&Ok(level.to_owned())));
        assert_eq!(of("1\n"), "on");
        assert!(of("0\n").starts_with("off (programs are interpreted"));
        let missing = compiler(&Err(io::ErrorKind::NotFound.into()));
        assert!(shown(missing).starts_with("unknown (no net.core.bpf_jit_enable"));
    }

    #[test]
    fn maps_are_charged_on_old_kernels_only() {
        let limits = "Limit    Soft Limit   Hard Limit   Units\n\
                      Max locked memory         65536                8388608              bytes     \n";
        assert_eq!(
            shown(memlock(limits, "6.1.0")),
            "65536, at most 8388608 (maps are not charged to it since 5.11)"
        );
        assert_eq!(
            shown(memlock(limits, "5.10.0-30-amd64")),
            "65536, at most 8388608 (before 5.11 maps are charged to it; raising it takes CAP_SYS_RESOURCE)"
        );
        let limits = "Max locked memory  unlimited  unlimited  bytes\n";
        assert_eq!(shown(memlock(limits, "5.10.0")), "unlimited");
        assert_eq!(shown(memlock("", "5.10.0")), "unknown");
    }

    #[test]
    fn tracefs_may_be_closed() {
        let of = |kind: Option<io::ErrorKind>| {
            shown(tracefs(TRACEFS, |path| {
                assert_eq!(path, Path::new("/sys/kernel/tracing"));
                kind.map_or(Ok(()), |kind| Err(kind.into()))
            }))
        };
        assert_eq!(of(None), "/sys/kernel/tracing");
        assert_eq!(
            of(Some(io::ErrorKind::PermissionDenied)),
            "/sys/kernel/tracing (closed to this user: classic tracepoints take CAP_DAC_READ_SEARCH, or root)"
        );
        assert_eq!(
            shown(tracefs(V2, |_| Ok(()))),
            "not mounted (only classic tracepoints need it)"
        );
    }

    #[test]
    fn wsl_is_known_by_its_kernel_or_its_gpu() {
        let wsl = |release, has_gpu| wsl(release, has_gpu).map(shown);
        let (with, without) = (
            "the GPU's driver is Windows' own, projected into this guest through a shim (/dev/dxg, libcuda.so in /usr/lib/wsl/lib) (calls of the CUDA runtime in this guest are seen as everywhere, what programs of Windows do on the same GPU is not)",
            "without a GPU: there is no /dev/dxg, by which Windows' own driver is projected into a guest (calls of the CUDA runtime in this guest are seen as everywhere, what programs of Windows do on the same GPU is not)",
        );
        assert_eq!(wsl("6.18.44", false), None);
        let release = "5.15.167.4-microsoft-standard-WSL2";
        assert_eq!(wsl(release, true).as_deref(), Some(with));
        assert_eq!(wsl(release, false).as_deref(), Some(without));
        assert_eq!(
            wsl("4.4.0-19041-Microsoft", false).as_deref(),
            Some(without)
        );
        assert_eq!(wsl("6.18.44-custom", true).as_deref(), Some(with));
    }
}
