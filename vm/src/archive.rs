//! The archive that a kernel unpacks as its first root file system: cpio in its "newc" layout.

use std::collections::BTreeSet;
use std::path::{Component, Path};

/// What every entry's header begins with.
const MAGIC: &str = "070701";
/// The name of the last entry.
const TRAILER: &str = "TRAILER!!!";

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive that grows in memory. Folders are added as files need them.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds an empty folder, with those above it.
    pub fn folder(&mut self, path: &Path) {
        let mut name = String::new();
        for part in path.components() {
            if let Component::Normal(part) = part {
                if !name.is_empty() {
                    name.push('/');
                }
                name.push_str(&part.to_string_lossy());
                if self.folders.insert(name.clone()) {
                    self.entry(&name, DIRECTORY | 0o755, (0, 0), &[]);
                }
            }
        }
    }

    /// Adds a file that may be executed.
    pub fn file(&mut self, path: &Path, content: &[u8]) {
        let name = self.within(path);
        self.entry(&name, REGULAR | 0o755, (0, 0), content);
    }

    /// Adds a character device by its numbers.
    pub fn character_device(&mut self, path: &Path, major: u32, minor: u32) {
        let name = self.within(path);
        self.entry(&name, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// The archive, ended.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    /// The name of an entry, whose folder is there from now on.
    fn within(&mut self, path: &Path) -> String {
        if let Some(parent) = path.parent() {
            self.folder(parent);
        }
        let name = path.strip_prefix("/").unwrap_or(path);
        name.display().to_string()
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        self.entries += 1;
        self.bytes.extend(MAGIC.bytes());
        let (major, minor) = device;
        // Number, mode, owner, group, links, time, size, device of the archive, of the entry, name, no checksum.
        for field in [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ] {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_brings_its_folders_once() {
        let mut archive = Archive::default();
        archive.file(Path::new("/a/b/one"), b"12345");
        archive.file(Path::new("/a/b/two"), b"");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<_> = text
            .split(MAGIC)
            .skip(1)
            .map(|entry| entry[104..].split('\0').next().unwrap())
            .collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two", TRAILER]);
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_layout_is_newc() {
        let mut archive = Archive::default();
        archive.character_device(Path::new("/c"), 5, 1);
        archive.file(Path::new("/init"), b"abc");
        let bytes = archive.finish();
        let console = "0707010000000100002180000000000000000000000001000000000000000000000000000000000000000500000001\
                       0000000200000000c\0\0\0";
        // 110 bytes of header and two of name.
        assert_eq!(&bytes[..112], &console.as_bytes()[..112]);
        let init = "07070100000002000081ed000000000000000000000001000000000000000300000000000000000000000000000000\
                    0000000500000000init\0\0abc\0";
        assert_eq!(&bytes[112..112 + init.len()], init.as_bytes());
    }
}
