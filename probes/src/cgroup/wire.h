/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the cgroup programs and their reader share. */
#pragma once

#include <linux/types.h>

enum cgroup_operation {
	CGROUP_MKDIR,
	CGROUP_RENAME,
	CGROUP_RMDIR,
};

/* NAME_MAX and its end. */
#define CGROUP_NAME_BYTES 256

/* One change of a cgroup tree. `name` is the last part of the path and ends with the
 * record; with the parent's id it makes any path, however deep. Without parent it is the
 * whole path. */
struct cgroup_event {
	__u64 id;
	__u64 parent_id;
	__u32 hierarchy;
	__u32 operation;
	char name[CGROUP_NAME_BYTES];
};

#define CGROUP_EVENT_HEAD_BYTES 24

/* The programs' own counters, counted from `cgroup_counters`. */
enum cgroup_counter {
	/* Events that found the ring full. */
	CGROUP_COUNTER_LOST,
	CGROUP_COUNTERS,
};
