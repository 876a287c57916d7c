/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Where single events go. */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct event_ring {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	/* Not those that the agent makes: a multiple of any page there is. */
	__uint(max_entries, 65536);
};

/* By CPU. The agent sets their number, and fills the slots when somebody asks for events. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct event_ring);
} events SEC(".maps");
