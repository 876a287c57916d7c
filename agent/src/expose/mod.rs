//! The agent's HTTP side: metrics, health, readiness and the landing page, for clients that may be slow or greedy.

pub(crate) mod bind;
#[cfg(test)]
mod documentation;
pub(crate) mod format;
pub(crate) mod http;
#[cfg(test)]
mod loopback;
pub(crate) mod metrics;
mod model;
pub(crate) mod otlp;
mod protobuf;
pub(crate) mod self_metrics;
pub(crate) mod server;
mod text;
pub(crate) mod verdicts;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use bind::bind;
pub(crate) use server::{Limits, runtime, serve};

use format::Format;

/// An exposition in one of the formats, part after part.
pub(crate) type Parts = Box<dyn Iterator<Item = Vec<u8>> + Send>;

/// Where the metrics come from.
pub(crate) trait Scrape: Send + Sync {
    /// The complete exposition, as it is at this moment. May take milliseconds: it runs beside the server, in at most two
    /// threads at a time. Each part is made by the server's own thread, so none may take a millisecond.
    fn scrape(&self, format: Format) -> Parts;
}

/// Where the state of the probes comes from. Both methods run on the server's own thread, so they must not block.
pub(crate) trait Readiness: Send + Sync {
    /// Whether a probe is attached.
    ///
    /// # Errors
    /// Why none is, as `/readyz` shows it.
    fn ready(&self) -> Result<String, String>;

    /// The verdict on each probe, as the landing page lists them.
    fn probes(&self) -> Vec<ProbeVerdict>;
}

/// What became of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeVerdict {
    /// The probe, such as `tcp`.
    pub(crate) name: String,
    /// The hook it uses, such as `tp_btf`; empty if none.
    pub(crate) hook: String,
    /// `attached`, `degraded`, `unsupported` or `failed`.
    pub(crate) verdict: String,
    /// Why, for a person.
    pub(crate) reason: String,
}

/// What the server serves, and to whom it counts its refusals.
pub(crate) struct Exposed {
    /// The metrics.
    pub(crate) scrape: Arc<dyn Scrape>,
    /// The state of the probes.
    pub(crate) readiness: Arc<dyn Readiness>,
    /// The server's own counters, to be read by whoever makes the metrics.
    pub(crate) stats: Arc<HttpStats>,
    /// Where the metrics are served.
    pub(crate) telemetry_path: TelemetryPath,
    /// Time limits.
    pub(crate) limits: Limits,
}

/// Counters of what the server had to refuse or cut off. They only grow.
#[derive(Debug, Default)]
pub(crate) struct HttpStats {
    connections_refused: AtomicU64,
    scrapes_refused: AtomicU64,
    timeouts: AtomicU64,
    accept_errors: AtomicU64,
}

impl HttpStats {
    /// Connections closed at once because too many were open.
    #[must_use]
    pub(crate) fn connections_refused_total(&self) -> u64 {
        self.connections_refused.load(Ordering::Relaxed)
    }

    /// Scrapes answered with 503 because too many were under way.
    #[must_use]
    pub(crate) fn scrapes_refused_total(&self) -> u64 {
        self.scrapes_refused.load(Ordering::Relaxed)
    }

    /// Connections cut off because the client was too slow to send its request or to read the answer.
    #[must_use]
    pub(crate) fn timeouts_total(&self) -> u64 {
        self.timeouts.load(Ordering::Relaxed)
    }

    /// Connections that the kernel failed to hand over, for want of file descriptors for instance.
    #[must_use]
    pub(crate) fn accept_errors_total(&self) -> u64 {
        self.accept_errors.load(Ordering::Relaxed)
    }
}

/// Where the metrics are served: a plain absolute path that nothing else uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TelemetryPath(String);

impl TelemetryPath {
    /// The path as text.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TelemetryPath {
    fn default() -> Self {
        Self("/metrics".to_owned())
    }
}

impl fmt::Display for TelemetryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path that metrics can't be served at. The message says what is allowed; the caller adds which setting it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} can't be the path of the metrics; allowed are / followed by letters, digits and any of -._~/, except /, /healthz, /readyz, /api and what is below /api/"
)]
pub(crate) struct TelemetryPathError(String);

impl FromStr for TelemetryPath {
    type Err = TelemetryPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
        let taken = matches!(text, "/" | "/healthz" | "/readyz" | "/api");
        if text.starts_with('/') && text.chars().all(plain) && !taken && !text.starts_with("/api/")
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(TelemetryPathError(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn telemetry_paths() {
        for path in ["/metrics", "/a/b-c_d.e~1", "/healthz/", "/apis"] {
            assert_eq!(path.parse::<TelemetryPath>().unwrap().as_str(), path);
        }
        for path in [
            "", "/", "metrics", "/healthz", "/readyz", "/api", "/api/v1", "/{x}", "/a b", "/a?b",
            "/ü", "/*a",
        ] {
            assert_eq!(
                path.parse::<TelemetryPath>().unwrap_err().to_string(),
                format!(
                    "{path:?} can't be the path of the metrics; allowed are / followed by letters, digits and any of -._~/, except /, /healthz, /readyz, /api and what is below /api/"
                )
            );
        }
        assert_eq!(TelemetryPath::default().to_string(), "/metrics");
    }
}
