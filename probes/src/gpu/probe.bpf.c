/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* How well the host keeps its GPUs fed, from the calls of the CUDA runtime and driver.
 *
 * No program here reads a field of the kernel, so they need no types of it. Each is attached to
 * many functions; the cookie of the attachment (GPU_COOKIE_*) says what the function does and
 * where its arguments are. Kernels before 5.15 have no cookies: there the loader writes the
 * cookie into a copy of the program in place of the call that asks for it.
 *
 * Two threads of a process can be in here at once, and 5.10 has no atomics that return a value.
 * So the order of stores matters, and what only one may do is decided by who inserts or removes
 * a token of a hash. All errors of races are to one side: a stream counts as pending that is not.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "histogram.h"
#include "gpu/wire.h"
#include "gpu/trace.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define barrier() asm volatile("" ::: "memory")

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, GPU_PROCESSES);
	__type(key, __u32);
	__type(value, struct gpu_process);
} gpu_processes SEC(".maps");

/* Process id to number. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, GPU_PROCESSES);
	__type(key, __u32);
	__type(value, __u32);
} gpu_process_of SEC(".maps");

/* Free numbers; the agent fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, GPU_PROCESSES);
	__uint(key_size, 0);
	__uint(value_size, sizeof(__u32));
} gpu_free SEC(".maps");

/* A thread that calls CUDA. Only the thread itself reads and writes it. */
struct gpu_thread {
	__u32 slot;
	__u32 generation;
	/* cudaSetDevice */
	__u32 device;
	/* Cookie of the call that it is in, 0 for none. */
	__u32 call;
	/* The stack pointer and the time at that call's entry. */
	__u64 sp;
	__u64 entry_ns;
	/* What that call's return needs. */
	__u64 first;
	__u64 second;
	/* The stack pointer at the entry of the runtime's last call, if that enqueues: the driver's
	 * call below it is the same. 0 once that was seen. */
	__u64 enqueue_sp;
	/* The name of its own default stream, once it was used. */
	__u64 own_stream;
	/* What a loop has found, and what it looks for: in memory, where the verifier knows no
	 * values. Else it would go on for each of them apart. */
	__u64 found;
	__u64 name;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2048);
	__type(key, __u64);
	__type(value, struct gpu_thread);
} gpu_threads SEC(".maps");

/* Who inserts it opens a gap, and who removes it closes the gap. Or it is held for the moment in
 * which a thread takes a place: others take another, and nobody waits for one that was
 * preempted. */
#define GPU_TOKEN(slot, what) ((slot) << 8 | (what))
#define GPU_TOKEN_STREAM(number) (0x80 | (number))
#define GPU_TOKEN_EDGE(number) (0xa0 | (number))
#define GPU_TOKEN_ERROR(number) (0xc0 | (number))

#define GPU_TOKENS (GPU_PROCESSES * (GPU_DEVICES + 4))

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, GPU_TOKENS);
	__type(key, __u32);
	__type(value, __u32);
} gpu_tokens SEC(".maps");

struct gpu_event {
	__u64 record_ns;
	/* Of its stream. */
	__u64 name;
	__u32 number;
	__u32 tid;
	/* As in struct gpu_stream. */
	__u64 capture;
};

/* An evicted event proves nothing any more, which is the safe side; the return of a call that
 * would have needed it counts it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, struct gpu_handle);
	__type(value, struct gpu_event);
} gpu_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, struct gpu_handle);
	__type(value, __u64);
} gpu_allocations SEC(".maps");

/* A process and a thread of it, found by every program at its start. */
struct gpu_caller {
	struct gpu_process *process;
	struct gpu_thread *thread;
	__u32 slot;
	__u32 tid;
};

static __always_inline struct gpu_process *gpu_process(__u32 slot)
{
	return bpf_map_lookup_elem(&gpu_processes, &slot);
}

static __always_inline void gpu_add(__u64 *counter, __u64 n)
{
	__sync_fetch_and_add(counter, n);
}

static __always_inline void gpu_untracked(struct gpu_process *process)
{
	gpu_add(&process->untracked, 1);
}

/* A number for a process at its first call: 0 where there is none left. */
static __noinline __u32 gpu_process_new(__u32 tgid)
{
	struct gpu_process *process;
	__u32 slot = 0, *known;

	if (bpf_map_pop_elem(&gpu_free, &slot))
		return 0;
	process = gpu_process(slot);
	if (!process)
		return 0;
	if (bpf_map_update_elem(&gpu_process_of, &tgid, &slot, BPF_NOEXIST)) {
		/* Another thread was faster. */
		bpf_map_push_elem(&gpu_free, &slot, BPF_ANY);
		known = bpf_map_lookup_elem(&gpu_process_of, &tgid);
		return known ? *known : 0;
	}
	process->tgid = tgid;
	process->cgroup_id = bpf_get_current_cgroup_id();
	bpf_get_current_comm(process->comm, sizeof(process->comm));
	barrier();
	/* The agent reads the rest only after this. */
	process->state = GPU_STATE_LIVE;
	return slot;
}

/* The first call of a thread, or of its process' number after it was given out anew. */
static __noinline struct gpu_thread *gpu_thread_new(__u64 id)
{
	struct gpu_thread thread = {};
	struct gpu_process *process;
	__u32 tgid = id >> 32, *known;

	known = bpf_map_lookup_elem(&gpu_process_of, &tgid);
	thread.slot = known ? *known : gpu_process_new(tgid);
	process = gpu_process(thread.slot);
	if (!process)
		return 0;
	thread.generation = process->generation;
	if (bpf_map_update_elem(&gpu_threads, &id, &thread, BPF_ANY)) {
		gpu_untracked(process);
		return 0;
	}
	return bpf_map_lookup_elem(&gpu_threads, &id);
}

/* A number may have come free since a thread found none. */
static __always_inline bool gpu_has_number(__u32 tgid)
{
	return bpf_map_lookup_elem(&gpu_process_of, &tgid);
}

static __always_inline bool gpu_caller_find(struct gpu_caller *caller)
{
	__u64 id = bpf_get_current_pid_tgid();

	caller->tid = id;
	caller->thread = bpf_map_lookup_elem(&gpu_threads, &id);
	if (caller->thread) {
		caller->slot = caller->thread->slot;
		caller->process = gpu_process(caller->slot);
		if (caller->process && caller->process->generation == caller->thread->generation &&
		    (caller->slot || !gpu_has_number(id >> 32)))
			return true;
	}
	caller->thread = gpu_thread_new(id);
	if (!caller->thread)
		return false;
	caller->slot = caller->thread->slot;
	caller->process = gpu_process(caller->slot);
	return caller->process;
}

/* Calls of processes without a number are counted and not followed. */
static __always_inline bool gpu_is_other(struct gpu_caller *caller)
{
	if (caller->slot)
		return false;
	gpu_untracked(caller->process);
	return true;
}

/* The n-th integer argument of a function at its entry, counted from 1 and in words: a dim3 by
 * value takes two. The empty asm keeps the compiler from making one load of them all, through a
 * moved context pointer, which the verifier does not take. */
static __always_inline __u64 gpu_argument(struct pt_regs *ctx, __u32 n)
{
	__u64 value = 0;

#define GPU_REGISTER(number, register)                                                             \
	case number:                                                                               \
		value = register;                                                                  \
		asm volatile("" : "+r"(value));                                                    \
		return value;
	switch (n) {
		GPU_REGISTER(1, PT_REGS_PARM1(ctx))
		GPU_REGISTER(2, PT_REGS_PARM2(ctx))
		GPU_REGISTER(3, PT_REGS_PARM3(ctx))
		GPU_REGISTER(4, PT_REGS_PARM4(ctx))
		GPU_REGISTER(5, PT_REGS_PARM5(ctx))
#if defined(__TARGET_ARCH_x86)
		GPU_REGISTER(6, ctx->r9)
	}
	/* System V ABI: above the return address. */
	bpf_probe_read_user(&value, sizeof(value), (void *)(PT_REGS_SP(ctx) + 8 * (n - 6)));
#else
		GPU_REGISTER(6, ((struct user_pt_regs *)ctx)->regs[5])
		GPU_REGISTER(7, ((struct user_pt_regs *)ctx)->regs[6])
		GPU_REGISTER(8, ((struct user_pt_regs *)ctx)->regs[7])
	}
	bpf_probe_read_user(&value, sizeof(value), (void *)(PT_REGS_SP(ctx) + 8 * (n - 9)));
#endif
#undef GPU_REGISTER
	return value;
}

/* Handles of streams that stand for others: cudaStreamLegacy and cudaStreamPerThread. */
#define GPU_STREAM_LEGACY 1
#define GPU_STREAM_PER_THREAD 2
/* Not a handle: a place that was given up. CUDA's are addresses. */
#define GPU_STREAM_GONE 3

/* The handle by which a stream is kept. A default stream belongs to the device, or to the thread
 * and the device. No address has a bit above 56 set. */
static __always_inline __u64 gpu_stream_name(struct gpu_caller *caller, __u64 handle, __u32 cookie)
{
	volatile __u64 *name = &caller->thread->name;
	__u64 device = caller->thread->device;

	*name = handle;
	if (handle == GPU_STREAM_PER_THREAD || (handle == 0 && cookie & GPU_COOKIE_PER_THREAD))
		*name = caller->thread->own_stream = 1ULL << 63 | (__u64)caller->tid << 16 | device;
	else if (handle <= GPU_STREAM_LEGACY)
		*name = 1ULL << 62 | device;
	return *name;
}

/* The handle that a call names its stream by. */
static __always_inline __u64 gpu_stream_argument(struct pt_regs *ctx, __u32 cookie)
{
	__u32 n = GPU_COOKIE_STREAM(cookie);
	__u64 handle = 0;

	if (n == 0)
		return 0;
	if (n == GPU_STREAM_OF_CONFIG) {
		/* cudaLaunchConfig_t and CUlaunchConfig both have it there. */
		bpf_probe_read_user(&handle, sizeof(handle), (void *)(PT_REGS_PARM1(ctx) + 32));
		return handle;
	}
	return gpu_argument(ctx, n);
}

/* Places that a stream may have, from that of its hash on. */
#define GPU_STREAM_WINDOW 8

static __always_inline __u32 gpu_stream_place(__u64 name, __u32 i)
{
	return ((name * 0x9e3779b97f4a7c15ULL >> 40) + i) & (GPU_STREAMS - 1);
}

/* The number of a known stream; GPU_STREAMS for one that is not. */
static __always_inline __u32 gpu_stream_find(struct gpu_caller *caller, __u64 name)
{
	volatile __u64 *found = &caller->thread->found;

	*found = GPU_STREAMS;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_STREAM_WINDOW; i++) {
		__u32 place = gpu_stream_place(name, i);

		if (caller->process->handles[place] == name) {
			*found = place;
			break;
		}
	}
	return *found;
}

/* Which is larger, without a branch: the verifier walks both sides of every branch, and loops
 * multiply them. Times are below 2^63. */
static __always_inline __u64 gpu_max(__u64 a, __u64 b)
{
	return a + (b - a) * histogram_less(a, b);
}

/* Takes a place for a stream if it is free: never used, or given up by cudaStreamDestroy and
 * drained since. */
static __always_inline bool gpu_stream_take(struct gpu_process *process, struct gpu_thread *thread,
					    __u32 number, __u64 name)
{
	__u32 token = GPU_TOKEN(thread->slot, GPU_TOKEN_STREAM(number)), value = 0;
	struct gpu_stream *stream = &process->streams[number];
	__u64 handle = process->handles[number];
	bool taken = false;

	if (handle &&
	    (handle != GPU_STREAM_GONE || histogram_less(stream->drained_ns, stream->last_ns)))
		return false;
	if (bpf_map_update_elem(&gpu_tokens, &token, &value, BPF_NOEXIST))
		return false;
	/* Another thread may have come and gone since. */
	if (*(volatile __u64 *)&process->handles[number] == handle) {
		stream->device = thread->device;
		stream->capture = 0;
		stream->last_ns = 0;
		stream->other_ns = 0;
		barrier();
		*(volatile __u64 *)&process->handles[number] = name;
		taken = true;
	}
	bpf_map_delete_elem(&gpu_tokens, &token);
	return taken;
}

/* A place for a new stream. Two threads can take two places for the same one: what is known of a
 * stream by its name is therefore known of all places in its window that have it. */
static __noinline int gpu_stream_new(struct gpu_process *process, struct gpu_thread *thread,
				     __u64 name)
{
	volatile __u64 *found;
	__u32 number;

	if (!process || !thread)
		return 0;
	found = &thread->found;
	*found = GPU_STREAMS - 1;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_STREAM_WINDOW; i++) {
		number = gpu_stream_place(name, i);
		if (number != GPU_STREAMS - 1 && gpu_stream_take(process, thread, number, name)) {
			*found = number;
			break;
		}
	}
	number = *found & (GPU_STREAMS - 1);
	if (number == GPU_STREAMS - 1)
		process->streams[GPU_STREAMS - 1].device = GPU_DEVICES;
	/* Devices beyond have no gaps. */
	if (number == GPU_STREAMS - 1 || thread->device >= GPU_DEVICES)
		gpu_untracked(process);
		/* What edges say of the one that was there must not be believed of this one. */
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_EDGES; i++) {
		struct gpu_edge *edge = &process->edges[i & (GPU_EDGES - 1)];

		if (edge->waiter == number || edge->source == number)
			*(volatile __u64 *)&edge->wait_ns = 0;
	}
	return 0;
}

/* The number of the stream that a call names, made at its first use. */
static __always_inline __u32 gpu_stream_of(struct gpu_caller *caller, __u64 handle, __u32 cookie)
{
	__u64 name = gpu_stream_name(caller, handle, cookie);

	if (gpu_stream_find(caller, name) == GPU_STREAMS)
		gpu_stream_new(caller->process, caller->thread, name);
	return *(volatile __u64 *)&caller->thread->found & (GPU_STREAMS - 1);
}

/* The devices whose streams have work that is not known to be complete or was given since `now`,
 * for the thread that asks may have been held up; and from bit 16 on those
 * that have ever had any. The last stream stands for those of any device. */
#define GPU_USED(devices) ((devices) >> 16)

static __noinline __u32 gpu_devices_pending(struct gpu_process *process, __u64 now)
{
	__u32 devices = 0, all;

	if (!process)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_STREAMS; i++) {
		struct gpu_stream *stream = &process->streams[i & (GPU_STREAMS - 1)];
		__u64 last = *(volatile __u64 *)&stream->last_ns;
		__u64 drained = *(volatile __u64 *)&stream->drained_ns;
		__u32 device = stream->device & 15;

		drained -= histogram_less(now, drained) * (drained - now);
		devices |= histogram_less(drained, last) << device;
		devices |= histogram_less(0, last) << 16 << device;
	}
	all = -(devices >> GPU_DEVICES & 1);
	return devices | (all & 0xffff);
}

/* Ends the gap of a device, if there is one and nobody else does. `counted`: the gap was ended by
 * an enqueue. */
static __noinline int gpu_gap_close(struct gpu_process *process, __u32 slot, __u32 device,
				    __u64 now, bool counted)
{
	__u32 token = GPU_TOKEN(slot, device), bucket;
	struct gpu_device *of;
	__u64 start, gap;
	long error;

	if (!process || device >= GPU_DEVICES)
		return 0;
	of = &process->devices[device];
	error = bpf_map_delete_elem(&gpu_tokens, &token);
	if (error) {
		/* It was another's, or the kernel refuses: then the gap is nobody's. */
		if (error != -ENOENT)
			*(volatile __u64 *)&of->gap_start_ns = 0;
		return 0;
	}
	/* Only now, for it belongs to who removed the token. */
	start = *(volatile __u64 *)&of->gap_start_ns;
	*(volatile __u64 *)&of->gap_start_ns = 0;
	if (!start || now <= start)
		return 0;
	gap = now - start;
	if (gap > GPU_STARVED_MAX_NS) {
		gpu_add(&of->starved_ns, GPU_STARVED_MAX_NS);
		gpu_add(&of->idle_ns, gap - GPU_STARVED_MAX_NS);
	} else {
		gpu_add(&of->starved_ns, gap);
	}
	if (!counted)
		return 0;
	bucket = histogram_bucket_of(gap);
	if (bucket >= HISTOGRAM_BUCKETS)
		return 0;
	__sync_fetch_and_add(&of->gaps.buckets[bucket], 1);
	gpu_add(&of->gaps.sum, gap);
	gpu_tell(now, gap, GPU_SERIES(GPU_KIND_GAP, 0), device + 1, 0);
	return 0;
}

/* Work was given to a stream. */
static __always_inline bool gpu_enqueue_on(struct gpu_caller *caller, __u32 number, __u64 *counter)
{
	struct gpu_stream *stream = &caller->process->streams[number & (GPU_STREAMS - 1)];
	struct gpu_device *device;
	__u64 now, other;

	/* It is recorded, to be launched with its graph. */
	if (stream->capture)
		return false;
	now = bpf_ktime_get_ns();
	/* Of another thread's enqueues the first that lie close together. */
	other = stream->other_ns;
	other += histogram_less(0, stream->last_tid ^ caller->tid) *
		 histogram_less(other + GPU_ENQUEUED_NS, now) * (stream->last_ns - other);
	*(volatile __u64 *)&stream->other_ns = other;
	stream->last_tid = caller->tid;
	*(volatile __u64 *)&stream->last_ns = now;
	/* Orders the mark before the look: see gpu_settle(). */
	gpu_add(counter, 1);
	/* A drain whose proof is younger, for this thread was preempted: the work is yet to come.
	 */
	if (*(volatile __u64 *)&stream->drained_ns >= now)
		*(volatile __u64 *)&stream->last_ns = bpf_ktime_get_ns();
	if (stream->device < GPU_DEVICES) {
		device = &caller->process->devices[stream->device & (GPU_DEVICES - 1)];
		if (*(volatile __u64 *)&device->gap_start_ns)
			gpu_gap_close(caller->process, caller->slot, stream->device, now, true);
	} else {
		/* It may be any of them: what was a gap is none, and not counted. */
#pragma clang loop unroll(disable)
		for (__u32 i = 0; i < GPU_DEVICES; i++)
			*(volatile __u64 *)&caller->process->devices[i].gap_start_ns = 0;
	}
	return true;
}

/* Whether a call of the driver is made by the runtime's call above it on the stack, and counted
 * there: one that waits, whatever it is made of, or one that enqueues. That one makes one call of
 * the driver that enqueues, after which the next is the program's own: it may come from a library
 * with a runtime of its own. */
static __always_inline bool gpu_is_below(struct gpu_thread *thread, __u32 cookie, __u64 sp,
					 bool enqueues)
{
	bool below;

	if (!(cookie & GPU_COOKIE_DRIVER)) {
		thread->enqueue_sp = enqueues ? sp : 0;
		return false;
	}
	if (thread->call && sp < thread->sp)
		return true;
	below = thread->enqueue_sp && sp < thread->enqueue_sp;
	if (enqueues)
		thread->enqueue_sp = 0;
	return below;
}

static __always_inline void gpu_copied(struct gpu_process *process, struct pt_regs *ctx,
				       __u32 cookie)
{
	__u32 kind = GPU_COOKIE_COPY(cookie), n = GPU_COOKIE_SIZE(cookie);
	__u64 bytes;

	if (!n)
		return;
	bytes = gpu_argument(ctx, n);
	if (cookie & GPU_COOKIE_AREA)
		bytes *= gpu_argument(ctx, n + 1);
	if (GPU_COOKIE_KIND(cookie))
		kind = gpu_argument(ctx, GPU_COOKIE_KIND(cookie));
	if (kind >= GPU_COPIES)
		return;
	gpu_add(&process->copy_bytes[kind], bytes);
}

/* Entry of what enqueues and returns: launches, graphs, asynchronous copies, memset. */
SEC("uprobe")
int gpu_enqueue(struct pt_regs *ctx)
{
	__u32 cookie = bpf_get_attach_cookie(ctx), what = GPU_COOKIE_WHAT(cookie), stream;
	struct gpu_caller caller;
	__u64 *counter;

	if (!gpu_caller_find(&caller))
		return 0;
	if (gpu_is_below(caller.thread, cookie, PT_REGS_SP(ctx), true))
		return 0;
	counter = &caller.process->launches[what <= GPU_APIS ? what : GPU_APIS];
	if (gpu_is_other(&caller)) {
		gpu_add(counter, 1);
		gpu_copied(caller.process, ctx, cookie);
		return 0;
	}
	stream = gpu_stream_of(&caller, gpu_stream_argument(ctx, cookie), cookie);
	/* Kernels are launched on streams of the current device; other calls may name any. */
	if (what < GPU_APIS && !(cookie & GPU_COOKIE_DRIVER) && stream < GPU_STREAMS - 1)
		*(volatile __u16 *)&caller.process->streams[stream].device = caller.thread->device;
	if (gpu_enqueue_on(&caller, stream, counter))
		gpu_copied(caller.process, ctx, cookie);
	return 0;
}

/* All that was enqueued on a stream up to a time is complete, if `is` is 1 and not 0. */
static __always_inline void gpu_drain(struct gpu_stream *stream, __u64 until, __u32 tid, __u64 is)
{
	__u64 last = *(volatile __u64 *)&stream->last_ns;
	__u64 drained = *(volatile __u64 *)&stream->drained_ns;
	/* Another thread's call may have begun and not enqueued yet. */
	__u64 other = stream->other_ns;
	__u64 begun;

	other += histogram_less(0, stream->last_tid ^ tid) * (last - other);
	begun = histogram_less(0, other) & histogram_less(other, until + 1) &
		histogram_less(until, other + GPU_ENQUEUED_NS);
	until -= begun * (until - other + 1);
	*(volatile __u64 *)&stream->drained_ns = gpu_max(drained, until * is);
}

/* The same for a stream by its name: for each place that has it. */
static __noinline int gpu_drain_name(struct gpu_process *process, __u64 name, __u64 until,
				     __u32 tid)
{
	if (!process)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_STREAM_WINDOW; i++) {
		__u32 number = gpu_stream_place(name, i);
		__u64 other = process->handles[number] ^ name;

		gpu_drain(&process->streams[number], until, tid, ((other | -other) >> 63) ^ 1);
	}
	return 0;
}

/* What a drained stream had waited for is drained as well. An edge that follows from one after it
 * takes the second round; where two are not enough, streams stay pending. */
static __noinline int gpu_follow_edges(struct gpu_process *process, __u32 tid)
{
	if (!process)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 n = 0; n < 2 * GPU_EDGES; n++) {
		struct gpu_edge *edge = &process->edges[n & (GPU_EDGES - 1)];
		struct gpu_stream *source = &process->streams[edge->source & (GPU_STREAMS - 1)];
		__u64 wait = *(volatile __u64 *)&edge->wait_ns;
		__u64 record = *(volatile __u64 *)&edge->record_ns;
		__u64 waiter = process->streams[edge->waiter & (GPU_STREAMS - 1)].drained_ns;
		/* Another thread's call may not have made it wait yet. */
		__u64 least = wait + histogram_less(0, edge->tid ^ tid) * GPU_ENQUEUED_NS;
		__u64 is = histogram_less(0, wait) & histogram_less(least, waiter + 1);
		/* It may have been written meanwhile. */
		__u64 changed = wait ^ *(volatile __u64 *)&edge->wait_ns;
		__u64 drained = *(volatile __u64 *)&source->drained_ns;

		is &= ((changed | -changed) >> 63) ^ 1;
		*(volatile __u64 *)&source->drained_ns = gpu_max(drained, record * is);
	}
	return 0;
}

/* After a drain: gaps begin at the devices that have nothing to do. */
static __noinline int gpu_settle(struct gpu_process *process, __u32 slot, __u64 now, __u32 tid)
{
	__u32 devices, value = 0;
	long error;

	if (!process)
		return 0;
	if (process->has_edges)
		gpu_follow_edges(process, tid);
	devices = gpu_devices_pending(process, now);
	devices = GPU_USED(devices) & ~devices;
	if (!devices)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_DEVICES; i++) {
		struct gpu_device *device = &process->devices[i & (GPU_DEVICES - 1)];
		__u32 token = GPU_TOKEN(slot, i);

		if (!(devices >> i & 1) || *(volatile __u64 *)&device->gap_start_ns)
			continue;
		*(volatile __u64 *)&device->gap_start_ns = now;
		error = bpf_map_update_elem(&gpu_tokens, &token, &value, BPF_NOEXIST);
		/* No memory, and nobody could end the gap. */
		if (error && error != -EEXIST)
			*(volatile __u64 *)&device->gap_start_ns = 0;
	}
	/* An enqueue of another thread that did not see the gap yet has left its mark by now. Of an
	 * addition of 0 the compiler would make an "or", which 5.10 does not have. */
	gpu_add(&process->launches[GPU_APIS], 1);
	devices &= gpu_devices_pending(process, now);
	if (!devices)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_DEVICES; i++) {
		struct gpu_device *device = &process->devices[i & (GPU_DEVICES - 1)];
		__u32 token = GPU_TOKEN(slot, i);

		if (devices >> i & 1 && bpf_map_delete_elem(&gpu_tokens, &token) != -ENOENT)
			*(volatile __u64 *)&device->gap_start_ns = 0;
	}
	return 0;
}

static __always_inline struct gpu_handle gpu_handle_of(struct gpu_caller *caller, __u64 handle)
{
	return (struct gpu_handle){
		.handle = handle,
		.slot = caller->slot,
		.generation = caller->thread->generation,
	};
}

static __noinline int gpu_allocated(struct gpu_process *process, struct gpu_handle *key, __u64 size)
{
	__u64 *known, before;

	if (!process || !key)
		return 0;
	/* Memory that is given out anew has been freed, unseen. */
	known = bpf_map_lookup_elem(&gpu_allocations, key);
	before = known ? *known : 0;
	if (bpf_map_update_elem(&gpu_allocations, key, &size, BPF_ANY))
		gpu_untracked(process);
	else
		gpu_add(&process->allocated_bytes, size - before);
	return 0;
}

/* Takes memory out, and tells its size. */
static __noinline __u64 gpu_freed(struct gpu_process *process, struct gpu_handle *key)
{
	__u64 *known, size;

	if (!process || !key)
		return 0;
	known = bpf_map_lookup_elem(&gpu_allocations, key);
	size = known ? *known : 0;
	/* The kernel may refuse: what it keeps stays counted. */
	if (!known || bpf_map_delete_elem(&gpu_allocations, key)) {
		gpu_untracked(process);
		return 0;
	}
	gpu_add(&process->allocated_bytes, -size);
	return size;
}

/* Entry of what is seen to return: see gpu_return(). */
SEC("uprobe")
int gpu_enter(struct pt_regs *ctx)
{
	__u32 cookie = bpf_get_attach_cookie(ctx), call = GPU_COOKIE_WHAT(cookie), kind;
	struct gpu_caller caller;
	struct gpu_thread *thread;
	struct gpu_handle key;
	__u32 stream;

	if (!gpu_caller_find(&caller))
		return 0;
	thread = caller.thread;
	if (gpu_is_below(thread, cookie, PT_REGS_SP(ctx), false))
		return 0;
	gpu_is_other(&caller);
	thread->call = cookie;
	thread->sp = PT_REGS_SP(ctx);
	thread->first = 0;
	thread->second = 0;
	if (call == GPU_CALL_MEMCPY)
		gpu_copied(caller.process, ctx, cookie);
	kind = GPU_COOKIE_COPY(cookie);
	if (GPU_COOKIE_KIND(cookie))
		kind = gpu_argument(ctx, GPU_COOKIE_KIND(cookie));
	switch (call) {
	case GPU_CALL_MEMCPY:
		/* Between two places of the host no device is asked; others are refused. */
		if (kind == GPU_COPY_HOST_TO_HOST || kind >= GPU_COPIES)
			break;
	case GPU_CALL_STREAM_SYNCHRONIZE:
	case GPU_CALL_STREAM_QUERY:
	case GPU_CALL_STREAM_CAPTURE:
		if (!caller.slot)
			break;
		/* A new stream has a number, too: nothing is pending there. */
		stream = gpu_stream_of(&caller, gpu_stream_argument(ctx, cookie), cookie);
		/* From memory, or the verifier goes on for each of the calls apart. */
		call = GPU_COOKIE_WHAT(*(volatile __u32 *)&thread->call);
		if (call == GPU_CALL_MEMCPY)
			gpu_enqueue_on(&caller, stream, &caller.process->launches[GPU_APIS]);
		/* Copies of other directions may return before they are complete. */
		if (call != GPU_CALL_MEMCPY || kind == GPU_COPY_DEVICE_TO_HOST)
			thread->first = *(volatile __u64 *)&thread->name;
		thread->second = stream;
		break;
	case GPU_CALL_EVENT_SYNCHRONIZE:
	case GPU_CALL_EVENT_QUERY:
		thread->second = PT_REGS_PARM1(ctx);
		break;
	case GPU_CALL_MALLOC:
		thread->first = PT_REGS_PARM1(ctx);
		thread->second = gpu_argument(ctx, GPU_COOKIE_SIZE(cookie));
		/* cudaMallocPitch() chooses the width itself. */
		if (cookie & GPU_COOKIE_AREA) {
			thread->second = gpu_argument(ctx, 4);
			thread->entry_ns = PT_REGS_PARM2(ctx);
			return 0;
		}
		break;
	case GPU_CALL_FREE:
		thread->first = PT_REGS_PARM1(ctx);
		/* Taken out already here: the address can be another's before the return. */
		key = gpu_handle_of(&caller, thread->first);
		if (caller.slot && thread->first)
			thread->second = gpu_freed(caller.process, &key);
		break;
	case GPU_CALL_SET_DEVICE:
		thread->first = PT_REGS_PARM1(ctx);
		break;
	}
	/* Last: what is enqueued by then is what the return proves. */
	thread->entry_ns = bpf_ktime_get_ns();
	return 0;
}

/* Counts a failed call. One kind can be in two places, which the reader adds up. */
static __noinline int gpu_failed(struct gpu_process *process, struct gpu_thread *thread, __u32 call,
				 __u32 code)
{
	volatile __u64 *found;
	__u32 value = 0;

	if (!process || !thread)
		return 0;
	found = &thread->found;
	*found = 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_ERRORS - 1; i++) {
		struct gpu_error *error = &process->errors[i & (GPU_ERRORS - 1)];
		__u32 token = GPU_TOKEN(thread->slot, GPU_TOKEN_ERROR(i));
		bool taken = !error->count &&
			     !bpf_map_update_elem(&gpu_tokens, &token, &value, BPF_NOEXIST);

		if (taken && !*(volatile __u64 *)&error->count) {
			error->call = call;
			error->code = code;
		}
		if (error->call == call && error->code == code &&
		    (taken || *(volatile __u64 *)&error->count)) {
			gpu_add(&error->count, 1);
			*found = 1;
		}
		if (taken)
			bpf_map_delete_elem(&gpu_tokens, &token);
		if (*found)
			return 0;
	}
	gpu_add(&process->errors[GPU_ERRORS - 1].count, 1);
	return 0;
}

/* A capture ends: all streams that took part are as before. */
static __noinline int gpu_capture_end(struct gpu_process *process, __u32 origin)
{
	if (!process)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_STREAMS; i++) {
		struct gpu_stream *stream = &process->streams[i & (GPU_STREAMS - 1)];

		if (stream->capture == origin)
			stream->capture = 0;
	}
	return 0;
}

/* cudaErrorNotReady: the answer of a query, and no error. */
#define GPU_NOT_READY 600

/* Return of what waits, asks, copies and blocks, allocates, frees, or changes the thread. */
SEC("uretprobe")
int gpu_return(struct pt_regs *ctx)
{
	__u32 cookie = bpf_get_attach_cookie(ctx), call = GPU_COOKIE_WHAT(cookie);
	__u32 result = PT_REGS_RC(ctx), number;
	__u64 id = bpf_get_current_pid_tgid(), now, until, waited, size, pointer, name;
	struct gpu_caller caller;
	struct gpu_process *process;
	struct gpu_thread *thread;
	struct gpu_handle key;
	struct gpu_event *event;
	__u32 tid = id;

	thread = bpf_map_lookup_elem(&gpu_threads, &id);
	/* Another cookie: the return of what was below. */
	if (!thread || thread->call != cookie)
		return 0;
	thread->call = 0;
	process = gpu_process(thread->slot);
	if (!process || process->generation != thread->generation)
		return 0;
	caller.thread = thread;
	caller.process = process;
	caller.slot = thread->slot;
	caller.tid = tid;
	now = bpf_ktime_get_ns();
	until = thread->entry_ns;

	if (call < GPU_SYNCS) {
		waited = now - until;
		gpu_add(&process->syncs[call][call < GPU_WAITS && waited >= GPU_WAITED_NS], 1);
		if (call < GPU_WAITS)
			gpu_add(&process->sync_wait_ns[call], waited);
	}
	/* Through memory, where the verifier forgets which of them it was. */
	*(volatile __u64 *)&thread->name = call;
	call = *(volatile __u64 *)&thread->name;
	if (result) {
		if (call == GPU_CALL_STREAM_CAPTURE && GPU_COOKIE_COPY(cookie))
			gpu_capture_end(process, thread->second + 1);
		if (call == GPU_CALL_FREE && thread->second) {
			key = gpu_handle_of(&caller, thread->first);
			gpu_allocated(process, &key, thread->second);
		}
		if (result != GPU_NOT_READY ||
		    (call != GPU_CALL_STREAM_QUERY && call != GPU_CALL_EVENT_QUERY)) {
			gpu_failed(process, thread, call, result);
			/* Of an area's allocation something else stands there. */
			waited = call == GPU_CALL_MALLOC && cookie & GPU_COOKIE_AREA ? 0
										     : now - until;
			gpu_tell(now, waited, GPU_SERIES(GPU_KIND_FAILURE, call), 0, result);
		}
		return 0;
	}

	switch (call) {
	case GPU_CALL_DEVICE_SYNCHRONIZE:
		thread->first = 0;
		/* The driver's context is not known by its device. */
		if (!caller.slot || (cookie & GPU_COOKIE_DRIVER && process->contexts))
			return 0;
#pragma clang loop unroll(disable)
		for (__u32 i = 0; i < GPU_STREAMS; i++) {
			struct gpu_stream *stream = &process->streams[i & (GPU_STREAMS - 1)];

			gpu_drain(stream, until, tid,
				  histogram_less(stream->device ^ thread->device, 1));
		}
		break;
	case GPU_CALL_EVENT_SYNCHRONIZE:
	case GPU_CALL_EVENT_QUERY:
		if (!caller.slot)
			return 0;
		key = gpu_handle_of(&caller, thread->second);
		event = bpf_map_lookup_elem(&gpu_events, &key);
		if (!event) {
			gpu_untracked(process);
			return 0;
		}
		/* Recorded anew meanwhile, by another thread, or just so: it is not known which one
		 * is meant. */
		if (event->record_ns > until ||
		    (event->tid != tid && event->record_ns + GPU_ENQUEUED_NS > until))
			return 0;
		until = event->record_ns;
		tid = event->tid;
		thread->first = event->name;
		break;
	case GPU_CALL_STREAM_SYNCHRONIZE:
	case GPU_CALL_STREAM_QUERY:
	case GPU_CALL_MEMCPY:
		/* A copy that proves nothing; or the default stream of a context that is not
		 * known. */
		if (!thread->first)
			return 0;
		if (cookie & GPU_COOKIE_DRIVER && process->contexts && thread->first >> 62)
			return 0;
		break;
	case GPU_CALL_MALLOC:
		if (!caller.slot)
			return 0;
		size = thread->second;
		if (cookie & GPU_COOKIE_AREA) {
			__u64 pitch = 0;

			bpf_probe_read_user(&pitch, sizeof(pitch), (void *)thread->entry_ns);
			size *= pitch;
		}
		pointer = 0;
		bpf_probe_read_user(&pointer, sizeof(pointer), (void *)thread->first);
		key = gpu_handle_of(&caller, pointer);
		if (pointer)
			gpu_allocated(process, &key, size);
		return 0;
	case GPU_CALL_SET_DEVICE:
		thread->device = thread->first;
		return 0;
	case GPU_CALL_STREAM_CAPTURE:
		number = thread->second;
		if (number >= GPU_STREAMS - 1)
			return 0;
		if (GPU_COOKIE_COPY(cookie))
			gpu_capture_end(process, number + 1);
		else
			process->streams[number & (GPU_STREAMS - 1)].capture = number + 1;
		return 0;
	default:
		return 0;
	}
	/* From memory, or the verifier goes on for each of the calls apart. */
	name = *(volatile __u64 *)&thread->first;
	if (name)
		gpu_drain_name(process, name, until, tid);
	gpu_settle(process, caller.slot, now, caller.tid);
	return 0;
}

/* cudaStreamWaitEvent: what the stream is drained of later, the event's stream is as well. */
static __noinline int gpu_wait_event(struct gpu_process *process, struct gpu_thread *thread,
				     struct gpu_event *event, __u32 number)
{
	__u64 record, oldest = ~0ULL;
	struct gpu_edge *edge;
	volatile __u64 *found;
	__u32 source, token, value = 0, tid = bpf_get_current_pid_tgid();

	if (!process || !thread || !event || number >= GPU_STREAMS - 1)
		return 0;
	if (event->capture) {
		/* Unless that capture is over: then the call fails. */
		if (process->streams[(event->capture - 1) & (GPU_STREAMS - 1)].capture ==
		    event->capture)
			process->streams[number & (GPU_STREAMS - 1)].capture = event->capture;
		return 0;
	}
	source = event->number;
	record = event->record_ns;
	if (source == number || source >= GPU_STREAMS - 1 ||
	    record <= process->streams[source & (GPU_STREAMS - 1)].drained_ns)
		return 0;
	found = &thread->found;
	*found = 0;
	/* The last one of the same two streams says more than those before it. */
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_EDGES; i++) {
		edge = &process->edges[i & (GPU_EDGES - 1)];
		if (edge->wait_ns && edge->waiter == number && edge->source == source) {
			*found = i;
			break;
		}
		if (edge->wait_ns < oldest) {
			oldest = edge->wait_ns;
			*found = i;
		}
	}
	token = GPU_TOKEN(thread->slot, GPU_TOKEN_EDGE(*found & (GPU_EDGES - 1)));
	if (bpf_map_update_elem(&gpu_tokens, &token, &value, BPF_NOEXIST)) {
		gpu_untracked(process);
		return 0;
	}
	edge = &process->edges[*found & (GPU_EDGES - 1)];
	*(volatile __u64 *)&edge->wait_ns = 0;
	*(volatile __u64 *)&edge->record_ns = record;
	*(volatile __u16 *)&edge->source = source;
	*(volatile __u16 *)&edge->waiter = number;
	*(volatile __u32 *)&edge->tid = tid;
	*(volatile __u64 *)&edge->wait_ns = bpf_ktime_get_ns();
	process->has_edges = 1;
	bpf_map_delete_elem(&gpu_tokens, &token);
	return 0;
}

/* Entry of what orders streams, and ends them. */
SEC("uprobe")
int gpu_order(struct pt_regs *ctx)
{
	__u32 cookie = bpf_get_attach_cookie(ctx), what = GPU_COOKIE_WHAT(cookie), number;
	struct gpu_caller caller;
	struct gpu_event event = {}, *known;
	struct gpu_handle key;
	__u64 handle, name;

	if (!gpu_caller_find(&caller) || !caller.slot)
		return 0;
	if (what == GPU_ORDER_CONTEXT) {
		/* The driver's own, or the runtime's below cudaSetDevice(). */
		handle = PT_REGS_PARM1(ctx);
		if (!handle)
			return 0;
		if (!caller.process->context)
			caller.process->context = handle;
		else if (caller.process->context != handle)
			caller.process->contexts = 1;
		return 0;
	}
	if (gpu_is_below(caller.thread, cookie, PT_REGS_SP(ctx), false))
		return 0;
	/* The event is the first argument of all but the wait, where it is the second. */
	handle = gpu_argument(ctx, what == GPU_ORDER_WAIT ? 2 : 1);
	key = gpu_handle_of(&caller, handle);
	if (what == GPU_ORDER_EVENT_DESTROY) {
		bpf_map_delete_elem(&gpu_events, &key);
		return 0;
	}
	name = gpu_stream_name(&caller, gpu_stream_argument(ctx, cookie), cookie);
	number = gpu_stream_find(&caller, name);
	if (what == GPU_ORDER_STREAM_DESTROY) {
		/* Its work goes on; the place stays taken until that is drained. */
		if (number < GPU_STREAMS - 1)
			caller.process->handles[number & (GPU_STREAMS - 1)] = GPU_STREAM_GONE;
		return 0;
	}
	if (number == GPU_STREAMS)
		gpu_stream_new(caller.process, caller.thread, name);
	number = *(volatile __u64 *)&caller.thread->found & (GPU_STREAMS - 1);
	if (what == GPU_ORDER_WAIT) {
		known = bpf_map_lookup_elem(&gpu_events, &key);
		if (known)
			gpu_wait_event(caller.process, caller.thread, known, number);
		return 0;
	}
	event.record_ns = bpf_ktime_get_ns();
	event.name = name;
	event.number = number;
	event.tid = caller.tid;
	event.capture = caller.process->streams[number & (GPU_STREAMS - 1)].capture;
	if (bpf_map_update_elem(&gpu_events, &key, &event, BPF_ANY))
		gpu_untracked(caller.process);
	return 0;
}

/* The place of a thread's own stream can be another's. */
static __always_inline void gpu_thread_end(__u64 id)
{
	struct gpu_caller caller = {};

	caller.thread = bpf_map_lookup_elem(&gpu_threads, &id);
	if (!caller.thread)
		return;
	caller.process = gpu_process(caller.thread->slot);
	if (caller.process && caller.thread->own_stream &&
	    caller.process->generation == caller.thread->generation) {
		__u32 number = gpu_stream_find(&caller, caller.thread->own_stream);

		/* The empty asm keeps the mask, which the verifier needs. */
		asm volatile("" : "+r"(number));
		if (caller.process->handles[number & (GPU_STREAMS - 1)] ==
		    caller.thread->own_stream)
			caller.process->handles[number & (GPU_STREAMS - 1)] = GPU_STREAM_GONE;
	}
	bpf_map_delete_elem(&gpu_threads, &id);
}

/* A thread ends, and with the first one its process; or the process becomes another program. */
static __always_inline int gpu_end(bool all)
{
	__u64 id = bpf_get_current_pid_tgid(), now;
	__u32 tgid = id >> 32, *known, slot;
	struct gpu_process *process;

	gpu_thread_end(id);
	if (!all && (__u32)id != tgid)
		return 0;
	known = bpf_map_lookup_elem(&gpu_process_of, &tgid);
	if (!known)
		return 0;
	slot = *known;
	process = gpu_process(slot);
	bpf_map_delete_elem(&gpu_process_of, &tgid);
	if (!process)
		return 0;
	now = bpf_ktime_get_ns();
#pragma clang loop unroll(disable)
	for (__u32 i = 0; i < GPU_DEVICES; i++)
		gpu_gap_close(process, slot, i, now, false);
	process->state = GPU_STATE_EXITED;
	return 0;
}

SEC("raw_tracepoint/sched_process_exit")
int gpu_exit(__attribute__((unused)) void *ctx)
{
	return gpu_end(false);
}

SEC("raw_tracepoint/sched_process_exec")
int gpu_exec(__attribute__((unused)) void *ctx)
{
	return gpu_end(true);
}
