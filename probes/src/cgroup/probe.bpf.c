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

static __always_inline int cgroup_changed(unsigned long long *ctx, __u32 operation)
{
	struct cgroup *cgroup = (void *)ctx[0];
	struct cgroup *parent = (void *)cgroup->self.parent;
	struct cgroup_event event = {
		.id = cgroup->kn->id,
		.hierarchy = cgroup->root->hierarchy_id,
		.operation = operation,
	};
	long bytes = 0;

	/* Of the v1 hierarchies only one bears a label. */
	if (event.hierarchy && event.hierarchy != cgroup_io_hierarchy)
		return 0;
	if (operation != CGROUP_RMDIR) {
		/* `self` is the first member: a state without controller is its cgroup. */
		event.parent_id = parent ? BPF_CORE_READ(parent, kn, id) : 0;
		bytes = bpf_probe_read_kernel_str(event.name, sizeof(event.name), cgroup->kn->name);
		if (bytes < 0 || bytes > CGROUP_NAME_BYTES)
			bytes = 0;
	}
	if (bpf_ringbuf_output(&cgroup_events, &event, CGROUP_EVENT_HEAD_BYTES + bytes, 0))
		counter_add(cgroup_counters + CGROUP_COUNTER_LOST, 1);
	return 0;
}

SEC("tp_btf/cgroup_mkdir")
int cgroup_mkdir(unsigned long long *ctx)
{
	return cgroup_changed(ctx, CGROUP_MKDIR);
}

SEC("tp_btf/cgroup_rename")
int cgroup_rename(unsigned long long *ctx)
{
	return cgroup_changed(ctx, CGROUP_RENAME);
}

SEC("tp_btf/cgroup_rmdir")
int cgroup_rmdir(unsigned long long *ctx)
{
	return cgroup_changed(ctx, CGROUP_RMDIR);
}
