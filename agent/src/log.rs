//! The log, on standard error.

use probes::{Reason, Status, Verdict};
use tracing::Level;

use crate::config::LogFormat;

/// Starts logging. A second call does nothing.
pub(crate) fn init(level: Level, format: LogFormat) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => builder
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Says what became of a probe.
pub(crate) fn verdict(status: &Status) {
    let (probe, hook, reason) = (status.probe, status.hook, status.reason.code());
    let verdict = status.verdict.name();
    for passed in &status.passed_over {
        let (reason, detail) = (passed.why.reason.code(), &passed.why.detail);
        tracing::info!(probe, hook = passed.hook, reason, "not used: {detail}");
    }
    match status.verdict {
        Verdict::Attached if status.detail.is_empty() => tracing::info!(probe, hook, "{verdict}"),
        Verdict::Attached => tracing::info!(probe, hook, "{verdict}: {}", status.detail),
        // Most hosts have no GPU, and nothing is amiss.
        Verdict::Unsupported if status.reason == Reason::NoCuda => {
            tracing::info!(probe, hook, reason, "{verdict}: {}", status.detail);
        }
        _ => tracing::warn!(probe, hook, reason, "{verdict}: {}", status.detail),
    }
}
