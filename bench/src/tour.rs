//! One process that goes from cgroup to cgroup and connects once from each.

use crate::connect::{Client, Tally};
use crate::{Error, Result, cgroup};
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where to go, and what to connect to.
#[derive(Debug, Clone, clap::Args)]
pub struct TourArgs {
    /// A cgroup of the v2 hierarchy: those below it that have none in them are visited
    #[arg(long, value_name = "DIR")]
    pub below: PathBuf,
    /// Address and port of a listener
    #[arg(long, value_name = "ADDR:PORT")]
    pub to: SocketAddr,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TourReport {
    /// Cgroups visited.
    pub cgroups: u64,
    /// The outcomes.
    #[serde(flatten)]
    pub tally: Tally,
}

/// Visits all cgroups, in no order.
///
/// # Errors
/// When a cgroup cannot be listed or joined; a failed connect is an outcome.
pub fn run(args: &TourArgs) -> Result<TourReport> {
    let mut report = TourReport::default();
    let mut folders = vec![args.below.clone()];
    while let Some(folder) = folders.pop() {
        let within = folders_in(&folder)?;
        if within.is_empty() {
            cgroup::join(&[&folder])?;
            let client = Client::open(args.to)?;
            report.tally.count(client.connect(args.to));
            client.reset()?;
            report.cgroups += 1;
        }
        folders.extend(within);
    }
    Ok(report)
}

fn folders_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::at("list", folder))?;
    let folders = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path());
    Ok(folders.collect())
}
