/*
 * A stand-in for the CUDA runtime: the calls that a probe looks at, on virtual GPUs that do nothing
 * but take time, and the truth about what they did. Names, values and signatures are those of
 * CUDA 12.
 */
#ifndef STAND_IN_CUDART_H
#define STAND_IN_CUDART_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
	cudaSuccess = 0,
	cudaErrorInvalidValue = 1,
	cudaErrorMemoryAllocation = 2,
	cudaErrorInvalidMemcpyDirection = 21,
	cudaErrorInvalidDevice = 101,
	cudaErrorInvalidResourceHandle = 400,
	cudaErrorIllegalState = 401,
	cudaErrorNotReady = 600,
	cudaErrorStreamCaptureUnsupported = 900,
	cudaErrorStreamCaptureInvalidated = 901,
	cudaErrorStreamCaptureMerge = 902,
	cudaErrorStreamCaptureUnmatched = 903,
	cudaErrorStreamCaptureIsolation = 905,
	cudaErrorStreamCaptureImplicit = 906,
	cudaErrorCapturedEvent = 907,
	cudaErrorStreamCaptureWrongThread = 908,
} cudaError_t;

enum cudaMemcpyKind {
	cudaMemcpyHostToHost = 0,
	cudaMemcpyHostToDevice = 1,
	cudaMemcpyDeviceToHost = 2,
	cudaMemcpyDeviceToDevice = 3,
	cudaMemcpyDefault = 4,
};

enum cudaStreamCaptureMode {
	cudaStreamCaptureModeGlobal = 0,
	cudaStreamCaptureModeThreadLocal = 1,
	cudaStreamCaptureModeRelaxed = 2,
};

typedef struct {
	unsigned int x, y, z;
} dim3;

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;

#define cudaStreamLegacy ((cudaStream_t)1)
#define cudaStreamPerThread ((cudaStream_t)2)
#define cudaStreamNonBlocking 1
#define cudaEventDisableTiming 2
#define cudaMemAttachGlobal 1

typedef struct {
	dim3 gridDim;
	dim3 blockDim;
	size_t dynamicSmemBytes;
	cudaStream_t stream;
	void *attrs;
	unsigned int numAttrs;
} cudaLaunchConfig_t;

/*
 * Each with an address of its own in the library, as the real ones have: a wrapper that another
 * call jumped into would be seen twice.
 */
#define CUDART_API __attribute__((noinline, visibility("default")))

/* A kernel takes as long as its first argument, an uint64_t, says in nanoseconds. No argument: no
 * time. */
CUDART_API cudaError_t cudaLaunchKernel(const void *func, dim3 grid, dim3 block, void **args,
					size_t shared_bytes, cudaStream_t stream);
CUDART_API cudaError_t cudaLaunchKernel_ptsz(const void *func, dim3 grid, dim3 block, void **args,
					     size_t shared_bytes, cudaStream_t stream);
CUDART_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *func,
					   void **args);
CUDART_API cudaError_t cudaLaunchKernelExC_ptsz(const cudaLaunchConfig_t *config, const void *func,
						void **args);

/* The pointers are looked at, what they point to is not: no data moves. */
CUDART_API cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes,
				  enum cudaMemcpyKind kind);
CUDART_API cudaError_t cudaMemcpy_ptds(void *to, const void *from, size_t bytes,
				       enum cudaMemcpyKind kind);
CUDART_API cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes,
				       enum cudaMemcpyKind kind, cudaStream_t stream);
CUDART_API cudaError_t cudaMemcpyAsync_ptsz(void *to, const void *from, size_t bytes,
					    enum cudaMemcpyKind kind, cudaStream_t stream);
CUDART_API cudaError_t cudaMemset(void *to, int value, size_t bytes);
CUDART_API cudaError_t cudaMemset_ptds(void *to, int value, size_t bytes);
CUDART_API cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream);
CUDART_API cudaError_t cudaMemsetAsync_ptsz(void *to, int value, size_t bytes, cudaStream_t stream);

CUDART_API cudaError_t cudaDeviceSynchronize(void);
CUDART_API cudaError_t cudaStreamSynchronize(cudaStream_t stream);
CUDART_API cudaError_t cudaStreamSynchronize_ptsz(cudaStream_t stream);
CUDART_API cudaError_t cudaStreamQuery(cudaStream_t stream);
CUDART_API cudaError_t cudaStreamQuery_ptsz(cudaStream_t stream);

CUDART_API cudaError_t cudaEventCreate(cudaEvent_t *event);
CUDART_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags);
CUDART_API cudaError_t cudaEventDestroy(cudaEvent_t event);
CUDART_API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
CUDART_API cudaError_t cudaEventRecord_ptsz(cudaEvent_t event, cudaStream_t stream);
CUDART_API cudaError_t cudaEventSynchronize(cudaEvent_t event);
CUDART_API cudaError_t cudaEventQuery(cudaEvent_t event);
CUDART_API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
					   unsigned int flags);
CUDART_API cudaError_t cudaStreamWaitEvent_ptsz(cudaStream_t stream, cudaEvent_t event,
						unsigned int flags);

CUDART_API cudaError_t cudaStreamCreate(cudaStream_t *stream);
CUDART_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags);
CUDART_API cudaError_t cudaStreamDestroy(cudaStream_t stream);

CUDART_API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode);
CUDART_API cudaError_t cudaStreamBeginCapture_ptsz(cudaStream_t stream,
						   enum cudaStreamCaptureMode mode);
CUDART_API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
CUDART_API cudaError_t cudaStreamEndCapture_ptsz(cudaStream_t stream, cudaGraph_t *graph);
CUDART_API cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph,
					    unsigned long long flags);
CUDART_API cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
CUDART_API cudaError_t cudaGraphLaunch_ptsz(cudaGraphExec_t exec, cudaStream_t stream);

CUDART_API cudaError_t cudaMalloc(void **memory, size_t bytes);
CUDART_API cudaError_t cudaMallocManaged(void **memory, size_t bytes, unsigned int flags);
CUDART_API cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t stream);
CUDART_API cudaError_t cudaMallocAsync_ptsz(void **memory, size_t bytes, cudaStream_t stream);
CUDART_API cudaError_t cudaFree(void *memory);
CUDART_API cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream);
CUDART_API cudaError_t cudaFreeAsync_ptsz(void *memory, cudaStream_t stream);

CUDART_API cudaError_t cudaSetDevice(int device);
CUDART_API cudaError_t cudaGetDevice(int *device);
CUDART_API cudaError_t cudaGetDeviceCount(int *count);

/* How long each copy or memset takes, from now on; 0: as its size and 16 bytes a nanosecond have
 * it. */
CUDART_API void cudaStandInSetCopyDuration(uint64_t duration_ns);
/* How much may be allocated in all. */
CUDART_API void cudaStandInSetMemoryLimit(size_t limit_bytes);
/* CLOCK_MONOTONIC, in nanoseconds. */
CUDART_API uint64_t cudaStandInNow(void);
CUDART_API void cudaStandInSleepUntil(uint64_t time_ns);
/*
 * Prints the truth so far as one line of JSON on standard output. Times are CLOCK_MONOTONIC in
 * nanoseconds. Of each device that was given work: idle_between_ns is the time it had none from its
 * first enqueue to its last, idle_total_ns up to this report; gaps are those idle times that an
 * enqueue ended, and first_seconds_ns sums what lies in the first second of each.
 */
CUDART_API void cudaStandInReport(const char *scenario, uint64_t elapsed_ns);

#endif
