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
    /// All that the runtime's file says: neither labels of the pod nor what owns it.
    Runtime,
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
            *certainty = self.certainty;
            if *owner != self.owner {
                *owner = self.owner;
            }
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
    /// What a set of labels is to stand for.
    pub(crate) aggregate: Aggregate,
    /// How many labels of pods were asked for.
    pub(crate) pod_labels: usize,
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
    aggregate: Aggregate,
    pod_labels: usize,
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
            aggregate: sources.aggregate,
            pod_labels: sources.pod_labels,
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
            owner: Arc::new(self.bare(OTHER.to_owned())),
            certainty: Certainty::Full,
        }
    }

    /// Labels with no more than a cgroup.
    fn bare(&self, cgroup: String) -> Owner {
        Owner {
            cgroup,
            workload: (self.aggregate == Aggregate::Workload).then(Default::default),
            pod_labels: vec![String::new(); self.pod_labels],
            ..Owner::default()
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

    /// Whether a cgroup is there, or was a while ago.
    pub(crate) fn is_known(&self, workload: Workload) -> bool {
        self.cgroups.is_known(workload)
    }

    /// Whose a workload is, as far as that is known now.
    pub(crate) fn owner(&mut self, workload: Workload) -> Named {
        // A cgroup that went before anybody learned its name has none that begins with a slash.
        let path = self.cgroups.path(workload);
        let Some(path) = path.filter(|path| path.starts_with('/')) else {
            let cgroup = match self.names.aggregate {
                Aggregate::Container => cgroup::unknown(workload),
                Aggregate::Pod | Aggregate::Workload => UNKNOWN.to_owned(),
                Aggregate::Node => String::new(),
            };
            return Named {
                owner: Arc::new(self.names.bare(cgroup)),
                certainty: Certainty::Unknown,
            };
        };
        let states = &mut self.states;
        let rootfs = &self.names.rootfs;
        let (found, certainty) = find(&path, self.pods.as_deref(), |runtime, id| {
            states.of(rootfs, runtime, id)
        });
        let owner = found.labels(&path, self.names);
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
                    let certainty = match known {
                        Some(_) => Certainty::Full,
                        None => Certainty::Runtime,
                    };
                    found.pod = known.or_else(|| Some(Arc::new(of_state(of))));
                    let name = state.and_then(|state| state.name.clone());
                    container = Some((name.unwrap_or_default(), certainty));
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
    fn labels(self, path: &str, names: &Names) -> Owner {
        let innermost = |wanted: fn(&Kind) -> bool| {
            let mut levels = self.levels.iter().rev();
            let level = levels.find(|level| wanted(&level.kind))?;
            Some(path[..level.end].to_owned())
        };
        let container = innermost(|kind| matches!(kind, Kind::Container { .. }));
        // What is no pod is told apart as finely as a pod is: by container, service or user.
        let pod = || {
            innermost(|kind| matches!(kind, Kind::Pod { .. }))
                .or_else(|| container.clone())
                .or_else(|| innermost(|kind| matches!(kind, Kind::Unit { .. } | Kind::User { .. })))
                .unwrap_or_else(|| path.to_owned())
        };
        let bare = |cgroup| names.bare(cgroup);
        let mut owner = match names.aggregate {
            Aggregate::Node => return bare(String::new()),
            Aggregate::Container => bare(container.unwrap_or_else(|| path.to_owned())),
            Aggregate::Workload if self.pod.is_some() => bare(String::new()),
            Aggregate::Pod | Aggregate::Workload => bare(pod()),
        };
        if let Some(pod) = &self.pod {
            owner.namespace.clone_from(&pod.namespace);
            if names.aggregate == Aggregate::Workload {
                let workload = &pod.workload;
                owner.workload = Some([workload.kind.clone(), workload.name.clone()]);
            } else {
                owner.pod.clone_from(&pod.name);
            }
            for (label, value) in owner.pod_labels.iter_mut().zip(&pod.labels) {
                label.clone_from(value);
            }
        }
        if names.aggregate == Aggregate::Container
            || (names.aggregate == Aggregate::Pod && self.pod.is_none())
        {
            owner.container = self.container;
        } else if names.aggregate == Aggregate::Workload && self.pod.is_none() {
            owner.workload = Some(self.host_workload());
        }
        owner
    }

    /// What runs outside of any pod that is known: a container, a service or a user's processes.
    fn host_workload(self) -> [String; 2] {
        let (kind, name) = self
            .levels
            .iter()
            .rev()
            .find_map(|level| match &level.kind {
                Kind::Container { .. } => Some(("Container", self.container.clone())),
                Kind::Pod { uid } => Some(("Pod", uid.to_string())),
                Kind::Unit { .. } | Kind::User { .. } => None,
            })
            .or_else(|| {
                let mut levels = self.levels.iter().rev();
                levels.find_map(|level| match &level.kind {
                    Kind::Unit { name } => Some(("Unit", (*name).to_owned())),
                    Kind::User { uid } => Some(("User", uid.to_string())),
                    Kind::Container { .. } | Kind::Pod { .. } => None,
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
        let id: Box<str> = id.into();
        self.order.push_back(id.clone());
        self.by_id.insert(id, Arc::clone(&state));
        if self.order.len() > STATES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_id.remove(&oldest);
        }
        Some(state)
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
    use super::*;

    #[test]
    fn a_runtimes_file_is_not_all_there_is() {
        let id = "c".repeat(64);
        let path = format!("/kubepods.slice/kubepods-pod0a_1.slice/cri-containerd-{id}.scope");
        let state = State {
            name: Some("app".to_owned()),
            pod: Some(PodOf {
                namespace: "shop".to_owned(),
                name: "web-0".to_owned(),
                uid: "0a-1".to_owned(),
            }),
            sandbox: false,
        };
        let state = Arc::new(state);
        let (found, certainty) = find(&path, None, |_, _| Some(Arc::clone(&state)));
        assert_eq!(found.container, "app");
        assert_eq!(found.pod.unwrap().name, "web-0");
        assert_eq!(certainty, Certainty::Runtime);

        // Labels that the API server told stay when it has forgotten the pod.
        let labelled = |label: &str, certainty| Named {
            owner: Arc::new(Owner {
                pod_labels: vec![label.to_owned()],
                ..Owner::default()
            }),
            certainty,
        };
        let Named {
            mut owner,
            mut certainty,
        } = labelled("web", Certainty::Full);
        labelled("", Certainty::Runtime).improve(&mut owner, &mut certainty);
        assert_eq!((&*owner.pod_labels[0], certainty), ("web", Certainty::Full));
        labelled("web2", Certainty::Full).improve(&mut owner, &mut certainty);
        assert_eq!(owner.pod_labels[0], "web2");
    }
}
