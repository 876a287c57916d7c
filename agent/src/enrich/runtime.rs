//! Names of containers from the files in which their runtimes keep their state.
//!
//! Every runtime writes these before it makes the container's cgroup, so they can be read as soon as
//! that is there. Containers that users run without root are left out: their state lies in home
//! folders, which may be on a network that does not answer.

use std::{
    borrow::Cow,
    fs::{self, File},
    io::Read,
    path::Path,
};

use serde::Deserialize;

use super::container::{Runtime, is_id};

/// Files beyond this are not read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The longest name that Kubernetes gives; what is longer is no name.
const NAME_BYTES_MAX: usize = 253;

/// What a runtime's files say of a container.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct State {
    /// In Kubernetes the container's name in its pod, else the one given to Docker, Podman or
    /// nerdctl. A sandbox has none.
    pub(crate) name: Option<String>,
    pub(crate) pod: Option<PodOf>,
    /// Whether this is a pod's pause container.
    pub(crate) sandbox: bool,
}

/// The pod of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodOf {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// containerd's state folders: its own, those of k3s and RKE2, of k0s and of `MicroK8s`.
const CONTAINERD: [&str; 4] = [
    "run/containerd",
    "run/k3s/containerd",
    "run/k0s/containerd",
    "var/snap/microk8s/common/run/containerd",
];

/// CRI-O writes its configuration to both.
const CRIO: [&str; 2] = [
    "run/containers/storage/overlay-containers",
    "var/lib/containers/storage/overlay-containers",
];

/// Podman's lists: of containers, of those that go when they end (`--rm`), and of all where nothing
/// is to survive a restart.
const PODMAN: [&str; 3] = [
    "var/lib/containers/storage/overlay-containers/containers.json",
    "var/lib/containers/storage/overlay-containers/volatile-containers.json",
    "run/containers/storage/overlay-containers/volatile-containers.json",
];

/// Docker's own folder and that of its snap.
const DOCKER: [&str; 2] = [
    "var/lib/docker/containers",
    "var/snap/docker/common/var-lib-docker/containers",
];

/// Whether a runtime keeps its state below the host's root. Folders that hide what is in them pass for
/// there.
pub(crate) fn is_there(rootfs: &Path) -> bool {
    let folders = CONTAINERD.iter().chain(&CRIO).chain(&DOCKER);
    folders
        .map(|folder| rootfs.join(folder))
        .any(|folder| match fs::metadata(folder) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
        })
}

/// What the files below the host's root say of a container; `None` where they are missing, cannot be
/// read or make no sense.
pub(crate) fn state(rootfs: &Path, runtime: Runtime, id: &str) -> Option<State> {
    // It becomes part of a path.
    if !is_id(id) {
        return None;
    }
    match runtime {
        Runtime::Containerd => of_containerd(rootfs, id),
        Runtime::CriO => CRIO.iter().find_map(|folder| {
            crio(&read(
                &rootfs.join(folder).join(id).join("userdata/config.json"),
            )?)
        }),
        Runtime::Docker => of_docker(rootfs, id),
        Runtime::Podman => PODMAN
            .iter()
            .find_map(|list| podman(&read(&rootfs.join(list))?, id)),
        // Docker's containers are also in containerd, without a name.
        Runtime::Unknown => of_containerd(rootfs, id)
            .filter(|state| *state != State::default())
            .or_else(|| of_docker(rootfs, id)),
        Runtime::Garden | Runtime::Lxc | Runtime::Machined => None,
    }
}

fn of_containerd(rootfs: &Path, id: &str) -> Option<State> {
    CONTAINERD.iter().find_map(|folder| {
        let tasks = rootfs.join(folder).join("io.containerd.runtime.v2.task");
        let of = |namespace: &Path| {
            containerd(&read(&tasks.join(namespace).join(id).join("config.json"))?)
        };
        of(Path::new("k8s.io")).or_else(|| {
            fs::read_dir(&tasks)
                .ok()?
                .filter_map(Result::ok)
                .find_map(|namespace| of(Path::new(&namespace.file_name())))
        })
    })
}

fn of_docker(rootfs: &Path, id: &str) -> Option<State> {
    DOCKER
        .iter()
        .find_map(|folder| docker(&read(&rootfs.join(folder).join(id).join("config.v2.json"))?))
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let mut bytes = Vec::new();
    let length = file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    (length as u64 <= FILE_BYTES_MAX).then_some(bytes)
}

/// The annotations and labels that are looked at.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Labels {
    #[serde(rename = "io.kubernetes.cri.container-type")]
    cri_type: Option<String>,
    #[serde(rename = "io.kubernetes.cri.container-name")]
    cri_container: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-namespace")]
    cri_namespace: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-name")]
    cri_pod: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-uid")]
    cri_uid: Option<String>,
    #[serde(rename = "nerdctl/name")]
    nerdctl: Option<String>,
    #[serde(rename = "io.kubernetes.cri-o.ContainerType")]
    crio_type: Option<String>,
    #[serde(rename = "io.kubernetes.docker.type")]
    docker_type: Option<String>,
    // Kubelet's own.
    #[serde(rename = "io.kubernetes.container.name")]
    container: Option<String>,
    #[serde(rename = "io.kubernetes.pod.namespace")]
    namespace: Option<String>,
    #[serde(rename = "io.kubernetes.pod.name")]
    pod: Option<String>,
    #[serde(rename = "io.kubernetes.pod.uid")]
    uid: Option<String>,
}

/// The configuration that a runtime hands to runc or crun.
#[derive(Deserialize)]
struct OciConfig {
    annotations: Option<Labels>,
}

/// From containerd's configuration of a container, Kubernetes' or nerdctl's.
fn containerd(config: &[u8]) -> Option<State> {
    let config: OciConfig = serde_json::from_slice(config).ok()?;
    let labels = config.annotations.unwrap_or_default();
    let sandbox = labels.cri_type.as_deref() == Some("sandbox");
    Some(State {
        name: proper(labels.cri_container.or(labels.nerdctl)).filter(|_| !sandbox),
        pod: pod_of(labels.cri_namespace, labels.cri_pod, labels.cri_uid),
        sandbox,
    })
}

/// From CRI-O's configuration of a container.
fn crio(config: &[u8]) -> Option<State> {
    let config: OciConfig = serde_json::from_slice(config).ok()?;
    let labels = config.annotations.unwrap_or_default();
    let sandbox = labels.crio_type.as_deref() == Some("sandbox");
    Some(State {
        name: proper(labels.container).filter(|_| !sandbox),
        pod: pod_of(labels.namespace, labels.pod, labels.uid),
        sandbox,
    })
}

/// From Docker's configuration of a container.
fn docker(config: &[u8]) -> Option<State> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct DockerConfig {
        name: String,
        config: Option<Inner>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        labels: Option<Labels>,
    }

    let config: DockerConfig = serde_json::from_slice(config).ok()?;
    let name = config.name.trim_start_matches('/');
    // An image brings labels of its own, and could pose as any pod; its name is cri-dockerd's.
    let labels = config
        .config
        .and_then(|config| config.labels)
        .filter(|_| name.starts_with("k8s_"))
        .unwrap_or_default();
    let sandbox = labels.docker_type.as_deref() == Some("podsandbox");
    let name = labels.container.unwrap_or_else(|| name.to_owned());
    Some(State {
        name: proper(Some(name)).filter(|_| !sandbox),
        pod: pod_of(labels.namespace, labels.pod, labels.uid),
        sandbox,
    })
}

/// From one of Podman's lists of containers.
fn podman(list: &[u8], id: &str) -> Option<State> {
    #[derive(Deserialize)]
    struct Entry<'l> {
        #[serde(borrow)]
        id: Cow<'l, str>,
        names: Option<Vec<String>>,
    }

    let list: Vec<Entry> = serde_json::from_slice(list).ok()?;
    let entry = list.into_iter().find(|entry| entry.id == id)?;
    Some(State {
        name: proper(entry.names?.into_iter().next()),
        ..State::default()
    })
}

fn pod_of(namespace: Option<String>, name: Option<String>, uid: Option<String>) -> Option<PodOf> {
    Some(PodOf {
        namespace: proper(namespace)?,
        name: proper(name)?,
        uid: proper(uid)?,
    })
}

fn proper(name: Option<String>) -> Option<String> {
    name.filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    const ID: &str = "b81deb0b3c4d5ddeb1c3e2d4f4e2b8bd3c60ce6cc6a1cbe6b36a4b9c6f0d8e11";
    const OTHER: &str = "0f99ad5f45163ed14ab8eaf92ed34bb4a631d007f8755a7d79be614bcb0df0ef";

    const CONTAINERD_CONTAINER: &str = r#"{
  "ociVersion": "1.2.0",
  "process": {"user": {"uid": 101, "gid": 101}, "args": ["nginx", "-g", "daemon off;"], "env": ["PATH=/bin", "A=\"q\""], "cwd": "/"},
  "root": {"path": "rootfs", "readonly": true},
  "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
  "annotations": {
    "io.kubernetes.cri.container-name": "web",
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.image-name": "docker.io/library/nginx:1.29",
    "io.kubernetes.cri.sandbox-id": "0f99ad5f45163ed14ab8eaf92ed34bb4a631d007f8755a7d79be614bcb0df0ef",
    "io.kubernetes.cri.sandbox-name": "shop-5d9c",
    "io.kubernetes.cri.sandbox-namespace": "prod",
    "io.kubernetes.cri.sandbox-uid": "1e597579-417e-482f-bf65-5fe170c3aebd"
  },
  "linux": {"cgroupsPath": "kubepods-besteffort-pod1e597579_417e_482f_bf65_5fe170c3aebd.slice:cri-containerd:b81d", "resources": {"memory": {"limit": 134217728}}}
}"#;

    const CONTAINERD_SANDBOX: &str = r#"{"ociVersion": "1.2.0", "annotations": {
  "io.kubernetes.cri.container-type": "sandbox",
  "io.kubernetes.cri.podsandbox.image-name": "registry.k8s.io/pause:3.10",
  "io.kubernetes.cri.sandbox-cpu-shares": "2",
  "io.kubernetes.cri.sandbox-log-directory": "/var/log/pods/prod_shop-5d9c_1e597579-417e-482f-bf65-5fe170c3aebd",
  "io.kubernetes.cri.sandbox-name": "shop-5d9c",
  "io.kubernetes.cri.sandbox-namespace": "prod",
  "io.kubernetes.cri.sandbox-uid": "1e597579-417e-482f-bf65-5fe170c3aebd"}}"#;

    const NERDCTL: &str = r#"{"ociVersion": "1.1.0", "annotations": {
  "nerdctl/hostname": "b81deb0b3c4d", "nerdctl/name": "redis", "nerdctl/namespace": "default",
  "nerdctl/networks": "[\"bridge\"]"}}"#;

    const CRIO_CONTAINER: &str = r#"{"ociVersion": "1.2.0", "annotations": {
  "io.container.manager": "cri-o",
  "io.kubernetes.container.hash": "d3963604",
  "io.kubernetes.container.name": "web",
  "io.kubernetes.cri-o.ContainerType": "container",
  "io.kubernetes.cri-o.Labels": "{\"io.kubernetes.container.name\":\"web\"}",
  "io.kubernetes.cri-o.Metadata": "{\"name\":\"web\"}",
  "io.kubernetes.cri-o.Name": "k8s_web_shop-5d9c_prod_1e597579-417e-482f-bf65-5fe170c3aebd_0",
  "io.kubernetes.pod.name": "shop-5d9c",
  "io.kubernetes.pod.namespace": "prod",
  "io.kubernetes.pod.uid": "1e597579-417e-482f-bf65-5fe170c3aebd"}}"#;

    const CRIO_SANDBOX: &str = r#"{"ociVersion": "1.2.0", "annotations": {
  "io.container.manager": "cri-o",
  "io.kubernetes.container.name": "POD",
  "io.kubernetes.cri-o.ContainerType": "sandbox",
  "io.kubernetes.cri-o.KubeName": "shop-5d9c",
  "io.kubernetes.cri-o.Namespace": "prod",
  "io.kubernetes.pod.name": "shop-5d9c",
  "io.kubernetes.pod.namespace": "prod",
  "io.kubernetes.pod.uid": "1e597579-417e-482f-bf65-5fe170c3aebd"}}"#;

    const PODMAN_LIST: &str = r#"[
  {"id":"0f99ad5f45163ed14ab8eaf92ed34bb4a631d007f8755a7d79be614bcb0df0ef","names":["cache"],"image":"df93","layer":"7a0b",
   "metadata":"{\"image-name\":\"localhost/bb:latest\",\"name\":\"cache\",\"created-at\":1795403271}","created":"2026-11-23T03:07:51.568087115Z","flags":{"MountLabel":"","ProcessLabel":""}},
  {"id":"b81deb0b3c4d5ddeb1c3e2d4f4e2b8bd3c60ce6cc6a1cbe6b36a4b9c6f0d8e11","names":["mine"],"image":"df93","layer":"8915",
   "metadata":"{\"image-name\":\"localhost/bb:latest\",\"name\":\"mine\",\"created-at\":1795403270}","created":"2026-11-23T03:07:50.880606985Z","flags":{"MountLabel":"","ProcessLabel":""}}]"#;

    const DOCKER_CONTAINER: &str = r#"{"StreamConfig":{},"State":{"Running":true,"Pid":4242,"Health":null},
  "ID":"b81deb0b3c4d5ddeb1c3e2d4f4e2b8bd3c60ce6cc6a1cbe6b36a4b9c6f0d8e11","Created":"2026-11-23T03:07:50.88Z","Path":"nginx","Args":[],
  "Config":{"Hostname":"b81deb0b3c4d","Env":["PATH=/bin"],"Cmd":null,"Image":"nginx","Labels":{"io.kubernetes.pod.name":"posing","maintainer":"x"}},
  "Image":"sha256:df93","NetworkSettings":{"Networks":{}},"LogPath":"/x-json.log","Name":"/shop_web_1","Driver":"overlay2","RestartCount":0}"#;

    const CRI_DOCKERD_CONTAINER: &str = r#"{"ID":"b81d","Name":"/k8s_web_shop-5d9c_prod_1e597579-417e-482f-bf65-5fe170c3aebd_0",
  "Config":{"Labels":{"annotation.io.kubernetes.container.restartCount":"0","io.kubernetes.container.name":"web","io.kubernetes.docker.type":"container",
  "io.kubernetes.pod.name":"shop-5d9c","io.kubernetes.pod.namespace":"prod","io.kubernetes.pod.uid":"1e597579-417e-482f-bf65-5fe170c3aebd"}}}"#;

    const CRI_DOCKERD_SANDBOX: &str = r#"{"ID":"b81d","Name":"/k8s_POD_shop-5d9c_prod_1e597579-417e-482f-bf65-5fe170c3aebd_0",
  "Config":{"Labels":{"io.kubernetes.container.name":"POD","io.kubernetes.docker.type":"podsandbox",
  "io.kubernetes.pod.name":"shop-5d9c","io.kubernetes.pod.namespace":"prod","io.kubernetes.pod.uid":"1e597579-417e-482f-bf65-5fe170c3aebd"}}}"#;

    /// A host's root with some files, removed at the end.
    struct Rootfs(PathBuf);

    impl Rootfs {
        fn new(test: &str, files: &[(&str, &str)]) -> Self {
            let root =
                std::env::temp_dir().join(format!("sentry-runtime-{test}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            let rootfs = Self(root);
            for (path, text) in files {
                rootfs.write(path, text.as_bytes());
            }
            rootfs
        }

        fn write(&self, path: &str, bytes: &[u8]) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }

        fn state(&self, runtime: Runtime) -> Option<State> {
            state(&self.0, runtime, ID)
        }
    }

    impl Drop for Rootfs {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn in_pod(name: Option<&str>) -> State {
        State {
            name: name.map(str::to_owned),
            pod: Some(PodOf {
                namespace: "prod".to_owned(),
                name: "shop-5d9c".to_owned(),
                uid: "1e597579-417e-482f-bf65-5fe170c3aebd".to_owned(),
            }),
            sandbox: name.is_none(),
        }
    }

    fn alone(name: &str) -> State {
        State {
            name: Some(name.to_owned()),
            ..State::default()
        }
    }

    /// Runtime, file, what is in it, and the container's name: after its pod's and a slash.
    const PLACES: &[(Runtime, &str, &str, &str)] = &[
        // containerd: alone, of k3s and RKE2, of k0s, of MicroK8s, and where the path does not say who.
        (
            Runtime::Containerd,
            "run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
            CONTAINERD_CONTAINER,
            "shop-5d9c/web",
        ),
        (
            Runtime::Containerd,
            "run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
            CONTAINERD_SANDBOX,
            "shop-5d9c/",
        ),
        (
            Runtime::Containerd,
            "run/k3s/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
            CONTAINERD_CONTAINER,
            "shop-5d9c/web",
        ),
        (
            Runtime::Containerd,
            "run/k0s/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
            CONTAINERD_CONTAINER,
            "shop-5d9c/web",
        ),
        (
            Runtime::Containerd,
            "var/snap/microk8s/common/run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
            CONTAINERD_CONTAINER,
            "shop-5d9c/web",
        ),
        (
            Runtime::Unknown,
            "run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
            CONTAINERD_CONTAINER,
            "shop-5d9c/web",
        ),
        // nerdctl.
        (
            Runtime::Containerd,
            "run/containerd/io.containerd.runtime.v2.task/default/{ID}/config.json",
            NERDCTL,
            "redis",
        ),
        (
            Runtime::Unknown,
            "run/containerd/io.containerd.runtime.v2.task/default/{ID}/config.json",
            NERDCTL,
            "redis",
        ),
        (
            Runtime::CriO,
            "run/containers/storage/overlay-containers/{ID}/userdata/config.json",
            CRIO_CONTAINER,
            "shop-5d9c/web",
        ),
        (
            Runtime::CriO,
            "var/lib/containers/storage/overlay-containers/{ID}/userdata/config.json",
            CRIO_CONTAINER,
            "shop-5d9c/web",
        ),
        (
            Runtime::CriO,
            "run/containers/storage/overlay-containers/{ID}/userdata/config.json",
            CRIO_SANDBOX,
            "shop-5d9c/",
        ),
        (
            Runtime::Podman,
            "var/lib/containers/storage/overlay-containers/containers.json",
            PODMAN_LIST,
            "mine",
        ),
        (
            Runtime::Podman,
            "var/lib/containers/storage/overlay-containers/volatile-containers.json",
            PODMAN_LIST,
            "mine",
        ),
        (
            Runtime::Podman,
            "run/containers/storage/overlay-containers/volatile-containers.json",
            PODMAN_LIST,
            "mine",
        ),
        (
            Runtime::Docker,
            "var/lib/docker/containers/{ID}/config.v2.json",
            DOCKER_CONTAINER,
            "shop_web_1",
        ),
        (
            Runtime::Docker,
            "var/snap/docker/common/var-lib-docker/containers/{ID}/config.v2.json",
            DOCKER_CONTAINER,
            "shop_web_1",
        ),
        // cri-dockerd.
        (
            Runtime::Docker,
            "var/lib/docker/containers/{ID}/config.v2.json",
            CRI_DOCKERD_CONTAINER,
            "shop-5d9c/web",
        ),
        (
            Runtime::Unknown,
            "var/lib/docker/containers/{ID}/config.v2.json",
            CRI_DOCKERD_CONTAINER,
            "shop-5d9c/web",
        ),
        (
            Runtime::Docker,
            "var/lib/docker/containers/{ID}/config.v2.json",
            CRI_DOCKERD_SANDBOX,
            "shop-5d9c/",
        ),
    ];

    #[test]
    fn each_runtime_has_its_place() {
        for (runtime, path, text, name) in PLACES {
            let expected = match name.split_once('/') {
                Some((_, "")) => in_pod(None),
                Some((_, name)) => in_pod(Some(name)),
                None => alone(name),
            };
            let path = path.replace("{ID}", ID);
            let rootfs = Rootfs::new("places", &[(&path, text)]);
            assert_eq!(rootfs.state(*runtime), Some(expected), "{path}");
            // Podman's lists have that one, too.
            let other = state(&rootfs.0, *runtime, OTHER);
            assert_eq!(other.is_some(), *runtime == Runtime::Podman, "{path}");
        }
    }

    #[test]
    fn the_list_that_has_a_container_names_it() {
        let folder = "var/lib/containers/storage/overlay-containers";
        let rootfs = Rootfs::new(
            "lists",
            &[
                (
                    &format!("{folder}/containers.json"),
                    &PODMAN_LIST.replace(ID, "c0ffee"),
                ),
                (&format!("{folder}/volatile-containers.json"), PODMAN_LIST),
            ],
        );
        assert_eq!(rootfs.state(Runtime::Podman), Some(alone("mine")));
    }

    #[test]
    fn what_docker_has_in_containerd_is_named_by_docker() {
        let rootfs = Rootfs::new(
            "moby",
            &[
                (
                    &format!("run/containerd/io.containerd.runtime.v2.task/moby/{ID}/config.json"),
                    r#"{"ociVersion": "1.2.0"}"#,
                ),
                (
                    &format!("var/lib/docker/containers/{ID}/config.v2.json"),
                    DOCKER_CONTAINER,
                ),
            ],
        );
        assert_eq!(rootfs.state(Runtime::Unknown), Some(alone("shop_web_1")));
        assert_eq!(rootfs.state(Runtime::Containerd), Some(State::default()));
    }

    #[test]
    fn an_image_cannot_pose_as_a_pod() {
        let posing = CRI_DOCKERD_CONTAINER.replace("/k8s_", "/my_");
        let state = docker(posing.as_bytes()).unwrap();
        assert_eq!(
            state,
            alone("my_web_shop-5d9c_prod_1e597579-417e-482f-bf65-5fe170c3aebd_0")
        );
    }

    #[test]
    fn a_pod_is_named_whole_or_not_at_all() {
        let old = CONTAINERD_CONTAINER.replace("io.kubernetes.cri.sandbox-namespace", "x");
        assert_eq!(containerd(old.as_bytes()), Some(alone("web")));
        let empty = CONTAINERD_CONTAINER.replace("\"prod\"", "\"\"");
        assert_eq!(containerd(empty.as_bytes()), Some(alone("web")));
        let long = CONTAINERD_CONTAINER.replace("\"web\"", &format!("{:?}", "w".repeat(254)));
        assert_eq!(containerd(long.as_bytes()).unwrap().name, None);
    }

    #[test]
    fn only_an_id_becomes_part_of_a_path() {
        let rootfs = Rootfs::new(
            "escape",
            &[
                ("var/lib/docker/config.v2.json", DOCKER_CONTAINER),
                ("var/lib/docker/containers/x", ""),
            ],
        );
        for id in [
            "..",
            "../containers/..",
            "",
            "b81deb0b3c4d",
            &ID.to_uppercase(),
        ] {
            assert_eq!(state(&rootfs.0, Runtime::Docker, id), None, "{id:?}");
        }
        for named in [Runtime::Garden, Runtime::Lxc, Runtime::Machined] {
            assert_eq!(rootfs.state(named), None);
        }
    }

    #[test]
    fn broken_files_say_nothing() {
        let whole: [(Runtime, &str, &str); 4] = [
            (
                Runtime::Containerd,
                "run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json",
                CONTAINERD_CONTAINER,
            ),
            (
                Runtime::CriO,
                "run/containers/storage/overlay-containers/{ID}/userdata/config.json",
                CRIO_CONTAINER,
            ),
            (
                Runtime::Podman,
                "var/lib/containers/storage/overlay-containers/containers.json",
                PODMAN_LIST,
            ),
            (
                Runtime::Docker,
                "var/lib/docker/containers/{ID}/config.v2.json",
                DOCKER_CONTAINER,
            ),
        ];
        for (runtime, path, text) in whole {
            let path = path.replace("{ID}", ID);
            let rootfs = Rootfs::new("broken", &[(&path, text)]);
            assert!(rootfs.state(runtime).is_some());
            let none = |bytes: &[u8]| {
                rootfs.write(&path, bytes);
                assert_eq!(rootfs.state(runtime), None, "{runtime:?}");
            };
            none(b"");
            none(b"\0\xff{");
            none(b"null");
            none(b"\"text\"");
            none("[".repeat(100_000).as_bytes());
            none(
                text.replace(": \"", ":\"")
                    .replace(":\"", ":1,\"")
                    .as_bytes(),
            );
            none(format!("{text} {text}").as_bytes());
            // Too large, though it is sound.
            let large = usize::try_from(FILE_BYTES_MAX).unwrap() + 1 - text.len();
            none(format!("{text}{}", " ".repeat(large)).as_bytes());
            rootfs.write(&path, format!("{text}{}", " ".repeat(large - 1)).as_bytes());
            assert!(rootfs.state(runtime).is_some(), "{runtime:?}");
            // A folder in its place.
            fs::remove_file(rootfs.0.join(&path)).unwrap();
            fs::create_dir(rootfs.0.join(&path)).unwrap();
            assert_eq!(rootfs.state(runtime), None, "{runtime:?}");
        }
    }

    #[test]
    fn half_a_file_says_nothing_and_no_byte_breaks_it() {
        for (parse, text) in [
            (
                containerd as fn(&[u8]) -> Option<State>,
                CONTAINERD_CONTAINER,
            ),
            (crio, CRIO_CONTAINER),
            (docker, CRI_DOCKERD_CONTAINER),
            (|list: &[u8]| podman(list, ID), PODMAN_LIST),
        ] {
            let mut bytes = text.as_bytes().to_vec();
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), None, "{}", &text[..end]);
            }
            for index in 0..bytes.len() {
                for other in [0, b'"', b'\\', b'{', b']', b',', 0xff] {
                    let byte = std::mem::replace(&mut bytes[index], other);
                    let name = parse(&bytes).and_then(|state| state.name);
                    assert!(name.is_none_or(|name| name.len() <= NAME_BYTES_MAX));
                    bytes[index] = byte;
                }
            }
        }
    }
}
