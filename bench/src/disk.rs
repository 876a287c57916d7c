//! Disk I/O, one request after the other, on a file or a raw block device.

use crate::storm::parse_seconds;
use crate::{Error, Result, nanoseconds};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// What `O_DIRECT` asks of a buffer's address on any common device.
const ALIGNMENT: usize = 4096;

/// The smallest block of any common device, and so the unit of `O_DIRECT` sizes and offsets.
const SECTOR_BYTES: u64 = 512;

/// A buffer that may be read into and written from with `O_DIRECT`.
#[derive(Debug)]
pub struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    size: usize,
}

impl AlignedBuffer {
    /// A buffer of so many bytes, all 0xa5, at a multiple of 4096.
    #[must_use]
    pub fn new(size: usize) -> Self {
        let memory = vec![0xa5; size + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self {
            memory,
            start,
            size,
        }
    }

    /// The bytes.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.size]
    }
}

/// Where the next request goes: the places of one size within a span, in order or at random.
#[derive(Debug)]
struct Places {
    size: u64,
    count: u64,
    next: u64,
    random: Option<u64>,
}

impl Places {
    /// `first` is the place to begin with, and seeds the random order.
    fn new(span: u64, size: u64, first: u64, random: bool) -> Self {
        Self {
            size,
            count: span / size,
            next: first,
            random: random.then_some(first.wrapping_add(1)),
        }
    }

    fn next_offset(&mut self) -> u64 {
        let place = if let Some(state) = &mut self.random {
            // Knuth's MMIX generator; its low bits repeat early, so only the high half is used.
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *state >> 32
        } else {
            self.next += 1;
            self.next - 1
        };
        place % self.count * self.size
    }
}

/// What to write, and how.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
#[derive(Debug, Clone, clap::Args)]
pub struct WriteArgs {
    /// A file, made if it does not exist, or a block device
    #[arg(long, value_name = "PATH")]
    pub file: PathBuf,
    /// Writes, one after the other
    #[arg(long, default_value = "1")]
    pub count: NonZeroU64,
    /// Bytes of each write
    #[arg(long, value_name = "BYTES", default_value = "4096")]
    pub size: NonZeroU64,
    /// Write past the page cache
    #[arg(long)]
    pub direct: bool,
    /// Call fsync after each write
    #[arg(long)]
    pub fsync_each: bool,
    /// Write at random multiples of the size instead of one after the other
    #[arg(long)]
    pub offset_random: bool,
    /// Write within the first so many bytes, then begin anew [default: count times size, or all of a block device]
    #[arg(long, value_name = "BYTES")]
    pub span: Option<u64>,
    /// Print how long each write took, without its fsync
    #[arg(long)]
    pub measure: bool,
    /// Cgroup to join first; may be repeated, once for each hierarchy
    #[arg(long = "cgroup", value_name = "DIR")]
    pub cgroups: Vec<PathBuf>,
}

/// What to read, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct ReadArgs {
    /// A file or block device
    #[arg(long, value_name = "PATH")]
    pub file: PathBuf,
    /// Reads of each thread, one after the other
    #[arg(long, required_unless_present = "seconds", conflicts_with = "seconds")]
    pub count: Option<NonZeroU64>,
    /// Read for so long
    #[arg(long, value_parser = parse_seconds)]
    pub seconds: Option<f64>,
    /// Bytes of each read
    #[arg(long, value_name = "BYTES", default_value = "4096")]
    pub size: NonZeroU64,
    /// Read past the page cache
    #[arg(long)]
    pub direct: bool,
    /// Read at random multiples of the size instead of one after the other
    #[arg(long)]
    pub random: bool,
    /// Read within the first so many bytes, then begin anew [default: all]
    #[arg(long, value_name = "BYTES")]
    pub span: Option<u64>,
    /// Threads that read at the same time, each from a place of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,
    /// Print how long each read took
    #[arg(long)]
    pub measure: bool,
    /// Cgroup to join first; may be repeated, once for each hierarchy
    #[arg(long = "cgroup", value_name = "DIR")]
    pub cgroups: Vec<PathBuf>,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Reads or writes.
    pub operations: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Calls of fsync.
    pub fsyncs: u64,
    /// Each read's or write's duration by `CLOCK_MONOTONIC`, thread after thread, if measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durations_ns: Option<Vec<u64>>,
}

/// Writes as told.
///
/// # Errors
/// When the file cannot be opened, the sizes don't fit together, or a write or fsync fails or is short.
pub fn write(args: &WriteArgs) -> Result<DiskReport> {
    let size = args.size.get();
    let device = args.file.starts_with("/dev") && !args.file.starts_with("/dev/shm");
    let mut options = OpenOptions::new();
    // A misspelt device must not become a file.
    options.write(true).create(!device);
    let mut file = open(&mut options, &args.file, args.direct)?;
    let span = match args.span {
        Some(span) => span,
        None if device => file_bytes(&mut file, &args.file)?,
        None => args.count.get().saturating_mul(size),
    };
    check_sizes(&args.file, size, span, args.direct)?;
    let mut buffer = buffer_of(size)?;
    let mut places = Places::new(span, size, 0, args.offset_random);
    let mut report = DiskReport {
        durations_ns: args.measure.then(Vec::new),
        ..DiskReport::default()
    };
    for _ in 0..args.count.get() {
        let offset = places.next_offset();
        report.transfer(
            size,
            || file.write_at(buffer.as_mut_slice(), offset),
            "write to",
            &args.file,
        )?;
        if args.fsync_each {
            file.sync_all().map_err(Error::at("fsync", &args.file))?;
            report.fsyncs += 1;
        }
    }
    Ok(report)
}

/// Reads as told.
///
/// # Errors
/// When the file cannot be opened, the sizes don't fit together, or a read fails or is short.
pub fn read(args: &ReadArgs) -> Result<DiskReport> {
    let size = args.size.get();
    let mut file = open_to_read(&args.file, args.direct)?;
    let span = match args.span {
        Some(span) => span,
        None => file_bytes(&mut file, &args.file)?,
    };
    check_sizes(&args.file, size, span, args.direct)?;
    let end = args
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let parts: Vec<Result<_>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..u64::from(args.threads))
            .map(|number| {
                let first = span / size * number / u64::from(args.threads);
                let places = Places::new(span, size, first, args.random);
                let file = &file;
                scope.spawn(move || read_in_turn(args, file, places, end))
            })
            .collect();
        threads.into_iter().map(crate::join_thread).collect()
    });
    let mut report = DiskReport {
        durations_ns: args.measure.then(Vec::new),
        ..DiskReport::default()
    };
    for part in parts {
        let part = part?;
        report.operations += part.operations;
        report.bytes += part.bytes;
        if let (Some(all), Some(more)) = (&mut report.durations_ns, part.durations_ns) {
            all.extend(more);
        }
    }
    Ok(report)
}

/// The work of one thread.
fn read_in_turn(
    args: &ReadArgs,
    file: &File,
    mut places: Places,
    end: Option<Instant>,
) -> Result<DiskReport> {
    let size = args.size.get();
    let mut buffer = buffer_of(size)?;
    let mut report = DiskReport {
        durations_ns: args.measure.then(Vec::new),
        ..DiskReport::default()
    };
    while args
        .count
        .is_none_or(|count| report.operations < count.get())
        && end.is_none_or(|end| Instant::now() < end)
    {
        let offset = places.next_offset();
        report.transfer(
            size,
            || file.read_at(buffer.as_mut_slice(), offset),
            "read",
            &args.file,
        )?;
    }
    Ok(report)
}

impl DiskReport {
    /// Does and counts one read or write, which must be whole: a short one would be two requests where one is told.
    fn transfer(
        &mut self,
        size: u64,
        operation: impl FnOnce() -> std::io::Result<usize>,
        action: &str,
        path: &Path,
    ) -> Result<()> {
        let start = Instant::now();
        let bytes = operation().map_err(Error::at(action, path))? as u64;
        if let Some(durations_ns) = &mut self.durations_ns {
            durations_ns.push(nanoseconds(start.elapsed()));
        }
        if bytes != size {
            let path = path.display();
            return Err(Error::Argument(format!(
                "{action} {path}: {bytes} of {size} bytes only"
            )));
        }
        self.operations += 1;
        self.bytes += bytes;
        Ok(())
    }
}

/// Opens an existing file or device to read.
pub(crate) fn open_to_read(path: &Path, direct: bool) -> Result<File> {
    open(OpenOptions::new().read(true), path, direct)
}

fn open(options: &mut OpenOptions, path: &Path, direct: bool) -> Result<File> {
    if direct {
        options.custom_flags(OFlags::DIRECT.bits().cast_signed());
    }
    options.open(path).map_err(Error::at("open", path))
}

/// The length of a file or block device.
pub(crate) fn file_bytes(file: &mut File, path: &Path) -> Result<u64> {
    file.seek(SeekFrom::End(0))
        .map_err(Error::at("find the length of", path))
}

/// A buffer for one request.
pub(crate) fn buffer_of(size: u64) -> Result<AlignedBuffer> {
    usize::try_from(size)
        .ok()
        .filter(|&size| size <= isize::MAX as usize - ALIGNMENT)
        .map(AlignedBuffer::new)
        .ok_or_else(|| Error::Argument(format!("--size {size}: more than memory can hold")))
}

/// Refuses sizes that the kernel would refuse less plainly.
pub(crate) fn check_sizes(path: &Path, size: u64, span: u64, direct: bool) -> Result<()> {
    if direct && !size.is_multiple_of(SECTOR_BYTES) {
        return Err(Error::Argument(format!(
            "--size {size}: allowed with --direct are multiples of {SECTOR_BYTES}"
        )));
    }
    if span < size {
        let path = path.display();
        return Err(Error::Argument(format!(
            "{path}: a span of {span} bytes holds no request of {size} bytes"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_whole() {
        for size in [512, 4096, 1 << 20] {
            let mut buffer = AlignedBuffer::new(size);
            let bytes = buffer.as_mut_slice();
            assert_eq!(bytes.as_ptr().addr() % 4096, 0);
            assert_eq!(bytes.len(), size);
        }
    }

    #[test]
    fn places_in_order_begin_anew_at_the_end_of_the_span() {
        let mut places = Places::new(3 * 512 + 100, 512, 1, false);
        let offsets: Vec<_> = (0..4).map(|_| places.next_offset()).collect();
        assert_eq!(offsets, [512, 1024, 0, 512]);
    }

    #[test]
    fn random_places_are_multiples_within_the_span_and_reach_all_of_it() {
        let mut places = Places::new(16 * 4096, 4096, 0, true);
        let mut seen = [false; 16];
        for _ in 0..1000 {
            let offset = places.next_offset();
            assert_eq!(offset % 4096, 0);
            seen[usize::try_from(offset / 4096).unwrap()] = true;
        }
        assert_eq!(seen, [true; 16]);
    }

    #[test]
    fn sizes_that_cannot_be_served_are_named() {
        let path = Path::new("/x");
        let direct = check_sizes(path, 100, 4096, true).unwrap_err();
        assert_eq!(
            direct.to_string(),
            "--size 100: allowed with --direct are multiples of 512"
        );
        let span = check_sizes(path, 4096, 512, false).unwrap_err();
        assert_eq!(
            span.to_string(),
            "/x: a span of 512 bytes holds no request of 4096 bytes"
        );
        assert!(check_sizes(path, 100, 100, false).is_ok());
    }
}
