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
    listener, median, met, status_bytes,
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

pub(crate) fn formats(bin: &Path) -> Result<()> {
    println!("## A scrape in each format\n");
    for pods in PODS {
        on_node(bin, pods)?;
    }
    Ok(())
}

fn on_node(bin: &Path, pods: u32) -> Result<()> {
    let node = Node::new(pods)?;
    let (both, both_at, _, _) = node.agent(bin, &[])?;
    let (native, native_at, _, _) = node.agent(bin, &["--metrics.classic-histograms=false"])?;
    let (_listener, to) = listener(bin)?;
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
    println!(
        "{pods} sets of workload labels, each with a histogram of {CONNECTS} events: {series} Prometheus series with all that is \
         on this host. `--probes tcp,disk`, medians of {ROUNDS} scrapes in turns; CPU time is the agent's, on average.\n"
    );
    let wanted = print(&mut rows);
    if pods == PODS[0] {
        println!("\nWanted: text under 10 ms ({}).", met(wanted < 10.0));
    }
    println!(
        "\n| gzip level, bytes and ms | {} |\n|---|{}",
        FORMATS.map(|(name, _)| name).join(" | "),
        "---:|".repeat(FORMATS.len())
    );
    for level in LEVELS {
        let cells: Vec<String> = rows
            .iter()
            .map(|row| {
                let (bytes, took) = compress(&row.body, level)?;
                Ok(format!("{bytes} in {:.2}", took.as_secs_f64() * 1e3))
            })
            .collect::<Result<_>>()?;
        println!("| {level} | {} |", cells.join(" | "));
    }
    println!();
    Ok(())
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

/// Prints a table of them; how long the first one takes as a whole, in milliseconds.
pub(crate) fn print(rows: &mut [Row]) -> f64 {
    println!(
        "| format | bytes | first byte | whole | CPU | bytes, gzip | first byte | whole | CPU | resident, at most |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    );
    for row in &mut *rows {
        println!(
            "| {} | {} | {} | {:.1} MB |",
            row.name,
            cells(&mut row.plain),
            cells(&mut row.gzip),
            row.peak / 1e6,
        );
    }
    median(&mut rows[0].plain.whole)
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

fn cells(scrapes: &mut Scrapes) -> String {
    #[allow(clippy::cast_precision_loss)] // some scrapes
    let cpu = scrapes.cpu * 10.0 / scrapes.whole.len() as f64;
    format!(
        "{} | {:.2} ms | {:.2} ms | {cpu:.1} ms",
        scrapes.bytes,
        median(&mut scrapes.first_byte),
        median(&mut scrapes.whole),
    )
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
