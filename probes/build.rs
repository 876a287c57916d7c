//! Compiles the probes' programs with clang and makes Rust types of the headers that
//! both sides share.
//!
//! Each folder of `src/` with a `probe.bpf.c` is a probe. All of them go into one object,
//! so that they share their maps and the kernel's BTF is read once; but for those that are loaded
//! when they are needed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, exit},
};

use object::{
    build::elf::{Builder, Section, SectionData},
    elf::SHT_STRTAB,
};

/// Folders whose programs are an object of their own, and another one that tells of single events: their maps and
/// code are then no part of what counts.
const APART: [&str; 1] = ["gpu"];

fn main() {
    if let Err(message) = build() {
        println!("cargo::error={message}");
        exit(1);
    }
}

fn build() -> Result<(), String> {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|error| error.to_string())?);
    let folders = probe_folders(Path::new("src"))?;
    let mut includes = vec!["-Ibpf".to_owned(), "-Isrc".to_owned()];
    // Debian keeps <asm/types.h> per architecture.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").map_err(|error| error.to_string())?;
    includes.push(format!("-I/usr/include/{arch}-linux-gnu"));
    // Which registers a function's arguments are in: the names of bpf/bpf_tracing.h.
    let registers = match arch.as_str() {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        other => {
            return Err(format!(
                "the architecture {other} is not supported: x86_64 and aarch64 are"
            ));
        }
    };
    includes.push(format!("-D__TARGET_ARCH_{registers}"));
    let (apart, together): (Vec<String>, Vec<String>) = folders
        .iter()
        .cloned()
        .partition(|folder| APART.contains(&folder.as_str()));
    compile(&out, "probes", &together, &includes)?;
    for folder in apart {
        let folders = std::slice::from_ref(&folder);
        compile(&out, &folder, folders, &includes)?;
        let tracing = [includes.as_slice(), &["-DTRACE".to_owned()]].concat();
        compile(&out, &format!("{folder}_trace"), folders, &tracing)?;
    }
    bind(&out, &folders, &includes)
}

fn probe_folders(source: &Path) -> Result<Vec<String>, String> {
    let mut folders: Vec<String> = fs::read_dir(source)
        .map_err(|error| format!("{}: {error}", source.display()))?
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("probe.bpf.c").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    folders.sort();
    Ok(folders)
}

/// One line of `#include` a folder, for the object and for the bindings.
fn include_all(
    out: &Path,
    name: &str,
    head: &str,
    folders: &[String],
    file: &str,
) -> Result<PathBuf, String> {
    let path = out.join(name);
    let lines: Vec<String> = folders
        .iter()
        .map(|folder| format!("#include \"{folder}/{file}\"\n"))
        .collect();
    fs::write(&path, format!("{head}{}", lines.concat()))
        .map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}

fn compile(
    out: &Path,
    object: &str,
    folders: &[String],
    includes: &[String],
) -> Result<(), String> {
    let source = include_all(out, &format!("{object}.bpf.c"), "", folders, "probe.bpf.c")?;
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    // v3 has 32-bit registers and jumps, which 5.10 runs; its atomics that return a
    // value need 5.12, so a program with one has a variant without.
    let output = Command::new(&clang)
        .args(["-target", "bpf", "-mcpu=v3", "-O2", "-g", "-fno-addrsig", "-Wall", "-Wextra", "-Werror"])
        .args(includes)
        .arg("-c")
        .arg(&source)
        .arg("-o")
        .arg(out.join(format!("{object}.bpf.o")))
        .output()
        .map_err(|error| {
            format!("{clang} cannot be run ({error}): the eBPF programs need it; install the package clang")
        })?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        let path = out.join(format!("{object}.bpf.o"));
        return strip(&path).map_err(|error| format!("{}: {error}", path.display()));
    }
    if messages.contains("bpf/bpf_helpers.h' file not found") {
        return Err("bpf/bpf_helpers.h is missing: install the package libbpf-dev".to_owned());
    }
    if messages.contains("' file not found") && messages.contains("linux/") {
        return Err(
            "the kernel's user headers are missing: install the package linux-libc-dev".to_owned(),
        );
    }
    Err(messages.replace('\n', "\ncargo::error="))
}

/// Removes DWARF, which BTF is made of and nobody reads after that: a third of the file.
fn strip(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let file = fs::read(path)?;
    let mut builder = Builder::read(file.as_slice())?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // clang keeps the names of sections with those of symbols, which the builder does not.
    let has_names = |section: &Section<'_>| matches!(section.data, SectionData::SectionString);
    if !builder.sections.iter().any(has_names) {
        let section = builder.sections.add();
        section.name = ".shstrtab".into();
        section.sh_type = SHT_STRTAB;
        section.data = SectionData::SectionString;
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    fs::write(path, stripped)?;
    Ok(())
}

fn bind(out: &Path, folders: &[String], includes: &[String]) -> Result<(), String> {
    let head = "#include \"event.h\"\n#include \"histogram.h\"\n#include \"series.h\"\n";
    let header = include_all(out, "wire.h", head, folders, "wire.h")?;
    let path = out.join("wire.rs");
    bindgen::Builder::default()
        .header(header.display().to_string())
        .clang_args(includes)
        .allowlist_file(".*/(wire|event|histogram|series)\\.h")
        .allowlist_recursively(true)
        .blocklist_item("__.*_t")
        .prepend_enum_name(false)
        .default_enum_style(bindgen::EnumVariation::Consts)
        .derive_default(true)
        .derive_eq(true)
        .derive_hash(true)
        .derive_ord(true)
        .layout_tests(false)
        .generate()
        .map_err(|error| format!("bindgen: {error}"))?
        .write_to_file(&path)
        .map_err(|error| format!("{}: {error}", path.display()))
}
