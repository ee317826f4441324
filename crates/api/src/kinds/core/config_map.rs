//! `ConfigMap`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pilothouse_apimachinery::field::{self, ErrorList, Path};
use pilothouse_apimachinery::json::{Map, Value, bool_at, get, map_at, strings_at};
use pilothouse_apimachinery::names;

use crate::kinds::checks::invalid_each;
use crate::kinds::columns::{AGE, NAME, text};
use crate::kinds::{Context, Kind, RowContext, Version};
use crate::table::{age_cell, name_cell};

/// How many bytes the values of a ConfigMap or Secret may have in all.
pub const MAX_SIZE: usize = 1024 * 1024;

const LOCKED: &str = "field is immutable when `immutable` is set";

/// The kind.
pub static CONFIG_MAP: Kind = Kind {
    short_names: &["cm"],
    validate,
    validate_update,
    columns: &[
        NAME,
        text(
            "Data",
            "Data contains the configuration data. Each key must consist of alphanumeric characters, '-', '_' or '.'. Values with non-UTF-8 byte sequences must use the BinaryData field. The keys stored in Data must not overlap with the keys in the BinaryData field, this is enforced during validation process.",
        ),
        AGE,
    ],
    row,
    update_checks: (1, 1),
    ..Kind::new("ConfigMap", "configmaps", "configmap", &[Version::always("", "v1")])
};

/// How many bytes a base64 string stands for.
pub(super) fn decoded_len(text: &str) -> usize {
    STANDARD.decode(text).map_or(0, |b| b.len())
}

fn validate(object: &Value, _context: &Context) -> ErrorList {
    let mut errs = ErrorList::new();
    let binary = get(object, &["binaryData"]);
    let mut size = 0;
    for (key, value) in strings_at(object, &["data"]) {
        let path = Path::new("data").key(key);
        errs.extend(invalid_each(&path, key, names::config_map_key(key)));
        if binary.get(key).is_some() {
            errs.push(field::invalid(&path, key, "duplicate of key present in binaryData"));
        }
        size += value.len();
    }
    for (key, value) in strings_at(object, &["binaryData"]) {
        errs.extend(invalid_each(&Path::new("binaryData").key(key), key, names::config_map_key(key)));
        size += decoded_len(value);
    }
    if size > MAX_SIZE {
        errs.push(field::too_long(&Path::new(""), MAX_SIZE));
    }
    errs
}

fn validate_update(new: &Value, old: &Value, context: &Context) -> ErrorList {
    let mut errs = locked(new, old, &["data", "binaryData"]);
    errs.extend(validate(new, context));
    errs
}

/// Errors of changes to an object whose `immutable` is set.
pub(super) fn locked(new: &Value, old: &Value, fields: &[&str]) -> ErrorList {
    let mut errs = ErrorList::new();
    if !bool_at(old, &["immutable"]) {
        return errs;
    }
    if !bool_at(new, &["immutable"]) {
        errs.push(field::forbidden(&Path::new("immutable"), LOCKED));
    }
    for name in fields {
        let empty = |v: &Value| v.as_object().is_none_or(Map::is_empty);
        let (n, o) = (get(new, &[name]), get(old, &[name]));
        if n != o && !(empty(n) && empty(o)) {
            errs.push(field::forbidden(&Path::new(name), LOCKED));
        }
    }
    errs
}

fn row(object: &Value, context: &RowContext) -> Vec<Value> {
    let count = |f: &str| map_at(object, &[f]).map_or(0, Map::len);
    vec![name_cell(object), (count("data") + count("binaryData")).into(), age_cell(object, context)]
}

#[cfg(test)]
mod tests {
    use pilothouse_apimachinery::json::json;
    use pilothouse_apimachinery::version::Release;

    use super::*;

    const CONTEXT: Context = Context {
        release: Release::V1_20,
        subresource: "",
        api_version: "v1",
        allow_privileged: true,
        gates: &[],
    };

    #[test]
    fn keys_and_size() {
        let errs = validate(&json!({"data": {"a/b": "x", "k": "y"}, "binaryData": {"k": "AAAA"}}), &CONTEXT);
        assert_eq!(errs.len(), 2);
        assert_eq!(errs[0].field, "data[a/b]");
        assert_eq!(
            errs[1].to_string(),
            "data[k]: Invalid value: \"k\": duplicate of key present in binaryData"
        );
        let big = json!({"data": {"k": "x".repeat(MAX_SIZE + 1)}});
        assert_eq!(validate(&big, &CONTEXT)[0].to_string(), ": Too long: must have at most 1048576 bytes");
    }

    #[test]
    fn immutable() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        assert!(validate_update(&old, &old, &CONTEXT).is_empty());
        let new = json!({"data": {"a": "2"}});
        let fields: Vec<String> =
            validate_update(&new, &old, &CONTEXT).into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["immutable", "data"]);
    }

    #[test]
    fn counts() {
        let o = json!({"metadata": {"name": "c"}, "data": {"a": "", "b": ""}, "binaryData": {"c": ""}});
        assert_eq!(row(&o, &RowContext { now: 0 })[1], json!(3));
    }
}
