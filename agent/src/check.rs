//! `sentry check`: what this kernel allows, found out by attaching for a moment.

use std::{fs, io, path::Path, process::ExitCode};

use probes::{LoadError, Reason, Status, Verdict, cgroup::Events};
use serde::Serialize;

use crate::{
    attach::{self, AttachError},
    config::{Config, Format},
    enrich::cgroup::mounts,
};

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    host: Vec<Fact>,
    probes: Vec<Line>,
}

/// Something about the host that the probes depend on.
#[derive(Debug, Serialize)]
struct Fact {
    name: &'static str,
    value: String,
}

/// A probe and what became of it.
#[derive(Debug, Serialize)]
struct Line {
    probe: &'static str,
    verdict: &'static str,
    hook: &'static str,
    reason: &'static str,
    detail: String,
    /// Better hooks that this kernel does not allow.
    passed_over: Vec<Better>,
}

/// A hook that is not used, and why.
#[derive(Debug, Serialize)]
struct Better {
    hook: &'static str,
    reason: &'static str,
    detail: String,
}

impl From<&Status> for Line {
    fn from(status: &Status) -> Self {
        Self {
            probe: status.probe,
            verdict: status.verdict.name(),
            hook: status.hook,
            reason: status.reason.code(),
            detail: status.detail.clone(),
            passed_over: status
                .passed_over
                .iter()
                .map(|passed| Better {
                    hook: passed.hook,
                    reason: passed.why.reason.code(),
                    detail: passed.why.detail.clone(),
                })
                .collect(),
        }
    }
}

/// Prints the report. The exit code is 0 if at least one probe can attach.
pub(crate) fn run(config: &Config, format: Format) -> anyhow::Result<ExitCode> {
    let attached = attach::attach(config);
    let statuses = match &attached {
        Ok(attached) => {
            let probes = attached.kernel.probes.iter();
            let mut statuses: Vec<Status> =
                probes.map(|installed| installed.status.clone()).collect();
            statuses.push(names(&attached.cgroup_events));
            statuses
        }
        Err(error) => none(config, error),
    };
    let probe = |status: &&Status| status.probe != NAMES;
    let up = statuses
        .iter()
        .filter(probe)
        .any(|status| status.verdict.is_up());
    let report = Report {
        host: host(config),
        probes: statuses.iter().map(Line::from).collect(),
    };
    match format {
        Format::Table => print!("{}", table(&report)),
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(if up {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What names the cgroups: no probe, but a line of its own.
const NAMES: &str = "cgroup";

fn names(events: &Result<Events, Status>) -> Status {
    match events {
        Ok(events) => Status {
            detail: "names of cgroups as they come and go".to_owned(),
            ..events.status.clone()
        },
        Err(status) => status.clone(),
    }
}

/// The verdict on all probes where nothing could be attached at all.
fn none(config: &Config, error: &AttachError) -> Vec<Status> {
    let (verdict, reason) = match error {
        AttachError::Privileges { .. } => (Verdict::Failed, Reason::NoPermission),
        AttachError::Load(LoadError::Btf { .. }) => (Verdict::Failed, Reason::NoBtf),
        _ => (Verdict::Failed, Reason::MapError),
    };
    attach::selected(config)
        .iter()
        .map(|(probe, hook)| Status {
            probe: probe.name,
            hook: probe
                .rungs
                .iter()
                .map(|rung| rung.hook)
                .find(|name| hook.is_none_or(|hook| hook == *name))
                .unwrap_or_default(),
            verdict,
            reason,
            detail: error.to_string(),
            passed_over: Vec::new(),
        })
        .collect()
}

fn host(config: &Config) -> Vec<Fact> {
    let read = |path: &Path| {
        fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .map_err(|error| format!("unknown ({}: {error})", path.display()))
    };
    let text = |result: Result<String, String>| result.unwrap_or_else(|error| error);
    let proc = |path: &str| read(&config.procfs.join(path));
    let btf = config.sysfs.join("kernel/btf/vmlinux");
    let lockdown = config.sysfs.join("kernel/security/lockdown");
    let mountinfo = proc("self/mountinfo").unwrap_or_default();
    let fact = |name, value| Fact { name, value };
    vec![
        fact("kernel", text(proc("sys/kernel/osrelease"))),
        fact(
            "BTF",
            if btf.exists() {
                btf.display().to_string()
            } else {
                format!("missing ({})", btf.display())
            },
        ),
        fact("lockdown", lockdown_mode(&lockdown)),
        fact(
            "privileges",
            privileges(&proc("self/status").unwrap_or_default()),
        ),
        fact("tracefs", tracefs(&mountinfo)),
        fact(
            "cgroups",
            cgroup_mode(&mountinfo, proc("cgroups").ok().as_deref()),
        ),
    ]
}

/// The mode in brackets is the one in force. Without the module there is no file, in a securityfs
/// that has others; without securityfs nobody can tell.
fn lockdown_mode(path: &Path) -> String {
    match fs::read_to_string(path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let others = path
                .parent()
                .and_then(|folder| fs::read_dir(folder).ok()?.next());
            if others.is_some() {
                "not built in".to_owned()
            } else {
                "unknown: securityfs is not mounted".to_owned()
            }
        }
        Err(error) => format!("unknown ({}: {error})", path.display()),
    }
}

fn privileges(status: &str) -> String {
    let missing = attach::missing_capabilities(status);
    if missing.is_empty() {
        "CAP_BPF and CAP_PERFMON are there".to_owned()
    } else {
        format!("missing: {}", missing.join(" and "))
    }
}

/// Where tracefs is mounted, from the text of mountinfo.
fn tracefs(mountinfo: &str) -> String {
    mountinfo
        .lines()
        .find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            right
                .starts_with("tracefs ")
                .then(|| left.split(' ').nth(4))?
        })
        .map_or_else(
            || "not mounted (the hooks in use do not need it)".to_owned(),
            str::to_owned,
        )
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

fn table(report: &Report) -> String {
    let facts = report
        .host
        .iter()
        .map(|fact| format!("{:<11} {}\n", fact.name, fact.value));
    let head = ["PROBE", "VERDICT", "HOOK", "REASON", "DETAIL"].map(str::to_owned);
    let lines = report.probes.iter().flat_map(|line| {
        let row = [
            line.probe,
            line.verdict,
            line.hook,
            line.reason,
            &line.detail,
        ];
        // Beneath it, why not a better one.
        let better = line.passed_over.iter();
        let better = better.map(|passed| ["", "not", passed.hook, passed.reason, &passed.detail]);
        std::iter::once(row)
            .chain(better)
            .map(|row| row.map(str::to_owned))
    });
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(lines).collect();
    let widths: Vec<usize> = (0..4)
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let lines = rows.iter().map(|row| {
        let padded: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        format!("{}{}", padded.concat(), row[4])
            .trim_end()
            .to_owned()
            + "\n"
    });
    facts
        .chain(std::iter::once("\n".to_owned()))
        .chain(lines)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const V1: &str = "31 23 0:27 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n";

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
    fn a_table_lines_up() {
        let report = Report {
            host: vec![Fact {
                name: "kernel",
                value: "6.1".to_owned(),
            }],
            probes: vec![Line {
                probe: "tcp",
                verdict: "unsupported",
                hook: "tp_btf",
                reason: "no_btf",
                detail: "gone".to_owned(),
                passed_over: vec![Better {
                    hook: "kprobe",
                    reason: "no_hook",
                    detail: "none".to_owned(),
                }],
            }],
        };
        assert_eq!(
            table(&report),
            "kernel      6.1\n\n\
             PROBE  VERDICT      HOOK    REASON   DETAIL\n\
             tcp    unsupported  tp_btf  no_btf   gone\n\
             \x20      not          kprobe  no_hook  none\n"
        );
    }
}
