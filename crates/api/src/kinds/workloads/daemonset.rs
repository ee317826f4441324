//! `DaemonSet`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::selector::{Selector, validate_label_selector};
use pilothouse_apimachinery::{go, json};

use super::template::{
    CONTAINERS_COLUMN, IMAGES_COLUMN, container_cells, default_template, drop_disabled, empty_selector,
    forever, immutable_selector, labels_from_template, matches_template,
};
use super::{old, orphans};
use crate::kinds::access::{default_text, default_to, number, part, put, same, take, text};
use crate::kinds::columns::{AGE, NAME, integer, text as column, wide};
use crate::kinds::numbers::{
    all_nonnegative, at_most_100_percent, collision_count_rises, int_or_percent, int_or_percent_value,
};
use crate::kinds::pod::{Rules, is_today, spec};
use crate::kinds::{Column, Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, labels_cell, name_cell, selector_cell};

const COLUMNS: &[Column] = &[
    NAME,
    integer(
        "Desired",
        "The total number of nodes that should be running the daemon pod (including nodes correctly running the daemon pod). More info: https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
    ),
    integer(
        "Current",
        "The number of nodes that are running at least 1 daemon pod and are supposed to run the daemon pod. More info: https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/",
    ),
    integer(
        "Ready",
        "The number of nodes that should be running the daemon pod and have one or more of the daemon pod running and ready.",
    ),
    integer("Up-to-date", "The total number of nodes that are running updated daemon pod"),
    integer(
        "Available",
        "The number of nodes that should be running the daemon pod and have one or more of the daemon pod running and available (ready for at least spec.minReadySeconds)",
    ),
    column(
        "Node Selector",
        "NodeSelector is a selector which must be true for the pod to fit on a node. Selector which must match a node's labels for the pod to be scheduled on that node. More info: https://kubernetes.io/docs/concepts/configuration/assign-pod-node/",
    ),
    AGE,
    CONTAINERS_COLUMN,
    IMAGES_COLUMN,
    wide(
        "Selector",
        "A label query over pods that are managed by the daemon set. Must match in order to be controlled. If empty, defaulted to labels on Pod template. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors",
    ),
];

const EXTENSIONS: Version = Version {
    to_hub: Some(generation_to_annotation),
    from_hub: Some(generation_from_annotation),
    ..old("extensions", "v1beta1")
};

pub(super) static DAEMON_SET: Kind = Kind {
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[STATUS],
    storage_version: "apps/v1",
    has_generation: true,
    orphans_by_default: orphans,
    default,
    prepare_create,
    prepare_update,
    validate: |set, context| validate_spec(part(set, "spec"), &Rules::of(context)),
    validate_update,
    columns: COLUMNS,
    row,
    update_checks: (1, 1),
    ..Kind::new(
        "DaemonSet",
        "daemonsets",
        "daemonset",
        &[Version::always("apps", "v1"), old("apps", "v1beta2"), EXTENSIONS],
    )
};

/// Where `apps/v1` keeps `spec.templateGeneration` of the versions before it. The server counts it; clients cannot
/// set it.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn generation_to_annotation(set: &mut Value) {
    if let Some(n) = set.get_mut("spec").and_then(|s| take(s, "templateGeneration")) {
        json::set(set, &["metadata", "annotations", TEMPLATE_GENERATION], n.to_string());
    }
}

fn generation_from_annotation(set: &mut Value) {
    let n = template_generation(set);
    json::remove(set, &["metadata", "annotations", TEMPLATE_GENERATION]);
    json::set(set, &["spec", "templateGeneration"], n);
}

fn template_generation(set: &Value) -> i64 {
    json::str_at(set, &["metadata", "annotations", TEMPLATE_GENERATION]).parse().unwrap_or(0)
}

fn default(set: &mut Value, context: &Context) {
    // Kubernetes' internal form has the number always, so that its `apps/v1` has the annotation.
    let generation = template_generation(set).to_string();
    if json::str_at(set, &["metadata", "annotations", TEMPLATE_GENERATION]) != generation {
        json::set(set, &["metadata", "annotations", TEMPLATE_GENERATION], generation);
    }
    let extensions = context.api_version == "extensions/v1beta1";
    if extensions {
        labels_from_template(set, true);
    }
    if let Some(spec) = set.get_mut("spec") {
        default_to(spec, "updateStrategy", json!({}));
        let strategy = &mut spec["updateStrategy"];
        default_text(strategy, "type", if extensions { "OnDelete" } else { "RollingUpdate" });
        if text(strategy, "type") == "RollingUpdate" {
            default_to(strategy, "rollingUpdate", json!({}));
            let rolling = &mut strategy["rollingUpdate"];
            default_to(rolling, "maxUnavailable", 1);
            if is_today(context) {
                default_to(rolling, "maxSurge", 0);
            }
        }
        default_to(spec, "revisionHistoryLimit", 10);
    }
    default_template(set, context);
}

fn prepare_create(set: &mut Value, context: &Context) {
    put(set, "status", json!({}));
    let generation = template_generation(set).max(1).to_string();
    json::set(set, &["metadata", "annotations", TEMPLATE_GENERATION], generation);
    drop_disabled(set, &Value::Null, context);
}

fn prepare_update(set: &mut Value, old: &Value, context: &Context) {
    if context.subresource == "status" {
        json::copy(set, old, &["spec"]);
        json::set(
            set,
            &["metadata", "annotations", TEMPLATE_GENERATION],
            template_generation(old).to_string(),
        );
        return;
    }
    json::copy(set, old, &["status"]);
    drop_disabled(set, old, context);
    let template = |object| part(part(object, "spec"), "template");
    let changed = !same(template(set), template(old));
    let generation = template_generation(old) + i64::from(changed);
    json::set(set, &["metadata", "annotations", TEMPLATE_GENERATION], generation.to_string());
}

fn validate_spec(spec: &Value, rules: &Rules) -> ErrorList {
    let path = Path::new("spec");
    let (selector, template) = (part(spec, "selector"), part(spec, "template"));
    let mut errs = validate_label_selector(selector, &path.child("selector"));
    let at = path.child("template");
    if let Ok(selector) = Selector::from_label_selector(selector) {
        errs.extend(matches_template(&selector, template, &at));
    }
    errs.extend(empty_selector(selector, "daemonset", &path.child("selector")));
    errs.extend(spec::pod_template(template, &at, rules));
    // Daemons run on many nodes.
    errs.extend(spec::read_only_disks(template, &at));
    errs.extend(forever(template, "DaemonSet", &at));
    errs.extend(all_nonnegative(spec, &["minReadySeconds"], &path));
    errs.extend(update_strategy(part(spec, "updateStrategy"), &path.child("updateStrategy"), rules));
    errs.extend(all_nonnegative(spec, &["revisionHistoryLimit"], &path));
    errs
}

fn update_strategy(strategy: &Value, path: &Path, rules: &Rules) -> ErrorList {
    let (kind, rolling) = (text(strategy, "type"), part(strategy, "rollingUpdate"));
    let at = path.child("rollingUpdate");
    match kind {
        "OnDelete" => ErrorList::new(),
        "RollingUpdate" if rolling.is_null() => vec![field::required(&at, "")],
        "RollingUpdate" if rules.today => rolling_update_today(rolling, &at),
        "RollingUpdate" => {
            let (unavailable, at) = (part(rolling, "maxUnavailable"), at.child("maxUnavailable"));
            let mut errs = int_or_percent(unavailable, &at);
            if int_or_percent_value(unavailable) == 0 {
                errs.push(field::invalid_shown(&at, &go::int_or_string(unavailable), "cannot be 0"));
            }
            errs.extend(at_most_100_percent(unavailable, &at));
            errs
        }
        _ => {
            let rolling = if rolling.is_null() {
                "(*apps.RollingUpdateDaemonSet)(nil)".to_string()
            } else {
                let unavailable = go::int_or_string(part(rolling, "maxUnavailable"));
                format!("&apps.RollingUpdateDaemonSet{{MaxUnavailable:{unavailable}}}")
            };
            let shown =
                format!("apps.DaemonSetUpdateStrategy{{Type:{}, RollingUpdate:{rolling}}}", go::quote(kind));
            vec![field::not_supported_shown(path, &shown, &["RollingUpdate", "OnDelete"])]
        }
    }
}

/// Exactly one of `maxUnavailable` and `maxSurge` must be more than nothing.
fn rolling_update_today(rolling: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut set = Vec::new();
    for key in ["maxUnavailable", "maxSurge"] {
        let (value, at) = (part(rolling, key), path.child(key));
        errs.extend(int_or_percent(value, &at));
        errs.extend(at_most_100_percent(value, &at));
        set.push(int_or_percent_value(value) != 0);
    }
    match set[..] {
        [true, true] => {
            let shown = go::int_or_string(part(rolling, "maxSurge"));
            let detail = "may not be set when maxUnavailable is non-zero";
            errs.push(field::invalid_shown(&path.child("maxSurge"), &shown, detail));
        }
        [false, false] => {
            errs.push(field::required(&path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"));
        }
        _ => {}
    }
    errs
}

fn validate_update(set: &Value, old: &Value, context: &Context) -> ErrorList {
    if context.subresource == "status" {
        return validate_status(part(set, "status"), part(old, "status"));
    }
    // Kubernetes checks the new object by itself and again as the outcome of the update.
    let rules = Rules::of(context);
    let mut errs = validate_spec(part(set, "spec"), &rules);
    errs.extend(validate_spec(part(set, "spec"), &rules));
    if context.api_version != "extensions/v1beta1" {
        errs.extend(immutable_selector(set, old));
    }
    errs
}

fn validate_status(status: &Value, old: &Value) -> ErrorList {
    let path = Path::new("status");
    const COUNTS: &[&str] = &[
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ];
    let mut errs = all_nonnegative(status, COUNTS, &path);
    errs.extend(collision_count_rises(status, old, &path));
    errs
}

fn row(set: &Value, context: &RowContext) -> Vec<Value> {
    let (spec, status) = (part(set, "spec"), part(set, "status"));
    let template = part(spec, "template");
    let [containers, images] = container_cells(template);
    let count = |key: &str| Value::from(number(status, key));
    vec![
        name_cell(set),
        count("desiredNumberScheduled"),
        count("currentNumberScheduled"),
        count("numberReady"),
        count("updatedNumberScheduled"),
        count("numberAvailable"),
        labels_cell(part(part(template, "spec"), "nodeSelector")),
        age_cell(set, context),
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

    fn set(change: impl Fn(&mut Value)) -> Value {
        let mut set = json!({"metadata": {"name": "s"}, "spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}},
        }});
        change(&mut set);
        default(&mut set, &CONTEXT);
        set
    }

    fn faults(set: &Value) -> Vec<String> {
        (DAEMON_SET.validate)(set, &CONTEXT).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_server_counts_template_generations() {
        let mut old = set(|_| {});
        prepare_create(&mut old, &CONTEXT);
        assert_eq!(template_generation(&old), 1);
        let mut labelled = set(|s| s["metadata"]["labels"] = json!({"x": "y"}));
        prepare_update(&mut labelled, &old, &CONTEXT);
        assert_eq!(template_generation(&labelled), 1);
        let mut changed = set(|s| s["spec"]["template"]["spec"]["hostname"] = json!("h"));
        json::set(&mut changed, &["metadata", "annotations", TEMPLATE_GENERATION], "77");
        prepare_update(&mut changed, &old, &CONTEXT);
        assert_eq!(template_generation(&changed), 2);
        generation_from_annotation(&mut changed);
        assert_eq!(changed["spec"]["templateGeneration"], 2);
    }

    #[test]
    fn strategies() {
        assert!(faults(&set(|_| {})).is_empty());
        assert_eq!(
            faults(&set(|s| s["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxUnavailable": 0}}))),
            [
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: intstr.IntOrString{Type:0, IntVal:0, StrVal:\"\"}: cannot be 0"
            ]
        );
        assert_eq!(
            faults(&set(|s| s["spec"]["updateStrategy"] = json!({"type": "x"}))),
            [
                "spec.updateStrategy: Unsupported value: apps.DaemonSetUpdateStrategy{Type:\"x\", RollingUpdate:(*apps.RollingUpdateDaemonSet)(nil)}: supported values: \"RollingUpdate\", \"OnDelete\""
            ]
        );
        let both = json!({"maxUnavailable": 1, "maxSurge": "10%"});
        assert_eq!(rolling_update_today(&both, &Path::new("r")).len(), 1);
    }

    #[test]
    fn a_missing_selector_only_does_not_match() {
        assert_eq!(
            faults(&set(|s| s["spec"]["selector"] = Value::Null)),
            [
                "spec.template.metadata.labels: Invalid value: map[string]string{\"app\":\"a\"}: `selector` does not match template `labels`"
            ]
        );
    }
}
