//! Workloads on their way through versions, defaults, preparation, validation and the store.

#![expect(clippy::unwrap_used, reason = "a test")]

use pilothouse_api::decode::request::Media;
use pilothouse_api::meta;
use pilothouse_api::scheme::Scheme;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::time::Timestamp;
use pilothouse_apimachinery::version::{NEWEST, Release};

/// Creates an object and reads it back in the version of the request; faults where it is invalid.
fn create(release: Release, plural: &str, object: &Value) -> Result<Value, Vec<String>> {
    let api_version = object["apiVersion"].as_str().unwrap();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = Scheme::new(release)
        .resource(group, version, plural)
        .ok_or_else(|| vec![format!("{api_version} {plural} is not served")])?;
    let context = resource.context("", true);
    let mut object = resource.decode(object.to_string().as_bytes(), Media::Json).unwrap().object;
    resource.to_hub(&mut object, &context);
    let now = Timestamp::parse("2021-01-01T00:00:00Z").unwrap();
    meta::prepare_create(&resource, &mut object, "default", now, "uid-1", || 0).unwrap();
    resource.prepare_create(&mut object, &context);
    let errs = resource.validate(&object, &context);
    if !errs.is_empty() {
        return Err(errs.iter().map(ToString::to_string).collect());
    }
    let stored = resource.to_stored(object);
    let mut read = resource.decode_stored(stored.to_string().as_bytes()).unwrap();
    resource.from_hub(&mut read);
    Ok(read)
}

fn template(restart_policy: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {
        "restartPolicy": restart_policy, "containers": [{"name": "web", "image": "nginx:1.19"}]}})
}

#[test]
fn old_deployments_apply_today() {
    let deployment = json!({"apiVersion": "extensions/v1beta1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"strategy": {"type": "Recreate"}, "template": template("Always")}});
    let read = create(NEWEST, "deployments", &deployment).unwrap();
    assert_eq!(read["apiVersion"], "extensions/v1beta1");
    assert_eq!(read["spec"]["selector"], json!({"matchLabels": {"app": "web"}}));
    assert_eq!(read["metadata"]["labels"], json!({"app": "web"}));
    let refused = create(Release::V1_20, "deployments", &deployment).unwrap_err();
    assert_eq!(refused, ["extensions/v1beta1 deployments is not served"]);
}

#[test]
fn todays_deployments_need_a_selector() {
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"template": template("Always")}});
    for release in [Release::V1_20, NEWEST] {
        assert_eq!(
            create(release, "deployments", &deployment).unwrap_err()[0],
            "spec.selector: Required value"
        );
    }
}

#[test]
fn autoscalers_of_all_versions() {
    let hpa = |version: &str, metric: Value| {
        json!({"apiVersion": format!("autoscaling/{version}"), "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "web"}, "metrics": [metric]}})
    };
    let memory = json!({"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}});
    let read = create(Release::V1_20, "horizontalpodautoscalers", &hpa("v2beta1", memory.clone())).unwrap();
    assert_eq!(read["spec"]["metrics"], json!([memory]));
    assert_eq!(
        read["status"],
        json!({"conditions": null, "currentMetrics": null, "currentReplicas": 0, "desiredReplicas": 0})
    );
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}});
    for (release, version) in [(Release::V1_20, "v2beta2"), (NEWEST, "v2")] {
        let read = create(release, "horizontalpodautoscalers", &hpa(version, cpu.clone())).unwrap();
        assert_eq!(read["spec"]["metrics"], json!([cpu]), "{version}");
        assert!(read["metadata"].get("annotations").is_none());
    }
}

#[test]
fn cron_jobs_are_v1_only_today() {
    let object = |version: &str| {
        json!({"apiVersion": version, "kind": "CronJob", "metadata": {"name": "tick"}, "spec": {"schedule": "@hourly",
            "jobTemplate": {"spec": {"template": template("Never")}}}})
    };
    assert!(create(Release::V1_20, "cronjobs", &object("batch/v1beta1")).is_ok());
    assert!(create(Release::V1_20, "cronjobs", &object("batch/v1")).is_err());
    let read = create(NEWEST, "cronjobs", &object("batch/v1")).unwrap();
    assert_eq!((&read["apiVersion"], &read["metadata"]["generation"]), (&json!("batch/v1"), &json!(1)));
    assert!(create(NEWEST, "cronjobs", &object("batch/v1beta1")).is_ok());
}

#[test]
fn empty_and_absent_labels_are_told_apart() {
    let mut set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "web"},
        "spec": {"serviceName": "web", "selector": {"matchLabels": {"app": "web"}}, "template": template("Always")}});
    set["spec"]["template"]["metadata"]["labels"] = json!({});
    let empty = create(Release::V1_20, "statefulsets", &set).unwrap_err();
    assert!(empty[0].contains("Invalid value: map[string]string{}:"), "{empty:?}");
    set["spec"]["template"]["metadata"] = Value::Null;
    let absent = create(Release::V1_20, "statefulsets", &set).unwrap_err();
    assert!(absent[0].contains("Invalid value: map[string]string(nil):"), "{absent:?}");
}

#[test]
fn jobs_carry_their_uid() {
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"}, "spec": {"template": template("Never")}});
    let read = create(Release::V1_20, "jobs", &job).unwrap();
    assert_eq!(read["spec"]["selector"]["matchLabels"], json!({"controller-uid": "uid-1"}));
    assert!(read["metadata"].get("generation").is_none());
    assert_eq!(create(NEWEST, "jobs", &job).unwrap()["metadata"]["generation"], 1);
}
