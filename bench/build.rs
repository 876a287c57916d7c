//! Compiles the empty programs that the costs are held against.

use std::{
    env,
    path::PathBuf,
    process::{Command, exit},
};

fn main() {
    println!("cargo::rerun-if-changed=src/empty.bpf.c");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let object = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("empty.bpf.o");
    let compiled = Command::new("clang")
        .args([
            "-target", "bpf", "-mcpu=v3", "-O2", "-g", "-Wall", "-Werror",
        ])
        .arg(format!("-I/usr/include/{arch}-linux-gnu"))
        .args(["-c", "src/empty.bpf.c", "-o"])
        .arg(object)
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        println!(
            "cargo::error=empty.bpf.c does not compile: install the packages clang, libbpf-dev and linux-libc-dev"
        );
        exit(1);
    }
}
