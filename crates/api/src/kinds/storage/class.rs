//! `StorageClass`.

use std::collections::{BTreeMap, BTreeSet};

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Map, Value, bool_at, get, list_at, set_default, str_at};
use pilothouse_apimachinery::names;

use super::VERSIONS;
use crate::kinds::checks::{immutable_at, invalid_each, strings};
use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::{Kind, RowContext};
use crate::table::age_cell;

/// The kind.
pub static STORAGE_CLASS: Kind = Kind {
    namespaced: false,
    short_names: &["sc"],
    storage_version: "storage.k8s.io/v1",
    default: |class, _| {
        set_default(class, &["reclaimPolicy"], "Delete");
        set_default(class, &["volumeBindingMode"], "Immediate");
    },
    validate: |class, _| faults(class),
    validate_update: |new, old, _| {
        let mut errs = faults(new);
        let empty = |v: &Value| v.as_object().is_none_or(Map::is_empty);
        for name in ["parameters", "provisioner", "reclaimPolicy"] {
            let (n, o) = (get(new, &[name]), get(old, &[name]));
            if n != o && !(name == "parameters" && empty(n) && empty(o)) {
                let why = format!("updates to {name} are forbidden.");
                errs.push(field::forbidden(&Path::new(name), &why));
            }
        }
        errs.extend(immutable_at(new, old, &["volumeBindingMode"]));
        errs
    },
    columns: &[
        NAME,
        text("Provisioner", "Provisioner indicates the type of the provisioner."),
        text(
            "ReclaimPolicy",
            "Dynamically provisioned PersistentVolumes of this storage class are created with this reclaimPolicy. Defaults to Delete.",
        ),
        text(
            "VolumeBindingMode",
            "VolumeBindingMode indicates how PersistentVolumeClaims should be provisioned and bound.  When unset, VolumeBindingImmediate is used. This field is only honored by servers that enable the VolumeScheduling feature.",
        ),
        text(
            "AllowVolumeExpansion",
            "AllowVolumeExpansion shows whether the storage class allow volume expand",
        ),
        AGE,
    ],
    row,
    update_checks: (1, 1),
    ..Kind::new("StorageClass", "storageclasses", "storageclass", VERSIONS)
};

fn faults(class: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let provisioner = str_at(class, &["provisioner"]);
    let at = Path::new("provisioner");
    if provisioner.is_empty() {
        errs.push(field::required(&at, ""));
    } else {
        errs.extend(invalid_each(&at, provisioner, names::qualified_name(&provisioner.to_lowercase())));
    }
    errs.extend(parameter_faults(get(class, &["parameters"]), true, &Path::new("parameters")));
    let policy = str_at(class, &["reclaimPolicy"]);
    if !policy.is_empty() && !["Delete", "Retain"].contains(&policy) {
        errs.push(field::not_supported(&Path::new("reclaimPolicy"), policy, &["Delete", "Retain"]));
    }
    const MODES: &[&str] = &["Immediate", "WaitForFirstConsumer"];
    let at = Path::new("volumeBindingMode");
    match get(class, &["volumeBindingMode"]).as_str() {
        None => errs.push(field::required(&at, "")),
        Some(mode) if !MODES.contains(&mode) => errs.push(field::not_supported(&at, mode, MODES)),
        Some(_) => {}
    }
    errs.extend(topology_faults(list_at(class, &["allowedTopologies"])));
    errs
}

/// Faults of the parameters of a class.
pub(super) fn parameter_faults(parameters: &Value, may_be_empty: bool, path: &Path) -> ErrorList {
    const MOST: usize = 512;
    const MOST_BYTES: usize = 256 * 1024;
    let mut errs = ErrorList::new();
    let pairs: Vec<(&str, &str)> = pilothouse_apimachinery::json::strings_at(parameters, &[]).collect();
    if pairs.len() > MOST {
        errs.push(field::too_long(path, MOST));
        return errs;
    }
    for (key, _) in pairs.iter().filter(|(key, _)| key.is_empty()) {
        errs.push(field::invalid(path, *key, "field can not be empty."));
    }
    if pairs.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > MOST_BYTES {
        errs.push(field::too_long(path, MOST_BYTES));
    }
    if pairs.is_empty() && !may_be_empty {
        errs.push(field::required(path, "must contain at least one key/value pair"));
    }
    errs
}

fn topology_faults(terms: &[Value]) -> ErrorList {
    let mut errs = ErrorList::new();
    let mut before: Vec<BTreeMap<&str, BTreeSet<&str>>> = Vec::new();
    for (i, term) in terms.iter().enumerate() {
        let path = Path::new("allowedTopologies").index(i).child("matchLabelExpressions");
        let mut map = BTreeMap::new();
        for (j, requirement) in list_at(term, &["matchLabelExpressions"]).iter().enumerate() {
            let path = path.index(j);
            let values = strings(requirement, &["values"]);
            if values.is_empty() {
                errs.push(field::required(&path.child("values"), ""));
            }
            let mut set = BTreeSet::new();
            for (k, value) in values.into_iter().enumerate() {
                if !set.insert(value) {
                    errs.push(field::duplicate(&path.child("values").index(k), value));
                }
            }
            let key = str_at(requirement, &["key"]);
            errs.extend(names::label_name(key, &path.child("key")));
            if map.insert(key, set).is_some() {
                errs.push(field::duplicate(&path.child("key"), key));
            }
        }
        // A term without expressions counts as a duplicate once for each term there is: Kubernetes compares
        // with a list that it made that long to begin with.
        let initial = if map.is_empty() { terms.len() } else { 0 };
        for _ in 0..initial + before.iter().filter(|b| **b == map).count() {
            errs.push(field::duplicate(&path, ""));
        }
        before.push(map);
    }
    errs
}

/// Whether claims without a class get this one.
pub fn is_default(class: &Value) -> bool {
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
        .iter()
        .any(|key| str_at(class, &["metadata", "annotations", key]) == "true")
}

fn row(class: &Value, context: &RowContext) -> Vec<Value> {
    let mut name = str_at(class, &["metadata", "name"]).to_string();
    if is_default(class) {
        name.push_str(" (default)");
    }
    let or = |field: &str, default: &str| match str_at(class, &[field]) {
        "" => default.to_string(),
        value => value.to_string(),
    };
    vec![
        name.into(),
        str_at(class, &["provisioner"]).into(),
        or("reclaimPolicy", "Delete").into(),
        or("volumeBindingMode", "Immediate").into(),
        bool_at(class, &["allowVolumeExpansion"]).into(),
        age_cell(class, context),
    ]
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
    fn class_faults() {
        assert_eq!(
            texts(json!({"reclaimPolicy": "Recycle"})),
            [
                "provisioner: Required value",
                "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
                "volumeBindingMode: Required value",
            ]
        );
        assert_eq!(
            texts(json!({"provisioner": "p", "volumeBindingMode": "Immediate", "allowedTopologies": [
            {"matchLabelExpressions": [{"key": "zone", "values": ["a", "a"]}, {"key": "zone"}]}, {}]})),
            [
                "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"a\"",
                "allowedTopologies[0].matchLabelExpressions[1].values: Required value",
                "allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"zone\"",
                "allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\"",
                "allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\"",
            ]
        );
    }

    #[test]
    fn what_cannot_change() {
        let context = crate::kinds::Context {
            release: Release::V1_20,
            subresource: "",
            api_version: "storage.k8s.io/v1",
            allow_privileged: true,
            gates: &[],
        };
        let old = json!({"provisioner": "p", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate", "parameters": {"a": "1"}});
        let new = json!({"provisioner": "q", "reclaimPolicy": "Retain", "volumeBindingMode": "WaitForFirstConsumer"});
        let texts: Vec<String> =
            (STORAGE_CLASS.validate_update)(&new, &old, &context).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "parameters: Forbidden: updates to parameters are forbidden.",
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
                "volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable",
            ]
        );
    }

    #[test]
    fn rows() {
        let class = json!({"metadata": {"name": "s", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "p"});
        assert_eq!(
            row(&class, &RowContext { now: 0 })[..5],
            [json!("s (default)"), json!("p"), json!("Delete"), json!("Immediate"), json!(false)]
        );
    }
}
