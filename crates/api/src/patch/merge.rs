//! JSON merge patch (RFC 7386).

use std::collections::BTreeMap;

use pilothouse_apimachinery::json::{Map, Value};
use pilothouse_apimachinery::status::{Result, Status};
use pilothouse_apimachinery::version::Release;

/// Applies a merge patch. What is no JSON is answered 500 by v1.20 and 400 since.
pub fn apply(object: &Value, patch: &[u8], release: Release) -> Result<Value> {
    let invalid = || {
        if release == Release::V1_20 {
            Status::failure(500, "", "Invalid JSON Patch")
        } else {
            Status::bad_request("Invalid JSON Patch")
        }
    };
    let patch: Value = serde_json::from_slice(patch).map_err(|_| invalid())?;
    if !patch.is_object() && !patch.is_array() {
        return Err(invalid());
    }
    let mut out = object.clone();
    merge(&mut out, patch);
    Ok(out)
}

/// Members that are null go, objects are merged, anything else replaces what is there.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    let mut changes = BTreeMap::new();
    for (name, value) in patch {
        if value.is_null() {
            changes.insert(name, None);
        } else if let Some(old) = map.get_mut(&name) {
            merge(old, value);
        } else {
            let mut made = Value::Null;
            merge(&mut made, value);
            changes.insert(name, Some(made));
        }
    }
    map.change(changes);
}
