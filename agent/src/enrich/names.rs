//! From a cgroup's id to the labels of its workload: its path, what that says of containers and
//! pods, and what Kubernetes and the runtimes know of those.

use std::{
    cmp::Ordering,
    collections::{HashMap, VecDeque},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, TryLockError},
    thread,
    time::{Duration, Instant},
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
use crate::{
    collect::lock,
    config::{Aggregate, PodLabel},
};

/// States of containers that are kept: every other path of a removed cgroup is a container's, the
/// rest their pods', and as many again live.
const STATES_MAX: usize = 2048;

/// States that are read as containers are made, in a second; more are read when they are asked for.
/// The kubelet starts ten at a time.
const READ_AHEAD_MAX: u32 = 100;

/// Events that are taken in at once, some thirty times what the ring holds: there must be an end while
/// others make cgroups as fast as it goes.
const EVENTS_MAX: usize = 4096;

/// The cgroup of what found no room.
const OTHER: &str = "other";

/// The cgroup, where cgroups are not told apart, of those whose name nobody saw.
const UNKNOWN: &str = "unknown";

/// The labels that name a workload. Empty where there is nothing to tell, or where it is not to be
/// told apart.
///
/// To Prometheus an empty label is none, so owners that differ in nothing else are one and the same here, too: after a
/// change of what is told apart there are both.
#[derive(Debug, Clone, Default)]
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
    /// Those labels.
    pub(crate) pod_label_names: Arc<[PodLabel]>,
}

impl Owner {
    /// The labels of its pod, and their values.
    pub(crate) fn pod_labels(&self) -> impl Iterator<Item = (&PodLabel, &str)> {
        let values = self.pod_labels.iter().map(String::as_str);
        self.pod_label_names.iter().zip(values)
    }

    fn cmp_labels(&self, other: &Self) -> Ordering {
        fn names(owner: &Owner) -> [&str; 4] {
            let names = [
                &owner.namespace,
                &owner.pod,
                &owner.container,
                &owner.cgroup,
            ];
            names.map(String::as_str)
        }
        fn workload(owner: &Owner) -> [&str; 2] {
            let names = owner.workload.as_ref();
            names.map_or([""; 2], |names| names.each_ref().map(String::as_str))
        }
        /// By their names.
        fn pod_labels(owner: &Owner) -> impl Iterator<Item = (&str, &str)> {
            let labels = owner.pod_labels().filter(|(_, value)| !value.is_empty());
            labels.map(|(label, value)| (label.name(), value))
        }
        names(self)
            .cmp(&names(other))
            .then_with(|| workload(self).cmp(&workload(other)))
            .then_with(|| pod_labels(self).cmp(pod_labels(other)))
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.cmp_labels(other) == Ordering::Equal
    }
}

impl Eq for Owner {}

impl PartialOrd for Owner {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Owner {
    fn cmp(&self, other: &Self) -> Ordering {
        self.cmp_labels(other)
    }
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
    pub(crate) detail: Detail,
}

/// What is told apart.
#[derive(Debug, Clone)]
pub(crate) struct Detail {
    /// What a set of labels stands for.
    pub(crate) aggregate: Aggregate,
    /// The labels of pods that were asked for, by their names.
    pub(crate) pod_labels: Arc<[PodLabel]>,
}

/// The names of labels, as Kubernetes has them.
pub(crate) fn of_labels(labels: &[PodLabel]) -> Vec<String> {
    labels.iter().map(|label| label.name().to_owned()).collect()
}

impl Detail {
    /// Labels with no more than a cgroup.
    fn bare(&self, cgroup: String) -> Owner {
        Owner {
            cgroup,
            workload: (self.aggregate == Aggregate::Workload).then(Default::default),
            pod_labels: vec![String::new(); self.pod_labels.len()],
            pod_label_names: Arc::clone(&self.pod_labels),
            ..Owner::default()
        }
    }

    /// The labels of a workload whose name nobody saw.
    fn unknown(&self, workload: Workload) -> Owner {
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
    // Always locked in this order, states never under events.
    events: Option<Mutex<Events>>,
    states: Mutex<States>,
    cgroups: Mutex<Cgroups>,
    mounts: Vec<Mount>,
    pods: Option<Arc<Watch>>,
    rootfs: PathBuf,
    detail: Mutex<Detail>,
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
            detail: Mutex::new(sources.detail),
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

    /// Takes in what the kernel has told so far. Whether a cgroup has gone.
    ///
    /// What was done in a cgroup comes after the news that it was made: who reads cells first and
    /// calls this then knows the path of every cgroup that it has met.
    pub(crate) fn take_in_events(&self) -> bool {
        let (mut made, mut removed) = self.apply_events();
        while let Some(path) = made.pop_front() {
            if self.read_state_of(&path) {
                // The ring is small, and a file takes as long as a few events.
                let more = self.apply_events();
                made.extend(more.0);
                removed |= more.1;
            }
        }
        removed
    }

    /// Takes the events in: the paths of cgroups that were made, and whether one has gone.
    fn apply_events(&self) -> (VecDeque<String>, bool) {
        let (mut made, mut removed) = (VecDeque::new(), false);
        let Some(events) = &self.events else {
            return (made, removed);
        };
        // Held until all is applied: two who take turns would do so out of order.
        let mut events = lock(events);
        let mut taken = Vec::new();
        let mut cgroups = loop {
            let room = EVENTS_MAX.saturating_sub(taken.len());
            taken.extend(std::iter::from_fn(|| events.take()).take(room));
            match self.cgroups.try_lock() {
                Ok(cgroups) => break cgroups,
                Err(TryLockError::Poisoned(cgroups)) => break cgroups.into_inner(),
                // Somebody looks all names up, and the ring is small.
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_micros(200)),
            }
        };
        for event in taken {
            match event {
                Ok(event) => {
                    let workload = Workload {
                        hierarchy: event.hierarchy,
                        cgroup_id: event.id,
                    };
                    let is_removed = event.change == Change::Removed;
                    removed |= is_removed;
                    cgroups.apply(event);
                    if !is_removed {
                        made.extend(cgroups.path(workload));
                    }
                }
                Err(error) => tracing::error!(%error),
            }
        }
        (made, removed)
    }

    /// Reads what the runtime has written of a container whose cgroup was made just now: it may
    /// be gone before anybody asks. Whether it was looked for.
    fn read_state_of(&self, path: &str) -> bool {
        let last = container::levels(path).into_iter().next_back();
        if let Some(Level {
            kind: Kind::Container { runtime, id },
            end,
        }) = last
            && end == path.len()
        {
            let mut states = lock(&self.states);
            let may = states.may_read_ahead(Instant::now());
            if may {
                states.of(&self.rootfs, runtime, &id);
            }
            return may;
        }
        false
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

    /// How often cgroups have come or gone.
    pub(crate) fn changes(&self) -> u64 {
        lock(&self.cgroups).changes()
    }

    /// The cgroups that are there, with their paths.
    pub(crate) fn cgroups(&self) -> Vec<(Workload, String)> {
        lock(&self.cgroups).all().collect()
    }

    /// Grows when names may have changed that were known.
    pub(crate) fn version(&self) -> u64 {
        self.pods.as_ref().map_or(0, |watch| watch.pods().version())
    }

    /// Whether workloads share labels by design, so that one that is renamed must not take along what
    /// the labels have counted.
    pub(crate) fn labels_are_shared(&self) -> bool {
        lock(&self.detail).aggregate != Aggregate::Container
    }

    fn detail(&self) -> Detail {
        lock(&self.detail).clone()
    }

    /// What is told apart from now on, and which labels of pods. Whether that is something else than before.
    pub(crate) fn tell(&self, aggregate: Aggregate, pod_labels: &[PodLabel]) -> bool {
        // Those who look names up hold the pods, and see both or none.
        let pods = self.pods.as_ref().map(|watch| watch.pods());
        let mut detail = lock(&self.detail);
        let shows_others = *detail.pod_labels != *pod_labels;
        if shows_others {
            detail.pod_labels = pod_labels.into();
            if let Some(mut pods) = pods {
                pods.show(of_labels(pod_labels));
            }
        }
        std::mem::replace(&mut detail.aggregate, aggregate) != aggregate || shows_others
    }

    /// How long the names of deleted pods are known from now on.
    pub(crate) fn retain(&self, retention: Duration) {
        if let Some(watch) = &self.pods {
            watch.pods().retain(retention);
        }
    }

    /// The watch of pods, where there is one.
    pub(crate) fn watch(&self) -> Option<&Watch> {
        self.pods.as_deref()
    }

    /// To look several names up.
    pub(crate) fn look(&self) -> Look<'_> {
        Look {
            last: None,
            states: lock(&self.states),
            cgroups: lock(&self.cgroups),
            pods: self.pods.as_ref().map(|watch| watch.pods()),
            detail: self.detail(),
            names: self,
        }
    }

    /// Whose the events are that found no room.
    pub(crate) fn other(&self) -> Named {
        Named {
            owner: Arc::new(self.detail().bare(OTHER.to_owned())),
            certainty: Certainty::Full,
        }
    }
}

/// All names, held for a moment.
pub(crate) struct Look<'n> {
    /// The last answer: the series of a cgroup are asked for one after the other.
    last: Option<(Workload, Named)>,
    states: MutexGuard<'n, States>,
    cgroups: MutexGuard<'n, Cgroups>,
    pods: Option<MutexGuard<'n, Pods>>,
    detail: Detail,
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
        if let Some((of, named)) = &self.last
            && *of == workload
        {
            return named.clone();
        }
        let named = self.find(workload);
        self.last = Some((workload, named.clone()));
        named
    }

    fn find(&mut self, workload: Workload) -> Named {
        // A cgroup that went before anybody learned its name has none that begins with a slash.
        let path = self.cgroups.path(workload);
        let Some(path) = path.filter(|path| path.starts_with('/')) else {
            return Named {
                owner: Arc::new(self.detail.unknown(workload)),
                certainty: Certainty::Unknown,
            };
        };
        let states = &mut self.states;
        let rootfs = &self.names.rootfs;
        let (found, certainty) = find(&path, self.pods.as_deref(), |runtime, id| {
            states.of(rootfs, runtime, id)
        });
        let owner = found.labels(&path, &self.detail);
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
    /// Where the path of that pod ends.
    pod_end: usize,
    container: String,
}

/// Looks for the pod and its container from the outside inwards. What runs in a container may make
/// cgroups of its own there, called as it likes, and is its pod's all the same; so is Docker in a pod.
/// A pod in a node of kind is found within that node's container, which is in no pod.
fn find<'p>(
    path: &'p str,
    pods: Option<&Pods>,
    mut state: impl FnMut(Runtime, &str) -> Option<Arc<State>>,
) -> (Found<'p>, Certainty) {
    let levels = container::levels(path);
    let mut found = Found::default();
    let mut certainty = Certainty::Full;
    // The UID of a pod around of which the API server has not told.
    let mut untold: Option<&str> = None;
    for level in &levels {
        match &level.kind {
            Kind::Unit { .. } => {}
            // Users call their cgroups what they like: nothing is looked up by those names.
            Kind::User { .. } => {
                let mut within = levels.iter().rev();
                let id = within.find_map(|level| match &level.kind {
                    Kind::Container { id, .. } => Some(id.to_string()),
                    _ => None,
                });
                found.container = id.unwrap_or_default();
                certainty = Certainty::Full;
                break;
            }
            Kind::Pod { uid } => {
                found.pod = pods.and_then(|pods| pods.by_uid(uid));
                found.pod_end = level.end;
                if found.pod.is_some() {
                    found.container.clear();
                    certainty = Certainty::Full;
                } else {
                    untold = Some(uid);
                    certainty = Certainty::Path;
                }
            }
            Kind::Container { runtime, id } => {
                // Where a pod is around, the container must be that one's.
                let around = found.pod.as_deref().map(|pod| pod.uid.to_string());
                let around = around.as_deref().or(untold);
                let fits = |uid: &str| around.is_none_or(|around| around == uid);
                let pod_end = around.map_or(level.end, |_| found.pod_end);
                if let Some((pod, name)) = pods.and_then(|pods| pods.by_container(id))
                    && fits(&pod.uid)
                {
                    (found.pod, found.pod_end) = (Some(pod), pod_end);
                    found.container = name.to_string();
                    certainty = Certainty::Full;
                    break;
                }
                let state = state(*runtime, id);
                let name = state.as_deref().and_then(|state| {
                    let unnamed = state.sandbox.then(String::new);
                    unnamed.or_else(|| state.name.clone())
                });
                if found.pod.is_some() {
                    (found.container, certainty) = match name {
                        Some(name) => (name, Certainty::Full),
                        None => (id.to_string(), Certainty::Pod),
                    };
                    break;
                }
                if let Some(of) = state.as_deref().and_then(|state| state.pod.as_ref())
                    && fits(&of.uid)
                {
                    let told = pods.and_then(|pods| pods.by_uid(&of.uid));
                    certainty = match told {
                        Some(_) => Certainty::Full,
                        None => Certainty::Runtime,
                    };
                    found.pod = told.or_else(|| Some(Arc::new(of_state(of))));
                    found.pod_end = pod_end;
                    found.container = name.unwrap_or_default();
                    break;
                }
                // In Kubernetes, a container's name says little without its pod's.
                let in_kubernetes = state.as_deref().is_some_and(|state| state.pod.is_some());
                let name = name
                    .filter(|_| !in_kubernetes)
                    .or_else(|| runtime.goes_by_names().then(|| id.to_string()));
                // A name is better than an id, and of ids the innermost, which is who runs there.
                if let Some(name) = name {
                    (found.container, certainty) = (name, Certainty::Full);
                } else if found.container.is_empty() || certainty == Certainty::Path {
                    (found.container, certainty) = (id.to_string(), Certainty::Path);
                }
            }
        }
    }
    found.levels = levels;
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
    fn labels(self, path: &str, detail: &Detail) -> Owner {
        let aggregate = detail.aggregate;
        let up_to = |level: &Level| path[..level.end].to_owned();
        let innermost = |wanted: fn(&Kind) -> bool| {
            let mut levels = self.levels.iter().rev();
            levels.find(|level| wanted(&level.kind)).map(up_to)
        };
        let outermost = |wanted: fn(&Kind) -> bool| {
            let mut levels = self.levels.iter();
            levels.find(|level| wanted(&level.kind)).map(up_to)
        };
        let container = innermost(|kind| matches!(kind, Kind::Container { .. }));
        let innermost_pod = match self.pod {
            Some(_) => Some(path[..self.pod_end].to_owned()),
            None => innermost(|kind| matches!(kind, Kind::Pod { .. })),
        };
        // What is no pod is told apart as finely as a pod is: by container, user or service, and not
        // by the many units of each user's.
        let pod = || {
            let pod = innermost_pod.clone();
            pod.or_else(|| container.clone())
                .or_else(|| outermost(|kind| matches!(kind, Kind::User { .. })))
                .or_else(|| outermost(|kind| matches!(kind, Kind::Unit { .. })))
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
        let name_of = |level: &Level| match &level.kind {
            Kind::Unit { name } => Some(("Unit", (*name).to_owned())),
            Kind::User { uid } => Some(("User", uid.to_string())),
            Kind::Pod { uid } => Some(("Pod", uid.to_string())),
            Kind::Container { .. } => None,
        };
        let is = |wanted: fn(&Kind) -> bool| move |level: &&Level| wanted(&level.kind);
        let (pod, user) = (
            is(|kind| matches!(kind, Kind::Pod { .. })),
            is(|kind| matches!(kind, Kind::User { .. })),
        );
        let mut containers = self.levels.iter();
        let in_container = containers.any(|level| matches!(level.kind, Kind::Container { .. }));
        let (kind, name) = self
            .levels
            .iter()
            .rev()
            .find(pod)
            .and_then(name_of)
            .or_else(|| in_container.then(|| ("Container", self.container.clone())))
            .or_else(|| self.levels.iter().find(user).and_then(name_of))
            .or_else(|| self.levels.iter().find_map(name_of))
            .unwrap_or_default();
        [kind.to_owned(), name]
    }
}

/// What runtimes say of containers, read once. Containers that no file tells of are asked for
/// again: theirs may not have been written yet.
#[derive(Debug, Default)]
struct States {
    by_id: HashMap<Arc<str>, Arc<State>>,
    order: VecDeque<Arc<str>>,
    /// Since when, and how many were read ahead since.
    ahead: Option<(Instant, u32)>,
}

impl States {
    /// Anybody may make cgroups that are called like containers, as fast as it goes.
    fn may_read_ahead(&mut self, now: Instant) -> bool {
        let (since, count) = self.ahead.get_or_insert((now, 0));
        if now.duration_since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= READ_AHEAD_MAX
    }

    fn of(&mut self, rootfs: &std::path::Path, runtime: Runtime, id: &str) -> Option<Arc<State>> {
        if let Some(state) = self.by_id.get(id) {
            return Some(Arc::clone(state));
        }
        let state = Arc::new(runtime::state(rootfs, runtime, id)?);
        self.keep(id, Arc::clone(&state));
        Some(state)
    }

    fn keep(&mut self, id: &str, state: Arc<State>) {
        let id: Arc<str> = id.into();
        self.order.push_back(Arc::clone(&id));
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

    fn web() -> serde_json::Value {
        json!({
            "metadata": {
                "namespace": "shop", "name": "web-7c9d-x2v9k", "uid": UID,
                "labels": {"app": "web", "pod-template-hash": "7c9d"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web-7c9d", "controller": true}],
            },
            "status": {"containerStatuses": [
                {"name": "nginx", "containerID": format!("containerd://{}", id('a'))},
            ]},
        })
    }

    fn pods() -> Pods {
        Pods::of(&["app"], &[web()])
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
            pod_labels: Arc::new([PodLabel::from("app")]),
        };
        let Owner {
            namespace,
            pod,
            container,
            cgroup,
            workload,
            pod_labels,
            ..
        } = found.labels(path, &detail);
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
        const OTHER: &str = "9a1b2c3d-4e5f-4a6b-8c7d-000000000009";
        let path = format!("/kubepods/burstable/pod{OTHER}/{}", id('c'));
        let told = |pods: Option<&Pods>, aggregate| {
            told(&path, pods, aggregate, |_| {
                Some(in_kubernetes("main", OTHER))
            })
        };
        let expected = format!("jobs job-1 main {path}|| Runtime");
        assert_eq!(told(None, Aggregate::Container), expected);
        assert_eq!(told(Some(&pods()), Aggregate::Container), expected);
        // What owns the pod, the runtime does not know.
        assert_eq!(
            told(None, Aggregate::Workload),
            "jobs   |Pod job-1| Runtime"
        );
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
    fn nobody_takes_the_name_of_anothers_pod() {
        let scope = format!("cri-containerd-{}.scope", id('a'));
        // A user's own cgroups.
        let user = "/user.slice/user-7.slice/user@7.service";
        let path = format!("{user}/kubepods.slice/kubepods-pod1.slice/{scope}");
        let claims = |_: &str| Some(in_kubernetes("nginx", UID));
        assert_eq!(
            by_container(&path, claims),
            format!("  {} {path}|| Full", id('a'))
        );
        assert_eq!(
            told(&path, Some(&pods()), Aggregate::Workload, claims),
            format!("   {path}|Container {}| Full", id('a'))
        );
        // Those of a container in another pod.
        let other = json!({
            "metadata": {"namespace": "evil", "name": "other", "uid": "5a1b2c3d-4e5f-4a6b-8c7d-000000000005"},
            "status": {"containerStatuses": [
                {"name": "own", "containerID": format!("containerd://{}", id('c'))},
            ]},
        });
        let own = format!(
            "/kubepods/burstable/pod5a1b2c3d-4e5f-4a6b-8c7d-000000000005/{}",
            id('c')
        );
        let pods = Pods::of(&["app"], &[other, web()]);
        for within in [in_pod(&id('a')), format!("/{scope}")] {
            let path = format!("{own}{within}");
            assert_eq!(
                told(&path, Some(&pods), Aggregate::Container, nothing),
                format!("evil other own {path}|| Full")
            );
        }
        // A container in a pod that is not its own.
        let path = format!(
            "/kubepods/burstable/pod9a1b2c3d-4e5f-4a6b-8c7d-000000000009/{}",
            id('a')
        );
        assert_eq!(
            told(&path, Some(&pods), Aggregate::Container, claims),
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
            ("g", Certainty::Runtime, "f"),
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
                pod_labels: Arc::new(["app", "team"].map(PodLabel::from)),
            };
            let owner = detail.unknown(workload);
            assert_eq!(owner.cgroup, expected);
            assert_eq!(owner.pod_labels.len(), 2);
            assert_eq!(owner.workload.is_some(), aggregate == Aggregate::Workload);
        }
    }

    #[test]
    fn an_empty_label_is_none() {
        let bare = |aggregate| {
            let detail = Detail {
                aggregate,
                pod_labels: Arc::default(),
            };
            detail.bare("/".to_owned())
        };
        let (pod, workload) = (bare(Aggregate::Pod), bare(Aggregate::Workload));
        assert!(pod.workload.is_none() && workload.workload.is_some());
        assert_eq!(pod, workload);
        let named = Owner {
            workload: Some(["Unit".to_owned(), "a".to_owned()]),
            ..workload.clone()
        };
        assert_ne!(pod, named);
        assert!(workload < named);
        for other in [
            Owner {
                namespace: "n".to_owned(),
                ..pod.clone()
            },
            Owner {
                container: "c".to_owned(),
                ..pod.clone()
            },
            Owner {
                pod_labels: vec!["x".to_owned()],
                pod_label_names: Arc::new([PodLabel::from("app")]),
                ..pod.clone()
            },
        ] {
            assert_ne!(pod, other);
            assert!(pod < other);
        }
    }

    #[test]
    fn labels_of_pods_are_compared_by_their_names() {
        let owner = |labels: &[(&str, &str)]| Owner {
            pod_labels: labels
                .iter()
                .map(|(_, value)| (*value).to_owned())
                .collect(),
            pod_label_names: labels
                .iter()
                .map(|(name, _)| PodLabel::from(*name))
                .collect(),
            ..Owner::default()
        };
        let web = owner(&[("app", "web")]);
        assert_eq!(web, owner(&[("app", "web"), ("team", "")]));
        assert_eq!(owner(&[]), owner(&[("app", ""), ("team", "")]));
        assert_ne!(web, owner(&[("team", "web")]));
        assert_ne!(web, owner(&[("app", "web"), ("team", "x")]));
        assert_ne!(web, owner(&[("app", "")]));
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

    #[test]
    fn what_the_api_server_said_outlives_it() {
        let labelled = |label: &str, certainty| Named {
            owner: Arc::new(Owner {
                pod_labels: vec![label.to_owned()],
                pod_label_names: Arc::new([PodLabel::from("app")]),
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
