// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Whether the types that came from a file are those of the running kernel. Reads with its offsets
 * what the kernel also tells itself: offsets of another build give other numbers. */
#include "aggregate.bpf.h"
#include "btf/wire.h"

/* The first of the program's own counters; set by the loader. */
const volatile __u32 btf_counters;

SEC("raw_tracepoint/sys_enter")
int btf_check(void *ctx __attribute__((unused)))
{
	struct task_struct *task = (void *)bpf_get_current_task();
	int tgid = bpf_get_current_pid_tgid() >> 32;
	__u64 cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	bool right = BPF_CORE_READ(task, tgid) == tgid && cgroup_id == bpf_get_current_cgroup_id();

	counter_add(btf_counters + (right ? BTF_COUNTER_RIGHT : BTF_COUNTER_WRONG), 1);
	return 0;
}
