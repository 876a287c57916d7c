//! What an agent says, as far as it is shown. `docs/page.md` has what each part means.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Both answers that a screen is made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    pub(super) status: Status,
    pub(super) workloads: Workloads,
}

/// `/api/v1/status`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Status {
    pub(super) agent_version: String,
    pub(super) node: String,
    pub(super) kernel: String,
    pub(super) now_ms: u64,
    pub(super) started_ms: u64,
    pub(super) probes: Vec<Probe>,
    pub(super) agent: Agent,
    pub(super) history: History,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Probe {
    #[serde(rename = "probe")]
    pub(super) name: String,
    pub(super) verdict: String,
    pub(super) hook: String,
    pub(super) reason: String,
    pub(super) detail: String,
    pub(super) series: Option<f64>,
    pub(super) series_limit: Option<f64>,
    pub(super) overflow: Option<f64>,
    pub(super) events_lost: Option<f64>,
}

/// What it takes itself.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct Agent {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<f64>,
    pub(super) open_files: Option<f64>,
    pub(super) events_lost: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct History {
    pub(super) step_ms: u64,
    pub(super) steps: u64,
    pub(super) bytes: f64,
}

/// `/api/v1/workloads`.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Workloads {
    pub(super) window_ms: u64,
    #[serde(rename = "workloads")]
    pub(super) rows: Vec<Row>,
    pub(super) left_out: u64,
}

/// A workload, or a process of one.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Row {
    pub(super) id: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) lives: bool,
    pub(super) tcp: Option<Tcp>,
    pub(super) disk: Option<Disk>,
    pub(super) gpu: Option<Gpu>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Tcp {
    pub(super) client: Durations,
    pub(super) server: Durations,
    pub(super) failures: Count,
    pub(super) syn_retransmits: Count,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Disk {
    pub(super) io: Durations,
    pub(super) bytes: Count,
    pub(super) errors: Count,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Gpu {
    pub(super) launches: Count,
    pub(super) starved_share: Option<f64>,
    pub(super) idle_share: Option<f64>,
    pub(super) processes: f64,
    pub(super) allocated_bytes: f64,
    pub(super) errors: Count,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Count {
    pub(super) total: f64,
    pub(super) per_second: f64,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Durations {
    pub(super) total: f64,
    pub(super) per_second: f64,
    pub(super) p50_seconds: Option<f64>,
    pub(super) p99_seconds: Option<f64>,
}
