//! What a guest printed, read back.

use crate::plan::{CELL, CHECK, END, FAILED};
use serde::{Deserialize, Serialize};

/// What became of a probe with one hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// The probe.
    pub probe: String,
    /// The hook, one rung of the probe's ladder.
    pub hook: String,
    /// `attached`, `degraded`, `unsupported` or `failed`.
    pub verdict: String,
    /// A code for why.
    #[serde(default)]
    pub reason: String,
    /// Why, for people.
    #[serde(default)]
    pub detail: String,
    /// `exact`, or what was wrong with its numbers.
    #[serde(default)]
    pub result: String,
}

impl Cell {
    /// Whether the probe counts with this hook.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.verdict == "attached" || self.verdict == "degraded"
    }
}

#[derive(Debug, Deserialize)]
struct Report {
    probes: Vec<Cell>,
}

/// All that a guest's console tells.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Told {
    /// The exit code, if the guest got that far.
    pub end: Option<i32>,
    /// What the agent chose by itself.
    pub chosen: Vec<Cell>,
    /// What became of each hook.
    pub cells: Vec<Cell>,
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, by name.
    pub failed: Vec<String>,
    /// Tests that were skipped, with the reason.
    pub skipped: Vec<String>,
    /// What else went wrong.
    pub errors: Vec<String>,
}

impl Told {
    /// Takes a line of the console in.
    pub fn line(&mut self, line: &str) {
        let line = line.trim_end();
        // A test's own lines follow on its name, and the kernel may break in.
        let after = |mark: &str| line.find(mark).map(|place| &line[place + mark.len()..]);
        if let Some(code) = after(END) {
            self.end = code.trim().parse().ok();
        } else if let Some(error) = after(FAILED) {
            self.errors.push(error.trim().to_owned());
        } else if let Some(json) = after(CHECK) {
            match serde_json::from_str::<Report>(json) {
                Ok(report) => self.chosen = report.probes,
                Err(error) => self.errors.push(format!("sentry check: {error}")),
            }
        } else if let Some(rest) = after(CELL) {
            match serde_json::from_str(&format!("{{{rest}")) {
                Ok(cell) => self.cells.push(cell),
                Err(error) => self.errors.push(format!("a cell: {error}: {rest}")),
            }
        } else if let Some(reason) = after("SKIPPED ") {
            self.skipped.push(reason.to_owned());
        } else if let Some(panic) = after("Kernel panic - ") {
            self.errors.push(format!("kernel panic: {panic}"));
        } else if let Some(result) = after("test result: ") {
            let mut words = result.split_whitespace();
            let passed = words.position(|word| word.starts_with("passed"));
            let number =
                passed.and_then(|place| result.split_whitespace().nth(place.checked_sub(1)?));
            self.passed += number.and_then(|number| number.parse().ok()).unwrap_or(0);
        } else if let Some(name) = line.strip_prefix("    ") {
            // The list of failures at the end; a panic's own lines are not indented by names of tests.
            let is_name = name.contains("::") && !name.contains(|c: char| c.is_whitespace());
            if is_name && !self.failed.iter().any(|known| known == name) {
                self.failed.push(name.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Told {
        let mut told = Told::default();
        text.lines().for_each(|line| told.line(line));
        told
    }

    #[test]
    fn a_console_is_read() {
        let told = told(
            "[    0.1] Linux version\r\n\
             sentry-vm: check {\"host\":[],\"probes\":[{\"probe\":\"tcp\",\"hook\":\"tp_btf\",\"verdict\":\"attached\",\"reason\":\"ok\",\"detail\":\"\"}]}\r\n\
             test ladder::tcp ... cell {\"probe\":\"tcp\",\"hook\":\"kprobe\",\"verdict\":\"degraded\",\"reason\":\"r\",\"detail\":\"a | b\",\"result\":\"exact\"}\r\n\
             ok\r\n\
             SKIPPED a_test: no loop\r\n\
             failures:\r\n\
             \x20   tcp::one\r\n\
             test result: FAILED. 12 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out; finished in 1.00s\r\n\
             sentry-vm: failed: tests: exit status: 101\r\n\
             sentry-vm: end 1\r\n",
        );
        assert_eq!(told.end, Some(1));
        assert_eq!(told.chosen[0].hook, "tp_btf");
        assert!(told.chosen[0].is_up());
        let [cell] = &told.cells[..] else {
            panic!("{:?}", told.cells)
        };
        assert_eq!((&*cell.detail, &*cell.result), ("a | b", "exact"));
        assert_eq!(told.skipped, ["a_test: no loop"]);
        assert_eq!(
            (told.passed, &told.failed[..]),
            (12, &["tcp::one".to_owned()][..])
        );
        assert_eq!(told.errors, ["tests: exit status: 101"]);
    }

    #[test]
    fn a_panic_and_a_broken_cell_are_errors() {
        let told = told("cell {\"probe\":\n[ 1.0] Kernel panic - not syncing: no init\n");
        assert_eq!(told.end, None);
        assert!(told.errors[0].starts_with("a cell: "), "{:?}", told.errors);
        assert_eq!(told.errors[1], "kernel panic: not syncing: no init");
    }
}
