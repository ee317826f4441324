//! What is written.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::args::Kind;

/// A set of objects of one run: they share a prefix and a label.
#[derive(Debug, Clone)]
pub struct Set {
    /// What they are.
    pub kind: Kind,
    /// Where.
    pub namespace: String,
    /// What their names begin with.
    pub prefix: String,
    template: (Bytes, Bytes),
}

/// Stands in the template where a name comes.
const NAME: &str = "@@name@@";

impl Set {
    /// Objects of `size` bytes of JSON each, or of the kind's usual size.
    pub fn new(kind: Kind, namespace: &str, prefix: &str, size: Option<u32>) -> Set {
        let object = match kind {
            Kind::Configmaps => config_map(prefix, size.unwrap_or(1024) as usize),
            Kind::Pods => pod(prefix, size.unwrap_or(1800) as usize),
        };
        Set { kind, namespace: namespace.into(), prefix: prefix.into(), template: split(&object) }
    }

    /// The same set, its bodies made from `stored`: an object of it as the server returned it. What the server
    /// alone sets is left out, and an annotation changes, so that a PUT is a change.
    pub fn updated(&self, mut stored: Value) -> Set {
        if let Some(metadata) = stored.get_mut("metadata").and_then(Value::as_object_mut) {
            for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "selfLink"] {
                metadata.remove(field);
            }
            metadata.insert("name".into(), NAME.into());
            let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
            annotations["pilothouse-bench/updated"] = "true".into();
        }
        Set { template: split(&stored), ..self.clone() }
    }

    /// The resource's collection.
    pub fn collection(&self) -> String {
        let plural = match self.kind {
            Kind::Configmaps => "configmaps",
            Kind::Pods => "pods",
        };
        format!("/api/v1/namespaces/{}/{plural}", self.namespace)
    }

    /// The name of object `index`.
    pub fn name(&self, index: u64) -> String {
        format!("{}-{index:06}", self.prefix)
    }

    /// Its path.
    pub fn path(&self, index: u64) -> String {
        format!("{}/{}", self.collection(), self.name(index))
    }

    /// Its body.
    pub fn body(&self, index: u64) -> Bytes {
        let (before, after) = &self.template;
        let name = self.name(index);
        let mut body = Vec::with_capacity(before.len() + name.len() + after.len());
        body.extend_from_slice(before);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(after);
        body.into()
    }
}

fn split(object: &Value) -> (Bytes, Bytes) {
    let text = object.to_string();
    match text.split_once(NAME) {
        Some((before, after)) => (before.to_string().into(), after.to_string().into()),
        None => (text.into(), Bytes::new()),
    }
}

fn metadata(label: &str) -> Value {
    json!({"name": NAME, "labels": {"app": "pilothouse-bench", "run": label}})
}

/// Adds as many bytes at `pad` as are missing to `size`.
fn padded(mut object: Value, pad: &str, size: usize) -> Value {
    let missing = size.saturating_sub(object.to_string().len());
    if let Some(value) = object.pointer_mut(pad) {
        *value = "x".repeat(missing).into();
    }
    object
}

fn config_map(label: &str, size: usize) -> Value {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(label), "data": {"payload": ""},
    });
    padded(object, "/data/payload", size)
}

/// A pod as a Deployment would make it. Its scheduler is one that nobody runs: it stays Pending.
fn pod(label: &str, size: usize) -> Value {
    let mut metadata = metadata(label);
    metadata["annotations"] = json!({"pilothouse-bench/padding": ""});
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "schedulerName": "pilothouse-bench",
            "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "web",
                "image": "nginx:1.19",
                "command": ["nginx", "-g", "daemon off;"],
                "ports": [{"name": "http", "containerPort": 80}, {"name": "metrics", "containerPort": 9113}],
                "env": [
                    {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "MODE", "value": "production"},
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
                "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}, "initialDelaySeconds": 10},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "config", "mountPath": "/etc/web"}],
            }],
            "volumes": [
                {"name": "data", "emptyDir": {}},
                {"name": "config", "configMap": {"name": "web", "optional": true}},
            ],
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "web", "effect": "NoSchedule"}],
        },
    });
    padded(object, "/metadata/annotations/pilothouse-bench~1padding", size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_their_size_and_name() {
        for (kind, size) in [(Kind::Configmaps, 1024), (Kind::Pods, 1800)] {
            let set = Set::new(kind, "default", "bench-1", None);
            let body = set.body(7);
            assert!(body.len().abs_diff(size) < 30, "{}", body.len());
            let object: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(object["metadata"]["name"], "bench-1-000007");
        }
        let set = Set::new(Kind::Configmaps, "ns", "p", Some(100_000));
        assert!(set.body(0).len() >= 100_000);
        assert_eq!(set.path(1), "/api/v1/namespaces/ns/configmaps/p-000001");
    }

    #[test]
    fn an_update_keeps_what_the_server_added() {
        let set = Set::new(Kind::Pods, "default", "p", None);
        let stored = json!({"metadata": {"name": "p-000000", "uid": "u", "resourceVersion": "5", "managedFields": []},
            "spec": {"nodeName": "n"}});
        let object: Value = serde_json::from_slice(&set.updated(stored).body(3)).unwrap();
        assert_eq!(
            object,
            json!({"metadata": {"name": "p-000003", "annotations": {"pilothouse-bench/updated": "true"}},
                "spec": {"nodeName": "n"}})
        );
    }
}
