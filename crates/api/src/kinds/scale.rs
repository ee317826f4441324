//! The `scale` subresource: how many replicas a workload wants and has, in one form for all workloads.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::selector::Selector;
use pilothouse_apimachinery::status::Status;

use super::access::{number, part, put, text};
use super::numbers::NEGATIVE;

/// The `autoscaling/v1` Scale of a workload: a ReplicationController (`replicationcontrollers`), ReplicaSet,
/// Deployment or StatefulSet. Fails where the workload's selector is malformed.
pub fn from_object(plural: &str, object: &Value) -> Result<Value, Status> {
    let (meta, spec, status) = (part(object, "metadata"), part(object, "spec"), part(object, "status"));
    let selector = if plural == "replicationcontrollers" {
        Selector::from_equality_map(part(spec, "selector"))
    } else {
        Selector::from_label_selector(part(spec, "selector")).map_err(Status::internal)?
    };
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {},
        "spec": {},
        "status": { "replicas": number(status, "replicas") },
    });
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        json::copy(&mut scale["metadata"], meta, &[key]);
    }
    let replicas = number(spec, "replicas");
    if replicas != 0 {
        put(&mut scale["spec"], "replicas", replicas);
    }
    let selector = selector.to_string();
    if !selector.is_empty() {
        put(&mut scale["status"], "selector", selector);
    }
    Ok(scale)
}

/// Faults of a Scale that is to be written.
pub fn validate(scale: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    if text(part(scale, "metadata"), "namespace").is_empty() {
        errs.push(field::required(&Path::new("metadata").child("namespace"), ""));
    }
    errs.extend(validate_replicas(scale));
    errs
}

/// Faults of the number of replicas alone, which is all that is looked at for custom resources.
pub fn validate_replicas(scale: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let replicas = number(part(scale, "spec"), "replicas");
    if replicas < 0 {
        errs.push(field::invalid(&Path::new("spec").child("replicas"), replicas, NEGATIVE));
    }
    errs
}

/// Writes a Scale's replicas and resource version to the workload. Fails where the Scale is invalid.
pub fn apply(object: &mut Value, scale: &Value) -> Result<(), Status> {
    let name = json::str_at(object, &["metadata", "name"]).to_string();
    let errs = validate(scale);
    if !errs.is_empty() {
        return Err(Status::invalid("autoscaling", "Scale", &name, &errs));
    }
    json::set(object, &["spec", "replicas"], number(part(scale, "spec"), "replicas"));
    json::copy(object, scale, &["metadata", "resourceVersion"]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let mut deployment = json!({
            "metadata": {"name": "d", "namespace": "n", "uid": "u", "resourceVersion": "5", "labels": {"a": "b"}},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"b": "2", "a": "1"}}},
            "status": {"replicas": 1},
        });
        let mut scale = from_object("deployments", &deployment).unwrap();
        assert_eq!(scale["status"], json!({"replicas": 1, "selector": "a=1,b=2"}));
        assert_eq!(
            scale["metadata"],
            json!({"name": "d", "namespace": "n", "uid": "u", "resourceVersion": "5"})
        );
        scale["spec"]["replicas"] = json!(7);
        apply(&mut deployment, &scale).unwrap();
        assert_eq!(deployment["spec"]["replicas"], 7);
        scale["spec"]["replicas"] = json!(-1);
        assert_eq!(apply(&mut deployment, &scale).unwrap_err().code, 422);
        scale["spec"]["replicas"] = json!(1);
        scale["metadata"]["namespace"] = json!("");
        let error = apply(&mut deployment, &scale).unwrap_err();
        assert_eq!(error.message, "Scale.autoscaling \"d\" is invalid: metadata.namespace: Required value");
    }

    #[test]
    fn controllers_select_by_equality() {
        let rc = json!({"metadata": {"name": "r"}, "spec": {"selector": {"x": "y"}}, "status": {}});
        let scale = from_object("replicationcontrollers", &rc).unwrap();
        assert_eq!(scale["status"]["selector"], "x=y");
        assert_eq!(scale["spec"], json!({}));
    }
}
