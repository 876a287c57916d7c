//! The probes of Sentry: everything that touches the kernel, and the only crate with `unsafe`.
//!
//! A probe is one folder with its programs (`probe.bpf.c`), what they share with Rust
//! (`wire.h`) and its description and decoding (`mod.rs`). Adding one touches its folder
//! and [`PROBES`]; command line, metrics and documentation derive from the description.
//!
//! The programs count in memory that [`Cells`] maps. [`attach()`] brings them into the kernel.

mod btf;
pub mod cgroup;
mod disk;
mod event;
pub mod gpu;
mod hook;
#[cfg(test)]
mod instructions;
mod load;
mod pool;
mod record;
#[cfg(test)]
mod running_kernel;
mod series;
mod spec;
mod tcp;
mod wire;

pub use btf::own_types;
pub use event::{Event, EventDetail, EventSource, Events, StreamCgroups, StreamFilter};
pub use load::{
    EVENT_RING_BYTES, Installed, Kernel, LoadError, Programs, Request, RunStats, attach,
    enable_run_stats,
};
pub use pool::{Cells, Histogram, PoolError};
pub use series::{SeriesError, SeriesTable};
pub use spec::{
    Cell, Cost, Fallback, Hook, Metric, MetricKind, OwnCounter, PassedOver, Probe, Program, Reason,
    Record, Refusal, Rung, Sample, Status, Table, TableKind, Variant, Verdict, Workload,
};
pub use wire::{series as Series, series_key as SeriesKey};

/// All probes, in the order in which they are shown.
pub const PROBES: &[&Probe] = &[&tcp::PROBE, &disk::PROBE, &gpu::PROBE];

/// Buckets of every histogram: [`bucket_edge_seconds`] of 0..=88 and one above all edges.
pub const BUCKETS: usize = wire::HISTOGRAM_BUCKETS as usize;

/// Buckets to the octave.
pub const BUCKETS_PER_OCTAVE: usize = wire::HISTOGRAM_EDGES_PER_OCTAVE as usize;

/// The upper edge of a bucket in seconds, itself included: 2^(i/4), from 2^-18 to 2^4; infinity
/// for the last. These are the edges of Prometheus' native-histogram schema 2.
#[must_use]
pub fn bucket_edge_seconds(bucket: usize) -> f64 {
    if bucket + 1 >= BUCKETS {
        return f64::INFINITY;
    }
    #[allow(clippy::cast_precision_loss)] // below 90
    let octaves = bucket as f64 / BUCKETS_PER_OCTAVE as f64;
    (octaves + f64::from(wire::HISTOGRAM_MIN_EXPONENT)).exp2()
}

/// The device number in a [`SeriesKey`] as (major, minor).
#[must_use]
pub fn device_number(device: u32) -> (u32, u32) {
    (device >> 20, device & 0xf_ffff)
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`, in nanoseconds.
fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the clock is one that every kernel has, and the structure is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Keeps the allocator from holding on to large blocks once they are free: a scrape of megabytes
/// would otherwise stay resident for good, in each thread that made one (18.7 MB against 5.4 MB
/// after 30 parallel scrapes of 3.7 MB). Call it once, at the start.
pub fn bound_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes no pointer; no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

/// Gives what the allocator holds but does not use back to the system: parsing the kernel's
/// BTF takes some 12 MB for a moment.
pub fn release_unused_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes no pointer and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
