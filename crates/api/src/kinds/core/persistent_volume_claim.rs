//! `PersistentVolumeClaim`.

use std::cmp::Ordering;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, copy, get, has, json, map_at, remove, set, set_default, str_at};
use pilothouse_apimachinery::names;
use pilothouse_apimachinery::selector::validate_label_selector;
use pilothouse_apimachinery::version::Release;

use super::persistent_volume::{CLASS_ANNOTATION, VOLUME_MODES, access_modes, access_modes_text, class_of};
use super::resources;
use crate::kinds::checks::{immutable, invalid_each, strings};
use crate::kinds::columns::{AGE, NAME, text, wide};
use crate::kinds::pod::diff::of_structs;
use crate::kinds::{Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell};

/// The kind.
pub static PERSISTENT_VOLUME_CLAIM: Kind = Kind {
    short_names: &["pvc"],
    subresources: &[STATUS],
    default: |object, context| {
        set_default(object, &["status", "phase"], "Pending");
        default_spec(get_spec(object), context);
    },
    prepare_create: |object, context| {
        set(object, &["status"], json!({"phase": "Pending"}));
        if context.release == Release::V1_20 && !is_known_source(object) {
            remove(object, &["spec", "dataSource"]);
        }
    },
    prepare_update: |new, old, context| {
        if context.subresource == "status" {
            copy(new, old, &["spec"]);
            return;
        }
        copy(new, old, &["status"]);
        if context.release == Release::V1_20 && !is_known_source(new) && !has(old, &["spec", "dataSource"]) {
            remove(new, &["spec", "dataSource"]);
        }
    },
    validate: |object, context| spec_faults(get(object, &["spec"]), &Path::new("spec"), context),
    validate_update,
    columns: &[
        NAME,
        text("Status", "Phase represents the current phase of PersistentVolumeClaim."),
        text("Volume", "VolumeName is the binding reference to the PersistentVolume backing this claim."),
        text("Capacity", "Represents the actual resources of the underlying volume."),
        text(
            "Access Modes",
            "AccessModes contains the actual access modes the volume backing the PVC has. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes-1",
        ),
        text("StorageClass", "StorageClass of the pvc"),
        AGE,
        wide(
            "VolumeMode",
            "volumeMode defines what type of volume is required by the claim. Value of Filesystem is implied when not included in claim spec.",
        ),
    ],
    row,
    update_checks: (2, 1),
    ..Kind::new(
        "PersistentVolumeClaim",
        "persistentvolumeclaims",
        "persistentvolumeclaim",
        &[Version::always("", "v1")],
    )
};

fn get_spec(object: &mut Value) -> &mut Value {
    pilothouse_apimachinery::json::ensure_object(object, &["spec"]);
    &mut object["spec"]
}

/// Defaults of a claim's spec, also of those in templates.
pub fn default_spec(spec: &mut Value, context: &Context) {
    set_default(spec, &["volumeMode"], "Filesystem");
    if context.release == Release::V1_20 {
        return;
    }
    // The older field takes only some kinds, the newer one all; they are kept in step.
    if has(spec, &["dataSource"]) && !has(spec, &["dataSourceRef"]) {
        let source = get(spec, &["dataSource"]).clone();
        set(spec, &["dataSourceRef"], source);
    } else if has(spec, &["dataSourceRef"])
        && !has(spec, &["dataSource"])
        && str_at(spec, &["dataSourceRef", "namespace"]).is_empty()
    {
        let source = get(spec, &["dataSourceRef"]).clone();
        set(spec, &["dataSource"], source);
    }
}

/// Whether v1.20 knows the kind of the data source; others it drops.
fn is_known_source(object: &Value) -> bool {
    let source = get(object, &["spec", "dataSource"]);
    matches!(
        (str_at(source, &["kind"]), str_at(source, &["apiGroup"])),
        ("PersistentVolumeClaim", "") | ("VolumeSnapshot", "snapshot.storage.k8s.io")
    )
}

/// Faults of a claim's spec, also of those in ephemeral volumes.
pub fn spec_faults(spec: &Value, path: &Path, context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let modes = strings(spec, &["accessModes"]);
    if modes.is_empty() {
        errs.push(field::required(&path.child("accessModes"), "at least 1 access mode is required"));
    }
    errs.extend(validate_label_selector(get(spec, &["selector"]), &path.child("selector")));
    for mode in modes {
        if !access_modes(context).contains(&mode) {
            errs.push(field::not_supported(&path.child("accessModes"), mode, access_modes(context)));
        }
    }
    let at = path.child("resources").key("storage");
    match get(spec, &["resources", "requests", "storage"]) {
        Value::Null => errs.push(field::required(&at, "")),
        amount => errs.extend(resources::positive(amount, &at)),
    }
    let class = str_at(spec, &["storageClassName"]);
    if !class.is_empty() {
        errs.extend(invalid_each(
            &path.child("storageClassName"),
            class,
            names::dns1123_subdomain_name(class, false),
        ));
    }
    if let Some(mode) = get(spec, &["volumeMode"]).as_str()
        && !VOLUME_MODES.contains(&mode)
    {
        errs.push(field::not_supported(&path.child("volumeMode"), mode, VOLUME_MODES));
    }
    let source = get(spec, &["dataSource"]);
    if !source.is_null() {
        let path = path.child("dataSource");
        for name in ["name", "kind"] {
            if str_at(source, &[name]).is_empty() {
                errs.push(field::required(&path.child(name), ""));
            }
        }
        let kind = str_at(source, &["kind"]);
        if str_at(source, &["apiGroup"]).is_empty() && kind != "PersistentVolumeClaim" {
            errs.push(field::invalid(&path, kind, ""));
        }
    }
    errs
}

fn validate_update(new: &Value, old: &Value, context: &Context) -> ErrorList {
    if context.subresource == "status" {
        return status_faults(new);
    }
    // Kubernetes checks the new object by itself and again as the outcome of the update.
    let faults = spec_faults(get(new, &["spec"]), &Path::new("spec"), context);
    let mut errs = [faults.clone(), faults].concat();
    let (mut new_spec, mut old_spec) = (get(new, &["spec"]).clone(), get(old, &["spec"]).clone());
    if str_at(&old_spec, &["volumeName"]).is_empty() {
        // The binder may name the volume, once.
        copy(&mut old_spec, &new_spec, &["volumeName"]);
    }
    let annotation = |o| get(o, &["metadata", "annotations", CLASS_ANNOTATION]).as_str();
    if class_moved_to_field(new, old) {
        remove(&mut new_spec, &["storageClassName"]);
    } else if annotation(new).unwrap_or("") != annotation(old).unwrap_or("") {
        errs.push(field::invalid(
            &Path::new("metadata.annotations").child(CLASS_ANNOTATION),
            annotation(new).unwrap_or(""),
            "field is immutable",
        ));
    }
    let size = &["resources", "requests", "storage"];
    let bound = str_at(new, &["status", "phase"]) == "Bound";
    if bound && has(&new_spec, &["resources", "requests"]) {
        copy(&mut new_spec, &old_spec, size);
    }
    if context.release > Release::V1_20 {
        copy(&mut new_spec, &old_spec, &["volumeAttributesClassName"]);
    }
    if new_spec != old_spec {
        let why = if context.release == Release::V1_20 {
            "spec is immutable after creation except resources.requests for bound claims"
        } else {
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
        };
        let diff = of_structs("core.PersistentVolumeClaimSpec", &new_spec, &old_spec);
        errs.push(field::forbidden(&Path::new("spec"), &format!("{why}\n{diff}")));
    }
    let size = |o| get(o, &["spec", "resources", "requests", "storage"]);
    if resources::compare(size(new), size(old)) == Ordering::Less {
        errs.push(field::forbidden(
            &Path::new("spec.resources.requests.storage"),
            "field can not be less than previous value",
        ));
    }
    let mode = |o| get(o, &["spec", "volumeMode"]);
    errs.extend(immutable(mode(new), mode(old), &Path::new("volumeMode")));
    errs
}

/// Whether the update moves the storage class from the annotation to the field, which is allowed.
fn class_moved_to_field(new: &Value, old: &Value) -> bool {
    let annotation = |o| get(o, &["metadata", "annotations", CLASS_ANNOTATION]).as_str();
    let class = |o| get(o, &["spec", "storageClassName"]).as_str();
    let Some(before) = annotation(old) else { return false };
    class(old).is_none() && class(new) == Some(before) && annotation(new).is_none_or(|after| after == before)
}

fn status_faults(new: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    if str_at(new, &["metadata", "resourceVersion"]).is_empty() {
        errs.push(field::required(&Path::new("resourceVersion"), ""));
    }
    if strings(new, &["spec", "accessModes"]).is_empty() {
        errs.push(field::required(&Path::new("Spec.accessModes"), ""));
    }
    for (name, amount) in map_at(new, &["status", "capacity"]).into_iter().flatten() {
        errs.extend(resources::basic(amount, &Path::new("status.capacity").key(name)));
    }
    errs
}

fn row(object: &Value, context: &RowContext) -> Vec<Value> {
    let phase = if has(object, &["metadata", "deletionTimestamp"]) {
        "Terminating"
    } else {
        str_at(object, &["status", "phase"])
    };
    let volume = str_at(object, &["spec", "volumeName"]);
    let (capacity, modes) = if volume.is_empty() {
        (String::new(), String::new())
    } else {
        (
            resources::text(get(object, &["status", "capacity", "storage"])),
            access_modes_text(get(object, &["status", "accessModes"])),
        )
    };
    vec![
        name_cell(object),
        phase.into(),
        volume.into(),
        capacity.into(),
        modes.into(),
        class_of(object).into(),
        age_cell(object, context),
        get(object, &["spec", "volumeMode"]).as_str().unwrap_or("<unset>").into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "v1",
        allow_privileged: true,
        gates: &[],
    };

    fn claim(size: &str, phase: &str) -> Value {
        json!({"metadata": {"name": "c", "resourceVersion": "1"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}}, "volumeMode": "Filesystem"}, "status": {"phase": phase}})
    }

    fn texts(errs: &ErrorList) -> Vec<String> {
        errs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn create_faults() {
        let errs = spec_faults(
            &json!({"accessModes": ["Odd"], "resources": {"requests": {"storage": "0"}}, "dataSource": {"kind": "X"}}),
            &Path::new("spec"),
            &CONTEXT,
        );
        assert_eq!(
            texts(&errs),
            [
                "spec.accessModes: Unsupported value: \"Odd\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\"",
                "spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
                "spec.dataSource.name: Required value",
                "spec.dataSource: Invalid value: \"X\"",
            ]
        );
    }

    #[test]
    fn resize() {
        assert!(validate_update(&claim("2Gi", "Bound"), &claim("1Gi", "Bound"), &CONTEXT).is_empty());
        assert_eq!(
            texts(&validate_update(&claim("1Gi", "Bound"), &claim("2Gi", "Bound"), &CONTEXT)),
            ["spec.resources.requests.storage: Forbidden: field can not be less than previous value"]
        );
        let errs = validate_update(&claim("2Gi", "Pending"), &claim("1Gi", "Pending"), &CONTEXT);
        assert!(errs[0].body.contains("immutable after creation"));
    }

    #[test]
    fn volume_is_named_once() {
        let old = claim("1Gi", "Pending");
        let mut new = old.clone();
        set(&mut new, &["spec", "volumeName"], "v");
        assert!(validate_update(&new, &old, &CONTEXT).is_empty());
        assert_eq!(validate_update(&old, &new, &CONTEXT)[0].field, "spec");
    }

    #[test]
    fn unknown_sources_are_dropped() {
        let mut c = claim("1Gi", "Odd");
        set(&mut c, &["spec", "dataSource"], json!({"kind": "Foo", "apiGroup": "ex.com", "name": "x"}));
        (PERSISTENT_VOLUME_CLAIM.prepare_create)(&mut c, &CONTEXT);
        assert_eq!(c, claim("1Gi", "Pending"));
    }

    #[test]
    fn rows() {
        let mut c = claim("1Gi", "Bound");
        set(&mut c, &["spec", "volumeName"], "v");
        set(&mut c, &["status", "capacity"], json!({"storage": "2Gi"}));
        set(&mut c, &["status", "accessModes"], json!(["ReadWriteMany"]));
        let cells = row(&c, &RowContext { now: 0 });
        assert_eq!(cells[1..6], [json!("Bound"), json!("v"), json!("2Gi"), json!("RWX"), json!("")]);
    }
}
