//! The watch for files that are mapped executable from now on: libraries as programs load them, and
//! programs as they start, whose own mapping comes with `exec` like any other.
//!
//! The kernel records such mappings for performance events, so that profilers can name addresses.
//! An event that counts nothing, one on each CPU, has it record them and nothing else.

use std::{
    ffi::OsStr,
    fs,
    io::{self, ErrorKind},
    mem::offset_of,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya_obj::generated::{
    PERF_FLAG_FD_CLOEXEC, perf_event_attr, perf_event_header, perf_event_mmap_page,
    perf_event_type, perf_sw_ids, perf_type_id,
};

use crate::gpu::maps::{Mapping, shown_path};

/// Pages of records on each CPU, besides one for the kernel's notes; a power of two. A record may
/// have a path of a page, so one page would not do; a program that starts makes four of some
/// 120 bytes, so two pages hold what 16 programs do before the agent gets to run. Records for which
/// there was no room are counted, and `/proc` has what they said.
const RING_PAGES: usize = 2;

/// How long records gather before they are taken again. The first of a program that starts is taken
/// at once; to be woken for each of the others would take this process twice the time (some 45 us a
/// program instead of 20).
const PAUSE: Duration = Duration::from_millis(1);

const ONLINE: &str = "/sys/devices/system/cpu/online";

/// `PROT_EXEC` as a record has it.
const EXECUTABLE: u32 = libc::PROT_EXEC.cast_unsigned();

/// A range of memory that has just been made to show a file, executable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewMapping {
    /// The process, as this process numbers it; 0 where it cannot see it.
    pub(crate) pid: u32,
    /// Its thread that did it.
    pub(crate) tid: u32,
    /// The first address.
    pub(crate) start: u64,
    /// Bytes.
    pub(crate) length: u64,
    /// Where in the file it begins, in bytes.
    pub(crate) offset: u64,
    /// As in [`Mapping::device`].
    pub(crate) device: (u32, u32),
    /// As in [`Mapping::inode`].
    pub(crate) inode: u64,
    /// Tells files apart that had one inode number one after the other; often 0.
    pub(crate) generation: u64,
    /// As in [`Mapping::path`].
    pub(crate) path: PathBuf,
    /// As in [`Mapping::deleted`].
    pub(crate) deleted: bool,
}

impl NewMapping {
    /// The same as `/proc/PID/maps` would tell it.
    pub(crate) fn mapping(&self) -> Mapping {
        Mapping {
            start: self.start,
            end: self.start.saturating_add(self.length),
            executable: true,
            device: self.device,
            inode: self.inode,
            path: self.path.clone(),
            deleted: self.deleted,
        }
    }
}

/// The kernel does not let this process watch mappings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// Too few rights.
    #[error(
        "watching for new mappings is not permitted: it takes CAP_PERFMON (CAP_SYS_ADMIN before Linux 5.8), with kernel.perf_event_paranoid at {paranoid}"
    )]
    NoPermission {
        /// `kernel.perf_event_paranoid`, or what is known of it.
        paranoid: String,
    },
    /// A kernel without performance events, or one that does not know what is asked.
    #[error("this kernel cannot record new mappings: {0}")]
    Unsupported(io::Error),
    /// Which CPUs there are is not to be found out.
    #[error("{ONLINE}: {0}")]
    Cpus(io::Error),
    /// Anything else, such as no memory or no descriptors left.
    #[error("watching for new mappings on CPU {cpu}: {source}")]
    Failed {
        /// Where it failed.
        cpu: u32,
        /// The system call's error.
        source: io::Error,
    },
}

/// What the kernel says of new mappings on all CPUs that were online when it was opened. A CPU that
/// comes online later is not watched.
#[derive(Debug)]
pub(crate) struct Watch {
    rings: Vec<Ring>,
    /// One record, in one piece.
    record: Vec<u8>,
    /// When there was last something to take.
    woken: Option<Instant>,
}

impl Watch {
    /// Starts to watch.
    ///
    /// # Errors
    /// When the kernel does not let it or cannot.
    pub(crate) fn open() -> Result<Self, WatchError> {
        let online = fs::read_to_string(ONLINE).map_err(WatchError::Cpus)?;
        let cpus = parse_cpus(&online)
            .ok_or_else(|| WatchError::Cpus(io::Error::new(ErrorKind::InvalidData, online)))?;
        let mut rings = Vec::with_capacity(cpus.len());
        for cpu in cpus {
            match Ring::open(cpu) {
                Ok(ring) => rings.push(ring),
                // It has gone offline since.
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                Err(source) => return Err(refusal(cpu, source)),
            }
        }
        Ok(Self {
            rings,
            record: Vec::new(),
            woken: None,
        })
    }

    /// Waits until there is something to take, at most so long. Returns whether there is. A
    /// millisecond goes by between two times that there is.
    ///
    /// # Errors
    /// When the system call fails; a signal is no error but ends the wait.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        if let Some(woken) = self.woken.take() {
            thread::sleep(PAUSE.saturating_sub(woken.elapsed()).min(timeout));
        }
        let mut fds: Vec<_> = self
            .rings
            .iter()
            .map(|ring| libc::pollfd {
                fd: ring.event.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        // Rounded up, so that a short wait is one.
        let timeout = timeout.as_nanos().div_ceil(1_000_000);
        let timeout = libc::c_int::try_from(timeout).unwrap_or(libc::c_int::MAX);
        let count = libc::nfds_t::try_from(fds.len()).unwrap_or(libc::nfds_t::MAX);
        // SAFETY: a list of its length that lives until the call returns.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), count, timeout) };
        if ready < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                ErrorKind::Interrupted => Ok(false),
                _ => Err(error),
            };
        }
        let mut results = fds.iter();
        // An event that is over would end every wait at once.
        self.rings.retain(|_| {
            let result = results.next().map_or(0, |fd| fd.revents);
            result & (libc::POLLHUP | libc::POLLERR) == 0
        });
        let ready = fds.iter().any(|fd| fd.revents & libc::POLLIN != 0);
        self.woken = ready.then(Instant::now);
        Ok(ready)
    }

    /// Takes what there is, in order for each CPU. Returns how many records the kernel had no room
    /// for, which it says with the next one that has room: then there are mappings that only `/proc` knows.
    pub(crate) fn take(&mut self, each: &mut dyn FnMut(NewMapping)) -> u64 {
        let mut lost = 0;
        for ring in &mut self.rings {
            lost += ring.take(&mut self.record, each);
        }
        lost
    }
}

fn refusal(cpu: u32, source: io::Error) -> WatchError {
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => {
            let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
            WatchError::NoPermission {
                paranoid: paranoid.map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned()),
            }
        }
        Some(libc::ENOSYS | libc::EINVAL | libc::ENOENT | libc::EOPNOTSUPP) => {
            WatchError::Unsupported(source)
        }
        _ => WatchError::Failed { cpu, source },
    }
}

/// A list of CPUs such as `0-3,5`.
fn parse_cpus(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

/// The records of one CPU: memory that the kernel writes to and this process reads.
#[derive(Debug)]
struct Ring {
    event: OwnedFd,
    /// The first page; the records are in those behind it.
    notes: NonNull<perf_event_mmap_page>,
    page_bytes: usize,
}

// SAFETY: the mapping is plain memory that stays until drop; whoever takes records has the ring
// for itself, by `&mut`.
unsafe impl Send for Ring {}
// SAFETY: through a shared reference only the descriptor is used.
unsafe impl Sync for Ring {}

impl Ring {
    fn open(cpu: u32) -> io::Result<Self> {
        // SAFETY: numbers, unions and fields of bits, for all of which zero is valid.
        let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
        attr.type_ = perf_type_id::PERF_TYPE_SOFTWARE as u32;
        // A size of which kernels since 3.12 know every field, and no field behind it is used.
        attr.size = ATTR_BYTES;
        attr.config = perf_sw_ids::PERF_COUNT_SW_DUMMY as u64;
        attr.set_mmap(1);
        attr.set_mmap2(1);
        attr.set_exclude_kernel(1);
        // Any record wakes: it has more than one byte.
        attr.set_watermark(1);
        attr.__bindgen_anon_2.wakeup_watermark = 1;
        let cpu = libc::c_int::try_from(cpu).map_err(|_| ErrorKind::InvalidInput)?;
        // SAFETY: the attributes live until the call returns; the rest are numbers: every process
        // on this CPU, no group.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attr,
                -1,
                cpu,
                -1,
                libc::c_ulong::from(PERF_FLAG_FD_CLOEXEC),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(|_| ErrorKind::InvalidData)?;
        // SAFETY: the kernel has just given it, so nobody else has it.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: takes a number and cannot fail for this one.
        let page_bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page_bytes = usize::try_from(page_bytes).map_err(|_| ErrorKind::InvalidData)?;
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                page_bytes * (1 + RING_PAGES),
                // Writable, so that the kernel heeds how far has been read.
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                event.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let notes = NonNull::new(start.cast()).ok_or(ErrorKind::InvalidData)?;
        Ok(Self {
            event,
            notes,
            page_bytes,
        })
    }

    /// How far the kernel has written.
    fn head(&self) -> &AtomicU64 {
        // SAFETY: in the first page, which is so laid out; both sides access it atomically.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.notes.as_ptr()).data_head) }
    }

    /// How far this process has read.
    fn tail(&self) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.notes.as_ptr()).data_tail) }
    }

    /// Copies some bytes out of the ring, which the kernel has written and this process not freed.
    fn copy(&self, from: u64, length: u64, into: &mut Vec<u8>) {
        into.clear();
        for (start, length) in pieces(from, length, self.page_bytes * RING_PAGES) {
            // SAFETY: within the pages behind the first. The kernel writes only behind the head and,
            // since the mapping is writable, never over what lies between tail and head.
            let piece = unsafe {
                std::slice::from_raw_parts(
                    self.notes
                        .as_ptr()
                        .cast::<u8>()
                        .add(self.page_bytes + start),
                    length,
                )
            };
            into.extend_from_slice(piece);
        }
    }

    fn take(&mut self, record: &mut Vec<u8>, each: &mut dyn FnMut(NewMapping)) -> u64 {
        let tail = self.tail();
        // What the kernel wrote before it moved the head is there.
        let end = self.head().load(Ordering::Acquire);
        let mut at = tail.load(Ordering::Relaxed);
        let mut lost = 0;
        while at < end {
            self.copy(at, (end - at).min(HEADER_BYTES as u64), record);
            let Some(length) = record_length(record).filter(|length| *length <= end - at) else {
                // No record is so; what follows cannot be found.
                at = end;
                break;
            };
            self.copy(at, length, record);
            match decode(record) {
                Record::Mapping(mapping) => each(mapping),
                Record::Lost(count) => lost += count,
                Record::Other => {}
            }
            at += length;
            // The room is free from here on.
            tail.store(at, Ordering::Release);
        }
        tail.store(at, Ordering::Release);
        lost
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the very range that mmap gave; nothing refers to it any more.
        unsafe {
            libc::munmap(
                self.notes.as_ptr().cast(),
                self.page_bytes * (1 + RING_PAGES),
            );
        }
    }
}

/// Where in a ring some bytes are, as (start, length): in two pieces if they go past its end. The
/// size is a power of two.
fn pieces(from: u64, length: u64, size: usize) -> [(usize, usize); 2] {
    // Reduced to the size of the ring.
    #[allow(clippy::cast_possible_truncation)]
    let start = from as usize & (size - 1);
    let length = usize::try_from(length).unwrap_or(size).min(size);
    let before_end = length.min(size - start);
    [(start, before_end), (0, length - before_end)]
}

/// `PERF_ATTR_SIZE_VER3` of `linux/perf_event.h`.
const ATTR_BYTES: u32 = 96;

const HEADER_BYTES: usize = size_of::<perf_event_header>();

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
enum Record {
    /// A file has been mapped, executable.
    Mapping(NewMapping),
    /// So many records have found no room.
    Lost(u64),
    /// What is of no interest: generated code, the kernel's own pages.
    Other,
}

/// A number in a record.
fn number<const N: usize>(record: &[u8], offset: usize) -> Option<[u8; N]> {
    record.get(offset..offset + N)?.try_into().ok()
}

/// The bytes that a record has, its header included.
fn record_length(record: &[u8]) -> Option<u64> {
    let length = u16::from_ne_bytes(number(record, offset_of!(perf_event_header, size))?);
    (usize::from(length) >= HEADER_BYTES).then_some(u64::from(length))
}

fn decode(record: &[u8]) -> Record {
    const MAPPING: u32 = perf_event_type::PERF_RECORD_MMAP2 as u32;
    const LOST: u32 = perf_event_type::PERF_RECORD_LOST as u32;
    let kind = number(record, offset_of!(perf_event_header, type_)).map(u32::from_ne_bytes);
    let decoded = match kind {
        Some(MAPPING) => decode_mapping(record).map(Record::Mapping),
        // The event's number, then the count.
        Some(LOST) => number(record, HEADER_BYTES + 8)
            .map(u64::from_ne_bytes)
            .map(Record::Lost),
        _ => None,
    };
    decoded.unwrap_or(Record::Other)
}

/// Behind the header come pid, tid (32 bits each), address, length, offset (64), device's major and
/// minor (32), inode, generation (64), protection, flags (32) and the path, which ends with a zero.
fn decode_mapping(record: &[u8]) -> Option<NewMapping> {
    let half = |offset| number(record, HEADER_BYTES + offset).map(u32::from_ne_bytes);
    let whole = |offset| number(record, HEADER_BYTES + offset).map(u64::from_ne_bytes);
    let path = record.get(HEADER_BYTES + 64..)?;
    let path = path.split(|byte| *byte == 0).next()?;
    let (path, deleted) = shown_path(path)?;
    let inode = whole(40)?;
    if inode == 0 || half(56)? & EXECUTABLE == 0 {
        return None;
    }
    Some(NewMapping {
        pid: half(0)?,
        tid: half(4)?,
        start: whole(8)?,
        length: whole(16)?,
        offset: whole(24)?,
        device: (half(32)?, half(36)?),
        inode,
        generation: whole(48)?,
        path: PathBuf::from(OsStr::from_bytes(path)),
        deleted,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        process::Command,
        sync::{Mutex, MutexGuard, PoisonError},
    };

    use super::*;

    /// A record of a mapping as kernel 6.18 writes it.
    fn record(path: &[u8], inode: u64, protection: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(10_u32.to_ne_bytes());
        bytes.extend(2_u16.to_ne_bytes());
        bytes.extend(0_u16.to_ne_bytes());
        bytes.extend(4711_u32.to_ne_bytes());
        bytes.extend(4712_u32.to_ne_bytes());
        for word in [0x7f00_0000_1000, 0x2000, 0x3000_u64] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(259_u32.to_ne_bytes());
        bytes.extend(10_u32.to_ne_bytes());
        bytes.extend(inode.to_ne_bytes());
        bytes.extend(99_u64.to_ne_bytes());
        bytes.extend(protection.to_ne_bytes());
        bytes.extend(2_u32.to_ne_bytes());
        bytes.extend(path);
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let length = u16::try_from(bytes.len()).unwrap();
        bytes[6..8].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    fn expected(path: &str, deleted: bool) -> NewMapping {
        NewMapping {
            pid: 4711,
            tid: 4712,
            start: 0x7f00_0000_1000,
            length: 0x2000,
            offset: 0x3000,
            device: (259, 10),
            inode: 8,
            generation: 99,
            path: path.into(),
            deleted,
        }
    }

    #[test]
    fn a_mapping_is_decoded() {
        let library = record(b"/opt/my libs/libcudart.so.12", 8, 5);
        assert_eq!(record_length(&library), Some(104));
        let found = decode(&library);
        let mapping = expected("/opt/my libs/libcudart.so.12", false);
        assert_eq!(
            mapping.mapping(),
            Mapping {
                start: 0x7f00_0000_1000,
                end: 0x7f00_0000_3000,
                executable: true,
                device: (259, 10),
                inode: 8,
                path: "/opt/my libs/libcudart.so.12".into(),
                deleted: false,
            }
        );
        assert_eq!(found, Record::Mapping(mapping));
        assert_eq!(
            decode(&record(b"/memfd:jit (deleted)", 8, 7)),
            Record::Mapping(expected("/memfd:jit", true))
        );
    }

    #[test]
    fn what_is_no_executable_file_is_passed_over() {
        for other in [
            record(b"/x", 8, 3),
            record(b"/x", 0, 5),
            record(b"//anon", 8, 5),
            record(b"[vdso]", 8, 5),
            record(b"", 8, 5),
        ] {
            assert_eq!(decode(&other), Record::Other);
        }
        let whole = record(b"", 8, 5);
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length]), Record::Other);
        }
        assert_eq!(record_length(&[0; 8]), None);
        assert_eq!(record_length(&[0; 7]), None);
    }

    #[test]
    fn lost_records_are_counted() {
        let mut bytes = Vec::new();
        bytes.extend(2_u32.to_ne_bytes());
        bytes.extend([0, 0, 24, 0]);
        bytes.extend(5_u64.to_ne_bytes());
        assert_eq!(decode(&bytes), Record::Other);
        bytes.extend(42_u64.to_ne_bytes());
        assert_eq!(decode(&bytes), Record::Lost(42));
    }

    #[test]
    fn a_ring_wraps() {
        assert_eq!(pieces(0, 8, 8192), [(0, 8), (0, 0)]);
        assert_eq!(pieces(8184, 8, 8192), [(8184, 8), (0, 0)]);
        assert_eq!(pieces(8184, 104, 8192), [(8184, 8), (0, 96)]);
        assert_eq!(pieces(3 * 8192 + 8, 16, 8192), [(8, 16), (0, 0)]);
        assert_eq!(pieces(u64::MAX - 7, 16, 8192), [(8184, 8), (0, 8)]);
        assert_eq!(pieces(4096, u64::MAX, 8192), [(4096, 4096), (0, 4096)]);
    }

    #[test]
    fn cpus_are_listed_as_ranges() {
        assert_eq!(parse_cpus("0\n"), Some(vec![0]));
        assert_eq!(parse_cpus("0-2,5,8-9\n"), Some(vec![0, 1, 2, 5, 8, 9]));
        assert_eq!(parse_cpus(""), None);
        assert_eq!(parse_cpus("0-x"), None);
    }

    /// One test at a time: each watches all processes.
    fn open(test: &str) -> Option<(Watch, MutexGuard<'static, ()>)> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        match Watch::open() {
            Ok(watch) => Some((watch, alone)),
            Err(error @ WatchError::NoPermission { .. }) => {
                eprintln!("SKIPPED {test}: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Paths of what a process maps, as they come, until one of them ends so.
    fn paths(watch: &mut Watch, pid: u32, last: &str) -> Vec<PathBuf> {
        let start = Instant::now();
        let mut paths: Vec<PathBuf> = Vec::new();
        while !paths.iter().any(|path| path.ends_with(last)) {
            assert!(start.elapsed() < Duration::from_secs(10), "{paths:?}");
            watch.wait(Duration::from_millis(100)).unwrap();
            watch.take(&mut |mapping| {
                if mapping.pid == pid {
                    paths.push(mapping.path);
                }
            });
        }
        paths
    }

    #[test]
    fn a_program_that_starts_is_seen_with_its_libraries() {
        let Some((mut watch, _alone)) = open("a_program_that_starts_is_seen_with_its_libraries")
        else {
            return;
        };
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let paths = paths(&mut watch, child.id(), "libc.so.6");
        // That of exec itself; what the fork copies from this process is not told again.
        assert_eq!(paths[0], fs::canonicalize("/bin/true").unwrap());
        child.wait().unwrap();
    }

    #[test]
    fn the_ring_goes_round_without_loss() {
        let Some((mut watch, _alone)) = open("the_ring_goes_round_without_loss") else {
            return;
        };
        let file = fs::File::open("/bin/true").unwrap();
        let path = fs::canonicalize("/bin/true").unwrap();
        let pid = std::process::id();
        // Some six times round; again where others map so much meanwhile that there was no room.
        let whole = (0..20).any(|_| {
            let (mut seen, mut lost) = (0, 0);
            for _ in 0..400 {
                map(&file);
                lost += watch.take(&mut |mapping| {
                    let own = mapping.pid == pid && mapping.path == path;
                    seen += u32::from(own && mapping.length == 4096);
                });
            }
            assert!(seen == 400 || lost > 0, "{seen} seen, {lost} lost");
            lost == 0
        });
        assert!(whole);
    }

    #[test]
    fn a_mapping_is_taken_within_a_millisecond() {
        let Some((mut watch, _alone)) = open("a_mapping_is_taken_within_a_millisecond") else {
            return;
        };
        let file = fs::File::open("/bin/true").unwrap();
        let pid = std::process::id();
        let (from, to) = std::sync::mpsc::channel();
        let watching = thread::spawn(move || {
            let mut seen = 0;
            while seen < 20 {
                watch.wait(Duration::from_secs(10)).unwrap();
                watch.take(&mut |mapping| {
                    if mapping.pid == pid && mapping.path.ends_with("true") {
                        seen += 1;
                        from.send(Instant::now()).unwrap();
                    }
                });
            }
        });
        // The machine may have other things to do at any one time, but not at all of them.
        let fastest = (0..20)
            .map(|_| {
                thread::sleep(2 * PAUSE);
                let mapped = Instant::now();
                map(&file);
                let taken = to.recv_timeout(Duration::from_secs(10)).unwrap();
                taken.duration_since(mapped)
            })
            .min();
        assert!(fastest < Some(Duration::from_millis(1)), "{fastest:?}");
        watching.join().unwrap();
    }

    /// Maps a page of a file, executable, for a moment.
    fn map(file: &fs::File) {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        // SAFETY: what has just been mapped.
        unsafe { libc::munmap(start, 4096) };
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let Some((mut watch, _alone)) = open("what_finds_no_room_is_counted") else {
            return;
        };
        // More than all rings hold.
        let programs = 40 * watch.rings.len();
        for _ in 0..programs {
            Command::new("/bin/true").status().unwrap();
        }
        let (mut seen, mut lost) = (0, watch.take(&mut |_| {}));
        for _ in 0..watch.rings.len() * 20 {
            // With the next record comes the number of those before.
            Command::new("/bin/true").status().unwrap();
            lost += watch.take(&mut |_| seen += 1);
        }
        assert!(lost > 0 && seen > 0, "{lost} lost, {seen} seen");
    }
}
