//! `PersistentVolume`.

use std::collections::BTreeSet;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{
    Map, Value, copy, get, get_mut, has, json, map_at, remove, set, set_default, str_at,
};
use pilothouse_apimachinery::names;

use super::persistent_volume_source::{SOURCES, source_faults};
use super::resources;
use crate::go_print;
use crate::kinds::checks::{immutable, invalid_each, node_selector, strings};
use crate::kinds::columns::{AGE, NAME, text, wide};
use crate::kinds::pod::diff::of_structs;
use crate::kinds::{Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell};

/// Access modes of v1.20, sorted as errors list them.
pub const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce"];
const ACCESS_MODES_NEWEST: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Volume modes, sorted as errors list them.
pub const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];
/// The annotation that named the storage class before there was a field.
pub const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const POLICIES: &[&str] = &["Delete", "Recycle", "Retain"];

/// The kind.
pub static PERSISTENT_VOLUME: Kind = Kind {
    namespaced: false,
    short_names: &["pv"],
    subresources: &[STATUS],
    default,
    prepare_create: |object, _| set(object, &["status"], json!({"phase": "Pending"})),
    prepare_update: |new, old, context| {
        copy(new, old, if context.subresource == "status" { &["spec"] } else { &["status"] });
    },
    validate,
    validate_update,
    columns: &[
        NAME,
        text(
            "Capacity",
            "A description of the persistent volume's resources and capacity. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#capacity",
        ),
        text(
            "Access Modes",
            "AccessModes contains all ways the volume can be mounted. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#access-modes",
        ),
        text(
            "Reclaim Policy",
            "What happens to a persistent volume when released from its claim. Valid options are Retain (default for manually created PersistentVolumes), Delete (default for dynamically provisioned PersistentVolumes), and Recycle (deprecated). Recycle must be supported by the volume plugin underlying this PersistentVolume. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#reclaiming",
        ),
        text(
            "Status",
            "Phase indicates if a volume is available, bound to a claim, or released by a claim. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#phase",
        ),
        text(
            "Claim",
            "ClaimRef is part of a bi-directional binding between PersistentVolume and PersistentVolumeClaim. Expected to be non-nil when bound. claim.VolumeName is the authoritative bind between PV and PVC. More info: https://kubernetes.io/docs/concepts/storage/persistent-volumes#binding",
        ),
        text("StorageClass", "StorageClass of the pv"),
        text(
            "Reason",
            "Reason is a brief CamelCase string that describes any failure and is meant for machine parsing and tidy display in the CLI.",
        ),
        AGE,
        wide(
            "VolumeMode",
            "volumeMode defines if a volume is intended to be used with a formatted filesystem or to remain in raw block state. Value of Filesystem is implied when not included in spec.",
        ),
    ],
    row,
    update_checks: (2, 0),
    ..Kind::new("PersistentVolume", "persistentvolumes", "persistentvolume", &[Version::always("", "v1")])
};

fn default(object: &mut Value, _context: &Context) {
    set_default(object, &["status", "phase"], "Pending");
    set_default(object, &["spec", "persistentVolumeReclaimPolicy"], "Retain");
    set_default(object, &["spec", "volumeMode"], "Filesystem");
    if let Some(host_path) = get_mut(object, &["spec", "hostPath"]).filter(|v| v.is_object()) {
        set_default(host_path, &["type"], "");
    }
    if let Some(disk) = get_mut(object, &["spec", "azureDisk"]).filter(|v| v.is_object()) {
        set_default(disk, &["cachingMode"], "ReadWrite");
        set_default(disk, &["kind"], "Shared");
        set_default(disk, &["fsType"], "ext4");
        set_default(disk, &["readOnly"], false);
    }
}

/// The access modes that a release knows.
pub fn access_modes(context: &Context) -> &'static [&'static str] {
    if context.release > pilothouse_apimachinery::version::Release::V1_20 {
        ACCESS_MODES_NEWEST
    } else {
        ACCESS_MODES
    }
}

fn validate(object: &Value, context: &Context) -> ErrorList {
    let spec = get(object, &["spec"]);
    let path = Path::new("spec");
    let mut errs = ErrorList::new();
    let modes = strings(spec, &["accessModes"]);
    if modes.is_empty() {
        errs.push(field::required(&path.child("accessModes"), ""));
    }
    for mode in modes {
        if !access_modes(context).contains(&mode) {
            errs.push(field::not_supported(&path.child("accessModes"), mode, access_modes(context)));
        }
    }
    errs.extend(capacity_faults(spec, &path));
    let policy = str_at(spec, &["persistentVolumeReclaimPolicy"]);
    if !policy.is_empty() && !POLICIES.contains(&policy) {
        errs.push(field::not_supported(&path.child("persistentVolumeReclaimPolicy"), policy, POLICIES));
    }
    let affinity = get(spec, &["nodeAffinity"]);
    if !affinity.is_null() {
        let at = path.child("nodeAffinity").child("required");
        match get(affinity, &["required"]) {
            Value::Null => errs.push(field::required(&at, "must specify required node constraints")),
            selector => errs.extend(node_selector(selector, &at)),
        }
    }
    let mut sources = 0;
    for name in SOURCES {
        let source = get(spec, &[name]);
        if source.is_null() {
            continue;
        }
        if sources > 0 {
            errs.push(field::forbidden(&path.child(name), "may not specify more than 1 volume type"));
            continue;
        }
        sources += 1;
        errs.extend(source_faults(name, source, &path.child(name)));
        if *name == "local" && affinity.is_null() {
            errs.push(field::required(&path.child("nodeAffinity"), "Local volume requires node affinity"));
        }
    }
    if sources == 0 {
        errs.push(field::required(&path, "must specify a volume type"));
    }
    if policy == "Recycle" && is_root(str_at(spec, &["hostPath", "path"])) && has(spec, &["hostPath"]) {
        errs.push(field::forbidden(
            &path.child("persistentVolumeReclaimPolicy"),
            "may not be 'recycle' for a hostPath mount of '/'",
        ));
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
    errs
}

fn capacity_faults(spec: &Value, path: &Path) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = path.child("capacity");
    let capacity = map_at(spec, &["capacity"]);
    let count = capacity.map_or(0, Map::len);
    if count == 0 {
        errs.push(field::required(&path, ""));
    }
    if count > 1 || !has(spec, &["capacity", "storage"]) {
        let mut e = field::not_supported(&path, "", &["storage"]);
        let shown = go_print::resource_list(get(spec, &["capacity"]));
        e.body = e.body.replacen("\"\"", &shown, 1);
        errs.push(e);
    }
    for (name, value) in capacity.into_iter().flatten() {
        errs.extend(resources::basic(value, &path.key(name)));
        errs.extend(resources::positive(value, &path.key(name)));
    }
    errs
}

/// Whether a path, cleaned, is `/`.
fn is_root(path: &str) -> bool {
    let mut depth = 0usize;
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    path.starts_with('/') && depth == 0
}

fn sources(object: &Value) -> Value {
    SOURCES
        .iter()
        .map(|name| ((*name).to_string(), get(object, &["spec", name]).clone()))
        .filter(|(_, v)| !v.is_null())
        .collect::<Map>()
        .into()
}

fn validate_update(new: &Value, old: &Value, context: &Context) -> ErrorList {
    if context.subresource == "status" {
        let versioned = !str_at(new, &["metadata", "resourceVersion"]).is_empty();
        return if versioned {
            ErrorList::new()
        } else {
            vec![field::required(&Path::new("resourceVersion"), "")]
        };
    }
    // Kubernetes checks the new object by itself and again as the outcome of the update.
    let faults = validate(new, context);
    let mut errs = [faults.clone(), faults].concat();
    let mut compared = new.clone();
    // A secret for expansion may be given later.
    if has(old, &["spec", "csi"]) && !has(old, &["spec", "csi", "controllerExpandSecretRef"]) {
        remove(&mut compared, &["spec", "csi", "controllerExpandSecretRef"]);
    }
    let (after, before) = (sources(&compared), sources(old));
    if after != before {
        let diff = of_structs("core.PersistentVolumeSource", &after, &before);
        errs.push(field::forbidden(
            &Path::new("spec.persistentvolumesource"),
            &format!("spec.persistentvolumesource is immutable after creation\n{diff}"),
        ));
    }
    let mode = |o| get(o, &["spec", "volumeMode"]);
    errs.extend(immutable(mode(new), mode(old), &Path::new("volumeMode")));
    let affinity = |o| get(o, &["spec", "nodeAffinity"]);
    if !affinity(old).is_null() {
        errs.extend(immutable(affinity(new), affinity(old), &Path::new("nodeAffinity")));
    }
    errs
}

/// `RWO,ROX,RWX`, each once and in this order.
pub fn access_modes_text(modes: &Value) -> String {
    let have: BTreeSet<&str> = strings(modes, &[]).into_iter().collect();
    [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .iter()
    .filter(|(long, _)| have.contains(long))
    .map(|(_, short)| *short)
    .collect::<Vec<_>>()
    .join(",")
}

/// The storage class of a volume or claim: the annotation first, then the field.
pub fn class_of(object: &Value) -> &str {
    match get(object, &["metadata", "annotations", CLASS_ANNOTATION]).as_str() {
        Some(class) => class,
        None => str_at(object, &["spec", "storageClassName"]),
    }
}

fn row(object: &Value, context: &RowContext) -> Vec<Value> {
    let phase = if has(object, &["metadata", "deletionTimestamp"]) {
        "Terminating"
    } else {
        str_at(object, &["status", "phase"])
    };
    let claim = match get(object, &["spec", "claimRef"]) {
        Value::Null => String::new(),
        claim => format!("{}/{}", str_at(claim, &["namespace"]), str_at(claim, &["name"])),
    };
    vec![
        name_cell(object),
        resources::text(get(object, &["spec", "capacity", "storage"])).into(),
        access_modes_text(get(object, &["spec", "accessModes"])).into(),
        str_at(object, &["spec", "persistentVolumeReclaimPolicy"]).into(),
        phase.into(),
        claim.into(),
        class_of(object).into(),
        str_at(object, &["status", "reason"]).into(),
        age_cell(object, context),
        get(object, &["spec", "volumeMode"]).as_str().unwrap_or("<unset>").into(),
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

    fn faults(o: &Value) -> Vec<String> {
        validate(o, &CONTEXT).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn empty_spec() {
        assert_eq!(
            faults(&json!({"spec": {}})),
            [
                "spec.accessModes: Required value",
                "spec.capacity: Required value",
                "spec.capacity: Unsupported value: core.ResourceList(nil): supported values: \"storage\"",
                "spec: Required value: must specify a volume type",
            ]
        );
    }

    #[test]
    fn more_than_storage() {
        let texts = faults(
            &json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi", "cpu": "1"},
            "hostPath": {"path": "/a/..", "type": ""}, "nfs": {}, "persistentVolumeReclaimPolicy": "Recycle"}}),
        );
        assert!(
            texts[0].starts_with(
                "spec.capacity: Unsupported value: core.ResourceList{\"cpu\":resource.Quantity{i:"
            )
        );
        assert_eq!(texts[1], "spec.hostPath.path: Invalid value: \"/a/..\": must not contain '..'");
        assert_eq!(texts[2], "spec.nfs: Forbidden: may not specify more than 1 volume type");
        assert!(texts[3].ends_with("hostPath mount of '/'"));
    }

    #[test]
    fn source_and_affinity_are_immutable() {
        let old = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "csi": {"driver": "d.e", "volumeHandle": "h"}}});
        let mut new = old.clone();
        set(&mut new, &["spec", "csi", "controllerExpandSecretRef"], json!({"name": "s", "namespace": "n"}));
        assert!(validate_update(&new, &old, &CONTEXT).is_empty());
        set(&mut new, &["spec", "csi", "volumeHandle"], "other");
        assert_eq!(validate_update(&new, &old, &CONTEXT)[0].field, "spec.persistentvolumesource");
    }

    #[test]
    fn defaults_and_row() {
        let mut o = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "5Gi"},
            "accessModes": ["ReadOnlyMany", "ReadWriteOnce"], "hostPath": {"path": "/a"}, "claimRef": {"namespace": "n", "name": "c"}}});
        default(&mut o, &CONTEXT);
        assert_eq!(o["spec"]["hostPath"]["type"], "");
        let cells = row(&o, &RowContext { now: 0 });
        assert_eq!(
            cells[1..8],
            [
                json!("5Gi"),
                json!("RWO,ROX"),
                json!("Retain"),
                json!("Pending"),
                json!("n/c"),
                json!(""),
                json!("")
            ]
        );
        assert_eq!(cells[9], json!("Filesystem"));
    }
}
