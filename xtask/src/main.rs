//! The code behind the Makefile, which has installed what is needed.

mod collector;
mod compose;
mod cuda;
mod grafana;
mod image;
mod kubernetes;
mod page;
mod prometheus;
mod promql;
mod pypi;
mod sbom;

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, bail, ensure};

const USAGE: &str = "usage: cargo xtask run [FLAG...] | demo | test | test-fast | vm [FLAG...] | lint | fmt | docs [--check] | bench [FLAG...] | soak | cuda | collector | manifests [--check] | release | image [--prebuilt] | sbom | install";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match perform(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(args: &[&str]) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    env::set_current_dir(&root).with_context(|| root.display().to_string())?;
    match args {
        ["run", flags @ ..] => run(flags),
        ["demo"] => demo(),
        ["test"] => {
            test()?;
            vm(&[])
        }
        ["test-fast"] => test(),
        ["vm", flags @ ..] => vm(flags),
        ["lint"] => lint(&[]),
        ["fmt"] => format(),
        ["docs"] => docs(true),
        ["docs", "--check"] => docs(false),
        ["bench", flags @ ..] => bench(flags),
        ["soak"] => soak(),
        ["cuda"] => cuda::fetch().map(drop),
        ["collector"] => collector::fetch().map(drop),
        ["manifests"] => {
            prometheus::write()?;
            grafana::write()?;
            kubernetes::write()
        }
        ["manifests", "--check"] => {
            prometheus::check(prometheus::newest()?.as_deref())?;
            grafana::check()?;
            compose::check()?;
            kubernetes::check()
        }
        ["release"] => release().map(drop),
        ["image"] => image::from_source(),
        ["image", "--prebuilt"] => image::prebuilt(),
        ["sbom"] => sbom::write().map(drop),
        ["install"] => install(),
        _ => bail!(USAGE),
    }
}

fn run(flags: &[&str]) -> anyhow::Result<()> {
    page::charts();
    let agent = |arguments: &str| -> anyhow::Result<Command> {
        let mut cargo = cargo_as_root()?;
        cargo.args(words(&format!(
            "run --quiet --release --package sentry -- {arguments}"
        )));
        Ok(cargo)
    };
    step(
        "agent",
        cargo().args(words("build --release --package sentry")),
    )?;
    // Wrong flags print no report here, and are then the agent's to complain about.
    let check = agent("check --format json")?.args(flags).output()?;
    if !check.status.success() && check.stdout.starts_with(b"{") {
        agent("check")?.args(flags).status()?;
        bail!(
            "no probe works on this host, see above; make demo shows the agent in a machine of its own"
        );
    }
    // In this process's place, so that signals reach the agent.
    Err(agent("agent")?.args(flags).exec()).context("cargo cannot be run")
}

/// The agent at work in a virtual machine.
fn demo() -> anyhow::Result<()> {
    page::charts();
    let folder = static_programs()?;
    let mut demo = cargo();
    demo.args(words(
        "run --quiet --package sentry-vm --bin vm -- demo --programs",
    ));
    Err(demo.arg(folder).exec()).context("cargo cannot be run")
}

/// The tests on other kernels, in virtual machines; they take no privileges.
fn vm(flags: &[&str]) -> anyhow::Result<()> {
    let folder = static_programs()?;
    let tests = static_tests()?;
    let mut vm = cargo();
    vm.args(words(
        "run --quiet --package sentry-vm --bin vm -- test --programs",
    ));
    vm.arg(folder).arg("--tests").arg(tests).args(flags);
    step("tests on other kernels", &mut vm)
}

/// Everything that must pass. Advisories change with the world and not with the tree, so they are
/// left to `lint`.
fn test() -> anyhow::Result<()> {
    // Before anything is built, so that all of it is built once.
    page::all()?;
    lint(&["licenses", "bans", "sources"])?;
    let prometheus = prometheus::newest()?;
    prometheus::check(prometheus.as_deref())?;
    grafana::check()?;
    compose::check()?;
    kubernetes::check()?;
    sbom::write()?;
    let image = image::unpacked(&static_programs()?.join("sentry"))?;
    mount_tracefs()?;
    let mut tests = cargo_as_root()?;
    tests.env("SENTRY_IMAGE_ROOT", image);
    if let Some(folder) = prometheus {
        tests.env("SENTRY_PROMETHEUS_3", folder);
    }
    // There are other files for other machines.
    if cfg!(target_arch = "x86_64") {
        tests.env("SENTRY_COLLECTOR_CACHE", collector::fetch()?);
        tests.env("SENTRY_CUDA_CACHE", cuda::fetch()?);
    }
    // One of them compares docs/metrics.md with the code.
    step("tests", tests.args(["test", "--workspace"]))?;
    image::forget()
}

/// systemd mounts it; other inits may not. The tests of the hook `tracepoint` take it, and by it others know that a
/// completion came on top of a process on which the kernel runs no eBPF program.
fn mount_tracefs() -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    if mounts
        .lines()
        .any(|line| line.contains(" /sys/kernel/tracing tracefs "))
    {
        return Ok(());
    }
    let mut mount = as_root("mount")?;
    let mount = mount.args(["-t", "tracefs", "tracefs", "/sys/kernel/tracing"]);
    step("tracefs, which nobody has mounted", mount)
}

fn lint(deny: &[&str]) -> anyhow::Result<()> {
    components()?;
    step("rustfmt", cargo().args(["fmt", "--all", "--check"]))?;
    step(
        "clang-format",
        Command::new("clang-format")
            .args(["--dry-run", "--Werror"])
            .args(c_files()?),
    )?;
    step(
        "clippy",
        cargo()
            .args(words("clippy --locked --workspace --all-targets"))
            .args(["--", "-D", "warnings"]),
    )?;
    step(
        "rustdoc",
        cargo()
            .args(words("doc --workspace --no-deps --document-private-items"))
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    if succeeds(cargo().args(["deny", "--version"])) {
        step(
            "cargo deny",
            cargo()
                .args(["deny", "check", "--hide-inclusion-graph"])
                .args(deny),
        )
    } else {
        eprintln!(
            "==> cargo deny: SKIPPED, licences and sources of dependencies are not checked; `cargo install --locked cargo-deny` brings it"
        );
        Ok(())
    }
}

fn format() -> anyhow::Result<()> {
    components()?;
    step("rustfmt", cargo().args(["fmt", "--all"]))?;
    step(
        "clang-format",
        Command::new("clang-format").arg("-i").args(c_files()?),
    )
}

/// The generator is a test of the agent: only there are all metrics known, and so the code of the
/// agent holds nothing that only its documentation needs.
fn docs(write: bool) -> anyhow::Result<()> {
    for (files, tests) in [
        (
            "docs/metrics.md",
            "--package sentry --bin sentry documented",
        ),
        (
            "docs/instructions.md",
            "--package sentry-probes --lib written_down",
        ),
    ] {
        let mut generate = cargo();
        generate.args(words(&format!("test --quiet {tests}")));
        if write {
            generate.env("SENTRY_WRITE_DOCS", "1");
        }
        step(files, &mut generate)?;
    }
    Ok(())
}

fn bench(flags: &[&str]) -> anyhow::Result<()> {
    let mut build = static_cargo("build", "release")?;
    step(
        "load generator",
        build.args(words("--package sentry-bench")),
    )?;
    // After it, so that the agent beside it is the one that is released, with no more features than its own.
    release()?;
    let mut run = as_root("env")?;
    // sudo has a path and a home of its own.
    for name in ["PATH", "HOME", "XDG_CACHE_HOME", "SENTRY_CUDA_CACHE"] {
        if let Some(value) = env::var_os(name) {
            let mut set = OsString::from(name);
            set.push("=");
            set.push(value);
            run.arg(set);
        }
    }
    run.arg(static_folder("release")?.join("bench"));
    run.arg("--out").arg(target_folder().join("bench"));
    step("bench", run.args(flags))
}

fn soak() -> anyhow::Result<()> {
    step(
        "soak",
        cargo_as_root()?
            .args(words("test --release --package sentry --test kernel"))
            .args(words(
                "-- storm churn::containers --nocapture --test-threads=1",
            ))
            .env("SENTRY_STORM_SECONDS", "60")
            .env("SENTRY_CHURN_SECONDS", "600"),
    )
}

/// The agent as it is released: one file that needs no other. Where it is.
fn release() -> anyhow::Result<PathBuf> {
    page::charts();
    let mut build = static_cargo("build", "release")?;
    step(
        "agent, static",
        build.args(words("--package sentry --bin sentry")),
    )?;
    let program = static_folder("release")?.join("sentry");
    let bytes = fs::read(&program).with_context(|| program.display().to_string())?;
    ensure!(
        interpreter(&bytes) == Some(false),
        "{}: not a static program",
        program.display()
    );
    eprintln!(
        "==> {}: static, {:.1} MB",
        program.display(),
        f64::from(u32::try_from(bytes.len())?) / 1e6
    );
    Ok(program)
}

/// What a virtual machine needs of this repository. Their folder.
fn static_programs() -> anyhow::Result<PathBuf> {
    let mut build = static_cargo("build", "guest")?;
    build.args(words(
        "--package sentry --package sentry-bench --package sentry-vm",
    ));
    build.args(words("--bin sentry --bin load --bin init"));
    step("programs, static", &mut build)?;
    let folder = static_folder("guest")?;
    let gpu = folder.join("gpu");
    fs::create_dir_all(&gpu).with_context(|| gpu.display().to_string())?;
    let mut build = Command::new("sh");
    step(
        "programs on virtual GPUs",
        build.arg("agent/tests/gpu/build.sh").arg(&gpu),
    )?;
    Ok(folder)
}

/// The kernel tests. Their program.
fn static_tests() -> anyhow::Result<PathBuf> {
    let mut build = static_cargo("test", "guest")?;
    build.args(words("--no-run --package sentry --test kernel"));
    step("kernel tests, static", &mut build)?;
    build.args(words("--quiet --message-format json"));
    let output = build.output().context("cargo cannot be run")?;
    // One message a line; only a test has an executable here, besides the agent that it tests.
    let text = String::from_utf8(output.stdout)?;
    let mut files = text.lines().rev().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_test = message["target"]["name"] == "kernel";
        let file = message["executable"].as_str().filter(|_| is_test)?;
        Some(PathBuf::from(file))
    });
    files.next().context("cargo test names no program")
}

/// A command of cargo that makes programs which need no other file. Naming the target keeps its flags from
/// build scripts and macros, which cannot be static.
fn static_cargo(command: &str, profile: &str) -> anyhow::Result<Command> {
    let target = host()?;
    let mut flags = "'-C', 'target-feature=+crt-static'".to_owned();
    if packs_relocations() {
        flags.push_str(", '-C', 'link-arg=-Wl,-z,pack-relative-relocs'");
    }
    let flags = format!("target.{target}.rustflags=[{flags}]");
    let mut cargo = cargo();
    cargo.args([
        command,
        "--profile",
        profile,
        "--target",
        &target,
        "--config",
        &flags,
    ]);
    Ok(cargo)
}

/// Whether a static program's own start understands packed relocations, which take 10 KB in place of 800: glibc's does
/// since 2.36, and an older one's crashes.
fn packs_relocations() -> bool {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    output.is_ok_and(|output| glibc(&output.stdout).is_some_and(|version| version >= (2, 36)))
}

/// The version in `glibc 2.36`.
fn glibc(text: &[u8]) -> Option<(u32, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    // A release in between is called 2.36.1 or 2.36.9000.
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn static_folder(profile: &str) -> anyhow::Result<PathBuf> {
    Ok(target_folder().join(host()?).join(profile))
}

fn target_folder() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from)
}

/// The platform that is built for, such as `x86_64-unknown-linux-gnu`: this one.
fn host() -> anyhow::Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output();
    let output = output.context("rustc cannot be run")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// Whether a program asks for an interpreter, as those that load libraries do; none if it is no 64-bit program of a
/// little-endian machine.
fn interpreter(program: &[u8]) -> Option<bool> {
    const PT_INTERP: u64 = 3;
    let number = |place: usize, size: usize| {
        let bytes = program.get(place..place + size)?;
        let number = bytes
            .iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u64::from(*byte));
        usize::try_from(number).ok()
    };
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    // The place, size and number of the program headers, of which each begins with its type.
    let (start, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    let mut found = false;
    for header in 0..count {
        found |= number(start + header * size, 4)? as u64 == PT_INTERP;
    }
    Some(found)
}

fn install() -> anyhow::Result<()> {
    let program = release()?;
    let variable = |name| env::var(name).unwrap_or_default();
    let (prefix, stage) = (variable("PREFIX"), variable("DESTDIR"));
    ensure!(
        prefix.starts_with('/'),
        "PREFIX={prefix}: an absolute path is needed, such as /usr/local"
    );
    let unit = target_folder().join("sentry.service");
    let text = fs::read_to_string("deploy/systemd/sentry.service")?;
    fs::write(
        &unit,
        text.replace("/usr/local/bin/", &format!("{prefix}/bin/")),
    )?;
    let completions = Path::new("deploy/completions");
    let mut files = vec![
        ("755", program, "bin/sentry".to_owned()),
        ("644", unit, "lib/systemd/system/sentry.service".to_owned()),
    ];
    for (name, to) in [
        ("sentry.bash", "bash-completion/completions/sentry"),
        ("_sentry", "zsh/site-functions/_sentry"),
        ("sentry.fish", "fish/vendor_completions.d/sentry.fish"),
    ] {
        files.push(("644", completions.join(name), format!("share/{to}")));
    }
    for page in fs::read_dir("deploy/man")? {
        let page = page?;
        let name = page.file_name().display().to_string();
        files.push(("644", page.path(), format!("share/man/man1/{name}")));
    }
    for (mode, from, to) in files {
        let to = format!("{stage}{prefix}/{to}");
        // Who stages into a folder of their own needs no root.
        let mut copy = if stage.is_empty() {
            as_root("install")?
        } else {
            Command::new("install")
        };
        step(&to, copy.args(["-D", "-m", mode]).arg(from).arg(&to))?;
    }
    if stage.is_empty() {
        eprintln!("==> to start it: systemctl daemon-reload && systemctl enable --now sentry");
    }
    Ok(())
}

/// clippy and rustfmt, which rustup's minimal profile leaves out.
fn components() -> anyhow::Result<()> {
    if succeeds(cargo().args(["clippy", "--version"]))
        && succeeds(cargo().args(["fmt", "--version"]))
    {
        return Ok(());
    }
    step(
        "clippy and rustfmt",
        Command::new("rustup").args(words("component add clippy rustfmt")),
    )
}

fn c_files() -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = ["probes", "bench", "agent/tests"]
        .map(PathBuf::from)
        .to_vec();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|extension| extension == "c" || extension == "h")
            {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The arguments of a line without quotes.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(' ')
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Cargo builds as the user, and what it then runs, runs as root.
fn cargo_as_root() -> anyhow::Result<Command> {
    let mut cargo = cargo();
    if !is_root()? {
        ensure!(succeeds(Command::new("sudo").arg("-V")), NEEDS_ROOT);
        cargo.args([
            "--config",
            "target.'cfg(unix)'.runner=['sudo', '--preserve-env']",
        ]);
    }
    Ok(cargo)
}

fn as_root(program: &str) -> anyhow::Result<Command> {
    if is_root()? {
        return Ok(Command::new(program));
    }
    ensure!(succeeds(Command::new("sudo").arg("-V")), NEEDS_ROOT);
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    Ok(sudo)
}

const NEEDS_ROOT: &str = "this takes root, and there is no sudo: run make as root";

fn is_root() -> anyhow::Result<bool> {
    Ok(fs::metadata("/proc/self").context("/proc/self")?.uid() == 0)
}

fn succeeds(command: &mut Command) -> bool {
    command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a command under a heading, its output in full.
fn step(name: &str, command: &mut Command) -> anyhow::Result<()> {
    eprintln!("==> {name}");
    let started = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("{name}: {} cannot be run", command.get_program().display()))?;
    ensure!(status.success(), "{name} failed");
    eprintln!(
        "==> {name}: ok after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_loads_libraries_asks_for_an_interpreter() {
        let mut program = vec![0; 0x40 + 2 * 56];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        program[0x20] = 0x40;
        program[0x36] = 56;
        program[0x38] = 2;
        assert_eq!(interpreter(&program), Some(false));
        program[0x40 + 56] = 3;
        assert_eq!(interpreter(&program), Some(true));
        program.truncate(0x50);
        assert_eq!(interpreter(&program), None);
        assert_eq!(interpreter(b"#!/bin/sh"), None);
    }

    #[test]
    fn glibc_has_a_version() {
        assert_eq!(glibc(b"glibc 2.36\n"), Some((2, 36)));
        assert_eq!(glibc(b"glibc 2.39.9000\n"), Some((2, 39)));
        assert_eq!(glibc(b"musl 1.2.5\n"), None);
        assert_eq!(glibc(b""), None);
    }
}
