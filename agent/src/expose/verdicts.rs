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

#[cfg(test)]
mod tests {
    use probes::Verdict;

    use super::*;

    fn verdicts(verdict: Verdict, reason: Reason) -> Verdicts {
        let status = Status {
            probe: "tcp",
            hook: "tp_btf",
            verdict,
            reason,
            detail: String::new(),
            passed_over: Vec::new(),
        };
        Verdicts {
            statuses: Arc::new(Mutex::new(vec![status])),
            overhead: Arc::new(Overhead::new("1%".parse().unwrap())),
        }
    }

    #[test]
    fn a_probe_that_is_off_for_its_cost_is_no_fault() {
        let ready = |verdict, reason| verdicts(verdict, reason).ready();
        assert_eq!(
            ready(Verdict::Off, Reason::OverBudget).as_deref(),
            Ok("tcp: off")
        );
        assert_eq!(
            ready(Verdict::Off, Reason::TurnedOff).unwrap_err(),
            "no probe is attached\ntcp: off"
        );
    }
}
