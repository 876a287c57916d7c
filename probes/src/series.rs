//! The index of series and the queues of free cells, from the agent's side.

use aya::{
    Pod,
    maps::{HashMap, MapData, MapError, Queue},
};

use crate::{Cells, Series, SeriesKey, wire};

// SAFETY: plain integers without padding.
unsafe impl Pod for wire::series_key {}
// SAFETY: plain integers without padding.
unsafe impl Pod for wire::series {}

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
    inserts: u16,
    /// Most histograms that series can have at once.
    pub limit: u32,
}

impl SeriesTable {
    pub(crate) fn new(
        index: HashMap<MapData, SeriesKey, Series>,
        free_histograms: Queue<MapData, u16>,
        free_counters: Queue<MapData, u16>,
        inserts: u16,
        limit: u32,
    ) -> Self {
        Self {
            index,
            free_histograms,
            free_counters,
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
        for entry in self.index.iter() {
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

    /// Takes a series out of the index. Its cells may still be written by programs that hold
    /// it; free them with [`Self::free`] after the next collection.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, key: &SeriesKey) -> Result<(), SeriesError> {
        match self.index.remove(key) {
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

    /// Empties both queues and returns the cells: for an audit.
    #[cfg(test)]
    pub(crate) fn drain(&mut self) -> (Vec<u16>, Vec<u16>) {
        let mut take = |queue: &mut Queue<MapData, u16>| {
            let mut cells = Vec::new();
            while let Ok(cell) = queue.pop(0) {
                cells.push(cell);
            }
            cells.sort_unstable();
            cells
        };
        (
            take(&mut self.free_histograms),
            take(&mut self.free_counters),
        )
    }
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
