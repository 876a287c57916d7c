//! From a cgroup's id to the labels of its workload: its path, what that says of containers and
//! pods, and what Kubernetes and the runtimes know of those.

use std::{
    collections::{HashMap, VecDeque},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use probes::{
    Workload,
    cgroup::{Change, Events},
};
use rustix::event::{PollFd, PollFlags, poll};

use super::{
    cgroup::{self, Cgroups, Mount},
    container::{self, Kind, Level, Runtime},
    kubernetes::{PodNames, Pods, Watch, Workload as PodWorkload},
    runtime::{self, PodOf, State},
};
use crate::{collect::lock, config::Aggregate};

/// States of containers that are kept: as many as there are paths of removed cgroups, and as many
/// again for those that live.
const STATES_MAX: usize = 4096;

/// The cgroup of what found no room.
const OTHER: &str = "other";

/// The cgroup, where cgroups are not told apart, of those whose name nobody saw.
const UNKNOWN: &str = "unknown";

/// The labels that name a workload. Empty where there is nothing to tell, or where it is not to be
/// told apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Owner {
    /// Of the pod.
    pub(crate) namespace: String,
    /// The pod's name.
    pub(crate) pod: String,
    /// The container's name in its pod, or by its runtime; its id where that is all that is known.
    pub(crate) container: String,
    /// The path from the root of its hierarchy of the cgroup that all this is about.
    pub(crate) cgroup: String,
    /// What the workload is, and its name; only when aggregated by it.
    pub(crate) workload: Option<[String; 2]>,
    /// Values of the pod's labels that were asked for, in their order.
    pub(crate) pod_labels: Vec<String>,
}

/// How much of an owner is known. What is known better is never given up for less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Certainty {
    /// Not even the cgroup's path.
    Unknown,
    /// A path with a container or pod in it that nobody has a name for.
    Path,
    /// The pod, and a container without a name.
    Pod,
    /// All there is.
    Full,
}

/// An owner, and how much is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) owner: Arc<Owner>,
    pub(crate) certainty: Certainty,
}

impl Named {
    /// Takes the place of what was known before, unless it is less.
    pub(crate) fn improve(self, owner: &mut Arc<Owner>, certainty: &mut Certainty) {
        if self.certainty >= *certainty {
            (*owner, *certainty) = (self.owner, self.certainty);
        }
    }
}

/// What names are made of.
#[derive(Debug)]
pub(crate) struct Sources {
    /// What the kernel says of cgroups as they come and go.
    pub(crate) events: Option<Events>,
    /// Where cgroups are walked.
    pub(crate) mounts: Vec<Mount>,
    /// The pods of this node.
    pub(crate) pods: Option<Arc<Watch>>,
    /// Below which the runtimes' state is.
    pub(crate) rootfs: PathBuf,
    pub(crate) detail: Detail,
}

/// What is told apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Detail {
    /// What a set of labels stands for.
    pub(crate) aggregate: Aggregate,
    /// How many labels of pods were asked for.
    pub(crate) pod_labels: usize,
}

impl Detail {
    /// Labels with no more than a cgroup.
    fn bare(self, cgroup: String) -> Owner {
        Owner {
            cgroup,
            workload: (self.aggregate == Aggregate::Workload).then(Default::default),
            pod_labels: vec![String::new(); self.pod_labels],
            ..Owner::default()
        }
    }

    /// The labels of a workload whose name nobody saw.
    fn unknown(self, workload: Workload) -> Owner {
        self.bare(match self.aggregate {
            Aggregate::Container => cgroup::unknown(workload),
            Aggregate::Pod | Aggregate::Workload => UNKNOWN.to_owned(),
            Aggregate::Node => String::new(),
        })
    }
}

/// Names for cgroups.
#[derive(Debug)]
pub(crate) struct Names {
    // Always locked in this order.
    events: Option<Mutex<Events>>,
    states: Mutex<States>,
    cgroups: Mutex<Cgroups>,
    mounts: Vec<Mount>,
    pods: Option<Arc<Watch>>,
    rootfs: PathBuf,
    detail: Detail,
}

impl Names {
    pub(crate) fn new(sources: Sources) -> Self {
        let names = Self {
            events: sources.events.map(Mutex::new),
            states: Mutex::default(),
            cgroups: Mutex::default(),
            mounts: sources.mounts,
            pods: sources.pods,
            rootfs: sources.rootfs,
            detail: sources.detail,
        };
        names.walk(&[]);
        names
    }

    /// Readable while the kernel has news; `None` where it does not tell.
    ///
    /// # Errors
    /// When there is no descriptor to be had.
    pub(crate) fn readable(&self) -> io::Result<Option<OwnedFd>> {
        let events = self.events.as_ref().map(|events| lock(events).readable());
        events.transpose()
    }

    /// Takes in what the kernel has told. Whether a cgroup has gone.
    ///
    /// What was done in a cgroup comes after the news that it was made: who reads cells first and
    /// calls this then knows the path of every cgroup that it has met.
    pub(crate) fn take_in_events(&self) -> bool {
        let Some(events) = &self.events else {
            return false;
        };
        // Held all the while: two who take turns would apply events out of their order.
        let mut events = lock(events);
        let mut removed = false;
        while let Some(event) = events.take() {
            match event {
                Ok(event) => {
                    let workload = Workload {
                        hierarchy: event.hierarchy,
                        cgroup_id: event.id,
                    };
                    removed |= event.change == Change::Removed;
                    let made = event.change != Change::Removed;
                    let mut cgroups = lock(&self.cgroups);
                    cgroups.apply(event);
                    let path = made.then(|| cgroups.path(workload)).flatten();
                    drop(cgroups);
                    self.read_state_of(path.as_deref().unwrap_or_default());
                }
                Err(error) => tracing::error!(%error),
            }
        }
        removed
    }

    /// Reads what the runtime has written of a container whose cgroup was made just now: it may
    /// be gone before anybody asks.
    fn read_state_of(&self, path: &str) {
        let last = container::levels(path).into_iter().next_back();
        if let Some(Level {
            kind: Kind::Container { runtime, id },
            end,
        }) = last
            && end == path.len()
        {
            lock(&self.states).of(&self.rootfs, runtime, &id);
        }
    }

    /// Walks the trees: finds what is there, and which of the `unknown` are not.
    pub(crate) fn walk(&self, unknown: &[Workload]) {
        for mount in &self.mounts {
            let changes = lock(&self.cgroups).changes();
            match cgroup::walk(mount) {
                Ok(found) => lock(&self.cgroups).take_in(found, changes, unknown),
                Err(error) => tracing::warn!(%error, "{} cannot be walked", mount.path.display()),
            }
        }
    }

    /// Grows when names may have changed that were known.
    pub(crate) fn version(&self) -> u64 {
        self.pods.as_ref().map_or(0, |watch| watch.pods().version())
    }

    /// The watch of pods, where there is one.
    pub(crate) fn watch(&self) -> Option<&Watch> {
        self.pods.as_deref()
    }

    /// To look several names up.
    pub(crate) fn look(&self) -> Look<'_> {
        Look {
            states: lock(&self.states),
            cgroups: lock(&self.cgroups),
            pods: self.pods.as_ref().map(|watch| watch.pods()),
            names: self,
        }
    }

    /// Whose the events are that found no room.
    pub(crate) fn other(&self) -> Named {
        Named {
            owner: Arc::new(self.detail.bare(OTHER.to_owned())),
            certainty: Certainty::Full,
        }
    }
}

/// All names, held for a moment.
pub(crate) struct Look<'n> {
    states: MutexGuard<'n, States>,
    cgroups: MutexGuard<'n, Cgroups>,
    pods: Option<MutexGuard<'n, Pods>>,
    names: &'n Names,
}

impl Look<'_> {
    /// Whether a cgroup was there and is gone.
    pub(crate) fn is_gone(&self, workload: Workload) -> bool {
        self.cgroups.is_gone(workload)
    }

    /// Whose a workload is, as far as that is known now.
    pub(crate) fn owner(&mut self, workload: Workload) -> Named {
        // A cgroup that went before anybody learned its name has none that begins with a slash.
        let path = self.cgroups.path(workload);
        let Some(path) = path.filter(|path| path.starts_with('/')) else {
            return Named {
                owner: Arc::new(self.names.detail.unknown(workload)),
                certainty: Certainty::Unknown,
            };
        };
        let states = &mut self.states;
        let rootfs = &self.names.rootfs;
        let (found, certainty) = find(&path, self.pods.as_deref(), |runtime, id| {
            states.of(rootfs, runtime, id)
        });
        let owner = found.labels(&path, self.names.detail);
        Named {
            owner: Arc::new(owner),
            certainty,
        }
    }
}

/// What is known of a path.
#[derive(Debug, Default)]
struct Found<'p> {
    levels: Vec<Level<'p>>,
    pod: Option<Arc<PodNames>>,
    container: String,
}

/// Looks for the innermost container that belongs to a pod, from within outwards: a container of
/// Docker in a pod is nobody's that Kubernetes knows, and its pod is that of the one around it.
fn find<'p>(
    path: &'p str,
    pods: Option<&Pods>,
    mut state: impl FnMut(Runtime, &str) -> Option<Arc<State>>,
) -> (Found<'p>, Certainty) {
    let levels = container::levels(path);
    let mut found = Found::default();
    let mut container: Option<(String, Certainty)> = None;
    let mut unnamed_pod = false;
    for level in levels.iter().rev() {
        match &level.kind {
            Kind::Container { runtime, id } => {
                if let Some((pod, name)) = pods.and_then(|pods| pods.by_container(id)) {
                    found.pod = Some(pod);
                    container = Some((name.to_string(), Certainty::Full));
                    break;
                }
                let state = state(*runtime, id);
                if let Some(of) = state.as_deref().and_then(|state| state.pod.as_ref()) {
                    let known = pods.and_then(|pods| pods.by_uid(&of.uid));
                    found.pod = known.or_else(|| Some(Arc::new(of_state(of))));
                    let name = state.and_then(|state| state.name.clone());
                    container = Some((name.unwrap_or_default(), Certainty::Full));
                    break;
                }
                let named = || match state.as_deref() {
                    Some(State { sandbox: true, .. }) => (String::new(), Certainty::Full),
                    Some(State {
                        name: Some(name), ..
                    }) => (name.clone(), Certainty::Full),
                    _ if runtime.goes_by_names() => (id.to_string(), Certainty::Full),
                    _ => (id.to_string(), Certainty::Path),
                };
                container.get_or_insert_with(named);
            }
            Kind::Pod { uid } => {
                found.pod = pods.and_then(|pods| pods.by_uid(uid));
                if found.pod.is_some() {
                    break;
                }
                unnamed_pod = true;
            }
            Kind::Unit { .. } | Kind::User { .. } => {}
        }
    }
    let (name, certainty) = container.unwrap_or((String::new(), Certainty::Full));
    found.container = name;
    found.levels = levels;
    let certainty = match certainty {
        Certainty::Full if found.pod.is_none() && unnamed_pod => Certainty::Path,
        Certainty::Path if found.pod.is_some() => Certainty::Pod,
        certainty => certainty,
    };
    (found, certainty)
}

/// A pod as its container's runtime has it. What owns it, only the API server tells.
fn of_state(pod: &PodOf) -> PodNames {
    PodNames {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.as_str().into(),
        workload: PodWorkload {
            kind: "Pod".to_owned(),
            name: pod.name.clone(),
        },
        labels: Vec::new(),
    }
}

impl Found<'_> {
    /// The labels, with what is not to be told apart left out.
    fn labels(self, path: &str, detail: Detail) -> Owner {
        let aggregate = detail.aggregate;
        let innermost = |wanted: fn(&Kind) -> bool| {
            let mut levels = self.levels.iter().rev();
            let level = levels.find(|level| wanted(&level.kind))?;
            Some(path[..level.end].to_owned())
        };
        let container = innermost(|kind| matches!(kind, Kind::Container { .. }));
        let innermost_pod = innermost(|kind| matches!(kind, Kind::Pod { .. }));
        // What is no pod is told apart as finely as a pod is: by container, service or user.
        let pod = || {
            let pod = innermost_pod.clone();
            pod.or_else(|| container.clone())
                .or_else(|| innermost(|kind| matches!(kind, Kind::Unit { .. } | Kind::User { .. })))
                .unwrap_or_else(|| path.to_owned())
        };
        let mut owner = detail.bare(match aggregate {
            Aggregate::Container => container.clone().unwrap_or_else(|| path.to_owned()),
            Aggregate::Workload if self.pod.is_some() => String::new(),
            Aggregate::Pod | Aggregate::Workload => pod(),
            Aggregate::Node => return detail.bare(String::new()),
        });
        if let Some(pod) = &self.pod {
            owner.namespace.clone_from(&pod.namespace);
            if aggregate == Aggregate::Workload {
                let workload = &pod.workload;
                owner.workload = Some([workload.kind.clone(), workload.name.clone()]);
            } else {
                owner.pod.clone_from(&pod.name);
            }
            for (label, value) in owner.pod_labels.iter_mut().zip(&pod.labels) {
                label.clone_from(value);
            }
        }
        let in_pod = self.pod.is_some() || innermost_pod.is_some();
        match aggregate {
            Aggregate::Container => owner.container = self.container,
            Aggregate::Pod if !in_pod => owner.container = self.container,
            Aggregate::Workload if self.pod.is_none() => {
                owner.workload = Some(self.host_workload());
            }
            _ => {}
        }
        owner
    }

    /// What runs outside of any pod that is known by name: a pod by its UID, a container, a service or
    /// a user's processes.
    fn host_workload(self) -> [String; 2] {
        let innermost = |name: fn(&Kind) -> Option<(&'static str, String)>| {
            self.levels.iter().rev().find_map(|level| name(&level.kind))
        };
        let container = || {
            let within = |kind: &Kind| matches!(kind, Kind::Container { .. });
            let any = self.levels.iter().any(|level| within(&level.kind));
            any.then(|| ("Container", self.container.clone()))
        };
        let (kind, name) = innermost(|kind| match kind {
            Kind::Pod { uid } => Some(("Pod", uid.to_string())),
            _ => None,
        })
        .or_else(container)
        .or_else(|| {
            innermost(|kind| match kind {
                Kind::Unit { name } => Some(("Unit", (*name).to_owned())),
                Kind::User { uid } => Some(("User", uid.to_string())),
                _ => None,
            })
        })
        .unwrap_or_default();
        [kind.to_owned(), name]
    }
}

/// What runtimes say of containers, read once. Containers that no file tells of are asked for
/// again: theirs may not have been written yet.
#[derive(Debug, Default)]
struct States {
    by_id: HashMap<Box<str>, Arc<State>>,
    order: VecDeque<Box<str>>,
}

impl States {
    fn of(&mut self, rootfs: &std::path::Path, runtime: Runtime, id: &str) -> Option<Arc<State>> {
        if let Some(state) = self.by_id.get(id) {
            return Some(Arc::clone(state));
        }
        let state = Arc::new(runtime::state(rootfs, runtime, id)?);
        self.keep(id, Arc::clone(&state));
        Some(state)
    }

    fn keep(&mut self, id: &str, state: Arc<State>) {
        let id: Box<str> = id.into();
        self.order.push_back(id.clone());
        self.by_id.insert(id, state);
        if self.order.len() > STATES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }
}

/// Sleeps until there is something to read.
///
/// # Errors
/// When the kernel refuses to wait; a signal is no error.
pub(crate) fn wait(readable: &OwnedFd) -> io::Result<()> {
    match poll(&mut [PollFd::new(readable, PollFlags::IN)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const UID: &str = "0a1b2c3d-4e5f-4a6b-8c7d-000000000001";

    fn id(letter: char) -> String {
        letter.to_string().repeat(64)
    }

    /// Where a container of the pod runs.
    fn in_pod(id: &str) -> String {
        format!("/kubepods/burstable/pod{UID}/{id}")
    }

    fn pods() -> Pods {
        let web = json!({
            "metadata": {
                "namespace": "shop", "name": "web-7c9d-x2v9k", "uid": UID,
                "labels": {"app": "web", "pod-template-hash": "7c9d"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web-7c9d", "controller": true}],
            },
            "status": {"containerStatuses": [
                {"name": "nginx", "containerID": format!("containerd://{}", id('a'))},
            ]},
        });
        Pods::of(&["app"], &[web])
    }

    /// The labels and how certain they are, as
    /// `namespace pod container cgroup|workload_kind workload|labels certainty`.
    fn told(
        path: &str,
        pods: Option<&Pods>,
        aggregate: Aggregate,
        state: impl Fn(&str) -> Option<State>,
    ) -> String {
        let (found, certainty) = find(path, pods, |_, id| state(id).map(Arc::new));
        let detail = Detail {
            aggregate,
            pod_labels: 1,
        };
        let Owner {
            namespace,
            pod,
            container,
            cgroup,
            workload,
            pod_labels,
        } = found.labels(path, detail);
        let workload = workload.map(|names| names.join(" ")).unwrap_or_default();
        let labels = pod_labels.join(",");
        format!("{namespace} {pod} {container} {cgroup}|{workload}|{labels} {certainty:?}")
    }

    fn nothing(_: &str) -> Option<State> {
        None
    }

    fn named(name: &str) -> State {
        State {
            name: Some(name.to_owned()),
            ..State::default()
        }
    }

    fn in_kubernetes(name: &str, uid: &str) -> State {
        State {
            pod: Some(PodOf {
                namespace: "jobs".to_owned(),
                name: "job-1".to_owned(),
                uid: uid.to_owned(),
            }),
            ..named(name)
        }
    }

    fn by_container(path: &str, state: impl Fn(&str) -> Option<State>) -> String {
        told(path, Some(&pods()), Aggregate::Container, state)
    }

    #[test]
    fn the_api_server_knows_best() {
        let path = in_pod(&id('a'));
        let expected = format!("shop web-7c9d-x2v9k nginx {path}||web Full");
        assert_eq!(by_container(&path, nothing), expected);
        assert_eq!(
            by_container(&path, |_| Some(in_kubernetes("x", "y"))),
            expected
        );
        // All of a container is the container's.
        assert_eq!(
            by_container(&format!("{path}/init.scope"), nothing),
            expected
        );
    }

    #[test]
    fn a_container_without_a_name_has_its_pods() {
        let path = in_pod(&id('b'));
        assert_eq!(
            by_container(&path, nothing),
            format!("shop web-7c9d-x2v9k {} {path}||web Pod", id('b'))
        );
        // The runtime knows its name, and the API server the pod's labels.
        assert_eq!(
            by_container(&path, |_| Some(in_kubernetes("debug", UID))),
            format!("shop web-7c9d-x2v9k debug {path}||web Full")
        );
        let sandbox = |_: &str| {
            Some(State {
                name: None,
                sandbox: true,
                ..in_kubernetes("", UID)
            })
        };
        assert_eq!(
            by_container(&path, sandbox),
            format!("shop web-7c9d-x2v9k  {path}||web Full")
        );
        // The pod's own cgroup.
        let own = format!("/kubepods/burstable/pod{UID}");
        assert_eq!(
            by_container(&own, nothing),
            format!("shop web-7c9d-x2v9k  {own}||web Full")
        );
    }

    #[test]
    fn without_the_api_server_the_runtime_names_the_pod() {
        let path = in_pod(&id('c'));
        let told = |pods: Option<&Pods>, aggregate| {
            told(&path, pods, aggregate, |_| {
                Some(in_kubernetes("main", "another"))
            })
        };
        let expected = format!("jobs job-1 main {path}|| Full");
        assert_eq!(told(None, Aggregate::Container), expected);
        assert_eq!(told(Some(&pods()), Aggregate::Container), expected);
        // What owns the pod, the runtime does not know.
        assert_eq!(told(None, Aggregate::Workload), "jobs   |Pod job-1| Full");
    }

    #[test]
    fn what_nobody_knows_goes_by_its_id() {
        let path = in_pod(&id('d'));
        let told = |aggregate| told(&path, None, aggregate, nothing);
        let id = id('d');
        assert_eq!(told(Aggregate::Container), format!("  {id} {path}|| Path"));
        let pod = format!("/kubepods/burstable/pod{UID}");
        assert_eq!(told(Aggregate::Pod), format!("   {pod}|| Path"));
        assert_eq!(
            told(Aggregate::Workload),
            format!("   {pod}|Pod {UID}| Path")
        );
    }

    #[test]
    fn outside_of_kubernetes_the_runtime_names_the_container() {
        let path = format!("/system.slice/docker-{}.scope", id('e'));
        let told = |aggregate| told(&path, Some(&pods()), aggregate, |_| Some(named("db")));
        assert_eq!(told(Aggregate::Container), format!("  db {path}|| Full"));
        assert_eq!(told(Aggregate::Pod), format!("  db {path}|| Full"));
        assert_eq!(
            told(Aggregate::Workload),
            format!("   {path}|Container db| Full")
        );
        assert_eq!(told(Aggregate::Node), "   || Full");
        // LXC's ids are names.
        let path = "/lxc.payload.mail";
        assert_eq!(
            by_container(path, nothing),
            "  mail /lxc.payload.mail|| Full"
        );
    }

    #[test]
    fn of_nested_containers_the_innermost_of_a_pod_counts() {
        // Docker in the container of a pod.
        let path = format!("{}/docker/{}", in_pod(&id('a')), id('f'));
        assert_eq!(
            by_container(&path, nothing),
            format!("shop web-7c9d-x2v9k nginx {path}||web Full")
        );
        // A pod in a node of kind that this host's Docker runs.
        let path = format!("/docker/{}/kubelet{}", id('0'), in_pod(&id('a')));
        let node = |of: &str| {
            if of == id('0') {
                Some(named("kind"))
            } else {
                None
            }
        };
        assert_eq!(
            by_container(&path, node),
            format!("shop web-7c9d-x2v9k nginx {path}||web Full")
        );
        let pod = format!("/docker/{}/kubelet/kubepods/burstable/pod{UID}", id('0'));
        assert_eq!(
            told(&path, Some(&pods()), Aggregate::Pod, node),
            format!("shop web-7c9d-x2v9k  {pod}||web Full")
        );
        // Nobody told of the pod: the container around it is not whose name it goes by.
        assert_eq!(
            told(&path, None, Aggregate::Container, node),
            format!("  {} {path}|| Path", id('a'))
        );
    }

    #[test]
    fn pods_services_and_users_are_told_apart_likewise() {
        for (path, aggregate, expected) in [
            (
                "/system.slice/a.service/b",
                Aggregate::Container,
                "   /system.slice/a.service/b|| Full",
            ),
            (
                "/system.slice/a.service/b",
                Aggregate::Pod,
                "   /system.slice/a.service|| Full",
            ),
            (
                "/system.slice/a.service/b",
                Aggregate::Workload,
                "   /system.slice/a.service|Unit a.service| Full",
            ),
            (
                "/user.slice/user-7.slice",
                Aggregate::Workload,
                "   /user.slice/user-7.slice|User 7| Full",
            ),
            ("/", Aggregate::Workload, "   /| | Full"),
            ("/some/where", Aggregate::Pod, "   /some/where|| Full"),
            ("/some/where", Aggregate::Node, "   || Full"),
        ] {
            assert_eq!(
                told(path, Some(&pods()), aggregate, nothing),
                expected,
                "{path}"
            );
        }
        let path = in_pod(&id('a'));
        let pod = format!("/kubepods/burstable/pod{UID}");
        let told = |aggregate| told(&path, Some(&pods()), aggregate, nothing);
        assert_eq!(
            told(Aggregate::Pod),
            format!("shop web-7c9d-x2v9k  {pod}||web Full")
        );
        assert_eq!(told(Aggregate::Workload), "shop   |Deployment web|web Full");
    }

    #[test]
    fn what_is_known_better_stays() {
        let owner = |name: &str| {
            Arc::new(Owner {
                pod: name.to_owned(),
                ..Owner::default()
            })
        };
        let (mut known, mut certainty) = (owner("web"), Certainty::Pod);
        for (newer, with, expected) in [
            ("a", Certainty::Unknown, "web"),
            ("b", Certainty::Path, "web"),
            ("c", Certainty::Pod, "c"),
            ("d", Certainty::Full, "d"),
            ("e", Certainty::Pod, "d"),
            ("f", Certainty::Full, "f"),
        ] {
            let newer = Named {
                owner: owner(newer),
                certainty: with,
            };
            newer.improve(&mut known, &mut certainty);
            assert_eq!(known.pod, expected);
        }
        assert_eq!(certainty, Certainty::Full);
    }

    #[test]
    fn the_unknown_are_one_where_cgroups_are_not_told_apart() {
        let workload = Workload {
            hierarchy: 0,
            cgroup_id: 7,
        };
        for (aggregate, expected) in [
            (Aggregate::Container, "unknown:0:7"),
            (Aggregate::Pod, "unknown"),
            (Aggregate::Workload, "unknown"),
            (Aggregate::Node, ""),
        ] {
            let detail = Detail {
                aggregate,
                pod_labels: 2,
            };
            let owner = detail.unknown(workload);
            assert_eq!(owner.cgroup, expected);
            assert_eq!(owner.pod_labels.len(), 2);
            assert_eq!(owner.workload.is_some(), aggregate == Aggregate::Workload);
        }
    }

    #[test]
    fn states_are_read_once_and_bounded() {
        let root = std::env::temp_dir().join(format!("sentry-states-{}", std::process::id()));
        let id = |number: usize| format!("{number:064x}");
        let mut states = States::default();
        assert_eq!(states.of(&root, Runtime::Docker, &id(0)), None);
        let folder = root.join("var/lib/docker/containers").join(id(0));
        std::fs::create_dir_all(&folder).unwrap();
        let text = r#"{"Name": "/db", "Config": {"Labels": {}}}"#;
        std::fs::write(folder.join("config.v2.json"), text).unwrap();
        assert_eq!(
            *states.of(&root, Runtime::Docker, &id(0)).unwrap(),
            named("db")
        );
        std::fs::remove_dir_all(&root).unwrap();
        for number in 1..STATES_MAX {
            states.keep(&id(number), Arc::default());
        }
        assert!(states.of(&root, Runtime::Docker, &id(0)).is_some());
        states.keep(&id(STATES_MAX), Arc::default());
        assert_eq!(states.of(&root, Runtime::Docker, &id(0)), None);
        assert_eq!(states.by_id.len(), STATES_MAX);
        assert_eq!(states.order.len(), STATES_MAX);
    }
}
