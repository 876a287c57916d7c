//! The agent's HTTP side: metrics, health, readiness and the page, for clients that may be slow or greedy.

pub(crate) mod bind;
#[cfg(test)]
pub(crate) mod documentation;
pub(crate) mod format;
pub(crate) mod http;
#[cfg(test)]
mod loopback;
pub(crate) mod metrics;
mod model;
pub(crate) mod otlp;
mod page;
mod protobuf;
pub(crate) mod self_metrics;
pub(crate) mod server;
mod text;
pub(crate) mod verdicts;
pub(crate) mod web_config;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

pub(crate) use bind::bind;
pub(crate) use server::{Limits, runtime, serve};
use web_config::{HandshakeFailure, Refusal, WebConfig};

use format::Format;
use tokio::sync::mpsc;

use crate::{reload, views::who::Id};

/// An exposition in one of the formats, part after part.
pub(crate) type Parts = Box<dyn Iterator<Item = Vec<u8>> + Send>;

/// Where the metrics come from.
pub(crate) trait Scrape: Send + Sync {
    /// The complete exposition, as it is at this moment. May take milliseconds: it runs beside the server, in at most two
    /// threads at a time. Each part is made by the server's own thread, so none may take a millisecond.
    fn scrape(&self, format: Format) -> Parts;
}

/// What `/api/v1` reads. Each answer is JSON, complete and bounded; making it may take milliseconds and runs beside the
/// server, one at a time.
pub(crate) trait View: Send + Sync {
    /// The agent: what it is, its probes and its own cost.
    fn status(&self) -> Vec<u8>;

    /// The table of workloads.
    fn workloads(&self) -> Vec<u8>;

    /// Slow events, and who is behind them.
    fn events(&self) -> Vec<u8>;

    /// The steps of the history after one, of all workloads together or of one.
    fn history(&self, since: u64, workload: Option<Id>) -> Vec<u8>;
}

/// Where the state of the probes comes from. Both methods run on the server's own thread, so they must not block.
pub(crate) trait Readiness: Send + Sync {
    /// Whether a probe is attached.
    ///
    /// # Errors
    /// Why none is, as `/readyz` shows it.
    fn ready(&self) -> Result<String, String>;

    /// The verdict on each probe, as the page lists them.
    fn probes(&self) -> Vec<ProbeVerdict>;
}

/// What became of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeVerdict {
    /// The probe, such as `tcp`.
    pub(crate) name: String,
    /// The hook it uses, such as `tp_btf`; empty if none.
    pub(crate) hook: String,
    /// `attached`, `degraded`, `unsupported`, `failed` or `off`.
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
    /// What the page reads.
    pub(crate) views: Arc<dyn View>,
    /// The server's own counters, to be read by whoever makes the metrics.
    pub(crate) stats: Arc<HttpStats>,
    /// Where the metrics are served.
    pub(crate) telemetry_path: TelemetryPath,
    /// Time limits.
    pub(crate) limits: Limits,
    /// Who may connect; without it, everybody by plain HTTP.
    pub(crate) web: Option<Arc<WebConfig>>,
    /// Who reads the configuration anew upon a request, where that is allowed.
    pub(crate) reload: Option<mpsc::Sender<reload::Request>>,
}

/// Counters of what the server had to refuse or cut off. They only grow.
#[derive(Debug, Default)]
pub(crate) struct HttpStats {
    connections_refused: AtomicU64,
    scrapes_refused: AtomicU64,
    timeouts: AtomicU64,
    accept_errors: AtomicU64,
    requests_limited: AtomicU64,
    authentication_failures: [AtomicU64; AUTHENTICATION_FAILURES.len()],
    handshake_failures: [AtomicU64; HandshakeFailure::ALL.len()],
    web_config_failed: AtomicU64,
    web_config_is_old: AtomicBool,
    /// In seconds since 1970; 0 without such a file.
    web_config_success: AtomicU64,
}

/// The codes of [`Refusal`], as metrics have them.
const AUTHENTICATION_FAILURES: [&str; 6] = [
    "missing",
    "malformed",
    "unknown_user",
    "wrong_password",
    "too_many",
    "busy",
];

impl HttpStats {
    /// Connections closed because too many were open: new ones, or older ones that made room for them.
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

    /// Requests answered with 429 by the rate limit of `--web.config.file`.
    #[must_use]
    pub(crate) fn requests_limited_total(&self) -> u64 {
        self.requests_limited.load(Ordering::Relaxed)
    }

    fn refused(&self, refusal: Refusal) {
        let index = match refusal {
            Refusal::Missing => 0,
            Refusal::Malformed => 1,
            Refusal::UnknownUser => 2,
            Refusal::WrongPassword => 3,
            Refusal::TooMany(_) => 4,
            Refusal::Busy => 5,
        };
        self.authentication_failures[index].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests without a right user and password, by reason.
    pub(crate) fn authentication_failures_total(
        &self,
    ) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.authentication_failures.iter();
        AUTHENTICATION_FAILURES
            .into_iter()
            .zip(counts.map(|count| count.load(Ordering::Relaxed)))
    }

    fn handshake_failed(&self, failure: HandshakeFailure) {
        let index = HandshakeFailure::ALL
            .iter()
            .position(|known| *known == failure);
        if let Some(count) = index.and_then(|index| self.handshake_failures.get(index)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// TLS handshakes that failed, by reason.
    pub(crate) fn handshake_failures_total(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.handshake_failures.iter();
        HandshakeFailure::ALL
            .into_iter()
            .map(HandshakeFailure::code)
            .zip(counts.map(|count| count.load(Ordering::Relaxed)))
    }

    /// Notes that the file of `--web.config.file` was read, with or without success.
    fn web_config_read(&self, success: Option<SystemTime>) {
        self.web_config_is_old
            .store(success.is_none(), Ordering::Relaxed);
        match success {
            Some(now) => {
                let since_1970 = now
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                self.web_config_success
                    .store(since_1970.as_secs().max(1), Ordering::Relaxed);
            }
            None => {
                self.web_config_failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What became of the file of `--web.config.file`, if there is one.
    pub(crate) fn web_config(&self) -> Option<WebConfigReads> {
        let success = self.web_config_success.load(Ordering::Relaxed);
        (success > 0).then(|| WebConfigReads {
            last_success_seconds: success,
            last_was_successful: !self.web_config_is_old.load(Ordering::Relaxed),
            failures_total: self.web_config_failed.load(Ordering::Relaxed),
        })
    }
}

/// How reading the file of `--web.config.file` went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WebConfigReads {
    /// When it was last read with success, in seconds since 1970.
    pub(crate) last_success_seconds: u64,
    /// Whether the last attempt was one.
    pub(crate) last_was_successful: bool,
    /// Attempts that were none.
    pub(crate) failures_total: u64,
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
    "{0:?} can't be the path of the metrics; allowed are / followed by letters, digits and any of -._~/, except /, /healthz, /readyz, /api, /- and what is below those two"
)]
pub(crate) struct TelemetryPathError(String);

impl FromStr for TelemetryPath {
    type Err = TelemetryPathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._~/".contains(c);
        let taken = matches!(text, "/" | "/healthz" | "/readyz" | "/api" | "/-")
            || text.starts_with("/api/")
            || text.starts_with("/-/");
        if text.starts_with('/') && text.chars().all(plain) && !taken {
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
            "",
            "/",
            "metrics",
            "/healthz",
            "/readyz",
            "/api",
            "/api/v1",
            "/{x}",
            "/a b",
            "/a?b",
            "/ü",
            "/*a",
            "/-",
            "/-/reload",
        ] {
            assert_eq!(
                path.parse::<TelemetryPath>().unwrap_err().to_string(),
                format!(
                    "{path:?} can't be the path of the metrics; allowed are / followed by letters, digits and any of -._~/, except /, /healthz, /readyz, /api, /- and what is below those two"
                )
            );
        }
        assert_eq!(TelemetryPath::default().to_string(), "/metrics");
    }
}
