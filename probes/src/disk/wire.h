/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the disk probe's programs and their reader share. */
#pragma once

#include "event.h"

#define DISK_PROBE 2

/* The kinds of series. DISK_KIND_IO: `detail` is the operation; histogram 0 runs
 * from the request's creation, histogram 1 runs at the device. So that an I/O
 * adds to few lines, each a barrier: the time of histogram 0 is that of
 * histogram 1, in its sum, and what passed before the issue, in the counter of
 * histogram 0, which is often nothing; and the sum of histogram 0 is the bytes.
 * A flush has histogram 0 alone, with its time in its sum. DISK_KIND_ERROR: `detail`
 * is DISK_ERROR(). */
enum disk_kind {
	DISK_KIND_IO = SERIES_KIND(DISK_PROBE, 0),
	DISK_KIND_ERROR = SERIES_KIND(DISK_PROBE, 1),
};

enum disk_operation {
	DISK_OPERATION_READ,
	DISK_OPERATION_WRITE,
	DISK_OPERATION_DISCARD,
	DISK_OPERATION_OTHER,
	/* Last, for a flush has no time at the device. */
	DISK_OPERATION_FLUSH,
	DISK_OPERATIONS,
};

/* The block layer's status codes fit five bits (include/linux/blk_types.h). */
#define DISK_ERROR(operation, status) ((operation) << 5 | (31 & (status)))

/* The probe's own histograms, for series that find no room, counted from
 * `disk_histograms`. */
enum disk_histogram {
	DISK_HISTOGRAM_OTHER_IO,
	DISK_HISTOGRAM_OTHER_DEVICE = DISK_HISTOGRAM_OTHER_IO + DISK_OPERATIONS,
	DISK_HISTOGRAMS = DISK_HISTOGRAM_OTHER_DEVICE + DISK_OPERATION_FLUSH,
};

/* The probe's own counters, counted from `disk_counters`. */
enum disk_counter {
	DISK_COUNTER_OVERFLOW,
	/* Completed without a time stamp of their own and without one from the
	 * issue hook: no duration is recorded. */
	DISK_COUNTER_UNTIMED,
	/* Found no room in the issue hook's table. */
	DISK_COUNTER_UNTRACKED,
	DISK_COUNTER_OTHER_ERROR,
	/* No counter: set by the agent, see event_is_wanted(). */
	DISK_COUNTER_SLOW_NS = DISK_COUNTER_OTHER_ERROR + DISK_OPERATIONS,
	DISK_COUNTER_EVENTS_LOST,
	/* In this order: see event_name(). */
	DISK_COUNTER_EVENTS_UNKNOWN,
	DISK_COUNTERS,
};

/* A block request that has completed, or failed: the kind of its key tells. */
struct disk_slow_event {
	struct event event;
	/* From its issue; 0 where that is not known. */
	__u64 device_ns;
	/* Of 512 bytes. */
	__u64 sector;
	__u64 bytes;
};
