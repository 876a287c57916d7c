//! How long the programs are: what an event costs comes from there, and grows unseen.
//!
//! A test, which holds them to the table in `docs/instructions.md`: a program that grows takes a
//! line of that table along in its commit. With `SENTRY_WRITE_DOCS` set (`make docs`) the test
//! writes it.

use std::{collections::BTreeMap, env, fmt::Write, fs, path::Path, process::Command};

use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

use crate::{gpu::programs as gpu, load, running_kernel::kernel};

const HEAD: &str = "<!-- Generated from the programs by `make docs`. Do not edit. -->

# Instructions

How many instructions of eBPF the programs have. A test holds them to these tables, so that none grows unnoticed: a \
change that makes one longer, or shorter, has its line here, from `make docs`, in the same commit.
";

/// Bytes of an instruction.
const INSTRUCTION_BYTES: u64 = 8;

/// The parts of the file, by the lines that they begin with.
const COMPILED: &str = "\n## As compiled by ";
const LOADED: &str = "\n## As loaded by ";

/// Instructions of each program and each function that it calls out of line.
fn compiled(object: &[u8]) -> BTreeMap<String, u64> {
    let file = object::File::parse(object).unwrap();
    let code = |symbol: &object::Symbol<'_, '_>| {
        let section = file.section_by_index(symbol.section_index()?).ok()?;
        (section.kind() == object::SectionKind::Text).then_some(())
    };
    let functions = file.symbols().filter(|symbol| {
        symbol.kind() == SymbolKind::Text && symbol.size() > 0 && code(symbol).is_some()
    });
    functions
        .map(|symbol| {
            let name = symbol.name().unwrap().to_owned();
            (name, symbol.size() / INSTRUCTION_BYTES)
        })
        .collect()
}

fn clang() -> String {
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let output = Command::new(clang).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace();
    let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    format!("clang {} for {}", version.unwrap(), env::consts::ARCH)
}

fn running() -> String {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let release = release.trim();
    let version = release.split(|c: char| !c.is_ascii_digit() && c != '.');
    format!(
        "Linux {} on {}",
        version.into_iter().next().unwrap(),
        env::consts::ARCH
    )
}

fn compiled_part() -> String {
    let mut part = format!("{COMPILED}{}\n", clang());
    for (name, object) in [("tcp, disk, cgroup", load::OBJECT), ("gpu", gpu::OBJECT)] {
        write!(
            part,
            "\n{name}:\n\n| function | instructions |\n| --- | ---: |\n"
        )
        .unwrap();
        for (name, count) in compiled(object) {
            writeln!(part, "| `{name}` | {count} |").unwrap();
        }
    }
    part
}

/// What the running kernel makes of those that it would use: without the code that the loader's constants turn off.
fn loaded_part(kernel: &crate::Kernel) -> String {
    let mut part = format!(
        "{LOADED}{}\n\nWith the default settings, without the code that these turn off. *Looked at* are all ways through a \
         program together, as the verifier goes them.\n\n| program | instructions | looked at |\n| --- | ---: | ---: |\n",
        running()
    );
    for (name, translated, verified) in kernel.programs.instructions() {
        writeln!(part, "| `{name}` | {translated} | {verified} |").unwrap();
    }
    part
}

/// The part of the file that begins with a line, up to the next.
fn part_of<'a>(text: &'a str, start: &str) -> &'a str {
    let Some(begin) = text.find(start) else {
        return "";
    };
    let end = text[begin + 1..].find("\n## ");
    &text[begin..end.map_or(text.len(), |end| begin + 1 + end)]
}

#[test]
fn programs_are_as_long_as_written_down() {
    let name = "programs_are_as_long_as_written_down";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/instructions.md");
    let text = fs::read_to_string(&path).unwrap_or_default();
    let writes = env::var_os("SENTRY_WRITE_DOCS").is_some();
    let old = [part_of(&text, COMPILED), part_of(&text, LOADED)];
    // Another compiler makes other programs, and another kernel takes out other code.
    let is_other = |old: &str, start: &str, whose: &str| {
        let is_other = !writes && !old.starts_with(&format!("{start}{whose}\n"));
        if is_other {
            eprintln!(
                "SKIPPED {name}: here is {whose}, and another in {}",
                path.display()
            );
        }
        is_other
    };
    let mut new = [compiled_part(), old[1].to_owned()];
    if is_other(old[0], COMPILED, &clang()) {
        new[0] = old[0].to_owned();
    }
    if !is_other(old[1], LOADED, &running())
        && let Some(kernel) = kernel(name, 0)
    {
        new[1] = loaded_part(&kernel);
    }
    let new = format!("{HEAD}{}{}", new[0], new[1]);
    if writes {
        fs::write(&path, new).unwrap();
        return;
    }
    for (old, new) in text.lines().zip(new.lines()) {
        assert_eq!(
            old,
            new,
            "a program is not as long as {} says: run `make docs`, and commit that with what changed it",
            path.display()
        );
    }
    assert_eq!(text.lines().count(), new.lines().count());
}

#[test]
fn parts_end_where_the_next_begins() {
    let text = "# T\n\n## As compiled by a\nx\n\n## As loaded by b\ny\n";
    assert_eq!(part_of(text, COMPILED), "\n## As compiled by a\nx\n");
    assert_eq!(part_of(text, LOADED), "\n## As loaded by b\ny\n");
    assert_eq!(part_of("", LOADED), "");
}
