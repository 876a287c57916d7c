//! Pinning threads to CPUs.

use crate::{Error, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The numbers of the CPUs that the calling thread may run on, ascending.
///
/// # Errors
/// When the kernel does not tell.
pub fn allowed() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None).map_err(Error::io("read the CPU affinity"))?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

/// Pins the calling thread to one CPU.
///
/// # Errors
/// When there is no such CPU, or this thread may not run on it.
pub fn pin(cpu: usize) -> Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(Error::Argument(format!(
            "no CPU {cpu}: the highest number is {}",
            CpuSet::MAX_CPU - 1
        )));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(Error::io(format!("pin a thread to CPU {cpu}")))
}
