/*
 * Programs that use a GPU in typical ways, each a scenario by name:
 *
 *	workload [--wait] [--hold] SCENARIO [NUMBER [RATE]]
 *
 * With --wait it says `ready` and begins after a line on standard input. At its end it prints the
 *truth about what it did, and with --hold ends only after another line. An end of input is as good
 *as a line.
 */
#define _GNU_SOURCE
#include "cudart.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define US 1000ULL
#define MS 1000000ULL
#define S 1000000000ULL
#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define THREADS 64

/* What tells a CUDA program from others: where the compiler puts the code for the GPU. */
__attribute__((section(".nv_fatbin"), used, aligned(8))) static const char fatbin[] = "no code";

static char host_memory[1];
static const char kernel[1];
static unsigned long number, rate;

static void check(cudaError_t got, cudaError_t expected, const char *call, int line)
{
	if (got == expected)
		return;
	fprintf(stderr, "workload.c:%d: %s: %d instead of %d\n", line, call, got, expected);
	exit(1);
}

#define OK(call) check(call, cudaSuccess, #call, __LINE__)
#define FAILS(code, call) check(call, code, #call, __LINE__)
#define HOLDS(condition) check((condition) ? cudaSuccess : 1, cudaSuccess, #condition, __LINE__)

static void pause_ns(uint64_t duration_ns)
{
	cudaStandInSleepUntil(cudaStandInNow() + duration_ns);
}

/* The host's own work between two rounds: 5 to 50 ms. */
static void gap(int round)
{
	static const uint64_t gaps_ms[] = { 5, 20, 50, 10, 30 };

	pause_ns(gaps_ms[round % 5] * MS);
}

static void launch(cudaStream_t stream, uint64_t duration_ns)
{
	dim3 one = { 1, 1, 1 };
	void *args[] = { &duration_ns };

	OK(cudaLaunchKernel(kernel, one, one, args, 0, stream));
}

static void launch_per_thread(uint64_t duration_ns)
{
	dim3 one = { 1, 1, 1 };
	void *args[] = { &duration_ns };

	OK(cudaLaunchKernel_ptsz(kernel, one, one, args, 0, NULL));
}

static void launch_extended(cudaStream_t stream, uint64_t duration_ns)
{
	cudaLaunchConfig_t config = { .gridDim = { 1, 1, 1 }, .blockDim = { 1, 1, 1 } };
	void *args[] = { &duration_ns };

	config.stream = stream;
	OK(cudaLaunchKernelExC(&config, kernel, args));
}

static cudaStream_t new_stream(void)
{
	cudaStream_t stream;

	OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
	return stream;
}

static cudaEvent_t new_event(void)
{
	cudaEvent_t event;

	OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
	return event;
}

static void *device_memory(size_t bytes)
{
	void *memory;

	OK(cudaMalloc(&memory, bytes));
	return memory;
}

/* Work, wait for it by one of the three ways, think. */
static void synchronous(void)
{
	cudaEvent_t event = new_event();
	int round;

	for (round = 0; round < 40; round++) {
		launch(NULL, 10 * MS);
		switch (round % 3) {
		case 0:
			OK(cudaDeviceSynchronize());
			break;
		case 1:
			OK(cudaStreamSynchronize(NULL));
			break;
		default:
			OK(cudaEventRecord(event, NULL));
			OK(cudaEventSynchronize(event));
		}
		gap(round);
	}
}

/* Never idle: some kernels are always queued behind the one that is waited for, at the end as well.
 */
static void *pipeline(void *unused)
{
	enum { ROUNDS = 60, AHEAD = 5 };
	cudaStream_t stream = new_stream();
	cudaEvent_t done[ROUNDS];
	int round;

	for (round = 0; round < ROUNDS; round++) {
		launch(stream, 20 * MS);
		done[round] = new_event();
		OK(cudaEventRecord(done[round], stream));
		if (round < AHEAD)
			continue;
		if (round % 2)
			OK(cudaEventSynchronize(done[round - AHEAD]));
		while (cudaEventQuery(done[round - AHEAD]) == cudaErrorNotReady)
			pause_ns(MS);
	}
	launch(stream, 500 * MS);
	return unused;
}

/* As many threads as asked for, each in the same way. */
static void in_threads(void *(*work)(void *))
{
	pthread_t threads[THREADS];
	uintptr_t i;

	for (i = 0; i < number; i++)
		if (pthread_create(&threads[i], NULL, work, (void *)i))
			exit(1);
	for (i = 0; i < number; i++)
		pthread_join(threads[i], NULL);
}

static void pipelined(void)
{
	in_threads(pipeline);
}

/* Copies of each kind; the last of each round waits for all that came before. */
static void blocking_copies(void)
{
	void *a = device_memory(MIB), *b = device_memory(MIB);
	int round;

	cudaStandInSetCopyDuration(8 * MS);
	for (round = 0; round < 20; round++) {
		OK(cudaMemcpy(a, host_memory, MIB, cudaMemcpyHostToDevice));
		OK(cudaMemset(b, 0, 64 * KIB));
		launch(NULL, 8 * MS);
		OK(cudaMemcpy(b, a, 256 * KIB, cudaMemcpyDeviceToDevice));
		OK(cudaMemcpy(host_memory, host_memory, 3 * KIB, cudaMemcpyHostToHost));
		OK(cudaMemcpy(b, host_memory, 5 * KIB, cudaMemcpyDefault));
		OK(cudaMemcpy(host_memory, a, 512 * KIB, cudaMemcpyDeviceToHost));
		gap(round);
	}
}

/* Asynchronous copies to and fro around a kernel. */
static void async_copies(void)
{
	cudaStream_t stream = new_stream();
	void *memory = device_memory(MIB);
	int round;

	cudaStandInSetCopyDuration(4 * MS);
	for (round = 0; round < 30; round++) {
		OK(cudaMemcpyAsync(memory, host_memory, MIB, cudaMemcpyHostToDevice, stream));
		OK(cudaMemsetAsync(memory, 0, KIB, stream));
		launch_extended(stream, 4 * MS);
		OK(cudaMemcpyAsync(host_memory, memory, KIB, cudaMemcpyDeviceToHost, stream));
		OK(cudaStreamSynchronize(stream));
		gap(round);
	}
}

static pthread_barrier_t barrier;

/*
 * Rounds in step: no thread goes on before all have waited for their own. Threads with an odd
 * number use their own default stream.
 */
static void *thread_rounds(void *argument)
{
	uintptr_t index = (uintptr_t)argument;
	uint64_t duration_ns = (6 + 2 * index) * MS;
	cudaStream_t stream = new_stream();
	int round;

	for (round = 0; round < 30; round++) {
		if (index % 2) {
			launch_per_thread(duration_ns);
			OK(cudaStreamSynchronize_ptsz(NULL));
		} else {
			launch(stream, duration_ns);
			OK(cudaStreamSynchronize(stream));
		}
		pthread_barrier_wait(&barrier);
		gap(round);
	}
	return NULL;
}

static void threads(void)
{
	pthread_barrier_init(&barrier, NULL, (unsigned int)number);
	in_threads(thread_rounds);
}

/* Two streams at work at once, waited for in either order. */
static void overlap(void)
{
	cudaStream_t a = new_stream(), b = new_stream();
	int round;

	for (round = 0; round < 30; round++) {
		launch(a, 10 * MS);
		launch(b, 20 * MS);
		OK(cudaStreamSynchronize(round % 2 ? a : b));
		OK(cudaStreamSynchronize(round % 2 ? b : a));
		gap(round);
	}
}

/* Never idle: each of two streams is given more while the other still works. */
static void overlap_busy(void)
{
	cudaStream_t streams[] = { new_stream(), new_stream() };
	int round;

	launch(streams[0], 20 * MS);
	for (round = 1; round < 60; round++) {
		launch(streams[round % 2], 40 * MS);
		OK(cudaStreamSynchronize(streams[(round + 1) % 2]));
	}
	launch(streams[0], 500 * MS);
}

/* One stream brings data, another works on it, and only that one is ever waited for. */
static void prefetch(void)
{
	cudaStream_t bring = new_stream(), compute = new_stream();
	cudaEvent_t brought = new_event();
	void *memory = device_memory(MIB);
	int round;

	cudaStandInSetCopyDuration(6 * MS);
	for (round = 0; round < 30; round++) {
		OK(cudaMemcpyAsync(memory, host_memory, MIB, cudaMemcpyHostToDevice, bring));
		OK(cudaEventRecord(brought, bring));
		OK(cudaStreamWaitEvent(compute, brought, 0));
		launch(compute, 10 * MS);
		OK(cudaStreamSynchronize(compute));
		gap(round);
	}
}

/* The same, one batch ahead: what is brought for the next round is never waited for in time. */
static void prefetch_ahead(void)
{
	cudaStream_t bring = new_stream(), compute = new_stream();
	cudaEvent_t brought = new_event();
	void *memory = device_memory(MIB);
	int round;

	cudaStandInSetCopyDuration(6 * MS);
	OK(cudaMemcpyAsync(memory, host_memory, MIB, cudaMemcpyHostToDevice, bring));
	for (round = 0; round < 30; round++) {
		OK(cudaEventRecord(brought, bring));
		OK(cudaStreamWaitEvent(compute, brought, 0));
		OK(cudaMemcpyAsync(memory, host_memory, MIB, cudaMemcpyHostToDevice, bring));
		launch(compute, 10 * MS);
		OK(cudaStreamSynchronize(compute));
		gap(round);
	}
}

/* Waiting for one device says nothing about the other, though their default streams have the same
 * handle. */
static void two_devices(void)
{
	int round, step;

	for (round = 0; round < 10; round++) {
		OK(cudaSetDevice(1));
		launch(NULL, 80 * MS);
		OK(cudaSetDevice(0));
		for (step = 0; step < 3; step++) {
			launch(NULL, 10 * MS);
			OK(cudaDeviceSynchronize());
			pause_ns(10 * MS);
		}
		OK(cudaSetDevice(1));
		OK(cudaDeviceSynchronize());
		gap(round);
	}
}

/* A stream of one device is waited for by a thread that has since chosen the other. */
static void foreign_sync(void)
{
	cudaStream_t one;
	int round;

	OK(cudaSetDevice(1));
	one = new_stream();
	for (round = 0; round < 20; round++) {
		OK(cudaSetDevice(1));
		launch(one, 20 * MS);
		OK(cudaSetDevice(0));
		launch(NULL, 5 * MS);
		OK(cudaStreamSynchronize(NULL));
		OK(cudaStreamSynchronize(one));
		gap(round);
	}
}

/* Nobody waits within a call. */
static void polling(void)
{
	cudaStream_t stream = new_stream();
	int round;

	for (round = 0; round < 30; round++) {
		launch(stream, 10 * MS);
		while (cudaStreamQuery(stream) == cudaErrorNotReady)
			pause_ns(200 * US);
		gap(round);
	}
}

/* Two streams captured together: what they would have done is done later, at once, by each launch
 * of the graph. */
static void graph(void)
{
	cudaStream_t a = new_stream(), b = new_stream();
	cudaEvent_t forked = new_event(), joined = new_event();
	void *memory = device_memory(MIB);
	cudaGraphExec_t exec;
	cudaGraph_t captured;
	int round;

	cudaStandInSetCopyDuration(2 * MS);
	for (round = 0; round < 3; round++)
		launch(a, 5 * MS);
	OK(cudaStreamSynchronize(a));
	OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
	launch(a, 5 * MS);
	OK(cudaEventRecord(forked, a));
	OK(cudaStreamWaitEvent(b, forked, 0));
	launch(b, 3 * MS);
	OK(cudaMemcpyAsync(memory, host_memory, MIB, cudaMemcpyHostToDevice, b));
	OK(cudaMemsetAsync(memory, 0, KIB, b));
	OK(cudaEventRecord(joined, b));
	OK(cudaStreamWaitEvent(a, joined, 0));
	launch_extended(a, 3 * MS);
	pause_ns(20 * MS);
	OK(cudaStreamEndCapture(a, &captured));
	OK(cudaGraphInstantiate(&exec, captured, 0));
	for (round = 0; round < 30; round++) {
		OK(cudaGraphLaunch(exec, round % 2 ? a : b));
		OK(cudaStreamSynchronize(round % 2 ? a : b));
		gap(round);
	}
}

/* Work ends and nobody asks. */
static void silent_drain(void)
{
	int round;

	for (round = 0; round < 25; round++) {
		launch(NULL, 10 * MS);
		pause_ns(50 * MS);
	}
}

/* The copy waits for the kernel of a stream that takes turns with the default one; who sees only
 * calls does not know. */
static void legacy_copy(void)
{
	cudaStream_t stream;
	void *memory = device_memory(KIB);
	int round;

	cudaStandInSetCopyDuration(2 * MS);
	OK(cudaStreamCreate(&stream));
	for (round = 0; round < 20; round++) {
		launch(stream, 10 * MS);
		OK(cudaMemcpy(host_memory, memory, KIB, cudaMemcpyDeviceToHost));
		gap(round);
	}
}

static void sparse_server(void)
{
	uint64_t start_ns = cudaStandInNow();
	int request;

	for (request = 0; request < 3; request++) {
		cudaStandInSleepUntil(start_ns + (uint64_t)request * 1600 * MS);
		launch(NULL, 20 * MS);
		OK(cudaDeviceSynchronize());
	}
}

/* Each failing call another number of times, so that no two are mistaken for each other. */
static void errors(void)
{
	cudaStream_t stream = new_stream(), gone_stream = new_stream();
	cudaEvent_t gone_event = new_event();
	cudaGraph_t captured;
	void *memory;
	int i;

	OK(cudaStreamDestroy(gone_stream));
	OK(cudaEventDestroy(gone_event));
	cudaStandInSetMemoryLimit(MIB);
	launch(stream, 50 * MS);
	FAILS(cudaErrorNotReady, cudaStreamQuery(stream));
	OK(cudaStreamSynchronize(stream));
	for (i = 0; i < 2; i++)
		FAILS(cudaErrorMemoryAllocation, cudaMalloc(&memory, 2 * MIB));
	for (i = 0; i < 3; i++)
		FAILS(cudaErrorInvalidDevice, cudaSetDevice(7));
	for (i = 0; i < 4; i++)
		FAILS(cudaErrorInvalidValue, cudaFree(host_memory));
	for (i = 0; i < 5; i++)
		FAILS(cudaErrorInvalidResourceHandle, cudaStreamSynchronize(gone_stream));
	for (i = 0; i < 6; i++)
		FAILS(cudaErrorInvalidResourceHandle, cudaStreamQuery(gone_stream));
	for (i = 0; i < 7; i++)
		FAILS(cudaErrorInvalidResourceHandle, cudaEventSynchronize(gone_event));
	for (i = 0; i < 8; i++)
		FAILS(cudaErrorInvalidResourceHandle, cudaEventQuery(gone_event));
	for (i = 0; i < 9; i++)
		FAILS(cudaErrorInvalidMemcpyDirection,
		      cudaMemcpy(host_memory, host_memory, KIB, (enum cudaMemcpyKind)9));
	for (i = 0; i < 10; i++)
		FAILS(cudaErrorStreamCaptureUnsupported,
		      cudaStreamBeginCapture(NULL, cudaStreamCaptureModeGlobal));
	for (i = 0; i < 11; i++)
		FAILS(cudaErrorIllegalState, cudaStreamEndCapture(stream, &captured));
	FAILS(cudaErrorInvalidValue, cudaMallocManaged(&memory, KIB, 9));
	FAILS(cudaErrorInvalidResourceHandle, cudaMallocAsync(&memory, KIB, gone_stream));
	FAILS(cudaErrorInvalidResourceHandle, cudaFreeAsync(NULL, gone_stream));
	OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
	FAILS(cudaErrorStreamCaptureUnsupported, cudaDeviceSynchronize());
	FAILS(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(stream, &captured));
	OK(cudaDeviceSynchronize());
}

/* A failed wait proves nothing: though the work has long ended, no gap may begin. */
static void failed_sync(void)
{
	cudaStream_t stream = new_stream(), gone_stream = new_stream();
	int round;

	OK(cudaStreamDestroy(gone_stream));
	for (round = 0; round < 20; round++) {
		launch(stream, 10 * MS);
		pause_ns(30 * MS);
		FAILS(cudaErrorInvalidResourceHandle, cudaStreamSynchronize(gone_stream));
		pause_ns(30 * MS);
	}
}

/* Ends while it holds memory, which is then the host's to take back. */
static void memory(void)
{
	void *held[8];
	int i;

	for (i = 0; i < 100; i++) {
		void *brief = device_memory(MIB);

		OK(cudaFree(brief));
	}
	OK(cudaFree(NULL));
	for (i = 0; i < 5; i++)
		held[i] = device_memory(((size_t)i + 1) * 10 * MIB);
	OK(cudaMallocManaged(&held[5], 7 * MIB + 1, cudaMemAttachGlobal));
	OK(cudaMallocAsync(&held[6], 3 * MIB + 2, NULL));
	OK(cudaMallocAsync_ptsz(&held[7], 4 * MIB, NULL));
	OK(cudaFreeAsync(held[7], NULL));
	OK(cudaFree(held[1]));
	/* The same address as before with another size, likely. */
	held[1] = device_memory(11 * KIB);
	launch(NULL, 5 * MS);
	OK(cudaDeviceSynchronize());
}

/* Over in less than 100 ms. */
static void brief(void)
{
	int round;

	for (round = 0; round < 35; round++) {
		launch(NULL, MS);
		OK(cudaDeviceSynchronize());
		pause_ns(MS);
	}
}

static void *semantics_of_a_thread(void *other_stream)
{
	int device;

	OK(cudaGetDevice(&device));
	HOLDS(device == 0);
	/* Its own default stream is empty, whatever others have been given. */
	OK(cudaStreamQuery_ptsz(NULL));
	OK(cudaStreamQuery(cudaStreamPerThread));
	FAILS(cudaErrorNotReady, cudaStreamQuery(other_stream));
	launch_per_thread(50 * MS);
	FAILS(cudaErrorNotReady, cudaStreamQuery(cudaStreamPerThread));
	return NULL;
}

static void semantics_of_capture(void)
{
	cudaStream_t a = new_stream(), b = new_stream(), c = new_stream(), blocking;
	cudaEvent_t event = new_event(), outside = new_event();
	cudaGraph_t captured;
	cudaGraphExec_t exec;
	void *memory = device_memory(KIB);
	uint64_t start_ns;

	OK(cudaStreamCreate(&blocking));
	OK(cudaEventRecord(outside, c));
	OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
	FAILS(cudaErrorIllegalState, cudaStreamBeginCapture(a, cudaStreamCaptureModeGlobal));
	launch(a, 30 * MS);
	OK(cudaEventRecord(event, a));
	OK(cudaStreamWaitEvent(b, event, 0));
	launch(b, 20 * MS);
	OK(cudaMemcpyAsync(memory, host_memory, 160, cudaMemcpyHostToDevice, b));
	FAILS(cudaErrorStreamCaptureIsolation, cudaStreamWaitEvent(a, outside, 0));
	FAILS(cudaErrorStreamCaptureUnmatched, cudaStreamEndCapture(b, &captured));
	OK(cudaEventRecord(event, b));
	OK(cudaStreamWaitEvent(a, event, 0));
	OK(cudaStreamEndCapture(a, &captured));
	/* Both are free again, and nothing was done. */
	OK(cudaStreamQuery(a));
	OK(cudaStreamQuery(b));
	FAILS(cudaErrorCapturedEvent, cudaEventSynchronize(event));
	FAILS(cudaErrorCapturedEvent, cudaEventQuery(event));
	FAILS(cudaErrorStreamCaptureIsolation, cudaStreamWaitEvent(c, event, 0));
	OK(cudaGraphInstantiate(&exec, captured, 0));
	start_ns = cudaStandInNow();
	OK(cudaGraphLaunch(exec, c));
	HOLDS(cudaStandInNow() - start_ns < 50 * MS);
	OK(cudaStreamSynchronize(c));
	HOLDS(cudaStandInNow() - start_ns >= 50 * MS + 10);

	/* The legacy stream may not come between what takes turns with it. */
	OK(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeThreadLocal));
	FAILS(cudaErrorStreamCaptureImplicit,
	      cudaMemcpy(memory, host_memory, 1, cudaMemcpyHostToDevice));
	FAILS(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(blocking, &captured));
	HOLDS(!captured);
	OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeRelaxed));
	FAILS(cudaErrorStreamCaptureUnsupported, cudaStreamQuery(a));
	FAILS(cudaErrorStreamCaptureInvalidated, cudaStreamEndCapture(a, &captured));
}

static uint64_t time_of_copy(void *to, const void *from, enum cudaMemcpyKind kind)
{
	uint64_t start_ns = cudaStandInNow();

	OK(cudaMemcpy(to, from, KIB, kind));
	return cudaStandInNow() - start_ns;
}

/* What the stand-in itself promises of copies, streams, events and threads. */
static void semantics(void)
{
	cudaStream_t free_stream = new_stream(), other = new_stream(), turns, gone;
	cudaEvent_t event = new_event();
	dim3 one = { 1, 1, 1 };
	pthread_t thread;
	void *memory, *same;
	uint64_t start_ns, took_ns;
	int device;

	OK(cudaGetDeviceCount(&device));
	HOLDS(device == 2);
	memory = device_memory(MIB);
	OK(cudaFree(memory));
	same = device_memory(2 * MIB);
	HOLDS(same == memory);
	FAILS(cudaErrorInvalidValue, cudaFree((char *)memory + 1));

	cudaStandInSetCopyDuration(100 * MS);
	took_ns = time_of_copy(memory, host_memory, cudaMemcpyHostToDevice);
	HOLDS(took_ns >= 50 * MS && took_ns < 100 * MS);
	FAILS(cudaErrorNotReady, cudaStreamQuery(NULL));
	OK(cudaDeviceSynchronize());
	HOLDS(time_of_copy(memory, memory, cudaMemcpyDeviceToDevice) < 50 * MS);
	FAILS(cudaErrorNotReady, cudaStreamQuery(cudaStreamLegacy));
	HOLDS(time_of_copy(host_memory, memory, cudaMemcpyDeviceToHost) >= 150 * MS);
	OK(cudaStreamQuery(NULL));
	HOLDS(time_of_copy(host_memory, memory, cudaMemcpyDefault) >= 100 * MS);
	start_ns = cudaStandInNow();
	OK(cudaMemcpyAsync(host_memory, memory, KIB, cudaMemcpyDeviceToHost, other));
	OK(cudaMemset(memory, 1, KIB));
	HOLDS(cudaStandInNow() - start_ns < 50 * MS);
	OK(cudaDeviceSynchronize());
	cudaStandInSetCopyDuration(0);
	FAILS(cudaErrorInvalidValue, cudaMemcpy(NULL, memory, 1, cudaMemcpyDeviceToHost));
	FAILS(cudaErrorInvalidValue, cudaMemset(host_memory, 0, 1));

	/* The legacy stream takes turns with blocking streams, in both directions. */
	OK(cudaStreamCreate(&turns));
	start_ns = cudaStandInNow();
	launch(turns, 50 * MS);
	launch(NULL, 50 * MS);
	launch(turns, 50 * MS);
	launch(free_stream, 50 * MS);
	OK(cudaStreamSynchronize(free_stream));
	FAILS(cudaErrorNotReady, cudaStreamQuery(NULL));
	OK(cudaStreamSynchronize(NULL));
	FAILS(cudaErrorNotReady, cudaStreamQuery(turns));
	OK(cudaStreamSynchronize(turns));
	HOLDS(cudaStandInNow() - start_ns >= 150 * MS);

	/* Events: never recorded, between two kernels, waited for by another stream. */
	OK(cudaEventSynchronize(event));
	OK(cudaEventQuery(event));
	launch(free_stream, 50 * MS);
	OK(cudaEventRecord(event, free_stream));
	launch(free_stream, 300 * MS);
	OK(cudaStreamWaitEvent(other, event, 0));
	launch(other, 100 * MS);
	FAILS(cudaErrorNotReady, cudaEventQuery(event));
	OK(cudaEventSynchronize(event));
	OK(cudaEventQuery(event));
	FAILS(cudaErrorNotReady, cudaStreamQuery(other));
	OK(cudaStreamSynchronize(other));
	FAILS(cudaErrorNotReady, cudaStreamQuery(free_stream));

	/* What a destroyed stream was given is still done. */
	OK(cudaStreamCreate(&gone));
	start_ns = cudaStandInNow();
	launch(gone, 300 * MS);
	OK(cudaStreamDestroy(gone));
	FAILS(cudaErrorInvalidResourceHandle, cudaStreamDestroy(gone));
	OK(cudaDeviceSynchronize());
	HOLDS(cudaStandInNow() - start_ns >= 300 * MS);

	/* The other device is neither waited for nor given another's streams; each thread begins
	 * with the first one. */
	launch(other, 200 * MS);
	OK(cudaSetDevice(1));
	FAILS(cudaErrorInvalidDevice, cudaSetDevice(-1));
	OK(cudaDeviceSynchronize());
	FAILS(cudaErrorNotReady, cudaStreamQuery(other));
	FAILS(cudaErrorInvalidResourceHandle, cudaLaunchKernel(kernel, one, one, NULL, 0, other));
	if (pthread_create(&thread, NULL, semantics_of_a_thread, other))
		exit(1);
	pthread_join(thread, NULL);
	OK(cudaGetDevice(&device));
	HOLDS(device == 1);
	OK(cudaSetDevice(0));
	OK(cudaDeviceSynchronize());
	semantics_of_capture();
}

/* For measuring: calls as fast as they go, or at a rate in calls a second. */
static void paced(void (*call)(void))
{
	uint64_t start_ns = cudaStandInNow();
	unsigned long i;

	for (i = 0; i < number; i++) {
		if (rate)
			while (cudaStandInNow() < start_ns + i * S / rate)
				;
		call();
	}
}

static void one_launch(void)
{
	launch(NULL, 0);
}

static void one_synchronize(void)
{
	OK(cudaStreamSynchronize(NULL));
}

static void one_device_synchronize(void)
{
	OK(cudaDeviceSynchronize());
}

static void loop(void)
{
	paced(one_launch);
}

static void loop_sync(void)
{
	paced(one_synchronize);
}

static void loop_device_sync(void)
{
	paced(one_device_synchronize);
}

static void one_failure(void)
{
	FAILS(cudaErrorInvalidDevice, cudaSetDevice(7));
}

static void failures(void)
{
	paced(one_failure);
}

static const struct scenario {
	const char *name;
	void (*run)(void);
	unsigned long number;
} scenarios[] = {
	{ "synchronous", synchronous, 0 },
	{ "pipelined", pipelined, 1 },
	{ "blocking_copies", blocking_copies, 0 },
	{ "async_copies", async_copies, 0 },
	{ "threads", threads, 2 },
	{ "overlap", overlap, 0 },
	{ "overlap_busy", overlap_busy, 0 },
	{ "prefetch", prefetch, 0 },
	{ "prefetch_ahead", prefetch_ahead, 0 },
	{ "two_devices", two_devices, 0 },
	{ "foreign_sync", foreign_sync, 0 },
	{ "polling", polling, 0 },
	{ "graph", graph, 0 },
	{ "silent_drain", silent_drain, 0 },
	{ "legacy_copy", legacy_copy, 0 },
	{ "sparse_server", sparse_server, 0 },
	{ "errors", errors, 0 },
	{ "failed_sync", failed_sync, 0 },
	{ "memory", memory, 0 },
	{ "short", brief, 0 },
	{ "semantics", semantics, 0 },
	{ "loop", loop, 100000 },
	{ "loop_sync", loop_sync, 100000 },
	{ "loop_device_sync", loop_device_sync, 100000 },
	{ "failures", failures, 100000 },
};

static void read_line(void)
{
	int c;

	do
		c = getchar();
	while (c != '\n' && c != EOF);
}

static int usage(void)
{
	size_t i;

	fprintf(stderr, "workload [--wait] [--hold] SCENARIO [NUMBER [RATE]], scenarios:");
	for (i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
		fprintf(stderr, " %s", scenarios[i].name);
	fprintf(stderr, "\n");
	return 2;
}

int main(int count, char **arguments)
{
	const struct scenario *scenario = NULL;
	bool wait = false, hold = false;
	uint64_t start_ns;
	size_t i;

	for (arguments++, count--; count && arguments[0][0] == '-'; arguments++, count--) {
		if (!strcmp(arguments[0], "--wait"))
			wait = true;
		else if (!strcmp(arguments[0], "--hold"))
			hold = true;
		else
			return usage();
	}
	for (i = 0; count && i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
		if (!strcmp(arguments[0], scenarios[i].name))
			scenario = &scenarios[i];
	if (!scenario || count > 3)
		return usage();
	number = count > 1 ? strtoul(arguments[1], NULL, 10) : scenario->number;
	rate = count > 2 ? strtoul(arguments[2], NULL, 10) : 0;
	if ((scenario->run == threads || scenario->run == pipelined) &&
	    (number < 1 || number > THREADS))
		return usage();

	if (wait) {
		printf("ready\n");
		fflush(stdout);
		read_line();
	}
	start_ns = cudaStandInNow();
	scenario->run();
	cudaStandInReport(scenario->name, cudaStandInNow() - start_ns);
	if (hold)
		read_line();
	return 0;
}
