/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Gaps and failed calls one by one, for a trace. They are in an object of their own: the one that
 * counts has no map and no instruction for it. */
#pragma once

#include "gpu/wire.h"

/* A kind and its detail in one word. */
#define GPU_SERIES(kind, detail) ((kind) << 8 | (detail))

#ifdef TRACE

#include "ring.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gpu_asked);
} gpu_asked SEC(".maps");

/* Events that found their ring full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} gpu_lost SEC(".maps");

/* The cgroups that are asked for, each that is below another one as well: before 5.15 no program
 * of this type can ask what a task's cgroup is below. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct event_cgroup);
	__type(value, __u32);
} gpu_cgroups SEC(".maps");

/* Sends what ended `now`, after `ns` or 0 where that is not known, of the current task. */
static __noinline int gpu_tell(__u64 now, __u64 ns, __u32 series, __u32 device, __u32 code)
{
	struct gpu_told told = {
		.event = {
			.ended_ns = now,
			.duration_ns = ns,
			.key = { .device = device, .kind = series >> 8, .detail = series },
		},
		.code = code,
	};
	struct event_cgroup cgroup = {};
	struct gpu_asked *asked;
	__u32 zero = 0, cpu = bpf_get_smp_processor_id();
	__u64 *lost;
	void *ring;

	asked = bpf_map_lookup_elem(&gpu_asked, &zero);
	if (!asked || asked->least_ns - 1 >= (ns ? ns : 1))
		return 0;
	if (asked->device && asked->device != device)
		return 0;
	told.event.origin.pid = bpf_get_current_pid_tgid() >> 32;
	if (asked->pid && asked->pid != told.event.origin.pid)
		return 0;
	cgroup.cgroup_id = told.event.key.cgroup_id = bpf_get_current_cgroup_id();
	if (asked->by_cgroup && !bpf_map_lookup_elem(&gpu_cgroups, &cgroup))
		return 0;
	bpf_get_current_comm(told.event.origin.comm, sizeof(told.event.origin.comm));
	ring = bpf_map_lookup_elem(&events, &cpu);
	if (ring && !bpf_ringbuf_output(ring, &told, sizeof(told), BPF_RB_NO_WAKEUP))
		return 0;
	lost = bpf_map_lookup_elem(&gpu_lost, &zero);
	if (lost)
		__sync_fetch_and_add(lost, 1);
	return 0;
}

#else

static __always_inline void gpu_tell(__attribute__((unused)) __u64 now,
				     __attribute__((unused)) __u64 ns,
				     __attribute__((unused)) __u32 series,
				     __attribute__((unused)) __u32 device,
				     __attribute__((unused)) __u32 code)
{
}

#endif
