//! Block devices' names, from sysfs.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

/// Names by number, each looked up once.
#[derive(Debug)]
pub(crate) struct Devices {
    sysfs: PathBuf,
    names: HashMap<u32, Option<String>>,
}

impl Devices {
    pub(crate) fn new(sysfs: PathBuf) -> Self {
        Self {
            sysfs,
            names: HashMap::new(),
        }
    }

    /// The name of a device, `nvme0n1` for instance; `None` where sysfs has no such device.
    pub(crate) fn name(&mut self, device: u32) -> Option<&str> {
        self.names
            .entry(device)
            .or_insert_with(|| name(&self.sysfs, device))
            .as_deref()
    }

    /// Forgets all names, so that the next look-up sees which devices are gone.
    pub(crate) fn forget(&mut self) {
        self.names.clear();
    }
}

/// There is no such disk.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceError {
    /// None at all.
    #[error("no such device; allowed: {0}")]
    Unknown(String),
    /// The kernel counts by disks.
    #[error("a partition; allowed: the whole disk, {0}")]
    Partition(String),
}

/// The number of a disk by its name, its path in `/dev`, or its number as `MAJOR:MINOR`.
///
/// # Errors
/// When there is none, or it is a partition.
pub(crate) fn number(sysfs: &Path, text: &str) -> Result<u32, DeviceError> {
    let path = fs::canonicalize(text).ok();
    let path = path.as_deref().unwrap_or(Path::new(text));
    let name = path.strip_prefix("/dev").unwrap_or(Path::new(text));
    let name = name.to_string_lossy().replace('/', "!");
    let folders = [
        sysfs.join("class/block").join(&name),
        sysfs.join("dev/block").join(&name),
    ];
    let is_name = !name.is_empty() && !name.starts_with('.');
    let found = folders.iter().filter(|_| is_name).find_map(|folder| {
        let number = fs::read_to_string(folder.join("dev")).ok()?;
        let (major, minor) = number.trim().split_once(':')?;
        let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
        Some((folder, major << 20 | minor))
    });
    let Some((folder, number)) = found else {
        return Err(DeviceError::Unknown(disks(sysfs).join(", ")));
    };
    if folder.join("partition").exists() {
        let disk = fs::canonicalize(folder).ok();
        let disk = disk.as_deref().and_then(Path::parent);
        let disk = disk.and_then(Path::file_name).unwrap_or_default();
        let disk = disk.to_string_lossy().replace('!', "/");
        return Err(DeviceError::Partition(disk));
    }
    Ok(number)
}

/// The names of all that are no partitions.
fn disks(sysfs: &Path) -> Vec<String> {
    let entries = fs::read_dir(sysfs.join("block")).into_iter().flatten();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.map(|name| name.replace('!', "/")).collect();
    names.sort_unstable();
    names
}

fn name(sysfs: &Path, device: u32) -> Option<String> {
    let (major, minor) = probes::device_number(device);
    let target = fs::read_link(sysfs.join(format!("dev/block/{major}:{minor}"))).ok()?;
    // sysfs writes a slash in a name (cciss/c0d0) as an exclamation mark.
    Some(target.file_name()?.to_str()?.replace('!', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_in_sysfs_names_the_device() {
        let sysfs = std::env::temp_dir().join(format!("sentry-device-{}", std::process::id()));
        let links = sysfs.join("dev/block");
        fs::create_dir_all(&links).unwrap();
        std::os::unix::fs::symlink("../../devices/x/block/vda", links.join("254:0")).unwrap();
        std::os::unix::fs::symlink("../../devices/y/cciss!c0d0", links.join("104:1")).unwrap();
        assert_eq!(name(&sysfs, 254 << 20).as_deref(), Some("vda"));
        assert_eq!(name(&sysfs, 104 << 20 | 1).as_deref(), Some("cciss/c0d0"));
        assert_eq!(name(&sysfs, 8 << 20), None);
        fs::remove_dir_all(&sysfs).unwrap();
    }

    #[test]
    fn a_disk_goes_by_its_name_path_and_number() {
        let name = format!("sentry-device-number-{}", std::process::id());
        let sysfs = std::env::temp_dir().join(name);
        let link = std::os::unix::fs::symlink::<PathBuf, PathBuf>;
        let disk = sysfs.join("devices/sentry!0");
        fs::create_dir_all(disk.join("sentry!0p1")).unwrap();
        for folder in ["class/block", "dev/block", "block"] {
            fs::create_dir_all(sysfs.join(folder)).unwrap();
        }
        fs::write(disk.join("dev"), "254:16\n").unwrap();
        fs::write(disk.join("sentry!0p1/dev"), "254:17\n").unwrap();
        fs::write(disk.join("sentry!0p1/partition"), "1\n").unwrap();
        link(disk.clone(), sysfs.join("class/block/sentry!0")).unwrap();
        link(disk.clone(), sysfs.join("block/sentry!0")).unwrap();
        link(disk.clone(), sysfs.join("dev/block/254:16")).unwrap();
        let part = disk.join("sentry!0p1");
        link(part, sysfs.join("class/block/sentry!0p1")).unwrap();
        for text in ["sentry/0", "/dev/sentry/0", "254:16"] {
            assert_eq!(number(&sysfs, text), Ok(254 << 20 | 16), "{text}");
        }
        let partition = DeviceError::Partition("sentry/0".to_owned());
        assert_eq!(number(&sysfs, "sentry/0p1"), Err(partition));
        for text in ["", "..", "8:0", "sentry"] {
            let unknown = DeviceError::Unknown("sentry/0".to_owned());
            assert_eq!(number(&sysfs, text), Err(unknown), "{text}");
        }
        fs::remove_dir_all(&sysfs).unwrap();
    }
}
