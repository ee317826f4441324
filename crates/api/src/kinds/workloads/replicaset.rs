//! `ReplicaSet`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::selector::Selector;
use pilothouse_apimachinery::{go, json};

use super::template::{
    CONTAINERS_COLUMN, IMAGES_COLUMN, container_cells, default_template, drop_disabled, immutable_selector,
    labels_from_template, replicated, required_selector,
};
use super::{old, orphans};
use crate::kinds::access::{default_to, number, part, put};
use crate::kinds::columns::{AGE, NAME, integer, wide};
use crate::kinds::numbers::nonnegative;
use crate::kinds::pod::Rules;
use crate::kinds::replicationcontroller::replica_status;
use crate::kinds::{Column, Context, Kind, RowContext, SCALE, STATUS, Version};
use crate::table::{age_cell, name_cell, selector_cell};

const COLUMNS: &[Column] = &[
    NAME,
    integer(
        "Desired",
        "Replicas is the number of desired replicas. This is a pointer to distinguish between explicit zero and unspecified. Defaults to 1. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller/#what-is-a-replicationcontroller",
    ),
    integer(
        "Current",
        "Replicas is the most recently oberved number of replicas. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller/#what-is-a-replicationcontroller",
    ),
    integer("Ready", "The number of ready replicas for this replica set."),
    AGE,
    CONTAINERS_COLUMN,
    IMAGES_COLUMN,
    wide(
        "Selector",
        "Selector is a label query over pods that should match the replica count. If the selector is empty, it is defaulted to the labels present on the pod template. Label keys and values that must match in order to be controlled by this replica set. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
    ),
];

pub(super) static REPLICA_SET: Kind = Kind {
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[SCALE, STATUS],
    storage_version: "apps/v1",
    has_generation: true,
    orphans_by_default: orphans,
    default,
    prepare_create: |rs, context| {
        put(rs, "status", json!({}));
        drop_disabled(rs, &Value::Null, context);
    },
    prepare_update,
    validate: |rs, context| validate_spec(rs, &Rules::of(context)),
    validate_update,
    selectable_fields: |rs| vec![("status.replicas", number(part(rs, "status"), "replicas").to_string())],
    selectable_field_names: &["status.replicas"],
    columns: COLUMNS,
    row,
    update_checks: (1, 1),
    ..Kind::new(
        "ReplicaSet",
        "replicasets",
        "replicaset",
        &[Version::always("apps", "v1"), old("apps", "v1beta2"), old("extensions", "v1beta1")],
    )
};

fn default(rs: &mut Value, context: &Context) {
    if context.api_version == "extensions/v1beta1" {
        labels_from_template(rs, true);
    }
    if let Some(spec) = rs.get_mut("spec") {
        default_to(spec, "replicas", 1);
    }
    default_template(rs, context);
}

fn prepare_update(rs: &mut Value, old: &Value, context: &Context) {
    if context.subresource == "status" {
        json::copy(rs, old, &["spec"]);
        return;
    }
    json::copy(rs, old, &["status"]);
    drop_disabled(rs, old, context);
}

fn validate_spec(rs: &Value, rules: &Rules) -> ErrorList {
    let (spec, path) = (part(rs, "spec"), Path::new("spec"));
    let mut errs: ErrorList = nonnegative(spec, "replicas", &path).into_iter().collect();
    errs.extend(nonnegative(spec, "minReadySeconds", &path));
    errs.extend(required_selector(spec, "deployment", &path));
    errs.extend(selected_template(spec, &path, rules));
    errs
}

/// Faults of the template of a ReplicaSet or Deployment and of its selector.
pub(super) fn selected_template(spec: &Value, path: &Path, rules: &Rules) -> ErrorList {
    let selector = part(spec, "selector");
    match Selector::from_label_selector(selector) {
        Err(_) => {
            let shown = go::label_selector(selector);
            vec![field::invalid_shown(&path.child("selector"), &shown, "invalid label selector")]
        }
        Ok(selector) => replicated(
            part(spec, "template"),
            &selector,
            number(spec, "replicas"),
            "ReplicaSet",
            &path.child("template"),
            rules,
        ),
    }
}

fn validate_update(rs: &Value, old: &Value, context: &Context) -> ErrorList {
    if context.subresource == "status" {
        return replica_status(part(rs, "status"), "observedGeneration");
    }
    // Kubernetes checks the new object by itself and again as the outcome of the update.
    let rules = Rules::of(context);
    let mut errs = validate_spec(rs, &rules);
    errs.extend(validate_spec(rs, &rules));
    if context.api_version != "extensions/v1beta1" {
        errs.extend(immutable_selector(rs, old));
    }
    errs
}

fn row(rs: &Value, context: &RowContext) -> Vec<Value> {
    let (spec, status) = (part(rs, "spec"), part(rs, "status"));
    let [containers, images] = container_cells(part(spec, "template"));
    vec![
        name_cell(rs),
        Value::from(number(spec, "replicas")),
        Value::from(number(status, "replicas")),
        Value::from(number(status, "readyReplicas")),
        age_cell(rs, context),
        containers,
        images,
        selector_cell(part(spec, "selector")),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::Release;

    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "apps/v1",
        allow_privileged: true,
        gates: &[],
    };

    fn set(selector: Value) -> Value {
        let mut rs = json!({"metadata": {"name": "rs"}, "spec": {
            "selector": selector,
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}},
        }});
        default(&mut rs, &CONTEXT);
        rs
    }

    fn faults(selector: Value) -> Vec<String> {
        (REPLICA_SET.validate)(&set(selector), &CONTEXT).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn selectors() {
        assert!(faults(json!({"matchLabels": {"app": "a"}})).is_empty());
        assert_eq!(
            faults(json!({"matchExpressions": []})),
            [
                "spec.selector: Invalid value: v1.LabelSelector{MatchLabels:map[string]string(nil), MatchExpressions:[]v1.LabelSelectorRequirement{}}: empty selector is invalid for deployment"
            ]
        );
        assert_eq!(
            faults(json!({"matchExpressions": [{"key": "app", "values": ["a", "b"]}]})),
            [
                "spec.selector.matchExpressions[0].operator: Invalid value: \"\": not a valid selector operator",
                "spec.selector: Invalid value: v1.LabelSelector{MatchLabels:map[string]string(nil), MatchExpressions:[]v1.LabelSelectorRequirement{v1.LabelSelectorRequirement{Key:\"app\", Operator:\"\", Values:[]string{\"a\", \"b\"}}}}: invalid label selector",
            ]
        );
    }

    #[test]
    fn the_selector_stays() {
        let old = set(json!({"matchLabels": {"app": "a"}}));
        let new = set(json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}));
        let errs = validate_update(&new, &old, &CONTEXT);
        assert_eq!(errs.len(), 1);
        assert_eq!(errs[0].field, "spec.selector");
        assert!(errs[0].body.ends_with("field is immutable"));
        let beta = Context { api_version: "extensions/v1beta1", ..CONTEXT };
        assert!(validate_update(&new, &old, &beta).is_empty());
    }
}
