//! What is read of a pod as the API server sends it, and whose pod it is.
//!
//! A pod is some 10 KB of JSON, most of it `managedFields` and `spec`. Only the fields named here
//! are stored; all others are skipped while they are parsed.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

/// The label that a `Deployment` puts on the pods of each of its `ReplicaSet`s, whose names end
/// with it.
const DEPLOYMENT_HASH: &str = "pod-template-hash";

/// The same of a `Rollout` (Argo).
const ROLLOUT_HASH: &str = "rollouts-pod-template-hash";

/// Characters of a label's value that are kept: the API allows no more.
const LABEL_CHARACTERS: usize = 63;

/// Labels of a pod that are kept beside those that are shown; few have more than ten.
const LABELS_MAX: usize = 256;

/// The values of labels, in their order, empty where there is none.
pub(super) fn values<'l>(names: &[String], label: impl Fn(&str) -> Option<&'l str>) -> Vec<String> {
    let values = names.iter().map(|name| label(name).unwrap_or_default());
    values.map(cut).collect()
}

fn cut(value: &str) -> String {
    value.chars().take(LABEL_CHARACTERS).collect()
}

/// The part of a pod that is read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    status: Option<Status>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    labels: Option<HashMap<String, String>>,
    annotations: Option<Annotations>,
    owner_references: Option<Vec<Owner>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    /// On static pods: the UID that the kubelet gave the pod, which its cgroup and its runtime
    /// know, while `metadata.uid` is that of its mirror in the API.
    #[serde(rename = "kubernetes.io/config.hash")]
    config_hash: Option<String>,
    /// The same, from the kubelet; anybody may write the other.
    #[serde(rename = "kubernetes.io/config.mirror")]
    config_mirror: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(rename = "containerStatuses")]
    containers: Option<Vec<ContainerStatus>>,
    /// Sidecars (`restartPolicy: Always`) are among them.
    #[serde(rename = "initContainerStatuses")]
    init: Option<Vec<ContainerStatus>>,
    #[serde(rename = "ephemeralContainerStatuses")]
    ephemeral: Option<Vec<ContainerStatus>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    state: Option<State>,
    last_state: Option<State>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    terminated: Option<Terminated>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Terminated {
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

/// What a pod belongs to: the object that a person made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workload {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `CronJob`, `Job`, another controller's kind as the
    /// API has it (`Rollout` for the `ReplicaSet`s of Argo's), or `Pod` for one that belongs to
    /// nothing or to its node.
    pub(crate) kind: String,
    /// Its name, in the namespace of the pod.
    pub(crate) name: String,
}

impl Workload {
    fn new(kind: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl Pod {
    /// The UID by which the cgroups of a static pod know it; only of what has all the marks of the
    /// mirror that a kubelet makes.
    pub(super) fn config_hash(&self) -> Option<&str> {
        let annotations = self.metadata.annotations.as_ref()?;
        let hash = annotations.config_hash.as_deref()?;
        let is_mirror = annotations.config_mirror.as_deref() == Some(hash)
            && self.controller().is_some_and(|owner| owner.kind == "Node");
        is_mirror.then_some(hash)
    }

    /// The values of these labels, in their order, empty where the pod has none.
    pub(super) fn labels(&self, names: &[String]) -> Vec<String> {
        values(names, |name| self.label(name))
    }

    /// All labels, as they would be shown, up to a bound.
    pub(super) fn all_labels(&self) -> BTreeMap<Box<str>, Box<str>> {
        let labels = self.metadata.labels.iter().flatten().take(LABELS_MAX);
        labels
            .map(|(name, value)| (name.as_str().into(), cut(value).into()))
            .collect()
    }

    fn label(&self, name: &str) -> Option<&str> {
        Some(self.metadata.labels.as_ref()?.get(name)?.as_str())
    }

    /// Ids and names of all containers that the status mentions: running, ended, and those that ran
    /// before the last restart.
    pub(super) fn containers(&self) -> impl Iterator<Item = (&str, &str)> {
        let status = self.status.as_ref();
        [
            status.and_then(|status| status.containers.as_ref()),
            status.and_then(|status| status.init.as_ref()),
            status.and_then(|status| status.ephemeral.as_ref()),
        ]
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|container| {
            let ended = [&container.state, &container.last_state]
                .into_iter()
                .filter_map(|state| state.as_ref()?.terminated.as_ref()?.container_id.as_deref());
            container
                .container_id
                .as_deref()
                .into_iter()
                .chain(ended)
                .map(|id| (bare_id(id), container.name.as_str()))
        })
        .filter(|(id, _)| !id.is_empty())
    }

    fn controller(&self) -> Option<&Owner> {
        let owners = self.metadata.owner_references.as_deref()?;
        owners.iter().find(|owner| owner.controller == Some(true))
    }

    /// What the pod belongs to, by its controller and the conventions of names: a `Deployment` owns
    /// its pods through a `ReplicaSet`, and a `CronJob` through a `Job`.
    pub(super) fn workload(&self) -> Workload {
        let metadata = &self.metadata;
        let Some(owner) = self.controller() else {
            return Workload::new("Pod", &metadata.name);
        };
        let without_hash = |label| {
            owner
                .name
                .strip_suffix(self.label(label)?)?
                .strip_suffix('-')
        };
        match owner.kind.as_str() {
            // The mirror of a static pod is owned by its node.
            "Node" => Workload::new("Pod", &metadata.name),
            "ReplicaSet" => {
                if let Some(name) = without_hash(DEPLOYMENT_HASH) {
                    Workload::new("Deployment", name)
                } else if let Some(name) = without_hash(ROLLOUT_HASH) {
                    Workload::new("Rollout", name)
                } else {
                    Workload::new("ReplicaSet", &owner.name)
                }
            }
            "Job" => match cron_job(&owner.name) {
                Some(name) => Workload::new("CronJob", name),
                None => Workload::new("Job", &owner.name),
            },
            kind => Workload::new(kind, &owner.name),
        }
    }
}

/// `containerd://ID` without its scheme.
fn bare_id(id: &str) -> &str {
    id.split_once("://").map_or(id, |(_, id)| id)
}

/// The `CronJob` that gave a `Job` its name: it appends the scheduled time in minutes since 1970
/// (8 digits; in seconds, 10 digits, before Kubernetes 1.21).
///
/// Times before July 2017 are none, so that a `Job` that a person named by a date
/// (`import-20240131`) stays one.
fn cron_job(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    let earliest = match time.len() {
        8 => 25_000_000,
        10 => 1_500_000_000,
        _ => return None,
    };
    let digits = time.bytes().all(|byte| byte.is_ascii_digit());
    let time: u64 = time.parse().ok()?;
    (digits && !name.is_empty() && time >= earliest).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: &str) -> Pod {
        serde_json::from_str(json).unwrap()
    }

    fn owned(kind: &str, name: &str, labels: &str) -> Pod {
        pod(&format!(
            r#"{{"metadata": {{"name": "p-1", "labels": {{{labels}}}, "ownerReferences": [
                {{"apiVersion": "x/v1", "kind": "Other", "name": "bystander", "uid": "1"}},
                {{"apiVersion": "apps/v1", "kind": "{kind}", "name": "{name}", "uid": "2", "controller": true,
                  "blockOwnerDeletion": true}}]}}}}"#
        ))
    }

    #[test]
    fn workloads_are_what_a_person_made() {
        let hash = r#""pod-template-hash": "7d4b9c6f5""#;
        let rollout = r#""rollouts-pod-template-hash": "789746c88d""#;
        for (kind, name, labels, expected) in [
            ("ReplicaSet", "web-7d4b9c6f5", hash, ("Deployment", "web")),
            (
                "ReplicaSet",
                "a-b-c-7d4b9c6f5",
                hash,
                ("Deployment", "a-b-c"),
            ),
            // Made by hand: its name does not end with the hash.
            (
                "ReplicaSet",
                "web-7d4b9c6f5",
                "",
                ("ReplicaSet", "web-7d4b9c6f5"),
            ),
            ("ReplicaSet", "web", hash, ("ReplicaSet", "web")),
            (
                "ReplicaSet",
                "shop-789746c88d",
                rollout,
                ("Rollout", "shop"),
            ),
            ("Job", "backup-29381760", "", ("CronJob", "backup")),
            ("Job", "back-up-29381760", "", ("CronJob", "back-up")),
            ("Job", "backup-1609459200", "", ("CronJob", "backup")),
            ("Job", "import-20240131", "", ("Job", "import-20240131")),
            ("Job", "once", "", ("Job", "once")),
            ("Job", "once-1234567", "", ("Job", "once-1234567")),
            ("Job", "once-+2938176", "", ("Job", "once-+2938176")),
            ("Job", "-29381760", "", ("Job", "-29381760")),
            ("StatefulSet", "db", "", ("StatefulSet", "db")),
            (
                "DaemonSet",
                "node-exporter",
                "",
                ("DaemonSet", "node-exporter"),
            ),
            (
                "ReplicationController",
                "old",
                "",
                ("ReplicationController", "old"),
            ),
            ("CloneSet", "clones", hash, ("CloneSet", "clones")),
            ("Node", "node-1", "", ("Pod", "p-1")),
        ] {
            let (kind_expected, name_expected) = expected;
            let workload = owned(kind, name, labels).workload();
            assert_eq!(
                workload,
                Workload::new(kind_expected, name_expected),
                "{kind} {name}"
            );
        }
        let alone = pod(r#"{"metadata": {"name": "shell", "ownerReferences": null}}"#);
        assert_eq!(alone.workload(), Workload::new("Pod", "shell"));
        let not_controlled = pod(
            r#"{"metadata": {"name": "p", "ownerReferences": [{"kind": "ReplicaSet", "name": "r"}]}}"#,
        );
        assert_eq!(not_controlled.workload(), Workload::new("Pod", "p"));
    }

    #[test]
    fn every_container_that_the_status_mentions_is_found() {
        let pod = pod(r#"{"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u-1", "resourceVersion": "42",
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:phase": {}}}}]},
            "spec": {"containers": [{"name": "app", "env": [{"name": "A", "value": "B"}]}]},
            "status": {"phase": "Running",
                "initContainerStatuses": [
                    {"name": "migrate", "containerID": "containerd://aa", "state": {"terminated":
                        {"exitCode": 0, "containerID": "containerd://aa"}}, "lastState": {}},
                    {"name": "proxy", "containerID": "cri-o://bb", "state": {"running":
                        {"startedAt": "2026-01-01T00:00:00Z"}}, "restartCount": 0}],
                "containerStatuses": [
                    {"name": "app", "containerID": "containerd://cc", "state": {"running": {}},
                        "lastState": {"terminated": {"exitCode": 137, "containerID": "containerd://c0"}}},
                    {"name": "waits", "containerID": "", "state": {"waiting": {"reason": "Creating"}}},
                    {"name": "crashed", "state": {"waiting": {}},
                        "lastState": {"terminated": {"containerID": "docker://dd"}}}],
                "ephemeralContainerStatuses": [{"name": "debug", "containerID": "docker://ee", "state": null}]}}"#);
        let containers: Vec<_> = pod.containers().collect();
        assert_eq!(
            containers,
            [
                ("cc", "app"),
                ("c0", "app"),
                ("dd", "crashed"),
                ("aa", "migrate"),
                ("aa", "migrate"),
                ("bb", "proxy"),
                ("ee", "debug"),
            ]
        );
        let metadata = &pod.metadata;
        assert_eq!(
            [
                &metadata.namespace,
                &metadata.name,
                &metadata.uid,
                &metadata.resource_version
            ],
            ["shop", "web-1", "u-1", "42"]
        );
        assert_eq!(pod.config_hash(), None);
    }

    #[test]
    fn nothing_is_required_and_null_is_nothing() {
        for json in [
            "{}",
            r#"{"metadata": {}, "status": null}"#,
            r#"{"metadata": {"labels": null, "annotations": null, "ownerReferences": null},
                "status": {"containerStatuses": null, "initContainerStatuses": null}}"#,
        ] {
            let pod = pod(json);
            assert_eq!(pod.containers().count(), 0, "{json}");
            assert_eq!(pod.labels(&["app".to_owned()]), [""], "{json}");
        }
    }

    #[test]
    fn the_labels_that_were_asked_for_are_bounded() {
        let long = "x".repeat(64);
        let pod = pod(&format!(
            r#"{{"metadata": {{"labels": {{"app": "web", "long": "{long}", "secret": "no"}}}}}}"#
        ));
        let names = ["long", "team", "app"].map(str::to_owned);
        assert_eq!(pod.labels(&names), [&long[..63], "", "web"]);
        assert_eq!(pod.labels(&[]), [""; 0]);
    }

    #[test]
    fn a_static_pod_has_the_uid_that_the_kubelet_gave_it() {
        let pod = pod(
            r#"{"metadata": {"name": "etcd-node-1", "namespace": "kube-system", "uid": "mirror",
            "annotations": {"kubernetes.io/config.hash": "0123456789abcdef0123456789abcdef",
                "kubernetes.io/config.mirror": "0123456789abcdef0123456789abcdef",
                "kubernetes.io/config.source": "file"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node-1", "controller": true}]}}"#,
        );
        assert_eq!(pod.config_hash(), Some("0123456789abcdef0123456789abcdef"));
        assert_eq!(pod.workload(), Workload::new("Pod", "etcd-node-1"));
    }
}
