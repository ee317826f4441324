//! Kinds of `storage.k8s.io`, and `StorageVersionMigration`.

mod class;
mod csi;

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, bool_at, copy, get, has, json, set, str_at};
use pilothouse_apimachinery::names;

use super::checks::{invalid_each, metadata_for_status, node_name};
use super::columns::{AGE, NAME, boolean, text};
use super::core::persistent_volume_source::csi_driver_name;
use super::{Column, Context, Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell, or_none};

pub use class::STORAGE_CLASS;
pub use csi::{CSI_DRIVER, CSI_NODE, CSI_STORAGE_CAPACITY};

const GROUP: &str = "storage.k8s.io";
const VERSIONS: &[Version] = &[Version::always(GROUP, "v1"), Version::always(GROUP, "v1beta1")];

/// The kinds of this family.
pub static KINDS: &[&Kind] = &[
    &CSI_DRIVER,
    &CSI_NODE,
    &CSI_STORAGE_CAPACITY,
    &STORAGE_CLASS,
    &VOLUME_ATTACHMENT,
    &VOLUME_ATTRIBUTES_CLASS,
    &STORAGE_VERSION_MIGRATION,
];

/// `VolumeAttachment`.
pub static VOLUME_ATTACHMENT: Kind = Kind {
    namespaced: false,
    allow_unconditional_update: false,
    storage_version: "storage.k8s.io/v1",
    subresources: &[STATUS],
    prepare_create: |attachment, context| {
        if context.api_version == "storage.k8s.io/v1" {
            set(attachment, &["status"], json!({"attached": false}));
        }
    },
    prepare_update: |new, old, context| {
        if context.subresource == "status" {
            copy(new, old, &["spec"]);
            metadata_for_status(new, old);
        } else if context.api_version == "storage.k8s.io/v1" {
            copy(new, old, &["status"]);
        }
    },
    validate: |attachment, context| {
        let mut errs = attachment_faults(attachment);
        errs.extend(attachment_names(attachment, context));
        errs
    },
    validate_update: |new, old, _| {
        // Kubernetes checks the new object by itself and again as the outcome of the update.
        let mut errs = [attachment_faults(new), attachment_faults(new)].concat();
        if get(new, &["spec"]) != get(old, &["spec"]) {
            errs.push(field::invalid(&Path::new("spec"), get(new, &["spec"]).clone(), "field is immutable"));
        }
        errs
    },
    columns: &[
        NAME,
        Column {
            format: "name",
            ..text(
                "Attacher",
                "Attacher indicates the name of the volume driver that MUST handle this request. This is the name returned by GetPluginName().",
            )
        },
        text("PV", "Name of the persistent volume to attach."),
        text("Node", "The node that the volume should be attached to."),
        boolean(
            "Attached",
            "Indicates the volume is successfully attached. This field must only be set by the entity completing the attach operation, i.e. the external-attacher.",
        ),
        AGE,
    ],
    row: |a: &Value, context: &RowContext| {
        vec![
            name_cell(a),
            str_at(a, &["spec", "attacher"]).into(),
            str_at(a, &["spec", "source", "persistentVolumeName"]).into(),
            str_at(a, &["spec", "nodeName"]).into(),
            bool_at(a, &["status", "attached"]).into(),
            age_cell(a, context),
        ]
    },
    update_checks: (2, 0),
    ..Kind::new("VolumeAttachment", "volumeattachments", "volumeattachment", VERSIONS)
};

/// `VolumeAttributesClass`.
pub static VOLUME_ATTRIBUTES_CLASS: Kind = Kind {
    namespaced: false,
    short_names: &["vac"],
    storage_version: "storage.k8s.io/v1",
    validate: |class, _| {
        let driver = str_at(class, &["driverName"]);
        let mut errs = csi_driver_name(driver, &Path::new("driverName"));
        errs.extend(class::parameter_faults(get(class, &["parameters"]), false, &Path::new("parameters")));
        errs
    },
    validate_update: |new, old, _| {
        ["driverName", "parameters"]
            .iter()
            .filter(|name| get(new, &[name]) != get(old, &[name]))
            .map(|name| field::forbidden(&Path::new(name), &format!("updates to {name} are forbidden.")))
            .collect()
    },
    columns: &[NAME, text("DriverName", "Name of the CSI driver"), AGE],
    row: |class: &Value, context: &RowContext| {
        vec![name_cell(class), or_none(str_at(class, &["driverName"])), age_cell(class, context)]
    },
    ..Kind::new(
        "VolumeAttributesClass",
        "volumeattributesclasses",
        "volumeattributesclass",
        &[Version::newer(GROUP, "v1"), Version::newer(GROUP, "v1beta1")],
    )
};

/// `StorageVersionMigration` of `storagemigration.k8s.io`.
pub static STORAGE_VERSION_MIGRATION: Kind = Kind {
    namespaced: false,
    subresources: &[STATUS],
    prepare_create: |migration, _| set(migration, &["status"], json!({})),
    prepare_update: |new, old, context| {
        copy(new, old, if context.subresource == "status" { &["spec"] } else { &["status"] });
    },
    validate: |migration, _| {
        ["resource"]
            .iter()
            .filter(|name| !has(migration, &["spec", "resource", name]))
            .map(|name| field::required(&Path::new("spec.resource").child(name), ""))
            .collect()
    },
    ..Kind::new(
        "StorageVersionMigration",
        "storageversionmigrations",
        "storageversionmigration",
        &[Version::newer("storagemigration.k8s.io", "v1beta1")],
    )
};

/// How long the message of an attachment's error may be.
const MAX_ERROR_BYTES: usize = 1024;
/// How long its metadata may be; the complaint about a message names this one, too.
const MAX_METADATA_BYTES: usize = 256 * 1024;

fn attachment_faults(attachment: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    let path = Path::new("spec");
    let attacher = str_at(attachment, &["spec", "attacher"]);
    let at = path.child("attacher");
    if attacher.is_empty() {
        errs.push(field::required(&at, ""));
    }
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    let at = path.child("source");
    let source = get(attachment, &["spec", "source"]);
    let volume = get(source, &["persistentVolumeName"]);
    match (volume, has(source, &["inlineVolumeSpec"])) {
        (Value::Null, false) => errs.push(field::required(&at, ONE)),
        (Value::Null, true) => {}
        (_, true) => errs.push(field::forbidden(&at, ONE)),
        (name, false) if name == "" => errs.push(field::required(
            &at.child("persistentVolumeName"),
            "must specify non empty persistentVolumeName",
        )),
        _ => {}
    }
    let node = str_at(attachment, &["spec", "nodeName"]);
    errs.extend(node_name(node, &path.child("nodeName")));
    for name in ["attachError", "detachError"] {
        if str_at(attachment, &["status", name, "message"]).len() > MAX_ERROR_BYTES {
            errs.push(field::too_long(&Path::new("status").child(name).child("message"), MAX_METADATA_BYTES));
        }
    }
    errs
}

/// What version v1 wants of names beyond what all versions do.
fn attachment_names(attachment: &Value, context: &Context) -> ErrorList {
    if context.api_version != "storage.k8s.io/v1" {
        return ErrorList::new();
    }
    let path = Path::new("spec");
    let mut errs = csi_driver_name(str_at(attachment, &["spec", "attacher"]), &path.child("attacher"));
    if let Some(name) = get(attachment, &["spec", "source", "persistentVolumeName"]).as_str() {
        let at = path.child("source").child("persistentVolumeName");
        errs.extend(invalid_each(&at, name, names::dns1123_subdomain_name(name, false)));
    }
    errs
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::version::Release;

    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "storage.k8s.io/v1",
        allow_privileged: true,
        gates: &[],
    };

    #[test]
    fn attachments() {
        let good =
            json!({"spec": {"attacher": "d.e", "nodeName": "n", "source": {"persistentVolumeName": "v"}}});
        assert!((VOLUME_ATTACHMENT.validate)(&good, &CONTEXT).is_empty());
        let texts: Vec<String> = attachment_faults(&json!({"spec": {"nodeName": "n", "source": {}}}))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            texts,
            [
                "spec.attacher: Required value",
                "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ]
        );
        let mut other = good.clone();
        set(&mut other, &["spec", "nodeName"], "m");
        assert_eq!((VOLUME_ATTACHMENT.validate_update)(&other, &good, &CONTEXT)[0].field, "spec");
    }
}
