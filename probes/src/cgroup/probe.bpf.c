// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Cgroups as they come and go, so that one that lives for milliseconds still has a
 * name. Rare, so each goes through a ring and wakes the reader. */
#include "aggregate.bpf.h"
#include "cgroup/wire.h"

/* The first of the probe's own counters and the hierarchy that owns disk I/O (0 where
 * that is cgroup v2); set by the loader. */
const volatile __u32 cgroup_counters;
const volatile __u32 cgroup_io_hierarchy;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} cgroup_events SEC(".maps");

/* An error in place of the length is a large number, and sends no name. */
static __always_inline void cgroup_send(const struct cgroup_event *event, __u64 name_bytes)
{
	/* Held in one register from the test to the sum: the verifiers of 5.10 and 6.1 forget
	 * the bounds of a copy made earlier. */
	asm("" : "+r"(name_bytes));
	if (name_bytes > CGROUP_NAME_BYTES)
		name_bytes = 0;
	if (bpf_ringbuf_output(&cgroup_events, (void *)event, CGROUP_EVENT_HEAD_BYTES + name_bytes,
			       0))
		counter_add(cgroup_counters + CGROUP_COUNTER_LOST, 1);
}

/* Of the v1 hierarchies only one bears a label. */
static __always_inline bool cgroup_bears_label(__u32 hierarchy)
{
	return !hierarchy || hierarchy == cgroup_io_hierarchy;
}

static __always_inline int cgroup_changed(unsigned long long *ctx, __u32 operation, bool direct)
{
	struct cgroup *cgroup = (void *)ctx[0];
	struct cgroup *parent = (void *)KERNEL_READ(direct, cgroup, self.parent);
	struct kernfs_node *node = KERNEL_READ(direct, cgroup, kn);
	struct cgroup_root *root = KERNEL_READ(direct, cgroup, root);
	struct cgroup_event event = {
		.id = KERNEL_READ(direct, node, id),
		.hierarchy = KERNEL_READ(direct, root, hierarchy_id),
		.operation = operation,
	};
	long bytes = 0;

	if (!cgroup_bears_label(event.hierarchy))
		return 0;
	if (operation != CGROUP_RMDIR) {
		/* `self` is the first member: a state without controller is its cgroup. */
		event.parent_id = parent ? BPF_CORE_READ(parent, kn, id) : 0;
		bytes = bpf_probe_read_kernel_str(event.name, sizeof(event.name),
						  KERNEL_READ(direct, node, name));
	}
	cgroup_send(&event, bytes);
	return 0;
}

SEC("tp_btf/cgroup_mkdir")
int cgroup_mkdir(unsigned long long *ctx)
{
	return cgroup_changed(ctx, CGROUP_MKDIR, true);
}

SEC("tp_btf/cgroup_rename")
int cgroup_rename(unsigned long long *ctx)
{
	return cgroup_changed(ctx, CGROUP_RENAME, true);
}

SEC("tp_btf/cgroup_rmdir")
int cgroup_rmdir(unsigned long long *ctx)
{
	return cgroup_changed(ctx, CGROUP_RMDIR, true);
}

SEC("raw_tracepoint/cgroup_mkdir")
int cgroup_mkdir_raw(unsigned long long *ctx)
{
	return cgroup_changed(ctx, CGROUP_MKDIR, false);
}

SEC("raw_tracepoint/cgroup_rename")
int cgroup_rename_raw(unsigned long long *ctx)
{
	return cgroup_changed(ctx, CGROUP_RENAME, false);
}

SEC("raw_tracepoint/cgroup_rmdir")
int cgroup_rmdir_raw(unsigned long long *ctx)
{
	return cgroup_changed(ctx, CGROUP_RMDIR, false);
}

/* Where the records of the three tracepoints, which are of one class, have their fields; read
 * from tracefs by the loader. */
const volatile struct record_field cgroup_record_root;
const volatile struct record_field cgroup_record_id;
const volatile struct record_field cgroup_record_path;

/* The record has the whole path and no parent. */
static __always_inline int cgroup_record(void *ctx, __u32 operation)
{
	struct cgroup_event event = {
		.id = RECORD_READ(ctx, cgroup_record_id),
		.hierarchy = RECORD_READ(ctx, cgroup_record_root),
		.operation = operation,
	};
	long bytes = 0;
	__u32 path;

	if (!cgroup_bears_label(event.hierarchy))
		return 0;
	if (operation != CGROUP_RMDIR) {
		/* __data_loc: the offset in the lower half, the length in the upper. */
		path = RECORD_READ(ctx, cgroup_record_path);
		if (path >> 16 > CGROUP_NAME_BYTES) {
			/* Too long for a record: the agent walks the tree. */
			counter_add(cgroup_counters + CGROUP_COUNTER_LOST, 1);
			return 0;
		}
		bytes = bpf_probe_read_kernel_str(event.name, sizeof(event.name),
						  ctx + (path & 0xffff));
	}
	cgroup_send(&event, bytes);
	return 0;
}

SEC("tracepoint/cgroup/cgroup_mkdir")
int cgroup_mkdir_record(void *ctx)
{
	return cgroup_record(ctx, CGROUP_MKDIR);
}

SEC("tracepoint/cgroup/cgroup_rename")
int cgroup_rename_record(void *ctx)
{
	return cgroup_record(ctx, CGROUP_RENAME);
}

SEC("tracepoint/cgroup/cgroup_rmdir")
int cgroup_rmdir_record(void *ctx)
{
	return cgroup_record(ctx, CGROUP_RMDIR);
}
