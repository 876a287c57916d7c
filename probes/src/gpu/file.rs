//! The files behind mappings: opening the very one that a process has mapped, in its container,
//! and telling whether two mappings show one file.
//!
//! A container's files lie in an overlay file system, of which each container has its own mount.
//! The kernel hooks the file beneath, so two mounts of it must be hooked once. What two overlays
//! over one folder show of a file in it (kernel 6.18):
//!
//! | | `stat` device | `maps` device | inode | size, mtime, birth |
//! |---|---|---|---|---|
//! | all layers in one file system | the overlay's | the overlay's | the file's | the file's |
//! | layers in several | one made up for the layer | the overlay's | the file's | the file's |
//! | the same with `xino=on` | the overlay's | the overlay's | the file's, with the layer's number in the upper bits | the file's |
//! | after copy-up (`chown`, `touch`) | as above | as above | **still the file's** | birth is the copy's |
//!
//! On older kernels `maps` shows device and inode of the file beneath. So the device says nothing, the
//! inode needs its upper bits cut off, and a copy, which has to be hooked on its own, is known by
//! its birth alone: its build id, inode, size and mtime are the same. The change time would not
//! do instead: a hard link or an unlink changes it under a process that goes on.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    mem::MaybeUninit,
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::gpu::maps::Mapping;

/// The kinds of file system (linux/magic.h) whose device numbers need not be those of `maps`.
const OVERLAY: u64 = 0x794c_7630;
/// As above: each subvolume has a number of its own.
const BTRFS: u64 = 0x9123_683e;
const FUSE: u64 = 0x6573_5546;

/// With `xino` an overlay puts the layer's number into an inode's upper bits, from the top. No file
/// system counts beyond the lower ones.
const INODE_MASK: u64 = (1 << 48) - 1;

/// A file, the same through every mount that shows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId {
    content: Content,
    inode: u64,
    /// When the file was made, where the file system knows: a copy has the inode of what it is
    /// a copy of, in an overlay.
    birth: Option<SystemTime>,
    /// A FUSE file system's own: the kernel knows nothing of a file beneath, so that each mount's
    /// has to be hooked.
    device: Option<u64>,
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Content {
    BuildId(Vec<u8>),
    /// Bytes and the time of the last change, in seconds and nanoseconds.
    Unsigned {
        size: u64,
        modified: (i64, i64),
    },
}

impl FileId {
    /// The identity of an open file with the build id that it has.
    ///
    /// # Errors
    /// When the file system does not answer.
    pub(crate) fn new(file: &File, build_id: Option<&[u8]>) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let device = (file_system(file)? == FUSE).then(|| metadata.dev());
        Ok(Self {
            content: build_id.map_or_else(
                || Content::Unsigned {
                    size: metadata.len(),
                    modified: (metadata.mtime(), metadata.mtime_nsec()),
                },
                |id| Content::BuildId(id.to_vec()),
            ),
            inode: metadata.ino() & INODE_MASK,
            birth: metadata.created().ok(),
            device,
        })
    }
}

/// Opens the very file that a process has mapped, and says by which path the kernel can be told
/// to hook it as long as the file is open: nothing that happens to the name or the process in
/// between makes that another file.
///
/// `procfs` is where the processes are, `/proc`. Looking through `PID/root` takes
/// `CAP_SYS_PTRACE`; a file whose name is gone is found by `PID/map_files`, which takes
/// `CAP_CHECKPOINT_RESTORE` or `CAP_SYS_ADMIN`, or as `PID/exe`.
///
/// # Errors
/// When the process has ended, has unmapped the file or may not be looked at.
pub(crate) fn open_mapped(
    procfs: &Path,
    pid: u32,
    mapping: &Mapping,
) -> io::Result<(File, PathBuf)> {
    let process = procfs.join(pid.to_string());
    let by_name = (!mapping.deleted).then(|| {
        let below = mapping.path.strip_prefix("/").unwrap_or(&mapping.path);
        process.join("root").join(below)
    });
    let range = format!("{:x}-{:x}", mapping.start, mapping.end);
    let unnamed = [process.join("map_files").join(range), process.join("exe")];
    let mut refusal = None;
    for path in by_name.into_iter().chain(unnamed) {
        match open_same(&path, mapping) {
            Ok(file) => {
                let path = attach_path(&file);
                return Ok((file, path));
            }
            // The first says most: the others are for files that have no name any more.
            Err(error) => {
                refusal.get_or_insert_with(|| {
                    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                });
            }
        }
    }
    Err(refusal.unwrap_or_else(|| ErrorKind::NotFound.into()))
}

/// An open file as a path, which the kernel follows to the file itself.
fn attach_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

fn open_same(path: &Path, mapping: &Mapping) -> io::Result<File> {
    // What is there now may be a device or a pipe, which to open would do something.
    let place = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH)
        .open(path)?;
    let metadata = place.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            ErrorKind::InvalidInput,
            "it is no regular file",
        ));
    }
    let device = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    let same_inode = metadata.ino() & INODE_MASK == mapping.inode & INODE_MASK;
    let same_device = || {
        Ok::<_, io::Error>(
            device == mapping.device || matches!(file_system(&place)?, OVERLAY | BTRFS),
        )
    };
    if !same_inode || !same_device()? {
        return Err(io::Error::new(
            ErrorKind::NotFound,
            "another file is there than the one that is mapped",
        ));
    }
    File::open(attach_path(&place))
}

/// Which kind of file system a file is in: its number in linux/magic.h.
fn file_system(file: &File) -> io::Result<u64> {
    let mut answer = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: an open file, and room for one statfs.
    if unsafe { libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatfs succeeded, so it has filled all of it.
    let answer = unsafe { answer.assume_init() };
    // Signed with glibc, unsigned with musl.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
    Ok(answer.f_type as u64)
}

/// The version in the real name of a library: `12.8.90` of `libcudart.so.12.8.90`.
pub(crate) fn version(file_name: &OsStr) -> Option<&str> {
    let (_, version) = file_name.to_str()?.split_once(".so.")?;
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    version.split('.').all(is_number).then_some(version)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead, BufReader},
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    use aya_obj::generated::perf_event_attr;

    use super::*;
    use crate::gpu::{
        elf::{Elf, Tables},
        maps,
    };

    const PROC: &str = "/proc";

    /// Waits for it: a program that is starting has nothing mapped for a moment.
    fn mapping_of(pid: u32, matches: impl Fn(&Mapping) -> bool) -> Mapping {
        let start = Instant::now();
        loop {
            let text = fs::read(format!("/proc/{pid}/maps")).unwrap();
            let found = maps::parse(&text).find(|mapping| mapping.executable && matches(mapping));
            if let Some(mapping) = found {
                return mapping;
            }
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::yield_now();
        }
    }

    fn open(pid: u32, mapping: &Mapping) -> io::Result<File> {
        open_mapped(Path::new(PROC), pid, mapping).map(|(file, _)| file)
    }

    fn is_root(test: &str) -> bool {
        // SAFETY: takes nothing and cannot fail.
        let is_root = unsafe { libc::geteuid() } == 0;
        if !is_root {
            eprintln!("SKIPPED {test}: needs root");
        }
        is_root
    }

    #[test]
    fn versions_are_in_real_names() {
        for (name, expected) in [
            ("libcudart.so.12.8.90", Some("12.8.90")),
            ("libcuda.so.550.54.15", Some("550.54.15")),
            ("libcudart.so.13", Some("13")),
            ("libcudart.so", None),
            ("libcudart.so.", None),
            ("libcudart.so.12.bak", None),
            ("python3.11", None),
        ] {
            assert_eq!(version(OsStr::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn another_file_in_the_place_of_the_mapped_one_is_refused() {
        let pid = std::process::id();
        let own = fs::read_link("/proc/self/exe").unwrap();
        let mapping = mapping_of(pid, |mapping| mapping.path == own);
        let file = open(pid, &mapping).unwrap();
        assert_eq!(file.metadata().unwrap().ino(), mapping.inode);
        let other = Mapping {
            inode: mapping.inode + 1,
            ..mapping.clone()
        };
        let error = open(pid, &other).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "/proc/{pid}/root{}: another file is there than the one that is mapped",
                own.display()
            )
        );
        let device = Mapping {
            path: "/dev/null".into(),
            ..other
        };
        let error = open(pid, &device).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("/proc/{pid}/root/dev/null: it is no regular file")
        );
        let error = open(u32::MAX, &mapping).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_file_without_a_name_is_still_found() {
        if !is_root("a_file_without_a_name_is_still_found") {
            return;
        }
        let path = std::env::temp_dir().join(format!("sentry gpu file {}", std::process::id()));
        // A child's copy: this process's, open for writing in another test's fork, could not run.
        let copied = Command::new("cp").arg("/bin/cat").arg(&path).status();
        assert!(copied.unwrap().success());
        let mut child = Command::new(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let named = mapping_of(child.id(), |mapping| mapping.path == path);
        fs::remove_file(&path).unwrap();
        // Another program takes the name.
        fs::copy("/bin/true", &path).unwrap();
        let unnamed = mapping_of(child.id(), |mapping| mapping.path == path);
        assert!(!named.deleted && unnamed.deleted);
        let expected = fs::read("/bin/cat").unwrap();
        for mapping in [&named, &unnamed] {
            let mut file = open(child.id(), mapping).unwrap();
            let mut found = Vec::new();
            io::Read::read_to_end(&mut file, &mut found).unwrap();
            assert!(found == expected);
        }
        // Without a range that is mapped it is still the main executable.
        let elsewhere = Mapping {
            start: 0,
            end: 4096,
            ..unnamed.clone()
        };
        assert!(open(child.id(), &elsewhere).is_ok());
        fs::remove_file(&path).unwrap();
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(
            open(child.id(), &unnamed).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }

    /// Shell commands in mounts of their own, which end with their standard input.
    fn in_own_mounts(script: &str) -> Child {
        Command::new("unshare")
            .args(["-m", "sh", "-ec", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn id(pid: u32, name: &str, by_build: bool) -> FileId {
        let mapping = mapping_of(pid, |mapping| mapping.file_name() == name);
        let file = open(pid, &mapping).unwrap();
        let build_id = Elf::read(&file).unwrap().build_id.unwrap();
        FileId::new(&file, by_build.then_some(build_id.as_slice())).unwrap()
    }

    #[test]
    fn one_file_through_many_mounts_is_one() {
        if !is_root("one_file_through_many_mounts_is_one") {
            return;
        }
        // The fourth has its layers in two file systems and tells them apart by upper bits of the
        // inode; the fifth has a copy of its own.
        let mut shell = in_own_mounts(
            "dir=$(mktemp -d); mount -t tmpfs t $dir; cd $dir
            mkdir disk more; mount -t tmpfs d disk; cp /bin/cat disk/
            for i in 1 2 3 5; do
                mkdir u$i w$i m$i
                mount -t overlay o -o lowerdir=disk,upperdir=u$i,workdir=w$i m$i
            done
            mkdir m4; mount -t overlay o -o lowerdir=disk:more,xino=on m4
            chown 1 m5/cat
            exec 3<&0
            disk/cat <&3 & echo $!
            for i in 1 2 3 4 5; do m$i/cat <&3 & echo $!; done
            echo; wait; cd /; umount -R $dir; rmdir $dir",
        );
        let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
        let pids: Vec<u32> = lines
            .by_ref()
            .map_while(|line| line.unwrap().parse().ok())
            .collect();
        assert_eq!(pids.len(), 6);
        for by_build in [true, false] {
            let ids: Vec<_> = pids.iter().map(|pid| id(*pid, "cat", by_build)).collect();
            for same in &ids[1..5] {
                assert_eq!(*same, ids[0]);
            }
            assert_ne!(ids[5], ids[0]);
            assert_eq!(
                (ids[5].inode, &ids[5].content),
                (ids[0].inode, &ids[0].content)
            );
        }
        drop(shell.stdin.take());
        assert!(shell.wait().unwrap().success());
    }

    /// How often a place in a file is passed by this thread while `run` runs, by the kernel's
    /// own count.
    fn passes(path: &Path, offset: u64, run: impl FnOnce()) -> u64 {
        let kind = fs::read_to_string("/sys/bus/event_source/devices/uprobe/type").unwrap();
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: numbers and addresses, for all of which zero is valid.
        let mut attr: perf_event_attr = unsafe { std::mem::zeroed() };
        attr.type_ = kind.trim().parse().unwrap();
        attr.size = u32::try_from(size_of::<perf_event_attr>()).unwrap();
        attr.__bindgen_anon_3.uprobe_path = name.as_ptr() as u64;
        attr.__bindgen_anon_4.probe_offset = offset;
        // SAFETY: the attributes and the path live until it returns.
        let fd = unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attr, 0, -1, -1, 8) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: a new descriptor that is nobody else's.
        let mut event: File =
            unsafe { std::os::fd::FromRawFd::from_raw_fd(i32::try_from(fd).unwrap()) };
        run();
        let mut count = [0; 8];
        io::Read::read_exact(&mut event, &mut count).unwrap();
        u64::from_ne_bytes(count)
    }

    #[test]
    fn the_kernel_hooks_a_function_by_path_and_offset() {
        if !is_root("the_kernel_hooks_a_function_by_path_and_offset") {
            return;
        }
        let pid = std::process::id();
        let mapping = mapping_of(pid, |mapping| mapping.file_name() == "libc.so.6");
        let (file, path) = open_mapped(Path::new(PROC), pid, &mapping).unwrap();
        let mut libc = Elf::read(&file).unwrap();
        let found = libc.functions(Tables::Dynamic, &["getppid"]).unwrap();
        for offset in [found[0].offset, found[0].body] {
            let counted = passes(&path, offset, || {
                for _ in 0..3 {
                    // SAFETY: takes nothing and cannot fail.
                    unsafe { libc::getppid() };
                }
            });
            assert_eq!(counted, 3);
        }
    }
}
