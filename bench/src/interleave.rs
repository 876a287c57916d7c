//! Reads that come from another cgroup each time: the worst case for whatever remembers the last owner.

use crate::disk::{buffer_of, check_sizes, file_bytes, open_to_read};
use crate::{Error, Result, cgroup, join_thread};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write, stdin, stdout};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The name of [`work`]'s subcommand.
pub const WORKER: &str = "interleave-worker";

/// What to read, and from which cgroups.
#[derive(Debug, Clone, clap::Args)]
pub struct InterleaveArgs {
    /// A file or block device
    #[arg(long, value_name = "PATH")]
    pub file: PathBuf,
    /// Rounds: reads from each cgroup
    #[arg(long)]
    pub count: NonZeroU64,
    /// Bytes of each read
    #[arg(long, value_name = "BYTES", default_value = "4096")]
    pub size: NonZeroU64,
    /// Cgroup of one reader; repeated, once for each reader, in the order of the reads. A,B joins two hierarchies
    #[arg(long = "cgroup", value_name = "DIR", required = true, value_parser = parse_cgroups)]
    pub cgroups: Vec<Cgroups>,
    /// Readers are threads of one process, which only cgroup v1 can part, and all read at once instead of in turns
    #[arg(long)]
    pub threads: bool,
}

/// The cgroups of one reader, one for each hierarchy.
pub type Cgroups = std::sync::Arc<[PathBuf]>;

#[expect(clippy::unnecessary_wraps, reason = "what clap calls")]
fn parse_cgroups(text: &str) -> std::result::Result<Cgroups, String> {
    Ok(text.split(',').map(PathBuf::from).collect())
}

/// What one reader is told at its start.
#[derive(Debug, Clone, clap::Args)]
pub struct WorkerArgs {
    #[arg(long)]
    file: PathBuf,
    #[arg(long)]
    size: NonZeroU64,
    #[arg(long = "cgroup")]
    cgroups: Vec<PathBuf>,
}

/// What was done.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterleaveReport {
    /// Reads, all readers together.
    pub operations: u64,
    /// Bytes read, all readers together.
    pub bytes: u64,
    /// What each reader did, in their order.
    pub readers: Vec<ReaderReport>,
}

/// What one reader did.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReaderReport {
    /// Its cgroups.
    pub cgroups: Vec<PathBuf>,
    /// Its reads.
    pub operations: u64,
}

/// One reader process: it is sent an offset, reads there, and sends back the number of bytes.
#[derive(Debug)]
struct Reader {
    process: Child,
    offsets: ChildStdin,
    answers: ChildStdout,
}

impl Reader {
    fn start(args: &InterleaveArgs, cgroups: &[PathBuf]) -> Result<Self> {
        let this = std::env::current_exe().map_err(Error::io("find this program"))?;
        let mut command = Command::new(this);
        command.arg(WORKER).arg("--file").arg(&args.file);
        command.arg("--size").arg(args.size.to_string());
        for cgroup in cgroups {
            command.arg("--cgroup").arg(cgroup);
        }
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Error::io("start a reader"))?;
        match (process.stdin.take(), process.stdout.take()) {
            (Some(offsets), Some(answers)) => Ok(Self {
                process,
                offsets,
                answers,
            }),
            _ => Err(Error::program(WORKER, "has no pipes")),
        }
    }

    fn read(&mut self, offset: u64) -> Result<u64> {
        let mut answer = [0; 8];
        self.offsets
            .write_all(&offset.to_ne_bytes())
            .and_then(|()| self.answers.read_exact(&mut answer))
            // The reader has said why on standard error.
            .map_err(|_| Error::program(WORKER, "ended early"))?;
        Ok(u64::from_ne_bytes(answer))
    }

    fn finish(mut self) -> Result<()> {
        drop(self.offsets);
        let status = self
            .process
            .wait()
            .map_err(Error::io("wait for a reader"))?;
        if status.success() {
            Ok(())
        } else {
            Err(Error::program(WORKER, status.to_string()))
        }
    }
}

/// Reads with `O_DIRECT`, each read from the next cgroup, in strict turns. Runs in the binary `load` only, which it
/// starts once for each cgroup.
///
/// # Errors
/// When a reader cannot be started, cannot join its cgroup, or a read fails.
pub fn run(args: &InterleaveArgs) -> Result<InterleaveReport> {
    let size = args.size.get();
    let span = file_bytes(&mut open_to_read(&args.file, true)?, &args.file)?;
    check_sizes(&args.file, size, span, true)?;
    if args.threads {
        read_at_once(args, span)?;
        return Ok(report(args));
    }
    let mut readers = args
        .cgroups
        .iter()
        .map(|cgroups| Reader::start(args, cgroups))
        .collect::<Result<Vec<_>>>()?;
    let mut turn = 0;
    for _ in 0..args.count.get() {
        for reader in &mut readers {
            reader.read(turn % (span / size) * size)?;
            turn += 1;
        }
    }
    readers.into_iter().try_for_each(Reader::finish)?;
    Ok(report(args))
}

/// What has been done once no read has failed.
fn report(args: &InterleaveArgs) -> InterleaveReport {
    let operations = args.count.get();
    let total = operations * args.cgroups.len() as u64;
    InterleaveReport {
        operations: total,
        bytes: total * args.size.get(),
        readers: args
            .cgroups
            .iter()
            .map(|cgroups| ReaderReport {
                cgroups: cgroups.to_vec(),
                operations,
            })
            .collect(),
    }
}

/// Readers that are threads and all read at once, as the workloads of a busy host do.
fn read_at_once(args: &InterleaveArgs, span: u64) -> Result<()> {
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..)
            .zip(&args.cgroups)
            .map(|(number, cgroups)| {
                scope.spawn(move || reader_thread(args, span, number, cgroups))
            })
            .collect();
        readers.into_iter().try_for_each(join_thread)
    })
}

fn reader_thread(args: &InterleaveArgs, span: u64, number: u64, cgroups: &[PathBuf]) -> Result<()> {
    let (size, readers) = (args.size.get(), args.cgroups.len() as u64);
    for cgroup in cgroups {
        cgroup::add_thread(cgroup)?;
    }
    let file = open_to_read(&args.file, true)?;
    let mut buffer = buffer_of(size)?;
    for round in 0..args.count.get() {
        let place = round * readers + number;
        file.read_exact_at(buffer.as_mut_slice(), place % (span / size) * size)
            .map_err(Error::at("read", &args.file))?;
    }
    Ok(())
}

/// The work of one reader process, until its standard input closes.
///
/// # Errors
/// When it cannot join its cgroup, or a read fails or is short.
pub fn work(args: &WorkerArgs) -> Result<()> {
    cgroup::join(&args.cgroups)?;
    let file = open_to_read(&args.file, true)?;
    let mut buffer = buffer_of(args.size.get())?;
    let (mut stdin, mut stdout) = (stdin().lock(), stdout().lock());
    let mut offset = [0; 8];
    while stdin.read_exact(&mut offset).is_ok() {
        file.read_exact_at(buffer.as_mut_slice(), u64::from_ne_bytes(offset))
            .map_err(Error::at("read", &args.file))?;
        stdout
            .write_all(&args.size.get().to_ne_bytes())
            .and_then(|()| stdout.flush())
            .map_err(Error::io("answer"))?;
    }
    Ok(())
}
