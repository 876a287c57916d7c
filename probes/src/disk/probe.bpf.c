// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Disk I/O, from the completion of block requests. The request carries the times of
 * its creation and of its issue to the device, so one program does it all and
 * no table of requests in flight is kept.
 *
 * The cgroup is the first bio's: the one that the block layer itself charges.
 */
#include "aggregate.bpf.h"
#include "disk/wire.h"

/* The first of the probe's own cells; set by the loader. */
const volatile __u32 disk_histograms;
const volatile __u32 disk_counters;

/* include/linux/blk_types.h: enum req_op. */
#define REQ_OP_MASK 0xff
#define REQ_OP_READ 0
#define REQ_OP_WRITE 1
#define REQ_OP_FLUSH 2
#define REQ_OP_DISCARD 3
/* The first that passes a command of the driver's own: 32 and 33 are SCSI's on older kernels. */
#define REQ_OP_PASSTHROUGH 32

/* Issue times by request, for devices whose requests carry none (`iostats` off).
 * The slot stays empty, and costs nothing, until the agent sees such a device. */
struct disk_issued_table {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct disk_issued_table);
} disk_issued SEC(".maps");

static __always_inline __u32 disk_operation(__u32 op)
{
	switch (op) {
	case REQ_OP_READ:
		return DISK_OPERATION_READ;
	case REQ_OP_WRITE:
		return DISK_OPERATION_WRITE;
	case REQ_OP_DISCARD:
		return DISK_OPERATION_DISCARD;
	default:
		return DISK_OPERATION_OTHER;
	}
}

static __always_inline __u32 disk_device(struct request *rq)
{
	struct request___rq_disk *old = (void *)rq;
	struct gendisk *disk;

	if (bpf_core_field_exists(old->rq_disk))
		disk = old->rq_disk;
	else
		disk = rq->q->disk;
	return disk->major << 20 | disk->first_minor;
}

/* Takes the issue hook's time of a request away; 0 where there is none. The hook is attached only
 * once the counter of untimed requests has moved: until then one load tells. */
static __always_inline __u64 disk_take_issued(struct request *rq)
{
	__u32 untimed_cell = disk_counters + DISK_COUNTER_UNTIMED;
	__u64 *untimed = bpf_map_lookup_elem(&counters, &untimed_cell);
	__u32 zero = 0;
	__u64 key = (__u64)rq;
	__u64 *found, issued;
	void *table;

	if (!untimed || !*untimed)
		return 0;
	table = bpf_map_lookup_elem(&disk_issued, &zero);
	if (!table)
		return 0;
	found = bpf_map_lookup_elem(table, &key);
	if (!found)
		return 0;
	issued = *found;
	bpf_map_delete_elem(table, &key);
	return issued;
}

/* Older kernels, 5.10 among them, trace blk_status_to_errno() of the status: a negative error
 * number, where later ones pass the status itself. */
static __always_inline int disk_status(int error)
{
	switch (error) {
	case -EOPNOTSUPP:
		return 1;
	case -ETIMEDOUT:
		return 2;
	case -ENOSPC:
		return 3;
	case -ENOLINK:
		return 4;
	case -EREMOTEIO:
		return 5;
	case -EBADE:
		return 6;
	case -ENODATA:
		return 7;
	case -EILSEQ:
		return 8;
	case -ENOMEM:
		return 9;
	case -EIO:
		return 10;
	case -EAGAIN:
		return 12;
	default:
		return error < 0 ? 31 : error;
	}
}

static __always_inline void disk_error(struct series_key *key, __u32 operation, int error)
{
	key->kind = DISK_KIND_ERROR;
	key->detail = DISK_ERROR(operation, disk_status(error));
	series_count(key, 1, disk_counters + DISK_COUNTER_OTHER_ERROR + operation,
		     disk_counters + DISK_COUNTER_OVERFLOW);
}

SEC("tp_btf/block_rq_complete")
int disk_complete(unsigned long long *ctx)
{
	struct request *rq = (void *)ctx[0];
	int error = (int)ctx[1];
	__u32 bytes = (__u32)ctx[2];
	__u32 op = rq->cmd_flags & REQ_OP_MASK;
	__u64 created = rq->start_time_ns, issued = rq->io_start_time_ns, hooked, now;
	__u32 operation, io_cell, device_cell, bucket;
	struct series_key key = {};
	struct bio *bio = rq->bio;
	struct cgroup_subsys_state *css;
	struct series_cells cells;

	/* Passthrough commands are the driver's own. The flush beneath an fsync has
	 * no bio and no owner; what asked for it comes as a write of 0 bytes. */
	if (!bio || op == REQ_OP_FLUSH || op >= REQ_OP_PASSTHROUGH)
		return 0;

	operation = disk_operation(op);
	if (op == REQ_OP_WRITE && !bytes) {
		/* A write with FUA or a flush before it completes twice, the second
		 * time with nothing left. It went to the device or moved data; the
		 * empty write of an fsync did neither. */
		if (issued || bio->bi_iter.bi_idx || bio->bi_iter.bi_bvec_done)
			return 0;
		operation = DISK_OPERATION_FLUSH;
	}

	css = &bio->bi_blkg->blkcg->css;
	key.device = disk_device(rq);
	/* Taken away in any case: the hook sees requests that need no time of it, too. */
	hooked = error || bytes >= rq->__data_len ? disk_take_issued(rq) : 0;
	if (error) {
		series_key_cgroup(&key, css->cgroup);
		disk_error(&key, operation, error);
		return 0;
	}

	key.kind = DISK_KIND_IO;
	key.detail = operation;
	if (series_of(&key, css, operation == DISK_OPERATION_FLUSH ? 1 : 2, &cells)) {
		io_cell = cells.histogram[0];
		device_cell = cells.histogram[1];
	} else {
		counter_add(disk_counters + DISK_COUNTER_OVERFLOW, 1);
		io_cell = disk_histograms + DISK_HISTOGRAM_OTHER_IO + operation;
		device_cell = disk_histograms + DISK_HISTOGRAM_OTHER_DEVICE + operation;
	}
	if (bytes)
		counter_add(io_cell, bytes);

	/* A request can complete in parts: all bytes count, the last part is timed. */
	if (bytes < rq->__data_len)
		return 0;

	/* Without accounting (`part` unset) start_time_ns is stale, not zero. */
	if (!rq->part)
		created = issued = 0;
	if (!issued)
		issued = hooked;
	if (!created)
		created = hooked;
	if (!created) {
		counter_add(disk_counters + DISK_COUNTER_UNTIMED, 1);
		return 0;
	}
	now = bpf_ktime_get_ns();
	bucket = histogram_bucket_of(now - created);
	histogram_add_to(io_cell, bucket, now - created);
	if (operation == DISK_OPERATION_FLUSH)
		return 0;
	if (!issued) {
		counter_add(disk_counters + DISK_COUNTER_UNTIMED, 1);
		return 0;
	}
	/* Often the very stamp of the creation: a plug keeps one time for all it does (commit
	 * da4c8c3d0975, "block: cache current nsec time in struct blk_plug", 6.9). */
	if (issued != created)
		bucket = histogram_bucket_of(now - issued);
	histogram_add_to(device_cell, bucket, now - issued);
	return 0;
}

SEC("tp_btf/block_rq_issue")
int disk_issue(unsigned long long *ctx)
{
	__u64 key = ctx[0], now = bpf_ktime_get_ns();
	__u32 zero = 0;
	void *table = bpf_map_lookup_elem(&disk_issued, &zero);

	if (table && bpf_map_update_elem(table, &key, &now, BPF_ANY))
		counter_add(disk_counters + DISK_COUNTER_UNTRACKED, 1);
	return 0;
}
