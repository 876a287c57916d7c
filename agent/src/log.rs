//! The log, on standard error.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
};

use probes::{Reason, Status, Verdict};
use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::Filtered,
    fmt::{
        self,
        format::{DefaultFields, Format, Full},
    },
    layer::{Layered, SubscriberExt},
    reload::{self, Handle},
    util::SubscriberInitExt,
};

use crate::config::LogFormat;

/// What changes the log while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    text: Handle<LevelFilter, Registry>,
    json: Handle<LevelFilter, Text>,
}

/// What the lines of JSON are a layer upon.
type Text = Layered<Filtered<Lines, reload::Layer<LevelFilter, Registry>, Registry>, Registry>;
type Lines = fmt::Layer<Registry, DefaultFields, Format<Full>, fn() -> io::Stderr>;

impl Log {
    /// From now on it logs so.
    pub(crate) fn set(&self, level: Level, format: LogFormat) {
        // Fails only when the subscriber is gone.
        let (text, json) = levels(level, format);
        let _ = self.text.reload(text);
        let _ = self.json.reload(json);
    }

    /// From now on it logs nothing.
    pub(crate) fn off(&self) {
        let _ = self.text.reload(LevelFilter::OFF);
        let _ = self.json.reload(LevelFilter::OFF);
    }
}

/// Of the text and of the JSON: one of them is off.
fn levels(level: Level, format: LogFormat) -> (LevelFilter, LevelFilter) {
    let level = LevelFilter::from(level);
    match format {
        LogFormat::Text => (level, LevelFilter::OFF),
        LogFormat::Json => (LevelFilter::OFF, level),
    }
}

/// Starts logging. Of a second call comes what changes nothing.
pub(crate) fn init(level: Level, format: LogFormat) -> Log {
    let stderr: fn() -> io::Stderr = io::stderr;
    let (text_level, json_level) = levels(level, format);
    let (text_level, text) = reload::Layer::new(text_level);
    let (json_level, json) = reload::Layer::new(json_level);
    // Standard error may be closed: what cannot be said there cannot be complained of there.
    let text_lines = fmt::layer()
        .log_internal_errors(false)
        .with_target(false)
        .with_writer(stderr)
        .with_ansi(io::stderr().is_terminal());
    let json_lines = fmt::layer()
        .log_internal_errors(false)
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_writer(stderr);
    let _ = tracing_subscriber::registry()
        .with(text_lines.with_filter(text_level))
        .with(json_lines.with_filter(json_level))
        .try_init();
    Log { text, json }
}

/// Tells a person something, on standard error. That nobody reads it is no reason to end, let alone to abort, as with
/// `eprintln!`.
pub(crate) fn say(message: impl Display) {
    let _ = writeln!(io::stderr(), "sentry: {message}");
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
        Verdict::Off => tracing::info!(probe, "{verdict}: {}", status.detail),
        _ => tracing::warn!(probe, hook, reason, "{verdict}: {}", status.detail),
    }
}
