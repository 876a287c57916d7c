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
	TCP_COUNTERS,
};

/* A handshake. */
struct tcp_slow_event {
	struct event event;
	/* As the socket has them: an IPv4 address in the first word, in network order. */
	__u32 peer[4];
	/* AF_INET or AF_INET6. */
	__u16 family;
	__u16 peer_port;
	__u32 reserved;
};
