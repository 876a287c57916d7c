//! What the path of a cgroup says: pods, containers, units of systemd and users.
//!
//! Nothing is read here. The names are those that kubelet, the container runtimes and systemd give
//! their cgroups, with both cgroup drivers. What merely looks like one of them is passed over: a
//! wrong name is worse than none.

use std::borrow::Cow;

/// A part of a cgroup's path that means something to a runtime or to systemd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Level<'p> {
    pub(crate) kind: Kind<'p>,
    /// How many bytes of the path lead up to and include this level: `path[..end]` is its cgroup.
    pub(crate) end: usize,
}

/// What a cgroup stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind<'p> {
    /// A pod of Kubernetes by its UID as the API writes it, with dashes. The UID of a static pod is
    /// 32 hexadecimal digits; the API has it in the annotation `kubernetes.io/config.hash`.
    Pod { uid: Cow<'p, str> },
    /// A container by its id, which is [`is_id`] with all runtimes but those that go by names.
    Container { runtime: Runtime, id: Cow<'p, str> },
    /// A unit of systemd that holds processes, under the name that `systemctl` takes.
    Unit { name: &'p str },
    /// The slice of a user who logged in.
    User { uid: u32 },
}

/// Who made a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runtime {
    /// Kubernetes' or nerdctl's.
    Containerd,
    CriO,
    /// Its own or Kubernetes', with cri-dockerd.
    Docker,
    Podman,
    /// Garden of Cloud Foundry and Concourse; ids are its handles.
    Garden,
    /// LXC, LXD, Incus and Proxmox; ids are names.
    Lxc,
    /// systemd-nspawn and others that register with systemd-machined; ids are names.
    Machined,
    /// An id without a word on its maker, as containerd and Docker have it with cgroupfs.
    Unknown,
}

impl Runtime {
    /// Whether its ids are names already.
    pub(crate) fn goes_by_names(self) -> bool {
        matches!(self, Self::Garden | Self::Lxc | Self::Machined)
    }
}

/// What a cgroup's path says, outermost first. The path is the kernel's, from the root of the
/// hierarchy.
///
/// The last container of a path is who runs there; what stands before it is around it (a node of
/// kind, a pod with Docker inside) and what stands after it is inside (systemd's units in it). Pod
/// and container share an end where one name holds both.
pub(crate) fn levels(path: &str) -> Vec<Level<'_>> {
    let mut levels = Vec::new();
    let mut above = Above::default();
    let mut start = 0;
    for name in path.split('/') {
        let end = start + name.len();
        if !name.is_empty() {
            let (outer, inner) = kinds(name, above);
            levels.extend(
                [outer, inner]
                    .into_iter()
                    .flatten()
                    .map(|kind| Level { kind, end }),
            );
            above = Above {
                parent: name,
                grandparent: above.parent,
            };
        }
        start = end + 1;
    }
    levels
}

/// The names of the cgroups over one.
#[derive(Debug, Default, Clone, Copy)]
struct Above<'p> {
    parent: &'p str,
    grandparent: &'p str,
}

fn kinds<'p>(name: &'p str, above: Above) -> (Option<Kind<'p>>, Option<Kind<'p>>) {
    // A runtime told to use systemd's notation for cgroups while it uses cgroupfs.
    if let Some((slice, rest)) = name.split_once(':')
        && let Some((prefix, id)) = rest.split_once(':')
        && let Some(container) = prefixed_container(prefix, id)
    {
        return (slice_kind(slice), Some(container));
    }
    let kind = slice_kind(name)
        .or_else(|| pod_folder(name, above))
        .or_else(|| container(name, above))
        .or_else(|| unit(name));
    (kind, None)
}

/// Whether this is an id as most runtimes make them: 64 lower-case hexadecimal digits.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(is_hex)
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// Whether this is hexadecimal in groups of these lengths.
fn is_grouped_hex(text: &str, separator: char, lengths: &[usize]) -> bool {
    let mut groups = text.split(separator);
    lengths.iter().all(|length| {
        groups
            .next()
            .is_some_and(|group| group.len() == *length && group.bytes().all(is_hex))
    }) && groups.next().is_none()
}

const UUID: [usize; 5] = [8, 4, 4, 4, 12];

fn container<'p>(name: &'p str, above: Above) -> Option<Kind<'p>> {
    scope_container(name)
        .or_else(|| folder_container(name, above))
        .or_else(|| named_container(name, above))
}

/// What systemd runs for a runtime: `cri-containerd-<id>.scope`.
fn scope_container(name: &str) -> Option<Kind<'_>> {
    let (prefix, id) = name.strip_suffix(".scope")?.rsplit_once('-')?;
    prefixed_container(prefix, id)
}

fn prefixed_container<'p>(prefix: &str, id: &'p str) -> Option<Kind<'p>> {
    // Scopes of the monitors of containers, crio-conmon- and libpod-conmon-, are units.
    let runtime = match prefix {
        "cri-containerd" | "nerdctl" => Runtime::Containerd,
        "crio" => Runtime::CriO,
        "docker" => Runtime::Docker,
        "libpod" => Runtime::Podman,
        _ => return None,
    };
    is_id(id).then_some(Kind::Container {
        runtime,
        id: Cow::Borrowed(id),
    })
}

/// What runtimes make themselves: `<id>`, `crio-<id>`.
fn folder_container<'p>(name: &'p str, above: Above) -> Option<Kind<'p>> {
    let (runtime, id) = if let Some(id) = name.strip_prefix("crio-") {
        (Runtime::CriO, id)
    } else if let Some(id) = name.strip_prefix("libpod-") {
        (Runtime::Podman, id.strip_prefix("payload-").unwrap_or(id))
    } else if above.parent == "libpod_parent" {
        // A pod of Podman's, its containers lie below.
        return None;
    } else if above.parent == "docker"
        || above.parent == "actions_job"
        || above.grandparent == "ecs"
    {
        (Runtime::Docker, name)
    } else {
        (Runtime::Unknown, name)
    };
    is_id(id).then_some(Kind::Container {
        runtime,
        id: Cow::Borrowed(id),
    })
}

/// Containers that go by names or other ids.
fn named_container<'p>(name: &'p str, above: Above) -> Option<Kind<'p>> {
    let in_garden = above.parent == "garden"
        || (above.grandparent == "garden" && matches!(above.parent, "good" | "bad"));
    let (runtime, id) = if in_garden && is_handle(name) {
        (Runtime::Garden, name)
    } else if let Some(id) = name.strip_prefix("lxc.payload.").filter(|id| is_name(id)) {
        (Runtime::Lxc, id)
    } else if matches!(above.parent, "lxc" | "lxc.payload") && is_name(name) {
        (Runtime::Lxc, name)
    } else {
        (Runtime::Machined, machine(name)?)
    };
    let id = unescape(id);
    Some(Kind::Container { runtime, id })
}

/// Whether Garden could have given a container this handle. Cloud Foundry cuts UUIDs short.
fn is_handle(text: &str) -> bool {
    is_grouped_hex(text, '-', &UUID) || is_grouped_hex(text, '-', &[8, 4, 4, 4, 4])
}

/// What systemd-machined or systemd-nspawn's own unit calls a container.
fn machine(name: &str) -> Option<&str> {
    let scope = name
        .strip_prefix("machine-")
        .and_then(|name| name.strip_suffix(".scope"));
    let service = || {
        name.strip_prefix("systemd-nspawn@")?
            .strip_suffix(".service")
    };
    // libvirt's virtual machines are no containers.
    scope
        .or_else(service)
        .filter(|name| is_unit_prefix(name) && !name.starts_with(r"qemu\x2d"))
}

/// Whether LXC could have given a container this name.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// What kubelet makes with cgroupfs: `kubepods/burstable/pod<uid>`.
fn pod_folder<'p>(name: &'p str, above: Above) -> Option<Kind<'p>> {
    let in_kubepods = above.parent == "kubepods"
        || (above.grandparent == "kubepods" && matches!(above.parent, "besteffort" | "burstable"));
    let uid = name.strip_prefix("pod").filter(|_| in_kubepods)?;
    (is_grouped_hex(uid, '-', &UUID) || is_static(uid)).then_some(Kind::Pod {
        uid: Cow::Borrowed(uid),
    })
}

fn is_static(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(is_hex)
}

/// Slices that mean more than their contents.
fn slice_kind(name: &str) -> Option<Kind<'_>> {
    let slice = name.strip_suffix(".slice")?;
    if let Some(uid) = slice.strip_prefix("user-") {
        let canonical = uid == "0" || !uid.starts_with(['0', '+']);
        let uid = uid.parse().ok().filter(|_| canonical)?;
        return Some(Kind::User { uid });
    }
    // Dashes part a slice from the slices it lies in, so the UID's own are written as `_`.
    let (outer, last) = slice.rsplit_once('-')?;
    let uid = last.strip_prefix("pod")?;
    if !outer.split('-').any(|part| part == "kubepods") {
        return None;
    }
    if is_static(uid) {
        return Some(Kind::Pod {
            uid: Cow::Borrowed(uid),
        });
    }
    is_grouped_hex(uid, '_', &UUID).then(|| Kind::Pod {
        uid: Cow::Owned(uid.replace('_', "-")),
    })
}

fn unit(name: &str) -> Option<Kind<'_>> {
    // systemd's escape of names that the kernel's own files could have, `cpu.service` for one.
    let name = name.strip_prefix('_').unwrap_or(name);
    let (prefix, suffix) = name.rsplit_once('.')?;
    let holds_processes = matches!(suffix, "service" | "scope" | "mount" | "swap" | "socket");
    (holds_processes && is_unit_prefix(prefix)).then_some(Kind::Unit { name })
}

/// Whether systemd takes this for a unit's name without its suffix.
fn is_unit_prefix(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'-' | b'_' | b'.' | b'\\' | b'@')
        })
}

/// A name without systemd's escapes, `\x2d` for `-`; as it is where they are broken.
fn unescape(name: &str) -> Cow<'_, str> {
    if !name.contains('\\') {
        return Cow::Borrowed(name);
    }
    let mut parts = name.split(r"\x");
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let hex = part.get(..2).filter(|hex| hex.bytes().all(is_hex));
        let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) else {
            return Cow::Borrowed(name);
        };
        bytes.push(byte);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(name), Cow::Owned)
}

// The path is for rustfmt in `fuzz/`, where this file is included by its own.
#[cfg(test)]
#[path = "container/invariants.rs"]
mod invariants;

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "b81deb0b3c4d5ddeb1c3e2d4f4e2b8bd3c60ce6cc6a1cbe6b36a4b9c6f0d8e11";
    const B: &str = "0f99ad5f45163ed14ab8eaf92ed34bb4a631d007f8755a7d79be614bcb0df0ef";
    const C: &str = "66d6d4ac9851cfcab8400277ad96770ce52c1d75eeac29046753875056eacaed";
    const U: &str = "1e597579-417e-482f-bf65-5fe170c3aebd";
    const S: &str = "16a4a44fea21553f3c41d03e478379f0";

    /// Ids of containers are A to C, the UID of a pod is U (V with `_`), of a static pod S.
    fn filled_in(text: &str) -> String {
        text.replace("{A}", A)
            .replace("{B}", B)
            .replace("{C}", C)
            .replace("{U}", U)
            .replace("{V}", &U.replace('-', "_"))
            .replace("{S}", S)
    }

    fn described(path: &str) -> String {
        let described: Vec<String> = levels(path)
            .into_iter()
            .map(|level| match level.kind {
                Kind::Pod { uid } => format!("pod {uid}"),
                Kind::Container { runtime, id } => format!("{} {id}", name(runtime)),
                Kind::Unit { name } => name.to_owned(),
                Kind::User { uid } => format!("user {uid}"),
            })
            .collect();
        described.join(" > ")
    }

    #[track_caller]
    fn assert_described(path: &str, expected: &str) {
        assert_eq!(described(&filled_in(path)), filled_in(expected), "{path}");
    }

    const KUBERNETES: &[(&str, &str)] = &[
        // containerd, systemd: best effort, burstable, guaranteed, and what lies on the way.
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{V}.slice/cri-containerd-{A}.scope",
            "pod {U} > containerd {A}",
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{V}.slice/cri-containerd-{A}.scope",
            "pod {U} > containerd {A}",
        ),
        (
            "/kubepods.slice/kubepods-pod{V}.slice/cri-containerd-{A}.scope",
            "pod {U} > containerd {A}",
        ),
        ("/kubepods.slice/kubepods-pod{V}.slice", "pod {U}"),
        ("/kubepods.slice/kubepods-burstable.slice", ""),
        ("/kubepods.slice", ""),
        // Static pods.
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{S}.slice/cri-containerd-{A}.scope",
            "pod {S} > containerd {A}",
        ),
        ("/kubepods/burstable/pod{S}/{A}", "pod {S} > unknown {A}"),
        // containerd and cri-dockerd, cgroupfs: one cannot be told from the other.
        ("/kubepods/besteffort/pod{U}/{A}", "pod {U} > unknown {A}"),
        ("/kubepods/burstable/pod{U}/{A}", "pod {U} > unknown {A}"),
        ("/kubepods/pod{U}/{A}", "pod {U} > unknown {A}"),
        ("/kubepods/pod{U}", "pod {U}"),
        ("/kubepods/besteffort", ""),
        // The runtime writes systemd's notation, and runs with cgroupfs.
        (
            "/kubepods-burstable-pod{V}.slice:cri-containerd:{A}",
            "pod {U} > containerd {A}",
        ),
        (
            "/system.slice/containerd.service/kubepods-besteffort-pod{V}.slice:cri-containerd:{A}",
            "containerd.service > pod {U} > containerd {A}",
        ),
        (
            "/kubepods-burstable-pod{V}.slice:crio:{A}",
            "pod {U} > cri-o {A}",
        ),
        ("/system.slice:docker:{A}", "docker {A}"),
        // Kubelet with systemd, Docker with cgroupfs.
        (
            "/system.slice/docker.service/kubepods.slice/kubepods-pod{V}.slice/{A}",
            "docker.service > pod {U} > unknown {A}",
        ),
        // CRI-O, OpenShift; crun's folder inside, conmon beside.
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{V}.slice/crio-{A}.scope",
            "pod {U} > cri-o {A}",
        ),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{V}.slice/crio-{A}.scope/container",
            "pod {U} > cri-o {A}",
        ),
        (
            "/kubepods.slice/kubepods-pod{V}.slice/crio-conmon-{A}.scope",
            "pod {U} > crio-conmon-{A}.scope",
        ),
        (
            "/kubepods.slice/kubepods-pod{V}.slice/crio-{A}",
            "pod {U} > cri-o {A}",
        ),
        ("/kubepods/burstable/pod{U}/crio-{A}", "pod {U} > cri-o {A}"),
        ("/kubepods/burstable/pod{U}/crio-conmon-{A}", "pod {U}"),
        ("/crio/crio-{A}", "cri-o {A}"),
        ("/system.slice/crio-{A}.scope", "cri-o {A}"),
        // cri-dockerd with systemd.
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{V}.slice/docker-{A}.scope",
            "pod {U} > docker {A}",
        ),
        // --cgroup-root, also with a dash, which kubelet writes as `_`.
        (
            "/my.slice/my-kubepods.slice/my-kubepods-burstable.slice/my-kubepods-burstable-pod{V}.slice/cri-containerd-{A}.scope",
            "pod {U} > containerd {A}",
        ),
        (
            "/my_own.slice/my_own-kubepods.slice/my_own-kubepods-pod{V}.slice/cri-containerd-{A}.scope",
            "pod {U} > containerd {A}",
        ),
        (
            "/custom/root/kubepods/burstable/pod{U}/{A}",
            "pod {U} > unknown {A}",
        ),
        // A sandbox in a slice of its own.
        (
            "/system.slice/system-getty.slice/cri-containerd-{A}.scope",
            "containerd {A}",
        ),
        // k3s without root.
        (
            "/user.slice/user-1000.slice/user@1000.service/k3s-rootless.service/kubepods/burstable/pod{U}/{A}",
            "user 1000 > user@1000.service > k3s-rootless.service > pod {U} > unknown {A}",
        ),
        // Kata's virtual machine is the pod's, not a container.
        ("/kubepods/pod{U}/kata_{A}", "pod {U}"),
    ];

    const NESTED: &[(&str, &str)] = &[
        // kind: with systemd on v2, with cgroupfs before.
        (
            "/system.slice/docker-{B}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{V}.slice/cri-containerd-{A}.scope",
            "docker {B} > pod {U} > containerd {A}",
        ),
        (
            "/docker/{B}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{V}.slice/cri-containerd-{A}.scope",
            "docker {B} > pod {U} > containerd {A}",
        ),
        (
            "/docker/{B}/kubelet/kubepods/besteffort/pod{U}/{A}",
            "docker {B} > pod {U} > unknown {A}",
        ),
        (
            "/docker/{B}/system.slice/containerd.service",
            "docker {B} > containerd.service",
        ),
        (
            "/system.slice/docker-{B}.scope/kubelet.slice/kubelet.service",
            "docker {B} > kubelet.service",
        ),
        (
            "/machine.slice/libpod-{B}.scope/container/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{V}.slice/cri-containerd-{A}.scope",
            "podman {B} > pod {U} > containerd {A}",
        ),
        // k3d.
        (
            "/docker/{B}/kubepods/burstable/pod{U}/{A}",
            "docker {B} > pod {U} > unknown {A}",
        ),
        // Docker in Docker, in a pod, and in a pod of kind.
        ("/docker/{B}/docker/{A}", "docker {B} > docker {A}"),
        (
            "/system.slice/docker-{B}.scope/docker/{A}",
            "docker {B} > docker {A}",
        ),
        (
            "/kubepods.slice/kubepods-pod{V}.slice/cri-containerd-{B}.scope/docker/{A}",
            "pod {U} > containerd {B} > docker {A}",
        ),
        (
            "/kubepods/burstable/pod{U}/{B}/docker/{A}",
            "pod {U} > unknown {B} > docker {A}",
        ),
        ("/kubepods/pod{U}/{B}/init", "pod {U} > unknown {B}"),
        (
            "/docker/{C}/kubelet/kubepods/pod{U}/{B}/docker/{A}",
            "docker {C} > pod {U} > unknown {B} > docker {A}",
        ),
        // systemd in a container.
        ("/docker/{A}/init.scope", "docker {A} > init.scope"),
        (
            "/kubepods.slice/kubepods-pod{V}.slice/cri-containerd-{A}.scope/system.slice/nginx.service",
            "pod {U} > containerd {A} > nginx.service",
        ),
        (
            "/machine.slice/libpod-{A}.scope/container/system.slice/dbus.socket",
            "podman {A} > dbus.socket",
        ),
        // Sysbox.
        (
            "/docker/{A}/syscont-cgroup-root/init.scope",
            "docker {A} > init.scope",
        ),
        // Docker in a container of Proxmox.
        (
            "/lxc/107/ns/system.slice/docker-{A}.scope",
            "lxc 107 > docker {A}",
        ),
    ];

    const ALONE: &[(&str, &str)] = &[
        // Docker, and those that give it a parent: GitHub's runner, ECS on EC2.
        ("/docker/{A}", "docker {A}"),
        ("/system.slice/docker-{A}.scope", "docker {A}"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{A}.scope",
            "user 1000 > user@1000.service > docker {A}",
        ),
        ("/actions_job/{A}", "docker {A}"),
        (
            "/ecs/48cb34f5-cd39-4d59-9bb9-89f3c1611afd/{A}",
            "docker {A}",
        ),
        ("/ecs/bf1ddbfbbc8f45c9b1ac4f779368741e/{A}", "docker {A}"),
        (
            "/ecstasks.slice/ecstasks-bf1ddbfbbc8f45c9b1ac4f779368741e.slice/docker-{A}.scope",
            "docker {A}",
        ),
        ("/my/own/parent/{A}", "unknown {A}"),
        // Podman: alone, in a pod, in a service, without root; conmon beside.
        ("/machine.slice/libpod-{A}.scope", "podman {A}"),
        ("/machine.slice/libpod-{A}.scope/container", "podman {A}"),
        (
            "/machine.slice/libpod-conmon-{A}.scope",
            "libpod-conmon-{A}.scope",
        ),
        (
            "/machine.slice/machine-libpod_pod_{B}.slice/libpod-{A}.scope/container",
            "podman {A}",
        ),
        ("/libpod_parent/libpod-{A}", "podman {A}"),
        ("/libpod_parent/conmon", ""),
        ("/libpod_parent/{B}", ""),
        ("/libpod_parent/{B}/libpod-{A}", "podman {A}"),
        (
            "/system.slice/nginx.service/libpod-payload-{A}",
            "nginx.service > podman {A}",
        ),
        ("/system.slice/nginx.service/runtime", "nginx.service"),
        (
            "/user.slice/user-1001.slice/user@1001.service/app.slice/caddy.service/libpod-payload-{A}",
            "user 1001 > user@1001.service > caddy.service > podman {A}",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{A}.scope/container",
            "user 1000 > user@1000.service > podman {A}",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_{B}.slice/libpod-{A}.scope",
            "user 1000 > user@1000.service > podman {A}",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/podman-6696.scope",
            "user 1000 > user@1000.service > podman-6696.scope",
        ),
        // nerdctl with systemd and with cgroupfs, which has containerd's namespace; ctr's names
        // cannot be told from any folder's.
        ("/system.slice/nerdctl-{A}.scope", "containerd {A}"),
        (
            "/user.slice/user-1000.slice/user@1000.service/user.slice/nerdctl-{A}.scope",
            "user 1000 > user@1000.service > containerd {A}",
        ),
        ("/default/{A}", "unknown {A}"),
        ("/default/redis", ""),
        // LXC 3.1 and after, before, and Proxmox; the monitor beside.
        ("/lxc.payload.web-1", "lxc web-1"),
        (
            "/lxc.payload.project_web/system.slice/ssh.service",
            "lxc project_web > ssh.service",
        ),
        ("/lxc.payload/web", "lxc web"),
        ("/lxc/web", "lxc web"),
        ("/lxc/101/ns/init.scope", "lxc 101 > init.scope"),
        ("/lxc.monitor.web-1", ""),
        ("/lxc.monitor/101", ""),
        // systemd-nspawn; libvirt's virtual machines are units.
        (
            r"/machine.slice/machine-arch\x2dlinux.scope/payload/init.scope",
            "machined arch-linux > init.scope",
        ),
        (
            "/machine.slice/systemd-nspawn@debian.service/payload",
            "machined debian",
        ),
        (
            r"/machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator",
            r"machine-qemu\x2d1\x2dvm.scope",
        ),
        // Garden.
        (
            "/system.slice/garden.service/garden/70eb4ce5-a065-4401-6990-88ed",
            "garden.service > garden 70eb4ce5-a065-4401-6990-88ed",
        ),
        (
            "/system.slice/garden.service/garden/good/2f57368b-0eda-4e52-64d8-af5c",
            "garden.service > garden 2f57368b-0eda-4e52-64d8-af5c",
        ),
        (
            "/garden/c2014f15-e490-4124-75e4-e5b5a08ca89f",
            "garden c2014f15-e490-4124-75e4-e5b5a08ca89f",
        ),
    ];

    const SYSTEMD: &[(&str, &str)] = &[
        ("/", ""),
        ("", ""),
        ("/init.scope", "init.scope"),
        ("/system.slice", ""),
        ("/system.slice/nginx.service", "nginx.service"),
        (
            "/system.slice/system-getty.slice/getty@tty1.service",
            "getty@tty1.service",
        ),
        (
            r"/system.slice/system-systemd\x2dfsck.slice/systemd-fsck@dev-disk-by\x2duuid-7.service",
            r"systemd-fsck@dev-disk-by\x2duuid-7.service",
        ),
        ("/system.slice/dev-hugepages.mount", "dev-hugepages.mount"),
        ("/system.slice/dev-sda2.swap", "dev-sda2.swap"),
        ("/system.slice/docker.socket", "docker.socket"),
        // What the kernel has a file for, systemd escapes.
        ("/system.slice/_cpu.service", "cpu.service"),
        (
            "/user.slice/user-0.slice/session-3.scope",
            "user 0 > session-3.scope",
        ),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-f22f14d2-3d44-4304-9879-3fdd0df7b08e.scope",
            "user 1000 > user@1000.service > vte-spawn-f22f14d2-3d44-4304-9879-3fdd0df7b08e.scope",
        ),
        ("/user.slice/user-4294967295.slice", "user 4294967295"),
        // Below a unit that delegates.
        (
            "/system.slice/delegated.service/supervisor",
            "delegated.service",
        ),
    ];

    fn name(runtime: Runtime) -> &'static str {
        match runtime {
            Runtime::Containerd => "containerd",
            Runtime::CriO => "cri-o",
            Runtime::Docker => "docker",
            Runtime::Podman => "podman",
            Runtime::Garden => "garden",
            Runtime::Lxc => "lxc",
            Runtime::Machined => "machined",
            Runtime::Unknown => "unknown",
        }
    }

    #[test]
    fn real_paths() {
        for (path, expected) in [KUBERNETES, NESTED, ALONE, SYSTEMD].concat() {
            assert_described(path, expected);
        }
    }

    #[test]
    fn lookalikes() {
        let cases: &[(&str, &str)] = &[
            // Ids of 12, 63 and 65 digits, in upper case, with a letter that is no digit.
            ("/docker/b81deb0b3c4d", ""),
            ("/docker/a{A}", ""),
            ("/system.slice/docker-a{A}.scope", "docker-a{A}.scope"),
            (
                "/docker/B81DEB0B3C4D5DDEB1C3E2D4F4E2B8BD3C60CE6CC6A1CBE6B36A4B9C6F0D8E11",
                "",
            ),
            (
                "/docker/g81deb0b3c4d5ddeb1c3e2d4f4e2b8bd3c60ce6cc6a1cbe6b36a4b9c6f0d8e11",
                "",
            ),
            (
                "/system.slice/docker-81deb0b3c4d5ddeb1c3e2d4f4e2b8bd3c60ce6cc6a1cbe6b36a4b9c6f0d8e11.scope",
                "docker-81deb0b3c4d5ddeb1c3e2d4f4e2b8bd3c60ce6cc6a1cbe6b36a4b9c6f0d8e11.scope",
            ),
            // Units and folders named alike.
            ("/system.slice/docker-foo.service", "docker-foo.service"),
            ("/system.slice/docker-{A}.service", "docker-{A}.service"),
            ("/system.slice/docker-{A}.scope.d", ""),
            ("/system.slice/my-docker-{A}.scope", "my-docker-{A}.scope"),
            ("/system.slice/docker-{A}", ""),
            ("/system.slice/cri-containerd.apparmor.d:{A}", ""),
            ("/system.slice:other:{A}", ""),
            ("/x.slice:docker:{A}:y", ""),
            ("/docker", ""),
            ("/docker/buildkit/ptl3gyzqlbo2tpmuxbwdfm2hg", ""),
            // No pods.
            ("/pod-thing", ""),
            ("/kubepods/pod-thing", ""),
            ("/kubepods/podinfo", ""),
            ("/srv/pod{U}", ""),
            ("/besteffort/pod{U}", ""),
            ("/kubepods/other/pod{U}", ""),
            ("/kubepods/pod{V}", ""),
            ("/kubepods/pod{U}0", ""),
            ("/kubepods/pod{S}0", ""),
            ("/app.slice/app-pod{V}.slice", ""),
            ("/kubepods.slice/kubepods-pod{U}.slice", ""),
            ("/kubepods.slice/kubepods-podinfo.slice", ""),
            ("/notkubepods.slice/notkubepods-pod{V}.slice", ""),
            // No users.
            ("/user.slice/user-.slice", ""),
            ("/user.slice/user-01.slice", ""),
            ("/user.slice/user-+1.slice", ""),
            ("/user.slice/user-4294967296.slice", ""),
            ("/user.slice/user-me.slice", ""),
            // No units.
            ("/srv/.service", ""),
            ("/srv/a b.service", ""),
            ("/srv/service", ""),
            ("/srv/a.timer", ""),
            ("/srv/_.service", ""),
            // No names that LXC, machined and Garden give.
            ("/lxc.payload.", ""),
            ("/lxc/a b", ""),
            ("/machine.slice/machine-.scope", "machine-.scope"),
            ("/garden/bar", ""),
            ("/garden/ugly/2f57368b-0eda-4e52-64d8-af5c", ""),
        ];
        for (path, expected) in cases {
            assert_described(path, expected);
        }
    }

    #[test]
    fn an_end_leads_to_its_cgroup() {
        let ends = |path: &str| -> Vec<String> {
            let path = filled_in(path);
            levels(&path)
                .iter()
                .map(|level| path[..level.end].to_owned())
                .collect()
        };
        assert_eq!(
            ends("/kubepods/pod{U}/{B}/docker/{A}/x"),
            [
                "/kubepods/pod{U}",
                "/kubepods/pod{U}/{B}",
                "/kubepods/pod{U}/{B}/docker/{A}"
            ]
            .map(filled_in)
        );
        assert_eq!(
            ends("/machine.slice/libpod-{A}.scope/container"),
            ["/machine.slice/libpod-{A}.scope"].map(filled_in)
        );
        // Pod and container in one name.
        let both = "/kubepods-pod{V}.slice:cri-containerd:{A}";
        assert_eq!(ends(both), [both, both].map(filled_in));
        // Slashes too many.
        assert_eq!(
            ends("//a.service//b.service/"),
            ["//a.service", "//a.service//b.service"]
        );
    }

    #[test]
    fn broken_escapes_stay() {
        assert_eq!(unescape(r"a\x2db\x5cc"), r"a-b\c");
        assert_eq!(unescape(r"\xc3\xa4"), "ä");
        for broken in [r"a\x2", r"a\x+2", r"a\xzz", r"a\xff", r"a\xé"] {
            assert_eq!(unescape(broken), broken);
        }
        assert_eq!(unescape(r"a\b"), r"a\b");
    }

    /// xorshift64, for the same cases in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % limit.max(1) as u64).unwrap()
        }

        fn one_of<'t, T: ?Sized>(&mut self, of: &[&'t T]) -> &'t T {
            of[self.below(of.len())]
        }
    }

    fn mutated(path: &str, other: &str, random: &mut Random) -> String {
        let mut names: Vec<String> = path.split('/').map(str::to_owned).collect();
        let at = random.below(names.len());
        match random.below(6) {
            0 => drop(names.remove(at)),
            1 => names.insert(at, names[random.below(names.len())].clone()),
            2 => {
                let other: Vec<&str> = other.split('/').collect();
                names.truncate(at);
                names.extend(
                    other[random.below(other.len())..]
                        .iter()
                        .map(|&name| name.to_owned()),
                );
            }
            3 => {
                let of = [
                    "docker",
                    "ecs",
                    "kubepods",
                    "lxc",
                    "garden",
                    "good",
                    "libpod_parent",
                    "x:crio:y",
                ];
                names.insert(at, random.one_of(&of).to_owned());
            }
            _ => {
                let mut name: Vec<char> = names[at].chars().collect();
                let index = random.below(name.len() + 1);
                if index < name.len() && random.below(2) == 0 {
                    name.remove(index);
                } else {
                    let of = [
                        "a", "0", "F", "-", "_", ".", ":", "\\", "\\x", "/", "é", "@", " ",
                    ];
                    name.splice(index..index, random.one_of(&of).chars());
                }
                names[at] = name.into_iter().collect();
            }
        }
        names.join("/")
    }

    #[test]
    fn any_path_is_taken_well() {
        let seeds: Vec<String> = [KUBERNETES, NESTED, ALONE, SYSTEMD]
            .concat()
            .iter()
            .map(|(path, _)| filled_in(path))
            .collect();
        assert!(seeds.len() >= 50, "{}", seeds.len());
        let mut random = Random(0x5eed_0f5e_0a75_0001);
        let (mut some, mut none) = (0, 0);
        for case in 0..100_000 {
            let mut path = seeds[case % seeds.len()].clone();
            for _ in 0..=random.below(4) {
                let other = &seeds[random.below(seeds.len())];
                path = mutated(&path, other, &mut random);
            }
            if invariants::hold(&path) == 0 {
                none += 1;
            } else {
                some += 1;
            }
        }
        // Both happen often, or this proves nothing.
        assert!(
            some > 10_000 && none > 10_000,
            "{some} with levels, {none} without"
        );
    }
}
