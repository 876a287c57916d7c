//! Grafana's dashboards, as code: deploy/grafana/dashboards is made of this.
//!
//! They ask for the agent's own metrics and for none that a rule records, so they work without the rules, and exemplars
//! belong to the very buckets that are asked for.

mod dashboards;
mod panel;

use std::{collections::BTreeSet, fs};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use self::{
    dashboards::all,
    panel::{COLUMNS, datasource},
};
use crate::{prometheus::Rules, promql::Metrics};

const FOLDER: &str = "deploy/grafana/dashboards";

/// More of one dashboard, with its quotes escaped, `kubectl apply` cannot remember of a `ConfigMap`.
const MOST_BYTES: usize = 150_000;

/// Writes them anew.
pub(crate) fn write() -> anyhow::Result<()> {
    for (name, dashboard) in all() {
        let path = format!("{FOLDER}/{name}.json");
        fs::write(&path, text(&dashboard)?).context(path)?;
    }
    Ok(())
}

/// Checks that they are what is here, that Grafana can show them, and that they are about metrics that there are.
pub(crate) fn check() -> anyhow::Result<()> {
    let metrics = Rules::read()?.metrics()?;
    let mut dashboards = Vec::new();
    for (name, dashboard) in all() {
        let path = format!("{FOLDER}/{name}.json");
        let wanted = text(&dashboard)?;
        ensure!(
            fs::read_to_string(&path).is_ok_and(|there| there == wanted),
            "{path}: not what xtask/src/grafana/ says; `make manifests` writes it anew"
        );
        ensure!(wanted.len() < MOST_BYTES, "{path}: too large");
        dashboards.push(dashboard);
    }
    let mut files = 0;
    for entry in fs::read_dir(FOLDER).context(FOLDER)? {
        files += 1;
        let name = entry?.file_name();
        let known = all().iter().any(|(it, _)| *name == *format!("{it}.json"));
        ensure!(known, "{FOLDER}/{}: nothing makes it", name.display());
    }
    ensure!(files == dashboards.len(), "{FOLDER}: {files} files");
    let uids: BTreeSet<_> = dashboards.iter().map(|it| it["uid"].to_string()).collect();
    ensure!(uids.len() == dashboards.len(), "two dashboards of one uid");
    for dashboard in &dashboards {
        sound(dashboard, &dashboards, &metrics)
            .with_context(|| format!("dashboard {}", dashboard["uid"]))?;
    }
    Ok(())
}

fn text(dashboard: &Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(dashboard)? + "\n")
}

/// Asserts that Grafana can show a dashboard.
fn sound(dashboard: &Value, all: &[Value], metrics: &Metrics) -> anyhow::Result<()> {
    ensure!(dashboard["id"].is_null(), "its id is Grafana's to give");
    for text in ["uid", "title", "description"] {
        let is_there = |text: &Value| text.as_str().is_some_and(|text| !text.is_empty());
        ensure!(is_there(&dashboard[text]), "no {text}");
    }
    let mut variables = BTreeSet::new();
    for variable in list(&dashboard["templating"]["list"]) {
        let name = variable["name"]
            .as_str()
            .context("a variable has no name")?;
        if variable["type"] == "query" {
            ensure!(
                variable["datasource"] == datasource() && variables.contains("datasource"),
                "${name}: its data source is no choice"
            );
            let query = variable["query"]["query"].as_str().unwrap_or_default();
            let (selected, label) = label_values(query).with_context(|| format!("${name}"))?;
            metrics.hold(&format!("count by ({label}) ({selected})"))?;
            known_variables(selected, &variables).with_context(|| format!("${name}"))?;
        } else {
            ensure!(variable["type"] == "datasource", "${name}: of another type");
        }
        ensure!(variables.insert(name.to_owned()), "${name}: there are two");
    }
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in list(&dashboard["panels"]) {
        let title = panel["title"].as_str().context("a panel has no title")?;
        panel_sound(panel, metrics, &variables)
            .and_then(|()| links_lead_somewhere(panel, all))
            .with_context(|| format!("panel {title}"))?;
        ensure!(
            ids.insert(panel["id"].to_string()),
            "{title}: its id is another's"
        );
        let [height, width, left, top] =
            ["h", "w", "x", "y"].map(|key| panel["gridPos"][key].as_u64().unwrap_or(u64::MAX / 4));
        ensure!(
            height > 0 && width > 0 && left + width <= COLUMNS && top < 1000,
            "{title}: {} is no place",
            panel["gridPos"]
        );
        for x in left..left + width {
            for y in top..top + height {
                ensure!(taken.insert((x, y)), "{title}: lies on another");
            }
        }
    }
    ensure!(!ids.is_empty(), "no panels");
    Ok(())
}

fn panel_sound(
    panel: &Value,
    metrics: &Metrics,
    variables: &BTreeSet<String>,
) -> anyhow::Result<()> {
    let kind = panel["type"].as_str().unwrap_or_default();
    if kind == "row" {
        return Ok(());
    }
    ensure!(
        ["timeseries", "heatmap", "stat", "table"].contains(&kind),
        "{kind}: no such type"
    );
    ensure!(panel["datasource"] == datasource(), "another data source");
    for place in ["/description", "/fieldConfig/defaults/unit"] {
        let text = panel.pointer(place).and_then(Value::as_str);
        ensure!(text.is_some_and(|text| !text.is_empty()), "no {place}");
    }
    let targets = list(&panel["targets"]);
    ensure!(!targets.is_empty(), "asks for nothing");
    let mut letters = BTreeSet::new();
    for target in targets {
        ensure!(letters.insert(target["refId"].to_string()), "two refIds");
        ensure!(target["datasource"] == datasource(), "another data source");
        let expression = target["expr"].as_str().context("no expr")?;
        metrics.hold(expression)?;
        known_variables(expression, variables)?;
        ensure!(
            !expression.contains("_bucket") || kind == "table" || target["exemplar"] == true,
            "{expression}: without exemplars"
        );
        ensure!(
            (target["format"] == "heatmap") == (kind == "heatmap"),
            "{expression}: a heatmap, or none?"
        );
        ensure!(
            (target["format"] == "table" && target["instant"] == true) == (kind == "table"),
            "{expression}: a table, or none?"
        );
    }
    Ok(())
}

/// Each link is to a dashboard that there is, with variables that it has.
fn links_lead_somewhere(panel: &Value, all: &[Value]) -> anyhow::Result<()> {
    for change in list(&panel["fieldConfig"]["overrides"]) {
        for property in list(&change["properties"]) {
            for link in list(&property["value"]) {
                let url = link["url"].as_str().context("a link without a URL")?;
                let uid = url
                    .strip_prefix("/d/")
                    .and_then(|rest| rest.split('/').next());
                let target = all.iter().find(|it| it["uid"].as_str() == uid);
                let target = target.with_context(|| format!("{url}: no such dashboard"))?;
                let known = list(&target["templating"]["list"]);
                for name in url.split("var-").skip(1) {
                    let name = name.split('=').next();
                    ensure!(
                        known
                            .iter()
                            .any(|variable| variable["name"].as_str() == name),
                        "{url}: {name:?} is no variable there"
                    );
                }
            }
        }
    }
    Ok(())
}

/// The two parts of a query for a variable's values.
fn label_values(query: &str) -> Option<(&str, &str)> {
    let inner = query.strip_prefix("label_values(")?.strip_suffix(')')?;
    inner.rsplit_once(", ")
}

/// No variables but these, and Grafana's own.
fn known_variables(expression: &str, variables: &BTreeSet<String>) -> anyhow::Result<()> {
    for rest in expression.split('$').skip(1) {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let name = &rest[..end.unwrap_or(rest.len())];
        if !variables.contains(name) && !["__rate_interval", "__range"].contains(&name) {
            bail!("{expression}: no variable ${name}");
        }
    }
    Ok(())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Metrics of which all expressions here are, whatever the documentation says.
    fn metrics() -> Metrics {
        let text = fs::read_to_string("../docs/metrics.md").unwrap();
        Metrics::read(&text).unwrap()
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let dashboards: Vec<_> = all().into_iter().map(|(_, dashboard)| dashboard).collect();
        let mut changed = dashboards[0].clone();
        change(&mut changed);
        let result = sound(&changed, &dashboards, &metrics());
        result.map_or_else(|error| format!("{error:#}"), |()| "nothing".to_owned())
    }

    #[test]
    fn faults_of_dashboards_are_told() {
        assert_eq!(refused(|_| ()), "nothing");
        let of = |kind: &'static str| {
            move |dashboard: &Value| {
                let mut panels = list(&dashboard["panels"]).iter();
                let found = panels.position(|panel| panel["type"] == kind).unwrap();
                format!("/panels/{found}")
            }
        };
        for (kind, place, value, reason) in [
            (
                "timeseries",
                "/datasource/uid",
                json!("P1"),
                "another data source",
            ),
            (
                "timeseries",
                "/targets/0/datasource/uid",
                json!("P1"),
                "another data source",
            ),
            ("timeseries", "/targets", json!([]), "asks for nothing"),
            (
                "timeseries",
                "/targets/0/expr",
                json!("sum(sentry_nonesuch)"),
                "not in docs",
            ),
            (
                "timeseries",
                "/targets/0/expr",
                json!("sum(sentry_build_info{instance=\"$nonesuch\"})"),
                "no variable $nonesuch",
            ),
            (
                "timeseries",
                "/targets/0/expr",
                json!("rate(sentry_disk_io_duration_seconds_bucket[$__rate_interval])"),
                "without exemplars",
            ),
            (
                "heatmap",
                "/targets/0/format",
                json!("time_series"),
                "a heatmap, or none?",
            ),
            (
                "table",
                "/targets/0/instant",
                json!(false),
                "a table, or none?",
            ),
            (
                "timeseries",
                "/fieldConfig/defaults/unit",
                json!(""),
                "no /fieldConfig",
            ),
            ("heatmap", "/description", json!(null), "no /description"),
            ("heatmap", "/id", json!(1), "its id is another's"),
            ("heatmap", "/gridPos/x", json!(20), "is no place"),
            ("heatmap", "/gridPos/y", json!(0), "lies on another"),
            (
                "table",
                "/fieldConfig/overrides/0/properties/0/value/0/url",
                json!("/d/nonesuch/x"),
                "no such dashboard",
            ),
            (
                "table",
                "/fieldConfig/overrides/0/properties/0/value/0/url",
                json!("/d/sentry-workload/x?var-nonesuch=1"),
                "is no variable there",
            ),
        ] {
            let said = refused(|dashboard| {
                let panel = of(kind)(dashboard);
                *dashboard.pointer_mut(&format!("{panel}{place}")).unwrap() = value;
            });
            assert!(said.contains(reason), "{place}: {said}");
        }
        for (place, value, reason) in [
            ("/uid", json!(""), "no uid"),
            ("/id", json!(7), "Grafana's to give"),
            (
                "/templating/list/1/query/query",
                json!("label_values(x)"),
                "$instance",
            ),
            (
                "/templating/list/1/query/query",
                json!("label_values(sentry_build_info, nonesuch)"),
                "no label nonesuch",
            ),
        ] {
            let said = refused(|dashboard| *dashboard.pointer_mut(place).unwrap() = value);
            assert!(said.contains(reason), "{place}: {said}");
        }
    }
}
