//! Panels, variables and dashboards as Grafana reads them.

use serde_json::{Value, json};

/// The schema of Grafana 10; later ones read it.
const SCHEMA_VERSION: u64 = 39;

/// The oldest Grafana with all that is used here.
const GRAFANA: &str = "10.0.0";

/// Grafana's grid.
pub(super) const COLUMNS: u64 = 24;

/// A panel, but for its place and number.
pub(super) struct Panel {
    width: u64,
    height: u64,
    json: Value,
}

impl Panel {
    pub(super) fn new(kind: &str, title: &str, description: &str, unit: &str) -> Self {
        let json = json!({
            "type": kind,
            "title": title,
            "description": description,
            "datasource": datasource(),
            "fieldConfig": {
                "defaults": {
                    "unit": unit,
                    "color": {"mode": "palette-classic"},
                    "thresholds": {"mode": "absolute", "steps": [{"color": "green", "value": null}]},
                },
                "overrides": [],
            },
            "targets": [],
        });
        Self {
            width: 12,
            height: 8,
            json,
        }
    }

    /// Lines over time.
    pub(super) fn lines(title: &str, description: &str, unit: &str) -> Self {
        let mut panel = Self::new("timeseries", title, description, unit);
        let defaults = &mut panel.json["fieldConfig"]["defaults"];
        defaults["min"] = json!(0);
        defaults["custom"] = json!({
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 10,
            "showPoints": "never",
            "spanNulls": false,
            "stacking": {"mode": "none", "group": "A"},
            "thresholdsStyle": {"mode": "off"},
        });
        panel.json["options"] = json!({
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        });
        panel
    }

    /// Lines that add up.
    pub(super) fn stacked(title: &str, description: &str, unit: &str) -> Self {
        let mut panel = Self::lines(title, description, unit);
        let custom = &mut panel.json["fieldConfig"]["defaults"]["custom"];
        custom["stacking"]["mode"] = json!("normal");
        custom["fillOpacity"] = json!(30);
        panel
    }

    /// A histogram over time: how many events of each duration.
    pub(super) fn heatmap(title: &str, description: &str, buckets: &str) -> Self {
        let mut panel = Self::new("heatmap", title, description, "s");
        panel.json["fieldConfig"]["defaults"]["custom"] = json!({
            "hideFrom": {"legend": false, "tooltip": false, "viz": false},
            "scaleDistribution": {"type": "linear"},
        });
        panel.json["options"] = json!({
            "calculate": false,
            "cellGap": 1,
            "cellValues": {"unit": "short"},
            "color": {
                "mode": "scheme",
                "scheme": "Oranges",
                "scale": "exponential",
                "exponent": 0.5,
                "steps": 64,
                "reverse": false,
                "fill": "dark-orange",
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": true},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"show": true, "yHistogram": true, "mode": "single"},
            "yAxis": {"axisPlacement": "left", "reverse": false, "unit": "s"},
        });
        let expression = format!("sum by (le) (increase({buckets}[$__rate_interval]))");
        panel.target(&expression, "{{le}}");
        let target = &mut panel.json["targets"][0];
        target["format"] = json!("heatmap");
        target["exemplar"] = json!(true);
        panel
    }

    /// One number.
    pub(super) fn number(title: &str, description: &str, unit: &str, expression: &str) -> Self {
        let mut panel = Self::new("stat", title, description, unit);
        panel.json["fieldConfig"]["defaults"]["color"]["mode"] = json!("thresholds");
        panel.json["options"] = json!({
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
        });
        panel.target(expression, "");
        panel.sized(4, 4)
    }

    /// Labels and a value, as of now, the highest first.
    pub(super) fn table(
        title: &str,
        description: &str,
        unit: &str,
        value: &str,
        expression: &str,
    ) -> Self {
        let mut panel = Self::new("table", title, description, unit);
        panel.json["fieldConfig"]["defaults"]["custom"] = json!({"align": "auto", "cellOptions": {"type": "auto"}, "inspect": false, "filterable": true});
        panel.json["options"] = json!({
            "cellHeight": "sm",
            "showHeader": true,
            "sortBy": [{"displayName": value, "desc": true}],
        });
        panel.json["transformations"] = json!([{
            "id": "organize",
            "options": {
                "excludeByName": {"Time": true, "__name__": true, "job": true, "node": true},
                "indexByName": {},
                "renameByName": {"Value": value},
            },
        }]);
        panel.target(expression, "");
        let target = &mut panel.json["targets"][0];
        target["format"] = json!("table");
        target["instant"] = json!(true);
        target["range"] = json!(false);
        panel
    }

    pub(super) fn target(&mut self, expression: &str, legend: &str) {
        let targets = self.json["targets"].as_array_mut();
        let targets = targets.unwrap_or_else(|| unreachable!("every panel has a list of them"));
        let letter = char::from(b'A' + u8::try_from(targets.len()).unwrap_or(0));
        targets.push(json!({
            "refId": letter.to_string(),
            "datasource": datasource(),
            "editorMode": "code",
            "expr": expression,
            "legendFormat": legend,
            "instant": false,
            "range": true,
            "exemplar": false,
        }));
    }

    pub(super) fn with(mut self, expression: &str, legend: &str) -> Self {
        self.target(expression, legend);
        self
    }

    /// Quantiles of a histogram by some labels, with exemplars.
    pub(super) fn quantiles(mut self, histogram: &str, selector: &str, by: &[&str]) -> Self {
        let labels = [&["le"], by].concat().join(", ");
        let named: Vec<_> = by.iter().map(|label| format!("{{{{{label}}}}}")).collect();
        for (quantile, name) in [("0.5", "p50"), ("0.99", "p99")] {
            let expression = format!(
                "histogram_quantile({quantile}, sum by ({labels}) (rate({histogram}_bucket{{{selector}}}[$__rate_interval])))"
            );
            let legend = format!("{name} {}", named.join(" "));
            self.target(&expression, legend.trim_end());
        }
        for target in self.json["targets"].as_array_mut().into_iter().flatten() {
            target["exemplar"] = json!(true);
        }
        self.json["fieldConfig"]["defaults"]["custom"]["scaleDistribution"] =
            json!({"type": "log", "log": 10});
        // A logarithm has no zero.
        if let Some(defaults) = self.json["fieldConfig"]["defaults"].as_object_mut() {
            defaults.remove("min");
        }
        self
    }

    pub(super) fn sized(mut self, width: u64, height: u64) -> Self {
        self.width = width;
        self.height = height;
        self
    }

    /// From this value on it is red.
    pub(super) fn red_from(mut self, value: f64) -> Self {
        let defaults = &mut self.json["fieldConfig"]["defaults"];
        defaults["thresholds"]["steps"] =
            json!([{"color": "green", "value": null}, {"color": "red", "value": value}]);
        if !defaults["custom"]["thresholdsStyle"].is_null() {
            defaults["custom"]["thresholdsStyle"]["mode"] = json!("dashed");
        }
        self
    }

    /// Below this value it is red.
    pub(super) fn red_below(mut self, value: f64) -> Self {
        self.json["fieldConfig"]["defaults"]["thresholds"]["steps"] =
            json!([{"color": "red", "value": null}, {"color": "green", "value": value}]);
        self
    }

    /// Each name in a table leads to the dashboard of what has it. A label that is empty has no column, so each column
    /// gives its own alone.
    pub(super) fn leading_to_workload(mut self) -> Self {
        let overrides = ["namespace", "pod", "container", "workload", "cgroup"].map(|label| {
            let url = format!(
                "/d/sentry-workload/sentry-workload?${{datasource:queryparam}}\
                 &var-instance=${{__data.fields.instance:percentencode}}\
                 &var-{label}=${{__value.raw:percentencode}}&${{__url_time_range}}"
            );
            let links =
                json!([{"title": format!("This {label}"), "url": url, "targetBlank": false}]);
            json!({
                "matcher": {"id": "byName", "options": label},
                "properties": [{"id": "links", "value": links}],
            })
        });
        self.json["fieldConfig"]["overrides"] = json!(overrides);
        self
    }
}

/// Whichever is chosen; none is named here.
pub(super) fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// A choice among the values of a label.
pub(super) fn variable(name: &str, of: &str) -> Value {
    let query = format!("label_values({of}, {name})");
    json!({
        "name": name,
        "label": name,
        "type": "query",
        "datasource": datasource(),
        "definition": query,
        "query": {"query": query, "refId": format!("variable-{name}")},
        "includeAll": true,
        "multi": true,
        // With those that are empty, or are not there.
        "allValue": ".*",
        "current": {"selected": true, "text": ["All"], "value": ["$__all"]},
        "refresh": 2,
        "regex": "",
        "sort": 1,
        "hide": 0,
        "skipUrlSync": false,
        "options": [],
    })
}

/// Panels beneath headings, from left to right and top to bottom.
fn laid_out(rows: Vec<(&str, Vec<Panel>)>) -> Vec<Value> {
    let mut panels = Vec::new();
    let (mut left, mut top) = (0, 0);
    for (title, of_row) in rows {
        let place = json!({"h": 1, "w": COLUMNS, "x": 0, "y": top});
        panels.push(json!({
            "type": "row",
            "id": panels.len() + 1,
            "title": title,
            "collapsed": false,
            "gridPos": place,
            "panels": [],
        }));
        top += 1;
        let mut height = 0;
        for panel in of_row {
            if left + panel.width > COLUMNS {
                left = 0;
                top += height;
                height = 0;
            }
            let mut json = panel.json;
            json["id"] = json!(panels.len() + 1);
            json["gridPos"] = json!({"h": panel.height, "w": panel.width, "x": left, "y": top});
            panels.push(json);
            left += panel.width;
            height = height.max(panel.height);
        }
        left = 0;
        top += height;
    }
    panels
}

pub(super) fn dashboard(
    uid: &str,
    title: &str,
    description: &str,
    variables: Vec<Value>,
    rows: Vec<(&str, Vec<Panel>)>,
) -> Value {
    let mut list = vec![json!({
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "includeAll": false,
        "multi": false,
        "refresh": 1,
        "regex": "",
        "hide": 0,
        "skipUrlSync": false,
        "options": [],
    })];
    list.extend(variables);
    json!({
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": GRAFANA},
            {"type": "datasource", "id": "prometheus", "name": "Prometheus", "version": "1.0.0"},
        ],
        "id": null,
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["sentry"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": true,
        "graphTooltip": 1,
        "fiscalYearStartMonth": 0,
        "liveNow": false,
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "refresh": "30s",
        "weekStart": "",
        "annotations": {"list": []},
        "templating": {"list": list},
        "links": [{
            "type": "dashboards",
            "title": "Sentry",
            "tags": ["sentry"],
            "asDropdown": true,
            "includeVars": true,
            "keepTime": true,
            "targetBlank": false,
            "icon": "external link",
            "tooltip": "",
            "url": "",
        }],
        "panels": laid_out(rows),
    })
}
