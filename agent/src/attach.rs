//! What stands before the first event: may we, can this kernel, and which hook.

use std::{
    fs,
    path::{Path, PathBuf},
};

use probes::{
    Kernel, LoadError, Probe, Reason, Request, Status, StreamFilter, Verdict,
    cgroup::{self, Events},
    gpu::Follower,
};

use crate::{
    collect::Exemplars,
    config::{Config, HOOK_AUTO},
    enrich::cgroup::{Mount, mounts},
    privileges::{self, is_before},
};

/// The hooks that have but a tracepoint's record.
const RECORDS: &str = "tracepoint";

/// The oldest kernel that Sentry is tested on; ring buffers (5.8) are its youngest need.
const OLDEST: (u32, u32) = (5, 10);

/// The agent cannot start on this host, or not like this.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// The kernel would refuse every program.
    #[error(
        "missing privileges: {missing} needed to load eBPF programs; run as root, or grant them to the binary; `make demo` shows the agent in a virtual machine"
    )]
    Privileges {
        /// What is needed and not there.
        missing: String,
    },
    /// A file of procfs or sysfs that must be there.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why it can't be read.
        source: std::io::Error,
    },
    /// The kernel lacks what every probe needs.
    #[error("this kernel ({release}) is too old: Sentry needs Linux 5.10 or later ({error})")]
    TooOld {
        /// The kernel's release.
        release: String,
        /// What it refused.
        error: LoadError,
    },
    /// A hook that was asked for is not to be had, and nothing else runs.
    #[error("--{probe}.hook {hook}: {detail}")]
    Forced {
        /// Whose hook.
        probe: &'static str,
        /// The hook.
        hook: &'static str,
        /// Why not.
        detail: String,
    },
    /// See there.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// All that the agent finds out about its host, and what it put into the kernel.
pub(crate) struct Attached {
    pub(crate) kernel: Kernel,
    /// The slow events that the configuration asks for.
    pub(crate) exemplars: Exemplars,
    /// Cgroups that come and go, or why the kernel does not tell.
    pub(crate) cgroup_events: Result<Events, Status>,
    /// Where to walk for cgroups.
    pub(crate) mounts: Vec<Mount>,
    /// What looks for CUDA, if the gpu probe is asked for.
    pub(crate) gpu: Option<Follower>,
}

/// Which probes the configuration asks for, and the hooks it forces.
pub(crate) fn selected(config: &Config) -> Vec<(&'static Probe, Option<&str>)> {
    with_hooks(config, |name| {
        config.probes.iter().any(|probe| probe == name)
    })
}

/// Those that it does not ask for, and may ask for later. There is nothing to make ready of one that is deferred.
fn off(config: &Config) -> Vec<&'static str> {
    let probes = probes::PROBES.iter();
    probes
        .filter(|probe| config.probes_of_file && probe.deferred.is_none())
        .map(|probe| probe.name)
        .filter(|name| config.probes.iter().all(|probe| probe != name))
        .collect()
}

fn with_hooks(
    config: &Config,
    wanted: impl Fn(&str) -> bool,
) -> Vec<(&'static Probe, Option<&str>)> {
    probes::PROBES
        .iter()
        .filter(|probe| wanted(probe.name))
        .map(|probe| {
            let hook = config.hooks.get(probe.name).map(String::as_str);
            (*probe, hook.filter(|hook| *hook != HOOK_AUTO))
        })
        .collect()
}

/// Attaches the probes that the configuration asks for, and has them ready for a stream of events if there is to be one.
///
/// # Errors
/// When nothing can be attached at all. A probe that cannot is a verdict in the result.
pub(crate) fn attach(
    config: &Config,
    stream: Option<&StreamFilter>,
) -> Result<Attached, AttachError> {
    let user_namespace = fs::read_link(config.procfs.join("self/ns/user")).ok();
    let status = read(&config.procfs.join("self/status"))?;
    if let Some(missing) = privileges::missing(&status, user_namespace.as_deref()) {
        return Err(AttachError::Privileges { missing });
    }
    let cgroups = config.procfs.join("cgroups");
    let io_hierarchy = cgroup::io_hierarchy(&read(&cgroups)?);
    let mounts = mounts(
        &read(&config.procfs.join("self/mountinfo"))?,
        io_hierarchy.as_ref().copied().unwrap_or(0),
    );
    if let Some(file) = &config.btf
        && probes::own_types().is_ok()
    {
        let file = file.display();
        tracing::warn!("--btf {file} is not used: this kernel has types of its own");
    }
    let v2 = mounts.iter().any(|mount| mount.hierarchy == 0);
    // Of the others only the one that disk I/O is charged in bears labels.
    let task_hierarchy = mounts.first().map(|mount| mount.hierarchy).filter(|_| !v2);
    let off = off(config);
    let selected = with_hooks(config, |name| {
        config.probes.iter().any(|probe| probe == name) || off.contains(&name)
    });
    let attached = probes::attach(&Request {
        probes: &selected,
        off: &off,
        // The configuration's ceiling is below what 16 bits hold.
        series_max: u16::try_from(config.series_max).unwrap_or(u16::MAX),
        io_hierarchy: io_hierarchy.as_ref().copied().unwrap_or(0),
        task_hierarchy,
        btf: config.btf.as_deref(),
        stream,
    });
    let (mut kernel, cgroup_events) = attached.map_err(|error| refused(config, error))?;
    let gpu = selected
        .iter()
        .find(|(probe, _)| probe.deferred.is_some())
        .map(|(_, hook)| Follower::start(config.procfs.clone(), *hook));
    if let Some(follower) = &gpu {
        follow_status(&mut kernel, follower);
    }
    let exemplars = Exemplars::new(config, &mut kernel);
    probes::release_unused_memory();
    let io_controller_off = io_controller_off(io_hierarchy.ok(), &mounts);
    for status in kernel
        .probes
        .iter_mut()
        .map(|installed| &mut installed.status)
    {
        match (status.probe, &io_controller_off) {
            ("disk", _) if status.hook == RECORDS && !v2 => status.degrade(
                Reason::CgroupV1Only,
                "only cgroup v1 is mounted: all I/O belongs to the root",
            ),
            // The records tell by the v2 cgroup of the task, whatever the controllers.
            ("disk", Some(detail)) if status.hook != RECORDS => {
                status.degrade(Reason::IoControllerOff, detail);
            }
            ("tcp", _) if !v2 => status.degrade(
                Reason::CgroupV1Only,
                if status.hook == RECORDS {
                    "only cgroup v1 is mounted, which sockets do not belong to: connects belong to the root"
                } else if task_hierarchy.is_some() {
                    "only cgroup v1 is mounted, which sockets do not belong to: connects belong to the blkio cgroup of their task, server handshakes to the root"
                } else {
                    "only cgroup v1 is mounted, which sockets do not belong to: all handshakes belong to the root"
                },
            ),
            _ => {}
        }
    }
    let Kernel {
        probes, programs, ..
    } = &mut kernel;
    for installed in probes {
        if off.contains(&installed.probe.name) {
            programs.turn_off(installed);
        }
    }
    Ok(Attached {
        kernel,
        exemplars,
        cgroup_events,
        mounts,
        gpu,
    })
}

/// Whether a verdict is on a probe that has nothing to attach to yet, and may have later.
pub(crate) fn is_deferred(status: &Status) -> bool {
    let mut probes = probes::PROBES.iter();
    probes.any(|probe| probe.name == status.probe && probe.deferred.is_some())
}

/// Takes over the verdict of the probe that is attached as it is needed.
pub(crate) fn follow_status(kernel: &mut Kernel, follower: &Follower) {
    let mut statuses = kernel.probes.iter_mut().map(|probe| &mut probe.status);
    if let Some(status) = statuses.find(|status| is_deferred(status)) {
        *status = follower.gpu().status();
    }
}

impl AttachError {
    /// Whether a setting is to blame, so that another attempt ends like this one.
    pub(crate) fn is_bad_setting(&self) -> bool {
        matches!(
            self,
            Self::Forced { .. } | Self::Load(LoadError::Btf { .. })
        )
    }
}

/// Where nothing runs and a hook was forced, the setting is what to mend, and not to wait for a
/// better time. The gpu probe is there to wait.
///
/// # Errors
/// The first forced hook that is not in use, when no probe is.
pub(crate) fn forced_hooks_left_something(
    config: &Config,
    statuses: &[Status],
) -> Result<(), AttachError> {
    let forced = |status: &&Status| {
        let hook = config.hooks.get(status.probe);
        let is_off = status.verdict == Verdict::Off;
        !is_deferred(status) && !is_off && hook.is_some_and(|hook| hook != HOOK_AUTO)
    };
    if statuses.iter().any(|status| status.verdict.is_up()) {
        return Ok(());
    }
    statuses.iter().find(forced).map_or(Ok(()), |status| {
        Err(AttachError::Forced {
            probe: status.probe,
            hook: status.hook,
            detail: status.detail.clone(),
        })
    })
}

/// What the kernel refused is named by its age, where that is why. Kernels are not refused for it: distributions
/// bring much to old ones.
fn refused(config: &Config, error: LoadError) -> AttachError {
    let release = read(&config.procfs.join("sys/kernel/osrelease")).unwrap_or_default();
    let release = release.trim();
    if matches!(error, LoadError::Object(_)) && !release.is_empty() && is_before(release, OLDEST) {
        return AttachError::TooOld {
            release: release.to_owned(),
            error,
        };
    }
    error.into()
}

/// Reads a small file.
pub(crate) fn read(path: &Path) -> Result<String, AttachError> {
    fs::read_to_string(path).map_err(|source| AttachError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Why disk I/O can't be told apart by cgroup; `None` where it can.
fn io_controller_off(io_hierarchy: Option<u16>, mounts: &[Mount]) -> Option<String> {
    let Some(hierarchy) = io_hierarchy else {
        return Some(
            "this kernel has no I/O controller: all I/O belongs to the root cgroup".to_owned(),
        );
    };
    if hierarchy != 0 {
        return None;
    }
    let root = mounts.iter().find(|mount| mount.hierarchy == 0)?;
    let path = root.path.join("cgroup.subtree_control");
    let controllers = fs::read_to_string(&path).ok()?;
    (!controllers.split_whitespace().any(|name| name == "io")).then(|| {
        format!(
            "the io controller is off below the root, so all I/O belongs to the root cgroup; `echo +io > {}` turns it on",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_io_controller_may_be_off() {
        let root = std::env::temp_dir().join(format!("sentry-io-{}", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let mounts = [Mount {
            hierarchy: 0,
            path: root.clone(),
            root: "/".to_owned(),
        }];
        fs::write(root.join("cgroup.subtree_control"), "cpu memory\n").unwrap();
        assert!(io_controller_off(Some(0), &mounts).unwrap().contains("+io"));
        fs::write(root.join("cgroup.subtree_control"), "cpu io memory\n").unwrap();
        assert_eq!(io_controller_off(Some(0), &mounts), None);
        assert_eq!(io_controller_off(Some(7), &mounts), None);
        assert!(io_controller_off(None, &mounts).is_some());
        fs::remove_dir_all(&root).unwrap();
    }
}
