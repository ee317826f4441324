//! Kinds of `resource.k8s.io`, dynamic allocation of devices. Releases after v1.20 only.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Value, copy, get, has, json, list_at, set, set_default, str_at};

use super::columns::{AGE, NAME, text};
use super::{Kind, RowContext, STATUS, Version};
use crate::table::{age_cell, name_cell};

const GROUP: &str = "resource.k8s.io";
const VERSIONS: &[Version] = &[Version::newer(GROUP, "v1"), Version::newer(GROUP, "v1beta2")];

/// The kinds of this family.
pub static KINDS: &[&Kind] =
    &[&DEVICE_CLASS, &DEVICE_TAINT_RULE, &RESOURCE_CLAIM, &RESOURCE_CLAIM_TEMPLATE, &RESOURCE_SLICE];

/// `ResourceClaim`.
pub static RESOURCE_CLAIM: Kind = Kind {
    storage_version: "resource.k8s.io/v1",
    subresources: &[STATUS],
    default: |claim, _| set_default(claim, &["status"], json!({})),
    prepare_create: |claim, _| set(claim, &["status"], json!({})),
    prepare_update: |new, old, context| {
        copy(new, old, if context.subresource == "status" { &["spec"] } else { &["status"] });
    },
    validate_update: |new, old, context| {
        if context.subresource == "status" { ErrorList::new() } else { spec_stays(new, old) }
    },
    columns: &[
        NAME,
        text("State", "A summary of the current state (allocated, pending, reserved, etc.)."),
        AGE,
    ],
    row: |claim: &Value, context: &RowContext| {
        vec![name_cell(claim), claim_state(claim).into(), age_cell(claim, context)]
    },
    ..Kind::new("ResourceClaim", "resourceclaims", "resourceclaim", VERSIONS)
};

/// `ResourceClaimTemplate`.
pub static RESOURCE_CLAIM_TEMPLATE: Kind = Kind {
    storage_version: "resource.k8s.io/v1",
    validate_update: |new, old, _| spec_stays(new, old),
    ..Kind::new("ResourceClaimTemplate", "resourceclaimtemplates", "resourceclaimtemplate", VERSIONS)
};

/// `DeviceClass`.
pub static DEVICE_CLASS: Kind = Kind {
    namespaced: false,
    has_generation: true,
    storage_version: "resource.k8s.io/v1",
    ..Kind::new("DeviceClass", "deviceclasses", "deviceclass", VERSIONS)
};

/// `DeviceTaintRule`.
pub static DEVICE_TAINT_RULE: Kind = Kind {
    namespaced: false,
    subresources: &[STATUS],
    prepare_create: |rule, _| set(rule, &["status"], json!({})),
    prepare_update: |new, old, context| {
        copy(new, old, if context.subresource == "status" { &["spec"] } else { &["status"] });
    },
    ..Kind::new("DeviceTaintRule", "devicetaintrules", "devicetaintrule", &[Version::newer(GROUP, "v1beta2")])
};

/// `ResourceSlice`.
pub static RESOURCE_SLICE: Kind = Kind {
    namespaced: false,
    has_generation: true,
    storage_version: "resource.k8s.io/v1",
    selectable_field_names: &["spec.driver", "spec.nodeName"],
    selectable_fields: |slice| {
        vec![
            ("spec.driver", str_at(slice, &["spec", "driver"]).to_string()),
            ("spec.nodeName", str_at(slice, &["spec", "nodeName"]).to_string()),
        ]
    },
    validate: |slice, _| {
        ["driver"]
            .iter()
            .filter(|f| str_at(slice, &["spec", f]).is_empty())
            .map(|f| field::required(&Path::new("spec").child(f), ""))
            .collect()
    },
    columns: &[
        NAME,
        text("Node", "NodeName identifies the node which provides the resources in this slice."),
        text("Driver", "Driver identifies the DRA driver providing the capacity information."),
        text("Pool", "Pool describes the pool that this ResourceSlice belongs to."),
        AGE,
    ],
    row: |slice: &Value, context: &RowContext| {
        vec![
            name_cell(slice),
            get(slice, &["spec", "nodeName"]).as_str().unwrap_or("<unset>").into(),
            str_at(slice, &["spec", "driver"]).into(),
            str_at(slice, &["spec", "pool", "name"]).into(),
            age_cell(slice, context),
        ]
    },
    ..Kind::new("ResourceSlice", "resourceslices", "resourceslice", VERSIONS)
};

fn spec_stays(new: &Value, old: &Value) -> ErrorList {
    if get(new, &["spec"]) == get(old, &["spec"]) {
        ErrorList::new()
    } else {
        vec![field::invalid(&Path::new("spec"), get(new, &["spec"]).clone(), "field is immutable")]
    }
}

/// `pending`, `allocated,reserved`, `deleted,…`.
fn claim_state(claim: &Value) -> String {
    let mut states = Vec::new();
    if has(claim, &["metadata", "deletionTimestamp"]) {
        states.push("deleted");
    }
    if has(claim, &["status", "allocation"]) {
        states.push("allocated");
        if !list_at(claim, &["status", "reservedFor"]).is_empty() {
            states.push("reserved");
        }
    } else if states.is_empty() {
        states.push("pending");
    }
    states.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states() {
        assert_eq!(claim_state(&json!({})), "pending");
        assert_eq!(
            claim_state(&json!({"status": {"allocation": {}, "reservedFor": [{}]}})),
            "allocated,reserved"
        );
    }

    #[test]
    fn claims_cannot_change() {
        let errs = spec_stays(&json!({"spec": {"a": 1}}), &json!({"spec": {}}));
        assert!(errs[0].body.ends_with("field is immutable"));
    }
}
