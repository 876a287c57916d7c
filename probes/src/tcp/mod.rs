//! TCP handshakes: how long they take at either end, and why connects fail.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the wire header's constants are u32 and far below 2^8 or 2^16 each"
)]

use std::{
    mem::offset_of,
    net::{IpAddr, SocketAddr},
};

use crate::{
    Cell, Cost, EventDetail, EventSource, Metric, MetricKind, OwnCounter, Probe, Rung, Sample,
    Series, SeriesKey,
    event::Fields,
    spec::{Hook, Program, Record, Table, TableKind, Variant},
    wire::{
        TCP_COUNTER_EVENTS_LOST, TCP_COUNTER_EVENTS_UNKNOWN, TCP_COUNTER_OTHER_FAILURE,
        TCP_COUNTER_OTHER_SYN_RETRANSMITS, TCP_COUNTER_OTHER_UNMEASURED, TCP_COUNTER_OVERFLOW,
        TCP_COUNTER_SLOW_NS, TCP_COUNTER_UNTRACKED, TCP_COUNTERS, TCP_KIND_CLOSED,
        TCP_KIND_FAILURE, TCP_KIND_HANDSHAKE, TCP_KIND_SYN_RETRANSMITS, TCP_KIND_UNMEASURED,
        TCP_PROBE, tcp_life, tcp_slow_event,
    },
};

pub(crate) const PROBE: Probe = Probe {
    name: "tcp",
    summary: "TCP handshakes: duration at both ends, failures by reason, SYN retransmissions",
    number: TCP_PROBE as u8,
    metrics: &[
        Metric {
            name: "sentry_tcp_handshake_duration_seconds",
            help: "Time from the SYN to the end of the handshake (client), from the SYN-ACK to its ACK (server)",
            kind: MetricKind::Histogram,
            labels: &["role"],
            source: "inet_sock_set_state: client SYN_SENT to ESTABLISHED; server tcp_sock.srtt_us, or total_rto_time after a retransmission",
        },
        Metric {
            name: "sentry_tcp_connect_failures_total",
            help: "Connects that ended without a connection",
            kind: MetricKind::Counter,
            labels: &["reason"],
            source: "inet_sock_set_state: SYN_SENT to CLOSE, by sock.sk_err, sk_shutdown and tcp_sock.segs_out",
        },
        Metric {
            name: "sentry_tcp_handshakes_unmeasured_total",
            help: "Handshakes whose duration the kernel does not tell; they are in no histogram",
            kind: MetricKind::Counter,
            labels: &["role"],
            source: "client: the connect began before the agent; server: SYN cookies, or a retransmission on kernels without tcp_sock.total_rto_time (before 6.7)",
        },
        Metric {
            name: "sentry_tcp_syn_retransmits_total",
            help: "SYNs sent again",
            kind: MetricKind::Counter,
            labels: &[],
            source: "tcp_sock.total_retrans when the connect ends",
        },
    ],
    rungs: &[
        Rung {
            hook: "tp_btf",
            variants: &[
                Variant {
                    programs: &[Program {
                        name: "tcp_state_slots",
                        hook: Hook::TpBtf("inet_sock_set_state"),
                    }],
                    table: None,
                    of_task: false,
                    note: "",
                },
                Variant {
                    programs: &[Program {
                        name: "tcp_state_hash",
                        hook: Hook::TpBtf("inet_sock_set_state"),
                    }],
                    table: STARTED,
                    of_task: true,
                    note: "start times in a table of 8192",
                },
            ],
            limits: "",
            fallback: &[],
            events: Some(&[]),
        },
        Rung {
            hook: "kprobe",
            variants: &[Variant {
                programs: &[Program {
                    name: "tcp_state_kprobe",
                    hook: Hook::Kprobe("tcp_set_state"),
                }],
                table: STARTED,
                of_task: true,
                note: "start times in a table of 8192; events that the kernel hid are counted as lost since 6.7 only",
            }],
            limits: "",
            fallback: &[],
            events: Some(&[]),
        },
        Rung {
            hook: "tracepoint",
            variants: &[Variant {
                programs: &[Program {
                    name: "tcp_state_record",
                    hook: Hook::Tracepoint(&Record {
                        category: "sock",
                        event: "inet_sock_set_state",
                        fields: &[
                            ("tcp_record_skaddr", "skaddr"),
                            ("tcp_record_oldstate", "oldstate"),
                            ("tcp_record_newstate", "newstate"),
                            ("tcp_record_protocol", "protocol"),
                        ],
                    }),
                }],
                table: STARTED,
                of_task: false,
                note: "",
            }],
            limits: "the record of this tracepoint tells no error, no round trip and no cgroup: connects belong to the v2 cgroup of their task, every failure has the reason other, SYN retransmissions are not counted, server handshakes are unmeasured and belong to nobody, and events that the kernel hid are counted as lost since 6.7 only",
            fallback: &[],
            events: None,
        },
    ],
    fallback: None,
    events: Some(EventSource {
        slow_ns: TCP_COUNTER_SLOW_NS as u16,
        lost: TCP_COUNTER_EVENTS_LOST as u16,
        unknown: TCP_COUNTER_EVENTS_UNKNOWN as u16,
        detail: event_detail,
    }),
    in_flight: &["tcp_started_slots"],
    deferred: None,
    cost: Cost {
        events: &[HANDSHAKE, FAILURES, UNMEASURED],
        // Half of a connection over loopback, whose ends are two events of one host.
        event_ns: 500,
        entry_ns: 0,
    },
    histograms: ROLES.len() as u16,
    counters: TCP_COUNTERS as u16,
    own: &[
        (OwnCounter::SeriesOverflow, TCP_COUNTER_OVERFLOW as u16),
        (
            OwnCounter::ConnectionsUntracked,
            TCP_COUNTER_UNTRACKED as u16,
        ),
    ],
    samples,
    other,
};

/// Start times where there are no slots for them.
const STARTED: Option<&Table> = Some(&Table {
    slot: "tcp_started_hash",
    key_bytes: size_of::<u64>() as u32,
    value_bytes: 16,
    entries: 8192,
    kind: TableKind::Hash,
});

/// Connections that are followed to their close.
pub(crate) const LIVES: &Table = &Table {
    slot: "tcp_lives",
    key_bytes: size_of::<u64>() as u32,
    value_bytes: size_of::<tcp_life>() as u32,
    entries: 65_536,
    kind: TableKind::Hash,
};

const HANDSHAKE: usize = 0;
const FAILURES: usize = 1;
const UNMEASURED: usize = 2;
const SYN_RETRANSMITS: usize = 3;

/// `enum tcp_role`
const ROLES: [&str; 2] = ["client", "server"];
/// `enum tcp_reason`
const REASONS: [&str; 6] = [
    "refused",
    "timeout",
    "unreachable",
    "aborted",
    "local",
    "other",
];

/// `enum tcp_end`
const ENDS: [&str; 4] = ["ok", "reset", "timeout", "other"];

fn samples(key: &SeriesKey, series: Series) -> Vec<Sample> {
    let detail = usize::from(key.detail);
    let (metric, cell, labels) = match (u32::from(key.kind), series.counter()) {
        (TCP_KIND_HANDSHAKE, _) => (
            HANDSHAKE,
            series.histograms().next().map(Cell::Histogram),
            ROLES.get(detail).map(|role| ("role", *role)),
        ),
        (TCP_KIND_FAILURE, Some(counter)) => (
            FAILURES,
            Some(Cell::Counter(counter)),
            REASONS.get(detail).map(|reason| ("reason", *reason)),
        ),
        (TCP_KIND_UNMEASURED, Some(counter)) => (
            UNMEASURED,
            Some(Cell::Counter(counter)),
            ROLES.get(detail).map(|role| ("role", *role)),
        ),
        (TCP_KIND_SYN_RETRANSMITS, Some(counter)) => {
            (SYN_RETRANSMITS, Some(Cell::Counter(counter)), None)
        }
        _ => return Vec::new(),
    };
    cell.map(|cell| Sample {
        metric,
        cell,
        labels: labels.into_iter().collect(),
    })
    .into_iter()
    .collect()
}

/// What follows the head of `struct tcp_slow_event`. A stream's goes on to the local end.
fn event_detail(key: &SeriesKey, duration_ns: u64, record: Fields) -> Option<EventDetail> {
    let family = i32::from(record.u16(offset_of!(tcp_slow_event, family))?);
    let end = |address: usize, port: usize| {
        let address = match family {
            libc::AF_INET => IpAddr::from(record.bytes::<4>(address)?),
            libc::AF_INET6 => IpAddr::from(record.bytes::<16>(address)?).to_canonical(),
            _ => return None,
        };
        Some(SocketAddr::new(address, record.u16(port)?).to_string())
    };
    let peer = end(
        offset_of!(tcp_slow_event, peer),
        offset_of!(tcp_slow_event, peer_port),
    )?;
    let local = end(
        offset_of!(tcp_slow_event, local),
        offset_of!(tcp_slow_event, local_port),
    );
    let retransmits = record.u32(offset_of!(tcp_slow_event, retransmits))?;
    let mut numbers = vec![("syn_retransmits", retransmits.into())];
    let detail = usize::from(key.detail);
    let (timings_ns, role, outcome) = match u32::from(key.kind) {
        TCP_KIND_HANDSHAKE => (vec![(HANDSHAKE, duration_ns)], *ROLES.get(detail)?, "ok"),
        TCP_KIND_UNMEASURED => (Vec::new(), *ROLES.get(detail)?, "ok"),
        TCP_KIND_FAILURE => (Vec::new(), ROLES[0], *REASONS.get(detail)?),
        TCP_KIND_CLOSED => {
            numbers = vec![
                (
                    "received_bytes",
                    record.u64(offset_of!(tcp_slow_event, received_bytes))?,
                ),
                (
                    "sent_bytes",
                    record.u64(offset_of!(tcp_slow_event, sent_bytes))?,
                ),
                ("retransmits", retransmits.into()),
            ];
            (Vec::new(), ROLES[detail & 1], *ENDS.get(detail >> 1)?)
        }
        _ => return None,
    };
    let labels = [Some(("peer", peer)), local.map(|local| ("local", local))];
    Some(EventDetail {
        timings_ns,
        labels: labels.into_iter().flatten().collect(),
        what: ("role", role),
        outcome: outcome.into(),
        numbers,
    })
}

fn other(histograms: u16, counters: u16) -> Vec<Sample> {
    let numbered = |names: &'static [&'static str]| (0u16..).zip(names.iter().copied());
    let counter = |offset: u32| counters + offset as u16;
    let mut samples = Vec::new();
    samples.extend(numbered(&ROLES).map(|(i, role)| Sample {
        metric: HANDSHAKE,
        cell: Cell::Histogram(histograms + i),
        labels: vec![("role", role)],
    }));
    samples.extend(numbered(&REASONS).map(|(i, reason)| Sample {
        metric: FAILURES,
        cell: Cell::Counter(counter(TCP_COUNTER_OTHER_FAILURE) + i),
        labels: vec![("reason", reason)],
    }));
    samples.extend(numbered(&ROLES).map(|(i, role)| Sample {
        metric: UNMEASURED,
        cell: Cell::Counter(counter(TCP_COUNTER_OTHER_UNMEASURED) + i),
        labels: vec![("role", role)],
    }));
    samples.push(Sample {
        metric: SYN_RETRANSMITS,
        cell: Cell::Counter(counter(TCP_COUNTER_OTHER_SYN_RETRANSMITS)),
        labels: Vec::new(),
    });
    samples
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::{
        Histogram, Kernel, PROBES,
        running_kernel::{Cgroup, kernel, process},
    };

    /// What a cgroup's series hold by metric and label, histograms as their buckets.
    fn values(kernel: &Kernel, cgroup_id: u64) -> Vec<(usize, &'static str, Vec<u64>)> {
        let mut found = Vec::new();
        let each = |key: SeriesKey, series: Series| {
            if key.cgroup_id != cgroup_id || key.kind >> 4 != PROBES[0].number {
                return;
            }
            for sample in samples(&key, series) {
                let value = match sample.cell {
                    Cell::Counter(cell) => vec![kernel.cells.counter(cell)],
                    Cell::Sum(_) | Cell::Whole { .. } => unreachable!("no cells of tcp"),
                    Cell::Histogram(cell) => {
                        let mut histogram = Histogram::default();
                        kernel.cells.read_histogram(cell, &mut histogram);
                        histogram.buckets.map(u64::from).to_vec()
                    }
                };
                let label = sample.labels.first().map_or("", |(_, value)| value);
                found.push((sample.metric, label, value));
            }
        };
        kernel.series.walk(each).unwrap();
        found.sort();
        found
    }

    fn listener(backlog: i32) -> (Socket, SocketAddr) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(backlog).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        (listener, address)
    }

    /// A table by address serves kernels that lack what the slots need.
    #[test]
    fn the_hash_measures_as_the_slots_do() {
        let _process = process();
        for variant in 0..PROBES[0].rungs[0].variants.len() {
            let Some(kernel) = kernel("the_hash_measures_as_the_slots_do", variant) else {
                return;
            };
            let cgroup = Cgroup::enter(&format!("variant-{variant}"));
            let (listener, to) = listener(16);
            for _ in 0..100 {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.connect(&to.into()).unwrap();
                drop(listener.accept().unwrap());
            }
            drop(listener);
            for _ in 0..10 {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.connect(&to.into()).unwrap_err();
            }
            let counts: Vec<(usize, &str, u64)> = values(&kernel, cgroup.id())
                .into_iter()
                .map(|(metric, label, value)| (metric, label, value.iter().sum()))
                .collect();
            assert_eq!(
                counts,
                [
                    (HANDSHAKE, "client", 100),
                    (HANDSHAKE, "server", 100),
                    (FAILURES, "refused", 10)
                ],
                "variant {variant}"
            );
        }
    }

    /// More connects at once than there are slots: the rest goes to socket storage, and none is
    /// unmeasured. A listener with a full queue drops SYNs, so that they hang for a second.
    #[test]
    fn connects_beyond_the_slots_are_measured() {
        const CONNECTS: u64 = 600;
        let _process = process();
        let Some(kernel) = kernel("connects_beyond_the_slots_are_measured", 0) else {
            return;
        };
        let cgroup = Cgroup::enter("beyond");
        let (listener, to) = listener(1);
        let sockets: Vec<Socket> = (0..CONNECTS)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let begun = socket.connect(&to.into()).unwrap_err();
                assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
                socket
            })
            .collect();
        thread::sleep(Duration::from_millis(200));
        listener.listen(4096).unwrap();
        let accepted: Vec<_> = (0..CONNECTS).map(|_| listener.accept().unwrap()).collect();
        assert!(sockets.iter().all(|socket| socket.peer_addr().is_ok()));
        drop(accepted);

        let values = values(&kernel, cgroup.id());
        let [
            (HANDSHAKE, "client", client),
            (HANDSHAKE, "server", server),
            rest @ ..,
        ] = values.as_slice()
        else {
            panic!("{values:?}");
        };
        assert_eq!(client.iter().sum::<u64>(), CONNECTS);
        assert_eq!(server.iter().sum::<u64>(), CONNECTS);
        // A listener takes one more than its backlog; all others waited for a second SYN, which
        // comes after a second.
        assert_eq!(client[..72].iter().sum::<u64>(), 2);
        assert_eq!(rest, [(SYN_RETRANSMITS, "", vec![CONNECTS - 2])]);
    }
}
