//! The list of kernels, `kernels.yaml`.

use anyhow::{Context, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The kernels and what is run on them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    /// Series, and the suites of Debian to look for it, in order.
    pub kernels: BTreeMap<String, Vec<String>>,
    /// Tests that no run has, with the reason.
    #[serde(default)]
    pub except: BTreeMap<String, String>,
    /// The boots.
    pub runs: Vec<Run>,
}

/// One boot.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What it is called.
    pub name: String,
    /// The series of its kernel.
    pub kernel: String,
    /// What is peculiar to it.
    #[serde(default)]
    pub guest: Guest,
    /// Modules of the kernel tests that it runs, or tests by how their names begin.
    pub tests: Vec<String>,
    /// Tests that this kernel cannot run, with the reason.
    #[serde(default)]
    pub except: BTreeMap<String, String>,
    /// The hooks that must be attached and exact, by probe.
    #[serde(default)]
    pub hooks: BTreeMap<String, Vec<String>>,
}

/// What is peculiar to a guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guest {
    /// Nothing.
    #[default]
    Plain,
    /// `/sys/kernel/btf` is hidden; a copy of the kernel's types lies in `/run/vmlinux.btf`.
    NoBtf,
    /// The kernel protects its integrity from root.
    LockdownIntegrity,
    /// The kernel protects its secrets, too.
    LockdownConfidentiality,
    /// Cgroups of version 1 alone.
    CgroupV1,
}

/// The series whose newest version is meant.
pub const NEWEST: &str = "newest";

impl List {
    /// Reads the list.
    ///
    /// # Errors
    /// When it is no such list.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut list: Self = serde_saphyr::from_str(text)?;
        for run in &mut list.runs {
            run.except.extend(list.except.clone());
        }
        let mut names = BTreeSet::new();
        for run in &list.runs {
            ensure!(names.insert(&run.name), "run {:?} is there twice", run.name);
            ensure!(
                list.kernels.contains_key(&run.kernel),
                "run {:?}: kernel {:?} is not among the kernels",
                run.name,
                run.kernel
            );
        }
        for (series, suites) in &list.kernels {
            ensure!(!suites.is_empty(), "kernel {series:?} has no suite");
        }
        Ok(list)
    }

    /// Reads the list from its file.
    ///
    /// # Errors
    /// When it cannot be read or is no such list.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path);
        text.map_err(anyhow::Error::from)
            .and_then(|text| Self::parse(&text))
            .with_context(|| path.display().to_string())
    }
}

impl Run {
    /// Whether this names it, or the runs of which it is a variant.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let rest = self.name.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(','))
    }

    /// What the names of its tests have in them.
    #[must_use]
    pub fn filters(&self) -> Vec<String> {
        let whole = |name: &String| name.contains("::");
        let tests = self.tests.iter();
        tests
            .map(|name| {
                if whole(name) {
                    name.clone()
                } else {
                    format!("{name}::")
                }
            })
            .collect()
    }

    /// Looks for its tests among all there are.
    ///
    /// # Errors
    /// When a name of the list means no test.
    pub fn is_among(&self, tests: &[&str]) -> anyhow::Result<()> {
        for filter in &self.filters() {
            let found = tests.iter().any(|test| test.contains(filter));
            ensure!(found, "run {:?}: no test is called {filter}", self.name);
        }
        for test in self.except.keys() {
            let found = tests.contains(&test.as_str());
            ensure!(found, "run {:?}: there is no test {test}", self.name);
        }
        Ok(())
    }

    /// Its name as that of a folder.
    #[must_use]
    pub fn folder(&self) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '.';
        let words = self.name.split(|c| !plain(c));
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        words.join("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_this_repository_is_one() {
        let list = List::parse(include_str!("../kernels.yaml")).unwrap();
        let series: Vec<_> = list.kernels.keys().map(String::as_str).collect();
        assert_eq!(series, ["5.10", "6.1", "6.12", "6.18", "newest"]);
        let plain = list.runs.iter().filter(|run| run.guest == Guest::Plain);
        assert_eq!(plain.count(), 5);
    }

    #[test]
    fn a_bad_list_says_where() {
        let refused = |runs: &str| {
            let text = format!("kernels: {{\"5.10\": [bullseye]}}\nruns:\n{runs}");
            List::parse(&text).unwrap_err().to_string()
        };
        let unknown = refused("  - {name: a, kernel: \"4.19\", tests: []}");
        assert_eq!(
            unknown,
            "run \"a\": kernel \"4.19\" is not among the kernels"
        );
        let run = "  - {name: a, kernel: \"5.10\", tests: []}\n";
        assert_eq!(refused(&run.repeat(2)), "run \"a\" is there twice");
        assert!(refused("  - {name: a, kernel: \"5.10\", test: []}").contains("`test`"));
    }

    fn run(name: &str) -> Run {
        Run {
            name: name.to_owned(),
            kernel: String::new(),
            guest: Guest::Plain,
            tests: Vec::new(),
            except: BTreeMap::new(),
            hooks: BTreeMap::new(),
        }
    }

    #[test]
    fn every_name_means_a_test() {
        let there = ["tcp::refused", "privileges::nobody_with_two"];
        let mut run = run("5.10");
        run.tests = vec!["tcp".to_owned(), "privileges::nobody".to_owned()];
        assert_eq!(run.filters(), ["tcp::", "privileges::nobody"]);
        assert!(run.is_among(&there).is_ok());
        run.except.insert("tcp::ref".to_owned(), "why".to_owned());
        let error = run.is_among(&there).unwrap_err().to_string();
        assert_eq!(error, "run \"5.10\": there is no test tcp::ref");
        run.tests.push("disk".to_owned());
        let error = run.is_among(&there).unwrap_err().to_string();
        assert_eq!(error, "run \"5.10\": no test is called disk::");
    }

    #[test]
    fn names_are_folders() {
        assert_eq!(
            run("6.12, lockdown=integrity").folder(),
            "6.12-lockdown-integrity"
        );
        assert_eq!(run("5.10").folder(), "5.10");
        assert!(run("6.1, cgroup v1").is_called("6.1"));
        assert!(run("6.1, cgroup v1").is_called("6.1, cgroup v1"));
        assert!(!run("6.12").is_called("6.1"));
    }
}
