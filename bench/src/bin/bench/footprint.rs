//! What the agent takes when it is started: memory and where that is, the size of its file, and the time to be ready.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    agent, get,
    results::{Results, Table, measured},
    scrape_often, sum,
};

pub(crate) fn footprint(bin: &Path, results: &mut Results) -> Result<()> {
    let ready: Vec<f64> = (0..5)
        .map(|_| Ok(agent(bin, &[])?.2.as_secs_f64() * 1e3))
        .collect::<Result<_>>()?;
    let (process, address, _) = agent(bin, &[])?;
    scrape_often(address)?;
    let metrics = get(address, "/metrics")?;
    // The gpu probe's come with the first program that uses CUDA.
    let maps = "sentry_bpf_map_memory_bytes{";
    let maps = sum(&metrics, maps) - sum(&metrics, &format!("{maps}map=\"gpu_"));
    let path = format!("/proc/{}/smaps", process.0.id());
    let parts = parts(&fs::read_to_string(&path).context(path)?);
    let resident = parts.values().sum::<f64>();
    let ready = measured(&ready, "ms", 0);
    #[allow(clippy::cast_precision_loss)] // some megabytes
    let executable = fs::metadata(bin.join("sentry"))?.len() as f64;
    let mut table = Table::new(
        "Footprint",
        format!(
            "All probes, default ceiling of 256 series, {}.",
            if metrics.contains("sentry_bpf_map_memory_bytes{map=\"gpu_") {
                "with CUDA on this host"
            } else {
                "no CUDA on this host"
            },
        ),
        &["what", "measured"],
    );
    table.row(
        "BPF maps, without those that come with CUDA",
        vec![measured(&[maps], "bytes", 0).into()],
    );
    table.row(
        "resident memory of the agent, scraped 20 times",
        vec![measured(&[resident / 1e6], "MB", 1).into()],
    );
    for (part, bytes) in parts.iter().filter(|(_, bytes)| **bytes > 0.0) {
        table.row(
            format!("of it, {part}"),
            vec![measured(&[bytes / 1e6], "MB", 2).into()],
        );
    }
    table.row("start to `/readyz`", vec![ready.clone().into()]);
    table.row(
        "executable",
        vec![measured(&[executable / 1e6], "MB", 1).into()],
    );
    table.want("at most 160,000 bytes of maps", maps <= 160_000.0);
    table.want("at most 8 MB resident", resident <= 8e6);
    table.want("an executable of at most 10 MB", executable <= 10e6);
    table.want("ready in at most 300 ms", ready.median() <= 300.0);
    results.add(table)
}

/// Resident bytes by what they hold, from the text of `/proc/PID/smaps` (`proc_pid_smaps(5)`).
fn parts(smaps: &str) -> BTreeMap<&'static str, f64> {
    let mut parts = BTreeMap::new();
    let mut part = "";
    for line in smaps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["Rss:", kib, "kB"] => {
                *parts.entry(part).or_default() += kib.parse::<f64>().unwrap_or(0.0) * 1024.0;
            }
            [range, permissions, _, _, _, ref path @ ..] if range.contains('-') => {
                part = part_of(permissions, path.first().copied().unwrap_or_default());
            }
            _ => {}
        }
    }
    parts
}

fn part_of(permissions: &str, path: &str) -> &'static str {
    match path {
        "[heap]" => "the heap",
        "" => "stacks of threads and other memory without a name",
        _ if path.starts_with('[') => "the first stack, and what the kernel maps",
        _ if path.contains("bpf-map") => "BPF maps that are mapped",
        _ if path.ends_with("/sentry") && permissions.contains('x') => {
            "code that ran, and what lies around it"
        }
        _ if path.ends_with("/sentry") => "the program's constants and variables",
        _ => "libraries",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_has_its_parts() {
        let smaps = "\
55d0-55e0 r--p 00000000 fe:00 12 /usr/bin/sentry
Size:                 64 kB
Rss:                  12 kB
VmFlags: rd mr mw me
55e0-55f0 r-xp 00000000 fe:00 12 /usr/bin/sentry
Rss:                  40 kB
55f0-5600 rw-p 00000000 fe:00 12 /usr/bin/sentry
Rss:                   4 kB
5600-5700 rw-p 00000000 00:00 0 [heap]
Rss:                 300 kB
7f00-7f10 rw-p 00000000 00:00 0
Rss:                  20 kB
7f10-7f20 rw-s 00000000 00:0e 8 anon_inode:bpf-map
Rss:                  96 kB
7fff-8000 rw-p 00000000 00:00 0 [stack]
Rss:                   8 kB
7f30-7f40 r-xp 00000000 fe:00 13 /lib/x86_64-linux-gnu/libc.so.6
Rss:                   1 kB
";
        let found: Vec<(&str, f64)> = parts(smaps).into_iter().collect();
        let expected = [
            ("BPF maps that are mapped", 96.0),
            ("code that ran, and what lies around it", 40.0),
            ("libraries", 1.0),
            ("stacks of threads and other memory without a name", 20.0),
            ("the first stack, and what the kernel maps", 8.0),
            ("the heap", 300.0),
            ("the program's constants and variables", 16.0),
        ];
        assert_eq!(found, expected.map(|(part, kib)| (part, kib * 1024.0)));
    }
}
