/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The kernel fields that the probes read, and no more. The loader relocates each
 * access to the layout of the running kernel (CO-RE), so only names and types
 * matter here, not offsets. A name that not every kernel has is tested with
 * bpf_core_field_exists() where it is read, never by the kernel's version:
 * distributions backport.
 */
#pragma once

#include <linux/types.h>
#include <stdbool.h>

typedef __u8 blk_status_t;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

/* include/linux/kernfs.h; `id` is the cgroup id and cgroupfs' inode number. */
struct kernfs_node {
	const char *name;
	__u64 id;
};

/* include/linux/cgroup-defs.h */
struct cgroup_root {
	int hierarchy_id;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
	struct cgroup_subsys_state *parent;
	__u64 serial_nr;
};

struct cgroup {
	struct cgroup_subsys_state self;
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

/* The index of a controller among a task's states depends on the kernel's configuration. */
enum cgroup_subsys_id {
	io_cgrp_id,
};

struct css_set {
	struct cgroup_subsys_state *subsys[1];
	struct cgroup *dfl_cgrp;
};

/* include/linux/sched.h */
struct task_struct {
	int tgid;
	struct css_set *cgroups;
};

struct sock_cgroup_data {
	struct cgroup *cgroup;
};

/* Before commit 8520e224f547 ("bpf, cgroups: Fix cgroup v2 fallback on v1/v2 mixed
 * mode", 5.15): a tagged word instead of the pointer. */
struct sock_cgroup_data___tagged {
	__u64 val;
};

/* include/uapi/linux/in6.h */
struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
};

/* include/net/sock.h */
struct sock_common {
	__u32 skc_daddr;
	__u32 skc_rcv_saddr;
	__u16 skc_dport;
	unsigned short skc_family;
	unsigned char skc_state;
	unsigned long skc_flags;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
};

struct socket;

struct sock {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	int sk_err;
	__u8 sk_shutdown;
	struct socket *sk_socket;
	struct sock_cgroup_data sk_cgrp_data;
};

/* include/net/inet_sock.h; `skc_num` is 0 by the time that a socket is closed, this is not. */
struct inet_sock {
	__u16 inet_sport;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
};

/* include/linux/tcp.h; `total_rto_time` (ms) came with commit 3868ab0f1925
 * ("tcp: new TCP_INFO stats for RTO events", 6.7). */
struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u32 srtt_us;
	__u32 total_retrans;
	__u32 segs_out;
	__u64 bytes_received;
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u32 total_rto_time;
};

/* include/linux/blkdev.h, block/blk-cgroup.h, include/linux/blk_types.h */
struct gendisk {
	int major;
	int first_minor;
};

struct request_queue {
	struct gendisk *disk;
};

struct blkcg {
	struct cgroup_subsys_state css;
};

struct blkcg_gq {
	struct blkcg *blkcg;
};

struct bvec_iter {
	unsigned int bi_idx;
	unsigned int bi_bvec_done;
};

/* Its name on 7.3. */
struct bvec_iter___offset {
	unsigned int bi_offset;
};

struct bio {
	struct bvec_iter bi_iter;
	struct blkcg_gq *bi_blkg;
};

struct block_device;

struct request {
	struct request_queue *q;
	unsigned int cmd_flags;
	unsigned int __data_len;
	__u64 __sector;
	struct bio *bio;
	struct block_device *part;
	__u64 start_time_ns;
	__u64 io_start_time_ns;
};

/* Before commit f3fa33acca9f ("block: remove the ->rq_disk field in struct
 * request", 5.17) the disk hung on the request. */
struct request___rq_disk {
	struct gendisk *rq_disk;
};

#pragma clang attribute pop

/* A field behind a kernel pointer: read straight where the verifier knows the pointer's type
 * (`direct`, a constant: tp_btf), else by a helper, which costs some ten times as much. The
 * pointer is taken first, or each access on the way to it would be relocated as well. */
#define KERNEL_READ(direct, pointer, field)                                                        \
	({                                                                                         \
		typeof(pointer) __pointer = (pointer);                                             \
		typeof((pointer)->field) __value;                                                  \
		if (direct)                                                                        \
			__value = __pointer->field;                                                \
		else                                                                               \
			bpf_core_read(&__value, sizeof(__value), &__pointer->field);               \
		__value;                                                                           \
	})
