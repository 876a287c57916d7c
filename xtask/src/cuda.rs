//! Runtimes and compiler of NVIDIA, for the tests on the real ones.

use std::path::PathBuf;

use crate::pypi::Packages;

/// Fetches them once, 105 MB. The folder that they are in.
pub(crate) fn fetch() -> anyhow::Result<PathBuf> {
    let packages = Packages {
        what: "CUDA's runtimes and compiler, which the tests of the GPU probe take",
        requirements: "agent/tests/gpu/requirements.txt",
        variable: "SENTRY_CUDA_CACHE",
        folder: "cuda",
        compiled: false,
    };
    packages.fetch()
}
