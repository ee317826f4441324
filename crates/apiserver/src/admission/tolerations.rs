//! Plug-ins that give pods tolerations.

use std::collections::BTreeSet;

use async_trait::async_trait;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::status::Status;

use crate::json::{self, containers, get, list_at, str_at};
use crate::request::{AdmissionRequest, Mutation, Objects, Operation};

use super::is_about;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// `DefaultTolerationSeconds`: pods stay for a while on nodes that fail.
pub struct DefaultSeconds {
    /// Seconds on nodes that are not ready.
    pub not_ready: i64,
    /// Seconds on nodes that cannot be reached.
    pub unreachable: i64,
}

fn writes_pod(r: &AdmissionRequest) -> bool {
    is_about(r, "", "pods") && matches!(r.operation, Operation::Create | Operation::Update)
}

fn tolerates(pod: &Value, key: &str) -> bool {
    list_at(pod, &["spec", "tolerations"]).iter().any(|t| {
        let (k, effect) = (str_at(t, &["key"]), str_at(t, &["effect"]));
        (k == key || k.is_empty()) && (effect == "NoExecute" || effect.is_empty())
    })
}

#[async_trait]
impl Mutation for DefaultSeconds {
    async fn admit(&self, r: &mut AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        if !writes_pod(r) {
            return Ok(());
        }
        for (key, seconds) in [(NOT_READY, self.not_ready), (UNREACHABLE, self.unreachable)] {
            if !tolerates(&r.object, key) {
                json::ensure_list(&mut r.object, &["spec", "tolerations"]).push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds,
                }));
            }
        }
        Ok(())
    }
}

/// `ExtendedResourceToleration`: pods tolerate the taints named after extended resources that they ask for.
pub struct ExtendedResources;

/// Whether a resource is neither Kubernetes' own nor a quota's.
fn is_extended(name: &str) -> bool {
    let native = !name.contains('/') || name.contains("kubernetes.io/");
    !native && !name.starts_with("requests.")
}

#[async_trait]
impl Mutation for ExtendedResources {
    async fn admit(&self, r: &mut AdmissionRequest, _objects: &dyn Objects) -> Result<(), Status> {
        if !writes_pod(r) {
            return Ok(());
        }
        let asked: BTreeSet<String> = containers(get(&r.object, &["spec"]))
            .flat_map(|(_, c)| get(c, &["resources", "requests"]).as_object().into_iter().flatten())
            .map(|(k, _)| k.to_string())
            .filter(|k| is_extended(k))
            .collect();
        for key in asked {
            let list = json::ensure_list(&mut r.object, &["spec", "tolerations"]);
            let has = |t: &Value| {
                str_at(t, &["key"]) == key
                    && str_at(t, &["operator"]) == "Exists"
                    && str_at(t, &["effect"]).is_empty()
            };
            if !list.iter().any(has) {
                list.push(json!({"key": key, "operator": "Exists"}));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;

    #[tokio::test]
    async fn adds_what_is_missing() {
        let plugin = DefaultSeconds { not_ready: 300, unreachable: 200 };
        let pod = json!({"metadata": {"name": "p"}, "spec": {"tolerations": [{"key": NOT_READY, "operator": "Exists"}]}});
        let mut r = test_create("", "pods", "Pod", pod);
        for _ in 0..2 {
            plugin.admit(&mut r, &FakeObjects::default()).await.unwrap();
        }
        let list = r.object["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[1]["tolerationSeconds"], 200);
        let everything =
            json!({"metadata": {"name": "p"}, "spec": {"tolerations": [{"operator": "Exists"}]}});
        let mut r = test_create("", "pods", "Pod", everything.clone());
        plugin.admit(&mut r, &FakeObjects::default()).await.unwrap();
        assert_eq!(r.object, everything);
    }

    #[tokio::test]
    async fn tolerates_extended_resources() {
        let spec = json!({"containers": [{"resources": {"requests": {"cpu": "1", "example.com/gpu": "1"}}}]});
        let mut r = test_create("", "pods", "Pod", json!({"metadata": {"name": "p"}, "spec": spec}));
        ExtendedResources.admit(&mut r, &FakeObjects::default()).await.unwrap();
        assert_eq!(
            r.object["spec"]["tolerations"],
            json!([{"key": "example.com/gpu", "operator": "Exists"}])
        );
    }
}
