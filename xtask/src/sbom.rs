//! The bill of materials: the crates that the agent is made of, in `CycloneDX`.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::{cargo, host, page, step, succeeds, target_folder, words};

/// What makes it, by name and version.
const TOOL: (&str, &str) = ("cargo-cyclonedx", "0.5.9");

/// What the tool calls its files, of which it writes one beside each Cargo.toml.
const FILE: &str = "sentry-sbom.cdx";

/// Writes it, with exactly the crates that `cargo tree --edges normal` shows. Where it is.
pub(crate) fn write() -> anyhow::Result<PathBuf> {
    let tool = tool()?;
    let target = host()?;
    let mut make = Command::new(tool);
    make.args(words(
        "cyclonedx --quiet --format json --spec-version 1.5 --no-build-deps",
    ));
    make.args(["--manifest-path", "agent/Cargo.toml"])
        .args(["--target", &target, "--override-filename", FILE])
        .env("SOURCE_DATE_EPOCH", commit_time()?);
    let outcome = step("bill of materials", &mut make);
    let text = fs::read_to_string(format!("agent/{FILE}.json"));
    // Nobody asked for those of the other packages.
    for folder in fs::read_dir(".")? {
        let _ = fs::remove_file(folder?.path().join(format!("{FILE}.json")));
    }
    outcome?;
    // Where this checkout is differs from one machine to the next.
    let here = env::current_dir()?;
    let text = text?.replace(&*here.to_string_lossy(), "");
    let mut tree = cargo();
    tree.args(words("tree --package sentry --edges normal --prefix none"));
    let tree = tree.args(["--target", &target]).output()?;
    ensure!(tree.status.success(), "cargo tree failed");
    let crates = crates(&String::from_utf8(tree.stdout)?);
    let mut bill = prune(serde_json::from_str(&text)?, &crates)?;
    let lock = fs::read_to_string(page::LOCK).context(page::LOCK)?;
    add_charts(&mut bill, &serde_json::from_str(&lock)?)?;
    let path = target_folder().join("sentry.cdx.json");
    fs::write(&path, serde_json::to_string_pretty(&bill)? + "\n")
        .with_context(|| path.display().to_string())?;
    eprintln!("==> {}: {} crates", path.display(), crates.len());
    Ok(path)
}

/// The crates in the output of `cargo tree`, as `name version`.
fn crates(tree: &str) -> BTreeSet<String> {
    let lines = tree.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, version) = (words.next()?, words.next()?);
        Some(format!("{name} {}", version.strip_prefix('v')?))
    });
    lines.collect()
}

/// Leaves out what is not built: the tool asks `cargo metadata`, which takes an optional dependency for a used one where
/// a feature names it weakly (`dependency?/feature`).
fn prune(mut bill: Value, crates: &BTreeSet<String>) -> anyhow::Result<Value> {
    let of = |component: &Value| {
        let part = |name: &str| component[name].as_str().unwrap_or_default().to_owned();
        (
            format!("{} {}", part("name"), part("version")),
            part("bom-ref"),
        )
    };
    let (program, _) = of(&bill["metadata"]["component"]);
    let mut listed = BTreeSet::from([program]);
    let mut left_out = BTreeSet::new();
    let components = bill["components"].as_array_mut().context("no components")?;
    components.retain(|component| {
        let (name, reference) = of(component);
        let built = crates.contains(&name);
        if built {
            listed.insert(name);
        } else {
            left_out.insert(reference);
        }
        built
    });
    let dependencies = bill["dependencies"].as_array_mut();
    let dependencies = dependencies.context("no dependencies")?;
    let is_left_out = |reference: &Value| {
        let reference = reference.as_str();
        reference.is_some_and(|reference| left_out.contains(reference))
    };
    dependencies.retain(|dependency| !is_left_out(&dependency["ref"]));
    for dependency in dependencies {
        if let Some(on) = dependency["dependsOn"].as_array_mut() {
            on.retain(|reference| !is_left_out(reference));
        }
    }
    let missing: Vec<_> = crates.difference(&listed).collect();
    ensure!(
        missing.is_empty() && listed.is_subset(crates),
        "the bill of materials lacks {missing:?}"
    );
    Ok(bill)
}

/// Adds the library of the page's charts, which is no crate and part of the program all the same.
fn add_charts(bill: &mut Value, lock: &Value) -> anyhow::Result<()> {
    let package = &lock["packages"]["node_modules/uplot"];
    let version = package["version"]
        .as_str()
        .context("no uplot in the lock")?;
    let reference = format!("pkg:npm/uplot@{version}");
    let components = bill["components"].as_array_mut().context("no components")?;
    components.push(json!({
        "type": "library",
        "bom-ref": reference,
        "name": "uplot",
        "version": version,
        "scope": "required",
        "licenses": [{"expression": package["license"]}],
        "purl": reference,
    }));
    let dependencies = bill["dependencies"].as_array_mut();
    dependencies
        .context("no dependencies")?
        .push(json!({ "ref": reference }));
    Ok(())
}

/// The tool, which is built once, into the user's folder for such things.
fn tool() -> anyhow::Result<PathBuf> {
    let (name, version) = TOOL;
    let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache")));
    let cache = cache.context("HOME does not say where tools may be kept")?;
    let folder = cache.join(format!("sentry/{name}-{version}"));
    let program = folder.join("bin").join(name);
    if succeeds(Command::new(&program).args(["cyclonedx", "--version"])) {
        return Ok(program);
    }
    let mut install = cargo();
    install
        .args(words("install --quiet --locked --debug --force --root"))
        .arg(&folder)
        .arg(format!("{name}@{version}"))
        // It runs for half a second, and is built for a minute.
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    step(&format!("{name} {version}"), &mut install)?;
    Ok(program)
}

/// When this commit was made, in seconds; the beginning of time outside of a repository.
fn commit_time() -> anyhow::Result<String> {
    let mut git = Command::new("git");
    let output = git.args(words("log -1 --format=%ct")).output();
    let time = output.ok().filter(|output| output.status.success());
    let time = time.map_or_else(
        || Ok("0".to_owned()),
        |output| String::from_utf8(output.stdout),
    )?;
    Ok(time.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bill() -> Value {
        serde_json::json!({
            "metadata": {"component": {"name": "sentry", "version": "0.1.0", "bom-ref": "s"}},
            "components": [
                {"name": "flate2", "version": "1.1.11", "bom-ref": "f"},
                {"name": "zlib-rs", "version": "0.6.8", "bom-ref": "z"},
            ],
            "dependencies": [
                {"ref": "s", "dependsOn": ["f"]},
                {"ref": "f", "dependsOn": ["z"]},
                {"ref": "z"},
            ],
        })
    }

    #[test]
    fn what_is_not_built_is_left_out() {
        let tree = "sentry v0.1.0 (/src/agent)\nflate2 v1.1.11\nflate2 v1.1.11 (*)\n";
        let pruned = prune(bill(), &crates(tree)).unwrap();
        assert_eq!(pruned["components"].as_array().unwrap().len(), 1);
        assert_eq!(pruned["components"][0]["name"], "flate2");
        assert_eq!(
            pruned["dependencies"],
            serde_json::json!([{"ref": "s", "dependsOn": ["f"]}, {"ref": "f", "dependsOn": []}])
        );
    }

    #[test]
    fn what_npm_brings_is_in_it() {
        let lock =
            json!({"packages": {"node_modules/uplot": {"version": "1.6.32", "license": "MIT"}}});
        let mut bill = bill();
        add_charts(&mut bill, &lock).unwrap();
        assert_eq!(bill["components"][2]["purl"], "pkg:npm/uplot@1.6.32");
        assert_eq!(bill["components"][2]["licenses"][0]["expression"], "MIT");
        assert_eq!(
            bill["dependencies"][3],
            json!({"ref": "pkg:npm/uplot@1.6.32"})
        );
        assert!(add_charts(&mut bill, &json!({})).is_err());
    }

    #[test]
    fn what_is_built_must_be_there() {
        let tree = "sentry v0.1.0\nflate2 v1.1.11\nserde v1.0.0\n";
        assert_eq!(
            prune(bill(), &crates(tree)).unwrap_err().to_string(),
            "the bill of materials lacks [\"serde 1.0.0\"]"
        );
    }
}
