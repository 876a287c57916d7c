//! The bucket function of the programs, the very C, against exact arithmetic.
#![allow(clippy::unwrap_used)] // a test

use std::{
    io::{Read, Write},
    path::PathBuf,
    process::{Command, Stdio},
    sync::LazyLock,
    thread,
};

use num_bigint::BigUint;

/// Nanoseconds of the last value that belongs to each bucket but the last: the floor of
/// 10^9 * 2^((i - 72) / 4), computed as a fourth root of integers.
fn last_ns_of_bucket() -> Vec<u64> {
    let second = BigUint::from(10u32).pow(36);
    (0..=88i32)
        .map(|edge| {
            let exponent = edge - 72;
            let power = if exponent < 0 {
                &second >> exponent.unsigned_abs()
            } else {
                &second << exponent.unsigned_abs()
            };
            u64::try_from(power.nth_root(4)).unwrap()
        })
        .collect()
}

/// The C function, compiled for the host: reads durations, writes buckets.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let source = folder.join("bucket.c");
    let program = folder.join("bucket");
    std::fs::write(
        &source,
        "#include <stdio.h>\n#include \"histogram.h\"\n\
         int main(void) { __u64 ns; while (fread(&ns, 8, 1, stdin) == 1) putchar(histogram_bucket_of(ns)); }\n",
    )
    .unwrap();
    let compiled = Command::new("clang")
        .args(["-O2", "-Wall", "-Werror", "-I"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/bpf"))
        .arg(&source)
        .arg("-o")
        .arg(&program)
        .status()
        .unwrap();
    assert!(compiled.success());
    program
});

/// Runs the C function over values.
fn buckets(values: &[u64]) -> Vec<u8> {
    let mut child = Command::new(&*PROGRAM)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes: Vec<u8> = values.iter().flat_map(|ns| ns.to_ne_bytes()).collect();
    let writer = thread::spawn(move || stdin.write_all(&bytes).unwrap());
    let mut buckets = Vec::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut buckets)
        .unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(buckets.len(), values.len());
    buckets
}

/// Asserts that each value is in its exact bucket; within 1 ns of an edge, in either of its two.
fn check(values: &[u64]) {
    let edges = last_ns_of_bucket();
    for (ns, bucket) in values.iter().zip(buckets(values)) {
        let exact = edges.partition_point(|edge| edge < ns);
        let bucket = usize::from(bucket);
        if bucket != exact {
            let edge = edges[exact.min(bucket)];
            assert!(
                bucket.abs_diff(exact) == 1 && ns.abs_diff(edge) <= 1,
                "{ns} ns is in bucket {bucket}, and belongs into {exact}"
            );
        }
    }
}

#[test]
fn edges_are_powers_of_two_in_seconds() {
    let edges = last_ns_of_bucket();
    assert_eq!(edges[0], 3814); // 2^-18 s
    assert_eq!(edges[72], 1_000_000_000);
    assert_eq!(edges[73], 1_189_207_115); // 2^(1/4) s
    assert_eq!(edges[88], 16_000_000_000);
    for (bucket, ns) in edges.iter().enumerate() {
        #[allow(clippy::cast_precision_loss)]
        let difference = probes::bucket_edge_seconds(bucket) * 1e9 - *ns as f64;
        assert!(
            (-1e-3..1.0).contains(&difference),
            "bucket {bucket}: {difference}"
        );
    }
    assert!(probes::bucket_edge_seconds(89).is_infinite());
}

#[test]
fn every_edge_is_where_it_belongs() {
    let mut values: Vec<u64> = last_ns_of_bucket()
        .into_iter()
        .flat_map(|edge| edge - 20..=edge + 20)
        .collect();
    values.extend([
        0,
        1,
        2,
        100,
        u64::MAX,
        u64::MAX - 1,
        1 << 63,
        17_179_869_184,
    ]);
    check(&values);
    let of = |ns: u64| buckets(&[ns])[0];
    assert_eq!(of(0), 0);
    assert_eq!(of(999_999_990), 72);
    assert_eq!(of(1_000_000_010), 73);
    assert_eq!(of(16_000_000_001), 89);
    assert_eq!(of(u64::MAX), 89);
}

/// Spread evenly over the exponents, from nanoseconds to a minute.
#[test]
fn ten_million_values_are_in_their_buckets() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let values: Vec<u64> = (0..10_000_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let bits = state % 37;
            (state >> 20) & ((1 << bits) - 1) | 1 << bits
        })
        .collect();
    check(&values);
}
