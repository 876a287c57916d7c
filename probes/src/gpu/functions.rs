//! The functions of CUDA that are hooked, and what the programs must know of each.
//!
//! Names and arguments are those of the public headers (`cuda_runtime_api.h`, `cuda.h`); CUDA 12
//! and 13 have the same, but for `cudaThreadSynchronize`. A function with the suffix `_ptsz` or `_ptds` takes stream 0 for the
//! thread's own; it has a body of its own. Functions that jump to another (`__cudaLaunchKernel`)
//! are not in the list: their calls would count twice.

use crate::wire::{
    GPU_API_GRAPH, GPU_API_KERNEL, GPU_APIS, GPU_CALL_DEVICE_SYNCHRONIZE, GPU_CALL_EVENT_QUERY,
    GPU_CALL_EVENT_SYNCHRONIZE, GPU_CALL_FREE, GPU_CALL_MALLOC, GPU_CALL_MEMCPY,
    GPU_CALL_SET_DEVICE, GPU_CALL_STREAM_CAPTURE, GPU_CALL_STREAM_QUERY,
    GPU_CALL_STREAM_SYNCHRONIZE, GPU_COOKIE_AREA, GPU_COOKIE_DRIVER, GPU_COOKIE_PER_THREAD,
    GPU_COOKIE_VALID, GPU_COPY_DEFAULT, GPU_COPY_DEVICE_TO_DEVICE, GPU_COPY_DEVICE_TO_HOST,
    GPU_COPY_HOST_TO_DEVICE, GPU_ORDER_CONTEXT, GPU_ORDER_EVENT_DESTROY, GPU_ORDER_RECORD,
    GPU_ORDER_STREAM_DESTROY, GPU_ORDER_WAIT, GPU_STREAM_OF_CONFIG,
};

/// Which programs a function gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `gpu_enqueue` at its entry.
    Enqueue,
    /// `gpu_enter` at its entry and `gpu_return` at its return.
    Call,
    /// `gpu_order` at its entry.
    Order,
}

/// A function and what is done at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) kind: Kind,
    /// `GPU_COOKIE_*`
    pub(crate) cookie: u32,
}

/// An entry of the list.
struct Entry {
    name: &'static str,
    /// Of its variant with streams of the thread's own.
    suffix: &'static str,
    kind: Kind,
    cookie: u32,
}

const NONE: &str = "";
const PTSZ: &str = "_ptsz";
const PTDS: &str = "_ptds";

/// The argument that is the stream, counted from 1.
const fn stream(argument: u32) -> u32 {
    argument << 4
}

/// The argument that is the size in bytes.
const fn size(argument: u32) -> u32 {
    argument << 8
}

/// The argument that is the width in bytes, followed by the height.
const fn area(argument: u32) -> u32 {
    size(argument) | GPU_COOKIE_AREA
}

/// The argument that is the direction of a copy.
const fn direction(argument: u32) -> u32 {
    argument << 12
}

/// The direction of a copy that is always the same, or whether a capture ends.
const fn always(value: u32) -> u32 {
    value << 16
}

/// Where the stream of `cudaMemset3DAsync` is: two structures of its arguments are too large for
/// registers, and the ABI passes them on the stack or as pointers.
const AFTER_LARGE_STRUCTURES: u32 = if cfg!(target_arch = "aarch64") { 4 } else { 2 };

const fn entry(name: &'static str, suffix: &'static str, kind: Kind, cookie: u32) -> Entry {
    Entry {
        name,
        suffix,
        kind,
        cookie: cookie | GPU_COOKIE_VALID,
    }
}

/// Copies and memset, whose calls are not counted.
const ELSE: u32 = GPU_APIS;

#[rustfmt::skip] // a table
const RUNTIME: &[Entry] = &[
    entry("cudaLaunchKernel", PTSZ, Kind::Enqueue, GPU_API_KERNEL | stream(8)),
    entry("cudaLaunchCooperativeKernel", PTSZ, Kind::Enqueue, GPU_API_KERNEL | stream(8)),
    entry("cudaLaunchKernelExC", PTSZ, Kind::Enqueue, GPU_API_KERNEL | stream(GPU_STREAM_OF_CONFIG)),
    entry("cudaGraphLaunch", PTSZ, Kind::Enqueue, GPU_API_GRAPH | stream(2)),
    entry("cudaMemcpyAsync", PTSZ, Kind::Enqueue, ELSE | size(3) | direction(4) | stream(5)),
    entry("cudaMemcpy2DAsync", PTSZ, Kind::Enqueue, ELSE | area(5) | direction(7) | stream(8)),
    entry("cudaMemcpy3DAsync", PTSZ, Kind::Enqueue, ELSE | stream(2)),
    entry("cudaMemcpyToSymbolAsync", PTSZ, Kind::Enqueue, ELSE | size(3) | direction(5) | stream(6)),
    entry("cudaMemcpyFromSymbolAsync", PTSZ, Kind::Enqueue, ELSE | size(3) | direction(5) | stream(6)),
    entry("cudaMemcpy3DPeerAsync", PTSZ, Kind::Enqueue, ELSE | stream(2)),
    entry("cudaMemcpy3DPeer", PTDS, Kind::Enqueue, ELSE),
    entry("cudaMemcpy3D", PTDS, Kind::Enqueue, ELSE),
    entry("cudaMemcpyPeerAsync", NONE, Kind::Enqueue, ELSE | size(5) | always(GPU_COPY_DEVICE_TO_DEVICE) | stream(6)),
    entry("cudaMemcpyPeer", NONE, Kind::Enqueue, ELSE | size(5) | always(GPU_COPY_DEVICE_TO_DEVICE)),
    entry("cudaMemcpyToSymbol", PTDS, Kind::Call, GPU_CALL_MEMCPY | size(3) | direction(5)),
    entry("cudaMemcpyFromSymbol", PTDS, Kind::Call, GPU_CALL_MEMCPY | size(3) | direction(5)),
    entry("cudaMemcpy", PTDS, Kind::Call, GPU_CALL_MEMCPY | size(3) | direction(4)),
    entry("cudaMemcpy2D", PTDS, Kind::Call, GPU_CALL_MEMCPY | area(5) | direction(7)),
    entry("cudaMemset", PTDS, Kind::Enqueue, ELSE),
    entry("cudaMemset2D", PTDS, Kind::Enqueue, ELSE),
    entry("cudaMemset3D", PTDS, Kind::Enqueue, ELSE),
    entry("cudaMemsetAsync", PTSZ, Kind::Enqueue, ELSE | stream(4)),
    entry("cudaMemset2DAsync", PTSZ, Kind::Enqueue, ELSE | stream(6)),
    entry("cudaMemset3DAsync", PTSZ, Kind::Enqueue, ELSE | stream(AFTER_LARGE_STRUCTURES)),
    entry("cudaDeviceSynchronize", NONE, Kind::Call, GPU_CALL_DEVICE_SYNCHRONIZE),
    entry("cudaThreadSynchronize", NONE, Kind::Call, GPU_CALL_DEVICE_SYNCHRONIZE),
    entry("cudaStreamSynchronize", PTSZ, Kind::Call, GPU_CALL_STREAM_SYNCHRONIZE | stream(1)),
    entry("cudaStreamQuery", PTSZ, Kind::Call, GPU_CALL_STREAM_QUERY | stream(1)),
    entry("cudaEventSynchronize", NONE, Kind::Call, GPU_CALL_EVENT_SYNCHRONIZE),
    entry("cudaEventQuery", NONE, Kind::Call, GPU_CALL_EVENT_QUERY),
    entry("cudaEventRecord", PTSZ, Kind::Order, GPU_ORDER_RECORD | stream(2)),
    entry("cudaEventRecordWithFlags", PTSZ, Kind::Order, GPU_ORDER_RECORD | stream(2)),
    entry("cudaStreamWaitEvent", PTSZ, Kind::Order, GPU_ORDER_WAIT | stream(1)),
    entry("cudaEventDestroy", NONE, Kind::Order, GPU_ORDER_EVENT_DESTROY),
    entry("cudaStreamDestroy", NONE, Kind::Order, GPU_ORDER_STREAM_DESTROY | stream(1)),
    entry("cudaStreamBeginCapture", PTSZ, Kind::Call, GPU_CALL_STREAM_CAPTURE | stream(1)),
    entry("cudaStreamBeginCaptureToGraph", PTSZ, Kind::Call, GPU_CALL_STREAM_CAPTURE | stream(1)),
    entry("cudaStreamEndCapture", PTSZ, Kind::Call, GPU_CALL_STREAM_CAPTURE | stream(1) | always(1)),
    entry("cudaMalloc", NONE, Kind::Call, GPU_CALL_MALLOC | size(2)),
    entry("cudaMallocManaged", NONE, Kind::Call, GPU_CALL_MALLOC | size(2)),
    entry("cudaMallocAsync", PTSZ, Kind::Call, GPU_CALL_MALLOC | size(2)),
    entry("cudaMallocFromPoolAsync", PTSZ, Kind::Call, GPU_CALL_MALLOC | size(2)),
    entry("cudaMallocPitch", NONE, Kind::Call, GPU_CALL_MALLOC | area(3)),
    entry("cudaFree", NONE, Kind::Call, GPU_CALL_FREE),
    entry("cudaFreeAsync", PTSZ, Kind::Call, GPU_CALL_FREE),
    entry("cudaSetDevice", NONE, Kind::Call, GPU_CALL_SET_DEVICE),
];

#[rustfmt::skip] // a table
const DRIVER: &[Entry] = &[
    entry("cuLaunchKernel", PTSZ, Kind::Enqueue, GPU_API_KERNEL | stream(9)),
    entry("cuLaunchCooperativeKernel", PTSZ, Kind::Enqueue, GPU_API_KERNEL | stream(9)),
    entry("cuLaunchKernelEx", PTSZ, Kind::Enqueue, GPU_API_KERNEL | stream(GPU_STREAM_OF_CONFIG)),
    entry("cuGraphLaunch", PTSZ, Kind::Enqueue, GPU_API_GRAPH | stream(2)),
    entry("cuMemcpyAsync", PTSZ, Kind::Enqueue, ELSE | size(3) | always(GPU_COPY_DEFAULT) | stream(4)),
    entry("cuMemcpyHtoDAsync_v2", PTSZ, Kind::Enqueue, ELSE | size(3) | always(GPU_COPY_HOST_TO_DEVICE) | stream(4)),
    entry("cuMemcpyDtoHAsync_v2", PTSZ, Kind::Enqueue, ELSE | size(3) | always(GPU_COPY_DEVICE_TO_HOST) | stream(4)),
    entry("cuMemcpyDtoDAsync_v2", PTSZ, Kind::Enqueue, ELSE | size(3) | always(GPU_COPY_DEVICE_TO_DEVICE) | stream(4)),
    entry("cuMemcpy2DAsync_v2", PTSZ, Kind::Enqueue, ELSE | stream(2)),
    entry("cuMemcpy3DAsync_v2", PTSZ, Kind::Enqueue, ELSE | stream(2)),
    entry("cuMemcpyPeerAsync", PTSZ, Kind::Enqueue, ELSE | size(5) | always(GPU_COPY_DEVICE_TO_DEVICE) | stream(6)),
    entry("cuMemcpy", PTDS, Kind::Call, GPU_CALL_MEMCPY | size(3) | always(GPU_COPY_DEFAULT)),
    entry("cuMemcpyHtoD_v2", PTDS, Kind::Call, GPU_CALL_MEMCPY | size(3) | always(GPU_COPY_HOST_TO_DEVICE)),
    entry("cuMemcpyDtoH_v2", PTDS, Kind::Call, GPU_CALL_MEMCPY | size(3) | always(GPU_COPY_DEVICE_TO_HOST)),
    entry("cuMemcpyDtoD_v2", PTDS, Kind::Call, GPU_CALL_MEMCPY | size(3) | always(GPU_COPY_DEVICE_TO_DEVICE)),
    entry("cuMemsetD8_v2", PTDS, Kind::Enqueue, ELSE),
    entry("cuMemsetD16_v2", PTDS, Kind::Enqueue, ELSE),
    entry("cuMemsetD32_v2", PTDS, Kind::Enqueue, ELSE),
    entry("cuMemsetD8Async", PTSZ, Kind::Enqueue, ELSE | stream(4)),
    entry("cuMemsetD16Async", PTSZ, Kind::Enqueue, ELSE | stream(4)),
    entry("cuMemsetD32Async", PTSZ, Kind::Enqueue, ELSE | stream(4)),
    entry("cuMemsetD2D8Async", PTSZ, Kind::Enqueue, ELSE | stream(6)),
    entry("cuMemsetD2D16Async", PTSZ, Kind::Enqueue, ELSE | stream(6)),
    entry("cuMemsetD2D32Async", PTSZ, Kind::Enqueue, ELSE | stream(6)),
    entry("cuCtxSynchronize", NONE, Kind::Call, GPU_CALL_DEVICE_SYNCHRONIZE),
    entry("cuStreamSynchronize", PTSZ, Kind::Call, GPU_CALL_STREAM_SYNCHRONIZE | stream(1)),
    entry("cuStreamQuery", PTSZ, Kind::Call, GPU_CALL_STREAM_QUERY | stream(1)),
    entry("cuEventSynchronize", NONE, Kind::Call, GPU_CALL_EVENT_SYNCHRONIZE),
    entry("cuEventQuery", NONE, Kind::Call, GPU_CALL_EVENT_QUERY),
    entry("cuEventRecord", PTSZ, Kind::Order, GPU_ORDER_RECORD | stream(2)),
    entry("cuEventRecordWithFlags", PTSZ, Kind::Order, GPU_ORDER_RECORD | stream(2)),
    entry("cuStreamWaitEvent", PTSZ, Kind::Order, GPU_ORDER_WAIT | stream(1)),
    entry("cuEventDestroy_v2", NONE, Kind::Order, GPU_ORDER_EVENT_DESTROY),
    entry("cuStreamDestroy_v2", NONE, Kind::Order, GPU_ORDER_STREAM_DESTROY | stream(1)),
    entry("cuCtxSetCurrent", NONE, Kind::Order, GPU_ORDER_CONTEXT),
    entry("cuCtxPushCurrent_v2", NONE, Kind::Order, GPU_ORDER_CONTEXT),
    entry("cuStreamBeginCapture_v2", PTSZ, Kind::Call, GPU_CALL_STREAM_CAPTURE | stream(1)),
    entry("cuStreamBeginCaptureToGraph", PTSZ, Kind::Call, GPU_CALL_STREAM_CAPTURE | stream(1)),
    entry("cuStreamEndCapture", PTSZ, Kind::Call, GPU_CALL_STREAM_CAPTURE | stream(1) | always(1)),
    entry("cuMemAlloc_v2", NONE, Kind::Call, GPU_CALL_MALLOC | size(2)),
    entry("cuMemAllocManaged", NONE, Kind::Call, GPU_CALL_MALLOC | size(2)),
    entry("cuMemAllocAsync", PTSZ, Kind::Call, GPU_CALL_MALLOC | size(2)),
    entry("cuMemAllocFromPoolAsync", PTSZ, Kind::Call, GPU_CALL_MALLOC | size(2)),
    entry("cuMemAllocPitch_v2", NONE, Kind::Call, GPU_CALL_MALLOC | area(3)),
    entry("cuMemCreate", NONE, Kind::Call, GPU_CALL_MALLOC | size(2)),
    entry("cuMemFree_v2", NONE, Kind::Call, GPU_CALL_FREE),
    entry("cuMemFreeAsync", PTSZ, Kind::Call, GPU_CALL_FREE),
    entry("cuMemRelease", NONE, Kind::Call, GPU_CALL_FREE),
];

/// The names of all of them.
pub(crate) fn names() -> Vec<String> {
    let entries = RUNTIME.iter().chain(DRIVER);
    entries
        .flat_map(|entry| {
            let variant = (!entry.suffix.is_empty()).then_some(entry.suffix);
            let suffixes = [Some(NONE), variant];
            suffixes
                .into_iter()
                .flatten()
                .map(|suffix| format!("{}{suffix}", entry.name))
        })
        .collect()
}

/// What is done at the function of that name; `None` where it is not hooked.
pub(crate) fn of_name(name: &str) -> Option<Function> {
    let (list, driver) = if name.starts_with("cuda") {
        (RUNTIME, 0)
    } else if name.starts_with("cu") {
        (DRIVER, GPU_COOKIE_DRIVER)
    } else {
        return None;
    };
    list.iter().find_map(|entry| {
        let suffix = name.strip_prefix(entry.name)?;
        let per_thread = if suffix.is_empty() {
            0
        } else if suffix == entry.suffix {
            GPU_COOKIE_PER_THREAD
        } else {
            return None;
        };
        Some(Function {
            kind: entry.kind,
            cookie: entry.cookie | driver | per_thread,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn variants_have_names_of_their_own() {
        let plain = of_name("cudaLaunchKernel").unwrap();
        assert_eq!(plain.kind, Kind::Enqueue);
        assert_eq!(plain.cookie, GPU_COOKIE_VALID | 8 << 4);
        let own = of_name("cudaLaunchKernel_ptsz").unwrap();
        assert_eq!(own.cookie, plain.cookie | GPU_COOKIE_PER_THREAD);
        let driver = of_name("cuLaunchKernel").unwrap();
        assert_eq!(driver.cookie, GPU_COOKIE_VALID | GPU_COOKIE_DRIVER | 9 << 4);
        let copy = of_name("cudaMemcpy_ptds").unwrap();
        assert_eq!(copy.kind, Kind::Call);
        for name in [
            "__cudaLaunchKernel",
            "cudaLaunchKernel_ptds",
            "cudaMemcpy_ptsz",
            "cudaMallocHost",
            "cudaLaunchHostFunc",
            "cuInit",
            "main",
            "",
        ] {
            assert_eq!(of_name(name), None, "{name}");
        }
    }

    #[test]
    fn every_name_is_there_once_and_cookies_fit_a_move() {
        let mut names = BTreeSet::new();
        for entry in RUNTIME.iter().chain(DRIVER) {
            assert!(names.insert(entry.name), "{}", entry.name);
            let function = of_name(entry.name).unwrap();
            assert!(function.cookie < 1 << 31, "{}", entry.name);
        }
    }
}
