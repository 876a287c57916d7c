/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the kernel and the agent share of a series: the key that names it and the
 * cells that hold its values. */
#pragma once

#include <linux/types.h>

/* Cells per page of counters; the counters' pool is a whole number of pages. */
#define COUNTERS_PER_PAGE 512

/* "No cell" in struct series. */
#define CELL_NONE 0xffff

/* What a series belongs to. Ids of cgroups are numbered per hierarchy and collide
 * between them, so the hierarchy is part of the key. */
struct series_key {
	__u64 cgroup_id;
	/* major << 20 | minor of the whole disk, 0 where there is none. */
	__u32 device;
	/* The hierarchy's id as in /proc/cgroups; 0 is cgroup v2. */
	__u16 hierarchy;
	/* SERIES_KIND(probe, kind): which metric of which probe. */
	__u8 kind;
	/* Role, operation, reason: each kind's own numbering. */
	__u8 detail;
};

#define SERIES_KIND(probe, kind) ((probe) << 4 | (kind))

/* The cells of a series. A histogram's cell brings the counter of the same
 * number along; `counter` is for series that only count. */
struct series {
	__u16 histogram[2];
	__u16 counter;
	__u16 reserved;
};
