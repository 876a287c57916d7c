//! `sentry check`: what this kernel allows, found out by attaching for a moment.

mod facts;

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use probes::{
    LoadError, Reason, Status, Verdict,
    cgroup::Events,
    gpu::{Follower, Library},
};
use serde::Serialize;

use crate::{
    attach::{self, AttachError},
    config::{Config, Format},
    expose::web_config::WebConfig,
    privileges,
};

use facts::Fact;

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    host: Vec<Fact>,
    probes: Vec<Line>,
    /// Files with CUDA functions that are mapped now, if the gpu probe was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    cuda: Option<Vec<CudaLibrary>>,
}

/// A file with CUDA functions.
#[derive(Debug, Serialize)]
struct CudaLibrary {
    path: String,
    version: String,
    /// The ids of the processes that map it.
    users: Vec<u32>,
    found: Vec<String>,
    hooked: Vec<String>,
    /// Hooked at some 10 us a call.
    single_stepped: Vec<String>,
    error: String,
}

impl From<Library> for CudaLibrary {
    fn from(library: Library) -> Self {
        Self {
            path: library.path.display().to_string(),
            version: library.version,
            users: library.users,
            found: library.found,
            hooked: library.hooked,
            single_stepped: library.single_stepped,
            error: library.error,
        }
    }
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
    privileges::raise()?;
    let web = config.web.as_deref();
    let web = web
        .map(|path| WebConfig::load(path, Arc::default()))
        .transpose()?;
    let mut attached = attach::attach(config, None);
    if let Ok(attached) = &mut attached
        && let Some(follower) = &mut attached.gpu
    {
        // The first time it looks through what runs.
        follower.follow(Duration::ZERO);
        attach::follow_status(&mut attached.kernel, follower);
    }
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
        host: facts::host(
            config,
            attached.as_ref().ok().map(|attached| &attached.kernel),
            web.as_ref(),
        )?,
        probes: statuses.iter().map(Line::from).collect(),
        cuda: attached
            .as_ref()
            .ok()
            .and_then(|attached| attached.gpu.as_ref())
            .map(cuda),
    };
    let text = match format {
        Format::Table => table(&report),
        Format::Json => serde_json::to_string_pretty(&report)? + "\n",
    };
    match io::stdout().write_all(text.as_bytes()) {
        // A reader that left early, as in `sentry check | head`, is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).context("standard output");
        }
        _ => {}
    }
    Ok(if up {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn cuda(follower: &Follower) -> Vec<CudaLibrary> {
    let libraries = follower.gpu().libraries();
    libraries.into_iter().map(CudaLibrary::from).collect()
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
        AttachError::TooOld { .. } => (Verdict::Unsupported, Reason::KernelTooOld),
        AttachError::Load(LoadError::Btf { .. }) => (Verdict::Failed, Reason::NoBtf),
        AttachError::Load(_) => (Verdict::Failed, Reason::MapError),
        AttachError::Read { .. } | AttachError::Forced { .. } => {
            (Verdict::Failed, Reason::AttachError)
        }
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

fn table(report: &Report) -> String {
    let width = report.host.iter().map(|fact| fact.name.len()).max();
    let facts = report.host.iter().map(|fact| {
        let meaning = fact.meaning.as_ref();
        let meaning = meaning.map_or_else(String::new, |text| format!(" ({text})"));
        let width = width.unwrap_or(0);
        format!("{:<width$}  {}{meaning}\n", fact.name, fact.value)
    });
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
    let mut text: String = facts.collect();
    text.push('\n');
    text.push_str(&columns(&rows));
    let cuda = report.cuda.as_deref().unwrap_or_default();
    if !cuda.is_empty() {
        text.push('\n');
        text.push_str(&cuda_table(cuda));
    }
    text
}

fn cuda_table(libraries: &[CudaLibrary]) -> String {
    let head = ["CUDA IN", "VERSION", "USERS", "HOOKED", "SLOW", "DETAIL"].map(str::to_owned);
    let rows = libraries.iter().map(|library| {
        let (found, hooked) = (&library.found, &library.hooked);
        let left: Vec<&str> = found
            .iter()
            .filter(|name| !hooked.contains(name))
            .map(String::as_str)
            .collect();
        let mut detail = library.error.clone();
        if !detail.is_empty() && !hooked.is_empty() && !left.is_empty() {
            detail = format!("{detail}; not hooked: {}", left.join(", "));
        }
        let version = if library.version.is_empty() {
            "-"
        } else {
            &library.version
        };
        [
            library.path.clone(),
            version.to_owned(),
            library.users.len().to_string(),
            format!("{} of {}", hooked.len(), found.len()),
            library.single_stepped.len().to_string(),
            detail,
        ]
    });
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// Rows whose columns line up; the last one may be of any width.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max();
    let widths: Vec<usize> = (0..N - 1).filter_map(width).collect();
    let lines = rows.iter().map(|row| {
        let padded: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        format!("{}{}", padded.concat(), row[N - 1])
            .trim_end()
            .to_owned()
            + "\n"
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up() {
        let mut report = Report {
            host: vec![
                Fact {
                    name: "kernel",
                    value: "6.1".to_owned(),
                    meaning: None,
                },
                Fact {
                    name: "JIT",
                    value: "0".to_owned(),
                    meaning: Some("off".to_owned()),
                },
            ],
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
            cuda: Some(Vec::new()),
        };
        let probes = "kernel  6.1\n\
             JIT     0 (off)\n\n\
             PROBE  VERDICT      HOOK    REASON   DETAIL\n\
             tcp    unsupported  tp_btf  no_btf   gone\n\
             \x20      not          kprobe  no_hook  none\n";
        assert_eq!(table(&report), probes);

        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        report.cuda = Some(vec![
            CudaLibrary {
                path: "/usr/lib/libcudart.so.12.8.90".to_owned(),
                version: "12.8.90".to_owned(),
                users: vec![7, 12],
                found: names(&["cudaFree", "cudaMalloc"]),
                hooked: names(&["cudaFree", "cudaMalloc"]),
                single_stepped: names(&["cudaFree"]),
                error: String::new(),
            },
            CudaLibrary {
                path: "/app".to_owned(),
                version: String::new(),
                users: vec![9],
                found: names(&["cudaFree", "cudaMalloc"]),
                hooked: names(&["cudaFree"]),
                single_stepped: Vec::new(),
                error: "cudaMalloc cannot be hooked".to_owned(),
            },
        ]);
        assert_eq!(
            table(&report),
            format!(
                "{probes}\n\
                 CUDA IN                        VERSION  USERS  HOOKED  SLOW  DETAIL\n\
                 /usr/lib/libcudart.so.12.8.90  12.8.90  2      2 of 2  1\n\
                 /app                           -        1      1 of 2  0     cudaMalloc cannot be hooked; not hooked: cudaMalloc\n"
            )
        );
    }
}
