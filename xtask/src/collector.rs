//! A real OpenTelemetry collector, for the test that has the agent send to one.

use std::path::PathBuf;

use crate::pypi::Packages;

/// Fetches it once, 4 MB. The folder that it is in.
pub(crate) fn fetch() -> anyhow::Result<PathBuf> {
    let packages = Packages {
        what: "an OpenTelemetry collector, which a test of OTLP takes",
        requirements: "agent/tests/collector/requirements.txt",
        variable: "SENTRY_COLLECTOR_CACHE",
        folder: "collector",
        compiled: false,
    };
    packages.fetch()
}
