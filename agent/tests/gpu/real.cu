// Makes known numbers of calls into CUDA's runtime, for tests on the real one. Without a driver or
// a device each call fails, and is a call all the same. Says `ready` and waits for a line; then
// calls, says what was returned how often as `call code count`, and `done`; then stays until its
// standard input ends.

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__global__ void kernel(int *to, int value)
{
	if (to)
		*to = value;
}

struct row {
	const char *call;
	int code;
	int count;
};

static struct row rows[64];
static char from[4096], to[4096];

static void returned(const char *call, int code)
{
	for (row &row : rows) {
		if (!row.call)
			row = { call, code, 0 };
		if (!strcmp(row.call, call) && row.code == code) {
			row.count++;
			return;
		}
	}
	abort();
}

#define TIMES(times, call, expression)                                                             \
	for (int i = 0; i < (times); i++)                                                          \
	returned(call, expression)

static void wait_for_line_or_end(void)
{
	for (int c = getchar(); c != '\n' && c != EOF; c = getchar())
		;
}

int main(void)
{
	cudaGraph_t graph = 0;
	void *pointer = 0;

	puts("ready");
	fflush(stdout);
	wait_for_line_or_end();

	// The first call takes its time to look for a driver, so none that waits comes first. A
	// capture that does not begin hides no launch.
	TIMES(2, "set_device", cudaSetDevice(0));
	TIMES(3, "stream_capture", cudaStreamBeginCapture(0, cudaStreamCaptureModeRelaxed));
	TIMES(101, "kernel", (kernel<<<1, 1>>>(0, i), cudaGetLastError()));
	TIMES(37, "graph", cudaGraphLaunch(0, 0));
	TIMES(4, "stream_capture", cudaStreamEndCapture(0, &graph));
	TIMES(7, "memcpy_async", cudaMemcpyAsync(to, from, 1000, cudaMemcpyHostToDevice, 0));
	TIMES(9, "memcpy_async", cudaMemcpyAsync(to, from, 300, cudaMemcpyDeviceToDevice, 0));
	TIMES(5, "memcpy", cudaMemcpy(to, from, 100, cudaMemcpyDeviceToHost));
	TIMES(6, "memcpy", cudaMemcpy(to, from, 10, cudaMemcpyHostToDevice));
	TIMES(8, "memset", cudaMemsetAsync(to, 0, 4096, 0));
	TIMES(11, "malloc", cudaMalloc(&pointer, 4096));
	TIMES(13, "free", cudaFree(from));
	TIMES(17, "device_synchronize", cudaDeviceSynchronize());
	TIMES(19, "stream_synchronize", cudaStreamSynchronize(0));
	TIMES(23, "event_synchronize", cudaEventSynchronize(0));
	TIMES(29, "stream_query", cudaStreamQuery(0));
	TIMES(31, "event_query", cudaEventQuery(0));

	for (row &row : rows)
		if (row.call)
			printf("%s %d %d\n", row.call, row.code, row.count);
	puts("done");
	fflush(stdout);
	while (getchar() != EOF)
		;
	return 0;
}
