//! The probes' verdicts, as readiness and the page want them.

use std::sync::{Arc, Mutex};

use probes::{Reason, Status};

use super::{ProbeVerdict, Readiness};
use crate::{collect::lock, overhead::Overhead};

/// Reads the verdicts that the collector keeps. The lock is never held for long.
#[derive(Debug)]
pub(crate) struct Verdicts {
    pub(crate) statuses: Arc<Mutex<Vec<Status>>>,
    pub(crate) overhead: Arc<Overhead>,
}

impl Readiness for Verdicts {
    fn ready(&self) -> Result<String, String> {
        let statuses = lock(&self.statuses);
        let mut text = statuses
            .iter()
            .map(|status| match status.detail.as_str() {
                "" => format!("{}: {}", status.probe, status.verdict.name()),
                detail => format!("{}: {}: {detail}", status.probe, status.verdict.name()),
            })
            .collect::<Vec<_>>()
            .join("\n");
        let overhead = self.overhead.report().detail;
        if !overhead.is_empty() {
            text.push('\n');
            text.push_str(&overhead);
        }
        // One that is off for its cost alone is no fault: it comes back by itself.
        let is_well =
            |status: &Status| status.verdict.is_up() || status.reason == Reason::OverBudget;
        if statuses.iter().any(is_well) {
            Ok(text)
        } else {
            Err(format!("no probe is attached\n{text}"))
        }
    }

    fn probes(&self) -> Vec<ProbeVerdict> {
        lock(&self.statuses)
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
