//! `Deployment`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::{go, json};

use super::replicaset::selected_template;
use super::template::{
    CONTAINERS_COLUMN, IMAGES_COLUMN, container_cells, default_template, drop_disabled, immutable_selector,
    labels_from_template, required_selector,
};
use super::{old, orphans};
use crate::kinds::access::{default_text, default_to, number, optional, part, present, put, take, text};
use crate::kinds::columns::{AGE, NAME, text as column, wide};
use crate::kinds::numbers::{
    all_nonnegative, at_most_100_percent, collision_count_rises, int_or_percent, int_or_percent_value,
    nonnegative, not_greater,
};
use crate::kinds::pod::Rules;
use crate::kinds::{Column, Context, Kind, RowContext, SCALE, STATUS, Version};
use crate::table::{age_cell, name_cell, selector_cell};

const COLUMNS: &[Column] = &[
    NAME,
    column("Ready", "Number of the pod with ready state"),
    column(
        "Up-to-date",
        "Total number of non-terminated pods targeted by this deployment that have the desired template spec.",
    ),
    column(
        "Available",
        "Total number of available pods (ready for at least minReadySeconds) targeted by this deployment.",
    ),
    AGE,
    CONTAINERS_COLUMN,
    IMAGES_COLUMN,
    wide(
        "Selector",
        "Label selector for pods. Existing ReplicaSets whose pods are selected by this will be the ones affected by this deployment.",
    ),
];

const EXTENSIONS: Version = Version {
    to_hub: Some(rollback_to_annotation),
    from_hub: Some(rollback_from_annotation),
    ..old("extensions", "v1beta1")
};

const APPS_V1BETA1: Version = Version {
    to_hub: Some(rollback_to_annotation),
    from_hub: Some(rollback_from_annotation),
    ..old("apps", "v1beta1")
};

pub(super) static DEPLOYMENT: Kind = Kind {
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[SCALE, STATUS],
    storage_version: "apps/v1",
    has_generation: true,
    generation_on_annotations: true,
    orphans_by_default: orphans,
    default,
    prepare_create: |deployment, context| {
        put(deployment, "status", json!({}));
        drop_disabled(deployment, &Value::Null, context);
    },
    prepare_update,
    validate: |deployment, context| {
        validate_spec(part(deployment, "spec"), &Path::new("spec"), &Rules::of(context))
    },
    validate_update,
    columns: COLUMNS,
    row,
    ..Kind::new(
        "Deployment",
        "deployments",
        "deployment",
        &[Version::always("apps", "v1"), old("apps", "v1beta2"), APPS_V1BETA1, EXTENSIONS],
    )
};

/// Where `apps/v1` keeps `spec.rollbackTo` of the versions before it.
const ROLLBACK: &str = "deprecated.deployment.rollback.to";

fn rollback_to_annotation(deployment: &mut Value) {
    let Some(rollback) = deployment.get_mut("spec").and_then(|s| take(s, "rollbackTo")) else { return };
    let revision = number(&rollback, "revision").to_string();
    json::set(deployment, &["metadata", "annotations", ROLLBACK], revision);
}

fn rollback_from_annotation(deployment: &mut Value) {
    let Some(revision) = json::remove(deployment, &["metadata", "annotations", ROLLBACK]) else { return };
    let revision: i64 = revision.as_str().and_then(|s| s.parse().ok()).unwrap_or(0);
    let rollback = if revision == 0 { json!({}) } else { json!({ "revision": revision }) };
    json::set(deployment, &["spec", "rollbackTo"], rollback);
}

/// What the versions of Deployment default differently.
struct Defaults {
    surge: Value,
    history: i64,
    deadline: i64,
}

fn default(deployment: &mut Value, context: &Context) {
    let max = i64::from(i32::MAX);
    let version = match context.api_version {
        "extensions/v1beta1" => Defaults { surge: json!(1), history: max, deadline: max },
        "apps/v1beta1" => Defaults { surge: json!("25%"), history: 2, deadline: 600 },
        _ => Defaults { surge: json!("25%"), history: 10, deadline: 600 },
    };
    if matches!(context.api_version, "extensions/v1beta1" | "apps/v1beta1") {
        labels_from_template(deployment, true);
    }
    if let Some(spec) = deployment.get_mut("spec") {
        default_to(spec, "replicas", 1);
        default_to(spec, "strategy", json!({}));
        let strategy = &mut spec["strategy"];
        default_text(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate" {
            default_to(strategy, "rollingUpdate", json!({}));
            let rolling = &mut strategy["rollingUpdate"];
            default_to(rolling, "maxUnavailable", version.surge.clone());
            default_to(rolling, "maxSurge", version.surge);
        }
        default_to(spec, "revisionHistoryLimit", version.history);
        default_to(spec, "progressDeadlineSeconds", version.deadline);
    }
    default_template(deployment, context);
}

fn prepare_update(deployment: &mut Value, old: &Value, context: &Context) {
    if context.subresource == "status" {
        json::copy(deployment, old, &["spec"]);
        json::copy(deployment, old, &["metadata", "labels"]);
        return;
    }
    json::copy(deployment, old, &["status"]);
    drop_disabled(deployment, old, context);
}

fn validate_spec(spec: &Value, path: &Path, rules: &Rules) -> ErrorList {
    let mut errs: ErrorList = nonnegative(spec, "replicas", path).into_iter().collect();
    errs.extend(required_selector(spec, "deployment", path));
    errs.extend(selected_template(spec, path, rules));
    errs.extend(strategy(part(spec, "strategy"), &path.child("strategy")));
    errs.extend(all_nonnegative(spec, &["minReadySeconds", "revisionHistoryLimit"], path));
    if let Some(deadline) = optional(spec, "progressDeadlineSeconds") {
        errs.extend(nonnegative(spec, "progressDeadlineSeconds", path));
        if deadline <= number(spec, "minReadySeconds") {
            let at = path.child("progressDeadlineSeconds");
            errs.push(field::invalid(&at, deadline, "must be greater than minReadySeconds"));
        }
    }
    errs
}

fn strategy(strategy: &Value, path: &Path) -> ErrorList {
    let (kind, rolling, at) =
        (text(strategy, "type"), part(strategy, "rollingUpdate"), path.child("rollingUpdate"));
    match kind {
        "Recreate" if rolling.is_null() => ErrorList::new(),
        "Recreate" => {
            vec![field::forbidden(&at, "may not be specified when strategy `type` is 'Recreate'")]
        }
        "RollingUpdate" if rolling.is_null() => {
            vec![field::required(&at, "this should be defaulted and never be nil")]
        }
        "RollingUpdate" => rolling_update(rolling, &at),
        _ => {
            let rolling = if rolling.is_null() {
                "(*apps.RollingUpdateDeployment)(nil)".to_string()
            } else {
                format!(
                    "&apps.RollingUpdateDeployment{{MaxUnavailable:{}, MaxSurge:{}}}",
                    go::int_or_string(part(rolling, "maxUnavailable")),
                    go::int_or_string(part(rolling, "maxSurge"))
                )
            };
            let shown =
                format!("apps.DeploymentStrategy{{Type:{}, RollingUpdate:{rolling}}}", go::quote(kind));
            vec![field::not_supported_shown(path, &shown, &["Recreate", "RollingUpdate"])]
        }
    }
}

fn rolling_update(rolling: &Value, path: &Path) -> ErrorList {
    let (unavailable, surge) = (part(rolling, "maxUnavailable"), part(rolling, "maxSurge"));
    let at = path.child("maxUnavailable");
    let mut errs = int_or_percent(unavailable, &at);
    errs.extend(int_or_percent(surge, &path.child("maxSurge")));
    if int_or_percent_value(unavailable) == 0 && int_or_percent_value(surge) == 0 {
        let shown = go::int_or_string(unavailable);
        errs.push(field::invalid_shown(&at, &shown, "may not be 0 when `maxSurge` is 0"));
    }
    errs.extend(at_most_100_percent(unavailable, &at));
    errs
}

fn validate_update(deployment: &Value, old: &Value, context: &Context) -> ErrorList {
    if context.subresource == "status" {
        return validate_status(part(deployment, "status"), part(old, "status"));
    }
    let mut errs = validate_spec(part(deployment, "spec"), &Path::new("spec"), &Rules::of(context));
    if !matches!(context.api_version, "extensions/v1beta1" | "apps/v1beta1") {
        errs.extend(immutable_selector(deployment, old));
    }
    errs
}

fn validate_status(status: &Value, old: &Value) -> ErrorList {
    let path = Path::new("status");
    const COUNTS: &[&str] = &[
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ];
    let mut errs = all_nonnegative(status, COUNTS, &path);
    let more = "cannot be greater than status.replicas";
    errs.extend(not_greater(
        status,
        &[
            ("updatedReplicas", "replicas", more),
            ("readyReplicas", "replicas", more),
            ("availableReplicas", "replicas", more),
            ("availableReplicas", "readyReplicas", "cannot be greater than readyReplicas"),
        ],
        &path,
    ));
    errs.extend(collision_count_rises(status, old, &path));
    errs
}

fn row(deployment: &Value, context: &RowContext) -> Vec<Value> {
    let (spec, status) = (part(deployment, "spec"), part(deployment, "status"));
    let [containers, images] = container_cells(part(spec, "template"));
    let desired = if present(spec, "replicas") { number(spec, "replicas") } else { 0 };
    vec![
        name_cell(deployment),
        Value::from(format!("{}/{desired}", number(status, "readyReplicas"))),
        Value::from(number(status, "updatedReplicas")),
        Value::from(number(status, "availableReplicas")),
        age_cell(deployment, context),
        containers,
        images,
        selector_cell(part(spec, "selector")),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::{NEWEST, Release};

    use super::*;

    fn context(api_version: &'static str) -> Context {
        let release = if api_version == "apps/v1" { Release::V1_20 } else { NEWEST };
        Context { release, subresource: "", api_version, allow_privileged: true, gates: &[] }
    }

    fn deployment(api_version: &'static str, spec: Value) -> Value {
        let mut d = json!({"metadata": {"name": "d"}, "spec": spec});
        d["spec"]["template"] = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}});
        default(&mut d, &context(api_version));
        d
    }

    fn faults(d: &Value) -> Vec<String> {
        (DEPLOYMENT.validate)(d, &context("apps/v1")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_of_versions() {
        let d = deployment("extensions/v1beta1", json!({"strategy": {"type": "Recreate"}}));
        assert_eq!(d["spec"]["selector"], json!({"matchLabels": {"app": "a"}}));
        assert_eq!(d["metadata"]["labels"], json!({"app": "a"}));
        assert_eq!(d["spec"]["strategy"], json!({"type": "Recreate"}));
        assert_eq!(d["spec"]["revisionHistoryLimit"], i32::MAX);
        assert_eq!(faults(&d), Vec::<String>::new());
        let d = deployment("apps/v1", json!({}));
        assert_eq!(
            d["spec"]["strategy"]["rollingUpdate"],
            json!({"maxSurge": "25%", "maxUnavailable": "25%"})
        );
        assert_eq!(d["spec"]["progressDeadlineSeconds"], 600);
        assert_eq!(
            faults(&d),
            [
                "spec.selector: Required value",
                "spec.template.metadata.labels: Invalid value: map[string]string{\"app\":\"a\"}: `selector` does not match template `labels`",
            ]
        );
    }

    #[test]
    fn strategies() {
        let with = |strategy: Value| {
            faults(&deployment(
                "apps/v1",
                json!({"selector": {"matchLabels": {"app": "a"}}, "strategy": strategy}),
            ))
        };
        assert_eq!(
            with(json!({"type": "foo"})),
            [
                "spec.strategy: Unsupported value: apps.DeploymentStrategy{Type:\"foo\", RollingUpdate:(*apps.RollingUpdateDeployment)(nil)}: supported values: \"Recreate\", \"RollingUpdate\""
            ]
        );
        assert_eq!(
            with(json!({"type": "Recreate", "rollingUpdate": {}})),
            [
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"
            ]
        );
        assert_eq!(
            with(json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}})),
            [
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: intstr.IntOrString{Type:1, IntVal:0, StrVal:\"0%\"}: may not be 0 when `maxSurge` is 0"
            ]
        );
    }

    #[test]
    fn rollback_round_trip() {
        let mut d = json!({"metadata": {}, "spec": {"rollbackTo": {"revision": 3}}});
        rollback_to_annotation(&mut d);
        assert_eq!(d["metadata"]["annotations"][ROLLBACK], "3");
        rollback_from_annotation(&mut d);
        assert_eq!(d["spec"]["rollbackTo"]["revision"], 3);
    }

    #[test]
    fn rows() {
        let mut d = deployment("apps/v1", json!({"selector": {"matchLabels": {"app": "a"}}, "replicas": 3}));
        d["status"] = json!({"readyReplicas": 1, "updatedReplicas": 2});
        let cells = row(&d, &RowContext { now: 0 });
        assert_eq!(cells[1..4], [json!("1/3"), json!(2), json!(0)]);
        assert_eq!(cells[5..], [json!("c"), json!("nginx"), json!("app=a")]);
    }
}
