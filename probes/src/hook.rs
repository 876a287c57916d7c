//! One program at its place in the kernel: whether the kernel can have it there, and what it says
//! where it refuses.

use std::{
    error::Error,
    io::{self, ErrorKind},
    path::Path,
};

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, KProbe, Program as Loaded, ProgramError, RawTracePoint, TracePoint},
};

use crate::spec::{Hook, Program, Reason, Refusal, Verdict};

/// There with `CONFIG_KPROBE_EVENTS`.
const KPROBE_PMU: &str = "/sys/bus/event_source/devices/kprobe/type";

/// The types that programs can be fitted to.
#[derive(Debug)]
pub(crate) struct Types {
    /// The kernel's own, which its verifier knows; else why there are none.
    pub(crate) own: Result<(), String>,
    /// Whether there are any, its own or from a file.
    pub(crate) any: bool,
}

impl Types {
    /// Whether a program can be fitted to this kernel at all, as far as can be said before it is
    /// loaded.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn suffice_for(&self, hook: &Hook) -> Result<(), Refusal> {
        let no_btf = |detail: String| {
            Err(Refusal {
                verdict: Verdict::Unsupported,
                reason: Reason::NoBtf,
                detail,
            })
        };
        match (hook, &self.own) {
            (Hook::TpBtf(_), Err(why)) => no_btf(format!(
                "the kernel has no type information of its own: {why}"
            )),
            (Hook::RawTracepoint(_) | Hook::Kprobe(_), Err(why)) if !self.any => no_btf(format!(
                "no type information, neither of the kernel ({why}) nor by --btf"
            )),
            (Hook::Kprobe(_), _) if !Path::new(KPROBE_PMU).exists() => Err(Refusal {
                verdict: Verdict::Unsupported,
                reason: Reason::NoHook,
                detail: format!("this kernel has no kprobes: {KPROBE_PMU} is missing"),
            }),
            _ => Ok(()),
        }
    }
}

fn missing(name: &str) -> Refusal {
    Refusal {
        verdict: Verdict::Failed,
        reason: Reason::Rejected,
        detail: format!("the eBPF object has no program {name}"),
    }
}

/// A program of the type that its hook wants.
fn typed<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, Refusal>
where
    &'a mut T: TryFrom<&'a mut Loaded>,
{
    ebpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| missing(name))
}

/// Brings a program into the kernel. `btf` is the kernel's own.
pub(crate) fn load(ebpf: &mut Ebpf, btf: Option<&Btf>, program: &Program) -> Result<(), Refusal> {
    let name = program.name;
    let loaded = match program.hook {
        Hook::TpBtf(point) => {
            let tracepoint: &mut BtfTracePoint = typed(ebpf, name)?;
            let Some(btf) = btf else {
                return Err(missing(name));
            };
            tracepoint.load(point, btf)
        }
        Hook::RawTracepoint(_) => typed::<RawTracePoint>(ebpf, name)?.load(),
        Hook::Kprobe(_) => typed::<KProbe>(ebpf, name)?.load(),
        Hook::Tracepoint(_) => typed::<TracePoint>(ebpf, name)?.load(),
    };
    loaded.map_err(|error| match error {
        ProgramError::Btf(_) => no_point(&program.hook),
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let denied = io_error.kind() == ErrorKind::PermissionDenied && log.is_empty();
            Refusal {
                verdict: Verdict::Failed,
                reason: if denied {
                    Reason::NoPermission
                } else {
                    Reason::Rejected
                },
                detail: format!("{name} was refused: {io_error}{}", last_words(&log)),
            }
        }
        other => Refusal {
            verdict: Verdict::Failed,
            reason: Reason::Rejected,
            detail: format!("{name}: {}", chain(&other)),
        },
    })
}

/// Lets a loaded program run at its hook.
pub(crate) fn attach(ebpf: &mut Ebpf, program: &Program) -> Result<(), Refusal> {
    let name = program.name;
    let attached = match program.hook {
        Hook::TpBtf(_) => typed::<BtfTracePoint>(ebpf, name)?.attach().map(drop),
        Hook::RawTracepoint(point) => typed::<RawTracePoint>(ebpf, name)?.attach(point).map(drop),
        Hook::Kprobe(function) => typed::<KProbe>(ebpf, name)?.attach(function, 0).map(drop),
        Hook::Tracepoint(record) => typed::<TracePoint>(ebpf, name)?
            .attach(record.category, record.event)
            .map(drop),
    };
    attached.map_err(|error| match os_error(&error).map(io::Error::kind) {
        Some(ErrorKind::NotFound) => no_point(&program.hook),
        kind => Refusal {
            verdict: Verdict::Failed,
            reason: if kind == Some(ErrorKind::PermissionDenied) {
                Reason::NoPermission
            } else {
                Reason::AttachError
            },
            detail: format!("{name} cannot be attached: {}", chain(&error)),
        },
    })
}

/// Takes a program out of the kernel.
pub(crate) fn unload(ebpf: &mut Ebpf, name: &str) {
    // It has been loaded, so this cannot fail.
    let _ = match ebpf.program_mut(name) {
        Some(Loaded::BtfTracePoint(program)) => program.unload(),
        Some(Loaded::RawTracePoint(program)) => program.unload(),
        Some(Loaded::KProbe(program)) => program.unload(),
        Some(Loaded::TracePoint(program)) => program.unload(),
        _ => Ok(()),
    };
}

fn no_point(hook: &Hook) -> Refusal {
    let kind = match hook {
        Hook::Kprobe(_) => "function to probe named",
        _ => "tracepoint",
    };
    Refusal {
        verdict: Verdict::Unsupported,
        reason: Reason::NoHook,
        detail: format!("this kernel has no {kind} {}", hook.point()),
    }
}

/// The error of the system call that is at the bottom of it.
fn os_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error);
        }
        cause = error.source();
    }
    None
}

/// An error and its causes: they name the map, the type or the file, which is what helps.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

/// The verifier's complaint, without its statistics and the trace before it.
fn last_words(log: &str) -> String {
    log.lines()
        .map(str::trim)
        .rfind(|line| {
            !line.is_empty()
                && !line.starts_with("processed ")
                && !line.starts_with("verification time")
        })
        .map(|line| format!(" ({line})"))
        .unwrap_or_default()
}
