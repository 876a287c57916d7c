//! Runtimes and compiler of NVIDIA, for the tests on the real ones.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};

/// What is fetched, by version and hash.
const REQUIREMENTS: &str = "agent/tests/gpu/requirements.txt";

/// Fetches them once, until other ones are asked for. The folder that they are in.
pub(crate) fn fetch() -> anyhow::Result<PathBuf> {
    let folder = folder()?;
    let wanted = fs::read_to_string(REQUIREMENTS).context(REQUIREMENTS)?;
    let lock = fs::create_dir_all(&folder).and_then(|()| File::create(folder.join("lock")));
    let lock = lock.with_context(|| folder.display().to_string())?;
    lock.lock()?;
    let folder = folder.canonicalize()?;
    // Says what is in the folder; written last, so that half of them is none of them.
    let stamp = folder.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|present| present == wanted) {
        return Ok(folder);
    }
    eprintln!(
        "==> CUDA's runtimes and compiler: 105 MB from PyPI, into {}",
        folder.display()
    );
    let _ = fs::remove_file(&stamp);
    install(&folder)?;
    fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())?;
    Ok(folder)
}

fn install(folder: &Path) -> anyhow::Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps"])
        .args(["--only-binary", ":all:", "--require-hashes"])
        // A folder of one's own takes no virtual environment, and is no place for a second copy.
        .args(["--no-cache-dir", "--disable-pip-version-check", "--upgrade"])
        .args([
            "--root-user-action",
            "ignore",
            "--requirement",
            REQUIREMENTS,
        ])
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
        "CUDA's runtimes and compiler, which the tests of the GPU probe take, cannot be fetched from PyPI: {reason}"
    );
    Ok(())
}

/// `SENTRY_CUDA_CACHE`, else the user's folder for such things.
fn folder() -> anyhow::Result<PathBuf> {
    let folder = |name| env::var_os(name).map(PathBuf::from);
    folder("SENTRY_CUDA_CACHE")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("sentry/cuda")))
        .or_else(|| Some(folder("HOME")?.join(".cache/sentry/cuda")))
        .context("neither SENTRY_CUDA_CACHE nor HOME says where CUDA's parts may be kept")
}
