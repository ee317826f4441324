//! `PodDisruptionBudget`.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::intstr;
use pilothouse_apimachinery::json::{Value, json};
use pilothouse_apimachinery::names::path_segment_name;
use pilothouse_apimachinery::selector::validate_label_selector;
use pilothouse_apimachinery::version::Release;
use pilothouse_apimachinery::{go, json};

use crate::kinds::access::{number, part, present, put};
use crate::kinds::columns::{AGE, NAME, integer, text as column};
use crate::kinds::numbers::{all_nonnegative, at_most_100_percent, int_or_percent};
use crate::kinds::{Column, Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell};

const COLUMNS: &[Column] = &[
    NAME,
    column("Min Available", "The minimum number of pods that must be available."),
    column("Max Unavailable", "The maximum number of pods that may be unavailable."),
    integer("Allowed Disruptions", "Calculated number of pods that may be disrupted at this time."),
    AGE,
];

pub(super) static POD_DISRUPTION_BUDGET: Kind = Kind {
    short_names: &["pdb"],
    subresources: &[STATUS],
    storage_version: "policy/v1beta1",
    has_generation: true,
    allow_unconditional_update: false,
    name_fn: path_segment_name,
    prepare_create: |budget, _| put(budget, "status", json!({})),
    prepare_update: |budget, old, context| {
        let kept = if context.subresource == "status" { "spec" } else { "status" };
        json::copy(budget, old, &[kept]);
    },
    validate: |budget, _| validate_spec(part(budget, "spec")),
    validate_update,
    columns: COLUMNS,
    row,
    update_checks: (0, 0),
    ..Kind::new(
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        "poddisruptionbudget",
        &[Version::always("policy", "v1beta1"), Version::newer("policy", "v1")],
    )
};

fn validate_spec(spec: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errs = ErrorList::new();
    if present(spec, "minAvailable") && present(spec, "maxUnavailable") {
        let shown = format!(
            "policy.PodDisruptionBudgetSpec{{MinAvailable:{}, Selector:{}, MaxUnavailable:{}}}",
            go::int_or_string(part(spec, "minAvailable")),
            go::label_selector(part(spec, "selector")),
            go::int_or_string(part(spec, "maxUnavailable"))
        );
        errs.push(field::invalid_shown(&path, &shown, "minAvailable and maxUnavailable cannot be both set"));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        if present(spec, key) {
            let (value, at) = (part(spec, key), path.child(key));
            errs.extend(int_or_percent(value, &at));
            errs.extend(at_most_100_percent(value, &at));
        }
    }
    errs.extend(validate_label_selector(part(spec, "selector"), &path.child("selector")));
    errs
}

fn validate_update(budget: &Value, _old: &Value, context: &Context) -> ErrorList {
    const COUNTS: &[&str] = &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
    let status = || all_nonnegative(part(budget, "status"), COUNTS, &Path::new("status"));
    match (context.subresource, context.release) {
        // v1.20 does not look at a status that is set.
        ("status", Release::V1_20) => ErrorList::new(),
        ("status", _) => status(),
        _ => [validate_spec(part(budget, "spec")), status()].concat(),
    }
}

fn row(budget: &Value, context: &RowContext) -> Vec<Value> {
    let spec = part(budget, "spec");
    let limit = |key: &str| match part(spec, key) {
        Value::Null => Value::from("N/A"),
        value => Value::from(intstr::text(value)),
    };
    vec![
        name_cell(budget),
        limit("minAvailable"),
        limit("maxUnavailable"),
        Value::from(number(part(budget, "status"), "disruptionsAllowed")),
        age_cell(budget, context),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::NEWEST;

    use super::*;

    #[test]
    fn v1_20_takes_any_status() {
        let bad = json!({"spec": {}, "status": {"currentHealthy": -1}});
        let faults = |subresource, release| {
            let context = Context {
                release,
                subresource,
                api_version: "policy/v1beta1",
                allow_privileged: true,
                gates: &[],
            };
            validate_update(&bad, &json!({}), &context).len()
        };
        assert_eq!((faults("status", Release::V1_20), faults("", Release::V1_20)), (0, 1));
        assert_eq!(faults("status", NEWEST), 1);
    }

    #[test]
    fn specs() {
        let texts = |spec: Value| validate_spec(&spec).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(texts(json!({})).is_empty());
        assert!(texts(json!({"minAvailable": 7})).is_empty());
        assert_eq!(
            texts(json!({"maxUnavailable": "150%"})),
            [
                "spec.maxUnavailable: Invalid value: intstr.IntOrString{Type:1, IntVal:0, StrVal:\"150%\"}: must not be greater than 100%"
            ]
        );
        let both = texts(json!({"maxUnavailable": 1, "minAvailable": 1}));
        assert!(both[0].ends_with("minAvailable and maxUnavailable cannot be both set"));
    }

    #[test]
    fn rows() {
        let budget = json!({"metadata": {"name": "b"}, "spec": {"maxUnavailable": "10%"}, "status": {"disruptionsAllowed": 1}});
        assert_eq!(row(&budget, &RowContext { now: 0 })[1..4], [json!("N/A"), json!("10%"), json!(1)]);
    }
}
