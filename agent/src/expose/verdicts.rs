//! The probes' verdicts, as readiness and the page want them.

use std::sync::{Arc, Mutex};

use probes::Status;

use super::{ProbeVerdict, Readiness};
use crate::collect::lock;

/// Reads the verdicts that the collector keeps. The lock is never held for long.
#[derive(Debug)]
pub(crate) struct Verdicts(pub(crate) Arc<Mutex<Vec<Status>>>);

impl Readiness for Verdicts {
    fn ready(&self) -> Result<String, String> {
        let statuses = lock(&self.0);
        let text = statuses
            .iter()
            .map(|status| match status.detail.as_str() {
                "" => format!("{}: {}", status.probe, status.verdict.name()),
                detail => format!("{}: {}: {detail}", status.probe, status.verdict.name()),
            })
            .collect::<Vec<_>>()
            .join("\n");
        if statuses.iter().any(|status| status.verdict.is_up()) {
            Ok(text)
        } else {
            Err(format!("no probe is attached\n{text}"))
        }
    }

    fn probes(&self) -> Vec<ProbeVerdict> {
        lock(&self.0)
            .iter()
            .map(|status| ProbeVerdict {
                name: status.probe.to_owned(),
                hook: status.hook.to_owned(),
                verdict: status.verdict.name().to_owned(),
                reason: status.detail.clone(),
            })
            .collect()
    }
}
