//! The demo's load: a node's usual suspects, in cgroups named as Kubernetes and systemd name them.

use anyhow::Context;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{sleep, spawn};
use std::time::Duration;

/// Where cgroups are made.
const ROOT: &str = "/sys/fs/cgroup";

/// A pod's cgroup, as containerd has it under systemd, is these with numbers between.
const PODS: [(&str, &str, &str); 3] = [
    (
        "burstable",
        "0b1c2d3e_4f50_4a61_8b72_93a4b5c6d7e8",
        "checkout",
    ),
    (
        "besteffort",
        "5f6e7d8c_9b0a_4c1d_8e2f_a3b4c5d6e7f8",
        "crawler",
    ),
    (
        "burstable",
        "c7d8e9fa_0b1c_4d2e_9f30_41526374859a",
        "database",
    ),
];

/// The path of a pod's container below the root.
fn container(class: &str, uid: &str, seed: &str) -> String {
    // 64 hexadecimal digits, as container ids have.
    let bytes = seed.bytes().cycle().take(32);
    let id = bytes.fold(String::new(), |id, byte| format!("{id}{byte:02x}"));
    format!(
        "kubepods.slice/kubepods-{class}.slice/kubepods-{class}-pod{uid}.slice/cri-containerd-{id}.scope"
    )
}

/// A cgroup, made with all above it; disk I/O is told apart in it.
fn cgroup(path: &str) -> anyhow::Result<PathBuf> {
    let mut folder = PathBuf::from(ROOT);
    for part in Path::new(path) {
        let control = folder.join("cgroup.subtree_control");
        fs::write(&control, "+io").with_context(|| control.display().to_string())?;
        folder.push(part);
        fs::create_dir_all(&folder)?;
    }
    Ok(folder)
}

/// One kind of work, done again and again in a cgroup of its own.
struct Work {
    cgroup: PathBuf,
    args: String,
    pause: Duration,
}

/// Starts the load, which goes on until the machine goes.
///
/// # Errors
/// When a cgroup cannot be made or the load generator not be started.
pub fn start(load: &Path, disk: &Path) -> anyhow::Result<()> {
    let disk = disk.display();
    let [checkout, crawler, database] = PODS.map(|(class, uid, seed)| container(class, uid, seed));
    let web = cgroup("system.slice/nginx.service")?;
    let backup = cgroup("system.slice/backup.service")?;
    let (checkout, crawler, database) = (cgroup(&checkout)?, cgroup(&crawler)?, cgroup(&database)?);
    // Its other end stays open for as long as this process lives.
    let mut server = Command::new(load)
        .args(["listen", "--port", "8080", "--cgroup"])
        .arg(&web)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let open = server.stdin.take();
    let works = [
        (
            &checkout,
            "connect --to 127.0.0.1:8080 --count 40".to_owned(),
            400,
        ),
        (
            &crawler,
            "connect --to 127.0.0.1:8080 --count 5 --rst".to_owned(),
            900,
        ),
        // Nobody listens there.
        (
            &crawler,
            "connect --to 127.0.0.1:1 --count 3".to_owned(),
            1500,
        ),
        (
            &database,
            format!("write --file {disk} --direct --count 50 --size 16384 --fsync-each"),
            300,
        ),
        (
            &database,
            format!("read --file {disk} --direct --count 100 --size 4096"),
            500,
        ),
        (
            &backup,
            format!("read --file {disk} --direct --count 32 --size 1048576"),
            5000,
        ),
    ];
    for (cgroup, args, pause_ms) in works {
        let work = Work {
            cgroup: cgroup.clone(),
            args,
            pause: Duration::from_millis(pause_ms),
        };
        let load = load.to_owned();
        spawn(move || {
            loop {
                work.once(&load);
                sleep(work.pause);
            }
        });
    }
    spawn(move || {
        let _open = open;
        server.wait()
    });
    Ok(())
}

impl Work {
    fn once(&self, load: &Path) {
        let done = Command::new(load)
            .args(self.args.split(' '))
            .arg("--cgroup")
            .arg(&self.cgroup)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        if !done.as_ref().is_ok_and(std::process::ExitStatus::success) {
            println!("load {}: {done:?}", self.args);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_named_as_containerd_names_them() {
        let (class, uid, seed) = PODS[0];
        assert_eq!(
            container(class, uid, seed),
            "kubepods.slice/kubepods-burstable.slice/\
             kubepods-burstable-pod0b1c2d3e_4f50_4a61_8b72_93a4b5c6d7e8.slice/\
             cri-containerd-636865636b6f7574636865636b6f7574636865636b6f7574636865636b6f7574.scope"
        );
    }
}
