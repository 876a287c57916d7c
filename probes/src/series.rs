//! The index of series and the queues of free cells, from the agent's side.

#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of slots come from u32, and hashes are cut on purpose"
)]

use aya::{
    Pod,
    maps::{Array, HashMap, MapData, MapError, Queue},
};

use crate::{
    Cells, Series, SeriesKey,
    wire::{self, series_cells as SeriesCells},
};

// SAFETY: plain integers without padding.
unsafe impl Pod for wire::series_key {}
// SAFETY: plain integers without padding.
unsafe impl Pod for wire::series {}
// SAFETY: plain integers without padding.
unsafe impl Pod for wire::series_slot {}

/// A call on the index or a queue failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the series index: {source}")]
pub struct SeriesError {
    action: &'static str,
    source: MapError,
}

/// All series that the kernel side has made, and the means to take them back.
pub struct SeriesTable {
    index: HashMap<MapData, SeriesKey, Series>,
    free_histograms: Queue<MapData, u16>,
    free_counters: Queue<MapData, u16>,
    slots: Slots,
    inserts: u16,
    /// Histograms in the pool, the probes' own included. There are as many counters beside them.
    pub limit: u32,
}

impl SeriesTable {
    pub(crate) fn new(
        index: HashMap<MapData, SeriesKey, Series>,
        free_histograms: Queue<MapData, u16>,
        free_counters: Queue<MapData, u16>,
        slots: Array<MapData, wire::series_slot>,
        inserts: u16,
        limit: u32,
    ) -> Self {
        Self {
            index,
            free_histograms,
            free_counters,
            slots: Slots::new(slots),
            inserts,
            limit,
        }
    }

    /// How many series the kernel side has ever inserted. While this stands still a walk would
    /// find nothing new; reading it makes no syscall.
    #[must_use]
    pub fn inserts(&self, cells: &Cells) -> u64 {
        cells.counter(self.inserts)
    }

    /// Walks the index: two syscalls a series.
    ///
    /// # Errors
    /// When the kernel refuses a look-up.
    pub fn walk(&self, mut each: impl FnMut(SeriesKey, Series)) -> Result<(), SeriesError> {
        for entry in &self.index {
            match entry {
                Ok((key, series)) => each(key, series),
                // Gone between the two syscalls of a step.
                Err(MapError::KeyNotFound | MapError::ElementNotFound) => {}
                Err(source) => {
                    return Err(SeriesError {
                        action: "walk",
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Puts a series with histograms where the programs find it fastest, if there is room.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn publish(&mut self, key: &SeriesKey, series: &Series) -> Result<(), SeriesError> {
        self.slots.put(key, series).map_err(|source| SeriesError {
            action: "publish from",
            source,
        })
    }

    /// Takes a series out of the index. Its cells may still be written by programs that hold
    /// it; free them with [`Self::free`] after the next collection.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, key: &SeriesKey) -> Result<(), SeriesError> {
        let removed = self.slots.clear(key).and_then(|()| self.index.remove(key));
        match removed {
            Ok(()) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(source) => Err(SeriesError {
                action: "remove from",
                source,
            }),
        }
    }

    /// Gives the cells of a removed series out again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn free(&mut self, series: &Series) -> Result<(), SeriesError> {
        let error = |source| SeriesError {
            action: "free cells of",
            source,
        };
        for cell in series.histograms() {
            self.free_histograms.push(cell, 0).map_err(error)?;
        }
        if let Some(cell) = series.counter() {
            self.free_counters.push(cell, 0).map_err(error)?;
        }
        Ok(())
    }

    pub(crate) fn fill(
        &mut self,
        histograms: impl Iterator<Item = u16>,
        counters: impl Iterator<Item = u16>,
    ) -> Result<(), SeriesError> {
        let error = |source| SeriesError {
            action: "fill",
            source,
        };
        for cell in histograms {
            self.free_histograms.push(cell, 0).map_err(error)?;
        }
        for cell in counters {
            self.free_counters.push(cell, 0).map_err(error)?;
        }
        Ok(())
    }
}

/// Half as many slots as histograms: the busiest series have two.
pub(crate) fn slot_count(series_max: u16) -> u32 {
    (u32::from(series_max) / 2).next_power_of_two()
}

/// The slots that programs look into before the index, and what stands in them.
struct Slots {
    map: Array<MapData, wire::series_slot>,
    keys: Vec<Option<SeriesKey>>,
}

impl Slots {
    fn new(map: Array<MapData, wire::series_slot>) -> Self {
        Self {
            keys: vec![None; map.len() as usize],
            map,
        }
    }

    /// The slots that a key may stand in.
    fn window(&self, hash: u64) -> impl Iterator<Item = usize> + use<> {
        let (first, slots) = (first_slot(hash) as usize, self.keys.len());
        (0..wire::SERIES_SLOT_WINDOW as usize).map(move |i| (first + i) & (slots - 1))
    }

    fn put(&mut self, key: &SeriesKey, series: &Series) -> Result<(), MapError> {
        // A series that moved to another serial number leaves its old slot.
        self.clear(key)?;
        // Hooks that do not see the cgroup's state find their series in the index only.
        if series.serial == 0 {
            return Ok(());
        }
        let alias = SeriesKey {
            cgroup_id: series.serial,
            hierarchy: 0,
            ..*key
        };
        let hash = hash(&alias);
        let Some(slot) = self.window(hash).find(|slot| self.keys[*slot].is_none()) else {
            return Ok(());
        };
        self.keys[slot] = Some(*key);
        let cells = SeriesCells {
            tag: tag(hash),
            ..series.cells
        };
        let value = wire::series_slot { key: alias, cells };
        self.map.set(slot as u32, value, 0)
    }

    fn clear(&mut self, key: &SeriesKey) -> Result<(), MapError> {
        let Some(slot) = self.keys.iter().position(|other| *other == Some(*key)) else {
            return Ok(());
        };
        self.keys[slot] = None;
        self.map.set(slot as u32, wire::series_slot::default(), 0)
    }
}

/// `series_hash` of a key.
fn hash(key: &SeriesKey) -> u64 {
    let second = u64::from(key.device)
        | u64::from(key.hierarchy) << 32
        | u64::from(key.kind) << 48
        | u64::from(key.detail) << 56;
    key.cgroup_id.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ second.wrapping_mul(0xc2b2_ae3d_27d4_eb4f)
}

/// `series_first_slot`
fn first_slot(hash: u64) -> u32 {
    (hash >> 40) as u32
}

/// `series_tag`
fn tag(hash: u64) -> u16 {
    (hash >> 24) as u16
}

impl Series {
    /// The histograms that the series has.
    pub fn histograms(&self) -> impl Iterator<Item = u16> + '_ {
        self.cells
            .histogram
            .iter()
            .copied()
            .filter(|cell| u32::from(*cell) != wire::CELL_NONE)
    }

    /// The counter of a series that only counts.
    #[must_use]
    pub fn counter(&self) -> Option<u16> {
        (u32::from(self.cells.counter) != wire::CELL_NONE).then_some(self.cells.counter)
    }
}

/// On the running kernel: needs root, and room for programs.
#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{SocketAddr, TcpListener},
        sync::atomic::{AtomicUsize, Ordering},
        thread,
    };

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::{
        Histogram, Kernel,
        running_kernel::{Cgroup, SERIES_MAX, kernel, process},
        wire::TCP_KIND_HANDSHAKE,
    };

    fn connect(socket: &Socket, to: SocketAddr) {
        socket.connect(&to.into()).unwrap();
    }

    fn client_series(kernel: &Kernel) -> Vec<(SeriesKey, Series, u32)> {
        let mut found = Vec::new();
        let each = |key: SeriesKey, series: Series| {
            if u32::from(key.kind) == TCP_KIND_HANDSHAKE && key.detail == 0 {
                let mut histogram = Histogram::default();
                let cell = series.histograms().next().unwrap();
                kernel.cells.read_histogram(cell, &mut histogram);
                found.push((key, series, histogram.buckets.iter().sum()));
            }
        };
        kernel.series.walk(each).unwrap();
        found
    }

    fn pin(cpu: usize) {
        // SAFETY: a zeroed set is an empty one, and CPU_SET stays within it.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            assert_eq!(
                libc::sched_setaffinity(0, size_of_val(&set), &raw const set),
                0
            );
        }
    }

    /// Two CPUs meet the same new key in each of many rounds. Afterwards every cell is either
    /// free or some series', once.
    #[test]
    fn racing_cpus_leak_no_cell() {
        const ROUNDS: usize = 300;
        let _process = process();
        let Some(mut kernel) = kernel("racing_cpus_leak_no_cell", 0) else {
            return;
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let accept = thread::spawn(move || {
            for _ in 0..2 * ROUNDS {
                drop(listener.accept().unwrap());
            }
        });
        let mut ids = BTreeSet::new();
        for round in 0..ROUNDS {
            let cgroup = Cgroup::enter(&format!("race-{round}"));
            ids.insert(cgroup.id());
            // A socket belongs to the cgroup in which it was made.
            let sockets: [Socket; 2] =
                std::array::from_fn(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());
            let waiting = AtomicUsize::new(2);
            thread::scope(|scope| {
                for (cpu, socket) in sockets.iter().enumerate() {
                    let waiting = &waiting;
                    scope.spawn(move || {
                        pin(cpu);
                        waiting.fetch_sub(1, Ordering::AcqRel);
                        while waiting.load(Ordering::Acquire) > 0 {
                            std::hint::spin_loop();
                        }
                        connect(socket, to);
                    });
                }
            });
        }
        accept.join().unwrap();

        let ours: Vec<_> = client_series(&kernel)
            .into_iter()
            .filter(|(key, _, _)| ids.contains(&key.cgroup_id))
            .collect();
        assert_eq!(ours.len(), ROUNDS);
        for (key, _, count) in &ours {
            assert_eq!(*count, 2, "{key:?}");
        }
        let own: u16 = kernel
            .probes
            .iter()
            .map(|probe| probe.probe.histograms)
            .sum();
        let mut cells = Vec::new();
        while let Ok(cell) = kernel.series.free_histograms.pop(0) {
            cells.push(cell);
        }
        kernel
            .series
            .walk(|_, series| cells.extend(series.histograms()))
            .unwrap();
        cells.sort_unstable();
        assert_eq!(cells, (own..SERIES_MAX).collect::<Vec<_>>());
    }

    /// What the agent publishes is what the programs find: taken out of the index, a published
    /// series goes on counting and is not made anew.
    #[test]
    fn programs_find_what_is_published() {
        let _process = process();
        let Some(mut kernel) = kernel("programs_find_what_is_published", 0) else {
            return;
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let cgroup = Cgroup::enter("published");
        let meet = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            connect(&socket, to);
            drop(listener.accept().unwrap());
        };
        let ours = |kernel: &Kernel| {
            client_series(kernel)
                .into_iter()
                .find(|(key, _, _)| key.cgroup_id == cgroup.id())
        };
        meet();
        let (key, series, count) = ours(&kernel).unwrap();
        assert_eq!(count, 1);
        kernel.series.publish(&key, &series).unwrap();
        kernel.series.index.remove(&key).unwrap();
        meet();
        assert!(
            ours(&kernel).is_none(),
            "the programs did not look into the slots"
        );
        let mut histogram = Histogram::default();
        let cell = series.histograms().next().unwrap();
        kernel.cells.read_histogram(cell, &mut histogram);
        assert_eq!(histogram.buckets.iter().sum::<u32>(), 2);

        // Cleared, it is made anew with another cell.
        kernel.series.remove(&key).unwrap();
        meet();
        let (_, anew, count) = ours(&kernel).unwrap();
        assert_ne!(anew.cells, series.cells);
        assert_eq!(count, 1);
    }

    #[test]
    fn slots_take_what_fits_their_window() {
        let Some(mut kernel) = kernel("slots_take_what_fits_their_window", 0) else {
            return;
        };
        let slots = &mut kernel.series.slots;
        let count = slot_count(SERIES_MAX) as usize;
        assert_eq!(slots.keys.len(), count);
        let key = |cgroup_id: u64| SeriesKey {
            cgroup_id,
            ..SeriesKey::default()
        };
        let series = |serial: u64| Series {
            serial,
            ..Series::default()
        };
        let taken = |slots: &Slots| slots.keys.iter().flatten().count();
        for id in 1..=count as u64 {
            slots.put(&key(id), &series(id)).unwrap();
        }
        // Hashes are spread: most find a place even when the slots are nearly full.
        assert!(taken(slots) > count * 8 / 10, "{} of {count}", taken(slots));
        for id in 1..=count as u64 {
            slots.clear(&key(id)).unwrap();
        }
        assert_eq!(taken(slots), 0);
    }
}
