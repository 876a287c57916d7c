//! The image, unpacked: its program in a root that has nothing else, as the user and with the capabilities that the
//! manifests give it.

use crate::agent::{Agent, without_settings};
use crate::host::{output, skipped, turn};
use crate::privileges::{
    BOTH, DAC_READ_SEARCH, assert_connects, assert_left, checked, fact, field,
};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// What `deploy/kubernetes` adds to none.
const ADDED: u64 = BOTH | DAC_READ_SEARCH;

/// A root of the image, with proc and sys where a runtime mounts them, read-only, and out of everybody else's sight.
/// capsh changes into it, where there is no other program; it takes what is to be dropped by its number.
const ENTER: &str = r#"
root=$0 drop=$1
shift
mount --bind "$root" "$root"
mkdir -p "$root/proc" "$root/sys"
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -o remount,bind,ro "$root"
exec capsh --chroot="$root" --drop="$drop" --gid=65532 --uid=65532 --shell=/sentry -- "$@"
"#;

/// Where `make test` has unpacked the image; none where that is not who runs the test.
fn root(test: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SENTRY_IMAGE_ROOT").map(PathBuf::from);
    if root.is_none() {
        skipped(
            test,
            "SENTRY_IMAGE_ROOT names no unpacked image: `make test` builds one",
        );
    }
    root
}

/// All capabilities of this kernel but these, by their numbers, as capsh takes what is to be dropped.
pub(crate) fn all_but(bounding: u64) -> String {
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
    let dropped: Vec<String> = (0..=last.trim().parse::<u32>().unwrap())
        .filter(|number| bounding & 1 << number == 0)
        .map(|number| number.to_string())
        .collect();
    dropped.join(",")
}

/// A command of the image's program that may come to these capabilities.
fn in_image(root: &PathBuf, bounding: u64, args: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private"])
        .args(["sh", "-euc", ENTER])
        .arg(root)
        .arg(all_but(bounding))
        .args(args.split_whitespace());
    without_settings(&mut command);
    command
}

#[test]
fn its_program_runs_in_an_empty_root() {
    turn!("its_program_runs_in_an_empty_root");
    let Some(root) = root("its_program_runs_in_an_empty_root") else {
        return;
    };
    let version = output(in_image(&root, 0, "--version"));
    let stdout = String::from_utf8(version.stdout).unwrap();
    assert_eq!(
        stdout,
        format!("sentry {}\n", env!("CARGO_PKG_VERSION")),
        "{}",
        String::from_utf8_lossy(&version.stderr)
    );
    // What a runtime makes besides is where it mounts.
    let names: BTreeSet<_> = fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["proc", "sentry", "sys"].map(str::to_owned).into());

    let check = "check --probes tcp,disk --format json";
    let report = checked(in_image(&root, ADDED, check));
    assert_eq!(
        fact(&report, "privileges").0,
        "CAP_BPF and CAP_PERFMON are there"
    );
    assert_eq!(
        fact(&report, "capabilities").0,
        "CAP_BPF, CAP_PERFMON, CAP_DAC_READ_SEARCH, as uid 65532"
    );

    let agent = Agent::spawn(in_image(&root, ADDED, "--probes tcp,disk"));
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    assert_eq!(field(&status, "Uid:"), "65532\t65532\t65532\t65532");
    assert_eq!(field(&status, "Gid:"), "65532\t65532\t65532\t65532");
    let scrape = agent.scrape();
    let up = scrape.value("sentry_probe_up", &[("probe", "tcp"), ("hook", "tp_btf")]);
    assert_eq!(up, 1.0, "{}", agent.log());
    // The names of containers are in folders of root's.
    let left = BOTH | DAC_READ_SEARCH;
    assert_left(&agent, left, left);
    assert_connects(&agent);
    agent.stop();
}

#[test]
fn without_capabilities_it_says_so() {
    turn!("without_capabilities_it_says_so");
    let Some(root) = root("without_capabilities_it_says_so") else {
        return;
    };
    let refused = output(in_image(&root, 0, ""));
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert_eq!(
        stderr,
        "sentry: missing privileges: CAP_BPF and CAP_PERFMON needed to load eBPF programs; run as root, or grant them to the binary; `make demo` shows the agent in a virtual machine\n"
    );
}
