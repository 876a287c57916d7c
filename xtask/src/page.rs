//! What npm brings for the page: the library of its charts, and what its tests drive a browser with.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{step, succeeds, words};

/// What npm is to bring, by version and hash.
pub(crate) const LOCK: &str = "page/package-lock.json";

/// What it has brought, as it notes itself.
const PRESENT: &str = "page/node_modules/.package-lock.json";

/// Brings the charts' library, for a build that may do without.
pub(crate) fn charts() {
    if !succeeds(Command::new("npm").arg("--version")) {
        eprintln!(
            "==> page: charts SKIPPED, there is no npm; the page says so, and its tables are complete"
        );
    } else if let Err(error) = bring(false) {
        eprintln!("==> page: charts SKIPPED, the page says so: {error:#}");
    }
}

/// Brings all of it, for the tests.
pub(crate) fn all() -> anyhow::Result<()> {
    bring(true)
}

/// Unless it is there. `npm ci` takes exactly the versions of the lock file, by their hashes.
fn bring(for_tests: bool) -> anyhow::Result<()> {
    let is_there = || -> anyhow::Result<bool> {
        let lock = fs::read_to_string(LOCK).context(LOCK)?;
        let present = fs::read_to_string(PRESENT).unwrap_or_default();
        let present = serde_json::from_str(&present).unwrap_or_default();
        Ok(has_all(&serde_json::from_str(&lock)?, &present, for_tests))
    };
    if is_there()? {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    npm.args(words("ci --ignore-scripts --no-audit --no-fund"))
        .arg(if for_tests {
            "--include=dev"
        } else {
            "--omit=dev"
        })
        .current_dir(Path::new(LOCK).parent().context(LOCK)?);
    step("page: what npm brings", &mut npm)?;
    ensure!(is_there()?, "npm has not brought what {LOCK} has");
    Ok(())
}

/// Whether what is present has all that the lock file wants.
fn has_all(lock: &Value, present: &Value, for_tests: bool) -> bool {
    let packages = lock["packages"].as_object().into_iter().flatten();
    packages
        // The first is the page itself.
        .filter(|(path, _)| !path.is_empty())
        .filter(|(_, package)| for_tests || package["dev"] != true)
        .all(|(path, package)| present["packages"][path]["integrity"] == package["integrity"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_not_brought_again() {
        let lock = serde_json::json!({"packages": {
            "": {"name": "page"},
            "node_modules/a": {"integrity": "sha512-1"},
            "node_modules/b": {"integrity": "sha512-2", "dev": true},
        }});
        let mut present = serde_json::json!({"packages": {
            "node_modules/a": {"integrity": "sha512-1"},
        }});
        assert!(has_all(&lock, &present, false));
        assert!(!has_all(&lock, &present, true));
        assert!(has_all(&lock, &lock, true));
        present["packages"]["node_modules/a"]["integrity"] = "sha512-3".into();
        assert!(!has_all(&lock, &present, false));
        assert!(!has_all(&lock, &Value::Null, false));
    }
}
