//! `StatefulSet`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::selector::Selector;
use pilothouse_apimachinery::{go, json};

use super::template::{
    CONTAINERS_COLUMN, IMAGES_COLUMN, container_cells, default_template, drop_disabled, forever,
    labels_from_template, matches_template, required_selector,
};
use super::{old, orphans};
use crate::kinds::access::{
    default_text, default_to, items_mut, number, optional, part, put, same, take, text,
};
use crate::kinds::columns::{AGE, NAME, text as column};
use crate::kinds::numbers::{all_nonnegative, collision_count_rises, nonnegative, not_greater};
use crate::kinds::pod::{is_today, spec::template_metadata};
use crate::kinds::{Column, Context, Kind, RowContext, SCALE, STATUS, Version};
use crate::table::{age_cell, name_cell};

const COLUMNS: &[Column] =
    &[NAME, column("Ready", "Number of the pod with ready state"), AGE, CONTAINERS_COLUMN, IMAGES_COLUMN];

pub(super) static STATEFUL_SET: Kind = Kind {
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[SCALE, STATUS],
    storage_version: "apps/v1",
    has_generation: true,
    orphans_by_default: orphans,
    default,
    prepare_create: |set, context| {
        put(set, "status", json!({}));
        drop_disabled(set, &Value::Null, context);
    },
    prepare_update,
    validate: |set, _| validate_spec(part(set, "spec"), &Path::new("spec")),
    validate_update,
    columns: COLUMNS,
    row,
    update_checks: (1, 1),
    ..Kind::new(
        "StatefulSet",
        "statefulsets",
        "statefulset",
        &[Version::always("apps", "v1"), old("apps", "v1beta2"), old("apps", "v1beta1")],
    )
};

fn default(set: &mut Value, context: &Context) {
    let beta1 = context.api_version == "apps/v1beta1";
    if beta1 {
        labels_from_template(set, true);
    }
    if let Some(spec) = set.get_mut("spec") {
        default_text(spec, "podManagementPolicy", "OrderedReady");
        default_to(spec, "updateStrategy", json!({}));
        let strategy = &mut spec["updateStrategy"];
        if text(strategy, "type").is_empty() {
            if beta1 {
                put(strategy, "type", "OnDelete");
            } else {
                put(strategy, "type", "RollingUpdate");
                default_to(strategy, "rollingUpdate", json!({}));
            }
        }
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = strategy.get_mut("rollingUpdate")
        {
            default_to(rolling, "partition", 0);
        }
        default_to(spec, "replicas", 1);
        default_to(spec, "revisionHistoryLimit", 10);
        if is_today(context) {
            default_to(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
            let policy = &mut spec["persistentVolumeClaimRetentionPolicy"];
            default_text(policy, "whenDeleted", "Retain");
            default_text(policy, "whenScaled", "Retain");
        }
        for claim in items_mut(spec, "volumeClaimTemplates") {
            default_claim(claim);
        }
    }
    default_template(set, context);
}

fn default_claim(claim: &mut Value) {
    put(claim, "apiVersion", "v1");
    put(claim, "kind", "PersistentVolumeClaim");
    default_to(claim, "spec", json!({}));
    default_text(&mut claim["spec"], "volumeMode", "Filesystem");
    default_to(claim, "status", json!({}));
    default_text(&mut claim["status"], "phase", "Pending");
}

fn prepare_update(set: &mut Value, old: &Value, context: &Context) {
    if context.subresource == "status" {
        json::copy(set, old, &["spec"]);
        return;
    }
    json::copy(set, old, &["status"]);
    drop_disabled(set, old, context);
}

fn validate_spec(spec: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let at = path.child("podManagementPolicy");
    match text(spec, "podManagementPolicy") {
        "" => errs.push(field::required(&at, "")),
        "OrderedReady" | "Parallel" => {}
        other => errs.push(field::invalid(&at, other, "must be 'OrderedReady' or 'Parallel'")),
    }
    errs.extend(update_strategy(part(spec, "updateStrategy"), &path.child("updateStrategy")));
    errs.extend(nonnegative(spec, "replicas", path));
    errs.extend(required_selector(spec, "statefulset", path));
    let (selector, template, at) = (part(spec, "selector"), part(spec, "template"), path.child("template"));
    match Selector::from_label_selector(selector) {
        Err(_) => {
            errs.push(field::invalid_shown(&path.child("selector"), &go::label_selector(selector), ""));
        }
        // The pod's spec is not checked: its volumes come from claims that are not made yet.
        Ok(selector) => {
            errs.extend(matches_template(&selector, template, &at));
            errs.extend(template_metadata(template, &at));
        }
    }
    errs.extend(forever(template, "StatefulSet", &at));
    errs
}

fn update_strategy(strategy: &Value, path: &Path) -> ErrorList {
    let (kind, rolling) = (text(strategy, "type"), part(strategy, "rollingUpdate"));
    let at = path.child("rollingUpdate");
    let show = |rolling: &Value| {
        format!("apps.RollingUpdateStatefulSetStrategy{{Partition:{}}}", number(rolling, "partition"))
    };
    match kind {
        "" => vec![field::required(path, "")],
        "OnDelete" if rolling.is_null() => ErrorList::new(),
        "OnDelete" => {
            vec![field::invalid_shown(&at, &show(rolling), "only allowed for updateStrategy 'RollingUpdate'")]
        }
        "RollingUpdate" => nonnegative(rolling, "partition", &at).into_iter().collect(),
        _ => {
            let rolling = if rolling.is_null() {
                "(*apps.RollingUpdateStatefulSetStrategy)(nil)".to_string()
            } else {
                format!("&{}", show(rolling))
            };
            let shown = format!(
                "apps.StatefulSetUpdateStrategy{{Type:{}, RollingUpdate:{rolling}}}",
                go::quote(kind)
            );
            vec![field::invalid_shown(path, &shown, "must be 'RollingUpdate' or 'OnDelete'")]
        }
    }
}

const MUTABLE: &[&str] = &["replicas", "template", "updateStrategy"];
const MUTABLE_TODAY: &[&str] = &[
    "replicas",
    "template",
    "updateStrategy",
    "ordinals",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn validate_update(set: &Value, old: &Value, context: &Context) -> ErrorList {
    if context.subresource == "status" {
        return validate_status(part(set, "status"), part(old, "status"));
    }
    let path = Path::new("spec");
    let mut errs = validate_spec(part(set, "spec"), &path);
    let (fields, names) = if is_today(context) {
        (
            MUTABLE_TODAY,
            "'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds'",
        )
    } else {
        (MUTABLE, "'replicas', 'template', and 'updateStrategy'")
    };
    let rest = |object: &Value| {
        let mut spec = part(object, "spec").clone();
        for field in fields {
            take(&mut spec, field);
        }
        for claim in items_mut(&mut spec, "volumeClaimTemplates") {
            // Written by us, so they say nothing about what the client wants.
            take(claim, "apiVersion");
            take(claim, "kind");
        }
        spec
    };
    if !same(&rest(set), &rest(old)) {
        let detail = format!("updates to statefulset spec for fields other than {names} are forbidden");
        errs.push(field::forbidden(&path, &detail));
    }
    errs.extend(nonnegative(part(set, "spec"), "replicas", &path));
    errs
}

fn validate_status(status: &Value, old: &Value) -> ErrorList {
    let path = Path::new("status");
    const COUNTS: &[&str] = &[
        "replicas",
        "readyReplicas",
        "currentReplicas",
        "updatedReplicas",
        "observedGeneration",
        "collisionCount",
    ];
    let mut errs = all_nonnegative(status, COUNTS, &path);
    let more = "cannot be greater than status.replicas";
    errs.extend(not_greater(
        status,
        &[
            ("readyReplicas", "replicas", more),
            ("currentReplicas", "replicas", more),
            ("updatedReplicas", "replicas", more),
        ],
        &path,
    ));
    errs.extend(collision_count_rises(status, old, &path));
    errs
}

fn row(set: &Value, context: &RowContext) -> Vec<Value> {
    let (spec, status) = (part(set, "spec"), part(set, "status"));
    let [containers, images] = container_cells(part(spec, "template"));
    let desired = optional(spec, "replicas").unwrap_or(0);
    vec![
        name_cell(set),
        Value::from(format!("{}/{desired}", number(status, "readyReplicas"))),
        age_cell(set, context),
        containers,
        images,
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
            "serviceName": "s",
            "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
        }});
        change(&mut set);
        default(&mut set, &CONTEXT);
        set
    }

    fn faults(set: &Value) -> Vec<String> {
        (STATEFUL_SET.validate)(set, &CONTEXT).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults() {
        let s = set(|_| {});
        assert_eq!(
            s["spec"]["updateStrategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})
        );
        let claim = &s["spec"]["volumeClaimTemplates"][0];
        assert_eq!(
            (claim["kind"].as_str(), claim["status"]["phase"].as_str()),
            (Some("PersistentVolumeClaim"), Some("Pending"))
        );
        assert_eq!(faults(&s), Vec::<String>::new());
    }

    #[test]
    fn pod_specs_are_not_checked() {
        assert!(faults(&set(|s| s["spec"]["template"]["spec"]["containers"] = json!([{}]))).is_empty());
        assert_eq!(
            faults(&set(|s| s["spec"]["template"]["spec"]["restartPolicy"] = json!("Never"))),
            ["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""]
        );
    }

    #[test]
    fn strategies() {
        assert_eq!(
            faults(&set(|s| s["spec"]["updateStrategy"] = json!({"type": "x"}))),
            [
                "spec.updateStrategy: Invalid value: apps.StatefulSetUpdateStrategy{Type:\"x\", RollingUpdate:(*apps.RollingUpdateStatefulSetStrategy)(nil)}: must be 'RollingUpdate' or 'OnDelete'"
            ]
        );
        assert_eq!(
            faults(&set(|s| s["spec"]["updateStrategy"] =
                json!({"type": "OnDelete", "rollingUpdate": {"partition": 1}}))),
            [
                "spec.updateStrategy.rollingUpdate: Invalid value: apps.RollingUpdateStatefulSetStrategy{Partition:1}: only allowed for updateStrategy 'RollingUpdate'"
            ]
        );
    }

    #[test]
    fn what_may_change() {
        let old = set(|_| {});
        let check = |change: fn(&mut Value)| validate_update(&set(change), &old, &CONTEXT).len();
        assert_eq!(check(|s| s["spec"]["replicas"] = json!(4)), 0);
        assert_eq!(check(|s| s["spec"]["template"]["spec"]["hostname"] = json!("h")), 0);
        assert_eq!(check(|s| s["spec"]["serviceName"] = json!("other")), 1);
        assert_eq!(check(|s| s["spec"]["revisionHistoryLimit"] = json!(3)), 1);
    }
}
