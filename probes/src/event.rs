//! Single events, for those who ask: what the programs send through a ring for each CPU.

use std::{
    borrow::Cow,
    mem::offset_of,
    time::{Duration, SystemTime},
};

use aya::maps::{HashMap, MapData, MapError, RingBuf};

use crate::{
    PROBES, SeriesKey, Workload, gpu, monotonic_ns,
    wire::{self, event, event_origin, series_key},
};

/// Something that was slow, or that a stream was asked for, and who and what is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When it ended.
    pub ended: SystemTime,
    /// How long it took, in nanoseconds, where that is known.
    pub duration_ns: Option<u64>,
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
    pub timings_ns: Vec<(usize, u64)>,
    /// What it was about, by names as of labels.
    pub labels: Vec<(&'static str, String)>,
    /// Its role or operation, as the metrics have it.
    pub what: (&'static str, &'static str),
    /// `ok`, or why it failed, as the metrics have it; of a gap what it counts as.
    pub outcome: Cow<'static, str>,
    /// How much of what, by name.
    pub numbers: Vec<(&'static str, u64)>,
}

/// Which events a stream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamFilter {
    /// Those that this process began.
    pub pid: Option<u32>,
    /// Those of this TCP port, at either end.
    pub port: Option<u16>,
    /// Those of this disk, by its number in a [`SeriesKey`]; of a GPU by its CUDA ordinal.
    pub device: Option<u32>,
    /// Those of cgroups that are told by [`StreamCgroups::add`], and of those below them.
    pub by_cgroup: bool,
    /// TCP connections that close, in place of handshakes and of connects that fail. It takes
    /// [`crate::Programs::open_closed`].
    pub closed: bool,
}

impl StreamFilter {
    /// The programs' constants; of none a stream sees nothing.
    pub(crate) fn constants(filter: Option<&Self>) -> [(&'static str, u32); 6] {
        let of = filter.copied().unwrap_or_default();
        [
            ("event_streams", filter.is_some().into()),
            ("event_filter_pid", of.pid.unwrap_or(0)),
            ("event_filter_port", of.port.unwrap_or(0).into()),
            ("event_filter_device", of.device.unwrap_or(0)),
            ("event_filter_cgroup", of.by_cgroup.into()),
            ("tcp_closed", of.closed.into()),
        ]
    }
}

/// The cgroups whose events a stream has.
pub struct StreamCgroups(pub(crate) HashMap<MapData, [u64; 2], u32>);

impl std::fmt::Debug for StreamCgroups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamCgroups").finish_non_exhaustive()
    }
}

impl StreamCgroups {
    /// Has the stream show the events of a cgroup and of those below it.
    ///
    /// # Errors
    /// When there are too many.
    pub fn add(&mut self, cgroup: Workload) -> Result<(), MapError> {
        let key = [cgroup.cgroup_id, cgroup.hierarchy.into()];
        self.0.insert(key, 1, 0)
    }
}

/// How a probe tells of single events.
#[derive(Debug)]
pub struct EventSource {
    /// The own counter that takes the shortest duration of an event that is asked for, in nanoseconds; 0 is none.
    pub slow_ns: u16,
    /// The own counter of events that found their ring full.
    pub lost: u16,
    /// The own counter of events that a stream by process leaves out though they may be that process's.
    pub unknown: u16,
    /// Reads what follows the head of a record.
    pub(crate) detail: fn(&SeriesKey, u64, Fields) -> Option<EventDetail>,
}

/// The fields of a record: numbers at their offsets, as far as it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
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
    /// Records that are taken of a ring at a time: more than it can hold.
    most: usize,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events")
            .field("rings", &self.rings.len())
            .finish_non_exhaustive()
    }
}

impl Events {
    pub(crate) fn new(rings: Vec<RingBuf<MapData>>, ring_bytes: u32) -> Self {
        Self {
            rings,
            most: ring_bytes as usize / size_of::<event>(),
        }
    }

    /// Takes what is there, of each CPU in its order: no more than a ring holds, for others may come as fast. A record
    /// that cannot be read is left out.
    pub fn take(&mut self, mut each: impl FnMut(Event)) {
        let (now, now_ns) = (SystemTime::now(), monotonic_ns());
        for ring in &mut self.rings {
            for _ in 0..self.most {
                let Some(record) = ring.next() else {
                    break;
                };
                if let Some(event) = decode(Fields(&record), now, now_ns) {
                    each(event);
                }
            }
        }
    }
}

/// `now_ns` is the moment `now` by the clock of the programs.
fn decode(record: Fields, now: SystemTime, now_ns: u64) -> Option<Event> {
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
    let read = match &probe.events {
        Some(source) => source.detail,
        None if probe.number == gpu::PROBE.number => gpu::event_detail,
        None => return None,
    };
    let detail = read(&key, duration_ns, record)?;
    let ended_ns = record.u64(offset_of!(event, ended_ns))?;
    let (ago, since) = (
        now_ns.saturating_sub(ended_ns),
        // It came while the ring was read.
        ended_ns.saturating_sub(now_ns),
    );
    Some(Event {
        ended: now.checked_sub(Duration::from_nanos(ago))? + Duration::from_nanos(since),
        duration_ns: (duration_ns > 0).then_some(duration_ns),
        key,
        process: (pid != 0).then_some((pid, comm)),
        detail,
    })
}

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // constants of C
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::wire::{
        DISK_KIND_ERROR, DISK_KIND_IO, DISK_OPERATION_FLUSH, DISK_OPERATION_WRITE, GPU_CALL_MALLOC,
        GPU_CALLS, GPU_KIND_FAILURE, GPU_KIND_GAP, TCP_KIND_FAILURE, TCP_KIND_HANDSHAKE,
        TCP_KIND_UNMEASURED, TCP_REASON_TIMEOUT, TCP_ROLE_SERVER, disk_slow_event, gpu_told,
        tcp_slow_event,
    };

    const NOW_NS: u64 = 9_000;

    /// The head of an event that ended 500 ns ago and took 300, and room for what follows.
    fn record(kind: u32, detail: u32, bytes: usize) -> Vec<u8> {
        let mut record = vec![0; bytes];
        let mut put = |offset: usize, bytes: &[u8]| {
            record[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(offset_of!(event, ended_ns), &(NOW_NS - 500).to_ne_bytes());
        put(offset_of!(event, duration_ns), &300u64.to_ne_bytes());
        let key = offset_of!(event, key);
        put(
            key + offset_of!(series_key, cgroup_id),
            &77u64.to_ne_bytes(),
        );
        put(key + offset_of!(series_key, device), &5u32.to_ne_bytes());
        put(key + offset_of!(series_key, hierarchy), &2u16.to_ne_bytes());
        put(key + offset_of!(series_key, kind), &[kind as u8]);
        put(key + offset_of!(series_key, detail), &[detail as u8]);
        let origin = offset_of!(event, origin);
        put(
            origin + offset_of!(event_origin, pid),
            &4321u32.to_ne_bytes(),
        );
        put(origin + offset_of!(event_origin, comm), b"curl\0rest");
        record
    }

    fn decoded(record: &[u8]) -> Option<Event> {
        decode(Fields(record), UNIX_EPOCH + Duration::from_secs(60), NOW_NS)
    }

    /// As exemplars have it.
    fn tcp(family: i32, peer: &[u8]) -> Vec<u8> {
        let mut record = record(TCP_KIND_HANDSHAKE, 0, offset_of!(tcp_slow_event, local));
        let mut put = |offset: usize, bytes: &[u8]| {
            record[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(
            offset_of!(tcp_slow_event, family),
            &(family as u16).to_ne_bytes(),
        );
        put(offset_of!(tcp_slow_event, peer_port), &443u16.to_ne_bytes());
        put(offset_of!(tcp_slow_event, peer), peer);
        record
    }

    fn disk(operation: u32, device_ns: u64, bytes: u64) -> Vec<u8> {
        let mut record = record(DISK_KIND_IO, operation, size_of::<disk_slow_event>());
        let mut put = |offset: usize, number: u64| {
            record[offset..offset + 8].copy_from_slice(&number.to_ne_bytes());
        };
        put(offset_of!(disk_slow_event, device_ns), device_ns);
        put(offset_of!(disk_slow_event, sector), 2048);
        put(offset_of!(disk_slow_event, bytes), bytes);
        record
    }

    #[test]
    fn a_handshake() {
        let record = tcp(libc::AF_INET, &[10, 0, 0, 7]);
        let expected = Event {
            ended: UNIX_EPOCH + Duration::from_secs(60) - Duration::from_nanos(500),
            duration_ns: Some(300),
            key: SeriesKey {
                cgroup_id: 77,
                device: 5,
                hierarchy: 2,
                kind: TCP_KIND_HANDSHAKE as u8,
                detail: 0,
            },
            process: Some((4321, "curl".to_owned())),
            detail: EventDetail {
                timings_ns: vec![(0, 300)],
                labels: vec![("peer", "10.0.0.7:443".to_owned())],
                what: ("role", "client"),
                outcome: "ok".into(),
                numbers: vec![("syn_retransmits", 0)],
            },
        };
        assert_eq!(decoded(&record), Some(expected));
    }

    #[test]
    fn a_stream_has_both_ends_and_what_failed() {
        let mut record = tcp(libc::AF_INET, &[10, 0, 0, 7]);
        record.resize(size_of::<tcp_slow_event>(), 0);
        let mut put = |offset: usize, bytes: &[u8]| {
            record[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(offset_of!(tcp_slow_event, local), &[10, 0, 0, 1]);
        let port = offset_of!(tcp_slow_event, local_port);
        put(port, &40000u16.to_ne_bytes());
        let retransmits = offset_of!(tcp_slow_event, retransmits);
        put(retransmits, &2u32.to_ne_bytes());
        let key = offset_of!(event, key);
        let detail = key + offset_of!(series_key, detail);
        let kind = key + offset_of!(series_key, kind);
        put(kind, &[TCP_KIND_FAILURE as u8]);
        put(detail, &[TCP_REASON_TIMEOUT as u8]);
        let event = decoded(&record).unwrap();
        assert_eq!(event.duration_ns, Some(300));
        let expected = EventDetail {
            timings_ns: vec![],
            labels: vec![
                ("peer", "10.0.0.7:443".to_owned()),
                ("local", "10.0.0.1:40000".to_owned()),
            ],
            what: ("role", "client"),
            outcome: "timeout".into(),
            numbers: vec![("syn_retransmits", 2)],
        };
        assert_eq!(event.detail, expected);
        record[kind] = TCP_KIND_UNMEASURED as u8;
        record[detail] = TCP_ROLE_SERVER as u8;
        record[offset_of!(event, duration_ns)..][..8].fill(0);
        let event = decoded(&record).unwrap();
        assert_eq!(event.duration_ns, None);
        assert_eq!(event.detail.timings_ns, []);
        assert_eq!(event.detail.what, ("role", "server"));
        assert_eq!(event.detail.outcome, "ok");
    }

    #[test]
    fn a_request_that_failed() {
        let mut record = disk(DISK_OPERATION_WRITE, 200, 4096);
        let key = offset_of!(event, key);
        record[key + offset_of!(series_key, kind)] = DISK_KIND_ERROR as u8;
        // BLK_STS_MEDIUM
        record[key + offset_of!(series_key, detail)] = (DISK_OPERATION_WRITE << 5 | 7) as u8;
        let detail = decoded(&record).unwrap().detail;
        assert_eq!(detail.what, ("operation", "write"));
        assert_eq!(detail.outcome, "medium");
        assert_eq!(detail.numbers, [("sector", 2048), ("bytes", 4096)]);
    }

    #[test]
    fn peers_of_each_family() {
        let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];
        for (family, peer, shown) in [
            (libc::AF_INET, &[1, 2, 3, 4][..], Some("1.2.3.4:443")),
            (libc::AF_INET6, &v6, Some("[fd00::9]:443")),
            (libc::AF_INET6, &mapped, Some("127.0.0.1:443")),
            (libc::AF_UNIX, &v6, None),
        ] {
            let event = decoded(&tcp(family, peer));
            let labels = event.map(|event| event.detail.labels);
            assert_eq!(labels, shown.map(|shown| vec![("peer", shown.to_owned())]));
        }
    }

    #[test]
    fn requests() {
        let detail = |record: &[u8]| {
            let detail = decoded(record).unwrap().detail;
            (detail.timings_ns, detail.labels)
        };
        let sectors = |shown: &str| vec![("sectors", shown.to_owned())];
        for (record, expected) in [
            (
                disk(DISK_OPERATION_WRITE, 200, 4096),
                (vec![(0, 300), (1, 200)], sectors("2048-2055")),
            ),
            // Its issue was not seen.
            (
                disk(DISK_OPERATION_WRITE, 0, 512),
                (vec![(0, 300)], sectors("2048-2048")),
            ),
            (
                disk(DISK_OPERATION_FLUSH, 200, 0),
                (vec![(0, 300)], Vec::new()),
            ),
        ] {
            assert_eq!(detail(&record), expected);
        }
    }

    #[test]
    fn gaps_and_failed_calls() {
        let mut gap = record(GPU_KIND_GAP, 0, size_of::<gpu_told>());
        let expected = |outcome: &'static str, ns: u64| EventDetail {
            timings_ns: vec![(3, ns)],
            labels: vec![("device", "4".to_owned())],
            what: ("event", "gap"),
            outcome: outcome.into(),
            numbers: Vec::new(),
        };
        assert_eq!(decoded(&gap).unwrap().detail, expected("starved", 300));
        for (ns, outcome) in [(1_000_000_000, "starved"), (1_000_000_001, "idle")] {
            gap[offset_of!(event, duration_ns)..][..8].copy_from_slice(&u64::to_ne_bytes(ns));
            let event = decoded(&gap).unwrap();
            assert_eq!(event.duration_ns, Some(ns));
            assert_eq!(event.detail, expected(outcome, ns));
        }
        let mut call = record(GPU_KIND_FAILURE, GPU_CALL_MALLOC, size_of::<gpu_told>());
        call[offset_of!(gpu_told, code)..][..4].copy_from_slice(&2u32.to_ne_bytes());
        let detail = decoded(&call).unwrap().detail;
        assert_eq!(detail.what, ("call", "malloc"));
        assert_eq!(detail.outcome, "2");
        assert_eq!((detail.labels, detail.timings_ns), (Vec::new(), Vec::new()));
        let unknown = record(GPU_KIND_FAILURE, GPU_CALLS, size_of::<gpu_told>());
        assert_eq!(decoded(&unknown), None);
        // Of no device.
        let device = offset_of!(event, key) + offset_of!(series_key, device);
        gap[device..][..4].fill(0);
        assert_eq!(decoded(&gap), None);
    }

    #[test]
    fn a_process_that_is_not_known() {
        let mut record = disk(DISK_OPERATION_WRITE, 200, 4096);
        let origin = offset_of!(event, origin);
        record[origin..origin + size_of::<event_origin>()].fill(0);
        assert_eq!(decoded(&record).unwrap().process, None);
    }

    #[test]
    fn what_cannot_be_read_is_nothing() {
        let whole = tcp(libc::AF_INET, &[1, 2, 3, 4]);
        for bytes in 0..offset_of!(tcp_slow_event, peer_port) + 2 {
            assert_eq!(decoded(&whole[..bytes]), None, "{bytes}");
        }
        // No probe has this number.
        assert_eq!(decoded(&record(0xf0, 0, 256)), None);
    }
}
