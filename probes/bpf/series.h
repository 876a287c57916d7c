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
struct series_cells {
	__u16 histogram[2];
	__u16 counter;
	/* In a slot: series_tag() of its key. */
	__u16 tag;
};

/* What the index holds. */
struct series {
	struct series_cells cells;
	/* The serial number of the cgroup's state for its controller. It names the workload
	 * like the id, is never given out again, and lies nearer: three cache lines fewer. */
	__u64 serial;
};

/* A series where a program finds it without a call. The key has the serial number for a
 * cgroup id, and no hierarchy. */
struct series_slot {
	struct series_key key;
	struct series_cells cells;
};

/* Slots that a key may stand in, from its hash on. */
#define SERIES_SLOT_WINDOW 4

/* The hash of a key's two words: the agent and the programs must agree on it. */
static inline __attribute__((always_inline)) __u64 series_hash(__u64 first, __u64 second)
{
	return first * 0x9e3779b97f4a7c15ULL ^ second * 0xc2b2ae3d27d4eb4fULL;
}

/* The first slot of a hash, before it is masked to the number of slots. */
static inline __attribute__((always_inline)) __u32 series_first_slot(__u64 hash)
{
	return hash >> 40;
}

/* Tells a slot that is whole from one that is half written. */
static inline __attribute__((always_inline)) __u16 series_tag(__u64 hash)
{
	return hash >> 24;
}
