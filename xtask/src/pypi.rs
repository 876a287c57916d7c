//! Packages that tests take and pip fetches.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

/// A list of packages, and where they are kept.
pub(crate) struct Packages {
    /// What they are called in messages.
    pub(crate) what: &'static str,
    /// The file that names them, by version and hash.
    pub(crate) requirements: &'static str,
    /// The variable that names their folder.
    pub(crate) variable: &'static str,
    /// Their folder beneath the user's for such things, without it.
    pub(crate) folder: &'static str,
    /// Whether some hold compiled parts, which are for one version of Python.
    pub(crate) compiled: bool,
}

impl Packages {
    /// Fetches them once, until other ones are asked for or for another Python. The folder that they are in.
    pub(crate) fn fetch(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder()?;
        let mut wanted = fs::read_to_string(self.requirements).context(self.requirements)?;
        if self.compiled {
            wanted += &python_version()?;
        }
        let lock = fs::create_dir_all(&folder).and_then(|()| File::create(folder.join("lock")));
        let lock = lock.with_context(|| folder.display().to_string())?;
        lock.lock()?;
        let folder = folder.canonicalize()?;
        // Says what is in the folder; written last, so that half of them is none of them.
        let stamp = folder.join("requirements.txt");
        if fs::read_to_string(&stamp).is_ok_and(|present| present == wanted) {
            return Ok(folder);
        }
        eprintln!("==> {}: from PyPI, into {}", self.what, folder.display());
        let _ = fs::remove_file(&stamp);
        self.install(&folder)?;
        fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())?;
        Ok(folder)
    }

    fn install(&self, folder: &Path) -> anyhow::Result<()> {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps"])
            .args(["--only-binary", ":all:", "--require-hashes"])
            // A folder of one's own takes no virtual environment, and is no place for a second copy.
            .args(["--no-cache-dir", "--disable-pip-version-check", "--upgrade"])
            .args(["--root-user-action", "ignore", "--requirement"])
            .arg(self.requirements)
            .arg("--target")
            .arg(folder);
        let output = pip.output().context("python3 cannot be run")?;
        let said = String::from_utf8_lossy(&output.stderr);
        // Without a network pip tries again, and then finds no such version.
        let reason = if said.contains("Retrying (") {
            "no answer, is there a network?"
        } else {
            let last = said.lines().rfind(|line| line.starts_with("ERROR"));
            last.or_else(|| said.lines().last())
                .unwrap_or("no reason given")
        };
        ensure!(
            output.status.success(),
            "{}: cannot be fetched from PyPI: {reason}",
            self.what
        );
        Ok(())
    }

    fn folder(&self) -> anyhow::Result<PathBuf> {
        let folder = |name| env::var_os(name).map(PathBuf::from);
        let beneath = |cache: PathBuf| cache.join("sentry").join(self.folder);
        folder(self.variable)
            .or_else(|| Some(beneath(folder("XDG_CACHE_HOME")?)))
            .or_else(|| Some(beneath(folder("HOME")?.join(".cache"))))
            .with_context(|| {
                format!(
                    "neither {} nor HOME says where to keep {}",
                    self.variable, self.what
                )
            })
    }
}

fn python_version() -> anyhow::Result<String> {
    let output = Command::new("python3").arg("--version").output();
    let output = output.context("python3 cannot be run")?;
    Ok(String::from_utf8(output.stdout)?)
}
