/*
 * Time on a virtual GPU is computed, not spent: a stream is the moment at which all that it was
 * given will have ended, and only calls that wait sleep until then. All state is behind one mutex,
 * which no one holds while it sleeps.
 */
#define _GNU_SOURCE
#include "cudart.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define DEVICES 2
#define CODES 1000
#define SLOTS 4096
/* Where device memory pretends to be: one slot of 4 GiB for each allocation, used again after it is
 * freed. */
#define MEMORY_BASE 0x100000000000ULL
#define SLOT_SHIFT 32
#define BYTES_PER_NS 16
#define NS_PER_S 1000000000ULL
/* Sleepers wake up late; the rest is spun. */
#define SPIN_NS 100000
/* What took that long has waited. */
#define WAITED_NS 20000

enum call {
	DEVICE_SYNCHRONIZE,
	STREAM_SYNCHRONIZE,
	EVENT_SYNCHRONIZE,
	MEMCPY,
	STREAM_QUERY,
	EVENT_QUERY,
	SYNC_CALLS,
	MALLOC = SYNC_CALLS,
	FREE,
	SET_DEVICE,
	STREAM_CAPTURE,
	OTHER,
	CALLS,
};

static const char *const call_names[CALLS] = {
	"device_synchronize",
	"stream_synchronize",
	"event_synchronize",
	"memcpy",
	"stream_query",
	"event_query",
	"malloc",
	"free",
	"set_device",
	"stream_capture",
	"other",
};

static const char *const kind_names[] = {
	"host_to_host", "host_to_device", "device_to_host", "device_to_device", "default",
};

/* What streams that capture together will become. Never freed: events remember it. */
struct capture {
	struct CUstream_st *origin;
	pthread_t thread;
	enum cudaStreamCaptureMode mode;
	bool ended, invalid;
	uint64_t duration_ns;
};

struct CUstream_st {
	struct CUstream_st *next;
	int device;
	/* Takes turns with the legacy default stream of its device. */
	bool blocking;
	bool legacy;
	/* Known by the handles 0 to 2 alone. */
	bool per_thread;
	bool destroyed;
	uint64_t end_ns;
	struct capture *capture;
};

struct CUevent_st {
	struct CUevent_st *next;
	bool destroyed;
	uint64_t time_ns;
	struct capture *capture;
};

struct CUgraph_st {
	uint64_t duration_ns;
};

struct CUgraphExec_st {
	uint64_t duration_ns;
};

struct interval {
	uint64_t start_ns, end_ns;
};

struct device {
	struct CUstream_st legacy;
	bool used;
	uint64_t first_enqueue_ns, last_enqueue_ns;
	struct interval *busy;
	size_t busy_count, busy_room;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct device devices[DEVICES] = {
	{ .legacy = { .device = 0, .legacy = true } },
	{ .legacy = { .device = 1, .legacy = true } },
};
static struct CUstream_st *streams;
static struct CUevent_st *events;
static size_t allocations[SLOTS];
static size_t allocated_bytes, limit_bytes = (size_t)64 << 30;
static uint64_t copy_duration_ns;

static uint64_t kernel_launches, graph_launches, enqueues;
static uint64_t memcpy_bytes[5];
static uint64_t errors[CALLS][CODES];
static struct {
	uint64_t count, waited, wait_ns;
} syncs[SYNC_CALLS];

static __thread int current_device;
static __thread struct CUstream_st *own_streams[DEVICES];

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static uint64_t later(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static void sleep_until(uint64_t time_ns)
{
	if (time_ns > now_ns() + SPIN_NS) {
		uint64_t early_ns = time_ns - SPIN_NS;
		struct timespec until = { (time_t)(early_ns / NS_PER_S),
					  (long)(early_ns % NS_PER_S) };

		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL))
			;
	}
	while (now_ns() < time_ns)
		;
}

static void *zeroed(size_t bytes)
{
	void *memory = calloc(1, bytes);

	if (!memory)
		abort();
	return memory;
}

static void lock(void)
{
	pthread_mutex_lock(&mutex);
}

static void unlock(void)
{
	pthread_mutex_unlock(&mutex);
}

/* The end of a call under the mutex: a query's "not ready" is no error. */
static cudaError_t ended(enum call call, cudaError_t code)
{
	if (code && code != cudaErrorNotReady)
		errors[call][code]++;
	unlock();
	return code;
}

/* The end of a call that proves or waits for something, outside the mutex. */
static cudaError_t returned(enum call call, uint64_t start_ns, cudaError_t code)
{
	uint64_t took_ns = now_ns() - start_ns;
	bool query = call == STREAM_QUERY || call == EVENT_QUERY;

	lock();
	syncs[call].count++;
	if (!query) {
		syncs[call].wait_ns += took_ns;
		syncs[call].waited += took_ns >= WAITED_NS;
	}
	return ended(call, code);
}

static struct CUstream_st *new_stream(bool blocking)
{
	struct CUstream_st *stream = zeroed(sizeof(*stream));

	stream->device = current_device;
	stream->blocking = blocking;
	stream->next = streams;
	streams = stream;
	return stream;
}

/* The stream that a handle means to this thread; none for a wrong one. */
static struct CUstream_st *stream_of(cudaStream_t handle, bool ptsz)
{
	struct CUstream_st *stream;

	if (handle == cudaStreamLegacy || (!handle && !ptsz))
		return &devices[current_device].legacy;
	if (handle == cudaStreamPerThread || !handle) {
		if (!own_streams[current_device]) {
			own_streams[current_device] = new_stream(true);
			own_streams[current_device]->per_thread = true;
		}
		return own_streams[current_device];
	}
	for (stream = streams; stream; stream = stream->next)
		if (stream == handle)
			return stream->destroyed || stream->per_thread ? NULL : stream;
	return NULL;
}

static struct CUevent_st *event_of(cudaEvent_t handle)
{
	struct CUevent_st *event;

	for (event = events; event; event = event->next)
		if (event == handle)
			return event->destroyed ? NULL : event;
	return NULL;
}

/* Whether a legacy stream has to stay away from streams that take turns with it. */
static bool capture_beside(const struct CUstream_st *legacy)
{
	struct CUstream_st *stream;
	bool found = false;

	for (stream = streams; stream; stream = stream->next) {
		if (stream->device != legacy->device || !stream->blocking || !stream->capture ||
		    stream->capture->mode == cudaStreamCaptureModeRelaxed)
			continue;
		stream->capture->invalid = true;
		found = true;
	}
	return found;
}

/* When a stream has done all that an operation given to it now has to wait for. */
static uint64_t ready_ns(const struct CUstream_st *stream)
{
	uint64_t ready = stream->end_ns;

	if (stream->legacy) {
		struct CUstream_st *other;

		for (other = streams; other; other = other->next)
			if (other->device == stream->device && other->blocking)
				ready = later(ready, other->end_ns);
	} else if (stream->blocking) {
		ready = later(ready, devices[stream->device].legacy.end_ns);
	}
	return ready;
}

static void add_busy(struct device *device, uint64_t start_ns, uint64_t end_ns)
{
	struct interval *last = device->busy_count ? &device->busy[device->busy_count - 1] : NULL;

	if (start_ns == end_ns)
		return;
	if (last && start_ns >= last->start_ns && start_ns <= last->end_ns) {
		last->end_ns = later(last->end_ns, end_ns);
		return;
	}
	if (device->busy_count == device->busy_room) {
		device->busy_room = device->busy_room ? 2 * device->busy_room : 1024;
		device->busy = realloc(device->busy, device->busy_room * sizeof(device->busy[0]));
		if (!device->busy)
			abort();
	}
	device->busy[device->busy_count++] = (struct interval){ start_ns, end_ns };
}

/* Gives a stream work: when it starts. A stream that captures only takes note. */
static cudaError_t enqueue(struct CUstream_st *stream, uint64_t duration_ns, uint64_t *start_ns)
{
	struct device *device;
	uint64_t now, start;

	if (!stream)
		return cudaErrorInvalidResourceHandle;
	if (stream->legacy && capture_beside(stream))
		return cudaErrorStreamCaptureImplicit;
	if (stream->capture) {
		if (stream->capture->invalid)
			return cudaErrorStreamCaptureInvalidated;
		stream->capture->duration_ns += duration_ns;
		return cudaSuccess;
	}
	device = &devices[stream->device];
	now = now_ns();
	start = later(now, ready_ns(stream));
	stream->end_ns = start + duration_ns;
	if (!device->used) {
		device->used = true;
		device->first_enqueue_ns = now;
	}
	device->last_enqueue_ns = now;
	add_busy(device, start, stream->end_ns);
	enqueues++;
	if (start_ns)
		*start_ns = start;
	return cudaSuccess;
}

/* A kernel or a graph belongs to the device that its thread has chosen. */
static cudaError_t launch(cudaStream_t handle, bool ptsz, uint64_t duration_ns, uint64_t *count)
{
	struct CUstream_st *stream;
	cudaError_t code;

	lock();
	stream = stream_of(handle, ptsz);
	if (!stream || !stream->capture)
		++*count;
	if (stream && stream->device != current_device)
		code = cudaErrorInvalidResourceHandle;
	else
		code = enqueue(stream, duration_ns, NULL);
	return ended(OTHER, code);
}

static cudaError_t launch_kernel(cudaStream_t handle, bool ptsz, void **args)
{
	uint64_t duration_ns = args ? *(uint64_t *)args[0] : 0;

	return launch(handle, ptsz, duration_ns, &kernel_launches);
}

cudaError_t cudaLaunchKernel(const void *func, dim3 grid, dim3 block, void **args,
			     size_t shared_bytes, cudaStream_t stream)
{
	(void)func, (void)grid, (void)block, (void)shared_bytes;
	return launch_kernel(stream, false, args);
}

cudaError_t cudaLaunchKernel_ptsz(const void *func, dim3 grid, dim3 block, void **args,
				  size_t shared_bytes, cudaStream_t stream)
{
	(void)func, (void)grid, (void)block, (void)shared_bytes;
	return launch_kernel(stream, true, args);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *func, void **args)
{
	(void)func;
	return launch_kernel(config->stream, false, args);
}

cudaError_t cudaLaunchKernelExC_ptsz(const cudaLaunchConfig_t *config, const void *func,
				     void **args)
{
	(void)func;
	return launch_kernel(config->stream, true, args);
}

static uint64_t copy_time_ns(size_t bytes)
{
	return copy_duration_ns ? copy_duration_ns : bytes / BYTES_PER_NS;
}

static bool on_device(const void *memory)
{
	uintptr_t slot = ((uintptr_t)memory - MEMORY_BASE) >> SLOT_SHIFT;

	return slot < SLOTS && allocations[slot];
}

static enum cudaMemcpyKind direction(const void *to, const void *from, enum cudaMemcpyKind kind)
{
	if (kind != cudaMemcpyDefault)
		return kind;
	if (on_device(to))
		return on_device(from) ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
	return on_device(from) ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
}

/*
 * Gives a stream a copy under the mutex; until when a call that blocks has to wait. All host memory
 * is pageable: a copy from there has been read, but not yet written, when it returns. Copies within
 * a device return at once; copies within the host never reach a device.
 */
static cudaError_t copy(struct CUstream_st *stream, void *to, const void *from, size_t bytes,
			enum cudaMemcpyKind kind, uint64_t *wait_until_ns)
{
	uint64_t duration_ns = copy_time_ns(bytes), start_ns = 0;
	bool counts;
	cudaError_t code;

	*wait_until_ns = 0;
	if ((unsigned int)kind > cudaMemcpyDefault)
		return cudaErrorInvalidMemcpyDirection;
	if (!stream)
		return cudaErrorInvalidResourceHandle;
	if (bytes && (!to || !from))
		return cudaErrorInvalidValue;
	counts = !stream->capture;
	switch (direction(to, from, kind)) {
	case cudaMemcpyHostToHost:
		*wait_until_ns = now_ns() + duration_ns;
		code = cudaSuccess;
		break;
	case cudaMemcpyHostToDevice:
		code = enqueue(stream, duration_ns, &start_ns);
		*wait_until_ns = start_ns + duration_ns / 2;
		break;
	case cudaMemcpyDeviceToHost:
		code = enqueue(stream, duration_ns, &start_ns);
		*wait_until_ns = start_ns + duration_ns;
		break;
	default:
		code = enqueue(stream, duration_ns, &start_ns);
		break;
	}
	if (!code && counts)
		memcpy_bytes[kind] += bytes;
	return code;
}

static cudaError_t blocking_copy(bool ptds, void *to, const void *from, size_t bytes,
				 enum cudaMemcpyKind kind)
{
	uint64_t call_ns = now_ns(), wait_until_ns;
	cudaError_t code;

	lock();
	code = copy(stream_of(NULL, ptds), to, from, bytes, kind, &wait_until_ns);
	unlock();
	if (!code)
		sleep_until(wait_until_ns);
	return returned(MEMCPY, call_ns, code);
}

static cudaError_t async_copy(cudaStream_t handle, bool ptsz, void *to, const void *from,
			      size_t bytes, enum cudaMemcpyKind kind)
{
	uint64_t wait_until_ns;
	cudaError_t code;

	lock();
	code = copy(stream_of(handle, ptsz), to, from, bytes, kind, &wait_until_ns);
	ended(OTHER, code);
	if (!code && kind == cudaMemcpyHostToHost)
		sleep_until(wait_until_ns);
	return code;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
	return blocking_copy(false, to, from, bytes, kind);
}

cudaError_t cudaMemcpy_ptds(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
	return blocking_copy(true, to, from, bytes, kind);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
			    cudaStream_t stream)
{
	return async_copy(stream, false, to, from, bytes, kind);
}

cudaError_t cudaMemcpyAsync_ptsz(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
				 cudaStream_t stream)
{
	return async_copy(stream, true, to, from, bytes, kind);
}

static cudaError_t set_memory(cudaStream_t handle, bool ptsz, void *to, size_t bytes)
{
	cudaError_t code;

	lock();
	if (bytes && !on_device(to))
		code = cudaErrorInvalidValue;
	else
		code = enqueue(stream_of(handle, ptsz), copy_time_ns(bytes), NULL);
	return ended(OTHER, code);
}

cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
	(void)value;
	return set_memory(NULL, false, to, bytes);
}

cudaError_t cudaMemset_ptds(void *to, int value, size_t bytes)
{
	(void)value;
	return set_memory(NULL, true, to, bytes);
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream)
{
	(void)value;
	return set_memory(stream, false, to, bytes);
}

cudaError_t cudaMemsetAsync_ptsz(void *to, int value, size_t bytes, cudaStream_t stream)
{
	(void)value;
	return set_memory(stream, true, to, bytes);
}

cudaError_t cudaDeviceSynchronize(void)
{
	uint64_t call_ns = now_ns(), end_ns;
	cudaError_t code = cudaSuccess;
	struct CUstream_st *stream;

	lock();
	end_ns = devices[current_device].legacy.end_ns;
	for (stream = streams; stream; stream = stream->next) {
		if (stream->device != current_device)
			continue;
		end_ns = later(end_ns, stream->end_ns);
		if (stream->capture) {
			stream->capture->invalid = true;
			code = cudaErrorStreamCaptureUnsupported;
		}
	}
	unlock();
	if (!code)
		sleep_until(end_ns);
	return returned(DEVICE_SYNCHRONIZE, call_ns, code);
}

/* When a stream will have done what it was given. */
static cudaError_t end_of(cudaStream_t handle, bool ptsz, uint64_t *end_ns)
{
	struct CUstream_st *stream;
	cudaError_t code = cudaSuccess;

	lock();
	stream = stream_of(handle, ptsz);
	if (!stream) {
		code = cudaErrorInvalidResourceHandle;
	} else if (stream->legacy && capture_beside(stream)) {
		code = cudaErrorStreamCaptureImplicit;
	} else if (stream->capture) {
		stream->capture->invalid = true;
		code = cudaErrorStreamCaptureUnsupported;
	} else {
		*end_ns = stream->end_ns;
	}
	unlock();
	return code;
}

static cudaError_t synchronize(cudaStream_t handle, bool ptsz)
{
	uint64_t call_ns = now_ns(), end_ns;
	cudaError_t code = end_of(handle, ptsz, &end_ns);

	if (!code)
		sleep_until(end_ns);
	return returned(STREAM_SYNCHRONIZE, call_ns, code);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
	return synchronize(stream, false);
}

cudaError_t cudaStreamSynchronize_ptsz(cudaStream_t stream)
{
	return synchronize(stream, true);
}

static cudaError_t query(cudaStream_t handle, bool ptsz)
{
	uint64_t call_ns = now_ns(), end_ns;
	cudaError_t code = end_of(handle, ptsz, &end_ns);

	if (!code && now_ns() < end_ns)
		code = cudaErrorNotReady;
	return returned(STREAM_QUERY, call_ns, code);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
	return query(stream, false);
}

cudaError_t cudaStreamQuery_ptsz(cudaStream_t stream)
{
	return query(stream, true);
}

static cudaError_t create_event(cudaEvent_t *event)
{
	if (!event)
		return cudaErrorInvalidValue;
	lock();
	*event = zeroed(sizeof(**event));
	(*event)->next = events;
	events = *event;
	unlock();
	return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
	return create_event(event);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
	return flags > 7 ? cudaErrorInvalidValue : create_event(event);
}

cudaError_t cudaEventDestroy(cudaEvent_t handle)
{
	struct CUevent_st *event;

	lock();
	event = event_of(handle);
	if (event)
		event->destroyed = true;
	return ended(OTHER, event ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

static cudaError_t record(cudaEvent_t handle, cudaStream_t stream_handle, bool ptsz)
{
	struct CUevent_st *event;
	struct CUstream_st *stream;
	cudaError_t code = cudaSuccess;

	lock();
	event = event_of(handle);
	stream = stream_of(stream_handle, ptsz);
	if (!event || !stream) {
		code = cudaErrorInvalidResourceHandle;
	} else if (stream->legacy && capture_beside(stream)) {
		code = cudaErrorStreamCaptureImplicit;
	} else {
		event->capture = stream->capture;
		if (!stream->capture) {
			stream->end_ns = ready_ns(stream);
			event->time_ns = stream->end_ns;
		}
	}
	return ended(OTHER, code);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
	return record(event, stream, false);
}

cudaError_t cudaEventRecord_ptsz(cudaEvent_t event, cudaStream_t stream)
{
	return record(event, stream, true);
}

/* When an event will have happened. */
static cudaError_t time_of(cudaEvent_t handle, uint64_t *time_ns)
{
	struct CUevent_st *event;
	cudaError_t code = cudaSuccess;

	lock();
	event = event_of(handle);
	if (!event) {
		code = cudaErrorInvalidResourceHandle;
	} else if (event->capture) {
		event->capture->invalid |= !event->capture->ended;
		code = cudaErrorCapturedEvent;
	} else {
		*time_ns = event->time_ns;
	}
	unlock();
	return code;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
	uint64_t call_ns = now_ns(), time_ns;
	cudaError_t code = time_of(event, &time_ns);

	if (!code)
		sleep_until(time_ns);
	return returned(EVENT_SYNCHRONIZE, call_ns, code);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
	uint64_t call_ns = now_ns(), time_ns;
	cudaError_t code = time_of(event, &time_ns);

	if (!code && now_ns() < time_ns)
		code = cudaErrorNotReady;
	return returned(EVENT_QUERY, call_ns, code);
}

/* A stream that waits for what another one captures, captures with it. */
static cudaError_t wait_event(cudaStream_t stream_handle, bool ptsz, cudaEvent_t handle,
			      unsigned int flags)
{
	struct CUevent_st *event;
	struct CUstream_st *stream;
	cudaError_t code = cudaSuccess;

	lock();
	event = event_of(handle);
	stream = stream_of(stream_handle, ptsz);
	if (!event || !stream)
		code = cudaErrorInvalidResourceHandle;
	else if (flags > 1)
		code = cudaErrorInvalidValue;
	else if (stream->legacy && capture_beside(stream))
		code = cudaErrorStreamCaptureImplicit;
	else if (event->capture && (event->capture->ended || stream->legacy))
		code = cudaErrorStreamCaptureIsolation;
	else if (stream->capture && !event->capture)
		code = cudaErrorStreamCaptureIsolation;
	else if (stream->capture && stream->capture != event->capture)
		code = cudaErrorStreamCaptureMerge;
	else if (event->capture)
		stream->capture = event->capture;
	else
		stream->end_ns = later(stream->end_ns, event->time_ns);
	return ended(OTHER, code);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags)
{
	return wait_event(stream, false, event, flags);
}

cudaError_t cudaStreamWaitEvent_ptsz(cudaStream_t stream, cudaEvent_t event, unsigned int flags)
{
	return wait_event(stream, true, event, flags);
}

static cudaError_t create_stream(cudaStream_t *stream, unsigned int flags)
{
	if (!stream || flags > cudaStreamNonBlocking)
		return cudaErrorInvalidValue;
	lock();
	*stream = new_stream(!flags);
	unlock();
	return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
	return create_stream(stream, 0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
	return create_stream(stream, flags);
}

/* What it was given is still done, and waited for by who waits for the device. */
cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
	struct CUstream_st *stream;
	bool known;

	lock();
	stream = stream_of(handle, false);
	known = stream && !stream->legacy && !stream->per_thread;
	if (known)
		stream->destroyed = true;
	return ended(OTHER, known ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

static cudaError_t begin_capture(cudaStream_t handle, bool ptsz, enum cudaStreamCaptureMode mode)
{
	struct CUstream_st *stream;
	cudaError_t code = cudaSuccess;

	lock();
	stream = stream_of(handle, ptsz);
	if ((unsigned int)mode > cudaStreamCaptureModeRelaxed)
		code = cudaErrorInvalidValue;
	else if (!stream)
		code = cudaErrorInvalidResourceHandle;
	else if (stream->legacy)
		code = cudaErrorStreamCaptureUnsupported;
	else if (stream->capture)
		code = cudaErrorIllegalState;
	if (!code) {
		stream->capture = zeroed(sizeof(*stream->capture));
		stream->capture->origin = stream;
		stream->capture->thread = pthread_self();
		stream->capture->mode = mode;
	}
	return ended(STREAM_CAPTURE, code);
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
	return begin_capture(stream, false, mode);
}

cudaError_t cudaStreamBeginCapture_ptsz(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
	return begin_capture(stream, true, mode);
}

static cudaError_t end_capture(cudaStream_t handle, bool ptsz, cudaGraph_t *graph)
{
	struct CUstream_st *stream, *member;
	struct capture *capture;

	lock();
	stream = stream_of(handle, ptsz);
	if (!stream)
		return ended(STREAM_CAPTURE, cudaErrorInvalidResourceHandle);
	if (!graph)
		return ended(STREAM_CAPTURE, cudaErrorInvalidValue);
	capture = stream->capture;
	if (!capture)
		return ended(STREAM_CAPTURE, cudaErrorIllegalState);
	if (capture->origin != stream)
		return ended(STREAM_CAPTURE, cudaErrorStreamCaptureUnmatched);
	if (capture->mode != cudaStreamCaptureModeRelaxed &&
	    !pthread_equal(capture->thread, pthread_self()))
		return ended(STREAM_CAPTURE, cudaErrorStreamCaptureWrongThread);
	for (member = streams; member; member = member->next)
		if (member->capture == capture)
			member->capture = NULL;
	capture->ended = true;
	*graph = NULL;
	if (capture->invalid)
		return ended(STREAM_CAPTURE, cudaErrorStreamCaptureInvalidated);
	*graph = zeroed(sizeof(**graph));
	(*graph)->duration_ns = capture->duration_ns;
	return ended(STREAM_CAPTURE, cudaSuccess);
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
	return end_capture(stream, false, graph);
}

cudaError_t cudaStreamEndCapture_ptsz(cudaStream_t stream, cudaGraph_t *graph)
{
	return end_capture(stream, true, graph);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags)
{
	(void)flags;
	if (!exec || !graph)
		return cudaErrorInvalidValue;
	*exec = zeroed(sizeof(**exec));
	(*exec)->duration_ns = graph->duration_ns;
	return cudaSuccess;
}

static cudaError_t launch_graph(cudaStream_t handle, bool ptsz, cudaGraphExec_t exec)
{
	if (!exec)
		return cudaErrorInvalidValue;
	return launch(handle, ptsz, exec->duration_ns, &graph_launches);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
	return launch_graph(stream, false, exec);
}

cudaError_t cudaGraphLaunch_ptsz(cudaGraphExec_t exec, cudaStream_t stream)
{
	return launch_graph(stream, true, exec);
}

static cudaError_t allocate(void **memory, size_t bytes)
{
	uintptr_t slot = 0;

	lock();
	if (!memory || !bytes)
		return ended(MALLOC, cudaErrorInvalidValue);
	while (slot < SLOTS && allocations[slot])
		slot++;
	if (slot == SLOTS || bytes > (size_t)1 << SLOT_SHIFT ||
	    bytes > limit_bytes - allocated_bytes)
		return ended(MALLOC, cudaErrorMemoryAllocation);
	allocations[slot] = bytes;
	allocated_bytes += bytes;
	*memory = (void *)(MEMORY_BASE + (slot << SLOT_SHIFT));
	return ended(MALLOC, cudaSuccess);
}

cudaError_t cudaMalloc(void **memory, size_t bytes)
{
	return allocate(memory, bytes);
}

cudaError_t cudaMallocManaged(void **memory, size_t bytes, unsigned int flags)
{
	return allocate(flags == 1 || flags == 2 ? memory : NULL, bytes);
}

static cudaError_t allocate_on(void **memory, size_t bytes, cudaStream_t handle, bool ptsz)
{
	struct CUstream_st *stream;

	lock();
	stream = stream_of(handle, ptsz);
	if (!stream)
		return ended(MALLOC, cudaErrorInvalidResourceHandle);
	unlock();
	return allocate(memory, bytes);
}

cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t stream)
{
	return allocate_on(memory, bytes, stream, false);
}

cudaError_t cudaMallocAsync_ptsz(void **memory, size_t bytes, cudaStream_t stream)
{
	return allocate_on(memory, bytes, stream, true);
}

static cudaError_t release(void *memory)
{
	uintptr_t offset = (uintptr_t)memory - MEMORY_BASE, slot = offset >> SLOT_SHIFT;

	lock();
	if (!memory)
		return ended(FREE, cudaSuccess);
	if (slot >= SLOTS || offset != slot << SLOT_SHIFT || !allocations[slot])
		return ended(FREE, cudaErrorInvalidValue);
	allocated_bytes -= allocations[slot];
	allocations[slot] = 0;
	return ended(FREE, cudaSuccess);
}

cudaError_t cudaFree(void *memory)
{
	return release(memory);
}

static cudaError_t release_on(void *memory, cudaStream_t handle, bool ptsz)
{
	struct CUstream_st *stream;

	lock();
	stream = stream_of(handle, ptsz);
	if (!stream)
		return ended(FREE, cudaErrorInvalidResourceHandle);
	unlock();
	return release(memory);
}

cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream)
{
	return release_on(memory, stream, false);
}

cudaError_t cudaFreeAsync_ptsz(void *memory, cudaStream_t stream)
{
	return release_on(memory, stream, true);
}

cudaError_t cudaSetDevice(int device)
{
	bool known = device >= 0 && device < DEVICES;

	if (known)
		current_device = device;
	lock();
	return ended(SET_DEVICE, known ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int *device)
{
	if (!device)
		return cudaErrorInvalidValue;
	*device = current_device;
	return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
	if (!count)
		return cudaErrorInvalidValue;
	*count = DEVICES;
	return cudaSuccess;
}

void cudaStandInSetCopyDuration(uint64_t duration_ns)
{
	lock();
	copy_duration_ns = duration_ns;
	unlock();
}

void cudaStandInSetMemoryLimit(size_t bytes)
{
	lock();
	limit_bytes = bytes;
	unlock();
}

uint64_t cudaStandInNow(void)
{
	return now_ns();
}

void cudaStandInSleepUntil(uint64_t time_ns)
{
	sleep_until(time_ns);
}

static int by_start(const void *a, const void *b)
{
	const struct interval *left = a, *right = b;

	return (left->start_ns > right->start_ns) - (left->start_ns < right->start_ns);
}

static uint64_t overlap_ns(struct interval busy, uint64_t from_ns, uint64_t to_ns)
{
	uint64_t start = later(busy.start_ns, from_ns);
	uint64_t end = busy.end_ns < to_ns ? busy.end_ns : to_ns;

	return end > start ? end - start : 0;
}

/* Sorts the busy intervals and joins those that touch. */
static void unite(struct device *device)
{
	size_t i, kept = 0;

	qsort(device->busy, device->busy_count, sizeof(device->busy[0]), by_start);
	for (i = 1; i < device->busy_count; i++) {
		struct interval *last = &device->busy[kept], next = device->busy[i];

		if (next.start_ns <= last->end_ns)
			last->end_ns = later(last->end_ns, next.end_ns);
		else
			device->busy[++kept] = next;
	}
	if (device->busy_count)
		device->busy_count = kept + 1;
}

static void report_device(int number, uint64_t report_ns)
{
	struct device *device = &devices[number];
	uint64_t first = device->first_enqueue_ns, last = device->last_enqueue_ns;
	uint64_t busy_between = 0, busy_total = 0, busy_until = first;
	uint64_t gaps = 0, gap_sum = 0, gap_longest = 0, first_seconds = 0;
	size_t i;

	unite(device);
	for (i = 0; i < device->busy_count; i++) {
		struct interval busy = device->busy[i];

		busy_between += overlap_ns(busy, first, last);
		busy_total += overlap_ns(busy, first, report_ns);
		if (busy.start_ns > busy_until) {
			uint64_t gap = busy.start_ns - busy_until;

			gaps++;
			gap_sum += gap;
			gap_longest = later(gap_longest, gap);
			first_seconds += gap < NS_PER_S ? gap : NS_PER_S;
		}
		busy_until = busy.end_ns;
	}
	printf("{\"device\":%d,\"first_enqueue_ns\":%lu,\"last_enqueue_ns\":%lu,"
	       "\"busy_until_ns\":%lu,\"busy_ns\":%lu,\"idle_between_ns\":%lu,\"idle_total_ns\":%"
	       "lu,"
	       "\"gaps\":%lu,\"gaps_ns\":%lu,\"longest_gap_ns\":%lu,\"first_seconds_ns\":%lu}",
	       number, first, last, busy_until, busy_total, last - first - busy_between,
	       report_ns - first - busy_total, gaps, gap_sum, gap_longest, first_seconds);
}

static void report_errors(void)
{
	const char *between_calls = "";
	int call, code;

	for (call = 0; call < CALLS; call++) {
		const char *between_codes = "";

		for (code = 0; code < CODES; code++) {
			if (!errors[call][code])
				continue;
			if (!*between_codes)
				printf("%s\"%s\":{", between_calls, call_names[call]);
			printf("%s\"%d\":%lu", between_codes, code, errors[call][code]);
			between_codes = between_calls = ",";
		}
		if (*between_codes)
			printf("}");
	}
}

void cudaStandInReport(const char *scenario, uint64_t elapsed_ns)
{
	const char *between = "";
	uint64_t report_ns;
	int i;

	lock();
	report_ns = now_ns();
	printf("{\"scenario\":\"%s\",\"elapsed_ns\":%lu,\"report_ns\":%lu,\"devices\":[", scenario,
	       elapsed_ns, report_ns);
	for (i = 0; i < DEVICES; i++) {
		if (!devices[i].used)
			continue;
		printf("%s", between);
		report_device(i, report_ns);
		between = ",";
	}
	printf("],\"enqueues\":%lu,\"launches\":{\"kernel\":%lu,\"graph\":%lu},\"syncs\":{",
	       enqueues, kernel_launches, graph_launches);
	for (i = 0; i < SYNC_CALLS; i++)
		printf("%s\"%s\":{\"count\":%lu,\"waited\":%lu,\"wait_ns\":%lu}", i ? "," : "",
		       call_names[i], syncs[i].count, syncs[i].waited, syncs[i].wait_ns);
	printf("},\"memcpy_bytes\":{");
	for (i = 0; i < 5; i++)
		printf("%s\"%s\":%lu", i ? "," : "", kind_names[i], memcpy_bytes[i]);
	printf("},\"errors\":{");
	report_errors();
	printf("},\"allocated_bytes\":%lu}\n", allocated_bytes);
	fflush(stdout);
	unlock();
}
