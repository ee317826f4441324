//! `RuntimeClass`: a pod's runtime class gives it overhead and says on which nodes it can run.

use async_trait::async_trait;
use pilothouse_apimachinery::status::Status;
use std::sync::Arc;

use pilothouse_apimachinery::json::Value;

use crate::json::{self, get, has, list_at, str_at};
use crate::request::{AdmissionRequest, Mutation, Objects, Validation};

use super::creates_pod;

/// The plug-in.
pub struct RuntimeClass;

async fn class(r: &AdmissionRequest, objects: &dyn Objects) -> Result<Option<Arc<Value>>, Status> {
    let name = str_at(&r.object, &["spec", "runtimeClassName"]);
    if name.is_empty() {
        return Ok(None);
    }
    if let Some(found) = objects.get("node.k8s.io", "runtimeclasses", "", name) {
        return Ok(Some(found));
    }
    match objects.get_latest("node.k8s.io", "runtimeclasses", "", name).await {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.code == 404 => {
            Err(super::forbidden(r, format!("pod rejected: RuntimeClass {name:?} not found")))
        }
        Err(e) => Err(e),
    }
}

#[async_trait]
impl Mutation for RuntimeClass {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if !creates_pod(r) {
            return Ok(());
        }
        let Some(class) = class(r, objects).await? else { return Ok(()) };
        let overhead = get(&class, &["overhead", "podFixed"]);
        if !overhead.is_null() {
            let given = get(&r.object, &["spec", "overhead"]);
            if !given.is_null() && given != overhead {
                let why = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
                return Err(super::forbidden(r, why));
            }
            json::set(&mut r.object, &["spec", "overhead"], overhead.clone());
        }
        let selector: Vec<_> = json::strings_at(&class, &["scheduling", "nodeSelector"]).collect();
        for (k, v) in selector {
            match json::entry(&r.object, &["spec", "nodeSelector"], k) {
                Some(given) if given != v => {
                    return Err(super::forbidden(
                        r,
                        format!(
                            "conflict: runtimeClass.scheduling.nodeSelector[{k}] = {v}; pod.spec.nodeSelector[{k}] = {given}"
                        ),
                    ));
                }
                Some(_) => {}
                None => json::set(&mut r.object, &["spec", "nodeSelector", k], v),
            }
        }
        for t in list_at(&class, &["scheduling", "tolerations"]) {
            let list = json::ensure_list(&mut r.object, &["spec", "tolerations"]);
            if !list.contains(t) {
                list.push(t.clone());
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Validation for RuntimeClass {
    async fn validate(&self, r: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if !creates_pod(r) || !has(&r.object, &["spec", "overhead"]) {
            return Ok(());
        }
        let given = get(&r.object, &["spec", "overhead"]);
        let class = class(r, objects).await?;
        let defined = class.as_ref().map_or(&Value::Null, |c| get(c, &["overhead", "podFixed"]));
        if defined.is_null() && given.as_object().is_some_and(|m| !m.is_empty()) {
            let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
            return Err(super::forbidden(r, why));
        }
        if !defined.is_null() && given != defined {
            return Err(super::forbidden(
                r,
                "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::test_create;
    use crate::testing::FakeObjects;
    use pilothouse_apimachinery::json::json;

    #[tokio::test]
    async fn applies_the_class() {
        let o = FakeObjects::default();
        o.put(
            "node.k8s.io",
            "runtimeclasses",
            json!({"metadata": {"name": "kata"}, "handler": "kata",
            "overhead": {"podFixed": {"memory": "120Mi"}}, "scheduling": {"nodeSelector": {"kata": "yes"}}}),
        );
        let pod =
            |spec: Value| test_create("", "pods", "Pod", json!({"metadata": {"name": "p"}, "spec": spec}));
        let mut r = pod(json!({"runtimeClassName": "kata"}));
        RuntimeClass.admit(&mut r, &o).await.unwrap();
        assert_eq!(r.object["spec"]["overhead"], json!({"memory": "120Mi"}));
        assert_eq!(r.object["spec"]["nodeSelector"], json!({"kata": "yes"}));
        RuntimeClass.validate(&r, &o).await.unwrap();
        let e = RuntimeClass.admit(&mut pod(json!({"runtimeClassName": "x"})), &o).await.unwrap_err();
        assert_eq!(e.message, "pods \"p\" is forbidden: pod rejected: RuntimeClass \"x\" not found");
        let e = RuntimeClass.validate(&pod(json!({"overhead": {"cpu": "1"}})), &o).await.unwrap_err();
        assert!(e.message.contains("without corresponding RuntimeClass"));
    }
}
