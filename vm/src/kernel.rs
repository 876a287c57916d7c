//! A kernel as its packages hold it: the image, and modules with what they need.

use anyhow::{Context, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel in a folder.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    /// The version of its package.
    pub version: String,
    /// The image to boot.
    pub image: PathBuf,
    /// Its modules by name, with `_` for `-`.
    modules: BTreeMap<String, PathBuf>,
    /// The modules that are part of the image.
    built_in: BTreeSet<String>,
}

/// The name of a module by its file.
fn module_name(file: &str) -> Option<String> {
    let (name, kind) = file.split_once(".ko")?;
    ["", ".xz"].contains(&kind).then(|| name.replace('-', "_"))
}

/// What a module needs, by the `depends=` that it carries.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(place) = module.windows(key.len()).position(|bytes| bytes == key) else {
        return Vec::new();
    };
    let value = module[place + key.len()..].split(|byte| *byte == 0).next();
    let value = String::from_utf8_lossy(value.unwrap_or_default());
    let names = value.split(',').filter(|name| !name.is_empty());
    names.map(|name| name.replace('-', "_")).collect()
}

impl Kernel {
    /// Looks through a folder into which packages were unpacked.
    ///
    /// # Errors
    /// When there is no kernel in it.
    pub fn find(folder: &Path, version: &str) -> anyhow::Result<Self> {
        let mut image = None;
        let mut release = None;
        let mut modules = BTreeMap::new();
        let mut built_in = BTreeSet::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(inner) = folders.pop() {
            for entry in fs::read_dir(&inner).with_context(|| inner.display().to_string())? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if path.is_symlink() {
                } else if path.is_dir() {
                    folders.push(path);
                } else if name.starts_with("vmlinuz") {
                    image = Some(path);
                } else if name == "modules.builtin" {
                    release = inner.file_name().map(|name| name.display().to_string());
                    let text = fs::read_to_string(&path)?;
                    let files = text.lines().filter_map(|line| line.rsplit('/').next());
                    built_in = files.filter_map(module_name).collect();
                } else if let Some(module) = module_name(&name) {
                    modules.insert(module, path);
                }
            }
        }
        let context = || format!("{}: no kernel", folder.display());
        Ok(Self {
            release: release.with_context(context)?,
            version: version.to_owned(),
            image: image.with_context(context)?,
            modules,
            built_in,
        })
    }

    /// These modules and what they need, unpacked, in the order in which they are to be loaded. Those that are part of
    /// the image are left out.
    ///
    /// # Errors
    /// When there is no such module, or it cannot be unpacked.
    pub fn modules(&self, names: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
        let mut ordered = Vec::new();
        for name in names {
            self.add(name, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(&self, name: &str, ordered: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
        if self.built_in.contains(name) || ordered.iter().any(|(known, _)| known == name) {
            return Ok(());
        }
        let Some(path) = self.modules.get(name) else {
            bail!("kernel {} has no module {name}", self.release);
        };
        let image = unpacked(path).with_context(|| path.display().to_string())?;
        for needed in depends(&image) {
            self.add(&needed, ordered)?;
        }
        ordered.push((name.to_owned(), image));
        Ok(())
    }
}

/// The content of a file that may be compressed.
fn unpacked(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(fs::read(path)?);
    }
    let mut xz = Command::new("xz");
    xz.args(["--decompress", "--stdout"]).arg(path);
    let output = xz.output().context("xz cannot be run")?;
    ensure!(output.status.success(), "xz: {}", output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_their_files() {
        assert_eq!(
            module_name("virtio-net.ko.xz").as_deref(),
            Some("virtio_net")
        );
        assert_eq!(module_name("loop.ko").as_deref(), Some("loop"));
        assert_eq!(module_name("modules.builtin"), None);
        assert_eq!(module_name("loop.ko.sig"), None);
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let module = b"junk\0alias=x\0depends=net-failover,b\0name=a\0";
        assert_eq!(depends(module), ["net_failover", "b"]);
        assert_eq!(depends(b"\0depends=\0intree=Y\0"), [""; 0]);
        assert_eq!(depends(b"nothing"), [""; 0]);
    }

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let folder = std::env::temp_dir().join(format!("sentry-vm-kernel-{}", std::process::id()));
        let modules = folder.join("lib/modules/9.9-test");
        fs::create_dir_all(&modules).unwrap();
        fs::create_dir_all(folder.join("boot")).unwrap();
        fs::write(folder.join("boot/vmlinuz-9.9-test"), "image").unwrap();
        fs::write(
            modules.join("modules.builtin"),
            "kernel/drivers/nvme/host/nvme.ko\n",
        )
        .unwrap();
        for (name, needs) in [
            ("top", "middle,base"),
            ("middle", "base,nvme"),
            ("base", ""),
        ] {
            fs::write(
                modules.join(format!("{name}.ko")),
                format!("\0depends={needs}\0"),
            )
            .unwrap();
        }
        let kernel = Kernel::find(&folder, "9.9-1").unwrap();
        let names = |wanted: &[&str]| -> Vec<String> {
            let found = kernel.modules(wanted).unwrap();
            found.into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(kernel.release, "9.9-test");
        assert_eq!(names(&["top", "middle", "nvme"]), ["base", "middle", "top"]);
        let missing = kernel.modules(&["other"]).unwrap_err().to_string();
        assert_eq!(missing, "kernel 9.9-test has no module other");
        fs::remove_dir_all(folder).unwrap();
    }
}
