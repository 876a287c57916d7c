/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the gpu probe's programs and their reader share. */
#pragma once

#include "event.h"
#include "histogram.h"
#include "series.h"

#define GPU_PROBE 3

/* Processes that have state at the same time; number 0 takes the counts of all others. */
#define GPU_PROCESSES 64
/* Devices of a process, by their CUDA ordinal. */
#define GPU_DEVICES 8
/* Streams of a process; the last one stands for all that found no place. */
#define GPU_STREAMS 32
/* Kinds of errors of a process; the last one takes those that found no place. */
#define GPU_ERRORS 16
/* Pairs of streams of a process of which one waits for the other. */
#define GPU_EDGES 8

/* Gaps count as starved up to this, the rest as idle. */
#define GPU_STARVED_MAX_NS 1000000000ULL
/* A synchronising call that took as long has waited: with nothing to wait for they take 1 to
 * 10 us. */
#define GPU_WAITED_NS 20000
/* A call of one thread is certain to have enqueued its work this long after its entry, for a
 * call of another thread that proves completion. */
#define GPU_ENQUEUED_NS 20000

/* What is enqueued, as far as it is counted; GPU_APIS stands for all else. */
enum gpu_api {
	GPU_API_KERNEL,
	GPU_API_GRAPH,
	GPU_APIS,
};

/* Calls that are seen to return. */
enum gpu_call {
	GPU_CALL_DEVICE_SYNCHRONIZE,
	GPU_CALL_STREAM_SYNCHRONIZE,
	GPU_CALL_EVENT_SYNCHRONIZE,
	GPU_CALL_MEMCPY,
	/* Up to here they wait. */
	GPU_WAITS,
	GPU_CALL_STREAM_QUERY = GPU_WAITS,
	GPU_CALL_EVENT_QUERY,
	/* Up to here they prove completion. */
	GPU_SYNCS,
	GPU_CALL_MALLOC = GPU_SYNCS,
	GPU_CALL_FREE,
	GPU_CALL_SET_DEVICE,
	GPU_CALL_STREAM_CAPTURE,
	GPU_CALLS,
};

/* Directions of copies: enum cudaMemcpyKind. */
enum gpu_copy {
	GPU_COPY_HOST_TO_HOST,
	GPU_COPY_HOST_TO_DEVICE,
	GPU_COPY_DEVICE_TO_HOST,
	GPU_COPY_DEVICE_TO_DEVICE,
	GPU_COPY_DEFAULT,
	GPU_COPIES,
};

/* What gpu_order() sees. */
enum gpu_order {
	GPU_ORDER_RECORD,
	GPU_ORDER_WAIT,
	GPU_ORDER_EVENT_DESTROY,
	GPU_ORDER_STREAM_DESTROY,
	GPU_ORDER_CONTEXT,
};

/* The cookie of an attachment, below 2^31: what the function does, and which of its arguments is
 * which, counted from 1, 0 for none. */
#define GPU_COOKIE_WHAT(cookie) ((cookie)&15)
#define GPU_COOKIE_STREAM(cookie) ((cookie) >> 4 & 15)
#define GPU_COOKIE_SIZE(cookie) ((cookie) >> 8 & 15)
/* The argument that tells the direction of a copy. */
#define GPU_COOKIE_KIND(cookie) ((cookie) >> 12 & 15)
/* The direction where no argument tells it; of a capture, whether it ends. */
#define GPU_COOKIE_COPY(cookie) ((cookie) >> 16 & 7)
/* Stream 0 is the thread's own. */
#define GPU_COOKIE_PER_THREAD (1U << 20)
/* A function of the driver, which the runtime calls as well. */
#define GPU_COOKIE_DRIVER (1U << 21)
/* The size is a product of two arguments that follow each other. */
#define GPU_COOKIE_AREA (1U << 22)
/* So that no cookie is 0. */
#define GPU_COOKIE_VALID (1U << 23)
/* In place of an argument's number: in the structure that the first one points to. */
#define GPU_STREAM_OF_CONFIG 15

enum gpu_state {
	GPU_STATE_FREE,
	GPU_STATE_LIVE,
	/* The process is gone; the agent reads its last values and frees it. */
	GPU_STATE_EXITED,
	/* Number 0. */
	GPU_STATE_OTHER,
};

struct gpu_error {
	/* enum gpu_call, and the number that the call returned. */
	__u32 call;
	__u32 code;
	__u64 count;
};

struct gpu_device {
	/* Gaps that an enqueue ended. */
	struct histogram gaps;
	__u64 starved_ns;
	__u64 idle_ns;
	/* When the running gap began (CLOCK_MONOTONIC); 0 while there is none. */
	__u64 gap_start_ns;
};

/* "Once `waiter` is drained up to `wait_ns`, `source` is drained up to `record_ns`": what
 * cudaStreamWaitEvent makes of an event. */
struct gpu_edge {
	/* 0 for none. */
	__u64 wait_ns;
	__u64 record_ns;
	__u16 source;
	__u16 waiter;
	/* The thread that made the waiter wait. */
	__u32 tid;
};

/* Pending while last_ns > drained_ns. */
struct gpu_stream {
	/* Entry of the last call that enqueued something. */
	__u64 last_ns;
	/* All that was enqueued up to then is known to be complete. */
	__u64 drained_ns;
	/* The last enqueue of another thread than that of the last one; the first of those that
	 * lie less than GPU_ENQUEUED_NS apart. */
	__u64 other_ns;
	/* Thread of the last enqueue. */
	__u32 last_tid;
	__u16 device;
	/* The number of the stream whose capture it takes part in, and one; 0 while it takes
	 * part in none. */
	__u16 capture;
};

struct gpu_process {
	/* enum gpu_state */
	__u32 state;
	/* How often the number has been given out before. */
	__u32 generation;
	__u32 tgid;
	/* Whether there has ever been an edge. */
	__u32 has_edges;
	__u64 cgroup_id;
	char comm[16];
	/* The last one counts all else, so that each enqueue has an atomic operation, which
	 * orders it. */
	__u64 launches[GPU_APIS + 1];
	__u64 copy_bytes[GPU_COPIES];
	__u64 syncs[GPU_SYNCS][2];
	__u64 sync_wait_ns[GPU_WAITS];
	__u64 allocated_bytes;
	/* Calls whose thread, stream, event or memory found no place or was never seen. */
	__u64 untracked;
	/* The driver's context in use, and whether there was another. */
	__u64 context;
	__u64 contexts;
	__u64 handles[GPU_STREAMS];
	struct gpu_stream streams[GPU_STREAMS];
	struct gpu_edge edges[GPU_EDGES];
	struct gpu_error errors[GPU_ERRORS];
	struct gpu_device devices[GPU_DEVICES];
};

/* A handle of a process: an event, or memory. */
struct gpu_handle {
	__u64 handle;
	__u32 slot;
	__u32 generation;
};

/* What a trace tells of. */
enum gpu_kind {
	/* A gap that an enqueue ended. */
	GPU_KIND_GAP = SERIES_KIND(GPU_PROBE, 0),
	/* A failed call; `detail` is an enum gpu_call. */
	GPU_KIND_FAILURE = SERIES_KIND(GPU_PROBE, 1),
};

/* A gap or a failed call. The key's device is the CUDA ordinal and one; of a call it is 0. */
struct gpu_told {
	struct event event;
	/* The number that the call returned. */
	__u32 code;
	__u32 reserved;
};

/* What a trace asks for. */
struct gpu_asked {
	/* The shortest duration; 0 is for nothing at all. */
	__u64 least_ns;
	/* 0 is all of them, here and below. */
	__u32 pid;
	/* The CUDA ordinal and one. */
	__u32 device;
	/* Whether only those of `gpu_cgroups`. */
	__u32 by_cgroup;
	__u32 reserved;
};
