//! The index of series and the queues of free cells, from the agent's side.

#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of slots come from u32, and hashes are cut on purpose"
)]

use aya::{
    Pod,
    maps::{Array, HashMap, MapData, MapError, Queue},
};

use crate::{Cells, Series, SeriesKey, wire};

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
    /// Most histograms that series can have at once.
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

    /// Puts a series where the programs find it fastest, if there is room.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn publish(&mut self, key: &SeriesKey, series: &Series) -> Result<(), SeriesError> {
        self.slots.put(key, *series).map_err(|source| SeriesError {
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
            Ok(()) | Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
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

    fn put(&mut self, key: &SeriesKey, series: Series) -> Result<(), MapError> {
        let hash = hash(key);
        let Some(slot) = self.window(hash).find(|slot| self.keys[*slot].is_none()) else {
            return Ok(());
        };
        let series = Series {
            tag: tag(hash),
            ..series
        };
        self.keys[slot] = Some(*key);
        let value = wire::series_slot { key: *key, series };
        self.map.set(slot as u32, value, 0)
    }

    fn clear(&mut self, key: &SeriesKey) -> Result<(), MapError> {
        let window = self.window(hash(key)).collect::<Vec<_>>();
        let Some(slot) = window
            .into_iter()
            .find(|slot| self.keys[*slot] == Some(*key))
        else {
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
        self.histogram
            .iter()
            .copied()
            .filter(|cell| u32::from(*cell) != wire::CELL_NONE)
    }

    /// The counter of a series that only counts.
    #[must_use]
    pub fn counter(&self) -> Option<u16> {
        (u32::from(self.counter) != wire::CELL_NONE).then_some(self.counter)
    }
}
