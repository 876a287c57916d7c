//! The table of processes: memory that the programs count in, read without a syscall.

use std::{
    borrow::Cow,
    io,
    mem::offset_of,
    os::fd::AsFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, Queue},
};

use super::{GpuError, Process, Reading, ReadingValue, programs::Programs};
use crate::{
    BUCKETS, Histogram, RunStats, Workload, monotonic_ns,
    pool::Mapping,
    wire::{
        self, GPU_COPIES, GPU_DEVICES, GPU_ERRORS, GPU_PROCESSES, GPU_STARVED_MAX_NS,
        GPU_STATE_EXITED, GPU_STATE_FREE, GPU_STATE_LIVE, GPU_STATE_OTHER, GPU_STREAMS, GPU_SYNCS,
        GPU_WAITS, gpu_device, gpu_error, gpu_process, gpu_stream,
    },
};

// SAFETY: integers and arrays of them, without padding.
unsafe impl Pod for wire::gpu_process {}
// SAFETY: plain integers without padding.
unsafe impl Pod for wire::gpu_handle {}

// As in PROBE.
const LAUNCHES: usize = 0;
const STARVED: usize = 1;
const IDLE: usize = 2;
const GAPS: usize = 3;
const SYNC_WAIT: usize = 4;
const SYNCS: usize = 5;
const COPY_BYTES: usize = 6;
const ALLOCATED: usize = 7;
const ERRORS: usize = 8;
const PROCESSES: usize = 9;

/// `enum gpu_api`
const APIS: [&str; 2] = ["kernel", "graph"];

/// `enum gpu_call`
pub(super) const CALLS: [&str; 10] = [
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
];

/// `enum gpu_copy`
const COPIES: [&str; 5] = [
    "host_to_host",
    "host_to_device",
    "device_to_host",
    "device_to_device",
    "default",
];

/// What is behind the mapping.
struct Maps {
    processes: Array<MapData, gpu_process>,
    process_of: HashMap<MapData, u32, u32>,
    free: Queue<MapData, u32>,
    allocations: HashMap<MapData, wire::gpu_handle, u64>,
}

/// The table, once CUDA has been seen.
pub(super) struct Table {
    mapping: Mapping,
    maps: Mutex<Maps>,
    programs: Mutex<Programs>,
    /// As last read: no scrape waits for an attachment.
    run_stats: Mutex<Vec<RunStats>>,
    /// Of processes whose number has been given out again.
    untracked: AtomicU64,
    pub(super) map_memory_bytes: Vec<(String, u64)>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Table")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn map_error(action: &'static str) -> impl Fn(MapError) -> GpuError {
    move |error| GpuError {
        action,
        source: match error {
            MapError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        },
    }
}

impl Table {
    /// Maps the table and gives the programs their free numbers.
    pub(super) fn new(mut programs: Programs) -> Result<Self, GpuError> {
        let failed = map_error("set up");
        let map_memory_bytes = programs.map_sizes();
        let mut take = |name: &str| {
            programs.take_map(name).ok_or_else(|| GpuError {
                action: "find",
                source: io::Error::new(io::ErrorKind::NotFound, name),
            })
        };
        let processes = take("gpu_processes")?;
        let mapping = Mapping::new(
            "CUDA processes",
            processes.fd().as_fd(),
            GPU_PROCESSES as usize * size_of::<gpu_process>(),
            libc::PROT_READ,
        )
        .map_err(|error| GpuError {
            action: "map",
            source: io::Error::other(error),
        })?;
        let mut maps = Maps {
            processes: Array::try_from(Map::Array(processes)).map_err(&failed)?,
            process_of: HashMap::try_from(Map::HashMap(take("gpu_process_of")?))
                .map_err(&failed)?,
            free: Queue::try_from(Map::Queue(take("gpu_free")?)).map_err(&failed)?,
            allocations: HashMap::try_from(Map::HashMap(take("gpu_allocations")?))
                .map_err(&failed)?,
        };
        let other = gpu_process {
            state: GPU_STATE_OTHER,
            ..gpu_process::default()
        };
        maps.processes.set(0, other, 0).map_err(&failed)?;
        for slot in 1..GPU_PROCESSES {
            maps.free.push(slot, 0).map_err(&failed)?;
        }
        Ok(Self {
            mapping,
            maps: Mutex::new(maps),
            programs: Mutex::new(programs),
            run_stats: Mutex::default(),
            untracked: AtomicU64::new(0),
            map_memory_bytes,
        })
    }

    /// The programs, for those who attach them.
    pub(super) fn programs(&self) -> MutexGuard<'_, Programs> {
        lock(&self.programs)
    }

    /// See [`crate::Programs::run_stats`]; those of before while programs are being attached.
    pub(super) fn run_stats(&self) -> Vec<RunStats> {
        let mut last = lock(&self.run_stats);
        if let Ok(programs) = self.programs.try_lock() {
            *last = programs.run_stats();
        }
        last.clone()
    }

    fn slot(&self, slot: u32) -> Slot<'_> {
        Slot {
            mapping: &self.mapping,
            base: slot as usize * size_of::<gpu_process>(),
        }
    }

    /// Every process that has a number, and the sum of the others if there is any.
    pub(super) fn read(&self, each: &mut dyn FnMut(Process)) {
        for number in 0..GPU_PROCESSES {
            let slot = self.slot(number);
            let state = slot.state();
            if state == GPU_STATE_FREE || (state == GPU_STATE_OTHER && slot.untracked() == 0) {
                continue;
            }
            each(slot.process(number, state));
        }
    }

    /// Calls of processes without a number, and those of the others that were not followed.
    pub(super) fn overflow(&self) -> u64 {
        self.slot(0).untracked()
    }

    pub(super) fn untracked(&self) -> u64 {
        let live: u64 = (1..GPU_PROCESSES).map(|n| self.slot(n).untracked()).sum();
        live + self.untracked.load(Ordering::Relaxed)
    }

    /// Numbers in use, and all.
    pub(super) fn processes(&self) -> (u64, u64) {
        let used = (1..GPU_PROCESSES).filter(|n| self.slot(*n).state() != GPU_STATE_FREE);
        (used.count() as u64, u64::from(GPU_PROCESSES - 1))
    }

    /// Gives the numbers of all exited processes out again, whose values nobody wants.
    pub(super) fn recycle_all(&self) -> Result<(), GpuError> {
        for number in 1..GPU_PROCESSES {
            let slot = self.slot(number);
            if slot.state() == GPU_STATE_EXITED {
                self.recycle(&slot.process(number, GPU_STATE_EXITED))?;
            }
        }
        Ok(())
    }

    /// Gives the number of an exited process out again.
    pub(super) fn recycle(&self, process: &Process) -> Result<(), GpuError> {
        let failed = map_error("free a place in");
        let number = u32::from(process.slot);
        let slot = self.slot(number);
        if slot.state() != GPU_STATE_EXITED || slot.generation() != process.generation {
            return Ok(());
        }
        let mut maps = lock(&self.maps);
        let keys: Vec<wire::gpu_handle> = maps
            .allocations
            .keys()
            .filter_map(Result::ok)
            .filter(|key| key.slot == number && key.generation == process.generation)
            .collect();
        for key in keys {
            // Gone already is as good.
            let _ = maps.allocations.remove(&key);
        }
        self.untracked
            .fetch_add(slot.untracked(), Ordering::Relaxed);
        let empty = gpu_process {
            generation: process.generation.wrapping_add(1),
            ..gpu_process::default()
        };
        maps.processes.set(number, empty, 0).map_err(&failed)?;
        maps.free.push(number, 0).map_err(&failed)
    }

    /// Marks processes as exited that are gone although no program saw their end: it may have been
    /// hidden from it.
    pub(super) fn reap(&self, is_alive: impl Fn(u32) -> bool) -> Result<(), GpuError> {
        // Nobody knows when they ended.
        self.end(is_alive, |device| device.gap_start_ns = 0)
    }

    /// Marks all processes as exited, and ends their gaps now. No program may run: the next call of each is its first
    /// again.
    pub(super) fn end_all(&self) -> Result<(), GpuError> {
        let now = monotonic_ns();
        self.end(
            |_| false,
            |device| {
                if device.gap_start_ns != 0 {
                    let gap = now.saturating_sub(device.gap_start_ns);
                    let first = gap.min(u64::from(GPU_STARVED_MAX_NS));
                    device.starved_ns += first;
                    device.idle_ns += gap - first;
                    device.gap_start_ns = 0;
                }
            },
        )
    }

    fn end(
        &self,
        is_alive: impl Fn(u32) -> bool,
        end_gap: impl Fn(&mut gpu_device),
    ) -> Result<(), GpuError> {
        let failed = map_error("mark the end of a process in");
        for number in 1..GPU_PROCESSES {
            let slot = self.slot(number);
            let tgid = slot.tgid();
            if slot.state() != GPU_STATE_LIVE || is_alive(tgid) {
                continue;
            }
            let mut maps = lock(&self.maps);
            let mut process = maps.processes.get(&number, 0).map_err(&failed)?;
            if process.state == GPU_STATE_LIVE && process.tgid == tgid {
                let _ = maps.process_of.remove(&tgid);
                process.state = GPU_STATE_EXITED;
                process.devices.iter_mut().for_each(&end_gap);
                maps.processes.set(number, process, 0).map_err(&failed)?;
            }
        }
        Ok(())
    }
}

/// A place in the table. Programs write to it at any time.
struct Slot<'a> {
    mapping: &'a Mapping,
    base: usize,
}

macro_rules! field {
    ($slot:expr, $kind:ty, $($path:tt)+) => {
        $slot.mapping.word::<$kind>($slot.base + offset_of!(gpu_process, $($path)+)).load(Ordering::Acquire)
    };
}

impl Slot<'_> {
    fn state(&self) -> u32 {
        field!(self, AtomicU32, state)
    }

    fn generation(&self) -> u32 {
        field!(self, AtomicU32, generation)
    }

    fn tgid(&self) -> u32 {
        field!(self, AtomicU32, tgid)
    }

    fn untracked(&self) -> u64 {
        field!(self, AtomicU64, untracked)
    }

    /// A number within an array of the process.
    fn at(&self, offset: usize, index: usize) -> u64 {
        self.mapping
            .word::<AtomicU64>(self.base + offset + 8 * index)
            .load(Ordering::Acquire)
    }

    fn command(&self) -> String {
        let bytes: Vec<u8> = [0, 8]
            .iter()
            .flat_map(|at| self.at(offset_of!(gpu_process, comm) + at, 0).to_ne_bytes())
            .take_while(|byte| *byte != 0)
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether a device has ever had something to do.
    fn uses(&self, device: usize) -> bool {
        (0..GPU_STREAMS as usize).any(|number| {
            let stream =
                self.base + offset_of!(gpu_process, streams) + number * size_of::<gpu_stream>();
            let last = self
                .mapping
                .word::<AtomicU64>(stream + offset_of!(gpu_stream, last_ns));
            let of = self
                .mapping
                .word::<AtomicU16>(stream + offset_of!(gpu_stream, device));
            last.load(Ordering::Acquire) != 0 && usize::from(of.load(Ordering::Acquire)) == device
        })
    }

    fn process(&self, number: u32, state: u32) -> Process {
        let mut process = Process {
            slot: number as u16,
            generation: self.generation(),
            tgid: self.tgid(),
            other: state == GPU_STATE_OTHER,
            workload: Workload {
                hierarchy: 0,
                cgroup_id: field!(self, AtomicU64, cgroup_id),
            },
            command: self.command(),
            exited: state == GPU_STATE_EXITED,
            readings: Vec::new(),
        };
        self.counters(&mut process.readings);
        self.errors(&mut process.readings);
        for device in 0..GPU_DEVICES as usize {
            // A stream that was destroyed leaves its place to one of another device.
            if self.uses(device) || self.device(device).is_used() {
                self.device(device).readings(device, &mut process.readings);
            }
        }
        if state == GPU_STATE_LIVE {
            process.readings.push(Reading {
                metric: PROCESSES,
                device: None,
                labels: Vec::new(),
                value: ReadingValue::Gauge(1),
            });
            process.readings.push(Reading {
                metric: ALLOCATED,
                device: None,
                labels: Vec::new(),
                value: ReadingValue::Gauge(field!(self, AtomicU64, allocated_bytes)),
            });
        }
        process
    }

    /// What appears with its first event.
    fn counters(&self, readings: &mut Vec<Reading>) {
        let mut add = |metric, labels, value| {
            if !matches!(value, ReadingValue::Counter(0) | ReadingValue::CounterNs(0)) {
                readings.push(Reading {
                    metric,
                    device: None,
                    labels,
                    value,
                });
            }
        };
        for (api, name) in APIS.iter().enumerate() {
            let launches = self.at(offset_of!(gpu_process, launches), api);
            let labels = vec![("api", Cow::Borrowed(*name))];
            add(LAUNCHES, labels, ReadingValue::Counter(launches));
        }
        for (kind, name) in COPIES.iter().enumerate().take(GPU_COPIES as usize) {
            let bytes = self.at(offset_of!(gpu_process, copy_bytes), kind);
            let labels = vec![("kind", Cow::Borrowed(*name))];
            add(COPY_BYTES, labels, ReadingValue::Counter(bytes));
        }
        for (call, name) in CALLS.iter().enumerate().take(GPU_SYNCS as usize) {
            for (waited, label) in ["false", "true"].into_iter().enumerate() {
                let calls = self.at(offset_of!(gpu_process, syncs), 2 * call + waited);
                let labels = vec![("call", Cow::Borrowed(*name)), ("waited", label.into())];
                add(SYNCS, labels, ReadingValue::Counter(calls));
            }
        }
        for (call, name) in CALLS.iter().enumerate().take(GPU_WAITS as usize) {
            let wait_ns = self.at(offset_of!(gpu_process, sync_wait_ns), call);
            let labels = vec![("call", Cow::Borrowed(*name))];
            add(SYNC_WAIT, labels, ReadingValue::CounterNs(wait_ns));
        }
    }

    fn errors(&self, readings: &mut Vec<Reading>) {
        for number in 0..GPU_ERRORS as usize {
            let error =
                self.base + offset_of!(gpu_process, errors) + number * size_of::<gpu_error>();
            let word = |offset| {
                let word = self.mapping.word::<AtomicU32>(error + offset);
                word.load(Ordering::Acquire)
            };
            let count = self
                .mapping
                .word::<AtomicU64>(error + offset_of!(gpu_error, count))
                .load(Ordering::Acquire);
            if count == 0 {
                continue;
            }
            let (call, code) = if number + 1 == GPU_ERRORS as usize {
                ("other", "other".to_owned())
            } else {
                let call = word(offset_of!(gpu_error, call)) as usize;
                let code = word(offset_of!(gpu_error, code));
                (
                    CALLS.get(call).copied().unwrap_or("other"),
                    code.to_string(),
                )
            };
            let labels = vec![("call", call.into()), ("code", code.into())];
            // Two threads can have taken two places for one kind.
            let same = readings
                .iter_mut()
                .find(|reading| reading.metric == ERRORS && reading.labels == labels);
            if let Some(Reading {
                value: ReadingValue::Counter(sum),
                ..
            }) = same
            {
                *sum += count;
                continue;
            }
            readings.push(Reading {
                metric: ERRORS,
                device: None,
                labels,
                value: ReadingValue::Counter(count),
            });
        }
    }

    fn device(&self, device: usize) -> Device<'_> {
        Device {
            mapping: self.mapping,
            base: self.base + offset_of!(gpu_process, devices) + device * size_of::<gpu_device>(),
        }
    }
}

/// The gaps of a process on a device.
struct Device<'a> {
    mapping: &'a Mapping,
    base: usize,
}

impl Device<'_> {
    fn word(&self, offset: usize) -> u64 {
        self.mapping
            .word::<AtomicU64>(self.base + offset)
            .load(Ordering::Acquire)
    }

    fn is_used(&self) -> bool {
        self.word(offset_of!(gpu_device, starved_ns)) != 0
    }

    /// Starved and idle time with the running gap in it.
    fn gap_sums(&self) -> (u64, u64) {
        let mut tries = 0;
        loop {
            let start = self.word(offset_of!(gpu_device, gap_start_ns));
            let starved = self.word(offset_of!(gpu_device, starved_ns));
            let idle = self.word(offset_of!(gpu_device, idle_ns));
            tries += 1;
            // A gap that ended meanwhile may be in neither or in both.
            if self.word(offset_of!(gpu_device, gap_start_ns)) != start && tries < 8 {
                continue;
            }
            let gap = if start == 0 {
                0
            } else {
                monotonic_ns().saturating_sub(start)
            };
            let first = gap.min(u64::from(GPU_STARVED_MAX_NS));
            return (starved + first, idle + (gap - first));
        }
    }

    fn readings(&self, device: usize, readings: &mut Vec<Reading>) {
        let (starved, idle) = self.gap_sums();
        let mut gaps = Histogram {
            sum: self.word(offset_of!(gpu_device, gaps.sum)),
            ..Histogram::default()
        };
        for bucket in 0..BUCKETS {
            let offset = offset_of!(gpu_device, gaps.buckets) + 4 * bucket;
            gaps.buckets[bucket] = self
                .mapping
                .word::<AtomicU32>(self.base + offset)
                .load(Ordering::Acquire);
        }
        for (metric, value) in [
            (STARVED, ReadingValue::CounterNs(starved)),
            (IDLE, ReadingValue::CounterNs(idle)),
            (GAPS, ReadingValue::Histogram(Box::new(gaps))),
        ] {
            readings.push(Reading {
                metric,
                device: Some(device as u32),
                labels: Vec::new(),
                value,
            });
        }
    }
}
