/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the tcp probe's programs and their reader share. */
#pragma once

#include "event.h"

#define TCP_PROBE 1

/* The kinds of series; `detail` is a role, a reason or nothing. */
enum tcp_kind {
	TCP_KIND_HANDSHAKE = SERIES_KIND(TCP_PROBE, 0),
	TCP_KIND_FAILURE = SERIES_KIND(TCP_PROBE, 1),
	TCP_KIND_UNMEASURED = SERIES_KIND(TCP_PROBE, 2),
	TCP_KIND_SYN_RETRANSMITS = SERIES_KIND(TCP_PROBE, 3),
	/* No series: a connection that has closed. `detail` is TCP_CLOSED(). */
	TCP_KIND_CLOSED = SERIES_KIND(TCP_PROBE, 4),
};

enum tcp_role {
	TCP_ROLE_CLIENT,
	TCP_ROLE_SERVER,
	TCP_ROLES,
};

enum tcp_reason {
	TCP_REASON_REFUSED,
	TCP_REASON_TIMEOUT,
	TCP_REASON_UNREACHABLE,
	TCP_REASON_ABORTED,
	TCP_REASON_LOCAL,
	TCP_REASON_OTHER,
	TCP_REASONS,
};

/* How a connection closed. */
enum tcp_end {
	TCP_END_OK,
	TCP_END_RESET,
	TCP_END_TIMEOUT,
	TCP_END_OTHER,
};

/* Of a connection that has closed: its end, and the role in it. */
#define TCP_CLOSED(end, role) ((end) << 1 | (role))

/* The probe's own counters, counted from `tcp_counters`. */
enum tcp_counter {
	TCP_COUNTER_OVERFLOW,
	TCP_COUNTER_UNTRACKED,
	/* Where series that find no room are counted. */
	TCP_COUNTER_OTHER_FAILURE,
	TCP_COUNTER_OTHER_UNMEASURED = TCP_COUNTER_OTHER_FAILURE + TCP_REASONS,
	TCP_COUNTER_OTHER_SYN_RETRANSMITS = TCP_COUNTER_OTHER_UNMEASURED + TCP_ROLES,
	/* No counter: set by the agent, see event_is_wanted(). */
	TCP_COUNTER_SLOW_NS,
	TCP_COUNTER_EVENTS_LOST,
	/* In this order: see event_name(). */
	TCP_COUNTER_EVENTS_UNKNOWN,
	TCP_COUNTERS,
};

/* A handshake, a connect that failed, or a connection that has closed: the kind of its key tells.
 */
struct tcp_slow_event {
	struct event event;
	/* As the socket has them: an IPv4 address in the first word, in network order. */
	__u32 peer[4];
	/* AF_INET or AF_INET6. */
	__u16 family;
	__u16 peer_port;
	/* SYNs or SYN-ACKs that were sent again. */
	__u32 retransmits;
	/* From here on for streams only. */
	__u32 local[4];
	__u16 local_port;
	__u16 reserved[3];
	/* From here on of a connection that has closed: what was received in order, and sent for
	 * the first time. */
	__u64 received_bytes;
	__u64 sent_bytes;
};

/* A connection that is followed to its end. */
struct tcp_life {
	/* CLOCK_MONOTONIC. */
	__u64 began_ns;
	/* The cgroup of the process, where the socket tells none; 0 elsewhere. */
	__u64 cgroup_id;
	struct event_origin origin;
	__u32 role;
};
