//! `Priority`: a pod's priority class becomes its priority.

use async_trait::async_trait;
use pilothouse_apimachinery::json::Value;
use pilothouse_apimachinery::status::Status;
use std::sync::Arc;

use crate::json::{self, bool_at, get, get_i64, i64_at, str_at};
use crate::request::{AdmissionRequest, Mutation, Objects, Operation, Validation};

use super::{creates_pod, is_about};

const GROUP: &str = "scheduling.k8s.io";

/// The plug-in.
pub struct Priority;

/// The class of pods that name none: of those marked as default, the one with the lowest value.
fn default_class(objects: &dyn Objects) -> Option<Arc<Value>> {
    let classes = objects.list(GROUP, "priorityclasses", "");
    classes.into_iter().filter(|c| bool_at(c, &["globalDefault"])).min_by_key(|c| get_i64(c, &["value"]))
}

impl Priority {
    fn pod(r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let name = str_at(&r.object, &["spec", "priorityClassName"]).to_string();
        let class =
            if name.is_empty() {
                let class = default_class(objects);
                if let Some(class) = &class {
                    json::set(
                        &mut r.object,
                        &["spec", "priorityClassName"],
                        str_at(class, &["metadata", "name"]),
                    );
                }
                class
            } else {
                let class = objects.get(GROUP, "priorityclasses", "", &name);
                Some(class.ok_or_else(|| {
                    super::forbidden(r, format!("no PriorityClass with name {name} was found"))
                })?)
            };
        let priority = class.as_ref().map_or(0, |c| get_i64(c, &["value"]));
        if let Some(given) = i64_at(&r.object, &["spec", "priority"])
            && given != priority
        {
            return Err(super::forbidden(
                r,
                format!(
                    "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
                ),
            ));
        }
        json::set(&mut r.object, &["spec", "priority"], priority);
        let policy = class.as_ref().map_or("PreemptLowerPriority", |c| str_at(c, &["preemptionPolicy"]));
        if policy.is_empty() {
            return Ok(());
        }
        let given = str_at(&r.object, &["spec", "preemptionPolicy"]);
        if !given.is_empty() && given != policy {
            return Err(super::forbidden(
                r,
                format!(
                    "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
                ),
            ));
        }
        json::set(&mut r.object, &["spec", "preemptionPolicy"], policy);
        Ok(())
    }
}

#[async_trait]
impl Mutation for Priority {
    async fn admit(&self, r: &mut AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        if creates_pod(r) {
            return Self::pod(r, objects);
        }
        if is_about(r, "", "pods") && r.operation == Operation::Update {
            for field in ["priority", "preemptionPolicy"] {
                let old = get(&r.old_object, &["spec", field]).clone();
                if !old.is_null() {
                    json::set_default(&mut r.object, &["spec", field], old);
                }
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Validation for Priority {
    async fn validate(&self, r: &AdmissionRequest, objects: &dyn Objects) -> Result<(), Status> {
        let write = matches!(r.operation, Operation::Create | Operation::Update);
        if !is_about(r, GROUP, "priorityclasses") || !write || !bool_at(&r.object, &["globalDefault"]) {
            return Ok(());
        }
        let Some(default) = default_class(objects) else { return Ok(()) };
        let name = str_at(&default, &["metadata", "name"]);
        if r.operation == Operation::Create || str_at(&r.old_object, &["metadata", "name"]) != name {
            return Err(super::forbidden(
                r,
                format!("PriorityClass {name} is already marked as default. Only one default can exist"),
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
    async fn computes_priorities() {
        let o = FakeObjects::default();
        let pod = |spec: Value| {
            test_create("", "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}))
        };
        let mut r = pod(json!({}));
        Priority.admit(&mut r, &o).await.unwrap();
        assert_eq!(r.object["spec"], json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
        o.put(GROUP, "priorityclasses", json!({"metadata": {"name": "high"}, "value": 7, "preemptionPolicy": "Never", "globalDefault": true}));
        let mut r = pod(json!({}));
        Priority.admit(&mut r, &o).await.unwrap();
        assert_eq!(
            r.object["spec"],
            json!({"priority": 7, "preemptionPolicy": "Never", "priorityClassName": "high"})
        );
        let e = Priority.admit(&mut pod(json!({"priorityClassName": "none"})), &o).await.unwrap_err();
        assert_eq!(e.message, "pods \"p\" is forbidden: no PriorityClass with name none was found");
        let e = Priority.admit(&mut pod(json!({"priority": 3})), &o).await.unwrap_err();
        assert!(e.message.contains("the integer value of priority (3)"));
        let class = test_create(
            GROUP,
            "priorityclasses",
            "PriorityClass",
            json!({"metadata": {"name": "b"}, "globalDefault": true}),
        );
        assert!(
            Priority
                .validate(&class, &o)
                .await
                .unwrap_err()
                .message
                .contains("PriorityClass high is already marked")
        );
    }
}
