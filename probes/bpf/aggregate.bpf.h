/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Aggregation in the kernel: every value lives in memory that the agent has
 * mapped, so that a scrape reads it without a syscall and nothing ever wakes
 * the agent. All probes share these maps; the agent sets their sizes. */
#pragma once

#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "histogram.h"
#include "kernel.h"
#include "series.h"

/* The kernel knows no name for "GPL or Apache-2.0"; of those it takes, this comes nearest. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Counts series inserted. While it stands still the index has nothing new, and a
 * scrape need not look. Set by the loader, like each probe's own cells. */
const volatile __u32 counter_inserts;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct histogram);
} histograms SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct series_key);
	__type(value, struct series);
} series_index SEC(".maps");

/* Free cells. The agent fills them at the start and again as workloads go. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1);
	__uint(key_size, 0);
	__uint(value_size, sizeof(__u16));
} free_histograms SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 1);
	__uint(key_size, 0);
	__uint(value_size, sizeof(__u16));
} free_counters SEC(".maps");

/* The table in an array's slot, if it has been made: see `Table` of the loader. */
static __always_inline void *table_in(void *slots)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(slots, &zero);
}

static __always_inline void counter_add(__u32 cell, __u64 n)
{
	__u64 *counter = bpf_map_lookup_elem(&counters, &cell);

	if (counter)
		__sync_fetch_and_add(counter, n);
}

static __always_inline void histogram_count(__u32 cell, __u32 bucket)
{
	struct histogram *histogram = bpf_map_lookup_elem(&histograms, &cell);

	if (histogram && bucket < HISTOGRAM_BUCKETS)
		__sync_fetch_and_add(&histogram->buckets[bucket], 1);
}

static __always_inline void histogram_sum(__u32 cell, __u64 n)
{
	struct histogram *histogram = bpf_map_lookup_elem(&histograms, &cell);

	if (histogram)
		__sync_fetch_and_add(&histogram->sum, n);
}

static __always_inline void histogram_add_to(__u32 cell, __u32 bucket, __u64 ns)
{
	struct histogram *histogram = bpf_map_lookup_elem(&histograms, &cell);

	if (!histogram || bucket >= HISTOGRAM_BUCKETS)
		return;
	__sync_fetch_and_add(&histogram->buckets[bucket], 1);
	__sync_fetch_and_add(&histogram->sum, ns);
}

static __always_inline void histogram_add(__u32 cell, __u64 ns)
{
	histogram_add_to(cell, histogram_bucket_of(ns), ns);
}

/* The series that the agent knows of, by hash. A look-up here is inlined, where one in the
 * index is a call and a walk: 15 against 60 ns, and more where the caches are cold. Only
 * the agent writes. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct series_slot);
} series_slots SEC(".maps");

/* One less than their number, a power of two; set by the loader. */
const volatile __u32 series_slots_mask;

/* Gives a series its cells. Two CPUs can be here with the same key: BPF_NOEXIST
 * lets one win, and the other gives its cells back. NULL when no cell is free or
 * the index is full. */
static __always_inline struct series *series_insert(const struct series_key *key, __u32 cells,
						    __u64 serial)
{
	struct series fresh = {
		.cells = {
			.histogram = { CELL_NONE, CELL_NONE },
			.counter = CELL_NONE,
		},
		.serial = serial,
	};
	__u16 *histogram = fresh.cells.histogram, *counter = &fresh.cells.counter;
	bool filled = false;

	if (cells == 0) {
		filled = !bpf_map_pop_elem(&free_counters, counter);
		if (!filled)
			*counter = CELL_NONE;
	} else {
		filled = !bpf_map_pop_elem(&free_histograms, &histogram[0]);
		if (!filled)
			histogram[0] = CELL_NONE;
		if (filled && cells == 2) {
			filled = !bpf_map_pop_elem(&free_histograms, &histogram[1]);
			if (!filled)
				histogram[1] = CELL_NONE;
		}
	}

	if (filled && !bpf_map_update_elem(&series_index, key, &fresh, BPF_NOEXIST)) {
		counter_add(counter_inserts, 1);
		return bpf_map_lookup_elem(&series_index, key);
	}
	if (*counter != CELL_NONE)
		bpf_map_push_elem(&free_counters, counter, BPF_ANY);
	if (histogram[0] != CELL_NONE)
		bpf_map_push_elem(&free_histograms, &histogram[0], BPF_ANY);
	if (histogram[1] != CELL_NONE)
		bpf_map_push_elem(&free_histograms, &histogram[1], BPF_ANY);
	return bpf_map_lookup_elem(&series_index, key);
}

/* The way of a series that stands in no slot. Kept out of line: it is rare and long.
 *
 * An element that the agent removes in the nanoseconds between look-up and copy could be
 * another key's by the copy. The agent removes only what has lost its cgroup. */
static __noinline bool series_of_index(const struct series_key *key, __u32 cells, __u64 serial,
				       struct series_cells *found)
{
	struct series *series = bpf_map_lookup_elem(&series_index, key);

	if (!series)
		series = series_insert(key, cells, serial);
	if (!series)
		return false;
	if (series->serial != serial) {
		/* The controller was off and on again: let the agent look anew. */
		series->serial = serial;
		counter_add(counter_inserts, 1);
	}
	*found = series->cells;
	return true;
}

/* Names the workload of a key by its cgroup. */
static __always_inline void series_key_cgroup(struct series_key *key, struct cgroup *cgroup,
					      bool direct)
{
	struct kernfs_node *node = KERNEL_READ(direct, cgroup, kn);
	struct cgroup_root *root = KERNEL_READ(direct, cgroup, root);

	key->cgroup_id = KERNEL_READ(direct, node, id);
	key->hierarchy = KERNEL_READ(direct, root, hierarchy_id);
}

/* The second word of a key without hierarchy, put together in a register: written to memory part by
 * part, it would be waited for when it is read as a whole. */
#define SERIES_KEY_WORD(device, kind, detail)                                                      \
	((__u64)(device) | (__u64)(kind) << 48 | (__u64)(detail) << 56)

/* The series of a cgroup and a SERIES_KEY_WORD, made at its first event; false where there is no
 * room for it. `cells`: how many histograms it has. */
static __always_inline bool series_of(__u64 word, struct cgroup_subsys_state *css, __u32 cells,
				      struct series_cells *found, bool direct)
{
	__u64 serial = KERNEL_READ(direct, css, serial_nr);
	__u64 hash = series_hash(serial, word);
	__u32 first = series_first_slot(hash);
	union {
		struct series_key key;
		__u64 words[2];
	} key;

	/* Not unrolled: mostly the first slot is it, and cold code costs too. */
#pragma clang loop unroll(disable)
	for (int i = 0; i < SERIES_SLOT_WINDOW; i++) {
		__u32 number = (first + i) & series_slots_mask;
		volatile __u64 *slot = bpf_map_lookup_elem(&series_slots, &number);

		if (slot && slot[0] == serial && slot[1] == word) {
			*(__u64 *)found = slot[2];
			if (found->tag == series_tag(hash))
				return true;
		}
	}
	key.words[1] = word;
	series_key_cgroup(&key.key, KERNEL_READ(direct, css, cgroup), direct);
	return series_of_index(&key.key, cells, serial, found);
}

/* Adds to a series that only counts; the cell `other` and the counter `overflow`
 * take what finds no room. Out of line: such series count what is rare. */
static __noinline void series_count(const struct series_key *key, __u64 n, __u32 other,
				    __u32 overflow)
{
	struct series_cells cells;

	if (series_of_index(key, 0, 0, &cells)) {
		counter_add(cells.counter, n);
	} else {
		counter_add(overflow, 1);
		counter_add(other, n);
	}
}

/* Where a classic tracepoint's record has a field: the kernel's own word, from the event's
 * `format` in tracefs. Set by the loader. */
struct record_field {
	__u32 offset;
	__u32 bytes;
};

/* A number in a record, without its sign, or the first eight letters of a text. By helper,
 * since the verifier takes no load through a context pointer that was moved. */
static __always_inline __u64 record_read(void *record, __u32 offset, __u32 bytes)
{
	__u64 value = 0;

	bpf_probe_read_kernel(&value, bytes < sizeof(value) ? bytes : sizeof(value),
			      record + offset);
	return value;
}

#define RECORD_READ(record, field) record_read(record, field.offset, field.bytes)
