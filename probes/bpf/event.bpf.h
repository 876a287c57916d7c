/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Single events, for those who ask: a ring for each CPU, shared by all probes. Without a
 * threshold nothing is looked at but the threshold, and without rings there is no memory. */
#pragma once

#include "aggregate.bpf.h"
#include "event.h"
#include "ring.bpf.h"

/* Who began what is under way, at a place that its address leads to. Not in an LRU
 * hash: that made a request cost 8 times what it costs without, this 3 times. */
struct event_places {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_INNER_MAP);
	__uint(max_entries, 1);
	/* By size: clang leaves a type that only stands here undefined. */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct event_place));
};

/* The slot is empty, and costs nothing, until somebody asks for events. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct event_places);
} event_origins SEC(".maps");

/* Whether each event is asked for, those that failed among them, and not only what is slow. Set by
 * the loader, so that the verifier takes out what an agent does not need. */
const volatile __u32 event_streams;

/* Which of them; 0 is all. Set by the loader. */
const volatile __u32 event_filter_pid;
const volatile __u32 event_filter_port;
const volatile __u32 event_filter_device;
const volatile __u32 event_filter_cgroup;

/* The cgroups of `event_filter_cgroup`: whatever is in one of them, or below it. */
struct event_cgroup_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	/* By size: clang leaves a type that only stands here undefined. */
	__uint(key_size, sizeof(struct event_cgroup));
	__uint(value_size, sizeof(__u32));
};

/* The slot stays empty without that filter. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct event_cgroup_table);
} event_cgroups SEC(".maps");

/* Levels of a tree that are looked through at most, from the inside. */
#define EVENT_CGROUP_LEVELS 32

static __always_inline bool event_key_is_asked_for(const struct series_key *key)
{
	struct event_cgroup cgroup = {
		.cgroup_id = key->cgroup_id,
		.hierarchy = key->hierarchy,
	};
	void *table = table_in(&event_cgroups);

	return table && bpf_map_lookup_elem(table, &cgroup);
}

/* Whether the filter has a cgroup or one above it. */
static __always_inline bool event_cgroup_is_asked_for(struct cgroup *cgroup, bool direct)
{
	struct cgroup_subsys_state *css = &cgroup->self;
	struct series_key key = {};

#pragma clang loop unroll(disable)
	for (int i = 0; i < EVENT_CGROUP_LEVELS; i++) {
		series_key_cgroup(&key, KERNEL_READ(direct, css, cgroup), direct);
		if (!key.cgroup_id)
			return false;
		if (event_key_is_asked_for(&key))
			return true;
		css = KERNEL_READ(direct, css, parent);
	}
	return false;
}

/* Whether an event of this duration is asked for. The cell of the pool of counters has the
 * shortest that is, in ns; 0 is none. */
static __always_inline bool event_is_wanted(__u32 slow_cell, __u64 ns)
{
	__u64 *slow_ns = bpf_map_lookup_elem(&counters, &slow_cell);

	return slow_ns && *slow_ns - 1 < ns;
}

/* Units of the time at which something began: of 2^20 ns, some ms. */
#define EVENT_TIME_SHIFT 20

/* The place of what is at an address, and in `number` what tells it from others there. */
static __always_inline struct event_place *event_place_of(__u32 slow_cell, __u64 address,
							  __u64 *number, bool direct)
{
	void *table = table_in(&event_origins);
	void *base = bpf_map_lookup_elem(&counters, &slow_cell);
	__u32 index;

	if (!table || !base)
		return NULL;
	/* Of a typed pointer the verifier lets no number be made but its distance from another. */
	if (direct)
		asm("%0 -= %1" : "+r"(address) : "r"(base));
	*number = address;
	index = address * 0x9e3779b97f4a7c15ULL >>
		(64 - (event_streams ? EVENT_STREAM_PLACE_BITS : EVENT_PLACE_BITS));
	return bpf_map_lookup_elem(table, &index);
}

/* Tells whether a place is of one writer: two at once may mix what they write. */
static __always_inline __u64 event_check(const struct event_place *place, __u64 number)
{
	const __u64 *comm = (const __u64 *)place->comm;

	return number ^ place->pid_and_begun * 0x9e3779b97f4a7c15ULL ^
	       comm[0] * 0xbf58476d1ce4e5b9ULL ^ comm[1] * 0x94d049bb133111ebULL;
}

/* Notes the current task as the one that began something, if events are asked for. */
static __always_inline void event_begin(__u32 slow_cell, __u64 address, bool direct)
{
	struct event_place *place, noted = {};
	__u64 number;
	__u32 pid;

	if (!event_is_wanted(slow_cell, ~0ULL))
		return;
	place = event_place_of(slow_cell, address, &number, direct);
	if (!place)
		return;
	pid = bpf_get_current_pid_tgid() >> 32;
	if (event_filter_pid && pid != event_filter_pid) {
		/* It takes nobody's place. But what was noted at this address has ended. */
		noted = *place;
		if (noted.check == event_check(&noted, number))
			place->check = 0;
		return;
	}
	noted.pid_and_begun = pid | bpf_ktime_get_ns() >> EVENT_TIME_SHIFT << 32;
	bpf_get_current_comm(noted.comm, sizeof(noted.comm));
	noted.check = event_check(&noted, number);
	*place = noted;
}

/* Counters of a probe that stand behind that of the shortest duration. */
#define EVENT_COUNTER_UNKNOWN 2

/* Takes over into an event who began what is at an address. */
static __always_inline void event_name(struct event *event, __u32 slow_cell, __u64 address,
				       bool direct)
{
	__u32 began = (event->ended_ns - event->duration_ns) >> EVENT_TIME_SHIFT;
	struct event_place *place, noted;
	__u64 number;

	place = event_place_of(slow_cell, address, &number, direct);
	if (!place)
		return;
	noted = *place;
	if (noted.check != event_check(&noted, number)) {
		/* What the process that is asked for began later has taken the place, perhaps its
		 * own: of the others none takes one. */
		if (event_filter_pid && noted.check &&
		    (__s32)((__u32)(noted.pid_and_begun >> 32) - began) >= -1)
			counter_add(slow_cell + EVENT_COUNTER_UNKNOWN, 1);
		return;
	}
	/* Noted before this began: something else was at the address, of which nobody cared. One
	 * unit is for the clock, which may be read in the middle of one. */
	if ((__s32)((__u32)(noted.pid_and_begun >> 32) - began) < -1)
		return;
	event->origin.pid = noted.pid_and_begun;
	__builtin_memcpy(event->origin.comm, noted.comm, sizeof(noted.comm));
}

/* Whether it is of the process that is asked for, once it has its name. */
static __always_inline bool event_process_is_asked_for(const struct event *event)
{
	return !event_filter_pid || event->origin.pid == event_filter_pid;
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
