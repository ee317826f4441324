//! `RuntimeClass` of `node.k8s.io`.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, get, has, list_at, map_at, remove, set, str_at};
use pilothouse_apimachinery::names;

use super::checks::{immutable_at, invalid_each};
use super::columns::{AGE, NAME, text};
use super::core::resources;
use super::{Kind, RowContext, Version};
use crate::table::{age_cell, name_cell};

const GROUP: &str = "node.k8s.io";

/// The family: one kind.
pub static KINDS: &[&Kind] = &[&RUNTIME_CLASS];

/// The kind. The alpha version, in which all but metadata was in a `spec`, is read but not served.
pub static RUNTIME_CLASS: Kind = Kind {
    namespaced: false,
    allow_unconditional_update: false,
    storage_version: "node.k8s.io/v1",
    validate: |class, _| faults(class),
    validate_update: |new, old, _| {
        let mut errs = faults(new);
        errs.extend(immutable_at(new, old, &["handler"]));
        errs
    },
    columns: &[NAME, text("Handler", ""), AGE],
    row: |class: &Value, context: &RowContext| {
        vec![name_cell(class), str_at(class, &["handler"]).into(), age_cell(class, context)]
    },
    create_on_update: true,
    update_checks: (1, 1),
    ..Kind::new(
        "RuntimeClass",
        "runtimeclasses",
        "runtimeclass",
        &[
            Version::always(GROUP, "v1"),
            Version::always(GROUP, "v1beta1"),
            Version {
                in_1_20: false,
                in_newest: false,
                to_hub: Some(from_alpha),
                from_hub: Some(to_alpha),
                ..Version::always(GROUP, "v1alpha1")
            },
        ],
    )
};

const MOVED: &[(&str, &str)] =
    &[("runtimeHandler", "handler"), ("overhead", "overhead"), ("scheduling", "scheduling")];

fn from_alpha(class: &mut Value) {
    for (alpha, name) in MOVED {
        if let Some(value) = remove(class, &["spec", alpha]) {
            set(class, &[name], value);
        }
    }
    remove(class, &["spec"]);
}

fn to_alpha(class: &mut Value) {
    for (alpha, name) in MOVED {
        if let Some(value) = remove(class, &[name]) {
            set(class, &["spec", alpha], value);
        }
    }
}

fn faults(class: &Value) -> ErrorList {
    let handler = str_at(class, &["handler"]);
    let mut errs = invalid_each(&Path::new("handler"), handler, names::dns1123_label_name(handler, false));
    for (name, amount) in map_at(class, &["overhead", "podFixed"]).into_iter().flatten() {
        // Checked as a container's limits are.
        let path = Path::new("overhead.limits").key(name);
        errs.extend(resources::container_name_faults(name, &path));
        errs.extend(resources::value_faults(name, amount, &path));
    }
    if has(class, &["scheduling"]) {
        let path = Path::new("scheduling");
        errs.extend(names::labels(get(class, &["scheduling", "nodeSelector"]), &path.child("nodeSelector")));
        errs.extend(toleration_faults(class, &path.child("tolerations")));
    }
    errs
}

/// Tolerations must be those of a pod, and each may stand only once.
fn toleration_faults(class: &Value, path: &Path) -> ErrorList {
    let list = list_at(class, &["scheduling", "tolerations"]);
    let mut errs = super::pod::tolerations(list, &path.child("tolerations"));
    let mut seen = BTreeSet::new();
    for (i, toleration) in list.iter().enumerate() {
        let key = ["key", "operator", "value", "effect"].map(|f| str_at(toleration, &[f]));
        if !seen.insert(key) {
            errs.push(field::duplicate(&path.index(i), toleration.clone()));
        }
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn handler() {
        let errs = faults(&json!({"handler": "Run_C"}));
        assert_eq!(errs[0].field, "handler");
        assert!(faults(&json!({"handler": "runc", "overhead": {"podFixed": {"cpu": "100m"}}})).is_empty());
        assert_eq!(faults(&json!({"handler": "runc", "overhead": {"podFixed": {"cpu": "-1"}}})).len(), 1);
    }

    #[test]
    fn alpha_and_back() {
        let alpha = json!({"metadata": {"name": "r"}, "spec": {"runtimeHandler": "runc", "overhead": {"podFixed": {"cpu": "1"}}}});
        let mut class = alpha.clone();
        from_alpha(&mut class);
        assert_eq!(
            class,
            json!({"metadata": {"name": "r"}, "handler": "runc", "overhead": {"podFixed": {"cpu": "1"}}})
        );
        to_alpha(&mut class);
        assert_eq!(class, alpha);
    }

    #[test]
    fn tolerations_once() {
        let t = json!({"key": "a", "operator": "Exists"});
        let errs = faults(&json!({"handler": "runc", "scheduling": {"tolerations": [t.clone(), t]}}));
        assert_eq!(errs[0].field, "scheduling.tolerations[1]");
    }
}
