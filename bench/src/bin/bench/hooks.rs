//! What an event costs on each rung of the ladders of hooks, beside empty programs on the same hooks.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, KProbe, RawTracePoint, TracePoint},
};

use crate::{
    Args, CGROUPS, Connects, Programs, Reads, Runs, agent, collect, empty_programs, is_disk,
    is_tcp, program_ids, programs_since,
    results::{Cell, Results, Table, measured},
};

/// A rung: a probe, its hook, and the empty programs that are where the probe's are.
struct Rung {
    probe: &'static str,
    hook: &'static str,
    empty: &'static [(&'static str, At)],
}

/// Where an empty program is attached.
#[derive(Debug, Clone, Copy)]
enum At {
    Btf(&'static str),
    Kprobe(&'static str),
    Raw(&'static str),
    /// Category and event.
    Tracepoint(&'static str, &'static str),
}

const LADDER: [Rung; 6] = [
    Rung {
        probe: "tcp",
        hook: "tp_btf",
        empty: &[("empty_tcp", At::Btf("inet_sock_set_state"))],
    },
    Rung {
        probe: "tcp",
        hook: "kprobe",
        empty: &[("empty_tcp_probe", At::Kprobe("tcp_set_state"))],
    },
    Rung {
        probe: "tcp",
        hook: "tracepoint",
        empty: &[(
            "empty_tcp_class",
            At::Tracepoint("sock", "inet_sock_set_state"),
        )],
    },
    Rung {
        probe: "disk",
        hook: "tp_btf",
        empty: &[("empty_disk", At::Btf("block_rq_complete"))],
    },
    Rung {
        probe: "disk",
        hook: "raw_tp",
        empty: &[("empty_disk_raw", At::Raw("block_rq_complete"))],
    },
    Rung {
        probe: "disk",
        hook: "tracepoint",
        empty: &[
            ("empty_disk_make", At::Tracepoint("block", "block_getrq")),
            ("empty_disk_send", At::Tracepoint("block", "block_rq_issue")),
            (
                "empty_disk_done",
                At::Tracepoint("block", "block_rq_complete"),
            ),
        ],
    },
];

fn attach(empty: &mut Ebpf, name: &str, at: At) -> Result<()> {
    let program = empty
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    match at {
        At::Btf(event) => {
            let program: &mut BtfTracePoint = program.try_into()?;
            program.load(event, &Btf::from_sys_fs()?)?;
            program.attach()?;
        }
        At::Kprobe(function) => {
            let program: &mut KProbe = program.try_into()?;
            program.load()?;
            program.attach(function, 0)?;
        }
        At::Raw(event) => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()?;
            program.attach(event)?;
        }
        At::Tracepoint(category, event) => {
            let program: &mut TracePoint = program.try_into()?;
            program.load()?;
            program.attach(category, event)?;
        }
    }
    Ok(())
}

/// Each rung alone, beside its empty programs alone, in turn.
pub(crate) fn ladder(bin: &Path, args: &Args, results: &mut Results) -> Result<()> {
    let (reads, connects) = (Reads::new(CGROUPS, args.reads)?, Connects::new(bin, args)?);
    let mut table = Table::new(
        "Each hook of the ladders",
        format!(
            "A disk I/O and a TCP connection as above, each attached alone, in turn, {} rounds; median, least and \
             greatest. `tracepoint` of the disk is three programs an I/O.",
            args.rounds
        ),
        &["probe and hook", "empty", "Sentry", "Sentry over empty"],
    );
    for rung in LADDER {
        let load = || match rung.probe {
            "tcp" => connects.run(bin),
            _ => reads.run(bin),
        };
        let cost = |programs: &Programs, address: Option<SocketAddr>| -> Result<f64> {
            let runs = || -> Result<Runs> {
                match rung.probe {
                    "tcp" => programs.runs(is_tcp),
                    _ => programs.runs(is_disk),
                }
            };
            // Once so that all is in place, and once to measure.
            load()?;
            if let Some(address) = address {
                collect(address)?;
            }
            let before = runs()?;
            let events = load()?;
            let runs = runs()?.since(before);
            Ok(match rung.probe {
                "tcp" => runs.ns_per(events),
                // Others of the host do I/O too, so by its own count.
                _ => runs.ns_per(runs.count / rung.empty.len() as u64),
            })
        };
        let once = || -> Result<[f64; 2]> {
            let before = program_ids()?;
            let mut empty = empty_programs()?;
            for &(name, at) in rung.empty {
                attach(&mut empty, name, at)?;
            }
            let of_empty = cost(&programs_since(&before, "empty")?, None)?;
            drop(empty);
            let before = program_ids()?;
            let flag = format!("--{}.hook", rung.probe);
            let (_process, address, _) = agent(bin, &["--probes", rung.probe, &flag, rung.hook])?;
            let of_sentry = cost(&programs_since(&before, "sentry")?, Some(address))?;
            Ok([of_empty, of_sentry])
        };
        let name = format!("{}, `{}`", rung.probe, rung.hook);
        match (0..args.rounds).map(|_| once()).collect::<Result<Vec<_>>>() {
            Ok(costs) => {
                let of = |value: &dyn Fn(&[f64; 2]) -> f64| -> Vec<f64> {
                    costs.iter().map(value).collect()
                };
                table.row(
                    name,
                    vec![
                        measured(&of(&|[empty, _]| *empty), "ns", 0).into(),
                        measured(&of(&|[_, sentry]| *sentry), "ns", 0).into(),
                        measured(&of(&|[empty, sentry]| sentry / empty), "", 2).into(),
                    ],
                );
            }
            // A kernel may lack a hook, or this system what finds it.
            Err(error) => {
                let why = format!("not measured: {error:#}");
                table.row(name, vec![Cell::text(why)]);
            }
        }
    }
    results.add(table)
}
