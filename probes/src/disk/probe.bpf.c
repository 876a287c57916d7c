// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Disk I/O, from the completion of block requests. The request carries the times of
 * its creation and of its issue to the device, so one program does it all and
 * no table of requests in flight is kept.
 *
 * The cgroup is the first bio's: the one that the block layer itself charges.
 */
#include "event.bpf.h"
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

static __always_inline __u32 disk_device(struct request *rq, bool direct)
{
	struct request___rq_disk *old = (void *)rq;
	struct request_queue *queue;
	struct gendisk *disk;

	if (bpf_core_field_exists(old->rq_disk)) {
		disk = KERNEL_READ(direct, old, rq_disk);
	} else {
		queue = KERNEL_READ(direct, rq, q);
		disk = KERNEL_READ(direct, queue, disk);
	}
	return KERNEL_READ(direct, disk, major) << 20 | KERNEL_READ(direct, disk, first_minor);
}

/* Takes the issue hook's time of a request away; 0 where there is none. The hook is attached only
 * once the counter of untimed requests has moved, which a stream does itself: until then one load
 * tells. */
static __always_inline __u64 disk_take_issued(struct request *rq)
{
	__u32 untimed_cell = disk_counters + DISK_COUNTER_UNTIMED;
	__u64 *untimed = bpf_map_lookup_elem(&counters, &untimed_cell);
	__u64 key = (__u64)rq;
	__u64 *found, issued;
	void *table;

	if (!untimed || !*untimed)
		return 0;
	table = table_in(&disk_issued);
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

/* The cells of an operation's series, or those of `other`. */
static __always_inline void disk_cells(const struct series_cells *cells, bool found,
				       __u32 operation, __u32 *io_cell, __u32 *device_cell)
{
	if (found) {
		*io_cell = cells->histogram[0];
		*device_cell = cells->histogram[1];
	} else {
		counter_add(disk_counters + DISK_COUNTER_OVERFLOW, 1);
		*io_cell = disk_histograms + DISK_HISTOGRAM_OTHER_IO + operation;
		*device_cell = disk_histograms + DISK_HISTOGRAM_OTHER_DEVICE + operation;
	}
}

/* How far a bio has come. */
static __always_inline __u32 disk_bio_done(struct bio *bio, bool direct)
{
	struct bvec_iter *iter = &bio->bi_iter;
	struct bvec_iter___offset *later = (void *)iter;
	__u32 index = KERNEL_READ(direct, iter, bi_idx);

	if (bpf_core_field_exists(iter->bi_bvec_done))
		return index | KERNEL_READ(direct, iter, bi_bvec_done);
	return index | KERNEL_READ(direct, later, bi_offset);
}

/* Sends a request that has completed or failed. */
static __always_inline void disk_send(struct request *rq, __u32 series, __u64 now, __u64 created,
				      __u64 issued, bool direct)
{
	struct bio *bio = KERNEL_READ(direct, rq, bio);
	struct blkcg_gq *group = KERNEL_READ(direct, bio, bi_blkg);
	struct blkcg *blkcg = KERNEL_READ(direct, group, blkcg);
	struct cgroup *cgroup = KERNEL_READ(direct, blkcg, css.cgroup);
	struct disk_slow_event slow = {
		.event = {
			.ended_ns = now,
			.duration_ns = created ? now - created : 0,
			.key = {
				.device = disk_device(rq, direct),
				.kind = series >> 8,
				.detail = series,
			},
		},
		.device_ns = issued ? now - issued : 0,
		.sector = KERNEL_READ(direct, rq, __sector),
		/* What is left, and completes now. */
		.bytes = KERNEL_READ(direct, rq, __data_len),
	};

	if (event_filter_device && slow.event.key.device != event_filter_device)
		return;
	if (event_filter_cgroup && !event_cgroup_is_asked_for(cgroup, direct))
		return;
	series_key_cgroup(&slow.event.key, cgroup, direct);
	event_name(&slow.event, disk_counters + DISK_COUNTER_SLOW_NS, (__u64)bio, direct);
	if (!event_process_is_asked_for(&slow.event))
		return;
	event_send(&slow.event, sizeof(slow), disk_counters + DISK_COUNTER_EVENTS_LOST);
}

/* Out of line and twice, for the reasons of tcp_send_direct(). */
static __noinline void disk_send_direct(struct request *rq, __u32 series, __u64 now, __u64 created,
					__u64 issued)
{
	disk_send(rq, series, now, created, issued, true);
}

static __noinline void disk_send_read(struct request *rq, __u32 series, __u64 now, __u64 created,
				      __u64 issued)
{
	disk_send(rq, series, now, created, issued, false);
}

/* Sends it if it is asked for. `created` is 0 where nobody knows. */
static __always_inline void disk_send_if_slow(struct request *rq, __u32 series, __u64 now,
					      __u64 created, __u64 issued, bool direct)
{
	if (!event_is_wanted(disk_counters + DISK_COUNTER_SLOW_NS, created ? now - created : 1))
		return;
	if (direct)
		disk_send_direct(rq, series, now, created, issued);
	else
		disk_send_read(rq, series, now, created, issued);
}

/* Of what an event is: a kind of series and its detail in one word. */
#define DISK_SERIES(kind, detail) ((kind) << 8 | (detail))

static __always_inline int disk_completed(unsigned long long *ctx, bool direct)
{
	struct request *rq = (void *)ctx[0];
	int error = (int)ctx[1];
	__u32 bytes = (__u32)ctx[2];
	__u32 op = KERNEL_READ(direct, rq, cmd_flags) & REQ_OP_MASK;
	__u64 created = KERNEL_READ(direct, rq, start_time_ns);
	__u64 issued = KERNEL_READ(direct, rq, io_start_time_ns);
	__u64 hooked, now;
	__u32 left = KERNEL_READ(direct, rq, __data_len);
	__u32 device, operation, io_cell, device_cell, bucket;
	struct bio *bio = KERNEL_READ(direct, rq, bio);
	struct blkcg_gq *group;
	struct blkcg *blkcg;
	struct series_cells cells;
	struct histogram *io;

	/* Passthrough commands are the driver's own. The flush beneath an fsync has
	 * no bio and no owner; what asked for it comes as a write of 0 bytes. */
	if (!bio || op == REQ_OP_FLUSH || op >= REQ_OP_PASSTHROUGH)
		return 0;

	operation = disk_operation(op);
	if (op == REQ_OP_WRITE && !bytes) {
		/* A write with FUA or a flush before it completes twice, the second
		 * time with nothing left. It went to the device or moved data; the
		 * empty write of an fsync did neither. */
		if (issued || disk_bio_done(bio, direct))
			return 0;
		operation = DISK_OPERATION_FLUSH;
	}

	group = KERNEL_READ(direct, bio, bi_blkg);
	blkcg = KERNEL_READ(direct, group, blkcg);
	device = disk_device(rq, direct);
	/* Taken away in any case: the hook sees requests that need no time of it, too. */
	hooked = error || bytes >= left ? disk_take_issued(rq) : 0;
	if (error) {
		struct series_key key = { .device = device };

		series_key_cgroup(&key, KERNEL_READ(direct, blkcg, css.cgroup), direct);
		disk_error(&key, operation, error);
		if (event_streams) {
			if (!KERNEL_READ(direct, rq, part))
				created = issued = hooked;
			else if (hooked)
				issued = hooked;
			disk_send_if_slow(rq, DISK_SERIES(key.kind, key.detail), bpf_ktime_get_ns(),
					  created, issued, direct);
		}
		return 0;
	}

	disk_cells(&cells,
		   series_of(SERIES_KEY_WORD(device, DISK_KIND_IO, operation), &blkcg->css,
			     operation == DISK_OPERATION_FLUSH ? 1 : 2, &cells, direct),
		   operation, &io_cell, &device_cell);
	io = bpf_map_lookup_elem(&histograms, &io_cell);
	if (!io)
		return 0;
	if (bytes)
		__sync_fetch_and_add(&io->sum, bytes);

	/* A request can complete in parts: all bytes count, the last part is timed. */
	if (bytes < left)
		return 0;

	/* Without accounting (`part` unset) start_time_ns is stale, not zero. */
	if (!KERNEL_READ(direct, rq, part))
		created = issued = 0;
	/* Since 6.9 the request's own is often that of its creation, see below. */
	if (hooked)
		issued = hooked;
	if (!created)
		created = hooked;
	if (!created) {
		counter_add(disk_counters + DISK_COUNTER_UNTIMED, 1);
		if (event_streams)
			disk_send_if_slow(rq, DISK_SERIES(DISK_KIND_IO, operation),
					  bpf_ktime_get_ns(), 0, 0, direct);
		return 0;
	}
	now = bpf_ktime_get_ns();
	bucket = histogram_bucket_of(now - created);
	if (bucket < HISTOGRAM_BUCKETS)
		__sync_fetch_and_add(&io->buckets[bucket], 1);
	if (operation == DISK_OPERATION_FLUSH) {
		__sync_fetch_and_add(&io->sum, now - created);
	} else {
		if (!issued) {
			counter_add(disk_counters + DISK_COUNTER_UNTIMED, 1);
			issued = now;
		} else {
			if (issued != created)
				bucket = histogram_bucket_of(now - issued);
			histogram_add_to(device_cell, bucket, now - issued);
		}
		/* Often the very stamp of the creation: a plug keeps one time for all it does
		 * (commit da4c8c3d0975, "block: cache current nsec time in struct blk_plug", 6.9).
		 */
		if (issued != created)
			counter_add(io_cell, issued - created);
	}
	/* Once it is counted: whoever reads rings first finds no event that no bucket has. */
	disk_send_if_slow(rq, DISK_SERIES(DISK_KIND_IO, operation), now, created, issued, direct);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int disk_complete(unsigned long long *ctx)
{
	return disk_completed(ctx, true);
}

SEC("raw_tracepoint/block_rq_complete")
int disk_complete_raw(unsigned long long *ctx)
{
	return disk_completed(ctx, false);
}

static __always_inline int disk_issued_request(__u64 request)
{
	__u64 now = bpf_ktime_get_ns();
	void *table = table_in(&disk_issued);

	if (table && bpf_map_update_elem(table, &request, &now, BPF_ANY))
		counter_add(disk_counters + DISK_COUNTER_UNTRACKED, 1);
	return 0;
}

SEC("tp_btf/block_rq_issue")
int disk_issue(unsigned long long *ctx)
{
	return disk_issued_request(ctx[0]);
}

/* Before commit a54895fa057c ("block: remove the request_queue to argument request based
 * tracepoints", 5.11) the queue came first. The verifier of later kernels refuses the second
 * argument, so this one is tried before the other. */
SEC("tp_btf/block_rq_issue")
int disk_issue_queue(unsigned long long *ctx)
{
	return disk_issued_request(ctx[1]);
}

/* The same for raw tracepoints: one with a single argument takes no program that reads a second
 * (__bpf_probe_register() in kernel/trace/bpf_trace.c). */
SEC("raw_tracepoint/block_rq_issue")
int disk_issue_raw(unsigned long long *ctx)
{
	return disk_issued_request(ctx[0]);
}

SEC("raw_tracepoint/block_rq_issue")
int disk_issue_queue_raw(unsigned long long *ctx)
{
	return disk_issued_request(ctx[1]);
}

/* A request is made of a bio, in the task that asks for the I/O: it may be a kernel thread that
 * issues it. Attached only while events are asked for. */
static __always_inline int disk_began(__u64 bio, bool direct)
{
	event_begin(disk_counters + DISK_COUNTER_SLOW_NS, bio, direct);
	return 0;
}

SEC("tp_btf/block_getrq")
int disk_begin(unsigned long long *ctx)
{
	return disk_began(ctx[0], true);
}

/* Before commit e8a676d61c07 ("block: simplify and extend the block_bio_merge tracepoint
 * class", 5.11) the queue came first; tried before the other, as for the issue. */
SEC("tp_btf/block_getrq")
int disk_begin_queue(unsigned long long *ctx)
{
	return disk_began(ctx[1], true);
}

SEC("raw_tracepoint/block_getrq")
int disk_begin_raw(unsigned long long *ctx)
{
	return disk_began(ctx[0], false);
}

SEC("raw_tracepoint/block_getrq")
int disk_begin_queue_raw(unsigned long long *ctx)
{
	return disk_began(ctx[1], false);
}

/* Where the tracepoints' records have their fields; read from tracefs by the loader. */
const volatile struct record_field disk_make_dev;
const volatile struct record_field disk_make_sector;
const volatile struct record_field disk_make_rwbs;
const volatile struct record_field disk_issue_dev;
const volatile struct record_field disk_issue_sector;
const volatile struct record_field disk_issue_nr_sector;
const volatile struct record_field disk_issue_rwbs;
const volatile struct record_field disk_complete_dev;
const volatile struct record_field disk_complete_sector;
const volatile struct record_field disk_complete_nr_sector;
const volatile struct record_field disk_complete_error;
const volatile struct record_field disk_complete_rwbs;

/* A request as the records name it. */
struct disk_place {
	__u64 sector;
	__u64 device;
};

struct disk_in_flight {
	/* 0 while it waits. */
	__u64 issued_ns;
	/* Who made it. */
	__u64 cgroup_id;
	/* What is still to complete. */
	__u64 sectors;
};

/* LRU, for a request that is merged into another never completes. What loses its place to that
 * is counted as untimed when it completes. */
struct disk_in_flight_table {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	/* By size: clang leaves a type that only stands here undefined. */
	__uint(key_size, sizeof(struct disk_place));
	__uint(value_size, sizeof(struct disk_in_flight));
};

/* The slot stays empty where these programs are not attached. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct disk_in_flight_table);
} disk_in_flight SEC(".maps");

#define SECTOR_SHIFT 9

/* The operation by the letters of blk_fill_rwbs() (block/blk-core.c or
 * kernel/trace/blktrace.c); none for the flush itself and for what the driver asks for. */
static __always_inline __u32 disk_record_operation(__u64 rwbs)
{
	/* First stands F where a flush goes before. */
	if ((rwbs & 0xff) == 'F')
		rwbs >>= 8;
	switch (rwbs & 0xff) {
	case 'R':
		return DISK_OPERATION_READ;
	case 'W':
		/* WZ, where a kernel writes it so, is a write of zeroes; elsewhere that is N. */
		return (rwbs >> 8 & 0xff) == 'Z' ? DISK_OPERATIONS : DISK_OPERATION_WRITE;
	case 'D':
		/* DE is a secure erase. */
		return (rwbs >> 8 & 0xff) == 'E' ? DISK_OPERATION_OTHER : DISK_OPERATION_DISCARD;
	default:
		return DISK_OPERATIONS;
	}
}

/* A request is made, in the task that asks for the I/O: it may be a kernel thread that issues it.
 */
SEC("tracepoint/block/block_getrq")
int disk_make_record(void *ctx)
{
	struct disk_place place = {
		.sector = RECORD_READ(ctx, disk_make_sector),
		.device = RECORD_READ(ctx, disk_make_dev),
	};
	struct disk_in_flight request = { .cgroup_id = bpf_get_current_cgroup_id() };
	void *table = table_in(&disk_in_flight);
	struct disk_in_flight *found;

	if (!table || disk_record_operation(RECORD_READ(ctx, disk_make_rwbs)) == DISK_OPERATIONS)
		return 0;
	/* Another of the same place is at the device. */
	found = bpf_map_lookup_elem(table, &place);
	if (found && found->issued_ns)
		return 0;
	bpf_map_update_elem(table, &place, &request, BPF_ANY);
	return 0;
}

SEC("tracepoint/block/block_rq_issue")
int disk_issue_record(void *ctx)
{
	struct disk_place place = {
		.sector = RECORD_READ(ctx, disk_issue_sector),
		.device = RECORD_READ(ctx, disk_issue_dev),
	};
	struct disk_in_flight request = {
		.issued_ns = bpf_ktime_get_ns(),
		.sectors = RECORD_READ(ctx, disk_issue_nr_sector),
	};
	void *table = table_in(&disk_in_flight);
	struct disk_in_flight *made;

	if (!table || !request.sectors ||
	    disk_record_operation(RECORD_READ(ctx, disk_issue_rwbs)) == DISK_OPERATIONS)
		return 0;
	/* Unseen where another bio was put before its first. */
	made = bpf_map_lookup_elem(table, &place);
	request.cgroup_id = made ? made->cgroup_id : bpf_get_current_cgroup_id();
	if (bpf_map_update_elem(table, &place, &request, BPF_ANY))
		counter_add(disk_counters + DISK_COUNTER_UNTRACKED, 1);
	return 0;
}

/* Without types there are but the records: matched by device and sector, timed from the issue.
 * A flush has neither sectors nor an issue of its own. */
SEC("tracepoint/block/block_rq_complete")
int disk_complete_record(void *ctx)
{
	struct disk_place place = {
		.sector = RECORD_READ(ctx, disk_complete_sector),
		.device = RECORD_READ(ctx, disk_complete_dev),
	};
	__u64 sectors = RECORD_READ(ctx, disk_complete_nr_sector);
	__u32 operation = disk_record_operation(RECORD_READ(ctx, disk_complete_rwbs));
	int error = RECORD_READ(ctx, disk_complete_error);
	struct series_key key = { .device = place.device };
	struct disk_in_flight *found, request = {};
	void *table = table_in(&disk_in_flight);
	__u32 io_cell, device_cell, bucket;
	struct series_cells cells;
	__u64 elapsed;
	bool known;

	if (!table || !sectors || operation == DISK_OPERATIONS)
		return 0;
	found = bpf_map_lookup_elem(table, &place);
	if (found) {
		request = *found;
		bpf_map_delete_elem(table, &place);
	}
	key.cgroup_id = request.cgroup_id;
	known = request.issued_ns != 0;
	if (error) {
		if (known)
			disk_error(&key, operation, error);
		else
			counter_add(disk_counters + DISK_COUNTER_OTHER_ERROR + operation, 1);
		return 0;
	}
	if (known) {
		key.kind = DISK_KIND_IO;
		key.detail = operation;
		disk_cells(&cells, series_of_index(&key, 2, 0, &cells), operation, &io_cell,
			   &device_cell);
	} else {
		/* Issued before the agent, or beside another of the same place. */
		counter_add(disk_counters + DISK_COUNTER_UNTIMED, 1);
		io_cell = disk_histograms + DISK_HISTOGRAM_OTHER_IO + operation;
	}
	histogram_sum(io_cell, sectors << SECTOR_SHIFT);
	if (!known)
		return 0;
	if (sectors < request.sectors) {
		/* A part: the rest completes from where this one ended. */
		place.sector += sectors;
		request.sectors -= sectors;
		if (bpf_map_update_elem(table, &place, &request, BPF_ANY))
			counter_add(disk_counters + DISK_COUNTER_UNTRACKED, 1);
		return 0;
	}
	elapsed = bpf_ktime_get_ns() - request.issued_ns;
	bucket = histogram_bucket_of(elapsed);
	histogram_count(io_cell, bucket);
	histogram_add_to(device_cell, bucket, elapsed);
	return 0;
}
