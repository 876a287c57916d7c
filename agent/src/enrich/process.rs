//! The agent's own use of the machine, from procfs.

use std::path::Path;

use procfs::{
    ProcError, ProcResult,
    process::{LimitValue, Process},
};

/// What this process takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    pub(crate) resident_bytes: u64,
    pub(crate) virtual_bytes: u64,
    pub(crate) open_fds: u64,
    pub(crate) max_fds: u64,
    /// Since 1970.
    pub(crate) start_time_seconds: f64,
}

/// Reads what this process takes now.
///
/// # Errors
/// When procfs is not mounted at the root given, or hidden.
#[allow(clippy::cast_precision_loss)] // ticks and seconds are far below 2^53
pub(crate) fn usage(procfs: &Path) -> ProcResult<Usage> {
    let process = Process::new_with_root(procfs.join("self"))?;
    let stat = process.stat()?;
    let ticks = procfs::ticks_per_second() as f64;
    let boot_time = boot_time_seconds(&std::fs::read_to_string(procfs.join("stat"))?)
        .ok_or_else(|| ProcError::Other("no btime in stat".to_owned()))?;
    let max_fds = match process.limits()?.max_open_files.soft_limit {
        LimitValue::Value(limit) => limit,
        LimitValue::Unlimited => u64::MAX,
    };
    Ok(Usage {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        resident_bytes: stat.rss * procfs::page_size(),
        virtual_bytes: stat.vsize,
        open_fds: process.fd_count()? as u64,
        max_fds,
        start_time_seconds: boot_time as f64 + stat.starttime as f64 / ticks,
    })
}

/// Memory of this process that is resident, in bytes, and nothing else: a single small file.
pub(crate) fn resident_bytes(procfs: &Path) -> Option<u64> {
    let statm = std::fs::read_to_string(procfs.join("self/statm")).ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * procfs::page_size())
}

/// When the machine started, from the text of `/proc/stat`, in seconds since 1970.
fn boot_time_seconds(stat: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_time_has_its_line() {
        assert_eq!(
            boot_time_seconds("cpu 1 2\nbtime 1790000000\n"),
            Some(1_790_000_000)
        );
        assert_eq!(boot_time_seconds("cpu 1 2\n"), None);
    }

    #[test]
    fn this_process_takes_something() {
        let usage = usage(Path::new("/proc")).unwrap();
        assert!(usage.resident_bytes > 100_000, "{usage:?}");
        assert!(usage.open_fds >= 3, "{usage:?}");
        let resident = resident_bytes(Path::new("/proc")).unwrap();
        assert!(
            resident.abs_diff(usage.resident_bytes) < 10_000_000,
            "{resident}"
        );
        assert!(usage.start_time_seconds > 1.6e9, "{usage:?}");
    }
}
