/*
 * Calls of the stand-in runtime, timed in the processor's time of their thread. Each line of input
 * is an order:
 *
 *	PATTERN ROUNDS [WORK]
 *
 * and is answered by the nanoseconds that all rounds together took. Between two rounds the program
 * has WORK to do.
 */
#define _GNU_SOURCE
#include "cudart.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STREAMS 30

static const char kernel[1];
static cudaStream_t streams[STREAMS];
static cudaEvent_t event;

static void check(cudaError_t got, const char *call)
{
	if (got == cudaSuccess)
		return;
	fprintf(stderr, "%s: %d\n", call, got);
	exit(1);
}

#define OK(call) check(call, #call)

static void launch(cudaStream_t stream)
{
	dim3 one = { 1, 1, 1 };

	OK(cudaLaunchKernel(kernel, one, one, NULL, 0, stream));
}

static void launch_stream(void)
{
	launch(streams[0]);
}

static void launch_default(void)
{
	launch(NULL);
}

static void sync_stream(void)
{
	OK(cudaStreamSynchronize(streams[0]));
}

static void query_stream(void)
{
	OK(cudaStreamQuery(streams[0]));
}

static void sync_device(void)
{
	OK(cudaDeviceSynchronize());
}

/* From here on each ends a gap and begins the next. */
static void pair_stream(void)
{
	launch(streams[0]);
	OK(cudaStreamSynchronize(streams[0]));
}

static void pair_device(void)
{
	launch(streams[0]);
	OK(cudaDeviceSynchronize());
}

static void pair_event(void)
{
	launch(streams[0]);
	OK(cudaEventRecord(event, streams[0]));
	OK(cudaEventSynchronize(event));
}

static void four_device(void)
{
	unsigned int i;

	for (i = 0; i < 4; i++)
		launch(streams[i]);
	OK(cudaDeviceSynchronize());
}

/* One stream prepares what another works on. */
static void prefetch(void)
{
	launch(streams[1]);
	OK(cudaEventRecord(event, streams[1]));
	OK(cudaStreamWaitEvent(streams[0], event, 0));
	launch(streams[0]);
	OK(cudaStreamSynchronize(streams[0]));
}

static void launch_turns(void)
{
	static unsigned int turn;

	launch(streams[turn++ % STREAMS]);
}

static const struct {
	const char *name;
	void (*round)(void);
} patterns[] = {
	{ "launch_stream", launch_stream }, { "launch_default", launch_default },
	{ "sync_stream", sync_stream },	    { "query_stream", query_stream },
	{ "sync_device", sync_device },	    { "pair_stream", pair_stream },
	{ "pair_device", pair_device },	    { "pair_event", pair_event },
	{ "four_device", four_device },	    { "prefetch", prefetch },
	{ "launch_turns", launch_turns },
};

static int64_t cpu_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(void)
{
	unsigned long rounds, work, i;
	volatile unsigned long busy;
	char line[256], name[32];

	for (i = 0; i < STREAMS; i++)
		OK(cudaStreamCreateWithFlags(&streams[i], cudaStreamNonBlocking));
	OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
	while (fgets(line, sizeof(line), stdin)) {
		void (*round)(void) = NULL;
		int64_t start_ns;

		work = 0;
		if (sscanf(line, "%31s %lu %lu", name, &rounds, &work) < 2)
			return 2;
		for (i = 0; i < sizeof(patterns) / sizeof(patterns[0]); i++)
			if (!strcmp(patterns[i].name, name))
				round = patterns[i].round;
		if (!round)
			return 2;
		start_ns = cpu_ns();
		for (i = 0; i < rounds; i++) {
			for (busy = 0; busy < work; busy++)
				;
			round();
		}
		printf("%ld\n", cpu_ns() - start_ns);
		fflush(stdout);
	}
	return 0;
}
