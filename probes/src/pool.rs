//! The pools of cells: memory that the programs count in and the agent reads.

use std::{
    fs,
    num::NonZeroUsize,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use crate::{BUCKETS, Installed, wire};

/// A cell as it was at one moment. The buckets and the sum wrap; take differences.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    /// Of the durations, in nanoseconds, unless its probe counts something else there: see [`crate::Cell`].
    pub sum: u64,
    /// Events by bucket.
    pub buckets: [u32; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            sum: 0,
            buckets: [0; BUCKETS],
        }
    }
}

/// A pool could not be mapped.
#[derive(Debug, thiserror::Error)]
#[error("cannot map the pool of {pool}: {source}")]
pub struct PoolError {
    pool: &'static str,
    source: std::io::Error,
}

/// A `BPF_F_MMAPABLE` array. The programs write to it at any time, so it is only ever read and
/// written through atomics.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: NonZeroUsize,
}

// SAFETY: the mapping is plain memory that stays until drop, and all reads and writes are atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// To read; and to write, if `protection` has `PROT_WRITE` in it.
    pub(crate) fn new(
        pool: &'static str,
        fd: BorrowedFd<'_>,
        bytes: usize,
        protection: i32,
    ) -> Result<Self, PoolError> {
        let error = |source| PoolError { pool, source };
        let bytes = NonZeroUsize::new(bytes)
            .ok_or_else(|| error(std::io::ErrorKind::InvalidInput.into()))?;
        // SAFETY: a new shared mapping at an address of the kernel's choice; the
        // kernel refuses more bytes than the array's pages have.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes.get(),
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(error(std::io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast())
            .ok_or_else(|| error(std::io::ErrorKind::InvalidData.into()))?;
        Ok(Self { start, bytes })
    }

    /// # Panics
    /// Outside of the mapping.
    pub(crate) fn word<T>(&self, offset: usize) -> &T {
        assert!(
            offset + size_of::<T>() <= self.bytes.get() && offset.is_multiple_of(align_of::<T>()),
            "offset {offset} lies outside the pool"
        );
        // SAFETY: inside the mapping and aligned, both asserted; T is an atomic integer, for
        // which every bit pattern is valid and which others may change meanwhile.
        unsafe { &*self.start.as_ptr().add(offset).cast::<T>() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the very range that mmap gave; references into it borrow self.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.bytes.get());
        }
    }
}

/// Both pools. Reading them makes no syscall.
#[derive(Debug)]
pub struct Cells {
    histograms: Mapping,
    counters: Mapping,
    /// Number of histograms; counters of the same numbers belong to them.
    pub histogram_count: u16,
    /// Number of counters.
    pub counter_count: u32,
}

impl Cells {
    pub(crate) fn new(
        histograms: BorrowedFd<'_>,
        counters: BorrowedFd<'_>,
        histogram_count: u16,
        counter_count: u32,
    ) -> Result<Self, PoolError> {
        Ok(Self {
            histograms: Mapping::new(
                "histograms",
                histograms,
                usize::from(histogram_count) * size_of::<wire::histogram>(),
                libc::PROT_READ,
            )?,
            counters: Mapping::new(
                "counters",
                counters,
                counter_count as usize * 8,
                libc::PROT_READ | libc::PROT_WRITE,
            )?,
            histogram_count,
            counter_count,
        })
    }

    /// Reads a histogram into `into`. Events that arrive meanwhile may be in the sum and not
    /// yet in their bucket; the next read has them.
    ///
    /// # Panics
    /// When the pool has no such cell.
    pub fn read_histogram(&self, cell: u16, into: &mut Histogram) {
        let base = usize::from(cell) * size_of::<wire::histogram>();
        into.sum = self.sum(cell);
        let buckets = base + std::mem::offset_of!(wire::histogram, buckets);
        for (bucket, value) in into.buckets.iter_mut().enumerate() {
            *value = self
                .histograms
                .word::<AtomicU32>(buckets + 4 * bucket)
                .load(Ordering::Relaxed);
        }
    }

    /// Reads the sum of a histogram alone.
    ///
    /// # Panics
    /// When the pool has no such cell.
    #[must_use]
    pub fn sum(&self, cell: u16) -> u64 {
        let base = usize::from(cell) * size_of::<wire::histogram>();
        self.histograms
            .word::<AtomicU64>(base + std::mem::offset_of!(wire::histogram, sum))
            .load(Ordering::Relaxed)
    }

    /// Reads a counter.
    ///
    /// # Panics
    /// When the pool has no such cell.
    #[must_use]
    pub fn counter(&self, cell: u16) -> u64 {
        self.counters
            .word::<AtomicU64>(usize::from(cell) * 8)
            .load(Ordering::Relaxed)
    }

    /// Sets a counter that is none: one by which the agent tells the programs something.
    ///
    /// # Panics
    /// When the pool has no such cell.
    pub(crate) fn set(&self, cell: u16, value: u64) {
        self.counters
            .word::<AtomicU64>(usize::from(cell) * 8)
            .store(value, Ordering::Relaxed);
    }

    /// Has a probe send events that take so long at least, in nanoseconds; 0 ends that. Nothing is sent before
    /// [`crate::Programs::open_events`].
    ///
    /// # Panics
    /// When the probe is of another pool.
    pub fn send_events(&self, installed: &Installed, slow_ns: u64) {
        if let Some(cell) = installed.slow_cell() {
            self.set(cell, slow_ns);
        }
    }

    /// Has a probe's first hook look for what its second one has noted, as if something had called for that.
    ///
    /// # Panics
    /// When the probe is of another pool.
    pub fn call_for_second(&self, installed: &Installed) {
        if let Some(cell) = installed.fallback_trigger() {
            self.set(cell, 1);
        }
    }
}

/// Kernel memory behind a map in bytes, as the kernel accounts it in `fdinfo`; on kernels before
/// 6.4 that is pages for the locked-memory limit.
pub(crate) fn map_memory_bytes(fd: BorrowedFd<'_>) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}
