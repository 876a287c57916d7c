//! The configuration read anew while the agent runs: what of it may change, and how it comes into force, as a whole or
//! not at all.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tokio::{
    signal::unix::Signal,
    sync::{mpsc, oneshot},
};

use crate::{
    collect::{Collector, OpenError, TurnOnError, lock},
    config::Config,
    expose::{
        metrics::{Metrics, Shape},
        web_config::{WebConfig, WebConfigError},
    },
    log::Log,
    overhead::Overhead,
};

/// When a change of a setting is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// With the reload.
    AtOnce,
    /// After a restart; until then a reload is refused.
    Restart,
}

/// A setting of the file.
struct Setting {
    key: &'static str,
    reach: Reach,
    differs: fn(&Config, &Config) -> bool,
}

const fn at_once(key: &'static str, differs: fn(&Config, &Config) -> bool) -> Setting {
    Setting {
        key,
        reach: Reach::AtOnce,
        differs,
    }
}

const fn restart(key: &'static str, differs: fn(&Config, &Config) -> bool) -> Setting {
    Setting {
        key,
        reach: Reach::Restart,
        differs,
    }
}

/// Every key of the file. `docs/reload.md` is made of it, and a test misses those that are not here.
const SETTINGS: &[Setting] = &[
    at_once("aggregate-by", |a, b| a.aggregate != b.aggregate),
    restart("bpf.stats", |a, b| a.bpf_stats != b.bpf_stats),
    restart("btf", |a, b| a.btf != b.btf),
    at_once("disk.exemplars", |a, b| {
        a.exemplars.get("disk") != b.exemplars.get("disk")
    }),
    restart("disk.hook", |a, b| {
        a.hooks.get("disk") != b.hooks.get("disk")
    }),
    restart("gpu.hook", |a, b| a.hooks.get("gpu") != b.hooks.get("gpu")),
    restart("kubernetes.kubeconfig", |a, b| a.kubeconfig != b.kubeconfig),
    restart("kubernetes.node", |a, b| a.node != b.node),
    at_once("kubernetes.pod-labels", |a, b| a.pod_labels != b.pod_labels),
    at_once("log.format", |a, b| a.log_format != b.log_format),
    at_once("log.level", |a, b| a.log_level != b.log_level),
    at_once("metrics.buckets-per-octave", |a, b| {
        a.buckets_per_octave != b.buckets_per_octave
    }),
    at_once("metrics.classic-histograms", |a, b| {
        a.classic_histograms != b.classic_histograms
    }),
    at_once("metrics.created", |a, b| a.created != b.created),
    restart("otlp.ca-file", |a, b| {
        let of = |config: &Config| config.otlp.as_ref().and_then(|otlp| otlp.ca_file.clone());
        of(a) != of(b)
    }),
    restart("otlp.endpoint", |a, b| {
        let of = |config: &Config| config.otlp.as_ref().map(|otlp| otlp.endpoint.clone());
        of(a) != of(b)
    }),
    restart("otlp.headers", |a, b| {
        let of = |config: &Config| config.otlp.as_ref().map(|otlp| otlp.headers.clone());
        of(a) != of(b)
    }),
    restart("otlp.interval", |a, b| {
        let of = |config: &Config| config.otlp.as_ref().map(|otlp| otlp.interval);
        of(a) != of(b)
    }),
    restart("otlp.protocol", |a, b| {
        let of = |config: &Config| config.otlp.as_ref().map(|otlp| otlp.protocol);
        of(a) != of(b)
    }),
    at_once("overhead.budget", |a, b| {
        a.overhead_budget != b.overhead_budget
    }),
    restart("overhead.interval", |a, b| {
        a.overhead_interval != b.overhead_interval
    }),
    restart("path.procfs", |a, b| a.procfs != b.procfs),
    restart("path.rootfs", |a, b| a.rootfs != b.rootfs),
    restart("path.sysfs", |a, b| a.sysfs != b.sysfs),
    at_once("probes", |a, b| {
        let has = |config: &Config, name: &String| config.probes.contains(name);
        a.probes.iter().any(|name| !has(b, name)) || b.probes.iter().any(|name| !has(a, name))
    }),
    restart("series.max", |a, b| a.series_max != b.series_max),
    at_once("series.retention", |a, b| {
        a.series_retention != b.series_retention
    }),
    at_once("tcp.exemplars", |a, b| {
        a.exemplars.get("tcp") != b.exemplars.get("tcp")
    }),
    restart("tcp.hook", |a, b| a.hooks.get("tcp") != b.hooks.get("tcp")),
    // What the file says is read anew each time.
    restart("web.config.file", |a, b| a.web != b.web),
    restart("web.enable-lifecycle", |a, b| a.lifecycle != b.lifecycle),
    restart("web.listen-address", |a, b| a.listen != b.listen),
    restart("web.telemetry-path", |a, b| {
        a.telemetry_path != b.telemetry_path
    }),
];

/// Why a configuration does not come into force, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReloadError {
    /// The file cannot be read, or is wrong.
    #[error("{0}")]
    Config(String),
    /// Settings that cannot change while the agent runs.
    #[error("config file {file}: {settings}: a change of this needs a restart")]
    NeedsRestart {
        /// The file.
        file: String,
        /// Their keys, or what of them.
        settings: String,
    },
    /// See there.
    #[error(transparent)]
    Exemplars(#[from] OpenError),
    /// See there.
    #[error("probes: {0}")]
    Probe(#[from] TurnOnError),
    /// See there.
    #[error(transparent)]
    Web(#[from] WebConfigError),
    /// Nobody is there to do it any more.
    #[error("the agent is ending")]
    Ending,
}

/// The settings that change, of an agent that was started with these probes.
///
/// # Errors
/// Those that need a restart to.
fn plan(started: &[String], old: &Config, new: &Config) -> Result<Vec<&'static str>, ReloadError> {
    let changed = SETTINGS
        .iter()
        .filter(|setting| (setting.differs)(old, new));
    let (at_once, restart): (Vec<&Setting>, Vec<&Setting>) =
        changed.partition(|setting| setting.reach == Reach::AtOnce);
    let restart = restart.iter().map(|setting| setting.key.to_owned());
    // Nothing was made ready for it, and what looking for programs takes was given up.
    let deferred = probes::PROBES.iter().filter(|probe| {
        let among = |names: &[String]| names.iter().any(|name| name == probe.name);
        probe.deferred.is_some() && among(&new.probes) && !among(started)
    });
    let deferred = deferred.map(|probe| format!("{} in probes", probe.name));
    let refused: Vec<String> = restart.chain(deferred).collect();
    if refused.is_empty() {
        return Ok(at_once.iter().map(|setting| setting.key).collect());
    }
    let file = new.file.as_deref().unwrap_or(Path::new(""));
    Err(ReloadError::NeedsRestart {
        file: file.display().to_string(),
        settings: refused.join(", "),
    })
}

/// How reloads went, as metrics show it. The start counts as one.
#[derive(Debug)]
pub(crate) struct Stats {
    last_failed: AtomicBool,
    success_seconds: AtomicU64,
}

impl Stats {
    pub(crate) fn new() -> Self {
        let stats = Self {
            last_failed: AtomicBool::new(false),
            success_seconds: AtomicU64::new(0),
        };
        stats.succeeded();
        stats
    }

    fn succeeded(&self) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seconds = now.unwrap_or_default().as_secs();
        self.success_seconds.store(seconds, Ordering::Relaxed);
        self.last_failed.store(false, Ordering::Relaxed);
    }

    fn failed(&self) {
        self.last_failed.store(true, Ordering::Relaxed);
    }

    /// Whether what was last read is in force.
    pub(crate) fn last_was_successful(&self) -> bool {
        !self.last_failed.load(Ordering::Relaxed)
    }

    /// When what is in force was read, in seconds since 1970.
    pub(crate) fn last_success_seconds(&self) -> u64 {
        self.success_seconds.load(Ordering::Relaxed)
    }
}

/// Reads the configuration: the command line and the environment are what they were.
pub(crate) type Load = Box<dyn Fn() -> Result<Config, String> + Send>;

/// What brings a configuration into force.
pub(crate) struct Reloader {
    /// The probes that the agent was started with.
    pub(crate) started: Vec<String>,
    /// What is in force.
    pub(crate) current: Config,
    pub(crate) load: Load,
    pub(crate) collector: Arc<Mutex<Collector>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) web: Option<Arc<WebConfig>>,
    pub(crate) overhead: Arc<Overhead>,
    pub(crate) log: Log,
    pub(crate) stats: Arc<Stats>,
}

impl Reloader {
    /// Reads the configuration anew and brings it into force. May take milliseconds. Says in one line what has changed.
    ///
    /// # Errors
    /// Why what was in force before stays so, all of it.
    fn reload(&mut self) -> Result<String, ReloadError> {
        let outcome = self.attempt();
        match &outcome {
            Ok(done) => {
                self.stats.succeeded();
                tracing::info!("{done}");
            }
            Err(error) => {
                self.stats.failed();
                tracing::warn!(
                    "the configuration was not read anew: {error}; what was in force before stays so"
                );
            }
        }
        outcome
    }

    fn attempt(&mut self) -> Result<String, ReloadError> {
        let next = (self.load)().map_err(ReloadError::Config)?;
        let changed = plan(&self.started, &self.current, &next)?;
        // What can fail comes first, and is taken back when what follows fails.
        let turned_on = lock(&self.collector).turn_on(&next.probes)?;
        let opened = lock(&self.collector).open_exemplars(&next);
        let mut rest = opened.map_err(ReloadError::from);
        if let (Ok(()), Some(web)) = (&rest, &self.web) {
            rest = web.reload().map_err(ReloadError::from);
        }
        if rest.is_err() {
            let mut collector = lock(&self.collector);
            collector.turn_off(&turned_on);
            collector.want_exemplars(&self.current);
        }
        rest?;
        self.log.set(next.log_level, next.log_format);
        lock(&self.collector).reconfigure(&next);
        self.metrics.reshape(Shape::new(&next));
        self.overhead.set_budget(next.overhead_budget);
        let news = next.warnings.iter();
        for warning in news.filter(|line| !self.current.warnings.contains(line)) {
            tracing::warn!("{warning}");
        }
        self.current = next;
        let changed = if changed.is_empty() {
            "no setting has changed".to_owned()
        } else {
            format!("changed: {}", changed.join(", "))
        };
        Ok(format!("the configuration was read anew; {changed}"))
    }
}

/// One who asks for a reload, and is told what came of it.
pub(crate) type Request = oneshot::Sender<Result<String, ReloadError>>;

/// Reloads upon SIGHUP and upon requests, one after the other, for as long as the runtime lives. Signals that come
/// meanwhile are one.
pub(crate) async fn follow(
    reloader: Reloader,
    mut hangup: Signal,
    mut requests: mpsc::Receiver<Request>,
) {
    let reloader = Arc::new(Mutex::new(reloader));
    loop {
        let request = tokio::select! {
            Some(()) = hangup.recv() => None,
            Some(request) = requests.recv() => Some(request),
            else => return,
        };
        let reloader = Arc::clone(&reloader);
        let reload = tokio::task::spawn_blocking(move || lock(&reloader).reload());
        match (reload.await, request) {
            (Ok(outcome), Some(request)) => drop(request.send(outcome)),
            (Ok(_), None) => {}
            (Err(error), _) => tracing::error!(%error, "a reload was cut off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::{config, expose::documentation};

    /// Each key with two values. Some have an effect only beside others.
    const CHANGES: &[(&str, &str, &str)] = &[
        ("aggregate-by", "container", "pod"),
        ("bpf.stats", "false", "true"),
        ("btf", "/a", "/b"),
        ("disk.exemplars", "off", "auto"),
        ("disk.hook", "auto", "raw_tp"),
        ("gpu.hook", "auto", "uprobe"),
        ("kubernetes.kubeconfig", "/a", "/b"),
        ("kubernetes.node", "node-1", "node-2"),
        ("kubernetes.pod-labels", "app", "app,team"),
        ("log.format", "text", "json"),
        ("log.level", "info", "debug"),
        ("metrics.buckets-per-octave", "1", "4"),
        ("metrics.classic-histograms", "true", "false"),
        ("metrics.created", "false", "true"),
        ("otlp.ca-file", "/a", "/b"),
        ("otlp.endpoint", "http://a:4318", "http://b:4318"),
        ("otlp.headers", "a=b", "a=c"),
        ("otlp.interval", "60s", "10s"),
        ("otlp.protocol", "http/protobuf", "grpc"),
        ("overhead.budget", "1%", "off"),
        ("overhead.interval", "1m", "30s"),
        ("path.procfs", "/a", "/b"),
        ("path.rootfs", "/a", "/b"),
        ("path.sysfs", "/a", "/b"),
        ("probes", "tcp,disk", "tcp"),
        ("series.max", "256", "512"),
        ("series.retention", "2m", "3m"),
        ("tcp.exemplars", "10ms", "20ms"),
        ("tcp.hook", "auto", "kprobe"),
        ("web.config.file", "/a", "/b"),
        ("web.enable-lifecycle", "false", "true"),
        ("web.listen-address", "127.0.0.1:1", "127.0.0.1:2"),
        ("web.telemetry-path", "/a", "/b"),
    ];

    fn file(values: &[(&str, &str)]) -> Config {
        let lines = values
            .iter()
            .map(|(key, value)| format!("{key}: \"{value}\"\n"));
        config::of_file(&lines.collect::<String>()).unwrap()
    }

    fn planned(old: &Config, new: &Config) -> Result<Vec<&'static str>, String> {
        plan(&old.probes, old, new).map_err(|error| error.to_string())
    }

    #[test]
    fn every_key_is_in_force_at_once_or_needs_a_restart() {
        let keys: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
        assert_eq!(keys, config::keys());
        let keys: Vec<&str> = CHANGES.iter().map(|(key, ..)| *key).collect();
        assert_eq!(keys, config::keys());

        let before: Vec<(&str, &str)> = CHANGES.iter().map(|(key, one, _)| (*key, *one)).collect();
        for (setting, (key, _, other)) in SETTINGS.iter().zip(CHANGES) {
            let mut after = before.clone();
            for pair in after.iter_mut().filter(|pair| pair.0 == *key) {
                pair.1 = *other;
            }
            let expected = match setting.reach {
                Reach::AtOnce => Ok(vec![*key]),
                Reach::Restart => Err(format!(
                    "config file sentry.yaml: {key}: a change of this needs a restart"
                )),
            };
            let (before, after) = (file(&before), file(&after));
            assert_eq!(planned(&before, &after), expected);
            assert_eq!(planned(&after, &before), expected);
            assert_eq!(planned(&after, &after), Ok(Vec::new()));
        }
    }

    #[test]
    fn one_that_needs_a_restart_holds_all_back() {
        let before = file(&[]);
        let after = file(&[("log.level", "debug"), ("series.max", "512"), ("btf", "/b")]);
        assert_eq!(
            planned(&before, &after).unwrap_err(),
            "config file sentry.yaml: btf, series.max: a change of this needs a restart"
        );
    }

    #[test]
    fn a_deferred_probe_comes_back_where_it_was_at_the_start() {
        let probes = |names: &str| file(&[("probes", names)]);
        let (all, some) = (probes("tcp,disk,gpu"), probes("tcp"));
        let at_once = Ok(vec!["probes"]);
        assert_eq!(plan(&all.probes, &all, &some), at_once);
        assert_eq!(plan(&all.probes, &some, &all), at_once);
        assert_eq!(
            plan(&some.probes, &some, &all).unwrap_err().to_string(),
            "config file sentry.yaml: gpu in probes: a change of this needs a restart"
        );
        // Another order is no change.
        assert_eq!(planned(&all, &probes("gpu, disk, tcp")), Ok(Vec::new()));
        let reordered = probes("disk,gpu,tcp");
        assert_eq!(plan(&some.probes, &reordered, &some), at_once);
    }

    #[test]
    fn success_and_failure_are_remembered() {
        let stats = Stats::new();
        assert!(stats.last_was_successful());
        assert!(stats.last_success_seconds() > 1_700_000_000);
        stats.success_seconds.store(7, Ordering::Relaxed);
        stats.failed();
        assert!(!stats.last_was_successful());
        assert_eq!(stats.last_success_seconds(), 7);
        stats.succeeded();
        assert!(stats.last_was_successful());
        assert!(stats.last_success_seconds() > 1_700_000_000);
    }

    #[test]
    fn the_two_lists_are_documented() {
        let mut text = String::from("| Setting | A change is in force |\n| --- | --- |\n");
        for Setting { key, reach, .. } in SETTINGS {
            let when = match (reach, *key) {
                (Reach::AtOnce, "probes") => {
                    "with the reload; `gpu` only where the agent was started with it"
                }
                (Reach::AtOnce, _) => "with the reload",
                (Reach::Restart, "web.config.file") => {
                    "after a restart; what the file says with the reload, and by itself"
                }
                (Reach::Restart, _) => "after a restart",
            };
            writeln!(text, "| `{key}` | {when} |").unwrap();
        }
        documentation::hold_between(
            "docs/reload.md",
            "<!-- settings -->",
            "<!-- /settings -->",
            &text,
        );
    }
}
