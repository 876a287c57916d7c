//! Pods as an API server sends them, with all that a real one says.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const CREATED: &str = "2026-01-15T09:30:00Z";

/// A pod, from which the whole of its JSON follows: some 8 KB for one container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `spec.nodeName`; empty while it is not scheduled.
    pub node: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// Kind and name of its controller.
    pub owner: Option<(String, String)>,
    /// `status.containerStatuses`.
    pub containers: Vec<Container>,
    /// `status.initContainerStatuses`.
    pub init_containers: Vec<Container>,
    /// `status.ephemeralContainerStatuses`.
    pub ephemeral_containers: Vec<Container>,
    /// Any number: another one is another heartbeat of the status, without a change in what the pod is.
    pub heartbeat: u32,
}

/// A container of a [`Pod`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// With the runtime's scheme: `containerd://...`; empty while it waits to be made.
    pub id: String,
    /// It runs no more.
    pub ended: bool,
    /// The id that it had before its last restart.
    pub previous_id: Option<String>,
    /// An init container with `restartPolicy: Always`.
    pub sidecar: bool,
}

impl Container {
    /// One that runs.
    #[must_use]
    pub fn running(name: &str, id: &str) -> Self {
        Self {
            name: name.to_owned(),
            id: id.to_owned(),
            ..Self::default()
        }
    }

    fn spec(&self) -> Value {
        let mut spec = json!({
            "name": self.name,
            "image": format!("registry.example/team/{}:1.27.3", self.name),
            "imagePullPolicy": "IfNotPresent",
            "args": ["--listen=0.0.0.0:8080", "--log-level=info"],
            "env": [
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
                {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"key": "url", "name": "database"}}},
                {"name": "GOMAXPROCS", "value": "2"},
            ],
            "ports": [{"containerPort": 8080, "name": "http", "protocol": "TCP"}],
            "livenessProbe": probe("/healthz"),
            "readinessProbe": probe("/readyz"),
            "resources": {"limits": {"cpu": "2", "memory": "512Mi"}, "requests": {"cpu": "250m", "memory": "256Mi"}},
            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": true, "runAsNonRoot": true},
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "volumeMounts": [
                {"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": "kube-api-access-x7k2p",
                    "readOnly": true},
                {"mountPath": "/etc/config", "name": "config"},
            ],
        });
        if self.sidecar {
            spec["restartPolicy"] = json!("Always");
        }
        spec
    }

    fn status(&self) -> Value {
        let mut status = json!({
            "allocatedResources": {"cpu": "250m", "memory": "256Mi"},
            "image": format!("registry.example/team/{}:1.27.3", self.name),
            "imageID": format!("registry.example/team/{}@sha256:{:064x}", self.name, 0x5e7),
            "lastState": {},
            "name": self.name,
            "ready": !self.ended && !self.id.is_empty(),
            "resources": {"limits": {"cpu": "2", "memory": "512Mi"}, "requests": {"cpu": "250m", "memory": "256Mi"}},
            "restartCount": u32::from(self.previous_id.is_some()),
            "started": !self.id.is_empty(),
            "volumeMounts": [{"mountPath": "/etc/config", "name": "config"}],
        });
        let ended = |id: &str, code: u32| {
            json!({"terminated": {"containerID": id, "exitCode": code, "finishedAt": CREATED,
                "reason": if code == 0 { "Completed" } else { "Error" }, "startedAt": CREATED}})
        };
        status["state"] = match (self.id.as_str(), self.ended) {
            ("", _) => json!({"waiting": {"reason": "ContainerCreating"}}),
            (id, true) => ended(id, 0),
            (_, false) => json!({"running": {"startedAt": CREATED}}),
        };
        if !self.id.is_empty() {
            status["containerID"] = json!(self.id);
        }
        if let Some(before) = &self.previous_id {
            status["lastState"] = ended(before, 137);
        }
        status
    }
}

impl Pod {
    /// A pod of a node, without labels or containers.
    #[must_use]
    pub fn new(node: &str, namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            node: node.to_owned(),
            ..Self::default()
        }
    }

    /// The same with a container that runs.
    #[must_use]
    pub fn with(mut self, container: &str, id: &str) -> Self {
        self.containers.push(Container::running(container, id));
        self
    }

    /// The same with a label.
    #[must_use]
    pub fn labelled(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The same with a controller.
    #[must_use]
    pub fn owned_by(mut self, kind: &str, name: &str) -> Self {
        self.owner = Some((kind.to_owned(), name.to_owned()));
        self
    }

    /// A static pod's mirror: the kubelet knows the pod by a UID of its own, the hash.
    #[must_use]
    pub fn mirror_of(mut self, hash: &str) -> Self {
        for key in ["hash", "mirror"] {
            let key = format!("kubernetes.io/config.{key}");
            self.annotations.insert(key, hash.to_owned());
        }
        self.annotations
            .insert("kubernetes.io/config.source".to_owned(), "file".to_owned());
        let node = self.node.clone();
        self.owned_by("Node", &node)
    }

    /// The pod as the API server sends it, in one line.
    #[must_use]
    pub fn json(&self, resource_version: u64) -> String {
        let mut metadata = json!({
            "annotations": self.annotations,
            "creationTimestamp": CREATED,
            "generateName": "generated-",
            "labels": self.labels,
            "managedFields": self.managed_fields(),
            "name": self.name,
            "namespace": self.namespace,
            "resourceVersion": resource_version.to_string(),
            "uid": self.uid,
        });
        if let Some((kind, name)) = &self.owner {
            metadata["ownerReferences"] = json!([{"apiVersion": "apps/v1", "blockOwnerDeletion": true,
                "controller": true, "kind": kind, "name": name, "uid": "f0a3c2d1-0000-4000-8000-000000000001"}]);
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": self.spec(),
            "status": self.status()});
        pod.to_string()
    }

    fn spec(&self) -> Value {
        let specs =
            |containers: &[Container]| containers.iter().map(Container::spec).collect::<Vec<_>>();
        let tolerations = ["not-ready", "unreachable"].map(|taint| {
            json!({"effect": "NoExecute", "key": format!("node.kubernetes.io/{taint}"), "operator": "Exists",
                "tolerationSeconds": 300})
        });
        let mut spec = json!({
            "containers": specs(&self.containers),
            "dnsPolicy": "ClusterFirst",
            "enableServiceLinks": true,
            "initContainers": specs(&self.init_containers),
            "ephemeralContainers": specs(&self.ephemeral_containers),
            "preemptionPolicy": "PreemptLowerPriority",
            "priority": 0,
            "restartPolicy": "Always",
            "schedulerName": "default-scheduler",
            "securityContext": {"fsGroup": 2000, "seccompProfile": {"type": "RuntimeDefault"}},
            "serviceAccount": "default",
            "serviceAccountName": "default",
            "terminationGracePeriodSeconds": 30,
            "tolerations": tolerations,
            "volumes": [
                {"configMap": {"defaultMode": 420, "name": "config"}, "name": "config"},
                {"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
                    {"downwardAPI": {"items": [{"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                        "path": "namespace"}]}},
                ]}},
            ],
        });
        if !self.node.is_empty() {
            spec["nodeName"] = json!(self.node);
        }
        spec
    }

    fn status(&self) -> Value {
        let statuses =
            |containers: &[Container]| containers.iter().map(Container::status).collect::<Vec<_>>();
        let conditions: Vec<Value> = [
            "PodReadyToStartContainers",
            "Initialized",
            "Ready",
            "ContainersReady",
            "PodScheduled",
        ]
        .iter()
        .map(|kind| {
            json!({"lastProbeTime": Value::Null, "lastTransitionTime": CREATED,
                    "observedGeneration": self.heartbeat, "status": "True", "type": kind})
        })
        .collect();
        json!({
            "conditions": conditions,
            "containerStatuses": statuses(&self.containers),
            "ephemeralContainerStatuses": statuses(&self.ephemeral_containers),
            "hostIP": "192.0.2.10",
            "hostIPs": [{"ip": "192.0.2.10"}],
            "initContainerStatuses": statuses(&self.init_containers),
            "phase": "Running",
            "podIP": "198.51.100.7",
            "podIPs": [{"ip": "198.51.100.7"}],
            "qosClass": "Burstable",
            "startTime": CREATED,
        })
    }

    /// Who set which field: as long as what it speaks of.
    fn managed_fields(&self) -> Value {
        let containers: Map<String, Value> = self
            .containers
            .iter()
            .map(|container| {
                let key = format!("k:{{\"name\":\"{}\"}}", container.name);
                (key, fields(&container.spec()))
            })
            .collect();
        let mut spec = fields(&self.spec());
        spec["f:containers"] = Value::Object(containers);
        json!([
            {"apiVersion": "v1", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:metadata": {"f:generateName": {}, "f:labels": {".": {}}, "f:ownerReferences": {".": {}}},
                    "f:spec": spec},
                "manager": "kube-controller-manager", "operation": "Update", "time": CREATED},
            {"apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:status": fields(&self.status())},
                "manager": "kubelet", "operation": "Update", "subresource": "status", "time": CREATED},
        ])
    }
}

fn probe(path: &str) -> Value {
    json!({"failureThreshold": 3, "httpGet": {"path": path, "port": "http", "scheme": "HTTP"},
        "initialDelaySeconds": 5, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1})
}

/// The names of an object's fields in the form of `managedFields`.
fn fields(value: &Value) -> Value {
    let Value::Object(object) = value else {
        return json!({});
    };
    let names = object
        .iter()
        .map(|(name, value)| (format!("f:{name}"), fields(value)));
    std::iter::once((".".to_owned(), json!({})))
        .chain(names)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_as_long_as_real_ones() {
        let pod = Pod::new(
            "node-1",
            "shop",
            "web-1",
            "5f9e0a52-1111-4222-8333-0123456789ab",
        )
        .with("nginx", "containerd://c1")
        .labelled("app", "web");
        let json = pod.json(7);
        assert!(
            (5_000..10_000).contains(&json.len()),
            "{} bytes",
            json.len()
        );
        assert!(!json.contains('\n'));
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["metadata"]["resourceVersion"], "7");
        assert_eq!(value["spec"]["nodeName"], "node-1");
        assert_eq!(
            value["status"]["containerStatuses"][0]["containerID"],
            "containerd://c1"
        );
    }
}
