//! `PriorityClass`, and groups of pods that are scheduled together.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, bool_at, get, get_i64, set_default, str_at};

use super::checks::immutable_at;
use super::columns::{AGE, NAME, boolean, integer};
use super::{Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell};

const GROUP: &str = "scheduling.k8s.io";
/// What names of the system's own classes begin with.
pub const SYSTEM_PREFIX: &str = "system-";
/// The highest priority that a class of a user may have.
pub const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
/// The system's own classes with their priorities.
pub const SYSTEM_CLASSES: &[(&str, i64)] =
    &[("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[&PRIORITY_CLASS, &POD_GROUP, &WORKLOAD];

/// `PriorityClass`.
pub static PRIORITY_CLASS: Kind = Kind {
    namespaced: false,
    short_names: &["pc"],
    has_generation: true,
    keeps_generation: true,
    storage_version: "scheduling.k8s.io/v1",
    default: |class, _| set_default(class, &["preemptionPolicy"], "PreemptLowerPriority"),
    validate: |class, _| faults(class),
    validate_update: |new, old, _| {
        let mut errs = ErrorList::new();
        if get_i64(new, &["value"]) != get_i64(old, &["value"]) {
            errs.push(field::forbidden(&Path::new("Value"), "may not be changed in an update."));
        }
        errs.extend(immutable_at(new, old, &["preemptionPolicy"]));
        errs
    },
    columns: &[
        NAME,
        integer(
            "Value",
            "The value of this priority class. This is the actual priority that pods receive when they have the name of this class in their pod spec.",
        ),
        boolean(
            "Global-Default",
            "globalDefault specifies whether this PriorityClass should be considered as the default priority for pods that do not have any priority class. Only one PriorityClass can be marked as `globalDefault`. However, if more than one PriorityClasses exists with their `globalDefault` field set to true, the smallest value of such global default PriorityClasses will be used as the default priority.",
        ),
        AGE,
    ],
    row: |class: &Value, context: &RowContext| {
        vec![
            name_cell(class),
            get_i64(class, &["value"]).into(),
            bool_at(class, &["globalDefault"]).into(),
            age_cell(class, context),
        ]
    },
    ..Kind::new(
        "PriorityClass",
        "priorityclasses",
        "priorityclass",
        &[Version::always(GROUP, "v1"), Version::always(GROUP, "v1beta1")],
    )
};

/// `PodGroup`.
pub static POD_GROUP: Kind = Kind {
    subresources: &[STATUS],
    ..Kind::new("PodGroup", "podgroups", "podgroup", &[Version::newer(GROUP, "v1alpha2")])
};

/// `Workload`.
pub static WORKLOAD: Kind =
    Kind::new("Workload", "workloads", "workload", &[Version::newer(GROUP, "v1alpha2")]);

/// Why a class with the system's prefix is not one of the system's own.
fn system_fault(name: &str, value: i64, global: bool) -> Option<String> {
    match SYSTEM_CLASSES.iter().find(|(n, _)| *n == name) {
        None => Some(format!("{name} is not a known system priority class")),
        Some((_, v)) if *v != value => Some(format!("value of {name} PriorityClass must be {v}")),
        Some(_) if global => Some(format!("globalDefault of {name} PriorityClass must be false")),
        Some(_) => None,
    }
}

fn faults(class: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let (name, value) = (str_at(class, &["metadata", "name"]), get_i64(class, &["value"]));
    if name.starts_with(SYSTEM_PREFIX) {
        if let Some(why) = system_fault(name, value, bool_at(class, &["globalDefault"])) {
            errs.push(field::forbidden(
                &Path::new("metadata.name"),
                &format!("priority class names with 'system-' prefix are reserved for system use only. error: {why}"),
            ));
        }
    } else if value > HIGHEST_USER_PRIORITY {
        errs.push(field::forbidden(
            &Path::new("value"),
            &format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"),
        ));
    }
    if let Some(policy) = get(class, &["preemptionPolicy"]).as_str() {
        let path = Path::new("preemptionPolicy");
        const POLICIES: &[&str] = &["PreemptLowerPriority", "Never"];
        if policy.is_empty() {
            errs.push(field::required(&path, ""));
        } else if !POLICIES.contains(&policy) {
            errs.push(field::not_supported(&path, policy, POLICIES));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::Release;

    use super::*;

    fn texts(class: Value) -> Vec<String> {
        faults(&class).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_and_values() {
        assert!(
            texts(json!({"metadata": {"name": "system-node-critical"}, "value": 2_000_001_000i64}))
                .is_empty()
        );
        assert_eq!(
            texts(json!({"metadata": {"name": "system-x"}, "value": 1})),
            [
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: system-x is not a known system priority class"
            ]
        );
        assert_eq!(
            texts(json!({"metadata": {"name": "x"}, "value": 1_000_000_001, "preemptionPolicy": "Odd"})),
            [
                "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
                "preemptionPolicy: Unsupported value: \"Odd\": supported values: \"PreemptLowerPriority\", \"Never\"",
            ]
        );
    }

    #[test]
    fn value_stays() {
        let context = super::super::Context {
            release: Release::V1_20,
            subresource: "",
            api_version: "scheduling.k8s.io/v1",
            allow_privileged: true,
            gates: &[],
        };
        let errs = (PRIORITY_CLASS.validate_update)(
            &json!({"value": 1, "preemptionPolicy": "Never"}),
            &json!({"value": 2, "preemptionPolicy": "PreemptLowerPriority"}),
            &context,
        );
        assert_eq!(errs[0].to_string(), "Value: Forbidden: may not be changed in an update.");
        assert_eq!(errs[1].to_string(), "preemptionPolicy: Invalid value: \"Never\": field is immutable");
    }
}
