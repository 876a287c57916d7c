//! Disk I/O: how long it takes from its creation and at the device, how much, and its errors.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the wire header's constants are u32 and far below 2^8 or 2^16 each"
)]

use std::mem::offset_of;

use crate::{
    Cell, Cost, EventDetail, EventSource, Metric, MetricKind, OwnCounter, Probe, Reason, Rung,
    Sample, Series, SeriesKey,
    event::Fields,
    spec::{Fallback, Hook, Program, Record, Table, TableKind, Variant},
    wire::{
        DISK_COUNTER_EVENTS_LOST, DISK_COUNTER_EVENTS_UNKNOWN, DISK_COUNTER_OTHER_ERROR,
        DISK_COUNTER_OVERFLOW, DISK_COUNTER_SLOW_NS, DISK_COUNTER_UNTIMED, DISK_COUNTER_UNTRACKED,
        DISK_COUNTERS, DISK_HISTOGRAM_OTHER_DEVICE, DISK_HISTOGRAM_OTHER_IO, DISK_HISTOGRAMS,
        DISK_KIND_ERROR, DISK_KIND_IO, DISK_OPERATION_FLUSH, DISK_PROBE, disk_slow_event,
    },
};

pub(crate) const PROBE: Probe = Probe {
    name: "disk",
    summary: "disk I/O: duration from creation and at the device, bytes, errors",
    number: DISK_PROBE as u8,
    metrics: &[
        Metric {
            name: "sentry_disk_io_duration_seconds",
            help: "Time from the creation of a block request to its completion; failed requests are not in it",
            kind: MetricKind::Histogram,
            labels: &["device", "operation"],
            source: "block_rq_complete: now - request.start_time_ns",
        },
        Metric {
            name: "sentry_disk_device_duration_seconds",
            help: "Time from the issue of a block request to the device to its completion",
            kind: MetricKind::Histogram,
            labels: &["device", "operation"],
            source: "block_rq_complete: now - request.io_start_time_ns; for devices that keep none, now - block_rq_issue",
        },
        Metric {
            name: "sentry_disk_bytes_total",
            help: "Bytes moved by completed block requests",
            kind: MetricKind::Counter,
            labels: &["device", "operation"],
            source: "block_rq_complete: nr_bytes",
        },
        Metric {
            name: "sentry_disk_errors_total",
            help: "Block requests that failed",
            kind: MetricKind::Counter,
            labels: &["device", "operation", "error"],
            source: "block_rq_complete: error",
        },
    ],
    rungs: &[
        Rung {
            hook: "tp_btf",
            variants: &[Variant {
                programs: &[Program {
                    name: "disk_complete",
                    hook: Hook::TpBtf("block_rq_complete"),
                }],
                table: None,
                of_task: false,
                note: "",
            }],
            limits: "",
            fallback: &[
                Program {
                    name: "disk_issue_queue",
                    hook: Hook::TpBtf("block_rq_issue"),
                },
                Program {
                    name: "disk_issue",
                    hook: Hook::TpBtf("block_rq_issue"),
                },
            ],
            events: Some(&[
                Program {
                    name: "disk_begin_queue",
                    hook: Hook::TpBtf("block_getrq"),
                },
                Program {
                    name: "disk_begin",
                    hook: Hook::TpBtf("block_getrq"),
                },
            ]),
        },
        Rung {
            hook: "raw_tp",
            variants: &[Variant {
                programs: &[Program {
                    name: "disk_complete_raw",
                    hook: Hook::RawTracepoint("block_rq_complete"),
                }],
                table: None,
                of_task: false,
                note: "",
            }],
            limits: "",
            fallback: &[
                Program {
                    name: "disk_issue_queue_raw",
                    hook: Hook::RawTracepoint("block_rq_issue"),
                },
                Program {
                    name: "disk_issue_raw",
                    hook: Hook::RawTracepoint("block_rq_issue"),
                },
            ],
            events: Some(&[
                Program {
                    name: "disk_begin_queue_raw",
                    hook: Hook::RawTracepoint("block_getrq"),
                },
                Program {
                    name: "disk_begin_raw",
                    hook: Hook::RawTracepoint("block_getrq"),
                },
            ]),
        },
        Rung {
            hook: "tracepoint",
            variants: &[Variant {
                programs: &[
                    Program {
                        name: "disk_make_record",
                        hook: Hook::Tracepoint(&Record {
                            category: "block",
                            event: "block_getrq",
                            fields: &[
                                ("disk_make_dev", "dev"),
                                ("disk_make_sector", "sector"),
                                ("disk_make_rwbs", "rwbs"),
                            ],
                        }),
                    },
                    Program {
                        name: "disk_issue_record",
                        hook: Hook::Tracepoint(&Record {
                            category: "block",
                            event: "block_rq_issue",
                            fields: &[
                                ("disk_issue_dev", "dev"),
                                ("disk_issue_sector", "sector"),
                                ("disk_issue_nr_sector", "nr_sector"),
                                ("disk_issue_rwbs", "rwbs"),
                            ],
                        }),
                    },
                    Program {
                        name: "disk_complete_record",
                        hook: Hook::Tracepoint(&Record {
                            category: "block",
                            event: "block_rq_complete",
                            fields: &[
                                ("disk_complete_dev", "dev"),
                                ("disk_complete_sector", "sector"),
                                ("disk_complete_nr_sector", "nr_sector"),
                                ("disk_complete_error", "error"),
                                ("disk_complete_rwbs", "rwbs"),
                            ],
                        }),
                    },
                ],
                table: Some(&Table {
                    slot: "disk_in_flight",
                    key_bytes: 16,
                    value_bytes: 24,
                    entries: 8192,
                    kind: TableKind::LruHash,
                }),
                of_task: false,
                note: "",
            }],
            limits: "the records of these tracepoints tell no creation and no owner: both durations run from the issue to the device, I/O belongs to the v2 cgroup of the task that made the request, flushes and writes of zeroes are not counted, and events that the kernel hid are counted as lost since 6.7 only",
            fallback: &[],
            events: None,
        },
    ],
    fallback: Some(Fallback {
        trigger: DISK_COUNTER_UNTIMED as u16,
        point: "block_rq_issue",
        table: &Table {
            slot: "disk_issued",
            key_bytes: size_of::<u64>() as u32,
            value_bytes: size_of::<u64>() as u32,
            entries: 4096,
            kind: TableKind::Hash,
        },
        reason: Reason::NoTimestamps,
        detail: "a device gives its requests no time stamps (queue/iostats is 0, or no writeback throttling): there, durations run from the issue to the device",
    }),
    in_flight: &[],
    events: Some(EventSource {
        slow_ns: DISK_COUNTER_SLOW_NS as u16,
        lost: DISK_COUNTER_EVENTS_LOST as u16,
        unknown: DISK_COUNTER_EVENTS_UNKNOWN as u16,
        detail: event_detail,
    }),
    deferred: None,
    cost: Cost {
        events: &[IO_DURATION, ERRORS],
        event_ns: 250,
        entry_ns: 0,
    },
    histograms: DISK_HISTOGRAMS as u16,
    counters: DISK_COUNTERS as u16,
    own: &[
        (OwnCounter::SeriesOverflow, DISK_COUNTER_OVERFLOW as u16),
        (OwnCounter::Untimed, DISK_COUNTER_UNTIMED as u16),
        (OwnCounter::IosUntracked, DISK_COUNTER_UNTRACKED as u16),
    ],
    samples,
    other,
};

const IO_DURATION: usize = 0;
const DEVICE_DURATION: usize = 1;
const BYTES: usize = 2;
const ERRORS: usize = 3;

/// A sector of the block layer is 2^9 bytes, whatever the device's own is.
const SECTOR_SHIFT: u32 = 9;

/// `enum disk_operation`
const OPERATIONS: [&str; 5] = ["read", "write", "discard", "other", "flush"];

/// The kernel's name for a block status (`blk_errors` in `block/blk-core.c`), as a label.
fn error_name(status: u8) -> &'static str {
    match status {
        1 => "not_supported",
        2 => "timeout",
        3 => "no_space",
        4 => "transport",
        5 => "target",
        6 => "reservation_conflict",
        7 => "medium",
        8 => "protection",
        9 | 13 => "resource",
        10 => "io",
        12 => "again",
        16 => "offline",
        _ => "other",
    }
}

fn label(operation: usize) -> (&'static str, &'static str) {
    let name = OPERATIONS.get(operation).copied();
    ("operation", name.unwrap_or("other"))
}

fn labels(operation: usize) -> Vec<(&'static str, &'static str)> {
    vec![label(operation)]
}

/// Durations and bytes of an operation. A flush moves nothing and has no time at the device.
fn io_samples(operation: usize, io: u16, device: Option<u16>) -> Vec<Sample> {
    let sample = |metric, cell| Sample {
        metric,
        cell,
        labels: labels(operation),
    };
    let Some(device) = device else {
        return vec![sample(IO_DURATION, Cell::Histogram(io))];
    };
    let (whole, part) = (io, device);
    vec![
        sample(IO_DURATION, Cell::Whole { whole, part }),
        sample(DEVICE_DURATION, Cell::Histogram(device)),
        sample(BYTES, Cell::Sum(io)),
    ]
}

fn samples(key: &SeriesKey, series: Series) -> Vec<Sample> {
    match u32::from(key.kind) {
        DISK_KIND_IO => {
            let mut histograms = series.histograms();
            match histograms.next() {
                Some(io) => io_samples(usize::from(key.detail), io, histograms.next()),
                None => Vec::new(),
            }
        }
        DISK_KIND_ERROR => {
            let mut labels = labels(usize::from(key.detail >> 5));
            labels.push(("error", error_name(key.detail & 31)));
            series
                .counter()
                .map(|counter| Sample {
                    metric: ERRORS,
                    cell: Cell::Counter(counter),
                    labels,
                })
                .into_iter()
                .collect()
        }
        _ => Vec::new(),
    }
}

/// What follows the head of `struct disk_slow_event`.
fn event_detail(key: &SeriesKey, duration_ns: u64, record: Fields) -> Option<EventDetail> {
    let device_ns = record.u64(offset_of!(disk_slow_event, device_ns))?;
    let sector = record.u64(offset_of!(disk_slow_event, sector))?;
    let bytes = record.u64(offset_of!(disk_slow_event, bytes))?;
    let (operation, outcome) = match u32::from(key.kind) {
        DISK_KIND_IO => (key.detail, "ok"),
        DISK_KIND_ERROR => (key.detail >> 5, error_name(key.detail & 31)),
        _ => return None,
    };
    let mut timings_ns = Vec::new();
    if duration_ns > 0 {
        timings_ns.push((IO_DURATION, duration_ns));
    }
    if u32::from(operation) != DISK_OPERATION_FLUSH && device_ns > 0 {
        timings_ns.push((DEVICE_DURATION, device_ns));
    }
    let (labels, numbers) = match bytes >> SECTOR_SHIFT {
        0 => (Vec::new(), Vec::new()),
        count => {
            let last = sector.saturating_add(count - 1);
            let sectors = vec![("sectors", format!("{sector}-{last}"))];
            (sectors, vec![("sector", sector), ("bytes", bytes)])
        }
    };
    Some(EventDetail {
        timings_ns,
        labels,
        what: label(operation.into()),
        outcome: outcome.into(),
        numbers,
    })
}

fn other(histograms: u16, counters: u16) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (i, operation) in (0u16..).zip(0..OPERATIONS.len()) {
        let device = (u32::from(i) != DISK_OPERATION_FLUSH)
            .then(|| histograms + DISK_HISTOGRAM_OTHER_DEVICE as u16 + i);
        samples.extend(io_samples(
            operation,
            histograms + DISK_HISTOGRAM_OTHER_IO as u16 + i,
            device,
        ));
        let mut labels = labels(operation);
        labels.push(("error", "other"));
        samples.push(Sample {
            metric: ERRORS,
            cell: Cell::Counter(counters + DISK_COUNTER_OTHER_ERROR as u16 + i),
            labels,
        });
    }
    samples
}
