//! Grafana's dashboards, as code: deploy/grafana/dashboards is made of this.
//!
//! They ask for the agent's own metrics and for none that a rule records, so they work without the rules, and exemplars
//! belong to the very buckets that are asked for.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::{prometheus::Rules, promql::Metrics};

const FOLDER: &str = "deploy/grafana/dashboards";

/// The schema of Grafana 10; later ones read it.
const SCHEMA_VERSION: u64 = 39;

/// The oldest Grafana with all that is used here.
const GRAFANA: &str = "10.0.0";

/// More of one dashboard, with its quotes escaped, `kubectl apply` cannot remember of a `ConfigMap`.
const MOST_BYTES: usize = 150_000;

/// Grafana's grid.
const COLUMNS: u64 = 24;

/// The dashboards in files of these names.
fn all() -> [(&'static str, Value); 5] {
    [
        ("node", node()),
        ("workload", workload()),
        ("disk", disk()),
        ("gpu", gpu()),
        ("sentry", agent()),
    ]
}

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
            "{path}: not what xtask/src/grafana.rs says; `make manifests` writes it anew"
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

/// A panel, but for its place and number.
struct Panel {
    width: u64,
    height: u64,
    json: Value,
}

impl Panel {
    fn new(kind: &str, title: &str, description: &str, unit: &str) -> Self {
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
    fn lines(title: &str, description: &str, unit: &str) -> Self {
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
    fn stacked(title: &str, description: &str, unit: &str) -> Self {
        let mut panel = Self::lines(title, description, unit);
        let custom = &mut panel.json["fieldConfig"]["defaults"]["custom"];
        custom["stacking"]["mode"] = json!("normal");
        custom["fillOpacity"] = json!(30);
        panel
    }

    /// A histogram over time: how many events of each duration.
    fn heatmap(title: &str, description: &str, buckets: &str) -> Self {
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
    fn number(title: &str, description: &str, unit: &str, expression: &str) -> Self {
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
    fn table(title: &str, description: &str, unit: &str, value: &str, expression: &str) -> Self {
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

    fn target(&mut self, expression: &str, legend: &str) {
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

    fn with(mut self, expression: &str, legend: &str) -> Self {
        self.target(expression, legend);
        self
    }

    /// Quantiles of a histogram by some labels, with exemplars.
    fn quantiles(mut self, histogram: &str, selector: &str, by: &[&str]) -> Self {
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

    fn sized(mut self, width: u64, height: u64) -> Self {
        self.width = width;
        self.height = height;
        self
    }

    /// From this value on it is red.
    fn red_from(mut self, value: f64) -> Self {
        let defaults = &mut self.json["fieldConfig"]["defaults"];
        defaults["thresholds"]["steps"] =
            json!([{"color": "green", "value": null}, {"color": "red", "value": value}]);
        if !defaults["custom"]["thresholdsStyle"].is_null() {
            defaults["custom"]["thresholdsStyle"]["mode"] = json!("dashed");
        }
        self
    }

    /// Below this value it is red.
    fn red_below(mut self, value: f64) -> Self {
        self.json["fieldConfig"]["defaults"]["thresholds"]["steps"] =
            json!([{"color": "red", "value": null}, {"color": "green", "value": value}]);
        self
    }

    /// Each name in a table leads to the dashboard of what has it. A label that is empty has no column, so each column
    /// gives its own alone.
    fn to_workload(mut self) -> Self {
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
fn datasource() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

/// A choice among the values of a label.
fn variable(name: &str, of: &str) -> Value {
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

fn dashboard(
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

/// What selects instances.
const I: &str = r#"instance=~"$instance""#;
/// The same and workloads.
const W: &str = r#"instance=~"$instance", namespace=~"$namespace", pod=~"$pod", container=~"$container", cgroup=~"$cgroup""#;
/// What is told of a workload.
const WORKLOAD: &str = "instance, namespace, pod, container, workload, cgroup";

const HANDSHAKES: &str = "sentry_tcp_handshake_duration_seconds";
const IO: &str = "sentry_disk_io_duration_seconds";
const AT_DEVICE: &str = "sentry_disk_device_duration_seconds";
const GAPS: &str = "sentry_gpu_starvation_gap_seconds";

fn instances() -> Value {
    variable("instance", "sentry_build_info")
}

/// What selects all that did something.
const ANY: &str = r#"__name__=~"sentry_tcp_handshake_duration_seconds_count|sentry_tcp_connect_failures_total|sentry_disk_bytes_total|sentry_gpu_processes""#;

/// Choices of workloads, among those that have metrics.
fn workloads(metrics: &str) -> Vec<Value> {
    let of = |name: &str, selected: &str| variable(name, &format!("{{{metrics}, {I}{selected}}}"));
    vec![
        instances(),
        of("namespace", ""),
        of("pod", r#", namespace=~"$namespace""#),
        of("container", r#", namespace=~"$namespace", pod=~"$pod""#),
        of(
            "cgroup",
            r#", namespace=~"$namespace", pod=~"$pod", container=~"$container""#,
        ),
    ]
}

/// A rate of a counter, added up by labels.
fn rate(by: &str, metric: &str, selector: &str) -> String {
    format!("sum by ({by}) (rate({metric}{{{selector}}}[$__rate_interval]))")
}

fn handshake_panels(selector: &str) -> Vec<Panel> {
    let client = format!(r#"{selector}, role="client""#);
    vec![
        Panel::lines(
            "Handshakes",
            "TCP handshakes that were completed: as a client (connects) and as a server (accepts).",
            "ops",
        )
        .with(
            &rate("role", &format!("{HANDSHAKES}_count"), selector),
            "{{role}}",
        ),
        Panel::stacked(
            "Failed connects by reason",
            "Connects that ended without a connection. refused: nobody listens; timeout: no answer; aborted: the application gave up first.",
            "ops",
        )
        .with(
            &rate("reason", "sentry_tcp_connect_failures_total", selector),
            "{{reason}}",
        )
        .red_from(1.0),
        Panel::lines(
            "Duration of handshakes",
            "Quantiles of the time from the SYN to the end of the handshake (client), and from the SYN-ACK to its ACK (server). Estimated within a bucket: off by up to a factor of two with the default buckets. Points are exemplars.",
            "s",
        )
        .quantiles(HANDSHAKES, selector, &["role"])
        .red_from(0.25),
        Panel::heatmap(
            "Connects by duration",
            "How many connects took how long. A band at 1 s or 3 s is SYNs that were lost and sent again.",
            &format!("{HANDSHAKES}_bucket{{{client}}}"),
        ),
        Panel::lines(
            "SYNs sent again",
            "SYNs without an answer in time, as counted when the connect ends: lost packets, a full queue at the peer, or nobody there.",
            "ops",
        )
        .with(
            &format!("sum(rate(sentry_tcp_syn_retransmits_total{{{selector}}}[$__rate_interval]))"),
            "sent again",
        ),
        Panel::lines(
            "Unmeasured handshakes",
            "Handshakes whose duration the kernel does not tell; they are in no histogram. Server: SYN cookies, or a retransmission on kernels before 6.7.",
            "ops",
        )
        .with(
            &rate("role", "sentry_tcp_handshakes_unmeasured_total", selector),
            "{{role}}",
        ),
    ]
}

fn disk_panels(selector: &str) -> Vec<Panel> {
    vec![
        Panel::lines(
            "Requests",
            "Block requests that were completed.",
            "iops",
        )
        .with(
            &rate("device, operation", &format!("{IO}_count"), selector),
            "{{device}} {{operation}}",
        ),
        Panel::lines(
            "Throughput",
            "Bytes moved by completed block requests.",
            "Bps",
        )
        .with(
            &rate("device, operation", "sentry_disk_bytes_total", selector),
            "{{device}} {{operation}}",
        ),
        Panel::lines(
            "Duration of I/O",
            "Quantiles of the time from the creation of a request to its completion, so with the time that it waited above the device. Points are exemplars.",
            "s",
        )
        .quantiles(IO, selector, &["device", "operation"])
        .red_from(0.5),
        Panel::heatmap(
            "I/O by duration",
            "How many requests took how long, from creation to completion, all devices and operations together.",
            &format!("{IO}_bucket{{{selector}}}"),
        ),
    ]
}

fn starved(selector: &str) -> Panel {
    Panel::lines(
        "Starved",
        "Share of time in which a GPU certainly had nothing of this process to do, because its host gave it nothing: at most a second of each gap. The mean of the processes behind one name. A lower bound.",
        "percentunit",
    )
    .with(
        &format!(
            "rate(sentry_gpu_starved_seconds_total{{{selector}}}[$__rate_interval]) / ignoring (device) group_left () (sentry_gpu_processes{{{selector}}} > 0)"
        ),
        "{{pod}} {{process}} GPU {{device}}",
    )
    .red_from(0.33)
}

fn node() -> Value {
    let handshakes = |more: &str| format!("{HANDSHAKES}_count{{{I}{more}}}");
    let failed = format!("sum(rate(sentry_tcp_connect_failures_total{{{I}}}[$__rate_interval]))");
    let connects = handshakes(r#", role="client""#);
    let rows = vec![
        (
            "Now",
            vec![
                Panel::number(
                    "Agents",
                    "Agents that were scraped.",
                    "short",
                    &format!("count(sentry_build_info{{{I}}})"),
                )
                .red_below(1.0),
                Panel::number(
                    "Probes down",
                    "Probes that are not attached; gpu waits, and is not counted, where no process uses CUDA.",
                    "short",
                    &format!("count(sentry_probe_up{{{I}, reason!=\"no_cuda\"}} == 0) or vector(0)"),
                )
                .red_from(1.0),
                Panel::number(
                    "Connects",
                    "TCP connects that succeeded.",
                    "ops",
                    &format!("sum(rate({connects}[$__rate_interval]))"),
                ),
                Panel::number(
                    "Failed connects",
                    "Share of connects that ended without a connection.",
                    "percentunit",
                    &format!("{failed} / ({failed} + sum(rate({connects}[$__rate_interval])) > 0)"),
                )
                .red_from(0.05),
                Panel::number(
                    "Disk throughput",
                    "Bytes read and written, all devices together; what is on a device above another counts on both.",
                    "Bps",
                    &format!("sum(rate(sentry_disk_bytes_total{{{I}}}[$__rate_interval]))"),
                ),
                Panel::number(
                    "CUDA processes",
                    "Live processes that have called CUDA.",
                    "short",
                    &format!("sum(sentry_gpu_processes{{{I}}}) or vector(0)"),
                ),
            ],
        ),
        ("TCP", handshake_panels(I)),
        ("Disk", disk_panels(I)),
        ("GPU", vec![starved(I)]),
        (
            "Workloads",
            vec![
                Panel::table(
                    "Slowest connects",
                    "The ten workloads with the highest p99 of connects in the time shown.",
                    "s",
                    "p99",
                    &format!(
                        "topk(10, histogram_quantile(0.99, sum by (le, {WORKLOAD}) (rate({HANDSHAKES}_bucket{{{I}, role=\"client\"}}[$__range]))) >= 0)"
                    ),
                )
                .to_workload(),
                Panel::table(
                    "Most failed connects",
                    "The ten workloads with the most failed connects in the time shown.",
                    "short",
                    "failed",
                    &format!(
                        "topk(10, sum by ({WORKLOAD}, reason) (increase(sentry_tcp_connect_failures_total{{{I}}}[$__range])) > 0)"
                    ),
                )
                .to_workload(),
                Panel::table(
                    "Most disk throughput",
                    "The ten workloads that moved the most in the time shown.",
                    "Bps",
                    "throughput",
                    &format!(
                        "topk(10, sum by ({WORKLOAD}) (rate(sentry_disk_bytes_total{{{I}}}[$__range])) > 0)"
                    ),
                )
                .to_workload(),
                Panel::table(
                    "Most starved GPUs",
                    "The ten processes that left a GPU without work for the greatest share of the time shown; processes of one name add up.",
                    "percentunit",
                    "starved",
                    &format!(
                        "topk(10, sum by ({WORKLOAD}, process, device) (rate(sentry_gpu_starved_seconds_total{{{I}}}[$__range])) > 0)"
                    ),
                )
                .to_workload(),
            ],
        ),
    ];
    dashboard(
        "sentry-node",
        "Sentry / Node",
        "What the processes of a node do: TCP handshakes, disk I/O, GPUs. The tables lead to the workloads.",
        vec![instances()],
        rows,
    )
}

fn workload() -> Value {
    let w = format!(r#"{W}, workload=~"$workload""#);
    let mut disk = disk_panels(&w);
    disk.push(errors(&w));
    let mut variables = workloads(ANY);
    variables.push(variable("workload", &format!("{{{ANY}, {W}}}")));
    let rows = vec![
        ("TCP", handshake_panels(&w)),
        ("Disk", disk),
        (
            "GPU",
            vec![starved(&w), sync_wait(&w), launches(&w), allocated(&w)],
        ),
    ];
    dashboard(
        "sentry-workload",
        "Sentry / Workload",
        "One workload: a container, a pod, a service of systemd, whatever --aggregate-by tells apart. Its TCP handshakes, disk I/O and GPUs.",
        variables,
        rows,
    )
}

fn errors(selector: &str) -> Panel {
    Panel::stacked(
        "Errors",
        "Block requests that failed, by the kernel's name for the error. not_supported is mostly a device that cannot discard.",
        "ops",
    )
    .with(
        &rate(
            "device, operation, error",
            "sentry_disk_errors_total",
            selector,
        ),
        "{{device}} {{operation}} {{error}}",
    )
    .red_from(0.01)
}

fn disk() -> Value {
    let d = format!(
        r#"{I}, device=~"$device", namespace=~"$namespace", pod=~"$pod", container=~"$container""#
    );
    let sum = |metric: &str| rate("device", &format!("{metric}_sum"), &d);
    let count = |metric: &str| rate("device", &format!("{metric}_count"), &d);
    let mut panels = disk_panels(&d);
    panels.push(
        Panel::lines(
            "Time at the device",
            "Quantiles of the time from the issue of a request to the device to its completion: what the device itself takes. Points are exemplars.",
            "s",
        )
        .quantiles(AT_DEVICE, &d, &["device", "operation"])
        .red_from(0.5),
    );
    panels.push(Panel::heatmap(
        "I/O by time at the device",
        "How many requests the device took how long for.",
        &format!("{AT_DEVICE}_bucket{{{d}}}"),
    ));
    let saturation = vec![
        Panel::lines(
            "Requests at the device",
            "How many requests the device had at once, on average: seconds that requests spent there, a second (Little's law). Fast drives take dozens in parallel; a disk that spins has enough to do with a few. Requests count when they end.",
            "short",
        )
        .with(&sum(AT_DEVICE), "{{device}}")
        .red_from(10.0),
        Panel::lines(
            "Requests above the device",
            "How many requests waited before the device got them, on average: in the scheduler, or for a limit of a cgroup. Flushes are not among them.",
            "short",
        )
        .with(
            &format!(
                "{} - {}",
                rate("device", &format!("{IO}_sum"), &format!("{d}, operation!=\"flush\"")),
                sum(AT_DEVICE)
            ),
            "{{device}}",
        ),
        Panel::lines(
            "Mean time at the device",
            "Seconds at the device by number of requests.",
            "s",
        )
        .with(
            &format!("{} / ({} > 0)", sum(AT_DEVICE), count(AT_DEVICE)),
            "{{device}}",
        )
        .red_from(0.02),
        errors(&d),
    ];
    let who = vec![
        Panel::table(
            "Who moves most",
            "The twenty workloads that moved the most in the time shown, by device and operation.",
            "Bps",
            "throughput",
            &format!(
                "topk(20, sum by ({WORKLOAD}, device, operation) (rate(sentry_disk_bytes_total{{{d}}}[$__range])) > 0)"
            ),
        )
        .to_workload(),
        Panel::table(
            "Who waits longest",
            "The twenty workloads with the highest p99 in the time shown, by device and operation.",
            "s",
            "p99",
            &format!(
                "topk(20, histogram_quantile(0.99, sum by (le, {WORKLOAD}, device, operation) (rate({IO}_bucket{{{d}}}[$__range]))) >= 0)"
            ),
        )
        .to_workload(),
    ];
    let bytes = "sentry_disk_bytes_total";
    let mut variables = vec![instances(), variable("device", &format!("{bytes}{{{I}}}"))];
    let of = |name: &str, selected: &str| {
        let selector = format!("{I}, device=~\"$device\"{selected}");
        variable(name, &format!("{bytes}{{{selector}}}"))
    };
    variables.extend([
        of("namespace", ""),
        of("pod", r#", namespace=~"$namespace""#),
        of("container", r#", namespace=~"$namespace", pod=~"$pod""#),
    ]);
    dashboard(
        "sentry-disk",
        "Sentry / Disk",
        "Block devices: how long their requests take, above them and at them, how many they have at once, and whose they are.",
        variables,
        vec![
            ("Load", panels),
            ("Saturation and errors", saturation),
            ("Workloads", who),
        ],
    )
}

fn sync_wait(selector: &str) -> Panel {
    Panel::lines(
        "Waiting for the GPU",
        "Share of time that threads spent in calls that wait for a device; threads add up. Near 1 while starved is near 0 is as it should be: the GPU is what limits.",
        "percentunit",
    )
    .with(
        &rate("process, call", "sentry_gpu_sync_wait_seconds_total", selector),
        "{{process}} {{call}}",
    )
}

fn launches(selector: &str) -> Panel {
    Panel::lines(
        "Launches",
        "Kernels and graphs launched. Many of them while GPUs starve: they are too small.",
        "ops",
    )
    .with(
        &rate("process, api", "sentry_gpu_launches_total", selector),
        "{{process}} {{api}}",
    )
}

fn allocated(selector: &str) -> Panel {
    Panel::stacked(
        "Device memory",
        "What live processes have asked for and not freed; of a framework with a pool, the pool.",
        "bytes",
    )
    .with(
        &format!("sum by (process) (sentry_gpu_allocated_bytes{{{selector}}})"),
        "{{process}}",
    )
}

fn gpu() -> Value {
    let p = format!(r#"{W}, process=~"$process""#);
    let d = format!(r#"{p}, device=~"$device""#);
    let rows = vec![
        (
            "Is the host feeding its GPUs?",
            vec![
                Panel::lines(
                    "Starved",
                    "Share of time in which a GPU certainly had nothing of this process to do: at most a second of each gap, a lower bound. The mean of the processes behind one name.",
                    "percentunit",
                )
                .with(
                    &format!(
                        "rate(sentry_gpu_starved_seconds_total{{{d}}}[$__rate_interval]) / ignoring (device) group_left () (sentry_gpu_processes{{{p}}} > 0)"
                    ),
                    "{{pod}} {{process}} GPU {{device}}",
                )
                .red_from(0.33),
                sync_wait(&p),
                Panel::lines(
                    "Idle",
                    "What is left of gaps after their first second: a server without requests, a notebook left open, or a loader that hangs. Seconds a second; processes of one name add up.",
                    "percentunit",
                )
                .with(
                    &rate("pod, process, device", "sentry_gpu_idle_seconds_total", &d),
                    "{{pod}} {{process}} GPU {{device}}",
                ),
                launches(&p),
            ],
        ),
        (
            "Gaps",
            vec![
                Panel::lines(
                    "Length of gaps",
                    "Quantiles of the time from the proof that a GPU was done to the next work that it was given. Points are exemplars.",
                    "s",
                )
                .quantiles(GAPS, &d, &["process", "device"]),
                Panel::heatmap(
                    "Gaps by length",
                    "How many gaps were how long, of those that the next enqueue ended.",
                    &format!("{GAPS}_bucket{{{d}}}"),
                ),
            ],
        ),
        (
            "Calls",
            vec![
                Panel::lines(
                    "Synchronisation",
                    "Calls that wait for a device or ask whether it is done. Many with waited=false could be left out.",
                    "ops",
                )
                .with(
                    &rate("process, call, waited", "sentry_gpu_syncs_total", &p),
                    "{{process}} {{call}} waited={{waited}}",
                ),
                Panel::lines("Copies", "Bytes that copies were asked to move.", "Bps").with(
                    &rate("process, kind", "sentry_gpu_memcpy_bytes_total", &p),
                    "{{process}} {{kind}}",
                ),
                allocated(&p),
                Panel::stacked(
                    "Errors",
                    "Failed calls, of those that are seen to return, by CUDA's code; 2 is out of memory.",
                    "ops",
                )
                .with(
                    &rate("process, call, code", "sentry_gpu_errors_total", &p),
                    "{{process}} {{call}} {{code}}",
                )
                .red_from(0.01),
            ],
        ),
        (
            "Processes and the probe",
            vec![
                Panel::table(
                    "Processes",
                    "Live processes that have called CUDA, by the name of the thread that made the first call.",
                    "short",
                    "processes",
                    &format!("sum by ({WORKLOAD}, process) (sentry_gpu_processes{{{p}}})"),
                )
                .to_workload(),
                Panel::lines(
                    "What the probe missed",
                    "CUDA calls that found no place for their thread, stream, event or memory, and files that could not be attached to.",
                    "ops",
                )
                .with(
                    &format!("sum by (instance) (rate(sentry_gpu_calls_untracked_total{{{I}}}[$__rate_interval]))"),
                    "untracked calls {{instance}}",
                )
                .with(
                    &format!("sum by (instance, reason) (rate(sentry_gpu_attach_errors_total{{{I}}}[$__rate_interval]))"),
                    "files, {{reason}} {{instance}}",
                ),
            ],
        ),
    ];
    let mut variables = workloads(r#"__name__="sentry_gpu_processes""#);
    variables.push(variable("process", &format!("sentry_gpu_processes{{{W}}}")));
    variables.push(variable(
        "device",
        &format!("sentry_gpu_starved_seconds_total{{{p}}}"),
    ));
    dashboard(
        "sentry-gpu",
        "Sentry / GPU",
        "Whether hosts keep their GPUs fed: docs/gpu.md says how to read it.",
        variables,
        rows,
    )
}

fn agent() -> Value {
    let rows = vec![
        (
            "Probes",
            vec![
                Panel::table(
                    "Probes",
                    "Each probe with its verdict: 1 is attached, 0 is not. docs/metrics.md has the reasons.",
                    "short",
                    "up",
                    &format!("sentry_probe_up{{{I}}}"),
                )
                .red_below(1.0),
                Panel::table(
                    "Agents",
                    "The version of each agent.",
                    "short",
                    "up",
                    &format!("sentry_build_info{{{I}}}"),
                ),
                Panel::lines(
                    "Events lost",
                    "Events that no program saw, for it was running on their CPU already, or that found their ring full. Counts are too low by as much.",
                    "ops",
                )
                .with(&rate("instance, probe", "sentry_events_lost_total", I), "{{probe}} {{instance}}")
                .red_from(1.0),
                Panel::lines(
                    "Unmeasured",
                    "Connects whose start found no room, and requests without time stamps: counted, but in no histogram.",
                    "ops",
                )
                .with(
                    &rate("instance", "sentry_connections_untracked_total", I),
                    "connects {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_disk_io_untimed_total", I),
                    "requests without a time stamp {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_disk_io_untracked_total", I),
                    "requests without room {{instance}}",
                ),
            ],
        ),
        (
            "Series",
            vec![
                Panel::lines(
                    "Series in use",
                    "Histograms of live workloads that have a cell, and how many there are for tcp and disk together; for gpu, processes.",
                    "short",
                )
                .with(&format!("sentry_series{{{I}}}"), "{{probe}} {{instance}}")
                .with(
                    &format!("sentry_series_limit{{{I}}}"),
                    "limit {{probe}} {{instance}}",
                ),
                Panel::lines(
                    "Without room",
                    "Events counted under cgroup=other because no cell was free, and series of workloads that are gone dropped before their time.",
                    "ops",
                )
                .with(
                    &rate("instance, probe", "sentry_series_overflow_total", I),
                    "overflow {{probe}} {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_series_evicted_total", I),
                    "evicted {{instance}}",
                )
                .red_from(0.01),
            ],
        ),
        (
            "Names of pods",
            vec![
                Panel::lines(
                    "Watch",
                    "Whether the pods of the node are known as they are now.",
                    "short",
                )
                .with(
                    &format!("sentry_kubernetes_watch_up{{{I}}}"),
                    "up {{instance}}",
                )
                .with(
                    &format!("sentry_kubernetes_pods{{{I}}}"),
                    "pods {{instance}}",
                ),
                Panel::lines(
                    "Since the API server was heard of",
                    "It speaks once a minute or so even when nothing changes.",
                    "s",
                )
                .with(
                    &format!("time() - sentry_kubernetes_last_sync_timestamp_seconds{{{I}}}"),
                    "{{instance}}",
                )
                .red_from(600.0),
                Panel::stacked(
                    "Failed attempts",
                    "Failed attempts to list or watch pods, by reason.",
                    "ops",
                )
                .with(
                    &rate("instance, reason", "sentry_kubernetes_watch_errors_total", I),
                    "{{reason}} {{instance}}",
                ),
            ],
        ),
        (
            "Cost",
            vec![
                Panel::lines("CPU", "Of the agent's process: cores.", "short").with(
                    &format!(
                        "rate(process_cpu_seconds_total{{{I}}}[$__rate_interval]) and on (job, instance) sentry_build_info"
                    ),
                    "{{instance}}",
                ),
                Panel::lines("Memory", "Of the agent's process, resident, and of its maps in the kernel.", "bytes")
                    .with(
                        &format!(
                            "process_resident_memory_bytes{{{I}}} and on (job, instance) sentry_build_info"
                        ),
                        "resident {{instance}}",
                    )
                    .with(
                        &format!("sum by (instance) (sentry_bpf_map_memory_bytes{{{I}}})"),
                        "maps {{instance}}",
                    ),
                Panel::lines(
                    "Time of a program's run",
                    "What one run of a BPF program takes. There only while the kernel's statistics are on: --bpf.stats.",
                    "s",
                )
                .with(
                    &format!(
                        "{} / ({} > 0)",
                        rate("instance, program", "sentry_bpf_program_run_seconds_total", I),
                        rate("instance, program", "sentry_bpf_program_runs_total", I)
                    ),
                    "{{program}} {{instance}}",
                ),
                Panel::lines(
                    "File descriptors",
                    "Those that are open, and the most that may be.",
                    "short",
                )
                .with(
                    &format!("process_open_fds{{{I}}} and on (job, instance) sentry_build_info"),
                    "open {{instance}}",
                )
                .with(
                    &format!("process_max_fds{{{I}}} and on (job, instance) sentry_build_info"),
                    "most {{instance}}",
                ),
            ],
        ),
        (
            "Scrapes",
            vec![
                Panel::lines(
                    "Duration of a scrape",
                    "As Prometheus measures it, transfer and parsing included.",
                    "s",
                )
                .with(
                    &format!(
                        "scrape_duration_seconds{{{I}}} and on (job, instance) sentry_build_info"
                    ),
                    "{{instance}}",
                ),
                Panel::lines(
                    "Samples",
                    "How many series of Prometheus an agent gives.",
                    "short",
                )
                .with(
                    &format!(
                        "scrape_samples_scraped{{{I}}} and on (job, instance) sentry_build_info"
                    ),
                    "{{instance}}",
                ),
                Panel::lines(
                    "Turned away",
                    "Scrapes and connections beyond what the agent answers at once, clients that were too slow, connections that the kernel failed to hand over.",
                    "ops",
                )
                .with(
                    &rate("instance", "sentry_http_scrapes_refused_total", I),
                    "scrapes {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_http_connections_refused_total", I),
                    "connections {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_http_timeouts_total", I),
                    "too slow {{instance}}",
                )
                .with(
                    &rate("instance", "sentry_http_accept_errors_total", I),
                    "not handed over {{instance}}",
                )
                .red_from(0.01),
            ],
        ),
    ];
    dashboard(
        "sentry-agent",
        "Sentry / Sentry",
        "The agent itself: its probes, what it could not measure, what it costs, who scrapes it.",
        vec![instances()],
        rows,
    )
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
