//! The files that a process has mapped, from the text of `/proc/PID/maps`.

use std::{
    ffi::OsStr,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// What the kernel puts behind the path of a file that has no name any more.
const DELETED: &[u8] = b" (deleted)";

/// A range of a process's memory that shows a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The first address.
    pub(crate) start: u64,
    /// The address behind the last.
    pub(crate) end: u64,
    /// Whether code in it can run.
    pub(crate) executable: bool,
    /// The file system's device number, major and minor; not always that of `stat`: see
    /// [`crate::gpu::file`].
    pub(crate) device: (u32, u32),
    /// The file's number in its file system.
    pub(crate) inode: u64,
    /// The file as the process sees it: below its own root.
    pub(crate) path: PathBuf,
    /// Whether the file has no name any more, by what its path ends with. A file can also be
    /// called so.
    pub(crate) deleted: bool,
}

impl Mapping {
    /// The name of the file without its folders.
    pub(crate) fn file_name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

/// A path as the kernel shows it: without the mark of a deleted file, and whether it had one.
/// `None` for what is no file: `[vdso]`, `//anon`, `anon_inode:`.
pub(crate) fn shown_path(path: &[u8]) -> Option<(&[u8], bool)> {
    if !path.starts_with(b"/") || path.starts_with(b"//") {
        return None;
    }
    Some(match path.strip_suffix(DELETED) {
        Some(path) => (path, true),
        None => (path, false),
    })
}

/// The mappings of files, in the order of their addresses. Lines that are no mapping of a file
/// are passed over.
pub(crate) fn parse(text: &[u8]) -> impl Iterator<Item = Mapping> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line)
}

/// A line is `7f0c4000-7f0c6000 r-xp 00028000 fe:00 131090      /usr/lib/libc.so.6`.
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let path = line.iter().position(|byte| *byte == b'/')?;
    let (numbers, path) = line.split_at(path);
    let mut numbers = std::str::from_utf8(numbers).ok()?.split_whitespace();
    let (start, end) = numbers.next()?.split_once('-')?;
    let permissions = numbers.next()?;
    let _offset = numbers.next()?;
    let (major, minor) = numbers.next()?.split_once(':')?;
    let inode = numbers.next()?.parse().ok()?;
    // What stands between the numbers and a slash is the beginning of another kind of name.
    if inode == 0 || numbers.next().is_some() {
        return None;
    }
    let (path, deleted) = shown_path(path)?;
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        executable: permissions.as_bytes().get(2) == Some(&b'x'),
        device: (
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        ),
        inode,
        path: unescape(path),
        deleted,
    })
}

/// The kernel writes a newline in a path as `\012` and leaves backslashes as they are.
fn unescape(path: &[u8]) -> PathBuf {
    const NEWLINE: &[u8] = br"\012";
    if !path.windows(NEWLINE.len()).any(|part| part == NEWLINE) {
        return Path::new(OsStr::from_bytes(path)).to_owned();
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(byte) = rest.first() {
        if let Some(behind) = rest.strip_prefix(NEWLINE) {
            bytes.push(b'\n');
            rest = behind;
        } else {
            bytes.push(*byte);
            rest = &rest[1..];
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TEXT: &[u8] = br"55d0c7a00000-55d0c7a02000 r--p 00000000 fe:00 1311                       /usr/bin/cat
55d0c7a02000-55d0c7a07000 r-xp 00002000 fe:00 1311                       /usr/bin/cat
55d0e6b3c000-55d0e6b5d000 rw-p 00000000 00:00 0                          [heap]
7f3a10000000-7f3a10021000 rwxp 00000000 00:00 0 
7f3a18a00000-7f3a18b00000 r-xp 00000000 00:30 4611686018428192358        /opt/my libs/libcudart.so.12.8.90
7f3a18c00000-7f3a18d00000 r-xp 0001f000 103:0a 77                         /tmp/odd\012name.so (deleted)
7f3a18d00000-7f3a18d01000 r-xp 00000000 00:01 1043                       /memfd:jit (deleted)
7f3a18d01000-7f3a18d02000 rw-s 00000000 00:01 32769                      /SYSV00000000 (deleted)
7f3a18d02000-7f3a18d03000 r--s 00000000 00:0f 12                         anon_inode:[perf_event]
7f3a18d03000-7f3a18d04000 r--s 00000000 00:0f 12                         anon_inode:/made up
7f3a18d04000-7f3a18d05000 rw-s 00000000 00:05 611                        /dev/nvidia0
7ffd8a5e6000-7ffd8a5e8000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
7f3a18d05000-7f3a18d06000 r-xp 00000000 fe:00 9                          /cut";

    #[test]
    fn files_are_taken_and_nothing_else() {
        let found: Vec<Mapping> = parse(TEXT).collect();
        let paths: Vec<_> = found
            .iter()
            .map(|mapping| {
                (
                    mapping.path.to_str().unwrap(),
                    mapping.executable,
                    mapping.deleted,
                )
            })
            .collect();
        assert_eq!(
            paths,
            [
                ("/usr/bin/cat", false, false),
                ("/usr/bin/cat", true, false),
                ("/opt/my libs/libcudart.so.12.8.90", true, false),
                ("/tmp/odd\nname.so", true, true),
                ("/memfd:jit", true, true),
                ("/SYSV00000000", false, true),
                ("/dev/nvidia0", false, false),
                ("/cut", true, false),
            ]
        );
        assert_eq!(
            found[3],
            Mapping {
                start: 0x7f3a_18c0_0000,
                end: 0x7f3a_18d0_0000,
                executable: true,
                device: (259, 10),
                inode: 77,
                path: "/tmp/odd\nname.so".into(),
                deleted: true,
            }
        );
        assert_eq!(found[2].inode, 4_611_686_018_428_192_358);
        assert_eq!(found[2].file_name(), "libcudart.so.12.8.90");
    }

    #[test]
    fn broken_lines_are_passed_over() {
        for line in [
            "",
            "/",
            "1000 r-xp 0 fe:00 1 /x",
            "1000-2000 r-xp 0 fe 1 /x",
            "1000-2000 r-xp 0 fe:00 /x",
            "1000-zz r-xp 0 fe:00 1 /x",
            "1000-2000 r-xp 0 fe:00 0 /x",
            "1000-2000 r-xp 0 fe:00 1 //anon",
        ] {
            assert_eq!(parse(line.as_bytes()).next(), None, "{line}");
        }
        let bytes = b"1000-2000 r 0 fe:00 1 /\xff\xfe";
        let mapping = parse(bytes).next().unwrap();
        assert!(!mapping.executable);
        assert_eq!(mapping.path.as_os_str().as_bytes(), b"/\xff\xfe");
    }

    #[test]
    fn own_mappings_have_the_own_executable() {
        let text = fs::read("/proc/self/maps").unwrap();
        let own = fs::read_link("/proc/self/exe").unwrap();
        let own: Vec<_> = parse(&text).filter(|mapping| mapping.path == own).collect();
        assert!(own.iter().any(|mapping| mapping.executable));
        assert!(
            own.iter()
                .all(|mapping| !mapping.deleted && mapping.start < mapping.end)
        );
    }
}
