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
}
