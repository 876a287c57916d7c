// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* TCP handshakes, from the changes of a socket's state.
 *
 * The cgroup is the socket's, never the current task's: handshakes end in softirq,
 * where the current task is whoever was interrupted. A server's child socket
 * carries the cgroup in which its listener was created.
 */
#include "event.bpf.h"
#include "tcp/wire.h"

/* The first of the probe's own cells; set by the loader. */
const volatile __u32 tcp_histograms;
const volatile __u32 tcp_counters;

/* Where cgroup v2 is not mounted, sockets belong to no cgroup that has a name: the v1 hierarchy
 * in which a connect belongs to its task's cgroup. 0 elsewhere; set by the loader. */
const volatile __u32 tcp_task_hierarchy;

/* Whether connections are followed to their close, in place of handshakes; set by the loader. */
const volatile __u32 tcp_closed;

/* include/net/tcp_states.h and include/uapi/asm-generic/errno.h are the ABI. */
#define IPPROTO_TCP 6
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LAST_ACK 9
/* include/net/sock.h: enum sock_flags. Set by the other end's FIN. */
#define SOCK_DONE 1
#define SHUTDOWN_MASK 3
#define AF_INET6 10

/* When connects began, by socket: one word a slot, claimed by compare-and-swap. A word is the
 * rest of the socket's hash, how far it stands from its place, and the time in units of
 * 32 ns; 0 is free. Hash and place together are the socket's address, one to one, up to
 * 4 TiB of memory: sockets lie on cache lines.
 *
 * Beside socket storage, which allocates twice a connect and spent some 700 ns on it, this
 * is why a connection costs little. What finds no slot goes to socket storage.
 */
#define TCP_SLOT_BITS 8
#define TCP_SLOT_WINDOW 4
#define TCP_TIME_BITS 34
#define TCP_TIME_SHIFT 5
#define TCP_TIME_MASK ((1ULL << TCP_TIME_BITS) - 1)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1 << TCP_SLOT_BITS);
	__type(key, __u32);
	__type(value, __u64);
} tcp_started_slots SEC(".maps");

/* It goes with its socket, so it can't overflow or leak. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u64);
} tcp_started_storage SEC(".maps");

/* A connect that has begun. */
struct tcp_started {
	__u64 ns;
	/* The connecting task's cgroup, where the socket tells none; 0 elsewhere. */
	__u64 cgroup_id;
};

/* For kernels without compare-and-swap (before commit 5ffa25502b5a, "bpf: Add
 * instructions for atomic_[cmp]xchg", 5.12) and without socket storage for tracing programs
 * (before commit 8e4597c627fb, 5.11), and for hooks that have neither. Plain, not LRU: a full
 * table is an error that can be counted, an eviction is not. */
struct tcp_started_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	/* By size: clang leaves a type that only stands here undefined. */
	__uint(key_size, sizeof(__u64));
	__uint(value_size, sizeof(struct tcp_started));
};

/* The slot stays empty where no program asks for the table. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct tcp_started_table);
} tcp_started_hash SEC(".maps");

/* Connections by socket, while they are followed. Plain, as above. */
struct tcp_life_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	/* By size: clang leaves a type that only stands here undefined. */
	__uint(key_size, sizeof(__u64));
	__uint(value_size, sizeof(struct tcp_life));
};

/* The slot stays empty where nobody asks for them. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct tcp_life_table);
} tcp_lives SEC(".maps");

/* 36 bits that are the socket's address: the number of its cache line, mixed one to one. The
 * verifier lets no arithmetic make a number of a pointer but the difference of two, so
 * addresses count from the slots, which stay where they are. */
static __always_inline __u64 tcp_slot_hash(struct sock *sk)
{
	__u32 zero = 0;
	void *origin = bpf_map_lookup_elem(&tcp_started_slots, &zero);
	__u64 hash = (__u64)sk;

	if (!origin)
		return 0;
	asm("%0 -= %1" : "+r"(hash) : "r"(origin));
	hash = (hash >> 6) * 0x9e3779b97f4a7c15ULL & ((1ULL << 36) - 1);
	/* A product's low bits depend on few others: swap the halves. */
	return (hash >> 18 | hash << 18) & ((1ULL << 36) - 1);
}

/* What a slot's word begins with, standing `i` slots behind its place. */
static __always_inline __u64 tcp_slot_head(__u64 hash, __u32 i)
{
	return (hash >> TCP_SLOT_BITS << 2 | i) << TCP_TIME_BITS;
}

static __always_inline __u64 *tcp_slot(__u64 hash, __u32 i)
{
	__u32 number = (hash + i) & ((1 << TCP_SLOT_BITS) - 1);

	return bpf_map_lookup_elem(&tcp_started_slots, &number);
}

static __always_inline bool tcp_start_slot(struct sock *sk, __u64 now)
{
	__u64 hash = tcp_slot_hash(sk);
	__u64 time = now >> TCP_TIME_SHIFT & TCP_TIME_MASK;

	/* A connect whose end no program saw has left its slot taken. That was a socket at
	 * this address, and it is gone: the slot is ours. */
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < TCP_SLOT_WINDOW; i++) {
		__u64 head = tcp_slot_head(hash, i);
		__u64 *slot = tcp_slot(hash, i);

		if (slot && *slot && (*slot & ~TCP_TIME_MASK) == head) {
			*slot = head | time;
			return true;
		}
	}
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < TCP_SLOT_WINDOW; i++) {
		__u64 *slot = tcp_slot(hash, i);

		if (slot && !*slot &&
		    !__sync_val_compare_and_swap(slot, 0, tcp_slot_head(hash, i) | time))
			return true;
	}
	return false;
}

/* How long ago the connect of a socket began, and frees its slot; 0 without a slot. */
static __always_inline __u64 tcp_end_slot(struct sock *sk, __u64 now)
{
	__u64 hash = tcp_slot_hash(sk);

#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < TCP_SLOT_WINDOW; i++) {
		__u64 *slot = tcp_slot(hash, i);
		__u64 word;

		if (!slot)
			continue;
		word = *slot;
		if (word && (word & ~TCP_TIME_MASK) == tcp_slot_head(hash, i)) {
			*slot = 0;
			/* Within the unit the time is unknown: at least 1 ns. */
			return (((now >> TCP_TIME_SHIFT) - word & TCP_TIME_MASK)
				<< TCP_TIME_SHIFT) |
			       1;
		}
	}
	return 0;
}

/* The cgroup of the current task in the hierarchy that owns disk I/O. */
static __always_inline __u64 tcp_task_cgroup_id(void)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	__u64 index = bpf_core_enum_value(enum cgroup_subsys_id, io_cgrp_id);
	struct cgroup_subsys_state *css = NULL;

	bpf_probe_read_kernel(&css, sizeof(css), (void *)&set->subsys + index * sizeof(css));
	return BPF_CORE_READ(css, cgroup, kn, id);
}

static __always_inline bool tcp_start_hash(__u64 key, __u64 cgroup_id)
{
	struct tcp_started started = { .ns = bpf_ktime_get_ns(), .cgroup_id = cgroup_id };
	void *table = table_in(&tcp_started_hash);

	return table && !bpf_map_update_elem(table, &key, &started, BPF_ANY);
}

static __always_inline void tcp_start(struct sock *sk, bool slots, bool direct)
{
	__u64 now;
	bool stored;

	if (slots) {
		now = bpf_ktime_get_ns();
		stored = tcp_start_slot(sk, now) ||
			 bpf_sk_storage_get(&tcp_started_storage, sk, &now,
					    BPF_SK_STORAGE_GET_F_CREATE);
	} else {
		stored = tcp_start_hash((__u64)sk, tcp_task_hierarchy ? tcp_task_cgroup_id() : 0);
	}
	if (!stored)
		counter_add(tcp_counters + TCP_COUNTER_UNTRACKED, 1);
	event_begin(tcp_counters + TCP_COUNTER_SLOW_NS, (__u64)sk, direct);
}

/* The end of a connect. */
struct tcp_ended {
	/* CLOCK_MONOTONIC. */
	__u64 ended_ns;
	__u64 duration_ns;
	/* The connecting task's cgroup, as of its start. */
	__u64 cgroup_id;
};

/* Forgets the start of a connect; false where that was not seen. */
static __always_inline bool tcp_end_hash(__u64 key, struct tcp_ended *ended)
{
	void *table = table_in(&tcp_started_hash);
	struct tcp_started *found;

	if (!table)
		return false;
	found = bpf_map_lookup_elem(table, &key);
	if (!found)
		return false;
	ended->ended_ns = bpf_ktime_get_ns();
	ended->duration_ns = ended->ended_ns - found->ns;
	ended->cgroup_id = found->cgroup_id;
	bpf_map_delete_elem(table, &key);
	return true;
}

static __always_inline bool tcp_end(struct sock *sk, bool slots, struct tcp_ended *ended)
{
	__u64 *found;
	__u64 now;

	if (!slots)
		return tcp_end_hash((__u64)sk, ended);
	now = bpf_ktime_get_ns();
	ended->ended_ns = now;
	ended->duration_ns = tcp_end_slot(sk, now);
	if (ended->duration_ns)
		return true;
	found = bpf_sk_storage_get(&tcp_started_storage, sk, NULL, 0);
	if (!found)
		return false;
	ended->duration_ns = now - *found;
	bpf_sk_storage_delete(&tcp_started_storage, sk);
	return true;
}

/* What a program may do: constants, not a part of the event, or the compiler does not fold them. */
enum tcp_means {
	/* Start times are in slots, not in the hash. */
	TCP_SLOTS = 1,
	/* Pointers have types: see KERNEL_READ. */
	TCP_DIRECT = 2,
};

/* The slots have no room for a task's cgroup. */
#define TCP_OF_TASK(means) (!((means)&TCP_SLOTS) && tcp_task_hierarchy)

/* The socket of an event. */
struct tcp_event {
	struct sock *sk;
	struct tcp_sock *tp;
	/* The connecting task's cgroup, where the socket tells none. */
	__u64 task_cgroup_id;
	/* When its duration ended; 0 where the kernel measured that. */
	__u64 ended_ns;
	/* Of a connection that has closed. */
	const struct event_origin *origin;
};

/* The id of every hierarchy's root cgroup. */
#define CGROUP_ROOT_ID 1

/* Names the workload by the socket's cgroup where that is a tagged word. Out of line, for only
 * old kernels get here. */
static __noinline void tcp_key_tagged_cgroup(struct series_key *key, struct sock *sk)
{
	struct sock_cgroup_data___tagged *tagged = (void *)&sk->sk_cgrp_data;
	__u64 val = BPF_CORE_READ(tagged, val);
	struct cgroup *cgroup = (void *)val;

	/* Tagged, it holds the numbers of net_cls and net_prio; either way the root. */
	if (!val || val & 3) {
		key->cgroup_id = CGROUP_ROOT_ID;
		key->hierarchy = 0;
		return;
	}
	key->cgroup_id = BPF_CORE_READ(cgroup, kn, id);
	key->hierarchy = BPF_CORE_READ(cgroup, root, hierarchy_id);
}

/* Names the workload of a key by the socket's cgroup. */
static __always_inline void tcp_key_cgroup(struct series_key *key, const struct tcp_event *event,
					   enum tcp_means means)
{
	struct sock *sk = event->sk;

	if (TCP_OF_TASK(means)) {
		key->cgroup_id = event->task_cgroup_id ? event->task_cgroup_id : CGROUP_ROOT_ID;
		key->hierarchy = tcp_task_hierarchy;
	} else if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup)) {
		series_key_cgroup(key, KERNEL_READ(means & TCP_DIRECT, sk, sk_cgrp_data.cgroup),
				  means & TCP_DIRECT);
	} else {
		tcp_key_tagged_cgroup(key, sk);
	}
}

static __always_inline void tcp_count(const struct tcp_event *event, enum tcp_means means,
				      enum tcp_kind kind, __u32 detail, __u64 n, __u32 other)
{
	struct series_key key = { .kind = kind, .detail = detail };

	tcp_key_cgroup(&key, event, means);
	series_count(&key, n, tcp_counters + other, tcp_counters + TCP_COUNTER_OVERFLOW);
}

/* Whether the filter of a stream has the cgroup of a socket where that is a tagged word. */
static __noinline bool tcp_tagged_cgroup_is_asked_for(struct sock *sk)
{
	struct sock_cgroup_data___tagged *tagged = (void *)&sk->sk_cgrp_data;
	__u64 val = BPF_CORE_READ(tagged, val);
	struct series_key root = { .cgroup_id = CGROUP_ROOT_ID };

	if (!val || val & 3)
		return event_key_is_asked_for(&root);
	return event_cgroup_is_asked_for((struct cgroup *)val, false);
}

/* Whether the filter of a stream has the cgroup of an event. */
static __always_inline bool tcp_cgroup_is_asked_for(const struct tcp_event *of,
						    const struct series_key *key,
						    enum tcp_means means)
{
	struct sock *sk = of->sk;
	struct cgroup *cgroup;

	if (!event_filter_cgroup)
		return true;
	/* Of a task's there is but the number. */
	if (TCP_OF_TASK(means))
		return event_key_is_asked_for(key);
	if (!bpf_core_field_exists(sk->sk_cgrp_data.cgroup))
		return tcp_tagged_cgroup_is_asked_for(sk);
	cgroup = KERNEL_READ(means & TCP_DIRECT, sk, sk_cgrp_data.cgroup);
	return event_cgroup_is_asked_for(cgroup, means & TCP_DIRECT);
}

#define TCP_READ_V6(direct, sk, to, field)                                                         \
	do {                                                                                       \
		(to)[0] = KERNEL_READ(direct, sk, __sk_common.field.in6_u.u6_addr32[0]);           \
		(to)[1] = KERNEL_READ(direct, sk, __sk_common.field.in6_u.u6_addr32[1]);           \
		(to)[2] = KERNEL_READ(direct, sk, __sk_common.field.in6_u.u6_addr32[2]);           \
		(to)[3] = KERNEL_READ(direct, sk, __sk_common.field.in6_u.u6_addr32[3]);           \
	} while (0)

/* Of what an event is: a kind of series and its detail in one word. */
#define TCP_SERIES(kind, detail) ((kind) << 8 | (detail))

/* Sends an event with all that the socket tells of it. */
static __always_inline void tcp_send(const struct tcp_event *of, enum tcp_means means, __u32 series,
				     __u64 ns)
{
	struct tcp_slow_event slow = {
		.event = {
			/* Not the time by now, if it can be helped: from it the beginning follows,
			 * by which event_name() knows whose this is, and a virtual CPU may have
			 * been stopped in between. */
			.ended_ns = of->ended_ns ? of->ended_ns : bpf_ktime_get_ns(),
			.duration_ns = ns,
			.key = { .kind = series >> 8, .detail = series },
		},
	};
	__u64 bytes = offsetof(struct tcp_slow_event, local);
	bool direct = means & TCP_DIRECT;
	struct tcp_sock *tp = of->tp;
	struct sock *sk = of->sk;

	slow.peer_port = __builtin_bswap16(KERNEL_READ(direct, sk, __sk_common.skc_dport));
	if (event_streams) {
		slow.local_port =
			__builtin_bswap16(KERNEL_READ(direct, tp, inet_conn.icsk_inet.inet_sport));
		if (event_filter_port && slow.peer_port != event_filter_port &&
		    slow.local_port != event_filter_port)
			return;
	}
	tcp_key_cgroup(&slow.event.key, of, means);
	if (!tcp_cgroup_is_asked_for(of, &slow.event.key, means))
		return;
	/* Nobody has accepted a server's socket yet, and its address may have been a client's. */
	if (tcp_closed)
		slow.event.origin = *of->origin;
	else if (series != TCP_SERIES(TCP_KIND_HANDSHAKE, TCP_ROLE_SERVER) &&
		 series != TCP_SERIES(TCP_KIND_UNMEASURED, TCP_ROLE_SERVER))
		event_name(&slow.event, tcp_counters + TCP_COUNTER_SLOW_NS, (__u64)sk, direct);
	if (!event_process_is_asked_for(&slow.event))
		return;
	slow.family = KERNEL_READ(direct, sk, __sk_common.skc_family);
	if (slow.family != AF_INET6)
		slow.peer[0] = KERNEL_READ(direct, sk, __sk_common.skc_daddr);
	else if (bpf_core_field_exists(sk->__sk_common.skc_v6_daddr))
		TCP_READ_V6(direct, sk, slow.peer, skc_v6_daddr);
	if (event_streams) {
		bytes = offsetof(struct tcp_slow_event, received_bytes);
		slow.retransmits = KERNEL_READ(direct, tp, total_retrans);
		if (slow.family != AF_INET6)
			slow.local[0] = KERNEL_READ(direct, sk, __sk_common.skc_rcv_saddr);
		else if (bpf_core_field_exists(sk->__sk_common.skc_v6_rcv_saddr))
			TCP_READ_V6(direct, sk, slow.local, skc_v6_rcv_saddr);
	}
	if (tcp_closed) {
		bytes = sizeof(slow);
		/* The other end's FIN counts as a byte. */
		slow.received_bytes =
			KERNEL_READ(direct, tp, bytes_received) -
			(KERNEL_READ(direct, sk, __sk_common.skc_flags) >> SOCK_DONE & 1);
		slow.sent_bytes = KERNEL_READ(direct, tp, bytes_sent) -
				  KERNEL_READ(direct, tp, bytes_retrans);
	}
	event_send(&slow.event, bytes, tcp_counters + TCP_COUNTER_EVENTS_LOST);
}

/* Out of line, for it is rare. Two, since a program whose pointers have types must not even hold
 * the helper that reads others: a locked-down kernel refuses it. */
static __noinline void tcp_send_direct(const struct tcp_event *of, __u32 series, __u64 ns)
{
	tcp_send(of, TCP_DIRECT, series, ns);
}

static __noinline void tcp_send_read(const struct tcp_event *of, __u32 series, __u64 ns)
{
	tcp_send(of, 0, series, ns);
}

/* Sends an event that took `ns`, 0 where nobody knows, if it is asked for. */
static __always_inline void tcp_send_if_slow(const struct tcp_event *of, enum tcp_means means,
					     __u32 series, __u64 ns)
{
	if (!event_is_wanted(tcp_counters + TCP_COUNTER_SLOW_NS, ns ? ns : 1))
		return;
	if (means & TCP_DIRECT)
		tcp_send_direct(of, series, ns);
	else
		tcp_send_read(of, series, ns);
}

static __always_inline void tcp_unmeasured(const struct tcp_event *event, enum tcp_means means,
					   enum tcp_role role)
{
	tcp_count(event, means, TCP_KIND_UNMEASURED, role, 1, TCP_COUNTER_OTHER_UNMEASURED + role);
	if (event_streams)
		tcp_send_if_slow(event, means, TCP_SERIES(TCP_KIND_UNMEASURED, role), 0);
}

/* Adds a duration to a series, or to the cell `other` of its role. */
static __always_inline void tcp_add(const struct series_cells *cells, bool found,
				    enum tcp_role role, __u64 ns)
{
	__u32 cell = tcp_histograms + role;

	if (found)
		cell = cells->histogram[0];
	else
		counter_add(tcp_counters + TCP_COUNTER_OVERFLOW, 1);
	histogram_add(cell, ns);
}

static __always_inline void tcp_handshake(const struct tcp_event *event, enum tcp_means means,
					  enum tcp_role role, __u64 ns)
{
	struct sock *sk = event->sk;
	struct series_cells cells;
	struct cgroup *cgroup;
	bool found;

	if (!TCP_OF_TASK(means) && bpf_core_field_exists(sk->sk_cgrp_data.cgroup)) {
		cgroup = KERNEL_READ(means & TCP_DIRECT, sk, sk_cgrp_data.cgroup);
		found = series_of(SERIES_KEY_WORD(0, TCP_KIND_HANDSHAKE, role), &cgroup->self, 1,
				  &cells, means & TCP_DIRECT);
	} else {
		struct series_key key = { .kind = TCP_KIND_HANDSHAKE, .detail = role };

		tcp_key_cgroup(&key, event, means);
		found = series_of_index(&key, 1, 0, &cells);
	}
	tcp_add(&cells, found, role, ns);
	tcp_send_if_slow(event, means, TCP_SERIES(TCP_KIND_HANDSHAKE, role), ns);
}

/* Why a connect failed, at the moment its socket closes. */
static __always_inline enum tcp_reason tcp_reason(const struct tcp_event *event,
						  enum tcp_means means)
{
	switch (KERNEL_READ(means & TCP_DIRECT, event->sk, sk_err)) {
	case ECONNREFUSED:
		return TCP_REASON_REFUSED;
	case ETIMEDOUT:
		return TCP_REASON_TIMEOUT;
	case EHOSTUNREACH:
	case ENETUNREACH:
	case EHOSTDOWN:
	case ENETDOWN:
		return TCP_REASON_UNREACHABLE;
	case 0:
		/* No error: the application closed, was killed or gave up waiting;
		 * or the connect failed before its first segment, for want of a port. */
		if (KERNEL_READ(means & TCP_DIRECT, event->sk, sk_shutdown) != SHUTDOWN_MASK &&
		    !KERNEL_READ(means & TCP_DIRECT, event->tp, segs_out))
			return TCP_REASON_LOCAL;
		return TCP_REASON_ABORTED;
	default:
		return TCP_REASON_OTHER;
	}
}

/* The end of a connect, well or badly. */
static __always_inline void tcp_client(const struct tcp_event *event, enum tcp_means means,
				       int newstate, __u64 elapsed)
{
	__u32 retransmits = KERNEL_READ(means & TCP_DIRECT, event->tp, total_retrans);

	if (newstate != TCP_ESTABLISHED) {
		enum tcp_reason reason = tcp_reason(event, means);

		tcp_count(event, means, TCP_KIND_FAILURE, reason, 1,
			  TCP_COUNTER_OTHER_FAILURE + reason);
		if (event_streams)
			tcp_send_if_slow(event, means, TCP_SERIES(TCP_KIND_FAILURE, reason),
					 elapsed);
	} else if (elapsed) {
		tcp_handshake(event, means, TCP_ROLE_CLIENT, elapsed);
	} else {
		tcp_unmeasured(event, means, TCP_ROLE_CLIENT);
	}
	if (retransmits)
		tcp_count(event, means, TCP_KIND_SYN_RETRANSMITS, 0, retransmits,
			  TCP_COUNTER_OTHER_SYN_RETRANSMITS);
}

/* The server's side: from the first SYN-ACK to its ACK. */
static __always_inline void tcp_server(const struct tcp_event *event, enum tcp_means means)
{
	struct tcp_sock *tp = event->tp;

	if (!KERNEL_READ(means & TCP_DIRECT, tp, total_retrans)) {
		/* The kernel's own first sample of the round trip, an eighth of a us
		 * a unit; none with SYN cookies, which keep no time of the SYN-ACK. */
		__u64 srtt_us = KERNEL_READ(means & TCP_DIRECT, tp, srtt_us);

		if (srtt_us) {
			tcp_handshake(event, means, TCP_ROLE_SERVER, (srtt_us >> 3) * 1000);
			return;
		}
	} else if (bpf_core_field_exists(tp->total_rto_time)) {
		/* Retransmitted: a sample would be ambiguous (Karn), but the kernel
		 * notes the time since the first SYN-ACK, in ms. */
		__u64 total_rto_ms = KERNEL_READ(means & TCP_DIRECT, tp, total_rto_time);

		if (total_rto_ms) {
			tcp_handshake(event, means, TCP_ROLE_SERVER, total_rto_ms * 1000000);
			return;
		}
	}
	tcp_unmeasured(event, means, TCP_ROLE_SERVER);
}

/* The current task as the one whose connection it is. */
static __always_inline void tcp_life_owner(struct tcp_life *life)
{
	life->origin.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(life->origin.comm, sizeof(life->origin.comm));
	if (tcp_task_hierarchy)
		life->cgroup_id = tcp_task_cgroup_id();
}

static __always_inline enum tcp_end tcp_end_of(int error)
{
	switch (error) {
	case 0:
		return TCP_END_OK;
	case ECONNRESET:
	case EPIPE:
		return TCP_END_RESET;
	case ETIMEDOUT:
		return TCP_END_TIMEOUT;
	default:
		return TCP_END_OTHER;
	}
}

/* Follows a connection from the SYN, of a server from the end of the handshake, to its close. */
static __always_inline void tcp_live(struct tcp_event *event, int oldstate, int newstate,
				     enum tcp_means means)
{
	struct tcp_life life = { .began_ns = bpf_ktime_get_ns() }, *known;
	void *table = table_in(&tcp_lives);
	__u64 key = (__u64)event->sk;
	enum tcp_end end;
	bool closes;

	if (!table)
		return;
	known = bpf_map_lookup_elem(table, &key);
	if (newstate == TCP_SYN_SENT ||
	    (newstate == TCP_ESTABLISHED && oldstate == TCP_SYN_RECV && !known)) {
		if (newstate == TCP_SYN_SENT)
			tcp_life_owner(&life);
		else
			life.role = TCP_ROLE_SERVER;
		if (bpf_map_update_elem(table, &key, &life, BPF_ANY))
			counter_add(tcp_counters + TCP_COUNTER_UNTRACKED, 1);
		return;
	}
	if (!known)
		return;
	end = tcp_end_of(KERNEL_READ(means & TCP_DIRECT, event->sk, sk_err));
	/* What has accepted it is known when it closes its end: with a FIN, or, if something is
	 * left unread, at once. */
	closes = newstate == TCP_FIN_WAIT1 || newstate == TCP_LAST_ACK ||
		 (newstate == TCP_CLOSE && end == TCP_END_OK &&
		  (oldstate == TCP_ESTABLISHED || oldstate == TCP_CLOSE_WAIT));
	if (!known->origin.pid && closes)
		tcp_life_owner(known);
	if (newstate != TCP_CLOSE)
		return;
	event->ended_ns = life.began_ns;
	life = *known;
	bpf_map_delete_elem(table, &key);
	event->tp =
		means & TCP_DIRECT ? bpf_skc_to_tcp_sock(event->sk) : (struct tcp_sock *)event->sk;
	/* A connect that failed was no connection. */
	if (oldstate == TCP_SYN_SENT || !event->tp)
		return;
	event->origin = &life.origin;
	event->task_cgroup_id = life.cgroup_id;
	tcp_send_if_slow(event, means, TCP_SERIES(TCP_KIND_CLOSED, TCP_CLOSED(end, life.role & 1)),
			 event->ended_ns - life.began_ns);
}

static __always_inline void tcp_state(struct sock *sk, int oldstate, int newstate,
				      enum tcp_means means)
{
	struct tcp_ended ended = {};
	struct tcp_event event = { .sk = sk };
	bool began = false;

	if (tcp_closed) {
		if (KERNEL_READ(means & TCP_DIRECT, sk, sk_protocol) == IPPROTO_TCP)
			tcp_live(&event, oldstate, newstate, means);
		return;
	}

	/* Seven of a connection's ten changes end here. */
	if (oldstate != TCP_SYN_SENT && oldstate != TCP_SYN_RECV && newstate != TCP_SYN_SENT)
		return;
	/* MPTCP and DCCP pass here too. */
	if (KERNEL_READ(means & TCP_DIRECT, sk, sk_protocol) != IPPROTO_TCP)
		return;
	if (newstate == TCP_SYN_SENT) {
		tcp_start(sk, means & TCP_SLOTS, means & TCP_DIRECT);
		return;
	}
	/* A simultaneous open goes through SYN_RECV and is still the client's. */
	if (newstate != TCP_ESTABLISHED && newstate != TCP_CLOSE)
		return;
	/* A server's child belongs to no file before it is accepted: no start to look for. */
	if (oldstate == TCP_SYN_SENT || KERNEL_READ(means & TCP_DIRECT, sk, sk_socket))
		began = tcp_end(sk, means & TCP_SLOTS, &ended);
	event.task_cgroup_id = ended.cgroup_id;
	event.ended_ns = ended.ended_ns;
	event.tp = means & TCP_DIRECT ? bpf_skc_to_tcp_sock(sk) : (struct tcp_sock *)sk;
	if (!event.tp)
		return;
	if (began || oldstate == TCP_SYN_SENT)
		tcp_client(&event, means, newstate, ended.duration_ns);
	else if (newstate == TCP_ESTABLISHED)
		tcp_server(&event, means);
}

SEC("tp_btf/inet_sock_set_state")
int tcp_state_slots(unsigned long long *ctx)
{
	tcp_state((void *)ctx[0], (int)ctx[1], (int)ctx[2], TCP_SLOTS | TCP_DIRECT);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int tcp_state_hash(unsigned long long *ctx)
{
	tcp_state((void *)ctx[0], (int)ctx[1], (int)ctx[2], TCP_DIRECT);
	return 0;
}

/* The function in which the tracepoint sits: the same changes at the same moment, on entry, so
 * the socket still has its old state. */
SEC("kprobe/tcp_set_state")
int tcp_state_kprobe(struct pt_regs *ctx)
{
	struct sock *sk = (void *)PT_REGS_PARM1(ctx);

	tcp_state(sk, BPF_CORE_READ(sk, __sk_common.skc_state), (int)PT_REGS_PARM2(ctx), 0);
	return 0;
}

/* Where the tracepoint's record has its fields; read from tracefs by the loader. */
const volatile struct record_field tcp_record_skaddr;
const volatile struct record_field tcp_record_oldstate;
const volatile struct record_field tcp_record_newstate;
const volatile struct record_field tcp_record_protocol;

/* Without types there is but the record of the tracepoint: no error, no round trip, no cgroup. A
 * connect begins in its task, so the cgroup is that task's. What happened at the server's end
 * has no owner here. */
SEC("tracepoint/sock/inet_sock_set_state")
int tcp_state_record(void *ctx)
{
	int oldstate = RECORD_READ(ctx, tcp_record_oldstate);
	int newstate = RECORD_READ(ctx, tcp_record_newstate);
	struct series_key key = {};
	struct series_cells cells;
	struct tcp_ended ended;
	__u64 socket;

	if (oldstate != TCP_SYN_SENT && oldstate != TCP_SYN_RECV && newstate != TCP_SYN_SENT)
		return 0;
	if (RECORD_READ(ctx, tcp_record_protocol) != IPPROTO_TCP)
		return 0;
	socket = RECORD_READ(ctx, tcp_record_skaddr);
	if (newstate == TCP_SYN_SENT) {
		if (!tcp_start_hash(socket, bpf_get_current_cgroup_id()))
			counter_add(tcp_counters + TCP_COUNTER_UNTRACKED, 1);
		return 0;
	}
	if (newstate != TCP_ESTABLISHED && newstate != TCP_CLOSE)
		return 0;
	if (oldstate == TCP_SYN_RECV) {
		/* A server's end. What is noted at this address, if anything, was another socket's
		 * whose end the kernel hid, or a simultaneous open's. */
		tcp_end_hash(socket, &ended);
		if (newstate == TCP_ESTABLISHED)
			counter_add(tcp_counters + TCP_COUNTER_OTHER_UNMEASURED + TCP_ROLE_SERVER,
				    1);
		return 0;
	}
	if (!tcp_end_hash(socket, &ended)) {
		counter_add(tcp_counters + (newstate == TCP_ESTABLISHED
						    ? TCP_COUNTER_OTHER_UNMEASURED + TCP_ROLE_CLIENT
						    : TCP_COUNTER_OTHER_FAILURE + TCP_REASON_OTHER),
			    1);
		return 0;
	}
	key.cgroup_id = ended.cgroup_id;
	if (newstate == TCP_ESTABLISHED) {
		key.kind = TCP_KIND_HANDSHAKE;
		key.detail = TCP_ROLE_CLIENT;
		tcp_add(&cells, series_of_index(&key, 1, 0, &cells), TCP_ROLE_CLIENT,
			ended.duration_ns);
	} else {
		key.kind = TCP_KIND_FAILURE;
		key.detail = TCP_REASON_OTHER;
		series_count(&key, 1, tcp_counters + TCP_COUNTER_OTHER_FAILURE + TCP_REASON_OTHER,
			     tcp_counters + TCP_COUNTER_OVERFLOW);
	}
	return 0;
}
