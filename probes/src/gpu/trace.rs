//! Gaps and failed calls one by one, for a trace.

use std::io;

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, RingBuf},
};
use aya_obj::generated::bpf_map_type;

use super::{
    programs::{Programs, Refused},
    table::CALLS,
};
use crate::{
    EventDetail, Events, Reason, Refusal, SeriesKey, StreamCgroups, StreamFilter, Verdict,
    event::Fields,
    hook::chain,
    load,
    wire::{GPU_DEVICES, GPU_KIND_FAILURE, GPU_KIND_GAP, GPU_STARVED_MAX_NS, gpu_asked, gpu_told},
};

// SAFETY: plain integers without padding.
unsafe impl Pod for gpu_asked {}

/// The metric of the gaps: an index into [`crate::Probe::metrics`].
const GAPS: usize = 3;

/// Devices of a process that have gaps: those of lower CUDA ordinals.
pub const DEVICES: u32 = GPU_DEVICES;

/// What single gaps and failed calls take.
#[derive(Debug)]
pub struct Stream {
    /// The rings.
    pub events: Events,
    /// The cgroups whose events there are, where the filter is by cgroup: those that lie below one have to be told
    /// apart from it.
    pub cgroups: Option<StreamCgroups>,
    /// What there is to be told of them.
    pub control: Control,
}

/// Begins and ends a [`Stream`], and tells what it has lost.
pub struct Control {
    asked: Array<MapData, gpu_asked>,
    lost: Array<MapData, u64>,
    filter: StreamFilter,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

impl Control {
    /// Has the programs send what takes so long at least, in nanoseconds; 0 is nothing.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn send(&mut self, least_ns: u64) -> io::Result<()> {
        let asked = gpu_asked {
            least_ns,
            pid: self.filter.pid.unwrap_or(0),
            device: self.filter.device.map_or(0, |ordinal| ordinal + 1),
            by_cgroup: self.filter.by_cgroup.into(),
            reserved: 0,
        };
        self.asked.set(0, asked, 0).map_err(io::Error::other)
    }

    /// Events that found their ring full; none where the kernel does not tell.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.get(&0, 0).unwrap_or(0)
    }
}

fn refused(error: &dyn std::fmt::Display) -> Refusal {
    Refusal {
        verdict: Verdict::Failed,
        reason: Reason::MapError,
        detail: error.to_string(),
    }
}

impl From<Refused> for Refusal {
    fn from(error: Refused) -> Self {
        let is_forbidden = error.source.kind() == io::ErrorKind::PermissionDenied;
        Self {
            verdict: Verdict::Failed,
            reason: if is_forbidden {
                Reason::NoPermission
            } else {
                Reason::Rejected
            },
            detail: error.to_string(),
        }
    }
}

/// A ring for each CPU that there may ever be.
pub(super) fn rings(ring_bytes: u32) -> Result<Vec<MapData>, Refusal> {
    let kind = bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
    let ring_bytes = ring_bytes.max(load::page_bytes());
    let ring = |_| {
        let ring = aya_obj::Map::new_from_params(kind, 0, 0, ring_bytes, 0);
        MapData::create(ring, "events", None).map_err(|error| refused(&chain(&error)))
    };
    let cpus = load::possible_cpus().map_err(|error| refused(&chain(&error)))?;
    (0..cpus).map(ring).collect()
}

impl Stream {
    /// Takes what it needs out of programs that were loaded with these rings.
    pub(super) fn new(
        programs: &mut Programs,
        rings: Vec<MapData>,
        ring_bytes: u32,
        filter: &StreamFilter,
    ) -> Result<Self, Refusal> {
        let map_error = |error: MapError| refused(&chain(&error));
        let mut take = |name: &str| {
            let map = programs.take_map(name);
            map.ok_or_else(|| refused(&format!("the eBPF object has no map {name}")))
        };
        let asked = Array::try_from(Map::Array(take("gpu_asked")?)).map_err(map_error)?;
        let lost = Array::try_from(Map::Array(take("gpu_lost")?)).map_err(map_error)?;
        // Otherwise it stays where it is: programs that are loaded later look for it.
        let cgroups = filter.by_cgroup.then(|| take("gpu_cgroups")).transpose()?;
        let cgroups = cgroups.map(|map| HashMap::try_from(Map::HashMap(map)).map(StreamCgroups));
        let cgroups = cgroups.transpose().map_err(map_error)?;
        let rings: Result<_, _> = rings
            .into_iter()
            .map(|ring| RingBuf::try_from(Map::RingBuf(ring)))
            .collect();
        let ring_bytes = ring_bytes.max(load::page_bytes());
        Ok(Self {
            events: Events::new(rings.map_err(map_error)?, ring_bytes),
            cgroups,
            control: Control {
                asked,
                lost,
                filter: *filter,
            },
        })
    }
}

/// Reads what follows the head of a record.
pub(crate) fn event_detail(
    key: &SeriesKey,
    duration_ns: u64,
    record: Fields,
) -> Option<EventDetail> {
    let code = record.u32(std::mem::offset_of!(gpu_told, code))?;
    let detail = match u32::from(key.kind) {
        GPU_KIND_GAP => EventDetail {
            timings_ns: vec![(GAPS, duration_ns)],
            labels: vec![("device", key.device.checked_sub(1)?.to_string())],
            what: ("event", "gap"),
            outcome: if duration_ns > u64::from(GPU_STARVED_MAX_NS) {
                "idle".into()
            } else {
                "starved".into()
            },
            numbers: Vec::new(),
        },
        GPU_KIND_FAILURE => EventDetail {
            timings_ns: Vec::new(),
            labels: Vec::new(),
            what: ("call", CALLS.get(usize::from(key.detail))?),
            outcome: code.to_string().into(),
            numbers: Vec::new(),
        },
        _ => return None,
    };
    Some(detail)
}
