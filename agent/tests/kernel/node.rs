//! A node as a kubelet and its runtimes lay it out: cgroups in every tree, state files, and an API server that knows the
//! pods.

use crate::agent::{Agent, sentry};
use crate::host::{Folder, IoController, is_v1_only, roots, wait_for};
use crate::load;
use sentry_bench::cgroup::CgroupRoots;
use sentry_bench::kubernetes::{ApiServer, Options, Pod};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Its name.
pub(crate) const NAME: &str = "node-1";

/// How long the watch may take to tell of a change.
const WATCH_PATIENCE: Duration = Duration::from_secs(20);

/// The n-th id of a container.
pub(crate) fn id(number: u64) -> String {
    format!("{:064x}", (0xc0_ffee_u128 << 64) + u128::from(number))
}

/// The n-th UID of a pod.
pub(crate) fn uid(number: u64) -> String {
    format!("0a1b2c3d-4e5f-4a6b-8c7d-{number:012x}")
}

/// A pod's slice, below that of its class: `kubepods-burstable-pod0a1b2c3d_..._....slice`.
pub(crate) fn slice(class: &str, number: u64) -> String {
    let uid = uid(number).replace('-', "_");
    let of_class = format!("kubepods-{class}.slice");
    match class {
        "" => format!("/kubepods.slice/kubepods-pod{uid}.slice"),
        _ => format!("/kubepods.slice/{of_class}/kubepods-{class}-pod{uid}.slice"),
    }
}

pub(crate) struct Node {
    pub(crate) api: ApiServer,
    folder: Folder,
    /// Folders of cgroups that were made, each after the one around it.
    made: RefCell<Vec<PathBuf>>,
    _io: IoController,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let api = ApiServer::start(options).unwrap();
        let folder = Folder::new();
        let authority = folder.path().join("ca.crt");
        fs::write(&authority, api.authority().unwrap_or_default()).unwrap();
        let kubeconfig = api.kubeconfig(authority.to_str().unwrap());
        fs::write(folder.path().join("kubeconfig"), kubeconfig).unwrap();
        fs::create_dir(folder.path().join("rootfs")).unwrap();
        Self {
            api,
            folder,
            made: RefCell::default(),
            _io: IoController::on(),
        }
    }

    /// Where the state of runtimes is.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.folder.path().join("rootfs")
    }

    /// What the agent must be told to know this node.
    pub(crate) fn flags(&self) -> String {
        format!(
            "--path.rootfs {} --kubernetes.node {NAME} --kubernetes.kubeconfig {}",
            self.rootfs().display(),
            self.folder.path().join("kubeconfig").display()
        )
    }

    /// The agent on this node, that knows all of its pods.
    pub(crate) fn agent(&self, flags: &str) -> Agent {
        let agent = Agent::spawn(self.command(flags));
        wait_until_up(&agent);
        agent
    }

    pub(crate) fn command(&self, flags: &str) -> Command {
        sentry(&format!("{} {flags}", self.flags()))
    }

    /// Tells the API server of a pod, and waits until the agent knows it.
    pub(crate) fn announce(&self, agent: &Agent, pod: &Pod) {
        let known = || agent.scrape().value("sentry_kubernetes_pods", &[]);
        let before = known();
        self.api.apply(pod);
        wait_for("pod", WATCH_PATIENCE, || (known() > before).then_some(()));
    }

    /// Makes a cgroup in every tree, with those around it, and returns it as one.
    pub(crate) fn cgroup(&self, path: &str) -> Seat {
        let CgroupRoots { v2, blkio } = roots();
        let mut folders = vec![self.make(v2, path)];
        if v2 != blkio {
            folders.push(self.make(blkio, path));
        }
        Seat {
            path: path.to_owned(),
            folders,
        }
    }

    fn make(&self, root: &Path, path: &str) -> PathBuf {
        let pure_v2 = roots().v2 == roots().blkio && !is_v1_only();
        let mut folder = root.to_owned();
        for name in path.trim_matches('/').split('/') {
            let around = folder.clone();
            folder.push(name);
            if folder.exists() {
                continue;
            }
            if pure_v2 {
                // As the kubelet does it, without which the I/O in a cgroup belongs to the one around it.
                fs::write(around.join("cgroup.subtree_control"), "+io +memory").unwrap();
            }
            fs::create_dir(&folder).unwrap();
            self.made.borrow_mut().push(folder.clone());
        }
        folder
    }

    /// Takes a cgroup away, as runtimes do when the last process is gone.
    pub(crate) fn remove(&self, seat: &Seat) {
        for folder in &seat.folders {
            remove(folder);
        }
        let mut made = self.made.borrow_mut();
        made.retain(|folder| !seat.folders.contains(folder));
    }

    /// The same for the cgroup of its pod, around it.
    pub(crate) fn remove_pod(&self, seat: &Seat) {
        self.remove(seat);
        let around = |path: &Path| path.parent().unwrap().to_owned();
        self.remove(&Seat {
            path: around(Path::new(&seat.path)).display().to_string(),
            folders: seat.folders.iter().map(|folder| around(folder)).collect(),
        });
    }

    /// Writes what containerd says of a container of a pod.
    pub(crate) fn containerd_state(&self, id: &str, pod: &Pod, container: &str) {
        let annotations = json!({
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": container,
            "io.kubernetes.cri.sandbox-name": pod.name,
            "io.kubernetes.cri.sandbox-namespace": pod.namespace,
            "io.kubernetes.cri.sandbox-uid": pod.uid,
        });
        let folder = format!("run/containerd/io.containerd.runtime.v2.task/k8s.io/{id}");
        self.state(&folder, "config.json", &json!({"annotations": annotations}));
    }

    /// Writes what Docker says of a container.
    pub(crate) fn docker_state(&self, id: &str, name: &str) {
        let state = json!({"ID": id, "Name": format!("/{name}"), "Config": {"Labels": {}}});
        self.state(
            &format!("var/lib/docker/containers/{id}"),
            "config.v2.json",
            &state,
        );
    }

    fn state(&self, folder: &str, file: &str, state: &Value) {
        let folder = self.rootfs().join(folder);
        fs::create_dir_all(&folder).unwrap();
        // Runtimes let nobody else look in.
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
        fs::write(folder.join(file), state.to_string()).unwrap();
    }

    /// Takes the state of a container of containerd away, as it does itself when one has ended.
    pub(crate) fn forget_state(&self, id: &str) {
        let folder = "run/containerd/io.containerd.runtime.v2.task/k8s.io";
        fs::remove_dir_all(self.rootfs().join(folder).join(id)).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let made = self.made.take();
        for folder in made.iter().rev() {
            remove(folder);
        }
    }
}

/// A process that has just ended may still be in it.
fn remove(folder: &Path) {
    let busy = |error: std::io::Error| error.kind() == std::io::ErrorKind::ResourceBusy;
    wait_for("end of a cgroup", Duration::from_secs(5), || {
        let removed = fs::remove_dir(folder);
        (!removed.is_err_and(busy)).then_some(())
    });
}

/// Waits until the agent has listed the pods and watches them.
pub(crate) fn wait_until_up(agent: &Agent) {
    wait_for("watch", WATCH_PATIENCE, || {
        let up = agent.scrape().value("sentry_kubernetes_watch_up", &[]);
        (up == 1.0).then_some(())
    });
}

/// A cgroup in every tree, for processes.
#[derive(Debug)]
pub(crate) struct Seat {
    /// From the root of its hierarchy.
    pub(crate) path: String,
    pub(crate) folders: Vec<PathBuf>,
}

impl Seat {
    /// A command that joins it and then becomes the program that its further arguments name.
    pub(crate) fn enter(&self) -> Command {
        let script = "while [ \"$1\" != -- ]; do echo 0 >\"$1/cgroup.procs\"; shift; done; shift; exec \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-euc", script, "sh"]).args(&self.folders);
        command.arg("--");
        command
    }

    /// A command of the load generator in it.
    pub(crate) fn command(&self, args: &str) -> Command {
        let mut command = load::command(args, &[]);
        for folder in &self.folders {
            command.arg("--cgroup").arg(folder);
        }
        command
    }

    /// Runs the load generator in it; its report.
    pub(crate) fn run(&self, args: &str) -> Value {
        load::report(self.command(args))
    }
}
