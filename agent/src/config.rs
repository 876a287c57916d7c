//! Command line and configuration: flags over environment over the YAML file over defaults.
//!
//! The command line's definition is the only list of settings. Names of environment variables and keys of the
//! file derive from the flags' names, and their values go through the flags' own parsers.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, FromArgMatches, Subcommand, ValueEnum};
use serde::Deserialize;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Spanned, UserMessageFormatter};
use tracing::Level;

use crate::{expose::otlp, log, overhead::Budget, top, trace};

#[cfg(test)]
mod manual;

const ENV_PREFIX: &str = "SENTRY_";
const CONFIG_FILE: &str = "config.file";
const PROBES: &str = "probes";
const POD_LABELS: &str = "kubernetes.pod-labels";
const OTLP_ENDPOINT: &str = "otlp.endpoint";
const OTLP_HEADERS: &str = "otlp.headers";
/// Settings that are lists, in the file written as such or with commas.
const LISTS: [&str; 3] = [PROBES, POD_LABELS, OTLP_HEADERS];
// Cells have 16-bit numbers, and so have the two counters that come with each.
const SERIES_MAX: std::ops::RangeInclusive<u32> = 64..=32_000;
// Each is repeated on every line of a workload.
const POD_LABELS_MAX: usize = 16;
const RETENTION_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const TOP_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(200)..=Duration::from_secs(60);
const OVERHEAD_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60 * 60);
const OTLP_INTERVAL_MIN: Duration = Duration::from_millis(100);

const EXAMPLES: &str = "\
Examples:
  sentry check                                    what can this kernel do?
  sentry top                                      what do workloads do now?
  sentry trace tcp --min-duration 10ms            each slow handshake, as it happens
  sentry                                          run, every probe, metrics on loopback only
  curl -s http://127.0.0.1:9763/metrics           scrape it
  sentry --web.listen-address :9763               let Prometheus on another host scrape it
  sentry --probes tcp --config.file sentry.yaml   one probe, the rest from a file

Every flag is also a variable and a key of the file. These three say the same:
  --web.listen-address :9763
  SENTRY_WEB_LISTEN_ADDRESS=:9763
  web.listen-address: \":9763\"        (or listen-address beneath web:)
A flag wins over the environment, the environment over the file.";

const CHECK_EXAMPLES: &str = "\
Examples:
  sentry check                   a table: each probe, its hook, and why not a better one
  sentry check --format json     the same for machines
  sentry check --probes disk     one probe only

Exits 0 if at least one probe can attach, 1 if none can, 2 on a bad flag or setting.";

const TOP_EXAMPLES: &str = "\
Examples:
  sentry top                              this host: its agent, or probes of its own
  sentry top --probes disk --interval 5s  one probe, every five seconds
  sentry top --url http://10.0.0.7:9763   another host, by its agent
  SSL_CERT_FILE=ca.pem sentry top --url https://node-7:9763

Keys: Tab or 1 to 4 for TCP, disk, GPU and Sentry itself; < > r for the order;
/ to search; p to pause; ? for all of them; q to quit.

Without --url it asks the address of --web.listen-address, by plain HTTP. Where
no agent answers, it attaches probes of its own, as `sentry agent` does and with
the same flags, and serves nothing; that takes root. Certificates of https are
checked by the system's authorities, or by those of SSL_CERT_FILE.";

const TRACE_EXAMPLES: &str = "\
Examples:
  sentry trace tcp                            each handshake and failed connect
  sentry trace tcp --port 443 --count 10      ten of this port, at either end
  sentry trace tcp --closed                   each connection as it closes: how
                                              long it lived, and its bytes
  sentry trace disk --device nvme0n1          each request of a disk
  sentry trace disk --min-duration 10ms       slow ones only
  sentry trace gpu                            each gap in which a GPU waited for
                                              its host, each failed CUDA call
  sentry trace tcp --pod shop/api-0           of a pod; its name takes
                                              --kubernetes.node or its runtime
  sentry trace tcp --format json | jq -c 'select(.outcome != \"ok\")'

Instead of          call
  tcpconnlat 10     sentry trace tcp --min-duration 10ms
  tcpconnect -p P   sentry trace tcp --pid P
  tcplife -L 80     sentry trace tcp --closed --port 80
  biosnoop          sentry trace disk
  biosnoop -d vda   sentry trace disk --device vda

Filters apply in the kernel, before anything is sent. MS runs from the SYN (of a
server: the SYN-ACK) to the end of the handshake, or from the making of a
request to its end, DEVICE_MS from its issue. A server's handshake
has no process: it ends before anybody accepts. A gap ends by the next launch or
copy: starved, or idle if it took more than a second; a failed call has its code
for an outcome, and no device. Times are UTC. Standard error says what was lost.
It takes root, and no agent need run.";

/// What a probe offers to the configuration.
#[derive(Debug, Clone)]
pub(crate) struct ProbeOptions {
    /// Name in `--probes`, and the first part of `--<name>.hook`.
    pub(crate) name: &'static str,
    /// Hooks that `--<name>.hook` takes besides `auto`, best first.
    pub(crate) hooks: Vec<&'static str>,
    /// Whether there is `--<name>.exemplars`.
    pub(crate) tells_events: bool,
}

impl From<&probes::Probe> for ProbeOptions {
    fn from(probe: &probes::Probe) -> Self {
        Self {
            name: probe.name,
            hooks: probe.rungs.iter().map(|rung| rung.hook).collect(),
            tells_events: probe.events.is_some(),
        }
    }
}

/// The exit code of a start with a bad setting, which another start would not mend.
pub(crate) const BAD_SETTING: u8 = 2;

/// The hook setting that leaves the choice to the agent.
pub(crate) const HOOK_AUTO: &str = "auto";

/// Which events become exemplars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Exemplars {
    /// None.
    #[default]
    Off,
    /// The slowest, a few each second.
    Auto,
    /// Those that take so long at least.
    Slow(Duration),
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    /// Run the agent.
    Agent(Config),
    /// Say what each probe can do on this kernel, and exit.
    Check(Config, Format),
    /// Show what workloads do, on a terminal.
    Top(Config, top::Options),
    /// Print events as they happen.
    Trace(Config, trace::Options),
}

/// All settings, with every layer merged and every value validated.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting")]
pub(crate) struct Config {
    /// Where the web server listens.
    pub(crate) listen: SocketAddr,
    /// Path of the metrics; clashes with no other path the agent serves.
    pub(crate) telemetry_path: String,
    /// What says who may connect, in the format of Prometheus' exporters.
    pub(crate) web: Option<PathBuf>,
    /// Whether a request can have the configuration read anew.
    pub(crate) lifecycle: bool,
    /// Where metrics are sent, if they are.
    pub(crate) otlp: Option<otlp::Options>,
    /// Least severe level that is logged.
    pub(crate) log_level: Level,
    /// Shape of a log line.
    pub(crate) log_format: LogFormat,
    /// Names of the probes to attach, each once, in the order given.
    pub(crate) probes: Vec<String>,
    /// Hook of every known probe by the probe's name; [`HOOK_AUTO`] or one that the probe offers.
    pub(crate) hooks: BTreeMap<String, String>,
    /// Which events become exemplars, of the probes that can tell.
    pub(crate) exemplars: BTreeMap<String, Exemplars>,
    /// Type information of a kernel that has none of its own.
    pub(crate) btf: Option<PathBuf>,
    /// Histogram cells in the kernel.
    pub(crate) series_max: u32,
    /// How long a series outlives its workload on `/metrics`.
    pub(crate) series_retention: Duration,
    /// What one set of labels stands for.
    pub(crate) aggregate: Aggregate,
    /// The node of Kubernetes whose pods are watched, if any are.
    pub(crate) node: Option<String>,
    /// How to reach Kubernetes' API server, where it is not as a pod does it.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Labels of pods that are shown.
    pub(crate) pod_labels: Vec<PodLabel>,
    /// Classic buckets shown for each doubling of time: 1, 2 or 4.
    pub(crate) buckets_per_octave: u8,
    /// Whether classic histograms stand beside the native ones of protobuf.
    pub(crate) classic_histograms: bool,
    /// Whether counters and histograms say since when they count.
    pub(crate) created: bool,
    /// Whether to switch on the kernel's run-time statistics of BPF programs.
    pub(crate) bpf_stats: bool,
    /// What the agent and its programs may take of the CPUs.
    pub(crate) overhead_budget: Budget,
    /// How often it is looked what they take.
    pub(crate) overhead_interval: Duration,
    /// Root of procfs.
    pub(crate) procfs: PathBuf,
    /// Root of sysfs.
    pub(crate) sysfs: PathBuf,
    /// Root of the host's files.
    pub(crate) rootfs: PathBuf,
    /// The file that settings came from, if one was named.
    pub(crate) file: Option<PathBuf>,
    /// Whether `probes` is for that file to say, so that it may change while the agent runs.
    pub(crate) probes_of_file: bool,
    /// What is worth a log line once logging runs, such as unknown variables.
    pub(crate) warnings: Vec<String>,
}

// Docs on the variants would become help of each value, and spread the whole `--help` over twice the lines.

/// Shape of a log line: text for people, or one JSON object a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Shape of what `sentry check` prints: a table for people, or one JSON document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// What is told apart on `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Aggregate {
    Container,
    Pod,
    Workload,
    Node,
}

/// A label of pods, and that of metrics which shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodLabel {
    name: String,
    shown: String,
    attribute: String,
}

impl PodLabel {
    /// As Kubernetes has it, `app.kubernetes.io/name` for instance.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// As `/metrics` has it, in the manner of kube-state-metrics: `label_app_kubernetes_io_name`.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// As OpenTelemetry has it: `k8s.pod.label.app`.
    pub(crate) fn attribute(&self) -> &str {
        &self.attribute
    }
}

#[cfg(test)]
impl From<&str> for PodLabel {
    fn from(name: &str) -> Self {
        let labels = parse_pod_labels(name).unwrap();
        labels.0.into_iter().next().unwrap()
    }
}

/// Why there is no configuration to go on with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// `--help` or `--version` was asked for; displays as that text.
    #[error("{0}")]
    Help(clap::Error),
    /// A bad flag or setting, in one line that names its place and what is allowed.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Prints help to stdout or the error to stderr, and returns the exit code that goes with it: 0 or 2.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Help(help) => {
                // A reader that left early, as in `sentry --help | head`, is no failure.
                let _ = help.print();
                ExitCode::SUCCESS
            }
            Self::Invalid(message) => {
                log::say(message);
                ExitCode::from(BAD_SETTING)
            }
        }
    }

    fn invalid(message: impl fmt::Display) -> Self {
        Self::Invalid(one_line(&message.to_string()))
    }
}

/// The text with control characters escaped: values are shown as given, and must not break the one line.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// Reads the command line (its first item is the program's name), the environment and the file that they name.
///
/// # Errors
/// [`Error::Invalid`] for the first bad flag, variable or key, [`Error::Help`] if help or the version was asked for.
pub(crate) fn load(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
    probes: &[ProbeOptions],
) -> Result<Command, Error> {
    load_with(args, env, probes, |path| std::fs::read_to_string(path))
}

#[derive(Subcommand)]
enum Action {
    /// Run the agent; the same as no command
    Agent,
    /// Say which probes this kernel can run and how, then exit
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// Shape of the output
        #[arg(
            long,
            value_enum,
            default_value = "table",
            value_name = "FORMAT",
            help_heading = "Check"
        )]
        format: Format,
    },
    /// Show on this terminal what workloads do, anew each second
    #[command(after_help = TOP_EXAMPLES)]
    Top {
        // In the attribute, for the URL is no link.
        #[arg(
            help = "Agent to read, such as http://127.0.0.1:9763 or https://USER:PASSWORD@HOST:PORT; by default the one of this host, or none",
            long,
            value_name = "URL",
            help_heading = "Top"
        )]
        url: Option<top::Url>,
        /// How often to read and draw, 200ms to 1m
        #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_top_interval,
              help_heading = "Top")]
        interval: Duration,
    },
    /// Print events as they happen, one a line
    #[command(after_help = TRACE_EXAMPLES)]
    Trace(trace::Options),
}

#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
struct Flags {
    /// YAML file with any of the settings below; none is read by default
    #[arg(id = CONFIG_FILE, long = CONFIG_FILE, value_name = "PATH")]
    config_file: Option<PathBuf>,

    /// Address to listen on; :PORT means every address of the host
    #[arg(long = "web.listen-address", value_name = "HOST:PORT", default_value = "127.0.0.1:9763",
          value_parser = parse_listen, help_heading = "Web")]
    listen: SocketAddr,
    /// Path under which the metrics are served
    #[arg(long = "web.telemetry-path", value_name = "PATH", default_value = "/metrics",
          value_parser = parse_telemetry_path, help_heading = "Web")]
    telemetry_path: String,
    /// TLS, client certificates and passwords: a file as Prometheus' exporters read it
    #[arg(long = "web.config.file", value_name = "FILE", help_heading = "Web")]
    web: Option<PathBuf>,
    /// Read the configuration anew upon POST /-/reload, as upon SIGHUP
    #[arg(long = "web.enable-lifecycle", value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, help_heading = "Web")]
    lifecycle: bool,

    /// Probes to attach, separated by commas
    // Parser and default come from the caller's probes.
    #[arg(long = PROBES, value_name = "NAMES", required = false, value_parser = |s: &str| parse_probes(s, &[]),
          help_heading = "Probes")]
    probes: ProbeNames,
    /// Type information (raw BTF) of a kernel that has none of its own
    #[arg(long = "btf", value_name = "FILE", help_heading = "Probes")]
    btf: Option<PathBuf>,
    /// Measure what the probes cost, by the kernel's BPF statistics, while the agent runs
    #[arg(long = "bpf.stats", value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, help_heading = "Probes")]
    bpf_stats: bool,
    /// Share of all CPUs' time that Sentry may take; what is over it sheds exemplars, then time, then probes; or off
    #[arg(
        long = "overhead.budget",
        value_name = "PERCENT",
        default_value = "1%",
        help_heading = "Probes"
    )]
    overhead_budget: Budget,
    /// How often to look what it takes, 1s to 1h; it takes four times over the budget to shed something
    #[arg(long = "overhead.interval", value_name = "DURATION", default_value = "1m",
          value_parser = parse_overhead_interval, help_heading = "Probes")]
    overhead_interval: Duration,

    /// Histograms kept in the kernel, 64 to 32000; the rest is counted together as "other"
    #[arg(long = "series.max", value_name = "N", default_value = "256",
          value_parser = parse_series_max, help_heading = "Series")]
    series_max: u32,
    /// How long the series of a workload that is gone stays: 500ms, 90s, 2m or 1h
    #[arg(long = "series.retention", value_name = "DURATION", default_value = "2m",
          value_parser = parse_retention, help_heading = "Series")]
    series_retention: Duration,
    /// Buckets shown for each doubling of time; the kernel always counts 4
    #[arg(long = "metrics.buckets-per-octave", value_name = "N", default_value = "1",
          value_parser = PossibleValuesParser::new(["1", "2", "4"]).try_map(|s| s.parse::<u8>()),
          help_heading = "Series")]
    buckets_per_octave: u8,
    /// Show classic histograms beside the native ones in protobuf; the text formats always have them
    #[arg(long = "metrics.classic-histograms", value_name = "BOOL", default_value = "true",
          default_missing_value = "true", num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set,
          help_heading = "Series")]
    classic_histograms: bool,
    /// Say since when each counter and histogram counts, in OpenMetrics and protobuf; series whose labels become
    /// others then begin anew
    #[arg(long = "metrics.created", value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set, help_heading = "Series")]
    created: bool,

    /// What one set of labels on /metrics stands for
    #[arg(
        long = "aggregate-by",
        value_enum,
        value_name = "WHAT",
        default_value = "container",
        help_heading = "Series"
    )]
    aggregate: Aggregate,

    /// Name of this node in Kubernetes: its pods are watched, and none without it
    #[arg(long = "kubernetes.node", value_name = "NAME", value_parser = parse_node, help_heading = "Kubernetes")]
    node: Option<String>,
    /// How to reach the API server; by default as a pod does, by its service account
    #[arg(
        long = "kubernetes.kubeconfig",
        value_name = "FILE",
        help_heading = "Kubernetes"
    )]
    kubeconfig: Option<PathBuf>,
    /// Labels of pods to show on their metrics, separated by commas
    #[arg(long = POD_LABELS, value_name = "NAMES", required = false, value_parser = parse_pod_labels,
          help_heading = "Kubernetes")]
    pod_labels: Option<PodLabels>,

    // In the attribute, for the URL is no link.
    #[arg(
        help = "Receiver to send the metrics to by OTLP, such as http://collector:4318; none by default",
        long = OTLP_ENDPOINT,
        value_name = "URL",
        help_heading = "OpenTelemetry"
    )]
    otlp_endpoint: Option<otlp::Endpoint>,
    /// How to send them
    #[arg(
        long = "otlp.protocol",
        value_enum,
        value_name = "PROTOCOL",
        default_value = "http/protobuf",
        help_heading = "OpenTelemetry"
    )]
    otlp_protocol: otlp::Protocol,
    /// How often to send them, 100ms to 24h
    #[arg(long = "otlp.interval", value_name = "DURATION", default_value = "60s",
          value_parser = parse_otlp_interval, help_heading = "OpenTelemetry")]
    otlp_interval: Duration,
    /// Headers to send along, name=value and separated by commas; tokens are better in the variable
    #[arg(
        long = OTLP_HEADERS,
        value_name = "HEADERS",
        help_heading = "OpenTelemetry"
    )]
    otlp_headers: Option<otlp::Headers>,
    /// Certificates (PEM) of the authorities to trust; by default the system's
    #[arg(
        long = "otlp.ca-file",
        value_name = "FILE",
        help_heading = "OpenTelemetry"
    )]
    otlp_ca_file: Option<PathBuf>,

    /// Least severe level to log
    #[arg(long = "log.level", value_name = "LEVEL", default_value = "info",
          value_parser = PossibleValuesParser::new(["error", "warn", "info", "debug", "trace"])
              .try_map(|s| s.parse::<Level>()),
          help_heading = "Logging")]
    log_level: Level,
    /// Shape of a log line
    #[arg(
        long = "log.format",
        value_enum,
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Logging"
    )]
    log_format: LogFormat,

    /// Where procfs is mounted
    #[arg(
        long = "path.procfs",
        value_name = "PATH",
        default_value = "/proc",
        help_heading = "Paths"
    )]
    procfs: PathBuf,
    /// Where sysfs is mounted
    #[arg(
        long = "path.sysfs",
        value_name = "PATH",
        default_value = "/sys",
        help_heading = "Paths"
    )]
    sysfs: PathBuf,
    /// Where the host's files are mounted, of which the state of container runtimes is read
    #[arg(
        long = "path.rootfs",
        value_name = "PATH",
        default_value = "/",
        help_heading = "Paths"
    )]
    rootfs: PathBuf,
}

/// A newtype, since clap takes a bare `Vec` for a flag that is given several times.
#[derive(Clone)]
struct ProbeNames(Vec<String>);

/// Likewise.
#[derive(Clone)]
struct PodLabels(Vec<PodLabel>);

fn definition(probes: &[ProbeOptions]) -> clap::Command {
    let names: Vec<&'static str> = probes.iter().map(|probe| probe.name).collect();
    let all = names.join(",");
    let command = clap::Command::new("sentry")
        .bin_name("sentry")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .after_help(EXAMPLES);
    let command = Action::augment_subcommands(Flags::augment_args(command));
    let mut command = command.mut_arg(PROBES, |arg| {
        arg.default_value(all)
            .value_parser(move |value: &str| parse_probes(value, &names))
    });
    for probe in probes {
        let hook = hook_key(probe.name);
        let hooks = [HOOK_AUTO].iter().chain(&probe.hooks).copied();
        command = command.arg(
            Arg::new(hook.clone())
                .long(hook)
                .value_name("HOOK")
                .help(format!(
                    "Kernel hook of the {} probe; auto takes the best that works",
                    probe.name
                ))
                .default_value(HOOK_AUTO)
                .value_parser(PossibleValuesParser::new(hooks))
                .help_heading("Probes"),
        );
        if probe.tells_events {
            let exemplars = exemplars_key(probe.name);
            command = command.arg(
                Arg::new(exemplars.clone())
                    .long(exemplars)
                    .value_name("off|auto|DURATION")
                    .help(format!(
                        "Show who and what is behind slow events of the {} probe: the slowest, two a second (auto), or those that take so long",
                        probe.name
                    ))
                    .default_value("off")
                    .value_parser(parse_exemplars)
                    .help_heading("Probes"),
            );
        }
    }
    command.mut_args(|arg| {
        let variable = env_name(arg.get_long().unwrap_or_default());
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        arg.global(true)
            .next_line_help(true)
            .help(format!("{help}\n[env: {variable}]"))
    })
}

fn hook_key(probe: &str) -> String {
    format!("{probe}.hook")
}

fn exemplars_key(probe: &str) -> String {
    format!("{probe}.exemplars")
}

fn env_name(key: &str) -> String {
    format!(
        "{ENV_PREFIX}{}",
        key.to_uppercase().replace(['.', '-'], "_")
    )
}

/// A value from a layer below the command line.
struct Setting {
    place: String,
    value: OsString,
}

fn load_with(
    args: impl IntoIterator<Item = OsString>,
    env: impl IntoIterator<Item = (OsString, OsString)>,
    probes: &[ProbeOptions],
    read: impl FnOnce(&Path) -> io::Result<String>,
) -> Result<Command, Error> {
    let definition = definition(probes);
    let mut keys: Vec<&str> = definition
        .get_arguments()
        .filter_map(Arg::get_long)
        .collect();
    keys.sort_unstable();
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.is_empty() {
        args.push("sentry".into());
    }

    let given = parse(&definition, &args)?;
    let given = innermost(&given);
    let (mut from_env, warnings) = read_env(env, &keys);
    let file = given
        .get_one::<PathBuf>(CONFIG_FILE)
        .cloned()
        .or_else(|| Some(from_env.remove(CONFIG_FILE)?.value.into()));
    let mut settings = BTreeMap::new();
    let probes_of_file = file.is_some()
        && !from_env.contains_key(PROBES)
        && given.value_source(PROBES) != Some(ValueSource::CommandLine);
    if let Some(path) = &file {
        let name = format!("config file {}", path.display());
        let text = read(path)
            .map_err(|error| Error::invalid(format!("{name}: cannot be read: {error}")))?;
        let keys: Vec<&str> = keys.into_iter().filter(|key| *key != CONFIG_FILE).collect();
        settings = read_file(&name, &text, &keys).map_err(Error::invalid)?;
    }
    settings.extend(from_env);

    for arg in definition.get_arguments() {
        let Some((key, setting)) = arg.get_long().and_then(|key| settings.remove_entry(key)) else {
            continue;
        };
        if given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine) {
            continue;
        }
        let mut flag = OsString::from(format!("--{key}="));
        flag.push(setting.value);
        // On its own first: only here is it known where the value comes from.
        definition
            .clone()
            .try_get_matches_from(["sentry".as_ref(), flag.as_os_str()])
            .map_err(|error| Error::invalid(format!("{}: {}", setting.place, complaint(&error))))?;
        // Right behind the program's name it is a flag, whatever follows.
        args.insert(1, flag);
    }

    let matches = parse(&definition, &args)?;
    let config = Config {
        file,
        probes_of_file,
        ..config(innermost(&matches), probes, warnings).map_err(usage)?
    };
    if matches.subcommand().is_none() {
        return Ok(Command::Agent(config));
    }
    Ok(match Action::from_arg_matches(&matches).map_err(usage)? {
        Action::Agent => Command::Agent(config),
        Action::Check { format } => Command::Check(config, format),
        Action::Top { url, interval } => Command::Top(config, top::Options { url, interval }),
        Action::Trace(options) => {
            let fits = options.check();
            fits.map_err(|error| Error::invalid(error.to_string()))?;
            Command::Trace(config, options)
        }
    })
}

fn parse(definition: &clap::Command, args: &[OsString]) -> Result<ArgMatches, Error> {
    definition.clone().try_get_matches_from(args).map_err(usage)
}

/// The subcommand's matches hold the flags given before it as well, the outer ones not those after it.
fn innermost(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, inner)| inner)
}

fn config(
    matches: &ArgMatches,
    probes: &[ProbeOptions],
    mut warnings: Vec<String>,
) -> Result<Config, clap::Error> {
    let flags = Flags::from_arg_matches(matches)?;
    if flags.node.is_none() && (flags.kubeconfig.is_some() || flags.pod_labels.is_some()) {
        warnings.push(
            "kubernetes.kubeconfig and kubernetes.pod-labels have no effect without kubernetes.node"
                .to_owned(),
        );
    }
    if flags.otlp_endpoint.is_none()
        && (flags.otlp_headers.is_some() || flags.otlp_ca_file.is_some())
    {
        let vain = "otlp.headers and otlp.ca-file have no effect without otlp.endpoint";
        warnings.push(vain.to_owned());
    }
    let has_path = flags
        .otlp_endpoint
        .as_ref()
        .is_some_and(otlp::Endpoint::has_path);
    if has_path && flags.otlp_protocol == otlp::Protocol::Grpc {
        return Err(clap::Error::raw(
            ErrorKind::Io,
            "otlp.endpoint: gRPC has no use for the URL's path; allowed: http://HOST:PORT or https://HOST:PORT",
        ));
    }
    let otlp = flags.otlp_endpoint.map(|endpoint| otlp::Options {
        endpoint,
        protocol: flags.otlp_protocol,
        interval: flags.otlp_interval,
        headers: flags.otlp_headers.unwrap_or_default(),
        ca_file: flags.otlp_ca_file,
    });
    let hooks = probes.iter().filter_map(|probe| {
        let hook = matches.get_one::<String>(&hook_key(probe.name))?;
        Some((probe.name.to_owned(), hook.clone()))
    });
    let exemplars = probes.iter().filter(|probe| probe.tells_events);
    let exemplars = exemplars.filter_map(|probe| {
        let which = matches.get_one::<Exemplars>(&exemplars_key(probe.name))?;
        Some((probe.name.to_owned(), *which))
    });
    Ok(Config {
        listen: flags.listen,
        telemetry_path: flags.telemetry_path,
        web: flags.web,
        lifecycle: flags.lifecycle,
        otlp,
        log_level: flags.log_level,
        log_format: flags.log_format,
        probes: flags.probes.0,
        hooks: hooks.collect(),
        exemplars: exemplars.collect(),
        btf: flags.btf,
        series_max: flags.series_max,
        series_retention: flags.series_retention,
        aggregate: flags.aggregate,
        node: flags.node,
        kubeconfig: flags.kubeconfig,
        pod_labels: flags.pod_labels.map(|labels| labels.0).unwrap_or_default(),
        buckets_per_octave: flags.buckets_per_octave,
        classic_histograms: flags.classic_histograms,
        created: flags.created,
        bpf_stats: flags.bpf_stats,
        overhead_budget: flags.overhead_budget,
        overhead_interval: flags.overhead_interval,
        procfs: flags.procfs,
        sysfs: flags.sysfs,
        rootfs: flags.rootfs,
        file: None,
        probes_of_file: false,
        warnings,
    })
}

fn parse_listen(value: &str) -> Result<SocketAddr, &'static str> {
    let address = match value.rsplit_once(':') {
        Some(("", port)) => format!("[::]:{port}"),
        Some(("localhost", port)) => format!("127.0.0.1:{port}"),
        _ => value.to_owned(),
    };
    address.parse().map_err(|_| {
        "allowed: HOST:PORT, where HOST is an IP address, localhost, or nothing for all addresses"
    })
}

/// Takes only characters that neither a client escapes nor the router reads as a pattern.
fn parse_telemetry_path(value: &str) -> Result<String, &'static str> {
    let taken = ["/", "/healthz", "/readyz", "/api", "/-"].contains(&value)
        || ["/api/", "/-/"]
            .iter()
            .any(|taken| value.starts_with(taken));
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
    let steps = value.split('/').any(|part| part == "." || part == "..");
    if value.starts_with('/')
        && !taken
        && !steps
        && !value.contains("//")
        && value.chars().all(plain)
    {
        Ok(value.to_owned())
    } else {
        Err(
            "allowed: a path such as /metrics, of letters, digits and / - . _ ~, \
             but not /, /healthz, /readyz, /api, /- or one below them",
        )
    }
}

fn parse_probes(value: &str, known: &[&str]) -> Result<ProbeNames, String> {
    let allowed = known.join(", ");
    if value.is_empty() {
        return Err(format!("allowed: {allowed}"));
    }
    let mut names: Vec<String> = Vec::new();
    for name in value.split(',').map(str::trim) {
        if !known.contains(&name) {
            return Err(format!("unknown probe '{name}'; allowed: {allowed}"));
        }
        if names.iter().any(|seen| seen == name) {
            return Err(format!(
                "probe '{name}' twice; allowed: {allowed}, each once"
            ));
        }
        names.push(name.to_owned());
    }
    Ok(ProbeNames(names))
}

fn parse_series_max(value: &str) -> Result<u32, String> {
    value
        .parse()
        .ok()
        .filter(|n| SERIES_MAX.contains(n))
        .ok_or_else(|| {
            format!(
                "allowed: a number from {} to {}",
                SERIES_MAX.start(),
                SERIES_MAX.end()
            )
        })
}

/// Names of objects are DNS subdomains (RFC 1123), and this one becomes part of a query.
fn parse_node(value: &str) -> Result<String, &'static str> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    if (1..=253).contains(&value.len()) && value.chars().all(plain) {
        Ok(value.to_owned())
    } else {
        Err("allowed: the node's name as `kubectl get nodes` shows it")
    }
}

fn parse_pod_labels(value: &str) -> Result<PodLabels, String> {
    let mut labels: Vec<PodLabel> = Vec::new();
    for name in value.split(',').map(str::trim) {
        if !is_label_name(name) {
            return Err(format!(
                "'{name}' is no label's name; allowed: names such as app or app.kubernetes.io/name"
            ));
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let shown = format!("label_{}", name.chars().map(plain).collect::<String>());
        if let Some(other) = labels.iter().find(|label| label.shown == shown) {
            let other = &other.name;
            return Err(format!(
                "'{other}' and '{name}' would both be {shown}; allowed: one of them"
            ));
        }
        labels.push(PodLabel {
            name: name.to_owned(),
            shown,
            attribute: format!("{}{name}", otlp::POD_LABEL),
        });
    }
    // Another order says nothing else, and must not make other series.
    labels.sort_by(|one, other| one.name.cmp(&other.name));
    if labels.len() > POD_LABELS_MAX {
        let count = labels.len();
        return Err(format!("{count} labels; allowed: {POD_LABELS_MAX}"));
    }
    Ok(PodLabels(labels))
}

/// The syntax of label keys: <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>.
fn is_label_name(text: &str) -> bool {
    let part = |text: &str, longest: usize, more: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        (1..=longest).contains(&text.len())
            && ends(text.chars().next())
            && ends(text.chars().next_back())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    match text.split_once('/') {
        Some((prefix, name)) => part(prefix, 253, "-.") && part(name, 63, "-_."),
        None => part(text, 63, "-_."),
    }
}

fn parse_retention(value: &str) -> Result<Duration, &'static str> {
    parse_duration(value)
        .ok_or("allowed: a whole number with its unit, such as 500ms, 90s, 2m or 1h, up to 24h")
}

fn parse_otlp_interval(value: &str) -> Result<Duration, &'static str> {
    parse_duration(value)
        .filter(|interval| *interval >= OTLP_INTERVAL_MIN)
        .ok_or("allowed: a whole number with its unit, such as 10s, 1m or 1h, from 100ms to 24h")
}

fn parse_exemplars(value: &str) -> Result<Exemplars, &'static str> {
    let slow = match value {
        "off" => return Ok(Exemplars::Off),
        "auto" => return Ok(Exemplars::Auto),
        _ => parse_short(value),
    };
    slow.filter(|slow| !slow.is_zero())
        .map(Exemplars::Slow)
        .ok_or("allowed: off, auto, or a number above 0 and its unit, us, ms, s or m, such as 10ms")
}

/// A duration of which microseconds matter.
fn parse_short(value: &str) -> Option<Duration> {
    let Some(digits) = value.strip_suffix("us") else {
        return parse_duration(value);
    };
    let us = digits.parse::<u32>().ok()?;
    Some(Duration::from_micros(us.into()))
}

pub(crate) fn parse_least(value: &str) -> Result<Duration, &'static str> {
    parse_short(value).ok_or("allowed: a whole number and its unit, us, ms, s or m, such as 10ms")
}

pub(crate) fn parse_length(value: &str) -> Result<Duration, &'static str> {
    parse_duration(value)
        .filter(|length| !length.is_zero())
        .ok_or("allowed: a number above 0 and its unit, ms, s, m or h, such as 10s, up to 24h")
}

pub(crate) fn parse_count(value: &str) -> Result<u64, &'static str> {
    let count = value.parse().ok().filter(|count| *count > 0);
    count.ok_or("allowed: a whole number above 0")
}

fn parse_top_interval(value: &str) -> Result<Duration, &'static str> {
    parse_duration(value)
        .filter(|interval| TOP_INTERVAL.contains(interval))
        .ok_or("allowed: a whole number with its unit, such as 500ms or 5s, from 200ms to 1m")
}

fn parse_overhead_interval(value: &str) -> Result<Duration, &'static str> {
    parse_duration(value)
        .filter(|interval| OVERHEAD_INTERVAL.contains(interval))
        .ok_or("allowed: a whole number with its unit, such as 30s or 1m, from 1s to 1h")
}

fn parse_duration(value: &str) -> Option<Duration> {
    let (number, unit) = value.split_at(value.find(|c: char| !c.is_ascii_digit())?);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let ms = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    Some(Duration::from_millis(ms)).filter(|duration| *duration <= RETENTION_MAX)
}

/// Takes the settings from `env`, and warns of other variables with the prefix.
fn read_env(
    env: impl IntoIterator<Item = (OsString, OsString)>,
    keys: &[&str],
) -> (BTreeMap<String, Setting>, Vec<String>) {
    let mut settings = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, value) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else {
            continue;
        };
        if value.is_empty() {
            continue;
        }
        let place = format!("environment {name}");
        match keys.iter().find(|key| env_name(key) == name) {
            Some(key) => drop(settings.insert((*key).to_owned(), Setting { place, value })),
            None => unknown.push(name.to_owned()),
        }
    }

    unknown.sort();
    let mut warnings = Vec::new();
    // Kubernetes sets several for a Service named sentry, hence no error, and one line for them all.
    unknown.retain(|name| {
        let key = name[ENV_PREFIX.len()..].to_lowercase().replace('_', ".");
        let Some(meant) = closest(&key, keys) else {
            return true;
        };
        let meant = env_name(meant);
        warnings.push(format!(
            "environment {name}: unknown variable, ignored; did you mean {meant}?"
        ));
        false
    });
    if !unknown.is_empty() {
        let unknown = unknown.join(", ");
        warnings.push(format!(
            "environment: ignored, since these are not settings: {unknown}"
        ));
    }
    (settings, warnings)
}

/// Any YAML document; an error is one line that names the place in `file`.
pub(crate) fn read_yaml(file: &str, text: &str) -> Result<Node, String> {
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // What looks like a number or a word is shown in errors as it was written, as far as possible.
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        strict_booleans: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let message = error.render_with_formatter(&UserMessageFormatter);
        match error.location() {
            Some(at) => {
                let (line, column) = (at.line(), at.column());
                let message = message.replace(&format!(" at line {line}, column {column}"), "");
                format!("{file}:{line}:{column}: not valid YAML: {message}")
            }
            None => format!("{file}: not valid YAML: {message}"),
        }
    })
}

/// Takes the settings from `text`, a YAML document in which a dot in a key may also be a level of nesting.
fn read_file(file: &str, text: &str, keys: &[&str]) -> Result<BTreeMap<String, Setting>, String> {
    let mut pending = match read_yaml(file, text)? {
        Node::Null => Vec::new(),
        Node::Mapping(entries) => nested("", entries),
        Node::Scalar(_) | Node::Sequence(_) => {
            return Err(format!(
                "{file}: not a mapping; allowed: lines such as 'log.level: info'"
            ));
        }
    };

    let mut lines = BTreeMap::new();
    let mut settings = BTreeMap::new();
    while let Some((key, line, node)) = pending.pop() {
        let place = format!("{file}:{line}: {key}");
        if let Some(first) = lines.insert(key.clone(), line) {
            return Err(format!("{place}: duplicate key, first on line {first}"));
        }
        let is_setting = keys.contains(&key.as_str());
        let within = format!("{key}.");
        let members: Vec<&str> = keys
            .iter()
            .filter(|key| key.starts_with(&within))
            .copied()
            .collect();
        let value = match node {
            _ if !is_setting && members.is_empty() => {
                let hint = closest(&key, keys).map_or_else(
                    || format!("allowed: {}", keys.join(", ")),
                    |key| format!("did you mean {key}?"),
                );
                return Err(format!("{place}: unknown key; {hint}"));
            }
            Node::Null => continue,
            Node::Mapping(entries) if !members.is_empty() => {
                pending.extend(nested(&within, entries));
                continue;
            }
            _ if !is_setting => {
                return Err(format!(
                    "{place}: a section, which has no value; allowed: {}",
                    members.join(", ")
                ));
            }
            Node::Scalar(value) => value,
            Node::Sequence(items) if LISTS.contains(&key.as_str()) => {
                let names: Option<Vec<String>> = items.into_iter().map(Node::scalar).collect();
                names
                    .ok_or_else(|| format!("{place}: a list in a list; allowed: names"))?
                    .join(",")
            }
            Node::Sequence(_) => return Err(format!("{place}: a list; allowed: one value")),
            Node::Mapping(_) => return Err(format!("{place}: a mapping; allowed: one value")),
        };
        settings.insert(
            key,
            Setting {
                place,
                value: value.into(),
            },
        );
    }
    Ok(settings)
}

/// The entries with their dotted keys and lines, last first.
fn nested(prefix: &str, entries: Vec<(Spanned<String>, Node)>) -> Vec<(String, u64, Node)> {
    let entry = |(key, node): (Spanned<String>, Node)| {
        (
            format!("{prefix}{}", key.value),
            key.referenced.line(),
            node,
        )
    };
    entries.into_iter().rev().map(entry).collect()
}

/// Any YAML value; scalars as text, since the command line's parsers read them.
pub(crate) enum Node {
    Null,
    Scalar(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(Spanned<String>, Node)>),
}

impl Node {
    fn scalar(self) -> Option<String> {
        match self {
            Self::Scalar(value) => Some(value),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a mapping")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut sequence = Vec::new();
        while let Some(item) = items.next_element()? {
            sequence.push(item);
        }
        Ok(Node::Sequence(sequence))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut mapping = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            mapping.push(entry);
        }
        Ok(Node::Mapping(mapping))
    }
}

/// The key that was most likely meant, if one is close.
pub(crate) fn closest<'a>(key: &str, keys: &[&'a str]) -> Option<&'a str> {
    keys.iter()
        .map(|known| (strsim::jaro(key, known), *known))
        .filter(|(similarity, _)| *similarity > 0.85)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// One line, with its flag, for an error of the command line as a whole.
fn usage(error: clap::Error) -> Error {
    let flag = |kind| {
        let shown = context(&error, kind);
        // The definition's own form, `--log.level <LEVEL>` or `--bpf.stats[=<BOOL>]`.
        shown
            .split([' ', '[', '='])
            .next()
            .unwrap_or_default()
            .to_owned()
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Error::Help(error),
        ErrorKind::InvalidSubcommand => {
            unknown_command(&context(&error, ContextKind::InvalidSubcommand))
        }
        ErrorKind::UnknownArgument => {
            let unknown = context(&error, ContextKind::InvalidArg);
            if !unknown.starts_with('-') {
                return unknown_command(&unknown);
            }
            let meant = context(&error, ContextKind::SuggestedArg);
            let hint = if meant.is_empty() {
                "see sentry --help".to_owned()
            } else {
                format!("did you mean {meant}?")
            };
            Error::invalid(format!("{unknown}: unknown flag; {hint}"))
        }
        ErrorKind::ArgumentConflict => {
            let (given, other) = (flag(ContextKind::InvalidArg), flag(ContextKind::PriorArg));
            Error::invalid(if other.is_empty() || other == given {
                format!("{given}: given more than once")
            } else {
                format!("{given}: not together with {other}")
            })
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => Error::invalid(format!(
            "{}: {}",
            flag(ContextKind::InvalidArg),
            complaint(&error)
        )),
        ErrorKind::MissingRequiredArgument => {
            let missing = context(&error, ContextKind::InvalidArg);
            Error::invalid(format!("{missing} is needed; see sentry trace --help"))
        }
        _ => Error::invalid(complaint(&error)),
    }
}

fn unknown_command(name: &str) -> Error {
    let known = Action::augment_subcommands(clap::Command::new("sentry"));
    let names: Vec<&str> = known
        .get_subcommands()
        .map(clap::Command::get_name)
        .collect();
    Error::invalid(format!(
        "{name}: unknown command; allowed: {}",
        names.join(", ")
    ))
}

/// What is wrong with a value, and what is allowed, without naming the flag.
fn complaint(error: &clap::Error) -> String {
    let value = context(error, ContextKind::InvalidValue);
    let flag = context(error, ContextKind::InvalidArg);
    let is = |key: &str| {
        flag.strip_prefix("--")
            .is_some_and(|arg| arg.starts_with(key))
    };
    // A password, a token.
    let secret = is(OTLP_HEADERS) || (is(OTLP_ENDPOINT) && value.contains(['@', '?']));
    let problem = if secret && !value.is_empty() {
        "invalid value".to_owned()
    } else if value.is_empty() {
        "a value is needed".to_owned()
    } else {
        format!("invalid value '{value}'")
    };
    let allowed = context(error, ContextKind::ValidValue);
    match error.kind() {
        ErrorKind::InvalidValue if allowed.is_empty() => problem,
        ErrorKind::InvalidValue => format!("{problem}; allowed: {allowed}"),
        ErrorKind::ValueValidation => {
            let reason = std::error::Error::source(error).map(ToString::to_string);
            format!("{problem}; {}", reason.unwrap_or_default())
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.strip_prefix("error: ").unwrap_or(first).to_owned()
        }
    }
}

fn context(error: &clap::Error, kind: ContextKind) -> String {
    error
        .get(kind)
        .map(ContextValue::to_string)
        .unwrap_or_default()
}

/// The settings of a file with this text, where nothing else says any.
#[cfg(test)]
pub(crate) fn of_file(text: &str) -> Result<Config, Error> {
    let options: Vec<ProbeOptions> = probes::PROBES.iter().map(|probe| (*probe).into()).collect();
    let args = ["sentry", "--config.file=sentry.yaml"].map(OsString::from);
    match load_with(args, [], &options, |_| Ok(text.to_owned()))? {
        Command::Agent(config)
        | Command::Check(config, _)
        | Command::Top(config, _)
        | Command::Trace(config, _) => Ok(config),
    }
}

/// All keys that a file may have, in their order.
#[cfg(test)]
pub(crate) fn keys() -> Vec<String> {
    let options: Vec<ProbeOptions> = probes::PROBES.iter().map(|probe| (*probe).into()).collect();
    let definition = definition(&options);
    let keys = definition.get_arguments().filter_map(Arg::get_long);
    let mut keys: Vec<String> = keys
        .filter(|key| *key != CONFIG_FILE)
        .map(str::to_owned)
        .collect();
    keys.sort_unstable();
    keys
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;

    static PROBES: LazyLock<[ProbeOptions; 2]> = LazyLock::new(|| {
        [
            ProbeOptions {
                name: "tcp",
                hooks: vec!["tp_btf"],
                tells_events: true,
            },
            ProbeOptions {
                name: "disk",
                hooks: vec!["tp_btf", "raw_tp"],
                tells_events: true,
            },
        ]
    });
    const FILE: &str = "--config.file=/etc/sentry.yaml";

    fn no_file(path: &Path) -> io::Result<String> {
        panic!("{} was read", path.display())
    }

    fn os(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    fn load_layers(args: &str, env: &[(&str, &str)], file: Option<&str>) -> Result<Command, Error> {
        let args = "sentry"
            .split(' ')
            .chain(args.split_whitespace())
            .map(OsString::from);
        match file {
            Some(text) => load_with(args, os(env), &*PROBES, |path| {
                assert_eq!(path, Path::new("/etc/sentry.yaml"));
                Ok(text.to_owned())
            }),
            None => load_with(args, os(env), &*PROBES, no_file),
        }
    }

    fn agent(args: &str, env: &[(&str, &str)], file: Option<&str>) -> Config {
        match load_layers(args, env, file) {
            // Where they came from is another test's.
            Ok(Command::Agent(config)) => Config {
                file: None,
                probes_of_file: false,
                ..config
            },
            other => panic!("{other:?}"),
        }
    }

    fn from_file(text: &str) -> Config {
        agent(FILE, &[], Some(text))
    }

    fn error(args: &str, env: &[(&str, &str)], file: Option<&str>) -> String {
        match load_layers(args, env, file) {
            Err(Error::Invalid(message)) => message,
            other => panic!("{other:?}"),
        }
    }

    fn flag_error(args: &str) -> String {
        error(args, &[], None)
    }

    fn file_error(text: &str) -> String {
        error(FILE, &[], Some(text))
    }

    fn help(args: &str) -> String {
        match load_layers(args, &[], None) {
            Err(Error::Help(help)) => {
                assert_eq!(help.exit_code(), 0);
                help.to_string()
            }
            other => panic!("{other:?}"),
        }
    }

    fn defaults() -> Config {
        Config {
            listen: "127.0.0.1:9763".parse().unwrap(),
            telemetry_path: "/metrics".into(),
            web: None,
            lifecycle: false,
            log_level: Level::INFO,
            log_format: LogFormat::Text,
            probes: vec!["tcp".into(), "disk".into()],
            hooks: [
                ("tcp".into(), "auto".into()),
                ("disk".into(), "auto".into()),
            ]
            .into(),
            exemplars: [
                ("tcp".into(), Exemplars::Off),
                ("disk".into(), Exemplars::Off),
            ]
            .into(),
            btf: None,
            series_max: 256,
            series_retention: Duration::from_secs(120),
            buckets_per_octave: 1,
            classic_histograms: true,
            created: false,
            bpf_stats: false,
            overhead_budget: "1%".parse().unwrap(),
            overhead_interval: Duration::from_secs(60),
            aggregate: Aggregate::Container,
            node: None,
            kubeconfig: None,
            pod_labels: Vec::new(),
            otlp: None,
            procfs: "/proc".into(),
            sysfs: "/sys".into(),
            rootfs: "/".into(),
            file: None,
            probes_of_file: false,
            warnings: Vec::new(),
        }
    }

    /// Every setting different from its default.
    fn all_set() -> Config {
        Config {
            listen: "[::]:1234".parse().unwrap(),
            telemetry_path: "/m".into(),
            web: Some("/web.yml".into()),
            lifecycle: true,
            log_level: Level::TRACE,
            log_format: LogFormat::Json,
            probes: vec!["disk".into()],
            hooks: [
                ("tcp".into(), "tp_btf".into()),
                ("disk".into(), "raw_tp".into()),
            ]
            .into(),
            exemplars: [
                ("tcp".into(), Exemplars::Auto),
                ("disk".into(), Exemplars::Slow(Duration::from_micros(250))),
            ]
            .into(),
            btf: Some("/btf".into()),
            series_max: 512,
            series_retention: Duration::from_secs(90),
            buckets_per_octave: 4,
            classic_histograms: false,
            created: true,
            bpf_stats: true,
            overhead_budget: "0.5%".parse().unwrap(),
            overhead_interval: Duration::from_secs(30),
            aggregate: Aggregate::Workload,
            node: Some("node-1.example".into()),
            kubeconfig: Some("/kubeconfig".into()),
            pod_labels: vec![
                PodLabel {
                    name: "app".into(),
                    shown: "label_app".into(),
                    attribute: "k8s.pod.label.app".into(),
                },
                PodLabel {
                    name: "example.org/the-team".into(),
                    shown: "label_example_org_the_team".into(),
                    attribute: "k8s.pod.label.example.org/the-team".into(),
                },
            ],
            otlp: Some(otlp::Options {
                endpoint: "https://otel:4317".parse().unwrap(),
                protocol: otlp::Protocol::Grpc,
                interval: Duration::from_secs(5),
                headers: "a=b,c=d".parse().unwrap(),
                ca_file: Some("/ca".into()),
            }),
            procfs: "/host/proc".into(),
            sysfs: "/host/sys".into(),
            rootfs: "/host".into(),
            file: None,
            probes_of_file: false,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        definition(&*PROBES).debug_assert();
    }

    #[test]
    fn defaults_stand_without_any_layer() {
        assert_eq!(agent("", &[], None), defaults());
        assert_eq!(agent("agent", &[], None), defaults());
        assert_eq!(
            load_with([], [], &*PROBES, no_file).unwrap(),
            Command::Agent(defaults())
        );
        assert_eq!(
            load_layers("check", &[], None).unwrap(),
            Command::Check(defaults(), Format::Table)
        );
    }

    #[test]
    fn top_has_settings_of_its_own_besides() {
        let top = |args: &str| match load_layers(args, &[], None).unwrap() {
            Command::Top(config, options) => (config, options),
            other => panic!("{other:?}"),
        };
        let (config, options) = top("top");
        assert_eq!(config, defaults());
        assert_eq!(
            (options.url, options.interval),
            (None, Duration::from_secs(1))
        );
        let (config, options) = top("top --probes disk --url http://node-7:9763/ --interval 250ms");
        assert_eq!(config.probes, ["disk"]);
        let shown = options.url.map(|url| url.to_string());
        assert_eq!(shown.as_deref(), Some("http://node-7:9763"));
        assert_eq!(options.interval, Duration::from_millis(250));
    }

    #[test]
    fn a_trace_has_its_filters() {
        let trace = |args: &str| match load_layers(args, &[], None).unwrap() {
            Command::Trace(config, options) => (config, options),
            other => panic!("{other:?}"),
        };
        let (config, options) = trace("trace tcp");
        assert_eq!(config, defaults());
        let all = trace::Options {
            what: trace::Subject::Tcp,
            format: Format::Table,
            min_duration: None,
            pid: None,
            cgroup: None,
            pod: None,
            port: None,
            closed: false,
            device: None,
            count: None,
            duration: None,
        };
        assert_eq!(options, all);
        let (_, options) = trace(
            "trace disk --format json --min-duration 250us --pid 7 --cgroup /a/ --device vda --count 5 --duration 3s",
        );
        let expected = trace::Options {
            what: trace::Subject::Disk,
            format: Format::Json,
            min_duration: Some(Duration::from_micros(250)),
            pid: Some(7),
            cgroup: Some("/a".to_owned()),
            device: Some("vda".to_owned()),
            count: Some(5),
            duration: Some(Duration::from_secs(3)),
            ..all.clone()
        };
        assert_eq!(options, expected);
        let (_, options) = trace("trace gpu --device 7");
        assert_eq!(options.what, trace::Subject::Gpu);
        let filter = options.filter(Path::new("/none")).unwrap();
        assert_eq!(filter.device, Some(7));
        let (_, options) = trace("trace tcp --closed");
        assert!(options.closed);
        let (_, options) = trace("trace tcp --pod shop/api-0 --port 443");
        assert_eq!(options.pod, "shop/api-0".parse().ok());
        assert_eq!(options.port, Some(443));
        for (args, expected) in [
            ("trace", "<WHAT> is needed; see sentry trace --help"),
            (
                "trace gpus",
                "<WHAT>: invalid value 'gpus'; allowed: tcp, disk, gpu",
            ),
            (
                "trace tcp --device vda",
                "--device: tcp has none; only disk and gpu have",
            ),
            ("trace gpu --port 80", "--port: gpu has none; only tcp has"),
            (
                "trace disk --closed",
                "--closed: disk has none; only tcp has",
            ),
            (
                "trace gpu --device 8",
                "--device 8: allowed: the number by which a process knows its GPU, 0 to 7",
            ),
            (
                "trace disk --port 80",
                "--port: disk has none; only tcp has",
            ),
            (
                "trace tcp --count 0",
                "--count: invalid value '0'; allowed: a whole number above 0",
            ),
            (
                "trace tcp --cgroup /a --pod shop/api-0",
                "--cgroup: not together with --pod",
            ),
            (
                "trace tcp --pod api",
                "--pod: invalid value 'api'; allowed: NAMESPACE/NAME, such as shop/api-0",
            ),
        ] {
            let error = load_layers(args, &[], None).unwrap_err();
            assert_eq!(error.to_string(), expected, "{args}");
        }
    }

    #[test]
    fn every_setting_can_be_a_flag() {
        let flags = "--web.listen-address :1234 --web.telemetry-path /m --web.config.file /web.yml --web.enable-lifecycle --log.level trace --log.format json \
             --probes disk --tcp.hook tp_btf --disk.hook=raw_tp --tcp.exemplars auto --disk.exemplars 250us --btf /btf --series.max 512 --series.retention 90s \
             --metrics.buckets-per-octave 4 --metrics.classic-histograms=false --metrics.created --bpf.stats --overhead.budget 0.5% --overhead.interval 30s --path.procfs /host/proc --path.sysfs=/host/sys \
             --path.rootfs /host --aggregate-by workload --kubernetes.node node-1.example \
             --kubernetes.kubeconfig /kubeconfig --kubernetes.pod-labels app,example.org/the-team \
             --otlp.endpoint https://otel:4317 --otlp.protocol grpc --otlp.interval 5s --otlp.headers a=b,c=d \
             --otlp.ca-file /ca";
        assert_eq!(agent(flags, &[], None), all_set());
        assert_eq!(agent(&format!("agent {flags}"), &[], None), all_set());
        assert_eq!(agent(&format!("{flags} agent"), &[], None), all_set());
        assert_eq!(
            load_layers(&format!("check {flags} --format json"), &[], None).unwrap(),
            Command::Check(all_set(), Format::Json)
        );
        assert_eq!(
            load_layers(&format!("{flags} check --format json"), &[], None).unwrap(),
            Command::Check(all_set(), Format::Json)
        );
    }

    const ALL_ENV: [(&str, &str); 32] = [
        ("SENTRY_WEB_CONFIG_FILE", "/web.yml"),
        ("SENTRY_WEB_ENABLE_LIFECYCLE", "true"),
        ("SENTRY_WEB_LISTEN_ADDRESS", ":1234"),
        ("SENTRY_WEB_TELEMETRY_PATH", "/m"),
        ("SENTRY_LOG_LEVEL", "trace"),
        ("SENTRY_LOG_FORMAT", "json"),
        ("SENTRY_PROBES", "disk"),
        ("SENTRY_TCP_HOOK", "tp_btf"),
        ("SENTRY_DISK_HOOK", "raw_tp"),
        ("SENTRY_TCP_EXEMPLARS", "auto"),
        ("SENTRY_DISK_EXEMPLARS", "250us"),
        ("SENTRY_BTF", "/btf"),
        ("SENTRY_SERIES_MAX", "512"),
        ("SENTRY_SERIES_RETENTION", "90s"),
        ("SENTRY_METRICS_BUCKETS_PER_OCTAVE", "4"),
        ("SENTRY_METRICS_CLASSIC_HISTOGRAMS", "false"),
        ("SENTRY_METRICS_CREATED", "true"),
        ("SENTRY_BPF_STATS", "true"),
        ("SENTRY_OVERHEAD_BUDGET", "0.5%"),
        ("SENTRY_OVERHEAD_INTERVAL", "30s"),
        ("SENTRY_PATH_PROCFS", "/host/proc"),
        ("SENTRY_PATH_SYSFS", "/host/sys"),
        ("SENTRY_PATH_ROOTFS", "/host"),
        ("SENTRY_AGGREGATE_BY", "workload"),
        ("SENTRY_KUBERNETES_NODE", "node-1.example"),
        ("SENTRY_KUBERNETES_KUBECONFIG", "/kubeconfig"),
        ("SENTRY_KUBERNETES_POD_LABELS", "app,example.org/the-team"),
        ("SENTRY_OTLP_ENDPOINT", "https://otel:4317"),
        ("SENTRY_OTLP_PROTOCOL", "grpc"),
        ("SENTRY_OTLP_INTERVAL", "5s"),
        ("SENTRY_OTLP_HEADERS", "a=b,c=d"),
        ("SENTRY_OTLP_CA_FILE", "/ca"),
    ];

    #[test]
    fn every_setting_can_be_a_variable() {
        assert_eq!(agent("", &ALL_ENV, None), all_set());
        assert_eq!(
            load_layers("check", &ALL_ENV, None).unwrap(),
            Command::Check(all_set(), Format::Table)
        );
    }

    #[test]
    fn every_setting_can_be_a_key_flat_or_nested() {
        let flat = "web.listen-address: :1234\nweb.telemetry-path: /m\nweb.config.file: /web.yml\nweb.enable-lifecycle: true\nlog.level: trace\nlog.format: json\n\
             probes: disk\ntcp.hook: tp_btf\ndisk.hook: raw_tp\ntcp.exemplars: auto\ndisk.exemplars: 250us\nbtf: /btf\nseries.max: 512\nseries.retention: 90s\n\
             metrics.buckets-per-octave: 4\nmetrics.classic-histograms: false\nmetrics.created: true\nbpf.stats: true\noverhead.budget: 0.5%\noverhead.interval: 30s\npath.procfs: /host/proc\npath.sysfs: /host/sys\n\
             path.rootfs: /host\naggregate-by: workload\nkubernetes.node: node-1.example\n\
             kubernetes.kubeconfig: /kubeconfig\nkubernetes.pod-labels: app,example.org/the-team\n\
             otlp.endpoint: https://otel:4317\notlp.protocol: grpc\notlp.interval: 5s\notlp.headers: a=b,c=d\n\
             otlp.ca-file: /ca\n";
        assert_eq!(from_file(flat), all_set());
        let nested = "web:\n  listen-address: \":1234\"\n  telemetry-path: /m\n  config: {file: /web.yml}\n  enable-lifecycle: true\nlog: {level: trace, format: json}\n\
             probes:\n- disk\ntcp:\n  hook: tp_btf\n  exemplars: auto\ndisk: {hook: raw_tp, exemplars: 250us}\nbtf: /btf\nseries: {max: 512, retention: 90s}\n\
             metrics: {buckets-per-octave: 4, classic-histograms: false, created: true}\nbpf: {stats: true}\noverhead: {budget: 0.5%, interval: 30s}\npath: {procfs: /host/proc}\n\
             path.sysfs: /host/sys\npath.rootfs: /host\naggregate-by: workload\nkubernetes:\n  node: node-1.example\n  \
             kubeconfig: /kubeconfig\n  pod-labels: [app, example.org/the-team]\n\
             otlp: {endpoint: \"https://otel:4317\", protocol: grpc, interval: 5s, headers: [a=b, c=d], ca-file: /ca}\n";
        assert_eq!(from_file(nested), all_set());
        let of_file = Config {
            file: Some("/etc/sentry.yaml".into()),
            probes_of_file: true,
            ..all_set()
        };
        assert_eq!(
            load_layers(&format!("check {FILE}"), &[], Some(flat)).unwrap(),
            Command::Check(of_file, Format::Table)
        );
    }

    #[test]
    fn the_probes_are_for_the_file_to_say_unless_a_higher_layer_does() {
        for (args, env, file, expected) in [
            ("", &[][..], None, false),
            (FILE, &[], Some(""), true),
            (FILE, &[], Some("probes: tcp"), true),
            (
                &format!("{FILE} --probes tcp"),
                &[],
                Some("probes: disk"),
                false,
            ),
            (FILE, &[("SENTRY_PROBES", "tcp")], Some(""), false),
            (FILE, &[("SENTRY_PROBES", "")], Some(""), true),
        ] {
            let Ok(Command::Agent(config)) = load_layers(args, env, file) else {
                panic!("{args}");
            };
            assert_eq!(config.probes_of_file, expected, "{args} {env:?} {file:?}");
            assert_eq!(config.file.is_some(), file.is_some());
        }
    }

    #[test]
    fn receivers_of_metrics() {
        let Some(options) = agent("--otlp.endpoint http://otel:4318", &[], None).otlp else {
            panic!("none");
        };
        assert_eq!(options.protocol, otlp::Protocol::HttpProtobuf);
        assert_eq!(options.interval, Duration::from_secs(60));
        assert_eq!(options.headers, otlp::Headers::default());
        assert_eq!(
            flag_error("--otlp.endpoint otel:4318"),
            "--otlp.endpoint: invalid value 'otel:4318'; allowed: a URL such as http://collector:4318 or \
             https://HOST[:PORT][/PATH], without user and password"
        );
        assert_eq!(
            flag_error("--otlp.endpoint http://otel:4317/x --otlp.protocol grpc"),
            "otlp.endpoint: gRPC has no use for the URL's path; allowed: http://HOST:PORT or https://HOST:PORT"
        );
        assert_eq!(
            flag_error("--otlp.protocol http/json"),
            "--otlp.protocol: invalid value 'http/json'; allowed: http/protobuf, grpc"
        );
        for value in ["99ms", "0s", "25h", "60"] {
            assert_eq!(
                flag_error(&format!("--otlp.interval {value}")),
                format!(
                    "--otlp.interval: invalid value '{value}'; allowed: a whole number with its unit, such as \
                     10s, 1m or 1h, from 100ms to 24h"
                )
            );
        }
        let without = agent("--otlp.headers a=b", &[], None);
        assert_eq!((without.otlp, without.warnings.len()), (None, 1));
    }

    #[test]
    fn secrets_are_in_no_error() {
        let why = "header 1 is not a name and a value; allowed: name=value, separated by commas, values \
             percent-encoded where needed (%2C is a comma)";
        assert_eq!(
            error("", &[("SENTRY_OTLP_HEADERS", "secret")], None),
            format!("environment SENTRY_OTLP_HEADERS: invalid value; {why}")
        );
        assert_eq!(
            flag_error("--otlp.headers=secret"),
            format!("--otlp.headers: invalid value; {why}")
        );
        assert_eq!(
            file_error("otlp.headers: [secret]"),
            format!("config file /etc/sentry.yaml:1: otlp.headers: invalid value; {why}")
        );
        for url in ["http://me:secret@otel:4318", "ftp://otel?token=secret"] {
            let error = error("", &[("SENTRY_OTLP_ENDPOINT", url)], None);
            let place = "environment SENTRY_OTLP_ENDPOINT: invalid value; allowed: a URL";
            assert!(error.starts_with(place), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn each_layer_wins_over_those_below() {
        let file = Some("series.max: 100\n");
        let env = [("SENTRY_SERIES_MAX", "200")];
        let both = format!("{FILE} --series.max 300");
        assert_eq!(agent(FILE, &[], file).series_max, 100);
        assert_eq!(agent(FILE, &env, file).series_max, 200);
        assert_eq!(agent(&both, &env, file).series_max, 300);
        assert_eq!(agent(&both, &[], file).series_max, 300);
        assert_eq!(agent("--series.max 300", &env, None).series_max, 300);
        assert_eq!(agent("--series.max 300 agent", &env, None).series_max, 300);
        assert_eq!(agent("agent --series.max 300", &env, None).series_max, 300);
        // A flag that says what the default says is still a flag.
        assert_eq!(
            agent(&format!("{FILE} --series.max 256"), &env, file).series_max,
            256
        );
    }

    #[test]
    fn layers_merge_key_by_key() {
        let file = Some("series.max: 100\nlog.level: warn\nprobes: tcp\n");
        let env = [("SENTRY_LOG_LEVEL", "debug"), ("SENTRY_PROBES", "disk,tcp")];
        let config = agent(&format!("{FILE} --probes disk"), &env, file);
        assert_eq!(config.series_max, 100);
        assert_eq!(config.log_level, Level::DEBUG);
        assert_eq!(config.probes, ["disk"]);
    }

    #[test]
    fn a_flag_can_take_back_what_a_lower_layer_switched_on() {
        let env = [("SENTRY_BPF_STATS", "true")];
        assert!(agent("", &env, None).bpf_stats);
        assert!(!agent("--bpf.stats=false", &env, None).bpf_stats);
        assert!(
            !agent(
                FILE,
                &[("SENTRY_BPF_STATS", "false")],
                Some("bpf.stats: true")
            )
            .bpf_stats
        );
    }

    #[test]
    fn a_value_that_a_higher_layer_replaces_is_not_looked_at() {
        let env = [("SENTRY_LOG_LEVEL", "loud")];
        assert_eq!(agent("--log.level warn", &env, None).log_level, Level::WARN);
    }

    #[test]
    fn the_file_can_be_named_by_a_variable_and_a_flag_wins() {
        let text = Some("series.max: 100\n");
        let env = [("SENTRY_CONFIG_FILE", "/etc/sentry.yaml")];
        assert_eq!(agent("", &env, text).series_max, 100);
        assert_eq!(
            agent(FILE, &[("SENTRY_CONFIG_FILE", "/other")], text).series_max,
            100
        );
        assert_eq!(agent("", &[("SENTRY_CONFIG_FILE", "")], None), defaults());
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        assert_eq!(
            agent(
                "",
                &[("SENTRY_LOG_LEVEL", ""), ("SENTRY_NONSENSE", "")],
                None
            ),
            defaults()
        );
    }

    #[test]
    fn kubernetes_variables_give_one_warning() {
        let env = [
            ("SENTRY_SERVICE_PORT", "9763"),
            ("SENTRY_PORT", "tcp://10.0.0.7:9763"),
            ("SENTRY_PORT_9763_TCP", "tcp://10.0.0.7:9763"),
            ("SENTRY_PORT_9763_TCP_PROTO", "tcp"),
            ("SENTRY_PORT_9763_TCP_PORT", "9763"),
            ("SENTRY_PORT_9763_TCP_ADDR", "10.0.0.7"),
            ("SENTRY_SERVICE_PORT_METRICS", "9763"),
            ("SENTRY_SERVICE_HOST", "10.0.0.7"),
            ("SENTRYX", "1"),
            ("PATH", "/bin"),
        ];
        let expected = Config {
            warnings: vec![
                "environment: ignored, since these are not settings: SENTRY_PORT, SENTRY_PORT_9763_TCP, \
                 SENTRY_PORT_9763_TCP_ADDR, SENTRY_PORT_9763_TCP_PORT, SENTRY_PORT_9763_TCP_PROTO, \
                 SENTRY_SERVICE_HOST, SENTRY_SERVICE_PORT, SENTRY_SERVICE_PORT_METRICS"
                    .into(),
            ],
            ..defaults()
        };
        assert_eq!(agent("", &env, None), expected);
    }

    #[test]
    fn the_manifest_sets_what_is_meant() {
        let manifest = include_str!("../../deploy/deploy-sentry.yaml");
        let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(manifest).unwrap();
        let mut sets = documents
            .iter()
            .filter(|document| document["kind"] == "DaemonSet");
        let pod = &sets.next().unwrap()["spec"]["template"]["spec"];
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
        let variables = pod["containers"][0]["env"].as_array().unwrap();
        let env: Vec<(&str, &str)> = variables
            .iter()
            .map(|variable| {
                let field = &variable["valueFrom"]["fieldRef"]["fieldPath"];
                let value = match field.as_str() {
                    Some(path) => (path == "spec.nodeName").then_some("node-1"),
                    None => variable["value"].as_str(),
                };
                (variable["name"].as_str().unwrap(), value.unwrap())
            })
            .collect();
        let expected = Config {
            listen: "[::]:9763".parse().unwrap(),
            log_format: LogFormat::Json,
            probes: vec!["tcp".into(), "disk".into()],
            series_max: 4096,
            aggregate: Aggregate::Container,
            node: Some("node-1".into()),
            rootfs: "/host".into(),
            ..defaults()
        };
        assert_eq!(agent("", &env, None), expected);
        // What Kubernetes would set for a Service named `sentry`.
        assert_eq!(pod["enableServiceLinks"], false);
    }

    #[test]
    fn a_misspelt_variable_is_told_apart() {
        let env = [
            ("SENTRY_WEB_LISTENADDRESS", ":1"),
            ("SENTRY_DSN", "x"),
            ("SENTRY_PROBE", "tcp"),
        ];
        assert_eq!(
            agent("", &env, None).warnings,
            [
                "environment SENTRY_PROBE: unknown variable, ignored; did you mean SENTRY_PROBES?",
                "environment SENTRY_WEB_LISTENADDRESS: unknown variable, ignored; \
                 did you mean SENTRY_WEB_LISTEN_ADDRESS?",
                "environment: ignored, since these are not settings: SENTRY_DSN",
            ]
        );
    }

    #[cfg(unix)]
    #[test]
    fn a_path_need_not_be_utf8() {
        use std::os::unix::ffi::OsStringExt;
        let path = OsString::from_vec(b"/pr\xffoc".to_vec());
        let env = [
            ("SENTRY_PATH_PROCFS".into(), path.clone()),
            (path.clone(), "x".into()),
        ];
        let command = load_with(["sentry".into()], env, &*PROBES, no_file).unwrap();
        let expected = Config {
            procfs: path.clone().into(),
            ..defaults()
        };
        assert_eq!(command, Command::Agent(expected));

        let env = [("SENTRY_LOG_LEVEL".into(), path)];
        let error = load_with(["sentry".into()], env, &*PROBES, no_file).unwrap_err();
        assert_eq!(
            error.to_string(),
            "environment SENTRY_LOG_LEVEL: invalid UTF-8 was detected in one or more arguments"
        );
    }

    #[test]
    fn listen_addresses() {
        let listen = |value: &str| {
            agent(&format!("--web.listen-address {value}"), &[], None)
                .listen
                .to_string()
        };
        assert_eq!(listen(":9763"), "[::]:9763");
        assert_eq!(listen("localhost:80"), "127.0.0.1:80");
        assert_eq!(listen("10.1.2.3:80"), "10.1.2.3:80");
        assert_eq!(listen("[fe80::1]:80"), "[fe80::1]:80");
        assert_eq!(listen("0.0.0.0:0"), "0.0.0.0:0");
        for value in [
            "x",
            "9763",
            "::1:80",
            "host:80",
            ":",
            ":x",
            ":+1",
            ":65536",
            "localhost",
            "[::]",
            "1.2.3:4",
        ] {
            assert_eq!(
                flag_error(&format!("--web.listen-address {value}")),
                format!(
                    "--web.listen-address: invalid value '{value}'; allowed: HOST:PORT, \
                     where HOST is an IP address, localhost, or nothing for all addresses"
                )
            );
        }
    }

    #[test]
    fn telemetry_paths() {
        for value in ["/m", "/a/b-c._~", "/metrics/", "/apis", "/healthz/x"] {
            assert_eq!(
                agent(&format!("--web.telemetry-path {value}"), &[], None).telemetry_path,
                value
            );
        }
        for value in [
            "metrics",
            "/",
            "/healthz",
            "/readyz",
            "/api",
            "/api/v1",
            "/api/",
            "/-",
            "/-/reload",
            "/a?b",
            "/a#b",
            "/{a}",
            "/*a",
            "/:a",
            "/ä",
            "//a",
            "/a//b",
            "/./a",
            "/a/..",
            "/%41",
        ] {
            assert_eq!(
                flag_error(&format!("--web.telemetry-path {value}")),
                format!(
                    "--web.telemetry-path: invalid value '{value}'; allowed: a path such as /metrics, of letters, \
                     digits and / - . _ ~, but not /, /healthz, /readyz, /api, /- or one below them"
                )
            );
        }
    }

    #[test]
    fn probes_are_known_and_named_once() {
        let probes = |value| agent("", &[("SENTRY_PROBES", value)], None).probes;
        assert_eq!(probes("tcp"), ["tcp"]);
        assert_eq!(probes("disk, tcp"), ["disk", "tcp"]);
        assert_eq!(from_file("probes: [disk, tcp]").probes, ["disk", "tcp"]);
        assert_eq!(from_file("probes: disk,tcp").probes, ["disk", "tcp"]);
        assert_eq!(
            flag_error("--probes tcp,gpu"),
            "--probes: invalid value 'tcp,gpu'; unknown probe 'gpu'; allowed: tcp, disk"
        );
        assert_eq!(
            flag_error("--probes tcp,disk,tcp"),
            "--probes: invalid value 'tcp,disk,tcp'; probe 'tcp' twice; allowed: tcp, disk, each once"
        );
        assert_eq!(
            flag_error("--probes tcp,"),
            "--probes: invalid value 'tcp,'; unknown probe ''; allowed: tcp, disk"
        );
        assert_eq!(
            flag_error("--probes="),
            "--probes: a value is needed; allowed: tcp, disk"
        );
        assert_eq!(
            file_error("probes: []"),
            "config file /etc/sentry.yaml:1: probes: a value is needed; allowed: tcp, disk"
        );
        assert_eq!(
            file_error("probes: [tcp, [disk]]"),
            "config file /etc/sentry.yaml:1: probes: a list in a list; allowed: names"
        );
        assert_eq!(
            file_error("\nprobes:\n  tcp: true\n"),
            "config file /etc/sentry.yaml:2: probes: a mapping; allowed: one value"
        );
    }

    #[test]
    fn all_probes_and_their_hooks_are_offered() {
        let all: Vec<ProbeOptions> = probes::PROBES.iter().copied().map(Into::into).collect();
        let of = |args: &str| {
            let args = args.split(' ').map(OsString::from);
            load_with(args, [], &all, no_file)
        };
        let Ok(Command::Agent(config)) = of("sentry --gpu.hook uprobe_cookie") else {
            panic!("--gpu.hook is refused");
        };
        assert_eq!(config.probes, ["tcp", "disk", "gpu"]);
        assert_eq!(config.hooks["gpu"], "uprobe_cookie");
        assert_eq!(
            of("sentry --gpu.hook kprobe").unwrap_err().to_string(),
            "--gpu.hook: invalid value 'kprobe'; allowed: auto, uprobe_multi, uprobe_cookie, uprobe"
        );
        assert_eq!(
            of("sentry --probes tcp,cuda").unwrap_err().to_string(),
            "--probes: invalid value 'tcp,cuda'; unknown probe 'cuda'; allowed: tcp, disk, gpu"
        );
        let help = of("sentry --help").unwrap_err().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "[env: SENTRY_PROBES] [default: tcp,disk,gpu]",
            "Kernel hook of the gpu probe; auto takes the best that works",
            "[possible values: auto, uprobe_multi, uprobe_cookie, uprobe]",
            "SENTRY_GPU_HOOK",
        ] {
            assert!(help.contains(part), "no {part} in {help}");
        }
    }

    #[test]
    fn hooks_follow_the_probes() {
        let gpu = [ProbeOptions {
            name: "gpu",
            hooks: vec!["uprobe"],
            tells_events: false,
        }];
        let args = ["sentry", "--gpu.hook=uprobe"].map(OsString::from);
        let command = load_with(args, [], &gpu, no_file).unwrap();
        let hooks = BTreeMap::from([("gpu".to_owned(), "uprobe".to_owned())]);
        let expected = Config {
            probes: vec!["gpu".into()],
            hooks,
            exemplars: BTreeMap::new(),
            ..defaults()
        };
        assert_eq!(command, Command::Agent(expected));
        assert_eq!(
            flag_error("--tcp.hook kprobe"),
            "--tcp.hook: invalid value 'kprobe'; allowed: auto, tp_btf"
        );
        assert_eq!(
            error("", &[("SENTRY_DISK_HOOK", "x")], None),
            "environment SENTRY_DISK_HOOK: invalid value 'x'; allowed: auto, tp_btf, raw_tp"
        );
    }

    #[test]
    fn series_max_has_bounds() {
        assert_eq!(agent("--series.max 64", &[], None).series_max, 64);
        assert_eq!(agent("--series.max 32000", &[], None).series_max, 32_000);
        for value in ["63", "32001", "-1", "1e3", "many", "99999999999"] {
            assert_eq!(
                flag_error(&format!("--series.max={value}")),
                format!(
                    "--series.max: invalid value '{value}'; allowed: a number from 64 to 32000"
                )
            );
        }
    }

    #[test]
    fn labels_of_pods() {
        let shown = |value: &str| {
            let flags = format!("--kubernetes.node a --kubernetes.pod-labels {value}");
            let labels = agent(&flags, &[], None).pod_labels;
            let shown = labels.iter().map(|label| label.shown().to_owned());
            shown.collect::<Vec<_>>()
        };
        assert_eq!(shown("app"), ["label_app"]);
        assert_eq!(
            shown("k8s-app,app.kubernetes.io/name,A_b.c"),
            [
                "label_A_b_c",
                "label_app_kubernetes_io_name",
                "label_k8s_app"
            ]
        );
        let refused = |value: &str, why: &str| {
            assert_eq!(
                flag_error(&format!("--kubernetes.pod-labels={value}")),
                format!("--kubernetes.pod-labels: invalid value '{value}'; {why}")
            );
        };
        for name in [
            "-a",
            "a-",
            "a/b/c",
            "/a",
            "a/",
            "a*",
            "{a}",
            &"a".repeat(64),
        ] {
            refused(
                &format!("app,{name}"),
                &format!(
                    "'{name}' is no label's name; allowed: names such as app or app.kubernetes.io/name"
                ),
            );
        }
        refused(
            "a.b,a-b",
            "'a.b' and 'a-b' would both be label_a_b; allowed: one of them",
        );
        let many: Vec<String> = (0..17).map(|n| format!("l{n}")).collect();
        refused(&many.join(","), "17 labels; allowed: 16");
    }

    #[test]
    fn nodes_have_names() {
        for value in ["Node", "a b", "a/b", "a,b", "a=b", &"a".repeat(254)] {
            assert_eq!(
                error("", &[("SENTRY_KUBERNETES_NODE", value)], None),
                format!(
                    "environment SENTRY_KUBERNETES_NODE: invalid value '{value}'; allowed: \
                     the node's name as `kubectl get nodes` shows it"
                )
            );
        }
        // As the downward API leaves it where there is none.
        assert_eq!(
            agent("", &[("SENTRY_KUBERNETES_NODE", "")], None).node,
            None
        );
        let without = agent("--kubernetes.pod-labels app", &[], None);
        assert_eq!(
            without.warnings,
            [
                "kubernetes.kubeconfig and kubernetes.pod-labels have no effect without kubernetes.node"
            ]
        );
    }

    #[test]
    fn budgets() {
        let of = |value: &str| agent(&format!("--overhead.budget {value}"), &[], None);
        let same = |value: &str, other: &str| {
            assert_eq!(of(value).overhead_budget, other.parse().unwrap(), "{value}");
        };
        same("0.5%", "0.5%");
        same("off", "0");
        same("0", "0%");
        let none = from_file("overhead.budget: off\n");
        assert_eq!(none.overhead_budget, "0".parse().unwrap());
        for wrong in ["1", "-1%", "101%", "on", "1e-3%"] {
            assert_eq!(
                flag_error(&format!("--overhead.budget={wrong}")),
                format!(
                    "--overhead.budget: invalid value '{wrong}'; allowed: off, or a share of all CPUs' time up to 100%, such as 1% or 0.5%"
                )
            );
        }
        for wrong in ["0s", "999ms", "61m", "2h", "60"] {
            assert_eq!(
                flag_error(&format!("--overhead.interval={wrong}")),
                format!(
                    "--overhead.interval: invalid value '{wrong}'; allowed: a whole number with its unit, such as 30s or 1m, from 1s to 1h"
                )
            );
        }
    }

    #[test]
    fn exemplars() {
        let of =
            |value: &str| agent(&format!("--tcp.exemplars {value}"), &[], None).exemplars["tcp"];
        let slow = |us| Exemplars::Slow(Duration::from_micros(us));
        assert_eq!(of("off"), Exemplars::Off);
        assert_eq!(of("auto"), Exemplars::Auto);
        assert_eq!(of("1us"), slow(1));
        assert_eq!(of("10ms"), slow(10_000));
        assert_eq!(of("2s"), slow(2_000_000));
        for wrong in ["on", "0ms", "0us", "10", "ms", "-1s", "1.5s", "us"] {
            assert_eq!(
                flag_error(&format!("--tcp.exemplars={wrong}")),
                format!(
                    "--tcp.exemplars: invalid value '{wrong}'; allowed: off, auto, or a number above 0 and its unit, us, ms, s or m, such as 10ms"
                )
            );
        }
    }

    #[test]
    fn retentions() {
        let retention = |value: &str| {
            agent(&format!("--series.retention {value}"), &[], None)
                .series_retention
                .as_millis()
        };
        assert_eq!(retention("500ms"), 500);
        assert_eq!(retention("90s"), 90_000);
        assert_eq!(retention("2m"), 120_000);
        assert_eq!(retention("24h"), 86_400_000);
        assert_eq!(retention("0s"), 0);
        for value in [
            "90",
            "s",
            "-1s",
            "1.5s",
            "1h30m",
            "2 m",
            "25h",
            "99999999999999999999s",
            "9999999999999999999h",
        ] {
            assert_eq!(
                error("", &[("SENTRY_SERIES_RETENTION", value)], None),
                format!(
                    "environment SENTRY_SERIES_RETENTION: invalid value '{value}'; allowed: \
                     a whole number with its unit, such as 500ms, 90s, 2m or 1h, up to 24h"
                )
            );
        }
    }

    #[test]
    fn closed_sets_name_what_is_allowed() {
        assert_eq!(
            flag_error("--log.level loud"),
            "--log.level: invalid value 'loud'; allowed: error, warn, info, debug, trace"
        );
        assert_eq!(
            flag_error("--log.format xml"),
            "--log.format: invalid value 'xml'; allowed: text, json"
        );
        assert_eq!(
            flag_error("check --format xml"),
            "--format: invalid value 'xml'; allowed: table, json"
        );
        assert_eq!(
            flag_error("--metrics.buckets-per-octave 3"),
            "--metrics.buckets-per-octave: invalid value '3'; allowed: 1, 2, 4"
        );
        assert_eq!(
            flag_error("--bpf.stats=1"),
            "--bpf.stats: invalid value '1'; allowed: true, false"
        );
    }

    #[test]
    fn a_bad_command_line_is_one_line() {
        for (args, expected) in [
            (
                "--web.listenaddress=x",
                "--web.listenaddress: unknown flag; did you mean --web.listen-address?",
            ),
            (
                "agent --web.listen x",
                "--web.listen: unknown flag; did you mean --web.listen-address?",
            ),
            ("--bogus", "--bogus: unknown flag; see sentry --help"),
            ("-x", "-x: unknown flag; see sentry --help"),
            (
                "--format json",
                "--format: unknown flag; did you mean --log.format?",
            ),
            (
                "foo",
                "foo: unknown command; allowed: agent, check, top, trace",
            ),
            (
                "chek",
                "chek: unknown command; allowed: agent, check, top, trace",
            ),
            (
                "agent check",
                "check: unknown command; allowed: agent, check, top, trace",
            ),
            (
                "-- foo",
                "foo: unknown command; allowed: agent, check, top, trace",
            ),
            (
                "--bpf.stats maybe",
                "maybe: unknown command; allowed: agent, check, top, trace",
            ),
            (
                "--log.level",
                "--log.level: a value is needed; allowed: error, warn, info, debug, trace",
            ),
            ("--config.file", "--config.file: a value is needed"),
            ("--path.procfs=", "--path.procfs: a value is needed"),
            (
                "--log.level info --log.level warn",
                "--log.level: given more than once",
            ),
            (
                "--help=1",
                "unexpected value '1' for '--help' found; no more were expected",
            ),
        ] {
            assert_eq!(flag_error(args), expected, "{args}");
        }
    }

    #[test]
    fn layers_hold_behind_a_double_dash() {
        assert_eq!(
            agent("--", &[("SENTRY_SERIES_MAX", "200")], None).series_max,
            200
        );
    }

    #[test]
    fn errors_of_each_layer_name_their_place() {
        assert_eq!(
            error("", &[("SENTRY_LOG_LEVEL", "loud")], None),
            "environment SENTRY_LOG_LEVEL: invalid value 'loud'; allowed: error, warn, info, debug, trace"
        );
        let text = "# a comment\nweb:\n  listen-address: x\n";
        assert_eq!(
            file_error(text),
            "config file /etc/sentry.yaml:3: web.listen-address: invalid value 'x'; allowed: HOST:PORT, \
             where HOST is an IP address, localhost, or nothing for all addresses"
        );
        assert_eq!(
            error(
                "",
                &[("SENTRY_CONFIG_FILE", "/etc/sentry.yaml")],
                Some("series.max: 1")
            ),
            "config file /etc/sentry.yaml:1: series.max: invalid value '1'; allowed: a number from 64 to 32000"
        );
        assert_eq!(
            file_error("log.level: ''"),
            "config file /etc/sentry.yaml:1: log.level: a value is needed; \
             allowed: error, warn, info, debug, trace"
        );
    }

    #[test]
    fn control_characters_cannot_break_the_line() {
        assert_eq!(
            error("", &[("SENTRY_LOG_LEVEL", "a\nb\u{1b}[0m")], None),
            "environment SENTRY_LOG_LEVEL: invalid value 'a\\nb\\u{1b}[0m'; \
             allowed: error, warn, info, debug, trace"
        );
        assert_eq!(
            file_error("log.level: |\n  a\n  b\n"),
            "config file /etc/sentry.yaml:1: log.level: invalid value 'a\\nb\\n'; \
             allowed: error, warn, info, debug, trace"
        );
    }

    #[test]
    fn a_file_may_hold_nothing() {
        for text in [
            "",
            "# only a comment\n",
            "---\n",
            "{}",
            "web:\n",
            "web: {}\n",
            "log.level:\nprobes: null\n",
        ] {
            assert_eq!(from_file(text), defaults(), "{text:?}");
        }
    }

    #[test]
    fn a_bad_file_is_one_line() {
        for (text, expected) in [
            (
                "web.listenaddress: x",
                ":1: web.listenaddress: unknown key; did you mean web.listen-address?",
            ),
            (
                "\nweb:\n  listenaddress: x\n",
                ":3: web.listenaddress: unknown key; did you mean web.listen-address?",
            ),
            (
                "colour: red",
                ":1: colour: unknown key; allowed: aggregate-by, bpf.stats, btf, disk.exemplars, disk.hook, kubernetes.kubeconfig, kubernetes.node, kubernetes.pod-labels, log.format, log.level, \
                 metrics.buckets-per-octave, metrics.classic-histograms, metrics.created, otlp.ca-file, otlp.endpoint, otlp.headers, \
                 otlp.interval, otlp.protocol, overhead.budget, overhead.interval, path.procfs, path.rootfs, path.sysfs, probes, series.max, series.retention, \
                 tcp.exemplars, tcp.hook, web.config.file, web.enable-lifecycle, web.listen-address, web.telemetry-path",
            ),
            (
                "web.listenaddress:",
                ":1: web.listenaddress: unknown key; did you mean web.listen-address?",
            ),
            (
                "log.levels: {}",
                ":1: log.levels: unknown key; did you mean log.level?",
            ),
            (
                "web: x",
                ":1: web: a section, which has no value; allowed: web.config.file, web.enable-lifecycle, web.listen-address, web.telemetry-path",
            ),
            (
                "web: [x]",
                ":1: web: a section, which has no value; allowed: web.config.file, web.enable-lifecycle, web.listen-address, web.telemetry-path",
            ),
            (
                "log.level: {a: b}",
                ":1: log.level: a mapping; allowed: one value",
            ),
            (
                "log:\n  level: [info]",
                ":2: log.level: a list; allowed: one value",
            ),
            (
                "log.level: info\nlog.level: warn",
                ":2: log.level: duplicate key, first on line 1",
            ),
            (
                "log.level: info\nlog:\n  level: warn",
                ":3: log.level: duplicate key, first on line 1",
            ),
            (
                "log: {level: info}\nlog: {format: json}",
                ":2: log: duplicate key, first on line 1",
            ),
            (
                "- log.level",
                ": not a mapping; allowed: lines such as 'log.level: info'",
            ),
            (
                "hello",
                ": not a mapping; allowed: lines such as 'log.level: info'",
            ),
            ("probes: [tcp", ":1:9: not valid YAML: unclosed bracket '['"),
            (
                "a: b\n c: d\n",
                ":2:3: not valid YAML: mapping values are not allowed in this context",
            ),
            (
                "log.level: info\n---\nlog.level: warn\n",
                ":3:1: not valid YAML: only single YAML document expected but multiple found",
            ),
            (
                "bpf.stats: yes",
                ":1: bpf.stats: invalid value 'yes'; allowed: true, false",
            ),
            (
                "series.max: 1.5",
                ":1: series.max: invalid value '1.5'; allowed: a number from 64 to 32000",
            ),
            (
                "series.max: .inf",
                ":1: series.max: invalid value '.inf'; allowed: a number from 64 to 32000",
            ),
            (
                "series.max: -64",
                ":1: series.max: invalid value '-64'; allowed: a number from 64 to 32000",
            ),
        ] {
            assert_eq!(
                file_error(text),
                format!("config file /etc/sentry.yaml{expected}"),
                "{text:?}"
            );
        }
        let keyed = file_error("config.file: /x");
        assert!(
            keyed
                .starts_with("config file /etc/sentry.yaml:1: config.file: unknown key; allowed: "),
            "{keyed}"
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_is_one_line() {
        let read = |path: &str| {
            let args = ["sentry", "--config.file", path].map(OsString::from);
            load(args, [], &*PROBES).unwrap_err().to_string()
        };
        assert_eq!(
            read("/nonexistent/sentry.yaml"),
            "config file /nonexistent/sentry.yaml: cannot be read: No such file or directory (os error 2)"
        );
        assert_eq!(
            read("/"),
            "config file /: cannot be read: Is a directory (os error 21)"
        );
    }

    #[test]
    fn a_file_on_disk_is_read() {
        let path =
            std::env::temp_dir().join(format!("sentry-config-test-{}.yaml", std::process::id()));
        std::fs::write(&path, "series.max: 100\n").unwrap();
        let args = [
            "sentry".into(),
            "--config.file".into(),
            path.clone().into_os_string(),
        ];
        let command = load(args, [], &*PROBES);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            command.unwrap(),
            Command::Agent(Config {
                series_max: 100,
                file: Some(path),
                probes_of_file: true,
                ..defaults()
            })
        );
    }

    #[test]
    fn help_teaches_every_setting() {
        for args in ["--help", "-h", "help", "agent --help", "check --help"] {
            let text = help(args);
            for (name, _) in ALL_ENV {
                assert!(text.contains(&format!("[env: {name}]")), "{args}: {name}");
            }
            for heading in ["Web:", "Probes:", "Series:", "Logging:", "Paths:"] {
                assert!(
                    text.contains(&format!("\n{heading}\n")),
                    "{args}: {heading}"
                );
            }
        }
        assert!(help("--help").contains("\nExamples:\n  sentry check  "));
        assert!(help("check --help").contains("sentry check --format json"));
        assert!(
            help("--help")
                .contains("[env: SENTRY_TCP_HOOK] [default: auto] [possible values: auto, tp_btf]")
        );
        assert_eq!(
            help("--version"),
            format!("sentry {}\n", env!("CARGO_PKG_VERSION"))
        );
    }
}
