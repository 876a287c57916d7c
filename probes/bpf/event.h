/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What goes through a ring to the agent: a single event, while somebody asks for it. */
#pragma once

#include <linux/types.h>

#include "series.h"

/* TASK_COMM_LEN of include/linux/sched.h. */
#define EVENT_COMM_BYTES 16

/* Who began something. */
struct event_origin {
	__u32 pid;
	char comm[EVENT_COMM_BYTES];
};

/* Places for who began what is under way: another may take one, and the process is unknown then.
 * While 1,000 others begin, one in nine loses its place; of a stream one in 260. */
#define EVENT_PLACE_BITS 13
#define EVENT_STREAM_PLACE_BITS 18

/* Such a place. */
struct event_place {
	/* Of what is noted, and of what it is noted for. */
	__u64 check;
	char comm[EVENT_COMM_BYTES];
	/* In the upper half when it began: see EVENT_TIME_SHIFT. */
	__u64 pid_and_begun;
};

/* A cgroup that a stream is asked for, as a key has it. */
struct event_cgroup {
	__u64 cgroup_id;
	__u64 hierarchy;
};

/* The head of every event. What the probe has to say of it follows. */
struct event {
	/* CLOCK_MONOTONIC. */
	__u64 ended_ns;
	__u64 duration_ns;
	/* The series that counts it. */
	struct series_key key;
	/* The process that began it, and its thread's name; 0 and nothing where that is not known.
	 */
	struct event_origin origin;
	__u32 reserved;
};
