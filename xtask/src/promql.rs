//! Which metrics and labels an expression names, held against those that docs/metrics.md has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context, bail, ensure};

const DOCUMENTED: &str = "docs/metrics.md";

/// What Prometheus makes itself for each target.
const OF_TARGETS: [&str; 3] = ["up", "scrape_duration_seconds", "scrape_samples_scraped"];

/// The labels that Prometheus gives a target's series.
const TARGET_LABELS: [&str; 4] = ["cluster", "job", "instance", "node"];

/// Those of workloads, with each `--aggregate-by`.
const WORKLOAD_LABELS: [&str; 6] = [
    "namespace",
    "pod",
    "container",
    "cgroup",
    "workload",
    "workload_kind",
];

/// Words before a list of labels.
const GROUPINGS: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];

/// Words that name no metric either.
const KEYWORDS: [&str; 7] = ["and", "or", "unless", "bool", "offset", "inf", "nan"];

/// The metrics that there are, with their labels.
pub(crate) struct Metrics(BTreeMap<String, BTreeSet<String>>);

impl Metrics {
    /// Those that are documented, which a test of the agent holds against its code.
    pub(crate) fn documented() -> anyhow::Result<Self> {
        Self::read(&fs::read_to_string(DOCUMENTED).context(DOCUMENTED)?)
    }

    /// Those in the tables of a text.
    pub(crate) fn read(text: &str) -> anyhow::Result<Self> {
        let mut metrics = BTreeMap::new();
        let mut of_workloads = false;
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                of_workloads = heading == "Workloads";
            }
            let mut cells = line.split(" | ").map(|cell| cell.trim_matches(['|', ' ']));
            let is_metric = |name: &&str| name.starts_with("`sentry_") || name.starts_with("`proc");
            let Some(name) = cells.next().filter(is_metric) else {
                continue;
            };
            // Tables of other things have fewer columns.
            let (Some(kind), Some(_unit), Some(labels), Some(_meaning)) =
                (cells.next(), cells.next(), cells.next(), cells.next())
            else {
                continue;
            };
            let mut all: BTreeSet<String> = TARGET_LABELS.map(str::to_owned).into();
            if of_workloads {
                all.extend(WORKLOAD_LABELS.map(str::to_owned));
            }
            let own = labels.split(", ").filter(|label| !label.is_empty());
            all.extend(own.map(|label| label.trim_matches('`').to_owned()));
            let name = name.trim_matches('`');
            match kind {
                "histogram" => {
                    metrics.insert(format!("{name}_sum"), all.clone());
                    metrics.insert(format!("{name}_count"), all.clone());
                    all.insert("le".to_owned());
                    metrics.insert(format!("{name}_bucket"), all);
                }
                "counter" | "gauge" => {
                    metrics.insert(name.to_owned(), all);
                }
                other => bail!("{DOCUMENTED}: {name}: {other} is no type"),
            }
        }
        ensure!(metrics.len() > 30, "{DOCUMENTED}: no metrics were found");
        for name in OF_TARGETS {
            metrics.insert(name.to_owned(), TARGET_LABELS.map(str::to_owned).into());
        }
        Ok(Self(metrics))
    }

    /// Adds what a rule records.
    pub(crate) fn record(&mut self, name: &str) {
        let mut labels: BTreeSet<String> = self.0.values().flatten().cloned().collect();
        if !name.contains("_bucket:") {
            labels.remove("le");
        }
        self.0.insert(name.to_owned(), labels);
    }

    /// Asserts that all that an expression names is there.
    pub(crate) fn hold(&self, expression: &str) -> anyhow::Result<()> {
        let named = Named::read(expression)?;
        ensure!(!named.metrics.is_empty(), "{expression}: names no metric");
        let mut labels = BTreeSet::new();
        for (metric, of_metric) in named.metrics {
            let known = self.0.get(&metric);
            let known = known.with_context(|| format!("{metric}: not in {DOCUMENTED}"))?;
            for label in &of_metric {
                ensure!(known.contains(label), "{metric}: it has no label {label}");
            }
            labels.extend(known);
        }
        for label in &named.grouped {
            ensure!(labels.contains(label), "{expression}: no label {label}");
        }
        Ok(())
    }
}

/// What follows the name of a function.
const FUNCTION_ENDS: [&str; 3] = ["(", "by", "without"];

/// What an expression names.
#[derive(Debug, Default, PartialEq)]
struct Named {
    /// Each metric, with the labels by which it is selected.
    metrics: Vec<(String, Vec<String>)>,
    /// Labels by which is grouped or matched.
    grouped: Vec<String>,
}

impl Named {
    fn read(expression: &str) -> anyhow::Result<Self> {
        let mut named = Self::default();
        let words = words(expression);
        let mut at = words.iter().peekable();
        while let Some(word) = at.next() {
            let next = at.peek().map(|word| word.as_str());
            if GROUPINGS.contains(&word.as_str()) {
                // group_left needs no list.
                if next == Some("(") {
                    at.next();
                    let labels = at.by_ref().take_while(|word| word.as_str() != ")");
                    let labels = labels.filter(|word| word.as_str() != ",");
                    named.grouped.extend(labels.cloned());
                }
            } else if word == "{" {
                named.select_by_name(matchers(&mut at, expression)?);
            } else if is_name(word)
                && !KEYWORDS.contains(&word.as_str())
                && !next.is_some_and(|next| FUNCTION_ENDS.contains(&next))
            {
                let mut labels = Vec::new();
                if next == Some("{") {
                    at.next();
                    let matchers = matchers(&mut at, expression)?;
                    labels.extend(matchers.into_iter().map(|(label, _)| label));
                }
                named.metrics.push((word.clone(), labels));
            }
        }
        Ok(named)
    }

    /// A selector without a name before it: `{__name__=~"a|b"}`.
    fn select_by_name(&mut self, matchers: Vec<(String, String)>) {
        let (names, others): (Vec<_>, Vec<_>) = matchers
            .into_iter()
            .partition(|(label, _)| label == "__name__");
        let labels: Vec<_> = others.into_iter().map(|(label, _)| label).collect();
        for (_, value) in names {
            for name in value.split('|') {
                self.metrics.push((name.to_owned(), labels.clone()));
            }
        }
    }
}

/// What stands between braces, of which the first is read: labels and values.
fn matchers<'a>(
    words: &mut impl Iterator<Item = &'a String>,
    expression: &str,
) -> anyhow::Result<Vec<(String, String)>> {
    let words: Vec<_> = words.take_while(|word| word.as_str() != "}").collect();
    let matchers = words.split(|word| word.as_str() == ",");
    let matchers = matchers.map(|matcher| match matcher {
        [label, _, value] => Ok(((*label).clone(), value.trim_matches('"').to_owned())),
        other => bail!("{expression}: {other:?} is no matcher"),
    });
    matchers.collect()
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == ':')
}

/// An expression in words: names, numbers, texts, operators. Grafana's variables are words that name nothing.
fn words(expression: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = expression.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '.';
        let length = match first {
            '"' => rest[1..].find('"').map_or(rest.len(), |end| end + 2),
            '$' => 1 + rest[1..].find(|c| !is_word(c)).unwrap_or(rest.len() - 1),
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            '=' | '!' | '<' | '>' => rest.find(|c| !"=!<>~".contains(c)).unwrap_or(rest.len()),
            other => other.len_utf8(),
        };
        words.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "## Workloads\n\n\
        | `sentry_a_seconds` | histogram | seconds | `role` | Time | here |\n\
        | `sentry_b_total` | counter |  |  | Number | there |\n\n\
        ## The agent\n\n\
        | `sentry_c` | gauge |  | `probe`, `hook` | Whether |\n\
        | `sentry_d` | 1 |\n";

    fn metrics() -> Metrics {
        // As many as the check wants.
        let more = |number| format!("| `sentry_more{number}` | gauge |  |  | More |\n");
        let more: String = (0..30).map(more).collect();
        Metrics::read(&format!("{TEXT}{more}")).unwrap()
    }

    #[test]
    fn names_are_found_wherever_they_stand() {
        let named = Named::read(
            "sum by (le, pod) (rate(a_bucket{x=~\"b, c}\", y!=\"$z\"}[$__rate_interval])) \
             / ignoring (device) group_left () (l:b:sum5m > 14.4 * 0.01) or time() - c offset 5m",
        );
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(
            named.unwrap(),
            Named {
                metrics: vec![
                    ("a_bucket".to_owned(), owned(&["x", "y"])),
                    ("l:b:sum5m".to_owned(), vec![]),
                    ("c".to_owned(), vec![]),
                ],
                grouped: owned(&["le", "pod", "device"]),
            }
        );
    }

    #[test]
    fn what_is_not_documented_is_refused() {
        let mut metrics = metrics();
        for good in [
            "histogram_quantile(0.9, sum by (le, role, pod) (rate(sentry_a_seconds_bucket{role=\"x\", instance=~\"$instance\"}[5m])))",
            "sum without (role) (sentry_a_seconds_count)",
            "sentry_c{probe=\"tcp\"} == 0 and on (instance) up",
            "sentry_b_total{workload=\"w\"}",
            "count by (pod) ({__name__=~\"sentry_a_seconds_count|sentry_b_total\", pod=\"p\"})",
        ] {
            metrics.hold(good).unwrap();
        }
        for (bad, reason) in [
            ("sentry_a_seconds", "not in docs"),
            ("rate(sentry_a_total[5m])", "not in docs"),
            ("sentry_b_total_bucket", "not in docs"),
            ("sentry_d", "not in docs"),
            ("l:sentry_b:rate5m", "not in docs"),
            ("sentry_a_seconds_count{le=\"1\"}", "no label le"),
            ("sentry_c{namespace=\"n\"}", "no label namespace"),
            ("sum by (device) (sentry_b_total)", "no label device"),
            ("sentry_b_total{namespace}", "no matcher"),
            ("1 + 1", "names no metric"),
            ("{pod=\"p\"}", "names no metric"),
            ("{__name__=~\"sentry_b_total|sentry_x\"}", "not in docs"),
        ] {
            let error = metrics.hold(bad).unwrap_err().to_string();
            assert!(error.contains(reason), "{bad}: {error}");
        }
        metrics.record("l:sentry_b:rate5m");
        metrics.hold("l:sentry_b:rate5m{pod=\"p\"}").unwrap();
    }
}
