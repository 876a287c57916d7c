//! Single events, for those who ask: what the programs send through a ring for each CPU.

use std::{
    mem::offset_of,
    time::{Duration, SystemTime},
};

use aya::maps::{MapData, RingBuf};

use crate::{
    PROBES, SeriesKey, monotonic_ns,
    wire::{self, event, event_origin, series_key},
};

/// Something that was slow, and who and what is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When it ended.
    pub ended: SystemTime,
    /// The series that counts it.
    pub key: SeriesKey,
    /// The process that began it, and the name of its thread, where that is known.
    pub process: Option<(u32, String)>,
    /// What the probe tells of it.
    pub detail: EventDetail,
}

/// What a probe tells of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventDetail {
    /// Durations in nanoseconds, and the metrics that count them: indices into [`crate::Probe::metrics`].
    pub durations_ns: Vec<(usize, u64)>,
    /// What it was about, by names as of labels.
    pub labels: Vec<(&'static str, String)>,
}

/// How a probe tells of single events.
#[derive(Debug)]
pub struct EventSource {
    /// The own counter that takes the shortest duration of an event that is asked for, in nanoseconds; 0 is none.
    pub slow_ns: u16,
    /// The own counter of events that found their ring full.
    pub lost: u16,
    /// Reads what follows the head of a record.
    pub(crate) detail: fn(&SeriesKey, u64, Record) -> Option<EventDetail>,
}

/// A record of a ring: numbers at their offsets, as far as it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record<'a>(pub(crate) &'a [u8]);

impl<'a> Record<'a> {
    pub(crate) fn bytes<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset + N)?.try_into().ok()
    }

    pub(crate) fn u64(self, offset: usize) -> Option<u64> {
        self.bytes(offset).map(u64::from_ne_bytes)
    }

    pub(crate) fn u32(self, offset: usize) -> Option<u32> {
        self.bytes(offset).map(u32::from_ne_bytes)
    }

    pub(crate) fn u16(self, offset: usize) -> Option<u16> {
        self.bytes(offset).map(u16::from_ne_bytes)
    }

    /// Text up to its first zero, of so many bytes at most.
    pub(crate) fn text(self, offset: usize, bytes: usize) -> Option<String> {
        let text = self.0.get(offset..offset + bytes)?;
        let end = text.iter().position(|byte| *byte == 0);
        Some(String::from_utf8_lossy(&text[..end.unwrap_or(bytes)]).into_owned())
    }
}

/// The rings.
pub struct Events {
    rings: Vec<RingBuf<MapData>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("rings", &self.rings.len())
            .finish()
    }
}

impl Events {
    pub(crate) fn new(rings: Vec<RingBuf<MapData>>) -> Self {
        Self { rings }
    }

    /// Takes all that is there, of each CPU in its order. A record that cannot be read is left out.
    pub fn take(&mut self, mut each: impl FnMut(Event)) {
        let (now, now_ns) = (SystemTime::now(), monotonic_ns());
        for ring in &mut self.rings {
            while let Some(record) = ring.next() {
                if let Some(event) = decode(Record(&record), now, now_ns) {
                    each(event);
                }
            }
        }
    }
}

/// `now_ns` is the moment `now` by the clock of the programs.
fn decode(record: Record, now: SystemTime, now_ns: u64) -> Option<Event> {
    let key = offset_of!(event, key);
    let key = SeriesKey {
        cgroup_id: record.u64(key + offset_of!(series_key, cgroup_id))?,
        device: record.u32(key + offset_of!(series_key, device))?,
        hierarchy: record.u16(key + offset_of!(series_key, hierarchy))?,
        kind: u8::from_ne_bytes(record.bytes(key + offset_of!(series_key, kind))?),
        detail: u8::from_ne_bytes(record.bytes(key + offset_of!(series_key, detail))?),
    };
    let origin = offset_of!(event, origin);
    let pid = record.u32(origin + offset_of!(event_origin, pid))?;
    let comm = record.text(
        origin + offset_of!(event_origin, comm),
        wire::EVENT_COMM_BYTES as usize,
    )?;
    let probe = PROBES.iter().find(|probe| probe.number == key.kind >> 4)?;
    let duration_ns = record.u64(offset_of!(event, duration_ns))?;
    let detail = (probe.events.as_ref()?.detail)(&key, duration_ns, record)?;
    let ago = now_ns.saturating_sub(record.u64(offset_of!(event, ended_ns))?);
    Some(Event {
        ended: now.checked_sub(Duration::from_nanos(ago))?,
        key,
        process: (pid != 0).then_some((pid, comm)),
        detail,
    })
}
