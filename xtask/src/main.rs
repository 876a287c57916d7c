//! The code behind the Makefile, which has installed what is needed.

use std::{
    env, fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use anyhow::{Context, bail, ensure};

const USAGE: &str = "usage: cargo xtask run [FLAG...] | test | lint | fmt | docs [--check] | bench [FLAG...] | soak | install";

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
        ["run", flags @ ..] => {
            let mut run = cargo_as_root()?;
            run.args(words("run --release --package sentry --"));
            // In this process's place, so that signals reach the agent.
            Err(run.args(flags).exec()).context("cargo cannot be run")
        }
        ["test"] => test(),
        ["lint"] => lint(&[]),
        ["fmt"] => format(),
        ["docs"] => docs(true),
        ["docs", "--check"] => docs(false),
        ["bench", flags @ ..] => bench(flags),
        ["soak"] => soak(),
        ["install"] => install(),
        _ => bail!(USAGE),
    }
}

/// Everything that must pass. Advisories change with the world and not with the tree, so they are
/// left to `lint`.
fn test() -> anyhow::Result<()> {
    lint(&["licenses", "bans", "sources"])?;
    // One of them compares docs/metrics.md with the code.
    step("tests", cargo_as_root()?.args(["test", "--workspace"]))
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
    let mut generate = cargo();
    generate.args(words(
        "test --quiet --package sentry --bin sentry documented",
    ));
    if write {
        generate.env("SENTRY_WRITE_DOCS", "1");
    }
    step("docs/metrics.md", &mut generate)
}

fn bench(flags: &[&str]) -> anyhow::Result<()> {
    // It measures the agent as users build it, under its own load generator.
    step(
        "agent and load generator",
        cargo().args(words(
            "build --release --package sentry --package sentry-bench",
        )),
    )?;
    let mut run = cargo_as_root()?;
    run.args(words("run --release --package sentry-bench --bin bench --"));
    step("bench", run.args(flags))
}

fn soak() -> anyhow::Result<()> {
    step(
        "soak",
        cargo_as_root()?
            .args(words("test --release --package sentry --test kernel storm"))
            .args(["--", "--nocapture", "--test-threads=1"])
            .env("SENTRY_STORM_SECONDS", "60"),
    )
}

fn install() -> anyhow::Result<()> {
    step(
        "agent",
        cargo().args(words("build --release --package sentry")),
    )?;
    let variable = |name| env::var(name).unwrap_or_default();
    let (prefix, stage) = (variable("PREFIX"), variable("DESTDIR"));
    ensure!(
        prefix.starts_with('/'),
        "PREFIX={prefix}: an absolute path is needed, such as /usr/local"
    );
    let target = env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let target = Path::new(&target);
    let unit = target.join("sentry.service");
    let text = fs::read_to_string("deploy/systemd/sentry.service")?;
    fs::write(
        &unit,
        text.replace("/usr/local/bin/", &format!("{prefix}/bin/")),
    )?;
    for (mode, from, to) in [
        ("755", target.join("release/sentry"), "bin/sentry"),
        ("644", unit, "lib/systemd/system/sentry.service"),
    ] {
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
    let mut folders = vec![PathBuf::from("probes"), PathBuf::from("bench")];
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
