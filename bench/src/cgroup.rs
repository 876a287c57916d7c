//! Cgroups by their path in cgroupfs, v1 and v2 alike.

use crate::{Error, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a cgroup may stay busy after its last member was killed.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(5);

/// Where the two hierarchies that matter here are mounted: sockets belong to a cgroup of v2, disk I/O to one of v1 where
/// `blkio` is mounted, else of v2. Where only v1 is mounted, `blkio` stands for both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupRoots {
    /// The v2 hierarchy, the owner of sockets.
    pub v2: PathBuf,
    /// The owner of disk I/O: the v1 `blkio` hierarchy on hybrid hosts, the same as `v2` on pure v2 hosts.
    pub blkio: PathBuf,
}

impl CgroupRoots {
    /// Finds the roots of this machine.
    ///
    /// # Errors
    /// When `/proc/self/mountinfo` is unreadable or names no v2 hierarchy.
    pub fn find() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = fs::read_to_string(path).map_err(Error::at("read", path))?;
        Self::parse(&mountinfo).ok_or_else(|| {
            Error::Argument(format!(
                "{}: neither cgroup2 nor the blkio hierarchy is mounted",
                path.display()
            ))
        })
    }

    /// Finds the roots in the text of a `mountinfo` file; none without a v2 hierarchy.
    #[must_use]
    pub fn parse(mountinfo: &str) -> Option<Self> {
        let mut v2 = None;
        let mut blkio = None;
        for (path, kind, options) in mountinfo.lines().filter_map(parse_mount) {
            if kind == "cgroup2" {
                v2.get_or_insert(path);
            } else if kind == "cgroup" && options.split(',').any(|option| option == "blkio") {
                blkio.get_or_insert(path);
            }
        }
        let v2 = v2.or_else(|| blkio.clone())?;
        let blkio = blkio.unwrap_or_else(|| v2.clone());
        Some(Self { v2, blkio })
    }
}

/// Mount point, type and superblock options of one line of `mountinfo`.
fn parse_mount(line: &str) -> Option<(PathBuf, &str, &str)> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let path = mount.split(' ').nth(4)?;
    let mut fields = filesystem.split(' ');
    let kind = fields.next()?;
    let options = fields.nth(1)?;
    Some((PathBuf::from(unescape(path)), kind, options))
}

/// `mountinfo` writes blanks and backslashes of a path as three octal digits.
fn unescape(path: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(path.to_owned(), |path, (escaped, plain)| {
        path.replace(escaped, plain)
    })
}

/// The v2 cgroup of the calling process, as a directory under `v2_root`.
///
/// # Errors
/// When `/proc/self/cgroup` is unreadable or has no line for v2.
pub fn own_v2(v2_root: &Path) -> Result<PathBuf> {
    let path = Path::new("/proc/self/cgroup");
    let text = fs::read_to_string(path).map_err(Error::at("read", path))?;
    text.lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .map(|cgroup| v2_root.join(cgroup))
        .ok_or_else(|| Error::Argument(format!("{}: no line for cgroup v2", path.display())))
}

/// Moves the calling process, with all its threads, into each of these cgroups (one for each hierarchy).
///
/// # Errors
/// When one of them is no cgroup or does not take the process.
pub fn join<P: AsRef<Path>>(cgroups: &[P]) -> Result<()> {
    cgroups
        .iter()
        .try_for_each(|cgroup| add(cgroup.as_ref(), 0))
}

/// Moves a process into a cgroup; 0 is the calling process, whatever pid namespace it is in.
pub(crate) fn add(cgroup: &Path, pid: u32) -> Result<()> {
    write(cgroup, "cgroup.procs", pid)
}

/// Moves the calling thread alone into a cgroup. Version 1 only: version 2 keeps a process's threads together.
pub(crate) fn add_thread(cgroup: &Path) -> Result<()> {
    write(cgroup, "tasks", 0)
}

fn write(cgroup: &Path, members: &str, id: u32) -> Result<()> {
    // Opened without O_CREAT, so that a wrong path under another file system makes no file there.
    fs::OpenOptions::new()
        .write(true)
        .open(cgroup.join(members))
        .and_then(|mut file| std::io::Write::write_all(&mut file, id.to_string().as_bytes()))
        .map_err(Error::at("join the cgroup", cgroup))
}

/// Makes a cgroup.
pub(crate) fn create(cgroup: &Path) -> Result<()> {
    fs::create_dir(cgroup).map_err(Error::at("make the cgroup", cgroup))
}

/// Removes a cgroup without members, waiting for members that are still exiting. That it is gone already is no error.
pub(crate) fn remove(cgroup: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        match fs::remove_dir(cgroup) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == ErrorKind::ResourceBusy
                    && start.elapsed() < REMOVAL_PATIENCE =>
            {
                sleep(Duration::from_micros(200));
            }
            Err(error) => return Err(Error::at("remove the cgroup", cgroup)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
38 31 0:35 / /sys/fs/cgroup/blkio rw,relatime - cgroup cgroup rw,blkio
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn a_hybrid_host_has_two_roots() {
        let roots = CgroupRoots::parse(HYBRID).unwrap();
        assert_eq!(roots.v2, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(roots.blkio, Path::new("/sys/fs/cgroup/blkio"));
    }

    #[test]
    fn a_pure_v2_host_has_one_root_for_both() {
        let text =
            "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let roots = CgroupRoots::parse(text).unwrap();
        assert_eq!(roots.v2, Path::new("/sys/fs/cgroup"));
        assert_eq!(roots.blkio, roots.v2);
    }

    #[test]
    fn blkio_is_found_among_controllers_that_share_a_mount() {
        let text = "1 2 0:1 / /cg/v2 rw - cgroup2 none rw\n2 2 0:2 / /cg/io rw master:3 - cgroup none rw,cpu,blkio\n";
        assert_eq!(CgroupRoots::parse(text).unwrap().blkio, Path::new("/cg/io"));
    }

    #[test]
    fn v1_alone_owns_both() {
        let roots = CgroupRoots::parse("38 31 0:35 / /cg/blkio rw - cgroup cgroup rw,blkio\n");
        let roots = roots.unwrap();
        assert_eq!(roots.v2, Path::new("/cg/blkio"));
        assert_eq!(roots.blkio, roots.v2);
        assert_eq!(CgroupRoots::parse("garbage\n\n- -\n"), None);
    }

    #[test]
    fn escaped_blanks_are_read() {
        let text = "41 31 0:38 / /mnt/my\\040cgroups\\134x rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            CgroupRoots::parse(text).unwrap().v2,
            Path::new("/mnt/my cgroups\\x")
        );
    }

    #[test]
    fn what_is_no_cgroup_is_refused_and_left_alone() {
        let error = join(&["/proc/no-such-cgroup"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "join the cgroup /proc/no-such-cgroup: No such file or directory (os error 2)"
        );
        assert!(join(&[std::env::temp_dir()]).is_err());
        assert!(!std::env::temp_dir().join("cgroup.procs").exists());
    }
}
