//! Packs the files of the page for the program: what is in `page/src`, and the charts' library if npm has brought it. And
//! tells the linker of the program's layout.

use std::{
    env, fs,
    hash::{DefaultHasher, Hasher},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::Context;
use flate2::{Compression, write::GzEncoder};

/// What npm brings, and the name under which it is served.
const LIBRARY: [(&str, &str); 3] = [
    ("dist/uPlot.iife.min.js", "uplot.js"),
    ("dist/uPlot.min.css", "uplot.css"),
    ("LICENSE", "uplot-license.txt"),
];

fn main() -> anyhow::Result<()> {
    lay_out()?;
    let folder = |variable| env::var_os(variable).map(PathBuf::from).context(variable);
    let page = folder("CARGO_MANIFEST_DIR")?.join("../page");
    let out = folder("OUT_DIR")?;
    let sources = page.join("src");
    let library = page.join("node_modules/uplot");
    println!("cargo::rerun-if-changed={}", sources.display());
    // Cargo takes what is not there for changed, each time; a build after `npm ci` must take it in all the same.
    let watched = if library.exists() { &library } else { &page };
    println!("cargo::rerun-if-changed={}", watched.display());

    let mut files = Vec::new();
    for entry in fs::read_dir(&sources).with_context(|| sources.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        files.push((name.to_string_lossy().into_owned(), path));
    }
    let has_charts = LIBRARY.iter().all(|(file, _)| library.join(file).exists());
    if has_charts {
        let brought = LIBRARY.iter();
        files.extend(brought.map(|(file, name)| ((*name).to_owned(), library.join(file))));
    }
    files.sort();
    let mut listed = Vec::new();
    for (name, path) in files {
        // Filled in for each answer, so it is there as it is.
        if name == "index.html" {
            continue;
        }
        let tag = pack(&path, &out.join(&name)).with_context(|| path.display().to_string())?;
        listed.push(format!(
            r#"File {{ name: {name:?}, tag: "\"{tag:016x}\"", packed: include_bytes!(concat!(env!("OUT_DIR"), "/", {name:?})) }}"#
        ));
    }
    let code = format!(
        "const HAS_CHARTS: bool = {has_charts};\nconst FILES: &[File] = &[\n{}\n];\n",
        listed.join(",\n")
    );
    fs::write(out.join("page.rs"), code)?;
    Ok(())
}

/// Has what is released laid out by `layout.ld`, as GNU's linker and LLVM's do it.
fn lay_out() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=layout.ld");
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    let cannot = |linker: &str| flags.contains(linker);
    if env::var("PROFILE").as_deref() == Ok("release") && !cannot("mold") && !cannot("gold") {
        let folder = env::var("CARGO_MANIFEST_DIR")?;
        println!("cargo::rustc-link-arg-bin=sentry=-Wl,-T,{folder}/layout.ld");
    }
    Ok(())
}

/// Writes a file gzipped; a hash of what is in it.
fn pack(from: &Path, to: &Path) -> anyhow::Result<u64> {
    let bytes = fs::read(from)?;
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(&bytes)?;
    fs::write(to, packed.finish()?)?;
    let mut hash = DefaultHasher::new();
    hash.write(&bytes);
    Ok(hash.finish())
}
