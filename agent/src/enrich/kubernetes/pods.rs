//! What is known of the pods: names by container id and by UID.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use super::pod::{self, Pod, Workload};

/// Pods and containers that are gone and still known, at most; the oldest go first.
const GONE_MAX: usize = 4096;

/// The names of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodNames {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// As the API has it; the cgroups of a static pod know another.
    pub(crate) uid: Arc<str>,
    pub(crate) workload: Workload,
    /// Values of the labels that were asked for, in that order; empty where the pod has none.
    pub(crate) labels: Vec<String>,
}

/// The pods of this node. Those that are deleted stay for a while, and so do the containers that
/// their pod's status mentions no longer.
#[derive(Debug)]
pub(crate) struct Pods {
    /// The labels that are shown.
    labels: Vec<String>,
    /// Whether others may be shown later, so that all are kept.
    keeps_all_labels: bool,
    retention: Duration,
    version: u64,
    by_uid: HashMap<Arc<str>, Entry>,
    /// From the UID that a kubelet gave a static pod to that of its mirror.
    by_config_hash: HashMap<Box<str>, Arc<str>>,
    by_container: HashMap<Arc<str>, Container>,
    /// In the order of time.
    gone: VecDeque<(Instant, Gone)>,
    /// Pods that are not gone.
    present: usize,
    listing: u64,
}

#[derive(Debug)]
struct Entry {
    names: Arc<PodNames>,
    /// All labels of the pod, where they are kept.
    labels: BTreeMap<Box<str>, Box<str>>,
    config_hash: Option<Box<str>>,
    /// Ids that the status mentioned last.
    containers: Vec<Arc<str>>,
    gone: Option<Instant>,
    /// The listing that had it last.
    listing: u64,
}

#[derive(Debug)]
struct Container {
    pod: Arc<str>,
    name: Arc<str>,
    /// Since when its pod's status does not mention it.
    gone: Option<Instant>,
}

#[derive(Debug)]
enum Gone {
    Pod(Arc<str>),
    Container(Arc<str>),
}

impl Pods {
    pub(super) fn new(labels: Vec<String>, keeps_all_labels: bool, retention: Duration) -> Self {
        Self {
            labels,
            keeps_all_labels,
            retention,
            version: 0,
            by_uid: HashMap::new(),
            by_config_hash: HashMap::new(),
            by_container: HashMap::new(),
            gone: VecDeque::new(),
            present: 0,
            listing: 0,
        }
    }

    /// Which labels are shown from now on.
    pub(crate) fn show(&mut self, labels: Vec<String>) {
        self.labels = labels;
        for entry in self.by_uid.values_mut() {
            let values = pod::values(&self.labels, |name| {
                entry.labels.get(name).map(|value| &**value)
            });
            entry.names = Arc::new(PodNames {
                labels: values,
                ..(*entry.names).clone()
            });
        }
        self.version += 1;
    }

    /// How long deleted pods are known from now on.
    pub(crate) fn retain(&mut self, retention: Duration) {
        self.retention = retention;
    }

    /// The pod and the name of a container by its id, without the runtime's scheme.
    pub(crate) fn by_container(&self, id: &str) -> Option<(Arc<PodNames>, Arc<str>)> {
        let container = self.by_container.get(id)?;
        let entry = self.by_uid.get(&container.pod)?;
        Some((Arc::clone(&entry.names), Arc::clone(&container.name)))
    }

    /// The pod by its UID, or by the one that its cgroups have if it is a static one.
    pub(crate) fn by_uid(&self, uid: &str) -> Option<Arc<PodNames>> {
        let entry = self
            .by_uid
            .get(uid)
            .or_else(|| self.by_uid.get(self.by_config_hash.get(uid)?))?;
        Some(Arc::clone(&entry.names))
    }

    /// Grows whenever a look-up can give something new: not with a status that names nothing new,
    /// and not when what is gone is forgotten, since a name once found stays true.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// How many pods there are, without those that are gone.
    pub(crate) fn len(&self) -> usize {
        self.present
    }

    /// Takes in a pod as it is now.
    pub(super) fn apply(&mut self, pod: &Pod, now: Instant) {
        if pod.metadata.uid.is_empty() {
            return;
        }
        let config_hash = pod
            .config_hash()
            .filter(|hash| !self.is_anothers(hash, pod));
        let config_hash: Option<Box<str>> = config_hash.map(Box::from);
        let known = self.by_uid.get_mut(pod.metadata.uid.as_str());
        let uid = known.as_ref().map_or_else(
            || Arc::from(pod.metadata.uid.as_str()),
            |entry| Arc::clone(&entry.names.uid),
        );
        let names = PodNames {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: Arc::clone(&uid),
            workload: pod.workload(),
            labels: pod.labels(&self.labels),
        };
        let kept = self.keeps_all_labels.then(|| pod.all_labels());
        let kept = kept.unwrap_or_default();
        let mut changed = false;
        let mut mentioned = Vec::new();
        for (id, name) in pod.containers() {
            let (id, new) = Self::mention(&mut self.by_container, &uid, id, name);
            changed |= new;
            if !mentioned.contains(&id) {
                mentioned.push(id);
            }
        }
        let hash_before = known.as_ref().and_then(|entry| entry.config_hash.as_ref());
        if let Some(before) = hash_before.filter(|before| Some(*before) != config_hash.as_ref())
            && self.by_config_hash.get(before) == Some(&uid)
        {
            self.by_config_hash.remove(before);
        }
        if let Some(hash) = &config_hash
            && self.by_config_hash.get(hash) != Some(&uid)
        {
            self.by_config_hash.insert(hash.clone(), Arc::clone(&uid));
            changed = true;
        }
        if let Some(entry) = known {
            if *entry.names != names {
                entry.names = Arc::new(names);
                changed = true;
            }
            entry.config_hash = config_hash;
            entry.labels = kept;
            entry.listing = self.listing;
            if entry.gone.take().is_some() {
                self.present += 1;
            }
            let before = std::mem::replace(&mut entry.containers, mentioned);
            for id in before {
                if entry.containers.contains(&id) {
                    continue;
                }
                if let Some(container) = self.by_container.get_mut(&id)
                    && container.pod == uid
                {
                    container.gone = Some(now);
                    self.gone.push_back((now, Gone::Container(id)));
                }
            }
        } else {
            let entry = Entry {
                names: Arc::new(names),
                labels: kept,
                config_hash,
                containers: mentioned,
                gone: None,
                listing: self.listing,
            };
            self.by_uid.insert(uid, entry);
            self.present += 1;
            changed = true;
        }
        self.version += u64::from(changed);
        self.forget(now);
    }

    /// Whether a static pod's UID is that of another pod that is there; the same one may have a new
    /// mirror.
    fn is_anothers(&self, hash: &str, pod: &Pod) -> bool {
        let of = self.by_config_hash.get(hash);
        let entry = of.and_then(|of| self.by_uid.get(of));
        entry.is_some_and(|Entry { names, gone, .. }| {
            let metadata = &pod.metadata;
            let same = names.namespace == metadata.namespace && names.name == metadata.name;
            gone.is_none() && !same
        })
    }

    /// Notes that a pod has this container; true when that was not known.
    fn mention(
        containers: &mut HashMap<Arc<str>, Container>,
        pod: &Arc<str>,
        id: &str,
        name: &str,
    ) -> (Arc<str>, bool) {
        if let Some((id, _)) = containers.get_key_value(id) {
            let id = Arc::clone(id);
            if let Some(container) = containers.get_mut(&id)
                && container.pod == *pod
                && *container.name == *name
            {
                container.gone = None;
                return (id, false);
            }
        }
        let id: Arc<str> = Arc::from(id);
        let container = Container {
            pod: Arc::clone(pod),
            name: Arc::from(name),
            gone: None,
        };
        containers.insert(Arc::clone(&id), container);
        (id, true)
    }

    /// A pod was deleted.
    pub(super) fn remove(&mut self, uid: &str, now: Instant) {
        if let Some(entry) = self.by_uid.get_mut(uid)
            && entry.gone.is_none()
        {
            entry.gone = Some(now);
            self.present -= 1;
            let uid = Arc::clone(&entry.names.uid);
            self.gone.push_back((now, Gone::Pod(uid)));
        }
        self.forget(now);
    }

    /// The pods that follow are all there are, until [`Pods::end_list`].
    pub(super) fn begin_list(&mut self) {
        self.listing += 1;
    }

    /// Pods that the list did not have were deleted while nobody watched.
    pub(super) fn end_list(&mut self, now: Instant) {
        let missing: Vec<_> = self
            .by_uid
            .values()
            .filter(|entry| entry.listing != self.listing && entry.gone.is_none())
            .map(|entry| Arc::clone(&entry.names.uid))
            .collect();
        for uid in missing {
            self.remove(&uid, now);
        }
    }

    /// Forgets what has been gone for long.
    pub(super) fn forget(&mut self, now: Instant) {
        while let Some((since, _)) = self.gone.front()
            && (now.duration_since(*since) >= self.retention || self.gone.len() > GONE_MAX)
            && let Some((since, gone)) = self.gone.pop_front()
        {
            match gone {
                Gone::Pod(uid) => self.forget_pod(&uid, since),
                Gone::Container(id) => {
                    let container = self.by_container.get(&id);
                    if container.is_some_and(|container| container.gone == Some(since)) {
                        self.by_container.remove(&id);
                    }
                }
            }
        }
    }

    fn forget_pod(&mut self, uid: &Arc<str>, since: Instant) {
        // It may have come back.
        let gone = self.by_uid.get(uid).and_then(|entry| entry.gone);
        if gone != Some(since) {
            return;
        }
        let Some(entry) = self.by_uid.remove(uid) else {
            return;
        };
        // A static pod's new mirror has the same containers.
        for id in entry.containers {
            if self.by_container.get(&id).is_some_and(|of| of.pod == *uid) {
                self.by_container.remove(&id);
            }
        }
        if let Some(hash) = entry.config_hash
            && self.by_config_hash.get(&hash) == Some(uid)
        {
            self.by_config_hash.remove(&hash);
        }
    }
}

#[cfg(test)]
impl Pods {
    /// These pods, each as the API server writes it, with the labels that are asked for.
    pub(crate) fn of(labels: &[&str], pods: &[serde_json::Value]) -> Self {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        let mut known = Self::new(labels, true, Duration::from_secs(60));
        for pod in pods {
            let pod = serde_json::from_str(&pod.to_string()).unwrap();
            known.apply(&pod, Instant::now());
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETENTION: Duration = Duration::from_secs(120);

    fn pod(uid: &str, name: &str, labels: &str, containers: &str) -> Pod {
        serde_json::from_str(&format!(
            r#"{{"metadata": {{"namespace": "shop", "name": "{name}", "uid": "{uid}", "labels": {{{labels}}}}},
                "status": {{"containerStatuses": [{containers}]}}}}"#
        ))
        .unwrap()
    }

    fn mirror(uid: &str) -> Pod {
        serde_json::from_str(&format!(
            r#"{{"metadata": {{"namespace": "kube-system", "name": "etcd-1", "uid": "{uid}",
                "annotations": {{"kubernetes.io/config.hash": "hash", "kubernetes.io/config.mirror": "hash"}},
                "ownerReferences": [{{"kind": "Node", "name": "node-1", "controller": true}}]}},
                "status": {{"containerStatuses": [{{"name": "etcd", "containerID": "containerd://ee"}}]}}}}"#
        ))
        .unwrap()
    }

    fn running(name: &str, id: &str) -> String {
        format!(r#"{{"name": "{name}", "containerID": "containerd://{id}"}}"#)
    }

    fn restarted(name: &str, id: &str, before: &str) -> String {
        format!(
            r#"{{"name": "{name}", "containerID": "containerd://{id}",
                "lastState": {{"terminated": {{"containerID": "containerd://{before}"}}}}}}"#
        )
    }

    fn pods() -> Pods {
        Pods::new(vec!["app".to_owned()], true, RETENTION)
    }

    /// pod/container
    fn found(pods: &Pods, id: &str) -> Option<String> {
        let (names, container) = pods.by_container(id)?;
        Some(format!("{}/{container}", names.name))
    }

    #[test]
    fn names_are_found_by_container_and_by_uid() {
        let mut pods = pods();
        let now = Instant::now();
        pods.apply(
            &pod("u1", "web-1", r#""app": "web""#, &running("nginx", "c1")),
            now,
        );
        assert_eq!(found(&pods, "c1").unwrap(), "web-1/nginx");
        let names = pods.by_uid("u1").unwrap();
        assert_eq!(
            *names,
            PodNames {
                namespace: "shop".to_owned(),
                name: "web-1".to_owned(),
                uid: Arc::from("u1"),
                workload: Workload {
                    kind: "Pod".to_owned(),
                    name: "web-1".to_owned()
                },
                labels: vec!["web".to_owned()],
            }
        );
        assert_eq!(pods.by_container("c2"), None);
        assert_eq!(pods.by_uid("u2"), None);
        assert_eq!((pods.len(), pods.version()), (1, 1));
    }

    #[test]
    fn other_labels_are_shown_at_once() {
        let mut pods = pods();
        let now = Instant::now();
        let labels = r#""app": "web", "team": "a""#;
        pods.apply(&pod("u1", "a", labels, ""), now);
        pods.apply(&pod("u2", "b", "", ""), now);
        pods.remove("u2", now);
        let version = pods.version();
        pods.show(vec!["team".to_owned(), "app".to_owned()]);
        assert_eq!(pods.version(), version + 1);
        assert_eq!(pods.by_uid("u1").unwrap().labels, ["a", "web"]);
        assert_eq!(pods.by_uid("u2").unwrap().labels, ["", ""]);
        // What comes later has them as well.
        let labels = r#""app": "web", "team": "b""#;
        pods.apply(&pod("u1", "a", labels, ""), now);
        assert_eq!(pods.by_uid("u1").unwrap().labels, ["b", "web"]);
        pods.show(Vec::new());
        assert_eq!(pods.by_uid("u1").unwrap().labels, [""; 0]);
    }

    #[test]
    fn the_version_grows_only_with_what_is_kept() {
        let mut pods = pods();
        let now = Instant::now();
        let (web, shop) = (r#""app": "web""#, r#""app": "shop""#);
        let steps = [
            (pod("u1", "a", web, ""), 1),
            (pod("u1", "a", web, ""), 1),
            (pod("u1", "a", r#""app": "web", "other": "1""#, ""), 1),
            (pod("u1", "a", web, &running("x", "c1")), 2),
            (pod("u1", "a", web, &running("x", "c1")), 2),
            (pod("u1", "a", shop, &running("x", "c1")), 3),
            (pod("u1", "a", shop, &restarted("x", "c2", "c1")), 4),
            (pod("u1", "a", shop, &restarted("x", "c3", "c2")), 5),
        ];
        for (step, (pod, version)) in steps.iter().enumerate() {
            pods.apply(pod, now);
            assert_eq!(pods.version(), *version, "step {step}");
        }
        assert_eq!(pods.by_container("c3").unwrap().0.labels, ["shop"]);
        pods.remove("u1", now);
        pods.forget(now + RETENTION);
        assert_eq!((pods.version(), pods.len()), (5, 0));
        assert_eq!(pods.by_uid("u1"), None);
    }

    #[test]
    fn a_restarted_containers_ids_stay_known_for_a_while() {
        let mut pods = pods();
        let start = Instant::now();
        let later = start + Duration::from_secs(60);
        pods.apply(&pod("u1", "a", "", &running("x", "c1")), start);
        pods.apply(&pod("u1", "a", "", &restarted("x", "c2", "c1")), start);
        pods.apply(&pod("u1", "a", "", &restarted("x", "c3", "c2")), later);
        for id in ["c1", "c2", "c3"] {
            assert_eq!(found(&pods, id).unwrap(), "a/x", "{id}");
        }
        pods.forget(start + RETENTION);
        assert_eq!(found(&pods, "c1").unwrap(), "a/x");
        pods.forget(later + RETENTION);
        assert_eq!(found(&pods, "c1"), None);
        // Still mentioned, however old.
        pods.forget(later + 10 * RETENTION);
        assert_eq!(found(&pods, "c2").unwrap(), "a/x");
        pods.remove("u1", later + 10 * RETENTION);
        pods.forget(later + 11 * RETENTION);
        assert_eq!(found(&pods, "c2"), None);
        assert_eq!(
            pods.by_container.len() + pods.by_uid.len() + pods.gone.len(),
            0
        );
    }

    #[test]
    fn a_pod_that_comes_back_is_not_forgotten() {
        let mut pods = pods();
        let start = Instant::now();
        let web = pod("u1", "a", "", &running("x", "c1"));
        pods.apply(&web, start);
        pods.remove("u1", start);
        assert_eq!(pods.len(), 0);
        pods.apply(&web, start + Duration::from_secs(1));
        assert_eq!((pods.len(), pods.version()), (1, 1));
        pods.forget(start + RETENTION);
        assert_eq!(found(&pods, "c1").unwrap(), "a/x");
    }

    #[test]
    fn what_a_list_lacks_is_gone() {
        let mut pods = pods();
        let start = Instant::now();
        let (a, b) = (
            pod("u1", "a", "", &running("x", "c1")),
            pod("u2", "b", "", &running("x", "c2")),
        );
        pods.begin_list();
        pods.apply(&a, start);
        pods.apply(&b, start);
        pods.end_list(start);
        assert_eq!(pods.len(), 2);
        // One that was cut off takes nothing away.
        pods.begin_list();
        pods.apply(&b, start);
        pods.begin_list();
        pods.apply(&b, start);
        assert_eq!(pods.len(), 2);
        pods.end_list(start);
        assert_eq!(pods.len(), 1);
        assert_eq!(found(&pods, "c1").unwrap(), "a/x");
        pods.forget(start + RETENTION);
        assert_eq!(found(&pods, "c1"), None);
        assert_eq!(found(&pods, "c2").unwrap(), "b/x");
    }

    #[test]
    fn a_static_pod_is_known_by_both_uids_and_outlives_its_mirror() {
        let mut pods = pods();
        let start = Instant::now();
        pods.apply(&mirror("m1"), start);
        assert_eq!(*pods.by_uid("hash").unwrap().uid, *"m1");
        assert_eq!(*pods.by_uid("m1").unwrap().uid, *"m1");
        // The mirror is made anew; its deletion is told late.
        pods.apply(&mirror("m2"), start);
        assert_eq!(pods.version(), 2);
        pods.remove("m1", start);
        pods.forget(start + RETENTION);
        assert_eq!(*pods.by_uid("hash").unwrap().uid, *"m2");
        assert_eq!(found(&pods, "ee").unwrap(), "etcd-1/etcd");
        assert_eq!(pods.by_uid("m1"), None);
        pods.remove("m2", start + RETENTION);
        pods.forget(start + 2 * RETENTION);
        assert_eq!(pods.by_uid("hash"), None);
        assert_eq!(pods.by_config_hash.len(), 0);
    }

    #[test]
    fn no_pod_takes_anothers_cgroups() {
        let now = Instant::now();
        let claiming = |marks: &str| -> Pod {
            let json = format!(
                r#"{{"metadata": {{"namespace": "evil", "name": "p", "uid": "e1", "annotations": {{
                    "kubernetes.io/config.hash": "hash"{marks}}}}}"#
            );
            serde_json::from_str(&format!("{json}}}")).unwrap()
        };
        let mirror_mark = r#", "kubernetes.io/config.mirror": "hash""#;
        let mut pods = pods();
        for marks in ["", mirror_mark] {
            pods.apply(&claiming(marks), now);
            assert_eq!(pods.by_uid("hash"), None, "{marks}");
        }
        pods.apply(&mirror("u1"), now);
        let mut forged = mirror("e2");
        forged.metadata.namespace = "evil".to_owned();
        pods.apply(&forged, now);
        assert_eq!(pods.by_uid("hash").unwrap().namespace, "kube-system");
        pods.remove("e2", now);
        assert_eq!(pods.by_uid("hash").unwrap().namespace, "kube-system");
    }

    #[test]
    fn what_is_gone_is_bounded() {
        let mut pods = pods();
        let now = Instant::now();
        for i in 0..GONE_MAX + 10 {
            let id = format!("c{i}");
            pods.apply(&pod(&format!("u{i}"), "a", "", &running("x", &id)), now);
            pods.remove(&format!("u{i}"), now);
        }
        assert_eq!(pods.by_uid.len(), GONE_MAX);
        assert_eq!(pods.by_container.len(), GONE_MAX);
        assert_eq!(pods.by_uid("u9"), None);
        assert!(pods.by_uid("u10").is_some());
    }
}
