//! Generates real TCP handshakes and disk I/O, and prints exactly what it did as one JSON object.

use clap::Parser;
use sentry_bench::{
    Result, cgroup, churn, connect, disk, interleave, listen, print, race, storm, tour, tun_client,
    tun_peer,
};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "load", version, about)]
enum Load {
    /// Accept connections until standard input closes; the port comes first, on a line of its own
    Listen(listen::ListenArgs),
    /// Connect so many times
    Connect(connect::ConnectArgs),
    /// Connect as fast as it goes
    Storm(storm::StormArgs),
    /// Write so many times
    Write(disk::WriteArgs),
    /// Read so many times, or for so long
    Read(disk::ReadArgs),
    /// Read from many cgroups in strict turns
    Interleave(interleave::InterleaveArgs),
    #[command(name = interleave::WORKER, hide = true)]
    InterleaveWorker(interleave::WorkerArgs),
    /// Make and remove cgroups, with one connect from each
    Churn(churn::ChurnArgs),
    /// Go from cgroup to cgroup, and connect once from each
    Tour(tour::TourArgs),
    /// Connect from two CPUs at the same instant, in a fresh cgroup each time
    Race(race::RaceArgs),
    /// Answer SYNs late, behind a TUN interface, until standard input closes; a line comes first when it is up
    TunPeer(tun_peer::TunPeerArgs),
    /// Connect from behind a TUN interface and end the handshakes late, until standard input closes; a line comes first
    /// when the SYNs are sent
    TunClient(tun_client::TunClientArgs),
}

fn main() -> ExitCode {
    match run(&Load::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(load: &Load) -> Result<()> {
    // Cgroups come first: a socket belongs to the cgroup in which it was made.
    match load {
        Load::Listen(args) => {
            cgroup::join(&args.cgroups)?;
            print(&listen::run(args)?)
        }
        Load::Connect(args) => {
            cgroup::join(&args.cgroups)?;
            print(&connect::run(args)?)
        }
        Load::Storm(args) => {
            cgroup::join(&args.cgroups)?;
            print(&storm::run(args)?)
        }
        Load::Write(args) => {
            cgroup::join(&args.cgroups)?;
            print(&disk::write(args)?)
        }
        Load::Read(args) => {
            cgroup::join(&args.cgroups)?;
            print(&disk::read(args)?)
        }
        Load::Interleave(args) => print(&interleave::run(args)?),
        Load::InterleaveWorker(args) => interleave::work(args),
        Load::Churn(args) => print(&churn::run(args)?),
        Load::Tour(args) => print(&tour::run(args)?),
        Load::Race(args) => print(&race::run(args)?),
        Load::TunPeer(args) => print(&tun_peer::run(args)?),
        Load::TunClient(args) => print(&tun_client::run(args)?),
    }
}
