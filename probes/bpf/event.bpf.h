/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Single events, for those who ask: a ring for each CPU, shared by all probes. Without a
 * threshold nothing is looked at but the threshold, and without rings there is no memory. */
#pragma once

#include "aggregate.bpf.h"
#include "event.h"

struct event_ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
};

/* By CPU. The agent sets their number, and fills the slots when somebody asks for events. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct event_ring);
} events SEC(".maps");

/* Who began what is under way, by the address of its socket or bio. LRU, for not every end is
 * seen; what loses its place has an event without a process. */
struct event_origins {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	/* By size: clang leaves a type that only stands here undefined. */
	__uint(key_size, sizeof(__u64));
	__uint(value_size, sizeof(struct event_origin));
};

/* The slot is empty, and costs nothing, until somebody asks for events. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct event_origins);
} event_origins SEC(".maps");

/* Whether an event of this duration is asked for. The cell of the pool of counters has the
 * shortest that is, in ns; 0 is none. */
static __always_inline bool event_is_wanted(__u32 slow_cell, __u64 ns)
{
	__u64 *slow_ns = bpf_map_lookup_elem(&counters, &slow_cell);

	return slow_ns && *slow_ns - 1 < ns;
}

/* Notes the current task as the one that began something, if events are asked for. */
static __always_inline void event_begin(__u32 slow_cell, __u64 address)
{
	struct event_origin origin = {};
	void *table;

	if (!event_is_wanted(slow_cell, ~0ULL))
		return;
	table = table_in(&event_origins);
	if (!table)
		return;
	origin.pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(origin.comm, sizeof(origin.comm));
	bpf_map_update_elem(table, &address, &origin, BPF_ANY);
}

/* Takes over into an event who began what is at an address. */
static __always_inline void event_name(struct event *event, __u64 address)
{
	void *table = table_in(&event_origins);
	struct event_origin *origin;

	if (!table)
		return;
	origin = bpf_map_lookup_elem(table, &address);
	if (!origin)
		return;
	event->origin = *origin;
}

/* Sends an event of `bytes`; the counter `lost` takes one that finds its ring full. Nobody is
 * woken: the reader comes by itself, and a wake-up costs three times as much as all the rest. */
static __always_inline void event_send(struct event *event, __u64 bytes, __u32 lost)
{
	__u32 cpu = bpf_get_smp_processor_id();
	void *ring = bpf_map_lookup_elem(&events, &cpu);

	if (!ring || bpf_ringbuf_output(ring, event, bytes, BPF_RB_NO_WAKEUP))
		counter_add(lost, 1);
}
