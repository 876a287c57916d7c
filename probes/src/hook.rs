//! One program at its place in the kernel: whether the kernel can have it there, and what it says
//! where it refuses.

use std::{
    error::Error,
    fs,
    io::{self, ErrorKind},
    path::Path,
};

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, KProbe, Program as Loaded, ProgramError, RawTracePoint, TracePoint},
};

use crate::spec::{Hook, Program, Reason, Refusal, Verdict};

/// The mode in force stands in brackets in `/sys/kernel/security/lockdown`.
const CONFIDENTIAL: &str = "[confidentiality]";

/// There with `CONFIG_KPROBE_EVENTS`.
const KPROBE_PMU: &str = "/sys/bus/event_source/devices/kprobe/type";

/// What decides beforehand whether a program can be attached, and explains afterwards why not.
#[derive(Debug)]
pub(crate) struct Host {
    /// The kernel's own types, which its verifier knows; else why there are none.
    pub(crate) own_types: Result<(), String>,
    /// Whether there are any types, its own or from a file.
    pub(crate) any_types: bool,
    /// Whether the kernel is locked down in the mode confidentiality; integrity forbids nothing here.
    pub(crate) is_confidential: bool,
    /// `kernel.perf_event_paranoid`, where it can be read.
    pub(crate) perf_event_paranoid: Option<i32>,
}

impl Host {
    pub(crate) fn new(own_types: Result<(), String>, types_of_file: bool) -> Self {
        let lockdown = fs::read_to_string("/sys/kernel/security/lockdown");
        let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
        Self {
            any_types: own_types.is_ok() || types_of_file,
            own_types,
            is_confidential: lockdown.is_ok_and(|text| text.contains(CONFIDENTIAL)),
            perf_event_paranoid: paranoid.ok().and_then(|text| text.trim().parse().ok()),
        }
    }

    /// The kernel's own types turned out to be of no use.
    pub(crate) fn lacks_types(&mut self, why: String) {
        self.own_types = Err(why);
        self.any_types = false;
    }

    /// Adds what of the host's settings is behind a refusal.
    pub(crate) fn explain(&self, hook: &Hook, refusal: Refusal) -> Refusal {
        let Refusal {
            verdict,
            reason,
            mut detail,
        } = refusal;
        let denied = reason == Reason::NoPermission;
        // The helpers that read kernel memory are not there in the mode confidentiality, and tracefs
        // cannot be mounted.
        let unread = reason == Reason::Rejected && detail.contains("bpf_probe_read");
        let closed = denied || unread || reason == Reason::NoTracefs;
        if self.is_confidential && closed {
            return Refusal {
                verdict: Verdict::Unsupported,
                reason: Reason::Lockdown,
                detail: format!("{detail}; the kernel is locked down (confidentiality)"),
            };
        }
        let perf = matches!(hook, Hook::Kprobe(_) | Hook::Tracepoint(_));
        if let Some(paranoid @ 3..) = self.perf_event_paranoid
            && denied
            && perf
        {
            detail = format!(
                "{detail}; kernel.perf_event_paranoid is {paranoid}, and above 2 Debian's kernels ask for CAP_SYS_ADMIN here"
            );
        }
        Refusal {
            verdict,
            reason,
            detail,
        }
    }

    /// Whether a program can be fitted to this kernel at all, as far as can be said before it is
    /// loaded.
    ///
    /// # Errors
    /// What is missing.
    pub(crate) fn suffices_for(&self, hook: &Hook) -> Result<(), Refusal> {
        let no_btf = |detail: String| {
            Err(Refusal {
                verdict: Verdict::Unsupported,
                reason: Reason::NoBtf,
                detail,
            })
        };
        match (hook, &self.own_types) {
            (Hook::TpBtf(_), Err(why)) => no_btf(format!(
                "the kernel has no type information of its own: {why}"
            )),
            (Hook::RawTracepoint(_) | Hook::Kprobe(_), Err(why)) if !self.any_types => no_btf(
                format!("no type information, neither of the kernel ({why}) nor by --btf"),
            ),
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

/// What holds a program at its hook; dropped, it lets go of it, and the program stays loaded.
pub(crate) type Link = Box<dyn Send + Sync>;

/// Lets a loaded program run at its hook.
pub(crate) fn attach(ebpf: &mut Ebpf, program: &Program) -> Result<Link, Refusal> {
    let name = program.name;
    let attached: Result<Link, ProgramError> = match program.hook {
        Hook::TpBtf(_) => {
            let program: &mut BtfTracePoint = typed(ebpf, name)?;
            let link = program.attach().and_then(|id| program.take_link(id));
            link.map(|link| Box::new(link) as Link)
        }
        Hook::RawTracepoint(point) => {
            let program: &mut RawTracePoint = typed(ebpf, name)?;
            let link = program.attach(point).and_then(|id| program.take_link(id));
            link.map(|link| Box::new(link) as Link)
        }
        Hook::Kprobe(function) => {
            let program: &mut KProbe = typed(ebpf, name)?;
            let id = program.attach(function, 0);
            let link = id.and_then(|id| program.take_link(id));
            link.map(|link| Box::new(link) as Link)
        }
        Hook::Tracepoint(record) => {
            let program: &mut TracePoint = typed(ebpf, name)?;
            let id = program.attach(record.category, record.event);
            let link = id.and_then(|id| program.take_link(id));
            link.map(|link| Box::new(link) as Link)
        }
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
                && !line.starts_with("stack depth")
                && !line.starts_with("subprog ")
        })
        .map(|line| format!(" ({line})"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(lockdown: &str, perf_event_paranoid: i32) -> Host {
        Host {
            own_types: Ok(()),
            any_types: true,
            is_confidential: lockdown.contains(CONFIDENTIAL),
            perf_event_paranoid: Some(perf_event_paranoid),
        }
    }

    fn refusal(reason: Reason, detail: &str) -> Refusal {
        Refusal {
            verdict: Verdict::Failed,
            reason,
            detail: detail.to_owned(),
        }
    }

    #[test]
    fn settings_of_the_host_explain_refusals() {
        const OPEN: &str = "[none] integrity confidentiality\n";
        const INTEGRITY: &str = "none [integrity] confidentiality\n";
        const CLOSED: &str = "none integrity [confidentiality]\n";
        let unread = "unknown func bpf_probe_read_kernel#113";
        let (raw, kprobe) = (Hook::RawTracepoint("x"), Hook::Kprobe("x"));
        for (host, hook, reason, detail, expected) in [
            (
                host(OPEN, 2),
                kprobe,
                Reason::NoPermission,
                "no",
                (Reason::NoPermission, "no"),
            ),
            (
                host(OPEN, 3),
                kprobe,
                Reason::NoPermission,
                "no",
                (
                    Reason::NoPermission,
                    "no; kernel.perf_event_paranoid is 3, and above 2 Debian's kernels ask for CAP_SYS_ADMIN here",
                ),
            ),
            (
                host(OPEN, 3),
                raw,
                Reason::NoPermission,
                "no",
                (Reason::NoPermission, "no"),
            ),
            (
                host(CLOSED, 3),
                raw,
                Reason::Rejected,
                unread,
                (
                    Reason::Lockdown,
                    "unknown func bpf_probe_read_kernel#113; the kernel is locked down (confidentiality)",
                ),
            ),
            (
                host(INTEGRITY, 2),
                kprobe,
                Reason::NoPermission,
                "no",
                (Reason::NoPermission, "no"),
            ),
            (
                host(CLOSED, 3),
                raw,
                Reason::NoHook,
                "none",
                (Reason::NoHook, "none"),
            ),
        ] {
            let told = host.explain(&hook, refusal(reason, detail));
            assert_eq!((told.reason, told.detail.as_str()), expected);
        }
    }
}
