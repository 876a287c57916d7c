//! Generates the manual pages (`deploy/man`) and the shells' completions (`deploy/completions`) from the definition of
//! the command line.
//!
//! A test for the reasons of `docs/metrics.md`: no user has a need for the generators, so they are not in the program.

use std::{io::Write, path::Path, process::Command};

use clap_complete::{Shell, generate};
use clap_mangen::Man;

use super::{ProbeOptions, definition};
use crate::expose::documentation::hold;

fn whole() -> clap::Command {
    let options: Vec<ProbeOptions> = probes::PROBES.iter().map(|probe| (*probe).into()).collect();
    let mut command = definition(&options);
    command.build();
    command
}

fn deploy() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

#[test]
fn manual_pages_are_documented() {
    let command = whole();
    let folder = deploy().join("man");
    let commands = command.get_subcommands().cloned();
    for command in commands.chain([command.clone()]) {
        let name = command.get_display_name().unwrap_or("sentry").to_owned();
        if name == "sentry-help" {
            continue;
        }
        let called = name.replace('-', " ");
        let man = Man::new(command)
            .title(&name)
            .manual("Sentry")
            .source(format!("sentry {}", env!("CARGO_PKG_VERSION")));
        let mut page = Vec::new();
        man.render_title(&mut page).unwrap();
        man.render_name_section(&mut page).unwrap();
        // Not that of clap: it has each of the flags, which all commands share.
        let what = if name == "sentry-trace" {
            " \\fIWHAT\\fR"
        } else {
            ""
        };
        writeln!(
            page,
            ".SH SYNOPSIS\n\\fB{called}\\fR{what} [\\fIFLAG\\fR]..."
        )
        .unwrap();
        man.render_description_section(&mut page).unwrap();
        man.render_options_section(&mut page).unwrap();
        if name == "sentry" {
            man.render_subcommands_section(&mut page).unwrap();
        }
        man.render_extra_section(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        hold(&folder.join(format!("{name}.1")), |_| page);
    }
}

#[test]
fn completions_are_documented() {
    for (shell, name) in [
        (Shell::Bash, "sentry.bash"),
        (Shell::Zsh, "_sentry"),
        (Shell::Fish, "sentry.fish"),
    ] {
        let mut script = Vec::new();
        generate(shell, &mut whole(), "sentry", &mut script);
        let script = String::from_utf8(script).unwrap();
        hold(&deploy().join("completions").join(name), |_| script);
    }
}

/// What bash proposes for the last of some words.
fn proposed(words: &[&str]) -> Vec<String> {
    let script = deploy().join("completions/sentry.bash");
    let (last, before) = words.split_last().unwrap();
    let asked = format!(
        "source '{}'; COMP_WORDS=(sentry {}); COMP_CWORD={}; _sentry sentry '{last}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        script.display(),
        words.join(" "),
        words.len(),
        before.last().unwrap_or(&"sentry"),
    );
    let output = Command::new("bash").args(["-c", &asked]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes() {
    assert_eq!(proposed(&["che"]), ["check"]);
    assert_eq!(proposed(&["--tcp.h"]), ["--tcp.hook"]);
    assert_eq!(
        proposed(&["--tcp.hook", ""]),
        ["auto", "tp_btf", "kprobe", "tracepoint"]
    );
    assert_eq!(proposed(&["check", "--format", "j"]), ["json"]);
}
