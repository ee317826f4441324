//! `ReplicationController`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::selector::Selector;

use super::access::{default_to, is_empty, number, part, put};
use super::columns::{AGE, NAME, integer, wide};
use super::numbers::{all_nonnegative, nonnegative, not_greater};
use super::pod::Rules;
use super::workloads::template::{
    CONTAINERS_COLUMN, IMAGES_COLUMN, container_cells, default_labels, default_template, drop_disabled,
    replicated, template_labels,
};
use super::{Column, Context, Kind, RowContext, SCALE, STATUS, Version};
use crate::table::{age_cell, labels_cell, name_cell};

const COLUMNS: &[Column] = &[
    NAME,
    integer(
        "Desired",
        "Replicas is the number of desired replicas. This is a pointer to distinguish between explicit zero and unspecified. Defaults to 1. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller#what-is-a-replicationcontroller",
    ),
    integer(
        "Current",
        "Replicas is the most recently oberved number of replicas. More info: https://kubernetes.io/docs/concepts/workloads/controllers/replicationcontroller#what-is-a-replicationcontroller",
    ),
    integer("Ready", "The number of ready replicas for this replication controller."),
    AGE,
    CONTAINERS_COLUMN,
    IMAGES_COLUMN,
    wide(
        "Selector",
        "Selector is a label query over pods that should match the Replicas count. If Selector is empty, it is defaulted to the labels present on the Pod template. Label keys and values that must match in order to be controlled by this replication controller, if empty defaulted to labels on Pod template. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
    ),
];

pub(super) static REPLICATION_CONTROLLER: Kind = Kind {
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[SCALE, STATUS],
    storage_prefix: "controllers",
    storage_version: "v1",
    has_generation: true,
    orphans_by_default: |_| true,
    default,
    prepare_create: |rc, context| {
        put(rc, "status", json!({}));
        drop_disabled(rc, &Value::Null, context);
    },
    prepare_update,
    validate: |rc, context| validate_spec(rc, &Rules::of(context)),
    validate_update,
    selectable_fields: |rc| vec![("status.replicas", number(part(rc, "status"), "replicas").to_string())],
    selectable_field_names: &["status.replicas"],
    columns: COLUMNS,
    row,
    update_checks: (1, 1),
    ..Kind::new(
        "ReplicationController",
        "replicationcontrollers",
        "replicationcontroller",
        &[Version::always("", "v1")],
    )
};

fn default(rc: &mut Value, context: &Context) {
    let labels = template_labels(rc).clone();
    if !labels.is_null() {
        if is_empty(part(rc, "spec"), "selector") {
            put(&mut rc["spec"], "selector", labels.clone());
        }
        default_labels(rc, labels);
    }
    if let Some(spec) = rc.get_mut("spec") {
        default_to(spec, "replicas", 1);
    }
    default_template(rc, context);
}

fn prepare_update(rc: &mut Value, old: &Value, context: &Context) {
    if context.subresource == "status" {
        pilothouse_apimachinery::json::copy(rc, old, &["spec"]);
        return;
    }
    pilothouse_apimachinery::json::copy(rc, old, &["status"]);
    drop_disabled(rc, old, context);
}

fn validate_spec(rc: &Value, rules: &Rules) -> ErrorList {
    let (spec, path) = (part(rc, "spec"), Path::new("spec"));
    let mut errs: ErrorList = nonnegative(spec, "minReadySeconds", &path).into_iter().collect();
    let empty = is_empty(spec, "selector");
    if empty {
        errs.push(field::required(&path.child("selector"), ""));
    }
    errs.extend(nonnegative(spec, "replicas", &path));
    let (template, at) = (part(spec, "template"), path.child("template"));
    if template.is_null() {
        errs.push(field::required(&at, ""));
        return errs;
    }
    let selector =
        if empty { Selector::everything() } else { Selector::from_equality_map(part(spec, "selector")) };
    let replicas = number(spec, "replicas");
    errs.extend(replicated(template, &selector, replicas, "ReplicationController", &at, rules));
    errs
}

fn validate_update(rc: &Value, _old: &Value, context: &Context) -> ErrorList {
    if context.subresource == "status" {
        return replica_status(part(rc, "status"), "observedGeneration");
    }
    // Kubernetes checks the new object by itself and again as the outcome of the update.
    let rules = Rules::of(context);
    let mut errs = validate_spec(rc, &rules);
    errs.extend(validate_spec(rc, &rules));
    errs
}

/// Faults of the status of a ReplicationController or ReplicaSet.
pub(super) fn replica_status(status: &Value, generation: &str) -> ErrorList {
    let path = Path::new("status");
    const COUNTS: &[&str] = &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"];
    let mut errs = all_nonnegative(status, COUNTS, &path);
    errs.extend(nonnegative(status, generation, &path));
    let more = "cannot be greater than status.replicas";
    errs.extend(not_greater(
        status,
        &[
            ("fullyLabeledReplicas", "replicas", more),
            ("readyReplicas", "replicas", more),
            ("availableReplicas", "replicas", more),
            ("availableReplicas", "readyReplicas", "cannot be greater than readyReplicas"),
        ],
        &path,
    ));
    errs
}

fn row(rc: &Value, context: &RowContext) -> Vec<Value> {
    let (spec, status) = (part(rc, "spec"), part(rc, "status"));
    let [containers, images] = container_cells(part(spec, "template"));
    vec![
        name_cell(rc),
        Value::from(number(spec, "replicas")),
        Value::from(number(status, "replicas")),
        Value::from(number(status, "readyReplicas")),
        age_cell(rc, context),
        containers,
        images,
        labels_cell(part(spec, "selector")),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::Release;

    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "v1",
        allow_privileged: true,
        gates: &[],
    };

    fn controller(selector: Value) -> Value {
        let mut rc = json!({"metadata": {"name": "rc"}, "spec": {
            "selector": selector,
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}},
        }});
        default(&mut rc, &CONTEXT);
        rc
    }

    #[test]
    fn selector_and_labels_come_from_the_template() {
        let rc = controller(Value::Null);
        assert_eq!(rc["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(rc["metadata"]["labels"], json!({"a": "b"}));
        assert_eq!(rc["spec"]["replicas"], 1);
        assert!((REPLICATION_CONTROLLER.validate)(&rc, &CONTEXT).is_empty());
        assert_eq!(row(&rc, &RowContext { now: 0 })[7], "a=b");
    }

    #[test]
    fn selector_must_match() {
        let errs = (REPLICATION_CONTROLLER.validate)(&controller(json!({"a": "c"})), &CONTEXT);
        assert_eq!(
            errs[0].to_string(),
            "spec.template.metadata.labels: Invalid value: map[string]string{\"a\":\"b\"}: `selector` does not match template `labels`"
        );
    }

    #[test]
    fn nothing_at_all() {
        let mut rc = json!({"metadata": {"name": "rc"}, "spec": {}});
        default(&mut rc, &CONTEXT);
        let errs: Vec<String> =
            (REPLICATION_CONTROLLER.validate)(&rc, &CONTEXT).iter().map(ToString::to_string).collect();
        assert_eq!(errs, ["spec.selector: Required value", "spec.template: Required value"]);
    }

    #[test]
    fn status_counts() {
        let errs = replica_status(
            &json!({"replicas": 1, "readyReplicas": 2, "availableReplicas": -1}),
            "observedGeneration",
        );
        let texts: Vec<String> = errs.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "status.availableReplicas: Invalid value: -1: must be greater than or equal to 0",
                "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
            ]
        );
    }
}
