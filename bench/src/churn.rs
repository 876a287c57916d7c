//! Short-lived cgroups, each with a short-lived process that connects once.

use crate::connect::{ConnectReport, Tally};
use crate::{Error, Result, cgroup};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Which cgroups to make, and what to connect to from them.
#[derive(Debug, Clone, clap::Args)]
pub struct ChurnArgs {
    /// Where in the v2 hierarchy to make them
    #[arg(long, value_name = "DIR")]
    pub v2_root: PathBuf,
    /// Where in a v1 hierarchy to make one of the same name each
    #[arg(long, value_name = "DIR")]
    pub v1_root: Option<PathBuf>,
    /// What their names begin with; a number follows
    #[arg(long)]
    pub prefix: String,
    /// How many
    #[arg(long)]
    pub count: u64,
    /// Address and port of a listener
    #[arg(long, value_name = "ADDR:PORT")]
    pub to: SocketAddr,
    /// Leave the cgroups there
    #[arg(long)]
    pub keep: bool,
}

/// What was done.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct ChurnReport {
    /// Cgroups made, counted once for both hierarchies.
    pub cgroups: u64,
    /// The outcomes.
    #[serde(flatten)]
    pub tally: Tally,
    /// How long it took.
    pub seconds: f64,
}

/// Makes a cgroup, connects once from a process in it and removes it, time after time. Runs in the binary `load` only,
/// which it starts once for each cgroup.
///
/// # Errors
/// When a cgroup cannot be made, joined or removed; a failed connect is an outcome.
pub fn run(args: &ChurnArgs) -> Result<ChurnReport> {
    let this = std::env::current_exe().map_err(Error::io("find this program"))?;
    let start = Instant::now();
    let mut report = ChurnReport {
        cgroups: 0,
        tally: Tally::default(),
        seconds: 0.0,
    };
    for number in 0..args.count {
        let name = format!("{}-{number}", args.prefix);
        let cgroups: Vec<_> = [Some(&args.v2_root), args.v1_root.as_ref()]
            .into_iter()
            .flatten()
            .map(|root| root.join(&name))
            .collect();
        let mut made = Vec::new();
        let result = cgroups
            .iter()
            .try_for_each(|cgroup| cgroup::create(cgroup).map(|()| made.push(cgroup)))
            .and_then(|()| connect_from(&this, &cgroups, args.to));
        // Only what was made here is removed, and that also when the connect could not be tried.
        let removed = if args.keep {
            Ok(())
        } else {
            made.into_iter()
                .try_for_each(|cgroup| cgroup::remove(cgroup))
        };
        report.tally.add(&result?);
        removed?;
        report.cgroups += 1;
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

/// Runs `load connect` in these cgroups.
fn connect_from(this: &Path, cgroups: &[PathBuf], to: SocketAddr) -> Result<Tally> {
    let mut command = Command::new(this);
    command
        .args(["connect", "--rst", "--to"])
        .arg(to.to_string());
    for cgroup in cgroups {
        command.arg("--cgroup").arg(cgroup);
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(Error::io("start a process that connects"))?;
    if !output.status.success() {
        return Err(Error::program("load connect", output.status.to_string()));
    }
    serde_json::from_slice::<ConnectReport>(&output.stdout)
        .map(|report| report.tally)
        .map_err(|error| Error::program("load connect", error.to_string()))
}
