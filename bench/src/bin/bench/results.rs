//! What was measured: recorded once, written as Markdown and as JSON.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result};
use serde::{Serialize, Serializer};

/// Between these, docs/performance.md is written by `--write`.
const BEGIN: &str = "<!-- measured -->\n";
const END: &str = "<!-- /measured -->\n";

/// All tables of a run, on one machine.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    machine: Machine,
    tables: Vec<Table>,
    /// Parts that failed, and why.
    failed: Vec<String>,
    #[serde(skip)]
    folder: PathBuf,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
struct Machine {
    kernel: String,
    cpus: usize,
    model: String,
    memory_bytes: u64,
    is_virtual: bool,
    /// How many threads wanted to run when it began, over a minute: what else the machine does.
    load_average: f64,
}

/// One table.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    /// What was done, in a paragraph.
    pub(crate) about: String,
    pub(crate) columns: Vec<String>,
    rows: Vec<Row>,
    wanted: Vec<Wanted>,
}

/// A line of a table.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    cells: Vec<Cell>,
}

/// What was aimed at; neither met nor missed where the noise hides it.
#[derive(Debug, Serialize)]
struct Wanted {
    what: String,
    met: Option<bool>,
}

/// What stands in a table beside a row's name.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    Text(String),
    Measured(Measured),
}

/// Samples of one quantity.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// Ascending.
    samples: Vec<f64>,
    unit: &'static str,
    decimals: usize,
    spread: Spread,
}

/// What is shown beside the median.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spread {
    None,
    /// Least and greatest.
    Extremes,
    Quartiles,
}

impl Cell {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }
}

impl From<Measured> for Cell {
    fn from(measured: Measured) -> Self {
        Self::Measured(measured)
    }
}

/// The median of samples, with least and greatest; `decimals` are what is shown of it.
pub(crate) fn measured(samples: &[f64], unit: &'static str, decimals: usize) -> Measured {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    let spread = match samples.len() {
        0 | 1 => Spread::None,
        _ => Spread::Extremes,
    };
    Measured {
        samples,
        unit,
        decimals,
        spread,
    }
}

impl Measured {
    /// With quartiles in place of least and greatest.
    pub(crate) fn quartiles(mut self) -> Self {
        self.spread = Spread::Quartiles;
        self
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    fn quantile(&self, part: f64) -> f64 {
        quantile(&self.samples, part)
    }

    /// Where the median of endless samples is with 95 % probability, whatever their distribution: between two of these.
    /// None of fewer than six samples.
    pub(crate) fn interval(&self) -> Option<[f64; 2]> {
        let count = self.samples.len();
        // The probability of at most `rank` of `count` samples below the median, by the binomial distribution.
        let mut each = 0.5_f64.powi(i32::try_from(count).ok()?);
        let (mut below, mut rank) = (each, 0);
        if below > 0.025 {
            return None;
        }
        while rank < count / 2 {
            #[allow(clippy::cast_precision_loss)] // some dozens
            let next = each * (count - rank) as f64 / (rank + 1) as f64;
            if below + next > 0.025 {
                break;
            }
            each = next;
            below += next;
            rank += 1;
        }
        Some([self.samples[rank], self.samples[count - 1 - rank]])
    }

    pub(crate) fn count(&self) -> usize {
        self.samples.len()
    }
}

/// A quantile of ascending samples, between two of them where need be.
fn quantile(samples: &[f64], part: f64) -> f64 {
    let Some(last) = samples.len().checked_sub(1) else {
        return f64::NAN;
    };
    #[allow(clippy::cast_precision_loss)] // some dozens
    let place = part * last as f64;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a place within
    let lower = place as usize;
    let upper = (lower + 1).min(last);
    samples[lower] + (samples[upper] - samples[lower]) * place.fract()
}

impl Serialize for Measured {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shape {
            unit: &'static str,
            median: f64,
            least: f64,
            lower_quartile: f64,
            upper_quartile: f64,
            greatest: f64,
            median_95: Option<[f64; 2]>,
            samples: usize,
        }
        Shape {
            unit: self.unit,
            median: self.median(),
            least: self.quantile(0.0),
            lower_quartile: self.quantile(0.25),
            upper_quartile: self.quantile(0.75),
            greatest: self.quantile(1.0),
            median_95: self.interval(),
            samples: self.samples.len(),
        }
        .serialize(serializer)
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let measured = match self {
            Self::Text(text) => return f.write_str(text),
            Self::Measured(measured) => measured,
        };
        let decimals = measured.decimals;
        write!(f, "{:.decimals$}", measured.median())?;
        if !measured.unit.is_empty() {
            write!(f, " {}", measured.unit)?;
        }
        let (least, greatest) = match measured.spread {
            Spread::None => return Ok(()),
            Spread::Extremes => (0.0, 1.0),
            Spread::Quartiles => (0.25, 0.75),
        };
        let (least, greatest) = (measured.quantile(least), measured.quantile(greatest));
        write!(f, " ({least:.decimals$} to {greatest:.decimals$})")
    }
}

impl Table {
    pub(crate) fn new(title: &str, about: impl Into<String>, columns: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            about: about.into(),
            columns: columns.iter().map(|&column| column.to_owned()).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn row(&mut self, name: impl Into<String>, cells: Vec<Cell>) {
        let name = name.into();
        self.rows.push(Row { name, cells });
    }

    pub(crate) fn want(&mut self, what: impl Into<String>, met: impl Into<Option<bool>>) {
        self.wanted.push(Wanted {
            what: what.into(),
            met: met.into(),
        });
    }

    fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.title);
        if !self.about.is_empty() {
            let _ = writeln!(text, "{}\n", self.about);
        }
        let _ = writeln!(text, "| {} |", self.columns.join(" | "));
        let rest = self.columns.len().saturating_sub(1);
        let _ = writeln!(text, "| --- |{}", " ---: |".repeat(rest));
        for Row { name, cells } in &self.rows {
            let mut cells: Vec<String> = cells.iter().map(ToString::to_string).collect();
            // A row that says why it has nothing is as wide as the others.
            cells.resize(rest, String::new());
            let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
        }
        for (place, Wanted { what, met }) in self.wanted.iter().enumerate() {
            let before = if place == 0 { "\nWanted: " } else { "; " };
            let met = match met {
                Some(true) => "met",
                Some(false) => "missed",
                None => "not decided, for the noise",
            };
            let _ = write!(text, "{before}{what} ({met})");
        }
        text.push_str(if self.wanted.is_empty() {
            "\n"
        } else {
            ".\n\n"
        });
        text
    }
}

impl Results {
    /// Without tables. They are going to be written into this folder.
    pub(crate) fn new(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let of = |path: &str, key: &str| {
            let text = read(path);
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let memory = of("/proc/meminfo", "MemTotal").unwrap_or_default();
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        // Only the numbers: what follows them names a build.
        let kernel = read("/proc/sys/kernel/osrelease");
        let kernel = kernel.trim().split('-').next().unwrap_or_default();
        let machine = Machine {
            kernel: kernel.to_owned(),
            cpus: thread::available_parallelism().map_or(0, usize::from),
            model: of("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown CPU".to_owned()),
            memory_bytes: kib * 1024,
            is_virtual: of("/proc/cpuinfo", "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            load_average: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .context("/proc/loadavg has no number")?,
        };
        Ok(Self {
            machine,
            tables: Vec::new(),
            failed: Vec::new(),
            folder,
        })
    }

    /// The machine, in a line.
    pub(crate) fn machine(&self) -> String {
        let machine = &self.machine;
        format!(
            "Linux {}, {} CPUs, {}{}, {} GiB of memory, load average {} at the start.",
            machine.kernel,
            machine.cpus,
            machine.model,
            if machine.is_virtual {
                ", a virtual machine that shares its host"
            } else {
                ""
            },
            (machine.memory_bytes + (1 << 29)) >> 30,
            machine.load_average,
        )
    }

    /// Prints a table and keeps it, also in the files: a later part may fail.
    pub(crate) fn add(&mut self, table: Table) -> Result<()> {
        print!("{}", table.markdown());
        std::io::Write::flush(&mut std::io::stdout())?;
        self.tables.push(table);
        self.save()
    }

    /// Notes that a part could not be measured.
    pub(crate) fn fail(&mut self, part: &str, error: &anyhow::Error) -> Result<()> {
        let text = format!("{part}: {error:#}");
        eprintln!("bench: {text}");
        self.failed.push(text);
        self.save()
    }

    /// How many parts could not be measured.
    pub(crate) fn failures(&self) -> usize {
        self.failed.len()
    }

    fn markdown(&self) -> String {
        let mut text = format!("{}\n\n", self.machine());
        for table in &self.tables {
            text.push_str(&table.markdown());
        }
        for part in &self.failed {
            let _ = writeln!(text, "Not measured: {part}.\n");
        }
        text
    }

    fn save(&self) -> Result<()> {
        let json = serde_json::to_string_pretty(self)? + "\n";
        for (name, text) in [("results.md", self.markdown()), ("results.json", json)] {
            let path = self.folder.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Writes all of it into a document, between its marks.
    pub(crate) fn write_into(&self, document: &Path) -> Result<()> {
        let read = fs::read_to_string(document).with_context(|| document.display().to_string())?;
        let text = between_marks(&read, &self.markdown())
            .with_context(|| format!("{}: no {}", document.display(), BEGIN.trim()))?;
        fs::write(document, text).with_context(|| document.display().to_string())
    }
}

/// The document with other text between its marks; none if it has no marks.
fn between_marks(document: &str, text: &str) -> Option<String> {
    let begin = document.find(BEGIN)? + BEGIN.len();
    let end = begin + document[begin..].find(END)?;
    Some(format!(
        "{}\n{}\n\n{}",
        &document[..begin],
        text.trim(),
        &document[end..]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_has_its_spread() {
        let five = measured(&[5.0, 1.0, 2.0, 4.0, 3.0], "ns", 1);
        assert_eq!(Cell::from(five.clone()).to_string(), "3.0 ns (1.0 to 5.0)");
        assert_eq!(
            Cell::from(five.quartiles()).to_string(),
            "3.0 ns (2.0 to 4.0)"
        );
        let one = measured(&[7.0], "", 0);
        assert_eq!(Cell::from(one).to_string(), "7");
        assert!((measured(&[1.0, 2.0], "", 0).median() - 1.5).abs() < 1e-9);
    }

    #[test]
    fn the_interval_of_a_median_is_that_of_the_binomial_distribution() {
        let of = |count: u32| {
            let samples: Vec<f64> = (1..=count).map(f64::from).collect();
            measured(&samples, "", 0).interval()
        };
        // From the tables of order statistics: ranks 1 and 6 of 6, 2 and 9 of 10, 6 and 15 of 20.
        assert_eq!(of(5), None);
        assert_eq!(of(6), Some([1.0, 6.0]));
        assert_eq!(of(10), Some([2.0, 9.0]));
        assert_eq!(of(20), Some([6.0, 15.0]));
    }

    #[test]
    fn a_table_is_markdown_and_json() {
        let mut table = Table::new("Title", "About.", &["what", "one", "two"]);
        table.row("a", vec![measured(&[1.0], "ms", 0).into()]);
        table.want("under 2 ms", true);
        assert_eq!(
            table.markdown(),
            "### Title\n\nAbout.\n\n| what | one | two |\n| --- | ---: | ---: |\n| a | 1 ms |  |\n\n\
             Wanted: under 2 ms (met).\n\n"
        );
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["rows"][0]["cells"][0]["median"], 1.0);
        assert_eq!(json["wanted"][0]["met"], true);
    }

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let document = format!("before\n{BEGIN}old\n{END}after\n");
        let new = format!("before\n{BEGIN}\nnew\n\n{END}after\n");
        assert_eq!(between_marks(&document, "new\n"), Some(new));
        assert_eq!(between_marks("none", "new"), None);
    }
}
