// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Programs that do nothing, on the probes' hooks: what any program costs there. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

SEC("tp_btf/block_rq_complete")
int empty_disk(void *ctx)
{
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int empty_tcp(void *ctx)
{
	return 0;
}

/* The lesser rungs of each probe's ladder. */
SEC("kprobe/tcp_set_state")
int empty_tcp_probe(void *ctx)
{
	return 0;
}

SEC("tracepoint/sock/inet_sock_set_state")
int empty_tcp_class(void *ctx)
{
	return 0;
}

SEC("raw_tracepoint/block_rq_complete")
int empty_disk_raw(void *ctx)
{
	return 0;
}

SEC("tracepoint/block/block_getrq")
int empty_disk_make(void *ctx)
{
	return 0;
}

SEC("tracepoint/block/block_rq_issue")
int empty_disk_send(void *ctx)
{
	return 0;
}

SEC("tracepoint/block/block_rq_complete")
int empty_disk_done(void *ctx)
{
	return 0;
}
