//! What npm brings for the page: the library of its charts, and what its tests drive a browser with.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, ensure};

use crate::{step, succeeds, words};

/// What npm is to bring, by version and hash.
pub(crate) const LOCK: &str = "page/package-lock.json";
const MODULES: &str = "page/node_modules";

/// Brings the charts' library, for a build that may do without.
pub(crate) fn charts() {
    if !succeeds(Command::new("npm").arg("--version")) {
        eprintln!(
            "==> page: charts SKIPPED, there is no npm; the page says so, and its tables are complete"
        );
    } else if let Err(error) = bring("charts", "--omit=dev") {
        eprintln!("==> page: charts SKIPPED, the page says so: {error:#}");
    }
}

/// Brings all of it, for the tests.
pub(crate) fn all() -> anyhow::Result<()> {
    bring("all", "--include=dev")
}

/// Once, until other versions are asked for. `npm ci` takes exactly those of the lock file, by their hashes.
fn bring(what: &str, flag: &str) -> anyhow::Result<()> {
    let lock = fs::read_to_string(LOCK).context(LOCK)?;
    let stamp = Path::new(MODULES).join(".sentry-brought");
    let present = fs::read_to_string(&stamp).unwrap_or_default();
    let is_enough = |kind: &str| present == format!("{kind}\n{lock}");
    if is_enough(what) || is_enough("all") {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    npm.args(words("ci --ignore-scripts --no-audit --no-fund"))
        .current_dir("page");
    step("page: what npm brings", npm.arg(flag))?;
    let library = Path::new(MODULES).join("uplot/dist/uPlot.iife.min.js");
    ensure!(library.exists(), "npm brought no {}", library.display());
    fs::write(&stamp, format!("{what}\n{lock}")).with_context(|| stamp.display().to_string())
}
