//! `ControllerRevision`: an immutable state of a workload.

use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::go;
use pilothouse_apimachinery::json::Value;

use super::old;
use crate::kinds::access::{flag, items, number, part, text};
use crate::kinds::checks::IMMUTABLE;
use crate::kinds::columns::{AGE, NAME, text as column};
use crate::kinds::numbers::nonnegative;
use crate::kinds::{Column, Kind, RawField, RowContext, Version};
use crate::table::{age_cell, name_cell};

const COLUMNS: &[Column] = &[
    NAME,
    column("Controller", "Controller of the object"),
    column("Revision", "Revision indicates the revision of the state represented by Data."),
    AGE,
];

pub(super) static CONTROLLER_REVISION: Kind = Kind {
    storage_version: "apps/v1",
    validate: |revision, _| validate(revision),
    validate_update: |revision, old, _| {
        let mut errs = validate(revision);
        let (data, old) = (part(revision, "data"), part(old, "data"));
        if data != old {
            errs.push(changed(&data.to_string()));
        }
        errs
    },
    raw_field: Some(RawField { name: "data", changed }),
    columns: COLUMNS,
    row,
    update_checks: (1, 1),
    ..Kind::new(
        "ControllerRevision",
        "controllerrevisions",
        "controllerrevision",
        &[Version::always("apps", "v1"), old("apps", "v1beta2"), old("apps", "v1beta1")],
    )
};

fn validate(revision: &Value) -> ErrorList {
    let mut errs = ErrorList::new();
    if part(revision, "data").is_null() {
        errs.push(field::required(&Path::new("data"), "data is mandatory"));
    }
    errs.extend(nonnegative(revision, "revision", &Path::default()));
    errs
}

fn changed(data: &str) -> field::Error {
    field::invalid_shown(&Path::new("data"), &show_data(data), IMMUTABLE)
}

/// Data of any type is kept as the bytes of its JSON.
fn show_data(data: &str) -> String {
    if data == "null" {
        return "\"null\"".into();
    }
    let bytes: Vec<String> = data.bytes().map(|b| format!("{b:#x}")).collect();
    format!(
        "runtime.Unknown{{TypeMeta:runtime.TypeMeta{{APIVersion:{empty}, Kind:{empty}}}, Raw:[]uint8{{{}}}, ContentEncoding:{empty}, ContentType:\"application/json\"}}",
        bytes.join(", "),
        empty = go::quote("")
    )
}

fn row(revision: &Value, context: &RowContext) -> Vec<Value> {
    let owners = items(part(revision, "metadata"), "ownerReferences");
    let controller = owners.iter().find(|o| flag(o, "controller")).map_or("<none>".to_string(), |owner| {
        let kind = text(owner, "kind").to_lowercase();
        match text(owner, "apiVersion").split_once('/') {
            Some((group, _)) => format!("{kind}.{group}/{}", text(owner, "name")),
            None => format!("{kind}/{}", text(owner, "name")),
        }
    });
    vec![
        name_cell(revision),
        Value::from(controller),
        Value::from(number(revision, "revision")),
        age_cell(revision, context),
    ]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;

    use super::*;

    #[test]
    fn data_is_immutable() {
        let context = crate::kinds::Context {
            release: pilothouse_apimachinery::version::Release::V1_20,
            subresource: "",
            api_version: "apps/v1",
            allow_privileged: true,
            gates: &[],
        };
        let (old, new) =
            (json!({"data": {"a": 1}, "revision": 1}), json!({"data": {"a": 2}, "revision": -1}));
        let errs: Vec<String> = (CONTROLLER_REVISION.validate_update)(&new, &old, &context)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(errs[0], "revision: Invalid value: -1: must be greater than or equal to 0");
        assert!(errs[1].contains("Raw:[]uint8{0x7b, 0x22, 0x61, 0x22, 0x3a, 0x32, 0x7d}"));
    }

    #[test]
    fn controllers() {
        let r = json!({"metadata": {"name": "r", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "ds", "controller": true}]}, "revision": 3});
        assert_eq!(row(&r, &RowContext { now: 0 })[1], "daemonset.apps/ds");
    }
}
