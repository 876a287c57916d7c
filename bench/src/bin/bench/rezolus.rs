//! Sentry beside Rezolus, each with its default settings (Sentry without a budget) and by all that it has attached: what
//! its programs take for an event, its maps, its memory.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    Args, CGROUPS, Connects, Process, Programs, Reads, agent, collect, is_disk, memory_bytes,
    program_ids, programs_since,
    results::{Cell, Results, Table, measured},
    scrape_often,
    workloads::{Peer, mortal, peer},
};

/// Where Rezolus' agent serves, and the exporter that makes Prometheus' format of it.
const AGENT: &str = "127.0.0.1:4241";
const EXPORTER: &str = "127.0.0.1:4242";

/// Rezolus' agent with all samplers, as its package has it.
pub(crate) fn rezolus(bin: &Path) -> Result<Peer> {
    let text = format!(
        "[general]\nlisten = \"{AGENT}\"\n[scheduler]\n[log]\n[defaults]\nenabled = true\n[samplers]\n"
    );
    peer(&["rezolus", &configuration(bin, "rezolus.toml", &text)?])
}

/// Writes a configuration. Its path.
fn configuration(bin: &Path, name: &str, text: &str) -> Result<String> {
    let path = bin.join(name).display().to_string();
    fs::write(&path, text).with_context(|| path.clone())?;
    Ok(path)
}

enum Agent {
    Sentry(Process),
    Rezolus(Peer),
}

/// One of the two, at work.
struct Observer {
    /// That attaches programs.
    agent: Agent,
    exporter: Option<Process>,
    address: SocketAddr,
    programs: Programs,
}

impl Observer {
    fn sentry(bin: &Path) -> Result<Self> {
        let before = program_ids()?;
        let (process, address, _) = agent(bin, &[])?;
        Ok(Self {
            agent: Agent::Sentry(process),
            exporter: None,
            address,
            programs: programs_since(&before, "sentry")?,
        })
    }

    fn rezolus(bin: &Path) -> Result<Self> {
        let text = format!(
            "[general]\nlisten = \"{EXPORTER}\"\nsource = \"{AGENT}\"\n[log]\n[prometheus]\n"
        );
        let path = configuration(bin, "rezolus-exporter.toml", &text)?;
        let before = program_ids()?;
        let agent = rezolus(bin)?;
        let mut exporter = mortal("rezolus");
        exporter.args(["exporter", &path]);
        let exporter = exporter.stdout(Stdio::null()).stderr(Stdio::null());
        let exporter = Process(exporter.spawn().context("rezolus exporter")?);
        Ok(Self {
            agent: Agent::Rezolus(agent),
            exporter: Some(exporter),
            address: EXPORTER.parse()?,
            programs: programs_since(&before, "rezolus")?,
        })
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        let agent = match &self.agent {
            Agent::Sentry(process) | Agent::Rezolus(Peer(process)) => process,
        };
        [agent].into_iter().chain(&self.exporter)
    }

    /// Of its processes; of pages that they share, to each its part.
    fn resident(&self) -> Result<f64> {
        self.processes()
            .map(|process| memory_bytes(process, "smaps_rollup", "Pss:"))
            .sum()
    }

    /// What its maps take in the kernel, by what the kernel says of each that a process has open.
    fn maps(&self) -> Result<f64> {
        let mut maps = BTreeMap::new();
        for process in self.processes() {
            for entry in fs::read_dir(format!("/proc/{}/fdinfo", process.0.id()))?.flatten() {
                // It may have been closed meanwhile.
                let text = fs::read_to_string(entry.path()).unwrap_or_default();
                let of = |key: &str| {
                    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
                    Some(line.trim().to_owned())
                };
                if let (Some(id), Some(bytes)) = (of("map_id:"), of("memlock:")) {
                    maps.insert(id, bytes.parse::<f64>()?);
                }
            }
        }
        Ok(maps.values().sum())
    }
}

/// What is measured of each, in the order of its rows: what it is, unit, decimals.
const ROWS: [(&str, &str, usize); 6] = [
    ("its programs of the disk, an I/O", "ns", 0),
    ("all its programs, an I/O", "ns", 0),
    ("all its programs, a connection", "ns", 0),
    ("programs", "", 0),
    ("maps", "MB", 2),
    (
        "resident memory of its processes, scraped 20 times",
        "MB",
        1,
    ),
];

/// Both, each alone, in turns. The kernel's BPF statistics are on.
pub(crate) fn beside(bin: &Path, args: &Args, results: &mut Results) -> Result<()> {
    let (reads, connects) = (Reads::new(CGROUPS, args.reads)?, Connects::new(bin, args)?);
    let mut table = Table::new(
        "Beside Rezolus",
        format!(
            "Each alone with its default settings: Sentry with all probes and without a budget, Rezolus with all samplers \
             and its exporter, reads of {}, connections as above, {} rounds: median, least and greatest. All its programs: \
             also those of other events that come meanwhile, such as switches of context and system calls.",
            reads.who(),
            args.rounds
        ),
        &["what", "Sentry", "Rezolus"],
    );
    let is_there = Command::new("rezolus").arg("--version").output().is_ok();
    if !is_there {
        table.row(
            "not measured: no `rezolus` in the `PATH`",
            vec![Cell::text(""), Cell::text("")],
        );
        return results.add(table);
    }
    let start: [fn(&Path) -> Result<Observer>; 2] = [Observer::sentry, Observer::rezolus];
    let mut samples: [[Vec<f64>; ROWS.len()]; 2] = Default::default();
    for round in 0..args.rounds {
        for number in [round % 2, 1 - round % 2] {
            let observer = start[number](bin)?;
            reads.run(bin)?;
            connects.run(bin)?;
            if let Agent::Sentry(_) = observer.agent {
                collect(observer.address)?;
            }
            let all = |_: &str| true;
            let (disk, before) = (
                observer.programs.runs(is_disk)?,
                observer.programs.runs(all)?,
            );
            let ios = reads.run(bin)?;
            let disk = observer.programs.runs(is_disk)?.since(disk).ns_per(ios);
            let an_io = observer.programs.runs(all)?.since(before).ns_per(ios);
            let before = observer.programs.runs(all)?;
            let connections = connects.run(bin)?;
            let a_connection = observer.programs.runs(all)?.since(before);
            scrape_often(observer.address)?;
            #[allow(clippy::cast_precision_loss)] // some programs
            let measured = [
                disk,
                an_io,
                a_connection.ns_per(connections),
                observer.programs.ids.len() as f64,
                observer.maps()? / 1e6,
                observer.resident()? / 1e6,
            ];
            for (samples, value) in samples[number].iter_mut().zip(measured) {
                samples.push(value);
            }
        }
    }
    for (place, (what, unit, decimals)) in ROWS.into_iter().enumerate() {
        let of = |number: usize| measured(&samples[number][place], unit, decimals).into();
        table.row(what, vec![of(0), of(1)]);
    }
    results.add(table)
}
