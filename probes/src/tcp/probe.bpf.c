// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* TCP handshakes, from the changes of a socket's state.
 *
 * The cgroup is the socket's, never the current task's: handshakes end in softirq,
 * where the current task is whoever was interrupted. A server's child socket
 * carries the cgroup in which its listener was created.
 */
#include "aggregate.bpf.h"
#include "tcp/wire.h"

/* The first of the probe's own cells; set by the loader. */
const volatile __u32 tcp_histograms;
const volatile __u32 tcp_counters;

/* include/net/tcp_states.h and include/uapi/asm-generic/errno.h are the ABI. */
#define IPPROTO_TCP 6
#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7
#define SHUTDOWN_MASK 3

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

/* For kernels without compare-and-swap (before commit 5ffa25502b5a, "bpf: Add
 * instructions for atomic_[cmp]xchg", 5.12) and without socket storage for tracing programs
 * (before commit 8e4597c627fb, 5.11). Plain, not LRU: a full table is an error that can
 * be counted, an eviction is not. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, __u64);
} tcp_started_hash SEC(".maps");

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

static __always_inline void tcp_start(struct sock *sk, bool slots)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 key = (__u64)sk;
	bool stored;

	if (slots)
		stored = tcp_start_slot(sk, now) ||
			 bpf_sk_storage_get(&tcp_started_storage, sk, &now,
					    BPF_SK_STORAGE_GET_F_CREATE);
	else
		stored = !bpf_map_update_elem(&tcp_started_hash, &key, &now, BPF_ANY);
	if (!stored)
		counter_add(tcp_counters + TCP_COUNTER_UNTRACKED, 1);
}

/* How long the connect has taken, and forgets its start; 0 where that was not seen. */
static __always_inline __u64 tcp_end(struct sock *sk, bool slots)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 key = (__u64)sk;
	__u64 *found, elapsed;

	if (slots) {
		elapsed = tcp_end_slot(sk, now);
		if (elapsed)
			return elapsed;
		found = bpf_sk_storage_get(&tcp_started_storage, sk, NULL, 0);
	} else {
		found = bpf_map_lookup_elem(&tcp_started_hash, &key);
	}
	if (!found)
		return 0;
	elapsed = now - *found;
	if (slots)
		bpf_sk_storage_delete(&tcp_started_storage, sk);
	else
		bpf_map_delete_elem(&tcp_started_hash, &key);
	return elapsed;
}

/* Names the workload of a key by the socket's cgroup. */
static __always_inline void tcp_key_cgroup(struct series_key *key, struct sock *sk)
{
	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup)) {
		series_key_cgroup(key, sk->sk_cgrp_data.cgroup);
	} else {
		struct sock_cgroup_data___tagged *tagged = (void *)&sk->sk_cgrp_data;
		__u64 val = BPF_CORE_READ(tagged, val);
		struct cgroup *cgroup = (void *)val;

		/* Tagged, it holds the numbers of net_cls and net_prio; either way the root. */
		if (!val || val & 3) {
			key->cgroup_id = 1;
			key->hierarchy = 0;
			return;
		}
		key->cgroup_id = BPF_CORE_READ(cgroup, kn, id);
		key->hierarchy = BPF_CORE_READ(cgroup, root, hierarchy_id);
	}
}

static __always_inline void tcp_count(struct sock *sk, enum tcp_kind kind, __u32 detail, __u64 n,
				      __u32 other)
{
	struct series_key key = { .kind = kind, .detail = detail };

	tcp_key_cgroup(&key, sk);
	series_count(&key, n, tcp_counters + other, tcp_counters + TCP_COUNTER_OVERFLOW);
}

static __always_inline void tcp_unmeasured(struct sock *sk, enum tcp_role role)
{
	tcp_count(sk, TCP_KIND_UNMEASURED, role, 1, TCP_COUNTER_OTHER_UNMEASURED + role);
}

static __always_inline void tcp_handshake(struct sock *sk, enum tcp_role role, __u64 ns)
{
	struct series_key key = { .kind = TCP_KIND_HANDSHAKE, .detail = role };
	struct series_cells cells;
	__u32 cell = tcp_histograms + role;
	bool found;

	if (bpf_core_field_exists(sk->sk_cgrp_data.cgroup)) {
		found = series_of(&key, &sk->sk_cgrp_data.cgroup->self, 1, &cells);
	} else {
		tcp_key_cgroup(&key, sk);
		found = series_of_index(&key, 1, 0, &cells);
	}
	if (found)
		cell = cells.histogram[0];
	else
		counter_add(tcp_counters + TCP_COUNTER_OVERFLOW, 1);
	histogram_add(cell, ns);
}

/* Why a connect failed, at the moment its socket closes. */
static __always_inline enum tcp_reason tcp_reason(struct sock *sk, struct tcp_sock *tp)
{
	switch (sk->sk_err) {
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
		if (sk->sk_shutdown != SHUTDOWN_MASK && !tp->segs_out)
			return TCP_REASON_LOCAL;
		return TCP_REASON_ABORTED;
	default:
		return TCP_REASON_OTHER;
	}
}

/* The end of a connect, well or badly. */
static __always_inline void tcp_client(struct sock *sk, struct tcp_sock *tp, int newstate,
				       __u64 elapsed)
{
	if (newstate != TCP_ESTABLISHED) {
		enum tcp_reason reason = tcp_reason(sk, tp);

		tcp_count(sk, TCP_KIND_FAILURE, reason, 1, TCP_COUNTER_OTHER_FAILURE + reason);
	} else if (elapsed) {
		tcp_handshake(sk, TCP_ROLE_CLIENT, elapsed);
	} else {
		tcp_unmeasured(sk, TCP_ROLE_CLIENT);
	}
	if (tp->total_retrans)
		tcp_count(sk, TCP_KIND_SYN_RETRANSMITS, 0, tp->total_retrans,
			  TCP_COUNTER_OTHER_SYN_RETRANSMITS);
}

/* The server's side: from the first SYN-ACK to its ACK. */
static __always_inline void tcp_server(struct sock *sk, struct tcp_sock *tp)
{
	if (!tp->total_retrans) {
		/* The kernel's own first sample of the round trip, an eighth of a us
		 * a unit; none with SYN cookies, which keep no time of the SYN-ACK. */
		if (tp->srtt_us) {
			tcp_handshake(sk, TCP_ROLE_SERVER, (__u64)(tp->srtt_us >> 3) * 1000);
			return;
		}
	} else if (bpf_core_field_exists(tp->total_rto_time) && tp->total_rto_time) {
		/* Retransmitted: a sample would be ambiguous (Karn), but the kernel
		 * notes the time since the first SYN-ACK, in ms. */
		tcp_handshake(sk, TCP_ROLE_SERVER, (__u64)tp->total_rto_time * 1000000);
		return;
	}
	tcp_unmeasured(sk, TCP_ROLE_SERVER);
}

static __always_inline void tcp_state(unsigned long long *ctx, bool slots)
{
	struct sock *sk = (void *)ctx[0];
	int oldstate = (int)ctx[1], newstate = (int)ctx[2];
	struct tcp_sock *tp;
	__u64 elapsed = 0;

	/* Seven of a connection's ten changes end here. */
	if (oldstate != TCP_SYN_SENT && oldstate != TCP_SYN_RECV && newstate != TCP_SYN_SENT)
		return;
	/* MPTCP and DCCP pass here too. */
	if (sk->sk_protocol != IPPROTO_TCP)
		return;
	if (newstate == TCP_SYN_SENT) {
		tcp_start(sk, slots);
		return;
	}
	/* A simultaneous open goes through SYN_RECV and is still the client's. */
	if (newstate != TCP_ESTABLISHED && newstate != TCP_CLOSE)
		return;
	/* A server's child belongs to no file before it is accepted: no start to look for. */
	if (oldstate == TCP_SYN_SENT || sk->sk_socket)
		elapsed = tcp_end(sk, slots);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	if (elapsed || oldstate == TCP_SYN_SENT)
		tcp_client(sk, tp, newstate, elapsed);
	else if (newstate == TCP_ESTABLISHED)
		tcp_server(sk, tp);
}

SEC("tp_btf/inet_sock_set_state")
int tcp_state_slots(unsigned long long *ctx)
{
	tcp_state(ctx, true);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int tcp_state_hash(unsigned long long *ctx)
{
	tcp_state(ctx, false);
	return 0;
}
