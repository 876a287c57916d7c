//! What a scrape takes in each format, plain and compressed, and what each level of gzip would make of it.

use std::{
    fs,
    io::Write,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, write::GzEncoder};

use super::{
    Process,
    kubernetes::{Node, Scrapes},
    listener,
    results::{Cell, Results, Table, measured},
    status_bytes,
};

/// Pods with one container each that connects: few as on most nodes, and as many as there can be. A histogram, at one
/// bucket an octave, is 26 Prometheus series.
const PODS: [u32; 2] = [38, 1000];

/// Connects from each container, so that its histogram has several buckets.
const CONNECTS: usize = 8;

/// Scrapes of each sort, in turns.
const ROUNDS: usize = 21;

const LEVELS: [u32; 6] = [1, 2, 3, 4, 6, 9];

/// What a step hands to the compressor, as the agent does.
const FRAME_BYTES: usize = 32 * 1024;

/// How to ask for each format. The last one comes from an agent without classic histograms.
const FORMATS: [(&str, &str); 4] = [
    ("text 0.0.4", "text/plain;version=0.0.4"),
    ("OpenMetrics", "application/openmetrics-text;version=1.0.0"),
    ("protobuf", PROTOBUF),
    ("protobuf, native histograms only", PROTOBUF),
];
const PROTOBUF: &str =
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

pub(crate) fn formats(bin: &Path, results: &mut Results) -> Result<()> {
    PODS.into_iter()
        .try_for_each(|pods| on_node(bin, pods, results))
}

fn on_node(bin: &Path, pods: u32, results: &mut Results) -> Result<()> {
    let node = Node::new(pods)?;
    let (both, both_at, _, _) = node.agent(bin, &[])?;
    let (native, native_at, _, _) = node.agent(bin, &["--metrics.classic-histograms=false"])?;
    let (_listener, to) = listener(bin, None)?;
    for _ in 0..CONNECTS {
        node.tour(bin, &to)?;
    }

    let mut rows = rows((&both, both_at), (&native, native_at));
    for _ in 0..ROUNDS {
        rows.iter_mut().try_for_each(Row::scrape)?;
    }

    let text = String::from_utf8_lossy(&rows[0].body);
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let counted = "sentry_tcp_handshake_duration_seconds_count{namespace=\"shop\"";
    let histograms = text.lines().filter(|line| line.starts_with(counted));
    ensure!(
        histograms.count() >= pods as usize,
        "a pod has no histogram"
    );
    let mut table = table(
        &format!("A scrape in each format, {pods} sets of workload labels"),
        format!(
            "Each with a histogram of {CONNECTS} events: {series} Prometheus series with all that is on this host. \
             `--probes tcp,disk`, medians of {ROUNDS} scrapes in turns, least and greatest; CPU time is the agent's, \
             on average."
        ),
        &rows,
    );
    if pods == PODS[0] {
        let whole = measured(&rows[0].plain.whole, "ms", 2).median();
        table.want("text in under 10 ms", whole < 10.0);
    }
    results.add(table)?;

    let mut columns = vec!["level"];
    columns.extend(FORMATS.map(|(name, _)| name));
    let mut table = Table::new(
        &format!("gzip by level, {pods} sets of workload labels"),
        "What a level makes of the same answer, in how long.",
        &columns,
    );
    for level in LEVELS {
        let cells: Vec<Cell> = rows
            .iter()
            .map(|row| {
                let (bytes, took) = compress(&row.body, level)?;
                let ms = took.as_secs_f64() * 1e3;
                Ok(Cell::text(format!("{bytes} bytes in {ms:.2} ms")))
            })
            .collect::<Result<_>>()?;
        table.row(level.to_string(), cells);
    }
    results.add(table)
}

/// Each format, of an agent with both kinds of histograms and of one with native ones alone.
pub(crate) fn rows<'a>(
    both: (&'a Process, SocketAddr),
    native: (&'a Process, SocketAddr),
) -> Vec<Row<'a>> {
    let rows = FORMATS.iter().enumerate();
    rows.map(|(place, (name, accept))| {
        let (process, address) = if place == 3 { native } else { both };
        Row {
            name,
            accept,
            process,
            address,
            plain: Scrapes::default(),
            gzip: Scrapes::default(),
            peak: 0.0,
            body: Vec::new(),
        }
    })
    .collect()
}

/// A table of them.
pub(crate) fn table(title: &str, about: String, rows: &[Row]) -> Table {
    let mut table = Table::new(
        title,
        about,
        &[
            "format",
            "size",
            "first byte",
            "whole",
            "CPU",
            "gzip: size",
            "first byte",
            "whole",
            "CPU",
            "resident, at most",
        ],
    );
    for row in rows {
        let mut cells = cells(&row.plain);
        cells.extend(self::cells(&row.gzip));
        cells.push(measured(&[row.peak / 1e6], "MB", 1).into());
        table.row(row.name, cells);
    }
    table
}

/// A format, and what its scrapes took.
pub(crate) struct Row<'a> {
    name: &'a str,
    accept: &'a str,
    process: &'a Process,
    address: SocketAddr,
    plain: Scrapes,
    gzip: Scrapes,
    /// The most memory that was resident meanwhile, in bytes.
    peak: f64,
    pub(crate) body: Vec<u8>,
}

impl Row<'_> {
    /// Scrapes once plain and once compressed.
    pub(crate) fn scrape(&mut self) -> Result<()> {
        // From here on its peak is that of this scrape.
        fs::write(format!("/proc/{}/clear_refs", self.process.0.id()), "5")?;
        let accept = format!("Accept: {}\r\n", self.accept);
        let answer = self.plain.scrape(self.process, self.address, &accept)?;
        self.body = body(&answer)?;
        let gzip = format!("{accept}Accept-Encoding: gzip\r\n");
        self.gzip.scrape(self.process, self.address, &gzip)?;
        self.peak = self.peak.max(status_bytes(self.process, "VmHWM:")?);
        Ok(())
    }
}

#[allow(clippy::cast_precision_loss)] // some scrapes, some megabytes
fn cells(scrapes: &Scrapes) -> Vec<Cell> {
    let cpu = scrapes.cpu * 10.0 / scrapes.whole.len() as f64;
    vec![
        measured(&[scrapes.bytes as f64], "bytes", 0).into(),
        measured(&scrapes.first_byte, "ms", 2).into(),
        measured(&scrapes.whole, "ms", 2).into(),
        measured(&[cpu], "ms", 1).into(),
    ]
}

/// What an answer holds, out of its chunks.
fn body(answer: &[u8]) -> Result<Vec<u8>> {
    let end = |bytes: &[u8], mark: &[u8]| bytes.windows(mark.len()).position(|some| some == mark);
    let head = end(answer, b"\r\n\r\n").context("no head")?;
    let mut rest = &answer[head + 4..];
    if !String::from_utf8_lossy(&answer[..head]).contains("transfer-encoding: chunked") {
        return Ok(rest.to_vec());
    }
    let mut whole = Vec::new();
    loop {
        let line = end(rest, b"\r\n").context("a broken chunk")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line])?, 16)?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Ok(whole);
        }
        whole.extend(rest.get(..size).context("a short chunk")?);
        rest = rest.get(size + 2..).context("a short chunk")?;
    }
}

/// How small a level makes it, and the median of how long that takes.
fn compress(body: &[u8], level: u32) -> Result<(usize, Duration)> {
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..5 {
        let start = Instant::now();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        for frame in body.chunks(FRAME_BYTES) {
            encoder.write_all(frame)?;
        }
        bytes = encoder.finish()?.len();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok((bytes, times[times.len() / 2]))
}
